"""
What one record costs, counted and not timed: it must not grow unseen.

Steps of the interpreter and calls are the same in every run, however loaded the machine is. They
differ between versions of Python, so each number is a ratio to what a reference takes in the same
run: looking at every value of the record once and encoding it, which no agent can do without.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections import Counter

import orjson
import pytest

from guard_agent import AgentConfig, SecurityEvent, SecurityMetric
from guard_agent.core.assembly.composition import compose
from guard_agent.core.assembly.configfile import resolve
from guard_agent.core.intake.pipeline import Pipeline
from guard_agent.core.intake.ring import Ring
from guard_agent.core.ledger import Ledger
from guard_agent.testing.records import make_event, make_metric

HEADERS = {
    "host": "shop.example.com",
    "accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8",
    "accept-language": "en-US,en;q=0.5",
    "accept-encoding": "gzip, deflate, br",
    "authorization": "Bearer 0123456789abcdef0123456789abcdef",
    "referer": "https://shop.example.com/items",
    "x-request-id": "7f3b2db9-1510-4e0e-ba2a-fa9b04ae2f5a",
    "x-forwarded-for": "203.0.113.7",
}
RECORDS = 200


def event(number: int) -> SecurityEvent:
    return make_event(
        status_code=403,
        response_time=0.0125,
        reason=f"Suspicious pattern {number} in the query of the request",
        metadata={"headers": dict(HEADERS), "route": "/api/v1/items"},
    )


def metric(number: int) -> SecurityMetric:
    return make_metric(value=0.5 + number, tags={"method": "GET", "status": "200"})


MAKE = {"event": event, "metric": metric}


def reference(record) -> None:
    """Look at every value once, and encode."""
    fields = record.__dict__.copy()
    waiting = [fields]
    while waiting:
        for value in waiting.pop().values():
            if type(value) is str:
                len(value)
            elif type(value) is dict:
                waiting.append(value.copy())
    orjson.dumps(fields)


def count(function, records) -> Counter[str]:
    """Steps of the interpreter and calls that ``function`` takes for all ``records``."""
    counts: Counter[str] = Counter()

    def profile(frame, what, argument):
        counts["calls"] += what in ("call", "c_call")

    def trace(frame, what, argument):
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        counts["steps"] += what == "opcode"
        return trace

    gc.disable()
    try:
        for install, counter in ((sys.setprofile, profile), (sys.settrace, trace)):
            before = sys.getprofile() if install is sys.setprofile else sys.gettrace()
            install(counter)
            try:
                for record in records:
                    function(record)
            finally:
                install(before)
    finally:
        gc.enable()
    return counts


def taker(kind, **settings):
    """What an agent does with a record in the thread of the application, as it comes."""
    config = AgentConfig(api_key="test-key-0123", transports=["console"], **settings)
    components = compose(resolve(config)).build()
    pipeline = Pipeline(components.enrichers, components.aggregator)
    ring = Ring(
        Ledger(("console",)),
        max_records=10_000,
        max_bytes=1 << 24,
        wake_at=5_000,
        watermark=0.9,
        on_wake=lambda: None,
    )

    def take(record) -> None:
        taken = pipeline.take(kind, record)
        if taken is not None:
            ring.put(taken, evict=True)

    return take


@pytest.mark.parametrize(
    ("kind", "rollup", "most"),
    [
        ("event", False, {"steps": 2.1, "calls": 1.8}),
        ("event", True, {"steps": 2.5, "calls": 2.3}),
        ("metric", False, {"steps": 3.1, "calls": 2.0}),
        ("metric", True, {"steps": 2.4, "calls": 1.9}),
    ],
)
def test_taking_a_record_costs_at_most_so_many_times_the_reference(kind, rollup, most):
    take = taker(kind, rollup=rollup)
    records = [MAKE[kind](number) for number in range(RECORDS)]
    for record in records[:20]:  # names and texts that come again are known from here on
        take(record)

    ours, least = count(take, records[20:]), count(reference, records[20:])

    ratios = {name: round(ours[name] / least[name], 2) for name in most}
    assert all(ratios[name] <= most[name] for name in most), ratios


def test_a_record_that_waits_takes_little_more_than_its_payload():
    """In memory, against the bytes of the payload alone."""
    take = taker("event", rollup=False)
    records = [event(number) for number in range(2_000)]
    for record in records[:50]:
        take(record)
    payload = len(orjson.dumps(records[0].__dict__))

    gc.collect()
    tracemalloc.start()
    try:
        for record in records[50:]:
            take(record)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    each = held / len(records[50:])
    assert each < 1.5 * payload
