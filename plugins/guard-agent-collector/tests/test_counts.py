"""Records that stand for several count as several, and nothing they say breaks a sum."""

from __future__ import annotations

import asyncio
import json
import sqlite3

import pytest

from guard_agent import AgentConfig, SecurityEvent, SecurityMetric, get_current_timestamp
from guard_agent.core.agent import Agent
from guard_agent.core.assembly.composition import compose

NO_COUNTS = (
    *(0, -1, -59, 59.0, 59.5, 1e30, 10**9 + 1, 2**63, 2**64 - 1, 10**300),
    *(True, None, [], [59], {}, {"guard.count": 59}),
    *("", " ", "-59", "+59", "59.0", "5e1", " 59", "59\n", "5_9", "NaN", "Infinity", "many"),
    *("0x3b", "\N{ARABIC-INDIC DIGIT FIVE}", "9" * 11, "9" * 5000),
)


def repeats(count=59, **notes):
    return {
        "guard.rollup": "repeats",
        "guard.count": count,
        "guard.first": "2026-01-02T03:04:06.500Z",
        "guard.last": "2026-01-02T03:04:16Z",
        **notes,
    }


def metric(key, name, value, **tags):
    fields = {"timestamp": "2026-01-02T03:04:05Z", "metric_type": name, "value": value}
    return {**fields, "idempotency_key": key, "tags": {"endpoint": "/login", **tags}}


async def measure(kit, *metrics):
    response, _ = await kit.post("/api/v1/metrics", {"metrics": list(metrics)})
    assert response.status == 200
    return await kit.json("/ui/now")


def classes(now):
    counts = {}
    for minute in now["minutes"]:
        for name, count in minute["counts"].items():
            counts[name] = counts.get(name, 0) + count
    return counts


async def test_a_summary_counts_as_what_it_stands_for_in_every_number(start, make):
    kit = await start()
    headers = {"X-Agent-Install-Id": "install-1", "X-Project-ID": "shop"}

    await kit.send(make("a"), make("b", metadata=repeats()), **headers)
    await kit.send(make("b", metadata=repeats()), **headers)  # again: it is known

    now = await kit.json("/ui/now")
    assert classes(now) == {"attack": 60}
    assert (now["blocked"], now["events"], now["records"]) == (60, 60, 2)
    assert now["addresses"] == [{"name": "203.0.113.9", "count": 60, "blocked": 60}]
    assert now["endpoints"] == [{"name": "/login", "count": 60, "blocked": 60}]
    assert now["types"] == [{"name": "penetration_attempt", "count": 60, "blocked": 60}]
    (agent,) = (await kit.json("/ui/agents"))["agents"]
    assert (agent["records"], agent["counted"]) == (2, 60)
    first, summary = await kit.records()
    names = ("count", "first", "last", "rollup", "rate")
    assert [first[name] for name in names] == [1, None, None, "", None]
    assert [summary[name] for name in names] == [59, 1767323046.5, 1767323056, "repeats", None]


async def test_a_sample_counts_for_its_type_and_as_itself_for_its_address(start, make):
    """
    The type is all that its events have in common.
    """
    kit = await start()
    notes = repeats(100, **{"guard.rollup": "sample", "guard.rate": 0.01})

    await kit.send(make("a", metadata=notes))

    now = await kit.json("/ui/now")
    assert (now["blocked"], now["types"][0]["count"]) == (100, 100)
    assert now["addresses"] == [{"name": "203.0.113.9", "count": 1, "blocked": 1}]
    assert now["endpoints"] == [{"name": "/login", "count": 1, "blocked": 1}]
    (record,) = await kit.records()
    assert (record["rollup"], record["rate"], record["count"]) == ("sample", 0.01, 100)


async def test_averages_and_rates_are_weighted_by_what_metrics_stand_for(start):
    kit = await start()

    now = await measure(
        kit,
        metric("1", "request_count", 198, **{"guard.count": "198", "guard.sum": "198"}),
        metric("2", "request_count", 2),
        metric("3", "response_time", 0.1, **{"guard.count": "99", "guard.sum": "9.9"}),
        metric("4", "response_time", 10.1),
        metric("5", "error_rate", 0.05, **{"guard.count": "10", "guard.sum": "10"}),
    )

    assert (now["requests"], now["metrics"], now["records"]) == (200, 309, 5)
    assert now["response_time"] == pytest.approx(0.2)  # and not 5.1, the mean of the records
    assert now["error_rate"] == pytest.approx(0.05)


async def test_a_metric_without_its_sum_is_taken_at_its_value(start):
    kit = await start()

    now = await measure(
        kit,
        metric("1", "request_count", 40, **{"guard.count": "40"}),
        metric("2", "response_time", 0.5, **{"guard.count": "3", "guard.sum": "NaN"}),
        metric("3", "response_time", 2.5, **{"guard.count": "no", "guard.sum": "900"}),
    )

    assert (now["requests"], now["metrics"]) == (40, 44)
    assert now["response_time"] == pytest.approx((3 * 0.5 + 2.5) / 4)


async def test_where_no_requests_are_reported_errors_are_averaged_and_nothing_is_nothing(start):
    kit = await start()
    now = await kit.json("/ui/now")
    assert (now["requests"], now["response_time"], now["error_rate"]) == (0, None, None)

    now = await measure(kit, metric("1", "error_rate", 0.25), metric("2", "error_rate", 0.75))

    assert now["error_rate"] == pytest.approx(0.5)


async def test_a_count_that_is_none_counts_one(start, make):
    kit = await start()
    numbers = range(len(NO_COUNTS))
    events = [make(f"e{number}", metadata=repeats(count)) for number, count in enumerate(NO_COUNTS)]
    metrics = [
        metric(f"m{number}", "request_count", 1, **{"guard.count": count, "guard.sum": "77"})
        for number, count in enumerate(NO_COUNTS)
    ]
    events += [make("no-map", metadata=[59]), make("other", count=59, repeat_count=59)]

    response, _ = await kit.send(*events)
    assert response.status == 200
    now = await measure(kit, *metrics)

    assert {record["count"] for record in await kit.records()} == {1}
    assert {record["first"] for record in await kit.records()} == {None}
    assert now["events"] == now["blocked"] == len(numbers) + 2
    assert now["requests"] == now["metrics"] == len(numbers)


@pytest.mark.parametrize(
    "hostile",
    [-1, -1e308, 1e13, 1e308, 2**64 - 1, None, "seven", "Infinity", True, [1]],
    ids=str,
)
async def test_a_value_that_makes_no_sense_is_in_no_sum(start, hostile):
    kit = await start()
    names = ("request_count", "response_time", "error_rate")
    notes = {"guard.count": "1000000000", "guard.sum": hostile}
    metrics = [metric(f"{name}-good", name, 1) for name in names]
    for name in names:
        metrics += [metric(f"{name}-{number}", name, hostile) for number in range(3)]
        metrics += [metric(f"{name}-sum", name, hostile, **notes)]
        metrics += [metric(f"{name}-text", name, hostile, **{**notes, "guard.sum": str(hostile)})]

    now = await measure(kit, *metrics)

    assert (now["requests"], now["response_time"], now["error_rate"]) == (1, 1, 1)


async def test_times_and_shares_that_make_no_sense_are_not_shown(start, make):
    kit = await start()
    hostile = [
        {"guard.first": "<script>"},
        {"guard.first": 7, "guard.last": 9},
        {"guard.first": "9999-01-01T00:00:00Z"},  # after the last
        {"guard.last": "0001-01-01T00:00:00+23:00"},
        {"guard.last": None},
    ]
    shares = [0, -1, 2, 1e-300, "0.01", None, True]
    sampled = [{"guard.rollup": "sample", "guard.rate": share} for share in shares]
    events = [
        make(str(number), metadata=repeats(**notes))
        for number, notes in enumerate([*hostile, *sampled, {"guard.rollup": ["sample"]}])
    ]

    await kit.send(*events)

    records = await kit.records()
    assert all(record["count"] == 59 and record["rate"] is None for record in records)
    assert {(r["first"], r["last"]) for r in records[: len(hostile)]} == {(None, None)}
    assert records[-1]["rollup"] == ""


async def test_the_highest_counts_add_up_without_an_overflow(start, make):
    kit = await start()
    many = 500

    await kit.send(*(make(str(number), metadata=repeats(10**9)) for number in range(many)))

    now = await kit.json("/ui/now")
    assert now["blocked"] == now["addresses"][0]["count"] == many * 10**9


async def test_log_records_that_an_agent_made_count_as_what_they_were_made_of(start):
    kit = await start()

    def log(name, uid, **attributes):
        pairs = [{"key": key, "value": {"stringValue": text}} for key, text in attributes.items()]
        pairs.append({"key": "log.record.uid", "value": {"stringValue": uid}})
        return {"eventName": name, "attributes": pairs}

    event = log("guard.penetration_attempt", "e", **{"guard.action_taken": "request_blocked"})
    count = {"key": "guard.metadata.guard.count", "value": {"intValue": "59"}}
    event["attributes"] += [count, {"key": "guard.huge", "value": {"intValue": "9" * 30}}]
    notes = {"guard.tags.guard.count": "200", "guard.tags.guard.sum": "200"}
    total = log(
        "guard.metric.request_count", "m", **{"guard.metric_type": "request_count", **notes}
    )
    batch = {"resourceLogs": [{"scopeLogs": [{"logRecords": [event, total]}]}]}

    response, _ = await kit.post("/v1/logs", batch)

    assert response.status == 200
    now = await kit.json("/ui/now")
    assert classes(now) == {"attack": 59}
    assert (now["requests"], now["metrics"], now["records"]) == (200, 200, 2)


async def test_what_an_agent_merged_is_shown_in_full(start, tmp_path, monkeypatch):
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    kit = await start()
    config = AgentConfig(
        api_key="test-key-0123",
        endpoint=kit.url,
        project_id="shop",
        rules=[],
        rollup=True,
        plugins={"rollup": {"interval": 3600}},  # what is counted leaves when it stops
    )
    agent = Agent(compose(config))
    try:
        for _ in range(60):
            agent.record(
                "event",
                SecurityEvent(
                    timestamp=get_current_timestamp(),
                    event_type="penetration_attempt",
                    ip_address="203.0.113.7",
                    action_taken="request_blocked",
                    endpoint="/login",
                ),
            )
        for name, value, times in [
            *(("request_count", 1.0, 100), ("response_time", 0.1, 60)),
            *(("response_time", 0.5, 20), ("error_rate", 1.0, 20)),
        ]:
            for _ in range(times):
                agent.record(
                    "metric",
                    SecurityMetric(
                        timestamp=get_current_timestamp(),
                        metric_type=name,
                        value=value,
                        tags={"endpoint": "/login", "method": "POST"},
                    ),
                )
    finally:
        await asyncio.wrap_future(agent.stop())

    now = await kit.json("/ui/now")
    assert (now["events"], now["metrics"], now["records"]) == (60, 200, 5)
    assert now["blocked"] == now["addresses"][0]["count"] == 60
    assert now["requests"] == 100
    assert now["response_time"] == pytest.approx(0.2)
    assert now["error_rate"] == pytest.approx(0.2)
    (summary,) = [record for record in await kit.records() if record["rollup"] == "repeats"]
    assert summary["count"] == 59
    assert summary["first"] <= summary["last"]
    (found,) = [a for a in (await kit.json("/ui/agents"))["agents"] if a["pid"] == 0]
    assert found["counted"] == 260


async def test_a_file_that_an_older_collector_made_is_read_on(start, make, tmp_path):
    """
    Format 1 had no columns for what a record stands for, but its count.
    """
    kit = await start()
    await kit.send(make("a"), **{"X-Agent-Install-Id": "install-1"})
    await measure(kit, metric("b", "request_count", 12))
    await kit.server.stop()
    with sqlite3.connect(tmp_path / "collector.db") as db:
        for column in ("first", "last", "rollup", "rate", "total"):
            db.execute(f"ALTER TABLE records DROP COLUMN {column}")
        db.execute("ALTER TABLE agents DROP COLUMN counted")
        db.execute("PRAGMA user_version=1")
    db.close()

    second = await start()
    await second.send(make("c", metadata=repeats()), **{"X-Agent-Install-Id": "install-1"})

    now = await second.json("/ui/now")
    assert (now["events"], now["requests"], now["records"]) == (60, 12, 3)
    agents = (await second.json("/ui/agents"))["agents"]
    assert {agent["counted"] for agent in agents} == {60}
    raw = (await second.get("/ui/records/1/raw"))[1]
    assert json.loads(raw) == make("a")
