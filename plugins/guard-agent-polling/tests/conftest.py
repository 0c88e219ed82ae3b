from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import pytest

from guard_agent import AgentConfig, PluginContext
from guard_agent_polling import PollingSource

KEY = "k" * 12


class Collector:
    """Answers the n-th request with the n-th bytes of the script, then with the last again."""

    def __init__(self, answers):
        self.answers = answers
        self.requests: list[str] = []
        """The heads of the requests, lower case."""
        self.tasks = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _handle(self, reader, writer):
        task = asyncio.current_task()
        self.tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                number = min(len(self.requests), len(self.answers) - 1)
                self.requests.append(head.decode().lower())
                if self.answers[number] is None:
                    break
                writer.write(self.answers[number])
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client or the test is done
        finally:
            writer.transport.abort()
            with suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            self.tasks.discard(task)


def make_answer(status=200, body=b"", *headers):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def make_source(folder, config=None, **settings):
    return PollingSource(
        PollingSource.Settings(**settings),
        PluginContext(
            instance="polling",
            config=AgentConfig(**{"api_key": KEY, "install_id": "test-install", **(config or {})}),
            destinations=(),
            state_dir=folder,
        ),
    )


@pytest.fixture
def kit():
    """The helpers of this folder."""

    class Kit:
        collector = Collector
        reply = staticmethod(make_answer)
        source = staticmethod(make_source)

    return Kit


@pytest.fixture
def fetch(tmp_path):
    """Fetch from a collector that answers this; returns the result and the collector."""

    async def fetch(*answers, known=None, config=None, **settings):
        async with Collector(list(answers)) as collector:
            source = make_source(tmp_path, config, endpoint=collector.url, **settings)
            await source.open()
            try:
                return await source.fetch(known), collector
            finally:
                await source.close()

    return fetch
