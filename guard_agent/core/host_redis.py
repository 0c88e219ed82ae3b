"""What the host application handed to ``initialize_redis``, and how to call it."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import TYPE_CHECKING, Any

from guard_agent.core.errors import GuardAgentError
from guard_agent.core.reentry import mark

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

_THREAD_NAME = "guard-agent-redis"


class HostRedisError(GuardAgentError):
    """The Redis of the host application cannot be used now."""


class HostRedis:
    """
    The Redis of the host application.

    ``handler`` is the object as it was handed over: a Redis manager of the Guard engine, a client,
    or anything with the methods of `RedisHandlerProtocol`. It belongs to the application, so its
    coroutines run on ``loop``, the application's event loop, and its blocking methods in a thread
    of their own. What they report to the agent meanwhile is not taken: it would come back for ever.
    """

    def __init__(self, handler: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        self.handler = handler
        self.loop = loop

    @property
    def label(self) -> str:
        """What kind of object it is, for messages."""
        cls = type(self.handler)
        return f"{cls.__module__}.{cls.__qualname__}"

    def offers(self, *methods: str) -> bool:
        """Whether the handler has all these methods."""
        return all(callable(getattr(self.handler, name, None)) for name in methods)

    async def call(self, method: str, *args: Any) -> Any:
        """
        Call a method of the handler where it belongs, and await what it returns.

        Raises:
            HostRedisError: it has no such method, or the application's event loop is gone.
            Exception: as the method raised it.
        """
        function = getattr(self.handler, method, None)
        if not callable(function):
            msg = f"{self.label} has no method {method}()"
            raise HostRedisError(msg)
        return await self.run(function, *args)

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """The same for any function, which may be a coroutine function."""
        if inspect.iscoroutinefunction(function):
            return await self._on_loop(lambda: function(*args))
        result = await _in_thread(lambda: function(*args))
        return await self._on_loop(lambda: result) if inspect.isawaitable(result) else result

    async def _on_loop(self, start: Callable[[], Awaitable[Any]]) -> Any:
        if self.loop is None or self.loop.is_closed():
            why = "does not run any more" if self.loop else "did not run when it was handed over"
            msg = f"{self.label} needs the event loop of the application, which {why}"
            raise HostRedisError(msg)

        async def work() -> Any:
            return await _Unheard(start())

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), self.loop))


class _Unheard:
    """Awaits something such that the agent does not take what is reported meanwhile."""

    def __init__(self, work: Awaitable[Any]) -> None:
        self._work = work

    def __await__(self) -> Generator[Any, Any, Any]:
        # Step by step, because between two steps the thread does other work of the application.
        work = self._work.__await__()
        step, value = work.send, None
        inside = mark()
        while True:
            inside.agent = True
            try:
                awaited = step(value)
            except StopIteration as end:
                return end.value
            finally:
                inside.agent = False
            try:
                value = yield awaited
                step = work.send
            except BaseException as error:  # noqa: BLE001 - passed on to the work, as `await` does
                step, value = work.throw, error


async def _in_thread(function: Callable[[], Any]) -> Any:
    """
    Run something that blocks, in a daemon thread.

    Not in an executor, whose threads the interpreter waits for when it ends: a frozen Redis must
    not hold up the exit of the application.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return  # nobody waits any more
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        mark().agent = True
        result, error = None, None
        try:
            result = function()
        except Exception as raised:  # noqa: BLE001 - goes to whoever waits
            error = raised
        except BaseException as raised:  # noqa: BLE001 - a StopIteration or SystemExit of theirs
            error = HostRedisError(f"{type(raised).__name__}: {raised}")
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            return  # the agent has ended meanwhile

    threading.Thread(target=work, name=_THREAD_NAME, daemon=True).start()
    return await future
