"""
What every transport must do, against a peer that does what it is told.

A transport for a collector that speaks HTTP passes by subclassing the suite where pytest finds it::

    class TestMyCollector(TransportContract):
        plugin = MyCollector

        def settings(self):
            return {"url": self.peer.url}

Where the collector gets other fields than the agent has, override `TransportContract.sent`; where
the format is another one, or the protocol is, give the suite a ``peer`` of your own. A transport to
something on the same machine that does not answer, such as a file, takes `LocalTransportContract`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pydantic import SecretStr

from guard_agent import (
    Accepted,
    AgentStatus,
    Batch,
    Kind,
    Partial,
    Paused,
    Record,
    Reject,
    Retry,
    SendResult,
    TooLarge,
    Transport,
    get_current_timestamp,
)
from guard_agent.core.agent import Agent
from guard_agent.core.assembly.inspection import TRANSPORT, Seam
from guard_agent.core.intake.pipeline import Pipeline
from guard_agent.testing.contracts.base import (
    PATIENCE,
    ResourceContract,
    beats_during,
    cancel_while_silent,
)
from guard_agent.testing.peers import BUSY_SECONDS, HttpPeer, Outcome, RecordsPeer
from guard_agent.testing.records import make_batch, make_event, make_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HOSTILE_TEXTS = (
    "",
    "two\nlines\r\nand\ta tab",
    "quotes \" ' and a backslash \\",
    '{"looks": "like JSON"}]}',
    "\x00\x07\x1b[2J\x7f",
    "\u2028\u2029\u202e\ufeff",
    "\u00fc\u4e2d\u6587\U0001f6e1",
    "<script>&amp;%0d%0a%s%n${jndi:ldap://x}",
    "x" * 20_000,
)
"""What attackers write into a record; all of it is JSON that the agent would send."""

_ALL = (Accepted, Partial, Retry, Reject, TooLarge, Paused)
_STATUS = AgentStatus(
    timestamp=get_current_timestamp(),
    status="healthy",
    uptime=1.0,
    events_sent=0,
    events_failed=0,
    buffer_size=0,
)


class LocalTransportContract(ResourceContract):
    """The contract of `guard_agent.Transport`, without what takes a peer that answers."""

    seam: ClassVar[Seam] = TRANSPORT
    plugin: ClassVar[type[Transport]]

    peer: Any
    """The other end, which has started; see `make_peer`."""

    def make_peer(self) -> RecordsPeer:
        """The other end, not started; ``self.folder`` is a folder of the test."""
        raise NotImplementedError

    def sent(self, fields: dict[str, Any]) -> dict[str, Any]:
        """What the peer should have of a record with these ``fields``: all of them."""
        return fields

    @pytest.fixture(autouse=True)
    def _peer(self, _folder: None) -> Iterator[None]:
        self.peer = self.make_peer()
        self.peer.start()
        try:
            yield
        finally:
            self.peer.stop()

    async def work(self, plugin: Transport) -> None:
        await plugin.send(make_batch(1))

    async def deliver(self, *batches: Batch) -> list[SendResult]:
        """What a transport says that is opened for these batches and closed again."""
        transport = self.make()
        await transport.open()
        try:
            return [await transport.send(batch) for batch in batches]
        finally:
            await transport.close()

    def check_arrived(self, *batches: Batch) -> None:
        """Whether the peer has these records in this order, and nothing else."""
        wanted = [self.sent(fields) for batch in batches for fields in batch.decode()]
        assert self.peer.records == wanted

    # --- what the core reads ----------------------------------------------------------------------

    async def test_the_collector_has_an_identity_before_it_is_opened(self) -> None:
        first, second = self.make(), self.make()

        assert isinstance(first.collector, str)
        assert first.collector
        assert first.collector == second.collector

    async def test_the_largest_batch_is_a_number_of_bytes_or_unknown(self) -> None:
        limit = self.make().max_batch_bytes

        assert limit is None or (isinstance(limit, int) and limit > 0)

    # --- delivery ---------------------------------------------------------------------------------

    @pytest.mark.parametrize("kind", ["event", "metric"])
    @pytest.mark.parametrize("amount", [1, 2, 100])
    async def test_a_batch_arrives_whole_and_in_order(self, kind: Kind, amount: int) -> None:
        batch = make_batch(amount, kind)

        assert await self.deliver(batch) == [Accepted()]
        self.check_arrived(batch)

    async def test_batches_arrive_one_after_the_other(self) -> None:
        batches = [make_batch(2), make_batch(3, "metric"), make_batch(1)]

        assert await self.deliver(*batches) == [Accepted()] * 3
        self.check_arrived(*batches)

    async def test_hostile_texts_arrive_as_they_are(self) -> None:
        records = [make_record(reason=text, metadata={text[:50]: text}) for text in HOSTILE_TEXTS]
        batch = Batch("event", tuple(records))

        assert await self.deliver(batch) == [Accepted()]
        self.check_arrived(batch)

    async def test_two_instances_do_not_disturb_each_other(self) -> None:
        one, two = self.make(), self.make()
        first, second = make_batch(2), make_batch(2)
        await one.open()
        await two.open()

        assert await one.send(first) == Accepted()
        await one.close()
        assert await two.send(second) == Accepted()
        await two.close()

        self.check_arrived(first, second)

    # --- trouble ----------------------------------------------------------------------------------

    async def test_a_peer_that_is_away_means_retry_and_nothing_is_lost(self) -> None:
        transport = self.make()
        before, during = make_batch(1), make_batch(1)
        await transport.open()
        try:
            assert await transport.send(before) == Accepted()
            self.peer.stop()
            away = await transport.send(during)
            self.peer.start()
            back = await transport.send(during)
        finally:
            await transport.close()

        assert isinstance(away, Retry), away
        assert away.reason, "say what is wrong: an operator reads it"
        assert not away.throttled, "nobody asked for less"
        assert back == Accepted()
        self.check_arrived(before, during)

    async def test_a_report_is_answered_whether_or_not_the_peer_is_there(self) -> None:
        transport = self.make()
        await transport.open()
        try:
            there = await transport.report(_STATUS)
            self.peer.stop()
            away = await transport.report(_STATUS)
        finally:
            await transport.close()

        assert isinstance(there, _ALL)
        assert isinstance(away, _ALL)

    # --- in an agent ------------------------------------------------------------------------------

    def outage(self) -> None:
        """What goes wrong with the peer before the agent begins to send."""
        self.peer.stop()

    async def test_an_agent_delivers_everything_after_an_outage(self) -> None:
        plan = self.compose(flush_interval=0.1, buffer_size=1, backoff_factor=0.01, stop_timeout=5)
        agent = Agent(plan)
        events = [make_event(reason=f"event {n}") for n in range(5)]
        self.outage()
        try:
            for event in events:
                assert agent.record("event", event) is None
            await asyncio.wrap_future(agent.flush())
            self.peer.start()
            await self._until_arrived(agent, len(events))
        finally:
            await asyncio.wrap_future(agent.stop())

        (books,) = agent.balances().values()
        assert (books.accepted, books.delivered, books.pending) == (5, 5, 0), books
        encoded = [Pipeline(()).encode("event", event) for event in events]
        batch = Batch("event", tuple(one for one in encoded if isinstance(one, Record)))
        arrived = self.peer.records
        for fields in batch.decode():
            assert self.sent(fields) in arrived
        assert len(arrived) == len(batch) == len(events)

    async def _until_arrived(self, agent: Agent, amount: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while next(iter(agent.balances().values())).delivered < amount:
            books = agent.balances()
            assert time.monotonic() < deadline, f"it never arrived: {books}; {agent.status()}"
            await asyncio.wrap_future(agent.flush())
            await asyncio.wrap_future(agent.look())
            await asyncio.sleep(0.02)


class TransportContract(LocalTransportContract):
    """The contract of `guard_agent.Transport`, against a peer that answers."""

    peer: HttpPeer

    answers: ClassVar[Mapping[Outcome, tuple[type[SendResult], ...]]] = {
        "busy": (Retry,),
        "unavailable": (Retry,),
        "broken": (Retry,),
        "reset": (Retry,),
        "denied": (Paused,),
        "forbidden": (Paused,),
        "missing": (Paused,),
        "moved": (Paused, Retry),
        "malformed": (Reject,),
        "unprocessable": (Reject,),
        "too_large": (TooLarge,),
    }
    """
    What the transport may say when the peer does that; see `guard_agent.testing.peers.Outcome`.
    Leave out what a peer of your own cannot do.
    """

    def make_peer(self) -> RecordsPeer:
        return HttpPeer()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "outcome" in metafunc.fixturenames and metafunc.cls is not None:
            metafunc.parametrize("outcome", list(metafunc.cls.answers))

    def outage(self) -> None:
        self.peer.say("unavailable", "reset")

    async def test_every_answer_has_its_result_and_the_next_batch_is_delivered(
        self, outcome: Outcome
    ) -> None:
        transport = self.make()
        batch = make_batch(2)
        await transport.open()
        try:
            self.peer.say(outcome)
            result = await transport.send(batch)
            after = await transport.send(batch)
        finally:
            await transport.close()

        assert isinstance(result, self.answers[outcome]), result
        if not isinstance(result, TooLarge):
            assert getattr(result, "reason", ""), "say what is wrong: an operator reads it"
        for secret in self._secrets(transport):
            assert secret not in str(result), "a secret must not be in a reason, which is logged"
        if outcome == "busy":
            assert isinstance(result, Retry)
            assert result.after == BUSY_SECONDS, "the peer named a delay"
            assert result.throttled, "the peer is well and asks for less"
        assert after == Accepted()
        self.check_arrived(batch)

    @staticmethod
    def _secrets(transport: Transport) -> list[str]:
        values = [value for _, value in transport.settings]
        found = [value.get_secret_value() for value in values if isinstance(value, SecretStr)]
        return [*filter(None, found), transport.context.config.api_key]

    async def test_an_answer_that_takes_its_time_does_not_hold_up_the_event_loop(self) -> None:
        transport = self.make()
        await transport.open()
        try:
            self.peer.say("late")
            beats = await beats_during(transport.send(make_batch(1)))
        finally:
            await transport.close()

        assert beats >= 3, (
            "send() blocked the event loop, and with it every other transport: use a library for "
            "asyncio, or asyncio.to_thread"
        )

    async def test_a_cancelled_send_ends_and_the_next_one_works(self) -> None:
        transport = self.make()
        lost, batch = make_batch(1), make_batch(1)
        await transport.open()
        try:
            await cancel_while_silent(transport.send(lost), self.peer)
            assert await transport.send(batch) == Accepted()
        finally:
            await transport.close()

        self.check_arrived(batch)
