"""The agent as a whole: real thread, real store, a transport that keeps what it gets."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from concurrent.futures import wait
from contextlib import suppress

import pytest

from guard_agent import (
    Accepted,
    Batch,
    BufferFullError,
    Enricher,
    Level,
    Partial,
    Reject,
    Retry,
    RuleSet,
    RuleSource,
    Stage,
)
from guard_agent.core.delivery.worker import THREAD_NAME
from guard_agent.core.errors import PermanentClientError
from guard_agent.plugins.memory import MemoryStore
from guard_agent.testing.records import make_event, make_metric
from guard_agent.testing.transports import RecordingTransport, ScriptedTransport


def scripted(*script: object) -> type[ScriptedTransport]:
    """A transport class whose instances follow ``script``."""

    class Scripted(ScriptedTransport):
        def __init__(self, settings, context):
            super().__init__(*script, settings=settings, context=context)

    return Scripted


def transport_of(agent, name="recording"):
    return agent._current().destinations[name].transport


def look(agent):
    """The books at a moment when they agree."""
    agent.look().result(30)
    return agent.balances()["recording" if "recording" in agent.balances() else "scripted"]


def fill(agent):
    """Record until there is no room; returns the record that had none."""
    refused = None
    while refused is None or look(agent).pending < 2 * agent.config.max_buffer_records:
        refused = agent.record("event", make_event())  # the store is as large as what is before it
    return refused


def agent_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


class Blocker:
    """A script step that holds ``send`` until it is let go."""

    def __init__(self):
        self.reached = threading.Event()
        self._go = threading.Event()

    async def __call__(self, batch: Batch):
        self.reached.set()
        while not self._go.is_set():
            await asyncio.sleep(0.005)
        return Accepted()

    def let_go(self):
        self._go.set()


def test_composing_and_recording_nothing_starts_no_thread(make_agent):
    before = len(agent_threads())

    make_agent(RecordingTransport)

    assert len(agent_threads()) == before


def test_the_first_record_starts_the_thread_and_a_flush_delivers_it(make_agent):
    agent = make_agent(RecordingTransport)

    agent.record("event", make_event(ip_address="192.0.2.1"))
    agent.flush().result(30)

    (record,) = transport_of(agent).records
    assert b"192.0.2.1" in record.payload
    assert look(agent).delivered == 1


def test_buffer_size_records_are_sent_without_a_flush(make_agent):
    agent = make_agent(RecordingTransport, buffer_size=20)

    for _ in range(20):
        agent.record("event", make_event())

    transport = transport_of(agent)
    transport.wait(lambda: len(transport.accepted) == 20)
    assert len(transport.batches) == 1


class Journal(MemoryStore):
    """Memory, but the agent takes it for a store that outlives the process."""

    name = "journal"
    level = Level.JOURNAL


def test_buffer_size_records_in_a_durable_store_are_sent_without_a_flush(make_agent):
    agent = make_agent(RecordingTransport, Journal, store="journal", buffer_size=20)

    for _ in range(20):
        agent.record("event", make_event())

    transport = transport_of(agent)
    transport.wait(lambda: len(transport.accepted) == 20)


def test_what_an_owner_that_is_gone_had_leased_is_sent_without_a_flush(make_agent, monkeypatch):
    class Shared(Journal):
        name = "shared"

        async def append(self, records, *, evict):
            appended = await super().append(records, evict=evict)
            assert await self.lease("recording", 100, 1 << 20, ttl=0.05)
            return appended

    monkeypatch.setattr("guard_agent.core.delivery.worker._EXPIRY_INTERVAL", 0.02)
    agent = make_agent(RecordingTransport, Shared, store="shared")

    agent.record("event", make_event())

    transport = transport_of(agent)
    transport.wait(lambda: len(transport.accepted) == 1)


@pytest.mark.parametrize("lost", [0, 2])
def test_a_store_that_begins_anew_loses_exactly_what_it_held(make_agent, lost):
    class Anew(Journal):
        name = "anew"
        resets = 0

        async def open(self):
            stores.append(self)

    stores = []
    agent = make_agent(scripted(Accepted(), *[Retry("down", after=60)] * 9), Anew, store="anew")
    agent.record("event", make_event())
    agent.flush().result(5)
    for _ in range(lost):
        agent.record("event", make_event())
    agent.flush().result(5)
    assert look(agent).pending == lost

    (store,) = stores
    MemoryStore.__init__(store, store.settings, store.context)
    store.resets = 1

    assert look(agent).dropped == ({"store_reset": lost} if lost else {})
    assert look(agent).pending == 0


def test_flush_interval_sends_what_is_there(make_agent):
    agent = make_agent(RecordingTransport, flush_interval=0.05)

    agent.record("event", make_event())

    transport = transport_of(agent)
    transport.wait(lambda: len(transport.accepted) == 1)


def test_the_high_watermark_sends_before_buffer_size_is_reached(make_agent):
    agent = make_agent(
        RecordingTransport, buffer_size=1_000, max_buffer_records=50, high_watermark_ratio=0.5
    )

    for _ in range(25):
        agent.record("event", make_event())

    transport = transport_of(agent)
    transport.wait(lambda: len(transport.accepted) == 25)


def test_the_high_watermark_counts_bytes_too(make_agent):
    agent = make_agent(
        RecordingTransport,
        buffer_size=10_000,
        max_buffer_bytes=65_536,
        max_batch_bytes=65_536,
        high_watermark_ratio=0.5,
    )

    for _ in range(40):
        agent.record("event", make_event(reason="x" * 1_000))

    transport = transport_of(agent)
    transport.wait(lambda: len(transport.accepted) >= 20)


def test_what_the_caller_changes_later_does_not_matter(make_agent):
    agent = make_agent(RecordingTransport)
    event = make_event(metadata={"path": "/before"})

    agent.record("event", event)
    event.metadata["path"] = "/after"
    agent.flush().result(30)

    assert transport_of(agent).batches[0].decode()[0]["metadata"]["path"] == "/before"


def test_junk_is_counted_and_the_rest_delivered(make_agent):
    agent = make_agent(RecordingTransport)
    cyclic: dict = {}
    cyclic["self"] = cyclic

    for source in (None, 17, object(), "text", {"no": "type"}, make_metric()):
        agent.record("event", source)
    agent.record("event", make_event(metadata=cyclic))
    agent.record("event", make_event(metadata={"big": "x" * 5_000_000}))
    agent.record("event", {"event_type": "from_a_mapping"})
    agent.flush().result(30)

    balance = look(agent)
    assert balance.delivered == 3
    assert balance.dropped == {"invalid": 6}


def test_every_destination_has_books_of_its_own_and_none_waits_for_another(make_agent):
    blocker = Blocker()
    agent = make_agent(RecordingTransport, scripted(blocker))

    for _ in range(3):
        agent.record("event", make_event())
    flush = agent.flush()
    blocker.reached.wait(30)
    transport = transport_of(agent)
    transport.wait(lambda: len(transport.accepted) == 3)

    balances = agent.balances()
    while balances["recording"].pending:  # acknowledged a moment after it was accepted
        agent.look().result(30)
        balances = agent.balances()
    assert (balances["recording"].delivered, balances["recording"].pending) == (3, 0)
    assert (balances["scripted"].delivered, balances["scripted"].pending) == (0, 3)
    blocker.let_go()
    flush.result(30)


def test_a_full_buffer_gives_up_the_oldest_of_the_lowest_priority(make_agent):
    blocker = Blocker()
    agent = make_agent(scripted(blocker), max_buffer_records=10, buffer_size=1)
    agent.record("event", make_event())
    blocker.reached.wait(30)

    for number in range(30):
        agent.record("metric", make_metric(value=number))
    for _ in range(5):
        agent.record("event", make_event())
    blocker.let_go()
    agent.flush().result(30)

    balance = look(agent)
    assert balance.dropped["overflow"] >= 10
    events = [r for r in transport_of(agent, "scripted").accepted if r.kind == "event"]
    assert len(events) == 6, "no attack was given up for a metric"


def test_the_policy_raise_really_raises(make_agent):
    blocker = Blocker()
    agent = make_agent(
        scripted(blocker), max_buffer_records=5, buffer_size=1, buffer_overflow_policy="raise"
    )
    agent.record("event", make_event())
    blocker.reached.wait(30)

    def fill():
        for _ in range(50):
            agent.record("event", make_event())

    with pytest.raises(BufferFullError, match="buffer_overflow_policy"):
        fill()

    blocker.let_go()
    agent.flush().result(30)
    agent.record("event", make_event())


def test_the_policy_block_waits_for_room(make_agent):
    blocker = Blocker()
    agent = make_agent(
        scripted(blocker),
        max_buffer_records=2,
        buffer_size=1,
        buffer_overflow_policy="block",
        block_timeout=10,
    )
    refused = fill(agent)

    waiter = threading.Thread(target=agent.block_until_room, args=(refused,))
    waiter.start()
    blocker.reached.wait(30)
    blocker.let_go()
    waiter.join(30)

    assert not waiter.is_alive()
    agent.flush().result(30)
    balance = look(agent)
    assert balance.dropped == {}
    assert balance.pending == 0


def test_the_policy_block_gives_up_at_its_bound(make_agent):
    blocker = Blocker()
    agent = make_agent(
        scripted(blocker),
        max_buffer_records=2,
        buffer_size=1,
        buffer_overflow_policy="block",
        block_timeout=0.05,
    )
    for _ in range(20):
        refused = agent.record("event", make_event())
        if refused is not None:
            agent.block_until_room(refused)
        if look(agent).dropped:
            break

    assert look(agent).dropped == {"overflow": 1}
    blocker.let_go()


async def test_a_coroutine_that_waits_for_room_lets_its_loop_run(make_agent):
    blocker = Blocker()
    agent = make_agent(
        scripted(blocker),
        max_buffer_records=2,
        buffer_size=1,
        buffer_overflow_policy="block",
        block_timeout=10,
    )
    refused = fill(agent)
    ticks = 0

    async def tick():
        nonlocal ticks
        while ticks < 3:
            ticks += 1
            await asyncio.sleep(0)
        blocker.let_go()

    await asyncio.gather(agent.await_room(refused), tick())

    assert ticks == 3
    await asyncio.wrap_future(agent.flush())
    await asyncio.wrap_future(agent.look())
    assert agent.balances()["scripted"].dropped == {}


def test_eight_threads_lose_and_double_nothing(make_agent):
    agent = make_agent(RecordingTransport, buffer_size=100, max_requests_per_second=1e6)
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for index in range(250):
            agent.record("event", make_event(reason=f"{number}-{index}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    agent.flush().result(30)

    reasons = [
        fields["reason"] for batch in transport_of(agent).batches for fields in batch.decode()
    ]
    assert len(reasons) == 2_000
    assert len(set(reasons)) == 2_000
    assert look(agent).delivered == 2_000


def test_p12_what_the_delivery_itself_records_is_not_taken(make_agent):
    """An app that instruments its HTTP client must not make the agent feed itself."""

    def talk(batch: Batch):
        agents[0].record("event", make_event(reason="made by the transport"))
        return Accepted()

    agents = [make_agent(scripted(talk))]
    agents[0].record("event", make_event())
    agents[0].flush().result(30)

    balance = look(agents[0])
    assert balance.delivered == 1
    assert balance.dropped == {"internal": 1}


def test_p11_an_enricher_that_records_does_not_recurse(make_agent):
    class Chatty(Enricher):
        name = "chatty"
        stage = Stage.SEAL

        def bind(self, kind):
            def enrich(fields):
                agents[0].record("event", make_event())
                return fields

            return enrich

    agents = [make_agent(RecordingTransport, Chatty, enrichers=["chatty"])]
    agents[0].record("event", make_event())
    agents[0].flush().result(30)

    balance = look(agents[0])
    assert (balance.delivered, balance.dropped) == (1, {"internal": 1})


def test_stop_delivers_what_is_left(make_agent):
    agent = make_agent(RecordingTransport)
    for _ in range(250):
        agent.record("event", make_event())

    agent.stop().result(30)

    transport = transport_of(agent)
    assert len(transport.accepted) == 250
    assert transport.closed == 1
    assert agent_threads() == []


def test_p07_stop_keeps_its_deadline_when_the_collector_hangs(make_agent):
    blocker = Blocker()
    agent = make_agent(scripted(blocker), stop_timeout=0.3)
    agent.record("event", make_event())
    agent.flush()
    blocker.reached.wait(30)

    begun = time.monotonic()
    agent.stop().result(30)

    assert time.monotonic() - begun < 0.3 + 0.1 + 4.0  # the last seconds are for a busy machine
    assert agent.balances()["scripted"].dropped == {"shutdown": 1}


def test_stop_tries_once_more_although_the_backoff_is_long(make_agent):
    agent = make_agent(scripted(Retry("down")), backoff_factor=1_000)
    agent.record("event", make_event())
    agent.flush().result(30)
    assert agent.balances()["scripted"].delivered == 0

    agent.stop().result(30)

    assert agent.balances()["scripted"].delivered == 1


def test_stop_does_not_try_while_the_collector_asked_for_rest(make_agent):
    agent = make_agent(scripted(Retry("busy", after=300, throttled=True)), stop_timeout=30)
    agent.record("event", make_event())
    agent.flush().result(30)

    begun = time.monotonic()
    agent.stop().result(60)

    assert time.monotonic() - begun < 15
    assert agent.balances()["scripted"].dropped == {"shutdown": 1}


def test_p05_stop_and_start_are_defined_in_every_order(make_agent):
    agent = make_agent(RecordingTransport)

    first = agent.stop()
    assert agent.stop() is first
    agent.record("event", make_event())
    assert agent.balances()["recording"].dropped == {"stopped": 1}
    agent.start()
    agent.start()
    agent.record("event", make_event())
    agent.flush().result(30)
    assert look(agent).delivered == 1
    assert agent.running
    agent.stop().result(30)
    assert not agent.running


def test_flush_of_a_stopped_agent_ends(make_agent):
    agent = make_agent(RecordingTransport)
    agent.record("event", make_event())
    agent.stop().result(30)

    future = agent.flush()

    assert future.cancelled() or future.result(30) is None


def test_flush_returns_when_the_collector_makes_it_wait(make_agent):
    agent = make_agent(scripted(*[Retry("down", after=600)] * 5))
    agent.record("event", make_event())

    agent.flush().result(30)
    agent.flush().result(30)

    assert look(agent).pending == 1
    assert len(transport_of(agent, "scripted").batches) == 1


def test_status_reports_go_out_and_carry_the_books(make_agent):
    agent = make_agent(RecordingTransport)
    agent.record("event", make_event())
    agent.record("event", "junk")
    agent.flush().result(30)
    run = agent._current()

    async def report():
        status = run.status(await run.worker.look())
        return await run.destinations["recording"].report(status)

    assert run.worker.submit(report).result(30) is True
    (status,) = transport_of(agent).reports
    assert status.status == "healthy"
    assert status.events_sent == 1
    assert status.destinations["recording"]["dropped"] == {"invalid": 1}


class Rules(RuleSource):
    name = "rules"
    interval = 3600.0

    async def fetch(self, known):
        return RuleSet({"rule_id": "r", "version": 1, "ip_blacklist": ["192.0.2.9"]}, "v1")


def test_l07_health_shows_the_rules_and_what_is_wrong_with_them(make_agent):
    class Refused(Rules):
        async def fetch(self, known):
            return RuleSet({"rule_id": "r", "ip_blacklist": ["0.0.0.0/0"]})

    class Unconfirmed(Rules):
        async def fetch(self, known):
            return Retry("down")

    agent = make_agent(RecordingTransport, Rules, rules=["rules"])
    agent.first_rules().result(30)
    status = agent.status()
    assert status.status == "healthy"
    assert status.rules["rules"]["in_force"]
    assert status.rules["rules"]["version"] == 1
    assert status.rules["rules"]["age_seconds"] >= 0
    assert not status.rules["rules"]["stale"]
    agent.stop().result(30)

    for source, words in ((Refused, "covers too much"), (Unconfirmed, "down")):
        agent = make_agent(RecordingTransport, source, rules=["rules"])
        agent.first_rules().result(30)
        status = agent.status()
        assert status.status == "degraded"
        assert words in status.errors[0]
        assert status.rules["rules"]["version"] == 1, "the last good set"
        assert words in agent.stats()["rules"]["rules"]["error"]
        agent.stop().result(30)


def test_rules_are_fetched_when_somebody_asks_for_them(make_agent):
    go = threading.Event()

    class Later(Rules):
        async def fetch(self, known):
            while not go.is_set():
                await asyncio.sleep(0.005)
            return await super().fetch(known)

    agent = make_agent(RecordingTransport, Later, rules=["rules"])

    assert agent.rules() is None, "asking never waits"
    go.set()
    agent.first_rules().result(30)

    assert agent.rules().ip_blacklist == ["192.0.2.9"]
    assert agent.stats()["rules_fetched"] == 1


def test_rules_survive_a_restart_without_the_source(make_agent):
    class Gone(Rules):
        async def fetch(self, known):
            return Retry("down")

    first = make_agent(RecordingTransport, Rules, rules=["rules"])
    first.first_rules().result(30)
    first.stop().result(30)
    second = make_agent(RecordingTransport, Gone, rules=["rules"])

    second.first_rules().result(30)

    assert second.rules().ip_blacklist == ["192.0.2.9"]


STATS_OF_3_X = {
    "": """running uptime events_sent metrics_sent events_failed metrics_failed rules_fetched
        buffer_stats transport_stats cached_rules rules_last_update loop_failures
        last_status_push_ok""",
    "buffer_stats": """events_buffered metrics_buffered events_flushed metrics_flushed
        events_dropped metrics_dropped current_event_buffer_size current_metric_buffer_size
        redis_persist_failures durability_degraded last_flush_time auto_flush_running""",
    "transport_stats": """requests_sent requests_failed bytes_sent circuit_breaker_state
        failure_count session_closed""",
    "loop_failures": "flush status rules",
}


@pytest.mark.parametrize("part", STATS_OF_3_X)
def test_stats_keep_the_keys_of_3_x(make_agent, part):
    stats = make_agent(RecordingTransport).stats()

    assert set(STATS_OF_3_X[part].split()) <= (stats[part] if part else stats).keys()


def test_stats_tell_events_from_metrics(make_agent):
    agent = make_agent(RecordingTransport, max_buffer_records=3, buffer_size=3)
    with agent._current().ring.locked():  # what is leased already could not make room
        for _ in range(2):
            agent.record("metric", make_metric())
            agent.record("event", make_event())
    agent.record("metric", "junk")
    agent.record("event", "junk")
    before = agent.stats()["buffer_stats"]
    agent.flush().result(30)
    stats = agent.stats()

    assert (before["events_buffered"], before["metrics_buffered"]) == (3, 3)
    assert stats["events_sent"] == 2
    assert stats["events_failed"] == stats["buffer_stats"]["events_dropped"] == 1
    assert stats["metrics_sent"] + stats["metrics_failed"] == 3
    assert stats["metrics_failed"] >= 1
    sizes = sum(len(record.payload) for record in transport_of(agent).records)
    assert stats["transport_stats"]["bytes_sent"] == sizes


def test_a_thread_that_cannot_start_is_said_once(make_agent, caplog, monkeypatch):
    agent = make_agent(RecordingTransport)
    run = agent._current()

    def refuse():
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(run.worker._thread, "start", refuse)
    for _ in range(3):
        agent.record("event", make_event())

    assert caplog.text.count("cannot start its thread") == 1
    assert len(run.ring) == 3


def test_nothing_is_left_behind(make_agent):
    agent = make_agent(RecordingTransport)
    agent.record("event", make_event())
    agent.stop().result(30)

    gc.collect()  # with warnings as errors, an unclosed loop or socket would fail the test

    assert agent_threads() == []


# --- plugins that misbehave, and calls that cross -------------------------------------------------


async def resist():
    """Does not end when it is cancelled, only when that happens a second time."""
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await asyncio.Event().wait()


class ClosingStore(MemoryStore):
    name = "closing"

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.closed = 0

    async def close(self):
        self.closed += 1


def store_of(agent):
    return agent._current().lanes.memory._store


@pytest.mark.parametrize("method", ["send", "close"])
def test_p11_a_transport_that_resists_does_not_keep_stop_from_its_end(make_agent, method):
    reached = threading.Event()

    class Stubborn(RecordingTransport):
        async def answer(self, batch):
            reached.set()
            if method == "send":
                await resist()
            return Accepted()

        async def close(self):
            if method == "close":
                await resist()

    agent = make_agent(Stubborn, ClosingStore, store="closing", stop_timeout=0.3)
    agent.record("event", make_event())
    agent.flush()
    reached.wait(30)

    agent.stop().result(30)

    assert store_of(agent).closed == 1


def test_a_rule_source_that_resists_does_not_use_up_the_time_to_send(make_agent):
    reached = threading.Event()

    class Stubborn(Rules):
        async def fetch(self, known):
            reached.set()
            await resist()

    agent = make_agent(RecordingTransport, Stubborn, rules=["rules"], stop_timeout=1)
    agent.record("event", make_event())
    agent.rules()
    reached.wait(30)

    agent.stop().result(30)

    assert agent.balances()["recording"].delivered == 1


def test_p11_a_store_that_hangs_holds_up_neither_the_books_nor_the_next_attempt(make_agent):
    class Hanging(MemoryStore):
        name = "hanging"
        level = Level.JOURNAL
        hung = 0

        async def append(self, records, *, evict):
            if not Hanging.hung:
                Hanging.hung += 1
                await asyncio.Event().wait()
            return await super().append(records, evict=evict)

    agent = make_agent(RecordingTransport, Hanging, store="hanging", timeout=0.05)
    agent.record("event", make_event())
    agent.flush().result(30)
    agent.flush().result(30)

    assert look(agent).delivered == 1


def test_what_a_store_lost_while_it_was_looked_at_is_counted(make_agent):
    class Forgetful(MemoryStore):
        name = "forgetful"
        level = Level.JOURNAL
        resets = 0
        armed = False

        async def stats(self):
            found = await super().stats()
            if Forgetful.armed:
                Forgetful.armed = False
                Forgetful.resets += 1
                MemoryStore.__init__(self, self.settings, self.context)
            return found

    agent = make_agent(scripted(Retry("down", after=300)), Forgetful, store="forgetful")
    for _ in range(3):
        agent.record("event", make_event())
    agent.flush().result(30)
    assert look(agent).pending == 3

    Forgetful.armed = True

    assert look(agent).pending == 0
    assert look(agent).dropped == {"store_reset": 3}


def test_what_a_store_took_is_not_taken_back_when_its_next_operation_fails(make_agent):
    class Partly(MemoryStore):
        name = "partly"
        failed = False

        async def append(self, records, *, evict):
            taken = records if self.failed else records[:2]
            return await super().append(taken, evict=evict)

        async def stats(self):
            if not self.failed:
                self.failed = True
                raise OSError("no numbers today")
            return await super().stats()

    agent = make_agent(RecordingTransport, Partly, store="partly")
    for _ in range(5):
        agent.record("event", make_event())

    agent.flush().result(30)
    agent.flush().result(30)

    assert look(agent).delivered == 5
    assert len(transport_of(agent).records) == 5


def test_a_store_of_which_a_part_fails_does_not_flood_the_log(make_agent, caplog):
    class Half(MemoryStore):
        name = "half"

        async def lease(self, destination, max_records, max_bytes, ttl):
            raise OSError("cannot lease")

    agent = make_agent(RecordingTransport, Half, store="half")
    for _ in range(20):
        agent.record("event", make_event())
        agent.flush().result(30)

    lines = [record.getMessage() for record in caplog.records if "the store" in record.getMessage()]
    assert len(lines) == 1


def test_status_reports_go_on_after_a_failure_of_the_store(make_agent):
    class Flaky(MemoryStore):
        name = "flaky"
        calls = 0

        async def stats(self):
            Flaky.calls += 1
            if Flaky.calls < 4:
                raise OSError("no numbers today")
            return await super().stats()

    agent = make_agent(RecordingTransport, Flaky, store="flaky")
    agent._current().worker._status_interval = 0.005  # the configuration knows minutes only
    agent.record("event", make_event())
    agent.flush().result(30)
    transport = transport_of(agent)

    transport.wait(lambda: len(transport.reports) >= 5)

    assert Flaky.calls >= 4


def test_a_flush_during_stop_ends_with_it(make_agent):
    blocker = Blocker()
    agent = make_agent(scripted(blocker), stop_timeout=0.3)
    agent.record("event", make_event())
    agent.flush()
    blocker.reached.wait(30)

    stopped = agent.stop()
    flushes = [agent.flush() for _ in range(3)]
    stopped.result(30)

    for flush in flushes:
        assert wait([flush], 5).done


def test_a_stop_in_the_middle_of_a_start_leaves_no_thread(make_agent, monkeypatch):
    agent = make_agent(RecordingTransport)
    thread = agent._current().worker._thread
    begin, begun, go = thread.start, threading.Event(), threading.Event()

    def start_slowly():
        begin()
        begun.set()
        go.wait(30)

    monkeypatch.setattr(thread, "start", start_slowly)
    starter = threading.Thread(target=agent.start)
    stopper = threading.Thread(target=lambda: agent.stop().result(30))
    starter.start()
    begun.wait(30)
    stopper.start()
    go.set()
    starter.join(30)
    stopper.join(30)

    thread.join(30)
    assert not thread.is_alive()


def test_a_start_behind_a_stop_starts_nothing(make_agent):
    agent = make_agent(RecordingTransport)
    run = agent._current()
    agent.stop().result(30)

    assert run.ensure_started() is False
    assert agent_threads() == []


def test_a_thread_that_could_not_start_is_started_later(make_agent, monkeypatch):
    agent = make_agent(RecordingTransport)
    run = agent._current()

    def refuse():
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(run.worker._thread, "start", refuse)
        agent.record("event", make_event())
    agent.flush().result(30)

    assert look(agent).delivered == 1


def test_what_comes_in_while_a_run_is_built_in_the_same_thread_does_not_deadlock(make_agent):
    """As a log handler, a finalizer or a signal handler of the application may do."""
    agents = []

    class Talking(RecordingTransport):
        def __init__(self, settings, context):
            super().__init__(settings, context)
            for agent in agents:
                agent.record("event", make_event(reason="while it is built"))
                agent.stop()

    agents.append(make_agent(Talking))
    agents[0].stop().result(30)
    agents[0].start()

    agents[0].record("event", make_event())


def test_the_books_agree_while_records_come_and_go(make_agent):
    agent = make_agent(
        RecordingTransport,
        buffer_size=10,
        max_batch_records=10,
        max_requests_per_second=1e6,
        flush_interval=0.001,
    )
    done = threading.Event()

    def record():
        while not done.is_set():
            for _ in range(20):
                agent.record("event", make_event())
            agent.look().result(30)

    agent.start()
    thread = threading.Thread(target=record)
    thread.start()
    differences = set()
    try:
        for _ in range(300):
            status = agent.look().result(30)
            books = status.model_dump()["destinations"]["recording"]
            settled = books["delivered"] + sum(books["dropped"].values()) + books["buried"]
            differences.add(books["accepted"] - settled - books["pending"])
    finally:
        done.set()
        thread.join(30)

    assert differences == {0}


async def test_a_caller_that_is_cancelled_while_it_waits_for_room_is_counted(make_agent):
    blocker = Blocker()
    agent = make_agent(
        scripted(blocker),
        max_buffer_records=2,
        buffer_size=1,
        buffer_overflow_policy="block",
        block_timeout=60,
    )
    refused = fill(agent)
    waiting = asyncio.ensure_future(agent.await_room(refused))
    await asyncio.sleep(0)

    before = agent.balances()["scripted"].accepted
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert agent.balances()["scripted"].accepted == before + 1
    blocker.let_go()
    await asyncio.wrap_future(agent.flush())


def test_only_the_first_call_waits_for_rules(make_agent):
    class Never(Rules):
        async def fetch(self, known):
            await asyncio.Event().wait()

    agent = make_agent(RecordingTransport, Never, rules=["rules"])
    worker = agent._current().worker
    agent.start()

    worker.submit(lambda: worker.first_rules(0.01)).result(30)

    worker.submit(lambda: worker.first_rules(600)).result(30)


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (Reject("no such country"), 422, "no such country"),
        (Reject("no such country", status=400), 400, "no such country"),
        (Partial({0: "no such country"}), 422, "no such country"),
    ],
    ids=["rejected", "with a status", "in part"],
)
def test_on_error_is_told_why_a_record_was_refused(make_agent, answer, status, reason):
    told = []

    class Refusing(RecordingTransport):
        async def answer(self, batch):
            return answer

    agent = make_agent(Refusing, on_error=lambda *what: told.append(what))
    agent.record("event", make_event())
    agent.flush().result(30)
    agent.stop().result(30)

    ((_, error, _),) = told
    assert isinstance(error, PermanentClientError)
    assert (error.status_code, error.detail) == (status, reason)


def test_why_a_transport_cannot_open_is_shown(make_agent):
    class Locked(RecordingTransport):
        async def open(self):
            raise OSError("no way")

    agent = make_agent(Locked, stop_timeout=0.2)
    agent.record("event", make_event())
    agent.flush().result(30)

    reason = agent._current().destinations["recording"].gate.reason
    assert reason == "cannot open: OSError: no way"


def test_answers_about_records_that_were_not_sent_change_nothing(make_agent, caplog):
    class Confused(RecordingTransport):
        async def answer(self, batch):
            count = len(batch.records)
            return Partial({count: "bad", -1: "bad", count + 7: "bad"}, frozenset({count, -1}))

    agent = make_agent(Confused)
    for _ in range(2):
        agent.record("event", make_event())
    agent.flush().result(30)
    agent.look().result(30)

    balance = agent.balances()["recording"]
    assert (balance.delivered, balance.buried, balance.pending) == (2, 0, 0)
    assert "IndexError" not in caplog.text
