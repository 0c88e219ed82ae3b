"""
Dynamic rules: fetched from a source, validated as a whole, kept in memory and on disk.

Rules are remote input that can lock everybody out or freeze the app, so nothing is applied that
was not looked at here. What is refused leaves the last good set in force.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import random
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import ValidationError

from guard_agent.core.delivery.calls import Calls
from guard_agent.core.delivery.gate import Gate
from guard_agent.core.interfaces import Paused, Retry, RuleSet, RuleSource, Unchanged
from guard_agent.core.logs import one_line
from guard_agent.core.models import DynamicRules
from guard_agent.core.rules.patterns import dangerous

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

logger = logging.getLogger("guard_agent.rules")

MIN_TTL = 60
MAX_TTL = 86_400
MAX_ENTRIES = 100_000
MAX_PATTERNS = 1_000
_BROADEST = {4: 8, 6: 16}
_LOOPBACK: dict[int, Any] = {
    4: ipaddress.ip_network("127.0.0.0/8"),
    6: ipaddress.ip_network("::1/128"),
}
_MAPPED: Any = ipaddress.ip_network("::ffff:0:0/96")
_ALSO_ELSEWHERE = frozenset({"message", "timestamp", "version"})
"""Fields that an answer about something else, such as an error, may have as well."""
_CHECK_SECONDS = 5.0
_CLOCK_SKEW = timedelta(minutes=5)
_FILE_LIMIT = 8 * 1024 * 1024
_MAX_REFUSAL_PAUSE = 300.0
_REFRESH_AT = 0.8


class RulesRefused(Exception):  # noqa: N818 - it is an answer, not an error of this program
    """The document is not applied; the text says why."""


def validate(document: Mapping[str, Any], now: datetime) -> DynamicRules:
    """
    The rules of a document, if every part of it is sound.

    Fields nobody knows are ignored and reported; ``ttl`` is brought into [60 s, 1 day].

    Raises:
        RulesRefused: naming the field and what is wrong.
    """
    names = _names(document)
    known = names & set(DynamicRules.model_fields)
    if not known - _ALSO_ELSEWHERE:
        msg = "the document has none of the fields of dynamic rules: is it the right address?"
        raise RulesRefused(msg)
    try:
        rules = DynamicRules.model_validate(dict(document))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        msg = f"{place}: {first['msg']}"
        raise RulesRefused(msg) from None
    if unknown := sorted(names - known):
        logger.warning(
            "rules %s: ignoring unknown fields: %s",
            one_line(rules.rule_id),
            one_line(", ".join(unknown[:10])),
        )

    if is_expired(rules, now):
        msg = "expires_at: the rules have expired already"
        raise RulesRefused(msg)
    if "timestamp" in rules.model_fields_set and _aware(rules.timestamp) > now + _CLOCK_SKEW:
        msg = "timestamp: lies in the future; compare the clocks of collector and app"
        raise RulesRefused(msg)
    for field in ("ip_blacklist", "ip_whitelist", "emergency_whitelist"):
        _check_addresses(field, getattr(rules, field))
    _check_limits(rules)
    _check_patterns(rules)
    ttl = min(max(rules.ttl, MIN_TTL), MAX_TTL)
    return rules if ttl == rules.ttl else rules.model_copy(update={"ttl": ttl})


def _names(document: object) -> set[str]:
    if not isinstance(document, Mapping):
        msg = f"the document is a {type(document).__name__}, not an object with fields"
        raise RulesRefused(msg)
    return {str(name) for name in document}


def is_expired(rules: DynamicRules, now: datetime) -> bool:
    """Whether ``expires_at`` has passed."""
    return rules.expires_at is not None and _aware(rules.expires_at) <= now


def _aware(value: datetime) -> datetime:
    return value if value.tzinfo else value.replace(tzinfo=timezone.utc)


def _check_addresses(field: str, entries: list[str]) -> None:
    if len(entries) > MAX_ENTRIES:
        msg = f"{field}: more than {MAX_ENTRIES} entries"
        raise RulesRefused(msg)
    for entry in entries:
        try:
            network = ipaddress.ip_network(entry)
        except ValueError as error:
            msg = f"{field}: {error}"
            raise RulesRefused(msg) from None
        if network.prefixlen < _BROADEST[network.version]:
            msg = (
                f"{field}: {entry} covers too much of the internet "
                f"(broader than /{_BROADEST[network.version]})"
            )
            raise RulesRefused(msg)
        if network.version == 6 and network.overlaps(_MAPPED):
            msg = f"{field}: {entry} stands for IPv4 addresses; write them as such"
            raise RulesRefused(msg)
        if field == "ip_blacklist" and network.overlaps(_LOOPBACK[network.version]):
            msg = f"{field}: {entry} holds loopback addresses"
            raise RulesRefused(msg)


def _check_limits(rules: DynamicRules) -> None:
    for name in ("ip_ban_duration", "global_rate_limit", "global_rate_window"):
        value = getattr(rules, name)
        if value is not None and value < 1:
            msg = f"{name}: must be at least 1"
            raise RulesRefused(msg)
    for path, (requests, window) in rules.endpoint_rate_limits.items():
        if requests < 1 or window < 1:
            msg = f"endpoint_rate_limits.{path}: requests and window must be at least 1"
            raise RulesRefused(msg)


def _check_patterns(rules: DynamicRules) -> None:
    end = time.monotonic() + _CHECK_SECONDS
    for field in ("suspicious_patterns", "blocked_user_agents"):
        patterns: list[str] = getattr(rules, field)
        if len(patterns) > MAX_PATTERNS:
            msg = f"{field}: more than {MAX_PATTERNS} entries"
            raise RulesRefused(msg)
        for pattern in patterns:
            if (reason := dangerous(pattern)) is not None:
                msg = f"{field}: {pattern[:80]!r} {reason}"
                raise RulesRefused(msg)
            if time.monotonic() > end:
                msg = f"{field}: takes more than {_CHECK_SECONDS:.0f} s to check"
                raise RulesRefused(msg)


class RuleKeeper:
    """
    Keeps the rules of one source up to date.

    While deliveries to the same collector rest, it rests too: ``gate`` is theirs. The other way
    round it only passes on that the collector asked for less; a project without rules, or a rule
    service that is down, must not hold up a single event.

    ``refresh`` runs on the agent's loop; ``current`` may be read from any thread and never waits.
    """

    def __init__(
        self,
        source: RuleSource,
        gate: Gate,
        cache: Path | None,
        *,
        on_change: Callable[[DynamicRules], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self.source = source
        self.name = source.context.instance
        self.fetched = 0
        self.last_update: float | None = None
        self.last_error: str | None = None
        config = source.context.config
        self._deliveries = gate
        self._gate = Gate(
            rate=config.max_requests_per_second,
            backoff=config.backoff_factor,
            failure_threshold=config.retry_attempts + 1,
        )
        self._cache = cache
        self._on_change = on_change
        self._clock = clock
        self._now = now
        self._rules: DynamicRules | None = None
        self._validator: str | None = None
        self._calls = Calls(1.25 * config.timeout)
        self._opened = False
        self._defect_logged = False
        self._refusals = 0
        self._last_refused: str | None = None

    @property
    def current(self) -> DynamicRules | None:
        """The last good set, unless it has expired."""
        rules = self._rules
        return None if rules is None or is_expired(rules, self._now()) else rules

    def restore(self) -> None:
        """Take the last good set from disk, so that a restart in an outage is protected too."""
        if self._cache is None:
            return
        try:
            if self._cache.stat().st_size > _FILE_LIMIT:
                return
            document = orjson.loads(self._cache.read_bytes())
            rules = validate(document, self._now())
        except (OSError, ValueError, RulesRefused):
            return  # none, or no longer good: the source will tell
        self._set(rules)

    async def refresh(self) -> float:
        """
        Ask the source once, if its collector may be asked now.

        Returns:
            Seconds until the next refresh.
        """
        if (delay := self._deliveries.delay(self._clock())) > 0:
            return max(delay, 0.05)
        if (delay := self._gate.acquire(self._clock())) > 0:
            return max(delay, 0.05)
        result = await self._fetch()
        if isinstance(result, (Retry, Paused)):
            return self._unavailable(result)
        self._gate.succeeded()
        self.fetched += 1
        self.last_update = time.time()
        if isinstance(result, Unchanged):
            self._refusals = 0
            self.last_error = None
            return self._next()
        try:
            rules = validate(result.document, self._now())
            self._check_version(rules)
        except RulesRefused as refusal:
            return self._refused(str(refusal))
        self._refusals = 0
        self._last_refused = None
        self.last_error = None
        self._validator = result.validator
        if not _same(rules, self._rules):
            self._set(rules)
            self._save(result.document)
        return self._next()

    async def close(self) -> None:
        """Close the source."""
        await self.source.close()
        self._opened = False

    async def _fetch(self) -> RuleSet | Unchanged | Retry | Paused:
        finished = False
        try:
            if not self._opened:
                await self._calls(self.source.open)
                self._opened = True
            result: object = await self._calls(self.source.fetch, self._validator)
            finished = True
        except (Exception, SystemExit) as error:
            # Plugin meets core: contract of RuleSource.
            finished = True
            if not self._defect_logged:
                self._defect_logged = True
                logger.exception("the rule source %r raised; handled like Retry", self.name)
            return Retry(f"{type(error).__name__}: {error}")
        finally:
            if not finished:
                self._gate.cancelled()
        if isinstance(result, (RuleSet, Unchanged, Retry, Paused)):
            return result
        return Retry(f"the rule source returned {type(result).__name__}")

    def _unavailable(self, result: Retry | Paused) -> float:
        delay = self._gate.failed(result, self._clock())
        if isinstance(result, Retry) and result.throttled:
            self._deliveries.failed(result, self._clock())
        reason = one_line(result.reason)
        if self.last_error is None:
            logger.warning("rules from %s are not available: %s", self.name, reason)
        self.last_error = reason
        return max(delay, 1.0)

    def _refused(self, reason: str) -> float:
        clean = one_line(reason, 300)
        if self._last_refused != clean:
            logger.error("rules from %s are refused, the last good set stays: %s", self.name, clean)
        self._last_refused = clean
        self.last_error = clean
        self._refusals += 1
        return min(self._next(), _MAX_REFUSAL_PAUSE)

    def _check_version(self, rules: DynamicRules) -> None:
        known = self._rules
        if known is None or rules.rule_id != known.rule_id:
            return
        if rules.version < known.version:
            msg = f"version: {rules.version} is older than {known.version}, which is known"
            raise RulesRefused(msg)

    def _next(self) -> float:
        interval = self.source.interval
        if self._rules is not None:
            interval = min(interval, self._rules.ttl * _REFRESH_AT)
        # +-20 %, so that a fleet that started together does not ask together.
        return max(0.1, interval * (0.8 + 0.4 * random.random()))  # noqa: S311 - no secret

    def _set(self, rules: DynamicRules) -> None:
        known = self._rules
        self._rules = rules
        if known is None or (known.rule_id, known.version) != (rules.rule_id, rules.version):
            logger.info("rules %s version %d are in force", one_line(rules.rule_id), rules.version)
        switches = _switches(rules)
        if switches and (known is None or switches != _switches(known)):
            name = one_line(rules.rule_id)
            logger.warning("rules %s change what protects the app: %s", name, ", ".join(switches))
        self._on_change(rules)

    def _save(self, document: Mapping[str, Any]) -> None:
        if self._cache is None:
            return
        try:
            self._cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=self._cache.parent, prefix=".rules-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(orjson.dumps(dict(document), default=str))
                os.replace(name, self._cache)  # noqa: PTH105 - the pair of mkstemp
            except BaseException:
                with suppress(OSError):
                    os.unlink(name)  # noqa: PTH108 - the pair of mkstemp
                raise
        except (OSError, TypeError) as error:
            logger.info("cannot keep the rules on disk: %s", error)
            self._cache = None


def _same(rules: DynamicRules, known: DynamicRules | None) -> bool:
    if known is not None and "timestamp" not in rules.model_fields_set:
        # It is the time of reading then.
        rules = rules.model_copy(update={"timestamp": known.timestamp})
    return rules == known


def _switches(rules: DynamicRules) -> list[str]:
    """What a person should know of: protection that is off, and everybody locked out."""
    off = ("enable_penetration_detection", "enable_ip_banning", "enable_rate_limiting")
    on = ("emergency_mode", "emergency_whitelist_only")
    return [f"{name}=false" for name in off if getattr(rules, name) is False] + [
        f"{name}=true" for name in on if getattr(rules, name)
    ]


def cache_path(folder: Path, source: RuleSource) -> Path:
    """Where the last good rules of ``source`` lie: one file per source, collector and project."""
    config = source.context.config
    identity = "\0".join([source.context.instance, source.collector, config.project_id or ""])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return folder / f"rules-{digest}.json"
