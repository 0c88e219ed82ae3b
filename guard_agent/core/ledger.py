"""
The books of the agent, per destination:
``accepted == delivered + dropped + buried + merged + pending``.

What happens before the store concerns every destination alike and is booked once; what happens
behind it is booked per destination. ``pending`` is never computed from the other numbers: it is
what the aggregator, the ring and the store say they hold, so the equation can be checked.

Records that an aggregator makes one record of are ``merged``, but for one, which that record takes
the place of.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guard_agent.core.interfaces import Aggregated, DropReason

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(slots=True)
class DestinationBooks:
    """What became of the records of one destination behind the store's door."""

    replayed: int = 0
    """Dead letters that were made ready again: taken over once more."""
    delivered: int = 0
    delivered_events: int = 0
    delivered_bytes: int = 0
    """Payload bytes, before compression."""
    buried: int = 0
    dropped: Counter[DropReason] = field(default_factory=Counter)
    requests: int = 0
    failures: int = 0
    last_success: float | None = None
    """Unix time of the last batch that was accepted."""
    last_error: str | None = None


@dataclass(slots=True)
class Balance:
    """One destination's equation at one moment."""

    accepted: int
    delivered: int
    dropped: dict[str, int]
    buried: int
    merged: int
    pending: int

    @property
    def difference(self) -> int:
        """Zero, or the books are wrong."""
        gone = self.delivered + sum(self.dropped.values()) + self.buried + self.merged
        return self.accepted - gone - self.pending


class Ledger:
    """
    Counts of one run of the agent.

    ``accepted``, ``summaries`` and ``dropped`` are guarded by the lock of the ring, the rest
    belongs to the agent's thread. What an aggregator absorbed is in its own books.
    """

    __slots__ = (
        "accepted",
        "accepted_metrics",
        "aggregated",
        "destinations",
        "dropped",
        "dropped_metrics",
        "summaries",
    )

    def __init__(
        self,
        destinations: tuple[str, ...],
        aggregated: Callable[[], Aggregated] = Aggregated,
    ) -> None:
        self.aggregated = aggregated
        self.accepted = 0
        self.summaries = 0
        """Records that an aggregator made of what it had absorbed."""
        self.accepted_metrics = 0
        """How many of those were metrics."""
        self.dropped_metrics = 0
        """Metrics among what was given up before the store, where the kind is still known."""
        self.dropped: Counter[DropReason] = Counter()
        self.destinations = {name: DestinationBooks() for name in destinations}

    def balance(self, destination: str, pending: int) -> Balance:
        """The equation for ``destination``, given what ring and store hold for it."""
        books = self.destinations[destination]
        aggregated = self.aggregated()
        return Balance(
            accepted=self.accepted + aggregated.absorbed + books.replayed,
            delivered=books.delivered,
            dropped={reason.value: n for reason, n in (self.dropped + books.dropped).items()},
            buried=books.buried,
            merged=aggregated.absorbed - self.summaries - aggregated.open,
            pending=pending + aggregated.open,
        )
