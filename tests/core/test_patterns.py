from __future__ import annotations

import asyncio
import importlib
import os
import re
import subprocess
import sys
import time
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard_agent.core.rules import judge as judge_module
from guard_agent.core.rules import patterns
from guard_agent.core.rules.judge import Judge
from guard_agent.core.rules.patterns import MAX_LENGTH, automata, judge, refusal

DANGEROUS = [
    # a repetition of a repetition
    r"(a+)+$",
    r"(a*)*",
    r"(.*)*",
    r"((((a*)*)*)*)*",
    r"(\d+)*\.",
    r"([a-zA-Z]+)*$",
    r"(x+x+)+y",
    r"(\w+\s?)*$",
    r"^(\w+\.?)+@",
    r"(.*a){20}",
    r"(?:a{2,})+b",
    r"(?:(?:ab)+|c)*(?:(?:ab)+|c)*d",
    r"(?:a+){2,}b",
    r"(?=(a+)+$)",
    r"(?!(a+)+$)x",
    # alternatives that start alike
    r"(a|a)*b",
    r"(a|aa)+$",
    r"(a|ab|b)*c",
    r"^(a|ab|b)*$",
    r"(?:\w\d|\w\s?)*x",
    r"(?:kx|\u212ax)*y",
    r"(?a)(?:\S\n?|\x1c\t?)+[ ]",
    r"(?:\wx|\u0430x)*y",
    # a choice inside a repetition
    r"(?:a?b?)*c",
    r"(?:\d{1,3})+x",
    r"(.+)+\1",
    r"(a)(?:b\1)*",
    # what costs too much before it is run
    "(?i)" + "[\u0000-\uffff]" * 140,
    "a" * (MAX_LENGTH + 1),
    "a" * 1_000_000,
    r"(a)?(?(1)b|c)",
    r"(?a:\w)+x",
]

COSTLY = [
    # too many choices in a row
    "a?" * 25 + "a" * 25,
    r"(a{1,10}){10}b",
    "(?:a|ab?)" * 30 + "c",
    r"(?:a?){30}a{30}",
    r"(?:a|)*(?:a|)*b",
    # repetitions side by side
    r"\s*\s*x",
    r".*.*x",
    r"(\s*)(\s*)x",
    r"\w+\d+x",
    r"\s+\b\s+x",
    r"[^>]*\s*x",
    r"\s+\s\s+x",
    # several repetitions that match the same text
    r".*a.*a.*a.*a.*a.*a.*b",
    r"(.*a){10}b",
    r".*a.*b",
    r"a.*b.*c",
    r"a.*b.*c.*d",
    r"a[ab]{0,900}c[ab]{0,900}d",
    # quadratic
    r"(?:[a-z]|\d)+x",
    r"(?:a|b|c)*d",
    r"(?:[^/]+/)+$",
    r"\u0430+\u0431",
    r"on\w+\s*=",
    r"select.*from.*where",
    r"<script[^>]*>",
]
"""Each can take more than a second for 256 KiB."""

FOR_EVER = [
    "a?" * 25 + "a" * 25,
    r"(a{1,10}){10}b",
    "(?:a|ab?)" * 30 + "c",
    r".*a.*a.*a.*a.*a.*a.*b",
    r"(.*a){10}b",
]
"""Those that can take as long for much less."""

BROKEN = [
    r"(",
    r")",
    r"[",
    r"*",
    r"a{2,1}",
    "\\",
    r"(?P<x",
    r"(?<=a+)b",
    r"(?L)a",
    r"(?au)a",
    r"a{99999999999999999999}",
    r"\1",
    r"(?z)",
]

HARMLESS = [
    r"(?:.{0,9}a){5}",
    r"\A(?:[\w.-]+/)*[\w.-]*(?:\?\S*)?x",
    r"\A[/\\]?(?:(?!\.git(?:[/\\]|\Z))[\w.\-~%]+[/\\])*\.git(?:[/\\][\w.\-~%]*)*\s*\Z",
    r"etc/passwd",
    r"union\s+select",
    r"(?i)union\s+(?:all\s+)?select",
    r"\.\./",
    r"(?:\.\./){2,}",
    r"(?:%2e%2e[/\\]){2,}",
    r"(?i)sqlmap|nikto",
    r"(?i)(?:sqlmap|nikto|nmap|masscan|zgrab|wpscan)",
    r"(?i)\b(?:or|and)\b\s+\d+\s*=\s*\d+",
    r"(?i)(?:select|insert|update|delete|drop|union)\s+(?:all|distinct|from|into|table)",
    r"\bselect\b\s+\b\w+\b\s+\bfrom\b",
    r"\$\{jndi:(?:ldap|rmi|dns)://",
    r"\b\d{1,3}(?:\.\d{1,3}){3}\b",
    r"^Mozilla/5\.0 \(.*\)$",
    r"curl/7\..*",
    r"javascript\s*:",
    r"(['\"]).*?\1",
    r"^(?=.*a)(?=.*b)(?=.*c).+$",
    r"wp-(?:admin|login|content)",
    r"(?:;|\||&&|`)\s*(?:cat|ls|rm|wget|curl)\b",
    r"a{1,3}b",
    r"https?://",
    r"[^\x00-\x7f]+",
    r"(?i)%(?:00|0a|0d)",
    r"(?<!\w)eval\s*\(",
]


async def judged(kind, *wanted):
    found = await Judge(seconds=90)((kind, pattern) for pattern in wanted)
    return [found[kind, pattern] for pattern in wanted]


@pytest.mark.parametrize("pattern", DANGEROUS, ids=lambda pattern: pattern[:40])
def test_l05_catastrophic_patterns_are_refused_without_being_run(pattern):
    assert refusal(pattern) is not None


@pytest.mark.parametrize("pattern", BROKEN)
def test_l05_what_is_no_regular_expression_is_refused(pattern):
    assert refusal(pattern).startswith("is not a regular expression")


@pytest.mark.parametrize("depth", [50, 499])
def test_l05_deep_nesting_raises_nothing(depth):
    reason = refusal("(" * depth + "a" + ")" * depth)

    assert reason is None or "nested too deeply" in reason


@pytest.mark.parametrize(
    "pattern",
    [
        "[ab]{9}" * 400,
        "(?:" + "|".join("abcdefghij") * 90 + ")*" * 2,
        "(?:" * 9 + "[a-z]{0,10}" + "){0,10}" * 9,
        "(?:" + "a|" * 1_900 + "b)*",
        "(?:[a-z]{10}[0-9]{10}){9}" * 100,
        "a{1000000}",
        "(?:.?){1000}",
    ],
    ids=lambda pattern: pattern[:30],
)
def test_l05_the_look_at_the_shape_is_bounded(pattern):
    begin = time.process_time()
    refusal(pattern)

    assert time.process_time() - begin < 10


@pytest.mark.skipif(sys.version_info < (3, 11), reason="possessive repetitions came with 3.11")
@pytest.mark.parametrize(
    ("pattern", "refused"),
    [(r"a++b", False), (r"(?>a+)b", False), (r"(?:(a+)+b)++", True), (r"(?>(a+)+b)", True)],
)
def test_l05_possessive_and_atomic_groups_are_looked_into(pattern, refused):
    assert (refusal(pattern) is not None) is refused


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"(a+)+$", "repeats a repetition"),
        (r"(?:abx|a[bc]x)*d", "the same text in two ways"),
        (r"(?:\d{1,3})+x", "the same text in two ways"),
        ("a" * (MAX_LENGTH + 1), "longer than 4000 characters"),
        (r"(", "is not a regular expression"),
    ],
)
def test_l05_the_reason_says_what_is_wrong(pattern, words):
    assert words in refusal(pattern)


def test_l05_both_cases_are_considered():
    """
    The engine runs patterns without regard to case, others may not.
    """
    assert refusal(r"(?:ax|Ax)*b") is not None
    assert refusal(r"(?:[^A]x|ax)*b") is not None


def test_l05_the_flag_for_ascii_is_considered():
    assert refusal(r"(?:\wx|\u0430x)*y") is not None
    assert refusal(r"(?a)(?:\wx|\u0430x)*y") is None


def test_l05_a_word_boundary_decides():
    assert refusal(r"(?:\b\w+\b\W*)+x") is None
    assert refusal(r"(?:\w+\W*)+x") is not None


def test_the_pattern_never_gets_into_the_cache_of_re():
    """
    It holds 512 entries for the whole process; a thousand rules would push out the app's own.
    """
    re.purge()
    pattern = re.compile("mine")
    for n in range(2_000):
        assert refusal(f"other{n}") is None
        assert judge("text", f"other{n}", measured=False).slow is None

    assert re.compile("mine") is pattern


# --- what is made of a pattern --------------------------------------------------------------------

EXACT = [
    *("a", "A", "[a-f]", "[^a-f]", "[^a]", "[a-f0-9_]", r"[^\s\d]", "\x00", "[\x00-\x1f]"),
    *(r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", ".", r"[\d_-]", r"[^\w.]", r"[^\W\d]", r"[^\S\n]"),
    *("[\x00-\U0010ffff]", "[^\x00-\U0010ffff]"),
    *("[\u0100-\U0010ffff]", "[^\u0100-\U0010ffff]", "[^\x00-\xff]"),
]
"""A character or a class of them, of which it is known exactly what it matches."""
ROUGHLY = [
    *("\xe9", "\xdf", "\xb5", "[\xe0-\xff]", "[\x80-\u0500]", "k", "s", "i", "\u212a", "\u0430"),
    *("[\u0100-\u0200]", "[^\u0100-\u0200]", "[^\u0430]", "[\u0430b]", "[^\u0430b]", "[k\u212a]"),
    "[\x00-\xff]",
]
"""Those that share a bit with others, or of whose cases more are taken than `re` does."""
SEVERAL_CASES = set("sSkKiI\xb5\xdf\xc5\xe5\xff")
LATIN = [chr(number) for number in range(256)]
BEYOND = ["\u0100", "\u0660", "\u0430", "\u2003", "\u2192"]


def one_automaton(pattern, *, fold=False):
    tree = patterns.sre_parse.parse(pattern)
    reader = patterns._Reader(fold=fold, ascii_only=bool(tree.state.flags & re.ASCII))
    (automaton,) = reader.read(tree)
    return automaton


def eaten(pattern, *, fold=False):
    """What the one state of ``pattern`` takes, of a few hundred characters."""
    (mask,) = one_automaton(pattern, fold=fold).masks
    return {c for c in [*LATIN, *BEYOND] if mask & patterns._bit(ord(c))}


def matched(pattern, flags=0):
    run = re.compile(pattern, re.DOTALL | flags)
    return {c for c in [*LATIN, *BEYOND] if run.fullmatch(c)}


@pytest.mark.parametrize("pattern", EXACT, ids=ascii)
@pytest.mark.parametrize("flags", ["", "(?a)"])
def test_l05_what_a_class_of_characters_matches_is_known_exactly(pattern, flags):
    """
    Where too little is taken, two readings of one text are not seen.
    """
    assert eaten(flags + pattern) == matched(flags + pattern)
    folded = eaten(flags + pattern, fold=True)
    assert folded >= matched(flags + pattern, re.IGNORECASE)
    assert folded - matched(flags + pattern, re.IGNORECASE) <= SEVERAL_CASES


@pytest.mark.parametrize("pattern", ROUGHLY, ids=ascii)
def test_l05_what_a_class_of_characters_matches_is_never_less(pattern):
    assert eaten(pattern) >= matched(pattern)
    assert eaten(pattern) - matched(pattern) <= set(BEYOND)
    folded = eaten(pattern, fold=True)
    # Small letters are enough: whatever takes one case of them takes both.
    assert folded >= {c for c in matched(pattern, re.IGNORECASE) if not c.isupper()}
    assert folded - matched(pattern, re.IGNORECASE) <= SEVERAL_CASES | set(BEYOND)


def test_l05_a_letter_and_a_sign_that_is_a_case_of_it_are_the_same():
    """
    Of the letter k there is one beyond the first 256 characters, the sign of Kelvin.
    """
    for pattern in (r"(?:kx|[\u2100-\u2200]x)*y", r"(?:sx|[\u0170-\u0180]x)*y"):
        assert refusal(pattern) is not None, pattern
    assert refusal(r"(?:bx|[\u2100-\u2200]x)*y") is None
    assert refusal(r"(?:bx|\u212ax)*y") is None


def grouped(inner):
    several = st.lists(inner, min_size=1, max_size=3)
    times = st.sampled_from(["", "?", "*", "+", "{2}", "{1,2}", "{0,3}", "{2,3}", "??", "*?"])
    return st.one_of(
        several.map("".join),
        several.map("|".join).map("(?:{})".format),
        st.tuples(several.map("".join), times).map(lambda part: f"(?:{part[0]}){part[1]}"),
    )


PATTERNS = st.recursive(
    st.sampled_from(["a", "b", "[ab]", "[^a]", "c", ".", "(ab)", "a?", "(?:|b)"]),
    grouped,
    max_leaves=6,
)
TEXTS = ["".join(text) for size in range(1, 5) for text in product("abc", repeat=size)]


def fits(automaton, text):
    states, before = set(automaton.first), None
    for character in text:
        if before is not None:
            states = {other for state in before for other in automaton.follow[state]}
        bit = patterns._bit(ord(character))
        before = {state for state in states if automaton.masks[state] & bit}
    return bool(before & automaton.last)


@settings(max_examples=150, deadline=None)
@given(PATTERNS)
def test_the_automaton_takes_the_texts_that_the_pattern_matches(pattern):
    automaton, run = one_automaton(pattern), re.compile(pattern)

    assert [text for text in TEXTS if fits(automaton, text)] == [
        text for text in TEXTS if run.fullmatch(text)
    ]


def reach(automaton, state):
    """The states that can come after ``state``."""
    found, left = set(), [state]
    while left:
        new = set(automaton.follow[left.pop()]) - found
        found |= new
        left += new
    return found


def has_two_readings(automaton, loop):
    """Whether one text leads from a state of ``loop`` to another in two ways inside of it."""
    seen, left = set(), [((state, 1),) for state in loop]
    while left:
        for bit in map(patterns._bit, map(ord, "abcd")):
            ways = Counter()
            for state, number in left[-1]:
                for other, edge in automaton.follow[state].items():
                    if other in loop and automaton.masks[other] & bit:
                        ways[other] += number * edge
            if any(number > 1 for number in ways.values()):
                return True
            if ways and (new := tuple(sorted(ways.items()))) not in seen:
                seen.add(new)
                left.insert(0, new)
        left.pop()
    return False


@settings(max_examples=300, deadline=None)
@given(PATTERNS)
def test_l05_a_loop_in_which_a_text_has_two_readings_is_found_and_no_other(pattern):
    automaton = one_automaton(pattern)
    states = range(len(automaton.masks))
    after = {state: reach(automaton, state) for state in states}
    loops = {
        frozenset(other for other in after[state] if state in after[other])
        for state in states
        if state in after[state]
    }
    two = any(has_two_readings(automaton, loop) for loop in loops)

    assert (refusal(pattern) is not None) is two
    if not two:
        automaton.check()
        assert set(map(frozenset, automaton.loops)) == loops
        for position, loop in enumerate(automaton.loops):
            assert not any(after[loop[0]] & set(other) for other in automaton.loops[:position])


@pytest.mark.parametrize(
    ("pattern", "edges"),
    [
        ("ab", {(0, 1): 1}),
        ("a(?:|)b", {(0, 1): 2}),
        ("a(?:||)b", {(0, 1): 2}),
        ("a(?:|)(?:|)b", {(0, 1): 2}),
        ("ax?b", {(0, 1): 1, (1, 2): 1, (0, 2): 1}),
        ("a{0}b", {}),
        ("(?:|)(?:ab)(?:|)", {(0, 1): 1}),
        ("a+", {(0, 0): 1}),
        ("(?:a*)*", {(0, 0): 2}),
        ("(?:(?:|)a(?:|))+", {(0, 0): 2}),
        ("(?:a{11}){2}", {(0, 0): 1, (1, 1): 1, (0, 1): 1}),
        ("a{2}", {(0, 1): 1}),
        ("a{2,}", {(0, 0): 1}),
        # where a word begins or ends
        (r"a\b-", {(0, 1): 1}),
        (r"-\ba", {(0, 1): 1}),
        (r"a\bb", {}),
        (r"-\b-", {}),
        (r"a\b.", {(0, 1): 1}),
        (r".\b-", {(0, 1): 1}),
        (r"a\Bb", {(0, 1): 1}),
        (r"a$b", {(0, 1): 1}),
        (r"a(?:b\b)c", {(0, 1): 1}),
        (r"a(?:\bb)c", {(1, 2): 1}),
        (r"a(?:b?\b)c", {(0, 1): 1}),
        (r"a(?:\bb?)c", {(1, 2): 1}),
        (r"a(?:\b|x)b", {(0, 1): 1, (1, 2): 1}),
        (r"a(?:\b|)b", {(0, 1): 2}),
        (r"a(?:x|y)b", {(0, 1): 1, (1, 2): 1}),
        (r"a(?:\b)?b", {(0, 1): 1}),
        (r"a(?:\b){0,2}b", {(0, 1): 1}),
        (r"a(?:\b){2}b", {}),
        (r"a(?:\b)*b", {(0, 1): 1}),
        (r"a(?:\b)+b", {}),
        (r"(?:\ba)+", {}),
        (r"(?:a\b)+", {}),
        (r"(?:\b-a)+", {(0, 1): 1, (1, 0): 1}),
        # what is seen ahead takes nothing
        (r"a(?=x)b", {(0, 1): 1}),
        # a text that was matched before can be anything
        (r"(a)\1", {(0, 1): 1, (1, 1): 1}),
    ],
)
def test_what_can_follow_what_and_in_how_many_ways(pattern, edges):
    tree = patterns.sre_parse.parse(pattern)
    automaton = patterns._Reader(fold=False, ascii_only=False).read(tree)[0]

    found = {
        (one, other): ways
        for one, follow in enumerate(automaton.follow)
        for other, ways in follow.items()
    }
    assert found == edges


def test_l05_what_is_looked_for_ahead_or_behind_is_looked_at_as_well():
    assert len(automata("a")) == 1
    assert len(automata("(?=b)(?!c(?<=d))a(?<!e)")) == 5
    assert refusal("(?=b)(?!c(?=(d+)+e))a") is not None


@pytest.mark.parametrize(("times", "states"), [(2, 200), (3, 100), (10, 100), (11, 100)])
def test_short_repetitions_are_written_out_up_to_a_bound(times, states):
    automaton = one_automaton(f"(?:(?:x{{10}}){{10}}){{{times}}}")

    assert sum(bool(follow) for follow in automaton.follow) + 1 >= states
    automaton.check()
    assert bool(automaton.loops) is (times > 2)
    # What was written out before its size was known stays, where nothing leads.
    assert len(automaton.first) == len(automaton.last) == 1


def pairs(number):
    """A repetition of so many alternatives that have nothing in common."""
    signs = [character for character in LATIN if not character.isalpha()][:number]
    return "(?:" + "|".join(2 * f"\\x{ord(sign):02x}" for sign in signs) + ")*"


MESSAGES = [
    ("a" * 4_001, "is longer than 4000 characters"),
    ("(?a:b)", "switches the flag 'a' on for a part, which is not supported"),
    ("(a)(?(1)b|c)", "uses a conditional group, which is not supported"),
    (r"(a)(?:b\1)*", "repeats a back-reference, which can take for ever"),
    ("(a+)+", "repeats a repetition, which can take for ever"),
    (
        "(?:abx|a[bc]x)*",
        "repeats what can match the same text in two ways, which can take for ever",
    ),
    ("(" * 5 + "){10}" * 5, "is too complicated"),  # no character, and too many parts
    ("a" * 3_001, "is too complicated"),  # too many states
    (pairs(80), "is too complicated"),  # too much to compare
    ("(?:" + "a?" * 900 + "b)", "is too complicated"),  # too many edges
    ("[\u0000-\uffff]" * 5, "has too many wide ranges of characters"),
    ("a{2,1}", "is not a regular expression: min repeat greater than max repeat at position 2"),
]


def test_l05_in_a_loop_a_text_that_was_matched_before_is_found_however_deep_it_lies():
    wrapped = [r"b\1", r"(?:x|b\1)", r"(?:x(\1)y)", r"(?:b\1){2}", r"(?:b\1)?"]
    if sys.version_info >= (3, 11):
        wrapped.append(r"(?>b\1)")
    for inner in wrapped:
        assert refusal(f"(a){inner}") is None
        for times in ("*", "+", "{11}", "{2,}?"):
            words = "repeats a back-reference, which can take for ever"
            assert refusal(f"(a)(?:{inner}c){times}") == words, inner


@pytest.mark.parametrize(("pattern", "message"), MESSAGES, ids=lambda value: value[:30])
def test_each_reason_in_its_words(pattern, message):
    assert refusal(pattern) == message


@pytest.mark.parametrize(
    "pattern",
    ["a" * 3_000, pairs(60), "[\u0000-\uffff]" * 4, "(?:" + "a?" * 500 + "b)"],
    ids=lambda p: p[:20],
)
def test_what_is_just_within_the_bounds_is_looked_at(pattern):
    assert refusal(pattern) is None


def test_what_is_nested_too_deeply_is_refused_in_words():
    assert refusal("(" * 1_900 + "a" + ")" * 1_900) == "is nested too deeply"


# --- judged by its shape --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "suspects"),
    [
        ("ab", 0),
        ("a*", 1),
        ("a*b*", 1),
        ("a*xa*", 2),
        ("a*b*a*", 2),
        ("[ab]*xa*xb*", 2),
        ("a*x[ab]*xb*", 3),
        ("(?:ab)*x(?:bc)*", 2),
        ("a*xa*xa*", 3),
    ],
)
def test_repetitions_in_a_row_that_match_the_same_are_counted(pattern, suspects):
    (automaton,) = automata(pattern)
    assert automaton.suspects() == suspects
    slow = judge("text", pattern, measured=False).slow
    words = "has too many repetitions that can match the same text"
    assert slow == (words if suspects > 2 else None)


@pytest.mark.parametrize(
    ("pattern", "forks"),
    [
        ("ab", 0),
        ("a?b", 0),
        ("a?a", 1),
        ("(?:|)a", 0),
        ("b(?:|)a", 1),
        ("a?b?a", 1),
        ("a?b?c?[ab]", 2),
        ("a?" * 12 + "a", 12),
        ("a?" * 13 + "a", 13),
    ],
)
def test_choices_that_the_next_character_does_not_decide_are_counted(pattern, forks):
    (automaton,) = automata(pattern)
    assert automaton.forks() == forks
    slow = judge("text", pattern, measured=False).slow
    words = "has too many choices that the next character does not decide"
    assert slow == (words if forks > 12 else None)
    assert judge("text", f"{pattern}(?:xy)*", measured=False).slow is None, "a loop is measured"
    assert judge("text", f"x(?={pattern})", measured=False).slow == slow


@pytest.mark.parametrize(
    ("kind", "pattern", "hits"),
    [
        ("text", "gzip", range(10)),
        ("text", "GZIP", range(10)),
        ("text", "^gzip", range(10)),
        ("text", "sqlmap", ()),
        ("text", "^/login", (5,)),
        ("text", "Firefox", (2, 4, 9)),
        ("agent", "firefox", (2, 4, 9)),
        ("agent", "gzip", ()),
    ],
)
def test_it_is_told_which_ordinary_requests_a_pattern_matches(kind, pattern, hits):
    assert judge(kind, pattern, measured=False) == (None, None, tuple(hits))


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ((True, "takes long"), ("takes long", None, ())),
        ((False, "takes long"), (None, "takes long", ())),
        (None, (None, None, (2, 4, 9))),
    ],
)
def test_what_was_measured_is_the_verdict(monkeypatch, said, verdict):
    asked = []

    def cost(pattern, found, kind):
        asked.append((pattern, [automaton.first for automaton in found], kind))
        return said

    monkeypatch.setattr(patterns, "cost", cost)

    assert judge("agent", "firefox", measured=True) == verdict
    assert asked == [("firefox", [[0]], "agent")]


def test_what_is_refused_or_slow_is_not_run():
    assert judge("text", "(a+)+", measured=False) == (refusal("(a+)+"), None, ())
    assert judge("agent", "(.*g){3}", measured=False).hits == ()


# --- measured in another process ------------------------------------------------------------------


async def test_l05_harmless_patterns_pass():
    for kind in ("text", "agent"):
        for pattern, verdict in zip(HARMLESS, await judged(kind, *HARMLESS), strict=True):
            assert (verdict.refused, verdict.slow) == (None, None), pattern


async def test_l05_what_takes_too_long_for_a_long_text_does_not_pass():
    for pattern, verdict in zip(COSTLY, await judged("text", *COSTLY), strict=True):
        assert verdict.refused or verdict.slow, pattern


async def test_l05_what_takes_too_long_for_a_short_text_is_refused():
    for pattern, verdict in zip(FOR_EVER, await judged("text", *FOR_EVER), strict=True):
        assert verdict.refused, pattern


async def test_l05_the_patterns_of_the_engine_are_not_catastrophic():
    """
    None of those that guard-core ships is refused. It runs the slow ones on parts of a text only.
    """
    table = importlib.import_module("guard_core.handlers._suspatterns_pattern_table")
    own = [pattern for pattern, *_ in table._PATTERN_DEFINITIONS]
    refused = [pattern for pattern in own if refusal(pattern) is not None]

    assert refused == []


async def test_l05_verdicts_are_remembered():
    measuring = Judge()
    keys = [("text", "a+b"), ("agent", "a+b"), ("text", "(a+)+$")]
    first = await measuring(keys)

    begin = time.perf_counter()
    for _ in range(100):
        assert await measuring(keys) == first
    assert (time.perf_counter() - begin) / 100 < 0.02  # no process starts that fast


async def test_l05_the_process_ends_when_nobody_waits(tmp_path):
    judging = asyncio.create_task(Judge()([("text", f"x{n}.*y") for n in range(50_000)]))
    while not (children := children_of(os.getpid())):
        await asyncio.sleep(0.01)
    judging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await judging

    deadline = time.monotonic() + 20
    while children & children_of(os.getpid()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def children_of(parent):
    """Ids of the processes that judge patterns for ``parent``."""
    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc here, which names the child processes")
    found = set()
    for task in Path(f"/proc/{parent}/task").iterdir():
        for child in (task / "children").read_text().split():
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes()
            except OSError:
                continue
            if b"patterns.py" in command:
                found.add(int(child))
    return found


async def test_l05_without_another_process_the_shape_decides(monkeypatch):
    """
    A program that embeds Python, such as uWSGI, may have no interpreter to start.
    """
    monkeypatch.setattr(sys, "executable", "/usr/bin/uwsgi")
    monkeypatch.setattr(sys, "_base_executable", "/usr/bin/uwsgi", raising=False)
    monkeypatch.setattr(sys, "base_exec_prefix", "/nowhere")
    assert judge_module._interpreter() is None

    ok, never, slow, choices = await judged(
        "text", r"union\s+select", "(a+)+$", "a.*b.*c.*d", "a?" * 25 + "a" * 25
    )

    assert (ok.refused, ok.slow) == (None, None)
    assert never.refused
    assert slow.slow
    assert choices.slow


def test_l05_the_program_imports_nothing_of_the_app():
    done = subprocess.run(
        [sys.executable, "-I", "-S", patterns.__file__],
        input=b'[["text", "etc/passwd"], ["agent", "Mozilla"]]',
        capture_output=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.splitlines() == [
        b"[null, null, []]",
        b"[null, null, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]",
    ]
    assert done.stderr == b""
