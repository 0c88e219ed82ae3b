"""Settings of the transport ``otlp``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from guard_agent import check_endpoint
from guard_agent_http import ConnectionSettings, header_value
from guard_agent_otlp.encoding import load_protobuf
from guard_agent_otlp.records import Severity

if TYPE_CHECKING:
    from typing_extensions import Self

LOGS_PATH = "/v1/logs"

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)  # RFC 9110, section 5.6.2
# What the transport itself says of its requests.
_OWN_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
# What the transport itself says of the service.
_OWN_RESOURCE = ("telemetry.sdk.", "guard.")


def _pairs(value: Any) -> Any:
    """Read ``key=value,key=value``, percent-encoded, as OTEL_EXPORTER_OTLP_HEADERS is written."""
    if not isinstance(value, str):
        return value
    found: dict[str, str] = {}
    for position, part in enumerate(value.split(","), start=1):
        if not part.strip():
            continue
        key, equals, text = part.partition("=")
        if not equals or not key.strip():
            # The part itself is not shown: it may be a secret.
            msg = f"part {position} is not of the form key=value"
            raise ValueError(msg)
        found[unquote(key.strip())] = unquote(text.strip())
    return found


class OtlpSettings(ConnectionSettings):
    endpoint: str = Field(
        default="http://localhost:4318",
        description="Base address of the collector; /v1/logs is added unless it ends so",
    )
    logs_endpoint: str | None = Field(
        default=None, description="Full address for logs, used as it is; before endpoint"
    )
    headers: Annotated[dict[str, SecretStr], BeforeValidator(_pairs)] = Field(
        default_factory=dict,
        description="Sent with every request, such as authorization; or key=value,key=value",
    )
    encoding: Literal["json", "protobuf"] = Field(
        default="json", description="Protobuf needs guard-agent-otlp[protobuf]"
    )
    service_name: str | None = Field(
        default=None, min_length=1, description="service.name; project_id when not given"
    )
    resource: Annotated[
        dict[str, bool | int | float | str],
        BeforeValidator(_pairs),
    ] = Field(
        default_factory=dict,
        description="Further attributes of the resource, such as host.name; or key=value,key=value",
    )
    severities: dict[str, Severity] = Field(
        default_factory=dict, description="Severity by event type, before the built-in table"
    )
    max_body_bytes: int = Field(
        default=1024 * 1024,
        ge=4096,
        le=20 * 1024 * 1024,
        description="Most uncompressed bytes the collector takes in one request",
    )
    compression_enabled: bool | None = Field(default=None, description="Compress bodies (gzip)")
    compression_threshold: int | None = Field(
        default=None, ge=0, description="Bodies smaller than this are sent as they are"
    )

    @field_validator("endpoint", "logs_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        return None if value is None else _address(value)

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, value: str) -> str:
        if value == "protobuf":
            try:
                load_protobuf()
            except ImportError as error:
                msg = (
                    f"'protobuf' needs the package opentelemetry-proto ({error}): "
                    "pip install 'guard-agent-otlp[protobuf]', or set it to 'json'"
                )
                raise ValueError(msg) from error
        return value

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        seen: set[str] = set()
        for name, secret in value.items():
            lower = name.lower()
            if not _TOKEN.fullmatch(name):
                msg = f"{name!r} is not the name of a header"
                raise ValueError(msg)
            if lower in _OWN_HEADERS:
                msg = f"{name!r} is set by the transport itself: remove it"
                raise ValueError(msg)
            if lower in seen:
                msg = f"{name!r} is there twice: names of headers do not differ by case"
                raise ValueError(msg)
            seen.add(lower)
            header_value(name, secret.get_secret_value())
        return value

    @field_validator("resource")
    @classmethod
    def _check_resource(
        cls, value: dict[str, bool | int | float | str]
    ) -> dict[str, bool | int | float | str]:
        for name, attribute in value.items():
            if not name or name.startswith(_OWN_RESOURCE):
                msg = f"{name!r} is set by the transport itself: remove it"
                raise ValueError(msg)
            if isinstance(attribute, float) and not abs(attribute) < float("inf"):
                msg = f"{name!r} must be a finite number"
                raise ValueError(msg)
            if isinstance(attribute, int) and not -(2**63) <= attribute < 2**63:
                msg = f"{name!r} must be a number of 64 bits"
                raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _check_service_name(self) -> Self:
        if self.service_name is not None and "service.name" in self.resource:
            msg = "service_name and resource['service.name'] say the same: remove one"
            raise ValueError(msg)
        return self

    @property
    def url(self) -> str:
        """Where log records go."""
        if self.logs_endpoint is not None:
            return self.logs_endpoint
        base = self.endpoint.rstrip("/")
        return base if base.endswith(LOGS_PATH) else base + LOGS_PATH


def _address(value: str) -> str:
    """
    Check an address and leave its path as it is.

    Raises:
        ValueError: naming what is wrong with it.
    """
    text = value.strip()
    try:
        user = urlsplit(text).username
    except ValueError:
        user = None  # said better below
    if user is not None:
        msg = "must not carry a user name or password; set headers instead"
        raise ValueError(msg)
    # The check cuts off the path that the agent's own collectors have; nothing to cut is left here.
    checked = check_endpoint(text.rstrip("/") + "/-").removesuffix("/-")
    return checked + "/" if text.endswith("/") else checked
