"""The command ``guard-agent``: what is installed, what would run, and what was refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from guard_agent import AgentConfig, ConfigurationError, GuardAgentError, __version__
from guard_agent.cli.installed import InstalledCommands

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from guard_agent.core.assembly.plan import Plan
    from guard_agent.core.assembly.registry import Provider, Registry

_T = TypeVar("_T")

EX_CONFIG = 78  # sysexits.h: something is wrong with the configuration
EX_UNAVAILABLE = 69  # the store cannot be reached
_PLACEHOLDER = "placeholder-for-a-missing-key"
_NOT_SET = {"GA305", "GA306", "GA307"}  # not set here, though it may well be where the app runs

_config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    help="Configuration file; else the one that an agent started here would use.",
)


@click.group(cls=InstalledCommands)
@click.version_option(__version__, prog_name="guard-agent")
def main() -> None:
    """Look at the telemetry agent: its plugins, its configuration, and what was refused."""
    # Problems are part of what the commands print; they need not be logged as well.
    logging.getLogger("guard_agent").addHandler(logging.NullHandler())


@main.command()
@_config_option
def plugins(path: Path | None) -> None:
    """List the plugins that are installed, and which are in use."""
    from guard_agent.core.assembly.inspection import SEAMS
    from guard_agent.core.assembly.registry import Registry

    try:
        config, _ = _load(path)
    except GuardAgentError as error:
        click.echo(f"{error}\nThe list shows what the defaults use.\n", err=True)
        config = AgentConfig(api_key=_PLACEHOLDER)
    used = {
        instance.partition("/")[0]
        for seam in SEAMS
        for instance in _as_list(getattr(config, seam.option))
    }
    registry = Registry.from_environment()
    rows = [_row(registry, provider, used) for provider in registry.providers]
    missing = used - {provider.name for provider in registry.providers}
    rows += [(name, "-", "-", "-", "missing: named, but not installed") for name in sorted(missing)]
    for line in _aligned([("NAME", "KIND", "DISTRIBUTION", "VERSION", "STATE"), *rows]):
        click.echo(line)


@main.command()
@_config_option
def plan(path: Path | None) -> None:
    """Show what would run, in which order, and why it is safe."""
    from guard_agent.core.assembly.composition import compose
    from guard_agent.core.assembly.configfile import find_file

    try:
        config, note = _load(path)
        text = compose(config).explain()
    except GuardAgentError as error:
        click.echo(error, err=True)
        raise SystemExit(EX_CONFIG) from None
    click.echo(f"Configuration: {find_file(path) or 'defaults, no file found'}")
    if note:
        click.echo(note)
    click.echo(f"\n{text}")


@main.command()
@_config_option
@click.option("--offline", is_flag=True, help="Look at the configuration only; connect to nothing.")
@click.option("--json", "as_json", is_flag=True, help="For a program to read.")
def check(path: Path | None, offline: bool, as_json: bool) -> None:
    """
    Check the configuration, then whether the store opens and every destination accepts.

    Exits with 0, with 78 when the configuration is wrong, with 1 when something does not work.
    """
    from guard_agent.cli.check import Finding, check
    from guard_agent.core.assembly.composition import compose
    from guard_agent.core.assembly.configfile import find_file

    source = str(find_file(path) or "defaults, no file found")
    try:
        config, note = _load(path)
        plan = compose(config)
    except GuardAgentError as error:
        findings, code = [Finding("configuration", "failed", str(error))], EX_CONFIG
    else:
        where = f"{source}{note and f': {note}'}"
        findings = [Finding("configuration", "note" if note else "ok", where)]
        findings += [Finding("composition", "note", str(problem)) for problem in plan.problems]
        findings += check(plan, connect=not offline and not note)
        code = 1 if any(finding.verdict == "failed" for finding in findings) else 0
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        for line in _aligned([(f.verdict, f.about, f.text) for f in findings]):
            click.echo(line)
    raise SystemExit(code)


@main.group(name="dead-letters")
def dead_letters() -> None:
    """Records that a collector refused for good, in a store that outlives the process."""


_destination_option = click.option(
    "--destination", metavar="NAME", help="One of the transports; else all of them."
)


@dead_letters.command(name="list")
@_config_option
@_destination_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with the record.")
def list_letters(path: Path | None, destination: str | None, as_json: bool) -> None:
    """Show them, oldest first. The agent may run meanwhile."""
    from guard_agent.cli import letters

    found = _asked(path, lambda plan: letters.look(plan, destination))
    if as_json:
        for name, letter in found:
            click.echo(json.dumps(letters.described(name, letter)))
    elif found:
        for line in _aligned(letters.rows(found)):
            click.echo(line)
    else:
        click.echo("There are none.")


@dead_letters.command(name="replay")
@_config_option
@_destination_option
@click.option("--limit", type=click.IntRange(min=0), help="At most so many, the oldest.")
def replay_letters(path: Path | None, destination: str | None, limit: int | None) -> None:
    """Have the agent send them once more: the one that runs now, or the next."""
    from guard_agent.cli import letters

    replayed = _asked(path, lambda plan: letters.replay(plan, destination, limit))
    for name, count in replayed.items():
        click.echo(f"{name}: {count} wait to be sent again")


def _asked(path: Path | None, question: Callable[[Plan], _T]) -> _T:
    """Ask the store of the configuration; what is in the way ends the command."""
    from guard_agent.cli.letters import StoreUnavailableError, UnknownDestinationError
    from guard_agent.core.assembly.composition import compose

    try:
        return question(compose(_load_for_store(path)))
    except UnknownDestinationError as error:
        raise click.BadParameter(str(error), param_hint="--destination") from None
    except GuardAgentError as error:
        click.echo(error, err=True)
        unavailable = isinstance(error, StoreUnavailableError)
        raise SystemExit(EX_UNAVAILABLE if unavailable else EX_CONFIG) from None


def _load(path: Path | None) -> tuple[AgentConfig, str]:
    """The configuration found, with a placeholder when only the key is missing, and a note then."""
    from guard_agent.core.assembly.configfile import load_config

    try:
        return load_config(path), ""
    except ConfigurationError as error:
        if not {problem.code for problem in error.problems} <= _NOT_SET:
            raise
        try:
            config = load_config(path, api_key=_PLACEHOLDER)
        except ConfigurationError:
            raise error from None
        reasons = "; ".join(problem.message for problem in error.problems)
        return config, f"There is no api_key here, so a placeholder stands for it: {reasons}"


def _load_for_store(path: Path | None) -> AgentConfig:
    """The configuration found, when it tells which store is meant."""
    config, note = _load(path)
    if note and not config.project_id:
        msg = f"Without project_id the key tells which store is meant. {note}"
        raise GuardAgentError(msg)
    return config


def _row(registry: Registry, provider: Provider, used: set[str]) -> tuple[str, ...]:
    loaded = registry.load(provider.name)
    kinds = ", ".join(loaded.classes) or "-"
    state = "active" if provider.name in used else "available"
    if loaded.problems:
        state = "broken: " + "; ".join(f"{p.code} {p.message}" for p in loaded.problems)
    return provider.name, kinds, provider.distribution, provider.version or "-", state


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    table = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
