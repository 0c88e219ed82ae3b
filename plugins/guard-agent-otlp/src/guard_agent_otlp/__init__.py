"""Delivery to an OpenTelemetry collector as log records: the transport ``otlp``."""

from __future__ import annotations

from guard_agent import hookimpl
from guard_agent_otlp.settings import OtlpSettings
from guard_agent_otlp.transport import OtlpTransport

__all__ = ["OtlpSettings", "OtlpTransport"]


@hookimpl
def guard_agent_transports() -> list[type[OtlpTransport]]:
    return [OtlpTransport]
