"""Where the file of the disk store lies, and whether that place can be trusted."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from guard_agent import GuardAgentError

if TYPE_CHECKING:
    from collections.abc import Iterator

if sys.platform != "win32":
    import fcntl

SIDE_FILES = ("-wal", "-shm")
_KEPT_CORRUPT = 2
_PAUSE = 0.005


class DiskStoreError(GuardAgentError):
    """The disk store cannot be used now."""


def prepare_folder(folder: Path) -> None:
    """
    Make the folder when it is missing, and see that only we can put something into it.

    Raises:
        DiskStoreError: saying what is wrong and how to mend it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        msg = (
            f"cannot make the folder {folder}: {error.strerror or error}; set "
            "GUARD_AGENT_STATE_DIR, or path in the store's settings, to a folder of your own"
        )
        raise DiskStoreError(msg) from error
    _check(folder, found, "folder")


def prepare_file(path: Path) -> None:
    """
    Make the file, readable by us only, when it is missing; else see that it is ours.

    A file that exists is looked at without opening it: closing any descriptor of it would drop
    the locks that SQLite holds on it elsewhere in this process. Call with `exclusive`.

    Raises:
        DiskStoreError: saying what is wrong and how to mend it.
    """
    try:
        for suffix in ("", *SIDE_FILES):
            side = Path(f"{path}{suffix}")
            with contextlib.suppress(FileNotFoundError):
                found = side.lstat()
                _check(side, found, "file")
                if sys.platform != "win32" and found.st_mode & 0o077:
                    side.chmod(0o600)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, flags, 0o600))
    except OSError as error:
        msg = f"cannot make the file {path}: {error.strerror or error}"
        raise DiskStoreError(msg) from error


def _check(path: Path, found: os.stat_result, kind: str) -> None:
    problem = mend = ""
    if stat.S_ISLNK(found.st_mode):
        problem, mend = "it is a symbolic link", f"name the {kind} itself"
    elif not (stat.S_ISDIR if kind == "folder" else stat.S_ISREG)(found.st_mode):
        problem, mend = f"it is not a {kind}", "remove it"
    elif sys.platform == "win32":
        pass  # what protects it there are access lists, which it inherits from the user's folder
    elif found.st_uid != os.geteuid():
        problem = f"it belongs to user {found.st_uid}, not to {os.geteuid()}, who runs this"
        mend = "use a folder of your own"
    elif found.st_mode & 0o022:
        problem = f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o})"
        mend = f"chmod {'700' if kind == 'folder' else '600'} {path}"
    if problem:
        msg = f"will not use the {kind} {path}: {problem}; {mend}"
        raise DiskStoreError(msg)


@contextlib.contextmanager
def exclusive(folder: Path, deadline: float) -> Iterator[None]:
    """
    Make or replace files in ``folder`` while no other process does.

    Raises:
        DiskStoreError: another process did not let go before ``deadline`` (monotonic).
    """
    if sys.platform == "win32":
        yield
        return
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        descriptor = os.open(folder, flags)
    except OSError as error:
        msg = f"cannot open the folder {folder}: {error.strerror or error}"
        raise DiskStoreError(msg) from error
    try:
        while not locked(descriptor):
            if time.monotonic() >= deadline:
                msg = f"the folder {folder} is locked by another process"
                raise DiskStoreError(msg)
            time.sleep(_PAUSE)
        yield
    finally:
        os.close(descriptor)  # unlocks it too


def locked(descriptor: int) -> bool:
    """Lock the file, if nobody else has it; closing its last descriptor unlocks it."""
    if sys.platform != "win32":
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what has this name now, None when nothing has."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def set_aside(path: Path) -> Path:
    """
    Rename the file and what belongs to it, and remove older ones set aside before.

    Call with `exclusive`, and with the caller's own connection closed.
    """
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    when = time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds))
    aside = Path(f"{path}.corrupt-{when}.{nanoseconds // 1000:06d}Z")
    # The log first: beside a new file, SQLite would play it into that.
    for suffix in (*SIDE_FILES, ""):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{aside}{suffix}")
    for old in sorted(
        found
        for found in path.parent.glob(f"{path.name}.corrupt-*")
        if not found.name.endswith(SIDE_FILES)
    )[:-_KEPT_CORRUPT]:
        for suffix in ("", *SIDE_FILES):
            Path(f"{old}{suffix}").unlink(missing_ok=True)
    return aside
