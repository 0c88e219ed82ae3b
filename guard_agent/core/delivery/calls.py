"""
Calls into plugins: bounded in time, and nothing but an `Exception` comes out of them.

What a plugin awaits may never come, it may swallow its cancellation, raise `SystemExit` or leak a
`CancelledError` that nobody asked for. None of that may end or hold up a job of the agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from guard_agent.core.interfaces import Appended, BufferStore, Lease, Level, Peeked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from guard_agent.core.interfaces import DeadLetter, Record

    # Any awaitable: what a plugin returns is checked by awaiting it.
    Call = Callable[..., Awaitable[Any]]

_T = TypeVar("_T")

GRACE = 0.1
"""Seconds that a call has to end in when it is cancelled."""


class PluginHangs(Exception):  # noqa: N818 - a state, told to whoever asks
    """A call took too long, or an earlier one has never ended."""


class PluginDefect(Exception):  # noqa: N818 - as above
    """A call raised what is not an `Exception`, or returned what it must not."""


class Calls:
    """
    The calls into one plugin, each at most ``limit`` seconds long.

    A call that resists its cancellation is left behind; until it has ended every further one is
    refused, so that they cannot pile up.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._left: set[asyncio.Task[Any]] = set()

    async def __call__(self, function: Call, *args: Any) -> Any:
        """
        Await ``function(*args)``.

        Raises:
            PluginHangs: it took too long, or it was not called because an earlier call hangs.
            PluginDefect: it raised `SystemExit`, or was cancelled by the plugin itself.
            Exception: as the plugin raised it.
        """
        if self._left:
            msg = "an earlier call has not ended yet"
            raise PluginHangs(msg)
        task = asyncio.ensure_future(_contained(function, *args))
        task.add_done_callback(_seen)
        try:
            # Unlike `wait_for` it never waits longer than it is told to.
            await asyncio.wait([task], timeout=self._limit)
            in_time = task.done()
        finally:
            if not task.done():
                task.cancel()
                self._left.add(task)
                task.add_done_callback(self._left.discard)
                await asyncio.wait([task], timeout=GRACE)
        if not in_time:
            msg = f"took longer than {self._limit:g} s"
            raise PluginHangs(msg)
        if task.cancelled():
            msg = "cancelled itself"
            raise PluginDefect(msg)
        return task.result()


async def finish(work: Awaitable[_T], patience: Callable[[], float] = lambda: GRACE) -> _T:
    """
    Await ``work``; a cancellation that comes meanwhile waits ``patience()`` seconds for it.

    For a store operation and its booking, which belong together.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.add_done_callback(_seen)
        await asyncio.wait([task], timeout=patience())
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=2 * GRACE)
        raise
    return task.result()


class SafeStore(BufferStore):
    """
    A store whose every call is bounded; see `Calls`.

    A store in memory has nothing to wait for: its calls are made as they are, so that no record
    is longer than needed in transit, where the ring cannot give it up for a better one.
    """

    def __init__(self, store: BufferStore, limit: float) -> None:
        super().__init__(store.settings, store.context)
        self._store = store
        self._limit = limit
        bounded = store.level is not Level.MEMORY
        self._calls: Callable[..., Awaitable[Any]] = Calls(limit) if bounded else _contained

    @property
    def level(self) -> Level:  # type: ignore[override]  # the wrapped class has it as such
        return self._store.level

    @property
    def resets(self) -> int:
        return self._store.resets

    def describe(self) -> Mapping[str, object]:
        return self._store.describe()

    async def open(self) -> None:
        await self._calls(self._store.open)

    async def close(self) -> None:
        # Not refused because another call hangs: it is the last one anyway.
        await Calls(self._limit)(self._store.close)

    async def append(self, records: Sequence[Record], *, evict: bool) -> Appended:
        append = partial(self._store.append, records, evict=evict)
        appended: Appended = _checked(await self._calls(append), Appended, "append")
        if not 0 <= appended.stored <= len(records):
            msg = f"append says that it stored {appended.stored} of {len(records)} records"
            raise PluginDefect(msg)
        return appended

    async def lease(
        self, destination: str, max_records: int, max_bytes: int, ttl: float
    ) -> Lease | None:
        found = await self._calls(self._store.lease, destination, max_records, max_bytes, ttl)
        lease: Lease | None = _checked(found, (Lease, type(None)), "lease")
        return lease

    async def ack(self, lease: Lease, ids: Sequence[str]) -> int:
        count: int = _checked(await self._calls(self._store.ack, lease, ids), int, "ack")
        return count

    async def release(self, lease: Lease, ids: Sequence[str], delay: float = 0.0) -> int:
        done = await self._calls(self._store.release, lease, ids, delay)
        count: int = _checked(done, int, "release")
        return count

    async def bury(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        done = await self._calls(self._store.bury, lease, ids, reason)
        count: int = _checked(done, int, "bury")
        return count

    async def release_expired(self) -> int:
        done = await self._calls(self._store.release_expired)
        count: int = _checked(done, int, "release_expired")
        return count

    async def stats(self) -> Mapping[str, Any]:
        depths: Mapping[str, Any] = _checked(await self._calls(self._store.stats), Mapping, "stats")
        return depths

    async def dead_letters(self, destination: str) -> Sequence[DeadLetter]:
        found = await self._calls(self._store.dead_letters, destination)
        letters: Sequence[DeadLetter] = _checked(found, Sequence, "dead_letters")
        return letters

    async def peek(self, destination: str, after: str | None, limit: int) -> Peeked:
        found = await self._calls(self._store.peek, destination, after, limit)
        peeked: Peeked = _checked(found, Peeked, "peek")
        return peeked

    async def replay(self, destination: str, limit: int) -> int:
        done = await self._calls(self._store.replay, destination, limit)
        count: int = _checked(done, int, "replay")
        return count


def _checked(result: Any, kind: type | tuple[type, ...], method: str) -> Any:
    """``result``, if it is what the contract says: plugins are not type checked when they run."""
    if not isinstance(result, kind):
        msg = f"{method} returned {type(result).__name__}, which it must not"
        raise PluginDefect(msg)
    return result


async def _contained(function: Call, *args: Any) -> Any:
    try:
        return await function(*args)
    except SystemExit as error:
        # In a task it would end the whole loop.
        msg = f"SystemExit: {error}"
        raise PluginDefect(msg) from error


def _seen(task: asyncio.Future[Any]) -> None:
    """Its exception is looked at, so that asyncio does not complain when nobody else does."""
    if not task.cancelled():
        task.exception()
