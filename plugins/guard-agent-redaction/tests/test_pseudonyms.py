"""Stand-ins: the same for the same, and what is taken for an address."""

from __future__ import annotations

import hashlib
import hmac
import re

import pytest

from guard_agent_redaction import pseudonyms as pseudonyms_module
from guard_agent_redaction.pseudonyms import Pseudonyms, check_key

KEY = "0123456789abcdef" * 2


@pytest.fixture
def pseudonyms():
    return Pseudonyms(KEY, "shop")


def stand_in(text):
    """As anybody can make it who has the key: it must not change from one release to the next."""
    key = hmac.new(KEY.encode(), b"guard-agent\0shop", hashlib.sha256).digest()
    return "hmac-" + hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]


def test_the_stand_in_is_a_keyed_hash_that_stays_the_same(pseudonyms):
    assert pseudonyms.of("bob@shop.test") == stand_in("bob@shop.test")
    assert pseudonyms.of("192.0.2.1") == stand_in("192.0.2.1")
    assert pseudonyms.of("\ud800") != stand_in("")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.000.002.001", "192.0.2.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("0:0:0:0:0:ffff:192.0.2.1", "192.0.2.1"),
        ("ABCD::EF", "abcd::ef"),
        ("::", "::"),
        ("::1", "::1"),
    ],
)
def test_an_address_has_one_stand_in(pseudonyms, text, address):
    assert pseudonyms.of(text) == stand_in(address)
    assert pseudonyms.of(text) == stand_in(address)


@pytest.mark.parametrize(
    "text", ["12", "1.2.3", "X1.2.3.4", "256.1.1.1", "a:b", "cafe", "", "1" * 65]
)
def test_what_is_no_address_is_taken_as_it_is(pseudonyms, text):
    assert pseudonyms.of(text) == stand_in(text)
    assert pseudonyms._known == {}


@pytest.mark.parametrize(
    ("text", "before", "address", "after"),
    [
        ("from 192.0.2.1.", "from ", "192.0.2.1", "."),
        ("[2001:db8::1]:80", "[", "2001:db8::1", "]:80"),
        ("from 2001:db8::1: no", "from ", "2001:db8::1", ": no"),
        ("x 2001:db8:: y", "x ", "2001:db8::", " y"),
        ("::1", "", "::1", ""),
        ("Chrome 10.0.0.0", "Chrome ", "10.0.0.0", ""),
        ("a/Chrome/1.2.3.4 x", "a/Chrome/", "1.2.3.4", " x"),
        ("/10.0.0.0", "/", "10.0.0.0", ""),
        (f"{'a' * 33}/10.0.0.0", f"{'a' * 33}/", "10.0.0.0", ""),
        ("1.2.3.4", "", "1.2.3.4", ""),
    ],
)
def test_addresses_in_a_text_are_replaced(pseudonyms, text, before, address, after):
    assert pseudonyms.addresses_in(text) == before + stand_in(address) + after


@pytest.mark.parametrize(
    "text",
    [
        "Chrome/120.0.0.0",
        "Mozilla (Chrome/120.0.0.0)",
        f"{'a' * 32}/120.0.0.0",
        "1.2.3",
        "1.2.3.4.5",
        "x::b",
        "a :: b",
        "12:30:45",
        "x:",
        "999.1.1.1",
    ],
)
def test_what_only_looks_like_an_address_stays(pseudonyms, text):
    assert pseudonyms.addresses_in(text) == text


def test_several_addresses_and_those_that_are_known(pseudonyms):
    text = "1.2.3.4, ::1 and 1.2.3.4"

    for _ in range(2):
        one, two = stand_in("1.2.3.4"), stand_in("::1")
        assert pseudonyms.addresses_in(text) == f"{one}, {two} and {one}"


def test_what_is_remembered_is_bounded(pseudonyms, monkeypatch):
    monkeypatch.setattr(pseudonyms_module, "_MEMO_SIZE", 2)
    for number in (1, 2):
        pseudonyms.of(f"192.0.2.{number}")
    assert pseudonyms._known == {f"192.0.2.{n}": stand_in(f"192.0.2.{n}") for n in (1, 2)}

    pseudonyms.of("192.0.2.3")

    assert set(pseudonyms._known) == {"192.0.2.3"}


def test_a_key_has_32_characters_and_8_different_ones():
    how = "make one with: python -c 'import secrets; print(secrets.token_hex(32))'"
    check_key("abcdefgh" * 4)
    for key, message in (
        ("abcdefgh" * 3 + "abcdefg", f"has 31 characters, 32 are needed; {how}"),
        (
            "abcdefg" * 5,
            f"repeats less than 8 different characters, so it is no key; {how}",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            check_key(key)
