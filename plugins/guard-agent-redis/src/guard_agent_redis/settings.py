"""Settings of the store ``redis``."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from guard_agent import PluginSettings

if TYPE_CHECKING:
    from typing_extensions import Self

SCHEMES = ("redis", "rediss", "unix")


class RedisSettings(PluginSettings):
    url: SecretStr = Field(
        default=SecretStr("redis://localhost:6379/0"),
        description=(
            "Address of the server: redis://, rediss:// (TLS) or unix://, with user name, "
            "password and number of the database where needed"
        ),
    )
    username: str | None = Field(default=None, description="User name (ACL); before that in url")
    password: SecretStr | None = Field(default=None, description="Password; before that in url")
    sentinels: list[str] = Field(
        default_factory=list,
        description="Addresses of the sentinels as host:port; they tell where the primary is",
    )
    sentinel_service: str | None = Field(
        default=None, description="Name under which the sentinels know the primary"
    )
    sentinel_password: SecretStr | None = Field(
        default=None, description="Password of the sentinels themselves"
    )
    prefix: str = Field(
        default="guard-agent", min_length=1, description="What the names of all keys begin with"
    )
    max_records: int | None = Field(
        default=None, ge=1, description="Most records kept; max_buffer_records when not given"
    )
    max_bytes: int | None = Field(
        default=None, ge=1, description="Most payload bytes kept; max_buffer_bytes when not given"
    )
    max_dead_letters: int = Field(
        default=1000, ge=0, description="Most dead letters kept for each destination"
    )
    max_dead_letter_bytes: int = Field(
        default=1024 * 1024,
        ge=0,
        description="Most payload bytes of the dead letters of each destination",
    )
    deadline: float = Field(
        default=0.5,
        gt=0,
        le=60,
        allow_inf_nan=False,
        description="Seconds until the server must have answered; twice that to connect",
    )

    presence: float = Field(
        default=15.0,
        ge=1,
        le=3600,
        description=(
            "Seconds without a sign of life after which a process counts as dead, and what it had "
            "leased goes to others"
        ),
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(value.get_secret_value())
            _ = parts.port  # raises ValueError for a port that is none
        except ValueError:
            msg = "is not a valid address"
            raise ValueError(msg) from None
        if parts.scheme not in SCHEMES or not (parts.netloc or parts.path):
            msg = "must begin with redis://, rediss:// or unix:// and name a host or a socket"
            raise ValueError(msg)
        return value

    @field_validator("prefix")
    @classmethod
    def _check_prefix(cls, value: str) -> str:
        if "{" in value or "}" in value:
            msg = "must not contain braces: they mark the part of a key that chooses its slot"
            raise ValueError(msg)
        return value

    @field_validator("sentinels")
    @classmethod
    def _check_sentinels(cls, value: list[str]) -> list[str]:
        for address in value:
            split_address(address)
        return value

    @model_validator(mode="after")
    def _check_sentinel_service(self) -> Self:
        if bool(self.sentinels) != bool(self.sentinel_service):
            msg = "sentinels and sentinel_service belong together: set both or none"
            raise ValueError(msg)
        return self


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host``, ``host:port`` or ``[::1]:port``."""
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host:
        msg = f"{address!r} is not an address like sentinel.example.com:26379"
        raise ValueError(msg)
    return host, port or 26379
