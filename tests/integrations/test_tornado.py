"""The agent in the life of a Tornado server."""

from __future__ import annotations

import asyncio
import os
import signal

import httpx
import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from guard_agent import ConfigurationError, guard_agent
from guard_agent.integrations.tornado import run_until_stopped
from guard_agent.testing.records import make_event


class Index(RequestHandler):
    async def get(self) -> None:
        await guard_agent().send_event(make_event(reason="request"))
        self.set_status(204)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_until_a_signal_and_delivers(collector, config, number):
    before = signal.getsignal(number)
    listener, port = bind_unused_port()
    server = HTTPServer(Application([("/", Index)]))
    server.add_socket(listener)
    serving = asyncio.ensure_future(run_until_stopped(config))

    async with httpx.AsyncClient(trust_env=False) as visitor:
        response = await visitor.get(f"http://127.0.0.1:{port}/")
    assert response.status_code == 204
    assert not serving.done()
    os.kill(os.getpid(), number)
    await asyncio.wait_for(serving, 30)

    assert [event["reason"] for event in collector.events] == ["request"]
    assert signal.getsignal(number) is before
    server.stop()
    await server.close_all_connections()


async def test_a_cancellation_delivers_too(collector, config):
    serving = asyncio.ensure_future(run_until_stopped(config))
    await asyncio.sleep(0)
    await guard_agent().send_event(make_event(reason="early"))

    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving

    assert [event["reason"] for event in collector.events] == ["early"]


async def test_a_wrong_configuration_fails_at_once(config):
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(ConfigurationError, match="nowhere"):
        await run_until_stopped(config.model_copy(update={"store": "nowhere"}))

    assert signal.getsignal(signal.SIGTERM) is before
