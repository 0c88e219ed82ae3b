"""A look into a store that survives the process leaves everything as it is."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from guard_agent import Priority
from guard_agent.core.delivery.calls import SafeStore
from guard_agent.plugins.disk import DiskSettings, DiskStore
from guard_agent.plugins.memory import MemoryStore
from guard_agent.testing.records import make_context, make_record, make_records
from guard_agent.testing.redis_server import redis_server  # noqa: F401 - a fixture
from guard_agent_redis import RedisSettings, RedisStore

BIG = 1 << 30


@pytest.fixture(params=["disk", "redis"])
def make(request, tmp_path):
    """Makes stores of one project: each is as one process has it."""
    project = uuid4().hex

    def make(*destinations):
        context = make_context(tmp_path, destinations=destinations, project_id=project)
        if request.param == "disk":
            return DiskStore(DiskSettings(), context)
        url = request.getfixturevalue("redis_server").url
        return RedisStore(RedisSettings(url=url, deadline=5), context)

    return make


@asynccontextmanager
async def opened(store):
    await store.open()
    try:
        yield SafeStore(store, 10)
    finally:
        await store.close()


def ids(peeked):
    return [record.id for record in peeked.records]


async def test_what_waits_is_seen_in_order_of_arrival_and_stays(make):
    low = make_records(3, priority=Priority.METRIC, kind="metric")
    high = [make_record(n, priority=Priority.ATTACK) for n in (4, 5)]
    async with opened(make("one")) as store, opened(make("one")) as other:
        await store.append(low, evict=True)
        await store.append(high, evict=True)
        before = await store.stats()

        peeked = await other.peek("one", None, 100)

        assert list(peeked.records) == [*low, *high]
        assert await store.stats() == before
        assert ids(await other.peek("one", None, 100)) == ids(peeked)


async def test_the_next_look_sees_what_came_later(make):
    async with opened(make("one")) as store:
        await store.append(make_records(2), evict=True)
        first = await store.peek("one", None, 100)
        nothing = await store.peek("one", first.position, 100)
        await store.append([make_record(3, priority=Priority.ATTACK)], evict=True)
        await store.append([make_record(4)], evict=True)
        later = await store.peek("one", nothing.position, 100)

        assert (ids(nothing), nothing.passed) == ([], 0)
        assert (ids(later), later.passed) == (["record-3", "record-4"], 0)


async def test_a_look_may_begin_at_the_end(make):
    async with opened(make("one")) as store:
        await store.append(make_records(2), evict=True)
        end = await store.peek("one", None, 0)
        await store.append([make_record(3)], evict=True)

        assert ids(end) == []
        assert ids(await store.peek("one", end.position, 100)) == ["record-3"]


async def test_a_long_store_is_seen_in_parts(make):
    async with opened(make("one")) as store:
        for n in range(1, 8):
            await store.append([make_record(n)], evict=True)
        seen, position = [], None
        for _ in range(4):
            peeked = await store.peek("one", position, 2)
            seen.append(ids(peeked))
            position = peeked.position

        assert seen == [[f"record-{n}" for n in part] for part in ((1, 2), (3, 4), (5, 6), (7,))]


async def test_leased_records_are_seen_and_delivered_ones_only_counted(make):
    async with opened(make("one")) as store:
        end = await store.peek("one", None, 0)
        for n in range(1, 5):
            await store.append([make_record(n)], evict=True)
        lease = await store.lease("one", 3, BIG, 60)
        await store.ack(lease, list(lease.entries)[:2])

        peeked = await store.peek("one", end.position, 100)

        assert (ids(peeked), peeked.passed) == (["record-3", "record-4"], 2)
        assert (await store.peek("one", peeked.position, 100)).passed == 0
        assert await store.ack(lease, list(lease.entries)) == 1


async def test_what_passed_is_counted_over_several_parts(make):
    async with opened(make("one")) as store:
        end = await store.peek("one", None, 0)
        for n in range(1, 7):
            await store.append([make_record(n)], evict=True)
        lease = await store.lease("one", 6, BIG, 60)
        await store.ack(lease, list(lease.entries)[1:3])
        seen, passed, position = [], 0, end.position
        for _ in range(4):
            peeked = await store.peek("one", position, 2)
            seen += ids(peeked)
            passed += peeked.passed
            position = peeked.position

        assert (seen, passed) == (["record-1", "record-4", "record-5", "record-6"], 2)


async def test_each_destination_has_its_own_view(make):
    async with opened(make("one", "two")) as store:
        await store.append(make_records(2), evict=True)
        lease = await store.lease("one", 1, BIG, 60)
        await store.ack(lease, list(lease.entries))

        assert ids(await store.peek("one", None, 100)) == ["record-2"]
        assert ids(await store.peek("two", None, 100)) == ["record-1", "record-2"]


async def test_records_of_one_append_are_seen_one_by_one_as_they_are_delivered(make):
    async with opened(make("one")) as store:
        await store.append(make_records(100), evict=True)
        lease = await store.lease("one", 50, BIG, 60)
        await store.ack(lease, list(lease.entries)[:50:2])

        peeked = await store.peek("one", None, 1000)

        left = [n for n in range(1, 101) if n > 50 or n % 2 == 0]
        assert ids(peeked) == [f"record-{n}" for n in left]


async def test_a_store_that_was_emptied_is_seen_from_its_beginning(make, request, tmp_path):
    async with opened(make("one")) as store:
        await store.append(make_records(3), evict=True)
        position = (await store.peek("one", None, 100)).position
    if "redis" in request.node.name:
        request.getfixturevalue("redis_server").command("FLUSHALL")
    else:
        for file in tmp_path.glob("disk-*"):
            file.unlink()
    async with opened(make("one")) as store:
        await store.append([make_record(9)], evict=True)
        peeked = await store.peek("one", position, 100)

        assert peeked.passed == 0
        assert ids(peeked) == ["record-9"]


async def test_an_unknown_destination_is_refused(make):
    async with opened(make("one")) as store:
        with pytest.raises(ValueError, match="no destination 'other'"):
            await store.peek("other", None, 10)


async def test_a_store_in_memory_says_that_one_cannot_look_into_it():
    store = MemoryStore(MemoryStore.Settings(), make_context(destinations=("one",)))
    with pytest.raises(NotImplementedError, match="cannot look into the store 'test'"):
        await asyncio.wait_for(store.peek("one", None, 10), 5)
