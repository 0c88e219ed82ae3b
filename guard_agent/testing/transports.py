"""
Transports for tests: one that takes everything, one that answers as it is told.

Both are as strict as the contract: a ``send`` before ``open``, after ``close`` or during another
``send`` raises `AssertionError`. Because the core catches what a transport raises, it is kept in
``violations`` as well; a test of the core asserts that there are none.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from guard_agent import (
    Accepted,
    AgentStatus,
    Batch,
    Partial,
    PluginContext,
    PluginSettings,
    Record,
    SendResult,
    Transport,
)
from guard_agent.testing.records import make_context

Step: TypeAlias = SendResult | BaseException | Callable[[Batch], SendResult | Awaitable[SendResult]]
"""What a scripted transport does with one batch: answer, raise, or call."""


class RecordingTransport(Transport):
    """Keeps every batch and accepts it. All attributes may be read from any thread."""

    name = "recording"

    def __init__(
        self,
        settings: PluginSettings | None = None,
        context: PluginContext | None = None,
        *,
        max_batch_bytes: int | None = None,
    ) -> None:
        """Without ``settings`` and ``context`` it makes its own, so that a test need not."""
        super().__init__(
            settings or self.Settings(),
            context or make_context(instance=self.name, destinations=(self.name,)),
        )
        self._max_batch_bytes = max_batch_bytes
        self.batches: list[Batch] = []
        """Every batch of every attempt, in order."""
        self.accepted: list[Record] = []
        """Records whose batch was answered with `Accepted`, or with `Partial` but not named."""
        self.reports: list[AgentStatus] = []
        self.opened = 0
        self.closed = 0
        self.violations: list[str] = []
        self._is_open = False
        self._is_busy = False
        self._changed = threading.Condition()

    @property
    def max_batch_bytes(self) -> int | None:
        return self._max_batch_bytes

    @property
    def records(self) -> list[Record]:
        """Every record of every attempt, in order; one that was sent twice is here twice."""
        return [record for batch in list(self.batches) for record in batch.records]

    async def open(self) -> None:
        if self._is_open:
            self._violated("open was called twice without close")
        self.opened += 1
        self._is_open = True

    async def close(self) -> None:
        self.closed += 1
        self._is_open = False

    async def send(self, batch: Batch) -> SendResult:
        with self._alone("send"):
            if not batch.records:
                self._violated("send was called with an empty batch")
            if any(record.kind != batch.kind for record in batch.records):
                self._violated("a batch holds records of another kind than its own")
            with self._changed:
                self.batches.append(batch)
                self._changed.notify_all()
            # Gives a second send, if somebody starts one, the chance to be caught.
            await asyncio.sleep(0)
            result = await self.answer(batch)
            with self._changed:
                self.accepted += _accepted(batch, result)
                self._changed.notify_all()
            return result

    async def answer(self, batch: Batch) -> SendResult:  # noqa: ARG002 - for overriding
        """What ``send`` returns."""
        return Accepted()

    async def report(self, status: AgentStatus) -> SendResult:
        with self._alone("report"), self._changed:
            self.reports.append(status)
            self._changed.notify_all()
        return Accepted()

    def wait(self, condition: Callable[[], bool], timeout: float = 10.0) -> None:
        """
        Block until ``condition`` holds, looking after every batch, answer and report.

        For tests that run beside the agent's thread; on the loop of the transport it would wait
        for itself.

        Raises:
            TimeoutError: when it does not within ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                msg = (
                    f"{self.name} waited {timeout} s in vain; it has seen {len(self.batches)} "
                    f"batches, accepted {len(self.accepted)} records, got {len(self.reports)} "
                    f"reports, and {self.violations or 'no violations'}"
                )
                raise TimeoutError(msg)

    @contextmanager
    def _alone(self, action: str) -> Iterator[None]:
        if not self._is_open:
            self._violated(f"{action} was called on a transport that is not open")
        if self._is_busy:
            self._violated(f"{action} was called during another call")
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False

    def _violated(self, what: str) -> None:
        self.violations.append(what)
        raise AssertionError(what)


class ScriptedTransport(RecordingTransport):
    """
    Does one step of its script for each batch, and accepts when the script is over.

    A step is a result to return, an exception to raise, or a callable that gets the batch and
    returns a result, which may be awaitable::

        ScriptedTransport(Retry("busy", after=1.0), ConnectionError(), Accepted())
    """

    name = "scripted"

    def __init__(
        self,
        *script: Step,
        settings: PluginSettings | None = None,
        context: PluginContext | None = None,
        max_batch_bytes: int | None = None,
    ) -> None:
        super().__init__(settings, context, max_batch_bytes=max_batch_bytes)
        self.script: deque[Step] = deque(script)
        """The steps still to come; a test may add more."""

    async def answer(self, batch: Batch) -> SendResult:
        if not self.script:
            return Accepted()
        step = self.script.popleft()
        if isinstance(step, BaseException):
            raise step
        if not callable(step):
            return step
        result = step(batch)
        return await result if inspect.isawaitable(result) else result


def _accepted(batch: Batch, result: SendResult) -> list[Record]:
    if isinstance(result, Accepted):
        return list(batch.records)
    if isinstance(result, Partial):
        kept = result.retry | result.rejected.keys()
        return [record for n, record in enumerate(batch.records) if n not in kept]
    return []
