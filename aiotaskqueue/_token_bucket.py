"""The token bucket of a queue: how many tasks may start now, and when the next one may. Pure and exact.

Theory of operation. A bucket holds at most `capacity` tokens, starts full and is refilled continuously; a task takes one
whole token. Nothing may be rounded on the way, or a queue of 2000 a day drifts. So we count in *drops*: a token has as
many drops as a day has microseconds, hence a rate of n tokens a day brings exactly n drops each microsecond, and every
rate that is a whole number per second, minute, hour or day is a whole number of drops.

Other rates (``0.5/d``) are a fraction a/b of drops per microsecond. Time is then used in steps of b microseconds, each of
which brings a drops; what is left of the time is not used up but waits, in `usec`, for the next call. The step is short
(b is at most 10**6: one second) and it delays a token by less than a step, never adding up.

The level does not depend on the rate: a stored bucket keeps its meaning when the configuration changes.

Source: App Engine's queue.yaml, ``rate`` and ``bucket_size`` (SPEC 4.6).
"""

from __future__ import annotations

from fractions import Fraction

import attrs

_SECONDS_PER_DAY = 86_400

DROPS_PER_TOKEN = _SECONDS_PER_DAY * 1_000_000
"""The unit of `Bucket.level`. A signed 64-bit column holds 106 million tokens."""

CLOCK_STEP_USEC = 60_000_000
"""A `now_usec` that is further back than this comes from a clock that was set, and not from callers out of order.

Callers read the clock before they wait for the store's lock, so a moment may arrive after a later one. Counting the time
between the two twice would hand out tokens that were never there. A minute is far above any wait for a lock, and the
longest that a clock set back may stop the refill.
"""


@attrs.frozen
class Bucket:
    """What is in a bucket, and since when. Both numbers are stored."""

    level: int
    """In drops: `DROPS_PER_TOKEN` of them are one token."""
    usec: int
    """Refilled up to this moment, microseconds since 1970, UTC."""

    @classmethod
    def full(cls, *, capacity: int, now_usec: int) -> Bucket:
        """Return the bucket of a new queue."""
        return cls(capacity * DROPS_PER_TOKEN, now_usec)


def refill(bucket: Bucket, *, rate: Fraction, capacity: int, now_usec: int) -> Bucket:
    """Return the bucket with what has flowed in until now, `capacity` tokens at most.

    A clock that steps back neither takes tokens away nor adds any.

    Args:
        bucket: As it was.
        rate: Tokens per second, 0 for none (`QueueConfig.exact_rate`).
        capacity: Tokens that fit in, at least 1 (`QueueConfig.bucket_size`).
        now_usec: The time, microseconds since 1970, UTC.
    """
    since_usec = _since(bucket, now_usec)
    drops, step_usec = _flow(rate)
    steps = max(0, now_usec - since_usec) // step_usec
    level = bucket.level + steps * drops
    if level >= capacity * DROPS_PER_TOKEN:
        return Bucket.full(capacity=capacity, now_usec=max(since_usec, now_usec))
    return Bucket(level, since_usec + steps * step_usec)


def take(bucket: Bucket, wanted: int, *, rate: Fraction, capacity: int, now_usec: int) -> tuple[int, Bucket]:
    """Take up to `wanted` whole tokens.

    Store the bucket that is returned, also when it granted nothing. Rate 0 grants nothing, however full the bucket is.

    Args:
        bucket: As it was.
        wanted: How many tasks would start; less than 1 takes nothing.
        rate: As for `refill`.
        capacity: As for `refill`.
        now_usec: As for `refill`.

    Returns:
        How many tasks may start now, and the bucket without their tokens.
    """
    bucket = refill(bucket, rate=rate, capacity=capacity, now_usec=now_usec)
    if not rate:
        return 0, bucket
    granted = max(0, min(wanted, bucket.level // DROPS_PER_TOKEN))
    return granted, attrs.evolve(bucket, level=bucket.level - granted * DROPS_PER_TOKEN)


def next_token_usec(bucket: Bucket, *, rate: Fraction) -> int | None:
    """Return the first moment at which `take` grants a token; one in the past if there is a token now.

    Args:
        bucket: As `take` returned it.
        rate: As for `refill`.

    Returns:
        Microseconds since 1970, UTC; None for rate 0.
    """
    if not rate:
        return None
    drops, step_usec = _flow(rate)
    missing = max(0, DROPS_PER_TOKEN - bucket.level)
    steps = -(-missing // drops)  # rounded up: one step earlier the token is not whole
    return bucket.usec + steps * step_usec


def _flow(rate: Fraction) -> tuple[int, int]:
    """Return how many drops flow in per step, and how many microseconds a step takes."""
    return (rate * _SECONDS_PER_DAY).as_integer_ratio()


def _since(bucket: Bucket, now_usec: int) -> int:
    """Return the moment from which refilling goes on."""
    was_set_back = bucket.usec - now_usec > CLOCK_STEP_USEC
    return now_usec if was_set_back else bucket.usec
