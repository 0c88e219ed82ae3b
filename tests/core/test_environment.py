"""Settings from environment variables, between the code and the file."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from guard_agent import AgentConfig, ConfigurationError
from guard_agent.core.assembly.composition import compose
from guard_agent.core.assembly.configfile import load_config, read_config, resolve

KEY = "a-key-of-a-test"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GUARD_AGENT_CONFIG", raising=False)
    return tmp_path


@pytest.fixture
def put(monkeypatch):
    def put(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(f"GUARD_AGENT_{name}", value)

    return put


def write(text):
    Path("guard-agent.yaml").write_text(text, encoding="utf-8")


def problems(**code):
    with pytest.raises(ConfigurationError) as caught:
        load_config(**code)
    return caught.value.problems


def test_code_goes_before_the_environment_that_before_the_file(put):
    write("api_key: of-the-file\nbuffer_size: 1\nflush_interval: 1\nstop_timeout: 1\n")
    put(BUFFER_SIZE="2", FLUSH_INTERVAL="2")

    config = load_config(flush_interval=3.0)

    assert (config.stop_timeout, config.buffer_size, config.flush_interval) == (1.0, 2, 3.0)
    assert config.origin("stop_timeout") == "guard-agent.yaml:4"
    assert config.origin("buffer_size") == "environment variable GUARD_AGENT_BUFFER_SIZE"
    assert config.origin("flush_interval") is None


def test_an_agent_configured_in_code_takes_what_it_leaves_open_from_the_environment(put):
    put(PROJECT_ID="shop", ENDPOINT="https://other.example.com")

    config = resolve(AgentConfig(api_key=KEY, endpoint="https://collector.example.com"))

    assert (config.project_id, config.endpoint) == ("shop", "https://collector.example.com")


def test_nothing_else_is_needed(put):
    put(API_KEY=KEY)

    assert load_config().api_key == KEY


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("enable_events", "false", False),
        ("buffer_size", "7", 7),
        ("backoff_factor", "0.5", 0.5),
        ("transports", "http, jsonl", ["http", "jsonl"]),
        ("transports", '["http", "http/eu"]', ["http", "http/eu"]),
        ("rules", "", []),
        ("project_id", "[not, a, list]", "[not, a, list]"),
        ("plugins", '{"http": {"deadline": 5}}', {"http": {"deadline": 5}}),
    ],
)
def test_values_are_read_by_the_type_of_the_setting(put, name, text, value):
    put(API_KEY=KEY, **{name.upper(): text})

    assert getattr(load_config(), name) == value


def test_a_dollar_sign_in_a_value_is_a_dollar_sign(put):
    put(API_KEY="key-${env:HOME}")

    assert load_config().api_key == "key-${env:HOME}"


def test_two_underscores_lead_into_the_section_of_a_plugin(put):
    write(
        "api_key: a-key\ntransports: [http, http/eu]\n"
        "plugins:\n  http: {deadline: 1, connect_timeout: 1}\n"
        "  redaction:\n    fields: {country: keep, user_agent: hash}\n"
    )
    put(
        PLUGINS__HTTP__DEADLINE="2",
        PLUGINS__HTTP_EU__ENDPOINT="https://eu.example.com",
        PLUGINS__REDACTION__FIELDS__USER_AGENT="drop",
        PLUGINS__REDACTION__NAMES='["x-shop"]',
    )

    config = load_config(plugins={"http": {"use_proxy_environment": False}})

    assert config.plugins == {
        "http": {"deadline": "2", "connect_timeout": 1, "use_proxy_environment": False},
        "http/eu": {"endpoint": "https://eu.example.com"},
        "redaction": {"fields": {"country": "keep", "user_agent": "drop"}, "names": ["x-shop"]},
    }
    assert config.origin("plugins.http.deadline") == (
        "environment variable GUARD_AGENT_PLUGINS__HTTP__DEADLINE"
    )
    assert config.origin("plugins.http/eu.endpoint") == (
        "environment variable GUARD_AGENT_PLUGINS__HTTP_EU__ENDPOINT"
    )
    assert config.origin("plugins.http.connect_timeout") == "guard-agent.yaml:4"
    assert config.origin("plugins.http.use_proxy_environment") is None


def test_the_plugin_makes_numbers_of_it(put):
    put(API_KEY=KEY, RULES="", PLUGINS__HTTP__DEADLINE="2.5")

    (step,) = compose(load_config()).transports

    assert step.settings.deadline == 2.5


def test_what_a_plugin_does_not_take_is_named_with_its_variable(put):
    put(API_KEY=KEY, PLUGINS__HTTP__DEADLINE="soon", PLUGINS__HTTP__CONECT_TIMEOUT="1")

    with pytest.raises(ConfigurationError) as caught:
        compose(load_config())

    texts = [str(problem) for problem in caught.value.problems]
    assert any("GUARD_AGENT_PLUGINS__HTTP__DEADLINE): Input should be a valid" in t for t in texts)
    assert any("did you mean 'connect_timeout'?" in text for text in texts)


def test_a_section_that_can_mean_two_instances_is_refused(put):
    put(API_KEY=KEY, TRANSPORTS="http/eu,http/e-u,http_eu", PLUGINS__HTTP_EU__DEADLINE="1")

    (problem,) = problems()

    assert problem.code == "GA310"
    assert "can mean 'http/eu' or 'http_eu'" in problem.message


def test_a_file_can_hold_the_value(put, tmp_path):
    (tmp_path / "key").write_text("of-the-file\n")
    put(API_KEY__FILE=str(tmp_path / "key"), PLUGINS__HTTP__API_KEY__FILE="key")

    config = load_config()

    assert (config.api_key, config.plugins) == (
        "of-the-file",
        {"http": {"api_key": "of-the-file"}},
    )


def test_all_problems_of_the_environment_and_the_file_come_together(put):
    write("bufer_size: 1\nstop_timeout: soon\n")
    put(
        API_KEY__FILE="absent",
        TIMEOUT="long",
        PROJEKT_ID="shop",
        STORE__PATH="x",
        PLUGINS__HTTP="{no json",
        RULES="[",
    )

    found = {problem.code: [] for problem in problems()}
    for problem in problems():
        found[problem.code].append(problem.message)

    assert {code: len(messages) for code, messages in found.items()} == {
        "GA303": 4,
        "GA304": 3,
        "GA306": 1,
    }
    assert any("GUARD_AGENT_PROJEKT_ID" in m and "'project_id'?" in m for m in found["GA303"])
    assert any(m.startswith("guard-agent.yaml:1: ") for m in found["GA303"])
    assert any("GUARD_AGENT_TIMEOUT: timeout: " in m for m in found["GA304"])
    assert "GUARD_AGENT_API_KEY__FILE: refers to the file absent" in found["GA306"][0]


@pytest.mark.parametrize("text", ["plugins: 3\n", "plugins: {http: 3}\n"])
def test_a_variable_does_not_hide_what_is_wrong_in_the_file(put, text):
    write(f"api_key: a-key\n{text}")
    put(PLUGINS__HTTP__DEADLINE="5")

    (problem,) = problems()

    assert problem.code == "GA304"
    assert problem.message.startswith(("guard-agent.yaml:2: plugins", "environment variable"))


def test_a_secret_is_not_repeated_in_a_message(put):
    put(API_KEY="schlüssel-of-a-test")

    assert "schlüssel" not in str(problems()[0])


def test_an_empty_secret_is_not_taken_for_none(put):
    """A key that went missing on its way here must not turn encryption off."""
    put(API_KEY=KEY, PROJECT_ENCRYPTION_KEY="")

    assert load_config().project_encryption_key == ""


def test_a_variable_that_means_nothing_to_us_is_noted_once_and_harmless(put, caplog):
    put(API_KEY=KEY, WEATHER="fine")

    config = load_config()
    with caplog.at_level(logging.WARNING):
        plan = compose(config)

    assert [problem.code for problem in plan.problems] == ["GA309"]
    assert caplog.text.count("GUARD_AGENT_WEATHER") == 1


def test_what_kubernetes_sets_for_a_service_of_our_name_is_none_of_our_business(put):
    put(
        API_KEY=KEY,
        PORT="tcp://10.0.0.1:80",
        PORT_80_TCP_ADDR="10.0.0.1",
        SERVICE_HOST="10.0.0.1",
        SERVICE_PORT_HTTP="80",
        REDIS_PORT_6379_TCP="tcp://10.0.0.2:6379",
        STATE_DIR="state",
        DEBUG="1",
    )

    assert load_config().notes == ()


def test_reading_for_a_look_keeps_what_is_right(put):
    write("bufer_size: 1\nstop_timeout: soon\nproject_id: shop\nstore: disk\n")
    put(TRANSPORTS="console")

    reading = read_config()

    assert {problem.code for problem in reading.problems} == {"GA303", "GA304", "GA307"}
    assert reading.config is not None
    assert (reading.config.project_id, reading.config.store) == ("shop", "disk")
    assert reading.config.transports == ["console"]
    assert reading.config.stop_timeout == 2.0
