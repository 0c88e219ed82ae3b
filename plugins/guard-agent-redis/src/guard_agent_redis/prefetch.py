"""
Batches that a process leases ahead for one destination, so that a backlog costs fewer commands.

A lease is for several batches then, and the others are handed out without asking the server. They
are as safe as any lease: acknowledged batch by batch, and ready for others when this process dies.
So that nobody waits for what lies here, it is only done after a batch that was delivered in no
time, while a single priority waits, and what nobody has fetched within a second is given back.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from guard_agent import Lease

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guard_agent import Record

BATCHES = 8
"""Batches of one lease at most."""
HOLD = 1.0
"""Seconds until what nobody has fetched is given back."""
_QUICK = HOLD / (2 * BATCHES)
"""Seconds from lease to acknowledgement that a batch may take where others are leased ahead."""


class Prefetch:
    """
    What is leased ahead, and whether to do so. Decides only; all times are of a monotonic clock.

    ``hold`` is in seconds.
    """

    def __init__(self, hold: float = HOLD) -> None:
        self._hold = hold
        self._lease = Lease("", "", {})
        self._rest: deque[tuple[str, Record]] = deque()
        self._until = 0.0
        self._ttl = 0.0
        # Of the batch before: when it was asked for, its records, and how long they took.
        self._began = 0.0
        self._amount = 1
        self._took = math.inf

    def batches(self, records: int, batches: int, ttl: float) -> int:
        """
        For how many batches to ask the server.

        Args:
            records: that one process may hold at most.
            batches: the same in batches of the most bytes.
            ttl: of the lease, in seconds; a short one leaves no time to keep anything.
        """
        if self._took > _QUICK or ttl < 10 * self._hold:
            return 1
        return max(min(BATCHES, records // self._amount, batches), 1)

    def acked(self, now: float) -> None:
        """The batch before was delivered."""
        self._took = now - self._began

    def put(self, lease: Lease, ttl: float, now: float) -> None:
        """Keep what was leased at ``now`` or later, for ``ttl`` and the time it may lie here."""
        self._lease, self._rest = lease, deque(lease.entries.items())
        self._ttl, self._until = ttl, now + self._hold

    def cut(self, max_records: int, max_bytes: int, ttl: float, now: float) -> Lease | None:
        """The next batch of what is kept; None when there is none, or none that may be used."""
        if ttl > self._ttl or self.is_stale(now):
            return None
        entries: dict[str, Record] = {}
        size = 0
        while self._rest and len(entries) < max_records:
            entry, record = self._rest[0]
            if entries and size + len(record.payload) > max_bytes:
                break
            entries[entry] = record
            size += len(record.payload)
            self._rest.popleft()
        if not entries:
            return None
        self._began, self._amount = now, len(entries)
        return Lease(self._lease.id, self._lease.destination, entries)

    def failed(self) -> None:
        """The batch before was not delivered: from then on one at a time, until one is."""
        self._took = math.inf

    def is_stale(self, now: float) -> bool:
        return now > self._until

    def __bool__(self) -> bool:
        """Whether something is kept."""
        return bool(self._rest)

    def drain(self) -> Lease | None:
        """What is to be given back, and no longer kept."""
        rest: Mapping[str, Record] = dict(self._rest)
        self._rest.clear()
        return Lease(self._lease.id, self._lease.destination, rest) if rest else None
