"""
One measurement in one process; prints one JSON object. Runs under any release of guard-agent.

Uses only what 3.x and this release have in common, so both do exactly the same work.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
import urllib.request
from typing import Any

from guard_agent import AgentConfig, SecurityEvent, get_current_timestamp, guard_agent

logging.disable(logging.CRITICAL)


def event(number: int) -> Any:
    """As the Guard middleware makes them: 17 fields, eight headers, one of them a secret."""
    return SecurityEvent(
        timestamp=get_current_timestamp(),
        event_type="suspicious_request",
        ip_address="203.0.113.7",
        user_agent="Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)",
        action_taken="request_blocked",
        reason=f"Suspicious pattern {number} in the query of the request",
        endpoint="/api/v1/items",
        method="GET",
        status_code=403,
        response_time=0.0123,
        metadata={
            "headers": {
                "host": "shop.example.com",
                "accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
                "accept-language": "en-US,en;q=0.5",
                "accept-encoding": "gzip, deflate, br",
                "authorization": "Bearer 0123456789abcdef0123456789abcdef",
                "referer": "https://shop.example.com/items",
                "x-request-id": "7f3b2db9-1510-4e0e-ba2a-fa9b04ae2f5a",
                "x-forwarded-for": "203.0.113.7",
            },
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        },
    )


def configuration(**settings: Any) -> AgentConfig:
    # 3.x cannot change its limit of 100 requests a minute, and needs five for these records.
    if "max_requests_per_second" in AgentConfig.model_fields:
        settings["max_requests_per_second"] = 1_000
    return AgentConfig(
        api_key="benchmark-key",
        project_id=None,
        endpoint=os.environ.get("COLLECTOR", "http://127.0.0.1:9"),
        flush_interval=3600,
        high_watermark_ratio=1.0,
        **settings,
    )


async def send(count: int) -> dict[str, float]:
    """Nanoseconds of the caller per ``send_event`` of a prebuilt event; nothing is delivered."""
    agent = guard_agent(configuration(buffer_size=9_000))
    events = [event(number) for number in range(count)]
    for prebuilt in events[: count // 10]:
        await agent.send_event(prebuilt)
    cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
    for prebuilt in events:
        await agent.send_event(prebuilt)
    wall, cpu = time.perf_counter_ns() - wall, time.thread_time_ns() - cpu
    return {"ns": wall / count, "cpu_ns": cpu / count}


async def deliver(count: int) -> dict[str, float]:
    """From the first ``send_event`` to the moment the collector has every record."""
    agent = guard_agent(configuration(buffer_size=10_000))
    events = [event(number) for number in range(count)]
    await agent.start()
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    for prebuilt in events:
        await agent.send_event(prebuilt)
    await agent.flush_buffer()
    while (received := _received()) < count:  # what a flush of 3.x leaves to its background tasks
        await asyncio.sleep(0.01)
        await agent.flush_buffer()
    wall, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
    await agent.stop()
    return {"records_per_second": received / (wall / 1e9), "cpu_ns": cpu / count}


def _received() -> int:
    with urllib.request.urlopen(f"{os.environ['COLLECTOR']}/received") as answer:
        return int(answer.read())


if __name__ == "__main__":
    measure = {"send": send, "deliver": deliver}[sys.argv[1]]
    print(json.dumps(asyncio.run(measure(int(sys.argv[2])))))
