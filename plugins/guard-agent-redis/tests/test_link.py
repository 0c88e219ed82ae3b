"""The way to the server by itself, and what is asked of the server at first."""

from __future__ import annotations

import asyncio
import gc
import socket
import time

import pytest
from redis import exceptions
from redis.asyncio.connection import UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from guard_agent_redis import RedisSettings, ServerDownError, StoreUnavailableError
from guard_agent_redis.link import Link
from guard_agent_redis.server import check_version, find_hazards

PATIENCE = 30.0


def make_link(url="redis://localhost", options=None, **settings):
    return Link(RedisSettings(url=url, **settings), options)


@pytest.fixture
async def link(redis_server):
    link = make_link(redis_server.url, deadline=10)
    yield link
    await link.close()


# --- where to and how -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://cache.example:6380/2", "Redis at cache.example:6380"),
        ("redis://cache.example", "Redis at cache.example:6379"),
        ("redis:///3", "Redis at localhost:6379"),
        ("unix:///run/redis.sock", "Redis at /run/redis.sock"),
    ],
)
def test_messages_name_the_server(url, where):
    assert make_link(url).where == where


def options_of(link):
    return link._client.connection_pool.connection_kwargs


def test_the_client_repeats_nothing_and_keeps_two_connections():
    link = make_link("redis://user:pass@cache.example:6380/2")

    found = options_of(link)
    assert (found["host"], found["port"], found["db"]) == ("cache.example", 6380, 2)
    assert (found["username"], found["password"]) == ("user", "pass")
    assert (found["protocol"], found["decode_responses"]) == (2, False)
    assert (found["retry_on_error"], found["retry_on_timeout"]) == ([], False)
    assert found["health_check_interval"] == 0
    assert found["retry"].get_retries() == 0
    assert link._client.connection_pool.max_connections == 2


def test_what_the_settings_say_goes_before_the_address():
    found = options_of(make_link("redis://user:pass@cache.example", username="u", password="p"))

    assert (found["username"], found["password"]) == ("u", "p")


def test_what_an_application_hands_over_goes_before_the_address():
    link = make_link("redis://ignored", {"host": "other", "port": 1}, password="p")
    found = options_of(link)

    assert (found["host"], found["port"], found["password"]) == ("other", 1, "p")
    socket_link = make_link("redis://ignored", {"path": "/run/x.sock"})
    assert socket_link.where == "Redis at /run/x.sock"
    assert socket_link._client.connection_pool.connection_class is UnixDomainSocketConnection


@pytest.mark.parametrize(
    ("url", "is_tls"),
    [
        ("redis://ignored:6390/2", False),
        ("rediss://ignored:6390/2", True),
        ("unix:///ignored.sock?db=2", False),
    ],
)
def test_sentinels_tell_where_the_primary_is(url, is_tls):
    link = make_link(
        url,
        sentinels=["one.example:5000", "two.example"],
        sentinel_service="shop",
        sentinel_password="s",
        password="p",
        deadline=3,
    )

    assert link.where == "Redis primary 'shop'"
    found = [sentinel.connection_pool.connection_kwargs for sentinel in link._sentinels]
    assert [(one["host"], one["port"]) for one in found] == [
        ("one.example", 5000),
        ("two.example", 26379),
    ]
    assert [(one["password"], one["socket_timeout"]) for one in found] == [("s", 3)] * 2
    assert [one["retry"].get_retries() for one in found] == [0, 0]
    pool = link._client.connection_pool
    assert (pool.service_name, pool.is_master) == ("shop", True)
    managed = SentinelManagedSSLConnection if is_tls else SentinelManagedConnection
    assert pool.connection_class is managed, "which asks the sentinels"
    assert (pool.connection_kwargs["db"], pool.connection_kwargs["password"]) == (2, "p")
    assert not {"host", "port", "path"} & set(pool.connection_kwargs)


def test_sentinels_may_do_without_a_password():
    link = make_link(sentinels=["one.example"], sentinel_service="shop", password="p")

    assert link._sentinels[0].connection_pool.connection_kwargs.get("password") is None


# --- calls ----------------------------------------------------------------------------------------


async def test_an_answer_or_the_error_of_the_server(link):
    assert await link.call("ECHO", "x") == b"x"
    with pytest.raises(exceptions.ResponseError, match="unknown command"):
        await link.call("NONSENSE")
    assert not link.is_down
    assert link._connected
    assert await asyncio.gather(*(link.call("ECHO", n) for n in range(20))) == [
        b"%d" % n for n in range(20)
    ]


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def test_the_pauses_grow_to_two_seconds():
    link = make_link(f"redis://127.0.0.1:{closed_port()}", deadline=10)
    for expected in (0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0):
        link._closed_until = 0.0
        before = time.monotonic()
        with pytest.raises(ServerDownError, match="cannot be reached"):
            await link.call("PING")
        after = time.monotonic()
        assert before + expected / 2 <= link._closed_until <= after + expected
    assert link.is_down
    await link.close()


async def test_while_it_is_closed_nothing_is_asked():
    link = make_link(f"redis://127.0.0.1:{closed_port()}", deadline=10)
    with pytest.raises(ServerDownError) as first:
        await link.call("PING")
    link._closed_until = time.monotonic() + 3600

    with pytest.raises(ServerDownError) as second:
        await link.call("PING")

    assert str(second.value) == str(first.value)
    assert second.value.__cause__ is None, "nobody was asked"
    assert link._failures == 1
    await link.close()


async def test_one_call_finds_out_and_opens_the_way(redis_server):
    link = make_link(redis_server.url, deadline=10)
    link._failures, link._reason, link._closed_until = 3, "is away", 0.0
    loop = asyncio.get_running_loop()
    gate, execute = loop.create_future(), link._client.execute_command

    async def slow(*command):
        await gate
        return await execute(*command)

    link._client.execute_command = slow
    before = time.monotonic()
    probe = asyncio.ensure_future(link.call("ECHO", "a"))
    while link._closed_until == 0.0:
        await asyncio.sleep(0)
    assert before + 20 <= link._closed_until <= time.monotonic() + 20
    with pytest.raises(ServerDownError, match="is away"):
        await link.call("ECHO", "b")
    gate.set_result(None)

    assert await probe == b"a"
    assert not link.is_down
    assert await link.call("ECHO", "c") == b"c"
    await link.close()


async def test_an_error_of_the_server_opens_the_way_too(link):
    link._failures, link._closed_until = 1, 0.0
    with pytest.raises(exceptions.ResponseError):
        await link.call("NONSENSE")

    assert not link.is_down


class Stuck:
    """What the client does is in the hands of the test."""

    def __init__(self, link):
        self.ended = 0
        link._client.execute_command = self.execute

    async def execute(self, *command):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ended += 1
            raise exceptions.ConnectionError("the client makes that of it") from None


async def test_who_does_not_answer_is_down_after_the_deadline_or_twice_that(monkeypatch):
    """Twice as long until it has answered once."""
    link = make_link(deadline=0.1)
    stuck = Stuck(link)
    waits, wait = [], asyncio.wait

    def noted(tasks, *, timeout=None):
        waits.append(timeout)
        return wait(tasks, timeout=timeout)

    monkeypatch.setattr(asyncio, "wait", noted)
    for connected, least in ((False, 0.2), (True, 0.1)):
        link._connected, link._closed_until = connected, 0.0
        waits.clear()
        started = time.monotonic()
        with pytest.raises(ServerDownError):
            await link.call("PING")
        assert least <= time.monotonic() - started
        assert waits[0] == pytest.approx(least)
        assert link._connected is False
    assert stuck.ended == 2
    await link.close()


async def test_an_answer_that_came_while_this_process_was_held_up_is_taken():
    link = make_link(deadline=0.05)

    async def answer(*command):
        asyncio.get_running_loop().call_soon(time.sleep, 0.3)
        await asyncio.sleep(0.15)
        return b"PONG"

    link._client.execute_command = answer
    assert await link.call("PING") == b"PONG"
    await link.close()


async def test_a_client_that_just_ends_did_not_answer_in_time():
    link = make_link(deadline=0.1)

    async def never(*command):
        await asyncio.Event().wait()

    link._client.execute_command = never
    with pytest.raises(ServerDownError, match=r"^Redis at localhost:6379 does not answer in time$"):
        await link.call("PING")
    await link.close()


async def test_what_the_client_makes_of_a_cancellation_is_not_logged():
    link = make_link()
    stuck, unseen = Stuck(link), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    calls = [asyncio.ensure_future(link.call("PING")) for _ in range(2)]
    for _ in range(3):
        await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)

    async def never(*command):
        await asyncio.Event().wait()

    link._client.execute_command = never
    await cancelled(asyncio.ensure_future(link.call("PING")))
    del calls, call
    gc.collect()

    assert (stuck.ended, unseen) == (2, [])
    await link.close()


# --- cancelled ------------------------------------------------------------------------------------


async def cancelled(task):
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "error", [StoreUnavailableError, exceptions.ConnectionError, asyncio.TimeoutError]
)
async def test_what_was_done_for_a_cancelled_caller_is_undone(link, error):
    undone = []

    async def work():
        await asyncio.sleep(0.01)
        return "done"

    async def undo(result):
        undone.append(result)
        raise error("that cannot be undone")

    await cancelled(asyncio.ensure_future(link.settled(work(), undo)))

    assert undone == ["done"]
    assert await link.settled(work(), undo) == "done"
    assert undone == ["done"]
    await asyncio.sleep(0)
    assert link._tasks == set()


async def test_an_undoing_that_does_not_end_is_ended(link):
    undone = []

    async def undo(result):
        try:
            await asyncio.Event().wait()
        finally:
            undone.append(result)

    await cancelled(asyncio.ensure_future(link.settled(asyncio.sleep(0.01, "done"), undo)))

    assert undone == ["done"]


@pytest.mark.parametrize("error", [exceptions.ConnectionError, OSError])
async def test_a_connection_that_cannot_be_closed_is_left(error):
    link = make_link()

    async def aclose():
        raise error

    link._client.aclose = aclose
    await link.close()


async def test_what_does_not_end_is_ended_and_not_undone(link):
    ended, undone = [], []

    async def work():
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    async def undo(result):
        undone.append(result)

    await cancelled(asyncio.ensure_future(link.settled(work(), undo)))

    assert (ended, undone) == ([True], [])


async def test_what_failed_is_not_undone(link):
    undone, unseen = [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))

    async def work():
        await asyncio.sleep(0.01)
        raise StoreUnavailableError("no")

    async def undo(result):
        undone.append(result)

    await cancelled(asyncio.ensure_future(link.settled(work(), undo)))
    await cancelled(asyncio.ensure_future(link.settled(asyncio.sleep(0.01))))
    with pytest.raises(StoreUnavailableError):
        await link.settled(work(), undo)
    gc.collect()

    assert (undone, unseen) == ([], [])


async def test_closing_ends_what_is_under_way(redis_server):
    link = make_link(redis_server.url)
    ended = []

    async def work():
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    task = asyncio.ensure_future(link.settled(work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await link.close()
    await link.close()

    assert ended == [True]
    with pytest.raises(asyncio.CancelledError):
        await task


# --- what is asked of the server at first ---------------------------------------------------------


class Server:
    """Answers as a server would, of which there is none like it at hand."""

    where = "Redis at h"

    def __init__(self, **answers):
        self.answers = answers

    async def call(self, *command):
        assert command[:-1] == (("CONFIG", "GET") if command[-1] == "save" else ("INFO",))
        answer = self.answers.get(command[-1])
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    "version", ["6.2", "6.2.0", "6.10", "7.0.5", "10.0.1", "", "unknown", "6", "x.2", "6.x"]
)
async def test_a_version_that_will_do_or_is_not_told(version):
    await check_version(Server(server={"redis_version": version}))


@pytest.mark.parametrize("answer", [None, b"text", {}, exceptions.NoPermissionError("no")])
async def test_a_server_that_does_not_tell_its_version(answer):
    await check_version(Server(server=answer))


@pytest.mark.parametrize("version", ["6.1.9", "5.3.0", "6.0"])
async def test_a_version_that_is_too_old(version):
    with pytest.raises(StoreUnavailableError) as caught:
        await check_version(Server(server={"redis_version": version}))

    assert str(caught.value) == (
        f"Redis at h is Redis {version}; the store needs Redis 6.2 or newer, or Valkey "
        "(older ones have no XAUTOCLAIM)"
    )


async def test_an_error_that_means_nothing_works_is_one_at_once():
    with pytest.raises(ServerDownError, match="away"):
        await check_version(Server(server=ServerDownError("away")))
    for text in ("Authentication required.", "invalid username"):
        with pytest.raises(StoreUnavailableError, match=r"^Redis at h: the server .* password"):
            await check_version(Server(server=exceptions.AuthenticationError(text)))


SAVES = {"aof_enabled": 1}
NOT = {"aof_enabled": 0}
EVICTS = (
    "Redis at h may evict the store (maxmemory-policy allkeys-lfu); "
    "use noeviction, or a volatile- policy"
)
FORGETS = (
    "Redis at h saves nothing to disk, a restart of it loses what waits "
    "(appendonly no, save is empty)"
)


@pytest.mark.parametrize(
    ("answers", "hazards"),
    [
        ({}, ()),
        ({"memory": {"maxmemory_policy": "noeviction"}, "persistence": SAVES}, ()),
        ({"memory": {"maxmemory_policy": "volatile-lru"}}, ()),
        ({"memory": {"maxmemory_policy": "allkeys-lfu"}}, (EVICTS,)),
        ({"persistence": NOT, "save": {b"save": b""}}, (FORGETS,)),
        ({"persistence": NOT, "save": {"save": ""}}, (FORGETS,)),
        ({"persistence": NOT, "save": [b"save", b""]}, (FORGETS,)),
        ({"persistence": NOT, "save": [b"save", b"900 1"]}, ()),
        ({"persistence": NOT, "save": {b"save": b"900 1"}}, ()),
        ({"persistence": NOT, "save": None}, ()),
        ({"persistence": NOT, "save": exceptions.NoPermissionError("no")}, ()),
        ({"persistence": SAVES, "save": [b"save", b""]}, ()),
        (
            {
                "memory": {"maxmemory_policy": "allkeys-lfu"},
                "persistence": NOT,
                "save": [b"save", b""],
            },
            (EVICTS, FORGETS),
        ),
    ],
)
async def test_what_can_lose_records(answers, hazards):
    assert await find_hazards(Server(**answers)) == hazards
