"""Who may talk to the collector: which hosts, which origins, with which token."""

from __future__ import annotations

import hmac
import ipaddress
import os
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from guard_agent import GuardAgentError

if TYPE_CHECKING:
    from collections.abc import Mapping

COOKIE = "guard_collector"
SHORTEST_TOKEN = 16

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_ENVIRONMENTS = (
    *("GUARD_AGENT_ENV", "ENVIRONMENT", "ENV", "APP_ENV", "APP_ENVIRONMENT", "DEPLOY_ENV"),
    *("DEPLOYMENT_ENVIRONMENT", "PYTHON_ENV", "FASTAPI_ENV", "FLASK_ENV", "DJANGO_ENV"),
    *("NODE_ENV", "RAILS_ENV", "SENTRY_ENVIRONMENT"),
)
_PRODUCTION = frozenset({"production", "prod", "prd", "live"})


def refuse_production(environment: Mapping[str, str] | None = None) -> None:
    """
    Refuse to run where the environment says production.

    Raises:
        GuardAgentError: naming the variable.
    """
    environment = os.environ if environment is None else environment
    for name in _ENVIRONMENTS:
        if environment.get(name, "").strip().lower() in _PRODUCTION:
            msg = (
                f"{name}={environment[name]} says that this is production. The collector is for "
                "development: it keeps everything it gets in a file and shows it. If this is no "
                f"production, start it without that variable: env -u {name} guard-agent collector"
            )
            raise GuardAgentError(msg)


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one collector."""

    token: str | None = None
    """What the page, and agents unless there is an ``api_key``, have to show; None on loopback."""
    api_key: str | None = None
    names: frozenset[str] = field(default=frozenset())
    """Host names that it is called by, besides loopback."""
    any_address: bool = False
    """Whether every address (not name) is its own, as when it listens on all of them."""

    @classmethod
    def configured(
        cls, host: str, token: str | None, api_key: str | None, names: tuple[str, ...]
    ) -> Access:
        """
        Check that what was asked for is safe.

        Raises:
            GuardAgentError: others could reach it and there is no token.
        """
        if is_loopback(host):
            own = frozenset(name.lower() for name in names)
            return cls(token, api_key, own)
        if token is None or len(token) < SHORTEST_TOKEN:
            msg = (
                f"--host {host} can be reached from other machines, so a --token (or "
                f"GUARD_COLLECTOR_TOKEN) of at least {SHORTEST_TOKEN} characters is needed; "
                "make one with: python -c 'import secrets; print(secrets.token_urlsafe(24))'"
            )
            raise GuardAgentError(msg)
        unspecified = host in ("0.0.0.0", "::", "")  # noqa: S104 - a comparison
        own = frozenset(name.lower() for name in (*names, host))
        return cls(token, api_key, own, any_address=unspecified)

    def knows_host(self, header: str | None) -> bool:
        """
        Whether a Host header names this collector.

        A page of somebody else whose name was made to point here (DNS rebinding) names itself.
        """
        name = _host_name(header)
        if name is None:
            return False
        if name in _LOOPBACK_NAMES or name in self.names:
            return True
        if not self.any_address:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def is_own_origin(self, headers: Mapping[str, str]) -> bool:
        """Whether a request comes from the page itself, or from no page at all."""
        if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return False
        origin = headers.get("Origin")
        if origin is None:
            return True
        try:
            return urlsplit(origin).netloc.lower() == headers.get("Host", "").lower()
        except ValueError:
            return False

    def may_send(self, headers: Mapping[str, str]) -> bool:
        """Whether an agent showed a key that is good here."""
        wanted = self.api_key or self.token
        if wanted is None:
            return True
        given = [headers.get("X-API-Key", "")]
        scheme, _, credentials = headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given.append(credentials.strip())
        return any(_equal(key, wanted) for key in given)

    def may_look(self, headers: Mapping[str, str]) -> bool:
        """Whether a browser showed the token."""
        if self.token is None:
            return True
        scheme, _, credentials = headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(credentials.strip(), self.token):
            return True
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.get("Cookie", ""))
        except Exception:  # noqa: BLE001 - foreign text, and the parser names no exceptions
            return False
        return COOKIE in cookies and _equal(cookies[COOKIE].value, self.token)

    def is_token(self, text: str) -> bool:
        return self.token is not None and _equal(text, self.token)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(header: str | None) -> str | None:
    if not header:
        return None
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def _equal(given: str, wanted: str) -> bool:
    # A header may hold bytes that are no text.
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())
