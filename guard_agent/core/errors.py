"""Exceptions that reach the application, and problems found while composing the agent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class GuardAgentError(Exception):
    """Base of all exceptions of guard-agent."""


class BufferFullError(GuardAgentError):
    """The buffer is full and ``buffer_overflow_policy`` is ``raise``."""


class PermanentClientError(GuardAgentError):
    """The collector refused a record for good; passed to ``on_error``."""

    def __init__(self, status_code: int, detail: str = "") -> None:
        self.status_code = status_code
        self.detail = detail
        super().__init__(
            f"the collector answered {status_code}: {detail}"
            if detail
            else f"the collector answered {status_code}"
        )


class PayloadTooLargeError(PermanentClientError):
    """A single record is larger than the collector takes; passed to ``on_error``."""

    def __init__(self, detail: str = "") -> None:
        super().__init__(413, detail)


class DeliveryError(GuardAgentError):
    """An attempt to deliver failed and will be repeated; passed to ``on_error``."""


class EncryptionConfigError(GuardAgentError, ValueError):
    """The encryption key cannot be used."""


@dataclass(frozen=True, slots=True)
class Problem:
    """
    Something wrong with the configuration or an installed plugin.

    ``code`` is stable and can be searched for. A problem that is ``fatal`` keeps the agent from
    starting; any other costs only the plugin it is about.
    """

    code: str
    message: str
    """What is wrong and where."""
    fix: str
    """How to mend it."""
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.code}: {self.message}\n    fix: {self.fix}"


class ConfigurationError(GuardAgentError, ValueError):
    """The agent cannot be composed as configured. Carries every problem that was found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "guard-agent cannot start" + (f", {count} problems:" if count > 1 else ":")
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))
