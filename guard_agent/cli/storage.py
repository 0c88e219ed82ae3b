"""The store of a configuration, opened beside whoever else uses it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from guard_agent import BufferStore, GuardAgentError, Level, PluginContext
from guard_agent.core.assembly.problems import did_you_mean, listed
from guard_agent.core.config import state_directory
from guard_agent.core.delivery.calls import SafeStore
from guard_agent.core.logs import one_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from guard_agent.cli.setup import Setup
    from guard_agent.core.delivery.calls import Call

logger = logging.getLogger("guard_agent")

_T = TypeVar("_T")


class StoreUnavailableError(click.ClickException):
    """The store cannot be opened, or does not answer. Ends the command with 1."""


class _TellingStore(SafeStore):
    """Says in one line, and for a person, that the store is not available."""

    def __init__(self, store: BufferStore, limit: float) -> None:
        super().__init__(store, limit)
        calls, name = self._calls, store.context.instance

        async def told(function: Call, *args: Any) -> Any:
            try:
                return await calls(function, *args)
            except NotImplementedError as error:
                raise click.ClickException(str(error)) from None
            except Exception as error:
                # Plugin meets user: any exception means that the store is not available.
                what = one_line(str(error) or type(error).__name__, 500)
                msg = f"the store {name!r} is not available: {what}"
                raise StoreUnavailableError(msg) from error

        self._calls = told

    async def close(self) -> None:
        try:
            await super().close()
        except Exception:
            # What was asked of it is done, and the process ends anyway.
            logger.debug("the store did not close", exc_info=True)


class Storage:
    """The durable store of a configuration, and the destinations it has."""

    def __init__(self, setup: Setup, destination: str | None = None) -> None:
        """
        Find out which store is meant. No I/O.

        Raises:
            GuardAgentError: the configuration is wrong, or its store ends with the process.
            click.BadParameter: there is no such destination.
        """
        config, self._step, destinations = setup.compose_store()
        self.destinations: Sequence[str] = destinations
        self.instance = self._step.instance
        if cast("type[BufferStore]", self._step.cls).level is Level.MEMORY:
            msg = (
                f"the store {self.instance!r} lives and ends with the process of the app, so ask "
                "there: get_status(), dead_letters() and replay_dead_letters() of the agent"
            )
            raise GuardAgentError(msg)
        if destination is not None and destination not in self.destinations:
            guess = did_you_mean(destination, self.destinations)
            known = listed(self.destinations)
            msg = f"there is no destination {destination!r}{guess}; there are: {known}"
            raise click.BadParameter(msg, param_hint="--destination")
        self.chosen = self.destinations if destination is None else (destination,)
        self._config = config

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[SafeStore]:
        """
        The store, until it is closed again.

        Raises:
            StoreUnavailableError: at the beginning or meanwhile; says why.
        """
        context = PluginContext(
            self.instance, self._config, tuple(self.destinations), state_directory()
        )
        plugin = cast("BufferStore", self._step.cls(self._step.settings, context))
        store = _TellingStore(plugin, self._config.timeout)
        try:
            await store.open()
            yield store
        finally:
            await store.close()

    def run(self, work: Callable[[SafeStore], Awaitable[_T]]) -> _T:
        """Open the store, do ``work``, close it."""

        async def run() -> _T:
            async with self.opened() as store:
                return await work(store)

        return asyncio.run(run())
