"""
The two faces of the agent: awaitable for ASGI, blocking for WSGI. Both serve the same engine.

`guard_agent` is what the Guard adapters call. There is one agent per process; it lives here.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Coroutine, Generator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, NoReturn

from guard_agent.core.agent import STOP_SLACK, Agent, process_hooks
from guard_agent.core.errors import GuardAgentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guard_agent.core.config import AgentConfig
    from guard_agent.core.interfaces import DeadLetter
    from guard_agent.core.models import AgentStatus, DynamicRules

logger = logging.getLogger("guard_agent")

_LOOK_TIMEOUT = 0.5


class _Done(Coroutine[Any, Any, None]):
    """
    A coroutine that has nothing left to do.

    Taking a record is done when the call returns, so that it also happens when the caller forgets
    to await; what is returned can be awaited, or made a task, and costs no new object.
    """

    def send(self, value: object) -> NoReturn:  # noqa: ARG002 - the interface of a coroutine
        raise StopIteration

    def throw(self, *error: Any) -> NoReturn:
        raise error[0]

    def close(self) -> None:
        """Nothing to close."""

    def __await__(self) -> Generator[Any, Any, None]:
        return iter(())  # type: ignore[return-value]  # ends before it yields


_DONE = _Done()


class GuardAgentHandler:
    """The agent for code that runs on an event loop. May be used from several loops."""

    def __init__(self, config: AgentConfig | None = None) -> None:
        self._agent = _agent_for(config)

    @property
    def config(self) -> AgentConfig:
        """The configuration in force."""
        return self._agent.config

    def send_event(self, event: Any) -> Coroutine[Any, Any, None]:
        """
        Take a security event: a `SecurityEvent`, a mapping, or any object with its fields.

        Done when the call returns, awaited or not. Never raises and never blocks; what is no
        event is dropped and counted.

        Raises:
            BufferFullError: only with ``buffer_overflow_policy="raise"``.
        """
        agent = self._agent
        refused = None if agent.absorbers["event"](event) else agent.take("event", event)
        return _DONE if refused is None else agent.await_room(refused)

    def send_metric(self, metric: Any) -> Coroutine[Any, Any, None]:
        """Take a metric; as `send_event`."""
        agent = self._agent
        refused = None if agent.absorbers["metric"](metric) else agent.take("metric", metric)
        return _DONE if refused is None else agent.await_room(refused)

    async def start(self) -> None:
        """Start the background work. Returns at once; optional, the first record does it too."""
        self._agent.start()

    async def stop(self) -> None:
        """Deliver what can be delivered within ``stop_timeout`` and end. Idempotent."""
        future = self._agent.stop()
        await self._wait(future, self._agent.config.stop_timeout + STOP_SLACK)

    async def close(self) -> None:
        """The same as `stop`."""
        await self.stop()

    async def flush_buffer(self) -> None:
        """
        Send now what was taken so far.

        Returns when it is delivered, or when the collector makes the agent wait, or after
        ``timeout`` seconds. Nothing is lost either way.
        """
        await self._wait(self._agent.flush(), self._agent.config.timeout)

    async def flush_to_store(self) -> bool:
        """
        Bring what was taken so far to the store; what is there survives a kill of the process.

        Returns:
            Whether all of it is committed in a store that outlives the process. False with a
            store in memory, and when it took longer than ``timeout`` seconds.
        """
        future = self._agent.flush_to_store()
        return bool(await self._wait(future, self._agent.config.timeout))

    async def dead_letters(self) -> dict[str, Sequence[DeadLetter]]:
        """
        The records that each destination refused for good and the store has kept, oldest first.

        Records of `guard_agent.Record`, each with the reason. Their number and bytes are bounded;
        the oldest make room.
        """
        found = await self._wait(self._agent.dead_letters(), self._agent.config.timeout)
        return found or {}

    async def replay_dead_letters(
        self, destination: str | None = None, limit: int | None = None
    ) -> int:
        """
        Send dead letters once more: of one destination or of all, the oldest ``limit``.

        Returns:
            How many wait again. What has no room remains a dead letter.

        Raises:
            ValueError: there is no such destination.
        """
        future = self._agent.replay(destination, limit)
        return await self._wait(future, self._agent.config.timeout) or 0

    async def get_dynamic_rules(self) -> DynamicRules | None:
        """
        The last good set of rules, or None. Never raises.

        The very first call waits up to two seconds for the collector's first answer, without
        holding up the loop; all others answer from memory.
        """
        rules = self._agent.rules()
        if rules is None:
            await self._wait(self._agent.first_rules(), self._agent.config.timeout)
            rules = self._agent.rules()
        return rules

    async def health_check(self) -> bool:
        """Whether records are taken and at least one destination can be reached."""
        return self._agent.healthy()

    async def get_status(self) -> AgentStatus:
        """How the agent is; ``destinations`` has the books of each."""
        status: AgentStatus | None = await self._wait(self._agent.look(), _LOOK_TIMEOUT)
        return status or self._agent.status()

    def get_stats(self) -> dict[str, Any]:
        """Numbers, from memory."""
        return self._agent.stats()

    async def initialize_redis(self, redis_handler: Any) -> None:
        """
        Use the Redis of the host application for what the configuration leaves open.

        When no store was chosen, records wait there from now on: in a store on an own connection
        for a Redis manager of the Guard engine and for a client of redis-py (with the package
        ``guard-agent-redis``), else through the methods of the handler (`RedisHandlerProtocol`).
        What releases 3.x left there is taken over once. Returns at once.
        """
        self._agent.use_redis(redis_handler, asyncio.get_running_loop())

    async def _wait(self, future: Future[Any], timeout: float) -> Any:
        return None if self._agent.in_own_thread else await _within(future, timeout)


class SyncGuardAgentHandler:
    """The agent for code without an event loop. Taking a record never waits for another thread."""

    def __init__(self, config: AgentConfig | None = None) -> None:
        self._agent = _agent_for(config)

    @property
    def config(self) -> AgentConfig:
        """The configuration in force."""
        return self._agent.config

    def send_event(self, event: Any) -> None:
        """
        Take a security event; see `GuardAgentHandler.send_event`.

        With ``buffer_overflow_policy="block"`` it waits for room up to ``block_timeout``, but
        never in a thread in which an event loop runs: there the record is dropped and counted.
        """
        agent = self._agent
        refused = None if agent.absorbers["event"](event) else agent.take("event", event)
        if refused is not None:
            agent.block_until_room(refused, wait=not _loop_runs_here())

    def send_metric(self, metric: Any) -> None:
        """Take a metric; as `send_event`."""
        agent = self._agent
        refused = None if agent.absorbers["metric"](metric) else agent.take("metric", metric)
        if refused is not None:
            agent.block_until_room(refused, wait=not _loop_runs_here())

    def start(self) -> None:
        """Start the background work. Returns at once; optional, the first record does it too."""
        self._agent.start()

    def stop(self) -> None:
        """Deliver what can be delivered within ``stop_timeout`` and end. Idempotent."""
        self._wait(self._agent.stop(), self._agent.config.stop_timeout + STOP_SLACK)

    def close(self) -> None:
        """The same as `stop`."""
        self.stop()

    def flush_buffer(self) -> None:
        """Send now what was taken so far; see `GuardAgentHandler.flush_buffer`."""
        self._wait(self._agent.flush(), self._agent.config.timeout)

    def flush_to_store(self) -> bool:
        """Bring what was taken so far to the store; see `GuardAgentHandler.flush_to_store`."""
        return bool(self._wait(self._agent.flush_to_store(), self._agent.config.timeout))

    def dead_letters(self) -> dict[str, Sequence[DeadLetter]]:
        """What was refused for good; see `GuardAgentHandler.dead_letters`."""
        return self._wait(self._agent.dead_letters(), self._agent.config.timeout) or {}

    def replay_dead_letters(self, destination: str | None = None, limit: int | None = None) -> int:
        """Send dead letters once more; see `GuardAgentHandler.replay_dead_letters`."""
        future = self._agent.replay(destination, limit)
        return self._wait(future, self._agent.config.timeout) or 0

    def get_dynamic_rules(self) -> DynamicRules | None:
        """The last good set of rules, or None. Answers from memory, never raises, never waits."""
        return self._agent.rules()

    def health_check(self) -> bool:
        """Whether records are taken and at least one destination can be reached."""
        return self._agent.healthy()

    def get_status(self) -> AgentStatus:
        """How the agent is; ``destinations`` has the books of each."""
        status: AgentStatus | None = self._wait(self._agent.look(), _LOOK_TIMEOUT)
        return status or self._agent.status()

    def get_stats(self) -> dict[str, Any]:
        """Numbers, from memory."""
        return self._agent.stats()

    def initialize_redis(self, redis_handler: Any) -> None:
        """Use the Redis of the host application; see `GuardAgentHandler.initialize_redis`."""
        self._agent.use_redis(redis_handler, _running_loop())

    def _wait(self, future: Future[Any], timeout: float) -> Any:
        return None if self._agent.in_own_thread else _result(future, timeout)


# An adapter asks when its middleware is made, which says nothing about where the middleware runs:
# uvicorn imports a Django app inside of its event loop, and a Tornado app is made outside of any.
_FACES: dict[str, type[GuardAgentHandler | SyncGuardAgentHandler]] = {
    "guard": GuardAgentHandler,
    "tornadoapi_guard": GuardAgentHandler,
    "flaskapi_guard": SyncGuardAgentHandler,
    "djangoapi_guard": SyncGuardAgentHandler,
}


def guard_agent(config: AgentConfig | None = None) -> Any:
    """
    The agent of this process.

    Without a configuration it is the agent that was made before; when there is none, one that the
    configuration file describes.

    Returns:
        A `GuardAgentHandler` when an event loop runs in this thread, otherwise a
        `SyncGuardAgentHandler`; a Guard adapter gets the one it is written for, wherever it asks.
        Calling again gives the same agent. A type checker cannot know which one it is, so name it:
        ``agent: GuardAgentHandler = guard_agent(config)``.

    Raises:
        ConfigurationError: the agent cannot be composed as configured; names every problem.
    """
    caller = str(sys._getframe(1).f_globals.get("__name__")).partition(".")[0]  # noqa: SLF001 - who called
    face = _FACES.get(caller)
    if face is None:
        face = GuardAgentHandler if _loop_runs_here() else SyncGuardAgentHandler
    agent = _agent_for(config)
    return _process.face(face, agent, config)


def start_agent(config: AgentConfig | None = None) -> None:
    """
    Start the agent of this process; for the startup of an application. Returns at once.

    Without a configuration only one that was stopped before starts again: the middleware that uses
    it does not start it twice.

    Raises:
        ConfigurationError: the agent cannot be composed as configured; names every problem.
    """
    agent = _process.agent
    if config is not None or (agent is not None and agent.stopped):
        _agent_for(config).start()


async def stop_agent() -> None:
    """
    Stop the agent of this process, if there is one; for the shutdown of an application.

    Its middleware may have made one or, with a configuration that is wrong, may not.
    """
    agent = _process.agent
    if agent is not None:
        await _within(agent.stop(), agent.config.stop_timeout + STOP_SLACK)


class _Process:
    """The one agent of the process, and its two faces."""

    def __init__(self) -> None:
        # Reentrant: a log handler or a signal handler of the application may call `guard_agent`
        # while it is running in the same thread.
        self.lock = threading.RLock()
        self.composing = False
        self.agent: Agent | None = None
        self.given: AgentConfig | None = None
        self.warned = False
        self.compose: Callable[[AgentConfig], Agent] | None = None
        """What makes the agent while an application is tested."""
        self._faces: dict[type[Any], Any] = {}

    def face(self, face: type[Any], agent: Agent, config: AgentConfig | None) -> Any:
        known = self._faces.get(face)
        if known is None or known._agent is not agent:  # noqa: SLF001 - both are of this module
            known = self._faces[face] = face(config)
        return known


_process = _Process()


def _agent_for(config: AgentConfig | None) -> Agent:
    """The agent of the process; composed at the first call, and again after a stop."""
    with _process.lock:
        agent, given = _process.agent, _process.given
        if agent is not None and (config is None or config == given):
            return agent
        if agent is not None and not agent.stopped:
            _warn_of_differences(config, given)
            return agent
        if _process.composing:
            msg = "guard_agent() was called by something that its own composition called"
            raise GuardAgentError(msg)
        # Imported here, so that `import guard_agent` does not pay for what only a start needs.
        from guard_agent.core.assembly.composition import compose  # noqa: PLC0415 - when needed
        from guard_agent.core.assembly.configfile import load_config, resolve  # noqa: PLC0415 - the same

        _process.composing = True
        try:
            resolved = load_config() if config is None else resolve(config)
            make = _process.compose
            agent = Agent(compose(resolved)) if make is None else make(resolved)
        finally:
            _process.composing = False
        _process.agent, _process.given, _process.warned = agent, config, False
        return agent


def _warn_of_differences(config: AgentConfig | None, given: AgentConfig | None) -> None:
    if _process.warned:
        return
    _process.warned = True
    names = (
        [
            name
            for name in type(config).model_fields
            if getattr(config, name) != getattr(given, name, None)
        ]
        if config is not None
        else []
    )
    logger.warning(
        "guard_agent() was called with another configuration: the first one stays in force until "
        "stop(). Different: %s",
        ", ".join(names),
    )


def _forget() -> None:
    """In a forked child: another thread of the parent may have held the lock."""
    _process.lock = threading.RLock()
    _process.composing = False


process_hooks.on_fork(_forget)


def _loop_runs_here() -> bool:
    return _running_loop() is not None


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _within(future: Future[Any], timeout: float) -> Any:
    wrapped = asyncio.wrap_future(future)
    try:
        # Does not cancel what it waits for, so a cancellation here is always our caller's.
        await asyncio.wait([wrapped], timeout=timeout)
        if not wrapped.done():
            logger.debug("the agent did not answer within %.1f s", timeout)
        elif not wrapped.cancelled() and (error := wrapped.exception()) is not None:
            logger.error("the agent failed", exc_info=error)
        elif not wrapped.cancelled():
            return wrapped.result()
    finally:
        wrapped.cancel()
    return None


def _result(future: Future[Any], timeout: float) -> Any:
    try:
        return future.result(timeout)
    except (FutureTimeoutError, CancelledError, asyncio.CancelledError):
        logger.debug("the agent did not answer within %.1f s", timeout)
    except Exception:
        logger.exception("the agent failed")
    return None
