"""The contract suites find plugins that break the contract, and say so in words."""

from __future__ import annotations

import re
import textwrap

import pytest

pytest_plugins = ["pytester"]

TRANSPORTS = """
import json
import time
import urllib.request
from urllib.error import HTTPError

import aiohttp
from guard_agent import (
    Accepted, Batch, PluginSettings, Reject, Retry, Transport, hookimpl, Paused, TooLarge,
)
from guard_agent.testing.contracts import TransportContract


class Settings(PluginSettings):
    url: str


class Sound(Transport):
    name = "sound"
    Settings = Settings

    async def open(self):
        self.session = aiohttp.ClientSession()

    async def close(self):
        if hasattr(self, "session"):
            await self.session.close()

    def body(self, batch):
        return b"\\n".join(record.payload for record in batch.records)

    async def send(self, batch):
        try:
            async with self.session.post(
                self.settings.url, data=self.body(batch), allow_redirects=False
            ) as response:
                return self.verdict(response.status, response.headers)
        except (aiohttp.ClientError, OSError) as error:
            return Retry(str(error) or "gone")

    def verdict(self, status, headers):
        if status == 200:
            return Accepted()
        if status == 429:
            return Retry("busy", after=float(headers["Retry-After"]), throttled=True)
        if status in (400, 422):
            return Reject("refused")
        if status == 413:
            return TooLarge()
        return Retry("broken") if status >= 500 else Paused("denied")


class AlwaysAccepts(Sound):
    def verdict(self, status, headers):
        return Accepted()


class DropsOne(Sound):
    def body(self, batch):
        return b"\\n".join(record.payload for record in batch.records[:99])


class ForgetsTheDelay(Sound):
    def verdict(self, status, headers):
        return Retry("busy") if status == 429 else super().verdict(status, headers)


class TellsItsKey(Sound):
    def verdict(self, status, headers):
        if status == 401:
            return Paused(f"{self.context.config.api_key} is not taken")
        return super().verdict(status, headers)


class SwallowsCancellation(Sound):
    async def send(self, batch):
        try:
            return await super().send(batch)
        except BaseException:
            return Retry("whatever")


class Blocks(Sound):
    async def send(self, batch):
        request = urllib.request.Request(self.settings.url, self.body(batch), method="POST")
        try:
            with urllib.request.urlopen(request) as response:
                return Accepted()
        except HTTPError as error:
            return self.verdict(error.code, error.headers)
        except OSError as error:
            return Retry(str(error))


@hookimpl
def guard_agent_transports():
    return [PLUGIN]


class TestIt(TransportContract):
    plugin = PLUGIN

    def settings(self):
        return {"url": self.peer.url}
"""

ENRICHERS = """
import os
import pathlib
import time

from guard_agent import Enricher, Stage, hookimpl
from guard_agent.testing.contracts import EnricherContract

shared = ["a list of everybody"]


class Sound(Enricher):
    name = "sound"
    stage = Stage.DERIVE
    adds = frozenset({"metadata.region"})

    def add(self, fields):
        if isinstance(fields.get("metadata"), dict):
            fields["metadata"]["region"] = {"name": "eu"}
        return fields

    def bind(self, kind):
        return self.add if kind == "event" else None


class AddsMore(Sound):
    def add(self, fields):
        fields["host"] = "a name"
        return super().add(fields)


class Trusts(Sound):
    def add(self, fields):
        fields["metadata"]["region"] = "eu"
        return fields


class AddsObjects(Sound):
    def add(self, fields):
        if isinstance(fields.get("metadata"), dict):
            fields["metadata"]["region"] = pathlib.Path("/eu")
        return fields


class Shares(Sound):
    def add(self, fields):
        if isinstance(fields.get("metadata"), dict):
            fields["metadata"]["region"] = shared
        return fields


class Reads(Sound):
    def add(self, fields):
        open(__file__).close()
        return super().add(fields)


class TakesTheKey(Sound):
    def add(self, fields):
        fields["idempotency_key"] = "another"
        return fields


class Misses(Sound):
    stage = Stage.REDACT
    adds = frozenset()

    def add(self, fields):
        headers = (fields.get("metadata") or {})
        if isinstance(headers, dict):
            headers.pop("password", None)
        return fields


@hookimpl
def guard_agent_enrichers():
    return [PLUGIN]


class TestIt(EnricherContract):
    plugin = PLUGIN
"""

RULES = """
import json

import aiohttp
from guard_agent import Paused, PluginSettings, Retry, RuleSet, RuleSource, Unchanged, hookimpl
from guard_agent.testing.contracts import RuleSourceContract


class Settings(PluginSettings):
    url: str


class Sound(RuleSource):
    name = "sound"
    Settings = Settings
    interval = 60.0

    async def open(self):
        self.session = aiohttp.ClientSession()

    async def close(self):
        if hasattr(self, "session"):
            await self.session.close()

    def ask(self, known):
        headers = {"If-None-Match": known} if known else {}
        return self.session.get(self.settings.url, headers=headers, allow_redirects=False)

    async def fetch(self, known):
        try:
            async with self.ask(known) as response:
                return self.read(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, OSError) as error:
            return Retry(str(error) or "gone")

    def read(self, status, headers, body):
        if status == 304:
            return Unchanged()
        if status == 200:
            try:
                document = json.loads(body)
            except ValueError as error:
                return Retry(str(error))
            return RuleSet(document, headers["ETag"]) if type(document) is dict else Retry("none")
        if status == 429:
            return Retry("busy", after=float(headers["Retry-After"]), throttled=True)
        return Retry("broken") if status >= 500 else Paused("denied")


class AlwaysNew(Sound):
    def ask(self, known):
        return super().ask(None)


class TakesAnything(Sound):
    def read(self, status, headers, body):
        return RuleSet(json.loads(body), headers.get("ETag")) if status == 200 else Retry("no")


class GivesUp(Sound):
    async def fetch(self, known):
        async with self.ask(known) as response:
            return self.read(response.status, response.headers, await response.read())


@hookimpl
def guard_agent_rule_sources():
    return [PLUGIN]


class TestIt(RuleSourceContract):
    plugin = PLUGIN

    def settings(self):
        return {"url": self.peer.url}
"""

STORES = """
from guard_agent import BufferStore, Level, Peeked, hookimpl
from guard_agent.plugins.memory import MemoryStore
from guard_agent.testing.contracts import BufferStoreContract
from guard_agent.testing.contracts.state_machine import STATES
from hypothesis import settings


class Sound(MemoryStore):
    name = "sound"


class Hidden(Sound):
    peek = BufferStore.peek


class LeasesToLook(Sound):
    async def peek(self, destination, after, limit):
        lease = await self.lease(destination, limit, 1 << 30, 60)
        return Peeked(list(lease.entries.values()) if lease else [], "0")


class ShowsTheReadyOnly(Sound):
    async def peek(self, destination, after, limit):
        lease = await self.lease(destination, limit, 1 << 30, 60)
        if lease:
            await self.release(lease, list(lease.entries))
        return Peeked(list(lease.entries.values()) if lease else [], "0")


class BeginsAnew(Sound):
    async def peek(self, destination, after, limit):
        return await super().peek(destination, None, limit)


class ShowsAllAtOnce(Sound):
    async def peek(self, destination, after, limit):
        return await super().peek(destination, after, 1000)


class CountsTwice(Sound):
    async def peek(self, destination, after, limit):
        seen = await super().peek(destination, after, limit)
        return Peeked(seen.records, seen.position, 2 * seen.passed)


class CountsWhatIsReplayedForOthers(Sound):
    replayed = {}

    async def replay(self, destination, limit):
        done = await super().replay(destination, limit)
        self.replayed = {destination: done}
        return done

    async def peek(self, destination, after, limit):
        seen = await super().peek(destination, after, limit)
        others = sum(done for name, done in self.replayed.items() if name != destination)
        return Peeked(seen.records, seen.position, seen.passed + others)


class CountsWhatWasGoneBefore(Sound):
    async def peek(self, destination, after, limit):
        return await super().peek(destination, "0+0" if after is None else after, limit)


class Promises(Sound):
    level = Level.JOURNAL


@hookimpl
def guard_agent_buffer_stores():
    return [PLUGIN]


class TestIt(BufferStoreContract):
    plugin = PLUGIN
    states = settings(STATES, max_examples=4, database=None)
"""

AGGREGATORS = """
import threading
from uuid import uuid4

import orjson
from guard_agent import Aggregated, Aggregator, Record, hookimpl
from guard_agent.testing.contracts import AggregatorContract

shared_lock = threading.Lock()
shared_groups = {}


class Sound(Aggregator):
    name = "sound"
    interval = 60.0
    most = 50

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.lock = threading.Lock()
        self.groups = {}
        self.absorbed = self.open = 0
        self.closed = False

    def key(self, fields):
        same = {k: v for k, v in fields.items() if k not in ("timestamp", "idempotency_key")}
        try:
            return hash(orjson.dumps(same, option=orjson.OPT_SORT_KEYS))
        except TypeError:
            return None

    def stands_for_several(self, fields):
        return "guard.count" in str(fields.get("metadata"))

    def bind(self, kind, encode):
        if kind == "metric":
            return None

        def take(fields):
            key = None if self.stands_for_several(fields) else self.key(fields)
            with self.lock:
                if key in self.groups and not self.closed:
                    self.open += not self.groups[key][1]
                    self.groups[key][1] += 1
                    self.absorbed += 1
                    return None
            record = encode(fields)
            if key is not None and isinstance(record, Record):
                self.first(key, record, fields)
            return record

        return take

    def first(self, key, record, fields):
        with self.lock:
            if len(self.groups) < self.most:
                self.groups.setdefault(key, [record, 0])

    def collect(self):
        for key in list(self.groups):
            with self.lock:
                record, count = self.groups.pop(key)
                self.open -= bool(count)
            if count:
                yield self.summary(record, count)

    def summary(self, record, count):
        event = orjson.loads(record.payload)
        event["metadata"] = {"guard.count": count, **self.notes(event)}
        event["idempotency_key"] = key = str(uuid4())
        return record._replace(id=key, payload=orjson.dumps(event))

    def notes(self, event):
        return event["metadata"] if isinstance(event.get("metadata"), dict) else {}

    def close(self):
        self.closed = True

    @property
    def books(self):
        with self.lock:
            return Aggregated(self.absorbed, 0, self.open)


class OpensAFile(Sound):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        open(__file__).close()


class Waits(Sound):
    def key(self, fields):
        open(__file__).close()
        return super().key(fields)


class SharesGroups(Sound):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.groups = shared_groups


class CountsOneLess(Sound):
    def summary(self, record, count):
        return super().summary(record, count - 1)


class MergesNothing(Sound):
    def key(self, fields):
        return None


class IgnoresTheMetadata(Sound):
    def key(self, fields):
        return super().key({k: v for k, v in fields.items() if k != "metadata"})


class KeepsTheKey(Sound):
    def summary(self, record, count):
        return super().summary(record, count)._replace(id=record.id)


class MergesItsOwn(Sound):
    def stands_for_several(self, fields):
        return False

    def notes(self, event):
        return {}

    def key(self, fields):
        return hash(str(fields.get("endpoint")))


class Trusts(Sound):
    def key(self, fields):
        return hash((super().key(fields), fields["metadata"]["user"] if fields["metadata"] else 0))


class AbsorbsWhatIsFiltered(Sound):
    def first(self, key, record, fields):
        pass

    def bind(self, kind, encode):
        if kind == "metric":
            return None
        take = super().bind(kind, encode)

        def count_first(fields):
            key = self.key(fields)
            with self.lock:
                if len(self.groups) < self.most and key is not None and key not in self.groups:
                    self.groups[key] = [Record(str(uuid4()), kind, 0, b"{}", 0.0), 0]
            return take(fields)

        return count_first


class KeepsTheFields(Sound):
    def first(self, key, record, fields):
        super().first(key, record, fields)
        if key in self.groups and len(self.groups[key]) == 2:
            self.groups[key].append(dict(fields))

    def collect(self):
        for group in self.groups.values():
            del group[2:]
        return super().collect()


class NoBound(Sound):
    def first(self, key, record, fields):
        super().first(key, record, fields)
        self.seen = [*getattr(self, "seen", ()), key]


class TooManyOpen(Sound):
    most = 100_000


class BooksTooLate(Sound):
    def collect(self):
        with self.lock:
            taken, self.groups = self.groups, {}
        for record, count in taken.values():
            if count:
                yield self.summary(record, count)
        self.open = 0


class TakesAllOutAtOnce(Sound):
    def collect(self):
        return iter(list(super().collect()))


class GoesOn(Sound):
    def close(self):
        pass


class HoldsTheLock(Sound):
    def bind(self, kind, encode):
        def encode_locked(fields):
            with shared_lock:
                return encode(fields)

        return super().bind(kind, encode_locked)


class TakesAnothersPlace(Sound):
    def first(self, key, record, fields):
        with self.lock:
            if len(self.groups) < self.most:
                self.groups[key] = [record, 0]


class LeavesNothingAtOnce(Sound):
    def bind(self, kind, encode):
        if kind == "metric":
            return None

        def take(fields):
            record = encode(fields)
            if self.closed or not isinstance(record, Record):
                return record
            with self.lock:
                self.groups[record.id] = [record, 1]
                self.open += 1
                self.absorbed += 1

        return take


@hookimpl
def guard_agent_aggregators():
    return [PLUGIN]


class TestIt(AggregatorContract):
    plugin = PLUGIN
    at_once = ("event",)
    most_open = 60
    patience = 10 if PLUGIN is Sound else 0.5
"""

SOUND = "every test passes"


def check(pytester, source, cases):
    """
    Run the suite on every class, in one process; returns what pytest said.

    Of a broken class only the test that has to find it runs.
    """
    wanted = []
    for name, test in cases.items():
        text = source.replace("class TestIt", f"class TestIt{name}").replace("PLUGIN", name)
        path = pytester.makepyfile(**{f"test_{name.lower()}": textwrap.dedent(text)})
        wanted.append(path.name if test is SOUND else f"{path.name}::TestIt{name}::{test}")
    options = ["asyncio_mode=strict", "asyncio_default_fixture_loop_scope=function"]
    options = [part for option in options for part in ("-o", option)]
    result = pytester.runpytest_subprocess(
        "-q", "-W", "error", "-p", "no:cacheprovider", "-rf", *options, *wanted
    )
    text = result.stdout.str()
    assert result.parseoutcomes().get("errors", 0) == 0, text
    failed = set(re.findall(r"^FAILED \S+::TestIt(\w+)::", text, re.MULTILINE))
    assert failed == {name for name, test in cases.items() if test is not SOUND}, text
    return text


def test_transports_that_break_the_contract_are_found(pytester):
    text = check(
        pytester,
        TRANSPORTS,
        {
            "Sound": SOUND,
            "AlwaysAccepts": "test_every_answer_has_its_result_and_the_next_batch_is_delivered",
            "DropsOne": "test_a_batch_arrives_whole_and_in_order",
            "ForgetsTheDelay": "test_every_answer_has_its_result_and_the_next_batch_is_delivered",
            "TellsItsKey": "test_every_answer_has_its_result_and_the_next_batch_is_delivered",
            "SwallowsCancellation": "test_a_cancelled_send_ends_and_the_next_one_works",
            "Blocks": "test_an_answer_that_takes_its_time_does_not_hold_up_the_event_loop",
        },
    )
    assert "send() blocked the event loop" in text
    assert "the peer named a delay" in text
    assert "a secret must not be in a reason" in text


def test_enrichers_that_break_the_contract_are_found(pytester):
    text = check(
        pytester,
        ENRICHERS,
        {
            "Sound": SOUND,
            "AddsMore": "test_it_adds_what_it_declares_and_nothing_else",
            "Trusts": "test_nothing_is_raised_whatever_the_record",
            "AddsObjects": "test_what_comes_out_is_plain_data_with_its_key_and_time",
            "Shares": "test_records_share_nothing",
            "Reads": "test_it_opens_nothing_and_waits_for_nothing",
            "TakesTheKey": "test_what_comes_out_is_plain_data_with_its_key_and_time",
            "Misses": "test_one_that_redacts_leaves_no_secret",
        },
    )
    assert "not in adds, which is ['metadata.region']" in text


def test_rule_sources_that_break_the_contract_are_found(pytester):
    check(
        pytester,
        RULES,
        {
            "Sound": SOUND,
            "AlwaysNew": "test_what_is_known_is_not_brought_again",
            "TakesAnything": "test_what_is_no_document_means_later",
            "GivesUp": "test_a_peer_that_is_away_means_later",
        },
    )


def test_stores_that_break_the_contract_are_found(pytester):
    """What sequences of steps find is in test_state_machine.py."""
    check(
        pytester,
        STORES,
        {
            "Sound": SOUND,
            "Hidden": SOUND,
            "LeasesToLook": "test_a_look_takes_nothing_and_changes_nothing",
            "ShowsTheReadyOnly": "test_what_is_leased_is_shown_and_what_is_gone_is_counted",
            "BeginsAnew": "test_the_next_look_shows_what_came_later",
            "ShowsAllAtOnce": "test_much_is_shown_in_parts",
            "CountsTwice": "test_what_is_gone_is_counted_once_over_all_parts",
            "CountsWhatIsReplayedForOthers": (
                "test_what_was_replayed_for_another_destination_is_not_counted"
            ),
            "CountsWhatWasGoneBefore": "test_what_was_gone_before_the_first_look_is_not_counted",
            "Promises": "test_what_the_next_one_finds_is_what_the_level_promises",
        },
    )


def test_aggregators_that_break_the_contract_are_found(pytester):
    text = check(
        pytester,
        AGGREGATORS,
        {
            "Sound": SOUND,
            "OpensAFile": "test_making_one_opens_nothing",
            "Waits": "test_it_opens_nothing_and_waits_for_nothing",
            "SharesGroups": "test_instances_share_nothing",
            "CountsOneLess": "test_what_is_alike_is_merged_and_every_one_is_counted",
            "MergesNothing": "test_what_is_alike_is_merged_and_every_one_is_counted",
            "IgnoresTheMetadata": "test_nothing_that_differs_is_merged",
            "KeepsTheKey": "test_what_leaves_is_a_record_like_any_other",
            "MergesItsOwn": "test_what_stands_for_several_is_not_merged_again",
            "Trusts": "test_nothing_is_raised_or_lost_whatever_the_record",
            "AbsorbsWhatIsFiltered": "test_it_passes_on_why_there_is_no_record",
            "KeepsTheFields": "test_it_keeps_nothing_that_was_not_redacted",
            "NoBound": "test_however_many_differ_what_it_keeps_is_bounded",
            "TooManyOpen": "test_however_many_differ_what_it_keeps_is_bounded",
            "BooksTooLate": "test_the_books_say_what_is_open",
            "TakesAllOutAtOnce": "test_what_was_not_taken_out_remains",
            "GoesOn": "test_once_closed_it_absorbs_nothing_and_gives_all_out",
            "HoldsTheLock": "test_a_thread_that_encodes_holds_up_nobody",
            "TakesAnothersPlace": "test_a_thread_that_encodes_holds_up_nobody",
            "LeavesNothingAtOnce": "test_the_first_leaves_at_once_where_that_is_declared",
        },
    )
    assert "if they are to be merged, name it in may_differ" in text
    assert "it keeps more and more objects" in text
    assert "a lock is held while a record is encoded" in text


@pytest.mark.parametrize("where", ["suite", "plugin"])
def test_a_suite_that_is_too_old_for_a_plugin_says_so_once(pytester, where):
    pytester.makepyfile(
        f"""
        from guard_agent.plugins.truncate import TruncateEnricher
        from guard_agent.testing.contracts import EnricherContract

        class Newer(TruncateEnricher):
            contract_version = {7 if where == "plugin" else 1}

        class TestNewer(EnricherContract):
            plugin = Newer
            contract_version = {7 if where == "suite" else 1}
        """
    )

    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-p", "no:asyncio")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*TestNewer needs version 7 of the contract suites, and *"])
    assert "Traceback" not in result.stdout.str()
