"""Records that survive the process: a real agent on a real store, killed with SIGKILL."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from guard_agent.testing.collector import Answer, Collector

RECORD = """
import os, signal, sys
from guard_agent import AgentConfig, SecurityEvent, get_current_timestamp, guard_agent

agent = guard_agent(AgentConfig(
    rollup=False,
    api_key="test-key-0123", endpoint=os.environ["COLLECTOR"], store="disk", project_id="shop",
))
for number in range(int(sys.argv[1])):
    agent.send_event(SecurityEvent(
        timestamp=get_current_timestamp(), event_type="suspicious_request", reason=str(number)
    ))
"""
KILLED = (
    RECORD
    + """
assert agent.flush_to_store() is True
agent.flush_buffer()  # the collector asks for rest: nothing is on its way any more
status = agent.get_status()
assert (status.level, status.loss_window_seconds) == ("journal", 0.05)
assert status.store == {"name": "disk", "sync": "normal"}
os.kill(os.getpid(), signal.SIGKILL)
"""
)
DELIVERED = (
    RECORD
    + """
agent.start()
agent.flush_to_store()
agent.flush_buffer()
agent.stop()
"""
)


@pytest.fixture
def run(tmp_path):
    def run(script: str, endpoint: str, count: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", script, str(count)],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "GUARD_AGENT_STATE_DIR": str(tmp_path / "state"),
                "COLLECTOR": endpoint,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_what_is_in_the_store_survives_a_kill_and_is_delivered_by_the_next_process(run):
    """Each record arrives once."""
    with Collector() as collector:
        collector.always(Answer(status=503, headers={"Retry-After": "600"}))
        killed = run(KILLED, collector.url, 300)
        assert killed.returncode == -9, killed.stderr
        collector.always(None)
        finished = run(DELIVERED, collector.url, 0)
        assert finished.returncode == 0, finished.stderr

        assert sorted(int(event["reason"]) for event in collector.events) == list(range(300))
        assert collector.duplicates == []


def test_a_folder_that_cannot_be_written_costs_durability_only(run, tmp_path):
    (tmp_path / "state").write_text("this is no folder")
    with Collector() as collector:
        finished = run(DELIVERED, collector.url, 20)

        assert finished.returncode == 0, finished.stderr
        assert len(collector.events) == 20
        assert finished.stderr.count("is not available, records wait in memory") == 1
