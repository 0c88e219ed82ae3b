"""
The way to the server: two connections, a deadline for each call, and a circuit.

Nothing is repeated here: an error is raised, and the agent decides when to try again.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.connection import (
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from guard_agent_redis.errors import ServerDownError, StoreUnavailableError, translate
from guard_agent_redis.settings import split_address

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from guard_agent_redis.settings import RedisSettings

T = TypeVar("T")

CONNECTIONS = 2
_CANCEL_GRACE = 0.25
"""Seconds for which a call that was cancelled is still waited for, to know what became of it."""
_LATE = 0.01
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0


class Link:
    """
    Runs commands on the server.

    While the server is down calls fail at once; one call at a time, after pauses that grow to two
    seconds, finds out whether it is back.
    """

    def __init__(self, settings: RedisSettings, options: Mapping[str, Any] | None = None) -> None:
        """``options`` are those of a connection of the client; ``settings`` say them otherwise."""
        self._deadline = settings.deadline
        self._client, self._sentinels, self.where = _connect(settings, options)
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._connected = False
        self._failures = 0
        self._closed_until = 0.0
        self._reason = ""

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for client in (self._client, *self._sentinels):
            with suppress(RedisError, OSError):
                await client.aclose()
                await client.connection_pool.disconnect()

    @property
    def is_down(self) -> bool:
        return self._failures > 0

    async def call(self, *command: str | bytes | float) -> Any:
        """
        Run one command within the deadline.

        Raises:
            ServerDownError: there is no server to write to.
            ResponseError: of the client, what else the server answered.
        """
        async with self._slots:
            now = time.monotonic()
            if self._failures:
                if now < self._closed_until:
                    raise ServerDownError(self._reason)
                # This call finds out; until it has, the others go on failing.
                self._closed_until = now + 2 * self._deadline
            try:
                reply = await self._in_time(self._client.execute_command(*command))
            except (RedisError, OSError, asyncio.TimeoutError) as error:
                translated = translate(error, self.where)
                if isinstance(translated, ServerDownError):
                    await self._went_down(translated)
                    raise translated from error
                self._failures = 0
                raise
            self._failures = 0
            self._connected = True
            return reply

    async def settled(
        self, work: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[object]] | None = None
    ) -> T:
        """
        The result of ``work``, which a cancellation does not leave half done.

        When the caller is cancelled, ``work`` is given a moment to end, and what it did is undone;
        then the cancellation goes on.
        """
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            cleaning = asyncio.ensure_future(self._clean_up(task, undo))
            self._tasks.add(cleaning)
            cleaning.add_done_callback(self._tasks.discard)
            # Cancelled once more the caller goes at once; the cleaning does not depend on it.
            await asyncio.shield(cleaning)
            raise

    async def _clean_up(
        self, task: asyncio.Task[T], undo: Callable[[T], Awaitable[object]] | None
    ) -> None:
        await asyncio.wait({task}, timeout=_CANCEL_GRACE)
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if task.cancelled() or task.exception() is not None or undo is None:
            return
        # What cannot be undone now is found by others: a lease ends, a record comes twice.
        with suppress(StoreUnavailableError, RedisError, asyncio.TimeoutError):
            await asyncio.wait_for(undo(task.result()), _CANCEL_GRACE)

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(work)
        # When our caller is cancelled, nobody looks at what the client makes of it.
        task.add_done_callback(_seen)
        deadline = self._deadline * (1 if self._connected else 2)
        try:
            await asyncio.wait({task}, timeout=deadline)
            if not task.done():
                # This process may have been kept from looking while the answer lay there.
                await asyncio.wait({task}, timeout=_LATE)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        if task.cancelled():
            raise asyncio.TimeoutError
        return task.result()

    async def _went_down(self, error: ServerDownError) -> None:
        self._connected = False
        self._failures += 1
        self._reason = str(error)
        pause = min(_FIRST_PAUSE * 2 ** min(self._failures - 1, 10), _LONGEST_PAUSE)
        self._closed_until = time.monotonic() + pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        # Another server may have the address by now, and a replica keeps the connections it has.
        with suppress(RedisError, OSError):
            await self._client.connection_pool.disconnect(inuse_connections=False)


def _seen(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _connect(
    settings: RedisSettings, given: Mapping[str, Any] | None
) -> tuple[Any, list[Any], str]:
    """
    Clients that have not connected yet, and a name of the server for messages.

    The first is for the server, a `redis.asyncio.Redis`; the others are for the sentinels.
    """
    options: dict[str, Any] = dict(
        parse_url(settings.url.get_secret_value()) if given is None else given
    )
    if "path" in options:
        options["connection_class"] = UnixDomainSocketConnection
    if settings.username is not None:
        options["username"] = settings.username
    if settings.password is not None:
        options["password"] = settings.password.get_secret_value()
    options |= {
        "protocol": 2,
        "decode_responses": False,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "retry_on_timeout": False,
        "health_check_interval": 0,
        "max_connections": CONNECTIONS,
    }
    if not settings.sentinels:
        place = options.get("path")
        place = place or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        return Redis(connection_pool=ConnectionPool(**options)), [], f"Redis at {place}"

    for name in ("host", "port", "path"):
        options.pop(name, None)
    options["ssl"] = options.pop("connection_class", None) is SSLConnection
    own: dict[str, Any] = {"socket_timeout": settings.deadline, "retry": Retry(NoBackoff(), 0)}
    if settings.sentinel_password is not None:
        own["password"] = settings.sentinel_password.get_secret_value()
    sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]  # untyped in the client
        [split_address(address) for address in settings.sentinels], sentinel_kwargs=own
    )
    service = settings.sentinel_service or ""
    client = sentinel.master_for(service, **options)
    return client, sentinel.sentinels, f"Redis primary {service!r}"
