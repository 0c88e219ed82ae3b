"""
What the README says is so: its configurations are taken, its tables agree with the code.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guard_agent.core.assembly.configfile import load_config
from guard_agent_otlp import OtlpSettings
from guard_agent_otlp import records as mapping

README = Path(__file__).resolve().parents[1].joinpath("README.md").read_text(encoding="utf-8")


def block(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTEL_TOKEN", "abc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otel.example.com")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=abc")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "host.name=web-1,service.version=2")


def test_the_configuration_of_the_readme_is_taken():
    Path("pyproject.toml").write_text(block("toml"), encoding="utf-8")

    config = load_config()
    section = config.plugins["otlp"]
    settings = OtlpSettings(**section)

    assert config.transports == ["otlp"]
    assert settings.headers["authorization"].get_secret_value() == "Bearer abc"
    assert settings.url == "https://otel.example.com/in/logs"
    # Every setting is there, or named as one of the client's.
    client = {name for name in OtlpSettings.model_fields if f"`{name}`" in README}
    assert OtlpSettings.model_fields.keys() - section.keys() - client == set()
    # And what is called the default is.
    for name in ("endpoint", "encoding", "max_body_bytes"):
        assert section[name] == OtlpSettings.model_fields[name].default


def test_the_variables_of_opentelemetry_are_taken_where_the_readme_names_them():
    text = f"api_key: key-0123456789\ntransports: [otlp]\n{block('yaml')}"
    Path("guard-agent.yaml").write_text(text, encoding="utf-8")

    settings = OtlpSettings(**load_config().plugins["otlp"])

    assert settings.url == "https://otel.example.com/v1/logs"
    assert settings.headers["api-key"].get_secret_value() == "abc"
    assert settings.resource == {"host.name": "web-1", "service.version": "2"}


def test_the_table_of_severities_is_that_of_the_code():
    for severity in ("ERROR", "INFO"):
        (row,) = re.findall(rf"^\| {severity} \((\d+)\) \| (.*) \|$", README, re.MULTILINE)
        number, types = row

        assert int(number) == mapping.SEVERITY_NUMBERS[severity]
        assert set(re.findall(r"`(\w+)`", types)) == {
            name for name, value in mapping._SEVERITIES.items() if value == severity
        }
    assert f"WARN ({mapping.SEVERITY_NUMBERS['WARN']})" in README


def test_the_version_of_the_conventions_is_that_of_the_code():
    (version,) = re.findall(r"semantic conventions (\d+\.\d+\.\d+)", README)

    assert mapping.SCHEMA_URL.endswith(f"/{version}")
