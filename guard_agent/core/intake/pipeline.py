"""From whatever the application sends to an encoded record: snapshot, enrich, encode once."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Mapping
from itertools import count, islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson
from pydantic import BaseModel, ValidationError

from guard_agent.core.helpers import get_current_timestamp
from guard_agent.core.intake.priority import event_priority
from guard_agent.core.intake.snapshot import MAX_NODES, TRUNCATED, scrub, snapshot
from guard_agent.core.interfaces import Priority, Record, Stage
from guard_agent.core.ledger import DropReason
from guard_agent.core.models import SecurityEvent, SecurityMetric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guard_agent.core.interfaces import Enricher, EnrichFunction, Fields, Kind

logger = logging.getLogger("guard_agent.pipeline")

MAX_RECORD_BYTES = 64 * 1024
_SHORT_TEXT = 256
_MAX_KEY = 128
_DISABLE_AFTER = 5
SLOW = 1.0
"""Seconds after which a deriving enricher counts as failed, although it came to an end."""
_MISSING = object()

_MODELS: dict[Kind, type[BaseModel]] = {"event": SecurityEvent, "metric": SecurityMetric}
_OPTIONS = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z


class _Step:
    """One enricher bound to one kind, with what happens when it fails."""

    __slots__ = ("failures", "function", "name", "stage")

    def __init__(self, name: str, stage: Stage, function: EnrichFunction) -> None:
        self.name = name
        self.stage = stage
        self.function = function
        self.failures = 0

    def failed(self, error: BaseException) -> DropReason | None:
        """
        Count a failure; returns why the record is dropped, or None when it goes on without.

        Only what runs before redaction may be left out: behind it a missing step could let
        something out.
        """
        self._count("failed", _without_text(error))
        return None if self.stage is Stage.DERIVE else DropReason.ENRICHER_FAILED

    def timed(self, limit: float) -> EnrichFunction:
        """
        The function, which counts as failed when it takes longer than ``limit`` seconds.

        It runs in a thread of the application, where nothing can cut it off; but it need not be
        called again.
        """
        function = self.function

        def call(fields: Fields) -> Fields | None:
            began = time.monotonic()
            result = function(fields)
            if time.monotonic() - began > limit:
                self._count(f"took longer than {limit:g} s")
            return result

        return call

    def _count(self, what: str, error: Exception | None = None) -> None:
        self.failures += 1
        if self.failures == 1:
            logger.error("the enricher %r %s", self.name, what, exc_info=error)
        if self.failures == _DISABLE_AFTER and self.stage is Stage.DERIVE:
            logger.error("the enricher %r failed %d times: disabled", self.name, _DISABLE_AFTER)

    @property
    def disabled(self) -> bool:
        return self.stage is Stage.DERIVE and self.failures >= _DISABLE_AFTER


def _without_text(error: BaseException) -> Exception:
    """
    ``error`` for the log: its type and where it was raised.

    What an enricher says of a record may be what was not redacted yet.
    """
    kind = type(error).__qualname__
    shown = RuntimeError(f"{kind} (its text is not logged, because it may hold a secret)")
    return shown.with_traceback(error.__traceback__)


class Pipeline:
    """
    The enrichers, compiled once, and the encoder.

    Called from any thread; holds no lock. Never raises, whatever it is given. A deriving enricher
    that took more than ``slow`` seconds five times is not called any more.
    """

    def __init__(self, enrichers: Sequence[Enricher], *, slow: float = SLOW) -> None:
        self._steps = {kind: _compile(kind, enrichers, slow) for kind in _MODELS}
        self._new_id = _id_generator()

    def encode(self, kind: Kind, source: Any) -> Record | DropReason:
        """Make the record of ``source``, or say why there is none."""
        fields = _read(kind, source)
        if fields is None:
            return DropReason.INVALID
        key = fields.get("idempotency_key")
        if not isinstance(key, str) or not 0 < len(key) <= _MAX_KEY:
            key = fields["idempotency_key"] = self._new_id()

        enriched = self._enrich(kind, fields)
        if isinstance(enriched, DropReason):
            return enriched
        # The collector removes duplicates by it: no enricher may part a record from its key.
        enriched["idempotency_key"] = key
        payload = _encode(enriched)
        if isinstance(payload, DropReason):
            return payload
        priority = (
            event_priority(enriched.get("event_type")) if kind == "event" else Priority.METRIC
        )
        return Record(key, kind, priority, payload, time.time())

    def _enrich(self, kind: Kind, fields: Fields) -> Fields | DropReason:
        for step in self._steps[kind]:
            if step.failures and step.disabled:
                continue
            try:
                result = step.function(fields)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code in the host's
                # request: it must not get out, and fails closed.
                if (reason := step.failed(error)) is not None:
                    return reason
                continue
            if result is None:
                return DropReason.FILTERED
            if type(result) is dict:
                fields = result
                continue
            wrong = TypeError(f"returned {type(result).__name__}, wanted the fields or None")
            if (reason := step.failed(wrong)) is not None:
                return reason
        return fields


def _compile(kind: Kind, enrichers: Sequence[Enricher], slow: float) -> tuple[_Step, ...]:
    steps = [
        _Step(enricher.context.instance, enricher.stage, function)
        for enricher in enrichers
        if (function := enricher.bind(kind)) is not None
    ]
    for step in steps:
        if step.stage is Stage.DERIVE:
            step.function = step.timed(slow)
    derived = [place for place, step in enumerate(steps) if step.stage is Stage.DERIVE]
    if derived:
        # What an enricher added may be an object, in which a redactor sees no text.
        steps.insert(derived[-1] + 1, _Step("snapshot", Stage.REDACT, snapshot))
    return tuple(steps)


def _id_generator() -> Callable[[], str]:
    """
    Ids in the form of a UUID: a random part per process and a counter.

    A UUID of version 8 (RFC 9562, 5.8) leaves its bits to the application; drawing a random one
    for every metric costs a system call each.
    """
    prefix = secrets.token_hex(8)
    head = f"{prefix[:8]}-{prefix[8:12]}-8{prefix[12:15]}-8{secrets.token_hex(2)[:3]}-"
    numbers = count(secrets.randbits(32))
    return lambda: f"{head}{next(numbers):012x}"


def _read(kind: Kind, source: Any) -> Fields | None:
    """The fields of a model, a mapping or any object that has them; None when it is neither."""
    model = _MODELS[kind]
    key = None
    try:
        # `isinstance` on a pydantic class costs as much as copying a dozen fields.
        if type(source) is not model and not isinstance(source, model):
            key = _given_key(source) if kind == "metric" else None
            source = _validate(model, source)
        values: dict[str, Any] = source.__dict__
        if extra := source.__pydantic_extra__:
            # Behind the known fields, because the bounds cut from the end.
            values = {**values, **dict(islice(extra.items(), MAX_NODES))}
        fields = snapshot(values)
        if kind == "metric" and not _is_number(fields.get("value")):
            return None
        if fields.get("timestamp") is None:
            fields["timestamp"] = get_current_timestamp()
        if key is not None:
            fields["idempotency_key"] = key
    except (Exception, SystemExit):  # noqa: BLE001 - the object is foreign and may raise anything
        return None
    else:
        return fields


def _given_key(source: Any) -> str | None:
    """The UUID of a foreign metric, if it brings one; the model has no field for it."""
    if isinstance(source, Mapping):
        key = source.get("idempotency_key")
    else:
        key = getattr(source, "idempotency_key", None)
    try:
        return str(key if type(key) is UUID else UUID(key))
    except (ValueError, TypeError, AttributeError):
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _validate(model: type[BaseModel], source: Any) -> BaseModel:
    if isinstance(source, Mapping):
        pairs = islice(source.items(), MAX_NODES)
        given = {name: value for name, value in pairs if isinstance(name, str)}
    else:
        named = ((name, getattr(source, name, _MISSING)) for name in model.model_fields)
        given = {name: value for name, value in named if value is not _MISSING}
    # Bounded and plain before anybody else looks at it.
    data = {name: value for name, value in snapshot(given).items() if value is not None}
    if type(tags := data.get("tags")) is dict and model is SecurityMetric:
        data["tags"] = {name: _as_text(value) for name, value in tags.items()}
    if "event_type" not in data and "metric_type" not in data:
        msg = "neither an event nor a metric"
        raise TypeError(msg)
    data.setdefault("timestamp", get_current_timestamp())
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # Keep what is right of a foreign record; only what cannot be read goes.
        wrong = {item["loc"][0] for item in error.errors(include_input=False, include_url=False)}
        kept = {name: value for name, value in data.items() if name not in wrong}
        kept.setdefault("timestamp", get_current_timestamp())
        return model.model_validate(kept)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _encode(fields: Fields) -> bytes | DropReason:
    try:
        payload = orjson.dumps(fields, option=_OPTIONS)
    except (TypeError, ValueError):
        # An enricher left something that JSON cannot carry, or a text holds lone surrogates.
        # Objects must not become text here: it would be text that no redactor has seen.
        try:
            fields = scrub(snapshot(fields, foreign=False))
            payload = orjson.dumps(fields, option=_OPTIONS)
        except Exception:  # noqa: BLE001 - whatever it is, the record cannot be encoded
            return DropReason.UNENCODABLE
    if len(payload) > MAX_RECORD_BYTES:
        payload = orjson.dumps(_shrink(fields), option=_OPTIONS)
        if len(payload) > MAX_RECORD_BYTES:
            return DropReason.TOO_LARGE
    # A copy: the encoder's own bytes hold on to its work buffer, 4 KiB for a record of 300 bytes.
    return b"%b" % payload


def _shrink(fields: Fields) -> Fields:
    """What identifies the record, short texts, and a note of what was cut."""
    small: Fields = {}
    cut = []
    for name, value in fields.items():
        if isinstance(value, (dict, list)):
            small[name] = {} if isinstance(value, dict) else []
            if value:
                cut.append(name)
        elif isinstance(value, str) and len(value) > _SHORT_TEXT:
            small[name] = value[:_SHORT_TEXT] + TRUNCATED
            cut.append(name)
        else:
            small[name] = value
    cut = [name[:100] for name in cut[:20]]
    place = "tags" if "metric_type" in fields else "metadata"
    small[place] = {"guard.truncated": ",".join(cut) if place == "tags" else cut}
    return small
