"""The public handlers against a collector that listens: what the Guard adapters call."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from guard_agent import (
    AgentConfig,
    AgentHandlerProtocol,
    BufferFullError,
    ConfigurationError,
    GuardAgentError,
    GuardAgentHandler,
    SyncGuardAgentHandler,
    client,
    guard_agent,
    stop_agent,
)
from guard_agent.testing.collector import Answer
from guard_agent.testing.records import make_event, make_metric

pytestmark = pytest.mark.usefixtures("surroundings")


@pytest.fixture
def config(collector):
    """Settings for an agent of this process; it is stopped when the test ends."""

    def make(**settings):
        return AgentConfig(**{"api_key": "test-key-0123", "endpoint": collector.url, **settings})

    return make


async def test_the_quick_start_of_the_first_releases_works(config, collector):
    agent = guard_agent(config(project_id="shop"))
    await agent.start()
    await agent.send_event(make_event(event_type="ip_banned", ip_address="192.168.1.100"))
    await agent.stop()

    (event,) = collector.events
    assert (event["event_type"], event["ip_address"]) == ("ip_banned", "192.168.1.100")


async def test_a_second_call_gives_the_same_agent(config):
    settings = config()

    assert guard_agent(settings) is guard_agent(settings)
    assert guard_agent(config(buffer_size=7)).config.buffer_size == 100


async def test_another_configuration_takes_effect_after_stop(config, caplog):
    agent = guard_agent(config())
    assert guard_agent(config(buffer_size=7)) is agent
    assert "Different: buffer_size" in caplog.text
    await agent.stop()

    assert guard_agent(config(buffer_size=7)).config.buffer_size == 7


async def test_without_a_configuration_it_is_the_agent_that_is_there(config, collector):
    agent = guard_agent(config())
    await agent.send_event(make_event())

    assert guard_agent() is agent
    await guard_agent().stop()

    assert len(collector.events) == 1


async def test_without_any_agent_the_configuration_file_describes_one(config, collector, tmp_path):
    (tmp_path / "guard-agent.yaml").write_text(
        f"api_key: from-the-file-01\nendpoint: {collector.url}\n"
    )
    client._process.agent = None  # as in a process that has made none

    agent = guard_agent()
    await agent.send_event(make_event())
    await agent.stop()

    assert collector.requests[-1].headers["x-api-key"] == "from-the-file-01"


async def test_both_faces_meet_the_same_agent(config, collector):
    settings = config()
    agent = guard_agent(settings)
    await agent.send_event(make_event())

    def in_a_thread_without_a_loop():
        sync = guard_agent(settings)
        assert isinstance(sync, SyncGuardAgentHandler)
        assert sync.send_event(make_event()) is None
        assert sync.get_status().buffer_size == 2

    await asyncio.to_thread(in_a_thread_without_a_loop)
    assert isinstance(agent, GuardAgentHandler)
    await agent.flush_buffer()

    assert len(collector.events) == 2


def asked_by(module: str, config: AgentConfig) -> object:
    """What ``guard_agent`` answers to code in ``module``."""
    return eval(
        "guard_agent(config)",
        {
            "__name__": module,
            "guard_agent": guard_agent,
            "config": config,
        },
    )


@pytest.mark.parametrize("module", ["flaskapi_guard.extension", "djangoapi_guard.middleware"])
async def test_an_adapter_without_await_gets_values_also_inside_a_running_loop(config, module):
    """
    uvicorn imports a Django app inside of its event loop.
    """
    agent = asked_by(module, config())

    assert isinstance(agent, SyncGuardAgentHandler)
    assert agent.get_dynamic_rules() is None


@pytest.mark.parametrize("module", ["guard.middleware", "tornadoapi_guard.middleware"])
def test_an_adapter_with_await_gets_awaitables_also_where_no_loop_runs(config, module):
    """
    A Tornado app is made before its event loop runs, as its quick start shows.
    """
    agent = asked_by(module, config())

    assert isinstance(agent, GuardAgentHandler)
    assert asyncio.run(agent.health_check()) is False, "it was not started"


async def test_the_handler_has_the_shape_the_adapters_expect(config):
    assert isinstance(guard_agent(config()), AgentHandlerProtocol)


async def test_a_record_is_taken_awaited_or_not_or_as_a_task(config, collector):
    agent = guard_agent(config())

    agent.send_event(make_event(reason="not awaited"))
    await agent.send_event(make_event(reason="awaited"))
    await asyncio.gather(
        agent.send_event(make_event(reason="gathered")),
        asyncio.create_task(agent.send_metric(make_metric())),
    )
    await asyncio.wait_for(agent.send_event(make_event(reason="with a limit")), 30)
    await agent.flush_buffer()

    assert {event["reason"] for event in collector.events} == {
        "not awaited", "awaited", "gathered", "with a limit",
    }  # fmt: skip
    assert len(collector.metrics) == 1


def test_the_sync_face_delivers_without_an_event_loop(config, collector):
    agent = guard_agent(config())

    agent.start()
    agent.send_event(make_event())
    agent.send_metric(make_metric())
    agent.flush_buffer()

    assert len(collector.events) == len(collector.metrics) == 1
    assert agent.health_check() is True
    assert agent.get_status().events_sent == 1
    assert agent.get_stats()["metrics_sent"] == 1


def test_the_sync_face_never_waits_for_the_thread_of_the_agent(config, collector):
    held, release = threading.Event(), threading.Event()

    async def hold() -> None:
        held.set()
        release.wait(60)

    collector.always(Answer(500))
    agent = guard_agent(config(buffer_size=1))
    agent.send_event(make_event())
    agent._agent._current().worker.submit(hold)
    assert held.wait(30), "the agent's thread is not stuck"

    def use() -> None:
        for _ in range(500):
            agent.send_event(make_event())
            agent.send_metric(make_metric())
        agent.start()
        agent.get_dynamic_rules()
        agent.health_check()
        agent.get_stats()

    user = threading.Thread(target=use)
    try:
        user.start()
        user.join(30)
        assert not user.is_alive()
    finally:
        collector.always(None)
        release.set()
        user.join()


def test_kinds_that_are_switched_off_are_not_taken(config, collector):
    agent = guard_agent(config(enable_events=False, enable_metrics=False))

    agent.send_event(make_event())
    agent.send_metric(make_metric())
    agent.flush_buffer()

    assert agent.get_status().destinations["http"]["accepted"] == 0


async def test_the_policy_raise_reaches_the_caller(config, collector):
    """Nothing is sent before the flush interval, so the second record finds no room."""
    agent = guard_agent(
        config(max_buffer_records=1, buffer_overflow_policy="raise", buffer_size=1_000)
    )
    collector.always(Answer(status=503, headers={"Retry-After": "60"}))

    async def fill():
        for _ in range(20):
            await agent.send_event(make_event())

    with pytest.raises(BufferFullError):
        await fill()


def test_the_policy_block_never_blocks_a_thread_with_a_running_loop(config, collector):
    """A WSGI adapter inside an event loop must not stop that loop."""
    collector.always(Answer(status=503, headers={"Retry-After": "60"}))
    agent = guard_agent(
        config(max_buffer_records=1, buffer_overflow_policy="block", block_timeout=60)
    )
    assert isinstance(agent, SyncGuardAgentHandler)

    async def inside_a_loop():
        for _ in range(20):
            agent.send_event(make_event())

    begun = time.monotonic()
    asyncio.run(inside_a_loop())

    assert time.monotonic() - begun < 30
    dropped = agent.get_status().destinations["http"]["dropped"]
    assert dropped["overflow"] >= 17


async def test_rules_of_the_collector_arrive_and_follow(config, collector):
    collector.publish({"ip_blacklist": ["192.0.2.1"]})
    agent = guard_agent(config(plugins={"polling": {"interval": 1}}))

    rules = await agent.get_dynamic_rules()
    assert rules.ip_blacklist == ["192.0.2.1"]
    collector.publish({"ip_blacklist": ["198.51.100.2"]})
    while (await agent.get_dynamic_rules()).ip_blacklist != ["198.51.100.2"]:
        await asyncio.sleep(0.02)


async def test_rules_never_raise_and_never_wait_for_long(config, collector):
    collector.always(Answer(delay=30), only="rules")
    agent = guard_agent(config())

    begun = time.monotonic()
    assert await agent.get_dynamic_rules() is None
    assert time.monotonic() - begun < 20


def test_the_sync_face_never_waits_for_rules(config, collector, monkeypatch):
    monkeypatch.setattr("guard_agent.core.agent._FIRST_RULES_TIMEOUT", 60)
    collector.always(Answer(delay=30), only="rules")
    agent = guard_agent(config(timeout=60))

    begun = time.monotonic()
    assert agent.get_dynamic_rules() is None
    assert time.monotonic() - begun < 20


async def test_p05_everything_returns_before_start_and_after_stop(config):
    agent = guard_agent(config())
    for _ in range(2):
        await agent.flush_buffer()
        await agent.health_check()
        await agent.get_status()
        agent.get_stats()
        await agent.initialize_redis(object())
        await agent.stop()
        await agent.stop()
        await agent.send_event(make_event())
    await agent.close()

    assert agent.get_stats()["running"] is False


def test_one_agent_serves_many_loops_and_threads(config, collector):
    settings = config()

    async def request(number: int):
        await guard_agent(settings).send_event(make_event(reason=str(number)))

    threads = [
        threading.Thread(target=lambda n=number: asyncio.run(request(n))) for number in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    guard_agent(settings).flush_buffer()

    assert len(collector.events) == 10


async def test_p08_a_caller_that_is_cancelled_harms_nobody_else(config, collector):
    collector.always(Answer(delay=0.3))
    agent = guard_agent(config())
    await agent.send_event(make_event())
    flush = asyncio.ensure_future(agent.flush_buffer())
    await asyncio.sleep(0)

    flush.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flush

    await agent.flush_buffer()
    assert len(collector.events) == 1


def test_a_wrong_composition_is_refused_with_everything_that_is_wrong(config):
    with pytest.raises(ConfigurationError) as caught:
        guard_agent(config(transports=["htpp"], enrichers=["truncate"]))

    codes = {problem.code for problem in caught.value.problems}
    assert {"GA101", "GA201"} <= codes
    assert "http" in str(caught.value)


async def test_a_project_without_rules_does_not_hold_up_its_events(config, collector):
    """The rule route answers 404, which pauses the rules and nothing else."""
    collector.always(Answer(status=404), only="rules")
    agent = guard_agent(config())

    assert await agent.get_dynamic_rules() is None
    await agent.send_event(make_event())
    await agent.flush_buffer()

    assert len(collector.events) == 1


async def test_stopping_an_agent_that_never_was_is_nothing(collector):
    client._process.agent = None

    await stop_agent()


async def test_an_application_stops_the_agent_that_its_middleware_made(config, collector):
    await guard_agent(config()).send_event(make_event())

    await stop_agent()

    assert len(collector.events) == 1


def test_p13_a_log_handler_that_records_does_not_deadlock(config, collector):
    """Some of what the agent logs, it logs while it is being looked up."""

    class Recording(logging.Handler):
        def emit(self, record):
            guard_agent().send_event(make_event(reason="from the log"))

    handler = Recording()
    settings = config()
    agent = guard_agent(settings)
    logging.getLogger("guard_agent").addHandler(handler)
    try:
        assert guard_agent(config(buffer_size=7)) is agent, "which is worth a warning"
    finally:
        logging.getLogger("guard_agent").removeHandler(handler)
    agent.flush_buffer()

    assert [event["reason"] for event in collector.events] == ["from the log"]


def test_a_log_handler_that_asks_for_the_agent_before_there_is_one_gets_an_error(config):
    errors = []

    class Asking(logging.Handler):
        def emit(self, record):
            try:
                guard_agent()
            except GuardAgentError as error:
                errors.append(error)

    handler = Asking()
    client._process.agent = None  # as in a process that has made none
    logging.getLogger("guard_agent").addHandler(handler)
    try:
        guard_agent(config(enrichers=[], allow_unredacted=True))
    finally:
        logging.getLogger("guard_agent").removeHandler(handler)

    assert errors
