from __future__ import annotations

import pytest
from pydantic import ValidationError

from guard_agent_redis import RedisSettings


@pytest.mark.parametrize(
    "url",
    [
        "redis://cache",
        "redis://user:secret@cache:6380/2",
        "rediss://cache?ssl_ca_certs=/etc/ca.pem",
        "unix:///run/redis.sock",
        "unix://user:secret@/run/redis.sock?db=1",
    ],
)
def test_addresses(url):
    assert RedisSettings(url=url).url.get_secret_value() == url


@pytest.mark.parametrize("url", ["", "cache:6379", "http://cache", "redis://", "redis://cache:x"])
def test_what_is_no_address_is_refused_without_showing_it(url):
    with pytest.raises(ValidationError, match=r"url\n"):
        RedisSettings(url=url)


def test_no_secret_is_shown():
    shown = RedisSettings(
        url="redis://u:secret@h",
        password="secret",
        sentinels=["h"],
        sentinel_service="s",
        sentinel_password="secret",
    )

    assert "secret" not in f"{shown!r}{shown}{shown.model_dump_json()}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefix": "a{b"}, "braces"),
        ({"prefix": ""}, "at least 1"),
        ({"sentinels": ["one:26379"]}, "set both or none"),
        ({"sentinel_service": "shop"}, "set both or none"),
        ({"sentinels": ["one:x"], "sentinel_service": "shop"}, "is not an address like"),
        ({"deadline": 0}, "greater than 0"),
        ({"deadline": "nan"}, "finite"),
        ({"max_records": 0}, "greater than or equal to 1"),
        ({"max_record": 1}, "Extra inputs"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        RedisSettings(**settings)
