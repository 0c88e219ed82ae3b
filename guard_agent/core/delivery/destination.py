"""
Delivery of one destination: lease, send, and do what the answer asks for.

`Destination.attempt` makes one step and returns how long to wait before the next one; the loop
around it only waits, so that time needs no patching in tests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, TypeGuard

from guard_agent.core.delivery.calls import GRACE, Calls, finish
from guard_agent.core.delivery.gate import GateState
from guard_agent.core.delivery.sizes import ByteLimit
from guard_agent.core.errors import DeliveryError, PayloadTooLargeError, PermanentClientError
from guard_agent.core.interfaces import (
    Accepted,
    Batch,
    Partial,
    Paused,
    Reject,
    Retry,
    TooLarge,
)
from guard_agent.core.logs import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guard_agent.core.delivery.calls import Call
    from guard_agent.core.delivery.gate import Gate
    from guard_agent.core.delivery.trace import Trace
    from guard_agent.core.interfaces import (
        BufferStore,
        Lease,
        Record,
        SendResult,
        Transport,
    )
    from guard_agent.core.ledger import DestinationBooks
    from guard_agent.core.models import AgentStatus

logger = logging.getLogger("guard_agent.delivery")

LEASE_TTL = 60.0
"""Seconds a lease lasts at least; longer when the calls into the transport may take longer."""
_CALLS_PER_LEASE = 4
"""
A batch of events, one of metrics, and a status report before either, however slow the collector is,
and some room: what is leased by one must not go to another while its owner may still send it.
"""
CALL_LIMIT = 30.0
MAX_EXTRA_REQUESTS = 40
"""Requests that splitting one lease may cost; what is left then waits for the next attempt."""
REJECTED_ALONE = 8
"""
Records refused one by one in a row, none accepted between: the fault is not in the records. From
then on one is given up per probe, so that nothing is stuck for ever and little is lost until a
person looks.
"""

Chunk = list[tuple[str, "Record"]]


class Destination:
    """
    Brings the records of one store cursor to one transport.

    Used from one task. ``books_lock`` is held while a store operation and its booking happen
    together, so that whoever holds it sees numbers that agree.
    """

    def __init__(
        self,
        transport: Transport,
        store: BufferStore,
        gate: Gate,
        books: DestinationBooks,
        *,
        max_records: int,
        max_bytes: int,
        books_lock: asyncio.Lock,
        call_limit: float = CALL_LIMIT,
        urgent: Callable[[], bool] = lambda: False,
        on_error: Callable[[str, BaseException, dict[str, object]], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
        trace: Trace | None = None,
    ) -> None:
        self.name = transport.context.instance
        self.transport = transport
        self.gate = gate
        self.books = books
        self._store = store
        self._max_records = max_records
        self._limit = ByteLimit(max_bytes)
        self._books_lock = books_lock
        self._urgent = urgent
        self._on_error = on_error
        self._clock = clock
        self._trace = trace
        self._calls = Calls(call_limit)
        self._lease_ttl = max(LEASE_TTL, _CALLS_PER_LEASE * call_limit)
        self._patience: Callable[[], float] = lambda: GRACE
        self._halted = False
        self._opened = False
        self._in_use = asyncio.Lock()
        self._defect: BaseException | None = None
        self._defect_logged = False
        self._rejected_alone = 0
        self._told: set[GateState] = set()

    async def attempt(self) -> float | None:
        """
        Try to deliver one batch.

        Returns:
            Seconds to wait before the next attempt, or None when nothing is ready in the store.

        What the store raises is passed on: it says nothing about the collector.
        """
        if self._halted:
            return None
        if (delay := self.gate.delay(self._clock())) > 0:
            return delay
        lease = await self._lease()
        if lease is None:
            return None
        open_ids = dict(lease.entries)
        try:
            if not await self._open():
                return self.gate.delay(self._clock())
            return await self._deliver(lease, open_ids)
        finally:
            if open_ids:
                await finish(self._give_back(lease, open_ids), self._patience)

    async def report(self, status: AgentStatus) -> bool:
        """Hand over a status report if the collector may be asked now; never waits for it."""
        if self.gate.delay(self._clock()) > 0 or not await self._open():
            return False
        if self.gate.acquire(self._clock()) > 0:
            return False
        result = await self._guarded(self.transport.report, status)
        if isinstance(result, Accepted):
            self.gate.succeeded(self._clock())
            return True
        if isinstance(result, (Retry, Paused)):
            self._failed(result)
        elif _was_asked(result):
            self.gate.answered()
        else:
            self.gate.unused()
        return False

    def halt(self, patience: Callable[[], float]) -> None:
        """
        Begin no further request: what is on its way may end, and the rest stays in the store.

        When that is cut off, its step with the store is waited for ``patience()`` seconds.
        """
        self._halted = True
        self._patience = patience

    async def close(self) -> None:
        """Close the transport."""
        await self.transport.close()
        self._opened = False

    async def _open(self) -> bool:
        if self._opened:
            return True
        try:
            async with self._in_use:
                if not self._opened:
                    await self._calls(self.transport.open)
                    self._opened = True
        except Exception as error:
            logger.debug("the transport %r could not open", self.name, exc_info=True)
            self._failed(Retry(f"cannot open: {type(error).__name__}: {error}"))
            return False
        return True

    # --- one lease --------------------------------------------------------------------------------

    async def _lease(self) -> Lease | None:
        limit = self.transport.max_batch_bytes
        return await self._store.lease(
            self.name,
            self.gate.limit(self._max_records),
            min(self._limit.value, limit) if limit is not None else self._limit.value,
            self._lease_ttl,
        )

    async def _deliver(self, lease: Lease, open_ids: dict[str, Record]) -> float | None:
        """Send everything of the lease, split as the answers ask for."""
        chunks = _by_kind(lease.entries)
        planned = len(chunks)
        sent = 0
        while chunks:
            if self._halted or sent >= planned + MAX_EXTRA_REQUESTS:
                break
            chunk = chunks.pop()
            if len(chunk) > 1 and _size(chunk) > self._limit.value:
                chunks.extend(_halves(chunk, by_bytes=True))  # learned since it was leased
                continue
            if (delay := self.gate.acquire(self._clock(), urgent=self._urgent())) > 0:
                return delay
            batch = Batch(chunk[0][1].kind, tuple(record for _, record in chunk))
            result = await self._send(batch)
            sent += _was_asked(result)
            if isinstance(result, (Retry, Paused)):
                return self._failed(result, chunk)
            await self._settle(lease, open_ids, chunk, chunks, result)
            if self._rejected_alone >= REJECTED_ALONE and _is_lone_reject(chunk, result):
                return self._failed(Paused("every record is refused, not just a single one"))
        return 0.0

    async def _send(self, batch: Batch) -> SendResult:
        self.books.requests += 1
        began = time.monotonic()
        result = await self._guarded(self.transport.send, batch)
        if self._trace is not None:
            self._trace(self.transport, batch, result, time.monotonic() - began)
        if not _was_asked(result):
            self.books.requests -= 1
        return result

    async def _guarded(self, function: Call, argument: object) -> SendResult:
        """Call the transport; whatever it does, a sound result comes back."""
        finished = False
        self._defect = None
        try:
            async with self._in_use:
                result: object = await self._calls(function, argument)
            finished = True
        except Exception as error:
            finished = True
            self._defect = error
            if not self._defect_logged:
                self._defect_logged = True
                logger.exception("the transport %r raised; handled like Retry", self.name)
            return Retry(f"{type(error).__name__}: {error}")
        finally:
            if not finished:
                self.gate.cancelled()
        if _is_sound(result):
            return result
        if not self._defect_logged:
            self._defect_logged = True
            logger.error(
                "the transport %r returned %s instead of a SendResult; handled like Retry",
                self.name,
                one_line(repr(result))
                if isinstance(result, (Partial, Retry, TooLarge))
                else type(result).__name__,
            )
        return Retry("the transport returned no SendResult")

    async def _settle(
        self,
        lease: Lease,
        open_ids: dict[str, Record],
        chunk: Chunk,
        chunks: list[Chunk],
        result: SendResult,
    ) -> None:
        """Do with ``chunk`` what a collector that answered asks for."""
        if isinstance(result, Accepted):
            # First of all: when the store fails now, the collector is well all the same.
            news = self.gate.succeeded(self._clock())
            self._limit.accepted(_size(chunk), self._clock())
            await self._ack(lease, open_ids, chunk, news=news)
        elif isinstance(result, Partial):
            await self._settle_partial(lease, open_ids, chunk, result)
        elif isinstance(result, (Reject, TooLarge)):
            lone = _is_lone_reject(chunk, result)
            if not _was_asked(result):
                self.gate.unused()
            elif not lone or self._rejected_alone + 1 < REJECTED_ALONE:
                self.gate.answered()
            if len(chunk) > 1:
                chunks.extend(_halves(chunk, by_bytes=isinstance(result, TooLarge)))
                if isinstance(result, TooLarge):
                    # Remembered, so that the next batch fits at once.
                    self._limit.refused(_size(chunk), result.limit, self._clock())
            else:
                self._rejected_alone += lone
                await self._bury(lease, open_ids, chunk, _reason(result), _error(result))

    async def _settle_partial(
        self, lease: Lease, open_ids: dict[str, Record], chunk: Chunk, result: Partial
    ) -> None:
        keep = result.retry - result.rejected.keys()
        accepted = [
            entry
            for position, entry in enumerate(chunk)
            if position not in result.rejected and position not in keep
        ]
        if accepted:
            news = self.gate.succeeded(self._clock())
            await self._ack(lease, open_ids, accepted, news=news)
        else:
            self.gate.answered()
        refused: dict[str, Chunk] = {}
        for position, reason in sorted(result.rejected.items()):
            if 0 <= position < len(chunk):
                refused.setdefault(one_line(reason), []).append(chunk[position])
        for reason, part in refused.items():
            await self._bury(lease, open_ids, part, reason, PermanentClientError(422, reason))
        if keep:
            # They stay in `open_ids` and so go back; without a pause they would come again at once.
            self._failed(Retry("the collector took some records only", throttled=True), chunk)

    # --- store and books together -----------------------------------------------------------------

    async def _ack(
        self, lease: Lease, open_ids: dict[str, Record], chunk: Chunk, *, news: bool
    ) -> None:
        async def book() -> None:
            async with self._books_lock:
                count = await self._store.ack(lease, [entry for entry, _ in chunk])
                self.books.delivered += count
                self.books.delivered_bytes += _size(chunk) if count else 0
                if chunk[0][1].kind == "event":
                    self.books.delivered_events += count
            _forget(open_ids, chunk)

        self._rejected_alone = 0
        await finish(book(), self._patience)
        first = self.books.last_success is None
        self.books.last_success = time.time()
        self.books.last_error = None
        self._told.clear()
        if news and not first:
            logger.warning("delivery to %s works again", self.name)
        elif first:
            logger.info("delivery to %s works", self.name)

    async def _bury(
        self,
        lease: Lease,
        open_ids: dict[str, Record],
        chunk: Chunk,
        reason: str,
        error: PermanentClientError,
    ) -> None:
        clean = one_line(reason)
        first = not self.books.buried

        async def book() -> None:
            async with self._books_lock:
                self.books.buried += await self._store.bury(
                    lease, [entry for entry, _ in chunk], clean
                )
            _forget(open_ids, chunk)

        await finish(book(), self._patience)
        self.books.last_error = clean
        if first and self.books.buried:
            logger.warning("%s refused records for good, they are buried: %s", self.name, clean)
        self._on_error("transport_send", error, self._about(chunk))

    async def _give_back(self, lease: Lease, open_ids: Mapping[str, Record]) -> None:
        """Also when cancelled: what was taken is given back."""
        try:
            await self._store.release(lease, list(open_ids))
        except Exception:
            logger.debug("the store could not release a lease", exc_info=True)

    def _failed(self, result: Retry | Paused, chunk: Chunk | None = None) -> float:
        delay = self.gate.failed(result, self._clock())
        reason = one_line(result.reason)
        self.books.failures += 1
        self.books.last_error = reason
        # Once per state until something is delivered again, not once per attempt: an agent must
        # not flood its host's logs because the collector is down, or answers now this, now that.
        state = self.gate.state
        if state in self._told:
            pass
        elif state is GateState.PAUSED:
            logger.warning("delivery to %s pauses, records are kept: %s", self.name, reason)
        elif state is GateState.OPEN:
            logger.warning(
                "delivery to %s keeps failing, resting %.0f s, records are kept: %s",
                self.name,
                delay,
                reason,
            )
        elif state is GateState.CLOSED:
            logger.warning(
                "delivery to %s failed, next attempt in %.1f s: %s", self.name, delay, reason
            )
        self._told.add(state)
        self._tell(result, reason, chunk)
        return delay

    def _tell(self, result: Retry | Paused, reason: str, chunk: Chunk | None) -> None:
        """Call ``on_error``, in the words of 3.x."""
        defect, self._defect = self._defect, None
        if defect is not None and chunk:
            stage = f"flush_{chunk[0][1].kind}s"
            context = {"destination": self.name, "batch_size": len(chunk)}
            self._on_error(stage, defect, context)
            return
        stage = result.stage if isinstance(result, Paused) else "transport_send"
        self._on_error(stage, DeliveryError(reason), self._about(chunk))

    def _about(self, chunk: Chunk | None) -> dict[str, object]:
        if not chunk:
            return {"destination": self.name}
        return {
            "destination": self.name,
            "data_type": f"{chunk[0][1].kind}s",
            "item_count": len(chunk),
        }


def _by_kind(entries: Mapping[str, Record]) -> list[Chunk]:
    """One chunk per kind, the first to send at the end."""
    if len({record.kind for record in entries.values()}) == 1:
        return [list(entries.items())]
    chunks: dict[str, Chunk] = {}
    for entry in entries.items():
        chunks.setdefault(entry[1].kind, []).append(entry)
    return list(reversed(chunks.values()))


def _halves(chunk: Chunk, *, by_bytes: bool) -> Sequence[Chunk]:
    """Two parts, the first to send at the end. Neither is empty."""
    middle = len(chunk) // 2
    if by_bytes:
        half = _size(chunk) / 2
        size = 0
        for position, (_, record) in enumerate(chunk):
            size += len(record.payload)
            if size >= half:
                middle = min(max(position + 1, 1), len(chunk) - 1)
                break
    return chunk[middle:], chunk[:middle]


def _size(chunk: Chunk) -> int:
    return sum([len(record.payload) for _, record in chunk])


def _forget(open_ids: dict[str, Record], chunk: Chunk) -> None:
    for entry, _ in chunk:
        open_ids.pop(entry, None)


def _was_asked(result: SendResult) -> bool:
    """Whether the result comes from the collector, and not from the transport alone."""
    return not isinstance(result, TooLarge) or result.asked


def _is_lone_reject(chunk: Chunk, result: SendResult) -> bool:
    return len(chunk) == 1 and isinstance(result, Reject)


def _is_sound(result: object) -> TypeGuard[SendResult]:
    """Whether it is a `SendResult` all through: plugins are not type checked when they run."""
    if isinstance(result, Partial):
        rejected: Any = result.rejected
        retry: Any = result.retry
        return (
            isinstance(rejected, Mapping)
            and isinstance(retry, AbstractSet)
            and all(isinstance(position, int) for position in {*rejected, *retry})
        )
    if isinstance(result, Retry):
        return result.after is None or _is_number(result.after)
    if isinstance(result, TooLarge):
        return (result.limit is None or _is_number(result.limit)) and result.asked in (True, False)
    if isinstance(result, Paused):
        return result.stage in ("transport_send", "encryption")
    return isinstance(result, (Accepted, Reject))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _reason(result: Reject | TooLarge) -> str:
    return result.reason if isinstance(result, Reject) else "larger than the collector takes"


def _error(result: Reject | TooLarge) -> PermanentClientError:
    if isinstance(result, TooLarge):
        return PayloadTooLargeError("a single record is larger than the collector takes")
    return PermanentClientError(result.status or 422, one_line(result.reason))
