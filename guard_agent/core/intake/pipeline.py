"""From whatever the application sends to an encoded record: snapshot, enrich, encode once."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Mapping
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson
from pydantic import BaseModel, ValidationError

from guard_agent.core.helpers import get_current_timestamp
from guard_agent.core.intake.glance import Glance
from guard_agent.core.intake.priority import EventPriorities
from guard_agent.core.intake.signals import ends_the_application
from guard_agent.core.intake.snapshot import MAX_NODES, TRUNCATED, scrub, snapshot
from guard_agent.core.interfaces import MAX_RECORD_BYTES, DropReason, Priority, Record, Stage
from guard_agent.core.models import SecurityEvent, SecurityMetric
from guard_agent.core.reentry import mark

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guard_agent.core.intake.glance import GlanceFunction
    from guard_agent.core.interfaces import (
        AggregateFunction,
        Aggregator,
        EncodeFunction,
        Enricher,
        EnrichFunction,
        Fields,
        Kind,
    )
    from guard_agent.core.reentry import Mark

    _Bound = tuple[Enricher, EnrichFunction]
    Absorber = Callable[[Any], bool]
    TakeFunction = Callable[[Any], Record | DropReason | None]

logger = logging.getLogger("guard_agent.pipeline")

_SHORT_TEXT = 256
_MAX_KEY = 128
_DISABLE_AFTER = 5
SLOW = 1.0
"""Seconds after which a deriving enricher counts as failed, although it came to an end."""
_MISSING = object()

_MODELS: dict[Kind, type[BaseModel]] = {"event": SecurityEvent, "metric": SecurityMetric}
_OPTIONS = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z
# Looked up once: each is needed for every record.
_dumps = orjson.dumps
_now = time.time
_new_record = tuple.__new__
_KEY_START = len('{"idempotency_key":"')
_KEY_END = _KEY_START + 36
_MAX_QUICK = 32 * 1024
"""Bytes of a record beyond which the long way looks what can be cut."""


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
    The aggregator, the enrichers, compiled once, and the encoder.

    Called from any thread; holds no lock. Never raises, whatever it is given. A deriving enricher
    that took more than ``slow`` seconds five times is not called any more.
    """

    def __init__(
        self,
        enrichers: Sequence[Enricher],
        aggregator: Aggregator | None = None,
        priorities: EventPriorities | None = None,
        *,
        inside: Mark | None = None,
        slow: float = SLOW,
    ) -> None:
        """While code of plugins runs, ``inside`` says that what is recorded is not to be taken."""
        bound = {kind: _bind(kind, enrichers) for kind in _MODELS}
        self._steps = {kind: _compile(bound[kind], slow) for kind in _MODELS}
        self._new_id = _id_generator()
        self._priority = EventPriorities() if priorities is None else priorities
        self._event_classes = self._priority.classes
        self._inside = mark() if inside is None else inside
        self._aggregator_failed = False
        self.takers: Mapping[Kind, TakeFunction] = {
            kind: self._compile_taker(kind, bound[kind], aggregator) for kind in _MODELS
        }
        """Of each kind the function that does what `take` does, but for what `absorbers` do."""
        self.absorbers: Mapping[Kind, Absorber] = {
            kind: self._compile_absorber(kind, aggregator) for kind in _MODELS
        }
        """Of each kind the function to ask first: whether there is nothing to do but to count."""

    def take(self, kind: Kind, source: Any) -> Record | DropReason | None:
        """Make the record of ``source``, or say why there is none; None when it was absorbed."""
        return None if self.absorbers[kind](source) else self.takers[kind](source)

    def _compile_absorber(self, kind: Kind, aggregator: Aggregator | None) -> Absorber:
        absorb = None if aggregator is None else aggregator.bind_early(kind)
        if absorb is None:
            return absorb_nothing
        model, inside = _MODELS[kind], self._inside

        def absorb_source(source: Any) -> bool:
            # A model that is not whole may have no extra fields, nor a place for them.
            if (
                type(source) is not model
                or getattr(source, "__pydantic_extra__", True)
                or inside.agent
            ):
                return False
            inside.agent = True
            try:
                return absorb(source.__dict__)
            except (Exception, SystemExit) as error:  # of a plugin, which has another function
                if ends_the_application():
                    raise
                self._say_that_it_failed(error)
                return False
            finally:
                inside.agent = False

        return absorb_source

    def _compile_taker(
        self, kind: Kind, bound: Sequence[_Bound], aggregator: Aggregator | None
    ) -> TakeFunction:
        encode: EncodeFunction = partial(self._enrich_and_encode, kind)
        encode_quickly: EncodeFunction = self._seal_event if kind == "event" else self._seal_metric
        finish: AggregateFunction = encode
        seal: AggregateFunction = encode_quickly
        glance = _glance(kind, bound)
        if aggregator is not None:
            finish = aggregator.bind(kind, encode) or encode
            if glance is not None:
                seal = aggregator.bind(kind, encode_quickly) or encode_quickly
        long_way = self._guard(kind, _long_way(kind, finish))
        return long_way if glance is None else self._quick_way(kind, glance.copy, seal, long_way)

    def _quick_way(
        self, kind: Kind, copy: GlanceFunction, seal: AggregateFunction, long_way: TakeFunction
    ) -> TakeFunction:
        """`_long_way` and `_guard` in one, because a call costs as much as a text."""
        model, inside = _MODELS[kind], self._inside

        def take(source: Any) -> Record | DropReason | None:
            # A model that is not whole may have none.
            if type(source) is not model or getattr(source, "__pydantic_extra__", True):
                return long_way(source)
            before, inside.agent = inside.agent, True
            try:
                try:
                    fields = copy(source.__dict__)
                except Exception:  # noqa: BLE001 - a model that is not whole, keys of foreign
                    # classes: the long way deals with them.
                    fields = None
                if fields is not None:
                    return seal(fields)
            except (Exception, SystemExit) as error:  # it is in the host's request
                if ends_the_application():
                    raise
                return self._without_aggregator(kind, source, error)
            finally:
                inside.agent = before
            return long_way(source)

        return take

    def _guard(self, kind: Kind, take: TakeFunction) -> TakeFunction:
        """``take``, in which code of plugins runs: it may fail, and record things itself."""
        inside = self._inside

        def guarded(source: Any) -> Record | DropReason | None:
            before, inside.agent = inside.agent, True
            try:
                return take(source)
            except (Exception, SystemExit) as error:  # it is in the host's request
                if ends_the_application():
                    raise
                return self._without_aggregator(kind, source, error)
            finally:
                inside.agent = before

        return guarded

    def _without_aggregator(
        self, kind: Kind, source: Any, error: BaseException
    ) -> Record | DropReason:
        self._say_that_it_failed(error)
        # From the start: it owned the fields, and may have spoiled them.
        return self.encode(kind, source)

    def _say_that_it_failed(self, error: BaseException) -> None:
        """Once: it may do so with every record."""
        if not self._aggregator_failed:
            self._aggregator_failed = True
            logger.error("the aggregator failed", exc_info=_without_text(error))

    def encode(self, kind: Kind, source: Any) -> Record | DropReason:
        """The same past the aggregator."""
        fields = _read(kind, source)
        return DropReason.INVALID if fields is None else self._enrich_and_encode(kind, fields)

    def _seal_event(self, fields: Fields) -> Record | DropReason:
        """Encode what passed at a glance."""
        try:
            # A copy: the encoder's own bytes hold on to its work buffer.
            payload = b"%b" % _dumps(fields, option=_OPTIONS)
        except (TypeError, ValueError):
            payload = b""
        if not 0 < len(payload) < _MAX_QUICK:
            return self._seal_long_way("event", fields)
        key = payload[_KEY_START:_KEY_END].decode()
        priority = self._event_classes.get(fields["event_type"], Priority.ATTACK)
        return _new_record(Record, (key, "event", priority, payload, _now()))

    def _seal_metric(self, fields: Fields) -> Record | DropReason:
        """The same for a metric."""
        key = fields["idempotency_key"] = self._new_id()
        try:
            payload = b"%b" % _dumps(fields, option=_OPTIONS)
        except (TypeError, ValueError):
            payload = b""
        if not 0 < len(payload) < _MAX_QUICK:
            return self._seal_long_way("metric", fields)
        return _new_record(Record, (key, "metric", Priority.METRIC, payload, _now()))

    def _seal_long_way(self, kind: Kind, fields: Fields) -> Record | DropReason:
        if type(key := fields["idempotency_key"]) is UUID:
            fields["idempotency_key"] = str(key)
        return self._enrich_and_encode(kind, fields)

    def _enrich_and_encode(self, kind: Kind, fields: Fields) -> Record | DropReason:
        """Enrich, redact and encode."""
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
            self._priority.of(enriched.get("event_type")) if kind == "event" else Priority.METRIC
        )
        return Record(key, kind, priority, payload, time.time())

    def _enrich(self, kind: Kind, fields: Fields) -> Fields | DropReason:
        for step in self._steps[kind]:
            if step.failures and step.disabled:
                continue
            try:
                result = step.function(fields)
            except (Exception, SystemExit) as error:  # foreign code in the host's
                # request: it must not get out, and fails closed.
                if ends_the_application():
                    raise
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


def absorb_nothing(source: Any) -> bool:  # noqa: ARG001 - an absorber like any other
    """For kinds of which nothing is only counted."""
    return False


def _bind(kind: Kind, enrichers: Sequence[Enricher]) -> list[_Bound]:
    """Those that have something to do for ``kind``, with their functions."""
    functions = [(enricher, enricher.bind(kind)) for enricher in enrichers]
    return [(enricher, function) for enricher, function in functions if function is not None]


def _compile(bound: Sequence[_Bound], slow: float) -> tuple[_Step, ...]:
    steps = [
        _Step(enricher.context.instance, enricher.stage, function) for enricher, function in bound
    ]
    for step in steps:
        if step.stage is Stage.DERIVE:
            step.function = step.timed(slow)
    derived = [place for place, step in enumerate(steps) if step.stage is Stage.DERIVE]
    if derived:
        # What an enricher added may be an object, in which a redactor sees no text.
        steps.insert(derived[-1] + 1, _Step("snapshot", Stage.REDACT, snapshot))
    return tuple(steps)


def _long_way(kind: Kind, finish: AggregateFunction) -> TakeFunction:
    def take(source: Any) -> Record | DropReason | None:
        fields = _read(kind, source)
        return DropReason.INVALID if fields is None else finish(fields)

    return take


def _glance(kind: Kind, bound: Sequence[_Bound]) -> Glance | None:
    """The quick way through the enrichers; None when one of them has to be called."""
    rules = [enricher.text_rules(kind) for enricher, _ in bound]
    told = [one for one in rules if one is not None]
    return Glance(kind, told) if len(told) == len(rules) else None


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
    except (Exception, SystemExit):  # the object is foreign and may raise anything
        if ends_the_application():
            raise
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
