"""The quick way through the enrichers gives what the long way gives, or nothing."""

from __future__ import annotations

import enum
import math
import threading
from datetime import datetime, timedelta, timezone, tzinfo
from typing import ClassVar
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard_agent import Enricher, PluginSettings, SecurityEvent, SecurityMetric, Stage, TextRules
from guard_agent.core.intake.glance import MAX_NAMES, MAX_NESTED, MAX_TEXT, MAX_UNKNOWN, Glance
from guard_agent.core.intake.pipeline import Pipeline
from guard_agent.core.interfaces import DropReason
from guard_agent.core.reentry import mark
from guard_agent.plugins.truncate import TruncateEnricher
from guard_agent.testing.corpus import SECRET, secret_records
from guard_agent.testing.records import make_context, make_event, make_metric
from guard_agent_redaction import RedactionEnricher

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=timezone.utc)
KEY = UUID("7f3b2db9-1510-4e0e-ba2a-fa9b04ae2f5a")


def enrichers():
    redaction = RedactionEnricher(RedactionEnricher.Settings(), make_context())
    truncate = TruncateEnricher(TruncateEnricher.Settings(max_length=120), make_context())
    return [redaction, truncate]


class Told(Enricher):
    """An enricher whose rules can be watched."""

    name = "told"
    stage: ClassVar[Stage] = Stage.REDACT

    def __init__(self, rules):
        super().__init__(PluginSettings(), make_context())
        self.rules = rules
        self.called = 0

    def bind(self, kind):
        def function(fields):
            self.called += 1
            return fields

        return function

    def text_rules(self, kind):
        return self.rules


class LongWay(Told):
    """Gives nothing away, so that its pipeline goes the long way."""

    def __init__(self):
        super().__init__(None)


def everything_passes():
    return TextRules(lambda _: {}, lambda _: True)


def glance(kind="event"):
    rules = [one.text_rules(kind) for one in enrichers()]
    return Glance(kind, rules)


def same_either_way(source, kind="event"):
    """The payload of the pipeline, when it is the same with and without the quick way."""
    quick = Pipeline(enrichers()).take(kind, source)
    again = Pipeline([*enrichers(), LongWay()]).take(kind, source)
    assert type(quick) is type(again)
    payloads = [one.payload.replace(one.id.encode(), b"") for one in (quick, again)]
    assert payloads[0] == payloads[1]
    assert (quick.kind, quick.priority) == (again.kind, again.priority)
    return payloads[0]


# --- what passes at a glance --------------------------------------------------------------------


def test_an_ordinary_event_passes_with_its_secret_headers_replaced():
    event = make_event(
        status_code=403,
        response_time=0.25,
        metadata={
            "headers": {"host": "shop.example.com", "authorization": "Bearer abc", "cookie": ""},
            "count": 3,
            "flag": True,
            "nothing": None,
        },
    )

    fields = glance().copy(event.__dict__)

    assert fields["metadata"] == {
        "headers": {"host": "shop.example.com", "authorization": "[REDACTED]", "cookie": ""},
        "count": 3,
        "flag": True,
        "nothing": None,
    }
    assert event.metadata["headers"]["authorization"] == "Bearer abc"
    assert {**fields, "metadata": None} == {**event.__dict__, "metadata": None}
    same_either_way(event)


def test_an_ordinary_metric_passes():
    metric = make_metric(tags={"method": "GET", "api_key": "abcdefgh"})

    assert glance("metric").copy(metric.__dict__)["tags"] == {
        "method": "GET",
        "api_key": "[REDACTED]",
    }
    same_either_way(metric, "metric")


def test_what_is_changed_later_does_not_matter():
    event = make_event(metadata={"headers": {"host": "a.example"}})
    fields = glance().copy(event.__dict__)
    event.metadata["headers"]["host"] = "b.example"
    event.metadata["more"] = 1
    event.reason = "other"

    assert fields["metadata"] == {"headers": {"host": "a.example"}}
    assert fields["reason"] != "other"


def test_no_enricher_is_called_for_what_passes():
    told = Told(everything_passes())
    pipeline = Pipeline([told])

    pipeline.take("event", make_event())
    assert told.called == 0

    pipeline.take("event", make_event(metadata={"list": [1]}))
    assert told.called == 1


def test_mixed_values_pass_wherever_they_stand():
    values = {"number": 1, "text": "behind a number", "rate": 0.5, "more": "and more"}
    event = make_event(metadata={**values, "inner": dict(values)})

    assert glance().copy(event.__dict__)["metadata"] == event.metadata
    same_either_way(event)


def test_what_is_just_within_the_bounds_passes():
    event = make_event(
        status_code=10**12 - 1,
        response_time=-(10.0**12) + 1,
        reason="r " * (MAX_TEXT // 2),
        metadata={str(number): {"name": "short"} for number in range(MAX_NESTED)},
    )

    # Longer than 120 characters, which only the truncation minds.
    found = Glance("event", [enrichers()[0].text_rules("event")])
    assert found.copy(event.__dict__) == event.__dict__


@pytest.mark.parametrize(
    "metadata",
    [
        {str(number): {} for number in range(MAX_NESTED + 1)},
        {"one": {str(number): {} for number in range(MAX_NESTED)}},
        {str(number): f"text {number}" for number in range(MAX_UNKNOWN)},
        {**{str(number): f"text {number}" for number in range(40)}, "x": "token=hunter2hunter2"},
    ],
    ids=["objects", "levels", "texts", "texts with a secret"],
)
def test_what_is_just_beyond_the_bounds_goes_the_long_way(metadata):
    event = make_event(reason="not seen before", metadata=metadata)

    assert glance().copy(event.__dict__) is None
    assert b"hunter2" not in same_either_way(event)


@pytest.mark.parametrize("response_time", [-(10.0**12), 10.0**12, math.nan, math.inf, -math.inf])
def test_a_number_at_a_bound_goes_the_long_way(response_time):
    event = make_event()
    event.__dict__["response_time"] = response_time

    assert glance().copy(event.__dict__) is None


def test_texts_and_names_are_judged_once():
    texts, names = [], []
    rules = TextRules(lambda keys: names.append(keys) or {}, lambda asked: not texts.extend(asked))
    pipeline = Pipeline([Told(rules)])
    event = make_event(reason="the very same", metadata={"some": "thing"})

    for _ in range(3):
        pipeline.take("event", event)

    assert texts.count("the very same") == texts.count("thing") == 1
    assert names.count(("some",)) == 1


# --- what does not ------------------------------------------------------------------------------


class Colour(str, enum.Enum):
    RED = "red"


class Text(str):
    """A text that cannot be hashed without harm."""

    __slots__ = ()

    def __hash__(self):
        raise AssertionError


class Trap:
    def __hash__(self):
        raise AssertionError

    def __eq__(self, other):
        raise AssertionError


class Zone(tzinfo):
    def utcoffset(self, moment):
        raise OSError

    dst = tzname = utcoffset


UNUSUAL = [
    [1],
    (1,),
    {1},
    math.nan,
    math.inf,
    -math.inf,
    10**12,
    4111111111111111,
    -(10**12),
    2**70,
    1e13,
    Colour.RED,
    Text("x"),
    Trap(),
    KEY,
    MOMENT,
    datetime(2026, 1, 1, tzinfo=Zone()),
    b"bytes",
    "x" * (MAX_TEXT + 1),
    {"a": {"b": {}}},
    {str(number): "" for number in range(MAX_NAMES + 1)},
    {1: "a name that is no text"},
    {"n" * (MAX_TEXT + 1): ""},
    {"x": Trap()},
    {"name": "Cookie", "value": "a=b"},
    {"password": 12345678},
    {"password": ["hunter2"]},
    {"my password=hunter2": "a name with a secret"},
]


@pytest.mark.parametrize("value", UNUSUAL, ids=lambda value: type(value).__name__)
def test_anything_unusual_in_the_metadata_goes_the_long_way(value):
    for metadata in ({"deep": {"value of it": value}}, {"value of it": value}):
        event = make_event(metadata=metadata)

        assert glance().copy(event.__dict__) is None
        assert b"hunter2" not in same_either_way(event)


@pytest.mark.parametrize(
    "changed",
    [
        *[{"reason": value} for value in UNUSUAL if value is not None],
        *[{"status_code": value} for value in UNUSUAL],
        *[{"response_time": value} for value in UNUSUAL],
        {"timestamp": None},
        {"timestamp": "2026-01-01"},
        {"timestamp": datetime(2026, 1, 1, tzinfo=Zone())},
        {"event_type": None},
        {"idempotency_key": None},
        {"idempotency_key": "mine"},
        {"idempotency_key": 5},
        {"metadata": None},
        {"metadata": []},
    ],
    ids=lambda changed: " ".join(
        f"{name} {type(value).__name__}" for name, value in changed.items()
    ),
)
def test_an_event_that_was_changed_after_it_was_made_goes_the_long_way(changed):
    event = make_event()
    for name, value in changed.items():
        event.__dict__[name] = value

    assert glance().copy(event.__dict__) is None
    Pipeline(enrichers()).take("event", event)


@pytest.mark.parametrize(
    "moment",
    [None, "2026-01-01", datetime(2026, 1, 1, tzinfo=Zone())],
    ids=["none", "text", "zone"],
)
def test_a_metric_at_an_odd_time_goes_the_long_way(moment):
    metric = make_metric()
    metric.__dict__["timestamp"] = moment

    assert glance("metric").copy(metric.__dict__) is None


@pytest.mark.parametrize("value", [None, True, math.nan, 10**12, "1", 2**70, Trap()])
def test_a_metric_with_an_odd_value_goes_the_long_way(value):
    metric = make_metric()
    metric.__dict__["value"] = value

    assert glance("metric").copy(metric.__dict__) is None


class Key(str):
    """A name that fails when it is compared."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other):
        raise RuntimeError


def test_names_that_cannot_be_compared_cost_no_more_than_their_event():
    pipeline = Pipeline(enrichers())
    pipeline.take("event", make_event(metadata={"deep": {"a": "b"}}))

    taken = pipeline.take("event", make_event(metadata={"deep": {Key("a"): "b"}}))

    assert taken is DropReason.ENRICHER_FAILED


def test_an_event_that_was_never_made_is_no_event():
    assert Pipeline(enrichers()).take("event", object.__new__(SecurityEvent)) is DropReason.INVALID


def test_an_event_without_a_field_goes_the_long_way():
    event = make_event()
    del event.__dict__["reason"]

    assert glance().copy(event.__dict__) is None


@pytest.mark.parametrize(
    "text", ["Bearer abcdef0123456789", "password=hunter2", "caf\u00e9 \ud800"]
)
def test_a_text_that_is_not_kept_sends_the_whole_event_the_long_way(text):
    event = make_event(reason="ok", metadata={"headers": {"x-note": text}})

    same_either_way(event)


def test_every_known_secret_is_gone_either_way():
    for fields in secret_records():
        event = SecurityEvent.model_validate(fields)

        assert SECRET.encode() not in same_either_way(event)


def test_no_secret_is_remembered():
    found = glance()
    for fields in secret_records():
        found.copy(SecurityEvent.model_validate(fields).__dict__)

    kept = "\n".join(found._known) + "\n".join(map(str, found._replaced))
    assert SECRET not in kept


def test_what_is_remembered_is_bounded():
    found = glance()
    for number in range(6_000):
        found.copy(
            make_event(
                reason=f"reason {number}", metadata={f"name {number}": f"text {number}"}
            ).__dict__
        )

    assert len(found._known) <= 2_024
    assert len(found._replaced) <= 1_024


TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["Bearer abcdef0123456789", "GET", "a=b; c=d", "4111 1111 1111 1111", "\ud800", "x" * 200]
    ),
)
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.datetimes(), st.uuids()
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.text(max_size=8), st.sampled_from(["cookie", "name", "value", "host"])),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    metadata=st.dictionaries(
        st.one_of(st.text(max_size=8), st.sampled_from(["headers", "token", "x"])),
        VALUES,
        max_size=5,
    ),
    reason=TEXTS,
    status_code=st.one_of(st.none(), st.integers()),
    response_time=st.one_of(st.none(), st.floats()),
)
def test_both_ways_give_the_same(metadata, reason, status_code, response_time):
    event = SecurityEvent(
        idempotency_key=KEY,
        timestamp=MOMENT,
        event_type="suspicious_request",
        reason=reason,
        status_code=status_code,
        response_time=response_time,
        metadata=metadata,
    )

    same_either_way(event)


@settings(max_examples=100, deadline=None)
@given(value=st.floats(allow_nan=False, allow_infinity=False), tags=st.dictionaries(TEXTS, TEXTS))
def test_both_ways_give_the_same_for_metrics(value, tags):
    metric = SecurityMetric(timestamp=MOMENT, metric_type="response_time", value=value, tags=tags)

    same_either_way(metric, "metric")


# --- rules of plugins -----------------------------------------------------------------------------


def raising(*_):
    msg = "a defect"
    raise RuntimeError(msg)


@pytest.mark.parametrize(
    "rules",
    [TextRules(raising, lambda _: True), TextRules(lambda _: {}, raising)],
    ids=["replaced", "keeps"],
)
def test_rules_that_raise_send_everything_the_long_way(rules):
    told = Told(rules)
    pipeline = Pipeline([told])

    record = pipeline.take("event", make_event(metadata={"a": "b"}))

    assert told.called == 1
    assert b'"a":"b"' in record.payload


def test_what_rules_record_themselves_is_not_taken():
    inside = mark()
    seen = []
    rules = TextRules(
        lambda _: seen.append(inside.agent) or {}, lambda _: seen.append(inside.agent) or True
    )
    pipeline = Pipeline([Told(rules)], inside=inside)
    seen.clear()  # who builds one says that it is the agent's work
    pipeline.take("event", make_event(metadata={"a": "b"}))

    assert set(seen) == {True}
    assert inside.agent is False


def test_a_marker_that_a_later_enricher_would_change_goes_the_long_way():
    first = Told(
        TextRules(lambda names: {"a": "MARK"} if "a" in names else {}, lambda _: True),
    )
    second = Told(TextRules(lambda _: {}, lambda texts: "MARK" not in texts))
    Pipeline([first, second]).take("event", make_event(metadata={"a": "b"}))

    assert (first.called, second.called) == (1, 1)


def test_many_threads_may_look_at_a_time():
    found = glance()
    wrong = []

    def look(number):
        for turn in range(400):
            event = make_event(
                reason=f"reason {turn} {number}", metadata={"headers": {"cookie": f"a={turn}"}}
            )
            fields = found.copy(event.__dict__)
            if fields is None or fields["metadata"] != {"headers": {"cookie": "[REDACTED]"}}:
                wrong.append(fields)

    threads = [threading.Thread(target=look, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert wrong == []


def test_a_moment_in_another_zone_is_kept():
    zone = timezone(timedelta(hours=5, minutes=30))

    same_either_way(make_event(timestamp=MOMENT.astimezone(zone)))
