"""How large a batch may be, after a collector has refused one; time is an argument."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard_agent.core.delivery.sizes import GROW_AFTER, LEAST, ByteLimit

MOST = 256 * 1024
STEP = MOST // 16


def test_without_a_refusal_it_is_what_the_configuration_allows():
    limit = ByteLimit(MOST)
    limit.accepted(MOST, 1e6)

    assert limit.value == MOST


def test_c08_a_refusal_halves_it_or_makes_it_what_the_collector_named():
    limit = ByteLimit(MOST)
    limit.refused(200_000, None, 0.0)
    assert limit.value == 100_000
    limit.refused(100_000, 64_000, 0.0)
    assert limit.value == 64_000
    limit.refused(64_000, 200_000, 0.0)
    assert limit.value == 64_000, "a named limit never raises it"


@pytest.mark.parametrize("named", [1, 0, -5, 1023])
def test_what_a_collector_names_has_a_floor(named):
    limit = ByteLimit(MOST)
    limit.refused(200_000, named, 0.0)

    assert limit.value == LEAST


def test_a_limit_below_the_floor_stays_as_configured():
    limit = ByteLimit(500)
    limit.refused(400, 1, 0.0)

    assert limit.value == 500


def test_c08_it_grows_back_by_a_sixteenth_every_five_minutes_while_batches_fill_it():
    limit = ByteLimit(MOST)
    limit.refused(MOST, None, 1_000.0)
    values = []
    for second in range(1_000, 4_600):
        limit.accepted(limit.value, float(second))
        values.append(limit.value)

    assert values[int(GROW_AFTER) - 1] == MOST // 2
    assert values[int(GROW_AFTER)] == MOST // 2 + STEP
    assert limit.value == MOST
    steps = {later - before for before, later in pairwise(values)}
    assert steps == {0, STEP}


def test_it_does_not_grow_while_batches_do_not_need_it():
    limit = ByteLimit(MOST)
    limit.refused(MOST, None, 0.0)
    limit.accepted(MOST // 2 - STEP, 1e6)

    assert limit.value == MOST // 2


def test_c08_a_collector_that_stays_as_it_is_refuses_few():
    """100 full batches a minute for a day, of which it takes 100,000 bytes at most."""
    limit, refused = ByteLimit(MOST), 0
    for number in range(144_000):
        now = number * 0.6
        if limit.value > 100_000:
            refused += 1
            limit.refused(limit.value, None, now)
        else:
            limit.accepted(limit.value, now)

    assert refused <= 86_400 / GROW_AFTER / 2


@given(
    st.integers(1, 1 << 24),
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 1 << 25), st.none() | st.integers(-10, 1 << 25)),
        max_size=30,
    ),
)
def test_it_is_always_between_the_floor_and_what_is_configured(most, steps):
    limit, now = ByteLimit(most), 0.0
    for accepted, size, named in steps:
        now += 400
        if accepted:
            limit.accepted(size, now)
        else:
            limit.refused(size, named, now)
        assert min(LEAST, most) <= limit.value <= most
        assert isinstance(limit.value, int), "a number of bytes"
