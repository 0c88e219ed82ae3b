"""
How records lie in a stream entry, and dead letters in their list.

An entry holds records of one priority: ``h``, a row of 15 bytes for each, and ``b``, their ids and
payloads one after the other. The script of the server reads the rows, so their layout is written
down there as well.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from guard_agent import DeadLetter, Priority, Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERSION = "1"
MAX_CHUNK_RECORDS = 1000
MAX_CHUNK_BYTES = 1280 * 1024
"""
An entry frees its memory with the last of its records, so one that stays behind holds on to the
others: the price of a record that nobody takes is bounded by this. An append of 1,000 events is one
entry at their usual size.
"""

# Payload bytes, id bytes, whether it is a metric, time of acceptance.
_ROW = struct.Struct("<IHBd")
# The same, then priority and reason bytes; followed by id, reason and payload.
_LETTER = struct.Struct("<IHBdBH")
_POSITION = struct.Struct("<HI")
_MAX_TEXT = 0xFFFF

Chunk = tuple[int, int, int, bytes, bytes]
"""Priority, number of records, payload bytes, rows, bodies."""


def encode(records: Sequence[Record]) -> list[Chunk]:
    """The records in chunks of one priority, in order within each priority."""
    chunks: list[Chunk] = []
    # By priority, the lowest first: rows, bodies, payload bytes.
    gathered: dict[int, tuple[list[bytes], list[bytes], list[int]]] = {}
    for record in records:
        payload = record.payload
        size = len(payload)
        row, body, sizes = gathered.setdefault(int(record.priority), ([], [], [0]))
        if row and (len(row) >= MAX_CHUNK_RECORDS or sizes[0] + size > MAX_CHUNK_BYTES):
            chunks.append(_chunk(record.priority, row, body, sizes))
            row, body, sizes = gathered[int(record.priority)] = ([], [], [0])
        name = record.id.encode()[:_MAX_TEXT]
        row.append(_ROW.pack(size, len(name), record.kind == "metric", record.accepted_at))
        body += (name, payload)
        sizes[0] += size
    chunks += [_chunk(priority, *parts) for priority, parts in gathered.items()]
    return chunks


def _chunk(priority: int, row: list[bytes], body: list[bytes], sizes: list[int]) -> Chunk:
    return int(priority), len(row), sizes[0], b"".join(row), b"".join(body)


def decode(priority: int, rows: bytes, bodies: bytes) -> Iterator[Record]:
    """The records of an entry or a part of it, which the script has checked."""
    level = Priority(priority)
    end = 0
    for size, length, is_metric, accepted in _ROW.iter_unpack(rows):
        middle = end + length
        name = bodies[end:middle].decode(errors="replace")
        end = middle + size
        yield Record(name, "metric" if is_metric else "event", level, bodies[middle:end], accepted)


def encode_position(position: int, record: Record) -> bytes:
    """Position in the entry and payload bytes: what the books need to settle a record."""
    return _POSITION.pack(position, len(record.payload))


def encode_letter(record: Record, reason: str) -> bytes:
    name = record.id.encode()[:_MAX_TEXT]
    why = reason.encode()[:_MAX_TEXT]
    head = _LETTER.pack(
        len(record.payload),
        len(name),
        record.kind == "metric",
        record.accepted_at,
        record.priority,
        len(why),
    )
    return b"".join((head, name, why, record.payload))


def decode_letter(letter: bytes) -> DeadLetter:
    size, length, is_metric, accepted, priority, why = _LETTER.unpack_from(letter)
    start = _LETTER.size
    name = letter[start : start + length].decode(errors="replace")
    start += length
    reason = letter[start : start + why].decode(errors="replace")
    start += why
    record = Record(
        name,
        "metric" if is_metric else "event",
        Priority(priority),
        letter[start : start + size],
        accepted,
    )
    return DeadLetter(record, reason)
