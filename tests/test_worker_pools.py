"""P04: servers and pools that fork, patch or end their workers in ways of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
PATIENCE = 30.0
REQUESTS = 10
APP = """
import os
from guard_agent import AgentConfig, SecurityEvent, get_current_timestamp, guard_agent

def event(reason):
    return SecurityEvent(
        timestamp=get_current_timestamp(), event_type="suspicious_request", reason=reason
    )

agent = guard_agent(AgentConfig(
    api_key="test-key-0123",
    endpoint=os.environ["COLLECTOR"],
    flush_interval=float(os.environ.get("FLUSH_INTERVAL", "3600")),
    rules=[],
))
"""
WSGI = (
    APP
    + """
if "RECORD_AT_IMPORT" in os.environ:
    agent.send_event(event("loaded"))

def app(environ, start_response):
    agent.send_event(event(environ["PATH_INFO"]))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]

os.write(2, b"the service is loaded\\n")
"""
)
CELERY = (
    APP
    + """
from celery import Celery

folders = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "queue"}
app = Celery("tasks", broker="filesystem://", broker_transport_options=folders)
app.conf.broker_connection_retry_on_startup = True
agent.send_event(event("loaded"))

@app.task
def work(number):
    agent.send_event(event(f"task {number}"))
    open(f"done-{number}", "w").close()
"""
)


@pytest.fixture
def start(collector, tmp_path):
    """Starts a program in a folder of its own; ends its whole group when the test ends."""
    started: list[subprocess.Popen] = []

    def start(*command: str, **environment: str) -> subprocess.Popen:
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={
                    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
                    "HOME": str(tmp_path),
                    "COLLECTOR": collector.url,
                    "PYTHONPATH": str(tmp_path),
                    **environment,
                },
                cwd=tmp_path,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.read() == b"ok"
    except (urllib.error.URLError, OSError):
        return False


def end(process: subprocess.Popen) -> float:
    """Ask for the end, and wait for it; returns the seconds it took."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)
    return time.monotonic() - began


def reasons(collector) -> list[str]:
    return sorted(event["reason"] for event in collector.events)


def uwsgi(port: int, *options: str) -> list[str]:
    return [
        str(BIN / "uwsgi"),
        f"--virtualenv={BIN.parent}",
        f"--http-socket=127.0.0.1:{port}",
        "--module=service:app",
        "--die-on-term",
        "--disable-logging",
        *options,
    ]


def gunicorn(port: int, *options: str) -> list[str]:
    return [str(BIN / "gunicorn"), "--bind", f"127.0.0.1:{port}", *options, "service:app"]


SERVERS = {
    "uwsgi": (uwsgi, ["--master", "--processes=2", "--enable-threads"]),
    "uwsgi without threads": (uwsgi, ["--master", "--processes=2"]),
    "uwsgi alone": (uwsgi, ["--enable-threads", "--master"]),
    "gevent": (gunicorn, ["--worker-class=gevent", "--workers=2"]),
    "gevent preload": (gunicorn, ["--worker-class=gevent", "--workers=2", "--preload"]),
    "gthread preload": (gunicorn, ["--worker-class=gthread", "--workers=2", "--preload"]),
}


# gevent's greenlets live on in a forked child: an agent that runs before the fork is not supported.
CASES = [(server, before) for server in SERVERS for before in (False, True)]
CASES.remove(("gevent preload", True))


@pytest.mark.parametrize(("server", "recorded_before"), CASES)
def test_p04_a_forking_server_delivers_all_and_ends(
    start, collector, tmp_path, server, recorded_before
):
    patched = "from gevent import monkey; monkey.patch_all()\n" if "gevent" in server else ""
    (tmp_path / "service.py").write_text(patched + WSGI)
    command, options = SERVERS[server]
    port = free_port()
    environment = {"RECORD_AT_IMPORT": "1"} if recorded_before else {}
    if command is uwsgi:
        # Which runs nothing of Python's at the end of a worker that it takes for busy.
        environment["FLUSH_INTERVAL"] = "0.2"
    process = start(*command(port, *options), **environment)
    log = tmp_path / "log"
    until(lambda: get(port, "/up"), log.read_text)
    # A worker that is still loading may not hear the signal that ends it.
    loads = 2 if command is gunicorn and "--preload" not in options else 1
    until(lambda: log.read_text().count("the service is loaded") == loads, log.read_text)
    expected = {"/up", *(f"/{number}" for number in range(REQUESTS))}
    for number in range(REQUESTS):
        assert get(port, f"/{number}"), log.read_text()
    if command is uwsgi:
        until(lambda: expected <= set(reasons(collector)), log.read_text)
    assert end(process) < 10, log.read_text()
    assert set(reasons(collector)) - {"loaded"} == expected, log.read_text()
    assert collector.duplicates == []
    assert ("enable-threads = true" in log.read_text()) == (server == "uwsgi without threads")


def test_p04_celery_s_workers_deliver_what_they_hold_when_they_end(start, collector, tmp_path):
    (tmp_path / "tasks.py").write_text(CELERY)
    (tmp_path / "queue").mkdir()
    celery = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-c", "2", "-P", "prefork"]
    process = start(*celery)
    log = tmp_path / "log"
    send = "import tasks\nfor number in range(10): tasks.work.delay(number)"
    assert start(sys.executable, "-c", send).wait(PATIENCE) == 0, log.read_text()
    until(lambda: len(list(tmp_path.glob("done-*"))) == REQUESTS, log.read_text)
    end(process)

    tasks = [reason for reason in reasons(collector) if reason != "loaded"]
    assert tasks == [f"task {number}" for number in range(REQUESTS)], log.read_text()
    assert collector.duplicates == []
