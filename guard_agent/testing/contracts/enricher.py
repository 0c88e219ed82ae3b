"""
What every enricher must do, on records as attackers make them.

An enricher passes by subclassing the suite where pytest finds it::

    class TestMyEnricher(EnricherContract):
        plugin = MyEnricher

        def settings(self):
            return {"region": "eu-1"}

What an enricher declares is what is checked: it adds nothing but ``adds``, and one of the stage
``redact`` leaves no secret where secrets are known to stand.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ClassVar

import pytest

from guard_agent import Enricher, EnrichFunction, Fields, Kind, Stage, TextRules
from guard_agent.core.agent import Agent
from guard_agent.core.assembly.inspection import ENRICHER, Seam
from guard_agent.core.intake.glance import MAX_TEXT
from guard_agent.testing.contracts.base import PluginContract, watched
from guard_agent.testing.corpus import SECRET, hostile_records, ordinary_record, secret_records
from guard_agent.testing.records import make_event, make_metric
from guard_agent.testing.transports import RecordingTransport

MOST_ADDED = 64 * 1024
"""Bytes by which a record may grow."""
_MOST = 10**12
_KINDS: tuple[Kind, ...] = ("event", "metric")
_THREADS = 4


class EnricherContract(PluginContract):
    """The contract of `guard_agent.Enricher`."""

    seam: ClassVar[Seam] = ENRICHER
    plugin: ClassVar[type[Enricher]]

    drops: ClassVar[bool] = False
    """Whether the enricher, with these settings, may drop an ordinary record."""

    def bind(self, kind: Kind) -> EnrichFunction:
        """The function of a new enricher; one that changes nothing when it has none for them."""
        function = self.make().bind(kind)
        return _unchanged if function is None else function

    # --- the function -----------------------------------------------------------------------------

    async def test_it_binds_to_a_plain_function_or_to_nothing(self) -> None:
        functions = [self.make().bind(kind) for kind in _KINDS]

        assert any(functions), "it does nothing, neither for events nor for metrics"
        for function in functions:
            assert function is None or callable(function)
            assert not inspect.iscoroutinefunction(function)

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_an_ordinary_record_passes(self, kind: Kind) -> None:
        if not self.drops:
            assert isinstance(self.bind(kind)(ordinary_record(kind)), dict)

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_nothing_is_raised_whatever_the_record(self, kind: Kind) -> None:
        """A record whose enrichment fails is dropped: an attacker must not be able to cause it."""
        function = self.bind(kind)

        for fields in hostile_records(kind):
            shown = _shown(fields)
            try:
                result = function(fields)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a defect
                pytest.fail(f"it raised {error!r} for {shown}")
            assert result is None or type(result) is dict, f"it returned {result!r} for {shown}"

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_it_adds_what_it_declares_and_nothing_else(self, kind: Kind) -> None:
        function = self.bind(kind)

        for fields in hostile_records(kind):
            before, size, shown = _shape(fields), _size(fields), _shown(fields)
            result = function(fields)
            if result is None:
                continue
            added = _added(before, _shape(result), renames=self.plugin.stage is not Stage.DERIVE)
            extra = [path for path in added if not self._declared(path)]
            assert extra == [], f"not in adds, which is {sorted(self.plugin.adds)}: {shown}"
            assert _size(result) <= size + MOST_ADDED, f"it makes too much of {shown}"

    def _declared(self, path: str) -> bool:
        # What holds an added field may have to be added as well, as in "metadata.geo".
        return any(
            path == one or path.startswith(f"{one}.") or one.startswith(f"{path}.")
            for one in self.plugin.adds
        )

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_what_comes_out_is_plain_data_with_its_key_and_time(self, kind: Kind) -> None:
        function = self.bind(kind)

        for fields in hostile_records(kind):
            key, moment, shown = fields["idempotency_key"], fields["timestamp"], _shown(fields)
            result = function(fields)
            if result is None:
                continue
            assert result.get("idempotency_key") == key, f"the key must stay: {shown}"
            assert result.get("timestamp") == moment, f"the time must stay: {shown}"
            foreign = _foreign({k: v for k, v in result.items() if k != "timestamp"})
            assert foreign is None, f"{foreign} is no plain JSON data: {shown}"

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_records_share_nothing(self, kind: Kind) -> None:
        """The pipeline owns the fields; the next enricher may change them in place."""
        function = self.bind(kind)
        first = function(ordinary_record(kind))
        if first is None:
            return
        wanted = _shape(first)
        _empty(first)

        second = function(ordinary_record(kind))

        assert second is not None
        assert _shape(second) == wanted

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_several_threads_may_use_it_at_a_time(self, kind: Kind) -> None:
        function = self.bind(kind)
        start = threading.Barrier(_THREADS)

        def run(_: int) -> list[object]:
            records = hostile_records(kind)
            keys = [fields["idempotency_key"] for fields in records]
            start.wait()
            results = [function(fields) for fields in records]
            return [
                key
                for key, result in zip(keys, results, strict=True)
                if result is not None and result.get("idempotency_key") != key
            ]

        with ThreadPoolExecutor(_THREADS) as pool:
            mixed_up = [key for keys in pool.map(run, range(_THREADS)) for key in keys]

        assert mixed_up == []

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_it_opens_nothing_and_waits_for_nothing(self, kind: Kind) -> None:
        """It runs within a request of the application: what takes time belongs into ``bind``."""
        function = self.bind(kind)
        function(ordinary_record(kind))  # what is imported late is imported now

        with watched() as seen:
            function(ordinary_record(kind))

        assert seen == []

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_its_text_rules_say_the_same_as_the_function(self, kind: Kind) -> None:
        plugin = self.make()
        function, rules = plugin.bind(kind), plugin.text_rules(kind)
        if function is None or rules is None:
            return

        def records() -> list[Fields]:
            found = [ordinary_record(kind), *hostile_records(kind)]
            return [*found, *secret_records()] if kind == "event" else found

        for fields, same in zip(records(), records(), strict=True):
            shown = _shown(fields)
            with suppress(_UntoldError):
                told = _by_text(fields, rules)
                assert told == function(same), shown

    # --- secrets ----------------------------------------------------------------------------------

    async def test_one_that_redacts_leaves_no_secret(self) -> None:
        """Of another stage it must not raise for such a record either."""
        function = self.bind("event")

        for fields in secret_records():
            shown = _shown(fields)
            result = function(fields)
            if result is not None and self.plugin.stage is Stage.REDACT:
                assert SECRET not in _shown(result), f"it leaves the secret in {shown}"

    # --- in an agent ------------------------------------------------------------------------------

    async def test_an_agent_delivers_what_it_makes_of_records(self) -> None:
        plan = self.compose(RecordingTransport, transports=["recording"], buffer_size=1)
        agent = Agent(plan)
        try:
            agent.record("event", make_event())
            agent.record("metric", make_metric())
            await asyncio.wrap_future(agent.flush())
            status = await asyncio.wrap_future(agent.look())
        finally:
            await asyncio.wrap_future(agent.stop())

        books = status.destinations["recording"]
        dropped = {} if not self.drops else books["dropped"]
        assert books["dropped"] == dropped
        assert books["delivered"] + sum(books["dropped"].values()) == 2, books


class _UntoldError(Exception):
    """Only the function can tell."""


def _by_text(fields: Fields, rules: TextRules) -> Fields:
    """What ``rules`` make of a record, or of an object in it."""
    replaced = rules.replaced(tuple(fields))
    if replaced is None:
        raise _UntoldError
    return {
        name: value
        if name in ("timestamp", "idempotency_key")
        else _value_by_text(value, replaced.get(name), rules)
        for name, value in fields.items()
    }


def _value_by_text(value: Any, marker: str | None, rules: TextRules) -> Any:
    if value is None or type(value) is bool:
        return value
    if type(value) is str and len(value) <= MAX_TEXT:
        if marker is not None:
            return marker if value else value
        if rules.keeps([value]):
            return value
    elif marker is None and type(value) is dict:
        return _by_text(value, rules)
    elif marker is None and type(value) in (int, float) and abs(value) < _MOST:
        return value
    raise _UntoldError


def _unchanged(fields: Fields) -> Fields:
    return fields


def _shown(fields: Any) -> str:
    return json.dumps(fields, default=str)[:300] if SECRET not in str(fields) else str(fields)


def _size(fields: Fields) -> int:
    return len(json.dumps(fields, default=str))


def _shape(value: Any) -> Any:
    """The names and positions in ``value``, without the values."""
    if isinstance(value, dict):
        return {str(key): _shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return {str(at): _shape(item) for at, item in enumerate(value)}
    return None


def _added(before: Any, after: Any, *, renames: bool, above: str = "") -> list[str]:
    """
    The dotted paths that are in ``after`` only.

    With ``renames`` a name may stand for one that is gone, because the name itself held a secret or
    was too long.
    """
    if not isinstance(after, dict):
        return []
    known = before if isinstance(before, dict) else {}
    new = after.keys() - known.keys()
    if renames and len(new) <= len(known.keys() - after.keys()):
        new = set()
    found = [f"{above}{name}" for name in sorted(new)]
    for name, item in after.items():
        if name in known or name in new:
            path = f"{above}{name}."
            found += _added(known.get(name), item, renames=renames, above=path)
    return found


def _foreign(value: Any) -> str | None:
    """The name of the first type in ``value`` that JSON does not have."""
    if value is None or type(value) in (str, int, float, bool):
        return None
    if type(value) is list:
        return next((name for item in value if (name := _foreign(item))), None)
    if type(value) is dict:
        keys = next(
            (f"a key of type {type(k).__name__}" for k in value if type(k) is not str), None
        )
        return keys or _foreign(list(value.values()))
    return type(value).__name__


def _empty(value: Any) -> None:
    """Take everything out of ``value``, from the inside."""
    if isinstance(value, (dict, list)):
        for item in list(value.values() if isinstance(value, dict) else value):
            _empty(item)
        value.clear()
