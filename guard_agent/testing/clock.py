"""A clock that a test moves by hand."""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from itertools import count


class VirtualClock:
    """
    Seconds that pass only when a test says so.

    Called like `time.monotonic`, so it goes wherever a clock is taken. For one event loop; not
    thread safe::

        clock = VirtualClock()
        store = MyStore(settings, context, clock=clock)
        clock.advance(60)
    """

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._numbers = count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def __call__(self) -> float:
        return self._now

    @property
    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """
        Let time pass, and wake whose time has come, in the order of their times.

        Raises:
            ValueError: ``seconds`` is negative.
        """
        if seconds < 0:
            msg = f"time does not go back: advance({seconds})"
            raise ValueError(msg)
        self._now += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now:
            sleeper = heappop(self._sleepers)[2]
            if not sleeper.done():
                sleeper.set_result(None)

    async def sleep(self, seconds: float) -> None:
        """Wait until so many seconds have been let pass; in place of `asyncio.sleep`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        sleeper = asyncio.get_running_loop().create_future()
        heappush(self._sleepers, (self._now + seconds, next(self._numbers), sleeper))
        await sleeper
