from __future__ import annotations

import threading
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from guard_agent import Priority
from guard_agent.core.intake.ring import Ring
from guard_agent.core.interfaces import DropReason
from guard_agent.core.ledger import Ledger
from guard_agent.testing.records import make_record

METRIC, DIAGNOSTIC, CHANGE, ATTACK = Priority


class Bench:
    """A ring whose wake-ups are counted."""

    def __init__(self, *, max_records=10, max_bytes=100_000, wake_at=1_000, watermark=1.0):
        self.ledger = Ledger(("test",))
        self.wakes = 0
        self.ring = Ring(
            self.ledger,
            max_records=max_records,
            max_bytes=max_bytes,
            wake_at=wake_at,
            watermark=watermark,
            on_wake=self._wake,
        )

    def _wake(self):
        self.wakes += 1

    def put(self, n, priority=CHANGE, *, size=None, evict=True):
        kind = "metric" if priority is METRIC else "event"
        return self.ring.put(make_record(n, kind=kind, priority=priority, size=size), evict=evict)

    def take(self, limit=1_000):
        return self.ring.take(limit)

    def ids(self):
        """The ids of everything that waits, in the order in which it would be taken."""
        records = self.take()
        self.ring.put_back(records)
        return [record.id.removeprefix("record-") for record in records]

    def assert_balanced(self):
        dropped = sum(self.ledger.dropped.values())
        assert self.ledger.accepted == dropped + len(self.ring)


# --- order ----------------------------------------------------------------------------------------


def test_empty():
    bench = Bench()

    assert bench.take() == []
    assert (len(bench.ring), bench.ring.bytes, bench.ring.waiting) == (0, 0, 0)
    assert bench.ring.oldest is None
    assert not bench.ring.under_pressure()


def test_the_highest_priority_is_taken_first_and_the_oldest_within_it():
    bench = Bench()
    for n, priority in enumerate([METRIC, ATTACK, CHANGE, ATTACK, METRIC, DIAGNOSTIC]):
        bench.put(n, priority)

    assert bench.ids() == ["1", "3", "2", "5", "0", "4"]


def test_take_takes_no_more_than_it_may():
    bench = Bench()
    for n in range(5):
        bench.put(n)

    assert [record.id for record in bench.take(2)] == ["record-0", "record-1"]
    assert (len(bench.ring), bench.ring.waiting) == (5, 3)


def test_what_is_put_back_is_the_oldest_again():
    bench = Bench()
    for n in range(4):
        bench.put(n)
    taken = bench.take(3)
    bench.put(4)

    bench.ring.done(taken[:1])
    bench.ring.put_back(taken[1:])

    assert bench.ids() == ["1", "2", "3", "4"]


def test_oldest_is_the_time_of_the_oldest_that_waits():
    bench = Bench()
    bench.put(7, ATTACK)
    bench.put(3, METRIC)

    assert bench.ring.oldest == make_record(3).accepted_at
    bench.take()
    assert bench.ring.oldest is None


# --- bounds ---------------------------------------------------------------------------------------


def test_records_are_bounded_exactly():
    bench = Bench(max_records=3)

    assert [bench.put(n, evict=False) for n in range(4)] == [True, True, True, False]
    assert len(bench.ring) == 3
    assert bench.ledger.accepted == 3


def test_bytes_are_bounded_exactly():
    bench = Bench(max_bytes=1_000)

    assert bench.put(1, size=600, evict=False)
    assert not bench.put(2, size=401, evict=False)
    assert bench.put(3, size=400, evict=False)
    assert bench.ring.bytes == 1_000


def test_what_is_taken_counts_until_it_is_done():
    bench = Bench(max_records=2, max_bytes=1_000)
    bench.put(1, size=500)
    bench.put(2, size=500)
    taken = bench.take()

    assert not bench.put(3, evict=False)
    bench.ring.done(taken[:1])
    assert (len(bench.ring), bench.ring.bytes) == (1, 500)
    assert bench.put(3, size=500, evict=False)


def test_the_lowest_priority_is_evicted_first_and_the_oldest_within_it():
    bench = Bench(max_records=4)
    for n, priority in enumerate([CHANGE, METRIC, DIAGNOSTIC, METRIC]):
        bench.put(n, priority)

    left = []
    for n in range(4, 8):
        assert bench.put(n, ATTACK)
        left.append(bench.ids())

    assert left == [
        ["4", "0", "2", "3"],
        ["4", "5", "0", "2"],
        ["4", "5", "6", "0"],
        ["4", "5", "6", "7"],
    ]
    assert bench.ledger.dropped == {DropReason.OVERFLOW: 4}
    bench.assert_balanced()


def test_among_equals_the_oldest_gives_way():
    bench = Bench(max_records=2)
    for n in range(4):
        bench.put(n)

    assert bench.ids() == ["2", "3"]


def test_a_newcomer_does_not_evict_what_is_higher():
    bench = Bench(max_records=2)
    bench.put(1, ATTACK)
    bench.put(2, CHANGE)

    assert bench.put(3, METRIC)

    assert bench.ids() == ["1", "2"]
    assert bench.ledger.dropped == {DropReason.OVERFLOW: 1}
    bench.assert_balanced()


def test_a_newcomer_that_would_not_fit_anyway_evicts_nothing():
    """
    Giving up lower records for one that is dropped all the same would lose them for nothing.
    """
    bench = Bench(max_bytes=1_000)
    bench.put(1, ATTACK, size=700)
    bench.put(2, METRIC, size=200)

    assert bench.put(3, CHANGE, size=400)

    assert bench.ids() == ["1", "2"]
    assert bench.ledger.dropped == {DropReason.OVERFLOW: 1}
    bench.assert_balanced()


def test_as_many_are_evicted_as_the_bytes_need():
    bench = Bench(max_bytes=1_000)
    for n in range(4):
        bench.put(n, METRIC, size=250)

    bench.put(9, ATTACK, size=600)

    assert bench.ids() == ["9", "3"]
    assert bench.ring.bytes == 850
    bench.assert_balanced()


def test_no_more_are_evicted_than_the_bytes_need():
    bench = Bench(max_bytes=1_000)
    for n in range(4):
        bench.put(n, METRIC, size=250)

    bench.put(9, ATTACK, size=500)

    assert bench.ids() == ["9", "2", "3"]
    assert bench.ring.bytes == 1_000


def test_a_newcomer_may_need_all_the_bytes_there_are():
    bench = Bench(max_bytes=1_000)
    bench.put(1, METRIC, size=600)

    bench.put(2, ATTACK, size=1_000)

    assert bench.ids() == ["2"]


def test_what_is_in_transit_is_not_evicted():
    bench = Bench(max_records=2)
    bench.put(1, METRIC)
    bench.put(2, METRIC)
    taken = bench.take()

    assert bench.put(3, ATTACK)

    assert bench.ledger.dropped == {DropReason.OVERFLOW: 1}
    bench.ring.put_back(taken)
    assert bench.ids() == ["1", "2"]
    bench.assert_balanced()


# --- end ------------------------------------------------------------------------------------------


def test_after_close_everything_is_dropped_for_its_reason():
    bench = Bench()
    bench.put(1)
    bench.ring.close(DropReason.STOPPED)

    assert bench.put(2)
    assert bench.put(3, evict=False)

    assert bench.ids() == ["1"]
    assert bench.ledger.dropped == {DropReason.STOPPED: 2}
    bench.assert_balanced()


def test_what_comes_after_close_is_booked_by_its_kind():
    bench = Bench()
    bench.ring.close(DropReason.STOPPED)

    bench.put(1, METRIC)
    bench.put(2, ATTACK)

    assert (bench.ledger.accepted, bench.ledger.accepted_metrics) == (2, 1)
    assert bench.ledger.dropped_metrics == 1


def test_a_summary_gets_in_after_close_and_is_counted_as_what_it_is():
    bench = Bench()
    bench.ring.close(DropReason.STOPPED)
    metric = make_record(1, kind="metric", priority=METRIC)

    assert bench.ring.put(metric, evict=True, summary=True)

    assert len(bench.ring) == 1
    assert (bench.ledger.summaries, bench.ledger.accepted) == (1, 0)
    assert (bench.ledger.accepted_metrics, bench.ledger.dropped_metrics) == (0, 0)


def test_an_empty_ring_has_room_for_all_its_bytes():
    bench = Bench(max_bytes=200)
    for n in range(3):
        bench.put(n, size=200)
        bench.ring.abandon(DropReason.SHUTDOWN)
        assert bench.ring.bytes == 0
        bench.put(n, size=200)
        bench.ring.done(bench.take())
        assert bench.ring.bytes == 0
    assert bench.ledger.dropped == {DropReason.SHUTDOWN: 3}


def test_abandon_gives_up_what_waits_and_what_was_taken():
    bench = Bench(max_records=3)
    for n in range(3):
        bench.put(n)
    bench.take(1)

    assert bench.ring.abandon(DropReason.SHUTDOWN) == 3

    assert (len(bench.ring), bench.ring.bytes, bench.ring.waiting) == (0, 0, 0)
    assert bench.ledger.dropped == {DropReason.SHUTDOWN: 3}
    assert bench.ring.abandon(DropReason.SHUTDOWN) == 0
    bench.assert_balanced()


def test_abandon_books_the_metrics_that_wait_as_metrics():
    bench = Bench()
    for n, priority in enumerate([METRIC, CHANGE, METRIC]):
        bench.put(n, priority)

    bench.ring.abandon(DropReason.SHUTDOWN)

    assert bench.ledger.dropped == {DropReason.SHUTDOWN: 3}
    assert bench.ledger.dropped_metrics == 2


def test_abandon_ends_the_pressure_and_leaves_a_ring_that_works():
    bench = Bench(max_records=3, wake_at=2)
    for n in range(3):
        bench.put(n)
    assert bench.ring.under_pressure()

    bench.ring.abandon(DropReason.SHUTDOWN)

    assert not bench.ring.under_pressure()
    assert bench.put(4)
    assert bench.ids() == ["4"]
    bench.assert_balanced()


@pytest.mark.parametrize("late", ["done", "put_back"])
def test_what_comes_back_after_abandon_is_not_booked_twice(late):
    bench = Bench()
    bench.put(1)
    taken = bench.take()
    bench.ring.abandon(DropReason.SHUTDOWN)

    getattr(bench.ring, late)(taken)

    assert (len(bench.ring), bench.ring.bytes, bench.ring.waiting) == (0, 0, 0)
    bench.assert_balanced()


def test_a_drop_before_the_ring_is_booked():
    bench = Bench()
    bench.ring.drop(DropReason.INVALID, "event")

    assert bench.ledger.dropped == {DropReason.INVALID: 1}
    assert (bench.ledger.accepted_metrics, bench.ledger.dropped_metrics) == (0, 0)
    bench.ring.drop(DropReason.INVALID, "metric")
    assert bench.ledger.dropped == {DropReason.INVALID: 2}
    assert (bench.ledger.accepted_metrics, bench.ledger.dropped_metrics) == (1, 1)
    bench.assert_balanced()


# --- wake-ups -------------------------------------------------------------------------------------


def test_the_first_record_wakes_and_the_next_ones_do_not():
    bench = Bench()

    for n in range(5):
        bench.put(n)

    assert bench.wakes == 1
    bench.ring.done(bench.take())
    bench.put(6)
    assert bench.wakes == 2


def test_reaching_the_flush_size_wakes_once_more():
    bench = Bench(wake_at=3)
    wakes = []
    for n in range(5):
        bench.put(n)
        wakes.append(bench.wakes)

    assert wakes == [1, 1, 2, 2, 2]
    assert bench.ring.under_pressure()


@pytest.mark.parametrize(
    ("limits", "size"), [({"max_records": 4}, 250), ({"max_bytes": 1_000}, 250)]
)
def test_the_watermark_wakes_in_records_and_in_bytes(limits, size):
    bench = Bench(**limits, watermark=0.5)
    wakes = []
    for n in range(3):
        bench.put(n, size=size)
        wakes.append(bench.wakes)

    assert wakes == [1, 2, 2]


def test_pressure_ends_when_enough_is_done():
    bench = Bench(wake_at=3)
    for n in range(4):
        bench.put(n)
    taken = bench.take(2)
    assert bench.ring.under_pressure()

    bench.ring.done(taken)

    assert not bench.ring.under_pressure()
    bench.put(5)
    assert bench.wakes == 3


def test_pressure_lasts_as_long_as_the_flush_size_is_there():
    bench = Bench(wake_at=3)
    for n in range(5):
        bench.put(n)

    bench.ring.done(bench.take(2))
    assert bench.ring.under_pressure()
    bench.ring.done(bench.take(1))
    assert not bench.ring.under_pressure()


@pytest.mark.parametrize("limits", [{"wake_at": 1}, {"max_records": 1, "watermark": 0.5}], ids=str)
def test_the_least_flush_size_is_one_record(limits):
    bench = Bench(**limits)
    assert not bench.ring.under_pressure()

    bench.put(1)

    assert bench.ring.under_pressure()


def test_what_is_dropped_wakes_nobody():
    bench = Bench()
    bench.ring.close(DropReason.STOPPED)
    bench.put(1)
    bench.ring.drop(DropReason.INVALID, "event")

    assert bench.wakes == 0


def test_the_wake_up_may_use_the_ring():
    """
    A wake-up that starts the thread logs, and a log handler may record an event.
    """
    ledger = Ledger(("test",))
    ring: Ring

    def wake():
        if len(ring) < 3:
            ring.put(make_record(), evict=True)

    ring = Ring(ledger, max_records=10, max_bytes=10_000, wake_at=1, watermark=1.0, on_wake=wake)
    ring.put(make_record(), evict=True)

    assert ledger.accepted == len(ring)


# --- room -----------------------------------------------------------------------------------------


def test_who_was_refused_waits_until_something_is_taken_over():
    bench = Bench(max_bytes=1_000)
    bench.put(1, size=900)
    refused = threading.Event()
    stored = threading.Event()

    def producer():
        while not bench.put(2, size=200, evict=False):
            refused.set()
            bench.ring.wait_for_room(10)
        stored.set()

    thread = threading.Thread(target=producer)
    thread.start()
    assert refused.wait(30)
    bench.ring.done(bench.take())
    thread.join(30)

    assert stored.is_set()
    assert bench.ids() == ["2"]


def test_waiting_for_room_does_not_spin():
    """
    The ring has bytes left, just not enough: whoever was refused must sleep all the same.
    """
    bench = Bench(max_bytes=1_000)
    bench.put(1, size=900)
    assert not bench.put(2, size=200, evict=False)

    begin = time.monotonic()
    bench.ring.wait_for_room(0.05)

    assert time.monotonic() - begin >= 0.04


def test_who_was_not_refused_does_not_wait():
    bench = Bench(max_records=1)
    bench.put(1)

    bench.ring.wait_for_room(3600)


def test_who_was_refused_does_not_wait_when_something_was_taken_over_since():
    bench = Bench(max_records=1)
    bench.put(1)
    assert not bench.put(2, evict=False)
    bench.ring.done(bench.take())

    bench.ring.wait_for_room(3600)

    assert bench.put(2, evict=False)


@pytest.mark.parametrize("end", ["close", "abandon"])
def test_the_end_wakes_those_who_wait(end):
    bench = Bench(max_records=1)
    bench.put(1)
    bench.put(2, evict=False)
    called = threading.Event()
    bench.ring.call_when_room(called.set)
    thread = threading.Thread(target=bench.ring.wait_for_room, args=(3600,))
    thread.start()

    getattr(bench.ring, end)(DropReason.STOPPED)
    thread.join(30)

    assert not thread.is_alive()
    assert called.is_set()


def test_a_callback_is_called_once():
    bench = Bench()
    calls = []
    bench.ring.call_when_room(lambda: calls.append(1))

    for n in range(2):
        bench.put(n)
        bench.ring.done(bench.take())

    assert calls == [1]


def test_a_callback_that_raises_does_not_look_like_a_failing_store():
    bench = Bench()
    calls = []

    def closed():
        msg = "Event loop is closed"
        raise RuntimeError(msg)

    bench.ring.call_when_room(closed)
    bench.ring.call_when_room(lambda: calls.append(1))
    bench.put(1)

    bench.ring.done(bench.take())

    assert calls == [1]
    assert len(bench.ring) == 0


def test_callbacks_are_bounded():
    """
    Who polls for room while the store is away for hours leaves a callback behind each time.
    """
    bench = Bench()
    calls: list[int] = []
    for n in range(5_000):
        bench.ring.call_when_room(lambda n=n: calls.append(n))

    bench.put(1)
    bench.ring.done(bench.take())

    assert calls == list(range(4_000, 5_000))


# --- together -------------------------------------------------------------------------------------


@pytest.mark.parametrize("evict", [True, False])
def test_threads_lose_nothing_uncounted(evict):
    bench = Bench(max_records=50, wake_at=20)
    everybody = threading.Barrier(9)
    finished = threading.Event()
    refused = [0] * 8
    stored: set[str] = set()

    def producer(number):
        everybody.wait()
        for n in range(2_000):
            priority = Priority(n % 4)
            if not bench.put(number * 10_000 + n, priority, evict=evict):
                refused[number] += 1

    def taker():
        everybody.wait()
        while not (finished.is_set() and not bench.ring.waiting):
            records = bench.take(7)
            bench.ring.done(records[:5])
            stored.update(record.id for record in records[:5])
            bench.ring.put_back(records[5:])

    producers = [threading.Thread(target=producer, args=(number,)) for number in range(8)]
    consumer = threading.Thread(target=taker)
    for thread in (*producers, consumer):
        thread.start()
    for thread in producers:
        thread.join()
    finished.set()
    consumer.join()

    assert (len(bench.ring), bench.ring.bytes) == (0, 0)
    assert bench.ledger.accepted + sum(refused) == 16_000
    assert bench.ledger.accepted == len(stored) + bench.ledger.dropped[DropReason.OVERFLOW]
    assert not any(refused) or not evict


class RingMachine(RuleBasedStateMachine):
    """The ring beside a plain list."""

    @initialize(max_records=st.integers(1, 6), max_bytes=st.integers(400, 1_500))
    def start(self, max_records, max_bytes):
        self.bench = Bench(max_records=max_records, max_bytes=max_bytes, wake_at=3)
        self.limits = max_records, max_bytes
        self.put_so_far = {}
        self.taken = []
        self.done = []

    @rule(priority=st.sampled_from(Priority), size=st.integers(120, 400), evict=st.booleans())
    def put(self, priority, size, evict):
        before = self.bench.ids()
        fits, fits_when_others_give_way = self.fits(before, priority, size)
        n = len(self.put_so_far)
        self.put_so_far[str(n)] = priority, size

        accepted = self.bench.put(n, priority, size=size, evict=evict)

        after = self.bench.ids()
        assert accepted == (evict or fits)
        assert (str(n) in after) == (fits or (evict and fits_when_others_give_way))
        if str(n) not in after:
            assert after == before, "nothing gives way for what is dropped all the same"

    def fits(self, waiting, priority, size):
        """Whether a record fits, and whether it does when all that may give way for it does."""
        count, length = len(self.bench.ring), self.bench.ring.bytes + size
        lower = [self.put_so_far[n][1] for n in waiting if self.put_so_far[n][0] <= priority]
        return (
            count < self.limits[0] and length <= self.limits[1],
            count - len(lower) < self.limits[0] and length - sum(lower) <= self.limits[1],
        )

    @rule(kind=st.sampled_from(["event", "metric"]))
    def drop(self, kind):
        self.bench.ring.drop(DropReason.INVALID, kind)

    @rule(limit=st.integers(0, 4))
    def take(self, limit):
        self.taken += self.bench.take(limit)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def finish(self, data):
        count = data.draw(st.integers(0, len(self.taken)))
        self.bench.ring.done(self.taken[:count])
        self.bench.ring.put_back(self.taken[count:])
        self.done += self.taken[:count]
        self.taken = []

    @invariant()
    def bounds_and_books_hold(self):
        ring, ledger = self.bench.ring, self.bench.ledger
        assert len(ring) <= self.limits[0]
        assert ring.bytes <= self.limits[1]
        assert ring.waiting == len(ring) - len(self.taken)
        assert ledger.accepted == sum(ledger.dropped.values()) + len(self.done) + len(ring)
        metrics = sum(record.kind == "metric" for record in [*self.taken, *self.done])
        assert ledger.accepted_metrics == ledger.dropped_metrics + metrics + ring.metrics


TestRingMachine = RingMachine.TestCase
TestRingMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
