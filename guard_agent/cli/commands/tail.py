"""``guard-agent tail``: what a running agent takes, as it comes into the store."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

import click

from guard_agent.cli.setup import Setup, ends_with_problems, setup_options
from guard_agent.cli.storage import Storage, StoreUnavailableError
from guard_agent.plugins.console import as_json, as_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from guard_agent import Record
    from guard_agent.core.delivery.calls import SafeStore

_PART = 500
_INTERVAL = 0.1
_RETRY = 1.0
_REMEMBERED = 20_000


@click.command()
@setup_options
@click.option("--destination", metavar="NAME", help="What waits for this one; else for any.")
@click.option("--all", "from_start", is_flag=True, help="Begin with what waits already.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N records.")
@click.option("--json", "json_lines", is_flag=True, help="The records as they are sent.")
@ends_with_problems
def command(
    setup: Setup, destination: str | None, from_start: bool, count: int | None, json_lines: bool
) -> None:
    """
    Show what running agents take, until Ctrl-C.

    It looks into a store that outlives the process (disk, redis) every tenth of a second, and takes
    nothing from it. So it sees the redacted records of all processes that share the store; what was
    delivered between two looks it can only count. Records of a store in memory, those that wait in
    memory because the store is away, and those that were dropped before they were stored do not
    show here.
    """
    storage = Storage(setup, destination)
    tail = _Tail(storage, count, write=as_json if json_lines else as_line, from_start=from_start)
    try:
        asyncio.run(tail.run())
    except KeyboardInterrupt:
        return


class _Tail:
    def __init__(
        self,
        storage: Storage,
        count: int | None,
        *,
        write: Callable[[Record], str],
        from_start: bool,
    ) -> None:
        self._storage = storage
        self._left = count
        self._write = write
        self._from_start = from_start
        self._positions: dict[str, str | None] = {}
        self._came = dict.fromkeys(storage.chosen, 0)
        self._known: OrderedDict[str, None] = OrderedDict()
        self._shown = 0
        self._unseen = 0

    async def run(self) -> None:
        """Until ``count`` records were shown; a store that goes away is waited for."""
        opened_once = False
        while True:
            try:
                async with self._storage.opened() as store:
                    await self._begin(store)
                    if opened_once:
                        click.echo("the store answers again", err=True)
                    opened_once = True
                    while self._left is None or self._left > 0:
                        if not await self._look(store):
                            await asyncio.sleep(_INTERVAL)
                    return
            except StoreUnavailableError as error:
                if not opened_once:
                    raise
                click.echo(error.message, err=True)
                await self._wait_for_store()

    async def _wait_for_store(self) -> None:
        while True:
            await asyncio.sleep(_RETRY)
            try:
                async with self._storage.opened():
                    return
            except StoreUnavailableError:
                continue

    async def _begin(self, store: SafeStore) -> None:
        for name in self._storage.chosen:
            if name not in self._positions:
                end = await store.peek(name, None, 0)
                self._positions[name] = None if self._from_start else end.position

    async def _look(self, store: SafeStore) -> bool:
        """Show what is new; returns whether there may be more at once."""
        more = False
        fresh: list[Record] = []
        for name in self._storage.chosen:
            peeked = await store.peek(name, self._positions[name], _PART)
            self._positions[name] = peeked.position
            self._came[name] += len(peeked.records) + peeked.passed
            more = more or len(peeked.records) >= _PART
            fresh += [record for record in peeked.records if self._is_new(record)]
        # Each waits for a destination of its own: what is gone for one may be seen for another.
        fresh.sort(key=lambda record: record.accepted_at)
        for record in fresh[: self._left]:
            click.echo(self._line(record))
        self._shown += len(fresh)
        if self._left is not None:
            self._left -= len(fresh)
        self._tell_unseen()
        return more

    def _is_new(self, record: Record) -> bool:
        if record.id in self._known:
            return False
        self._known[record.id] = None
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return True

    def _tell_unseen(self) -> None:
        unseen = max(self._came.values()) - self._shown
        if unseen > self._unseen:
            click.echo(f"... {unseen - self._unseen} were delivered between two looks", err=True)
            self._unseen = unseen

    def _line(self, record: Record) -> str:
        try:
            return self._write(record)
        except ValueError:  # what was found in the store and is no record
            return f"{record.id!r} is no record of an agent"
