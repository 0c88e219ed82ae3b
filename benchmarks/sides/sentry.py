"""The logs of sentry-sdk, sent to a DSN on loopback."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import sentry_sdk
from sentry_sdk import logger
from sides.common import (
    Stopwatch,
    collector,
    event_fields,
    expect_received,
    main,
    settle,
    sink_counts,
)

# It drops what comes while a thousand wait, so that it has to be flushed on the way.
HOLDS = 900


def make_log(number: int) -> tuple[str, dict[str, Any]]:
    """The text and the attributes, which have no nesting."""
    fields = event_fields(number)
    metadata = fields.pop("metadata")
    body = fields.pop("reason")
    attributes: dict[str, Any] = {}
    for key, value in fields.items():
        if value is not None:
            attributes[key] = value if isinstance(value, (int, float)) else str(value)
    attributes.update((f"headers.{name}", text) for name, text in metadata["headers"].items())
    attributes["traceparent"] = metadata["traceparent"]
    return body, attributes


def begin() -> Any:
    place = urlsplit(collector())
    sentry_sdk.init(
        dsn=f"http://public@{place.netloc}/1", enable_logs=True, default_integrations=False
    )
    return sentry_sdk.get_client()


def send(amount: int, **_: Any) -> dict[str, float]:
    begin()
    logs = [make_log(number) for number in range(min(amount, HOLDS))]
    settle()
    watch = Stopwatch()
    for body, attributes in logs:
        logger.warning(body, attributes=attributes)
    return watch.read(len(logs))


def deliver(amount: int, **_: Any) -> dict[str, float]:
    client = begin()
    warm = 500
    logs = [make_log(number) for number in range(amount + warm)]
    for body, attributes in logs[:warm]:
        logger.warning(body, attributes=attributes)
    client.flush(60)
    before = sink_counts()
    settle()
    watch = Stopwatch()
    for number, (body, attributes) in enumerate(logs[warm:]):
        if not number % HOLDS:
            client.flush(60)
        logger.warning(body, attributes=attributes)
    client.flush(60)
    result = watch.read(amount)
    after = expect_received(amount + warm)
    return {
        **result,
        "per_second": 1e6 / result["wall"],
        "bytes": (after["bytes"] - before["bytes"]) / amount,
    }


if __name__ == "__main__":
    main({"send": send, "deliver": deliver})
