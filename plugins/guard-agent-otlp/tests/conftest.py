from __future__ import annotations

import runpy
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from urllib.request import getproxies_environment

import orjson
import pytest

from guard_agent import AgentConfig, Batch, Priority, Record, client
from guard_agent.testing.records import make_context
from guard_agent_otlp import OtlpTransport

KEY = "key-of-the-guard-collector"

_RECEIVER = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("receiver.py"))))


def make_record(n=1, kind="event", **fields):
    """A record with these fields and the id ``r<n>``, accepted on 1 January 2026 at noon."""
    named = {"event_type": "ip_banned"} if kind == "event" else {"metric_type": "m", "value": 1}
    payload = {"idempotency_key": f"r{n}", **named, **fields}
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone.utc).timestamp()
    return Record(f"r{n}", kind, Priority.ATTACK, orjson.dumps(payload), noon)


def make_batch(count=1, kind="event", **fields):
    return Batch(kind, tuple(make_record(n, kind, **fields) for n in range(1, count + 1)))


def make_transport(config=None, **settings):
    return OtlpTransport(
        OtlpTransport.Settings(**settings),
        make_context(instance="otlp", destinations=("otlp",), **{"api_key": KEY, **(config or {})}),
    )


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    """Proxies of the desk must not get between a test and its server."""
    for kind in getproxies_environment():
        for name in (f"{kind}_proxy", f"{kind.upper()}_PROXY"):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture
def kit():
    """The helpers of this folder."""
    return SimpleNamespace(
        **vars(_RECEIVER) | {"key": KEY},
        record=make_record,
        batch=make_batch,
        transport=make_transport,
    )


@pytest.fixture
def exchange(kit):
    """Send one batch to a receiver that answers this; returns the result and the receiver."""

    async def exchange(answer=None, batch=None, config=None, **settings):
        with kit.Receiver(*([kit.Answer(**answer)] if answer else [])) as receiver:
            transport = make_transport(config, endpoint=receiver.url, **settings)
            await transport.open()
            try:
                return await transport.send(batch or make_batch()), receiver
            finally:
                await transport.close()

    return exchange


@pytest.fixture
def agent_config(tmp_path, monkeypatch):
    """Make settings for the agent of this process; it is stopped when the test ends."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)

    def make(url, otlp=None, **settings):
        defaults = {
            "api_key": KEY,
            "endpoint": "http://127.0.0.1:1",
            "project_id": "shop",
            "transports": ["otlp"],
            "rules": [],
            "rollup": False,
            "plugins": {"otlp": {"endpoint": url, **(otlp or {})}},
            "backoff_factor": 0.01,
            "max_requests_per_second": 1000,
            "stop_timeout": 1,
        }
        return AgentConfig(**{**defaults, **settings})

    yield make
    if client._process.agent is not None:
        client._process.agent.stop().result(10)
    client._process.agent = None
