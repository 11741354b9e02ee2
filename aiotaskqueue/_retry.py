"""Pure: whether a failed task may be retried, and when. Microseconds are whole numbers.

Source: App Engine's formula (SPEC 2); the jitter is ours.
"""

from __future__ import annotations

import re
from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

from aiotaskqueue._task import TaskRetryOptions
from aiotaskqueue._task_arguments import EPOCH

DEFAULT_MIN_BACKOFF_SECONDS: Final = 0.1
DEFAULT_MAX_BACKOFF_SECONDS: Final = 3600.0
DEFAULT_MAX_DOUBLINGS: Final = 16

# A thousand years: with it even a doubled delay leaves the ETA before the year 9999, the last that a datetime can show.
_LONGEST_SECONDS: Final = 1000 * 365.25 * 86_400

# A larger power of two is no float; that delay is over any maximum anyway.
_LARGEST_EXPONENT: Final = 1023

_Number = TypeVar("_Number", int, float)

_NO_OPTIONS: Final = TaskRetryOptions()


def effective_options(task_options: TaskRetryOptions | None, queue_options: TaskRetryOptions | None) -> TaskRetryOptions:
    """Return the options that hold, with the built-in defaults filled in (SPEC 2.2).

    The task's, if any field of them is set, else the queue's; the two are never mixed.
    """
    # Options without any field are as good as none.
    chosen = next((options for options in (task_options, queue_options) if options is not None and options != _NO_OPTIONS), _NO_OPTIONS)
    maximum = _or_default(chosen.max_backoff_seconds, DEFAULT_MAX_BACKOFF_SECONDS)
    return TaskRetryOptions(
        # One alone may contradict the other's default. The maximum wins: every delay is cut to it anyway.
        min_backoff_seconds=min(_or_default(chosen.min_backoff_seconds, DEFAULT_MIN_BACKOFF_SECONDS), maximum),
        max_backoff_seconds=maximum,
        max_doublings=_or_default(chosen.max_doublings, DEFAULT_MAX_DOUBLINGS),
        task_retry_limit=chosen.task_retry_limit,
        task_age_limit=chosen.task_age_limit,
    )


def _or_default(value: _Number | None, default: _Number) -> _Number:
    return default if value is None else value


def backoff_usec(options: TaskRetryOptions, retry_number: int) -> int:
    """Return the delay before retry `retry_number` (1 for the first): doubling, then linear, then constant (SPEC 2.3)."""
    most_doublings = _or_default(options.max_doublings, DEFAULT_MAX_DOUBLINGS)
    doublings = min(retry_number - 1, most_doublings)
    first_usec = _to_usec(_or_default(options.min_backoff_seconds, DEFAULT_MIN_BACKOFF_SECONDS))
    delay_usec = first_usec * 2.0 ** min(doublings, _LARGEST_EXPONENT) * (retry_number - doublings)
    return int(min(delay_usec, max_backoff_usec(options)))


def max_backoff_usec(options: TaskRetryOptions) -> int:
    """Return the longest delay; it also bounds what a worker may ask for with Retry-After."""
    return int(_to_usec(_or_default(options.max_backoff_seconds, DEFAULT_MAX_BACKOFF_SECONDS)))


def _to_usec(seconds: float) -> float:
    return min(seconds, _LONGEST_SECONDS) * 1_000_000.0


def may_retry(options: TaskRetryOptions, *, retries_so_far: int, age_usec: int) -> bool:
    """Return whether a task that has just failed is tried again (SPEC 2.4).

    Args:
        options: The options that hold.
        retries_so_far: Retries before this one: 0 after the first attempt.
        age_usec: Microseconds since the first attempt began.
    """
    retry_limit, age_limit = options.task_retry_limit, options.task_age_limit
    if retry_limit is None and age_limit is None:
        return True
    # Given up only when all the limits that there are, are exceeded.
    is_within_retries = retry_limit is not None and retries_so_far < retry_limit
    is_within_age = age_limit is not None and age_usec <= age_limit * 1_000_000
    return is_within_retries or is_within_age


def with_jitter(delay_usec: int, jitter: float, random_value: float) -> int:
    """Return the delay made longer by up to the factor `jitter`, so that tasks that failed together do not return together.

    Args:
        delay_usec: The delay; 0 stays 0.
        jitter: 0 for exactly App Engine's figures, 0.1 for up to a tenth more.
        random_value: Where in that range, 0 to 1.
    """
    return delay_usec + int(delay_usec * jitter * random_value)


def retry_after_usec(text: str | None, now_usec: int) -> int | None:
    """Return how long a worker asks us to wait, at least 0; None if it does not, or not in a way we understand.

    Source: RFC 9110 section 10.2.3: seconds, or an HTTP date.
    """
    if text is None:
        return None
    # Not int() alone: it takes digits of other scripts, signs and underscores (RELIABILITY 2).
    wait_usec = int(text) * 1_000_000 if re.fullmatch(r"[0-9]{1,15}", text) else _until_date_usec(text, now_usec)
    return None if wait_usec is None else min(max(wait_usec, 0), int(_to_usec(_LONGEST_SECONDS)))


def _until_date_usec(text: str, now_usec: int) -> int | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        # OverflowError for a year of twenty digits (seen by fuzzing).
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)  # what `-0000` gives
    return (moment - EPOCH) // timedelta(microseconds=1) - now_usec
