"""``guard-agent dead-letters``: what was refused for good, in a store that outlives the process."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from guard_agent import GuardAgentError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from guard_agent import BufferStore, DeadLetter
    from guard_agent.core.assembly.plan import Plan

_T = TypeVar("_T")


class UnknownDestinationError(GuardAgentError):
    """There is no transport of that name."""


class StoreUnavailableError(GuardAgentError):
    """The store cannot be opened, or does not answer."""


def look(plan: Plan, destination: str | None) -> list[tuple[str, DeadLetter]]:
    """
    The dead letters with their destinations, oldest first; beside whoever uses the store.

    Raises:
        UnknownDestinationError: there is no such destination.
        StoreUnavailableError: the store is not available; says why.
        GuardAgentError: the store does not outlive the process.
    """

    async def look(store: BufferStore) -> list[tuple[str, DeadLetter]]:
        return [
            (name, letter)
            for name in _chosen(plan, destination)
            for letter in await store.dead_letters(name)
        ]

    return _with_store(plan, look)


def replay(plan: Plan, destination: str | None, limit: int | None) -> dict[str, int]:
    """Have dead letters sent again; how many by destination. Raises what `look` raises."""

    async def replay(store: BufferStore) -> dict[str, int]:
        left = sys.maxsize if limit is None else limit
        done = {}
        for name in _chosen(plan, destination):
            done[name] = await store.replay(name, left)
            left -= done[name]
        return done

    return _with_store(plan, replay)


def rows(letters: Sequence[tuple[str, DeadLetter]]) -> Iterator[tuple[str, ...]]:
    """A table for people."""
    yield ("DESTINATION", "ID", "KIND", "ACCEPTED", "REASON")
    for name, letter in letters:
        record = letter.record
        yield (name, record.id, record.kind, _moment(record.accepted_at), letter.reason)


def described(destination: str, letter: DeadLetter) -> dict[str, Any]:
    """A dead letter for a program, with all of its record."""
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


def _with_store(plan: Plan, work: Callable[[BufferStore], Awaitable[_T]]) -> _T:
    store = plan.build().durable
    if store is None:
        msg = (
            f"the store {plan.store.instance!r} lives and ends with the process of the app, so ask "
            "there: dead_letters() and replay_dead_letters() of the agent"
        )
        raise GuardAgentError(msg)

    async def run() -> _T:
        try:
            await store.open()
            return await work(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except UnknownDestinationError:
        raise
    except Exception as error:
        # Plugin meets user: any exception means that the store is not available.
        msg = f"the store {plan.store.instance!r} is not available: {error}"
        raise StoreUnavailableError(msg) from error


def _chosen(plan: Plan, destination: str | None) -> Sequence[str]:
    known = [step.instance for step in plan.transports]
    if destination is None:
        return known
    if destination not in known:
        msg = f"there is no destination {destination!r}; there are: {', '.join(known)}"
        raise UnknownDestinationError(msg)
    return (destination,)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
