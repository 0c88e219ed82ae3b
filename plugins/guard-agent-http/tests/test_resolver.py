from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading

import pytest

from guard_agent_http import ThreadResolver

FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]


class Lookup:
    """Stands for getaddrinfo: answers once it is let go, and counts."""

    def __init__(self, outcome=FOUND):
        self.outcome = outcome
        self.calls = 0
        self.threads = []
        self.started = threading.Event()
        self.go = threading.Event()

    def __call__(self, *_, **__):
        self.calls += 1
        self.threads.append(threading.current_thread())
        self.started.set()
        self.go.wait(30)
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def refuse(*_, **__):
    raise AssertionError("an address was looked up")


@pytest.mark.parametrize(
    ("host", "family"),
    [("192.0.2.7", socket.AF_INET), ("2001:db8::1", socket.AF_INET6)],
)
async def test_an_address_needs_no_lookup(host, family):
    (found,) = await ThreadResolver(refuse).resolve(host, 8080)

    assert (found["host"], found["port"], found["family"]) == (host, 8080, family)


async def test_c17_a_name_is_looked_up_in_a_daemon_thread_of_its_own():
    lookup = Lookup()
    lookup.go.set()
    resolver = ThreadResolver(lookup)

    (found,) = await resolver.resolve("collector.invalid", 80)

    assert (found["host"], found["port"], found["hostname"]) == (
        "192.0.2.1",
        80,
        "collector.invalid",
    )
    (thread,) = lookup.threads
    assert thread is not threading.current_thread()
    assert thread.daemon
    await resolver.close()


async def test_a_real_name_is_found():
    found = await ThreadResolver().resolve("localhost", 80)

    assert {entry["host"] for entry in found} <= {"127.0.0.1", "::1"}
    assert found


async def test_the_scope_of_a_link_local_address_is_kept():
    lookup = Lookup([(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 80, 0, 3))])
    lookup.go.set()

    (found,) = await ThreadResolver(lookup).resolve("printer.invalid", 80)

    assert found["host"] == "fe80::1%3"


async def test_c17_lookups_of_one_name_share_a_thread_however_often_the_caller_gives_up():
    """
    A name server that hangs must not cost a thread per attempt.
    """
    lookup = Lookup()
    resolver = ThreadResolver(lookup)
    for _ in range(5):
        task = asyncio.create_task(resolver.resolve("collector.invalid", 80))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    last = asyncio.create_task(resolver.resolve("collector.invalid", 80))
    await asyncio.sleep(0)

    lookup.go.set()

    assert len(await last) == 1
    assert lookup.calls == 1
    assert len(await resolver.resolve("collector.invalid", 80)) == 1
    assert lookup.calls == 2


@pytest.mark.parametrize(
    "error", [socket.gaierror(socket.EAI_NONAME, "not known"), UnicodeError("label too long")]
)
async def test_a_failed_lookup_is_an_os_error(error):
    lookup = Lookup(error)
    lookup.go.set()

    with pytest.raises(OSError, match=r"not known|not a valid host name"):
        await ThreadResolver(lookup).resolve("collector.invalid", 80)


async def test_closing_ends_the_wait_and_the_thread_finds_nobody():
    lookup = Lookup()
    resolver = ThreadResolver(lookup)
    waiting = asyncio.create_task(resolver.resolve("collector.invalid", 80))
    await asyncio.sleep(0)

    await resolver.close()
    await resolver.close()

    with pytest.raises(OSError, match="closed"):
        await waiting
    lookup.go.set()


def test_the_loop_may_be_gone_when_the_answer_comes():
    lookup = Lookup()

    async def give_up():
        await asyncio.wait_for(ThreadResolver(lookup).resolve("collector.invalid", 80), 0.01)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(give_up())
    lookup.go.set()
    lookup.threads[0].join(30)

    assert not lookup.threads[0].is_alive()


def test_a_name_is_found_while_the_interpreter_ends():
    """
    That is when the last flush happens; asyncio's executor takes no work any more.
    """
    code = """
import asyncio, atexit, concurrent.futures
from guard_agent_http import ThreadResolver

def last():
    print(len(asyncio.run(ThreadResolver().resolve("localhost", 80))) > 0)

atexit.register(last)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.stdout.strip(), done.stderr) == ("True", "")
