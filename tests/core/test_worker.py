"""What the agent's thread does when, and what it does when one of its parts does not work."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError
from contextlib import suppress
from itertools import pairwise

import pytest

from guard_agent import Accepted, AgentConfig, Level, Reject, Retry, RuleSet, RuleSource
from guard_agent.core.agent import Agent
from guard_agent.core.assembly.composition import compose
from guard_agent.core.delivery import worker as worker_module
from guard_agent.core.delivery.calls import GRACE
from guard_agent.core.delivery.worker import THREAD_NAME, _Passes, _wait
from guard_agent.core.interfaces import DestinationDepth
from guard_agent.core.models import AgentStatus
from guard_agent.plugins.memory import MemoryStore
from guard_agent.testing.records import make_event
from guard_agent.testing.registry import isolated_registry
from guard_agent.testing.transports import RecordingTransport, ScriptedTransport

NAME = "scripted"
FAILING = "the store is not available, what it does not take waits in memory: "


def scripted(*script):
    class Scripted(ScriptedTransport):
        def __init__(self, settings, context):
            super().__init__(*script, settings=settings, context=context)

    return Scripted


class Journal(MemoryStore):
    """Memory, but the agent takes it for a store that outlives the process."""

    name = "journal"
    level = Level.JOURNAL


class Flaky(MemoryStore):
    """Its method ``broken`` fails the first ``failures`` times."""

    name = "flaky"
    broken = ""
    failures = 2
    calls: list[float]

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.calls = []

    def _step(self, method):
        if method == self.broken:
            self.calls.append(time.monotonic())
            if len(self.calls) <= self.failures:
                raise OSError("no room")

    async def open(self):
        self._step("open")

    async def append(self, records, *, evict):
        self._step("append")
        return await super().append(records, evict=evict)

    async def lease(self, destination, max_records, max_bytes, ttl):
        self._step("lease")
        return await super().lease(destination, max_records, max_bytes, ttl)

    async def release_expired(self):
        self._step("release_expired")
        return await super().release_expired()

    async def stats(self):
        self._step("stats")
        return await super().stats()


class Rules(RuleSource):
    name = "rules"
    interval = 3600.0

    async def fetch(self, known):
        return RuleSet({"rule_id": "r", "version": 1, "ip_blacklist": ["192.0.2.9"]}, "v1")


def transport_of(agent):
    (destination,) = agent._current().destinations.values()
    return destination.transport


def worker_of(agent):
    return agent._current().worker


def store_of(agent):
    return agent._current().lanes.memory._store


def record(agent, count=1):
    for _ in range(count):
        agent.record("event", make_event())


def books(agent):
    agent.look().result(20)
    (balance,) = agent.balances().values()
    return balance


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def pass_time(agent, seconds=0.1):
    """Let the loop of the agent run for a while, in which nothing is to happen."""
    worker_of(agent).submit(lambda: asyncio.sleep(seconds)).result(20)


# --- the thread -----------------------------------------------------------------------------------


def test_the_work_is_done_in_one_thread_that_the_end_of_the_program_does_not_wait_for(make_agent):
    seen = []

    def look(_):
        seen.append((threading.current_thread(), worker_of(agent).is_current_thread))
        return Accepted()

    agent = make_agent(scripted(look))
    assert not worker_of(agent).running
    record(agent)
    agent.flush().result(20)

    ((thread, is_own),) = seen
    assert (thread.name, thread.daemon, is_own) == (THREAD_NAME, True, True)
    assert worker_of(agent).running
    assert not worker_of(agent).is_current_thread


def test_p12_waking_the_agent_in_its_own_thread_does_not_make_its_work_that_of_the_app(make_agent):
    def talk(_):
        agent.flush()
        agent.record("event", make_event())
        return Accepted()

    agent = make_agent(scripted(talk))
    record(agent)
    agent.flush().result(20)

    assert books(agent).dropped == {"internal": 1}
    record(agent)
    assert agent.balances()[NAME].dropped == {"internal": 1}, "the app is heard as before"


def test_p12_what_the_app_sees_of_waking_the_agent_is_the_agents_own(make_agent, monkeypatch):
    """
    It writes to a socket, and the app may have something recorded for each that is written to.
    """
    agent = make_agent(RecordingTransport)
    agent.start()
    loop = worker_of(agent)._loop
    write = loop._write_to_self

    def instrumented():
        agent.record("event", make_event())
        write()

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_write_to_self", instrumented)
        worker_of(agent).wake()

    assert books(agent).dropped == {"internal": 1}
    record(agent)
    assert agent.balances()["recording"].dropped == {"internal": 1}


@pytest.mark.parametrize("error", [ValueError("bad"), asyncio.CancelledError()])
def test_whoever_submits_work_gets_what_came_of_it(make_agent, error):
    agent = make_agent(RecordingTransport)
    agent.start()

    async def answer():
        return 42

    async def fail():
        raise error

    assert worker_of(agent).submit(answer).result(20) == 42
    assert isinstance(worker_of(agent).submit(fail).exception(20), type(error))


def test_work_that_nobody_waits_for_any_more_harms_nothing(make_agent):
    agent = make_agent(RecordingTransport)
    agent.start()

    future = worker_of(agent).submit(lambda: asyncio.sleep(0.01))
    assert future.cancel()

    pass_time(agent, 0.05)


def test_of_work_that_is_done_nothing_is_kept(make_agent, caplog):
    agent = make_agent(RecordingTransport)
    agent.start()
    worker = worker_of(agent)
    for _ in range(5):
        worker.submit(lambda: asyncio.sleep(0)).result(20)

    until(lambda: not worker._submitted and not worker._work)
    assert "exception" not in caplog.text


def test_p11_work_that_resists_does_not_keep_stop_from_its_end(make_agent):
    async def resist():
        begun.set()
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    begun, over = threading.Event(), threading.Event()
    agent = make_agent(RecordingTransport, stop_timeout=0.2)
    agent.start()
    record(agent)
    worker_of(agent).submit(resist)
    begun.wait(20)

    try:
        agent.stop().result(20)
    finally:
        over.set()

    assert agent.balances()["recording"].delivered == 1


def test_work_is_cancelled_when_the_agent_has_not_begun_or_has_ended(make_agent):
    agent = make_agent(RecordingTransport)
    worker = worker_of(agent)
    assert worker.submit(lambda: asyncio.sleep(0)).cancelled()
    agent.start()
    waiting = worker.submit(asyncio.Event().wait)

    agent.stop().result(20)

    with pytest.raises((CancelledError, asyncio.CancelledError)):
        waiting.result(20)
    assert worker.submit(lambda: asyncio.sleep(0)).cancelled()
    worker._thread.join(20)  # it says that it has ended before it has
    assert not worker.running


def test_a_thread_that_cannot_start_leaves_nothing_behind(make_agent, monkeypatch):
    worker = worker_of(make_agent(RecordingTransport))

    def refuse():
        raise RuntimeError("no thread")

    monkeypatch.setattr(worker._thread, "start", refuse)
    with pytest.raises(RuntimeError, match="no thread"):
        worker.start()

    worker.wake()
    worker.want_rules()
    assert worker.submit(lambda: asyncio.sleep(0)).cancelled()
    assert not worker.running


def test_p11_a_job_with_a_defect_begins_again_after_growing_pauses(make_agent, monkeypatch, caplog):
    class DefectError(Exception):
        pass

    monkeypatch.setattr(worker_module, "_RESTART_FIRST", 0.02)
    monkeypatch.setattr(worker_module, "_RESTART_MAX", 0.05)
    agent = make_agent(RecordingTransport)
    agent.start()
    begun = []

    async def job():
        begun.append(time.monotonic())
        if len(begun) < 6:
            raise SystemExit(3) if len(begun) == 2 else DefectError

    worker_of(agent).submit(lambda: worker_of(agent)._guard(job)).result(20)

    pauses = [later - before for before, later in pairwise(begun)]
    assert len(pauses) == 5
    assert all(
        pause >= least * 0.99
        for pause, least in zip(pauses, [0.02, 0.04, 0.05, 0.05, 0.05], strict=True)
    )
    assert caplog.text.count("a job of the agent failed") == 5
    caplog.clear()


def test_p11_a_job_with_a_defect_does_not_begin_again_at_the_end(make_agent, caplog):
    agent = make_agent(RecordingTransport)
    agent.start()
    worker = worker_of(agent)
    begun = []

    async def job():
        begun.append(1)
        await worker._stopping.wait()
        raise ValueError

    guarded = worker.submit(lambda: worker._guard(job))
    until(lambda: begun)
    worker.submit(lambda: asyncio.sleep(0)).result(20)
    agent.stop().result(20)

    assert guarded.exception(20) is None
    assert len(begun) == 1
    caplog.clear()


async def test_waiting_ends_with_the_event_or_with_the_time():
    event = asyncio.Event()
    await _wait(event, 0.01)
    assert event.is_set()

    await _wait(event, 3600)
    event.clear()
    asyncio.get_running_loop().call_later(0.01, event.set)
    await _wait(event, 3600)

    event.clear()
    await asyncio.sleep(0)
    assert not event.is_set()


async def test_a_timer_does_not_outlive_the_wait():
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    await _wait(event, 0.03)
    event.clear()

    await asyncio.sleep(0.06)

    assert not event.is_set()


async def test_the_next_pass_is_the_one_that_begins_from_now_on():
    passes = _Passes()
    idle = passes.next_end()
    with passes:
        begun, given_up = passes.next_end(), passes.next_end()
        given_up.cancel()
        assert not idle.done()
    assert idle.done()
    assert not begun.done(), "the pass had begun before"

    between = passes.next_end()
    with passes:
        assert not begun.done()
    assert begun.done()
    assert between.done()
    assert idle.result() is begun.result() is None
    with passes:
        pass


# --- from the ring to the store -------------------------------------------------------------------


def test_records_linger_before_they_come_to_a_store_in_memory(make_agent):
    agent = make_agent(RecordingTransport)
    record(agent)

    pass_time(agent, 1.3)

    assert agent._current().ring.waiting == 1
    assert transport_of(agent).batches == []


def test_records_come_at_once_to_a_store_that_outlives_the_process_and_linger_there(make_agent):
    agent = make_agent(RecordingTransport, Journal, store="journal", buffer_size=3)
    transport = transport_of(agent)
    record(agent, 2)

    until(lambda: not len(agent._current().ring))

    assert books(agent).pending == 2
    pass_time(agent)
    assert transport.batches == []
    record(agent)
    transport.wait(lambda: len(transport.accepted) == 3)
    record(agent, 2)
    until(lambda: not len(agent._current().ring))
    pass_time(agent)
    assert len(transport.batches) == 1, "it is counted anew"
    record(agent)
    transport.wait(lambda: len(transport.accepted) == 6)


def test_what_memory_holds_is_known_without_asking(make_agent, caplog):
    agent = make_agent(scripted(*[Retry("down", after=600)] * 9))
    record(agent, 4)
    agent.flush().result(20)

    depth = worker_of(agent).depths[NAME]

    assert depth.pending == 4
    assert depth.bytes > 0
    agent.stop().result(20)
    depth = worker_of(agent).depths[NAME]
    assert (depth.ready, depth.leased, depth.bytes) == (0, 0, 0)
    assert agent.balances()[NAME].dropped == {"shutdown": 4}
    assert "stopped with 4 records for scripted undelivered: lost" in caplog.text


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("open", "open"),
        ("append", "append"),
        ("stats", "stats"),
        ("lease", "delivery to recording"),
        ("release_expired", "expiry"),
    ],
)
def test_a_store_that_fails_is_said_once_and_so_is_its_return(
    make_agent, monkeypatch, caplog, method, words
):
    class Broken(Flaky):
        broken = method

    monkeypatch.setattr(worker_module, "_EXPIRY_INTERVAL", 0.02)
    agent = make_agent(RecordingTransport, Broken, store="flaky", max_requests_per_second=1e6)

    def works_again():
        record(agent)
        agent.flush().result(20)
        return "works again" in caplog.text

    until(works_again)
    agent.flush().result(20)

    until(lambda: books(agent).delivered == books(agent).accepted)
    said = [r.getMessage() for r in caplog.records if r.name == "guard_agent.worker"]
    assert said == [f"{FAILING}{words}: OSError: no room", "the store works again"]
    assert not any(r.exc_info for r in caplog.records if r.name == "guard_agent.worker")


def test_a_store_works_again_when_all_of_it_does(make_agent, caplog):
    agent = make_agent(RecordingTransport)
    worker = worker_of(agent)

    worker._store_failed("append", OSError("no room"))
    worker._store_failed("stats", OSError("no room"))
    worker._store_works("append")
    worker._store_works("append")
    assert "works again" not in caplog.text
    worker._store_works("stats")

    assert caplog.text.count("works again") == 1
    assert caplog.text.count(FAILING) == 1


def test_a_flush_ends_when_the_store_takes_nothing(make_agent):
    class Broken(Flaky):
        broken = "append"
        failures = 1_000_000

    agent = make_agent(RecordingTransport, Broken, store="flaky", stop_timeout=0.2)
    record(agent, 3)

    agent.flush().result(20)

    assert len(agent._current().ring) == 3
    agent.stop().result(20)
    assert agent.balances()["recording"].dropped == {"shutdown": 3}


class Small(MemoryStore):
    """Has room for five records."""

    name = "small"

    async def append(self, records, *, evict):
        room = 5 - (await self.stats())["recording"].pending
        return await super().append(records[:room], evict=evict)


@pytest.mark.parametrize("end", ["flush", "stop"])
def test_a_flush_brings_all_to_a_store_that_was_full(make_agent, end):
    agent = make_agent(RecordingTransport, Small, store="small", max_requests_per_second=1e6)
    agent.start()
    record(agent, 12)
    worker = worker_of(agent)
    assert worker.submit(worker._move).result(20) is False

    if end == "flush":
        agent.flush().result(20)
        assert books(agent).delivered == 12
    else:
        agent.stop().result(20)
        assert agent.balances()["recording"].delivered == 12


def test_the_pauses_between_attempts_to_store_grow(make_agent):
    class Broken(Flaky):
        broken = "append"
        failures = 3

    agent = make_agent(RecordingTransport, Broken, store="flaky", flush_interval=0.01)
    record(agent)

    transport = transport_of(agent)
    transport.wait(lambda: len(transport.accepted) == 1, 20)

    pauses = [later - before for before, later in pairwise(store_of(agent).calls)]
    assert len(pauses) == 3
    assert all(pause >= least * 0.99 for pause, least in zip(pauses, [0.1, 0.2, 0.4], strict=True))


def test_a_store_that_cannot_be_opened_is_asked_for_nothing_else(make_agent, monkeypatch):
    class Closed(Flaky):
        broken = "open"
        failures = 1_000_000
        asked = 0

        async def release_expired(self):
            Closed.asked += 1
            return await super().release_expired()

    monkeypatch.setattr(worker_module, "_EXPIRY_INTERVAL", 0.005)
    agent = make_agent(RecordingTransport, Closed, store="flaky", stop_timeout=0.2)
    record(agent)
    agent.flush().result(20)
    pass_time(agent)

    assert Closed.asked == 0
    assert transport_of(agent).batches == []
    assert agent.balances()["recording"].accepted == 1


def test_whether_all_is_in_a_store_that_outlives_the_process_is_told(make_agent):
    class Broken(Flaky):
        broken = "append"
        failures = 1_000_000

    for stores, settings, kept in (
        ((), {}, False),
        ((Journal,), {"store": "journal"}, True),
        ((Broken,), {"store": "flaky"}, False),
    ):
        agent = make_agent(RecordingTransport, *stores, stop_timeout=0.2, **settings)
        record(agent)
        assert worker_of(agent).submit(worker_of(agent).flush_to_store).result(20) is kept
        assert (worker_of(agent).level is Level.JOURNAL) is kept
        agent.stop().result(20)


def test_what_a_store_lost_is_counted_each_time(make_agent):
    class Anew(Journal):
        name = "anew"
        resets = 0

        async def open(self):
            stores.append(self)

    stores = []
    agent = make_agent(RecordingTransport, Anew, store="anew")
    for resets in (1, 2):
        record(agent, 2)
        agent.flush_to_store().result(20)
        if resets > 1:  # the first time nobody had looked before
            assert books(agent).pending == 2
        (store,) = stores
        MemoryStore.__init__(store, store.settings, store.context)
        store.resets = resets
        assert books(agent).dropped == {"store_reset": 2 * resets}


def test_what_other_processes_took_out_before_is_no_loss():
    class Shared(Journal):
        name = "shared"
        resets = 0

        async def open(self):
            stores.append(self)

    async def take_out_one(store):
        lease = await store.lease("recording", 1, 1 << 20, 60)
        await store.ack(lease, list(lease.entries))

    stores = []
    config = AgentConfig(
        api_key="test-key-0123", transports=["recording"], store="shared", enrichers=[],
        allow_unredacted=True, rules=[], rollup=False, flush_interval=3600,
    )  # fmt: skip
    agent = Agent(compose(config, isolated_registry(RecordingTransport, Shared)))
    try:
        record(agent, 3)
        agent.flush_to_store().result(20)
        (store,) = stores
        worker_of(agent).submit(lambda: take_out_one(store)).result(20)
        assert books(agent).pending == 2

        MemoryStore.__init__(store, store.settings, store.context)
        store.resets = 1

        assert books(agent).dropped == {"store_reset": 2}
    finally:
        agent.stop().result(20)


def test_all_that_is_lost_with_the_process_is_counted_in_ring_and_store(make_agent):
    class Down(RecordingTransport):
        async def answer(self, batch):
            return Retry("down", after=600)

    agent = make_agent(Down, Small, store="small")
    record(agent, 12)
    agent.flush().result(20)

    agent.stop().result(20)

    assert agent.balances()["recording"].dropped == {"shutdown": 12}


@pytest.mark.parametrize(("policy", "evicts"), [("drop", True), ("block", False)])
def test_the_store_may_give_up_records_for_better_ones_where_the_ring_may(
    make_agent, policy, evicts
):
    asked = []

    class Asked(MemoryStore):
        name = "asked"

        async def append(self, records, *, evict):
            asked.append(evict)
            return await super().append(records, evict=evict)

    agent = make_agent(RecordingTransport, Asked, store="asked", buffer_overflow_policy=policy)
    record(agent)
    agent.flush().result(20)

    assert asked == [evicts]


@pytest.mark.parametrize(
    ("share", "used", "room"),
    [
        (1, (0, 0), (9, 2 << 20)),  # the ring is the smaller one; one record waits there
        (0.5, (0, 0), (4, 1 << 20)),
        (0.5, (47, 0), (2, 1 << 20)),  # of records the store has less room
        (0.5, (0, 3 << 19), (4, 1 << 19)),  # of bytes the store has less room
        (0.5, (60, 3 << 20), (-11, -1 << 20)),
    ],
)
def test_what_was_merged_gets_a_share_of_ring_and_store(make_agent, share, used, room):
    agent = make_agent(
        RecordingTransport,
        plugins={"memory": {"max_records": 100, "max_bytes": 4 << 20}},
        max_buffer_records=10,
        max_buffer_bytes=2 << 20,
    )
    record(agent)
    worker = worker_of(agent)
    ready, size = used
    worker.depths = {
        "low": DestinationDepth(),
        "high": DestinationDepth(ready=ready, bytes=size),
    }

    assert worker._room_for(share) == room


# --- the other jobs -------------------------------------------------------------------------------


def test_a_status_report_carries_what_is_known_and_says_how_it_went(make_agent):
    class Numberless(Flaky):
        broken = "stats"
        failures = 1_000_000

    agent = make_agent(RecordingTransport, Numberless, store="flaky")
    worker, transport = worker_of(agent), transport_of(agent)
    worker._status_interval = 0.02
    assert worker.last_report_ok is None
    record(agent, 2)
    agent.flush().result(20)

    transport.wait(lambda: len(transport.reports) >= 2, 20)

    assert [type(report) for report in transport.reports[:2]] == [AgentStatus] * 2
    assert transport.reports[1].events_sent == 2
    until(lambda: worker.last_report_ok)


def test_a_status_report_notices_that_the_store_works_again(make_agent, caplog):
    class Numberless(Flaky):
        broken = "stats"
        failures = 3

    agent = make_agent(RecordingTransport, Numberless, store="flaky")
    worker_of(agent)._status_interval = 0.02
    record(agent)
    agent.flush().result(20)

    until(lambda: "works again" in caplog.text)

    assert caplog.text.count(f"{FAILING}stats: OSError: no room") == 1


def test_a_status_report_says_why_the_store_tells_nothing(make_agent, caplog):
    class Numberless(Flaky):
        broken = "stats"
        failures = 1_000_000

    agent = make_agent(RecordingTransport, Numberless, store="flaky", stop_timeout=0.2)
    worker_of(agent)._status_interval = 0.02
    agent.start()

    until(lambda: FAILING in caplog.text)

    assert f"{FAILING}stats: OSError: no room" in caplog.text


def test_leases_that_ran_out_are_looked_for_also_in_a_store_that_opened_late(
    make_agent, monkeypatch
):
    class Late(Flaky):
        broken = "open"
        failures = 1_000_000
        looked = 0

        async def release_expired(self):
            Late.looked += 1
            return await super().release_expired()

    monkeypatch.setattr(worker_module, "_EXPIRY_INTERVAL", 0.005)
    agent = make_agent(RecordingTransport, Late, store="flaky")
    agent.start()
    pass_time(agent)
    assert Late.looked == 0

    Late.failures = 0
    agent.flush().result(20)

    until(lambda: Late.looked)


@pytest.mark.parametrize(
    ("wanted", "seconds"),
    [((None, None), 300), ((None, 7), 7), ((20.0, 7), 7), ((0.5, None), 2), ((3600, 400), 300)],
)
def test_the_collector_that_wants_reports_most_often_has_them_but_not_too_often(
    make_agent, wanted, seconds
):
    class One(RecordingTransport):
        name = "one"
        status_interval = wanted[0]

    class Two(RecordingTransport):
        name = "two"
        status_interval = wanted[1]

    agent = make_agent(One, Two, status_interval=300)

    assert worker_of(agent)._wanted_interval() == seconds


def test_status_reports_wait_for_their_interval(make_agent):
    agent = make_agent(RecordingTransport)
    record(agent)
    agent.flush().result(20)

    pass_time(agent)

    assert transport_of(agent).reports == []


def test_a_lease_that_ran_out_is_sent_when_a_store_came_later(make_agent):
    agent = make_agent(RecordingTransport, Journal, store="journal")
    record(agent)
    worker_of(agent).submit(worker_of(agent).flush_to_store).result(20)
    lanes, transport = agent._current().lanes, transport_of(agent)
    worker_of(agent).submit(lambda: lanes.lease("recording", 9, 1 << 20, 0.01)).result(20)
    pass_time(agent, 0.05)

    worker_of(agent).submit(worker_of(agent).settle).result(20)

    transport.wait(lambda: len(transport.accepted) == 1)


def test_dead_letters_are_listed_and_made_ready_again_up_to_the_limit(make_agent):
    agent = make_agent(scripted(*[Reject("bad", status=422)] * 5), max_requests_per_second=1e6)
    record(agent, 3)
    agent.flush().result(20)
    worker, transport = worker_of(agent), transport_of(agent)
    assert books(agent).buried == 3
    letters = worker.submit(worker.dead_letters).result(20)
    assert {name: len(found) for name, found in letters.items()} == {NAME: 3}
    assert type(letters[NAME]) is tuple

    assert worker.submit(lambda: worker.replay(NAME, 2)).result(20) == 2

    transport.wait(lambda: len(transport.accepted) == 2, 20)
    until(lambda: books(agent).delivered == 2)
    assert len(worker.submit(worker.dead_letters).result(20)[NAME]) == 1
    assert worker.submit(lambda: worker.replay(NAME, 5)).result(20) == 1


def test_rules_are_not_fetched_until_somebody_wants_them(make_agent):
    fetched = []

    class Watched(Rules):
        async def fetch(self, known):
            fetched.append(known)
            return await super().fetch(known)

    agent = make_agent(RecordingTransport, Watched, rules=["rules"])
    record(agent)
    agent.flush().result(20)
    pass_time(agent)
    assert fetched == []

    worker_of(agent).want_rules()
    until(lambda: fetched)
    worker_of(agent).want_rules()
    pass_time(agent)

    assert fetched == [None], "and the next time when it is due"


def test_the_first_rules_are_not_waited_for_where_there_is_no_source(make_agent):
    agent = make_agent(RecordingTransport)
    agent.start()

    worker_of(agent).submit(lambda: worker_of(agent).first_rules(3600)).result(20)


def test_the_first_answer_of_a_source_ends_the_wait_also_when_it_is_an_error(make_agent):
    class Down(Rules):
        async def fetch(self, known):
            return Retry("down")

    for source in (Down, Rules):
        agent = make_agent(RecordingTransport, source, rules=["rules"])
        agent.start()

        worker_of(agent).submit(lambda: worker_of(agent).first_rules(3600)).result(20)  # noqa: B023 - it is called at once


# --- the end --------------------------------------------------------------------------------------


def test_p07_stop_tries_again_as_long_as_there_is_time(make_agent):
    agent = make_agent(
        scripted(Retry("busy", after=0.05), Retry("busy", after=0.05)), stop_timeout=20
    )
    record(agent, 2)

    agent.stop().result(30)

    assert agent.balances()[NAME].delivered == 2
    assert len(transport_of(agent).batches) == 3


def test_p07_the_last_requests_end_before_the_store_is_closed(make_agent):
    """
    Requests begin in the first part of the time only: one that is cut off may have arrived.
    """

    async def answer(_):
        while not halted():
            await asyncio.sleep(0.005)
        return Accepted()

    def halted():
        return agent._current().destinations[NAME]._halted

    agent = make_agent(
        scripted(*[answer] * 100), Journal, store="journal", max_batch_records=1, stop_timeout=3
    )
    record(agent, 5)

    begun = time.monotonic()
    agent.stop().result(30)

    assert time.monotonic() - begun > 0.37 * 3, "half of what is not kept for closing"
    transport = transport_of(agent)
    assert len(transport.batches) == len(transport.accepted) == 1
    balance = agent.balances()[NAME]
    assert (balance.delivered, balance.pending, balance.dropped) == (1, 4, {})
    assert worker_of(agent).depths[NAME].leased == 0


def test_p07_a_store_that_takes_too_long_to_settle_does_not_keep_the_rest_open(make_agent):
    class Hanging(Journal):
        name = "hanging"
        hangs = False

        async def append(self, records, *, evict):
            if self.hangs:
                await asyncio.Event().wait()
            raise OSError("no room")

        async def close(self):
            closed.append(self)

    closed = []
    agent = make_agent(
        scripted(Retry("down", after=600)), Hanging, store="hanging", stop_timeout=0.4, timeout=60
    )
    record(agent)
    agent.flush().result(20)
    Hanging.hangs = True
    agent._current().lanes._up = True  # so it is tried once more

    agent.stop().result(20)

    assert len(closed) == transport_of(agent).closed == 1
    assert agent.balances()[NAME].dropped == {"shutdown": 1}


def test_p07_what_memory_holds_is_sent_as_long_as_possible(make_agent):
    """
    No other process would send it.
    """
    asked = []

    async def answer(_):
        asked.append(agent._current().destinations[NAME]._halted)
        await asyncio.sleep(0.1)
        return Accepted()

    agent = make_agent(
        scripted(*[answer] * 1_000),
        max_batch_records=1,
        max_requests_per_second=1e6,
        stop_timeout=1,
    )
    record(agent, 100)

    agent.stop().result(30)

    assert asked
    assert not any(asked)
    balance = agent.balances()[NAME]
    assert balance.delivered + balance.dropped["shutdown"] == 100


def test_p07_what_memory_took_over_comes_to_the_store_at_the_end(make_agent):
    class Away(Journal):
        name = "away"
        is_away = True

        async def append(self, records, *, evict):
            if self.is_away:
                raise OSError("no room")
            return await super().append(records, evict=evict)

    async def hang(_):
        reached.set()
        await asyncio.Event().wait()

    reached = threading.Event()
    agent = make_agent(scripted(hang, hang), Away, store="away", stop_timeout=0.8)
    lanes = agent._current().lanes
    record(agent)
    agent.flush()
    reached.wait(20)
    assert worker_of(agent).level is Level.MEMORY
    Away.is_away = False
    lanes._retry_at = 0.0
    record(agent)
    until(lambda: worker_of(agent).level is Level.JOURNAL)

    agent.stop().result(20)

    balance = agent.balances()[NAME]
    assert (balance.pending, balance.dropped) == (2, {})
    assert worker_of(agent).depths[NAME].ready == 2


@pytest.mark.parametrize("method", ["settle", "close", "stats"])
def test_p07_a_store_that_hangs_at_the_end_does_not_hang_the_agent(make_agent, method):
    reached = []

    class Hanging(Journal):
        name = "hanging"

        async def append(self, records, *, evict):
            if method == "settle" and reached:
                await asyncio.Event().wait()
            return await super().append(records, evict=evict)

        async def stats(self):
            if method == "stats" and reached:
                await asyncio.Event().wait()
            return await super().stats()

        async def close(self):
            closed.append(method)
            if method == "close":
                await asyncio.Event().wait()

    closed = []
    limit = 30 if method == "close" else 0.2
    agent = make_agent(
        RecordingTransport, Hanging, store="hanging", stop_timeout=0.4, timeout=limit
    )
    record(agent)
    agent.flush().result(20)
    reached.append(method)

    agent.stop().result(20)

    assert closed == [method]
    assert transport_of(agent).closed == 1


def test_p07_all_that_is_open_is_closed_although_one_of_it_fails(make_agent, caplog):
    closed = []

    class Bad(RecordingTransport):
        async def close(self):
            closed.append("transport")
            raise ValueError("cannot close")

    class Source(Rules):
        async def close(self):
            closed.append("rules")
            raise SystemExit(1)

    class Store(MemoryStore):
        name = "closing"

        async def close(self):
            closed.append("store")
            raise OSError("cannot close")

    agent = make_agent(Bad, Source, Store, store="closing", rules=["rules"])
    record(agent)
    agent.first_rules().result(20)

    agent.stop().result(20)

    assert sorted(closed[:2]) == ["rules", "transport"]
    assert closed[2:] == ["store"]
    said = [message for message in caplog.messages if "did not close" in message]
    assert sorted(said) == [f"{name} did not close" for name in ("recording", "rules", "store")]
    assert agent.balances()["recording"].delivered == 1


def note_the_waits(monkeypatch, least):
    """For how long the agent is ready to wait, where that is ``least`` seconds or more."""
    waits = []
    wait = asyncio.wait

    def noted(tasks, *, timeout=None, **rest):
        if timeout is not None and timeout >= least:
            waits.append(timeout)
        return wait(tasks, timeout=timeout, **rest)

    monkeypatch.setattr(asyncio, "wait", noted)
    return waits


@pytest.mark.parametrize("store", ["memory", "journal"])
def test_p07_how_the_time_to_stop_is_shared_out(make_agent, monkeypatch, store):
    """
    As it is told to each, so that no clock has to be watched: nothing takes that long here.
    """
    agent = make_agent(
        RecordingTransport, Journal, Rules, store=store, rules=["rules"], stop_timeout=10_000
    )
    record(agent)
    agent.first_rules().result(20)
    waits = note_the_waits(monkeypatch, 100)

    agent.stop().result(60)

    assert agent.balances()["recording"].delivered == 1
    expected = [
        10_000,  # the pump ends
        3_750,  # half of what is not kept for closing, in which requests begin
        3_750,  # the other half, in which they end
        10_000,  # the deliveries end
        10_000,  # everything else ends
        5_000,  # the store settles
        5_000, 5_000, 5_000,  # the transport, the rules and the callback close
        10_000,  # the store closes
    ]  # fmt: skip
    assert waits == [pytest.approx(seconds, abs=600) for seconds in expected]


def test_p07_without_time_everything_has_a_moment_to_end_nevertheless(make_agent, monkeypatch):
    agent = make_agent(RecordingTransport, Journal, store="journal")
    record(agent)
    agent.flush().result(20)
    waits = note_the_waits(monkeypatch, 0)

    agent.stop(0).result(20)

    # Besides what a call of the store may take, and what ends one.
    waits = [seconds for seconds in waits if seconds < 10 and seconds != GRACE]
    moment = 0.05
    assert waits == [
        moment,  # the pump ends
        0, 0,  # nothing is sent
        moment,  # the deliveries end
        moment,  # everything else ends
        moment,  # the store settles
        moment, moment,  # the transport and the callback close
        moment,  # the store closes
    ]  # fmt: skip
    assert transport_of(agent).closed == 1


def test_p07_a_step_with_the_store_that_is_under_way_is_waited_for(make_agent, monkeypatch):
    """
    For half of the time: one that is given up may have been done, and be done again.
    """

    class Slow(Journal):
        name = "slow"

        async def append(self, records, *, evict):
            reached.set()
            end = time.monotonic() + 20
            while not half() and time.monotonic() < end:
                await asyncio.sleep(0.005)
            return await super().append(records, evict=evict)

    def half():
        return [seconds for seconds in waits if 4_000 < seconds < 5_001]

    reached = threading.Event()
    waits = note_the_waits(monkeypatch, 100)
    agent = make_agent(RecordingTransport, Slow, store="slow", stop_timeout=10_000, timeout=60)
    record(agent)
    reached.wait(20)

    agent.stop().result(60)

    assert waits[0] == pytest.approx(10_000, abs=600), "for the pump to end, and meanwhile"
    assert waits[1] == pytest.approx(5_000, abs=600), "for the step"
    balance = agent.balances()["recording"]
    assert (balance.delivered, balance.pending) == (1, 0)
    assert len(transport_of(agent).accepted) == 1


def test_what_somebody_holds_in_memory_at_the_end_is_lost_with_it(make_agent):
    agent = make_agent(scripted(Retry("down", after=600)))
    record(agent, 3)
    agent.flush().result(20)
    worker, lanes = worker_of(agent), agent._current().lanes
    worker.submit(lambda: lanes.lease(NAME, 1, 1 << 20, 600)).result(20)
    books(agent)
    assert worker.depths[NAME].leased == 1

    agent.stop().result(20)

    depth = worker.depths[NAME]
    assert (depth.ready, depth.leased, depth.bytes) == (0, 0, 0)
    assert agent.balances()[NAME].dropped == {"shutdown": 3}


def test_p11_a_callback_that_hangs_at_the_end_is_named(make_agent, caplog):
    called, over = threading.Event(), threading.Event()

    def hang(*_):
        called.set()
        over.wait(30)

    agent = make_agent(RecordingTransport, on_error=hang, stop_timeout=0.2)
    agent.start()
    worker_of(agent)._on_error("test", ValueError("bad"), {})
    called.wait(20)

    try:
        agent.stop().result(20)
    finally:
        over.set()

    assert "the on_error callback did not close" in caplog.messages
