"""The transport ``otlp``."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from guard_agent import Accepted, Batch, Paused, PluginContext, Retry, TooLarge, Transport
from guard_agent import __version__ as version
from guard_agent_http import Answer, HttpClient, gzip
from guard_agent_otlp.answers import verdict
from guard_agent_otlp.encoding import JsonEncoding, ProtobufEncoding
from guard_agent_otlp.records import log_record, status_record
from guard_agent_otlp.settings import OtlpSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guard_agent import AgentConfig, AgentStatus, SendResult
    from guard_agent_otlp.encoding import Encoding

logger = logging.getLogger("guard_agent.otlp")

_SCOPE = {"name": "guard_agent", "version": version}
# A log record is two to three times as long as the record that it is made of.
_GROWTH = 4
# Translating is pure Python; in between, other threads get the interpreter.
_AT_ONCE = 32
# Shorter ones are no secrets, and blotting them out would make messages unreadable.
_SHORTEST_SECRET = 6


class OtlpTransport(Transport):
    """Posts batches to ``/v1/logs``, each record as a log record."""

    name = "otlp"
    Settings = OtlpSettings
    settings: OtlpSettings

    def __init__(self, settings: OtlpSettings, context: PluginContext) -> None:
        super().__init__(settings, context)
        config = context.config
        encoding = ProtobufEncoding if settings.encoding == "protobuf" else JsonEncoding
        self._encoding: Encoding = encoding(_resource(settings, config), _SCOPE)
        headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        self._client = HttpClient(
            settings.url,
            headers={**headers, "Accept": self._encoding.content_type},
            secrets=[secret for text in headers.values() for secret in _secrets(text)],
            deadline=min(settings.deadline, config.timeout),
            connect_timeout=settings.connect_timeout,
            use_proxy_environment=settings.use_proxy_environment,
            tls=settings.tls_files(),
        )
        enabled, threshold = settings.compression_enabled, settings.compression_threshold
        self._compress = config.compression_enabled if enabled is None else enabled
        self._threshold = config.compression_threshold if threshold is None else threshold
        self._advice = ""

    @property
    def collector(self) -> str:
        return self._client.origin

    @property
    def max_batch_bytes(self) -> int:
        return self.settings.max_body_bytes // _GROWTH

    async def open(self) -> None:
        await self._client.open()

    async def close(self) -> None:
        await self._client.close()

    def describe(self) -> Mapping[str, object]:
        return {} if self._client.last is None else self._client.last.describe()

    async def send(self, batch: Batch) -> SendResult:
        body = await self._translate(batch)
        limit = self.settings.max_body_bytes
        if len(body) > limit:
            # In bytes of records: as many as would have fitted, with some room.
            return TooLarge(max(1, batch.size * limit * 9 // (len(body) * 10)), asked=False)
        answer = await self._post(body)
        if not isinstance(answer, Answer):
            return answer
        result, advice = verdict(answer, len(batch), self._encoding, self._client.quote)
        if advice and advice != self._advice:
            logger.warning("%s took everything and says: %s", self.context.instance, advice)
        if isinstance(result, Accepted):
            self._advice = advice
        return result

    async def report(self, status: AgentStatus) -> SendResult:
        body = self._encoding.body()
        body.add(status_record(status))
        answer = await self._post(body.finish())
        if not isinstance(answer, Answer):
            return answer
        return verdict(answer, 1, self._encoding, self._client.quote)[0]

    async def _translate(self, batch: Batch) -> bytes:
        body = self._encoding.body()
        for number, record in enumerate(batch.records, start=1):
            body.add(log_record(record, self.settings.severities))
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        return body.finish()

    async def _post(self, body: bytes) -> Answer | Retry | Paused:
        headers = {"Content-Type": self._encoding.content_type}
        if self._compress and len(body) >= self._threshold:
            body = gzip(body)
            headers["Content-Encoding"] = "gzip"
        return await self._client.request("POST", "", body=body, headers=headers)


def _resource(settings: OtlpSettings, config: AgentConfig) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        # What the SDKs of OpenTelemetry say when nobody named the service.
        "service.name": settings.service_name or config.project_id or "unknown_service",
        "telemetry.sdk.name": "guard_agent",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.version": version,
        **settings.resource,
    }
    own = {
        "guard.project_id": config.project_id,
        "guard.install_id": config.install_id,
        "guard.version": config.guard_version,
        "guard.core_version": config.guard_core_version,
    }
    attributes.update((name, value) for name, value in own.items() if value)
    return attributes


def _secrets(text: str) -> list[str]:
    """The value of a header, and what stands behind a scheme such as ``Bearer``."""
    # The longer one first, or what is left of it would remain to be seen.
    return [part for part in (text, text.rpartition(" ")[2]) if len(part) >= _SHORTEST_SECRET]
