from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from guard_agent import Priority, share_out
from guard_agent.plugins.memory import MemorySettings, MemoryStore
from guard_agent.testing.records import make_context, make_record

_records = st.lists(
    st.tuples(st.sampled_from(Priority), st.integers(80, 400)), min_size=1, max_size=40
)


@given(_records, st.integers(1, 24), st.integers(80, 4000))
async def test_it_takes_what_the_store_in_memory_leases(kinds, max_records, max_bytes):
    records = [make_record(n, size=size, priority=p) for n, (p, size) in enumerate(kinds)]
    store = MemoryStore(MemorySettings(), make_context(destinations=("one",)))
    await store.append(records, evict=True)
    lease = await store.lease("one", max_records, max_bytes, 60)

    ready = sorted(records, key=lambda record: -record.priority)
    taken = share_out([(record.id, record) for record in ready], max_records, max_bytes)

    assert list(taken) == [record.id for record in lease.entries.values()]
    assert list(taken.values()) == list(lease.entries.values())


def shared_out(top, low, max_records, max_bytes):
    ready = [(number, record) for number, record in enumerate([*top, *low])]
    return list(share_out(ready, max_records, max_bytes))


def test_a_lower_priority_has_its_share_to_the_record():
    top = [make_record(priority=Priority.ATTACK) for _ in range(20)]
    low = [make_record(priority=Priority.METRIC) for _ in range(20)]

    assert shared_out(top, low, 16, 1 << 20) == [*range(14), 20, 21]
    assert shared_out(top, low, 7, 1 << 20) == [*range(7)], "too few to be shared out"


def test_a_lower_priority_has_its_share_to_the_byte():
    top = [make_record(priority=Priority.ATTACK, size=441) for _ in range(3)]
    low = [make_record(priority=Priority.METRIC, size=125)]

    assert shared_out(top, low, 100, 2 * 441 + 125) == [0, 1, 3]
    assert shared_out(top, low, 100, 2 * 441 + 124) == [0, 3]


def test_of_nothing_it_takes_nothing():
    assert share_out([], 10, 1000) == {}
