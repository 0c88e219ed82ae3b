"""
When a collector may be asked: backoff, circuit breaker, throttling, pauses and the request rate.

Everything that talks to the same collector shares one gate, so that one destination's rest is not
another one's storm. A gate only decides, with the time as an argument; others wait.
"""

from __future__ import annotations

import random
from enum import Enum
from typing import TYPE_CHECKING

from guard_agent.core.interfaces import Paused, Retry

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_BACKOFF = 60.0
MAX_RETRY_AFTER = 3600.0
_FIRST_OPEN = 5.0
_FIRST_PROBE = 5.0
_PROBE_RECORDS = 1
RAMP_PAUSE = 1.0
"""
Most seconds between two batches of the ramp after an outage: what many agents have gathered does
not come in one wave when the collector is back.
"""
_RAMP_END = 1_000
_MAX_EXPONENT = 30


class GateState(str, Enum):
    """What the circuit breaker and the collector's answers say."""

    CLOSED = "closed"
    """All is well, or a few attempts failed."""
    OPEN = "open"
    """Too many failures in a row: rest, then let one small batch through."""
    HALF_OPEN = "half_open"
    """That one batch is on its way."""
    THROTTLED = "throttled"
    """The collector is well and asked for less."""
    PAUSED = "paused"
    """A person has to act; probed slowly."""


class Gate:
    """
    Decides for one collector.

    All times are seconds on one monotonic clock. ``random`` returns a number in [0, 1).
    """

    def __init__(
        self,
        *,
        rate: float,
        backoff: float,
        failure_threshold: int,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._bucket = TokenBucket(rate)
        self._backoff = backoff
        self._threshold = failure_threshold
        self._random = random
        self._not_before = 0.0
        self._failures = 0
        self._rests = 0
        self._probing = False
        self._ramp: int | None = None
        self._hurries = False
        self._asked = False
        self.state = GateState.CLOSED
        self.reason: str | None = None

    @property
    def failures(self) -> int:
        """Failed attempts since the last success."""
        return self._failures

    def delay(self, now: float) -> float:
        """Seconds until the next request may be made; 0 when it may be made now."""
        return max(0.0, self._not_before - now)

    def acquire(self, now: float, *, urgent: bool = False) -> float:
        """
        Ask for one request. When it is ``urgent``, because records would be dropped otherwise,
        the request rate yields; nothing else does.

        Returns:
            0 when it is granted; the caller must report its result. Otherwise seconds to wait
            before asking again: nothing was used up.
        """
        if (delay := self.delay(now)) > 0:
            return delay
        if self._probing:
            return 1.0  # somebody else's probe is on its way
        if (delay := self._bucket.take(now)) > 0 and not urgent:
            return delay
        if self.state is GateState.OPEN:
            self.state = GateState.HALF_OPEN
            self._probing = True
        elif self.state in (GateState.PAUSED, GateState.THROTTLED):
            self._probing = True
        return 0.0

    def limit(self, records: int) -> int:
        """How many of ``records`` the next batch may hold: few after an outage, then doubling."""
        return records if self._ramp is None else min(records, self._ramp)

    def succeeded(self, now: float | None = None) -> bool:
        """
        The collector answered and is well; returns whether that is news.

        After an outage the batches double in size, with a pause between them when ``now`` is given.
        """
        if self._is_late:
            return False
        news = self.state is not GateState.CLOSED or self._failures > 0
        if self.state in (GateState.HALF_OPEN, GateState.PAUSED):
            self._ramp = _PROBE_RECORDS
        self._reset()
        if self._ramp is not None:
            self._ramp *= 2
            if self._ramp > _RAMP_END:
                self._ramp = None
            elif now is not None and not self._hurries:
                self._not_before = now + RAMP_PAUSE * self._random()
        return news

    def answered(self) -> None:
        """The collector refused the content, so it is there; nothing about the gate changes."""
        if not self._is_late:
            self._reset()

    def cancelled(self) -> None:
        """The request was never finished; its result is not known."""
        self._probing = False
        if self.state is GateState.HALF_OPEN:
            self.state = GateState.OPEN

    def unused(self) -> None:
        """What was granted was not needed: nobody was asked."""
        self.cancelled()
        self._bucket.give_back()

    def failed(self, result: Retry | Paused, now: float) -> float:
        """
        The request led nowhere.

        Returns:
            Seconds until the next one may be made.
        """
        self.reason = result.reason
        self._probing = False
        if isinstance(result, Paused):
            self.state = GateState.PAUSED
            delay = self._rest(_FIRST_PROBE)
            self._ramp = _PROBE_RECORDS
        elif result.throttled:
            self.state = GateState.THROTTLED
            delay = self._jitter(self._rests)
            self._rests += 1
        else:
            self._failures += 1
            if self._failures >= self._threshold:
                self.state = GateState.OPEN
                delay = self._rest(_FIRST_OPEN)
                self._ramp = _PROBE_RECORDS
            else:
                delay = self._jitter(self._failures - 1)
        # A delay of nothing, less or NaN is none; the backoff stands.
        self._asked = isinstance(result, Retry) and result.after is not None and result.after > 0
        if isinstance(result, Retry) and result.after is not None and self._asked:
            delay = min(result.after, MAX_RETRY_AFTER)
        self._not_before = now + delay
        return delay

    def last_chance(self) -> None:
        """
        The agent ends: forget the backoff for one last attempt, and pause no more on the ramp.

        What the collector itself asked for, or a person has to mend, still holds.
        """
        self._hurries = True
        if self.state in (GateState.CLOSED, GateState.OPEN) and not self._asked:
            self._not_before = 0.0

    @property
    def _is_late(self) -> bool:
        """Whether what was answered was asked before the trouble: it says nothing about that."""
        resting = self.state in (GateState.OPEN, GateState.PAUSED, GateState.THROTTLED)
        return resting and not self._probing

    def _reset(self) -> None:
        self.state = GateState.CLOSED
        self.reason = None
        self._failures = 0
        self._rests = 0
        self._probing = False
        self._asked = False
        self._not_before = 0.0

    def _jitter(self, exponent: int) -> float:
        """
        Full jitter: anything up to a bound that doubles.

        Once it has its last value it is a rest: short delays in a long outage help nobody.
        """
        bound = self._backoff * 2.0 ** min(exponent, _MAX_EXPONENT)
        return self._random() * bound if bound < MAX_BACKOFF else self._part_of(MAX_BACKOFF)

    def _rest(self, first: float) -> float:
        """A rest between half a bound and the bound, which doubles: never a burst of probes."""
        bound = min(MAX_BACKOFF, first * 2.0 ** min(self._rests, _MAX_EXPONENT))
        self._rests += 1
        return self._part_of(bound)

    def _part_of(self, bound: float) -> float:
        return bound * (0.5 + 0.5 * self._random())


class TokenBucket:
    """At most ``rate`` requests per second on average, with bursts of one second's worth."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._capacity = max(1.0, rate)
        self._tokens = self._capacity
        self._at: float | None = None

    def take(self, now: float) -> float:
        """Take one token; returns 0, or the seconds until there is one (then nothing is taken)."""
        if self._at is not None:
            self._tokens = min(self._capacity, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1.0 - 1e-9:  # who waited as long as told must not fail by rounding
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self._rate

    def give_back(self) -> None:
        """Put back a token that was not used."""
        self._tokens = min(self._capacity, self._tokens + 1.0)
