"""
Processes that die while they use the store; see kill_sweep.py, which also runs for longer.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from guard_agent.testing.redis_server import require_server

SWEEP = Path(__file__).parent / "kill_sweep.py"


def run(*arguments):
    """The table the sweep prints, as a dictionary; in an interpreter that may fork."""
    require_server()
    done = subprocess.run(
        [sys.executable, SWEEP, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return {line[:20].strip(): line[20:] for line in done.stdout.splitlines()}


@pytest.mark.timeout(110)
def test_p01_no_confirmed_record_is_lost_over_thirty_kills():
    outcome = run("--kills", "30", "--strace-every", "15", "--server-kill-every", "12")

    assert outcome["kills"] == "30"
    assert outcome["lost"] == "0"
    assert int(outcome["confirmed"]) > 1000


@pytest.mark.timeout(110)
def test_r10_eight_processes_deliver_every_record_once():
    outcome = run("--share", "8")

    assert outcome["confirmed"] == outcome["delivered"] == "16000"
    assert outcome["duplicates"] == "0"
