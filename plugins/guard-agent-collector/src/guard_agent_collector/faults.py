"""What a person breaks on purpose, to see how agents get over it."""

from __future__ import annotations

import asyncio
from typing import Any, Literal, TypeAlias, get_args

FaultKind: TypeAlias = Literal["500", "429", "413", "hang", "drop", "lose_ack"]
"""
``413`` refuses batches of more than one record, so that splitting helps and nothing is given up;
``drop`` hangs up before anything is stored, ``lose_ack`` after it.
"""

KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
RETRY_AFTER = 3
LONGEST_HANG = 60.0


class Breaker:
    """Which fault is on, and for how many more requests."""

    def __init__(self) -> None:
        self._kind: FaultKind | None = None
        self._left: int | None = None
        self._mended = asyncio.Event()

    def set(self, kind: FaultKind | None, count: int | None) -> None:
        """Break the next ``count`` requests with records; None for all until it is mended."""
        self._mended.set()
        self._mended = asyncio.Event()
        self._kind, self._left = kind, count

    def take(self, records: int) -> FaultKind | None:
        """What happens to a request with so many records."""
        kind = self._kind
        if kind is None or (kind == "413" and records < 2):
            return None
        if self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self._kind = self._left = None
        return kind

    async def hang(self) -> None:
        """Wait until a person mends it, but not for ever."""
        mended = self._mended
        try:
            await asyncio.wait_for(mended.wait(), LONGEST_HANG)
        except asyncio.TimeoutError:
            return

    def describe(self) -> dict[str, Any]:
        return {"kind": self._kind, "left": self._left}
