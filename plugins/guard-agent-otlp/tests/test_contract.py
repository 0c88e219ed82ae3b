"""The contract of a transport, in both encodings."""

from __future__ import annotations

from typing import ClassVar

from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from guard_agent import Paused
from guard_agent.testing.collector import Answer
from guard_agent.testing.contracts import TransportContract
from guard_agent.testing.peers import HttpPeer
from guard_agent_otlp import OtlpTransport


class OtlpPeer(HttpPeer):
    def read(self, request):
        message = ExportLogsServiceRequest()
        if request.headers["content-type"] == "application/json":
            json_format.Parse(request.body, message)
        else:
            message.ParseFromString(request.body)
        return [
            {"idempotency_key": attribute.value.string_value}
            for resource in message.resource_logs
            for scope in resource.scope_logs
            for log in scope.log_records
            for attribute in log.attributes
            if attribute.key == "log.record.uid"
        ]


class TestOtlpContract(TransportContract):
    """What becomes of the single fields is in ``test_records.py``."""

    plugin = OtlpTransport
    encoding = "json"
    # By OTLP a collector that answers 500 is not to be asked again soon.
    answers: ClassVar = {**TransportContract.answers, "broken": (Paused,)}

    def make_peer(self):
        peer = OtlpPeer()
        peer.always(Answer(body=b""))
        return peer

    def settings(self):
        return {"endpoint": self.peer.url, "encoding": self.encoding}

    def sent(self, fields):
        return {"idempotency_key": fields["idempotency_key"]}


class TestOtlpProtobufContract(TestOtlpContract):
    encoding = "protobuf"
