"""Chores: the tasks of processes that have ended, and what has outlived its time. In the database thread, inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

import attrs

from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import AttemptRecord, TaskRecord, TaskState
from aiotaskqueue.stores._sqlite_gate import COUNT_IN_FLIGHT
from aiotaskqueue.stores._sqlite_leasing import lease_usec
from aiotaskqueue.stores._sqlite_rows import COLUMNS, DELETE_ATTEMPTS, DELETE_BODY, DELETE_TASK, record_of_row
from aiotaskqueue.stores._sqlite_settling import log_attempt

# After every moment that a row can hold.
FOR_EVER_USEC = 2**62

# By primary key.
SELECT_LEASED = f"""
    SELECT queue_id, (SELECT name FROM taskqueue_queue WHERE id = queue_id), {COLUMNS}
    FROM taskqueue_task WHERE id = ? AND process_id = ? AND state = 1 AND lease_expires_usec < ?
"""
SUSPECT_LEASED = """
    UPDATE taskqueue_task SET
        state = ?, crashes = ?, retry_reason = ?, previous_status = NULL, was_stale = 0, is_suspect = 0,
        process_id = NULL, lease_expires_usec = NULL, dead_usec = ?, dead_reason = ?, keep_until_usec = ?
    WHERE id = ?
"""

SELECT_PROCESS = "SELECT is_draining FROM taskqueue_process WHERE id = ?"
DELETE_PROCESS = "DELETE FROM taskqueue_process WHERE id = ?"
# The table is as short as there are processes and queues.
DELETE_IN_FLIGHT = "DELETE FROM taskqueue_in_flight WHERE process_id = ?"

# taskqueue_tombstone_expiry; taskqueue_task_dead.
SELECT_EXPIRED_TOMBSTONES = "SELECT queue_id, name FROM taskqueue_tombstone WHERE expires_usec <= ? LIMIT ?"
DELETE_TOMBSTONE = "DELETE FROM taskqueue_tombstone WHERE queue_id = ? AND name = ?"
SELECT_EXPIRED_DEAD = "SELECT id FROM taskqueue_task WHERE state = 2 AND keep_until_usec <= ? LIMIT ?"


@attrs.frozen
class RescueRequest:
    """A process that has ended, and the ids of the tasks that it had leased."""

    process_id: int
    task_ids: Sequence[int]
    configs: Mapping[str, QueueConfig]
    now_usec: int
    is_dead: bool = True
    """False: it may live, but these leases had expired; meanwhile it may have leased some of the tasks anew."""

    @property
    def expired_before_usec(self) -> int:
        """Only leases that end before this are taken back."""
        return FOR_EVER_USEC if self.is_dead else self.now_usec


@attrs.frozen
class SweepRequest:
    """Arguments of `sweep`."""

    now_usec: int
    limit: int


def rescue(connection: sqlite3.Connection, requests: Sequence[RescueRequest]) -> list[list[TaskRecord]]:
    """Take the tasks of ended processes back."""
    return [_rescue(connection, request) for request in requests]


def sweep(connection: sqlite3.Connection, requests: Sequence[SweepRequest]) -> list[int]:
    """Remove what has outlived its time."""
    return [_sweep(connection, request) for request in requests]


def _rescue(connection: sqlite3.Connection, request: RescueRequest) -> list[TaskRecord]:
    """Take back what one process had leased.

    A task is suspected of having brought the process down if it was in flight then. With several suspects none is
    charged: each is retried alone, and whoever is then the only one in flight at `crash_limit` crashes in a row is dead.
    A task that ran beside the one that was retried alone is no candidate, or two queues could crash for ever.
    """
    row = connection.execute(SELECT_PROCESS, (request.process_id,)).fetchone()
    if row is None and request.is_dead:
        # Somebody else was quicker.
        return []
    is_crash = request.is_dead and not row[0]
    tasks = _select_leased(connection, request)
    records = [record for _, record in tasks]
    candidates = [record.id for record in records if record.is_suspect] or [record.id for record in records]
    culprit = candidates[0] if is_crash and len(candidates) == 1 else None
    for queue_id, record in tasks:
        config = request.configs.get(record.queue_name)
        _take_back(connection, record, config, request, is_crash=is_crash, is_culprit=record.id == culprit)
        connection.execute(COUNT_IN_FLIGHT, (queue_id, request.process_id, -1))
    if request.is_dead:
        connection.execute(DELETE_IN_FLIGHT, (request.process_id,))
        connection.execute(DELETE_PROCESS, (request.process_id,))
    return records


def _select_leased(connection: sqlite3.Connection, request: RescueRequest) -> list[tuple[int, TaskRecord]]:
    """Return the tasks that are to be taken back, each with its queue's id."""
    keys = [(task_id, request.process_id, request.expired_before_usec) for task_id in request.task_ids]
    rows = [connection.execute(SELECT_LEASED, key).fetchone() for key in keys]
    return [(row[0], record_of_row(connection, row[2:], row[1])) for row in rows if row is not None]


def _take_back(
    connection: sqlite3.Connection,
    record: TaskRecord,
    config: QueueConfig | None,
    request: RescueRequest,
    *,
    is_crash: bool,
    is_culprit: bool,
) -> None:
    crashes = record.crashes + is_culprit
    is_dead = config is not None and is_culprit and crashes >= config.crash_limit
    if is_dead:
        state = TaskState.DEAD
    else:
        state = TaskState.SUSPECT if is_crash or record.is_suspect else TaskState.READY
    now_usec = request.now_usec
    keep_until_usec = now_usec + round(config.dead_retention_seconds * 1_000_000) if is_dead and config is not None else None
    reason = "crash" if is_crash else "interrupted"
    started_usec = record.lease_expires_usec - lease_usec(record, config) if config and record.lease_expires_usec else now_usec
    connection.execute(
        SUSPECT_LEASED,
        (state, crashes, reason, now_usec if is_dead else None, reason if is_dead else None, keep_until_usec, record.id),
    )
    log = AttemptRecord(attempt=record.attempts, started_usec=started_usec, ended_usec=now_usec, reason=reason)
    log_attempt(connection, record, log)


def _sweep(connection: sqlite3.Connection, request: SweepRequest) -> int:
    tombstones = connection.execute(SELECT_EXPIRED_TOMBSTONES, (request.now_usec, request.limit)).fetchall()
    connection.executemany(DELETE_TOMBSTONE, tombstones)
    dead = connection.execute(SELECT_EXPIRED_DEAD, (request.now_usec, request.limit)).fetchall()
    for statement in (DELETE_TASK, DELETE_BODY, DELETE_ATTEMPTS):
        connection.executemany(statement, dead)
    return len(tombstones) + len(dead)
