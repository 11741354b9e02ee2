"""The verbs of the SQLite store that manage what exists. In the database thread, inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import attrs

from aiotaskqueue._record import TaskRecord, TaskState
from aiotaskqueue.stores._sqlite_gate import COUNT_IN_FLIGHT
from aiotaskqueue.stores._sqlite_rows import (
    DELETE_ATTEMPTS,
    DELETE_BODY,
    DELETE_TASK,
    INSERT_BODY,
    INSERT_TOMBSTONE,
    SELECT_NAME,
    content_of,
    is_large,
    state_of,
)

# taskqueue_task_name.
SELECT_FOR_DELETE = "SELECT id, is_named, process_id FROM taskqueue_task WHERE queue_id = ? AND name = ?"

# All of a queue by taskqueue_task_name; bodies and logs by their primary keys.
PURGE_NAMES = """
    INSERT OR REPLACE INTO taskqueue_tombstone (queue_id, name, expires_usec)
        SELECT queue_id, name, ?2 FROM taskqueue_task WHERE queue_id = ?1 AND is_named
"""
PURGE_BODIES = "DELETE FROM taskqueue_body WHERE task_id IN (SELECT id FROM taskqueue_task WHERE queue_id = ? AND has_body)"
PURGE_ATTEMPTS = "DELETE FROM taskqueue_attempt WHERE task_id IN (SELECT id FROM taskqueue_task WHERE queue_id = ? AND lease_token > 0)"
PURGE_TASKS = "DELETE FROM taskqueue_task WHERE queue_id = ?"
PURGE_IN_FLIGHT = "UPDATE taskqueue_in_flight SET tasks = 0 WHERE queue_id = ?"

# taskqueue_queue's primary key.
SET_PAUSED = "UPDATE taskqueue_queue SET is_paused = ? WHERE id = ?"

# taskqueue_task_name. It stays a suspect if it is one, but is leased like any other.
FORCE = "UPDATE taskqueue_task SET is_forced = 1, eta_usec = 0 WHERE queue_id = ? AND name = ? AND state IN (0, 3)"

# taskqueue_task_name; its log is kept, and its token goes on growing.
REVIVE = """
    UPDATE taskqueue_task SET
        state = 0, eta_usec = ?, attempts = 0, executions = 0, first_attempt_usec = NULL, previous_status = NULL, retry_reason = NULL,
        was_stale = 0, crashes = 0, dead_usec = NULL, dead_reason = NULL, keep_until_usec = NULL
    WHERE queue_id = ? AND name = ?
"""
# By primary key.
EDIT = "UPDATE taskqueue_task SET url = ?, headers = ?, payload = ?, has_body = ? WHERE id = ?"


@attrs.frozen
class ReviveRequest:
    """Arguments of `revive`."""

    queue_id: int
    names: Sequence[str]
    edited: Sequence[TaskRecord]
    now_usec: int


@attrs.frozen
class DeleteRequest:
    """Names of one queue, and until when those that users gave stay reserved (None: they do not)."""

    queue_id: int
    names: Sequence[str]
    tombstone_until_usec: int | None


@attrs.frozen
class PurgeRequest:
    """A queue, and until when the names that users gave stay reserved (None: they do not)."""

    queue_id: int
    tombstone_until_usec: int | None


def delete(connection: sqlite3.Connection, requests: Sequence[DeleteRequest]) -> list[list[bool]]:
    """Remove tasks of any state; say of each name whether it was there."""
    return [[_delete(connection, request, name) for name in request.names] for request in requests]


def _delete(connection: sqlite3.Connection, request: DeleteRequest, name: str) -> bool:
    row = connection.execute(SELECT_FOR_DELETE, (request.queue_id, name)).fetchone()
    if row is None:
        return False
    task_id, is_named, process_id = row
    for statement in (DELETE_TASK, DELETE_BODY, DELETE_ATTEMPTS):
        connection.execute(statement, (task_id,))
    if process_id is not None:
        # Whoever has leased it will find its outcome stale, which counts nothing.
        connection.execute(COUNT_IN_FLIGHT, (request.queue_id, process_id, -1))
    if is_named and request.tombstone_until_usec is not None:
        connection.execute(INSERT_TOMBSTONE, (request.queue_id, name, request.tombstone_until_usec))
    return True


def purge(connection: sqlite3.Connection, requests: Sequence[PurgeRequest]) -> list[None]:
    """Remove all tasks of queues; whoever has leased one will find its outcome stale."""
    for request in requests:
        if request.tombstone_until_usec is not None:
            connection.execute(PURGE_NAMES, (request.queue_id, request.tombstone_until_usec))
        for statement in (PURGE_BODIES, PURGE_ATTEMPTS, PURGE_TASKS, PURGE_IN_FLIGHT):
            connection.execute(statement, (request.queue_id,))
    return [None for _ in requests]


def set_paused(connection: sqlite3.Connection, requests: Sequence[tuple[bool, int]]) -> list[None]:
    """Pause queues, or let them go on; a request is what it shall be, and the queue's id."""
    connection.executemany(SET_PAUSED, requests)
    return [None for _ in requests]


def force(connection: sqlite3.Connection, requests: Sequence[tuple[int, str]]) -> list[TaskState | None]:
    """Let tasks be leased next; a request is the queue's id and the name."""
    found = []
    for request in requests:
        row = connection.execute(SELECT_NAME, request).fetchone()
        connection.execute(FORCE, request)
        found.append(None if row is None else state_of(row[0]))
    return found


def revive(connection: sqlite3.Connection, requests: Sequence[ReviveRequest]) -> list[list[str]]:
    """Make dead tasks ready again; return the names of those that are not dead, for which the whole request is refused."""
    return [_revive(connection, request) for request in requests]


def _revive(connection: sqlite3.Connection, request: ReviveRequest) -> list[str]:
    keys = [(request.queue_id, name) for name in request.names]
    states = [connection.execute(SELECT_NAME, key).fetchone() for key in keys]
    refused = [name for name, row in zip(request.names, states, strict=True) if row is None or state_of(row[0]) is not TaskState.DEAD]
    if refused:
        return refused
    connection.executemany(REVIVE, [(request.now_usec, *key) for key in keys])
    for record in request.edited:
        connection.execute(EDIT, content_of(record))
        connection.execute(DELETE_BODY, (record.id,))
        if is_large(record):
            connection.execute(INSERT_BODY, (record.id, record.payload))
    return []
