"""
Every part that others write, doing everything that it must not.

What it does is no reason for `send_event` to raise, for another destination to get less, for the
agent not to end, or for the books not to balance (which `make_agent` checks).
"""

from __future__ import annotations

import asyncio
import threading

import pytest

from guard_agent import Accepted, Enricher, Level, Retry, RuleSource, Stage
from guard_agent.client import SyncGuardAgentHandler
from guard_agent.plugins.memory import MemoryStore
from guard_agent.testing.records import make_event
from guard_agent.testing.transports import RecordingTransport

RECORDS = 8


class Misdeed:
    """What the bad part does when it is called; counts how often."""

    def __init__(self, name):
        self.name = name
        self.calls = 0
        self.called = threading.Event()
        self.handler = None

    def __call__(self, good):
        self.calls += 1
        self.called.set()
        if self.name == "raises":
            raise ValueError("defect")
        if self.name == "exits":
            raise SystemExit(3)
        if self.name == "records":
            self.handler.send_event(make_event(reason="made by a part"))
        if self.name == "stops":
            self.handler.stop()
        return object() if self.name == "garbage" else good


def enricher(stage_):
    def make(misdeed):
        class Bad(Enricher):
            name = "bad"
            stage = stage_

            def bind(self, kind):
                return misdeed

        return Bad, {"enrichers": ["bad"]}

    return make


def transport(misdeed):
    class Bad(RecordingTransport):
        name = "bad"

        async def answer(self, batch):
            return misdeed(Accepted())

    return Bad, {}


def source(misdeed):
    class Bad(RuleSource):
        name = "bad"
        interval = 3600.0

        async def fetch(self, known):
            return misdeed(Retry("down"))

    return Bad, {"rules": ["bad"]}


def store(misdeed):
    class Bad(MemoryStore):
        name = "bad"
        level = Level.JOURNAL

        async def append(self, records, *, evict):
            # A good one would have taken them; a bad one leaves them to the memory lane.
            done = misdeed(None)
            return await super().append(records, evict=evict) if done is None else done

    return Bad, {"store": "bad"}


def callback(misdeed):
    class Bad(RecordingTransport):
        name = "bad"

        async def answer(self, batch):
            return Accepted() if len(self.batches) > 7 else Retry("down")

    return Bad, {"on_error": lambda *_: misdeed(None)}


PARTS = {
    "derive": enricher(Stage.DERIVE),
    "redact": enricher(Stage.REDACT),
    "seal": enricher(Stage.SEAL),
    "transport": transport,
    "source": source,
    "store": store,
    "callback": callback,
}


@pytest.fixture
def bad_agent(make_agent):
    def make(part, misdeed, **settings):
        bad, more = PARTS[part](misdeed)
        agent = make_agent(
            RecordingTransport,
            bad,
            **{"backoff_factor": 0.001, "stop_timeout": 0.5, "timeout": 5, **more, **settings},
        )
        misdeed.handler = SyncGuardAgentHandler.__new__(SyncGuardAgentHandler)
        misdeed.handler._agent = agent
        return agent

    return make


def good_transport(agent):
    return agent._current().destinations["recording"].transport


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("deed", ["raises", "exits", "garbage", "records"])
def test_p11_whatever_a_part_does_the_others_go_on(bad_agent, part, deed):
    misdeed = Misdeed(deed)
    agent = bad_agent(part, misdeed)
    good = good_transport(agent)

    for _ in range(RECORDS):
        agent.record("event", make_event())
    agent.rules()
    agent.flush()
    fails_closed = part in ("redact", "seal") and deed != "records"
    if not fails_closed:
        good.wait(lambda: len(good.accepted) == RECORDS)
    agent.first_rules().result(30)
    agent.stop().result(30)

    balance = agent.balances()["recording"]
    assert misdeed.calls
    assert balance.delivered == (0 if fails_closed else RECORDS)
    if fails_closed:
        assert balance.dropped == {"enricher_failed": RECORDS}
    else:
        assert balance.dropped == ({"internal": misdeed.calls} if deed == "records" else {})
    if part == "derive" and deed != "records":
        assert misdeed.calls == 5, "then it is disabled"


@pytest.mark.parametrize("part", PARTS)
def test_p11_a_part_that_stops_the_agent_does_not_hang_it(bad_agent, part):
    misdeed = Misdeed("stops")
    agent = bad_agent(part, misdeed)

    for _ in range(RECORDS):
        agent.record("event", make_event())
    agent.rules()
    agent.flush()
    assert misdeed.called.wait(30)

    agent.stop().result(30)

    assert agent.stopped


@pytest.fixture
def agent_with(bad_agent):
    """An agent of which one method of one part does what ``deed`` does before it works."""

    def make(part, deed, **settings):
        agent = bad_agent(part, Misdeed("works"), **settings)
        run = agent._current()
        plugin, method = {
            "transport": lambda: (run.destinations["bad"].transport, "send"),
            "source": lambda: (run.keepers[0].source, "fetch"),
            "store": lambda: (run.lanes.durable._store, "append"),
        }[part]()
        works = getattr(plugin, method)

        async def does_it_first(*args, **kwargs):
            await deed()
            return await works(*args, **kwargs)

        setattr(plugin, method, does_it_first)
        return agent

    return make


@pytest.mark.parametrize("part", ["transport", "source", "store"])
def test_p11_a_part_that_hangs_is_given_up(agent_with, part):
    """What it awaits never comes; ``timeout`` ends it, off the path of the application."""
    reached = threading.Event()

    async def hang():
        reached.set()
        await asyncio.Event().wait()

    agent = agent_with(part, hang, timeout=0.05)
    good = good_transport(agent)

    agent.record("event", make_event())
    agent.rules()
    agent.flush()

    good.wait(lambda: len(good.accepted) == 1)
    assert reached.wait(30)
    agent.stop().result(30)


@pytest.mark.parametrize("part", ["transport", "source", "store"])
def test_p11_a_part_that_blocks_the_thread_of_the_agent_holds_up_nothing_of_the_app(
    agent_with, part
):
    """
    Python cannot cut it off. Records are taken within their bounds, and the end is not waited for.
    """
    reached, go, gone_on = threading.Event(), threading.Event(), threading.Event()

    async def block():
        reached.set()
        go.wait(60)
        gone_on.set()

    agent = agent_with(part, block, stop_timeout=0.2)
    handler = SyncGuardAgentHandler.__new__(SyncGuardAgentHandler)
    handler._agent = agent
    try:
        agent.record("event", make_event())
        agent.rules()
        agent.flush()
        assert reached.wait(30)

        for _ in range(200):
            handler.send_event(make_event())
        handler.stop()

        assert not gone_on.is_set(), "all of it came back while the part was blocking"
    finally:
        go.set()
