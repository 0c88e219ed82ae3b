"""What the tests of the commands share: a folder of their own, a collector, an agent beside."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from guard_agent import AgentConfig
from guard_agent.cli import main
from guard_agent.core.agent import Agent
from guard_agent.core.assembly.composition import compose
from guard_agent.testing.redis_server import redis_server  # noqa: F401 - a fixture


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GUARD_AGENT_CONFIG", raising=False)
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def run(folder):
    """Run the command; what it printed and how it ended."""
    return lambda *arguments: CliRunner().invoke(main, [str(word) for word in arguments])


@pytest.fixture
def configure(folder, collector):
    """Write a configuration file; returns the settings."""

    def configure(**settings):
        settings = {
            "api_key": "test-key-0123",
            "endpoint": collector.url,
            "project_id": "shop",
            "rules": [],
            **settings,
        }
        Path("guard-agent.yaml").write_text(json.dumps(settings), encoding="utf-8")
        return settings

    return configure


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Put a distribution on the path, as an installation leaves it."""

    def distribution(name, version, files, *, entry_points=None, metadata=True):
        site = tmp_path / f"site-{name}-{version}"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        for path, text in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(text, encoding="utf-8")
        if metadata:
            head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            (info / "METADATA").write_text(head, encoding="utf-8")
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files), encoding="utf-8")
        points = "".join(f"{key} = {value}\n" for key, value in (entry_points or {}).items())
        (info / "entry_points.txt").write_text(f"[guard_agent]\n{points}", encoding="utf-8")
        # At the end: what is there must not be imported in the place of the real thing.
        monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
        importlib.invalidate_caches()
        return site

    return distribution


@pytest.fixture(params=["disk", "redis"])
def durable(request):
    """The settings of a store that outlives the process, empty."""
    if request.param == "disk":
        return {"store": "disk"}
    server = request.getfixturevalue("redis_server")
    server.command("FLUSHALL")
    return {"store": "redis", "plugins": {"redis": {"url": server.url, "deadline": 5}}}


@pytest.fixture
def start():
    """Start an agent with these settings, in this process; it is stopped at the end."""
    agents = []

    def start(settings):
        agent = Agent(compose(AgentConfig(**settings)))
        agents.append(agent)
        agent.start()
        return agent

    yield start
    for agent in agents:
        agent.stop().result(10)
