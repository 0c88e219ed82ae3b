"""
A real app, guarded by the real fastapi-guard under a real uvicorn, reports to a collector.

The guard takes the first ten requests of an address per minute and bans an address at its third
attack, so every test uses addresses of its own.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import socket
import time
from datetime import datetime, timezone
from uuid import UUID

import pytest

from guard_agent.testing.collector import Answer

pytest_plugins = ["guard_agent.testing.pytest_plugin"]

# Without it, each of several test processes would start an app for its share of this file.
pytestmark = [pytest.mark.xdist_group("e2e-fastapi"), pytest.mark.timeout(120)]

INJECTION = {"q": "1' UNION SELECT password FROM users--"}
TRAVERSAL = {"q": "../../../../etc/passwd"}
SCRIPTING = {"q": "<script>alert(1)</script>"}

# An outage ends at the next probe, which backs off up to a minute.
PATIENCE = 60


def of(records, **wanted):
    return [
        record
        for record in records
        if all(record.get(name) == value for name, value in wanted.items())
    ]


def event_of(collector, event_type, address, count=1):
    """Wait for ``count`` events of this type and address; returns the last."""
    wanted = {"event_type": event_type, "ip_address": address}
    collector.wait_for(lambda c: len(of(c.events, **wanted)) >= count, PATIENCE)
    events = of(collector.events, **wanted)
    assert len(events) == count
    return events[-1]


def moment_of(record):
    return datetime.fromisoformat(record["timestamp"].replace("Z", "+00:00"))


# --- events ---------------------------------------------------------------------------------------


def test_a_penetration_attempt_arrives_with_its_fields(app, collector):
    before = datetime.now(timezone.utc)
    response = app.request("/products", address="203.0.113.1", params=INJECTION)
    assert response.status_code == 400

    event = event_of(collector, "penetration_attempt", "203.0.113.1")
    assert event["endpoint"] == "/products"
    assert event["method"] == "GET"
    assert event["action_taken"] == "request_blocked"
    assert event["user_agent"] == "Mozilla/5.0"
    assert event["handler_name"] == "middleware"
    assert event["reason"].startswith("Penetration attempt detected: Query param 'q'")
    assert "SELECT" in event["metadata"]["trigger_info"]
    assert event["metadata"]["request_count"] == 1
    assert event["response_time"] > 0
    assert before <= moment_of(event) <= datetime.now(timezone.utc)
    assert UUID(event["idempotency_key"])


def test_an_attack_in_a_body_arrives(app, collector):
    form = {"user": "x' UNION SELECT 1,2,3 FROM users--"}
    response = app.request("/login", address="203.0.113.2", method="POST", json=form)
    assert response.status_code == 400

    event = event_of(collector, "penetration_attempt", "203.0.113.2")
    assert (event["method"], event["endpoint"]) == ("POST", "/login")


def test_a_rate_limit_arrives_once_for_each_refused_request(app, collector):
    statuses = [app.request("/", address="203.0.113.3").status_code for _ in range(12)]
    assert statuses == [200] * 10 + [429] * 2

    event = event_of(collector, "rate_limited", "203.0.113.3", count=2)
    assert event["endpoint"] == "/"
    assert event["method"] == "GET"
    assert event["action_taken"] == "request_blocked"
    assert event["handler_name"] == "rate_limit"
    assert event["metadata"] == {"request_count": 12, "rate_limit": 10, "window": 60}


def test_a_blocked_user_agent_arrives(app, collector):
    headers = {"User-Agent": "sqlmap/1.8"}
    assert app.request("/", address="203.0.113.4", headers=headers).status_code == 403

    event = event_of(collector, "user_agent_blocked", "203.0.113.4")
    assert event["endpoint"] == "/"
    assert event["action_taken"] == "request_blocked"
    assert event["user_agent"] == "sqlmap/1.8"
    assert event["metadata"]["filter_type"] == "global"


def test_a_ban_and_what_it_stops_arrive(app, collector):
    statuses = [
        app.request("/products", address="203.0.113.5", params=attack).status_code
        for attack in (INJECTION, TRAVERSAL, SCRIPTING, {})
    ]
    assert statuses == [400, 400, 403, 403]

    ban = event_of(collector, "ip_banned", "203.0.113.5")
    assert ban["action_taken"] == "banned"
    assert ban["reason"] == "penetration_attempt"
    assert ban["handler_name"] == "ip_ban"
    assert ban["metadata"]["duration"] == 600
    blocked = event_of(collector, "ip_blocked", "203.0.113.5")
    assert blocked["action_taken"] == "request_blocked"
    assert blocked["endpoint"] == "/products"
    assert blocked["metadata"]["filter_type"] == "banned"


# --- metrics --------------------------------------------------------------------------------------


def test_request_metrics_arrive_with_their_tags(app, collector):
    address = "203.0.113.6"
    assert app.request("/products/2", address=address).status_code == 200
    assert app.request("/products/404", address=address).status_code == 404

    found = {"endpoint": "/products/2", "method": "GET"}
    missing = {"endpoint": "/products/404", "method": "GET"}
    collector.wait_for(
        lambda c: of(c.metrics, metric_type="error_rate", tags={**missing, "status": "404"}),
        PATIENCE,
    )

    [count] = of(collector.metrics, metric_type="request_count", tags=found)
    assert count["value"] == 1
    [seconds] = of(collector.metrics, metric_type="response_time", tags={**found, "status": "200"})
    assert 0 < seconds["value"] < 30
    assert of(collector.metrics, metric_type="response_time", tags={**missing, "status": "404"})
    assert not of(collector.metrics, metric_type="error_rate", tags={**found, "status": "200"})
    assert UUID(count["idempotency_key"]) != UUID(seconds["idempotency_key"])


# --- secrets --------------------------------------------------------------------------------------


def test_no_secret_of_a_request_arrives(app, collector):
    secrets = {
        "bearer": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJlMmUifQ.c2lnbmF0dXJlLWUyZQ",
        "cookie": "e2e-cookie-1f",
        "key": "e2e-key-2f",
        "token": "e2e-token-3f",
        "query": "e2e-password-4f",
        "form": "e2e-password-5f",
        "userinfo": "e2e-password-6f",
        "agent": "e2e-token-7f",
    }
    headers = {
        "Authorization": f"Bearer {secrets['bearer']}",
        "Cookie": f"session={secrets['cookie']}",
        "X-Api-Key": secrets["key"],
    }
    credentials = {"token": secrets["token"], "password": secrets["query"]}
    url = f"https://user:{secrets['userinfo']}@shop.example/"
    requests = (
        ("203.0.113.10", {"params": {**INJECTION, **credentials}}),
        ("203.0.113.11", {"params": {"q": f"<script src={url}>alert(1)</script>"}}),
        ("203.0.113.12", {"method": "POST", "json": {**INJECTION, "password": secrets["form"]}}),
        ("203.0.113.13", {"params": {"q": f"1' OR 1=1 -- Bearer {secrets['bearer']}"}}),
    )
    for address, request in requests:
        response = app.request("/products", address=address, headers=headers, **request)
        assert response.status_code == 400
    tool = {**headers, "User-Agent": f"sqlmap/1.8 (token={secrets['agent']})"}
    assert app.request("/", address="203.0.113.14", headers=tool).status_code == 403

    for address, _ in requests:
        event_of(collector, "penetration_attempt", address)
    event_of(collector, "user_agent_blocked", "203.0.113.14")
    received = [str(request) for request in collector.requests]
    leaked = {name for name, secret in secrets.items() if any(secret in text for text in received)}
    assert leaked == set()


# --- rules ----------------------------------------------------------------------------------------


def test_published_rules_block_an_address_and_a_user_agent(app, collector):
    """
    Within seconds, although the guard itself asks for rules once a minute at most.
    """
    scraper = {"User-Agent": "GreedyScraper/2.0"}
    assert app.request("/", address="203.0.113.20").status_code == 200
    assert app.request("/", address="203.0.113.21", headers=scraper).status_code == 200

    rules = collector.publish(
        {
            "ip_blacklist": ["203.0.113.20"],
            "ip_ban_duration": 1200,
            "blocked_user_agents": ["sqlmap", "GreedyScraper"],
        }
    )

    applied = event_of(collector, "dynamic_rule_applied", "system")
    assert applied["metadata"]["rule_id"] == rules["rule_id"]
    assert applied["metadata"]["version"] == rules["version"]
    assert app.request("/", address="203.0.113.20").status_code == 403
    assert app.request("/", address="203.0.113.21", headers=scraper).status_code == 403
    assert app.request("/", address="203.0.113.22").status_code == 200

    ban = event_of(collector, "ip_banned", "203.0.113.20")
    assert (ban["reason"], ban["metadata"]["duration"]) == ("dynamic_rule", 1200)
    assert event_of(collector, "ip_blocked", "203.0.113.20")["action_taken"] == "request_blocked"
    assert event_of(collector, "user_agent_blocked", "203.0.113.21")["endpoint"] == "/"


def test_rules_are_asked_for_with_the_etag_of_the_last(app, collector):
    collector.publish({"message": "nothing new"})
    app.request("/", address="203.0.113.23")

    collector.wait_for(lambda c: of_status(c, 304), PATIENCE)
    fetched = of_status(collector, 200)[-1]
    assert "if-none-match" in of_status(collector, 304)[-1].headers
    assert fetched.method == "GET"


def of_status(collector, status):
    return [r for r in collector.requests if (r.path, r.status) == ("/api/v1/rules", status)]


# --- faults ---------------------------------------------------------------------------------------


def test_a_collector_that_is_down_costs_the_app_nothing_and_no_event(app, collector):
    app.request("/", address="203.0.113.30")
    collector.stop()
    try:
        began = time.monotonic()
        statuses = [
            app.request("/products", address="203.0.113.31", params=INJECTION).status_code,
            app.request("/products", address="203.0.113.32", params=SCRIPTING).status_code,
            app.request("/", address="203.0.113.33").status_code,
        ]
        took = time.monotonic() - began
        # Something else on the port shows that the agent tries in vain.
        with socket.create_server(("127.0.0.1", int(collector.url.rpartition(":")[2]))) as other:
            other.settimeout(PATIENCE)
            other.accept()[0].close()
    finally:
        collector.start()

    assert statuses == [400, 400, 200]
    assert took < 5  # the guard's own checks take a tenth of a second each
    event_of(collector, "penetration_attempt", "203.0.113.31")
    event_of(collector, "penetration_attempt", "203.0.113.32")


def test_a_lost_acknowledgement_shows_no_event_twice(app, collector):
    already = len(collector.duplicates)
    collector.answer(Answer(store=True, disconnect=True), only="events")
    app.request("/products", address="203.0.113.34", params=INJECTION)

    collector.wait_for(lambda c: len(c.duplicates) > already, PATIENCE)
    event_of(collector, "penetration_attempt", "203.0.113.34")


# --- the end of the process -----------------------------------------------------------------------


def test_what_waits_at_sigterm_is_delivered_before_the_process_ends(short_lived):
    """
    uvicorn ends by raising the signal again, so that no exit handler of Python runs; the app stops
    its agent in its lifespan.
    """
    collector, app = short_lived
    app.request("/", address="203.0.113.40")
    collector.wait_for(lambda c: c.metrics, PATIENCE)
    app.request("/products", address="203.0.113.41", params=INJECTION)
    app.process.terminate()
    app.process.wait(30)

    assert of(collector.events, event_type="penetration_attempt", ip_address="203.0.113.41")


def test_sigterm_ends_the_process_quickly_without_a_collector(short_lived):
    collector, app = short_lived
    app.request("/", address="203.0.113.42")
    collector.stop()
    app.request("/products", address="203.0.113.43", params=INJECTION)

    began = time.monotonic()
    app.process.terminate()
    app.process.wait(30)
    assert time.monotonic() - began < 5  # stop_timeout is 2 s


# --- the quick start ------------------------------------------------------------------------------

QUICK_START = """
from fastapi import FastAPI
from guard import SecurityConfig, SecurityMiddleware
from guard_agent import AgentConfig, guard_agent

# Configure the agent
agent_config = AgentConfig(
    api_key="your-api-key-here",
    project_id="your-project-id",
    endpoint="https://api.fastapi-guard.com"
)

# Start the agent
agent = guard_agent(agent_config)
await agent.start()

# Send events manually
from guard_agent import SecurityEvent, get_current_timestamp

event = SecurityEvent(
    timestamp=get_current_timestamp(),
    event_type="ip_banned",
    ip_address="192.168.1.100",
    action_taken="banned",
    reason="Suspicious activity detected"
)

await agent.send_event(event)
"""


async def test_the_quick_start_of_the_first_releases_works_word_for_word(
    guard_collector, tmp_path, monkeypatch
):
    """
    As in the first README but for the address, which must not be the real one.
    """
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    source = QUICK_START.replace("https://api.fastapi-guard.com", guard_collector.url)
    code = compile(source, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    names = {}
    started = eval(code, names)
    assert inspect.isawaitable(started)
    await started
    await names["agent"].stop()

    [event] = guard_collector.events
    assert event["event_type"] == "ip_banned"
    assert event["ip_address"] == "192.168.1.100"
    assert event["action_taken"] == "banned"
    assert event["reason"] == "Suspicious activity detected"
    assert event["idempotency_key"] == str(names["event"].idempotency_key)
    [request] = [r for r in guard_collector.requests if r.path == "/api/v1/events"]
    assert request.headers["x-api-key"] == "your-api-key-here"
    assert request.headers["authorization"] == "Bearer your-api-key-here"
    assert request.headers["x-project-id"] == "your-project-id"


async def test_a_second_call_gives_the_same_agent(guard_collector, tmp_path, monkeypatch):
    from guard_agent import AgentConfig, guard_agent

    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path))
    config = AgentConfig(api_key="your-api-key-here", endpoint=guard_collector.url)
    agent = guard_agent(config)
    try:
        await agent.start()
        assert guard_agent(config) is agent
        await asyncio.wait_for(agent.stop(), 30)
    finally:
        await agent.stop()
