"""From the figures of all runs to one table, as text and as ``RESULTS.md`` with a plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from environments import LIMITS, OTEL, PLOT, SENTRY, SIDES, Side, environment
from rows import ROWS, Row


@dataclass
class Measured:
    """What came of one measurement."""

    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The figures of each round, by side."""
    failed: dict[str, str] = field(default_factory=dict)
    calibration: list[float] = field(default_factory=list)
    """Milliseconds of a fixed amount of Python, before each run."""

    def values(self, side: str, figure: str) -> list[float]:
        """The figure in each round, sorted."""
        return sorted(float(run[figure]) for run in self.runs.get(side, []) if figure in run)

    @property
    def noise(self) -> float:
        """How much longer the slowest calibration took than the median, as a share."""
        if not self.calibration:
            return 0.0
        return max(self.calibration) / statistics.median(self.calibration) - 1


@dataclass(frozen=True)
class Line:
    """One row of the table, with all there is to print."""

    title: str
    unit: str
    peer: str
    ours: str
    ratio: float | None
    target: str
    verdict: str
    others: str
    limit: str
    noise: str
    ran: bool
    bound: float | None
    """The target, where it is one of the ratio."""


def lines(everything: dict[str, Measured]) -> list[Line]:
    return [_line(row, everything) for row in ROWS]


def _line(row: Row, everything: dict[str, Measured]) -> Line:
    measured = everything.get(row.measurement, Measured())
    ours = measured.values(row.ours, row.figure)
    peer = measured.values(row.peer, row.figure)
    middle = statistics.median(ours) if ours else None
    ratio = None
    if middle is not None and peer and statistics.median(peer) > 0:
        # A difference of two costs may be below zero in the noise.
        ratio = max(middle, 0.0) / statistics.median(peer)
    others = [
        f"{SIDES[side].title} {_number(statistics.median(found))}"
        for side in measured.runs
        if side in {OTEL, SENTRY} and (found := measured.values(side, row.figure))
    ]
    limit = measured.values(LIMITS, row.limit or row.figure)
    return Line(
        title=row.title,
        unit=row.unit,
        peer=_spread(peer) or _absent(measured, row.peer),
        ours=_spread(ours) or _absent(measured, row.ours),
        ratio=ratio,
        target=_target(row),
        verdict=_verdict(row, middle, ratio),
        others=", ".join(others),
        limit=_number(statistics.median(limit)) if limit else "",
        noise=f"{measured.noise:.0%}" if measured.calibration else "",
        ran=bool(measured.calibration),
        bound=row.target.value if row.target and row.target.of == "ratio" else None,
    )


def _absent(measured: Measured, side: str) -> str:
    return "failed" if side in measured.failed else "not run"


def _number(value: float) -> str:
    size = abs(value)
    digits = 0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2
    return f"{value:,.{digits}f}" if size >= 0.01 or not size else f"{value:.4f}"


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    middle = _number(statistics.median(values))
    low, high = _number(values[0]), _number(values[-1])
    return middle if low == high else f"{middle} ({low}-{high})"


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    after = " x" if row.target.of == "ratio" else f" {row.unit}".rstrip()
    return f"{row.target.sense} {_number(row.target.value)}{after}"


def _verdict(row: Row, middle: float | None, ratio: float | None) -> str:
    if row.target is None or middle is None:
        return ""
    return {True: "holds", False: "misses", None: ""}[row.target.holds(middle, ratio)]


def as_text(rows: list[Line], everything: dict[str, Measured]) -> str:
    """The table for a terminal, of the rows that were run."""
    heads: tuple[str, ...] = (
        "row",
        "3.2.4",
        "ours",
        "ratio",
        "target",
        "",
        "limit",
        "other peers",
        "noise",
    )
    table = [heads]
    table += [_cells(line) for line in rows if line.ran]
    widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
    text = []
    for number, row in enumerate(table):
        cells = [
            cell.ljust(width) if column in {0, 4, 5, 7} else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
        if not number:
            text.append("-" * len("  ".join(cells)))
    times = [one for measured in everything.values() for one in measured.calibration]
    return "\n".join([*text, "", _noise(times)])


def _cells(line: Line) -> tuple[str, ...]:
    return (
        f"{line.title}, {line.unit}" if line.unit else line.title,
        line.peer,
        line.ours,
        "" if line.ratio is None else f"{line.ratio:.3f}",
        line.target,
        line.verdict,
        line.limit,
        line.others,
        line.noise,
    )


def _noise(times: list[float]) -> str:
    if not times:
        return ""
    ordered = sorted(times)
    middle = statistics.median(ordered)
    return (
        f"Noise: a fixed amount of Python took {middle:.1f} ms before a run, from "
        f"{ordered[0]:.1f} to {ordered[-1]:.1f} ms; in nine of ten runs at most "
        f"{ordered[int(len(ordered) * 0.9)] / middle - 1:.0%} longer."
    )


def as_json(everything: dict[str, Measured]) -> str:
    return json.dumps({name: asdict(one) for name, one in everything.items()}, indent=1)


# --- RESULTS.md -----------------------------------------------------------------------------------

_HEAD = """\
# What a record costs

`make bench` wrote this file, on {date}; `benchmarks/rows.py` has the rows and their targets.

Each figure is the median of up to {rounds} rounds, with the smallest and the largest of them. In a
round the sides take turns; each measurement is one process in an environment of its own, and the
collector is another. The ratio is this release to guard-agent 3.2.4: below 1 is cheaper, for
records per second above 1 is faster. The event has 17 fields and eight headers, one of them a
secret: about 1.15 kB of JSON. The limit is what the libraries below any agent need for the same:
JSON by orjson, gzip, one POST over a connection that is open; for lag a loop that has nothing to
do; for the import pydantic alone.

{machine}.
{noise}
The column noise has, for the runs of that row, how much longer the slowest of these took than the
median.

![Ratios to guard-agent 3.2.4](RESULTS.svg)

"""
_NOTES = """
3.2.4 may make 100 requests a minute, which cannot be changed, so that it is given buffers that need
only a few. The rows of a guarded app run under uvicorn, asked from loopback over four connections,
with penetration detection **off**: it costs many times what an agent does, and would hide it.
There, CPU is what the agent adds to what a handler that does nothing costs in the same process.
The flood is of 1,000 addresses: blocked networks, blocked user agents, rate limits. Of 3.2.4 it
does not count what its sending takes while it is turned off, a microsecond a request.

"""


def write(folder: Path, rows: list[Line], everything: dict[str, Measured], rounds: int) -> None:
    """Write ``RESULTS.md`` and ``RESULTS.svg`` to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "RESULTS.md").write_text(as_markdown(rows, everything, rounds))
    bars = json.dumps([bar for row in rows if (bar := _bar(row)) is not None])
    python = environment(*PLOT)
    plot = Path(__file__).with_name("plot.py")
    subprocess.run([python, plot, folder / "RESULTS.svg"], input=bars, text=True, check=True)


def as_markdown(rows: list[Line], everything: dict[str, Measured], rounds: int) -> str:
    times = [one for measured in everything.values() for one in measured.calibration]
    head = _HEAD.format(
        date=datetime.now(timezone.utc).date(),
        rounds=rounds,
        machine=f"A machine with {os.cpu_count()} cores, {platform.system()} on "
        f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}",
        noise=_noise(times),
    )
    table = [
        "| row | 3.2.4 | this release | ratio | target | | limit | other peers | noise |",
        "| --- | ---: | ---: | ---: | :--- | :--- | ---: | :--- | ---: |",
    ]
    table += ["| " + " | ".join(_escaped(cell) for cell in _cells(row)) + " |" for row in rows]
    failed = [
        f"- `{name}`, {SIDES[side].title}: {reason}"
        for name, measured in everything.items()
        for side, reason in measured.failed.items()
    ]
    parts = [head, "\n".join(table), "\n", _NOTES]
    if failed:
        parts += ["Failed:\n\n", "\n".join(failed), "\n\n"]
    sides = {side for measured in everything.values() for side in measured.runs}
    parts += ["| side | versions |\n| --- | --- |\n"]
    parts += [
        f"| {side.title} | {versions(side)} |\n" for side in SIDES.values() if side.name in sides
    ]
    return "".join(parts)


def versions(side: Side) -> str:
    """The distributions of a side that matter, as ``name version``."""
    code = (
        "import sys; from importlib.metadata import version; "
        "print(', '.join(f'{name} {version(name)}' for name in sys.argv[1:]))"
    )
    found = subprocess.run(
        [side.python(), "-c", code, *side.shown],
        env={"PYTHONPATH": os.pathsep.join(map(str, side.path()))},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _bar(line: Line) -> dict[str, Any] | None:
    if line.ratio is None or not line.verdict or line.bound is None:
        return None
    return {
        "title": line.title,
        "ratio": line.ratio,
        "target": line.bound,
        "holds": line.verdict == "holds",
    }
