"""The transport ``console``: one line for each record, for people who look at a terminal."""

from __future__ import annotations

import sys
from typing import Any, Literal, TextIO

import orjson
from pydantic import Field

from guard_agent import (
    Accepted,
    AgentStatus,
    Batch,
    PluginSettings,
    Record,
    Retry,
    SendResult,
    Transport,
    hookimpl,
)

_LONGEST_VALUE = 200


class ConsoleSettings(PluginSettings):
    stream: Literal["stdout", "stderr"] = Field(default="stderr", description="Where to write")
    format: Literal["line", "json"] = Field(
        default="line", description="'line' is for people, 'json' the record as it is sent"
    )


class ConsoleTransport(Transport):
    """
    Writes records to standard output or standard error.

    Much of a record was written by an attacker. Whatever could forge a line or drive the terminal
    (control characters, escape sequences, direction marks) is shown escaped.
    """

    name = "console"
    Settings = ConsoleSettings
    settings: ConsoleSettings

    async def send(self, batch: Batch) -> SendResult:
        write = as_json if self.settings.format == "json" else as_line
        return self._write([write(record) for record in batch.records])

    async def report(self, status: AgentStatus) -> SendResult:
        if self.settings.format == "json":
            return self._write([_escape_json(status.model_dump_json())])
        return self._write([_status_line(status)])

    def _write(self, lines: list[str]) -> SendResult:
        # Looked up for each attempt: programs and test runners replace the streams.
        stream: TextIO | None = getattr(sys, self.settings.stream)
        if stream is None:
            return Retry(f"{self.settings.stream} is closed")
        text = "".join([f"{line}\n" for line in lines])
        encoding = getattr(stream, "encoding", None) or "utf-8"
        try:
            # Under LANG=C the stream cannot take everything that is printable.
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
        except ValueError:  # what a closed stream raises
            return Retry(f"{self.settings.stream} is closed")
        except OSError as error:
            return Retry(f"cannot write to {self.settings.stream}: {error.strerror or error}")
        return Accepted()


def as_json(record: Record) -> str:
    """One record as it is sent, on one line, with what could drive a terminal escaped."""
    text = record.payload.decode("utf-8", "replace")
    if "\n" in text or "\r" in text:  # allowed between the tokens of a JSON object
        text = orjson.dumps(orjson.loads(text)).decode()
    return _escape_json(text)


def _escape_json(text: str) -> str:
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() else _json_escape(c) for c in text])


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join([f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)])


def as_line(record: Record) -> str:
    """
    One record for people, such as
    ``2026-01-31T12:00:00Z  ip_banned  203.0.113.7  GET /login 403  banned: too many requests``.
    """
    fields: dict[str, Any] = orjson.loads(record.payload)
    get = fields.get
    if record.kind == "metric":
        tags = get("tags")
        groups: list[list[Any]] = [
            [get("timestamp")],
            [get("metric_type")],
            [get("value")],
            [get("endpoint")],
            [f"{key}={value}" for key, value in tags.items()] if isinstance(tags, dict) else [],
        ]
        return "  ".join(_joined(groups))
    groups = [
        [get("timestamp")],
        [get("event_type")],
        [get("ip_address"), get("country")],
        [get("method"), get("endpoint"), get("status_code")],
    ]
    explanation = ": ".join(_joined([[get("action_taken")], [get("reason")]]))
    return "  ".join([*_joined(groups), explanation]).rstrip()


def _status_line(status: AgentStatus) -> str:
    line = (
        f"{status.timestamp.isoformat()}  agent {status.status}  sent {status.events_sent}  "
        f"failed {status.events_failed}  waiting {status.buffer_size}  up {status.uptime:.0f} s"
    )
    return "  ".join([line, *[_clean(error) for error in status.errors]])


def _joined(groups: list[list[Any]]) -> list[str]:
    """Each group as one text, without what is missing or empty."""
    texts = (
        " ".join([_clean(value) for value in group if value is not None and value != ""])
        for group in groups
    )
    return [text for text in texts if text]


def _clean(value: object) -> str:
    """Foreign text, bounded and on one line, with everything escaped that is not printable."""
    text = str(value)
    if len(text) > _LONGEST_VALUE:
        text = f"{text[:_LONGEST_VALUE]}..."
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() else _escape(c) for c in text])


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


@hookimpl
def guard_agent_transports() -> list[type[Transport]]:
    return [ConsoleTransport]
