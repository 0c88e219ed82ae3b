"""``guard-agent send``: what each step changes, and what each destination answers."""

from __future__ import annotations

import json

import pytest

from guard_agent.testing.collector import Answer, Collector

SIEVE = """
from guard_agent import Enricher, Stage, hookimpl

class Sieve(Enricher):
    name = "sieve"
    stage = Stage.SEAL
    def bind(self, kind):
        return lambda fields: None

@hookimpl
def guard_agent_enrichers():
    return [Sieve]
"""
SECRET = "made-up-secret-of-a-test"


def found(result):
    """Verdict, text and facts by subject."""
    return {f["about"]: (f["verdict"], f["text"], f["facts"]) for f in json.loads(result.stdout)}


def test_the_event_arrives_marked_and_redacted(run, configure, collector):
    configure(store="disk")

    result = run("send", "--json")

    assert result.exit_code == 0
    (event,) = collector.events
    assert event["event_type"] == "guard_agent_test"
    assert event["metadata"]["guard_agent_test"] is True
    assert SECRET not in json.dumps(event)
    assert found(result)["record"][2]["record"] == event


def test_what_each_step_changed_is_shown(run, configure):
    configure()

    said = found(run("send", "--json"))

    assert any("metadata.password: " in change for change in said["redaction"][2]["changes"])
    assert any("metadata.long_text: " in change for change in said["truncate"][2]["changes"])
    assert "(2000 characters) -> " in said["truncate"][1]
    assert said["http"][2]["answer"] == "http 200"
    assert said["http"][1].startswith("sent 1 record -> http 200 in ")


def test_a_step_that_changes_nothing_says_so(run, configure):
    configure(plugins={"truncate": {"max_length": 5000}})

    assert found(run("send", "--json"))["truncate"][1] == "changes nothing"


@pytest.mark.parametrize(
    ("status", "result"), [(401, "paused"), (422, "reject"), (503, "retry"), (413, "toolarge")]
)
def test_a_destination_that_does_not_take_it_is_a_failure(
    run, configure, collector, status, result
):
    with Collector() as eu:
        eu.always(Answer(status))
        configure(transports=["http", "http/eu"], plugins={"http/eu": {"endpoint": eu.url}})
        ended = run("send", "--json")

    said = found(ended)
    assert ended.exit_code == 1
    assert (said["http"][0], said["http/eu"][0]) == ("ok", "failed")
    assert said["http/eu"][2]["result"] == result
    assert f"http {status}" in said["http/eu"][1]


def test_a_destination_that_is_away_is_a_failure(run, configure, collector):
    collector.stop()
    configure()

    result = run("send")

    assert result.exit_code == 1
    assert "cannot connect" in result.stdout


def test_an_event_that_is_dropped_on_its_way_is_told(run, configure, collector, distribution):
    distribution(
        "guard-agent-sieve",
        "1.0",
        {"sieve_of_a_test.py": SIEVE},
        entry_points={"sieve": "sieve_of_a_test"},
    )
    configure(enrichers=["redaction", "sieve"])

    result = run("send", "--json")

    assert result.exit_code == 1
    assert found(result)["sieve"][1] == "drops it"
    assert found(result)["event"][:2] == ("failed", "is dropped: filtered")
    assert collector.requests == []


def test_without_a_key_nothing_is_sent(run, folder, collector):
    (folder / "guard-agent.yaml").write_text(f"endpoint: {collector.url}\n")

    result = run("send")

    assert result.exit_code == 78
    assert "There is no api_key here" in result.stderr
    assert collector.requests == []


def test_the_store_is_left_alone(run, configure, collector, durable, start):
    settings = configure(**durable, flush_interval=60)
    agent = start(settings)
    assert agent.flush_to_store().result(30)

    assert run("send").exit_code == 0
    assert json.loads(run("store", "ls", "--json").stdout)["http"]["waiting"] == 0
