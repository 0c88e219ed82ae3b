from __future__ import annotations

import io
import json
import os
import sys
from datetime import datetime, timezone

import pytest

from guard_agent import Accepted, AgentStatus, Batch, Record, Retry
from guard_agent.plugins.console import ConsoleSettings, ConsoleTransport
from guard_agent.testing.records import make_context, make_record

HOSTILE = "\x1b[2J\x07\r\nforged line\u2028\u202e\x9b31m\x7f\U000e0001"


def transport(**options):
    return ConsoleTransport(ConsoleSettings(**options), make_context())


def batch(*records):
    return Batch(records[0].kind, records)


def event(**fields):
    return make_record(
        1,
        **{
            "timestamp": "2026-01-31T12:00:00Z",
            "event_type": "ip_banned",
            "ip_address": "203.0.113.7",
            "method": "GET",
            "endpoint": "/login",
            "status_code": 403,
            "action_taken": "banned",
            "reason": "too many requests",
            **fields,
        },
    )


def metric(**fields):
    values = {"timestamp": "2026-01-31T12:00:00Z", "metric_type": "response_time", "value": 0.25}
    return make_record(1, kind="metric", **{**values, **fields})


async def test_an_event_is_one_readable_line_on_stderr(capsys):
    assert await transport().send(batch(event())) == Accepted()

    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "2026-01-31T12:00:00Z  ip_banned  203.0.113.7  GET /login 403  banned: too many requests\n"
    )


async def test_what_is_missing_leaves_no_gap(capsys):
    sparse = event(ip_address="", method=None, endpoint=None, status_code=None, action_taken="")

    await transport().send(batch(sparse))

    assert capsys.readouterr().err == "2026-01-31T12:00:00Z  ip_banned  too many requests\n"


async def test_a_metric_is_one_line_with_its_tags(capsys):
    await transport().send(batch(metric(endpoint="/a", tags={"method": "GET", "status": "200"})))

    assert capsys.readouterr().err == (
        "2026-01-31T12:00:00Z  response_time  0.25  /a  method=GET status=200\n"
    )


async def test_the_stream_can_be_stdout(capsys):
    await transport(stream="stdout").send(batch(event(), event()))

    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 2


@pytest.mark.parametrize("field", ["timestamp", "event_type", "endpoint", "reason", "ip_address"])
async def test_hostile_text_cannot_drive_the_terminal(capsys, field):
    await transport().send(batch(event(**{field: HOSTILE})))

    err = capsys.readouterr().err
    assert err.endswith("\n")
    assert err[:-1].isprintable()
    assert r"\x1b[2J\x07\r\nforged line\u2028\u202e\x9b31m\x7f\U000e0001" in err


async def test_hostile_tags_cannot_drive_the_terminal(capsys):
    await transport().send(batch(metric(tags={HOSTILE: HOSTILE})))

    assert capsys.readouterr().err[:-1].isprintable()


async def test_a_long_value_is_cut_to_be_readable(capsys):
    await transport().send(batch(event(reason="x" * 100_000)))

    assert len(capsys.readouterr().err) < 400


async def test_format_json_writes_the_record_as_it_is_sent(capsys):
    record = event(metadata={"a": "\u00fc"})

    await transport(format="json").send(batch(record))

    assert capsys.readouterr().err.encode() == record.payload + b"\n"


async def test_format_json_stays_json_and_escapes_what_is_not_printable(capsys):
    await transport(format="json").send(batch(event(reason=HOSTILE)))

    err = capsys.readouterr().err
    assert err[:-1].isprintable()
    assert json.loads(err)["reason"] == HOSTILE


async def test_format_json_is_one_line_whatever_stands_between_the_tokens(capsys):
    spread = Record("r", "event", event().priority, b'{\r\n "event_type":\n"x"}', 0.0)

    await transport(format="json").send(batch(spread))

    assert capsys.readouterr().err == '{"event_type":"x"}\n'


async def test_a_closed_stream_keeps_the_records(monkeypatch):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)

    assert await transport().send(batch(event())) == Retry("stderr is closed")


async def test_a_missing_stream_keeps_the_records(monkeypatch):
    """
    Programs without a console, such as under pythonw, have None there.
    """
    monkeypatch.setattr(sys, "stdout", None)

    assert await transport(stream="stdout").send(batch(event())) == Retry("stdout is closed")


async def test_a_pipe_nobody_reads_keeps_the_records(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    raw = os.fdopen(writer, "wb", buffering=0)
    stream = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
    monkeypatch.setattr(sys, "stderr", stream)

    result = await transport().send(batch(event()))

    raw.close()
    assert result == Retry("cannot write to stderr: Broken pipe")


async def test_a_stream_that_knows_only_ascii_gets_escapes(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii"))

    assert await transport().send(batch(event(reason="caf\u00e9"))) == Accepted()
    assert rb"banned: caf\xe9" in raw.getvalue()


def status():
    return AgentStatus(
        timestamp=datetime(2026, 1, 31, 12, tzinfo=timezone.utc),
        status="degraded",
        uptime=12.3,
        events_sent=10,
        events_failed=1,
        buffer_size=3,
        errors=["http: \x1b[2J"],
    )


async def test_a_report_is_one_line(capsys):
    assert await transport().report(status()) == Accepted()

    assert capsys.readouterr().err == (
        "2026-01-31T12:00:00+00:00  agent degraded  sent 10  failed 1  waiting 3  up 12 s"
        "  http: \\x1b[2J\n"
    )


async def test_a_report_in_json_is_the_model(capsys):
    await transport(format="json").report(status())

    assert AgentStatus.model_validate_json(capsys.readouterr().err) == status()


async def test_close_is_safe_at_any_time(capsys):
    console_transport = transport()
    await console_transport.close()
    await console_transport.open()
    await console_transport.close()
    await console_transport.close()

    assert await console_transport.send(batch(event())) == Accepted()
