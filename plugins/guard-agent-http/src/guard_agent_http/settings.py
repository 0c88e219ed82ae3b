"""Settings of plugins that speak HTTP, and what may stand in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, SecretStr, field_validator, model_validator

from guard_agent import PluginSettings, check_endpoint
from guard_agent_http.tls import TlsFiles

if TYPE_CHECKING:
    from typing_extensions import Self


class ConnectionSettings(PluginSettings):
    """Settings of every plugin that speaks HTTP, whatever it speaks to."""

    deadline: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds one request may take in all, at most the agent's timeout",
    )
    connect_timeout: float = Field(
        default=3.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds to find and reach the collector, TLS included",
    )
    use_proxy_environment: bool = Field(
        default=True,
        description="Honour HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; loopback never is",
    )
    ca_file: Path | None = Field(
        default=None,
        description="Authorities (PEM) that may vouch for the collector, instead of the system's",
    )
    client_cert_file: Path | None = Field(
        default=None, description="Certificate (PEM) that this agent shows to the collector"
    )
    client_key_file: Path | None = Field(
        default=None, description="Its key, when it is not in the same file"
    )
    client_key_password: SecretStr | None = Field(
        default=None, description="Password of that key, when it is encrypted"
    )

    @field_validator("ca_file", "client_cert_file", "client_key_file")
    @classmethod
    def _check_file(cls, value: Path | None) -> Path | None:
        return None if value is None else _file(value)

    @model_validator(mode="after")
    def _check_client_certificate(self) -> Self:
        self.tls_files()
        return self

    def tls_files(self) -> TlsFiles:
        return TlsFiles(
            self.ca_file, self.client_cert_file, self.client_key_file, self.client_key_password
        )


class CollectorSettings(ConnectionSettings):
    """Settings of every plugin that talks to a collector. None means: as the agent has it."""

    endpoint: str | None = Field(default=None, description="Address of the collector")
    api_key: SecretStr | None = Field(default=None, description="Key at the collector")
    project_id: str | None = Field(default=None, description="Project the records belong to")

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        return None if value is None else check_endpoint(value)

    @field_validator("project_id")
    @classmethod
    def _check_project_id(cls, value: str | None) -> str | None:
        return None if value is None else header_value("project_id", value)

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            header_value("api_key", value.get_secret_value())
        return value


def header_value(name: str, value: str) -> str:
    """
    Check a value that travels in a header.

    Raises:
        ValueError: naming ``name``, never the value.
    """
    if not value or not value.isascii() or not value.isprintable() or value != value.strip():
        msg = (
            f"{name} must be a non-empty text of printable ASCII without spaces around it, "
            "because it travels in a header"
        )
        raise ValueError(msg)
    return value


def _file(path: Path) -> Path:
    """
    Check and expand the name of a file; whether it is there is seen when it is read.

    Raises:
        ValueError: when it can be no file.
    """
    if not path.name or "\0" in str(path):
        msg = "must name a file"
        raise ValueError(msg)
    try:
        return path.expanduser()
    except RuntimeError:  # no home folder
        msg = "must not begin with ~ here: there is no home folder"
        raise ValueError(msg) from None
