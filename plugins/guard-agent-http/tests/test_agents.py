"""
Whole agents against a collector that fails (C04 to C24 of docs/reliability.md).

Each test ends with what every row means besides: the books agree with the ledger of the collector,
and what is not delivered is kept, or in the books with a reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from guard_agent import guard_agent
from guard_agent.testing.collector import Answer, Collector
from guard_agent.testing.records import make_event, make_metric

POISON = "poison"


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture
def start(collector, agent_config):
    """Make the agent of this process, for the collector of the test."""
    return lambda **settings: guard_agent(
        agent_config(
            **{
                "endpoint": collector.url,
                "rules": [],
                "max_requests_per_second": 1000,
                "stop_timeout": 1,
                **settings,
            }
        )
    )


def posts(collector, route="events"):
    return [request for request in collector.requests if request.path.endswith(f"/{route}")]


def books(agent, name="http"):
    return agent.get_status().destinations[name]


def refuse_poison(request):
    return Answer(422 if any(r.get("reason") == POISON for r in request.records) else 200)


# --- trouble that passes --------------------------------------------------------------------------


def test_c04_errors_of_the_server_are_waited_out(collector, start):
    collector.answer(*[Answer(500), Answer(502), Answer(504), Answer(503), Answer(408)])
    agent = start(retry_attempts=10, buffer_size=20)
    for _ in range(20):
        agent.send_event(make_event())
    collector.wait_for(lambda c: c.events)
    agent.flush_buffer()

    assert [request.status for request in posts(collector)] == [500, 502, 504, 503, 408, 200]
    assert (books(agent)["delivered"], books(agent)["breaker"]) == (20, "closed")
    collector.check(agent)


def test_c24_after_an_outage_the_batches_double(collector, start):
    collector.answer(Answer(500))
    agent = start(retry_attempts=0, stop_timeout=10)
    for _ in range(30):
        agent.send_event(make_event())
    agent.flush_buffer()
    assert books(agent)["breaker"] == "open"

    agent.stop()  # which tries once more, and does not wait between the batches

    sizes = [len(request.records) for request in posts(collector)]
    assert sizes == [30, 1, 2, 4, 8, 15]
    collector.check(agent)


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize(
    ("fault", "row"),
    [
        ("slow_head", "c15"),
        ("slow_body", "c15"),
        ("silent", "c16"),
        ("reset", "c16"),
        ("truncated", "c16"),
        ("endless", "c19"),
        ("huge", "c19"),
        ("bomb", "c19"),
    ],
)
def test_c15_c16_c19_c21_no_answer_that_goes_wrong_costs_a_record(
    collector, start, fault, row, store
):
    """
    The next one is heard; what the collector had stored all the same comes twice, with its key.
    """
    collector.answer(Answer(fault=fault, store=store, pace=0.1))
    agent = start(timeout=0.5, buffer_size=3, stop_timeout=10)
    for _ in range(3):
        agent.send_event(make_event())
    collector.wait_for(lambda c: len(posts(c)) >= 2)
    agent.stop()

    assert len(collector.events) == 3, row
    attempts = len(posts(collector))  # more than two when the machine is slow
    assert set(collector.ledger.values()) == {attempts - (not store)}
    assert (books(agent)["delivered"], books(agent)["pending"]) == (3, 0)
    collector.check(agent)


def test_c17_a_collector_that_is_down_is_waited_for(collector, start):
    agent = start(stop_timeout=10)
    collector.stop()
    agent.send_event(make_event())
    agent.flush_buffer()
    assert books(agent)["pending"] == 1
    assert "cannot connect" in books(agent)["last_error"]

    collector.start()
    agent.stop()

    collector.check(agent)
    assert books(agent)["delivered"] == 1


def test_c05_two_destinations_at_one_collector_rest_together(collector, start):
    """One gate for each collector: what it says to one is said to both."""
    collector.answer(Answer(429, {"Retry-After": "3600"}))
    agent = start(transports=["http", "http/again"])
    for _ in range(3):
        agent.send_event(make_event())
        agent.flush_buffer()

    # The second may have been on its way when the first was answered.
    assert len(posts(collector)) <= 2
    assert {books(agent, name)["breaker"] for name in ("http", "http/again")} == {"throttled"}
    assert sum(books(agent, name)["pending"] for name in ("http", "http/again")) >= 5


# --- records that are refused ---------------------------------------------------------------------


def test_c09_of_a_thousand_records_one_that_is_refused_costs_25_requests(collector, start):
    collector.always(refuse_poison)
    agent = start(
        buffer_size=2000,
        max_batch_bytes=1024 * 1024,
        plugins={"http": {"max_body_bytes": 1024 * 1024}},
    )
    for number in range(1000):
        agent.send_event(make_event(reason=POISON if number == 617 else str(number)))
    agent.flush_buffer()

    assert len(posts(collector)[0].records) == 1000
    assert len(posts(collector)) <= 1 + 25
    assert len(collector.events) == 999
    assert (books(agent)["delivered"], books(agent)["buried"]) == (999, 1)
    assert (books(agent)["pending"], books(agent)["dropped"]) == (0, {})
    collector.check(agent)
    (letter,) = agent.dead_letters()["http"]
    assert POISON.encode() in letter.record.payload
    assert "422" in letter.reason


def test_c09_what_was_refused_can_be_sent_again(collector, start):
    collector.always(refuse_poison)
    agent = start()
    for reason in (POISON, "good", POISON, POISON):
        agent.send_event(make_event(reason=reason))
    agent.flush_buffer()
    assert (books(agent)["buried"], books(agent)["dead_letters"]) == (3, 3)

    collector.always(None)
    assert agent.replay_dead_letters("http", limit=1) == 1
    assert agent.replay_dead_letters() == 2
    assert agent.replay_dead_letters() == 0
    agent.flush_buffer()

    said = books(agent)
    assert (said["accepted"], said["delivered"], said["buried"]) == (7, 4, 3)
    assert (said["pending"], said["dead_letters"]) == (0, 0)
    assert agent.dead_letters() == {"http": ()}
    assert set(collector.ledger.values()) == {1}
    collector.check(agent)


def test_a_destination_that_is_not_there_cannot_be_replayed(start):
    with pytest.raises(ValueError, match="there are: http"):
        start().replay_dead_letters("htpp")


def test_c09_a_collector_that_refuses_everything_gets_few_requests_and_no_record_is_lost(
    collector, start
):
    """
    The fault is not in the records: a few are set aside, the rest waits, and all come in the end.
    """
    collector.always(Answer(400))
    agent = start(buffer_size=200)
    for _ in range(100):
        agent.send_event(make_event())
    for _ in range(5):
        agent.flush_buffer()

    said = books(agent)
    assert said["breaker"] == "paused"
    assert len(posts(collector)) <= 30
    assert said["buried"] <= 10, "eight, and one for each probe since"
    assert said["pending"] == 100 - said["buried"]
    collector.check(agent)

    collector.always(None)
    assert agent.replay_dead_letters() >= said["buried"]
    collector.wait_for(lambda c: len(c.events) == 100, timeout=40)
    agent.flush_buffer()
    assert (books(agent)["pending"], books(agent)["dead_letters"]) == (0, 0)
    collector.check(agent)


def test_c09_dead_letters_are_bounded_and_said_to_be_gone(collector, start):
    collector.always(lambda request: Answer(207, results=["rejected"] * len(request.records)))
    agent = start(plugins={"memory": {"max_dead_letters": 4}})
    for _ in range(10):
        agent.send_event(make_event())
    agent.flush_buffer()

    assert (books(agent)["buried"], books(agent)["dead_letters"]) == (10, 4)
    assert len(agent.dead_letters()["http"]) == 4
    collector.check(agent)


def test_c08_a_record_that_fits_no_body_ends_no_pause(collector, start):
    """The transport knows it without a request, so nothing is known about the collector."""
    collector.always(Answer(401))
    agent = start(max_payload_size=60_000, plugins={"http": {"max_body_bytes": 4096}})
    agent.send_event(make_event(reason="small"))
    agent.flush_buffer()
    agent.send_event(make_event(reason="x" * 8000))
    agent.flush_buffer()

    assert books(agent)["breaker"] == "paused"
    assert books(agent)["requests"] == len(posts(collector)) == 1
    collector.check(agent)


# --- an address that is wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("rules", [[], ["polling"]])
def test_c14_no_redirect_takes_records_or_the_key_elsewhere(collector, start, status, rules):
    with Collector() as other:
        collector.always(Answer(status, {"Location": f"{other.url}/api/v1/events"}))
        collector.always(Answer(status, {"Location": f"{other.url}/api/v1/rules"}), only="rules")
        agent = start(rules=rules)
        for _ in range(3):
            agent.send_event(make_event())
            agent.send_metric(make_metric())
            agent.flush_buffer()
        if rules:
            assert agent.get_dynamic_rules() is None
            collector.wait_for(lambda c: any(r.method == "GET" for r in c.requests))

        assert other.requests == []
        assert books(agent)["breaker"] == "paused"
        assert books(agent)["pending"] == 6
        assert "never followed" in books(agent)["last_error"]
        collector.check(agent)


# --- a collector that wants to harm ---------------------------------------------------------------

HOSTILE = """
import json, sys, time
from pathlib import Path
from guard_agent import AgentConfig, guard_agent
from guard_agent.testing.records import make_event

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))

agent = guard_agent(AgentConfig(
    rollup=False,
    api_key="k" * 12, endpoint=sys.argv[1], rules=["polling"],
    timeout=2, retry_attempts=100, backoff_factor=0.001, buffer_size=1,
))
agent.send_event(make_event())
agent.flush_buffer()  # brings in what every request needs
print("ready", flush=True)
what = sys.stdin.readline().strip()
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
if what == "rules":
    agent.get_dynamic_rules()
else:
    agent.send_event(make_event())
print("sent", flush=True)
sys.stdin.readline()
print(memory("VmHWM") - before, flush=True)
agent.stop()
"""


@pytest.fixture
def hostile(collector, tmp_path):
    """KiB of memory that an agent needs more while ``faults`` answer, until ``done``."""

    def hostile(what, faults, done):
        environment = {**os.environ, "HOME": str(tmp_path), "GUARD_AGENT_STATE_DIR": str(tmp_path)}
        with subprocess.Popen(
            [sys.executable, "-c", HOSTILE, collector.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=tmp_path,
        ) as process:
            try:
                assert process.stdout.readline() == "ready\n"
                collector.answer(*faults, only=what)
                process.stdin.write(f"{what}\n")
                process.stdin.flush()
                assert process.stdout.readline() == "sent\n"
                collector.wait_for(done, timeout=60)
                used, _ = process.communicate("\n", timeout=60)
            finally:
                process.kill()
        return int(used)

    return hostile


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="there is no /proc to measure with"
)
@pytest.mark.parametrize("fault", ["bomb", "huge", "endless"])
def test_c19_a_hostile_collector_costs_an_agent_little_memory(collector, hostile, fault):
    """
    At most 4 MiB, however often it tries. (How much is read, and for how long, is in test_client.)
    """
    used = hostile("events", [Answer(fault=fault)] * 3, lambda c: len(c.events) == 2)

    assert [request.status for request in posts(collector)] == [200] * 5
    assert used <= 4 * 1024


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="there is no /proc to measure with"
)
@pytest.mark.parametrize("fault", ["bomb", "huge", "endless"])
def test_c19_hostile_rules_cost_an_agent_what_rules_may_have(collector, hostile, fault):
    """Of rules 8 MiB are read, and are in memory twice for a moment."""
    used = hostile("rules", [Answer(fault=fault)] * 2, lambda c: len(posts(c, "rules")) == 3)

    assert used <= 24 * 1024
