"""What applications and the Guard adapters rely on."""

from __future__ import annotations

import importlib
import inspect
import logging
import subprocess
import sys
from datetime import timezone

import pytest

import guard_agent
from guard_agent import AgentConfig

NAMES = [
    "guard_agent",
    "GuardAgentHandler",
    "SyncGuardAgentHandler",
    "AgentConfig",
    "SecurityEvent",
    "SecurityMetric",
    "DynamicRules",
    "AgentStatus",
    "EventBatch",
    "BufferFullError",
    "GuardAgentError",
    "AgentHandlerProtocol",
    "RedisHandlerProtocol",
    "generate_batch_id",
    "get_current_timestamp",
    "hash_ip",
    "sanitize_headers",
    "truncate_payload",
    "validate_config",
    "setup_agent_logging",
    "__version__",
]
SEAMS = [
    "Transport",
    "BufferStore",
    "RuleSource",
    "Enricher",
    "PluginSettings",
    "PluginContext",
    "hookimpl",
    "Batch",
    "Record",
    "Accepted",
    "Partial",
    "Retry",
    "Reject",
    "TooLarge",
    "Paused",
    "RuleSet",
    "Unchanged",
]
REMOVED = {
    "EventBuffer": "BufferStore",
    "BufferProtocol": "BufferStore",
    "HTTPTransport": "guard-agent-http",
    "TransportProtocol": "guard_agent.Transport",
    "RateLimiter": "max_requests_per_second",
    "CircuitBreaker": "delivery",
}


@pytest.mark.parametrize("name", NAMES + SEAMS)
def test_documented_names_are_there(name):
    assert name in guard_agent.__all__
    assert getattr(guard_agent, name) is not None


def test_all_is_true():
    assert len(guard_agent.__all__) == len(set(guard_agent.__all__))
    assert all(hasattr(guard_agent, name) for name in guard_agent.__all__)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            "guard_agent.models",
            [
                "AgentConfig",
                "AgentStatus",
                "DynamicRules",
                "EventBatch",
                "SecurityEvent",
                "SecurityMetric",
            ],
        ),
        ("guard_agent.client", ["guard_agent", "GuardAgentHandler", "SyncGuardAgentHandler"]),
        (
            "guard_agent.exceptions",
            [
                "BufferFullError",
                "EncryptionConfigError",
                "GuardAgentError",
                "PayloadTooLargeError",
                "PermanentClientError",
            ],
        ),
    ],
)
def test_documented_submodules_have_the_same_objects(module, names):
    imported = importlib.import_module(module)
    for name in names:
        assert getattr(imported, name) is getattr(guard_agent, name, getattr(imported, name))


@pytest.mark.parametrize(("name", "replacement"), REMOVED.items())
def test_a_removed_name_says_what_replaces_it(name, replacement):
    with pytest.raises(AttributeError, match=replacement):
        getattr(guard_agent, name)
    # The form people write; the import system would hide the message of an AttributeError.
    with pytest.raises(ImportError, match=replacement):
        exec(f"from guard_agent import {name}", {})

    assert not hasattr(guard_agent, name)
    assert name not in guard_agent.__all__


def test_a_name_that_never_was_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = guard_agent.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from guard_agent import nothing", {})


def test_importing_has_no_effect():
    """
    No thread, no plugin, nothing read: an adapter imports it in every worker.
    """
    script = (
        "import sys, threading, logging\n"
        "from guard_agent import AgentConfig, SecurityEvent, guard_agent\n"
        "assert threading.active_count() == 1\n"
        "assert not logging.getLogger('guard_agent').handlers\n"
        "loaded = {name for name in sys.modules if name.startswith('guard_agent.plugins')}\n"
        "assert not loaded, loaded\n"
        "assert 'aiohttp' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)


# --- configuration as the adapters make it --------------------------------------------------------

ADAPTER_KEYWORDS = {
    "api_key": "your-key",
    "endpoint": "https://api.fastapi-guard.com",
    "project_id": "project",
    "buffer_size": 100,
    "flush_interval": 30,
    "dynamic_rule_interval": 300,
    "status_interval": 300,
    "high_watermark_ratio": 0.8,
    "max_concurrent_flushes": 2,
    "buffer_overflow_policy": "drop",
    "enable_events": True,
    "enable_metrics": True,
    "timeout": 30,
    "retry_attempts": 3,
    "backoff_factor": 1.0,
    "sensitive_headers": ["authorization"],
    "max_payload_size": 1024,
    "project_encryption_key": None,
    "guard_version": "8.1.2",
    "guard_core_version": "4.4.0",
    "compression_enabled": True,
    "compression_threshold": 1024,
    "install_id": "install",
    "payload_signing_secret": "secret",
    "on_error": lambda stage, error, context: None,
}


def test_the_25_keywords_of_the_adapters_are_accepted_and_kept():
    assert len(ADAPTER_KEYWORDS) == 25

    config = AgentConfig(**ADAPTER_KEYWORDS)

    assert {name: getattr(config, name) for name in ADAPTER_KEYWORDS} == ADAPTER_KEYWORDS


def test_the_configuration_the_engine_makes_is_accepted():
    from guard_core.models import SecurityConfig

    settings = SecurityConfig(
        enable_agent=True, agent_api_key="your-key-0123", agent_project_id="project"
    )

    config = settings.to_agent_config()

    assert isinstance(config, AgentConfig)
    assert config.project_id == "project"


@pytest.mark.parametrize(
    "settings",
    [
        {
            "api_key": "your-api-key-here",
            "project_id": "your-project-id",
            "endpoint": "https://api.fastapi-guard.com",
        },
        {
            "api_key": "your-api-key",
            "project_id": "your-project",
            "buffer_size": 50,
            "flush_interval": 30,
        },
        {"api_key": "your-key"},
        {
            "api_key": "your-api-key",
            "endpoint": "https://api.fastapi-guard.com",
            "project_id": "your-project-id",
            "buffer_size": 100,
            "flush_interval": 30,
            "enable_events": True,
            "enable_metrics": True,
            "timeout": 30,
            "retry_attempts": 3,
            "backoff_factor": 1.0,
            "sensitive_headers": ["authorization"],
            "max_payload_size": 1024,
        },
    ],
)
def test_the_examples_of_the_first_readme_are_accepted(settings):
    config = AgentConfig(**settings)

    assert {name: getattr(config, name) for name in settings} == settings


def test_importing_the_package_loads_nothing_that_is_heavy():
    script = (
        "import sys, guard_agent\n"
        "heavy = {'aiohttp', 'asyncio', 'click', 'cryptography', 'orjson', 'pydantic', 'redis'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert guard_agent.models.SecurityEvent is guard_agent.SecurityEvent\n"
        "assert 'client' in dir(guard_agent) and 'AgentConfig' in dir(guard_agent)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)


def test_every_public_name_is_there_and_is_found_in_the_right_place():
    found = {name: getattr(guard_agent, name) for name in guard_agent.__all__}

    assert set(guard_agent._HOME) | {"__version__"} == set(guard_agent.__all__)
    for name, module in guard_agent._HOME.items():
        assert found[name] is getattr(sys.modules[module], name)


def test_the_quick_start_imports():
    namespace: dict = {}
    exec(
        "from guard_agent import AgentConfig, guard_agent\n"
        "from guard_agent import SecurityEvent, get_current_timestamp\n"
        "event = SecurityEvent(\n"
        "    timestamp=get_current_timestamp(),\n"
        "    event_type='ip_banned',\n"
        "    ip_address='192.168.1.100',\n"
        "    action_taken='banned',\n"
        "    reason='Suspicious activity detected',\n"
        ")\n",
        namespace,
    )

    assert namespace["event"].ip_address == "192.168.1.100"
    assert namespace["guard_agent"] is guard_agent.guard_agent


# --- handlers -------------------------------------------------------------------------------------

METHODS = [
    "start",
    "stop",
    "close",
    "send_event",
    "send_metric",
    "flush_buffer",
    "get_dynamic_rules",
    "health_check",
    "get_status",
    "get_stats",
    "initialize_redis",
]


@pytest.mark.parametrize("method", METHODS)
def test_both_handlers_have_the_same_methods(method):
    one = inspect.signature(getattr(guard_agent.GuardAgentHandler, method))
    other = inspect.signature(getattr(guard_agent.SyncGuardAgentHandler, method))

    assert list(one.parameters) == list(other.parameters)


def test_exceptions_have_the_bases_callers_catch():
    from guard_agent.exceptions import PayloadTooLargeError, PermanentClientError

    for error in (guard_agent.BufferFullError, guard_agent.EncryptionConfigError):
        assert issubclass(error, guard_agent.GuardAgentError)
    error = PermanentClientError(422, "bad field")
    assert (error.status_code, error.detail) == (422, "bad field")
    assert "422" in str(error)
    assert isinstance(PayloadTooLargeError(), PermanentClientError)
    assert PayloadTooLargeError().status_code == 413


# --- functions ------------------------------------------------------------------------------------


def test_the_timestamp_is_in_utc():
    assert guard_agent.get_current_timestamp().tzinfo is timezone.utc


def test_batch_ids_are_unique():
    ids = {guard_agent.generate_batch_id() for _ in range(1_000)}

    assert len(ids) == 1_000
    for text in ids:
        milliseconds, dash, suffix = text.partition("-")
        assert (dash, len(suffix)) == ("-", 8)
        assert milliseconds.isdigit()
        int(suffix, 16)


def test_hash_ip():
    assert guard_agent.hash_ip("192.0.2.1") == guard_agent.hash_ip("192.0.2.1")
    assert len(guard_agent.hash_ip("192.0.2.1")) == 16
    assert guard_agent.hash_ip("192.0.2.1") != guard_agent.hash_ip("192.0.2.1", "salt")


@pytest.mark.parametrize(
    ("payload", "size", "result"),
    [("abc", 3, "abc"), ("abcd", 3, "abc...[TRUNCATED]"), ("", 0, ""), ("a", 0, "...[TRUNCATED]")],
)
def test_truncate_payload(payload, size, result):
    assert guard_agent.truncate_payload(payload, size) == result


def test_sanitize_headers_is_deep_and_ignores_case():
    headers = {
        "Authorization": "Bearer x",
        b"COOKIE": "a=b",
        " x-api-key ": "k",
        "Accept": "*/*",
        "nested": [{"authorization": "y"}, ({"cookie": 1},)],
    }

    assert guard_agent.sanitize_headers(headers, ["authorization", "Cookie", "X-API-Key"]) == {
        "Authorization": "[REDACTED]",
        b"COOKIE": "[REDACTED]",
        " x-api-key ": "[REDACTED]",
        "Accept": "*/*",
        "nested": [{"authorization": "[REDACTED]"}, [{"cookie": "[REDACTED]"}]],
    }
    assert headers["Authorization"] == "Bearer x"


def test_sanitize_headers_ends_on_a_cycle():
    loop: dict = {}
    loop["self"] = loop

    assert "[REDACTED]" in str(guard_agent.sanitize_headers(loop, ["authorization"]))


def test_validate_config_names_what_is_doubtful():
    assert guard_agent.validate_config(AgentConfig(api_key="long-enough-key")) == []
    assert guard_agent.validate_config(AgentConfig(api_key="your-key"))
    assert guard_agent.validate_config(
        AgentConfig(api_key="long-enough-key", buffer_size=10, max_buffer_records=5)
    )


@pytest.fixture
def agent_logger():
    logger = logging.getLogger("guard_agent")
    before = list(logger.handlers), logger.level, logger.propagate
    yield logger
    for handler in [handler for handler in logger.handlers if handler not in before[0]]:
        logger.removeHandler(handler)
        handler.close()
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_setup_agent_logging_writes_to_a_file(agent_logger, tmp_path, log_format):
    path = tmp_path / "logs" / "agent.log"

    logger = guard_agent.setup_agent_logging(str(path), log_format)
    logging.getLogger("guard_agent.test").warning("said\n%s", "here")

    assert logger is agent_logger
    lines = path.read_text().splitlines()
    assert "said" in lines[0]
    if log_format == "json":
        assert len(lines) == 1


def test_setup_agent_logging_adds_its_handlers_once(agent_logger, tmp_path):
    for _ in range(3):
        guard_agent.setup_agent_logging(str(tmp_path / "agent.log"))
    assert len(agent_logger.handlers) == 2

    guard_agent.setup_agent_logging(reconfigure=False)
    assert len(agent_logger.handlers) == 2


def test_setup_agent_logging_survives_a_file_it_cannot_write(agent_logger, tmp_path):
    (tmp_path / "file").write_text("")

    guard_agent.setup_agent_logging(str(tmp_path / "file" / "agent.log"))

    assert len(agent_logger.handlers) == 1
