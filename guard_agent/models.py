"""The documented import path of the data models; they are defined in `guard_agent.core.models`."""

from guard_agent.core.config import AgentConfig
from guard_agent.core.models import (
    AgentStatus,
    DynamicRules,
    EventBatch,
    SecurityEvent,
    SecurityMetric,
)

__all__ = [
    "AgentConfig",
    "AgentStatus",
    "DynamicRules",
    "EventBatch",
    "SecurityEvent",
    "SecurityMetric",
]
