"""The documented import path of the exceptions; they are defined in `guard_agent.core.errors`."""

from guard_agent.core.errors import (
    BufferFullError,
    ConfigurationError,
    DeliveryError,
    EncryptionConfigError,
    GuardAgentError,
    PayloadTooLargeError,
    PermanentClientError,
)

__all__ = [
    "BufferFullError",
    "ConfigurationError",
    "DeliveryError",
    "EncryptionConfigError",
    "GuardAgentError",
    "PayloadTooLargeError",
    "PermanentClientError",
]
