"""Calls into plugins end in time, and only an `Exception` comes out of them."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from guard_agent import Appended, BufferStore, Level
from guard_agent.core.delivery.calls import (
    GRACE,
    Calls,
    PluginDefect,
    PluginHangs,
    SafeStore,
    finish,
)
from guard_agent.core.interfaces import DestinationDepth, Lease, Peeked
from guard_agent.plugins.memory import MemoryStore
from guard_agent.testing.records import make_context, make_record


async def forever():
    await asyncio.Event().wait()


class Stubborn:
    """A call that does not end when it is cancelled, until it is let go."""

    def __init__(self):
        self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self):
        while not self.go.is_set():
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
        raise ValueError("nobody looks at it")


# --- one call -------------------------------------------------------------------------------------


async def test_a_call_gets_its_arguments_and_gives_what_it_returns():
    async def add(one, other):
        return one + other

    assert await Calls(30)(add, 1, 2) == 3


async def test_what_a_plugin_raises_comes_out_as_it_is():
    async def fail():
        raise KeyError("no")

    calls = Calls(30)
    for _ in range(2):
        with pytest.raises(KeyError, match="no"):
            await calls(fail)


@pytest.mark.parametrize(
    ("error", "words"),
    [(SystemExit(3), "^SystemExit: 3$"), (asyncio.CancelledError(), "^cancelled itself$")],
)
async def test_p11_what_would_end_the_loop_comes_out_as_a_defect(error, words):
    async def end():
        raise error

    with pytest.raises(PluginDefect, match=words):
        await Calls(30)(end)


async def test_p11_a_call_that_takes_too_long_is_given_up_and_the_next_one_made():
    calls = Calls(0.02)
    with pytest.raises(PluginHangs, match=r"^took longer than 0\.02 s$"):
        await calls(forever)

    assert await calls(asyncio.sleep, 0, 42) == 42


async def test_p11_after_a_call_that_resists_there_is_none_until_it_has_ended():
    calls, stubborn = Calls(0.02), Stubborn()
    before = time.monotonic()
    with pytest.raises(PluginHangs, match="took longer"):
        await calls(stubborn)
    assert time.monotonic() - before >= 0.02 + GRACE * 0.99
    assert stubborn.cancelled == 1

    for _ in range(2):
        with pytest.raises(PluginHangs, match=r"^an earlier call has not ended yet$"):
            await calls(asyncio.sleep, 0)
    stubborn.go.set()
    while calls._left:
        await asyncio.sleep(0)
    assert await calls(asyncio.sleep, 0, 42) == 42


async def test_p08_whoever_is_cancelled_cancels_the_call():
    calls, stubborn = Calls(3600), Stubborn()
    task = asyncio.ensure_future(calls(stubborn))
    await asyncio.sleep(0.01)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert stubborn.cancelled == 1
    with pytest.raises(PluginHangs):
        await calls(asyncio.sleep, 0)
    stubborn.go.set()
    await asyncio.sleep(0.01)
    task = asyncio.ensure_future(calls(forever))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await calls(asyncio.sleep, 0, 42) == 42


async def test_nobody_complains_about_an_error_that_nobody_waits_for(caplog):
    calls, stubborn = Calls(0.01), Stubborn()
    with suppress(PluginHangs):
        await calls(stubborn)
    stubborn.go.set()
    task = asyncio.ensure_future(finish(stubborn()))
    while calls._left or not task.done():
        await asyncio.sleep(0)
    with pytest.raises(ValueError, match="nobody"):
        await task
    assert caplog.text == ""


# --- steps that belong together -------------------------------------------------------------------


async def test_p08_a_step_is_finished_although_its_caller_is_cancelled():
    done = []

    async def step():
        await asyncio.sleep(0.03)
        done.append(1)

    for patience in ((), (lambda: 30.0,)):
        task = asyncio.ensure_future(finish(step(), *patience))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done.pop() == 1


async def test_p08_a_step_that_takes_too_long_is_cancelled_after_the_patience():
    ended = []

    async def step():
        try:
            await forever()
        finally:
            await asyncio.sleep(0.01)
            ended.append(time.monotonic())

    task = asyncio.ensure_future(finish(step(), lambda: 0.05))
    await asyncio.sleep(0.01)
    before = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ended[0] - before >= 0.05


async def test_p08_a_step_that_resists_is_left_behind():
    stubborn = Stubborn()
    task = asyncio.ensure_future(finish(stubborn(), lambda: 0.01))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 20)

    assert stubborn.cancelled == 1
    stubborn.go.set()


async def test_a_step_gives_what_it_returns_or_raises():
    assert await finish(asyncio.sleep(0, 42)) == 42
    stubborn = Stubborn()
    stubborn.go.set()
    with pytest.raises(ValueError, match="nobody"):
        await finish(stubborn())


# --- a store --------------------------------------------------------------------------------------

LEASE = Lease(id="lease", destination="d", entries={})
ARGUMENTS = {
    "append": ([make_record()],),
    "lease": ("d", 3, 4, 5.0),
    "ack": (LEASE, ["a"]),
    "release": (LEASE, ["a"], 2.0),
    "bury": (LEASE, ["a"], "bad"),
    "release_expired": (),
    "stats": (),
    "dead_letters": ("d",),
    "peek": ("d", "after", 7),
    "replay": ("d", 8),
}
ANSWERS = {
    "append": Appended(1, {}),
    "lease": LEASE,
    "ack": 1,
    "release": 2,
    "bury": 3,
    "release_expired": 4,
    "stats": {"d": DestinationDepth()},
    "dead_letters": (),
    "peek": Peeked((), "7"),
    "replay": 5,
}


class Told(MemoryStore):
    """Answers as it is told, and notes with what it was called."""

    name = "told"
    level = Level.JOURNAL
    resets = 7

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.calls = []
        self.answer = None

    def describe(self):
        return {"path": "x"}


def _told(method):
    async def call(self, *arguments, **named):
        self.calls.append((method, arguments, named))
        answer = self.answer
        if callable(answer):
            return await answer()
        return answer

    return call


for _method in (*ARGUMENTS, "open", "close"):
    setattr(Told, _method, _told(_method))


@pytest.fixture
def told():
    return Told(Told.Settings(), make_context(destinations=("d",)))


async def call(store, method):
    named = {"evict": True} if method == "append" else {}
    return await getattr(store, method)(*ARGUMENTS[method], **named)


@pytest.mark.parametrize("method", ARGUMENTS)
async def test_each_call_reaches_the_store_with_its_arguments(told, method):
    told.answer = ANSWERS[method]

    assert await call(SafeStore(told, 30), method) is ANSWERS[method]

    named = {"evict": True} if method == "append" else {}
    assert told.calls == [(method, ARGUMENTS[method], named)]


@pytest.mark.parametrize("method", ARGUMENTS)
async def test_p11_an_answer_that_is_none_is_a_defect(told, method):
    told.answer = "nonsense"
    if method == "dead_letters":
        told.answer = 17

    kind = type(told.answer).__name__
    with pytest.raises(PluginDefect, match=f"^{method} returned {kind}, which it must not$"):
        await call(SafeStore(told, 30), method)


@pytest.mark.parametrize("method", [*ARGUMENTS, "open", "close"])
async def test_p11_each_call_is_bounded(told, method):
    told.answer = forever
    store = SafeStore(told, 0.01)

    with pytest.raises(PluginHangs, match=r"0\.01 s"):
        await (getattr(store, method)() if method in ("open", "close") else call(store, method))


async def test_p11_a_store_cannot_say_that_it_stored_what_it_was_not_given(told):
    store = SafeStore(told, 30)
    for stored, given in ((2, 1), (-1, 1)):
        told.answer = Appended(stored, {})
        with pytest.raises(
            PluginDefect, match=f"^append says that it stored {stored} of {given} records$"
        ):
            await call(store, "append")
    for stored in (0, 1):
        told.answer = Appended(stored, {})
        assert (await call(store, "append")).stored == stored


async def test_nothing_to_lease_and_no_delay_are_answers_too(told):
    store = SafeStore(told, 30)
    assert await call(store, "lease") is None
    told.answer = 1
    await store.release(LEASE, ["a"])
    assert told.calls[-1] == ("release", (LEASE, ["a"], 0.0), {})


async def test_a_store_is_closed_although_another_call_hangs(told):
    stubborn = Stubborn()
    told.answer = stubborn
    store = SafeStore(told, 0.01)
    with suppress(PluginHangs):
        await store.open()
    with pytest.raises(PluginHangs, match="earlier"):
        await store.stats()
    told.answer = None

    await store.close()

    assert [method for method, *_ in told.calls] == ["open", "close"]
    stubborn.go.set()


async def test_what_is_not_a_call_is_that_of_the_store(told):
    store = SafeStore(told, 30)

    assert (store.level, store.resets, store.describe()) == (Level.JOURNAL, 7, {"path": "x"})
    assert store.context is told.context
    assert store.settings is told.settings
    assert isinstance(store, BufferStore)


async def test_a_store_in_memory_has_nothing_to_wait_for():
    """So no record is longer in transit than needed; but `SystemExit` is contained."""

    class Memory(MemoryStore):
        name = "in_memory"

        async def stats(self):
            await asyncio.sleep(0.05)
            if self.ends:
                raise SystemExit(1)
            return await super().stats()

    memory = Memory(Memory.Settings(), make_context(destinations=("d",)))
    memory.ends = False
    store = SafeStore(memory, 0.001)

    assert set(await store.stats()) == {"d"}
    memory.ends = True
    with pytest.raises(PluginDefect, match="SystemExit: 1"):
        await store.stats()
