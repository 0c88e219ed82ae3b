from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from guard_agent import Accepted, Reject, Retry, TooLarge
from guard_agent_http import Answer, CollectorSettings, ThreadResolver


async def silence(reader, writer):
    await reader.read()


def cut(writer):
    """End the connection with RST instead of FIN."""
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def hang_up(reader, writer):
    pass


async def reset(reader, writer):
    cut(writer)


async def head_then_hang_up(reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    await writer.drain()


async def half_a_body(reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()


async def half_a_chunk(reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{")
    await writer.drain()


async def bad_chunk(reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n")
    await writer.drain()


async def reset_in_the_body(reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    cut(writer)


async def no_http(reader, writer):
    writer.write(b"-ERR unknown command\r\n" * 10)
    await writer.drain()


async def binary(reader, writer):
    writer.write(bytes(range(256)) * 16)
    await writer.drain()


async def endless_header(reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        writer.write(b"x" * 65_536)
        await writer.drain()


async def endless_headers(reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: y\r\n" * 1000)
        await writer.drain()


@pytest.mark.parametrize(
    "step",
    [
        hang_up,
        reset,
        head_then_hang_up,
        half_a_body,
        half_a_chunk,
        bad_chunk,
        reset_in_the_body,
        no_http,
        binary,
        endless_header,
        endless_headers,
    ],
)
async def test_c16_a_broken_answer_is_retried(exchange, step):
    result, server = await exchange(step)

    assert isinstance(result, Retry)
    assert result.reason.isprintable()
    assert "within" not in result.reason  # not the deadline made an end of it
    assert len(result.reason) < 350
    assert not result.throttled
    await asyncio.wait_for(server.closed.wait(), 30)


async def test_c16_a_server_that_hangs_up_at_once_is_retried(exchange):
    result, _ = await exchange(hang_up, raw=True)

    assert isinstance(result, Retry)


async def test_c17_a_closed_port_is_retried_and_named(kit, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        transport = kit.transport(f"http://127.0.0.1:{port}", tmp_path)
        await transport.open()
        result = await transport.send(kit.batch())
        await transport.close()

    assert isinstance(result, Retry)
    assert f"cannot connect to 127.0.0.1:{port}" in result.reason


async def drip(writer, text, again):
    writer.write(text)
    while True:
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(again)


async def dripping_headers(reader, writer):
    await drip(writer, b"HTTP/1.1 200 OK\r\n", b"X: y\r\n")


async def dripping_body(reader, writer):
    await drip(writer, b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n", b" ")


async def dripping_interim(reader, writer):
    await drip(writer, b"", b"HTTP/1.1 102 Processing\r\n\r\n")


@pytest.mark.parametrize("step", [silence, dripping_headers, dripping_body, dripping_interim])
async def test_c15_c16_one_deadline_holds_for_everything_together(exchange, step):
    """
    Each byte in time does not add up to an answer in time.
    """
    start = time.monotonic()

    result, server = await exchange(step, deadline=0.2)

    assert isinstance(result, Retry)
    assert "0.2 s" in result.reason
    assert 0.15 < time.monotonic() - start < 10
    await asyncio.wait_for(server.closed.wait(), 30)


async def test_a_deadline_of_many_seconds_is_not_rounded(client):
    """
    aiohttp rounds timers of five seconds and more up to whole seconds unless told otherwise.
    """
    one = await client("http://127.0.0.1:1", deadline=7.25)

    assert one._session.timeout.ceil_threshold > 7.25


async def test_c17_a_collector_that_takes_no_connection_is_given_up_on(client):
    """
    A full backlog: the kernel drops every further SYN.
    """
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(address)
            one = await client(f"http://127.0.0.1:{address[1]}", connect_timeout=0.2)
            start = time.monotonic()

            result = await one.request("GET", "/")

            assert isinstance(result, Retry)
            assert "no connection" in result.reason
            assert "0.2 s" in result.reason
            assert time.monotonic() - start < 10
        finally:
            for filler in fillers:
                filler.close()


async def test_c19_of_an_endless_body_64_kib_are_read(serve, client):
    sent = 0

    async def endless(reader, writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while True:
            writer.write(b"[" * 16_384)
            await writer.drain()
            sent += 16_384

    async with serve(endless) as server:
        one = await client(server.url)
        result = await one.request("GET", "/")
        await asyncio.wait_for(server.closed.wait(), 30)

    assert isinstance(result, Answer)
    assert len(result.body) == 64 * 1024
    assert not result.complete
    # What the sockets' buffers hold comes on top.
    assert sent < 32 * 1024 * 1024


ASK = """
import asyncio, os, sys
from pathlib import Path
from guard_agent_http import CollectorClient

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))

async def main():
    client = CollectorClient(endpoint=sys.argv[1], api_key="k" * 12, install_id="test-install")
    await client.open()
    await client.request("GET", "/small")  # brings in what every request needs
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    answer = await client.request("GET", "/large")
    print(len(answer.body), answer.complete, memory("VmHWM") - before)
    await client.close()

asyncio.run(main())
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="there is no /proc to measure with"
)
@pytest.mark.parametrize("framing", ["Content-Length: 104857600", "Transfer-Encoding: chunked"])
async def test_c19_a_huge_answer_costs_little_memory(serve, kit, framing):
    """
    At most 64 KiB are kept and 4 MiB used, whatever is sent.
    """

    async def huge(reader, writer):
        writer.write(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode())
        block = b"[" * 65_536
        for _ in range(1600):
            writer.write(block if "Length" in framing else b"10000\r\n" + block + b"\r\n")
            await writer.drain()

    async with serve(kit.reply(), huge) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ASK, server.url), stdout=subprocess.PIPE
        )
        said, _ = await asyncio.wait_for(process.communicate(), 60)

    body, complete, used = said.split()
    assert (int(body), complete) == (64 * 1024, b"False")
    assert int(used) <= 4 * 1024  # KiB


async def test_c16_a_collector_that_is_stopped_is_given_up_on(client, tmp_path):
    """
    Its kernel still takes connections, nobody answers them.
    """
    script = Path(__file__).with_name("connect_proxy.py")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), str(tmp_path / "log")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        port = int(await process.stdout.readline())
        os.kill(process.pid, signal.SIGSTOP)
        one = await client(f"http://127.0.0.1:{port}", deadline=0.3)

        result = await one.request("POST", "/x", body=b"{}")

        assert isinstance(result, Retry)
        assert "0.3 s" in result.reason
    finally:
        process.kill()
        await process.communicate()


def test_c15_by_default_a_request_takes_ten_seconds_at_most():
    settings = CollectorSettings()

    assert (settings.deadline, settings.connect_timeout) == (10.0, 3.0)


@pytest.mark.parametrize(("size", "complete"), [(99, True), (100, True), (101, False)])
async def test_the_limit_is_exact(serve, client, kit, size, complete):
    async with serve(kit.reply(200, b"x" * size)) as server:
        one = await client(server.url)
        result = await one.request("GET", "/", max_answer_bytes=100)

    assert (len(result.body), result.complete) == (min(size, 100), complete)


async def test_c19_an_overlong_2xx_is_not_taken_for_a_yes(exchange, kit):
    result, _ = await exchange(kit.reply(200, b'{"a": "' + b"x" * 70_000 + b'"}'))

    assert isinstance(result, Retry)
    assert "longer than 65536 bytes" in result.reason


async def test_a_refusal_counts_although_the_rest_of_it_is_lost(exchange):
    """
    Many a server sends 413, does not read on, and hangs up.
    """

    async def refuse(reader, writer):
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 1000\r\n\r\n<html>")
        await writer.drain()

    result, _ = await exchange(refuse)

    assert result == TooLarge(None)


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
@pytest.mark.parametrize("status", [200, 413])
async def test_an_answer_to_half_a_body_counts_and_the_rest_is_not_sent(serve, client, kit, status):
    """
    The connection cannot serve again: the rest would be taken for the next request.
    """
    body = b"x" * 16 * 1024 * 1024  # more than the kernel takes over
    answered = asyncio.Event()
    got = 0

    async def early(reader, writer):
        nonlocal got
        await reader.readuntil(b"\r\n\r\n")
        writer.write(kit.reply(status))
        await answered.wait()
        while chunk := await reader.read(65_536):
            got += len(chunk)

    async with serve(early, raw=True) as server:
        one = await client(server.url)
        result = await one.request("POST", "/", body=body)
        answered.set()
        await asyncio.wait_for(server.closed.wait(), 30)

    assert result.status == status
    assert got < len(body)


async def test_after_a_refusal_a_new_connection_is_made(serve, kit, tmp_path):
    async with serve(kit.reply(422), kit.reply(200), kit.reply(200)) as server:
        transport = kit.transport(server.url, tmp_path)
        await transport.open()
        results = [await transport.send(kit.batch()) for _ in range(3)]
        await transport.close()

    assert [type(result) for result in results] == [Reject, Accepted, Accepted]
    assert server.connections == 2


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_c16_a_collector_that_stops_reading_keeps_no_socket(client):
    """
    Closing would wait for the rest of the body to be sent; the connection must be cut.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.setblocking(False)
    body = b"x" * 16 * 1024 * 1024  # more than the kernel takes over
    one = await client(f"http://127.0.0.1:{listener.getsockname()[1]}", deadline=0.2)
    loop = asyncio.get_running_loop()

    request = asyncio.create_task(one.request("POST", "/", body=body))
    accepted, _ = await loop.sock_accept(listener)
    result = await request

    got = 0
    accepted.setblocking(False)
    try:
        while chunk := await asyncio.wait_for(loop.sock_recv(accepted, 65_536), 30):
            got += len(chunk)
    except ConnectionResetError:
        pass
    accepted.close()
    listener.close()
    assert isinstance(result, Retry)
    assert got < len(body)


@pytest.mark.parametrize("step", [silence, dripping_body])
async def test_cancelling_closes_the_connection(serve, kit, tmp_path, step):
    arrived = asyncio.Event()

    async def announced(reader, writer):
        arrived.set()
        await step(reader, writer)

    async with serve(announced) as server:
        transport = kit.transport(server.url, tmp_path)
        await transport.open()
        sending = asyncio.create_task(transport.send(kit.batch()))
        await asyncio.wait_for(arrived.wait(), 30)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await asyncio.wait_for(server.closed.wait(), 30)
        await transport.close()


async def test_closing_ends_a_request_under_way(serve, kit, tmp_path):
    arrived = asyncio.Event()

    async def announced(reader, writer):
        arrived.set()
        await reader.read()

    async with serve(announced) as server:
        transport = kit.transport(server.url, tmp_path)
        await transport.open()
        sending = asyncio.create_task(transport.send(kit.batch()))
        await asyncio.wait_for(arrived.wait(), 30)
        await transport.close()

        assert isinstance(await asyncio.wait_for(sending, 30), Retry)


async def test_c17_a_name_that_is_not_found_is_retried_and_named(client):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    one = await client("https://collector.invalid", resolver=ThreadResolver(unknown))

    result = await one.request("GET", "/")

    assert result == Retry(
        "cannot find the address of collector.invalid: Name or service not known"
    )


async def test_c17_a_name_server_that_hangs_is_given_up_on(client):
    go = threading.Event()
    resolver = ThreadResolver(lambda *_, **__: go.wait(60) and [])
    one = await client("https://collector.invalid", connect_timeout=0.1, resolver=resolver)
    try:
        start = time.monotonic()

        result = await one.request("GET", "/")

        assert isinstance(result, Retry)
        assert "0.1 s" in result.reason
        assert time.monotonic() - start < 10
    finally:
        go.set()
        await resolver.close()


async def test_cookies_are_not_kept(serve, client, kit):
    async with serve(kit.reply(200, b"", "Set-Cookie: a=b")) as server:
        one = await client(f"http://localhost:{server.port}")
        await one.request("GET", "/")
        await one.request("GET", "/")

    assert [request.all("Cookie") for request in server.requests] == [[], []]


async def test_netrc_is_not_read(serve, kit, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login eve password eve\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with serve() as server:
        transport = kit.transport(server.url, tmp_path)
        await transport.open()
        assert await transport.send(kit.batch()) == Accepted()
        await transport.close()

    assert server.requests[0].all("Authorization") == [f"Bearer {kit.key}"]
