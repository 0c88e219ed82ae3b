"""
A bounded copy of foreign data as plain JSON values.

Metadata of an event is written by applications and partly by attackers: it can be cyclic, huge,
deep, or full of objects. The copy is what the enrichers see and what is encoded, so whatever the
caller changes later does not matter.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import BaseModel

from guard_agent.core.intake.signals import ends_the_application

if TYPE_CHECKING:
    from guard_agent.core.interfaces import Fields

MAX_DEPTH = 8
MAX_NODES = 2_000
MAX_TEXT = 64 * 1024
"""Characters of all keys and texts of one record together."""

TRUNCATED = "[truncated]"
NON_FINITE = "guard.non_finite"
"""In ``metadata``: how many NaN and infinite numbers became null."""

_MAX_TOP = 200

_QUICK_NODES = 60
_QUICK_TEXT = 1_024
_QUICK_DEPTH = 3
_QUICK_INT = 2**53

_INT_MIN = -(2**63)
_INT_MAX = 2**64 - 1
_PLAIN = frozenset({bool, type(None)})
_ZONES = frozenset({timezone, type(None)})


class _Budget:
    __slots__ = ("foreign", "nodes", "non_finite", "text")

    def __init__(self) -> None:
        self.nodes = MAX_NODES
        self.text = MAX_TEXT
        self.non_finite = 0
        self.foreign = True


def snapshot(source: Mapping[Any, Any], *, foreign: bool = True) -> Fields:
    """
    Copy ``source`` into plain JSON values within the bounds above.

    What does not fit becomes a marker. ``timestamp`` at the top stays a datetime. Never raises for
    any content, never consumes an iterator, and calls foreign code only to turn exceptions, paths
    and the like into text, once each. Without ``foreign`` not even that: objects become the name
    of their type, so that no text appears which was not there before.
    """
    if foreign and (copy := _quick(source, [_QUICK_NODES], 0)) is not None:
        return copy
    return _thorough(source, foreign=foreign)


def _quick(source: Mapping[Any, Any], room: list[int], depth: int) -> Fields | None:  # noqa: C901, PLR0911, PLR0912 - one line a type
    """
    The copy of what nearly every record is: few, short and plain values; None for any other.

    A quarter of the work of `_thorough`, with the same result. ``room[0]`` is the number of
    values that may still come.
    """
    room[0] -= len(source) + 1
    if room[0] < 0:
        return None
    copy = dict(source)  # at once, so that no other thread can change it meanwhile
    try:
        longest = _QUICK_TEXT - len("".join(copy))
    except TypeError:  # a key that is no text
        return None
    if longest < 0:
        return None
    for key, value in copy.items():
        kind = type(value)
        if kind is str:
            if len(value) > longest:
                return None
        elif value is None or kind is bool:
            continue
        elif kind is dict:
            nested = _quick(value, room, depth + 1) if depth < _QUICK_DEPTH else None
            if nested is None:
                return None
            copy[key] = nested
        elif kind is float:
            if value - value != 0.0:  # NaN and infinity
                return None
        elif kind is int:
            if not -_QUICK_INT < value < _QUICK_INT:
                return None
        elif kind is UUID:
            copy[key] = str(value)
        elif (
            depth or kind is not datetime or key != "timestamp" or type(value.tzinfo) not in _ZONES
        ):
            return None
    return copy


def _thorough(source: Mapping[Any, Any], *, foreign: bool) -> Fields:
    budget = _Budget()
    budget.foreign = foreign
    fields: Fields
    if foreign and len(source) <= _MAX_TOP and (names := _length(source)) <= MAX_TEXT:
        budget.text -= names
        fields = {}
        for key, value in source.items():
            kind = type(value)
            if kind is str:
                fields[key] = _text(value, budget)
            elif kind in _PLAIN:
                fields[key] = value
            elif key == "timestamp" and issubclass(kind, datetime):
                fields[key] = _moment(value)
            else:
                fields[key] = _value(value, 1, budget)
    else:
        fields = _mapping(source, 0, budget)
        if isinstance(moment := source.get("timestamp"), datetime):
            fields["timestamp"] = _moment(moment)
    if budget.non_finite:
        metadata = fields.setdefault("metadata", {})
        if type(metadata) is dict:
            metadata[NON_FINITE] = budget.non_finite
    return fields


def _length(source: Mapping[Any, Any]) -> int:
    """Characters of all keys together; more than is allowed when they are no texts."""
    try:
        return len("".join(source))
    except TypeError:
        return MAX_TEXT + 1


def _moment(value: datetime) -> datetime:
    """The same time as a plain datetime, in UTC unless its zone is a fixed offset."""
    # The encoder ends the process when a time zone of Python code raises.
    if type(value) is datetime and type(value.tzinfo) in _ZONES:
        return value
    # Unbound methods, because a subclass may have its own.
    plain = datetime.combine(datetime.date(value), datetime.time(value), timezone.utc)
    try:
        return plain - (datetime.utcoffset(value) or timedelta())
    except Exception:  # noqa: BLE001 - a foreign time zone, or no such year in UTC
        return plain


def _value(value: Any, depth: int, budget: _Budget) -> Any:  # noqa: PLR0911 - one line a type
    budget.nodes -= 1
    if budget.nodes < 0:
        return TRUNCATED
    kind = type(value)
    if kind is str:
        return _text(value, budget)
    if kind in _PLAIN:
        return value
    if kind is int:
        return value if _INT_MIN <= value <= _INT_MAX else _text(_digits(value), budget)
    if kind is float:
        if math.isfinite(value):
            return value
        budget.non_finite += 1
        return None
    if kind is dict:
        return _mapping(value, depth, budget)
    if kind is UUID:
        return str(value)
    if kind is list or kind is tuple:
        return _items(value, depth, budget)
    return _foreign(value, depth, budget)


def _text(value: str, budget: _Budget) -> str:
    length = len(value)
    if length <= budget.text:
        budget.text -= length
        return value
    room, budget.text = max(budget.text, 0), 0
    return value[:room] + TRUNCATED


def _digits(value: int) -> str:
    # str() of an integer of more than 4,300 digits raises, and of fewer takes quadratic time.
    return str(value) if value.bit_length() <= 4096 else hex(value)[:1024] + TRUNCATED


def _mapping(value: Mapping[Any, Any], depth: int, budget: _Budget) -> Any:
    if depth > MAX_DEPTH:
        return TRUNCATED
    copy: dict[str, Any] = {}
    try:
        for key, item in value.items():
            if budget.nodes <= 0 or budget.text <= 0:
                copy[_unused(TRUNCATED, copy)] = len(value) - len(copy)
                break
            name = key if type(key) is str else _key(key)
            if len(name) > budget.text:
                name = name[: budget.text] + TRUNCATED
            budget.text -= len(name)
            if name in copy:
                name = _unused(name, copy)
            copy[name] = _value(item, depth + 1, budget)
    except Exception:  # noqa: BLE001 - a foreign mapping, or another thread changes it right now
        copy[_unused(TRUNCATED, copy)] = None
    return copy


def _unused(name: str, taken: dict[str, Any]) -> str:
    """``name``, or a name like it that is free: different keys may look the same as text."""
    if name not in taken:
        return name
    number = len(taken)
    while (other := f"{name}'{number}") in taken:
        number += 1
    return other


def _key(key: Any) -> str:  # noqa: PLR0911 - one line a type
    kind = type(key)
    if issubclass(kind, str):
        return str.__str__(key)
    if issubclass(kind, bytes):
        return bytes(key[: MAX_TEXT + 1]).decode("utf-8", "replace")
    if kind is int:
        return _digits(key)
    if kind in (bool, float, UUID) or key is None:
        return str(key)
    if kind is tuple:
        return ",".join(_key(part) for part in key[:8] if type(part) is not tuple)
    if issubclass(kind, Enum):
        return _key(key.value)
    return _type_name(key)


def _items(value: Any, depth: int, budget: _Budget) -> Any:
    if depth > MAX_DEPTH:
        return TRUNCATED
    copy: list[Any] = []
    for item in value:
        if budget.nodes <= 0 or budget.text <= 0:
            copy.append(TRUNCATED)
            break
        copy.append(_value(item, depth + 1, budget))
    return copy


def _foreign(value: Any, depth: int, budget: _Budget) -> Any:
    if not budget.foreign:
        return _type_name(value)
    try:
        return _convert(value, type(value), depth, budget)
    except (Exception, SystemExit):  # foreign objects may raise anything; the record
        # goes on without this one.
        if ends_the_application():
            raise
        return _type_name(value)


def _type_name(value: Any) -> str:
    # Not `type(value).__name__`: a metaclass may have its own.
    return f"<{type.__dict__['__name__'].__get__(type(value))}>"


def _convert(value: Any, kind: type, depth: int, budget: _Budget) -> Any:  # noqa: C901, PLR0911, PLR0912 - one line a type
    # Not `isinstance`: it asks `__class__`, which makes a lazy object fetch what it stands for.
    if issubclass(kind, Enum):
        return _value(value.value, depth + 1, budget) if depth <= MAX_DEPTH else TRUNCATED
    if issubclass(kind, str):
        return _text(str.__str__(value), budget)
    if issubclass(kind, int):
        return _value(int(value), depth, budget)
    if issubclass(kind, float):
        return _value(float(value), depth, budget)
    if issubclass(kind, (bytes, bytearray)):
        return _text(bytes(value[: MAX_TEXT + 1]).decode("utf-8", "replace"), budget)
    if issubclass(kind, (datetime, date, time)):
        return value.isoformat()
    if issubclass(kind, (UUID, Decimal)):
        return _text(str(value), budget)
    if issubclass(kind, numbers.Integral):
        return _value(int(value), depth, budget)
    if issubclass(kind, numbers.Real):
        return _value(float(value), depth, budget)
    if issubclass(kind, BaseModel):
        return _mapping({**value.__dict__, **(value.__pydantic_extra__ or {})}, depth, budget)
    if issubclass(kind, Mapping):
        return _mapping(value, depth, budget)
    if issubclass(kind, (list, tuple, AbstractSet)):
        return _items(value, depth, budget)
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        return _mapping({name: getattr(value, name) for name in names}, depth, budget)
    if issubclass(kind, (BaseException, PurePath)):
        text = str(value)
        return _text(text if issubclass(kind, PurePath) else f"{kind.__name__}: {text}", budget)
    return _type_name(value)


def scrub(value: Any) -> Any:
    """Spell out what UTF-8 cannot carry (lone surrogates) in plain JSON values."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        copy: dict[str, Any] = {}
        for key, item in value.items():
            copy[_unused(scrub(key), copy)] = scrub(item)
        return copy
    if isinstance(value, list):
        return [scrub(item) for item in value]
    return value
