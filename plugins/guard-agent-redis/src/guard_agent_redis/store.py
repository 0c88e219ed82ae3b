"""
The store ``redis``: records wait in Redis Streams, shared by all processes of a project.

**Keys.** All begin with ``<prefix>:{<project>}:``; the braces put them into one slot of a cluster.

``records:3`` … ``records:0``
    A stream for each priority. An entry holds records of one append: a single one in a trickle,
    up to 1,000 or 1.25 MiB in a burst. Each destination is a consumer group of each stream, each
    process a consumer. Nothing trims a stream; an entry is deleted when every destination is done
    with all its records.
``state:<destination>``
    What a destination still wants of the entries it has begun with: a hash from
    ``<priority>:<entry>`` to runs of positions that are ready (perhaps not before some time) or
    held by a lease until some time. A position in no run is settled. An entry without state is
    untouched when it lies behind the mark ``seen``, otherwise done with.
``dead:<destination>``
    Dead letters, a bounded list.
``meta``
    The books, a hash: records and bytes ever appended, freed, and done with by each destination;
    what is leased; marks in the streams from which a search has to begin; and until when each
    consumer counts as alive. Those say so three times as often as they have to; what a dead one had
    leased is ready again, long before its leases end.

**Operations.** Each is one call of ``store.lua``, so it happens as a whole or not at all, and
partial acknowledgements are exact. A lease claims whole entries for the consumer (``XCLAIM``, with
a time of delivery from which ``XAUTOCLAIM`` tells by the server's clock when the lease is over) and
notes in the state which records of them it holds. When the last record of an entry is settled, the
entry is acknowledged and deleted together (``XACK``, ``XDEL``).

**A burst** of 3,000 events costs less than 0.05 commands for each of them, or 0.08 where the
collector is slow: an append of it is one entry for each priority, and a process that delivers
quickly leases several batches with one call (`prefetch`). Whoever looks (``stats``), and a release,
give back first what of it is not handed out.

**Bounds** are checked before an append. While the store is less than half full a process may add
single entries with a plain ``XADD``, up to 1/128 of the bounds (one hundred-and-twenty-eighth)
before it asks again, and others count them when they meet them. So a trickle costs about one
command for a record, and the bounds can be exceeded by that share for each process at most.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import socket
import struct
import time
from collections import deque
from importlib.resources import files
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar
from urllib.parse import quote

from redis.exceptions import RedisError

from guard_agent import (
    Appended,
    BufferStore,
    DeadLetter,
    DestinationDepth,
    HostRedis,
    Lease,
    Level,
    Peeked,
    PluginContext,
    Record,
)
from guard_agent_redis import codec
from guard_agent_redis.adoption import adopt
from guard_agent_redis.errors import (
    ServerDownError,
    StoreUnavailableError,
    code_of,
    translate,
)
from guard_agent_redis.link import Link
from guard_agent_redis.prefetch import HOLD, Prefetch
from guard_agent_redis.server import check_version, find_hazards
from guard_agent_redis.settings import RedisSettings

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping, Sequence

logger = logging.getLogger("guard_agent.redis")

_BEGINNING = "0-0"
_STREAMS = 4
_SHARE = 128
_PREFETCH_SHARE = 4
"""A process leases ahead a fourth of what the store may hold at most."""
_ALLOWANCE_TIME = 10.0
"""Seconds for which an allowance is good; the agent asks for statistics every 5."""
_MAX_IDS = 1000
_MAX_DOUBTS = 10_000
_CLOCK_SLACK = 10.0
_HOUR = 3600.0
_STALE_CONSUMER = _HOUR
_STALE_DESTINATION = 24 * _HOUR

Word: TypeAlias = "str | bytes | int"
T = TypeVar("T")


class RedisStore(BufferStore):
    """Keeps records in Redis or Valkey. See the module for the data model."""

    name = "redis"
    level: ClassVar[Level] = Level.JOURNAL
    Settings = RedisSettings
    settings: RedisSettings

    def __init__(
        self,
        settings: RedisSettings,
        context: PluginContext,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """``options`` of a connection of redis-py go before what the settings say of it."""
        super().__init__(settings, context)
        self._options = options
        config = context.config
        self._max_records = settings.max_records or config.max_buffer_records
        self._max_bytes = settings.max_bytes or config.max_buffer_bytes
        project = quote(config.project_key, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`|~")
        self._base = f"{settings.prefix}:{{{project}}}:"
        self._names = context.destinations
        self._link: Link | None = None
        self._sha = ""
        self._consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._numbers = count(1)
        # Appends and leases of which we do not know whether they have happened, and since when.
        self._doubts: deque[tuple[str, float]] = deque(maxlen=_MAX_DOUBTS)
        self._presence = math.ceil(settings.presence * 1000)
        self._beating: asyncio.Task[None] | None = None
        self._opened_at = 0.0
        # What may be added without asking: records, bytes, and until when.
        self._allowance = (0, 0, 0.0)
        self._hold = min(HOLD, settings.presence / 4)
        self._prefetched = {name: Prefetch(self._hold) for name in self._names}
        # What was leased ahead and has to go back, and what sees to it in time.
        self._unwanted: deque[Lease] = deque()
        self._returning: set[asyncio.Task[None]] = set()
        self._junk = 0
        self._resets = 0
        self._was_there = False
        self.hazards: tuple[str, ...] = ()
        """What in the server's own settings can lose records, in words."""

    @classmethod
    def adopt(cls, host: HostRedis, context: PluginContext) -> RedisStore | None:
        adopted = adopt(host.handler, context.config.plugins.get(cls.name, {}))
        return None if adopted is None else cls(adopted.settings, context, adopted.options)

    # --- open and close -------------------------------------------------------------------------

    @property
    def resets(self) -> int:
        """How often the store was found gone from the server, by `FLUSHALL` for example."""
        return self._resets

    @property
    def capacity(self) -> tuple[int, int]:
        return self._max_records, self._max_bytes

    def describe(self) -> Mapping[str, object]:
        return {
            "durable": not self.hazards,
            "store_resets": self.resets,
            "hazards": list(self.hazards),
        }

    async def open(self) -> None:
        """
        Connect, look whether the server is fit for the store, and prepare the store there.

        Raises:
            StoreUnavailableError: it is not, or nobody answers; in one line.
        """
        await self.close()
        self._link = link = Link(self.settings, self._options)
        try:
            await check_version(link)
            await self._prepare()
            await self._settle_doubts()
            hazards = await find_hazards(link)
        except BaseException:
            await self.close()
            raise
        self._beating = asyncio.ensure_future(self._beat())
        for hazard in set(hazards) - set(self.hazards):
            logger.warning("records in Redis can be lost: %s", hazard)
        self.hazards = hazards

    async def close(self) -> None:
        beating, self._beating = self._beating, None
        if beating is not None:
            beating.cancel()
            await asyncio.wait({beating})
        await self._return_at_the_end()
        link, self._link = self._link, None
        if link is None:
            return
        try:
            if self._opened_at and not link.is_down:
                await self._script(link, "leave", self._consumer)
        except StoreUnavailableError as error:
            # Others clean up after an hour what is left; all that counts is on the server.
            logger.debug("could not leave the groups: %s", error)
        finally:
            self._opened_at = 0.0
            await link.close()

    async def _beat(self) -> None:
        """Say that we are there, for as long as the store is open."""
        while True:
            await asyncio.sleep(self.settings.presence / 3)
            try:
                await self._attempt("present", self._consumer, self._presence)
                await self._return_unwanted()
            except StoreUnavailableError as error:
                logger.debug("cannot say that we are there: %s", error)

    async def _prepare(self) -> None:
        """Make what is missing on the server; tell when that is a store that was there before."""
        _, anew = await self._script(
            self._connected(),
            "open",
            int(_STALE_CONSUMER * 1000),
            int(_STALE_DESTINATION * 1000),
            *self._names,
        )
        self._opened_at = time.monotonic()
        self._allowance = (0, 0, 0.0)
        if anew and self._was_there:
            self._resets += 1
            logger.warning(
                "the store was gone from Redis (%s): it is built anew, what it held is lost",
                self._base,
            )
        self._was_there = True

    # --- append ---------------------------------------------------------------------------------

    async def append(self, records: Sequence[Record], *, evict: bool) -> Appended:
        if not records or not self._names:
            return Appended(len(records))
        if len(records) <= codec.MAX_CHUNK_RECORDS:
            return await self._append(records, evict)
        stored, evicted = 0, dict[str, int]()
        for start in range(0, len(records), codec.MAX_CHUNK_RECORDS):
            part = records[start : start + codec.MAX_CHUNK_RECORDS]
            appended = await self._append(part, evict)
            stored += appended.stored
            for name, amount in appended.evicted.items():
                evicted[name] = evicted.get(name, 0) + amount
            if appended.stored < len(part):
                break
        return Appended(stored, evicted)

    async def _append(self, records: Sequence[Record], evict: bool) -> Appended:
        chunks = codec.encode(records)
        token = f"{self._consumer}.{next(self._numbers)}"
        if len(chunks) == 1 and self._may_add(chunks[0]):
            adding = self._sure(token, self._add(chunks[0], token))
            await self._connected().settled(adding, self._retract)
            return Appended(len(records))
        order = bytes([48 + record.priority for record in records])
        words: list[Word] = [part for chunk in chunks for part in chunk]
        appending = self._attempt(
            "append", token, int(evict), self._max_records, self._max_bytes, order, *words
        )
        stored, held, size, _, evicted = await self._connected().settled(
            self._sure(token, appending), lambda reply: self._retract(reply[3])
        )
        self._allow(held, size)
        amounts = {name.decode(): amount for name, amount in _pairs(evicted)}
        # Others may have destinations that we do not know.
        return Appended(stored, {name: amounts[name] for name in self._names if name in amounts})

    async def _add(self, chunk: codec.Chunk, token: str) -> list[Any]:
        priority, amount, size, rows, bodies = chunk
        fields = ("v", codec.VERSION, "n", amount, "s", size, "h", rows, "b", bodies, "t", token)
        entry = await self._command("XADD", f"{self._base}records:{priority}", "*", *fields)
        return [priority, entry]

    async def _retract(self, entries: list[Any]) -> None:
        """Take back what was added, unless somebody has it already."""
        for priority, entry in _pairs(entries):
            await self._run("retract", priority, entry)

    def _may_add(self, chunk: codec.Chunk) -> bool:
        records, size, until = self._allowance
        if chunk[1] > records or chunk[2] > size or time.monotonic() > until:
            return False
        self._allowance = (records - chunk[1], size - chunk[2], until)
        return True

    def _allow(self, held: int, size: int) -> None:
        """Renew the allowance, now that we know what the store holds."""
        if 2 * held < self._max_records and 2 * size < self._max_bytes:
            until = time.monotonic() + _ALLOWANCE_TIME
            self._allowance = (self._max_records // _SHARE, self._max_bytes // _SHARE, until)
        else:
            self._allowance = (0, 0, 0.0)

    # --- lease ----------------------------------------------------------------------------------

    async def lease(
        self, destination: str, max_records: int, max_bytes: int, ttl: float
    ) -> Lease | None:
        self._check(destination)
        if max_records < 1:
            return None
        link, prefetched, now = self._connected(), self._prefetched[destination], time.monotonic()
        if prefetched and not link.is_down:
            batch = prefetched.cut(max_records, max_bytes, ttl, now)
            if batch is not None:
                return batch
        await self._return_prefetched(destination)
        room, space = self._max_records // _PREFETCH_SHARE, self._max_bytes // _PREFETCH_SHARE
        batches = prefetched.batches(room, space // max(max_bytes, 1), ttl)
        name = f"{self._consumer}.{next(self._numbers)}"
        leasing = self._attempt(
            "lease",
            destination,
            self._consumer,
            self._presence,
            name,
            max_records,
            max_bytes,
            math.ceil((ttl + self._hold if batches > 1 else ttl) * 1000),
            batches,
        )
        runs = await link.settled(
            self._sure(name, leasing),
            lambda reply: self._give_back(Lease(name, destination, _decode(reply))),
        )
        if not runs:
            return None
        prefetched.put(Lease(name, destination, _decode(runs)), ttl, now)
        batch = prefetched.cut(max_records, max_bytes, ttl, now)
        if prefetched:
            returning = asyncio.ensure_future(self._return_late(prefetched))
            self._returning.add(returning)
            returning.add_done_callback(self._returning.discard)
        return batch

    async def _give_back(self, lease: Lease) -> None:
        await self._settle("release", lease, list(lease.entries))

    # --- what was leased ahead ------------------------------------------------------------------

    async def _return_prefetched(self, *names: str) -> None:
        """Give back what was leased ahead, for some destinations or for all."""
        for name in names or self._names:
            if (lease := self._prefetched[name].drain()) is not None:
                self._unwanted.append(lease)
        await self._return_unwanted()

    async def _return_unwanted(self) -> None:
        while self._unwanted:
            lease = self._unwanted[0]
            await self._give_back(lease)
            # Another task may have done it meanwhile; given back twice does no harm.
            if self._unwanted and self._unwanted[0] is lease:
                self._unwanted.popleft()

    async def _return_late(self, prefetched: Prefetch) -> None:
        """Give back what nobody has fetched in time; what fails is repeated with the next beat."""
        await asyncio.sleep(self._hold)
        if prefetched and prefetched.is_stale(time.monotonic()):
            if (lease := prefetched.drain()) is not None:
                self._unwanted.append(lease)
            try:
                await self._return_unwanted()
            except StoreUnavailableError as error:
                logger.debug("cannot give back what was leased ahead: %s", error)

    async def _return_at_the_end(self) -> None:
        for returning in self._returning:
            returning.cancel()
        if self._returning:
            await asyncio.wait(self._returning)
        try:
            if self._link is not None and self._opened_at and not self._link.is_down:
                await self._return_prefetched()
        except StoreUnavailableError as error:
            # Others get it as soon as they see that we are gone.
            logger.debug("cannot give back what was leased ahead: %s", error)
        for prefetched in self._prefetched.values():
            prefetched.drain()
        self._unwanted.clear()

    # --- what becomes of a lease ----------------------------------------------------------------

    async def ack(self, lease: Lease, ids: Sequence[str]) -> int:
        count = await self._settle("ack", lease, ids)
        self._prefetched[lease.destination].acked(time.monotonic())
        return count

    async def release(self, lease: Lease, ids: Sequence[str], delay: float = 0.0) -> int:
        count = await self._settle("release", lease, ids, delay=delay)
        # What was leased ahead is younger, and would go before what is ready again.
        self._prefetched[lease.destination].failed()
        await self._return_prefetched(lease.destination)
        return count

    async def bury(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        return await self._settle("bury", lease, ids, reason=reason)

    async def _settle(
        self,
        mode: str,
        lease: Lease,
        ids: Sequence[str],
        *,
        delay: float = 0.0,
        reason: str = "",
    ) -> int:
        self._check(lease.destination)
        concerned = 0
        for start in range(0, len(ids), _MAX_IDS):
            # By entry: the rank of each record among the ids, and what the books need of it.
            entries: dict[str, list[tuple[int, bytes]]] = {}
            letters: list[bytes] = []
            for name in ids[start : start + _MAX_IDS]:
                record = lease.entries.get(name)
                if record is None:
                    continue
                entry, _, position = name.rpartition(":")
                place = codec.encode_position(int(position), record)
                if mode == "bury":
                    entries.setdefault(entry, []).append((len(letters), place))
                    letters.append(codec.encode_letter(record, reason))
                else:
                    entries.setdefault(entry, []).append((0, place))
            if not entries:
                continue
            words: list[Word] = []
            for entry, places in entries.items():
                words += (entry, b"".join([place for _, place in places]))
            if letters:
                ranks = [rank for places in entries.values() for rank, _ in places]
                words.append(struct.pack(f"<{len(ranks)}H", *ranks))
                words += [letters[rank] for rank in ranks]
            concerned += await self._run(
                "settle",
                mode,
                lease.destination,
                lease.id,
                max(math.ceil(delay * 1000), 0),
                len(entries),
                *words,
            )
        return concerned

    async def release_expired(self) -> int:
        if time.monotonic() - self._opened_at > _HOUR:
            # Says that our destinations are still wanted, and clears away what nobody uses.
            await self._prepare()
        released: int = await self._run("expire", self._consumer, self._presence)
        return released

    # --- looking --------------------------------------------------------------------------------

    async def stats(self) -> dict[str, DestinationDepth]:
        await self._return_prefetched()
        held, size, junk, *depths = await self._run("stats", *self._names)
        self._allow(held, size)
        if junk > self._junk:
            logger.warning(
                "%d entries in %srecords were not written by this store; they are buried",
                junk - self._junk,
                self._base,
            )
        self._junk = junk
        return {
            name: DestinationDepth(
                ready=depths[at],
                leased=depths[at + 1],
                buried=depths[at + 2],
                bytes=depths[at + 3],
                oldest=float(depths[at + 4]) if depths[at + 4] else None,
            )
            for at, name in zip(range(0, len(depths), 5), self._names, strict=True)
        }

    async def dead_letters(self, destination: str) -> Sequence[DeadLetter]:
        self._check(destination)
        letters = []
        for letter in await self._run("letters", destination):
            try:
                letters.append(codec.decode_letter(letter))
            except (struct.error, ValueError):
                logger.debug("a dead letter of %s is not one of ours", destination)
        return tuple(letters)

    async def peek(self, destination: str, after: str | None, limit: int) -> Peeked:
        self._check(destination)
        # Where the looks before had come to: how many for this destination came until then, ids.
        head, *ids = after.split(",") if after is not None else ("", *[_BEGINNING] * _STREAMS)
        all_came, waiting, all_seen, ends, parts = await self._run("peek", destination, limit, *ids)
        came = int(head) if after is not None else all_came - waiting
        records = [
            record
            for at in range(0, len(parts), 3)
            for record in codec.decode(parts[at], parts[at + 1], parts[at + 2])
        ]
        records.sort(key=lambda record: record.accepted_at)
        came += len(records)
        passed = 0
        if all_seen or not limit:
            # Less than before was appended to a store that was built anew meanwhile.
            passed = max(all_came - came, 0) if limit else 0
            came = all_came
        position = ",".join([str(came), *(end.decode() for end in ends)])
        return Peeked(records, position, passed)

    async def replay(self, destination: str, limit: int) -> int:
        self._check(destination)
        replayed, held, size = await self._run(
            "replay", destination, max(limit, 0), self._max_records, self._max_bytes
        )
        self._allow(held, size)
        return int(replayed)

    # --- calling the script ---------------------------------------------------------------------

    def _check(self, destination: str) -> None:
        if destination not in self._names:
            msg = (
                f"this store has no destination {destination!r}; "
                f"it was made for: {', '.join(self._names)}"
            )
            raise ValueError(msg)

    def _connected(self) -> Link:
        if self._link is None:
            msg = "the store is not open"
            raise StoreUnavailableError(msg)
        return self._link

    async def _run(self, operation: str, *words: Word) -> Any:
        return await self._connected().settled(self._attempt(operation, *words))

    async def _sure(self, name: str, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work``; when nobody says whether it was done, ask when the server is back."""
        try:
            return await work
        except (ServerDownError, asyncio.CancelledError):
            self._doubts.append((name, time.monotonic()))
            raise

    async def _settle_doubts(self) -> None:
        """Undo what was done all the same: whoever asked for it was told that it failed."""
        while self._doubts:
            some = list(self._doubts)[:_MAX_IDS]
            age = time.monotonic() - some[0][1] + self.settings.deadline + _CLOCK_SLACK
            names = [name for name, _ in some]
            await self._run("forget", self._consumer, math.ceil(age * 1000), *names)
            for _ in some:
                self._doubts.popleft()

    async def _attempt(self, operation: str, *words: Word) -> Any:
        """Run an operation; when the store is gone from the server, build it anew and repeat."""
        link = self._connected()
        try:
            return await self._script(link, operation, *words)
        except _StoreGoneError:
            await self._prepare()
        return await self._script(link, operation, *words)

    async def _script(self, link: Link, operation: str, *words: Word) -> Any:
        try:
            return await self._evaluate(link, operation, words)
        except RedisError as error:
            if code_of(error) in ("RESET", "NOGROUP"):
                raise _StoreGoneError(str(error)) from error
            raise translate(error, link.where) from error

    async def _evaluate(self, link: Link, operation: str, words: tuple[Word, ...]) -> Any:
        arguments = (
            1,
            f"{self._base}meta",
            operation,
            self.settings.max_dead_letters,
            self.settings.max_dead_letter_bytes,
            *words,
        )
        if self._sha:
            try:
                return await link.call("EVALSHA", self._sha, *arguments)
            except RedisError as error:
                if code_of(error) != "NOSCRIPT":
                    raise
        self._sha = (await link.call("SCRIPT", "LOAD", _source())).decode()
        return await link.call("EVALSHA", self._sha, *arguments)

    async def _command(self, *words: Word) -> Any:
        link = self._connected()
        try:
            return await link.call(*words)
        except RedisError as error:
            raise translate(error, link.where) from error


class _StoreGoneError(StoreUnavailableError):
    """The keys of the store are not on the server."""


def _source() -> bytes:
    return files("guard_agent_redis").joinpath("store.lua").read_bytes()


def _pairs(flat: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _decode(runs: list[Any]) -> dict[str, Record]:
    """The records of a lease by entry id, which is ``<priority>:<entry>:<position>``."""
    entries: dict[str, Record] = {}
    for at in range(0, len(runs), 5):
        priority, entry, first, rows, bodies = runs[at : at + 5]
        key = f"{priority}:{entry.decode()}:"
        for position, record in enumerate(codec.decode(priority, rows, bodies), first):
            entries[f"{key}{position}"] = record
    return entries
