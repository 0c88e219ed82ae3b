"""Encryption of batches, checked by a decoder that is written from the format alone."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher as Primitive
from cryptography.hazmat.primitives.ciphers import algorithms, modes
from cryptography.hazmat.primitives.hmac import HMAC
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from guard_agent import (
    Accepted,
    AgentStatus,
    EncryptionConfigError,
    Paused,
    SecurityEvent,
    TooLarge,
    __version__,
    get_current_timestamp,
    guard_agent,
)
from guard_agent.testing.collector import Collector
from guard_agent.testing.records import make_event, make_metric
from guard_agent_http import HttpTransport
from guard_agent_http.encryption import Cipher, plain_room, sealed_size

RAW_KEY = bytes(range(32))
KEY = base64.urlsafe_b64encode(RAW_KEY).decode()
GOLDEN_PAYLOAD = (
    "oKGio6SlpqeoqaqrnToZWyCldsxAX9yoJROkux3cNmT32SEVw2VD_12RV3Pi"
    "VDqigwA-WCvubat6WLmiGmZGmegwEiWgQMiGTXh8Kn2N"
)
OTHER_KEY = base64.urlsafe_b64encode(bytes(range(1, 33))).decode()


def opened(payload: str, key: bytes = RAW_KEY) -> dict:
    """The format: urlsafe base64 of 12 bytes of nonce, the ciphertext, and 16 bytes of tag."""
    raw = base64.b64decode(payload, altchars=b"-_", validate=True)
    nonce, sealed, tag = raw[:12], raw[12:-16], raw[-16:]
    decryptor = Primitive(algorithms.AES(key), modes.GCM(nonce, tag)).decryptor()
    return json.loads(decryptor.update(sealed) + decryptor.finalize())


def signature(secret: bytes, body: bytes) -> str:
    signer = HMAC(secret, hashes.SHA256())
    signer.update(body)
    return "v1=" + signer.finalize().hex()


def read(request, key: bytes = RAW_KEY) -> tuple[dict, dict]:
    """What stands outside and what is inside of an encrypted request."""
    body = request.body
    if request.all("Content-Encoding"):
        body = gzip.decompress(body)
    outside = json.loads(body)
    return outside, opened(outside.pop("encrypted_payload"), key)


# --- the format -----------------------------------------------------------------------------------


def test_a_published_vector_is_sealed_as_published():
    """
    Test case 15 of "The Galois/Counter Mode of Operation" by McGrew and Viega, AES-256.
    """
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    nonce = bytes.fromhex("cafebabefacedbaddecaf888")
    plain = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
    )
    sealed = bytes.fromhex(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
        "b094dac5d93471bdec1a502270e3cc6c"
    )
    cipher = Cipher(base64.urlsafe_b64encode(key).decode(), random=lambda _: nonce)

    assert base64.urlsafe_b64decode(cipher.seal(plain)) == nonce + sealed


def test_a_known_batch_has_the_known_payload():
    """
    Made with the primitives AES and GCM of another library over the same bytes.
    """
    plain = b'{"events":[{"idempotency_key":"r0"}],"metrics":[]}'
    cipher = Cipher(KEY, random=lambda count: bytes(range(0xA0, 0xA0 + count)))

    assert cipher.seal(plain).decode() == GOLDEN_PAYLOAD
    assert opened(GOLDEN_PAYLOAD) == {"events": [{"idempotency_key": "r0"}], "metrics": []}


@given(st.binary(max_size=400))
def test_the_size_is_known_before(plain):
    size = len(Cipher(KEY).seal(plain))

    assert size == sealed_size(len(plain))
    assert plain_room(size) >= len(plain)
    assert sealed_size(plain_room(size)) <= size


def test_every_attempt_has_a_nonce_of_its_own():
    cipher = Cipher(KEY)

    assert len({cipher.seal(b"same")[:16] for _ in range(1000)}) == 1000


@pytest.mark.parametrize("kind", ["event", "metric"])
async def test_a_batch_is_posted_sealed_and_signed(exchange, kit, kind):
    batch = kit.batch(3, kind=kind)
    config = {
        "project_encryption_key": KEY,
        "payload_signing_secret": "s3cret",
        "project_id": "shop",
        "guard_version": "8.1.2",
    }

    result, server = await exchange(kit.reply(), batch=batch, config=config)

    (request,) = server.requests
    outside, inside = read(request)
    assert result == Accepted()
    assert (request.method, request.target) == ("POST", "/api/v1/events/encrypted")
    assert request.one("Content-Type") == "application/json"
    assert request.one("X-Project-ID") == "shop"
    assert request.one("X-Payload-Signature") == signature(b"s3cret", request.body)
    assert outside == {
        "batch_id": batch.id,
        "agent_version": __version__,
        "guard_version": "8.1.2",
        "guard_core_version": None,
    }
    assert inside == {
        "events": batch.decode() if kind == "event" else [],
        "metrics": batch.decode() if kind == "metric" else [],
    }
    assert b"idempotency_key" not in request.body


async def test_a_large_one_is_compressed_behind_the_seal_and_signed_before(exchange, kit):
    config = {"project_encryption_key": KEY, "payload_signing_secret": "s3cret"}

    _, server = await exchange(kit.reply(), batch=kit.batch(100, size=100), config=config)

    (request,) = server.requests
    body = gzip.decompress(request.body)
    assert len(request.body) < 0.8 * len(body)
    assert request.one("X-Payload-Signature") == signature(b"s3cret", body)
    assert len(read(request)[1]["events"]) == 100


async def test_the_same_batch_has_the_same_id_and_other_bytes_at_each_attempt(serve, kit, tmp_path):
    batch = kit.batch(3)
    async with serve(kit.reply(503), kit.reply(200)) as server:
        transport = kit.transport(server.url, tmp_path, {"project_encryption_key": KEY})
        await transport.open()
        for _ in range(2):
            await transport.send(batch)
        await transport.close()

    first, second = (read(request) for request in server.requests)
    assert first == second
    assert first[0]["batch_id"] == batch.id
    assert server.requests[0].body != server.requests[1].body


async def test_the_decoder_in_the_readme_opens_what_is_sent(exchange, kit):
    batch = kit.batch(3)
    text = Path(__file__).parents[1].joinpath("README.md").read_text()
    (source,) = re.findall(r"```python\n(.*?def open_batch.*?)```", text, re.DOTALL)
    namespace = {}
    exec(source, namespace)

    _, server = await exchange(
        kit.reply(), batch=batch, project_encryption_key=KEY, compression_enabled=False
    )

    body = json.loads(server.requests[0].body)
    for key in (KEY, KEY.rstrip("=")):
        opened_batch = namespace["open_batch"](body, key)
        assert opened_batch == {"events": batch.decode(), "metrics": []}


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [KEY, KEY.rstrip("="), f"  {KEY}\n", "_-" * 21 + "8="])
def test_padding_is_optional(kit, tmp_path, key):
    kit.transport("http://127.0.0.1:1", tmp_path, {"project_encryption_key": key})


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("A" * 43, "all zeros"),
        (base64.urlsafe_b64encode(bytes(32)).decode(), "all zeros"),
        (base64.urlsafe_b64encode(b"canary-" + bytes(9)).decode(), "has 16 bytes"),
        (base64.urlsafe_b64encode(b"canary-" + bytes(24)).decode(), "has 31 bytes"),
        (base64.urlsafe_b64encode(b"canary-" + bytes(26)).decode(), "has 33 bytes"),
        ("canary-" + "x" * 38, "not base64"),
        ("canary+/" + "x" * 36, "not urlsafe base64"),
        ("canary " + "x" * 37, "not urlsafe base64"),
        ("canary" + "é" * 37, "not urlsafe base64"),
        ("=" * 44, "not urlsafe base64"),
        ("canary".ljust(43, "=") + "A", "not urlsafe base64"),
    ],
)
@pytest.mark.parametrize("place", ["agent", "plugin"])
def test_k02_a_key_that_is_none_is_refused_at_construction(kit, tmp_path, key, fault, place):
    setting = {"project_encryption_key": key}
    config, settings = (setting, {}) if place == "agent" else ({}, setting)

    with pytest.raises(EncryptionConfigError, match=fault) as caught:
        kit.transport("http://127.0.0.1:1", tmp_path, config, **settings)

    assert "canary" not in str(caught.value)
    assert "token_urlsafe(32)" in str(caught.value)
    prefix = "" if place == "agent" else "plugins.http."
    assert str(caught.value).startswith(f"{prefix}project_encryption_key ")


@pytest.mark.parametrize("key", ["", "short", "A" * 43])
def test_k02_the_agent_does_not_start_with_a_wrong_key(agent_config, key):
    with pytest.raises(EncryptionConfigError):
        guard_agent(agent_config(project_encryption_key=key))


def test_k02_a_name_without_a_key_is_refused(kit, tmp_path):
    with pytest.raises(EncryptionConfigError, match="project_encryption_key is not set"):
        kit.transport("http://127.0.0.1:1", tmp_path, encryption_key_id="2026-11")


@pytest.mark.parametrize("key_id", ["", "a b", "x" * 65, "ä", 'a"b', "a\n"])
def test_a_name_that_is_none_is_refused(key_id):
    with pytest.raises(ValidationError, match="encryption_key_id"):
        HttpTransport.Settings(encryption_key_id=key_id)


async def test_k02_a_key_has_a_name_that_travels_along(exchange, kit):
    config = {"project_encryption_key": KEY}

    _, server = await exchange(kit.reply(), config=config, encryption_key_id="2026-11")

    outside, inside = read(server.requests[0])
    assert outside["key_id"] == "2026-11"
    assert len(inside["events"]) == 1


async def test_a_destination_can_have_a_key_of_its_own(exchange, kit):
    config = {"project_encryption_key": KEY}

    _, server = await exchange(kit.reply(), config=config, project_encryption_key=OTHER_KEY)

    assert read(server.requests[0], bytes(range(1, 33)))[1]["events"]


def test_the_key_is_not_shown(kit, tmp_path):
    transport = kit.transport("http://127.0.0.1:1", tmp_path, project_encryption_key=KEY)

    assert KEY not in repr(transport.settings)
    assert KEY not in repr(vars(transport))


def test_k02_a_key_is_replaced_without_losing_a_record(agent_config):
    """
    The collector holds both while agents change over; records wait in clear and are sealed at each
    attempt, so none is left behind with the old key.
    """
    keys = {"2026-10": KEY, "2026-11": OTHER_KEY}
    with Collector(encryption_keys=keys) as collector:
        for number, (key_id, key) in enumerate(keys.items()):
            agent = guard_agent(
                agent_config(
                    endpoint=collector.url,
                    project_encryption_key=key,
                    plugins={"http": {"encryption_key_id": key_id}},
                    stop_timeout=20,
                )
            )
            agent.send_event(make_event(reason=str(number)))
            agent.stop()

        assert [event["reason"] for event in collector.events] == ["0", "1"]
        paths = {request.path for request in collector.requests} - {"/api/v1/rules"}
        assert paths == {"/api/v1/events/encrypted"}


# --- without cryptography -------------------------------------------------------------------------

NO_LIBRARY = """
import sys
sys.modules["cryptography"] = None  # what an import finds where it is not installed
from guard_agent import AgentConfig, EncryptionConfigError, guard_agent
key = sys.argv[1] if len(sys.argv) > 1 else None
try:
    guard_agent(AgentConfig(api_key="test-key-0123", project_encryption_key=key))
except EncryptionConfigError as error:
    print(error)
else:
    print("made")
"""


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_key_without_the_library_is_an_error_that_says_what_to_install():
    said = run(NO_LIBRARY, KEY)

    assert said.startswith("project_encryption_key is set")
    assert "pip install 'guard-agent-http[encryption]'" in said
    assert "nothing is sent unencrypted" in said


def test_without_a_key_the_library_is_not_needed():
    assert run(NO_LIBRARY) == "made"


def test_importing_the_plugin_does_not_load_the_library():
    script = "import guard_agent_http, sys; print([m for m in sys.modules if 'cryptography' in m])"

    assert run(script) == "[]"


# --- nothing in clear -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 406, 413, 415, 422, 500, 501, 503])
async def test_k02_no_answer_makes_it_send_in_clear(serve, kit, tmp_path, status):
    """
    Whatever the collector says to an encrypted batch, the next attempt is encrypted as well.
    """
    async with serve(kit.reply(status)) as server:
        transport = kit.transport(server.url, tmp_path, {"project_encryption_key": KEY})
        await transport.open()
        for kind in ("event", "metric", "event"):
            assert not isinstance(await transport.send(kit.batch(kind=kind)), Accepted)
        await transport.close()

    assert {request.target for request in server.requests} == {"/api/v1/events/encrypted"}
    assert not any(b"idempotency_key" in request.body for request in server.requests)


async def test_a_collector_without_a_place_for_it_is_named(exchange, kit):
    result, _ = await exchange(kit.reply(404), config={"project_encryption_key": KEY})

    assert isinstance(result, Paused)
    assert "no place for encrypted batches (404)" in result.reason
    assert "project_encryption_key" in result.reason


def test_k02_what_an_agent_sends_holds_no_record_in_clear(agent_config):
    canary = "canary-f3a1"
    with Collector(encryption_keys=KEY) as collector:
        agent = guard_agent(
            agent_config(endpoint=collector.url, project_encryption_key=KEY, buffer_size=10)
        )
        for _ in range(25):
            agent.send_event(make_event(reason=canary, user_agent=canary))
            agent.send_metric(make_metric(endpoint=f"/{canary}"))
        agent.flush_buffer()
        agent.get_dynamic_rules()
        agent.stop()

        assert len(collector.events) == len(collector.metrics) == 25
        assert {event["reason"] for event in collector.events} == {canary}
        assert {metric["endpoint"] for metric in collector.metrics} == {f"/{canary}"}
        posts = [request for request in collector.requests if request.method == "POST"]
        assert {request.path for request in posts} == {"/api/v1/events/encrypted"}
        for request in collector.requests:
            assert canary.encode() not in request.body
            assert canary not in str(request.headers)


async def test_a_status_report_quotes_nothing_while_batches_are_encrypted(serve, kit, tmp_path):
    """
    There is no encrypted place for it. A reason may quote what a collector said about a record.
    """
    status = AgentStatus(
        timestamp=datetime(2026, 1, 2, tzinfo=timezone.utc),
        status="degraded",
        uptime=1.5,
        events_sent=1,
        events_failed=2,
        buffer_size=0,
        errors=["http: 422: canary"],
        store={"sync": "full", "error": "canary"},
        destinations={"http": {"dropped": {"overflow": 2}, "last_error": "422: canary"}},
    )
    async with serve(kit.reply(204)) as server:
        transport = kit.transport(server.url, tmp_path, {"project_encryption_key": KEY})
        await transport.open()
        assert await transport.report(status) == Accepted()
        await transport.close()

    (request,) = server.requests
    said = json.loads(request.body)
    assert request.target == "/api/v1/status"
    assert b"canary" not in request.body
    assert said["errors"] == []
    assert said["store"] == {"sync": "full", "error": None}
    assert said["destinations"] == {"http": {"dropped": {"overflow": 2}, "last_error": None}}
    assert said["status"] == "degraded"


# --- size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [0, 500])
async def test_a_batch_that_fills_max_batch_bytes_fits_the_body(exchange, kit, tmp_path, pad):
    """
    Base64 makes four bytes of three; envelope and commas come on top.
    """
    settings = {
        "max_body_bytes": 8_000,
        "compression_enabled": False,
        "project_encryption_key": KEY,
        "encryption_key_id": "x" * 64,
    }
    transport = kit.transport("http://127.0.0.1:1", tmp_path, **settings)
    count = 1
    while kit.batch(count + 1, size=pad).size <= transport.max_batch_bytes:
        count += 1

    _, server = await exchange(kit.reply(), batch=kit.batch(count, size=pad), **settings)

    length = len(server.requests[0].body)
    assert 8_000 * 0.85 < length <= 8_000


def test_by_default_an_encrypted_body_fits_what_the_platform_takes(kit, tmp_path):
    transport = kit.transport("http://127.0.0.1:1", tmp_path, project_encryption_key=KEY)

    assert 188 * 1024 < transport.max_batch_bytes < 192 * 1024


async def test_a_record_that_cannot_fit_is_too_large_without_a_request(exchange, kit):
    result, server = await exchange(
        kit.reply(),
        batch=kit.batch(size=6_500),
        max_body_bytes=8_000,
        project_encryption_key=KEY,
    )

    assert isinstance(result, TooLarge)
    assert server.connections == 0


def test_large_encrypted_batches_stay_below_256_kib_on_the_wire(agent_config):
    with Collector(max_body=256 * 1024, encryption_keys=KEY) as collector:
        agent = guard_agent(
            agent_config(
                endpoint=collector.url,
                project_encryption_key=KEY,
                compression_enabled=False,
                max_payload_size=10_000,
                max_requests_per_second=1000,
                stop_timeout=30,
            )
        )
        event = SecurityEvent(
            timestamp=get_current_timestamp(), event_type="ip_banned", reason='"\\\x00é' * 1000
        )
        for _ in range(200):
            agent.send_event(event.model_copy(update={"idempotency_key": os.urandom(16).hex()}))
        agent.stop()

        assert len(collector.events) == 200
        posts = [request for request in collector.requests if request.method == "POST"]
        assert {request.status for request in posts} == {200}
        sizes = [request.wire_size for request in posts]
        assert 200 * 1024 < max(sizes) <= 256 * 1024
