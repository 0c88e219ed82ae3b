"""The store behind a Redis handler of the application, with the Guard engine's on a real server."""

from __future__ import annotations

import asyncio
import threading

import pytest
import redis
from guard_core.handlers.redis_handler import RedisManager
from guard_core.models import SecurityConfig
from guard_core.sync.handlers.redis_handler import RedisManager as BlockingRedisManager
from hypothesis import Phase, settings

from guard_agent import DeadLetter, GuardAgentError, HostRedis, Level
from guard_agent.plugins.handler import (
    JOURNAL,
    OWNERS,
    HandlerStore,
    Page,
    decode,
    encode,
    guard_agent_buffer_stores,
)
from guard_agent.plugins.memory import MemorySettings
from guard_agent.testing.contracts import BufferStoreContract
from guard_agent.testing.contracts.state_machine import STATES
from guard_agent.testing.records import make_context, make_record
from guard_agent.testing.redis_server import redis_server  # noqa: F401 - a fixture

BIG = 1 << 30


class Application:
    """An event loop in a thread of its own, like that of a web server."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.close()


@pytest.fixture(scope="module")
def application():
    application = Application()
    yield application
    application.close()


@pytest.fixture(params=["asynchronous", "blocking"])
def host(request, redis_server, application):  # noqa: F811 - the fixture of that name
    """What an application hands over: its Redis manager, which is on a real server."""
    redis_server.command("FLUSHALL")
    config = SecurityConfig(redis_url=redis_server.url, redis_prefix="shop:")
    if request.param == "blocking":
        manager = BlockingRedisManager(config)
        manager.initialize()
        yield HostRedis(manager, None)
        manager.close()
    else:
        manager = RedisManager(config)
        application.run(manager.initialize())
        yield HostRedis(manager, application.loop)
        application.run(manager.close())


def make(host, destinations=("one",), **config):
    return HandlerStore(MemorySettings(), make_context(destinations=destinations, **config), host)


async def journal(host):
    """The ids of the records that a new process would find, in order."""
    found = []
    for key in sorted(await host.call("keys", f"{JOURNAL}:*")):
        page = decode(await host.call("get_key", JOURNAL, key.partition(f"{JOURNAL}:")[2]))
        found += [record.id for record, _ in page.rows]
    return found


class TestHandlerStore(BufferStoreContract):
    """Two owners have records of their own; the next one has what a dead one left."""

    plugin = HandlerStore
    shared = False
    dead_letter_limit = 40
    states = settings(STATES, phases=[Phase.generate])  # what fails is shown in time, if longer

    @pytest.fixture(autouse=True)
    def _host(self, host):
        self.host = host

    def host_redis(self):
        return self.host

    def settings(self):
        return {"max_dead_letters": 40}

    def make_store(self, context):
        return HandlerStore(MemorySettings(**self.settings()), context, self.host)

    async def kill(self, store):
        await self.host.call("delete", OWNERS, store._owner)  # its time has run out


async def test_an_append_is_written_down_before_it_is_confirmed(host):
    store = make(host)
    await store.open()
    records = [make_record() for _ in range(3)]
    assert (await store.append(records, evict=True)).stored == 3
    assert await journal(host) == [record.id for record in records]
    await store.close()


async def test_the_journal_says_what_is_not_delivered_yet(host):
    store = make(host, ("one", "two"))
    await store.open()
    records = [make_record() for _ in range(4)]
    await store.append(records, evict=True)
    for destination, amount in (("one", 4), ("two", 3)):
        lease = await store.lease(destination, amount, BIG, 60)
        assert lease is not None
        await store.ack(lease, list(lease.entries))
    assert await journal(host) == [records[3].id]
    lease = await store.lease("two", 1, BIG, 60)
    assert lease is not None
    await store.bury(lease, list(lease.entries), "refused")
    assert await journal(host) == []
    await store.close()
    assert await host.call("keys", f"{OWNERS}:*") == []


async def test_a_replayed_dead_letter_is_in_the_journal_again(host):
    store = make(host)
    await store.open()
    records = [make_record() for _ in range(3)]
    await store.append(records, evict=True)
    lease = await store.lease("one", 2, BIG, 60)
    assert lease is not None
    await store.bury(lease, list(lease.entries), "refused")
    assert await journal(host) == [records[2].id]

    assert await store.replay("one", 10) == 2

    assert sorted(await journal(host)) == sorted(record.id for record in records)
    lease = await store.lease("one", 10, BIG, 60)
    assert lease is not None
    await store.ack(lease, list(lease.entries))
    assert await host.call("keys", f"{JOURNAL}:*") == []
    await store.close()


async def test_records_that_were_evicted_leave_the_journal(host):
    store = make(host, max_buffer_records=3)
    await store.open()
    records = [make_record() for _ in range(5)]
    for record in records:
        await store.append([record], evict=True)
    assert await journal(host) == [record.id for record in records[2:]]
    await store.close()


async def test_what_did_not_fit_is_not_in_the_journal(host):
    store = make(host, max_buffer_records=3)
    await store.open()
    records = [make_record() for _ in range(5)]
    assert (await store.append(records, evict=False)).stored == 3
    assert await journal(host) == [record.id for record in records[:3]]
    await store.close()


async def test_a_process_takes_over_what_a_dead_one_left_and_one_of_two_gets_it(host):
    dead = make(host)
    await dead.open()
    records = [make_record() for _ in range(50)]
    for start in range(0, 50, 10):
        await dead.append(records[start : start + 10], evict=True)
    await host.call("delete", OWNERS, dead._owner)  # its time has run out

    living = [make(host), make(host)]
    await asyncio.gather(*[store.open() for store in living])
    found = []
    for store in living:
        while (lease := await store.lease("one", 100, BIG, 60)) is not None:
            found += [record.id for record in lease.entries.values()]
            await store.ack(lease, list(lease.entries))
    assert sorted(found) == sorted(record.id for record in records)
    for store in living:
        await store.close()
    assert await host.call("keys", f"{JOURNAL}:*") == []


async def test_leases_that_ran_out_count_also_when_a_search_finds_nothing(host):
    store = make(host)
    await store.open()
    await store.append([make_record() for _ in range(2)], evict=True)
    await store.lease("one", 9, 1 << 20, 0.0)
    store._searched_at = float("-inf")

    assert await store.release_expired() == 2

    await store.close()


async def test_what_a_living_process_wrote_down_is_left_alone(host):
    one, other = make(host), make(host)
    await one.open()
    await one.append([make_record()], evict=True)
    await other.open()
    assert await other.lease("one", 100, BIG, 60) is None
    assert len(await journal(host)) == 1
    await other.close()
    await one.close()


async def test_another_project_on_the_same_server_is_left_alone(host):
    """Its records must not leave with the key of this one."""
    theirs, ours = make(host, project_id="theirs"), make(host, project_id="ours")
    await theirs.open()
    await theirs.append([make_record(1)], evict=True)
    await theirs.close()
    await ours.open()
    assert (await ours.stats())["one"].pending == 0
    await ours.close()
    again = make(host, project_id="theirs")
    await again.open()
    assert (await again.stats())["one"].pending == 1
    await again.close()


async def test_a_restart_sends_nothing_to_a_destination_that_has_it(host):
    """Also when the destinations are others than before."""
    store = make(host, ("one", "two"))
    await store.open()
    await store.append([make_record(n) for n in (1, 2)], evict=True)
    lease = await store.lease("one", 10, BIG, 60)
    await store.ack(lease, list(lease.entries))
    await store.close()

    store = make(host, ("one", "new"))
    await store.open()
    assert {name: depth.pending for name, depth in (await store.stats()).items()} == {
        "one": 0,
        "new": 2,
    }
    await store.close()


async def test_dead_letters_outlive_the_process_up_to_their_bound(host):
    store = make(host)
    await store.open()
    await store.append([make_record(n) for n in range(1, 6)], evict=True)
    lease = await store.lease("one", 5, BIG, 60)
    for entry in list(lease.entries)[::-1]:
        await store.bury(lease, [entry], "refused")
    await host.call("delete", OWNERS, store._owner)

    context = make_context(destinations=("one",))
    store = HandlerStore(MemorySettings(max_dead_letters=3), context, host)
    await store.open()
    kept = [letter.record.id for letter in await store.dead_letters("one")]
    assert kept == ["record-3", "record-2", "record-1"]
    assert await store.replay("one", 2) == 2
    await store.close()

    pages = [
        decode(await host.call("get_key", JOURNAL, key.partition(f"{JOURNAL}:")[2]))
        for key in await host.call("keys", f"{JOURNAL}:*")
    ]
    assert sorted(r.id for page in pages for r, _ in page.rows) == ["record-2", "record-3"]
    assert [letter.record.id for page in pages for _, letter in page.letters] == ["record-1"]


class Held:
    """A blocking handler on the same server, of which one call has done its work and hangs."""

    def __init__(self, server):
        self._client = redis.from_url(server.url, decode_responses=True)
        self.hold = None
        self.refuse = None
        self.reached = threading.Event()
        self.go = threading.Event()

    def _after(self, method, result):
        if self.hold == method:
            self.hold = None
            self.reached.set()
            self.go.wait(60)
        return result

    def get_key(self, space, key):
        return self._client.get(f"{space}:{key}")

    def set_key(self, space, key, value, ttl=None):
        if self.refuse is not None and key.startswith(self.refuse):
            return False
        done = self._client.set(f"{space}:{key}", value, ex=ttl)
        return self._after("set_key" if space == JOURNAL else "", done)

    def delete(self, space, key):
        done = self._client.delete(f"{space}:{key}")
        return self._after("delete" if space == JOURNAL else "", done)

    def keys(self, pattern):
        return self._client.keys(pattern)

    def close(self):
        self.go.set()
        self._client.close()


@pytest.fixture
def held(redis_server):  # noqa: F811 - the fixture of that name
    redis_server.command("FLUSHALL")
    handler = Held(redis_server)
    yield HostRedis(handler, None)
    handler.close()


async def test_p01_an_ack_leaves_alone_what_is_being_written_down(held):
    """
    What is confirmed afterwards must be in the journal, or a kill would lose it.
    """
    store = make(held)
    await store.open()
    await store.append([make_record(1)], evict=False)
    lease = await store.lease("one", 10, BIG, 60.0)
    held.handler.hold = "set_key"
    append = asyncio.ensure_future(store.append([make_record(2)], evict=False))
    await asyncio.to_thread(held.handler.reached.wait, 30)

    await store.ack(lease, list(lease.entries))
    held.handler.go.set()
    assert (await append).stored == 1

    assert await journal(held) == ["record-2"]
    await store.close()


async def test_p01_what_was_being_taken_over_is_not_lost_when_nobody_knows_who_has_it(held):
    """The old page is gone and the handler has not said so: the new one is the only one."""
    dead, living = make(held), make(held)
    await dead.open()
    await dead.append([make_record(1)], evict=False)
    await held.call("delete", OWNERS, dead._owner)
    held.handler.hold = "delete"
    opening = asyncio.ensure_future(living.open())
    await asyncio.to_thread(held.handler.reached.wait, 30)

    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    held.handler.go.set()
    assert await journal(held) == ["record-1"]

    await living.open()
    lease = await living.lease("one", 10, BIG, 60.0)
    assert [record.id for record in lease.entries.values()] == ["record-1"]
    assert await journal(held) == ["record-1"]
    await living.ack(lease, list(lease.entries))
    assert await journal(held) == []
    await living.close()


@pytest.mark.parametrize("replayed", [False, True])
async def test_p01_what_moves_in_the_journal_is_in_its_new_place_before_it_leaves_the_old(
    held, replayed
):
    store = make(held)
    await store.open()
    await store.append([make_record(1)], evict=False)
    lease = await store.lease("one", 10, BIG, 60.0)
    if replayed:
        await store.bury(lease, list(lease.entries), "refused")
    held.handler.hold = "set_key"
    work = store.replay("one", 1) if replayed else store.bury(lease, list(lease.entries), "no")
    moving = asyncio.ensure_future(work)
    await asyncio.to_thread(held.handler.reached.wait, 30)

    # Killed now, the next one has it twice at most.
    await held.call("delete", OWNERS, store._owner)
    other = make(held)
    await other.open()
    found = (await other.stats())["one"]
    assert (found.ready, found.buried) == (1, 1)

    held.handler.go.set()
    assert await moving == 1
    await other.close()


async def test_p01_what_found_no_room_is_kept_while_the_handler_fails(held):
    dead, small = make(held), make(held, max_buffer_records=3)
    await dead.open()
    await dead.append([make_record(n) for n in range(1, 6)], evict=True)
    await dead.close()
    held.handler.refuse = dead._owner
    await small.open()
    assert (await small.stats())["one"].pending == 3

    lease = await small.lease("one", 3, BIG, 60.0)
    await small.ack(lease, list(lease.entries))
    assert sorted(await journal(held)) == [f"record-{n}" for n in range(1, 6)]
    held.handler.refuse = None
    await small.close()
    assert sorted(await journal(held)) == ["record-4", "record-5"]


async def test_there_is_no_room_for_all_that_was_left(host):
    dead = make(host)
    await dead.open()
    records = [make_record() for _ in range(5)]
    await dead.append(records, evict=True)
    await host.call("delete", OWNERS, dead._owner)
    small = make(host, max_buffer_records=3)
    await small.open()
    assert (await small.stats())["one"].pending == 3
    assert sorted(await journal(host)) == sorted(record.id for record in records)
    await small.close()


async def test_a_page_that_cannot_be_read_is_removed_and_said(host, caplog):
    store = make(host)
    dead = f"{store._project}:somebody"
    junk = ['["junk"]', '[2,[[["id","sound",1,0.0,"{}"],[]]],[]]', "[1,[]]", "7", "[2,[],[],7]"]
    for number, text in enumerate(junk):
        await host.call("set_key", JOURNAL, f"{dead}:{number}", text)
    await store.open()
    assert await host.call("keys", f"{JOURNAL}:*") == []
    said = [record.levelname for record in caplog.records if "journal" in record.message]
    assert said == ["WARNING"] * len(junk)
    await store.close()


async def test_a_manager_that_is_switched_off_is_refused(host):
    host.handler.config.enable_redis = False
    with pytest.raises(GuardAgentError, match="does not keep what it is given"):
        await make(host).open()


async def test_without_the_application_s_event_loop_nothing_is_promised(redis_server):  # noqa: F811 - the fixture
    manager = RedisManager(SecurityConfig(redis_url=redis_server.url))
    with pytest.raises(GuardAgentError, match="no event loop"):
        HandlerStore.adopt(HostRedis(manager, None), make_context(destinations=("one",)))


def test_it_is_offered_but_cannot_be_chosen():
    assert guard_agent_buffer_stores() == [HandlerStore]
    assert HandlerStore.level is Level.JOURNAL
    with pytest.raises(GuardAgentError, match="initialize_redis"):
        HandlerStore(MemorySettings(), make_context(destinations=("one",)))


def test_an_object_without_the_methods_is_not_adopted():
    assert (
        HandlerStore.adopt(HostRedis(object(), None), make_context(destinations=("one",))) is None
    )


def test_a_page_holds_any_record():
    records = [make_record(reason="ä\u2028\x00"), make_record(kind="metric")]
    page = Page(
        [(records[0], frozenset()), (records[1], frozenset({"one", "zwölf"}))],
        [("one", DeadLetter(records[0], "refused: ü"))],
    )
    assert decode(encode(page)) == page
    assert decode(encode(page).encode()) == page
