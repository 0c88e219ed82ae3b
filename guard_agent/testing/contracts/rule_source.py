"""
What every rule source must do, against a peer that holds rules and does what it is told.

A source that asks over HTTP passes by subclassing the suite where pytest finds it::

    class TestMyRules(RuleSourceContract):
        plugin = MyRules

        def settings(self):
            return {"url": self.peer.url}

A source on the same machine, such as a file, takes `LocalRuleSourceContract` and a peer of its own.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from guard_agent import DynamicRules, FetchResult, Paused, Retry, RuleSet, RuleSource, Unchanged
from guard_agent.core.agent import Agent
from guard_agent.core.assembly.inspection import RULE_SOURCE, Seam
from guard_agent.testing.contracts.base import (
    PATIENCE,
    ResourceContract,
    beats_during,
    cancel_while_silent,
)
from guard_agent.testing.peers import BUSY_SECONDS, HttpPeer, Outcome, RulesPeer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RULES = {
    "rule_id": "contract",
    "version": 3,
    "timestamp": "2026-01-31T12:00:00+00:00",
    "ip_blacklist": ["203.0.113.9"],
    "blocked_user_agents": ["sqlmap", "\u00fcb\u2028er"],
}

GARBAGE = (b"[]", b"null", b"7", b'"text"', b"<html>", b'{"version": 1', b"\xff\xfe", b"\x00")
"""What may stand where the rules should; none of it is a document."""


class LocalRuleSourceContract(ResourceContract):
    """The contract of `guard_agent.RuleSource`, without what takes a peer that answers."""

    seam: ClassVar[Seam] = RULE_SOURCE
    plugin: ClassVar[type[RuleSource]]

    peer: Any
    """The other end, which has started and holds `RULES`; see `make_peer`."""

    def make_peer(self) -> RulesPeer:
        """The other end, not started; ``self.folder`` is a folder of the test."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _peer(self, _folder: None) -> Iterator[None]:
        self.peer = self.make_peer()
        self.peer.start()
        try:
            self.peer.publish(RULES)
            yield
        finally:
            self.peer.stop()

    async def work(self, plugin: RuleSource) -> None:
        await plugin.fetch(None)

    async def fetch(self, known: str | None = None) -> FetchResult:
        """What a source says that is opened for this and closed again."""
        source: RuleSource = self.make()
        await source.open()
        try:
            return await source.fetch(known)
        finally:
            await source.close()

    async def fetch_rules(self) -> RuleSet:
        found = await self.fetch()
        assert isinstance(found, RuleSet), found
        return found

    # --- what the core reads ----------------------------------------------------------------------

    async def test_the_collector_has_an_identity_before_it_is_opened(self) -> None:
        first, second = self.make(), self.make()

        assert isinstance(first.collector, str)
        assert first.collector
        assert first.collector == second.collector

    async def test_the_interval_is_a_number_of_seconds(self) -> None:
        assert self.make().interval > 0

    # --- rules ------------------------------------------------------------------------------------

    async def test_the_document_comes_as_it_is_held(self) -> None:
        found = await self.fetch_rules()

        assert dict(found.document) == RULES
        assert DynamicRules.model_validate(found.document).version == 3

    async def test_the_bytes_of_the_document_come_along_or_not_at_all(self) -> None:
        found = await self.fetch_rules()

        assert found.content is None or isinstance(found.content, bytes)
        assert found.signature is None, "the peer has sent none"

    async def test_what_is_known_is_not_brought_again(self) -> None:
        """A source without validators cannot know; then the core compares the documents."""
        first = await self.fetch_rules()

        again = await self.fetch(first.validator)

        if first.validator is None:
            assert isinstance(again, (RuleSet, Unchanged))
        else:
            assert again == Unchanged()

    async def test_a_change_is_brought(self) -> None:
        first = await self.fetch_rules()
        changed = {**RULES, "version": 4, "ip_blacklist": ["203.0.113.9", "203.0.113.10"]}
        self.peer.publish(changed)

        second = await self.fetch(first.validator)

        assert isinstance(second, RuleSet), second
        assert dict(second.document) == changed
        assert second.validator is None or second.validator != first.validator

    async def test_a_validator_that_means_nothing_brings_the_document(self) -> None:
        """It was kept on disk by another version, or for another address."""
        found = await self.fetch("a validator of somebody else")

        assert isinstance(found, RuleSet), found

    # --- trouble ----------------------------------------------------------------------------------

    async def test_a_peer_that_is_away_means_later(self) -> None:
        self.peer.stop()
        away = await self.fetch()
        self.peer.start()

        assert isinstance(away, (Retry, Paused)), away
        assert away.reason, "say what is wrong: an operator reads it"
        assert isinstance(await self.fetch(), RuleSet)

    @pytest.mark.parametrize("content", GARBAGE)
    async def test_what_is_no_document_means_later(self, content: bytes) -> None:
        self.peer.garble(content)
        garbled = await self.fetch()
        self.peer.publish(RULES)

        assert isinstance(garbled, (Retry, Paused)), garbled
        assert garbled.reason, "say what is wrong: an operator reads it"
        assert isinstance(await self.fetch(), RuleSet)

    async def test_where_nothing_stands_there_are_no_rules(self) -> None:
        self.peer.garble(b"")

        assert isinstance(await self.fetch(), (Unchanged, Retry, Paused))

    # --- in an agent ------------------------------------------------------------------------------

    async def test_an_agent_has_the_rules(self) -> None:
        agent = Agent(self.compose(stop_timeout=5))
        deadline = time.monotonic() + PATIENCE
        try:
            agent.start()
            while (rules := agent.rules()) is None and time.monotonic() < deadline:
                await asyncio.wrap_future(agent.first_rules())
        finally:
            await asyncio.wrap_future(agent.stop())

        assert rules is not None, agent.status().rules
        assert rules.rule_id == RULES["rule_id"]
        assert rules.ip_blacklist == RULES["ip_blacklist"]


class RuleSourceContract(LocalRuleSourceContract):
    """The contract of `guard_agent.RuleSource`, against a peer that answers."""

    peer: HttpPeer

    answers: ClassVar[Mapping[Outcome, tuple[type[FetchResult], ...]]] = {
        "busy": (Retry,),
        "unavailable": (Retry,),
        "broken": (Retry,),
        "reset": (Retry, RuleSet),  # a GET may be repeated at once
        "denied": (Paused,),
        "forbidden": (Paused,),
        "missing": (Paused,),
        "moved": (Paused, Retry),
    }
    """
    What the source may say when the peer does that; see `guard_agent.testing.peers.Outcome`. Leave
    out what a peer of your own cannot do.
    """

    def make_peer(self) -> RulesPeer:
        return HttpPeer()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "outcome" in metafunc.fixturenames and metafunc.cls is not None:
            metafunc.parametrize("outcome", list(metafunc.cls.answers))

    async def test_every_answer_has_its_result_and_the_next_fetch_works(
        self, outcome: Outcome
    ) -> None:
        source = self.make()
        await source.open()
        try:
            self.peer.say(outcome)
            result = await source.fetch(None)
            after = await source.fetch(None)
        finally:
            await source.close()

        assert isinstance(result, self.answers[outcome]), result
        if not isinstance(result, RuleSet):
            assert getattr(result, "reason", ""), "say what is wrong: an operator reads it"
        assert source.context.config.api_key not in str(result), "a reason is logged"
        if outcome == "busy":
            assert isinstance(result, Retry)
            assert result.after == BUSY_SECONDS, "the peer named a delay"
        assert isinstance(after, RuleSet), after

    async def test_an_answer_that_takes_its_time_does_not_hold_up_the_event_loop(self) -> None:
        source = self.make()
        await source.open()
        try:
            self.peer.say("late")
            beats = await beats_during(source.fetch(None))
        finally:
            await source.close()

        assert beats >= 3, (
            "fetch() blocked the event loop, and with it every transport: use a library for "
            "asyncio, or asyncio.to_thread"
        )

    async def test_a_cancelled_fetch_ends_and_the_next_one_works(self) -> None:
        source = self.make()
        await source.open()
        try:
            await cancel_while_silent(source.fetch(None), self.peer)
            assert isinstance(await source.fetch(None), RuleSet)
        finally:
            await source.close()
