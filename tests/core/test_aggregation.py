"""What an aggregator absorbed: it is in the books, and it leaves when it should."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest

from guard_agent import Aggregator, BufferFullError, Level, Retry
from guard_agent.plugins.memory import MemoryStore
from guard_agent.plugins.rollup import Rollup
from guard_agent.testing.records import make_event, make_metric
from guard_agent.testing.transports import RecordingTransport

PATIENCE = 60
SECRET = "s3cret"


@pytest.fixture
def merging(make_agent):
    """An agent that merges, and its transport."""

    def make(*classes, interval=3600, **settings):
        plugins = {"rollup": {"interval": interval}, **settings.pop("plugins", {})}
        return make_agent(
            RecordingTransport, *classes, **{"rollup": True, "plugins": plugins, **settings}
        )

    return make


def transport_of(agent) -> RecordingTransport:
    return agent._current().destinations["recording"].transport


def delivered(agent):
    return [json.loads(record.payload) for record in transport_of(agent).accepted]


def count_of(record):
    place = record.get("metadata") or record.get("tags") or {}
    return int(place.get("guard.count", 1))


def send(agent, events=0, metrics=0):
    for _ in range(events):
        agent.record("event", make_event())
    for _ in range(metrics):
        agent.record("metric", make_metric())


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to it"
        time.sleep(0.01)


def books_of(agent):
    return agent.balances()["recording"]


def test_a_flush_takes_along_what_was_merged(merging):
    agent = merging()
    send(agent, events=5, metrics=7)

    agent.flush().result(PATIENCE)

    assert sorted(count_of(record) for record in delivered(agent)) == [1, 4, 7]
    books = agent.look().result(PATIENCE).destinations["recording"]
    assert books["accepted"] == 12
    assert books["delivered"] == 3
    assert books["merged"] == 9
    assert books["pending"] == 0


def test_what_is_open_is_pending_and_the_rest_of_it_merged(merging):
    agent = merging()
    send(agent, events=5, metrics=7)

    balance = books_of(agent)
    assert (balance.accepted, balance.merged, balance.difference) == (12, 9, 0)
    assert balance.pending + balance.delivered == 3
    status = agent.status()
    assert status.rollup["open"] == 2
    assert status.rollup["absorbed"] == 11
    assert status.rollup["interval"] == 3600


def test_it_leaves_by_itself_when_the_interval_is_over(merging):
    agent = merging(interval=0.05, flush_interval=0.05)
    send(agent, events=5, metrics=7)

    until(lambda: sum(count_of(record) for record in delivered(agent)) == 12)


def test_metrics_alone_start_the_thread(merging):
    agent = merging(interval=0.05, flush_interval=0.05)
    send(agent, metrics=3)

    until(lambda: [count_of(record) for record in delivered(agent)] == [3])


@pytest.mark.parametrize("policy", ["drop", "block", "raise"])
def test_stop_delivers_what_was_merged(merging, policy):
    agent = merging(buffer_overflow_policy=policy, stop_timeout=30)
    send(agent, events=5, metrics=7)

    agent.stop().result(PATIENCE)

    assert sorted(count_of(record) for record in delivered(agent)) == [1, 4, 7]
    assert books_of(agent).merged == 9


def test_stop_without_a_thread_counts_what_was_merged_as_lost(merging, monkeypatch):
    agent = merging()
    monkeypatch.setattr(agent._current().worker, "start", _cannot_start)
    send(agent, events=5, metrics=7)

    agent.stop().result(PATIENCE)

    balance = books_of(agent)
    assert balance.dropped == {"shutdown": 3}
    assert (balance.accepted, balance.merged, balance.pending) == (12, 9, 0)


def test_what_does_not_fit_at_the_end_is_counted_too(merging, monkeypatch):
    agent = merging(max_buffer_records=3)
    monkeypatch.setattr(agent._current().worker, "start", _cannot_start)
    for number in range(8):
        agent.record("metric", make_metric(endpoint=f"/{number}"))

    agent.stop().result(PATIENCE)

    balance = books_of(agent)
    assert sum(balance.dropped.values()) == balance.accepted == 8
    assert balance.dropped["shutdown"] == 3


@pytest.mark.parametrize("policy", ["drop", "raise"])
def test_a_flush_to_a_store_that_stays_full_ends_and_costs_nothing(merging, policy):
    class Full(MemoryStore):
        name = "full"
        level = Level.JOURNAL

    agent = merging(
        Full, store="full", buffer_overflow_policy=policy, max_buffer_records=3, stop_timeout=0.2
    )
    for number in range(8):
        agent.record("metric", make_metric(endpoint=f"/{number}"))

    assert agent.flush_to_store().result(PATIENCE) is False

    assert (books_of(agent).pending, books_of(agent).dropped) == (8, {})


def _cannot_start():
    raise RuntimeError("there can be no thread")


def test_what_comes_after_stop_is_dropped_and_not_absorbed(merging):
    agent = merging()
    send(agent, events=2)
    agent.stop().result(PATIENCE)
    send(agent, events=3, metrics=4)

    balance = books_of(agent)
    assert balance.dropped == {"stopped": 7}
    assert balance.difference == 0


def test_more_than_the_ring_holds_waits_for_room_when_nothing_may_be_evicted(merging):
    agent = merging(
        buffer_overflow_policy="raise",
        max_buffer_records=20,
        max_buffer_bytes=2 * 1024 * 1024,
        interval=3600,
    )
    for number in range(60):
        for _ in range(3):
            agent.record("metric", make_metric(endpoint=f"/{number}"))

    agent.stop(30).result(PATIENCE)

    assert [count_of(record) for record in delivered(agent)] == [3] * 60
    assert books_of(agent).dropped == {}


def test_a_full_ring_still_raises_for_what_is_not_merged(merging):
    agent = merging(buffer_overflow_policy="raise", max_buffer_records=2)
    with pytest.raises(BufferFullError, match="the buffer holds"):
        _ = [agent.record("event", make_event(endpoint=f"/{number}")) for number in range(1000)]


def test_an_outage_costs_no_count_however_long_it_lasts(merging):
    """More than half of the store is not filled with counts, which go on where they are."""
    agent = merging(max_buffer_records=200)
    transport = transport_of(agent)
    refusing = True
    accept = transport.send

    async def send(batch):
        return Retry("down", after=0.05) if refusing else await accept(batch)

    transport.send = send
    for _ in range(20):
        for number in range(60):
            agent.record("event", make_event(endpoint=f"/{number}"))
            agent.record("metric", make_metric(endpoint=f"/{number}"))
        agent.flush().result(PATIENCE)
    assert books_of(agent).dropped == {}
    refusing = False

    agent.stop(30).result(PATIENCE)

    counts: dict[str, int] = {}
    for record in delivered(agent):
        key = record.get("event_type", "") + record["endpoint"]
        counts[key] = counts.get(key, 0) + count_of(record)
    assert set(counts.values()) == {20}
    assert len(counts) == 120


def test_the_books_agree_while_it_is_collected(merging):
    agent = merging(interval=0.05, flush_interval=0.05)
    done = threading.Event()

    def record():
        number = 0
        while not done.is_set():
            number += 1
            agent.record("event", make_event(ip_address=f"203.0.113.{number % 50}"))
            agent.record("metric", make_metric(endpoint=f"/{number % 20}"))

    threads = [threading.Thread(target=record) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            status = agent.look().result(PATIENCE)
            if status is None:
                continue
            books = status.destinations["recording"]
            gone = books["delivered"] + sum(books["dropped"].values()) + books["buried"]
            assert books["accepted"] == gone + books["merged"] + books["pending"]
    finally:
        done.set()
        for thread in threads:
            thread.join(PATIENCE)
    agent.stop(30).result(PATIENCE)

    assert sum(count_of(record) for record in delivered(agent)) == books_of(agent).accepted


def test_an_aggregator_that_fails_costs_no_record(merging, caplog):
    class Failing(Rollup):
        name = "failing"

        def bind(self, kind, encode):
            def fail(fields):
                fields.clear()
                raise ValueError(SECRET)

            return fail

    agent = merging(Failing, rollup="failing", plugins={})
    send(agent, events=3)
    agent.flush().result(PATIENCE)

    assert len(delivered(agent)) == 3
    assert caplog.text.count("the aggregator failed") == 1
    assert SECRET not in caplog.text


def test_what_it_absorbs_at_first_sight_is_in_the_books(merging):
    class Early(Rollup):
        name = "early"

        def bind_early(self, kind):
            def absorb(values):
                # Like a plugin that logs: what it records itself must not come back to it.
                agent.record(kind, make_event())
                if values["reason"] != "noise":
                    return False
                self._events += 1
                return True

            return absorb if kind == "event" else None

    agent = merging(Early, rollup="early", plugins={})
    for reason in ("first", "second", "noise", "attack", "noise"):
        agent.record("event", make_event(reason=reason))

    agent.look().result(PATIENCE)
    books = books_of(agent)
    # Asked from the second on, when the agent has started.
    assert (books.merged, books.dropped, books.difference) == (2, {"internal": 3}, 0)


def test_what_is_counted_at_first_sight_is_counted_by_the_run_that_is_on(merging):
    agent = merging()
    for turn in range(2):
        send(agent, events=5)
        assert agent.absorbers is agent._current().absorbers
        agent.stop(30).result(PATIENCE)
        send(agent, events=2)

        assert sum(map(count_of, delivered(agent))) == 5, turn
        books = books_of(agent)
        assert (books.accepted, books.dropped, books.difference) == (7, {"stopped": 2}, 0)
        agent.start()


def test_nothing_is_counted_at_first_sight_of_a_kind_that_is_off(merging):
    agent = merging(enable_events=False)
    send(agent, events=5, metrics=5)

    assert agent.absorbers is agent._current().absorbers
    agent.stop(30).result(PATIENCE)
    assert [count_of(record) for record in delivered(agent)] == [5]
    assert books_of(agent).accepted == 5


def test_an_aggregator_that_fails_at_first_sight_costs_no_record(merging, caplog):
    class Failing(Rollup):
        name = "failing"

        def bind_early(self, kind):
            def fail(values):
                raise SystemExit(SECRET)

            return fail

    agent = merging(Failing, rollup="failing", plugins={})
    send(agent, events=3)
    agent.flush().result(PATIENCE)

    assert sum(map(count_of, delivered(agent))) == 3
    assert caplog.text.count("the aggregator failed") == 1
    assert SECRET not in caplog.text


def test_rollup_false_leaves_every_record_as_it_is(merging):
    agent = merging(rollup=False)
    send(agent, events=3, metrics=3)
    agent.flush().result(PATIENCE)

    assert [count_of(record) for record in delivered(agent)] == [1] * 6
    assert agent.status().rollup == {}
    assert "Nothing is merged" in agent.plan.explain()


def test_an_aggregator_of_another_plugin_can_take_its_place(merging):
    class Nothing(Rollup):
        name = "nothing"

        def bind(self, kind, encode):
            return None

    agent = merging(Nothing, rollup="nothing", plugins={})
    send(agent, events=3)
    agent.flush().result(PATIENCE)

    assert len(delivered(agent)) == 3
    assert issubclass(Nothing, Aggregator)


def test_the_plan_and_one_line_of_the_log_say_what_is_on(merging, caplog):
    caplog.set_level("INFO", "guard_agent")
    agent = merging(plugins={"rollup": {"off": ["ip_blocked"]}})
    send(agent, events=3)
    until(lambda: "records are merged" in caplog.text)

    said = [record.getMessage() for record in caplog.records]
    [line] = [message for message in said if message.startswith("records are merged")]
    for text in (line, agent.plan.explain()):
        assert "pattern_anomaly_statistical_anomaly 1 in 100" in text
        assert "Each for itself: ip_blocked." in text


def test_the_class_of_an_event_type_can_be_set(merging):
    agent = merging(
        rollup=False, event_priorities={"audit": "diagnostic", "csp_violation": "attack"}
    )
    for name in ("audit", "csp_violation", "penetration_attempt"):
        agent.record("event", make_event(event_type=name))
    agent.flush().result(PATIENCE)

    priorities = {
        json.loads(record.payload)["event_type"]: record.priority.name
        for record in transport_of(agent).accepted
    }
    assert priorities == {
        "audit": "DIAGNOSTIC",
        "csp_violation": "ATTACK",
        "penetration_attempt": "ATTACK",
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")  # Python 3.12
def test_p03_a_child_takes_nothing_of_what_its_parent_merged(merging):
    agent = merging()
    send(agent, events=5)
    child = os.fork()
    if child == 0:
        os._exit(0 if agent.balances()["recording"].accepted == 0 else 1)
    assert os.waitpid(child, 0)[1] == 0

    agent.flush().result(PATIENCE)
    assert sorted(count_of(record) for record in delivered(agent)) == [1, 4]
