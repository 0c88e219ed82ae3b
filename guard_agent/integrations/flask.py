"""The agent as an extension of a Flask app."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard_agent import AgentConfig
from guard_agent.client import SyncGuardAgentHandler

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["init_app"]


def init_app(app: Flask, config: AgentConfig | None = None) -> SyncGuardAgentHandler:
    """
    Give a Flask app an agent, which is also ``app.extensions["guard_agent"]``.

    It starts with the first record, in the process that takes it, so that this may be called before
    a server forks its workers. What a process holds is delivered when it ends: gunicorn leaves it
    the time.

    Args:
        app: May be made before this is called or by a factory.
        config: None takes ``app.config["GUARD_AGENT"]``, an `AgentConfig` or a mapping of its
            settings; when there is none, the configuration file describes the agent.

    Raises:
        ConfigurationError: the agent cannot be composed as configured; names every problem.
        pydantic.ValidationError: ``app.config["GUARD_AGENT"]`` has settings that are wrong.
    """
    given = app.config.get("GUARD_AGENT") if config is None else config
    agent = SyncGuardAgentHandler(
        given if given is None or isinstance(given, AgentConfig) else AgentConfig(**given)
    )
    app.extensions["guard_agent"] = agent
    return agent
