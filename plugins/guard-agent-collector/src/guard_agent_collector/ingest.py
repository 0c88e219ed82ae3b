"""What a request of an agent means: unpacked within bounds, verified, taken apart."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import orjson

from guard_agent_collector.otlp import log_records, origin, status_report
from guard_agent_http import signing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guard_agent_http import Cipher

RecordKind: TypeAlias = Literal["event", "metric", "log"]
Signature: TypeAlias = Literal["none", "valid", "wrong", "missing", "unchecked"]

EVENTS = "/api/v1/events"
ENCRYPTED = "/api/v1/events/encrypted"
METRICS = "/api/v1/metrics"
STATUS = "/api/v1/status"
LOGS = "/v1/logs"
_LONGEST_KEY = 200
PATHS = (EVENTS, ENCRYPTED, METRICS, STATUS, LOGS)


class RefusedError(Exception):
    """The request is not taken; ``status`` and the text are the answer."""

    def __init__(self, status: int, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.more = more


@dataclass(frozen=True, slots=True)
class Incoming:
    """One record as it came."""

    kind: RecordKind
    fields: dict[str, Any]
    payload: bytes
    """JSON; for a log record what it stands for, see `otlp.log_records`."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a process is, as its agent says."""

    fields: dict[str, Any]
    agent: str = ""
    """Install id, where it is told here; else the headers have it."""
    project: str = ""


@dataclass(slots=True)
class Unpacked:
    """The body of one request, after everything was checked."""

    path: str
    body: bytes
    """Inflated; an encrypted batch stays encrypted."""
    records: list[Incoming] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    """A status report, or in log records among others several."""
    origin: tuple[str, str] = ("", "")
    """Install id and project, where log records tell them and all the same."""


@dataclass(frozen=True, slots=True)
class Keys:
    """What this collector checks and opens requests with."""

    signing_secret: bytes | None = None
    ciphers: tuple[Cipher, ...] = ()


def inflate(wire: bytes, encoding: str, limit: int) -> bytes:
    """
    The body without its compression, never more than ``limit`` bytes of it in memory.

    Raises:
        RefusedError: 413 when it is longer, 415 for an unknown encoding, 400 for what is no gzip.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        if len(wire) > limit:
            raise too_large(limit)
        return wire
    if encoding != "gzip":
        raise RefusedError(415, f"Content-Encoding {encoding[:40]!r} is not supported; send gzip")
    inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        body = inflater.decompress(wire, limit + 1)
    except zlib.error as error:
        raise RefusedError(400, f"the body is not gzip: {error}") from None
    if len(body) > limit:
        raise too_large(limit)
    if not inflater.eof or inflater.unused_data:
        raise RefusedError(400, "the body is not one complete gzip member")
    return body


def too_large(limit: int) -> RefusedError:
    return RefusedError(413, f"the body is larger than {limit} bytes", limit=limit)


def check_signature(secret: bytes | None, body: bytes, signature: str | None) -> Signature:
    if secret is None:
        return "unchecked" if signature else "none"
    if not signature:
        return "missing"
    return "valid" if signing.is_signed(secret, body, signature) else "wrong"


def refuse_unsigned(signature: Signature) -> None:
    """
    Refuse what is not signed as it must be.

    Raises:
        RefusedError: 401.
    """
    if signature == "missing":
        raise RefusedError(401, "X-Payload-Signature is missing: set payload_signing_secret")
    if signature == "wrong":
        raise RefusedError(401, "X-Payload-Signature is wrong: compare payload_signing_secret")


def unpack(path: str, body: bytes, keys: Keys) -> Unpacked:
    """
    Take the body of a request to ``path`` apart.

    Raises:
        RefusedError: with the status that makes an agent do the right thing.
    """
    document = object_of(body, "the body")
    unpacked = Unpacked(path, body)
    if path == STATUS:
        unpacked.reports = [Report(document)]
        return unpacked
    if path == LOGS:
        _take_logs(unpacked, log_records(document))
        return unpacked
    if path == ENCRYPTED:
        document = _opened(document, keys.ciphers)
    elif path.rpartition("/")[2] not in document:
        raise RefusedError(422, f"the body has no {path.rpartition('/')[2]!r}")
    unpacked.records = [
        *_records("event", document.get("events")),
        *_records("metric", document.get("metrics")),
    ]
    return unpacked


def _take_logs(unpacked: Unpacked, logs: list[dict[str, Any]]) -> None:
    for log in logs:
        report = status_report(log)
        if report is None:
            unpacked.records.append(Incoming("log", log, orjson.dumps(log)))
        else:
            unpacked.reports.append(Report(report, *origin(log)))
    origins = {origin(record.fields) for record in unpacked.records}
    if len(origins) == 1:
        unpacked.origin = origins.pop()


def object_of(body: bytes, what: str) -> dict[str, Any]:
    """
    Parse a JSON object.

    Raises:
        RefusedError: 400 or 422.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RefusedError(400, f"{what} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise RefusedError(422, f"{what} is not a JSON object")
    return document


def _opened(envelope: Mapping[str, Any], ciphers: tuple[Cipher, ...]) -> dict[str, Any]:
    if not ciphers:
        raise RefusedError(404, "encrypted batches need --encryption-key here")
    sealed = envelope.get("encrypted_payload")
    if not isinstance(sealed, str):
        raise RefusedError(422, "the body has no 'encrypted_payload'")
    for cipher in ciphers:
        try:
            plain = cipher.unseal(sealed)
        except ValueError:
            continue
        return object_of(plain, "what was encrypted")
    raise RefusedError(403, "none of the keys opens this batch: compare project_encryption_key")


def _records(kind: RecordKind, items: object) -> list[Incoming]:
    if items is None:
        return []
    if not isinstance(items, list):
        raise RefusedError(422, f"the {kind}s are not a list")
    found = []
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise RefusedError(422, f"{kind} {number} is not an object")
        key = item.get("idempotency_key", "")
        if not isinstance(key, str) or len(key) > _LONGEST_KEY:
            msg = f"the idempotency_key of {kind} {number} is no text of at most {_LONGEST_KEY}"
            raise RefusedError(422, msg)
        found.append(Incoming(kind, item, orjson.dumps(item)))
    return found
