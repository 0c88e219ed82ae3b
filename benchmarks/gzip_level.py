"""What each gzip level costs and saves on batches of security events; chooses the level of http."""

from __future__ import annotations

import statistics
import time
import zlib

from sides.common import event_fields

from guard_agent import SecurityEvent
from guard_agent.core.intake.pipeline import Pipeline

RECORDS = 230  # about 256 KiB
ROUNDS = 15


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
    print(f"{len(plain) / RECORDS:.0f} bytes per record before compression")
    for level in (1, 2, 3, 4, 6, 9):
        times, size = [], 0
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            packer = zlib.compressobj(level, zlib.DEFLATED, 31)
            size = len(packer.compress(plain) + packer.flush())
            times.append(time.perf_counter() - begun)
        cost = statistics.median(times) / RECORDS * 1e6
        print(f"level {level}: {cost:5.2f} us and {size / RECORDS:5.1f} bytes per record")


if __name__ == "__main__":
    main()
