"""
The agent in the lifespan of an ASGI app: FastAPI, Starlette, Django and every other.

uvicorn and Hypercorn end their processes by a signal, so that the end of the lifespan is the last
chance to deliver.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from guard_agent.client import start_agent, stop_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
    from contextlib import AbstractAsyncContextManager

    from guard_agent import AgentConfig

    Message: TypeAlias = MutableMapping[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]
    ASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
    Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]

__all__ = ["LifespanMiddleware", "agent_lifespan"]


def agent_lifespan(config: AgentConfig | None = None, *, wrap: Lifespan | None = None) -> Lifespan:
    """
    A lifespan for FastAPI, Starlette and whatever takes the same: ``FastAPI(lifespan=...)``.

    The agent starts before everything of the app and stops after it, within ``stop_timeout``, so
    that what the app reports while it shuts down is delivered too.

    Args:
        config: Starts an agent with it. None starts none: whichever agent the app or its Guard
            middleware has made by the end is stopped.
        wrap: The app's own lifespan, which runs inside; what it yields is the state of the app.

    Raises:
        ConfigurationError: when the app starts, which ends it; names every problem.
    """

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        start_agent(config)
        try:
            if wrap is None:
                yield
            else:
                async with wrap(app) as state:
                    yield state
        finally:
            await stop_agent()

    return lifespan


class LifespanMiddleware:
    """
    The same around any ASGI app, also one that knows no lifespan, such as that of Django.

    ``application = LifespanMiddleware(get_asgi_application())``. Requests pass through untouched.

    Args:
        app: The app to wrap.
        config: As in `agent_lifespan`. When it is wrong, the server is told that the app cannot
            start.
    """

    def __init__(self, app: ASGIApp, config: AgentConfig | None = None) -> None:
        self._app = app
        self._config = config

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, scope: Any, receive: Receive, send: Send) -> None:
        received: list[Message] = []
        answered = False

        async def hear() -> Message:
            message = await receive()
            received.append(message)
            return message

        async def answer(message: Message) -> None:
            nonlocal answered
            answered = True
            # Before the server is told: it ends the process as soon as it knows.
            if message["type"] != "lifespan.startup.complete":
                await stop_agent()
            await send(message)

        try:
            start_agent(self._config)
        except Exception as error:
            # A server takes an app that only raises for one without a lifespan, and goes on.
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        try:
            await self._app(scope, hear, answer)
        except BaseException as error:
            if answered or not isinstance(error, Exception):
                await stop_agent()
                raise
            # By the specification: this app does not know the lifespan.
        if answered:
            return
        if not received:
            await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await stop_agent()
        await send({"type": "lifespan.shutdown.complete"})
