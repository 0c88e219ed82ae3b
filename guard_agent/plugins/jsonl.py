"""The transport ``jsonl``: appends each record as one line of JSON to a file."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

from pydantic import Field

from guard_agent import (
    Accepted,
    Batch,
    PluginContext,
    PluginSettings,
    Retry,
    SendResult,
    Transport,
    hookimpl,
)

if sys.platform != "win32":
    import fcntl

_OPEN_FLAGS = (
    os.O_RDWR
    | os.O_CREAT
    | os.O_APPEND
    | getattr(os, "O_NOFOLLOW", 0)  # a planted link must not decide where records go
    | getattr(os, "O_NONBLOCK", 0)  # opening a pipe without a reader would wait for ever
    | getattr(os, "O_BINARY", 0)
)
_TRIES = 20
_PAUSE = 0.005


class JsonlSettings(PluginSettings):
    path: Path = Field(description="The file; its folder is made when it is missing")
    max_bytes: int | None = Field(
        default=64 * 1024 * 1024,
        ge=1,
        description="Size at which a new file is begun; no limit when null",
    )
    backups: int = Field(
        default=3, ge=0, le=100, description="Former files kept as <path>.1, <path>.2 and so on"
    )
    fsync: bool = Field(default=False, description="Wait until each batch is on the disk")


class JsonlTransport(Transport):
    """
    Appends payloads to a file, one line each; an event has an ``event_type``, a metric a
    ``metric_type``.

    Several processes may share the file: a lock makes a batch, with its rotation, one step. A
    batch is in the file as a whole or not at all; should the process be killed in the middle of
    a line, that line is ended before the next batch. Writing happens on the agent's event loop,
    so ``fsync`` on a slow disk delays other transports.
    """

    name = "jsonl"
    Settings = JsonlSettings
    settings: JsonlSettings

    def __init__(self, settings: JsonlSettings, context: PluginContext) -> None:
        super().__init__(settings, context)
        self._path = settings.path.expanduser()
        self._fd: int | None = None

    async def open(self) -> None:
        try:
            self._open_file()
        except OSError as error:
            raise OSError(error.errno, self._explain(error)) from error

    async def close(self) -> None:
        self._close_file()

    async def send(self, batch: Batch) -> SendResult:
        lines = [
            # A line break is legal between the tokens of a JSON object, and nowhere else in it.
            record.payload.replace(b"\n", b" ") if b"\n" in record.payload else record.payload
            for record in batch.records
        ]
        if not lines:
            return Accepted()
        lines.append(b"")
        try:
            return await self._write(b"\n".join(lines))
        except OSError as error:
            # Whatever is wrong with this descriptor, the next attempt begins with a new one.
            self._close_file()
            return Retry(self._explain(error))

    async def _write(self, data: bytes) -> SendResult:
        for _ in range(_TRIES):
            fd = self._open_file()
            if not _try_lock(fd):
                await asyncio.sleep(_PAUSE)
                continue
            try:
                # Another process, or the operator, may have renamed or removed the file.
                if self._is_current(fd):
                    size = os.fstat(fd).st_size
                    if not self._is_full(size, len(data)):
                        self._append(fd, size, data)
                        return Accepted()
                    self._rotate()
            finally:
                _unlock(fd)
            # Whoever makes the file with this name, this process or another, it is met locked.
            self._close_file()
        return Retry(f"{self._path} is in use by another process", throttled=True)

    def _is_full(self, size: int, more: int) -> bool:
        limit = self.settings.max_bytes
        return limit is not None and size > 0 and size + more > limit

    def _append(self, fd: int, size: int, data: bytes) -> None:
        if size:
            os.lseek(fd, -1, os.SEEK_END)
            if os.read(fd, 1) != b"\n":
                data = b"\n" + data
        try:
            written = os.write(fd, data)
            while written < len(data):
                written += os.write(fd, data[written:])
            if self.settings.fsync:
                os.fsync(fd)
        except OSError:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                os.ftruncate(fd, size)
            raise

    def _rotate(self) -> None:
        """
        Rename the file, which is locked.

        The file itself comes last: until then nobody can make a new one and rotate that.
        """
        if sys.platform == "win32":
            self._close_file()  # Windows renames no open file
        for n in range(self.settings.backups, 0, -1):
            younger = Path(f"{self._path}.{n - 1}") if n > 1 else self._path
            with contextlib.suppress(FileNotFoundError):
                younger.replace(f"{self._path}.{n}")
        if not self.settings.backups:
            self._path.unlink()

    def _open_file(self) -> int:
        if self._fd is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self._path, _OPEN_FLAGS, 0o600)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                raise OSError(errno.EINVAL, "it is not a regular file")
            self._fd = fd
        return self._fd

    def _close_file(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):  # nothing is buffered on our side
                os.close(fd)

    def _is_current(self, fd: int) -> bool:
        try:
            named = self._path.lstat()
        except FileNotFoundError:
            return False
        mine = os.fstat(fd)
        return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)

    def _explain(self, error: OSError) -> str:
        if error.errno == errno.ELOOP:
            return f"cannot write {self._path}: it is a symbolic link; name the file itself"
        return f"cannot write {self._path}: {error.strerror or error}"


def _try_lock(fd: int) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            # Some network file systems know no locks; one process alone needs none.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
    return True


def _unlock(fd: int) -> None:
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # as above; closing the file unlocks it too
            fcntl.flock(fd, fcntl.LOCK_UN)


@hookimpl
def guard_agent_transports() -> list[type[Transport]]:
    return [JsonlTransport]
