"""What a whole agent puts on the wire, seen by a collector that listens."""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard_agent import (
    AgentConfig,
    Batch,
    Priority,
    Record,
    SecurityEvent,
    SecurityMetric,
    guard_agent,
)
from guard_agent.testing.collector import Answer, Collector
from guard_agent.testing.records import make_event, make_metric
from guard_agent_http.encryption import Cipher
from guard_agent_http.envelope import PlainEnvelope, SealedEnvelope

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
LIMIT = 256 * 1024


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture
def start(collector, agent_config):
    """Make the agent of this process, for the collector of the test."""
    return lambda **settings: guard_agent(
        agent_config(**{"endpoint": collector.url, "rules": [], **settings})
    )


def posts(collector):
    return [request for request in collector.requests if request.method == "POST"]


def books(agent):
    return agent.get_status().destinations["http"]


# --- records --------------------------------------------------------------------------------------


def test_the_same_records_have_the_same_batch_id_at_every_attempt(collector, start):
    collector.answer(Answer(500), Answer(disconnect=True))
    agent = start(buffer_size=3)

    for _ in range(3):
        agent.send_event(make_event())
    collector.wait_for(lambda c: len(c.events) == 3)

    first, second, third = (json.loads(request.body) for request in posts(collector))
    assert first["batch_id"] == second["batch_id"] == third["batch_id"]
    assert first["events"] == second["events"] == third["events"]


def test_other_records_have_another_batch_id(collector, start):
    agent = start()
    for _ in range(2):
        agent.send_event(make_event())
        agent.flush_buffer()

    first, second = (json.loads(request.body)["batch_id"] for request in posts(collector))
    assert first != second


def test_events_and_metrics_have_an_idempotency_key_each(collector, start):
    agent = start()
    for _ in range(10):
        agent.send_event(make_event())
        agent.send_metric(make_metric())
    agent.flush_buffer()

    keys = [UUID(record["idempotency_key"]) for record in collector.events + collector.metrics]
    assert len(set(keys)) == 20


def test_a_metric_that_is_sent_again_keeps_its_key(collector, start):
    collector.answer(Answer(store=True, disconnect=True))
    agent = start(buffer_size=1)

    agent.send_metric(make_metric())
    collector.wait_for(lambda c: c.duplicates)

    assert len(collector.metrics) == 1
    assert collector.duplicates == collector.metrics


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(-timedelta(hours=12))),
        datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001 - as some callers have it
        datetime(1, 1, 1),  # noqa: DTZ001 - the same
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=timezone(-timedelta(hours=14))),
        datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=1, seconds=7))),
    ],
)
def test_a_timestamp_is_rfc_3339(collector, start, moment):
    agent = start()
    agent.send_event(SecurityEvent(timestamp=moment, event_type="ip_banned"))
    agent.send_metric(SecurityMetric(timestamp=moment, metric_type="request_count", value=1))
    agent.flush_buffer()

    (event,), (metric,) = collector.events, collector.metrics
    assert RFC_3339.fullmatch(event["timestamp"])
    assert event["timestamp"] == metric["timestamp"]
    for request in posts(collector):
        assert RFC_3339.fullmatch(json.loads(request.body)["created_at"])


@pytest.mark.parametrize("moment", [None, "yesterday", 1_700_000_000, 1.5, "", object(), []])
def test_a_foreign_record_without_a_time_gets_one(collector, start, moment):
    agent = start()
    agent.send_event(SimpleNamespace(event_type="ip_banned", timestamp=moment))
    agent.flush_buffer()

    (event,) = collector.events
    assert RFC_3339.fullmatch(event["timestamp"])


# --- bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [True, False])
def test_no_body_is_larger_than_the_platform_takes(agent_config, compression):
    """
    Split before sending, so no request is made that is answered with 413.
    """
    with Collector(max_body=LIMIT) as collector:
        agent = guard_agent(
            agent_config(
                endpoint=collector.url,
                rules=[],
                compression_enabled=compression,
                max_payload_size=20_000,
                max_requests_per_second=1000,
                stop_timeout=30,
                project_id='"' * 500,
                guard_version="\x00é\u2028" * 300,
            )
        )
        for number in range(150):
            agent.send_event(make_event(reason='"\\\x00é\U0001f600' * (number * 13)))
            agent.send_metric(make_metric(tags={str(n): "\x07" * 200 for n in range(number % 40)}))
        agent.stop()

        assert {request.status for request in posts(collector)} == {200}
        assert len(collector.events) == len(collector.metrics) == 150
        sizes = [len(request.body) for request in posts(collector)]
        assert LIMIT * 0.7 < max(sizes) <= LIMIT


def test_a_record_that_fits_no_body_is_buried_without_a_request(collector, start):
    agent = start(max_payload_size=60_000, plugins={"http": {"max_body_bytes": 4096}})
    agent.send_event(make_event(reason="x" * 8000))
    agent.send_event(make_event(reason="small"))
    agent.flush_buffer()

    assert [event["reason"] for event in collector.events] == ["small"]
    assert (books(agent)["delivered"], books(agent)["buried"]) == (1, 1)
    assert [request.status for request in posts(collector)] == [200]


TEXT = st.text(max_size=80).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))


@given(
    project=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=80),
    versions=st.tuples(TEXT, TEXT),
    sizes=st.lists(st.integers(min_value=60, max_value=3000), max_size=60),
    kind=st.sampled_from(["event", "metric"]),
    key_id=st.none() | st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True),
    encrypted=st.booleans(),
    compressed=st.booleans(),
    limit=st.integers(min_value=4096, max_value=40_000),
)
def test_what_fits_the_room_fits_the_limit(
    project, versions, sizes, kind, key_id, encrypted, compressed, limit
):
    """
    However the envelope looks, and as tightly as the room is filled.
    """
    config = AgentConfig(
        rollup=False, api_key="k" * 12, guard_version=versions[0], guard_core_version=versions[1]
    )
    envelope = (
        SealedEnvelope(Cipher("A" * 42 + "E"), key_id, config)
        if encrypted
        else PlainEnvelope(project, config)
    )
    room = envelope.room(limit)
    payloads, content = [], 0
    for number, size in enumerate(sizes):
        left = room - content - bool(payloads)
        if left < 60:
            break
        head, tail = b'{"idempotency_key":"r%06d","pad":"' % number, b'"}'
        filled = min(size, left)
        payloads.append(head + b"x" * (filled - len(head) - len(tail)) + tail)
        content += filled + (len(payloads) > 1)
    batch = Batch(
        kind, tuple(Record(str(n), kind, Priority.CHANGE, p, 0.0) for n, p in enumerate(payloads))
    )

    body = envelope.wrap(batch, compressed=compressed)

    assert len(body) <= limit
    assert len(body) <= envelope.size(content) <= limit
    assert json.loads(body)["batch_id"] == batch.id


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, body=b""),
        Answer(200, body={}),
        Answer(200, body={"success": True, "events_processed": 1, "metrics_processed": 0}),
        Answer(200, body={"status": "ok"}),
        Answer(201, body={"id": "b-1"}),
        Answer(202, body=b""),
        Answer(204),
    ],
)
def test_c01_any_2xx_is_a_delivery(collector, start, answer):
    collector.always(answer)
    agent = start()
    agent.send_event(make_event())
    agent.flush_buffer()
    agent.stop()

    assert len(collector.events) == 1
    assert len(posts(collector)) == 1


def test_c02_a_web_page_is_no_delivery_and_told_once(collector, start, caplog):
    page = Answer(200, {"Content-Type": "text/html"}, b"<html>Sign in</html>", store=False)
    collector.answer(page, page)
    agent = start(buffer_size=1)
    with caplog.at_level(logging.WARNING):
        agent.send_event(make_event())
        collector.wait_for(lambda c: c.events)
        agent.stop()

    assert len(collector.events) == 1
    warnings = [record.getMessage() for record in caplog.records if "page" in record.getMessage()]
    assert len(warnings) == 1
    assert "a web page came back" in warnings[0]


def test_c03_a_partial_answer_is_settled_record_by_record(collector, start):
    """
    The first is taken, the second kept and sent again, the third set aside.
    """
    partial = {
        "success": False,
        "results": [
            {"index": 0, "status": "accepted"},
            {"index": 1, "status": "retry"},
            {"index": 2, "status": "rejected", "error": "the country does not exist"},
        ],
    }
    collector.answer(Answer(207, body=partial, store=False))
    agent = start(buffer_size=3)
    events = [make_event(reason=str(number)) for number in range(3)]
    for event in events:
        agent.send_event(event)
    collector.wait_for(lambda c: c.events)
    agent.flush_buffer()

    first, second = (json.loads(request.body) for request in posts(collector))
    assert [event["reason"] for event in first["events"]] == ["0", "1", "2"]
    assert [event["reason"] for event in second["events"]] == ["1"]
    assert second["events"][0] == first["events"][1]
    said = books(agent)
    assert (said["delivered"], said["buried"], said["pending"]) == (2, 1, 0)


def test_c03_errors_beside_success_false_keep_what_they_do_not_name(collector, start):
    """
    As collectors of 3.2.4 answer: nothing was taken besides what is named.
    """
    collector.answer(
        Answer(200, body={"success": False, "errors": ["the database is down"]}, store=False),
        Answer(200, body={"success": False, "errors": [{"index": 0, "error": "no"}]}, store=False),
    )
    agent = start(buffer_size=2)
    for number in range(2):
        agent.send_event(make_event(reason=str(number)))
    collector.wait_for(lambda c: c.events)
    agent.flush_buffer()

    sent = [
        [event["reason"] for event in json.loads(request.body)["events"]]
        for request in posts(collector)
    ]
    assert sent == [["0", "1"], ["0", "1"], ["1"]]
    assert (books(agent)["delivered"], books(agent)["buried"]) == (1, 1)


@pytest.mark.parametrize("status", [429, 503])
def test_c05_no_request_is_made_before_the_collector_wants_one(collector, start, status):
    collector.answer(Answer(status, {"Retry-After": "1"}))
    agent = start(buffer_size=1, retry_attempts=1)
    agent.send_event(make_event())
    collector.wait_for(lambda c: c.requests)
    agent.flush_buffer()
    assert books(agent)["breaker"] == "throttled"
    collector.wait_for(lambda c: c.events)

    first, second = posts(collector)
    assert second.at - first.at >= 0.99


def test_c08_a_batch_that_is_too_large_is_halved_by_bytes(agent_config):
    with Collector(max_body=32 * 1024) as collector:
        agent = guard_agent(
            agent_config(
                endpoint=collector.url,
                rules=[],
                max_payload_size=20_000,
                max_requests_per_second=1000,
            )
        )
        for number in range(30):
            agent.send_event(make_event(reason=f"{number}" + "x" * 9_000))
        agent.send_event(make_event(metadata={str(n): "x" * 9_000 for n in range(5)}))
        agent.flush_buffer()

        assert len(collector.events) == 30
        assert (books(agent)["delivered"], books(agent)["buried"]) == (30, 1)
        refused = [request for request in posts(collector) if request.status == 413]
        assert len(refused) < 10


def test_c11_a_refused_key_pauses_and_delivery_resumes_by_itself(collector, start, caplog):
    agent = start()
    agent.send_event(make_event())
    agent.flush_buffer()
    collector.clear()
    collector.always(Answer(401))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            agent.send_event(make_event())
            agent.flush_buffer()
        said = books(agent)
        assert (said["breaker"], said["pending"], said["requests"]) == ("paused", 3, 2)
        collector.always(None)
        collector.wait_for(lambda c: len(c.events) == 3, timeout=30)
        agent.flush_buffer()

    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "check api_key" in told[0]
    assert "works again" in told[1]


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        pytest.param(404, "there is no such place", id="c12-404"),
        pytest.param(405, "does not take this method", id="c12-405"),
        pytest.param(410, "has given this place up", id="c13-410"),
    ],
)
def test_c12_c13_a_missing_endpoint_drops_nothing_and_is_told_once(
    collector, start, caplog, status, hint
):
    collector.always(Answer(status))
    agent = start()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            agent.send_event(make_event())
            agent.flush_buffer()
        said = books(agent)

    assert (said["breaker"], said["pending"], said["requests"]) == ("paused", 3, 1)
    assert said["dropped"] == {}
    (told,) = caplog.records
    assert hint in told.getMessage()
    assert "check endpoint" in told.getMessage()


def test_c21_a_lost_answer_costs_a_duplicate_with_the_same_keys(collector, start):
    collector.answer(Answer(store=True, disconnect=True))
    agent = start(buffer_size=5)
    for number in range(5):
        agent.send_event(make_event(reason=str(number)))
    collector.wait_for(lambda c: len(c.duplicates) == 5)
    agent.flush_buffer()

    assert [event["reason"] for event in collector.events] == list("01234")
    assert collector.duplicates == collector.events
    assert (books(agent)["delivered"], books(agent)["pending"]) == (5, 0)


# --- identity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["/proc", "/dev/null/nowhere"])
def test_a_home_that_takes_no_file_stops_nothing(collector, start, monkeypatch, home):
    """
    Records and rule polls then name one id that holds as long as the process.
    """
    monkeypatch.setenv("HOME", home)
    agent = start(rules=["polling"])
    agent.send_event(make_event())
    agent.get_dynamic_rules()
    agent.flush_buffer()

    assert len(collector.events) == 1
    ids = {request.headers["x-agent-install-id"] for request in collector.requests}
    assert len(ids) == 1
    assert UUID(*ids)
    assert {request.method for request in collector.requests} == {"GET", "POST"}
