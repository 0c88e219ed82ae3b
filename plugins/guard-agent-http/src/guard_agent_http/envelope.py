"""The body of a request: what stands around the records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import orjson

from guard_agent import __version__, get_current_timestamp
from guard_agent_http.encryption import plain_room, sealed_size

if TYPE_CHECKING:
    from datetime import datetime

    from guard_agent import AgentConfig, Batch, Kind
    from guard_agent_http.encryption import Cipher

_ANY_BATCH_ID = "0" * 32
# What stands before the records of a kind, and behind them: as long for each.
_LISTS: dict[Kind, tuple[bytes, bytes]] = {
    "event": (b'"events":[', b'],"metrics":[]'),
    "metric": (b'"events":[],"metrics":[', b"]"),
}
_SEALED_AROUND = len(b"{" + b"".join(_LISTS["event"]) + b"}")


class Envelope(Protocol):
    """Turns a batch into a body. The records are joined, not decoded and encoded again."""

    def path(self, kind: Kind) -> str:
        """Where the collector takes it."""

    def room(self, limit: int) -> int:
        """Bytes of records and the commas between them that fit a body of ``limit`` bytes."""

    def size(self, content: int) -> int:
        """Most bytes of the body around ``content`` bytes of records and commas."""

    def wrap(self, batch: Batch, *, compressed: bool) -> bytes:
        """The body. ``compressed`` says what will happen to it."""


class PlainEnvelope:
    """The body of a batch in the form of `guard_agent.EventBatch`."""

    def __init__(self, project_id: str | None, config: AgentConfig) -> None:
        self._head = b'{"project_id":' + orjson.dumps(project_id or "default")
        self._tail = b"," + _versions(config) + b"}"

    def path(self, kind: Kind) -> str:
        return "/api/v1/events" if kind == "event" else "/api/v1/metrics"

    def room(self, limit: int) -> int:
        return limit - self.size(0)

    def size(self, content: int) -> int:
        before, behind = self._around(
            "event", _ANY_BATCH_ID, get_current_timestamp(), compressed=False
        )
        return len(before) + content + len(behind)

    def wrap(self, batch: Batch, *, compressed: bool) -> bytes:
        around = self._around(batch.kind, batch.id, get_current_timestamp(), compressed=compressed)
        return _enclose(batch, *around)

    def _around(
        self, kind: Kind, batch_id: str, created_at: datetime, *, compressed: bool
    ) -> tuple[bytes, bytes]:
        before, behind = _LISTS[kind]
        moment = created_at.isoformat(timespec="microseconds").replace("+00:00", "Z")
        about = [
            behind,
            b',"batch_id":',
            orjson.dumps(batch_id),
            b',"created_at":',
            orjson.dumps(moment),
            b',"compressed":',
            b"true" if compressed else b"false",
            self._tail,
        ]
        return self._head + b"," + before, b"".join(about)


class SealedEnvelope:
    """
    The body of an encrypted batch.

    Inside, where only the holder of the key looks, are the records of one kind; outside is what
    the collector needs to sort it. The project is known from the header.
    """

    def __init__(self, cipher: Cipher, key_id: str | None, config: AgentConfig) -> None:
        self._cipher = cipher
        key = b"" if key_id is None else b'"key_id":' + orjson.dumps(key_id) + b","
        self._tail = b"," + key + _versions(config) + b"}"

    def path(self, kind: Kind) -> str:  # noqa: ARG002 - both kinds go to one place
        return "/api/v1/events/encrypted"

    def room(self, limit: int) -> int:
        outside = len(self._wrap(b"", _ANY_BATCH_ID))
        return plain_room(limit - outside) - _SEALED_AROUND

    def size(self, content: int) -> int:
        return sealed_size(content + _SEALED_AROUND) + len(self._wrap(b"", _ANY_BATCH_ID))

    def wrap(self, batch: Batch, *, compressed: bool) -> bytes:  # noqa: ARG002 - not in this form
        before, behind = _LISTS[batch.kind]
        inside = _enclose(batch, b"{" + before, behind + b"}")
        return self._wrap(self._cipher.seal(inside), batch.id)

    def _wrap(self, payload: bytes, batch_id: str) -> bytes:
        return b"".join(
            [
                b'{"encrypted_payload":"',
                payload,  # base64 needs no escapes
                b'","batch_id":',
                orjson.dumps(batch_id),
                self._tail,
            ]
        )


def _enclose(batch: Batch, before: bytes, behind: bytes) -> bytes:
    """The records with commas between them, in one copy: a body is large."""
    payloads = [record.payload for record in batch.records] or [b""]
    payloads[0] = before + payloads[0]
    payloads[-1] += behind
    return b",".join(payloads)


def _versions(config: AgentConfig) -> bytes:
    fields = {
        "agent_version": __version__,
        "guard_version": config.guard_version,
        "guard_core_version": config.guard_core_version,
    }
    return orjson.dumps(fields)[1:-1]
