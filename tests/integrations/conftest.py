"""A collector, and an agent that no test leaves behind."""

from __future__ import annotations

import pytest

from guard_agent import AgentConfig, client
from guard_agent.testing.collector import Collector


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    forget_agent()
    yield
    forget_agent()


def forget_agent() -> None:
    """As in a process that has made none."""
    if client._process.agent is not None:
        client._process.agent.stop().result(30)
    client._process.agent = None


@pytest.fixture
def config(collector):
    """Settings with which nothing is sent before the agent stops."""
    return AgentConfig(api_key="test-key-0123", endpoint=collector.url, flush_interval=3600)
