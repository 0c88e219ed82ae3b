from __future__ import annotations

import gzip
import hashlib
import hmac
import json
from datetime import datetime, timezone
from functools import partial

import pytest
from pydantic import ValidationError

from guard_agent import (
    Accepted,
    AgentConfig,
    AgentStatus,
    EventBatch,
    Paused,
    Retry,
    __version__,
)
from guard_agent_http import HttpTransport

STATUS = AgentStatus(
    timestamp=datetime(2026, 1, 2, tzinfo=timezone.utc),
    status="healthy",
    uptime=1.5,
    events_sent=1,
    events_failed=0,
    buffer_size=0,
)


async def test_the_headers_are_exactly_these(exchange, kit):
    config = {"project_id": "shop", "payload_signing_secret": "s3cret"}

    _, server = await exchange(kit.reply(), config=config)

    (request,) = server.requests
    body = request.body
    signature = hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    assert (request.method, request.target) == ("POST", "/api/v1/events")
    assert {key.lower(): value for key, value in request.headers} == {
        "host": f"127.0.0.1:{server.port}",
        "x-api-key": kit.key,
        "authorization": f"Bearer {kit.key}",
        "x-project-id": "shop",
        "x-agent-install-id": "test-install",
        "user-agent": f"guard-agent/{__version__}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "x-payload-signature": f"v1={signature}",
    }
    assert len(request.headers) == 11


async def test_without_project_and_secret_their_headers_are_absent(exchange, kit):
    _, server = await exchange(kit.reply())

    (request,) = server.requests
    assert request.all("X-Project-ID") == []
    assert request.all("X-Payload-Signature") == []


async def test_the_body_is_a_batch_of_joined_records(exchange, kit):
    batch = kit.batch(3)
    config = {"project_id": 'sh"op', "guard_version": "8.1.2"}

    _, server = await exchange(kit.reply(), batch=batch, config=config)

    (request,) = server.requests
    said = json.loads(request.body)
    assert batch.join() in request.body
    created = datetime.strptime(said.pop("created_at"), "%Y-%m-%dT%H:%M:%S.%f%z")
    assert abs((datetime.now(timezone.utc) - created).total_seconds()) < 60
    assert said == {
        "project_id": 'sh"op',
        "events": batch.decode(),
        "metrics": [],
        "batch_id": batch.id,
        "compressed": False,
        "agent_version": __version__,
        "guard_version": "8.1.2",
        "guard_core_version": None,
    }
    assert EventBatch.model_fields.keys() == json.loads(request.body).keys()


async def test_metrics_have_their_own_place(exchange, kit):
    batch = kit.batch(2, kind="metric")

    result, server = await exchange(kit.reply(202), batch=batch)

    (request,) = server.requests
    said = json.loads(request.body)
    assert result == Accepted()
    assert request.target == "/api/v1/metrics"
    assert (said["events"], said["metrics"]) == ([], batch.decode())
    assert said["project_id"] == "default"


async def test_a_status_report_is_posted_compressed_and_signed_like_a_batch(serve, kit, tmp_path):
    async with serve(kit.reply(204)) as server:
        transport = kit.transport(
            server.url, tmp_path, compression_threshold=0, payload_signing_secret="s3cret"
        )
        await transport.open()
        result = await transport.report(STATUS)
        await transport.close()

    (request,) = server.requests
    body = gzip.decompress(request.body)
    assert result == Accepted()
    assert request.target == "/api/v1/status"
    assert AgentStatus.model_validate_json(body) == STATUS
    assert request.one("X-Payload-Signature") == (
        "v1=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    )


async def test_bodies_are_compressed_from_the_threshold_on(exchange, kit):
    batch = kit.batch(3)
    _, server = await exchange(kit.reply(), batch=batch, compression_enabled=False)
    size = len(server.requests[0].body)
    assert server.requests[0].all("Content-Encoding") == []

    _, below = await exchange(kit.reply(), batch=batch, compression_threshold=size + 1)
    _, at = await exchange(kit.reply(), batch=batch, compression_threshold=size)

    assert below.requests[0].all("Content-Encoding") == []
    assert json.loads(below.requests[0].body)["compressed"] is False
    assert at.requests[0].one("Content-Encoding") == "gzip"
    said = json.loads(gzip.decompress(at.requests[0].body))
    assert said["compressed"] is True
    assert said["events"] == batch.decode()


@pytest.mark.parametrize("enabled", [True, False])
async def test_compression_is_as_the_agent_has_it(exchange, kit, enabled):
    config = {"compression_enabled": enabled, "compression_threshold": 10}

    _, server = await exchange(kit.reply(), config=config)

    assert bool(server.requests[0].all("Content-Encoding")) is enabled


async def test_the_signature_is_over_the_uncompressed_body(exchange, kit):
    config = {"payload_signing_secret": "s3cret", "compression_threshold": 0}

    _, server = await exchange(kit.reply(), config=config)

    (request,) = server.requests
    body = gzip.decompress(request.body)
    assert request.one("Content-Encoding") == "gzip"
    assert request.one("X-Payload-Signature") == (
        "v1=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    )


async def test_a_known_body_has_the_known_signature(serve, kit, tmp_path):
    """
    Made with ``openssl dgst -sha256 -hmac s3cret`` over the same bytes.
    """
    async with serve(kit.reply()) as server:
        transport = kit.transport(
            server.url, tmp_path, payload_signing_secret="s3cret", compression_enabled=False
        )
        await transport.open()
        await transport.report(STATUS)
        await transport.close()

    (request,) = server.requests
    assert request.body == (
        b'{"timestamp":"2026-01-02T00:00:00Z","status":"healthy","uptime":1.5,"events_sent":1,'
        b'"events_failed":0,"buffer_size":0,"last_flush":null,"errors":[],"pid":null,'
        b'"plan":{},"level":"memory",'
        b'"loss_window_seconds":null,"store":{},"rollup":{},"rules":{},"destinations":{}}'
    )
    assert (
        request.one("X-Payload-Signature")
        == "v1=232bd0e969d3f1e4f46dcdb46d76164b5d4bd61b0d38874d1a13a8c8161b167b"
    )


@pytest.mark.parametrize("pad", [0, 500])
async def test_a_batch_that_fills_max_batch_bytes_fits_the_body(exchange, kit, tmp_path, pad):
    """
    The core counts payload bytes only; envelope and commas must fit as well.
    """
    settings = {"max_body_bytes": 8_000, "compression_enabled": False}
    transport = kit.transport("http://127.0.0.1:1", tmp_path, **settings)
    count = 1
    while kit.batch(count + 1, size=pad).size <= transport.max_batch_bytes:
        count += 1
    batch = kit.batch(count, size=pad)

    _, server = await exchange(kit.reply(), batch=batch, **settings)

    length = len(server.requests[0].body)
    assert length <= 8_000
    assert length > 8_000 * 0.9


def test_by_default_a_body_fits_what_the_platform_takes(kit, tmp_path):
    transport = kit.transport("http://127.0.0.1:1", tmp_path)

    assert 250 * 1024 < transport.max_batch_bytes < 256 * 1024


@pytest.mark.parametrize(
    ("endpoint", "collector"),
    [
        ("http://127.0.0.1:8080/base", "http://127.0.0.1:8080"),
        ("https://Collector.Example.COM", "https://collector.example.com:443"),
        ("http://[::1]", "http://[::1]:80"),
        ("https://c.example.com/api/v1", "https://c.example.com:443"),
    ],
)
def test_the_collector_is_the_origin_of_the_endpoint(kit, tmp_path, endpoint, collector):
    assert kit.transport(endpoint, tmp_path).collector == collector


async def test_a_path_in_the_endpoint_is_kept(serve, kit, tmp_path):
    async with serve() as server:
        transport = kit.transport(f"{server.url}/guard%2Fx/", tmp_path)
        await transport.open()
        await transport.send(kit.batch())
        await transport.close()

    assert server.requests[0].target == "/guard%2Fx/api/v1/events"


async def test_without_settings_everything_is_as_the_agent_has_it(serve, kit, tmp_path):
    async with serve() as server:
        config = {
            "endpoint": server.url,
            "project_id": "shop",
            "payload_signing_secret": "s3cret",
        }
        transport = kit.transport(None, tmp_path, config)
        await transport.open()
        await transport.send(kit.batch())
        await transport.close()

    (request,) = server.requests
    assert request.one("X-Project-ID") == "shop"
    assert json.loads(request.body)["project_id"] == "shop"
    assert request.one("X-Payload-Signature")


async def test_settings_go_before_what_the_agent_has(exchange, kit):
    config = {"project_id": "shop", "payload_signing_secret": "other"}

    _, server = await exchange(
        kit.reply(),
        config=config,
        project_id="eu-shop",
        api_key="eu-key",
        payload_signing_secret="s3cret",
    )

    (request,) = server.requests
    assert request.one("X-API-Key") == "eu-key"
    assert request.one("Authorization") == "Bearer eu-key"
    assert request.one("X-Project-ID") == "eu-shop"
    assert json.loads(request.body)["project_id"] == "eu-shop"
    assert request.one("X-Payload-Signature") == (
        "v1=" + hmac.new(b"s3cret", request.body, hashlib.sha256).hexdigest()
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("endpoint", "file:///etc/passwd"),
        ("endpoint", "http://169.254.169.254/"),
        ("endpoint", "https://user:pw@example.com"),
        ("api_key", "sec\nret"),
        ("api_key", ""),
        ("project_id", "sh\r\nop"),
        ("project_id", "läden"),
        ("deadline", 0),
        ("deadline", float("inf")),
        ("connect_timeout", -1),
        ("max_body_bytes", 10),
        ("max_body_bytes", 2**30),
        ("compression_threshold", -1),
        ("compresion", True),
    ],
)
def test_a_wrong_setting_is_refused_by_name(name, value):
    with pytest.raises(ValidationError) as caught:
        HttpTransport.Settings(**{name: value})

    assert caught.value.errors()[0]["loc"] == (name,)
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize("name", ["project_id", "install_id"])
def test_a_value_of_the_agent_that_fits_no_header_is_refused_by_name(kit, tmp_path, name):
    with pytest.raises(ValueError, match=name):
        kit.transport("http://127.0.0.1:1", tmp_path, {name: "a\r\nX-Evil: 1"})


def test_a_body_without_room_for_records_is_refused(kit, tmp_path):
    """
    Otherwise every record would be set aside as too large.
    """
    with pytest.raises(ValueError, match="leaves no room for records"):
        kit.transport(
            "http://127.0.0.1:1", tmp_path, {"guard_version": "x" * 4000}, max_body_bytes=4096
        )


def test_secrets_are_not_shown(kit, tmp_path):
    settings = HttpTransport.Settings(api_key="hide-me", payload_signing_secret="hide-me-too")

    assert "hide" not in repr(settings)


async def test_the_deadline_is_at_most_the_timeout_of_the_agent(exchange, kit):
    async def silence(reader, writer):
        await reader.read()

    result, _ = await exchange(silence, config={"timeout": 0.05})

    assert isinstance(result, Retry)
    assert "0.05 s" in result.reason


async def test_closing_twice_and_without_open_is_harmless(serve, kit, tmp_path):
    async with serve() as server:
        never = kit.transport(server.url, tmp_path)
        await never.close()
        transport = kit.transport(server.url, tmp_path)
        await transport.open()
        await transport.open()
        assert await transport.send(kit.batch()) == Accepted()
        await transport.close()
        await transport.close()

        await transport.open()
        assert await transport.send(kit.batch()) == Accepted()
        await transport.close()

    assert server.connections == 2


async def test_sending_before_open_is_a_defect_with_a_name(kit, tmp_path):
    with pytest.raises(RuntimeError, match="open"):
        await kit.transport("http://127.0.0.1:1", tmp_path).send(kit.batch())


async def test_one_connection_serves_many_batches(serve, kit, tmp_path):
    async with serve() as server:
        transport = kit.transport(server.url, tmp_path)
        await transport.open()
        for _ in range(5):
            assert await transport.send(kit.batch()) == Accepted()
        await transport.close()

    assert len(server.requests) == 5
    assert server.connections == 1


async def test_a_large_batch_leaves_room_for_an_answer_per_record(exchange, kit):
    """
    Otherwise its answer could never be read, and it would be sent for ever.
    """
    batch = kit.batch(1000)
    said = {"results": [{"index": n, "status": "accepted", "pad": "x" * 80} for n in range(1000)]}

    result, _ = await exchange(kit.reply(200, said), batch=batch)

    assert len(json.dumps(said)) > 64 * 1024
    assert result == Accepted()


def test_the_agents_own_config_is_enough(tmp_path, kit):
    transport = kit.transport(None, tmp_path, {"endpoint": "https://c.example.com"})

    assert transport.collector == "https://c.example.com:443"
    assert isinstance(transport.context.config, AgentConfig)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_c14_a_redirect_is_never_followed(serve, exchange, kit, status):
    """
    No byte reaches the other place, let alone the key.
    """
    async with serve() as elsewhere:
        location = f"Location: {elsewhere.url}/x?token=secret"
        result, server = await exchange(kit.reply(status, b"", location))

        assert isinstance(result, Paused)
        assert f"redirects to {elsewhere.url} are" in result.reason
        assert "secret" not in result.reason
        assert len(server.requests) == 1
        assert elsewhere.connections == 0


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("http://169.254.169.254/latest/meta-data", "to http://169.254.169.254 are"),
        ("//127.0.0.1/x", "redirects are"),
        ("/elsewhere", "redirects are"),
        ("http://[", "redirects are"),
        ("file:///etc/passwd", "redirects are"),
    ],
)
async def test_c14_wherever_it_leads(exchange, kit, location, shown):
    result, server = await exchange(kit.reply(307, b"", f"Location: {location}"))

    assert isinstance(result, Paused)
    assert shown in result.reason
    assert "set endpoint to the final address" in result.reason
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://169.254.169.254/",
        "https://169.254.1.1",
        "https://[fe80::1%25eth0]",
        "https://[::ffff:169.254.169.254]",
        "http://2852039166",
        "http://metadata.google.internal/",
        "http://instance-data/",
        "https://[fd20:ce::254]",
        "http://192.0.0.192",
        "file:///etc/passwd",
        "ftp://collector.example",
        "collector.example",
        "https://user:hunter2@collector.example",
        "https://hunter2@collector.example",
    ],
)
def test_c22_an_endpoint_that_is_none_is_refused_by_name(endpoint):
    for settings in (HttpTransport.Settings, partial(AgentConfig, api_key="k" * 12)):
        with pytest.raises(ValidationError) as caught:
            settings(endpoint=endpoint)

        assert [error["loc"] for error in caught.value.errors()] == [("endpoint",)]
        assert "hunter2" not in str(caught.value)


def test_c22_plain_http_to_another_host_is_one_warning(kit, tmp_path, caplog):
    for _ in range(3):
        transport = kit.transport("http://c22.example", tmp_path)
        assert transport.collector == "http://c22.example:80"

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "c22.example" in record.getMessage()
