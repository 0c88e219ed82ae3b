"""Answers that go on, signatures that are checked, and what else a collector may ask for."""

from __future__ import annotations

import asyncio

import pytest

from guard_agent import Accepted, Retry
from guard_agent_http import Answer, Cipher, CollectorClient
from guard_agent_http.signing import is_signed, sign

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"


@pytest.fixture
def follow(serve):
    """Follow what a server with this script sends; returns the result and the lines."""

    async def follow(*steps, **more):
        lines = []
        async with serve(*steps) as server:
            client = CollectorClient(endpoint=server.url, api_key="k" * 12, install_id="i")
            await client.open()
            try:
                more = {"silence": 30.0, **more}
                result = await client.follow("/stream", lines.append, **more)
            finally:
                await client.close()
        return result, lines, server

    return follow


async def test_lines_come_one_by_one_however_they_travel(follow):
    async def stream(reader, writer):
        for part in (HEAD, b"data: a\r\nda", b"ta: b\n", b"\n: c"):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)

    result, lines, server = await follow(stream)

    assert isinstance(result, Answer)
    assert lines == [b"data: a", b"data: b", b""]
    assert server.requests[0].one("X-API-Key") == "k" * 12


async def test_silence_ends_it(follow):
    async def stream(reader, writer):
        writer.write(HEAD + b"data: a\n")
        await reader.read()

    result, lines, _ = await follow(stream, silence=0.2)

    assert isinstance(result, Retry)
    assert lines == [b"data: a"]


async def test_a_line_without_end_is_not_kept(follow):
    async def stream(reader, writer):
        writer.write(HEAD)
        while True:
            writer.write(b"x" * 10_000)
            await writer.drain()

    result, lines, _ = await follow(stream, max_line_bytes=50_000)

    assert isinstance(result, Retry)
    assert "longer than 50000" in result.reason
    assert lines == []


async def test_a_refusal_is_not_followed(follow, kit):
    result, lines, _ = await follow(kit.reply(404, b"no\nstream\n"))

    assert (result.status, lines) == (404, [])


async def test_cancelling_leaves_no_connection(serve):
    async def stream(reader, writer):
        writer.write(HEAD + b"data: a\n")
        await reader.read()

    told = asyncio.Event()
    async with serve(stream) as server:
        client = CollectorClient(endpoint=server.url, api_key="k" * 12, install_id="i")
        await client.open()
        following = asyncio.create_task(
            client.follow("/stream", lambda _: told.set(), silence=30.0)
        )
        await asyncio.wait_for(told.wait(), 30)
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
        await asyncio.wait_for(server.closed.wait(), 30)
        await client.close()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("X-Status-Interval: 5", 5.0), ("X-Status-Interval: soon", None), ("X-Other: 5", None)],
)
async def test_a_collector_may_ask_for_more_frequent_reports(kit, serve, tmp_path, header, seconds):
    async with serve(kit.reply(200, {"success": True}, header)) as server:
        transport = kit.transport(server.url, tmp_path)
        await transport.open()
        assert transport.status_interval is None

        assert isinstance(await transport.send(kit.batch()), Accepted)

        assert transport.status_interval == seconds
        await transport.close()


def test_a_signature_is_that_of_one_body_and_one_secret():
    signature = sign(b"secret", b"body")

    assert is_signed(b"secret", b"body", f" {signature} ")
    assert not is_signed(b"secret", b"body2", signature)
    assert not is_signed(b"secret2", b"body", signature)
    assert not is_signed(b"secret", b"body", "v1=\u00e9")


def test_what_was_sealed_can_be_opened_with_its_key_only():
    sealed = Cipher(KEY).seal(b"plain").decode()

    assert Cipher(KEY).unseal(sealed) == b"plain"
    changed = ("A" if sealed[0] != "A" else "B") + sealed[1:]
    for text in (sealed[:-4], changed, "", "AAAA", "\u00e9"):
        with pytest.raises(ValueError, match="not sealed with this key"):
            Cipher(KEY).unseal(text)
