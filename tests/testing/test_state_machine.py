from __future__ import annotations

import time
from typing import ClassVar

import pytest
from hypothesis import Phase, settings

from guard_agent import Level, Priority
from guard_agent.plugins.memory import MemorySettings, MemoryStore
from guard_agent.testing.contracts.state_machine import (
    STATES,
    BufferStoreMachine,
    Entry,
    _oldest,
    search,
)
from guard_agent.testing.records import make_record


class NeverAcks(MemoryStore):
    async def ack(self, lease, ids):
        return len(set(ids))


class NotFenced(MemoryStore):
    """Releases what somebody else holds by now."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.holders = {}

    async def lease(self, *arguments):
        lease = await super().lease(*arguments)
        if lease is not None:
            self.holders.update(dict.fromkeys(lease.entries, lease))
        return lease

    async def release(self, lease, ids, delay=0.0):
        return sum([await super(NotFenced, self).release(self.holders[i], [i], delay) for i in ids])


class EvictsTheYoungest(MemoryStore):
    async def append(self, records, *, evict):
        return await super().append(list(records)[::-1], evict=evict)


class LeasesTwice(MemoryStore):
    async def lease(self, destination, max_records, max_bytes, ttl):
        lease = await super().lease(destination, max_records, max_bytes, ttl)
        if lease is not None and len(lease.entries) > 1:
            await super().release(lease, list(lease.entries)[1:])
        return lease


class ExpiresTooSoon(MemoryStore):
    def __init__(self, *arguments):
        super().__init__(*arguments, clock=lambda: time.monotonic() * 1e12)


class LosesOnCrash(MemoryStore):
    """Says that it survives, and does not."""

    level = Level.JOURNAL


@pytest.mark.parametrize(
    "broken",
    [NeverAcks, NotFenced, EvictsTheYoungest, LeasesTwice, ExpiresTooSoon, LosesOnCrash],
)
def test_a_store_that_breaks_the_contract_is_found(broken):
    class Machine(BufferStoreMachine):
        patience = 0.5

        def make_store(self, context):
            return broken(MemorySettings(), context)

    how = settings(
        STATES,
        max_examples=300,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError):
        search(Machine, how, seconds=60)


class Remembers(MemoryStore):
    """Notes the stores that are made and the sizes of what they get."""

    begun: ClassVar[list[list[int]]]

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.sizes = []
        self.begun.append(self.sizes)

    async def append(self, records, *, evict):
        self.sizes += [len(record.payload) for record in records]
        return await super().append(records, evict=evict)


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 1), (3600, 4)])
def test_the_search_ends_with_its_time(seconds, rounds):
    """A slow machine tries less. No round is like another, and together they are the same again."""

    def sequences():
        class Machine(BufferStoreMachine):
            def make_store(self, context):
                return store(MemorySettings(), context)

        store = type("Store", (Remembers,), {"begun": []})
        how = settings(STATES, max_examples=20, derandomize=True, database=None)
        assert search(Machine, how, seconds) == rounds
        return store.begun

    found = sequences()

    assert found == sequences()
    assert len({tuple(sizes) for sizes in found if sizes}) > 2 * rounds


def test_a_replayed_record_may_count_as_old_or_new():
    replayed = make_record(1, priority=Priority.METRIC)
    pending = [Entry(n, make_record(n)) for n in (2, 3)] + [Entry(4, replayed)]

    assert _oldest(pending) == {make_record(1).accepted_at, make_record(2).accepted_at}
    assert _oldest(pending[:2]) == {make_record(2).accepted_at}
    assert _oldest([]) == {None}
