"""Rule sources that are told of new rules, besides being asked at their interval."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from guard_agent import PluginSettings, RuleSet, RuleSource
from guard_agent.core.delivery.gate import Gate
from guard_agent.core.rules import keeper as keeper_module
from guard_agent.core.rules.keeper import RuleKeeper
from guard_agent.testing.records import make_context
from guard_agent.testing.transports import RecordingTransport


class Told(RuleSource):
    """Gives version after version, and watches as its test says."""

    name = "told"
    Settings = PluginSettings
    interval = 3600.0

    def __init__(self, settings=None, context=None, watching=None):
        super().__init__(settings or PluginSettings(), context or make_context(instance="told"))
        self.watching = watching
        self.fetched = self.watched = 0
        self.opened = False

    async def open(self):
        self.opened = True

    async def fetch(self, known):
        self.fetched += 1
        return RuleSet({"rule_id": "told", "version": self.fetched})

    async def watch(self, changed):
        assert self.opened
        self.watched += 1
        await self.watching(self, changed)


def make_keeper(watching):
    gate = Gate(rate=1000, backoff=1.0, failure_threshold=4)
    return RuleKeeper(Told(watching=watching), gate, None)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(keeper_module, "_WATCH_AGAIN", (0.001, 0.002))


async def until(question):
    async def ask():
        while not question():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(ask(), 30)


async def test_what_changed_ends_the_rest_before_its_time():
    news = asyncio.Event()

    async def watching(_, changed):
        await news.wait()
        changed()
        await asyncio.Event().wait()

    keeper = make_keeper(watching)
    watch = asyncio.create_task(keeper.watch())
    await keeper.refresh()
    resting = asyncio.create_task(keeper.rest(3600))
    news.set()

    await asyncio.wait_for(resting, 30)
    await keeper.refresh()

    assert keeper.current.version == 2
    watch.cancel()


async def test_what_changed_during_a_refresh_is_not_missed():
    keeper = make_keeper(None)
    await keeper.refresh()
    keeper._tell()

    await asyncio.wait_for(keeper.rest(3600), 30)


async def test_without_news_the_rest_takes_its_time_and_the_next_one_too():
    keeper = make_keeper(None)

    for _ in range(2):
        began = asyncio.get_running_loop().time()
        await keeper.rest(0.05)
        assert asyncio.get_running_loop().time() - began >= 0.04


async def test_a_watch_that_ends_or_raises_begins_again_and_is_logged_once(caplog):
    async def watching(source, changed):
        if source.watched < 5:
            raise RuntimeError("lost")

    keeper = make_keeper(watching)
    watch = asyncio.create_task(keeper.watch())
    with caplog.at_level(logging.ERROR):
        await keeper.refresh()
        await until(lambda: keeper.source.watched > 10)

    assert len([record for record in caplog.records if "watched" in record.message]) == 1
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch


async def test_the_pauses_before_a_watch_begins_again_grow_until_one_lasted(monkeypatch):
    monkeypatch.setattr(keeper_module, "_WATCH_AGAIN", (1.0, 60.0))
    pauses, now, sleep = [], [0.0], asyncio.sleep
    done = asyncio.Event()

    async def skip(seconds):
        pauses.append(seconds)
        await sleep(0)

    async def watching(source, changed):
        if source.watched == 9:
            now[0] += 60.5
        if source.watched > 10:
            done.set()
            await asyncio.Event().wait()

    gate = Gate(rate=1000, backoff=1.0, failure_threshold=4)
    keeper = RuleKeeper(Told(watching=watching), gate, None, clock=lambda: now[0])
    await keeper.refresh()
    monkeypatch.setattr(asyncio, "sleep", skip)
    watch = asyncio.create_task(keeper.watch())
    await asyncio.wait_for(done.wait(), 30)
    watch.cancel()

    expected = [2, 4, 8, 16, 32, 60, 60, 60, 1, 2]
    assert len(pauses) == len(expected)
    assert all(
        0.5 * pause <= seconds < 1.5 * pause
        for pause, seconds in zip(expected, pauses, strict=True)
    )


async def test_a_source_that_only_polls_is_not_watched():
    class Polls(Told):
        watch = RuleSource.watch

    keeper = RuleKeeper(Polls(), Gate(rate=10, backoff=1.0, failure_threshold=4), None)

    await asyncio.wait_for(keeper.watch(), 30)


async def test_a_flood_of_news_does_not_become_a_flood_of_requests():
    async def watching(_, changed):
        while True:
            changed()
            await asyncio.sleep(0)

    keeper = make_keeper(watching)
    watch = asyncio.create_task(keeper.watch())
    await keeper.refresh()
    loop = asyncio.get_running_loop()
    began, rests = loop.time(), 10
    for _ in range(rests):
        await keeper.rest(3600)

    assert loop.time() - began >= 0.2  # ten times up to 0.2 s, by chance
    watch.cancel()


def test_an_agent_takes_rules_that_it_is_told_of(make_agent):
    news = threading.Event()
    sources = []

    class Source(Told):
        name = "told"

        def __init__(self, settings, context):
            super().__init__(settings, context)
            sources.append(self)

        async def watch(self, changed):
            await asyncio.to_thread(news.wait, 30)
            changed()
            await asyncio.Event().wait()

    agent = make_agent(RecordingTransport, Source, rules=["told"])
    agent.start()
    agent.first_rules().result(30)
    assert agent.rules().version == 1
    news.set()

    deadline = threading.Event()
    for _ in range(3000):
        if agent.rules().version == 2:
            break
        deadline.wait(0.01)

    assert agent.rules().version == 2
