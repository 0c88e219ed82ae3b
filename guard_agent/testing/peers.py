"""
What stands at the other end of a transport or a rule source in its contract suite.

`HttpPeer` is one for everything that speaks HTTP, whatever the path and the format. For another
protocol write a `Peer`: it needs to start, to stop, and to say what came in.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from guard_agent.testing.collector import Answer, Collector, RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiohttp import web
    from typing_extensions import Self

    from guard_agent.testing.collector import Received, Reply, Route

Outcome: TypeAlias = Literal[
    "busy",
    "unavailable",
    "broken",
    "reset",
    "denied",
    "forbidden",
    "missing",
    "moved",
    "malformed",
    "unprocessable",
    "too_large",
    "late",
    "silent",
]
"""
What a peer can be told to do with one request, in words that fit any protocol.

- ``busy``: asks to come back after `BUSY_SECONDS` seconds (429),
- ``unavailable``, ``broken``: something is wrong with it (503, 500),
- ``reset``: the connection is reset instead of an answer,
- ``denied``, ``forbidden``: the key is not taken (401, 403),
- ``missing``, ``moved``: there is nothing at this address, or no longer (404, 302),
- ``malformed``, ``unprocessable``: the content is not taken (400, 422),
- ``too_large``: there is too much of it (413),
- ``late``: it accepts, but only after `LATE_SECONDS` seconds,
- ``silent``: no answer ever comes.
"""

BUSY_SECONDS = 7.0
LATE_SECONDS = 0.5

_ANSWERS: Mapping[Outcome, Answer] = {
    "busy": Answer(429, {"Retry-After": f"{BUSY_SECONDS:.0f}"}),
    "unavailable": Answer(503),
    "broken": Answer(500),
    "reset": Answer(fault="reset"),
    "denied": Answer(401),
    "forbidden": Answer(403),
    "missing": Answer(404),
    "moved": Answer(302, {"Location": "/elsewhere"}),
    "malformed": Answer(400),
    "unprocessable": Answer(422),
    "too_large": Answer(413),
    "late": Answer(delay=LATE_SECONDS),
    "silent": Answer(fault="silent"),
}


class Peer(ABC):
    """The other end. Made once for a test; everything may be called from any thread."""

    @abstractmethod
    def start(self) -> Self:
        """Be there: what is sent now arrives. At the same address after every `stop`."""

    @abstractmethod
    def stop(self) -> None:
        """Be away: what is sent now does not arrive. Idempotent."""


class AnsweringPeer(Peer):
    """One that can be told what to answer; for `TransportContract` and `RuleSourceContract`."""

    @abstractmethod
    def say(self, *outcomes: Outcome) -> None:
        """Do this with the next requests, in order; after them all is well again."""

    @property
    @abstractmethod
    def requests(self) -> Sequence[object]:
        """Every request so far, also one that has no answer yet."""


class RecordsPeer(Peer):
    """The other end of a transport."""

    @property
    @abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """The records that it has taken, in order."""


class RulesPeer(Peer):
    """The other end of a rule source."""

    @abstractmethod
    def publish(self, rules: Mapping[str, Any]) -> Mapping[str, Any]:
        """Hold this document from now on; returns it as it is held."""

    @abstractmethod
    def garble(self, content: bytes) -> None:
        """Hold ``content``, which is no document, until the next `publish`."""


class HttpPeer(Collector, AnsweringPeer, RecordsPeer, RulesPeer):
    """
    A `Collector` that takes any path, and any format that `read` understands.

    A POST or PUT brings records; any other request asks for the rules. A redirect is counted as an
    address that is wrong: nothing follows ``/elsewhere``.
    """

    def read(self, request: Received) -> list[dict[str, Any]]:
        """
        The records in one request, each with its ``idempotency_key``. For overriding.

        Knows one JSON object or array, an object with ``events`` or ``metrics``, and JSON lines.

        Raises:
            ValueError: it is something else, which is answered with 400.
        """
        try:
            document = json.loads(request.body)
        except ValueError:
            document = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        if isinstance(document, dict):
            inside = [*(document.get("events") or []), *(document.get("metrics") or [])]
            document = inside or [document]
        if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
            msg = "neither a JSON object, nor an array or lines of them"
            raise ValueError(msg)
        return document

    @property
    def records(self) -> list[dict[str, Any]]:
        """What came in and was accepted, each ``idempotency_key`` once, in order."""
        return self.events

    def say(self, *outcomes: Outcome) -> None:
        self.answer(*(_ANSWERS[outcome] for outcome in outcomes))

    def garble(self, content: bytes) -> None:
        self.always(Answer(body=content), only="rules")

    def publish(self, rules: Mapping[str, Any] | None) -> dict[str, Any]:
        self.always(None, only="rules")
        return super().publish(rules)

    # --- what a collector of the ingest API does otherwise ----------------------------------------

    def _check(self, request: web.BaseRequest) -> Route:
        return "events" if request.method in ("POST", "PUT") else "rules"

    def _next_reply(self, route: Route) -> Reply:
        if self._script:
            return self._script.popleft()[1]
        return self._default.get(route) or self._default.get(None) or Answer()

    def _document(self, route: Route, received: Received) -> dict[str, Any]:  # noqa: ARG002 - any
        try:
            return {"events": self.read(received)}
        except ValueError as error:
            raise RefusedError(400, f"cannot be read: {error}") from error
