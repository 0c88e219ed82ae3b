"""The command ``guard-agent``: what is installed, what would run, and what was refused."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from guard_agent import AgentConfig, ConfigurationError, GuardAgentError, __version__

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from guard_agent import BufferStore, DeadLetter
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


@click.group()
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
def list_letters(path: Path | None, destination: str | None, *, as_json: bool) -> None:
    """Show them, oldest first. The agent may run meanwhile."""

    async def look(store: BufferStore) -> dict[str, Sequence[DeadLetter]]:
        names = _chosen(store, destination)
        return {name: await store.dead_letters(name) for name in names}

    found = _with_store(path, look)
    if as_json:
        for name, some in found.items():
            for letter in some:
                click.echo(json.dumps(_described(name, letter)))
        return
    letters = [
        (name, (letter.record, letter.reason)) for name, some in found.items() for letter in some
    ]
    if not letters:
        click.echo("There are none.")
        return
    rows = [
        (name, record.id, record.kind, _moment(record.accepted_at), reason)
        for name, (record, reason) in letters
    ]
    for line in _aligned([("DESTINATION", "ID", "KIND", "ACCEPTED", "REASON"), *rows]):
        click.echo(line)


@dead_letters.command()
@_config_option
@_destination_option
@click.option("--limit", type=click.IntRange(min=0), help="At most so many, the oldest.")
def replay(path: Path | None, destination: str | None, limit: int | None) -> None:
    """Have the agent send them once more: the one that runs now, or the next."""

    async def replay(store: BufferStore) -> dict[str, int]:
        left = sys.maxsize if limit is None else limit
        done = {}
        for name in _chosen(store, destination):
            done[name] = await store.replay(name, left)
            left -= done[name]
        return done

    for name, count in _with_store(path, replay).items():
        click.echo(f"{name}: {count} wait to be sent again")


def _with_store(path: Path | None, work: Callable[[BufferStore], Awaitable[_T]]) -> _T:
    """Do ``work`` with the store of the configuration, beside whoever uses it."""
    from guard_agent.core.assembly.composition import compose

    try:
        config, note = _load(path)
        store = compose(config).build().durable
    except GuardAgentError as error:
        click.echo(error, err=True)
        raise SystemExit(EX_CONFIG) from None
    if store is None:
        click.echo(
            f"The store {config.store!r} lives and ends with the process of the app, so ask there: "
            "dead_letters() and replay_dead_letters() of the agent.",
            err=True,
        )
        raise SystemExit(EX_CONFIG)
    if note and not config.project_id:
        click.echo(f"Without project_id the key tells which store is meant. {note}", err=True)
        raise SystemExit(EX_CONFIG)

    async def run() -> _T:
        try:
            await store.open()
            return await work(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except click.ClickException:
        raise
    except Exception as error:  # noqa: BLE001 - plugin meets user: contract of BufferStore
        click.echo(f"The store {config.store!r} is not available: {error}", err=True)
        raise SystemExit(EX_UNAVAILABLE) from None


def _chosen(store: BufferStore, destination: str | None) -> Sequence[str]:
    known = store.context.destinations
    if destination is None:
        return known
    if destination not in known:
        msg = f"there is no destination {destination!r}; there are: {', '.join(known)}"
        raise click.BadParameter(msg, param_hint="--destination")
    return (destination,)


def _described(destination: str, letter: DeadLetter) -> dict[str, Any]:
    record = letter.record
    try:
        content = json.loads(record.payload)
    except ValueError:  # what was found in the store and is no record
        content = record.payload.decode(errors="replace")
    return {
        "destination": destination,
        "id": record.id,
        "kind": record.kind,
        "accepted_at": _moment(record.accepted_at),
        "reason": letter.reason,
        "record": content,
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


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
