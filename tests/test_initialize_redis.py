"""``initialize_redis`` as the Guard adapters call it, on a real server."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys

import orjson
import pytest
import redis
import redis.asyncio
from guard_core.handlers.redis_handler import RedisManager
from guard_core.models import SecurityConfig
from guard_core.sync.handlers.redis_handler import RedisManager as BlockingRedisManager

from guard_agent import AgentConfig, GuardAgentHandler, HostRedis, SyncGuardAgentHandler
from guard_agent.client import _process
from guard_agent.core.intake.leftovers import CLAIM, Leftovers
from guard_agent.testing.collector import Answer
from guard_agent.testing.records import make_event
from guard_agent.testing.redis_server import RedisServer

PREFIX = "shop:"
METHODS = ("get_key", "set_key", "delete", "keys", "initialize", "get_connection")


class Handler:
    """Any object with the methods of `RedisHandlerProtocol`, and nothing else."""

    def __init__(self, manager):
        self._manager = manager

    def __getattr__(self, name):
        if name not in METHODS:
            raise AttributeError(name)
        return getattr(self._manager, name)


@pytest.fixture
def stop_agent(tmp_path, monkeypatch, server, collector):
    """Ends the agent of the test and looks at its books."""
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))

    def stop_agent():
        agent, _process.agent = _process.agent, None
        if agent is not None:
            agent.stop().result(30)
            assert [b for b in agent.balances().values() if b.difference] == []

    yield stop_agent
    stop_agent()


@pytest.fixture
def server():
    with RedisServer(options={"rdbcompression": "no"}) as server:
        yield server


@pytest.fixture
def configure(collector, stop_agent):
    def configure(**settings):
        return AgentConfig(
            **{
                "api_key": "test-key-0123",
                "endpoint": collector.url,
                "project_id": "shop",
                "flush_interval": 3600,
                **settings,
            }
        )

    return configure


def keys(server, pattern="*"):
    return sorted(key.decode() for key in server.command("KEYS", pattern))


async def until(condition, patience=10.0):
    deadline = asyncio.get_running_loop().time() + patience
    while not (result := condition()):
        assert asyncio.get_running_loop().time() < deadline, "it never happened"
        await asyncio.sleep(0.01)
    return result


async def until_stored(agent):
    """Until the store is back; each record makes the agent look, as long as it is time."""
    deadline = asyncio.get_running_loop().time() + 20
    while not await agent.flush_to_store():
        assert asyncio.get_running_loop().time() < deadline, "it never came back"
        await asyncio.sleep(0.05)
        await agent.send_event(make_event(ip_address="192.0.2.1"))


def held(server):
    """What is on the server, as it lies there."""
    return b"".join(server.command("DUMP", key) for key in keys(server))


KINDS = ("manager", "client", "blocking client", "protocol", "blocking protocol")


@pytest.fixture
async def connect(server, stop_agent):
    """Makes what an application hands over; closes it when the agent has ended."""
    opened = []

    def connect(kind):
        blocking = kind.startswith("blocking")
        if "client" in kind:
            opened.append((redis if blocking else redis.asyncio).from_url(server.url))
            return opened[-1]
        cls = BlockingRedisManager if blocking else RedisManager
        opened.append(cls(SecurityConfig(redis_url=server.url, redis_prefix=PREFIX)))
        return Handler(opened[-1]) if "protocol" in kind else opened[-1]

    yield connect
    # Which calls the handler, on this very loop.
    await asyncio.to_thread(stop_agent)
    for handler in opened:
        closed = handler.aclose() if hasattr(handler, "aclose") else handler.close()
        if closed is not None:
            await closed


@pytest.mark.parametrize("kind", KINDS)
async def test_from_then_on_records_wait_in_redis(kind, server, configure, connect, collector):
    collector.always(Answer(503))
    agent = GuardAgentHandler(configure(flush_interval=0.1))
    await agent.start()
    await agent.initialize_redis(connect(kind))
    await agent.send_event(make_event(ip_address="192.0.2.1"))
    assert await agent.flush_to_store()
    status = await agent.get_status()
    assert status.level == "journal"
    assert status.store["name"] == ("handler" if "protocol" in kind else "redis")
    assert b"192.0.2.1" in held(server)
    collector.always(None)
    await until(lambda: collector.events)
    assert [event["ip_address"] for event in collector.events] == ["192.0.2.1"]


VICTIM = """
import sys
import redis
from guard_agent import AgentConfig, SyncGuardAgentHandler, get_current_timestamp

class Handler:
    client = redis.from_url(sys.argv[1])

    def key(self, space, key):
        return f"shop:{space}:{key}"

    def get_key(self, space, key):
        return self.client.get(self.key(space, key))

    def set_key(self, space, key, value, ttl=None):
        return self.client.set(self.key(space, key), value, ex=ttl)

    def delete(self, space, key):
        return self.client.delete(self.key(space, key))

    def keys(self, pattern):
        return self.client.keys(f"shop:{pattern}")

agent = SyncGuardAgentHandler(AgentConfig(
    api_key="test-key-0123", endpoint=sys.argv[2], project_id="shop", rules=[],
    max_requests_per_second=1000, flush_interval=0.01, buffer_size=20,
))
agent.start()
agent.initialize_redis(Handler())
if sys.argv[3] == "last":
    assert agent.flush_to_store()
    agent.flush_buffer()
    agent.stop()
    sys.exit()
for number in range(10_000):
    names = [f"{sys.argv[3]}-{number}-{n}" for n in range(7)]
    for name in names:
        agent.send_event({
            "event_type": "suspicious_request", "timestamp": get_current_timestamp(),
            "ip_address": "192.0.2.1", "reason": name,
        })
    if agent.flush_to_store():
        print(*names, flush=True)
"""


async def test_p01_through_a_handler_no_confirmed_record_is_lost_by_kills(server, collector):
    """
    While the collector takes records, slowly, and again while it takes none.
    """
    confirmed = set()
    for kill in range(6):
        collector.always(Answer(503) if kill % 2 else Answer(delay=0.005))
        with subprocess.Popen(
            [sys.executable, "-c", VICTIM, server.url, collector.url, str(kill)],
            stdout=subprocess.PIPE,
            text=True,
        ) as victim:
            for _ in range(1 + 9 * kill):
                confirmed.update(victim.stdout.readline().split())
            victim.kill()
            confirmed.update(victim.stdout.read().rpartition("\n")[0].split())
        assert victim.returncode == -signal.SIGKILL
        # Not to wait half a minute until the server forgets that it lived.
        for key in keys(server, "shop:agent_journal_owners:*"):
            server.command("DEL", key)
    collector.always(None)
    last = [sys.executable, "-c", VICTIM, server.url, collector.url, "last"]
    subprocess.run(last, timeout=60, check=True)

    delivered = {event["reason"] for event in collector.events}
    assert len(confirmed) > 7 * 100
    assert confirmed - delivered == set()
    assert keys(server, "shop:agent_journal:*") == []


async def test_the_blocking_face_takes_the_blocking_manager(server, configure, collector, connect):
    agent = SyncGuardAgentHandler(configure())
    agent.start()
    manager = connect("blocking manager")
    agent.initialize_redis(manager)
    manager.initialize_agent(agent)
    agent.send_event(make_event())
    assert agent.flush_to_store()
    assert agent.get_status().store["name"] == "redis"
    agent.flush_buffer()
    assert len(collector.events) == 1


async def test_before_the_start_will_do_too_and_it_holds_over_a_restart(server, configure, connect):
    agent = GuardAgentHandler(configure())
    await agent.initialize_redis(connect("manager"))
    await agent.send_event(make_event())
    assert await agent.flush_to_store()
    await agent.stop()
    await agent.start()
    await agent.send_event(make_event())
    assert await agent.flush_to_store()
    assert (await agent.get_status()).store["name"] == "redis"


async def test_a_store_that_the_owner_chose_stays(server, configure, connect):
    agent = GuardAgentHandler(configure(store="memory"))
    await agent.initialize_redis(connect("manager"))
    await agent.send_event(make_event())
    assert not await agent.flush_to_store()
    assert (await agent.get_status()).store["name"] == "memory"
    assert keys(server) == []


@pytest.mark.parametrize("handler", [object(), 7])
async def test_what_is_no_redis_is_said_once(handler, configure, caplog):
    agent = GuardAgentHandler(configure())
    await agent.start()
    for _ in range(3):
        await agent.initialize_redis(handler)
        await agent.flush_to_store()
    (warning,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "initialize_redis() got a builtins." in warning.getMessage()
    assert "RedisHandlerProtocol" in warning.getMessage()


async def test_none_is_no_redis_and_nothing_is_said(configure, caplog):
    agent = GuardAgentHandler(configure())
    await agent.initialize_redis(None)
    await agent.flush_to_store()
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("kind", ["manager", "protocol"])
async def test_r01_a_server_that_comes_later_is_used_then(
    kind, server, configure, connect, collector
):
    collector.always(Answer(503))
    handler = connect(kind)
    server.kill()
    agent = GuardAgentHandler(configure())
    await agent.start()
    await agent.initialize_redis(handler)
    await agent.send_event(make_event())
    assert not await agent.flush_to_store()
    assert (await agent.get_status()).status == "degraded"
    server.start()
    await until_stored(agent)
    assert b"192.0.2.1" in held(server)


async def test_the_handler_s_own_events_do_not_come_back(server, configure, connect):
    """The engine's manager reports each failure to the agent, whose store calls the manager."""
    manager = connect("manager")
    await manager.initialize()
    agent = GuardAgentHandler(configure())
    await agent.start()
    await agent.initialize_redis(Handler(manager))
    await manager.initialize_agent(agent)
    await agent.send_event(make_event())
    assert await agent.flush_to_store()
    server.kill()
    await agent.send_event(make_event())
    await agent.flush_to_store()
    http = (await agent.get_status()).destinations["http"]
    assert http["accepted"] - http["dropped"].get("internal", 0) == 2
    assert http["dropped"].get("internal", 0) > 0
    server.start()
    await until_stored(agent)


# --- what 3.x left --------------------------------------------------------------------------------

EVENT = {"event_type": "ip_banned", "ip_address": "192.0.2.7", "reason": "token=hunter2hunter2"}
METRIC = {"metric_type": "request_count", "value": 1.0, "tags": {"method": "GET"}}


def leave(server, amount):
    """What 3.2.4 had stored when it was killed."""
    for number in range(amount):
        stamp = {"timestamp": "2026-01-01T00:00:00+00:00"}
        key = f"0a0a0a0a-0000-4000-8000-{number:012x}"
        event = orjson.dumps({**EVENT, **stamp, "idempotency_key": key})
        metric = orjson.dumps({**METRIC, **stamp})
        name = f"{1_790_000_000_000_000_000 + number}_{number:08x}"
        server.command("SET", f"{PREFIX}agent_events:event_{name}", event, "EX", 3600)
        server.command("SET", f"{PREFIX}agent_metrics:metric_{name}", metric, "EX", 3600)


@pytest.mark.parametrize("kind", ["manager", "protocol", "blocking protocol"])
async def test_records_of_3_x_are_taken_over_redacted_and_removed(
    kind, server, configure, collector, connect
):
    leave(server, 3)
    server.command("SET", f"{PREFIX}agent_events:event_1_junk", "no JSON")
    agent = GuardAgentHandler(configure(flush_interval=0.1))
    await agent.start()
    await agent.initialize_redis(connect(kind))
    await until(lambda: len(collector.events) == 3 and len(collector.metrics) == 3)
    await until(lambda: not keys(server, "*agent_metrics*"))
    assert {event["idempotency_key"][-1] for event in collector.events} == {"0", "1", "2"}
    assert {event["timestamp"] for event in collector.events} == {"2026-01-01T00:00:00Z"}
    assert "hunter2" not in str(collector.events)
    assert keys(server, "*agent_events*") == [f"{PREFIX}agent_events:event_1_junk"]


async def test_they_are_taken_over_whatever_store_the_owner_chose(
    server, configure, collector, connect
):
    leave(server, 3)
    agent = GuardAgentHandler(configure(flush_interval=0.1, store="disk"))
    await agent.start()
    await agent.initialize_redis(connect("manager"))
    await until(lambda: len(collector.events) == 3 and len(collector.metrics) == 3)
    await until(lambda: not keys(server, "*agent_*:*"))


async def test_they_stay_where_they_are_when_nothing_else_would_keep_them(
    server, configure, connect
):
    leave(server, 3)
    before = keys(server)
    agent = GuardAgentHandler(configure(store="memory"))
    await agent.start()
    await agent.initialize_redis(connect("manager"))
    await agent.flush_to_store()
    assert keys(server) == before


async def test_of_several_processes_one_takes_them_over(server, connect):
    leave(server, 50)
    server.command("SET", f"{PREFIX}agent_events:event_1_junk", "no JSON")
    taken = []

    async def commit():
        await asyncio.sleep(0)
        return True

    def take(kind, fields):
        taken.append((kind, fields["idempotency_key"]))
        return True

    manager = connect("manager")
    await manager.initialize()
    host = HostRedis(manager, asyncio.get_running_loop())
    processes = [Leftovers(host, take, commit) for _ in range(4)]
    # The others find what is left, and end with what nobody can read.
    works = [asyncio.ensure_future(process.take_over(pause=0.01)) for process in processes]
    assert sorted(await asyncio.gather(*works)) == [0, 0, 0, 100]
    assert len(taken) == len(set(taken)) == 100


async def test_a_process_that_dies_meanwhile_leaves_the_rest_to_another(server, connect):
    leave(server, 5)
    host = HostRedis(connect("manager"), asyncio.get_running_loop())
    reached = asyncio.Event()

    async def never():
        reached.set()
        await asyncio.Event().wait()

    async def commit():
        return True

    first = asyncio.ensure_future(Leftovers(host, lambda *_: True, never).take_over())
    await reached.wait()
    first.cancel()
    server.command("DEL", f"{PREFIX}{CLAIM}")  # its time has run out
    assert len(keys(server, "*agent_*_*")) == 10
    assert await Leftovers(host, lambda *_: True, commit).take_over(pause=0.01) == 10


def test_a_forked_worker_uses_the_redis_of_its_parent(server, collector, configure, tmp_path):
    """gunicorn --preload: the application was set up before the fork."""
    agent = SyncGuardAgentHandler(configure(flush_interval=0.1))
    manager = BlockingRedisManager(SecurityConfig(redis_url=server.url, redis_prefix=PREFIX))
    agent.initialize_redis(manager)
    agent.send_event(make_event(ip_address="192.0.2.1"))
    assert agent.flush_to_store()
    child = os.fork()
    if child == 0:
        try:
            agent.send_event(make_event(ip_address="192.0.2.2"))
            stored = agent.flush_to_store()
            (tmp_path / "child").write_text(f"{stored} {agent.get_status().store['name']}")
            agent.stop()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "child").read_text() == "True redis"
    collector.wait_for(lambda c: len(c.events) == 2)
    assert collector.duplicates == []
    agent.stop()
    _process.agent = None  # its books do not know what the child did with the same store
