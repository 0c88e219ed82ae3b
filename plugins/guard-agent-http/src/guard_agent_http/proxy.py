"""The proxy between this machine and the collector, as the environment names it."""

from __future__ import annotations

import ipaddress
import logging
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.request import (  # type: ignore[attr-defined]  # typeshed lacks the second one
    getproxies_environment,
    proxy_bypass_environment,
)

from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger("guard_agent.http")


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where to connect instead."""

    url: URL
    """Without credentials, so that it can be shown."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What the proxy wants to see, and nobody else."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Texts that must not be shown, wherever they turn up."""


def environment_proxy(url: URL) -> Proxy | None:
    """
    The proxy that the environment names for ``url``.

    ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``, lower case first. Loopback has
    none. An entry of ``NO_PROXY`` is a name, which covers what is below it, or an address, or a
    network such as ``10.0.0.0/8``, or ``*``.
    """
    host = url.host or ""
    if _is_loopback(host):
        return None
    proxies = getproxies_environment()
    address = proxies.get(url.scheme) or proxies.get("all")
    if not address or _is_exempt(host, url.port, proxies):
        return None
    try:
        proxy = URL(address if "://" in address else f"http://{address}")
    except ValueError:
        proxy = URL()
    if proxy.scheme not in ("http", "https") or not proxy.host:
        logger.warning(
            "the proxy for %s in the environment is no http:// address and is not used: "
            "set use_proxy_environment = false, or name an HTTP proxy",
            url.scheme,
        )
        return None
    if proxy.user is None:
        return Proxy(proxy)
    credentials = b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
    secrets = (credentials, proxy.password, proxy.raw_password)
    return Proxy(
        proxy.with_user(None),
        {"Proxy-Authorization": f"Basic {credentials}"},
        tuple(secret for secret in secrets if secret),
    )


def _is_exempt(host: str, port: int | None, proxies: dict[str, str]) -> bool:
    if proxy_bypass_environment(f"{host}:{port}", proxies):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in proxies.get("no", "").split(","):
        try:
            network = ipaddress.ip_network(entry.strip().strip("[]"), strict=False)
        except ValueError:
            continue
        if address in network:
            return True
    return False


def _is_loopback(host: str) -> bool:
    name = host.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
