"""The two encodings of OTLP/HTTP: JSON, and binary Protobuf."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import orjson

from guard_agent_otlp.records import SCHEMA_URL, SEVERITY_NUMBERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guard_agent_http import Answer
    from guard_agent_otlp.records import LogRecord

_INT64 = range(-(2**63), 2**63)
# Receivers written in Protobuf give up at 100 messages within each other; a level here is up to 3.
_MAX_DEPTH = 16


class Body(Protocol):
    """An ExportLogsServiceRequest that is being written."""

    def add(self, log: LogRecord) -> None: ...

    def finish(self) -> bytes: ...


class Encoding(Protocol):
    content_type: str

    def body(self) -> Body:
        """Begin the body of a request."""

    def partial_success(self, answer: Answer) -> tuple[int, str]:
        """
        What an ExportLogsServiceResponse says: how many records were rejected, and a message.

        Raises:
            ValueError: with a reason for people, when the answer is none.
        """


def _decode_error() -> type[Exception]:
    from google.protobuf.message import (  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra
        DecodeError,
    )

    error: type[Exception] = DecodeError
    return error


def load_protobuf() -> Any:
    """
    The definitions of requests and responses for logs.

    Raises:
        ImportError: the package opentelemetry-proto is missing.
    """
    # Here and not at the top: who sends JSON needs no Protobuf, and no time to load it.
    from opentelemetry.proto.collector.logs.v1 import (  # noqa: PLC0415 - an extra
        logs_service_pb2,
    )

    return logs_service_pb2


class JsonEncoding:
    """Names in lowerCamelCase, integers of 64 bits as text, ids in hexadecimal."""

    content_type = "application/json"

    def __init__(self, resource: Mapping[str, Any], scope: Mapping[str, str]) -> None:
        schema = b'"schemaUrl":' + orjson.dumps(SCHEMA_URL)
        described = orjson.dumps({"attributes": _json_attributes(resource)})
        self._head = b"".join(
            [
                b'{"resourceLogs":[{"resource":',
                described,
                b',"scopeLogs":[{"scope":',
                orjson.dumps(dict(scope)),
                b',"logRecords":[',
            ]
        )
        self._tail = b"]," + schema + b"}]," + schema + b"}]}"

    def body(self) -> Body:
        return _JsonBody(self._head, self._tail)

    def partial_success(self, answer: Answer) -> tuple[int, str]:
        said = answer.json()
        if not isinstance(said, dict):
            return 0, ""
        partial = said.get("partialSuccess", said.get("partial_success"))
        if partial is None:
            return 0, ""
        if not isinstance(partial, dict):
            msg = "partialSuccess is not an object"
            raise ValueError(msg)  # noqa: TRY004 - the collector's mistake, not a caller's
        rejected = partial.get("rejectedLogRecords", partial.get("rejected_log_records")) or 0
        message = partial.get("errorMessage", partial.get("error_message")) or ""
        return _count(rejected), message if isinstance(message, str) else ""


class _JsonBody:
    def __init__(self, head: bytes, tail: bytes) -> None:
        self._head = head
        self._tail = tail
        self._logs: list[bytes] = []

    def add(self, log: LogRecord) -> None:
        encoded: dict[str, Any] = {
            "severityNumber": SEVERITY_NUMBERS[log.severity],
            "severityText": log.severity,
            "eventName": log.event_name,
            "body": {"stringValue": log.body},
            "attributes": _json_attributes(log.attributes),
        }
        if log.observed:
            encoded["observedTimeUnixNano"] = str(log.observed)
        if log.time:
            encoded["timeUnixNano"] = str(log.time)
        if log.trace_id:
            encoded["traceId"] = log.trace_id
        if log.span_id:
            encoded["spanId"] = log.span_id
        self._logs.append(orjson.dumps(encoded))

    def finish(self) -> bytes:
        return self._head + b",".join(self._logs) + self._tail


def _count(value: Any) -> int:
    """An integer of 64 bits as Protobuf writes it in JSON: a number, or a text with one."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    msg = "rejectedLogRecords is not a number"
    raise ValueError(msg)


def _json_attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _json_value(value)} for key, value in attributes.items()]


def _json_value(value: Any, depth: int = 0) -> dict[str, Any]:  # noqa: PLR0911 - one per type
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)} if value in _INT64 else {"stringValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if value is None:
        return {"stringValue": ""}  # see _set()
    if depth >= _MAX_DEPTH:
        return {"stringValue": orjson.dumps(value).decode()}
    # Lists are written when they are empty too: there are receivers that miss them.
    if isinstance(value, list):
        return {"arrayValue": {"values": [_json_value(item, depth + 1) for item in value]}}
    pairs = [{"key": key, "value": _json_value(item, depth + 1)} for key, item in value.items()]
    return {"kvlistValue": {"values": pairs}}


class ProtobufEncoding:
    """The same messages, in the binary form, by the definitions of opentelemetry-proto."""

    content_type = "application/x-protobuf"

    def __init__(self, resource: Mapping[str, Any], scope: Mapping[str, str]) -> None:
        """
        Load Protobuf and prepare what stands around the records.

        Raises:
            ImportError: the package opentelemetry-proto is missing.
        """
        definitions = load_protobuf()
        self._response = definitions.ExportLogsServiceResponse
        self._empty = definitions.ExportLogsServiceRequest()
        resource_logs = self._empty.resource_logs.add(schema_url=SCHEMA_URL)
        _fill(resource_logs.resource.attributes, resource)
        scope_logs = resource_logs.scope_logs.add(schema_url=SCHEMA_URL)
        scope_logs.scope.name = scope["name"]
        scope_logs.scope.version = scope["version"]

    def body(self) -> Body:
        request = type(self._empty)()
        request.CopyFrom(self._empty)
        return _ProtobufBody(request)

    def partial_success(self, answer: Answer) -> tuple[int, str]:
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != self.content_type:
            msg = f"the answer is not {self.content_type}, perhaps it comes from a proxy"
            raise ValueError(msg)
        if not answer.complete:
            msg = f"the answer is longer than {len(answer.body)} bytes"
            raise ValueError(msg)
        response = self._response()
        try:
            response.ParseFromString(answer.body)
        except _decode_error() as error:
            msg = "the answer is not an ExportLogsServiceResponse"
            raise ValueError(msg) from error
        partial = response.partial_success
        return max(partial.rejected_log_records, 0), partial.error_message


class _ProtobufBody:
    def __init__(self, request: Any) -> None:
        self._request = request
        self._logs = request.resource_logs[0].scope_logs[0].log_records

    def add(self, log: LogRecord) -> None:
        message = self._logs.add(
            time_unix_nano=log.time,
            observed_time_unix_nano=log.observed,
            severity_number=SEVERITY_NUMBERS[log.severity],
            severity_text=log.severity,
            event_name=log.event_name,
            trace_id=bytes.fromhex(log.trace_id),
            span_id=bytes.fromhex(log.span_id),
        )
        message.body.string_value = log.body
        _fill(message.attributes, log.attributes)

    def finish(self) -> bytes:
        body: bytes = self._request.SerializeToString()
        return body


def _fill(target: Any, attributes: Mapping[str, Any], depth: int = 0) -> None:
    for key, value in attributes.items():
        _set(target.add(key=key).value, value, depth)


def _set(target: Any, value: Any, depth: int) -> None:
    """
    Set the AnyValue ``target``.

    Null is an empty text. It should be an AnyValue in which nothing is set; but there are receivers
    that refuse a whole request for one, and the specification allows a text instead.
    """
    if isinstance(value, str):
        target.string_value = value
    elif isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, int):
        if value in _INT64:
            target.int_value = value
        else:
            target.string_value = str(value)
    elif isinstance(value, float):
        target.double_value = value
    elif value is None:
        target.string_value = ""
    elif depth >= _MAX_DEPTH:
        target.string_value = orjson.dumps(value).decode()
    elif isinstance(value, list):
        target.array_value.SetInParent()
        for item in value:
            _set(target.array_value.values.add(), item, depth + 1)
    else:
        target.kvlist_value.SetInParent()
        _fill(target.kvlist_value.values, value, depth + 1)
