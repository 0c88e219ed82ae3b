"""
What redaction costs one event, in nanoseconds, and its share of the whole intake.

    python benchmarks/redaction.py

The event is the one of `sides/common.py`: 17 fields and eight headers. "same" is an event that was
seen before, whose texts are all remembered as clean; "new" has texts that were never seen, as real
events do. "policies" decides about three fields, "hash_ip" hides addresses.
"""

from __future__ import annotations

import time
from itertools import count
from typing import TYPE_CHECKING, Any

from sides.common import event_fields

from guard_agent import AgentConfig, Enricher, SecurityEvent
from guard_agent.core.assembly.composition import compose
from guard_agent.core.intake.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Sequence

COUNT = 4_000
ROUNDS = 9


def event(number: int) -> SecurityEvent:
    return SecurityEvent(**event_fields(number))


def enrichers(**redaction: Any) -> Sequence[Enricher]:
    config = AgentConfig(
        api_key="benchmark-key",
        transports=["console"],
        rules=[],
        plugins={"redaction": redaction},
    )
    return compose(config).build().enrichers


def measure(pipeline: Pipeline, *, new: bool) -> float:
    """CPU nanoseconds of this thread per event in the best round: others use the machine too."""
    encode = pipeline.encode
    results = []
    numbers = count()
    for _ in range(ROUNDS):
        # Another reason for each event of each round: nothing of it is remembered.
        events = [event(next(numbers)) for _ in range(COUNT)] if new else [event(0)] * COUNT
        start = time.thread_time_ns()
        for each in events:
            encode("event", each)
        results.append((time.thread_time_ns() - start) / len(events))
    return min(results)


def main() -> None:
    key = {"hash_key": "0123456789abcdef" * 4}
    fields = {"metadata.user.email": "hash", "user_agent": "truncate:64", "metadata.body": "drop"}
    settings: dict[str, dict[str, Any]] = {
        "": {},
        "policies": {"fields": fields, **key},
        "hash_ip": {"hash_ip": True, **key},
    }
    print(f"{'':16}{'without':>10}{'with':>10}{'redaction':>12}{'share':>8}")
    bare = Pipeline([step for step in enrichers() if step.name != "redaction"])
    without = measure(bare, new=True)
    for title, options in settings.items():
        pipeline = Pipeline(enrichers(**options))
        for kind in ("same", "new"):
            total = measure(pipeline, new=kind == "new")
            cost = total - without
            name = f"{kind} {title}".strip()
            print(f"{name:16}{without:>10,.0f}{total:>10,.0f}{cost:>12,.0f}{cost / total:>8.0%}")


if __name__ == "__main__":
    main()
