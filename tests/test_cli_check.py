"""``guard-agent check`` with the real plugins, a real collector and a real Redis."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from guard_agent.cli import main
from guard_agent.testing.collector import Answer, Collector
from guard_agent.testing.redis_server import RedisServer


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GUARD_AGENT_CONFIG", raising=False)
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


def check(settings, *options):
    """Exit code and findings: subject → verdicts and texts."""
    Path("guard-agent.yaml").write_text(json.dumps(settings), encoding="utf-8")
    result = CliRunner().invoke(main, ["check", "--json", *options])
    findings = {}
    for finding in json.loads(result.stdout):
        findings.setdefault(finding["about"], []).append((finding["verdict"], finding["text"]))
    return result.exit_code, findings


def settings_for(collector, **more):
    return {"api_key": "test-key-0123", "endpoint": collector.url, "project_id": "shop", **more}


def test_a_sound_configuration_is_tried_and_leaves_nothing_with_the_collector(collector):
    code, findings = check(settings_for(collector, store="disk"))

    assert code == 0
    assert [verdict for parts in findings.values() for verdict, _ in parts] == ["ok"] * 5
    assert findings["composition"] == [("ok", "redaction > truncate > disk > http")]
    assert "0 records wait; sync normal" in findings["store disk"][1][1]
    assert (collector.events, collector.metrics) == ([], [])


def test_what_can_cost_records_is_said(collector):
    code, findings = check(settings_for(collector))

    assert code == 0
    assert findings["store memory"][0][0] == "note"
    assert "store = 'disk' or 'redis'" in findings["store memory"][0][1]
    assert "uvicorn" in findings["lifecycle"][0][1]
    assert "docs/lifecycle.md" in findings["lifecycle"][0][1]


def test_hazards_of_a_redis_are_shown(collector):
    with RedisServer(options={"maxmemory-policy": "allkeys-lru"}) as server:
        plugins = {"redis": {"url": server.url}}
        code, findings = check(settings_for(collector, store="redis", plugins=plugins))

    assert code == 0
    assert "allkeys-lru" in findings["store redis"][1][1]


def test_a_redis_that_is_away_is_a_failure(collector):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    plugins = {"redis": {"url": f"redis://127.0.0.1:{port}"}}
    code, findings = check(settings_for(collector, store="redis", plugins=plugins))

    assert code == 1
    assert findings["store redis"][1][0] == "failed"
    assert "cannot be reached" in findings["store redis"][1][1]


@pytest.mark.parametrize(("status", "word"), [(401, "paused"), (404, "paused"), (500, "retry")])
def test_a_collector_that_refuses_is_a_failure(collector, status, word):
    collector.always(Answer(status))
    code, findings = check(settings_for(collector))

    assert code == 1
    ((verdict, text),) = findings["http"]
    assert verdict == "failed"
    assert text.startswith(f"{collector.url}: {word}: ")
    assert str(status) in text


def test_offline_it_connects_to_nothing(collector):
    code, findings = check(settings_for(collector), "--offline")

    assert code == 0
    assert "http" not in findings
    assert collector.requests == []


def test_a_wrong_configuration_ends_with_78(collector):
    code, findings = check(settings_for(collector, store="memry"))

    assert code == 78
    ((verdict, text),) = findings["configuration"]
    assert verdict == "failed"
    assert "did you mean 'memory'?" in text


def test_without_a_key_nothing_is_asked_and_that_is_said(collector):
    settings = settings_for(collector, api_key="${env:NOWHERE_SET}")
    code, findings = check(settings)

    assert code == 0
    assert findings["configuration"][0][0] == "note"
    assert "placeholder" in findings["configuration"][0][1]
    assert collector.requests == []


def test_for_people_it_is_a_table(collector):
    Path("guard-agent.yaml").write_text(json.dumps(settings_for(collector)), encoding="utf-8")
    result = CliRunner().invoke(main, ["check"])

    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        "ok", "ok", "note", "note", "ok",
    ]  # fmt: skip
