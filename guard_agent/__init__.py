"""
Telemetry agent for web apps protected by the Guard middlewares.

Applications use the first group of names, plugins the second. Importing has no effect beyond
defining them: no thread starts, no plugin is loaded, nothing is read. What a name needs is
imported when the name is asked for.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from guard_agent._version import __version__

if TYPE_CHECKING:
    from guard_agent.client import (
        GuardAgentHandler,
        SyncGuardAgentHandler,
        guard_agent,
        stop_agent,
    )
    from guard_agent.core.config import AgentConfig, check_endpoint, state_directory
    from guard_agent.core.delivery.shares import share_out
    from guard_agent.core.errors import (
        BufferFullError,
        ConfigurationError,
        EncryptionConfigError,
        GuardAgentError,
    )
    from guard_agent.core.helpers import (
        generate_batch_id,
        get_current_timestamp,
        hash_ip,
        sanitize_headers,
        truncate_payload,
        validate_config,
    )
    from guard_agent.core.hookspecs import hookimpl
    from guard_agent.core.host_redis import HostRedis
    from guard_agent.core.interfaces import (
        LEASE_SHARE,
        AbsorbFunction,
        Accepted,
        Aggregated,
        AggregateFunction,
        Aggregator,
        Appended,
        Batch,
        BufferStore,
        DeadLetter,
        DestinationDepth,
        DropReason,
        EncodeFunction,
        Enricher,
        EnrichFunction,
        FetchResult,
        Fields,
        Kind,
        Lease,
        Level,
        Partial,
        Paused,
        Peeked,
        PluginContext,
        PluginSettings,
        Priority,
        Record,
        Reject,
        Retry,
        RuleSet,
        RuleSource,
        SendResult,
        Stage,
        TextRules,
        TooLarge,
        Transport,
        Unchanged,
    )
    from guard_agent.core.logs import setup_agent_logging
    from guard_agent.core.models import (
        AgentStatus,
        DynamicRules,
        EventBatch,
        SecurityEvent,
        SecurityMetric,
    )
    from guard_agent.core.protocols import AgentHandlerProtocol, RedisHandlerProtocol
    from guard_agent.core.reentry import mute_thread

__all__ = [
    # for applications
    "guard_agent",
    "stop_agent",
    "GuardAgentHandler",
    "SyncGuardAgentHandler",
    "AgentConfig",
    "SecurityEvent",
    "SecurityMetric",
    "DynamicRules",
    "AgentStatus",
    "EventBatch",
    "GuardAgentError",
    "BufferFullError",
    "ConfigurationError",
    "EncryptionConfigError",
    "AgentHandlerProtocol",
    "RedisHandlerProtocol",
    "generate_batch_id",
    "get_current_timestamp",
    "hash_ip",
    "sanitize_headers",
    "truncate_payload",
    "validate_config",
    "setup_agent_logging",
    "__version__",
    # for plugins
    "hookimpl",
    "Transport",
    "BufferStore",
    "RuleSource",
    "Enricher",
    "Aggregator",
    "AbsorbFunction",
    "AggregateFunction",
    "Aggregated",
    "EncodeFunction",
    "PluginSettings",
    "PluginContext",
    "check_endpoint",
    "state_directory",
    "mute_thread",
    "Kind",
    "Fields",
    "Priority",
    "Record",
    "Batch",
    "SendResult",
    "Accepted",
    "Partial",
    "Retry",
    "Reject",
    "TooLarge",
    "Paused",
    "FetchResult",
    "RuleSet",
    "Unchanged",
    "Lease",
    "Appended",
    "Peeked",
    "LEASE_SHARE",
    "share_out",
    "DestinationDepth",
    "DropReason",
    "DeadLetter",
    "HostRedis",
    "Level",
    "Stage",
    "EnrichFunction",
    "TextRules",
]

# What is named above once more, for the interpreter.
_HOMES = {
    "guard_agent.client": "GuardAgentHandler SyncGuardAgentHandler guard_agent stop_agent",
    "guard_agent.core.config": "AgentConfig check_endpoint state_directory",
    "guard_agent.core.delivery.shares": "share_out",
    "guard_agent.core.errors": (
        "BufferFullError ConfigurationError EncryptionConfigError GuardAgentError"
    ),
    "guard_agent.core.helpers": (
        "generate_batch_id get_current_timestamp hash_ip sanitize_headers truncate_payload "
        "validate_config"
    ),
    "guard_agent.core.hookspecs": "hookimpl",
    "guard_agent.core.host_redis": "HostRedis",
    "guard_agent.core.interfaces": (
        "LEASE_SHARE AbsorbFunction Accepted Aggregated AggregateFunction Aggregator Appended "
        "Batch BufferStore DeadLetter DestinationDepth DropReason EncodeFunction Enricher "
        "EnrichFunction FetchResult Fields Kind Lease Level Partial Paused Peeked PluginContext "
        "PluginSettings Priority Record Reject Retry RuleSet RuleSource SendResult Stage "
        "TextRules TooLarge Transport Unchanged"
    ),
    "guard_agent.core.logs": "setup_agent_logging",
    "guard_agent.core.models": "AgentStatus DynamicRules EventBatch SecurityEvent SecurityMetric",
    "guard_agent.core.protocols": "AgentHandlerProtocol RedisHandlerProtocol",
    "guard_agent.core.reentry": "mute_thread",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
_MODULES = frozenset({"client", "exceptions", "models"})
"""The modules that the documentation of 3.x names."""

_REPLACED = {
    "EventBuffer": "the seam guard_agent.BufferStore; choose one with AgentConfig(store=...)",
    "BufferProtocol": "the seam guard_agent.BufferStore",
    "HTTPTransport": "the plugin guard-agent-http; choose it with AgentConfig(transports=['http'])",
    "TransportProtocol": "the seam guard_agent.Transport",
    "RateLimiter": "the setting AgentConfig.max_requests_per_second",
    "CircuitBreaker": "the core's delivery, which every transport gets without asking",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        value: object = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _REPLACED:
        msg = f"module 'guard_agent' has no attribute {name!r}"
        raise AttributeError(msg)
    msg = f"guard_agent.{name} was part of 3.x; it is replaced by {_REPLACED[name]}"
    # `from guard_agent import ...` asks from inside the import system, and turns an AttributeError
    # into an ImportError without our message.
    if sys._getframe(1).f_globals.get("__name__") == "importlib._bootstrap":  # noqa: SLF001 - who asks
        raise ImportError(msg, name=__name__)
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
