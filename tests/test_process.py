"""What happens when a process forks, ends or is ended; each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from guard_agent.testing.collector import Collector

PREAMBLE = """
import os, sys, threading, time
from guard_agent import AgentConfig, SecurityEvent, get_current_timestamp, guard_agent

def event(reason):
    return SecurityEvent(
        timestamp=get_current_timestamp(), event_type="suspicious_request", reason=reason
    )

config = AgentConfig(api_key="test-key-0123", endpoint=os.environ["COLLECTOR"])
agent = guard_agent(config)
"""


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


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
def test_a_process_that_ends_delivers_what_it_holds(run, collector, ending):
    errors = run(f"""
        agent.send_event(event("early"))
        {ending}
    """)

    assert reasons(collector) == ["early", *(["late"] if "late" in ending else [])]
    assert errors == ""


def test_the_last_flush_resolves_host_names(run, collector):
    """The executor that asyncio resolves names with is closed by then."""
    port = collector.url.rpartition(":")[2]

    run("agent.send_event(event('by name'))", COLLECTOR=f"http://localhost:{port}")

    assert reasons(collector) == ["by name"]


def test_an_unhandled_exception_does_not_cost_records(start, collector):
    process = start("""
        agent.send_event(event("before the crash"))
        raise RuntimeError("boom")
    """)
    process.communicate(timeout=60)

    assert process.returncode == 1
    assert reasons(collector) == ["before the crash"]


def test_the_end_takes_no_longer_than_its_deadline_when_the_collector_hangs(run, collector):
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
        assert time.monotonic() - begun < 0.5 + 0.1 + 1.0
        listener.close()
        """
    )

    assert "1 records for http undelivered" in errors


def test_a_child_works_and_copies_nothing_of_its_parent(run, collector):
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


def test_a_fork_under_recording_threads_never_hangs(run, collector):
    run("""
        done = threading.Event()

        def record():
            while not done.is_set():
                agent.send_event(event("parent"))
                time.sleep(0.0005)

        threads = [threading.Thread(target=record) for _ in range(8)]
        for thread in threads:
            thread.start()
        children = []
        for number in range(20):
            child = os.fork()
            if child == 0:
                agent.send_event(event(f"child {number:02}"))
                agent.stop()
                os._exit(0)
            children.append(child)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        done.set()
        for thread in threads:
            thread.join()
        agent.stop()
        books = agent.get_status().destinations["http"]
        assert books["pending"] == 0 and books["accepted"] == books["delivered"], books
    """)

    children = [reason for reason in reasons(collector) if reason.startswith("child")]
    assert children == [f"child {number:02}" for number in range(20)]
    assert collector.duplicates == []


def test_an_agent_that_never_started_in_the_parent_starts_in_the_child(run, collector):
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


def test_sigterm_through_sys_exit_delivers(start, collector):
    """As gunicorn's workers end."""
    process = start("""
        import signal
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        agent.send_event(event("before the signal"))
        print("ready", flush=True)
        signal.pause()
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
def test_a_child_of_multiprocessing_delivers_what_it_holds(run, collector, tmp_path, method):
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
