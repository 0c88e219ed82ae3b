"""The transport ``http``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, SecretStr

from guard_agent import (
    Batch,
    EncryptionConfigError,
    Paused,
    PluginContext,
    SendResult,
    TooLarge,
    Transport,
)
from guard_agent_http import signing
from guard_agent_http.answers import Answer, delivery_verdict, parse_retry_after
from guard_agent_http.client import DEFAULT_ANSWER_BYTES, CollectorClient
from guard_agent_http.compression import gzip
from guard_agent_http.encryption import Cipher
from guard_agent_http.envelope import Envelope, PlainEnvelope, SealedEnvelope
from guard_agent_http.settings import CollectorSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guard_agent import AgentConfig, AgentStatus, Retry

_STATUS_INTERVAL = "X-Status-Interval"
_STATUS_PATH = "/api/v1/status"
# A reason may quote what a collector answered, and that what stood in a record.
_QUOTING = frozenset({"error", "errors", "last_error", "reason"})
_LEAST_ROOM = 1024
# An answer that says something about every record needs room for that.
_ANSWER_BYTES_PER_RECORD = 256


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
    project_encryption_key: SecretStr | None = Field(
        default=None, description="Key for end-to-end encryption of batches"
    )
    encryption_key_id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Name of the key, sent along as key_id so that a collector can hold several",
    )


class HttpTransport(Transport):
    """Posts batches as JSON to ``/api/v1/events`` and ``/api/v1/metrics``."""

    name = "http"
    Settings = HttpSettings
    settings: HttpSettings

    def __init__(self, settings: HttpSettings, context: PluginContext) -> None:
        super().__init__(settings, context)
        config = context.config
        self._client = CollectorClient.configured(settings, config)
        # Decided once, here: no later moment knows how to make a plain body in place of a sealed.
        cipher = _cipher(settings, context)
        self._encrypts = cipher is not None
        self._envelope: Envelope = (
            PlainEnvelope(settings.project_id or config.project_id, config)
            if cipher is None
            else SealedEnvelope(cipher, settings.encryption_key_id, config)
        )
        if self._envelope.room(settings.max_body_bytes) < _LEAST_ROOM:
            msg = (
                f"max_body_bytes ({settings.max_body_bytes}) leaves no room for records beside "
                "project_id and guard_version: raise it, or shorten those"
            )
            raise ValueError(msg)
        enabled, threshold = settings.compression_enabled, settings.compression_threshold
        self._compress = config.compression_enabled if enabled is None else enabled
        self._threshold = config.compression_threshold if threshold is None else threshold
        secret = settings.payload_signing_secret
        text = config.payload_signing_secret if secret is None else secret.get_secret_value()
        self._secret = text.encode() if text else None
        self._status_interval: float | None = None

    @property
    def collector(self) -> str:
        return self._client.origin

    @property
    def max_batch_bytes(self) -> int:
        room = self._envelope.room(self.settings.max_body_bytes)
        # A comma per record; the idempotency key alone makes a record longer than 32 bytes.
        return max(1, room - min(self.context.config.max_batch_records, room // 32))

    @property
    def status_interval(self) -> float | None:
        return self._status_interval

    async def open(self) -> None:
        await self._client.open()

    async def close(self) -> None:
        await self._client.close()

    def describe(self) -> Mapping[str, object]:
        return {} if self._client.last is None else self._client.last.describe()

    async def send(self, batch: Batch) -> SendResult:
        size = self._envelope.size(batch.size + max(len(batch) - 1, 0))
        if size > self.settings.max_body_bytes:
            # The core keeps to max_batch_bytes, but leases a record that is larger than that alone.
            return TooLarge(self.max_batch_bytes, asked=False)
        compressed = self._is_worth_compressing(size)
        body = self._envelope.wrap(batch, compressed=compressed)
        room = max(DEFAULT_ANSWER_BYTES, _ANSWER_BYTES_PER_RECORD * len(batch))
        packed = gzip(body, is_base64=self._encrypts) if compressed else None
        answer = await self._post(self._envelope.path(batch.kind), body, packed, room)
        if not isinstance(answer, Answer):
            return answer
        if self._encrypts and answer.status in (404, 405):
            return Paused(
                f"the collector has no place for encrypted batches ({answer.status}), and nothing "
                "is sent unencrypted instead: check endpoint, or project_encryption_key",
                stage="encryption",
            )
        return delivery_verdict(answer, batch)

    async def report(self, status: AgentStatus) -> SendResult:
        if self._encrypts:
            # The collector has no place for an encrypted report. Counts and states may be seen.
            status = status.model_copy(
                update={name: _unquoted(value) for name, value in status if name != "errors"}
                | {"errors": []}
            )
        body = status.model_dump_json().encode()
        packed = gzip(body) if self._is_worth_compressing(len(body)) else None
        answer = await self._post(_STATUS_PATH, body, packed, DEFAULT_ANSWER_BYTES)
        return delivery_verdict(answer, None) if isinstance(answer, Answer) else answer

    def _is_worth_compressing(self, size: int) -> bool:
        return self._compress and size >= self._threshold

    async def _post(
        self, path: str, body: bytes, packed: bytes | None, room: int
    ) -> Answer | Retry | Paused:
        headers = {}
        if self._secret is not None:
            # Over the uncompressed body: the collector decompresses before it verifies.
            headers[signing.HEADER] = signing.sign(self._secret, body)
        if packed is not None:
            headers["Content-Encoding"] = "gzip"
        answer = await self._client.request(
            "POST",
            path,
            body=body if packed is None else packed,
            headers=headers,
            max_answer_bytes=room,
        )
        if isinstance(answer, Answer):
            # In the form of Retry-After: a collector with somebody in front of it is curious.
            self._status_interval = parse_retry_after(answer.headers.getall(_STATUS_INTERVAL, []))
        return answer


def _cipher(settings: HttpSettings, context: PluginContext) -> Cipher | None:
    own = settings.project_encryption_key
    if own is not None:
        setting = f"plugins.{context.instance}.project_encryption_key"
        return Cipher(own.get_secret_value(), _place(context.config, setting))
    key = context.config.project_encryption_key
    if key is not None:
        # Also when it is empty: such a key went missing on its way here.
        return Cipher(key, _place(context.config, "project_encryption_key"))
    if settings.encryption_key_id is not None:
        place = _place(context.config, f"plugins.{context.instance}.encryption_key_id")
        msg = (
            f"{place} names a key, but project_encryption_key is not set; nothing is sent "
            "unencrypted instead: set the key, or remove its name"
        )
        raise EncryptionConfigError(msg)
    return None


def _place(config: AgentConfig, setting: str) -> str:
    origin = config.origin(setting)
    return setting if origin is None else f"{setting} ({origin})"


def _unquoted(value: Any) -> Any:
    """``value`` without the texts in which something of a record may be quoted."""
    if not isinstance(value, dict):
        return value
    return {key: None if key in _QUOTING else _unquoted(item) for key, item in value.items()}
