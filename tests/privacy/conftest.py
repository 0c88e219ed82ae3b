from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from guard_agent import AgentConfig
from guard_agent.core.assembly.composition import compose
from guard_agent.core.intake.pipeline import Pipeline

# Test modules are not importable by name, so that no two of them can be mixed up.
_HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def canaries():
    """The names of ``canaries.py``."""
    return SimpleNamespace(**runpy.run_path(str(_HERE / "canaries.py")))


@pytest.fixture(scope="session")
def benign():
    """The names of ``benign.py``."""
    return SimpleNamespace(**runpy.run_path(str(_HERE / "benign.py")))


@pytest.fixture
def make_pipeline(tmp_path, monkeypatch):
    """The pipeline of an agent as it is by default, or with settings of the redaction."""
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))

    def make(**redaction) -> Pipeline:
        config = AgentConfig(
            api_key="test-key-0123",
            transports=["console"],
            rules=[],
            plugins={"redaction": redaction},
        )
        return Pipeline(compose(config).build().enrichers)

    return make
