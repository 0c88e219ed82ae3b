from __future__ import annotations

import time

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from guard_agent import Level
from guard_agent.plugins.memory import MemorySettings, MemoryStore
from guard_agent.testing.contracts.state_machine import STATES, BufferStoreMachine


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

    search = settings(
        STATES,
        max_examples=300,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Machine, settings=search)
