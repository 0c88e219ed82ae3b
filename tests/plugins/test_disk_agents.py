"""
Whole agents on a disk that fails (S01 to S06 of docs/reliability.md).

`Host` checks in every test what each row means besides: taking a record never waits, the books
balance, and the agent ends in time.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import pytest

from guard_agent.testing.collector import Answer
from guard_agent.testing.hosts import Host

BUSY = Answer(status=503, headers={"Retry-After": "1"})
AWAY = "is not available, records wait in memory"
BACK = "the store disk works again"

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="needs limits, modes, forks of POSIX"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    return tmp_path.resolve() / "state"


def make_host(collector, settings=None, **config):
    settings = {"operation_timeout": 1.0, **(settings or {})}
    return Host(collector, store="disk", plugins={"disk": settings}, **config)


def file_of(folder):
    (path,) = folder.glob("disk-*.db")
    return path


def said(caplog, text):
    """How many warnings hold these words."""
    return sum(
        record.levelno >= logging.WARNING and text in record.getMessage()
        for record in caplog.records
    )


# --- in a process of their own, whose disk fails --------------------------------------------------

IN_A_PROCESS = """
import json, os, resource, signal, sys, time
from guard_agent.testing.collector import Collector
from guard_agent.testing.hosts import Host

with Collector() as collector:
    host = Host(collector, store="disk", plugins={"disk": json.loads(sys.argv[1])})
    levels = set()
    with host:
        %s
        host.until(lambda: len(collector.events) == host.recorded, patience=60)
        host.until(lambda: host.status().destinations["http"]["pending"] == 0)
        host.check_books()
    print(json.dumps({
        "levels": sorted(levels),
        "reasons": len(host.reasons()),
        "recorded": host.recorded,
        "twice": len(collector.duplicates),
        "dropped": host.dropped,
    }))
"""


def in_a_process(folder, body, *wrapper, **settings):
    """Books of an agent whose application does ``body``."""
    lines = "\n        ".join(body.strip().splitlines())
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", IN_A_PROCESS % lines, json.dumps(settings)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "GUARD_AGENT_STATE_DIR": str(folder)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout), done.stderr


def integrity(folder):
    with closing(sqlite3.connect(file_of(folder))) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall()


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to fail system calls")
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize(("call", "when"), [("pwrite64", "60..64"), ("fdatasync", "12..16")])
def test_s01_a_disk_that_fails_for_a_while_costs_durability_only(folder, call, when, error):
    """Written, or synced: records go on from memory, and to the disk when it works again."""
    inject = f"inject={call}:error={error}:when={when}"
    books, errors = in_a_process(
        folder,
        """
for n in range(30):
    host.record(10)
    host.confirm()
    levels.add(host.status().level)
host.until_level("journal")
""",
        *("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject),
        sync="full",
    )

    assert books["reasons"] == books["recorded"] == 300
    assert books["levels"] == ["journal", "memory"]
    assert books["dropped"] == {}
    # Stored, and not known to be: no more than what was on its way.
    assert books["twice"] <= 20
    assert 0 <= errors.count(AWAY) - errors.count(BACK) <= 1
    assert integrity(folder) == [("ok",)]


def test_s01_a_disk_that_is_full_is_used_again_when_there_is_room(folder):
    """A limit for the size of files stands for the quota; it is lifted while the agent runs."""
    books, errors = in_a_process(
        folder,
        """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
host.record(1)
host.until_delivered()
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
host.record(200)
assert not host.confirm()
levels.add(host.status().level)
host.until_delivered()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
host.until_level("journal")
host.record(1)
host.until(host.confirm)
levels.add(host.status().level)
""",
    )

    assert books["reasons"] == books["recorded"] == 202
    assert books["levels"] == ["journal", "memory"]
    assert books["dropped"] == {}
    assert (errors.count(AWAY), errors.count(BACK)) == (1, 1)


# --- a store that may not be used -----------------------------------------------------------------


def no_folder(folder):
    folder.write_text("this is no folder")


def wide_open(folder):
    folder.mkdir()
    folder.chmod(0o777)


def a_link(folder):
    other = folder.with_name("elsewhere")
    other.mkdir(mode=0o700)
    folder.symlink_to(other)


def of_somebody_else(folder):
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)


def linked_file(folder):
    folder.mkdir(mode=0o700)
    target = folder.with_name("target")
    target.write_text("precious")
    from guard_agent.plugins.disk import DiskStore
    from guard_agent.testing.records import make_context

    path = DiskStore(DiskStore.Settings(), make_context(folder, project_id="shop")).path
    path.symlink_to(target)


@pytest.mark.parametrize(
    "prepare",
    [no_folder, wide_open, a_link, of_somebody_else, linked_file],
    ids=lambda f: f.__name__,
)
def test_s03_a_place_that_cannot_be_trusted_is_refused_in_one_line(
    folder, collector, caplog, prepare
):
    prepare(folder)
    with make_host(collector) as host:
        for _ in range(20):
            host.record(1)
            host.confirm()
        host.until_delivered()
        status = host.status()
        assert (status.level, status.status) == ("memory", "degraded")
        assert "the store is not available" in str(status.errors)
    assert said(caplog, AWAY) == 1
    assert "\n" not in next(r.getMessage() for r in caplog.records if AWAY in r.getMessage())
    if prepare is linked_file:
        assert folder.with_name("target").read_text() == "precious"


def test_s03_without_a_home_the_agent_runs_in_memory(tmp_path, collector, caplog, monkeypatch):
    for name in ("GUARD_AGENT_STATE_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nonexistent/home")
    if os.geteuid() == 0:
        (tmp_path / "file").write_text("")  # nothing is not writable for root, but this
        monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with make_host(collector) as host:
        host.record(5)
        host.until_delivered()
        assert host.status().level == "memory"
    assert said(caplog, AWAY) == 1


def test_s03_what_is_made_is_for_this_user_alone(folder, collector):
    with make_host(collector) as host:
        host.record(1)
        assert host.confirm()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


# --- a file that others use, or break -------------------------------------------------------------

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(path):
    """Another process has the file for itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "locked\n"
        yield
    finally:
        process.communicate()


def test_s04_a_file_that_is_locked_by_another_process_holds_up_nothing(folder, collector, caplog):
    with make_host(collector) as host:
        host.record(1)
        host.until_delivered()
        with locked(file_of(folder)):
            host.record(100)
            assert not host.confirm()
            host.until_delivered()
            status = host.status()
            assert status.level == "memory"
            assert "locked by another process" in str(status.errors)
        host.until_level("journal")
        host.record(10)
        assert host.confirm()
        host.until_delivered()
    assert collector.duplicates == []
    assert (said(caplog, AWAY), said(caplog, BACK)) == (1, 1)


@pytest.mark.parametrize("operation_timeout", [0.3, 5.0])
def test_s04_a_file_that_is_locked_does_not_hold_up_the_end(folder, collector, operation_timeout):
    with make_host(collector, {"operation_timeout": operation_timeout}) as host:
        host.record(1)
        host.until_delivered()
        with locked(file_of(folder)):
            host.record(10)
            host.stop()
        host.check_books()


@pytest.mark.parametrize("how", ["corrupt", "removed"])
def test_what_a_file_lost_is_counted_and_the_store_goes_on(folder, collector, caplog, how):
    collector.always(Answer(status=503, headers={"Retry-After": "2"}))
    with make_host(collector) as host:
        host.record(30)
        assert host.confirm()
        assert host.status().destinations["http"]["pending"] == 30
        path = file_of(folder)
        if how == "removed":
            for file in folder.glob("disk-*"):
                file.unlink()
        else:
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            with path.open("r+b") as file:
                file.write(b"\xff" * 20_000)
        host.record(5)
        host.until(host.confirm)
        books = host.status().destinations["http"]
        assert books["dropped"] == {"store_reset": 30}
        assert books["pending"] == 5
        host.check_books()

        collector.always(None)
        host.until_delivered(5)
        assert host.status().level == "journal"
    assert host.dropped == {"store_reset": 30}


# --- forks ----------------------------------------------------------------------------------------


def test_s06_a_fork_storm_with_an_agent_at_work_harms_nobody(folder, collector):
    """Each child has an agent of its own, on the same file; the parent's goes on."""
    code = """
import os, signal, sys, time
from guard_agent import AgentConfig, SecurityEvent, get_current_timestamp, guard_agent
signal.alarm(80)
agent = guard_agent(AgentConfig(
    rollup=False,
    api_key="test-key-0123", endpoint=sys.argv[1], store="disk", project_id="shop", rules=[],
    buffer_size=5, flush_interval=0.1, max_requests_per_second=1000, max_buffer_records=100_000,
    stop_timeout=10,
))
def record(reason):
    agent.send_event(SecurityEvent(
        timestamp=get_current_timestamp(), event_type="suspicious_request", reason=reason
    ))
record("first")
agent.flush_to_store()
for number in range(25):
    for n in range(20):
        record(f"parent-{number}-{n}")
    if os.fork() == 0:
        status = 1
        try:
            for n in range(4):
                record(f"child-{number}-{n}")
            assert agent.flush_to_store(), "the child cannot store"
            agent.stop()
            status = 0
        finally:
            os._exit(status)
for _ in range(25):
    assert os.wait()[1] == 0
agent.flush_to_store()
agent.stop()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, collector.url],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    with make_host(collector) as host:  # what was still to be sent
        host.agent.start()
        deadline = time.monotonic() + 30
        while len(collector.events) < 601:
            assert time.monotonic() < deadline, collector.summary()
            host.confirm()
            time.sleep(0.05)
        host.recorded = 0
        host.check_books = lambda: None  # they know nothing of what others took
    assert len({event["reason"] for event in collector.events}) == 601
    assert collector.duplicates == []
    assert integrity(folder) == [("ok",)]
