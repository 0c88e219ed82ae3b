"""The body of a batch: what stands around the records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from guard_agent import __version__, get_current_timestamp

if TYPE_CHECKING:
    from datetime import datetime

    from guard_agent import AgentConfig, Batch


class Envelope:
    """
    Puts encoded records into a body in the form of `guard_agent.EventBatch`.

    The records are joined, not decoded and encoded again.
    """

    def __init__(self, project_id: str | None, config: AgentConfig) -> None:
        self._head = b'{"project_id":' + orjson.dumps(project_id or "default")
        self._tail = b"".join(
            [
                b',"agent_version":',
                orjson.dumps(__version__),
                b',"guard_version":',
                orjson.dumps(config.guard_version),
                b',"guard_core_version":',
                orjson.dumps(config.guard_core_version),
                b"}",
            ]
        )

    @property
    def size(self) -> int:
        """Bytes of the body that are not records or the commas between them."""
        return len(self._wrap("event", b"", "0" * 32, get_current_timestamp(), compressed=False))

    def wrap(self, batch: Batch, *, compressed: bool) -> bytes:
        return self._wrap(
            batch.kind, batch.join(), batch.id, get_current_timestamp(), compressed=compressed
        )

    def _wrap(
        self, kind: str, records: bytes, batch_id: str, created_at: datetime, *, compressed: bool
    ) -> bytes:
        events, metrics = (records, b"") if kind == "event" else (b"", records)
        moment = created_at.isoformat(timespec="microseconds").replace("+00:00", "Z")
        return b"".join(
            [
                self._head,
                b',"events":[',
                events,
                b'],"metrics":[',
                metrics,
                b'],"batch_id":',
                orjson.dumps(batch_id),
                b',"created_at":',
                orjson.dumps(moment),
                b',"compressed":',
                b"true" if compressed else b"false",
                self._tail,
            ]
        )
