"""Passing on what was accepted, to another collector or into a file; and reading such a file."""

from __future__ import annotations

import asyncio
import logging
import random
from base64 import b64decode, b64encode
from collections import deque
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from guard_agent import GuardAgentError
from guard_agent_collector import ingest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

logger = logging.getLogger("guard_agent_collector")

# What says for whom a request is and how it is to be read; in a file keys are left out.
_KEYS = ("x-api-key", "authorization")
_HEADERS = (
    *("x-project-id", "x-agent-install-id", "user-agent", "content-type"),
    *("x-payload-signature",),
)
_MAX_WAITING = 1000
_MAX_WAITING_BYTES = 32 * 1024 * 1024
_ATTEMPTS = 6
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True, slots=True)
class Sent:
    """A request as it can be made again. The body is not compressed."""

    path: str
    headers: Mapping[str, str]
    body: bytes


def sent(path: str, headers: Mapping[str, str], body: bytes) -> Sent:
    names = {name.lower(): value for name, value in headers.items()}
    return Sent(path, {name: names[name] for name in (*_KEYS, *_HEADERS) if name in names}, body)


class Forwarder:
    """
    Makes every accepted request again at another collector, in order.

    Agents do not wait for it: what cannot be forwarded after six attempts is given up, and so is
    what comes while 1000 requests or 32 MiB wait. Both are counted.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.forwarded = 0
        self.given_up = 0
        self.last_error: str | None = None
        self._waiting: deque[Sent] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()

    def put(self, request: Sent) -> None:
        size = len(request.body)
        if len(self._waiting) >= _MAX_WAITING or self._bytes + size > _MAX_WAITING_BYTES:
            self.given_up += 1
            return
        self._waiting.append(request)
        self._bytes += size
        self._wake.set()

    def describe(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "forwarded": self.forwarded,
            "waiting": len(self._waiting),
            "given_up": self.given_up,
            "last_error": self.last_error,
        }

    async def run(self) -> None:
        """Forward until cancelled."""
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(
            timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            while True:
                while self._waiting:
                    if await self._forward(session, self._waiting[0]):
                        self.forwarded += 1
                    else:
                        self.given_up += 1
                    self._bytes -= len(self._waiting.popleft().body)
                self._wake.clear()
                await self._wake.wait()

    async def _forward(self, session: aiohttp.ClientSession, request: Sent) -> bool:
        for attempt in range(_ATTEMPTS):
            if attempt:
                await asyncio.sleep(min(2**attempt, _LONGEST_PAUSE) * random.random())  # noqa: S311 - no secret
            try:
                async with session.post(
                    self.url + request.path,
                    data=BytesIO(request.body),
                    headers=request.headers,
                    allow_redirects=False,
                ) as response:
                    status = response.status
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                self._failed(f"{type(error).__name__}: {error}")
                continue
            if status < 300:
                self.last_error = None
                return True
            self._failed(f"answered {status}")
            if status < 500 and status not in (408, 425, 429):
                return False
        return False

    def _failed(self, reason: str) -> None:
        if self.last_error is None:
            logger.warning("cannot forward to %s: %s", self.url, reason)
        self.last_error = reason


class Recorder:
    """Appends every accepted request to a file, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        """
        Open the file.

        Raises:
            GuardAgentError: it cannot be written.
        """
        try:
            self._file: BinaryIO = path.open("ab")
            path.chmod(0o600)
        except OSError as error:
            msg = f"cannot record to {path}: {error}"
            raise GuardAgentError(msg) from error

    def write(self, request: Sent) -> None:
        """
        Write one request, without its keys.

        Raises:
            OSError: it could not be written.
        """
        headers = {name: value for name, value in request.headers.items() if name not in _KEYS}
        line: dict[str, Any] = {"path": request.path, "headers": headers}
        try:
            line["body"] = request.body.decode()
        except UnicodeDecodeError:
            line["base64"] = b64encode(request.body).decode()
        self._file.write(orjson.dumps(line) + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def recorded(path: Path) -> Iterator[Sent]:
    """
    The requests of a file that `Recorder` wrote.

    Raises:
        GuardAgentError: naming the line that is none of them.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield _recorded(line, f"{path}:{number}")
    except OSError as error:
        msg = f"cannot replay {path}: {error}"
        raise GuardAgentError(msg) from error


def _recorded(line: bytes, place: str) -> Sent:
    try:
        document = orjson.loads(line)
        path, headers = document["path"], document["headers"]
        body = document["body"].encode() if "body" in document else b64decode(document["base64"])
        ingest.PATHS.index(path)
        return Sent(path, {str(name): str(value) for name, value in headers.items()}, body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{place} is no line that --record wrote: {type(error).__name__}: {error}"
        raise GuardAgentError(msg) from error
