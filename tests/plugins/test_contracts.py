"""The contracts of the built-in plugins that are no stores; those have their own modules."""

from __future__ import annotations

import json
import sys

import pytest

from guard_agent.plugins.console import ConsoleTransport
from guard_agent.plugins.file import FileRules
from guard_agent.plugins.jsonl import JsonlTransport
from guard_agent.plugins.rollup import Rollup
from guard_agent.plugins.truncate import TruncateEnricher
from guard_agent.testing.contracts import (
    AggregatorContract,
    EnricherContract,
    LocalRuleSourceContract,
    LocalTransportContract,
)
from guard_agent.testing.contracts.aggregator import DIFFERENCES
from guard_agent.testing.peers import RecordsPeer, RulesPeer


class LinesFile(RecordsPeer):
    """A file of JSON lines in a folder that goes away."""

    def __init__(self, folder):
        self.path = folder / "out" / "records.jsonl"
        self._away = folder / "away"

    def start(self):
        if self._away.exists():
            self.path.parent.unlink()
            self._away.rename(self.path.parent)
        return self

    def stop(self):
        if self.path.parent.is_dir():
            self.path.parent.rename(self._away)
            self.path.parent.write_bytes(b"not a folder")

    @property
    def records(self):
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]


class TestJsonlContract(LocalTransportContract):
    plugin = JsonlTransport

    def make_peer(self):
        return LinesFile(self.folder)

    def settings(self):
        return {"path": str(self.peer.path)}


class Terminal(RecordsPeer):
    """Standard output, which can be closed."""

    def __init__(self, capsys, monkeypatch):
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self._text = ""

    def start(self):
        self._monkeypatch.undo()
        return self

    def stop(self):
        self._monkeypatch.setattr(sys, "stdout", None)

    @property
    def records(self):
        self._text += self._capsys.readouterr().out
        lines = [json.loads(line) for line in self._text.splitlines()]
        return [line for line in lines if "idempotency_key" in line]


class TestConsoleContract(LocalTransportContract):
    plugin = ConsoleTransport

    @pytest.fixture(autouse=True)
    def _terminal(self, capsys):
        with pytest.MonkeyPatch.context() as monkeypatch:
            self.terminal = Terminal(capsys, monkeypatch)
            yield

    @pytest.fixture(autouse=True)
    def _peer(self, _folder, _terminal):
        self.peer = self.terminal
        yield
        self.peer.start()

    def settings(self):
        return {"stream": "stdout", "format": "json"}


class RulesFile(RulesPeer):
    """A file in a folder that goes away."""

    def __init__(self, path):
        self.path = path
        self._away = path.with_name("away")
        self._version = 0

    def start(self):
        if self._away.exists():
            self._away.rename(self.path)
        return self

    def stop(self):
        if self.path.exists():
            self.path.rename(self._away)

    def publish(self, rules):
        self.garble(json.dumps(rules).encode())
        return rules

    def garble(self, content):
        new = self.path.with_name("new")
        new.write_bytes(content)
        new.rename(self.path)


class TestFileContract(LocalRuleSourceContract):
    plugin = FileRules
    suffix = ".json"

    def make_peer(self):
        return RulesFile(self.folder / f"rules{self.suffix}")

    def settings(self):
        return {"path": str(self.peer.path)}


class TestYamlFileContract(TestFileContract):
    suffix = ".yaml"


class TestTruncateContract(EnricherContract):
    plugin = TruncateEnricher


class TestTruncateEverythingContract(EnricherContract):
    plugin = TruncateEnricher

    def settings(self):
        return {"max_length": 0}


class TestRollupContract(AggregatorContract):
    plugin = Rollup
    at_once = ("event",)
    most_open = 200

    def settings(self):
        return {"interval": 3600, "max_groups": 100, "max_endpoints": 100}


class TestRollupBySampleAndSourceContract(AggregatorContract):
    """Of each address the first few leave, and of one event type every fourth."""

    plugin = Rollup
    at_once = ("event",)
    may_differ = frozenset(DIFFERENCES["event"]) - {"event_type", "ip_address"}
    most_open = 200

    def settings(self):
        return {
            "interval": 3600,
            "max_groups": 100,
            "max_endpoints": 100,
            "sample": {"ip_blocked": 0.25},
            "per_source": {"*": 3},
            "metrics": {"response_time": "total", "request_count": "off"},
            "routes": ["/files/{name}"],
        }
