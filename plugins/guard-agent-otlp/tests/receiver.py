"""
An OTLP/HTTP receiver that listens on loopback, answers as it is told, and is strict.

A request is read by the Protobuf definitions of OpenTelemetry. In JSON it must besides be written
the one way that OTLP allows: what those definitions make of it must be what was sent.
"""

from __future__ import annotations

import base64
import gzip
import json
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)

JSON, PROTOBUF = "application/json", "application/x-protobuf"


@dataclass(frozen=True)
class Answer:
    status: int = 200
    headers: dict = field(default_factory=dict)
    body: bytes | None = None
    """None for what the specification asks for: an ExportLogsServiceResponse."""
    kind: str | None = None
    """Content-Type; None for that of the request."""
    rejected: int = 0
    message: str = ""
    store: bool | None = None
    """Whether the records were taken; None for: when the status is 200."""
    hang_up: bool = False


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict
    """Names in lower case."""
    raw: bytes
    body: bytes
    """Decompressed."""
    message: ExportLogsServiceRequest
    at: float

    @property
    def logs(self):
        return [
            log
            for resource in self.message.resource_logs
            for scope in resource.scope_logs
            for log in scope.log_records
        ]


def parse_json(text: bytes) -> ExportLogsServiceRequest:
    """Read the JSON of OTLP, which deviates from that of Protobuf in three ways."""
    sent = json.loads(text, parse_constant=_no_constant)
    for log in _logs(sent):
        assert isinstance(log["severityNumber"], int)  # names of enum values are forbidden
        for name in ("traceId", "spanId"):
            if name in log:
                log[name] = base64.b64encode(bytes.fromhex(log[name])).decode()
    message = json_format.ParseDict(sent, ExportLogsServiceRequest(), ignore_unknown_fields=False)
    # Equal only if the names are in lowerCamelCase, and integers of 64 bits are texts.
    assert json_format.MessageToDict(message, use_integers_for_enums=True) == _brief(sent)
    return message


def _brief(value):
    """Without what Protobuf does not write because it is the default."""
    if isinstance(value, dict):
        return {
            name: _brief(item)
            for name, item in value.items()
            if item != [] and not (name == "key" and item == "")
        }
    return [_brief(item) for item in value] if isinstance(value, list) else value


def _no_constant(name):
    raise AssertionError(f"{name} is no JSON")


def _logs(sent):
    return [
        log
        for resource in sent["resourceLogs"]
        for scope in resource["scopeLogs"]
        for log in scope["logRecords"]
    ]


def plain(value):
    """An AnyValue as plain Python."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return attributes(value.kvlist_value.values)
    return getattr(value, kind)


def attributes(pairs):
    """Attributes as a dictionary; keys must be unique."""
    keys = [pair.key for pair in pairs]
    assert len(keys) == len(set(keys)), keys
    return {pair.key: plain(pair.value) for pair in pairs}


class Receiver:
    def __init__(self, *script, port=0):
        self._port = port
        self.script = deque(script)
        """What the next requests are answered; then everything is taken."""
        self.rule = None
        """Called with each `Received` when the script is over; returns an `Answer` or None."""
        self.requests: list[Received] = []
        self.stored: list = []
        """Every log record of every request that was taken."""
        self.faults: list[BaseException] = []
        """What was wrong with requests."""
        self._changed = threading.Condition()

    def __enter__(self):
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_POST(self):
                receiver._handle(self)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
        assert self.faults == []

    def _handle(self, handler):
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        try:
            received = self._read(handler.path, headers, raw)
        except Exception as error:  # noqa: BLE001 - the test shows it, not the thread
            with self._changed:
                self.faults.append(error)
                self._changed.notify_all()
            handler.send_error(400)
            return
        with self._changed:
            if self.script:
                answer = self.script.popleft()
            else:
                answer = (self.rule and self.rule(received)) or Answer()
            stores = answer.status == 200 if answer.store is None else answer.store
            self.requests.append(received)
            if stores:
                self.stored += received.logs
            self._changed.notify_all()
        with suppress(ConnectionError):
            self._reply(handler, headers["content-type"], answer)

    def _read(self, path, headers, raw):
        body = gzip.decompress(raw) if headers.get("content-encoding") == "gzip" else raw
        if headers["content-type"] == JSON:
            message = parse_json(body)
        else:
            assert headers["content-type"] == PROTOBUF
            message = ExportLogsServiceRequest.FromString(body)
        return Received(path, headers, raw, body, message, time.monotonic())

    def _reply(self, handler, kind, answer):
        if answer.hang_up:
            handler.close_connection = True
            return
        body = answer.body
        if body is None:
            response = ExportLogsServiceResponse()
            if answer.rejected or answer.message:
                response.partial_success.rejected_log_records = answer.rejected
                response.partial_success.error_message = answer.message
            body = response.SerializeToString()
            if kind == JSON:
                body = json_format.MessageToJson(response).encode()
        handler.send_response(answer.status)
        handler.send_header("Content-Length", str(len(body)))
        if body:
            handler.send_header("Content-Type", answer.kind or kind)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    @property
    def uids(self):
        """The keys of everything that was taken, in order."""
        return [attributes(log.attributes)["log.record.uid"] for log in self.stored]

    def wait(self, condition, timeout=20.0):
        with self._changed:
            done = self._changed.wait_for(lambda: condition(self), timeout)
        assert done, f"{len(self.requests)} requests, {len(self.stored)} stored, {self.faults}"
