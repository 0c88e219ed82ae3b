"""Everything of one process that asks one collector, through an outage; time is an argument."""

from __future__ import annotations

import asyncio
import heapq
import random

import pytest

from guard_agent import Accepted, FetchResult, Paused, Retry, RuleSource, Unchanged
from guard_agent.core.delivery.destination import Destination
from guard_agent.core.delivery.gate import Gate
from guard_agent.core.ledger import DestinationBooks
from guard_agent.core.rules.keeper import RuleKeeper
from guard_agent.plugins.memory import MemoryStore
from guard_agent.testing.records import make_context, make_records
from guard_agent.testing.transports import ScriptedTransport

HOUR = 3_600.0
DOWN = Retry("connection refused")
BUSY = Retry("429 Too Many Requests", throttled=True)
REFUSED = Paused("401 Unauthorized")


class Source(RuleSource):
    """Answers as the collector does at that time."""

    name = "source"
    ask: staticmethod

    @property
    def interval(self) -> float:
        return 60.0

    async def fetch(self, known: str | None) -> FetchResult:
        return self.ask()


class Process:
    """Two destinations and a rule source at one collector, which is away until ``back``."""

    def __init__(self, seed: int, trouble: Retry | Paused, back: float) -> None:
        self.now = 0.0
        self.asked: list[float] = []
        self._trouble = trouble
        self._back = back
        names = ("one", "two")
        draw = random.Random(seed).random
        gate = Gate(rate=10, backoff=1.0, failure_threshold=4, random=draw)
        self.store = MemoryStore(MemoryStore.Settings(), make_context(destinations=names))
        self.destinations = [
            Destination(
                ScriptedTransport(
                    *[lambda _: self._answer(Accepted())] * 10_000,
                    context=make_context(instance=name, destinations=names),
                ),
                self.store,
                gate,
                DestinationBooks(),
                max_records=1_000,
                max_bytes=1 << 20,
                books_lock=asyncio.Lock(),
                clock=lambda: self.now,
            )
            for name in names
        ]
        source = Source(Source.Settings(), make_context())
        source.ask = lambda: self._answer(Unchanged())
        self.keeper = RuleKeeper(source, gate, None, clock=lambda: self.now)

    def _answer(self, good):
        self.asked.append(self.now)
        return self._trouble if self.now < self._back else good

    async def run(self, end: float) -> None:
        """Each asks when it may, as the jobs of the agent do."""
        steps = [*(destination.attempt for destination in self.destinations), self.keeper.refresh]
        due = [(0.0, number) for number in range(len(steps))]
        while due[0][0] < end:
            self.now, number = heapq.heappop(due)
            delay = await steps[number]()
            heapq.heappush(due, (self.now + (30.0 if delay is None else delay), number))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("trouble", [DOWN, BUSY, REFUSED])
async def test_p17_l11_all_of_a_process_asks_at_most_twice_a_minute_in_a_long_outage(seed, trouble):
    process = Process(seed, trouble, back=5 * HOUR)
    await process.store.append(make_records(500), evict=True)

    await process.run(5 * HOUR)

    late = [at for at in process.asked if at >= 300]
    assert len(late) > 5 * 50
    assert all(sum(at <= other < at + 60 for other in late) <= 2 for at in late)


@pytest.mark.parametrize("trouble", [DOWN, BUSY, REFUSED])
async def test_c04_c11_c24_when_it_is_back_everything_goes_by_itself(trouble):
    process = Process(1, trouble, back=HOUR)
    await process.store.append(make_records(500), evict=True)

    await process.run(HOUR + 120)

    assert [destination.books.delivered for destination in process.destinations] == [500, 500]
    assert process.keeper.fetched
