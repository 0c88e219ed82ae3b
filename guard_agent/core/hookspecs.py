"""
The hooks through which plugins hand their classes to the agent.

pluggy is the registration bus only: hooks are called once per plugin at startup, do no I/O, and
return classes. The data path runs on the instances, in the order of the configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from guard_agent.core.interfaces import (
        Aggregator,
        BufferStore,
        Enricher,
        RuleSource,
        Transport,
    )

    F = TypeVar("F", bound=Callable[..., object])

PROJECT = "guard_agent"

_hookspec = pluggy.HookspecMarker(PROJECT)
_hookimpl = pluggy.HookimplMarker(PROJECT)


def hookimpl(function: F) -> F:
    """Mark a function as a plugin's implementation of one of the hooks below."""
    return _hookimpl(function)


@_hookspec
def guard_agent_transports() -> Iterable[type[Transport]]:  # type: ignore[empty-body]  # a spec
    """Return the transport classes of this plugin."""


@_hookspec
def guard_agent_buffer_stores() -> Iterable[type[BufferStore]]:  # type: ignore[empty-body]  # a spec
    """Return the buffer store classes of this plugin."""


@_hookspec
def guard_agent_rule_sources() -> Iterable[type[RuleSource]]:  # type: ignore[empty-body]  # a spec
    """Return the rule source classes of this plugin."""


@_hookspec
def guard_agent_enrichers() -> Iterable[type[Enricher]]:  # type: ignore[empty-body]  # a spec
    """Return the enricher classes of this plugin."""


@_hookspec
def guard_agent_aggregators() -> Iterable[type[Aggregator]]:  # type: ignore[empty-body]  # a spec
    """Return the aggregator classes of this plugin."""
