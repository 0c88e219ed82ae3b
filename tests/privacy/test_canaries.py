"""
Ten thousand records with secrets planted in them; none of the secrets is found anywhere.

``GUARD_AGENT_CANARIES=1000000 pytest tests/privacy -k d10`` draws as many as it is told.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing

import pytest

from guard_agent import AgentConfig, Enricher, Record, SecurityMetric, Stage, SyncGuardAgentHandler
from guard_agent.client import _process
from guard_agent.core.intake.pipeline import Pipeline
from guard_agent.core.interfaces import DropReason
from guard_agent.testing.collector import Answer
from guard_agent.testing.records import make_context, make_event
from guard_agent.testing.redis_server import RedisServer

AMOUNT = int(os.environ.get("GUARD_AGENT_CANARIES", "12000"))
SEED = int(os.environ.get("GUARD_AGENT_CANARY_SEED", "20260101"))
WHOLE_AGENT = 1_500

API_KEY = "key-Cnry-of-the-agent-0123456789"
SIGNING_SECRET = "signing-Cnry-secret-0123456789abcdef"
HASH_KEY = "hash-Cnry-key-0123456789abcdefghijklmnop"


def kind_of(payload):
    return "metric" if isinstance(payload, SecurityMetric) else "event"


def test_every_payload_holds_a_planted_secret(canaries):
    """
    A scan that finds nothing proves nothing unless it finds what was planted.
    """
    seen = set()
    for kind, place, payload in canaries.Generator(SEED).payloads(2_000):
        seen.add((kind, place))
        planted = {**payload.__dict__, **(payload.__pydantic_extra__ or {})}
        assert canaries.leaks(repr(planted)), (kind, place, payload)
    assert len(seen) == len(canaries.KINDS) * len(canaries.PLACES)
    assert len(canaries.KINDS) >= 17


def test_the_same_seed_plants_the_same(canaries):
    def drawn(seed):
        payloads = canaries.Generator(seed).payloads(300)
        return [
            repr(payload.model_dump(include={"reason", "metadata", "tags"}))
            for *_, payload in payloads
        ]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_d10_no_planted_secret_is_in_any_record(canaries, make_pipeline):
    """
    Every kind of secret in every place, more than ten thousand records, as encoded for the ring:
    what disk, Redis and wire get.
    """
    pipeline = make_pipeline()
    leaked = []
    for kind, place, payload in canaries.Generator(SEED).payloads(AMOUNT):
        record = pipeline.encode(kind_of(payload), payload)
        assert isinstance(record, Record), (kind, place, payload)
        if found := canaries.leaks(record.payload) + canaries.leaks(repr(record)):
            leaked.append((kind, place, found[0]))
    assert leaked == []


@pytest.mark.parametrize(
    "redaction",
    [
        {"hash_ip": True, "hash_key": HASH_KEY},
        {
            "hash_key": HASH_KEY,
            "fields": {"metadata.context": "hash", "user_agent": "truncate:40", "shop": "keep"},
        },
        {"allow": ["reason", "metadata", "tags"]},
    ],
    ids=["hash_ip", "fields", "allow"],
)
def test_d10_policies_let_no_planted_secret_through(canaries, make_pipeline, redaction):
    pipeline = make_pipeline(**redaction)
    for kind, place, payload in canaries.Generator(SEED + 1).payloads(1_500):
        record = pipeline.encode(kind_of(payload), payload)
        assert isinstance(record, Record), (kind, place, payload)
        assert canaries.leaks(record.payload) == [], (kind, place)


class Sinks:
    """Everything that left the agent, by where it was found."""

    def __init__(self, canaries):
        self._leaks = canaries.leaks
        self.sizes: dict[str, int] = {}
        self.found: list[tuple[str, str]] = []

    def scan(self, name, data):
        raw = data if isinstance(data, bytes) else str(data).encode("utf-8", "backslashreplace")
        self.sizes[name] = self.sizes.get(name, 0) + len(raw)
        self.found += [(name, leak) for leak in self._leaks(raw)]

    def scan_files(self, name, folder):
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.scan(name, path.read_bytes())
                self.scan(name, str(path))

    def scan_requests(self, collector):
        own = ("x-api-key", "authorization")  # by which the collector knows us
        for request in collector.requests:
            headers = {k: v for k, v in request.headers.items() if k not in own}
            self.scan("wire", repr((request.method, request.path, headers)))
            self.scan("wire", request.body)

    def scan_agent(self, agent):
        stats = (agent.get_status(), agent.get_stats(), agent.health_check())
        for each in (*stats, agent, agent.config, _process.agent, vars(agent)):
            self.scan("repr", repr(each))
            self.scan("repr", each)
        self.scan("repr", agent.get_status().model_dump_json())


@pytest.fixture
def sinks(canaries):
    return Sinks(canaries)


@pytest.fixture
def agent_of(tmp_path, monkeypatch, collector, caplog, sinks):
    """An agent with every sink open, stopped at the end."""
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    caplog.set_level(logging.DEBUG)
    agents = []

    def make(**settings):
        agents.append(
            SyncGuardAgentHandler(
                AgentConfig(
                    **{
                        "api_key": API_KEY,
                        "endpoint": collector.url,
                        "project_id": "shop",
                        "payload_signing_secret": SIGNING_SECRET,
                        "transports": ["http", "jsonl", "console"],
                        "rules": [],
                        "flush_interval": 3600,
                        "max_requests_per_second": 1_000,
                        "on_error": lambda *details: sinks.scan("on_error", repr(details)),
                        **settings,
                        "plugins": {
                            "jsonl": {"path": str(tmp_path / "events.jsonl")},
                            "redaction": {"hash_ip": True, "hash_key": HASH_KEY},
                            **settings.get("plugins", {}),
                        },
                    }
                )
            )
        )
        return agents[-1]

    yield make
    for agent in agents:
        agent.stop()
    agent, _process.agent = _process.agent, None
    if agent is not None:
        assert [b for b in agent.balances().values() if b.difference] == []


def feed(agent, canaries, amount=WHOLE_AGENT):
    for _, _, payload in canaries.Generator(SEED + 2).payloads(amount):
        send = agent.send_metric if isinstance(payload, SecurityMetric) else agent.send_event
        send(payload)
    # Junk that is no record may hold secrets too, and so may what an object says of itself.
    agent.send_event({"password": "Cnry", 1: "Cnry"})
    agent.send_event(ValueError("password=Cnry"))
    agent.send_event(make_event(reason="the last record"))


def test_d10_no_planted_secret_reaches_wire_disk_logs_health_or_repr(
    agent_of, collector, canaries, sinks, tmp_path, caplog, capfd
):
    collector.always(Answer(status=503, headers={"Retry-After": "1"}, body={"detail": "busy"}))
    agent = agent_of(store="disk")
    feed(agent, canaries)
    assert agent.flush_to_store() is True
    agent.flush_buffer()

    # What waits: in the file of the store, and in its log of changes.
    sinks.scan_files("disk", tmp_path)
    sinks.scan_agent(agent)
    collector.always(None)
    collector.answer(Answer(status=400, body={"detail": "no"}))
    agent.flush_buffer()
    collector.wait_for(lambda c: any(e["reason"] == "the last record" for e in c.events), 30)
    sinks.scan_files("disk", tmp_path)
    sinks.scan_agent(agent)
    agent.stop()

    sinks.scan_files("disk", tmp_path)
    for database in tmp_path.rglob("*.db"):
        with closing(sqlite3.connect(database)) as connection:
            sinks.scan("disk", "\n".join(connection.iterdump()))
    sinks.scan_requests(collector)
    sinks.scan("logs", caplog.text)
    for entry in caplog.records:
        sinks.scan("logs", repr(vars(entry)))
    sinks.scan("console", "".join(capfd.readouterr()))

    assert sinks.found == []
    # Not because there was nothing to look at.
    least = {"wire": 100_000, "disk": 100_000, "console": 50_000, "repr": 1_000, "logs": 100}
    assert {name: size for name, size in least.items() if sinks.sizes.get(name, 0) < size} == {}


def test_d10_no_planted_secret_reaches_redis(agent_of, collector, canaries, sinks, caplog):
    collector.always(Answer(status=503, headers={"Retry-After": "600"}))
    options = {"rdbcompression": "no", "aof-use-rdb-preamble": "no"}
    with RedisServer(append_only=True, options=options) as server:
        agent = agent_of(store="redis", transports=["http"], plugins={"redis": {"url": server.url}})
        feed(agent, canaries)
        assert agent.flush_to_store() is True
        sinks.scan_agent(agent)
        server.command("SAVE")
        sinks.scan_files("redis", server.folder)
        for key in server.command("KEYS", "*"):
            sinks.scan("redis", key)
            if server.command("TYPE", key) in (b"stream", "stream"):
                sinks.scan("redis", repr(server.command("XRANGE", key, "-", "+")))
        agent.stop()
        sinks.scan_files("redis", server.folder)
    sinks.scan("logs", caplog.text)

    assert sinks.found == []
    assert sinks.sizes["redis"] > 500_000


class Broken(Enricher):
    """Fails over a secret, and says so in its message."""

    name = "broken"
    stage = Stage.REDACT

    def bind(self, kind):
        def fail(fields):
            raise ValueError(f"cannot handle {fields}") from KeyError(fields["reason"])

        return fail


def test_p11_d10_a_redactor_that_raises_drops_the_record_and_logs_no_text_of_it(caplog):
    caplog.set_level(logging.DEBUG)
    pipeline = Pipeline([Broken(Broken.Settings(), make_context(instance="broken"))])

    for _ in range(10):
        dropped = pipeline.encode("event", make_event(reason="password=Cnry"))
        assert dropped is DropReason.ENRICHER_FAILED

    assert "Cnry" not in caplog.text
    (entry,) = caplog.records
    assert "ValueError" in caplog.text
    assert "in fail" in caplog.text, "where it failed is shown"
    assert entry.levelno == logging.ERROR
