"""The least that the same work can cost on this machine: no agent, only the libraries below one."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import zlib
from typing import Any
from urllib.parse import urlsplit

import orjson
from isal import isal_zlib
from sides.common import (
    Heartbeat,
    Stopwatch,
    collector,
    event_fields,
    expect_received,
    main,
    metric_fields,
    resident,
    settle,
    sink_counts,
)

from guard_agent import SecurityEvent

BATCH = {"event": 230, "metric": 1000}
"""Records in a batch of 256 KiB, or of the most that an agent sends together."""
GZIP = 31
"""Window bits of a gzip stream."""


def send(amount: int, kind: str = "event", **_: Any) -> dict[str, float]:
    """The record as JSON, and nothing more."""
    make = event_fields if kind == "event" else metric_fields
    records = [make(number) for number in range(amount)]
    settle()
    watch = Stopwatch()
    for record in records:
        orjson.dumps(record)
    return watch.read(amount)


def build(amount: int, **_: Any) -> dict[str, float]:
    """The pydantic model made of its fields, and nothing more."""
    records = [event_fields(number) for number in range(amount)]
    settle()
    watch = Stopwatch()
    for record in records:
        SecurityEvent(**record)
    return watch.read(amount)


def deliver(amount: int, kind: str = "event", gzip: bool = True, **_: Any) -> dict[str, float]:
    """
    JSON, joined, compressed, posted over one connection; ``cpu`` of each event.

    ``stdlib`` is the same with zlib in the place of isal, ``bytes`` are those of isal.
    """
    make = event_fields if kind == "event" else metric_fields
    records = [make(number) for number in range(amount)]
    size = BATCH[kind]
    batches = [records[start : start + size] for start in range(0, amount, size)]
    place = urlsplit(collector())
    settle()
    results = []
    sent = 0
    with socket.create_connection((place.hostname or "", place.port or 0)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        before = sink_counts()
        for pack in (_isal, _zlib) if gzip else (None,):
            watch = Stopwatch()
            for batch in batches:
                body = b'{"events":[' + b",".join([orjson.dumps(one) for one in batch]) + b"]}"
                post(connection, body if pack is None else pack(body), packed=gzip)
            results.append(watch.read(amount))
            if pack is not _zlib:
                sent = sink_counts()["bytes"] - before["bytes"]
    expect_received(amount * len(results))
    return {
        **results[0],
        "stdlib": results[-1]["cpu"],
        "per_second": 1e6 / results[0]["wall"],
        "bytes": sent / amount,
    }


def _isal(body: bytes) -> bytes:
    packer = isal_zlib.compressobj(1, isal_zlib.DEFLATED, GZIP)
    return bytes(packer.compress(body) + packer.flush())


def _zlib(body: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, GZIP)
    return packer.compress(body) + packer.flush()


def post(connection: socket.socket, body: bytes, *, packed: bool) -> None:
    encoding = "Content-Encoding: gzip\r\n" if packed else ""
    head = f"POST /api/v1/events HTTP/1.1\r\nHost: bench\r\n{encoding}Content-Length: {len(body)}"
    connection.sendall(head.encode() + b"\r\n\r\n")
    connection.sendall(body)
    connection.recv(4096)  # the answer is short


async def lag(_amount: int, **_: Any) -> dict[str, float]:
    """A loop that has nothing to do, for half a second."""
    async with Heartbeat() as heart:
        await asyncio.sleep(0.5)
    return heart.lag()


def memory(amount: int, kind: str = "event", **_: Any) -> dict[str, float]:
    """Kept as JSON; ``packed`` are the bytes of all of them compressed together, by record."""
    make = event_fields if kind == "event" else metric_fields

    def encode(number: int) -> bytes:
        return bytes(memoryview(orjson.dumps(make(number))))  # it returns more than it fills

    kept = [encode(number) for number in range(2000)]
    gc.collect()
    before = resident()
    kept += [encode(number) for number in range(2000, 2000 + amount)]
    gc.collect()
    used = resident() - before
    size = BATCH[kind]
    packed = sum(
        len(_isal(b",".join(kept[start : start + size]))) for start in range(0, len(kept), size)
    )
    return {"bytes": used / amount, "packed": packed / len(kept)}


def stored(amount: int, **_: Any) -> dict[str, float]:
    """XADD of every event in pipelines of a thousand, and one DEL for all of them."""
    import redis

    client: Any = redis.Redis.from_url(os.environ["REDIS"])
    payloads = [orjson.dumps(event_fields(number)) for number in range(amount)]
    client.ping()
    settle()
    watch = Stopwatch()
    for start in range(0, amount, 1000):
        pipeline = client.pipeline(transaction=False)
        for payload in payloads[start : start + 1000]:
            pipeline.xadd("bench", {b"d": payload})
        pipeline.execute()
    client.delete("bench")
    return watch.read(amount)


if __name__ == "__main__":
    main(
        {
            "send": send,
            "build": build,
            "deliver": deliver,
            "lag": lag,
            "memory": memory,
            "stored": stored,
        }
    )
