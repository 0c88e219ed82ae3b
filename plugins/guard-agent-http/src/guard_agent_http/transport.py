"""The transport ``http``."""

from __future__ import annotations

import hmac
import zlib
from typing import TYPE_CHECKING

from pydantic import Field, SecretStr

from guard_agent import Batch, EncryptionConfigError, PluginContext, SendResult, Transport
from guard_agent_http.answers import Answer, delivery_verdict
from guard_agent_http.client import DEFAULT_ANSWER_BYTES, CollectorClient, CollectorSettings
from guard_agent_http.envelope import Envelope

if TYPE_CHECKING:
    from guard_agent import AgentStatus

_PATHS = {"event": "/api/v1/events", "metric": "/api/v1/metrics"}
_STATUS_PATH = "/api/v1/status"
# An answer that says something about every record needs room for that.
_ANSWER_BYTES_PER_RECORD = 256
# Level 6 takes twice the time of level 1 for 15 % fewer bytes (benchmarks/gzip_level.py), and the
# time is the app's.
_GZIP_LEVEL = 1
_GZIP_FORMAT = 31


class HttpSettings(CollectorSettings):
    """Settings of the transport. None means: as the agent has it."""

    max_body_bytes: int = Field(
        default=256 * 1024,
        ge=4096,
        le=1024 * 1024,
        description="Most uncompressed bytes the collector takes in one request",
    )
    compression_enabled: bool | None = Field(default=None, description="Compress bodies (gzip)")
    compression_threshold: int | None = Field(
        default=None, ge=0, description="Bodies smaller than this are sent as they are"
    )
    payload_signing_secret: SecretStr | None = Field(
        default=None, description="Secret for the X-Payload-Signature header"
    )


class HttpTransport(Transport):
    """Posts batches as JSON to ``/api/v1/events`` and ``/api/v1/metrics``."""

    name = "http"
    Settings = HttpSettings
    settings: HttpSettings

    def __init__(self, settings: HttpSettings, context: PluginContext) -> None:
        super().__init__(settings, context)
        config = context.config
        if config.project_encryption_key:
            msg = (
                "project_encryption_key is set, but this version of guard-agent-http cannot "
                "encrypt, and it will never send plaintext instead: remove the key to send "
                "unencrypted, or use a version that encrypts"
            )
            raise EncryptionConfigError(msg)
        self._client = CollectorClient.configured(settings, config)
        self._envelope = Envelope(settings.project_id or config.project_id, config)
        enabled, threshold = settings.compression_enabled, settings.compression_threshold
        self._compress = config.compression_enabled if enabled is None else enabled
        self._threshold = config.compression_threshold if threshold is None else threshold
        secret = settings.payload_signing_secret
        text = config.payload_signing_secret if secret is None else secret.get_secret_value()
        self._secret = text.encode() if text else None

    @property
    def collector(self) -> str:
        return self._client.origin

    @property
    def max_batch_bytes(self) -> int:
        room = self.settings.max_body_bytes - self._envelope.size
        # A comma per record; the idempotency key alone makes a record longer than 32 bytes.
        return max(1, room - min(self.context.config.max_batch_records, room // 32))

    async def open(self) -> None:
        await self._client.open()

    async def close(self) -> None:
        await self._client.close()

    async def send(self, batch: Batch) -> SendResult:
        size = self._envelope.size + batch.size + max(len(batch) - 1, 0)
        compressed = self._is_worth_compressing(size)
        body = self._envelope.wrap(batch, compressed=compressed)
        room = max(DEFAULT_ANSWER_BYTES, _ANSWER_BYTES_PER_RECORD * len(batch))
        return await self._post(_PATHS[batch.kind], body, compressed, room, batch)

    async def report(self, status: AgentStatus) -> SendResult:
        body = status.model_dump_json().encode()
        compressed = self._is_worth_compressing(len(body))
        return await self._post(_STATUS_PATH, body, compressed, DEFAULT_ANSWER_BYTES, None)

    def _is_worth_compressing(self, size: int) -> bool:
        return self._compress and size >= self._threshold

    async def _post(
        self, path: str, body: bytes, compressed: bool, room: int, batch: Batch | None
    ) -> SendResult:
        headers = {}
        if self._secret is not None:
            # Over the uncompressed body: the collector decompresses before it verifies.
            digest = hmac.new(self._secret, body, "sha256").hexdigest()
            headers["X-Payload-Signature"] = f"v1={digest}"
        if compressed:
            headers["Content-Encoding"] = "gzip"
            packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_FORMAT)
            body = packer.compress(body) + packer.flush()
        answer = await self._client.request(
            "POST", path, body=body, headers=headers, max_answer_bytes=room
        )
        return delivery_verdict(answer, batch) if isinstance(answer, Answer) else answer
