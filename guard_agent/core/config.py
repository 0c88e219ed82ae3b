"""
`AgentConfig`: every setting of the agent, with its default.

Code, environment, ``guard-agent.yaml`` and ``pyproject.toml`` all end in this one model; where the
values come from is the business of `guard_agent.core.assembly.configfile`.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import socket
import sys
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from guard_agent.core.errors import Problem

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("guard_agent.config")

DEFAULT_ENDPOINT = "https://api.fastapi-guard.com"
DEFAULT_SENSITIVE_HEADERS = (
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-api-key",
)
_MIN_SECRET = 16
_API_SUFFIX = "/api/v1"
_METADATA_NAMES = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data"}
)
_METADATA_ADDRESSES = frozenset(
    ipaddress.ip_address(text)
    for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192")
)

ErrorCallback = Callable[[str, BaseException, dict[str, Any]], None]


class AgentConfig(BaseModel):
    """
    Settings of the agent.

    Sizes are in bytes, times in seconds. An unknown setting is an error.
    """

    model_config = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    # Who we are and where the collector is.
    api_key: str = Field(repr=False, description="Key the collector knows this agent by")
    endpoint: str = Field(default=DEFAULT_ENDPOINT, description="Address of the collector")
    project_id: str | None = Field(default=None, description="Project the records belong to")
    install_id: str | None = Field(default=None, description="Identity of this installation")
    guard_version: str | None = Field(default=None, description="Version of the Guard adapter")
    guard_core_version: str | None = Field(default=None, description="Version of guard-core")

    # What to take.
    enable_events: bool = Field(default=True, description="Take security events")
    enable_metrics: bool = Field(default=True, description="Take metrics")

    event_priorities: dict[str, Literal["attack", "change", "diagnostic", "metric"]] = Field(
        default_factory=dict,
        description=(
            "Class of an event type, where it is not as it should be: the lowest class is given "
            "up first, the highest is sent first"
        ),
    )

    # When to send.
    buffer_size: int = Field(default=100, ge=1, description="Records that lead to a flush")
    flush_interval: float = Field(
        default=30, gt=0, description="Longest time a record waits for a flush"
    )
    high_watermark_ratio: float = Field(
        default=0.8, gt=0, le=1, description="Share of max_buffer_* that leads to a flush"
    )
    max_concurrent_flushes: int = Field(
        default=1,
        ge=1,
        description="Kept for callers of 3.x: a destination always sends one batch at a time",
    )

    # How much to keep.
    max_buffer_records: int = Field(
        default=10_000, ge=1, description="Most records that wait for the store"
    )
    max_buffer_bytes: int = Field(
        default=8 * 1024 * 1024, ge=65_536, description="Most payload bytes that wait for the store"
    )
    buffer_overflow_policy: Literal["drop", "block", "raise"] = Field(
        default="drop",
        description=(
            "At the hard bound: 'drop' gives up the lowest priority, oldest first; 'block' makes "
            "the caller wait up to block_timeout; 'raise' raises BufferFullError"
        ),
    )
    block_timeout: float = Field(
        default=1.0, ge=0, le=60, description="Longest wait of a caller with the policy 'block'"
    )

    # How to deliver.
    timeout: float = Field(default=30, gt=0, description="Time limit of one request")
    retry_attempts: int = Field(
        default=3, ge=0, description="Repeated failures after which the circuit breaker opens"
    )
    backoff_factor: float = Field(
        default=1.0, gt=0, description="Backoff after the first failure, at most"
    )
    max_batch_records: int = Field(default=1000, ge=1, description="Most records in one batch")
    max_batch_bytes: int = Field(
        default=256 * 1024, ge=1024, description="Most uncompressed bytes in one batch"
    )
    max_requests_per_second: float = Field(
        default=10.0, gt=0, description="Requests to one collector, at most"
    )
    stop_timeout: float = Field(
        default=2.0, ge=0, description="Time that stop() and the end of the process may take"
    )
    compression_enabled: bool = Field(default=True, description="Compress request bodies")
    compression_threshold: int = Field(
        default=1024, ge=0, description="Bodies smaller than this are sent as they are"
    )

    # Rules and status.
    dynamic_rule_interval: float = Field(default=300, ge=60, description="Time between rule polls")
    status_interval: float = Field(default=300, ge=60, description="Time between status reports")

    # What rules may do.
    never_block: list[str] = Field(
        default_factory=list,
        description="Networks and countries no rule may block: your proxies, offices, customers",
    )
    allow_broad_rules: bool = Field(
        default=False,
        description="Take rules that can lock nearly everybody out, such as a ban of 64.0.0.0/3",
    )
    allow_rule_switches: bool = Field(
        default=True,
        description="Take rules that turn emergency mode on, or a protection off",
    )
    rules_signing_secret: str | None = Field(
        default=None, repr=False, description="Take only rules that are signed with this secret"
    )

    # Privacy.
    sensitive_headers: list[str] = Field(
        default_factory=lambda: list(DEFAULT_SENSITIVE_HEADERS),
        description="Names whose values never leave the process",
    )
    max_payload_size: int = Field(
        default=1024, ge=0, description="Longest text of one field; the rest is cut off"
    )
    project_encryption_key: str | None = Field(
        default=None, repr=False, description="Key for end-to-end encryption of batches"
    )
    payload_signing_secret: str | None = Field(
        default=None, repr=False, description="Secret for the X-Payload-Signature header"
    )
    allow_unredacted: bool = Field(
        default=False, description="Run although no enricher redacts. Secrets will leave"
    )

    on_error: ErrorCallback | None = Field(
        default=None,
        exclude=True,
        description=(
            "Called with (stage, exception, context) when a step fails, in a thread of its own; "
            "the stages are transport_send, encryption, flush_events and flush_metrics"
        ),
    )

    # What the agent is made of. The order of a list is the order of execution.
    rollup: bool | str = Field(
        default=True,
        description="Merge repeats and metrics, with true counts; or the plugin that does",
    )
    enrichers: list[str] = Field(
        default_factory=lambda: ["redaction", "truncate"], description="Enrichers, in order"
    )
    store: str = Field(default="memory", description="Where records wait")
    transports: list[str] = Field(
        default_factory=lambda: ["http"],
        description="Where records go; each is a destination of its own, 'http/eu' an instance",
    )
    rules: list[str] = Field(
        default_factory=lambda: ["polling"],
        description="Where rules come from; the first that has any wins",
    )
    plugins: dict[str, dict[str, Any]] = Field(
        default_factory=dict, repr=False, description="Settings of the plugins, by instance name"
    )

    _warned: ClassVar[set[str]] = set()
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)
    _notes: tuple[Problem, ...] = PrivateAttr(default=())

    @property
    def notes(self) -> tuple[Problem, ...]:
        """What is doubtful about where the settings come from; none of it is fatal."""
        return self._notes

    @property
    def aggregators(self) -> tuple[str, ...]:
        """The plugin that merges records, if there is to be one."""
        if isinstance(self.rollup, str):
            return (self.rollup,)
        return ("rollup",) if self.rollup else ()

    def origin(self, path: str) -> str | None:
        """
        Where a setting was read, as ``file:line`` or ``environment variable NAME``; None when it
        comes from code or is a default.

        ``path`` is dotted, as in ``plugins.http.timeout``. What is not found itself stands where
        the setting around it stands.
        """
        while path:
            if path in self._origins:
                return self._origins[path] or None
            path = path.rpartition(".")[0]
        return None

    @property
    def project_key(self) -> str:
        """
        What tells the records of this project from others in a store that several may share.

        The project; when it is not set, a digest of the key, because the records of one owner must
        never leave with the key of another. What waits under a key stays there when it changes.
        """
        if self.project_id:
            return self.project_id
        return f"key-{blake2b(self.api_key.encode(), digest_size=8).hexdigest()}"

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, value: str) -> str:
        if not value or not value.isascii() or not value.isprintable() or value != value.strip():
            msg = (
                "must be a non-empty text of printable ASCII without spaces around it, because it "
                "travels in a header; is the environment variable it comes from set?"
            )
            raise ValueError(msg)
        return value

    @field_validator("project_id", "install_id")
    @classmethod
    def _check_header_value(cls, value: str | None) -> str | None:
        if value is not None and not (value.isascii() and value.isprintable()):
            msg = "must be printable ASCII, because it travels in a header"
            raise ValueError(msg)
        return value

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, value: str) -> str:
        return check_endpoint(value)

    @field_validator(
        "flush_interval",
        "timeout",
        "backoff_factor",
        "max_requests_per_second",
        "stop_timeout",
        "dynamic_rule_interval",
        "status_interval",
    )
    @classmethod
    def _check_finite(cls, value: float) -> float:
        if not math.isfinite(value):
            msg = "must be a finite number"
            raise ValueError(msg)
        return value

    @field_validator("never_block")
    @classmethod
    def _check_never_block(cls, value: list[str]) -> list[str]:
        for entry in value:
            if len(entry) == 2 and entry.isascii() and entry.isalpha():
                continue
            try:
                ipaddress.ip_network(entry)
            except ValueError:
                msg = (
                    f"{entry!r} is neither a network such as 192.0.2.0/24 nor a country of two "
                    "letters such as DE"
                )
                raise ValueError(msg) from None
        return value

    @field_validator("rules_signing_secret")
    @classmethod
    def _check_rules_secret(cls, value: str | None) -> str | None:
        if value is not None and len(value.encode()) < _MIN_SECRET:
            msg = (
                f"must have {_MIN_SECRET} bytes or more, for example from 'openssl rand -hex 32'; "
                "is the environment variable it comes from set?"
            )
            raise ValueError(msg)
        return value

    @field_validator("transports", "enrichers", "rules")
    @classmethod
    def _check_names(cls, value: list[str]) -> list[str]:
        for name in value:
            if value.count(name) > 1:
                msg = (
                    f"names {name!r} twice; to run a plugin twice give the second an instance "
                    f"name, as in '{name}/second'"
                )
                raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.max_batch_bytes > self.max_buffer_bytes:
            msg = "max_batch_bytes must not be larger than max_buffer_bytes"
            raise ValueError(msg)
        return self


def check_endpoint(value: str) -> str:
    """
    Validate the address of a collector and bring it to its normal form.

    Raises:
        ValueError: naming what is wrong with the address.
    """
    text = value.strip()
    if not text.isprintable() or any(character in text for character in ' "<>\\^`{|}'):
        # Parsers disagree on such an address: what is checked here must be what is connected to.
        msg = 'must not contain spaces, control characters or any of "<>\\^`{|}'
        raise ValueError(msg)
    try:
        parts = urlsplit(text)
        host = parts.hostname
        _ = parts.port  # raises ValueError for a port that is none
    except ValueError as error:
        msg = f"is not a valid address: {error}"
        raise ValueError(msg) from None
    if parts.scheme not in ("http", "https") or not host:
        msg = "must be a full address that starts with https:// or http://"
        raise ValueError(msg)
    if parts.username is not None or parts.password is not None:
        msg = "must not carry a user name or password; set api_key instead"
        raise ValueError(msg)
    if parts.query or parts.fragment:
        msg = "must not carry a query or a fragment"
        raise ValueError(msg)
    _check_host(host, parts.scheme)

    path = parts.path.rstrip("/")
    if path.endswith(_API_SUFFIX):
        path = path.removesuffix(_API_SUFFIX).rstrip("/")
        _warn_once(
            "the endpoint ends with %s, which the agent adds by itself; remove it there",
            _API_SUFFIX,
        )
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _check_host(host: str, scheme: str) -> None:
    try:
        address = ipaddress.ip_address(host.split("%", maxsplit=1)[0])
    except ValueError:
        name = host.rstrip(".")
        if name in _METADATA_NAMES:
            msg = "must not be a metadata service"
            raise ValueError(msg) from None
        if _reads_as_ipv4(name):
            msg = "must write an IPv4 address as four decimal numbers, such as 192.0.2.1"
            raise ValueError(msg) from None
        is_loopback = name == "localhost" or name.endswith(".localhost")
    else:
        mapped = getattr(address, "ipv4_mapped", None)
        address = mapped or address
        is_loopback = address.is_loopback
        if (
            address.is_link_local
            or address.is_multicast
            or address.is_unspecified
            or address in _METADATA_ADDRESSES
        ):
            msg = (
                "must not be a link-local, multicast or unspecified address: those reach "
                "metadata services or nothing at all"
            )
            raise ValueError(msg)
    if scheme == "http" and not is_loopback:
        _warn_once("the endpoint is plain http: records and the key for %s travel in clear", host)


def _reads_as_ipv4(host: str) -> bool:
    """Whether resolvers take it for an address: 2852039166 and 0xa9.0xfe.43518 are one as well."""
    try:
        socket.inet_aton(host)
    except (OSError, UnicodeError):
        return False
    return True


def _warn_once(message: str, argument: str) -> None:
    key = f"{message}{argument}"
    if key not in AgentConfig._warned:  # noqa: SLF001 - our own class, in our own module
        AgentConfig._warned.add(key)  # noqa: SLF001 - the same
        logger.warning(message, argument)


def state_directory() -> Path:
    """
    Folder for files that outlive the process; it may not exist.

    ``GUARD_AGENT_STATE_DIR``, else the platform's place for state.
    """
    if explicit := os.environ.get("GUARD_AGENT_STATE_DIR"):
        return Path(explicit)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else _home() / "AppData" / "Local") / "guard-agent"
    if sys.platform == "darwin":
        return _home() / "Library" / "Application Support" / "guard-agent"
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else _home() / ".local" / "state") / "guard-agent"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # no HOME and no entry in the password database, as in some containers
        return Path("/nonexistent")
