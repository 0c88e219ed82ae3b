"""The records and transports of `guard_agent.testing` are as strict as they say."""

from __future__ import annotations

import asyncio
import threading

import orjson
import pytest

from guard_agent import Accepted, AgentStatus, Batch, Partial, Priority, Retry
from guard_agent.testing.records import (
    make_context,
    make_event,
    make_metric,
    make_record,
    make_records,
)
from guard_agent.testing.transports import RecordingTransport, ScriptedTransport


def batch(*numbers, **options):
    return Batch("event", tuple(make_record(n, **options) for n in numbers))


def test_fields_go_before_the_defaults():
    assert make_event(reason="x").reason == "x"
    assert make_event(event_type="ip_banned", colour="red").model_extra == {"colour": "red"}
    assert make_metric(value=3).value == 3


@pytest.mark.parametrize("size", [82, 100, 100_000])
@pytest.mark.parametrize("kind", ["event", "metric"])
def test_a_record_has_the_size_asked_for(size, kind):
    record = make_record(1, size=size, kind=kind)

    assert len(record.payload) == size
    assert orjson.loads(record.payload)["idempotency_key"] == record.id == "record-1"


def test_a_size_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="size must be at least 73 for this record, not 20"):
        make_record(1, size=20)


def test_records_are_numbered():
    assert [record.id for record in make_records(2)] == ["record-1", "record-2"]
    assert make_record().id != make_record().id
    assert make_record(1) == make_record(1)
    assert make_record(1).accepted_at < make_record(2).accepted_at
    assert make_record(1, priority=Priority.ATTACK).priority is Priority.ATTACK


def test_a_context_without_a_folder_cannot_be_written_to(tmp_path):
    assert make_context(tmp_path).state_dir == tmp_path
    with pytest.raises(OSError, match="state"):
        make_context().state_dir.mkdir(parents=True)


def test_transports_are_also_made_as_the_agent_makes_them():
    context = make_context(instance="recording/eu")

    made = [
        RecordingTransport(RecordingTransport.Settings(), context),
        ScriptedTransport(settings=ScriptedTransport.Settings(), context=context),
    ]

    assert [transport.collector for transport in made] == ["recording/eu"] * 2
    assert ScriptedTransport().collector == "scripted"
    assert RecordingTransport(max_batch_bytes=5).max_batch_bytes == 5


async def test_a_recording_transport_keeps_what_it_gets():
    transport = RecordingTransport()
    await transport.open()

    assert await transport.send(batch(1, 2)) == Accepted()
    assert await transport.send(batch(3)) == Accepted()
    await transport.close()

    assert transport.batches == [batch(1, 2), batch(3)]
    assert transport.records == transport.accepted == [make_record(n) for n in (1, 2, 3)]
    assert (transport.opened, transport.closed) == (1, 1)


async def test_a_scripted_transport_does_its_steps_and_then_accepts():
    async def later(sent):
        return Retry(f"{len(sent)} later")

    failure = ConnectionError("down")
    partial = Partial(rejected={0: "bad"}, retry=frozenset({1}))
    transport = ScriptedTransport(
        Retry("busy"), failure, lambda sent: Retry(f"{len(sent)}"), later, partial
    )
    await transport.open()

    assert await transport.send(batch(1)) == Retry("busy")
    with pytest.raises(ConnectionError):
        await transport.send(batch(1))
    assert await transport.send(batch(1, 2)) == Retry("2")
    assert await transport.send(batch(1)) == Retry("1 later")
    assert await transport.send(batch(1, 2, 3)) == partial
    assert await transport.send(batch(4)) == Accepted()

    assert [record.id for record in transport.accepted] == ["record-3", "record-4"]
    assert len(transport.batches) == 6
    assert transport.violations == []


async def test_a_send_before_open_or_after_close_is_caught():
    transport = RecordingTransport()
    with pytest.raises(AssertionError, match="not open"):
        await transport.send(batch(1))
    await transport.open()
    await transport.close()
    with pytest.raises(AssertionError, match="not open"):
        await transport.send(batch(1))

    assert len(transport.violations) == 2
    assert transport.batches == []


async def test_a_second_open_is_caught():
    transport = RecordingTransport()
    await transport.open()

    with pytest.raises(AssertionError, match="twice"):
        await transport.open()


@pytest.mark.parametrize("second", ["send", "report"])
async def test_two_calls_at_a_time_are_caught(second):
    transport = RecordingTransport()
    await transport.open()
    calls = {"send": lambda: transport.send(batch(2)), "report": lambda: transport.report(STATUS)}

    results = await asyncio.gather(
        transport.send(batch(1)), calls[second](), return_exceptions=True
    )

    assert results[0] == Accepted()
    assert isinstance(results[1], AssertionError)
    assert transport.violations == [f"{second} was called during another call"]
    assert await transport.send(batch(3)) == Accepted()


async def test_a_cancelled_send_leaves_the_transport_usable():
    started = asyncio.Event()

    async def hang(sent):
        started.set()
        await asyncio.Event().wait()

    transport = ScriptedTransport(hang)
    await transport.open()
    task = asyncio.ensure_future(transport.send(batch(1)))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await transport.send(batch(1)) == Accepted()
    assert transport.violations == []


async def test_a_batch_that_is_empty_or_mixed_is_caught():
    transport = RecordingTransport()
    await transport.open()

    with pytest.raises(AssertionError, match="empty"):
        await transport.send(batch())
    with pytest.raises(AssertionError, match="another kind"):
        await transport.send(Batch("event", (make_record(1, kind="metric"),)))


STATUS = AgentStatus(
    timestamp="2026-01-31T12:00:00Z",
    status="healthy",
    uptime=1,
    events_sent=0,
    events_failed=0,
    buffer_size=0,
)


async def test_reports_are_kept():
    transport = RecordingTransport()
    await transport.open()

    assert await transport.report(STATUS) == Accepted()
    assert transport.reports == [STATUS]


def test_another_thread_can_wait_for_what_arrives():
    transport = RecordingTransport()

    async def deliver():
        await transport.open()
        await transport.send(batch(1))
        await transport.send(batch(2))

    thread = threading.Thread(target=lambda: asyncio.run(deliver()))
    thread.start()
    transport.wait(lambda: len(transport.accepted) == 2)
    thread.join()

    with pytest.raises(TimeoutError, match="2 batches, accepted 2 records, got 0 reports"):
        transport.wait(lambda: len(transport.accepted) == 3, timeout=0.01)
