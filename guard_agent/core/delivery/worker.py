"""
The agent's own thread: moves records from the ring to the store, and runs delivery, rules and
status reports on a private event loop.

The loop of the host application is never used for any of this, so an agent works the same under
ASGI, WSGI and in a script, and cannot stall a request.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from guard_agent.core.delivery.calls import GRACE, Calls, finish
from guard_agent.core.interfaces import DestinationDepth, DropReason, Level
from guard_agent.core.reentry import mark

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence

    from guard_agent.core.callback import ErrorCallback
    from guard_agent.core.config import AgentConfig
    from guard_agent.core.delivery.destination import Destination
    from guard_agent.core.delivery.lanes import Lanes
    from guard_agent.core.intake.ring import Ring
    from guard_agent.core.interfaces import Aggregator, DeadLetter, Record
    from guard_agent.core.ledger import Ledger
    from guard_agent.core.models import AgentStatus
    from guard_agent.core.rules.keeper import RuleKeeper

logger = logging.getLogger("guard_agent.worker")

THREAD_NAME = "guard-agent"
COMMIT_INTERVAL = 0.05
"""Seconds until a record is in a store that survives the process: the loss window."""
_GATHER = 0.4 * COMMIT_INTERVAL
"""Seconds in which records gather to be stored together; the rest is for storing them."""
_CHUNK = 1_000
"""Records for one call of a store that outlives the process: each waits for a server or a disk."""
_STEP = 200
"""The same for a store in memory, which holds the interpreter all the while."""
_PAUSE = 0.00005
_CROWDED = 0.5
"""Share of a store from which on what was merged waits where it is counted."""
_SLICE = 50
_BREATH = 0.001
_STORE_BACKOFF_MAX = 30.0
_STORE_RETRY = 1.0
_LEAST_STATUS_INTERVAL = 2.0
_EXPIRY_INTERVAL = 5.0
_RESTART_FIRST = 1.0
_RESTART_MAX = 60.0
_CLOSE_SHARE = 0.25
"""Share of the time to stop that is kept for closing what is open."""
_BEGIN_SHARE = 0.5
"""Share of the rest in which requests still begin, when what is not sent stays in the store."""


class Worker:
    """One run of the agent: started once, stopped once."""

    def __init__(
        self,
        *,
        ring: Ring,
        aggregator: Aggregator | None = None,
        ledger: Ledger,
        store: Lanes,
        destinations: Sequence[Destination],
        keepers: Sequence[RuleKeeper],
        on_error: ErrorCallback,
        books_lock: asyncio.Lock,
        config: AgentConfig,
        status: Callable[[Mapping[str, DestinationDepth]], AgentStatus],
    ) -> None:
        self._ring = ring
        self._aggregator = aggregator
        self._ledger = ledger
        self._store = store
        self._destinations = {destination.name: destination for destination in destinations}
        self._keepers = keepers
        self._on_error = on_error
        self._books_lock = books_lock
        self._buffer_size = config.buffer_size
        self._flush_interval: float = config.flush_interval
        self._status_interval: float = config.status_interval
        self._evict = config.buffer_overflow_policy == "drop"
        self._status = status

        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self._arrived = asyncio.Event()
        self._due = {name: asyncio.Event() for name in self._destinations}
        self._passes = {name: _Passes() for name in self._destinations}
        self._unsent = 0
        self._stopping = asyncio.Event()
        self._finishing = asyncio.Event()
        self._store_open = False
        self._store_failing: set[str] = set()
        self._resets = 0
        self._missing: Mapping[str, int] = {}
        self._moving = asyncio.Lock()
        self._opening = asyncio.Lock()
        self._stop_at = 0.0
        self._rules_wanted = asyncio.Event()
        self._rules_answered = asyncio.Event()
        self._report_ok: bool | None = None
        self._ended: Future[None] = Future()
        self._ended.set_running_or_notify_cancel()  # whoever waits for it cannot cancel it
        self._submitted: set[Future[Any]] = set()
        self._work: set[asyncio.Future[Any]] = set()
        self.depths: Mapping[str, DestinationDepth] = {
            name: DestinationDepth() for name in self._destinations
        }
        """As of the last look; `look` takes a fresh one."""

    # --- called from the threads of the application -----------------------------------------------

    def start(self) -> None:
        """
        Start the thread; returns at once.

        Raises:
            RuntimeError: there can be no further thread.
            OSError: there can be no further file, which an event loop needs.
        """
        # Of our own kind, whatever loop policy the host application has set.
        self._loop = loop = asyncio.SelectorEventLoop()
        try:
            self._thread.start()
        except BaseException:
            self._loop = None
            loop.close()
            raise

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller runs in the agent's thread, and so must not wait for it."""
        return threading.current_thread() is self._thread

    @property
    def level(self) -> Level:
        """What a record that is taken now survives."""
        return self._store.present_level

    @property
    def last_report_ok(self) -> bool | None:
        return self._report_ok

    def wake(self) -> None:
        """Records arrived."""
        if self.is_current_thread:  # what was merged, which needs no call of the system
            self._arrived.set()
        else:
            self._call(self._arrived.set)

    def want_rules(self) -> None:
        """Somebody asks for rules: begin to fetch them, if that has not begun."""
        if not self._rules_wanted.is_set():
            self._call(self._rules_wanted.set)

    def submit(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Future[Any]:
        """Run a coroutine on the agent's loop; the future is cancelled when the agent has ended."""
        future: Future[Any] = Future()
        self._submitted.add(future)
        future.add_done_callback(self._submitted.discard)

        def begin() -> None:
            task = asyncio.ensure_future(work())
            self._work.add(task)
            task.add_done_callback(self._work.discard)
            task.add_done_callback(lambda done: _copy(done, future))

        # The second look is for an end between the call and here, which would leave it waiting.
        if not self._call(begin) or self._ended.done():
            future.cancel()
        return future

    def stop(self, timeout: float) -> Future[None]:
        """Ask the thread to end within ``timeout`` seconds; the future is done when it has."""
        self._stop_at = time.monotonic() + timeout
        self._call(self._stopping.set)
        return self._ended

    def _call(self, callback: Callable[[], object]) -> bool:
        if self._loop is None:
            return False
        # It writes to a socket, which the application may have instrumented.
        inside = mark()
        before = getattr(inside, "agent", False)
        inside.agent = True
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed: the agent has ended
            return False
        finally:
            inside.agent = before
        return True

    # --- coroutines for `submit` ------------------------------------------------------------------

    async def flush(self) -> None:
        """
        Bring everything that was taken so far to the store and make one delivery pass.

        Ends when every destination has emptied its part of the store or has to wait.
        """
        await self._try_to_open_store()
        left = len(self._ring) + self._ledger.aggregated().open + 1
        while True:
            collected = await self._collect()
            moved = await self._move() and collected
            before, left = left, self._ring.waiting + self._ledger.aggregated().open
            ends = [passes.next_end() for passes in self._passes.values()]
            self._set_due()
            await asyncio.gather(*ends)
            if moved or left >= before:
                return  # everything had its turn, or the store is full and stays full

    async def flush_to_store(self) -> bool:
        """
        Bring everything that was taken so far to the store.

        Returns:
            Whether all of it is committed in a store that outlives the process.
        """
        await self._try_to_open_store()
        left: int | None = None
        while not (collected := await self._collect(share=1)):
            before, left = left, self._ledger.aggregated().open
            if not await self._move() or (before is not None and left >= before):
                break
        return await self._move() and collected and await self._store.settle()

    async def settle(self) -> None:
        """Open a store that came later, and bring to it what memory holds."""
        await self._try_to_open_store()
        await self._store.release_expired()
        self._set_due()

    async def dead_letters(self) -> dict[str, Sequence[DeadLetter]]:
        """What each destination refused for good and the store has kept, oldest first."""
        await self._try_to_open_store()
        return {name: tuple(await self._store.dead_letters(name)) for name in self._destinations}

    async def replay(self, destination: str, limit: int) -> int:
        """Make dead letters ready again, the oldest ``limit``; returns how many."""
        await self._try_to_open_store()

        async def book() -> int:
            async with self._books_lock:
                count = await self._store.replay(destination, limit)
                self._ledger.destinations[destination].replayed += count
            return count

        replayed = await finish(book(), self._patience)
        self._due[destination].set()
        return replayed

    async def first_rules(self, timeout: float) -> None:
        """Wait until a rule source answered for the first time, at most ``timeout`` seconds."""
        self._rules_wanted.set()
        if self._keepers:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._rules_answered.wait(), timeout)
            # Whoever asks from now on gets what there is: only the first call waits.
            self._rules_answered.set()

    async def look(self) -> Mapping[str, DestinationDepth]:
        """Fresh depths of the store, at a moment when all books agree."""
        async with self._moving, self._books_lock:
            if self._store_open:
                await self._take_stock()
        return self.depths

    async def _take_stock(self) -> None:
        """
        Look at what is there. What a store lost that began anew is given up: what is missing since.

        What was missing before is what other processes, who share it, had put in or taken out.
        """
        resets = -1
        while resets != self._store.resets:  # it can begin anew while we look
            resets = self._store.resets
            self.depths = await self._store.stats()
        if not self._store.is_exact:
            return
        with self._ring.locked():
            waiting = len(self._ring)
            missing = {
                name: self._ledger.balance(name, waiting + depth.pending).difference
                for name, depth in self.depths.items()
            }
        if resets > self._resets:
            self._resets = resets
            for name, count in missing.items():
                lost = max(count - self._missing.get(name, 0), 0)
                self._ledger.destinations[name].dropped[DropReason.STORE_RESET] += lost
        else:
            self._missing = missing

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None  # noqa: S101 - `start` made it
        mark().agent = True
        # Not `asyncio.set_event_loop`, which nothing here needs: it takes a lock of the module, and
        # a process that another thread forks in that moment could never take it again.
        try:
            loop.run_until_complete(self._main())
        except BaseException:
            logger.exception("the agent's thread failed")
        finally:
            try:
                if left := asyncio.all_tasks(loop):
                    loop.run_until_complete(self._end(list(left)))
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()
            except BaseException:
                logger.exception("the agent's event loop did not close")
            finally:
                self._ended.set_result(None)
                for future in list(self._submitted):
                    future.cancel()

    async def _main(self) -> None:
        jobs: list[Callable[[], Awaitable[None]]] = [self._pump, self._expire, self._report]
        jobs += [partial(self._deliver, d) for d in self._destinations.values()]
        jobs += [] if self._aggregator is None else [partial(self._aggregate, self._aggregator)]
        jobs += [partial(self._keep, keeper) for keeper in self._keepers]
        tasks = [asyncio.ensure_future(self._guard(job)) for job in jobs]
        await self._stopping.wait()
        try:
            await self._last_flush(tasks)
        finally:
            await self._end([*tasks, *self._work])
            await self._close()

    async def _guard(self, job: Callable[[], Awaitable[None]]) -> None:
        """Run a job; a defect in it must not end it for good, nor the other jobs."""
        pause = _RESTART_FIRST
        while True:
            try:
                return await job()
            except (Exception, SystemExit):
                logger.exception("a job of the agent failed: %s", job)
            if self._stopping.is_set():
                return None
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RESTART_MAX)

    async def _last_flush(self, tasks: Sequence[asyncio.Future[None]]) -> None:
        """Store what is in the ring, then send until everything is delivered or time is up."""
        pump, deliveries = tasks[0], tasks[3 : 3 + len(self._destinations)]
        for task in tasks[3 + len(self._destinations) :]:
            task.cancel()  # and nobody waits for a rule source that resists
        await self._end([pump])
        send_for = max(self._stop_at - time.monotonic(), 0) * (1 - _CLOSE_SHARE)
        work = asyncio.ensure_future(self._store_and_send(deliveries))
        begin_for = send_for * _BEGIN_SHARE
        if (await asyncio.wait([work], timeout=begin_for))[1] and self._survives():
            # A request that is cut off may have arrived, and another process would send it again.
            for destination in self._destinations.values():
                destination.halt(self._patience)
            self._set_due()
        await asyncio.wait([work], timeout=send_for - begin_for)
        await self._end([work, *deliveries])
        if not work.cancelled() and work.done() and (error := work.exception()) is not None:
            logger.error("the last flush failed", exc_info=error)

    async def _store_and_send(self, deliveries: Sequence[asyncio.Future[None]]) -> None:
        collected = await self._collect(share=1, pause=0)
        moved = await self._move()
        if not (moved and collected) and not self._store_failing:
            await self.flush()  # the store is full and does not evict: send, to make room
        # From now on each delivery job ends as soon as its part of the store is empty.
        self._finishing.set()
        self._set_due()
        # Not `gather`, which would cancel them a second time, while they give back what they hold.
        await asyncio.wait(deliveries)

    async def _close(self) -> None:
        if self._store_open:
            with suppress(Exception):
                await Calls(max((self._stop_at - time.monotonic()) / 2, 0.05))(self._store.settle)
            with suppress(Exception):
                await self._take_stock()
        volatile: Mapping[str, DestinationDepth] = {}
        with suppress(Exception):
            volatile = await self._store.memory.stats()
        self._give_up(volatile)
        closing: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            *((name, destination.close) for name, destination in self._destinations.items()),
            *((keeper.name, keeper.close) for keeper in self._keepers),
            ("the on_error callback", self._on_error.settle),
        ]
        # At the same time, so that one that hangs does not use up what the others need.
        share = (self._stop_at - time.monotonic()) / 2
        await asyncio.gather(*(self._shut(name, close, share) for name, close in closing))
        await self._shut("store", self._store.close, self._stop_at - time.monotonic())

    async def _shut(self, name: str, close: Callable[[], Awaitable[None]], seconds: float) -> None:
        try:
            await Calls(max(seconds, 0.05))(close)
        except Exception:
            # Plugin meets core: a plugin that cannot close must not keep the others from it.
            logger.warning("%s did not close", name, exc_info=True)

    def abandon(self) -> int:
        """Give up everything that is not in the store; returns how many records."""
        with self._ring.locked():
            if self._aggregator is not None:
                collected = self._aggregator.collect()
                while self._collect_one(collected, evict=True):
                    pass
            return self._ring.abandon(DropReason.SHUTDOWN)

    def _give_up(self, volatile: Mapping[str, DestinationDepth]) -> None:
        """Book what is lost with the process: what only memory holds."""
        lost = self.abandon()
        losses = {name: lost + depth.pending for name, depth in volatile.items()}
        for name, depth in volatile.items():
            self._ledger.destinations[name].dropped[DropReason.SHUTDOWN] += depth.pending
            known = self.depths[name]
            self.depths = {
                **self.depths,
                name: replace(
                    known,
                    ready=known.ready - depth.ready,
                    leased=known.leased - depth.leased,
                    bytes=known.bytes - depth.bytes,
                ),
            }
        for name, count in losses.items():
            if count:
                logger.warning("stopped with %d records for %s undelivered: lost", count, name)

    async def _open_store(self) -> None:
        """Open the store; what an earlier process left in it is due now."""
        async with self._opening:
            if not self._store_open:
                await self._store.open()
                self._store_open = True
                self._set_due()

    async def _try_to_open_store(self) -> None:
        try:
            await self._open_store()
        except Exception as error:  # noqa: BLE001 - plugin meets core: contract of Resource.open
            self._store_failed("open", error)
        else:
            self._store_works("open")

    # --- ring to store ----------------------------------------------------------------------------

    async def _pump(self) -> None:
        await self._try_to_open_store()
        backoff = 0.0
        while True:
            if backoff:
                await asyncio.sleep(backoff)
            elif not self._ring.waiting:
                self._arrived.clear()
                if not self._ring.waiting:
                    await self._arrived.wait()
            if not backoff and not self._ring.under_pressure():
                durable = self._survives()
                interval = self._flush_interval
                await self._linger(min(_GATHER, interval) if durable else interval)
            backoff = 0.0 if await self._move() else min(max(backoff * 2, 0.1), _STORE_BACKOFF_MAX)

    async def _linger(self, seconds: float) -> None:
        """Let records gather; ends early when the ring is pressed."""
        end = time.monotonic() + seconds
        while not self._ring.under_pressure():
            self._arrived.clear()
            if self._ring.under_pressure() or (left := end - time.monotonic()) <= 0:
                return
            await _wait(self._arrived, left)

    async def _aggregate(self, aggregator: Aggregator) -> None:
        while True:
            await asyncio.sleep(aggregator.interval)
            await self._collect()

    async def _collect(self, *, share: float = _CROWDED, pause: float = _BREATH) -> bool:
        """
        Have what was merged so far take its place in the ring.

        A count that finds the store full would be given up, or have another given up for it. Where
        it is, it takes no room however long an outage lasts.

        Args:
            share: of the store, up to which it is filled.
            pause: seconds after every few records, for the application that waits for the
                interpreter meanwhile.

        Returns:
            Whether all of it did.
        """
        if self._aggregator is None:
            return True
        if self._store_open:
            await self._count()
        records, size = self._room_for(share)
        collected = self._aggregator.collect()
        number = 0
        while number < records and self._ring.bytes < size:
            if not self._evict and not self._ring.has_room():
                break
            if not self._collect_one(collected, evict=self._evict):
                return True
            number += 1
            if number % _SLICE == 0:
                await asyncio.sleep(pause)
        return not self._ledger.aggregated().open

    def _room_for(self, share: float) -> tuple[int, int]:
        """How many records may come, and bytes be in the ring, until so much is in use."""
        bounds = self._ring.capacity
        most, most_bytes = self._store.capacity or bounds
        used = max(depth.pending for depth in self.depths.values())
        used_bytes = max(depth.bytes for depth in self.depths.values())
        waiting = len(self._ring)
        records = min(int(share * most) - used, int(share * bounds[0])) - waiting
        return records, min(int(share * most_bytes) - used_bytes, int(share * bounds[1]))

    def _collect_one(self, collected: Iterator[Record], *, evict: bool) -> bool:
        """Put one into the ring; returns whether there was one."""
        # In one step, or a look at the books would see it in neither place.
        with self._ring.locked():
            record = next(collected, None)
            if record is not None:
                self._ring.put(record, evict=evict, summary=True)
        return record is not None

    async def _move(self) -> bool:
        """Bring what is in the ring to the store; returns whether the store took all of it."""
        async with self._moving:
            while self._ring.waiting:
                if not await finish(self._take_over(), self._patience):
                    return False
                if self._ring.waiting:
                    _breathe()
        return True

    def _survives(self) -> bool:
        """Whether what the store has now outlives the process."""
        return self._store.present_level is not Level.MEMORY

    def _patience(self) -> float:
        """
        Seconds for which the end of the agent waits for a step with the store.

        A step that is given up may have been done all the same, and what it was about comes twice.
        """
        return max((self._stop_at - time.monotonic()) / 2, GRACE)

    async def _take_over(self) -> bool:
        """One step of it: take, append, and book; what the store did not promise is still ours."""
        records = self._ring.take(_CHUNK if self._survives() else _STEP)
        stored = 0
        try:
            if not self._store_open:
                await self._open_store()
            async with self._books_lock:
                appended = await self._store.append(records, evict=self._evict)
                stored = appended.stored
                self._ring.done(records[:stored])
                for name, count in appended.evicted.items():
                    self._ledger.destinations[name].dropped[DropReason.OVERFLOW] += count
        except Exception as error:  # noqa: BLE001 - plugin meets core: contract of BufferStore
            self._store_failed("append", error)
        else:
            self._store_works("append")
        finally:
            if stored < len(records):
                self._ring.put_back(records[stored:])
        if self._store_open and not self._survives():
            await self._count()
        self._unsent += stored
        if self._unsent and (self._have_gathered() or stored < len(records)):
            self._unsent = 0
            self._set_due()
        return stored >= len(records)

    def _have_gathered(self) -> bool:
        """Whether what was stored since the last time should be sent."""
        # Records linger in the ring before they come to a store in memory, and in the store
        # otherwise, because there they are safe.
        if self._survives():
            return self._unsent >= self._buffer_size
        return self._unsent >= _CHUNK or not self._ring.waiting

    async def _count(self) -> None:
        try:
            async with self._books_lock:
                self.depths = await self._store.stats()
        except Exception as error:  # noqa: BLE001 - plugin meets core: contract of BufferStore
            self._store_failed("stats", error)
        else:
            self._store_works("stats")

    def _store_failed(self, what: str, error: Exception) -> None:
        """Said when the first of its operations fails, until all of them work again."""
        if not self._store_failing:
            logger.warning(
                "the store is not available, what it does not take waits in memory: %s: %s: %s",
                what,
                type(error).__name__,
                error,
                exc_info=logger.isEnabledFor(logging.DEBUG),
            )
        self._store_failing.add(what)

    def _store_works(self, what: str) -> None:
        if what in self._store_failing:
            self._store_failing.discard(what)
            if not self._store_failing:
                logger.warning("the store works again")

    # --- the other jobs ---------------------------------------------------------------------------

    async def _deliver(self, destination: Destination) -> None:
        due = self._due[destination.name]
        passes = self._passes[destination.name]
        wait: float | None = None
        while True:
            if not self._finishing.is_set():
                wait = self._flush_interval if wait is None else wait
                await _wait(due, wait)
            finishing = self._finishing.is_set()
            if finishing:
                destination.gate.last_chance()
            due.clear()
            with passes:
                wait = await self._pass(destination)
            if finishing:
                if wait is None and await self._collect_more():
                    continue
                if wait is None or time.monotonic() + wait > self._stop_at:
                    return
                await asyncio.sleep(wait)

    async def _collect_more(self) -> bool:
        """At the end, when there is room again for what was merged; returns whether any came."""
        before = self._ledger.aggregated().open
        if not before:
            return False
        await self._collect(share=1, pause=0)
        await self._move()
        return self._ledger.aggregated().open < before

    async def _pass(self, destination: Destination) -> float | None:
        """Deliver until nothing is ready (None), or seconds have to be waited for."""
        if not self._store_open:
            return None
        try:
            while (delay := await destination.attempt()) == 0:
                pass
        except Exception as error:  # noqa: BLE001 - plugin meets core: the store raised
            self._store_failed(f"delivery to {destination.name}", error)
            return _STORE_RETRY
        self._store_works(f"delivery to {destination.name}")
        return delay

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRY_INTERVAL)
            if not self._store_open:
                continue
            try:
                if await self._store.release_expired():
                    self._set_due()
                await self.look()
            except Exception as error:  # noqa: BLE001 - plugin meets core: contract of BufferStore
                self._store_failed("expiry", error)
            else:
                self._store_works("expiry")

    async def _report(self) -> None:
        reported = time.monotonic()
        while True:
            await asyncio.sleep(min(self._status_interval, _EXPIRY_INTERVAL))
            if time.monotonic() - reported < self._wanted_interval() - 0.01:
                continue
            reported = time.monotonic()
            try:
                depths = await self.look()
            except Exception as error:  # noqa: BLE001 - plugin meets core: contract of BufferStore
                self._store_failed("stats", error)
                depths = self.depths
            else:
                self._store_works("stats")
            status = self._status(depths)
            for destination in self._destinations.values():
                self._report_ok = await destination.report(status)

    def _wanted_interval(self) -> float:
        """Seconds between two reports; a collector may want them more often than configured."""
        wanted = [d.transport.status_interval for d in self._destinations.values()]
        return min(
            self._status_interval,
            *(max(float(seconds), _LEAST_STATUS_INTERVAL) for seconds in wanted if seconds),
            float("inf"),
        )

    async def _keep(self, keeper: RuleKeeper) -> None:
        await keeper.restore()
        await self._rules_wanted.wait()
        watching = asyncio.ensure_future(keeper.watch())
        try:
            while True:
                delay = await keeper.refresh()
                if keeper.fetched or keeper.last_error:
                    self._rules_answered.set()
                await keeper.rest(delay)
        finally:
            watching.cancel()

    def _set_due(self) -> None:
        for event in self._due.values():
            event.set()

    async def _end(self, tasks: Sequence[asyncio.Future[Any]]) -> None:
        """Cancel tasks and see them end, unless a plugin in them resists."""
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=max(self._stop_at - time.monotonic(), 0.05))


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """
    Wait for ``event``, which is set when the time is up.

    Not `asyncio.wait_for`: on some versions of Python that swallows a cancellation that comes in
    the same moment as the event.
    """
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()


def _breathe() -> None:
    """
    Let the application have the interpreter, if it waits for it.

    Giving it up without a pause is not enough: whoever gives it up would be the first to take it
    again, until the other has waited for 5 ms.
    """
    time.sleep(_PAUSE)


class _Passes:
    """Counts the delivery passes of one destination, for those who wait for the next whole one."""

    def __init__(self) -> None:
        self._running = False
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def __enter__(self) -> None:
        self._running = True

    def __exit__(self, *_: object) -> None:
        self._running = False
        waiting = [(left - 1, end) for left, end in self._waiting if not end.done()]
        for left, end in waiting:
            if left == 0:
                end.set_result(None)
        self._waiting = [(left, end) for left, end in waiting if left > 0]

    def next_end(self) -> asyncio.Future[None]:
        """Done when a pass that begins from now on has ended."""
        end = asyncio.get_running_loop().create_future()
        self._waiting.append((2 if self._running else 1, end))
        return end


def _copy(done: asyncio.Future[Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if done.cancelled():
        future.set_exception(asyncio.CancelledError())
    elif (error := done.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(done.result())
