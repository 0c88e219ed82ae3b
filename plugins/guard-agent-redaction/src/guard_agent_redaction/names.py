"""
Which names say that the value beside them is a secret.

Two spellings of a name are the same when they differ only in case, separators (``-``, ``_``,
``.``, spaces), camel case, or characters that look alike: ``X-Api-Key``, ``xApiKey`` and
``x.api_key``. A name is sensitive when

- it equals one of the names below, one of the agent's ``sensitive_headers`` or of the setting
  ``names``; also as last part of a dotted name (``headers.cookie``), after ``HTTP_``, or with
  digits behind it (``password2``),
- it ends with one of `_SUFFIXES` (``db_password``, ``githubToken``), or
- its last word is one of `_LAST_WORDS`, which are too short for a suffix (``user_pwd``).

What merely starts with such a word is harmless: ``token_count``, ``session_duration``.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

HARMLESS: Final = 0
SECRET: Final = 1
COUNTABLE: Final = 2
"""A secret, but a number under this name is a count: ``{"cookies": 3}``."""

_COUNTABLE = frozenset(
    {"auth", "cookies", "credentials", "pass", "passwords", "secrets", "session", "sessions"}
    | {"tokens"}
)
_EXACT = _COUNTABLE | frozenset(
    {
        "accesskeyid", "accesstokens", "apikeys", "apikeyid", "assertion", "authkey", "authtoken",
        "aspsessionid", "awsaccesskeyid", "bearer", "cardno", "cardnumber", "cardnum", "ccnumber",
        "clientassertion", "cookie", "creditcard", "creditcardnumber", "credential", "csrf",
        "csrftoken", "cvc", "cvv", "cvv2", "decryptionkey", "encryptionkey", "hmackey",
        "jsessionid", "jwt", "licensekey", "loginpass", "masterkey", "mfacode", "mnemonic",
        "mysqlpwd", "oauthverifier", "otp", "otpcode", "pan", "passwordconfirm",
        "passwordconfirmation", "passwordhash", "phpsessid", "pin", "pincode", "privatekey",
        "proxyauthorization", "pwd", "pword", "recoverycode", "recoverycodes", "refreshtokens",
        "rememberme", "samlassertion", "samlresponse", "securitycode", "seedphrase", "servicekey",
        "sessid", "sessionhash", "sessionkey", "setcookie", "sid", "signingkey",
        "socialsecuritynumber", "ssn", "storagekey", "totp", "userpass", "usrpwd",
        "verificationcode", "webhookkey", "xamzcredential", "xamzsignature", "xapikey",
        "xhubsignature", "xpayloadsignature", "xsrf",
    }
)  # fmt: skip
_SUFFIXES = (
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "secret",
    "secretkey",
    "apikey",
    "privatekey",
    "accesskey",
    "token",
    "authorization",
    "sessionid",
)
_LAST_WORDS = frozenset({"cookie", "credential", "credentials", "jwt", "otp", "pwd", "sid"})

# Small letters (after casefold) of other alphabets that look like Latin ones, and characters that
# cannot be seen. NFKC leaves both alone.
_LOOK_ALIKES = {
    "\u0430": "a", "\u0432": "b", "\u0435": "e", "\u0456": "i", "\u0458": "j", "\u043a": "k",
    "\u043c": "m", "\u043d": "h", "\u043e": "o", "\u0440": "p", "\u0441": "c", "\u0442": "t",
    "\u0443": "y", "\u0445": "x", "\u0455": "s", "\u04bb": "h", "\u04cf": "l", "\u0501": "d",
    "\u051b": "q", "\u051d": "w", "\u0131": "i", "\u0251": "a", "\u0261": "g", "\u03b1": "a",
    "\u03b2": "b", "\u03b5": "e", "\u03b9": "i", "\u03ba": "k", "\u03bd": "v", "\u03bf": "o",
    "\u03c1": "p", "\u03c4": "t", "\u03c5": "u", "\u03c7": "x", "\u0475": "v",
}  # fmt: skip
_TO_LATIN = str.maketrans(_LOOK_ALIKES)
_INVISIBLE = dict.fromkeys(
    [
        0x00AD, 0x034F, 0x061C, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F),
        *range(0x2060, 0x2070), 0xFEFF,
    ]
)  # fmt: skip

_SEPARATORS = re.compile(r"[\W_]+")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_BYTES_LITERAL = re.compile(r"b(['\"])(.*)\1", re.DOTALL)

_LONGEST_NAME = 128
_MEMO_SIZE = 4096


def unmask(text: str) -> str:
    """``text`` in its compatibility form (NFKC) and without invisible characters."""
    return unicodedata.normalize("NFKC", text).translate(_INVISIBLE)


def squash(name: str) -> str:
    """The form in which two spellings of one name are equal: letters and digits only."""
    if not name.isascii():
        name = unmask(name).casefold().translate(_TO_LATIN)
    return _SEPARATORS.sub("", name).lower()


class SensitiveNames:
    """
    Decides about names and remembers the decisions.

    ``always`` cannot be overruled, ``keep`` overrules ``extra`` and everything built in.
    Safe to use from several threads: the memo is only ever added to or emptied.
    """

    def __init__(self, always: Iterable[str], extra: Iterable[str], keep: Iterable[str]) -> None:
        self._always = frozenset(map(squash, always)) - {""}
        self._keep = frozenset(map(squash, keep)) - self._always
        self._exact = _EXACT | frozenset(map(squash, extra)) - {""}
        self._memo: dict[str, int] = {}

    def verdict(self, name: str) -> int:
        """`HARMLESS`, `SECRET` or `COUNTABLE`."""
        known = self._memo.get(name)
        if known is not None:
            return known
        # The end of a name decides; only a hostile one is longer than this.
        verdict = self._decide(name[-_LONGEST_NAME:])
        if len(name) <= _LONGEST_NAME:
            if len(self._memo) >= _MEMO_SIZE:
                self._memo.clear()
            self._memo[name] = verdict
        return verdict

    def is_header(self, name: str) -> bool:
        """Whether the value of ``name`` may hold spaces, as that of a header."""
        squashed = squash(name[-_LONGEST_NAME:])
        return squashed in self._always or squashed.endswith(
            ("authorization", "cookie", "passphrase", "seedphrase", "mnemonic")
        )

    def is_fixed(self, name: str) -> bool:
        """Whether ``name`` is one of those that cannot be overruled."""
        return not self._always.isdisjoint(_spellings(name))

    def _decide(self, name: str) -> int:
        literal = _BYTES_LITERAL.fullmatch(name)
        if literal:
            name = literal[2]
        if "/" in name:  # a path such as /oauth/token, not a name
            return HARMLESS
        whole = squash(name)
        spellings = _spellings(name)
        if spellings & self._always:
            return SECRET
        if spellings & self._keep:
            return HARMLESS
        if spellings & self._exact:
            return SECRET if whole not in _COUNTABLE else COUNTABLE
        if whole.rstrip("0123456789").endswith(_SUFFIXES):
            return SECRET
        words = _WORDS.findall(name if name.isascii() else unmask(name))
        return SECRET if words and words[-1].lower() in _LAST_WORDS else HARMLESS


def _spellings(name: str) -> set[str]:
    """The names that ``name`` may be another way to write."""
    whole = squash(name)
    last = re.split(r"[.:\[\]]+", name.rstrip("]"))[-1]
    return {whole, whole.rstrip("0123456789"), whole.removeprefix("http"), squash(last)}
