"""How the commands print: tables for people, findings, JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import click

from guard_agent.core.logs import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Verdict = Literal["ok", "note", "failed"]
_COLOURS = {"ok": "green", "note": "yellow", "failed": "red", "broken": "red", "missing": "red"}
_LONGEST = 1000

json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="For a program to read."
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of an answer."""

    about: str
    verdict: Verdict
    text: str
    facts: dict[str, object] = field(default_factory=dict)
    """The numbers in the text, for programs."""


def show_findings(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print them; the exit code is 1 when one of them failed."""
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table([(f.verdict, f.about, one_line(f.text, _LONGEST)) for f in findings])
    return 1 if any(finding.verdict == "failed" for finding in findings) else 0


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, default=str))


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Columns under each other, the first word of a state in colour on a terminal."""
    table = [[str(cell) for cell in row] for row in rows]
    if not table:
        return
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    for row in table:
        cells = [_coloured(cell, width) for cell, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())


def _coloured(cell: str, width: int) -> str:
    word = cell.partition(":")[0]
    padded = f"{cell:<{width}}"
    if word not in _COLOURS:
        return padded
    return click.style(word, fg=_COLOURS[word]) + padded[len(word) :]
