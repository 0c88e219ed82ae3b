"""A guarded app that has a Redis: its agent keeps what it holds there, without being told."""

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

from guard_agent.testing.collector import Answer, Collector
from guard_agent.testing.redis_server import RedisServer

APPS = Path(__file__).parent / "apps"
PATIENCE = 30.0
COMMANDS = {
    "fastapi-uvicorn": ("uvicorn", "--fd", "{fd}", "--app-dir", str(APPS), "shop_fastapi:app"),
    "flask-gunicorn": (
        "gunicorn",
        "--bind",
        "fd://{fd}",
        "--pythonpath",
        str(APPS),
        "shop_flask:app",
    ),
    "django-gunicorn": (
        *("gunicorn", "--bind", "fd://{fd}", "--pythonpath", str(APPS)),
        "shop_django:wsgi()",
    ),
    "tornado": (str(APPS / "shop_tornado.py"), "{fd}", "1"),
}


@pytest.fixture
def server():
    with RedisServer(append_only=True) as server:
        yield server


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture
def serve(server, collector, tmp_path):
    """Starts a shop; ends all of its processes when the test ends."""
    started = []

    def serve(name):
        (tmp_path / "guard-agent.yaml").write_text("rollup: false\n")
        listener = socket.create_server(("127.0.0.1", 0))
        command = [part.format(fd=listener.fileno()) for part in COMMANDS[name]]
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *([] if command[0].endswith(".py") else ["-m"]), *command],
                cwd=tmp_path,
                env={
                    **os.environ,
                    "PYTHONPATH": str(APPS),
                    "SHOP": name,
                    "SHOP_ENDPOINT": collector.url,
                    "SHOP_REDIS": server.url,
                    "GUARD_AGENT_STATE_DIR": str(tmp_path / "state"),
                },
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
        started.append((process, listener))
        return process, listener.getsockname()[1]

    yield serve
    for process, listener in started:
        kill(process)
        listener.close()


def kill(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def get(port, path):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        headers={"User-Agent": "Mozilla/5.0", "X-Forwarded-For": "198.51.100.7"},
    )
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            assert time.monotonic() < deadline, "it does not serve"
            time.sleep(0.05)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_killed_app_held_waits_in_its_redis_and_arrives_once(
    serve, server, collector, tmp_path, name
):
    collector.always(Answer(503, headers={"Retry-After": "600"}))
    process, port = serve(name)
    assert get(port, "/")[0] == 200
    status, _ = get(port, "/?q=1'+UNION+SELECT+password+FROM+users--")
    assert status in (400, 403), (tmp_path / "log").read_text()
    deadline = time.monotonic() + PATIENCE
    while b'"stored":true' not in get(port, "/store")[1].replace(b" ", b""):
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
    kill(process)
    assert collector.events == []
    keys = [key.decode() for key in server.command("KEYS", "*guard-agent*")]
    assert keys
    assert all(key.startswith("guard_core:guard-agent:{e2e}:") for key in keys)

    collector.always(None)
    _, port = serve(name)
    get(port, "/")
    collector.wait_for(
        lambda c: [e for e in c.events if e["event_type"] == "penetration_attempt"], PATIENCE
    )
    assert collector.duplicates == []
