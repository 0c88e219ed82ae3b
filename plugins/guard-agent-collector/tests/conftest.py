"""A collector of each test, and what talks to it."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import time
from contextlib import AsyncExitStack

import aiohttp
import pytest

from guard_agent_collector import CollectorServer, ServerOptions

PATIENCE = 30.0


class Kit:
    """A running collector, a client for it, and what a test asks of both."""

    def __init__(self, server: CollectorServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session
        self.url = server.url

    async def get(self, path, **headers):
        async with self.session.get(self.url + path, headers=headers) as response:
            return response, await response.read()

    async def json(self, path):
        _, body = await self.get(path)
        return json.loads(body)

    async def post(self, path, document, *, pack=False, **headers):
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        headers.setdefault("Content-Type", "application/json")
        if pack:
            body = gzip.compress(body)
            headers["Content-Encoding"] = "gzip"
        async with self.session.post(
            self.url + path, data=io.BytesIO(body), headers=headers
        ) as response:
            said = await response.read()
            return response, json.loads(said) if said else None

    async def send(self, *events, **headers):
        return await self.post("/api/v1/events", {"events": list(events), "metrics": []}, **headers)

    async def news(self, last=None):
        """The first message of the stream."""
        headers = {"Last-Event-ID": last} if last else {}
        async with self.session.get(self.url + "/ui/stream", headers=headers) as response:
            number = None
            async for line in response.content:
                if line.startswith(b"id: "):
                    number = line[4:].decode().strip()
                if line.startswith(b"data: "):
                    return {**json.loads(line[6:]), "id": number}
        raise AssertionError("the stream ended")

    async def records(self):
        return (await self.news())["records"]

    async def requests(self):
        return (await self.news())["requests"]

    async def until(self, question):
        """Ask until the answer is true; returns it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = await question()
            if answer:
                return answer
            assert time.monotonic() < deadline, "not in time"
            await asyncio.sleep(0.1)


def event(key="k1", **fields):
    return {
        "idempotency_key": key,
        "timestamp": "2026-01-02T03:04:05Z",
        "event_type": "penetration_attempt",
        "ip_address": "203.0.113.9",
        "action_taken": "request_blocked",
        "endpoint": "/login",
        "method": "POST",
        "reason": "SQL injection",
        **fields,
    }


@pytest.fixture
async def start(tmp_path):
    """Start a collector with these options; all are stopped at the end of the test."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))
        )

        async def start(**options):
            options = {"database": tmp_path / "collector.db", "environment": {}, **options}
            server = await stack.enter_async_context(CollectorServer(ServerOptions(**options)))
            return Kit(server, session)

        yield start


@pytest.fixture
def make():
    return event
