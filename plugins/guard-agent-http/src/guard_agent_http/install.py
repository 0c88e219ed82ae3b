"""The install id: which installation a record comes from."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

_MAX_LENGTH = 128


def resolve_install_id() -> str:
    """
    Read ``~/.guard-agent/install-id``, creating it when there is none.

    When the home folder is missing or cannot be written, one id serves as long as the process
    lives. Never raises for what the file system does.
    """
    try:
        path = Path.home() / ".guard-agent" / "install-id"
    except RuntimeError:  # no HOME and no entry in the password database, as in some containers
        return _process_id()
    known = _read(path)
    if known is not None:
        return known
    return _create(path, _process_id())


@lru_cache(maxsize=1)
def _process_id() -> str:
    """One id per process, so that several clients without a home agree."""
    return str(uuid4())


def _read(path: Path) -> str | None:
    # Non-blocking: a named pipe in this place must not hold the agent for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        handle = os.open(path, flags)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        raw = os.read(handle, 4 * _MAX_LENGTH)
    except OSError:
        return None
    finally:
        os.close(handle)
    text = raw.decode("utf-8", "replace").strip()
    usable = text and len(text) <= _MAX_LENGTH and text.isascii() and text.isprintable()
    return text if usable else None


def _create(path: Path, value: str) -> str:
    """Put ``value`` into the file, unless another process was quicker: then its id holds."""
    temporary = path.with_name(f".install-id.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return value
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(value.encode())
        try:
            # Unlike a rename, a link fails when the name is taken: the first process wins.
            os.link(temporary, path)
        except FileExistsError:
            winner = _read(path)
            if winner is not None:
                return winner
            temporary.replace(path)  # it holds something unusable
        except OSError:
            temporary.replace(path)  # a file system without links
    except OSError:
        return value
    finally:
        with suppress(OSError):
            temporary.unlink()
    return value
