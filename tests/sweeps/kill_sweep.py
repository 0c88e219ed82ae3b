"""
Kills processes that append to a store, lease, send and acknowledge, and then counts.

    python tests/sweeps/kill_sweep.py --kills 500
    python tests/sweeps/kill_sweep.py --store package.module:Store --settings '{"url": "..."}'

A victim is a process with the store: one task appends records in groups and writes down what the
store confirmed; one for each destination leases, writes what it "sends" into a ledger, and settles
it with the store. It dies by SIGKILL at a random moment, or, with strace, at the N-th system call
of one kind. At the end a process nobody kills drains the store, and the books must say:

- every confirmed record was sent, or buried, for each destination: none is lost;
- a record was sent twice only if the process that sent it first was killed before the store told
  it that the acknowledgement is done;
- nothing else was sent, and what was sent is what was appended.

The exit status is 0 when all of that is true.
"""

# ruff: noqa: T201 - a script that prints a table

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
from hashlib import blake2b
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guard_agent import Priority, Record
from guard_agent.testing.records import make_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guard_agent import BufferStore, Lease

DESTINATIONS = ("one", "two")
TTL = 2.0
"""Longer than a living victim ever takes, however slow strace makes it."""
BATCH = 50
LIFE = 0.15
"""Seconds within which a victim is killed."""
TRACED_LIFE = 1.0
DRAIN_PATIENCE = 60.0

# Kind of system call → up to which occurrence it is a victim's last one.
SYSCALLS = {
    "pwrite64": 80,
    "write": 30,
    "sendto": 20,
    "fsync": 2,
    "fdatasync": 3,
    "fcntl": 120,
    "ftruncate": 2,
    "openat": 8,
    "unlink": 1,
    "futex": 60,
    "pread64": 60,
}


class Books:
    """
    What victims write down, one line for each step, in one file for all.

    A line counts only as a whole: the kernel may have taken a part of the last one.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, *words: object) -> None:
        os.write(self._fd, ("\n" + " ".join(map(str, words)) + " .\n").encode())


def read_books(path: Path) -> Iterator[list[str]]:
    with path.open() as lines:
        for line in lines:
            words = line.split()
            if words and words[-1] == ".":
                yield words[:-1]


def make_record(name: str) -> Record:
    """The record of this name; its size, priority and payload follow from the name."""
    number = int(blake2b(name.encode(), digest_size=4).hexdigest(), 16)
    payload = json.dumps({"idempotency_key": name, "pad": "x" * (number % 600)}).encode()
    return Record(name, "event", Priority(number % 4), payload, 1.7e9 + number % 1000)


def fingerprint(record: Record) -> str:
    return blake2b(repr(tuple(record)).encode(), digest_size=6).hexdigest()


# --- the victim -----------------------------------------------------------------------------------


async def append_for_ever(store: BufferStore, books: Books, me: int) -> None:
    for number in count():
        names = [f"{me}-{number}-{n}" for n in range(random.choice((1, 2, 10, 60)))]
        books.write("try", me, *names)
        appended = await store.append([make_record(name) for name in names], evict=False)
        books.write("confirmed", me, *names[: appended.stored])
        await asyncio.sleep(random.choice((0, 0, 0.002)))


async def send_one_lease(store: BufferStore, destination: str, books: Books, me: int) -> bool:
    lease = await store.lease(destination, BATCH, 32_768, TTL)
    if lease is None:
        return False
    plan = random.choices(("ack", "partial", "release", "bury"), (20, 3, 1, 1))[0]
    ids = list(lease.entries)
    if plan == "release":
        await store.release(lease, ids)
        return True
    if plan == "bury":
        await store.bury(lease, ids[:1], "sweep")
        books.write("buried", me, destination, lease.entries[ids.pop(0)].id)
    records = [lease.entries[entry] for entry in ids]
    sent = " ".join(f"{record.id}:{fingerprint(record)}" for record in records)
    books.write("sent", me, destination, sent)
    for part in (ids[::2], ids[1::2]) if plan == "partial" else (ids,):
        await ack(store, lease, part, books, me)
    return True


async def ack(store: BufferStore, lease: Lease, ids: list[str], books: Books, me: int) -> None:
    acked = await store.ack(lease, ids)
    if acked != len(ids):
        books.write("wrong", me, f"acknowledged-{acked}-of-{len(ids)}")
    books.write("acked", me, lease.destination, *(lease.entries[entry].id for entry in ids))


async def send_for_ever(store: BufferStore, destination: str, books: Books, me: int) -> None:
    while True:
        await store.release_expired()
        if not await send_one_lease(store, destination, books, me):
            await asyncio.sleep(0.002)


async def live(store: BufferStore, books: Books, me: int) -> None:
    await store.open()
    await asyncio.gather(
        append_for_ever(store, books, me),
        *(send_for_ever(store, destination, books, me) for destination in DESTINATIONS),
    )


async def drain(store: BufferStore, books: Books) -> None:
    """Deliver everything that is left; what victims had leased comes back with time."""
    await store.open()
    deadline = time.monotonic() + DRAIN_PATIENCE
    while any(depth.pending for depth in (await store.stats()).values()):
        if time.monotonic() > deadline:
            books.write("wrong", 0, "something-stays-pending-for-ever")
            break
        await store.release_expired()
        sent = [await send_one_lease(store, name, books, 0) for name in DESTINATIONS]
        if not any(sent):
            await asyncio.sleep(0.05)
    for name in DESTINATIONS:
        for letter in await store.dead_letters(name):
            books.write("buried", 0, name, letter.record.id)
    await store.close()


# --- the sweep ------------------------------------------------------------------------------------


@dataclass
class Victim:
    number: int
    pid: int
    dies_at: float
    tracer: subprocess.Popen[bytes] | None = None
    how: str = "at a random moment"


@dataclass
class Sweep:
    """Runs victims, ``together`` at a time, until ``kills`` of them are dead."""

    make_store: Callable[[], BufferStore]
    books: Path
    kills: int
    together: int
    strace: str | None
    killed: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        living: list[Victim] = []
        numbers = count(1)
        begun = 0
        while begun < self.kills or living:
            while begun < self.kills and len(living) < self.together:
                living.append(self._start(next(numbers), traced=begun % 5 < 3))
                begun += 1
            time.sleep(0.001)
            living = [victim for victim in living if not self._dead(victim)]
        self._wait(self._fork(drain), "the last process")

    def _start(self, number: int, *, traced: bool) -> Victim:
        ready, go = os.pipe()
        pid = self._fork(lambda store, books: live(store, books, number), wait_for=ready, close=go)
        os.close(ready)
        victim = Victim(number, pid, 0.0)
        if traced and self.strace is not None:
            call, most = random.choice(list(SYSCALLS.items()))
            when = random.randint(1, most)
            victim.how = f"at a system call: {call}"
            victim.tracer = subprocess.Popen(
                [
                    *(self.strace, "-f", "-qq", "-o", os.devnull, "-p", str(pid)),
                    *("-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={when}"),
                ],
                stderr=subprocess.DEVNULL,
            )
            while f"TracerPid:\t{victim.tracer.pid}\n" not in _status(pid):
                if victim.tracer.poll() is not None:
                    victim.tracer, victim.how = None, "at a random moment"
                    break
                time.sleep(0.001)
        os.write(go, b"!")
        os.close(go)
        life = LIFE if victim.tracer is None else TRACED_LIFE
        victim.dies_at = time.monotonic() + random.uniform(life / 10 if victim.tracer else 0, life)
        return victim

    def _fork(
        self, work: Callable[[BufferStore, Books], Any], *, wait_for: int = -1, close: int = -1
    ) -> int:
        if pid := os.fork():
            return pid
        status = 1
        try:
            if wait_for >= 0:
                os.close(close)
                os.read(wait_for, 1)
            random.seed()
            asyncio.run(work(self.make_store(), Books(self.books)))
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _dead(self, victim: Victim) -> bool:
        how = victim.how
        ended, status = os.waitpid(victim.pid, os.WNOHANG)
        if not ended:
            if time.monotonic() < victim.dies_at:
                return False
            os.kill(victim.pid, signal.SIGKILL)
            _, status = os.waitpid(victim.pid, 0)
            how = "at a random moment"
        if victim.tracer is not None:
            victim.tracer.wait(30)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise SystemExit(f"victim {victim.number} failed by itself, with status {status}")
        self.killed[how] += 1
        return True

    def _wait(self, pid: int, who: str) -> None:
        _, status = os.waitpid(pid, 0)
        if status:
            raise SystemExit(f"{who} failed, with status {status}")


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


# --- the books ------------------------------------------------------------------------------------


class Examination:
    """Reads the books from the beginning and holds them against the promises."""

    def __init__(self, path: Path) -> None:
        self.tried: set[str] = set()
        self.confirmed: set[str] = set()
        self.duplicates = 0
        self.wrong: list[str] = []
        self._settled: dict[str, set[str]] = {name: set() for name in DESTINATIONS}
        # Destination and record → the victim that sent it last, None once that had its ack.
        self._sender: dict[tuple[str, str], int | None] = {}
        self._again: Counter[int] = Counter()
        for kind, me, *rest in read_books(path):
            if kind == "try":
                self.tried.update(rest)
            elif kind == "confirmed":
                self.confirmed.update(rest)
            elif kind == "buried":
                self._settled[rest[0]].update(rest[1:])
            elif kind == "acked":
                self._sender.update({(rest[0], name): None for name in rest[1:]})
            elif kind == "sent":
                for item in rest[1:]:
                    self._sent(int(me), rest[0], *item.rsplit(":", 1))
            else:
                self.wrong.append(" ".join(rest))
        if self.most_duplicates > 2 * BATCH:
            self.wrong.append("a kill led to more duplicates than what was in flight")

    def _sent(self, me: int, destination: str, name: str, seen: str) -> None:
        before = self._sender.get((destination, name), -1)
        if before is None:
            self.wrong.append(f"{name} was sent to {destination} after its ack")
        elif before == me:
            self.wrong.append(f"{name} was sent to {destination} twice by one process")
        elif before != -1:
            self.duplicates += 1
            self._again[before] += 1
        if name not in self.tried or seen != fingerprint(make_record(name)):
            self.wrong.append(f"{name} is not what was appended")
        self._sender[destination, name] = me
        self._settled[destination].add(name)

    @property
    def most_duplicates(self) -> int:
        """Of one victim, for all destinations together."""
        return max(self._again.values(), default=0)

    @property
    def delivered(self) -> set[str]:
        return {name for _, name in self._sender}

    @property
    def lost(self) -> list[str]:
        return [
            f"{name} for {destination}"
            for destination, settled in self._settled.items()
            for name in sorted(self.confirmed - settled)
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--together", type=int, default=2, help="victims at a time")
    parser.add_argument("--store", default="guard_agent.plugins.disk:DiskStore")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--no-strace", action="store_true")
    arguments = parser.parse_args()

    random.seed(arguments.seed)
    module, _, name = arguments.store.partition(":")
    store_class = getattr(import_module(module), name)
    strace = None if arguments.no_strace else shutil.which("strace")
    with tempfile.TemporaryDirectory(prefix="guard-agent-sweep-") as folder:
        books = Path(folder).resolve() / "books"

        def make_store() -> BufferStore:
            context = make_context(
                books.parent / "state",
                instance="store",
                destinations=DESTINATIONS,
                project_id=f"sweep-{os.path.basename(folder)}",  # noqa: PTH119 - a name, not a path
                max_buffer_records=1_000_000,
                max_buffer_bytes=1 << 30,
            )
            store: BufferStore = store_class(store_class.Settings(**arguments.settings), context)
            return store

        begun = time.monotonic()
        sweep = Sweep(make_store, books, arguments.kills, arguments.together, strace)
        sweep.run()
        found = Examination(books)

    unconfirmed = len(found.delivered - found.confirmed)
    print(f"store                     {arguments.store}")
    print(f"kills                     {sum(sweep.killed.values())}")
    for how, kills in sorted(sweep.killed.items()):
        print(f"  {how:<30}{kills}")
    print(f"records confirmed         {len(found.confirmed)}")
    print(f"delivered                 {len(found.delivered)}, {unconfirmed} of them unconfirmed")
    print(f"confirmed and lost        {len(found.lost)}")
    print(f"duplicates                {found.duplicates}, at most {found.most_duplicates} a kill")
    print(f"duplicates not in flight  {len(found.wrong)}")
    print(f"seconds                   {time.monotonic() - begun:.1f}")
    for problem in [*found.lost, *found.wrong][:20]:
        print(f"  {problem}")
    return 1 if found.lost or found.wrong or not found.confirmed else 0


if __name__ == "__main__":
    sys.exit(main())
