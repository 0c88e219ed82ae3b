"""
What every aggregator must do, with the pipeline in front of which it stands in an agent.

An aggregator passes by subclassing the suite where pytest finds it::

    class TestMyCounter(AggregatorContract):
        plugin = MyCounter

        def settings(self):
            return {"interval": 60}

What it merges is its own affair: ``make_source`` makes what it is given, ``count`` says how many a
record stands for. That is added up: whatever is merged, the sum is what went in.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from logging import Logger
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import orjson
import pytest

from guard_agent import (
    Aggregated,
    Aggregator,
    Enricher,
    Fields,
    Kind,
    PluginSettings,
    Priority,
    Record,
    SecurityEvent,
    SecurityMetric,
    Stage,
)
from guard_agent.core.agent import Agent
from guard_agent.core.assembly.inspection import AGGREGATOR, Seam
from guard_agent.core.intake.pipeline import Pipeline
from guard_agent.core.interfaces import MAX_RECORD_BYTES, DropReason
from guard_agent.testing.contracts.base import PATIENCE, PluginContract, watched
from guard_agent.testing.corpus import SECRET, hostile_records, ordinary_record, secret_records
from guard_agent.testing.records import make_context
from guard_agent.testing.transports import RecordingTransport

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping

    from guard_agent import AbsorbFunction, AggregateFunction, EncodeFunction, EnrichFunction

_KINDS: tuple[Kind, ...] = ("event", "metric")
_MODELS: dict[Kind, type[SecurityEvent | SecurityMetric]] = {
    "event": SecurityEvent,
    "metric": SecurityMetric,
}
_THREADS = 4

DIFFERENCES: dict[Kind, dict[str, tuple[Any, Any]]] = {
    "event": {
        "event_type": ("penetration_attempt", "ip_blocked"),
        "ip_address": ("203.0.113.7", "203.0.113.8"),
        "country": ("DE", "FR"),
        "user_agent": ("Mozilla/5.0", "curl"),
        "action_taken": ("request_blocked", "logged_only"),
        "reason": ("SQL injection", "path traversal"),
        "endpoint": ("/items", "/login"),
        "method": ("GET", "POST"),
        "status_code": (400, 403),
        "decorator_type": ("geo", "rate"),
        "rule_type": ("ip", "path"),
        "pattern_matched": ("union select", "../"),
        "handler_name": ("one", "two"),
        "metadata": ({"user": "ann"}, {"user": "eve"}),
        "tenant": ("a field", "that no model has"),
    },
    "metric": {
        "metric_type": ("response_time", "request_count"),
        "endpoint": ("/items", "/login"),
        "tags": ({"method": "GET", "status": "200"}, {"method": "GET", "status": "404"}),
    },
}
"""Fields in which records may differ, each with two values."""


class AggregatorContract(PluginContract):
    """The contract of `guard_agent.Aggregator`."""

    seam: ClassVar[Seam] = AGGREGATOR
    plugin: ClassVar[type[Aggregator]]

    at_once: ClassVar[tuple[Kind, ...]] = ()
    """Of which kinds the first of those that are alike has to leave at once."""
    may_differ: ClassVar[frozenset[str]] = frozenset()
    """Of `DIFFERENCES`, in what records may differ that are merged nevertheless."""
    most_open: ClassVar[int] = 1000
    """How many records of a kind may be open at most, with these settings; a small number is
    quicker."""

    patience: ClassVar[float] = 10.0
    """Seconds to wait for a thread that nothing should hold up."""

    # --- what the suite has to know of it ---------------------------------------------------------

    def make_source(self, kind: Kind, number: int) -> Fields:
        """The fields of an event or a metric that is merged with others of the same number only."""
        fields = ordinary_record(kind)
        del fields["idempotency_key"]
        fields["endpoint"] = f"/items/{number}"
        return fields

    def count(self, fields: Fields) -> int:
        """How many the record with these fields stands for; one that says nothing, for itself."""
        notes = fields.get("metadata" if "event_type" in fields else "tags")
        return int(notes.get("guard.count", 1)) if type(notes) is dict else 1

    # --- a new one --------------------------------------------------------------------------------

    async def test_it_binds_to_plain_functions_or_to_nothing(self) -> None:
        aggregator = self.make()
        functions = [aggregator.bind(kind, _refuse) for kind in _KINDS]

        assert any(functions), "it does nothing, neither for events nor for metrics"
        for function in functions:
            assert function is None or callable(function)
            assert not inspect.iscoroutinefunction(function)

    async def test_a_new_one_has_nothing(self) -> None:
        intake = Intake(self.make())

        assert intake.aggregator.interval > 0
        assert intake.aggregator.books == Aggregated()
        assert intake.collect() == []

    async def test_what_it_says_of_itself_can_be_shown(self) -> None:
        intake = Intake(self.make())
        self.send(intake, 20)

        assert all(type(sentence) is str for sentence in intake.aggregator.explain())
        assert type(orjson.loads(orjson.dumps(dict(intake.aggregator.describe())))) is dict

    async def test_instances_share_nothing(self) -> None:
        """What a parent absorbed stays with it: a forked child begins with a new instance."""
        one, other = Intake(self.make()), Intake(self.make())
        sent = self.send(one, 60)

        assert other.aggregator.books == Aggregated()
        assert other.collect() == []
        assert self.total(one.finish()) == sent

    # --- what goes in comes out -------------------------------------------------------------------

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_what_is_alike_is_merged_and_every_one_is_counted(self, kind: Kind) -> None:
        intake = Intake(self.make())
        sent = self.send(intake, 300, kinds=[kind], different=3)
        absorbed = intake.absorbed

        records = intake.finish()

        assert self.total(records) == sent
        books = intake.aggregator.books
        assert (books.events if kind == "event" else books.metrics) == absorbed
        assert books.absorbed == absorbed, "the books have it under the other kind"
        if kind in intake.merging:
            assert len(records) < sent, "it merged nothing; see make_source()"

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_nothing_that_differs_is_merged(self, kind: Kind) -> None:
        for name, (value, another) in DIFFERENCES[kind].items():
            if name in self.may_differ:
                continue
            intake = Intake(self.make())
            for chosen in (value, another, value, another, another):
                intake.take(kind, {**self.make_source(kind, 0), name: chosen})

            found = [0, 0]
            for record in intake.finish():
                fields = orjson.loads(record.payload)
                for at, wanted in enumerate((value, another)):
                    found[at] += self.count(fields) * _agrees(fields.get(name), wanted)
            assert found == [2, 3], (
                f"two with {name} {value!r} and three with {another!r} came out as {found}: "
                "if they are to be merged, name it in may_differ"
            )

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_the_first_leaves_at_once_where_that_is_declared(self, kind: Kind) -> None:
        intake = Intake(self.make())

        first = intake.take(kind, self.make_source(kind, 1))

        if kind in self.at_once:
            assert type(first) is Record, "the first of its kind was absorbed"
        assert self.total(intake.finish()) == 1

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_what_leaves_is_a_record_like_any_other(self, kind: Kind) -> None:
        model = _MODELS[kind]
        began = time.time()
        intake = Intake(self.make())
        self.send(intake, 60, kinds=[kind])
        priorities = {record.priority for record in intake.encoded}

        records = intake.finish()

        assert records
        for record in records:
            assert type(record) is Record
            assert record.kind == kind
            assert type(record.priority) is Priority
            assert record.priority in priorities
            assert began <= record.accepted_at <= time.time()
            assert type(record.payload) is bytes
            assert len(record.payload) <= MAX_RECORD_BYTES
            fields = orjson.loads(record.payload)
            assert fields["idempotency_key"] == record.id, "the id of a record is in its payload"
            model.model_validate(fields)
        keys = [record.id for record in records]
        assert len(set(keys)) == len(keys), "two records with one key are one to a collector"

    async def test_what_stands_for_several_is_not_merged_again(self) -> None:
        """As when one agent sends to another: a count must not be taken for one."""
        intake = Intake(self.make())
        self.send(intake, 40, different=2)
        out = [(record.kind, orjson.loads(record.payload)) for record in intake.finish()]
        summaries = [(kind, fields) for kind, fields in out if self.count(fields) > 1]
        assert summaries, "it made no record that stands for several; see make_source()"

        intake = Intake(self.make())
        for _ in range(3):
            for kind, fields in summaries:
                intake.take(kind, {k: v for k, v in fields.items() if k != "idempotency_key"})

        wanted = 3 * sum(self.count(fields) for _, fields in summaries)
        assert self.total(intake.finish()) == wanted

    # --- whatever it is given ---------------------------------------------------------------------

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_nothing_is_raised_or_lost_whatever_the_record(self, kind: Kind) -> None:
        model = _MODELS[kind]
        intake = Intake(self.make())
        for _ in range(2):
            for fields in hostile_records(kind):
                # As an application makes it that sets the attributes of a model afterwards.
                intake.take(kind, model.model_construct(**fields))
                assert intake.raised == [], f"it raised for {str(fields)[:300]}"
        assert len(intake.results) > 100
        refused = sum(isinstance(result, DropReason) for result in intake.results)

        assert self.total(intake.finish()) == len(intake.results) - refused

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_it_passes_on_why_there_is_no_record(self, kind: Kind) -> None:
        """What an enricher filters out is not absorbed, or its count would leave nevertheless."""
        intake = Intake(self.make())
        intake.answer = DropReason.FILTERED

        self.send(intake, 30, kinds=[kind])

        assert intake.results == [DropReason.FILTERED] * 30
        assert intake.aggregator.books == Aggregated()
        assert intake.collect() == []

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_an_encoder_that_raises_costs_that_record_alone(self, kind: Kind) -> None:
        intake = Intake(self.make())
        for number in range(60):
            intake.answer = None if number % 3 else RuntimeError("an enricher failed")
            intake.take(kind, self.make_source(kind, number % 4))
        raised = [error for error in intake.raised if error.args != ("an enricher failed",)]
        assert raised == []
        failed = len(intake.raised)
        assert failed, "it never encodes"
        intake.raised.clear()
        intake.answer = None

        assert self.total(intake.finish()) == 60 - failed

    async def test_it_keeps_nothing_that_was_not_redacted(self) -> None:
        """It sees fields as the application made them; it may keep what ``encode`` returned."""
        intake = Intake(self.make(), _Redactor(PluginSettings(), make_context()))
        for _ in range(3):
            for fields in secret_records():
                intake.take("event", fields)
            intake.take("metric", {**ordinary_record("metric"), "tags": {"q": f"key={SECRET}"}})

        assert [value for value in intake.kept() if SECRET in _text(value)] == []
        assert [one for one in intake.finish() if SECRET in _text(one.payload)] == []

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_however_many_differ_what_it_keeps_is_bounded(self, kind: Kind) -> None:
        intake = Intake(self.make())
        sizes = []
        sent = 0
        for part in range(4):
            for number in range(self.most_open):
                for _ in range(2):
                    intake.take(kind, self.make_source(kind, part * self.most_open + number))
                    sent += 1
            assert intake.aggregator.books.open <= self.most_open
            sizes.append(sum(1 for _ in intake.kept()))

        # Twice as many of them must not need more: not one object for ten.
        assert sizes[3] - sizes[1] < self.most_open / 5, f"it keeps more and more objects: {sizes}"
        assert self.total(intake.finish()) == sent

    # --- the books, and what leaves later ---------------------------------------------------------

    async def test_the_books_say_what_is_open(self) -> None:
        intake = Intake(self.make())
        self.send(intake, 120, different=5)
        before = intake.aggregator.books
        assert before.absorbed == intake.absorbed
        assert 0 < before.open <= before.absorbed

        left = before.open
        for _ in intake.collecting():
            left -= 1
            assert intake.aggregator.books == before._replace(open=left)

        assert left == 0, "so many were said to be open, and were not yielded"

    async def test_what_was_not_taken_out_remains(self) -> None:
        intake = Intake(self.make())
        sent = self.send(intake, 120, different=5)
        before = intake.aggregator.books.open
        assert before > 1, "it merges too little of what make_source() makes"

        intake.aggregator.collect()
        assert intake.aggregator.books.open == before, "nobody used the iterator"
        collected = intake.collecting()
        next(collected)
        assert intake.aggregator.books.open == before - 1
        collected.close()

        records = intake.finish()
        assert len({record.id for record in records}) == len(records)
        assert self.total(records) == sent

    async def test_it_can_be_filled_while_it_is_emptied(self) -> None:
        intake = Intake(self.make())
        sent = self.send(intake, 60, different=5)
        for number, _ in enumerate(intake.collecting()):
            if number < 40:
                sent += self.send(intake, 4, different=5)

        assert self.total(intake.finish()) == sent

    async def test_once_closed_it_absorbs_nothing_and_gives_all_out(self) -> None:
        intake = Intake(self.make())
        sent = self.send(intake, 60)
        absorbed = intake.absorbed

        intake.aggregator.close()
        intake.aggregator.close()
        sent += self.send(intake, 60)
        assert intake.absorbed == absorbed, "what came after the end was absorbed"
        intake.finish()
        sent += self.send(intake, 60)

        assert intake.absorbed == absorbed
        assert self.total(intake.finish()) == sent

    # --- threads ----------------------------------------------------------------------------------

    async def test_threads_lose_nothing_and_the_books_agree_at_any_moment(self) -> None:
        intake = Intake(self.make())
        start, done = threading.Barrier(_THREADS + 1), threading.Event()
        wrong: list[Aggregated] = []

        def send(_: int) -> int:
            start.wait(PATIENCE)
            return self.send(intake, 600, different=7)

        def collect() -> None:
            start.wait(PATIENCE)
            last = Aggregated()
            while not done.is_set():
                now = intake.aggregator.books
                if not (last.absorbed <= now.absorbed and 0 <= now.open <= now.absorbed):
                    wrong.append(now)
                last = now
                intake.collect()

        with ThreadPoolExecutor(_THREADS + 1) as pool:
            collecting = pool.submit(collect)
            try:
                sent = sum(pool.map(send, range(_THREADS), timeout=2 * PATIENCE))
            finally:
                done.set()
            collecting.result(PATIENCE)

        assert wrong == []
        assert intake.aggregator.books.absorbed == intake.absorbed
        assert self.total(intake.finish()) == sent

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_a_thread_that_encodes_holds_up_nobody(self, kind: Kind) -> None:
        """Enrichers are foreign code, and may take their time: no lock is held meanwhile."""
        intake, another = Intake(self.make()), Intake(self.make())
        gate = intake.gate = threading.Event()

        def send(into: Intake, *numbers: int) -> None:
            for number in numbers:
                into.take(kind, self.make_source(kind, number))

        def work() -> None:
            send(intake, 1, 1, 1, 2)
            intake.collect()
            send(intake, 1, 1)
            send(another, 1)
            another.finish()

        slow = threading.Thread(target=send, args=(intake, 1), daemon=True)
        others = threading.Thread(target=work, daemon=True)
        slow.start()
        try:
            assert intake.encoding.wait(PATIENCE), "it encodes nothing"
            others.start()
            others.join(self.patience)
            assert not others.is_alive(), "a lock is held while a record is encoded"
        finally:
            gate.set()
            slow.join(PATIENCE)

        # Of those that are alike several were the first at the same time.
        assert self.total(intake.finish()) == 7
        assert self.total(another.finish()) == 1

    @pytest.mark.parametrize("kind", _KINDS)
    async def test_it_opens_nothing_and_waits_for_nothing(self, kind: Kind) -> None:
        """It runs within a request of the application."""
        intake = Intake(self.make())
        self.send(intake, 20, kinds=[kind])
        intake.collect()

        with watched() as seen:
            sent = self.send(intake, 20, kinds=[kind])
            intake.collect()

        assert seen == []
        assert self.total(intake.finish()) == 20 + sent

    # --- in an agent ------------------------------------------------------------------------------

    async def test_an_agent_delivers_every_count(self) -> None:
        transports, agent = self._agent()
        try:
            for number in range(120):
                for kind in _KINDS:
                    assert agent.record(kind, self.make_source(kind, number % 3)) is None
            await asyncio.wrap_future(agent.flush())
            status = await asyncio.wrap_future(agent.look())
            delivered = [record for transport in transports for record in transport.accepted]
        finally:
            await asyncio.wrap_future(agent.stop())

        books = status.destinations["recording"]
        assert books["dropped"] == {}
        assert (books["accepted"], books["pending"]) == (240, 0), books
        assert books["delivered"] + books["merged"] == 240, books
        assert books["delivered"] < 240, "nothing was merged"
        assert self.total(delivered) == 240

    async def test_an_agent_that_stops_delivers_what_is_open(self) -> None:
        transports, agent = self._agent()
        try:
            for number in range(60):
                for kind in _KINDS:
                    agent.record(kind, self.make_source(kind, number % 3))
        finally:
            await asyncio.wrap_future(agent.stop())

        assert self.total(record for one in transports for record in one.accepted) == 120

    def _agent(self) -> tuple[list[RecordingTransport], Agent]:
        """An agent, and all transports that were made for it."""
        made: list[RecordingTransport] = []

        class Recording(RecordingTransport):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                made.append(self)

        plan = self.compose(
            Recording, transports=["recording"], stop_timeout=PATIENCE, flush_interval=0.1
        )
        return made, Agent(plan)

    # --- what the tests are written with ----------------------------------------------------------

    def send(
        self, intake: Intake, amount: int, *, kinds: Iterable[Kind] = _KINDS, different: int = 4
    ) -> int:
        """``amount`` of each kind, of so many ``different`` sorts in turn; how many that is."""
        sent = 0
        for kind in kinds:
            for number in range(amount):
                source = self.make_source(kind, number % different)
                # What is alike is so whichever way through the pipeline it takes.
                as_model = number // different % 2
                intake.take(kind, _MODELS[kind].model_validate(source) if as_model else source)
                sent += 1
        return sent

    def total(self, records: Iterable[Record]) -> int:
        """How many records these stand for."""
        return sum(self.count(orjson.loads(record.payload)) for record in records)


class Intake:
    """
    An aggregator in front of the pipeline, as in an agent, and all that came out of it.

    ``answer`` is what the encoder says instead of doing its work, or raises. With a ``gate`` the
    next record is encoded when that is set; ``encoding`` says that it has come to it.
    """

    def __init__(self, aggregator: Aggregator, *enrichers: Enricher) -> None:
        self.aggregator = aggregator
        self.out: list[Record] = []
        self.results: list[Record | DropReason | None] = []
        self.encoded: list[Record] = []
        self.raised: list[Exception] = []
        self.merging: set[Kind] = set()
        self.answer: DropReason | Exception | None = None
        self.gate: threading.Event | None = None
        self.encoding = threading.Event()
        self._roots: list[object] = [aggregator]
        self._strange: list[object] = [self, aggregator.context, aggregator.settings]
        pipeline: Any = Pipeline
        self._pipeline: Pipeline = pipeline(enrichers, self)
        self._strange.append(self._pipeline)

    def bind(self, kind: Kind, encode: EncodeFunction) -> AggregateFunction:
        """What the pipeline asks an aggregator for."""

        def encode_and_note(fields: Fields) -> Record | DropReason:
            gate, self.gate = self.gate, None
            if gate is not None:
                self.encoding.set()
                gate.wait(PATIENCE)
            if isinstance(self.answer, Exception):
                raise self.answer
            if self.answer is not None:
                return self.answer
            record = encode(fields)
            if isinstance(record, Record):
                self.encoded.append(record)
            return record

        function = self.aggregator.bind(kind, encode_and_note)
        self._strange.append(encode_and_note)
        if function is not None:
            self.merging.add(kind)
            self._roots.append(function)

        def take(fields: Fields) -> Record | DropReason | None:
            try:
                result = encode_and_note(fields) if function is None else function(fields)
            except Exception as error:
                self.raised.append(error)
                raise
            self.results.append(result)
            if result is not None and not isinstance(result, DropReason):
                self.out.append(result)
            return result

        return take

    def bind_early(self, kind: Kind) -> AbsorbFunction | None:
        """The same for what it absorbs at first sight."""
        function = self.aggregator.bind_early(kind)
        if function is None:
            return None
        self._roots.append(function)

        def absorb(values: Mapping[str, Any]) -> bool:
            absorbed = function(values)
            if absorbed:
                self.results.append(None)
            return absorbed

        return absorb

    def take(self, kind: Kind, source: object) -> Record | DropReason | None:
        """As an application reports it; an exception is noted, and the record goes past it."""
        return self._pipeline.take(kind, source)

    @property
    def absorbed(self) -> int:
        """How many did not leave."""
        return sum(result is None for result in self.results)

    def collecting(self) -> Generator[Record, None, None]:
        for record in self.aggregator.collect():
            self.out.append(record)
            yield record

    def collect(self) -> list[Record]:
        return list(self.collecting())

    def finish(self) -> list[Record]:
        """Close it and take out what is open; all that ever came out."""
        assert self.raised == []
        self.aggregator.close()
        self.collect()
        assert self.aggregator.books.open == 0, "the books say that there is more"
        return list(self.out)

    def kept(self) -> Iterator[object]:
        """All objects that the aggregator holds on to, but for what it was given at its making."""
        known = {id(one) for one in self._strange}
        todo = list(self._roots)
        while todo:
            value = todo.pop()
            if id(value) in known or isinstance(value, (ModuleType, type, Logger)):
                continue
            known.add(id(value))
            yield value
            if isinstance(value, FunctionType):
                # And not the module that it is in.
                todo += value.__closure__ or ()
                todo += value.__defaults__ or ()
            elif not (type(value) is dict and "__builtins__" in value):
                todo += gc.get_referents(value)


class _Redactor(Enricher):
    """Stands for the redaction, which comes behind the aggregator."""

    name = "redactor"
    stage = Stage.REDACT

    def bind(self, kind: Kind) -> EnrichFunction:  # noqa: ARG002 - as an enricher has it
        return _without_secret


def _without_secret(value: Any) -> Any:
    if type(value) is str:
        return value.replace(SECRET, "[redacted]")
    if type(value) is dict:
        return {_without_secret(key): _without_secret(item) for key, item in value.items()}
    return [_without_secret(item) for item in value] if type(value) is list else value


def _refuse(_: Fields) -> Record:
    raise NotImplementedError


def _agrees(found: Any, wanted: Any) -> bool:
    """Whether it is that, perhaps with notes beside it."""
    if type(wanted) is dict and type(found) is dict:
        return wanted.items() <= found.items()
    return bool(found == wanted)


def _text(value: object) -> str:
    if isinstance(value, (bytes, bytearray)):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else ""
