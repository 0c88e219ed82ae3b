"""The store ``disk``: records wait in an SQLite file that several processes may share."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar, cast

from pydantic import Field

from guard_agent import (
    Appended,
    BufferStore,
    DeadLetter,
    DestinationDepth,
    Lease,
    Level,
    Peeked,
    PluginContext,
    PluginSettings,
    Record,
    hookimpl,
)
from guard_agent.plugins.disk.database import PAGE_SIZE, Database, UncertainError
from guard_agent.plugins.disk.folder import DiskStoreError
from guard_agent.plugins.disk.jobs import Job, Jobs
from guard_agent.plugins.disk.tables import Bounds, Dropped, Tables, make_tables

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["DiskSettings", "DiskStore", "DiskStoreError"]

logger = logging.getLogger("guard_agent.disk")

T = TypeVar("T")

_MIB = 1024 * 1024
_MAX_DOUBTS = 100
_SMALLEST = 512
"""Payload bytes per record that the default of max_records reckons with."""
_ROOM_PER_ENTRY = 64
_ROOM_FOR_THE_REST = 16 * _MIB


class DiskSettings(PluginSettings):
    path: Path | None = Field(
        default=None,
        description="Folder of the file, for this user alone; the state folder when not given",
    )
    max_bytes: int = Field(
        default=256 * _MIB,
        ge=65_536,
        description=(
            "Most payload bytes kept. The file holds them in pages, so it can grow to about twice "
            "as much"
        ),
    )
    max_records: int | None = Field(
        default=None, ge=1, description="Most records kept; max_bytes / 512 when not given"
    )
    sync: Literal["normal", "full"] = Field(
        default="normal",
        description=(
            "What is kept when the power fails: 'normal' may lose the last seconds, 'full' loses "
            "nothing and waits for the disk at every step. Both survive the end of the process"
        ),
    )
    operation_timeout: float = Field(
        default=5.0,
        gt=0,
        le=60,
        description="Longest time of one operation, waiting for other processes included",
    )
    forget_after: float = Field(
        default=86_400,
        ge=60,
        description="Seconds for which records wait for a destination that no process uses",
    )
    max_dead_letters: int = Field(
        default=1000, ge=0, description="Most dead letters kept for each destination"
    )
    max_dead_letter_bytes: int = Field(
        default=_MIB,
        ge=0,
        description="Most payload bytes of the dead letters of each destination",
    )


class DiskStore(BufferStore):
    """
    Keeps records in a file, one for each ``project_id``, shared by all processes that use it.

    A record that was appended survives the end of the process, and with ``sync`` = "full" of the
    system. Leases are in the file too, with an end on a clock that all processes of the system
    share: what a killed process had leased is delivered by another one. The file must lie on a
    local disk.

    A new destination gets what is appended from then on. One that no process has any more keeps
    its records for ``forget_after`` seconds, or until the store is full.

    All work with the file happens in a thread of the store. An operation that is cancelled or takes
    too long leaves a consistent state: an append or a lease that was given up is rolled back, or,
    when it was done already, a lease is given back and an appended record stays.
    """

    name = "disk"
    level: ClassVar[Level] = Level.JOURNAL
    Settings = DiskSettings
    settings: DiskSettings

    def __init__(self, settings: DiskSettings, context: PluginContext) -> None:
        super().__init__(settings, context)
        self._jobs: Jobs | None = None
        self._database: Database | None = None
        self._opener = 0
        self._resets = 0
        self._doubts: deque[Callable[[sqlite3.Connection], None]] = deque(maxlen=_MAX_DOUBTS)
        max_records = settings.max_records or max(1, settings.max_bytes // _SMALLEST)
        self._tables = Tables(
            context.destinations,
            Bounds(
                max_records,
                settings.max_bytes,
                settings.max_dead_letters,
                settings.max_dead_letter_bytes,
            ),
        )

    @property
    def sync(self) -> Literal["normal", "full"]:
        """Whether what was appended survives a power failure ("full")."""
        return self.settings.sync

    @property
    def resets(self) -> int:
        return self._resets + (self._database.resets if self._database is not None else 0)

    def describe(self) -> Mapping[str, object]:
        return {"sync": self.sync}

    @property
    def path(self) -> Path:
        """
        The file.

        Raises:
            DiskStoreError: the folder names a home that does not exist.
        """
        folder = self.settings.path or self.context.state_dir
        project = blake2b(self.context.config.project_key.encode(), digest_size=8)
        try:
            return folder.expanduser().absolute() / f"disk-{project.hexdigest()}.db"
        except RuntimeError as error:
            msg = f"cannot use the folder {folder}: {error}; set path to an absolute one"
            raise DiskStoreError(msg) from error

    @property
    def _max_pages(self) -> int:
        """Bound of the file: pages are half full at worst, and entries and indexes take room."""
        bounds = self._tables.bounds
        lanes = len(self.context.destinations) + 1
        size = (
            2 * bounds.bytes
            + lanes * (_ROOM_PER_ENTRY * bounds.records + 2 * bounds.dead_letter_bytes)
            + _ROOM_FOR_THE_REST
        )
        return size // PAGE_SIZE

    async def open(self) -> None:
        if self._jobs is not None:
            return
        self._opener = os.getpid()
        self._database = Database(
            self.path, sync=self.sync, max_pages=self._max_pages, make_tables=make_tables
        )
        self._jobs = Jobs(f"guard-agent-{self.context.instance}")
        self._jobs.start()
        try:
            await self._run(self._tables.register)
            await self._release_dead()  # what a process that was killed had leased is due now
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        jobs, self._jobs = self._jobs, None
        database, self._database = self._database, None
        if database is not None:
            self._resets += database.resets
        if jobs is None or database is None or self._opener != os.getpid():
            return
        try:
            await jobs.run(lambda _: database.close(), self.settings.operation_timeout)
        finally:
            jobs.stop()

    # --- the contract -----------------------------------------------------------------------------

    async def append(self, records: Sequence[Record], *, evict: bool) -> Appended:
        if not self.context.destinations or not records:
            return Appended(len(records))

        def take_back(
            connection: sqlite3.Connection, result: tuple[Appended, Sequence[Dropped], int]
        ) -> None:
            self._tables.take_back(connection, result[2], records)

        appended, dropped, _ = await self._run(
            lambda connection: self._tables.append(connection, records, evict=evict),
            # What was committed too late stays: it comes twice, with the same id.
            undo=lambda _: None,
            doubt=take_back,
            grow=True,
        )
        self._tell_dropped(dropped)
        return appended

    async def lease(
        self, destination: str, max_records: int, max_bytes: int, ttl: float
    ) -> Lease | None:
        self._check(destination)
        _, database = self._opened()

        def give_back(lease: Lease | None) -> None:
            if lease is not None:
                job = Job(lambda _: None, time.monotonic() + self.settings.operation_timeout)
                database.run(lambda c: self._tables.release(c, lease, lease.entries, 0.0), job)

        def give_back_again(connection: sqlite3.Connection, result: Lease | None) -> None:
            if result is not None:
                self._tables.give_back(connection, result, database.owner.number)

        return await self._run(
            lambda connection: self._tables.lease(
                connection, destination, max_records, max_bytes, ttl, database.owner.number
            ),
            undo=give_back,
            doubt=give_back_again,
        )

    async def ack(self, lease: Lease, ids: Sequence[str]) -> int:
        self._check(lease.destination)
        return await self._run(lambda connection: self._tables.ack(connection, lease, ids))

    async def release(self, lease: Lease, ids: Sequence[str], delay: float = 0.0) -> int:
        self._check(lease.destination)
        return await self._run(
            lambda connection: self._tables.release(connection, lease, ids, delay)
        )

    async def bury(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        self._check(lease.destination)
        return await self._run(lambda connection: self._tables.bury(connection, lease, ids, reason))

    async def release_expired(self) -> int:
        released, dropped, empty = await self._run(self._look_after)
        self._tell_dropped(dropped)
        released += await self._release_dead()
        if empty:
            await self._shrink()
        return released

    async def stats(self) -> Mapping[str, DestinationDepth]:
        return await self._run(self._tables.stats, write=False)

    async def dead_letters(self, destination: str) -> Sequence[DeadLetter]:
        self._check(destination)
        return await self._run(
            lambda connection: self._tables.dead_letters(connection, destination), write=False
        )

    async def peek(self, destination: str, after: str | None, limit: int) -> Peeked:
        self._check(destination)
        return await self._run(
            lambda connection: self._tables.peek(connection, destination, after, limit),
            write=False,
        )

    async def replay(self, destination: str, limit: int) -> int:
        self._check(destination)
        return await self._run(
            lambda connection: self._tables.replay(connection, destination, limit), grow=True
        )

    # --- in the thread ----------------------------------------------------------------------------

    async def _run(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        write: bool = True,
        grow: bool = False,
        undo: Callable[[T], None] | None = None,
        doubt: Callable[[sqlite3.Connection, T], None] | None = None,
    ) -> T:
        """
        Do ``work`` in a transaction; ``undo`` is for when nobody waits for it any more.

        ``doubt`` undoes, before the next change, what may have been done although it failed.
        """
        jobs, database = self._opened()

        def transaction(job: Job) -> T:
            if write and self._doubts:
                database.run(self._settle_doubts, job)
                self._doubts.clear()
            try:
                return database.run(work, job, write=write, grow=grow)
            except UncertainError as error:
                if doubt is not None:
                    result = cast("T", error.result)
                    self._doubts.append(lambda connection: doubt(connection, result))
                raise

        return await jobs.run(transaction, self.settings.operation_timeout, undo=undo)

    def _settle_doubts(self, connection: sqlite3.Connection) -> None:
        for undo in self._doubts:
            undo(connection)

    def _opened(self) -> tuple[Jobs, Database]:
        if self._jobs is None or self._database is None:
            raise DiskStoreError("the store is not open")
        if self._opener != os.getpid():
            raise DiskStoreError("the store was opened before a fork and belongs to the parent")
        return self._jobs, self._database

    def _look_after(self, connection: sqlite3.Connection) -> tuple[int, Sequence[Dropped], bool]:
        self._tables.keep_alive(connection)
        dropped = self._tables.drop_unused(connection, self.settings.forget_after)
        released = self._tables.release_expired(connection)
        return released, dropped, self._tables.is_empty(connection)

    async def _release_dead(self) -> int:
        """Make ready what processes had leased that have ended since; returns how many records."""
        jobs, database = self._opened()
        timeout = self.settings.operation_timeout
        if not (dead := await jobs.run(lambda _: database.look_for_dead(), timeout)):
            return 0
        released = await self._run(lambda connection: self._tables.release_of(connection, dead))
        await jobs.run(lambda _: database.owner.forget(dead), timeout)
        return released

    async def _shrink(self) -> None:
        """Give back the disk space of a burst that is over."""
        jobs, database = self._jobs, self._database
        if jobs is not None and database is not None:
            await jobs.run(
                lambda _: database.vacuum(above=_ROOM_FOR_THE_REST), self.settings.operation_timeout
            )

    def _tell_dropped(self, dropped: Iterable[Dropped]) -> None:
        for destination, records in dropped:
            logger.warning(
                "no process has the destination %r any more: dropped the %d records that waited "
                "for it",
                destination,
                records,
            )

    def _check(self, destination: str) -> None:
        if destination not in self.context.destinations:
            known = ", ".join(self.context.destinations) or "none"
            msg = f"the store has no destination {destination!r}; it was made for: {known}"
            raise ValueError(msg)


@hookimpl
def guard_agent_buffer_stores() -> list[type[BufferStore]]:
    return [DiskStore]
