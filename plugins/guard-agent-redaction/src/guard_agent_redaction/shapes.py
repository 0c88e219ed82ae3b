"""
Secrets that are recognised by what they look like, whatever stands beside them.

Every expression here is linear: a repeated part is either bounded by a number, or followed by
nothing that could fail, or starts only where the part before it cannot continue. A cheap look at
the text comes before each, because nearly all texts hold none of these.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

REDACTED: Final = "[REDACTED]"

_PRIVATE_KEY = re.compile(
    r"-----BEGIN[A-Z0-9 ]{0,40}PRIVATE KEY[^-]{0,20}-----"
    r".*?(?:-----END[A-Z0-9 ]{0,40}PRIVATE KEY[^-]{0,20}-----|\Z)",
    re.DOTALL,
)
# Signs that an address should have had encoded count when a colon shows that this is a password.
_USERINFO = re.compile(r"//(?:[^\s/?#\"'<>\\]*@|[^\s/\"'<>\\:]*:[^\s/\"'<>\\]*@)")
_BEARER = re.compile(
    r"\b(bearer)((?:\s|\+|%20|:){1,8})([a-z0-9._~+/=\-][^\s\"'<>\\,;)]*)", re.IGNORECASE
)
_BASIC = re.compile(r"\b(basic)((?:\s|\+|%20|:){1,8})([a-z0-9._~+/=\-]+)", re.IGNORECASE)
_WEB_TOKEN = re.compile(r"eyJ[A-Za-z0-9_\-+/=]{8,}(?:\.[A-Za-z0-9_\-+/=]*){0,4}")
# Often with the secret key behind it.
_AWS_KEY = re.compile(
    r"(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"(?:(?:[\s:,;|/]|%[237][0AaCcBbFf]){1,4}(?:[A-Za-z0-9/+_\-]|%2[BbFf]){40}(?![A-Za-z0-9/+_\-%]))?"
)
_VENDOR_TOKEN = re.compile(
    r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|[rs]k_(?:live|test)_\w{10,}"
    r"|xox[abeoprs]-[\w\-]{10,}|glpat-[\w\-]{10,}|AIza[\w\-]{30,}"
)
_CARD = re.compile(
    r"(?<![0-9])(?<![0-9]\.)(?:[2-9][0-9]{12,18}"
    r"|[2-9][0-9]{3}([ \-])[0-9]{4}\1[0-9]{4}\1[0-9]{1,7}"
    r"|3[0-9]{3}([ \-])[0-9]{6}\2[0-9]{4,5})(?![0-9])"
)
_SHORTEST_CARD = 13
# Small letters, zeros for digits, "=" for the signs behind a name, and "<" for all other signs of
# pairs, addresses, JSON and encoded texts, and for what is not ASCII.
_ALIKE = bytes(
    ord("=") if chr(code) in "=:"
    else ord("<") if chr(code) in "%@\"'\\<>[]{" or code > 127
    else ord("0") if chr(code).isdigit()
    else ord(chr(code).lower())
    for code in range(256)
)  # fmt: skip
_CARD_IN_A_ROW = "0" * 13
_HEX = frozenset("0123456789abcdefABCDEF")

# What follows the word in prose: "invalid bearer token", not a credential.
_PROSE = frozenset(
    {
        "and", "auth", "authentication", "authorization", "credential", "credentials", "error",
        "expired", "format", "from", "header", "headers", "in", "invalid", "is", "malformed",
        "missing", "must", "not", "only", "or", "realm", "required", "scheme", "scope", "token",
        "tokens", "was", "with", "without",
    }
)  # fmt: skip


# What a cheap look at a text tells. Numbers, because a member of an enumeration takes ten times as
# long to look up.
PLAIN: Final = 0
"""There is nothing that any expression of this package begins with."""
PAIRS: Final = 1
"""The same, but for names with ``=`` or ``:`` behind them."""
UNSURE: Final = 2


def look_at(text: str) -> int:
    """Look at ``text``, or at several with a line break between them."""
    alike = text.encode("utf-8", "surrogatepass").translate(_ALIKE).decode("ascii")
    # A single sign is found in a tenth of the time of several, so rare ones go first.
    if (
        "<" in alike
        or ("A" in text and ("AKIA" in text or "ASIA" in text or "AIza" in text))
        or ("J" in text and "eyJ" in text)
        or ("_" in alike and ("gh" in alike or "git" in alike or "k_" in alike))
        or ("x" in alike and "xox" in alike)
        or ("-" in alike and ("glpat-" in alike or "-----begin" in alike))
        or "bearer" in alike
        or "basic" in alike
        # Ids of hexadecimal digits now and then have as many in a row.
        or ("0000" in alike and _holds_card(alike) and _CARD.sub(_without_card, text) != text)
    ):
        return UNSURE
    return PAIRS if "=" in alike else PLAIN


def redact_shapes(text: str) -> str:
    """Replace every secret that shows by its shape; the same object when there is none."""
    if "-----BEGIN" in text:
        text = _PRIVATE_KEY.sub(REDACTED, text)
    # Before the others: one of them may find something in the secret key, and leave the rest.
    if "AKIA" in text or "ASIA" in text:
        text = _AWS_KEY.sub(REDACTED, text)
    if "@" in text and "//" in text:
        text = _USERINFO.sub(f"//{REDACTED}@", text)
    lowered = text.lower()
    if "bearer" in lowered:
        text = _BEARER.sub(_without_bearer, text)
    if "basic" in lowered:
        text = _BASIC.sub(_without_basic, text)
    if "eyJ" in text:
        text = _WEB_TOKEN.sub(REDACTED, text)
    if _may_hold_vendor_token(text):
        text = _VENDOR_TOKEN.sub(REDACTED, text)
    if len(text) >= _SHORTEST_CARD:
        alike = text.encode("utf-8", "replace").translate(_ALIKE).decode("ascii")
        if "0000" in alike and _holds_card(alike):
            text = _CARD.sub(_without_card, text)
    return text


def _holds_card(alike: str) -> bool:
    """Whether digits stand as in a card number: 13 of them, 4-4-4-1 or 4-6-4."""
    return (
        _CARD_IN_A_ROW in alike
        or ("0000-00" in alike and ("0000-0000-0000-0" in alike or "0000-000000-0000" in alike))
        or ("0000 00" in alike and ("0000 0000 0000 0" in alike or "0000 000000 0000" in alike))
    )


def _may_hold_vendor_token(text: str) -> bool:
    if "_" in text and ("gh" in text or "git" in text or "k_" in text):
        return True
    return "xox" in text or "glpat-" in text or "AIza" in text


def is_card_number(digits: str) -> bool:
    """Whether ``digits`` (no separators) has the length and check digit of a card number."""
    if not _SHORTEST_CARD <= len(digits) <= 19 or digits[0] in "01":
        return False
    total = 0
    for position, character in enumerate(reversed(digits)):
        digit = ord(character) - 48
        if position % 2:
            digit *= 2
            if digit > 9:
                digit -= 9
        total += digit
    return total % 10 == 0


def _without_bearer(match: re.Match[str]) -> str:
    scheme, gap, credential = match.groups()
    bare = credential.rstrip(".:!?]}")
    if bare.partition("=")[0].lower() in _PROSE:
        return match[0]
    return f"{scheme}{gap}{REDACTED}{credential[len(bare) :]}"


def _without_basic(match: re.Match[str]) -> str:
    scheme, gap, credential = match.groups()
    return f"{scheme}{gap}{REDACTED}" if _is_basic(credential) else match[0]


def _is_basic(credential: str) -> bool:
    """Whether this is base64 of ``user:password`` rather than a word after the word "basic"."""
    try:
        # Base64 without its padding is still readable for whoever gets it.
        decoded = base64.b64decode(credential.rstrip("=") + "==")
    except (binascii.Error, ValueError):
        decoded = b""
    if b":" in decoded and len(credential) >= 4:
        return True
    letters = re.sub(r"[.\-/]", "", credential)
    is_prose = letters.isalpha() and letters[1:].islower()
    return len(credential) >= 12 and not is_prose


def _without_card(match: re.Match[str]) -> str:
    digits = match[0].replace(" ", "").replace("-", "")
    if not is_card_number(digits):
        return match[0]
    # Thirteen digits in a row are common inside a hash or a trace id.
    text = match.string
    start, end = match.span()
    around = text[max(0, start - 1) : start] + text[end : end + 1]
    if any(c.isalpha() for c in around) and _is_in_hex(text, start, end):
        return match[0]
    return REDACTED


def _is_in_hex(text: str, start: int, end: int) -> bool:
    first = max(0, start - 64)
    before = re.split(r"[\W_]", text[first:start])[-1]
    after = re.split(r"[\W_]", text[end : end + 64], maxsplit=1)[0]
    return _HEX.issuperset(before) and _HEX.issuperset(after)
