"""
What is measured, and what is asked of it: data only.

A measurement is one process for each side and round, which prints several figures; a row shows one
of them. Times are microseconds, milliseconds where the row says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from environments import LIMITS, OTEL, OURS, PEER, PEER_REDIS, SENTRY, SPEED


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
    limit: str = ""
    """The figure of the limit, where it has another name."""


def ratio(value: float) -> Target:
    return Target("ratio", "<=", value)


def at_least(value: float) -> Target:
    return Target("ratio", ">=", value)


def at_most(value: float) -> Target:
    return Target("figure", "<=", value)


WITH_SPEED = {SPEED: {"speed": True}}

MEASUREMENTS = (
    Measurement("send", "send", 20_000, 2_000, sides=(OURS, PEER, OTEL, SENTRY, LIMITS)),
    Measurement("send-again", "send", 20_000, 2_000, options={"distinct": 10}),
    Measurement("build", "build", 20_000, 2_000, sides=(OURS, PEER, LIMITS)),
    Measurement("full", "full", 20_000, 4_000),
    Measurement(
        "metric", "send", 20_000, 4_000, sides=(OURS, PEER, LIMITS), options={"kind": "metric"}
    ),
    Measurement("sync-1", "sync", 4_000, 1_000, options={"threads": 1}),
    Measurement("sync-4", "sync", 4_000, 1_000, options={"threads": 4}),
    Measurement("sync-8", "sync", 4_000, 1_000, options={"threads": 8}),
    Measurement(
        "deliver-gzip",
        "deliver",
        20_000,
        3_000,
        sides=(OURS, SPEED, PEER, OTEL, SENTRY, LIMITS),
        by_side={**WITH_SPEED, OTEL: {"amount": 5_000}, SENTRY: {"amount": 5_000}},
        needs="sink",
    ),
    Measurement(
        "deliver-plain",
        "deliver",
        20_000,
        3_000,
        sides=(OURS, PEER, OTEL, LIMITS),
        options={"gzip": False},
        by_side={OTEL: {"amount": 5_000}},
        needs="sink",
    ),
    Measurement(
        "deliver-encrypted",
        "deliver",
        10_000,
        2_000,
        sides=(OURS, SPEED, PEER),
        options={"encrypted": True},
        by_side=WITH_SPEED,
        needs="sink",
    ),
    Measurement(
        "deliver-metric",
        "deliver",
        20_000,
        4_000,
        sides=(OURS, PEER, LIMITS),
        options={"kind": "metric"},
        needs="sink",
    ),
    Measurement(
        "deliver-disk",
        "deliver",
        10_000,
        2_000,
        sides=(OURS,),
        options={"store": "disk"},
        needs="sink",
    ),
    Measurement("lag-1k", "lag", 1_000, 1_000, sides=(OURS, PEER, OTEL, LIMITS), needs="sink"),
    Measurement("lag-10k", "lag", 10_000, 5_000, sides=(OURS, PEER, OTEL, LIMITS), needs="sink"),
    Measurement(
        "lag-50k",
        "lag",
        50_000,
        20_000,
        sides=(OURS, PEER, LIMITS),
        needs="sink",
        rounds=3,
    ),
    Measurement("steady", "steady", 15_000, 7_500, needs="sink", rounds=3),
    # Hundreds of requests for a flush, as when it comes once a second.
    Measurement("app", "app", 3_000, 200, module="web", needs="sink", rounds=3),
    Measurement("flood", "flooded", 30_000, 2_000, module="web", needs="sink", rounds=3),
    Measurement(
        "memory-event", "memory", 20_000, 5_000, sides=(OURS, PEER, OTEL, LIMITS), rounds=3
    ),
    Measurement(
        "memory-metric",
        "memory",
        40_000,
        10_000,
        sides=(OURS, PEER, LIMITS),
        options={"kind": "metric"},
        rounds=3,
    ),
    Measurement("outage", "outage", 200_000, 20_000, rounds=2),
    Measurement(
        "redis-burst", "stored", 3_000, 3_000, sides=(OURS, PEER_REDIS, PEER, LIMITS), needs="redis"
    ),
    Measurement("redis-trickle", "trickled", 500, 200, sides=(OURS, PEER_REDIS), needs="redis"),
    Measurement("defaults", "defaults", 20_000, 9_000, needs="sink", rounds=1, together=True),
    Measurement(
        "import",
        "import",
        1,
        1,
        sides=(OURS, PEER, OTEL, SENTRY, LIMITS),
        module="imports",
        options={"package": "guard_agent"},
        by_side={
            OTEL: {
                "package": "opentelemetry.sdk._logs.export,"
                "opentelemetry.exporter.otlp.proto.http._log_exporter"
            },
            SENTRY: {"package": "sentry_sdk"},
            LIMITS: {"package": "pydantic"},
        },
    ),
    Measurement("start", "start", 1, 1, needs="sink"),
)

ROWS = (
    Row("send_event, prebuilt, redacted: wall", "send", "wall", "us", ratio(0.15)),
    Row("send_event, prebuilt, redacted: CPU of the caller", "send", "thread", "us", ratio(0.15)),
    Row(
        "send_event, ten events again and again: CPU of the caller",
        "send-again",
        "thread",
        "us",
        ratio(0.15),
    ),
    Row("event built and sent", "build", "thread", "us", ratio(0.4)),
    Row("send_event, buffer full, collector down", "full", "thread", "us", ratio(0.12)),
    Row("send_metric, prebuilt", "metric", "thread", "us", ratio(0.15)),
    Row("sync face, 1 thread: wall", "sync-1", "wall", "us", ratio(0.05)),
    Row("sync face, 4 threads: wall", "sync-4", "wall", "us", ratio(0.05)),
    Row("sync face, 8 threads: wall", "sync-8", "wall", "us", ratio(0.05)),
    Row("sync face, 1 thread: p99 of a call", "sync-1", "p99", "us", ratio(0.05)),
    Row("sync face, 4 threads: p99 of a call", "sync-4", "p99", "us", ratio(0.05)),
    Row("sync face, 8 threads: p99 of a call", "sync-8", "p99", "us", ratio(0.05)),
    Row(
        "end to end, gzip, with the speed extra: CPU of an event",
        "deliver-gzip",
        "cpu",
        "us",
        ratio(0.12),
        ours=SPEED,
    ),
    Row(
        "end to end, gzip, without it: CPU of an event",
        "deliver-gzip",
        "cpu",
        "us",
        ratio(0.25),
        limit="stdlib",
    ),
    Row("end to end, plain: CPU of an event", "deliver-plain", "cpu", "us", ratio(0.1)),
    Row(
        "end to end, encrypted, with the speed extra: CPU of an event",
        "deliver-encrypted",
        "cpu",
        "us",
        ratio(0.2),
        ours=SPEED,
    ),
    Row(
        "end to end, encrypted, without it: CPU of an event",
        "deliver-encrypted",
        "cpu",
        "us",
        ratio(0.2),
    ),
    Row("end to end: CPU of a metric", "deliver-metric", "cpu", "us", ratio(0.2)),
    Row("end to end, store disk: CPU of an event", "deliver-disk", "cpu", "us"),
    Row(
        "events delivered by one process, gzip, with the speed extra",
        "deliver-gzip",
        "per_second",
        "/s",
        at_least(8),
        ours=SPEED,
    ),
    Row(
        "events delivered by one process, gzip, without it",
        "deliver-gzip",
        "per_second",
        "/s",
        at_least(8),
    ),
    Row(
        "bytes on the wire, gzip, with the speed extra",
        "deliver-gzip",
        "bytes",
        "B/event",
        ratio(1.25),
        ours=SPEED,
    ),
    Row("bytes on the wire, gzip, without it", "deliver-gzip", "bytes", "B/event", ratio(1.25)),
    *(
        Row(
            f"lag of the host's loop while {size} events flush: {figure}",
            f"lag-{size}",
            figure,
            "ms",
            at_most(5) if figure == "max" else None,
        )
        for size in ("1k", "10k", "50k")
        for figure in ("p50", "p99", "max")
    ),
    Row("steady 5,000 events/s: lag, p99", "steady", "p99", "ms"),
    Row("steady 5,000 events/s: lag, max", "steady", "max", "ms", at_most(5)),
    Row("steady 5,000 events/s: share of a core", "steady", "share", "%", ratio(0.25)),
    Row("guarded app, clean request: CPU of the agent", "app", "clean", "us", ratio(0.25)),
    Row("guarded app, blocked request: CPU of the agent", "app", "blocked", "us", ratio(0.25)),
    Row("guarded app, clean: p99, agent on to off", "app", "p99_clean", "x", at_most(1.2)),
    Row("guarded app, blocked: p99, agent on to off", "app", "p99_blocked", "x", at_most(1.2)),
    Row("guarded app, clean: with the agent", "app", "per_second_clean", "requests/s"),
    Row("guarded app, clean: without an agent", "app", "per_second_off_clean", "requests/s"),
    Row("guarded app, in a flood: CPU of the agent", "flood", "both", "us", ratio(0.25)),
    Row("the same, in the thread of the app alone", "flood", "here", "us"),
    Row("memory of a buffered event", "memory-event", "bytes", "B", ratio(0.45)),
    Row("memory of a buffered metric", "memory-metric", "bytes", "B", ratio(0.35)),
    Row("outage, 200,000 events offered: CPU of an event", "outage", "cpu", "us", ratio(0.15)),
    Row("outage, 200,000 events offered: lag, max", "outage", "max", "ms", at_most(5)),
    Row("outage, 200,000 events offered: growth of the process", "outage", "growth", "MB"),
    Row("Redis, burst: CPU of an event", "redis-burst", "cpu", "us", ratio(0.15), peer=PEER_REDIS),
    Row(
        "Redis, burst: commands for an event",
        "redis-burst",
        "commands",
        "",
        at_most(0.05),
        peer=PEER_REDIS,
    ),
    Row(
        "Redis: not stored of a burst of 3,000",
        "redis-burst",
        "unstored",
        "",
        at_most(0),
        peer=PEER_REDIS,
    ),
    Row(
        "Redis: not stored of a burst of 3,000, 3.2.4 with redis-py 8.1",
        "redis-burst",
        "unstored",
        "",
        at_most(0),
    ),
    Row(
        "Redis, trickle: CPU of an event",
        "redis-trickle",
        "cpu",
        "us",
        ratio(0.5),
        peer=PEER_REDIS,
    ),
    Row("Redis, trickle: commands for an event", "redis-trickle", "commands", "", peer=PEER_REDIS),
    Row("defaults at 500 events/s: lost", "defaults", "lost", "%", at_most(0)),
    Row("import guard_agent: time", "import", "wall", "ms", ratio(0.5)),
    Row("import guard_agent: memory", "import", "memory", "MB", ratio(0.5)),
    Row("import guard_agent: modules", "import", "modules", "", ratio(0.5)),
    Row("composed and started", "start", "wall", "ms"),
)
