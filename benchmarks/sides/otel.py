"""The logs of opentelemetry-sdk: `BatchLogRecordProcessor` and the OTLP exporter over HTTP."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from sides.common import (
    Heartbeat,
    Stopwatch,
    collector,
    event_fields,
    expect_received,
    main,
    resident,
    settle,
    sink_counts,
)

logging.disable(logging.CRITICAL)

NEVER = 3_600_000
"""Milliseconds between exports that nobody asked for."""


def make_record(number: int) -> Any:
    fields = event_fields(number)
    metadata = fields.pop("metadata")
    body = fields.pop("reason")
    attributes = {key: value for key, value in fields.items() if value is not None}
    attributes["idempotency_key"] = str(fields["idempotency_key"])
    moment = attributes.pop("timestamp").timestamp()
    attributes["metadata"] = metadata
    return LogRecord(
        timestamp=int(moment * 1e9),
        severity_number=SeverityNumber.WARN,
        body=body,
        attributes=attributes,
    )


class Pipeline:
    """A logger that keeps ``hold`` records, and exports them when it is told to."""

    def __init__(self, hold: int, *, gzip: bool = True, batch: int = 512) -> None:
        compression = Compression.Gzip if gzip else Compression.NoCompression
        exporter = OTLPLogExporter(endpoint=f"{collector()}/v1/logs", compression=compression)
        self._processor = BatchLogRecordProcessor(
            exporter,
            schedule_delay_millis=NEVER,
            max_queue_size=hold,
            max_export_batch_size=batch,
        )
        provider = LoggerProvider(resource=Resource.create({"service.name": "shop"}))
        provider.add_log_record_processor(self._processor)
        self.emit = provider.get_logger("bench").emit

    def flush(self) -> None:
        self._processor.force_flush(60_000)


def send(amount: int, **_: Any) -> dict[str, float]:
    warm = amount // 10
    hold = 2 * amount
    pipeline = Pipeline(hold, batch=hold)  # nothing is exported meanwhile
    records = [make_record(number) for number in range(amount + warm)]
    for record in records[:warm]:
        pipeline.emit(record)
    settle()
    watch = Stopwatch()
    for record in records[warm:]:
        pipeline.emit(record)
    return watch.read(amount)


def deliver(amount: int, gzip: bool = True, **_: Any) -> dict[str, float]:
    warm = 500
    pipeline = Pipeline(amount + 1001, gzip=gzip)
    records = [make_record(number) for number in range(amount + warm)]
    for record in records[:warm]:
        pipeline.emit(record)
    pipeline.flush()
    before = sink_counts()
    settle()
    watch = Stopwatch()
    for record in records[warm:]:
        pipeline.emit(record)
    pipeline.flush()
    result = watch.read(amount)
    after = expect_received(amount + warm)
    return {
        **result,
        "per_second": 1e6 / result["wall"],
        "bytes": (after["bytes"] - before["bytes"]) / amount,
    }


async def lag(amount: int, **_: Any) -> dict[str, float]:
    """The flush runs in a thread, as an application on a loop has to do it."""
    hold = amount + 1001
    pipeline = Pipeline(hold, batch=512)
    for number in range(500):
        pipeline.emit(make_record(number))
    pipeline.flush()
    records = [make_record(number) for number in range(500, 500 + amount)]
    settle()
    async with Heartbeat() as heart:
        began = time.perf_counter()
        for number, record in enumerate(records):
            pipeline.emit(record)
            if not number % 10:
                await asyncio.sleep(0)
        await asyncio.to_thread(pipeline.flush)
        took = time.perf_counter() - began
    expect_received(500 + amount)
    return {**heart.lag(), "seconds": took}


def memory(amount: int, **_: Any) -> dict[str, float]:
    hold = 2 * amount
    pipeline = Pipeline(hold, batch=hold)
    for number in range(2000):
        pipeline.emit(make_record(number))
    gc.collect()
    before = resident()
    for number in range(2000, 2000 + amount):
        pipeline.emit(make_record(number))
    gc.collect()
    return {"bytes": (resident() - before) / amount}


if __name__ == "__main__":
    main({"send": send, "deliver": deliver, "lag": lag, "memory": memory})
