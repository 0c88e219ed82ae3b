"""
Which processes that share a file are alive.

Each store holds a lock on a file of its own beside the database, which the system lets go of when
the process ends, however it ends. So what a dead process had leased is known at once to be free,
and what a living one has, however slow it is, is left to it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

from guard_agent.plugins.disk.folder import locked

if TYPE_CHECKING:
    from collections.abc import Iterable

NOBODY = 1
"""An owner of whom nothing can be known: where files cannot be locked, or the folder is gone."""
_BITS = 62


class Owner:
    """
    One store of one process, by a random number.

    The descriptor is not closed with the object: a store that was forgotten, but not closed, may
    still have a request on its way.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self.number = NOBODY

    def begin(self) -> None:
        """
        Take a number and lock its file.

        Where that cannot be done leases end with their time: the owner is nobody, then.
        """
        if sys.platform == "win32" or self._descriptor is not None:
            return
        number = secrets.randbits(_BITS) + NOBODY + 1
        file = self._file(number)
        unborn = Path(f"{self._path}.new-{number:016x}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with contextlib.suppress(OSError):
            descriptor = os.open(unborn, flags, 0o600)
            try:
                if locked(descriptor):
                    unborn.rename(file)  # from now on others see it, and it is locked already
                    self._descriptor, self.number = descriptor, number
                    _watch_forks()
                    _owners.add(self)
            finally:
                if self._descriptor is None:
                    os.close(descriptor)
                    unborn.unlink(missing_ok=True)

    def end(self) -> None:
        """The store is closed. Leases it did not give back end with their time."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                self._file(self.number).unlink()
            os.close(descriptor)
        self.number = NOBODY

    def leave_to_parent(self) -> None:
        """In a forked child: closing what is inherited does not unlock it for the parent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        self.number = NOBODY

    def dead(self) -> list[int]:
        """Other owners whose process has ended. One whose file is gone is not known any more."""
        numbers = []
        for file in self._path.parent.glob(f"{self._path.name}.owner-*"):
            with contextlib.suppress(ValueError):
                number = int(file.name.rpartition("-")[2], 16)
                if number not in (self.number, NOBODY) and _is_unlocked(file):
                    numbers.append(number)
        return numbers

    def forget(self, numbers: Iterable[int]) -> None:
        """Remove the files of dead owners, when they hold nothing any more."""
        for number in numbers:
            with contextlib.suppress(OSError):
                self._file(number).unlink()

    def _file(self, number: int) -> Path:
        return Path(f"{self._path}.owner-{number:016x}")


def _is_unlocked(file: Path) -> bool:
    """Whether the file is there and nobody has locked it."""
    if sys.platform == "win32":
        return False
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        # Another that asks at the same moment is taken for the owner; the next look will tell.
        return locked(descriptor)
    finally:
        os.close(descriptor)


_owners: WeakSet[Owner] = WeakSet()
_watching = False


def _watch_forks() -> None:
    global _watching  # noqa: PLW0603 - there is one hook per process, registered at first use
    if not _watching and hasattr(os, "register_at_fork"):
        _watching = True
        os.register_at_fork(after_in_child=_after_fork_in_child)


def _after_fork_in_child() -> None:
    for owner in list(_owners):
        owner.leave_to_parent()
