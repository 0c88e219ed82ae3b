from __future__ import annotations

import copy
import dataclasses
import json
import math
import numbers
import threading
from collections import OrderedDict, UserDict
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum
from functools import partial
from pathlib import PurePosixPath
from typing import NamedTuple
from uuid import UUID

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from guard_agent.core.intake.snapshot import (
    MAX_DEPTH,
    MAX_NODES,
    MAX_TEXT,
    NON_FINITE,
    TRUNCATED,
    _thorough,
    scrub,
    snapshot,
)

KEY = UUID("6f1c1de2-87c3-4b41-9d43-0d4f3c8e2a11")
MOMENT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone.utc)


def copied(value):
    """What becomes of a value inside ``metadata``."""
    return snapshot({"metadata": {"value": value}})["metadata"]["value"]


def strict(fields):
    """The JSON of ``fields``, read back by a parser that accepts nothing beside the standard."""

    def fail(constant):
        raise AssertionError(constant)

    return json.loads(orjson.dumps(scrub(fields)), parse_constant=fail)


def nodes_in(value):
    if isinstance(value, dict):
        return 1 + sum(nodes_in(item) for item in value.values())
    if isinstance(value, list):
        return 1 + sum(nodes_in(item) for item in value)
    return 1


def text_in(value):
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + text_in(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(text_in(item) for item in value)
    return 0


def depth_of(value):
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth_of, items), default=0) if isinstance(value, (dict, list)) else 0


# --- plain data -----------------------------------------------------------------------------------


def test_plain_data_is_copied_as_it_is():
    source = {
        "timestamp": MOMENT,
        "reason": "SQL injection",
        "status_code": 400,
        "response_time": 0.25,
        "country": None,
        "blocked": True,
        "metadata": {"list": [1, "two", None, False, {"three": 3.0}], "empty": {}, "none": []},
    }

    assert snapshot(source) == source


def test_empty():
    assert snapshot({}) == {}


def test_timestamp_stays_a_datetime_and_the_key_becomes_text():
    fields = snapshot({"timestamp": MOMENT, "idempotency_key": KEY})

    assert fields == {"timestamp": MOMENT, "idempotency_key": str(KEY)}
    assert type(fields["timestamp"]) is datetime


def test_a_subclass_of_datetime_becomes_the_same_time_in_utc():
    class Frozen(datetime):
        def isoformat(self, *args):
            raise RuntimeError

    there = Frozen(2026, 5, 4, 5, 2, 1, tzinfo=timezone(timedelta(hours=2)))

    assert snapshot({"timestamp": there}) == {"timestamp": MOMENT}
    assert type(snapshot({"timestamp": there})["timestamp"]) is datetime


@pytest.mark.parametrize("when", [datetime.min, datetime.max])  # noqa: DTZ901 - zone set below
def test_a_time_that_has_no_year_in_utc_keeps_its_digits(when):
    class Frozen(datetime):
        pass

    hours = 5 if when.year == 1 else -5
    there = Frozen.combine(when.date(), when.time(), timezone(timedelta(hours=hours)))

    assert snapshot({"timestamp": there})["timestamp"] == when.replace(tzinfo=timezone.utc)


def test_d09_what_the_caller_changes_later_does_not_matter():
    source = {"metadata": {"list": [1], "map": {"a": 1}}}
    fields = snapshot(source)

    source["metadata"]["list"].append(2)
    source["metadata"]["map"]["b"] = 2

    assert fields == {"metadata": {"list": [1], "map": {"a": 1}}}


# --- bounds ---------------------------------------------------------------------------------------


def test_d02_a_cycle_ends_at_the_depth():
    loop: dict = {}
    loop["self"] = loop
    ring: list = []
    ring.append(ring)

    fields = snapshot({"metadata": loop, "list": ring})

    assert depth_of(fields) <= MAX_DEPTH + 1
    assert TRUNCATED in orjson.dumps(fields).decode()


def test_d03_depth_is_bounded_exactly():
    def nested(levels):
        value: object = "end"
        for _ in range(levels):
            value = {"in": value}
        return value

    assert snapshot({"metadata": nested(MAX_DEPTH)}) == {"metadata": nested(MAX_DEPTH)}
    deeper = snapshot({"metadata": nested(MAX_DEPTH + 1)})
    assert orjson.dumps(deeper).count(TRUNCATED.encode()) == 1


def test_d03_depth_of_ten_thousand_raises_nothing():
    value: object = 0
    for _ in range(10_000):
        value = [value]

    assert depth_of(snapshot({"metadata": value})) == MAX_DEPTH + 1


def test_d02_a_shared_object_that_fans_out_costs_no_more_than_the_budget():
    value: object = "leaf"
    for _ in range(7):
        value = [value] * 10

    fields = snapshot({"metadata": value})

    assert nodes_in(fields) <= MAX_NODES + MAX_DEPTH + 2
    assert TRUNCATED in orjson.dumps(fields).decode()


def test_d04_a_million_keys_are_cut_with_the_number_of_those_missing():
    source = dict.fromkeys(map(str, range(1_000_000)), 1)

    metadata = snapshot({"metadata": source})["metadata"]

    assert len(metadata) == MAX_NODES
    assert metadata[TRUNCATED] == 1_000_000 - (MAX_NODES - 1)


def test_a_hundred_thousand_fields_are_cut_too():
    fields = snapshot({"timestamp": MOMENT, **dict.fromkeys(map(str, range(100_000)), 1)})

    assert len(fields) == MAX_NODES + 1
    assert fields["timestamp"] == MOMENT
    assert fields[TRUNCATED] == 100_001 - MAX_NODES


def test_a_million_items_are_cut():
    items = snapshot({"metadata": [1] * 1_000_000})["metadata"]

    assert len(items) == MAX_NODES
    assert items[-1] == TRUNCATED


@pytest.mark.parametrize(
    "source",
    [
        {"reason": "x" * 10_000_000},
        {"metadata": {"x" * 10_000_000: 1}},
        {"x" * 10_000_000: 1},
        {"metadata": {"a": "x" * 40_000, "b": "y" * 40_000, "c": 1}},
        {"metadata": [b"x" * 10_000_000]},
        {"metadata": {f"{n:>1000}": n for n in range(100)}},
        {f"{n:>1000}": n for n in range(100)},
    ],
)
def test_d04_texts_and_keys_share_one_budget(source):
    fields = snapshot(source)

    room = MAX_TEXT + (2 + MAX_DEPTH) * len(TRUNCATED)
    assert MAX_TEXT - 1_000 <= text_in(fields) <= room
    assert TRUNCATED in orjson.dumps(fields).decode()


def test_what_fits_exactly_is_not_marked():
    fields = snapshot({"reason": "x" * (MAX_TEXT - len("reason"))})

    assert len(fields["reason"]) == MAX_TEXT - len("reason")
    assert snapshot({"reason": "x" * (MAX_TEXT - len("reason") + 1)})["reason"].endswith(TRUNCATED)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_d01_numbers_that_json_does_not_have_become_null_and_are_counted(number):
    fields = snapshot({"response_time": number, "metadata": {"list": [number, 1.5]}})

    assert fields == {"response_time": None, "metadata": {"list": [None, 1.5], NON_FINITE: 2}}


@pytest.mark.parametrize("number", [0, -1, 2**63, -(2**63), 2**64 - 1])
def test_integers_that_json_parsers_take_stay(number):
    assert copied(number) == number


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**400])
def test_larger_integers_become_their_digits(number):
    assert copied(number) == str(number)


def test_an_integer_of_a_million_digits_is_cut():
    # Its decimal digits would take seconds, and `str` refuses.
    assert copied(1 << 4_000_000).startswith("0x1000")
    assert len(copied(1 << 4_000_000)) < 2_000


# --- other types ----------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Text(str):
    __slots__ = ()

    def __str__(self):
        raise RuntimeError


class Number(int):
    __slots__ = ()


class Real(float):
    __slots__ = ()


@dataclasses.dataclass
class Data:
    name: str
    inner: object = None


class Model(BaseModel):
    model_config = {"extra": "allow"}
    name: str


class Pair(NamedTuple):
    left: int
    right: int


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Text("text"), "text"),
        (Number(7), 7),
        (Real(0.5), 0.5),
        (Real("nan"), None),
        (b"bytes", "bytes"),
        (b"\xff", "\ufffd"),
        (bytearray(b"array"), "array"),
        (Decimal("1.10"), "1.10"),
        (Decimal("NaN"), "NaN"),
        (KEY, str(KEY)),
        (MOMENT.replace(tzinfo=None), "2026-05-04T03:02:01"),
        (MOMENT, "2026-05-04T03:02:01+00:00"),
        (MOMENT.replace(year=1), "0001-05-04T03:02:01+00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (time(3, 4), "03:04:00"),
        ({1}, [1]),
        (frozenset({"a"}), ["a"]),
        ((1, (2,)), [1, [2]]),
        (Pair(1, 2), [1, 2]),
        (OrderedDict(a=1), {"a": 1}),
        (UserDict(a=1), {"a": 1}),
        (Data("n", Data("m")), {"name": "n", "inner": {"name": "m", "inner": None}}),
        (Model(name="n", more=1), {"name": "n", "more": 1}),
        (ValueError("bad"), "ValueError: bad"),
        (PurePosixPath("/etc"), "/etc"),
        (SecretStr("s"), "<SecretStr>"),
        (Data, "<type>"),
        (threading.Lock(), "<lock>"),
        (object(), "<object>"),
        (len, "<builtin_function_or_method>"),
        (range(3), "<range>"),
        (memoryview(b"x"), "<memoryview>"),
    ],
)
def test_d07_other_types_become_a_scalar_a_container_or_their_name(value, wanted):
    result = copied(value)

    assert result == wanted
    assert type(result) is type(wanted)


class Scalar:
    """As the numbers of numpy: none of Python's types, but registered as a number."""

    def __init__(self, value):
        self._value = value

    def __int__(self):
        return int(self._value)

    def __float__(self):
        return float(self._value)

    def __str__(self):
        raise AssertionError

    __repr__ = __str__


class NumpyInteger(Scalar):
    pass


class NumpyFloat(Scalar):
    pass


numbers.Integral.register(NumpyInteger)
numbers.Real.register(NumpyFloat)


class Array:
    """As an array of numpy or a frame of pandas: whatever looks inside may take for ever."""

    dtype = "float64"
    shape = (10**9,)

    def _fail(self, *arguments):
        raise AssertionError

    __iter__ = __len__ = __getitem__ = __array__ = __str__ = __repr__ = __float__ = __bool__ = _fail


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (NumpyInteger(7), 7),
        (NumpyFloat(0.5), 0.5),
        (NumpyFloat("nan"), None),
        (NumpyInteger(2**70), str(2**70)),
        (Array(), "<Array>"),
    ],
)
def test_d07_numbers_of_others_become_numbers_and_their_arrays_a_name(value, wanted):
    assert copied(value) == wanted
    assert copied([value]) == [wanted]


def test_d07_an_open_file_is_neither_read_nor_moved(tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(b"password=hunter2")
    with path.open("rb") as binary, path.open() as text:
        assert copied(binary) == "<BufferedReader>"
        assert copied(text) == "<TextIOWrapper>"
        assert (binary.tell(), text.tell()) == (0, 0)


def test_d07_text_of_django_that_is_translated_later_is_not_translated():
    """
    It translates in the language of whoever looks first, and an object does so with a query.
    """
    asked = []

    class Promise:
        def __getattribute__(self, name):
            asked.append(name)
            return object.__getattribute__(self, name)

        def __str__(self):
            asked.append("__str__")
            return "translated"

        @property
        def __class__(self):
            asked.append("__class__")
            return str

    assert copied(Promise()) == "<Promise>"
    assert asked == []


def test_d07_an_iterator_is_never_consumed():
    numbers = iter(range(3))
    generator = (number for number in range(3))

    assert copied(numbers) == "<range_iterator>"
    assert copied(generator) == "<generator>"
    assert list(numbers) == list(generator) == [0, 1, 2]


class Hostile:
    """Every way in which an object can refuse to be looked at."""

    def __getattribute__(self, name):
        raise SystemExit(name)

    def __str__(self):
        raise SystemExit

    __repr__ = __len__ = __iter__ = __hash__ = __bool__ = __str__


class HostileMeta(type):
    @property
    def __name__(cls):
        raise RuntimeError


class Unnamed(metaclass=HostileMeta):
    pass


class Lazy:
    """Fetches what it stands for when it is asked for its class, as Django's lazy objects do."""

    @property
    def __class__(self):
        raise AssertionError("fetched")


class BadItems(UserDict):
    def items(self):
        yield "one", 1
        raise RuntimeError


class BadLength(UserDict):
    def __len__(self):
        raise SystemExit


class BadError(Exception):
    def __str__(self):
        raise ValueError


class BadNumber(int):
    def __int__(self):
        raise ValueError


@dataclasses.dataclass
class BadData:
    name: str

    def __getattribute__(self, name):
        raise RuntimeError


class BadZone(tzinfo):
    def utcoffset(self, when):
        raise RuntimeError


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (Hostile, "<Hostile>"),
        (partial(Unnamed), "<Unnamed>"),
        (Lazy, "<Lazy>"),
        (BadItems, {"one": 1, TRUNCATED: None}),
        (lambda: BadLength(dict.fromkeys(range(5_000))), "<BadLength>"),
        (BadError, "<BadError>"),
        (lambda: BadNumber(5), "<BadNumber>"),
        (lambda: BadData("x"), "<BadData>"),
        (lambda: datetime(2026, 1, 1, tzinfo=BadZone()), "<datetime>"),
    ],
)
def test_d07_an_object_that_raises_costs_only_itself(make, wanted):
    fields = snapshot({"before": 1, "metadata": {"value": make()}, "after": "x"})

    assert fields == {"before": 1, "metadata": {"value": wanted}, "after": "x"}


def test_d07_foreign_text_is_asked_for_once():
    asked = []

    class CarefulError(Exception):
        def __str__(self):
            asked.append(1)
            return "said"

    assert copied(CarefulError()) == "CarefulError: said"
    assert len(asked) == 1


def test_without_foreign_objects_become_their_type():
    """
    Behind a redactor no text may appear that it has not seen.
    """
    source = {
        "timestamp": MOMENT,
        "reason": "seen",
        "metadata": {"error": ValueError("Bearer abc"), "raw": b"Bearer abc", "n": [1, 2.5, None]},
        "list": [Data("Bearer abc"), Text("Bearer abc")],
    }

    assert snapshot(source, foreign=False) == {
        "timestamp": MOMENT,
        "reason": "seen",
        "metadata": {"error": "<ValueError>", "raw": "<bytes>", "n": [1, 2.5, None]},
        "list": ["<Data>", "<Text>"],
    }


def test_a_dict_that_another_thread_changes_keeps_what_was_read():
    target: dict = {}

    class GrowsError(Exception):
        def __str__(self):
            target["new"] = 1
            return "grown"

    target.update(first=1, second=GrowsError(), third=3)

    assert copied(target) == {"first": 1, "second": "GrowsError: grown", TRUNCATED: None}


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        (1, "1"),
        pytest.param(10**5000, None, id="5,000 digits"),
        (1.5, "1.5"),
        (True, "True"),
        (None, "None"),
        (b"host", "host"),
        (("a", 1, None), "a,1,None"),
        (((((),),),), ""),
        (Colour.RED, "red"),
        (Level.HIGH, "3"),
        (Text("text"), "text"),
        (KEY, str(KEY)),
        (frozenset(), "<frozenset>"),
        (object(), "<object>"),
    ],
)
def test_d06_keys_become_text(key, wanted):
    for fields in (
        snapshot({"metadata": {key: [1]}})["metadata"],
        snapshot({key: 1}, foreign=False),
    ):
        (name,) = fields
        assert type(name) is str
        assert wanted is None or name == wanted


def test_d06_keys_that_look_alike_as_text_are_all_kept():
    source = {1: "a", "1": "b", (1,): "c", b"1": "d", "1'1": "e"}

    metadata = snapshot({"metadata": source})["metadata"]

    assert sorted(metadata.values()) == ["a", "b", "c", "d", "e"]


def test_d06_a_key_that_looks_like_the_marker_is_kept():
    source = {TRUNCATED: "mine", **dict.fromkeys(map(str, range(5_000)))}

    metadata = snapshot({"metadata": source})["metadata"]

    assert metadata[TRUNCATED] == "mine"
    assert len(metadata) == MAX_NODES


def test_thousands_of_keys_that_look_alike_cost_no_more_than_others():
    metadata = snapshot({"metadata": {object(): n for n in range(5_000)}})["metadata"]

    assert len(metadata) == MAX_NODES


# --- lone surrogates ------------------------------------------------------------------------------


def test_scrub_spells_out_what_utf8_cannot_carry():
    fields = {"a\udc80": ["\ud800", {"b": "ok\U0001f600"}], "n": 1}

    assert scrub(fields) == {"a\\udc80": ["\\ud800", {"b": "ok\U0001f600"}], "n": 1}


def test_scrub_keeps_keys_apart():
    assert sorted(scrub({"\ud800": 1, "\\ud800": 2}).values()) == [1, 2]


# --- anything -------------------------------------------------------------------------------------


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(codec=None)),  # with lone surrogates
    st.binary(),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.decimals(),
    st.uuids(),
    st.sampled_from([Colour.RED, Level.HIGH, Text("t"), len, Data("d", {1: 2})]),
    st.builds(object),
    st.builds(BadItems),
)
KEYS = st.one_of(
    st.text(st.characters(codec=None)),
    st.integers(),
    st.booleans(),
    st.binary(),
    st.tuples(st.integers(), st.text()),
    st.just(Colour.RED),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner), st.tuples(inner, inner), st.dictionaries(KEYS, inner)),
    max_leaves=15,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, ANYTHING))
def test_anything_becomes_json_within_bounds(source):
    for foreign in (True, False):
        fields = snapshot(source, foreign=foreign)

        assert all(isinstance(key, str) for key in fields)
        assert nodes_in(fields) <= MAX_NODES + MAX_DEPTH + 2
        assert text_in(fields) <= 2 * MAX_TEXT
        strict(fields)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=15,
)


RECORDS = st.fixed_dictionaries(
    {"timestamp": st.datetimes(timezones=st.none() | st.just(timezone.utc))},
    optional={
        "idempotency_key": st.uuids(),
        "reason": st.text(max_size=2_000),
        "value": st.floats(),
        "status_code": st.integers(),
        "metadata": st.dictionaries(st.text(), PLAIN),
    },
)


@settings(max_examples=80, deadline=None)
@given(RECORDS)
def test_the_short_way_gives_the_same_as_the_long_one(source):
    assert snapshot(source) == _thorough(source, foreign=True)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), PLAIN))
def test_the_source_is_never_changed(source):
    before = copy.deepcopy(source)

    fields = snapshot(source)
    fields.setdefault("metadata", {})
    for value in fields.values():
        if isinstance(value, (dict, list)):
            value.clear()

    assert repr(source) == repr(before)
