from __future__ import annotations

import asyncio
import gzip
import socket
import threading
from datetime import datetime, timezone

import pytest

from guard_agent import Accepted, AgentStatus, Partial, Paused, Reject, Retry, TooLarge, __version__

BOTH = pytest.mark.parametrize("encoding", ["json", "protobuf"])


# --- the request ----------------------------------------------------------------------------------


@BOTH
async def test_a_batch_is_one_request_that_says_who_sends(exchange, kit, encoding):
    result, receiver = await exchange(
        batch=kit.batch(3),
        encoding=encoding,
        headers={"Authorization": "Bearer abc", "X-Scope-OrgID": "7"},
        resource={"host.name": "web-1"},
        config={
            "project_id": "shop",
            "install_id": "install-1",
            "guard_version": "7.1",
            "guard_core_version": "3.2",
        },
    )

    assert result == Accepted()
    (request,) = receiver.requests
    assert request.path == "/v1/logs"
    kind = {"json": kit.JSON, "protobuf": kit.PROTOBUF}[encoding]
    assert request.headers["content-type"] == request.headers["accept"] == kind
    assert request.headers["authorization"] == "Bearer abc"
    assert request.headers["x-scope-orgid"] == "7"
    assert request.headers["user-agent"] == f"guard-agent/{__version__}"
    (resource,) = request.message.resource_logs
    assert kit.attributes(resource.resource.attributes) == {
        "service.name": "shop",
        "telemetry.sdk.name": "guard_agent",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": __version__,
        "host.name": "web-1",
        "guard.project_id": "shop",
        "guard.install_id": "install-1",
        "guard.version": "7.1",
        "guard.core_version": "3.2",
    }
    (scope,) = resource.scope_logs
    assert (scope.scope.name, scope.scope.version) == ("guard_agent", __version__)
    assert receiver.uids == ["r1", "r2", "r3"]


async def test_the_key_for_guard_collectors_goes_nowhere_else(exchange, kit):
    _, receiver = await exchange(config={"project_id": "shop", "install_id": "install-1"})

    (request,) = receiver.requests
    assert kit.key not in str(request.headers)
    assert kit.key.encode() not in request.body
    assert not request.headers.keys() & {
        "authorization",
        "x-api-key",
        "x-project-id",
        "x-agent-install-id",
    }


@pytest.mark.parametrize(
    ("settings", "config", "name"),
    [
        ({}, {}, "unknown_service"),
        ({}, {"project_id": "shop"}, "shop"),
        ({"service_name": "front"}, {"project_id": "shop"}, "front"),
        ({"resource": {"service.name": "back"}}, {"project_id": "shop"}, "back"),
    ],
)
async def test_the_service_has_the_name_it_was_given(exchange, kit, settings, config, name):
    _, receiver = await exchange(config=config, **settings)

    (resource,) = receiver.requests[0].message.resource_logs
    assert kit.attributes(resource.resource.attributes)["service.name"] == name


@BOTH
@pytest.mark.parametrize(
    ("settings", "config", "packed"),
    [
        ({}, {}, True),
        ({}, {"compression_enabled": False}, False),
        ({"compression_enabled": False}, {}, False),
        ({"compression_enabled": True}, {"compression_enabled": False}, True),
        ({"compression_threshold": 10**6}, {}, False),
    ],
)
async def test_bodies_are_compressed_unless_told_otherwise(
    exchange, kit, encoding, settings, config, packed
):
    _, receiver = await exchange(batch=kit.batch(100), encoding=encoding, config=config, **settings)

    (request,) = receiver.requests
    assert (request.headers.get("content-encoding") == "gzip") is packed
    assert len(request.logs) == 100
    if packed:
        assert gzip.decompress(request.raw) == request.body
        assert len(request.raw) * 3 < len(request.body)


@BOTH
async def test_a_body_has_no_more_bytes_than_it_may(exchange, kit, encoding):
    limit = 4096
    batch = kit.batch(200, reason="x" * 50)

    result, receiver = await exchange(batch=batch, encoding=encoding, max_body_bytes=limit)

    assert isinstance(result, TooLarge)
    assert (result.asked, receiver.requests) == (False, [])
    # What it names is what fits.
    count = result.limit // (batch.size // len(batch))
    assert 0 < count < 200
    result, receiver = await exchange(
        batch=kit.batch(count, reason="x" * 50), encoding=encoding, max_body_bytes=limit
    )
    assert result == Accepted()
    assert limit // 2 < len(receiver.requests[0].body) <= limit


async def test_batches_are_leased_so_that_they_fit(kit):
    transport = kit.transport(max_body_bytes=1024 * 1024)

    assert transport.max_batch_bytes == 256 * 1024


async def test_other_threads_and_tasks_run_while_a_batch_is_translated(kit):
    """
    Translating is work in Python, and the application has but one interpreter.
    """
    transport = kit.transport()
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await transport._translate(kit.batch(1000))
    counting.cancel()

    assert turns >= 30


# --- what comes back ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (429, {"Retry-After": "5"}, Retry("429 Too Many Requests", 5.0, throttled=True)),
        (429, {}, Retry("429 Too Many Requests", None, throttled=True)),
        (502, {"Retry-After": "7"}, Retry("502 Bad Gateway", 7.0)),
        (503, {"Retry-After": "9"}, Retry("503 Service Unavailable", 9.0, throttled=True)),
        (503, {}, Retry("503 Service Unavailable")),
        (504, {}, Retry("504 Gateway Timeout")),
        (408, {}, Retry("408 Request Timeout")),
        (400, {}, Reject("400 Bad Request", 400)),
        (422, {}, Reject("422", 422)),
        (413, {}, TooLarge()),
    ],
)
@BOTH
async def test_c04_c05_c08_c09_a_status_is_what_otlp_says_it_is(
    exchange, encoding, status, headers, expected
):
    result, _ = await exchange(
        {"status": status, "headers": headers, "body": b""}, encoding=encoding
    )

    if status == 422:  # its name changed between releases of Python
        assert (type(result), result.status) == (Reject, 422)
    else:
        assert result == expected


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "check headers"),
        (403, "check headers"),
        (404, "logs_endpoint"),
        (405, "endpoint"),
        (410, "endpoint"),
        (415, "encoding"),
        (301, "final address"),
        (500, "500 Internal Server Error: out of order"),
        (501, "501"),
        (505, "505"),
    ],
)
async def test_c11_c12_what_the_payload_cannot_mend_pauses(exchange, status, hint):
    """
    OTLP forbids to retry these; what is kept is tried again slowly.
    """
    result, _ = await exchange({"status": status, "body": b"out of order"})

    assert isinstance(result, Paused)
    assert hint in result.reason


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"body": b""},
        {"status": 202, "body": b""},
        {"status": 204, "body": b""},
        {"body": b"{}"},
        {"body": b'{"partialSuccess":null}'},
        {"body": b'{"partialSuccess":{}}'},
        {"body": b'{"partialSuccess":{"rejectedLogRecords":"0"}}'},
        {"body": b'{"partial_success":{"rejected_log_records":0}}'},
        {"body": b'{"new":1}'},
        {"body": b"[]"},
    ],
)
async def test_c01_any_yes_is_a_yes(exchange, answer):
    assert (await exchange(answer))[0] == Accepted()


@pytest.mark.parametrize(
    "answer",
    [
        {"body": b"<html>welcome</html>", "kind": "text/html"},
        {"body": b"welcome", "kind": "text/plain"},
        {"body": b'{"partialSuccess":'},
        {"body": b'{"partialSuccess":[1]}'},
        {"body": b'{"partialSuccess":{"rejectedLogRecords":"many"}}'},
        {"body": b'{"partialSuccess":{"rejectedLogRecords":-1}}'},
        {"body": b'{"partialSuccess":{"rejectedLogRecords":true}}'},
        {"body": b'{"partialSuccess":{"rejectedLogRecords":1.5}}'},
        {"body": b"[" + b" " * 100_000 + b"]"},
        {"body": b"{}", "headers": {"Content-Encoding": "gzip"}},
    ],
)
async def test_c02_c19_what_is_no_answer_to_logs_delivers_nothing(exchange, answer):
    result, _ = await exchange(answer)

    assert isinstance(result, Retry)
    assert result.reason.startswith("protocol: ")


@pytest.mark.parametrize(
    "answer",
    [
        {"body": b"{}", "kind": "application/json"},
        {"body": b"\xff\xff"},
        {"body": b"\n" * 100_000},
    ],
)
async def test_c02_c19_the_same_in_protobuf(exchange, answer):
    result, _ = await exchange(answer, encoding="protobuf")

    assert isinstance(result, Retry)
    assert result.reason.startswith("protocol: ")


@BOTH
async def test_c03_a_batch_of_which_a_part_was_rejected_is_buried_as_a_whole(
    exchange, kit, encoding
):
    """
    OTLP does not say which, and forbids to send them again: none counts as delivered.
    """
    result, _ = await exchange(
        {"rejected": 2, "message": "too old"}, kit.batch(5), encoding=encoding
    )

    assert isinstance(result, Partial)
    assert result.retry == frozenset()
    assert result.rejected == dict.fromkeys(
        range(5), "the collector rejected 2 of 5 records, not saying which: too old"
    )


@BOTH
@pytest.mark.parametrize(("count", "rejected"), [(1, 1), (5, 5), (5, 2**62)])
async def test_c03_a_batch_of_which_all_was_rejected_is_looked_through(
    exchange, kit, encoding, count, rejected
):
    """
    Nothing was taken, so nothing can come twice.
    """
    result, _ = await exchange({"rejected": rejected}, kit.batch(count), encoding=encoding)

    assert result == Reject("the collector rejected every record: no reason given")


@BOTH
async def test_advice_is_logged_once(kit, caplog, encoding):
    """
    A partial success of which nothing was rejected is a full one, with a word about it.
    """
    advice = {"message": "use\nfewer attributes"}
    script = [advice, advice, {}, advice]
    with kit.Receiver(*[kit.Answer(**answer) for answer in script]) as receiver:
        transport = kit.transport(endpoint=receiver.url, encoding=encoding)
        await transport.open()
        results = [await transport.send(kit.batch()) for _ in script]
        await transport.close()

    assert results == [Accepted()] * 4
    told = "otlp took everything and says: use fewer attributes"
    assert [r.getMessage() for r in caplog.records if r.name == "guard_agent.otlp"] == [told] * 2


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 400, "body": b"bad token abcdef in Bearer abcdef"},
        {"rejected": 1, "message": "bad token abcdef in Bearer abcdef"},
    ],
)
async def test_what_a_header_holds_is_not_quoted(exchange, answer):
    result, _ = await exchange(answer, headers={"authorization": "Bearer abcdef", "x-org": "7"})

    assert isinstance(result, Reject)
    assert "abcdef" not in result.reason
    assert "bad token *** in ***" in result.reason


async def test_c16_c17_a_collector_that_is_not_there_or_hangs_up_is_asked_again(exchange, kit):
    result, _ = await exchange({"hang_up": True})
    assert isinstance(result, Retry)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        transport = kit.transport(endpoint=f"http://127.0.0.1:{port}")
        await transport.open()
        result = await transport.send(kit.batch())
        await transport.close()
    assert isinstance(result, Retry)
    assert f"127.0.0.1:{port}" in result.reason


async def test_c15_a_collector_that_is_silent_is_given_up_on(kit):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport = kit.transport(
            endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", deadline=0.2
        )
        await transport.open()

        result = await transport.send(kit.batch())
        await transport.close()

    assert isinstance(result, Retry)
    assert "0.2 s" in result.reason


# --- status reports -------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("health", "severity"), [("healthy", "INFO"), ("degraded", "WARN"), ("failed", "ERROR")]
)
async def test_a_status_report_is_a_log_record_too(kit, encoding, health, severity):
    status = AgentStatus(
        timestamp=datetime(2026, 1, 1, 12, tzinfo=timezone.utc),
        status=health,
        uptime=1.5,
        events_sent=3,
        events_failed=0,
        buffer_size=2,
        destinations={"otlp": {"delivered": 3, "last_error": None}},
    )
    with kit.Receiver() as receiver:
        transport = kit.transport(endpoint=receiver.url, encoding=encoding)
        await transport.open()
        assert await transport.report(status) == Accepted()
        assert await transport.report(status) == Accepted()
        await transport.close()

    assert len(set(receiver.uids)) == 2
    log = receiver.stored[0]
    assert (log.event_name, log.severity_text) == ("guard.agent_status", severity)
    assert log.body.string_value == f"the agent is {health}"
    assert log.time_unix_nano == 1_767_268_800_000_000_000
    assert (
        kit.attributes(log.attributes).items()
        >= {
            "guard.status": health,
            "guard.uptime": 1.5,
            "guard.events_sent": 3,
            "guard.events_failed": 0,
            "guard.level": "memory",
            "guard.destinations": {"otlp": {"delivered": 3, "last_error": ""}},
        }.items()
    )


async def test_a_report_that_does_not_arrive_says_why(kit):
    """
    It is also how the command ``guard-agent check`` asks whether the collector accepts.
    """
    status = AgentStatus(
        timestamp=datetime.now(timezone.utc),
        status="healthy",
        uptime=0,
        events_sent=0,
        events_failed=0,
        buffer_size=0,
    )
    with kit.Receiver(kit.Answer(401), kit.Answer(hang_up=True)) as receiver:
        transport = kit.transport(endpoint=receiver.url)
        await transport.open()
        results = [await transport.report(status) for _ in range(2)]
        await transport.close()

    assert [type(result) for result in results] == [Paused, Retry]


# --- its life -------------------------------------------------------------------------------------


async def test_closing_is_safe_at_any_time(kit):
    transport = kit.transport()

    await transport.close()
    await transport.open()
    await transport.open()
    await transport.close()
    await transport.close()


async def test_p08_a_cancelled_attempt_leaves_nothing_behind(kit):
    loop, arrived, ended = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def hold(received):
        loop.call_soon_threadsafe(arrived.set)
        ended.wait(20)

    with kit.Receiver() as receiver:
        receiver.rule = hold
        transport = kit.transport(endpoint=receiver.url)
        await transport.open()
        sending = asyncio.create_task(transport.send(kit.batch()))
        await asyncio.wait_for(arrived.wait(), 20)

        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await transport.close()
        ended.set()


def test_it_shares_the_gate_of_its_collector(kit):
    assert kit.transport(endpoint="https://c.example.com/otlp").collector == (
        "https://c.example.com:443"
    )


@pytest.mark.parametrize("setting", ["ca_file", "client_cert_file"])
async def test_c18_a_file_of_tls_that_is_missing_is_named(kit, tmp_path, setting):
    missing = tmp_path / "missing.pem"
    transport = kit.transport(endpoint="https://c.example.com", **{setting: missing})

    with pytest.raises(Exception, match="No such file") as caught:
        await transport.open()

    assert str(caught.value).startswith(f"{setting} '{missing}'")
    await transport.close()
