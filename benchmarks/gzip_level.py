"""What each gzip level costs and saves on batches of events; chooses the level of http."""

from __future__ import annotations

import statistics
import time
import zlib
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from sides.common import event_fields

from guard_agent import SecurityEvent
from guard_agent.core.intake.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

RECORDS = 230  # about 256 KiB
ROUNDS = 15
GZIP = 31
"""Window bits for the format."""


def body() -> bytes:
    """Events that differ where real ones do, as JSON."""
    pipeline = Pipeline([])
    payloads = []
    for number in range(RECORDS):
        record = pipeline.encode("event", SecurityEvent(**event_fields(number)))
        assert not isinstance(record, str)
        payloads.append(record.payload)
    return b",".join(payloads)


def main() -> None:
    plain = body()
    packers: list[tuple[str, Callable[[], Any]]] = [
        (f"zlib {level}", partial(zlib.compressobj, level, zlib.DEFLATED, GZIP))
        for level in (1, 2, 3, 4, 6, 9)
    ]
    with suppress(ImportError):
        from isal import isal_zlib

        packers += [
            (f"isal {level}", partial(isal_zlib.compressobj, level, isal_zlib.DEFLATED, GZIP))
            for level in (0, 1, 2, 3)
        ]
    print(f"{len(plain) / RECORDS:.0f} bytes per record before compression")
    for name, make in packers:
        times, size = [], 0
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            packer = make()
            size = len(packer.compress(plain) + packer.flush())
            times.append(time.perf_counter() - begun)
        cost = statistics.median(times) / RECORDS * 1e6
        print(f"{name}: {cost:5.2f} us and {size / RECORDS:5.1f} bytes per record")


if __name__ == "__main__":
    main()
