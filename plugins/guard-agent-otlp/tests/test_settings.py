from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from guard_agent import ConfigurationError, guard_agent
from guard_agent_otlp import OtlpSettings, OtlpTransport, guard_agent_transports


def test_the_hook_hands_over_the_transport():
    assert guard_agent_transports() == [OtlpTransport]
    assert OtlpTransport.name == "otlp"


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, "http://localhost:4318/v1/logs"),
        ({"endpoint": "https://c.example.com"}, "https://c.example.com/v1/logs"),
        ({"endpoint": "https://c.example.com/"}, "https://c.example.com/v1/logs"),
        ({"endpoint": "https://c.example.com/otlp/"}, "https://c.example.com/otlp/v1/logs"),
        ({"endpoint": "https://c.example.com/api/v1"}, "https://c.example.com/api/v1/v1/logs"),
        ({"endpoint": "https://c.example.com/v1/logs"}, "https://c.example.com/v1/logs"),
        ({"endpoint": "https://c.example.com/v1/logs/"}, "https://c.example.com/v1/logs"),
        ({"logs_endpoint": "https://c.example.com/"}, "https://c.example.com/"),
        ({"logs_endpoint": "https://c.example.com/in/"}, "https://c.example.com/in/"),
        ({"logs_endpoint": "https://c.example.com/api/v1"}, "https://c.example.com/api/v1"),
        (
            {"endpoint": "https://a.example.com", "logs_endpoint": "https://b.example.com/x"},
            "https://b.example.com/x",
        ),
    ],
)
def test_the_path_for_logs_is_added_to_the_base_and_to_nothing_else(settings, url):
    """
    As for OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_LOGS_ENDPOINT.
    """
    assert OtlpSettings(**settings).url == url


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("endpoint", "localhost:4318", "full address"),
        ("endpoint", "ftp://c.example.com", "full address"),
        ("endpoint", "https://user:secret@c.example.com", "set headers instead"),
        ("endpoint", "http://[::1", "valid address"),
        ("logs_endpoint", "https://c.example.com/logs?key=secret", "query"),
        ("logs_endpoint", "http://169.254.169.254/", ""),
        ("headers", {"bad name": "x"}, "bad name"),
        ("headers", {"a": "secret\r\nb: c"}, "a must be"),
        ("headers", {"a": ""}, "a must be"),
        ("headers", {"Content-Type": "text/plain"}, "Content-Type"),
        ("headers", {"a": "1", "A": "2"}, "'A' is there twice"),
        ("headers", "a=1,secret", "part 2"),
        ("headers", "=secret", "part 1"),
        ("encoding", "grpc", "json"),
        ("service_name", "", ""),
        ("resource", {"telemetry.sdk.name": "x"}, "telemetry.sdk.name"),
        ("resource", {"guard.version": "x"}, "guard.version"),
        ("resource", {"": "x"}, "''"),
        ("resource", {"a": float("nan")}, "finite"),
        ("resource", {"a": 2**63}, "64 bits"),
        ("resource", {"a": [1]}, ""),
        ("severities", {"ip_banned": "warning"}, "WARN"),
        ("max_body_bytes", 4095, "4096"),
        ("max_body_bytes", 20 * 1024 * 1024 + 1, ""),
        ("compression_threshold", -1, ""),
        ("deadline", 0, ""),
        ("api_key", "secret", ""),
    ],
)
def test_a_wrong_setting_is_refused_by_name_and_never_shown(name, value, hint):
    with pytest.raises(ValidationError) as caught:
        OtlpSettings(**{name: value})

    (first, *_) = caught.value.errors()
    assert first["loc"][0] == name
    assert hint in first["msg"]
    assert "secret" not in str(caught.value)


def test_one_name_of_the_service_is_enough():
    with pytest.raises(ValidationError, match="service_name and resource"):
        OtlpSettings(service_name="a", resource={"service.name": "b"})


def test_headers_and_resource_may_be_written_as_opentelemetry_does():
    settings = OtlpSettings(
        headers="authorization=Bearer%20abc, x-scope-orgid = 7,,", resource="host.name=a%2Cb"
    )

    assert {name: value.get_secret_value() for name, value in settings.headers.items()} == {
        "authorization": "Bearer abc",
        "x-scope-orgid": "7",
    }
    assert settings.resource == {"host.name": "a,b"}
    assert "abc" not in repr(settings)


def test_the_environment_of_opentelemetry_is_not_taken_by_itself(monkeypatch):
    """
    It is the application's: what it names may be for traces, and another vendor's.
    """
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otel.example.com")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret-of-the-app")

    settings = OtlpSettings()

    assert (settings.url, settings.headers) == ("http://localhost:4318/v1/logs", {})


WITHOUT_PROTOBUF = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "google" or name.startswith("opentelemetry.proto"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from guard_agent.testing.records import make_context
from guard_agent_otlp import OtlpTransport

OtlpTransport(OtlpTransport.Settings(), make_context())
try:
    OtlpTransport.Settings(encoding="protobuf")
except ValueError as error:
    print(error)
"""


def test_json_needs_no_protobuf_and_protobuf_says_what_it_needs():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PROTOBUF],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert "pip install 'guard-agent-otlp[protobuf]', or set it to 'json'" in done.stdout


def test_what_is_wrong_is_said_at_the_start(agent_config):
    config = agent_config("http://127.0.0.1:1", {"encoding": "grpc", "hedaers": {}})

    with pytest.raises(ConfigurationError) as caught:
        guard_agent(config)

    assert "hedaers" in str(caught.value)
    assert "encoding" in str(caught.value)
