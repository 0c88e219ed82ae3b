"""OTLP/HTTP in JSON: log records brought into the form of events."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_DEPTH = 16
_LONGEST_KEY = 200
_LONGEST_NAME = 100
_STATUS = "guard.agent_status"

# Semantic conventions, and the fields of an event that they stand for.
_FIELDS = {
    "client.address": "ip_address",
    "source.address": "ip_address",
    "url.path": "endpoint",
    "http.route": "endpoint",
    "http.request.method": "method",
    "http.response.status_code": "status_code",
    "user_agent.original": "user_agent",
    "geo.country.iso_code": "country",
    "log.record.uid": "idempotency_key",
}


def log_records(document: dict[str, Any]) -> list[dict[str, Any]]:
    """
    The log records of an ExportLogsServiceRequest, as far as they can be read.

    Each keeps what it came with, under ``otlp``, with the resource it belongs to.
    """
    return list(_walk(document))


def status_report(log: dict[str, Any]) -> dict[str, Any] | None:
    """
    The status report of an agent that came as a log record; None for every other log record.

    What an agent makes of an event has that name only where the event has it, and says so.
    """
    attributes = log["otlp"]["attributes"]
    if log["otlp"]["name"] != _STATUS or "guard.event_type" in attributes:
        return None
    report = {
        key[6:]: value
        for key, value in attributes.items()
        if key.startswith("guard.") and "." not in key[6:]
    }
    return {"timestamp": log.get("timestamp"), **report}


def origin(log: dict[str, Any]) -> tuple[str, str]:
    """Install id and project of the agent that the log record is from, empty where unknown."""
    resource = log["otlp"]["resource"]
    agent, project = resource.get("guard.install_id"), resource.get("guard.project_id")
    return (
        agent[:_LONGEST_NAME] if isinstance(agent, str) else "",
        project[:_LONGEST_NAME] if isinstance(project, str) else "",
    )


def _walk(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in _dicts(document.get("resourceLogs")):
        resource = group.get("resource")
        described = _attributes(resource.get("attributes") if isinstance(resource, dict) else None)
        for scope in _dicts(group.get("scopeLogs")):
            for log in _dicts(scope.get("logRecords")):
                yield _event(log, described)


def _event(log: dict[str, Any], resource: dict[str, Any]) -> dict[str, Any]:
    attributes = _attributes(log.get("attributes"))
    body = _value(log.get("body"), 0)
    event_name = log.get("eventName") or attributes.get("event.name") or ""
    event_name = event_name if isinstance(event_name, str) else ""
    event: dict[str, Any] = {
        "event_type": event_name.removeprefix("guard.")
        or str(log.get("severityText") or "log").lower(),
        "timestamp": _moment(log.get("timeUnixNano")) or _moment(log.get("observedTimeUnixNano")),
        "reason": body if isinstance(body, str) else None,
        "severity": log.get("severityText"),
    }
    for key, value in attributes.items():
        if key in _FIELDS:
            event.setdefault(_FIELDS[key], value)
        elif key.startswith("guard.") and "." not in key[6:]:
            event.setdefault(key[6:], value)
    for name in ("metadata", "tags"):
        # Of a log record that an agent made of an event or a metric: how many it stands for, too.
        prefix = f"guard.{name}."
        items = {
            key[len(prefix) :]: value for key, value in attributes.items() if key.startswith(prefix)
        }
        if items:
            event[name] = items
    key = event.get("idempotency_key", "")
    if not isinstance(key, str) or len(key) > _LONGEST_KEY:
        del event["idempotency_key"]
    event["otlp"] = {
        "name": event_name,
        "resource": resource,
        "attributes": attributes,
        "body": body,
    }
    return {key: value for key, value in event.items() if value is not None}


def _attributes(pairs: object) -> dict[str, Any]:
    return {
        str(pair["key"]): _value(pair.get("value"), 0)
        for pair in _dicts(pairs)
        if pair.get("key") is not None
    }


def _value(value: object, depth: int) -> Any:  # noqa: PLR0911 - one return per kind of value
    """What an AnyValue holds."""
    if not isinstance(value, dict) or depth > _MAX_DEPTH:
        return None
    if "intValue" in value:
        try:
            number = int(value["intValue"])  # a text, as 64 bits do not fit every JSON reader
        except (TypeError, ValueError, OverflowError):
            return value["intValue"]
        return number if abs(number) < 2**63 else value["intValue"]
    for name in ("stringValue", "boolValue", "doubleValue", "bytesValue"):
        if name in value:
            return value[name]
    inner = value.get("arrayValue")
    if isinstance(inner, dict):
        return [_value(item, depth + 1) for item in _dicts(inner.get("values"))]
    inner = value.get("kvlistValue")
    if isinstance(inner, dict):
        return {
            str(item.get("key")): _value(item.get("value"), depth + 1)
            for item in _dicts(inner.get("values"))
        }
    return None


def _moment(nanoseconds: object) -> str | None:
    try:
        seconds = int(nanoseconds) / 1e9  # type: ignore[call-overload] # foreign data: see below
        if seconds <= 0:
            return None
        return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _dicts(items: object) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
