"""News for whoever listens: pages that show it, agents that watch for rules."""

from __future__ import annotations

import asyncio


class Feed:
    """
    A number that grows with every piece of news.

    A listener fetches what is new by itself, from the last thing it has: so nobody who is slow, or
    was away, makes anything pile up here.
    """

    def __init__(self) -> None:
        self.version = 0
        self.closed = False
        self._news = asyncio.Event()

    def tell(self) -> None:
        self.version += 1
        news, self._news = self._news, asyncio.Event()
        news.set()

    def close(self) -> None:
        """Have all listeners end."""
        self.closed = True
        self.tell()

    async def after(self, version: int, seconds: float) -> bool:
        """Wait until there is something newer than ``version``; False when the time is up."""
        if self.version != version:
            return True
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True
