"""
guard-agent, this release or 3.2.4: only what both have in common, so both do the same work.

    python -m sides.agent send 20000
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from sides.common import (
    WITH_ISAL,
    Heartbeat,
    Stopwatch,
    collector,
    event_fields,
    expect_received,
    main,
    metric_fields,
    quantile,
    resident,
    settle,
    sink_counts,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

if not WITH_ISAL:
    # Stands where the compressor would be found: the agent has to do with the standard library.
    sys.modules["isal"] = cast("ModuleType", None)

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
WARM = 100
"""Events that go through Redis before anything is measured there."""


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


async def send(
    amount: int, kind: str = "event", distinct: int | None = None, **_: Any
) -> dict[str, float]:
    """
    ``await send_event(...)`` of prebuilt records; nothing is delivered.

    All differ, or only ``distinct`` of them do, as when one attacker tries the same again.
    """
    warm = amount // 10
    agent = guard_agent(configuration(hold=2 * amount))
    make = make_events if kind == "event" else make_metrics
    records, warmers = make(distinct or amount), make(warm, amount)
    records *= amount // len(records)
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


def delivered(agent: Any) -> int:
    """How many records the agent knows to be with the collector; asks neither store nor thread."""
    if not THIS_RELEASE:
        return int(agent.events_sent + agent.metrics_sent)
    stats = agent.get_stats()
    return int(stats["events_sent"] + stats["metrics_sent"])


def is_drained(agent: Any, count: int) -> bool:
    if THIS_RELEASE and agent.config.rollup:  # fewer are sent than were taken
        waiting = agent.get_stats()["buffer_stats"]
        return not waiting["waiting"] and not waiting["current_size"]
    return delivered(agent) >= count


async def drain(agent: Any, count: int) -> None:
    """
    Flush until the collector has all of ``count`` records.

    Raises:
        SystemExit: it has not within a minute.
    """
    deadline = time.monotonic() + 60
    await agent.flush_buffer()
    while not is_drained(agent, count):
        if time.monotonic() > deadline:
            raise SystemExit(f"{delivered(agent)} of {count} were delivered within a minute")
        await asyncio.sleep(0.002)
        await agent.flush_buffer()


async def deliver(
    amount: int,
    kind: str = "event",
    gzip: bool = True,
    encrypted: bool = False,
    store: str = "memory",
    **_: Any,
) -> dict[str, float]:
    """From the first ``send_event`` to the moment the collector has every record."""
    settings: dict[str, Any] = {"compression_enabled": gzip}
    if encrypted:
        settings["project_encryption_key"] = KEY
    if store != "memory":
        settings["store"] = store
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
    if encrypted:
        after = sink_counts()
    else:
        # Metrics may be merged on their way, events that differ may not.
        after = expect_received(delivered(agent) if kind == "metric" else warm + amount)
    return {
        **result,
        "per_second": 1e6 / result["wall"],
        "bytes": (after["bytes"] - before["bytes"]) / amount,
        "requests": after["requests"] - before["requests"],
    }


async def lag(amount: int, **_: Any) -> dict[str, float]:
    """How late the loop of the application is while ``amount`` events are flushed, milliseconds."""
    agent = guard_agent(configuration(hold=amount + 1001))
    warm = 500
    events = make_events(warm + amount)
    await agent.start()
    for event in events[:warm]:
        await agent.send_event(event)
    await drain(agent, warm)
    for event in events[warm:]:
        await agent.send_event(event)
    settle()
    async with Heartbeat() as heart:
        began = time.perf_counter()
        await drain(agent, warm + amount)
        took = time.perf_counter() - began
    expect_received(warm + amount)
    return {**heart.lag(), "seconds": took}


async def steady(amount: int, per_second: int = 5000, **_: Any) -> dict[str, float]:
    """
    ``amount`` events at an even rate, sent every second: lag in milliseconds, and what it costs.

    ``share`` is the part of one core in percent, without what the pace itself takes.
    """
    agent = guard_agent(configuration(hold=4 * per_second, flush_interval=1))
    events = make_events(amount)
    await agent.start()
    group = per_second // 500
    bare, _unused = await pace(events[: len(events) // 4], group, Idle())
    settle()
    async with Heartbeat() as heart:
        busy, _unused = await pace(events, group, agent)
        late = heart.lag()
    await drain(agent, amount)
    expect_received(amount)
    return {**late, "share": (busy - bare) * 100}


class Idle:
    """Stands where an agent would, and does nothing."""

    async def send_event(self, event: Any) -> None:
        pass


async def pace(events: list[Any], group: int, agent: Any) -> tuple[float, float]:
    """
    Send ``group`` events every two milliseconds.

    Returns:
        The share of one core that took, and the seconds.
    """
    cpu, began = time.process_time(), time.perf_counter()
    for number in range(0, len(events), group):
        for event in events[number : number + group]:
            await agent.send_event(event)
        due = began + (number + group) / group * 0.002
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    seconds = time.perf_counter() - began
    return (time.process_time() - cpu) / seconds, seconds


async def outage(amount: int, **_: Any) -> dict[str, float]:
    """
    The collector is away and ``amount`` events are offered as fast as they go.

    CPU time of the whole process for each, without what the loop itself takes; lag, milliseconds;
    ``growth`` of the process, megabytes. It has room for 10,000.
    """
    events = make_events(5000)
    agent = guard_agent(configuration(hold=10_000, flush_interval=1))
    await agent.start()
    settle()
    before = resident()
    await flood(events, 5000, agent)
    async with Heartbeat() as heart:
        bare = await flood(events, amount // 10, Idle())
        busy = await flood(events, amount, agent)
    growth = (resident() - before) / 1e6
    return {**heart.lag(), "cpu": busy["cpu"] - bare["cpu"], "wall": busy["wall"], "growth": growth}


async def flood(events: list[Any], amount: int, agent: Any) -> dict[str, float]:
    watch = Stopwatch()
    for number in range(amount):
        await agent.send_event(events[number % len(events)])
        if not number % 10:
            await asyncio.sleep(0)
    return watch.read(amount)


async def memory(amount: int, kind: str = "event", **_: Any) -> dict[str, float]:
    """Bytes of this process for each record that waits for a collector which is away."""
    agent = guard_agent(configuration(hold=2 * amount))
    await agent.start()
    make = make_events if kind == "event" else make_metrics
    take = agent.send_event if kind == "event" else agent.send_metric

    async def add(first: int, count: int) -> None:
        for number in range(first, first + count, 100):
            for record in make(100, number):
                await take(record)
            await asyncio.sleep(0)

    async def calm() -> int:
        gc.collect()
        await asyncio.sleep(0.5)  # what the agent does behind the caller is done
        gc.collect()
        return resident()

    await add(0, 2000)
    before = await calm()
    await add(2000, amount)
    return {"bytes": (await calm() - before) / amount}


async def defaults(amount: int, per_second: int = 500, **_: Any) -> dict[str, float]:
    """The share of ``amount`` events, in percent, that never arrive; nothing is configured."""
    agent = guard_agent(AgentConfig(api_key="benchmark-key", endpoint=collector()))
    await agent.start()
    events = make_events(amount)
    await pace(events, per_second // 500, agent)
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(agent.stop(), 10)
    return {"lost": 100 - sink_counts()["received"] / amount * 100}


# --- Redis ----------------------------------------------------------------------------------------


class Commands:
    """Commands the server has run, those inside scripts as well, but for the ones that look."""

    _LOOKING = ("config", "info", "client", "hello", "ping", "auth", "select", "command")

    def __init__(self, url: str) -> None:
        import redis

        self._client: Any = redis.Redis.from_url(url)

    def reset(self) -> None:
        self._client.config_resetstat()

    def count(self) -> int:
        rows = self._client.info("commandstats").items()
        return sum(
            row["calls"]
            for name, row in rows
            if name.removeprefix("cmdstat_").partition("|")[0] not in self._LOOKING
        )


async def agent_on_redis(url: str, hold: int) -> Any:
    if THIS_RELEASE:
        settings: dict[str, Any] = {"store": "redis"}
        settings["plugins"] = {"redis": {"url": url, "max_records": hold}}
        agent = guard_agent(configuration(hold=hold, **settings))
    else:
        from guard_core.handlers.redis_handler import RedisManager
        from guard_core.models import SecurityConfig

        manager: Any = RedisManager(SecurityConfig(enable_redis=True, redis_url=url))
        await manager.initialize()
        agent = guard_agent(configuration(hold=hold))
        await agent.initialize_redis(manager)
    await agent.start()
    return agent


async def in_redis(agent: Any, sent: int) -> int:
    """Waits until the agent has stored what it will store; how many of ``sent`` that is."""
    if THIS_RELEASE:
        if not await agent.flush_to_store():
            raise SystemExit("the store does not outlive the process")
        status = await agent.get_status()
        if status.level != "journal":
            raise SystemExit(f"records were at the level {status.level}, not in Redis")
        return sum(int(books["pending"]) for books in status.destinations.values())
    while agent.buffer._inflight_persist_tasks:
        await asyncio.gather(*agent.buffer._inflight_persist_tasks)
    return min(sent, len(agent.buffer._event_redis_keys))


async def warm_on_redis(url: str, amount: int) -> tuple[Any, list[Any]]:
    """An agent that has delivered `WARM` events through Redis, and ``amount`` more for it."""
    agent = await agent_on_redis(url, 10 * amount)
    events = make_events(amount + WARM)
    for event in events[:WARM]:
        await agent.send_event(event)
    await in_redis(agent, WARM)
    await drain(agent, WARM)
    return agent, events[WARM:]


async def stored(amount: int, **_: Any) -> dict[str, float]:
    """
    A burst of ``amount`` events, stored in Redis, delivered over HTTP and acknowledged.

    Where not all of the burst is stored, there is nothing to compare the cost with.
    """
    url = os.environ["REDIS"]
    commands = Commands(url)
    agent, events = await warm_on_redis(url, amount)
    commands.reset()
    settle()
    watch = Stopwatch()
    for event in events:
        await agent.send_event(event)
    unstored = amount - await in_redis(agent, amount)
    await drain(agent, WARM + amount)
    cost = watch.read(amount)
    used = commands.count() / amount
    expect_received(WARM + amount)
    return {"unstored": unstored} if unstored else {**cost, "commands": used, "unstored": 0}


async def trickled(amount: int, **_: Any) -> dict[str, float]:
    """The same for 250 events a second, sent every hundred; without what the pace itself takes."""
    url, rate = os.environ["REDIS"], 0.004
    commands = Commands(url)
    agent, events = await warm_on_redis(url, amount)
    settle()
    watch = Stopwatch()
    for _event in events:
        await asyncio.sleep(rate)
    bare = watch.read(amount)["cpu"]
    commands.reset()
    watch = Stopwatch()
    for number, event in enumerate(events, 1):
        await agent.send_event(event)
        await asyncio.sleep(rate)
        if number % 100 == 0 or number == amount:
            await drain(agent, WARM + number)
    cost = watch.read(amount)
    used = commands.count() / amount
    expect_received(WARM + amount)
    return {"cpu": cost["cpu"] - bare, "commands": used}


MEASURES: dict[str, Callable[..., Any]] = {
    "send": send,
    "build": build,
    "full": full,
    "sync": sync,
    "start": start,
    "deliver": deliver,
    "lag": lag,
    "steady": steady,
    "outage": outage,
    "memory": memory,
    "defaults": defaults,
    "stored": stored,
    "trickled": trickled,
}

if __name__ == "__main__":
    main(MEASURES)
