"""Watching: the collector tells of new rules on a connection that stays open."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

RULES = json.dumps({"rule_id": "r", "version": 1}).encode()
OFFER = b"X-Rules-Watch: sse\r\n"


class Offering:
    """Gives rules with the ETag ``"1"``; streams what its test puts into ``said``."""

    def __init__(self, offer=OFFER):
        self.offer = offer
        self.streams = 0
        self.said = asyncio.Queue()

    async def handle(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"/rules/watch" not in head.split(b"\r\n")[0]:
                    answer = b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: %d\r\n' % len(RULES)
                    writer.write(answer + self.offer + b"\r\n" + RULES)
                    continue
                self.streams += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                while (text := await self.said.get()) is not None:
                    writer.write(text.encode())
                    await writer.drain()
                break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()


@asynccontextmanager
async def watched(kit, folder, offering, **settings):
    """An open source, and what it says of changes."""
    server = await asyncio.start_server(offering.handle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    source = kit.source(folder, endpoint=url, **settings)
    await source.open()
    changes = asyncio.Queue()
    watch = asyncio.create_task(source.watch(lambda: changes.put_nowait(True)))
    try:
        yield source, changes, watch
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await source.close()
        offering.said.put_nowait(None)
        server.close()
        await asyncio.sleep(0.01)


async def test_a_change_is_told_and_what_is_known_is_none(kit, tmp_path):
    offering = Offering()
    async with watched(kit, tmp_path, offering) as (source, changes, _):
        assert offering.streams == 0  # not before it is offered
        await source.fetch(None)
        for text in (": still here\n\n", 'event: rules\ndata: "1"\n\n', "noise\n", 'data: "2"\n\n'):
            offering.said.put_nowait(text)

        await asyncio.wait_for(changes.get(), 30)

        assert changes.empty()
        assert offering.streams == 1


@pytest.mark.parametrize(
    ("offer", "settings"),
    [(b"", {}), (b"X-Rules-Watch: carrier pigeon\r\n", {}), (OFFER, {"watch": False})],
)
async def test_without_an_offer_or_when_it_is_off_it_only_polls(kit, tmp_path, offer, settings):
    offering = Offering(offer)
    async with watched(kit, tmp_path, offering, **settings) as (source, changes, watch):
        await source.fetch(None)
        await source.fetch(None)
        await asyncio.sleep(0.05)

        assert (offering.streams, changes.empty(), watch.done()) == (0, True, False)


async def test_a_stream_that_ends_is_only_begun_again_when_it_is_still_offered(kit, tmp_path):
    offering = Offering()
    async with watched(kit, tmp_path, offering) as (source, changes, watch):
        await source.fetch(None)
        offering.said.put_nowait(None)
        await asyncio.wait_for(watch, 30)

        again = asyncio.create_task(source.watch(lambda: changes.put_nowait(True)))
        await asyncio.sleep(0.05)
        assert offering.streams == 1
        await source.fetch(None)
        offering.said.put_nowait('data: "2"\n')
        await asyncio.wait_for(changes.get(), 30)
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)

        assert offering.streams == 2
