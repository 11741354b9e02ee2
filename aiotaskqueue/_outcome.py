"""Pure: from how an attempt ended to what becomes of its task."""

from __future__ import annotations

import attrs

from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import AttemptRecord, TaskRecord
from aiotaskqueue._retry import backoff_usec, effective_options, max_backoff_usec, may_retry, retry_after_usec, with_jitter
from aiotaskqueue.delivery._base import Answer, FailureReason, NoAnswer
from aiotaskqueue.stores._base import Dead, Delete, Outcome, Retry, tombstone_until_usec

# Statuses whose Retry-After counts (SPEC 4.4).
_ASKING_FOR_TIME = frozenset({429, 503})


@attrs.frozen(kw_only=True)
class Attempt:
    """One attempt that has ended, and what was known around it."""

    record: TaskRecord
    config: QueueConfig
    result: Answer | NoAnswer
    started_usec: int
    ended_usec: int
    random_value: float = 0.0
    """0 to 1, for the jitter."""
    is_target_up: bool = True
    """False while the target has never answered, or we are draining: then not to reach it is no attempt."""
    wait_usec: int = 0
    """How long to leave a target alone that is not up."""


def succeed(record: TaskRecord, config: QueueConfig, result: Answer | NoAnswer, ended_usec: int) -> Delete | None:
    """Return what becomes of a task whose attempt was a success; None: it was none."""
    if isinstance(result, NoAnswer) or result.status not in config.success_statuses:
        return None
    return Delete(tombstone_until_usec(config, ended_usec) if record.is_named else None)


def decide(attempt: Attempt) -> Outcome:
    """Return what becomes of the task."""
    record, result = attempt.record, attempt.result
    success = succeed(record, attempt.config, result, attempt.ended_usec)
    if success is not None:
        return success
    if isinstance(result, NoAnswer):
        if result.reason is FailureReason.UNREACHABLE and not attempt.is_target_up:
            return Retry(eta_usec=attempt.ended_usec + attempt.wait_usec, is_attempt=False, is_conclusive=False)
        if result.reason is FailureReason.STALE and not record.was_stale:
            # Most likely closed by the server before we wrote: again at once, but not twice in a row.
            return Retry(eta_usec=record.eta_usec, is_attempt=False, is_stale=True, is_conclusive=False, log=_log(attempt))
        if result.reason is FailureReason.CANCELLED:
            # Our own doing: it costs the task none of the attempts that it may have.
            return Retry(eta_usec=record.eta_usec, is_attempt=False, is_conclusive=False, log=_log(attempt))
    return _fail(attempt)


def _fail(attempt: Attempt) -> Retry | Dead:
    record = attempt.record
    options = effective_options(record.retry_options, attempt.config.retry_options)
    first_usec = attempt.started_usec if record.first_attempt_usec is None else record.first_attempt_usec
    is_execution = isinstance(attempt.result, Answer) or attempt.result.was_executed
    log = _log(attempt)
    if not may_retry(options, retries_so_far=record.retry_count, age_usec=attempt.ended_usec - first_usec):
        keep_until = attempt.ended_usec + round(attempt.config.dead_retention_seconds * 1_000_000)
        return Dead(reason=_reason(attempt.result), keep_until_usec=keep_until, is_execution=is_execution, log=log)
    delay = with_jitter(backoff_usec(options, record.attempts), attempt.config.jitter, attempt.random_value)
    if isinstance(attempt.result, Answer) and attempt.result.status in _ASKING_FOR_TIME:
        asked = retry_after_usec(attempt.result.retry_after, attempt.ended_usec) or 0
        delay = max(delay, min(asked, max_backoff_usec(options)))
    return Retry(eta_usec=attempt.ended_usec + delay, is_execution=is_execution, log=log)


def _reason(result: Answer | NoAnswer) -> str:
    if isinstance(result, NoAnswer):
        return result.reason.value
    return "redirect" if 300 <= result.status < 400 and result.status != 304 else "status"


def _log(attempt: Attempt) -> AttemptRecord:
    return AttemptRecord(
        attempt=attempt.record.attempts,
        started_usec=attempt.started_usec,
        ended_usec=attempt.ended_usec,
        reason=_reason(attempt.result),
        status=attempt.result.status if isinstance(attempt.result, Answer) else None,
        detail=attempt.result.detail,
    )
