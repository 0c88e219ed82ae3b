"""The agent in the lifespan of ASGI apps."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.applications import Starlette

from guard_agent import AgentConfig, ConfigurationError, client, guard_agent
from guard_agent.integrations.asgi import LifespanMiddleware, agent_lifespan
from guard_agent.testing.records import make_event


def reasons(collector) -> list[str]:
    return [event["reason"] for event in collector.events]


class Lifespan:
    """The part of an ASGI server that leads an app through its life."""

    def __init__(self, app) -> None:
        self._app = app
        self._to_app: asyncio.Queue[dict] = asyncio.Queue()
        self.said: list[str] = []
        self._task: asyncio.Task | None = None
        self._answered = asyncio.Event()

    async def send(self, message: dict) -> None:
        self.said.append(message["type"])
        self._answered.set()

    async def tell(self, what: str) -> None:
        """Tell the app what happens; returns when it has answered or ended."""
        if self._task is None:
            scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
            self._task = asyncio.ensure_future(self._app(scope, self._to_app.get, self.send))
        self._answered.clear()
        await self._to_app.put({"type": what})
        answered = asyncio.ensure_future(self._answered.wait())
        await asyncio.wait({answered, self._task}, timeout=10, return_when="FIRST_COMPLETED")
        answered.cancel()

    async def end(self) -> None:
        await asyncio.wait_for(self._task, 30)


async def serve_once(app) -> list[str]:
    server = Lifespan(app)
    await server.tell("lifespan.startup")
    await server.tell("lifespan.shutdown")
    await server.end()
    return server.said


COMPLETE = ["lifespan.startup.complete", "lifespan.shutdown.complete"]


# --- agent_lifespan -------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", [FastAPI, Starlette])
async def test_it_delivers_what_was_taken_before_the_server_is_told(collector, config, framework):
    @asynccontextmanager
    async def own(app):
        await guard_agent().send_event(make_event(reason="startup"))
        yield {"pool": "open"}
        await guard_agent().send_event(make_event(reason="shutdown"))

    app = framework(lifespan=agent_lifespan(config, wrap=own))

    assert await serve_once(app) == COMPLETE
    assert reasons(collector) == ["startup", "shutdown"]


async def test_what_the_lifespan_of_the_app_yields_stays_its_state(config):
    @asynccontextmanager
    async def own(app):
        yield {"pool": "open"}

    app = FastAPI(lifespan=agent_lifespan(config, wrap=own))

    @app.get("/")
    async def pool(request: Request):
        return request.state.pool

    async with app.router.lifespan_context(app) as state:

        async def with_state(scope, receive, send):
            await app({**scope, "state": dict(state)}, receive, send)

        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as visitor:
            assert (await visitor.get("/")).json() == "open"


async def test_without_a_configuration_it_makes_no_agent():
    assert await serve_once(Starlette(lifespan=agent_lifespan())) == COMPLETE

    assert client._process.agent is None


async def test_an_app_that_fails_in_its_lifespan_still_delivers(collector, config):
    @asynccontextmanager
    async def own(app):
        await guard_agent().send_event(make_event(reason="before the failure"))
        raise RuntimeError("no database")
        yield

    server = Lifespan(Starlette(lifespan=agent_lifespan(config, wrap=own)))
    await server.tell("lifespan.startup")

    assert server.said == ["lifespan.startup.failed"]
    with pytest.raises(RuntimeError, match="no database"):
        await server.end()
    assert reasons(collector) == ["before the failure"]


async def test_a_wrong_configuration_fails_at_startup(config):
    wrong = config.model_copy(update={"store": "nowhere"})

    server = Lifespan(Starlette(lifespan=agent_lifespan(wrong)))
    await server.tell("lifespan.startup")

    assert server.said == ["lifespan.startup.failed"]
    with pytest.raises(ConfigurationError, match="nowhere"):
        await server.end()


@pytest.mark.parametrize("given", [True, False], ids=["its agent", "the agent of a middleware"])
async def test_an_app_may_live_more_than_once(collector, config, given):
    """As in tests of an app; a middleware starts its agent with its very first request only."""
    agent = guard_agent(config)
    app = Starlette(lifespan=agent_lifespan(config if given else None))

    for number in range(3):
        async with app.router.lifespan_context(app):
            await agent.send_event(make_event(reason=f"life {number}"))

    assert reasons(collector) == ["life 0", "life 1", "life 2"]


# --- LifespanMiddleware ---------------------------------------------------------------------------


async def http_only(scope, receive, send):
    assert scope["type"] == "http"
    await guard_agent().send_event(make_event(reason="request"))
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def deaf(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        return
    await http_only(scope, receive, send)


@pytest.mark.parametrize("app", [http_only, deaf])
async def test_an_app_without_a_lifespan_gets_one(collector, config, app):
    wrapped = LifespanMiddleware(app, config)
    server = Lifespan(wrapped)
    await server.tell("lifespan.startup")
    transport = httpx.ASGITransport(wrapped)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as visitor:
        assert (await visitor.get("/")).status_code == 204
    assert reasons(collector) == []

    await server.tell("lifespan.shutdown")

    assert server.said == COMPLETE
    assert reasons(collector) == ["request"]
    await server.end()


async def test_an_app_with_a_lifespan_keeps_it(collector, config):
    @asynccontextmanager
    async def own(app):
        yield
        await guard_agent().send_event(make_event(reason="shutdown"))

    delivered_when_told: list[list[str]] = []
    server = Lifespan(LifespanMiddleware(Starlette(lifespan=own), config))
    send = server.send

    async def watch(message):
        delivered_when_told.append(reasons(collector))
        await send(message)

    server.send = watch
    await server.tell("lifespan.startup")
    await server.tell("lifespan.shutdown")
    await server.end()

    assert server.said == COMPLETE
    assert delivered_when_told == [[], ["shutdown"]]


async def test_a_startup_that_fails_is_passed_on(collector, config):
    @asynccontextmanager
    async def own(app):
        await guard_agent().send_event(make_event(reason="before the failure"))
        raise RuntimeError("no database")
        yield

    server = Lifespan(LifespanMiddleware(Starlette(lifespan=own), config))
    await server.tell("lifespan.startup")

    assert server.said == ["lifespan.startup.failed"]
    assert reasons(collector) == ["before the failure"]
    with pytest.raises(RuntimeError, match="no database"):
        await server.end()


async def test_a_shutdown_that_raises_delivers_and_is_passed_on(collector, config):
    async def raises_at_its_end(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await guard_agent().send_event(make_event(reason="before the failure"))
        raise RuntimeError("no database")

    server = Lifespan(LifespanMiddleware(raises_at_its_end, config))
    await server.tell("lifespan.startup")
    await server.tell("lifespan.shutdown")

    with pytest.raises(RuntimeError, match="no database"):
        await server.end()
    assert reasons(collector) == ["before the failure"]


async def test_a_wrong_configuration_is_told_to_the_server(config):
    wrong = config.model_copy(update={"store": "nowhere"})

    server = Lifespan(LifespanMiddleware(http_only, wrong))
    await server.tell("lifespan.startup")

    assert server.said == ["lifespan.startup.failed"]
    with pytest.raises(ConfigurationError, match="nowhere"):
        await server.end()


async def test_as_a_middleware_of_starlette_it_is_the_same(collector, config: AgentConfig):
    app = Starlette()
    app.add_middleware(LifespanMiddleware, config=config)

    server = Lifespan(app)
    await server.tell("lifespan.startup")
    await guard_agent().send_event(make_event(reason="while it serves"))
    await server.tell("lifespan.shutdown")
    await server.end()

    assert server.said == COMPLETE
    assert reasons(collector) == ["while it serves"]
