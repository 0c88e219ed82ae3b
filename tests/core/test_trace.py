"""``GUARD_AGENT_DEBUG``: a line for each batch; and what is logged of a destination once."""

from __future__ import annotations

import io
import logging
import os
import re
import sys

import pytest

from guard_agent import Accepted, Partial, PluginSettings, Reject, Retry, TooLarge
from guard_agent.core.delivery.trace import describe_attempt, kilobytes, trace_from_environment
from guard_agent.testing.collector import Answer, Collector
from guard_agent.testing.hosts import Host
from guard_agent.testing.records import make_batch, make_context
from guard_agent.testing.transports import RecordingTransport


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path))


def lines(capfd):
    return capfd.readouterr().err.splitlines()


def test_one_line_for_each_batch(collector, monkeypatch, capfd):
    monkeypatch.setenv("GUARD_AGENT_DEBUG", "1")
    with Host(collector, buffer_size=1000, flush_interval=60) as host:
        host.record(120)
        host.agent.flush().result(30)

    (line,) = [line for line in lines(capfd) if " sent " in line]

    pattern = (
        rf"guard-agent\[{os.getpid()}\] http: sent 120 records -> http 200 in \d+ ms, "
        r"\d+\.\d kB gzip"
    )
    assert re.fullmatch(pattern, line)


def test_a_small_body_is_sent_as_it_is_and_a_refusal_says_why(collector, monkeypatch, capfd):
    monkeypatch.setenv("GUARD_AGENT_DEBUG", "yes")
    collector.answer(Answer(422, body={"detail": "no such country"}))
    with Host(collector) as host:
        host.record(1)
        host.until(lambda: host.status().destinations["http"]["buried"] == 1)

    (line,) = [line for line in lines(capfd) if "sent 1 record ->" in line]

    assert re.search(r"http 422 in \d+ ms, \d+ B plain: reject: 422 .*no such country", line)


def test_without_an_answer_the_line_says_what_happened(monkeypatch, capfd):
    monkeypatch.setenv("GUARD_AGENT_DEBUG", "1")
    with Collector() as collector:
        host = Host(collector)
    with host:
        host.record(1)
        host.until(lambda: host.status().destinations["http"]["failures"] > 0)

    first = next(line for line in lines(capfd) if "sent 1 record" in line)

    assert re.search(r"-> retry in \d+ ms: cannot connect to 127\.0\.0\.1", first)


@pytest.mark.parametrize("value", ["", "0", "false", "off"])
def test_it_is_off_unless_asked_for(collector, monkeypatch, capfd, value):
    monkeypatch.setenv("GUARD_AGENT_DEBUG", value)
    with Host(collector) as host:
        host.record(1)
        host.until_delivered()

    assert [line for line in lines(capfd) if "guard-agent[" in line] == []


def test_a_closed_stderr_costs_nothing(collector, monkeypatch):
    monkeypatch.setenv("GUARD_AGENT_DEBUG", "1")
    monkeypatch.setattr(sys, "stderr", None)
    with Host(collector) as host:
        host.record(1)
        host.until_delivered()


class Closed:
    """A stream as one whose other end is gone."""

    def write(self, text):
        raise OSError("gone")


@pytest.fixture
def transport():
    return RecordingTransport(PluginSettings(), make_context(instance="one"))


def test_a_stream_that_takes_nothing_raises_nothing(transport, monkeypatch):
    monkeypatch.setenv("GUARD_AGENT_DEBUG", "1")
    closed = io.StringIO()
    closed.close()
    tell = trace_from_environment()
    for stream in (None, closed, Closed()):
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", stream)
            tell(transport, make_batch(), Accepted(), 0.1)


def test_without_the_variable_it_is_off(monkeypatch):
    monkeypatch.delenv("GUARD_AGENT_DEBUG", raising=False)

    assert trace_from_environment() is None


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (Accepted(), "accepted in 42 ms"),
        (TooLarge(), "toolarge in 42 ms: too large"),
        (TooLarge(asked=False), "toolarge in 42 ms: too large to ask"),
        (
            Partial({0: "bad"}, frozenset({1})),
            "partial in 42 ms: 1 rejected, 1 to be sent again",
        ),
        (Reject("bad\n"), "reject in 42 ms: bad\\x0a"),
        (Retry("down"), "retry in 42 ms: down"),
    ],
    ids=str,
)
def test_what_came_of_an_attempt_in_words(transport, result, said):
    assert describe_attempt(transport, make_batch(2), result, 0.0421) == (
        f"one: sent 2 records -> {said}"
    )


def test_a_line_is_bounded(transport):
    line = describe_attempt(transport, make_batch(), Retry("x" * 600), 0.1)

    assert len(line) == 503
    assert line.endswith("x...")


def test_sizes_are_for_people():
    assert [kilobytes(size) for size in (0, 999, 1000, 51_260)] == [
        *("0 B", "999 B", "1.0 kB", "51.3 kB")
    ]


def test_the_first_success_and_the_first_failure_are_logged_once(collector, caplog):
    collector.answer(*[Answer(500)] * 2)
    with caplog.at_level(logging.INFO), Host(collector, backoff_factor=0.01) as host:
        for _ in range(3):
            host.record(1)
            host.until_delivered()

    texts = [record.getMessage() for record in caplog.records]
    assert len([text for text in texts if text.startswith("delivery to http failed")]) == 1
    assert len([text for text in texts if text == "delivery to http works"]) == 1
