"""
What a record of the agent is as an OpenTelemetry log record.

The names come from the semantic conventions, version 1.44.0; what they have no name for is
``guard.`` and the name of its field. The README has the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from uuid import uuid4

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guard_agent import AgentStatus, Record

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"

Severity: TypeAlias = Literal["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"]

SEVERITY_NUMBERS: Mapping[Severity, int] = {
    "TRACE": 1,
    "DEBUG": 5,
    "INFO": 9,
    "WARN": 13,
    "ERROR": 17,
    "FATAL": 21,
}

# Everything that is not here is WARN: somebody was suspected, limited or blocked.
_SEVERITIES: Mapping[str, Severity] = {
    "detection_engine_callback_error": "ERROR",
    "emergency_mode_activated": "ERROR",
    "ip_ban_failed": "ERROR",
    "penetration_attempt": "ERROR",
    "redis_error": "ERROR",
    "dynamic_rule_applied": "INFO",
    "dynamic_rule_updated": "INFO",
    "https_enforced": "INFO",
    "ip_unbanned": "INFO",
    "path_excluded": "INFO",
    "pattern_added": "INFO",
    "pattern_removed": "INFO",
    "rate_limit_script_reloaded": "INFO",
    "redis_connection": "INFO",
    "security_headers_applied": "INFO",
}

_HEALTH: Mapping[str, Severity] = {"healthy": "INFO", "degraded": "WARN", "failed": "ERROR"}

_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)
_COUNTRY = re.compile(r"[A-Z]{2}", re.ASCII)
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-fA-F]{32}", re.ASCII)
_SPAN_ID = re.compile(r"(?!0{16})[0-9a-fA-F]{16}", re.ASCII)

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MAX_NANOSECONDS = 2**64 - 1

# Fields that have a place of their own, and so are no attribute of the name `guard.<field>`.
_TEXTS = {"ip_address": "client.address", "user_agent": "user_agent.original"}


@dataclass(slots=True)
class LogRecord:
    """One log record, not encoded yet. Times are Unix nanoseconds, 0 for unknown."""

    event_name: str
    severity: Severity
    body: str
    time: int
    observed: int
    attributes: dict[str, Any] = field(default_factory=dict)
    """Plain JSON data; None is left out."""
    trace_id: str = ""
    """32 hexadecimal digits, or empty."""
    span_id: str = ""
    """16 hexadecimal digits, or empty."""


def log_record(record: Record, severities: Mapping[str, Severity]) -> LogRecord:
    """Translate ``record``; ``severities`` go before the built-in table."""
    fields: dict[str, Any] = orjson.loads(record.payload)
    is_event = record.kind == "event"
    kind = _text(fields.get("event_type" if is_event else "metric_type")) or "unknown"
    if is_event:
        severity = severities.get(kind) or _SEVERITIES.get(kind, "WARN")
        name, body = f"guard.{kind}", _text(fields.get("reason")) or kind
    else:
        severity = severities.get(kind, "INFO")
        name, body = f"guard.metric.{kind}", kind
        if fields.get("value") is not None:
            body = f"{kind} {fields['value']}"
    # An attribute that is now of this type and now of that makes trouble in many a backend.
    measured = "response_time" if is_event else "value"
    if type(fields.get(measured)) is int:
        fields[measured] = float(fields[measured])

    log = LogRecord(
        event_name=name,
        severity=severity,
        body=body,
        time=_nanoseconds(fields.get("timestamp")),
        observed=min(max(int(record.accepted_at * 1e9), 0), _MAX_NANOSECONDS),
    )
    if log.time:
        del fields["timestamp"]
    _take_trace(fields, log)
    fields.pop("idempotency_key", None)
    log.attributes["log.record.uid"] = record.id
    _take_request(fields, log.attributes)
    _take_url(fields, log.attributes)
    # A key of these may hold a dot, and so make the name of another attribute.
    nested = {name: fields.pop(name) for name in ("metadata", "tags") if _is_map(fields, name)}
    for key, value in fields.items():
        _add(log.attributes, f"guard.{key}", value)
    for name, items in nested.items():
        for key, value in items.items():
            _add(log.attributes, f"guard.{name}.{key}", value)
    return log


def status_record(status: AgentStatus) -> LogRecord:
    """Translate a status report, which is a log record like the others."""
    fields = status.model_dump(mode="json")
    moment = _nanoseconds(fields.pop("timestamp"))
    log = LogRecord(
        event_name="guard.agent_status",
        severity=_HEALTH[status.status],
        body=f"the agent is {status.status}",
        time=moment,
        observed=moment,
        attributes={"log.record.uid": str(uuid4())},
    )
    for key, value in fields.items():
        _add(log.attributes, f"guard.{key}", value)
    return log


def _take_request(fields: dict[str, Any], attributes: dict[str, Any]) -> None:
    """Move what the semantic conventions have names for; what does not fit them stays."""
    for source, name in _TEXTS.items():
        value = fields.get(source)
        if value == "":  # the default of a field that is not known
            del fields[source]
        elif isinstance(value, str):
            attributes[name] = fields.pop(source)

    method = fields.get("method")
    if isinstance(method, str) and method:
        del fields["method"]
        attributes["http.request.method"] = method if method in _METHODS else "_OTHER"
        if method not in _METHODS:
            attributes["http.request.method_original"] = method

    status = fields.get("status_code")
    if isinstance(status, int) and not isinstance(status, bool):
        attributes["http.response.status_code"] = fields.pop("status_code")

    country = fields.get("country")
    if isinstance(country, str) and _COUNTRY.fullmatch(country):
        attributes["geo.country.iso_code"] = fields.pop("country")


def _take_url(fields: dict[str, Any], attributes: dict[str, Any]) -> None:
    endpoint = fields.get("endpoint")
    if not isinstance(endpoint, str):
        return
    if endpoint.startswith("/"):
        path, _, query = fields.pop("endpoint").partition("?")
        attributes["url.path"] = path
        if query:
            attributes["url.query"] = query
    elif endpoint.startswith(("http://", "https://")):
        attributes["url.full"] = fields.pop("endpoint")


def _take_trace(fields: dict[str, Any], log: LogRecord) -> None:
    """Find the ids of the trace in the event itself or in its metadata."""
    metadata = fields.get("metadata")
    for holder in (fields, metadata):
        if not isinstance(holder, dict):
            continue
        trace, span = holder.get("trace_id"), holder.get("span_id")
        if not isinstance(trace, str) or not _TRACE_ID.fullmatch(trace):
            continue  # without a trace the id of a span says nothing
        log.trace_id = trace.lower()
        del holder["trace_id"]
        if isinstance(span, str) and _SPAN_ID.fullmatch(span):
            log.span_id = span.lower()
            del holder["span_id"]
        return


def _is_map(fields: dict[str, Any], name: str) -> bool:
    return isinstance(fields.get(name), dict)


def _add(attributes: dict[str, Any], key: str, value: Any) -> None:
    if value is None or value == "":
        return
    while key in attributes:  # keys must be unique, and nothing may get lost
        key += "_"
    attributes[key] = value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _nanoseconds(value: Any) -> int:
    """Unix nanoseconds of a timestamp in ISO 8601, or 0 when it is none, or does not fit."""
    if not isinstance(value, str):
        return 0
    text = value[:-1] + "+00:00" if value.endswith("Z") else value  # Python 3.10 knows no Z
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0
    try:
        since = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)) - _EPOCH
    except OverflowError:
        return 0
    nanoseconds = (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000
    return nanoseconds if 0 < nanoseconds <= _MAX_NANOSECONDS else 0
