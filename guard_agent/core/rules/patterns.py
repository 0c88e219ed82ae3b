"""
Whether a regular expression from outside is safe to run with Python's ``re``.

``re`` backtracks, and holds the interpreter lock while it does: ``(a+)+$`` on 27 characters stops
every thread of the process for seconds. So a pattern is refused by its shape, before it is run.

Looked for are choices that one character of lookahead does not decide. Inside a loop one is enough
for exponential time; elsewhere they multiply, and so do unbounded repetitions that can stop at
several places.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any

# The parser of `re` is not public, but it is the only one that reads a pattern as `re` does.
if sys.version_info >= (3, 11):
    from re import _compiler as sre_compile  # type: ignore[attr-defined]
    from re import _parser as sre_parse  # type: ignore[attr-defined]
else:
    import sre_compile
    import sre_parse

MAX_LENGTH = 1_000
_MANY = 10
"""A repetition that can run more often than this counts as unbounded."""
_MAX_NODES = 2_000
_MAX_DEGREE = 2
"""Undecided unbounded repetitions in one path: the exponent of the time a match can take."""
_MAX_WAYS = 10_000
"""Ways to match one text that bounded choices may multiply to; less for each degree."""
_MAX_WIDTH = 256 * 1024
"""Characters of all ranges together: compiling one without regard to case looks at each."""


def dangerous(pattern: str) -> str | None:
    """
    Why ``pattern`` is not safe to run, or None when it is.

    Refused are: what does not compile, more than 1,000 characters, a choice inside an unbounded
    repetition that the next character does not decide (a repetition of the same text, alternatives
    that start alike), two unbounded repetitions side by side that can match the same text, and more
    than a few undecided choices in a row. Some harmless patterns are refused too.
    """
    if len(pattern) > MAX_LENGTH:
        return f"is longer than {MAX_LENGTH} characters"
    try:
        tree: Any = sre_parse.parse(pattern)
        # Whoever runs it may do so with or without regard to case.
        for fold in (True, False):
            _check(_Reader(fold=fold, ascii_only=bool(tree.state.flags & re.ASCII)).sequence(tree))
        sre_compile.compile(tree)
    except _Refused as refusal:
        return str(refusal)
    except RecursionError:
        return "is nested too deeply"
    except (
        re.error,
        ValueError,
        OverflowError,
        Warning,
    ) as error:  # Warning: where those are errors
        return f"is not a regular expression: {error}"
    return None


class _Refused(Exception):  # noqa: N818 - it is an answer
    """The text says why."""


# --- sets of characters ---------------------------------------------------------------------------

# A bit for each of the first 256 characters and one for each class of all others.
_OTHERS = {"digit": 1 << 256, "word": 1 << 257, "space": 1 << 258, "rest": 1 << 259}
_ALL = (1 << 260) - 1
_BEYOND = reduce(or_, _OTHERS.values())


def _bit(character: int) -> int:
    if character < 256:
        return 1 << character
    text = chr(character)
    if text.isdecimal():
        return _OTHERS["digit"]
    if text.isalnum():
        return _OTHERS["word"]
    return _OTHERS["space"] if text.isspace() else _OTHERS["rest"]


def _mask(characters: str) -> int:
    return reduce(or_, (_bit(ord(character)) for character in characters), 0)


def _cases(character: int) -> int:
    text = chr(character)
    return _bit(character) | _mask(text.lower()) | _mask(text.upper())


_LATIN = [chr(number) for number in range(256)]
_DIGIT = _mask("".join(c for c in _LATIN if c.isdecimal())) | _OTHERS["digit"]
_WORD = (
    _mask("".join(c for c in _LATIN if c.isalnum())) | _bit(95) | _OTHERS["digit"] | _OTHERS["word"]
)
_SPACE = _mask("".join(c for c in _LATIN if c.isspace())) | _OTHERS["space"]
_ASCII = (1 << 128) - 1
_CROSSING = _mask("sSkKiI\xb5\xdf\xc5\xe5\xff")
"""Those of the first 256 that are another case of one beyond."""


# --- the pattern, as far as it matters here -------------------------------------------------------


@dataclass(slots=True)
class _Node:
    """A part of a pattern. ``first``: characters a match can start with; ``chars``: all it eats."""

    kind: str
    first: int = 0
    chars: int = 0
    nullable: bool = False
    boundary: bool = False
    """It can begin with ``\\b``."""
    asserts: bool = False
    """It can begin with another assertion, which may fail without looking at a character."""
    heads: int = 0
    """What the unbounded repetitions can start with that it can begin with."""
    parts: list[_Node] = field(default_factory=list)
    low: int = 1
    high: int = 1

    @property
    def many(self) -> bool:
        return self.kind == "repeat" and self.high > _MANY


class _Reader:
    """Makes nodes of what the parser of `re` found."""

    def __init__(self, *, fold: bool, ascii_only: bool) -> None:
        self._fold = fold
        self._ascii = ascii_only
        self._nodes = 0
        self._width = 0

    def sequence(self, items: Any) -> _Node:
        node = _Node("sequence", nullable=True)
        for code, argument in items:
            part = self._node(code, argument)
            node.parts.append(part)
            node.chars |= part.chars
            if node.nullable:
                _begin(node, part)
                node.nullable = part.nullable
        return node

    def _node(self, code: Any, argument: Any) -> _Node:  # noqa: C901, PLR0911 - one a code
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            msg = "is too complicated"
            raise _Refused(msg)
        name = str(code)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            return self._repeat(*argument)
        if name == "SUBPATTERN":
            _group, flags, _without, body = argument
            if flags & re.ASCII:
                msg = "switches the flag 'a' on for a part, which is not supported"
                raise _Refused(msg)
            return self.sequence(body)
        if name == "ATOMIC_GROUP":
            return self.sequence(argument)
        if name == "BRANCH":
            return self._branch(argument[1])
        if name in ("ASSERT", "ASSERT_NOT"):
            body = self.sequence(argument[1])
            return _Node("look", nullable=True, asserts=True, parts=[body])
        if name == "AT":
            boundary = str(argument) in ("AT_BOUNDARY", "AT_NON_BOUNDARY")
            return _Node("at", nullable=True, boundary=boundary, asserts=not boundary)
        if name == "GROUPREF":
            return _Node("reference", first=_ALL, chars=_ALL, nullable=True)
        if name == "GROUPREF_EXISTS":
            msg = "uses a conditional group, which is not supported"
            raise _Refused(msg)
        characters = self._characters(name, argument)
        return _Node("characters", first=characters, chars=characters)

    def _repeat(self, low: Any, high: Any, items: Any) -> _Node:
        body = self.sequence(items)
        node = _Node("repeat", low=int(low), high=int(high), parts=[body], chars=body.chars)
        _begin(node, body)
        node.nullable = node.low == 0 or body.nullable
        if node.many:
            node.heads |= body.first
        return node

    def _branch(self, branches: Any) -> _Node:
        node = _Node("branch", parts=[self.sequence(branch) for branch in branches])
        for part in node.parts:
            node.chars |= part.chars
            node.nullable |= part.nullable
            _begin(node, part)
        return node

    def _characters(self, name: str, argument: Any) -> int:
        if name == "LITERAL":
            return self._literal(argument)
        if name == "NOT_LITERAL":
            return _ALL & ~self._literal(argument) | _BEYOND
        if name == "IN":
            return self._set(argument)
        return _ALL

    def _literal(self, character: int) -> int:
        return _cases(character) if self._fold else _bit(character)

    def _set(self, items: Any) -> int:
        # Characters that may be in the set, and those that certainly are.
        most = least = 0
        negated = False
        for code, value in items:
            name = str(code)
            if name == "NEGATE":
                negated = True
            elif name == "LITERAL":
                most |= self._literal(value)
                least |= self._literal(value) & ~_BEYOND
            elif name == "RANGE":
                more, certain = self._range(*value)
                most |= more
                least |= certain
            else:
                category = self._category(str(value))
                most |= category
                least |= category
        return _ALL & ~least if negated else most

    def _range(self, low: int, high: int) -> tuple[int, int]:
        self._width += min(high, 0xFFFF) - min(low, 0xFFFF)
        if self._width > _MAX_WIDTH:
            msg = "has too many wide ranges of characters"
            raise _Refused(msg)
        most = reduce(or_, map(self._literal, range(low, min(high, 255) + 1)), 0)
        least = most & ~_BEYOND
        if high > 255:
            most |= _BEYOND | (_CROSSING if self._fold else 0)
            if low <= 256 and high == sys.maxunicode:
                least |= _BEYOND
        return most, least

    def _category(self, name: str) -> int:
        kind = name.rpartition("_")[2]
        characters = {"DIGIT": _DIGIT, "WORD": _WORD, "SPACE": _SPACE}.get(kind, _ALL)
        if self._ascii:
            characters &= _ASCII
        return _ALL & ~characters if "_NOT_" in name else characters


def _begin(node: _Node, part: _Node) -> None:
    """A match of ``node`` can begin with ``part``."""
    node.first |= part.first
    node.heads |= part.heads
    node.boundary |= part.boundary
    node.asserts |= part.asserts


# --- what it can cost -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Next:
    """What can come behind a part: as in `_Node`."""

    first: int = 0
    heads: int = 0
    boundary: bool = False
    asserts: bool = False

    def behind(self, part: _Node) -> _Next:
        """What can come where ``part`` stands before all this."""
        if part.nullable:
            return _Next(
                part.first | self.first,
                part.heads | self.heads,
                part.boundary or self.boundary,
                part.asserts or self.asserts,
            )
        return _Next(part.first, part.heads, part.boundary, part.asserts)


@dataclass(frozen=True, slots=True)
class _Cost:
    degree: int = 0
    """The exponent: undecided unbounded repetitions in one path."""
    ways: int = 1
    """What bounded choices multiply to."""


_FOR_EVER = "which can take for ever"


def _check(pattern: _Node) -> None:
    cost = _cost(pattern, _Next(), loop=False)
    # A search tries every place to start; what can start anywhere and stop anywhere counts twice.
    degree = cost.degree + (1 if _starts_anywhere(pattern, _Next()) else 0)
    if degree > _MAX_DEGREE:
        msg = f"has too many unbounded repetitions that can match the same text, {_FOR_EVER}"
        raise _Refused(msg)
    if cost.ways * 10**degree > _MAX_WAYS:
        msg = f"has too many choices that the next character does not decide, {_FOR_EVER}"
        raise _Refused(msg)


def _cost(node: _Node, after: _Next, *, loop: bool) -> _Cost:
    if node.kind == "sequence":
        return _sequence(node, after, loop=loop)
    if node.kind == "branch":
        return _branch(node, after, loop=loop)
    if node.kind == "repeat":
        return _repeat(node, after, loop=loop)
    if node.kind == "look":
        return _cost(node.parts[0], _Next(), loop=loop)
    if node.kind == "reference":
        if loop:
            msg = f"repeats a back-reference, {_FOR_EVER}"
            raise _Refused(msg)
        return _Cost(degree=1)
    return _Cost()


def _sequence(node: _Node, after: _Next, *, loop: bool) -> _Cost:
    costs: list[_Cost] = []
    for part in reversed(node.parts):
        costs.append(_cost(part, after, loop=loop))
        after = after.behind(part)
    degree = peak = 0
    ways = 1
    between: list[int] | None = None
    """What is eaten since the last undecided repetition."""
    for part, cost in zip(node.parts, reversed(costs), strict=True):
        ways *= cost.ways
        if part.kind == "look":  # never entered a second time, so what follows does not multiply
            peak = max(peak, degree + cost.degree)
            continue
        degree += cost.degree
        if cost.degree:
            between = []
        elif between is not None and part.many and all(eaten & part.chars for eaten in between):
            degree += 1  # it is decided, but runs again over the same text for each place before
        elif between is not None and not part.nullable:
            between.append(part.chars)
    if ways > _MAX_WAYS:
        ways = _MAX_WAYS + 1
    return _Cost(max(degree, peak), ways)


def _branch(node: _Node, after: _Next, *, loop: bool) -> _Cost:
    costs = [_cost(part, after, loop=loop) for part in node.parts]
    starts = [part.first | (after.first if part.nullable else 0) for part in node.parts]
    empty = sum(part.nullable for part in node.parts)
    # Most alternatives that one character leaves open.
    alike = max(sum(1 for other in starts if start & other) for start in starts)
    alike = max(alike, empty, 1)
    if loop and alike > 1:
        msg = f"repeats alternatives that start alike, {_FOR_EVER}"
        raise _Refused(msg)
    return _Cost(max(cost.degree for cost in costs), alike * max(cost.ways for cost in costs))


def _repeat(node: _Node, after: _Next, *, loop: bool) -> _Cost:
    body = node.parts[0]
    undecided = node.high > node.low and (body.nullable or _undecided(body, after))
    if node.many and loop and undecided:
        msg = f"repeats a repetition, {_FOR_EVER}"
        raise _Refused(msg)
    if node.many and body.first & after.heads:
        msg = f"repeats the same text twice in a row, {_FOR_EVER}"
        raise _Refused(msg)
    inner = after
    if node.high > 1:
        inner = _Next(
            after.first | body.first,
            after.heads | body.heads,
            after.boundary or body.boundary,
            after.asserts or body.asserts,
        )
    cost = _cost(body, inner, loop=loop or node.many)
    if node.many:
        if cost.ways > 1:
            msg = f"repeats a choice that the next character does not decide, {_FOR_EVER}"
            raise _Refused(msg)
        return _Cost(cost.degree + undecided)
    if undecided and loop:
        msg = f"repeats a choice that the next character does not decide, {_FOR_EVER}"
        raise _Refused(msg)
    choices = node.high - node.low + 1 if undecided else 1
    return _Cost(cost.degree * node.high, min(choices * cost.ways**node.high, _MAX_WAYS + 1))


def _undecided(body: _Node, after: _Next) -> bool:
    """Whether going on and stopping are both possible in front of the same character."""
    if body.first & after.first or after.asserts:
        return True
    # Within a run of word characters, or of others, there is no `\b` to stop at.
    return after.boundary and bool(body.chars & _WORD) and bool(body.chars & ~_WORD & _ALL)


def _starts_anywhere(node: _Node, after: _Next) -> bool:
    """Whether a match can begin with an undecided unbounded repetition."""
    if node.kind == "repeat":
        return node.many and _undecided(node.parts[0], after)
    if node.kind == "branch":
        return any(_starts_anywhere(part, after) for part in node.parts)
    if node.kind != "sequence":
        return False
    behind = [after]
    for part in reversed(node.parts):
        behind.append(behind[-1].behind(part))
    for part, following in zip(node.parts, reversed(behind[:-1]), strict=True):
        if _starts_anywhere(part, following):
            return True
        if not part.nullable or part.kind == "at":
            return False
    return False
