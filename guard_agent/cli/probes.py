"""Questions to what is outside: do the store, the destinations and the rule sources answer?"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

from guard_agent import Accepted, AgentStatus, Level, Paused, Reject, Retry, RuleSet, Transport
from guard_agent.cli.output import Finding
from guard_agent.core.delivery.calls import Calls, PluginHangs, SafeStore
from guard_agent.core.delivery.trace import described
from guard_agent.core.logs import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from guard_agent import BufferStore, RuleSource, SendResult
    from guard_agent.core.delivery.calls import Call
    from guard_agent.core.interfaces import Resource

_CLOCK_TOLERANCE = 5.0
"""Seconds by which clocks may differ before anybody has to care."""
_CERTIFICATE_WARNING = 14
"""Days before its end at which a certificate is worth a note."""
_LONGEST = 500


async def ask_store(store: BufferStore, limit: float) -> list[Finding]:
    """Open a store as an agent would, and close it; what it says about itself."""
    about = f"store {store.context.instance}"
    safe = SafeStore(store, limit)
    try:
        await safe.open()
        depths = await safe.stats()
        facts = dict(store.describe())
        hazards = facts.pop("hazards", None)
        words = ", ".join(f"{key} {value}" for key, value in facts.items() if value)
        waiting = max((depth.pending for depth in depths.values()), default=0)
        text = one_line(f"opened, {waiting} records wait; {words}", _LONGEST)
        return [
            Finding(about, "ok", text, {"waiting": waiting, **facts}),
            *(Finding(about, "note", str(hazard)) for hazard in _listed(hazards)),
        ]
    except Exception as error:  # noqa: BLE001 - plugin meets core: contract of Resource.open
        return [_failed(about, error)]
    finally:
        await safe.close()


async def ask_destination(transport: Transport, limit: float) -> list[Finding]:
    """Have a destination take a status report, of which it keeps no record."""
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
        result: SendResult = await asked(transport, limit, partial(transport.report, status))
    except PluginHangs:
        return [Finding(about, "failed", f"{transport.collector} did not answer in {limit:g} s")]
    except Exception as error:  # noqa: BLE001 - plugin meets core: contract of Resource.open
        return [_failed(about, error)]
    seconds = time.monotonic() - began
    if type(transport).report is Transport.report:
        text = (
            "opened; it takes no status reports, so only 'guard-agent send' can tell if it accepts"
        )
        return [Finding(about, "note", text)]
    if not isinstance(result, Accepted):
        what = type(result).__name__.lower()
        reason = "refuses a status report"
        if isinstance(result, (Retry, Paused, Reject)):
            reason = result.reason
        text = f"{transport.collector}: {what}: {reason}"
        return [Finding(about, "failed", one_line(text, _LONGEST))]
    facts = {"seconds": round(seconds, 3), **described(transport)}
    tls = f", {facts['tls']}" if "tls" in facts else ""
    text = f"{transport.collector} accepts ({1000 * seconds:.0f} ms{tls})"
    return [Finding(about, "ok", text, facts), *_doubts(about, facts)]


async def ask_rules(source: RuleSource, limit: float) -> Finding:
    """Fetch rules once; they are not put in force, and not judged."""
    about = f"rules {source.context.instance}"
    try:
        result = await asked(source, limit, partial(source.fetch, None))
    except PluginHangs:
        return Finding(about, "failed", f"{source.collector} did not answer in {limit:g} s")
    except Exception as error:  # noqa: BLE001 - plugin meets core: contract of RuleSource.fetch
        return _failed(about, error)
    if isinstance(result, (Retry, Paused)):
        what = type(result).__name__.lower()
        return Finding(about, "failed", one_line(f"{source.collector}: {what}: {result.reason}"))
    has = "has rules" if isinstance(result, RuleSet) else "answers, and has no rules"
    return Finding(about, "ok", f"{source.collector} {has}")


async def asked(resource: Resource, limit: float, call: Call) -> Any:
    """
    What ``call`` answers between an opening and a closing of ``resource``.

    Raises:
        PluginHangs: one of them took longer than ``limit`` seconds.
        Exception: as the plugin raised it.
    """
    try:
        await Calls(limit)(resource.open)
        return await Calls(limit)(call)
    finally:
        await Calls(limit)(resource.close)


def _doubts(about: str, facts: Mapping[str, object]) -> Iterator[Finding]:
    """What will matter some day, although the destination accepts."""
    ahead = facts.get("clock_ahead")
    if isinstance(ahead, (int, float)) and abs(ahead) > _CLOCK_TOLERANCE:
        word = "ahead of" if ahead > 0 else "behind"
        yield Finding(
            about,
            "note",
            f"its clock is {abs(ahead):.0f} s {word} the one of this machine: rules that end at a "
            "time, and certificates, depend on it; set the one that is wrong",
        )
    ends = facts.get("certificate_ends")
    if isinstance(ends, (int, float)):
        days = (ends - time.time()) / 86_400
        if days < _CERTIFICATE_WARNING:
            yield Finding(about, "note", f"its certificate ends in {days:.0f} days: renew it there")


def _failed(about: str, error: Exception) -> Finding:
    return Finding(about, "failed", one_line(f"{type(error).__name__}: {error}", _LONGEST))


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else []
