"""
guard-agent, this release or 3.2.4: only what both have in common, so both do the same work.

    python -m sides.agent send 20000
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, cast

from sides.common import (
    Stopwatch,
    collector,
    event_fields,
    expect_received,
    main,
    metric_fields,
    quantile,
    settle,
    sink_counts,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

if "speed=false" in sys.argv:
    # Stands where a compressor would be found: the agent has to do with the standard library.
    sys.modules.update(dict.fromkeys(("isal", "zlib_ng"), cast("ModuleType", None)))

from guard_agent import (
    AgentConfig,
    SecurityEvent,
    SecurityMetric,
    guard_agent,
)

logging.disable(logging.CRITICAL)

THIS_RELEASE = "max_requests_per_second" in AgentConfig.model_fields
HOLDS = 1 << 31
"""Bytes for everything that is sent, so that records are the only bound."""
KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
"""32 bytes, for the rows with encryption."""
NEVER = 3600


def configuration(hold: int | None = None, **settings: Any) -> AgentConfig:
    """
    A configuration that keeps ``hold`` records and sends them when it is told to.

    3.x cannot change its limit of 100 requests a minute, so that it has to send few and large
    requests; this release is told to send as many as it likes.
    """
    if hold is not None:
        settings = {
            "buffer_size": hold,
            "high_watermark_ratio": 1.0,
            "flush_interval": NEVER,
            **settings,
        }
    if THIS_RELEASE:
        settings.update(max_requests_per_second=10_000, rules=[])
        if hold is not None:
            settings.update(max_buffer_records=hold, max_buffer_bytes=HOLDS)
    return AgentConfig(
        api_key="benchmark-key", project_id=None, endpoint=collector(), timeout=60, **settings
    )


def make_events(count: int, first: int = 0) -> list[Any]:
    return [SecurityEvent(**event_fields(number)) for number in range(first, first + count)]


def make_metrics(count: int, first: int = 0) -> list[Any]:
    return [SecurityMetric(**metric_fields(number)) for number in range(first, first + count)]


# --- the caller's share ---------------------------------------------------------------------------


async def send(amount: int, kind: str = "event", **_: Any) -> dict[str, float]:
    """``await send_event(...)`` of prebuilt records; nothing is delivered."""
    warm = amount // 10
    agent = guard_agent(configuration(hold=2 * amount))
    make = make_events if kind == "event" else make_metrics
    records, warmers = make(amount), make(warm, amount)
    take = agent.send_event if kind == "event" else agent.send_metric
    for record in warmers:
        await take(record)
    settle()
    watch = Stopwatch()
    for record in records:
        await take(record)
    return watch.read(amount)


async def build(amount: int, **_: Any) -> dict[str, float]:
    """The event is made of its fields and sent."""
    warm = amount // 10
    agent = guard_agent(configuration(hold=2 * amount))
    fields = [event_fields(number) for number in range(amount + warm)]
    for one in fields[:warm]:
        await agent.send_event(SecurityEvent(**one))
    settle()
    watch = Stopwatch()
    for one in fields[warm:]:
        await agent.send_event(SecurityEvent(**one))
    return watch.read(amount)


async def full(amount: int, **_: Any) -> dict[str, float]:
    """The buffer is full and nobody takes anything: each event costs another one its place."""
    room = 1000
    agent = guard_agent(configuration(hold=room))
    await agent.start()
    events = make_events(min(amount, 5000))
    for number in range(3 * room):
        await agent.send_event(events[number % len(events)])
        if not number % 100:
            await asyncio.sleep(0)
    settle()
    watch = Stopwatch()
    for number in range(amount):
        await agent.send_event(events[number % len(events)])
        if not number % 100:
            await asyncio.sleep(0)  # 3.x leaves tasks behind, which are a part of its cost
    return watch.read(amount)


def sync(amount: int, threads: int = 1, **_: Any) -> dict[str, float]:
    """
    The face for code without an event loop, called by several threads at once.

    ``wall`` is the time until all calls are done, by call; ``p50`` and ``p99`` are of single calls.
    """
    agent = guard_agent(configuration(hold=3 * amount))
    each = amount // threads
    events = make_events(each * threads)
    for event in events[: amount // 10]:
        agent.send_event(event)

    def plain(mine: list[Any], _: list[int]) -> None:
        take = agent.send_event
        for event in mine:
            take(event)

    def timed(mine: list[Any], took: list[int]) -> None:
        take, clock = agent.send_event, time.perf_counter_ns
        for event in mine:
            began = clock()
            take(event)
            took.append(clock() - began)

    settle()
    result = {}
    took: list[list[int]] = [[] for _ in range(threads)]
    for work in (plain, timed):
        workers = [
            threading.Thread(target=work, args=(events[n * each : (n + 1) * each], took[n]))
            for n in range(threads)
        ]
        watch = Stopwatch()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if work is plain:
            result = watch.read(each * threads)
    calls = sorted(one for mine in took for one in mine)
    result.update(p50=quantile(calls, 0.5) / 1000, p99=quantile(calls, 0.99) / 1000)
    return result


async def start(_amount: int, **_: Any) -> dict[str, float]:
    """Milliseconds until the agent takes records: composed and started."""
    config = configuration()
    watch = Stopwatch()
    agent = guard_agent(config)
    await agent.start()
    return {name: us / 1000 for name, us in watch.read(1).items()}


# --- end to end -----------------------------------------------------------------------------------


async def delivered(agent: Any) -> int:
    """How many records the agent knows to be with the collector."""
    if not THIS_RELEASE:
        return int(agent.events_sent + agent.metrics_sent)
    status = await agent.get_status()
    return sum(int(books["delivered"]) for books in status.destinations.values())


async def drain(agent: Any, count: int) -> None:
    """
    Flush until ``count`` records are with the collector.

    Raises:
        SystemExit: they are not within a minute.
    """
    deadline = time.monotonic() + 60
    await agent.flush_buffer()
    while (done := await delivered(agent)) < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"{done} of {count} records were delivered within a minute")
        await asyncio.sleep(0.002)
        await agent.flush_buffer()


async def deliver(
    amount: int,
    kind: str = "event",
    gzip: bool = True,
    encrypted: bool = False,
    **_: Any,
) -> dict[str, float]:
    """From the first ``send_event`` to the moment the collector has every record."""
    settings: dict[str, Any] = {"compression_enabled": gzip}
    if encrypted:
        settings["project_encryption_key"] = KEY
    agent = guard_agent(configuration(hold=amount + 1001, **settings))
    make = make_events if kind == "event" else make_metrics
    warm = 500
    records, warmers = make(amount), make(warm, amount)
    take = agent.send_event if kind == "event" else agent.send_metric
    await agent.start()
    for record in warmers:
        await take(record)
    await drain(agent, warm)
    before = sink_counts()
    settle()
    watch = Stopwatch()
    for record in records:
        await take(record)
    await drain(agent, warm + amount)
    result = watch.read(amount)
    after = sink_counts() if encrypted else expect_received(warm + amount)
    return {
        **result,
        "per_second": 1e6 / result["wall"],
        "bytes": (after["bytes"] - before["bytes"]) / amount,
        "requests": after["requests"] - before["requests"],
    }


MEASURES: dict[str, Callable[..., Any]] = {
    "send": send,
    "build": build,
    "full": full,
    "sync": sync,
    "start": start,
    "deliver": deliver,
}

if __name__ == "__main__":
    main(MEASURES)
