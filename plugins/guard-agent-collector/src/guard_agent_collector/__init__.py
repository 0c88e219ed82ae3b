"""
A collector for one machine, with a page that shows what arrives: ``guard-agent collector``.

It speaks the ingest API of the agent and OTLP/HTTP in JSON, keeps what it got in SQLite, publishes
rules, and can do on purpose what collectors do by accident.
"""

from __future__ import annotations

from guard_agent_collector.server import CollectorServer, ServerOptions

__all__ = ["CollectorServer", "ServerOptions"]
