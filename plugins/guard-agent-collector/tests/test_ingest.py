"""The ingest API over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import hmac
import json
import sqlite3

import aiohttp
import pytest

from guard_agent import (
    Accepted,
    AgentConfig,
    AgentStatus,
    SecurityEvent,
    SecurityMetric,
    get_current_timestamp,
)
from guard_agent.core.agent import Agent
from guard_agent.core.assembly.composition import compose
from guard_agent.testing.records import make_batch, make_context
from guard_agent_http import Cipher
from guard_agent_otlp import OtlpTransport

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"


async def test_events_and_metrics_are_kept_as_they_came(start, make):
    kit = await start()
    metric = {"metric_type": "request_count", "value": 3, "tags": {"method": "GET"}}

    response, said = await kit.post("/api/v1/events", {"events": [make()], "metrics": [metric]})

    assert (response.status, said) == (200, {"success": True, "accepted": 2, "duplicates": 0})
    brief, other = await kit.records()
    assert (brief["type"], brief["ip"], brief["class"], brief["outcome"]) == (
        "penetration_attempt",
        "203.0.113.9",
        "attack",
        "blocked",
    )
    assert (other["class"], other["value"], other["method"]) == ("metric", 3.0, "GET")
    _, raw = await kit.get(f"/ui/records/{brief['id']}/raw")
    assert json.loads(raw) == make()


async def test_a_record_that_comes_twice_is_kept_once(start, make):
    kit = await start()

    await kit.send(make("a"), make("b"))
    _, said = await kit.send(make("b"), make("c"), make("c"))

    assert said == {"success": True, "accepted": 3, "duplicates": 2}
    assert len(await kit.records()) == 3


async def test_what_was_received_survives_a_restart_and_is_known_after_it(start, make):
    first = await start()
    await first.send(make("a"))
    await first.server.stop()

    second = await start()
    _, said = await second.send(make("a"), make("b"))

    assert said["duplicates"] == 1
    assert len(await second.records()) == 2


async def test_gzip_is_taken_and_its_sizes_are_told(start, make):
    kit = await start()

    response, _ = await kit.send(*(make(str(number)) for number in range(50)), pack=True)

    assert response.status == 200
    (request,) = await kit.requests()
    assert request["size"] > 5 * request["wire"]
    assert (request["records"], request["encoding"]) == (50, "gzip")


async def test_a_bomb_is_refused_without_unpacking_it(start):
    kit = await start(max_body=64 * 1024)
    bomb = gzip.compress(b" " * (64 * 1024 * 1024))

    response, said = await kit.post("/api/v1/events", bomb, **{"Content-Encoding": "gzip"})

    assert (response.status, said["limit"]) == (413, 64 * 1024)
    response, _ = await kit.post("/api/v1/events", b" " * (64 * 1024 + 1))
    assert response.status == 413
    assert await kit.records() == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"events": 7}', 422),
        (b'{"events": [7]}', 422),
        (b'{"events": [{"idempotency_key": 7}]}', 422),
        (b'{"events": [{"value": NaN}]}', 400),
        (b"[" * 100_000, 400),
        (b"\xff", 400),
    ],
)
async def test_what_is_no_batch_is_refused_and_listed(start, body, status):
    kit = await start()

    response, said = await kit.post("/api/v1/events", body)

    assert response.status == status
    assert said["success"] is False
    (request,) = await kit.requests()
    assert (request["status"], request["detail"]) == (status, said["detail"])


async def test_half_a_gzip_and_another_encoding_are_refused(start, make):
    kit = await start()
    body = gzip.compress(json.dumps({"events": [make()]}).encode())

    for wire, encoding, status in [
        (body[:-9], "gzip", 400),
        (body + b"x", "gzip", 400),
        (b"no gzip", "gzip", 400),
        (body, "br", 415),
    ]:
        response, _ = await kit.post("/api/v1/events", wire, **{"Content-Encoding": encoding})
        assert response.status == status


async def test_only_signed_requests_are_taken_where_there_is_a_secret(start, make):
    kit = await start(signing_secret="s3cret")
    body = json.dumps({"events": [make()]}).encode()
    right = "v1=" + hmac.new(b"s3cret", body, "sha256").hexdigest()

    answers = []
    for signature in (None, "v1=00", right):
        headers = {"X-Payload-Signature": signature} if signature else {}
        response, _ = await kit.post("/api/v1/events", body, pack=True, **headers)
        answers.append(response.status)

    assert answers == [401, 401, 200]
    assert [request["signature"] for request in await kit.requests()] == [
        "missing",
        "wrong",
        "valid",
    ]


async def test_only_the_one_key_is_taken_where_there_is_one(start, make):
    kit = await start(api_key="the-key")

    answers = [
        (await kit.send(make(), **headers))[0].status
        for headers in (
            {},
            {"X-API-Key": "another"},
            {"X-API-Key": "the-key"},
            {"Authorization": "Bearer the-key"},
        )
    ]

    assert answers == [401, 401, 200, 200]


async def test_encrypted_batches_are_opened_with_the_key_and_refused_without(start, make):
    sealed = Cipher(KEY).seal(json.dumps({"events": [make()], "metrics": []}).encode()).decode()
    other = Cipher(KEY[::-1][:42] + "A").seal(b'{"events": []}').decode()
    kit = await start(encryption_keys=(KEY,))

    answers = [
        (await kit.post("/api/v1/events/encrypted", {"encrypted_payload": payload}))[0].status
        for payload in (sealed, other, "!", "", None)
    ]

    assert answers == [200, 403, 403, 403, 422]
    (record,) = await kit.records()
    assert record["ip"] == "203.0.113.9"
    await kit.server.stop()
    blind = await start()
    response, _ = await blind.post("/api/v1/events/encrypted", {"encrypted_payload": sealed})
    assert response.status == 404


async def test_a_log_of_opentelemetry_becomes_a_record(start):
    kit = await start()
    log = {
        "timeUnixNano": "1767323045000000000",
        "severityText": "ERROR",
        "eventName": "guard.penetration_attempt",
        "body": {"stringValue": "SQL injection"},
        "attributes": [
            {"key": "client.address", "value": {"stringValue": "203.0.113.7"}},
            {"key": "http.response.status_code", "value": {"intValue": "403"}},
            {"key": "guard.action_taken", "value": {"stringValue": "request_blocked"}},
            {"key": "log.record.uid", "value": {"stringValue": "uid-1"}},
        ],
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    batch = {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [log, log]}]}]}

    response, said = await kit.post("/v1/logs", batch, pack=True)

    assert (response.status, said) == (200, {})
    (record,) = await kit.records()
    assert (record["type"], record["ip"], record["status"], record["class"]) == (
        "penetration_attempt",
        "203.0.113.7",
        403,
        "attack",
    )
    assert record["moment"].startswith("2026-01-02T03:04:05")
    shown = json.loads((await kit.json(f"/ui/records/{record['id']}"))["text"])
    assert shown["otlp"]["resource"] == {"service.name": "shop"}


def log_record(name, **attributes):
    """A log record in JSON; numbers are whole ones."""
    return {
        "eventName": name,
        "attributes": [
            {"key": key, "value": {"intValue" if isinstance(value, int) else "stringValue": value}}
            for key, value in attributes.items()
        ],
    }


def of_agent(install_id, *logs):
    pairs = {"guard.install_id": install_id, "guard.project_id": "shop"}
    described = [{"key": key, "value": {"stringValue": value}} for key, value in pairs.items()]
    return {"resource": {"attributes": described}, "scopeLogs": [{"logRecords": list(logs)}]}


async def test_a_status_report_among_log_records_is_no_event_but_a_report(start):
    """A collector of OpenTelemetry in between puts together what several agents sent."""
    kit = await start(once=2)
    healthy = {"guard.status": "healthy", "guard.pid": 7, "guard.uptime": 3}
    status = log_record("guard.agent_status", **healthy, **{"log.record.uid": "uid-1"})
    attack = log_record("guard.penetration_attempt", **{"guard.event_type": "penetration_attempt"})

    first, said = await kit.post("/v1/logs", {"resourceLogs": [of_agent("a", status)]})
    second, _ = await kit.post(
        "/v1/logs", {"resourceLogs": [of_agent("b", status, attack), of_agent("c", status)]}
    )

    assert (first.status, said, second.status) == (200, {}, 200)
    assert [record["type"] for record in await kit.records()] == ["penetration_attempt"]
    assert [request.get("report", False) for request in await kit.requests()] == [True, False]
    found = (await kit.json("/ui/agents"))["agents"]
    reports = {one["agent"]: one["report"] for one in found if one["pid"] == 7}
    assert reports.keys() == {"a", "b", "c"}
    assert (reports["b"]["status"], reports["b"]["uptime"]) == ("healthy", 3)
    assert {one["agent"]: one["counted"] for one in found if one["pid"] == 0} == {
        "a": 0,
        "b": 1,
        "c": 0,
    }
    assert not kit.server._finished.is_set()


async def test_logs_that_are_named_like_a_status_report_are_what_they_were(start):
    kit = await start()
    event = log_record("guard.agent_status", **{"guard.event_type": "agent_status"})
    others = log_record("agent_status")

    await kit.post("/v1/logs", {"resourceLogs": [of_agent("a", event, others)]})

    assert [record["class"] for record in await kit.records()] == ["attack", "log"]
    assert (await kit.requests())[0].get("report") is None


@pytest.mark.parametrize(
    "logs",
    [
        None,
        [7],
        [{"body": {"kvlistValue": {"values": [{"key": "a", "value": {"boolValue": True}}]}}}],
        [{"timeUnixNano": "no", "attributes": [{"key": "x"}], "eventName": 7}],
        [{"attributes": [{"key": "log.record.uid", "value": {"intValue": "x"}}]}],
    ],
)
async def test_strange_logs_are_taken_as_far_as_they_can_be_read(start, logs):
    kit = await start()

    response, _ = await kit.post(
        "/v1/logs", {"resourceLogs": [{"scopeLogs": [{"logRecords": logs}]}]}
    )

    assert response.status == 200
    assert len(await kit.records()) == sum(isinstance(log, dict) for log in logs or [])


async def test_protobuf_is_refused_with_the_setting_that_helps(start):
    kit = await start()

    response, said = await kit.post(
        "/v1/logs", b"\x0a", **{"Content-Type": "application/x-protobuf"}
    )

    assert response.status == 415
    assert "http/json" in said["detail"]


async def test_a_full_database_gives_up_the_oldest_and_stays_within_its_bound(start, make):
    kit = await start(max_bytes=4 * 1024 * 1024)
    padding = "x" * 20_000

    for number in range(30):
        batch = [make(f"{number}-{item}", metadata={"p": padding}) for item in range(20)]
        response, _ = await kit.send(*batch)
        assert response.status == 200

    used = (await kit.news())["state"]["used_bytes"]
    assert used <= 4 * 1024 * 1024
    newest = (await kit.records())[-1]
    assert (
        json.loads((await kit.get(f"/ui/records/{newest['id']}/raw"))[1])["idempotency_key"]
        == "29-19"
    )
    assert (await kit.get("/ui/records/1"))[0].status == 404
    database = kit.server._options.database
    files = [*database.parent.glob(database.name + "*")]
    assert sum(file.stat().st_size for file in files) < 16 * 1024 * 1024


def record_all(agent, count):
    for number in range(count):
        agent.record(
            "event",
            SecurityEvent(
                timestamp=get_current_timestamp(),
                event_type="penetration_attempt",
                ip_address=f"203.0.113.{number}",
                reason="password=hunter2-secret",
            ),
        )


@pytest.fixture
async def agent(tmp_path, monkeypatch):
    """Start a real agent for a collector; it is stopped at the end."""
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    started = []

    def make(url, **settings):
        config = AgentConfig(
            **{
                "api_key": "test-key-0123",
                "endpoint": url,
                "project_id": "shop",
                "buffer_size": 1,
                "flush_interval": 0.1,
                "backoff_factor": 0.05,
                "rules": [],
                "rollup": False,
                **settings,
            }
        )
        agent = Agent(compose(config))
        started.append(agent)
        return agent

    yield make
    for agent in started:
        await asyncio.wrap_future(agent.stop())


@pytest.mark.parametrize("fault", ["500", "429", "413", "drop", "lose_ack"])
async def test_agents_recover_from_each_button_and_nothing_is_lost_or_doubled(start, agent, fault):
    kit = await start()
    guarded = agent(kit.url, buffer_size=100)
    await kit.post("/ui/fault", {"kind": fault, "count": 1})

    record_all(guarded, 10)

    async def all_there():
        return len(await kit.records()) == 10 and len(await kit.requests()) >= 2

    await kit.until(all_there)
    faults = [request.get("fault") for request in await kit.requests()]
    assert fault in faults
    assert (await kit.news())["state"]["fault"] == {"kind": None, "left": None}
    assert "hunter2-secret" not in str(await kit.records())


async def test_a_request_that_hangs_is_let_go_when_it_is_mended(start, make):
    kit = await start()
    await kit.post("/ui/fault", {"kind": "hang", "count": None})
    hanging = asyncio.create_task(kit.send(make()))

    async def hangs():
        return [request for request in await kit.requests() if request.get("fault") == "hang"]

    await kit.until(hangs)
    assert not hanging.done()
    await kit.post("/ui/fault", {"kind": None, "count": None})

    with pytest.raises(aiohttp.ClientConnectionError):
        await hanging
    assert (await kit.send(make()))[0].status == 200


async def test_the_report_of_an_agent_shows_what_it_is_made_of(start, agent):
    kit = await start()
    guarded = agent(kit.url)
    record_all(guarded, 3)

    async def reported():
        return [a for a in (await kit.json("/ui/agents"))["agents"] if a["report"]]

    (found,) = await kit.until(reported)
    assert found["project"] == "shop"
    assert found["version"].startswith("guard-agent/")
    assert found["pid"] == found["report"]["pid"] > 0
    assert found["report"]["plan"]["transports"][0].startswith("http (guard-agent-http")
    assert found["report"]["destinations"]["http"]["delivered"] >= 3


async def test_the_report_of_an_agent_is_the_same_over_opentelemetry(start):
    kit = await start()
    status = AgentStatus(
        timestamp=get_current_timestamp(),
        status="degraded",
        uptime=1.5,
        events_sent=3,
        events_failed=0,
        buffer_size=2,
        pid=7,
        errors=["the store is away"],
        plan={"transports": ["otlp (guard-agent-otlp 4.0.0)"], "rules": []},
        rules={"file": {"rule_id": "r", "version": 2, "in_force": True}},
        destinations={"otlp": {"delivered": 3, "dropped": {"age": 1}, "oldest_seconds": 0.5}},
    )
    context = make_context(instance="otlp", project_id="shop", install_id="one")
    transport = OtlpTransport(OtlpTransport.Settings(endpoint=kit.url), context)
    await transport.open()

    assert await transport.send(make_batch(2)) == Accepted()
    assert await transport.report(status) == Accepted()
    await transport.close()

    whole, process = sorted(
        (await kit.json("/ui/agents"))["agents"], key=lambda agent: agent["pid"]
    )
    assert (whole["agent"], whole["project"], whole["counted"]) == ("one", "shop", 2)
    assert (process["agent"], process["project"], process["pid"]) == ("one", "shop", 7)
    sent = status.model_dump(mode="json", exclude={"timestamp"})
    assert {key: process["report"].get(key) for key in sent} == {**sent}
    assert len(await kit.records()) == 2


async def test_what_happened_is_counted_by_minute_and_class(start, make):
    kit = await start()
    await kit.send(
        make("1"),
        make("2", action_taken="logged_only"),
        make("3", event_type="ip_banned", action_taken="banned"),
        make("4", event_type="geo_lookup_failed", action_taken=""),
        make("5", metadata={"guard.count": 7}),
    )
    metric = SecurityMetric(
        timestamp=get_current_timestamp(), metric_type="request_count", value=12
    )
    await kit.post("/api/v1/metrics", {"metrics": [metric.model_dump(mode="json")]})

    now = await kit.json("/ui/now?minutes=5")

    counts = {}
    for minute in now["minutes"]:
        for name, count in minute["counts"].items():
            counts[name] = counts.get(name, 0) + count
    assert counts == {"attack": 9, "change": 1, "diagnostic": 1}
    assert (now["blocked"], now["passed"], now["requests"], now["records"]) == (8, 1, 12, 6)
    assert now["addresses"] == [{"name": "203.0.113.9", "count": 10, "blocked": 9}]
    assert now["endpoints"][0]["name"] == "/login"
    assert len(now["minutes"]) >= 6


async def test_a_page_gets_what_it_missed_and_not_more(start, make):
    kit = await start()
    await kit.send(make("a"))
    first = await kit.news()
    await kit.send(make("b"), make("c"))

    later = await kit.news(first["id"])

    assert first["fresh"] is True
    assert (later["fresh"], len(later["records"])) == (False, 2)
    await kit.send(*(make(f"n{number}") for number in range(700)))
    much = await kit.news(later["id"])
    assert (len(much["records"]), much["missed"]) == (500, 200)
    assert (await kit.news("r99999-q99999"))["fresh"] is True


async def test_a_database_that_fails_is_a_503_and_nothing_is_acknowledged(start, make):
    kit = await start()
    locked = sqlite3.connect(kit.server._options.database, isolation_level=None)
    kit.server._storage._writer.execute("PRAGMA busy_timeout=10")
    locked.execute("BEGIN IMMEDIATE")

    response, said = await kit.send(make())

    assert response.status == 503
    assert "database" in said["detail"]
    locked.execute("ROLLBACK")
    locked.close()
    assert (await kit.send(make()))[1] == {"success": True, "accepted": 1, "duplicates": 0}
