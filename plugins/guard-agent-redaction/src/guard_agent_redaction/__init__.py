"""
Enricher that removes secrets from events and metrics before anything keeps or sends them.

`names` says which names are sensitive, `shapes` and `pairs` find secrets in texts, `policies` is
what the owner decided about single fields, `pseudonyms` makes keyed hashes, and `redactor` walks
through the records.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator

from guard_agent import (
    Enricher,
    EnrichFunction,
    Kind,
    PluginSettings,
    Stage,
    TextRules,
    hookimpl,
)
from guard_agent_redaction.names import SensitiveNames, squash
from guard_agent_redaction.policies import Policies, check_changeable, parse_path, parse_policy
from guard_agent_redaction.pseudonyms import Pseudonyms, check_key
from guard_agent_redaction.redactor import NOT_INSPECTED, Redactor
from guard_agent_redaction.shapes import REDACTED

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NOT_INSPECTED", "REDACTED", "RedactionEnricher", "RedactionSettings"]


def _checked_path(value: str) -> str:
    check_changeable(value)
    return value


def _checked_allowed_path(value: str) -> str:
    parse_path(value)
    return value


def _checked_policy(value: str) -> str:
    parse_policy(value)
    return value


_Path = Annotated[str, AfterValidator(_checked_path)]
_AllowedPath = Annotated[str, AfterValidator(_checked_allowed_path)]
_Policy = Annotated[str, AfterValidator(_checked_policy)]


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

    fields: dict[_Path, _Policy] = Field(
        default_factory=dict,
        description=(
            "What becomes of single fields: a dotted path, such as metadata.user.email, and "
            "'keep', 'drop', 'hash' or 'truncate:<characters>'; '*' in a path is any one name"
        ),
    )
    allow: list[_AllowedPath] | None = Field(
        default=None,
        description=(
            "Paths of the fields that may stay; every other one is dropped. Without it all stay. "
            "What stays is redacted nevertheless"
        ),
    )
    hash_ip: bool = Field(
        default=False,
        description="Replace IP addresses, wherever they stand, by a keyed hash; needs hash_key",
    )
    hash_key: SecretStr | None = Field(
        default=None,
        validate_default=True,
        description="Secret of at least 32 characters for 'hash' and hash_ip; the same everywhere",
    )

    @field_validator("fields", mode="before")
    @classmethod
    def _flatten(cls, value: Any) -> Any:
        # TOML makes tables of what has dots in it: a.b = "hash" without quotes is the same to us.
        return dict(_flat(value, ())) if isinstance(value, Mapping) else value

    @field_validator("fields")
    @classmethod
    def _check_fields(cls, value: dict[str, str]) -> dict[str, str]:
        paths: dict[tuple[str, ...], str] = {}
        for path in value:
            same = paths.setdefault(parse_path(path), path)
            if same != path:
                msg = f"{same!r} and {path!r} are the same field; remove one of them"
                raise ValueError(msg)
        return value

    @field_validator("hash_key")
    @classmethod
    def _check_hash_key(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None:
            check_key(value.get_secret_value())
            return value
        hashed = [path for path, policy in info.data.get("fields", {}).items() if policy == "hash"]
        reason = "hash_ip is on" if info.data.get("hash_ip") else None
        if reason or hashed:
            msg = (
                f"is required, because {reason or f'{hashed[0]} is hashed'}: without a secret key "
                "anybody could try all values and compare. Set it to at least 32 random "
                "characters, the same for all processes, as in ${env:GUARD_HASH_KEY}"
            )
            raise ValueError(msg)
        return None

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
        return self._redactor.record

    def text_rules(self, kind: Kind) -> TextRules | None:  # noqa: ARG002 - both kinds are treated alike
        redactor = self._redactor
        if not redactor.tells_by_text:
            return None
        return TextRules(redactor.replaced, redactor.keeps)

    @cached_property
    def _redactor(self) -> Redactor:
        names = SensitiveNames(
            always=self.context.config.sensitive_headers,
            extra=self.settings.names,
            keep=self.settings.keep,
        )
        settings = self.settings
        policies = {path: parse_policy(text) for path, text in settings.fields.items()}
        key = settings.hash_key
        pseudonyms = (
            Pseudonyms(key.get_secret_value(), self.context.config.project_id or "")
            if key is not None
            else None
        )
        decided = bool(policies) or settings.allow is not None or settings.hash_ip
        return Redactor(
            names,
            [re.compile(pattern) for pattern in settings.patterns],
            Policies(policies, settings.allow, pseudonyms, hash_ip=settings.hash_ip)
            if decided
            else None,
            pseudonyms if settings.hash_ip else None,
        )


def _flat(value: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        here = (*path, str(name))
        if isinstance(item, Mapping):
            yield from _flat(item, here)
        else:
            yield ".".join(here), item


@hookimpl
def guard_agent_enrichers() -> list[type[Enricher]]:
    return [RedactionEnricher]
