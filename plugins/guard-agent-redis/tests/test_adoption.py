"""What the application hands to ``initialize_redis``, and the store that comes of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import redis
import redis.asyncio
from guard_core.handlers.redis_handler import RedisManager
from guard_core.models import SecurityConfig
from guard_core.sync.handlers.redis_handler import RedisManager as BlockingRedisManager
from redis.asyncio.connection import SSLConnection
from redis.credentials import UsernamePasswordCredentialProvider

from guard_agent import GuardAgentError, HostRedis
from guard_agent.testing.records import make_context, make_record
from guard_agent.testing.redis_server import RedisServer
from guard_agent_redis import RedisStore
from guard_agent_redis.adoption import adopt

CLIENTS = [redis.Redis, redis.asyncio.Redis]
MANAGERS = [BlockingRedisManager, RedisManager]


def adopted(handler, **section):
    context = make_context(destinations=("one",), project_id="shop", plugins={"redis": section})
    return RedisStore.adopt(HostRedis(handler, None), context)


async def assert_works(store):
    """It takes a record, and gives it back."""
    await store.open()
    try:
        record = make_record()
        await store.append([record], evict=True)
        lease = await store.lease("one", 10, 1 << 20, 60)
        assert [*lease.entries.values()] == [record]
    finally:
        await store.close()


@pytest.fixture(params=CLIENTS, ids=["blocking", "asynchronous"])
def client_class(request):
    return request.param


@pytest.fixture(params=MANAGERS, ids=["blocking", "asynchronous"])
def manager_class(request):
    return request.param


async def test_of_a_redis_manager_address_and_prefix_are_used(manager_class, server):
    server.command("ACL", "SETUSER", "app", "on", ">pass", "~shop:*", "&*", "+@all")
    url = server.url.replace("redis://", "redis://app:pass@")
    manager = manager_class(SecurityConfig(redis_url=url, redis_prefix="shop:"))
    await assert_works(adopted(manager))
    assert server.command("KEYS", "*")
    assert all(key.startswith(b"shop:guard-agent:{shop}:") for key in server.command("KEYS", "*"))


@pytest.mark.parametrize("prefix", ["", "{tag}:"])
async def test_any_prefix_of_a_manager_will_do(prefix, server):
    config = SecurityConfig(redis_url=server.url)
    config.redis_prefix = prefix
    await assert_works(adopted(RedisManager(config)))


def test_what_the_owner_set_goes_before_what_the_handler_says():
    manager = RedisManager(SecurityConfig(redis_url="redis://one.example:6379"))
    settings = adopted(manager, prefix="mine", max_records=5, deadline=1).settings
    assert (settings.prefix, settings.max_records, settings.deadline) == ("mine", 5, 1)
    assert settings.url.get_secret_value() == "redis://one.example:6379"


def test_a_manager_that_is_switched_off_is_refused(manager_class):
    with pytest.raises(GuardAgentError, match="switched off"):
        adopted(manager_class(SecurityConfig(enable_redis=False)))


def test_a_manager_without_words_about_a_prefix_gets_the_usual_one():
    for config in (
        SimpleNamespace(redis_url="redis://h"),
        SimpleNamespace(redis_url="redis://h", redis_prefix=None),
        SimpleNamespace(redis_url="redis://h", redis_prefix=""),
    ):
        assert adopted(SimpleNamespace(config=config)).settings.prefix == "guard-agent"
    with pytest.raises(GuardAgentError, match=r"^its Redis is switched off$"):
        adopted(SimpleNamespace(config=SimpleNamespace(redis_url="")))


def test_the_keys_lie_below_the_prefix_of_the_application():
    config = SimpleNamespace(redis_url="redis://h", redis_prefix="shop{one}two:")

    assert adopted(SimpleNamespace(config=config)).settings.prefix == "shoponetwo:guard-agent"


def test_an_address_that_is_none_is_refused_without_the_password():
    config = SecurityConfig()
    config.redis_url = "http://user:secret@host"
    with pytest.raises(ValueError, match="must begin with redis://") as caught:
        adopted(RedisManager(config))
    assert "secret" not in str(caught.value)


async def test_a_client_of_redis_py_is_used_with_its_password_and_database(client_class):
    with RedisServer(options={"requirepass": "hunter2"}) as server:
        client = client_class(host="127.0.0.1", port=server.port, password="hunter2", db=3)
        await assert_works(adopted(client))
        assert "db3" in server.command("INFO", "keyspace")


async def test_a_client_on_a_socket_is_used(client_class):
    with RedisServer(unix_socket=True) as server:
        await assert_works(adopted(client_class(unix_socket_path=str(server.socket))))


async def test_a_client_with_a_credential_provider_is_used(client_class):
    with RedisServer(options={"requirepass": "hunter2"}) as server:
        provider = UsernamePasswordCredentialProvider(password="hunter2")
        client = client_class(host="127.0.0.1", port=server.port, credential_provider=provider)
        await assert_works(adopted(client))


def test_of_a_client_with_tls_every_word_about_it_is_kept(client_class):
    client = client_class(
        host="cache.example",
        ssl=True,
        ssl_ca_certs="/ca.pem",
        ssl_certfile="/me.pem",
        ssl_keyfile="/me.key",
        ssl_check_hostname=False,
    )
    options = adopt(client, {}).options
    assert options["connection_class"] is SSLConnection
    assert options["ssl_ca_certs"] == "/ca.pem"
    assert options["ssl_certfile"] == "/me.pem"
    assert options["ssl_keyfile"] == "/me.key"
    assert options["ssl_check_hostname"] is False


@pytest.mark.parametrize(
    "sentinel_class", [redis.Sentinel, redis.asyncio.Sentinel], ids=["blocking", "asynchronous"]
)
async def test_a_client_of_sentinels_asks_them_too(sentinel_class, server):
    with RedisServer(arguments=("--sentinel",)) as sentinel:
        sentinel.command("SENTINEL", "MONITOR", "shop", "127.0.0.1", server.port, "1")
        sentinels = sentinel_class([("127.0.0.1", sentinel.port)])
        await assert_works(adopted(sentinels.master_for("shop", db=2)))
    assert "db2" in server.command("INFO", "keyspace")


@pytest.mark.parametrize(
    "sentinel_class", [redis.Sentinel, redis.asyncio.Sentinel], ids=["blocking", "asynchronous"]
)
def test_of_a_client_of_sentinels_every_address_and_password_is_kept(sentinel_class):
    known = [("10.0.0.1", 26379), ("::1", 26380)]
    sentinels = sentinel_class(known, sentinel_kwargs={"password": "s"})
    found = adopt(sentinels.master_for("shop", db=2, password="p", ssl=True), {})
    assert found.settings.sentinels == ["10.0.0.1:26379", "[::1]:26380"]
    assert found.settings.sentinel_service == "shop"
    assert found.settings.sentinel_password.get_secret_value() == "s"
    assert found.options == {"db": 2, "password": "p", "connection_class": SSLConnection}


def test_sentinels_without_a_password_or_a_known_one_will_do():
    sentinels = redis.Sentinel([("10.0.0.1", 26379)])
    client = sentinels.master_for("shop")
    assert adopt(client, {}).settings.sentinel_password is None
    client.connection_pool.sentinel_manager.sentinels = []
    section = {"sentinels": ["h:1"]}
    assert adopt(client, section).settings.sentinel_password is None


@pytest.mark.parametrize("handler", [None, object(), {"config": 1}, 7])
def test_anything_else_is_left_to_others(handler):
    assert adopted(handler) is None
