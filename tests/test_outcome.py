"""decide: from how an attempt ended to what becomes of its task, as a table."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from aiotaskqueue import QueueConfig, TaskRetryOptions
from aiotaskqueue._outcome import Attempt, decide
from aiotaskqueue._record import AttemptRecord, TaskRecord, TaskState
from aiotaskqueue.delivery._base import Answer, FailureReason, NoAnswer
from aiotaskqueue.stores._base import Dead, Delete, Retry

SECOND = 1_000_000
STARTED = 1_767_225_600 * SECOND
ENDED = STARTED + 2 * SECOND
ETA = STARTED - 5 * SECOND
DAY = 86_400 * SECOND

RECORD = TaskRecord(
    uuid=bytes(16),
    queue_name="default",
    name="a",
    url="/w",
    eta_usec=ETA,
    created_usec=ETA,
    state=TaskState.LEASED,
    attempts=1,
    lease_token=1,
    first_attempt_usec=STARTED,
)
CONFIG = QueueConfig("default", jitter=0)

EXECUTED = [FailureReason.DEADLINE, FailureReason.TRUNCATED, FailureReason.MALFORMED, FailureReason.TOO_LARGE]
NOT_EXECUTED = [FailureReason.DISCONNECTED, FailureReason.UNREACHABLE, FailureReason.ERROR]


def end(result: Answer | NoAnswer | int, record: TaskRecord = RECORD, config: QueueConfig = CONFIG, **around: Any) -> Delete | Retry | Dead:
    """Decide about an attempt of two seconds."""
    answer = Answer(result) if isinstance(result, int) else result
    return decide(Attempt(record=record, config=config, result=answer, started_usec=STARTED, ended_usec=ENDED, **around))


def with_options(**fields: float) -> TaskRecord:
    """Return a task with retry options of its own."""
    return attrs.evolve(RECORD, retry_options=TaskRetryOptions(**fields))


def log(reason: str, *, status: int | None = None, detail: str = "", attempt: int = 1) -> AttemptRecord:
    """Return the log of the attempt."""
    return AttemptRecord(attempt=attempt, started_usec=STARTED, ended_usec=ENDED, reason=reason, status=status, detail=detail)


# --- success -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_named", "tombstone_seconds", "expected"),
    [
        (True, CONFIG.tombstone_seconds, ENDED + 9 * DAY),
        (True, 1.5, ENDED + 1_500_000),
        (True, 0, None),
        (False, CONFIG.tombstone_seconds, None),
    ],
)
def test_success(is_named: bool, tombstone_seconds: float, expected: int | None) -> None:
    """A task that succeeded is deleted; a name that its user gave stays reserved for nine days from the end (SPEC 3.5)."""
    config = attrs.evolve(CONFIG, tombstone_seconds=tombstone_seconds)

    assert Delete(expected) == end(200, attrs.evolve(RECORD, is_named=is_named), config)


@pytest.mark.promise("P6")
@pytest.mark.parametrize("status", [100, 199, 201, 202, 204, 206, 299, 300, 301, 304, 400, 404, 429, 500, 503, 599, 999])
def test_only_200_is_success(status: int) -> None:
    """P6: every status but 200 is a failure, that was an execution."""
    outcome = end(status)

    assert isinstance(outcome, Retry)
    assert (True, True, True) == (outcome.is_attempt, outcome.is_execution, outcome.is_conclusive)


@pytest.mark.parametrize(("status", "expected"), [(200, Delete), (204, Delete), (201, Retry)])
def test_success_statuses(status: int, expected: type) -> None:
    """A queue may count other statuses as success as well (DESIGN 6)."""
    assert expected is type(end(status, config=attrs.evolve(CONFIG, success_statuses=frozenset({200, 204}))))


def test_success_where_200_is_none() -> None:
    """A queue may count 200 as failure."""
    assert Retry is type(end(200, config=attrs.evolve(CONFIG, success_statuses=frozenset({204}))))


# --- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (Answer(500, detail="oh"), "status"),
        (Answer(204), "status"),
        (Answer(304), "status"),
        (Answer(300), "redirect"),
        (Answer(399), "redirect"),
        (Answer(400), "status"),
        *[(NoAnswer(reason, "why"), reason.value) for reason in EXECUTED + NOT_EXECUTED],
    ],
)
def test_failure_is_logged(result: Answer | NoAnswer, reason: str) -> None:
    """A failure is retried after its backoff, and logged with its reason, status and detail."""
    status = result.status if isinstance(result, Answer) else None
    is_execution = isinstance(result, Answer) or result.reason in EXECUTED
    expected = Retry(eta_usec=ENDED + 100_000, is_execution=is_execution, log=log(reason, status=status, detail=result.detail))

    assert expected == end(result)


def test_every_reason_is_in_the_table() -> None:
    """Each reason for which there may be no answer is decided about somewhere here."""
    assert set(FailureReason) == {*EXECUTED, *NOT_EXECUTED, FailureReason.STALE, FailureReason.CANCELLED}


# --- when ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("P10")
@pytest.mark.parametrize(
    ("attempts", "random_value", "expected"),
    [(1, 0.0, 100_000), (1, 1.0, 110_000), (2, 0.5, 210_000), (16, 0.0, 3_276_800_000), (17, 1.0, 3_960_000_000)],
)
def test_backoff_and_jitter(attempts: int, random_value: float, expected: int) -> None:
    """P10: the delay is App Engine's, made longer by up to the queue's jitter, and counted from the end of the attempt."""
    outcome = end(500, attrs.evolve(RECORD, attempts=attempts), attrs.evolve(CONFIG, jitter=0.1), random_value=random_value)

    assert isinstance(outcome, Retry)
    assert ENDED + expected == outcome.eta_usec


@pytest.mark.parametrize(
    ("task_options", "queue_options", "expected"),
    [
        (None, None, 100_000),
        (None, TaskRetryOptions(min_backoff_seconds=7), 7 * SECOND),
        (TaskRetryOptions(), TaskRetryOptions(min_backoff_seconds=7), 7 * SECOND),
        (TaskRetryOptions(min_backoff_seconds=3), TaskRetryOptions(min_backoff_seconds=7), 3 * SECOND),
        (TaskRetryOptions(task_retry_limit=9), TaskRetryOptions(min_backoff_seconds=7), 100_000),
    ],
)
def test_whose_options_hold(task_options: TaskRetryOptions | None, queue_options: TaskRetryOptions | None, expected: int) -> None:
    """The task's options hold if it has any, else the queue's, and they are never mixed (SPEC 2.2)."""
    outcome = end(500, attrs.evolve(RECORD, retry_options=task_options), attrs.evolve(CONFIG, retry_options=queue_options))

    assert isinstance(outcome, Retry)
    assert ENDED + expected == outcome.eta_usec


@pytest.mark.parametrize(
    ("status", "retry_after", "expected"),
    [
        (503, "7", 7 * SECOND),
        (429, "7", 7 * SECOND),
        (503, "0", 100_000),
        (503, None, 100_000),
        (503, "soon", 100_000),
        (503, "3600", 3600 * SECOND),
        (503, "3601", 3600 * SECOND),
        (429, "Thu, 01 Jan 2026 00:01:02 GMT", 60 * SECOND),
        (429, "Wed, 31 Dec 2025 00:00:00 GMT", 100_000),
        (500, "7", 100_000),
        (302, "7", 100_000),
        (204, "7", 100_000),
    ],
)
def test_retry_after(status: int, retry_after: str | None, expected: int) -> None:
    """With 429 and 503 a worker may ask for more time than the backoff, up to the longest backoff (SPEC 4.4)."""
    outcome = end(Answer(status, retry_after))

    assert isinstance(outcome, Retry)
    assert ENDED + expected == outcome.eta_usec


# --- giving up -----------------------------------------------------------------------------------------------------


@pytest.mark.promise("P10")
@pytest.mark.parametrize(
    ("retry_limit", "age_limit", "attempts", "age_usec", "is_retried"),
    [
        (None, None, 1000, 1000 * DAY, True),
        (0, None, 1, 0, False),
        (2, None, 2, 1000 * DAY, True),
        (2, None, 3, 0, False),
        (None, 10, 1000, 10 * SECOND, True),
        (None, 10, 1, 10 * SECOND + 1, False),
        (None, 0, 1, 0, True),
        (None, 0, 1, 1, False),
        (2, 10, 3, 10 * SECOND, True),
        (2, 10, 2, 10 * SECOND + 1, True),
        (2, 10, 3, 10 * SECOND + 1, False),
    ],
)
def test_limits(retry_limit: int | None, age_limit: int | None, attempts: int, age_usec: int, is_retried: bool) -> None:
    """A task is given up only when every limit that it has is passed; the age counts from its first attempt (SPEC 2.4)."""
    options = TaskRetryOptions(task_retry_limit=retry_limit, task_age_limit=age_limit)
    record = attrs.evolve(RECORD, retry_options=options, attempts=attempts, first_attempt_usec=ENDED - age_usec)

    assert (Retry if is_retried else Dead) is type(end(500, record))


def test_age_of_a_first_attempt() -> None:
    """The age of a task whose first attempt this is counts from its beginning."""
    record = attrs.evolve(with_options(task_age_limit=2), first_attempt_usec=None)
    config = attrs.evolve(CONFIG)

    assert [Retry, Dead] == [
        type(decide(Attempt(record=record, config=config, result=Answer(500), started_usec=STARTED, ended_usec=ended)))
        for ended in (ENDED, ENDED + 1)
    ]


@pytest.mark.parametrize(
    ("result", "reason", "is_execution"),
    [
        (Answer(500, detail="oh"), "status", True),
        (Answer(302), "redirect", True),
        (NoAnswer(FailureReason.DEADLINE), "deadline", True),
        (NoAnswer(FailureReason.DISCONNECTED), "disconnected", False),
    ],
)
def test_dead(result: Answer | NoAnswer, reason: str, is_execution: bool) -> None:
    """A task that is given up is kept for its queue's retention, with the reason and the last attempt."""
    status = result.status if isinstance(result, Answer) else None
    expected = Dead(
        reason=reason,
        keep_until_usec=ENDED + 30 * DAY,
        is_execution=is_execution,
        log=log(reason, status=status, detail=result.detail),
    )

    assert expected == end(result, with_options(task_retry_limit=0))


def test_dead_retention() -> None:
    """How long dead tasks are kept is the queue's choice."""
    outcome = end(500, with_options(task_retry_limit=0), attrs.evolve(CONFIG, dead_retention_seconds=1.5))

    assert isinstance(outcome, Dead)
    assert ENDED + 1_500_000 == outcome.keep_until_usec


# --- what is no attempt --------------------------------------------------------------------------------------------


def test_target_that_is_not_up() -> None:
    """While the target is not up, not to reach it is no attempt: the task waits a little, whatever its limits, unlogged."""
    outcome = end(NoAnswer(FailureReason.UNREACHABLE), with_options(task_retry_limit=0), is_target_up=False, wait_usec=50_000)

    assert Retry(eta_usec=ENDED + 50_000, is_attempt=False, is_conclusive=False) == outcome


@pytest.mark.parametrize("reason", [FailureReason.DISCONNECTED, FailureReason.DEADLINE, FailureReason.ERROR])
def test_other_failures_while_the_target_is_not_up(reason: FailureReason) -> None:
    """While the target is not up, every other failure is an attempt like any."""
    assert end(NoAnswer(reason), is_target_up=True) == end(NoAnswer(reason), is_target_up=False, wait_usec=50_000)


def test_answer_while_draining() -> None:
    """A success while the service drains, when no target counts as up, is a success."""
    assert Delete() == end(200, is_target_up=False)


def test_stale_connection() -> None:
    """A reused connection that died before its first byte: again at once, no attempt, and a suspect is none the wiser."""
    outcome = end(NoAnswer(FailureReason.STALE), with_options(task_retry_limit=0))

    assert Retry(eta_usec=ETA, is_attempt=False, is_stale=True, is_conclusive=False, log=log("stale")) == outcome


def test_stale_connection_twice_in_a_row() -> None:
    """The second such end in a row is a failure with its backoff, and no execution (DESIGN 6, keep-alive)."""
    outcome = end(NoAnswer(FailureReason.STALE), attrs.evolve(RECORD, was_stale=True))

    assert Retry(eta_usec=ENDED + 100_000, log=log("stale")) == outcome


def test_stale_connection_twice_in_a_row_at_the_limit() -> None:
    """The second such end in a row counts towards the limits."""
    assert Dead is type(end(NoAnswer(FailureReason.STALE), attrs.evolve(with_options(task_retry_limit=0), was_stale=True)))


def test_given_up_by_ourselves() -> None:
    """P20: an attempt that we cut since the service closes is no attempt, whatever the task's limits, and is due at once."""
    outcome = end(NoAnswer(FailureReason.CANCELLED, "closed"), with_options(task_retry_limit=0, task_age_limit=0))

    assert Retry(eta_usec=ETA, is_attempt=False, is_conclusive=False, log=log("cancelled", detail="closed")) == outcome


def test_log_tells_which_attempt() -> None:
    """The log says which attempt it was."""
    outcome = end(500, attrs.evolve(RECORD, attempts=7))

    assert isinstance(outcome, Retry)
    assert log("status", status=500, attempt=7) == outcome.log
