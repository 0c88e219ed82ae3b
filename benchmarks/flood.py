"""
What a guarded app sends with and without ``rollup``: records, bytes, distinct attacks, memory, CPU.

    python benchmarks/flood.py                 # everything, about five minutes
    python benchmarks/flood.py flood 5000      # one scenario, with another number of requests

``benign``
    ordinary requests to a few pages, with penetration detection on
``mix``
    60 ordinary requests and six attacks, the same
``flood``
    hostile requests from 1,000 addresses (blocked addresses, user agents, rate limits) as fast as
    they go, penetration detection off; the collector is down for the first half
``straight``
    events of 1,000 addresses directly into the agent, the collector down for the first half

Each runs in a process of its own, a real fastapi-guard in front of a real app, called through ASGI.
What was made is counted where the guard hands it over, and compared with what the collector got.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

AMOUNTS = {"benign": 1_000, "mix": 66, "flood": 50_000, "straight": 1_000_000}
PLAIN_AT_MOST = 200_000
NOISE = ("pattern_anomaly", "security_headers_applied")


# --- in the process of the app --------------------------------------------------------------------


class Made:
    """What the guard handed over: events by type, address and endpoint."""

    def __init__(self, agent_class: Any) -> None:
        self.events: Counter[str] = Counter()
        self.metrics: Counter[str] = Counter()
        send_event, send_metric = agent_class.send_event, agent_class.send_metric

        def event(handler: Any, source: Any) -> Any:
            key = (source.event_type, source.ip_address, getattr(source, "endpoint", None))
            self.events[json.dumps(key)] += 1
            return send_event(handler, source)

        def metric(handler: Any, source: Any) -> Any:
            self.metrics[source.metric_type] += 1
            return send_metric(handler, source)

        agent_class.send_event, agent_class.send_metric = event, metric


def guarded_app(endpoint: str, *, detection: bool, limit: int) -> Any:
    from fastapi import FastAPI
    from guard import SecurityConfig, SecurityMiddleware

    app = FastAPI()
    config = SecurityConfig(
        enable_agent=True,
        agent_api_key="bench-key-0123",
        agent_endpoint=endpoint,
        agent_project_id="bench",
        agent_flush_interval=1,
        enable_penetration_detection=detection,
        blocked_user_agents=["sqlmap"],
        blacklist=["198.51.100.0/24"],
        rate_limit=limit,
        rate_limit_window=600,
        auto_ban_threshold=3,
        trusted_proxies=("127.0.0.1",),
        enable_redis=False,
    )
    app.add_middleware(SecurityMiddleware, config=config)

    @app.get("/{path:path}")
    async def page(path: str) -> dict[str, str]:
        return {"path": path}

    return app


async def ask(
    app: Any, path: str, address: str, agent: str = "Mozilla/5.0", query: str = ""
) -> None:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [
            (b"host", b"shop.example"),
            (b"user-agent", agent.encode()),
            (b"x-forwarded-for", address.encode()),
        ],
        "client": ("127.0.0.1", 40_000),
        "server": ("127.0.0.1", 80),
    }
    body = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        return body.pop() if body else await asyncio.Event().wait()

    async def send(_: Any) -> None:
        return None

    await app(scope, receive, send)


def hostile(number: int, sources: int) -> tuple[str, str, str]:
    """Path, address and user agent of one hostile request."""
    source = number % sources
    path = f"/page/{source % 5}"
    group = 4 * source // sources
    if group == 0:  # in a network that is blocked
        return path, f"198.51.100.{source}", "Mozilla/5.0"
    address = f"203.0.{source // 250}.{source % 250}"
    return path, address, "sqlmap/1.8" if group == 1 else "Mozilla/5.0"


async def requests(scenario: str, amount: int, app: Any) -> None:
    attacks = ("q=1'+UNION+SELECT+password+FROM+users--", "q=..%2F..%2F..%2Fetc%2Fpasswd")
    for number in range(amount):
        if number == amount // 2:
            await asyncio.get_running_loop().run_in_executor(None, half_time)
        if scenario == "flood":
            path, address, agent = hostile(number, min(1000, amount // 50))
            await ask(app, path, address, agent)
        elif scenario == "mix" and number % 11 == 5:
            await ask(app, "/search", f"203.0.113.{number}", query=attacks[number % 2])
        else:
            await ask(app, f"/page/{number % 5}", f"192.0.2.{number % 200}", query="q=rope")


def straight(amount: int, agent: Any) -> None:
    from guard_agent import SecurityEvent, get_current_timestamp

    kinds = ("ip_blocked", "rate_limited", "user_agent_blocked", "penetration_attempt")
    sample = SecurityEvent(timestamp=get_current_timestamp(), event_type="ip_blocked")
    for number in range(amount):
        if number == amount // 2:
            half_time()
        source = number % 1000
        event = sample.model_copy(
            update={
                "idempotency_key": uuid4(),
                "event_type": kinds[number // 1000 % 4],
                "ip_address": f"203.0.{source // 250}.{source % 250}",
                "endpoint": f"/page/{source % 5}",
            }
        )
        agent.send_event(event)


def half_time() -> None:
    """Tell the parent, which starts the collector, and wait until it has."""
    print("half", flush=True)
    sys.stdin.readline()


def work(scenario: str, amount: int, endpoint: str) -> None:
    import guard_agent

    made = Made(guard_agent.GuardAgentHandler)
    handler: Any
    if scenario == "straight":
        config = guard_agent.AgentConfig(
            api_key="bench-key-0123", endpoint=endpoint, project_id="bench", rules=[]
        )
        handler = guard_agent.GuardAgentHandler(config)
        begun = time.process_time(), time.perf_counter()
        straight(amount, handler)
    else:
        app = guarded_app(endpoint, detection=scenario != "flood", limit=30)
        asyncio.run(ask(app, "/", "192.0.2.250"))  # which starts the agent
        handler = guard_agent.GuardAgentHandler()
        begun = time.process_time(), time.perf_counter()
        asyncio.run(requests(scenario, amount, app))
    cpu, seconds = time.process_time() - begun[0], time.perf_counter() - begun[1]
    status = asyncio.run(finish(handler))
    print(
        json.dumps(
            {
                "events": made.events,
                "metrics": made.metrics,
                "cpu_us": cpu / amount * 1e6,
                "seconds": seconds,
                "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "books": status.destinations["http"],
            }
        ),
        flush=True,
    )


async def finish(handler: Any) -> Any:
    """Flush until everything is delivered; the gate may still keep to its backoff."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        await handler.flush_buffer()
        status = await handler.get_status()
        if not status.destinations["http"]["pending"]:
            break
        await asyncio.sleep(0.2)
    await handler.stop()
    return await handler.get_status()


# --- beside it ------------------------------------------------------------------------------------


def measure(scenario: str, amount: int, *, rollup: bool) -> dict[str, Any]:
    from guard_agent.testing.collector import Collector

    with tempfile.TemporaryDirectory() as folder, Collector() as collector:
        config = Path(folder) / "guard-agent.yaml"
        config.write_text(f"rollup: {str(rollup).lower()}\nrules: []\n")
        outage = scenario in ("flood", "straight")
        if outage:
            collector.stop()
        result: dict[str, Any] = {}
        with subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).resolve()),
                "work",
                scenario,
                str(amount),
                collector.url,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=folder,
            env={
                **os.environ,
                "GUARD_AGENT_CONFIG": str(config),
                "GUARD_AGENT_STATE_DIR": folder,
            },
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    if line.startswith("half"):
                        if outage:
                            collector.start()
                        child.stdin.write("\n")
                        child.stdin.flush()
                    elif line.startswith("{"):
                        result = json.loads(line)
                        break
                child.wait(30)
            finally:
                child.kill()
        return {**result, **seen_by(collector, result)}


def seen_by(collector: Any, result: dict[str, Any]) -> dict[str, Any]:
    got: Counter[str] = Counter()
    for event in collector.events:
        key = json.dumps((event["event_type"], event["ip_address"], event["endpoint"]))
        got[key] += event["metadata"].get("guard.count", 1)
    attacks = {key: n for key, n in result["events"].items() if not is_noise(key)}
    posts = [r for r in collector.requests if r.path.endswith(("/events", "/metrics"))]
    return {
        "made": sum(result["events"].values()) + sum(result["metrics"].values()),
        "records": len(collector.events) + len(collector.metrics),
        "bytes": sum(len(r.body) for r in posts if r.status == 200),
        "wire": sum(r.wire_size for r in posts if r.status == 200),
        "distinct": len(attacks),
        "delivered": sum(1 for key in attacks if got[key]),
        "right": sum(1 for key, n in attacks.items() if got[key] == n),
        "all_counted": sum(got.values()),
    }


def is_noise(key: str) -> bool:
    event_type: str = json.loads(key)[0]
    return event_type.startswith(NOISE)


def main(scenarios: dict[str, int]) -> None:
    print(f"{'':27}{'made':>9}{'records':>9}{'kB':>8}{'kB wire':>9}{'distinct attacks':>28}"
          f"{'us CPU':>9}{'MB':>6}  lost")  # fmt: skip
    for scenario, amount in scenarios.items():
        for rollup in (False, True):
            count = amount if rollup else min(amount, PLAIN_AT_MOST)
            row = measure(scenario, count, rollup=rollup)
            attacks = f"{row['delivered']} of {row['distinct']}, {row['right']} counts"
            name = f"{scenario} {count:,} {'rollup' if rollup else 'plain'}"
            print(
                f"{name:27}{row['made']:>9,}{row['records']:>9,}{row['bytes'] / 1000:>8,.0f}"
                f"{row['wire'] / 1000:>9,.0f}{attacks:>28}{row['cpu_us']:>9,.1f}"
                f"{row['rss_mb']:>6,.0f}  {row['books']['dropped'] or 0}",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    elif len(sys.argv) > 1:
        main({sys.argv[1]: int(sys.argv[2]) if len(sys.argv) > 2 else AMOUNTS[sys.argv[1]]})
    else:
        main(AMOUNTS)
