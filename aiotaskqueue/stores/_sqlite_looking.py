"""Looking into the SQLite store. In the reading connection's thread; each look is one call, and no cursor outlives it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from operator import itemgetter

from aiotaskqueue._record import AttemptRecord, TaskRecord, TaskState
from aiotaskqueue.stores._base import StoredStatistics, TaskFilter
from aiotaskqueue.stores._sqlite_errors import is_undecodable
from aiotaskqueue.stores._sqlite_rows import COLUMNS, Row, attempt_of_row, show_row

# All of taskqueue_task_leased, which is as long as tasks are in flight. The second one: ids between commas.
SELECT_LEASES = """
    SELECT process_id, id FROM taskqueue_task INDEXED BY taskqueue_task_leased
    WHERE state = 1 AND process_id <> ?1 AND (lease_expires_usec < ?3 OR instr(?2, ',' || process_id || ','))
"""

# taskqueue_task_name.
SELECT_TASK = f"SELECT {COLUMNS} FROM taskqueue_task WHERE queue_id = (SELECT id FROM taskqueue_queue WHERE name = ?) AND name = ?"
# taskqueue_attempt's primary key.
SELECT_ATTEMPTS = """
    SELECT attempt, started_usec, ended_usec, reason, status, detail FROM taskqueue_attempt WHERE task_id = ? ORDER BY lease_token
"""
# A range of the index that has the tasks of one state, in its order: taskqueue_task_ready, _leased, _given_up or _suspect. The
# URL and the tag are looked at task by task.
SELECT_TASKS = f"""
    SELECT {COLUMNS} FROM taskqueue_task
    WHERE queue_id = (SELECT id FROM taskqueue_queue WHERE name = ?1) AND state = {{state}} AND (eta_usec, name) > (?2, ?3)
        AND (?4 IS NULL OR substr(name, 1, length(?4)) = ?4) AND (?5 IS NULL OR url = ?5) AND (?6 IS NULL OR tag = ?6)
    ORDER BY eta_usec, name LIMIT ?7
"""
# A range of taskqueue_task_name; taskqueue_task_ready and _suspect; the primary keys of taskqueue_in_flight and _started.
SELECT_STATISTICS = """
    SELECT
        (SELECT count(*) FROM taskqueue_task WHERE queue_id = q.id AND state <> 2),
        (SELECT min(eta_usec) FROM (
            SELECT min(eta_usec) AS eta_usec FROM taskqueue_task WHERE queue_id = q.id AND state = 0 AND eta_usec <= ?1
            UNION ALL SELECT min(eta_usec) FROM taskqueue_task WHERE queue_id = q.id AND state = 3 AND eta_usec <= ?1
        )),
        (SELECT total(tasks) FROM taskqueue_in_flight WHERE queue_id = q.id),
        is_paused,
        (SELECT total(tasks) FROM taskqueue_started WHERE queue_id = q.id AND second > ?1 / 1000000 - 60 AND second <= ?1 / 1000000)
    FROM taskqueue_queue AS q WHERE name = ?2
"""


def select_orphans(connection: sqlite3.Connection, own_id: int, dead_ids: Sequence[int], now_usec: int) -> dict[int, list[int]]:
    """Return the ids of the tasks that other processes have leased, by process: all of dead ones, and of the others what has expired."""
    orphans: dict[int, list[int]] = {process_id: [] for process_id in dead_ids}
    for process_id, task_id in connection.execute(SELECT_LEASES, (own_id, f",{','.join(map(str, dead_ids))},", now_usec)):
        orphans.setdefault(process_id, []).append(task_id)
    return orphans


def get_task(connection: sqlite3.Connection, queue_name: str, name: str) -> TaskRecord | None:
    """Return one task, or None."""
    rows = _fetch(connection, SELECT_TASK, (queue_name, name))
    return show_row(connection, rows[0], queue_name) if rows else None


def list_tasks(
    connection: sqlite3.Connection,
    queue_name: str,
    states: Sequence[TaskState],
    such: TaskFilter,
    after: tuple[int, str],
    limit: int,
) -> list[TaskRecord]:
    """Return a page of tasks by ETA and name."""
    arguments = (queue_name, *after, such.name_prefix, such.url, such.tag, limit)
    # One moment for all states, or a task that is leased meanwhile would be listed twice.
    with _snapshot(connection):
        rows = [row for state in states for row in _fetch(connection, SELECT_TASKS.format(state=int(state)), arguments)]
        rows.sort(key=itemgetter(5, 2))
        return [show_row(connection, row, queue_name) for row in rows[:limit]]


def _fetch(connection: sqlite3.Connection, statement: str, arguments: tuple[object, ...]) -> list[Row]:
    """Return the rows of a query, in which a text that is not UTF-8 is shown as well as it can be."""
    try:
        return connection.execute(statement, arguments).fetchall()
    except sqlite3.Error as exc:
        if not is_undecodable(exc):
            raise
    connection.text_factory = _decode_all
    try:
        return connection.execute(statement, arguments).fetchall()
    finally:
        connection.text_factory = str


def _decode_all(text: bytes) -> str:
    return text.decode("utf-8", "replace")


@contextlib.contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Let all statements of the block see the same moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


def list_attempts(connection: sqlite3.Connection, task_id: int) -> list[AttemptRecord]:
    """Return a task's log, oldest first."""
    return [attempt_of_row(row) for row in _fetch(connection, SELECT_ATTEMPTS, (task_id,))]


def fetch_statistics(connection: sqlite3.Connection, queue_names: Sequence[str], now_usec: int) -> list[StoredStatistics]:
    """Return the figures of each queue, in order."""
    statistics = []
    for name in queue_names:
        row = connection.execute(SELECT_STATISTICS, (now_usec, name)).fetchone() or (0, None, 0, 0, 0)
        tasks, oldest_eta_usec, in_flight, is_paused, started = row
        statistics.append(StoredStatistics(tasks, oldest_eta_usec, int(in_flight), bool(is_paused), int(started)))
    return statistics
