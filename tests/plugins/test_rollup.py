from __future__ import annotations

import json
import math
import threading
from datetime import datetime, timezone
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from guard_agent import (
    Aggregated,
    Enricher,
    PluginSettings,
    Record,
    SecurityEvent,
    SecurityMetric,
    Stage,
)
from guard_agent.core.intake.pipeline import Pipeline
from guard_agent.core.interfaces import DropReason
from guard_agent.plugins import rollup
from guard_agent.plugins.rollup import Rollup, RollupSettings
from guard_agent.testing.records import make_context, make_event, make_metric
from guard_agent_redaction import RedactionEnricher

NOISE = "pattern_anomaly_statistical_anomaly"


class Intake:
    """A pipeline with the aggregator in front: what leaves at once, and what `collect` brings."""

    def __init__(self, *enrichers, **settings) -> None:
        settings.setdefault("interval", 3600)
        self.rollup = Rollup(RollupSettings(**settings), make_context())
        self.pipeline = Pipeline(enrichers, self.rollup)
        self.returned = 0

    def event(self, **fields):
        return self.take("event", make_event(**fields))

    def metric(self, **fields):
        return self.take("metric", make_metric(**fields))

    def take(self, kind, source):
        record = self.pipeline.take(kind, source)
        if isinstance(record, Record):
            self.returned += 1
            return json.loads(record.payload)
        return record

    def collect(self):
        return [json.loads(record.payload) for record in self.rollup.collect()]


def test_the_hook_offers_the_aggregator_under_its_name():
    assert rollup.guard_agent_aggregators() == [Rollup]
    assert Rollup.name == "rollup"


def count_of(record):
    place = record.get("metadata") if "event_type" in record else record["tags"]
    return int(place.get("guard.count", 1))


# --- repeats --------------------------------------------------------------------------------------


def test_the_first_of_identical_events_leaves_at_once_and_the_others_as_a_count():
    intake = Intake()

    first = intake.event(reason="injection")
    others = [intake.event(reason="injection") for _ in range(60)]

    assert first["reason"] == "injection"
    assert "guard.count" not in first["metadata"]
    assert others == [None] * 60
    [summary] = intake.collect()
    notes = summary.pop("metadata")
    assert notes.pop("guard.first") <= notes.pop("guard.last")
    assert notes == {"guard.rollup": "repeats", "guard.count": 60}
    assert summary["idempotency_key"] != first["idempotency_key"]
    for record in (first, summary):
        del record["idempotency_key"], record["timestamp"]
    assert summary.items() <= first.items()


def test_what_goes_on_leaves_once_in_an_interval():
    intake = Intake()
    intake.event()
    counts = []
    for _ in range(3):
        for _ in range(5):
            assert intake.event() is None
        counts += [count_of(summary) for summary in intake.collect()]

    assert counts == [5, 5, 5]
    assert intake.collect() == []


def test_what_goes_on_brings_its_own_time_and_nothing_else_that_differs():
    intake = Intake(ignore=["session"])
    for number in range(3):
        intake.event(response_time=0.25, metadata={"session": number, "path": "/login"})
    [before] = intake.collect()
    assert before["response_time"] == 0.25
    assert before["metadata"]["session"] == 1

    begun = datetime.now(timezone.utc).replace(microsecond=0)
    intake.event(response_time=0.5, metadata={"session": 3, "path": "/login"})
    [record] = intake.rollup.collect()
    after = json.loads(record.payload)

    assert after["idempotency_key"] == record.id != before["idempotency_key"]
    assert after["timestamp"] == after["metadata"]["guard.first"] == after["metadata"]["guard.last"]
    assert SecurityEvent.model_validate(after).timestamp >= begun
    assert record.accepted_at >= begun.timestamp()
    assert after["response_time"] is None
    assert after["metadata"]["path"] == "/login"
    assert "session" not in after["metadata"]
    assert count_of(after) == 1


def test_a_value_behind_the_end_of_its_series_begins_another():
    intake = Intake()
    for _ in range(3):
        assert intake.metric(endpoint="/", tags={"method": "GET"}) is None
    assert [count_of(metric) for metric in intake.collect()] == [3]

    for _ in range(2):
        assert intake.metric(endpoint="/", tags={"method": "GET"}) is None
    assert [count_of(metric) for metric in intake.collect()] == [2]
    assert intake.rollup.books == Aggregated(events=0, metrics=5, open=0)


def test_a_single_repeat_leaves_as_it_was():
    intake = Intake()
    intake.event(metadata={"n": 1})
    again = make_event(metadata={"n": 1})
    assert intake.take("event", again) is None

    [record] = intake.collect()
    assert record["idempotency_key"] == str(again.idempotency_key)
    assert record["metadata"] == {"n": 1}


def test_after_an_interval_without_any_the_next_one_is_a_first_one_again(monkeypatch):
    intake = Intake(interval=0.05)
    intake.event()
    assert intake.event() is None
    intake.collect()

    gone = threading.Event()
    for _ in range(200):
        intake.collect()
        if not intake.rollup.describe()["groups"]:
            break
        gone.wait(0.05)
    assert intake.event() is not None


@pytest.mark.parametrize(
    "other",
    [
        {"event_type": "ip_blocked"},
        {"ip_address": "203.0.113.8"},
        {"endpoint": "/other"},
        {"method": "POST"},
        {"status_code": 403},
        {"user_agent": "curl"},
        {"country": "DE"},
        {"action_taken": "logged_only"},
        {"reason": "another"},
        {"rule_type": "x"},
        {"decorator_type": "x"},
        {"handler_name": "x"},
        {"pattern_matched": "x"},
        {"metadata": {"user": "eve"}},
        {"metadata": {"user": 2}},
        {"metadata": {"list": [1, {"deep": "x"}]}},
        {"tenant": "an extra field"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_nothing_that_differs_is_merged(other):
    intake = Intake()

    assert intake.event() is not None
    assert intake.event(**other) is not None
    assert intake.collect() == []


def test_numbers_that_python_hashes_alike_differ():
    intake = Intake()

    assert intake.event(metadata={"n": -1}) is not None
    assert intake.event(metadata={"n": -2}) is not None
    assert intake.event(metadata={"n": True}) is not None
    assert intake.event(metadata={"n": 1}) is not None


def test_what_differs_in_every_request_does_not_count_as_a_difference():
    intake = Intake(ignore=["nonce"])
    for number in range(3):
        intake.event(
            response_time=0.1 * number,
            metadata={"request_count": number, "correlation_id": str(number), "nonce": number},
        )

    assert [count_of(summary) for summary in intake.collect()] == [2]


def test_how_often_a_limit_was_exceeded_is_no_difference():
    """The guard writes it into the reason of each."""
    intake = Intake()
    for number in range(11, 15):
        intake.event(
            event_type="rate_limited",
            reason=f"Rate limit exceeded: {number} requests in 60s window",
            metadata={"request_count": number, "rate_limit": 10, "window": 60},
        )

    assert [count_of(summary) for summary in intake.collect()] == [3]


def test_an_enricher_that_drops_a_record_drops_its_repeats_too():
    class Filter(Enricher):
        name = "filter"
        stage = Stage.DERIVE

        def bind(self, kind):
            return lambda fields: None

    intake = Intake(Filter(PluginSettings(), make_context()))
    assert [intake.event() for _ in range(3)] == [DropReason.FILTERED] * 3
    assert intake.collect() == []
    assert intake.rollup.books == Aggregated()


def test_events_with_a_lone_surrogate_leave_and_are_merged_like_others():
    intake = Intake()

    assert [intake.event(reason="\ud800") is not None for _ in range(3)] == [True, False, False]
    assert intake.event(reason="\udfff") is not None
    assert [event["metadata"]["guard.count"] for event in intake.collect()] == [2]


def test_repeats_can_be_off_and_types_left_alone():
    assert all(Intake(repeats=False).event() for _ in range(3))
    intake = Intake(off=["penetration_attempt", NOISE])
    assert all(intake.event() for _ in range(3))
    assert all(intake.event(event_type=NOISE) for _ in range(3))


def test_when_there_is_no_room_for_another_group_events_leave_as_they_are():
    intake = Intake(max_groups=2)
    for _ in range(3):
        for number in range(4):
            intake.event(endpoint=f"/{number}")

    assert intake.returned == 4 + 2 * 2
    assert [count_of(summary) for summary in intake.collect()] == [2, 2]
    assert intake.rollup.describe()["without_room"] == 6


# --- samples --------------------------------------------------------------------------------------


def test_noise_is_sampled_with_its_true_count():
    intake = Intake()
    left = [
        record
        for number in range(250)
        if (record := intake.event(event_type=NOISE, reason=f"{number}"))
    ]
    rest = intake.collect()

    assert [count_of(record) for record in [*left, *rest]] == [1, 100, 100, 49]
    assert left[1]["metadata"]["guard.rollup"] == "sample"
    assert left[1]["metadata"]["guard.rate"] == 0.01
    assert left[1]["reason"] == "1"


def test_a_foreign_object_is_sampled_too():
    """The detection engine makes a class for each of its events."""
    intake = Intake()
    for number in range(10):
        fields = {"event_type": NOISE, "ip_address": "system", "reason": f"{number}"}
        intake.take("event", type("SecurityEvent", (), fields)())

    assert [count_of(record) for record in intake.collect()] == [9]


class Calls(Enricher):
    """Counts the records that it is given."""

    name = "calls"
    stage = Stage.DERIVE
    count = 0

    def bind(self, kind):
        def note(fields):
            self.count += 1
            return fields

        return note


def test_what_a_sample_leaves_out_is_not_even_read():
    calls = Calls(PluginSettings(), make_context())
    intake = Intake(calls)
    for number in range(50):
        intake.event(event_type=NOISE, reason=f"{number}", metadata={"number": object()})

    assert calls.count == 2
    assert intake.rollup.books == Aggregated(49, 0, 1)


def test_a_count_from_elsewhere_passes_a_sample():
    intake = Intake()
    for _ in range(3):
        intake.event(event_type=NOISE)

    assert count_of(intake.event(event_type=NOISE, metadata={"guard.count": 7})) == 7
    assert [count_of(record) for record in intake.collect()] == [2]


def test_nothing_is_counted_at_first_sight_behind_the_end():
    intake = Intake()
    for _ in range(3):
        intake.event(event_type=NOISE)
    intake.rollup.close()

    assert count_of(intake.event(event_type=NOISE)) == 1
    assert [count_of(record) for record in intake.collect()] == [2]


def test_what_no_model_should_hold_comes_to_the_other_function():
    intake = Intake()
    for _ in range(3):
        intake.event(event_type=NOISE)
    event = make_event(event_type=NOISE)
    del event.metadata

    assert intake.take("event", event) in (None, DropReason.INVALID)
    assert sum(map(count_of, intake.collect())) in (2, 3)


def test_the_share_can_be_chosen_by_type():
    intake = Intake(sample={"penetration_attempt": 0.5, NOISE: 1})
    attacks = [intake.event(reason=f"{number}") for number in range(5)]
    noise = [intake.event(event_type=NOISE, reason=f"{number}") for number in range(5)]

    assert [record and count_of(record) for record in attacks] == [1, None, 2, None, 2]
    assert all(noise)


def test_nothing_about_an_attacker_is_sampled_or_capped_by_default():
    intake = Intake()
    for event_type in ("penetration_attempt", "rate_limited", "ip_blocked", "never_seen_before"):
        assert all(
            intake.event(event_type=event_type, endpoint=f"/{number}") for number in range(300)
        )


# --- one address ----------------------------------------------------------------------------------


def test_one_address_that_floods_becomes_a_count():
    intake = Intake(per_source={"penetration_attempt": 3})
    for address in ("203.0.113.1", "203.0.113.2"):
        for number in range(10):
            intake.event(ip_address=address, endpoint=f"/{number}")

    assert intake.returned == 6
    summaries = intake.collect()
    assert [(s["ip_address"], count_of(s)) for s in summaries] == [
        ("203.0.113.1", 7),
        ("203.0.113.2", 7),
    ]
    for summary in summaries:
        assert summary["event_type"] == "penetration_attempt"
        assert summary["metadata"]["guard.rollup"] == "source"
        assert summary["endpoint"] is None
        assert summary["reason"] == "7 further events of this type from this address"


def test_the_cap_begins_anew_with_each_interval():
    intake = Intake(per_source={"*": 2})
    for start in (0, 10):
        for number in range(5):
            intake.event(endpoint=f"/{start + number}")
        assert [count_of(summary) for summary in intake.collect()] == [3]

    assert intake.returned == 4


# --- metrics --------------------------------------------------------------------------------------


def tags(**changed):
    return {"endpoint": "/items", "method": "GET", "status": "200", **changed}


def test_metrics_become_one_value_for_each_set_of_tags():
    intake = Intake()
    for value in (0.5, 1.5, 4.0):
        assert intake.metric(endpoint=None, value=value, tags=tags()) is None
    intake.metric(endpoint=None, value=9.0, tags=tags(status="404"))
    intake.metric(endpoint=None, value=9.0, tags=tags(method="POST"))
    intake.metric(metric_type="bandwidth_usage", endpoint=None, value=9.0, tags=tags())

    metrics = intake.collect()
    assert [count_of(metric) for metric in metrics] == [3, 1, 1, 1]
    notes = metrics[0]["tags"]
    assert metrics[0]["value"] == 2.0
    assert {name: notes[name] for name in ("guard.sum", "guard.min", "guard.max")} == {
        "guard.sum": "6",
        "guard.min": "0.5",
        "guard.max": "4",
    }
    assert all(type(value) is str for value in notes.values())
    assert notes["guard.first"] <= notes["guard.last"]
    assert metrics[1]["tags"] == tags(status="404")
    assert intake.collect() == []


def test_the_value_is_a_total_an_average_or_a_rate():
    intake = Intake()
    plain = {"endpoint": "/items", "method": "GET"}
    for _ in range(8):
        intake.metric(metric_type="request_count", value=1.0, endpoint=None, tags=plain)
        intake.metric(metric_type="threat_level", value=3.0, endpoint=None, tags=plain)
    for _ in range(2):
        failed = {**plain, "status": "500"}
        intake.metric(metric_type="error_rate", value=1.0, endpoint=None, tags=failed)

    metrics = {metric["metric_type"]: metric for metric in intake.collect()}
    assert metrics["request_count"]["value"] == 8
    assert metrics["threat_level"]["value"] == 3
    assert metrics["error_rate"]["value"] == 0.25
    assert metrics["error_rate"]["tags"]["guard.requests"] == "8"


def test_response_times_bring_a_histogram_that_can_be_merged():
    values = [0.001 * 1.3**n for n in range(40)] + [0.0]
    whole, one, two = Intake(), Intake(), Intake()
    for number, value in enumerate(values):
        whole.metric(value=value)
        (one if number % 2 else two).metric(value=value)

    def counts(intake):
        [metric] = intake.collect()
        histogram = json.loads(metric["tags"]["guard.histogram"])
        assert histogram["scale"] == 2
        places = enumerate(histogram["counts"], histogram["offset"])
        return {place: n for place, n in places if n}, histogram["zero"]

    buckets, zero = counts(whole)
    assert (sum(buckets.values()), zero) == (40, 1)
    for place, n in buckets.items():
        low, high = 2 ** (place / 4), 2 ** ((place + 1) / 4)
        assert sum(low < value <= high for value in values) == n
    merged: dict[int, int] = {}
    for part, _ in (counts(one), counts(two)):
        for place, n in part.items():
            merged[place] = merged.get(place, 0) + n
    assert merged == buckets


def test_the_number_of_endpoints_is_bounded():
    intake = Intake(max_endpoints=3)
    for number in range(10):
        for _ in range(2):
            intake.metric(
                metric_type="request_count",
                value=1,
                endpoint=f"/{number}",
                tags={"endpoint": f"/{number}", "method": "GET"},
            )

    metrics = intake.collect()
    assert {m["endpoint"]: m["value"] for m in metrics} == {"/0": 2, "/1": 2, "/2": 2, "other": 14}
    assert metrics[-1]["tags"]["endpoint"] == "other"
    assert intake.rollup.describe()["other_endpoints"] == 14


def test_endpoints_are_counted_under_their_template():
    intake = Intake(routes=["/items/new", "/items/{id}", "/files/{name:path}"], max_endpoints=4)
    for path in ("/items/1", "/items/2", "/items/new", "/files/a/b", "/files/c", "/about"):
        intake.metric(metric_type="request_count", value=1, endpoint=None, tags={"endpoint": path})

    assert {m["tags"]["endpoint"]: m["value"] for m in intake.collect()} == {
        "/items/{id}": 2,
        "/items/new": 1,
        "/files/{name:path}": 2,
        "/about": 1,
    }


def test_a_type_that_nobody_knows_the_meaning_of_leaves_as_it_is():
    intake = Intake(metrics={"queue_length": "average", "response_time": "off"})

    assert all(intake.metric(metric_type="orders") for _ in range(2))
    assert all(intake.metric() for _ in range(2))
    assert [intake.metric(metric_type="queue_length", value=n) for n in (1, 3)] == [None, None]
    assert [metric["value"] for metric in intake.collect()] == [2]


def test_sums_stay_numbers():
    intake = Intake()
    for _ in range(3):
        intake.metric(metric_type="bandwidth_usage", value=1.5e308)
    for _ in range(2):
        intake.metric(value=math.ulp(0))

    large, small = intake.collect()
    assert large["value"] == 1.7e308
    assert small["value"] >= 0


# --- books and threads ----------------------------------------------------------------------------


def test_every_record_that_was_absorbed_is_in_one_that_leaves():
    intake = Intake(per_source={"ip_blocked": 2})
    for number in range(500):
        intake.event(ip_address=f"203.0.113.{number % 7}")
        intake.event(event_type=NOISE)
        intake.event(event_type="ip_blocked", endpoint=f"/{number}")
        intake.metric()
    events, metrics, open_ = intake.rollup.books
    assert (events + intake.returned, metrics) == (1500, 500)

    collected = intake.collect()
    assert len(collected) == open_
    assert intake.rollup.books == Aggregated(events, metrics, 0)


def test_what_collect_did_not_yield_remains_open():
    intake = Intake()
    for number in range(6):
        intake.event(endpoint=f"/{number}")
        intake.event(endpoint=f"/{number}")
    collected = intake.rollup.collect()
    next(collected)
    collected.close()

    assert intake.rollup.books.open == 5
    assert len(intake.collect()) == 5
    assert intake.rollup.books.open == 0


def test_a_collection_that_never_begins_takes_nothing_out():
    intake = Intake()
    for _ in range(3):
        intake.event()
        intake.metric()
    intake.rollup.collect()

    assert sorted(count_of(record) for record in intake.collect()) == [2, 3]


def test_after_close_nothing_is_absorbed():
    intake = Intake()
    for _ in range(2):
        intake.event()
        intake.metric()
    intake.rollup.close()

    assert intake.event(endpoint="/new") is not None
    assert intake.metric(endpoint="/new") is not None
    assert len(intake.collect()) == 2
    assert intake.event() is not None
    assert intake.metric() is not None
    assert intake.rollup.books.open == 0


def test_threads_that_record_while_it_is_collected_lose_no_count():
    intake = Intake(interval=0.05)
    threads, each = 4, 2_000
    left = [[] for _ in range(threads)]
    begin = threading.Barrier(threads + 1)

    def record(mine):
        begin.wait(30)
        for number in range(each):
            for kind, source in (
                ("event", make_event(ip_address=f"203.0.113.{number % 5}")),
                ("event", make_event(event_type=NOISE)),
                ("metric", make_metric(metric_type="request_count", value=1)),
            ):
                taken = intake.pipeline.take(kind, source)
                if taken is not None:
                    mine.append(json.loads(taken.payload))

    running = [threading.Thread(target=record, args=(mine,)) for mine in left]
    for thread in running:
        thread.start()
    begin.wait(30)
    collected = []
    while any(thread.is_alive() for thread in running):
        collected += intake.collect()
    for thread in running:
        thread.join(60)
    collected += intake.collect()

    everything = [record for mine in left for record in mine] + collected
    counts: dict[str, int] = {}
    for record in everything:
        name = record.get("event_type") or record["metric_type"]
        counts[name] = counts.get(name, 0) + count_of(record)
    assert counts == {
        "penetration_attempt": threads * each,
        NOISE: threads * each,
        "request_count": threads * each,
    }
    assert len({record["idempotency_key"] for record in everything}) == len(everything)


def test_no_text_that_was_not_redacted_is_kept():
    class Redactor(Enricher):
        name = "redactor"
        stage = Stage.REDACT

        def bind(self, kind):
            def redact(fields):
                return {
                    name: value.replace("s3cret", "***") if type(value) is str else value
                    for name, value in fields.items()
                    if name not in ("tags", "metadata")
                }

            return redact

    intake = Intake(
        Redactor(PluginSettings(), make_context()), per_source={"*": 2}, sample={NOISE: 0.5}
    )
    for number in range(6):
        for _ in range(2):
            intake.event(reason=f"s3cret {number}", endpoint=f"/s3cret/{number}")
            intake.event(event_type=NOISE, metadata={"s3cret": "s3cret"})
            intake.metric(endpoint=f"/s3cret/{number}", tags={"s3cret": "s3cret"})

    kept = repr(
        [
            intake.rollup._groups,
            intake.rollup._series,
            intake.rollup._requests,
            intake.rollup._endpoints,
            [group.held for group in intake.rollup._groups.values() if type(group) is not float],
            [series.held for series in intake.rollup._series.values()],
        ]
    )
    assert "***" in kept
    assert "s3cret" not in kept


# --- at first sight -------------------------------------------------------------------------------


class Thorough(Rollup):
    """Absorbs nothing before it was redacted."""

    def bind_early(self, kind):
        return None


class Marker(Enricher):
    """Stands for the redaction: lets texts with ``secret`` in them not through."""

    name = "marker"
    stage = Stage.REDACT

    def bind(self, kind):
        def redact(fields):
            return {name: self.clean(value) for name, value in fields.items()}

        return redact

    def clean(self, value):
        if type(value) is dict:
            return {name: self.clean(one) for name, one in value.items()}
        return "***" if type(value) is str and "secret" in value else value


ENDPOINTS = [None, "", "/a", "/b", "/items/1", "/items/2", "/secret", "other", "/items/{id}"]
TAGS = [
    {},
    {"method": "GET"},
    {"method": "GET", "endpoint": "/items/3"},
    {"endpoint": "/c", "method": "GET"},
    {"endpoint": ""},
    {"token": "secret"},
    {"token": "***"},
    {"token": "[REDACTED]"},
    {"flag": True},
    {"flag": 1},
    {"flag": "1"},
    {1: "text"},
    {"list": ["a"]},
    {"guard.count": "5"},
    None,
]
VALUES = [0.0, 0.25, 1, 1.0, True, -3.5, math.nan, math.inf, "1", None, 10**400]
METRIC_TYPES = ["response_time", "request_count", "error_rate", "own", "switched_off", None, 7]


def metrics():
    return st.builds(
        SecurityMetric.model_construct,
        timestamp=st.just(datetime(2026, 1, 2, tzinfo=timezone.utc)),
        metric_type=st.sampled_from(METRIC_TYPES),
        value=st.sampled_from(VALUES),
        endpoint=st.sampled_from(ENDPOINTS),
        tags=st.sampled_from(TAGS).map(lambda tags: tags if tags is None else dict(tags)),
    )


METADATA = [
    {},
    {"guard.count": 3},
    {"user": "ann"},
    {"n": 1},
    {"n": True},
    {"n": 1.0},
    {"n": "1"},
    {"n": -1},
    {"n": -2},
    {"n": 2**70},
    {"n": None},
    {"n": math.nan},
    {"n": [1]},
    {"n": {"m": 1}},
    {"n": "\ud800"},
    {"n": 1, "m": "a"},
    {"n": "m", "1": "a"},
    {1: "a"},
    {"1": "a"},
    {"request_id": "7f", "n": 1},
    {"password": "abc"},
    {"password": "[REDACTED]"},
    {"note": "secret"},
    {"note": "***"},
    None,
]
EVENT_TYPES = [NOISE, "csp_violation", "penetration_attempt", "rate_limited", "left_alone", 7]


def events():
    usual = st.builds(
        make_event,
        event_type=st.sampled_from([NOISE, "csp_violation", "penetration_attempt"]),
        reason=st.sampled_from(["one", "two", "secret"]),
        metadata=st.sampled_from([{}, {"guard.count": 3}, {"user": "ann"}]),
    )
    odd = st.builds(
        SecurityEvent.model_construct,
        idempotency_key=st.builds(uuid4),
        timestamp=st.just(datetime(2026, 1, 2, tzinfo=timezone.utc)),
        event_type=st.sampled_from(EVENT_TYPES),
        ip_address=st.sampled_from(["203.0.113.1", "203.0.113.2", "", None, 7, []]),
        reason=st.sampled_from(["one", "ann@shop.example", "secret", "***"]),
        status_code=st.sampled_from([None, 1, True, 1.0, -1, -2, math.inf, "1"]),
        metadata=st.sampled_from(METADATA).map(lambda one: one if one is None else dict(one)),
    )
    more = st.builds(make_event, request_url=st.sampled_from(["/a", "/b"]))
    # Whatever the order, most come more than once.
    return usual | more | st.sampled_from([0, 1]).flatmap(lambda few: odd if few else usual)


VARIES = {"idempotency_key", "timestamp", "guard.first", "guard.last"}


def without_times(record):
    return {
        name: without_times(value) if type(value) is dict else value
        for name, value in record.items()
        if name not in VARIES
    }


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.just("metric"), metrics()) | st.tuples(st.just("event"), events()), max_size=60
    ),
    st.sampled_from([{}, {"routes": ["/items/{id}"]}, {"max_endpoints": 2}, {"max_groups": 3}]),
    st.integers(0, 60),
    st.sampled_from([None, Marker, RedactionEnricher]),
)
def test_what_is_absorbed_at_first_sight_leaves_as_the_rest_does(
    sources, options, closed_at, redactor
):
    given = {"metrics": {"switched_off": "off", "own": "total"}, "sample": {NOISE: 0.25}}
    given |= {"off": ["left_alone"]}
    seen = []
    for kind_of_rollup in (Rollup, Thorough):
        settings_ = RollupSettings(interval=3600, **given, **options)
        aggregator = kind_of_rollup(settings_, make_context())
        enrichers = [redactor(redactor.Settings(), make_context())] if redactor else []
        pipeline = Pipeline(enrichers, aggregator)
        left = []
        for number, (kind, source) in enumerate(sources):
            if number == closed_at:
                aggregator.close()
            result = pipeline.take(kind, source)
            left.append(
                without_times(json.loads(result.payload)) if isinstance(result, Record) else result
            )
        books = aggregator.books
        rest = [without_times(json.loads(record.payload)) for record in aggregator.collect()]
        seen.append((left, rest, books, aggregator.describe()))

    assert seen[0] == seen[1]


def test_a_repeat_is_counted_before_anything_else_is_done_with_it():
    seen = []

    class Watcher(Enricher):
        name = "watcher"
        stage = Stage.REDACT

        def bind(self, kind):
            return lambda fields: seen.append(fields["reason"]) or fields

        def text_rules(self, kind):
            return None

    intake = Intake(Watcher(PluginSettings(), make_context()), ignore=["session"])
    for number in range(9):
        intake.event(metadata={"session": str(number)})

    # The first leaves, the second stands for the others.
    assert len(seen) == 2
    assert intake.rollup.books.events == 8
    assert [count_of(summary) for summary in intake.collect()] == [8]
    # It goes on: what stood for the others says what they have in common with all that follow.
    assert intake.event() is None
    assert len(seen) == 2
    assert [count_of(summary) for summary in intake.collect()] == [1]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"metadata": {"n": -1}}, {"metadata": {"n": -2}}),
        ({"metadata": {"n": 1}}, {"metadata": {"n": True}}),
        ({"metadata": {"n": 1}}, {"metadata": {"n": "1"}}),
        ({"metadata": {"a": "b", "c": "d"}}, {"metadata": {"a": "d", "c": "b"}}),
        ({"status_code": -1}, {"status_code": -2}),
        ({"request_url": "/a"}, {"request_url": "/b"}),
        ({"request_url": "/a", "status_code": -1}, {"request_url": "/a", "status_code": -2}),
        ({"reason": "a"}, {"reason": None, "country": "a"}),
        ({"handler_name": "a"}, {"rule_type": "a"}),
    ],
)
def test_nothing_that_differs_is_counted_as_a_repeat(one, two):
    intake = Intake()
    for _ in range(4):
        intake.take("event", make_event().model_copy(update=one))
        intake.take("event", make_event().model_copy(update=two))

    assert intake.returned == 2
    assert [count_of(summary) for summary in intake.collect()] == [3, 3]


# --- settings -------------------------------------------------------------------------------------


def test_it_says_what_is_on():
    said = " ".join(Rollup(RollupSettings(off=["x"]), make_context()).explain())

    assert f"{NOISE} 1 in 100" in said
    assert "geo_lookup_failed 20" in said
    assert "Each for itself: x." in said
    assert "rollup = false" in said


@pytest.mark.parametrize(
    "wrong",
    [
        {"interval": 0},
        {"sample": {"x": 0}},
        {"sample": {"x": 2}},
        {"per_source": {"x": -1}},
        {"metrics": {"x": "sum"}},
        {"routes": ["items"]},
        {"typo": 1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_setting_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        RollupSettings(**wrong)
