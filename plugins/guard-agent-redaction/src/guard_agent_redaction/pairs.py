"""
Secrets that stand beside their name in a text.

Understands ``name=value`` (forms, queries, log lines), ``name: value`` (headers, prose),
``"name": "value"`` in JSON that is cut off or in the printed form of an object, also with escaped
quotes, ``["name", "value"]`` and ``("name", "value")``, ``{"name": n, "value": v}``,
``<name>value</name>``, also cut off, and the parts of a multipart form. Reads the text once from
left to right.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, NamedTuple

from guard_agent_redaction.names import COUNTABLE, HARMLESS, SECRET, squash
from guard_agent_redaction.shapes import REDACTED

if TYPE_CHECKING:
    from guard_agent_redaction.budget import Budget
    from guard_agent_redaction.names import SensitiveNames

# A name starts only where none can be continued, so each run of name characters is tried once.
_PAIR = re.compile(
    r"(?<![\w.\-])(?P<name>[\w.\-]+)(?P<close>\\{0,8}[\"'])?[\[\]]{0,2}[ \t]{0,8}"
    r"(?P<sign>=>|:=|==?|:|,|>)[ \t]{0,8}"
)
_OPEN_QUOTE = re.compile(r"\s{0,16}[bBuUrRfF]{0,2}(\\{0,8})([\"'])")
_BLANKS = re.compile(r"\s{0,16}")
_WORD_END = re.compile(r"[\s;\"]")
_FORM_WORD_END = re.compile(r"[\s&;\"]")
_LINE_END = re.compile(r"[\r\n]|\\[rn]")
_FORM_LINE_END = re.compile(r"[\r\n&]|\\[rn]")
# Where words behind "password:" end: with the line, the sentence, a quote, or before another pair.
_CLAUSE_END = re.compile(
    r"[\r\n;\"|]|\\[rn]|,(?=\s)|\.(?=\s+[A-Z])|\s(?=[\w.\-]{1,64}(?:=|:(?:\s|\Z)))"
)
# A route of an application, "/reset/<token>/confirm" or "/reset/<string:token>/confirm".
_ROUTE = re.compile(r"/<(?:[A-Za-z_]{1,32}:)?\Z")
_WORD_BEFORE = re.compile(r"([A-Za-z0-9]{1,24}) \Z")
_PART_HEAD = re.compile(r"[^\r\n]{0,200}\r?\n(?:[^\r\n]{1,200}\r?\n){0,4}\r?\n")
_PART_END = re.compile(r"\r?\n--")
_COOKIE_NAME = re.compile(r"\s*[\w.\-]{1,64}\s*")

# What may follow "session:" in a message that is not about its value.
_PLAIN_WORD = re.compile(
    r"(?:[A-Za-z]?[a-z\-]{0,14}|[A-Z]{1,10}|[0-9][0-9.,/]{0,6}[a-z%]{0,2})[.,:!?)]{0,3}"
)
_DIGIT = re.compile(r"[0-9]")
_LETTER = re.compile(r"[A-Za-z]")

_SCHEMES = frozenset({"apikey", "basic", "bearer", "digest", "token"})
_LITERALS = frozenset({"false", "nil", "none", "null", "true", "undefined"})
# What follows "token:" or "password:" in a message about it.
_STATES = frozenset(
    {
        "absent", "already", "and", "blocked", "can", "cannot", "changed", "could", "denied",
        "does", "empty", "expected", "expired", "failed", "failure", "has", "header", "in",
        "incorrect", "invalid", "is", "malformed", "mismatch", "missing", "must", "needed", "not",
        "of", "ok", "or", "rejected", "required", "revoked", "rotated", "signature", "the", "too",
        "unknown", "unset", "value", "was", "weak", "wrong",
    }
)  # fmt: skip
# Secrets in the query of a signed address or a login, everyday words elsewhere.
_AMBIGUOUS = frozenset({"code", "hash", "key", "sig", "signature", "state", "ticket"})
# The second half of a name written with a space: "api key: ...".
_SECOND_WORDS = frozenset({"code", "id", "key", "keys", "number", "phrase"})
_NAME_NAMES = frozenset({"field", "header", "key", "name"})
_VALUE_NAMES = frozenset({"val", "value"})
_NOT_BORING = _AMBIGUOUS | _SECOND_WORDS | _NAME_NAMES | _VALUE_NAMES
_LONGEST_BORING = 32
# What a name can consist of, "=" for the signs behind one, blanks for everything else.
_NAMES_AND_SIGNS = bytes(
    code if (chr(code).isalnum() and code < 128) or chr(code) in "_.-"
    else ord("=") if chr(code) in "=:"
    else ord(" ")
    for code in range(256)
)  # fmt: skip
_MOST_BORING = 2_048
_COOKIE_ATTRIBUTES = frozenset(
    {"domain", "expires", "maxage", "path", "priority", "samesite", "secure", "httponly"}
    | {"partitioned"}
)
_FORWARDED = frozenset({"by", "for", "host", "proto"})


# Of these the value may be several words.
_PHRASES = ("password", "passwd", "passphrase", "passcode", "pwd", "secret")
_PUNCTUATION = ".,:!?"
_OPENING = {")": "(", "]": "[", "}": "{", ">": "<"}

_LOOK = 256  # characters


class _Span(NamedTuple):
    """Where a value stands, and whether quotes delimit it."""

    start: int
    end: int
    quoted: bool


class PairRedactor:
    """Replaces the values beside sensitive names in texts."""

    def __init__(self, names: SensitiveNames, budget: Budget) -> None:
        self._names = names
        self._budget = budget
        self._boring: set[str] = set()

    def are_harmless(self, text: str) -> bool:
        """
        Whether nothing is beside a sensitive name, of a text that `look_at` found to be ``PAIRS``.

        A False says nothing.
        """
        if ";" in text and "; " in text:  # it may be a cookie
            return False
        boring = self._boring
        *before, _ = text.encode().translate(_NAMES_AND_SIGNS).decode("ascii").split("=")
        for words in before:
            before_sign = words.rstrip() if words.endswith(" ") else words
            name = before_sign[before_sign.rfind(" ") + 1 :]
            if name and name not in boring and not self._is_boring(name):
                return False
        return True

    def _is_boring(self, name: str) -> bool:
        """Whether nothing that stands beside ``name`` is a secret because of it."""
        if len(name) > _LONGEST_BORING or squash(name) in _NOT_BORING:
            return False
        if self._names.verdict(name) != HARMLESS:
            return False
        if len(self._boring) >= _MOST_BORING:
            self._boring.clear()
        self._boring.add(name)
        return True

    def redact(self, text: str) -> str:
        """
        The same object when there is nothing to replace.

        Raises:
            BudgetError: there are more places to look at than the record may have.
        """
        if not _may_hold_pairs(text):
            return text
        pieces: list[str] = []
        done = 0
        named = False
        match = _PAIR.search(text)
        while match is not None:
            self._budget.take_pair()
            position = match.end()
            verdict = self._verdict(text, match)
            if verdict == HARMLESS:
                lowered = match["name"].lower()
                if named and lowered in _VALUE_NAMES:
                    verdict, named = SECRET, False
                elif lowered in _NAME_NAMES:
                    part = self._named_part(text, match)
                    named = part is not None
                    if part is not None and part.start < part.end:
                        pieces += text[done : part.start], REDACTED
                        done = position = part.end
            if verdict != HARMLESS:
                span = self._value(text, match, verdict)
                if span is not None:
                    value = text[span.start : span.end]
                    pieces += text[done : span.start], self._replacement(match, value, span)
                    done = position = max(span.end, position)
            match = _PAIR.search(text, position)
        if not pieces:
            return text
        pieces.append(text[done:])
        return "".join(pieces)

    def _verdict(self, text: str, match: re.Match[str]) -> int:
        name, sign = match["name"], match["sign"]
        start = match.start()
        before = text[start - 1 : start]
        if sign == ",":
            around = text[max(0, start - 12) : start].rstrip("\\\"'bB")
            if not match["close"] or around[-1:] not in ("[", "("):
                return HARMLESS
        elif sign == ">" and before not in ("<", ":"):
            return HARMLESS  # a comparison
        elif sign == ">" and text.startswith("/", match.end()) and _is_route(text, start):
            return HARMLESS
        elif sign == ":" and before == "/" and text[match.end() - 1] == " ":
            return HARMLESS  # a path, as in "/oauth/token: 404"
        verdict = self._names.verdict(name)
        if verdict == HARMLESS and before == " " and name.lower() in _SECOND_WORDS:
            word = _WORD_BEFORE.search(text, max(0, start - 26), start)
            if word is not None:
                verdict = self._names.verdict(f"{word[1]}_{name}")
        if verdict == HARMLESS and sign == "=" and squash(name[-32:]) in _AMBIGUOUS:
            return COUNTABLE
        return verdict

    def _named_part(self, text: str, match: re.Match[str]) -> _Span | None:
        """
        What follows ``name="..."`` when that text is a sensitive name.

        Returns:
            The body of the part of a multipart form, an empty span when this is something else,
            None when the name is harmless.
        """
        opening = _OPEN_QUOTE.match(text, match.end())
        if opening is None:
            return None
        end = _closing_quote(text, opening)
        if end - opening.end() > 128 or not self._names.verdict(text[opening.end() : end]):
            return None
        head = _PART_HEAD.match(text, end)
        if head is None:
            return _Span(end, end, quoted=True)
        return _Span(head.end(), _end(_PART_END, text, head.end()), quoted=False)

    def _value(self, text: str, match: re.Match[str], verdict: int) -> _Span | None:
        """Where the secret beside the name stands, None when there is none."""
        start = match.end()
        opening = _OPEN_QUOTE.match(text, start)
        if not _is_certain(match, verdict):
            # Decided by a bounded look, because what is found harmless is read again: another
            # pair may stand in it.
            start = opening.end() if opening else start
            in_prose = match["sign"] == ":"
            word_end = _WORD_END if in_prose else _FORM_WORD_END
            value = text[start : _end(word_end, text, start, start + _LOOK)]
            if _PLAIN_WORD.fullmatch(value) if in_prose else not _is_random(value):
                return None
        if opening is not None:
            span = _Span(opening.end(), _closing_quote(text, opening), quoted=True)
        else:
            span = self._bare_value(text, match)
        if span.end - span.start <= _LOOK:
            value = text[span.start : span.end]
            if not value or value == REDACTED or value.lower() in _LITERALS:
                return None
            if match["sign"] == ":" and not match["close"] and not span.quoted:
                return None if _is_message(value) else span
        return span

    def _bare_value(self, text: str, match: re.Match[str]) -> _Span:
        start, sign = match.end(), match["sign"]
        if match["close"]:
            start = _skip_blanks(text, start)
        if sign == ">":
            end = text.find("<", start)
            return _Span(start, len(text) if end < 0 else end, quoted=False)
        is_container = text.startswith(("[", "{"), start)
        if is_container and not text.startswith("[REDACTED", start):
            # The text is no JSON that could be parsed, so where this ends is anybody's guess.
            return _Span(start, len(text), quoted=False)
        if self._names.is_header(match["name"]):
            end = _end(_LINE_END if sign == ":" else _FORM_LINE_END, text, start)
        elif sign == ":" and not match["close"] and _is_phrase(match["name"]):
            end = _end(_CLAUSE_END, text, start)
        else:
            word_end = _WORD_END if sign == ":" else _FORM_WORD_END
            end = _end(word_end, text, start)
            if text[start:end].lower() in _SCHEMES:
                end = _end(word_end, text, _skip_blanks(text, end))
        # '"Authorization: Basic ..."': quotes around both name and value.
        quote = text[match.start() - 1 : match.start()]
        if not match["close"] and quote in ("'", '"'):
            closing = text.find(quote, start, end)
            end = end if closing < 0 else closing
        return _Span(start, _without_punctuation(text, start, end), quoted=False)

    def _replacement(self, match: re.Match[str], value: str, span: _Span) -> str:
        name = squash(match["name"][-32:])
        if match["sign"] == ":" and not span.quoted and name.endswith("cookie"):
            return redact_cookie(value, is_response=name.endswith("setcookie"))
        return REDACTED


def redact_cookie(value: str, *, is_response: bool) -> str:
    """
    The value of a ``Cookie`` header with the names of the cookies only.

    ``is_response`` says that it is ``Set-Cookie``, whose attributes are kept.
    """
    parts = []
    for part in value.split(";"):
        name, _, content = part.partition("=")
        is_attribute = is_response and squash(name) in _COOKIE_ATTRIBUTES
        if not part.strip() or (is_attribute and "=" not in content):
            parts.append(part)
        elif content.strip("= ") and _COOKIE_NAME.fullmatch(name):
            parts.append(f"{name}={REDACTED}")
        else:
            blank = part[: len(part) - len(part.lstrip())]
            parts.append(f"{blank}{REDACTED}")
    return ";".join(parts)


def redact_bare_cookies(text: str) -> str:
    """
    Replace the random values in a text that is nothing but ``a=b; c=d``.

    Such a text is the value of a ``Cookie`` header that lost its name.
    """
    if "; " not in text or "=" not in text:
        return text
    parts = text.split("; ")
    for index, part in enumerate(parts):
        name, equals, value = part.partition("=")
        if not equals or not _COOKIE_NAME.fullmatch(name) or " " in value:
            return text
        if _is_random(value) and name.lower() not in _FORWARDED:
            parts[index] = f"{name}={REDACTED}"
    return "; ".join(parts)


def _may_hold_pairs(text: str) -> bool:
    if "=" in text or ":" in text or '",' in text or "'," in text:
        return True
    # An element counts also where its end was cut off.
    return "<" in text and ">" in text


def _is_route(text: str, start: int) -> bool:
    """Whether what begins at ``start`` is the name of a variable in a route."""
    return _ROUTE.search(text, max(0, start - 35), start) is not None


def _is_certain(match: re.Match[str], verdict: int) -> bool:
    """Whether the name alone says that a secret follows, or the value has to look like one."""
    if verdict != COUNTABLE or match["close"] or match["sign"] == ",":
        return True
    return match["sign"] != ":" and squash(match["name"][-32:]) not in _AMBIGUOUS


def _is_phrase(name: str) -> bool:
    return squash(name[-32:]).rstrip("0123456789").endswith(_PHRASES)


def _is_message(value: str) -> bool:
    """Whether what follows "token:" or "password:" is about it: "must not be empty"."""
    words = value.split()
    if not words:
        return True
    first, *rest = words
    if first.rstrip(".,!?)").lower() not in _STATES:
        return False
    # "password: not hunter2" is a message that tells.
    return all(map(_PLAIN_WORD.fullmatch, rest))


def _without_punctuation(text: str, start: int, end: int) -> int:
    """
    Where a value ends without the punctuation of the sentence around it.

    That is at most a sign that could also be the last of the secret, never a letter or digit.
    """
    if end < len(text) and not text[end].isspace() and text[end] not in '"\\':
        return end
    before = text[max(0, start - _LOOK) : start]
    for _ in range(4):
        last = text[end - 1 : end] if end > start + 1 else ""
        if last in _OPENING:
            closes = before.count(_OPENING[last]) > before.count(last)
        elif last == "'":
            closes = before.count("'") % 2 == 1
        else:
            closes = bool(last) and last in _PUNCTUATION
        if not closes:
            break
        end -= 1
    return end


def _is_random(value: str) -> bool:
    """Whether this looks generated: long, with letters and digits."""
    if len(value) < 16:
        return False
    return bool(_DIGIT.search(value, 0, _LOOK) and _LETTER.search(value, 0, _LOOK))


def _closing_quote(text: str, opening: re.Match[str]) -> int:
    """
    Where the content of a quoted text ends.

    The quotes of a text inside another text are escaped, with n backslashes on both sides; a
    quote that belongs to the content carries more.
    """
    escapes, quote = len(opening[1]), opening[2]
    start = opening.end()
    end = text.find(quote, start)
    while end >= 0:
        content = text[start:end]
        run = len(content) - len(content.rstrip("\\"))
        if run <= escapes:
            return end - run
        if run % (2 * escapes + 2) == escapes:
            return end - escapes
        start, end = end + 1, text.find(quote, end + 1)
    return len(text)


def _skip_blanks(text: str, start: int) -> int:
    match = _BLANKS.match(text, start)
    return match.end() if match else start


def _end(pattern: re.Pattern[str], text: str, start: int, limit: int = sys.maxsize) -> int:
    match = pattern.search(text, start, limit)
    return match.start() if match else min(len(text), limit)
