"""
Fixtures for pytest.

Switched on with ``pytest_plugins = ["guard_agent.testing.pytest_plugin"]`` in the ``conftest.py``
at the root of the tests, or in a test module. What a fixture needs is imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guard_agent import SecurityEvent
    from guard_agent.core.assembly.registry import Registry
    from guard_agent.testing.clock import VirtualClock
    from guard_agent.testing.collector import Collector
    from guard_agent.testing.events import GuardEvents
    from guard_agent.testing.transports import RecordingTransport


@pytest.fixture
def guard_events(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[GuardEvents]:
    """What the application under test reports, in memory: nothing is sent."""
    from guard_agent.testing.events import GuardEvents  # noqa: PLC0415 - see above

    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "guard-agent"))
    with GuardEvents() as events:
        yield events


@pytest.fixture
def guard_collector() -> Iterator[Collector]:
    """A collector that listens on a free port of loopback while the test runs."""
    from guard_agent.testing.collector import Collector  # noqa: PLC0415 - see above

    with Collector() as collector:
        yield collector


@pytest.fixture
def guard_registry() -> Callable[..., Registry]:
    """
    Make a registry with the built-in plugins and the classes that are passed.

    What is installed in the environment is not looked at; for ``compose(config, registry)``.
    """
    from guard_agent.testing.registry import isolated_registry  # noqa: PLC0415 - see above

    return isolated_registry


@pytest.fixture
def guard_transport() -> RecordingTransport:
    """A transport that takes everything and keeps it, and is strict about its contract."""
    from guard_agent.testing.transports import RecordingTransport  # noqa: PLC0415 - see above

    return RecordingTransport()


@pytest.fixture
def guard_clock() -> VirtualClock:
    """A clock that stands still until the test moves it."""
    from guard_agent.testing.clock import VirtualClock  # noqa: PLC0415 - see above

    return VirtualClock()


@pytest.fixture
def make_event() -> Callable[..., SecurityEvent]:
    """Make an event of an attack that was blocked, with the fields that are passed."""
    from guard_agent.testing import records  # noqa: PLC0415 - see above

    return records.make_event
