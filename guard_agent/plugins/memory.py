"""The store ``memory``: records wait in this process and are lost with it."""

from __future__ import annotations

import re
import time
from collections import deque
from heapq import heapify, heappop, heappush
from itertools import count, islice
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from guard_agent import (
    LEASE_SHARE,
    Appended,
    BufferStore,
    DeadLetter,
    DestinationDepth,
    Lease,
    Level,
    Peeked,
    PluginContext,
    PluginSettings,
    Priority,
    Record,
    hookimpl,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence


_PRIORITIES = range(len(Priority))  # going through the enum itself costs four times as much

# What a record takes beside its payload, measured, and how much of that is not counted: a full
# store needs at most 16 MiB more than its setting.
_OVERHEAD = 400
_OVERHEAD_PER_DESTINATION = 120
_FREE_OVERHEAD = 12 * 1024 * 1024

# Ids of equal length sort as text in the order of their age.
_FIRST_ID = 1 << 40

# Of a look: how many entries came before, and how many of those for the destination.
_POSITION = re.compile(r"([0-9]{1,18})\+([0-9]{1,18})", re.ASCII)


class MemorySettings(PluginSettings):
    max_records: int | None = Field(
        default=None, ge=1, description="Most records kept; max_buffer_records when not given"
    )
    max_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Most payload bytes kept, and of what many small records take beside them what "
        "is above 12 MiB; max_buffer_bytes when not given",
    )
    max_dead_letters: int = Field(
        default=1000, ge=0, description="Most dead letters kept for each destination"
    )
    max_dead_letter_bytes: int = Field(
        default=1024 * 1024,
        ge=0,
        description="Most payload bytes of the dead letters of each destination",
    )


def entry_id(number: int) -> str:
    """The id of the record before which so many others came."""
    return hex(_FIRST_ID + number)


class _Queue:
    """
    Entry ids, oldest first.

    An id that left ``live`` is skipped when it is met; before such ids outnumber the others they
    are swept out, so every operation is O(1) amortised, O(log n) for an id that was put back.
    """

    __slots__ = ("_fresh", "_limit", "_live", "_returned")

    def __init__(self, live: Container[str]) -> None:
        self._live = live
        self._fresh: deque[str] = deque()  # in order of arrival, which is the order of age
        self._returned: list[str] = []  # a heap: these come back in any order
        self._limit = 1024

    def extend(self, ids: Iterable[str]) -> None:
        """Add ids younger than all others."""
        self._fresh.extend(ids)
        self._sweep()

    def put_back(self, entry: str) -> None:
        heappush(self._returned, entry)
        self._sweep()

    def pop(self) -> str | None:
        fresh, returned, live = self._fresh, self._returned, self._live
        while fresh or returned:
            if returned and not (fresh and fresh[0] < returned[0]):
                entry = heappop(returned)
            else:
                entry = fresh.popleft()
            if entry in live:
                return entry
        return None

    def pop_some(self, limit: int) -> list[str]:
        """The oldest, at most ``limit``; none when there are none, fewer says nothing."""
        fresh, live = self._fresh, self._live
        if self._returned:  # which may be older or younger
            return [] if (entry := self.pop()) is None else [entry]
        some: list[str] = []
        while fresh and not some:
            taken = [fresh.popleft() for _ in range(min(limit, len(fresh)))]
            some = [entry for entry in taken if entry in live]
        return some

    def put_back_all(self, ids: Sequence[str]) -> None:
        """Put back what `pop_some` gave last, or the end of it."""
        if self._returned:
            for entry in ids:
                heappush(self._returned, entry)
        else:
            self._fresh.extendleft(reversed(ids))

    def is_empty(self) -> bool:
        fresh, returned, live = self._fresh, self._returned, self._live
        while fresh and fresh[0] not in live:
            fresh.popleft()
        while returned and returned[0] not in live:
            heappop(returned)
        return not (fresh or returned)

    def _sweep(self) -> None:
        if len(self._fresh) + len(self._returned) <= self._limit:
            return
        self._fresh = deque(entry for entry in self._fresh if entry in self._live)
        self._returned = [entry for entry in self._returned if entry in self._live]
        heapify(self._returned)
        self._limit = 2 * (len(self._fresh) + len(self._returned)) + 1024


class _Held:
    """A lease as the store keeps it."""

    __slots__ = ("entries", "expires", "id", "remaining")

    def __init__(self, lease_id: str, expires: float, entries: tuple[str, ...]) -> None:
        self.id = lease_id
        self.expires = expires
        self.entries = entries
        self.remaining = len(entries)


class _DeadLetters:
    """Dead letters of one destination, oldest first, bounded in number and bytes."""

    __slots__ = ("_bytes", "_max_bytes", "_max_letters", "letters")

    def __init__(self, max_letters: int, max_bytes: int) -> None:
        self.letters: deque[DeadLetter] = deque()
        self._bytes = 0
        self._max_letters = max_letters
        self._max_bytes = max_bytes

    def add(self, letter: DeadLetter) -> None:
        self.letters.append(letter)
        self._bytes += len(letter.record.payload)
        while len(self.letters) > self._max_letters or self._bytes > self._max_bytes:
            self.pop()

    def pop(self) -> DeadLetter:
        """Take out the oldest."""
        letter = self.letters.popleft()
        self._bytes -= len(letter.record.payload)
        return letter


class _Cursor:
    """What one destination still has to get."""

    __slots__ = ("bytes", "came", "dead", "delayed", "leased", "leases", "pending", "ready")

    def __init__(self, dead: _DeadLetters) -> None:
        # Entry id → the lease that holds it, None while it is ready.
        self.pending: dict[str, _Held | None] = {}
        # By priority. A ready entry is in its queue or in ``delayed``, a leased one in neither.
        self.ready = [_Queue(self.pending) for _ in _PRIORITIES]
        self.delayed: list[tuple[float, str]] = []
        self.leases: dict[str, _Held] = {}
        self.leased = 0
        self.bytes = 0
        self.came = 0
        """How many entries ever were pending."""
        self.dead = dead

    def holds(self, lease_id: str, ids: Sequence[str]) -> bool:
        """Whether ``ids`` are all that this lease still holds, each once."""
        held = self.leases.get(lease_id)
        return (
            held is not None
            and held.remaining == len(ids) == len(set(ids))
            and all(self.pending.get(entry) is held for entry in ids)
        )

    def let_go(self, held: _Held) -> None:
        """Count one entry less for ``held``, which ends with its last."""
        self.leased -= 1
        held.remaining -= 1
        if not held.remaining:
            del self.leases[held.id]


class MemoryStore(BufferStore):
    """
    Keeps records in this process.

    Nothing here awaits, so no call can be interrupted halfway. Leases end with `release_expired`;
    until then the holder still owns its entries, also when the time is up.
    """

    name = "memory"
    level: ClassVar[Level] = Level.MEMORY
    Settings = MemorySettings
    settings: MemorySettings

    def __init__(
        self,
        settings: MemorySettings,
        context: PluginContext,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(settings, context)
        self._clock = clock
        self._max_records = settings.max_records or context.config.max_buffer_records
        self._max_bytes = settings.max_bytes or context.config.max_buffer_bytes
        self._cursors = {
            destination: _Cursor(
                _DeadLetters(settings.max_dead_letters, settings.max_dead_letter_bytes)
            )
            for destination in context.destinations
        }
        self._overhead = _OVERHEAD + _OVERHEAD_PER_DESTINATION * len(self._cursors)
        self._pending = [cursor.pending for cursor in self._cursors.values()]
        # Every entry that is pending for at least one destination.
        self._records: dict[str, Record] = {}
        self._bytes = 0
        # What to evict next, by priority. An entry that was leased when its turn came waits in
        # ``_skipped`` until its lease is over.
        self._evictable = [_Queue(self._records) for _ in _PRIORITIES]
        self._skipped: set[str] = set()
        self._inserted = 0
        self._entry_ids = map(hex, count(_FIRST_ID))  # those of `entry_id`, without a call
        self._lease_ids = map(str, count(1))

    @property
    def capacity(self) -> tuple[int, int]:
        return self._max_records, self._max_bytes

    # --- append ---------------------------------------------------------------------------------

    async def append(self, records: Sequence[Record], *, evict: bool) -> Appended:
        if not self._cursors:
            return Appended(len(records))
        size = sum([len(record.payload) for record in records])
        if self._fits(len(self._records) + len(records), self._bytes + size):
            self._insert(records, size, self._cursors.values())
            return Appended(len(records))

        evicted: dict[str, int] = {}
        for position, record in enumerate(records):
            if self._has_room(record) or (evict and self._make_room(record, evicted)):
                self._insert((record,), len(record.payload), self._cursors.values())
            elif evict:
                for destination in self._cursors:
                    evicted[destination] = evicted.get(destination, 0) + 1
            else:
                return Appended(position)
        return Appended(len(records), evicted)

    def _has_room(self, record: Record) -> bool:
        return self._fits(len(self._records) + 1, self._bytes + len(record.payload))

    def _fits(self, records: int, size: int) -> bool:
        """Whether so many records, with payloads of so many bytes, are within the bounds."""
        counted = max(records * self._overhead - _FREE_OVERHEAD, 0)
        return records <= self._max_records and size + counted <= self._max_bytes

    def _insert(self, records: Sequence[Record], size: int, cursors: Collection[_Cursor]) -> None:
        """Take in records that ``cursors`` want."""
        entries = dict(zip(islice(self._entry_ids, len(records)), records, strict=True))
        self._records.update(entries)
        self._inserted += len(entries)
        self._bytes += size
        by_priority: list[list[str]] = [[] for _ in _PRIORITIES]
        for entry, record in entries.items():
            by_priority[record.priority].append(entry)
        for cursor in cursors:
            cursor.pending.update(dict.fromkeys(entries))
            cursor.came += len(entries)
            cursor.bytes += size
        for priority, ids in enumerate(by_priority):
            if ids:
                self._evictable[priority].extend(ids)
                for cursor in cursors:
                    cursor.ready[priority].extend(ids)

    def _make_room(self, newcomer: Record, evicted: dict[str, int]) -> bool:
        """Evict for ``newcomer``; when that cannot make enough room, evict nothing."""
        victims = self._victims(newcomer)
        for entry in victims:
            size = len(self._records.pop(entry).payload)
            self._bytes -= size
            for destination, cursor in self._cursors.items():
                if entry in cursor.pending:
                    del cursor.pending[entry]
                    cursor.bytes -= size
                    evicted[destination] = evicted.get(destination, 0) + 1
        return bool(victims)

    def _victims(self, newcomer: Record) -> list[str]:
        """What has to go for ``newcomer``; empty when nothing could make enough room."""
        if len(newcomer.payload) > self._max_bytes:
            return []
        count = len(self._records) + 1
        size = self._bytes + len(newcomer.payload)
        victims: list[str] = []
        for queue in self._evictable[: newcomer.priority + 1]:
            while not self._fits(count, size):
                entry = queue.pop()
                if entry is None:
                    break
                if self._is_leased(entry):
                    self._skipped.add(entry)
                    continue
                victims.append(entry)
                count -= 1
                size -= len(self._records[entry].payload)
        if not self._fits(count, size):
            for entry in victims:
                self._evictable[self._records[entry].priority].put_back(entry)
            return []
        return victims

    def _is_leased(self, entry: str) -> bool:
        return any(pending.get(entry) is not None for pending in self._pending)

    # --- lease ----------------------------------------------------------------------------------

    async def lease(
        self, destination: str, max_records: int, max_bytes: int, ttl: float
    ) -> Lease | None:
        cursor = self._cursor(destination)
        now = self._clock()
        delayed = cursor.delayed
        while delayed and delayed[0][0] <= now:
            entry = heappop(delayed)[1]
            if entry in cursor.pending:
                cursor.ready[self._records[entry].priority].put_back(entry)

        entries = self._take(cursor, max_records, max_bytes)
        if not entries:
            return None
        held = _Held(next(self._lease_ids), now + ttl, tuple(entries))
        cursor.leases[held.id] = held
        cursor.leased += len(entries)
        cursor.pending.update(dict.fromkeys(entries, held))
        return Lease(held.id, destination, entries)

    def _take(self, cursor: _Cursor, max_records: int, max_bytes: int) -> dict[str, Record]:
        records = self._records
        entries: dict[str, Record] = {}
        size = 0
        share = max_records // LEASE_SHARE
        lower = sum([not queue.is_empty() for queue in cursor.ready]) if share else 0
        for queue in reversed(cursor.ready):
            lower -= bool(share) and not queue.is_empty()
            most = max_records - lower * share
            most_bytes = max_bytes - lower * (max_bytes // LEASE_SHARE)
            is_full = False
            while not is_full and len(entries) < most:
                ids = queue.pop_some(most - len(entries))
                if not ids:
                    break
                for position, entry in enumerate(ids):
                    record = records[entry]
                    size += len(record.payload)
                    if size > most_bytes and entries:
                        size -= len(record.payload)
                        queue.put_back_all(ids[position:])
                        is_full = True
                        break
                    entries[entry] = record
            if is_full and not lower:
                break
        return entries

    def _cursor(self, destination: str) -> _Cursor:
        try:
            return self._cursors[destination]
        except KeyError:
            known = ", ".join(self._cursors) or "none"
            msg = f"the store has no destination {destination!r}; it was made for: {known}"
            raise ValueError(msg) from None

    # --- after the attempt ----------------------------------------------------------------------

    async def ack(self, lease: Lease, ids: Sequence[str]) -> int:
        cursor = self._cursor(lease.destination)
        pending = cursor.pending
        before = len(pending)
        if len(self._pending) == 1 and not self._skipped and cursor.holds(lease.id, ids):
            self._forget_lease(cursor, lease.id, ids)
            return len(ids)
        for entry in ids:
            if entry in pending:
                held = pending[entry]
                if held is not None:
                    cursor.let_go(held)
                self._forget(cursor, entry)
        return before - len(pending)

    async def release(self, lease: Lease, ids: Sequence[str], delay: float = 0.0) -> int:
        cursor = self._cursor(lease.destination)
        held = cursor.leases.get(lease.id)
        if held is None:
            return 0
        return self._release(cursor, held, ids, self._clock() + delay if delay > 0 else None)

    async def bury(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        cursor = self._cursor(lease.destination)
        held = cursor.leases.get(lease.id)
        buried = 0
        if held is None:
            return buried
        for entry in ids:
            if cursor.pending.get(entry) is not held:
                continue
            cursor.let_go(held)
            cursor.dead.add(DeadLetter(self._records[entry], reason))
            self._forget(cursor, entry)
            buried += 1
        return buried

    async def release_expired(self) -> int:
        now = self._clock()
        released = 0
        for cursor in self._cursors.values():
            expired = [held for held in cursor.leases.values() if held.expires <= now]
            for held in expired:
                released += self._release(cursor, held, held.entries, None)
        return released

    def _release(
        self, cursor: _Cursor, held: _Held, ids: Iterable[str], ready_at: float | None
    ) -> int:
        released = 0
        for entry in ids:
            if cursor.pending.get(entry) is not held:
                continue
            cursor.pending[entry] = None
            cursor.let_go(held)
            released += 1
            priority = self._records[entry].priority
            if ready_at is None:
                cursor.ready[priority].put_back(entry)
            else:
                heappush(cursor.delayed, (ready_at, entry))
            if self._skipped:
                self._reconsider(entry)
        if len(cursor.delayed) > 2 * len(cursor.pending) + 1024:
            # Entries evicted during their delay would stay until its end.
            cursor.delayed = [item for item in cursor.delayed if item[1] in cursor.pending]
            heapify(cursor.delayed)
        return released

    def _forget_lease(self, cursor: _Cursor, lease_id: str, ids: Iterable[str]) -> None:
        """The only destination is done with all of a lease, as it nearly always is."""
        pending, records = cursor.pending, self._records
        size = 0
        for entry in ids:
            del pending[entry]
            size += len(records.pop(entry).payload)
        cursor.bytes -= size
        cursor.leased -= cursor.leases.pop(lease_id).remaining
        self._bytes -= size

    def _forget(self, cursor: _Cursor, entry: str) -> None:
        """The destination is done with ``entry``; the last one to be done frees it."""
        del cursor.pending[entry]
        size = len(self._records[entry].payload)
        cursor.bytes -= size
        for pending in self._pending:
            if entry in pending:
                break
        else:
            del self._records[entry]
            self._bytes -= size
        if self._skipped:
            self._reconsider(entry)

    def _reconsider(self, entry: str) -> None:
        """An entry that eviction skipped has its turn again once nobody holds it."""
        if entry not in self._skipped or self._is_leased(entry):
            return
        self._skipped.remove(entry)
        record = self._records.get(entry)
        if record is not None:
            self._evictable[record.priority].put_back(entry)

    # --- looking --------------------------------------------------------------------------------

    async def stats(self) -> Mapping[str, DestinationDepth]:
        return {
            destination: DestinationDepth(
                ready=len(cursor.pending) - cursor.leased,
                leased=cursor.leased,
                buried=len(cursor.dead.letters),
                bytes=cursor.bytes,
                oldest=self._oldest(cursor),
            )
            for destination, cursor in self._cursors.items()
        }

    def _oldest(self, cursor: _Cursor) -> float | None:
        # A dictionary keeps the order of insertion, here the order of age.
        for entry in cursor.pending:
            return self._records[entry].accepted_at
        return None

    async def dead_letters(self, destination: str) -> Sequence[DeadLetter]:
        return tuple(self._cursor(destination).dead.letters)

    async def peek(self, destination: str, after: str | None, limit: int) -> Peeked:
        cursor = self._cursor(destination)
        end = f"{self._inserted}+{cursor.came}"
        if limit < 1:
            return Peeked((), end)
        # Entries that the looks before came by, and how many for this destination came until then.
        start, came = 0, 0
        if after is None:
            came = cursor.came - len(cursor.pending)
        elif (position := _POSITION.fullmatch(after)) is not None:
            start, came = map(int, position.groups())
            if start > self._inserted:  # of another store than this one
                start, came = 0, 0
        following = entry_id(start)
        found = list(islice((entry for entry in cursor.pending if entry >= following), limit))
        came += len(found)
        passed = 0
        if len(found) < limit:
            passed = max(cursor.came - came, 0)
        else:
            end = f"{int(found[-1], 16) - _FIRST_ID + 1}+{came}"
        return Peeked(tuple([self._records[entry] for entry in found]), end, passed)

    async def replay(self, destination: str, limit: int) -> int:
        cursor = self._cursor(destination)
        replayed = 0
        while (
            replayed < limit
            and cursor.dead.letters
            and self._has_room(cursor.dead.letters[0].record)
        ):
            record = cursor.dead.pop().record
            self._insert((record,), len(record.payload), (cursor,))
            replayed += 1
        return replayed


@hookimpl
def guard_agent_buffer_stores() -> list[type[BufferStore]]:
    return [MemoryStore]
