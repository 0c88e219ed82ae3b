"""
The store ``handler``: a journal behind the Redis handler of the host application.

For an application that hands over something with the methods of `RedisHandlerProtocol`, which can
set, get, delete and list keys and no more. Records are delivered from this process; each append is
also written down under a key of its own, which is deleted when its records are delivered. What a
killed process leaves there is taken over by the next one, or by a living one.

It is never named in a configuration: ``initialize_redis`` makes it. Where the package
``guard-agent-redis`` can reach the server itself, its store is used instead.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import secrets
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from guard_agent import (
    Appended,
    BufferStore,
    GuardAgentError,
    HostRedis,
    Lease,
    Level,
    PluginContext,
    Priority,
    Record,
    hookimpl,
)
from guard_agent.plugins.memory import MemorySettings, MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

logger = logging.getLogger("guard_agent.store")

METHODS = ("get_key", "set_key", "delete", "keys")
JOURNAL = "agent_journal"
OWNERS = "agent_journal_owners"

_VERSION = 1
_OWNER_TTL = 30
"""Seconds after its last sign of life for which a process still owns what it wrote down."""
_SIGN_EVERY = 10.0
_SEARCH_EVERY = 60.0
"""Seconds between two searches for what others left: listing keys costs the server."""


class HandlerError(GuardAgentError):
    """The handler does not keep the journal now."""


class HandlerStore(MemoryStore):
    """Keeps records in this process, and a journal of them behind the handler."""

    name = "handler"
    level: ClassVar[Level] = Level.JOURNAL

    def __init__(
        self, settings: MemorySettings, context: PluginContext, host: HostRedis | None = None
    ) -> None:
        super().__init__(settings, context)
        if host is None:
            msg = "the store 'handler' cannot be chosen: initialize_redis() makes it when needed"
            raise GuardAgentError(msg)
        self._host = host
        host_name = socket.gethostname().replace(":", "-")
        self._owner = f"{host_name}-{os.getpid()}-{secrets.token_hex(4)}"
        self._written = 0
        # Key in the journal → the records under it that are not delivered; by their own ids.
        self._pages: dict[str, dict[str, Record]] = {}
        self._page_of: dict[str, str] = {}
        self._outdated: set[str] = set()
        """Keys whose value says more than is still pending."""
        self._beginning: set[str] = set()
        """Keys that are being written for the first time: nobody knows yet what they say."""
        self._adrift: set[str] = set()
        """Our keys of which nobody knows whether they are the only place of what they say."""
        self._tidying = asyncio.Lock()
        self._signed_at = self._searched_at = float("-inf")

    @classmethod
    def adopt(cls, host: HostRedis, context: PluginContext) -> HandlerStore | None:
        if not host.offers(*METHODS):
            return None
        if host.loop is None and inspect.iscoroutinefunction(host.handler.set_key):
            msg = "its methods are coroutines, and no event loop ran where it was handed over"
            raise GuardAgentError(msg)
        settings = cls.Settings.model_validate(context.config.plugins.get(cls.name, {}))
        return cls(settings, context, host)

    def describe(self) -> Mapping[str, object]:
        return {"through": self._host.label}

    # --- open and close -------------------------------------------------------------------------

    async def open(self) -> None:
        """
        See whether the handler keeps what it is given, and take over what dead processes left.

        Raises:
            HandlerError: it does not.
        """
        await self._sign()
        if not await self._host.call("get_key", OWNERS, self._owner):
            msg = f"{self._host.label} does not keep what it is given; is its Redis switched on?"
            raise HandlerError(msg)
        await self._search()

    async def close(self) -> None:
        if self._signed_at == float("-inf"):
            return
        await self._tidy()
        # Says that what is left belongs to nobody now.
        await self._host.call("delete", OWNERS, self._owner)
        self._signed_at = float("-inf")

    async def _sign(self) -> None:
        await self._host.call("set_key", OWNERS, self._owner, str(int(time.time())), _OWNER_TTL)
        self._signed_at = self._clock()

    # --- operations -----------------------------------------------------------------------------

    async def append(self, records: Sequence[Record], *, evict: bool) -> Appended:
        if not records:
            return Appended(0)
        async with self._new_page(records) as key:
            appended = await super().append(records, evict=evict)
            self._enter(key, records[: appended.stored])
        if appended.evicted or appended.stored < len(records):
            self._outdated.add(key)
            self._strike({record.id for record in self._records.values()})
        await self._tidy()
        return appended

    async def ack(self, lease: Lease, ids: Sequence[str]) -> int:
        acknowledged = await super().ack(lease, ids)
        await self._done_with(lease, ids)
        return acknowledged

    async def bury(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        buried = await super().bury(lease, ids, reason)
        await self._done_with(lease, ids)
        return buried

    async def replay(self, destination: str, limit: int) -> int:
        replayed = self._replay(destination, limit)
        if replayed:
            # Until now only this process knew of them; what cannot be written is written later.
            key = self._new_key()
            self._enter(key, replayed)
            self._outdated.add(key)
            await self._tidy()
        return len(replayed)

    async def release_expired(self) -> int:
        released = await super().release_expired()
        now = self._clock()
        if now - self._signed_at >= _SIGN_EVERY:
            await self._sign()
        await self._tidy()
        if now - self._searched_at >= _SEARCH_EVERY:
            released += await self._search()
        return released

    # --- the journal ----------------------------------------------------------------------------

    def _new_key(self) -> str:
        self._written += 1
        return f"{self._owner}:{self._written}"

    @asynccontextmanager
    async def _new_page(self, records: Sequence[Record]) -> AsyncIterator[str]:
        """
        Write ``records`` down under a key of their own.

        The body takes them over; when it does not come to its end the page goes away. Until then
        nobody else touches it: an acknowledgement in between must not take it for outdated.
        """
        key = self._new_key()
        self._beginning.add(key)
        try:
            await self._write(key, records)
            yield key
        except BaseException:
            # Whatever became of the call, there may be something under the key.
            if key not in self._adrift:
                self._outdated.add(key)
            raise
        finally:
            self._beginning.discard(key)

    async def _write(self, key: str, records: Iterable[Record]) -> None:
        if await self._host.call("set_key", JOURNAL, key, encode(records)) is False:
            msg = f"{self._host.label} did not take a page of the journal"
            raise HandlerError(msg)

    def _enter(self, key: str, records: Iterable[Record]) -> None:
        page = self._pages.setdefault(key, {})
        for record in records:
            former = self._page_of.get(record.id)
            if former is not None:  # the same record again
                self._pages[former].pop(record.id, None)
                self._outdated.add(former)
            page[record.id] = record
            self._page_of[record.id] = key

    async def _done_with(self, lease: Lease, ids: Sequence[str]) -> None:
        """Strike what no destination wants any more."""
        for entry in ids:
            record = lease.entries.get(entry)
            if record is None or entry in self._records:
                continue
            key = self._page_of.pop(record.id, None)
            if key is not None:
                self._pages[key].pop(record.id, None)
                self._outdated.add(key)
        await self._tidy()

    def _strike(self, pending: set[str]) -> None:
        for key, page in self._pages.items():
            gone = [name for name in page if name not in pending]
            for name in gone:
                del page[name]
                del self._page_of[name]
            if gone:
                self._outdated.add(key)

    async def _tidy(self) -> None:
        """
        Bring the journal up to date.

        What fails is tried again later: until then the journal says too much, and a killed process
        would have records delivered twice.
        """
        # One at a time: of two that write the same page the older one could come last.
        async with self._tidying:
            for key in self._outdated - self._beginning:
                # Before it is written: what changes from here on makes it outdated again.
                self._outdated.discard(key)
                page = self._pages.get(key)
                try:
                    if page:
                        await self._write(key, page.values())
                    else:
                        await self._host.call("delete", JOURNAL, key)
                        self._pages.pop(key, None)
                except Exception as error:  # noqa: BLE001 - host meets agent: any object, any error
                    self._outdated.add(key)
                    logger.debug("the journal could not be brought up to date: %s", error)
                    return
                except BaseException:
                    self._outdated.add(key)
                    raise

    async def _search(self) -> int:
        """Take over what processes wrote down that give no sign of life any more."""
        self._searched_at = self._clock()
        living: dict[str, bool] = {self._owner: True}
        taken = 0
        for key in list(self._adrift):
            taken += await self._take_over(key)
            self._adrift.discard(key)
        for name in await self._host.call("keys", f"{JOURNAL}:*") or ():
            key = _behind(name, f"{JOURNAL}:")
            owner = key.rpartition(":")[0]
            if owner not in living:
                living[owner] = bool(await self._host.call("get_key", OWNERS, owner))
            if not living[owner]:
                taken += await self._take_over(key)
        await self._tidy()
        return taken

    async def _take_over(self, key: str) -> int:
        value = await self._host.call("get_key", JOURNAL, key)
        if value is None:
            return 0
        try:
            records = decode(value)
        except (ValueError, TypeError) as error:
            logger.warning("a page of the journal cannot be read and is removed: %s", error)
            await self._host.call("delete", JOURNAL, key)
            return 0
        async with self._new_page(records) as own:
            try:
                removed = await self._host.call("delete", JOURNAL, key)
            except BaseException:
                # It may be gone all the same, and then ours is the last one.
                self._adrift.add(own)
                raise
            # Of several processes that try, the one that removes it has it.
            if removed == 0:
                self._outdated.add(own)
                return 0
            appended = await super().append(records, evict=False)
            self._enter(own, records[: appended.stored])
        if appended.stored < len(records):
            # No room: the rest waits under a key of nobody's, for the next search.
            await self._host.call("set_key", JOURNAL, key, encode(records[appended.stored :]))
            self._outdated.add(own)
        return appended.stored


def encode(records: Iterable[Record]) -> str:
    """A page of the journal: JSON text, because a handler may take nothing else."""
    rows = [
        (record.id, record.kind, int(record.priority), record.accepted_at, record.payload.decode())
        for record in records
    ]
    return orjson.dumps([_VERSION, rows]).decode()


def decode(page: str | bytes) -> list[Record]:
    """
    The records of a page.

    Raises:
        ValueError: it is no page, or one of another version.
        TypeError: the same.
    """
    version, rows = orjson.loads(page)
    if version != _VERSION:
        msg = f"it has version {version!r}, not {_VERSION}"
        raise ValueError(msg)
    return [_record(*row) for row in rows]


def _record(name: str, kind: Any, priority: int, accepted_at: float, payload: str) -> Record:
    if kind not in ("event", "metric"):
        msg = f"it holds a {kind!r}"
        raise ValueError(msg)
    return Record(name, kind, Priority(priority), payload.encode(), float(accepted_at))


def _behind(name: str | bytes, mark: str) -> str:
    """The part of a key behind ``mark``; a handler may list keys with its prefix or without."""
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return text.partition(mark)[2]


@hookimpl
def guard_agent_buffer_stores() -> list[type[BufferStore]]:
    return [HandlerStore]
