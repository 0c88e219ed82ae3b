"""Whole agents that share a store, in the short form of ``agent_sweep.py``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from guard_agent.testing.redis_server import require_server

SWEEP = Path(__file__).with_name("agent_sweep.py")

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL"),
    pytest.mark.timeout(170),
    pytest.mark.parametrize("store", ["disk", "redis"]),
]


def run(store, scenario, *arguments):
    """The row the script prints, by the names in its head."""
    if store == "redis":
        require_server()
    done = subprocess.run(
        [sys.executable, str(SWEEP), "--store", store, "--only", scenario, *arguments],
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, row = done.stdout.splitlines()[-2:]
    names = ("scenario", "processes", "restarts", "kills", "confirmed", "lost", "twice")
    return dict(zip(names, row.split(), strict=False))


def test_r10_eight_agents_deliver_every_record_once(store):
    row = run(store, "share")

    assert (row["processes"], row["confirmed"]) == ("8", "4000")
    assert (row["lost"], row["twice"]) == ("0", "0")


def test_a_rolling_restart_under_load_neither_loses_nor_doubles(store):
    row = run(store, "restarts", "--restarts", "4")

    assert (row["restarts"], row["lost"], row["twice"]) == ("4", "0", "0")


def test_a_collector_that_is_slow_gets_nothing_twice(store):
    """A request takes longer than a process that is silent would be waited for."""
    row = run(store, "slow")

    assert (row["confirmed"], row["lost"], row["twice"]) == ("600", "0", "0")


def test_r11_what_a_killed_agent_had_leased_is_delivered_by_a_living_one(store):
    """Within the seconds in which it is found dead, plus five; the script measures it."""
    row = run(store, "kill")

    assert (row["kills"], row["confirmed"], row["lost"]) == ("1", "600", "0")


def test_p01_a_burst_survives_two_kills_while_the_collector_is_away(store):
    row = run(store, "burst")

    assert (row["kills"], row["confirmed"], row["lost"], row["twice"]) == ("2", "1200", "0", "0")
