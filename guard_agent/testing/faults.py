"""How the answer of a `guard_agent.testing.collector.Collector` goes wrong."""

from __future__ import annotations

import gzip
import socket
import struct
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal, TypeAlias

from aiohttp import web

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

Fault: TypeAlias = Literal[
    "reset", "silent", "truncated", "slow_head", "slow_body", "endless", "huge", "bomb"
]
"""
- ``reset``: the connection is reset (RST) instead of an answer,
- ``silent``: nothing comes, and the connection stays open until the sender gives up,
- ``truncated``: it breaks off in the middle of its body,
- ``slow_head``: one byte every ``pace`` seconds, ``slow_body``: the same after the headers,
- ``endless``: its body never ends,
- ``huge``: its body has 100 MiB,
- ``bomb``: its body has 100 KiB, of which a client that inflates them makes 100 MiB.
"""

SLOW: tuple[Fault, ...] = ("slow_head", "slow_body")
"""With these the whole answer comes, for who waits long enough."""
FLOODS: tuple[Fault, ...] = ("endless", "huge", "bomb")
"""With these the body is none of the collector's."""
WORDLESS: tuple[Fault, ...] = ("reset", "silent")
"""With these the sender does not learn even the status."""

HUGE = 100 * 1024 * 1024
_BLOCK = b"[" * 65_536
_LOOK = 0.02


async def misbehave(
    request: web.BaseRequest,
    response: web.Response,
    fault: Fault,
    pace: float,
    stopped_within: Callable[[float], Awaitable[bool]],
) -> None:
    """
    Answer ``request`` with what ``fault`` makes of ``response``; the caller closes the connection.

    ``stopped_within`` waits so many seconds, or until the collector stops, which it returns.

    Raises:
        ConnectionError: the sender has given up.
    """
    if fault == "silent":
        while _transport_of(request) and not await stopped_within(_LOOK):
            pass
    elif fault == "reset":
        if transport := _transport_of(request):
            connection = transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
    elif fault in ("truncated", *SLOW):
        head, body = _encode(response)
        quick = {"truncated": head + body[: len(body) // 2], "slow_body": head}.get(fault, b"")
        slow = {"slow_head": head + body, "slow_body": body}.get(fault, b"")
        if transport := _transport_of(request):
            transport.write(quick)
        for at in range(len(slow)):
            if await stopped_within(pace) or not (transport := _transport_of(request)):
                return
            transport.write(slow[at : at + 1])
    else:
        await _flood(request, response, fault)


async def _flood(request: web.BaseRequest, response: web.Response, fault: Fault) -> None:
    content = _bomb() if fault == "bomb" else _BLOCK
    times = {"bomb": 1, "huge": HUGE // len(_BLOCK)}.get(fault)
    flood = web.StreamResponse(status=response.status, headers=response.headers)
    flood.headers.pop("Content-Length", None)
    flood.headers["Content-Type"] = "application/json"
    if fault == "bomb":
        flood.headers["Content-Encoding"] = "gzip"
    if times is None:
        flood.enable_chunked_encoding()
    else:
        flood.content_length = times * len(content)
    await flood.prepare(request)
    while _transport_of(request) and times != 0:
        times = None if times is None else times - 1
        await flood.write(content)


def _transport_of(request: web.BaseRequest) -> asyncio.Transport | None:
    """The connection, while it is there."""
    transport = request.transport
    return None if transport is None or transport.is_closing() else transport


@cache
def _bomb() -> bytes:
    return gzip.compress(b"[" + b" " * HUGE + b"]")


def _encode(response: web.Response) -> tuple[bytes, bytes]:
    """Head and body of a response, as they travel."""
    body = response.body if isinstance(response.body, bytes) else b""
    reason = HTTPStatus(response.status).phrase
    headers = {**response.headers, "Content-Length": str(len(body))}
    lines = [f"HTTP/1.1 {response.status} {reason}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n", body
