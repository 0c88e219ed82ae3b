"""
A real fastapi-guard app under uvicorn, asked from loopback: what the agent adds to a request.

Penetration detection is off: it costs a hundred times as much as any agent and would hide it. The
app is served three times, each in a process of its own: without an agent, with a handler that does
nothing, and with the agent; the client is a fourth.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

from sides.client import Client, crowd
from sides.common import collector, main, quantile, sink_counts

logging.disable(logging.CRITICAL)

CLEAN, HOSTILE = "Mozilla/5.0 (X11; Linux x86_64)", "sqlmap/1.8"
MODES = ("off", "nothing", "on")
CONNECTIONS = 4
TURNS = 5
FLUSHED = 1.5
"""Seconds after which what was taken has been sent: the agent does it every second."""


class Nothing:
    """Stands where an agent would, and does nothing."""

    async def send_event(self, event: Any) -> None:
        pass

    async def send_metric(self, metric: Any) -> None:
        pass

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def flush_buffer(self) -> None:
        pass

    async def initialize_redis(self, redis_handler: Any) -> None:
        pass

    async def get_dynamic_rules(self) -> None:
        return None

    async def health_check(self) -> bool:
        return True


def make_app(mode: str) -> Any:
    from fastapi import FastAPI  # noqa: PLC0415 - only the process that serves needs it
    from guard import SecurityConfig, SecurityMiddleware  # noqa: PLC0415

    import guard_agent  # noqa: PLC0415

    if mode == "nothing":
        handler = Nothing()
        setattr(guard_agent, "guard_agent", lambda _config=None: handler)  # noqa: B010 - by type
    app = FastAPI()
    config = SecurityConfig(
        enable_agent=mode != "off",
        agent_api_key="benchmark-key",
        agent_endpoint=collector(),
        # One large request a second, because 3.x may make a hundred a minute.
        agent_buffer_size=20_000,
        agent_high_watermark_ratio=1.0,
        agent_flush_interval=1,
        enable_penetration_detection=False,
        enable_ip_banning=False,
        enable_rate_limiting=False,
        enable_redis=False,
        blocked_user_agents=["sqlmap"],
        custom_log_file=None,
    )
    app.add_middleware(SecurityMiddleware, config=config)

    @app.get("/items/{number}")
    async def item(number: int) -> dict[str, int]:
        return {"item": number}

    return app


async def serve(_amount: int, mode: str) -> None:
    """Serve until the input ends; the port is the first line printed."""
    import uvicorn  # noqa: PLC0415

    config = uvicorn.Config(
        make_app(mode),
        host="127.0.0.1",
        port=0,
        log_config=None,
        access_log=False,
        loop="asyncio",
        http="h11",
        lifespan="off",
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - it has no event to wait for
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    task.cancel()


class Served:
    """The app in a process of its own."""

    def __init__(self, mode: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sides.web", "serve", "0", f'mode="{mode}"'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def cpu(self) -> float:
        """Seconds of CPU time, of all threads."""
        # Linux: the clock of another process is its number, inverted, above three bits for "CPU".
        return time.clock_gettime((~self._process.pid << 3) | 2)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def ask_in_turns(clients: dict[str, Client], amount: int) -> None:
    """``amount`` requests of each, a few at a time."""
    for first in range(0, amount, 10):
        for client in clients.values():
            for number in range(first, min(first + 10, amount)):
                client.ask(number)


def app(amount: int, **_: Any) -> dict[str, float]:
    """
    What the agent adds.

    ``clean`` and ``blocked`` are microseconds of CPU time of a request above the handler that does
    nothing. ``p99_*`` are ratios of the time a client waits, agent on to off, with several clients
    at once. The servers are asked in turns, so that what slows the machine slows all of them.
    """
    result = {}
    with ExitStack() as stack:
        served = {}
        for mode in MODES:
            served[mode] = Served(mode)
            stack.callback(served[mode].close)
        for kind, status, user_agent in (("clean", 200, CLEAN), ("blocked", 403, HOSTILE)):
            clients = {mode: Client(one.port, user_agent, status) for mode, one in served.items()}
            ask_in_turns(clients, max(amount // 5, 100))
            before = {mode: one.cpu() for mode, one in served.items()}
            ask_in_turns(clients, amount)
            time.sleep(FLUSHED)
            cpu = {mode: (one.cpu() - before[mode]) / amount * 1e6 for mode, one in served.items()}
            for client in clients.values():
                client.close()
            seen: dict[str, list[float]] = {"off": [], "on": []}
            seconds = dict.fromkeys(seen, 0.0)
            for _turn in range(TURNS):
                for mode, all_of_it in seen.items():
                    port = served[mode].port
                    took, lasted = crowd(amount // TURNS, CONNECTIONS, port, user_agent, status)
                    all_of_it.extend(took)
                    seconds[mode] += lasted
            p99 = {mode: quantile(sorted(took), 0.99) for mode, took in seen.items()}
            result[kind] = cpu["on"] - cpu["nothing"]
            result[f"cpu_{kind}"] = cpu["nothing"]
            result[f"p99_{kind}"] = p99["on"] / p99["off"]
            result[f"per_second_{kind}"] = len(seen["on"]) / seconds["on"]
            result[f"per_second_off_{kind}"] = len(seen["off"]) / seconds["off"]
        if not sink_counts()["received"]:
            raise SystemExit("the agent sent nothing")
    return result


if __name__ == "__main__":
    main({"app": app, "serve": serve})
