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
        now = get_current_timestamp()
        return content + len(self._wrap("event", b"", _ANY_BATCH_ID, now, compressed=False))

    def wrap(self, batch: Batch, *, compressed: bool) -> bytes:
        return self._wrap(
            batch.kind, batch.join(), batch.id, get_current_timestamp(), compressed=compressed
        )

    def _wrap(
        self, kind: Kind, records: bytes, batch_id: str, created_at: datetime, *, compressed: bool
    ) -> bytes:
        moment = created_at.isoformat(timespec="microseconds").replace("+00:00", "Z")
        return b"".join(
            [
                self._head,
                b",",
                _lists(kind, records),
                b',"batch_id":',
                orjson.dumps(batch_id),
                b',"created_at":',
                orjson.dumps(moment),
                b',"compressed":',
                b"true" if compressed else b"false",
                self._tail,
            ]
        )


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
        return plain_room(limit - outside) - len(self._inside("event", b""))

    def size(self, content: int) -> int:
        inside = content + len(self._inside("event", b""))
        return sealed_size(inside) + len(self._wrap(b"", _ANY_BATCH_ID))

    def wrap(self, batch: Batch, *, compressed: bool) -> bytes:  # noqa: ARG002 - not in this form
        return self._wrap(self._cipher.seal(self._inside(batch.kind, batch.join())), batch.id)

    def _inside(self, kind: Kind, records: bytes) -> bytes:
        return b"{" + _lists(kind, records) + b"}"

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


def _lists(kind: Kind, records: bytes) -> bytes:
    events, metrics = (records, b"") if kind == "event" else (b"", records)
    return b'"events":[' + events + b'],"metrics":[' + metrics + b"]"


def _versions(config: AgentConfig) -> bytes:
    fields = {
        "agent_version": __version__,
        "guard_version": config.guard_version,
        "guard_core_version": config.guard_core_version,
    }
    return orjson.dumps(fields)[1:-1]
