"""Retry options, backoff and when retries stop, as App Engine has them (SPEC 2; GAE taskqueue.TaskRetryOptions)."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiotaskqueue._retry import backoff_usec, effective_options, max_backoff_usec, may_retry, retry_after_usec, with_jitter
from aiotaskqueue._task import TaskRetryOptions
from aiotaskqueue.errors import InvalidTaskRetryOptionsError

THOUSAND_YEARS_USEC = 31_557_600_000 * 1_000_000
FIELDS = ["min_backoff_seconds", "max_backoff_seconds", "max_doublings", "task_retry_limit", "task_age_limit"]


# --- SPEC 2.1: fields ----------------------------------------------------------------------------------------------


def test_every_field_is_optional() -> None:
    """Options without any field have None everywhere (SPEC 2.1)."""
    assert (None,) * 5 == attrs.astuple(TaskRetryOptions())


@pytest.mark.row(34)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [0, 1, 10**9, 10**300])
def test_zero_and_huge_numbers_are_taken(field: str, value: int) -> None:
    """Every field takes numbers from 0 on, however large (SPEC 2.1)."""
    assert value == getattr(TaskRetryOptions(**{field: value}), field)


@pytest.mark.row(34)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), float("inf"), float("-inf"), 10**400])
def test_numbers_out_of_range(field: str, value: float) -> None:
    """Negative numbers, NaN, infinity and ints beyond any float are refused, and the error names the field (SPEC 2.1)."""
    with pytest.raises(InvalidTaskRetryOptionsError, match=field):
        TaskRetryOptions(**{field: value})


@pytest.mark.row(34)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", ["1", [], True, b"1"])
def test_values_that_are_no_numbers(field: str, value: object) -> None:
    """What is not a number is a TypeError (SPEC 2.1)."""
    with pytest.raises(TypeError, match=field):
        TaskRetryOptions(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["max_doublings", "task_retry_limit"])
def test_counts_are_whole(field: str) -> None:
    """A count with a fraction is refused (SPEC 2.1)."""
    with pytest.raises(InvalidTaskRetryOptionsError, match=r"1\.5 is not a whole number"):
        TaskRetryOptions(**{field: 1.5})


def test_whole_float_is_a_count() -> None:
    """3.0, which YAML may give, is 3."""
    assert "3" == repr(TaskRetryOptions(max_doublings=3.0).max_doublings)


@pytest.mark.parametrize(("given_limit", "expected"), [(59.8, 60), (0.2, 1), (60, 60), (0.0, 0)])
def test_age_limit_is_rounded_up(given_limit: float, expected: int) -> None:
    """The age limit is kept in whole seconds, rounded up (SPEC 2.1)."""
    assert expected == TaskRetryOptions(task_age_limit=given_limit).task_age_limit


@pytest.mark.row(34)
def test_maximum_below_minimum() -> None:
    """A maximum below the minimum is refused (SPEC 2.1)."""
    with pytest.raises(InvalidTaskRetryOptionsError, match=r"9\.9 is less than min_backoff_seconds 10"):
        TaskRetryOptions(min_backoff_seconds=10, max_backoff_seconds=9.9)


def test_maximum_equal_to_minimum() -> None:
    """A maximum equal to the minimum passes (SPEC 2.1)."""
    assert 10 == TaskRetryOptions(min_backoff_seconds=10, max_backoff_seconds=10).max_backoff_seconds


@pytest.mark.row(34)
def test_unknown_option() -> None:
    """An unknown keyword is a TypeError (SPEC 2.1)."""
    with pytest.raises(TypeError, match="retries"):
        TaskRetryOptions(retries=3)  # type: ignore[call-arg]


def test_options_are_keyword_only() -> None:
    """A positional argument is a TypeError (SPEC 2.1)."""
    with pytest.raises(TypeError):
        TaskRetryOptions(1)  # type: ignore[call-arg]


def test_options_are_frozen() -> None:
    """No field may be set later (SPEC 2.1)."""
    with pytest.raises(AttributeError):
        TaskRetryOptions().task_retry_limit = 1  # type: ignore[misc]


# --- SPEC 2.2: which options apply ---------------------------------------------------------------------------------

DEFAULTS = TaskRetryOptions(min_backoff_seconds=0.1, max_backoff_seconds=3600.0, max_doublings=16)
OF_QUEUE = TaskRetryOptions(min_backoff_seconds=1, max_backoff_seconds=2, max_doublings=3, task_retry_limit=4, task_age_limit=5)


@pytest.mark.parametrize("task_options", [None, TaskRetryOptions()])
@pytest.mark.parametrize("queue_options", [None, TaskRetryOptions()])
def test_built_in_defaults(task_options: TaskRetryOptions | None, queue_options: TaskRetryOptions | None) -> None:
    """Where neither task nor queue has options, the built-in defaults hold (SPEC 2.2)."""
    assert DEFAULTS == effective_options(task_options, queue_options)


@pytest.mark.parametrize("task_options", [None, TaskRetryOptions()])
def test_options_of_the_queue(task_options: TaskRetryOptions | None) -> None:
    """A task whose options have no field has the queue's (SPEC 2.2)."""
    assert OF_QUEUE == effective_options(task_options, OF_QUEUE)


def test_options_are_not_merged() -> None:
    """One field set on the task hides all of the queue's (SPEC 2.2)."""
    expected = attrs.evolve(DEFAULTS, task_retry_limit=7)

    assert expected == effective_options(TaskRetryOptions(task_retry_limit=7), OF_QUEUE)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (TaskRetryOptions(min_backoff_seconds=5000), 3600),
        (TaskRetryOptions(max_backoff_seconds=0.05), 0.05),
        (TaskRetryOptions(max_backoff_seconds=0), 0),
    ],
)
def test_maximum_wins_over_minimum(options: TaskRetryOptions, expected: float) -> None:
    """Where one of the two contradicts the other's default, the maximum holds for both (SPEC 2.3)."""
    filled = effective_options(options, None)

    assert (expected, expected) == (filled.min_backoff_seconds, filled.max_backoff_seconds)


# --- SPEC 2.3: backoff ---------------------------------------------------------------------------------------------


@pytest.mark.promise("P10")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            TaskRetryOptions(),
            "0.1 0.2 0.4 0.8 1.6 3.2 6.4 12.8 25.6 51.2 102.4 204.8 409.6 819.2 1638.4 3276.8 3600 3600 3600",
        ),
        (
            TaskRetryOptions(min_backoff_seconds=10, max_backoff_seconds=200, max_doublings=0),
            "10 20 30 40 50 60 70 80 90 100 110 120 130 140 150 160 170 180 190 200 200 200",
        ),
        (TaskRetryOptions(min_backoff_seconds=10, max_backoff_seconds=300, max_doublings=3), "10 20 40 80 160 240 300 300"),
        (TaskRetryOptions(min_backoff_seconds=10, max_backoff_seconds=200, max_doublings=3), "10 20 40 80 160 200 200"),
        (TaskRetryOptions(min_backoff_seconds=1, max_doublings=5), "1 2 4 8 16 32 64 96 128 160 192 224"),
        (TaskRetryOptions(min_backoff_seconds=0), "0 0 0 0"),
        (TaskRetryOptions(max_backoff_seconds=0), "0 0 0 0"),
        (TaskRetryOptions(min_backoff_seconds=5000), "3600 3600 3600"),
    ],
)
def test_backoff_sequences(options: TaskRetryOptions, expected: str) -> None:
    """The delays are App Engine's to the microsecond, with and without defaults filled in (SPEC 2.3)."""
    delays = [round(float(seconds) * 1_000_000) for seconds in expected.split()]
    numbers = range(1, len(delays) + 1)
    filled = effective_options(options, None)

    assert (delays, delays) == ([backoff_usec(options, n) for n in numbers], [backoff_usec(filled, n) for n in numbers])


@pytest.mark.row(34)
@pytest.mark.parametrize("retry_number", [1, 2, 1025, 10**6, 10**30])
def test_backoff_does_not_overflow(retry_number: int) -> None:
    """Numbers beyond all sense give the longest delay, not an error (RELIABILITY 4.1, row 34)."""
    options = TaskRetryOptions(min_backoff_seconds=10**300, max_backoff_seconds=10**300, max_doublings=10**9)

    assert THOUSAND_YEARS_USEC == backoff_usec(options, retry_number)


@pytest.mark.promise("P10")
@given(
    st.floats(0, 1e300),
    st.floats(0, 1e300),
    st.integers(0, 10**12),
    st.integers(1, 10**12),
)
@settings(database=None)
def test_backoff_never_shrinks(first: float, second: float, doublings: int, retry_number: int) -> None:
    """A later retry never waits shorter, and never longer than the maximum (SPEC 2.3)."""
    options = TaskRetryOptions(min_backoff_seconds=min(first, second), max_backoff_seconds=max(first, second), max_doublings=doublings)

    assert 0 <= backoff_usec(options, retry_number) <= backoff_usec(options, retry_number + 1) <= max_backoff_usec(options)


@pytest.mark.parametrize(("seconds", "expected"), [(None, 3_600_000_000), (0, 0), (1.5, 1_500_000), (1e300, THOUSAND_YEARS_USEC)])
def test_longest_delay(seconds: float | None, expected: int) -> None:
    """The longest delay is the maximum of the options, at most a thousand years."""
    assert expected == max_backoff_usec(TaskRetryOptions(max_backoff_seconds=seconds))


# --- SPEC 2.4: when retries stop -----------------------------------------------------------------------------------


def attempts(options: TaskRetryOptions, at_most: int = 50) -> list[float]:
    """Return the seconds at which a task that always fails is attempted."""
    starts = [0]
    while len(starts) < at_most and may_retry(options, retries_so_far=len(starts) - 1, age_usec=starts[-1]):
        starts.append(starts[-1] + backoff_usec(options, len(starts)))
    return [start / 1_000_000 for start in starts]


@pytest.mark.promise("P10")
@pytest.mark.row(34)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (TaskRetryOptions(task_retry_limit=2), [0, 0.1, 0.3]),
        (TaskRetryOptions(task_retry_limit=0), [0]),
        (TaskRetryOptions(task_age_limit=10, min_backoff_seconds=4, max_doublings=0), [0, 4, 12]),
        (TaskRetryOptions(task_retry_limit=2, task_age_limit=10, min_backoff_seconds=2, max_doublings=0), [0, 2, 6, 12]),
        (TaskRetryOptions(task_retry_limit=2, task_age_limit=3, min_backoff_seconds=2, max_doublings=0), [0, 2, 6]),
        (TaskRetryOptions(task_age_limit=0), [0, 0.1]),
    ],
)
def test_attempts_until_given_up(options: TaskRetryOptions, expected: list[float]) -> None:
    """A task that always fails is attempted at App Engine's times and then given up (SPEC 2.4)."""
    assert expected == attempts(options)


def test_without_limits_for_ever() -> None:
    """With neither limit a task is retried for ever (SPEC 2.4)."""
    assert may_retry(TaskRetryOptions(), retries_so_far=10**9, age_usec=10**18)


@pytest.mark.parametrize(("age_usec", "expected"), [(10_000_000, True), (10_000_001, False)])
def test_age_limit_is_inclusive(age_usec: int, expected: bool) -> None:
    """A task of exactly the age limit is retried, a microsecond later it is not (SPEC 2.4)."""
    assert expected is may_retry(TaskRetryOptions(task_age_limit=10), retries_so_far=0, age_usec=age_usec)


# --- jitter, Retry-After -------------------------------------------------------------------------------------------


@pytest.mark.promise("P10")
@pytest.mark.parametrize(
    ("delay_usec", "jitter", "random_value", "expected"),
    [(1000, 0.1, 0.0, 1000), (1000, 0.1, 1.0, 1100), (1000, 0.1, 0.5, 1050), (1001, 0.0, 0.7, 1001), (0, 0.1, 1.0, 0)],
)
def test_jitter(delay_usec: int, jitter: float, random_value: float, expected: int) -> None:
    """Jitter only makes a delay longer, by up to its share; none gives exactly App Engine's figures (DESIGN 6)."""
    assert expected == with_jitter(delay_usec, jitter, random_value)


NOW_USEC = 784_111_777_000_000  # Sun, 06 Nov 1994 08:49:37 GMT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("120", 120_000_000),
        ("0", 0),
        ("0" * 14 + "7", 7_000_000),
        ("9" * 15, THOUSAND_YEARS_USEC),
        ("Sun, 06 Nov 1994 08:50:37 GMT", 60_000_000),
        ("Sunday, 06-Nov-94 08:50:37 GMT", 60_000_000),
        ("Sun Nov  6 08:50:37 1994", 60_000_000),
        ("Sun, 06 Nov 1994 08:50:37 -0000", 60_000_000),
        ("Sun, 06 Nov 1994 09:50:37 +0100", 60_000_000),
        ("Sun, 06 Nov 1994 08:49:36 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799_000_000 - NOW_USEC),
    ],
)
def test_retry_after(text: str, expected: int) -> None:
    """Retry-After is understood as seconds and as any HTTP date, and is never negative (SPEC 4.4; RFC 9110 section 10.2.3)."""
    assert min(expected, THOUSAND_YEARS_USEC) == retry_after_usec(text, NOW_USEC)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "soon",
        "-5",
        "+5",
        "1.5",
        "1_0",
        "１２",  # noqa: RUF001 -- full-width digits are the case
        "9" * 16,
        "9" * 5000,
        "120\n",
        "Sun, 99 Nov 1994 08:49:37 GMT",
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "\x00",
    ],
)
def test_retry_after_that_means_nothing(text: str | None) -> None:
    """Anything else in Retry-After is as if there were none (RELIABILITY 2: integers by fullmatch)."""
    assert retry_after_usec(text, NOW_USEC) is None


@given(st.text() | st.text("0123456789:+-, GMTJanSunNov", max_size=40), st.integers(0, 253_402_300_799_000_000))
@settings(database=None)
def test_retry_after_never_raises(text: str, now_usec: int) -> None:
    """No text of a hostile worker makes the dispatcher stumble (RELIABILITY T15)."""
    wait_usec = retry_after_usec(text, now_usec)

    assert wait_usec is None or 0 <= wait_usec <= THOUSAND_YEARS_USEC
