"""One SQLite file shared by several processes: opening it, transactions, faults and forks."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote
from weakref import WeakSet

from guard_agent.plugins.disk.folder import (
    DiskStoreError,
    exclusive,
    identity,
    prepare_file,
    prepare_folder,
    set_aside,
)
from guard_agent.plugins.disk.owners import Owner

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from guard_agent.plugins.disk.jobs import Job

logger = logging.getLogger("guard_agent.disk")

T = TypeVar("T")


class UncertainError(DiskStoreError):
    """A transaction failed while it was committed: it may be in the file all the same."""

    def __init__(self, message: str, result: object) -> None:
        super().__init__(message)
        self.result = result
        """What the work of the transaction returned."""


PAGE_SIZE = 4096
_WAL_KEPT = 16 * 1024 * 1024
_PAUSE_FIRST = 0.0005
_PAUSE_MAX = 0.02
_FORK_PATIENCE = 1.0

_BUSY = frozenset({5, 6})  # SQLITE_BUSY, SQLITE_LOCKED
_CORRUPT = frozenset({11, 26})  # SQLITE_CORRUPT, SQLITE_NOTADB


class Database:
    """
    A connection that is made when it is needed and given up at the first error.

    `run` is for one thread, `disconnect` and `close` for any.
    """

    def __init__(
        self,
        path: Path,
        *,
        sync: Literal["normal", "full"],
        max_pages: int,
        make_tables: Callable[[sqlite3.Connection], bool],
    ) -> None:
        self.path = path
        self.owner = Owner(path)
        """Who we are for others that use the file; from the first connection until `close`."""
        self._sync = sync
        self._max_pages = max_pages
        self._make_tables = make_tables
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._is_new = False
        self.resets = 0
        """How often we began a new file where one had been in use: it was corrupt, or removed."""
        # Held while SQLite is at work: its mutexes must be free when the process forks.
        self.at_work = threading.Lock()
        _watch_forks()
        _databases.add(self)

    def run(
        self,
        work: Callable[[sqlite3.Connection], T],
        job: Job,
        *,
        write: bool = True,
        grow: bool = False,
    ) -> T:
        """
        Do ``work`` in one transaction, which waits for other processes until the job's deadline.

        With ``grow`` it is refused while the log is as large as the file may become.

        Raises:
            DiskStoreError: the file cannot be used now; nothing was changed.
            GivenUpError: nobody waits for the job any more; nothing was changed.
        """
        pause = _PAUSE_FIRST
        may_set_aside = True
        while True:
            try:
                with self.at_work:
                    return self._transaction(work, job, write=write, grow=grow)
            except sqlite3.Error as error:
                if _is_busy(error):
                    if time.monotonic() + pause > job.deadline:
                        raise DiskStoreError(self._explain(error)) from error
                elif _is_corrupt(error) and may_set_aside:
                    may_set_aside = False
                    with self.at_work:
                        self._set_aside(error, job.deadline)
                else:
                    raise DiskStoreError(self._explain(error)) from error
            job.check()
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - to meet others less often
            pause = min(pause * 2, _PAUSE_MAX)

    def _transaction(
        self, work: Callable[[sqlite3.Connection], T], job: Job, *, write: bool, grow: bool
    ) -> T:
        connection = self._connected(job.deadline)
        try:
            if grow:
                self._check_log(connection)
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            result = work(connection)
            job.check()
            self._commit(connection, result)
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            broken = isinstance(error, sqlite3.Error) and not _is_busy(error)
            if broken or isinstance(error, UncertainError):
                self._disconnect()  # whatever is wrong, the next attempt begins with a new one
            raise
        return result

    def _commit(self, connection: sqlite3.Connection, result: object) -> None:
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if _is_busy(error) or _is_corrupt(error):
                raise
            raise UncertainError(self._explain(error), result) from error

    def _check_log(self, connection: sqlite3.Connection) -> None:
        """The log is written back to the file now and then, unless somebody reads it for ever."""
        log = Path(f"{self.path}-wal")
        limit = self._max_pages * PAGE_SIZE
        if _size(log) > limit:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if _size(log) > limit:
                msg = (
                    f"the log {log} cannot be written back, and has grown to the limit of the "
                    "file: another program reads the file all the time, or the disk fails"
                )
                raise DiskStoreError(msg)

    def vacuum(self, *, above: int) -> None:
        """Give the space of a file larger than ``above`` bytes back, if nobody is in the way."""
        with self.at_work:
            connection = self._connection
            if connection is None:
                return
            with contextlib.suppress(sqlite3.Error):
                (pages,) = connection.execute("PRAGMA page_count").fetchone()
                if pages * PAGE_SIZE > above:
                    connection.execute("VACUUM")
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def look_for_dead(self) -> list[int]:
        """Other owners whose process has ended."""
        with self.at_work:  # a child must not inherit what is open meanwhile
            return self.owner.dead()

    def disconnect(self) -> None:
        """Close the connection; the next transaction makes a new one."""
        with self.at_work:
            self._disconnect()

    def close(self) -> None:
        """Close the connection for good."""
        with self.at_work:
            self._disconnect()
            self.owner.end()

    # --- with at_work held ------------------------------------------------------------------------

    def _connected(self, deadline: float) -> sqlite3.Connection:
        if self._connection is not None:
            if identity(self.path) == self._identity:
                return self._connection
            logger.warning(
                "the file of the disk store was removed or replaced, going on with a new one: %s",
                self.path,
            )
            self._disconnect()
        folder = self.path.parent
        prepare_folder(folder)
        with _opening, exclusive(folder, deadline):
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as error:
                if not _is_corrupt(error):
                    raise
                self._tell_set_aside(error)
                self._connection = self._open()
            if self._is_new and self._identity is not None:
                self.resets += 1
            self._identity = identity(self.path)
        self.owner.begin()
        return self._connection

    def _open(self) -> sqlite3.Connection:
        prepare_file(self.path)
        if identity(self.path) in _inherited:
            msg = f"the file {self.path} was in use when this process was forked"
            raise DiskStoreError(msg)
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode=rw",
            uri=True,
            timeout=0,  # waiting is done outside, where a fork does not meet it
            isolation_level=None,
            check_same_thread=False,  # a fork closes it from the thread that forks
        )
        try:
            self._configure(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _configure(self, connection: sqlite3.Connection) -> None:
        ((mode,),) = connection.execute("PRAGMA journal_mode = WAL")
        if mode != "wal":
            msg = f"the file system of {self.path} cannot share memory between processes"
            raise DiskStoreError(msg)
        connection.execute(f"PRAGMA synchronous = {self._sync}")
        connection.execute(f"PRAGMA max_page_count = {self._max_pages}")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT}")
        connection.execute("PRAGMA temp_store = MEMORY")  # no copies of records elsewhere
        self._is_new = self._make_tables(connection)

    def _set_aside(self, error: sqlite3.Error, deadline: float) -> None:
        """The file proved corrupt while it was used: unless another process was quicker."""
        before = self._identity
        self._disconnect()
        with _opening, exclusive(self.path.parent, deadline):
            if identity(self.path) == before:
                self._tell_set_aside(error)

    def _tell_set_aside(self, error: sqlite3.Error) -> None:
        try:
            aside = set_aside(self.path)
        except OSError as failed:
            msg = f"{self.path} is corrupt ({error}) and cannot be renamed: {failed.strerror}"
            raise DiskStoreError(msg) from failed
        logger.warning(
            "the file of the disk store was corrupt (%s) and is now %s; beginning a new one, what "
            "was not delivered from the old one is lost",
            error,
            aside,
        )

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if identity(self.path) == self._identity:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
        else:
            # Closing the last connection removes the log by its name, which is another's now.
            _leak(connection)

    def leave_to_parent(self) -> None:
        """In a forked child whose parent was at work: neither use nor close what is inherited."""
        self.at_work = threading.Lock()
        if self._connection is not None and self._identity is not None:
            _inherited.add(self._identity)
            _leak(self._connection)
            self._connection = None

    def _explain(self, error: sqlite3.Error) -> str:
        text = str(error)
        if _is_busy(error):
            text = "it is locked by another process"
        elif "full" in text:
            text = "the disk, or the file's own limit, is full"
        elif "readonly" in text or "unable to open" in text:
            text += "; check who may write to it and to its folder"
        elif "no such function: json" in text or "no such table: json_each" in text:
            text = f"SQLite {sqlite3.sqlite_version} was built without its JSON functions"
        return f"cannot use the file {self.path}: {text}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_busy(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)  # since Python 3.11
    return code & 0xFF in _BUSY if code is not None else "locked" in str(error)


def _is_corrupt(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _CORRUPT
    return "malformed" in str(error) or "not a database" in str(error)


# --- forks ----------------------------------------------------------------------------------------
#
# SQLite keeps the locks of a file in the memory of the process. A child inherits that memory but
# not the locks, so a connection of its own to the same file would go without: the last other one
# to close would remove the log under it. Hence nothing is open while the process forks.

_databases: WeakSet[Database] = WeakSet()
_opening = threading.Lock()
_inherited: set[tuple[int, int]] = set()
"""Files that were open when this process was forked."""
_leaked: list[sqlite3.Connection] = []
_watching = False


class _Forking(threading.local):
    """What the forking thread holds from before the fork to after it."""

    def __init__(self) -> None:
        self.held: list[threading.Lock] = []
        self.quiet: list[Database] = []


_forking = _Forking()


def _watch_forks() -> None:
    global _watching  # noqa: PLW0603 - there is one hook per process, registered at first use
    if not _watching and hasattr(os, "register_at_fork"):
        _watching = True
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
        )


def _before_fork() -> None:
    end = time.monotonic() + _FORK_PATIENCE
    for database in list(_databases):
        if _hold(database.at_work, end):
            database._disconnect()  # noqa: SLF001 - the hook of this class
            _forking.quiet.append(database)
    _hold(_opening, end)


def _hold(lock: threading.Lock, end: float) -> bool:
    if lock.acquire(timeout=max(end - time.monotonic(), 0)):
        _forking.held.append(lock)
        return True
    return False


def _after_fork() -> None:
    _forking.quiet.clear()
    while _forking.held:
        _forking.held.pop().release()


def _after_fork_in_child() -> None:
    global _opening  # noqa: PLW0603 - when somebody else held it, nobody can release it here
    for database in list(_databases):
        if database not in _forking.quiet:
            database.leave_to_parent()
    if _opening not in _forking.held:
        _opening = threading.Lock()
    _after_fork()


def _leak(connection: sqlite3.Connection) -> None:
    """Keep a connection from being closed, also by the end of the interpreter."""
    _leaked.append(connection)
    with contextlib.suppress(ImportError, AttributeError):
        import ctypes  # noqa: PLC0415 - rarely needed, and missing on some platforms

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
