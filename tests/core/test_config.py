from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from guard_agent import AgentConfig, check_endpoint
from guard_agent.core.config import state_directory

KEY = "test-key-0123456789"


def config(**settings):
    return AgentConfig(**{"api_key": KEY, **settings})


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch):
    """Each test hears what is said once per process."""
    monkeypatch.setattr(AgentConfig, "_warned", set())


def test_defaults():
    assert config().model_dump(include=set(DEFAULTS)) == DEFAULTS


DEFAULTS = {
    "endpoint": "https://api.fastapi-guard.com",
    "project_id": None,
    "buffer_size": 100,
    "flush_interval": 30,
    "timeout": 30,
    "retry_attempts": 3,
    "backoff_factor": 1.0,
    "max_payload_size": 1024,
    "dynamic_rule_interval": 300,
    "status_interval": 300,
    "high_watermark_ratio": 0.8,
    "compression_enabled": True,
    "compression_threshold": 1024,
    "buffer_overflow_policy": "drop",
    "enable_events": True,
    "enable_metrics": True,
    "sensitive_headers": [
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "x-api-key",
    ],
    "max_buffer_records": 10_000,
    "max_buffer_bytes": 8 * 1024 * 1024,
    "max_requests_per_second": 10,
    "stop_timeout": 2,
    "enrichers": ["redaction", "truncate"],
    "store": "memory",
    "transports": ["http"],
    "rules": ["polling"],
}


def test_lists_are_not_shared():
    config().sensitive_headers.append("x")

    assert "x" not in config().sensitive_headers


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("api_key", ""),
        ("api_key", "   "),
        ("api_key", " key"),
        ("api_key", "key\n"),
        ("api_key", "k\u00e9y"),
        ("api_key", "a\r\nX-Other: b"),
        ("api_key", None),
        ("endpoint", "not an address"),
        ("endpoint", None),
        ("buffer_size", 0),
        ("buffer_size", "many"),
        ("flush_interval", 0),
        ("flush_interval", -1),
        ("flush_interval", "soon"),
        ("flush_interval", float("nan")),
        ("flush_interval", float("inf")),
        ("timeout", 0),
        ("timeout", float("inf")),
        ("stop_timeout", float("inf")),
        ("stop_timeout", -1),
        ("dynamic_rule_interval", 59),
        ("dynamic_rule_interval", float("inf")),
        ("status_interval", 59),
        ("status_interval", float("inf")),
        ("high_watermark_ratio", 0),
        ("high_watermark_ratio", 1.1),
        ("max_concurrent_flushes", 0),
        ("buffer_overflow_policy", "explode"),
        ("retry_attempts", -1),
        ("backoff_factor", 0),
        ("backoff_factor", float("inf")),
        ("max_payload_size", -1),
        ("compression_threshold", -1),
        ("sensitive_headers", "authorization"),
        ("on_error", "not callable"),
        ("max_requests_per_second", 0),
        ("max_buffer_records", 0),
        ("max_buffer_bytes", 1),
        ("max_batch_bytes", 1),
        ("block_timeout", 61),
        ("transports", ["http", "http"]),
        ("enrichers", ["truncate", "truncate"]),
        ("plugins", {"http": 5}),
        ("buffer_sise", 5),
    ],
)
def test_what_is_wrong_is_named(field, value):
    with pytest.raises(ValidationError) as caught:
        config(**{field: value})

    (error,) = caught.value.errors()
    assert error["loc"][0] == field


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ValidationError) as caught:
        config(endpoint="x", buffer_size=0, flush_intervall=5)

    assert {error["loc"][0] for error in caught.value.errors()} == {
        "endpoint",
        "buffer_size",
        "flush_intervall",
    }


def test_a_batch_that_does_not_fit_the_buffer_is_an_error():
    with pytest.raises(ValidationError, match="max_batch_bytes must not be larger"):
        config(max_buffer_bytes=65_536, max_batch_bytes=65_537)


def test_secrets_are_neither_in_errors_nor_in_repr():
    secrets = {
        "api_key": "canary-key",
        "project_encryption_key": "canary-encryption",
        "payload_signing_secret": "canary-signing",
        "plugins": {"http": {"token": "canary-token"}},
    }
    with pytest.raises(ValidationError) as caught:
        AgentConfig(**secrets, buffer_size=0, api_kee="canary-typo")
    with pytest.raises(ValidationError) as also:
        AgentConfig(api_key="canary\nkey")

    assert "canary" not in str(caught.value)
    assert "canary" not in str(also.value)
    assert "canary" not in repr(AgentConfig(**secrets))


@pytest.mark.parametrize("key", ["your-key", "your-api-key-here", "x", "a b"])
def test_any_printable_key_is_accepted(key):
    assert AgentConfig(api_key=key).api_key == key


# --- the endpoint ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "normal"),
    [
        ("https://collector.example", "https://collector.example"),
        ("https://collector.example/", "https://collector.example"),
        ("  https://collector.example  ", "https://collector.example"),
        ("https://collector.example:8443/base/", "https://collector.example:8443/base"),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://app.localhost", "http://app.localhost"),
        ("https://10.1.2.3", "https://10.1.2.3"),
        ("https://m\u00fcller.example", "https://m\u00fcller.example"),
        ("https://1and1.example", "https://1and1.example"),
    ],
)
def test_an_endpoint_is_brought_to_its_normal_form(endpoint, normal, caplog):
    assert config(endpoint=endpoint).endpoint == normal
    assert caplog.records == []


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "collector.example",
        "//collector.example",
        "file:///etc/passwd",
        "ftp://collector.example",
        "javascript:alert(1)",
        "https://",
        "https:///path",
        "https://:443",
        "https://user@collector.example",
        "https://user:pass@collector.example",
        "https://:@collector.example",
        "https://collector.example?x=1",
        "https://collector.example#part",
        "https://collector.example:99999",
        "https://collector.example:port",
        "https://[::1",
        "https://collector .example",
        "https://collector.example\\@other.example",
        "https://collector.example\n.other.example",
        "https://collector\u2028.example",
        # link-local, metadata, nothing at all
        "http://169.254.169.254/latest",
        "https://169.254.1.1",
        "https://[fe80::1]",
        "https://[fe80::1%25eth0]",
        "https://[::ffff:169.254.169.254]",
        "http://2852039166",
        "http://0xa9fea9fe",
        "http://169.254.43518",
        "http://0251.0376.0251.0376",
        "http://0",
        "http://127.1",
        "https://0.0.0.0",
        "https://[::]",
        "https://224.0.0.1",
        "https://[ff02::1]",
        "https://[fd00:ec2::254]",
        "https://100.100.100.200",
        "http://metadata.google.internal",
        "http://METADATA.google.internal.",
    ],
)
def test_an_endpoint_that_is_none_or_reaches_metadata_is_refused(endpoint):
    with pytest.raises(ValidationError) as caught:
        config(endpoint=endpoint)

    assert [error["loc"] for error in caught.value.errors()] == [("endpoint",)]


@pytest.mark.parametrize(
    ("endpoint", "normal"),
    [
        ("https://collector.example/api/v1", "https://collector.example"),
        ("https://collector.example/api/v1/", "https://collector.example"),
        ("https://collector.example/base/api/v1", "https://collector.example/base"),
    ],
)
def test_the_path_of_the_api_is_taken_off_with_one_warning(endpoint, normal, caplog):
    for _ in range(3):
        assert config(endpoint=endpoint).endpoint == normal

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "/api/v1" in record.message


def test_plain_http_to_another_host_is_told_once_per_host(caplog):
    for host in ("one.example", "one.example", "two.example", "192.0.2.1"):
        assert check_endpoint(f"http://{host}") == f"http://{host}"

    assert [record.args for record in caplog.records] == [
        ("one.example",),
        ("two.example",),
        ("192.0.2.1",),
    ]


def test_the_same_check_serves_plugins():
    with pytest.raises(ValueError, match="user name or password"):
        check_endpoint("https://user:secret@collector.example")
    with pytest.raises(ValueError, match="must not carry") as caught:
        check_endpoint("https://user:secret@collector.example")

    assert "secret" not in str(caught.value)


# --- where files go -------------------------------------------------------------------------------


def test_the_state_directory_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path))

    assert state_directory() == tmp_path


@pytest.mark.skipif(os.name != "posix", reason="Windows has other folders")
def test_the_state_directory_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.delenv("GUARD_AGENT_STATE_DIR", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_directory() == tmp_path / "guard-agent"

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_directory() == tmp_path / ".local" / "state" / "guard-agent"


@pytest.mark.skipif(os.name != "posix", reason="Windows has other folders")
def test_a_missing_home_raises_nothing(monkeypatch):
    for name in ("GUARD_AGENT_STATE_DIR", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    assert isinstance(state_directory(), Path)


def test_records_of_different_owners_never_share_a_store():
    key = "test-key-0123"
    one = AgentConfig(api_key=key)
    assert one.project_key == AgentConfig(api_key=key).project_key
    assert key not in one.project_key
    assert one.project_key != AgentConfig(api_key="other-key-0123").project_key
    assert one.project_key == AgentConfig(api_key=key, endpoint="https://c.example").project_key
    assert AgentConfig(api_key=key, project_id="shop").project_key == "shop"


@pytest.mark.parametrize("entry", ["192.0.2.7", "192.0.2.0/24", "2001:db8::/32", "DE", "de"])
def test_what_must_never_be_blocked_is_a_network_or_a_country(entry):
    assert config(never_block=[entry]).never_block == [entry]


@pytest.mark.parametrize("entry", ["", "DEU", "D1", "192.0.2.1/24", "example.com", "*"])
def test_what_is_neither_a_network_nor_a_country_is_named(entry):
    with pytest.raises(ValidationError, match="never_block"):
        config(never_block=[entry])


@pytest.mark.parametrize("secret", ["", "short", "s" * 15])
def test_a_signing_secret_that_can_be_guessed_is_refused(secret):
    with pytest.raises(ValidationError, match="rules_signing_secret"):
        config(rules_signing_secret=secret)


def test_the_signing_secret_of_rules_is_not_shown():
    assert "s3cr3t" not in repr(config(rules_signing_secret="s3cr3t" * 4))
