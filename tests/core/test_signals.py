"""A signal handler that ends the application ends it also while a record is taken."""

from __future__ import annotations

import signal
import sys
from collections import UserDict
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import pytest

from guard_agent import Enricher, PluginSettings, Record, Stage, TextRules
from guard_agent.core.intake.pipeline import Pipeline
from guard_agent.core.ledger import DropReason
from guard_agent.core.reentry import mark
from guard_agent.plugins.rollup import Rollup
from guard_agent.testing.records import make_context, make_event

CODE = 143


def interrupt(*_):
    """What foreign code does while the signal comes."""
    signal.raise_signal(signal.SIGTERM)
    return "the handler let it go on"


def leave(*_):
    """What foreign code must not do."""
    raise SystemExit(CODE)


class TalkingError(Exception):
    def __str__(self):
        return self.args[0]()


class Item:
    def __init__(self, action):
        self._action = action

    @property
    def event_type(self):
        return self._action()


class Pairs(UserDict):
    def items(self):
        self.data["action"]()
        return super().items()


class Step(Enricher):
    name = "step"
    stage: ClassVar[Stage] = Stage.DERIVE

    def __init__(self, function, stage, rules=None):
        super().__init__(PluginSettings(), make_context())
        self.stage = stage  # type: ignore[misc]  # of the class elsewhere
        self._function = function
        self._rules = rules

    def bind(self, kind):
        return self._function

    def text_rules(self, kind):
        return self._rules


class Merging(Rollup):
    name = "merging"

    def __init__(self, function):
        super().__init__(Rollup.Settings(), make_context())
        self._function = function

    def bind(self, kind, encode):
        return self._function


def rules(**functions):
    return TextRules(**{"replaced": lambda names: {}, "keeps": lambda texts: True, **functions})


def through_text(action):
    return Pipeline([]), {"event_type": "x", "metadata": {"error": TalkingError(action)}}


def through_attribute(action):
    return Pipeline([]), Item(action)


def through_mapping(action):
    return Pipeline([]), Pairs({"event_type": "x", "action": action})


def through_enricher(stage, action):
    return Pipeline([Step(lambda fields: action() and fields, stage)]), make_event()


def through_rules(name, action):
    made = []

    def later(asked):
        return action() if made else {"replaced": {}, "keeps": True}[name]

    pipeline = Pipeline([Step(lambda fields: fields, Stage.REDACT, rules(**{name: later}))])
    made.append(True)
    return pipeline, make_event(metadata={"a name": "a text"})


def through_aggregator(action):
    return Pipeline([], Merging(lambda fields: action())), make_event()


WAYS = {
    "text": through_text,
    "attribute": through_attribute,
    "mapping": through_mapping,
    "derive": partial(through_enricher, Stage.DERIVE),
    "redact": partial(through_enricher, Stage.REDACT),
    "replaced": partial(through_rules, "replaced"),
    "keeps": partial(through_rules, "keeps"),
    "aggregator": through_aggregator,
}


class Server:
    def stop(self, signum, frame):
        sys.exit(CODE)

    def __call__(self, signum, frame):
        self.stop(signum, frame)


def stop(signum, frame):
    sys.exit(CODE)


def stop_once(signum, frame):
    signal.signal(signum, signal.SIG_DFL)
    sys.exit(CODE)


def stop_later(server, signum, frame):
    def now():
        return frame and server.stop(signum, None)

    now()


HANDLERS = {
    "function": stop,
    "replaced by itself": stop_once,
    "lambda": lambda *_: sys.exit(CODE),
    "method": Server().stop,
    "object": Server(),
    "partial": partial(stop_later, Server()),
}


@pytest.fixture
def on_signal():
    """Set the handler; the one of before is set again at the end."""
    before = signal.getsignal(signal.SIGTERM)
    yield partial(signal.signal, signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("way", WAYS)
def test_the_exit_of_a_signal_handler_gets_out_of_foreign_code(way, on_signal):
    on_signal(stop)
    pipeline, source = WAYS[way](interrupt)

    with pytest.raises(SystemExit) as caught:
        pipeline.take("event", source)

    assert caught.value.code == CODE
    assert mark().agent is False


@pytest.mark.parametrize("handler", HANDLERS)
def test_each_form_of_a_handler_is_known(handler, on_signal):
    on_signal(HANDLERS[handler])
    pipeline, source = through_text(interrupt)

    with pytest.raises(SystemExit) as caught:
        pipeline.take("event", source)

    assert caught.value.code == CODE


@pytest.mark.parametrize("way", WAYS)
def test_an_exit_of_foreign_code_does_not_get_out(way, on_signal):
    on_signal(stop)
    pipeline, source = WAYS[way](leave)

    assert isinstance(pipeline.take("event", source), (Record, DropReason))


@pytest.mark.parametrize(
    "call",
    [
        partial(stop, signal.SIGTERM, None),
        partial(stop, 15, SimpleNamespace()),
        lambda: stop("15", sys._getframe()),
        lambda: stop(15, sys._getframe().f_back),
    ],
)
def test_what_is_called_like_a_handler_by_foreign_code_is_none(call):
    pipeline, source = through_text(call)

    assert isinstance(pipeline.take("event", source), Record)


def test_a_handler_that_returns_changes_nothing(on_signal):
    seen = []
    on_signal(lambda signum, frame: seen.append(signum))
    pipeline, source = through_text(interrupt)

    assert b"the handler let it go on" in pipeline.take("event", source).payload
    assert seen == [signal.SIGTERM]
