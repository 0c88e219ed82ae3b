"""How large a batch may be: what the configuration allows, and what the collector takes."""

from __future__ import annotations

LEAST = 1024
GROW_AFTER = 300.0
"""Seconds without a refusal, or since the last step, until a batch may be a little larger."""
STEPS = 16
"""Steps from nothing to what the configuration allows."""


class ByteLimit:
    """
    The most payload bytes of one batch.

    A collector that refuses a batch for its size lowers the limit at once. The reason may pass,
    such as a proxy that was changed or a single giant record, so the limit comes back: step by
    step, and only while batches fill it. A collector that stays as it is refuses one request in a
    few minutes at most. All times are seconds on one monotonic clock.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._step = most // STEPS
        self._changed_at = 0.0
        self.value = most

    def refused(self, size: int, named: float | None, now: float) -> None:
        """A batch of ``size`` bytes was too large; ``named`` is the limit that came with it."""
        lower = size // 2 if named is None else int(min(max(named, LEAST), self._most))
        self.value = max(min(self.value, lower), min(LEAST, self._most))
        self._changed_at = now

    def accepted(self, size: int, now: float) -> None:
        """A batch of ``size`` bytes was taken."""
        fills = size + self._step > self.value
        if self.value < self._most and fills and now - self._changed_at >= GROW_AFTER:
            self.value = min(self.value + self._step, self._most)
            self._changed_at = now
