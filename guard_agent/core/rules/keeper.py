"""
Dynamic rules: fetched from a source, validated as a whole, kept in memory and on disk.

Rules are remote input that can lock everybody out or freeze the app, so nothing is applied that
was not looked at here. What is refused leaves the last good set in force.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import random
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import ValidationError

from guard_agent.core.delivery.calls import Calls
from guard_agent.core.delivery.gate import Gate, GateState
from guard_agent.core.interfaces import Paused, Retry, RuleSet, RuleSource, Unchanged
from guard_agent.core.logs import one_line
from guard_agent.core.models import DynamicRules
from guard_agent.core.rules import bounds
from guard_agent.core.rules.bounds import MAX_ENTRIES, Limits, RulesRefused
from guard_agent.core.rules.judge import Judge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["MAX_ENTRIES", "RuleKeeper", "RulesRefused", "cache_path", "sign", "validate"]

logger = logging.getLogger("guard_agent.rules")

MIN_TTL = 60
MAX_TTL = 86_400
MAX_PATTERNS = 1_000
_MAX_PATTERN_LENGTH = 4_000
_ALSO_ELSEWHERE = frozenset({"message", "timestamp", "version"})
"""Fields that an answer about something else, such as an error, may have as well."""
_CLOCK_SKEW = timedelta(minutes=5)
_FILE_LIMIT = 8 * 1024 * 1024
_MAX_REFUSAL_PAUSE = 300.0
_REFRESH_AT = 0.8
_MAX_SHOWN = 10
_HASTE = 0.2
"""Seconds over which a fleet that is told of new rules at once spreads its questions."""
_WATCH_AGAIN = (1.0, 60.0)
"""Seconds to wait before a watch that ended begins anew: at first, and at most."""
_STALE_AFTER = 3.0
"""Rules are stale when nobody has confirmed them for so many intervals."""
_SIGNATURE = "v1="
_MAX_SIGNATURES = 4
_SIGNED_FIELDS = ("timestamp", "expires_at")


def validate(
    document: Mapping[str, Any], now: datetime, limits: Limits | None = None
) -> DynamicRules:
    """
    The rules of a document, if every part of it is sound; its patterns are judged elsewhere.

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
    for field in bounds.PATTERNS:
        patterns: list[str] = getattr(rules, field)
        if len(patterns) > MAX_PATTERNS:
            msg = f"{field}: more than {MAX_PATTERNS} entries"
            raise RulesRefused(msg)
        for pattern in patterns:
            if len(pattern) > _MAX_PATTERN_LENGTH:
                msg = f"{field}: {pattern[:80]!r} is longer than {_MAX_PATTERN_LENGTH} characters"
                raise RulesRefused(msg)
    bounds.check(rules, limits or Limits())
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


def sign(content: bytes, secret: str) -> str:
    """The signature of a rule document, as it travels: ``v1=<hex HMAC-SHA256 of the bytes>``."""
    return _SIGNATURE + hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()


def _check_signature(content: bytes | None, signature: str | None, secret: str) -> None:
    if content is None or not signature:
        msg = "the document is not signed, and rules_signing_secret is set"
        raise RulesRefused(msg)
    expected = sign(content, secret).encode()
    # While the secret is replaced there may be one signature for each.
    given = [part.strip().encode() for part in signature.split(",")[:_MAX_SIGNATURES]]
    if not any(hmac.compare_digest(part, expected) for part in given):
        msg = "the signature does not fit the document: compare rules_signing_secret"
        raise RulesRefused(msg)


class RuleKeeper:
    """
    Keeps the rules of one source up to date.

    It asks through the gate of the deliveries to the same collector, ``gate``: while that rests,
    because of an outage or a refused key, so do the rules, and while it probes, one request at a
    time is the probe, theirs or this one. While it is closed it only learns that the collector
    asked for less: a project without rules, or a rule service that is down, must not hold up a
    single event. For those there is a gate of its own.

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
        self._limits = Limits.of(config)
        self._secret = config.rules_signing_secret
        self._judge = Judge()
        self._on_change = on_change
        self._clock = clock
        self._now = now
        self._rules: DynamicRules | None = None
        self._validator: str | None = None
        self._calls = Calls(1.25 * config.timeout)
        self._opened = False
        self._defect_logged = False
        self._last_refused: str | None = None
        self._left_out: list[str] = []
        self._received_at: float | None = None
        self._confirmed_at: float | None = None
        self._unsaved: Mapping[str, Any] | None = None
        self._disk_failing = False
        self._due = asyncio.Event()
        self._ready = asyncio.Event()
        self._told = False

    @property
    def current(self) -> DynamicRules | None:
        """The last good set, unless it has expired."""
        rules = self._rules
        return None if rules is None or is_expired(rules, self._now()) else rules

    def describe(self) -> dict[str, Any]:
        """What an operator should see: which rules are in force, and how old they are."""
        rules, now = self._rules, self._clock()
        facts: dict[str, Any] = {"in_force": self.current is not None, "stale": self.stale}
        if rules is not None:
            facts |= {
                "rule_id": one_line(rules.rule_id),
                "version": rules.version,
                "expires_at": rules.expires_at,
                "age_seconds": _elapsed(self._received_at, now),
                "unconfirmed_seconds": _elapsed(self._confirmed_at, now),
                "switches": bounds.switches_of(rules),
                "left_out": self._left_out[:_MAX_SHOWN],
                "left_out_count": len(self._left_out),
            }
        return facts | {"error": self.last_error}

    @property
    def stale(self) -> bool:
        """Whether rules are in force that the source has not confirmed for a while."""
        since = self._confirmed_at if self._confirmed_at is not None else self._received_at
        if self.current is None or since is None:
            return False
        return self._clock() - since > _STALE_AFTER * max(self._pace(), MIN_TTL)

    async def restore(self) -> None:
        """Take the last good set from disk, so that a restart in an outage is protected too."""
        if self._cache is None:
            return
        try:
            content = _read_own(self._cache)
            if self._secret is not None:
                signature, _, content = content.partition(b"\n")
                _check_signature(content, signature.decode("ascii", "replace"), self._secret)
            document = orjson.loads(content)
            rules, left_out = await self._judged(document)
        except (OSError, ValueError, RulesRefused):
            return  # none, or no longer good: the source will tell
        self._set(rules, left_out)

    async def refresh(self) -> float:
        """
        Ask the source once, if its collector may be asked now.

        Returns:
            Seconds until the next refresh.
        """
        probing = self._deliveries.state is not GateState.CLOSED
        if (delay := self._acquire()) > 0:
            return max(delay, 0.05)
        result: RuleSet | Unchanged | Retry | Paused | None = None
        try:
            result = await self._fetch()
        finally:
            self._tell_deliveries(result, probing=probing)
        if isinstance(result, (Retry, Paused)):
            return self._unavailable(result)
        self._gate.succeeded()
        self.fetched += 1
        self.last_update = time.time()
        self._save()
        if isinstance(result, Unchanged):
            if self._validator is not None:  # else it is unchanged against nothing
                self._confirmed_at = self._clock()
            self.last_error = None
            return self._next()
        try:
            await self._take(result)
        except RulesRefused as refusal:
            return self._refused(str(refusal))
        return self._next()

    async def rest(self, seconds: float) -> None:
        """Wait until the next refresh is due, or until the source says that the rules changed."""
        # The timer sets the same event: `asyncio.wait_for` swallows some cancellations.
        timer = asyncio.get_running_loop().call_later(seconds, self._due.set)
        try:
            await self._due.wait()
        finally:
            timer.cancel()
        if self._told:
            await asyncio.sleep(_HASTE * random.random())  # noqa: S311 - no secret
        self._told = False
        self._due.clear()

    def _tell(self) -> None:
        self._told = True
        self._due.set()

    async def watch(self) -> None:
        """Have the source tell when rules change, for as long as this is not cancelled."""
        if type(self.source).watch is RuleSource.watch:
            return
        await self._ready.wait()
        shortest, longest = _WATCH_AGAIN
        pause, logged = shortest, False
        while True:
            began = self._clock()
            try:
                await self.source.watch(self._tell)
            except (Exception, SystemExit):
                # Plugin meets core: contract of RuleSource.
                if not logged:
                    logged = True
                    logger.exception("the rule source %r raised while it watched", self.name)
            pause = shortest if self._clock() - began > longest else min(2 * pause, longest)
            await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311 - no secret

    def _acquire(self) -> float:
        """Ask both gates for one request; returns 0, or the seconds to wait."""
        now = self._clock()
        if (delay := self._gate.delay(now)) > 0:
            return delay
        if (delay := self._deliveries.acquire(now)) > 0:
            return delay
        if (delay := self._gate.acquire(now)) > 0:
            self._deliveries.cancelled()
        return delay

    async def _take(self, result: RuleSet) -> None:
        if self._secret is not None:
            _check_signature(result.content, result.signature, self._secret)
        rules, left_out = await self._judged(result.document)
        self._check_version(rules)
        self._last_refused = None
        self.last_error = None
        self._validator = result.validator
        self._confirmed_at = self._clock()
        if not _same(rules, self._rules) or left_out != self._left_out:
            self._set(rules, left_out)
            self._unsaved = result.document
            self._save()

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
                self._ready.set()
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

    def _tell_deliveries(
        self, result: RuleSet | Unchanged | Retry | Paused | None, *, probing: bool
    ) -> None:
        """What their gate learns from a request for rules."""
        gate, now = self._deliveries, self._clock()
        if isinstance(result, Retry) and result.throttled:
            gate.failed(result, now)
        elif not probing:
            return
        elif isinstance(result, Retry) and gate.state is GateState.HALF_OPEN:
            gate.failed(result, now)
        elif isinstance(result, Paused) and gate.state is GateState.PAUSED:
            # The pause goes on, for their reason: a missing rule service is not a refused key.
            gate.failed(Paused(gate.reason or result.reason), now)
        else:
            gate.cancelled()  # nothing that is true of records as well

    async def _judged(self, document: Mapping[str, Any]) -> tuple[DynamicRules, list[str]]:
        """
        The rules of a document without the patterns that are too slow, and what those are.

        Raises:
            RulesRefused: as `validate`, or because of a pattern.
        """
        rules = validate(document, self._now(), self._limits)
        if self._secret is not None:
            self._check_fresh(rules)
        verdicts = await self._judge(bounds.keys_of(rules))
        kept, left_out = bounds.check_patterns(rules, verdicts, self._limits)
        return (rules.model_copy(update=kept) if left_out else rules), left_out

    def _check_fresh(self, rules: DynamicRules) -> None:
        """A signature stays good for ever, so what is signed must say for how long it is meant."""
        for name in _SIGNED_FIELDS:
            if name not in rules.model_fields_set or getattr(rules, name) is None:
                msg = f"{name}: signed rules must have it, or they could be sent again for ever"
                raise RulesRefused(msg)
        known = self._rules
        if known is not None and _aware(rules.timestamp) < _aware(known.timestamp):
            msg = "timestamp: the document was signed before the one that is known"
            raise RulesRefused(msg)

    def _unavailable(self, result: Retry | Paused) -> float:
        delay = self._gate.failed(result, self._clock())
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
        return min(self._next(), _MAX_REFUSAL_PAUSE)

    def _check_version(self, rules: DynamicRules) -> None:
        known = self._rules
        if known is None or rules.rule_id != known.rule_id:
            return
        if rules.version < known.version:
            msg = f"version: {rules.version} is older than {known.version}, which is known"
            raise RulesRefused(msg)

    def _next(self) -> float:
        # +-20 %, so that a fleet that started together does not ask together.
        return max(0.1, self._pace() * (0.8 + 0.4 * random.random()))  # noqa: S311 - no secret

    def _pace(self) -> float:
        """Seconds between two refreshes."""
        interval = self.source.interval
        return interval if self._rules is None else min(interval, self._rules.ttl * _REFRESH_AT)

    def _set(self, rules: DynamicRules, left_out: list[str]) -> None:
        known = self._rules
        self._rules = rules
        self._received_at = self._clock()
        name = one_line(rules.rule_id)
        if known is None or (known.rule_id, known.version) != (rules.rule_id, rules.version):
            logger.info("rules %s version %d are in force", name, rules.version)
        switches = bounds.switches_of(rules)
        if switches and (known is None or switches != bounds.switches_of(known)):
            logger.warning("rules %s change what protects the app: %s", name, ", ".join(switches))
        if left_out and left_out != self._left_out:
            logger.warning(
                "rules %s: %d patterns are left out, because they could stop the app: %s",
                name,
                len(left_out),
                "; ".join(left_out[:_MAX_SHOWN]),
            )
        self._left_out = left_out
        self._on_change(rules)

    def _save(self) -> None:
        """Bring the last good set to disk; when that fails the next refresh tries again."""
        if self._cache is None or self._unsaved is None:
            return
        try:
            content = orjson.dumps(dict(self._unsaved), default=str)
            if self._secret is not None:
                content = sign(content, self._secret).encode() + b"\n" + content
            _replace(self._cache, content)
        except (OSError, TypeError) as error:
            if not self._disk_failing:
                logger.info("cannot keep the rules on disk, trying again: %s", error)
            self._disk_failing = True
            return
        self._disk_failing = False
        self._unsaved = None


def _read_own(path: Path) -> bytes:
    """
    The content of a file that nobody else can have written.

    Raises:
        OSError: it is missing, too large, or somebody else can have.
    """
    # Not to wait at a pipe that lies there.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        found, folder = os.fstat(file.fileno()), path.parent.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _FILE_LIMIT:
            msg = f"{path} is no file of rules"
            raise OSError(msg)
        if sys.platform != "win32":
            others = stat.S_IWGRP | stat.S_IWOTH
            # In a folder like /tmp others can add files, but not replace ours.
            open_to_others = folder.st_mode & others and not folder.st_mode & stat.S_ISVTX
            foreign = {found.st_uid, folder.st_uid} - {os.geteuid(), 0}
            if foreign or open_to_others or found.st_mode & others:
                logger.warning(
                    "rules kept in %s are not taken, because others may write there; "
                    "chmod go-w it and its folder, or set GUARD_AGENT_STATE_DIR",
                    path,
                )
                msg = f"others may write to {path}"
                raise PermissionError(msg)
        return file.read()


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".rules-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)  # noqa: PTH105 - the pair of mkstemp
    except BaseException:
        with suppress(OSError):
            os.unlink(name)  # noqa: PTH108 - the pair of mkstemp
        raise


def _elapsed(since: float | None, now: float) -> float | None:
    return None if since is None else round(now - since, 3)


def _same(rules: DynamicRules, known: DynamicRules | None) -> bool:
    if known is not None and "timestamp" not in rules.model_fields_set:
        # It is the time of reading then.
        rules = rules.model_copy(update={"timestamp": known.timestamp})
    return rules == known


def cache_path(folder: Path, source: RuleSource) -> Path:
    """Where the last good rules of ``source`` lie: one file per source, collector and project."""
    config = source.context.config
    identity = "\0".join([source.context.instance, source.collector, config.project_id or ""])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return folder / f"rules-{digest}.json"
