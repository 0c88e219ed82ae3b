"""Where Django looks for the configuration of an app."""

from __future__ import annotations

from django.apps import AppConfig
from django.conf import settings

from guard_agent import AgentConfig
from guard_agent.client import SyncGuardAgentHandler

__all__ = ["GuardAgentAppConfig"]


class GuardAgentAppConfig(AppConfig):  # type: ignore[misc]  # Django has no annotations
    """Makes the agent when Django is set up, so that a mistake in its settings shows then."""

    name = "guard_agent.integrations.django"
    label = "guard_agent"
    verbose_name = "Guard agent"

    def ready(self) -> None:
        given = getattr(settings, "GUARD_AGENT", None)
        SyncGuardAgentHandler(
            given if given is None or isinstance(given, AgentConfig) else AgentConfig(**given)
        )
