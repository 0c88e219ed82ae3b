"""The ``on_error`` callback of the application."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from guard_agent.core.reentry import mute_thread

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("guard_agent")

SLOW = 5.0
"""Seconds after which a call counts as a failure."""
DISABLE_AFTER = 5
MAX_WAITING = 100
"""Errors that wait while an earlier call is under way; the oldest make room."""
_LOOK = 0.01

Told = tuple[str, BaseException, dict[str, Any]]


class ErrorCallback:
    """
    Calls ``function`` in a thread of its own, one call at a time.

    So whatever it does, delivery goes on. After five calls that raised, or took longer than
    ``slow`` seconds, it is not called any more.
    """

    def __init__(self, function: Callable[..., object] | None, *, slow: float = SLOW) -> None:
        self._function = function
        self._slow = slow
        self._failures = 0
        self._waiting: deque[Told] = deque(maxlen=MAX_WAITING)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __call__(self, stage: str, error: BaseException, context: dict[str, Any]) -> None:
        """Have it called soon. Never raises, never waits."""
        if self._function is None or self._failures >= DISABLE_AFTER:
            return
        with self._lock:
            self._waiting.append((stage, error, context))
            if self._thread is not None:
                return
            self._thread = thread = threading.Thread(
                target=self._work, name="guard-agent-on-error", daemon=True
            )
        try:
            thread.start()
        except RuntimeError:
            # The interpreter is ending, which waits no longer than the time to stop.
            self._work()

    @property
    def is_current_thread(self) -> bool:
        """Whether it is the callback that asks, for whom delivery must not wait."""
        return threading.current_thread() is self._thread

    async def settle(self) -> None:
        """Wait until nothing is left to tell."""
        while self._thread is not None:  # noqa: ASYNC110 - an event of asyncio is not for threads
            await asyncio.sleep(_LOOK)

    def _work(self) -> None:
        mute_thread()
        while True:
            with self._lock:
                if not self._waiting or self._failures >= DISABLE_AFTER:
                    self._waiting.clear()
                    self._thread = None
                    return
                told = self._waiting.popleft()
            self._tell(told)

    def _tell(self, told: Told) -> None:
        assert self._function is not None  # noqa: S101 - `__call__` looked
        began = time.monotonic()
        try:
            self._function(*told)
        except BaseException:  # noqa: BLE001 - agent meets host: it could end this thread only, and
            # is logged.
            self._failed("raised", exc_info=True)
        else:
            if time.monotonic() - began > self._slow:
                self._failed(f"took longer than {self._slow:g} s")

    def _failed(self, what: str, *, exc_info: bool = False) -> None:
        self._failures += 1
        if self._failures == 1:
            logger.error(
                "the on_error callback %s; further failures are not logged", what, exc_info=exc_info
            )
        elif self._failures == DISABLE_AFTER:
            logger.error("the on_error callback failed %d times: disabled", DISABLE_AFTER)
