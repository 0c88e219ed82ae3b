"""Guard adapters and the sync face outside of the servers that they were made for."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from guard_agent import AgentConfig, client, guard_agent
from guard_agent.testing.collector import Collector
from guard_agent.testing.records import make_event
from guard_agent.testing.redis_server import redis_server  # noqa: F401 - a fixture

APPS = Path(__file__).parent / "apps"


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture
def run(collector, tmp_path):
    """Runs a script that may import the shops to its end."""

    def run(body: str) -> str:
        (tmp_path / "guard-agent.yaml").write_text("plugins: {polling: {interval: 1}}\n")
        done = subprocess.run(
            [sys.executable, "-W", "default", "-c", textwrap.dedent(body)],
            env={
                **os.environ,
                "PYTHONPATH": str(APPS),
                "SHOP": "embedded",
                "SHOP_ENDPOINT": collector.url,
                "GUARD_AGENT_STATE_DIR": str(tmp_path / "state"),
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


def test_a_wsgi_adapter_inside_a_running_loop_reports_and_takes_rules(run, collector):
    """
    As in a notebook, or where an ASGI server imports and serves it.
    """
    collector.publish({"ip_blacklist": ["203.0.113.9"]})

    errors = run("""
        import asyncio, time

        async def main():
            from shop_flask import app
            visitor = app.test_client()

            def visit(path, address):
                headers = {"X-Forwarded-For": address, "User-Agent": "Mozilla/5.0"}
                return visitor.get(path, headers=headers).status_code

            assert visit("/", "203.0.113.8") == 200
            assert visit("/?q=../../../../etc/passwd", "203.0.113.8") == 400
            deadline = time.monotonic() + 30
            while visit("/", "203.0.113.9") != 403:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)

        asyncio.run(main())
    """)

    types = {event["event_type"] for event in collector.events}
    assert types >= {"shop_opened", "penetration_attempt", "dynamic_rule_applied", "ip_blocked"}
    assert {metric["metric_type"] for metric in collector.metrics} >= {"request_count"}
    assert "never awaited" not in errors
    assert "Traceback" not in errors


def test_r06_a_redis_that_freezes_never_blocks_the_sync_face(
    request, collector, tmp_path, monkeypatch
):
    """
    Waiting once for each record, however short, would take minutes.
    """
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    server = request.getfixturevalue("redis_server")
    config = AgentConfig(
        api_key="test-key-0123",
        endpoint=collector.url,
        store="redis",
        plugins={"redis": {"url": server.url}},
    )
    if client._process.agent is not None:
        client._process.agent.stop().result(30)
    agent = guard_agent(config)
    try:
        agent.send_event(make_event(reason="before"))
        assert agent.flush_to_store()
        with server.frozen():
            for number in range(2000):
                agent.send_event(make_event(reason=f"frozen {number}"))
            agent.flush_buffer()
            collector.wait_for(lambda c: len(c.events) >= 2000, 30)
    finally:
        agent.stop()

    assert {f"frozen {number}" for number in range(2000)} <= {e["reason"] for e in collector.events}
