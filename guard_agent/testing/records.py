"""Events, metrics, records and a context with sensible defaults."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import Any

import orjson

from guard_agent import (
    AgentConfig,
    Batch,
    Kind,
    PluginContext,
    Priority,
    Record,
    SecurityEvent,
    SecurityMetric,
    get_current_timestamp,
)

_EPOCH = 1_700_000_000
_numbers = count(1)


def make_event(**fields: Any) -> SecurityEvent:
    """An event of an attack that was blocked; ``fields`` go before the defaults."""
    defaults: dict[str, Any] = {
        "timestamp": get_current_timestamp(),
        "event_type": "penetration_attempt",
        "ip_address": "203.0.113.7",
        "action_taken": "request_blocked",
        "reason": "SQL injection in the query",
        "endpoint": "/items",
        "method": "GET",
        "status_code": 400,
    }
    return SecurityEvent(**{**defaults, **fields})


def make_metric(**fields: Any) -> SecurityMetric:
    """The response time of one request, in seconds; ``fields`` go before the defaults."""
    defaults: dict[str, Any] = {
        "timestamp": get_current_timestamp(),
        "metric_type": "response_time",
        "value": 0.012,
        "endpoint": "/items",
        "tags": {"method": "GET", "status": "200"},
    }
    return SecurityMetric(**{**defaults, **fields})


def make_record(
    n: int | None = None,
    *,
    size: int | None = None,
    priority: Priority = Priority.CHANGE,
    kind: Kind = "event",
    **fields: Any,
) -> Record:
    """
    The record ``record-<n>``, accepted ``n`` seconds after a fixed point in time.

    Without ``n`` each call takes the next number. ``size`` is the exact length of the payload in
    bytes; ``fields`` go into the payload.

    Raises:
        ValueError: when ``size`` is too small for what the payload must hold.
    """
    number = next(_numbers) if n is None else n
    record_id = f"record-{number}"
    named = (
        {"event_type": "suspicious_request"}
        if kind == "event"
        else {"metric_type": "request_count", "value": 1}
    )
    payload = orjson.dumps({"idempotency_key": record_id, **named, **fields})
    if size is not None:
        # The closing brace gives way to one more field: ,"pad":"..."}
        missing = size - len(payload) - len(',"pad":""')
        if missing < 0:
            msg = f"size must be at least {size - missing} for this record, not {size}"
            raise ValueError(msg)
        payload = payload[:-1] + b',"pad":"' + b"x" * missing + b'"}'
    return Record(record_id, kind, priority, payload, float(_EPOCH + number))


def make_records(amount: int, **options: Any) -> list[Record]:
    """``amount`` records, numbered from 1 up; ``options`` as for `make_record`."""
    return [make_record(n, **options) for n in range(1, amount + 1)]


def make_batch(amount: int = 1, kind: Kind = "event", **options: Any) -> Batch:
    """A batch of ``amount`` new records; ``options`` as for `make_record`."""
    return Batch(kind, tuple(make_record(kind=kind, **options) for _ in range(amount)))


def make_context(
    state_dir: Path | None = None,
    *,
    instance: str = "test",
    destinations: tuple[str, ...] = ("test",),
    **config: Any,
) -> PluginContext:
    """
    The context of one plugin; ``config`` are fields of `AgentConfig`.

    Without ``state_dir`` the plugin gets a folder that cannot be made, so a test never writes
    outside the folders it chose.
    """
    return PluginContext(
        instance=instance,
        config=AgentConfig(**{"api_key": "test-key-0123456789", **config}),
        destinations=destinations,
        state_dir=Path(os.devnull) / "state" if state_dir is None else state_dir,
    )
