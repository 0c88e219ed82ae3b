"""
What goes wrong with a server, made to go wrong on a real one (R01 to R18 of docs/reliability.md).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import ssl
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
import trustme

from guard_agent import DestinationDepth, Priority
from guard_agent.testing.records import make_record, make_records
from guard_agent.testing.redis_server import RedisServer
from guard_agent_redis import ServerDownError, StoreUnavailableError

DEADLINE = 0.2
SLACK = 5.0
CHANGE = int(Priority.CHANGE)


# --- down, slow, back again -----------------------------------------------------------------------


async def test_r01_a_server_that_is_down_at_the_start_is_named_at_once(server, kit):
    """R01"""
    server.kill()
    store = kit.make(f"redis://:geheim@127.0.0.1:{server.port}/0", deadline=0.5)

    started = time.monotonic()
    with pytest.raises(ServerDownError, match=r"^Redis at 127\.0\.0\.1:\d+ cannot be reached: "):
        await store.open()
    assert time.monotonic() - started < 0.5 + SLACK

    server.start()
    async with kit.opened(server.url) as store:
        assert await store.stats()


async def test_a_cancellation_while_it_connects_leaves_no_error_that_nobody_sees(kit):
    """The client makes an error of its own of it; asyncio would log that with a traceback."""
    unseen: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unseen.append(str(context)))

    async def cancel_after(turns: int, url: str) -> None:
        store = kit.make(url, deadline=0.2)
        opening = asyncio.ensure_future(store.open())
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await store.close()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        await asyncio.gather(*(cancel_after(turns, url) for turns in range(30)))
    gc.collect()

    assert unseen == []


async def test_r02_what_was_confirmed_survives_the_death_of_the_server(durable_server, kit):
    """R02, with appendonly"""
    server = durable_server
    async with kit.opened(server.url, deadline=1) as store:
        await store.append(make_records(500), evict=True)
        for n in range(501, 511):
            await store.append([make_record(n)], evict=True)
        lease = await kit.lease(store, amount=100)
        await store.ack(lease, list(lease.entries)[:50])

        server.kill()
        with pytest.raises(ServerDownError):
            await store.append([make_record(999)], evict=True)
        server.start()

        depth = (await kit.until(store.stats))["one"]
        assert (depth.ready, depth.leased) == (410, 50)
        assert await store.release(lease, list(lease.entries)) == 50
        assert sorted(await kit.drain(store)) == sorted(f"record-{n}" for n in range(51, 511))


async def test_r02_a_server_that_dies_between_delivery_and_ack_costs_one_batch_twice(
    durable_server, kit
):
    """R02"""
    server = durable_server
    async with kit.opened(server.url, deadline=1) as store:
        await store.append(make_records(30), evict=True)
        lease = await kit.lease(store, amount=10, ttl=0.1)
        server.kill()
        with pytest.raises(ServerDownError):
            await store.ack(lease, list(lease.entries))
        server.start()

        await kit.until(store.release_expired)
        assert len(await kit.drain(store)) == 30


async def test_while_the_server_is_down_calls_fail_without_waiting(server, kit):
    async with kit.opened(server.url, deadline=DEADLINE) as store:
        with server.frozen():
            with pytest.raises(ServerDownError):
                await store.stats()
            started = time.monotonic()
            failures = [await failure(store.stats()) for _ in range(100)]
            took = time.monotonic() - started

        assert all(isinstance(error, ServerDownError) for error in failures)
        assert took < 2 * DEADLINE + 2 * SLACK  # at most a probe or two really asked
        assert await kit.until(store.stats)


async def failure(work):
    try:
        await work
    except StoreUnavailableError as error:
        return error


@pytest.mark.parametrize("operation", ["append", "lease", "stats", "release_expired"])
async def test_r06_a_frozen_server_costs_no_more_than_the_deadline(server, kit, operation):
    """R06, SIGSTOP"""
    async with kit.opened(server.url, deadline=DEADLINE) as store:
        work = {
            "append": lambda: store.append(make_records(10), evict=True),
            "lease": lambda: kit.lease(store),
            "stats": store.stats,
            "release_expired": store.release_expired,
        }[operation]
        with server.frozen():
            started = time.monotonic()
            with pytest.raises(ServerDownError, match="does not answer in time"):
                await work()
            assert time.monotonic() - started < DEADLINE + SLACK

        await kit.until(store.stats)
        await work()


async def test_r06_a_paused_server_costs_no_more_than_the_deadline(server, kit):
    """R06, CLIENT PAUSE"""
    async with kit.opened(server.url, deadline=DEADLINE) as store:
        await store.append(make_records(3), evict=True)
        server.pause(1.0)
        started = time.monotonic()
        with pytest.raises(ServerDownError, match="does not answer in time"):
            await store.append([make_record(4)], evict=True)
        assert time.monotonic() - started < DEADLINE + SLACK

        await kit.until(store.stats)
        assert set(await kit.drain(store)) >= {"record-1", "record-2", "record-3"}


async def test_r06_answers_that_come_too_late_are_not_taken_for_others(server, kit):
    """R06: the connection of a call that ran out of time is closed, not used again."""
    async with kit.opened(server.url, deadline=0.05) as store:
        await store.append(make_records(5), evict=True)
        for _ in range(5):
            with server.frozen():
                await failure(kit.lease(store))
            stats = await kit.until(store.stats)
            assert isinstance(stats["one"], DestinationDepth)
        await asyncio.sleep(0)
        assert stats["one"].pending == 5


async def test_closing_a_store_of_a_frozen_server_does_not_wait_for_it(server, kit):
    store = kit.make(server.url, deadline=DEADLINE)
    await store.open()
    with server.frozen():
        started = time.monotonic()
        await store.close()
        assert time.monotonic() - started < DEADLINE + SLACK


# --- a process that is dead -----------------------------------------------------------------------


async def die(store):
    """What the others see of a process that was killed: it says nothing any more."""
    store._beating.cancel()
    await asyncio.wait({store._beating})


async def test_r11_what_a_silent_process_had_leased_goes_to_others(server, kit):
    """Entries that a living one has in part are left to it, for that part."""
    async with (
        kit.opened(server.url, project="p", presence=1) as dead,
        kit.opened(server.url, project="p", presence=1) as living,
    ):
        await dead.append(make_records(30), evict=True)
        theirs = await kit.lease(dead, amount=10, ttl=600)
        ours = await kit.lease(living, amount=10, ttl=600)
        await dead.ack(theirs, list(theirs.entries)[:4])

        await asyncio.sleep(1.5)
        assert await living.release_expired() == 0, "both are there"
        await die(dead)
        assert await kit.until(living.release_expired) == 6

        depth = (await living.stats())["one"]
        assert (depth.ready, depth.leased) == (16, 10)
        assert await living.ack(ours, list(ours.entries)) == 10
        assert sorted(await kit.drain(living)) == sorted(
            [f"record-{n}" for n in (*range(5, 11), *range(21, 31))]
        )
        assert await dead.ack(theirs, list(theirs.entries)) == 0
        assert await dead.release_expired() == 0, "it may come back"


async def test_nobody_is_taken_for_dead_because_the_server_was_away(server, kit):
    async with (
        kit.opened(server.url, project="p", presence=1, deadline=0.5) as one,
        kit.opened(server.url, project="p", presence=1, deadline=0.5) as other,
    ):
        await one.append(make_records(5), evict=True)
        await kit.lease(one, ttl=600)
        with server.frozen():
            await asyncio.sleep(1.5)

        assert await kit.until(lambda: asked(other)) == [0]
        await asyncio.sleep(1.5)
        assert await other.release_expired() == 0
        assert (await other.stats())["one"].leased == 5


async def asked(store):
    return [await store.release_expired()]


async def test_a_server_without_memory_still_hears_who_is_there(server, kit):
    async with (
        kit.opened(server.url, project="p", presence=1) as one,
        kit.opened(server.url, project="p", presence=1) as other,
    ):
        await one.append(make_records(5), evict=True)
        await kit.lease(one, ttl=600)
        server.command("CONFIG", "SET", "maxmemory", 1)
        await asyncio.sleep(1.5)

        assert await other.release_expired() == 0
        assert (await other.stats())["one"].leased == 5


# --- full, read-only, not allowed -----------------------------------------------------------------


async def test_r03_a_server_without_memory_refuses_records_and_can_be_drained(server, kit):
    """R03"""
    async with kit.opened(server.url) as store:
        await store.append(make_records(200, size=1000), evict=True)
        await store.append(make_records(10, priority=Priority.ATTACK), evict=True)
        used = server.command("INFO", "memory")["used_memory"]
        server.command("CONFIG", "SET", "maxmemory", used - 10_000)

        for amount in (1, 100):
            with pytest.raises(StoreUnavailableError, match="no memory left; raise maxmemory"):
                await store.append(make_records(amount), evict=True)

        # Everything that makes room still works: in parts, and back again.
        lease = await kit.lease(store, amount=50, ttl=0.01)
        entries = list(lease.entries)
        assert await store.ack(lease, entries[5:20]) == 15
        assert await store.release(lease, entries[20:25]) == 5
        assert (await store.stats())["one"].pending == 195
        await kit.until(store.release_expired)
        assert len(await kit.drain(store)) == 195
        server.command("CONFIG", "SET", "maxmemory", 0)
        await store.append(make_records(100), evict=True)
        assert len(await kit.drain(store)) == 100


async def test_r05_a_replica_is_refused_until_it_is_promoted(server, kit):
    """R05"""
    async with kit.opened(server.url) as store:
        await store.append(make_records(3), evict=True)
        server.command("REPLICAOF", "127.0.0.1", "1")  # nobody is there; it keeps its data
        with pytest.raises(ServerDownError, match="is a replica and takes no writes"):
            await store.append(make_records(2), evict=True)
        server.command("REPLICAOF", "NO", "ONE")

        await kit.until(store.stats)
        assert len(await kit.drain(store)) == 3


async def test_r05_a_replica_that_lost_its_primary_is_refused(server, kit):
    """R05, MASTERDOWN"""
    async with kit.opened(server.url) as store:
        server.command("CONFIG", "SET", "replica-serve-stale-data", "no")
        server.command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(ServerDownError, match=r"replica without its primary|takes no writes"):
            await store.append(make_records(2), evict=True)
        server.command("REPLICAOF", "NO", "ONE")

        assert await kit.until(store.stats)


async def test_r05_a_failover_to_the_replica_keeps_what_was_replicated(kit):
    """R05: the replica has the groups, the leases and the books as well."""
    with RedisServer() as primary, RedisServer() as replica:
        async with kit.opened(primary.url, project="shared") as store:
            await store.append(make_records(100), evict=True)
            lease = await kit.lease(store, amount=10)
            await store.ack(lease, list(lease.entries)[:5])
            replica.command("REPLICAOF", "127.0.0.1", primary.port)
            await kit.until(lambda: replicated(primary, replica))
            primary.kill()
        replica.command("REPLICAOF", "NO", "ONE")
        async with kit.opened(replica.url, project="shared") as store:
            assert (await store.stats())["one"] == DestinationDepth(
                ready=90, leased=5, bytes=depth_bytes(6, 100), oldest=make_record(6).accepted_at
            )
            assert await store.release(lease, list(lease.entries)) == 5
            assert len(await kit.drain(store)) == 95


def depth_bytes(first, last):
    return sum(len(make_record(n).payload) for n in range(first, last + 1))


async def replicated(primary, replica):
    info = replica.command("INFO", "replication")
    offset = primary.command("INFO", "replication")["master_repl_offset"]
    return info.get("master_link_status") == "up" and info["slave_repl_offset"] >= offset


README = Path(__file__).parents[1] / "README.md"


def rights():
    """What the README tells to give to the user of the store."""
    _, _, text = README.read_text(encoding="utf-8").partition("ACL SETUSER agent on >password")
    return text.partition("```")[0].split()


async def test_r15_a_user_with_the_rights_of_the_readme_can_do_everything(server, kit):
    """R15"""
    server.command("ACL", "SETUSER", "agent", "on", ">geheim", "resetkeys", *rights())
    async with kit.opened(server.url, ("one", "two"), username="agent", password="geheim") as store:
        await store.append(make_records(1500), evict=True)
        await store.append([make_record(1)], evict=True)
        lease = await kit.lease(store, ttl=0.01)
        entries = list(lease.entries)
        await store.bury(lease, entries[:3], "refused")
        await store.release(lease, entries[3:10], delay=0.001)
        await kit.until(store.release_expired)
        assert len(await store.dead_letters("one")) == 3
        assert await cancelled_append(store) == 0
        assert len(await kit.drain(store, "one")) == 1498
        assert len(await kit.drain(store, "two")) == 1501
        server.command("XADD", f"{store._base}records:{CHANGE}", "*", "x", "y")
        assert await kit.lease(store) is None
        assert await store.replay("one", 2) == 2
        assert await store.replay("one", 2) == 1
        assert len(await kit.drain(store, "one")) == 3
        assert len(await store.dead_letters("one")) == 1


async def cancelled_append(store):
    before = (await store.stats())["one"].pending
    task = asyncio.ensure_future(store.append([make_record(1)], evict=True))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    return (await store.stats())["one"].pending - before


async def test_a_user_may_be_without_info_and_config(server, kit):
    server.command("ACL", "SETUSER", "agent", "on", ">geheim", "~*", "+@all", "-info", "-config")
    async with kit.opened(server.url, username="agent", password="geheim") as store:
        await store.append(make_records(2), evict=True)
        assert store.hazards == ()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://agent:falsch@127.0.0.1:{port}/0", "refuses the user name or the password"),
        ("redis://agent:geheim@127.0.0.1:{port}/0", "the user may not do this"),
        ("redis://127.0.0.1:{port}/0", "asks for a password"),
    ],
)
async def test_r15_what_a_user_may_not_do_is_said_without_the_password(kit, caplog, url, message):
    """R15"""
    with RedisServer(options={"requirepass": "chef"}) as server:
        server.command("ACL", "SETUSER", "agent", "on", ">geheim", "~*", "-@all", "+info")
        store = kit.make(url.format(port=server.port))
        with caplog.at_level(logging.DEBUG), pytest.raises(StoreUnavailableError) as caught:
            await store.open()

    text = f"{caught.value}{caught.value!r}{store.settings!r}{caplog.text}"
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "geheim" not in text
    assert "falsch" not in text


async def test_r15_a_server_with_too_many_clients_is_not_available(server, kit):
    """R15"""
    server.command("CONFIG", "SET", "maxclients", 1)
    store = kit.make(server.url)
    with pytest.raises(ServerDownError):
        await store.open()  # the server says why and hangs up, so it is not always heard
    server.command("CONFIG", "SET", "maxclients", 100)
    await store.open()
    await store.close()


async def test_a_key_of_another_kind_is_named(server, kit):
    server.command("SET", "guard-agent:{p}:meta", "mine")
    with pytest.raises(StoreUnavailableError, match="choose another prefix"):
        await kit.make(server.url, project="p").open()


async def test_r17_a_server_that_is_too_old_is_refused_in_one_line(kit):
    """R17; there is no such server at hand, so a few lines speak for it."""
    asked = []

    async def answer(reader, writer):
        while (line := await reader.readline()).startswith(b"*"):
            words = []
            for _ in range(int(line[1:])):
                await reader.readline()
                words.append((await reader.readline()).strip().upper())
            asked.append(words[0])
            if words[0] == b"INFO":
                info = b"# Server\r\nredis_version:6.0.16\r\n"
                writer.write(b"$%d\r\n%s\r\n" % (len(info), info))
            else:
                writer.write(b"+OK\r\n")
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(StoreUnavailableError) as caught:
            await kit.make(f"redis://127.0.0.1:{port}").open()

    assert str(caught.value) == (
        f"Redis at 127.0.0.1:{port} is Redis 6.0.16; the store needs Redis 6.2 or newer, or Valkey "
        "(older ones have no XAUTOCLAIM)"
    )
    assert set(asked) <= {b"CLIENT", b"INFO"}


# --- emptied, polluted, careless ------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["append", "single append", "lease", "stats", "release_expired"])
async def test_r07_after_flushall_the_store_is_built_anew_once(server, kit, asked):
    """R07"""
    async with kit.opened(server.url) as store:
        await store.append(make_records(5), evict=True)
        old = await kit.lease(store, amount=2)
        await store.stats()
        server.command("FLUSHALL")

        expected = 0
        if asked == "append":
            await store.append(make_records(1200), evict=True)
            expected = 1200
        elif asked == "single append":
            await store.append([make_record(7)], evict=True)
            expected = 1
        elif asked == "lease":
            assert await kit.lease(store) is None
        else:
            await getattr(store, asked)()

        assert await store.ack(old, list(old.entries)) == 0
        assert await store.release(old, list(old.entries)) == 0
        assert (await store.stats())["one"].pending == expected
        assert len(await kit.drain(store)) == expected
        assert await store.stats() == {"one": DestinationDepth()}
        assert store.resets == 1


async def test_r07_a_stream_that_was_deleted_does_not_keep_the_others_back(server, kit):
    """R07, NOGROUP: what is left in other streams is delivered, and the books are right again."""
    async with kit.opened(server.url, ("one", "two")) as store:
        await store.append(make_records(5), evict=True)
        await store.append(make_records(4, priority=Priority.METRIC), evict=True)
        await kit.lease(store, amount=7)
        server.command("DEL", f"{store._base}records:{CHANGE}")
        await store.append(make_records(3), evict=True)

        assert len(await kit.drain(store)) == 7
        assert (await store.stats())["two"].pending == 7
        assert len(await kit.drain(store, "two")) == 7
        assert await store.stats() == dict.fromkeys(("one", "two"), DestinationDepth())
        assert store.resets == 1


async def test_scripts_that_the_server_forgot_are_loaded_again(server, kit):
    async with kit.opened(server.url) as store:
        server.command("SCRIPT", "FLUSH")
        await store.append(make_records(5), evict=True)
        assert len(await kit.drain(store)) == 5
        assert store.resets == 0


JUNK = [
    ("x", "y"),
    ("v", "1"),
    ("v", "2", "n", "1", "s", "1", "h", "x" * 15, "b", "y"),
    ("v", "1", "n", "1", "s", "1", "h", "x", "b", "y"),
    ("v", "1", "n", "-1", "s", "1", "h", "", "b", ""),
    ("v", "1", "n", "nan", "s", "1", "h", "", "b", ""),
    ("v", "1", "n", "1e9", "s", "1", "h", "x", "b", "y"),
    ("v", "1", "n", "1", "s", "5", "h", b"\xff" * 15, "b", b"\x00\xff\r\n{}"),
    ("v", "1", "n", "1", "s", "0", "h", b"\x00" * 15, "b", "more than the rows say"),
    ("id", "3-3", "priority", "9", "\u2028", "\x1b[31m"),
]


@pytest.mark.parametrize("junk", JUNK)
async def test_r09_junk_in_a_stream_is_buried_and_the_rest_goes_on(server, kit, caplog, junk):
    """R09"""
    async with kit.opened(server.url, ("one", "two")) as store:
        stream = f"{store._base}records:{CHANGE}"
        server.command("XADD", stream, "*", *junk)
        await store.append(make_records(3), evict=True)
        server.command("XADD", stream, "*", *junk)
        await store.append([make_record(4)], evict=True)

        assert await kit.drain(store) == [f"record-{n}" for n in (1, 2, 3, 4)]
        assert await kit.drain(store, "two") == [f"record-{n}" for n in (1, 2, 3, 4)]

        stats = await store.stats()
        assert [(depth.pending, depth.buried) for depth in stats.values()] == [(0, 2)] * 2
        letters = await store.dead_letters("one")
        assert len(letters) == 2
        assert all(letter.reason for letter in letters)
        assert server.command("XLEN", stream) == 0


async def test_r09_junk_is_bounded(server, kit):
    """R09"""
    async with kit.opened(server.url, max_dead_letters=3) as store:
        stream = f"{store._base}records:{CHANGE}"
        for n in range(10):
            server.command("XADD", stream, "*", "junk", str(n) * 5000)

        assert await kit.lease(store) is None

        assert (await store.stats())["one"].buried == 3
        assert server.command("STRLEN", "none") == 0
        assert server.command("MEMORY", "USAGE", f"{store._base}dead:one") < 10_000


async def test_r09_junk_with_a_huge_id_does_not_stop_what_follows(server, kit):
    """R09: later entries get ids behind it, whatever the clock says."""
    async with kit.opened(server.url) as store:
        stream = f"{store._base}records:{CHANGE}"
        await store.append(make_records(1), evict=True)
        server.command("XADD", stream, "18446744073709551615-18446744073709551000", "x", "y")
        for n in range(2, 6):
            await store.append([make_record(n)], evict=True)
        lease = await kit.lease(store, amount=3)
        await store.release(lease, list(lease.entries))

        assert await kit.drain(store) == [f"record-{n}" for n in range(1, 6)]


async def test_r09_junk_is_never_sent_again(server, kit):
    """It stays among the dead letters, in its place."""
    async with kit.opened(server.url) as store:
        stream = f"{store._base}records:{CHANGE}"
        await store.append(make_records(2), evict=True)
        server.command("XADD", stream, "*", "x", "y")
        await store.append([make_record(3)], evict=True)
        lease = await kit.lease(store, amount=2)
        await store.bury(lease, list(lease.entries), "refused")
        lease = await kit.lease(store)
        await store.bury(lease, list(lease.entries), "refused")
        assert (await store.stats())["one"].buried == 4

        assert await store.replay("one", 10) == 3

        stats = (await store.stats())["one"]
        assert (stats.ready, stats.buried) == (3, 1)
        (letter,) = await store.dead_letters("one")
        assert b"junk" in letter.record.payload
        assert await store.replay("one", 10) == 0
        assert await kit.drain(store) == [f"record-{n}" for n in (1, 2, 3)]


async def test_evicted_junk_does_not_count(server, kit):
    async with kit.opened(server.url, max_records=3) as store:
        server.command("XADD", f"{store._base}records:0", "*", "x", "y")
        await store.append(make_records(3), evict=True)
        appended = await store.append(make_records(2), evict=True)

        assert appended.evicted == {"one": 2}


async def test_r04_settings_of_the_server_that_can_lose_records_are_said_once(server, kit, caplog):
    """R04"""
    server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    store = kit.make(server.url)
    await store.open()
    await store.close()
    await store.open()
    await store.close()

    policy, saving = store.hazards
    assert "may evict the store (maxmemory-policy allkeys-lru)" in policy
    assert "saves nothing to disk" in saving
    assert [record.message for record in caplog.records].count(
        f"records in Redis can be lost: {policy}"
    ) == 1


@pytest.mark.parametrize("option", [("appendonly", "yes"), ("save", "900 1")])
async def test_a_server_that_saves_is_no_hazard(server, kit, option):
    server.command("CONFIG", "SET", *option)
    server.command("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    async with kit.opened(server.url) as store:
        assert store.hazards == ()


# --- other ways to the server ---------------------------------------------------------------------


async def test_a_socket_and_a_password_in_the_url(kit):
    with RedisServer(unix_socket=True, options={"requirepass": "chef"}) as server:
        async with kit.opened(f"unix://:chef@{server.socket}?db=0") as store:
            await store.append(make_records(2), evict=True)
            assert len(await kit.drain(store)) == 2


async def test_the_keys_of_a_project_fit_a_cluster(kit):
    """All keys lie in one slot; a cluster refuses scripts and commands that reach beyond one."""
    with RedisServer(options={"cluster-enabled": "yes"}) as server:
        server.command("CLUSTER", "ADDSLOTS", *range(16384))
        await kit.until(lambda: cluster_is_up(server))
        async with kit.opened(server.url, ("one", "two"), max_records=20) as store:
            for priority in Priority:
                await store.append(make_records(15, priority=priority), evict=True)
            lease = await kit.lease(store, amount=4)
            await store.bury(lease, list(lease.entries), "refused")
            slots = {server.command("CLUSTER", "KEYSLOT", k) for k in server.command("KEYS", "*")}
            assert len(slots) == 1
            assert len(await kit.drain(store)) == 16


async def cluster_is_up(server):
    return b"cluster_state:ok" in server.command("CLUSTER", "INFO")


async def test_sentinels_tell_where_the_primary_is_also_after_a_failover(kit):
    with RedisServer() as first, RedisServer() as second:
        second.command("REPLICAOF", "127.0.0.1", first.port)
        with RedisServer(arguments=("--sentinel",)) as sentinel:
            for words in (
                ("MONITOR", "shop", "127.0.0.1", first.port, 1),
                ("SET", "shop", "down-after-milliseconds", 200),
            ):
                sentinel.command("SENTINEL", *words)
            await kit.until(lambda: has_replica(sentinel))
            async with kit.opened(
                "redis://ignored",
                sentinels=[f"127.0.0.1:{sentinel.port}"],
                sentinel_service="shop",
                deadline=1,
            ) as store:
                await store.append(make_records(4), evict=True)
                await kit.until(lambda: replicated(first, second))

                await kit.until(lambda: failover_begun(sentinel))
                await kit.until(lambda: promoted(second))
                first.kill()

                async def appended():
                    return await store.append([make_record(5)], evict=True)

                await kit.until(appended)
                assert sorted(set(await kit.drain(store))) == [f"record-{n}" for n in range(1, 6)]


async def has_replica(sentinel):
    flat = sentinel.command("SENTINEL", "MASTER", "shop")
    return dict(zip(flat[::2], flat[1::2], strict=True))[b"num-slaves"] == b"1"


async def failover_begun(sentinel):
    try:
        return sentinel.command("SENTINEL", "FAILOVER", "shop")
    except redis.ResponseError:
        return False  # the sentinel does not know the replica well enough yet


async def promoted(server):
    try:
        return server.command("INFO", "replication")["role"] == "master"
    except redis.ConnectionError:
        return False  # a sentinel cuts the connections of whom it promotes


@asynccontextmanager
async def tls_in_front_of(server, authority):
    """TLS for a server that may be built without it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    tasks = set()

    async def pump(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async def relay(reader, writer):
        tasks.add(asyncio.current_task())
        back, forth = await asyncio.open_connection("127.0.0.1", server.port)
        pumps = [
            asyncio.ensure_future(pump(reader, forth)),
            asyncio.ensure_future(pump(back, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            writer.transport.abort()
            forth.transport.abort()
            tasks.discard(asyncio.current_task())

    listener = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
    async with listener:
        yield listener.sockets[0].getsockname()[1]
        while tasks:
            await asyncio.sleep(0.001)


async def test_tls(server, kit, tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with tls_in_front_of(server, authority) as port:
        url = f"rediss://127.0.0.1:{port}/0"
        async with kit.opened(f"{url}?ssl_ca_certs={tmp_path / 'ca.pem'}") as store:
            await store.append(make_records(100), evict=True)
            assert len(await kit.drain(store)) == 100

        with pytest.raises(ServerDownError, match="cannot be reached"):
            await kit.make(url).open()
