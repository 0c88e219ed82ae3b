"""What `Destination.attempt` makes of each answer; time is an argument, nothing sleeps."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from guard_agent import (
    Accepted,
    Batch,
    Partial,
    Paused,
    Reject,
    Retry,
    SendResult,
    TooLarge,
)
from guard_agent.core.delivery.destination import MAX_EXTRA_REQUESTS, Destination
from guard_agent.core.delivery.gate import Gate, GateState
from guard_agent.core.errors import DeliveryError, PayloadTooLargeError, PermanentClientError
from guard_agent.core.ledger import DestinationBooks
from guard_agent.plugins.memory import MemoryStore
from guard_agent.testing.records import make_context, make_record
from guard_agent.testing.transports import ScriptedTransport


class Bench:
    """A destination on a real store, with a clock that is moved by hand."""

    def __init__(self, *script: object, records: int = 0, **limits: float) -> None:
        self.now = 1_000.0
        self.transport = ScriptedTransport(*script)
        name = self.transport.context.instance
        self.store = MemoryStore(MemoryStore.Settings(), make_context(destinations=(name,)))
        self.gate = Gate(rate=1e6, backoff=1.0, failure_threshold=4, random=lambda: 0.5)
        self.books = DestinationBooks()
        self.errors: list[tuple[str, BaseException]] = []
        self.appended = 0
        self.destination = Destination(
            self.transport,
            self.store,
            self.gate,
            self.books,
            max_records=limits.get("max_records", 1_000),
            max_bytes=limits.get("max_bytes", 256 * 1024),
            books_lock=asyncio.Lock(),
            call_limit=limits.get("call_limit", 30.0),
            on_error=lambda stage, error, _: self.errors.append((stage, error)),
            clock=lambda: self.now,
        )
        self.name = name

    async def fill(self, *records: object) -> None:
        await self.store.append(records, evict=False)
        self.appended += len(records)

    async def attempt(self) -> float | None:
        return await self.destination.attempt()

    async def run(self, limit: int = 200) -> int:
        """Attempt until the store is empty, moving the clock over delays; returns requests."""
        for _ in range(limit):
            delay = await self.attempt()
            if delay is None:
                assert self.transport.violations == []
                return len(self.transport.batches)
            self.now += delay
        raise AssertionError("the store never got empty")

    async def check_books(self) -> None:
        depth = (await self.store.stats())[self.name]
        assert depth.leased == 0
        assert self.appended == self.books.delivered + self.books.buried + depth.pending


@pytest.fixture
def bench():
    return Bench


def records(count: int, **fields: object) -> list[object]:
    return [make_record(**fields) for _ in range(count)]


def batch_sizes(bench: Bench) -> list[int]:
    return [len(batch) for batch in bench.transport.batches]


async def test_an_empty_store_means_nothing_to_do(bench):
    bench = bench()

    assert await bench.attempt() is None
    assert bench.transport.opened == 0


async def test_an_accepted_batch_is_acknowledged(bench):
    bench = bench()
    await bench.fill(*records(3))

    assert await bench.attempt() == 0
    assert await bench.attempt() is None
    assert bench.books.delivered == 3
    await bench.check_books()


async def test_events_and_metrics_travel_in_batches_of_their_own(bench):
    bench = bench()
    await bench.fill(*records(2, kind="event"), *records(3, kind="metric"))

    await bench.run()

    assert [(batch.kind, len(batch)) for batch in bench.transport.batches] == [
        ("event", 2),
        ("metric", 3),
    ]
    assert bench.books.delivered_events == 2


async def test_retry_after_overrides_backoff(bench):
    """When the collector names a delay, that is the delay."""
    bench = bench(Retry("busy", after=42.0))
    await bench.fill(*records(1))

    assert await bench.attempt() == 42.0
    assert await bench.attempt() == 42.0, "and nothing is sent before it has passed"
    assert batch_sizes(bench) == [1]


async def test_c04_backoff_has_full_jitter_and_doubles(bench):
    """`random` is 0.5 here, so every delay is half of its bound."""
    bench = bench(*[Retry("down")] * 3)
    await bench.fill(*records(1))

    delays = []
    for _ in range(3):
        delays.append(await bench.attempt())
        bench.now += delays[-1]

    assert delays == [0.5, 1.0, 2.0]


async def test_a_failed_batch_keeps_its_id(bench):
    """So that a collector can tell a repetition from news."""
    bench = bench(Retry("down"))
    await bench.fill(*records(5))

    await bench.run()

    first, second = bench.transport.batches
    assert first.id == second.id
    assert first.records == second.records


async def test_c24_an_open_circuit_lets_exactly_one_record_through(bench):
    bench = bench(*[Retry("down")] * 4)
    await bench.fill(*records(600))

    for _ in range(4):
        bench.now += await bench.attempt() or 0
    assert bench.gate.state is GateState.OPEN
    await bench.run()

    assert batch_sizes(bench)[4:] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 89]
    await bench.check_books()


async def test_c05_throttling_never_opens_the_circuit(bench):
    bench = bench(*[Retry("slow down", throttled=True)] * 10)
    await bench.fill(*records(1))

    for _ in range(10):
        bench.now += await bench.attempt() or 0
        assert bench.gate.state is GateState.THROTTLED
    await bench.run()

    assert bench.books.delivered == 1


async def test_a_pause_keeps_everything_and_probes_with_one_record(bench):
    bench = bench(Paused("key refused"), Paused("key refused"))
    await bench.fill(*records(100))

    first = await bench.attempt()
    bench.now += first
    second = await bench.attempt()
    bench.now += second
    await bench.run()

    assert 0 < first < second <= 60
    assert batch_sizes(bench)[:3] == [100, 1, 1]
    assert bench.books.delivered == 100


async def test_c09_one_poison_record_in_a_thousand_costs_only_itself(bench):
    poison = make_record(size=80)

    def judge(batch: Batch) -> SendResult:
        return Reject("bad", status=422) if poison in batch.records else Accepted()

    bench = bench(*[judge] * 100)
    good = records(999, size=80)
    await bench.fill(*good[:700], poison, *good[700:])

    requests = await bench.run()

    assert bench.books.delivered == 999
    assert bench.books.buried == 1
    assert requests <= 1 + 25
    (letter,) = await bench.store.dead_letters(bench.name)
    assert letter.record == poison
    assert [type(error) for _, error in bench.errors] == [PermanentClientError]
    await bench.check_books()


async def test_c09_when_everything_is_refused_it_pauses_instead_of_burying_it_all(bench):
    bench = bench(*[Reject("wrong project", status=400)] * 1_000)
    await bench.fill(*records(1_000, size=80))

    delay = await bench.attempt()

    assert delay > 0
    assert bench.gate.state is GateState.PAUSED
    assert bench.books.buried <= 8
    assert len(bench.transport.batches) <= 30
    await bench.check_books()


async def test_c09_what_splitting_one_lease_may_cost_is_bounded(bench):
    """
    Every third record is refused: what one attempt does not come to waits for the next one.
    """

    def answer(batch):
        refused = [record for record in batch.records if b"poison" in record.payload]
        return Reject("poison", status=422) if refused else Accepted()

    bench = bench(*[answer] * 5_000)
    await bench.fill(*[make_record(reason="good" if n % 3 else "poison") for n in range(300)])

    assert await bench.attempt() == 0
    first = len(bench.transport.batches)
    assert first == 1 + MAX_EXTRA_REQUESTS
    while await bench.attempt() is not None:
        assert len(bench.transport.batches) - first <= 1 + MAX_EXTRA_REQUESTS
        first = len(bench.transport.batches)
        bench.now += 60

    assert (bench.books.delivered, bench.books.buried) == (200, 100)
    await bench.check_books()


async def test_c09_seven_refused_alone_are_no_reason_to_pause_and_eight_are(bench):
    no = Reject("bad", status=400)
    bench = bench(*[no] * 7, Accepted(), *[no] * 7, Accepted(), *[no] * 8, max_records=1)
    await bench.fill(*records(30))

    delays = [await bench.attempt() for _ in range(24)]

    assert delays == [0] * 23 + [3.75]
    assert bench.gate.state is GateState.PAUSED
    assert bench.books.buried == 22


async def test_c09_a_refusal_ends_an_outage_as_long_as_it_may_be_the_record(bench):
    no = Reject("bad", status=400)
    bench = bench(*[no] * 6, *[Retry("down")] * 4, no, max_records=1)
    await bench.fill(*records(8))
    for _ in range(10):
        bench.now += await bench.attempt()
    assert bench.gate.state is GateState.OPEN

    await bench.attempt()

    assert bench.gate.state is GateState.CLOSED
    assert bench.books.buried == 7


async def test_c09_the_first_record_that_is_refused_is_named_in_the_log(bench, caplog):
    bench = bench(Reject("no timestamp"), Reject("no timestamp"), max_records=1)
    await bench.fill(*records(2))

    for _ in range(2):
        await bench.attempt()
        assert caplog.text.count("they are buried: no timestamp") == 1
        assert bench.books.last_error == "no timestamp"


async def test_c08_a_batch_that_is_too_large_is_split_by_bytes_and_stays_split(bench):
    def judge(batch: Batch) -> SendResult:
        return TooLarge() if batch.size > 4_000 else Accepted()

    bench = bench(*[judge] * 100)
    await bench.fill(*records(100, size=800))

    await bench.run()

    assert bench.books.delivered == 100
    assert bench.books.buried == 0
    sizes = [batch.size for batch in bench.transport.batches]
    assert max(sizes[-3:]) <= 4_000, "the limit is remembered"


async def test_a_named_limit_is_kept_from_the_next_batch_on(bench):
    bench = bench(TooLarge(limit=2_000), max_records=50)
    await bench.fill(*records(100, size=800))

    await bench.run()

    assert all(batch.size <= 2_000 for batch in bench.transport.batches[-5:])
    assert bench.books.delivered == 100


@pytest.mark.parametrize(
    ("sizes", "split"),
    [([100] * 4, [2, 2]), ([100, 100, 100, 3_000], [3, 1]), ([3_000, 100, 100, 100], [1, 3])],
)
async def test_c08_the_halves_of_a_batch_that_is_too_large_have_about_the_same_size(
    bench, sizes, split
):
    bench = bench(TooLarge())
    await bench.fill(*[make_record(size=size) for size in sizes])

    await bench.run()

    assert batch_sizes(bench) == [4, *split]


async def test_c08_a_limit_that_was_learned_holds_for_the_rest_of_the_lease(bench):
    bench = bench(TooLarge(limit=2_000))
    await bench.fill(*records(4, size=1_500))

    await bench.run()

    assert batch_sizes(bench) == [4, 1, 1, 1, 1]


async def test_c08_many_records_that_are_too_large_are_no_reason_to_pause(bench):
    bench = bench(*[TooLarge()] * 20, max_records=1)
    await bench.fill(*records(20, size=9_000))

    await bench.run()

    assert bench.books.buried == 20
    assert bench.books.failures == 0


async def test_c08_a_single_record_that_is_too_large_is_buried(bench):
    giant = make_record(size=9_000)

    def judge(batch: Batch) -> SendResult:
        return TooLarge() if giant in batch.records else Accepted()

    bench = bench(*[judge] * 50)
    await bench.fill(*records(10, size=100), giant, *records(10, size=100))

    await bench.run()

    assert bench.books.delivered == 20
    assert bench.books.buried == 1
    assert [type(error) for _, error in bench.errors] == [PayloadTooLargeError]


async def test_c03_a_partial_answer_is_settled_record_by_record(bench):
    bench = bench(Partial(rejected={1: "no timestamp"}, retry=frozenset({3})))
    await bench.fill(*(five := records(5)))

    await bench.run()

    assert bench.books.delivered == 4
    assert bench.books.buried == 1
    assert bench.transport.batches[1].records == (five[3],)
    await bench.check_books()


async def test_a_partial_answer_that_rejects_everything_buries_everything(bench):
    bench = bench(Partial(rejected={0: "bad", 1: "bad"}))
    await bench.fill(*records(2))

    await bench.run()

    assert bench.books.buried == 2
    assert len(bench.errors) == 1, "told once for each reason"
    assert bench.gate.state is GateState.CLOSED


async def test_p11_a_transport_that_raises_is_retried_and_named_once(bench, caplog):
    bench = bench(ValueError("defect"), ValueError("defect"))
    await bench.fill(*records(2))

    bench.now += await bench.attempt()
    assert bench.books.last_error == "ValueError: defect"
    await bench.run()

    assert bench.books.delivered == 2
    assert caplog.text.count("handled like Retry") == 1
    assert [(stage, type(error)) for stage, error in bench.errors] == [
        ("flush_events", ValueError)
    ] * 2


async def test_a_transport_that_returns_nothing_is_retried(bench, caplog):
    bench = bench(lambda _: None, lambda _: None)
    await bench.fill(*records(1))

    await bench.run()

    assert bench.books.delivered == 1
    assert bench.books.failures == 2
    assert caplog.text.count("NoneType instead of a SendResult") == 1


async def test_a_transport_that_cannot_open_is_opened_again(bench):
    class Late(ScriptedTransport):
        async def open(self) -> None:
            if bench.now < 1_001:
                raise OSError("no route")
            await super().open()

    bench = bench()
    bench.destination.transport = bench.transport = Late()
    await bench.fill(*records(1))

    assert await bench.attempt() > 0
    await bench.run()

    assert bench.books.delivered == 1


async def test_p08_a_cancelled_attempt_gives_its_lease_back(bench):
    reached = asyncio.Event()

    async def hang(_: Batch) -> SendResult:
        reached.set()
        await asyncio.Event().wait()
        return Accepted()

    bench = bench(hang)
    await bench.fill(*records(4))
    attempt = asyncio.ensure_future(bench.attempt())
    await reached.wait()

    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt

    assert (await bench.store.stats())[bench.name].ready == 4
    await bench.run()
    assert bench.books.delivered == 4


async def test_an_outage_is_logged_once_when_it_begins_and_once_when_it_ends(bench, caplog):
    caplog.set_level("INFO")
    bench = bench(Accepted(), *[Retry("refused")] * 12)
    await bench.fill(make_record())
    await bench.run()
    await bench.fill(make_record())

    await bench.run()

    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == 3
    assert "failed, next attempt in" in lines[0]
    assert "keeps failing" in lines[1]
    assert "works again" in lines[2]


async def test_what_a_collector_says_cannot_forge_a_log_line(bench, caplog):
    bench = bench(Retry("down\nCRITICAL all is lost\x1b[31m"))
    await bench.fill(make_record())

    await bench.run()

    assert "\\x0aCRITICAL" in caplog.text
    assert "\x1b" not in caplog.text


async def test_a_batch_never_exceeds_what_the_transport_takes(bench):
    bench = bench()
    bench.transport._max_batch_bytes = 1_000
    await bench.fill(*records(20, size=300))

    await bench.run()

    assert {len(batch) for batch in bench.transport.batches} == {3, 2}


async def test_the_request_rate_makes_it_wait_without_using_up_an_attempt(bench):
    bench = bench(max_records=1)
    bench.gate = bench.destination.gate = Gate(rate=2.0, backoff=1.0, failure_threshold=4)
    await bench.fill(*records(3))

    assert [await bench.attempt() for _ in range(3)] == [0, 0, 0.5]
    assert bench.books.requests == 2
    assert bench.books.failures == 0


async def test_the_request_rate_yields_when_records_would_be_dropped(bench):
    bench = bench(max_records=1)
    bench.gate = bench.destination.gate = Gate(rate=1.0, backoff=1.0, failure_threshold=4)
    bench.destination._urgent = lambda: True
    await bench.fill(*records(5))

    assert await bench.run() == 5


async def test_a_report_is_sent_only_when_the_collector_may_be_asked(bench, make_status):
    bench = bench(Retry("down", after=60))
    await bench.fill(*records(1))

    assert await bench.destination.report(make_status()) is True
    await bench.attempt()
    assert await bench.destination.report(make_status()) is False
    assert len(bench.transport.reports) == 1


async def test_a_store_that_fails_during_a_probe_does_not_block_the_collector_for_ever(bench):
    """The probe's answer counts for the gate, whatever the store does with it."""
    bench = bench(*[Retry("down")] * 4)
    await bench.fill(*records(5))
    for _ in range(4):
        bench.now += await bench.attempt() or 0
    assert bench.gate.state is GateState.OPEN

    class Once(MemoryStore):
        failed = False

        async def ack(self, lease, ids):
            if not self.failed:
                self.failed = True
                raise OSError("disk")
            return await super().ack(lease, ids)

    bench.store.__class__ = Once
    with pytest.raises(OSError, match="disk"):
        await bench.attempt()
    await bench.run()

    assert bench.books.delivered == 5
    await bench.check_books()


async def test_c09_a_collector_that_refuses_everything_does_not_get_everything_buried(bench):
    """A wrong format or a filter on the way is not the fault of every record."""
    bench = bench(*[Reject("bad", status=400)] * 5_000)
    await bench.fill(*records(100))

    begun = bench.now
    while bench.now < begun + 3_600:
        bench.now += await bench.attempt() or 0
    buried = bench.books.buried
    bench.transport.script.clear()
    await bench.run()

    assert buried < 8 + 3_600 / 30 + 10, "one per probe at most"
    assert bench.books.delivered == 100 - buried
    assert bench.gate.state is GateState.CLOSED


@pytest.mark.parametrize(
    "result",
    [
        Partial(rejected={"0": "no"}),
        Partial(rejected=None),
        Partial(retry=[0]),
        Retry("later", after="soon"),
        TooLarge("big"),
    ],
    ids=repr,
)
async def test_a_result_that_is_not_sound_is_the_fault_of_the_transport(bench, caplog, result):
    class Careless(ScriptedTransport):
        async def send(self, batch: Batch) -> SendResult:
            return result if not self.accepted else await super().send(batch)

    bench = bench()
    bench.destination.transport = bench.transport = Careless()
    await bench.fill(*records(3))

    assert await bench.attempt() > 0
    assert "instead of a SendResult" in caplog.text
    assert (await bench.store.stats())[bench.name].ready == 3


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError()], ids=repr)
async def test_nothing_but_a_retry_comes_out_of_a_transport(bench, error):
    """Both would end the job, the first one the whole thread."""
    bench = bench(error)
    await bench.fill(*records(2))

    await bench.run()

    assert bench.books.delivered == 2


@pytest.mark.parametrize("method", ["open", "send"])
async def test_a_transport_that_hangs_is_given_up_and_asked_again(bench, method):
    class Hanging(ScriptedTransport):
        hung = 0

        async def open(self) -> None:
            await self._hang("open")
            await super().open()

        async def send(self, batch: Batch) -> SendResult:
            await self._hang("send")
            return await super().send(batch)

        async def _hang(self, where: str) -> None:
            if where == method and not self.hung:
                self.hung += 1
                await asyncio.Event().wait()

    bench = bench(call_limit=0.01)
    bench.destination.transport = bench.transport = Hanging()
    await bench.fill(*records(2))

    assert await bench.attempt() > 0
    await bench.run()

    assert bench.transport.hung == 1
    assert bench.books.delivered == 2


async def test_a_transport_that_resists_its_cancellation_is_not_called_a_second_time(bench):
    release = asyncio.Event()

    class Stubborn(ScriptedTransport):
        async def answer(self, batch: Batch) -> SendResult:
            while len(self.batches) == 1 and not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
            return Accepted()

    bench = bench(call_limit=0.01)
    bench.destination.transport = bench.transport = Stubborn()
    await bench.fill(*records(1))

    for _ in range(2):
        bench.now += await bench.attempt() or 0
    assert len(bench.transport.batches) == 1
    release.set()
    while bench.destination._calls._left:
        await asyncio.sleep(0)
    await bench.run()

    assert bench.books.delivered == 1


async def test_p08_a_cancellation_does_not_come_between_a_store_and_its_books(bench):
    reached = asyncio.Event()

    class Slow(MemoryStore):
        async def ack(self, lease, ids):
            count = await super().ack(lease, ids)
            reached.set()
            await asyncio.sleep(0)
            return count

    bench = bench()
    bench.store.__class__ = Slow
    await bench.fill(*records(3))
    attempt = asyncio.ensure_future(bench.attempt())
    await reached.wait()

    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt

    assert bench.books.delivered == 3
    await bench.check_books()


async def test_answers_that_change_in_an_outage_do_not_flood_the_log(bench, caplog):
    bench = bench(
        Accepted(), *[answer for _ in range(50) for answer in (Paused("404"), Retry("502"))]
    )
    await bench.fill(make_record())
    await bench.run()
    await bench.fill(make_record())

    await bench.run()

    assert len([record for record in caplog.records if record.levelname == "WARNING"]) <= 4


@pytest.fixture
def make_status():
    from guard_agent import AgentStatus, get_current_timestamp

    return lambda: AgentStatus(
        timestamp=get_current_timestamp(),
        status="healthy",
        uptime=1,
        events_sent=0,
        events_failed=0,
        buffer_size=0,
    )


async def test_c08_what_only_the_transport_refuses_says_nothing_about_the_collector(bench):
    """
    Nobody was asked: no request is counted, and a pause goes on.
    """
    giant = make_record(size=9_000)

    def judge(batch: Batch) -> SendResult:
        if giant in batch.records:
            return TooLarge(4_000, asked=False)
        return Paused("key refused")

    bench = bench(*[judge] * 100)
    await bench.fill(make_record(size=100))
    bench.now += await bench.attempt()
    assert bench.gate.state is GateState.PAUSED
    await bench.fill(giant)
    assert await bench.store.lease(bench.name, 1, 1_000, 60), "so that the giant comes next"

    assert await bench.attempt() == 0

    assert bench.books.buried == 1
    assert bench.gate.state is GateState.PAUSED
    assert bench.books.requests == 1
    assert [type(error) for _, error in bench.errors] == [DeliveryError, PayloadTooLargeError]


async def test_c08_a_limit_that_was_learned_grows_back_in_time(bench):
    bench = bench(TooLarge(limit=2_000), max_records=50, max_bytes=32_000)
    await bench.fill(*records(100, size=800))
    await bench.run()
    assert bench.transport.batches[-1].size <= 2_000

    for _ in range(16):
        bench.now += 300
        await bench.fill(*records(50, size=800))
        await bench.run()

    assert max(batch.size for batch in bench.transport.batches[-2:]) == 32_000
    assert bench.books.delivered == 100 + 16 * 50


@pytest.mark.parametrize("kind", ["event", "metric"])
async def test_on_error_names_the_stages_of_3_x(bench, kind):
    refused = Paused("no place for it", stage="encryption")
    bench = bench(Retry("down"), refused, ValueError("defect"), Reject("bad", 422))
    await bench.fill(make_record(kind=kind))
    told = []
    bench.destination._on_error = lambda *what: told.append(what)

    await bench.run()

    about = {"destination": bench.name, "data_type": f"{kind}s", "item_count": 1}
    assert [(stage, str(error), context) for stage, error, context in told] == [
        ("transport_send", "down", about),
        ("encryption", "no place for it", about),
        (f"flush_{kind}s", "defect", {"destination": bench.name, "batch_size": 1}),
        ("transport_send", "the collector answered 422: bad", about),
    ]


@pytest.mark.parametrize("answer", [Accepted(), Partial()], ids=repr)
async def test_c24_after_an_outage_the_growing_batches_have_pauses_between_them(bench, answer):
    bench = bench(*[Retry("down")] * 4, answer)
    await bench.fill(*records(10))
    for _ in range(4):
        bench.now += await bench.attempt()

    assert await bench.attempt() == 0
    assert bench.books.delivered == 1
    assert await bench.attempt() == 0.5, "half a second, for `random` is 0.5"


async def test_c04_a_burst_of_errors_is_waited_out_and_then_everything_goes(bench):
    """
    Twenty times 500: four attempts with full jitter, then single records after longer and longer
    rests, then the backlog in growing batches.
    """
    bench = bench(*[Retry("500 Internal Server Error")] * 20)
    await bench.fill(*records(300))
    times = []
    for _ in range(20):
        times.append(bench.now)
        bench.now += await bench.attempt()
    await bench.run()

    waits = [later - before for before, later in pairwise(times)]
    # `random` is 0.5 here: half of each bound of the backoff, three quarters of each rest.
    assert waits == [0.5, 1.0, 2.0, 3.75, 7.5, 15.0, 30.0, *[45.0] * 12]
    assert batch_sizes(bench)[:20] == [300] * 4 + [1] * 16
    assert batch_sizes(bench)[20:] == [1, 2, 4, 8, 16, 32, 64, 128, 45]
    await bench.check_books()
