"""
Whether regular expressions from outside are safe to run with Python's ``re``.

``re`` backtracks, and holds the interpreter lock while it does: ``(a+)+$`` on 27 characters stops
every thread of the process for seconds. So each pattern is judged twice:

- by its shape (`refusal`). A loop in which one text can be read in two ways takes exponential time.
- by its cost (`cost`): it is run on texts that are made to go wrong for it, longer and longer,
  until the time at full length can be told; in a process of its own, which can be ended.

This file is also the program of that process (see `guard_agent.core.rules.judge`), so it imports
nothing but the standard library. It reads one JSON document from stdin, answers with a line for
each pattern, and ends.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import time
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

# The parser of `re` is not public and has no types, but it is the only one that reads a pattern
# as `re` does.
if sys.version_info >= (3, 11):
    from re import _compiler as sre_compile  # type: ignore[attr-defined]  # not public
    from re import _parser as sre_parse  # type: ignore[attr-defined]  # not public
else:
    import sre_compile
    import sre_parse

MAX_LENGTH = 4_000
_MANY = 10
"""A repetition that can run more often than this counts as unbounded."""
_MAX_NODES = 20_000
_MAX_STATES = 3_000
_MAX_COPIES = 200
"""States that a bounded repetition is written out to; a larger one counts as unbounded."""
_MAX_STEPS = 400_000
_MAX_FORKS = 12
"""Choices outside of loops that the next character does not decide, when nothing is measured."""
_MAX_WIDTH = 256 * 1024
"""Characters of all ranges together: compiling one without regard to case looks at each."""
_FOR_EVER = "which can take for ever"


class Refused(Exception):  # noqa: N818 - it is an answer
    """The text says why."""


def refusal(pattern: str) -> str | None:
    """
    Why ``pattern`` must never be run, or None.

    Refused are: what does not compile, more than 4,000 characters, and loops in which one text can
    be read in two ways (a repetition of a repetition, alternatives that match the same).
    Assertions are taken to hold everywhere, so some harmless patterns are refused too.
    """
    try:
        automata(pattern)
    except Refused as error:
        return str(error)
    return None


def automata(pattern: str) -> list[Automaton]:
    """
    The pattern and what it looks ahead for, as automata.

    Raises:
        Refused: it must never be run.
    """
    if len(pattern) > MAX_LENGTH:
        msg = f"is longer than {MAX_LENGTH} characters"
        raise Refused(msg)
    found: list[Automaton] = []
    try:
        tree: Any = sre_parse.parse(pattern)
        ascii_only = bool(tree.state.flags & re.ASCII)
        # Whoever runs it may do so with or without regard to case.
        for fold in (True, False):
            reader = _Reader(fold=fold, ascii_only=ascii_only)
            found = reader.read(tree)
            for automaton in found:
                automaton.check()
        sre_compile.compile(tree)
    except RecursionError:
        msg = "is nested too deeply"
        raise Refused(msg) from None
    except (
        re.error,
        ValueError,
        OverflowError,
        Warning,  # where those are errors
    ) as error:
        msg = f"is not a regular expression: {error}"
        raise Refused(msg) from None
    return found


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
_ASCII = ((1 << 128) - 1) & ~_mask("\x1c\x1d\x1e\x1f")
"""What a class can hold with the flag for ASCII; without it these four are white space."""
_CROSSING = _mask("sSkKiI\xb5\xdf\xc5\xe5\xff")
"""Those of the first 256 that are another case of one beyond."""


# --- from the pattern to an automaton -------------------------------------------------------------


class _End(NamedTuple):
    """A state that a part can begin or end with."""

    ways: int
    """In how many ways it can: 1, or 2 for more."""
    boundary: bool
    """Only where a word begins or ends."""


_Ends = dict[int, _End]


class _Part(NamedTuple):
    """What a part of a pattern looks like from outside."""

    empty: int
    """In how many ways it matches nothing: 0, 1, or 2 for more."""
    boundary: bool
    """It matches nothing only where a word begins or ends."""
    first: _Ends
    last: _Ends


_EMPTY = _Part(1, False, {}, {})


class _Reader:
    """
    Makes automata of what the parser of `re` found.

    Each character of the pattern becomes a state, and each pair that can follow each other an edge
    (the construction of Glushkov), with the number of ways to get from one to the other.
    """

    def __init__(self, *, fold: bool, ascii_only: bool) -> None:
        self._fold = fold
        self._ascii = ascii_only
        self._nodes = 0
        self._width = 0
        self._looks: list[Any] = []
        self._automaton = Automaton()

    def read(self, tree: Any) -> list[Automaton]:
        found = [self._build(tree)]
        while self._looks:  # each may hold further ones
            found.append(self._build(self._looks.pop()))
        return found

    def _build(self, items: Any) -> Automaton:
        self._automaton = automaton = Automaton()
        part = self._sequence(items, loop=False)
        automaton.first = list(part.first)
        automaton.last = frozenset(part.last)
        return automaton

    def _sequence(self, items: Any, *, loop: bool) -> _Part:
        whole = _EMPTY
        for code, argument in items:
            whole = self._join(whole, self._part(str(code), argument, loop=loop))
        return whole

    def _join(self, left: _Part, right: _Part) -> _Part:
        """One after the other. They have no state in common."""
        self._connect(left.last, right.first)
        first = dict(left.first)
        if left.empty:
            for state, end in right.first.items():
                boundary = end.boundary or left.boundary
                first[state] = _End(min(2, end.ways * left.empty), boundary)
        last = dict(right.last)
        if right.empty:
            for state, end in left.last.items():
                boundary = end.boundary or right.boundary
                last[state] = _End(min(2, end.ways * right.empty), boundary)
        return _Part(min(2, left.empty * right.empty), left.boundary or right.boundary, first, last)

    def _connect(self, last: _Ends, first: _Ends) -> None:
        automaton = self._automaton
        automaton.count(len(last) * len(first))
        for one, end in last.items():
            for other, begin in first.items():
                if (end.boundary or begin.boundary) and automaton.same_kind(one, other):
                    continue
                edges = automaton.follow[one]
                edges[other] = min(2, edges.get(other, 0) + end.ways * begin.ways)

    def _part(self, name: str, argument: Any, *, loop: bool) -> _Part:  # noqa: C901, PLR0911 - one a code
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            msg = "is too complicated"
            raise Refused(msg)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            return self._repeat(*argument, loop=loop)
        if name == "SUBPATTERN":
            _group, flags, _without, body = argument
            if flags & re.ASCII:
                msg = "switches the flag 'a' on for a part, which is not supported"
                raise Refused(msg)
            return self._sequence(body, loop=loop)
        if name == "ATOMIC_GROUP":
            return self._sequence(argument, loop=loop)
        if name == "BRANCH":
            return self._branch(argument[1], loop=loop)
        if name in ("ASSERT", "ASSERT_NOT"):
            self._looks.append(argument[1])
            return _EMPTY
        if name == "AT":
            return _EMPTY._replace(boundary=str(argument) == "AT_BOUNDARY")
        if name == "GROUPREF":
            if loop:
                msg = f"repeats a back-reference, {_FOR_EVER}"
                raise Refused(msg)
            return self._repeat(0, sys.maxsize, [("ANY_ALL", None)], loop=False)
        if name == "GROUPREF_EXISTS":
            msg = "uses a conditional group, which is not supported"
            raise Refused(msg)
        state = self._automaton.add(self._characters(name, argument))
        ends = {state: _End(1, False)}
        return _Part(0, False, ends, ends)

    def _branch(self, branches: Any, *, loop: bool) -> _Part:
        empty = 0
        boundary = True
        first: _Ends = {}
        last: _Ends = {}
        for branch in branches:
            part = self._sequence(branch, loop=loop)
            empty = min(2, empty + part.empty)
            boundary = boundary and (part.boundary or not part.empty)
            first.update(part.first)
            last.update(part.last)
        return _Part(empty, bool(empty) and boundary, first, last)

    def _repeat(self, low: Any, high: Any, items: Any, *, loop: bool) -> _Part:
        low, high = int(low), int(high)
        if high == 0:
            return _EMPTY
        if high <= _MANY:
            # Written out: x{1,3} is x(x(x)?)?.
            before = len(self._automaton.masks)
            whole = body = self._sequence(items, loop=loop)
            size = len(self._automaton.masks) - before
            if high == 1:
                return body if low else body._replace(empty=1, boundary=False)
            if size * high <= _MAX_COPIES:
                parts = [body, *(self._sequence(items, loop=loop) for _ in range(high - 1))]
                whole = _EMPTY
                for number in range(high, 0, -1):
                    whole = self._join(parts[number - 1], whole)
                    if number > low:
                        whole = whole._replace(empty=1, boundary=False)
                return whole
        else:
            body = self._sequence(items, loop=True)
        self._connect(body.last, body.first)
        return body if low else body._replace(empty=1, boundary=False)

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
            raise Refused(msg)
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


# --- what it can cost, by its shape ---------------------------------------------------------------


class Automaton:
    """States with the characters they eat, and edges with the ways to get along them: 1 or 2."""

    def __init__(self) -> None:
        self.masks: list[int] = []
        self.follow: list[dict[int, int]] = []
        self.first: list[int] = []
        self.last: frozenset[int] = frozenset()
        self.loops: list[list[int]] = []
        """The states of each loop; in an order in which none leads to an earlier one."""
        self._steps = 0

    def add(self, mask: int) -> int:
        if len(self.masks) >= _MAX_STATES:
            msg = "is too complicated"
            raise Refused(msg)
        self.masks.append(mask)
        self.follow.append({})
        return len(self.masks) - 1

    def count(self, steps: int) -> None:
        """Keep the work bounded."""
        self._steps += steps
        if self._steps > _MAX_STEPS:
            msg = "is too complicated"
            raise Refused(msg)

    def same_kind(self, one: int, other: int) -> bool:
        """Whether there is never a word boundary between the two."""
        both = self.masks[one] | self.masks[other]
        return not both & ~_WORD & _ALL or not both & _WORD

    def check(self) -> None:
        """
        Look for exponential time.

        Raises:
            Refused: some text can be read in two ways in a loop.
        """
        self.loops = self._find_loops()
        for loop in self.loops:
            self._check_loop(frozenset(loop))

    def _find_loops(self) -> list[list[int]]:  # noqa: C901 - one algorithm
        """Strongly connected parts with an edge inside (Tarjan, without recursion)."""
        index: dict[int, int] = {}
        low: dict[int, int] = {}
        stack: list[int] = []
        waiting: set[int] = set()
        loops: list[list[int]] = []
        for root in range(len(self.masks)):
            if root in index:
                continue
            index[root] = low[root] = len(index)
            stack.append(root)
            waiting.add(root)
            path = [(root, iter(self.follow[root]))]
            while path:
                state, edges = path[-1]
                for other in edges:
                    if other not in index:
                        index[other] = low[other] = len(index)
                        stack.append(other)
                        waiting.add(other)
                        path.append((other, iter(self.follow[other])))
                        break
                    if other in waiting:
                        low[state] = min(low[state], index[other])
                else:
                    path.pop()
                    if path:
                        low[path[-1][0]] = min(low[path[-1][0]], low[state])
                    if low[state] == index[state]:
                        loop = []
                        while True:
                            member = stack.pop()
                            waiting.discard(member)
                            loop.append(member)
                            if member == state:
                                break
                        if len(loop) > 1 or state in self.follow[state]:
                            loops.append(sorted(loop))
        loops.reverse()
        return loops

    def _check_loop(self, loop: frozenset[int]) -> None:
        edges = {state: [other for other in self.follow[state] if other in loop] for state in loop}
        for state in loop:
            if any(self.follow[state][other] > 1 and self.masks[other] for other in edges[state]):
                msg = f"repeats a repetition, {_FOR_EVER}"
                raise Refused(msg)
        # Two readers of the same text: once they are apart they must never meet again.
        apart: list[tuple[int, int]] = []
        seen: set[tuple[int, int]] = set()
        for state in sorted(loop):
            apart += self._read_on(edges[state], edges[state], seen, together=True)
        while apart:
            one, other = apart.pop()
            apart += self._read_on(edges[one], edges[other], seen, together=False)

    def _read_on(
        self, left: list[int], right: list[int], seen: set[tuple[int, int]], *, together: bool
    ) -> list[tuple[int, int]]:
        """Where two readers can be after one more character, as far as it is new and not one."""
        self.count(len(left) * len(right))
        found = []
        for one in left:
            mask = self.masks[one]
            for other in right:
                if not mask & self.masks[other]:
                    continue
                if one == other:
                    if not together:
                        msg = f"repeats what can match the same text in two ways, {_FOR_EVER}"
                        raise Refused(msg)
                elif (pair := (min(one, other), max(one, other))) not in seen:
                    seen.add(pair)
                    found.append(pair)
        return found

    def suspects(self) -> int:
        """Loops in a row that can match the same text: the exponent of the time, at most."""
        best: list[int] = []
        masks = [reduce(or_, (self.masks[state] for state in loop), 0) for loop in self.loops]
        for number, mask in enumerate(masks):
            before = [best[k] for k in range(number) if masks[k] & mask]
            best.append(1 + max(before, default=0))
        return max(best, default=0)

    def forks(self) -> int:
        """States from which the next character leaves more than one way."""
        count = 0
        for edges in (dict.fromkeys(self.first, 1), *self.follow):
            seen = 0
            for other, ways in edges.items():
                if ways > 1 or self.masks[other] & seen:
                    count += 1
                    break
                seen |= self.masks[other]
        return count


def estimate(found: list[Automaton]) -> str | None:
    """Why a pattern may be slow, when it cannot be measured; None when it is not."""
    if any(automaton.suspects() > 2 for automaton in found):
        return "has too many repetitions that can match the same text"
    if any(not automaton.loops and automaton.forks() > _MAX_FORKS for automaton in found):
        return "has too many choices that the next character does not decide"
    return None


# --- what it costs, measured ----------------------------------------------------------------------

_SHORT = 1_024
"""A pattern that takes too long for a text of this length must never be run."""
_LIMITS = {"text": (256 * 1024, 1.0), "agent": (512, 0.05)}
"""Characters that the engine runs a pattern on at most, and seconds that this may take."""
_ENOUGH = 0.004
"""Seconds from which a measurement is trusted."""
_GIVE_UP = 0.5
_MAX_TEXTS = 32
_MAX_UNIT = 200


class _TooLong(Exception):  # noqa: N818 - a signal
    """The time for one text is up."""


def attacks(found: list[Automaton]) -> list[tuple[str, str]]:
    """Pairs (beginning, what to repeat) that should be hard for the pattern."""
    texts: dict[tuple[str, str], None] = {}
    for automaton in found:
        for pair in _texts(automaton):
            texts.setdefault(pair)
    for unit in ("a", " ", "0", "<", "/", "a ", "=\"'"):
        texts.setdefault(("", unit))
    return [(start[:_MAX_UNIT], unit[:_MAX_UNIT]) for start, unit in texts if unit][:_MAX_TEXTS]


def _texts(automaton: Automaton) -> list[tuple[str, str]]:
    masks = [reduce(or_, (automaton.masks[state] for state in loop), 0) for loop in automaton.loops]
    reach = _words(automaton, automaton.first)
    pairs: list[tuple[str, str]] = []
    for number, loop in enumerate(automaton.loops):
        entry = min(loop, key=lambda state: (state not in reach, len(reach.get(state, ""))))
        if entry not in reach:
            continue
        prefix = reach[entry]
        for pump in _pumps(automaton, loop, masks)[:5]:
            pairs += [(prefix, pump), ("", prefix + pump), ("", pump)]
        pairs.append(("", prefix))
        for later in range(number + 1, len(masks)):
            if (both := masks[number] & masks[later]) and number < later:
                between = next((reach[s] for s in automaton.loops[later] if s in reach), "")
                pairs += [(prefix, _character(both)), ("", between)]
    longest = max(reach.values(), key=len, default="")
    pairs += [("", longest), ("", longest[:-1]), ("", longest[: len(longest) // 2])]
    return pairs


def _pumps(automaton: Automaton, loop: list[int], masks: list[int]) -> list[str]:
    """Texts that keep the automaton in the loop."""
    pumps: dict[str, None] = {}
    for state in loop[:12]:
        inside = _words(automaton, [o for o in automaton.follow[state] if o in loop], loop)
        if state in inside:
            pumps.setdefault(inside[state])
        if state in automaton.follow[state]:
            # Characters that other loops, or what comes before this one, match as well.
            mask = automaton.masks[state]
            others = [*masks, *(automaton.masks[s] for s in automaton.first), *automaton.masks]
            for other in sorted(set(others[:60]), key=others.index):
                if mask & other:
                    pumps.setdefault(_character(mask & other))
    return list(pumps)


def _words(
    automaton: Automaton, start: list[int], within: list[int] | None = None
) -> dict[int, str]:
    """The shortest text to each state."""
    allowed = None if within is None else set(within)
    words = {state: _character(automaton.masks[state]) for state in start}
    queue = list(words)
    for state in queue:
        if len(words[state]) >= _MAX_UNIT:
            continue
        for other in automaton.follow[state]:
            if other not in words and (allowed is None or other in allowed):
                words[other] = words[state] + _character(automaton.masks[other])
                queue.append(other)
    return words


_PREFERRED = "aA0 ./-_=<>(\"'" + "".join(map(chr, range(33, 127))) + "\n\t\r"


def _character(mask: int) -> str:
    for character in _PREFERRED:
        if mask & _bit(ord(character)):
            return character
    for number in range(256):
        if mask & (1 << number):
            return chr(number)
    return next((c for c in "\u0660\u0430\u2003\u2192" if mask & _bit(ord(c))), "\u2192")


def cost(pattern: str, found: list[Automaton], kind: str) -> tuple[bool, str] | None:
    """
    Run the pattern on texts made to go wrong.

    Returns:
        None when it is fast enough, else whether it must never be run, and why. May take
        `_GIVE_UP` seconds and a little: a signal ends what takes longer, where there are signals.
    """
    run = re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    length, limit = _LIMITS[kind]
    worst: str | None = None
    for start, unit in attacks(found):
        for end in ("", "\0"):
            try:
                slow, short = _extrapolate(run, (start, unit, end), length, limit)
            except _TooLong:
                return True, f"takes too long for a text of a few characters, {_FOR_EVER}"
            if short:
                return True, f"takes too long for a text of {_SHORT} characters"
            if slow is not None:
                worst = f"can take {slow:,.1f} s for a text of {length // 1024 or 0.5:g} KiB"
        if worst is not None:
            return False, worst
    return None


def _extrapolate(
    run: re.Pattern[str], text: tuple[str, str, str], length: int, limit: float
) -> tuple[float | None, bool]:
    """Seconds for the whole length when above ``limit``; whether even a short text is too long."""
    start, unit, end = text
    size, last = 16, 0
    before = 0.0
    while True:
        content = (start + unit * (size // len(unit) + 1))[:size] + end
        try:
            spent = _time(run, content)
            if spent > _ENOUGH:
                spent = min(spent, _time(run, content))  # one of them may have been disturbed
        except _TooLong:
            if size <= _SHORT:
                raise
            return max(limit, _GIVE_UP * length / size), False
        if size >= length or spent > limit:
            return (spent if spent > limit else None), size <= _SHORT and spent > limit
        if spent > _ENOUGH and before > 0:
            growth = math.log(spent / before, size / last)
            growth = min(max(growth, 1.0), 12.0)
            full = spent * (length / size) ** growth
            short = spent * (_SHORT / size) ** growth
            if full > limit:
                return full, size < _SHORT < length and short > limit
            if spent > 10 * _ENOUGH:
                return None, False
        if size >= 4 * _SHORT and 2 * spent * (length / size) ** 2 < limit:
            return None, False  # even if the time grows with the square
        before, last = spent, size
        # In small steps at first: bounded choices are at their worst at one certain length.
        size = min(length, size * 3 // 2 if size < 128 else size * 2)


def _time(run: re.Pattern[str], text: str) -> float:
    """
    Seconds of this process for all matches in ``text``.

    Raises:
        _TooLong: after `_GIVE_UP` seconds, where there are signals.
    """
    begin = time.process_time()
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, _GIVE_UP)
    try:
        for _ in run.finditer(text):
            pass
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
    return time.process_time() - begin


# --- the process ----------------------------------------------------------------------------------

BROWSERS = (
    (
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/131.0.0.0 Safari/537.36"
    ),
    (
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/131.0.0.0 Safari/537.36 Edg/131.0.0.0"
    ),
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:133.0) Gecko/20100101 Firefox/133.0",
    (
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) "
        "Version/18.1 Safari/605.1.15"
    ),
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    (
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/130.0.0.0 Safari/537.36"
    ),
    (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like "
        "Gecko) Version/18.1 Mobile/15E148 Safari/604.1"
    ),
    (
        "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/131.0.0.0 Mobile Safari/537.36"
    ),
    (
        "Mozilla/5.0 (Linux; Android 14; SM-S918B) AppleWebKit/537.36 (KHTML, like Gecko) "
        "SamsungBrowser/26.0 Chrome/122.0.0.0 Mobile Safari/537.36"
    ),
    "Mozilla/5.0 (Android 14; Mobile; rv:133.0) Gecko/133.0 Firefox/133.0",
)
_HEADERS = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "gzip, deflate, br",
    "keep-alive",
    "same-origin",
)
_REQUESTS = (
    ("/", "en-US,en;q=0.5", "www.example.com"),
    ("/index.html", "de-DE,de;q=0.9,en;q=0.8", "https://example.org/"),
    ("/products/42", "fr-FR", "color", "blue", "page", "2"),
    ("/search", "en-GB", "q", "running shoes size 44", "example.com"),
    ("/api/v1/orders", "es-ES,es;q=0.9", '{"id": 17, "name": "Jane Doe", "amount": 12.5}'),
    ("/login", "it-IT", "username", "jane.doe@example.com", "remember", "true"),
    ("/static/app.3f9a1c.js", "en-US", "www.example.net"),
    ("/users/jane/settings", "pt-BR,pt;q=0.9", "tab", "privacy"),
    ("/health", "ja,en-US;q=0.9", "status.example.com"),
    ("/blog/2026/05/hello-world", "nl-NL", "utm_source", "newsletter"),
)
ORDINARY: dict[str, list[tuple[str, ...]]] = {
    "agent": [(agent,) for agent in BROWSERS],
    "text": [
        (*request, *_HEADERS, agent) for request, agent in zip(_REQUESTS, BROWSERS, strict=True)
    ],
}
"""What people send, by the kind of pattern: each is the texts of one request."""


class Verdict(NamedTuple):
    """What is known of one pattern."""

    refused: str | None = None
    """Why it must never be run."""
    slow: str | None = None
    """Why it is better left out: long texts would stop the app for a while."""
    hits: tuple[int, ...] = ()
    """Which of the ordinary requests it matches."""


def judge(kind: str, pattern: str, *, measured: bool) -> Verdict:
    """
    Judge one pattern.

    ``kind``: "text" for what is matched with everything in a request, "agent" for what is matched
    with its User-Agent. ``measured`` runs it, so it must be in a process that can be ended.
    """
    try:
        found = automata(pattern)
    except Refused as error:
        return Verdict(refused=str(error))
    if measured:
        verdict = cost(pattern, found, kind)
        if verdict is not None:
            never, why = verdict
            return Verdict(refused=why) if never else Verdict(slow=why)
    elif (why_slow := estimate(found)) is not None:
        return Verdict(slow=why_slow)
    run = sre_compile.compile(pattern, re.IGNORECASE | re.MULTILINE)
    hits = [
        number
        for number, texts in enumerate(ORDINARY[kind])
        if any(run.search(text) for text in texts)
    ]
    return Verdict(hits=tuple(hits))


def _main() -> None:
    def give_up(*_: object) -> None:
        raise _TooLong

    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, give_up)
        os.nice(10)
    for kind, pattern in json.loads(sys.stdin.buffer.read()):
        sys.stdout.write(json.dumps(judge(kind, pattern, measured=True)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
