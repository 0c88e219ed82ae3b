from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from guard_agent import Retry
from guard_agent.client import SyncGuardAgentHandler
from guard_agent.core.callback import DISABLE_AFTER, MAX_WAITING, ErrorCallback
from guard_agent.testing.records import make_event
from guard_agent.testing.transports import RecordingTransport, ScriptedTransport

ERROR = ValueError("down")


def settle(callback: ErrorCallback) -> None:
    asyncio.run(asyncio.wait_for(callback.settle(), 30))


class Stuck:
    """A callback that does not return until it is let go."""

    def __init__(self):
        self.calls = []
        self.reached = threading.Event()
        self.go = threading.Event()
        self.gone_on = threading.Event()

    def __call__(self, stage, error, context):
        self.calls.append(context.get("number"))
        self.reached.set()
        self.go.wait(60)
        self.gone_on.set()


class Failing(ScriptedTransport):
    """Asks twice for another attempt, then accepts."""

    def __init__(self, settings, context):
        script = Retry("down"), Retry("down")
        super().__init__(*script, settings=settings, context=context)


def test_every_error_is_told_in_order_and_in_a_thread_of_its_own():
    told = []
    callback = ErrorCallback(lambda *what: told.append((*what, threading.current_thread())))

    for number in range(5):
        callback("transport_send", ERROR, {"number": number})
    settle(callback)

    assert [what[:3] for what in told] == [
        ("transport_send", ERROR, {"number": number}) for number in range(5)
    ]
    assert all(what[3] is not threading.current_thread() for what in told)


def test_without_a_callback_nothing_is_started():
    before = threading.active_count()

    ErrorCallback(None)("transport_send", ERROR, {})

    assert threading.active_count() == before


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
def test_p11_a_callback_that_raises_is_disabled_after_five(error, caplog):
    calls = []

    def fail(*_):
        calls.append(1)
        raise error

    callback = ErrorCallback(fail)
    for _ in range(20):
        callback("transport_send", ERROR, {})
        settle(callback)

    assert len(calls) == DISABLE_AFTER == 5
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "raised" in caplog.messages[0]
    assert "disabled" in caplog.messages[1]


def test_p11_a_callback_that_is_slow_is_disabled_after_five(caplog):
    calls = []

    def dawdle(*_):
        calls.append(1)
        time.sleep(0.01)

    callback = ErrorCallback(dawdle, slow=0.001)
    for _ in range(20):
        callback("transport_send", ERROR, {})
    settle(callback)

    assert len(calls) == 5
    assert "took longer than 0.001 s" in caplog.messages[0]


def test_p11_while_a_callback_hangs_only_the_latest_errors_wait():
    stuck = Stuck()
    callback = ErrorCallback(stuck)
    callback("transport_send", ERROR, {"number": -1})
    assert stuck.reached.wait(30)

    for number in range(MAX_WAITING + 50):
        callback("transport_send", ERROR, {"number": number})
    stuck.go.set()
    settle(callback)

    assert stuck.calls == [-1, *range(50, MAX_WAITING + 50)]


def test_p11_a_callback_that_hangs_holds_up_neither_delivery_nor_the_end(make_agent):
    stuck = Stuck()
    agent = make_agent(
        Failing, RecordingTransport, on_error=stuck, backoff_factor=0.001, stop_timeout=0.3
    )
    try:
        agent.record("event", make_event())
        agent.flush()
        failing = agent._current().destinations["scripted"].transport
        failing.wait(lambda: len(failing.accepted) == 1)
        assert stuck.reached.wait(30)

        agent.stop().result(30)

        assert len(stuck.calls) == 1
        assert not stuck.gone_on.is_set(), "all of it came back while the callback was stuck"
    finally:
        stuck.go.set()


def test_p11_a_callback_that_stops_the_agent_does_not_wait_for_itself(make_agent):
    handler = SyncGuardAgentHandler.__new__(SyncGuardAgentHandler)
    stopped = threading.Event()

    def callback(*_):
        handler.flush_buffer()
        handler.get_status()
        handler.stop()
        stopped.set()

    agent = handler._agent = make_agent(Failing, on_error=callback, stop_timeout=5, timeout=60)
    agent.record("event", make_event())
    agent.flush()
    assert stopped.wait(30)

    agent.stop().result(30)

    assert agent.balances()["scripted"].delivered == 1


def test_p11_what_a_callback_records_is_not_taken(make_agent):
    agents = []
    agents.append(
        make_agent(
            Failing,
            on_error=lambda *_: agents[0].record("event", make_event()),
            backoff_factor=0.001,
        )
    )
    agents[0].record("event", make_event())
    agents[0].flush()

    failing = agents[0]._current().destinations["scripted"].transport
    failing.wait(lambda: len(failing.accepted) == 1)
    agents[0].stop().result(30)

    balance = agents[0].balances()["scripted"]
    assert (balance.delivered, balance.dropped) == (1, {"internal": 2})


def test_what_is_left_to_tell_is_told_before_the_end(make_agent):
    told = []
    agent = make_agent(Failing, on_error=lambda *what: told.append(what), backoff_factor=0.001)
    agent.record("event", make_event())

    agent.stop().result(30)

    assert [(stage, str(error)) for stage, error, _ in told] == [("transport_send", "down")] * 2
