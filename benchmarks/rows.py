"""
What is measured, and what is asked of it: data only.

A measurement is one process for each side and round, which prints several figures; a row shows one
of them. Times are microseconds, milliseconds where the row says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from environments import OURS, PEER


@dataclass(frozen=True)
class Measurement:
    name: str
    measure: str
    """The name of the function in the script of the side."""
    amount: int
    quick: int
    """The amount for ``--quick``."""
    sides: tuple[str, ...] = (OURS, PEER)
    options: dict[str, Any] = field(default_factory=dict)
    by_side: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options, and with ``amount`` another amount, of single sides."""
    module: str = ""
    """The script, where it is not the one of the side."""
    needs: Literal["", "sink", "redis"] = ""
    rounds: int = 100
    """At most so many rounds, because each takes long."""
    together: bool = False
    """All sides at once: no time is measured, and it takes long."""


@dataclass(frozen=True)
class Target:
    """A bound: of our figure, or of its ratio to the figure of 3.2.4."""

    of: Literal["ratio", "figure"]
    sense: Literal["<=", ">="]
    value: float

    def holds(self, figure: float, ratio: float | None) -> bool | None:
        """None where there is nothing to compare with."""
        found = ratio if self.of == "ratio" else figure
        if found is None:
            return None
        return found <= self.value if self.sense == "<=" else found >= self.value


@dataclass(frozen=True)
class Row:
    title: str
    measurement: str
    figure: str
    unit: str
    target: Target | None = None
    ours: str = OURS
    """The side that stands for this release."""
    peer: str = PEER
    limit: tuple[str, str] | None = None
    """Measurement and figure of the least this can cost; ``a+b`` adds figures."""


def ratio(value: float) -> Target:
    return Target("ratio", "<=", value)


def at_least(value: float) -> Target:
    return Target("ratio", ">=", value)


def at_most(value: float) -> Target:
    return Target("figure", "<=", value)


SPEED = "ours-speed"
NO_SPEED = {OURS: {"speed": False}}

MEASUREMENTS = (
    Measurement("send", "send", 20_000, 2_000),
    Measurement("build", "build", 20_000, 2_000),
    Measurement("full", "full", 20_000, 4_000),
    Measurement("metric", "send", 20_000, 4_000, options={"kind": "metric"}),
    Measurement("sync-1", "sync", 4_000, 1_000, options={"threads": 1}),
    Measurement("sync-4", "sync", 4_000, 1_000, options={"threads": 4}),
    Measurement("sync-8", "sync", 4_000, 1_000, options={"threads": 8}),
    Measurement(
        "import",
        "import",
        1,
        1,
        sides=(OURS, PEER),
        module="imports",
        options={"package": "guard_agent"},
    ),
    Measurement("start", "start", 1, 1, needs="sink"),
)

ROWS = (
    Row("send_event, prebuilt, redacted: wall", "send", "wall", "us", ratio(0.15)),
    Row("send_event, prebuilt, redacted: CPU of the caller", "send", "thread", "us", ratio(0.15)),
    Row("event built and sent", "build", "thread", "us", ratio(0.4)),
    Row("send_event, buffer full, collector down", "full", "thread", "us", ratio(0.12)),
    Row("send_metric, prebuilt", "metric", "thread", "us", ratio(0.15)),
    Row("sync face, 1 thread: wall", "sync-1", "wall", "us", ratio(0.05)),
    Row("sync face, 4 threads: wall", "sync-4", "wall", "us", ratio(0.05)),
    Row("sync face, 8 threads: wall", "sync-8", "wall", "us", ratio(0.05)),
    Row("sync face, 1 thread: p99 of a call", "sync-1", "p99", "us", ratio(0.05)),
    Row("sync face, 4 threads: p99 of a call", "sync-4", "p99", "us", ratio(0.05)),
    Row("sync face, 8 threads: p99 of a call", "sync-8", "p99", "us", ratio(0.05)),
    Row("import guard_agent: time", "import", "wall", "ms", ratio(0.5)),
    Row("import guard_agent: memory", "import", "memory", "MB", ratio(0.5)),
    Row("import guard_agent: modules", "import", "modules", "", ratio(0.5)),
    Row("composed and started", "start", "wall", "ms"),
)
