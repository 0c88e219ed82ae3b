"""The mark that keeps the agent's own doings from coming back to it as records."""

from __future__ import annotations

import logging
import threading
from typing import Protocol

logger = logging.getLogger("guard_agent")

_local = threading.local


def _new_mark() -> Mark:
    # Made anew, because gevent may have replaced `threading.local` meanwhile.
    class OwnMark(threading.local):
        agent = False

    return OwnMark()


class Mark(Protocol):
    """What a thread is doing."""

    agent: bool
    """Whether it does the agent's work right now: what it records is not taken."""


_mark = _new_mark()


def mark() -> Mark:
    """
    The mark of the present thread.

    Ask anew for each run of the agent: when gevent has replaced the threads of the interpreter
    since, as in a worker that gunicorn forked from an application it had loaded before, the mark of
    a thread would be that of all greenlets in it.
    """
    global _mark, _local  # noqa: PLW0603 - one for the process
    if threading.local is not _local:
        logger.warning(
            "gevent replaced the threads of Python after guard_agent was imported; call "
            "gevent.monkey.patch_all() first, or the agent may not end in time"
        )
        _local = threading.local
        _mark = _new_mark()
    return _mark


def mute_thread() -> None:
    """
    Have nothing taken that the present thread records from now on.

    For a thread of a plugin's own, in which it works for the agent: what an instrumented library
    or a log handler reports of that work would come back to the plugin for ever. The thread in
    which the agent awaits a plugin's methods needs no call.
    """
    mark().agent = True
