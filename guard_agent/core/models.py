"""The public data models: what applications create and what travels to the collector."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field

# pydantic evaluates the annotations of a model when the class is made, so the imports above
# are needed at runtime.


def _now() -> datetime:
    return datetime.now(timezone.utc)


class SecurityEvent(BaseModel):
    """
    Something security relevant happened to one request.

    Any ``event_type`` is accepted, and so are extra fields, which are kept.
    """

    # The Guard engine turns instrumentation by pydantic plugins (logfire) off on these models;
    # done here as well, so that it also holds without the engine.
    model_config = ConfigDict(extra="allow", plugin_settings={"logfire": {"record": "off"}})

    idempotency_key: UUID = Field(default_factory=uuid4)
    timestamp: datetime
    event_type: str
    ip_address: str = ""
    country: str | None = None
    user_agent: str | None = None
    action_taken: str = ""
    reason: str = ""
    endpoint: str | None = None
    method: str | None = None
    status_code: int | None = None
    response_time: float | None = None
    """Seconds."""
    decorator_type: str | None = None
    rule_type: str | None = None
    pattern_matched: str | None = None
    handler_name: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class SecurityMetric(BaseModel):
    """
    One measured value.

    The types in use are request_count, response_time (seconds), error_rate, bandwidth_usage
    (bytes), threat_level, block_rate and cache_hit_rate; others are accepted.
    """

    model_config = ConfigDict(plugin_settings={"logfire": {"record": "off"}})

    timestamp: datetime
    metric_type: str
    value: float
    endpoint: str | None = None
    tags: dict[str, str] = Field(default_factory=dict)


class DynamicRules(BaseModel):
    """Rules from the collector that the Guard middleware applies while the app runs."""

    rule_id: str = Field(default="default-rule", description="Identity of the rule set")
    version: int = Field(default=1, description="Grows with every change")
    timestamp: datetime = Field(default_factory=_now, description="When it was made or changed")
    expires_at: datetime | None = Field(default=None, description="Until when it is in force")
    ttl: int = Field(default=300, description="Seconds after which to ask again")

    ip_blacklist: list[str] = Field(default_factory=list, description="Addresses to ban")
    ip_whitelist: list[str] = Field(default_factory=list, description="Addresses to allow")
    ip_ban_duration: int = Field(default=3600, description="Length of a ban in seconds")

    blocked_countries: list[str] = Field(default_factory=list, description="Countries to block")
    whitelist_countries: list[str] = Field(default_factory=list, description="Countries to allow")

    global_rate_limit: int | None = Field(default=None, description="Requests per window")
    global_rate_window: int | None = Field(default=None, description="Window in seconds")
    endpoint_rate_limits: dict[str, tuple[int, int]] = Field(
        default_factory=dict, description="Path to (requests, window in seconds)"
    )

    blocked_cloud_providers: set[str] = Field(
        default_factory=set, description="Cloud providers to block"
    )
    blocked_user_agents: list[str] = Field(default_factory=list, description="Agents to block")
    suspicious_patterns: list[str] = Field(
        default_factory=list, description="Further regular expressions of attacks"
    )

    enable_penetration_detection: bool | None = Field(
        default=None, description="Detect attacks, or not; as the app has it when null"
    )
    enable_ip_banning: bool | None = Field(
        default=None, description="Ban addresses, or not; as the app has it when null"
    )
    enable_rate_limiting: bool | None = Field(
        default=None, description="Limit rates, or not; as the app has it when null"
    )
    auto_ban_threshold: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Suspicious requests before a ban, in place of the app's own"
    )
    auto_ban_duration: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Length of an automatic ban in seconds, in place of the app's own"
    )
    enable_rate_limit_auto_ban: bool | None = Field(
        default=None,
        description="Ban who exceeds a rate limit, or not; as the app has it when null",
    )

    emergency_mode: bool = Field(default=False, description="Lock the app down")
    emergency_whitelist: list[str] = Field(
        default_factory=list, description="Addresses that still pass in emergency mode"
    )
    emergency_whitelist_only: bool = Field(default=False, description="Let only those pass")
    message: str | None = Field(default=None, description="A word from the publisher")


class AgentStatus(BaseModel):
    """How the agent is."""

    timestamp: datetime
    status: Literal["healthy", "degraded", "failed"]
    uptime: float
    """Seconds since the agent started."""
    events_sent: int
    events_failed: int
    """Records given up: dropped for any reason, or refused by the collector for good."""
    buffer_size: int
    """Records that wait for at least one destination."""
    last_flush: datetime | None = None
    errors: list[str] = Field(default_factory=list)
    pid: int | None = None
    """The process that reports: several may share an install id."""
    plan: dict[str, list[str]] = Field(default_factory=dict)
    """What is in use, in the order of execution: enrichers, store, transports, rules."""
    level: str = "memory"
    """What a record survives: ``memory`` nothing, ``journal`` the end of the process."""
    loss_window_seconds: float | None = None
    """How old a record may be that is lost when the process is killed; None for any age."""
    store: dict[str, Any] = Field(default_factory=dict)
    """What the store says of itself."""
    rollup: dict[str, Any] = Field(default_factory=dict)
    """
    What merges records says of itself: ``open`` records wait for ``interval`` seconds at most, and
    are lost when the process is killed; ``loss_window_seconds`` is about all others.
    """
    rules: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Of every rule source: what is in force, how old that is, whether it is ``stale``."""
    destinations: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """
    The books of each: accepted, delivered, dropped by reason, buried, merged, dead_letters,
    pending, pending_bytes, oldest_seconds, requests, failures, breaker, last_error.
    """


class EventBatch(BaseModel):
    """The body of a batch on the wire, as a model."""

    model_config = ConfigDict(plugin_settings={"logfire": {"record": "off"}})

    project_id: str
    events: list[SecurityEvent] = Field(default_factory=list)
    metrics: list[SecurityMetric] = Field(default_factory=list)
    batch_id: str
    created_at: datetime
    compressed: bool = Field(default=False)
    agent_version: str | None = Field(default=None, description="Version of this agent")
    guard_version: str | None = Field(default=None, description="Version of the Guard adapter")
    guard_core_version: str | None = Field(default=None, description="Version of guard-core")
