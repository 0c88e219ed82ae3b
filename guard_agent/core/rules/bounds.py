"""
What a rule document may do to the application, unless its owner allows more.

Rules come from a collector that somebody may have taken over. Each bound here is one way to lock
everybody out with a document that is sound otherwise.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guard_agent.core.logs import one_line
from guard_agent.core.rules.engine_link import trusted_proxies

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from guard_agent.core.config import AgentConfig
    from guard_agent.core.models import DynamicRules
    from guard_agent.core.rules.judge import Key
    from guard_agent.core.rules.patterns import Verdict

MAX_ENTRIES = 100_000
_BROADEST = {4: 8, 6: 16}
_TOGETHER = 16
"""All banned networks together: as much as so many of the broadest."""
_LOOPBACK: dict[int, Any] = {
    4: ipaddress.ip_network("127.0.0.0/8"),
    6: ipaddress.ip_network("::1/128"),
}
_PRIVATE: tuple[Any, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "fc00::/7",
        "fe80::/10",
    )
)
"""Where proxies usually are, and the clients of an intranet."""
_MAPPED: Any = ipaddress.ip_network("::ffff:0:0/96")
_MAX_COUNTRIES = 60
_MIN_PER_MINUTE = 10.0
_MIN_PER_MINUTE_AT_ENDPOINT = 1 / 60
_MAX_STRICT_ENDPOINTS = 20
_MAX_BAN = 366 * 86_400
_MAX_HITS = 2
"""Of ten ordinary requests, those that all patterns together may match."""
_ALLOW = "allow_broad_rules=True allows it"


class RulesRefused(Exception):  # noqa: N818 - it is an answer, not an error of this program
    """The document is not applied; the text says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the owner of the application says about rules; see `AgentConfig`."""

    allow_broad: bool = False
    allow_switches: bool = True
    protected: tuple[Any, ...] = ()
    countries: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: AgentConfig) -> Limits:
        networks = []
        countries = set()
        for entry in config.never_block:
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                countries.add(entry.upper())
        return cls(
            allow_broad=config.allow_broad_rules,
            allow_switches=config.allow_rule_switches,
            protected=tuple(networks),
            countries=frozenset(countries),
        )


def check(rules: DynamicRules, limits: Limits) -> None:
    """
    Look at everything besides the patterns.

    Raises:
        RulesRefused: naming the field and what is wrong.
    """
    for field in ("ip_blacklist", "ip_whitelist", "emergency_whitelist"):
        _check_addresses(field, getattr(rules, field), limits)
    _check_numbers(rules)
    if not limits.allow_broad:
        _check_rates(rules)
        _check_countries(rules, limits)
    if not limits.allow_switches and (switches := switches_of(rules)):
        msg = f"{switches[0]}: refused, because allow_rule_switches is off"
        raise RulesRefused(msg)


def switches_of(rules: DynamicRules) -> list[str]:
    """What a person should know of: protection that is off, and everybody locked out."""
    off = (
        "enable_penetration_detection",
        "enable_ip_banning",
        "enable_rate_limiting",
        "enable_rate_limit_auto_ban",
    )
    on = ("emergency_mode", "emergency_whitelist_only")
    return [f"{name}=false" for name in off if getattr(rules, name) is False] + [
        f"{name}=true" for name in on if getattr(rules, name)
    ]


# --- addresses ------------------------------------------------------------------------------------


def _check_addresses(field: str, entries: list[str], limits: Limits) -> None:
    if len(entries) > MAX_ENTRIES:
        msg = f"{field}: more than {MAX_ENTRIES} entries"
        raise RulesRefused(msg)
    networks = []
    for entry in entries:
        try:
            network = ipaddress.ip_network(entry)
        except ValueError as error:
            msg = f"{field}: {error}"
            raise RulesRefused(msg) from None
        if network.prefixlen < _BROADEST[network.version] and not limits.allow_broad:
            msg = (
                f"{field}: {entry} covers too much of the internet "
                f"(broader than /{_BROADEST[network.version]}); {_ALLOW}"
            )
            raise RulesRefused(msg)
        if network.version == 6 and network.overlaps(_MAPPED) and network.prefixlen:
            msg = f"{field}: {entry} stands for IPv4 addresses; write them as such"
            raise RulesRefused(msg)
        networks.append(network)
    if field == "ip_blacklist" and networks:
        _check_protected(networks, limits)
        if not limits.allow_broad:
            _check_private(networks)
            _check_total(networks)


def _check_protected(networks: list[Any], limits: Limits) -> None:
    protected = [(network, "holds loopback addresses") for network in _LOOPBACK.values()]
    protected += [(network, "holds the app's own address") for network in _own()]
    protected += [(network, "holds a trusted proxy of the app") for network in _proxies()]
    protected += [
        (network, f"holds addresses of {network} that never_block names")
        for network in limits.protected
    ]
    spans = [(network, _first(network), _last(network)) for network in networks]
    for other, reason in protected:
        first, last = _first(other), _last(other)
        for network, begin, end in spans:
            if begin <= last and first <= end and network.version == other.version:
                msg = f"ip_blacklist: {network} {reason}"
                raise RulesRefused(msg)


def _check_private(networks: list[Any]) -> None:
    for network in networks:
        if network.num_addresses > 1 and any(
            network.version == private.version and network.overlaps(private) for private in _PRIVATE
        ):
            msg = (
                f"ip_blacklist: {network} is a private network, where proxies are, and with them "
                f"everybody; ban single addresses, or {_ALLOW}"
            )
            raise RulesRefused(msg)


def _check_total(networks: list[Any]) -> None:
    for version, bits in ((4, 32), (6, 128)):
        allowed = _TOGETHER * 2 ** (bits - _BROADEST[version])
        covered = 0
        end = -1
        for network in sorted((n for n in networks if n.version == version), key=_first):
            first = max(_first(network), end + 1)
            if (last := _last(network)) >= first:
                covered += last - first + 1
                end = last
        if covered > allowed:
            msg = (
                f"ip_blacklist: its IPv{version} networks together cover too much of the "
                f"internet (more than {_TOGETHER} of /{_BROADEST[version]}); {_ALLOW}"
            )
            raise RulesRefused(msg)


def _first(network: Any) -> int:
    return int(network.network_address)


def _last(network: Any) -> int:
    return int(network.broadcast_address)


def _own() -> list[Any]:
    """Addresses of this machine towards the internet. Nothing is sent."""
    found = []
    for family, target in (
        (socket.AF_INET, "192.0.2.1"),
        (socket.AF_INET6, "2001:db8::1"),
    ):
        with suppress(OSError, ValueError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            found.append(ipaddress.ip_network(probe.getsockname()[0].partition("%")[0]))
    return found


def _proxies() -> list[Any]:
    found = []
    for proxy in trusted_proxies():
        with suppress(ValueError):
            found.append(ipaddress.ip_network(proxy, strict=False))
    return found


# --- rates, countries -----------------------------------------------------------------------------


def _check_numbers(rules: DynamicRules) -> None:
    for name in ("ip_ban_duration", "global_rate_limit", "global_rate_window"):
        value = getattr(rules, name)
        if value is not None and value < 1:
            msg = f"{name}: must be at least 1"
            raise RulesRefused(msg)
    for path, (requests, window) in rules.endpoint_rate_limits.items():
        if requests < 1 or window < 1:
            msg = f"endpoint_rate_limits.{path}: requests and window must be at least 1"
            raise RulesRefused(msg)


def _check_rates(rules: DynamicRules) -> None:
    for name in ("ip_ban_duration", "auto_ban_duration"):
        if (getattr(rules, name) or 0) > _MAX_BAN:
            msg = f"{name}: more than a year; {_ALLOW}"
            raise RulesRefused(msg)
    limit, window = rules.global_rate_limit, rules.global_rate_window or 60
    if limit is not None and limit * 60 / window < _MIN_PER_MINUTE:
        msg = f"global_rate_limit: fewer than {_MIN_PER_MINUTE:.0f} requests a minute; {_ALLOW}"
        raise RulesRefused(msg)
    if limit is None and rules.global_rate_window is not None and window > 3600:
        msg = f"global_rate_window: longer than an hour without global_rate_limit; {_ALLOW}"
        raise RulesRefused(msg)
    strict = 0
    for path, (requests, seconds) in rules.endpoint_rate_limits.items():
        if (rate := requests * 60 / seconds) < _MIN_PER_MINUTE_AT_ENDPOINT:
            msg = f"endpoint_rate_limits.{path}: fewer than 1 request an hour; {_ALLOW}"
            raise RulesRefused(msg)
        strict += rate < _MIN_PER_MINUTE
    if strict > _MAX_STRICT_ENDPOINTS:
        msg = (
            f"endpoint_rate_limits: more than {_MAX_STRICT_ENDPOINTS} paths get fewer than "
            f"{_MIN_PER_MINUTE:.0f} requests a minute; {_ALLOW}"
        )
        raise RulesRefused(msg)


def _check_countries(rules: DynamicRules, limits: Limits) -> None:
    blocked = {country.upper() for country in rules.blocked_countries}
    allowed = {country.upper() for country in rules.whitelist_countries}
    if named := sorted(blocked & limits.countries):
        msg = f"blocked_countries: never_block names {named[0]}"
        raise RulesRefused(msg)
    if len(blocked) > _MAX_COUNTRIES:
        msg = f"blocked_countries: more than {_MAX_COUNTRIES} countries; {_ALLOW}"
        raise RulesRefused(msg)
    if allowed and (not limits.countries or not limits.countries <= allowed):
        msg = (
            "whitelist_countries: shuts out every other country; name your own countries in "
            f"never_block, which it must hold then, or {_ALLOW}"
        )
        raise RulesRefused(msg)


# --- patterns -------------------------------------------------------------------------------------

PATTERNS = {"suspicious_patterns": "text", "blocked_user_agents": "agent"}
"""Fields with patterns, and what these are matched with; see `patterns.judge`."""


def check_patterns(
    rules: DynamicRules, verdicts: Mapping[Key, Verdict], limits: Limits
) -> tuple[dict[str, list[str]], list[str]]:
    """
    Apply what is known of the patterns.

    Returns:
        The patterns that stay, by field, and what to tell of those that are left out.

    Raises:
        RulesRefused: one must never be run, was not judged in time, or all together match what
            everybody sends.
    """
    kept: dict[str, list[str]] = {}
    left_out: list[str] = []
    for field, kind in PATTERNS.items():
        hits: set[int] = set()
        kept[field] = []
        for pattern in getattr(rules, field):
            verdict = verdicts.get((kind, pattern))
            shown = one_line(repr(pattern[:80]))
            if verdict is None:
                msg = f"{field}: {shown} takes too long to check"
                raise RulesRefused(msg)
            if verdict.refused is not None:
                msg = f"{field}: {shown} {verdict.refused}"
                raise RulesRefused(msg)
            if verdict.slow is not None:
                left_out.append(f"{field}: {shown} {verdict.slow}")
                continue
            kept[field].append(pattern)
            hits.update(verdict.hits)
            if len(hits) > _MAX_HITS and not limits.allow_broad:
                msg = (
                    f"{field}: {shown}, with those before it, matches what everybody sends; "
                    f"{_ALLOW}"
                )
                raise RulesRefused(msg)
    return kept, left_out


def keys_of(rules: DynamicRules) -> Iterable[Key]:
    """What has to be judged."""
    for field, kind in PATTERNS.items():
        for pattern in getattr(rules, field):
            yield kind, pattern
