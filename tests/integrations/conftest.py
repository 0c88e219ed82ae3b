"""What the tests of the integrations share."""

from __future__ import annotations

import pytest

from guard_agent import AgentConfig


@pytest.fixture(autouse=True)
def alone(surroundings):
    """Every test here."""


@pytest.fixture
def config(collector):
    """Settings with which nothing is sent before the agent stops."""
    return AgentConfig(api_key="test-key-0123", endpoint=collector.url, flush_interval=3600)
