"""
Whole agents in processes of their own, on one durable store, in front of a collector that counts.

    python tests/sweeps/agent_sweep.py --store disk
    python tests/sweeps/agent_sweep.py --store redis --only restarts --restarts 30

Scenarios:

- ``share``: eight processes record and deliver, nothing goes wrong.
- ``restarts``: healthy processes are stopped under load, one by one, and replaced.
- ``slow``: the collector takes almost as long as a request may; nothing else goes wrong.
- ``kill``: one of several processes is killed while it holds leases; nobody is restarted.
- ``burst``: a burst while the collector is down, SIGKILL, a new process, the collector is back.
- ``window``: processes that record all the time are killed at any moment; how old was the oldest
  record that was lost?

The ledger is the collector's: every record that an agent took and confirmed must be there, and the
number of those that came twice is printed. The exit status is 0 when nothing was lost, nothing came
twice without a kill, and everything came in time. Of what was not confirmed, at most one kill in
twenty may cost a record that is older than the loss window the agent promises.
"""

# ruff: noqa: T201 - a script that prints a table

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from guard_agent import AgentConfig, SecurityEvent, get_current_timestamp, guard_agent
from guard_agent.core.delivery.worker import COMMIT_INTERVAL
from guard_agent.testing.collector import Answer, Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 60.0
"""Seconds for what has to happen anyway, on a machine however slow."""
PRESENCE = 3.0
"""Setting of the Redis store here: after so many seconds a process that is not heard of is dead."""
EXPIRY = 5.0
"""Seconds between two looks of an agent at what is over."""


# --- one process ----------------------------------------------------------------------------------


class Names:
    """A file with one name in a line; a line counts when it is whole."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, names: list[str]) -> None:
        os.write(self._fd, "".join(f"{name}\n" for name in names).encode())


def work(task: dict[str, Any]) -> int:
    """Record until the count is reached or SIGTERM comes, deliver, and stop at SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    agent: Any = guard_agent(AgentConfig(**task["config"]))
    confirmed = Names(Path(task["books"]))
    agent.start()
    agent.flush_to_store()
    print("started", flush=True)
    number, count = 0, task["count"]
    names: list[str] = []
    times = Names(Path(task["times"])) if task["times"] else None
    while not stop.is_set() and (count is None or number < count):
        names.append(f"{task['name']}-{number}")
        agent.send_event(
            SecurityEvent(
                timestamp=get_current_timestamp(),
                event_type="suspicious_request",
                reason=names[-1],
            )
        )
        if times is not None:
            times.write([f"{names[-1]} {time.monotonic_ns()}"])
        number += 1
        if number % task["group"] == 0:
            time.sleep(task["pause"])
    if count is not None:
        if not agent.flush_to_store():
            raise SystemExit("the store did not confirm")
        confirmed.write(names)
        print("confirmed", flush=True)
    while task["drain"] and agent.get_status().destinations["http"]["pending"]:
        time.sleep(0.05)
    if task["drain"]:
        print("drained", flush=True)
    stop.wait()
    began = time.monotonic()
    agent.stop()
    took = time.monotonic() - began
    books = agent.get_status().destinations["http"]
    if count is None:
        confirmed.write(names)  # stopped in order: all that was taken counts
    print(json.dumps({"took": took, **books}), flush=True)
    return 0


class Process:
    """A worker; its error output is kept for the case that something goes wrong."""

    def __init__(self, task: dict[str, Any], folder: Path) -> None:
        self.name = task["name"]
        self._errors = folder / f"{self.name}.log"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--worker", json.dumps(task)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def wait_until(self, word: str) -> None:
        """Until it has ``started``, or its store has ``confirmed`` all that it had to record."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == f"{word}\n":
                return
        raise SystemExit(f"{self.name} ended before it {word}: {self.log()}")

    def ask_to_stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def stop(self) -> dict[str, Any]:
        """SIGTERM; its books when it has ended."""
        with suppress(ProcessLookupError):
            self.ask_to_stop()
        out, _ = self._process.communicate(timeout=PATIENCE)
        if self._process.returncode:
            raise SystemExit(f"{self.name} failed: {self.log()}")
        books: dict[str, Any] = json.loads(out.splitlines()[-1])
        return books

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def end(self) -> None:
        if self._process.poll() is None:
            self.kill()
        elif self._process.stdout is not None:
            self._process.stdout.close()

    def log(self) -> str:
        return self._errors.read_text(errors="replace")


# --- all of them ----------------------------------------------------------------------------------


@dataclass
class Outcome:
    scenario: str
    processes: int = 0
    kills: int = 0
    restarts: int = 0
    confirmed: int = 0
    lost: int = 0
    twice: int = 0
    dropped: int = 0
    slowest_stop: float = 0.0
    seconds: float = 0.0
    limit: float | None = None
    """Seconds within which what a dead process had leased must be delivered."""
    waited: float = 0.0
    windows: list[float] = field(default_factory=list)
    """Milliseconds of each kill: the age of the oldest record that was lost, 0 without one."""

    @property
    def good(self) -> bool:
        in_time = self.limit is None or self.waited <= self.limit
        late = sum(window > COMMIT_INTERVAL * 1000 for window in self.windows)
        return (
            not self.lost
            and in_time
            and late * 20 <= len(self.windows)
            and (bool(self.kills) or not self.twice)
        )

    def row(self) -> str:
        back = f"{self.waited:.1f} of {self.limit:.0f}" if self.limit is not None else "-"
        window = (
            f"\n{'':<10} oldest lost: median {median(self.windows):.1f} ms, "
            f"most {max(self.windows):.1f} ms, promised {COMMIT_INTERVAL * 1000:.0f} ms"
            if self.windows
            else ""
        )
        return (
            f"{self.scenario:<10} {self.processes:>9} {self.restarts:>8} {self.kills:>5} "
            f"{self.confirmed:>9} {self.lost:>5} {self.twice:>6} {self.slowest_stop:>12.2f} "
            f"{back:>10} {self.seconds:>7.1f}  {'' if self.good else 'WRONG'}{window}"
        )


HEAD = (
    f"{'scenario':<10} {'processes':>9} {'restarts':>8} {'kills':>5} {'confirmed':>9} {'lost':>5} "
    f"{'twice':>6} {'slowest stop':>12} {'back in s':>10} {'seconds':>7}"
)


class Stage:
    """A collector, a store, and the processes of one scenario."""

    def __init__(self, scenario: str, folder: Path, store: str, settings: dict[str, Any]) -> None:
        self.outcome = Outcome(scenario)
        self.folder = folder
        self.books = folder / "confirmed"
        self.collector = Collector()
        self._store = store
        self._settings = settings
        self._processes: list[Process] = []
        self._began = time.monotonic()

    @property
    def found_dead_after(self) -> float:
        """Seconds within which others know that a process is dead."""
        return PRESENCE if self._store == "redis" else 0.0

    def start(
        self,
        *,
        count: int | None,
        group: int = 10,
        pause: float = 0.05,
        times: Path | None = None,
        drain: bool = False,
        **config: Any,
    ) -> Process:
        """
        A worker that records ``count`` events and confirms them; without one it goes on.

        It writes down in ``times`` when it took each, and says with ``drain`` when all is away.
        """
        self.outcome.processes += 1
        task = {
            "name": f"{self.outcome.scenario}{self.outcome.processes}",
            "books": str(self.books),
            "count": count,
            "group": group,
            "pause": pause,
            "times": str(times or ""),
            "drain": drain,
            "config": {
                "api_key": "test-key-0123",
                "endpoint": self.collector.url,
                "project_id": "sweep",
                "store": self._store,
                "plugins": {self._store: self._settings},
                "rules": [],
                "rollup": False,
                "buffer_size": 50,
                "flush_interval": 0.2,
                "max_buffer_records": 100_000,
                "max_requests_per_second": 1000,
                **config,
            },
        }
        process = Process(task, self.folder)
        self._processes.append(process)
        return process

    def stop(self, process: Process) -> None:
        books = process.stop()
        self.outcome.slowest_stop = max(self.outcome.slowest_stop, books["took"])
        self.outcome.dropped += sum(books["dropped"].values())

    def confirmed(self) -> set[str]:
        return set(self.books.read_text().split("\n")) - {""} if self.books.exists() else set()

    def wait_for(self, names: Callable[[], set[str]], patience: float = PATIENCE) -> float:
        """Until all of ``names`` are at the collector; how long it took, capped by patience."""
        began = time.monotonic()
        wanted = names()
        with suppress(TimeoutError):
            self.collector.wait_for(lambda c: wanted <= arrived(c), patience)
        return time.monotonic() - began

    def drain(self) -> None:
        """A process that nobody disturbs delivers what is left."""
        last = self.start(count=0)
        last.wait_until("confirmed")
        self.wait_for(self.confirmed)
        self.stop(last)

    def close(self) -> None:
        for process in self._processes:
            process.end()
        self.collector.stop()
        confirmed = self.confirmed()
        self.outcome.confirmed = len(confirmed)
        self.outcome.lost = len(confirmed - arrived(self.collector))
        self.outcome.twice = len(self.collector.duplicates)
        self.outcome.seconds = time.monotonic() - self._began


def arrived(collector: Collector) -> set[str]:
    return {event["reason"] for event in collector.events}


# --- scenarios ------------------------------------------------------------------------------------


def share(stage: Stage, size: int) -> None:
    stage.collector.start()
    workers = [stage.start(count=50 * size, pause=0.01) for _ in range(8)]
    for worker in workers:
        worker.wait_until("confirmed")
    stage.wait_for(stage.confirmed)
    for worker in workers:
        stage.stop(worker)


def restarts(stage: Stage, size: int) -> None:
    """
    Three workers under load; the oldest is stopped when its successor has begun.

    The collector takes its time, so that there is always a request on its way, and more waits.
    """
    stage.collector.start()
    stage.collector.always(Answer(delay=0.3), only="events")
    load: dict[str, Any] = {"count": None, "max_batch_records": 100}
    workers = [stage.start(**load) for _ in range(3)]
    for worker in workers:
        worker.wait_until("started")
    for _ in range(size):
        successor = stage.start(**load)
        successor.wait_until("started")
        stage.stop(workers.pop(0))
        workers.append(successor)
        stage.outcome.restarts += 1
    for worker in workers:
        stage.stop(worker)
    stage.drain()


def slow(stage: Stage, size: int) -> None:
    """Requests take longer than a process may stay silent."""
    stage.collector.start()
    delay = max(2.0, stage.found_dead_after + 1.5)
    stage.collector.always(Answer(delay=delay), only="events")
    workers = [
        stage.start(count=20 * size, pause=0.01, timeout=delay + 0.5, stop_timeout=4 * delay)
        for _ in range(3)
    ]
    for worker in workers:
        worker.wait_until("confirmed")
    stage.wait_for(stage.confirmed)
    for worker in workers:
        stage.stop(worker)


def kill(stage: Stage, size: int) -> None:
    """Its request is on its way, and more is leased; the collector never stores that request."""
    stage.collector.start()
    stage.collector.always(Answer(delay=PATIENCE, store=False), only="events")
    victim = stage.start(count=10 * size, group=10 * size, max_batch_records=5 * size)
    victim.wait_until("confirmed")
    stage.collector.wait_for(lambda c: any(r.path.endswith("/events") for r in c.requests))
    stage.collector.always(None, only="events")
    others = [stage.start(count=10 * size) for _ in range(2)]
    for other in others:
        other.wait_until("confirmed")
    victim.kill()
    stage.outcome.kills += 1
    stage.outcome.limit = stage.found_dead_after + EXPIRY + 1.0
    stage.outcome.waited = stage.wait_for(stage.confirmed)
    for other in others:
        stage.stop(other)


def burst(stage: Stage, size: int) -> None:
    """The collector refuses connections from the start, then does not answer, then is back."""
    stage.collector.start()
    stage.collector.stop()
    victim = stage.start(count=50 * size, group=50 * size)
    victim.wait_until("confirmed")
    victim.kill()
    stage.outcome.kills += 1
    stage.collector.always(Answer(delay=PATIENCE, store=False), only="events")
    stage.collector.start()
    second = stage.start(count=10 * size, group=10 * size)
    second.wait_until("confirmed")
    stage.collector.wait_for(lambda c: any(r.path.endswith("/events") for r in c.requests))
    second.kill()  # this one holds leases
    stage.outcome.kills += 1
    stage.collector.always(None, only="events")
    third = stage.start(count=0)
    third.wait_until("confirmed")
    stage.outcome.limit = stage.found_dead_after + EXPIRY + 1.0
    stage.outcome.waited = stage.wait_for(stage.confirmed)
    stage.stop(third)


def window(stage: Stage, size: int) -> None:
    """The collector is away all the while; what comes at the end is what was stored."""
    stage.collector.start()
    stage.collector.stop()
    taken: list[dict[str, int]] = []
    for number in range(size):
        times = stage.folder / f"times{number}"
        victim = stage.start(count=None, group=1, pause=0.001, times=times)
        victim.wait_until("started")
        time.sleep(random.uniform(0.2, 0.6))
        victim.kill()
        stage.outcome.kills += 1
        lines = [line.split() for line in times.read_text().splitlines()]
        taken.append({words[0]: int(words[1]) for words in lines if len(words) == 2})
    stage.collector.start()
    last = stage.start(count=1, drain=True)
    last.wait_until("drained")
    stage.stop(last)
    came = arrived(stage.collector)
    for when in taken:
        end = max(when.values())
        oldest = min((moment for name, moment in when.items() if name not in came), default=end)
        stage.outcome.windows.append((end - oldest) / 1e6)


SCENARIOS = {
    "share": share,
    "restarts": restarts,
    "slow": slow,
    "kill": kill,
    "burst": burst,
    "window": window,
}
SIZES = {"share": 10, "restarts": 30, "slow": 10, "kill": 20, "burst": 20, "window": 40}


@contextmanager
def open_store(name: str, folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Settings of the store, and which versions it is."""
    if name == "disk":
        settings: dict[str, Any] = {"path": str(folder / "state"), "operation_timeout": 10}
        yield settings, f"SQLite {sqlite3.sqlite_version}"
        return
    from guard_agent.testing.redis_server import RedisServer

    with RedisServer(append_only=True) as server:
        yield {"url": server.url, "deadline": 5, "presence": PRESENCE}, server.version


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--store", default="disk", choices=("disk", "redis"))
    parser.add_argument("--only", choices=tuple(SCENARIOS), action="append")
    parser.add_argument("--restarts", type=int, default=SIZES["restarts"])
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.worker)
    outcomes = []
    for name in options.only or SCENARIOS:
        with ExitStack() as stack:
            path = tempfile.mkdtemp(prefix="guard-agent-agents-")
            folder = Path(path).resolve()
            settings, version = stack.enter_context(open_store(options.store, folder))
            if not outcomes:
                print(f"{options.store} ({version}), Python {platform.python_version()}\n{HEAD}")
            stage = Stage(name, folder, options.store, settings)
            stack.callback(stage.close)
            SCENARIOS[name](stage, options.restarts if name == "restarts" else SIZES[name])
        outcomes.append(stage.outcome)
        print(stage.outcome.row(), flush=True)
        if options.keep:
            print(f"  {folder}")
    return 0 if all(outcome.good and outcome.confirmed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
