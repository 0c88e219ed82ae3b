"""
Enricher that removes secrets from events and metrics before anything keeps or sends them.

`names` says which names are sensitive, `shapes` and `pairs` find secrets in texts, `redactor`
walks through the records.
"""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from guard_agent import (
    Enricher,
    EnrichFunction,
    Kind,
    PluginSettings,
    Stage,
    hookimpl,
)
from guard_agent_redaction.names import SensitiveNames, squash
from guard_agent_redaction.redactor import NOT_INSPECTED, Redactor
from guard_agent_redaction.shapes import REDACTED

__all__ = ["NOT_INSPECTED", "REDACTED", "RedactionEnricher", "RedactionSettings"]


class RedactionSettings(PluginSettings):
    """What to redact besides the built-in names and shapes, and what to leave."""

    names: list[str] = Field(
        default_factory=list, description="Further names whose values are redacted"
    )
    keep: list[str] = Field(
        default_factory=list,
        description=(
            "Names whose values are not redacted because of the name; does not overrule the "
            "agent's sensitive_headers"
        ),
    )
    patterns: list[str] = Field(
        default_factory=list,
        description=(
            "Regular expressions whose matches are redacted in every text. They run in the thread "
            "of the host: keep them linear"
        ),
    )

    @field_validator("names", "keep")
    @classmethod
    def _check_names(cls, value: list[str]) -> list[str]:
        for position, name in enumerate(value):
            if not squash(name):
                msg = f"item {position} holds no letter or digit, so it names nothing; remove it"
                raise ValueError(msg)
        return value

    @field_validator("patterns")
    @classmethod
    def _check_patterns(cls, value: list[str]) -> list[str]:
        for position, pattern in enumerate(value):
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                msg = f"item {position} is not a regular expression: {error}"
                raise ValueError(msg) from None
            if compiled.search(""):
                msg = (
                    f"item {position} matches the empty text, so it would match everywhere; "
                    "make it ask for at least one character"
                )
                raise ValueError(msg)
        return value


class RedactionEnricher(Enricher):
    """Replaces secrets by ``[REDACTED]`` in all fields of events and metrics."""

    name = "redaction"
    stage = Stage.REDACT
    Settings = RedactionSettings

    settings: RedactionSettings

    def bind(self, kind: Kind) -> EnrichFunction:  # noqa: ARG002 - both kinds are treated alike
        names = SensitiveNames(
            always=self.context.config.sensitive_headers,
            extra=self.settings.names,
            keep=self.settings.keep,
        )
        patterns = [re.compile(pattern) for pattern in self.settings.patterns]
        return Redactor(names, patterns).record


@hookimpl
def guard_agent_enrichers() -> list[type[Enricher]]:
    return [RedactionEnricher]
