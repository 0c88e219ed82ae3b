"""
The aggregator ``rollup``: repeats leave with a count, metrics as one value per interval.

What leaves is an event or a metric like any other. One that stands for several says so in its
``metadata``, a metric in its ``tags`` (as text):

``guard.count``
    How many it stands for. A record without it stands for itself, so the sum over all records is
    what really happened.
``guard.first``, ``guard.last``
    When the agent took the first and the last of them, in UTC.
``guard.rollup`` (events)
    What they have in common: ``repeats`` all but the time, ``sample`` the event type, ``source``
    the event type and the address.
``guard.rate`` (samples)
    The share of this type that leaves.
``guard.sum``, ``guard.min``, ``guard.max`` (metrics)
    Of the values.
``guard.requests`` (error rates)
    How many requests the rate refers to.
``guard.histogram`` (response times)
    JSON: ``scale`` 2, ``zero`` (values of zero or less), ``offset`` and ``counts``. Count ``i``
    holds values above ``2 ** ((offset + i) / 4)`` and up to ``2 ** ((offset + i + 1) / 4)``
    seconds, from about 1 us to 12 days. The limits are fixed, so histograms are merged by adding
    counts; each is an exponential histogram of OpenTelemetry with this scale and offset.
"""

from __future__ import annotations

import math
import re
import threading
import time
from datetime import datetime, timezone
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import uuid4

import orjson
from pydantic import Field, field_validator

from guard_agent import Aggregated, Aggregator, PluginSettings, Record, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from guard_agent import (
        AbsorbFunction,
        AggregateFunction,
        EncodeFunction,
        Fields,
        Kind,
        PluginContext,
    )

Meaning = Literal["total", "average", "rate", "off"]

MEANINGS: dict[str, Meaning] = {
    "request_count": "total",
    "bandwidth_usage": "total",
    "response_time": "average",
    "threat_level": "average",
    "block_rate": "average",
    "cache_hit_rate": "average",
    "error_rate": "rate",
}
"""What the value of a metric type is when it stands for several."""

NOISE: dict[str, float] = {
    "pattern_anomaly_statistical_anomaly": 0.01,
    "pattern_anomaly_slow_execution": 0.01,
    "security_headers_applied": 0.01,
    "path_excluded": 0.01,
}
"""Event types of the Guard engine about its own work on any request: the share that leaves."""

CAPS: dict[str, int] = {
    "csp_violation": 20,
    "decoding_error": 20,
    "geo_lookup_failed": 20,
    "https_enforced": 20,
    "route_unresolved": 20,
}
"""Diagnostic event types that anybody can cause: how many leave of one address in an interval."""

PER_REQUEST = (
    "correlation_id",
    "execution_time",
    "execution_time_ms",
    "guard.behavior.recent_event_count",
    "request_count",
    "request_id",
    "span_id",
    "trace_id",
    "traceparent",
    "tracestate",
)
"""Names in the metadata that differ in each event and say nothing of what happened."""

COUNT = "guard.count"
OTHER = "other"
SCALE = 2
_PER_OCTAVE = 2**SCALE
_LOWEST, _HIGHEST = -20 * _PER_OCTAVE, 20 * _PER_OCTAVE - 1
_MAX_SUM = 1.7e308
_BITS = 2**60 - 1
_SLICE = 500
_BREATH = 0.00005

_IDENTITY = (
    "event_type",
    "ip_address",
    "country",
    "user_agent",
    "action_taken",
    "endpoint",
    "method",
    "status_code",
    "decorator_type",
    "rule_type",
    "pattern_matched",
    "handler_name",
    "reason",
)
_TEXT = frozenset({str})
_NUMBERS = frozenset({float, int})
_FLAT = frozenset({str, type(None), int, float, bool})
# Refuses what is not of a plain type, and so calls nothing that is not ours.
_PLAIN_ONLY = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)
_HUGE = 1e300
# Looked up once: each is needed for every value.
_now, _ceil, _log2, _in_json = time.time, math.ceil, math.log2, orjson.dumps
_identity = itemgetter(*_IDENTITY)
# How often it happened stands in the reason.
_COUNTING = {"rate_limited": itemgetter(*_IDENTITY[:-1])}
_FIELDS = len(_IDENTITY) + 4  # and timestamp, idempotency_key, response_time, metadata
_VOLATILE = frozenset({"timestamp", "idempotency_key", "response_time"})
_KNOWN = frozenset({*_IDENTITY, *_VOLATILE, "metadata"})
_OF_A_REQUEST = (
    "user_agent",
    "endpoint",
    "method",
    "status_code",
    "response_time",
    "pattern_matched",
)


class RollupSettings(PluginSettings):
    interval: float = Field(default=10.0, ge=0.05, le=3600)
    """Seconds after which a count or an aggregate leaves."""
    metrics: dict[str, Meaning] = Field(default_factory=dict)
    """By metric type, over those of this module; ``off`` for one value a record."""
    repeats: bool = True
    """Whether identical events leave as the first of them and a count."""
    off: list[str] = Field(default_factory=list)
    """Event types that leave as they are, each for itself."""
    sample: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)
    """By event type, over those of this module: the share that leaves; 1 for all."""
    per_source: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """
    By event type, over those of this module, or ``*`` for all others: how many leave of one address
    in an interval before the rest becomes a count; 0 for all.
    """
    ignore: list[str] = Field(default_factory=list)
    """Further names in the metadata in which identical events may differ."""
    routes: list[str] = Field(default_factory=list)
    """Templates such as ``/products/{id}``: what fits one is counted under it."""
    max_endpoints: int = Field(default=500, ge=1)
    """Endpoints with metrics of their own in an interval; further ones are ``other``."""
    max_groups: int = Field(default=10_000, ge=1)
    """Of events, and of metrics, that are counted at a time; further ones leave as they are."""

    @field_validator("routes")
    @classmethod
    def _check_routes(cls, value: list[str]) -> list[str]:
        for route in value:
            if not route.startswith("/"):
                msg = f"{route!r} is no template of a path, such as /products/{{id}}"
                raise ValueError(msg)
        return value


class _Group:
    """Events with something in common: one of them, and how many it stands for."""

    __slots__ = ("count", "first", "held", "last", "mode", "most", "passed", "stale")

    def __init__(self, mode: str, most: float = math.inf) -> None:
        self.mode = mode
        self.most = most
        """How many one record may stand for."""
        self.held: Record | None = None
        self.stale = False
        """Whether what is held stood for others already, and only says what all have in common."""
        self.count = 0
        self.first = self.last = 0.0
        self.passed = 0
        """Events of a source that left by themselves in this interval."""


class _Series:
    """Values of one metric with one set of tags, in one interval."""

    __slots__ = (
        "buckets",
        "count",
        "ended",
        "first",
        "held",
        "last",
        "least",
        "meaning",
        "most",
        "requests",
        "total",
        "zero",
    )

    def __init__(self, held: Record, meaning: Meaning, requests: list[float], now: float) -> None:
        self.held = held
        self.ended = False
        self.meaning = meaning
        self.requests = requests
        self.count = 0
        self.total: float = 0
        self.least = math.inf
        self.most = -math.inf
        self.zero = 0
        self.buckets: dict[int, int] | None = None
        self.first = self.last = now


class Rollup(Aggregator):
    """
    Counts in dictionaries behind one lock, which is held for a few steps.

    The key of a group is the hash of what its events have in common: text that was not redacted
    must not be kept. Python makes it with a key that is new in each process (60 bits of SipHash;
    the other four would take 16 bytes).
    """

    name = "rollup"
    Settings = RollupSettings
    settings: RollupSettings

    def __init__(self, settings: RollupSettings, context: PluginContext) -> None:
        super().__init__(settings, context)
        self._off = frozenset(settings.off)
        self._meanings = {
            name: meaning
            for name, meaning in {**MEANINGS, **settings.metrics}.items()
            if meaning != "off"
        }
        self._every = {
            name: round(1 / rate)
            for name, rate in {**NOISE, **settings.sample}.items()
            if round(1 / rate) > 1 and name not in self._off
        }
        caps = {**CAPS, **settings.per_source}
        self._cap_of_others = caps.pop("*", 0)
        self._caps = {name: 0 if name in self._off else cap for name, cap in caps.items()}
        self._ignored = frozenset({*PER_REQUEST, *settings.ignore})
        self._routes = _compile(settings.routes)
        # Reentrant: a finalizer or a signal handler may ask for the books in the middle of it.
        self._lock = threading.RLock()
        self._closed = False
        # When the only event of a group so far was taken, or how many there are.
        self._groups: dict[object, float | _Group] = {}
        # Keys of groups that hold a record; it may have left meanwhile.
        self._opened: dict[object, None] = {}
        # Hashes of addresses of which an event was the same as another of late.
        self._repeating: set[int] = set()
        self._series: dict[int, _Series] = {}
        # The same by what the application says, before anything is changed in it.
        self._as_made: dict[int, _Series] = {}
        self._requests: dict[int, list[float]] = {}
        self._endpoints: set[int] = set()
        self._events = self._metrics = self._open = 0
        self._others = self._full = 0

    @property
    def interval(self) -> float:
        return self.settings.interval

    def bind(self, kind: Kind, encode: EncodeFunction) -> AggregateFunction | None:
        if kind == "metric":
            return self._bind_metrics(encode) if self._meanings else None
        return self._bind_events(encode)

    def bind_early(self, kind: Kind) -> AbsorbFunction | None:
        if kind == "metric":
            return self._bind_known_metrics() if self._meanings else None
        return self._bind_counted_events() if self._every or self.settings.repeats else None

    # --- events -----------------------------------------------------------------------------------

    def _bind_counted_events(self) -> AbsorbFunction:
        """
        What a group that holds a record needs no more than to be counted.

        Of a sample only the type matters. Of repeats everything does: what the application says
        here is compared with what was left of others when they were redacted, so that one in which
        there is something to redact is not found and goes the long way.
        """
        groups, sampled, repeating, lock = self._groups, self._every, self._repeating, self._lock
        identify = self._identify

        def absorb(values: Mapping[str, Any]) -> bool:
            try:
                event_type, address = values["event_type"], values["ip_address"]
                metadata = values["metadata"]
            except KeyError:  # a model that is not whole
                return False
            if type(event_type) is not str or type(metadata) is not dict:
                return False
            if event_type in sampled and COUNT not in metadata:
                key: object = event_type
            elif (
                type(address) is not str
                or hash(address) not in repeating
                or len(values) != _FIELDS
                # Where there is more, there is mostly something to redact.
                or not _FLAT.issuperset(map(type, metadata.values()))
                or (key := identify(values, metadata, as_made=True)) is None
            ):
                return False
            with lock:
                group = groups.get(key)
                if type(group) is not _Group or group.held is None or self._closed:
                    return False
                count = group.count + 1
                if count >= group.most:
                    return False
                group.count = count
                group.last = now = _now()
                self._events += 1
                if count == 1:
                    self._begin(key, group, now)
                return True

        return absorb

    def _bind_events(self, encode: EncodeFunction) -> AggregateFunction:
        groups, off, sampled, caps = self._groups, self._off, self._every, self._caps
        repeats, identify, others = self.settings.repeats, self._identify, self._cap_of_others
        most = self.settings.max_groups

        def take(fields: Fields) -> Any:
            event_type: Any = fields.get("event_type")
            if type(event_type) is not str or event_type in off:
                return encode(fields)
            metadata = fields.get("metadata")
            if type(metadata) is dict and COUNT in metadata:
                return encode(fields)  # stands for several already, as from another agent
            if event_type in sampled:
                return self._join(event_type, "sample", fields, encode)
            key = identify(fields, metadata) if repeats else None
            if key in groups:
                if type(address := fields["ip_address"]) is str:
                    self._repeating.add(hash(address))
                return self._join(key, "repeats", fields, encode)
            if caps.get(event_type, others):
                record = self._cap(event_type, fields, encode)
            else:
                record = encode(fields)
            if key is None or type(record) is not Record:
                return record
            # Without the lock: one step of the interpreter, that takes no other's place.
            if len(groups) < most:
                groups.setdefault(key, record.accepted_at)  # no object more than there is
            else:
                self._full += 1
            return record

        return take

    def _identify(
        self, fields: Mapping[str, Any], metadata: Any, *, as_made: bool = False
    ) -> int | None:
        """
        What identical events have in common, or None when that cannot be told.

        It is the same before redaction and after it if there was nothing to redact. Nothing is
        called of what the application made.
        """
        if type(metadata) is not dict:
            return None
        try:
            if not self._ignored.isdisjoint(metadata):
                metadata = metadata.copy()
                for name in self._ignored.intersection(metadata):
                    del metadata[name]
            parts: Any = (_COUNTING.get(fields["event_type"], _identity)(fields), metadata)
            if len(fields) != _FIELDS:
                parts = (*parts, [(name, fields[name]) for name in sorted(fields.keys() - _KNOWN)])
        except Exception:  # noqa: BLE001 - no event of ours, a model that is not whole, foreign keys
            return None
        try:
            return hash(_in_json(parts, option=_PLAIN_ONLY)) & _BITS
        except TypeError:  # a lone surrogate, a number of more than 64 bits, or something foreign
            return None if as_made else hash(repr(parts)) & _BITS

    def _join(self, key: object, mode: str, fields: Fields, encode: EncodeFunction) -> Any:
        """Count an event for its group; the first of a group leaves as it is."""
        with self._lock:
            group = self._groups.get(key)
            if type(group) is _Group and group.held is not None and not self._closed:
                return self._count(key, group)
        record = encode(fields)
        if type(record) is not Record:
            return record
        with self._lock:
            if key in self._groups:
                return self._hold(key, mode, record)
            if len(self._groups) < self.settings.max_groups:
                self._groups[key] = record.accepted_at
            else:
                self._full += 1
            return record

    def _hold(self, key: object, mode: str, record: Record) -> Record | None:
        """Let ``record`` stand for those of its group from now on. Under the lock."""
        if self._closed:
            return record
        group = self._groups[key]
        if type(group) is not _Group:
            most = self._every[key] if mode == "sample" else math.inf  # type: ignore[index]  # a type
            group = self._groups[key] = _Group(mode, most)
        if group.held is not None:
            return self._count(key, group)
        group.held = record
        group.stale = False
        group.count = 1
        group.last = record.accepted_at
        self._events += 1
        self._begin(key, group, record.accepted_at)
        return None

    def _begin(self, key: object, group: _Group, now: float) -> None:
        """There is something to say of a group from now on. Under the lock."""
        group.first = now
        self._opened[key] = None
        self._open += 1

    def _count(self, key: object, group: _Group) -> Record | None:
        """Count one more for a group that holds a record. Under the lock."""
        group.count += 1
        group.last = now = time.time()
        if group.count >= group.most:
            self._open -= 1
            return self._close_group(group)
        self._events += 1
        if group.count == 1:
            self._begin(key, group, now)
        return None

    def _cap(self, event_type: str, fields: Fields, encode: EncodeFunction) -> Any:
        """An event that is the first of its kind: pass it, unless its address floods."""
        address = fields.get("ip_address")
        if not address or type(address) is not str:
            return encode(fields)
        key = (event_type, hash(address))
        with self._lock:
            group = self._groups.get(key)
            if group is None and len(self._groups) < self.settings.max_groups:
                group = self._groups[key] = _Group("source")
            if type(group) is not _Group:
                return encode(fields)
            if group.held is not None and not self._closed:
                return self._count(key, group)
            group.passed += 1
            group.last = time.time()
            passes = group.passed <= self._caps.get(event_type, self._cap_of_others)
        record = encode(fields)
        if passes or type(record) is not Record:
            return record
        with self._lock:
            self._groups.setdefault(key, group)
            return self._hold(key, "source", record)

    # --- metrics ----------------------------------------------------------------------------------

    def _bind_metrics(self, encode: EncodeFunction) -> AggregateFunction:
        series, lock, meanings = self._series, self._lock, self._meanings

        def take(fields: Fields) -> Any:
            metric_type: Any = fields.get("metric_type")
            meaning = meanings.get(metric_type) if type(metric_type) is str else None
            tags = fields.get("tags")
            if meaning is None or type(tags) is not dict or COUNT in tags:
                return encode(fields)
            endpoint, value = fields.get("endpoint") or tags.get("endpoint"), fields["value"]
            try:
                if endpoint:
                    self._move(fields, tags, endpoint)
                key = _identify_metric(metric_type, fields.get("endpoint"), tags)
            except (TypeError, ValueError):
                return encode(fields)  # nothing of ours: an endpoint that is no text, a surrogate
            with lock:
                known = series.get(key)
                if known is not None and not self._closed:
                    return self._add(known, metric_type, value)
                room = not self._closed and len(series) < self.settings.max_groups
            record = encode(fields)
            if not room or type(record) is not Record:
                return record
            requests = self._requests_of(fields, tags)
            with lock:
                if self._closed:
                    return record
                known = series.get(key)
                if known is None:
                    known = _Series(record, meaning, requests, time.time())
                    series[key] = known
                    self._open += 1
                return self._add(known, metric_type, value)

        return take

    def _bind_known_metrics(self) -> AbsorbFunction:
        """A value of a series that there is needs no more than its place in it."""
        as_made, lock, add, find = self._as_made, self._lock, self._add, self._find

        def absorb(values: Mapping[str, Any]) -> bool:
            metric_type, endpoint = values.get("metric_type"), values.get("endpoint")
            value: Any = values.get("value")
            tags = values.get("tags")
            if type(value) not in _NUMBERS or not -_HUGE < value < _HUGE:  # also so for NaN
                return False
            try:
                number = hash(_in_json((metric_type, endpoint, tags), option=_PLAIN_ONLY))
            except TypeError:
                return False
            known = as_made.get(number)
            if known is None or known.ended:
                known = find(number, metric_type, endpoint, tags)
                if known is None:
                    return False
            with lock:
                if known.ended or self._closed:
                    return False
                add(known, metric_type, value)  # type: ignore[arg-type]  # a series has a name
                return True

        return absorb

    def _find(self, number: int, metric_type: Any, endpoint: Any, tags: Any) -> _Series | None:
        """
        The series of a metric as the application made it, if there is one.

        ``number`` stands for all of it: the next one like it needs no search.
        """
        if (
            type(metric_type) is not str
            or metric_type not in self._meanings
            or type(tags) is not dict
            or not (endpoint is None or type(endpoint) is str)
            or COUNT in tags
        ):
            return None
        tags = tags.copy()  # at once: another thread may change it
        if not _TEXT.issuperset(map(type, (*tags, *tags.values()))):
            return None
        is_crowded = False
        if named := endpoint or tags.get("endpoint"):
            place, is_crowded = self._place(named)
            endpoint = place if endpoint else endpoint
            if "endpoint" in tags:
                tags["endpoint"] = place
        known = self._series.get(_identify_metric(metric_type, endpoint, tags))
        if known is not None:
            if is_crowded:
                self._others += 1
            elif len(self._as_made) < self.settings.max_groups:
                self._as_made[number] = known
        return known

    def _move(self, fields: Fields, tags: dict[str, Any], endpoint: str) -> None:
        """Put a metric under a template or ``other``, if its endpoint is not to have its own."""
        place, is_crowded = self._place(endpoint)
        self._others += is_crowded
        if place is not endpoint:
            if "endpoint" in tags:
                tags["endpoint"] = place
            if fields.get("endpoint"):
                fields["endpoint"] = place

    def _place(self, endpoint: str) -> tuple[str, bool]:
        """Under what an endpoint is counted, and whether that is ``other`` for want of room."""
        place = self._route(endpoint)
        if hash(place) not in self._endpoints:
            if len(self._endpoints) >= self.settings.max_endpoints:
                return OTHER, True
            self._endpoints.add(hash(place))
        return place, False

    def _route(self, endpoint: str) -> str:
        """The first template that fits, or the endpoint itself."""
        if self._routes is None or (found := self._routes.fullmatch(endpoint)) is None:
            return endpoint
        return self.settings.routes[int(str(found.lastgroup)[1:])]

    def _requests_of(self, fields: Fields, tags: Mapping[str, Any]) -> list[float]:
        """Where the requests to an endpoint are summed up, for the rate of its errors."""
        endpoint = fields.get("endpoint") or tags.get("endpoint")
        key = hash((endpoint, str(tags.get("method"))))
        with self._lock:
            return self._requests.setdefault(key, [0])

    def _add(self, series: _Series, metric_type: str, value: float) -> None:
        """Under the lock."""
        self._metrics += 1
        series.count += 1
        series.total += value
        series.last = _now()
        # Calls of `min` and `max` take four times as long as all of this.
        if value < series.least:  # noqa: PLR1730 - see above
            series.least = value
        if value > series.most:  # noqa: PLR1730 - see above
            series.most = value
        if metric_type == "request_count":
            series.requests[0] += value
        elif metric_type == "response_time":
            if value <= 0:
                series.zero += 1
                return
            place = _ceil(_log2(value) * _PER_OCTAVE) - 1
            if not _LOWEST <= place <= _HIGHEST:
                place = max(_LOWEST, min(place, _HIGHEST))
            buckets = series.buckets
            if buckets is None:
                buckets = series.buckets = {}
            buckets[place] = buckets.get(place, 0) + 1

    # --- what leaves ------------------------------------------------------------------------------

    def collect(self) -> Iterator[Record]:
        self._forget_idle()
        return self._collect()

    def _collect(self) -> Iterator[Record]:
        # Here and not before: what is never iterated must not take anything out.
        with self._lock:
            unfinished, self._opened = list(self._opened)[::-1], {}
            if len(self._repeating) > len(self._groups):
                self._repeating.clear()  # most of them do not any more
            self._as_made.clear()
            # Series that end now hold on to theirs.
            self._requests = {}
            self._endpoints.clear()
            numbers = list(self._series)
        try:
            for number in numbers:
                with self._lock:
                    series = self._series.pop(number, None)
                    if series is None:
                        continue
                    series.ended = True
                    self._open -= 1
                yield _sum_up(series)
            while unfinished:
                with self._lock:
                    group = self._groups.get(unfinished.pop())
                    if type(group) is not _Group or not group.count:
                        continue
                    self._open -= 1
                    record = self._close_group(group)
                yield record
        finally:
            with self._lock:
                self._opened.update(dict.fromkeys(unfinished))

    def _forget_idle(self) -> None:
        """End the groups that saw nothing for an interval: the next event is a first one again."""
        now = time.time()
        keys = list(self._groups)
        for start in range(0, len(keys), _SLICE):
            if start:  # the application may be waiting for the interpreter
                time.sleep(_BREATH)
            with self._lock:
                for key in keys[start : start + _SLICE]:
                    group = self._groups.get(key, now)
                    if not isinstance(group, _Group):
                        last = group
                    elif not group.count:
                        group.passed, last = 0, group.last
                    else:
                        continue
                    if not 0 <= now - last < self.settings.interval:
                        self._groups.pop(key, None)

    def _close_group(self, group: _Group) -> Record:
        """The record that stands for what was counted, which begins anew. Under the lock."""
        record, count, first, last = group.held, group.count, group.first, group.last
        assert record is not None  # noqa: S101 - the callers have looked
        stale, group.stale = group.stale, True
        group.count = group.passed = 0
        if group.mode != "repeats":  # what they have in common does not say what the next one is
            group.held = None
        if count == 1 and not stale:
            return record
        notes: dict[str, Any] = {
            "guard.rollup": group.mode,
            COUNT: count,
            "guard.first": (begin := _moment(first)),
            "guard.last": begin if last == first else _moment(last),
        }
        event = orjson.loads(record.payload)
        if group.mode == "sample":
            notes["guard.rate"] = round(1 / group.most, 6)
        if group.mode == "source":
            event.update(dict.fromkeys(_OF_A_REQUEST))
            event["reason"] = f"{count} further events of this type from this address"
            event["metadata"] = notes
        else:
            metadata = event.get("metadata")
            if type(metadata) is not dict:
                metadata = {}
            if stale:
                event.update(timestamp=begin, response_time=None)
                metadata = {n: value for n, value in metadata.items() if n not in self._ignored}
            event["metadata"] = {**metadata, **notes}
        # A new one, because an application may send the same event object again and again.
        event["idempotency_key"] = key = str(uuid4())
        return record._replace(id=key, payload=_dumps(event), accepted_at=first)

    def close(self) -> None:
        with self._lock:
            self._closed = True

    @property
    def books(self) -> Aggregated:
        with self._lock:
            return Aggregated(self._events, self._metrics, self._open)

    def describe(self) -> Mapping[str, object]:
        return {
            "groups": len(self._groups),
            "other_endpoints": self._others,
            "without_room": self._full,
        }

    def explain(self) -> Sequence[str]:
        """What is on, in sentences."""
        seconds = f"{self.settings.interval:g} s"
        sentences = []
        if self._meanings:
            sentences.append(
                f"Metrics leave once in {seconds} for each endpoint, method and status "
                f"({', '.join(self._meanings)})."
            )
        if self.settings.repeats:
            sentences.append(
                "Identical events leave as the first at once and the number of the others once in "
                f"{seconds}."
            )
        if self._every:
            shares = ", ".join(f"{name} 1 in {every}" for name, every in self._every.items())
            sentences.append(f"Sampled, with true counts: {shares}.")
        caps = [f"{name} {cap}" for name, cap in self._caps.items() if cap]
        if self._cap_of_others:
            caps.append(f"all others {self._cap_of_others}")
        if caps:
            sentences.append(f"Most of one address in {seconds}, then a count: {', '.join(caps)}.")
        if self._off:
            sentences.append(f"Each for itself: {', '.join(sorted(self._off))}.")
        sentences.append("rollup = false turns this off.")
        return sentences


def _identify_metric(metric_type: str, endpoint: Any, tags: dict[str, Any]) -> int:
    """
    What the values of one series have in common.

    Raises:
        TypeError, ValueError: they are not what metrics have.
    """
    # Only texts: true, 1 and 1.0 have the same hash.
    if _TEXT.issuperset(map(type, tags.values())):
        return hash((metric_type, endpoint, *tags.items()))
    return hash(orjson.dumps((metric_type, endpoint, tags)))


def _sum_up(series: _Series) -> Record:
    """The metric that stands for all values of a series."""
    if series.count == 1:
        return series.held
    metric = orjson.loads(series.held.payload)
    total = max(-_MAX_SUM, min(float(series.total), _MAX_SUM))
    tags = {
        COUNT: str(series.count),
        "guard.sum": _number(total),
        "guard.min": _number(series.least),
        "guard.max": _number(series.most),
        "guard.first": _moment(series.first),
        "guard.last": _moment(series.last),
    }
    value = total if series.meaning == "total" else total / series.count
    requests = series.requests[0]
    if series.meaning == "rate" and requests >= total > 0:
        value = total / requests
        tags["guard.requests"] = _number(requests)
    if series.buckets or series.zero:
        tags["guard.histogram"] = _histogram(series.buckets or {}, series.zero)
    metric["value"] = value
    metric["tags"] = {**(metric.get("tags") or {}), **tags}
    return series.held._replace(payload=_dumps(metric))


def _histogram(buckets: Mapping[int, int], zero: int) -> str:
    low, high = (min(buckets), max(buckets)) if buckets else (0, -1)
    counts = [buckets.get(place, 0) for place in range(low, high + 1)]
    return orjson.dumps({"scale": SCALE, "zero": zero, "offset": low, "counts": counts}).decode()


def _number(value: float) -> str:
    return f"{value:.12g}"


def _moment(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _dumps(fields: dict[str, Any]) -> bytes:
    # A copy: the encoder's own bytes hold on to its work buffer.
    return b"%b" % orjson.dumps(fields)


def _compile(routes: Sequence[str]) -> re.Pattern[str] | None:
    """One pattern for all templates; the name of the group that matched has its number."""
    if not routes:
        return None
    # As they are written: routers take the first that fits.
    parts = []
    for number, route in enumerate(routes):
        pieces = re.split(r"(\{[^{}/]*\})", route)
        pattern = "".join(
            (".+" if piece.endswith(":path}") else "[^/]+")
            if piece[:1] == "{"
            else re.escape(piece)
            for piece in pieces
        )
        parts.append(f"(?P<r{number}>{pattern})")
    return re.compile("|".join(parts))


@hookimpl
def guard_agent_aggregators() -> list[type[Aggregator]]:
    return [Rollup]
