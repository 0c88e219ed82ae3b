"""Requests over HTTP: one session, one deadline per request, bounded answers."""

from __future__ import annotations

import asyncio
import os
import ssl
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Literal, cast

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from guard_agent import Paused, Retry, __version__, check_endpoint
from guard_agent_http.answers import Answer, clock_ahead, one_line
from guard_agent_http.install import resolve_install_id
from guard_agent_http.proxy import environment_proxy
from guard_agent_http.resolver import ThreadResolver
from guard_agent_http.settings import header_value
from guard_agent_http.tls import (
    TlsFileError,
    TlsFiles,
    certificate_fault,
    handshake_fault,
    hang_up_fault,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aiohttp.abc import AbstractResolver
    from aiohttp.connector import Connection
    from typing_extensions import Self

    from guard_agent import AgentConfig
    from guard_agent_http.proxy import Proxy
    from guard_agent_http.settings import CollectorSettings

DEFAULT_ANSWER_BYTES = 64 * 1024
_CONNECTIONS = 2
_CHUNK = 64 * 1024

# Everything that can go wrong between here and a complete answer.
_WIRE_ERRORS = (aiohttp.ClientError, HttpProcessingError, asyncio.TimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One answer as an operator sees it, and the connection it came over."""

    status: int
    body_bytes: int
    encoding: str
    clock_ahead: float | None
    """Seconds by which the collector's clock is ahead of ours; it tells whole seconds."""
    tls: str | None
    certificate_ends: float | None

    def describe(self) -> dict[str, object]:
        """What is known, in the words of `guard_agent.Transport.describe`."""
        known = {
            "answer": f"http {self.status}",
            "body_bytes": self.body_bytes,
            "encoding": self.encoding or None,
            "clock_ahead": self.clock_ahead,
            "tls": self.tls,
            "certificate_ends": self.certificate_ends,
        }
        return {name: value for name, value in known.items() if value is not None}


class HttpClient:
    """
    Makes requests to one server and brings back answers, or what to do without one.

    Construction does no I/O. After ``open()`` everything runs on the event loop that called it.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        secrets: Iterable[str] = (),
        deadline: float = 10.0,
        connect_timeout: float = 3.0,
        use_proxy_environment: bool = True,
        tls: TlsFiles | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        """
        Keep the arguments.

        Args:
            url: What the paths of the requests are below; `check_endpoint` has seen it.
            headers: For every request; each value went through `header_value`.
            secrets: Texts that are blotted out of what is said of an answer.
            deadline: Seconds one request may take in all.
            connect_timeout: Seconds until there is a connection, TLS included.
            use_proxy_environment: Whether the proxies of the environment are used.
            tls: The files that make a connection trusted.
            resolver: When passed it stays the caller's to close.
        """
        self._url = URL(url)
        self._secrets = tuple(secrets)
        self._headers = {
            "User-Agent": f"guard-agent/{__version__}",
            "Accept": "application/json",
            # What is not compressed cannot unfold to gigabytes.
            "Accept-Encoding": "identity",
            **(headers or {}),
        }
        self._deadline = deadline
        self._connect_timeout = connect_timeout
        self._use_proxy_environment = use_proxy_environment
        self._given_resolver = resolver
        self._resolver: AbstractResolver | None = None
        self._session: aiohttp.ClientSession | None = None
        self._proxy: Proxy | None = None
        self._tls_files = tls or TlsFiles()
        self._tls: ssl.SSLContext | None = None
        self._tls_failed = False
        self.last: Exchange | None = None
        """Of the last request, when it was answered."""

    @property
    def origin(self) -> str:
        """Scheme, host and port of the server, the port always included."""
        host = self._url.raw_host or ""
        shown = f"[{host}]" if ":" in host else host
        return f"{self._url.scheme}://{shown}:{self._url.port}"

    async def open(self) -> None:
        """
        Make the session. Connects to nothing yet; does nothing when it is open.

        Raises:
            GuardAgentError: a file of the TLS settings cannot be used.
        """
        if self._session is not None:
            return
        if self._url.scheme == "https":
            self._tls, self._tls_failed = self._tls_files.context(), False
        if self._use_proxy_environment:
            self._proxy = environment_proxy(self._url)
        self._resolver = self._given_resolver or ThreadResolver()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=_CONNECTIONS, resolver=self._resolver, use_dns_cache=False
            ),
            timeout=aiohttp.ClientTimeout(
                total=self._deadline,
                connect=self._connect_timeout,
                sock_connect=self._connect_timeout,
                ceil_threshold=float("inf"),  # otherwise five seconds and more are rounded up
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_CHUNK,
            response_class=_Response,
            # Not trust_env: it runs in the loop's executor, which refuses work when the
            # interpreter is ending, and it takes credentials for the collector from ~/.netrc.
            trust_env=False,
        )

    async def close(self) -> None:
        """Close every connection. Idempotent, and safe without ``open()``."""
        session, self._session = self._session, None
        resolver, self._resolver = self._resolver, None
        if resolver is not None and resolver is not self._given_resolver:
            await resolver.close()
        if session is not None:
            await session.close()
            # Sockets are closed in the loop's next turn; without it they would be garbage.
            await asyncio.sleep(0)

    async def request(
        self,
        method: Literal["GET", "POST"],
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        max_answer_bytes: int = DEFAULT_ANSWER_BYTES,
    ) -> Answer | Retry | Paused:
        """
        Make one request to ``path`` below the url, or to the url itself when it is empty.

        The deadline covers everything from looking up the name to the last byte of the answer.
        Redirects are answers. Of the body at most ``max_answer_bytes`` are read, then the
        connection is closed.

        Returns:
            The answer, or `Retry` or `Paused` when there is none.

        Raises:
            RuntimeError: when the client is not open.
        """
        response = await self._begin(method, path, body, headers)
        if not isinstance(response, _Response):
            return response
        healthy = False
        try:
            content, complete = bytearray(), False
            try:
                complete = await _read(response, content, max_answer_bytes)
            except _WIRE_ERRORS as error:
                if response.status < 300:
                    return self._translate(error)
                # A refusal counts without its explanation: many a server sends 413 and hangs up
                # on the rest of the body.
            # A server that refused has perhaps not read the request to its end, and would take
            # the rest of it for the next one.
            healthy = complete and (response.status < 300 or response.status == 304)
        finally:
            if not (healthy and response.idle):
                response.abort()
        return Answer(
            status=response.status,
            headers=response.headers,
            body=bytes(content),
            complete=complete,
            excerpt=self._excerpt(content),
        )

    async def follow(
        self,
        path: str,
        on_line: Callable[[bytes], None],
        *,
        headers: Mapping[str, str] | None = None,
        silence: float,
        max_line_bytes: int = 16 * 1024,
    ) -> Answer | Retry | Paused:
        """
        Read an answer that goes on, such as server-sent events, line by line until it ends.

        There is no deadline for the whole of it: it ends when the server ends it, or says nothing
        for ``silence`` seconds, or sends a line that is longer than ``max_line_bytes``. Only a 200
        is followed.

        Returns:
            The head of the answer, without a body; or `Retry` or `Paused`.

        Raises:
            RuntimeError: when the client is not open.
        """
        timeout = aiohttp.ClientTimeout(
            total=None,
            connect=self._connect_timeout,
            sock_connect=self._connect_timeout,
            sock_read=silence,
        )
        response = await self._begin("GET", path, None, headers, timeout)
        if not isinstance(response, _Response):
            return response
        rest = b""
        try:
            if response.status == 200:
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    if max(map(len, (*lines, rest))) > max_line_bytes:
                        return Retry(f"protocol: a line longer than {max_line_bytes} bytes")
                    for line in lines:
                        on_line(line.rstrip(b"\r"))
        except _WIRE_ERRORS as error:
            return self._translate(error)
        finally:
            response.abort()
        return Answer(
            status=response.status, headers=response.headers, body=b"", complete=False, excerpt=""
        )

    async def _begin(
        self,
        method: Literal["GET", "POST"],
        path: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> _Response | Retry | Paused:
        """Send a request; returns when the head of the answer is there."""
        session, self.last = self._session, None
        if session is None:
            msg = "open() the client before the first request"
            raise RuntimeError(msg)
        # With each request and not with the session, whose headers aiohttp sends to proxies too.
        sent = {**self._headers, **(headers or {})}
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        proxy = self._proxy
        if proxy is not None and self._url.scheme == "http":
            sent.update(proxy.headers)  # there is no tunnel: the proxy reads this request
        try:
            if self._tls_failed:
                # Certificates are renewed while processes run: the files may have changed.
                self._tls, self._tls_failed = self._tls_files.context(), False
            opened = await session.request(
                method,
                self._url / path.lstrip("/") if path else self._url,
                data=body,
                headers=sent,
                allow_redirects=False,
                proxy=None if proxy is None else proxy.url,
                proxy_headers=None if proxy is None else proxy.headers,
                ssl=True if self._tls is None else self._tls,
                timeout=timeout or session.timeout,
            )
        except TlsFileError as error:
            return Retry(one_line(str(error)))
        except _WIRE_ERRORS as error:
            return self._translate(error)

        response = cast("_Response", opened)  # the session was told to make these
        self.last = Exchange(
            response.status,
            len(body or b""),
            sent.get("Content-Encoding", ""),
            clock_ahead(response.headers.get("Date"), time()),
            *response.tls,
        )
        return response

    def quote(self, text: str) -> str:
        """Foreign text for people: one printable line, the secrets blotted out."""
        return one_line(self._hide(text))

    def _excerpt(self, content: bytearray) -> str:
        return self.quote(content[:4096].decode("utf-8", "replace"))

    def _hide(self, text: str) -> str:
        proxy = () if self._proxy is None else self._proxy.secrets
        for secret in (*self._secrets, *proxy):
            text = text.replace(secret, "***")
        return text

    def _translate(self, error: BaseException) -> Retry | Paused:
        if isinstance(error, aiohttp.InvalidURL):
            return Paused(f"{self.origin} is not a valid address: check endpoint")
        if isinstance(error, aiohttp.ClientHttpProxyError):
            if error.status == 407:
                return Paused("the proxy wants credentials (407): check the proxy settings")
            return Retry(f"the proxy answered {error.status}")
        return self._translate_tls(error) or self._translate_network(error)

    def _translate_tls(self, error: BaseException) -> Retry | Paused | None:
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            self._tls_failed = True
            fault = self.quote(certificate_fault(error.certificate_error))
            return Paused(f"the certificate of {self.origin} is not valid: {fault}")
        tls = handshake_fault(error)
        if tls is None and self._tls is not None and _is_hang_up(error):
            tls = hang_up_fault(), False
        if tls is None:
            return None
        self._tls_failed = True
        fault, permanent = tls
        reason = f"no safe connection to {self.origin}: {self.quote(fault)}"
        return Paused(reason) if permanent else Retry(reason)

    def _translate_network(  # noqa: PLR0911 - one return per kind of error
        self, error: BaseException
    ) -> Retry:
        place = self.origin
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return Retry(f"no connection to {place} within {self._connect_timeout:g} s")
        if isinstance(error, asyncio.TimeoutError):
            return Retry(f"no complete answer from {place} within {self._deadline:g} s")
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return Retry(f"cannot find the address of {error.host}: {self._say(error.os_error)}")
        if isinstance(error, aiohttp.ClientProxyConnectionError) and self._proxy is not None:
            proxy = self._proxy.url
            target = f"{proxy.host}:{proxy.port}"
            return Retry(f"cannot connect to the proxy {target}: {self._say(error.os_error)}")
        if isinstance(error, aiohttp.ClientConnectorError):
            target = f"{error.host}:{error.port}"
            return Retry(f"cannot connect to {target}: {self._say(error.os_error)}")
        if isinstance(error, (aiohttp.ClientResponseError, HttpProcessingError)):
            return Retry(f"protocol: {place} did not answer in HTTP: {self._say(error)}")
        # Since TLS 1.3 a certificate is refused after the handshake, and the reset that follows can
        # overtake the reason.
        self._tls_failed = self._tls is not None
        return Retry(f"the connection to {place} broke: {self._say(error)}")

    def _say(self, error: BaseException) -> str:
        if isinstance(error, aiohttp.ClientResponseError):
            text = error.message
        elif isinstance(error, OSError) and error.strerror:
            text = error.strerror
        elif isinstance(error, OSError) and error.errno:
            text = os.strerror(error.errno)
        else:
            text = str(error) or type(error).__name__
        return self.quote(text)


class CollectorClient(HttpClient):
    """A client that says who is asking, in the headers that collectors of the agent know."""

    def __init__(
        self,
        *,
        endpoint: str,
        api_key: str,
        project_id: str | None = None,
        install_id: str | None = None,
        deadline: float = 10.0,
        connect_timeout: float = 3.0,
        use_proxy_environment: bool = True,
        tls: TlsFiles | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        """
        Keep the arguments.

        Without ``install_id`` the one of this machine is read or made in ``open()``. A
        ``resolver`` that is passed stays the caller's to close.

        Raises:
            ValueError: naming the argument that cannot be used.
        """
        url = check_endpoint(endpoint)
        key = header_value("api_key", api_key)
        headers = {"X-API-Key": key, "Authorization": f"Bearer {key}"}
        if project_id:
            headers["X-Project-ID"] = header_value("project_id", project_id)
        if install_id:
            headers["X-Agent-Install-Id"] = header_value("install_id", install_id)
        super().__init__(
            url,
            headers=headers,
            secrets=(key,),
            deadline=deadline,
            connect_timeout=connect_timeout,
            use_proxy_environment=use_proxy_environment,
            tls=tls,
            resolver=resolver,
        )

    @classmethod
    def configured(cls, settings: CollectorSettings, config: AgentConfig) -> Self:
        """Make the client that ``settings`` describe; what they leave open is as in ``config``."""
        own_key = settings.api_key
        return cls(
            endpoint=settings.endpoint or config.endpoint,
            api_key=config.api_key if own_key is None else own_key.get_secret_value(),
            project_id=settings.project_id or config.project_id,
            install_id=config.install_id,
            deadline=min(settings.deadline, config.timeout),
            connect_timeout=settings.connect_timeout,
            use_proxy_environment=settings.use_proxy_environment,
            tls=settings.tls_files(),
        )

    async def open(self) -> None:
        if "X-Agent-Install-Id" not in self._headers:
            self._headers["X-Agent-Install-Id"] = resolve_install_id()
        await super().open()


class _Response(aiohttp.ClientResponse):
    """
    A response whose connection can be cut.

    Closing a connection waits until everything written is sent. To a collector that has stopped
    reading that is for ever, and each attempt would leave a socket behind.
    """

    _wire: asyncio.Transport | None = None

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        self._wire = connection.transport
        try:
            return await super().start(connection)
        except BaseException:
            self.abort()
            raise

    @property
    def tls(self) -> tuple[str | None, float | None]:
        """Version, and until when the certificate is good; empty without TLS."""
        tls = None if self._wire is None else self._wire.get_extra_info("ssl_object")
        if tls is None:
            return None, None
        ends = (tls.getpeercert() or {}).get("notAfter")
        return tls.version(), None if ends is None else float(ssl.cert_time_to_seconds(ends))

    @property
    def idle(self) -> bool:
        """Whether the request was sent to its end."""
        return self._wire is None or self._wire.get_write_buffer_size() == 0

    def abort(self) -> None:
        if self._wire is not None:
            self._wire.abort()
        self.close()


async def _read(response: aiohttp.ClientResponse, content: bytearray, limit: int) -> bool:
    """Fill ``content`` with at most ``limit`` bytes; True when that is the whole body."""
    async for chunk in response.content.iter_any():
        content += chunk[: limit + 1 - len(content)]
        if len(content) > limit:
            del content[limit:]
            return False
    return True


def _is_hang_up(error: BaseException) -> bool:
    """Whether a connection that was there got lost before the request."""
    return isinstance(error, aiohttp.ClientConnectorError) and isinstance(
        error.os_error, (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
    )
