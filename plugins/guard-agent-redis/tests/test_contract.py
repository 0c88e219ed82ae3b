"""The contract of a buffer store, on a real server."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings

from guard_agent import Level
from guard_agent.testing.contracts import BufferStoreContract
from guard_agent.testing.contracts.state_machine import STATES
from guard_agent_redis import RedisSettings, RedisStore


class TestRedisStoreContract(BufferStoreContract):
    """In the model a crash leaves one owner as it is, with a new one beside it."""

    plugin = RedisStore
    dead_letter_limit = 40
    states = settings(STATES, phases=[Phase.generate])  # what fails is shown in time, if longer

    @pytest.fixture(autouse=True)
    def _server(self, redis_server):
        self.url = redis_server.url

    def settings(self):
        return {
            "url": self.url,
            "max_dead_letters": 40,
            "deadline": 60,
            "presence": 3600,  # a crash leaves leases to their time, as the model has it
        }

    def make_store(self, context):
        config = context.config
        bounds = {"max_records": config.max_buffer_records, "max_bytes": config.max_buffer_bytes}
        return RedisStore(RedisSettings(**self.settings(), **bounds), context)


def test_what_it_keeps_survives_the_process():
    assert RedisStore.level is Level.JOURNAL
