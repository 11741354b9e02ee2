"""Quarantine: a task whose row cannot be read is made a dead one, so that the others go on. In the database thread, inside a transaction.

The tables refuse most of what no version of ours would write; what is there all the same was written past their
constraints, by another program or by a disk. Nothing is looked for on the way of ordinary tasks: whoever meets such a row
fails, the transaction with it, and only then is each task that may be the one tried alone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

import attrs

from aiotaskqueue._config import QueueConfig
from aiotaskqueue.stores._sqlite_errors import is_own_fault, is_undecodable
from aiotaskqueue.stores._sqlite_gate import COUNT_IN_FLIGHT
from aiotaskqueue.stores._sqlite_rows import COLUMNS, Ids, UnreadableRowError, record_of_row
from aiotaskqueue.stores._sqlite_settling import INSERT_ATTEMPT

UNREADABLE = "unreadable"

# Tasks of each queue and state that are looked at in one transaction: more than one lease takes.
LIMIT = 1000

# More than any task of ours has been attempted, and far from the largest number of SQLite.
LARGEST_COUNT = 2**31

# taskqueue_task_leased; taskqueue_task_forced; taskqueue_task_ready or taskqueue_task_suspect.
SELECT_OWN = "SELECT id FROM taskqueue_task INDEXED BY taskqueue_task_leased WHERE state = 1 AND process_id = ?"
SELECT_FORCED = "SELECT id FROM taskqueue_task WHERE is_forced = 1"
SELECT_DUE = "SELECT id FROM taskqueue_task WHERE queue_id = ? AND state = {state} AND eta_usec <= ? ORDER BY eta_usec, name LIMIT ?"

# By primary key. Whatever leasing, settling and rescuing change, to see whether the constraints allow it.
TRY = f"""
    UPDATE taskqueue_task SET
        state = 1, process_id = 0, keep_until_usec = NULL, attempts = attempts + 1, executions = executions + 1, crashes = crashes + 1,
        lease_token = lease_token + 1, lease_expires_usec = ? + ifnull(dispatch_deadline_usec, 0)
    WHERE id = ? RETURNING {COLUMNS}
"""
SELECT = """
    SELECT queue_id, ifnull((SELECT name FROM taskqueue_queue WHERE id = queue_id), ''), CAST(name AS BLOB), process_id,
        attempts, lease_token
    FROM taskqueue_task WHERE id = ?
"""
BURY = f"""
    UPDATE taskqueue_task SET
        state = 2, process_id = NULL, lease_expires_usec = NULL, is_forced = 0, is_suspect = 0, was_stale = 0, crashes = 0,
        attempts = ?, executions = min(max(executions, 0), {LARGEST_COUNT}), lease_token = ?,
        dead_usec = ?, dead_reason = '{UNREADABLE}', keep_until_usec = ?
    WHERE id = ?
"""


@attrs.frozen
class QuarantineRequest:
    """Among which tasks the one must be that cannot be read.

    Without `task_ids`: what is due in the queues, what somebody wants to run now, and what this process has leased.
    """

    ids: Ids
    queues: Sequence[QueueConfig]
    now_usec: int
    task_ids: Sequence[int] | None = None


def quarantine(connection: sqlite3.Connection, requests: Sequence[QuarantineRequest]) -> list[list[tuple[str, str, str]]]:
    """Make tasks that cannot be read dead ones; return queue, name and what is wrong of each."""
    return [[*_quarantine(connection, request)] for request in requests]


def _quarantine(connection: sqlite3.Connection, request: QuarantineRequest) -> Iterator[tuple[str, str, str]]:
    candidates = _select(connection, request) if request.task_ids is None else request.task_ids
    for task_id in candidates:
        detail = _find_fault(connection, task_id, request.now_usec)
        if detail is not None:
            yield _bury(connection, task_id, detail, request)


def _select(connection: sqlite3.Connection, request: QuarantineRequest) -> list[int]:
    rows = connection.execute(SELECT_OWN, (request.ids.process,)).fetchall() + connection.execute(SELECT_FORCED).fetchall()
    for config in request.queues:
        for state in (0, 3):
            arguments = request.ids.queues[config.name], request.now_usec, LIMIT
            rows += connection.execute(SELECT_DUE.format(state=state), arguments).fetchall()
    return list(dict.fromkeys(task_id for (task_id,) in rows))


def _find_fault(connection: sqlite3.Connection, task_id: int, now_usec: int) -> str | None:
    """Do to one task what is done to all, see what happens, and take it back."""
    connection.execute("SAVEPOINT quarantine")
    try:
        for row in connection.execute(TRY, (now_usec, task_id)).fetchall():
            record_of_row(connection, row, "")
    except UnreadableRowError as exc:
        return str(exc)
    except sqlite3.Error as exc:
        if not is_own_fault(exc):
            raise
        return "a text is not UTF-8" if is_undecodable(exc) else "a number is out of range"
    finally:
        connection.execute("ROLLBACK TO quarantine")
        connection.execute("RELEASE quarantine")
    return None


def _bury(connection: sqlite3.Connection, task_id: int, detail: str, request: QuarantineRequest) -> tuple[str, str, str]:
    queue_id, queue_name, name, process_id, attempts, token = connection.execute(SELECT, (task_id,)).fetchone()
    retention_seconds = {config.name: config for config in request.queues}.get(queue_name, QueueConfig("default")).dead_retention_seconds
    keep_until_usec = request.now_usec + round(retention_seconds * 1_000_000)
    attempts, token = min(max(attempts, 0), LARGEST_COUNT), min(max(token, 0), LARGEST_COUNT) + 1
    connection.execute(BURY, (attempts, token, request.now_usec, keep_until_usec, task_id))
    sentence = f"The stored task cannot be read: {detail}."
    connection.execute(INSERT_ATTEMPT, (task_id, token, attempts, request.now_usec, request.now_usec, UNREADABLE, None, sentence))
    if process_id is not None:
        connection.execute(COUNT_IN_FLIGHT, (queue_id, process_id, -1))
    return queue_name, name.decode("utf-8", "replace"), detail
