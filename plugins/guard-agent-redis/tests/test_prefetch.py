"""Batches that are leased ahead: when, how they are handed out, and that nobody waits for them."""

from __future__ import annotations

import math

import pytest

from guard_agent import Lease, Priority
from guard_agent.testing.records import make_record, make_records
from guard_agent_redis import StoreUnavailableError
from guard_agent_redis.prefetch import BATCHES, HOLD, Prefetch

SIZE = 1024
BATCH = 128 * 1024
"""Most payload bytes of a batch: 128 of the records below."""
AMOUNT = 1000
LONG = 60.0


def make_lease(amount=10, size=100):
    return Lease("l.1", "one", {str(r.id): r for r in make_records(amount, size=size)})


def ready(now=0.0):
    """One that has seen a batch delivered at once."""
    prefetch = Prefetch()
    prefetch.put(make_lease(1), LONG, now)
    prefetch.cut(10, 10_000, LONG, now)
    prefetch.acked(now + 0.01)
    return prefetch


# --- deciding -------------------------------------------------------------------------------------


def test_nothing_is_leased_ahead_before_a_batch_was_delivered_at_once():
    prefetch = Prefetch()
    assert prefetch.batches(10_000, 100, LONG) == 1
    prefetch.put(make_lease(1), LONG, 0)
    prefetch.cut(10, 10_000, LONG, 0)
    prefetch.acked(0.2)
    assert prefetch.batches(10_000, 100, LONG) == 1

    assert ready().batches(10_000, 100, LONG) == BATCHES


def test_nothing_is_leased_ahead_after_a_failure():
    prefetch = ready()
    prefetch.failed()
    assert prefetch.batches(10_000, 100, LONG) == 1


def test_a_short_lease_leaves_no_time_to_keep_anything():
    assert ready().batches(10_000, 100, 5.0) == 1


@pytest.mark.parametrize(
    ("records", "batches", "expected"), [(3, 100, 3), (100, 2, 2), (0, 0, 1), (100, 100, BATCHES)]
)
def test_no_more_is_asked_for_than_one_process_may_hold(records, batches, expected):
    assert ready().batches(records, batches, LONG) == expected


def test_batches_keep_the_order_and_the_bounds_of_the_call():
    prefetch = ready()
    prefetch.put(make_lease(10, size=100), LONG, 5.0)

    first = prefetch.cut(3, 10_000, LONG, 5.0)
    second = prefetch.cut(100, 250, LONG, 5.1)
    third = prefetch.cut(1, 1, LONG, 5.2)

    assert list(first.entries) == ["record-1", "record-2", "record-3"]
    assert list(second.entries) == ["record-4", "record-5"]
    assert list(third.entries) == ["record-6"]
    assert {lease.id for lease in (first, second, third)} == {"l.1"}
    assert list(prefetch.drain().entries) == [f"record-{n}" for n in range(7, 11)]
    assert not prefetch
    assert prefetch.drain() is None
    assert prefetch.cut(1, 1, LONG, 5.2) is None


def test_what_lies_too_long_is_not_handed_out():
    prefetch = ready()
    prefetch.put(make_lease(), LONG, 5.0)

    assert not prefetch.is_stale(6.0)
    assert prefetch.cut(1, 1, LONG, 6.0) is not None
    assert prefetch.is_stale(math.nextafter(6.0, 7))
    assert prefetch.cut(1, 1, LONG, math.nextafter(6.0, 7)) is None
    assert len(prefetch.drain().entries) == 9


def test_a_longer_lease_than_what_is_kept_has_is_not_made_of_it():
    prefetch = ready()
    prefetch.put(make_lease(), LONG, 5.0)
    assert prefetch.cut(1, 1, LONG + 1, 5.0) is None


# --- on a server ----------------------------------------------------------------------------------


@pytest.fixture
def backlog(kit, server):
    """Opens a store with a backlog of which several batches are leased ahead."""
    return lambda amount=AMOUNT, **options: Backlog(kit, server, amount, **options)


class Backlog:
    def __init__(self, kit, server, amount, hold=LONG / 10, **settings):
        bounds = {"max_records": 100_000, "max_bytes": 1 << 28}
        self.store = kit.make(server.url, project="shared", **{**bounds, **settings})
        self.store._prefetched["one"] = Prefetch(hold)
        self.amount = amount
        self.first = None

    async def __aenter__(self):
        await self.store.open()
        await self.store.append(make_records(self.amount, size=SIZE), evict=True)
        self.store._prefetched["one"].acked(0.0)  # however busy this machine is
        self.first = await take(self.store)
        assert self.store._prefetched["one"]
        return self

    async def __aexit__(self, *_):
        await self.store.close()


async def take(store):
    return await store.lease("one", AMOUNT, BATCH, LONG)


async def rest_of(store):
    """The ids of all records that can be had, in order."""
    found = []
    while (lease := await take(store)) is not None:
        found += [record.id for record in lease.entries.values()]
        await store.ack(lease, list(lease.entries))
    return found


async def test_the_batches_ahead_cost_no_command_and_are_acknowledged_one_by_one(backlog, server):
    async with backlog() as kept:
        store = kept.store
        await store.ack(kept.first, list(kept.first.entries))
        before = server.command_counts()["evalsha"]
        second = await take(store)
        assert server.command_counts()["evalsha"] == before
        assert len(second.entries) == 128

        ids = list(second.entries)
        assert await store.ack(second, ids[:100]) == 100
        assert await store.ack(second, ids) == 28
        assert await store.ack(second, ids) == 0


async def test_every_record_comes_once_and_in_order(backlog):
    async with backlog(3000) as kept:
        found = [record.id for record in kept.first.entries.values()]
        await kept.store.ack(kept.first, list(kept.first.entries))
        found += await rest_of(kept.store)

        assert found == [f"record-{number}" for number in range(1, 3001)]
        depth = (await kept.store.stats())["one"]
        assert (depth.ready, depth.leased) == (0, 0)


async def test_whoever_looks_sees_only_the_batches_that_were_handed_out_as_leased(backlog):
    async with backlog() as kept:
        depth = (await kept.store.stats())["one"]
        assert depth.leased == len(kept.first.entries)
        assert not kept.store._prefetched["one"]

        await kept.store.ack(kept.first, list(kept.first.entries))
        assert len(await rest_of(kept.store)) == depth.ready


async def test_what_nobody_fetches_is_ready_for_others_soon(backlog, kit, server):
    async with backlog(hold=HOLD), kit.opened(server.url, project="shared") as other:

        async def enough():
            lease = await take(other)
            return lease and await other.release(lease, list(lease.entries)) == 128

        await kit.until(enough)


async def test_a_batch_that_is_released_comes_before_those_ahead(backlog):
    async with backlog() as kept:
        names = [record.id for record in kept.first.entries.values()]
        await kept.store.release(kept.first, list(kept.first.entries))

        again = await take(kept.store)
        assert [record.id for record in again.entries.values()] == names
        assert not kept.store._prefetched["one"]


async def test_a_store_that_closes_leaves_nothing_leased_ahead(backlog, kit, server):
    async with kit.opened(server.url, project="shared") as other:
        async with backlog() as kept:
            leased = len(kept.first.entries)
        assert (await other.stats())["one"].leased == leased


async def test_p01_what_a_dead_process_had_ahead_goes_to_a_living_one(backlog, kit, server):
    async with kit.opened(server.url, project="shared", presence=1) as living:
        async with backlog(presence=1) as kept:
            # As when its process is killed: it says nothing to the server any more.
            kept.store._beating.cancel()
            await kept.store._link.close()

            async def taken_over():
                await living.release_expired()
                return (await living.stats())["one"].ready == AMOUNT

            await kit.until(taken_over, patience=30)
        assert len(await rest_of(living)) == AMOUNT


async def test_several_priorities_are_not_leased_ahead(kit, server):
    """A share for the lower ones is a matter of each batch."""
    async with kit.opened(server.url, max_records=100_000, max_bytes=1 << 28) as store:
        for _ in range(3):
            await store.append(make_records(300, size=SIZE), evict=True)
            await store.append(
                [make_record(n, size=SIZE, priority=Priority.METRIC) for n in range(300)],
                evict=True,
            )
            store._prefetched["one"].acked(0.0)
            lease = await take(store)
            assert not store._prefetched["one"]
            assert len({record.priority for record in lease.entries.values()}) == 2
            await store.ack(lease, list(lease.entries))


async def test_while_the_server_is_away_nothing_is_handed_out(backlog, server):
    async with backlog() as kept:
        kept.store._link._failures = 1
        kept.store._link._closed_until = math.inf
        with pytest.raises(StoreUnavailableError):
            await take(kept.store)
        kept.store._link._failures = 0
        kept.store._link._closed_until = 0.0
        assert len((await take(kept.store)).entries) == 128


# --- what a burst costs ---------------------------------------------------------------------------


async def test_a_burst_costs_few_commands(kit, server):
    """3,000 records stored, leased in batches of 256 KiB and acknowledged."""
    amount, batch = 3000, 256 * 1024
    async with kit.opened(server.url, max_records=100_000, max_bytes=1 << 28) as store:
        store._prefetched["one"] = prefetch = Prefetch(LONG / 10)
        server.command("CONFIG", "RESETSTAT")
        for _ in range(3):
            await store.append(make_records(amount // 3, size=1100), evict=True)
        taken = 0
        while taken < amount:
            prefetch.acked(0.0)  # however busy this machine is
            lease = await store.lease("one", 1000, batch, LONG)
            taken += await store.ack(lease, list(lease.entries))
        calls = server.command_counts()
    used = {name: calls[name] for name in calls if name.partition("|")[0] not in LOOKING}
    assert sum(used.values()) <= 0.04 * amount, used


async def test_a_burst_that_is_delivered_slowly_costs_little_more(kit, server):
    """Batch by batch, each in the middle of a large entry."""
    amount, batch = 1000, 256 * 1024
    async with kit.opened(server.url, max_records=100_000, max_bytes=1 << 28) as store:
        server.command("CONFIG", "RESETSTAT")
        await store.append(make_records(amount, size=1100), evict=True)
        taken = 0
        while taken < amount:
            store._prefetched["one"].failed()
            lease = await store.lease("one", 1000, batch, LONG)
            taken += await store.ack(lease, list(lease.entries))
        calls = server.command_counts()
    used = {name: calls[name] for name in calls if name.partition("|")[0] not in LOOKING}
    assert sum(used.values()) <= 0.08 * amount, used


LOOKING = {"config", "info", "client", "hello", "ping", "auth", "select", "command", "script"}
