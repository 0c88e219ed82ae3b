from __future__ import annotations

import re
import sys

import pytest

from guard_agent.core.rules.patterns import MAX_LENGTH, dangerous

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
    r"(?:a|)*(?:a|)*b",
    r"(?:kx|\u212ax)*y",
    # a choice inside a repetition
    r"(?:a?b?)*c",
    r"(?:a?){30}a{30}",
    r"(?:\d{1,3})+x",
    r"(.+)+\1",
    r"(a)(?:b\1)*",
    # too many choices in a row
    "a?" * 25 + "a" * 25,
    r"(a{1,10}){10}b",
    r"(?:.{0,9}a){5}",
    "(?:a|ab?)" * 30 + "c",
    # repetitions side by side
    r"\s*\s*x",
    r".*.*x",
    r"(\s*)(\s*)x",
    r"\w+\d+x",
    r"\s+\b\s+x",
    r"[^>]*\s*x",
    # several repetitions that match the same text
    r".*a.*a.*a.*a.*a.*a.*b",
    r"(.*a){10}b",
    r".*a.*b",
    r"\s+\s\s+x",
    r"a.*b.*c.*d",
    # what costs too much before it is run
    "(?i)" + "[\u0000-\uffff]" * 140,
    "a" * (MAX_LENGTH + 1),
    "a" * 1_000_000,
    r"(a)?(?(1)b|c)",
    r"(?a:\w)+x",
]

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
    r"",
    r"etc/passwd",
    r"union\s+select",
    r"(?i)union\s+(?:all\s+)?select",
    r"<script[^>]*>",
    r"<script[^>]*>[\s\S]*?</script\s*>",
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
    r"on\w+\s*=",
    r"javascript\s*:",
    r"(['\"]).*?\1",
    r"^(?=.*a)(?=.*b)(?=.*c).+$",
    r"\w+\W+\w+=",
    r"(?:[a-z]|\d)+x",
    r"(?:a|b|c)*d",
    r"(?:[^/]+/)+$",
    r"wp-(?:admin|login|content)",
    r"(?:;|\||&&|`)\s*(?:cat|ls|rm|wget|curl)\b",
    r"a{1,3}b",
    r"https?://",
    r"[^\x00-\x7f]+",
    r"\u0430+\u0431",
    r"select.*from.*where",
    r"(?i)%(?:00|0a|0d)",
    r"(?<!\w)eval\s*\(",
]


@pytest.mark.parametrize("pattern", DANGEROUS, ids=lambda pattern: pattern[:40])
def test_dangerous_patterns_are_refused(pattern):
    """
    None of them is ever run: most would hold the interpreter lock for longer than anybody waits.
    """
    assert dangerous(pattern) is not None


@pytest.mark.parametrize("pattern", BROKEN)
def test_what_is_no_regular_expression_is_refused(pattern):
    reason = dangerous(pattern)

    assert reason is not None
    assert reason.startswith("is not a regular expression")


@pytest.mark.parametrize("depth", [50, 499])
def test_deep_nesting_raises_nothing(depth):
    reason = dangerous("(" * depth + "a" + ")" * depth)

    assert reason is None or "nested too deeply" in reason


@pytest.mark.parametrize("pattern", HARMLESS)
def test_harmless_patterns_pass(pattern):
    assert dangerous(pattern) is None


@pytest.mark.skipif(sys.version_info < (3, 11), reason="possessive repetitions came with 3.11")
@pytest.mark.parametrize(
    ("pattern", "refused"),
    [(r"a++b", False), (r"(?>a+)b", False), (r"(?:(a+)+b)++", True), (r"(?>(a+)+b)", True)],
)
def test_possessive_and_atomic_groups_are_looked_into(pattern, refused):
    assert (dangerous(pattern) is not None) is refused


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"(a+)+$", "repeats a repetition"),
        (r"(a|a)*b", "start alike"),
        (r"\s*\s*x", "twice in a row"),
        (r"(?:\d{1,3})+x", "repeats a choice"),
        (r"a.*b.*c.*d", "too many unbounded repetitions"),
        ("a?" * 25, "too many choices"),
        ("a" * 1_001, "longer than 1000 characters"),
        (r"(", "is not a regular expression"),
    ],
)
def test_the_reason_says_what_is_wrong(pattern, words):
    assert words in dangerous(pattern)


def test_both_cases_are_considered():
    """
    The engine runs patterns without regard to case, others may not.
    """
    assert dangerous(r"(?:ax|Ax)*b") is not None
    assert dangerous(r"(?:[^A]x|ax)*b") is not None


def test_the_pattern_never_gets_into_the_cache_of_re():
    """
    It holds 512 entries for the whole process; a thousand rules would push out the app's own.
    """
    re.purge()
    pattern = re.compile("mine")
    for n in range(2_000):
        assert dangerous(f"other{n}") is None

    assert re.compile("mine") is pattern


@pytest.mark.parametrize("pattern", HARMLESS)
def test_what_passes_is_fast(pattern):
    """
    On texts made to go wrong; a pattern of exponential time would never come to an end here.
    """
    for part in ("a", " ", "ab", "<script>", "select from ", "../", "1.", "\"'", "\u0430"):
        text = part * (1_000 // len(part))
        re.search(pattern, text, re.IGNORECASE | re.MULTILINE)
