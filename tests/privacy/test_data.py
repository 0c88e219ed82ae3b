"""Bad input through the whole intake, redaction included; what logs and terminals show of it."""

from __future__ import annotations

import io
import json
import logging
import time

import pytest

from guard_agent import AgentConfig, Record, SyncGuardAgentHandler, setup_agent_logging
from guard_agent.client import _process
from guard_agent.core.intake.pipeline import MAX_RECORD_BYTES
from guard_agent.core.intake.snapshot import MAX_NODES
from guard_agent.testing.collector import Answer, Collector
from guard_agent.testing.records import make_event, make_metric

HOSTILE = "a\r\nFAKE: line\x1b[2J\x1b]0;title\x07\u2028\u2029\x85\x00\x7f\u202eb"


def decode(record):
    def fail(constant):
        raise AssertionError(constant)

    assert isinstance(record, Record), record
    return json.loads(record.payload, parse_constant=fail)


def cycle():
    loop: dict = {"list": []}
    loop["self"] = loop
    loop["list"].append(loop["list"])
    return loop


def shared():
    value: object = "leaf"
    for _ in range(8):
        value = [value] * 10
    return value


def deep():
    value: object = 0
    for level in range(10_000):
        value = [value] if level % 2 else {"in": value}
    return value


SIZES = {
    "d02 cycle": lambda: {"metadata": cycle()},
    "d02 shared by ten, eight times": lambda: {"metadata": {"x": shared()}},
    "d03 depth of ten thousand": lambda: {"metadata": {"x": deep()}},
    "d04 text of 10 MB": lambda: {"reason": "x" * 10_000_000},
    "d04 text of 10 MB with names": lambda: {"reason": "token=abc&" * 1_000_000},
    "d04 text of 10 MB, wide": lambda: {"reason": "\u2028" * 10_000_000},
    "d04 a million keys": lambda: {"metadata": dict.fromkeys(map(str, range(1_000_000)), 1)},
    "d04 payload of 10 MB": lambda: {"metadata": {str(n): ["y" * 100] * 10 for n in range(10_000)}},
    "d04 bytes of 10 MB": lambda: {"metadata": {"raw": b"\xff" * 10_000_000}},
    "d04 JSON of 10 MB": lambda: {"metadata": {"body": '{"a": "' + "z" * 10_000_000 + '"}'}},
}


@pytest.mark.parametrize("case", SIZES)
def test_d02_d03_d04_what_is_too_much_is_cut_at_64_kib_with_a_marker(make_pipeline, case):
    """
    The work does not grow with the input. The bound on time is generous, because others use the
    machine: without bounds each of these takes from ten seconds to for ever.
    """
    pipeline = make_pipeline()
    event = make_event()
    for name, value in SIZES[case]().items():
        setattr(event, name, value)

    best = 60.0
    for _ in range(5):
        start = time.thread_time()
        record = pipeline.encode("event", event)
        best = min(best, time.thread_time() - start)

    assert best < 1.0, best
    assert len(record.payload) <= MAX_RECORD_BYTES
    text = record.payload.decode().lower()
    assert "truncated" in text or "not inspected" in text
    fields = decode(record)
    assert (fields["event_type"], fields["ip_address"]) == (event.event_type, event.ip_address)


def test_d01_numbers_that_json_does_not_have_never_leave(make_pipeline):
    pipeline = make_pipeline()
    numbers = [float("nan"), float("inf"), float("-inf")]

    fields = decode(pipeline.encode("event", make_event(metadata={"load": numbers})))

    assert fields["metadata"] == {"load": [None, None, None], "guard.non_finite": 3}


def test_d06_keys_that_are_no_texts_are_told_apart_and_redacted(make_pipeline):
    event = make_event()
    event.metadata = {1: "a", "1": "b", ("x", 2): "c", None: "d", b"password": "Cnry", 2.5: "e"}

    metadata = decode(make_pipeline().encode("event", event))["metadata"]

    assert sorted(metadata.values()) == ["[REDACTED]", "a", "b", "c", "d", "e"]
    assert {"1", "x,2", "None", "password", "2.5"} < set(metadata)


def test_d13_a_hundred_thousand_tags_cost_no_more_than_the_budget(make_pipeline):
    """
    A metric keeps as many tags as a record has nodes; how many are missing is said.
    """
    pipeline = make_pipeline()
    metric = make_metric(tags={f"tag{n}": "x" for n in range(100_000)})

    best = 60.0
    for _ in range(5):
        start = time.thread_time()
        record = pipeline.encode("metric", metric)
        best = min(best, time.thread_time() - start)

    assert best < 1.0, best
    tags = decode(record)["tags"]
    assert len(tags) <= MAX_NODES
    assert tags["[truncated]"] == 100_000 - (len(tags) - 1)


def test_d13_unknown_types_and_extra_fields_are_accepted(make_pipeline):
    event = make_event(event_type="of_tomorrow", tenant="t", more={"a": [1]})

    fields = decode(make_pipeline().encode("event", event))

    assert (fields["event_type"], fields["tenant"], fields["more"]) == (
        "of_tomorrow",
        "t",
        {"a": [1]},
    )


def is_harmless(line):
    """No sign in it forges a line or drives a terminal."""
    return line.isprintable()


@pytest.fixture
def hostile_agent(tmp_path, monkeypatch, caplog):
    """An agent whose collector and records are full of control characters."""
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    caplog.set_level(logging.DEBUG)
    with Collector() as collector:
        agent = SyncGuardAgentHandler(
            AgentConfig(
                api_key="test-key-0123",
                endpoint=collector.url,
                transports=["http", "console"],
                rules=[],
                flush_interval=3600,
                max_requests_per_second=1_000,
            )
        )
        yield agent, collector
        agent.stop()
        process, _process.agent = _process.agent, None
        assert [b for b in process.balances().values() if b.difference] == []


def hostile_event():
    event = make_event(
        reason=HOSTILE,
        user_agent=HOSTILE,
        event_type=HOSTILE,
        endpoint=f"/{HOSTILE}",
        metadata={HOSTILE: [HOSTILE]},
    )
    event.metadata["error"] = ValueError(HOSTILE)
    return event


def test_d11_control_characters_are_escaped_on_the_wire_on_the_terminal_and_in_logs(
    hostile_agent, caplog, capfd
):
    agent, collector = hostile_agent
    collector.answer(
        Answer(status=503, body={"detail": HOSTILE}),
        Answer(status=403, body={"detail": HOSTILE}),
        Answer(status=400, body={"detail": HOSTILE}),
    )
    for _ in range(3):
        agent.send_event(hostile_event())
    agent.send_event({HOSTILE: HOSTILE})
    for _ in range(4):
        agent.flush_buffer()
    errors = agent.get_status().errors
    agent.stop()

    assert collector.requests
    for request in collector.requests:
        body = request.body.decode()
        # U+2028 and its like are allowed inside the strings of JSON; what is below a space is not.
        assert not any(ord(character) < 32 for character in body)
        assert json.loads(body)
    assert caplog.records
    for entry in caplog.records:
        if entry.name.startswith("guard_agent"):
            assert is_harmless(entry.getMessage()), entry.getMessage()
    for error in errors:
        assert is_harmless(error), error
    printed = capfd.readouterr().err.splitlines()
    assert any("FAKE" in line for line in printed)
    for line in printed:
        assert is_harmless(line), line


def test_d11_the_log_file_has_one_line_for_each_entry(hostile_agent, tmp_path):
    agent, collector = hostile_agent
    path = tmp_path / "agent.log"
    logger = setup_agent_logging(log_file=str(path))
    console = next(handler for handler in logger.handlers if type(handler) is logging.StreamHandler)
    console.setStream(io.StringIO())
    try:
        collector.answer(Answer(status=503, body={"detail": HOSTILE}))
        agent.send_event(hostile_event())
        agent.flush_buffer()
        agent.stop()
    finally:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)

    lines = path.read_text().split("\n")[:-1]
    assert lines
    for line in lines:
        assert line.startswith("[guard_agent"), line
        assert is_harmless(line), line
