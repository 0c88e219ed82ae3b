"""The contract of a buffer store, on a real server."""

from __future__ import annotations

import pytest

import guard_agent_redis
from guard_agent import Level
from guard_agent.testing.contracts import BufferStoreContract
from guard_agent_redis import RedisSettings, RedisStore


class TestRedisStoreContract(BufferStoreContract):
    dead_letter_limit = 5

    @pytest.fixture(autouse=True)
    def _server(self, redis_server):
        self.url = redis_server.url

    def make_store(self, context):
        return RedisStore(RedisSettings(url=self.url, max_dead_letters=5, deadline=5), context)


def test_the_hook_offers_the_store_under_its_name():
    assert guard_agent_redis.guard_agent_buffer_stores() == [RedisStore]
    assert RedisStore.name == "redis"
    assert RedisStore.level is Level.JOURNAL
