from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from guard_agent import Accepted, Batch, Priority, Record, Retry
from guard_agent.plugins.jsonl import JsonlSettings, JsonlTransport
from guard_agent.testing.records import make_context, make_record

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs links, modes and locks of POSIX")


def transport(path, **options):
    return JsonlTransport(JsonlSettings(path=path, **options), make_context())


def batch(*numbers, **options):
    return Batch("event", tuple(make_record(n, **options) for n in numbers))


def written(path):
    """The numbers of the records in a file, each line being one JSON object."""
    content = path.read_bytes()
    assert not content or content.endswith(b"\n")
    return [
        int(json.loads(line)["idempotency_key"].removeprefix("record-"))
        for line in content.splitlines()
    ]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "records.jsonl"


@pytest.fixture
async def opened(path):
    jsonl_transport = transport(path)
    await jsonl_transport.open()
    yield jsonl_transport
    await jsonl_transport.close()


async def test_each_record_is_its_payload_on_one_line(opened, path):
    events, metric = batch(1, 2), make_record(3, kind="metric")

    assert await opened.send(events) == Accepted()
    assert await opened.send(Batch("metric", (metric,))) == Accepted()

    payloads = [record.payload for record in (*events.records, metric)]
    assert path.read_bytes() == b"".join(payload + b"\n" for payload in payloads)
    kinds = [set(json.loads(payload)) & {"event_type", "metric_type"} for payload in payloads]
    assert kinds == [{"event_type"}, {"event_type"}, {"metric_type"}]


async def test_line_breaks_between_tokens_do_not_end_the_line(opened, path):
    spread = Record("r", "event", Priority.CHANGE, b'{\n "idempotency_key":\n"record-1"}\n', 0.0)

    await opened.send(Batch("event", (spread, make_record(2))))

    assert written(path) == [1, 2]


async def test_an_empty_batch_writes_nothing(opened, path):
    assert await opened.send(Batch("event", ())) == Accepted()
    assert path.read_bytes() == b""


async def test_what_is_there_is_kept(path):
    for n in (1, 2):
        jsonl_transport = transport(path, fsync=True)
        await jsonl_transport.open()
        assert await jsonl_transport.send(batch(n)) == Accepted()
        await jsonl_transport.close()

    assert written(path) == [1, 2]


async def test_folders_are_made_and_only_the_owner_may_read(tmp_path):
    path = tmp_path / "a" / "b" / "records.jsonl"
    jsonl_transport = transport(path)

    await jsonl_transport.open()
    await jsonl_transport.close()

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    jsonl_transport = transport("~/records.jsonl")

    await jsonl_transport.open()
    await jsonl_transport.close()

    assert (tmp_path / "records.jsonl").exists()


async def test_close_is_safe_at_any_time(path):
    jsonl_transport = transport(path)
    await jsonl_transport.close()
    await jsonl_transport.open()
    await jsonl_transport.close()
    await jsonl_transport.close()


# --- rotation -------------------------------------------------------------------------------------


async def test_a_full_file_is_renamed_and_the_oldest_goes(path):
    jsonl_transport = transport(path, max_bytes=250, backups=2)
    await jsonl_transport.open()
    for n in range(1, 10):
        assert await jsonl_transport.send(batch(n, size=100)) == Accepted()
    await jsonl_transport.close()

    files = {file.name: written(file) for file in path.parent.iterdir()}
    assert files == {
        "records.jsonl": [9],
        "records.jsonl.1": [7, 8],
        "records.jsonl.2": [5, 6],
    }


async def test_a_batch_larger_than_the_limit_stays_together(path):
    jsonl_transport = transport(path, max_bytes=250, backups=1)
    await jsonl_transport.open()
    await jsonl_transport.send(batch(1, size=100))
    await jsonl_transport.send(batch(2, 3, 4, 5, size=100))
    await jsonl_transport.close()

    assert written(path) == [2, 3, 4, 5]
    assert written(path.with_name("records.jsonl.1")) == [1]


async def test_without_backups_a_full_file_is_begun_anew(path):
    jsonl_transport = transport(path, max_bytes=250, backups=0)
    await jsonl_transport.open()
    for n in (1, 2, 3):
        await jsonl_transport.send(batch(n, size=100))
    await jsonl_transport.close()

    assert {file.name: written(file) for file in path.parent.iterdir()} == {"records.jsonl": [3]}


async def test_without_a_limit_nothing_is_renamed(path):
    jsonl_transport = transport(path, max_bytes=None)
    await jsonl_transport.open()
    for n in range(20):
        await jsonl_transport.send(batch(n, size=10_000))
    await jsonl_transport.close()

    assert [file.name for file in path.parent.iterdir()] == ["records.jsonl"]


# --- others at the same file ----------------------------------------------------------------------


@posix
async def test_a_file_renamed_by_somebody_else_is_followed(opened, path):
    """
    This is what logrotate does, or another process that rotates.
    """
    await opened.send(batch(1))
    path.rename(path.with_suffix(".old"))
    await opened.send(batch(2))
    path.unlink()
    await opened.send(batch(3))

    assert written(path.with_suffix(".old")) == [1]
    assert written(path) == [3]


@contextmanager
def locked_by_another(path):
    import fcntl

    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@posix
async def test_while_another_process_holds_the_lock_records_are_kept(opened, path):
    with locked_by_another(path):
        result = await opened.send(batch(1))

    assert result == Retry(f"{path} is in use by another process", throttled=True)
    assert written(path) == []
    assert await opened.send(batch(1)) == Accepted()
    assert written(path) == [1]


@posix
async def test_a_send_cancelled_while_it_waits_writes_nothing(opened, path):
    with locked_by_another(path):
        task = asyncio.ensure_future(opened.send(batch(1)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert await opened.send(batch(2)) == Accepted()
    assert written(path) == [2]


WRITER = """
import asyncio, sys
from pathlib import Path
from guard_agent import Accepted, Batch
from guard_agent.plugins.jsonl import JsonlSettings, JsonlTransport
from guard_agent.testing.records import make_context, make_record

async def main(path, first):
    settings = JsonlSettings(path=path, max_bytes=5000, backups=100)
    transport = JsonlTransport(settings, make_context())
    await transport.open()
    for n in range(first, first + 150, 3):
        batch = Batch("event", tuple(make_record(i, size=200) for i in (n, n + 1, n + 2)))
        while await transport.send(batch) != Accepted():
            pass
    await transport.close()

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


@posix
def test_processes_that_share_a_file_and_rotate_it_lose_and_mix_nothing(path):
    firsts = [0, 150, 300]
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(first)]) for first in firsts
    ]
    codes = [process.wait(timeout=60) for process in processes]

    assert codes == [0, 0, 0]
    files = list(path.parent.iterdir())
    found = [n for file in files for n in written(file)]
    assert sorted(found) == list(range(450))
    assert all(file.stat().st_size <= 5000 for file in files)
    assert len(files) > 10


# --- when writing fails ---------------------------------------------------------------------------


@contextmanager
def files_limited_to(size):
    """Beyond ``size`` the system writes what fits, then refuses: like a disk that is full."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@posix
async def test_a_batch_that_does_not_fit_the_disk_leaves_no_part_behind(opened, path):
    await opened.send(batch(1, size=100))

    with files_limited_to(350):
        result = await opened.send(batch(2, 3, 4, 5, size=100))
        size = path.stat().st_size

    assert result == Retry(f"cannot write {path}: File too large")
    assert size == 101
    assert await opened.send(batch(2, 3, 4, 5, size=100)) == Accepted()
    assert written(path) == [1, 2, 3, 4, 5]


async def test_a_line_cut_off_by_a_kill_is_ended_first(path):
    path.write_bytes(make_record(1).payload + b'\n{"idempotency_key":"rec')
    jsonl_transport = transport(path)
    await jsonl_transport.open()
    await jsonl_transport.send(batch(2))
    await jsonl_transport.close()

    lines = path.read_bytes().splitlines()
    assert lines == [make_record(1).payload, b'{"idempotency_key":"rec', make_record(2).payload]


@posix
async def test_a_symbolic_link_is_not_followed(path, tmp_path):
    target = tmp_path / "elsewhere"
    target.touch()
    path.symlink_to(target)

    with pytest.raises(OSError, match="it is a symbolic link; name the file itself"):
        await transport(path).open()
    assert target.read_bytes() == b""


@posix
async def test_a_pipe_is_refused_without_waiting_for_a_reader(path):
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(OSError, match="it is not a regular file"):
            await transport(path).open()
    finally:
        os.close(reader)
    with pytest.raises(OSError, match="cannot write"):
        await transport(path).open()


@pytest.mark.parametrize("place", ["folder", "file in a file"])
async def test_a_place_that_cannot_hold_the_file_is_named(tmp_path, place):
    path = tmp_path / "there"
    if place == "folder":
        path.mkdir()
    else:
        path.touch()
        path = path / "records.jsonl"

    with pytest.raises(OSError, match=f"cannot write {path}: "):
        await transport(path).open()


@posix
async def test_a_file_that_becomes_unusable_keeps_the_records_until_it_is_back(opened, path):
    await opened.send(batch(1))
    path.unlink()
    path.mkdir()

    result = await opened.send(batch(2))
    path.rmdir()

    assert result == Retry(f"cannot write {path}: Is a directory")
    assert await opened.send(batch(2)) == Accepted()
    assert written(path) == [2]


@posix
async def test_no_descriptor_is_left_open(path):
    before = len(list(Path("/dev/fd").iterdir()))
    jsonl_transport = transport(path, max_bytes=150, backups=1)
    await jsonl_transport.open()
    for n in range(10):
        await jsonl_transport.send(batch(n, size=100))
    path.unlink()
    path.mkdir()
    await jsonl_transport.send(batch(11))
    await jsonl_transport.close()

    assert len(list(Path("/dev/fd").iterdir())) == before
