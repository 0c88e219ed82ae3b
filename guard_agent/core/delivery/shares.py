"""Which of the records that are ready a lease takes: for stores that can list them."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

from guard_agent.core.interfaces import LEASE_SHARE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guard_agent.core.interfaces import Record

K = TypeVar("K")


def share_out(
    ready: Iterable[tuple[K, Record]], max_records: int, max_bytes: int
) -> dict[K, Record]:
    """
    What a lease of at most ``max_records`` and ``max_bytes`` takes, as `BufferStore.lease` asks.

    ``ready`` has entries with their records, the highest priority first, the oldest first within
    it; of each priority it need not have more than ``max_records``.
    """
    groups = [list(group) for _, group in groupby(ready, lambda entry: entry[1].priority)]
    share = max_records // LEASE_SHARE
    taken: dict[K, Record] = {}
    size = 0
    for number, group in enumerate(groups, 1):
        lower = len(groups) - number if share else 0
        most = max_records - lower * share
        most_bytes = max_bytes - lower * (max_bytes // LEASE_SHARE)
        for entry, record in group:
            if len(taken) >= most:
                break
            if size + len(record.payload) > most_bytes and taken:
                if not lower:
                    return taken  # what is lower must not overtake it
                break
            taken[entry] = record
            size += len(record.payload)
    return taken
