"""
The wheels work where nothing but them is installed.

Every distribution is built, all wheels are installed into a clean virtual environment, and the
agent runs there from a folder without the sources.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import threading
import venv
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

import pytest

# The first test that needs them waits for builds and installs, which takes longer than a test may.
pytestmark = pytest.mark.timeout(600)

SEND = """
import asyncio
import sys

import guard_agent
from guard_agent import AgentConfig, SecurityEvent, get_current_timestamp


async def main():
    assert sys.prefix in guard_agent.__file__, guard_agent.__file__
    agent = guard_agent.guard_agent(
        AgentConfig(api_key="a-key-for-this-test", project_id="shop", endpoint=sys.argv[1])
    )
    await agent.start()
    await agent.send_event(
        SecurityEvent(
            timestamp=get_current_timestamp(),
            event_type="ip_banned",
            ip_address="192.0.2.7",
            action_taken="banned",
            reason="from a wheel",
        )
    )
    await agent.stop()


asyncio.run(main())
"""


def run(command, **kwargs):
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=300, **kwargs
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheels(distributions, tmp_path_factory):
    """The wheel files by the name of their distribution."""
    folder = tmp_path_factory.mktemp("wheels")
    folders = [str(found.folder) for found in distributions.values()]
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    run([sys.executable, "-m", "pip", *build, *folders])
    return {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def installed(wheels, root, bare_environment, tmp_path_factory):
    """
    A virtual environment that holds the wheels and what they depend on.

    Returns:
        The folder of its commands.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    commands = folder / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(commands / "python"), "install", "--quiet"]
    run(
        [*pip, "-c", str(root / "constraints.txt"), *map(str, wheels.values())],
        cwd=folder,
        env=bare_environment,
    )
    return commands


@pytest.fixture
def elsewhere(tmp_path, bare_environment):
    """How a command is run away from the sources, with no state of an earlier run."""
    own = {"HOME": str(tmp_path), "GUARD_AGENT_STATE_DIR": str(tmp_path / "state")}
    return {"cwd": tmp_path, "env": {**bare_environment, **own}}


class Collector(ThreadingHTTPServer):
    """Takes what is posted; its rules rule nothing."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.posted: list[tuple[str, dict]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def events(self) -> list[dict]:
        batches = [body for path, body in self.posted if path == "/api/v1/events"]
        return [event for batch in batches for event in batch["events"]]


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.posted.append((self.path, json.loads(body)))
        self.answer({"success": True})

    def do_GET(self) -> None:
        self.answer({"rule_id": "none", "version": 1})

    def answer(self, document: dict) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base
        pass


@pytest.fixture
def collector():
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def members(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return [PurePosixPath(name) for name in archive.namelist()]


def test_every_distribution_makes_a_wheel(wheels, distributions):
    assert wheels.keys() == distributions.keys()


def test_a_wheel_holds_its_package_and_nothing_else(wheels, distributions):
    """No tests, no examples, nothing of a neighbour."""
    for name, wheel in wheels.items():
        module = distributions[name].module
        tops = {path.parts[0] for path in members(wheel)}

        assert {top for top in tops if not top.endswith(".dist-info")} == {module} - {None}, name
        assert [path for path in members(wheel) if "tests" in path.parts] == []
        assert [path for path in members(wheel) if re.match(r"test_|conftest", path.name)] == []


def test_a_wheel_is_typed_and_licensed(wheels, distributions):
    for name, wheel in wheels.items():
        module = distributions[name].module
        paths = {str(path) for path in members(wheel)}
        info = next(path.parts[0] for path in members(wheel) if ".dist-info" in path.parts[0])

        assert f"{info}/licenses/LICENSE" in paths, name
        if module is not None:
            assert f"{module}/py.typed" in paths, name


def test_a_wheel_shows_its_readme(wheels):
    for name, wheel in wheels.items():
        with zipfile.ZipFile(wheel) as archive:
            metadata = next(path for path in archive.namelist() if path.endswith("/METADATA"))
            _, _, description = archive.read(metadata).decode().partition("\n\n")

        assert description.startswith("# "), name


def test_what_is_installed_fits_together(installed):
    run([sys.executable, "-m", "pip", "--python", str(installed / "python"), "check"])


def test_the_command_lists_the_plugins(installed, elsewhere):
    listing = run([str(installed / "guard-agent"), "plugins"], **elsewhere).stdout

    words = set(re.findall(r"[a-z]+", listing))
    expected = {"http", "redaction", "polling", "memory", "console", "jsonl", "truncate", "file"}
    assert expected - words == set(), listing


def test_the_command_writes_a_package(installed, elsewhere):
    """Its templates are in the wheel."""
    run([str(installed / "guard-agent"), "new", "transport", "my-collector"], **elsewhere)

    made = Path(elsewhere["cwd"]) / "guard-agent-my-collector"
    assert (made / "src" / "guard_agent_my_collector" / "__init__.py").is_file()
    assert (made / "tests" / "test_contract.py").is_file()


def test_one_event_is_delivered_once(installed, elsewhere, collector):
    script = Path(elsewhere["cwd"]) / "send.py"
    script.write_text(SEND, encoding="utf-8")

    done = run([str(installed / "python"), "-W", "error", str(script), collector.url], **elsewhere)

    assert (done.stdout, done.stderr) == ("", "")
    assert [
        (event["event_type"], event["ip_address"], event["reason"]) for event in collector.events
    ] == [("ip_banned", "192.0.2.7", "from a wheel")]
