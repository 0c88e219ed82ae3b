"""The bytes of an entry and of a dead letter."""

from __future__ import annotations

import struct

import pytest

from guard_agent import DeadLetter, Priority, Record
from guard_agent.testing.records import make_record, make_records
from guard_agent_redis.codec import (
    decode,
    decode_letter,
    encode,
    encode_letter,
    encode_position,
)

ATTACK = Record("ä-1", "event", Priority.ATTACK, b"\x00payload\xff", 12.5)
METRIC = Record("m", "metric", Priority.METRIC, b"{}", 1e9 + 0.25)


def test_an_entry_is_what_the_script_reads():
    """Rows of 15 bytes (payload bytes, id bytes, metric, time), then ids and payloads."""
    (chunk,) = encode([ATTACK, Record("b", "metric", Priority.ATTACK, b"xy", 1.0)])

    rows = struct.pack("<IHBd", 9, 4, 0, 12.5) + struct.pack("<IHBd", 2, 1, 1, 1.0)
    assert chunk == (3, 2, 11, rows, "ä-1".encode() + b"\x00payload\xff" + b"bxy")
    assert encode_position(258, ATTACK) == struct.pack("<HI", 258, 9)


def test_each_priority_has_chunks_of_its_own_in_order():
    records = [make_record(n, priority=Priority(n % 4)) for n in range(1, 41)]

    chunks = encode(records)

    assert sorted(chunk[0] for chunk in chunks) == [0, 1, 2, 3]
    for priority, amount, size, rows, bodies in chunks:
        expected = [record for record in records if record.priority == priority]
        assert list(decode(priority, rows, bodies)) == expected
        assert (amount, size) == (10, sum(len(record.payload) for record in expected))


def test_nothing_makes_no_chunk():
    assert encode([]) == []


@pytest.mark.parametrize(
    ("sizes", "amounts"),
    [
        ([60] * 1000, [1000]),
        ([60] * 1001, [1000, 1]),
        ([655_360, 655_360], [2]),
        ([655_360, 655_360, 100], [2, 1]),
        ([2_000_000, 100], [1, 1]),
        ([100, 1_310_720, 100], [1, 1, 1]),
    ],
)
def test_a_chunk_holds_a_thousand_records_or_1280_kib(sizes, amounts):
    records = [
        Record(f"r{n}", "event", Priority.CHANGE, b"x" * size, float(n))
        for n, size in enumerate(sizes)
    ]

    chunks = encode(records)

    assert [chunk[1] for chunk in chunks] == amounts
    assert sum(chunk[2] for chunk in chunks) == sum(sizes)
    found = [record for chunk in chunks for record in decode(chunk[0], chunk[3], chunk[4])]
    assert found == records


def test_an_id_that_is_too_long_is_cut():
    long = Record("x" * 70_000, "event", Priority.CHANGE, b"{}", 1.0)

    ((_, _, size, rows, bodies),) = encode([long, METRIC])[:1]
    (found,) = decode(2, rows, bodies)
    letter = decode_letter(encode_letter(long, "y" * 70_000))

    assert size == 2
    assert (found.id, found.payload) == ("x" * 65_535, b"{}")
    assert (letter.record.id, letter.reason) == ("x" * 65_535, "y" * 65_535)
    assert letter.record.payload == b"{}"


def test_what_others_wrote_into_an_id_is_shown_somehow():
    rows = struct.pack("<IHBd", 2, 3, 0, 1.0)

    assert [record.id for record in decode(1, rows, b"a\xffb{}")] == ["a\ufffdb"]
    head = struct.pack("<IHBdBH", 2, 2, 0, 1.0, 1, 2)
    found = decode_letter(head + b"a\xff" + b"\xfez" + b"{}")
    assert (found.record.id, found.reason, found.record.payload) == ("a\ufffd", "\ufffdz", b"{}")


@pytest.mark.parametrize("record", [ATTACK, METRIC, *make_records(1)])
def test_a_dead_letter_comes_back_as_it_was(record):
    letter = encode_letter(record, "zu groß")

    assert decode_letter(letter) == DeadLetter(record, "zu groß")
    name = record.id.encode()
    assert letter == (
        struct.pack(
            "<IHBdBH",
            len(record.payload),
            len(name),
            record.kind == "metric",
            record.accepted_at,
            record.priority,
            8,
        )
        + name
        + "zu groß".encode()
        + record.payload
    )
