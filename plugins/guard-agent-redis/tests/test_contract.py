"""The contract of a buffer store, on a real server."""

from __future__ import annotations

import pytest

from guard_agent.testing.contracts import BufferStoreContract
from guard_agent.testing.redis_server import redis_server  # noqa: F401 - a fixture
from guard_agent_redis import RedisSettings, RedisStore


class TestRedisStoreContract(BufferStoreContract):
    dead_letter_limit = 5

    @pytest.fixture(autouse=True)
    def _server(self, redis_server):  # noqa: F811 - the fixture, as pytest passes it
        self.url = redis_server.url

    def make_store(self, context):
        return RedisStore(RedisSettings(url=self.url, max_dead_letters=5, deadline=5), context)
