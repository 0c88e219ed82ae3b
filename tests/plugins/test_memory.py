from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from guard_agent import Appended, DeadLetter, DestinationDepth, Level, Priority
from guard_agent.plugins import memory
from guard_agent.plugins.memory import MemorySettings, MemoryStore
from guard_agent.testing.clock import VirtualClock
from guard_agent.testing.contracts import BufferStoreContract
from guard_agent.testing.records import make_context, make_record, make_records

BIG = 1 << 30


class TestMemoryStoreContract(BufferStoreContract):
    plugin = MemoryStore
    dead_letter_limit = 40

    def settings(self):
        return {"max_dead_letters": 40}


@pytest.fixture
def clock():
    return VirtualClock()


def make_store(*, clock=None, destinations=("one",), config=None, **options):
    context = make_context(destinations=destinations, **(config or {}))
    store_settings = MemorySettings(**options)
    return MemoryStore(store_settings, context, clock=clock or VirtualClock())


def ids(lease):
    return [record.id for record in lease.entries.values()]


def test_what_it_keeps_ends_with_the_process():
    assert MemoryStore.level is Level.MEMORY


FULL = """
import asyncio, re, sys, uuid
from pathlib import Path
from guard_agent import Priority, Record
from guard_agent.plugins.memory import MemorySettings, MemoryStore
from guard_agent.testing.records import make_context

size, destinations = map(int, sys.argv[1:])

def used():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

async def fill():
    for _ in range(200):
        records = [
            Record(uuid.uuid4().hex, "event", Priority.CHANGE, bytes(size), 1.7e9 + n)
            for n in range(1000)
        ]
        if (await store.append(records, evict=True)).evicted:
            return

names = tuple(map(str, range(destinations)))
context = make_context(destinations=names, max_buffer_records=10_000_000)
store = MemoryStore(MemorySettings(max_bytes=64 * 1024 * 1024), context)
before = used()
asyncio.run(fill())
print(used() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="there is no /proc to measure with"
)
@pytest.mark.parametrize("size", [40, 400, 4000])
@pytest.mark.parametrize("destinations", [1, 3])
def test_a_full_store_takes_its_bound_and_16_mib_at_most(size, destinations):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(size), str(destinations)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert 30 < float(done.stdout) <= 64 + 16


async def test_bounds_come_from_the_settings_before_the_config():
    default = make_store(config={"max_buffer_records": 3})
    own = make_store(config={"max_buffer_records": 3}, max_records=2, max_bytes=150)

    assert await default.append(make_records(5, size=100), evict=False) == Appended(3)
    assert await own.append(make_records(5, size=100), evict=False) == Appended(1)


async def test_a_store_without_destinations_keeps_nothing():
    store = make_store(destinations=())

    assert await store.append(make_records(3), evict=True) == Appended(3)
    assert await store.stats() == {}


async def test_an_unknown_destination_is_named_in_the_error():
    store = make_store(destinations=("http", "jsonl"))

    with pytest.raises(ValueError, match="no destination 'htpp'; it was made for: http, jsonl"):
        await store.lease("htpp", 1, 1, 1.0)


async def test_a_lease_ends_exactly_with_its_time(clock):
    store = make_store(clock=clock)
    await store.append(make_records(1), evict=True)
    await store.lease("one", 1, BIG, ttl=10.0)

    clock.advance(9.999)
    assert await store.release_expired() == 0
    clock.advance(0.001)
    assert await store.release_expired() == 1


async def test_a_holder_keeps_its_entries_until_the_lease_is_taken_back(clock):
    store = make_store(clock=clock)
    await store.append(make_records(2), evict=True)
    lease = await store.lease("one", 2, BIG, ttl=1.0)
    clock.advance(5.0)

    assert await store.release(lease, list(lease.entries)[:1]) == 1
    assert await store.release_expired() == 1


async def test_a_delayed_record_is_ready_exactly_after_its_delay(clock):
    store = make_store(clock=clock)
    await store.append(make_records(2), evict=True)
    lease = await store.lease("one", 2, BIG, ttl=60.0)
    await store.release(lease, list(lease.entries), delay=30.0)

    clock.advance(29.0)
    assert await store.lease("one", 2, BIG, ttl=60.0) is None
    clock.advance(1.0)
    assert ids(await store.lease("one", 2, BIG, ttl=60.0)) == ["record-1", "record-2"]


async def test_dead_letters_are_bounded_in_bytes():
    store = make_store(max_dead_letter_bytes=250)
    await store.append(make_records(4, size=100), evict=True)
    lease = await store.lease("one", 4, BIG, ttl=60.0)

    assert await store.bury(lease, list(lease.entries), "refused") == 4

    expected = [DeadLetter(make_record(n, size=100), "refused") for n in (3, 4)]
    assert list(await store.dead_letters("one")) == expected


async def test_no_dead_letters_are_kept_when_none_are_wanted():
    store = make_store(max_dead_letters=0)
    await store.append(make_records(1), evict=True)
    lease = await store.lease("one", 1, BIG, ttl=60.0)

    assert await store.bury(lease, list(lease.entries), "refused") == 1
    assert await store.stats() == {"one": DestinationDepth()}


async def test_a_newcomer_that_cannot_get_enough_room_costs_nobody_else_a_place():
    store = make_store(max_bytes=1000)
    await store.append(
        [
            make_record(1, size=800, priority=Priority.ATTACK),
            make_record(2, size=100, priority=Priority.METRIC),
        ],
        evict=True,
    )
    newcomer = make_record(3, size=300, priority=Priority.METRIC)

    assert await store.append([newcomer], evict=True) == Appended(1, {"one": 1})
    assert ids(await store.lease("one", 9, BIG, ttl=60.0)) == ["record-1", "record-2"]
    # What stayed keeps its turn.
    smaller = make_record(4, size=200, priority=Priority.METRIC)
    assert await store.append([smaller], evict=True) == Appended(1, {"one": 1})


async def test_room_for_a_large_record_counts_what_each_small_one_takes_beside_its_payload():
    beside, free = memory._OVERHEAD + memory._OVERHEAD_PER_DESTINATION, memory._FREE_OVERHEAD
    each, bound = beside + 100, 5_000_000
    store = make_store(max_records=1_000_000, max_bytes=bound)
    await store.append(make_records((free + bound) // each + 9, size=100), evict=True)

    large = make_record(0, size=500_000, priority=Priority.ATTACK)
    await store.append([large], evict=True)

    depth = (await store.stats())["one"]
    assert bound - each < depth.bytes + depth.pending * beside - free <= bound


async def test_during_an_outage_the_store_holds_no_more_than_its_records(clock):
    """
    Nothing grows with what was evicted or given back: an outage may last for days.
    """
    store = make_store(clock=clock, destinations=("one", "two"), max_records=100)
    for n in range(300):
        await store.append(make_records(50), evict=True)
        lease = await store.lease("one", 20, BIG, ttl=60.0)
        await store.release(lease, list(lease.entries), delay=1e9 if n % 2 else 0.0)

    held = held_objects(store)
    assert (await store.stats())["two"].pending == 100
    assert held < 20_000, held


@pytest.mark.parametrize("end", ["ack", "release", "bury", "expire"])
async def test_a_lease_whose_records_are_all_settled_is_forgotten(clock, end):
    store = make_store(clock=clock)
    await store.append(make_records(3), evict=True)
    lease = await store.lease("one", 3, BIG, ttl=60.0)

    for entry in lease.entries:
        assert len(store._cursors["one"].leases) == 1
        if end == "ack":
            await store.ack(lease, [entry])
        elif end == "release":
            await store.release(lease, [entry])
        elif end == "bury":
            await store.bury(lease, [entry], "refused")
    if end == "expire":
        clock.advance(60.0)
        await store.release_expired()

    assert store._cursors["one"].leases == {}


def held_objects(store):
    """How many entry ids the store refers to, wherever."""
    queues = [*store._evictable, *(q for c in store._cursors.values() for q in c.ready)]
    return (
        sum(len(queue._fresh) + len(queue._returned) for queue in queues)
        + sum(len(c.delayed) + len(c.pending) + len(c.leases) for c in store._cursors.values())
        + len(store._skipped)
        + len(store._records)
    )


def run(coroutine):
    """The result of a coroutine that never waits, which all of this store's are."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the memory store must not wait")


DESTINATIONS = ("one", "two")
MAX_RECORDS = 6
MAX_BYTES = 700


class Entry:
    """A record in the model: what each destination does with it."""

    def __init__(self, number, record):
        self.number = number
        self.record = record
        # Destination → None when ready, else (lease id, expiry); missing when done.
        self.state = dict.fromkeys(DESTINATIONS)
        self.delayed = {}

    @property
    def size(self):
        return len(self.record.payload)

    @property
    def is_leased(self):
        return any(self.state.values())


class MemoryStoreMachine(RuleBasedStateMachine):
    """
    The store against a model that scans plain lists for every question.
    """

    def __init__(self):
        super().__init__()
        self.clock = VirtualClock()
        self.store = make_store(
            clock=self.clock,
            destinations=DESTINATIONS,
            max_records=MAX_RECORDS,
            max_bytes=MAX_BYTES,
        )
        self.numbers = 0
        self.entries = []
        self.leases = []
        self.totals = {
            name: {"appended": 0, "acked": 0, "evicted": 0, "buried": 0} for name in DESTINATIONS
        }

    # the model

    def fits(self, record):
        used = sum(entry.size for entry in self.entries)
        return len(self.entries) < MAX_RECORDS and used + len(record.payload) <= MAX_BYTES

    def append_one(self, record, evict, evicted):
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
                victim = min(candidates, key=lambda e: (e.record.priority, e.number))
                self.entries.remove(victim)
            for victim in before:
                if victim not in self.entries:
                    for name in victim.state:
                        evicted[name] = evicted.get(name, 0) + 1
        self.numbers += 1
        self.entries.append(Entry(self.numbers, record))
        return True

    def expected_lease(self, destination, max_records, max_bytes):
        ready = [
            entry
            for entry in self.entries
            if destination in entry.state
            and entry.state[destination] is None
            and entry.delayed.get(destination, 0.0) <= self.clock.now
        ]
        ready.sort(key=lambda e: (-e.record.priority, e.number))
        taken, size = [], 0
        for entry in ready[:max_records]:
            size += entry.size
            if taken and size > max_bytes:
                break
            taken.append(entry)
        return taken

    def forget(self, entry, destination):
        del entry.state[destination]
        if not entry.state:
            self.entries.remove(entry)

    def some(self, data, lease_only=False):
        """A lease of the past or present, and some of its ids with what they mean."""
        if not self.leases:
            return None
        lease, meaning = data.draw(st.sampled_from(self.leases))
        chosen = data.draw(st.lists(st.sampled_from(list(lease.entries)), max_size=6))
        return lease, chosen, meaning

    def held(self, lease, chosen, meaning):
        """Which of the chosen entries the lease still holds."""
        name = lease.destination
        unique = [meaning[i] for i in dict.fromkeys(chosen)]
        return [e for e in unique if (e.state.get(name) or (None,))[0] == lease.id]

    # what can happen

    @rule(
        sizes=st.lists(
            st.tuples(st.sampled_from(Priority), st.integers(80, 400)), min_size=1, max_size=5
        ),
        evict=st.booleans(),
    )
    def append(self, sizes, evict):
        records = [make_record(size=size, priority=priority) for priority, size in sizes]
        stored, evicted = 0, {}
        for record in records:
            if not self.append_one(record, evict, evicted):
                break
            stored += 1

        assert run(self.store.append(records, evict=evict)) == Appended(stored, evicted)
        for name in DESTINATIONS:
            self.totals[name]["appended"] += stored
            self.totals[name]["evicted"] += evicted.get(name, 0)

    @rule(
        destination=st.sampled_from(DESTINATIONS),
        max_records=st.integers(1, 4),
        max_bytes=st.integers(0, 600),
        ttl=st.sampled_from([5.0, 50.0]),
    )
    def lease(self, destination, max_records, max_bytes, ttl):
        expected = self.expected_lease(destination, max_records, max_bytes)
        lease = run(self.store.lease(destination, max_records, max_bytes, ttl))
        if not expected:
            assert lease is None
            return
        assert list(lease.entries.values()) == [entry.record for entry in expected]
        for entry in expected:
            entry.state[destination] = (lease.id, self.clock.now + ttl)
        self.leases.append((lease, dict(zip(lease.entries, expected, strict=True))))

    @rule(data=st.data())
    def ack(self, data):
        if found := self.some(data):
            lease, chosen, meaning = found
            name = lease.destination
            # An entry that was evicted in the meantime is gone for everybody.
            pending = [
                meaning[i]
                for i in dict.fromkeys(chosen)
                if name in meaning[i].state and meaning[i] in self.entries
            ]
            for entry in pending:
                self.forget(entry, name)
            assert run(self.store.ack(lease, chosen)) == len(pending)
            self.totals[name]["acked"] += len(pending)

    @rule(data=st.data(), delay=st.sampled_from([0.0, 7.0]))
    def release(self, data, delay):
        if found := self.some(data):
            lease, chosen, _ = found
            held = self.held(*found)
            for entry in held:
                entry.state[lease.destination] = None
                entry.delayed[lease.destination] = self.clock.now + delay
            assert run(self.store.release(lease, chosen, delay)) == len(held)

    @rule(data=st.data())
    def bury(self, data):
        if found := self.some(data):
            lease, chosen, _ = found
            held = self.held(*found)
            for entry in held:
                self.forget(entry, lease.destination)
            assert run(self.store.bury(lease, chosen, "refused")) == len(held)
            self.totals[lease.destination]["buried"] += len(held)

    @rule(seconds=st.sampled_from([1.0, 10.0]))
    def time_passes(self, seconds):
        self.clock.advance(seconds)
        expired = 0
        for entry in self.entries:
            for name, held in entry.state.items():
                if held and held[1] <= self.clock.now:
                    entry.state[name] = None
                    expired += 1
        assert run(self.store.release_expired()) == expired

    # what must always hold

    @invariant()
    def stats_agree(self):
        stats = run(self.store.stats())
        for name in DESTINATIONS:
            pending = [entry for entry in self.entries if name in entry.state]
            leased = sum(entry.state[name] is not None for entry in pending)
            assert stats[name] == DestinationDepth(
                ready=len(pending) - leased,
                leased=leased,
                buried=self.totals[name]["buried"],
                bytes=sum(entry.size for entry in pending),
                oldest=pending[0].record.accepted_at if pending else None,
            )

    @invariant()
    def no_record_disappears(self):
        stats = run(self.store.stats())
        for name, total in self.totals.items():
            done = total["acked"] + total["evicted"] + total["buried"]
            assert total["appended"] == done + stats[name].pending


TestMemoryStoreAgainstModel = MemoryStoreMachine.TestCase
TestMemoryStoreAgainstModel.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
