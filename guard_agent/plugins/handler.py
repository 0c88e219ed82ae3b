"""
The store ``handler``: a journal behind the Redis handler of the host application.

For an application that hands over something with the methods of `RedisHandlerProtocol`, which can
set, get, delete and list keys and no more. Records are delivered from this process; each append is
also written down as a page under a key of its own. A page also says which destinations have its
records already, and dead letters have pages too; what nobody wants any more is deleted. What a
closed or killed process leaves there is taken over by the next one, or by a living one.

**Keys.** ``agent_journal:<project>:<owner>:<number>`` is a page, ``agent_journal_owners:<owner>``
the sign of life of a process; the project is a digest, because the records of one must not leave
with the key of another.

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
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from guard_agent import (
    Appended,
    BufferStore,
    DeadLetter,
    GuardAgentError,
    HostRedis,
    Lease,
    Level,
    PluginContext,
    Priority,
    Record,
    hookimpl,
)
from guard_agent.plugins.memory import MemorySettings, MemoryStore, entry_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence

logger = logging.getLogger("guard_agent.store")

METHODS = ("get_key", "set_key", "delete", "keys")
JOURNAL = "agent_journal"
OWNERS = "agent_journal_owners"

_VERSION = 2
_OWNER_TTL = 30
"""Seconds after its last sign of life for which a process still owns what it wrote down."""
_SIGN_EVERY = 10.0
_SEARCH_EVERY = 60.0
"""Seconds between two searches for what others left: listing keys costs the server."""


class HandlerError(GuardAgentError):
    """The handler does not keep the journal now."""


@dataclass(frozen=True, slots=True)
class Page:
    """What stands under one key of the journal."""

    rows: Sequence[tuple[Record, Collection[str]]] = ()
    """Records, each with the destinations that are done with it."""
    letters: Sequence[tuple[str, DeadLetter]] = ()
    """Dead letters, each with its destination, in the order in which they were buried."""


@dataclass(slots=True)
class _Kept:
    """What a page of ours is for."""

    entries: dict[str, None] = field(default_factory=dict)
    letters: list[tuple[str, DeadLetter]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.entries or self.letters)


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
        project = blake2b(context.config.project_key.encode(), digest_size=8).hexdigest()
        host_name = socket.gethostname().replace(":", "-")
        self._project = project
        self._owner = f"{project}:{host_name}-{os.getpid()}-{secrets.token_hex(4)}"
        self._written = 0
        self._pages: dict[str, _Kept] = {}
        self._page_of: dict[str, str] = {}
        """Entry → the key of its page."""
        self._missing: dict[str, None] = {}
        """Keys that are to say more. They come first: what another one stops saying is there."""
        self._outdated: dict[str, None] = {}
        """Keys that say more than is still wanted."""
        self._rest: dict[str, Page] = {}
        """What found no room here, by the key under which it waits for somebody else."""
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
        async with self._new_page(Page([(record, ()) for record in records])) as key:
            before = self._inserted
            appended = await super().append(records, evict=evict)
            kept = self._keep(key, before)
        if appended.evicted:
            self._strike()
        if len(kept.entries) < len(records):
            self._outdated[key] = None
        await self._tidy()
        return appended

    async def ack(self, lease: Lease, ids: Sequence[str]) -> int:
        acknowledged = await super().ack(lease, ids)
        self._done_with(ids)
        await self._tidy()
        return acknowledged

    async def bury(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        buried = await super().bury(lease, ids, reason)
        if buried:
            self._follow_letters()
            self._done_with(ids)
        await self._tidy()
        return buried

    async def replay(self, destination: str, limit: int) -> int:
        before = self._inserted
        replayed = await super().replay(destination, limit)
        if replayed:
            key = self._new_key()
            self._keep(key, before)
            self._missing[key] = None
            self._follow_letters()
            await self._tidy()
        return replayed

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
    async def _new_page(self, page: Page) -> AsyncIterator[str]:
        """
        Write ``page`` down under a key of its own.

        The body takes over what it says; when it does not come to its end the page goes away. Until
        then nobody else touches it: an acknowledgement in between must not take it for outdated.
        """
        key = self._new_key()
        self._beginning.add(key)
        try:
            await self._write(key, page)
            yield key
        except BaseException:
            # Whatever became of the call, there may be something under the key.
            if key not in self._adrift:
                self._outdated[key] = None
            raise
        finally:
            self._beginning.discard(key)

    async def _write(self, key: str, page: Page) -> None:
        if await self._host.call("set_key", JOURNAL, key, encode(page)) is False:
            msg = f"{self._host.label} did not take a page of the journal"
            raise HandlerError(msg)

    def _keep(self, key: str, before: int, letters: Iterable[tuple[str, DeadLetter]] = ()) -> _Kept:
        """Have the page stand for what was inserted since there were ``before``, and letters."""
        inserted = map(entry_id, range(before, self._inserted))
        entries = dict.fromkeys([entry for entry in inserted if entry in self._records])
        kept = _Kept(entries, list(letters))
        self._pages[key] = kept
        self._page_of.update(dict.fromkeys(kept.entries, key))
        return kept

    def _present(self, key: str) -> Page:
        """What the page has to say now."""
        kept = self._pages.get(key)
        if kept is None:
            return Page()
        rows = [
            (
                self._records[entry],
                [name for name, cursor in self._cursors.items() if entry not in cursor.pending],
            )
            for entry in kept.entries
        ]
        return Page(rows, kept.letters)

    def _done_with(self, ids: Iterable[str]) -> None:
        """Have it written down that a destination is done with these."""
        for entry in ids:
            key = self._page_of.get(entry)
            if key is None:
                continue
            if entry not in self._records:
                del self._page_of[entry]
                del self._pages[key].entries[entry]
            self._outdated[key] = None

    def _strike(self) -> None:
        """Have it written down what was given up."""
        for key, kept in self._pages.items():
            gone = [entry for entry in kept.entries if entry not in self._records]
            for entry in gone:
                del self._page_of[entry], kept.entries[entry]
            if gone:
                self._outdated[key] = None

    def _follow_letters(self) -> None:
        """Have it written down which dead letters there are now."""
        # By identity: two may be equal.
        unknown = {
            id(letter): (name, letter)
            for name, cursor in self._cursors.items()
            for letter in cursor.dead.letters
        }
        for key, kept in self._pages.items():
            left = [one for one in kept.letters if unknown.pop(id(one[1]), None)]
            if len(left) < len(kept.letters):
                kept.letters = left
                self._outdated[key] = None
        if unknown:
            key = self._new_key()
            self._pages[key] = _Kept(letters=list(unknown.values()))
            self._missing[key] = None

    async def _tidy(self) -> None:
        """
        Bring the journal up to date.

        What fails is tried again later: until then the journal says too much, and a killed process
        would have records delivered twice.
        """
        # One at a time: of two that write the same page the older one could come last.
        async with self._tidying:
            while (key := self._next()) is not None:
                # Before it is written: what changes from here on makes it outdated again.
                waited = self._missing if key in self._missing else self._outdated
                self._missing.pop(key, None)
                self._outdated.pop(key, None)
                page = self._rest.get(key) or self._present(key)
                try:
                    if page.rows or page.letters:
                        await self._write(key, page)
                        self._rest.pop(key, None)
                    else:
                        await self._host.call("delete", JOURNAL, key)
                        if not self._pages.get(key):
                            self._pages.pop(key, None)
                except Exception as error:  # noqa: BLE001 - host meets agent: any object, any error
                    waited[key] = None
                    logger.debug("the journal could not be brought up to date: %s", error)
                    return
                except BaseException:
                    waited[key] = None
                    raise

    def _next(self) -> str | None:
        """The key that is to be written next."""
        for waiting in (self._missing, self._outdated):
            for key in waiting:
                if key not in self._beginning:
                    return key
        return None

    async def _search(self) -> int:
        """Take over what processes wrote down that give no sign of life any more."""
        self._searched_at = self._clock()
        living: dict[str, bool] = {self._owner: True}
        taken = 0
        for key in list(self._adrift):
            taken += await self._take_over(key)
            self._adrift.discard(key)
        names = await self._host.call("keys", f"{JOURNAL}:{self._project}:*") or ()
        # The pages of one owner in the order in which they were written.
        keys = sorted([_behind(name, f"{JOURNAL}:") for name in names], key=_owner_and_number)
        for key in keys:
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
            page = decode(value)
        except (ValueError, TypeError) as error:
            logger.warning("a page of the journal cannot be read and is removed: %s", error)
            await self._host.call("delete", JOURNAL, key)
            return 0
        async with self._new_page(page) as own:
            try:
                removed = await self._host.call("delete", JOURNAL, key)
            except BaseException:
                # It may be gone all the same, and then ours is the last one.
                self._adrift.add(own)
                raise
            # Of several processes that try, the one that removes it has it.
            if removed == 0:
                self._outdated[own] = None
                return 0
            before = self._inserted
            rest = self._insert_rows(page.rows)
            letters = [letter for letter in page.letters if letter[0] in self._cursors]
            for name, letter in letters:
                self._cursors[name].dead.add(letter)
            kept = self._keep(own, before, letters)
        if rest:
            # No room: it waits under a key of nobody's, for the next search.
            self._rest[key] = Page(rest)
            self._missing[key] = None
        if len(kept.entries) < len(page.rows) or len(letters) < len(page.letters):
            self._outdated[own] = None
        if letters:
            self._follow_letters()
        return len(kept.entries)

    def _insert_rows(
        self, rows: Sequence[tuple[Record, Collection[str]]]
    ) -> Sequence[tuple[Record, Collection[str]]]:
        """Take in what somebody still wants; returns what there is no room for."""
        for position, (record, done) in enumerate(rows):
            wanted = [cursor for name, cursor in self._cursors.items() if name not in done]
            if not wanted:
                continue
            if not self._has_room(record):
                return rows[position:]
            self._insert((record,), len(record.payload), wanted)
        return ()


def encode(page: Page) -> str:
    """A page of the journal: JSON text, because a handler may take nothing else."""
    rows = [(_row(record), [*done]) for record, done in page.rows]
    letters = [(name, letter.reason, _row(letter.record)) for name, letter in page.letters]
    return orjson.dumps([_VERSION, rows, letters]).decode()


def _row(record: Record) -> tuple[object, ...]:
    return (
        record.id,
        record.kind,
        int(record.priority),
        record.accepted_at,
        record.payload.decode(),
    )


def decode(page: str | bytes) -> Page:
    """
    What a page says.

    Raises:
        ValueError: it is no page, or one of another version.
        TypeError: the same.
    """
    version, *parts = orjson.loads(page)
    if version != _VERSION:
        msg = f"it has version {version!r}, not {_VERSION}"
        raise ValueError(msg)
    rows, letters = parts
    return Page(
        [(_record(*row), frozenset(done)) for row, done in rows],
        [(str(name), DeadLetter(_record(*row), str(reason))) for name, reason, row in letters],
    )


def _record(name: str, kind: Any, priority: int, accepted_at: float, payload: str) -> Record:
    if kind not in ("event", "metric"):
        msg = f"it holds a {kind!r}"
        raise ValueError(msg)
    return Record(name, kind, Priority(priority), payload.encode(), float(accepted_at))


def _behind(name: str | bytes, mark: str) -> str:
    """The part of a key behind ``mark``; a handler may list keys with its prefix or without."""
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return text.partition(mark)[2]


def _owner_and_number(key: str) -> tuple[str, int, str]:
    owner, _, number = key.rpartition(":")
    return owner, len(number), number


@hookimpl
def guard_agent_buffer_stores() -> list[type[BufferStore]]:
    return [HandlerStore]
