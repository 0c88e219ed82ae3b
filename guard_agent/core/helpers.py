"""Small functions of the public interface."""

from __future__ import annotations

import hashlib
import secrets
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guard_agent.core.config import AgentConfig

REDACTED = "[REDACTED]"
_MAX_DEPTH = 10


def get_current_timestamp() -> datetime:
    """The present time in UTC."""
    return datetime.now(timezone.utc)


def generate_batch_id() -> str:
    """A unique id: Unix milliseconds, a dash, eight random hex digits."""
    return f"{time.time_ns() // 1_000_000}-{secrets.token_hex(4)}"


def hash_ip(ip: str, salt: str = "") -> str:
    """
    The first 16 hex digits of the SHA-256 of address and salt.

    Without a secret salt all IPv4 addresses can be tried within minutes: this hides an address
    from a glance, not from an attacker.
    """
    return hashlib.sha256(f"{ip}{salt}".encode()).hexdigest()[:16]


def truncate_payload(payload: str, max_size: int) -> str:
    """Cut ``payload`` to ``max_size`` characters and say so."""
    if len(payload) <= max_size:
        return payload
    return f"{payload[:max_size]}...[TRUNCATED]"


def sanitize_headers(headers: Any, sensitive_headers: Iterable[str]) -> Any:
    """
    A copy of ``headers`` in which the values of sensitive names are replaced.

    Names are compared without regard to case and surrounding spaces, in nested mappings, lists
    and tuples too. What is nested deeper than ten levels is replaced as a whole. The pipeline
    does not use this function: its redaction is a plugin.
    """
    names = frozenset(name.strip().lower() for name in sensitive_headers)
    return _sanitize(headers, names, 0)


def _sanitize(value: Any, names: frozenset[str], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        return REDACTED
    if isinstance(value, dict):
        return {
            key: REDACTED
            if _name_of(key).strip().lower() in names
            else _sanitize(item, names, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_sanitize(item, names, depth + 1) for item in value]
    return value


def _name_of(key: Any) -> str:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)


def validate_config(config: AgentConfig) -> list[str]:
    """
    What is doubtful about a configuration that is valid as such; empty when nothing is.

    Wrong values never get this far: `AgentConfig` refuses them.
    """
    doubts = []
    if len(config.api_key) < 10:
        doubts.append("api_key must be at least 10 characters long")
    if config.buffer_size > config.max_buffer_records:
        doubts.append("buffer_size is larger than max_buffer_records: only the watermark flushes")
    return doubts
