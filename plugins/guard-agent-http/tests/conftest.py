from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.request import getproxies_environment

import pytest

from guard_agent import (
    AgentConfig,
    Batch,
    PluginContext,
    Priority,
    Record,
)
from guard_agent import client as agents
from guard_agent_http import CollectorClient, HttpTransport

KEY = "k" * 12


@dataclass
class Request:
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name):
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def one(self, name):
        (value,) = self.all(name)
        return value


@dataclass
class Server:
    """
    Answers the n-th request with the n-th step of the script, then with the last step again.

    A step is the bytes to send, or a coroutine function of (reader, writer) that does what it
    likes; with ``raw`` it is called before anything is read.
    """

    steps: list
    raw: bool = False
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client's connection is gone."""

    async def __aenter__(self):
        self._tasks = set()
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _handle(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        self.connections += 1
        try:
            while True:
                if self.raw:
                    await self.steps[0](reader, writer)
                    break
                request = await _read_request(reader)
                step = self.steps[min(len(self.requests), len(self.steps) - 1)]
                self.requests.append(request)
                if callable(step):
                    await step(reader, writer)
                    break
                writer.write(step)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            pass  # the server stops
        finally:
            self.closed.set()
            writer.transport.abort()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            self._tasks.discard(task)


async def _read_request(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = [tuple(line.split(": ", 1)) for line in lines]
    length = int(next((v for k, v in headers if k.lower() == "content-length"), 0))
    return Request(method, target, headers, await reader.readexactly(length))


def answer(status=200, body=b"", *headers, kind="application/json"):
    """The bytes of one response."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers]
    if body:
        lines.append(f"Content-Type: {kind}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def make_transport(url, folder, config=None, **settings):
    return HttpTransport(
        HttpTransport.Settings(endpoint=url, **settings),
        PluginContext(
            instance="http",
            config=AgentConfig(**{"api_key": KEY, "install_id": "test-install", **(config or {})}),
            destinations=("http",),
            state_dir=folder,
        ),
    )


def make_batch(count=1, kind="event", size=0):
    """``count`` records with the ids r0, r1, ...; each padded by ``size`` bytes."""
    records = []
    for number in range(count):
        payload = {"idempotency_key": f"r{number}", "pad": "x" * size}
        records.append(
            Record(f"r{number}", kind, Priority.ATTACK, json.dumps(payload).encode(), 0.0)
        )
    return Batch(kind, tuple(records))


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    """Proxies of the desk must not get between a test and its server."""
    for kind in getproxies_environment():
        for name in (f"{kind}_proxy", f"{kind.upper()}_PROXY"):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve():
    """Make a server: ``async with serve(step, ...) as server``."""
    return lambda *steps, raw=False: Server(list(steps) or [answer()], raw=raw)


@pytest.fixture
def kit():
    """The helpers of this folder."""

    class Kit:
        reply = staticmethod(answer)
        batch = staticmethod(make_batch)
        transport = staticmethod(make_transport)
        key = KEY

    return Kit


@pytest.fixture
def exchange(serve, tmp_path):
    """Send one batch to a server with this script; returns the result and the server."""

    async def exchange(*steps, batch=None, config=None, raw=False, **settings):
        async with serve(*steps, raw=raw) as server:
            transport = make_transport(server.url, tmp_path, config, **settings)
            await transport.open()
            try:
                return await transport.send(batch or make_batch()), server
            finally:
                await transport.close()

    return exchange


@pytest.fixture
async def client():
    """Make an open client; all are closed at the end."""
    made = []

    async def make(endpoint, **more):
        more = {"api_key": KEY, "install_id": "test-install", **more}
        one = CollectorClient(endpoint=endpoint, **more)
        await one.open()
        made.append(one)
        return one

    yield make
    for one in made:
        await one.close()


@pytest.fixture
def agent_config(tmp_path, monkeypatch):
    """Make settings for the agent of this process; it is stopped when the test ends."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)

    def make(**settings):
        defaults = {"api_key": KEY, "endpoint": "http://127.0.0.1:1", "project_id": "shop"}
        return AgentConfig(**{**defaults, "backoff_factor": 0.01, "rollup": False, **settings})

    yield make
    if agents._process.agent is not None:
        agents._process.agent.stop().result(30)
