"""What the disk store is made of, by itself: its place, its thread, and who else is alive."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import stat
import sys
import threading
import time

import pytest

from guard_agent.plugins.disk import DiskStoreError
from guard_agent.plugins.disk import folder as folder_module
from guard_agent.plugins.disk.folder import (
    exclusive,
    identity,
    locked,
    prepare_file,
    prepare_folder,
    set_aside,
)
from guard_agent.plugins.disk.jobs import GivenUpError, Job, Jobs
from guard_agent.plugins.disk.owners import NOBODY, Owner

PATIENCE = 30.0

posix_only = pytest.mark.skipif(
    sys.platform == "win32", reason="needs modes, owners, locks of POSIX"
)


@pytest.fixture
def place(tmp_path):
    return tmp_path.resolve()


# --- the place ------------------------------------------------------------------------------------


def said(call, *arguments):
    with pytest.raises(DiskStoreError) as caught:
        call(*arguments)
    return str(caught.value)


@posix_only
def test_a_folder_is_made_for_this_user_with_those_above_it(place):
    prepare_folder(place / "a" / "b")
    prepare_folder(place / "a" / "b")

    assert stat.S_IMODE((place / "a" / "b").stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_an_error_with_a_way_out(place):
    (place / "file").touch()

    assert said(prepare_folder, place / "file" / "sub") == (
        f"cannot make the folder {place / 'file' / 'sub'}: Not a directory; set "
        "GUARD_AGENT_STATE_DIR, or path in the store's settings, to a folder of your own"
    )


@posix_only
@pytest.mark.parametrize("mode", [0o020, 0o002, 0o022])
def test_what_others_may_write_to_is_refused(place, mode):
    place.chmod(0o700 | mode)
    file = place / "f"
    file.touch()
    file.chmod(0o600 | mode)

    assert said(prepare_folder, place) == (
        f"will not use the folder {place}: others may write to it (mode {0o700 | mode:04o}); "
        f"chmod 700 {place}"
    )
    assert said(prepare_file, file) == (
        f"will not use the file {file}: others may write to it (mode {0o600 | mode:04o}); "
        f"chmod 600 {file}"
    )


@posix_only
def test_what_others_may_read_is_used(place):
    place.chmod(0o755)

    prepare_folder(place)


def test_what_is_of_another_kind_is_refused(place):
    (place / "f").mkdir()

    assert said(prepare_file, place / "f") == (
        f"will not use the file {place / 'f'}: it is not a file; remove it"
    )


@posix_only
def test_links_are_refused_also_beside_the_file(place):
    file = place / "f"
    for name in ("f", "f-wal", "f-shm"):
        link = place / name
        link.symlink_to(place / "elsewhere")
        assert said(prepare_file, file) == (
            f"will not use the file {link}: it is a symbolic link; name the file itself"
        )
        link.unlink()
        assert list(place.iterdir()) == []
    (place / "folder").symlink_to(place)
    assert said(prepare_folder, place / "folder") == (
        f"will not use the folder {place / 'folder'}: it is a symbolic link; name the folder itself"
    )


@posix_only
def test_files_are_made_and_kept_for_this_user(place):
    file = place / "f"
    prepare_file(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_size == 0
    file.write_bytes(b"kept")
    for name in ("f", "f-wal", "f-shm"):
        (place / name).touch()
        (place / name).chmod(0o644)

    prepare_file(file)

    assert [stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()] == [0o600] * 3
    assert file.read_bytes() == b"kept"


def test_a_file_in_a_folder_that_is_gone_is_an_error(place):
    file = place / "gone" / "f"

    assert said(prepare_file, file) == f"cannot make the file {file}: No such file or directory"


@posix_only
def test_what_belongs_to_somebody_else_is_refused(place, monkeypatch):
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)

    assert said(prepare_folder, place) == (
        f"will not use the folder {place}: it belongs to user {me}, not to {me + 1}, who runs "
        "this; use a folder of your own"
    )


@posix_only
def test_a_folder_is_locked_until_it_is_let_go(place):
    with exclusive(place, 0):
        assert said(enter, place) == f"the folder {place} is locked by another process"
    enter(place)
    assert said(enter, place / "gone") == (
        f"cannot open the folder {place / 'gone'}: No such file or directory"
    )
    (place / "link").symlink_to(place)
    assert said(enter, place / "link").startswith(f"cannot open the folder {place / 'link'}: ")


def enter(place, seconds=0.0):
    with exclusive(place, time.monotonic() + seconds):
        pass


@posix_only
def test_a_locked_folder_is_waited_for(place):
    holding, go = threading.Event(), threading.Event()

    def hold():
        with exclusive(place, 0):
            holding.set()
            assert go.wait(PATIENCE)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holding.wait(PATIENCE)
    timer = threading.Timer(0.05, go.set)
    timer.start()
    enter(place, PATIENCE)
    assert go.is_set()
    thread.join()
    timer.join()


@posix_only
def test_a_lock_is_held_once_until_it_is_closed(place):
    (place / "f").touch()
    first = os.open(place / "f", os.O_RDWR)
    second = os.open(place / "f", os.O_RDWR)

    assert locked(first)
    assert not locked(second)
    os.close(first)
    assert locked(second)
    os.close(second)


def test_a_name_stands_for_what_has_it_now(place):
    (place / "a").touch()
    (place / "b").touch()
    found = (place / "a").stat()

    assert identity(place / "a") == (found.st_dev, found.st_ino)
    assert identity(place / "a") != identity(place / "b")
    assert identity(place / "c") is None


def test_what_is_set_aside_keeps_its_parts_and_few_are_kept(place, monkeypatch):
    file = place / "f.db"
    (place / "g.db.corrupt-1").touch()
    now = 1_700_000_000_123_456_789
    names = []
    for n in range(4):
        monkeypatch.setattr(folder_module.time, "time_ns", lambda n=n: now + n * 1000)
        for suffix in ("", "-wal", "-shm")[: 1 if n == 2 else 3]:
            (place / f"f.db{suffix}").write_text(f"{n}{suffix}")
        names.append(set_aside(file).name)
        assert not file.exists()

    assert names[0] == "f.db.corrupt-20231114T221320.123456Z"
    kept = {path.name: path.read_text() for path in place.iterdir()}
    assert kept == {
        "g.db.corrupt-1": "",
        names[2]: "2",
        names[3]: "3",
        f"{names[3]}-wal": "3-wal",
        f"{names[3]}-shm": "3-shm",
    }


# --- who is alive ---------------------------------------------------------------------------------


@posix_only
def test_an_owner_is_dead_when_nobody_holds_its_lock(place):
    one, two = Owner(place / "f-1"), Owner(place / "f-1")
    assert one.number == two.number == NOBODY
    one.begin()
    two.begin()
    number = two.number
    two.begin()
    assert two.number == number != one.number
    assert min(number, one.number) > NOBODY
    assert max(number, one.number) < 1 << 63, "it fits an integer of SQLite"
    assert sorted(path.name for path in place.iterdir()) == sorted(
        f"f-1.owner-{owner.number:016x}" for owner in (one, two)
    )
    assert [path.stat().st_mode & 0o777 for path in place.iterdir()] == [0o600] * 2
    assert one.dead() == two.dead() == []

    os.close(two._descriptor)  # as the system does at the end of a process
    two._descriptor = None

    assert one.dead() == [number]
    assert Owner(place / "f-1").dead() == [number]
    one.forget([number, 12345])
    assert one.dead() == []
    assert [path.name for path in place.iterdir()] == [f"f-1.owner-{one.number:016x}"]
    one.end()


@posix_only
def test_an_owner_that_ended_is_nobody_and_leaves_nothing(place):
    owner = Owner(place / "f-1")
    owner.end()
    owner.begin()
    first = owner.number
    owner.end()
    owner.end()

    assert owner.number == NOBODY
    assert list(place.iterdir()) == []
    owner.begin()
    assert owner.number not in (first, NOBODY)
    next(place.iterdir()).unlink()
    owner.end()


@posix_only
def test_what_a_child_inherits_it_leaves_to_the_parent(place):
    parent, other = Owner(place / "f-1"), Owner(place / "f-1")
    parent.begin()
    kept = os.dup(parent._descriptor)  # of the parent
    number = parent.number

    parent.leave_to_parent()
    parent.leave_to_parent()

    assert parent.number == NOBODY
    assert other.dead() == []
    os.close(kept)
    assert other.dead() == [number]


@posix_only
def test_a_number_is_never_that_of_nobody_and_a_file_never_a_link(place, monkeypatch):
    monkeypatch.setattr("guard_agent.plugins.disk.owners.secrets.randbits", lambda bits: 0)
    owner = Owner(place / "f-1")
    unborn = place / f"f-1.new-{NOBODY + 1:016x}"
    unborn.touch()
    owner.begin()
    assert owner.number == NOBODY, "the file is somebody else's"
    unborn.unlink()
    owner.begin()

    assert owner.number == NOBODY + 1
    owner.end()


@posix_only
def test_strange_files_are_nobody(place):
    (place / "f-1.owner-xyz").touch()
    (place / f"f-1.owner-{NOBODY:016x}").touch()
    (place / f"f-1.owner-{77:016x}").symlink_to(place / "target")
    (place / "target").touch()
    (place / f"other.owner-{78:016x}").touch()

    assert Owner(place / "f-1").dead() == []
    (place / f"f-1.owner-{79:016x}").touch()
    assert Owner(place / "f-1").dead() == [79]


def test_without_a_folder_the_owner_is_nobody(place):
    owner = Owner(place / "gone" / "f")
    owner.begin()

    assert owner.number == NOBODY
    owner.end()


@posix_only
def test_where_files_cannot_be_locked_the_owner_is_nobody(place, monkeypatch):
    monkeypatch.setattr("guard_agent.plugins.disk.owners.locked", lambda descriptor: False)
    owner = Owner(place / "f-1")
    before = os.open(place, os.O_RDONLY)
    os.close(before)
    owner.begin()

    assert owner.number == NOBODY
    assert list(place.iterdir()) == []
    after = os.open(place, os.O_RDONLY)
    os.close(after)
    assert after == before, "no descriptor was left open"


# --- one job --------------------------------------------------------------------------------------


def test_a_job_keeps_its_result_or_error_and_wakes():
    woken = []
    error = KeyError("x")

    def fail(_):
        raise error

    good = Job(lambda job: (job, 5), 12.5, lambda: woken.append("good"))
    bad = Job(fail, 0, lambda: woken.append("bad"))
    assert not good.done
    for job in (good, bad):
        job.run()

    assert (good.result, good.error, good.done, good.deadline) == ((good, 5), None, True, 12.5)
    assert (bad.result, bad.error, bad.done) == (None, error, True)
    assert woken == ["good", "bad"]
    assert good.abandon()


def test_a_job_that_is_given_up_is_not_begun_when_it_could_be_undone():
    calls = []
    job = Job(calls.append, 0, lambda: calls.append("woken"), undo=calls.append)
    job.check()
    assert not job.abandon()
    job.run()

    assert calls == []
    assert isinstance(job.error, GivenUpError)


def test_a_job_without_undo_is_done_all_the_same():
    calls = []
    job = Job(lambda _: calls.append("done"), 0, lambda: calls.append("woken"))
    job.abandon()
    job.check()
    job.run()

    assert calls == ["done"], "nobody is woken"


def test_a_job_that_is_given_up_while_it_runs_is_undone(caplog):
    undone = []

    def undo(result):
        undone.append(result)
        raise ValueError("not even that")

    def work(job):
        job.abandon()
        return 7

    with caplog.at_level(logging.DEBUG, logger="guard_agent.disk"):
        Job(work, 0, undo=undo).run()

    assert undone == [7]
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.exc_info[0] is ValueError


# --- the thread -----------------------------------------------------------------------------------


@pytest.fixture
def jobs():
    jobs = Jobs("disk-test")
    jobs.start()
    yield jobs
    jobs.stop()
    jobs._thread.join(PATIENCE)
    assert not jobs._thread.is_alive()


async def test_work_is_done_in_order_in_a_daemon_thread(jobs):
    assert jobs._thread.daemon, "a dead disk must not keep the process"
    names = await asyncio.gather(
        *(jobs.run(lambda _, n=n: (n, threading.current_thread().name), PATIENCE) for n in range(5))
    )

    assert names == [(n, "disk-test") for n in range(5)]


async def test_an_error_goes_to_who_asked(jobs):
    def fail(_):
        raise KeyError("of the work")

    with pytest.raises(KeyError, match="of the work"):
        await jobs.run(fail, PATIENCE)
    assert await jobs.run(lambda _: 1, PATIENCE) == 1


async def test_a_job_knows_when_it_should_have_ended(jobs):
    before = time.monotonic()

    deadline = await jobs.run(lambda job: job.deadline, 500.0)

    assert before + 500 <= deadline <= time.monotonic() + 500


async def test_a_disk_that_does_not_answer_is_an_error_and_the_work_is_undone(jobs):
    go, undone = threading.Event(), []

    def work(_):
        assert go.wait(PATIENCE)
        return "late"

    with pytest.raises(DiskStoreError) as caught:
        await jobs.run(work, 0.05, undo=undone.append)
    assert str(caught.value) == "the disk did not answer within 0.05 s"
    assert undone == []
    go.set()

    assert await jobs.run(lambda _: list(undone), PATIENCE) == ["late"]


async def test_what_was_done_for_a_cancelled_caller_is_undone_in_the_thread(jobs):
    """Cancelled in the moment in which the result is there."""
    undone = []

    def undo(result):
        undone.append((result, threading.current_thread().name))

    call = asyncio.ensure_future(jobs.run(lambda _: "done", PATIENCE, undo=undo))
    await asyncio.sleep(0)
    assert finish(jobs)  # while the loop stands still
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    assert await jobs.run(lambda _: list(undone), PATIENCE) == [("done", "disk-test")]


def finish(jobs):
    """Wait until the thread has done what was asked for before."""
    ended = threading.Event()
    jobs._queue.put(Job(lambda _: ended.set(), 0))
    return ended.wait(PATIENCE)


def test_what_is_done_for_a_loop_that_is_closed_is_undone(jobs):
    go, undone = threading.Event(), []

    def work(_):
        assert go.wait(PATIENCE)
        return "late"

    async def ask():
        call = asyncio.ensure_future(jobs.run(work, PATIENCE, undo=undone.append))
        await asyncio.sleep(0)
        return call

    loop = asyncio.new_event_loop()
    call = loop.run_until_complete(ask())
    loop.close()
    go.set()
    assert finish(jobs)

    assert undone == ["late"]
    call._log_destroy_pending = False  # it never ends, which is what this is about
    call.get_coro().close()


async def test_no_more_than_64_wait(jobs):
    go = threading.Event()
    first = asyncio.ensure_future(jobs.run(lambda _: go.wait(PATIENCE), PATIENCE))
    while jobs._queue.qsize() or not first:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    while jobs._queue.qsize():  # until the thread has begun
        await asyncio.sleep(0.001)
    others = [asyncio.ensure_future(jobs.run(lambda _: 1, PATIENCE)) for _ in range(64)]
    await asyncio.sleep(0)

    message = "the disk does not answer, and much waits for it already"
    with pytest.raises(DiskStoreError, match=re.escape(message)):
        await jobs.run(lambda _: 1, PATIENCE)

    go.set()
    assert await first
    assert sum(await asyncio.gather(*others)) == 64
