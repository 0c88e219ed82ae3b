"""What the store does on a healthy server, beyond the contract."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from guard_agent import Appended, DestinationDepth, Priority
from guard_agent.testing.records import make_record, make_records
from guard_agent_redis import StoreUnavailableError


def keys_of(server, store):
    return sorted(key.decode().removeprefix(store._base) for key in server.command("KEYS", "*"))


async def test_nothing_is_left_of_records_that_every_destination_has(server, kit):
    async with kit.opened(server.url, ("one", "two")) as store:
        for priority in Priority:
            await store.append(make_records(50, priority=priority), evict=True)
            await store.append([make_record(51, priority=priority)], evict=True)
        for name in ("one", "two"):
            assert len(await kit.drain(store, name)) == 204
        for priority in Priority:
            stream = f"{store._base}records:{int(priority)}"
            assert server.command("XLEN", stream) == 0
            for name in ("one", "two"):
                assert server.command("XPENDING", stream, name)["pending"] == 0
        assert not [key for key in keys_of(server, store) if "state" in key or "dead" in key]


async def test_a_partly_settled_entry_stays_until_its_last_record_is_settled(server, kit):
    async with kit.opened(server.url) as store:
        await store.append(make_records(100), evict=True)
        stream = f"{store._base}records:{int(Priority.CHANGE)}"
        lease = await kit.lease(store)
        entries = list(lease.entries)

        await store.ack(lease, entries[:40] + entries[41:])
        assert server.command("XLEN", stream) == 1
        assert server.command("XPENDING", stream, "one")["pending"] == 1

        await store.release(lease, [entries[40]])
        assert server.command("XPENDING", stream, "one")["pending"] == 0
        assert await kit.drain(store) == ["record-41"]
        assert server.command("XLEN", stream) == 0


async def test_an_entry_holds_no_more_than_1280_kib_besides_a_single_large_record(server, kit):
    async with kit.opened(server.url, max_bytes=1 << 24) as store:
        await store.append(make_records(40, size=1 << 16), evict=True)
        await store.append([make_record(41, size=2_000_000), make_record(42)], evict=True)

        stream = f"{store._base}records:{int(Priority.CHANGE)}"
        sizes = [int(fields[5]) for _, fields in raw_entries(server, stream)]

        assert sizes[:2] == [20 << 16, 20 << 16]
        assert sizes[2] == 2_000_000
        assert len(sizes) == 4


def raw_entries(server, stream):
    """Ids and flat fields, whatever the client makes of them."""
    found = []
    for entry, fields in server.command("XRANGE", stream, "-", "+"):
        found.append((entry, [word for pair in fields.items() for word in pair]))
    return found


async def test_two_owners_share_one_store(server, kit):
    async with (
        kit.opened(server.url, project="shared") as one,
        kit.opened(server.url, project="shared") as two,
    ):
        await one.append(make_records(6), evict=True)
        first = await kit.lease(one, amount=2)
        second = await kit.lease(two, amount=3)

        assert kit.ids(first) == ["record-1", "record-2"]
        assert kit.ids(second) == ["record-3", "record-4", "record-5"]
        assert await two.ack(second, list(second.entries)) == 3
        assert await two.ack(first, list(first.entries)) == 2
        assert await one.stats() == await two.stats()
        assert await kit.drain(two) == ["record-6"]


async def test_projects_and_prefixes_keep_apart(server, kit):
    async with (
        kit.opened(server.url, project="a") as one,
        kit.opened(server.url, project="b") as two,
        kit.opened(server.url, project="a", prefix="other") as three,
    ):
        await one.append(make_records(1), evict=True)

        assert await kit.lease(two) is None
        assert await kit.lease(three) is None
        assert await kit.lease(one) is not None


async def test_braces_in_the_project_do_not_move_keys_to_other_slots(kit, server):
    async with kit.opened(server.url, project="a}{b") as store:
        await store.append(make_records(2), evict=True)
        assert {key.partition(b"}")[0] for key in server.command("KEYS", "*")} == {
            b"guard-agent:{a%7D%7Bb"
        }
        assert len(await kit.drain(store)) == 2


async def test_the_lease_of_a_dead_owner_goes_to_a_living_one(server, kit):
    """The server's clock decides, and it takes no more than the time of the lease."""
    living = kit.make(server.url, project="shared")
    await living.open()
    dead = kit.make(server.url, project="shared")
    await dead.open()
    await dead.append(make_records(3), evict=True)
    started = time.monotonic()
    assert len((await kit.lease(dead, ttl=0.3)).entries) == 3
    await dead._link.close()  # as when its process is killed: it says nothing to the server

    async def reclaimed():
        await living.release_expired()
        return await kit.lease(living)

    lease = await kit.until(reclaimed)
    took = time.monotonic() - started
    await living.close()

    assert len(lease.entries) == 3
    assert took > 0.25


async def test_eight_owners_at_once_get_every_record_once(server, kit):
    """No faults, no duplicates."""
    stores = [kit.make(server.url, project="shared", config=BOUNDS) for _ in range(8)]
    await asyncio.gather(*(store.open() for store in stores))
    produced, delivered = [], []
    chance = random.Random(8)

    async def produce(store, owner):
        for turn in range(25):
            records = [
                make_record(owner * 10_000 + turn * 100 + n, priority=Priority(n % 4))
                for n in range(chance.randint(1, 40))
            ]
            assert (await store.append(records, evict=False)).stored == len(records)
            produced.extend(record.id for record in records)

    async def deliver(store, done):
        while True:
            ended = done.is_set()
            lease = await kit.lease(store, amount=chance.randint(1, 70))
            if lease is None:
                if ended:
                    return
                await asyncio.sleep(0)
                continue
            entries = list(lease.entries)
            keep = chance.randint(0, len(entries))
            delivered.extend(lease.entries[entry].id for entry in entries[keep:])
            assert await store.ack(lease, entries[keep:]) == len(entries) - keep
            assert await store.release(lease, entries) == keep

    done = asyncio.Event()
    deliveries = [asyncio.ensure_future(deliver(store, done)) for store in stores]
    await asyncio.gather(*(produce(store, owner) for owner, store in enumerate(stores, 1)))
    done.set()
    await asyncio.gather(*deliveries)
    left = await kit.drain(stores[0])
    stats = await stores[0].stats()
    await asyncio.gather(*(store.close() for store in stores))

    assert sorted(delivered + left) == sorted(produced)
    assert stats == {"one": DestinationDepth()}


BOUNDS = {"max_buffer_records": 1_000_000, "max_buffer_bytes": 1 << 30}


# --- destinations that come and go ----------------------------------------------------------------


async def test_a_destination_that_comes_later_gets_what_comes_later(server, kit):
    async with kit.opened(server.url, ("one",), project="shared") as old:
        await old.append(make_records(2), evict=True)
        async with kit.opened(server.url, ("one", "two"), project="shared") as new:
            await new.append([make_record(3)], evict=True)

            assert (await new.stats())["two"].pending == 1
            assert await kit.drain(new, "two") == ["record-3"]
            assert await kit.drain(old) == ["record-1", "record-2", "record-3"]
            assert (await new.stats()) == dict.fromkeys(("one", "two"), DestinationDepth())


async def test_an_owner_keeps_records_for_destinations_it_does_not_have(server, kit):
    """While a new configuration is rolled out, both are at work."""
    async with (
        kit.opened(server.url, ("one", "two"), project="shared") as both,
        kit.opened(server.url, ("one",), project="shared", max_records=3) as single,
    ):
        await single.append(make_records(3), evict=True)
        assert len(await kit.drain(single)) == 3

        assert await single.append([make_record(4)], evict=False) == Appended(0)
        # What it evicts only concerns the other one.
        assert await single.append([make_record(4)], evict=True) == Appended(1)
        assert await kit.drain(both, "two") == ["record-2", "record-3", "record-4"]


async def test_a_destination_nobody_asks_for_any_more_is_forgotten(server, kit):
    async with kit.opened(server.url, ("one", "two:x"), project="shared") as old:
        await old.append(make_records(5), evict=True)
        lease = await kit.lease(old, "two:x", amount=2)
        await old.ack(lease, list(lease.entries))
        assert len(await kit.drain(old, "one")) == 5
        await old.append([make_record(6)], evict=True)
    async with kit.opened(server.url, ("one",), project="shared", max_records=4) as new:
        assert await new.append([make_record(7)], evict=False) == Appended(0)
        # A day later, in short.
        await asyncio.sleep(0.005)
        await new._script(new._link, "open", 0, 1, "one")

        assert await new.append([make_record(7)], evict=False) == Appended(1)
        assert (await new.stats())["one"].pending == 2
        assert await kit.drain(new) == ["record-6", "record-7"]
        assert not [key for key in keys_of(server, new) if "two" in key]
        assert not [name for name in server.command("HKEYS", f"{new._base}meta") if b"two" in name]


async def test_an_owner_leaves_no_consumer_behind(server, kit):
    async with kit.opened(server.url) as store:
        await store.append(make_records(1), evict=True)
        await kit.drain(store)
        stream = f"{store._base}records:{int(Priority.CHANGE)}"
        assert len(server.command("XINFO", "CONSUMERS", stream, "one")) == 1

    assert server.command("XINFO", "CONSUMERS", stream, "one") == []


async def test_a_consumer_that_holds_something_stays(server, kit):
    async with kit.opened(server.url) as store:
        await store.append(make_records(1), evict=True)
        await kit.lease(store)
        stream = f"{store._base}records:{int(Priority.CHANGE)}"

    assert len(server.command("XINFO", "CONSUMERS", stream, "one")) == 1


# --- bounds ---------------------------------------------------------------------------------------


async def test_without_asking_an_owner_adds_no_more_than_its_share(server, kit):
    """Each owner may exceed the bound by 1/128 of it, and only from below the half of it."""
    stores = [kit.make(server.url, project="shared", max_records=1280) for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    first, *others = stores
    for store in others:
        await store.stats()  # the store is empty: they may add 10 records each
    assert (await first.append(make_records(1280), evict=False)).stored == 1280

    stored = 0
    for store in others:
        for n in range(30):
            stored += (await store.append([make_record(n)], evict=False)).stored
    total = (await first.stats())["one"].pending
    await asyncio.gather(*(store.close() for store in stores))

    assert stored == 30
    assert total == 1310


async def test_records_added_without_asking_are_counted_by_others(server, kit):
    async with (
        kit.opened(server.url, project="shared") as one,
        kit.opened(server.url, project="shared") as two,
    ):
        await one.stats()
        server.command("CONFIG", "RESETSTAT")
        for n in range(20):
            await one.append([make_record(n, size=100)], evict=True)
        assert server.command_counts().get("xadd") == 20
        assert "evalsha" not in server.command_counts()

        depth = (await two.stats())["one"]

        assert (depth.ready, depth.bytes) == (20, 2000)
        assert len(await kit.drain(two)) == 20
        assert (await one.stats())["one"] == DestinationDepth()


# --- cost -----------------------------------------------------------------------------------------


async def cycle(store, kit, appended_at_once, appends):
    for n in range(appends):
        records = make_records(appended_at_once, priority=Priority(n % 4))
        await store.append(records, evict=True)
    delivered = 0
    while (lease := await store.lease("one", 1000, 256 * 1024, 60.0)) is not None:
        delivered += len(lease.entries)
        await store.ack(lease, list(lease.entries))
    return delivered


async def test_a_burst_costs_at_most_a_tenth_of_a_command_for_each_record(server, kit):
    """Commands inside scripts count as well."""
    async with kit.opened(server.url) as store:
        server.command("CONFIG", "RESETSTAT")
        delivered = await cycle(store, kit, 1000, 5)

    assert delivered == 5000
    assert sum(server.command_counts().values()) <= 0.1 * delivered


async def test_a_trickle_costs_at_most_two_and_a_half_commands_for_each_record(server, kit):
    """As the agent does it: records one by one, delivery every 100, housekeeping with each."""
    async with kit.opened(server.url) as store:
        server.command("CONFIG", "RESETSTAT")
        delivered = 0
        for _ in range(5):
            delivered += await cycle(store, kit, 1, 100)
            await store.release_expired()
            await store.stats()

    assert delivered == 500
    assert sum(server.command_counts().values()) <= 2.5 * delivered


async def test_a_thousand_tasks_use_two_connections(server, kit):
    async with kit.opened(server.url) as store:
        await asyncio.gather(*(store.append([make_record(n)], evict=True) for n in range(1000)))
        clients = server.command("CLIENT", "LIST").splitlines()

        assert len(clients) <= 2 + 1  # and the one that asks
        assert (await store.stats())["one"].pending == 1000


# --- cancellation ---------------------------------------------------------------------------------


async def cancelled_after(steps, work):
    """Run ``work`` for some turns of the loop, then cancel it; whether it was still running."""
    task = asyncio.ensure_future(work)
    for _ in range(steps):
        await asyncio.sleep(0)
    if task.done():
        task.result()
        return False
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return True


async def test_p08_a_cancelled_append_did_not_happen(server, kit):
    """The agent keeps the records, and would otherwise bring them a second time."""
    async with kit.opened(server.url) as store:
        for amount in (1, 300):
            expected = 0
            for steps in range(1000):
                await store.stats()
                records = make_records(amount, priority=Priority(steps % 4))
                if not await cancelled_after(steps, store.append(records, evict=True)):
                    expected += amount
                assert (await store.stats())["one"].pending == expected
                if expected:
                    break
            assert len(await kit.drain(store)) == expected


async def test_p08_a_cancelled_lease_is_given_back(server, kit):
    async with kit.opened(server.url) as store:
        await store.append(make_records(10), evict=True)
        for steps in range(1000):
            if not await cancelled_after(steps, kit.lease(store)):
                break
            depth = (await store.stats())["one"]
            assert (depth.ready, depth.leased) == (10, 0), steps
        assert steps > 3


async def test_p08_a_cancelled_ack_leaves_nothing_half_done(server, kit):
    async with kit.opened(server.url) as store:
        for steps in range(1000):
            await store.append(make_records(10), evict=True)
            lease = await kit.lease(store)
            running = await cancelled_after(steps, store.ack(lease, list(lease.entries)))
            left = await store.release(lease, list(lease.entries))
            assert left in (0, 10)
            assert len(await kit.drain(store)) == left
            if not running:
                break


# --- life -----------------------------------------------------------------------------------------


async def test_a_store_that_is_not_open_says_so(server, kit):
    with pytest.raises(StoreUnavailableError, match="not open"):
        await kit.make(server.url).stats()


async def test_an_unknown_destination_is_named_in_the_error(server, kit):
    async with kit.opened(server.url, ("http", "jsonl")) as store:
        with pytest.raises(ValueError, match="no destination 'htpp'; it was made for: http, jsonl"):
            await kit.lease(store, "htpp")


async def test_a_store_without_destinations_keeps_nothing(server, kit):
    async with kit.opened(server.url, ()) as store:
        assert await store.append(make_records(3), evict=True) == Appended(3)
        assert await store.stats() == {}


async def test_a_store_can_be_opened_again(server, kit):
    store = kit.make(server.url)
    await store.open()
    await store.append(make_records(2), evict=True)
    await store.close()
    await store.open()
    assert len(await kit.drain(store)) == 2
    await store.close()


async def test_dead_letters_are_bounded_in_bytes(server, kit):
    async with kit.opened(server.url, max_dead_letter_bytes=250) as store:
        await store.append(make_records(4, size=100), evict=True)
        lease = await kit.lease(store)
        assert await store.bury(lease, list(lease.entries), "refused") == 4

        assert [letter.record.id for letter in await store.dead_letters("one")] == [
            "record-3",
            "record-4",
        ]
        assert (await store.stats())["one"].buried == 2


# --- a look that leaves everything as it is -------------------------------------------------------


def seen(peeked):
    return [record.id for record in peeked.records], peeked.passed


async def test_looks_go_on_from_each_other_in_order_of_acceptance(server, kit):
    async with kit.opened(server.url, ("one", "two")) as store:
        low = make_records(3, priority=Priority.METRIC, kind="metric")
        high = [make_record(n, priority=Priority.ATTACK) for n in (4, 5)]
        await store.append(high, evict=True)
        await store.append(low, evict=True)

        first = await store.peek("one", None, 100)
        assert list(first.records) == [*low, *high]
        assert first.passed == 0
        nothing = await store.peek("one", first.position, 100)
        assert seen(nothing) == ([], 0)
        await store.append([make_record(6)], evict=True)
        assert seen(await store.peek("one", nothing.position, 100)) == (["record-6"], 0)
        assert seen(await store.peek("one", first.position, 100)) == (["record-6"], 0)
        assert (await store.stats())["one"].ready == 6
        with pytest.raises(ValueError, match="no destination 'three'"):
            await store.peek("three", None, 100)


async def test_what_went_between_two_looks_is_counted(server, kit):
    async with kit.opened(server.url) as store:
        await store.append(make_records(2), evict=True)
        end = await store.peek("one", None, 0)
        assert seen(end) == ([], 0)
        await store.append([make_record(3)], evict=True)
        await store.append([make_record(4)], evict=True)
        assert len(await kit.drain(store)) == 4
        for n in (5, 6, 7):
            await store.append([make_record(n)], evict=True)

        partly = await store.peek("one", end.position, 2)
        assert seen(partly) == (["record-5", "record-6"], 0), "not all was seen"
        rest = await store.peek("one", partly.position, 2)
        assert seen(rest) == (["record-7"], 2)
        assert seen(await store.peek("one", rest.position, 2)) == ([], 0)
        await store.append([make_record(8)], evict=True)
        await kit.drain(store)
        skipped = await store.peek("one", rest.position, 0)
        assert seen(skipped) == ([], 0)
        assert seen(await store.peek("one", skipped.position, 2)) == ([], 0)


async def test_a_look_goes_on_in_a_store_that_was_built_anew(server, kit):
    async with kit.opened(server.url) as store:
        await store.append(make_records(5), evict=True)
        position = (await store.peek("one", None, 100)).position
        server.command("FLUSHALL")
        await store.append([make_record(9)], evict=True)

        # What was appended since is less than what was seen before: nothing is made of that.
        assert (await store.peek("one", position, 100)).passed == 0


# --- what nobody knows whether it has happened ----------------------------------------------------


async def test_r06_what_was_done_without_an_answer_is_undone_when_it_is_opened_again(
    server, kit, monkeypatch
):
    """Appends with and without asking, and a lease; in several portions."""
    monkeypatch.setattr("guard_agent_redis.store._MAX_IDS", 2)
    async with (
        kit.opened(server.url, project="p", deadline=0.3) as store,
        kit.opened(server.url, project="p", deadline=10) as other,
    ):
        await store.append(make_records(3), evict=True)
        await store.stats()
        with server.frozen():
            for work in (
                lambda: store.append([make_record(4)], evict=True),
                lambda: store.append(make_records(20, priority=Priority.ATTACK), evict=True),
                lambda: kit.lease(store, amount=2, ttl=600),
                lambda: store.append(make_records(200, size=1000), evict=True),
                lambda: store.append([make_record(5)], evict=True),
            ):
                store._link._closed_until = 0.0
                with pytest.raises(StoreUnavailableError):
                    await work()
        assert len(store._doubts) == 5

        async def reopened():
            await store.open()
            return [True]

        await kit.until(reopened)

        assert not store._doubts
        depth = (await other.stats())["one"]
        assert (depth.ready, depth.leased) == (3, 0)
        assert sorted(await kit.drain(other)) == ["record-1", "record-2", "record-3"]
