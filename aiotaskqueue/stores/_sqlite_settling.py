"""Settling: how attempts ended, applied only where the task still carries the token. In the database thread, inside a transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from aiotaskqueue._record import AttemptRecord, TaskRecord, TaskState
from aiotaskqueue.stores._base import ATTEMPTS_KEPT, Dead, Delete, Retry, Settlement
from aiotaskqueue.stores._sqlite_gate import COUNT_IN_FLIGHT
from aiotaskqueue.stores._sqlite_rows import DELETE_ATTEMPTS, DELETE_BODY, INSERT_TOMBSTONE, Ids, Row, is_large

# By primary key; the token tells this attempt from a later one (fencing).
DELETE_LEASED = "DELETE FROM taskqueue_task WHERE id = ? AND lease_token = ? AND state = 1"
# The same for many, as one call: each call hands the interpreter's lock over and back, and the event loop is busy.
DELETE_ALL_LEASED = """
    DELETE FROM taskqueue_task WHERE id IN (SELECT CAST(key AS INTEGER) FROM json_each(?1))
        AND (id, lease_token) IN (SELECT CAST(key AS INTEGER), value FROM json_each(?1)) AND state = 1
"""
RETRY_LEASED = """
    UPDATE taskqueue_task SET
        state = ?, eta_usec = ?, attempts = ?, executions = ?, previous_status = ?, retry_reason = ?, was_stale = ?, crashes = ?,
        first_attempt_usec = ?, process_id = NULL, lease_expires_usec = NULL, is_suspect = 0
    WHERE id = ? AND lease_token = ? AND state = 1
"""
BURY_LEASED = """
    UPDATE taskqueue_task SET
        state = 2, executions = ?, previous_status = ?, retry_reason = ?, crashes = 0, is_suspect = 0,
        dead_usec = ?, dead_reason = ?, keep_until_usec = ?, process_id = NULL, lease_expires_usec = NULL
    WHERE id = ? AND lease_token = ? AND state = 1
"""

# taskqueue_attempt's primary key.
INSERT_ATTEMPT = """
    INSERT INTO taskqueue_attempt (task_id, lease_token, attempt, started_usec, ended_usec, reason, status, detail)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
TRIM_ATTEMPTS = f"""
    DELETE FROM taskqueue_attempt WHERE task_id = ?1 AND lease_token <= (
        SELECT lease_token FROM taskqueue_attempt WHERE task_id = ?1 ORDER BY lease_token DESC LIMIT 1 OFFSET {ATTEMPTS_KEPT}
    )
"""


def settle(ids: Ids, connection: sqlite3.Connection, settlements: Sequence[Settlement], now_usec: int) -> list[TaskRecord]:
    """Apply outcomes; return the tasks whose outcome was refused."""
    stale = []
    ended: dict[int, int] = {}
    settlements = _settle_plain(ids, connection, settlements, ended)
    for settlement in settlements:
        queue_id = ids.queues[settlement.record.queue_name]
        if _settle_one(connection, settlement, queue_id, now_usec):
            ended[queue_id] = ended.get(queue_id, 0) + 1
        else:
            stale.append(settlement.record)
    for queue_id, count in ended.items():
        connection.execute(COUNT_IN_FLIGHT, (queue_id, ids.process, -count))
    return stale


def _settle_plain(
    ids: Ids, connection: sqlite3.Connection, settlements: Sequence[Settlement], ended: dict[int, int]
) -> Sequence[Settlement]:
    """Delete the tasks that are done and left nothing behind, all at once; return the other settlements.

    If any of these is stale, all are returned: which one it is, only one after the other tells.
    """
    plain = [settlement for settlement in settlements if _is_plain(settlement)]
    if len(plain) < 2:
        return settlements
    tokens = json.dumps({settlement.record.id: settlement.record.lease_token for settlement in plain})
    connection.execute("SAVEPOINT plain")
    if connection.execute(DELETE_ALL_LEASED, (tokens,)).rowcount != len(plain):
        connection.execute("ROLLBACK TO plain")
        return settlements
    connection.execute("RELEASE plain")
    for settlement in plain:
        queue_id = ids.queues[settlement.record.queue_name]
        ended[queue_id] = ended.get(queue_id, 0) + 1
    return [settlement for settlement in settlements if not _is_plain(settlement)]


def _is_plain(settlement: Settlement) -> bool:
    record, outcome = settlement.record, settlement.outcome
    return isinstance(outcome, Delete) and outcome.tombstone_until_usec is None and record.lease_token == 1 and not is_large(record)


def _settle_one(connection: sqlite3.Connection, settlement: Settlement, queue_id: int, now_usec: int) -> bool:
    """Apply one outcome if the task still carries the token; return whether it did."""
    record, outcome = settlement.record, settlement.outcome
    if isinstance(outcome, Delete):
        return _delete(connection, record, outcome, queue_id)
    if isinstance(outcome, Retry):
        applied = connection.execute(RETRY_LEASED, _retry_values(record, outcome)).rowcount
    else:
        applied = connection.execute(BURY_LEASED, _bury_values(record, outcome, now_usec)).rowcount
    if applied and outcome.log is not None:
        log_attempt(connection, record, outcome.log)
    return bool(applied)


def _delete(connection: sqlite3.Connection, record: TaskRecord, outcome: Delete, queue_id: int) -> bool:
    """Delete a task with all its parts, if it still carries the token; return whether it did."""
    if not connection.execute(DELETE_LEASED, (record.id, record.lease_token)).rowcount:
        return False
    if outcome.tombstone_until_usec is not None:
        connection.execute(INSERT_TOMBSTONE, (queue_id, record.name, outcome.tombstone_until_usec))
    if is_large(record):
        connection.execute(DELETE_BODY, (record.id,))
    # Only a later attempt than the first, by token, can have left a log.
    if record.lease_token > 1:
        connection.execute(DELETE_ATTEMPTS, (record.id,))
    return True


def _retry_values(record: TaskRecord, outcome: Retry) -> Row:
    is_suspect = record.is_suspect and not outcome.is_conclusive
    attempts = record.attempts if outcome.is_attempt else record.attempts - 1
    previous_status, reason = record.previous_status, record.retry_reason
    if outcome.is_attempt and outcome.log is not None:
        previous_status, reason = outcome.log.status, outcome.log.reason
    return (
        TaskState.SUSPECT if is_suspect else TaskState.READY,
        outcome.eta_usec,
        attempts,
        record.executions + outcome.is_execution,
        previous_status,
        reason,
        outcome.is_stale,
        record.crashes if is_suspect else 0,
        record.first_attempt_usec if attempts else None,
        record.id,
        record.lease_token,
    )


def _bury_values(record: TaskRecord, outcome: Dead, now_usec: int) -> Row:
    return (
        record.executions + outcome.is_execution,
        outcome.log.status,
        outcome.log.reason,
        now_usec,
        outcome.reason,
        outcome.keep_until_usec,
        record.id,
        record.lease_token,
    )


def log_attempt(connection: sqlite3.Connection, record: TaskRecord, log: AttemptRecord) -> None:
    """Note a failed attempt; only the last ones are kept."""
    connection.execute(
        INSERT_ATTEMPT,
        (record.id, record.lease_token, log.attempt, log.started_usec, log.ended_usec, log.reason, log.status, log.detail),
    )
    if record.lease_token > ATTEMPTS_KEPT:
        connection.execute(TRIM_ATTEMPTS, (record.id,))
