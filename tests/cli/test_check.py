"""``guard-agent check`` with the real plugins, a real collector and a real Redis."""

from __future__ import annotations

import json
import re
import socket
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from click.testing import CliRunner

from guard_agent.cli import main
from guard_agent.testing.collector import Answer, Collector
from guard_agent.testing.redis_server import RedisServer

pytestmark = pytest.mark.usefixtures("folder")


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
    assert [verdict for parts in findings.values() for verdict, _ in parts] == ["ok"] * 6
    assert findings["rules polling"] == [("ok", f"{collector.url} answers, and has no rules")]
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
    (verdict, text) = findings["store redis"][2]
    assert verdict == "note"
    assert "allkeys-lru" in text


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


def test_a_clock_that_is_off_is_noted(collector):
    late = formatdate(time.time() - 3600, usegmt=True)
    collector.always(Answer(headers={"Date": late}), only="status")
    code, findings = check(settings_for(collector, rules=[]))

    assert code == 0
    assert [verdict for verdict, _ in findings["http"]] == ["ok", "note"]
    assert re.search(r"its clock is 3[56]\d\d s behind", findings["http"][1][1])


def test_rules_that_cannot_be_fetched_are_a_failure(collector):
    collector.always(Answer(403), only="rules")
    code, findings = check(settings_for(collector))

    assert code == 1
    assert findings["http"][0][0] == "ok"
    ((verdict, text),) = findings["rules polling"]
    assert verdict == "failed"
    assert "403" in text


def test_rules_that_are_there_are_reported(collector):
    collector.publish({"rule_id": "one", "version": 1})

    assert check(settings_for(collector))[1]["rules polling"][0][1].endswith("has rules")


def test_every_destination_is_asked(collector, tmp_path):
    with Collector() as eu:
        plugins = {"http/eu": {"endpoint": eu.url}, "jsonl": {"path": str(tmp_path / "no" / "x")}}
        transports = ["http", "http/eu", "jsonl"]
        settings = settings_for(collector, transports=transports, plugins=plugins)
        code, findings = check(settings)
        facts = json.loads(CliRunner().invoke(main, ["check", "--json"]).stdout)[-3]["facts"]

    assert findings["http/eu"] == [("ok", findings["http/eu"][0][1])]
    assert eu.url in findings["http/eu"][0][1]
    assert "jsonl" in findings
    assert facts["answer"] == "http 200"
    assert code in (0, 1)


def test_tls_that_does_not_verify_is_a_failure(collector):
    settings = settings_for(collector, endpoint=collector.url.replace("http:", "https:"))
    code, findings = check({**settings, "rules": []})

    assert code == 1
    assert "does not speak TLS" in findings["http"][0][1]


def test_a_key_that_is_refused_is_a_failure():
    with Collector(api_key="another-key-01") as collector:
        code, findings = check(settings_for(collector, rules=[]))

    assert code == 1
    assert "paused: the collector refused the key: check api_key" in findings["http"][0][1]


def test_what_is_disabled_is_not_asked(collector):
    code, findings = check(
        settings_for(collector, transports=["http", "console"]), "--disable", "polling"
    )

    assert code == 0
    assert "rules polling" not in findings
    assert findings["composition"][-1][1].endswith("http and console")


def test_a_destination_that_takes_no_reports_is_not_said_to_accept(collector):
    plugins = {"jsonl": {"path": "records.jsonl"}}
    code, findings = check(settings_for(collector, transports=["jsonl"], plugins=plugins, rules=[]))

    assert code == 0
    ((verdict, text),) = findings["jsonl"]
    assert verdict == "note"
    assert "guard-agent send" in text


def test_a_wrong_configuration_ends_with_78(collector):
    code, findings = check(settings_for(collector, store="memry"))

    assert code == 78
    ((verdict, text),) = findings["configuration"]
    assert verdict == "failed"
    assert "did you mean 'memory'?" in text


def test_mistakes_in_settings_and_in_plugins_are_shown_together(collector):
    code, findings = check(settings_for(collector, bufer_size=1, store="memry"))

    assert code == 78
    texts = [text for _, text in findings["configuration"]]
    assert any("did you mean 'buffer_size'?" in text for text in texts)
    assert any("did you mean 'memory'?" in text for text in texts)


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
        "ok", "ok", "note", "note", "ok", "ok",
    ]  # fmt: skip
