"""What is found by its shape alone, exactly."""

from __future__ import annotations

import base64

import pytest

from guard_agent_redaction.shapes import is_card_number, redact_shapes

BASIC = base64.b64encode(b"alice:s3cr3t").decode()
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIC\n-----END RSA PRIVATE KEY-----"
CARD = "4111111111111111"

FOUND = {
    f"a {PEM} b {PEM} c": "a [REDACTED] b [REDACTED] c",
    f"a {PEM[:40]}": "a [REDACTED]",
    "AKIAIOSFODNN7EXAMPLE.": "[REDACTED].",
    "ASIAIOSFODNN7EXAMPLE.": "[REDACTED].",
    "AKIAIOSFODNN7EXAMPLE:" + "a" * 40: "[REDACTED]",
    "https://u:p@h/x": "https://[REDACTED]@h/x",
    "//u@h": "//[REDACTED]@h",
    "Bearer abc.def.": "Bearer [REDACTED].",
    "bearer%20abc": "bearer%20[REDACTED]",
    "BEARER: abc!?": "BEARER: [REDACTED]!?",
    "Bearer abc=": "Bearer [REDACTED]",
    f"Basic {BASIC}": "Basic [REDACTED]",
    f"basic+{BASIC.rstrip('=')}": "basic+[REDACTED]",
    "Basic Og==": "Basic [REDACTED]",
    "Basic abcdefgh1234": "Basic [REDACTED]",
    "Basic AbCdEfGhIjKl": "Basic [REDACTED]",
    "Basic ABCDEFGHIJKLMN": "Basic [REDACTED]",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.c2ln end": "[REDACTED] end",
    "ghp_" + "a" * 20: "[REDACTED]",
    "github_pat_" + "a" * 20: "[REDACTED]",
    "sk_live_" + "a" * 10: "[REDACTED]",
    "rk_test_" + "a" * 10: "[REDACTED]",
    "xoxb-" + "a" * 10: "[REDACTED]",
    "glpat-" + "a" * 10: "[REDACTED]",
    "AIza" + "a" * 30: "[REDACTED]",
    CARD: "[REDACTED]",
    "4222222222222": "[REDACTED]",
    f"x {CARD} y": "x [REDACTED] y",
    "4111 1111 1111 1111": "[REDACTED]",
    "5500-0000-0000-0004.": "[REDACTED].",
    "3782 822463 10005": "[REDACTED]",
    f"card{CARD}": "card[REDACTED]",
    f"{CARD}x": "[REDACTED]x",
    f"beef {CARD} beef": "beef [REDACTED] beef",
    f"xyz{CARD}": "xyz[REDACTED]",
    f"\ud800 {CARD}": "\ud800 [REDACTED]",
}

LEFT = [
    "",
    "bearer token",
    "Bearer realm=x",
    "Bearer Authentication.",
    "basic authentication",
    "basic auth",
    "Basic information",
    "basic re-authentication",
    "Basic abcdefgh123",
    "Basic aGk",
    "Basic abcde",
    "-----BEGIN CERTIFICATE-----",
    "mail a@b.test",
    "//host/path",
    "eyJ short",
    "ghp_short",
    "4111111111111112",
    "1111111111111117",
    "411111111111",
    f"cafe{CARD}",
    f"{CARD}beef",
    f"deadbeef{CARD}cafe",
    f"1.{CARD}",
    "0000",
    "1.0000000000000000",
]


@pytest.mark.parametrize(
    "text", FOUND, ids=lambda text: text[:24].encode("utf-8", "replace").hex()[:30]
)
def test_what_has_the_shape_of_a_secret_is_replaced(text):
    assert redact_shapes(text) == FOUND[text]


@pytest.mark.parametrize("text", LEFT)
def test_anything_else_stays(text):
    assert redact_shapes(text) == text


@pytest.mark.parametrize(
    ("digits", "is_card"),
    [
        ("4222222222222", True),
        ("4111111111111111", True),
        ("378282246310005", True),
        ("5555555555554444", True),
        ("6304000000000000000", True),
        ("4111111111111112", False),
        ("411111111112", False),
        ("63040000000000000000", False),
        ("0000000000000000", False),
        ("1111111111111117", False),
        ("1000000000000008", False),
        ("2000000000000006", True),
        ("9000000000000001", True),
    ],
)
def test_a_card_number_has_its_length_and_check_digit(digits, is_card):
    assert is_card_number(digits) is is_card
