"""``guard-agent config``: what is in force, where from, what is wrong, what there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guard_agent import AgentConfig

ROOT = Path(__file__).resolve().parents[2]


def write(text, name="guard-agent.yaml"):
    Path(name).write_text(text, encoding="utf-8")


def shown(run, *options):
    result = run("config", "show", "--json", *options)
    return {
        setting["name"]: (setting["value"], setting["origin"])
        for setting in json.loads(result.stdout)
    }


# --- show -----------------------------------------------------------------------------------------


def test_every_setting_is_shown_with_where_it_comes_from(run, monkeypatch):
    write(
        "api_key: '${env:THE_KEY}'\nstore: disk\nplugins:\n"
        "  http:\n    deadline: 4\n  disk: {sync: full}\n"
    )
    monkeypatch.setenv("THE_KEY", "a-very-secret-key")
    monkeypatch.setenv("GUARD_AGENT_PLUGINS__HTTP__CONNECT_TIMEOUT", "2")
    monkeypatch.setenv("GUARD_AGENT_BUFFER_SIZE", "7")

    settings = shown(run)

    assert set(AgentConfig.model_fields) - {"plugins", "on_error"} <= set(settings)
    assert settings["store"] == ("disk", "guard-agent.yaml:2")
    assert settings["buffer_size"] == (7, "environment variable GUARD_AGENT_BUFFER_SIZE")
    assert settings["flush_interval"] == (30, "default")
    assert settings["plugins.http.deadline"] == (4.0, "guard-agent.yaml:5")
    assert settings["plugins.http.connect_timeout"] == (
        2.0,
        "environment variable GUARD_AGENT_PLUGINS__HTTP__CONNECT_TIMEOUT",
    )
    assert settings["plugins.http.use_proxy_environment"] == (True, "default")
    assert settings["plugins.disk.sync"] == ("full", "guard-agent.yaml:6")


def test_for_people_it_is_a_table(run):
    write("api_key: a-key-of-a-test\nbuffer_size: 7\n")

    table = run("config", "show", "--provenance", "--changed")
    plain = run("config", "show", "--changed")

    assert [line.split() for line in table.stdout.splitlines()] == [
        ["api_key", "guard-agent.yaml:1", '"********"'],
        ["buffer_size", "guard-agent.yaml:2", "7"],
    ]
    assert plain.stdout.splitlines()[1].split() == ["buffer_size", "7"]


def test_no_secret_is_shown(run, monkeypatch):
    write(
        """
api_key: secret-0-of-a-test
payload_signing_secret: secret-1-of-a-test
project_encryption_key: secret-2-of-a-test
rules_signing_secret: secret-3-of-a-test
transports: [http, http/eu, console]
store: redis
plugins:
  http: {api_key: secret-4-of-a-test}
  http/eu: {api_key: secret-5-of-a-test, no_such_setting: secret-6-of-a-test}
  redis: {url: "redis://me:secret-7-of-a-test@localhost/0", password: secret-8-of-a-test}
  redaction: {hash_key: secret-9-of-a-test}
  unheard-of: {anything: secret-a-of-a-test, headers: {authorization: secret-b-of-a-test}}
"""
    )
    for options in ((), ("--json",), ("--provenance",)):
        result = run("config", "show", *options)
        assert "plugins.redis.password" in result.stdout
        assert "plugins.unheard-of.anything" in result.stdout
        assert "of-a-test" not in result.output


def test_the_rest_of_a_wrong_configuration_is_shown(run):
    write("api_key: a-key-of-a-test\nbufer_size: 1\nstore: disk\n")

    result = run("config", "show")

    assert result.exit_code == 78
    assert '"disk"' in result.stdout
    assert "guard-agent.yaml:2: there is no setting bufer_size" in result.stderr


def test_without_a_key_it_says_so(run):
    assert shown(run)["api_key"] == (None, "not set")
    assert run("config", "show").exit_code == 0


# --- validate -------------------------------------------------------------------------------------


def test_a_sound_configuration(run):
    write("api_key: a-key-of-a-test\n")

    result = run("config", "validate")

    assert (result.exit_code, result.output) == (0, "guard-agent.yaml: no problems\n")


def test_all_mistakes_are_shown_at_once_those_of_plugins_too(run, monkeypatch):
    write(
        "api_key: a-key-of-a-test\nbufer_size: 1\nstop_timeout: soon\n"
        "store: memry\nplugins:\n  http:\n    deadlin: 3\n"
    )
    monkeypatch.setenv("GUARD_AGENT_TRANSPORT", "http")

    result = run("config", "validate")

    assert result.exit_code == 78
    assert result.stdout == "guard-agent.yaml: 5 problems\n"
    for part in (
        "GA303: guard-agent.yaml:2: there is no setting bufer_size; did you mean 'buffer_size'?",
        "GA304: guard-agent.yaml:3: stop_timeout: ",
        "GA303: environment variable GUARD_AGENT_TRANSPORT: there is no setting transport; did you",
        "GA101: no plugin 'memry' is installed; did you mean 'memory'?",
        "GA112: plugins.http.deadlin (guard-agent.yaml:7): ",
        "the plugin has no setting 'deadlin'; did you mean 'deadline'?",
    ):
        assert part in result.stderr


def test_mistakes_as_json(run):
    write("api_key: a-key-of-a-test\nbufer_size: 1\n")

    result = run("config", "validate", "--json")

    (problem,) = json.loads(result.stdout)
    assert (problem["code"], problem["fatal"], result.exit_code) == ("GA303", True, 78)


def test_doubts_are_shown_and_are_no_mistakes(run):
    write("api_key: a-key-of-a-test\nplugins: {jsonl: {path: x}}\n")

    result = run("config", "validate")

    assert result.exit_code == 0
    assert "GA115" in result.stderr


@pytest.mark.parametrize("text", ["a: [", "- a list", "a: 1\na: 2\n"])
def test_a_file_that_is_not_well_formed(run, text):
    write(text)

    result = run("config", "validate")

    assert result.exit_code == 78
    assert "GA302: guard-agent.yaml" in result.stderr


def test_a_broken_plugin_of_a_wheel_is_a_doubt_that_can_be_disabled(run, installed):
    write("api_key: a-key-of-a-test\ntransports: [http, acme-sync-send]\n")

    with_it = run("config", "validate")
    without = run("config", "validate", "--disable", "acme-sync-send")

    assert "GA110" in with_it.stderr
    assert (with_it.exit_code, with_it.stdout) == (1, "guard-agent.yaml: 1 problem\n")
    assert (without.exit_code, without.stderr) == (0, "")


# --- schema ---------------------------------------------------------------------------------------


def test_the_schema_in_docs_is_current(run):
    """Written by ``guard-agent config schema > docs/config.schema.json``."""
    result = run("config", "schema")

    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads(
        (ROOT / "docs" / "config.schema.json").read_text(encoding="utf-8")
    )


def test_the_schema_has_every_setting_and_the_installed_plugins(run, installed):
    schema = json.loads(run("config", "schema").stdout)

    assert set(schema["properties"]) == set(AgentConfig.model_fields) - {"on_error"}
    assert schema["additionalProperties"] is False
    sections = schema["properties"]["plugins"]
    assert {"http", "redis", "disk", "acme-tcp"} <= set(sections["properties"])
    assert sections["patternProperties"]["^http/.+$"] == {"$ref": "#/$defs/plugin http"}
    http = schema["$defs"]["plugin http"]
    assert http["additionalProperties"] is False
    assert http["properties"]["deadline"]["default"] == 10.0
    assert {"$ref": "#/$defs/Reference"} in http["properties"]["deadline"]["anyOf"]


def test_a_plugin_that_cannot_be_imported_is_left_out_of_the_schema(run, installed):
    schema = json.loads(run("config", "schema").stdout)

    assert "acme-exits" not in schema["properties"]["plugins"]["properties"]
