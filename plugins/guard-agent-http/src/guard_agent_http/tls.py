"""How the collector proves who it is, and this agent who it is."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guard_agent import GuardAgentError

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import SecretStr

# What OpenSSL calls the ways in which a certificate can fail (X509_V_ERR_*), as far as one thing
# mends them.
_EXPIRED = (9, 10)
_UNKNOWN_ISSUER = (2, 18, 19, 20, 21, 27)
_WRONG_NAME = (62, 64)

# Reasons of OpenSSL, and what stands behind ALERT_ when the other side gives them.
_NO_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "UNKNOWN_PROTOCOL"}
)
_OLD_TLS = frozenset(
    {"UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE", "VERSION_TOO_LOW", "PROTOCOL_VERSION"}
)
_REFUSED_CERTIFICATE = frozenset(
    {
        "BAD_CERTIFICATE",
        "CERTIFICATE_EXPIRED",
        "CERTIFICATE_REQUIRED",
        "CERTIFICATE_REVOKED",
        "CERTIFICATE_UNKNOWN",
        "UNSUPPORTED_CERTIFICATE",
        "ACCESS_DENIED",
        "UNKNOWN_CA",
    }
)
_WANTS = "TLS 1.2 or newer is spoken here, and it may want a client certificate (client_cert_file)"


class TlsFileError(GuardAgentError):
    """A file named in the TLS settings cannot be used now."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the certificates are. Read when a connection needs them, not before."""

    ca_file: Path | None = None
    client_cert_file: Path | None = None
    client_key_file: Path | None = None
    client_key_password: SecretStr | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.client_cert_file is None:
            for name in ("client_key_file", "client_key_password"):
                if getattr(self, name) is not None:
                    msg = f"{name} is of no use without client_cert_file: set that as well"
                    raise ValueError(msg)

    def context(self) -> ssl.SSLContext:
        """
        Read the files.

        The certificate and the name of the collector are always checked, and nothing older than
        TLS 1.2 is spoken; there is no setting that says otherwise.

        Raises:
            TlsFileError: naming the setting, the file and what is wrong with it.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise _unusable("ca_file", self.ca_file, error) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.client_cert_file is not None:
            try:
                # Always a function: without one OpenSSL would ask at the terminal and wait.
                context.load_cert_chain(
                    self.client_cert_file, self.client_key_file, password=self._password
                )
            except OSError as error:
                for name in ("client_cert_file", "client_key_file"):
                    path: Path | None = getattr(self, name)
                    if path is not None and not path.is_file():
                        raise _unusable(name, path, error) from error
                raise _unusable(
                    "client_cert_file" if self.client_key_file is None else "client_key_file",
                    self.client_key_file or self.client_cert_file,
                    error,
                    "; does it belong to the certificate, and is client_key_password right?",
                ) from error
        return context

    def _password(self) -> str:
        if self.client_key_password is None:
            msg = (
                f"the key in {self.client_key_file or self.client_cert_file} is encrypted: "
                "set client_key_password"
            )
            raise TlsFileError(msg)
        return self.client_key_password.get_secret_value()


def _unusable(name: str, path: Path | None, error: OSError, hint: str = "") -> TlsFileError:
    what = error.strerror or str(error)
    if isinstance(error, ssl.SSLError):
        what = f"it holds nothing usable in PEM ({error.reason or what})"
    place = "the certificates of the system" if path is None else f"{name} {str(path)!r}"
    return TlsFileError(f"{place} cannot be used: {what}{hint}")


def certificate_fault(error: BaseException) -> str:
    """What is wrong with the collector's certificate, and how to mend it."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return str(error)
    what = error.verify_message.rstrip(".")
    if error.verify_code in _EXPIRED:
        return f"{what}: renew it at the collector, or set the clock of this machine"
    if error.verify_code in _UNKNOWN_ISSUER:
        return f"{what}: if its authority is one of your own, set ca_file to that authority"
    if error.verify_code in _WRONG_NAME:
        return f"{what}: check the name in endpoint"
    return what


def handshake_fault(error: BaseException | None) -> tuple[str, bool] | None:
    """What made TLS fail, and whether only a person can mend it; None when it was not TLS."""
    tls = _tls_error(error)
    if tls is None:
        return None
    reason = tls.reason or ""
    alert = reason.partition("ALERT_")[2]
    if reason in _NO_TLS:
        return "what listens there does not speak TLS: check scheme and port of endpoint", False
    if reason in _OLD_TLS or alert in _OLD_TLS:
        return "it does not offer TLS 1.2 or newer, and nothing older is spoken", True
    if alert in _REFUSED_CERTIFICATE:
        return f"it refused this agent's certificate ({reason}): check client_cert_file", True
    if alert == "HANDSHAKE_FAILURE":
        return f"it broke off the TLS handshake ({reason}): {_WANTS}", False
    return f"the TLS handshake failed ({reason or tls.strerror or tls})", False


def hang_up_fault() -> str:
    """What to say when the other side closed in the middle of the handshake and gave no reason."""
    return f"it closed the connection during the TLS handshake: {_WANTS}"


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    # aiohttp wraps it, and once more when the alert comes after the handshake, as in TLS 1.3.
    for _ in range(5):
        if error is None:
            return None
        if isinstance(error, ssl.SSLError):
            inner = error.__cause__
            return inner if isinstance(inner, ssl.SSLError) and inner.reason else error
        error = getattr(error, "os_error", None) or error.__cause__ or error.__context__
    return None
