"""The server: what agents speak to, and what the page asks."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson
from aiohttp import web

from guard_agent import GuardAgentError, __version__
from guard_agent.rules import RulesRefused
from guard_agent_collector import ingest
from guard_agent_collector.access import COOKIE, Access, refuse_production
from guard_agent_collector.faults import KINDS, RETRY_AFTER, Breaker
from guard_agent_collector.feed import Feed
from guard_agent_collector.ingest import Keys, RefusedError, Unpacked
from guard_agent_collector.rulebook import Rulebook
from guard_agent_collector.storage import Sender, Storage, StorageFullError
from guard_agent_collector.tee import Forwarder, Recorder, Sent, recorded, sent
from guard_agent_http import Cipher

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from typing_extensions import Self

logger = logging.getLogger("guard_agent_collector")

RULES = "/api/v1/rules"
MAX_BODY = 8 * 1024 * 1024
_READ_SECONDS = 30.0
_MAX_AT_ONCE = 64
_MAX_STREAMS = 32
_HEARTBEAT = 10
_STATUS_INTERVAL = "5"
"""Seconds after which agents shall report again: somebody may be looking."""
_PACE = 0.15
"""Seconds between two messages to one page, so that a flood is shown in few of them."""
_REPLAY = 500
_STUCK = 20.0
_HISTORY = 20
_MAX_MINUTES = 180

_PAGE = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}
_SAFE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_POSITION = re.compile(r"r([0-9]{1,18})-q([0-9]{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What a collector is told at its start."""

    database: Path
    host: str = "127.0.0.1"
    port: int = 0
    """0 lets the system choose."""
    token: str | None = None
    names: tuple[str, ...] = ()
    """Further host names under which it is reached."""
    api_key: str | None = None
    signing_secret: str | None = None
    encryption_keys: tuple[str, ...] = ()
    max_body: int = MAX_BODY
    """Most bytes of a body, before and after it is inflated."""
    max_bytes: int = 256 * 1024 * 1024
    """Bound of the database."""
    once: int | None = None
    """
    `CollectorServer.finished` returns after so many new events and metrics; a record counts as what
    it stands for.
    """
    forward: str | None = None
    record: Path | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class CollectorServer:
    """
    A collector that listens.

    ``async with CollectorServer(options) as server`` starts and stops it; everything runs on the
    present event loop, besides what touches the disk.
    """

    def __init__(self, options: ServerOptions) -> None:
        """
        Check the options.

        Raises:
            GuardAgentError: one cannot be used, or the environment says production.
        """
        refuse_production(options.environment)
        self._options = options
        self._access = Access.configured(
            options.host, options.token, options.api_key, options.names
        )
        secret = options.signing_secret
        self._keys = Keys(
            signing_secret=secret.encode() if secret else None,
            ciphers=tuple(Cipher(key, "--encryption-key") for key in options.encryption_keys),
        )
        # One thread each: SQLite has one writer at a time, and readers must not wait for it.
        self._writers = ThreadPoolExecutor(1, "collector-write")
        self._readers = ThreadPoolExecutor(1, "collector-read")
        self._slots = asyncio.Semaphore(_MAX_AT_ONCE)
        self._breaker = Breaker()
        self._feed = Feed()
        self._finished = asyncio.Event()
        self._counted = 0
        self._port = options.port
        self._streams = 0
        self._page: dict[str, tuple[bytes, str]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None
        self._storage: Storage | None = None
        self._recorder: Recorder | None = None
        self._forwarder = Forwarder(options.forward) if options.forward else None

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """
        Open the database and listen.

        Raises:
            GuardAgentError: the database, the file or the port cannot be used.
        """
        options = self._options
        try:
            listener = _listener(options.host, options.port)
            try:
                self._storage = await self._writing(Storage, options.database, options.max_bytes)
                current = await self._reading(self._storage.last_publication)
                self._rules = Rulebook(self._storage, self._writing, current)
                if options.record is not None:
                    self._recorder = Recorder(options.record)
                folder = files("guard_agent_collector").joinpath("page")
                for path, (name, kind) in _PAGE.items():
                    self._page[path] = folder.joinpath(name).read_bytes(), kind
                self._port = listener.getsockname()[1]
                runner = web.AppRunner(
                    self._application(),
                    access_log=None,
                    shutdown_timeout=2.0,
                    keepalive_timeout=75,
                    auto_decompress=False,  # it has no bound; see `ingest.inflate`
                )
                self._runner = runner
                await runner.setup()
                await web.SockSite(runner, listener).start()
            except BaseException:
                listener.close()
                raise
        except BaseException:
            await self.stop()
            raise
        if self._forwarder is not None:
            self._tasks.append(asyncio.create_task(self._forwarder.run()))

    async def stop(self) -> None:
        """Answer what came in, end streams, close everything. Idempotent."""
        self._feed.close()
        if self._runner is not None:
            self._rules.feed.close()
            self._breaker.set(None, None)
            runner, self._runner = self._runner, None
            await runner.cleanup()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
        self._readers.shutdown()
        if self._storage is not None:
            storage, self._storage = self._storage, None
            await self._writing(storage.close)
        self._writers.shutdown()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """What agents take as their endpoint."""
        host = self._options.host
        if host in ("0.0.0.0", "::"):  # noqa: S104 - a comparison
            host = "127.0.0.1"
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    @property
    def page_url(self) -> str:
        """What to open in a browser."""
        token = self._options.token
        return f"{self.url}/?token={quote(token)}" if token else f"{self.url}/"

    async def finished(self) -> None:
        """Wait until ``once`` events and metrics came; for ever without it."""
        await self._finished.wait()

    async def replay(self, path: Path) -> tuple[int, int]:
        """
        Take in what ``--record`` wrote.

        Returns:
            How many records were new, and how many requests were refused.

        Raises:
            GuardAgentError: the file cannot be read, or is none.
        """
        new = refused = 0
        for request in await self._reading(lambda: list(recorded(path))):
            sender = _sender(request.headers)
            facts = {"method": "POST", "path": request.path, "wire": len(request.body)}
            try:
                _, added = await self._accept(request, sender, {**facts, "replayed": True})
            except RefusedError as error:
                refused += 1
                logger.warning("a replayed request is refused: %s", error)
            else:
                new += added
        return new, refused

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._guarded], client_max_size=MAX_BODY)
        routes: list[tuple[str, str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = [
            *(("POST", path, self._ingest) for path in ingest.PATHS),
            ("GET", RULES, self._give_rules),
            ("GET", f"{RULES}/watch", self._watch_rules),
            *(("GET", path, self._show_page) for path in _PAGE),
            ("GET", "/ui/stream", self._stream),
            ("GET", "/ui/now", self._show_now),
            ("GET", "/ui/agents", self._show_agents),
            ("GET", "/ui/records/{id}", self._show_record),
            ("GET", "/ui/records/{id}/raw", self._download_record),
            ("GET", "/ui/rules", self._show_rules),
            ("POST", "/ui/rules", self._publish_rules),
            ("POST", "/ui/rules/check", self._check_rules),
            ("POST", "/ui/fault", self._set_fault),
        ]
        for method, path, handler in routes:
            app.router.add_route(method, path, handler)
        return app

    async def _writing(self, function: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._writers, function, *arguments)

    async def _reading(self, function: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)

    @property
    def _store(self) -> Storage:
        if self._storage is None:
            raise web.HTTPServiceUnavailable
        return self._storage

    # --- who may what -----------------------------------------------------------------------------

    @web.middleware
    async def _guarded(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = _said(error.status, error.reason)
        except RefusedError as error:
            response = _said(error.status, error.detail, **error.more)
        if not response.prepared:
            response.headers.update(_SAFE_HEADERS)
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        access = self._access
        if not access.knows_host(request.headers.get("Host")):
            return _said(
                421,
                "this collector does not go by that name: use the address it printed, or start it "
                "with --allow-host NAME",
            )
        navigates = request.method == "GET" and request.path == "/"
        if not navigates and not access.is_own_origin(request.headers):
            return _said(403, "requests of other web pages are not taken")
        if request.path.startswith(("/api/", "/v1/")):
            return None  # agents: their key is looked at where the request is recorded
        if navigates and access.is_token(request.query.get("token", "")):
            response = web.Response(status=303, headers={"Location": "/", **_SAFE_HEADERS})
            response.set_cookie(
                COOKIE, self._access.token or "", httponly=True, samesite="Lax", path="/"
            )
            return response
        if not access.may_look(request.headers):
            return _said(401, "open the address that the collector printed, with its token")
        return None

    # --- agents -----------------------------------------------------------------------------------

    async def _ingest(self, request: web.Request) -> web.StreamResponse:
        began = time.perf_counter()
        sender = _sender(request.headers)
        facts: dict[str, Any] = {
            "method": request.method,
            "path": request.path,
            "agent": sender.agent,
            "project": sender.project,
            "encoding": request.headers.get("Content-Encoding", "")[:40],
        }
        async with self._slots:
            try:
                self._check_head(request)
                wire = await self._read(request)
                facts["wire"] = len(wire)
                encoding = request.headers.get("Content-Encoding", "")
                body = await self._writing(ingest.inflate, wire, encoding, self._options.max_body)
                made = sent(request.path, request.headers, body)
                answer, _ = await self._accept(made, sender, facts, request=request, began=began)
            except RefusedError as error:
                facts |= {"status": error.status, "detail": error.detail, "ms": _ms(began)}
                with suppress(sqlite3.Error, StorageFullError):
                    await self._writing(self._store.add_request, None, facts)
                self._feed.tell()
                more: dict[str, Any] = dict(error.more)
                retry = more.pop("retry_after", None)
                answer = _said(error.status, error.detail, **more)
                if retry is not None:
                    answer.headers["Retry-After"] = str(retry)
                if error.status in (408, 413):
                    answer.force_close()  # the rest of the body was not read
        if not answer.prepared:
            answer.headers["X-Status-Interval"] = _STATUS_INTERVAL
        return answer

    def _check_head(self, request: web.Request) -> None:
        if not self._access.may_send(request.headers):
            raise RefusedError(401, "this key is not the one of the collector")
        if _media_type(request.headers) == "application/x-protobuf":
            raise RefusedError(415, "only JSON here: OTEL_EXPORTER_OTLP_PROTOCOL=http/json")

    async def _read(self, request: web.Request) -> bytes:
        limit = self._options.max_body
        content = bytearray()

        async def read() -> None:
            async for chunk in request.content.iter_any():
                content.extend(chunk)
                if len(content) > limit:
                    raise ingest.too_large(limit)

        try:
            await asyncio.wait_for(read(), _READ_SECONDS)
        except asyncio.TimeoutError:
            raise RefusedError(408, "the body did not come") from None
        except (ConnectionError, web.RequestPayloadError) as error:
            raise RefusedError(400, "the body broke off") from error
        return bytes(content)

    async def _accept(
        self,
        made: Sent,
        sender: Sender,
        facts: dict[str, Any],
        *,
        request: web.Request | None = None,
        began: float | None = None,
    ) -> tuple[web.Response, int]:
        """
        Take in a request whose body was inflated; a replayed one is not broken, nor verified.

        Returns:
            The answer, and how many records are new.
        """
        signature = ingest.check_signature(
            self._keys.signing_secret, made.body, made.headers.get("x-payload-signature")
        )
        facts |= {"size": len(made.body), "signature": signature}
        if request is not None:
            ingest.refuse_unsigned(signature)
        unpacked: Unpacked = await self._writing(ingest.unpack, made.path, made.body, self._keys)
        facts["encrypted"] = made.path == ingest.ENCRYPTED
        began = time.perf_counter() if began is None else began
        if unpacked.reports:
            alone = not unpacked.records
            facts |= {"status": 200, "ms": _ms(began), "report": True} if alone else {}
            reports = [
                (report.fields, _named(sender, report.agent, report.project))
                for report in unpacked.reports
            ]
            await self._keeping(self._store.add_reports, reports, facts if alone else None)
            if alone:
                self._feed.tell()
                return (_json({}) if made.path == ingest.LOGS else _said(200)), 0

        sender = _named(sender, *unpacked.origin)
        fault = self._breaker.take(len(unpacked.records)) if request is not None else None
        if fault is not None:
            facts |= {"fault": fault, "records": len(unpacked.records)}
        if fault in ("500", "429", "413"):
            self._break(fault, len(made.body), len(unpacked.records))
        if request is not None and fault in ("hang", "drop"):
            await self._writing(
                self._store.add_request,
                None,
                {**facts, "status": None, "ms": _ms(began)},
            )
            self._feed.tell()
            if fault == "hang":
                await self._breaker.hang()
            return _hang_up(request), 0
        facts |= {"status": None if fault == "lose_ack" else 200, "ms": _ms(began)}
        new, known, counted = await self._keeping(self._store.add, unpacked.records, sender, facts)
        self._count(counted)
        self._feed.tell()
        self._pass_on(made)
        if request is not None and fault == "lose_ack":
            return _hang_up(request), new
        if made.path == ingest.LOGS:
            return _json({}), new
        return _json({"success": True, "accepted": new + known, "duplicates": known}), new

    async def _keeping(self, function: Callable[..., Any], *arguments: object) -> Any:
        """
        Write; when that is not possible the sender keeps its records and comes again.

        Raises:
            RefusedError: 503.
        """
        try:
            return await self._writing(function, *arguments)
        except StorageFullError as error:
            detail = "the database is full; the oldest records go: send it again"
            raise RefusedError(503, detail, retry_after=RETRY_AFTER) from error
        except sqlite3.Error as error:
            logger.warning("the database cannot be used: %s", error)
            raise RefusedError(503, f"the database cannot be used: {error}") from error

    def _break(self, fault: str, size: int, records: int) -> None:
        detail = "broken on purpose"
        if fault == "413":
            raise RefusedError(413, detail, limit=max(size // 2, size // records + 1024))
        if fault == "429":
            raise RefusedError(429, detail, retry_after=RETRY_AFTER)
        raise RefusedError(500, detail)

    def _pass_on(self, made: Sent) -> None:
        if self._forwarder is not None:
            self._forwarder.put(made)
        if self._recorder is not None:
            try:
                self._recorder.write(made)
            except OSError as error:
                # The disk is full: what arrived is kept and acknowledged all the same.
                logger.warning("cannot record any more: %s", error)
                self._recorder = None

    def _count(self, counted: int) -> None:
        self._counted += counted
        if self._options.once is not None and self._counted >= self._options.once:
            self._finished.set()

    # --- rules ------------------------------------------------------------------------------------

    async def _give_rules(self, request: web.Request) -> web.StreamResponse:
        sender = _sender(request.headers)
        if not self._access.may_send(request.headers):
            return _said(401, "this key is not the one of the collector")
        rules = self._rules.current
        if await self._rules.fetched(sender):
            self._feed.tell()
        if rules is None:
            return web.Response(status=204, headers={"X-Rules-Watch": "sse"})
        headers = {"ETag": rules.etag, "X-Rules-Watch": "sse"}
        if request.headers.get("If-None-Match") == rules.etag:
            return web.Response(status=304, headers=headers)
        if rules.signature is not None:
            headers["X-Rules-Signature"] = rules.signature
        facts = {
            "method": "GET",
            "path": RULES,
            "status": 200,
            "wire": 0,
            "size": len(rules.body),
            "agent": sender.agent,
            "project": sender.project,
            "ms": 0.0,
        }
        await self._writing(self._store.add_request, sender, facts)
        self._feed.tell()
        return web.Response(body=rules.body, content_type="application/json", headers=headers)

    async def _watch_rules(self, request: web.Request) -> web.StreamResponse:
        """Tells the ETag of the rules that are out, at once and whenever it changes."""
        if not self._access.may_send(request.headers):
            return _said(401, "this key is not the one of the collector")
        sender = _sender(request.headers)
        who = sender.agent, sender.project
        feed = self._rules.feed
        response = await self._begin_stream(request)
        self._rules.watching[who] += 1
        self._feed.tell()
        try:
            told: str | None = None
            while not feed.closed and _is_there(request):
                version = feed.version
                if told != self._rules.etag:
                    told = self._rules.etag
                    await _write(response, f"event: rules\ndata: {told}\n\n")
                else:
                    await _rest(request, response, feed, version)
        except (ConnectionError, asyncio.TimeoutError):
            pass  # it went
        finally:
            self._rules.watching[who] -= 1
            if not self._rules.watching[who]:
                del self._rules.watching[who]
            self._feed.tell()
        return response

    async def _begin_stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={**_SAFE_HEADERS, "Content-Type": "text/event-stream; charset=utf-8"}
        )
        await response.prepare(request)
        return response

    # --- the page ---------------------------------------------------------------------------------

    async def _show_page(self, request: web.Request) -> web.StreamResponse:
        content, kind = self._page[request.path]
        return web.Response(body=content, content_type=kind, charset="utf-8")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Everything that is new, from the last thing the page has."""
        if self._streams >= _MAX_STREAMS:
            raise RefusedError(503, f"more than {_MAX_STREAMS} pages are open")
        found = _POSITION.fullmatch(request.headers.get("Last-Event-ID", ""))
        self._streams += 1
        response = await self._begin_stream(request)
        try:
            await _write(response, "retry: 1000\n\n")
            await self._send_news(
                request, response, (int(found[1]), int(found[2])) if found else None
            )
        except (ConnectionError, asyncio.TimeoutError):
            pass  # the page was closed
        finally:
            self._streams -= 1
        return response

    async def _send_news(
        self, request: web.Request, response: web.StreamResponse, position: tuple[int, int] | None
    ) -> None:
        record, call = position or (0, 0)
        ends = await self._reading(self._store.ends)
        if record > ends[0] or call > ends[1]:
            record = call = 0  # another database than the last time
            position = None
        while not self._feed.closed and _is_there(request):
            version = self._feed.version
            records, missed = await self._reading(self._store.records_after, record, _REPLAY)
            calls = await self._reading(self._store.requests_after, call, _REPLAY)
            state = await self._state()
            record = records[-1]["id"] if records else record
            call = calls[-1]["id"] if calls else call
            news = {
                "fresh": position is None,
                "records": records,
                "missed": missed,
                "requests": calls,
                "state": state,
            }
            position = (record, call)
            await _write(
                response,
                f"id: r{record}-q{call}\nevent: news\ndata: {orjson.dumps(news).decode()}\n\n",
            )
            await asyncio.sleep(_PACE)
            await _rest(request, response, self._feed, version)

    async def _state(self) -> dict[str, Any]:
        used, bound = await self._reading(self._store.size)
        rules = self._rules.current
        return {
            "version": __version__,
            "endpoint": self.url,
            "api_key": self._options.api_key is not None or self._access.token is not None,
            "fault": self._breaker.describe(),
            "forward": self._forwarder.describe() if self._forwarder else None,
            "used_bytes": used,
            "max_bytes": bound,
            "rules": None if rules is None else {"id": rules.rule_id, "version": rules.version},
        }

    async def _show_now(self, request: web.Request) -> web.StreamResponse:
        minutes = request.query.get("minutes", "30")
        wanted = int(minutes) if re.fullmatch(r"[0-9]{1,4}", minutes, re.ASCII) else 30
        return _json(await self._reading(self._store.now, min(max(wanted, 1), _MAX_MINUTES)))

    async def _show_agents(self, _: web.Request) -> web.StreamResponse:
        agents = await self._reading(self._store.agents)
        for agent in agents:
            who = agent["agent"], agent["project"]
            agent["watching"] = self._rules.watching[who] > 0
            agent["asked_for_rules"] = self._rules.asked(*who)
        return _json({"now": time.time(), "agents": agents})

    async def _record(self, request: web.Request) -> tuple[dict[str, Any], bytes]:
        number = request.match_info["id"]
        if not re.fullmatch(r"[0-9]{1,18}", number, re.ASCII):
            raise web.HTTPNotFound
        found: tuple[dict[str, Any], bytes] | None = await self._reading(
            self._store.record, int(number)
        )
        if found is None:
            raise web.HTTPNotFound
        return found

    async def _show_record(self, request: web.Request) -> web.StreamResponse:
        brief, payload = await self._record(request)
        text = orjson.dumps(orjson.loads(payload), option=orjson.OPT_INDENT_2).decode()
        return _json({"record": brief, "bytes": len(payload), "text": text[: 256 * 1024]})

    async def _download_record(self, request: web.Request) -> web.StreamResponse:
        brief, payload = await self._record(request)
        name = f'attachment; filename="record-{brief["id"]}.json"'
        return web.Response(
            body=payload, content_type="application/json", headers={"Content-Disposition": name}
        )

    async def _show_rules(self, _: web.Request) -> web.StreamResponse:
        published = await self._reading(self._store.publications, _HISTORY)
        return _json({"now": time.time(), "publications": published})

    async def _publish_rules(self, request: web.Request) -> web.StreamResponse:
        text, signature = await self._asked_rules(request)
        try:
            result = await self._rules.publish(text, signature)
        except RulesRefused as refusal:
            return _json({"error": str(refusal)}, 422)
        self._feed.tell()
        return _json(result)

    async def _check_rules(self, request: web.Request) -> web.StreamResponse:
        text, signature = await self._asked_rules(request)
        try:
            return _json(await self._rules.check(text, signature))
        except RulesRefused as refusal:
            return _json({"error": str(refusal)}, 422)

    async def _asked_rules(self, request: web.Request) -> tuple[str, str | None]:
        document = await self._asked(request)
        text, signature = document.get("text"), document.get("signature")
        if not isinstance(text, str):
            raise RefusedError(422, "the request has no 'text'")
        if not signature:
            return text, None
        if not isinstance(signature, str) or not re.fullmatch(r"[\x21-\x7e, ]{1,512}", signature):
            raise RefusedError(422, "the signature is no header value")
        return text, signature.strip()

    async def _set_fault(self, request: web.Request) -> web.StreamResponse:
        document = await self._asked(request)
        kind, count = document.get("kind"), document.get("count")
        if kind is not None and kind not in KINDS:
            raise RefusedError(422, f"kind is null or one of {', '.join(KINDS)}")
        if count is not None and (not isinstance(count, int) or not 1 <= count <= 1000):
            raise RefusedError(422, "count is null or a number from 1 to 1000")
        self._breaker.set(kind, count)
        self._feed.tell()
        return _json(self._breaker.describe())

    async def _asked(self, request: web.Request) -> dict[str, Any]:
        """The JSON that the page sent. No form of another page can make one."""
        if _media_type(request.headers) != "application/json":
            raise RefusedError(415, "send JSON")
        return ingest.object_of(await self._read(request), "the request")


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        msg = f"cannot listen on {host} port {port}: {error.strerror}; --port 0 takes a free one"
        raise GuardAgentError(msg) from error


def _sender(headers: Mapping[str, str]) -> Sender:
    names = {name.lower(): value for name, value in headers.items()}
    return Sender(
        agent=names.get("x-agent-install-id", "")[:100],
        project=names.get("x-project-id", "")[:100],
        version=names.get("user-agent", "")[:100],
    )


def _named(sender: Sender, agent: str, project: str) -> Sender:
    """The sender by these names, where its headers tell none."""
    return replace(sender, agent=sender.agent or agent, project=sender.project or project)


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _ms(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 2)


def _is_there(request: web.Request) -> bool:
    return request.transport is not None and not request.transport.is_closing()


async def _rest(
    request: web.Request, response: web.StreamResponse, feed: Feed, version: int
) -> None:
    """Wait for news, with a sign of life now and then, for as long as somebody listens."""
    while _is_there(request):
        for _ in range(_HEARTBEAT):
            if await feed.after(version, 1.0) or not _is_there(request):
                return
        await _write(response, ": still here\n\n")


async def _write(response: web.StreamResponse, text: str) -> None:
    await asyncio.wait_for(response.write(text.encode()), _STUCK)


def _hang_up(request: web.Request) -> web.Response:
    with suppress(Exception):
        if request.transport is not None:
            request.transport.abort()
    return web.Response()  # cannot be written any more


def _json(document: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(document), status=status, content_type="application/json")


def _said(status: int, detail: str | None = None, **more: Any) -> web.Response:
    said: dict[str, Any] = {"success": status < 400}
    if detail:
        said["detail"] = detail
    response = _json({**said, **more}, status)
    response.headers.update(_SAFE_HEADERS)
    return response
