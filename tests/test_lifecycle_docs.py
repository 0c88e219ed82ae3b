"""The Python of docs/lifecycle.md runs as it stands, with the real frameworks."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from guard_agent import guard_agent
from guard_agent.testing.records import make_event

pytestmark = pytest.mark.usefixtures("surroundings")

PAGE = Path(__file__).resolve().parents[1] / "docs" / "lifecycle.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
PARTS = (
    "agent_lifespan(config)",
    "agent_lifespan(wrap=lifespan)",
    "LifespanMiddleware(get_asgi_application())",
    "init_app(app)",
    "INSTALLED_APPS",
    "run_until_stopped",
)
REPORT = """
from guard_agent import SecurityEvent, get_current_timestamp, guard_agent
guard_agent().send_event(SecurityEvent(timestamp=get_current_timestamp(), event_type="REASON"))
"""


def block(part: str) -> str:
    (found,) = (text for text in BLOCKS if part in text)
    return found


def test_every_block_is_used_here():
    assert sorted(map(block, PARTS)) == sorted(BLOCKS)


@pytest.fixture
def known(collector):
    """The names that the page leaves to the reader."""
    return {"KEY": "test-key-0123", "URL": collector.url, "__name__": "shop"}


def types_of(collector) -> list[str]:
    return [event["event_type"] for event in collector.events]


@pytest.fixture
def start(known, tmp_path):
    """Runs code of the page in a process of its own."""
    started: list[subprocess.Popen] = []

    def start(code: str, **environment: str) -> subprocess.Popen:
        names = "".join(f"{name} = {value!r}\n" for name, value in known.items() if name.isupper())
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", names + code],
            env={**os.environ, **environment},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


async def test_fastapi(collector, known):
    exec(block("agent_lifespan(config)"), known)
    app = known["app"]

    async with app.router.lifespan_context(app):
        await guard_agent().send_event(make_event(event_type="served"))

    assert types_of(collector) == ["served"]


async def test_a_lifespan_of_the_app_goes_inside(known):
    exec(block("agent_lifespan(wrap=lifespan)"), known)
    app = known["app"]

    async with app.router.lifespan_context(app) as state:
        assert state == {"greeting": "hello"}


def test_flask(collector, known):
    exec(block("init_app(app)"), known)

    assert known["app"].test_client().post("/login").status_code == 401
    guard_agent().stop()

    assert types_of(collector) == ["login_failed"]


def test_django(collector, known, start, tmp_path):
    names = "".join(f"{name} = {value!r}\n" for name, value in known.items() if name.isupper())
    (tmp_path / "settings.py").write_text(names + block("INSTALLED_APPS"))
    script = "import django; django.setup()\n" + REPORT.replace("REASON", "from_django")

    ended(start(script, DJANGO_SETTINGS_MODULE="settings"))

    assert types_of(collector) == ["from_django"]


def test_a_mistake_in_the_settings_of_django_shows_at_its_setup(start, tmp_path):
    (tmp_path / "settings.py").write_text(
        "INSTALLED_APPS = ['guard_agent.integrations.django']\n"
        "GUARD_AGENT = {'api_key': 'test-key-0123', 'colour': 'blue'}\n"
    )

    process = start("import django; django.setup()", DJANGO_SETTINGS_MODULE="settings")
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "colour" in errors


def test_django_under_an_asgi_server(collector, known, start, tmp_path):
    names = "".join(f"{name} = {value!r}\n" for name, value in known.items() if name.isupper())
    (tmp_path / "settings.py").write_text(names + block("INSTALLED_APPS"))
    server = """
import asyncio
async def live():
    said = []
    told = iter(["lifespan.startup", "lifespan.shutdown"])
    async def receive():
        what = next(told)
        if what == "lifespan.shutdown":
            guard_agent().send_event(event)
        return {"type": what}
    async def send(message):
        said.append(message["type"])
    await application({"type": "lifespan"}, receive, send)
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"], said
    import os
    os._exit(0)  # as a signal would end it
from guard_agent import SecurityEvent, get_current_timestamp, guard_agent
event = SecurityEvent(timestamp=get_current_timestamp(), event_type="from_django")
asyncio.run(live())
"""

    ended(
        start(
            block("LifespanMiddleware(get_asgi_application())") + server,
            DJANGO_SETTINGS_MODULE="settings",
        )
    )

    assert types_of(collector) == ["from_django"]


def test_tornado(collector, known, start):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        known["PORT"] = listener.getsockname()[1]
    script = block("run_until_stopped").replace(
        'self.write("hello")',
        "await guard_agent().send_event(event)\n        self.write('hello')",
    )
    imports = REPORT.replace("REASON", "from_tornado").replace(
        "guard_agent().send_event(", "event = ("
    )
    process = start(imports + script)

    assert fetch(process, known["PORT"]) == b"hello"
    process.send_signal(signal.SIGTERM)
    ended(process)

    assert types_of(collector) == ["from_tornado"]


def fetch(process: subprocess.Popen, port: int) -> bytes:
    """Ask until the server listens."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                return answer.read()
        except OSError:
            assert process.poll() is None, process.communicate()[1]
