"""The agent in the life of a Tornado server, which has no shutdown of its own."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from guard_agent.client import start_agent, stop_agent

if TYPE_CHECKING:
    from guard_agent import AgentConfig

__all__ = ["run_until_stopped"]


async def run_until_stopped(config: AgentConfig | None = None) -> None:
    """
    Serve until the process is told to end (SIGTERM or SIGINT), then stop the agent.

    It stands where a Tornado server waits for ever, as the last line of its ``main()``, in each
    process that `tornado.process.fork_processes` made. Call it in the main thread. Returns when the
    agent has stopped, within ``stop_timeout`` of the signal; the handlers that the signals had
    before are in force again.

    Args:
        config: Starts an agent with it. None starts none: whichever agent the app or its Guard
            middleware has made by the end is stopped.

    Raises:
        ConfigurationError: the agent cannot be composed as configured; names every problem.
    """
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        start_agent(config)
        for number in before:
            with suppress(NotImplementedError):  # Windows: Ctrl+C cancels, and we end below
                loop.add_signal_handler(number, told.set)
        await told.wait()
    finally:
        # The handlers stay until the agent has stopped: a second signal does not cut it short.
        try:
            await stop_agent()
        finally:
            for number, handler in before.items():
                with suppress(NotImplementedError):
                    loop.remove_signal_handler(number)
                if handler is not None:  # as for one that was not installed by Python
                    signal.signal(number, handler)
