"""
The store does what the memory store does, step by step, whoever of two owners makes the step.
"""

from __future__ import annotations

import asyncio
import random
from uuid import uuid4

import pytest

from guard_agent import Priority
from guard_agent.plugins.memory import MemorySettings, MemoryStore
from guard_agent.testing.records import make_context, make_record
from guard_agent_redis import RedisSettings, RedisStore

SOON = 0.002
NEVER = 60.0


STEPS = [
    *[("append",)] * 2,
    *[("lease",)] * 3,
    *[("settle", "ack")] * 2,
    *[("settle", "release")] * 2,
    ("settle", "release", SOON),
    ("settle", "release", NEVER),
    ("settle", "bury", "refused"),
    ("expire",),
    ("reopen",),
]


class Pair:
    """Both stores; a lease of one has its twin in the other, entry by entry."""

    def __init__(self, url, destinations, **bounds):
        context = make_context(destinations=destinations, project_id=uuid4().hex)
        self.names = destinations
        self.memory = MemoryStore(MemorySettings(max_dead_letters=3, **bounds), context)
        settings = RedisSettings(url=url, max_dead_letters=3, deadline=10, **bounds)
        self.owners = [RedisStore(settings, context) for _ in range(2)]
        self.leases = []

    async def both(self, chance, operation):
        expected = await operation(self.memory)
        found = await operation(chance.choice(self.owners))
        return expected, found

    async def append(self, chance):
        records = [
            make_record(size=chance.randint(80, 400), priority=chance.choice(list(Priority)))
            for _ in range(chance.choice([0, 1, 1, 2, 3, 9]))
        ]
        evict = chance.random() < 0.7
        expected, found = await self.both(chance, lambda s: s.append(records, evict=evict))
        assert found == expected

    async def lease(self, chance):
        wanted = (
            chance.choice(self.names),
            chance.randint(1, 6),
            chance.randint(0, 1200),
            chance.choice([SOON, NEVER, NEVER]),
        )
        expected, found = await self.both(chance, lambda s: s.lease(*wanted))
        if expected is None:
            assert found is None
            return
        assert list(found.entries.values()) == list(expected.entries.values())
        assert found.destination == expected.destination
        self.leases.append((expected, found))

    async def settle(self, chance, mode, *rest):
        if not self.leases:
            return
        pair = chance.choice(self.leases)
        size = len(pair[0].entries)
        positions = [chance.randrange(size) for _ in range(chance.randint(0, size + 1))]
        if chance.random() < 0.4:
            positions = list(range(size))

        def ids(lease):
            every = list(lease.entries)
            return [every[position] for position in positions]

        owner = chance.choice(self.owners)
        expected = await getattr(self.memory, mode)(pair[0], ids(pair[0]), *rest)
        assert await getattr(owner, mode)(pair[1], ids(pair[1]), *rest) == expected
        if rest == (SOON,):
            await asyncio.sleep(2 * SOON)

    async def expire(self, chance):
        await asyncio.sleep(2 * SOON)
        expected, found = await self.both(chance, lambda s: s.release_expired())
        assert found == expected

    async def reopen(self, chance):
        owner = chance.choice(self.owners)
        await owner.close()
        await owner.open()

    async def check(self, chance):
        expected, found = await self.both(chance, lambda s: s.stats())
        assert found == expected
        for name in self.names:
            expected, found = await self.both(chance, lambda s, name=name: s.dead_letters(name))
            assert found == expected


async def run(url, seed, steps):
    chance = random.Random(seed)
    destinations = chance.choice([("one",), ("one", "two")])
    bounds = chance.choice(
        [{"max_records": 7, "max_bytes": 1500}, {"max_records": 40}, {"max_records": 1000}]
    )
    pair = Pair(url, destinations, **bounds)
    for owner in pair.owners:
        await owner.open()
    try:
        for _ in range(steps):
            name, *rest = chance.choice(STEPS)
            await getattr(pair, name)(chance, *rest)
            await pair.check(chance)
    finally:
        for owner in pair.owners:
            await owner.close()


@pytest.mark.parametrize("seed", range(12))
async def test_every_step_has_the_result_it_has_in_memory(redis_server, seed):
    await run(redis_server.url, seed, steps=60)
