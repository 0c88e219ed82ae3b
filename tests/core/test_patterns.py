from __future__ import annotations

import asyncio
import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guard_agent.core.rules import judge as judge_module
from guard_agent.core.rules import patterns
from guard_agent.core.rules.judge import Judge
from guard_agent.core.rules.patterns import MAX_LENGTH, judge, refusal

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
        pytest.skip("needs /proc")
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
