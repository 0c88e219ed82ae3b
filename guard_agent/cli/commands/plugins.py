"""``guard-agent plugins``: what is installed, and what is in use."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from guard_agent.cli.output import json_option, print_json, print_table
from guard_agent.cli.setup import Setup, hint, named_in, setup_options
from guard_agent.core.assembly.composition import FALLBACK_STORE

if TYPE_CHECKING:
    from guard_agent.core.assembly.registry import Provider, Registry
    from guard_agent.core.errors import Problem


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    kind: str
    distribution: str
    version: str
    state: str
    why: str = ""

    def cells(self) -> tuple[str, ...]:
        state = f"{self.state}: {self.why}" if self.why else self.state
        return self.name, self.kind or "-", self.distribution or "-", self.version or "-", state


@click.command()
@setup_options
@json_option
def command(setup: Setup, as_json: bool) -> None:
    """
    List the plugins that are installed, and which are in use.

    Ends with 1 when one that is in use is broken or missing.
    """
    config, wrong = setup.look()
    if wrong:
        click.echo("\n".join(map(str, wrong)), err=True)
        click.echo("The list shows what the rest of the configuration uses.\n", err=True)
    used = {instance.partition("/")[0] for instance in named_in(config)} | {FALLBACK_STORE}
    registry, problems = setup.registry, dict[str, tuple["Problem", ...]]()
    rows = [_row(registry, provider, used, problems) for provider in registry.providers]
    rows += [
        _Row(p.name, "", p.distribution, p.version, "disabled", "not imported")
        for p in registry.disabled
    ]
    known = {row.name for row in rows}
    rows += [
        _Row(name, "", "", "", "missing", "named, but not installed")
        for name in sorted(used - known)
    ]
    if as_json:
        print_json(
            [
                {
                    **asdict(row),
                    "in_use": row.name in used,
                    "problems": [asdict(problem) for problem in problems.get(row.name, ())],
                }
                for row in rows
            ]
        )
    else:
        head = ("NAME", "KIND", "DISTRIBUTION", "VERSION", "STATE")
        print_table([head, *(row.cells() for row in rows)])
        found = [problem for some in problems.values() for problem in some]
        for problem in dict.fromkeys(found):
            click.echo(f"\n{problem}")
        hint(found)
    bad = any(row.name in used and row.state in ("broken", "missing") for row in rows)
    raise SystemExit(1 if bad else 0)


def _row(
    registry: Registry,
    provider: Provider,
    used: set[str],
    problems: dict[str, tuple[Problem, ...]],
) -> _Row:
    loaded = registry.load(provider.name)
    kinds = ", ".join(loaded.classes)
    state, why = ("active" if provider.name in used else "available"), ""
    if loaded.problems:
        problems[provider.name] = loaded.problems
        codes = ", ".join(sorted({problem.code for problem in loaded.problems}))
        state, why = "broken", f"{codes}, see below"
    return _Row(provider.name, kinds, provider.distribution, provider.version, state, why)
