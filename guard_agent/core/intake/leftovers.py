"""
Records that releases 3.x left in the Redis of the host application.

Those kept each record under a key of its own for an hour: ``agent_events:event_<ns>_<hex>`` and
``agent_metrics:metric_<ns>_<hex>``, behind the prefix of the handler, as JSON. They are taken like
any other record, because those releases did not remove all secrets.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import uuid
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from guard_agent.core.host_redis import HostRedis
    from guard_agent.core.interfaces import Kind

logger = logging.getLogger("guard_agent")

METHODS = ("keys", "get_key", "delete")
CLAIM = "agent_leftovers"

_PLACES: tuple[tuple[Kind, str, str], ...] = (
    ("event", "agent_events", "event_"),
    ("metric", "agent_metrics", "metric_"),
)
_SLICE = 200
_CLAIM_TTL = 120
_PAUSE = 30.0
_ATTEMPTS = 120
"""With the pause this is the hour after which those records are gone by themselves."""


class Leftovers:
    """
    Takes them over, once for all processes that share the Redis.

    Args:
        host: what the application handed over.
        take: takes one record; returns False when there is no room for it now.
        commit: brings what was taken to a store that outlives the process; returns whether it is
            there. Only then the keys are deleted.
    """

    def __init__(
        self,
        host: HostRedis,
        take: Callable[[Kind, Mapping[str, Any]], bool],
        commit: Callable[[], Awaitable[bool]],
    ) -> None:
        self._host = host
        self._take = take
        self._commit = commit
        self._owner = f"{os.getpid()}-{secrets.token_hex(4)}"
        # Taken, but not deleted: the store was away in between.
        self._taken: set[tuple[str, str]] = set()

    async def take_over(self, *, pause: float = _PAUSE) -> int:
        """Take over all there are; returns how many. Ends when there are none."""
        if not self._host.offers(*METHODS):
            return 0
        total = 0
        for _ in range(_ATTEMPTS):
            try:
                names = await self._names()
                if not names:
                    break
                if await self._claim():
                    # Another process may have been at it while we asked.
                    for start in range(0, len(names := await self._names()), _SLICE):
                        total += await self._take_slice(names[start : start + _SLICE], pause)
                    await self._set_free()
                    break
            except Exception as error:  # noqa: BLE001 - host meets agent: any object, any error
                logger.debug("records of 3.x could not be taken over now: %s", error)
            await asyncio.sleep(pause)
        if total:
            logger.info("took over %d records that guard-agent 3.x left in Redis", total)
        return total

    async def _names(self) -> list[tuple[Kind, str, str]]:
        """Kind, namespace and key of each record."""
        found: list[tuple[Kind, str, str]] = []
        for kind, namespace, begin in _PLACES:
            for name in await self._host.call("keys", f"{namespace}:{begin}*") or ():
                text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
                found.append((kind, namespace, begin + text.partition(f"{namespace}:{begin}")[2]))
        return found

    async def _take_slice(self, names: list[tuple[Kind, str, str]], pause: float) -> int:
        taken = 0
        for kind, namespace, key in names:
            if (namespace, key) in self._taken:
                continue
            fields = _read(await self._host.call("get_key", namespace, key))
            if fields is None:
                continue  # somebody else's, or gone meanwhile; it ends by itself
            if kind == "metric":
                # Which had no key in 3.x: the same record has to get the same one again.
                name = uuid.uuid5(uuid.NAMESPACE_OID, f"{namespace}:{key}")
                fields.setdefault("idempotency_key", str(name))
            while not self._take(kind, fields):
                await self._commit_all(pause)
            self._taken.add((namespace, key))
            taken += 1
        await self._commit_all(pause)
        for _, namespace, key in names:
            if (namespace, key) in self._taken:
                await self._host.call("delete", namespace, key)
        return taken

    async def _commit_all(self, pause: float) -> None:
        while not await self._commit():  # noqa: ASYNC110 - a store tells nobody that it is back
            await asyncio.sleep(pause)

    # --- one process at a time --------------------------------------------------------------------

    @property
    def _claim_key(self) -> str:
        config = getattr(self._host.handler, "config", None)
        return f"{getattr(config, 'redis_prefix', '') or ''}{CLAIM}"

    async def _claim(self) -> bool:
        """Whether this process may; without a client of Redis nobody can be kept from it."""
        if not self._host.offers("get_connection"):
            return True
        return bool(await self._ask("set", self._claim_key, self._owner, nx=True, ex=_CLAIM_TTL))

    async def _set_free(self) -> None:
        if self._host.offers("get_connection"):
            await self._ask("delete", self._claim_key)

    async def _ask(self, command: str, *args: Any, **options: Any) -> Any:
        """Run a command of the client behind the handler."""
        connection = self._host.handler.get_connection()
        function = _ask if hasattr(connection, "__aenter__") else _ask_blocking
        return await self._host.run(function, connection, command, args, options)


async def _ask(connection: Any, command: str, args: Any, options: Any) -> Any:
    async with connection as client:
        return await getattr(client, command)(*args, **options)


def _ask_blocking(connection: Any, command: str, args: Any, options: Any) -> Any:
    with connection as client:
        return getattr(client, command)(*args, **options)


def _read(value: Any) -> dict[str, Any] | None:
    try:
        fields = orjson.loads(value)
    except (ValueError, TypeError):
        return None
    return fields if isinstance(fields, dict) else None
