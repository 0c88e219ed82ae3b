"""
Forks a process again and again while eight of its threads record, and then counts.

    python tests/sweeps/fork_sweep.py --forks 1000

Each child records one event, stops its agent and ends. At the end the collector must have the one
event of every child, everything the parent recorded, and nothing twice; and no child may hang.

The exit status is 0 when all of that is true.
"""

# ruff: noqa: T201 - a script that prints a table

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time

from guard_agent.testing.collector import Collector

THREADS = 8
AT_ONCE = 4
PATIENCE = 60.0
"""Seconds after which a child that has not ended hangs."""


def parent(forks: int, endpoint: str) -> None:
    """Run in a process of its own: record, fork, wait; print what the books say."""
    import threading

    from guard_agent import (
        AgentConfig,
        SecurityEvent,
        get_current_timestamp,
        guard_agent,
    )

    agent = guard_agent(
        AgentConfig(api_key="test-key-0123", endpoint=endpoint, rules=[], rollup=False)
    )
    ended = threading.Event()

    def event(reason: str) -> SecurityEvent:
        return SecurityEvent(
            timestamp=get_current_timestamp(), event_type="suspicious_request", reason=reason
        )

    def record() -> None:
        while not ended.wait(0.002):
            agent.send_event(event("parent"))

    threads = [threading.Thread(target=record) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    hung = 0
    children: dict[int, float] = {}
    for number in range(forks):
        child = os.fork()
        if child == 0:
            agent.send_event(event(f"child {number}"))
            agent.stop()
            os._exit(0)
        children[child] = time.monotonic()
        while len(children) >= AT_ONCE:
            hung += reap(children)
    while children:
        hung += reap(children)
    ended.set()
    for thread in threads:
        thread.join()
    agent.stop()
    books = agent.get_status().destinations["http"]
    print(hung, books["accepted"], books["delivered"], flush=True)


def reap(children: dict[int, float]) -> int:
    """Wait for any child; returns 1 when one had to be killed because it hangs."""
    for child, since in list(children.items()):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            del children[child]
            return int(status != 0)
        if time.monotonic() - since > PATIENCE:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            del children[child]
            return 1
    time.sleep(0.001)
    return 0


def sweep(forks: int) -> dict[str, int]:
    """Fork ``forks`` times; what was seen."""
    with Collector() as collector, tempfile.TemporaryDirectory() as home:
        process = subprocess.run(
            [sys.executable, __file__, "--forks", str(forks), "--endpoint", collector.url],
            env={**os.environ, "HOME": home, "GUARD_AGENT_STATE_DIR": home},
            stdout=subprocess.PIPE,
            check=True,
        )
        hung, accepted, delivered = map(int, process.stdout.split())
        reasons = [event["reason"] for event in collector.events]
        children = [reason for reason in reasons if reason != "parent"]
        return {
            "forks": forks,
            "hung": hung,
            "recorded by the parent": accepted,
            "lost of the parent": accepted - reasons.count("parent"),
            "undelivered by its books": accepted - delivered,
            "lost of children": forks - len(set(children)),
            "twice": len(collector.duplicates) + len(children) - len(set(children)),
        }


def is_sound(seen: dict[str, int]) -> bool:
    losses = set(seen) - {"forks", "recorded by the parent"}
    return seen["recorded by the parent"] > 0 and not any(seen[name] for name in losses)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--forks", type=int, default=1000)
    parser.add_argument("--endpoint", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.endpoint:
        parent(given.forks, given.endpoint)
        sys.exit()
    began = time.monotonic()
    result = sweep(given.forks)
    for name, number in result.items():
        print(f"{name:<26}{number}")
    print(f"{'seconds':<26}{time.monotonic() - began:.1f}")
    sys.exit(0 if is_sound(result) else 1)
