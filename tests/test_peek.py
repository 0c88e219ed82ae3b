"""A look into a store that survives the process leaves everything as it is."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from guard_agent import BufferStore
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


async def test_another_process_sees_what_waits(make):
    async with opened(make("one")) as store, opened(make("one")) as other:
        await store.append([make_record(n) for n in (1, 2)], evict=True)
        lease = await store.lease("one", 1, BIG, 60)
        before = await store.stats()

        assert ids(await other.peek("one", None, 100)) == ["record-1", "record-2"]

        assert await store.stats() == before
        assert await store.ack(lease, list(lease.entries)) == 1
        assert ids(await other.peek("one", None, 100)) == ["record-2"]


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


class Hidden(MemoryStore):
    peek = BufferStore.peek


async def test_a_store_that_hides_what_it_has_says_so():
    store = Hidden(MemoryStore.Settings(), make_context(destinations=("one",)))
    with pytest.raises(NotImplementedError, match="cannot look into the store 'test'"):
        await asyncio.wait_for(store.peek("one", None, 10), 5)
