"""
Walks through records and takes texts apart.

Bounded whatever the data, because it runs inside a request, and what it reads may come from an
attacker: texts are looked at up to `MAX_SIZE` and unwrapped (JSON, percent encoding) up to
`MAX_LEVELS` times, JSON inside them up to `MAX_JSON_NODES` and `MAX_DEPTH`, and all texts of a
record together up to `MAX_CHARACTERS` and `MAX_PAIRS`. What goes beyond is replaced by
`NOT_INSPECTED`, never passed.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from guard_agent_redaction.budget import Budget, BudgetError
from guard_agent_redaction.names import COUNTABLE, HARMLESS, unmask
from guard_agent_redaction.pairs import PairRedactor, redact_bare_cookies
from guard_agent_redaction.policies import Settled
from guard_agent_redaction.shapes import (
    PAIRS,
    PLAIN,
    REDACTED,
    is_card_number,
    look_at,
    redact_shapes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guard_agent import Fields
    from guard_agent_redaction.names import SensitiveNames
    from guard_agent_redaction.policies import Policies
    from guard_agent_redaction.pseudonyms import Pseudonyms

NOT_INSPECTED: Final = "[REDACTED: not inspected]"

MAX_SIZE: Final = 16 * 1024
"""Characters of one text. Of a longer one the beginning is kept."""
MAX_CHARACTERS: Final = 48 * 1024
MAX_PAIRS: Final = 1000
"""Places that look like a name with a value; each costs some microseconds."""
_MAX_UNFOLDED = 4 * MAX_SIZE
_CUT = 1024
"""Characters before a cut that go with it: what is cut there could be half a secret."""
MAX_JSON_NODES: Final = 4000
MAX_DEPTH: Final = 16
"""Nested containers, for the record and again for each JSON text in it."""
MAX_LEVELS: Final = 5

_UNTOUCHED = frozenset({"timestamp", "idempotency_key"})
_SHORTEST = 6  # what is shorter holds no name with a value worth hiding
_MOST_ROUNDS = 5
_SMALLEST_CARD = 10**12
_LARGEST_CARD = 10**19
_JSON_STARTS = frozenset('{["')
_ESCAPE = re.compile(r"\\{1,32}(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2}))")
_NAME_KEYS = ("name", "key", "header", "field", "Name", "Key")
_NAME_KEYS_SET = frozenset(_NAME_KEYS)
_VALUE_KEYS = frozenset({"value", "Value"})

_MEMO_SIZE = 2048
_MEMO_TEXT = 256


class Redactor:
    """
    Removes secrets from records, in place.

    Remembers keys and short texts that were found harmless, nothing else. Safe to use from
    several threads: what is remembered is only ever added to or emptied.
    """

    def __init__(
        self,
        names: SensitiveNames,
        patterns: Sequence[re.Pattern[str]] = (),
        policies: Policies | None = None,
        addresses: Pseudonyms | None = None,
    ) -> None:
        self._names = names
        self._budget = Budget(MAX_CHARACTERS, MAX_PAIRS)
        self._pairs = PairRedactor(names, self._budget)
        self._patterns = tuple(patterns)
        self._policies = policies
        self._addresses = addresses
        self._keys: dict[str, int] = {}
        self._clean: set[str] = set()

    def record(self, fields: Fields) -> Fields:
        """Redact a whole record; the time and the idempotency key stay as they are."""
        self._budget.renew()
        untouched = [(name, fields[name]) for name in _UNTOUCHED if name in fields]
        for name, _ in untouched:
            fields[name] = None
        if self._policies is not None:
            self._policies.apply(fields, self)
        self._dict(fields, 0, 0)
        fields.update(untouched)
        return fields

    @property
    def tells_by_text(self) -> bool:
        """Whether what becomes of a text depends on nothing but the text and its name."""
        return self._policies is None and self._addresses is None

    def replaced(self, names: tuple[str, ...]) -> dict[str, str] | None:
        """Under which of the names of one object `REDACTED` takes the place of every text."""
        self._budget.renew()
        if not _VALUE_KEYS.isdisjoint(names) and not _NAME_KEYS_SET.isdisjoint(names):
            return None
        if any(self.text(name) != name for name in names):
            return None
        return {name: REDACTED for name in names if self._names.verdict(name) != HARMLESS}

    def keeps(self, texts: Sequence[str]) -> bool:
        """Whether nothing in any of ``texts`` is redacted."""
        if self._patterns:
            return all(self._keeps(text) for text in texts)
        together = "\n".join(texts)
        if len(together) <= MAX_SIZE:
            look = look_at(together)
            if look == PLAIN or (look == PAIRS and self._pairs.are_harmless(together)):
                return True
        if len(texts) == 1:
            return self._keeps(texts[0])
        # Nearly always one of them is the reason.
        half = len(texts) // 2
        return self.keeps(texts[:half]) and self.keeps(texts[half:])

    def _keeps(self, text: str) -> bool:
        self._budget.renew()
        return self.text(text) == text

    def value(self, value: Any) -> Any:
        """Redact one value whatever its name is, containers in place."""
        if type(value) is str:
            return self.text(value)
        return value if value is None else self._other(value, 0, 0)

    def is_secret(self, key: str) -> bool:
        """Whether the value of ``key`` is a secret because of its name."""
        return self._names.verdict(key) != HARMLESS

    def is_fixed(self, key: str) -> bool:
        """Whether ``key`` is one of the names that nothing overrules."""
        return self._names.is_fixed(key)

    def text(self, text: str, level: int = 0) -> str:
        """
        Redact one text; the same object when nothing was found.

        ``level`` says in how many other texts this one was wrapped.
        """
        if text in self._clean:
            return text
        size = len(text)
        if size < _SHORTEST:
            return text
        try:
            self._budget.take_text(min(size, MAX_SIZE))
            result = self._bounded(text, level)
        except BudgetError:
            return NOT_INSPECTED
        if result != text:
            return result
        if size <= _MEMO_TEXT:
            if len(self._clean) >= _MEMO_SIZE:
                self._clean.clear()
            self._clean.add(text)
        return text

    def _bounded(self, text: str, level: int) -> str:
        if len(text) > MAX_SIZE:
            return NOT_INSPECTED if level else self._beginning(self._settle(text[:MAX_SIZE]))
        result = self._inspect(text, level)
        if level or result == text:
            return result
        result = self._settle(result)
        return result if len(result) <= MAX_SIZE else self._beginning(result)

    def _beginning(self, text: str) -> str:
        """Of a redacted text that is too long, or was, what is not near the cut."""
        if text == NOT_INSPECTED:
            return text
        # The cut changes what is around it, so that is looked at once more.
        result = self._settle(text[: min(len(text), MAX_SIZE) - _CUT] + NOT_INSPECTED)
        return result if len(result) <= MAX_SIZE else NOT_INSPECTED

    def _dict(self, data: dict[str, Any], depth: int, level: int) -> None:
        # This loop is where the time of a record goes: one look at what is known for each key
        # and one for each text, in the order of frequency.
        keys, clean = self._keys, self._clean
        renamed = False
        for key, value in data.items():
            verdict = keys.get(key)
            if verdict is None:
                verdict = self._judge(key)
                renamed |= key not in keys
            if value is None:
                continue
            if verdict:
                data[key] = _conceal(value, verdict)
            elif type(value) is not str:
                data[key] = self._other(value, depth, level)
            elif value not in clean:
                data[key] = self.text(value, level)
        if "value" in data or "Value" in data:
            self._named_value(data)
        if renamed:
            self._rename(data)

    def _list(self, data: list[Any], depth: int, level: int) -> None:
        if len(data) == 2 and type(data[0]) is str:
            # Also in ["password", "token"], which may be a list of names: that cannot be told.
            verdict = self._judge(data[0])
            if verdict:
                data[1] = _conceal(data[1], verdict)
        for index, value in enumerate(data):
            if type(value) is str:
                data[index] = self.text(value, level)
            elif value is not None:
                data[index] = self._other(value, depth, level)

    def _other(self, value: Any, depth: int, level: int) -> Any:
        """Redact what is neither text nor None, containers in place."""
        kind = type(value)
        if kind is dict or kind is list:
            if depth >= MAX_DEPTH:
                return NOT_INSPECTED
            if kind is dict:
                self._dict(value, depth + 1, level)
            else:
                self._list(value, depth + 1, level)
            return value
        if kind is int or kind is float:
            if _SMALLEST_CARD <= value < _LARGEST_CARD and is_card_number(str(int(value))):
                return REDACTED
            return value
        if kind is Settled:
            return value.value
        # Fields are plain JSON data; whatever else this is, nobody looked inside.
        return value if kind is bool else NOT_INSPECTED

    def _named_value(self, data: dict[str, Any]) -> None:
        """Redact the value of ``{"name": "Cookie", "value": ...}``."""
        for name_key in _NAME_KEYS:
            name = data.get(name_key)
            verdict = self._names.verdict(name) if type(name) is str else HARMLESS
            for value_key in ("value", "Value") if verdict else ():
                if value_key in data:
                    data[value_key] = _conceal(data[value_key], verdict)

    def _rename(self, data: dict[str, Any]) -> None:
        """Redact the keys themselves; those that become equal get a number."""
        items = list(data.items())
        data.clear()
        for key, value in items:
            new = unique = self.text(key)
            count = 1
            while unique in data:
                count += 1
                unique = f"{new} ({count})"
            data[unique] = value

    def _judge(self, key: str) -> int:
        """The verdict on a key; remembered unless the key itself may hold a secret."""
        verdict = self._names.verdict(key)
        redacted = self.text(key)
        if redacted != key:
            return verdict or self._names.verdict(redacted)
        if len(key) <= _MEMO_TEXT:
            if len(self._keys) >= _MEMO_SIZE:
                self._keys.clear()
            self._keys[key] = verdict
        return verdict

    def _settle(self, text: str) -> str:
        """Redact what is redacted until nothing new shows: a marker changes what is around it."""
        for _ in range(_MOST_ROUNDS):
            if len(text) > _MAX_UNFOLDED:
                break
            result = self._inspect(text, 0)
            if result == text:
                return text
            text = result
        return NOT_INSPECTED

    def _inspect(self, text: str, level: int) -> str:
        if text.isascii():
            return self._unwrap(text, level)
        plain = unmask(text)
        if len(plain) > _MAX_UNFOLDED:  # one character can become eighteen
            return NOT_INSPECTED
        result = self._unwrap(plain, level)
        return text if result == plain else result

    def _unwrap(self, text: str, level: int) -> str:
        first = text[:1]
        if first in _JSON_STARTS or first.isspace():
            result = self._json(text, level)
            if result is not None:
                return result
        result = self._plain(text)
        if "%" in result or "\\u" in result or "\\x" in result:
            decoded = _decode(result)
            if decoded != result:
                if level >= MAX_LEVELS:
                    return NOT_INSPECTED
                cleaned = self.text(decoded, level + 1)
                if cleaned != decoded:
                    # Readable beats faithful here: the text goes on decoded.
                    return cleaned
        return result

    def _plain(self, text: str) -> str:
        text = redact_bare_cookies(self._pairs.redact(redact_shapes(text)))
        for pattern in self._patterns:
            # Not inside what is replaced already, or every pass would find something new.
            text = REDACTED.join([pattern.sub(REDACTED, part) for part in text.split(REDACTED)])
        if self._addresses is not None:
            text = self._addresses.addresses_in(text)
        return text

    def _json(self, text: str, level: int) -> str | None:
        """``text`` redacted as JSON, None when it is something else."""
        if text.lstrip()[:1] not in _JSON_STARTS:
            return None
        try:
            value, repeated = _parse(text, level)
        except _BeyondBudgetError:
            return NOT_INSPECTED
        except ValueError:
            return None
        before = json.dumps(value)
        value = (
            self.text(value, level + 1) if type(value) is str else self._other(value, 0, level + 1)
        )
        # With a key given twice only the last value was looked at; the others must not pass.
        if not repeated and json.dumps(value) == before:
            return text
        # An escape may stand for half a surrogate pair, which UTF-8 cannot carry unescaped.
        return json.dumps(value, ensure_ascii="\\u" in text, separators=(",", ":"))


def _conceal(value: Any, verdict: int) -> Any:
    """The marker, or ``value`` when there is nothing to hide: None, a flag, a count, nothing."""
    if value is None or value == "" or isinstance(value, bool):
        return value
    if verdict == COUNTABLE and isinstance(value, (int, float)):
        return value
    return value.value if type(value) is Settled else REDACTED


def _decode(text: str) -> str:
    """``text`` without percent encoding and without escapes for characters, as of JSON."""
    if "\\" in text:
        text = _ESCAPE.sub(_character, text)
    return unquote(text) if "%" in text else text


def _character(match: re.Match[str]) -> str:
    code = int(match[1] or match[2], 16)
    return match[0] if 0xD800 <= code < 0xE000 else chr(code)


class _BeyondBudgetError(Exception):
    """There is more in a text than anybody is going to look at."""


def _parse(text: str, level: int) -> tuple[Any, bool]:
    """
    The value of a JSON text, and whether an object in it gives a key more than once.

    Raises:
        ValueError: it is no JSON.
        _BeyondBudgetError: it is too deep or has too many parts.
    """
    repeated = False

    def take_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        data = dict(pairs)
        repeated = repeated or len(data) != len(pairs)
        return data

    try:
        value = json.loads(text, object_pairs_hook=take_pairs, strict=False)
    except RecursionError:
        raise _BeyondBudgetError from None
    nodes = text.count(",") + text.count("{") + text.count("[")
    if level >= MAX_LEVELS or nodes > MAX_JSON_NODES:
        raise _BeyondBudgetError
    return value, repeated
