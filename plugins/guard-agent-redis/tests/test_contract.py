"""The contract of a buffer store, on a real server."""

from __future__ import annotations

import pytest
from hypothesis.stateful import run_state_machine_as_test

import guard_agent_redis
from guard_agent import Level
from guard_agent.testing.contracts import BufferStoreContract
from guard_agent.testing.contracts.state_machine import STATES, BufferStoreMachine
from guard_agent_redis import RedisSettings, RedisStore


class TestRedisStoreContract(BufferStoreContract):
    dead_letter_limit = 5

    @pytest.fixture(autouse=True)
    def _server(self, redis_server):
        self.url = redis_server.url

    def make_store(self, context):
        return RedisStore(RedisSettings(url=self.url, max_dead_letters=5, deadline=5), context)


class RedisStoreMachine(BufferStoreMachine):
    """Two owners on one server; a crash leaves one as it is, with a new one beside it."""

    url = ""

    def make_store(self, context):
        config = context.config
        settings = RedisSettings(
            url=self.url,
            max_records=config.max_buffer_records,
            max_bytes=config.max_buffer_bytes,
            deadline=5,
            presence=3600,  # a crash leaves leases to their time, as the model has it
        )
        return RedisStore(settings, context)


def test_every_sequence_of_steps_has_the_result_of_the_model(redis_server):
    class Machine(RedisStoreMachine):
        url = redis_server.url

    run_state_machine_as_test(Machine, settings=STATES)


def test_the_hook_offers_the_store_under_its_name():
    assert guard_agent_redis.guard_agent_buffer_stores() == [RedisStore]
    assert RedisStore.name == "redis"
    assert RedisStore.level is Level.JOURNAL
