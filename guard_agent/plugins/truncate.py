"""The enricher ``truncate``: cuts long texts and says which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from guard_agent import (
    Enricher,
    EnrichFunction,
    Fields,
    Kind,
    PluginSettings,
    Stage,
    TextRules,
    hookimpl,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MARKER = "...[TRUNCATED]"
MARK = "guard.truncated"
_EXEMPT = frozenset(
    {"idempotency_key", "timestamp", "event_type", "metric_type", "ip_address", "method"}
)
_MOST_PATHS = 20
_LONGEST_PATH = 100


class TruncateSettings(PluginSettings):
    max_length: int | None = Field(
        default=None,
        ge=0,
        description="Most characters of one text; max_payload_size when not given",
    )


class TruncateEnricher(Enricher):
    """
    Cuts every text of a record that is longer than ``max_length`` characters.

    A cut text is its first ``max_length`` characters and ``...[TRUNCATED]``. What identifies a
    record (its key, type, address and method) stays whole, and so do names of fields. Which texts
    were cut, as dotted paths and at most 20 of them, is a list in ``metadata["guard.truncated"]``
    of an event, and joined with commas in ``tags["guard.truncated"]`` of a metric.
    """

    name = "truncate"
    stage: ClassVar[Stage] = Stage.SEAL
    adds: ClassVar[frozenset[str]] = frozenset({f"metadata.{MARK}", f"tags.{MARK}"})
    Settings = TruncateSettings
    settings: TruncateSettings

    @property
    def _limit(self) -> int:
        limit = self.settings.max_length
        return self.context.config.max_payload_size if limit is None else limit

    def bind(self, kind: Kind) -> EnrichFunction | None:
        limit = self._limit

        def truncate(fields: Fields) -> Fields:
            # Nearly always nothing is too long, and looking makes no objects.
            if _any_longer(fields.values(), limit):
                cut: list[str] = []
                _truncate_fields(fields, limit, cut)
                if cut:
                    _mark(fields, kind, cut)
            return fields

        return truncate

    def text_rules(self, kind: Kind) -> TextRules | None:  # noqa: ARG002 - both alike
        limit = self._limit

        def keeps(texts: Sequence[str]) -> bool:
            # All together are nearly always short enough, and that is quickly seen.
            return len("".join(texts)) <= limit or max(map(len, texts)) <= limit

        return TextRules(replaced=lambda _: {}, keeps=keeps)


def _any_longer(values: Iterable[Any], limit: int) -> bool:
    for value in values:
        if value is None:
            continue
        kind = type(value)
        if kind is str:
            if len(value) > limit:
                return True
        elif kind is dict:
            if _any_longer(value.values(), limit):
                return True
        elif kind is list and _any_longer(value, limit):
            return True
    return False


def _truncate_fields(fields: Fields, limit: int, cut: list[str]) -> None:
    for key, value in fields.items():
        if key not in _EXEMPT:
            fields[key] = _truncated(value, key, limit, cut)


def _truncated(value: Any, path: str, limit: int, cut: list[str]) -> Any:
    """``value`` with all its texts cut; ``cut`` receives the paths of those that were."""
    if isinstance(value, str):
        if len(value) <= limit:
            return value
        if len(cut) < _MOST_PATHS:
            cut.append(path)
        return value[:limit] + MARKER
    # A path that is not going to be shown in full needs not grow with the depth.
    parent = path[:_LONGEST_PATH]
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _truncated(item, f"{parent}.{key[:_LONGEST_PATH]}", limit, cut)
    elif isinstance(value, list):
        value[:] = [_truncated(item, f"{parent}.{n}", limit, cut) for n, item in enumerate(value)]
    return value


def _mark(fields: Fields, kind: Kind, cut: list[str]) -> None:
    paths = [path[:_LONGEST_PATH] for path in cut]
    home, mark = ("metadata", paths) if kind == "event" else ("tags", ",".join(paths))
    holder = fields.get(home)
    if holder is None:
        holder = fields[home] = {}
    if isinstance(holder, dict):  # else the record is not of our shape, and the texts say it
        holder[MARK] = mark


@hookimpl
def guard_agent_enrichers() -> list[type[Enricher]]:
    return [TruncateEnricher]
