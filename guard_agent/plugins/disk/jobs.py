"""Blocking work of one store, one job after another, in a daemon thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from guard_agent import mute_thread
from guard_agent.plugins.disk.folder import DiskStoreError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("guard_agent.disk")

T = TypeVar("T")

_MOST_WAITING = 64
_GRACE = 0.25
"""Seconds that the answer of a job may take after its deadline."""


class GivenUpError(Exception):
    """Nobody waits for this job any more, so it has to leave everything as it was."""


class Job:
    """One piece of work. ``run`` belongs to the thread, the rest to whoever waits for it."""

    def __init__(
        self,
        work: Callable[[Job], Any],
        deadline: float,
        wake: Callable[[], None] | None = None,
        undo: Callable[[Any], None] | None = None,
    ) -> None:
        self.deadline = deadline
        """Monotonic time by which it should have ended."""
        self.result: Any = None
        self.error: BaseException | None = None
        self._work = work
        self._wake = wake
        self._undo = undo
        self._lock = threading.Lock()
        self._done = False
        self._abandoned = False

    def check(self) -> None:
        """
        For the work to ask before it commits.

        Raises:
            GivenUpError: nobody waits for it any more, and it is better not to have happened.
        """
        if self._abandoned and self._undo is not None:
            raise GivenUpError

    def run(self) -> None:
        try:
            self.check()
            self.result = self._work(self)
        except BaseException as error:  # noqa: BLE001 - goes to whoever waits
            self.error = error
        with self._lock:
            self._done = True
            late = self._abandoned
        if late:
            self.take_back()
        elif self._wake is not None:
            self._wake()

    @property
    def done(self) -> bool:
        return self._done

    def abandon(self) -> bool:
        """Stop waiting for it; returns whether it is done all the same."""
        with self._lock:
            self._abandoned = True
            return self._done

    def take_back(self) -> None:
        """Undo what was done for nobody. In the thread only."""
        if self._undo is None or self.error is not None:
            return
        try:
            self._undo(self.result)
        except Exception:
            logger.debug("could not undo what was done too late", exc_info=True)


class Jobs:
    """
    A queue and the thread that empties it.

    Not an executor: asyncio's refuses work when the interpreter ends, which is when what is left
    has to be stored; and its threads are waited for at exit, which must not hang on a dead disk.
    """

    def __init__(self, name: str) -> None:
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        # The thread knows the queue only, so that it keeps nothing else alive.
        self._thread = threading.Thread(target=_work, args=(self._queue,), name=name, daemon=True)

    def start(self) -> None:
        """
        Start the thread.

        Raises:
            RuntimeError: there can be no further thread.
        """
        self._thread.start()

    def stop(self) -> None:
        """End the thread after what was asked for before; does not wait for it."""
        self._queue.put(None)

    async def run(
        self,
        work: Callable[[Job], T],
        timeout: float,
        *,
        undo: Callable[[T], None] | None = None,
    ) -> T:
        """
        Do ``work`` in the thread.

        Without ``undo`` it is done also when nobody waits any more. With it, work that is given up
        (cancelled, or too late) is not begun; when it was done already, ``undo`` gets the result.

        Raises:
            DiskStoreError: it took longer than ``timeout`` seconds, or too much waits already.
        """
        if self._queue.qsize() >= _MOST_WAITING:
            raise DiskStoreError("the disk does not answer, and much waits for it already")
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(ended.set)
            except RuntimeError:  # the loop is closed: nobody waits any more
                job.abandon()
                job.take_back()

        job = Job(work, time.monotonic() + timeout, wake, undo)
        self._queue.put(job)
        taken = False
        try:
            await _wait(ended, timeout + _GRACE)
            taken = job.done
        finally:
            # Also when cancelled, which can come in the same moment as the result.
            if not taken and job.abandon():
                self._queue.put(Job(lambda _: job.take_back(), 0))
        if not taken:
            msg = f"the disk did not answer within {timeout:g} s"
            raise DiskStoreError(msg)
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[no-any-return] # a job holds what its work returned


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Not `asyncio.wait_for`, which on some versions of Python swallows a cancellation."""
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()


def _work(queue: SimpleQueue[Job | None]) -> None:
    mute_thread()
    while (job := queue.get()) is not None:
        job.run()
        del job  # an idle thread holds no records
