"""
Whole agents on a real server that fails (R01 to R18 of docs/reliability.md).

`Host` checks in every test what each row means besides: taking a record never waits, the books
balance, and the agent ends in time.
"""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import contextmanager

import pytest
from redis.asyncio.connection import AbstractConnection

from guard_agent import SecurityEvent, get_current_timestamp
from guard_agent.testing.collector import Answer, Collector
from guard_agent.testing.hosts import Host

BUSY = Answer(status=503, headers={"Retry-After": "1"})
BASE = "guard-agent:{shop}:"
CHANGE_OR_LESS = range(4)


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture(autouse=True)
def state_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))


def make_host(collector, url, settings=None, **config):
    settings = {"url": url, "deadline": 1.0, **(settings or {})}
    return Host(collector, store="redis", plugins={"redis": settings}, **config)


def said(caplog, text):
    """How many warnings hold these words."""
    return sum(
        record.levelno >= logging.WARNING and text in record.getMessage()
        for record in caplog.records
    )


AWAY = "is not available, records wait in memory"
BACK = "the store redis works again"


def held(server):
    return sum(server.command("XLEN", f"{BASE}records:{n}") for n in CHANGE_OR_LESS)


def test_r01_a_server_that_is_down_at_the_start_is_attached_later(server, collector, caplog):
    server.kill()
    with make_host(collector, server.url) as host:
        host.agent.start()
        host.record(5)
        host.until_delivered()
        status = host.status()
        assert (status.level, status.status) == ("memory", "degraded")
        assert status.loss_window_seconds is None
        assert "cannot be reached" in status.errors[0]

        server.start()
        collector.always(BUSY)
        host.record(3)
        host.until_level("journal")
        host.record(4)
        assert host.confirm()
        assert held(server) > 0
        assert "the store" not in str(host.status().errors)
        collector.always(None)
        host.until_delivered()
    assert collector.duplicates == []
    assert (said(caplog, AWAY), said(caplog, BACK)) == (1, 1)


def test_r02_a_server_that_dies_costs_neither_records_nor_deliveries(
    durable_server, collector, caplog
):
    """What it had is delivered when it is back, what came meanwhile from memory."""
    server = durable_server
    collector.always(BUSY)
    with make_host(collector, server.url) as host:
        host.record(200)
        assert host.confirm()
        server.kill()
        host.record(50)
        assert not host.confirm()
        collector.always(None)
        host.until_delivered(50)
        assert host.status().level == "memory"
        server.start()
        host.until_delivered()
        host.until_level("journal")
        host.until(lambda: host.status().destinations["http"]["pending"] == 0)
        host.record(1)
        host.until(host.confirm)
    assert collector.duplicates == []
    assert (said(caplog, AWAY), said(caplog, BACK)) == (1, 1)


def test_r02_a_server_that_dies_between_delivery_and_ack_is_told_later(durable_server, collector):
    server = durable_server
    with make_host(collector, server.url) as host:
        collector.always(Answer(delay=1.0))
        host.record(20)
        assert host.confirm()
        host.until(lambda: collector.requests)
        server.kill()
        host.until(lambda: host.agent.balances()["http"].delivered == 20)
        collector.always(None)
        server.start()
        host.until_level("journal")
        host.until(lambda: held(server) == 0)
    assert collector.duplicates == []


def test_r03_a_server_without_memory_leaves_records_to_the_memory_lane(server, collector, caplog):
    with make_host(collector, server.url) as host:
        host.record(1)
        assert host.confirm()
        server.command("CONFIG", "SET", "maxmemory", 1)
        host.record(100)
        assert not host.confirm()
        host.until_delivered()
        status = host.status()
        assert status.level == "memory"
        assert "no memory left" in str(status.errors)
        server.command("CONFIG", "SET", "maxmemory", 0)
        host.until_level("journal")
        assert host.dropped == {}
    assert collector.duplicates == []
    assert said(caplog, AWAY) >= 1


def test_r04_a_server_that_may_evict_is_marked_as_not_durable(server, collector, caplog):
    server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru", "appendonly", "yes")
    with make_host(collector, server.url) as host:
        host.record(1)
        host.until_level("journal")
        store = host.status().store
        assert store["durable"] is False
        assert "may evict" in str(store["hazards"])
    assert said(caplog, "may evict the store") == 1


def test_r05_a_server_that_becomes_a_replica_is_used_again_when_it_is_promoted(
    server, collector, caplog
):
    collector.always(BUSY)
    with make_host(collector, server.url) as host:
        host.record(10)
        assert host.confirm()
        server.command("REPLICAOF", "127.0.0.1", "1")
        host.record(10)
        assert not host.confirm()
        host.until(lambda: "takes no writes" in str(host.status().errors))
        server.command("REPLICAOF", "NO", "ONE")
        collector.always(None)
        host.until_delivered()
        host.until_level("journal")
        host.record(1)
        host.until(host.confirm)
    assert collector.duplicates == []
    assert (said(caplog, AWAY), said(caplog, BACK)) == (1, 1)


@contextmanager
def paused(server):
    server.pause(600)
    try:
        yield
    finally:
        server.restart()


@pytest.mark.parametrize("how", ["SIGSTOP", "CLIENT PAUSE"])
def test_r06_a_server_that_stalls_holds_up_nothing(server, collector, how):
    """Taking a record waits for no answer of the server: the host checks that, too."""
    with make_host(collector, server.url, {"deadline": 2}) as host:
        host.record(5)
        host.until_delivered()
        with server.frozen() if how == "SIGSTOP" else paused(server):
            host.record(100)
            host.until_delivered()
            assert host.status().level == "memory"
        host.until_level("journal")
        host.until(lambda: held(server) == 0)
    # What the server did too late is taken back, unless it does it later still.
    assert len(collector.duplicates) <= 100


def test_r06_a_frozen_server_does_not_hold_up_the_end(server, collector):
    with make_host(collector, server.url) as host:
        host.record(5)
        assert host.confirm()
        with server.frozen():
            host.record(5)
            host.stop()
        host.check_books()
        assert len(collector.events) >= 5


@pytest.mark.parametrize("how", ["FLUSHALL", "restart"])
def test_r07_what_a_server_lost_is_counted_and_the_store_goes_on(server, collector, caplog, how):
    """The group is made again, once; the books say what went."""
    collector.always(Answer(status=503, headers={"Retry-After": "2"}))
    with make_host(collector, server.url) as host:
        host.record(30)
        assert host.confirm()
        assert host.status().destinations["http"]["pending"] == 30
        if how == "FLUSHALL":
            server.command("FLUSHALL")
        else:
            server.restart()
        host.record(5)
        host.until(host.confirm)
        status = host.status()
        assert status.store["store_resets"] == 1
        assert status.destinations["http"]["dropped"] == {"store_reset": 30}
        assert status.destinations["http"]["pending"] == 5
        host.check_books()

        collector.always(None)
        host.until_delivered(5)
        host.record(5)
        host.until_delivered(10)
        assert host.status().store["store_resets"] == 1
        server.command("CONFIG", "RESETSTAT")
        host.confirm()
        assert server.command_counts().get("xgroup|create", 0) == 0, "no loop"
    assert said(caplog, "was gone from Redis") == 1
    assert host.dropped == {"store_reset": 30}


def test_r09_junk_in_the_stream_is_buried_and_the_rest_is_delivered(server, collector, caplog):
    collector.always(BUSY)
    with make_host(collector, server.url) as host:
        host.record(3)
        assert host.confirm()
        for n in CHANGE_OR_LESS:
            server.command("XADD", f"{BASE}records:{n}", "*", "v", "9", "h", b"\xff\x00", "x", "y")
        host.record(3)
        collector.always(None)
        host.until_delivered()
        host.until(lambda: held(server) == 0)
        host.status()
    assert said(caplog, "were not written by this store") == 1
    assert collector.duplicates == []


def test_r15_a_user_who_may_no_longer_costs_durability_until_he_may_again(
    server, collector, caplog
):
    rights = ("~*", "+@all")
    server.command("ACL", "SETUSER", "agent", "on", ">geheim", *rights)
    url = server.url.replace("://", "://agent:geheim@")
    with make_host(collector, url) as host:
        host.record(2)
        host.until_delivered()
        server.command("ACL", "SETUSER", "agent", "-@all")
        host.record(5)
        host.until_delivered()
        assert host.status().level == "memory"
        server.command("CONFIG", "RESETSTAT")
        host.record(50)
        host.until_delivered()
        refused = server.command("INFO", "errorstats").get("errorstat_NOPERM", {"count": 0})
        assert int(refused["count"]) < 10, "slow retry"
        server.command("ACL", "SETUSER", "agent", "+@all")
        host.until_level("journal")
        host.record(1)
        host.until(host.confirm)
    assert "geheim" not in caplog.text
    assert (said(caplog, AWAY), said(caplog, BACK)) == (1, 1)


def test_r15_a_server_with_too_many_clients_is_attached_when_there_is_room(server, collector):
    server.command("CONFIG", "SET", "maxclients", 1)
    with make_host(collector, server.url) as host:
        host.record(5)
        host.until_delivered()
        assert host.status().level == "memory"
        server.command("CONFIG", "SET", "maxclients", 100)
        host.until_level("journal")


def clients(server):
    return sum(
        b"cmd=client" not in line for line in server.command("CLIENT", "LIST").splitlines() if line
    )


def test_r16_a_thousand_threads_of_records_share_two_connections(server, collector):
    with make_host(collector, server.url) as host:
        host.record(1)
        assert host.confirm()
        most = 0
        begin = threading.Event()
        count = threading.Lock()

        def work():
            begin.wait()
            with count:
                host.record(1)
            host.agent.flush_to_store()

        threads = [threading.Thread(target=work) for _ in range(1000)]
        for thread in threads:
            thread.start()
        begin.set()
        while any(thread.is_alive() for thread in threads):
            most = max(most, clients(server))
        host.until_delivered()
        assert 1 <= max(most, clients(server)) <= 2
        host.slowest = 0.0  # a thousand threads wait for the interpreter, not for the agent


class OldServer:
    """Answers like Redis 6.0, as far as it is asked."""

    def __init__(self):
        self.asked = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                while (line := lines.readline()).startswith(b"*"):
                    words = []
                    for _ in range(int(line[1:])):
                        lines.readline()
                        words.append(lines.readline().strip().upper())
                    self.asked.append(words[0])
                    info = b"# Server\r\nredis_version:6.0.16\r\n"
                    connection.sendall(
                        b"$%d\r\n%s\r\n" % (len(info), info) if words[0] == b"INFO" else b"+OK\r\n"
                    )

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)


def test_r17_a_server_that_is_too_old_is_refused_in_one_line_and_memory_does_it(collector, caplog):
    old = OldServer()
    try:
        with make_host(collector, old.url) as host:
            host.record(5)
            host.until_delivered()
            assert host.status().level == "memory"
    finally:
        old.close()
    assert set(old.asked) <= {b"CLIENT", b"INFO"}
    assert said(caplog, AWAY) == 1
    (line,) = [r.getMessage() for r in caplog.records if AWAY in r.getMessage()]
    assert "Redis 6.0.16; the store needs Redis 6.2 or newer, or Valkey" in line
    assert "\n" not in line


def test_r18_a_client_that_the_app_instruments_does_not_record_itself(
    server, collector, monkeypatch
):
    """The app sends an event for each command: those of the agent itself are counted, not taken."""
    calls = []
    with make_host(collector, server.url) as host:
        send = AbstractConnection.send_packed_command

        async def instrumented(self, *arguments, **options):
            calls.append(threading.current_thread().name)
            event = SecurityEvent(timestamp=get_current_timestamp(), event_type="redis_command")
            assert host.agent.record("event", event) is None
            return await send(self, *arguments, **options)

        monkeypatch.setattr(AbstractConnection, "send_packed_command", instrumented)
        host.record(1)
        assert host.confirm()
        host.until_delivered()
        host.until(lambda: held(server) == 0)
        host.stop()
        assert len(calls) > 3
        assert set(calls) == {"guard-agent"}
        assert [event["event_type"] for event in collector.events] == ["suspicious_request"]
        assert host.dropped == {"internal": len(calls)}
