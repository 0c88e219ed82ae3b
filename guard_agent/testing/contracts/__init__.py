"""
Contract suites: what every implementation of a seam must pass, as pytest classes to subclass.

They need pytest and pytest-asyncio, the one for stores also hypothesis, those for transports and
rule sources aiohttp (``pip install guard-agent[testing]`` brings all of them).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import pytest

# Before the import: only then do failing assertions show their values.
_MODULES = (
    "aggregator",
    "base",
    "transport",
    "buffer_store",
    "state_machine",
    "rule_source",
    "enricher",
)
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _MODULES))

from guard_agent.testing.contracts.base import CONTRACT_VERSION  # noqa: E402 - only now rewritten

if TYPE_CHECKING:
    from guard_agent.testing.contracts.aggregator import AggregatorContract
    from guard_agent.testing.contracts.buffer_store import BufferStoreContract
    from guard_agent.testing.contracts.enricher import EnricherContract
    from guard_agent.testing.contracts.rule_source import (
        LocalRuleSourceContract,
        RuleSourceContract,
    )
    from guard_agent.testing.contracts.transport import LocalTransportContract, TransportContract

__all__ = [
    "CONTRACT_VERSION",
    "AggregatorContract",
    "BufferStoreContract",
    "EnricherContract",
    "LocalRuleSourceContract",
    "LocalTransportContract",
    "RuleSourceContract",
    "TransportContract",
]

_HOMES = {
    "AggregatorContract": "aggregator",
    "BufferStoreContract": "buffer_store",
    "EnricherContract": "enricher",
    "LocalRuleSourceContract": "rule_source",
    "LocalTransportContract": "transport",
    "RuleSourceContract": "rule_source",
    "TransportContract": "transport",
}


def __getattr__(name: str) -> object:
    """Import a suite when it is asked for, so that each needs only what it needs."""
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    found: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found
