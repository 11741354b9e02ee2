"""The verbs of the SQLite store that manage what exists. As in `_sqlite_verbs`: in the database thread, inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import attrs

from aiotaskqueue.stores._sqlite_rows import DELETE_BODY
from aiotaskqueue.stores._sqlite_verbs import COUNT_IN_FLIGHT, DELETE_ATTEMPTS, DELETE_TASK, INSERT_TOMBSTONE

# taskqueue_task_name.
SELECT_FOR_DELETE = "SELECT id, is_named, process_id FROM taskqueue_task WHERE queue_id = ? AND name = ?"


@attrs.frozen
class DeleteRequest:
    """Names of one queue, and until when those that users gave stay reserved (None: they do not)."""

    queue_id: int
    names: Sequence[str]
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
