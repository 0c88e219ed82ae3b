"""``guard-agent tail``: what a running agent takes, seen from another process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty, Queue

import pytest

from guard_agent.testing.records import make_event, make_metric

PATIENCE = 30
# What runs in the background of a shell ignores interrupts, and so would its children.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from guard_agent.cli import main
main(["tail", *sys.argv[1:]])
"""


class Tail:
    """The command as a process of its own."""

    def __init__(self, *options):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = Queue()
        self.threads = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (self.process.stdout, self.process.stderr)
        ]
        for thread in self.threads:
            thread.start()

    def _read(self, stream):
        for line in stream:
            self.lines.put(line.rstrip("\n"))

    def next(self):
        return self.lines.get(timeout=PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(PATIENCE)
        for thread in self.threads:
            thread.join(PATIENCE)
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def agent(configure, durable, start):
    """An agent that keeps what it takes for a while."""
    return start(configure(**durable, flush_interval=60))


def until_seen(tail, agent):
    """Record until the command sees something: it begins at the end of what is there."""
    for n in range(10 * PATIENCE):
        agent.record("event", make_event(reason=f"first {n}"))
        assert agent.flush_to_store().result(PATIENCE)
        try:
            return tail.lines.get(timeout=0.1)
        except Empty:
            continue
    raise AssertionError("nothing was seen")


def test_records_are_seen_as_they_come_redacted_and_stay(agent, collector, run):
    with Tail("--json") as tail:
        until_seen(tail, agent)
        agent.record("event", make_event(metadata={"password": "hidden-of-a-test"}))
        agent.record("metric", make_metric())
        assert agent.flush_to_store().result(PATIENCE)
        seen = [json.loads(tail.next())]
        while "metric_type" not in seen[-1]:
            seen.append(json.loads(tail.next()))

    assert "hidden-of-a-test" not in json.dumps(seen)
    assert seen[-2]["metadata"]["password"]
    assert collector.events == []
    assert json.loads(run("store", "ls", "--json").stdout)["http"]["leased"] == 0


def test_an_interrupt_ends_it_quietly(agent):
    with Tail() as tail:
        until_seen(tail, agent)
        tail.process.send_signal(signal.SIGINT)
        assert tail.process.wait(PATIENCE) == 0
        left = []
        for thread in tail.threads:
            thread.join(PATIENCE)
        while not tail.lines.empty():
            left.append(tail.lines.get())

    assert "Traceback" not in "".join(left)


def test_a_closed_pipe_ends_it(agent):
    program = Path(sys.executable).with_name("guard-agent")
    agent.record("event", make_event())
    assert agent.flush_to_store().result(PATIENCE)
    tail = subprocess.Popen(
        [program, "tail", "--all"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert tail.stdout.readline()
        tail.stdout.close()
        for _ in range(10 * PATIENCE):
            agent.record("event", make_event())
            assert agent.flush_to_store().result(PATIENCE)
            try:
                assert tail.wait(0.1) == 1
                break
            except subprocess.TimeoutExpired:
                continue
        else:
            raise AssertionError("it went on for nobody")
    finally:
        tail.kill()
        tail.wait(PATIENCE)


def test_all_begins_with_what_waits_and_count_ends_it(agent, run):
    for n in range(3):
        agent.record("event", make_event(reason=f"event {n}"))
    assert agent.flush_to_store().result(PATIENCE)

    result = run("tail", "--all", "--count", "2")

    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first.endswith("request_blocked: event 0")
    assert second.endswith("request_blocked: event 1")


def test_what_drives_a_terminal_is_shown_escaped(agent, run):
    agent.record("event", make_event(reason="\x1b[2J"))
    assert agent.flush_to_store().result(PATIENCE)

    result = run("tail", "--all", "--count", "1")

    assert "\x1b" not in result.stdout
    assert "\\x1b[2J" in result.stdout


def test_what_was_delivered_between_two_looks_is_counted(
    configure, durable, start, collector, tmp_path
):
    """The first destination is served at once; what nobody saw is told, not kept quiet about."""
    agent = start(configure(**durable, buffer_size=1, flush_interval=0.05))
    with Tail() as tail:
        told = until_seen(tail, agent)
        while "delivered between two looks" not in told:
            agent.record("event", make_event())
            agent.flush().result(PATIENCE)
            try:
                told = tail.lines.get(timeout=0.3)
            except Empty:
                continue

    assert told.split()[1].isdigit()


def test_each_record_is_shown_once_also_with_several_destinations(
    configure, durable, start, run, tmp_path
):
    plugins = {**durable.get("plugins", {}), "jsonl": {"path": str(tmp_path / "out.jsonl")}}
    settings = {**durable, "transports": ["http", "jsonl"], "plugins": plugins}
    agent = start(configure(**settings, flush_interval=60))
    for n in range(3):
        agent.record("event", make_event(reason=f"event {n}"))
    assert agent.flush_to_store().result(PATIENCE)

    shown = run("tail", "--all", "--count", "3").stdout.splitlines()

    assert [line.rpartition(" ")[2] for line in shown] == ["0", "1", "2"]


def test_one_cannot_look_into_the_memory_of_another_process(run, configure):
    configure(store="memory")

    result = run("tail")

    assert result.exit_code == 78
    assert "lives and ends with the process of the app" in result.stderr


def test_a_store_that_is_away_is_an_error(run, configure):
    configure(store="redis", plugins={"redis": {"url": "redis://127.0.0.1:1/0"}})

    result = run("tail")

    assert result.exit_code == 1
    assert "the store 'redis' is not available" in result.stderr
