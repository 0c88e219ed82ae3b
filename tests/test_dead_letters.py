"""What was refused for good: seen and sent again, from the app and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from guard_agent import AgentConfig, guard_agent
from guard_agent.cli import main
from guard_agent.testing.collector import Answer
from guard_agent.testing.records import make_event, make_metric
from guard_agent.testing.redis_server import redis_server  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("surroundings")


@pytest.fixture(params=["disk", "redis"])
def store(request):
    """The settings of a store that outlives the process."""
    if request.param == "disk":
        return {"store": "disk"}
    server = request.getfixturevalue("redis_server")
    server.command("FLUSHALL")
    return {"store": "redis", "plugins": {"redis": {"url": server.url, "deadline": 5}}}


def start(collector, store, **settings):
    """The agent of this process; its configuration is written down for the command as well."""
    config = {
        "api_key": "test-key-0123",
        "project_id": "shop",
        "endpoint": collector.url,
        "rules": [],
        "flush_interval": 0.2,
        **store,
        **settings,
    }
    Path("guard-agent.yaml").write_text(json.dumps(config))
    return guard_agent(AgentConfig(**config))


def run(*arguments):
    return CliRunner().invoke(main, ["store", *arguments])


def refuse(collector):
    collector.always(lambda r: Answer(207, results=["rejected"] * len(r.records)), only="events")


def books(agent):
    return agent.get_status().destinations["http"]


def test_the_command_shows_what_was_refused_and_has_it_sent_by_the_next_agent(collector, store):
    refuse(collector)
    agent = start(collector, store)
    agent.send_event(make_event(reason="one"))
    agent.send_event(make_event(reason="two"))
    agent.send_metric(make_metric())
    assert agent.flush_to_store()
    collector.wait_for(lambda c: len(c.requests) >= 2)
    agent.flush_buffer()
    assert (books(agent)["buried"], books(agent)["delivered"]) == (2, 1)
    agent.stop()
    collector.always(None, only="events")

    listed = run("ls", "--dead")
    assert listed.exit_code == 0, listed.output
    head, *lines = listed.stdout.splitlines()
    assert head.split() == ["DESTINATION", "ID", "KIND", "ACCEPTED", "REASON"]
    assert [line.split()[0] for line in lines] == ["http", "http"]
    letters = json.loads(run("ls", "--dead", "--json").stdout)
    exported = run("export", "--dead").stdout.splitlines()
    assert [json.loads(line) for line in exported] == letters
    assert [letter["record"]["reason"] for letter in letters] == ["one", "two"]
    assert [letter["id"] for letter in letters] == [line.split()[1] for line in lines]

    assert run("replay", "--limit", "1").stdout == "http: 1 wait to be sent again\n"
    assert run("replay", "--destination", "http").stdout == "http: 1 wait to be sent again\n"
    assert run("ls", "--dead").stdout == "There are none.\n"

    agent = start(collector, store)
    agent.start()
    collector.wait_for(lambda c: len(c.events) == 2)
    agent.stop()
    assert [event["reason"] for event in collector.events] == ["one", "two"]
    assert set(collector.ledger.values()) == {1}


def test_the_command_works_beside_an_agent_that_runs(collector, store):
    refuse(collector)
    agent = start(collector, store)
    agent.send_event(make_event())
    collector.wait_for(lambda c: c.requests)
    agent.flush_buffer()
    assert books(agent)["buried"] == 1
    collector.always(None, only="events")

    assert "1 wait to be sent again" in run("replay").stdout

    collector.wait_for(lambda c: c.events)
    agent.flush_buffer()
    assert run("ls", "--dead").stdout == "There are none.\n"


async def test_an_app_can_do_the_same(collector, store):
    refuse(collector)
    agent = start(collector, store)
    await agent.send_event(make_event(reason="one"))
    await agent.flush_buffer()
    await agent.flush_buffer()
    (letter,) = (await agent.dead_letters())["http"]
    assert b'"one"' in letter.record.payload

    collector.always(None, only="events")
    assert await agent.replay_dead_letters() == 1
    await agent.flush_buffer()
    await agent.flush_buffer()

    status = await agent.get_status()
    collector.check(status)
    assert len(collector.events) == 1
    said = status.destinations["http"]
    assert (said["accepted"], said["delivered"], said["buried"]) == (2, 1, 1)
    assert said["dead_letters"] == 0
    await agent.stop()
    assert await agent.dead_letters() == {}
    assert await agent.replay_dead_letters() == 0


def test_a_store_in_memory_has_nothing_for_the_command(collector):
    start(collector, {"store": "memory"})

    result = run("ls", "--dead")

    assert result.exit_code == 78
    assert "dead_letters() and replay_dead_letters()" in result.stderr


def test_a_destination_that_is_not_there_is_an_error(collector, store):
    start(collector, store)

    result = run("replay", "--destination", "htpp")

    assert result.exit_code == 2
    assert "there are: http" in result.stderr


def test_a_store_that_is_not_available_is_an_error():
    config = {"api_key": "test-key-0123", "project_id": "shop", "store": "redis"}
    redis = {"redis": {"url": "redis://127.0.0.1:1/0"}}
    Path("guard-agent.yaml").write_text(json.dumps({**config, "plugins": redis}))

    result = run("ls")

    assert result.exit_code == 1
    assert "the store 'redis' is not available" in result.stderr


def test_without_a_project_the_key_must_be_known():
    Path("guard-agent.yaml").write_text(json.dumps({"store": "disk"}))

    result = run("ls")

    assert result.exit_code == 78
    assert "project_id" in result.stderr


def test_a_wrong_configuration_is_told():
    Path("guard-agent.yaml").write_text(json.dumps({"bufer_size": 1}))

    result = run("ls")

    assert result.exit_code == 78
    assert "GA303" in result.stderr
