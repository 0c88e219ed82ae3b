"""
Python imports this at its start: in processes that the tests of a mutation run start as well.

What such a process, or a forked one, reaches belongs to the test that is running. mutmut only sees
what is reached in the process of the test, so the others write it down for `selection`.
"""

from __future__ import annotations

import os
from pathlib import Path


class Hits(set[str]):
    """The functions that this process reaches; new ones are written down at once."""

    def add(self, name: str) -> None:
        if name not in self:
            super().add(name)
            with Path(os.environ["MUTATION_HITS"]).open("a", encoding="utf-8") as file:
                file.write(f"{name}\n")


def write_down() -> None:
    """Note what this process reaches from now on where `selection` finds it."""
    from mutmut.state import state

    state()._stats = Hits()


# The process in which mutmut runs pytest begins before it knows that it collects.
if os.environ.get("MUTANT_UNDER_TEST") == "stats" and "MUTATION_HITS" in os.environ:
    write_down()
