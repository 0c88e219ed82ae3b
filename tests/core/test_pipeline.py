from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections import UserDict
from datetime import datetime, timedelta, timezone, tzinfo
from types import SimpleNamespace
from typing import ClassVar
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard_agent import Enricher, PluginSettings, Priority, Record, SecurityEvent, Stage
from guard_agent.core.intake.pipeline import MAX_RECORD_BYTES, Pipeline
from guard_agent.core.intake.snapshot import MAX_TEXT, NON_FINITE, TRUNCATED
from guard_agent.core.interfaces import DropReason
from guard_agent.testing.records import make_context, make_event, make_metric

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


class Step(Enricher):
    """An enricher made of a function."""

    name = "step"
    stage: ClassVar[Stage] = Stage.SEAL

    def __init__(self, function, stage=Stage.SEAL, *, instance="step", kinds=("event", "metric")):
        super().__init__(PluginSettings(), make_context(instance=instance))
        self.stage = stage  # type: ignore[misc]  # of the class elsewhere
        self._function = function
        self._kinds = kinds

    def bind(self, kind):
        return self._function if kind in self._kinds else None


def raising(error):
    def function(fields):
        raise error

    return function


def decode(record):
    """The payload, read by a parser that accepts nothing beside the standard."""

    def fail(constant):
        raise AssertionError(constant)

    assert isinstance(record, Record), record
    return json.loads(record.payload, parse_constant=fail)


def encode(source, *steps, kind="event"):
    return Pipeline(steps).encode(kind, source)


# --- what comes in --------------------------------------------------------------------------------


def test_an_event_becomes_a_record():
    event = make_event(metadata={"guard.path": "/a"}, shop="extra field")

    record = encode(event)

    assert record.kind == "event"
    assert record.priority is Priority.ATTACK
    assert record.id == str(event.idempotency_key)
    fields = decode(record)
    assert fields["idempotency_key"] == record.id
    assert fields["event_type"] == "penetration_attempt"
    assert fields["metadata"] == {"guard.path": "/a"}
    assert fields["shop"] == "extra field"


def test_a_metric_becomes_a_record_with_a_key_of_its_own():
    record = encode(make_metric(value=0.5, tags={"status": "200"}), kind="metric")

    assert record.kind == "metric"
    assert record.priority is Priority.METRIC
    fields = decode(record)
    assert fields["idempotency_key"] == record.id
    assert (fields["value"], fields["tags"]) == (0.5, {"status": "200"})


def test_ids_are_unique_and_look_like_uuids():
    pipelines = [Pipeline(()), Pipeline(())]
    ids = [
        pipeline.encode("metric", make_metric()).id for pipeline in pipelines for _ in range(500)
    ]

    assert len(set(ids)) == 1_000
    for text in ids:
        assert str(UUID(text)) == text
        assert UUID(text).version == 8


def test_timestamps_are_rfc_3339_in_utc():
    for when in (
        datetime(2026, 5, 4, 3, 2, 1, 123, tzinfo=timezone.utc),
        datetime(2026, 5, 4, 3, 2, 1),  # noqa: DTZ001 - taken as UTC
        datetime(1, 1, 1, tzinfo=timezone.utc),
    ):
        text = decode(encode(make_event(timestamp=when)))["timestamp"]
        assert RFC3339.fullmatch(text), text


def test_a_time_elsewhere_keeps_its_offset():
    there = datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone(timedelta(hours=2)))

    text = decode(encode(make_event(timestamp=there)))["timestamp"]

    assert datetime.fromisoformat(text) == there


def test_a_time_zone_that_raises_costs_only_the_zone():
    """
    Handed to the encoder, it would end the process with a segmentation fault.
    """

    class Broken(tzinfo):
        def utcoffset(self, when):
            raise RuntimeError

    event = make_event()
    event.timestamp = datetime(2026, 5, 4, 3, 2, 1, tzinfo=Broken())

    assert decode(encode(event))["timestamp"] == "2026-05-04T03:02:01Z"


def test_an_object_is_read_by_the_names_of_the_fields():
    source = SimpleNamespace(
        event_type="ip_banned", ip_address="192.0.2.1", status_code="403", unknown="is left"
    )

    fields = decode(encode(source))

    assert (fields["event_type"], fields["ip_address"]) == ("ip_banned", "192.0.2.1")
    assert fields["status_code"] == 403
    assert "unknown" not in fields
    assert RFC3339.fullmatch(fields["timestamp"])


def test_each_attribute_of_an_object_is_asked_for_once():
    asked: list[str] = []

    class Counting:
        def __getattr__(self, name):
            asked.append(name)
            if name == "event_type":
                return "ip_banned"
            raise AttributeError(name)

    assert isinstance(encode(Counting()), Record)
    fields = [name for name in asked if name in SecurityEvent.model_fields]
    assert sorted(fields) == sorted(SecurityEvent.model_fields)


@pytest.mark.parametrize("wrap", [dict, UserDict])
def test_a_mapping_is_read_with_its_extra_fields(wrap):
    fields = decode(encode(wrap({"event_type": "rate_limited", "shop": "x", 5: "no name"})))

    assert (fields["event_type"], fields["shop"]) == ("rate_limited", "x")
    assert "5" not in fields


def test_only_the_fields_that_cannot_be_read_are_lost():
    source = {
        "event_type": "ip_banned",
        "status_code": "not a number",
        "timestamp": "not a time",
        "idempotency_key": "not a key",
        "reason": "kept",
    }

    fields = decode(encode(source))

    assert fields["reason"] == "kept"
    assert fields["status_code"] is None
    assert RFC3339.fullmatch(fields["timestamp"])
    assert UUID(fields["idempotency_key"])


def test_tags_that_are_no_texts_become_texts():
    source = {"metric_type": "request_count", "value": 1, "tags": {"status": 200, "ok": True}}

    assert decode(encode(source, kind="metric"))["tags"] == {"status": "200", "ok": "true"}


def test_d13_an_unknown_type_is_accepted():
    record = encode(make_event(event_type="of_tomorrow"))

    assert decode(record)["event_type"] == "of_tomorrow"
    assert record.priority is Priority.ATTACK


@pytest.mark.parametrize(
    ("event_type", "priority"),
    [
        ("penetration_attempt", Priority.ATTACK),
        ("ip_banned", Priority.CHANGE),
        ("redis_error", Priority.DIAGNOSTIC),
    ],
)
def test_the_type_decides_the_priority(event_type, priority):
    assert encode(make_event(event_type=event_type)).priority is priority


class Exploding:
    def __getattribute__(self, name):
        raise SystemExit(name)


class ExplodingMapping(UserDict):
    def items(self):
        raise RuntimeError


@pytest.mark.parametrize("kind", ["event", "metric"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: 1,
        lambda: "text",
        lambda: b"bytes",
        list,
        dict,
        lambda: {"reason": "no type"},
        lambda: {1: 2},
        object,
        lambda: object,
        lambda: SecurityEvent,
        Exploding,
        lambda: ExplodingMapping(event_type="x", metric_type="x"),
        lambda: SecurityEvent.__new__(SecurityEvent),
        lambda: len,
        lambda: (n for n in range(3)),
    ],
)
def test_what_is_no_record_is_invalid(kind, make):
    assert encode(make(), kind=kind) is DropReason.INVALID


def test_the_wrong_kind_is_invalid():
    assert encode(make_metric()) is DropReason.INVALID
    assert encode(make_event(), kind="metric") is DropReason.INVALID


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_metric_without_a_number_is_invalid(value):
    assert encode(make_metric(value=value), kind="metric") is DropReason.INVALID


def test_a_metric_that_was_given_garbage_later_is_invalid():
    metric = make_metric()
    metric.value = "many"  # type: ignore[assignment]  # what is tried

    assert encode(metric, kind="metric") is DropReason.INVALID


def test_an_event_made_without_validation_gets_a_time_and_a_key():
    record = encode(SecurityEvent.model_construct(event_type="ip_banned"))

    fields = decode(record)
    assert RFC3339.fullmatch(fields["timestamp"])
    assert UUID(fields["idempotency_key"])


@pytest.mark.parametrize("key", ["", "x" * 129, 5, None])
def test_a_key_that_is_none_is_replaced(key):
    event = make_event()
    event.idempotency_key = key

    record = encode(event)

    assert str(UUID(record.id)) == record.id == decode(record)["idempotency_key"]


def test_d09_what_the_caller_changes_later_does_not_matter():
    event = make_event(metadata={"a": [1]})
    record = encode(event)

    event.metadata["a"].append("secret")
    event.reason = "changed"

    assert decode(record)["metadata"] == {"a": [1]}
    assert decode(record)["reason"] == "SQL injection in the query"


def test_the_event_of_the_caller_is_not_changed():
    event = make_event(metadata={"a": {"b": 1}}, shop="x")
    before = event.model_copy(deep=True)

    def changes(fields):
        fields["metadata"]["a"]["b"] = 2
        fields["more"] = 1
        return fields

    assert decode(encode(event, Step(changes)))["metadata"] == {"a": {"b": 2}}
    assert event == before


# --- what goes out --------------------------------------------------------------------------------


def test_d01_nan_and_infinity_become_null_and_are_counted():
    event = make_event(response_time=float("nan"), metadata={"load": float("inf")})

    fields = decode(encode(event))

    assert fields["response_time"] is None
    assert fields["metadata"] == {"load": None, NON_FINITE: 2}


def test_d11_control_characters_are_escaped():
    record = encode(make_event(reason="a\r\nb\x00\x1b[31m\u2028"))

    assert b"\n" not in record.payload
    assert b"\x1b" not in record.payload
    assert decode(record)["reason"] == "a\r\nb\x00\x1b[31m\u2028"


def test_lone_surrogates_are_spelled_out():
    event = make_event()
    event.reason = "path \udcff"
    event.metadata = {"\ud800": "x"}

    fields = decode(encode(event))

    assert fields["reason"] == "path \\udcff"
    assert fields["metadata"] == {"\\ud800": "x"}


def test_a_payload_holds_no_more_memory_than_its_length():
    """
    The encoder's own bytes can hold on to 4 KiB each; ten thousand wait in the ring.
    """
    record = encode(make_event())

    assert sys.getsizeof(record.payload) == sys.getsizeof(b"") + len(record.payload)


def test_d04_a_large_record_is_cut_to_what_identifies_it():
    event = make_event(
        reason="r" * 1_000, metadata={str(n): "\u2028" * 500 for n in range(60)}, shop=["\u2028"]
    )

    record = encode(event)

    assert len(record.payload) <= MAX_RECORD_BYTES
    fields = decode(record)
    assert fields["event_type"] == "penetration_attempt"
    assert fields["ip_address"] == "203.0.113.7"
    assert fields["idempotency_key"] == record.id
    assert fields["reason"] == "r" * 256 + TRUNCATED
    assert fields["metadata"] == {"guard.truncated": ["reason", "metadata", "shop"]}


def test_a_large_metric_is_cut_in_its_tags():
    tags = {str(n): "\u2028" * 500 for n in range(60)}

    fields = decode(encode(make_metric(tags=tags), kind="metric"))

    assert fields["tags"] == {"guard.truncated": "tags"}
    assert fields["value"] == 0.012


def test_d13_a_hundred_thousand_tags_are_accepted_within_the_bounds():
    record = encode(make_metric(tags={str(n): "x" for n in range(100_000)}), kind="metric")

    assert len(record.payload) <= MAX_RECORD_BYTES
    assert TRUNCATED.encode() in record.payload


def test_d13_extra_fields_cannot_push_out_the_known_ones():
    fields = decode(encode(make_event(**{f"extra{n}": n for n in range(10_000)})))

    assert fields["event_type"] == "penetration_attempt"
    assert fields["ip_address"] == "203.0.113.7"
    assert fields["idempotency_key"]
    assert TRUNCATED in fields


def test_what_cannot_be_cut_is_too_large():
    event = make_event(**{"\u2028" * (MAX_TEXT // 2): 1})

    assert encode(event) is DropReason.TOO_LARGE


# --- enrichers ------------------------------------------------------------------------------------


def test_enrichers_run_in_their_order():
    def adding(letter):
        def function(fields):
            fields["order"] = fields.get("order", "") + letter
            return fields

        return function

    steps = [
        Step(adding("d"), Stage.DERIVE),
        Step(adding("r"), Stage.REDACT),
        Step(adding("s"), Stage.SEAL),
    ]

    assert decode(encode(make_event(), *steps))["order"] == "drs"


def test_an_enricher_may_return_a_new_dict():
    fields = decode(encode(make_event(), Step(lambda fields: {"event_type": "x"})))

    assert set(fields) == {"event_type", "idempotency_key"}


def test_none_drops_the_record():
    assert encode(make_event(), Step(lambda fields: None)) is DropReason.FILTERED


def test_an_enricher_that_is_not_bound_to_a_kind_is_not_called():
    step = Step(raising(RuntimeError()), kinds=("event",))

    assert encode(make_event(), step) is DropReason.ENRICHER_FAILED
    assert isinstance(encode(make_metric(), step, kind="metric"), Record)


def test_no_enricher_parts_a_record_from_its_key():
    def meddles(fields):
        fields["idempotency_key"] = "other"
        return fields

    def forgets(fields):
        del fields["idempotency_key"]
        return fields

    for step in (Step(meddles), Step(forgets)):
        record = encode(make_event(), step)
        assert decode(record)["idempotency_key"] == record.id


def recursing(fields):
    return recursing(fields)


@pytest.mark.parametrize(
    "function",
    [
        raising(ValueError("x")),
        raising(SystemExit()),
        recursing,
        lambda fields: 5,
        lambda fields: [fields],
        UserDict,
        lambda fields: fields["missing"],
    ],
)
@pytest.mark.parametrize("stage", [Stage.REDACT, Stage.SEAL])
def test_p11_d10_behind_derive_a_failure_drops_the_record(function, stage, caplog):
    """
    Fail closed: what was not redacted whole does not leave.
    """
    pipeline = Pipeline([Step(function, stage)])

    for _ in range(20):
        assert pipeline.encode("event", make_event()) is DropReason.ENRICHER_FAILED
    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info


@pytest.mark.parametrize(
    "function", [raising(ValueError("x")), raising(SystemExit()), recursing, lambda fields: 5]
)
def test_p11_a_deriving_enricher_that_fails_is_left_out_and_disabled_after_five(function, caplog):
    calls = []

    def counted(fields):
        calls.append(1)
        return function(fields)

    pipeline = Pipeline([Step(counted, Stage.DERIVE, instance="geo")])

    for _ in range(20):
        assert isinstance(pipeline.encode("event", make_event()), Record)
    assert len(calls) == 5
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.ERROR]
    assert "geo" in caplog.text
    assert "disabled" in caplog.records[1].message


def test_p11_a_deriving_enricher_that_is_slow_is_disabled_after_five(caplog):
    """Nothing can cut it off in the thread of the application, but it need not be called again."""
    calls = []

    def dawdle(fields):
        calls.append(1)
        time.sleep(0.005)
        return {**fields, "seen": True}

    pipeline = Pipeline([Step(dawdle, Stage.DERIVE, instance="geo")], slow=0.001)

    seen = [decode(pipeline.encode("event", make_event())).get("seen") for _ in range(20)]

    assert seen == [True] * 5 + [None] * 15
    assert len(calls) == 5
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.ERROR]
    assert "'geo' took longer than 0.001 s" in caplog.messages[0]
    assert "disabled" in caplog.messages[1]


def test_p11_a_redactor_that_is_slow_is_never_left_out():
    calls = []

    def dawdle(fields):
        calls.append(1)
        time.sleep(0.005)
        return fields

    pipeline = Pipeline([Step(dawdle, Stage.REDACT)], slow=0.001)

    assert all(isinstance(pipeline.encode("event", make_event()), Record) for _ in range(8))
    assert len(calls) == 8


def test_a_failure_of_one_kind_does_not_disable_the_other():
    def fails_for_events(fields):
        if "event_type" in fields:
            raise ValueError
        return {**fields, "seen": True}

    pipeline = Pipeline([Step(fails_for_events, Stage.DERIVE)])
    for _ in range(10):
        pipeline.encode("event", make_event())

    assert decode(pipeline.encode("metric", make_metric()))["seen"] is True


def test_a_redactor_sees_as_text_what_an_enricher_added_as_an_object():
    """
    An object would pass the redactor unseen and become text when it is encoded.
    """

    def adds(fields):
        fields["error"] = ValueError("Bearer abc")
        fields["raw"] = [b"Bearer abc"]
        fields["nan"] = float("nan")
        return fields

    seen = {}

    def redacts(fields):
        seen.update(fields)
        return fields

    assert isinstance(
        encode(make_event(), Step(adds, Stage.DERIVE), Step(redacts, Stage.REDACT)), Record
    )
    assert seen["error"] == "ValueError: Bearer abc"
    assert seen["raw"] == ["Bearer abc"]
    assert seen["nan"] is None


@pytest.mark.parametrize(
    "value",
    [
        ValueError("secret"),
        b"secret",
        {"in": {b"k": b"secret"}},
        object(),
        {1, 2},
        10**30,
        "\ud800",
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_left_behind_redaction_never_becomes_text(value):
    def leaves(fields):
        fields["left"] = value
        return fields

    record = encode(make_event(), Step(leaves, Stage.SEAL))

    assert "left" in decode(record)
    assert b"secret" not in record.payload


def test_fields_that_form_a_cycle_are_cut():
    def loops(fields):
        fields["self"] = fields
        return fields

    assert TRUNCATED.encode() in encode(make_event(), Step(loops)).payload


def test_keys_that_are_no_texts_are_made_texts():
    class Name(str):
        __slots__ = ()

    def adds(fields):
        fields[5] = "five"
        fields[Name("name")] = "n"
        return fields

    fields = decode(encode(make_event(), Step(adds)))

    assert (fields["5"], fields["name"]) == ("five", "n")


# --- anything -------------------------------------------------------------------------------------

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.datetimes(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*SecurityEvent.model_fields, "value", "tags", "other"]), JUNK)
)
def test_any_mapping_becomes_a_strict_record_or_a_reason(source):
    for kind, name in (("event", "event_type"), ("metric", "metric_type")):
        for given_ in (source, {**source, name: "t", "value": 1}):
            result = encode(given_, kind=kind)
            if isinstance(result, Record):
                assert decode(result)["idempotency_key"] == result.id
            else:
                assert result is DropReason.INVALID
