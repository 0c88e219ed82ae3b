"""What an error of the client or the server becomes."""

from __future__ import annotations

import asyncio

import pytest
from redis import exceptions

from guard_agent_redis import ServerDownError, StoreUnavailableError
from guard_agent_redis.errors import code_of, translate

R = exceptions.ResponseError
CODES = [
    (exceptions.ReadOnlyError("You can't write against a read only replica."), "READONLY"),
    (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "LOADING"),
    (exceptions.NoPermissionError("this user has no permissions"), "NOPERM"),
    (exceptions.NoScriptError("No matching script."), "NOSCRIPT"),
    (exceptions.OutOfMemoryError("command not allowed"), "OOM"),
    (exceptions.MasterDownError("Link with MASTER is down"), "MASTERDOWN"),
    (exceptions.ClusterDownError("The cluster is down"), "CLUSTERDOWN"),
    (exceptions.TryAgainError("Multiple keys request"), "TRYAGAIN"),
    (exceptions.MovedError("3999 127.0.0.1:6381"), "MOVED"),
    (exceptions.ClusterCrossSlotError("Keys in request don't hash"), "CROSSSLOT"),
    (exceptions.AuthenticationError("Authentication required."), "NOAUTH"),
    (exceptions.AuthenticationError("invalid username-password pair"), "WRONGPASS"),
    (R("WRONGTYPE Operation against a key"), "WRONGTYPE"),
    (R("RESET the store is gone"), "RESET"),
    (R("ERR something OOM"), ""),
    (R("Err something"), ""),
    (R("B4D something"), ""),
    (R("Error running script (call to f_1): @user_script:12: -OOM command not allowed"), "OOM"),
    (R("Error running script: @user_script: 9: NOGROUP No such key"), "NOGROUP"),
    (exceptions.ConnectionError("user_script:12: -OOM what else"), ""),
    (OSError("no route"), ""),
]


@pytest.mark.parametrize(("error", "code"), CODES, ids=lambda value: str(value)[:30])
def test_the_word_of_an_error(error, code):
    assert code_of(error) == code


DOWN = [
    (exceptions.ReadOnlyError("x"), "Redis at h: the server is a replica and takes no writes (x)"),
    (exceptions.BusyLoadingError("x"), "Redis at h: the server is loading its data (x)"),
    (
        exceptions.MasterDownError("x"),
        "Redis at h: the server is a replica without its primary (x)",
    ),
    (exceptions.ClusterDownError("x"), "Redis at h: the cluster is down (x)"),
    (
        R("BUSY Redis is busy"),
        "Redis at h: the server is busy with a script that does not end (BUSY Redis is busy)",
    ),
    (
        exceptions.ConnectionError("max number of clients reached"),
        "Redis at h: the server has reached its number of clients (maxclients)",
    ),
    (
        R("ERR maxclients was reached"),
        "Redis at h: the server has reached its number of clients (maxclients)",
    ),
    (asyncio.TimeoutError(), "Redis at h does not answer in time"),
    (exceptions.TimeoutError("x"), "Redis at h does not answer in time"),
    (exceptions.ConnectionError("a\n b"), "Redis at h cannot be reached: a b"),
    (OSError("no route"), "Redis at h cannot be reached: no route"),
]


@pytest.mark.parametrize(("error", "text"), DOWN, ids=lambda value: str(value)[:30])
def test_nobody_to_write_to(error, text):
    found = translate(error, "Redis at h")

    assert (type(found), str(found)) == (ServerDownError, text)


REFUSED = [
    (
        exceptions.OutOfMemoryError("x"),
        (
            "Redis at h: the server has no memory left; raise maxmemory, or lower max_bytes of the "
            "store (x)"
        ),
    ),
    (
        exceptions.AuthenticationError("Authentication required."),
        (
            "Redis at h: the server asks for a password; set url, or username and password "
            "(Authentication required.)"
        ),
    ),
    (R("ERR what\r\n\x0b is that"), "Redis at h: ERR what is that"),
    (R("ODD thing"), "Redis at h: ODD thing"),
    (R("e" * 400), f"Redis at h: {'e' * 300}"),
]


@pytest.mark.parametrize(("error", "text"), REFUSED, ids=lambda value: str(value)[:30])
def test_a_server_that_is_there_and_refuses(error, text):
    found = translate(error, "Redis at h")

    assert (type(found), str(found)) == (StoreUnavailableError, text)
