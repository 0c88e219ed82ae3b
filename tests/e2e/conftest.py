"""The example app under a real uvicorn in a process of its own, and a collector beside it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from guard_agent.testing.collector import Collector

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class GuardedApp:
    def __init__(self, endpoint: str, folder: Path) -> None:
        self.folder = folder
        # The socket is there before the process: nobody else gets the port, and the first request
        # waits in its backlog until the app is up.
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            (folder / "app.log").open("wb") as log,
        ):
            port = listener.getsockname()[1]
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "uvicorn", "guarded_app:app"),
                    *("--app-dir", str(EXAMPLES), "--fd", str(listener.fileno())),
                    *("--no-proxy-headers", "--no-access-log"),
                ],
                cwd=folder,
                env={
                    **os.environ,
                    "GUARD_DEMO_ENDPOINT": endpoint,
                    "GUARD_AGENT_CONFIG": str(EXAMPLES / "guard-agent.yaml"),
                    "GUARD_AGENT_STATE_DIR": str(folder / "state"),
                },
                pass_fds=[listener.fileno()],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False, verify=False
        )

    def request(self, path: str, *, address: str, **request) -> httpx.Response:
        """Make a request as a proxy does for a client with ``address``."""
        headers = {"User-Agent": "Mozilla/5.0", **request.pop("headers", {})}
        headers["X-Forwarded-For"] = address
        return self._client.request(request.pop("method", "GET"), path, headers=headers, **request)

    def stop(self) -> None:
        self._client.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def log(self) -> str:
        return (self.folder / "app.log").read_text(errors="replace")


@contextmanager
def guarded_app(collector: Collector, folder: Path):
    app = GuardedApp(collector.url, folder)
    try:
        yield app
    finally:
        app.stop()
        # Shown by pytest when the test failed.
        sys.stderr.write(app.log())


@pytest.fixture(scope="module")
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def app(collector, tmp_path_factory):
    """One app for all tests that do not stop it; each test uses addresses of its own."""
    with guarded_app(collector, tmp_path_factory.mktemp("app")) as app:
        yield app


@pytest.fixture
def short_lived(tmp_path):
    """A collector and an app for one test."""
    with Collector() as collector, guarded_app(collector, tmp_path) as app:
        yield collector, app
