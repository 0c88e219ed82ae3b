"""
A proxy in a process of its own: ``python connect_proxy.py LOG``.

It finds every host at loopback, as if its name service knew them all. The first line on stdout is
its port; ``LOG`` gets what a client sends: the heads of its requests, then what it sends into a
tunnel. With CREDENTIALS in the environment, others are answered with 407.
"""

from __future__ import annotations

import asyncio
import os
import sys
from base64 import b64encode
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit


async def relay(reader, writer, log=None):
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            if log is not None:
                log.write(data)
            writer.write(data)
            await writer.drain()
    with suppress(OSError, RuntimeError):
        writer.write_eof()


async def serve(reader, writer, log):
    head = await reader.readuntil(b"\r\n\r\n")
    log.write(head)
    method, target, _ = head.decode().split(" ", 2)
    wanted = os.environ.get("CREDENTIALS")
    if wanted and f"Basic {b64encode(wanted.encode()).decode()}" not in head.decode():
        writer.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
        return
    port = urlsplit(target if "://" in target else f"//{target}").port
    try:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        writer.write(b"HTTP/1.1 502 Nobody there\r\nContent-Length: 0\r\n\r\n")
        return
    if method == "CONNECT":
        writer.write(b"HTTP/1.1 200 Go ahead\r\n\r\n")
    else:
        to_writer.write(head)
    await asyncio.gather(relay(reader, to_writer, log), relay(to_reader, writer))
    to_writer.close()


async def main():
    with Path(sys.argv[1]).open("wb", buffering=0) as log:

        async def handle(reader, writer):
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await serve(reader, writer, log)
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        # It lives as long as who started it: then the other end of this pipe closes.
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
