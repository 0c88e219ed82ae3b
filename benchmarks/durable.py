"""
What a durable store costs the application: time of `send_event`, and memory when it is full.

    python benchmarks/durable.py

Every figure is the median of several rounds, in which the stores take turns, each in a process of
its own. The collector is not there, so that all records stay in the store.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guard_agent import AgentConfig, SecurityEvent, get_current_timestamp, guard_agent
from guard_agent.plugins.disk import DiskSettings, DiskStore
from guard_agent.plugins.memory import MemorySettings, MemoryStore
from guard_agent.testing.records import make_context, make_record

if TYPE_CHECKING:
    from guard_agent import BufferStore
    from guard_agent.testing.redis_server import RedisServer

ROUNDS = 5
EVENTS = 10_000
GROUP = 20
PAUSE = 0.004
"""Seconds between two groups: about 5,000 events per second."""
MIB = 1024 * 1024
FULL = 64 * MIB
PAYLOAD = 1000


def send(config: dict[str, Any]) -> dict[str, float]:
    """Microseconds of single calls of `send_event`, at a steady rate."""
    agent: Any = guard_agent(AgentConfig(**config))
    agent.start()
    agent.flush_to_store()
    events = [
        SecurityEvent(
            timestamp=get_current_timestamp(),
            event_type="suspicious_request",
            ip_address="203.0.113.7",
            reason=f"Suspicious pattern {number}",
            endpoint="/api/v1/items",
            metadata={"headers": {"host": "shop.example.com", "accept": "*/*"}},
        )
        for number in range(EVENTS)
    ]
    took = []
    for number, event in enumerate(events):
        began = time.perf_counter_ns()
        agent.send_event(event)
        took.append((time.perf_counter_ns() - began) / 1000)
        if number % GROUP == 0:
            time.sleep(PAUSE)
    level = agent.get_status().level
    if level != ("memory" if config["store"] == "memory" else "journal"):
        raise SystemExit(f"{config['store']} was at the level {level}")
    agent.stop()
    took.sort()
    return {
        "p50": took[len(took) // 2],
        "p99": took[len(took) * 99 // 100],
        "p99.9": took[len(took) * 999 // 1000],
    }


def rss() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def make_store(name: str, where: str) -> BufferStore:
    context = make_context(Path(where), destinations=("one",), project_id="full")
    if name == "memory":
        return MemoryStore(MemorySettings(max_records=10**9, max_bytes=FULL), context)
    if name == "disk":
        return DiskStore(DiskSettings(max_bytes=FULL), context)
    from guard_agent_redis import RedisSettings, RedisStore

    settings = RedisSettings(url=where, max_records=10**9, max_bytes=FULL, deadline=10)
    return RedisStore(settings, context)


async def fill(name: str, where: str) -> dict[str, float]:
    """MiB of this process for a store that is full, and was pressed on for half as much again."""
    store = make_store(name, where)
    await store.open()
    await store.append([make_record(0, size=PAYLOAD)], evict=True)
    before = rss()
    for start in range(0, FULL * 3 // 2 // PAYLOAD, 500):
        await store.append([make_record(start + n, size=PAYLOAD) for n in range(500)], evict=True)
    depth = (await store.stats())["one"]
    after = rss()
    await store.close()
    return {"kept": depth.bytes / MIB, "process": after - before}


def worker(*arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare_sending(stores: list[str], server: RedisServer | None, folder: Path) -> None:
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in stores}
    for number in range(ROUNDS):
        for name in stores:
            where: dict[str, Any] = {}
            if name == "redis" and server is not None:
                where = {"url": server.url, "max_records": 10**9, "max_bytes": 1 << 30}
            if name == "disk":
                where = {"path": str(folder / f"send-{number}")}
            config = {
                "api_key": "benchmark-key",
                "project_id": f"send-{number}",
                "endpoint": "http://127.0.0.1:9",
                "rules": [],
                "store": name,
                "plugins": {name: where},
                "max_buffer_records": 100_000,
                "max_buffer_bytes": 1 << 30,
            }
            rounds[name].append(worker("--send", json.dumps(config)))
    print(f"\nsend_event, us per call       {'p50':>8} {'p99':>8} {'p99.9':>8}")
    for name, found in rounds.items():
        columns = [statistics.median(one[key] for one in found) for key in ("p50", "p99", "p99.9")]
        print(f"  {name:<28}" + "".join(f"{value:>8.1f} " for value in columns))


def compare_full(stores: list[str], server: RedisServer | None, folder: Path) -> None:
    print(f"\nfull store, {FULL // MIB} MiB, in MiB  {'kept':>8} {'process':>8} {'outside':>8}")
    for name in stores:
        outside = 0.0
        if name == "redis" and server is not None:
            before = server.command("INFO", "memory")["used_memory"]
            found = worker("--fill", name, server.url)
            outside = (server.command("INFO", "memory")["used_memory"] - before) / MIB
        else:
            place = folder / f"full-{name}"
            place.mkdir(mode=0o700)
            found = worker("--fill", name, str(place))
            outside = sum(file.stat().st_size for file in place.iterdir()) / MIB
        row = (found["kept"], found["process"], outside)
        print(f"  {name:<28}" + "".join(f"{value:>8.1f} " for value in row))


def main() -> int:
    if sys.argv[1:2] == ["--send"]:
        print(json.dumps(send(json.loads(sys.argv[2]))))
        return 0
    if sys.argv[1:2] == ["--fill"]:
        print(json.dumps(asyncio.run(fill(sys.argv[2], sys.argv[3]))))
        return 0
    stores, server = ["memory", "disk"], None
    if importlib.util.find_spec("guard_agent_redis") is not None:
        from guard_agent.testing.redis_server import (
            RedisServer,
            find_server,
        )

        if find_server() is not None:
            stores.append("redis")
            server = RedisServer()
            server.start()
    try:
        with tempfile.TemporaryDirectory(prefix="guard-agent-bench-") as path:
            folder = Path(path).resolve()
            with_server = f", {server.version}" if server is not None else ""
            print(f"Python {sys.version.split()[0]}{with_server}")
            compare_sending(stores, server, folder)
            compare_full(stores, server, folder)
    finally:
        if server is not None:
            server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
