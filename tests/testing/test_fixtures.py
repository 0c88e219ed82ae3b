"""The fixtures of `guard_agent.testing.pytest_plugin`, and what importing the kit needs."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from guard_agent import AgentConfig, SecurityEvent
from guard_agent.core.assembly.composition import compose
from guard_agent.testing.clock import VirtualClock
from guard_agent.testing.transports import RecordingTransport

pytest_plugins = ["guard_agent.testing.pytest_plugin"]


def test_the_registry_sees_nothing_that_is_installed(guard_registry):
    registry = guard_registry(RecordingTransport)

    names = {provider.name for provider in registry.providers}
    assert "recording" in names
    assert "http" not in names
    config = AgentConfig(
        api_key="test-key-0123",
        transports=["recording"],
        enrichers=[],
        rules=[],
        allow_unredacted=True,
    )
    assert [step.cls for step in compose(config, registry).transports] == [RecordingTransport]


async def test_the_transport_keeps_what_it_gets(guard_transport):
    assert isinstance(guard_transport, RecordingTransport)
    assert guard_transport.batches == []


def test_events_are_made_with_the_fields_that_matter(make_event):
    assert isinstance(make_event(), SecurityEvent)
    assert make_event(ip_address="192.0.2.1").ip_address == "192.0.2.1"


def test_the_clock_stands_still_until_it_is_moved(guard_clock):
    before = guard_clock()

    assert guard_clock() == before
    guard_clock.advance(60)
    assert guard_clock() == guard_clock.now == before + 60
    with pytest.raises(ValueError, match="does not go back"):
        guard_clock.advance(-1)


async def test_sleepers_wake_in_the_order_of_their_times():
    clock = VirtualClock()
    woken: list[str] = []

    async def sleep(name, seconds):
        await clock.sleep(seconds)
        woken.append(name)

    tasks = [asyncio.ensure_future(sleep(*what)) for what in (("late", 5), ("soon", 2), ("now", 0))]
    cancelled = asyncio.ensure_future(clock.sleep(3))
    for _ in range(3):
        await asyncio.sleep(0)
    assert woken == ["now"]
    cancelled.cancel()
    await asyncio.sleep(0)

    clock.advance(1.9)
    await asyncio.sleep(0)
    assert woken == ["now"]
    clock.advance(10)
    await asyncio.gather(*tasks)
    assert woken == ["now", "soon", "late"]


def test_the_kit_is_imported_without_what_its_tests_need(tmp_path):
    """Only who uses a suite, a collector or a Redis needs what is for it."""
    script = """
import sys
for name in ("pytest", "hypothesis", "redis", "aiohttp", "_pytest"):
    sys.modules[name] = None
import guard_agent.testing
import guard_agent.testing.clock, guard_agent.testing.corpus, guard_agent.testing.events
import guard_agent.testing.records, guard_agent.testing.registry, guard_agent.testing.transports
with guard_agent.testing.events.GuardEvents() as events:
    events.none("ip_banned")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
