"""
A durable store, and memory for the time it is not available.

While a disk is full or a Redis is away, records are taken into memory and delivered from there;
when the store is back they move to it. So an outage of the store costs durability, which health
shows, and neither records nor deliveries.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from guard_agent.core.interfaces import (
    Appended,
    BufferStore,
    DeadLetter,
    DestinationDepth,
    Lease,
    Level,
)
from guard_agent.core.logs import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from guard_agent.core.interfaces import Record

logger = logging.getLogger("guard_agent.store")

_FIRST_RETRY = 0.5
_LONGEST_RETRY = 30.0
_MOVE_RECORDS = 1_000
_MOVE_BYTES = 4 * 1024 * 1024
_MOVE_TTL = 60.0
_MAX_UNACKED = 1_000
_MEMORY = "memory:"


class Lanes(BufferStore):
    """
    Two stores behind the interface of one: ``durable`` while it works, ``memory`` otherwise.

    Never raises because of the durable store, but for ``bury`` and ``replay``, which have no second
    place for their effect: a lease runs out, and the record comes again; a dead letter stays one.
    """

    def __init__(
        self,
        memory: BufferStore,
        durable: BufferStore | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(memory.settings, memory.context)
        self.memory = memory
        self.durable: BufferStore | None = None
        self._clock = clock
        self._moving = asyncio.Lock()
        self._up = False
        self._retry_at = 0.0
        self._failures = 0
        self._cannot_store = False
        self._reason: str | None = None
        self._known: Mapping[str, DestinationDepth] = {}
        # Deliveries that the store could not be told of; it is told when it is back.
        self._unacked: deque[tuple[Lease, Sequence[str]]] = deque(maxlen=_MAX_UNACKED)
        self._unreleased: deque[tuple[Lease, Sequence[str]]] = deque(maxlen=_MAX_UNACKED)
        if durable is not None:
            self.attach(durable)

    def attach(self, durable: BufferStore) -> None:
        """Use ``durable`` from now on. There can be one; it is opened when it is needed first."""
        if self.durable is not None:
            msg = "there is a durable store already"
            raise ValueError(msg)
        self.durable = durable
        self._retry_at = 0.0

    @property
    def present_level(self) -> Level:
        """What a record that is appended now survives."""
        return self.durable.level if self.durable is not None and self._up else Level.MEMORY

    @property
    def trouble(self) -> str | None:
        """Why the durable store is not in use, or None when all is as it should be."""
        return None if self.durable is None or self._up else self._reason or "not open yet"

    @property
    def failures(self) -> int:
        """Failures of the durable store since it worked last."""
        return self._failures

    @property
    def resets(self) -> int:
        return self.durable.resets if self.durable is not None else 0

    @property
    def capacity(self) -> tuple[int, int] | None:
        """Of the one that takes records now."""
        store = self.durable if self.durable is not None and self._up else self.memory
        return store.capacity

    @property
    def is_exact(self) -> bool:
        """Whether `stats` says what there is now, and the store knows of every delivery."""
        return self.durable is None or (self._up and not self._unacked)

    def describe(self) -> Mapping[str, object]:
        store = self.memory if self.durable is None else self.durable
        return {"name": store.context.instance, **store.describe()}

    async def open(self) -> None:
        await self.memory.open()
        await self._available()

    async def settle(self) -> bool:
        """
        Bring what memory holds to the durable store, if it works.

        Returns:
            Whether everything is in a store that outlives the process.
        """
        if self._up:
            await self._move()
        if not self._up:
            return False
        return not any(depth.pending for depth in (await self.memory.stats()).values())

    async def close(self) -> None:
        await self.memory.close()
        if self.durable is not None:
            await self.durable.close()

    # --- the operations ---------------------------------------------------------------------------

    async def append(self, records: Sequence[Record], *, evict: bool) -> Appended:
        durable = await self._available()
        if durable is not None:
            try:
                appended = await durable.append(records, evict=evict)
            except Exception as error:  # noqa: BLE001 - plugin meets core: contract of BufferStore
                self._failed(error, storing=True)
            else:
                self._note_append(appended)
                self._recovered()
                return appended
        return await self.memory.append(records, evict=evict)

    async def lease(
        self, destination: str, max_records: int, max_bytes: int, ttl: float
    ) -> Lease | None:
        lease = await self.memory.lease(destination, max_records, max_bytes, ttl)
        if lease is not None:
            return replace(lease, id=_MEMORY + lease.id)
        durable = await self._available()
        if durable is None:
            return None
        try:
            return await durable.lease(destination, max_records, max_bytes, ttl)
        except Exception as error:  # noqa: BLE001 - plugin meets core: contract of BufferStore
            self._failed(error)
            return None

    async def ack(self, lease: Lease, ids: Sequence[str]) -> int:
        if (inner := _of_memory(lease)) is not None:
            return await self.memory.ack(inner, ids)
        if self._up and self.durable is not None:
            try:
                count = await self.durable.ack(lease, ids)
            except Exception as error:  # noqa: BLE001 - plugin meets core: contract of BufferStore
                self._failed(error)
            else:
                self._note(lease.destination, -count)
                return count
        self._unacked.append((lease, tuple(ids)))
        self._note(lease.destination, -len(ids))
        return len(ids)

    async def release(self, lease: Lease, ids: Sequence[str], delay: float = 0.0) -> int:
        if (inner := _of_memory(lease)) is not None:
            return await self.memory.release(inner, ids, delay)
        if self._up and self.durable is not None:
            try:
                return await self.durable.release(lease, ids, delay)
            except Exception as error:  # noqa: BLE001 - plugin meets core: contract of BufferStore
                self._failed(error)
        self._unreleased.append((lease, tuple(ids)))
        return 0

    async def bury(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        if (inner := _of_memory(lease)) is not None:
            return await self.memory.bury(inner, ids, reason)
        assert self.durable is not None  # noqa: S101 - the lease is one of its
        try:
            count = await self.durable.bury(lease, ids, reason)
        except Exception as error:
            self._failed(error)
            raise
        self._note(lease.destination, -count)
        return count

    async def release_expired(self) -> int:
        released = await self.memory.release_expired()
        durable = await self._available()
        if durable is not None:
            try:
                released += await durable.release_expired()
            except Exception as error:  # noqa: BLE001 - plugin meets core: contract of BufferStore
                self._failed(error)
        return released

    async def stats(self) -> Mapping[str, DestinationDepth]:
        if self._up and self.durable is not None:
            try:
                self._known = await self.durable.stats()
            except Exception as error:  # noqa: BLE001 - plugin meets core: contract of BufferStore
                self._failed(error)
        memory = await self.memory.stats()
        return {name: _sum(depth, self._known.get(name)) for name, depth in memory.items()}

    async def dead_letters(self, destination: str) -> Sequence[DeadLetter]:
        letters = list(await self.memory.dead_letters(destination))
        if self._up and self.durable is not None:
            letters = [*await self.durable.dead_letters(destination), *letters]
        return letters

    async def replay(self, destination: str, limit: int) -> int:
        replayed = 0
        if self._up and self.durable is not None:
            try:
                replayed = await self.durable.replay(destination, limit)
            except Exception as error:
                self._failed(error)
                raise
            self._note(destination, replayed)
        return replayed + await self.memory.replay(destination, limit - replayed)

    # --- coming and going -------------------------------------------------------------------------

    async def _available(self) -> BufferStore | None:
        """The durable store, if it works; when it is time, try whether it does again."""
        if self._up or self.durable is None:
            return self.durable
        if self._clock() < self._retry_at:
            return None
        try:
            await self.durable.open()
            await self._catch_up()
        except Exception as error:  # noqa: BLE001 - plugin meets core: contract of Resource.open
            self._failed(error)
            return None
        self._up = True
        self._reason = None
        if not self._cannot_store:
            self._recovered()
        await self._move()
        return self.durable if self._up else None

    def _recovered(self) -> None:
        """A full disk can be opened and read: what could not store has recovered when it can."""
        if self._failures and self.durable is not None:
            logger.warning("the store %s works again", self.durable.context.instance)
        self._failures = 0
        self._cannot_store = False

    def _failed(self, error: Exception, *, storing: bool = False) -> None:
        assert self.durable is not None  # noqa: S101 - only it can fail
        self._up = False
        self._cannot_store = self._cannot_store or storing
        self._failures += 1
        self._reason = one_line(f"{type(error).__name__}: {error}")
        bound = min(_LONGEST_RETRY, _FIRST_RETRY * 2.0 ** min(self._failures - 1, 10))
        self._retry_at = self._clock() + bound * (0.5 + 0.5 * random.random())  # noqa: S311 - jitter
        if self._failures == 1:
            logger.warning(
                "the store %s is not available, records wait in memory meanwhile: %s",
                self.durable.context.instance,
                self._reason,
                exc_info=error if logger.isEnabledFor(logging.DEBUG) else None,
            )

    async def _catch_up(self) -> None:
        """Tell the store what became of its leases meanwhile."""
        assert self.durable is not None  # noqa: S101 - the caller has it
        while self._unacked:
            lease, ids = self._unacked[0]
            await self.durable.ack(lease, ids)
            self._unacked.popleft()
        while self._unreleased:
            lease, ids = self._unreleased[0]
            await self.durable.release(lease, ids)
            self._unreleased.popleft()

    # What the store holds, as far as we know without asking: for the time when it cannot be asked.

    def _note_append(self, appended: Appended) -> None:
        for name in self.memory.context.destinations:
            self._note(name, appended.stored - appended.evicted.get(name, 0))

    def _note(self, destination: str, amount: int) -> None:
        known = self._known.get(destination, DestinationDepth())
        leased = min(known.leased, max(known.pending + amount, 0))
        ready = max(known.pending + amount - leased, 0)
        self._known = {**self._known, destination: replace(known, ready=ready, leased=leased)}

    async def _move(self) -> None:
        """
        Bring what memory took over to the durable store.

        With several destinations it stays: some of them may have a record already, and a store
        takes records for all of them only. It is delivered from memory.
        """
        async with self._moving:
            await self._move_all()

    async def _move_all(self) -> None:
        names = self.memory.context.destinations
        if len(names) != 1 or self.durable is None:
            return
        while (
            lease := await self.memory.lease(names[0], _MOVE_RECORDS, _MOVE_BYTES, _MOVE_TTL)
        ) is not None:
            ids = list(lease.entries)
            stored = 0
            try:
                appended = await self.durable.append(list(lease.entries.values()), evict=False)
                stored = appended.stored
                self._note_append(appended)
                self._recovered()
            except Exception as error:  # noqa: BLE001 - plugin meets core: contract of BufferStore
                self._failed(error, storing=True)
            finally:
                await self.memory.ack(lease, ids[:stored])
                await self.memory.release(lease, ids[stored:])
            if stored < len(ids):
                return


def _of_memory(lease: Lease) -> Lease | None:
    if not lease.id.startswith(_MEMORY):
        return None
    return replace(lease, id=lease.id.removeprefix(_MEMORY))


def _sum(one: DestinationDepth, other: DestinationDepth | None) -> DestinationDepth:
    if other is None:
        return one
    oldest = [depth.oldest for depth in (one, other) if depth.oldest is not None]
    return DestinationDepth(
        ready=one.ready + other.ready,
        leased=one.leased + other.leased,
        buried=one.buried + other.buried,
        bytes=one.bytes + other.bytes,
        oldest=min(oldest, default=None),
    )
