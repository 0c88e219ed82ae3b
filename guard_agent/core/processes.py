"""
Forks and ends of processes that Python's own hooks do not see.

uWSGI forks without Python's knowledge, and the children of process pools end without running what
is registered with `atexit`.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("guard_agent")


class ProcessHooks:
    """Calls ``stop`` when the process ends, and whatever asked for it in a forked child."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._in_child: list[Callable[[], None]] = []
        self._hooked_uwsgi = False
        self._hooked_celery = False
        atexit.register(stop)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def on_fork(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called in every forked child."""
        self._in_child.append(callback)

    def _forked(self) -> None:
        for callback in self._in_child:
            callback()

    def may_start(self) -> bool:
        """
        Whether a thread can be started here.

        Not in the master of uWSGI: the worker it forks would inherit an interpreter in which
        somebody else's thread holds the lock, and hang.
        """
        uwsgi = sys.modules.get("uwsgi")
        if uwsgi is None:
            return True
        return self._may_start_in(uwsgi)

    def _may_start_in(self, uwsgi: Any) -> bool:
        if not self._hooked_uwsgi:
            self._hooked_uwsgi = True
            # It has one hook of each kind for everybody.
            uwsgi.post_fork_hook = _both(self._forked, getattr(uwsgi, "post_fork_hook", None))
            uwsgi.atexit = _both(self._stop, getattr(uwsgi, "atexit", None))
            options = {_text(name) for name in getattr(uwsgi, "opt", {})}
            if not options & {"enable-threads", "threads", "gevent"}:
                logger.warning(
                    "uWSGI may run without threads, so that records leave only while a request is "
                    "served; set enable-threads = true"
                )
        return bool(uwsgi.worker_id() or uwsgi.mule_id())

    def started(self) -> None:
        """A thread of the agent runs in this process: see that it is stopped at the end."""
        self._watch_multiprocessing()
        self._watch_celery()

    def _watch_multiprocessing(self) -> None:
        """A forked child of `multiprocessing` ends without running what `atexit` knows."""
        process = sys.modules.get("multiprocessing.process")
        if process is not None and process.parent_process() is not None:
            from multiprocessing.util import Finalize  # noqa: PLC0415 - it is loaded there

            Finalize(None, self._stop, exitpriority=10)

    def _watch_celery(self) -> None:
        """Its worker processes end with `os._exit`, after this signal."""
        signals: Any = sys.modules.get("celery.signals")
        if signals is not None and not self._hooked_celery:
            self._hooked_celery = True
            signals.worker_process_shutdown.connect(self._on_celery, weak=False)

    def _on_celery(self, **_: object) -> None:
        self._stop()


def _both(ours: Callable[[], None], theirs: Any) -> Callable[[], None]:
    def call() -> None:
        ours()
        if callable(theirs):
            theirs()

    return call


def _text(name: object) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
