"""A durable store that comes and goes, in front of memory; real stores, a clock moved by hand."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise
from typing import ClassVar

import pytest

from guard_agent import BufferStore, Lease, Level
from guard_agent.core.delivery.lanes import Lanes
from guard_agent.plugins.memory import MemoryStore
from guard_agent.testing.contracts.buffer_store import BufferStoreBehaviour
from guard_agent.testing.records import make_context, make_record


class Durable(MemoryStore):
    """Stands for a store outside of the process: every call fails while it is away."""

    name = "durable"
    level: ClassVar[Level] = Level.JOURNAL

    def __init__(self, destinations=("one",), **settings):
        context = make_context(instance="durable", destinations=destinations)
        super().__init__(MemoryStore.Settings(**settings), context)
        self.away = False
        self.opened = 0

    def _check(self):
        if self.away:
            raise ConnectionError("the store is away")

    async def open(self):
        self._check()
        self.opened += 1

    async def append(self, records, *, evict):
        self._check()
        return await super().append(records, evict=evict)

    async def lease(self, destination, max_records, max_bytes, ttl):
        self._check()
        return await super().lease(destination, max_records, max_bytes, ttl)

    async def ack(self, lease, ids):
        self._check()
        return await super().ack(lease, ids)

    async def release(self, lease, ids, delay=0.0):
        self._check()
        return await super().release(lease, ids, delay)

    async def bury(self, lease, ids, reason):
        self._check()
        return await super().bury(lease, ids, reason)

    async def replay(self, destination, limit):
        self._check()
        return await super().replay(destination, limit)

    async def release_expired(self):
        self._check()
        return await super().release_expired()

    async def stats(self):
        self._check()
        return await super().stats()


class Bench:
    def __init__(self, *, destinations=("one",), away=False):
        self.now = 100.0
        self.durable = Durable(destinations)
        self.durable.away = away
        self.memory = MemoryStore(MemoryStore.Settings(), make_context(destinations=destinations))
        self.lanes = Lanes(self.memory, self.durable, clock=lambda: self.now)

    async def append(self, count):
        records = [make_record() for _ in range(count)]
        appended = await self.lanes.append(records, evict=True)
        assert appended.stored == count
        return records

    async def lease(self, destination="one") -> Lease | None:
        return await self.lanes.lease(destination, 1_000, 1 << 20, 60.0)

    async def pending(self, store: BufferStore, destination="one") -> int:
        return (await store.stats())[destination].pending

    def come_back(self):
        self.durable.away = False
        self.now += 60


class TestBothUp(BufferStoreBehaviour):
    """As long as all is well it behaves like one store."""

    def make_store(self, context):
        durable = Durable(
            context.destinations,
            max_records=context.config.max_buffer_records,
            max_bytes=context.config.max_buffer_bytes,
        )
        return Lanes(MemoryStore(MemoryStore.Settings(), context), durable)


class TestMemoryOnly(BufferStoreBehaviour):
    def make_store(self, context):
        return Lanes(MemoryStore(MemoryStore.Settings(), context), None)


async def test_while_the_store_works_memory_stays_empty():
    bench = Bench()
    await bench.lanes.open()

    await bench.append(5)

    assert bench.lanes.present_level is Level.JOURNAL
    assert bench.lanes.trouble is None
    assert await bench.pending(bench.durable) == 5
    assert await bench.pending(bench.memory) == 0


async def test_a_store_that_is_away_at_the_start_is_attached_later():
    bench = Bench(away=True)
    await bench.lanes.open()
    await bench.append(3)
    assert bench.lanes.present_level is Level.MEMORY
    assert "the store is away" in bench.lanes.trouble

    bench.come_back()
    await bench.append(1)

    assert bench.lanes.present_level is Level.JOURNAL
    assert await bench.pending(bench.durable) == 4, "what waited in memory moved there"
    assert await bench.pending(bench.memory) == 0


async def test_deliveries_go_on_while_the_store_is_away():
    bench = Bench()
    await bench.lanes.open()
    bench.durable.away = True
    await bench.append(2)

    lease = await bench.lease()

    assert len(lease.entries) == 2
    assert await bench.lanes.ack(lease, list(lease.entries)) == 2
    assert await bench.lease() is None


async def test_a_delivery_that_the_store_cannot_be_told_of_is_told_later():
    bench = Bench()
    await bench.lanes.open()
    await bench.append(2)
    lease = await bench.lease()
    bench.durable.away = True

    assert await bench.lanes.ack(lease, list(lease.entries)) == 2
    bench.come_back()
    assert await bench.lease() is None

    assert await bench.pending(bench.durable) == 0


async def test_a_burial_that_fails_is_told_to_the_caller():
    bench = Bench()
    await bench.lanes.open()
    await bench.append(1)
    lease = await bench.lease()
    bench.durable.away = True

    with pytest.raises(ConnectionError):
        await bench.lanes.bury(lease, list(lease.entries), "bad")


async def test_a_store_that_is_away_is_asked_ever_more_rarely():
    bench = Bench(away=True)
    tries = []

    async def open_():
        tries.append(bench.now)
        raise ConnectionError("away")

    bench.durable.open = open_
    for _ in range(600):
        await bench.append(1)
        bench.now += 1

    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert len(tries) < 60
    assert max(gaps) <= 31
    assert min(gaps[8:]) >= 15


async def test_an_outage_is_said_once_and_so_is_its_end(caplog):
    caplog.set_level(logging.WARNING)
    bench = Bench()
    await bench.lanes.open()
    bench.durable.away = True
    for _ in range(20):
        await bench.append(1)
        await bench.lanes.stats()
        assert len(caplog.records) == 1
        bench.now += 60
    bench.come_back()
    await bench.append(1)

    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "the store durable is not available",
        "the store durable works again",
    ]


async def test_a_store_that_can_be_opened_but_takes_nothing_is_said_once(caplog):
    """A full disk, for example: it is not well again before it has stored something."""
    caplog.set_level(logging.WARNING)
    bench = Bench()
    await bench.lanes.open()
    append = bench.durable.append
    tries = []

    async def refuse(records, *, evict):
        tries.append(bench.now)
        raise OSError("no space left")

    bench.durable.append = refuse
    for _ in range(20):
        await bench.append(1)
        assert "no space left" in bench.lanes.trouble
        await bench.lanes.stats()
        bench.now += 60
    assert len(caplog.records) == 1
    assert len(tries) == len(set(tries)) == 20, "it is tried once, not again for the next record"
    bench.durable.append = append
    await bench.append(1)

    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "the store durable is not available",
        "the store durable works again",
    ]
    assert await bench.pending(bench.durable) == 21


async def test_a_store_that_comes_back_full_is_not_said_to_work_each_time_it_opens(caplog):
    caplog.set_level(logging.WARNING)
    bench = Bench(away=True)
    await bench.lanes.open()
    await bench.append(1)

    async def refuse(records, *, evict):
        raise OSError("no space left")

    bench.durable.append = refuse
    bench.durable.away = False
    for _ in range(20):
        bench.now += 60
        await bench.append(1)

    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "the store durable is not available",
        "the store durable works again",
        "the store durable is not available",
    ]


async def test_an_outage_without_anything_to_store_ends_when_the_store_opens():
    bench = Bench(away=True)
    await bench.lanes.open()
    for _ in range(2):
        assert bench.lanes.failures == 1
        bench.come_back()
        assert await bench.lease() is None
        assert (bench.lanes.failures, bench.lanes.trouble) == (0, None)
        bench.durable.away = True
        assert await bench.lease() is None


async def test_it_describes_the_durable_store_when_there_is_one():
    bench = Bench()
    memory = Lanes(bench.memory, None)

    assert bench.lanes.describe() == {"name": "durable", **bench.durable.describe()}
    assert memory.describe() == {"name": bench.memory.context.instance, **bench.memory.describe()}
    assert bench.lanes.context is bench.memory.context


async def test_with_two_destinations_what_is_in_memory_is_delivered_from_there():
    bench = Bench(destinations=("one", "two"), away=True)
    await bench.lanes.open()
    await bench.append(2)
    lease = await bench.lease("one")
    await bench.lanes.ack(lease, list(lease.entries))

    bench.come_back()
    await bench.append(1)

    assert await bench.pending(bench.durable, "one") == 1
    lease = await bench.lease("two")
    assert len(lease.entries) == 2, "and nothing was doubled for the other"


async def test_depths_are_those_of_both_also_while_the_store_is_away():
    bench = Bench()
    await bench.lanes.open()
    await bench.append(3)
    await bench.lanes.stats()
    bench.durable.away = True
    await bench.append(2)

    assert (await bench.lanes.stats())["one"].ready == 5


async def test_settling_brings_memory_to_the_store():
    bench = Bench()
    await bench.lanes.open()
    await bench.memory.append([make_record()], evict=True)

    await bench.lanes.settle()

    assert await bench.pending(bench.durable) == 1


async def test_a_store_can_be_attached_while_it_runs():
    bench = Bench()
    lanes = Lanes(bench.memory, None, clock=lambda: bench.now)
    await lanes.open()
    await lanes.append([make_record()], evict=True)

    lanes.attach(bench.durable)
    await lanes.append([make_record()], evict=True)

    assert await bench.pending(bench.durable) == 2
    with pytest.raises(ValueError, match="already"):
        lanes.attach(bench.durable)


async def test_p08_a_move_that_is_cancelled_loses_nothing():
    bench = Bench(away=True)
    await bench.lanes.open()
    await bench.append(3)
    reached = asyncio.Event()

    async def hang(records, *, evict):
        reached.set()
        await asyncio.Event().wait()

    bench.come_back()
    bench.durable.append = hang
    task = asyncio.ensure_future(bench.lanes.release_expired())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (await bench.memory.stats())["one"].ready == 3


async def test_a_lease_that_could_not_be_given_back_is_given_back_later():
    bench = Bench()
    await bench.lanes.open()
    await bench.append(2)
    lease = await bench.lease()
    bench.durable.away = True
    assert await bench.lanes.release(lease, list(lease.entries)) == 0

    bench.come_back()

    assert len((await bench.lease()).entries) == 2


async def test_depths_are_right_without_having_been_asked_for_before_the_outage():
    bench = Bench()
    await bench.lanes.open()
    await bench.append(5)
    lease = await bench.lease()
    await bench.lanes.ack(lease, list(lease.entries)[:1])
    bench.durable.away = True
    await bench.lanes.ack(lease, list(lease.entries)[1:2])

    assert (await bench.lanes.stats())["one"].pending == 3
    assert not bench.lanes.is_exact
    bench.come_back()
    await bench.append(1)
    assert (await bench.lanes.stats())["one"].pending == 4
    assert bench.lanes.is_exact


async def test_dead_letters_of_both_lanes_are_replayed_and_stay_while_the_store_is_away():
    durable = Durable()
    now = 0.0
    memory = MemoryStore(MemoryStore.Settings(), make_context(destinations=("one",)))
    lanes = Lanes(memory, durable, clock=lambda: now)
    await lanes.open()
    for away in (False, True):
        durable.away = away
        await lanes.append([make_record()], evict=True)
        lease = await lanes.lease("one", 10, 1 << 20, 60)
        await lanes.bury(lease, list(lease.entries), "refused")
    now = 100.0

    durable.away = False
    await lanes.release_expired()
    durable.away = True
    with pytest.raises(ConnectionError):
        await lanes.replay("one", 10)
    assert "the store is away" in lanes.trouble
    assert len(await memory.dead_letters("one")) == 1

    durable.away = False
    now = 200.0
    await lanes.release_expired()
    assert await lanes.replay("one", 1) == 1
    assert await lanes.replay("one", 10) == 1
    assert await lanes.replay("one", 10) == 0
    assert (await lanes.stats())["one"].ready == 2
    await lanes.close()


async def test_while_the_store_is_away_the_dead_letters_in_memory_can_be_replayed():
    bench = Bench(away=True)
    await bench.lanes.open()
    await bench.append(1)
    lease = await bench.lease()
    await bench.lanes.bury(lease, list(lease.entries), "refused")

    assert await bench.lanes.replay("one", 10) == 1
    assert (await bench.lanes.stats())["one"].ready == 1


async def test_the_pauses_until_a_store_is_asked_again_double_to_half_a_minute():
    bench = Bench(away=True)
    bounds = []
    for _ in range(20):
        bench.lanes._failed(OSError("away"))
        bounds.append(bench.lanes._retry_at - bench.now)

    expected = [0.5, 1, 2, 4, 8, 16, *[30] * 14]
    assert all(
        bound / 2 <= pause <= bound for bound, pause in zip(expected, bounds, strict=True)
    ), bounds
