"""
What every side shares: the records, the clocks, the collector that listens, the one line printed.

Imports the standard library only, because each side runs in an environment of its own.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
import urllib.request
from datetime import datetime, timedelta, timezone
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from typing_extensions import Self

_START = datetime(2026, 1, 1, tzinfo=timezone.utc)
SECRET_HEADER = "authorization"
WITH_ISAL = "speed=true" in sys.argv
"""Whether the agent may use the extra that compresses."""


def collector() -> str:
    """The address of the sink; a port that nobody listens on where there is none."""
    return os.environ.get("COLLECTOR", "http://127.0.0.1:9")


def event_fields(number: int) -> dict[str, Any]:
    """
    One security event as a Guard middleware makes it: 17 fields, eight headers, one a secret.

    About 1.15 kB of JSON. Differs from others where real ones do: its key, times, addresses, pages
    and ids. The same number gives the same event.
    """
    digest = blake2b(number.to_bytes(8, "big")).hexdigest()  # as random as ids are, and cheap
    address = f"203.0.{number % 113}.{1 + number // 113 % 250}"
    page = f"/api/v1/items/{number}"
    return {
        "idempotency_key": UUID(digest[:32]),
        "timestamp": _START + timedelta(microseconds=number * 1003),
        "event_type": "suspicious_request",
        "ip_address": address,
        "country": "DE",
        "user_agent": (
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
            "Chrome/142.0.0.0 Safari/537.36"
        ),
        "action_taken": "request_blocked",
        "reason": f"Suspicious pattern {number} in the query of the request",
        "endpoint": page,
        "method": "GET",
        "status_code": 403,
        "response_time": int(digest[96:101], 16) / 1e7,
        "decorator_type": None,
        "rule_type": "penetration",
        "pattern_matched": "(?i)union\\s+select",
        "handler_name": "penetration_detection",
        "metadata": {
            "headers": {
                "host": "shop.example.com",
                "accept": (
                    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,"
                    "image/apng,*/*;q=0.8"
                ),
                "accept-language": "en-US,en;q=0.5",
                "accept-encoding": "gzip, deflate, br",
                SECRET_HEADER: f"Bearer {digest[64:96]}",
                "referer": f"https://shop.example.com{page}/reviews?sort=newest",
                "x-request-id": str(UUID(digest[32:64])),
                "x-forwarded-for": address,
            },
            "traceparent": f"00-{digest[96:128]}-b7ad6b7169203331-01",
        },
    }


def metric_fields(number: int) -> dict[str, Any]:
    """One metric as a Guard middleware makes it for each request."""
    mixed = number * 2_654_435_761 % 0x1_0000_0000
    return {
        "timestamp": _START + timedelta(microseconds=number * 1003),
        "metric_type": "response_time",
        "value": mixed % 99_999 / 1e6,
        "endpoint": f"/api/v1/items/{mixed % 10_000}",
        "tags": {"method": "GET", "status": "200"},
    }


def settle() -> None:
    """Leave what exists out of the garbage collections that follow."""
    gc.collect()
    gc.freeze()


class Stopwatch:
    """Wall time, and CPU time of this thread and of the process, since it was made."""

    def __init__(self) -> None:
        self._cpu = time.process_time_ns()
        self._thread = time.thread_time_ns()
        self._wall = time.perf_counter_ns()

    def read(self, count: int) -> dict[str, float]:
        """Microseconds for each of ``count``: ``wall``, ``thread``, ``cpu``."""
        wall = time.perf_counter_ns() - self._wall
        thread = time.thread_time_ns() - self._thread
        cpu = time.process_time_ns() - self._cpu
        per = 1000 * count
        return {"wall": wall / per, "thread": thread / per, "cpu": cpu / per}


class Heartbeat:
    """
    How late a task of the running event loop wakes that wants to every millisecond.

    An async context; `lag` afterwards.
    """

    def __init__(self) -> None:
        self._late: list[float] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0.02)
        self._late.clear()
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.sleep(0.002)  # what is late now still counts
        if self._task is not None:
            self._task.cancel()

    async def _beat(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            self._late.append((time.perf_counter() - began) * 1000 - 1)

    def lag(self) -> dict[str, float]:
        """Milliseconds: ``p50``, ``p99``, ``max``."""
        late = sorted(self._late)
        return {"p50": quantile(late, 0.5), "p99": quantile(late, 0.99), "max": late[-1]}


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def resident() -> int:
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no import to pay for
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sink_counts() -> dict[str, int]:
    """What the sink got so far: ``received`` records, ``requests``, ``bytes`` with the heads."""
    with urllib.request.urlopen(f"{collector()}/received", timeout=60) as answer:
        counts: dict[str, int] = json.loads(answer.read())
    return counts


def expect_received(count: int) -> dict[str, int]:
    """
    The counts of the sink, when it has ``count`` records.

    Raises:
        SystemExit: it has others, so that the figures would be of something else.
    """
    counts = sink_counts()
    if counts["received"] != count:
        raise SystemExit(f"{count} records were sent, and the sink got {counts['received']}")
    return counts


def main(measures: dict[str, Callable[..., Any]]) -> None:
    """
    ``MEASUREMENT AMOUNT [NAME=VALUE ...]``: measure, print one JSON object, end at once.

    A measure takes the amount and options as keywords, each a JSON value.
    """
    name, amount, *options = sys.argv[1:]
    named = {key: json.loads(value) for key, _, value in (text.partition("=") for text in options)}
    result: Any = measures[name](int(amount), **named)
    if asyncio.iscoroutine(result):
        result = _run(result)
    print(json.dumps(result), flush=True)
    os._exit(0)  # what is still undelivered is of no interest


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """As `asyncio.run`, but tasks that a side left behind are left alone."""
    return asyncio.new_event_loop().run_until_complete(work)
