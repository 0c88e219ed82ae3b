from __future__ import annotations

import asyncio
import runpy
import ssl
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from guard_agent import Accepted, GuardAgentError, Paused, Retry, guard_agent
from guard_agent.testing.records import make_event
from guard_agent_http import CollectorClient, CollectorSettings
from guard_agent_http.tls import TlsFiles

# Test modules are not importable by name.
_HELPERS = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tls_server.py"))))
TlsServer, server_context = _HELPERS.TlsServer, _HELPERS.server_context

V = ssl.TLSVersion
KEY = "k" * 12


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger():
    """An authority nobody here trusts."""
    return trustme.CA()


@pytest.fixture
def files(tmp_path, authority):
    """Write PEM files; ``files.ca`` is the authority of the collector."""

    class Files:
        ca = tmp_path / "ca.pem"

        @staticmethod
        def client(issuer, name="client.pem"):
            path = tmp_path / name
            issuer.issue_cert("agent@example.org").private_key_and_cert_chain_pem.write_to_path(
                str(path)
            )
            return path

        @staticmethod
        def client_in_two(issuer, password):
            made = issuer.issue_cert("agent@example.org")
            key = load_pem_private_key(made.private_key_pem.bytes(), None)
            (tmp_path / "client.key").write_bytes(
                key.private_bytes(
                    Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password)
                )
            )
            chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
            (tmp_path / "client.crt").write_bytes(chain)
            return tmp_path / "client.crt", tmp_path / "client.key"

    authority.cert_pem.write_to_path(str(Files.ca))
    return Files


async def ask(port, host="localhost", times=1, **tls):
    """The result of the last of ``times`` requests with settings ``tls``."""
    settings = CollectorSettings(**tls)
    client = CollectorClient(
        endpoint=f"https://{host}:{port}",
        api_key=KEY,
        install_id="test-install",
        tls=settings.tls_files(),
    )
    await client.open()
    try:
        for _ in range(times - 1):
            await client.request("POST", "/x", body=b"canary")
        return await client.request("POST", "/x", body=b"canary")
    finally:
        await client.close()


def test_what_is_checked_does_not_depend_on_the_system():
    context = TlsFiles().context()

    assert context.minimum_version == V.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname is True


@pytest.mark.parametrize("newest", [V.TLSv1_2, V.TLSv1_3])
async def test_an_authority_of_ones_own_is_trusted_when_named(authority, files, newest):
    context = server_context(authority.issue_cert("localhost"), newest=newest)
    with TlsServer(context) as server:
        answer = await ask(server.port, ca_file=files.ca)

        assert answer.status == 200
        assert server.requests[0].endswith(b"canary")


async def test_the_system_may_be_told_in_the_environment(authority, files, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(files.ca))
    with TlsServer(server_context(authority.issue_cert("localhost"))) as server:
        assert (await ask(server.port)).status == 200


async def test_a_named_authority_is_the_only_one(authority, stranger, files):
    with TlsServer(server_context(stranger.issue_cert("localhost"))) as server:
        assert isinstance(await ask(server.port, ca_file=files.ca), Paused)

        assert server.requests == []


def certificate(authority, stranger, kind):
    old, new = datetime(2020, 1, 1, tzinfo=timezone.utc), datetime(2090, 1, 1, tzinfo=timezone.utc)
    if kind == "expired":
        return authority.issue_cert("localhost", not_before=old, not_after=old.replace(year=2021))
    if kind == "not yet valid":
        return authority.issue_cert("localhost", not_before=new, not_after=new.replace(year=2091))
    if kind == "wrong host":
        return authority.issue_cert("other.example")
    return stranger.issue_cert("localhost")


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("expired", "certificate has expired: renew it"),
        ("not yet valid", "certificate is not yet valid: renew it"),
        ("wrong host", "certificate is not valid for 'localhost': check the name in endpoint"),
        ("unknown authority", "unable to get local issuer certificate: if its authority"),
    ],
)
async def test_c18_a_certificate_that_is_not_valid_is_refused(
    authority, stranger, files, kind, hint
):
    with TlsServer(server_context(certificate(authority, stranger, kind))) as server:
        result = await ask(server.port, ca_file=files.ca, times=2)

        assert isinstance(result, Paused)
        assert f"the certificate of https://localhost:{server.port} is not valid" in result.reason
        assert hint in result.reason
        assert server.requests == []


@pytest.mark.parametrize("newest", [V.TLSv1, V.TLSv1_1])
async def test_c18_nothing_older_than_tls_1_2_is_spoken(authority, files, newest):
    context = server_context(authority.issue_cert("localhost"), oldest=V.TLSv1, newest=newest)
    with TlsServer(context) as server:
        result = await ask(server.port, ca_file=files.ca, times=2)

        assert isinstance(result, (Paused, Retry))
        assert "TLS 1.2 or newer" in result.reason
        assert server.requests == []


async def plain_http(reader, writer):
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


async def hang_up(reader, writer):
    pass


async def half_a_handshake(reader, writer):
    writer.write(b"\x16\x03\x03\x00\x50\x02\x00\x00")
    await writer.drain()


async def silence(reader, writer):
    await reader.read()


@pytest.mark.parametrize(
    ("step", "hint"),
    [
        (plain_http, "what listens there does not speak TLS: check scheme and port of endpoint"),
        (hang_up, "it closed the connection during the TLS handshake"),
        (half_a_handshake, "it closed the connection during the TLS handshake"),
        (silence, "no connection to https://127.0.0.1"),
    ],
)
async def test_c18_what_is_no_tls_gets_nothing(serve, files, step, hint):
    """
    Neither in the first attempt nor in a later one: there is no way back to plain text.
    """
    heard = []

    async def handle(reader, writer):
        heard.append(await reader.read(65_536))
        await step(reader, writer)

    async with serve(handle, raw=True) as server:
        result = None
        client = CollectorClient(
            endpoint=f"https://127.0.0.1:{server.port}",
            api_key=KEY,
            install_id="test-install",
            connect_timeout=0.5,
            tls=TlsFiles(ca_file=files.ca),
        )
        await client.open()
        for _ in range(3):
            result = await client.request("POST", "/x", body=b"canary")
        await client.close()

    assert isinstance(result, Retry)
    assert hint in result.reason
    assert len(heard) == 3
    for first in heard:
        assert first[:2] == b"\x16\x03"  # a handshake
        assert b"canary" not in first
        assert KEY.encode() not in first


# --- certificates of the agent --------------------------------------------------------------------


@pytest.mark.parametrize("newest", [V.TLSv1_2, V.TLSv1_3])
async def test_a_client_certificate_is_shown(authority, files, newest):
    context = server_context(authority.issue_cert("localhost"), clients=authority, newest=newest)
    with TlsServer(context) as server:
        answer = await ask(server.port, ca_file=files.ca, client_cert_file=files.client(authority))

        assert answer.status == 200


async def test_its_key_may_be_in_another_file_and_encrypted(authority, files):
    context = server_context(authority.issue_cert("localhost"), clients=authority)
    cert, key = files.client_in_two(authority, b"s3cret")
    tls = {"ca_file": files.ca, "client_cert_file": cert, "client_key_file": key}
    with TlsServer(context) as server:
        answer = await ask(server.port, **tls, client_key_password="s3cret")
        assert answer.status == 200

        with pytest.raises(GuardAgentError, match="encrypted: set client_key_password"):
            await ask(server.port, **tls)
        with pytest.raises(GuardAgentError, match="client_key_password right") as caught:
            await ask(server.port, **tls, client_key_password="wr0ng")

    assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize("newest", [V.TLSv1_2, V.TLSv1_3])
@pytest.mark.parametrize("shown", [False, True])
async def test_a_collector_that_wants_another_certificate_is_understood(
    authority, stranger, files, newest, shown
):
    context = server_context(authority.issue_cert("localhost"), clients=authority, newest=newest)
    more = {"client_cert_file": files.client(stranger)} if shown else {}
    with TlsServer(context) as server:
        result = await ask(server.port, ca_file=files.ca, **more)

        assert isinstance(result, (Paused, Retry))
        assert "client_cert_file" in result.reason
        assert server.requests == []


async def test_files_that_were_renewed_are_read_after_a_refusal(authority, stranger, files):
    """
    Certificates live for hours in some places, processes for months.
    """
    context = server_context(authority.issue_cert("localhost"), clients=authority)
    path = files.client(stranger)
    with TlsServer(context) as server:
        client = CollectorClient(
            endpoint=f"https://localhost:{server.port}",
            api_key=KEY,
            install_id="test-install",
            tls=TlsFiles(ca_file=files.ca, client_cert_file=path),
        )
        await client.open()
        refused = await client.request("GET", "/x")
        path.unlink()
        missing = await client.request("GET", "/x")
        files.client(authority)
        answer = await client.request("GET", "/x")
        await client.close()

    assert isinstance(refused, (Paused, Retry))
    assert isinstance(missing, Retry)
    assert "client_cert_file" in missing.reason
    assert answer.status == 200


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"client_key_file": "client.key"}, "client_key_file is of no use without"),
        ({"client_key_password": "s3cret"}, "client_key_password is of no use without"),
        ({"ca_file": ""}, "must name a file"),
        ({"client_cert_file": "/"}, "must name a file"),
        ({"ca_file": "a\0b"}, "must name a file"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(settings, hint):
    with pytest.raises(ValidationError, match=hint) as caught:
        CollectorSettings(**settings)

    assert "s3cret" not in str(caught.value)


def test_the_home_folder_may_be_abbreviated(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    assert CollectorSettings(ca_file="~/ca.pem").ca_file == tmp_path / "ca.pem"


@pytest.mark.parametrize(
    ("content", "what"),
    [(None, "No such file"), (b"", "nothing usable in PEM"), (b"no PEM", "nothing usable in PEM")],
)
@pytest.mark.parametrize("setting", ["ca_file", "client_cert_file"])
def test_a_file_that_cannot_be_used_is_named(tmp_path, setting, content, what):
    path = tmp_path / "some.pem"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(GuardAgentError, match=what) as caught:
        TlsFiles(**{setting: path}).context()

    assert str(caught.value).startswith(f"{setting} '{path}'")


def test_a_key_of_another_certificate_is_named(authority, stranger, files):
    tls = TlsFiles(
        client_cert_file=files.client(authority),
        client_key_file=files.client(stranger, "other.pem"),
    )

    with pytest.raises(GuardAgentError, match="client_key_file"):
        tls.context()


# --- a whole agent --------------------------------------------------------------------------------


async def delivered(agent):
    while (await agent.get_status()).destinations["http"]["delivered"] == 0:
        await asyncio.sleep(0.01)


async def test_c18_records_wait_until_the_certificate_is_mended(
    authority, stranger, files, agent_config
):
    """
    A refusal costs no record; when the reason is gone, delivery resumes by itself.
    """
    settings = {"ca_file": str(files.ca)}
    with TlsServer(server_context(stranger.issue_cert("localhost"))) as server:
        agent = guard_agent(
            agent_config(
                endpoint=f"https://localhost:{server.port}",
                rules=[],
                plugins={"http": settings},
            )
        )
        await agent.send_event(make_event())
        await agent.flush_buffer()
        status = await agent.get_status()
        assert "not valid" in status.destinations["http"]["last_error"]
        assert (status.destinations["http"]["pending"], server.requests) == (1, [])

        server.context = server_context(authority.issue_cert("localhost"))
        await asyncio.wait_for(delivered(agent), 60)
        await agent.stop()

        assert len(server.requests) == 1
        assert b"/api/v1/events" in server.requests[0]


async def test_a_file_that_comes_later_is_found(authority, files, agent_config, tmp_path):
    later = tmp_path / "mounted.pem"
    with TlsServer(server_context(authority.issue_cert("localhost"))) as server:
        agent = guard_agent(
            agent_config(
                endpoint=f"https://localhost:{server.port}",
                rules=[],
                plugins={"http": {"ca_file": str(later)}},
            )
        )
        await agent.send_event(make_event())
        await agent.flush_buffer()
        status = await agent.get_status()
        assert f"ca_file '{later}' cannot be used" in status.destinations["http"]["last_error"]

        later.write_bytes(files.ca.read_bytes())
        await asyncio.wait_for(delivered(agent), 20)
        await agent.stop()

        assert len(server.requests) == 1


async def test_the_transport_and_the_rules_take_the_settings(authority, files, agent_config):
    tls = {"ca_file": str(files.ca), "client_cert_file": str(files.client(authority))}
    context = server_context(authority.issue_cert("localhost"), clients=authority)
    with TlsServer(context) as server:
        agent = guard_agent(
            agent_config(
                endpoint=f"https://localhost:{server.port}",
                plugins={"http": tls, "polling": tls},
            )
        )
        await agent.send_event(make_event())
        await agent.get_dynamic_rules()
        await agent.flush_buffer()
        await agent.stop()

        lines = {request.split(b" HTTP/")[0] for request in server.requests}
        assert {b"POST /api/v1/events", b"GET /api/v1/rules"} <= lines


def test_c18_accepted_means_the_same_over_tls(kit, tmp_path, authority, files):
    async def send():
        with TlsServer(server_context(authority.issue_cert("localhost"))) as server:
            transport = kit.transport(
                f"https://localhost:{server.port}", tmp_path, ca_file=files.ca
            )
            await transport.open()
            try:
                return await transport.send(kit.batch())
            finally:
                await transport.close()

    assert asyncio.run(send()) == Accepted()
