from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard_agent import Paused, Retry
from guard_agent.core.delivery.gate import (
    MAX_BACKOFF,
    MAX_RETRY_AFTER,
    RAMP_PAUSE,
    Gate,
    GateState,
    TokenBucket,
)

DOWN = Retry("connection refused")
BUSY = Retry("429", throttled=True)
REFUSED = Paused("401")


def make_gate(*, draw=0.5, rate=1e9, backoff=1.0, threshold=4):
    return Gate(rate=rate, backoff=backoff, failure_threshold=threshold, random=lambda: draw)


def fail(gate, times, now=0.0, result=DOWN):
    """Lets ``times`` requests fail, each as early as it may be made; returns the time then."""
    for _ in range(times):
        now += gate.delay(now)
        assert gate.acquire(now) == 0
        gate.failed(result, now)
    return now


def test_a_new_gate_is_open_to_requests():
    gate = make_gate()

    assert gate.delay(123.0) == 0
    assert gate.acquire(123.0) == 0
    assert gate.state is GateState.CLOSED
    assert gate.limit(1_000) == 1_000


# --- backoff --------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [0.0, 0.25, 0.999])
def test_backoff_doubles_and_is_drawn_from_all_of_it(draw):
    gate = make_gate(draw=draw, backoff=2.0, threshold=100)

    delays = [gate.failed(DOWN, 0.0) for _ in range(8)]

    assert delays[:5] == [pytest.approx(draw * bound) for bound in (2, 4, 8, 16, 32)]
    assert delays[5:] == [pytest.approx(60 * (0.5 + 0.5 * draw))] * 3, "then it is a rest"


def test_nothing_may_be_sent_before_the_delay_is_over():
    gate = make_gate(backoff=8.0)
    gate.acquire(100.0)

    assert gate.failed(DOWN, 100.0) == 4.0

    assert gate.delay(101.0) == gate.acquire(101.0) == 3.0
    assert gate.delay(104.0) == gate.acquire(104.0) == 0.0


def test_p17_a_hundred_thousand_failures_overflow_nothing():
    gate = make_gate(draw=1.0)
    for _ in range(100_000):
        delay = gate.failed(DOWN, 0.0)
        assert delay <= MAX_BACKOFF
    assert gate.failures == 100_000

    for result in (BUSY, REFUSED):
        gate = make_gate(draw=1.0)
        assert all(gate.failed(result, 0.0) <= MAX_BACKOFF for _ in range(100_000))


@pytest.mark.parametrize("backoff", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("threshold", [1, 4, 10**9])
@pytest.mark.parametrize("result", [DOWN, BUSY, REFUSED])
def test_p17_after_five_minutes_of_outage_no_minute_has_more_than_two_requests(
    result, threshold, backoff
):
    for seed in range(10):
        draw = random.Random(seed).random
        gate = Gate(rate=10, backoff=backoff, failure_threshold=threshold, random=draw)
        now, sent = 0.0, []
        while now < 3_600:
            if (delay := gate.acquire(now)) > 0:
                now += delay
                continue
            sent.append(now)
            gate.failed(result, now)
        late = [at for at in sent if at >= 300]
        assert len(late) > 50
        assert all(sum(at <= other < at + 60 for other in late) <= 2 for at in late)


@pytest.mark.parametrize("result", [DOWN, BUSY, REFUSED])
def test_p17_in_the_fifth_day_of_an_outage_the_backoff_is_what_it_was(result):
    gate = Gate(rate=10, backoff=1.0, failure_threshold=4, random=random.Random(17).random)
    day, now, sent = 86_400.0, 0.0, []
    while now < 5 * day:
        if (delay := gate.acquire(now)) > 0:
            now += delay
            continue
        sent.append(now)
        assert 0 < gate.failed(result, now) <= MAX_BACKOFF

    pauses = [later - earlier for earlier, later in itertools.pairwise(sent)]
    last = [pause for at, pause in zip(sent, pauses, strict=False) if at >= 4 * day]
    assert len(last) > 1_000
    assert all(MAX_BACKOFF / 2 <= pause <= MAX_BACKOFF for pause in last)
    gate.acquire(now + gate.delay(now))
    gate.succeeded()
    assert (gate.state, gate.failures) == (GateState.CLOSED, 0)


def test_success_forgets_the_backoff():
    gate = make_gate()
    now = fail(gate, 3)
    gate.acquire(now + gate.delay(now))

    assert gate.succeeded() is True

    assert gate.failures == 0
    assert gate.delay(now) == 0
    assert gate.failed(DOWN, now) == 0.5


@pytest.mark.parametrize("answer", [Gate.succeeded, Gate.answered])
@pytest.mark.parametrize(("result", "first"), [(DOWN, 5.0), (REFUSED, 5.0), (BUSY, 1.0)])
def test_after_an_answer_the_rests_begin_again_with_the_shortest(answer, result, first):
    gate = make_gate(draw=1.0, backoff=1.0, threshold=1)
    now = fail(gate, 4, result=result)
    now += gate.delay(now)
    gate.acquire(now)

    answer(gate)

    assert gate.failed(result, now) == first


def test_an_answer_ends_a_rest_at_once_also_in_the_first_second():
    gate = make_gate()
    gate.failed(Retry("busy", after=0.25, throttled=True), 0.0)
    assert gate.acquire(0.25) == 0

    gate.succeeded(0.25)

    assert gate.delay(0.25) == 0


def test_success_is_news_only_after_trouble():
    gate = make_gate()

    assert gate.succeeded() is False
    gate.failed(DOWN, 0.0)
    assert gate.reason == "connection refused"
    assert gate.succeeded() is True
    assert gate.succeeded() is False
    assert gate.reason is None


# --- the circuit breaker --------------------------------------------------------------------------


def test_the_breaker_opens_at_the_threshold():
    gate = make_gate(threshold=3)

    states = []
    for _ in range(3):
        gate.failed(DOWN, 0.0)
        states.append(gate.state)

    assert states == [GateState.CLOSED, GateState.CLOSED, GateState.OPEN]


def test_exactly_one_probe_is_let_through():
    gate = make_gate()
    now = fail(gate, 4)
    now += gate.delay(now)

    assert gate.acquire(now) == 0
    assert gate.state is GateState.HALF_OPEN
    assert all(0 < gate.acquire(now + later, urgent=True) <= 1 for later in range(100))


def test_a_failed_probe_rests_longer():
    gate = make_gate(draw=1.0)
    now = fail(gate, 4)
    rests = []
    for _ in range(6):
        rests.append(gate.delay(now))
        now = fail(gate, 1, now)
        assert gate.state is GateState.OPEN

    assert rests == [pytest.approx(rest) for rest in (5, 10, 20, 40, 60, 60)]


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
def test_a_rest_is_never_less_than_half_its_bound(draw):
    gate = make_gate(draw=draw, threshold=1)

    for bound in (5, 10, 20, 40, 60):
        assert bound / 2 <= gate.failed(DOWN, 0.0) <= bound


def test_a_cancelled_probe_lets_another_one_through():
    gate = make_gate()
    now = fail(gate, 4)
    now += gate.delay(now)
    gate.acquire(now)

    gate.cancelled()

    assert gate.state is GateState.OPEN
    assert gate.acquire(now) == 0
    assert gate.state is GateState.HALF_OPEN


def test_after_an_outage_batches_grow_from_one():
    """
    A fleet that comes back together must not bring down what has just come back.
    """
    gate = make_gate()
    now = fail(gate, 4)
    now += gate.delay(now)

    limits = []
    for _ in range(12):
        assert gate.acquire(now) == 0
        limits.append(gate.limit(1_000))
        gate.succeeded()

    assert limits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000, 1_000]


def test_the_ramp_ends():
    gate = make_gate()
    now = fail(gate, 4)
    gate.acquire(now + gate.delay(now))
    for _ in range(20):
        gate.succeeded()

    assert gate.limit(10**9) == 10**9


def test_a_failure_on_the_ramp_below_the_threshold_keeps_it():
    gate = make_gate()
    now = fail(gate, 4)
    gate.acquire(now + gate.delay(now))
    gate.succeeded()
    gate.succeeded()

    gate.failed(DOWN, now)

    assert gate.state is GateState.CLOSED
    assert gate.limit(1_000) == 4


def test_an_answer_about_the_content_ends_the_outage():
    gate = make_gate()
    now = fail(gate, 4)
    now += gate.delay(now)
    gate.acquire(now)

    gate.answered()

    assert gate.state is GateState.CLOSED
    assert gate.acquire(now) == 0


# --- throttling -----------------------------------------------------------------------------------


def test_c05_throttling_never_opens_the_breaker():
    gate = make_gate(threshold=2)

    for _ in range(100):
        gate.failed(BUSY, 0.0)
        assert gate.state is GateState.THROTTLED
    assert gate.failures == 0


def test_c05_throttling_backs_off_like_a_failure():
    gate = make_gate(draw=0.5, backoff=2.0)

    assert [gate.failed(BUSY, 0.0) for _ in range(5)] == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_throttled_one_request_at_a_time():
    gate = make_gate()
    gate.failed(BUSY, 0.0)

    assert gate.acquire(100.0) == 0
    assert gate.acquire(100.0) > 0
    gate.succeeded()
    assert gate.acquire(100.0) == gate.acquire(100.0) == 0
    assert gate.limit(1_000) == 1_000


@pytest.mark.parametrize("throttled", [True, False])
@pytest.mark.parametrize(
    ("after", "delay"),
    [(0.25, 0.25), (3.0, 3.0), (3_600, 3_600), (3_601, 3_600), (1e9, 3_600), (math.inf, 3_600)],
)
def test_c05_c07_retry_after_overrides_the_backoff_up_to_an_hour(after, delay, throttled):
    """
    When the collector names a delay, that is the delay.
    """
    gate = make_gate(draw=0.0)

    assert gate.failed(Retry("busy", after=after, throttled=throttled), 100.0) == delay

    assert gate.acquire(100.0 + delay * 0.99) > 0
    assert gate.acquire(100.0 + delay) == 0
    assert delay <= MAX_RETRY_AFTER


@pytest.mark.parametrize("after", [math.nan, -1.0, 0.0, -math.inf])
@pytest.mark.parametrize("throttled", [True, False])
def test_c07_a_delay_that_is_none_leaves_the_backoff(after, throttled):
    """
    Otherwise a collector that answers ``Retry-After: 0`` would be asked without a pause.
    """
    gate = make_gate(backoff=4.0)

    assert gate.failed(Retry("busy", after=after, throttled=throttled), 0.0) == 2.0
    assert gate.delay(0.0) == 2.0


# --- pauses ---------------------------------------------------------------------------------------


def test_c11_a_pause_probes_slowly_and_resumes_by_itself():
    gate = make_gate(draw=1.0)
    delays = []
    now = 0.0
    for _ in range(6):
        assert gate.acquire(now) == 0
        delays.append(gate.failed(REFUSED, now))
        assert gate.state is GateState.PAUSED
        now += delays[-1]
    assert delays == [pytest.approx(delay) for delay in (5, 10, 20, 40, 60, 60)]

    assert gate.acquire(now) == 0
    assert gate.acquire(now) > 0
    assert gate.limit(1_000) == 1
    assert gate.succeeded() is True
    assert gate.state is GateState.CLOSED
    assert gate.limit(1_000) == 2


def test_a_pause_does_not_feed_the_breaker():
    gate = make_gate(threshold=2)
    for _ in range(10):
        gate.failed(REFUSED, 0.0)

    assert gate.failures == 0


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("failures", [1, 10])
def test_the_last_chance_forgets_our_own_backoff(failures):
    gate = make_gate()
    now = fail(gate, failures)
    assert gate.acquire(now) > 0

    gate.last_chance()

    assert gate.acquire(now) == 0


@pytest.mark.parametrize(
    "result", [BUSY, REFUSED, Retry("busy", after=30.0), Retry("busy", after=30.0, throttled=True)]
)
def test_the_last_chance_respects_what_the_collector_said(result):
    gate = make_gate()
    gate.failed(result, 0.0)
    delay = gate.delay(0.0)

    gate.last_chance()

    assert gate.delay(0.0) == delay > 0


# --- the request rate -----------------------------------------------------------------------------


def test_the_rate_allows_a_burst_of_one_second_and_then_waits():
    bucket = TokenBucket(10)

    assert [bucket.take(0.0) for _ in range(10)] == [0.0] * 10
    assert bucket.take(0.0) == pytest.approx(0.1)


def test_waiting_uses_nothing_up():
    bucket = TokenBucket(1)
    bucket.take(0.0)

    assert [bucket.take(0.5) for _ in range(100)] == [0.5] * 100
    assert bucket.take(1.0) == 0


def test_tokens_do_not_pile_up():
    bucket = TokenBucket(2)
    bucket.take(0.0)

    assert [bucket.take(1e6) for _ in range(3)] == [0.0, 0.0, 0.5]


def test_a_rate_below_one_a_second():
    bucket = TokenBucket(0.1)

    assert bucket.take(0.0) == 0
    assert bucket.take(0.0) == pytest.approx(10)
    assert bucket.take(10.0) == 0


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.01, 1_000),
    st.floats(0, 1e7),
    st.lists(st.floats(0, 5), min_size=1, max_size=30),
)
def test_who_waits_as_long_as_told_gets_a_token(rate, start, pauses):
    """
    Otherwise a rounding error makes the loop spin on delays of 1e-17 seconds.
    """
    bucket = TokenBucket(rate)
    now = start
    for pause in pauses:
        if (delay := bucket.take(now)) > 0:
            now += delay + 1e-6
            assert bucket.take(now) == 0
        now += pause / rate


def test_the_rate_yields_to_what_would_be_dropped_otherwise():
    gate = make_gate(rate=1)
    assert gate.acquire(0.0) == 0

    assert gate.acquire(0.0) == 1.0
    assert gate.acquire(0.0, urgent=True) == 0


@pytest.mark.parametrize("result", [DOWN, BUSY, REFUSED])
def test_nothing_else_yields(result):
    gate = make_gate(threshold=1)
    gate.failed(result, 0.0)

    assert gate.acquire(0.0, urgent=True) > 0


def test_waiting_for_the_rate_is_no_probe():
    gate = make_gate(rate=0.1, threshold=1, draw=0.0)
    gate.acquire(0.0)
    gate.failed(DOWN, 0.0)

    assert gate.acquire(3.0) > 0
    assert gate.state is GateState.OPEN
    assert gate.acquire(10.0) == 0
    assert gate.state is GateState.HALF_OPEN


# --- a fleet --------------------------------------------------------------------------------------


HOUR = 3_600.0
BACKLOG = 1_000


def come_back(seed: int, agents: int = 200) -> tuple[list[float], list[int]]:
    """
    What a collector gets that is back after an hour: the time of each request, and the sizes of the
    batches of the last agent.
    """
    draw = random.Random(seed).random
    arrivals: list[float] = []
    batches: list[int] = []
    for _ in range(agents):
        gate = Gate(rate=10, backoff=1.0, failure_threshold=4, random=draw)
        now, left, batches = 0.0, BACKLOG, []
        while left:
            if (delay := gate.acquire(now)) > 0:
                now += delay
            elif now < HOUR:
                gate.failed(DOWN, now)
            else:
                arrivals.append(now - HOUR)
                batches.append(min(left, gate.limit(1_000)))
                left -= batches[-1]
                now += 0.05  # the answer
                gate.succeeded(now)
    return arrivals, batches


@pytest.mark.parametrize("part", range(10))
def test_c24_a_fleet_does_not_come_back_in_one_storm(part):
    """
    200 agents with 1,000 records each, in 200 runs: no second has more than three times the
    requests of the mean.
    """
    for seed in range(20 * part, 20 * (part + 1)):
        arrivals, batches = come_back(seed)

        assert batches == [1, 2, 4, 8, 16, 32, 64, 128, 256, 489]
        seconds = Counter(int(at) for at in arrivals)
        mean = len(arrivals) / max(arrivals)
        assert max(seconds.values()) / mean <= 3


def test_c24_the_pauses_of_the_ramp_end_with_it():
    gate = make_gate(draw=0.5)
    now = fail(gate, 4)
    pauses = []
    for _ in range(12):
        now += gate.delay(now)
        assert gate.acquire(now) == 0
        gate.succeeded(now)
        pauses.append(gate.delay(now))

    assert pauses == [RAMP_PAUSE / 2] * 9 + [0] * 3


def test_the_last_chance_does_not_pause_on_the_ramp():
    gate = make_gate(draw=0.5)
    now = fail(gate, 4)
    now += gate.delay(now)
    gate.last_chance()
    gate.acquire(now)

    gate.succeeded(now)

    assert gate.acquire(now) == 0
    assert gate.limit(1_000) == 2, "and it begins with small batches all the same"


def test_what_was_not_used_is_given_back():
    gate = make_gate(rate=1, threshold=1, draw=0.0)
    assert gate.acquire(0.0) == 0
    gate.unused()
    assert gate.acquire(0.0) == 0
    gate.failed(DOWN, 0.0)
    now = gate.delay(0.0)
    assert gate.acquire(now) == 0
    assert gate.state is GateState.HALF_OPEN

    gate.unused()

    assert gate.state is GateState.OPEN, "nobody was asked, so nothing is known"
    assert gate.acquire(now) == 0


@pytest.mark.parametrize("result", [DOWN, BUSY, REFUSED, Retry("busy", 9.0, throttled=True)])
@pytest.mark.parametrize("answer", [Gate.succeeded, Gate.answered])
def test_c05_an_answer_to_what_was_asked_before_does_not_end_the_rest(result, answer):
    """
    Two destinations ask one collector at the same time; the first is told to wait.
    """
    gate = make_gate(threshold=1)
    gate.acquire(0.0)
    gate.acquire(0.0)
    gate.failed(result, 0.0)
    state, delay = gate.state, gate.delay(0.0)

    answer(gate)

    assert (gate.state, gate.delay(0.0)) == (state, delay)
    assert delay > 0
    assert gate.acquire(delay) == 0
    answer(gate)
    assert gate.state is GateState.CLOSED
