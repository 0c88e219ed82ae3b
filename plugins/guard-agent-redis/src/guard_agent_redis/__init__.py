"""Records that wait in Redis or Valkey: the store ``redis``."""

from __future__ import annotations

from guard_agent import BufferStore, hookimpl
from guard_agent_redis.errors import ServerDownError, StoreUnavailableError
from guard_agent_redis.settings import RedisSettings
from guard_agent_redis.store import RedisStore

__all__ = ["RedisSettings", "RedisStore", "ServerDownError", "StoreUnavailableError"]


@hookimpl
def guard_agent_buffer_stores() -> list[type[BufferStore]]:
    return [RedisStore]
