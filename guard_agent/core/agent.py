"""
The agent: what the handlers of the public interface talk to.

Thread safe, and usable from any number of event loops. One run lasts from the first record (or
``start``) to ``stop``; a fork begins a new one in the child, which shares nothing with the
parent's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from guard_agent.core.callback import ErrorCallback
from guard_agent.core.delivery.calls import SafeStore
from guard_agent.core.delivery.destination import Destination
from guard_agent.core.delivery.gate import Gate, GateState
from guard_agent.core.delivery.lanes import Lanes
from guard_agent.core.delivery.trace import trace_from_environment
from guard_agent.core.delivery.worker import COMMIT_INTERVAL, Worker
from guard_agent.core.errors import BufferFullError, GuardAgentError
from guard_agent.core.host_redis import HostRedis
from guard_agent.core.intake.leftovers import Leftovers
from guard_agent.core.intake.pipeline import Pipeline, absorb_nothing
from guard_agent.core.intake.priority import EventPriorities
from guard_agent.core.intake.ring import Ring
from guard_agent.core.interfaces import Aggregated, DestinationDepth, DropReason, Level, Record
from guard_agent.core.ledger import Ledger
from guard_agent.core.models import AgentStatus
from guard_agent.core.processes import ProcessHooks
from guard_agent.core.reentry import mark
from guard_agent.core.rules.engine_link import update_rule_managers
from guard_agent.core.rules.keeper import RuleKeeper, cache_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from guard_agent.core.assembly.plan import Plan
    from guard_agent.core.config import AgentConfig
    from guard_agent.core.intake.pipeline import Absorber
    from guard_agent.core.interfaces import Aggregator, Kind
    from guard_agent.core.ledger import Balance
    from guard_agent.core.models import DynamicRules

logger = logging.getLogger("guard_agent")

STOP_SLACK = 0.1
"""Seconds on top of the time to stop before a thread that does not end is left behind."""
_FIRST_RULES_TIMEOUT = 2.0
_CALL_MARGIN = 1.25
"""A call into a plugin may take this much of ``timeout``, which a plugin keeps by itself."""
_STORE_LIMIT = 10.0
_START_RETRY = 1.0
_NO_ABSORBERS: Mapping[Kind, Absorber] = {"event": absorb_nothing, "metric": absorb_nothing}


class _Run:
    """Everything that lives from one start to the next stop."""

    def __init__(self, plan: Plan, config: AgentConfig) -> None:
        components = plan.build()
        trace = trace_from_environment()
        self.inside = mark()
        self.on_error = ErrorCallback(config.on_error)
        names = tuple(transport.context.instance for transport in components.transports)
        self.started_at = time.monotonic()
        self.aggregator = aggregator = components.aggregator
        self.ledger = Ledger(
            names, Aggregated if aggregator is None else partial(_books_of, aggregator)
        )
        self.pipeline = Pipeline(
            components.enrichers,
            aggregator,
            EventPriorities(config.event_priorities),
            inside=self.inside,
        )
        self.takers = self.pipeline.takers
        is_on = {"event": config.enable_events, "metric": config.enable_metrics}
        self.absorbers = {
            kind: absorber if is_on[kind] else absorb_nothing
            for kind, absorber in self.pipeline.absorbers.items()
        }
        self.ring = Ring(
            self.ledger,
            max_records=config.max_buffer_records,
            max_bytes=config.max_buffer_bytes,
            wake_at=config.buffer_size,
            watermark=config.high_watermark_ratio,
            on_wake=self._wake,
        )
        self.gates: dict[str, Gate] = {}
        books_lock = asyncio.Lock()
        call_limit = _CALL_MARGIN * config.timeout
        store_limit = min(_STORE_LIMIT, call_limit)
        durable = components.durable
        self.lanes = Lanes(
            SafeStore(components.memory, store_limit),
            None if durable is None else SafeStore(durable, store_limit),
        )
        self.destinations = {
            transport.context.instance: Destination(
                transport,
                self.lanes,
                self._gate(transport.collector, config),
                self.ledger.destinations[transport.context.instance],
                max_records=config.max_batch_records,
                max_bytes=config.max_batch_bytes,
                books_lock=books_lock,
                call_limit=call_limit,
                urgent=partial(self._urgent, transport.context.instance, config),
                on_error=self.on_error,
                trace=trace,
            )
            for transport in components.transports
        }
        self.keepers = [
            RuleKeeper(
                source,
                self._gate(source.collector, config),
                cache_path(source.context.state_dir, source),
                on_change=lambda _: update_rule_managers(),
            )
            for source in components.rules
        ]
        self.stopped: Future[None] | None = None
        self._plan = plan
        self._config = config
        self._store_limit = store_limit
        self._host: HostRedis | None = None
        self._adopting = asyncio.Lock()
        self._lock = threading.RLock()
        self._started = False
        self.start_again_at: float | None = None
        """When the thread could not be started: the monotonic time of the next attempt."""
        self._eager_rules = config.project_id is not None
        self.worker = Worker(
            ring=self.ring,
            aggregator=aggregator,
            ledger=self.ledger,
            store=self.lanes,
            destinations=list(self.destinations.values()),
            keepers=self.keepers,
            on_error=self.on_error,
            books_lock=books_lock,
            config=config,
            status=self.status,
        )

    def _gate(self, collector: str, config: AgentConfig) -> Gate:
        if collector not in self.gates:
            self.gates[collector] = Gate(
                rate=config.max_requests_per_second,
                backoff=config.backoff_factor,
                failure_threshold=config.retry_attempts + 1,
            )
        return self.gates[collector]

    def _urgent(self, destination: str, config: AgentConfig) -> bool:
        """Whether records will be dropped soon if this destination waits."""
        depth = self.worker.depths[destination]
        share = config.high_watermark_ratio
        return (
            self.ring.under_pressure()
            or depth.pending >= share * config.max_buffer_records
            or depth.bytes >= share * config.max_buffer_bytes
        )

    @property
    def started(self) -> bool:
        return self._started

    @property
    def holds_records(self) -> bool:
        """Whether anything was taken that is not in the store."""
        return bool(len(self.ring) or self.ledger.aggregated().open)

    def ensure_started(self) -> bool:
        """Start the thread if it never was; returns whether there is one."""
        if not self._started:
            self._start_once()
        return self._started

    def took_nothing(self, reason: DropReason | None, kind: Kind) -> None:
        """There is no record to put into the ring: it was dropped, or absorbed."""
        if reason is not None:
            self.ring.drop(reason, kind)
        elif not self._started:
            self.start_if_due()  # which the ring does otherwise

    def start_if_due(self) -> None:
        """The same, unless the last attempt failed a moment ago."""
        if self.start_again_at is None or time.monotonic() >= self.start_again_at:
            self.ensure_started()

    def _start_once(self) -> None:
        with self._lock:
            # A start that comes behind a stop would leave a thread that nobody ends.
            if self._started or self.stopped is not None:
                return
            first = self.start_again_at is None
            self.start_again_at = time.monotonic() + _START_RETRY
            if not process_hooks.may_start():
                return
            try:
                self.worker.start()
            except (RuntimeError, OSError) as error:
                # No threads or files here, or the interpreter is ending. Said once; records stay
                # bounded.
                if first:
                    logger.warning("guard-agent cannot start its thread yet: %s", error)
                return
            self._started = True
            self.start_again_at = None
        process_hooks.started()
        if self.aggregator is not None and (sentences := self.aggregator.explain()):
            logger.info("records are merged: %s", " ".join(sentences))
        if self._eager_rules:
            self.worker.want_rules()
        if self._host is not None:
            self.worker.submit(partial(self._adopt, self._host))

    # --- the Redis of the host application --------------------------------------------------------

    def use_redis(self, host: HostRedis) -> None:
        """Use it for what the owner has left open, as soon as the thread runs."""
        with self._lock:
            if self._host is host:
                return
            self._host = host
            if self._started:
                self.worker.submit(partial(self._adopt, host))

    async def _adopt(self, host: HostRedis) -> None:
        async with self._adopting:
            # In the agent's thread: it may import a package.
            if self.lanes.durable is None and (store := self._plan.adopt(host)) is not None:
                self.lanes.attach(SafeStore(store, self._store_limit))
                await self.worker.settle()
        if self.lanes.durable is not None:
            await Leftovers(host, self._take_leftover, self.worker.flush_to_store).take_over()

    def _take_leftover(self, kind: Kind, source: Mapping[str, Any]) -> bool:
        enabled = self._config.enable_events if kind == "event" else self._config.enable_metrics
        if not enabled:
            return True
        record = self.pipeline.encode(kind, source)
        if isinstance(record, Record):
            return self.ring.put(record, evict=False)
        self.ring.drop(record, kind)
        return True

    async def flush_to_store(self) -> bool:
        """See `Worker.flush_to_store`; waits for a store that is being adopted."""
        async with self._adopting:
            return await self.worker.flush_to_store()

    def stop(self, limit: float) -> Future[None]:
        """Close the ring, end the thread if there is one; the same future for everybody."""
        if self.aggregator is not None:
            self.aggregator.close()
        self.ring.close(DropReason.STOPPED)
        with self._lock:
            if self.stopped is not None:
                return self.stopped
            if self._started:
                self.stopped = self.worker.stop(limit)
                return self.stopped
            self.stopped = Future()
        self.worker.abandon()
        self.stopped.set_result(None)
        return self.stopped

    def _wake(self) -> None:
        if self.ensure_started():
            self.worker.wake()

    # --- what is known about it -------------------------------------------------------------------

    def balances(self, depths: Mapping[str, DestinationDepth]) -> dict[str, Balance]:
        """The books of every destination; exact when ``depths`` come from `Worker.look`."""
        with self.ring.locked():
            waiting = len(self.ring)
            return {
                name: self.ledger.balance(name, waiting + depths[name].pending)
                for name in self.destinations
            }

    def status(self, depths: Mapping[str, DestinationDepth]) -> AgentStatus:
        """The status report."""
        balances = self.balances(depths)
        errors = []
        down = 0
        for name, destination in self.destinations.items():
            gate = destination.gate
            if gate.state in (GateState.OPEN, GateState.HALF_OPEN, GateState.PAUSED):
                down += 1
                errors.append(f"{name}: {gate.state.value}: {destination.books.last_error}")
        if self.ring.under_pressure():
            errors.append("the buffer is nearly full")
        if (trouble := self.lanes.trouble) is not None and self.started:
            errors.append(f"the store is not available, records wait in memory: {trouble}")
        rules = {keeper.name: keeper.describe() for keeper in self.keepers}
        errors += [
            f"rules from {name}: {facts['error'] or 'not confirmed for a while'}"
            for name, facts in rules.items()
            if facts["error"] or facts["stale"]
        ]
        verdict: Literal["healthy", "degraded", "failed"] = "degraded" if errors else "healthy"
        if down == len(self.destinations) and self.ring.under_pressure():
            verdict = "failed"
        last = [b.last_success for b in self.ledger.destinations.values() if b.last_success]
        first = next(iter(balances.values()))
        level = self.worker.level
        return AgentStatus(
            timestamp=datetime.now(timezone.utc),
            status=verdict,
            uptime=time.monotonic() - self.started_at,
            events_sent=next(iter(self.ledger.destinations.values())).delivered_events,
            events_failed=sum(first.dropped.values()) + first.buried,
            buffer_size=max(balance.pending for balance in balances.values()),
            last_flush=datetime.fromtimestamp(max(last), timezone.utc) if last else None,
            errors=errors,
            pid=os.getpid(),
            plan=self._plan.names(),
            level=level.value,
            loss_window_seconds=None if level is Level.MEMORY else COMMIT_INTERVAL,
            store=dict(self.lanes.describe()),
            rollup={} if self.aggregator is None else _describe(self.aggregator),
            rules=rules,
            destinations={
                name: self._destination(name, balances[name], depths[name])
                for name in self.destinations
            },
        )

    def _destination(self, name: str, balance: Balance, depth: DestinationDepth) -> dict[str, Any]:
        destination, books = self.destinations[name], self.ledger.destinations[name]
        oldest = [time_ for time_ in (depth.oldest, self.ring.oldest) if time_ is not None]
        return {
            "accepted": balance.accepted,
            "delivered": balance.delivered,
            "dropped": balance.dropped,
            "buried": balance.buried,
            "merged": balance.merged,
            "dead_letters": depth.buried,
            "pending": balance.pending,
            "pending_bytes": depth.bytes + self.ring.bytes,
            "oldest_seconds": round(max(time.time() - min(oldest), 0.0), 3) if oldest else None,
            "requests": books.requests,
            "failures": books.failures,
            "breaker": destination.gate.state.value,
            "last_error": books.last_error,
        }


class Agent:
    """
    Takes records, and starts, flushes, stops and describes the work in the background.

    Nothing here waits for that work, besides the futures it returns.
    """

    def __init__(self, plan: Plan) -> None:
        self._use(plan)
        # Reentrant: a signal handler or a finalizer may come back here in the same thread.
        self._lock = threading.RLock()
        self._building = False
        self._run: _Run | None = None
        self._host: HostRedis | None = None
        self._diverted: tuple[Plan, _Run | None] | None = None
        self.absorbers = _NO_ABSORBERS
        """
        Of each kind the function to ask before `take`: whether it has counted the record, with
        which there is nothing else to do. That is so for most records in a flood, where each
        further step costs three times as much as in a loop. Those of the present run, once it has
        started.
        """
        self._current()
        _agents.add(self)

    # --- records ----------------------------------------------------------------------------------

    def record(self, kind: Kind, source: Any) -> Record | None:
        """
        Take a record without waiting, unless its kind is switched off.

        Never raises, but for the policy ``raise``.

        Returns:
            None, or with the policy ``block`` the record for which there is no room: the caller
            passes it to `block_until_room` or `await_room`.

        Raises:
            BufferFullError: there is no room and the policy is ``raise``.
        """
        # The faces of the agent do the same without this call, which each record would pay for.
        return None if self.absorbers[kind](source) else self.take(kind, source)

    def take(self, kind: Kind, source: Any) -> Record | None:  # noqa: PLR0911 - one line a case
        """`record` for what was not only to be counted."""
        if kind in self._disabled:
            return None
        run = self._run
        if run is None:
            if mark().agent:
                return None  # caused by building the very run that would count it
            run = self._current()
        if run.inside.agent:
            run.ring.drop(DropReason.INTERNAL, kind)
            return None
        if run.stopped is not None:
            # Nothing compiled is entered any more: a daemon thread that records until the very end
            # of the interpreter would be torn out of it, which aborts the process.
            run.ring.drop(DropReason.STOPPED, kind)
            return None
        if self.absorbers is not run.absorbers and run.started:
            self.absorbers = run.absorbers
        record = run.takers[kind](source)
        if type(record) is not Record:
            run.took_nothing(record, kind)  # type: ignore[arg-type]  # the type of a tuple is known
            return None
        if run.ring.put(record, self._evict):
            if run.start_again_at is not None:
                run.start_if_due()
            return None
        return self._no_room(run, record)

    def _no_room(self, run: _Run, record: Record) -> Record:
        """As the policy says, which is not to drop."""
        if self.config.buffer_overflow_policy == "block":
            return record
        run.ring.drop(DropReason.OVERFLOW, record.kind)
        msg = (
            f"the buffer holds {len(run.ring)} records and {run.ring.bytes} bytes, and "
            "buffer_overflow_policy is 'raise'"
        )
        raise BufferFullError(msg)

    def block_until_room(self, record: Record, *, wait: bool = True) -> None:
        """Have the calling thread wait for room, ``block_timeout`` at most; then drop."""
        run = self._current()
        deadline = time.monotonic() + (self.config.block_timeout if wait else 0)
        while not run.ring.put(record, evict=False):
            if (left := deadline - time.monotonic()) <= 0:
                run.ring.drop(DropReason.OVERFLOW, record.kind)
                return
            run.ring.wait_for_room(left)

    async def await_room(self, record: Record) -> None:
        """The same for a coroutine: its loop runs on meanwhile."""
        run = self._current()
        deadline = time.monotonic() + self.config.block_timeout
        loop = asyncio.get_running_loop()
        try:
            while not run.ring.put(record, evict=False):
                if (left := deadline - time.monotonic()) <= 0:
                    run.ring.drop(DropReason.OVERFLOW, record.kind)
                    return
                room = asyncio.Event()
                run.ring.call_when_room(partial(loop.call_soon_threadsafe, room.set))
                # A wake-up between `put` and here is missed at worst: the wait is bounded.
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(room.wait(), min(left, 0.05))
        except asyncio.CancelledError:
            run.ring.drop(DropReason.OVERFLOW, record.kind)
            raise

    # --- lifecycle --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the background work; returns at once. Idempotent, also after `stop`."""
        with self._lock:
            if self._run is not None and self._run.stopped is not None:
                self._run = None
        self._current().ensure_started()

    def stop(self, timeout: float | None = None) -> Future[None]:
        """
        Deliver what can be delivered and end, within ``timeout`` seconds (``stop_timeout``).

        Idempotent; the same future for everybody. What is recorded from now on is dropped.
        """
        with self._lock:
            if self._building:  # a signal handler, in the thread that builds: nothing runs yet
                return _done(None)
        return self._current().stop(self.config.stop_timeout if timeout is None else timeout)

    def divert(self, plan: Plan) -> Future[None]:
        """
        Run on ``plan`` from the next record or start on, until `give_back`; for tests of apps.

        What runs now is stopped as `stop` does, and the future is done when it has ended.
        """
        with self._lock:
            run, self._run = self._run, None
            stopped = run is not None and run.stopped is not None
            self._diverted = (self.plan, run if stopped else None)
            timeout = self.config.stop_timeout
            self._use(plan)
        return _done(None) if run is None else run.stop(timeout)

    def give_back(self) -> Future[None]:
        """End what `divert` began: what was stopped is, and what ran runs from the next record."""
        with self._lock:
            if self._diverted is None:
                return _done(None)
            (plan, before), self._diverted = self._diverted, None
            run, self._run = self._run, before
            timeout = self.config.stop_timeout
            self._use(plan)
        return _done(None) if run is None else run.stop(timeout)

    def _use(self, plan: Plan) -> None:
        self.plan, self.config = plan, plan.config
        self._evict = self.config.buffer_overflow_policy == "drop"
        enabled = {"event": plan.config.enable_events, "metric": plan.config.enable_metrics}
        self._disabled = frozenset(kind for kind, is_on in enabled.items() if not is_on)

    @property
    def in_own_thread(self) -> bool:
        """Whether a plugin or callback asks, for whom waiting would be waiting for itself."""
        run = self._run
        return run is not None and (run.worker.is_current_thread or run.on_error.is_current_thread)

    @property
    def running(self) -> bool:
        run = self._run
        return run is not None and run.started and run.stopped is None

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called since it last started."""
        run = self._run
        return run is not None and run.stopped is not None

    def flush(self) -> Future[Any]:
        """Store and send what was taken so far; see `Worker.flush`."""
        run = self._current()
        if not run.started and not (run.holds_records and run.ensure_started()):
            return _done(None)
        return run.worker.submit(run.worker.flush)

    def flush_to_store(self) -> Future[Any]:
        """Bring what was taken so far to the store; see `Worker.flush_to_store`."""
        run = self._current()
        if run.stopped is not None or not run.ensure_started():
            return _done(False)
        return run.worker.submit(run.flush_to_store)

    # --- dead letters -----------------------------------------------------------------------------

    def dead_letters(self) -> Future[Any]:
        """What each destination refused for good; see `Worker.dead_letters`."""
        run = self._current()
        if run.stopped is not None or not run.ensure_started():
            return _done({})
        return run.worker.submit(run.worker.dead_letters)

    def replay(self, destination: str | None, limit: int | None) -> Future[Any]:
        """
        Make dead letters ready again, of one destination or of all.

        Raises:
            ValueError: there is no such destination.
        """
        run = self._current()
        if destination is not None and destination not in run.destinations:
            known = ", ".join(run.destinations)
            msg = f"there is no destination {destination!r}; there are: {known}"
            raise ValueError(msg)
        if run.stopped is not None or not run.ensure_started():
            return _done(0)
        names = list(run.destinations) if destination is None else [destination]
        most = sys.maxsize if limit is None else limit

        async def replay() -> int:
            replayed = 0
            for name in names:
                replayed += await run.worker.replay(name, most - replayed)
            return replayed

        return run.worker.submit(replay)

    # --- rules, status ----------------------------------------------------------------------------

    def rules(self) -> DynamicRules | None:
        """The rules in force. Reads memory only."""
        run = self._current()
        if run.keepers and run.stopped is None and run.ensure_started():
            run.worker.want_rules()
        return next((rules for k in run.keepers if (rules := k.current) is not None), None)

    def first_rules(self) -> Future[Any]:
        """Done when a rule source has answered for the first time, or after two seconds."""
        run = self._current()
        if not run.keepers or run.stopped is not None or not run.ensure_started():
            return _done(None)
        return run.worker.submit(lambda: run.worker.first_rules(_FIRST_RULES_TIMEOUT))

    def look(self) -> Future[Any]:
        """Done with a status in which all books agree; None when the agent does not run."""
        run = self._current()
        if not run.started or run.stopped is not None:
            return _done(None)

        async def look() -> AgentStatus:
            # In the agent's thread, where nothing moves between the look and the sum.
            return run.status(await run.worker.look())

        return run.worker.submit(look)

    def status(self) -> AgentStatus:
        """How the agent is, as of the last look at the store."""
        run = self._current()
        return run.status(run.worker.depths)

    def balances(self) -> dict[str, Balance]:
        """The books of every destination, as of the last look at the store."""
        run = self._current()
        return run.balances(run.worker.depths)

    def healthy(self) -> bool:
        """Whether records are taken and at least one destination can be reached."""
        run = self._current()
        reachable = any(
            destination.gate.state not in (GateState.OPEN, GateState.PAUSED)
            for destination in run.destinations.values()
        )
        return self.running and reachable and not run.ring.under_pressure()

    def stats(self) -> dict[str, Any]:
        """Numbers for people and dashboards; reads memory only."""
        run = self._current()
        status = run.status(run.worker.depths)
        books = run.ledger.destinations.values()
        primary = next(iter(books))
        gates = [destination.gate for destination in run.destinations.values()]
        fetched = sum(keeper.fetched for keeper in run.keepers)
        updates = [keeper.last_update for keeper in run.keepers if keeper.last_update]
        ledger = run.ledger
        dropped = sum(ledger.dropped.values()) + sum(primary.dropped.values()) + primary.buried
        sent_metrics = primary.delivered - primary.delivered_events
        absorbed = ledger.aggregated()
        failures = max((gate.failures for gate in gates), default=0)
        return {
            "running": self.running,
            "uptime": status.uptime,
            "events_sent": primary.delivered_events,
            "metrics_sent": sent_metrics,
            "events_failed": dropped - ledger.dropped_metrics,
            "metrics_failed": ledger.dropped_metrics,
            "rules_fetched": fetched,
            "buffer_stats": {
                "level": run.worker.level.value,
                "current_size": status.buffer_size,
                "waiting": len(run.ring),
                "bytes": run.ring.bytes,
                "last_flush_time": status.last_flush,
                # As 3.x named them. A store does not tell which kind it gave up: that counts as
                # events.
                "events_buffered": ledger.accepted - ledger.accepted_metrics + absorbed.events,
                "metrics_buffered": ledger.accepted_metrics + absorbed.metrics,
                "events_flushed": primary.delivered_events,
                "metrics_flushed": sent_metrics,
                "events_dropped": dropped - ledger.dropped_metrics,
                "metrics_dropped": ledger.dropped_metrics,
                "current_event_buffer_size": max(status.buffer_size - run.ring.metrics, 0),
                "current_metric_buffer_size": run.ring.metrics,
                "redis_persist_failures": run.lanes.failures,
                "durability_degraded": run.lanes.trouble is not None,
                "auto_flush_running": self.running,
            },
            "transport_stats": {
                "requests_sent": sum(b.requests - b.failures for b in books),
                "requests_failed": sum(b.failures for b in books),
                "bytes_sent": sum(b.delivered_bytes for b in books),
                "circuit_breaker_state": _worst(gates).upper(),
                "failure_count": failures,
                "session_closed": not self.running,
            },
            "cached_rules": any(keeper.current is not None for keeper in run.keepers),
            "rules_last_update": max(updates, default=0.0),
            "rules": status.rules,
            "loop_failures": {
                "flush": failures,
                "status": 0 if run.worker.last_report_ok is not False else 1,
                "rules": sum(1 for keeper in run.keepers if keeper.last_error),
            },
            "last_status_push_ok": run.worker.last_report_ok,
            "destinations": status.destinations,
        }

    def use_redis(self, handler: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        """
        Use the Redis of the host application, unless the owner has chosen a store.

        Returns at once. ``loop`` is the event loop to which the handler belongs, if it has one.
        """
        if handler is None:
            return
        with self._lock:
            host = self._host
            if host is None or host.handler is not handler or host.loop is not loop:
                host = self._host = HostRedis(handler, loop)
        self._current().use_redis(host)

    # --- inside -----------------------------------------------------------------------------------

    def _current(self) -> _Run:
        run = self._run
        if run is not None:
            return run
        with self._lock:
            if self._building:
                msg = "the agent was called by something that building it called"
                raise GuardAgentError(msg)
            if self._run is None:
                inside = mark()
                self._building = inside.agent = True
                try:
                    self._run = _Run(self.plan, self.config)
                    if self._host is not None:
                        self._run.use_redis(self._host)
                finally:
                    self._building = inside.agent = False
            return self._run

    def _after_fork(self) -> None:
        """In the child: forget the parent's run, without touching anything it holds open."""
        if self._run is not None:
            _inherited.append(self._run)
        self._run = None
        self.absorbers = _NO_ABSORBERS
        if self._host is not None:  # whose event loop does not run here
            self._host = HostRedis(self._host.handler, None)
        self._building = False
        self._lock = threading.RLock()

    def _at_exit(self) -> Callable[[], None] | None:
        """Begin to stop; returns what waits for it."""
        run = self._run
        if run is None or not (run.started or (run.holds_records and run.ensure_started())):
            return None
        return partial(_wait, self.stop(), self.config.stop_timeout + STOP_SLACK)


def _books_of(aggregator: Aggregator) -> Aggregated:
    return aggregator.books


def _describe(aggregator: Aggregator) -> dict[str, Any]:
    books = aggregator.books
    return {
        "name": aggregator.context.instance,
        "interval": aggregator.interval,
        "absorbed": books.absorbed,
        "open": books.open,
        **aggregator.describe(),
    }


_agents: weakref.WeakSet[Agent] = weakref.WeakSet()
_inherited: list[_Run] = []
"""
Runs of parent processes. Kept alive on purpose: collecting them would close the parent's sockets
and files from the child.
"""


def living_agents() -> list[Agent]:
    """All agents of this process that somebody still refers to."""
    return list(_agents)


def _stop_all() -> None:
    # All at once: the time to stop is that of the process.
    for wait in [agent._at_exit() for agent in list(_agents)]:  # noqa: SLF001 - hook of this class
        if wait is not None:
            wait()


def _forget_all() -> None:
    mark().agent = False
    for agent in list(_agents):
        agent._after_fork()  # noqa: SLF001 - the process hook of this class


process_hooks = ProcessHooks(_stop_all)
process_hooks.on_fork(_forget_all)


def _wait(future: Future[Any], timeout: float) -> None:
    try:
        future.result(timeout)
    except Exception:
        logger.debug("the agent did not end in time", exc_info=True)


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def _worst(gates: list[Gate]) -> str:
    states = [gate.state for gate in gates]
    order = [GateState.PAUSED, GateState.OPEN, GateState.HALF_OPEN, GateState.THROTTLED]
    return next((state.value for state in order if state in states), GateState.CLOSED.value)
