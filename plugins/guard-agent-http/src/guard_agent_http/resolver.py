"""Name lookup that depends on no executor."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from typing import TYPE_CHECKING, Any, TypeAlias

from aiohttp.abc import AbstractResolver, ResolveResult

from guard_agent import mute_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    Lookup: TypeAlias = Callable[..., list[tuple[Any, ...]]]
    Key: TypeAlias = tuple[str, int, int]

_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class ThreadResolver(AbstractResolver):
    """
    Looks a name up in a daemon thread of its own.

    asyncio's default executor refuses work once the interpreter is ending, which is when the last
    flush happens, and a name server that hangs would occupy it. Lookups of one name that overlap
    share a thread, so a hanging name server costs one thread per name, however often the caller
    gives up and asks again. An IP address needs no thread.
    """

    def __init__(self, lookup: Lookup = socket.getaddrinfo) -> None:
        self._lookup = lookup
        self._pending: dict[Key, asyncio.Future[list[ResolveResult]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        literal = _literal(host, port)
        if literal is not None:
            return [literal]
        key = (host, port, int(family))
        pending = self._pending.get(key)
        if pending is None:
            pending = self._start(key)
        # Unlike awaiting the future, this leaves it alone when the caller is cancelled.
        await asyncio.wait([pending])
        return list(pending.result())

    async def close(self) -> None:
        pending = list(self._pending.values())
        self._pending.clear()
        for future in pending:
            _settle(future, OSError("the resolver was closed"))

    def _start(self, key: Key) -> asyncio.Future[list[ResolveResult]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[ResolveResult]] = loop.create_future()
        self._pending[key] = future

        def finish(outcome: list[ResolveResult] | BaseException) -> None:
            if self._pending.get(key) is future:
                del self._pending[key]
            _settle(future, outcome)

        def run() -> None:
            mute_thread()
            outcome = self._look_up(key)
            try:
                loop.call_soon_threadsafe(finish, outcome)
            except RuntimeError:
                return  # the loop was closed meanwhile: nobody waits any more

        try:
            threading.Thread(target=run, name="guard-agent-resolver", daemon=True).start()
        except RuntimeError:
            # No thread can be started, as on Python 3.12 once the interpreter is ending. The loop
            # is the agent's own, so looking the name up here holds nobody else.
            finish(self._look_up(key))
        return future

    def _look_up(self, key: Key) -> list[ResolveResult] | BaseException:
        host, port, family = key
        try:
            found = self._lookup(host, port, family=family, type=socket.SOCK_STREAM)
            return [_result(host, *info) for info in found]
        except UnicodeError as error:
            return OSError(f"{host!r} is not a valid host name: {error}")
        except BaseException as error:  # noqa: BLE001 - raised where the answer is awaited
            return error


def _settle(
    future: asyncio.Future[list[ResolveResult]], outcome: list[ResolveResult] | BaseException
) -> None:
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
        future.exception()  # seen: when everybody gave up waiting there is nothing to report
    else:
        future.set_result(outcome)


def _literal(host: str, port: int) -> ResolveResult | None:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return ResolveResult(
        hostname=host, host=host, port=port, family=family, proto=0, flags=_NUMERIC
    )


def _result(
    hostname: str, family: int, _type: int, proto: int, _name: str, address: tuple[Any, ...]
) -> ResolveResult:
    host = str(address[0])
    if family == socket.AF_INET6 and len(address) == 4 and address[3] and "%" not in host:
        host = f"{host}%{address[3]}"  # a link-local address is of no use without its scope
    return ResolveResult(
        hostname=hostname,
        host=host,
        port=int(address[1]),
        family=family,
        proto=proto,
        flags=_NUMERIC,
    )
