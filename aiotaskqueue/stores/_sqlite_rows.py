"""TaskRecord to row and back, and statements that several rooms share.

Runs in the database thread and is hot: plain tuples, cached texts.
"""

from __future__ import annotations

import functools
import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from aiotaskqueue._record import AttemptRecord, TaskRecord, TaskState
from aiotaskqueue._task import TaskRetryOptions
from aiotaskqueue._task_arguments import METHODS
from aiotaskqueue.errors import StoreError

# A lease rewrites its row: a larger payload lives in taskqueue_body (3x at 100 KB, measured).
INLINE_BYTES = 2048

Row = Sequence[Any]

_METHODS = {method: method for method in METHODS}
_STATES = {int(state): state for state in TaskState}

_NEW_COLUMNS = (
    "id, queue_id, name, uuid, state, eta_usec, created_usec, is_named, method, url, headers, payload, has_body, tag, target, "
    "retry_options, dispatch_deadline_usec, attempts, lease_token, lease_expires_usec, process_id, first_attempt_usec"
)

# Served by the primary key, and checked by the unique index on (queue_id, name).
ROW_OF_TASK = f"({', '.join('?' * 22)})"
INSERT_TASK = f"INSERT INTO taskqueue_task ({_NEW_COLUMNS}) VALUES {ROW_OF_TASK}"

COLUMNS = (
    "id, queue_id, name, uuid, state, eta_usec, created_usec, is_named, method, url, headers, payload, has_body, tag, target, "
    "retry_options, dispatch_deadline_usec, attempts, executions, lease_token, lease_expires_usec, first_attempt_usec, "
    "previous_status, retry_reason, was_stale, is_suspect, crashes, dead_usec, dead_reason"
)

# taskqueue_task_name.
SELECT_NAME = "SELECT state FROM taskqueue_task WHERE queue_id = ? AND name = ?"

# By primary key.
DELETE_TASK = "DELETE FROM taskqueue_task WHERE id = ?"
DELETE_ATTEMPTS = "DELETE FROM taskqueue_attempt WHERE task_id = ?"
INSERT_TOMBSTONE = "INSERT OR REPLACE INTO taskqueue_tombstone (queue_id, name, expires_usec) VALUES (?, ?, ?)"

# By the primary key.
SELECT_BODY = "SELECT payload FROM taskqueue_body WHERE task_id = ?"
INSERT_BODY = "INSERT INTO taskqueue_body (task_id, payload) VALUES (?, ?)"
DELETE_BODY = "DELETE FROM taskqueue_body WHERE task_id = ?"


class UnreadableRowError(StoreError):
    """A row that no version of ours would write; the message says what is wrong, and shows nothing of it."""


@attrs.define
class Ids:
    """By what numbers the database knows this process and its queues."""

    process: int = 0
    queues: dict[str, int] = attrs.Factory(dict)


def is_large(record: TaskRecord) -> bool:
    """Whether the payload lives in the side table."""
    return record.payload is not None and len(record.payload) > INLINE_BYTES


def new_row(record: TaskRecord, task_id: int, queue_id: int, process_id: int | None) -> Row:
    """Return the values of INSERT_TASK; `process_id` for a task that is born leased."""
    has_body = is_large(record)
    deadline = record.dispatch_deadline_seconds
    return (
        task_id,
        queue_id,
        record.name,
        record.uuid,
        int(record.state),
        record.eta_usec,
        record.created_usec,
        record.is_named,
        record.method,
        record.url,
        _encode_headers(record.headers) if record.headers else None,
        None if has_body else record.payload,
        has_body,
        record.tag,
        record.target,
        _encode_options(record.retry_options) if record.retry_options is not None else None,
        None if deadline is None else round(deadline * 1_000_000),
        record.attempts,
        record.lease_token,
        record.lease_expires_usec,
        process_id,
        record.first_attempt_usec,
    )


def content_of(record: TaskRecord) -> Row:
    """Return URL, headers, payload, whether that lives in the side table, and the id."""
    has_body = is_large(record)
    headers = _encode_headers(record.headers) if record.headers else None
    return record.url, headers, None if has_body else record.payload, has_body, record.id


def record_of_row(connection: sqlite3.Connection, row: Row, queue_name: str) -> TaskRecord:
    """Build the record of one row of COLUMNS; fetches a large body.

    Raises:
        UnreadableRowError: It makes no task that could be delivered.
    """
    try:
        payload = connection.execute(SELECT_BODY, (row[0],)).fetchone()[0] if row[12] else row[11]
        return TaskRecord(
            uuid=row[3],
            queue_name=queue_name,
            name=row[2],
            is_named=bool(row[7]),
            method=_METHODS[row[8]],
            url=row[9],
            headers=_decode_headers(row[10]) if row[10] else (),
            payload=payload,
            tag=row[13],
            target=row[14],
            retry_options=_decode_options(row[15]) if row[15] else None,
            dispatch_deadline_seconds=None if row[16] is None else row[16] / 1_000_000,
            eta_usec=row[5],
            created_usec=row[6],
            id=row[0],
            state=_STATES[row[4]],
            attempts=_check_attempts(row) if row[17] < 1 else row[17],
            executions=row[18],
            lease_token=row[19],
            lease_expires_usec=row[20],
            first_attempt_usec=row[21],
            previous_status=row[22],
            retry_reason=row[23],
            was_stale=bool(row[24]),
            is_suspect=bool(row[25]),
            crashes=row[26],
            dead_usec=row[27],
            dead_reason=row[28],
        )
    except sqlite3.Error:
        raise
    except Exception:
        # Raised below, so that what a parser has said does not hang on it: that may quote the row.
        detail = _explain(connection, row)
    raise UnreadableRowError(detail)


def show_row(connection: sqlite3.Connection, row: Row, queue_name: str) -> TaskRecord:
    """Build a record to be looked at: of a row that cannot be read, what can be."""
    try:
        return record_of_row(connection, row, queue_name)
    except UnreadableRowError:
        mended = [*row]
        mended[4], mended[8], mended[10], mended[12], mended[15] = state_of(row[4]), "POST", None, 0, None
        mended[17] = max(row[17], _least_attempts(row))
        return attrs.evolve(record_of_row(connection, mended, queue_name), method=row[8])


def state_of(number: int) -> TaskState:
    """Return the state of that number; a task of one that we do not know is as good as dead."""
    return _STATES.get(number, TaskState.DEAD)


def _explain(connection: sqlite3.Connection, row: Row) -> str:
    parts: dict[str, Callable[[], object]] = {
        "its payload is missing": lambda: row[12] and connection.execute(SELECT_BODY, (row[0],)).fetchone()[0],
        "its method is unknown": lambda: _METHODS[row[8]],
        "its headers are no JSON list of pairs of text": lambda: row[10] and _decode_headers(row[10]),
        "its retry options are not valid": lambda: row[15] and _decode_options(row[15]),
        "its state is unknown": lambda: TaskState(row[4]),
    }
    for words, read in parts.items():
        try:
            read()
        except Exception:
            return words
    return "its number of attempts is too small"


def _check_attempts(row: Row) -> int:
    attempts: int = row[17]
    if attempts < _least_attempts(row):
        raise ValueError(attempts)
    return attempts


def _least_attempts(row: Row) -> int:
    return 1 if row[4] == TaskState.LEASED else 0


def attempt_of_row(row: Row) -> AttemptRecord:
    """Build the record of one row of the attempt log."""
    attempt, started_usec, ended_usec, reason, status, detail = row
    return AttemptRecord(attempt=attempt, started_usec=started_usec, ended_usec=ended_usec, reason=reason, status=status, detail=detail)


# Many tasks carry the same few headers and options: a look-up instead of a parse for each row.
@functools.lru_cache(maxsize=1024)
def _encode_headers(headers: tuple[tuple[str, str], ...]) -> str:
    return json.dumps(headers, separators=(",", ":"))


@functools.lru_cache(maxsize=1024)
def _decode_headers(text: str) -> tuple[tuple[str, str], ...]:
    headers = tuple((name, value) for name, value in json.loads(text))
    if not all(isinstance(part, str) for pair in headers for part in pair):
        raise TypeError("headers")
    return headers


@functools.lru_cache(maxsize=256)
def _encode_options(options: TaskRetryOptions) -> str:
    return json.dumps({name: value for name, value in attrs.asdict(options).items() if value is not None})


@functools.lru_cache(maxsize=256)
def _decode_options(text: str) -> TaskRetryOptions:
    return TaskRetryOptions(**json.loads(text))
