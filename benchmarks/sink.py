"""
A collector that costs next to nothing: keeps each body, answers 200, counts when it is asked.

Takes what any side sends. A record is recognised by a text that each event has once, or each
metric. Ends when its input does.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import zlib

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
_MARKS = (b"Suspicious pattern ", b'"metric_type"')
_READ_AHEAD = 1 << 22


class Sink:
    def __init__(self) -> None:
        self.received = 0
        self.requests = 0
        self.bytes = 0
        self._uncounted: list[tuple[bytes, bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                headers = dict(line.split(b": ", 1) for line in lines[1:] if line)
                if headers.get(b"transfer-encoding") == b"chunked":
                    body = await _chunks(reader)
                else:
                    body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
                if lines[0].startswith(b"get /received"):
                    answer = self._counted()
                elif lines[0].startswith(b"get "):
                    answer = b"{}"
                else:
                    self.requests += 1
                    self.bytes += len(head) + len(body)
                    self._uncounted.append((headers.get(b"content-encoding", b""), body))
                    answer = b'{"success": true}'
                writer.write(_ANSWER % (len(answer), answer))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _counted(self) -> bytes:
        for encoding, packed in self._uncounted:
            body = packed
            if encoding == b"gzip":
                body = gzip.decompress(packed)
            elif encoding == b"deflate":
                body = zlib.decompress(packed)
            self.received += sum(body.count(mark) for mark in _MARKS)
        self._uncounted.clear()
        counts = {"received": self.received, "requests": self.requests, "bytes": self.bytes}
        return json.dumps(counts).encode()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


async def main() -> None:
    server = await asyncio.start_server(Sink().serve, "127.0.0.1", 0, limit=_READ_AHEAD)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until our end closes
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
