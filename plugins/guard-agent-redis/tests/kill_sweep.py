"""
Kill processes that use the store, and see that nothing they were promised is lost: the promise P01.

Each round starts a worker that appends records, writes down what was confirmed, leases, delivers
to a ledger, acknowledges a part, releases the rest, and is killed with SIGKILL: at a random moment,
or, where strace is there, at its N-th system call of a kind. Whoever comes next also delivers what
the dead ones left behind. A last process without faults drains the store; then every confirmed
record must stand in the ledger.

A record may stand there twice when the kill fell between its delivery and its acknowledgement, or
between the start of an append and its confirmation; a collector tells those apart by their id.

Run it for longer than the tests do::

    python plugins/guard-agent-redis/tests/kill_sweep.py --kills 500
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from guard_agent import Priority
from guard_agent.testing.records import make_context, make_record
from guard_agent.testing.redis_server import RedisServer
from guard_agent_redis import RedisSettings, RedisStore, StoreUnavailableError

TTL = 0.5
LEASE = 300
LONGEST_LIFE = 0.12
"""Seconds a worker lives at most, counted from its start."""
BOUNDS = {"max_records": 1_000_000, "max_bytes": 1 << 30}
SYSTEM_CALLS = ("sendto", "recvfrom", "epoll_wait", "write", "connect")


# --- one worker -----------------------------------------------------------------------------------


def make_store(url: str) -> RedisStore:
    context = make_context(destinations=("one",), project_id="sweep")
    return RedisStore(RedisSettings(url=url, deadline=10, **BOUNDS), context)


class Files:
    """
    What survives a worker: a line is in the file once the system call is over.

    SIGKILL can end a `write` halfway, at the end of a page. Such a line counts as not written: its
    worker did not get to what comes after.
    """

    def __init__(self, folder: Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._files = {
            name: os.open(folder / name, flags, 0o600) for name in ("tried", "confirmed", "ledger")
        }

    def write(self, name: str, batch: list[str]) -> None:
        os.write(self._files[name], f"\n{json.dumps(batch)}\n".encode())


def read(folder: Path, name: str) -> list[list[str]]:
    file = folder / name
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("]")]


async def work(url: str, folder: Path, number: int) -> None:
    """Produce and deliver until killed."""
    chance = random.Random(number)
    files = Files(folder)
    store = make_store(url)
    await store.open()
    produced = 0

    async def produce() -> None:
        nonlocal produced
        while True:
            records = []
            for _ in range(chance.choice([1, 1, 3, 40, 200])):
                produced += 1
                priority = chance.choice(list(Priority))
                records.append(make_record(number * 1_000_000 + produced, priority=priority))
            files.write("tried", [record.id for record in records])
            stored = await store.append(records, evict=False)
            files.write("confirmed", [record.id for record in records[: stored.stored]])

    async def deliver() -> None:
        while True:
            await store.release_expired()
            await deliver_one(store, files, chance)

    await asyncio.gather(produce(), deliver())


async def deliver_one(store: RedisStore, files: Files, chance: random.Random | None) -> bool:
    lease = await store.lease("one", LEASE, 256 * 1024, TTL)
    if lease is None:
        return False
    ids = list(lease.entries)
    part = ids if chance is None else chance.sample(ids, chance.randint(0, len(ids)))
    # What the collector does not take comes back; all else is in the ledger before the ack.
    if part:
        files.write("ledger", [lease.entries[entry].id for entry in part])
    await store.ack(lease, part)
    await store.release(lease, ids)
    return True


async def drain(url: str, folder: Path) -> None:
    """The process after the last kill: no faults, until nothing is pending."""
    files = Files(folder)
    store = make_store(url)
    deadline = time.monotonic() + 60
    await store.open()
    while (await store.stats())["one"].pending:
        assert time.monotonic() < deadline, "the store is never empty"
        await store.release_expired()
        if not await deliver_one(store, files, None):
            await asyncio.sleep(0.02)
    await store.close()


async def share(url: str, folder: Path, number: int, produce: int) -> None:
    """Produce so many records and deliver until the store is empty, without faults."""
    files = Files(folder)
    store = make_store(url)
    await store.open()
    for start in range(0, produce, 20):
        records = [make_record(number * 1_000_000 + start + n) for n in range(20)]
        await store.append(records, evict=False)
        files.write("confirmed", [record.id for record in records])
        await deliver_one(store, files, None)
    while (await store.stats())["one"].pending:
        if not await deliver_one(store, files, None):
            await asyncio.sleep(0.01)
    await store.close()


# --- the sweep ------------------------------------------------------------------------------------


@dataclass
class Outcome:
    kills: int = 0
    kills_by_strace: int = 0
    server_kills: int = 0
    tried: int = 0
    confirmed: int = 0
    lost: list[str] = field(default_factory=list)
    delivered: int = 0
    duplicates: int = 0
    invented: list[str] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def table(self) -> str:
        names = (
            "kills", "kills_by_strace", "server_kills", "tried", "confirmed", "lost",
            "delivered", "duplicates", "invented", "left", "seconds",
        )  # fmt: skip
        rows = []
        for name in names:
            value = getattr(self, name)
            value = len(value) if isinstance(value, list) else value
            value = f"{value:.1f}" if isinstance(value, float) else value
            rows.append(f"{name.replace('_', ' '):20}{value}")
        return "\n".join(rows)


def fork(coroutine_function, *arguments) -> int:
    """A child that runs one coroutine; much quicker than a new interpreter."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        asyncio.run(coroutine_function(*arguments))
        code = 0
    except StoreUnavailableError:
        pass  # the server died first
    except BaseException as error:  # noqa: BLE001 - a forked child must end here, whatever it is
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)
    return 0


def kill_at_random(url: str, folder: Path, number: int, chance: random.Random) -> None:
    pid = fork(work, url, folder, number)
    time.sleep(chance.uniform(0, LONGEST_LIFE))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"the worker ended by itself with {status}"


def kill_server_too(server: RedisServer, folder: Path, number: int, chance: random.Random) -> None:
    """The server dies while the worker uses it; then the worker does."""
    pid = fork(work, server.url, folder, number)
    time.sleep(chance.uniform(0, LONGEST_LIFE))
    server.kill()
    time.sleep(chance.uniform(0, 0.01))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)  # or it has ended by itself: nobody answered
    server.start()


def kill_at_system_call(url: str, folder: Path, number: int, chance: random.Random) -> bool:
    """Whether strace did it; not where it may not trace."""
    strace = shutil.which("strace")
    if strace is None:
        return False
    name = chance.choice(SYSTEM_CALLS)
    # A `write` also writes our files and wakes the loop; the others are the store's alone.
    when = 1 if name == "connect" else chance.randint(1, 60)
    command = [strace, "-f", "-qq", "-o", os.devnull, "-e", f"trace={name}"]
    command += ["-e", f"inject={name}:signal=SIGKILL:when={when}"]
    command += [sys.executable, __file__, "--worker", url, str(folder), str(number)]
    try:
        done = subprocess.run(command, timeout=20, capture_output=True, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)


def sweep(
    kills: int, *, strace_every: int = 10, server_kill_every: int = 25, seed: int = 1
) -> Outcome:
    """Run the sweep. Only from a process with one thread: it forks."""
    chance = random.Random(seed)
    outcome = Outcome()
    folder = Path(tempfile.mkdtemp(prefix="guard-agent-sweep-"))
    started = time.monotonic()
    try:
        with RedisServer(append_only=True) as server:
            for number in range(1, kills + 1):
                if server_kill_every and number % server_kill_every == 0:
                    kill_server_too(server, folder, number, chance)
                    outcome.server_kills += 1
                elif strace_every and number % strace_every == 0:
                    outcome.kills_by_strace += kill_at_system_call(
                        server.url, folder, number, chance
                    )
                else:
                    kill_at_random(server.url, folder, number, chance)
                outcome.kills += 1
            pid = fork(drain, server.url, folder)
            assert os.waitpid(pid, 0)[1] == 0, "draining failed"
            count_up(outcome, folder)
            base = "guard-agent:{sweep}:"
            outcome.left = {
                "entries": sum(server.command("XLEN", f"{base}records:{n}") for n in range(4)),
                "states": server.command("HLEN", f"{base}state:one"),
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    outcome.seconds = time.monotonic() - started
    return outcome


def count_up(outcome: Outcome, folder: Path) -> None:
    tried = {record for batch in read(folder, "tried") for record in batch}
    confirmed = {record for batch in read(folder, "confirmed") for record in batch}
    delivered = Counter(record for batch in read(folder, "ledger") for record in batch)
    outcome.tried = len(tried)
    outcome.confirmed = len(confirmed)
    outcome.lost = sorted(confirmed - delivered.keys())
    outcome.delivered = len(delivered)
    outcome.duplicates = sum(delivered.values()) - len(delivered)
    outcome.invented = sorted(delivered.keys() - (tried or confirmed))


def share_among(processes: int, records: int) -> Outcome:
    """Several processes on one store, nothing goes wrong."""
    outcome = Outcome()
    folder = Path(tempfile.mkdtemp(prefix="guard-agent-sweep-"))
    started = time.monotonic()
    try:
        with RedisServer(append_only=True) as server:
            pids = [
                fork(share, server.url, folder, number, records)
                for number in range(1, processes + 1)
            ]
            codes = [os.waitpid(pid, 0)[1] for pid in pids]
            assert codes == [0] * processes, codes
            count_up(outcome, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    outcome.seconds = time.monotonic() - started
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill workers of the Redis store.")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--strace-every", type=int, default=10, help="0 for never")
    parser.add_argument("--server-kill-every", type=int, default=25, help="0 for never")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=int, metavar="PROCESSES", help="no kills; share one store")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        url, folder, number = options.worker
        try:
            asyncio.run(work(url, Path(folder), int(number)))
        except StoreUnavailableError as error:
            sys.exit(str(error))
    if options.share:
        outcome = share_among(options.share, 2000)
        wrong = outcome.lost or outcome.invented or outcome.duplicates
    else:
        outcome = sweep(
            options.kills,
            strace_every=options.strace_every,
            server_kill_every=options.server_kill_every,
            seed=options.seed,
        )
        wrong = outcome.lost or outcome.invented or any(outcome.left.values())
        # What a dead worker had delivered and not acknowledged: one lease.
        wrong = wrong or outcome.duplicates > LEASE * outcome.kills
    print(outcome.table())  # noqa: T201 - a command
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
