"""What happens when a process forks, ends or is ended; each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

PREAMBLE = """
import os, sys, threading, time
from guard_agent import AgentConfig, SecurityEvent, get_current_timestamp, guard_agent

def event(reason):
    return SecurityEvent(
        timestamp=get_current_timestamp(), event_type="suspicious_request", reason=reason
    )

config = AgentConfig(
    rollup=False,
    api_key="test-key-0123",
    endpoint=os.environ["COLLECTOR"],
    store=os.environ.get("STORE", "memory"),
)
agent = guard_agent(config)
"""


@pytest.fixture
def start(collector, tmp_path):
    """Starts a script with an agent; ends it when the test ends."""
    started: list[subprocess.Popen] = []

    def start(body: str, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "-c", PREAMBLE + textwrap.dedent(body)],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "COLLECTOR": collector.url,
                **environment,
            },
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def run(start):
    """Runs such a script to its end and returns what it wrote to its error output."""

    def run(body: str, **environment: str) -> str:
        process = start(body, **environment)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return errors

    return run


def reasons(collector) -> list[str]:
    return sorted(event["reason"] for event in collector.events)


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "sys.exit(0)",
        "agent.stop()",
        "agent.stop(); agent.stop()",
        "threading.Timer(0.2, lambda: agent.send_event(event('late'))).start()",
    ],
    ids=["end of script", "sys.exit", "stop", "stop twice", "a thread that outlives main"],
)
def test_p07_a_process_that_ends_delivers_what_it_holds(run, collector, ending):
    errors = run(f"""
        agent.send_event(event("early"))
        {ending}
    """)

    assert reasons(collector) == ["early", *(["late"] if "late" in ending else [])]
    assert errors == ""


def test_p07_the_last_flush_resolves_host_names(run, collector):
    """The executor that asyncio resolves names with is closed by then."""
    port = collector.url.rpartition(":")[2]

    run("agent.send_event(event('by name'))", COLLECTOR=f"http://localhost:{port}")

    assert reasons(collector) == ["by name"]


def test_p07_an_unhandled_exception_does_not_cost_records(start, collector):
    process = start("""
        agent.send_event(event("before the crash"))
        raise RuntimeError("boom")
    """)
    process.communicate(timeout=60)

    assert process.returncode == 1
    assert reasons(collector) == ["before the crash"]


def test_p07_the_end_takes_no_longer_than_its_deadline_when_the_collector_hangs(run, collector):
    errors = run(
        """
        import socket
        listener = socket.create_server(("127.0.0.1", 0))
        from guard_agent import guard_agent
        agent.stop()
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = config.model_copy(update={"endpoint": endpoint, "stop_timeout": 0.5})
        agent = guard_agent(config)
        agent.send_event(event("never"))
        begun = time.monotonic()
        agent.stop()
        assert time.monotonic() - begun < 0.5 + 0.1 + 4.0
        listener.close()
        """
    )

    assert "1 records for http undelivered" in errors


@pytest.mark.parametrize("hangs", [False, True])
def test_p07_p11_on_error_is_told_when_the_process_ends(run, hangs):
    """The interpreter may start no thread any more by then; one that hangs is not waited for."""
    errors = run(
        f"""
        from guard_agent import guard_agent

        def tell(stage, error, context):
            print("told", stage, context["item_count"], file=sys.stderr, flush=True)
            time.sleep(60 if {hangs} else 0)

        agent.stop()
        agent = guard_agent(config.model_copy(update={{"on_error": tell, "stop_timeout": 0.5}}))
        agent.send_event(event("never"))
        """,
        COLLECTOR="http://127.0.0.1:9",
    )

    assert "told transport_send 1\n" in errors
    assert "Fatal Python error" not in errors


def test_p03_a_child_works_and_copies_nothing_of_its_parent(run, collector):
    run("""
        agent.send_event(event("parent before"))
        child = os.fork()
        if child == 0:
            agent.send_event(event("child"))
            agent.stop()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0
        agent.send_event(event("parent after"))
        agent.stop()
    """)

    assert reasons(collector) == ["child", "parent after", "parent before"]
    assert collector.duplicates == []


def test_p03_a_child_needs_no_lock_of_asyncio_that_was_held_at_the_fork(run, collector):
    """As by a thread that was just making its event loop: nobody can release it in the child."""
    run("""
        import asyncio.events
        with asyncio.events._lock:
            child = os.fork()
            if child == 0:
                agent.send_event(event("child"))
                agent.stop()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    """)

    assert reasons(collector) == ["child"]


def test_p03_an_agent_that_never_started_in_the_parent_starts_in_the_child(run, collector):
    """As with a server that loads the app before it forks its workers."""
    run("""
        for number in range(2):
            child = os.fork()
            if child == 0:
                agent.send_event(event(f"worker {number}"))
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
    """)

    assert reasons(collector) == ["worker 0", "worker 1"]


def test_p02_sigterm_through_sys_exit_delivers(start, collector):
    """As gunicorn's workers end."""
    process = start("""
        import signal
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        agent.send_event(event("before the signal"))
        print("ready", flush=True)
        while True:  # not signal.pause(): a signal that comes just before it is not seen in it
            time.sleep(0.05)
    """)
    assert process.stdout.readline() == "ready\n"

    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)

    assert process.returncode == 0
    assert reasons(collector) == ["before the signal"]


def test_a_home_that_cannot_be_written_stops_nothing(run, collector):
    run("agent.send_event(event('homeless')); agent.stop()", HOME="/nonexistent")

    assert reasons(collector) == ["homeless"]
    assert collector.requests[0].headers["x-agent-install-id"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_p04_a_child_of_multiprocessing_delivers_what_it_holds(run, collector, tmp_path, method):
    """A forked one ends without running what is registered with `atexit`."""
    (tmp_path / "job.py").write_text(
        PREAMBLE + "def work(method):\n    agent.send_event(event(method))\n"
    )
    run(
        f"""
        import multiprocessing
        from job import work
        if __name__ == "__main__":
            child = multiprocessing.get_context("{method}").Process(target=work, args=("{method}",))
            child.start()
            child.join(30)
            assert child.exitcode == 0
        """
    )

    assert reasons(collector) == [method]


def test_a_process_without_free_file_descriptors_does_not_notice(start, collector):
    process = start("""
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        files = []
        try:
            while True:
                files.append(open(os.devnull))
        except OSError:
            pass
        agent.send_event(event("without"))
        for file in files:
            file.close()
        agent.flush_buffer()
        agent.send_event(event("with"))
        agent.stop()
    """)
    process.communicate(timeout=60)

    assert process.returncode == 0
    assert reasons(collector) == ["with", "without"]


@pytest.fixture
def durable(tmp_path):
    """Environment of a process whose records outlive it."""
    return {"STORE": "disk", "GUARD_AGENT_STATE_DIR": str(tmp_path / "state")}


def deliver(start, durable):
    """What a process that is started next delivers."""
    following = start("agent.start(); agent.flush_to_store(); agent.flush_buffer()", **durable)
    following.communicate(timeout=60)
    assert following.returncode == 0


@pytest.mark.parametrize("waiting", [1, 5_000])
def test_p02_sigterm_without_a_collector_stores_what_is_held_and_ends_in_time(
    start, collector, durable, waiting
):
    process = start(
        f"""
        import signal
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        for number in range({waiting}):
            agent.send_event(event(f"{{number:05}}"))
        print("ready", flush=True)
        while True:  # not signal.pause(): a signal that comes just before it is not seen in it
            time.sleep(0.05)
        """,
        **{**durable, "COLLECTOR": "http://127.0.0.1:9"},
    )
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    took = time.monotonic() - began

    assert process.returncode == 0
    assert took < 2.1 + 6, took  # the deadline, and the end of an interpreter on a busy machine
    deliver(start, durable)
    assert reasons(collector) == [f"{number:05}" for number in range(waiting)]
    assert collector.duplicates == []


@pytest.mark.parametrize("ending", ["os._exit(0)", "os.kill(os.getpid(), 9)", "os.abort()"])
def test_p07_an_end_without_a_last_word_keeps_what_was_confirmed(start, collector, durable, ending):
    process = start(
        f"""
        for number in range(500):
            agent.send_event(event(f"{{number:03}}"))
        assert agent.flush_to_store()
        {ending}
        """,
        **{**durable, "COLLECTOR": "http://127.0.0.1:9"},
    )
    process.communicate(timeout=60)
    deliver(start, durable)

    assert reasons(collector) == [f"{number:03}" for number in range(500)]
    assert collector.duplicates == []


@pytest.mark.parametrize("ending", ["sys.exit(3)", "raise RuntimeError('boom')"])
def test_p07_a_thread_that_ends_badly_ends_nothing_else(start, collector, ending):
    process = start(f"""
        def work():
            agent.send_event(event("from a thread"))
            {ending}

        threading.excepthook = lambda *_: None
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        agent.send_event(event("after it"))
    """)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 0, errors
    assert reasons(collector) == ["after it", "from a thread"]


def test_p07_a_daemon_thread_that_records_until_the_very_end_harms_nothing(run, collector):
    errors = run("""
        def work():
            while True:
                agent.send_event({"event_type": "suspicious_request", "reason": "again"})
                time.sleep(0.0005)

        threading.Thread(target=work, daemon=True).start()
        while not agent.get_stats()["buffer_stats"]["events_buffered"]:
            time.sleep(0.001)
    """)

    assert errors == ""
    assert collector.events
    assert collector.duplicates == []


ORDERS = {
    "stop without start": "stop stop",
    "double start": "start start record flush",
    "stop twice": "start record stop stop",
    "start after stop": "start stop start record flush",
    "record before start": "record start flush",
    "record after stop": "start record stop record",
    "flush before start": "flush record flush",
    "all after stop": "start stop flush store rules health status stats close",
    "close, then again": "record close start record flush",
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("face", ["blocking", "awaitable"])
def test_p05_every_order_of_calls_is_defined(run, collector, face, order):
    """None hangs, none raises, and the books say where each record is."""
    run(f"""
        import asyncio, inspect

        calls = {{
            "start": "start", "stop": "stop", "close": "close", "flush": "flush_buffer",
            "store": "flush_to_store", "rules": "get_dynamic_rules", "health": "health_check",
            "status": "get_status", "stats": "get_stats",
        }}

        async def play():
            taken = guard_agent(config) if {face == "awaitable"} else agent
            for step in {ORDERS[order]!r}.split():
                if step == "record":
                    result = taken.send_event(event("one"))
                else:
                    result = getattr(taken, calls[step])()
                if inspect.isawaitable(result):
                    await asyncio.wait_for(result, 30)
            status = taken.get_status()
            status = await status if inspect.isawaitable(status) else status
            return status.destinations["http"]

        books = asyncio.run(play())
        assert books["accepted"] == (
            books["delivered"] + sum(books["dropped"].values()) + books["buried"] + books["pending"]
        ), books
        if {order == "record after stop"}:
            assert books["dropped"] == {{"stopped": 1}}, books
    """)
    steps = ORDERS[order].split()
    expected = steps.count("record") - (order == "record after stop")

    assert len(collector.events) == expected
    assert collector.duplicates == []


def test_p05_of_two_configurations_the_first_holds_and_that_is_said(run, collector):
    errors = run("""
        import logging
        logging.basicConfig()
        other = guard_agent(AgentConfig(api_key="other-key-0123", endpoint="http://127.0.0.1:9"))
        other.send_event(event("for the first"))
        other.stop()
    """)

    assert reasons(collector) == ["for the first"]
    assert "the first one stays in force" in errors
    assert "other-key" not in errors
