"""
The bounded buffer between the threads of the application and the agent's own thread.

It holds what the store has not taken over yet: for milliseconds when all is well, for longer when
the store is not available.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

from guard_agent.core.interfaces import MAX_RECORD_BYTES, DropReason, Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from guard_agent.core.interfaces import Kind, Record
    from guard_agent.core.ledger import Ledger

logger = logging.getLogger("guard_agent.ring")

_MAX_WAITERS = 1_000


class Ring:
    """
    Bounded in records and bytes; what was taken out counts until ``done`` or ``put_back``.

    Thread safe. The lock is reentrant, because a garbage collection inside it may run a finalizer
    that records an event. ``on_wake`` is called outside of any wait, from the thread of the
    application: when the first record arrives in an empty ring, and once more when ``wake_at``
    records or the high watermark are reached.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        max_records: int,
        max_bytes: int,
        wake_at: int,
        watermark: float,
        on_wake: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._wake_records = max(1, min(wake_at, int(max_records * watermark)))
        self._wake_bytes = int(max_bytes * watermark)
        self._on_wake = on_wake
        self._queues: tuple[deque[Record], ...] = tuple(deque() for _ in Priority)
        self._queued_bytes = [0 for _ in Priority]
        self._count = 0
        self._bytes = 0
        self._taken = 0
        self._pressed = False
        self._refused = False
        self._closed: DropReason | None = None
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._waiters: deque[Callable[[], object]] = deque(maxlen=_MAX_WAITERS)

    def put(self, record: Record, evict: bool, *, summary: bool = False) -> bool:
        """
        Accept a record.

        When full: with ``evict`` the lowest priority, oldest first, is given up for it, or the
        record itself when that would not make enough room without something higher; without it
        nothing happens and False is returned.

        A ``summary`` stands for records that were accepted before: it is not counted again, and
        gets in while the ring is closed to others.
        """
        _, kind, priority, payload, _ = record
        size = len(payload)
        ledger = self._ledger
        with self._lock:
            if summary:
                ledger.summaries += 1
                ledger.accepted -= 1
                ledger.accepted_metrics -= kind == "metric"
            elif self._closed is not None:
                self._book_drop(self._closed, kind)
                return True
            count, total = self._count, self._bytes + size
            if count >= self._max_records or total > self._max_bytes:
                if not evict:
                    self._refused = True
                    return False
                if not self._make_room(priority, size):
                    self._book_drop(DropReason.OVERFLOW, kind)
                    return True
                count, total = self._count, self._bytes + size
            ledger.accepted += 1
            if kind == "metric":
                ledger.accepted_metrics += 1
            self._queues[priority].append(record)
            self._queued_bytes[priority] += size
            self._count = count = count + 1
            self._bytes = total
            wake = count == 1
            if not self._pressed and (count >= self._wake_records or total >= self._wake_bytes):
                self._pressed = wake = True
        if wake:
            self._on_wake()
        return True

    def has_room(self) -> bool:
        """Whether any single record fits without an eviction."""
        return self._count < self._max_records and self._bytes + MAX_RECORD_BYTES <= self._max_bytes

    def drop(self, reason: DropReason, kind: Kind) -> None:
        """Book a record that was given up before it got here."""
        with self._lock:
            self._book_drop(reason, kind)

    def _book_drop(self, reason: DropReason, kind: Kind) -> None:
        self._ledger.accepted += 1
        self._ledger.dropped[reason] += 1
        if kind == "metric":
            self._ledger.accepted_metrics += 1
            self._ledger.dropped_metrics += 1

    def wait_for_room(self, timeout: float) -> None:
        """
        After a refusal: block the calling thread until something was taken over since, at most
        ``timeout`` seconds. Whether it is enough, only another ``put`` can tell.
        """
        with self._room:
            if self._refused:
                self._room.wait(timeout)

    def call_when_room(self, callback: Callable[[], object]) -> None:
        """
        Have ``callback`` called once, from another thread, when something was taken over.

        Only so many are kept; the oldest are forgotten without a call.
        """
        with self._lock:
            self._waiters.append(callback)

    def take(self, limit: int) -> list[Record]:
        """Up to ``limit`` records, highest priority first; they count until ``done``."""
        taken: list[Record] = []
        with self._lock:
            for priority in reversed(Priority):
                queue = self._queues[priority]
                count = min(len(queue), limit - len(taken))
                some = [queue.popleft() for _ in range(count)]
                self._queued_bytes[priority] -= _size(some)
                taken += some
            self._taken += len(taken)
        return taken

    def done(self, records: Sequence[Record]) -> None:
        """The store has these records now."""
        with self._lock:
            if len(records) > self._taken:
                return  # abandoned meanwhile
            self._count -= len(records)
            self._taken -= len(records)
            self._bytes -= _size(records)
            self._pressed = self._count >= self._wake_records or self._bytes >= self._wake_bytes
            waiters = self._release()
        _call(waiters)

    def put_back(self, records: Sequence[Record]) -> None:
        """The store did not take these records: they are the oldest again."""
        with self._lock:
            if len(records) > self._taken:
                return  # abandoned meanwhile
            for record in reversed(records):
                self._queues[record.priority].appendleft(record)
                self._queued_bytes[record.priority] += len(record.payload)
                self._taken -= 1

    def close(self, reason: DropReason) -> None:
        """Whatever is put from now on is dropped for ``reason``."""
        with self._lock:
            self._closed = reason
            waiters = self._release()
        _call(waiters)

    def abandon(self, reason: DropReason) -> int:
        """Give up everything that is left, also what was taken; returns how many."""
        with self._lock:
            left = self._count
            for queue in self._queues:
                self._ledger.dropped_metrics += sum(record.kind == "metric" for record in queue)
                queue.clear()
            self._queued_bytes = [0 for _ in Priority]
            self._ledger.dropped[reason] += left
            self._count = self._taken = self._bytes = 0
            self._pressed = False
            waiters = self._release()
        _call(waiters)
        return left

    def under_pressure(self) -> bool:
        """Whether so much is waiting that a flush should not."""
        return self._pressed

    @property
    def waiting(self) -> int:
        """Records that were not taken yet."""
        return self._count - self._taken

    def __len__(self) -> int:
        """Records in the ring and in transit to the store."""
        return self._count

    @property
    def capacity(self) -> tuple[int, int]:
        """Most records and payload bytes."""
        return self._max_records, self._max_bytes

    @property
    def bytes(self) -> int:
        return self._bytes

    @property
    def metrics(self) -> int:
        """Metrics that were not taken yet."""
        return len(self._queues[Priority.METRIC])

    @property
    def oldest(self) -> float | None:
        """Unix time at which the oldest record that waits was accepted."""
        with self._lock:
            times = [queue[0].accepted_at for queue in self._queues if queue]
        return min(times, default=None)

    def locked(self) -> AbstractContextManager[bool]:
        """The lock under which ledger and ring agree."""
        return self._lock

    def _make_room(self, priority: Priority, size: int) -> bool:
        last = priority + 1
        most = sum(map(len, self._queues[:last]))
        most_bytes = sum(self._queued_bytes[:last])
        if (
            self._count - most >= self._max_records
            or self._bytes - most_bytes + size > self._max_bytes
        ):
            return False
        for lowest, queue in enumerate(self._queues[:last]):
            while queue:
                evicted = queue.popleft()
                length = len(evicted.payload)
                self._queued_bytes[lowest] -= length
                self._count -= 1
                self._bytes -= length
                self._ledger.dropped[DropReason.OVERFLOW] += 1
                self._ledger.dropped_metrics += evicted.kind == "metric"
                if self._count < self._max_records and self._bytes + size <= self._max_bytes:
                    return True
        return False  # not reached: there was enough to evict

    def _release(self) -> Iterable[Callable[[], object]]:
        """There may be room: wake the threads that wait, and return the callbacks to call."""
        self._refused = False
        self._room.notify_all()
        waiters = list(self._waiters)
        self._waiters.clear()
        return waiters


def _size(records: Sequence[Record]) -> int:
    return sum([len(record.payload) for record in records])


def _call(waiters: Iterable[Callable[[], object]]) -> None:
    for waiter in waiters:
        try:
            waiter()
        except Exception:
            # The event loop of the one who waited is closed. That must not look like a failure of
            # the store, for which the caller takes records over.
            logger.debug("nobody waits for room any more", exc_info=True)
