"""Which names are sensitive, and in which spellings."""

from __future__ import annotations

import pytest

from guard_agent_redaction import names as names_module
from guard_agent_redaction.names import COUNTABLE, HARMLESS, SECRET, SensitiveNames, squash, unmask


def make(always=(), extra=(), keep=()):
    return SensitiveNames(always, extra, keep)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("X-Api-Key", "xapikey"),
        ("x.api_key", "xapikey"),
        ("A b\tC", "abc"),
        ("p\u0430ssw\u043erd", "password"),
        ("\uff30\uff37\uff24", "pwd"),
        ("\u0420\u0410\u0421\u0421", "pacc"),
        ("to\u200bken\ufeff", "token"),
        ("--", ""),
    ],
)
def test_spellings_of_one_name_are_equal(name, same):
    assert squash(name) == same


def test_what_cannot_be_seen_is_gone_and_compatible_forms_are_one():
    assert unmask("a\u00adb\u200b\uff21") == "abA"


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("password", SECRET),
        ("password2", SECRET),
        ("db_password12", SECRET),
        ("pin9", SECRET),
        ("HTTP_COOKIE", SECRET),
        ("HTTP_X_API_KEY", SECRET),
        ("request.headers.cookie", SECRET),
        ("headers[cookie]", SECRET),
        ("headers:cookie", SECRET),
        ("b'cookie'", SECRET),
        ('b"pin"', SECRET),
        ("b'a\npin'", HARMLESS),
        ("b'headers\n.pin'", SECRET),
        ("user_pwd", SECRET),
        ("userPwd", SECRET),
        ("USER-SID", SECRET),
        ("user\u200b_PWD", SECRET),
        ("session", COUNTABLE),
        ("Tokens", COUNTABLE),
        ("user.session", SECRET),
        ("sessions", COUNTABLE),
        ("/oauth/token", HARMLESS),
        ("b'/oauth/token'", HARMLESS),
        ("token_count", HARMLESS),
        ("session_duration", HARMLESS),
        ("pinned", HARMLESS),
        ("12", HARMLESS),
        ("", HARMLESS),
        ("https_cookie_jar", HARMLESS),
    ],
)
def test_a_name_is_judged(name, verdict):
    assert make().verdict(name) == verdict
    assert make().verdict(name) == verdict


def test_what_the_agent_says_goes_before_what_is_kept_and_that_before_the_rest():
    names = make(always=["X-Shop", "both"], extra=["mine", "--"], keep=["password", "both", "mine"])

    assert [names.verdict(n) for n in ("x_shop", "both", "password", "mine", "token", "--")] == [
        SECRET, SECRET, HARMLESS, HARMLESS, SECRET, HARMLESS,
    ]  # fmt: skip
    assert make(extra=["mine"]).verdict("Mine") == SECRET
    assert make(always=["--"]).verdict("..") == HARMLESS


@pytest.mark.parametrize("name", ["x-shop", "request.x_shop", "HTTP_X_SHOP", "xShop2"])
def test_what_cannot_be_overruled_is_known_in_every_spelling(name):
    names = make(always=["X-Shop"])

    assert names.is_fixed(name)
    assert not names.is_fixed("password")


@pytest.mark.parametrize(
    ("name", "is_header"),
    [
        ("Proxy-Authorization", True),
        ("Set-Cookie", True),
        ("passphrase", True),
        ("seed phrase", True),
        ("mnemonic", True),
        ("X-Shop", True),
        ("a" * 500 + "cookie", True),
        ("password", False),
        ("cookies", False),
    ],
)
def test_the_value_of_a_header_may_hold_spaces(name, is_header):
    assert make(always=["X-Shop"]).is_header(name) is is_header


def test_the_end_of_a_long_name_decides():
    names = make()

    assert names.verdict("a" * 1_000 + "_password") == SECRET
    assert names.verdict("password_" + "a" * 1_000) == HARMLESS
    assert names.verdict("a/" + "a" * 128 + "_password") == SECRET


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(names_module, "_MEMO_SIZE", 3)
    names = make()
    for name in ("a", "b", "password"):
        names.verdict(name)
    assert set(names._memo) == {"a", "b", "password"}
    assert names.verdict("password") == SECRET

    names.verdict("x" * 129)
    assert len(names._memo) == 3, "long names are not kept"
    names.verdict("x" * 128)

    assert set(names._memo) == {"x" * 128}
