"""
Words for what can be wrong with plugins and configuration.

`CODES` lists every stable code; a code keeps its meaning for ever and is never given to something
else. The functions below phrase messages without repeating the value of any setting.
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

CODES: Mapping[str, str] = {
    # Plugins.
    "GA101": "The configuration names a plugin that is not installed.",
    "GA102": "Two providers offer a plugin of the same name, so it is unclear which one is meant.",
    "GA103": "A plugin is installed but cannot be imported.",
    "GA104": "A function is marked with @hookimpl, but there is no hook of that name.",
    "GA105": "A function is named like a hook but is not marked with @hookimpl.",
    "GA106": "A hook has the wrong form: hooks are plain functions without arguments.",
    "GA107": "A hook raised an exception.",
    "GA108": "A hook returned something else than a list of classes of its kind.",
    "GA109": "A class attribute that the agent reads (name, stage, level) is missing or wrong.",
    "GA110": "A method that must be 'async def' is not, or one that must not be is.",
    "GA111": "A required method is missing, or cannot be called as the interface says.",
    "GA112": "A setting of a plugin is unknown, missing or invalid.",
    "GA113": "The Settings of a plugin cannot be used.",
    "GA114": "A plugin is named in a place for something that it does not provide.",
    "GA115": "There are settings for a plugin that is not in use.",
    "GA116": "A plugin cannot be constructed with its settings.",
    # Composition.
    "GA201": "No enricher redacts, so secrets would leave the process.",
    "GA202": "The enrichers stand in an order in which redacted data could get secrets again.",
    "GA203": "No transport is left, so nothing could be delivered.",
    "GA204": "An enricher that redacts, or that may, is broken.",
    "GA205": "Neither the configured store nor the memory store can be used.",
    # Configuration files.
    "GA301": "A configuration file cannot be read.",
    "GA302": "A configuration file is not well formed.",
    "GA303": "A setting is unknown.",
    "GA304": "A setting has an invalid value.",
    "GA305": "A setting refers to an environment variable that is not set.",
    "GA306": "A setting refers to a file that cannot be read.",
    "GA307": "A required setting is missing.",
    "GA308": "A setting contains a malformed reference.",
}

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
