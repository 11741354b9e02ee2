"""The token bucket: exact over any time, never generous, never late."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotaskqueue._config import LARGEST_COUNT, QueueConfig
from aiotaskqueue._token_bucket import CLOCK_STEP_USEC, DROPS_PER_TOKEN, Bucket, next_token_usec, refill, take

SECOND = 1_000_000
DAY = 86_400 * SECOND
START = 1_700_000_000 * SECOND

PER_SECOND = Fraction(1)


def exact_rate(text: str) -> Fraction:
    """Return what a queue with this rate counts with."""
    rate = QueueConfig("mail", rate=text).exact_rate
    assert rate is not None
    return rate


def full(capacity: int) -> Bucket:
    """Return a new bucket."""
    return Bucket.full(capacity=capacity, now_usec=START)


def rates(smallest: int = 1) -> st.SearchStrategy[Fraction]:
    """Return any rate that a queue can have: up to six decimals, per second, minute, hour or day."""
    millionths = st.integers(smallest, 10**12)
    return st.builds(lambda number, unit: Fraction(number, 10**6 * unit), millionths, st.sampled_from([1, 60, 3600, 86_400]))


pauses = st.lists(st.integers(0, 2 * DAY), max_size=20)
capacities = st.integers(1, 1000)


# --- take ----------------------------------------------------------------------------------------------------------


def test_new_bucket_is_full() -> None:
    """A new queue may start as many tasks at once as its bucket holds."""
    granted, _ = take(full(5), 100, rate=PER_SECOND, capacity=5, now_usec=START)

    assert 5 == granted


def test_no_more_is_taken_than_wanted() -> None:
    """Tokens that nobody wants stay in the bucket."""
    _, bucket = take(full(5), 2, rate=PER_SECOND, capacity=5, now_usec=START)

    assert 3 * DROPS_PER_TOKEN == bucket.level


@pytest.mark.parametrize("wanted", [0, -1])
def test_wanting_nothing_takes_nothing(wanted: int) -> None:
    """A caller without a free place, or with less than none, neither takes tokens nor brings any."""
    assert (0, full(5)) == take(full(5), wanted, rate=PER_SECOND, capacity=5, now_usec=START)


def test_fraction_of_a_token_is_kept() -> None:
    """What has flowed in when a token was asked for in vain is there at the next time."""
    _, bucket = take(full(1), 1, rate=PER_SECOND, capacity=1, now_usec=START)
    refused, bucket = take(bucket, 1, rate=PER_SECOND, capacity=1, now_usec=START + SECOND - 1)
    granted, _ = take(bucket, 1, rate=PER_SECOND, capacity=1, now_usec=START + SECOND)

    assert (0, 1) == (refused, granted)


def test_rate_0_grants_nothing() -> None:
    """A paused queue starts nothing, however full its bucket is."""
    granted, bucket = take(full(5), 1, rate=Fraction(0), capacity=5, now_usec=START + DAY)

    assert (0, 5 * DROPS_PER_TOKEN) == (granted, bucket.level)


@pytest.mark.parametrize("days", [1, 30])
def test_2000_a_day_for_days_is_exact(days: int) -> None:
    """2000/d hands out the bucket and 2000 tokens a day, not one more or less, if asked before it overflows."""
    rate = exact_rate("2000/d")
    bucket, granted = full(5), 0
    for now_usec in [*range(START, START + days * DAY, 171 * SECOND + 7), START + days * DAY]:
        taken, bucket = take(bucket, 100, rate=rate, capacity=5, now_usec=now_usec)
        granted += taken

    assert 5 + 2000 * days == granted


def test_waiting_for_each_token_does_not_drift() -> None:
    """Started one by one at the moments that the bucket names, a day of 2000/d ends to the microsecond."""
    rate = exact_rate("2000/d")
    _, bucket = take(full(5), 5, rate=rate, capacity=5, now_usec=START)
    now_usec = START
    for _ in range(2000):
        now_usec = next_token_usec(bucket, rate=rate) or 0
        _, bucket = take(bucket, 1, rate=rate, capacity=5, now_usec=now_usec)

    assert START + DAY == now_usec


def test_rate_that_does_not_divide_a_second_is_exact() -> None:
    """7/s grants seven tokens in every second, although a token takes no whole number of microseconds."""
    rate = exact_rate("7/s")
    _, bucket = take(full(2), 2, rate=rate, capacity=2, now_usec=START)
    moments = []
    for _ in range(14):
        moments.append(next_token_usec(bucket, rate=rate) or 0)
        _, bucket = take(bucket, 1, rate=rate, capacity=2, now_usec=moments[-1])

    assert (START + SECOND, START + 2 * SECOND) == (moments[6], moments[13])


def test_largest_bucket_fits_in_64_bits() -> None:
    """The level of the largest bucket that a queue may have can be stored in SQLite."""
    assert full(LARGEST_COUNT).level < 2**63


def test_next_token_of_the_slowest_queue_fits_in_64_bits() -> None:
    """The slowest rate that a queue may have names a moment that can be stored."""
    moment = next_token_usec(Bucket(0, START), rate=exact_rate("0.000001/d"))

    assert START + 1_000_000 * DAY == moment
    assert moment < 2**63


# --- refill --------------------------------------------------------------------------------------------------------


def test_bucket_does_not_overflow() -> None:
    """A rest of a day saves no more than the bucket holds."""
    _, bucket = take(full(5), 5, rate=PER_SECOND, capacity=5, now_usec=START)

    assert Bucket(5 * DROPS_PER_TOKEN, START + DAY) == refill(bucket, rate=PER_SECOND, capacity=5, now_usec=START + DAY)


def test_smaller_capacity_takes_effect_at_once() -> None:
    """What a bucket held before its queue was configured with a smaller one is lost."""
    assert full(2) == refill(full(5), rate=PER_SECOND, capacity=2, now_usec=START)


def test_larger_capacity_fills_up_with_time() -> None:
    """A queue that is configured with a larger bucket gets no gift."""
    bucket = refill(full(2), rate=PER_SECOND, capacity=5, now_usec=START + SECOND)

    assert 3 * DROPS_PER_TOKEN == bucket.level


@pytest.mark.parametrize("back_usec", [1, CLOCK_STEP_USEC, CLOCK_STEP_USEC + 1, DAY])
def test_clock_that_steps_back_takes_no_token_away(back_usec: int) -> None:
    """Tokens that are in the bucket can be had whatever the clock does."""
    _, bucket = take(full(5), 2, rate=PER_SECOND, capacity=5, now_usec=START)
    granted, _ = take(bucket, 5, rate=PER_SECOND, capacity=5, now_usec=START - back_usec)

    assert 3 == granted


def test_moments_out_of_order_count_once() -> None:
    """A caller with an older time than the last one does not let the time between them count twice."""
    _, bucket = take(full(5), 5, rate=PER_SECOND, capacity=5, now_usec=START)
    _, bucket = take(bucket, 0, rate=PER_SECOND, capacity=5, now_usec=START - SECOND)
    granted, _ = take(bucket, 5, rate=PER_SECOND, capacity=5, now_usec=START + SECOND)

    assert 1 == granted


def test_full_bucket_counts_moments_out_of_order_once() -> None:
    """A full bucket remembers the latest time it has seen, not that of a late caller."""
    assert full(5) == refill(full(5), rate=PER_SECOND, capacity=5, now_usec=START - SECOND)


@pytest.mark.parametrize(("back_usec", "expected"), [(CLOCK_STEP_USEC, 0), (CLOCK_STEP_USEC + 1, 2), (DAY, 2)])
def test_clock_set_back_far_does_not_stop_the_refill(back_usec: int, expected: int) -> None:
    """After a clock was set back by more than a minute, tokens go on flowing from there."""
    _, bucket = take(full(5), 5, rate=PER_SECOND, capacity=5, now_usec=START)
    _, bucket = take(bucket, 5, rate=PER_SECOND, capacity=5, now_usec=START - back_usec)
    granted, _ = take(bucket, 5, rate=PER_SECOND, capacity=5, now_usec=START - back_usec + 2 * SECOND)

    assert expected == granted


# --- next_token_usec -----------------------------------------------------------------------------------------------


def test_rate_0_has_no_next_token() -> None:
    """No time brings a token to a paused queue."""
    assert next_token_usec(full(5), rate=Fraction(0)) is None


def test_next_token_is_not_later_if_there_is_one() -> None:
    """A bucket with a token names no moment in the future."""
    assert next_token_usec(full(5), rate=PER_SECOND) == START


# --- properties ----------------------------------------------------------------------------------------------------


@given(rate=rates(), capacity=capacities, pauses=pauses, wanted=st.integers(0, 2000))
def test_no_window_grants_more_than_capacity_and_rate(rate: Fraction, capacity: int, pauses: list[int], wanted: int) -> None:
    """In any window at most a bucketful is granted, and what the rate brings in that time."""
    bucket, now_usec, grants = full(capacity), START, []
    for pause in pauses:
        now_usec += pause
        granted, bucket = take(bucket, wanted, rate=rate, capacity=capacity, now_usec=now_usec)
        grants.append((now_usec, granted))

    for first, (since_usec, _) in enumerate(grants):
        total = 0
        for until_usec, granted in grants[first:]:
            total += granted
            assert total <= capacity + rate * Fraction(until_usec - since_usec, SECOND)


@given(rate=rates(), capacity=capacities, pauses=pauses)
def test_all_that_flows_in_is_granted(rate: Fraction, capacity: int, pauses: list[int]) -> None:
    """Nothing is lost between calls: what was granted and what is left are what the rate brought, as long as nothing overflows."""
    bucket, now_usec, granted = Bucket(0, START), START, 0
    for pause in pauses:
        now_usec += pause
        taken, bucket = take(bucket, 10**18, rate=rate, capacity=10**18, now_usec=now_usec)
        granted += taken

    brought = rate * Fraction(bucket.usec - START, SECOND)
    assert brought == granted + Fraction(bucket.level, DROPS_PER_TOKEN)
    assert 0 <= now_usec - bucket.usec < SECOND


@given(rate=rates(0), capacity=capacities, level=st.integers(0), pauses=pauses)
def test_refilling_is_monotone(rate: Fraction, capacity: int, level: int, pauses: list[int]) -> None:
    """As time goes on a bucket never loses anything, never overflows and never looks back."""
    bucket = Bucket(min(level, capacity * DROPS_PER_TOKEN), START)
    now_usec = START
    for pause in pauses:
        now_usec += pause
        before, bucket = bucket, refill(bucket, rate=rate, capacity=capacity, now_usec=now_usec)

        assert before.level <= bucket.level <= capacity * DROPS_PER_TOKEN
        assert before.usec <= bucket.usec <= now_usec


@given(rate=rates(0), capacity=capacities, level=st.integers(0, 10**12), first=st.integers(0, DAY), second=st.integers(0, DAY))
def test_looking_twice_changes_nothing(rate: Fraction, capacity: int, level: int, first: int, second: int) -> None:
    """A refill in between makes no difference to a later one."""
    bucket = Bucket(min(level, capacity * DROPS_PER_TOKEN), START)
    between = refill(bucket, rate=rate, capacity=capacity, now_usec=START + first)
    late_usec = START + first + second

    assert refill(bucket, rate=rate, capacity=capacity, now_usec=late_usec) == refill(
        between, rate=rate, capacity=capacity, now_usec=late_usec
    )


@given(rate=rates(), capacity=capacities, level=st.integers(0, 2 * DROPS_PER_TOKEN), asked=st.integers(-2 * DAY, 2 * DAY))
def test_next_moment_grants_and_is_the_first(rate: Fraction, capacity: int, level: int, asked: int) -> None:
    """At the moment that is named a token is granted, and a microsecond earlier none, whenever it is asked."""
    _, bucket = take(Bucket(level, START), 2, rate=rate, capacity=capacity, now_usec=START + asked)
    moment = next_token_usec(bucket, rate=rate)
    assert moment is not None
    granted, _ = take(bucket, 1, rate=rate, capacity=capacity, now_usec=moment)
    too_early, _ = take(bucket, 1, rate=rate, capacity=capacity, now_usec=moment - 1)

    assert 1 == granted
    assert (bucket.level >= DROPS_PER_TOKEN) == (1 == too_early)
