"""
Whole agents that deliver to an OTLP receiver, also to one that fails.

Each test ends with what every row of the faults means besides: the books are balanced, and nothing
counts as delivered that the receiver did not take.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from guard_agent import guard_agent
from guard_agent.testing.records import make_event, make_metric

POISON = "poison"


@pytest.fixture
def receiver(kit):
    with kit.Receiver() as receiver:
        yield receiver


@pytest.fixture
def start(receiver, agent_config):
    """Make the agent of this process, for the receiver of the test."""
    return lambda otlp=None, **settings: guard_agent(agent_config(receiver.url, otlp, **settings))


def check(agent, receiver, **expected):
    """The books are balanced, agree with the receiver, and say this."""
    books = agent.get_status().destinations["otlp"]
    dropped = sum(books["dropped"].values())
    kept = dropped + books["buried"] + books["pending"]
    assert books["accepted"] == books["delivered"] + kept
    assert books["delivered"] <= len(set(receiver.uids))
    assert {name: books[name] for name in expected} == expected


def has_poison(received):
    return any(log.body.string_value == POISON for log in received.logs)


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
def test_events_and_metrics_arrive_redacted_with_their_fields(receiver, start, kit, encoding):
    agent = start({"encoding": encoding, "headers": {"x-token": "t" * 12}})
    trace = "5b8efff798038103d269b633813fc60c"
    event = make_event(
        user_agent="curl/8",
        country="DE",
        endpoint="/items?token=canary-0123456789&id=1",
        metadata={
            "headers": {"Authorization": "Bearer canary-0123456789", "Host": "shop"},
            "trace_id": trace,
            "span_id": "eee19b7ec3c1b174",
        },
    )
    metric = make_metric(value=0.25)
    before = time.time_ns()
    agent.send_event(event)
    agent.send_metric(metric)
    agent.flush_buffer()
    receiver.wait(lambda r: len(r.stored) == 2)

    assert b"canary" not in b"".join(request.body for request in receiver.requests)
    assert {request.headers["x-token"] for request in receiver.requests} == {"t" * 12}
    logs = {log.event_name: log for log in receiver.stored}
    sent, measured = logs["guard.penetration_attempt"], logs["guard.metric.response_time"]

    assert sent.time_unix_nano == int(event.timestamp.timestamp() * 10**6) * 1000
    assert before <= sent.observed_time_unix_nano <= time.time_ns()
    assert (sent.severity_number, sent.severity_text) == (17, "ERROR")
    assert sent.body.string_value == event.reason
    assert (sent.trace_id.hex(), sent.span_id.hex()) == (trace, "eee19b7ec3c1b174")
    found = kit.attributes(sent.attributes)
    assert found["url.query"].endswith("id=1")
    assert found["guard.metadata.headers"]["Host"] == "shop"
    assert (
        found.items()
        >= {
            "log.record.uid": str(event.idempotency_key),
            "client.address": "203.0.113.7",
            "geo.country.iso_code": "DE",
            "user_agent.original": "curl/8",
            "http.request.method": "GET",
            "http.response.status_code": 400,
            "url.path": "/items",
            "guard.event_type": "penetration_attempt",
            "guard.action_taken": "request_blocked",
        }.items()
    )
    found = kit.attributes(measured.attributes)
    assert (
        found.items()
        >= {
            "url.path": "/items",
            "guard.metric_type": "response_time",
            "guard.value": 0.25,
            "guard.tags.status": "200",
        }.items()
    )
    assert found["log.record.uid"]
    check(agent, receiver, accepted=2, delivered=2)


def test_the_environment_of_opentelemetry_is_taken_when_the_owner_says_so(
    receiver, agent_config, monkeypatch
):
    agent_config(receiver.url)  # for the folder, and to end the agent
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret%20of%20the%20app")
    Path("guard-agent.yaml").write_text(
        "api_key: key-0123456789\n"
        "transports: [otlp]\n"
        "rules: []\n"
        "plugins:\n"
        "  otlp:\n"
        '    endpoint: "${env:OTEL_EXPORTER_OTLP_ENDPOINT}"\n'
        '    headers: "${env:OTEL_EXPORTER_OTLP_HEADERS}"\n'
    )
    agent = guard_agent()
    agent.send_event(make_event())
    agent.flush_buffer()
    receiver.wait(lambda r: r.stored)

    assert receiver.requests[0].headers["api-key"] == "secret of the app"
    check(agent, receiver, delivered=1)


def test_c16_c21_what_was_taken_before_the_answer_was_lost_comes_twice_with_its_key(
    receiver, start, kit
):
    receiver.script.append(kit.Answer(hang_up=True, store=True))
    agent = start()
    agent.send_event(make_event())
    agent.flush_buffer()
    receiver.wait(lambda r: len(r.stored) == 2)
    agent.flush_buffer()

    assert len(set(receiver.uids)) == 1
    check(agent, receiver, accepted=1, delivered=1)


def test_c17_what_is_sent_while_the_collector_is_down_arrives_when_it_is_back(
    kit, agent_config, tmp_path
):
    with kit.Receiver() as receiver:
        url = receiver.url
    agent = guard_agent(agent_config(url))
    for _ in range(5):
        agent.send_event(make_event())
    agent.flush_buffer()
    check(agent, receiver, delivered=0, pending=5)

    with kit.Receiver(port=int(url.rpartition(":")[2])) as receiver:
        receiver.wait(lambda r: len(set(r.uids)) == 5, timeout=60)
        agent.flush_buffer()
        check(agent, receiver, delivered=5, pending=0)


def test_c05_a_collector_that_names_a_delay_is_left_alone_for_it(receiver, start, kit):
    receiver.script.append(kit.Answer(503, {"Retry-After": "1"}))
    agent = start()
    agent.send_event(make_event())
    agent.flush_buffer()
    receiver.wait(lambda r: r.stored)
    agent.flush_buffer()

    first, second = receiver.requests
    assert second.at - first.at >= 1
    check(agent, receiver, delivered=1, breaker="closed")


def test_c09_a_record_that_is_refused_costs_only_itself(receiver, start, kit):
    receiver.rule = lambda received: kit.Answer(400) if has_poison(received) else None
    agent = start(buffer_size=100)
    for number in range(20):
        agent.send_event(make_event(reason=POISON if number == 7 else "fine"))
    agent.flush_buffer()
    receiver.wait(lambda r: len(r.stored) == 19)
    agent.flush_buffer()

    assert len(receiver.uids) == len(set(receiver.uids)) == 19
    check(agent, receiver, delivered=19, buried=1)


def test_c03_a_part_that_was_rejected_is_neither_delivered_nor_sent_again(receiver, start, kit):
    receiver.script.append(kit.Answer(rejected=2, message="too old"))
    agent = start(buffer_size=100)
    for _ in range(5):
        agent.send_event(make_event())
    agent.flush_buffer()
    agent.send_event(make_event())
    agent.flush_buffer()

    assert [len(request.logs) for request in receiver.requests] == [5, 1]
    check(agent, receiver, delivered=1, buried=5, pending=0)
    letters = agent.dead_letters()["otlp"]
    assert {letter.reason for letter in letters} == {
        "the collector rejected 2 of 5 records, not saying which: too old"
    }


def test_c03_a_batch_that_is_rejected_as_a_whole_costs_only_those_at_fault(receiver, start, kit):
    """
    When all was rejected nothing comes twice, so it is safe to look for the one.
    """
    receiver.rule = lambda received: (
        kit.Answer(rejected=len(received.logs), store=False) if has_poison(received) else None
    )
    agent = start(buffer_size=100)
    for number in range(8):
        agent.send_event(make_event(reason=POISON if number == 3 else "fine"))
    agent.flush_buffer()
    receiver.wait(lambda r: len(r.stored) == 7)
    agent.flush_buffer()

    assert len(receiver.uids) == len(set(receiver.uids)) == 7
    check(agent, receiver, delivered=7, buried=1)


def test_c08_a_collector_that_takes_less_gets_less(receiver, start, kit):
    receiver.rule = lambda received: kit.Answer(413) if len(received.logs) > 3 else None
    agent = start(buffer_size=100)
    for _ in range(10):
        agent.send_event(make_event())
    agent.flush_buffer()
    receiver.wait(lambda r: len(r.stored) == 10)
    agent.flush_buffer()

    assert len(set(receiver.uids)) == 10
    check(agent, receiver, delivered=10)


def test_c08_what_a_body_cannot_hold_is_split_before_it_is_sent(receiver, start):
    agent = start({"max_body_bytes": 8192}, buffer_size=1000)
    for _ in range(50):
        agent.send_event(make_event(metadata={"numbers": list(range(60))}))
    agent.flush_buffer()
    receiver.wait(lambda r: len(set(r.uids)) == 50)
    agent.flush_buffer()

    assert max(len(request.body) for request in receiver.requests) <= 8192
    check(agent, receiver, delivered=50, buried=0)


@pytest.mark.parametrize("status", [401, 404, 500])
def test_c11_c12_what_a_person_has_to_mend_is_waited_for(receiver, start, kit, status):
    receiver.script.append(kit.Answer(status))
    agent = start()
    for _ in range(3):
        agent.send_event(make_event())
    agent.flush_buffer()

    assert len(receiver.requests) == 1
    check(agent, receiver, delivered=0, pending=3, breaker="paused")
