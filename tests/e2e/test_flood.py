"""
A flood of hostile requests against a really guarded app, and a kill in the middle of one.

``benchmarks/flood.py`` has the long form, with its figures in ``docs/signal.md``.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from guard_agent.testing.collector import Collector

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "flood.py"

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def measure():
    return runpy.run_path(str(BENCHMARK))["measure"]


def test_a_flood_arrives_as_every_attack_with_its_count(measure):
    """The collector is down for the first half of it."""
    row = measure("flood", 1_000, rollup=True)

    assert row["distinct"] == 20
    assert row["delivered"] == row["right"] == 20
    assert row["all_counted"] == sum(row["events"].values())
    assert row["books"]["dropped"] == {}
    assert row["books"]["pending"] == 0
    assert row["records"] < row["made"] / 2


def test_more_events_than_fit_arrive_with_their_counts_all_the_same(measure):
    """24,000 events through a buffer of 10,000, while nothing is delivered for half of the time."""
    row = measure("straight", 24_000, rollup=True)

    assert row["distinct"] == 4_000
    assert row["delivered"] == row["right"] == 4_000
    assert row["books"]["dropped"] == {}
    assert row["books"]["merged"] + row["books"]["delivered"] == 24_000


def test_ordinary_requests_make_a_small_stream(measure):
    row = measure("benign", 60, rollup=True)

    assert row["all_counted"] == sum(row["events"].values())
    assert row["records"] * 5 < row["made"]


KILLED = """
import os, signal, sys
from guard_agent import AgentConfig, SecurityEvent, SyncGuardAgentHandler, get_current_timestamp
config = AgentConfig(
    api_key="test-key-0123", endpoint=sys.argv[1], project_id="killed", store="disk", rules=[],
    rollup=True, plugins={"rollup": {"interval": 3600}},
)
agent = SyncGuardAgentHandler(config)
def send(address, times):
    for _ in range(times):
        agent.send_event(SecurityEvent(
            timestamp=get_current_timestamp(), event_type="ip_blocked", ip_address=address))
for number in range(20):
    send(f"203.0.113.{number}", 5)
assert agent.flush_to_store()
for number in range(20):
    send(f"203.0.113.{number}", 3)
    send(f"198.51.100.{number}", 3)
if sys.argv[2] == "kill":
    import time
    time.sleep(1)  # twenty loss windows
    os.kill(os.getpid(), signal.SIGKILL)
agent.stop()
"""


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_p01_no_attack_is_only_in_the_memory_of_what_merges(tmp_path, end):
    """A kill costs the counts of the last interval, and no first occurrence."""
    environment = {"GUARD_AGENT_STATE_DIR": str(tmp_path), "PATH": ""}
    with Collector() as collector:
        collector.stop()
        arguments = [sys.executable, "-c", KILLED, collector.url]
        first = subprocess.run(
            [*arguments, end], env=environment, cwd=tmp_path, timeout=120, check=False
        )
        assert first.returncode == (-9 if end == "kill" else 0)
        collector.start()
        second = subprocess.run(
            [sys.executable, "-c", COLLECT, collector.url],
            env=environment,
            cwd=tmp_path,
            timeout=120,
            check=False,
        )
        assert second.returncode == 0
        counts: dict[str, int] = {}
        for event in collector.events:
            address = event["ip_address"]
            counts[address] = counts.get(address, 0) + event["metadata"].get("guard.count", 1)

    known = [counts[f"203.0.113.{number}"] for number in range(20)]
    new = [counts[f"198.51.100.{number}"] for number in range(20)]
    if end == "stop":
        assert (known, new) == ([8] * 20, [3] * 20)
    else:
        assert (known, new) == ([5] * 20, [1] * 20)


COLLECT = """
import sys, time
from guard_agent import AgentConfig, SyncGuardAgentHandler
agent = SyncGuardAgentHandler(AgentConfig(
    api_key="test-key-0123", endpoint=sys.argv[1], project_id="killed", store="disk", rules=[],
    backoff_factor=0.01, flush_interval=0.1,
))
agent.start()
deadline = time.monotonic() + 60
while True:
    agent.flush_buffer()
    books = agent.get_status().destinations["http"]
    if books["delivered"] and not books["pending"]:
        break
    assert time.monotonic() < deadline, books
    time.sleep(0.1)
agent.stop()
"""
