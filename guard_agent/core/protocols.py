"""Shapes of the objects that the agent and the Guard adapters hand to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from guard_agent.core.models import AgentStatus, DynamicRules


@runtime_checkable
class RedisHandlerProtocol(Protocol):
    """A namespaced key-value store, as the Guard engine's Redis manager offers it."""

    async def get_key(self, namespace: str, key: str) -> Any:
        """The value, or None when there is none."""

    async def set_key(
        self, namespace: str, key: str, value: Any, ttl: int | None = None
    ) -> bool | None:
        """Store a value, for ``ttl`` seconds or for good."""

    async def delete(self, namespace: str, key: str) -> int | None:
        """Remove a key; returns how many were removed."""

    async def keys(self, pattern: str) -> list[str] | None:
        """The keys that match a pattern."""

    async def initialize(self) -> None:
        """Connect."""

    def get_connection(self) -> Any:
        """A context manager that yields a client."""


@runtime_checkable
class AgentHandlerProtocol(Protocol):
    """What a Guard adapter for an asynchronous framework calls."""

    async def initialize_redis(self, redis_handler: Any) -> None:
        """Learn the Redis of the host application."""

    def send_event(self, event: Any) -> Coroutine[Any, Any, None]:
        """Take an event. Never raises, never blocks."""

    def send_metric(self, metric: Any) -> Coroutine[Any, Any, None]:
        """Take a metric. Never raises, never blocks."""

    async def start(self) -> None:
        """Start the background work. Idempotent."""

    async def stop(self) -> None:
        """Deliver what can be delivered within the deadline and end. Idempotent."""

    async def flush_buffer(self) -> None:
        """Send now what was taken so far."""

    async def get_dynamic_rules(self) -> DynamicRules | None:
        """The rules in force, or None."""

    async def health_check(self) -> bool:
        """Whether records are taken and delivered."""

    async def get_status(self) -> AgentStatus:
        """How the agent is."""

    async def close(self) -> None:
        """The same as ``stop``."""
