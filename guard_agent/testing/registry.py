"""A registry for tests: the built-in plugins and what the test brings, nothing from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard_agent import BufferStore, Enricher, RuleSource, Transport, hookimpl
from guard_agent.core.assembly.registry import Registry
from guard_agent.plugins import console, disk, file, handler, jsonl, memory, truncate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guard_agent.core.interfaces import Plugin


class InCode:
    """Offers classes through the hooks, as a plugin's module does; for `Registry.register`."""

    def __init__(self, classes: Iterable[type[Plugin]]) -> None:
        self._classes = tuple(classes)

    @hookimpl
    def guard_agent_transports(self) -> list[type[Transport]]:
        return [cls for cls in self._classes if issubclass(cls, Transport)]

    @hookimpl
    def guard_agent_buffer_stores(self) -> list[type[BufferStore]]:
        return [cls for cls in self._classes if issubclass(cls, BufferStore)]

    @hookimpl
    def guard_agent_rule_sources(self) -> list[type[RuleSource]]:
        return [cls for cls in self._classes if issubclass(cls, RuleSource)]

    @hookimpl
    def guard_agent_enrichers(self) -> list[type[Enricher]]:
        return [cls for cls in self._classes if issubclass(cls, Enricher)]


def isolated_registry(*classes: type[Plugin]) -> Registry:
    """
    The built-in plugins and ``classes``, each under its own name, which goes before a built-in one.

    What is installed in the environment is neither looked at nor imported.
    """
    registry = Registry()
    names = {cls.name for cls in classes}
    for module in (console, disk, file, handler, jsonl, memory, truncate):
        name = module.__name__.rpartition(".")[2]
        if name not in names:
            registry.register(module, name=name, distribution="guard-agent")
    for name in sorted(names):
        plugin = InCode(cls for cls in classes if cls.name == name)
        registry.register(plugin, name=name, distribution="(test)")
    return registry
