"""A collector that does next to nothing: counts the records of each batch, answers 200."""

from __future__ import annotations

import asyncio
import gzip
import sys

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"


class Sink:
    def __init__(self) -> None:
        self.received = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines if line)
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                if first.startswith("GET /received"):
                    answer = str(self.received).encode()
                else:
                    if headers.get("content-encoding") == "gzip":
                        body = gzip.decompress(body)
                    self.received += body.count(b'"event_type"')
                    answer = b'{"success": true}'
                writer.write(_ANSWER % (len(answer), answer))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def main() -> None:
    server = await asyncio.start_server(Sink().serve, "127.0.0.1", 0, limit=1 << 24)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until our end closes
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
