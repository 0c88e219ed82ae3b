"""The rules by name and text say what the whole redaction does, or leave it to that."""

from __future__ import annotations

import base64
from datetime import datetime, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard_agent_redaction.names import SensitiveNames
from guard_agent_redaction.redactor import Redactor
from guard_agent_redaction.shapes import PAIRS, PLAIN, REDACTED, UNSURE, look_at

BASIC = base64.b64encode(b"alice:s3cr3t-Canary").decode()
SECRETS = [
    "password=hunter2x",
    "password = hunter2x",
    "the Password: hunter2x",
    "this is the pin=12345x",
    "https://shop.test/cb?page=2&token=s3cr3t",
    "user.password:hunter2x",
    "--password=hunter2x",
    "api key: abcdef123456",
    "pass phrase: abc def ghi",
    "/x?code=abcdefgh12345678",
    "/x?sig=abcdefgh12345678",
    'name="token" value="hunter2x"',
    "a=aaaaaaaaaaaaaaaaaaa1; theme=dark",
    "Bearer abcdef0123456789",
    "sent bEaReR abcdef0123456789",
    f"Basic {BASIC}",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    "AIza" + "a1B2" * 9,
    "ghp_" + "a1" * 12,
    "github_pat_" + "a1" * 12,
    "sk_live_" + "a1" * 8,
    "rk_test_" + "a1" * 8,
    "xoxb-" + "1a" * 8,
    "glpat-" + "a1" * 8,
    "-----BEGIN RSA PRIVATE KEY----- MIIC -----END RSA PRIVATE KEY-----",
    "4111111111111111",
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "3782 822463 10005",
    "3782-822463-10005",
    "postgres://app:s3cr3t@db.test/x",
    '{"password": "hunter2x"}',
    "<password>hunter2x</password>",
    "<password>hunter2x",
    "/x?%70assword=hunter2x",
    r"\u0070assword=hunter2x",
    "pässword=hunter2x password=hunter2x",
    "user[password]=hunter2x",
    "a:password>hunter2x",
]
HARMLESS = [
    "Suspicious pattern 12 in the query of the request",
    "203.0.113.7",
    "/api/v1/items/77",
    "https://shop.example.com/api/v1/items/77/reviews?sort=newest&page=2",
    "025a2d97-bd4c-0f10-ab12-2e767893a5b5",
    "00-7cf34f10145d0cd24a64da022cde8a37-b7ad6b7169203331-01",
    "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)",
    "12:30:45",
    "1234 5678 9012",
    "",
]


@pytest.fixture
def rules(enricher):
    return enricher().text_rules("event")


def redacted(text: str) -> str:
    names = SensitiveNames(["authorization"], [], [])
    fields = Redactor(names).record({"reason": text, "timestamp": datetime.now(timezone.utc)})
    return str(fields["reason"])


@pytest.mark.parametrize("text", SECRETS)
def test_no_text_with_a_secret_is_kept_alone_or_among_others(rules, text):
    assert redacted(text) != text, "the example holds no secret"

    assert not rules.keeps([text])
    assert not rules.keeps([*HARMLESS, text])
    assert not rules.keeps([text, *HARMLESS])


@pytest.mark.parametrize("text", HARMLESS)
def test_a_harmless_text_is_kept(rules, text):
    assert rules.keeps([text])


def test_harmless_texts_are_kept_together(rules):
    assert rules.keeps(HARMLESS)


@pytest.mark.parametrize("text", SECRETS)
def test_a_look_is_never_sure_of_a_secret(text):
    assert look_at(text) != PLAIN


@pytest.mark.parametrize(
    ("text", "look"),
    [
        ("GET /items/7", PLAIN),
        ("https://shop.test", PAIRS),
        ("a=b", PAIRS),
        ("caf\u00e9", UNSURE),
        ("\ud800", UNSURE),
        ('"', UNSURE),
        ("ghost_writer", UNSURE),
        ("git_hash", UNSURE),
        ("ask_me", UNSURE),
        ("snake_case", PLAIN),
        ("AI", PLAIN),
        ("J", PLAIN),
        ("x-ray", PLAIN),
        ("four 1234 5678", PLAIN),
        ("1234-5678", PLAIN),
        ("1234 5678 9012", PLAIN),
        ("4222-2222-2222-2", UNSURE),
        ("4222 2222 2222 2", UNSURE),
        ("4222-2222-2222-3", PLAIN),
        ("422222222222", PLAIN),
        ("4222222222222", UNSURE),
        ("4222222222223", PLAIN),
        ("3782 822463 10005", UNSURE),
        ("3782-822463-10005", UNSURE),
        ("3782 822463 10006", PLAIN),
        ("00-4222222222222c0ffee-01", PLAIN),
        ("1234-567890-123", PLAIN),
    ],
)
def test_what_a_look_tells(text, look):
    assert look_at(text) == look


def test_names_say_what_is_replaced(rules):
    names = ("host", "authorization", "X-Api-Key", "cookies")

    assert rules.replaced(names) == dict.fromkeys(names[1:], REDACTED)
    assert rules.replaced(()) == {}


@pytest.mark.parametrize(
    "names",
    [("name", "value"), ("Key", "Value"), ("host", "password=hunter2x"), ("Bearer abcdef012345",)],
)
def test_some_names_are_left_to_the_whole_redaction(rules, names):
    assert rules.replaced(names) is None


@pytest.mark.parametrize(
    "given_",
    [
        {"hash_ip": True, "hash_key": "0123456789abcdef" * 2},
        {"fields": {"reason": "drop"}},
        {"allow": ["reason"]},
    ],
    ids=["hash_ip", "fields", "allow"],
)
def test_with_decisions_about_fields_there_are_no_rules_by_text(enricher, given_):
    assert enricher(**given_).text_rules("event") is None


def test_patterns_of_the_owner_count(enricher):
    rules = enricher(patterns=["shop-[0-9]+"]).text_rules("event")

    assert not rules.keeps(["order shop-12"])
    assert rules.keeps(["order 12"])


FRAGMENTS = st.sampled_from(
    [
        *SECRETS, *HARMLESS, "password", "token", "key", "code", "name", "value", "api", "sort",
        "=", ":", " = ", ": ", "; ", "&", "?", ",", "/", ".", "-", "_", " ", "\n", "\t", ">", "]",
        "hunter2x", "abcdef0123456789abcd", "1234", "0000", "4111",
    ]
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(parts=st.lists(FRAGMENTS, max_size=7), other=FRAGMENTS)
def test_what_is_kept_is_what_the_whole_redaction_leaves(parts, other):
    text = "".join(parts)
    redactor = Redactor(SensitiveNames(["authorization"], [], []))

    if redactor.keeps([text, other]):
        assert redacted(text) == text
        assert redacted(other) == other
