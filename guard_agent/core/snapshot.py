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
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import BaseModel

if TYPE_CHECKING:
    from guard_agent.core.interfaces import Fields

MAX_DEPTH = 8
MAX_NODES = 2_000
MAX_TEXT = 64 * 1024
"""Characters of all keys and texts of one record together."""

TRUNCATED = "[truncated]"

_MAX_TOP = 200
_INT_MIN = -(2**63)
_INT_MAX = 2**64 - 1
_PLAIN = frozenset({bool, type(None)})


class _Budget:
    __slots__ = ("nodes", "text")

    def __init__(self) -> None:
        self.nodes = MAX_NODES
        self.text = MAX_TEXT


def snapshot(source: Mapping[Any, Any]) -> Fields:
    """
    Copy ``source`` into plain JSON values within the bounds above.

    What does not fit becomes a marker. ``timestamp`` and ``idempotency_key`` at the top keep their
    types. Never raises for any content, never consumes an iterator, and calls foreign code only
    to turn exceptions, paths and the like into text, once each.
    """
    budget = _Budget()
    if len(source) > _MAX_TOP:
        bounded: Fields = _mapping(source, 0, budget)
        return bounded
    fields: Fields = {}
    for key, value in source.items():
        kind = type(value)
        if kind is str:
            fields[key] = _text(value, budget)
        elif kind in _PLAIN or (key == "timestamp" and kind is datetime):
            fields[key] = value
        else:
            fields[key] = _value(value, 1, budget)
    return fields


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
        return value if math.isfinite(value) else None
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
    for key, item in value.items():
        if budget.nodes <= 0 or budget.text <= 0:
            copy[TRUNCATED] = len(value) - len(copy)
            break
        name = key if type(key) is str else _key(key)
        if len(name) > budget.text:
            name = name[: budget.text] + TRUNCATED
        budget.text -= len(name)
        while name in copy:
            name += "'"
        copy[name] = _value(item, depth + 1, budget)
    return copy


def _key(key: Any) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, bytes):
        return key.decode("utf-8", "replace")
    if key is None or isinstance(key, (bool, int, float, UUID)):
        return str(key)
    if isinstance(key, tuple):
        return ",".join(_key(part) for part in key[:8] if not isinstance(part, tuple))
    if isinstance(key, Enum):
        return _key(key.value)
    return f"<{type(key).__name__}>"


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
    try:
        return _convert(value, depth, budget)
    except Exception:  # noqa: BLE001 - foreign objects may raise anything; the record goes on without it
        return f"<{type(value).__name__}>"


def _convert(value: Any, depth: int, budget: _Budget) -> Any:  # noqa: C901, PLR0911, PLR0912
    if isinstance(value, Enum):
        return _value(value.value, depth + 1, budget) if depth <= MAX_DEPTH else TRUNCATED
    if isinstance(value, str):
        return _text(str.__str__(value), budget)
    if isinstance(value, int):
        return _value(int(value), depth, budget)
    if isinstance(value, float):
        return _value(float(value), depth, budget)
    if isinstance(value, (bytes, bytearray)):
        return _text(bytes(value[: MAX_TEXT + 1]).decode("utf-8", "replace"), budget)
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (UUID, Decimal)):
        return _text(str(value), budget)
    if isinstance(value, numbers.Integral):
        return _value(int(value), depth, budget)
    if isinstance(value, numbers.Real):
        return _value(float(value), depth, budget)
    if isinstance(value, BaseModel):
        return _mapping({**value.__dict__, **(value.__pydantic_extra__ or {})}, depth, budget)
    if isinstance(value, Mapping):
        return _mapping(value, depth, budget)
    if isinstance(value, (list, tuple, AbstractSet)):
        return _items(value, depth, budget)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return _mapping({name: getattr(value, name) for name in names}, depth, budget)
    if isinstance(value, BaseException):
        return _text(f"{type(value).__name__}: {value}", budget)
    return f"<{type(value).__name__}>"


def scrub(value: Any) -> Any:
    """Replace what UTF-8 cannot carry (lone surrogates) in plain JSON values."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {scrub(key): scrub(item) for key, item in value.items()}
    if isinstance(value, list):
        return [scrub(item) for item in value]
    return value
