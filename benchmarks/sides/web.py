"""
A real fastapi-guard app under uvicorn, asked from loopback: what the agent adds to a request.

Penetration detection is off: it costs a hundred times as much as any agent and would hide it. The
app is served twice, each in a process of its own: without an agent, and with one that can be turned
off while the app runs; the client is a third.

In the flood the agent is turned off for every other 50 requests, because longer turns differ by
more than it costs: by what else happens on the machine. What its own threads do comes on top.
"""

from __future__ import annotations

import asyncio
import json
import logging
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, cast

import flood
from sides.client import Client, crowd
from sides.common import collector, main, quantile, sink_counts

if TYPE_CHECKING:
    from types import ModuleType

# The agent has to do with the standard library.
sys.modules["isal"] = cast("ModuleType", None)

logging.disable(logging.CRITICAL)

CLEAN, HOSTILE = "Mozilla/5.0 (X11; Linux x86_64)", "sqlmap/1.8"
MODES = ("off", "on")
CONNECTIONS = 4
TURNS = 10
FLOOD_TURN = 50
FLOOD_SOURCES = 1_000
FLOOD_LIMIT = 30
TRIMMED = 0.1
"""Share of the turns in the flood that is left out at either end: another process had the core."""


class Nothing:
    """Stands where an agent would, and does nothing."""

    async def send_event(self, event: Any) -> None:
        pass

    async def send_metric(self, metric: Any) -> None:
        pass


class Switch:
    """
    The agent, or what does nothing in its place, changed while the app runs.

    In one process, because two of the same app differ by as much as an agent costs.
    """

    made: ClassVar[list[Switch]] = []

    def __init__(self, agent: Any) -> None:
        self.agent = agent
        self.chosen = agent
        self.made.append(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.agent, name)

    def send_event(self, event: Any) -> Any:
        return self.chosen.send_event(event)

    def send_metric(self, metric: Any) -> Any:
        return self.chosen.send_metric(metric)


class Turns:
    """The app, whose agent takes what comes for as many requests as it then does not."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._requests = 0
        self._seconds: list[float] | None = None
        """CPU time of this thread at the beginning of each turn."""
        self._other_seconds = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._seconds is not None and scope["type"] == "http":
            if self._requests % FLOOD_TURN == 0:
                [switch] = Switch.made
                # on off off on, so that what only grows or shrinks is in both alike
                is_on = len(self._seconds) % 4 in (0, 3)
                switch.chosen = switch.agent if is_on else Nothing()
                self._seconds.append(time.thread_time())
            self._requests += 1
        await self._app(scope, receive, send)

    def begin(self) -> None:
        self._seconds = []
        self._other_seconds = time.process_time() - time.thread_time()

    def added(self) -> dict[str, float]:
        """Microseconds that the agent added to a request: in this thread, and in others."""
        assert self._seconds is not None
        turns = [after - before for before, after in pairwise(self._seconds)]
        differences = [
            (turns[i] - turns[i + 1]) * (1 if i % 4 == 0 else -1)
            for i in range(0, len(turns) - 1, 2)
        ]
        edge = int(len(differences) * TRIMMED)
        kept = sorted(differences)[edge : len(differences) - edge]
        others = time.process_time() - time.thread_time() - self._other_seconds
        return {
            "here": statistics.mean(kept) / FLOOD_TURN * 1e6,
            "others": others / (self._requests / 2) * 1e6,
        }


def make_app(mode: str) -> Any:
    from fastapi import FastAPI
    from guard import SecurityConfig, SecurityMiddleware

    import guard_agent

    make = guard_agent.guard_agent
    setattr(guard_agent, "guard_agent", lambda config: Switch(make(config)))  # noqa: B010 - by type
    if mode == "flood":
        return Turns(flood.guarded_app(collector(), detection=False, limit=FLOOD_LIMIT))
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
    import uvicorn

    served = make_app(mode)
    config = uvicorn.Config(
        served,
        host="127.0.0.1",
        port=0,
        log_config=None,
        access_log=False,
        loop="asyncio",
        http="h11",
        lifespan="off",
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - it has no event to wait for
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    loop, nothing = asyncio.get_running_loop(), Nothing()
    while word := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        [switch] = Switch.made
        if word == "flush":
            await switch.agent.flush_buffer()
        elif word == "begin":
            served.begin()
        elif word == "added":
            print(json.dumps(served.added()), flush=True)
            continue
        else:
            switch.chosen = nothing if word == "nothing" else switch.agent
        print(time.process_time(), flush=True)
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

    def tell(self, word: str) -> float:
        """
        Have the agent take what comes ("on"), or leave it ("nothing"), or send it ("flush").

        Returns:
            Seconds of CPU time of all its threads, until that is done.
        """
        return float(self._ask(word))

    def added(self) -> dict[str, float]:
        """What the agent added since it was told to "begin"; see `Turns.added`."""
        figures: dict[str, float] = json.loads(self._ask("added"))
        return figures

    def _ask(self, word: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def added(client: Client, served: Served, amount: int) -> float:
    """
    Microseconds of CPU time that the agent adds to a request.

    The median of several turns: another process that takes the caches away for a moment costs more
    than an agent does.
    """
    each = amount // TURNS
    differences = []
    for turn in range(-1, TURNS):
        total = {}
        for mode in ("nothing", "on"):
            before = served.tell(mode)
            for number in range(each):
                client.ask(number)
            total[mode] = served.tell("flush") - before
        if turn >= 0:  # the first is to get warm
            differences.append((total["on"] - total["nothing"]) / each * 1e6)
    return statistics.median(differences)


def app(amount: int, **_: Any) -> dict[str, float]:
    """
    What the agent adds.

    ``clean`` and ``blocked`` are microseconds of CPU time of a request above what does nothing,
    with all that sending takes. ``p99_*`` are ratios of the time a client waits, agent on to off,
    with several clients at once. All is asked in turns, so that what slows the machine slows all.
    """
    result = {}
    with ExitStack() as stack:
        served = {}
        for mode in MODES:
            served[mode] = Served(mode)
            stack.callback(served[mode].close)
        for kind, status, user_agent in (("clean", 200, CLEAN), ("blocked", 403, HOSTILE)):
            client = Client(served["on"].port, user_agent, status)
            client.ask(0)  # with which the app makes its agent
            result[kind] = added(client, served["on"], amount)
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
            result[f"p99_{kind}"] = p99["on"] / p99["off"]
            result[f"per_second_{kind}"] = len(seen["on"]) / seconds["on"]
            result[f"per_second_off_{kind}"] = len(seen["off"]) / seconds["off"]
        if not sink_counts()["received"]:
            raise SystemExit("the agent sent nothing")
    return result


def flooded(amount: int, **_: Any) -> dict[str, float]:
    """Microseconds of CPU time that the agent adds to a hostile request: here, others and both."""
    served = Served("flood")
    try:
        client = Client(served.port, CLEAN, 200)
        client.ask(0)  # with which the app makes its agent
        served.tell("begin")
        for number in range(amount):
            # Both turns of a pair ask for the same.
            turn, place = divmod(number, FLOOD_TURN)
            wanted = turn // 2 * FLOOD_TURN + place
            path, address, user_agent = flood.hostile(wanted, FLOOD_SOURCES)
            client.request(path, user_agent, address)
        figures = served.added()
        client.close()
    finally:
        served.close()
    if not sink_counts()["received"]:
        raise SystemExit("the agent sent nothing")
    return {**figures, "both": sum(figures.values())}


if __name__ == "__main__":
    main({"app": app, "flooded": flooded, "serve": serve})
