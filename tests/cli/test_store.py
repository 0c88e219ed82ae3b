"""``guard-agent store``: what waits, from outside, beside an agent or after its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guard_agent.testing.collector import Answer
from guard_agent.testing.records import make_event


@pytest.fixture
def waiting(configure, collector, durable, start):
    """Three events wait in the store, because the collector is busy; the agent has ended."""

    def waiting(count=3, **settings):
        collector.always(Answer(503))
        agent = start(configure(**durable, flush_interval=60, **settings))
        for n in range(count):
            agent.record("event", make_event(reason=f"event {n}"))
        assert agent.flush_to_store().result(30)
        agent.stop(0.3).result(10)  # it would try to deliver until then
        collector.always(None)
        collector.clear()

    return waiting


def lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_ls_shows_what_waits_for_each_destination(run, waiting, tmp_path):
    waiting()

    result = run("store", "ls")
    depths = json.loads(run("store", "ls", "--json").stdout)

    assert result.exit_code == 0
    head, row = result.stdout.splitlines()
    assert head.split() == ["DESTINATION", "WAITING", "LEASED", "DEAD", "BYTES", "OLDEST"]
    assert row.split()[:4] == ["http", "3", "0", "0"]
    assert (depths["http"]["waiting"], depths["http"]["dead"]) == (3, 0)
    assert depths["http"]["bytes"] > 300


def test_export_writes_everything_and_leaves_it_there(run, waiting, tmp_path):
    waiting()

    to_stdout = run("store", "export")
    to_file = run("store", "export", "--output", tmp_path / "records.jsonl")

    assert [line["record"]["reason"] for line in lines(to_stdout)] == [
        "event 0", "event 1", "event 2",
    ]  # fmt: skip
    assert {line["destination"] for line in lines(to_stdout)} == {"http"}
    assert to_stdout.stderr == to_file.stderr == "3 records written\n"
    assert (tmp_path / "records.jsonl").read_text() == to_stdout.stdout
    assert json.loads(run("store", "ls", "--json").stdout)["http"]["waiting"] == 3


def test_export_of_many_records_goes_in_parts(run, waiting):
    waiting(1203)

    exported = lines(run("store", "export"))

    assert len({line["id"] for line in exported}) == len(exported) == 1203


def test_drain_delivers_what_waits(run, waiting, collector):
    waiting()

    result = run("store", "drain")

    assert (result.exit_code, result.stdout) == (0, "http: 3 delivered\n")
    assert [event["reason"] for event in collector.events] == ["event 0", "event 1", "event 2"]
    assert set(collector.ledger.values()) == {1}
    assert run("store", "drain", "--json").exit_code == 0


def test_drain_says_what_is_left_and_why(run, waiting, collector):
    waiting()
    collector.always(Answer(401))

    result = run("store", "drain", "--patience", "0.5")

    assert result.exit_code == 1
    assert result.stdout.startswith("http: 0 delivered, 3 are left: the collector refused the key")
    assert json.loads(run("store", "ls", "--json").stdout)["http"]["waiting"] == 3


def test_drain_needs_no_enricher(run, waiting, collector, configure, durable, installed):
    """What waits was redacted when it was taken."""
    waiting()
    configure(**durable, enrichers=["acme-exits"])

    assert run("plan").exit_code == 78
    assert run("store", "drain").exit_code == 0
    assert len(collector.events) == 3


def test_a_look_works_with_a_broken_destination(run, waiting, configure, durable, installed):
    waiting()
    configure(**durable, transports=["http", "acme-sync-send"])

    # To open a store for a destination that no agent has would have it keep records for it.
    depths = json.loads(run("store", "ls", "--json").stdout)
    assert list(depths) == ["http"]
    assert depths["http"]["waiting"] == 3


def test_drain_does_not_take_its_own_memory_for_the_store(run, configure):
    configure(store="redis", plugins={"redis": {"url": "redis://127.0.0.1:1/0"}})

    result = run("store", "drain")

    assert result.exit_code == 1
    assert "the store 'redis' is not available" in result.stderr


@pytest.mark.parametrize("command", ["ls", "export", "replay", "drain"])
def test_a_wrong_configuration_ends_with_78(run, configure, command):
    configure(bufer_size=1)

    result = run("store", command)

    assert result.exit_code == 78
    assert "did you mean 'buffer_size'?" in result.stderr


def test_progress_is_shown_on_a_terminal_only(run, waiting, tmp_path):
    pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")
    waiting()
    program = Path(sys.executable).with_name("guard-agent")
    command = [program, "store", "export", "--output", tmp_path / "out"]

    piped = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    ours, theirs = pty.openpty()
    try:
        subprocess.run(command, stderr=theirs, stdout=theirs, timeout=60, check=True)
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)

    assert piped.stderr == "3 records written\n"
    assert "exported" in shown
    assert "100%" in shown
