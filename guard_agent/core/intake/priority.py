"""Which class a record belongs to, by its type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard_agent.core.interfaces import Priority

if TYPE_CHECKING:
    from collections.abc import Mapping

_CHANGES = (
    "ip_unbanned",
    "dynamic_rule_applied",
    "dynamic_rule_updated",
    "emergency_mode_activated",
    "pattern_added",
    "pattern_removed",
)

_DIAGNOSTICS = (
    "csp_violation",
    "decoding_error",
    "detection_engine_callback_error",
    "geo_lookup_failed",
    "https_enforced",
    "path_excluded",
    "pattern_anomaly_slow_execution",
    "pattern_anomaly_statistical_anomaly",
    "pattern_anomaly_timeout",
    "rate_limit_script_reloaded",
    "redis_connection",
    "redis_error",
    "route_unresolved",
    "security_headers_applied",
)

_EVENTS = {
    "ip_banned": Priority.CHANGE,
    "ip_ban_failed": Priority.CHANGE,
    **dict.fromkeys(_CHANGES, Priority.CHANGE),
    **dict.fromkeys(_DIAGNOSTICS, Priority.DIAGNOSTIC),
}


class EventPriorities:
    """The class of each event type, with those that the owner set."""

    def __init__(self, overrides: Mapping[str, str] | None = None) -> None:
        """``overrides`` has names of classes, in lower case, by event type."""
        own = {name: Priority[value.upper()] for name, value in (overrides or {}).items()}
        self.classes = {**_EVENTS, **own}
        """By event type; what is not in it counts as an attack."""

    def of(self, event_type: object) -> Priority:
        """
        The class of an event.

        An unknown type counts as an attack: what nobody classified must not be the first to go.
        """
        if not isinstance(event_type, str):
            return Priority.DIAGNOSTIC
        return self.classes.get(event_type, Priority.ATTACK)
