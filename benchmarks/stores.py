"""
How fast the built-in stores take records and hand them out.

    python benchmarks/stores.py

Each figure is the median of several rounds, in records per second: append in groups of a size,
then lease and acknowledge in batches of 1,000. `cpu` is the CPU time of the whole process for one
record, all three steps together.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from guard_agent.plugins.disk import DiskSettings, DiskStore
from guard_agent.plugins.memory import MemorySettings, MemoryStore
from guard_agent.testing.records import make_context, make_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from guard_agent import BufferStore, PluginContext

ROUNDS = 5
PAYLOAD = 400
BIG = 1 << 30


async def one_round(store: BufferStore, records: int, group: int) -> tuple[float, float, float]:
    """Records per second appended, the same leased and acknowledged, CPU microseconds a record."""
    groups = [
        [make_record(size=PAYLOAD) for _ in range(group)] for _ in range(max(records // group, 1))
    ]
    total = sum(len(one) for one in groups)
    cpu = time.process_time()
    began = time.perf_counter()
    for one in groups:
        await store.append(one, evict=False)
    appended = time.perf_counter()
    done = 0
    while (lease := await store.lease("one", 1000, BIG, 60.0)) is not None:
        done += await store.ack(lease, list(lease.entries))
    drained = time.perf_counter()
    if done != total:
        raise SystemExit(f"{total} records went in, {done} came out")
    used = (time.process_time() - cpu) / total * 1e6
    return total / (appended - began), total / (drained - appended), used


async def measure(store: BufferStore, records: int, group: int) -> list[float]:
    await store.open()
    try:
        rounds = [await one_round(store, records, group) for _ in range(ROUNDS)]
    finally:
        await store.close()
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def main() -> int:
    stores: dict[str, Callable[[PluginContext], BufferStore]] = {
        "memory": lambda context: MemoryStore(
            MemorySettings(max_records=100_000, max_bytes=BIG), context
        ),
        "disk": lambda context: DiskStore(DiskSettings(), context),
        "disk, sync full": lambda context: DiskStore(DiskSettings(sync="full"), context),
    }
    print(f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}, {PAYLOAD} bytes each")
    print(f"{'store':<16} {'group':>6} {'append/s':>10} {'lease+ack/s':>12} {'cpu us':>8}")
    with tempfile.TemporaryDirectory(prefix="guard-agent-bench-") as folder:
        for name, make_store in stores.items():
            for group, records in ((1000, 10_000), (100, 5_000), (1, 200)):
                context = make_context(
                    Path(folder).resolve() / "state",
                    destinations=("one",),
                    project_id=f"{name}-{group}",
                )
                append, drain, cpu = asyncio.run(measure(make_store(context), records, group))
                print(f"{name:<16} {group:>6} {append:>10,.0f} {drain:>12,.0f} {cpu:>8.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
