from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import Phase, settings

from guard_agent import Appended, Level, Priority, Record
from guard_agent.plugins.disk import DiskSettings, DiskStore, DiskStoreError
from guard_agent.testing.contracts import BufferStoreContract
from guard_agent.testing.contracts.state_machine import STATES
from guard_agent.testing.records import make_context, make_record, make_records

BIG = 1 << 30
LONG = 60.0
ONE = ("one",)
TWO = ("one", "two")

posix_only = pytest.mark.skipif(
    sys.platform == "win32", reason="needs modes, owners, forks of POSIX"
)


class TestDiskStoreContract(BufferStoreContract):
    plugin = DiskStore
    dead_letter_limit = 40
    states = settings(STATES, phases=[Phase.generate])  # what fails is shown in time, if longer

    def make_store(self, context):
        config = context.config
        options = DiskSettings(
            max_records=config.max_buffer_records,
            max_bytes=config.max_buffer_bytes,
            max_dead_letters=40,
            operation_timeout=60,
        )
        return DiskStore(options, context)


# --- what the tests are written with --------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return tmp_path.resolve() / "state"


def make_store(folder, *, destinations=ONE, project="shop", cls=DiskStore, **options):
    context = make_context(folder, instance="disk", destinations=destinations, project_id=project)
    return cls(DiskSettings(**options), context)


@asynccontextmanager
async def opened(folder, **options):
    store = make_store(folder, **options)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


async def take(store, destination="one", ttl=LONG, amount=10_000):
    return await store.lease(destination, amount, BIG, ttl)


async def counts(store, destination="one"):
    depth = (await store.stats())[destination]
    return depth.ready, depth.leased, depth.buried


def ids(lease):
    return [record.id for record in lease.entries.values()]


def look(path):
    """Another connection, as another program would have it."""
    return closing(sqlite3.connect(path, isolation_level=None))


def run_python(code, *arguments, wrapper=()):
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


PREAMBLE = """
import asyncio, os, sys
from pathlib import Path
from guard_agent.plugins.disk import DiskSettings, DiskStore, DiskStoreError
from guard_agent.testing.records import make_context, make_record, make_records

def make_store(folder, destinations=("one",), **options):
    context = make_context(
        Path(folder), instance="disk", destinations=destinations, project_id="shop"
    )
    return DiskStore(DiskSettings(**options), context)
"""


# --- what survives --------------------------------------------------------------------------------


def test_what_it_keeps_survives_the_process():
    assert DiskStore.level is Level.JOURNAL


async def test_records_leases_and_dead_letters_survive_a_restart(folder):
    async with opened(folder) as store:
        await store.append(make_records(5), evict=False)
        lease = await take(store, amount=3)
        await store.bury(lease, list(lease.entries)[:1], "refused")
        await store.ack(lease, list(lease.entries)[1:2])

    async with opened(folder) as store:
        assert await counts(store) == (2, 1, 1)
        assert ids(await take(store)) == ["record-4", "record-5"]
        (letter,) = await store.dead_letters("one")
        assert (letter.record, letter.reason) == (make_record(1), "refused")
        # The lease of before is still good.
        assert await store.release(lease, list(lease.entries)) == 1
        assert ids(await take(store)) == ["record-3"]


async def test_any_payload_comes_back_byte_for_byte(folder):
    payloads = [b"", b"{}", b'{\n "a":\n 1}\n', b"\x00\xff\n\x00", b"x" * 100_000]
    records = [
        Record(f'"\u00e9\u2028\n{n}', "metric", Priority.METRIC, payload, 1.5 * n + 1e-7)
        for n, payload in enumerate(payloads)
    ]
    async with opened(folder) as store:
        await store.append(records, evict=False)

    async with opened(folder) as store:
        assert list((await take(store)).entries.values()) == records


async def test_two_stores_on_one_file_share_what_is_in_it(folder):
    async with opened(folder) as first, opened(folder) as second:
        await first.append(make_records(4), evict=False)
        mine = await take(first, amount=1)
        theirs = await take(second)

        assert (ids(mine), ids(theirs)) == (["record-1"], ["record-2", "record-3", "record-4"])
        assert mine.id != theirs.id
        assert await take(first) is None
        assert await counts(first) == await counts(second) == (0, 4, 0)


async def test_what_one_process_had_leased_another_gives_back(folder):
    async with opened(folder) as first, opened(folder) as second:
        await first.append(make_records(2), evict=False)
        late = await take(first, ttl=0.01)
        await asyncio.sleep(0.02)

        assert await second.release_expired() == 2
        present = await take(second)
        assert await first.release(late, list(late.entries)) == 0
        assert await first.ack(late, list(late.entries)[:1]) == 1
        assert await second.ack(present, list(present.entries)) == 1


LEASING = (
    PREAMBLE
    + """
async def main():
    store = make_store(sys.argv[1])
    await store.open()
    await store.append(make_records(5), evict=False)
    lease = await store.lease("one", 3, 1 << 30, 3600.0)
    if sys.argv[2] == "close":
        await store.close()
    print("leased", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
)


@contextmanager
def leasing(folder, how="stay"):
    process = subprocess.Popen(
        [sys.executable, "-c", LEASING, str(folder), how], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "leased\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@posix_only
async def test_what_a_killed_process_had_leased_is_free_at_once(folder):
    """Not before it is dead, and long before its leases end."""
    async with opened(folder) as living:
        with leasing(folder) as process:
            assert await living.release_expired() == 0
            assert await counts(living) == (2, 3, 0)

            process.kill()
            process.wait()

            assert await living.release_expired() == 3
            assert await counts(living) == (5, 0, 0)
        assert len(list(folder.glob("*.owner-*"))) == 1


@posix_only
async def test_what_a_killed_process_had_leased_is_free_for_the_next(folder):
    with leasing(folder):
        pass

    async with opened(folder) as store:
        assert await counts(store) == (5, 0, 0)


@posix_only
async def test_what_a_process_that_is_still_there_had_leased_stays_leased(folder):
    """Stopped, or with its store closed: it may come back, and have it on its way."""
    with leasing(folder) as process:
        process.send_signal(signal.SIGSTOP)
        async with opened(folder) as store:
            assert await store.release_expired() == 0
            assert await counts(store) == (2, 3, 0)
    with leasing(folder, "close"):
        async with opened(folder) as store:
            assert await counts(store) == (7, 3, 0)


@posix_only
async def test_a_child_does_not_keep_what_its_dead_parent_had_leased(folder):
    code = (
        PREAMBLE
        + """
async def main():
    store = make_store(sys.argv[1])
    await store.open()
    await store.append(make_records(2), evict=False)
    await store.lease("one", 2, 1 << 30, 3600.0)
    return store
loop = asyncio.new_event_loop()
store = loop.run_until_complete(main())
if child := os.fork():
    print(child)
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
os.close(1)
import time
time.sleep(60)
"""
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, check=False
    )
    child = int(process.stdout)
    try:
        async with opened(folder) as store:
            assert await counts(store) == (2, 0, 0)
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


async def test_a_lease_from_before_a_restart_of_the_system_is_void(folder):
    """
    The clock that leases end on begins anew with the system: what lies in its future is over.
    """
    async with opened(folder) as store:
        await store.append(make_records(3), evict=False)
        lease = await take(store, amount=2)
        await store.release(lease, list(lease.entries)[:1], delay=LONG)
        assert await store.release_expired() == 0
        with look(store.path) as other:
            other.execute("UPDATE hold SET since = since + 1e6, until = until + 1e6")

        assert await store.release_expired() == 1
        assert ids(await take(store)) == ["record-1", "record-2", "record-3"]


async def test_each_project_has_a_file_of_its_own(folder):
    async with opened(folder) as shop, opened(folder, project="other") as other:
        await shop.append(make_records(1), evict=False)

        assert shop.path != other.path
        assert await take(other) is None
    assert make_store(folder).path == shop.path
    assert "shop" not in shop.path.name


async def test_path_names_another_folder(folder, tmp_path):
    async with opened(folder, path=tmp_path / "here") as store:
        assert store.path.parent == tmp_path / "here"
        assert store.path.exists()
    assert not folder.exists()


async def test_sync_says_whether_power_may_fail(folder):
    for sync, level in (("normal", 1), ("full", 2)):
        async with opened(folder, sync=sync) as store:
            assert store.sync == sync
            found = store._database._connection.execute("PRAGMA synchronous").fetchone()
            assert found == (level,)


async def test_a_store_can_be_closed_and_opened_again(folder):
    store = make_store(folder)
    with pytest.raises(DiskStoreError, match="not open"):
        await store.append(make_records(1), evict=False)
    for n in (1, 2):
        await store.open()
        await store.append(make_records(1), evict=False)
        assert await counts(store) == (n, 0, 0)
        await store.close()
        await store.close()
    with pytest.raises(DiskStoreError, match="not open"):
        await store.stats()


async def test_a_store_without_destinations_keeps_nothing(folder):
    async with opened(folder, destinations=()) as store:
        assert await store.append(make_records(3), evict=True) == Appended(3)
        assert await store.stats() == {}


async def test_an_unknown_destination_is_named_in_the_error(folder):
    async with opened(folder, destinations=TWO) as store:
        with pytest.raises(ValueError, match="no destination 'three'; it was made for: one, two"):
            await take(store, "three")
    async with opened(folder, destinations=()) as store:
        with pytest.raises(ValueError, match=r"no destination 'one'; it was made for: none$"):
            await take(store, "one")


# --- bounds ---------------------------------------------------------------------------------------


def test_the_bounds_follow_from_max_bytes(folder):
    store = make_store(folder)

    assert store._tables.bounds.bytes == 256 * 1024 * 1024
    assert store._tables.bounds.records == 512 * 1024
    assert 512 < store._max_pages * 4096 / 2**20 < 640
    assert make_store(folder, max_records=7)._tables.bounds.records == 7


async def test_more_than_a_block_of_records_makes_room(folder):
    async with opened(folder, destinations=TWO, max_records=2000) as store:
        low = [make_record(n, priority=Priority.METRIC) for n in range(1, 2001)]
        assert await store.append(low, evict=True) == Appended(2000)
        one = await take(store, "one", amount=700)
        await store.ack(one, list(one.entries)[:100])

        high = [make_record(n, priority=Priority.ATTACK) for n in range(2001, 3201)]
        # 100 records are done for "one"; 600 are leased and stay, 100 of the rest go for "two" only
        assert await store.append(high, evict=True) == Appended(1200, {"one": 1100, "two": 1200})

        assert await counts(store, "one") == (1400, 600, 0)
        assert await counts(store, "two") == (2000, 0, 0)
        two = await take(store, "two")
        assert ids(two)[:1200] == [record.id for record in high]
        assert ids(two)[1200:1800] == [record.id for record in low[100:700]]
        assert ids(two)[1800:] == [record.id for record in low[1800:]]


async def test_a_share_of_a_lease_holds_one_record_that_is_larger_but_only_as_the_first(folder):
    async with opened(folder, destinations=("one",)) as store:
        await store.append(
            [
                make_record(1, size=950, priority=Priority.ATTACK),
                make_record(2, size=100, priority=Priority.ATTACK),
                make_record(3, size=900, priority=Priority.METRIC),
            ],
            evict=False,
        )

        lease = await store.lease("one", 100, 1000, 60.0)

        assert [record.id for record in lease.entries.values()] == ["record-1"]


async def test_a_burst_larger_than_the_store_keeps_its_youngest(folder):
    async with opened(folder, max_records=700) as store:
        await store.append(make_records(600), evict=True)
        burst = [make_record(n) for n in range(601, 2601)]

        assert await store.append(burst, evict=True) == Appended(2000, {"one": 1900})

        assert ids(await take(store)) == [record.id for record in burst[-700:]]


async def test_dead_letters_are_bounded_in_bytes(folder):
    async with opened(folder, max_dead_letter_bytes=250) as store:
        await store.append(make_records(4, size=100), evict=False)
        lease = await take(store)
        await store.bury(lease, list(lease.entries), "refused")

        letters = await store.dead_letters("one")
        assert [letter.record.id for letter in letters] == ["record-3", "record-4"]
        assert await counts(store) == (0, 0, 2)


class SmallFile(DiskStore):
    _max_pages = 100


async def fill(store):
    """Append until there is no room; how many records that were."""
    for stored in range(0, 1000, 10):
        try:
            await store.append(make_records(10, size=5_000), evict=False)
        except DiskStoreError as error:
            assert "is full" in str(error)  # noqa: PT017 - the point where it comes is the result
            return stored
    raise AssertionError("the file is not bounded")


async def test_a_full_disk_is_an_error_that_loses_nothing_and_passes(folder):
    async with opened(folder, cls=SmallFile) as store:
        stored = await fill(store)
        assert stored >= 20
        assert await counts(store) == (stored, 0, 0)

        lease = await take(store)
        assert await store.ack(lease, list(lease.entries)) == stored
        assert await store.append(make_records(10, size=5_000), evict=False) == Appended(10)


async def test_the_log_does_not_grow_for_ever_while_somebody_reads(folder):
    async def churn(store, times):
        for _ in range(times):
            await store.append(make_records(10, size=5_000), evict=False)
            lease = await take(store)
            await store.ack(lease, list(lease.entries))

    async with opened(folder, cls=SmallFile) as store:
        await churn(store, 1)
        with look(store.path) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM meta").fetchall()
            with pytest.raises(DiskStoreError, match="another program reads the file"):
                await churn(store, 100)
            reader.execute("ROLLBACK")

        await churn(store, 20)
        assert Path(f"{store.path}-wal").stat().st_size < 2 * 100 * 4096


async def test_the_space_of_a_burst_is_given_back(folder):
    async with opened(folder) as store:
        for _ in range(20):
            await store.append(make_records(1000, size=1000), evict=False)
        for _ in range(20):
            lease = await take(store, amount=1000)
            await store.ack(lease, list(lease.entries))
        await store.append(make_records(1), evict=False)
        await store.release_expired()
        before = store.path.stat().st_size
        lease = await take(store)
        await store.ack(lease, list(lease.entries))

        await store.release_expired()

        assert store.path.stat().st_size < 100_000 < 16 * 2**20 < before


# --- destinations come and go ---------------------------------------------------------------------


async def test_a_new_destination_gets_what_comes_from_then_on(folder):
    async with opened(folder) as store:
        await store.append([make_record(1)], evict=False)

    async with opened(folder, destinations=TWO) as store:
        await store.append([make_record(2)], evict=False)
        assert ids(await take(store, "one")) == ["record-1", "record-2"]
        assert ids(await take(store, "two")) == ["record-2"]


async def test_a_destination_that_comes_back_finds_its_records(folder):
    async with opened(folder, destinations=TWO) as store:
        await store.append([make_record(1)], evict=False)
    async with opened(folder) as store:
        await store.release_expired()
        await store.append([make_record(2)], evict=False)
        lease = await take(store)
        await store.ack(lease, list(lease.entries))
    async with opened(folder, destinations=TWO) as store:
        assert ids(await take(store, "two")) == ["record-1"]


def unseen_for(seconds, store, destination):
    with look(store.path) as other:
        other.execute(
            "UPDATE destination SET seen = seen - ? WHERE name = ?", (seconds, destination)
        )


async def test_a_destination_that_stays_away_is_forgotten_with_one_line(folder, caplog):
    async with opened(folder, destinations=TWO) as store:
        await store.append(make_records(3), evict=False)
        lease = await take(store, "two", amount=1)
        await store.bury(lease, list(lease.entries), "refused")
    async with opened(folder, forget_after=1000, max_records=3) as store:
        lease = await take(store)
        await store.ack(lease, list(lease.entries)[:1])
        unseen_for(990, store, "two")
        await store.release_expired()
        assert not caplog.records

        unseen_for(20, store, "two")
        await store.release_expired()
        await store.release_expired()

        (line,) = caplog.messages
        assert line == (
            "no process has the destination 'two' any more: "
            "dropped the 2 records that waited for it"
        )
        assert await counts(store) == (0, 2, 0)
        assert await store.append(make_records(3), evict=False) == Appended(1)
        with look(store.path) as other:
            assert other.execute("SELECT count(*) FROM dead").fetchone() == (0,)


async def test_an_unused_destination_makes_room_before_anything_is_refused(folder, caplog):
    async with opened(folder, destinations=TWO) as store:
        await store.append(make_records(3), evict=False)
    async with opened(folder, max_records=3) as store:
        lease = await take(store)
        await store.ack(lease, list(lease.entries))
        assert await store.append([make_record(4)], evict=False) == Appended(0)

        unseen_for(61, store, "two")
        assert await store.append([make_record(5)], evict=False) == Appended(1)
        assert len(caplog.messages) == 1


async def test_what_just_fits_costs_an_unused_destination_nothing(folder, caplog):
    async with opened(folder, destinations=TWO) as store:
        await store.append([make_record(1, size=536)], evict=False)
    async with opened(folder, max_bytes=65_536, max_records=3) as store:
        unseen_for(61, store, "two")
        fitting = [make_record(2, size=60_000), make_record(3, size=5_000)]
        assert await store.append(fitting, evict=False) == Appended(2)
    assert caplog.messages == []

    async with opened(folder, destinations=TWO) as store:
        assert await counts(store, "two") == (1, 0, 0)


async def test_a_living_process_keeps_its_destination(folder):
    async with opened(folder, destinations=TWO) as old, opened(folder) as new:
        await old.append(make_records(1), evict=False)
        unseen_for(3600 * 48, old, "two")
        await old.release_expired()
        await new.release_expired()

        assert ids(await take(old, "two")) == ["record-1"]


async def test_a_destination_that_was_forgotten_too_early_begins_anew(folder):
    """A process that was stopped for a day must not fail when it goes on."""
    async with opened(folder, destinations=TWO) as old, opened(folder) as new:
        await old.append(make_records(1), evict=False)
        lease = await take(old, "two")
        unseen_for(3600 * 48, old, "two")
        await new.release_expired()

        assert await old.ack(lease, list(lease.entries)) == 0
        assert await take(old, "two") is None
        await old.append([make_record(2)], evict=False)
        assert ids(await take(old, "two")) == ["record-2"]


# --- the place ------------------------------------------------------------------------------------


async def refused(folder, **options):
    store = make_store(folder, **options)
    with pytest.raises(DiskStoreError) as caught:
        await store.open()
    await store.close()
    return str(caught.value)


@posix_only
async def test_nobody_else_can_read_the_files(folder):
    async with opened(folder) as store:
        await store.append(make_records(1), evict=False)
        names = [path.name for path in folder.iterdir() if ".owner-" not in path.name]
        assert sorted(names) == [store.path.name + suffix for suffix in ("", "-shm", "-wal")]
        assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600] * 4
        assert folder.stat().st_mode & 0o777 == 0o700


@posix_only
async def test_a_file_that_others_may_read_is_closed_to_them(folder):
    async with opened(folder) as store:
        pass
    store.path.chmod(0o644)

    async with opened(folder) as store:
        assert store.path.stat().st_mode & 0o777 == 0o600


@posix_only
async def test_a_folder_that_others_may_write_to_is_refused(folder):
    folder.mkdir()
    folder.chmod(0o777)

    message = await refused(folder)

    assert message == (
        f"will not use the folder {folder}: others may write to it (mode 0777); chmod 700 {folder}"
    )
    assert list(folder.iterdir()) == []


@posix_only
async def test_a_file_that_others_may_write_to_is_refused(folder):
    async with opened(folder) as store:
        pass
    store.path.chmod(0o666)

    assert f"chmod 600 {store.path}" in await refused(folder)


@posix_only
async def test_a_folder_of_somebody_else_is_refused(folder):
    if os.geteuid() == 0:
        folder.mkdir(mode=0o700)
        os.chown(folder, 65534, 65534)
        owner = 65534
    else:
        folder, owner = "/", 0

    assert f"it belongs to user {owner}" in await refused(None, path=folder)


@posix_only
async def test_a_symbolic_link_is_refused(folder, tmp_path):
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    folder.symlink_to(target)
    assert "it is a symbolic link; name the folder itself" in await refused(folder)

    folder.unlink()
    folder.mkdir(mode=0o700)
    file = make_store(folder).path
    for link in (file, file.with_name(f"{file.name}-wal")):
        link.symlink_to(target / "elsewhere")
        assert "it is a symbolic link; name the file itself" in await refused(folder)
        link.unlink()
    assert list(target.iterdir()) == []


async def test_what_is_no_folder_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()

    assert f"cannot make the folder {file}" in await refused(file)
    assert f"cannot make the folder {file / 'sub'}" in await refused(file / "sub")


async def test_a_user_without_a_home_is_told_to_name_a_folder(monkeypatch):
    message = await refused(None, path="~nobody-of-this-name/state")

    assert "set path to an absolute one" in message


@posix_only
def test_a_folder_that_cannot_be_written_is_refused():
    """In a process of its own, because a superuser may write anywhere."""
    code = (
        PREAMBLE
        + """
async def main():
    store = make_store(sys.argv[1])
    try:
        await store.open()
    except DiskStoreError as error:
        print(error)

folder = Path(sys.argv[1])
if os.geteuid() == 0:
    os.chown(folder, 65534, 65534)
    folder.chmod(0o500)
    os.setgid(65534)
    os.setuid(65534)
else:
    folder.chmod(0o500)
asyncio.run(main())
"""
    )
    with TemporaryDirectory() as folder:  # where another user may go, unlike below tmp_path
        said = run_python(code, folder)

    assert said.startswith(f"cannot make the file {folder}")
    assert "Permission denied" in said


async def test_a_store_that_could_not_open_can_when_the_fault_is_mended(folder):
    folder.mkdir()
    folder.chmod(0o777)
    store = make_store(folder)
    with pytest.raises(DiskStoreError):
        await store.open()
    folder.chmod(0o700)

    await store.open()
    assert await store.append(make_records(1), evict=False) == Appended(1)
    await store.close()


# --- the file -------------------------------------------------------------------------------------


def aside(folder):
    return sorted(path.name for path in folder.glob("*.corrupt-*Z"))


@pytest.mark.parametrize("content", [b"this is not a database" * 100, b"\x00" * 5000])
async def test_a_corrupt_file_is_set_aside_with_one_warning(folder, caplog, content):
    folder.mkdir(mode=0o700)
    path = make_store(folder).path
    path.write_bytes(content)
    path.chmod(0o600)

    async with opened(folder) as store:
        await store.append(make_records(2), evict=False)
        assert ids(await take(store)) == ["record-1", "record-2"]

    (kept,) = aside(folder)
    assert (folder / kept).read_bytes() == content
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert kept in record.getMessage()


async def test_a_file_that_proves_corrupt_while_in_use_is_set_aside(folder, caplog):
    async with opened(folder) as store, opened(folder) as other:
        for _ in range(3):
            await store.append(make_records(500, size=1000), evict=False)
        old = await take(store, amount=10)
        with look(store.path) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with store.path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))
        store._database.disconnect()

        assert await store.append([make_record(7)], evict=False) == Appended(1)

        assert len(aside(folder)) == 1
        assert sum("was corrupt" in message for message in caplog.messages) == 1
        # The other store, and leases from before, meet the new file and do no harm there.
        assert await store.ack(old, list(old.entries)) == 0
        assert await store.release(old, list(old.entries)) == 0
        assert ids(await take(other)) == ["record-7"]
        assert await other.append([make_record(8)], evict=False) == Appended(1)
        assert len(aside(folder)) == 1


async def test_a_file_in_which_records_are_missing_is_set_aside(folder, caplog):
    async with opened(folder) as store:
        await store.append(make_records(3), evict=False)
        with look(store.path) as connection:
            connection.execute("DELETE FROM record WHERE rowid = (SELECT max(rowid) FROM record)")

        assert await take(store) is None
        assert await store.append([make_record(4)], evict=False) == Appended(1)
        assert ids(await take(store)) == ["record-4"]

    (said,) = caplog.messages
    assert "was corrupt (database disk image is malformed: records are missing)" in said
    assert len(aside(folder)) == 1


async def test_few_corrupt_files_are_kept(folder):
    folder.mkdir(mode=0o700)
    for n in range(4):
        path = make_store(folder).path
        path.write_bytes(b"corrupt %d" % n * 100)
        path.chmod(0o600)
        async with opened(folder):
            pass

    kept = aside(folder)
    assert len(kept) == 2
    assert (folder / kept[-1]).read_bytes().startswith(b"corrupt 3")


@pytest.mark.parametrize("cut", [1, 10_000, 100_000])
def test_a_cut_log_costs_its_end_only(folder, cut):
    """As after a power failure: what was committed first is there, and whole."""
    code = (
        PREAMBLE
        + """
async def main():
    store = make_store(sys.argv[1])
    await store.open()
    for n in range(50):
        await store.append([make_record(10 * n + m, size=500) for m in range(10)], evict=False)
    print(store.path, flush=True)
    os._exit(0)
asyncio.run(main())
"""
    )
    wal = Path(f"{run_python(code, folder).strip()}-wal")
    os.truncate(wal, wal.stat().st_size - cut)

    async def check():
        async with opened(folder) as store:
            found = await take(store)
            assert ids(found) == [f"record-{n}" for n in range(len(found.entries))]
            assert 200 < len(found.entries) < 500
            assert len(found.entries) % 10 == 0
            assert (await counts(store))[1] == len(found.entries)

    asyncio.run(check())


async def test_a_file_of_another_application_is_left_alone(folder):
    folder.mkdir(mode=0o700)
    path = make_store(folder).path
    with look(path) as other:
        other.execute("CREATE TABLE precious (x)")
    path.chmod(0o600)

    assert "belongs to another application" in await refused(folder)
    with look(path) as other:
        other.execute("DROP TABLE precious")
        other.execute(f"PRAGMA application_id = {0x67644167}")
        other.execute("PRAGMA user_version = 99")
        other.execute("CREATE TABLE later (x)")
    assert "made by a later version" in await refused(folder)
    assert aside(folder) == []


async def test_a_file_of_the_first_version_is_completed(folder):
    async with opened(folder, destinations=TWO) as store:
        await store.append(make_records(3), evict=False)
        path = store.path
    with look(path) as other:
        other.execute("ALTER TABLE destination DROP COLUMN elsewhere")
        other.execute("PRAGMA user_version = 1")

    async with opened(folder, destinations=TWO) as store:
        before = await store.peek("two", None, 100)
        lease = await take(store)
        await store.bury(lease, list(lease.entries), "refused")
        assert await store.replay("one", 10) == 3
        after = await store.peek("two", before.position, 100)

        assert [record.id for record in before.records] == ["record-1", "record-2", "record-3"]
        assert (list(after.records), after.passed) == ([], 0)
    with look(path) as other:
        assert other.execute("PRAGMA user_version").fetchall() == [(2,)]
    assert aside(folder) == []


async def test_a_file_that_is_removed_is_begun_anew(folder, caplog):
    async with opened(folder) as store:
        await store.append(make_records(1), evict=False)
        for path in folder.iterdir():
            path.unlink()

        assert await store.append([make_record(2)], evict=False) == Appended(1)

        assert ids(await take(store)) == ["record-2"]
        (message,) = caplog.messages
        assert "was removed or replaced" in message
    async with opened(folder) as store:
        assert await counts(store) == (0, 1, 0)


# --- the lock of another process ------------------------------------------------------------------


async def test_a_locked_file_is_an_error_in_time_and_works_afterwards(folder):
    async with opened(folder, operation_timeout=0.1) as store:
        await store.append(make_records(1), evict=False)
        with look(store.path) as other:
            other.execute("BEGIN EXCLUSIVE")
            began = time.monotonic()
            with pytest.raises(DiskStoreError, match="locked by another process"):
                await store.append([make_record(2)], evict=False)
            assert time.monotonic() - began < 10
            assert await counts(store) == (1, 0, 0)  # looking needs no lock
            other.execute("ROLLBACK")

        assert await store.append([make_record(3)], evict=False) == Appended(1)
        assert ids(await take(store)) == ["record-1", "record-3"]


async def test_an_operation_waits_for_a_lock_without_stopping_the_loop(folder):
    async with opened(folder, operation_timeout=30) as store:
        with look(store.path) as other:
            other.execute("BEGIN EXCLUSIVE")
            waiting = asyncio.ensure_future(store.append(make_records(1), evict=False))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not waiting.done()
            other.execute("ROLLBACK")

        assert await waiting == Appended(1)


async def test_what_waits_for_the_disk_is_bounded(folder):
    async with opened(folder, operation_timeout=30) as store:
        with look(store.path) as other:
            other.execute("BEGIN EXCLUSIVE")
            calls = [
                asyncio.ensure_future(store.append([make_record(n)], evict=False))
                for n in range(100)
            ]
            done, waiting = await asyncio.wait(calls, timeout=0.05)
            assert all(isinstance(call.exception(), DiskStoreError) for call in done)
            assert len(waiting) in (64, 65)
            other.execute("ROLLBACK")

        assert await asyncio.gather(*waiting) == [Appended(1)] * len(waiting)


# --- cancelled ------------------------------------------------------------------------------------


async def cancelled(call):
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_cancelled_append_or_lease_that_waits_does_not_happen(folder):
    async with opened(folder, operation_timeout=30) as store:
        await store.append(make_records(1), evict=False)
        with look(store.path) as other:
            other.execute("BEGIN EXCLUSIVE")
            append = asyncio.ensure_future(store.append([make_record(2)], evict=False))
            lease = asyncio.ensure_future(take(store))
            await asyncio.sleep(0.02)
            await cancelled(append)
            await cancelled(lease)
            other.execute("ROLLBACK")

        assert await counts(store) == (1, 0, 0)


async def test_p08_no_lease_is_lost_wherever_it_is_cancelled(folder):
    """
    Cancelled after any number of steps, the records are ready again.
    """
    finished = 0
    async with opened(folder) as store:
        await store.append(make_records(3), evict=False)
        for step in range(200):
            call = asyncio.ensure_future(take(store))
            began = time.monotonic()
            while time.monotonic() - began < step * 1e-5:
                await asyncio.sleep(0)
            if call.done():
                lease = await call
                await store.release(lease, list(lease.entries))
                finished += 1
            else:
                await cancelled(call)
            assert await counts(store) == (3, 0, 0), step
    assert 0 < finished < 200


async def test_a_cancelled_ack_happens_all_the_same(folder):
    """Delivered is delivered: otherwise it would be sent again."""
    async with opened(folder) as store:
        await store.append(make_records(3), evict=False)
        lease = await take(store)
        call = asyncio.ensure_future(store.ack(lease, list(lease.entries)))
        await asyncio.sleep(0)
        await cancelled(call)

        assert await counts(store) == (0, 0, 0)


# --- several processes ----------------------------------------------------------------------------


def integrity(path):
    with look(path) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall()


@posix_only
def test_s06_a_fork_with_an_open_store_harms_neither_side(folder):
    """
    A fork storm, with transactions under way. Each child has a store of its own.
    """
    code = (
        PREAMBLE
        + """
import signal, threading, time
signal.alarm(50)
folder = sys.argv[1]

async def child(number, inherited):
    try:
        await inherited.append([make_record(1)], evict=False)
    except DiskStoreError as error:
        assert str(error) == "the store was opened before a fork and belongs to the parent"
    else:
        raise AssertionError("the child used what it inherited")
    await inherited.close()
    store = make_store(folder)
    await store.open()
    await store.append([make_record(number)], evict=False)
    await store.close()

async def parent(store, stop):
    n = 0
    while not stop.is_set():
        n += 1
        await store.append([make_record(1_000_000 + n)], evict=False)
    return n

def main():
    loop = asyncio.new_event_loop()
    store = make_store(folder)
    loop.run_until_complete(store.open())
    stop = threading.Event()
    result = []
    thread = threading.Thread(
        target=lambda: result.append(loop.run_until_complete(parent(store, stop)))
    )
    thread.start()
    for number in range(60):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                asyncio.run(child(number, store))
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
    stop.set()
    thread.join()
    loop.run_until_complete(store.close())
    loop.close()
    print(store.path, result[0])

main()
"""
    )
    path, appended = run_python(code, folder).split()

    assert integrity(path) == [("ok",)]
    with look(path) as connection:
        assert connection.execute("SELECT records FROM meta").fetchone() == (60 + int(appended),)
        assert connection.execute("SELECT count(*) FROM record").fetchone() == (60 + int(appended),)


@posix_only
@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="there is no /proc/locks to look at")
def test_the_store_of_a_forked_child_has_locks_of_its_own(folder):
    """
    SQLite remembers in memory which files it has locked. A child inherits the memory without the
    locks, and would believe that it holds them.
    """
    code = (
        PREAMBLE
        + """
async def use(store):
    await store.open()
    await store.append([make_record(1)], evict=False)

def locked(path):
    inode = str(os.stat(path).st_ino)
    return {int(f[4]) for f in map(str.split, open("/proc/locks")) if f[5].endswith(":" + inode)}

loop = asyncio.new_event_loop()
store = make_store(sys.argv[1])
loop.run_until_complete(use(store))
assert locked(store.path) == {os.getpid()}
pid = os.fork()
if pid == 0:
    mine = make_store(sys.argv[1])
    asyncio.run(use(mine))
    os._exit(0 if os.getpid() in locked(mine.path) else 1)
_, status = os.waitpid(pid, 0)
loop.run_until_complete(store.append([make_record(2)], evict=False))
loop.run_until_complete(store.close())
print(status)
"""
    )
    assert run_python(code, folder) == "0\n"


@posix_only
def test_eight_processes_share_a_file_without_losing_or_doubling(folder):
    code = (
        PREAMBLE
        + """
async def work(number):
    store = make_store(sys.argv[1], operation_timeout=30)
    await store.open()
    sent = []
    async def append():
        for group in range(10):
            records = [make_record(number * 10_000 + group * 100 + n) for n in range(50)]
            assert (await store.append(records, evict=False)).stored == 50
    async def send():
        while len(sent) < 500 or (await store.stats())["one"].ready:
            await store.release_expired()
            lease = await store.lease("one", 40, 1 << 30, 60.0)
            if lease is None:
                if appending.done():
                    return
                await asyncio.sleep(0.001)
                continue
            sent.extend(record.id for record in lease.entries.values())
            assert await store.ack(lease, list(lease.entries)) == len(lease.entries)
    appending = asyncio.ensure_future(append())
    await send()
    await appending
    await store.close()
    return sent

children = []
for number in range(8):
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.close(ours)
        with os.fdopen(theirs, "w") as out:
            out.write("\\n".join(asyncio.run(work(number))))
        os._exit(0)
    os.close(theirs)
    children.append(ours)
for ours in children:
    with os.fdopen(ours) as answers:
        print(answers.read())
"""
    )
    sent = run_python(code, folder).split()

    async def rest():
        async with opened(folder) as store:
            lease = await take(store)
            return ids(lease) if lease else [], (await counts(store))

    left, (ready, leased, _) = asyncio.run(rest())
    assert ready == 0
    assert leased == len(left)
    assert sorted(sent + left) == sorted(
        f"record-{p * 10_000 + g * 100 + n}" for p in range(8) for g in range(10) for n in range(50)
    )
    assert integrity(make_store(folder).path) == [("ok",)]


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to fail system calls")
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize(
    ("call", "when"), [("pwrite64", "60..4000+60"), ("fdatasync", "20..400+20")]
)
def test_s01_a_failing_system_call_is_an_error_or_nothing_and_passes(folder, call, when, error):
    """
    What was confirmed stays, and the store goes on when the disk does.
    """
    code = (
        PREAMBLE
        + """
async def main():
    store = make_store(sys.argv[1], sync="full")
    confirmed = failed = 0
    opened = False
    for n in range(200):
        try:
            if not opened:
                await store.open()
                opened = True
            await store.append([make_record(n, size=8000)], evict=False)
            confirmed += 1
        except DiskStoreError as error:
            failed += 1
    assert (await store.stats())["one"].ready >= confirmed > 100, (confirmed, failed)
    lease = await store.lease("one", 1000, 1 << 30, 60.0)
    assert len(lease.entries) >= confirmed
    await store.close()
    print(failed)
asyncio.run(main())
"""
    )
    # Counted in each thread, and the store has one for each time it is opened: not while it opens.
    inject = f"inject={call}:error={error}:when={when}"
    options = ("-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
    failed = int(run_python(code, folder, wrapper=("strace", *options)))

    assert failed > 0
    assert integrity(make_store(folder).path) == [("ok",)]


COMPACT = (
    PREAMBLE
    + """
async def main():
    store = make_store(sys.argv[1], sync="full")
    await store.open()
    store._database.vacuum(above=0)
    await store.close()
asyncio.run(main())
"""
)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to kill at a call")
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync", "ftruncate"])
async def test_p01_a_kill_while_the_file_is_made_smaller_loses_nothing(folder, call):
    """
    At the first such system call of a process that opens, compacts and closes, at the third, the
    ninth and so on, until it comes to its end.
    """
    kills, when = 0, 1
    async with opened(folder, sync="full") as store:
        await store.append([make_record(n, size=4_000) for n in range(160)], evict=False)
        lease = await store.lease("one", 60, BIG, LONG)
        await store.ack(lease, list(lease.entries))
        kept = (await store.stats())["one"].ready
    path = make_store(folder).path
    size = path.stat().st_size
    while True:
        inject = f"inject={call}:signal=SIGKILL:when={when}"
        done = subprocess.run(
            [
                *("strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={call}", "-e", inject),
                *(sys.executable, "-c", COMPACT, str(folder)),
            ],
            capture_output=True,
            timeout=60,
            check=False,
        )
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
        when = 3 * when if call == "pwrite64" else when + 1
        async with opened(folder) as store:
            assert (await store.stats())["one"].ready == kept == 100
        assert integrity(path) == [("ok",)]

    assert kills
    assert path.stat().st_size < size, "it was made smaller"
    async with opened(folder) as store:
        lease = await store.lease("one", 1_000, BIG, LONG)
        assert len(lease.entries) == kept
