from __future__ import annotations

import logging

import pytest

from guard_agent import AgentConfig
from guard_agent.core.agent import Agent
from guard_agent.core.assembly.composition import compose
from guard_agent.testing.registry import isolated_registry
from guard_agent.testing.transports import RecordingTransport


@pytest.fixture(autouse=True)
def state_dir(tmp_path, monkeypatch):
    """What an agent keeps on disk goes away with the test."""
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def make_agent(caplog):
    """
    Builds agents with plugins of the test; stops them at its end and checks their books.

    An agent outlives a defect of its own: it logs an error and tries again. So none may be there.
    """
    agents: list[Agent] = []

    def make(*classes, **settings) -> Agent:
        transports = [cls.name for cls in classes if issubclass(cls, RecordingTransport)]
        config = AgentConfig(
            **{
                "api_key": "test-key-0123",
                "transports": transports,
                "enrichers": [],
                "allow_unredacted": True,
                "rules": [],
                "flush_interval": 3600,
                **settings,
            }
        )
        agent = Agent(compose(config, isolated_registry(*classes)))
        agents.append(agent)
        return agent

    yield make
    for agent in agents:
        agent.stop().result(30)
        for destination in agent._current().destinations.values():
            assert getattr(destination.transport, "violations", []) == []
        for name, balance in agent.balances().items():
            assert balance.difference == 0, (name, balance)
    logged = [*caplog.get_records("call"), *caplog.get_records("teardown")]
    assert [
        record.exc_text or record.getMessage()
        for record in logged
        if record.name == "guard_agent.worker" and record.levelno >= logging.ERROR
    ] == []
