"""``guard-agent store``: what waits in a store that outlives the process."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime, timezone
from typing import IO, TYPE_CHECKING, Any

import click

from guard_agent import Level
from guard_agent.cli.output import json_option, print_json, print_table
from guard_agent.cli.setup import Setup, ends_with_problems, setup_options
from guard_agent.cli.storage import Storage
from guard_agent.core.agent import Agent
from guard_agent.core.assembly.composition import compose
from guard_agent.core.logs import one_line
from guard_agent.plugins.console import as_json as record_as_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from guard_agent import AgentStatus, DestinationDepth, Record
    from guard_agent.core.delivery.calls import SafeStore

_PART = 500
_LOOK_EVERY = 0.2
_CALL = 60.0

_destination_option: Callable[[Any], Any] = click.option(
    "--destination", metavar="NAME", help="One of the transports; else all of them."
)
_dead_option: Callable[[Any], Any] = click.option(
    "--dead", is_flag=True, help="What was refused for good, instead of what waits."
)


@click.group()
def command() -> None:
    """What waits in a store that outlives the process. The agent may run meanwhile."""


@command.command()
@setup_options
@_destination_option
@_dead_option
@json_option
@ends_with_problems
def ls(setup: Setup, destination: str | None, dead: bool, as_json: bool) -> None:
    """How much waits for each destination; with --dead each record that was refused for good."""
    storage = Storage(setup, destination)
    if not dead:
        depths = storage.run(lambda store: store.stats())
        _print_depths({name: depths[name] for name in storage.chosen}, as_json=as_json)
        return

    async def look(store: SafeStore) -> list[tuple[str, Record, str]]:
        return [
            (name, letter.record, letter.reason)
            for name in storage.chosen
            for letter in await store.dead_letters(name)
        ]

    found = storage.run(look)
    if as_json:
        print_json([_described(name, record, reason) for name, record, reason in found])
    elif found:
        head = ("DESTINATION", "ID", "KIND", "ACCEPTED", "REASON")
        rows = [
            (name, one_line(r.id), r.kind, _moment(r.accepted_at), one_line(reason))
            for name, r, reason in found
        ]
        print_table([head, *rows])
    else:
        click.echo("There are none.")


@command.command()
@setup_options
@_destination_option
@_dead_option
@click.option(
    "--output",
    type=click.Path(dir_okay=False, writable=True, allow_dash=True),
    default="-",
    help="Write to this file; else to standard output.",
)
@ends_with_problems
def export(setup: Setup, destination: str | None, dead: bool, output: str) -> None:
    """
    Write what waits, as one JSON object a line, and leave it in the store.

    Each has the destination, id, kind and time of acceptance, and the record as it would be sent.
    """
    storage = Storage(setup, destination)

    async def write(store: SafeStore, file: IO[str]) -> int:
        depths = await store.stats()
        total = sum(
            depths[name].buried if dead else depths[name].pending for name in storage.chosen
        )
        written = 0
        with _progress(total, "exported", hide=on_terminal) as bar:
            for name in storage.chosen:
                source = _dead_letters(store, name) if dead else _waiting(store, name)
                async for record, reason in source:
                    file.write(json.dumps(_described(name, record, reason)) + "\n")
                    written += 1
                    bar.update(1)
        return written

    on_terminal = output == "-" and sys.stdout.isatty()
    with click.open_file(output, "w", encoding="utf-8") as file:
        count = storage.run(lambda store: write(store, file))
    click.echo(f"{count} records written", err=True)


@command.command()
@setup_options
@_destination_option
@click.option("--limit", type=click.IntRange(min=0), help="At most so many, the oldest.")
@ends_with_problems
def replay(setup: Setup, destination: str | None, limit: int | None) -> None:
    """Have the agent send once more what was refused: the one that runs now, or the next."""
    storage = Storage(setup, destination)

    async def replay(store: SafeStore) -> dict[str, int]:
        left = sys.maxsize if limit is None else limit
        done = {}
        for name in storage.chosen:
            done[name] = await store.replay(name, left)
            left -= done[name]
        return done

    for name, count in storage.run(replay).items():
        click.echo(f"{name}: {count} wait to be sent again")


@command.command()
@setup_options
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Give up when nothing was delivered for so long.",
)
@json_option
@ends_with_problems
def drain(setup: Setup, patience: float, as_json: bool) -> None:
    """
    Deliver what waits, with an agent of this command's own, and end.

    Ends with 1 when something is left. What a running agent holds is waited for.
    """
    storage = Storage(setup)
    config, note = setup.load()
    if note:
        click.echo(note, err=True)
        raise SystemExit(1)
    storage.run(lambda store: store.stats())  # else an agent would look into its memory instead
    # What waits was redacted when it was taken, and nothing is taken here: a broken enricher is no
    # reason to leave it.
    update = {"enrichers": [], "rules": [], "allow_unredacted": True}
    agent = Agent(compose(config.model_copy(update=update), setup.registry))
    agent.start()
    try:
        status = _drain(agent, patience)
    finally:
        agent.stop().result(_CALL)
    facts = {
        name: {key: books[key] for key in ("delivered", "pending", "dead_letters", "last_error")}
        for name, books in status.destinations.items()
    }
    away = status.level == Level.MEMORY.value
    left = away or any(books["pending"] for books in status.destinations.values())
    if as_json:
        print_json({"drained": not left, "destinations": facts, "errors": status.errors})
    else:
        for name, books in status.destinations.items():
            rest = f", {books['pending']} are left" if books["pending"] else ""
            why = f": {books['last_error']}" if books["pending"] and books["last_error"] else ""
            click.echo(f"{name}: {books['delivered']} delivered{rest}{one_line(why)}")
        for error in status.errors:
            click.echo(one_line(error), err=True)
    raise SystemExit(1 if left else 0)


def _drain(agent: Agent, patience: float) -> AgentStatus:
    """Until the store is empty, or nothing was delivered for ``patience`` seconds."""
    status = _flushed(agent)
    left, patient_until = _pending(status), time.monotonic() + patience
    with _progress(left, "delivered", hide=False) as bar:
        while left and time.monotonic() < patient_until:
            time.sleep(_LOOK_EVERY)
            status = _flushed(agent)
            before, left = left, _pending(status)
            if left < before:
                patient_until = time.monotonic() + patience
                bar.update(before - left)
    return status


def _flushed(agent: Agent) -> AgentStatus:
    agent.flush().result(_CALL)
    status: AgentStatus = agent.look().result(_CALL)
    return status


def _pending(status: AgentStatus) -> int:
    return sum(books["pending"] for books in status.destinations.values())


def _progress(total: int, label: str, *, hide: bool) -> Any:
    """A bar on standard error, when that is a terminal; else nothing."""
    hidden = hide or not sys.stderr.isatty()
    return click.progressbar(length=total, label=label, file=sys.stderr, hidden=hidden)


async def _waiting(store: SafeStore, destination: str) -> AsyncIterator[tuple[Record, None]]:
    position: str | None = None
    while True:
        peeked = await store.peek(destination, position, _PART)
        for record in peeked.records:
            yield record, None
        if not peeked.records and peeked.position == position:
            return
        position = peeked.position


async def _dead_letters(store: SafeStore, destination: str) -> AsyncIterator[tuple[Record, str]]:
    for letter in await store.dead_letters(destination):
        yield letter.record, letter.reason


def _print_depths(depths: Mapping[str, DestinationDepth], *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                name: {
                    "waiting": depth.pending,
                    "leased": depth.leased,
                    "dead": depth.buried,
                    "bytes": depth.bytes,
                    "oldest": None if depth.oldest is None else _moment(depth.oldest),
                }
                for name, depth in depths.items()
            }
        )
        return
    rows = [
        (
            name,
            str(depth.pending),
            str(depth.leased),
            str(depth.buried),
            str(depth.bytes),
            "-" if depth.oldest is None else _moment(depth.oldest),
        )
        for name, depth in depths.items()
    ]
    print_table([("DESTINATION", "WAITING", "LEASED", "DEAD", "BYTES", "OLDEST"), *rows])


def _described(destination: str, record: Record, reason: str | None) -> dict[str, Any]:
    """A record for a program."""
    try:
        content = json.loads(record_as_json(record))
    except ValueError:  # what was found in the store and is no record
        content = record.payload.decode(errors="replace")
    return {
        "destination": destination,
        "id": record.id,
        "kind": record.kind,
        "accepted_at": _moment(record.accepted_at),
        **({} if reason is None else {"reason": reason}),
        "record": content,
    }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
