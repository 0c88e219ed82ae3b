"""
Words for what can be wrong with plugins and configuration.

What each code means is in `guard_agent.core.assembly.codes`. The functions below phrase messages
without repeating the value of any setting.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from guard_agent.core.logs import one_line

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_OURS = str(Path(__file__).parent)
_HIDDEN = "[hidden]"
_MAX_VISITED = 1000  # values looked at for one message


def closest(word: str, known: Iterable[str]) -> str | None:
    """The name of ``known`` that ``word`` was probably meant to be."""
    by_folded = {_fold(name): name for name in known}
    found = difflib.get_close_matches(_fold(word[:100]), by_folded, n=1, cutoff=0.7)
    return by_folded[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing."""
    name = closest(word, known)
    return f"; did you mean {name!r}?" if name else ""


def listed(names: Iterable[str]) -> str:
    """Names for a sentence, sorted; ``none`` when there are none."""
    return ", ".join(sorted(names)) or "none"


def _fold(name: str) -> str:
    return name.lower().replace("-", "_")


def describe_exception(error: BaseException, settings: object = None) -> str:
    """
    An exception on one line: type, text, and where it was raised.

    Texts that occur in ``settings`` are hidden, because the author of a plugin may have put the
    value at fault into the message.
    """
    text = hide_values(str(error), settings)
    line = f"{type(error).__name__}: {one_line(text, 300)}" if text else type(error).__name__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<frozen", _OURS)) and "importlib" not in frame.filename
    ]
    return f"{line} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else line


def describe_invalid(error: ErrorDetails, *, hide: bool = True) -> str:
    """What pydantic says about one value; with ``hide`` without the value."""
    text = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return one_line(hide_values(text, error["input"]) if hide else text, 300)


def hide_values(text: str, values: object) -> str:
    """
    Replace in ``text`` the strings found in ``values``, also nested ones.

    Strings of less than four characters stay: they are no secrets, and occur everywhere.
    """
    strings: set[str] = set()
    todo = [values]
    for _ in range(_MAX_VISITED):
        if not todo:
            break
        value = todo.pop()
        if isinstance(value, str):
            if len(value) >= 4:
                strings.add(value)
        elif isinstance(value, Mapping):
            todo.extend(value.values())
        elif isinstance(value, (list, tuple, set, frozenset)):
            todo.extend(value)
    for value in sorted(strings, key=len, reverse=True):
        text = text.replace(value, _HIDDEN)
    return text
