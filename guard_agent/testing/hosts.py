"""
An agent of a test, with what must hold whatever goes wrong.

Taking a record never raises and never waits; the books balance; it ends in time::

    with Host(collector, store="disk") as host:
        host.record(10)
        host.until(lambda: len(collector.events) == 10)
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from guard_agent import AgentConfig, SecurityEvent, get_current_timestamp
from guard_agent.core.agent import Agent
from guard_agent.core.assembly.composition import compose

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from guard_agent import AgentStatus
    from guard_agent.testing.collector import Collector

STOP_TIMEOUT = 2.0
STOP_LIMIT = STOP_TIMEOUT + 0.1 + 4.0
"""Seconds that `stop` may take, with `STOP_TIMEOUT`; the last are for a busy machine."""
LONGEST_TAKE = 1.0
"""Seconds that taking a record may last on a busy machine; less than any fault does."""


class Host:
    """One agent with its own configuration, as an application would have it."""

    def __init__(self, collector: Collector, **config: Any) -> None:
        self.collector = collector
        self.recorded = 0
        self.slowest = 0.0
        self.agent = Agent(
            compose(
                AgentConfig(
                    **{
                        "api_key": "test-key-0123",
                        "endpoint": collector.url,
                        "project_id": "shop",
                        "rules": [],
                        "rollup": False,
                        "buffer_size": 1,
                        "flush_interval": 0.1,
                        "max_requests_per_second": 1000,
                        "stop_timeout": STOP_TIMEOUT,
                        **config,
                    }
                )
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        took = self._stop()
        if kind is None:
            self.check_books()
            assert took < STOP_LIMIT, f"stop took {took:.2f} s"
            assert self.slowest < LONGEST_TAKE, f"a record took {self.slowest:.3f} s"

    def record(self, count: int = 1) -> None:
        """Record events, whose reasons are numbers from 0 up."""
        for _ in range(count):
            event = SecurityEvent(
                timestamp=get_current_timestamp(),
                event_type="suspicious_request",
                reason=str(self.recorded),
            )
            began = time.perf_counter()
            left = self.agent.record("event", event)
            self.slowest = max(self.slowest, time.perf_counter() - began)
            assert left is None
            self.recorded += 1

    def confirm(self) -> bool:
        """Whether a store that outlives the process has all that was recorded."""
        confirmed: bool = self.agent.flush_to_store().result(30)
        return confirmed

    def status(self) -> AgentStatus:
        """At a moment when all books agree."""
        status: AgentStatus = self.agent.look().result(30) or self.agent.status()
        return status

    @property
    def dropped(self) -> dict[str, int]:
        (balance,) = self.agent.balances().values()
        return balance.dropped

    def check_books(self) -> None:
        """Exact, but for what a store took although it failed: that is delivered twice."""
        twice = len(self.collector.duplicates)
        for name, balance in self.agent.balances().items():
            assert -twice <= balance.difference <= 0, f"{name}: {balance}, {twice} twice"

    def until(self, fact: Callable[[], object], patience: float = 30.0) -> None:
        """Wait until ``fact()`` is true."""
        deadline = time.monotonic() + patience
        while not fact():
            assert time.monotonic() < deadline, f"it never happened; {self.collector.summary()}"
            time.sleep(0.01)

    def until_delivered(self, count: int | None = None) -> None:
        """Until all that was recorded, or so many of it, is at the collector."""
        wanted = self.recorded if count is None else count
        self.until(lambda: len(self.collector.events) >= wanted)
        assert len(self.reasons()) == wanted

    def until_level(self, level: str) -> None:
        """Until records are kept like that; asks, so that an agent at rest looks as well."""

        def reached() -> bool:
            self.confirm()
            return self.status().level == level

        self.until(reached)

    def reasons(self) -> Counter[str]:
        return Counter(event["reason"] for event in self.collector.events)

    def stop(self) -> None:
        """In time."""
        took = self._stop()
        assert took < STOP_LIMIT, f"stop took {took:.2f} s"

    def _stop(self) -> float:
        """Seconds it took."""
        began = time.monotonic()
        self.agent.stop().result(30)
        return time.monotonic() - began
