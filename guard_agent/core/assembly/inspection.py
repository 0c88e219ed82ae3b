"""
Whether the hooks and classes of a plugin can do what the seams ask for.

Only what can be seen without an instance is checked here: attributes, ``async``, signatures. What
is found has a code of `problems` and is not fatal in itself: what a broken plugin costs is decided
where the agent is composed.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Literal, TypeAlias

from guard_agent.core.assembly.problems import closest, did_you_mean, listed
from guard_agent.core.errors import Problem
from guard_agent.core.hookspecs import PROJECT
from guard_agent.core.interfaces import (
    Aggregator,
    BufferStore,
    Enricher,
    Level,
    Plugin,
    PluginSettings,
    RuleSource,
    Stage,
    Transport,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ComponentKind: TypeAlias = Literal["aggregator", "enricher", "store", "transport", "rule source"]


@dataclass(frozen=True, slots=True)
class Seam:
    """One of the places where plugins go."""

    kind: ComponentKind
    base: type[Plugin]
    hook: str
    option: str
    """The attribute of `AgentConfig` that names plugins for it."""
    switch: str = ""
    """The setting behind it, when that has another name."""

    @property
    def setting(self) -> str:
        return self.switch or self.option

    @property
    def a_kind(self) -> str:
        return f"an {self.kind}" if self.kind[0] in "aeiou" else f"a {self.kind}"


AGGREGATOR = Seam(
    "aggregator", Aggregator, "guard_agent_aggregators", "aggregators", switch="rollup"
)
ENRICHER = Seam("enricher", Enricher, "guard_agent_enrichers", "enrichers")
STORE = Seam("store", BufferStore, "guard_agent_buffer_stores", "store")
TRANSPORT = Seam("transport", Transport, "guard_agent_transports", "transports")
RULE_SOURCE = Seam("rule source", RuleSource, "guard_agent_rule_sources", "rules")
SEAMS = (AGGREGATOR, ENRICHER, STORE, TRANSPORT, RULE_SOURCE)
"""In the order in which a record meets them."""


_PREFIX = "guard_agent_"
_HOOKS = {seam.hook for seam in SEAMS}
_Defect: TypeAlias = tuple[str, str, str]
"""Code, what is wrong, how to mend it."""


def check_hooks(plugin: object) -> Iterator[_Defect]:
    """Functions of a plugin that were meant to be hooks but would not be called, or not rightly."""
    offered = False
    for name in dir(plugin):
        found = inspect.getattr_static(plugin, name, None)
        if isinstance(found, (staticmethod, classmethod)):
            found = found.__func__
        if not isinstance(found, FunctionType):
            continue
        options = getattr(found, f"{PROJECT}_impl", None)
        if isinstance(options, dict):
            offered = True
            yield from _hook(options.get("specname") or name, getattr(plugin, name))
        elif name.startswith(_PREFIX) and closest(name, _HOOKS):
            offered = True
            yield (
                "GA105",
                f"has a function {name} that is not marked as a hook",
                f"put @hookimpl above def {name}: from guard_agent import hookimpl",
            )
    if not offered:
        what = "has no hook, so it provides nothing"
        if inspect.isclass(plugin) and issubclass(plugin, Plugin):
            what = f"refers to the class {plugin.__name__} itself, not to a module with hooks"
        fix = f"let the entry point refer to a module that defines one of {listed(_HOOKS)}"
        yield "GA114", what, fix


def _hook(name: str, function: Callable[..., object]) -> Iterator[_Defect]:
    if name not in _HOOKS:
        yield (
            "GA104",
            f"marks {name} as a hook, which does not exist{did_you_mean(name, _HOOKS)}",
            f"rename it to {closest(name, _HOOKS) or 'one of ' + listed(_HOOKS)}",
        )
        return
    fix = f"write: def {name}(): return [MyClass]"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        yield "GA106", f"has a hook {name} that is 'async def'", fix
        return
    needed = [
        str(parameter)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        yield "GA106", f"has a hook {name} that takes arguments ({', '.join(needed)})", fix


def check_class(cls: type[Plugin], seam: Seam, name: str, provider: str) -> list[Problem]:
    """
    What keeps ``cls`` from serving as ``seam``; empty when nothing does.

    ``name`` is the entry point's name, ``provider`` the distribution for the messages.
    """
    return [
        Problem(code, f"{seam.kind} {cls.__qualname__} of {provider}: {what}", fix, fatal=False)
        for code, what, fix in _defects(cls, seam, name)
    ]


def _defects(cls: type[Plugin], seam: Seam, name: str) -> Iterator[_Defect]:
    yield from _attributes(cls, seam, name)
    yield from _settings(cls)
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        wanted = ", ".join(_form(seam.base, method) for method in missing)
        yield (
            "GA111",
            f"does not define {', '.join(missing)}",
            f"define {wanted} as the docstring of guard_agent.{seam.base.__name__} says",
        )
    for method in [m for m in dir(seam.base) if m == "__init__" or not m.startswith("_")]:
        ours = inspect.getattr_static(seam.base, method)
        theirs = inspect.getattr_static(cls, method)
        if ours is theirs or method in missing:
            continue
        if isinstance(ours, property):
            yield from _property(theirs, method)
        elif isinstance(ours, FunctionType):
            yield from _method(ours, theirs, getattr(cls, method, None), seam, method)


def _attributes(cls: type[Plugin], seam: Seam, name: str) -> Iterator[_Defect]:
    found = inspect.getattr_static(cls, "name", None)
    if found != name:
        state = "has no attribute 'name'" if found is None else f"has the name {found!r}"
        yield (
            "GA109",
            f"{state}, but its entry point is called {name!r}",
            f"write name = {name!r} in the class, or rename the entry point",
        )
    if seam is ENRICHER and not isinstance(inspect.getattr_static(cls, "stage", None), Stage):
        yield (
            "GA109",
            "does not say at which stage it works",
            "write stage = Stage.DERIVE, Stage.REDACT or Stage.SEAL in the class",
        )
    if seam is STORE and not isinstance(inspect.getattr_static(cls, "level", None), Level):
        yield (
            "GA109",
            "has a level that is none",
            "write level = Level.MEMORY or Level.JOURNAL in the class",
        )


def _settings(cls: type[Plugin]) -> Iterator[_Defect]:
    settings = inspect.getattr_static(cls, "Settings", None)
    if not (inspect.isclass(settings) and issubclass(settings, PluginSettings)):
        yield (
            "GA113",
            "its Settings are not a subclass of PluginSettings",
            "write class Settings(PluginSettings) in the class",
        )
    elif settings.model_config.get("extra") != "forbid":
        yield (
            "GA113",
            "its Settings take unknown settings, so a misspelt one would go unnoticed",
            "remove 'extra' from the model_config of its Settings",
        )


def _property(theirs: object, method: str) -> Iterator[_Defect]:
    if isinstance(theirs, (FunctionType, staticmethod, classmethod)):
        yield (
            "GA111",
            f"{method} is a method, but it is read like an attribute",
            f"put @property above def {method}",
        )


def _method(
    ours: FunctionType, theirs: object, function: object, seam: Seam, method: str
) -> Iterator[_Defect]:
    if not callable(function):
        yield (
            "GA111",
            f"{method} is no method but {type(theirs).__name__}",
            f"define {_form(seam.base, method)}",
        )
        return
    plain = inspect.unwrap(function)
    wanted_async = inspect.iscoroutinefunction(ours)
    if inspect.isasyncgenfunction(plain):
        yield "GA110", f"{method} contains 'yield'", f"let {method} return its result once"
        return
    if wanted_async and not inspect.iscoroutinefunction(plain):
        yield (
            "GA110",
            f"{method} is not 'async def'",
            f"write async def {method}; it runs on the agent's event loop and must not block it",
        )
    elif not wanted_async and inspect.iscoroutinefunction(plain):
        yield (
            "GA110",
            f"{method} is 'async def', but it is called synchronously",
            f"write def {method} without async",
        )
    # Seen from an instance: a plain function also takes ``self``.
    bound = () if isinstance(theirs, (staticmethod, classmethod)) else (None,)
    if refusal := _refusal(ours, function, bound):
        form = _form(seam.base, method)
        yield "GA111", f"{method} cannot be called as {form}: {refusal}", f"define it as {form}"


def _refusal(ours: FunctionType, theirs: object, bound: tuple[None, ...]) -> str | None:
    """Why ``theirs`` does not take every call that ``ours`` takes."""
    try:
        signature = inspect.signature(theirs)  # type: ignore[arg-type]  # is callable: checked
    except (TypeError, ValueError):
        return None  # written in C and without a signature: only a call can tell
    parameters = list(inspect.signature(ours).parameters.values())[1:]
    keyword = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    plain = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    optional = [p.name for p in parameters if p.default is not p.empty]
    required = [name for name in plain if name not in optional]
    calls = (
        (plain, keyword),
        (required, [name for name in keyword if name not in optional]),
        (required, sorted({*keyword, *optional})),
    )
    try:
        for positions, names in calls:
            signature.bind(*bound, *positions, **dict.fromkeys(names))
    except TypeError as error:
        return str(error)
    return None


def _form(base: type[Plugin], method: str) -> str:
    """How a method is declared, without annotations: ``async def send(self, batch)``."""
    function = inspect.getattr_static(base, method)
    if isinstance(function, property):
        return f"the property {method}"
    signature = inspect.signature(function)
    bare = signature.replace(
        parameters=[p.replace(annotation=p.empty) for p in signature.parameters.values()],
        return_annotation=signature.empty,
    )
    return f"{'async ' if inspect.iscoroutinefunction(function) else ''}def {method}{bare}"
