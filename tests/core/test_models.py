from __future__ import annotations

from datetime import datetime, timedelta, timezone
from uuid import UUID

import pytest
from pydantic import ValidationError

from guard_agent import (
    AgentStatus,
    DynamicRules,
    EventBatch,
    SecurityEvent,
    SecurityMetric,
    get_current_timestamp,
)
from guard_agent.core.intake.priority import EventPriorities
from guard_agent.core.interfaces import Priority

MOMENT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone.utc)
EVENT_TYPES = [
    "ip_banned",
    "rate_limited",
    "suspicious_request",
    "cloud_blocked",
    "country_blocked",
    "penetration_attempt",
    "behavioral_violation",
    "user_agent_blocked",
    "custom_rule_triggered",
]
METRIC_TYPES = [
    "request_count",
    "response_time",
    "error_rate",
    "bandwidth_usage",
    "threat_level",
    "block_rate",
    "cache_hit_rate",
]


def test_an_event_needs_a_time_and_a_type():
    event = SecurityEvent(timestamp=MOMENT, event_type="ip_banned")

    assert isinstance(event.idempotency_key, UUID)
    assert event.model_dump(exclude={"idempotency_key"}) == {
        "timestamp": MOMENT,
        "event_type": "ip_banned",
        "ip_address": "",
        "country": None,
        "user_agent": None,
        "action_taken": "",
        "reason": "",
        "endpoint": None,
        "method": None,
        "status_code": None,
        "response_time": None,
        "decorator_type": None,
        "rule_type": None,
        "pattern_matched": None,
        "handler_name": None,
        "metadata": {},
    }
    for missing in ({"timestamp": MOMENT}, {"event_type": "x"}):
        with pytest.raises(ValidationError):
            SecurityEvent(**missing)


def test_each_event_has_a_key_of_its_own():
    events = [SecurityEvent(timestamp=MOMENT, event_type="x") for _ in range(100)]

    assert len({event.idempotency_key for event in events}) == 100


@pytest.mark.parametrize("event_type", [*EVENT_TYPES, "of_tomorrow", ""])
def test_any_event_type_is_accepted(event_type):
    assert SecurityEvent(timestamp=MOMENT, event_type=event_type).event_type == event_type


@pytest.mark.parametrize("metric_type", [*METRIC_TYPES, "of_tomorrow"])
def test_any_metric_type_is_accepted(metric_type):
    metric = SecurityMetric(timestamp=MOMENT, metric_type=metric_type, value=1)

    assert metric.model_dump() == {
        "timestamp": MOMENT,
        "metric_type": metric_type,
        "value": 1.0,
        "endpoint": None,
        "tags": {},
    }


def test_extra_fields_of_an_event_are_kept():
    event = SecurityEvent(timestamp=MOMENT, event_type="x", shop="fields")

    assert event.model_extra == {"shop": "fields"}
    assert event.model_dump()["shop"] == "fields"


def test_rules_default_to_nothing():
    rules = DynamicRules()

    assert (rules.rule_id, rules.version, rules.ttl, rules.ip_ban_duration) == (
        "default-rule",
        1,
        300,
        3600,
    )
    assert abs(rules.timestamp - get_current_timestamp()) < timedelta(minutes=1)
    rest = rules.model_dump(exclude={"rule_id", "version", "ttl", "ip_ban_duration", "timestamp"})
    assert set(rest) == {
        "expires_at",
        "ip_blacklist",
        "ip_whitelist",
        "blocked_countries",
        "whitelist_countries",
        "global_rate_limit",
        "global_rate_window",
        "endpoint_rate_limits",
        "blocked_cloud_providers",
        "blocked_user_agents",
        "suspicious_patterns",
        "enable_penetration_detection",
        "enable_ip_banning",
        "enable_rate_limiting",
        "auto_ban_threshold",
        "auto_ban_duration",
        "enable_rate_limit_auto_ban",
        "emergency_mode",
        "emergency_whitelist",
        "emergency_whitelist_only",
        "message",
    }
    assert not any(rest.values())


@pytest.mark.parametrize("status", ["healthy", "degraded", "failed"])
def test_status(status):
    report = AgentStatus(
        timestamp=MOMENT, status=status, uptime=1.5, events_sent=1, events_failed=0, buffer_size=2
    )

    assert (report.last_flush, report.errors) == (None, [])


def test_a_status_is_one_of_three():
    with pytest.raises(ValidationError):
        AgentStatus(
            timestamp=MOMENT, status="fine", uptime=1, events_sent=1, events_failed=0, buffer_size=0
        )


def test_a_batch():
    batch = EventBatch(project_id="p", batch_id="b", created_at=MOMENT)

    assert batch.model_dump() == {
        "project_id": "p",
        "events": [],
        "metrics": [],
        "batch_id": "b",
        "created_at": MOMENT,
        "compressed": False,
        "agent_version": None,
        "guard_version": None,
        "guard_core_version": None,
    }


@pytest.mark.parametrize("model", [SecurityEvent, SecurityMetric, EventBatch])
def test_instrumentation_can_be_switched_off(model):
    """
    The Guard engine writes into ``model_config`` and rebuilds the model.
    """
    assert model.model_config["plugin_settings"] == {"logfire": {"record": "off"}}
    before = dict(model.model_config)

    model.model_config["plugin_settings"] = {"logfire": {"record": "off"}}

    assert model.model_rebuild(force=True) is True
    assert dict(model.model_config) == before


def test_the_engine_itself_can_mute_them(monkeypatch, caplog):
    from guard_core import _pydantic_plugin_mute as mute

    monkeypatch.setattr(mute, "_applied", False)

    mute._mute_pydantic_plugin_instrumentation()

    assert mute._applied is True
    assert caplog.records == []


# --- priorities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_what_was_blocked_outranks_what_is_noise(event_type):
    assert EventPriorities().of(event_type) > EventPriorities().of("security_headers_applied")


@pytest.mark.parametrize(
    ("event_type", "priority"),
    [
        ("penetration_attempt", Priority.ATTACK),
        ("never heard of", Priority.ATTACK),
        ("ip_banned", Priority.CHANGE),
        ("dynamic_rule_applied", Priority.CHANGE),
        ("https_enforced", Priority.DIAGNOSTIC),
        (None, Priority.DIAGNOSTIC),
        (["unhashable"], Priority.DIAGNOSTIC),
    ],
)
def test_priorities(event_type, priority):
    assert EventPriorities().of(event_type) is priority
