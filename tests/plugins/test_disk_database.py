"""The file of the disk store by itself: transactions, faults of SQLite, what is set aside."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from guard_agent import Appended
from guard_agent.plugins.disk import DiskSettings, DiskStore, DiskStoreError
from guard_agent.plugins.disk import database as database_module
from guard_agent.plugins.disk.database import Database, UncertainError
from guard_agent.plugins.disk.jobs import GivenUpError, Job
from guard_agent.plugins.disk.owners import NOBODY
from guard_agent.testing.records import make_context, make_record, make_records

BIG = 1 << 30
PATIENCE = 30.0

posix_only = pytest.mark.skipif(
    sys.platform == "win32", reason="needs modes, owners, forks of POSIX"
)


@pytest.fixture
def folder(tmp_path):
    return tmp_path.resolve() / "state"


class Faulty(sqlite3.Connection):
    """A connection that fails at a statement as SQLite would; each fault happens once."""

    faults: ClassVar[list[tuple[str, Exception, bool]]]
    said: ClassVar[list[str]]

    def execute(self, statement, *arguments):
        self.said.append(statement)
        for fault in self.faults:
            begin, error, is_done = fault
            if statement.startswith(begin):
                self.faults.remove(fault)
                if is_done:
                    super().execute(statement, *arguments)
                raise error
        return super().execute(statement, *arguments)


@pytest.fixture
def sqlite(monkeypatch):
    """Makes connections that fail where `fail` says so."""

    class Connection(Faulty):
        faults: ClassVar[list[tuple[str, Exception, bool]]] = []
        said: ClassVar[list[str]] = []

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Connection))
    return Connection


def fail(sqlite, statement, text, *, kind=sqlite3.OperationalError, done=False):
    sqlite.faults.append((statement, kind(text), done))


def make_tables(connection):
    connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
    return connection.execute("SELECT count(*) FROM t").fetchone() == (0,)


@contextmanager
def a_database(folder, *, max_pages=1000, sync="normal"):
    database = Database(folder / "d.db", sync=sync, max_pages=max_pages, make_tables=make_tables)
    try:
        yield database
    finally:
        database.close()


def job(seconds=PATIENCE, **options):
    return Job(lambda _: None, time.monotonic() + seconds, **options)


def insert(connection):
    return connection.execute("INSERT INTO t VALUES (1)").rowcount


def count(connection):
    return connection.execute("SELECT count(*) FROM t").fetchone()[0]


def amount(database):
    return database.run(count, job(), write=False)


def aside(folder):
    return sorted(path.name for path in folder.glob("*.corrupt-*Z"))


# --- transactions ---------------------------------------------------------------------------------


def test_a_transaction_happens_or_not(folder):
    def half(connection):
        insert(connection)
        raise ValueError("no more of this")

    with a_database(folder) as database:
        assert database.run(insert, job()) == 1
        with pytest.raises(ValueError, match="no more of this"):
            database.run(half, job())

        assert amount(database) == 1
        assert database.resets == 0


def test_a_transaction_that_cannot_be_rolled_back_ends_with_its_connection(folder, sqlite):
    def broken(connection):
        insert(connection)
        raise sqlite3.OperationalError("disk I/O error")

    with a_database(folder) as database:
        fail(sqlite, "ROLLBACK", "cannot rollback")
        with pytest.raises(DiskStoreError, match="disk I/O error"):
            database.run(broken, job())

        assert amount(database) == 0


def test_a_transaction_that_nobody_waits_for_is_rolled_back(folder):
    asked = job(undo=lambda _: None)

    def work(connection):
        insert(connection)
        asked.abandon()

    with a_database(folder) as database:
        with pytest.raises(GivenUpError):
            database.run(work, asked)

        assert amount(database) == 0


def test_a_look_takes_no_lock_and_a_change_does(folder, sqlite):
    with a_database(folder) as database:
        amount(database)
        database.run(insert, job())

        assert [text for text in sqlite.said if text.startswith("BEGIN")] == [
            "BEGIN",
            "BEGIN IMMEDIATE",
        ]


def test_the_connection_is_configured(folder):
    with a_database(folder, max_pages=321, sync="full") as database:

        def ask(connection):
            return [
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in (
                    *("journal_mode", "synchronous", "max_page_count", "journal_size_limit"),
                    *("temp_store", "page_size"),
                )
            ]

        assert database.run(ask, job(), write=False) == ["wal", 2, 321, 16 << 20, 2, 4096]


@pytest.mark.parametrize("text", ["database is locked", "database table is locked: t"])
def test_a_file_in_use_is_waited_for(folder, sqlite, text):
    with a_database(folder) as database:
        amount(database)
        connection = database._connection
        for _ in range(3):
            fail(sqlite, "BEGIN", text)

        assert database.run(insert, job()) == 1
        assert database._connection is connection


def test_a_file_that_stays_in_use_is_an_error_at_the_deadline(folder, sqlite):
    with a_database(folder) as database:
        amount(database)
        for _ in range(3):
            fail(sqlite, "BEGIN", "database is locked")

        with pytest.raises(DiskStoreError) as caught:
            database.run(insert, job(0))

        assert str(caught.value) == (
            f"cannot use the file {database.path}: it is locked by another process"
        )
        assert len(sqlite.faults) == 2, "it was not tried again"


def test_who_waits_for_the_file_in_vain_is_not_served(folder, sqlite):
    asked = job(undo=lambda _: None)
    with a_database(folder) as database:
        amount(database)
        fail(sqlite, "BEGIN", "database is locked")
        asked.abandon()

        with pytest.raises(GivenUpError):
            database.run(insert, asked)


def test_a_commit_that_finds_the_file_in_use_is_tried_again(folder, sqlite):
    with a_database(folder) as database:
        amount(database)
        fail(sqlite, "COMMIT", "database is locked")

        assert database.run(insert, job()) == 1
        assert amount(database) == 1


@pytest.mark.parametrize("done", [False, True])
def test_a_commit_that_fails_leaves_doubt_and_a_new_connection(folder, sqlite, done):
    with a_database(folder) as database:
        database.run(insert, job())
        connection = database._connection
        fail(sqlite, "COMMIT", "disk I/O error", done=done)

        with pytest.raises(UncertainError, match=r"d\.db: disk I/O error") as caught:
            database.run(insert, job())

        assert caught.value.result == 1
        assert amount(database) == 1 + done
        assert database._connection is not connection
        assert database.resets == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("disk I/O error", "disk I/O error"),
        ("database or disk is full", "the disk, or the file's own limit, is full"),
        (
            "attempt to write a readonly database",
            "attempt to write a readonly database; check who may write to it and to its folder",
        ),
        (
            "unable to open database file",
            "unable to open database file; check who may write to it and to its folder",
        ),
        (
            "no such function: json_extract",
            f"SQLite {sqlite3.sqlite_version} was built without its JSON functions",
        ),
        (
            "no such table: json_each",
            f"SQLite {sqlite3.sqlite_version} was built without its JSON functions",
        ),
    ],
)
def test_an_error_says_what_it_means_and_passes(folder, sqlite, text, said):
    with a_database(folder) as database:
        amount(database)
        connection = database._connection
        fail(sqlite, "INSERT", text)

        with pytest.raises(DiskStoreError) as caught:
            database.run(insert, job())

        assert str(caught.value) == f"cannot use the file {database.path}: {said}"
        assert not isinstance(caught.value, UncertainError)
        assert database.run(insert, job()) == 1
        assert amount(database) == 1
        assert database._connection is not connection


def test_a_real_error_of_the_file_is_told_as_one(folder):
    with a_database(folder) as database:
        amount(database)
        database._connection.execute("PRAGMA query_only = 1")

        with pytest.raises(DiskStoreError, match="readonly database; check who may write"):
            database.run(insert, job())

        assert database.run(insert, job()) == 1


def test_the_log_is_only_looked_at_before_what_makes_it_grow(folder, sqlite):
    def fill(connection):
        connection.execute("INSERT INTO t VALUES (zeroblob(20000))")

    with a_database(folder, max_pages=50) as database:
        for _ in range(15):
            database.run(fill, job())
            database.run(lambda c: c.execute("DELETE FROM t"), job())
        log = Path(f"{database.path}-wal")
        assert log.stat().st_size > 50 * 4096
        checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)"
        assert checkpoint not in sqlite.said

        database.run(fill, job(), grow=True)

        assert sqlite.said.count(checkpoint) == 1
        assert log.stat().st_size <= 50 * 4096
        database.run(fill, job(), grow=True)
        assert sqlite.said.count(checkpoint) == 1


# --- giving space back, closing -------------------------------------------------------------------


def test_a_small_file_is_not_made_smaller(folder, sqlite):
    with a_database(folder) as database:
        database.vacuum(above=0)
        assert sqlite.said == [], "nothing was open"
        amount(database)
        pages = database.run(lambda c: c.execute("PRAGMA page_count").fetchone()[0], job())

        database.vacuum(above=pages * 4096)
        assert "VACUUM" not in sqlite.said
        database.vacuum(above=pages * 4096 - 1)
        assert "VACUUM" in sqlite.said
        fail(sqlite, "PRAGMA page_count", "database is locked")
        database.vacuum(above=0)
        assert sqlite.said.count("VACUUM") == 1


def test_a_closed_database_can_be_used_again(folder):
    with a_database(folder) as database:
        database.close()
        database.run(insert, job())
        first = database.owner.number
        database.disconnect()
        assert database.owner.number == first != NOBODY
        assert amount(database) == 1
        database.close()
        database.close()
        assert database.owner.number == NOBODY
        assert sorted(path.name for path in folder.iterdir()) == ["d.db"]


# --- corrupt --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["database disk image is malformed", "file is not a database"])
def test_a_file_that_proves_corrupt_is_replaced_within_the_call(folder, sqlite, caplog, text):
    with a_database(folder) as database:
        database.run(insert, job())
        fail(sqlite, "INSERT", text, kind=sqlite3.DatabaseError)

        assert database.run(insert, job()) == 1

        assert amount(database) == 1
        assert database.resets == 1
        (kept,) = aside(folder)
        (line,) = caplog.messages
        assert line == (
            f"the file of the disk store was corrupt ({text}) and is now {folder / kept}; "
            "beginning a new one, what was not delivered from the old one is lost"
        )


def test_a_file_that_proves_corrupt_again_is_an_error(folder, sqlite):
    with a_database(folder) as database:
        amount(database)
        for _ in range(2):
            fail(sqlite, "INSERT", "database disk image is malformed", kind=sqlite3.DatabaseError)

        with pytest.raises(DiskStoreError, match="malformed"):
            database.run(insert, job())

        assert len(aside(folder)) == 1
        assert database.run(insert, job()) == 1


def test_a_commit_that_finds_the_file_corrupt_leaves_no_doubt(folder, sqlite):
    with a_database(folder) as database:
        amount(database)
        fail(sqlite, "COMMIT", "database disk image is malformed", kind=sqlite3.DatabaseError)

        assert database.run(insert, job()) == 1
        assert (amount(database), len(aside(folder))) == (1, 1)


def test_what_another_process_has_replaced_is_not_set_aside(folder, sqlite):
    with a_database(folder) as database, a_database(folder) as other:
        database.run(insert, job())

        def work(connection):
            for suffix in ("", "-wal", "-shm"):
                Path(f"{database.path}{suffix}").unlink()
            other.run(insert, job())
            fail(sqlite, "INSERT", "database disk image is malformed", kind=sqlite3.DatabaseError)
            return insert(connection)

        attempts = [insert, work]
        assert database.run(lambda connection: attempts.pop()(connection), job()) == 1  # noqa: PLW0108 - each time another

        assert aside(folder) == []
        assert amount(database) == amount(other) == 2


def test_a_corrupt_file_that_cannot_be_renamed_is_an_error(folder, sqlite, monkeypatch):
    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    with a_database(folder) as database:
        amount(database)
        fail(sqlite, "INSERT", "file is not a database", kind=sqlite3.DatabaseError)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", refuse)
            with pytest.raises(DiskStoreError) as caught:
                database.run(insert, job())

        assert str(caught.value) == (
            f"{database.path} is corrupt (file is not a database) and cannot be renamed: "
            "Permission denied"
        )


def test_the_first_file_is_no_reset_and_a_removed_one_is(folder, caplog):
    with a_database(folder) as database:
        database.run(insert, job())
        assert database.resets == 0
        first = database.owner.number
        for path in folder.iterdir():
            path.unlink()

        database.run(insert, job())

        assert database.resets == 1
        assert amount(database) == 1
        assert database.owner.number == first
        (line,) = caplog.messages
        assert line == (
            "the file of the disk store was removed or replaced, going on with a new one: "
            f"{database.path}"
        )


def test_a_file_system_without_shared_memory_is_refused(folder, sqlite, monkeypatch):
    def execute(self, statement, *arguments):
        if statement.startswith("PRAGMA journal_mode"):
            return [("delete",)]
        return sqlite3.Connection.execute(self, statement, *arguments)

    monkeypatch.setattr(sqlite, "execute", execute)
    with a_database(folder) as database:
        with pytest.raises(DiskStoreError) as caught:
            amount(database)
        assert str(caught.value) == (
            f"the file system of {database.path} cannot share memory between processes"
        )
        assert database._connection is None


def test_a_name_with_signs_of_an_address_is_a_name(tmp_path):
    with a_database(tmp_path.resolve() / "a?mode=ro#b%20c") as database:
        database.run(insert, job())

        assert database.path.exists()
        assert amount(database) == 1


# --- forks ----------------------------------------------------------------------------------------


def in_a_child(work):
    """Whether ``work`` returned something true in a forked child."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return status == 0


pytest_fork = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


@posix_only
@pytest_fork
def test_s06_parent_and_child_go_on_with_connections_of_their_own(folder):
    with a_database(folder) as database:
        database.run(insert, job())
        owner = database.owner.number

        def in_child():
            assert database._connection is None
            assert database.owner.number == NOBODY
            assert not database.at_work.locked()
            with a_database(folder) as mine:
                assert mine.run(insert, job()) == 1
                assert mine.owner.number != owner
                return owner not in mine.look_for_dead()

        assert in_a_child(in_child)
        assert not database.at_work.locked()
        assert not database_module._opening.locked()
        assert database.owner.number == owner
        assert amount(database) == 2
        assert database.resets == 0


@posix_only
@pytest_fork
def test_s06_a_child_whose_parent_was_at_work_leaves_the_file_alone(folder, monkeypatch):
    """Forked in the middle of a transaction: what is inherited is neither used nor closed."""
    monkeypatch.setattr(database_module, "_FORK_PATIENCE", 0.05)
    begun, done = threading.Event(), threading.Event()

    def slow(connection):
        insert(connection)
        begun.set()
        assert done.wait(PATIENCE)
        return insert(connection)

    def in_child():
        assert database._connection is None
        assert not database.at_work.locked()
        assert not database_module._opening.locked()
        with a_database(folder) as mine:
            try:
                amount(mine)
            except DiskStoreError as error:
                return str(error) == (
                    f"the file {database.path} was in use when this process was forked"
                )
        return False

    with a_database(folder) as database:
        amount(database)
        thread = threading.Thread(target=database.run, args=(slow, job()))
        thread.start()
        assert begun.wait(PATIENCE)
        try:
            assert in_a_child(in_child)
        finally:
            done.set()
            thread.join()
        assert amount(database) == 2


@posix_only
@pytest_fork
def test_s06_a_child_can_open_although_its_parent_was_just_opening(folder, monkeypatch):
    monkeypatch.setattr(database_module, "_FORK_PATIENCE", 0.05)
    opening = database_module._opening

    def in_child():
        with a_database(folder) as mine:
            return mine.run(insert, job()) == 1

    with opening:
        assert in_a_child(in_child)
        assert opening.locked()
    assert database_module._opening is opening


# --- a store whose disk fails at the wrong moment -------------------------------------------------


def make_store(folder, **options):
    context = make_context(folder, instance="disk", destinations=("one",), project_id="shop")
    return DiskStore(DiskSettings(**options), context)


@pytest.mark.parametrize("done", [False, True])
async def test_s01_an_append_that_failed_did_not_happen(folder, sqlite, done):
    """Its commit failed, after it was written or before: the records come again."""
    store = make_store(folder)
    await store.open()
    await store.append(make_records(2), evict=False)
    fail(sqlite, "COMMIT", "disk I/O error", done=done)
    with pytest.raises(DiskStoreError, match="disk I/O error"):
        await store.append([make_record(3), make_record(4)], evict=False)

    assert await store.append([make_record(3)], evict=False) == Appended(1)

    lease = await store.lease("one", 100, BIG, 60.0)
    assert [record.id for record in lease.entries.values()] == ["record-1", "record-2", "record-3"]
    assert await store.ack(lease, list(lease.entries)) == 3
    assert (await store.stats())["one"].pending == 0
    await store.close()


@pytest.mark.parametrize("done", [False, True])
async def test_s01_a_lease_that_failed_holds_nothing(folder, sqlite, done):
    store = make_store(folder)
    await store.open()
    await store.append(make_records(3), evict=False)
    fail(sqlite, "COMMIT", "disk I/O error", done=done)
    with pytest.raises(DiskStoreError, match="disk I/O error"):
        await store.lease("one", 2, BIG, 600.0)

    lease = await store.lease("one", 100, BIG, 600.0)

    assert len(lease.entries) == 3
    assert (await store.stats())["one"].leased == 3
    await store.close()


async def test_s01_what_cannot_be_undone_yet_is_undone_later(folder, sqlite):
    store = make_store(folder)
    await store.open()
    fail(sqlite, "COMMIT", "disk I/O error", done=True)
    with pytest.raises(DiskStoreError):
        await store.append(make_records(2), evict=False)
    fail(sqlite, "BEGIN IMMEDIATE", "disk I/O error")
    with pytest.raises(DiskStoreError):
        await store.append(make_records(2), evict=False)
    assert (await store.stats())["one"].pending == 2, "a look settles nothing"

    assert await store.release_expired() == 0

    assert (await store.stats())["one"].pending == 0
    await store.close()


async def test_what_only_looks_into_a_store_takes_no_lock_and_what_changes_it_does(folder, sqlite):
    store = make_store(folder)
    await store.open()
    begun = len(sqlite.said)
    await store.append(make_records(2), evict=False)
    lease = await store.lease("one", 2, BIG, 60.0)
    changes = sqlite.said[begun:]
    await store.bury(lease, list(lease.entries)[:1], "bad")
    begun = len(sqlite.said)

    assert await store.append([], evict=False) == Appended(0)
    assert len(sqlite.said) == begun, "for nothing nobody asks"
    assert (await store.stats())["one"].pending == 1
    assert [letter.reason for letter in await store.dead_letters("one")] == ["bad"]
    assert [record.id for record in (await store.peek("one", None, 9)).records] == ["record-2"]

    looks = sqlite.said[begun:]
    assert [text for text in changes if text.startswith("BEGIN")] == ["BEGIN IMMEDIATE"] * 2
    assert [text for text in looks if text.startswith("BEGIN")] == ["BEGIN"] * 3
    await store.close()
