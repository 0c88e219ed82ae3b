"""
Stand-ins for values that must be told apart but not known.

A keyed hash (HMAC-SHA-256, RFC 2104): without the key nobody can try all addresses or all e-mail
addresses and compare. The key is made one of the project's own, so two projects with the same key
cannot be joined, and one project has the same stand-ins in every process and after every restart.
"""

from __future__ import annotations

import hmac
import re
from ipaddress import IPv6Address, ip_address
from typing import Final

PREFIX: Final = "hmac-"
_DIGITS = 32  # 128 bits: two of 10^15 values share a stand-in with a chance of 10^-9

_MEMO_SIZE = 2048

SHORTEST_KEY: Final = 32
_FEWEST_CHARACTERS = 8

_ADDRESS = re.compile(
    r"(?<![0-9])(?<![0-9]\.)[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9])(?!\.[0-9])"
    # At least two colons; what it is in truth `ip_address` says.
    r"|(?<![0-9A-Za-z:.])(?=[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:)"
    r"(?:[0-9A-Fa-f:]{1,32}:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f:]{2,39})"
    r"(?:%\w{1,15})?(?![0-9A-Za-z])(?!\.[0-9])"
)
# "Chrome/120.0.0.0" is a version. No host has such an address.
_PRODUCT = re.compile(r"(?:\A|[\s(;\"'])[A-Za-z][\w\-]{0,31}/\Z")
_DIGIT = re.compile("[0-9]")


def check_key(key: str) -> None:
    """
    Refuse a key that can be guessed.

    Raises:
        ValueError: saying how to make a better one.
    """
    how = "make one with: python -c 'import secrets; print(secrets.token_hex(32))'"
    if len(key) < SHORTEST_KEY:
        msg = f"has {len(key)} characters, {SHORTEST_KEY} are needed; {how}"
        raise ValueError(msg)
    if len(set(key)) < _FEWEST_CHARACTERS:
        msg = f"repeats less than {_FEWEST_CHARACTERS} different characters, so it is no key; {how}"
        raise ValueError(msg)


class Pseudonyms:
    """
    Makes stand-ins, and remembers those of the last addresses: attackers come back.

    Safe to use from several threads: what is remembered is only ever added to or emptied.
    """

    def __init__(self, key: str, project: str) -> None:
        self._key = hmac.digest(key.encode(), b"guard-agent\0" + project.encode(), "sha256")
        self._known: dict[str, str] = {}

    def of(self, text: str) -> str:
        """The stand-in of ``text``; for an address the same however it is written."""
        return self._of_address(text) or self._stand_in(text)

    def addresses_in(self, text: str) -> str:
        """``text`` with a stand-in for every IP address; the same object when there is none."""
        if text.count(".") < 3 and text.count(":") < 2:
            return text
        return _ADDRESS.sub(self._replace, text)

    def _replace(self, match: re.Match[str]) -> str:
        found = match[0]
        tail = ""
        stand_in = self._of_address(found)
        if stand_in is None and found.endswith(":"):  # "from 2001:db8::1: refused"
            found, tail = found[:-1], ":"
            stand_in = self._of_address(found)
        if stand_in is None or found == "::":
            return match[0]
        start = match.start()
        if found.endswith(".0.0.0") and _PRODUCT.search(match.string, max(0, start - 34), start):
            return match[0]
        return stand_in + tail

    def _of_address(self, text: str) -> str | None:
        """The stand-in of an address, None when the text is none."""
        if (known := self._known.get(text)) is not None:
            return known
        if (address := _address(text)) is None:
            return None
        if len(self._known) >= _MEMO_SIZE:
            self._known.clear()
        known = self._known[text] = self._stand_in(address)
        return known

    def _stand_in(self, text: str) -> str:
        raw = text.encode("utf-8", "surrogatepass")
        return PREFIX + hmac.digest(self._key, raw, "sha256").hex()[:_DIGITS]


def _address(text: str) -> str | None:
    """The one way to write this IP address, None when it is none."""
    if not 2 <= len(text) <= 64 or not (_DIGIT.search(text) or ":" in text):
        return None
    try:
        # Zeros in front are decimal here, as they are for a proxy that pads.
        parts = text.split(".")
        plain = ".".join([part.lstrip("0") or "0" for part in parts]) if len(parts) == 4 else text
        address = ip_address(text if ":" in text else plain)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    return address.compressed.partition("%")[0]
