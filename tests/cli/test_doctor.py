"""``guard-agent doctor``: what goes wrong around an agent."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import guard_agent
from guard_agent import __version__

OLD = {"guard_agent/__init__.py": "", "guard_agent/buffer.py": ""}


@pytest.fixture
def findings(run):
    def findings(*options):
        result = run("doctor", "--json", *options)
        found = {}
        for finding in json.loads(result.stdout):
            found.setdefault(finding["about"], []).append((finding["verdict"], finding["text"]))
        return result.exit_code, found

    return findings


def failed(found):
    return [text for parts in found.values() for verdict, text in parts if verdict == "failed"]


def test_this_installation_is_in_order(findings, configure):
    configure()

    code, found = findings()

    assert (code, failed(found)) == (0, [])
    ((verdict, text),) = found["module"]
    assert verdict == "ok"
    assert f"belongs to guard-agent {__version__}" in text
    assert str(Path(guard_agent.__file__).parent) in text
    assert f"guard-agent-http {__version__}" in found["versions"][-1][1]


def test_the_former_distribution_beside_it_is_found(findings, distribution):
    distribution("fastapi-guard-agent", "3.2.4", OLD)

    code, found = findings()

    assert code == 1
    assert "is shipped by fastapi-guard-agent 3.2.4 (" in found["module"][0][1]
    assert "pip uninstall fastapi-guard-agent guard-agent" in found["module"][0][1]
    assert found["versions"][0][1].startswith("fastapi-guard-agent 3.2.4 is the former agent")


def test_the_alias_of_this_version_is_no_problem(findings, distribution):
    distribution("fastapi-guard-agent", __version__, {})

    assert failed(findings()[1]) == []


def test_any_other_distribution_that_ships_the_module_is_found(findings, distribution):
    distribution("acme-everything", "1.0", {"guard_agent/extra.py": ""})

    code, found = findings()

    assert code == 1
    assert "acme-everything 1.0" in found["module"][0][1]


def test_a_second_installation_is_found(findings, distribution):
    distribution("guard-agent", "3.2.4", OLD)

    code, found = findings()

    assert code == 1
    assert "guard-agent is installed 2 times" in found["module"][0][1]


def test_a_plugin_of_another_version_is_found(findings, distribution, monkeypatch):
    site = distribution("guard-agent-http", "3.0", {})
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])

    code, found = findings()

    assert code == 1
    assert found["versions"][0][1].startswith("guard-agent-http is 3.0, and guard-agent is")


def test_what_an_interrupted_installation_left_does_not_stop_it(findings, distribution):
    distribution("broken-of-a-test", "1.0", {}, metadata=False)

    assert findings()[0] == 0


def test_a_state_folder_that_cannot_be_used_is_noted(findings, monkeypatch, folder):
    (folder / "file").write_text("")
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(folder / "file" / "state"))

    ((verdict, text),) = findings()[1]["state"]

    assert verdict == "note"
    assert "set GUARD_AGENT_STATE_DIR" in text


def test_variables_that_are_settings_are_named_and_misspelt_ones_found(findings, monkeypatch):
    monkeypatch.setenv("GUARD_AGENT_BUFFER_SIZE", "7")
    monkeypatch.setenv("GUARD_AGENT_TRANSPORT", "http")

    code, found = findings()

    assert code == 1
    assert found["environment"][0] == ("ok", "settings come from GUARD_AGENT_BUFFER_SIZE")
    assert "did you mean 'transports'?" in found["environment"][1][1]


def test_several_workers_without_a_store_to_share_are_noted(findings, configure, monkeypatch):
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    configure()
    alone = findings()[1]["forks"]
    configure(store="disk")
    shared = findings()[1]["forks"]

    assert any("WEB_CONCURRENCY" in text for _, text in alone)
    assert not any("WEB_CONCURRENCY" in text for _, text in shared)


def test_it_works_with_a_configuration_that_does_not(findings, folder):
    (folder / "guard-agent.yaml").write_text("a: [")

    assert findings()[0] == 0


def test_for_people_it_is_a_table(run):
    lines = run("doctor").stdout.splitlines()

    assert {line.split()[0] for line in lines} <= {"ok", "note"}
    assert lines[0].split()[1] == "python"
