"""How much of one record is looked at."""

from __future__ import annotations

import threading

_SHORT_TEXT = 160
_FREE_TEXTS = 24
_PAIRS_OF_SHORT_TEXT = 40


class BudgetError(Exception):
    """There is more in a record than anybody is going to look at."""


class Budget(threading.local):
    """
    What is left for the record that this thread works on.

    The first short texts of a record are free: what says who did what must not get lost because
    another field is hostile.
    """

    def __init__(self, characters: int, pairs: int) -> None:
        self._full = characters, pairs, _FREE_TEXTS
        self.characters, self.pairs, self.free = self._full

    def renew(self) -> None:
        """Begin with a record."""
        self.characters, self.pairs, self.free = self._full

    def take_text(self, size: int) -> None:
        """
        Count one text that has to be looked at.

        Raises:
            BudgetError: it is one too many.
        """
        if size <= _SHORT_TEXT and self.free:
            self.free -= 1
            self.pairs = max(self.pairs, 0) + _PAIRS_OF_SHORT_TEXT
            return
        self.characters -= size
        if self.characters < 0:
            raise BudgetError

    def take_pair(self) -> None:
        """
        Count one place that has to be looked at.

        Raises:
            BudgetError: it is one too many.
        """
        self.pairs -= 1
        if self.pairs < 0:
            raise BudgetError
