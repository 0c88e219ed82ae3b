"""What most commands begin with: which configuration, and without which plugins."""

from __future__ import annotations

import functools
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click

from guard_agent import AgentConfig, ConfigurationError, GuardAgentError
from guard_agent.core.assembly.composition import compose, compose_store
from guard_agent.core.assembly.configfile import PLACEHOLDER, find_file, load_config, read_config
from guard_agent.core.assembly.inspection import SEAMS
from guard_agent.core.assembly.problems import did_you_mean
from guard_agent.core.assembly.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from guard_agent.core.assembly.plan import Plan, Step
    from guard_agent.core.assembly.registry import Provider
    from guard_agent.core.errors import Problem

_P = ParamSpec("_P")
_T = TypeVar("_T")

EX_CONFIG = 78
"""sysexits.h: something is wrong with the configuration."""
_NOT_SET = {"GA305", "GA306", "GA307"}
"""Not set here, though it may well be where the app runs."""
_DEFAULTS = "defaults, no file found"


@dataclass
class Setup:
    """The configuration that a command is about, and the plugins that are installed."""

    path: Path | None
    disabled: frozenset[str]
    no_plugins: bool

    @functools.cached_property
    def registry(self) -> Registry:
        return Registry.from_environment(self._is_disabled)

    @property
    def source(self) -> str:
        """Where the configuration comes from, for people."""
        return str(find_file(self.path) or _DEFAULTS)

    def load(self) -> tuple[AgentConfig, str]:
        """
        The configuration, and a note when a placeholder stands for the key that is missing here.

        Raises:
            ConfigurationError: with everything that is wrong.
        """
        try:
            return self.reduced(load_config(self.path)), ""
        except ConfigurationError as error:
            if not {problem.code for problem in error.problems} <= _NOT_SET:
                raise
            try:
                config = load_config(self.path, api_key=PLACEHOLDER)
            except ConfigurationError:
                raise error from None
            reasons = "; ".join(problem.message for problem in error.problems)
            note = f"There is no api_key here, so a placeholder stands for it: {reasons}"
            return self.reduced(config), note

    def look(self) -> tuple[AgentConfig, tuple[Problem, ...]]:
        """
        The configuration as far as it is right, else the defaults; and what is wrong.

        A key that is missing here is no mistake: it may well be set where the app runs.
        """
        with suppress(ConfigurationError):
            return self.load()[0], ()
        reading = read_config(self.path)
        config = reading.config or AgentConfig(api_key=PLACEHOLDER)
        return self.reduced(config), reading.problems

    def compose(self) -> tuple[Plan, str]:
        """
        What would run, and the note of `load`.

        Raises:
            ConfigurationError: with everything that is wrong, plugins included.
            GuardAgentError: as the constructor of a plugin raised it.
        """
        try:
            config, note = self.load()
        except ConfigurationError:
            raise ConfigurationError(self.problems()) from None
        return compose(config, self.registry), note

    def problems(self) -> list[Problem]:
        """
        Mistakes in the settings, and those that show when the rest of them is composed.

        Raises:
            GuardAgentError: as the constructor of a plugin raised it.
        """
        reading = read_config(self.path)
        found: tuple[Problem, ...] = ()
        if reading.config is not None:
            try:
                found = compose(self.reduced(reading.config), self.registry).problems
            except ConfigurationError as error:
                found = error.problems
        return list(dict.fromkeys([*reading.problems, *found]))

    def compose_store(self) -> tuple[AgentConfig, Step, tuple[str, ...]]:
        """
        The store and its destinations alone: one can look into it when other plugins are broken.

        Raises:
            GuardAgentError: the configuration does not say which store is meant, or it is broken.
        """
        config, note = self.load()
        if note and not config.project_id:
            msg = f"Without project_id the key tells which store is meant. {note}"
            raise GuardAgentError(msg)
        return config, *compose_store(config, self.registry)

    # --- without some plugins ---------------------------------------------------------------------

    def reduced(self, config: AgentConfig) -> AgentConfig:
        """``config`` without what is disabled."""
        if not (self.disabled or self.no_plugins):
            return config
        hidden = {provider.name for provider in self.registry.disabled}
        changes: dict[str, Any] = {}
        for seam in SEAMS:
            named = getattr(config, seam.option)
            if isinstance(named, str):
                if self._is_out(named, hidden):
                    changes[seam.option] = "memory"
            else:
                changes[seam.option] = [name for name in named if not self._is_out(name, hidden)]
        changes["plugins"] = {
            name: section
            for name, section in config.plugins.items()
            if not self._is_out(name, hidden)
        }
        self._check_names(config)
        return config.model_copy(update=changes)

    def _is_out(self, instance: str, hidden: set[str]) -> bool:
        return instance in self.disabled or instance.partition("/")[0] in hidden

    def _is_disabled(self, provider: Provider) -> bool:
        return provider.name in self.disabled or (self.no_plugins and not provider.is_built_in)

    def _check_names(self, config: AgentConfig) -> None:
        known = {provider.name for provider in (*self.registry.providers, *self.registry.disabled)}
        known |= set(named_in(config))
        for name in sorted(self.disabled - known):
            msg = f"nothing is called {name!r}{did_you_mean(name, known)}"
            raise click.BadParameter(msg, param_hint="--disable")


def named_in(config: AgentConfig) -> list[str]:
    """The instances that a configuration names, in the order in which a record meets them."""
    return [*config.enrichers, config.store, *config.transports, *config.rules]


def setup_options(command: Callable[..., _T]) -> Callable[..., _T]:
    """Give a command the options that make its first argument, a `Setup`."""

    @click.option(
        "--config",
        "path",
        type=click.Path(path_type=Path),
        help="Configuration file; else the one that an agent started here would use.",
    )
    @click.option(
        "--disable",
        metavar="NAME",
        multiple=True,
        help="Do without this plugin, and do not import it. May be repeated.",
    )
    @click.option(
        "--no-plugins", is_flag=True, help="Do without all plugins but those of guard-agent itself."
    )
    @functools.wraps(command)
    def wrapped(
        *args: Any, path: Path | None, disable: tuple[str, ...], no_plugins: bool, **kwargs: Any
    ) -> _T:
        return command(Setup(path, frozenset(disable), no_plugins), *args, **kwargs)

    return wrapped


def ends_with_problems(command: Callable[_P, _T]) -> Callable[_P, _T]:
    """A configuration that is wrong ends the command with 78, and all that is wrong on stderr."""

    @functools.wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return command(*args, **kwargs)
        except GuardAgentError as error:
            fail(error)

    return wrapped


def fail(error: GuardAgentError) -> NoReturn:
    """End the command because of the configuration."""
    click.echo(error, err=True)
    if isinstance(error, ConfigurationError):
        hint(error.problems)
    raise SystemExit(EX_CONFIG) from None


def hint(problems: Iterable[Problem]) -> None:
    """Say where more can be read about the codes."""
    codes = sorted({problem.code for problem in problems})
    if codes:
        click.echo(f"\n'guard-agent explain {codes[0]}' says more about a code.", err=True)
