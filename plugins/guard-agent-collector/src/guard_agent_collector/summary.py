"""What the page lists of a record: a few short texts, a class, and whether it was blocked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from guard_agent_collector.ingest import Incoming

Outcome: TypeAlias = Literal["blocked", "passed", ""]
RecordClass: TypeAlias = Literal["attack", "change", "diagnostic", "metric", "log"]

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
_COUNTS = ("count", "repeat_count", "repeats", "occurrences")
_MAX_COUNT = 10**9


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
    """How many it stands for: a summary of repeats stands for several."""
    outcome: Outcome
    """What became of the request; empty where the event does not say."""
    value: float | None
    """Of a metric."""


def summarise(record: Incoming) -> Summary:
    fields = record.fields
    name = "metric_type" if record.kind == "metric" else "event_type"
    kind = _text(fields.get(name)) or "unknown"
    action = _text(fields.get("action_taken"))
    given = fields.get("tags")
    tags: dict[str, Any] = given if isinstance(given, dict) else {}
    value = fields.get("value")
    return Summary(
        record_class=_class(record, kind),
        type=kind,
        ip=_text(fields.get("ip_address")),
        endpoint=_text(fields.get("endpoint")),
        method=_text(fields.get("method") or tags.get("method")),
        status=_status(fields.get("status_code") or tags.get("status")),
        action=action,
        reason=_text(fields.get("reason")),
        moment=_text(fields.get("timestamp")),
        count=_count(fields),
        outcome=_outcome(action.lower()),
        value=float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        else None,
    )


def _outcome(action: str) -> Outcome:
    if action in _BLOCKED:
        return "blocked"
    return "passed" if action in _PASSED else ""


def _class(record: Incoming, kind: str) -> RecordClass:
    if record.kind == "metric":
        return "metric"
    if kind in _CHANGES:
        return "change"
    if kind in _DIAGNOSTICS or kind.startswith(_DIAGNOSTIC_PREFIX):
        return "diagnostic"
    # A log record of an agent is an event like any other; what others write is a log.
    if record.kind == "log" and not _is_guards(record.fields):
        return "log"
    return "attack"


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


def _count(fields: dict[str, Any]) -> int:
    metadata = fields.get("metadata")
    for holder in (fields, metadata if isinstance(metadata, dict) else {}):
        for name in _COUNTS:
            value = holder.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return min(value, _MAX_COUNT)
    return 1
