"""What a Redis manager or a client of the host application knows about its server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis import Redis as BlockingRedis
from redis import SSLConnection as BlockingSSLConnection
from redis.asyncio import Redis
from redis.asyncio.connection import SSLConnection

from guard_agent import GuardAgentError
from guard_agent_redis.settings import RedisSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

_TAKEN = {
    "host",
    "port",
    "path",
    "db",
    "username",
    "password",
    "credential_provider",
    "socket_keepalive",
    "socket_keepalive_options",
    "socket_type",
    "ssl_keyfile",
    "ssl_certfile",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_include_verify_flags",
    "ssl_exclude_verify_flags",
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_check_hostname",
    "ssl_min_version",
    "ssl_ciphers",
}
"""Where the server is and how to be let in; how long to wait is the store's business."""


class Adopted:
    """Settings for the store, and the connection options of a client where there is one."""

    def __init__(self, settings: RedisSettings, options: dict[str, Any] | None = None) -> None:
        self.settings = settings
        self.options = options


def adopt(handler: Any, section: Mapping[str, Any]) -> Adopted | None:
    """
    Settings for a store on the server that ``handler`` uses, or None for any other object.

    Args:
        handler: a Redis manager of the Guard engine (``config.redis_url``, ``config.redis_prefix``)
            or a client of redis-py, with or without asyncio, also one from a Sentinel.
        section: what the owner has set for the store; it goes before what the handler says.

    Raises:
        GuardAgentError: the handler has no server, or one that cannot be used.
        ValidationError: of pydantic, for an address that the store does not know.
    """
    if isinstance(handler, (Redis, BlockingRedis)):
        return _of_client(handler, section)
    config: Any = getattr(handler, "config", None)
    if not hasattr(config, "redis_url"):
        return None
    url = config.redis_url
    if not getattr(config, "enable_redis", True) or not url:
        msg = "its Redis is switched off"
        raise GuardAgentError(msg)
    found = {"url": str(url), "prefix": _prefix(getattr(config, "redis_prefix", ""))}
    return Adopted(RedisSettings.model_validate({**found, **section}))


def _prefix(prefix: object) -> str:
    """Below the prefix of the application, so that its rights in the server cover it."""
    # Braces would mark another part of the key as the one that chooses the slot.
    text = str(prefix or "").replace("{", "").replace("}", "").rstrip(":")
    return f"{text}:guard-agent" if text else "guard-agent"


def _of_client(client: Any, section: Mapping[str, Any]) -> Adopted:
    pool = client.connection_pool
    given: Mapping[str, Any] = pool.connection_kwargs
    options = {key: value for key, value in given.items() if key in _TAKEN and value is not None}
    if issubclass(pool.connection_class, (SSLConnection, BlockingSSLConnection)) or getattr(
        pool, "is_ssl", False
    ):
        options["connection_class"] = SSLConnection
    found: dict[str, Any] = {}
    manager = getattr(pool, "sentinel_manager", None)
    if manager is not None:
        sentinels = [sentinel.connection_pool.connection_kwargs for sentinel in manager.sentinels]
        found["sentinels"] = [_address(sentinel) for sentinel in sentinels]
        found["sentinel_service"] = pool.service_name
        found["sentinel_password"] = next((s.get("password") for s in sentinels), None)
    return Adopted(RedisSettings.model_validate({**found, **section}), options)


def _address(options: Mapping[str, Any]) -> str:
    host = str(options.get("host", "localhost"))
    return f"[{host}]:{options['port']}" if ":" in host else f"{host}:{options['port']}"
