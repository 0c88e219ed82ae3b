"""
Finds plugins and imports the ones that are asked for.

A plugin is an entry point of the group ``guard_agent``. Being installed does nothing: only `load`
imports, and only what it is told. Whatever goes wrong in a plugin becomes a `Problem` with a code
of `guard_agent.core.assembly.problems`; problems of one plugin never keep another from loading.
"""

from __future__ import annotations

import configparser
import functools
import inspect
import itertools
import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pluggy

from guard_agent.core import hookspecs
from guard_agent.core.assembly.inspection import (
    SEAMS,
    ComponentKind,
    Seam,
    check_class,
    check_hooks,
)
from guard_agent.core.assembly.problems import closest, describe_exception, did_you_mean, listed
from guard_agent.core.errors import Problem
from guard_agent.core.logs import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from guard_agent.core.interfaces import Plugin

logger = logging.getLogger("guard_agent.registry")

GROUP = "guard_agent"
_CORE = "guard-agent"
_MAX_CLASSES = 100  # an endless generator in a hook must not hang the start


@dataclass(frozen=True, slots=True)
class Provider:
    """Who offers a plugin: an entry point, or an object that was registered in code."""

    name: str
    distribution: str
    version: str
    value: str
    """What the entry point refers to: ``module`` or ``module:attribute``."""
    import_plugin: Callable[[], object] = field(repr=False, compare=False)

    @property
    def label(self) -> str:
        return f"{self.distribution} {self.version}".strip()

    @property
    def is_built_in(self) -> bool:
        """Whether guard-agent itself brings it."""
        return _normal(self.distribution) == _CORE

    def __str__(self) -> str:
        return f"plugin {self.name!r} of {self.label} (entry point {self.name} = {self.value})"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What importing a plugin led to. Problems are not fatal, unless the name is the problem."""

    name: str
    provider: Provider | None = None
    classes: Mapping[ComponentKind, type[Plugin]] = field(default_factory=dict)
    refused: Mapping[ComponentKind, type[Plugin]] = field(default_factory=dict)
    """Classes that did not pass the inspection."""
    problems: tuple[Problem, ...] = ()


class Registry:
    """The plugins that are known, by name."""

    def __init__(self) -> None:
        self.disabled: tuple[Provider, ...] = ()
        """Providers that are installed, but as good as not there."""
        self._providers: dict[str, list[Provider]] = {}
        self._loaded: dict[str, Loaded] = {}
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)

    @classmethod
    def from_environment(cls, is_disabled: Callable[[Provider], bool] | None = None) -> Registry:
        """
        All entry points of the group on ``sys.path``. Nothing is imported.

        With ``is_disabled`` those for which it is true are in `disabled` only.
        """
        registry = cls()
        disabled = []
        for provider in _installed():
            if is_disabled is not None and is_disabled(provider):
                disabled.append(provider)
            else:
                registry._add(provider)
        registry.disabled = tuple(dict.fromkeys(disabled))
        return registry

    def register(self, plugin: object, *, name: str, distribution: str = "(in code)") -> None:
        """
        Add a plugin that is imported already, for applications that do not package theirs.

        ``plugin`` is a module, or any object with functions marked by ``hookimpl``.
        """
        value = getattr(plugin, "__name__", type(plugin).__name__)
        self._add(Provider(name, distribution, "", value, lambda: plugin))
        self._loaded.pop(name, None)

    def _add(self, provider: Provider) -> None:
        providers = self._providers.setdefault(provider.name, [])
        if provider not in providers:
            providers.append(provider)

    @property
    def providers(self) -> tuple[Provider, ...]:
        """Everything that is installed or registered, by name."""
        return tuple(p for name in sorted(self._providers) for p in self._providers[name])

    def load(self, name: str) -> Loaded:
        """
        Import the plugin called ``name`` and ask it for its classes, once.

        Never raises because of a plugin, not even when it calls ``sys.exit``.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> Loaded:
        providers = self._providers.get(name, [])
        if not providers:
            return Loaded(name, problems=(self._unknown(name),))
        if len(providers) > 1:
            # None is imported: which one was meant is the owner's decision, and the second may
            # be there to be taken for the first.
            return Loaded(name, problems=(_ambiguous(name, providers),))
        provider = providers[0]
        try:
            return self._examine(provider.import_plugin(), provider)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # Foreign code: whatever it does, sys.exit() included, costs this plugin only.
            logger.debug("importing %s failed", provider, exc_info=True)
            return Loaded(name, provider, problems=(_not_importable(provider, error),))

    def _examine(self, plugin: object, provider: Provider) -> Loaded:
        problems = [_problem(code, provider, what, fix) for code, what, fix in check_hooks(plugin)]
        classes: dict[ComponentKind, type[Plugin]] = {}
        refused: dict[ComponentKind, type[Plugin]] = {}
        for seam, item in self._call_hooks(plugin, provider, problems):
            if not (inspect.isclass(item) and issubclass(item, seam.base)):
                problems.append(_no_class(seam, item, provider))
            elif seam.kind in classes or seam.kind in refused:
                problems.append(_two_classes(seam, provider))
            elif defects := check_class(item, seam, provider.name, provider.label):
                problems += defects
                refused[seam.kind] = item
            else:
                classes[seam.kind] = item
        return Loaded(provider.name, provider, classes, refused, tuple(problems))

    def _call_hooks(
        self, plugin: object, provider: Provider, problems: list[Problem]
    ) -> list[tuple[Seam, object]]:
        """What the hooks of one plugin return; it is registered only as long as they run."""
        if any(problem.code == "GA106" for problem in problems):
            return []  # pluggy would refuse the registration for the same reason
        try:
            self._manager.register(plugin)
        except pluggy.PluginValidationError as error:
            what = f"was refused: {one_line(error)}"
            problems.append(_problem("GA106", provider, what))
            return []
        try:
            return [
                (seam, item) for seam in SEAMS for item in self._call_hook(seam, provider, problems)
            ]
        finally:
            self._manager.unregister(plugin)

    def _call_hook(self, seam: Seam, provider: Provider, problems: list[Problem]) -> list[object]:
        caller = getattr(self._manager.hook, seam.hook)
        try:
            results = caller()
            if len(results) < len(caller.get_hookimpls()):
                results.append(None)  # which pluggy leaves out
            return [item for result in results for item in _items(result)]
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # As for the import: one hook must not cost more than itself.
            logger.debug("hook %s of %s failed", seam.hook, provider, exc_info=True)
            what = f"raised in its hook {seam.hook}: {describe_exception(error)}"
            fix = "a hook only returns classes; leave everything else to open()"
            problems.append(_problem("GA107", provider, what, fix))
            return []

    def _unknown(self, name: str) -> Problem:
        installed = listed(self._providers)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            message = f"{name!r} is no name of a plugin"
            fix = "write a name such as 'http', or 'http/eu' for an instance of it"
        elif guess := closest(name, self._providers):
            message = f"no plugin {name!r} is installed{did_you_mean(name, self._providers)}"
            fix = f"write {guess!r}; installed are: {installed}"
        else:
            message = f"no plugin {name!r} is installed; installed are: {installed}"
            fix = f"pip install guard-agent-{name}, or take {name!r} out of the configuration"
        if not any(p.is_built_in for p in (*self.providers, *self.disabled)):
            fix += (
                "; guard-agent itself is not installed either, so even its own plugins are "
                "missing: in a checkout install it first, as README.md says"
            )
        return Problem("GA101", message, fix)


def _installed() -> Iterator[Provider]:
    # Not needed before an agent is composed, and `import guard_agent` should be quick.
    import importlib_metadata  # noqa: PLC0415 - keeps the import of the package light

    try:
        # A distribution counts once, the first on the path, even when an editable install or an
        # old egg-info makes it appear twice.
        found = [
            (point.name, point.value, point.dist)
            for point in importlib_metadata.entry_points(group=GROUP)
        ]
    except ValueError:
        # Some versions refuse all entry points when a single one is malformed, whoever's it is.
        found = list(_read_one_by_one())
    for name, value, distribution in found:
        yield Provider(
            name=name,
            distribution=(distribution and distribution.name) or "(unknown)",
            version=(distribution and distribution.version) or "",
            value=value,
            import_plugin=functools.partial(_import, name, value),
        )


def _read_one_by_one() -> Iterator[tuple[str, str, Any]]:
    """Name, value and distribution of each entry point of the group, as the files have them."""
    import importlib_metadata  # noqa: PLC0415 - keeps the import of the package light

    seen: set[str] = set()
    for distribution in importlib_metadata.distributions():
        name = _normal(distribution.name or "")
        if name in seen:
            continue
        seen.add(name)
        parser = configparser.RawConfigParser(delimiters=("=",), strict=False)
        parser.optionxform = str  # type: ignore[assignment,method-assign]  # keeps the case
        try:
            parser.read_string(distribution.read_text("entry_points.txt") or "")
        except configparser.Error:
            logger.debug("the entry points of %s cannot be read", name, exc_info=True)
        if parser.has_section(GROUP):
            for point, value in parser.items(GROUP):
                yield point, value, distribution


def _import(name: str, value: str) -> object:
    import importlib_metadata  # noqa: PLC0415 - keeps the import of the package light

    plugin: object = importlib_metadata.EntryPoint(name, value, GROUP).load()
    return plugin


class _NotIterable:
    """Stands for the result of a hook that cannot be iterated."""

    def __init__(self, result: object) -> None:
        self.result = result


def _items(result: Any) -> list[object]:
    if isinstance(result, (str, bytes)) or inspect.isclass(result):
        return [_NotIterable(result)]
    try:
        iterator = iter(result)
    except TypeError:
        return [_NotIterable(result)]
    return list(itertools.islice(iterator, _MAX_CLASSES))


def _problem(code: str, provider: Provider, what: str, fix: str | None = None) -> Problem:
    """Something wrong with a plugin; it costs the plugin, not the agent."""
    return Problem(code, f"{provider} {what}", fix or _ask_authors(provider), fatal=False)


def _ask_authors(provider: Provider) -> str:
    return (
        f"update {provider.distribution} or report this to its authors; until then take "
        f"{provider.name!r} out of the configuration"
    )


def _ambiguous(name: str, providers: Iterable[Provider]) -> Problem:
    owners = [f"{p.label} ({p.value})" for p in providers]
    return Problem(
        "GA102",
        f"plugin {name!r} is offered by {' and by '.join(owners)}",
        "uninstall all but the one you mean; none of them was imported",
    )


def _two_classes(seam: Seam, provider: Provider) -> Problem:
    return Problem(
        "GA102",
        f"{provider} offers more than one {seam.kind}; the first is taken",
        "return one class of a kind; give the others an entry point of their own",
        fatal=False,
    )


def _not_importable(provider: Provider, error: BaseException) -> Problem:
    what = f"cannot be imported: {describe_exception(error)}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.partition(".")[0]
        fix = (
            f"install what provides the module {top!r} into this environment, or reinstall "
            f"{provider.distribution}"
        )
        return _problem("GA103", provider, what, fix)
    return _problem("GA103", provider, what)


def _no_class(seam: Seam, item: object, provider: Provider) -> Problem:
    fix = f"return a list of subclasses of guard_agent.{seam.base.__name__}: return [MyClass]"
    if isinstance(item, _NotIterable):
        result = item.result
        got = f"the class {result.__name__}" if inspect.isclass(result) else type(result).__name__
        what = f"returned {got} from {seam.hook}, not a list of classes"
    elif isinstance(item, seam.base):
        what = f"returned an instance of {type(item).__name__} from {seam.hook}, not the class"
    elif inspect.isclass(item):
        what = f"returned {item.__name__} from {seam.hook}, which is no {seam.base.__name__}"
    else:
        what = f"returned an object of type {type(item).__name__} from {seam.hook}, not a class"
    return _problem("GA108", provider, what, fix)


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
