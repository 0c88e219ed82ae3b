"""What the page lists of a record: a few short texts, a class, and whether it was blocked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from guard_agent_collector.ingest import Incoming

Outcome: TypeAlias = Literal["blocked", "passed", ""]
RecordClass: TypeAlias = Literal["attack", "change", "diagnostic", "metric", "log"]
Rollup: TypeAlias = Literal["repeats", "sample", "source", ""]

_LONGEST = 200
_CHANGES = frozenset(
    {
        *("ip_banned", "ip_unbanned", "ip_ban_failed", "pattern_added", "pattern_removed"),
        *("dynamic_rule_applied", "dynamic_rule_updated", "emergency_mode_activated"),
    }
)
_DIAGNOSTICS = frozenset(
    {
        *("csp_violation", "decoding_error", "detection_engine_callback_error"),
        *("geo_lookup_failed", "https_enforced", "path_excluded", "rate_limit_script_reloaded"),
        *("redis_connection", "redis_error", "route_unresolved", "security_headers_applied"),
    }
)
_DIAGNOSTIC_PREFIX = "pattern_anomaly_"
_BLOCKED = frozenset(
    {
        *("request_blocked", "blocked", "banned", "emergency_lockdown"),
        *("denied", "rejected", "rate_limited"),
    }
)
_PASSED = frozenset({"logged_only", "logged", "allowed", "passed", "monitored"})
_ROLLUPS: tuple[Rollup, ...] = ("repeats", "sample", "source")
_TOTALS = frozenset({"request_count", "bandwidth_usage"})
"""Metric types whose value is the sum already."""
# What nobody means: sums of such numbers stay exact enough to be shown.
_MAX_COUNT = 10**9
_MAX_TOTAL = 1e12
_LEAST_RATE = 1e-6
_WHOLE = re.compile(r"[0-9]{1,10}", re.ASCII)
_LONGEST_NUMBER = 40


@dataclass(frozen=True, slots=True)
class Summary:
    """One record in short. Texts are cut, and empty when the record does not have them."""

    record_class: RecordClass
    type: str
    ip: str
    endpoint: str
    method: str
    status: int | None
    action: str
    reason: str
    moment: str
    """The record's own timestamp, as it came."""
    count: int
    """How many it stands for."""
    first: float | None
    last: float | None
    """When the first and the last of several were, in Unix seconds."""
    rollup: Rollup
    """What those have in common; empty where the record does not say."""
    rate: float | None
    """Of a sample: the share of this type that is sent."""
    outcome: Outcome
    """What became of the request; empty where the event does not say."""
    value: float | None
    """Of a metric."""
    total: float | None
    """Of a metric: the sum of all values it stands for; None when that is no sensible number."""


def summarise(record: Incoming) -> Summary:
    fields = record.fields
    is_metric = _is_metric(record)
    kind = _text(fields.get("metric_type" if is_metric else "event_type")) or "unknown"
    action = _text(fields.get("action_taken"))
    given = fields.get("tags")
    tags: dict[str, Any] = given if isinstance(given, dict) else {}
    value = _float(fields.get("value"))
    notes = tags if is_metric else fields.get("metadata")
    notes = notes if isinstance(notes, dict) else {}
    count = _count(notes.get("guard.count"))
    first, last = _times(notes) if count > 1 else (None, None)
    rollup = _rollup(notes.get("guard.rollup")) if count > 1 else ""
    return Summary(
        record_class="metric" if is_metric else _class(record, kind),
        type=kind,
        ip=_text(fields.get("ip_address")),
        endpoint=_text(fields.get("endpoint") or tags.get("endpoint")),
        method=_text(fields.get("method") or tags.get("method")),
        status=_status(fields.get("status_code") or tags.get("status")),
        action=action,
        reason=_text(fields.get("reason")),
        moment=_text(fields.get("timestamp")),
        count=count,
        first=first,
        last=last,
        rollup=rollup,
        rate=_rate(notes.get("guard.rate")) if rollup == "sample" else None,
        outcome=_outcome(action.lower()),
        value=value,
        total=_total(kind, value, count, notes) if is_metric else None,
    )


def _outcome(action: str) -> Outcome:
    if action in _BLOCKED:
        return "blocked"
    return "passed" if action in _PASSED else ""


def _class(record: Incoming, kind: str) -> RecordClass:
    if kind in _CHANGES:
        return "change"
    if kind in _DIAGNOSTICS or kind.startswith(_DIAGNOSTIC_PREFIX):
        return "diagnostic"
    # A log record of an agent is an event like any other; what others write is a log.
    if record.kind == "log" and not _is_guards(record.fields):
        return "log"
    return "attack"


def _is_metric(record: Incoming) -> bool:
    """A metric, also as the log record that an agent makes of it for OpenTelemetry."""
    if record.kind == "log":
        name = record.fields.get("event_type")
        return "metric_type" in record.fields and str(name).startswith("metric.")
    return record.kind == "metric"


def _is_guards(fields: dict[str, Any]) -> bool:
    return any(key.startswith("guard.") for key in fields.get("otlp", {}).get("attributes", {}))


def _text(value: object) -> str:
    if value is None or isinstance(value, (dict, list)):
        return ""
    return str(value)[:_LONGEST]


def _status(value: object) -> int | None:
    try:
        number = int(value)  # type: ignore[call-overload] # foreign data: see below
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 100 <= number <= 599 else None


def _count(value: object) -> int:
    """What is no whole number from 1 to `_MAX_COUNT` stands for itself."""
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        value = int(value)
    return value if type(value) is int and 1 <= value <= _MAX_COUNT else 1


def _times(notes: dict[str, Any]) -> tuple[float, float] | tuple[None, None]:
    first, last = seconds_of(notes.get("guard.first")), seconds_of(notes.get("guard.last"))
    if first is None or last is None or first > last:
        return None, None
    return first, last


def _rollup(value: object) -> Rollup:
    return next((known for known in _ROLLUPS if known == value), "")


def _rate(value: object) -> float | None:
    rate = _float(value)
    return rate if rate is not None and _LEAST_RATE <= rate <= 1 else None


def _float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _total(kind: str, value: float | None, count: int, tags: dict[str, Any]) -> float | None:
    """The sum as the record tells it, else from its value, which is an average for most types."""
    text = tags.get("guard.sum")
    if count > 1 and isinstance(text, str) and len(text) <= _LONGEST_NUMBER:
        try:
            told = _sensible(float(text))
        except ValueError:
            told = None
        if told is not None:
            return told
    value = _sensible(value)
    return value if value is None or kind in _TOTALS else value * count


def _sensible(value: float | None) -> float | None:
    return value if value is not None and 0 <= value <= _MAX_TOTAL else None


def seconds_of(text: object) -> float | None:
    """Unix seconds of a timestamp in ISO 8601, UTC where it does not say; None if it is none."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return None
