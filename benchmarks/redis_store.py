"""
The Redis store beside the Redis buffer of guard-agent 3.2.4, on one server, interleaved.

    .venv/bin/python benchmarks/redis_store.py

Both take the same events: a burst as fast as they can, then everything is read back and removed;
and a trickle, event by event, removed every hundred. Commands are what the server counted, with
those inside scripts. Each measurement runs in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import resource
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from environments import PEER_REDIS, SIDES

if TYPE_CHECKING:
    from collections.abc import Callable

BURST = 3_000
TRICKLE = 500
GROUP = 100
ROUNDS = 5


def make_events(amount: int) -> list[Any]:
    from guard_agent import SecurityEvent

    return [
        SecurityEvent(
            timestamp=datetime.now(timezone.utc),
            event_type="suspicious_request",
            ip_address="203.0.113.7",
            user_agent="Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
            action_taken="request_blocked",
            reason=f"Suspicious pattern {number} in the query of the request",
            endpoint="/api/v1/items",
            method="GET",
            status_code=403,
            response_time=0.0123,
            metadata={"attempt": number, "headers": {"host": "shop.example.com"}},
        )
        for number in range(amount)
    ]


class Counter:
    """Commands of the server since the last look."""

    def __init__(self, url: str) -> None:
        import redis

        self._client: Any = redis.Redis.from_url(url)

    def reset(self) -> None:
        self._client.config_resetstat()

    def look(self) -> dict[str, int]:
        stats = self._client.info("commandstats")
        counts = {name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()}
        own = ("config|resetstat", "client|setinfo", "info", "ping", "auth", "hello", "select")
        return {name: calls for name, calls in counts.items() if name not in own}


# --- this release ---------------------------------------------------------------------------------


async def measure_store(url: str) -> dict[str, float]:
    from guard_agent import Priority, Record
    from guard_agent.testing.records import make_context
    from guard_agent_redis import RedisSettings, RedisStore

    def encode(number: int, event: Any) -> Record:
        payload = event.model_dump_json().encode()
        return Record(f"event-{number:032}", "event", Priority.ATTACK, payload, time.time())

    store = RedisStore(RedisSettings(url=url, deadline=10), make_context(destinations=("one",)))
    await store.open()
    await store.stats()
    counter = Counter(url)

    async def drain() -> int:
        drained = 0
        while (lease := await store.lease("one", 1000, 256 * 1024, 60.0)) is not None:
            drained += len(lease.entries)
            await store.ack(lease, list(lease.entries))
        return drained

    async def trickle(events: list[Any]) -> None:
        for number, event in enumerate(events):
            await store.append([encode(number, event)], evict=True)
            if number % GROUP == GROUP - 1:
                await drain()
                await store.release_expired()
                await store.stats()

    events = make_events(BURST)
    counter.reset()
    clock = Clock()
    for start in range(0, BURST, 1000):
        batch = [encode(start + n, event) for n, event in enumerate(events[start : start + 1000])]
        await store.append(batch, evict=True)
    written = clock.lap()
    stored = (await store.stats())["one"].pending
    clock.lap()
    drained = await drain()
    removed = clock.lap()
    burst = counter.look()
    counter.reset()
    await trickle(make_events(TRICKLE))
    slow = counter.look()
    await store.close()
    return result(stored, drained, written, removed, burst, slow)


# --- 3.2.4 ----------------------------------------------------------------------------------------


async def measure_buffer(url: str) -> dict[str, float]:
    from guard_core.handlers.redis_handler import RedisManager
    from guard_core.models import SecurityConfig

    from guard_agent import AgentConfig
    from guard_agent.buffer import EventBuffer  # type: ignore[import-not-found]  # of 3.x

    manager: Any = RedisManager(SecurityConfig(enable_redis=True, redis_url=url))
    await manager.initialize()
    buffer = EventBuffer(AgentConfig(api_key="k" * 16, buffer_size=10 * BURST))
    await buffer.initialize_redis(manager)
    counter = Counter(url)

    async def persisted() -> None:
        while buffer._inflight_persist_tasks:
            await asyncio.gather(*buffer._inflight_persist_tasks)

    events = make_events(BURST)
    counter.reset()
    clock = Clock()
    for event in events:
        await buffer.add_event(event)
    await persisted()
    written = clock.lap()
    stored = len(buffer._event_redis_keys)
    clock.lap()
    drained = len(await buffer.flush_events())
    removed = clock.lap()
    burst = counter.look()
    counter.reset()
    for number, event in enumerate(make_events(TRICKLE)):
        await buffer.add_event(event)
        await persisted()
        if number % GROUP == GROUP - 1:
            await buffer.flush_events()
    slow = counter.look()
    await manager.close()
    return result(stored, drained, written, removed, burst, slow)


# --- both -----------------------------------------------------------------------------------------


class Clock:
    """Seconds of each lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def result(
    stored: int,
    drained: int,
    written: float,
    removed: float,
    burst: dict[str, int],
    slow: dict[str, int],
) -> dict[str, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "written per second": stored / written,
        "drained per second": drained / removed,
        "written and drained per second": stored / (written + removed),
        "not stored of 3,000": BURST - stored,
        "commands per record, burst": sum(burst.values()) / BURST,
        "commands per record, trickle": sum(slow.values()) / TRICKLE,
        "peak memory, MiB": usage.ru_maxrss / 1024,
    }


def run(python: Path, what: str, url: str) -> dict[str, float]:
    done = subprocess.run(
        [python, __file__, "--measure", what, url],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(python: Path) -> None:
    from guard_agent.testing.redis_server import RedisServer

    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    options = {"maxclients": "10000", "appendfsync": "everysec"}
    with RedisServer(append_only=True, options=options) as server:
        print(f"{server.version}, appendfsync everysec; medians of {ROUNDS} runs each")
        for _ in range(ROUNDS):
            ours.append(run(Path(sys.executable), "store", server.url))
            server.command("FLUSHALL")
            theirs.append(run(python, "buffer", server.url))
            server.command("FLUSHALL")
    print(f"{'':32}{'4.0.0':>12}{'3.2.4':>12}{'ratio':>9}")
    for name in ours[0]:
        mine = statistics.median(row[name] for row in ours)
        other = statistics.median(row[name] for row in theirs)
        ratio = f"{mine / other:.2f}" if other else "-"
        digits = 3 if mine < 100 else 0
        print(f"{name:32}{mine:12.{digits}f}{other:12.{digits}f}{ratio:>9}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--peer", type=Path, help="an interpreter that has 3.2.4 and redis 6.4")
    options = parser.parse_args()
    if not options.measure:
        compare(options.peer or SIDES[PEER_REDIS].python())
        return
    logging.disable(logging.CRITICAL)
    measures: dict[str, Callable[[str], Any]] = {"store": measure_store, "buffer": measure_buffer}
    print(json.dumps(asyncio.run(measures[options.measure[0]](options.measure[1]))))


if __name__ == "__main__":
    main()
