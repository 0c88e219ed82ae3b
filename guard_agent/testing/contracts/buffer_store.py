"""
What every buffer store must do, test by test, and then in sequences that hypothesis makes up.

A store passes by subclassing the suite where pytest finds it::

    class TestMyStore(BufferStoreContract):
        plugin = MyStore

        def settings(self):
            return {"path": str(self.folder / "records")}

What a store needs from outside, such as the address of a server, comes from an autouse fixture of
the subclass that keeps it on ``self``. A store with bounds of its own overrides
``make_store``. The suite uses the store's own clock: where time must pass it takes short leases and
asks until they are over.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

import pytest

from guard_agent import (
    Appended,
    BufferStore,
    DestinationDepth,
    Lease,
    Level,
    Peeked,
    PluginContext,
    Priority,
    Record,
)
from guard_agent.core.agent import Agent
from guard_agent.core.assembly.inspection import STORE, Seam
from guard_agent.testing.contracts.base import Contract, ResourceContract
from guard_agent.testing.records import make_context, make_event, make_record, make_records
from guard_agent.testing.transports import RecordingTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from guard_agent import HostRedis

LONG = 60.0
"""Seconds no test ever waits for."""
SHORT = 0.05
"""Seconds after which a short lease or delay is over."""
PATIENCE = 10.0
"""Seconds to wait for a store to see that time has passed."""
MANY_BYTES = 1024 * 1024

ONE = ("one",)
TWO = ("one", "two")


class BufferStoreBehaviour(Contract):
    """
    What a store does, whoever makes it: for one that is no plugin.

    All of it is part of `BufferStoreContract`.
    """

    dead_letter_limit: ClassVar[int] = 1000
    """How many dead letters a store from ``make_store`` keeps; a small number is quicker, but at
    least 40."""

    _state_dir: Path

    @abstractmethod
    def make_store(self, context: PluginContext) -> BufferStore:
        """
        A new store that is not open.

        Its bounds are those of ``context.config``. Stores made with the same context keep the same
        records; ``context.config.project_id`` is unique for each context, and can keep stores on
        one server apart, and so is ``context.state_dir``.
        """
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _state(self, tmp_path: Path) -> None:
        self._state_dir = tmp_path

    @asynccontextmanager
    async def opened(
        self, destinations: tuple[str, ...] = ONE, **config: Any
    ) -> AsyncIterator[BufferStore]:
        """An open, empty store for ``destinations``; ``config`` are fields of `AgentConfig`."""
        store = self.make_store(self.context(destinations, **config))
        try:
            await store.open()
            yield store
        finally:
            await store.close()

    def context(self, destinations: tuple[str, ...] | None = None, **config: Any) -> PluginContext:
        project = f"contract-{uuid4().hex}"
        return make_context(
            self._state_dir / project,
            instance="store",
            destinations=ONE if destinations is None else destinations,
            **{"project_id": project, "max_batch_bytes": 65_536, **config},
        )

    # --- open, close, empty -------------------------------------------------------------------

    async def test_close_without_open_is_safe(self) -> None:
        store = self.make_store(self.context())

        await store.close()

    async def test_close_is_idempotent(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(1), evict=True)
            await store.close()
            await store.close()

    @pytest.mark.parametrize("destinations", [ONE, TWO])
    async def test_a_new_store_is_empty(self, destinations: tuple[str, ...]) -> None:
        async with self.opened(destinations) as store:
            assert await store.stats() == {name: DestinationDepth() for name in destinations}
            for name in destinations:
                assert await lease_all(store, name) is None
                assert list(await store.dead_letters(name)) == []
            assert await store.release_expired() == 0

    @pytest.mark.parametrize("evict", [True, False])
    async def test_appending_nothing_changes_nothing(self, evict: bool) -> None:
        async with self.opened() as store:
            assert await store.append([], evict=evict) == Appended(0)
            assert await depth(store) == DestinationDepth()

    async def test_no_ids_change_nothing(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(2), evict=True)
            lease = await must_lease(store)

            assert await store.ack(lease, []) == 0
            assert await store.release(lease, []) == 0
            assert await store.bury(lease, [], "none") == 0
            assert counts(await depth(store)) == (0, 2, 0)

    async def test_unknown_ids_change_nothing(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(2), evict=True)
            lease = await must_lease(store)
            done = next(iter(lease.entries))
            await store.ack(lease, [done])

            assert await store.ack(lease, [done]) == 0
            assert await store.release(lease, [done]) == 0
            assert await store.bury(lease, [done], "gone") == 0
            assert counts(await depth(store)) == (0, 1, 0)

    # --- append and lease ---------------------------------------------------------------------

    @pytest.mark.parametrize("amount", [1, 2, 500])
    async def test_what_is_appended_can_be_leased_as_it_was(self, amount: int) -> None:
        records = make_records(amount)
        async with self.opened() as store:
            assert await store.append(records, evict=True) == Appended(amount)

            lease = await must_lease(store)

            assert lease.destination == "one"
            assert len(lease.entries) == amount
            assert list(lease.entries.values()) == records

    async def test_every_field_of_a_record_survives(self) -> None:
        records = [
            make_record(1, kind="event", priority=Priority.ATTACK, reason="\u00fc\u2028\U0001f6e1"),
            make_record(2, kind="metric", priority=Priority.METRIC, value=0.5),
        ]
        async with self.opened() as store:
            await store.append(records, evict=True)

            leased = list((await must_lease(store)).entries.values())

        assert leased == records
        assert [type(record) for record in leased] == [Record, Record]
        assert [type(record.priority) for record in leased] == [Priority, Priority]

    async def test_the_same_record_appended_twice_is_two_entries(self) -> None:
        """Telling records apart by their id is the collector's job."""
        async with self.opened() as store:
            await store.append([make_record(1)], evict=True)
            await store.append([make_record(1)], evict=True)

            lease = await must_lease(store)

            assert numbers(lease) == [1, 1]
            assert await store.ack(lease, list(lease.entries)[:1]) == 1
            assert counts(await depth(store)) == (0, 1, 0)

    async def test_the_highest_priority_is_leased_first_and_the_oldest_within_it(self) -> None:
        order = [Priority.METRIC, Priority.ATTACK, Priority.CHANGE, Priority.DIAGNOSTIC]
        records = [make_record(n, priority=order[n % 4]) for n in range(12)]
        async with self.opened() as store:
            await store.append(records[:5], evict=True)
            await store.append(records[5:], evict=True)

            lease = await must_lease(store)

        assert numbers(lease) == [1, 5, 9, 2, 6, 10, 3, 7, 11, 0, 4, 8]

    async def test_a_later_higher_priority_goes_before_what_waits(self) -> None:
        async with self.opened() as store:
            await store.append([make_record(1, priority=Priority.METRIC)], evict=True)
            await store.append([make_record(2, priority=Priority.ATTACK)], evict=True)

            assert numbers(await must_lease(store, max_records=1)) == [2]
            assert numbers(await must_lease(store, max_records=1)) == [1]

    async def test_a_flood_of_one_priority_leaves_a_share_of_each_lease_to_those_below(
        self,
    ) -> None:
        async with self.opened() as store:
            flood = [make_record(n, priority=Priority.ATTACK) for n in range(1, 61)]
            others = [
                make_record(60 + n, priority=priority)
                for n, priority in enumerate(
                    [Priority.CHANGE, Priority.DIAGNOSTIC, Priority.METRIC] * 4, 1
                )
            ]
            await store.append([*flood, *others], evict=True)

            first = numbers(await must_lease(store, max_records=16))
            second = numbers(await must_lease(store, max_records=16))
            rest = [
                number
                for _ in range(10)
                if (lease := await lease_all(store)) is not None
                for number in numbers(lease)
            ]

            assert first == [*range(1, 11), 61, 64, 62, 65, 63, 66]
            assert second == [*range(11, 21), 67, 70, 68, 71, 69, 72]
            assert sorted([*first, *second, *rest]) == list(range(1, 73))

    async def test_the_share_of_those_below_is_one_of_bytes_too(self) -> None:
        async with self.opened() as store:
            flood = [make_record(n, size=100, priority=Priority.ATTACK) for n in range(1, 41)]
            below = [make_record(n, size=100, priority=Priority.METRIC) for n in range(41, 45)]
            await store.append([*flood, *below], evict=True)

            lease = await must_lease(store, max_bytes=1600)

            assert numbers(lease) == [*range(1, 15), 41, 42]

    async def test_without_anything_below_a_lease_is_full(self) -> None:
        async with self.opened() as store:
            records = [make_record(n, priority=Priority.ATTACK) for n in range(1, 21)]
            await store.append(records, evict=True)

            assert numbers(await must_lease(store, max_records=16)) == [*range(1, 17)]

    async def test_a_small_lease_is_for_the_highest_priority_alone(self) -> None:
        async with self.opened() as store:
            flood = [make_record(n, priority=Priority.ATTACK) for n in range(1, 9)]
            await store.append([*flood, make_record(9, priority=Priority.METRIC)], evict=True)

            assert numbers(await must_lease(store, max_records=7)) == [*range(1, 8)]

    async def test_a_lease_holds_at_most_max_records(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(5), evict=True)

            assert numbers(await must_lease(store, max_records=2)) == [1, 2]
            assert numbers(await must_lease(store, max_records=2)) == [3, 4]
            assert numbers(await must_lease(store, max_records=2)) == [5]
            assert await lease_all(store) is None

    async def test_a_lease_holds_at_most_max_bytes(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(5, size=100), evict=True)

            assert numbers(await must_lease(store, max_bytes=299)) == [1, 2]
            assert numbers(await must_lease(store, max_bytes=300)) == [3, 4, 5]

    async def test_what_does_not_fit_one_lease_is_first_in_the_next(self) -> None:
        async with self.opened() as store:
            sizes = [100, 400, 100]
            records = [make_record(n, size=size) for n, size in enumerate(sizes, 1)]
            await store.append(records, evict=True)

            taken = [numbers(await must_lease(store, max_bytes=400)) for _ in range(3)]

        assert taken == [[1], [2], [3]]

    async def test_a_record_larger_than_max_bytes_is_leased_alone(self) -> None:
        async with self.opened() as store:
            await store.append(
                [make_record(1, size=1000), make_record(2, size=100)],
                evict=True,
            )

            assert numbers(await must_lease(store, max_bytes=500)) == [1]
            assert numbers(await must_lease(store, max_bytes=500)) == [2]

    async def test_what_is_leased_is_not_leased_again(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(3), evict=True)
            first = await must_lease(store, max_records=2)
            second = await must_lease(store)

            assert numbers(second) == [3]
            assert first.id != second.id
            assert set(first.entries).isdisjoint(second.entries)
            assert await lease_all(store) is None

    async def test_concurrent_leases_share_nothing(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(40), evict=True)

            leases = await asyncio.gather(
                *(store.lease("one", 10, MANY_BYTES, LONG) for _ in range(4))
            )

            taken = [n for lease in leases if lease is not None for n in numbers(lease)]
            assert sorted(taken) == list(range(1, 41))

    # --- ack ----------------------------------------------------------------------------------

    async def test_an_acknowledged_record_is_gone(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(3), evict=True)
            lease = await must_lease(store)

            assert await store.ack(lease, entries_of(lease, 1, 3)) == 2
            assert counts(await depth(store)) == (0, 1, 0)
            assert await store.release(lease, list(lease.entries)) == 1
            assert numbers(await must_lease(store)) == [2]

    async def test_ack_counts_only_what_was_pending(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(3), evict=True)
            lease = await must_lease(store)
            ids = list(lease.entries)

            assert await store.ack(lease, [ids[0], ids[0]]) == 1
            assert await store.ack(lease, ids) == 2
            assert await store.ack(lease, ids) == 0
            assert await depth(store) == DestinationDepth()

    async def test_ack_after_the_lease_expired_counts(self) -> None:
        """Delivered is delivered: ack is not fenced."""
        async with self.opened() as store:
            await store.append(make_records(2), evict=True)
            late = await must_lease(store, ttl=SHORT)
            assert await expire(store) == 2

            assert await store.ack(late, list(late.entries)) == 2
            assert await depth(store) == DestinationDepth()
            assert await lease_all(store) is None

    async def test_ack_counts_although_somebody_else_holds_the_record_by_now(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(2), evict=True)
            late = await must_lease(store, ttl=SHORT)
            await expire(store)
            present = await must_lease(store)
            ids = list(present.entries)

            assert await store.ack(late, list(late.entries)[:1]) == 1
            assert counts(await depth(store)) == (0, 1, 0)
            assert await store.release(present, ids) == 1
            assert await store.ack(present, ids) == 1
            assert await depth(store) == DestinationDepth()

    async def test_an_acknowledged_record_does_not_expire(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(2), evict=True)
            lease = await must_lease(store, ttl=SHORT)
            await store.ack(lease, entries_of(lease, 1))

            assert await expire(store) == 1
            assert numbers(await must_lease(store)) == [2]

    # --- release and expiry -------------------------------------------------------------------

    async def test_a_released_record_can_be_leased_at_once(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(3), evict=True)
            lease = await must_lease(store)

            assert await store.release(lease, entries_of(lease, 2)) == 1
            assert counts(await depth(store)) == (1, 2, 0)
            assert numbers(await must_lease(store)) == [2]

    async def test_released_records_take_their_old_places(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(6), evict=True)
            first = await must_lease(store, max_records=2)
            second = await must_lease(store, max_records=2)
            await store.append([make_record(9, priority=Priority.ATTACK)], evict=True)

            await store.release(second, list(second.entries))
            await store.release(first, list(first.entries)[::-1])

            assert numbers(await must_lease(store)) == [9, 1, 2, 3, 4, 5, 6]

    async def test_release_twice_releases_once(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(2), evict=True)
            lease = await must_lease(store)
            ids = list(lease.entries)

            assert await store.release(lease, [ids[0], ids[0]]) == 1
            assert await store.release(lease, ids) == 1
            assert await store.release(lease, ids) == 0
            assert numbers(await must_lease(store)) == [1, 2]
            assert await lease_all(store) is None

    async def test_release_leaves_alone_what_somebody_else_holds(self) -> None:
        """Release is fenced: a late owner must not take records from the present one."""
        async with self.opened() as store:
            await store.append(make_records(2), evict=True)
            late = await must_lease(store, ttl=SHORT)
            await expire(store)
            present = await must_lease(store)

            assert await store.release(late, list(late.entries)) == 0
            assert counts(await depth(store)) == (0, 2, 0)
            assert await lease_all(store) is None
            assert await store.ack(present, list(present.entries)) == 2

    async def test_release_with_a_delay_keeps_the_record_back(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(2), evict=True)
            lease = await must_lease(store)

            assert await store.release(lease, entries_of(lease, 1), delay=LONG) == 1
            assert await store.release(lease, entries_of(lease, 2)) == 1

            assert counts(await depth(store)) == (2, 0, 0)
            assert numbers(await must_lease(store)) == [2]
            assert await store.release_expired() == 0
            assert await lease_all(store) is None

    async def test_a_delayed_record_comes_back_after_its_delay(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(2), evict=True)
            lease = await must_lease(store)
            started = time.monotonic()
            await store.release(lease, list(lease.entries), delay=SHORT)

            taken: list[int] = []
            async for _ in patience("a record released with a delay never came back"):
                again = await lease_all(store)
                if again is not None:
                    # Half the delay: the store's clock may not be the one of this process.
                    assert time.monotonic() - started >= SHORT / 2
                    taken += numbers(again)
                if len(taken) == 2:
                    break

            assert sorted(taken) == [1, 2]

    async def test_an_expired_lease_gives_its_records_back(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(3), evict=True)
            short = await must_lease(store, max_records=2, ttl=SHORT)
            long = await must_lease(store, ttl=LONG)

            assert await expire(store) == 2
            assert await store.release_expired() == 0
            assert counts(await depth(store)) == (2, 1, 0)
            again = await must_lease(store)
            assert numbers(again) == [1, 2]
            assert len({short.id, long.id, again.id}) == 3
            assert await store.ack(long, list(long.entries)) == 1

    async def test_a_lease_that_lasts_does_not_expire(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(1), evict=True)
            await must_lease(store, ttl=LONG)

            assert await store.release_expired() == 0
            assert counts(await depth(store)) == (0, 1, 0)

    # --- bury ---------------------------------------------------------------------------------

    async def test_a_buried_record_becomes_a_dead_letter(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(3), evict=True)
            lease = await must_lease(store)

            assert await store.bury(lease, entries_of(lease, 2), "refused: 422") == 1
            assert await store.bury(lease, entries_of(lease, 1), "too large") == 1

            assert counts(await depth(store)) == (0, 1, 2)
            letters = await store.dead_letters("one")
            assert [(letter.record, letter.reason) for letter in letters] == [
                (make_record(2), "refused: 422"),
                (make_record(1), "too large"),
            ]
            assert await store.release(lease, list(lease.entries)) == 1
            assert numbers(await must_lease(store)) == [3]

    async def test_bury_twice_buries_once(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(2), evict=True)
            lease = await must_lease(store)
            ids = list(lease.entries)

            assert await store.bury(lease, [ids[0], ids[0]], "first") == 1
            assert await store.bury(lease, ids, "second") == 1
            assert await store.bury(lease, ids, "third") == 0
            assert await store.ack(lease, ids) == 0
            assert counts(await depth(store)) == (0, 0, 2)
            reasons = [letter.reason for letter in await store.dead_letters("one")]
            assert reasons == ["first", "second"]

    async def test_bury_leaves_alone_what_the_lease_no_longer_holds(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(2), evict=True)
            late = await must_lease(store, ttl=SHORT)
            await expire(store)

            assert await store.bury(late, list(late.entries), "late") == 0
            present = await must_lease(store)
            assert await store.bury(late, list(late.entries), "late") == 0
            assert counts(await depth(store)) == (0, 2, 0)
            assert await store.ack(present, list(present.entries)) == 2
            assert list(await store.dead_letters("one")) == []

    async def test_what_a_lease_gave_back_it_no_longer_holds(self) -> None:
        """Fencing is by entry: the lease itself goes on with the others."""
        async with self.opened() as store:
            await store.append(make_records(2), evict=True)
            first = await must_lease(store)
            given_back = entries_of(first, 1)
            await store.release(first, given_back)

            assert await store.bury(first, given_back, "late") == 0
            second = await must_lease(store)
            assert numbers(second) == [1]
            assert await store.bury(first, given_back, "late") == 0
            assert await store.release(first, given_back) == 0
            assert counts(await depth(store)) == (0, 2, 0)
            assert await store.release(second, list(second.entries)) == 1
            assert await store.release(first, list(first.entries)) == 1

    async def test_a_buried_record_does_not_expire(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(2), evict=True)
            lease = await must_lease(store, ttl=SHORT)
            await store.bury(lease, entries_of(lease, 1), "refused")

            assert await expire(store) == 1
            assert numbers(await must_lease(store)) == [2]

    async def test_the_oldest_dead_letters_make_room(self) -> None:
        limit = self.dead_letter_limit
        async with self.opened() as store:
            await store.append(make_records(limit + 3), evict=True)
            lease = await must_lease(store, max_records=limit + 3)

            assert await store.bury(lease, list(lease.entries), "refused") == limit + 3

            assert counts(await depth(store)) == (0, 0, limit)
            letters = await store.dead_letters("one")
            assert [letter.record.id for letter in letters] == [
                f"record-{n}" for n in range(4, limit + 4)
            ]

    async def test_dead_letters_take_no_room_from_records(self) -> None:
        async with self.opened(max_buffer_records=2) as store:
            await store.append(make_records(2), evict=False)
            lease = await must_lease(store)
            await store.bury(lease, list(lease.entries), "refused")

            more = [make_record(n) for n in (3, 4)]
            assert await store.append(more, evict=False) == Appended(2)

    # --- replay -------------------------------------------------------------------------------

    async def test_a_replayed_dead_letter_is_the_record_it_was(self) -> None:
        async with self.opened() as store:
            records = [
                make_record(1, priority=Priority.ATTACK),
                make_record(2, priority=Priority.METRIC, kind="metric"),
                make_record(3, size=3_000, note="caf\u00e9 \U0001f512"),
            ]
            await store.append(records, evict=True)
            lease = await must_lease(store)
            await store.bury(lease, list(lease.entries), "refused")

            assert await store.replay("one", 10) == 3

            assert counts(await depth(store)) == (3, 0, 0)
            assert list(await store.dead_letters("one")) == []
            again = await must_lease(store)
            assert list(again.entries.values()) == [records[0], records[2], records[1]]
            assert await store.ack(again, list(again.entries)) == 3
            assert await depth(store) == DestinationDepth()

    async def test_the_oldest_dead_letters_are_replayed_first(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(4), evict=True)
            lease = await must_lease(store)
            await store.bury(lease, list(lease.entries), "refused")

            assert await store.replay("one", 0) == 0
            assert await store.replay("one", 2) == 2

            assert counts(await depth(store)) == (2, 0, 2)
            assert numbers(await must_lease(store)) == [1, 2]
            letters = await store.dead_letters("one")
            assert [letter.record.id for letter in letters] == ["record-3", "record-4"]
            assert await store.replay("one", 100) == 2
            assert await store.replay("one", 100) == 0

    async def test_what_is_replayed_comes_behind_what_waits(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(1), evict=True)
            lease = await must_lease(store)
            await store.bury(lease, list(lease.entries), "refused")
            await store.append([make_record(2)], evict=True)

            assert await store.replay("one", 10) == 1

            assert numbers(await must_lease(store)) == [2, 1]

    async def test_what_is_replayed_can_be_buried_again(self) -> None:
        async with self.opened() as store:
            await store.append(make_records(2), evict=True)
            for reason in ("first", "second"):
                lease = await must_lease(store)
                await store.bury(lease, list(lease.entries), reason)
                assert counts(await depth(store)) == (0, 0, 2)
                letters = await store.dead_letters("one")
                assert [letter.reason for letter in letters] == [reason] * 2
                assert await store.replay("one", 10) == 2

    async def test_a_replay_concerns_one_destination_only(self) -> None:
        async with self.opened(TWO) as store:
            await store.append(make_records(3), evict=True)
            one = await must_lease(store, "one")
            await store.bury(one, list(one.entries), "refused")
            two = await must_lease(store, "two")
            await store.ack(two, entries_of(two, 1))
            await store.bury(two, entries_of(two, 2), "refused")

            assert await store.replay("one", 10) == 3

            stats = await store.stats()
            assert counts(stats["one"]) == (3, 0, 0)
            assert counts(stats["two"]) == (0, 1, 1)
            assert await store.lease("two", 10, MANY_BYTES, LONG) is None
            await store.release(two, list(two.entries))
            again = await must_lease(store, "two")
            assert numbers(again) == [3]
            await store.ack(again, list(again.entries))
            one = await must_lease(store, "one")
            assert numbers(one) == [1, 2, 3]
            assert await store.ack(one, list(one.entries)) == 3
            assert counts((await store.stats())["one"]) == (0, 0, 0)

    async def test_what_has_no_room_remains_a_dead_letter(self) -> None:
        async with self.opened(max_buffer_records=3) as store:
            await store.append(make_records(3), evict=False)
            lease = await must_lease(store)
            await store.bury(lease, list(lease.entries), "refused")
            await store.append([make_record(4), make_record(5)], evict=False)

            assert await store.replay("one", 10) == 1
            assert await store.replay("one", 10) == 0

            assert counts(await depth(store)) == (3, 0, 2)
            assert numbers(await must_lease(store)) == [4, 5, 1]

    async def test_what_is_replayed_can_be_evicted(self) -> None:
        async with self.opened(max_buffer_records=2) as store:
            await store.append(make_records(2, priority=Priority.METRIC), evict=False)
            lease = await must_lease(store)
            await store.bury(lease, list(lease.entries), "refused")
            await store.replay("one", 10)

            new = [make_record(n, priority=Priority.ATTACK) for n in (3, 4)]
            assert await store.append(new, evict=True) == Appended(2, {"one": 2})

            assert numbers(await must_lease(store)) == [3, 4]

    # --- destinations -------------------------------------------------------------------------

    async def test_every_destination_gets_every_record(self) -> None:
        async with self.opened(TWO) as store:
            await store.append(make_records(3), evict=True)

            one = await must_lease(store, "one")
            two = await must_lease(store, "two")

            assert (one.destination, two.destination) == TWO
            assert numbers(one) == numbers(two) == [1, 2, 3]

    async def test_a_destination_does_not_change_another(self) -> None:
        async with self.opened(TWO) as store:
            await store.append(make_records(4), evict=True)
            untouched = (await store.stats())["two"]
            one = await must_lease(store, "one")
            await store.ack(one, entries_of(one, 1))
            await store.bury(one, entries_of(one, 2), "refused")
            await store.release(one, entries_of(one, 3), delay=LONG)

            stats = await store.stats()

            assert counts(stats["one"]) == (1, 1, 1)
            assert stats["two"] == untouched
            assert list(await store.dead_letters("two")) == []
            assert numbers(await must_lease(store, "two")) == [1, 2, 3, 4]

    async def test_what_one_destination_has_the_other_still_gets(self) -> None:
        async with self.opened(TWO) as store:
            await store.append(make_records(2), evict=True)
            one = await must_lease(store, "one")
            await store.ack(one, list(one.entries))

            assert await lease_all(store, "one") is None
            two = await must_lease(store, "two")
            assert numbers(two) == [1, 2]
            assert await store.ack(two, list(two.entries)) == 2
            assert await store.stats() == {name: DestinationDepth() for name in TWO}

    async def test_a_lease_of_one_destination_does_not_ack_for_another(self) -> None:
        async with self.opened(TWO) as store:
            await store.append(make_records(2), evict=True)
            one = await must_lease(store, "one")
            two = await must_lease(store, "two")
            await store.ack(one, list(one.entries))

            assert await store.ack(one, list(one.entries)) == 0
            assert await store.release(two, list(two.entries)) == 2

    async def test_leases_of_all_destinations_expire(self) -> None:
        async with self.opened(TWO) as store:
            await store.append(make_records(2), evict=True)
            await must_lease(store, "one", ttl=SHORT)
            await must_lease(store, "two", ttl=SHORT)

            assert await expire(store, expected=4) == 4
            assert [counts(d) for d in (await store.stats()).values()] == [(2, 0, 0)] * 2

    # --- full ---------------------------------------------------------------------------------

    async def test_without_evict_a_full_store_takes_what_fits(self) -> None:
        async with self.opened(max_buffer_records=3) as store:
            assert await store.append(make_records(2), evict=False) == Appended(2)
            more = [make_record(n, priority=Priority.ATTACK) for n in (3, 4, 5)]

            assert await store.append(more, evict=False) == Appended(1)
            assert await store.append(more[1:], evict=False) == Appended(0)

            assert sorted(numbers(await must_lease(store))) == [1, 2, 3]

    async def test_without_evict_bytes_are_a_bound_too(self) -> None:
        async with self.opened(max_buffer_bytes=65_536) as store:
            records = make_records(5, size=20_000)

            assert await store.append(records, evict=False) == Appended(3)

            assert (await depth(store)).bytes == 60_000
            # What is smaller still fits, up to the last byte.
            assert await store.append([make_record(6, size=5_536)], evict=False) == Appended(1)
            assert await store.append([make_record(7, size=100)], evict=False) == Appended(0)

    async def test_room_is_back_once_every_destination_is_done(self) -> None:
        async with self.opened(TWO, max_buffer_records=2) as store:
            await store.append(make_records(2), evict=False)
            one = await must_lease(store, "one")
            two = await must_lease(store, "two")
            third = [make_record(3)]

            await store.ack(one, list(one.entries))
            assert await store.append(third, evict=False) == Appended(0)
            await store.ack(two, entries_of(two, 1))
            assert await store.append(third, evict=False) == Appended(1)
            assert await store.append(third, evict=False) == Appended(0)

    async def test_with_evict_the_oldest_of_the_lowest_priority_goes_first(self) -> None:
        kinds = [Priority.CHANGE, Priority.METRIC, Priority.ATTACK, Priority.METRIC]
        async with self.opened(max_buffer_records=4) as store:
            records = [make_record(n, priority=p) for n, p in enumerate(kinds, 1)]
            await store.append(records, evict=True)

            survivors = []
            for n in (5, 6, 7, 8):
                newcomer = make_record(n, priority=Priority.ATTACK)
                assert await store.append([newcomer], evict=True) == Appended(1, {"one": 1})
                lease = await must_lease(store)
                survivors.append(sorted(numbers(lease)))
                await store.release(lease, list(lease.entries))

        assert survivors == [[1, 3, 4, 5], [1, 3, 5, 6], [3, 5, 6, 7], [5, 6, 7, 8]]

    async def test_a_newcomer_lower_than_everything_is_the_one_given_up(self) -> None:
        async with self.opened(max_buffer_records=2) as store:
            records = [make_record(n, priority=Priority.CHANGE) for n in (1, 2)]
            await store.append(records, evict=True)
            newcomer = make_record(3, priority=Priority.METRIC)

            assert await store.append([newcomer], evict=True) == Appended(1, {"one": 1})

            assert numbers(await must_lease(store)) == [1, 2]

    async def test_one_append_larger_than_the_store_keeps_the_youngest(self) -> None:
        async with self.opened(max_buffer_records=3) as store:
            assert await store.append(make_records(10), evict=True) == Appended(10, {"one": 7})
            assert numbers(await must_lease(store)) == [8, 9, 10]

    async def test_with_evict_bytes_make_room(self) -> None:
        async with self.opened(max_buffer_bytes=65_536) as store:
            await store.append(make_records(6, size=10_000), evict=True)

            newcomer = make_record(7, size=25_536)
            assert await store.append([newcomer], evict=True) == Appended(1, {"one": 2})

            assert (await depth(store)).bytes == 65_536
            assert numbers(await must_lease(store)) == [3, 4, 5, 6, 7]

    async def test_a_newcomer_that_needs_the_room_of_something_higher_is_given_up(self) -> None:
        async with self.opened(max_buffer_bytes=65_536) as store:
            await store.append(
                [
                    make_record(1, size=60_000, priority=Priority.ATTACK),
                    make_record(2, size=1_000, priority=Priority.METRIC),
                ],
                evict=True,
            )
            newcomer = make_record(3, size=6_000, priority=Priority.METRIC)

            assert await store.append([newcomer], evict=True) == Appended(1, {"one": 1})
            assert (await depth(store)).bytes == 61_000

            # What stayed keeps its turn to make room.
            smaller = make_record(4, size=5_000, priority=Priority.METRIC)
            assert await store.append([smaller], evict=True) == Appended(1, {"one": 1})
            assert numbers(await must_lease(store)) == [1, 4]

    async def test_a_record_larger_than_the_store_takes_nothing_with_it(self) -> None:
        async with self.opened(max_buffer_bytes=65_536) as store:
            await store.append(make_records(2), evict=True)
            giant = make_record(3, size=65_537, priority=Priority.ATTACK)

            assert await store.append([giant], evict=True) == Appended(1, {"one": 1})
            assert await store.append([giant], evict=False) == Appended(0)

            assert numbers(await must_lease(store)) == [1, 2]

    async def test_a_leased_record_is_not_evicted(self) -> None:
        async with self.opened(max_buffer_records=3) as store:
            records = [make_record(n, priority=Priority.METRIC) for n in (1, 2, 3)]
            await store.append(records, evict=True)
            lease = await must_lease(store, max_records=2)

            more = [make_record(n, priority=Priority.ATTACK) for n in (4, 5)]
            assert await store.append(more, evict=True) == Appended(2, {"one": 2})

            # 3 made room for 4; then 4 was the only one not leased, and made room for 5.
            assert counts(await depth(store)) == (1, 2, 0)
            assert numbers(await must_lease(store)) == [5]
            assert await store.ack(lease, list(lease.entries)) == 2

    async def test_when_everything_is_leased_the_newcomer_is_given_up(self) -> None:
        async with self.opened(max_buffer_records=2) as store:
            await store.append(make_records(2), evict=True)
            await must_lease(store)
            newcomer = make_record(3, priority=Priority.ATTACK)

            assert await store.append([newcomer], evict=True) == Appended(1, {"one": 1})
            assert counts(await depth(store)) == (0, 2, 0)

    async def test_what_was_released_can_be_evicted_again(self) -> None:
        async with self.opened(max_buffer_records=2) as store:
            await store.append(make_records(2), evict=True)
            lease = await must_lease(store)
            refused = await store.append([make_record(3)], evict=True)
            await store.release(lease, entries_of(lease, 2), delay=LONG)
            await store.release(lease, entries_of(lease, 1))

            accepted = await store.append([make_record(4), make_record(5)], evict=True)

            assert refused == Appended(1, {"one": 1})
            assert accepted == Appended(2, {"one": 2})
            assert numbers(await must_lease(store)) == [4, 5]

    async def test_what_expired_can_be_evicted_again(self) -> None:
        async with self.opened(max_buffer_records=1) as store:
            await store.append(make_records(1), evict=True)
            late = await must_lease(store, ttl=SHORT)
            await expire(store)

            assert await store.append([make_record(2)], evict=True) == Appended(1, {"one": 1})
            assert await store.ack(late, list(late.entries)) == 0
            assert numbers(await must_lease(store)) == [2]

    async def test_evicted_counts_the_destinations_that_still_wanted_it(self) -> None:
        async with self.opened(TWO, max_buffer_records=2) as store:
            await store.append(make_records(2), evict=True)
            one = await must_lease(store, "one")
            await store.ack(one, entries_of(one, 1))
            await store.release(one, entries_of(one, 2))

            first = await store.append([make_record(3)], evict=True)
            second = await store.append([make_record(4)], evict=True)

            assert first == Appended(1, {"two": 1})
            assert second == Appended(1, {"one": 1, "two": 1})
            assert numbers(await must_lease(store, "one")) == [3, 4]
            assert numbers(await must_lease(store, "two")) == [3, 4]

    async def test_a_record_leased_by_one_destination_stays_for_all(self) -> None:
        async with self.opened(TWO, max_buffer_records=2) as store:
            await store.append(make_records(2), evict=True)
            one = await must_lease(store, "one", max_records=1)
            assert numbers(one) == [1]

            evicted = await store.append([make_record(3)], evict=True)

            assert evicted == Appended(1, {"one": 1, "two": 1})
            assert numbers(await must_lease(store, "two")) == [1, 3]

    async def test_what_the_lease_of_one_destination_kept_can_go_once_it_is_over(self) -> None:
        async with self.opened(TWO, max_buffer_records=1) as store:
            await store.append(make_records(1), evict=True)
            one = await must_lease(store, "one")
            refused = await store.append([make_record(2)], evict=True)
            await store.ack(one, list(one.entries))

            accepted = await store.append([make_record(3)], evict=True)

            assert refused == Appended(1, {"one": 1, "two": 1})
            assert accepted == Appended(1, {"two": 1})
            assert numbers(await must_lease(store, "one")) == [3]
            assert numbers(await must_lease(store, "two")) == [3]

    # --- stats --------------------------------------------------------------------------------

    async def test_stats_are_exact_after_every_step(self) -> None:
        async with self.opened(TWO) as store:
            await store.append(make_records(4, size=100), evict=True)
            first = make_record(1).accepted_at
            assert await depth(store) == DestinationDepth(ready=4, bytes=400, oldest=first)

            lease = await must_lease(store, max_records=3)
            assert await depth(store) == DestinationDepth(
                ready=1, leased=3, bytes=400, oldest=first
            )

            await store.ack(lease, entries_of(lease, 1))
            assert await depth(store) == DestinationDepth(
                ready=1, leased=2, bytes=300, oldest=first + 1
            )

            await store.release(lease, entries_of(lease, 3), delay=LONG)
            assert await depth(store) == DestinationDepth(
                ready=2, leased=1, bytes=300, oldest=first + 1
            )

            await store.bury(lease, entries_of(lease, 2), "refused")
            assert await depth(store) == DestinationDepth(
                ready=2, buried=1, bytes=200, oldest=first + 2
            )
            assert (await store.stats())["two"] == DestinationDepth(
                ready=4, bytes=400, oldest=first
            )

    async def test_the_oldest_is_the_oldest_whatever_its_priority(self) -> None:
        async with self.opened() as store:
            await store.append(
                [
                    make_record(1, priority=Priority.METRIC),
                    make_record(2, priority=Priority.ATTACK),
                ],
                evict=True,
            )
            lease = await must_lease(store, max_records=1)
            assert numbers(lease) == [2]
            await store.ack(lease, list(lease.entries))

            assert (await depth(store)).oldest == make_record(1).accepted_at

    @pytest.mark.parametrize("destinations", [ONE, TWO])
    async def test_no_record_disappears(self, destinations: tuple[str, ...]) -> None:
        """For every destination: appended == acknowledged + evicted + buried + pending."""
        appended = 0
        done: dict[str, dict[str, int]] = {
            name: {"acked": 0, "evicted": 0, "buried": 0} for name in destinations
        }
        leases: list[Lease] = []
        async with self.opened(destinations, max_buffer_records=20) as store:
            for step in range(40):
                records = [
                    make_record(step * 10 + n, priority=Priority((step + n) % 4))
                    for n in range(step % 5)
                ]
                result = await store.append(records, evict=step % 3 != 0)
                appended += result.stored
                for name, count in result.evicted.items():
                    done[name]["evicted"] += count

                destination = destinations[step % len(destinations)]
                lease = await store.lease(destination, 1 + step % 4, MANY_BYTES, LONG)
                if lease is not None:
                    leases.append(lease)
                if leases and step % 2:
                    old = leases.pop(0)
                    ids = list(old.entries)
                    # The last call gets all ids again: what is done must not count twice.
                    done[old.destination]["acked"] += await store.ack(old, ids[:1])
                    done[old.destination]["buried"] += await store.bury(old, ids[:2], "refused")
                    await store.release(old, ids)

                stats = await store.stats()
                for name in destinations:
                    assert appended == sum(done[name].values()) + stats[name].pending, name

            # Without these the equation would hold for a store that does nothing.
            assert appended > 40
            assert all(count for counted in done.values() for count in counted.values())


class BufferStoreContract(BufferStoreBehaviour, ResourceContract):
    """The contract of `guard_agent.BufferStore`."""

    seam: ClassVar[Seam] = STORE
    plugin: ClassVar[type[BufferStore]]

    states: ClassVar[Any] = None
    """
    Settings of hypothesis for the search through sequences of steps; None takes `STATES`.

    A failing sequence is made as short as possible, which can take minutes with a store that is not
    in memory; ``settings(STATES, phases=[Phase.generate])`` shows it as it was found.
    """
    states_seconds: ClassVar[float] = 30.0
    """When the search may end before all is tried; it is then on a slow machine."""

    shared: ClassVar[bool] = True
    """
    Whether open stores with the same context have the same records, as processes that share a
    database do. A store of the level memory is in one process, and is not asked.

    False for one that keeps what itself took over. What such a store leaves when it is closed, or
    its process dies, belongs to the next that opens: in its old order, ready, for the destinations
    that do not have it yet, with its dead letters. Then override ``kill`` as well.
    """

    def make_store(self, context: PluginContext) -> BufferStore:
        return self.plugin(self.plugin.Settings.model_validate(self.settings()), context)

    async def kill(self, store: BufferStore) -> None:
        """
        The process of ``store`` is dead: have those that open now see it.

        For a store that is not ``shared``, where it takes time until that is seen, as with a sign
        of life that ends. The store itself is not used any more, but for ``close``.
        """

    def host_redis(self) -> HostRedis | None:
        """
        What an application hands to ``initialize_redis``, for a store that comes from there alone.

        Such a store is not chosen by a configuration; the agent asks `BufferStore.adopt` for it.
        """
        return None

    def _choice(self) -> dict[str, Any]:
        return super()._choice() if self.host_redis() is None else {}

    def make(self) -> BufferStore:
        return self.make_store(self.context(**self.config()))

    def test_every_sequence_of_steps_has_the_result_of_the_model(self) -> None:
        """Two owners take turns, leases expire, owners crash and come back."""
        from guard_agent.testing.contracts import state_machine  # noqa: PLC0415 - needs hypothesis

        suite = self

        class Machine(state_machine.BufferStoreMachine):
            dead_letter_limit = suite.dead_letter_limit
            shared = suite.shared

            def make_store(self, context: PluginContext) -> BufferStore:
                return suite.make_store(context)

            async def kill(self, store: BufferStore) -> None:
                await suite.kill(store)

        state_machine.search(Machine, self.states or state_machine.STATES, self.states_seconds)

    async def work(self, plugin: BufferStore) -> None:
        await plugin.append(make_records(1), evict=True)

    async def test_it_can_be_composed_with_its_settings(self) -> None:
        host = self.host_redis()
        if host is None:
            await super().test_it_can_be_composed_with_its_settings()
            return
        plan = self.compose()

        store = plan.adopt(host)

        assert [str(problem) for problem in plan.problems if problem.code != "GA201"] == []
        assert type(store) is self.plugin
        assert store.settings == self.plugin.Settings.model_validate(self.settings())

    async def test_what_the_next_one_finds_is_what_the_level_promises(self) -> None:
        context = self.context(TWO)
        store = self.make_store(context)
        await store.open()
        await store.append(make_records(4), evict=True)
        one, two = [await must_lease(store, name) for name in TWO]
        await store.ack(one, entries_of(one, 1, 2))
        await store.bury(one, entries_of(one, 3), "refused")
        await store.release(one, entries_of(one, 4))
        await store.ack(two, entries_of(two, 1, 3))
        await store.release(two, entries_of(two, 2, 4))
        await store.close()

        store = self.make_store(context)
        try:
            await store.open()
            found = {name: counts(found) for name, found in (await store.stats()).items()}
            if self.plugin.level is Level.MEMORY:
                assert found == {"one": (0, 0, 0), "two": (0, 0, 0)}
                return
            assert found == {"one": (1, 0, 1), "two": (2, 0, 0)}
            assert numbers(await must_lease(store, "one")) == [4]
            assert numbers(await must_lease(store, "two")) == [2, 4]
            assert [
                (letter.record, letter.reason) for letter in await store.dead_letters("one")
            ] == [(make_record(3), "refused")]
        finally:
            await store.close()

    # --- peek ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def looked_into(
        self, destinations: tuple[str, ...] = ONE, **config: Any
    ) -> AsyncIterator[BufferStore]:
        """The same as ``opened``, of a store that one can look into; which is optional."""
        async with self.opened(destinations, **config) as store:
            if type(store).peek is BufferStore.peek:
                with pytest.raises(NotImplementedError):
                    await store.peek(destinations[0], None, 10)
                pytest.skip("peek() is not overridden: nobody can look into this store")
            yield store

    async def test_a_look_shows_what_waits_in_the_order_of_arrival(self) -> None:
        low = make_records(3, priority=Priority.METRIC, kind="metric")
        high = [make_record(n, priority=Priority.ATTACK) for n in (4, 5)]
        async with self.looked_into() as store:
            nothing = await store.peek("one", None, 100)
            await store.append(low, evict=True)
            await store.append(high, evict=True)

            found = await store.peek("one", None, 100)

        assert (list(nothing.records), nothing.passed) == ([], 0)
        assert (list(found.records), found.passed) == ([*low, *high], 0)
        assert [type(record) for record in found.records] == [Record] * 5
        assert type(found.position) is str

    async def test_a_look_takes_nothing_and_changes_nothing(self) -> None:
        async with self.looked_into(TWO) as store:
            await store.append(make_records(4), evict=True)
            lease = await must_lease(store, max_records=2)
            await store.bury(lease, entries_of(lease, 2), "refused")
            before, letters = await store.stats(), list(await store.dead_letters("one"))

            looks = [await store.peek("one", None, limit) for limit in (100, 100, 2, 0)]

            assert [seen(look) for look in looks[:2]] == [[1, 3, 4]] * 2
            assert await store.stats() == before
            assert list(await store.dead_letters("one")) == letters
            assert numbers(await must_lease(store)) == [3, 4]
            assert numbers(await must_lease(store, "two")) == [1, 2, 3, 4]
            assert await store.release(lease, list(lease.entries)) == 1

    async def test_the_next_look_shows_what_came_later(self) -> None:
        async with self.looked_into() as store:
            await store.append(make_records(2), evict=True)
            first = await store.peek("one", None, 100)
            nothing = await store.peek("one", first.position, 100)
            await store.append([make_record(3, priority=Priority.ATTACK)], evict=True)
            await store.append([make_record(4)], evict=True)

            for position in (first.position, nothing.position):
                later = await store.peek("one", position, 100)
                assert (seen(later), later.passed) == ([3, 4], 0)
            assert (seen(nothing), nothing.passed) == ([], 0)

    async def test_a_look_may_begin_at_the_end(self) -> None:
        async with self.looked_into() as store:
            await store.append(make_records(2), evict=True)
            end = await store.peek("one", None, 0)
            await store.append([make_record(3)], evict=True)

            assert seen(end) == []
            assert seen(await store.peek("one", end.position, 100)) == [3]

    async def test_much_is_shown_in_parts(self) -> None:
        async with self.looked_into() as store:
            for n in range(1, 8):
                await store.append([make_record(n)], evict=True)
            parts, position = [], None
            for _ in range(5):
                look = await store.peek("one", position, 2)
                parts.append(seen(look))
                position = look.position

        assert parts == [[1, 2], [3, 4], [5, 6], [7], []]

    async def test_what_is_leased_is_shown_and_what_is_gone_is_counted(self) -> None:
        async with self.looked_into() as store:
            end = await store.peek("one", None, 0)
            for n in range(1, 7):
                await store.append([make_record(n)], evict=True)
            lease = await must_lease(store, max_records=5)
            await store.ack(lease, entries_of(lease, 1, 2))
            await store.bury(lease, entries_of(lease, 3), "refused")

            look = await store.peek("one", end.position, 100)
            again = await store.peek("one", look.position, 100)

        assert (seen(look), look.passed) == ([4, 5, 6], 3)
        assert (seen(again), again.passed) == ([], 0)

    async def test_what_is_gone_is_counted_once_over_all_parts(self) -> None:
        async with self.looked_into() as store:
            position = (await store.peek("one", None, 0)).position
            for n in range(1, 7):
                await store.append([make_record(n)], evict=True)
            lease = await must_lease(store)
            await store.ack(lease, entries_of(lease, 2, 3))
            looked = await look_in_parts(store, position)

        assert looked == ([1, 4, 5, 6], 2)

    async def test_what_was_gone_before_the_first_look_is_not_counted(self) -> None:
        async with self.looked_into() as store:
            for n in range(1, 7):
                await store.append([make_record(n)], evict=True)
            lease = await must_lease(store)
            await store.ack(lease, entries_of(lease, 1, 4))
            looked = await look_in_parts(store, None)

        assert looked == ([2, 3, 5, 6], 0)

    async def test_what_was_replayed_for_another_destination_is_not_counted(self) -> None:
        async with self.looked_into(TWO) as store:
            begin = {name: (await store.peek(name, None, 0)).position for name in TWO}
            for n in range(1, 4):
                await store.append([make_record(n)], evict=True)
            for name in TWO:
                lease = await must_lease(store, name)
                await store.bury(lease, entries_of(lease, 1, 2), "refused")
                await store.ack(lease, entries_of(lease, 3))
            looks = {name: await store.peek(name, begin[name], 100) for name in TWO}
            assert {name: look.passed for name, look in looks.items()} == {"one": 3, "two": 3}

            assert await store.replay("one", 10) == 2
            await store.append([make_record(4)], evict=True)

            one = await store.peek("one", looks["one"].position, 100)
            two = await store.peek("two", looks["two"].position, 100)
            assert (sorted(seen(one)), one.passed) == ([1, 2, 4], 0)
            assert (seen(two), two.passed) == ([4], 0)
            again = await must_lease(store, "one")
            await store.ack(again, list(again.entries))
            since = await store.peek("one", looks["one"].position, 100)
            assert (seen(since), since.passed) == ([], 3)
            partly = await store.peek("two", begin["two"], 1)
            rest = await store.peek("two", partly.position, 100)
            assert (seen(partly), seen(rest), partly.passed + rest.passed) == ([4], [], 3)

    async def test_each_destination_is_looked_at_by_itself(self) -> None:
        async with self.looked_into(TWO) as store:
            await store.append(make_records(2), evict=True)
            lease = await must_lease(store, max_records=1)
            await store.ack(lease, list(lease.entries))

            assert seen(await store.peek("one", None, 100)) == [2]
            assert seen(await store.peek("two", None, 100)) == [1, 2]

    async def test_of_records_that_came_together_those_are_shown_that_wait(self) -> None:
        async with self.looked_into() as store:
            await store.append(make_records(100), evict=True)
            lease = await must_lease(store, max_records=50)
            await store.ack(lease, list(lease.entries)[::2])

            look = await store.peek("one", None, 1000)

        assert seen(look) == [n for n in range(1, 101) if n > 50 or n % 2 == 0]

    async def test_a_look_for_nobody_is_refused(self) -> None:
        async with self.looked_into() as store:
            with pytest.raises(ValueError, match="other"):
                await store.peek("other", None, 10)

    # --- in an agent --------------------------------------------------------------------------

    async def test_an_agent_keeps_its_records_in_it(self) -> None:
        plan = self.compose(RecordingTransport, transports=["recording"], flush_interval=0.1)
        agent = Agent(plan)
        if (host := self.host_redis()) is not None:
            agent.use_redis(host.handler, host.loop)
        try:
            for _ in range(3):
                assert agent.record("event", make_event()) is None
            await asyncio.wrap_future(agent.flush())
            survives = await asyncio.wrap_future(agent.flush_to_store())
            status = await asyncio.wrap_future(agent.look())
        finally:
            await asyncio.wrap_future(agent.stop())

        assert survives is (self.plugin.level is not Level.MEMORY)
        books = status.destinations["recording"]
        assert (books["accepted"], books["delivered"], books["pending"]) == (3, 3, 0), books


# --- what the tests are written with --------------------------------------------------------------


async def lease_all(store: BufferStore, destination: str = "one") -> Lease | None:
    return await store.lease(destination, 10_000, MANY_BYTES, LONG)


async def must_lease(
    store: BufferStore,
    destination: str = "one",
    *,
    max_records: int = 10_000,
    max_bytes: int = MANY_BYTES,
    ttl: float = LONG,
) -> Lease:
    lease = await store.lease(destination, max_records, max_bytes, ttl)
    assert lease is not None, "the store has nothing ready"
    assert lease.entries, "a lease must hold something; nothing ready is None"
    return lease


async def depth(store: BufferStore, destination: str = "one") -> DestinationDepth:
    stats: Mapping[str, DestinationDepth] = await store.stats()
    return stats[destination]


def counts(found: DestinationDepth) -> tuple[int, int, int]:
    """Ready, leased, buried."""
    return found.ready, found.leased, found.buried


def number(record: Record) -> int:
    return int(record.id.removeprefix("record-"))


def numbers(lease: Lease) -> list[int]:
    """The numbers of the records in the order of the lease."""
    return [number(record) for record in lease.entries.values()]


def seen(look: Peeked) -> list[int]:
    """The numbers of the records that a look showed."""
    return [number(record) for record in look.records]


async def look_in_parts(store: BufferStore, position: str | None) -> tuple[list[int], int]:
    """What looks of two records each show from there on, and how many they say have passed."""
    shown: list[int] = []
    passed = 0
    for _ in range(5):
        look = await store.peek("one", position, 2)
        shown += seen(look)
        passed += look.passed
        position = look.position
    return shown, passed


def entries_of(lease: Lease, *wanted: int) -> list[str]:
    """The entry ids of the records with these numbers."""
    return [entry for entry, record in lease.entries.items() if number(record) in wanted]


async def patience(complaint: str) -> AsyncIterator[None]:
    """Ask again every few milliseconds, and fail with ``complaint`` when it takes too long."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        yield
        await asyncio.sleep(SHORT / 10)
    pytest.fail(complaint)


async def expire(store: BufferStore, expected: int = 1) -> int:
    """Wait until at least ``expected`` entries of short leases are ready again; how many were."""
    released = 0
    async for _ in patience("release_expired() never gave back the entries of an expired lease"):
        released += await store.release_expired()
        if released >= expected:
            break
    return released
