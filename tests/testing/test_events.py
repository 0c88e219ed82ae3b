"""What `guard_events` shows of an app, and what it leaves behind."""

from __future__ import annotations

import gc
import re
import threading

import httpx
import pytest
from fastapi import FastAPI
from flask import Flask
from flaskapi_guard import FlaskAPIGuard
from flaskapi_guard import SecurityConfig as FlaskSecurityConfig
from guard import SecurityConfig, SecurityMiddleware

from guard_agent import AgentConfig, SecurityMetric, client, get_current_timestamp, guard_agent
from guard_agent.integrations.asgi import agent_lifespan
from guard_agent.testing.collector import Collector
from guard_agent.testing.events import GuardEvents
from guard_agent.testing.records import make_event

pytest_plugins = ["guard_agent.testing.pytest_plugin"]

NOWHERE = "http://127.0.0.1:9"
INJECTION = {"q": "1' UNION SELECT password FROM users--"}


def make_app():
    app = FastAPI(lifespan=agent_lifespan())
    setup = SecurityConfig(
        enable_agent=True,
        agent_api_key="test-key-0123",
        agent_endpoint=NOWHERE,
        agent_project_id="shop",
        enable_redis=False,
        enable_dynamic_rules=True,
        trusted_proxies=["127.0.0.1"],
    )
    app.add_middleware(SecurityMiddleware, config=setup)

    @app.get("/items")
    def items():
        return []

    return app


def visitor(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")


async def attack(app, address):
    async with visitor(app) as http:
        headers = {"User-Agent": "Mozilla/5.0", "X-Forwarded-For": address}
        await http.get("/items", params=INJECTION, headers=headers)


APP = make_app()


@pytest.mark.parametrize("time", ["first", "second"])
async def test_an_app_at_module_level_is_seen_in_every_test(guard_events, time):
    address = f"192.0.2.{len(time)}"
    await attack(APP, address)

    event = guard_events.one("penetration_attempt", ip=address)
    assert event["endpoint"] == "/items"
    assert guard_events.count(ip=address) >= 2
    assert len(guard_events) == guard_events.count()
    guard_events.one("pattern_detected")
    guard_events.none("ip_banned")

    async with visitor(APP) as http:
        await http.get("/items", headers={"User-Agent": "Mozilla/5.0"})
    assert {metric["metric_type"] for metric in guard_events.metrics} >= {"request_count"}


async def test_an_app_with_a_lifespan_may_have_ended(guard_events):
    app = make_app()
    async with app.router.lifespan_context(app):
        await attack(app, "192.0.2.31")

    guard_events.one("penetration_attempt", ip="192.0.2.31")


@pytest.fixture
def stopped():
    """What another test has left: the agent of the process, which is stopped."""
    agent = guard_agent(AgentConfig(api_key="other-key-0123", endpoint=NOWHERE, rules=[]))
    agent.stop()
    yield agent
    client._process.agent = client._process.given = None


async def test_the_agent_of_another_test_is_not_taken_for_that_of_the_app(stopped, guard_events):
    app = make_app()
    async with app.router.lifespan_context(app):
        await attack(app, "192.0.2.32")

    guard_events.one("penetration_attempt", ip="192.0.2.32")


def test_an_agent_that_was_stopped_is_stopped_again(stopped):
    with GuardEvents() as events:
        stopped.send_event(make_event())
        assert events.count() == 1

    stopped.send_event(make_event())
    assert stopped.get_status().destinations["http"]["dropped"] == {"stopped": 1}
    assert client._process.agent is stopped._agent


def test_a_blocking_app_is_seen_as_well(guard_events):
    app = Flask("shop")
    FlaskAPIGuard(
        app,
        config=FlaskSecurityConfig(
            enable_agent=True,
            agent_api_key="test-key-0123",
            agent_endpoint=NOWHERE,
            enable_redis=False,
        ),
    )
    app.get("/items")(lambda: "")

    app.test_client().get(
        "/items", query_string=INJECTION, environ_base={"REMOTE_ADDR": "192.0.2.33"}
    )

    guard_events.one("penetration_attempt", ip="192.0.2.33", endpoint="/items")


def test_nothing_is_left_behind():
    before = client._process.agent
    threads = set(threading.enumerate())

    with GuardEvents() as events:
        agent = guard_agent(AgentConfig(api_key="test-key-0123", endpoint=NOWHERE))
        agent.send_event(make_event())
        assert events.count() == 1

    assert client._process.agent is before
    assert client._process.compose is None
    assert set(threading.enumerate()) - threads == set()


def test_an_agent_that_runs_already_is_diverted_and_given_back():
    gc.collect()
    with Collector() as collector:
        config = AgentConfig(api_key="test-key-0123", endpoint=collector.url, rules=[])
        agent = guard_agent(config)
        try:
            agent.send_event(make_event(reason="before"))
            with GuardEvents() as events:
                agent.send_event(make_event(reason="during"))
                events.one(reason="during")
            agent.send_event(make_event(reason="after"))
            agent.flush_buffer()
            assert [event["reason"] for event in collector.events] == ["before", "after"]
        finally:
            agent.stop()
            client._process.agent = None


@pytest.fixture
def agent(guard_events):
    return guard_agent(AgentConfig(api_key="test-key-0123", endpoint=NOWHERE))


def test_an_event_is_what_a_collector_would_get(agent, guard_events):
    agent.send_event(make_event(metadata={"password": "hunter2", "duration": 600}))

    event = guard_events.one("penetration_attempt")
    assert event["metadata"]["password"] == "[REDACTED]"
    assert isinstance(event["idempotency_key"], str)


def test_fields_are_compared_as_they_are_given(agent, guard_events):
    agent.send_event(make_event(metadata={"duration": 600, "other": 1}, ip_address="192.0.2.1"))

    guard_events.one(ip="192.0.2.1", metadata={"duration": 600}, status_code=400)
    guard_events.one(reason=re.compile("SQL"), ip_address="192.0.2.1")
    guard_events.none(reason="SQL")
    guard_events.none(reason=re.compile("XSS"))
    guard_events.none(metadata={"duration": 601})
    guard_events.none(metadata={"missing": None})
    guard_events.none(no_such_field=None)


def test_all_keep_their_order_and_can_be_forgotten(agent, guard_events):
    for n in range(3):
        agent.send_event(make_event(reason=str(n), event_type="one" if n % 2 else "two"))
    agent.send_metric(
        SecurityMetric(timestamp=get_current_timestamp(), metric_type="block_rate", value=1)
    )

    assert [event["reason"] for event in guard_events] == ["0", "1", "2"]
    assert [event["reason"] for event in guard_events.all("two")] == ["0", "2"]
    assert repr(guard_events) == "<GuardEvents: 2 x two, 1 x one>"
    assert [metric["metric_type"] for metric in guard_events.metrics] == ["block_rate"]
    guard_events.clear()
    assert (len(guard_events), guard_events.metrics) == (0, [])


def test_a_failure_lists_what_came_and_how_it_differs(agent, guard_events):
    agent.send_event(make_event(event_type="ip_banned", ip_address="192.0.2.7", reason="late"))
    agent.send_event(make_event(event_type="other", reason="x"))

    with pytest.raises(AssertionError) as failure:
        guard_events.one("ip_banned", ip="192.0.2.1")

    first, second, event, difference, other = str(failure.value).splitlines()
    assert first == "guard_events.one('ip_banned', ip='192.0.2.1'): there are no such events"
    assert second == "2 events came:"
    assert event.startswith("  ip_banned ip_address='192.0.2.7' method='GET' endpoint='/items'")
    assert difference == "    but ip_address is '192.0.2.7'"
    assert other.startswith("  other ")


def test_too_many_are_marked_in_the_list(agent, guard_events):
    for address in ("192.0.2.1", "192.0.2.2"):
        agent.send_event(make_event(event_type="ip_banned", ip_address=address))

    with pytest.raises(AssertionError, match="there are 2 such events") as failure:
        guard_events.one("ip_banned")
    assert str(failure.value).count("> ip_banned") == 2
    with pytest.raises(AssertionError, match="there are 1 such events"):
        guard_events.none("ip_banned", ip="192.0.2.2")


def test_a_misspelt_type_gets_a_suggestion(agent, guard_events):
    agent.send_event(make_event(event_type="ip_banned"))

    with pytest.raises(AssertionError, match="did you mean 'ip_banned'"):
        guard_events.one("ip_baned")


def test_what_the_agent_dropped_is_told(agent, guard_events):
    agent.send_event({"no": "event"})

    with pytest.raises(AssertionError, match=r"0 events came\ndropped by the agent: .*invalid.*1"):
        guard_events.one("ip_banned")


def test_when_nothing_came_at_all_the_message_says_what_to_look_at(guard_events):
    with pytest.raises(AssertionError, match="no metrics either: is enable_agent=True set"):
        guard_events.one("ip_banned")


def test_one_at_a_time(guard_events):
    with pytest.raises(RuntimeError, match="in use already"), GuardEvents():
        pass
    assert guard_events.count() == 0
