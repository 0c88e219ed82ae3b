"""The process that judges patterns: what it gets, how it ends, and what if there is none."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from guard_agent.core.rules import judge as judge_module
from guard_agent.core.rules.judge import Judge, _Child, _interpreter, _read
from guard_agent.core.rules.patterns import Verdict, judge

KEYS = [("text", f"x{n}") for n in range(4)]

HEAD = """
import json, os, sys, time
keys = json.load(sys.stdin.buffer)
def answer(*facts):
    sys.stdout.write(json.dumps([json.dumps(facts), None, []]) + "\\n")
    sys.stdout.flush()
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put another program in the place of the one that judges: ``program("answer(1)")``."""

    def put(text):
        path = tmp_path / "patterns.py"
        path.write_text(HEAD + text, encoding="utf-8")
        monkeypatch.setattr(judge_module, "_PROGRAM", path)

    return put


def said(verdict):
    return json.loads(verdict.refused)


@pytest.fixture
def by_shape():
    return {key: judge(*key, measured=False) for key in [*KEYS, ("text", "a.*b.*c.*d")]}


async def test_l05_the_process_gets_the_patterns_in_order_each_once(program):
    program("for key in keys: answer(key)")

    found = await Judge()([*KEYS, KEYS[0]])

    assert list(found) == KEYS
    assert [said(verdict) for verdict in found.values()] == [[list(key)] for key in KEYS]


async def test_l05_the_process_has_nothing_of_the_app(program, monkeypatch, capfd):
    monkeypatch.setenv("DATABASE_PASSWORD", "canary")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    program(
        "answer(dict(os.environ), sys.flags.isolated, sys.flags.no_site, "
        "os.getsid(0) == os.getpid())\nsys.stderr.write('noise')"
    )

    ((environment, isolated, no_site, own_session),) = [
        said(verdict) for verdict in (await Judge()(KEYS[:1])).values()
    ]

    assert "DATABASE_PASSWORD" not in environment
    assert (environment["PATH"], environment["LD_LIBRARY_PATH"]) == (
        os.environ["PATH"],
        "/nowhere",
    )
    assert (isolated, no_site, own_session) == (1, 1, True)
    assert capfd.readouterr().err == ""


async def test_l05_what_there_was_no_time_for_is_missing_and_judged_the_next_time(program):
    program("answer(keys[0])\nif len(keys) == 4: time.sleep(600)\nfor k in keys[1:]: answer(k)")
    for seconds in (1, 5, 25):  # until a busy machine comes to the first answer
        measuring = Judge(seconds)
        if first := await measuring(KEYS):
            break
    measuring._seconds = 60

    second = await measuring(KEYS)

    assert list(first) == KEYS[:1]
    assert list(second) == KEYS
    assert said(second[KEYS[1]]) == [list(KEYS[1])]


async def test_l05_without_time_nothing_is_judged_in_this_process_instead(monkeypatch):
    """
    A hundred thousand patterns would keep it busy for minutes.
    """
    here = []
    monkeypatch.setattr(_Child, "_here", lambda child: here.append(child) or [])

    found = await Judge(seconds=0)([("text", f"x{n}.*y") for n in range(100_000)])

    assert len(found) < 100_000
    assert here == []


@pytest.mark.parametrize("text", ["sys.exit(1)", "os.abort()"])
async def test_l05_a_process_that_cannot_work_leaves_it_to_the_shape(program, by_shape, text):
    program(text)

    found = await Judge()(by_shape)

    assert found == by_shape
    assert found["text", "a.*b.*c.*d"].slow


async def test_l05_a_process_that_ends_in_the_middle_is_believed_up_to_there(program):
    program("answer(1)\nsys.stdout.write('[null, nu')\nsys.stdout.flush()\nos.abort()")

    assert list(await Judge()(KEYS)) == KEYS[:1]


async def test_l05_a_process_that_cannot_be_started_leaves_it_to_the_shape(
    program, by_shape, monkeypatch, tmp_path
):
    program("answer(1)")
    monkeypatch.setattr(judge_module, "_interpreter", lambda: str(tmp_path))

    assert await Judge()(by_shape) == by_shape


async def test_l05_a_program_that_is_not_there_leaves_it_to_the_shape(
    by_shape, monkeypatch, tmp_path
):
    """As in a program that was packed into one file."""
    monkeypatch.setattr(judge_module, "_PROGRAM", tmp_path / "patterns.py")

    assert await Judge()(by_shape) == by_shape


async def test_l05_what_is_known_is_not_asked_again_and_bounded(program, monkeypatch):
    monkeypatch.setattr(judge_module, "_KEEP", 3)
    program("for key in keys: answer(os.getpid())")
    measuring = Judge()
    first = await measuring(KEYS[:2])
    again = await measuring(KEYS[:3])

    assert again[KEYS[0]] is first[KEYS[0]]
    assert again[KEYS[2]] != first[KEYS[0]]
    assert len(measuring._known) == 3

    last = await measuring([KEYS[0], KEYS[3]])

    assert last[KEYS[0]] is first[KEYS[0]], "what is wanted now is kept"
    assert list(measuring._known) == [KEYS[0], KEYS[3]]
    assert await measuring([]) == {}


def test_l05_a_process_that_is_ended_before_it_begins_does_not_begin(program):
    program("answer(1)")
    child = _Child(KEYS, 30)
    child.end()

    assert child.run() == []
    assert child._process is None


def test_l05_a_process_that_is_ended_leaves_nothing_to_the_shape(program):
    program("time.sleep(600)")
    child = _Child(KEYS, 60)
    found = []
    thread = threading.Thread(target=lambda: found.append(child.run()), daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while child._process is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)

    child.end()
    thread.join(20)

    assert found == [[]]
    assert child._process.returncode == -signal.SIGKILL


def test_l05_a_process_that_cannot_be_talked_to_is_ended_and_leaves_nothing_to_the_shape():
    sleeping = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(sleeping, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.close()

        assert _Child(KEYS, 60)._talk(process) == (b"", True)

    assert process.returncode == -signal.SIGKILL


async def test_l05_the_thread_that_waits_for_it_is_a_daemon_with_a_name(program):
    program("time.sleep(600)")
    judging = asyncio.ensure_future(Judge()(KEYS))
    name = "guard-agent-patterns"
    while not (found := [t for t in threading.enumerate() if t.name == name]):
        await asyncio.sleep(0.005)

    assert found[0].daemon
    judging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await judging
    while found[0].is_alive():
        await asyncio.sleep(0.005)


def test_answers_are_read_up_to_the_first_that_is_none():
    assert _read(b'[null, null, [1, 2]]\n["no", null, []]\n[null, "sl\n[null, null, []]\n') == [
        Verdict(None, None, (1, 2)),
        Verdict("no", None, ()),
    ]
    assert _read(b"") == []


def test_the_interpreter_is_a_python_that_is_there(monkeypatch, tmp_path):
    """In a program that embeds Python, `sys.executable` is that program."""
    names = {}
    for name in ("Python3", "pypy3", "uwsgi"):
        names[name] = tmp_path / name
        names[name].touch()
    missing = tmp_path / "python9"
    folder = tmp_path / "bin"
    folder.mkdir()
    installed = folder / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    installed.touch()
    monkeypatch.setattr(sys, "base_exec_prefix", str(tmp_path))
    for executable, base, wanted in (
        (names["Python3"], names["pypy3"], names["Python3"]),
        (names["pypy3"], None, names["pypy3"]),
        (names["uwsgi"], names["pypy3"], names["pypy3"]),
        (missing, None, installed),
        ("", names["uwsgi"], installed),
    ):
        monkeypatch.setattr(sys, "executable", str(executable))
        monkeypatch.setattr(sys, "_base_executable", base and str(base), raising=False)
        assert _interpreter() == str(wanted)
    installed.unlink()
    assert _interpreter() is None
