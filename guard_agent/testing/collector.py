"""
A collector that listens on loopback, for tests and demonstrations.

It speaks the ingest API over real sockets: batches and status reports come in, rules go out. It
runs in a thread with an event loop of its own, so tests without a loop can use it as well::

    with Collector() as collector:
        agent = guard_agent(AgentConfig(api_key="test-key-123", endpoint=collector.url))
        ...
        collector.wait_for(lambda c: len(c.events) >= 3)
        collector.check(agent)

It does everything wrong that it is told to, request by request (`Answer`), keeps a ledger, and
compares it with the books of the agent (`Collector.check`).

It needs aiohttp: ``pip install guard-agent[testing]``. To read encrypted batches it needs their
key, and cryptography: ``pip install guard-agent-http[encryption]``.
"""

from __future__ import annotations

import asyncio
import binascii
import hmac
import inspect
import json
import socket
import threading
import time
import zlib
from base64 import b64decode, urlsafe_b64decode
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from aiohttp import web

from guard_agent.testing.faults import FLOODS, SLOW, WORDLESS, Fault, misbehave

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from typing_extensions import Self

Route: TypeAlias = Literal["events", "metrics", "status", "rules"]
"""What a request is about: the last part of its path. Encrypted batches are ``"events"``."""

Result: TypeAlias = Literal["accepted", "retry", "rejected"]

MAX_BODY = 16 * 1024 * 1024

# AES-256-GCM, in bytes.
_KEY, _NONCE, _TAG = 32, 12, 16

_PREFIX = "/api/v1/"
_ENCRYPTED = f"{_PREFIX}events/encrypted"
_METHODS: dict[str, tuple[Route, str]] = {
    f"{_PREFIX}events": ("events", "POST"),
    _ENCRYPTED: ("events", "POST"),
    f"{_PREFIX}metrics": ("metrics", "POST"),
    f"{_PREFIX}status": ("status", "POST"),
    f"{_PREFIX}rules": ("rules", "GET"),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the collector says to one request."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Mapping[str, Any] | None = None
    """
    Bytes are sent as they are, a mapping as JSON. None leaves the body to the collector:
    ``{"success": true}`` for 200 and 201, the rules for an accepted GET, else nothing.
    """
    delay: float = 0.0
    """Seconds between taking the request in and answering it."""
    store: bool | None = None
    """
    Whether the records count as accepted. None: if ``status`` is 2xx and the whole answer comes,
    however slowly.
    """
    disconnect: bool = False
    """
    Close the connection instead of answering. With ``store=True`` this is the lost
    acknowledgement: the collector has the records, the sender does not know.
    """
    fault: Fault | None = None
    """What goes wrong with the answer; see `guard_agent.testing.faults.Fault`."""
    pace: float = 0.5
    """Seconds between two bytes of a slow answer."""
    results: Sequence[Result] | None = None
    """
    What becomes of each record of the batch, in order; records beyond it are accepted. Without a
    ``body`` the answer says so, and only accepted ones are stored.
    """

    @property
    def stores(self) -> bool:
        if self.store is not None:
            return self.store
        comes = not self.disconnect and (self.fault is None or self.fault in SLOW)
        return 200 <= self.status < 300 and comes


@dataclass(frozen=True, slots=True)
class Received:
    """One request that came in completely."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    """Inflated, if it was compressed and could be inflated; an encrypted one stays encrypted."""
    wire_size: int
    """Bytes of the body as it travelled."""
    status: int | None
    """What it is answered with; None when the connection is closed instead."""
    at: float
    """`time.monotonic` when it was complete."""

    @property
    def records(self) -> list[dict[str, Any]]:
        """The events or metrics in it; none when it is no batch, or an encrypted one."""
        try:
            document = json.loads(self.body)
        except ValueError:
            return []
        if not isinstance(document, dict):
            return []
        return [*(document.get("events") or []), *(document.get("metrics") or [])]


Reply: TypeAlias = Answer | Callable[[Received], Answer]
"""An answer, or what makes one of the request (whose ``status`` is None then)."""


class RefusedError(Exception):
    """The request is not one the ingest API takes."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.answer = Answer(status, body={"success": False, "detail": detail}, store=False)


class Collector:
    """
    A collector on ``127.0.0.1``.

    All properties and methods may be used from any thread. The port is chosen at the first start
    and kept: after ``stop()`` connections are refused, after another ``start()`` the same address
    answers again, and what was received before is still there.

    Args:
        api_key: When given, requests without it in ``X-API-Key`` or ``Authorization: Bearer``
            are answered with 401. A header with another key is never accepted.
        port: 0 lets the system choose.
        max_body: Larger bodies, measured inflated, are answered with 413.
        encryption_keys: What opens encrypted batches: one key, or several by their ids, as while a
            key is replaced. Without any there is no place for such batches (404); one that no key
            opens is answered with 403. Batches in clear are taken all the same: look at
            `Received.path` for how a record came.

    Raises:
        ImportError: keys are given and cryptography is not installed.
        ValueError: a key is not 32 bytes in urlsafe base64.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        port: int = 0,
        max_body: int = MAX_BODY,
        encryption_keys: str | Mapping[str, str] | None = None,
    ) -> None:
        self._api_key = api_key
        self._openers = _openers(encryption_keys)
        self._port = port
        self._max_body = max_body

        # Guards everything below; notified whenever something was received.
        self._changed = threading.Condition(threading.RLock())
        self._requests: list[Received] = []
        self._records: dict[str, list[dict[str, Any]]] = {"events": [], "metrics": []}
        self._statuses: list[dict[str, Any]] = []
        self._ledger: Counter[str] = Counter()
        self._keyless = 0
        self._duplicates: list[dict[str, Any]] = []
        self._script: deque[tuple[Route | None, Reply]] = deque()
        self._default: dict[Route | None, Reply] = {}
        self._rules: tuple[bytes, str] | None = None
        self._rules_version = 0

        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> Self:
        """
        Listen. Does nothing when it already does.

        Raises:
            OSError: the port is taken.
        """
        if self._thread is not None:
            return self
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            # Connections of the run before may linger on a port that is used again.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self._port))
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
        self._port = listener.getsockname()[1]

        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._run,
            args=(listener, ready),
            name="guard-agent-collector",
            daemon=True,
        )
        self._thread.start()
        # Connections are taken from here on, by the kernel's backlog; the loop must be there for
        # stop() to find it.
        ready.wait()
        return self

    def stop(self) -> None:
        """
        Close the port and all connections, unanswered requests included.

        Does nothing when it does not listen. Must not be called from a `wait_for` predicate.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None and not loop.is_closed():
            loop.call_soon_threadsafe(stopping.set)
        thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """What to use as the endpoint: ``http://127.0.0.1:PORT``."""
        if not self._port:
            msg = "the collector has no port yet: start() it, or use it in a with statement"
            raise RuntimeError(msg)
        return f"http://127.0.0.1:{self._port}"

    # --- what came in -----------------------------------------------------------------------------

    @property
    def requests(self) -> list[Received]:
        """Every request so far, refused ones included, in order."""
        with self._changed:
            return list(self._requests)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Accepted events, each ``idempotency_key`` once, in order."""
        with self._changed:
            return list(self._records["events"])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Accepted metrics, each ``idempotency_key`` once, in order."""
        with self._changed:
            return list(self._records["metrics"])

    @property
    def statuses(self) -> list[dict[str, Any]]:
        """Accepted status reports, in order."""
        with self._changed:
            return list(self._statuses)

    @property
    def duplicates(self) -> list[dict[str, Any]]:
        """Accepted records whose ``idempotency_key`` had been accepted before."""
        with self._changed:
            return list(self._duplicates)

    @property
    def ledger(self) -> dict[str, int]:
        """How often each record was accepted, by its ``idempotency_key``; `clear` keeps it."""
        with self._changed:
            return dict(self._ledger)

    def check(self, *agents: Any, destination: str | None = None) -> None:
        """
        Compare the ledger with the books of all agents that send here.

        The books must be balanced:
        ``accepted == delivered + dropped + buried + merged + pending``. What counts as delivered
        must be here, and what is here must be delivered or, when an answer was lost, still be kept
        by the agent.

        Args:
            agents: Each is a `guard_agent.SyncGuardAgentHandler`, or an `guard_agent.AgentStatus`:
                ``collector.check(await agent.get_status())``.
            destination: Which of their transports sends here; may be left out when each has one.

        Raises:
            AssertionError: they do not agree; says how.
        """
        books: Counter[str] = Counter()
        for agent in agents:
            books += _books(agent, destination)
        with self._changed:
            stored = len(self._ledger) + self._keyless
            told = self.summary()
        kept = books["dropped"] + books["buried"] + books["pending"]
        said = ", ".join(f"{books[name]} {name}" for name in _BOOKS)
        if books["accepted"] != books["delivered"] + books["merged"] + kept:
            msg = f"the books are not balanced: {said}"
        elif books["delivered"] > stored:
            msg = (
                f"{books['delivered'] - stored} records count as delivered and are not here: {said}"
            )
        elif stored > books["delivered"] + kept:
            unknown = stored - books["delivered"] - kept
            msg = f"{unknown} records are here that the agent knows nothing of: {said}"
        else:
            return
        raise AssertionError(f"{msg}; {told}")

    def clear(self) -> None:
        """
        Forget what was received; answers and rules stay.

        Keys of records are remembered: a record sent again still counts as a duplicate.
        """
        with self._changed:
            self._requests.clear()
            self._records["events"].clear()
            self._records["metrics"].clear()
            self._statuses.clear()
            self._duplicates.clear()

    def wait_for(self, predicate: Callable[[Collector], object], timeout: float = 10.0) -> None:
        """
        Block until ``predicate(collector)`` is true; it is asked after every request.

        In a coroutine that must let its own loop run meanwhile:
        ``await asyncio.to_thread(collector.wait_for, predicate)``.

        Raises:
            TimeoutError: it was not true within ``timeout`` seconds; says what was received.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not predicate(self):
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    msg = f"not within {timeout:.3g} s; {self.summary()}"
                    raise TimeoutError(msg)
                self._changed.wait(remaining)

    def summary(self) -> str:
        """What was received so far, in a few words."""
        with self._changed:
            parts = [
                f"{len(self._records['events'])} events"
                + _counts(str(event.get("event_type")) for event in self._records["events"]),
                f"{len(self._records['metrics'])} metrics"
                + _counts(str(metric.get("metric_type")) for metric in self._records["metrics"]),
                f"{len(self._statuses)} status reports",
                f"{len(self._duplicates)} duplicates",
                f"{len(self._requests)} requests"
                + _counts(
                    f"{request.method} {request.path} -> {request.status or 'closed'}"
                    for request in self._requests
                ),
            ]
            if self._script:
                parts.append(f"{len(self._script)} scripted answers left")
        return "received: " + ", ".join(parts)

    # --- what goes out ----------------------------------------------------------------------------

    def answer(self, *answers: Reply, only: Route | None = None) -> None:
        """
        Script the answers to the next POSTs, in order; after them the default holds again.

        An answer may be a function of the request, which is called in the thread of the collector
        and must not wait::

            def judge(request: Received) -> Answer:
                poison = any(record["reason"] == "poison" for record in request.records)
                return Answer(422) if poison else Answer()

        With ``only`` they wait for requests of that route, ``"rules"`` being the GET. A request
        refused for its key or its encoding uses up no answer.
        """
        with self._changed:
            self._script.extend((only, answer) for answer in answers)

    def always(self, answer: Reply | None, only: Route | None = None) -> None:
        """
        Set the default answer from now on; None restores ``Answer(200)``.

        With ``only`` it holds for that route and goes before the general one, which never covers
        ``"rules"``.
        """
        with self._changed:
            if answer is None:
                self._default.pop(only, None)
            else:
                self._default[only] = answer

    def publish(self, rules: Mapping[str, Any] | None) -> dict[str, Any]:
        """
        Serve ``rules`` from now on; None withdraws them, which is answered with 204.

        A missing ``rule_id``, ``version`` or ``timestamp`` is filled in, the version one above
        the highest so far.

        Returns:
            The document as it is served; empty when withdrawn.
        """
        with self._changed:
            if rules is None:
                self._rules = None
                return {}
            document = {
                "rule_id": "collector-rules",
                "version": self._rules_version + 1,
                "timestamp": datetime.now(timezone.utc).isoformat(),
                **rules,
            }
            if isinstance(document["version"], int):
                self._rules_version = max(self._rules_version, document["version"])
            body = json.dumps(document, default=_encode_other).encode()
            self._rules = (body, f'"{blake2b(body, digest_size=8).hexdigest()}"')
        return document

    # --- the server, on its own loop --------------------------------------------------------------

    def _run(self, listener: socket.socket, ready: threading.Event) -> None:
        try:
            asyncio.run(self._serve(listener, ready))
        finally:
            ready.set()
            listener.close()

    async def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        listener.setblocking(False)
        # Bodies are inflated here, within a bound; aiohttp would do it without telling the size.
        server = web.Server(self._handle, auto_decompress=False, access_log=None)
        serving: set[asyncio.Task[object]] = set()

        def accept() -> None:
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionError):  # it is already gone again
                return
            task = loop.create_task(loop.connect_accepted_socket(server, connection))
            serving.add(task)
            task.add_done_callback(serving.discard)

        ready.set()
        # Accepting here and not in create_server(): a connection that is taken while an asyncio
        # server closes can stay open for ever. And not with sock_accept(): one that is cancelled
        # after it has taken a connection drops it unclosed.
        loop.add_reader(listener, accept)
        try:
            await self._stopping.wait()
        finally:
            loop.remove_reader(listener)
            listener.close()
            await asyncio.gather(*serving, return_exceptions=True)
            for open_connection in server.connections:
                if open_connection.transport is not None:
                    open_connection.transport.abort()
            await server.shutdown(timeout=1.0)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        wire = b""
        body = b""
        try:
            wire = body = await self._read(request)
            route = self._check(request)
            body = _inflate(wire, request.headers.get("Content-Encoding"), self._max_body)
            received = _received(request, body, len(wire))
            with self._changed:
                answer = self._next_answer(route, received)
                document: dict[str, Any] = {}
                if route != "rules" and (answer.stores or answer.results is not None):
                    document = self._document(route, received)
                if answer.stores:
                    self._store(route, document, answer.results or ())
                response = self._respond(request, route, answer, document)
                says = not answer.disconnect and answer.fault not in WORDLESS
                self._note(replace(received, status=response.status if says else None))
        except RefusedError as refused:
            answer = refused.answer
            response = _response(answer)
            self._note(replace(_received(request, body, len(wire)), status=answer.status))
        except ConnectionError:  # the sender, or stop(), closed it before the body was complete
            return self._close(request)

        if answer.delay and await self._is_stopped_within(answer.delay):
            return self._close(request)
        if answer.disconnect:
            return self._close(request)
        if answer.fault is None:
            return response
        with suppress(ConnectionError):  # the sender has given up
            await misbehave(request, response, answer.fault, answer.pace, self._is_stopped_within)
        return self._close(request)

    async def _read(self, request: web.BaseRequest) -> bytes:
        chunks = bytearray()
        async for chunk in request.content.iter_any():
            chunks += chunk
            if len(chunks) > self._max_body:
                raise _too_large(self._max_body)
        return bytes(chunks)

    def _check(self, request: web.BaseRequest) -> Route:
        known = _METHODS.get(request.path)
        if known is None or (request.path == _ENCRYPTED and not self._openers):
            raise RefusedError(404, f"there is no {request.path}")
        route, method = known
        if request.method != method:
            raise RefusedError(405, f"{request.path} takes {method}")
        if not self._is_authentic(request):
            raise RefusedError(401, "the key is missing or not known")
        if method == "POST" and request.content_type != "application/json":
            raise RefusedError(415, f"not JSON but {request.content_type}")
        return route

    def _is_authentic(self, request: web.BaseRequest) -> bool:
        if self._api_key is None:
            return True
        given = []
        if (key := request.headers.get("X-API-Key")) is not None:
            given.append(key)
        if (authorization := request.headers.get("Authorization")) is not None:
            given.append(authorization.removeprefix("Bearer "))
        expected = self._api_key.encode()
        # aiohttp decodes headers with surrogateescape; a key may hold any byte.
        return bool(given) and all(
            hmac.compare_digest(key.encode(errors="surrogateescape"), expected) for key in given
        )

    def _document(self, route: Route, received: Received) -> dict[str, Any]:
        """What a POST brings: ``events`` and ``metrics``, or a status report."""
        sealed = received.path == _ENCRYPTED
        return _parse(route, self._open(received.body) if sealed else received.body)

    def _open(self, body: bytes) -> bytes:
        """What is inside an encrypted batch."""
        envelope = _parse("status", body)  # any object
        payload, key_id = envelope.get("encrypted_payload"), envelope.get("key_id")
        if not isinstance(payload, str) or not isinstance(key_id, (str, type(None))):
            raise RefusedError(422, "not an encrypted batch")
        try:
            raw = b64decode(payload.encode(), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error) as error:
            raise RefusedError(422, f"encrypted_payload is not base64: {error}") from error
        if len(raw) < _NONCE + _TAG:
            raise RefusedError(422, "encrypted_payload is too short")
        for name, opener in self._openers.items():
            # Where either side names no key, every key may be the one.
            if None not in (name, key_id) and name != key_id:
                continue
            if (inside := opener(raw)) is not None:
                return inside
        raise RefusedError(403, "no key opens this batch")

    def _next_answer(self, route: Route, received: Received) -> Answer:
        reply = self._next_reply(route)
        return reply if isinstance(reply, Answer) else reply(received)

    def _next_reply(self, route: Route) -> Reply:
        for position, (only, reply) in enumerate(self._script):
            if only == route or (only is None and route != "rules"):
                del self._script[position]
                return reply
        general = None if route == "rules" else self._default.get(None)
        return self._default.get(route) or general or Answer()

    def _store(self, route: Route, document: dict[str, Any], results: Sequence[Result]) -> None:
        if route == "rules":
            return
        if route == "status":
            self._statuses.append(document)
            return
        position = 0
        for name, records in self._records.items():
            for record in document.get(name) or []:
                taken = position >= len(results) or results[position] == "accepted"
                position += 1
                if not taken:
                    continue
                key = record.get("idempotency_key")
                if key is None:
                    self._keyless += 1
                else:
                    self._ledger[key] += 1
                    if self._ledger[key] > 1:
                        self._duplicates.append(record)
                        continue
                records.append(record)

    def _respond(
        self, request: web.BaseRequest, route: Route, answer: Answer, document: dict[str, Any]
    ) -> web.Response:
        if answer.results is not None and answer.body is None:
            count = sum(len(document.get(name) or []) for name in self._records)
            words = [*answer.results[:count], *["accepted"] * (count - len(answer.results))]
            said = {
                "success": all(word == "accepted" for word in words),
                "results": [{"index": at, "status": word} for at, word in enumerate(words)],
            }
            return _response(replace(answer, body=said))
        own = answer.body is not None or answer.status != 200 or answer.fault in FLOODS
        if route != "rules" or own:
            return _response(answer)
        if self._rules is None:
            return web.Response(status=204, headers=answer.headers)
        body, tag = self._rules
        headers = {"ETag": tag, **answer.headers}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers={"Content-Type": "application/json", **headers})

    def _note(self, received: Received) -> None:
        with self._changed:
            self._requests.append(received)
            self._changed.notify_all()

    async def _is_stopped_within(self, seconds: float) -> bool:
        if self._stopping is None:
            return True
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True

    def _close(self, request: web.BaseRequest) -> web.Response:
        # aiohttp wants a response to be returned; it can no longer be written.
        if request.transport is not None:
            request.transport.close()
        return web.Response()


_BOOKS = ("accepted", "delivered", "dropped", "buried", "merged", "pending")


def _books(agent: Any, destination: str | None) -> Counter[str]:
    """The books of one destination, with one number for everything that was dropped."""
    found = agent.get_status() if hasattr(agent, "get_status") else agent
    if inspect.iscoroutine(found):
        found.close()
        msg = "get_status() of this handler has to be awaited: check(await agent.get_status())"
        raise TypeError(msg)
    known: dict[str, Any] = found.destinations
    if destination is None and len(known) != 1:
        msg = f"name the destination that sends here, one of: {', '.join(known)}"
        raise ValueError(msg)
    books = known[next(iter(known)) if destination is None else destination]
    return Counter(
        {
            **{name: books.get(name, 0) for name in _BOOKS if name != "dropped"},
            "dropped": sum(books["dropped"].values()),
        }
    )


def _received(request: web.BaseRequest, body: bytes, wire_size: int) -> Received:
    return Received(
        method=request.method,
        path=request.path,
        headers={name.lower(): value for name, value in request.headers.items()},
        body=body,
        wire_size=wire_size,
        status=None,
        at=time.monotonic(),
    )


def _counts(names: Iterable[str]) -> str:
    counts = Counter(names)
    if not counts:
        return ""
    return " (" + ", ".join(f"{name}: {count}" for name, count in counts.most_common()) + ")"


def _encode_other(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    msg = f"rules cannot hold {type(value).__name__}"
    raise TypeError(msg)


def _too_large(limit: int) -> RefusedError:
    return RefusedError(413, f"the body is larger than {limit} bytes")


def _inflate(wire: bytes, encoding: str | None, limit: int) -> bytes:
    if encoding in (None, "identity"):
        return wire
    if encoding != "gzip":
        raise RefusedError(415, f"Content-Encoding {encoding} is not supported")
    inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        body = inflater.decompress(wire, limit + 1)
    except zlib.error as error:
        raise RefusedError(400, f"not gzip: {error}") from error
    if len(body) > limit:
        raise _too_large(limit)
    if not inflater.eof or inflater.unused_data:
        raise RefusedError(400, "not one complete gzip member")
    return body


def _openers(
    keys: str | Mapping[str, str] | None,
) -> dict[str | None, Callable[[bytes], bytes | None]]:
    if keys is None:
        return {}
    # Here and not at the top: only who reads encrypted batches needs it.
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - optional
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - the same

    def opener(cipher: AESGCM) -> Callable[[bytes], bytes | None]:
        def open_sealed(raw: bytes) -> bytes | None:
            try:
                return cipher.decrypt(raw[:_NONCE], raw[_NONCE:], None)
            except InvalidTag:
                return None

        return open_sealed

    named: list[tuple[str | None, str]] = (
        [(None, keys)] if isinstance(keys, str) else [*keys.items()]
    )
    openers = {}
    for key_id, text in named:
        key = urlsafe_b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4))
        if len(key) != _KEY:
            msg = f"an encryption key has {_KEY} bytes in urlsafe base64, not {len(key)}"
            raise ValueError(msg)
        openers[key_id] = opener(AESGCM(key))
    return openers


def _refuse_constant(name: str) -> Any:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def _parse(route: Route, body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise RefusedError(422, "not a JSON object")
    if route == "status":
        return document
    if route not in document:
        raise RefusedError(422, f"has no {route}")
    for name in ("events", "metrics"):
        records = document.get(name) or []
        if not isinstance(records, list) or not all(isinstance(item, dict) for item in records):
            raise RefusedError(422, f"{name} is not a list of objects")
        if not all(isinstance(item.get("idempotency_key", ""), str) for item in records):
            raise RefusedError(422, f"an idempotency_key in {name} is not a string")
    return document


def _response(answer: Answer) -> web.Response:
    body = answer.body
    if body is None and answer.status in (200, 201):
        body = {"success": True}
    if body is None or isinstance(body, bytes):
        return web.Response(status=answer.status, headers=answer.headers, body=body)
    return web.Response(
        status=answer.status,
        headers={"Content-Type": "application/json", **answer.headers},
        body=json.dumps(body).encode(),
    )
