"""P12, P13, P15: an application that instruments libraries and logging, and clocks that jump."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from guard_agent.testing.collector import Answer

PREAMBLE = """
import asyncio, logging, os, sys, threading, time
from guard_agent import AgentConfig, guard_agent

agent = guard_agent(AgentConfig(
    api_key="test-key-0123", endpoint=os.environ["COLLECTOR"], project_id="shop",
    flush_interval=0.1, store=os.environ.get("STORE", "memory"), backoff_factor=0.05,
))

def tell(reason):
    agent.send_event({"event_type": "suspicious_request", "reason": reason})

"""
ENDING = """
tell("of the application")
agent.flush_to_store()
agent.flush_buffer()
agent.stop()
books = agent.get_status().destinations["http"]
assert books["delivered"] == 1, books
assert books["dropped"].get("internal", 0) >= int(os.environ.get("INTERNAL", "0")), books
"""
AIOHTTP = """
import aiohttp

request = aiohttp.ClientSession._request

async def instrumented(self, *arguments, **options):
    tell("aiohttp begins")
    try:
        return await request(self, *arguments, **options)
    finally:
        tell("aiohttp ends")

aiohttp.ClientSession._request = instrumented
"""
SOCKETS = """
import socket

class Instrumented(socket.socket):
    def connect(self, *arguments):
        tell("connect")
        return super().connect(*arguments)

    def send(self, *arguments):
        tell("send")
        return super().send(*arguments)

    def recv(self, *arguments):
        tell("recv")
        return super().recv(*arguments)

socket.socket = Instrumented
"""
LOGGING = """
class Telling(logging.Handler):
    def emit(self, record):
        tell(record.getMessage())

logging.basicConfig(level=logging.DEBUG, handlers=[Telling()])
"""
SQLITE = """
import sqlite3

connect = sqlite3.connect

def instrumented(*arguments, **options):
    tell("connect")
    connection = connect(*arguments, **options)
    connection.set_trace_callback(tell)
    return connection

sqlite3.connect = instrumented
"""


@pytest.fixture
def run(collector, tmp_path):
    def run(*parts: str, **environment: str) -> str:
        script = "".join(textwrap.dedent(part) for part in parts)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "GUARD_AGENT_STATE_DIR": str(tmp_path / "state"),
                "COLLECTOR": collector.url,
                **environment,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


def reasons(collector):
    return sorted(event["reason"] for event in collector.events)


@pytest.mark.parametrize(
    ("instrumentation", "store"),
    [(AIOHTTP, "memory"), (SOCKETS, "memory"), (SQLITE, "disk")],
    ids=["aiohttp", "sockets", "sqlite3"],
)
def test_p12_what_instrumented_libraries_report_of_the_agent_does_not_come_back(
    run, collector, instrumentation, store
):
    run(PREAMBLE, instrumentation, ENDING, STORE=store, INTERNAL="1" if store == "memory" else "0")

    assert reasons(collector) == ["of the application"]


def test_p13_log_lines_of_the_agent_do_not_come_back_through_a_handler(run, collector):
    """Also at DEBUG, also while deliveries fail and are repeated."""
    collector.answer(Answer(500), Answer(500), only="events")
    run(PREAMBLE, LOGGING, "tell('of the application')\n", "time.sleep(1)\n", "agent.stop()\n")

    told = reasons(collector)
    assert "of the application" in told
    assert not [reason for reason in told if "delivery" in reason or "500" in reason]
    assert len(told) < 10


CLOCK = """
import time

wall = time.time
JUMPS = {jumps}
calls = 0

def jumping():
    global calls
    calls += 1
    return wall() + JUMPS[calls % len(JUMPS)]

time.time = jumping
"""


@pytest.mark.parametrize("store", ["memory", "disk"])
@pytest.mark.parametrize("jumps", [[3600, -3600], [0, 3600], [0, -3600], [86400 * 400, 0]], ids=str)
def test_p15_a_wall_clock_that_jumps_holds_up_nothing(run, collector, store, jumps):
    """Flushes, backoff, leases and the deadline of the end go by the monotonic clock."""
    collector.answer(Answer(500), only="events")
    run(
        CLOCK.format(jumps=jumps),
        PREAMBLE,
        """
        began = time.monotonic()
        tell("one")
        while agent.get_status().destinations["http"]["delivered"] < 1:
            assert time.monotonic() - began < 60, agent.get_status()
            time.sleep(0.02)
        tell("two")
        began = time.monotonic()
        agent.stop()
        assert time.monotonic() - began < 2.1 + 5
        """,
        STORE=store,
    )

    assert reasons(collector) == ["one", "two"]
    assert collector.duplicates == []
