from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from guard_agent.testing.records import make_context
from guard_agent.testing.redis_server import RedisServer, redis_server  # noqa: F401 - a fixture
from guard_agent_redis import RedisSettings, RedisStore, StoreUnavailableError

MANY = 10_000
BIG = 1 << 30


@pytest.fixture
def server():
    """A server of its own for a test that ill-treats it."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def durable_server():
    with RedisServer(append_only=True) as server:
        yield server


class Kit:
    """The helpers of this folder."""

    many = MANY
    big = BIG

    @staticmethod
    def make(url, destinations=("one",), project=None, config=None, **settings):
        context = make_context(
            destinations=destinations, project_id=project or uuid4().hex, **(config or {})
        )
        return RedisStore(RedisSettings(**{"url": url, "deadline": 5, **settings}), context)

    @asynccontextmanager
    async def opened(self, url, *arguments, **settings):
        store = self.make(url, *arguments, **settings)
        await store.open()
        try:
            yield store
        finally:
            await store.close()

    @staticmethod
    async def lease(store, destination="one", amount=MANY, ttl=60.0):
        return await store.lease(destination, amount, BIG, ttl)

    @staticmethod
    def ids(lease):
        return [record.id for record in lease.entries.values()]

    async def drain(self, store, destination="one"):
        """Lease and acknowledge until nothing is ready; the ids of the records."""
        found = []
        while (lease := await self.lease(store, destination, 1000)) is not None:
            found += self.ids(lease)
            await store.ack(lease, list(lease.entries))
        return found

    @staticmethod
    async def until(attempt, patience=10.0):
        """The result of ``attempt`` as soon as it neither raises nor is empty."""
        deadline = time.monotonic() + patience
        while True:
            try:
                if result := await attempt():
                    return result
            except StoreUnavailableError:
                if time.monotonic() > deadline:
                    raise
            assert time.monotonic() < deadline, "it never happened"
            await asyncio.sleep(0.01)


@pytest.fixture
def kit():
    return Kit()
