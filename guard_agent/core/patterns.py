"""
Whether a regular expression from outside is safe to run with Python's ``re``.

``re`` backtracks, and holds the interpreter lock while it does: ``(a+)+$`` on 27 characters stops
every thread of the process for seconds. So a pattern is refused by its shape, before it is run.
"""

from __future__ import annotations

import re
import sys
import warnings
from typing import Any

# The parser of `re` is not public, but it is the only one that reads a pattern as `re` does.
if sys.version_info >= (3, 11):
    from re import _constants as sre  # type: ignore[attr-defined]
    from re import _parser as sre_parse  # type: ignore[attr-defined]
else:
    import sre_constants as sre
    import sre_parse

MAX_LENGTH = 1_000
_MANY = 10
"""A repetition that can run more often than this counts as unbounded."""
_MAX_NODES = 2_000


def dangerous(pattern: str) -> str | None:
    """
    Why ``pattern`` is not safe to run, or None when it is.

    Refused are: what does not compile, more than 1,000 characters, an unbounded repetition inside
    another one, an unbounded repetition of alternatives that can start alike, and two unbounded
    repetitions side by side that can match the same text. Some harmless patterns are refused too.
    """
    if len(pattern) > MAX_LENGTH:
        return f"is longer than {MAX_LENGTH} characters"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree: Any = sre_parse.parse(pattern)
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"is not a regular expression: {error}"
    try:
        return _Walker().sequence(list(tree), repeated=False)
    except RecursionError:
        return "is nested too deeply"


class _Walker:
    def __init__(self) -> None:
        self._nodes = 0

    def sequence(self, items: list[Any], *, repeated: bool) -> str | None:
        previous: list[Any] | None = None
        for code, argument in items:
            self._nodes += 1
            if self._nodes > _MAX_NODES:
                return "is too complicated"
            if (reason := self._item(code, argument, repeated=repeated)) is not None:
                return reason
            if _is_repeat(code) and argument[1] > _MANY:
                body = list(argument[2])
                if previous is not None and _overlap(_first(previous), _first(body)):
                    return "repeats the same text twice in a row, which can take for ever"
                previous = body
            elif not _can_be_empty([(code, argument)]):
                previous = None
        return None

    def _item(self, code: Any, argument: Any, *, repeated: bool) -> str | None:  # noqa: PLR0911
        if _is_repeat(code):
            many = argument[1] > _MANY
            if many and repeated:
                return "repeats a repetition, which can take for ever"
            return self.sequence(list(argument[2]), repeated=repeated or many)
        if code is sre.SUBPATTERN:
            return self.sequence(list(argument[3]), repeated=repeated)
        if code is sre.BRANCH:
            return self._branch([list(branch) for branch in argument[1]], repeated=repeated)
        if code in (sre.ASSERT, sre.ASSERT_NOT):
            return self.sequence(list(argument[1]), repeated=repeated)
        if code is sre.GROUPREF and repeated:
            return "repeats a back-reference, which can take for ever"
        if code is sre.GROUPREF_EXISTS:
            return "uses a conditional group, which is not supported"
        atomic = getattr(sre, "ATOMIC_GROUP", None)
        if atomic is not None and code is atomic:
            return self.sequence(list(argument), repeated=repeated)
        return None

    def _branch(self, branches: list[list[Any]], *, repeated: bool) -> str | None:
        if repeated:
            if sum(_can_be_empty(branch) for branch in branches) > 1:
                return "repeats alternatives that are the same, which can take for ever"
            firsts = [_first(branch) for branch in branches]
            for index, first in enumerate(firsts):
                if any(_overlap(first, other) for other in firsts[index + 1 :]):
                    return "repeats alternatives that start alike, which can take for ever"
        for branch in branches:
            if (reason := self.sequence(branch, repeated=repeated)) is not None:
                return reason
        return None


def _is_repeat(code: Any) -> bool:
    return code in (sre.MAX_REPEAT, sre.MIN_REPEAT)


_ANY: frozenset[int] | None = None
"""As a set of first characters: any."""

_CLASSES = {
    "CATEGORY_DIGIT": frozenset(range(48, 58)),
    "CATEGORY_SPACE": frozenset(map(ord, " \t\n\r\f\v")),
    "CATEGORY_WORD": frozenset(
        [*range(48, 58), *range(65, 91), 95, *range(97, 123)],
    ),
}


def _first(items: list[Any]) -> frozenset[int] | None:
    """Characters a match of ``items`` can start with; None for any."""
    found: set[int] = set()
    for code, argument in items:
        characters = _first_of(code, argument)
        if characters is None:
            return _ANY
        found |= characters
        if not _can_be_empty([(code, argument)]):
            break
    return frozenset(found)


def _first_of(code: Any, argument: Any) -> frozenset[int] | None:  # noqa: PLR0911 - one a code
    if code is sre.LITERAL:
        return frozenset(_cases(argument))
    if code is sre.IN:
        return _first_of_set(argument)
    if _is_repeat(code):
        return _first(list(argument[2]))
    if code is sre.SUBPATTERN:
        return _first(list(argument[3]))
    if code is sre.BRANCH:
        parts = [_first(list(branch)) for branch in argument[1]]
        return _ANY if None in parts else frozenset().union(*(p for p in parts if p is not None))
    if code in (sre.AT, sre.ASSERT, sre.ASSERT_NOT):
        return frozenset()
    return _ANY


def _first_of_set(argument: Any) -> frozenset[int] | None:
    found: set[int] = set()
    for code, value in argument:
        if code is sre.LITERAL:
            found |= _cases(value)
        elif code is sre.RANGE and value[1] - value[0] < 1024:
            for character in range(value[0], value[1] + 1):
                found |= _cases(character)
        elif code is sre.CATEGORY and str(value) in _CLASSES:
            found |= _CLASSES[str(value)]
        else:
            return _ANY
    return frozenset(found)


def _cases(character: int) -> set[int]:
    # The pattern may be run without regard to case.
    text = chr(character)
    return {character, *map(ord, text.lower()), *map(ord, text.upper())}


def _can_be_empty(items: list[Any]) -> bool:
    for code, argument in items:
        if _is_repeat(code):
            if argument[0] > 0 and not _can_be_empty(list(argument[2])):
                return False
        elif code is sre.SUBPATTERN:
            if not _can_be_empty(list(argument[3])):
                return False
        elif code is sre.BRANCH:
            if not any(_can_be_empty(list(branch)) for branch in argument[1]):
                return False
        elif code not in (sre.AT, sre.ASSERT, sre.ASSERT_NOT):
            return False
    return True


def _overlap(one: frozenset[int] | None, other: frozenset[int] | None) -> bool:
    if one is None or other is None:
        return (one is None and other is None) or bool(one or other)
    return bool(one & other)
