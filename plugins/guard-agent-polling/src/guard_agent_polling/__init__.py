"""Dynamic rules from the collector: the rule source ``polling``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pydantic import Field

from guard_agent import (
    FetchResult,
    Paused,
    PluginContext,
    Retry,
    RuleSet,
    RuleSource,
    Unchanged,
    hookimpl,
)
from guard_agent_http import Answer, CollectorClient, CollectorSettings, status_verdict

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PollingSettings", "PollingSource"]

_PATH = "/api/v1/rules"
_MAX_ANSWER_BYTES = 8 * 1024 * 1024
_MAX_VALIDATOR = 512
_SIGNATURE = "X-Rules-Signature"
_WATCH_PATH = f"{_PATH}/watch"
_WATCH_OFFER = "X-Rules-Watch"
_SILENCE = 60.0
"""A stream that says nothing for so long is dead; the collector sends a comment more often."""


class PollingSettings(CollectorSettings):
    """Settings of the rule source. None means: as the agent has it."""

    interval: float | None = Field(
        default=None, ge=1, allow_inf_nan=False, description="Seconds between two polls"
    )
    watch: bool = Field(
        default=True,
        description="Keep a connection open on which a collector that offers it tells of new rules",
    )


class PollingSource(RuleSource):
    """Asks the collector for ``/api/v1/rules``, with an ETag once one is known."""

    name = "polling"
    Settings = PollingSettings
    settings: PollingSettings

    def __init__(self, settings: PollingSettings, context: PluginContext) -> None:
        super().__init__(settings, context)
        self._client = CollectorClient.configured(settings, context.config)
        self._offered = asyncio.Event()
        self._seen: str | None = None

    @property
    def collector(self) -> str:
        return self._client.origin

    @property
    def interval(self) -> float:
        return self.settings.interval or self.context.config.dynamic_rule_interval

    async def open(self) -> None:
        await self._client.open()

    async def close(self) -> None:
        await self._client.close()

    async def fetch(self, known: str | None) -> FetchResult:
        validator = _usable_validator(known)
        answer = await self._client.request(
            "GET",
            _PATH,
            headers={"If-None-Match": validator} if validator else None,
            max_answer_bytes=_MAX_ANSWER_BYTES,
        )
        if not isinstance(answer, Answer):
            return answer
        if self.settings.watch and answer.headers.get(_WATCH_OFFER) == "sse":
            self._offered.set()
        self._seen = _usable_validator(answer.headers.get("ETag"))
        return _verdict(answer)

    async def watch(self, changed: Callable[[], None]) -> None:
        """
        Follow the stream of a collector that offers one; see the README for its form.

        Each message names the ETag of the rules that are out, the first one comes at once: so what
        was published between the last poll and the watch is not missed.
        """
        await self._offered.wait()

        def on_line(line: bytes) -> None:
            name, _, value = line.partition(b":")
            if name == b"data" and value.strip().decode("utf-8", "replace") != (self._seen or ""):
                changed()

        await self._client.follow(
            _WATCH_PATH, on_line, headers={"Accept": "text/event-stream"}, silence=_SILENCE
        )
        self._offered.clear()  # the next poll says whether it is still offered


def _verdict(  # noqa: PLR0911 - one return per kind of result
    answer: Answer,
) -> FetchResult:
    if answer.status == 304:
        return Unchanged()
    if answer.status == 404:
        return Paused(
            "the collector has no rules for this project (404): check endpoint and project_id, "
            "or leave 'polling' out of rules"
        )
    verdict = status_verdict(answer)
    if verdict is not None:
        return verdict
    if answer.status >= 400:
        return Paused(f"the collector refused to give rules: {answer.status} {answer.excerpt}")
    if not answer.body and answer.complete:
        return Unchanged()
    try:
        document = answer.json()
    except ValueError as error:
        return Retry(f"protocol: {error}")
    if not isinstance(document, dict):
        return Retry("protocol: the rules are not a JSON object")
    return RuleSet(
        document,
        _usable_validator(answer.headers.get("ETag")),
        content=answer.body,
        signature=answer.headers.get(_SIGNATURE),
    )


def _usable_validator(text: str | None) -> str | None:
    """An ETag that can be sent back as a header; it may come from a file, or a hostile server."""
    if not text or len(text) > _MAX_VALIDATOR or not text.isascii() or not text.isprintable():
        return None
    return text.strip() or None


@hookimpl
def guard_agent_rule_sources() -> list[type[PollingSource]]:
    return [PollingSource]
