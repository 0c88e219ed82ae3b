"""``guard-agent check``: would an agent that is started here deliver, and what can cost records?"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

from guard_agent import Accepted, AgentStatus, Level, Paused, Retry
from guard_agent.core.delivery.calls import SafeStore
from guard_agent.core.logs import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guard_agent import BufferStore, SendResult, Transport
    from guard_agent.core.assembly.plan import Plan

_ENDED_BY_SIGNAL = ("uvicorn", "tornado")
"""Servers after which no exit handler of Python runs, or none that handles SIGTERM."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the answer."""

    about: str
    verdict: Literal["ok", "note", "failed"]
    text: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def check(plan: Plan, *, connect: bool) -> list[Finding]:
    """
    Look at a composition; with ``connect`` also open its store and ask every destination.

    A destination is asked with a status report, which it keeps no record of.
    """
    findings = [Finding("composition", "ok", _path(plan)), *_survival(plan)]
    if connect:
        findings += asyncio.run(_environment(plan))
    return findings


def _path(plan: Plan) -> str:
    transports = " and ".join(step.instance for step in plan.transports)
    return " > ".join([*(step.instance for step in (*plan.enrichers, plan.store)), transports])


def _survival(plan: Plan) -> Iterator[Finding]:
    store = plan.store.instance
    if plan.fallback is not None:
        yield Finding(f"store {store}", "ok", "records survive a kill of the process")
        return
    yield Finding(
        f"store {store}",
        "note",
        "what waits is lost when the process is killed; store = 'disk' or 'redis' keeps it",
    )
    servers = [name for name in _ENDED_BY_SIGNAL if _is_installed(name)]
    if servers:
        yield Finding(
            "lifecycle",
            "note",
            f"{' and '.join(servers)} can end without running Python's exit handlers: use a helper "
            "of guard_agent.integrations (docs/lifecycle.md), or a durable store",
        )


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


async def _environment(plan: Plan) -> list[Finding]:
    components = plan.build()
    limit = plan.config.timeout
    durable = components.durable
    return [
        *([] if durable is None else [await _ask_store(durable, limit)]),
        *[await _ask_destination(transport, limit) for transport in components.transports],
    ]


async def _ask_store(store: BufferStore, limit: float) -> Finding:
    about = f"store {store.context.instance}"
    safe = SafeStore(store, limit)
    try:
        await safe.open()
        depths = await safe.stats()
        words = ", ".join(f"{key} {value}" for key, value in store.describe().items() if value)
        waiting = max((depth.pending for depth in depths.values()), default=0)
        return Finding(about, "ok", one_line(f"opened, {waiting} records wait; {words}", 500))
    except Exception as error:  # noqa: BLE001 - plugin meets core: contract of Resource.open
        return Finding(about, "failed", one_line(f"{type(error).__name__}: {error}", 500))
    finally:
        await safe.close()


async def _ask_destination(transport: Transport, limit: float) -> Finding:
    about = transport.context.instance
    status = AgentStatus(
        timestamp=datetime.now(timezone.utc),
        status="healthy",
        uptime=0,
        events_sent=0,
        events_failed=0,
        buffer_size=0,
        level=Level.MEMORY.value,
    )
    began = time.monotonic()
    try:
        await asyncio.wait_for(transport.open(), limit)
        result = await asyncio.wait_for(transport.report(status), limit)
    except asyncio.TimeoutError:
        return Finding(about, "failed", f"{transport.collector} did not answer in {limit:g} s")
    except Exception as error:  # noqa: BLE001 - plugin meets core: contract of Resource.open
        return Finding(about, "failed", one_line(f"{type(error).__name__}: {error}", 500))
    finally:
        await transport.close()
    return _judge(about, transport, result, time.monotonic() - began)


def _judge(about: str, transport: Transport, result: SendResult, seconds: float) -> Finding:
    if isinstance(result, Accepted):
        return Finding(about, "ok", f"{transport.collector} accepts ({seconds * 1000:.0f} ms)")
    what = type(result).__name__.lower()
    reason = result.reason if isinstance(result, (Retry, Paused)) else "refuses a status report"
    return Finding(about, "failed", one_line(f"{transport.collector}: {what}: {reason}", 500))
