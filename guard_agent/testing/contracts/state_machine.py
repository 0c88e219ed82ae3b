"""
A buffer store against a model, step by step, in sequences that hypothesis makes up.

Two owners take turns on one store, and sometimes act at the same time; leases expire, owners crash
and come back. It is part of `BufferStoreContract`; for a longer search give that other settings::

    class TestMyStore(BufferStoreContract):
        plugin = MyStore
        states = settings(STATES, max_examples=1000)

It needs hypothesis (``pip install guard-agent[testing]``). Nothing here depends on the clock of a
store, or on the speed of the machine: a lease that has to expire is a short one, and is asked for
until it is over; all others have ten minutes.
"""

from __future__ import annotations

import asyncio
import math
import time
from abc import abstractmethod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from guard_agent import (
    Appended,
    BufferStore,
    DestinationDepth,
    Lease,
    Level,
    PluginContext,
    Priority,
    Record,
)
from guard_agent.testing.records import make_context, make_record

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

STATES = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
"""Settings that find most in a few seconds."""

_ROUNDS = 4
# Some releases of hypothesis say nothing of its types.
_run: Callable[..., None] = run_state_machine_as_test

DESTINATIONS = ("one", "two")
OWNERS = ("first", "second")
MAX_RECORDS = 6
MAX_BYTES = 65_536
SIZES = (100, 8_000, 30_000)
MANY_BYTES = 1 << 30
_BURIED_AT_ONCE = 8

LONG = 600.0
"""Seconds that never pass here."""
SHORT = 0.01


def search(machine: type[BufferStoreMachine], how: settings, seconds: float) -> int:
    """
    Try sequences in a few rounds, and no further round after so many seconds.

    On a slow machine less is tried. Otherwise the alarm of a test runner would end it, which
    hypothesis takes for a failure of the step that happens to run, and cannot repeat.

    Returns:
        How many rounds it was.
    """
    end = time.monotonic() + seconds
    for number in range(1, _ROUNDS + 1):
        if how.derandomize:  # or each round would try the same
            machine = seed(number)(machine)
        _run(machine, settings=settings(how, max_examples=math.ceil(how.max_examples / _ROUNDS)))
        if time.monotonic() >= end:
            return number
    return _ROUNDS


_owners = st.sampled_from(OWNERS)
_destinations = st.sampled_from(DESTINATIONS)


class Entry:
    """A record in the model: what each destination does with it."""

    def __init__(
        self, number: int, record: Record, destinations: tuple[str, ...] = DESTINATIONS
    ) -> None:
        self.number = number
        self.record = record
        # Destination → id of the lease that holds it, None while it is ready; missing when done.
        self.held: dict[str, str | None] = dict.fromkeys(destinations)
        self.kept_back: set[str] = set()

    @property
    def size(self) -> int:
        return len(self.record.payload)

    @property
    def is_leased(self) -> bool:
        return any(holder is not None for holder in self.held.values())


class Taken:
    """A lease, the owner that took it, and what its ids mean in the model."""

    def __init__(self, owner: str, lease: Lease, entries: Iterable[Entry]) -> None:
        self.owner = owner
        self.lease = lease
        self.entries = dict(zip(lease.entries, entries, strict=True))


class Model:
    """What a store has to hold, and everybody who uses the same one."""

    def __init__(self) -> None:
        self.numbers = 0
        self.entries: list[Entry] = []
        self.taken: list[Taken] = []
        self.buried: dict[str, list[Record]] = {name: [] for name in DESTINATIONS}

    def fits(self, record: Record) -> bool:
        used = sum(entry.size for entry in self.entries)
        return len(self.entries) < MAX_RECORDS and used + len(record.payload) <= MAX_BYTES

    def append(self, record: Record, evict: bool, evicted: dict[str, int]) -> bool:
        """Put a record into the model; returns whether the store takes it over."""
        if not self.fits(record):
            if not evict:
                return False
            before = list(self.entries)
            while not self.fits(record):
                candidates = [
                    entry
                    for entry in self.entries
                    if not entry.is_leased and entry.record.priority <= record.priority
                ]
                if not candidates:
                    self.entries = before
                    for name in DESTINATIONS:
                        evicted[name] = evicted.get(name, 0) + 1
                    return True
                self.entries.remove(
                    min(candidates, key=lambda entry: (entry.record.priority, entry.number))
                )
            for victim in before:
                if victim not in self.entries:
                    for name in victim.held:
                        evicted[name] = evicted.get(name, 0) + 1
        self.insert(record)
        return True

    def insert(self, record: Record, destinations: tuple[str, ...] = DESTINATIONS) -> None:
        self.numbers += 1
        self.entries.append(Entry(self.numbers, record, destinations))

    def ready(self, destination: str, max_records: int, max_bytes: int) -> list[Entry]:
        """What the next lease has to hold."""
        ready = [
            entry
            for entry in self.entries
            if entry.held.get(destination, "") is None and destination not in entry.kept_back
        ]
        ready.sort(key=lambda entry: (-entry.record.priority, entry.number))
        chosen: list[Entry] = []
        size = 0
        for entry in ready[:max_records]:
            size += entry.size
            if chosen and size > max_bytes:
                break
            chosen.append(entry)
        return chosen

    def pending(self, destination: str) -> list[Entry]:
        return [entry for entry in self.entries if destination in entry.held]

    def forget(self, entry: Entry, destination: str) -> None:
        del entry.held[destination]
        if not entry.held:
            self.entries.remove(entry)

    def lease(self, owner: str, lease: Lease, entries: Iterable[Entry]) -> Taken:
        taken = Taken(owner, lease, entries)
        for entry in taken.entries.values():
            entry.held[lease.destination] = lease.id
        self.taken.append(taken)
        return taken

    def make_ready(self) -> None:
        """Nobody holds anything, and nothing is kept back."""
        self.taken = []
        for entry in self.entries:
            entry.held = dict.fromkeys(entry.held)
            entry.kept_back.clear()


class BufferStoreMachine(RuleBasedStateMachine):
    """
    The contract of `guard_agent.BufferStore` for two owners.

    A store whose level is memory lives in one process: both owners use one instance, and a crash
    loses everything. Any other store is made once for each owner, with the same context, and a
    crash loses nothing: the instance is left as it is, and a new one is opened beside it. What was
    leased stays leased then; of a store that is not ``shared`` it is ready in the new instance, in
    its old place, and so is all else that the owner had.
    """

    level: ClassVar[Level | None] = None
    """For a store whose level is not that of its class."""
    shared: ClassVar[bool] = True
    """Whether both owners have the same records; see `BufferStoreContract.shared`."""
    dead_letter_limit: ClassVar[int] = 40
    """How many dead letters a store keeps; the machine buries fewer."""
    patience: ClassVar[float] = 30.0
    """Seconds to wait for a store to see that a lease is over."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._folder = TemporaryDirectory(prefix="guard-agent-states-")
        project = f"states-{uuid4().hex}"
        self._context = make_context(
            Path(self._folder.name).resolve() / "state",
            instance="store",
            destinations=DESTINATIONS,
            project_id=project,
            max_buffer_records=MAX_RECORDS,
            max_buffer_bytes=MAX_BYTES,
            max_batch_bytes=MAX_BYTES,
        )
        self._left: list[BufferStore] = []
        self._stores: dict[str, BufferStore] = {}
        first = self._open()
        self._survives = (self.level or first.level) is not Level.MEMORY
        self._stores = {OWNERS[0]: first, OWNERS[1]: self._open() if self._survives else first}
        self._alone = self._survives and not self.shared
        model = Model()
        self._models = {owner: Model() if self._alone else model for owner in OWNERS}

    @abstractmethod
    def make_store(self, context: PluginContext) -> BufferStore:
        """
        A new store that is not open.

        Its bounds are those of ``context.config``. Stores made with the same context keep the same
        records; ``context.config.project_id`` and ``context.state_dir`` are new for each run.
        """
        raise NotImplementedError

    async def kill(self, store: BufferStore) -> None:
        """See `BufferStoreContract.kill`."""

    def teardown(self) -> None:
        try:
            for store in {*self._left, *self._stores.values()}:
                self._run(store.close())
            self._run(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()
            self._folder.cleanup()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    def _open(self) -> BufferStore:
        store = self.make_store(self._context)
        self._left.append(store)
        self._run(store.open())
        return store

    # --- the model --------------------------------------------------------------------------------

    @property
    def _distinct(self) -> list[Model]:
        return list({id(model): model for model in self._models.values()}.values())

    def _holds_records(self) -> bool:
        return any(model.entries for model in self._distinct)

    def _has_leased(self) -> bool:
        return any(model.taken for model in self._distinct)

    def _may_bury(self) -> bool:
        return self._has_leased() and all(
            len(found) + _BURIED_AT_ONCE <= self.dead_letter_limit
            for model in self._distinct
            for found in model.buried.values()
        )

    def _some(self, data: st.DataObject) -> tuple[Model, Taken, list[str]]:
        """A lease of the past or present, and some of its ids, perhaps with repetitions."""
        every = [taken for model in self._distinct for taken in model.taken]
        taken = data.draw(st.sampled_from(every), label="lease")
        ids = list(taken.entries)
        some = st.lists(st.sampled_from(ids), max_size=8)
        chosen = data.draw(st.one_of(st.just(ids), some), label="ids")
        return self._models[taken.owner], taken, chosen

    def _still_held(self, taken: Taken, ids: Iterable[str]) -> list[Entry]:
        """Which of the entries the lease still holds, in the order of ``ids``."""
        entries = [taken.entries[entry] for entry in dict.fromkeys(ids)]
        return [e for e in entries if e.held.get(taken.lease.destination) == taken.lease.id]

    # --- what can happen --------------------------------------------------------------------------

    @rule(
        owner=_owners,
        wanted=st.lists(
            st.tuples(st.sampled_from(Priority), st.sampled_from(SIZES)), min_size=1, max_size=5
        ),
        evict=st.booleans(),
    )
    def append(self, owner: str, wanted: list[tuple[Priority, int]], evict: bool) -> None:
        records = [make_record(size=size, priority=priority) for priority, size in wanted]
        stored = 0
        evicted: dict[str, int] = {}
        for record in records:
            if not self._models[owner].append(record, evict, evicted):
                break
            stored += 1

        appended = self._run(self._stores[owner].append(records, evict=evict))

        assert appended == Appended(stored, evicted)

    @precondition(lambda self: self._holds_records())
    @rule(
        owner=_owners,
        destination=_destinations,
        max_records=st.integers(1, 4),
        max_bytes=st.sampled_from((1, 8_200, MANY_BYTES)),
    )
    def lease(self, owner: str, destination: str, max_records: int, max_bytes: int) -> None:
        model = self._models[owner]
        expected = model.ready(destination, max_records, max_bytes)

        lease = self._run(self._stores[owner].lease(destination, max_records, max_bytes, LONG))

        if not expected:
            assert lease is None
            return
        assert list(lease.entries.values()) == [entry.record for entry in expected]
        assert lease.destination == destination
        model.lease(owner, lease, expected)

    @precondition(lambda self: self._holds_records())
    @rule(destination=_destinations, max_records=st.integers(1, 3), ack=st.booleans())
    def both_lease_at_once(self, destination: str, max_records: int, ack: bool) -> None:
        """
        Who gets what is a matter of luck, so it is settled here: hypothesis has to meet the same
        state when it repeats the same steps.
        """
        models = self._distinct
        most = max_records * len(OWNERS) // len(models)
        expected = [(m, entry) for m in models for entry in m.ready(destination, most, MANY_BYTES)]

        stores = [self._stores[owner] for owner in OWNERS]

        async def both() -> list[Record]:
            leases = await asyncio.gather(
                *(store.lease(destination, max_records, MANY_BYTES, LONG) for store in stores)
            )
            held = [(store, lease) for store, lease in zip(stores, leases, strict=True) if lease]
            settled = await asyncio.gather(
                *(
                    (store.ack if ack else store.release)(lease, list(lease.entries))
                    for store, lease in held
                )
            )
            assert settled == [len(lease.entries) for _, lease in held]
            return [record for _, lease in held for record in lease.entries.values()]

        got = self._run(both())

        ids = sorted(entry.record.id for _, entry in expected)
        assert sorted(record.id for record in got) == ids, "both share what is ready, once"
        if ack:
            for model, entry in expected:
                model.forget(entry, destination)

    @precondition(lambda self: self._holds_records())
    @rule(
        owner=_owners,
        waiting=_owners,
        destination=_destinations,
        max_records=st.integers(1, 4),
        crash=st.sampled_from((False, False, True)),
        again=st.booleans(),
    )
    def lease_and_let_it_expire(
        self,
        owner: str,
        waiting: str,
        destination: str,
        max_records: int,
        crash: bool,
        again: bool,
    ) -> None:
        """
        An owner, perhaps after a crash of the first one, gives back what nobody acknowledged.

        With ``again`` it takes the records itself, so that the first lease is a late one.
        """
        if self._alone:
            waiting = owner
        model = self._models[owner]
        expected = model.ready(destination, max_records, MANY_BYTES)
        lease = self._run(self._stores[owner].lease(destination, max_records, MANY_BYTES, SHORT))
        assert (lease is None) == (not expected)
        if lease is None:
            return
        taken = model.lease(owner, lease, expected)
        if crash:
            self._restart(owner)
        if not crash or (self._survives and not self._alone):
            released = self._run(self._wait_for_expiry(self._stores[waiting], len(expected)))
            assert released == len(expected)
        for entry in taken.entries.values():
            entry.held[destination] = None
        if again:
            self.lease(waiting, destination, max_records, MANY_BYTES)

    async def _wait_for_expiry(self, store: BufferStore, expected: int) -> int:
        released = 0
        deadline = time.monotonic() + self.patience
        while released < expected:
            assert time.monotonic() < deadline, "an expired lease was never given back"
            released += await store.release_expired()
            await asyncio.sleep(SHORT / 4)
        return released

    @precondition(lambda self: self._has_leased())
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        """Not fenced: it counts what is pending, whoever holds it now."""
        model, taken, ids = self._some(data)
        name = taken.lease.destination
        pending = [
            entry
            for entry in (taken.entries[one] for one in dict.fromkeys(ids))
            # An entry that was evicted is gone, whatever it says about itself.
            if name in entry.held and entry in model.entries
        ]
        for entry in pending:
            model.forget(entry, name)

        assert self._run(self._stores[taken.owner].ack(taken.lease, ids)) == len(pending)

    @precondition(lambda self: self._has_leased())
    @rule(data=st.data(), delay=st.sampled_from((0.0, 0.0, LONG)))
    def release(self, data: st.DataObject, delay: float) -> None:
        _, taken, ids = self._some(data)
        held = self._still_held(taken, ids)
        for entry in held:
            entry.held[taken.lease.destination] = None
            if delay:
                entry.kept_back.add(taken.lease.destination)

        released = self._run(self._stores[taken.owner].release(taken.lease, ids, delay))

        assert released == len(held)

    @precondition(lambda self: self._may_bury())
    @rule(data=st.data())
    def bury(self, data: st.DataObject) -> None:
        model, taken, ids = self._some(data)
        held = self._still_held(taken, ids)
        for entry in held:
            model.forget(entry, taken.lease.destination)
            model.buried[taken.lease.destination].append(entry.record)

        buried = self._run(self._stores[taken.owner].bury(taken.lease, ids, "refused"))

        assert buried == len(held)

    @precondition(lambda self: any(any(model.buried.values()) for model in self._distinct))
    @rule(owner=_owners, destination=_destinations, limit=st.integers(0, 4))
    def replay(self, owner: str, destination: str, limit: int) -> None:
        replayed = 0
        model = self._models[owner]
        buried = model.buried[destination]
        while replayed < limit and buried and model.fits(buried[0]):
            model.insert(buried.pop(0), (destination,))
            replayed += 1

        assert self._run(self._stores[owner].replay(destination, limit)) == replayed

    @precondition(lambda self: self._has_leased())
    @rule(owner=_owners)
    def nothing_else_expires(self, owner: str) -> None:
        assert self._run(self._stores[owner].release_expired()) == 0

    @rule(owner=_owners, destination=_destinations)
    def look(self, owner: str, destination: str) -> None:
        """All that waits is seen, leased or not; the invariants say that it stays as it is."""
        store = self._stores[owner]
        if type(store).peek is BufferStore.peek:
            return
        peeked = self._run(store.peek(destination, None, 100))

        pending = self._models[owner].pending(destination)
        assert sorted(record.id for record in peeked.records) == sorted(
            entry.record.id for entry in pending
        )

    @precondition(lambda self: self._holds_records())
    @rule(owner=_owners, close=st.booleans())
    def crash_or_close(self, owner: str, close: bool) -> None:
        """What the owner had leased stays leased; nobody knows its leases any more."""
        if close and self._survives:
            self._run(self._stores[owner].close())
        self._restart(owner)

    def _restart(self, owner: str) -> None:
        model = self._models[owner]
        if not self._survives:
            self._models = dict.fromkeys(OWNERS, Model())
            self._stores = dict.fromkeys(OWNERS, self._open())
            return
        if self._alone:
            self._run(self.kill(self._stores[owner]))
            model.make_ready()
        model.taken = [taken for taken in model.taken if taken.owner != owner]
        self._stores[owner] = self._open()

    # --- what must always hold --------------------------------------------------------------------

    @invariant()
    def the_depths_are_those_of_the_model(self) -> None:
        for owner in self._observers():
            model, stats = self._models[owner], self._run(self._stores[owner].stats())
            assert set(stats) == set(DESTINATIONS)
            for name in DESTINATIONS:
                pending = model.pending(name)
                leased = sum(entry.held[name] is not None for entry in pending)
                assert stats[name].oldest in _oldest(pending)
                assert stats[name] == DestinationDepth(
                    ready=len(pending) - leased,
                    leased=leased,
                    buried=len(model.buried[name]),
                    bytes=sum(entry.size for entry in pending),
                    oldest=stats[name].oldest,
                )

    @invariant()
    def dead_letters_are_kept_in_order(self) -> None:
        for owner in OWNERS if self._alone else OWNERS[:1]:
            for name, records in self._models[owner].buried.items():
                if records:
                    letters = self._run(self._stores[owner].dead_letters(name))
                    assert [letter.record for letter in letters] == records

    def _observers(self) -> tuple[str, ...]:
        """One for each instance."""
        return OWNERS if self._survives else OWNERS[:1]


def _oldest(pending: Sequence[Entry]) -> set[float | None]:
    """
    When the oldest of these was accepted.

    One that was replayed is old and came last, so it may count as either: a store can go by what
    came first, or by what was accepted first among the first of each priority.
    """
    firsts: dict[Priority, float] = {}
    for entry in pending:
        firsts.setdefault(entry.record.priority, entry.record.accepted_at)
    return {next(iter(firsts.values()), None), min(firsts.values(), default=None)}
