"""Whether a server is fit for the store, and what in its settings can lose records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from guard_agent_redis.errors import ServerDownError, StoreUnavailableError, code_of, translate

if TYPE_CHECKING:
    from guard_agent_redis.link import Link

OLDEST = (6, 2)


async def check_version(link: Link) -> None:
    """
    Refuse a server older than Redis 6.2.

    Raises:
        StoreUnavailableError: with the version of the server.
    """
    info = await _info(link, "server")
    version = str(info.get("redis_version", ""))
    numbers = version.split(".")
    if len(numbers) < 2 or not (numbers[0].isdigit() and numbers[1].isdigit()):
        return  # a user without INFO, or a server that hides it: the first operation will tell
    if (int(numbers[0]), int(numbers[1])) < OLDEST:
        msg = (
            f"{link.where} is Redis {version}; the store needs Redis 6.2 or newer, or Valkey "
            "(older ones have no XAUTOCLAIM)"
        )
        raise StoreUnavailableError(msg)


async def find_hazards(link: Link) -> tuple[str, ...]:
    """What can lose records although the server said they are in. Empty when it does not tell."""
    hazards = []
    policy = str((await _info(link, "memory")).get("maxmemory_policy", ""))
    if policy.startswith("allkeys"):
        hazards.append(
            f"{link.where} may evict the store (maxmemory-policy {policy}); "
            "use noeviction, or a volatile- policy"
        )
    persistence = await _info(link, "persistence")
    if persistence.get("aof_enabled") == 0 and await _snapshots_off(link):
        hazards.append(
            f"{link.where} saves nothing to disk, a restart of it loses what waits "
            "(appendonly no, save is empty)"
        )
    return tuple(hazards)


async def _snapshots_off(link: Link) -> bool:
    answer = await _optional(link, "CONFIG", "GET", "save")
    values = list(answer.values()) if isinstance(answer, dict) else list(answer or [])[1:]
    return [value in (b"", "") for value in values] == [True]


async def _info(link: Link, section: str) -> dict[str, Any]:
    answer = await _optional(link, "INFO", section)
    return answer if isinstance(answer, dict) else {}


async def _optional(link: Link, *command: str) -> Any:
    """The answer, or None when this user may not ask, or the server does not know the command."""
    try:
        return await link.call(*command)
    except ServerDownError:
        raise
    except RedisError as error:
        if code_of(error) in ("NOAUTH", "WRONGPASS"):
            raise translate(error, link.where) from error
        return None
