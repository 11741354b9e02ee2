"""Leasing from the SQLite store. In the database thread, inside a transaction."""

from __future__ import annotations

import sqlite3

from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.stores._base import LEASE_SLACK_SECONDS, Exchange, LeaseRequest
from aiotaskqueue.stores._sqlite_gate import COUNT_IN_FLIGHT, COUNT_STARTED, SELECT_GATES, Gate
from aiotaskqueue.stores._sqlite_rows import COLUMNS, Ids, Row, record_of_row

# How long an attempt may go on after its deadline: the worker's grace of a second, and slack for recording its end.
_LEASE_EXTRA_USEC = round((1.0 + LEASE_SLACK_SECONDS) * 1_000_000)

# taskqueue_task_ready.
SELECT_READY_ETA = "SELECT min(eta_usec) FROM taskqueue_task WHERE queue_id = ? AND state = 0"

# taskqueue_task_ready (state 0) or taskqueue_task_suspect (state 3) chooses; rows are written by primary key.
LEASE = """
    UPDATE taskqueue_task SET
        state = 1, attempts = attempts + 1, lease_token = lease_token + 1, process_id = ?1, is_suspect = {suspect},
        lease_expires_usec = ?2 + ifnull(dispatch_deadline_usec, ?3), first_attempt_usec = ifnull(first_attempt_usec, ?5)
    WHERE id IN (
        SELECT id FROM taskqueue_task WHERE queue_id = ?4 AND state = {state} AND eta_usec <= ?5
        ORDER BY eta_usec, name LIMIT ?6
    ) RETURNING """
# taskqueue_task_forced, which is nearly always empty.
SELECT_FORCED = "SELECT DISTINCT queue_id FROM taskqueue_task WHERE is_forced = 1"
LEASE_FORCED = (
    """
    UPDATE taskqueue_task SET
        state = 1, attempts = attempts + 1, lease_token = lease_token + 1, process_id = ?1, is_suspect = 0, is_forced = 0,
        lease_expires_usec = ?2 + ifnull(dispatch_deadline_usec, ?3), first_attempt_usec = ifnull(first_attempt_usec, ?5)
    WHERE queue_id = ?4 AND is_forced = 1 RETURNING """
    + COLUMNS
)
LEASE_READY = LEASE.format(state=0, suspect=0) + COLUMNS
LEASE_SUSPECT = LEASE.format(state=3, suspect=1) + COLUMNS


class Leasing:
    """One dispatcher's lease from all of its queues."""

    def __init__(self, ids: Ids, connection: sqlite3.Connection, request: LeaseRequest, now_usec: int) -> None:
        self._process_id = ids.process
        self._connection = connection
        self._request = request
        self._now_usec = now_usec
        self._configs = {ids.queues[config.name]: config for config in request.queues}
        self._places = request.places
        self._suspect_queue = request.suspect_queue
        self._leased: list[TaskRecord] = []
        self._moments: list[int] = []
        self._has_more = False

    def run(self) -> Exchange:
        """Lease what somebody wants to run now, then queue by queue, the one with the oldest due task first."""
        for (queue_id,) in self._connection.execute(SELECT_FORCED).fetchall():
            if queue_id in self._configs:
                self._lease_forced(queue_id, self._configs[queue_id])
        rows = self._connection.execute(SELECT_GATES, (self._process_id,)).fetchall()
        gates = [Gate(row, self._configs[row[0]], self._now_usec) for row in rows if row[0] in self._configs]
        for gate in sorted((gate for gate in gates if not gate.is_closed), key=_oldest_eta):
            if gate.suspect_eta is not None or gate.config.name == self._suspect_queue:
                self._lease_suspect(gate)
            elif gate.ready_eta is not None:
                self._lease_ready(gate)
            gate.save(self._connection, self._process_id)
        return Exchange(
            self._leased,
            next_eta_usec=min(self._moments, default=None),
            has_more=self._has_more,
            paused=tuple(gate.config.name for gate in gates if gate.is_paused),
        )

    def _lease_forced(self, queue_id: int, config: QueueConfig) -> None:
        extra_usec = round(config.dispatch_deadline_seconds * 1_000_000)
        rows = self._connection.execute(
            LEASE_FORCED, (self._process_id, self._now_usec + _LEASE_EXTRA_USEC, extra_usec, queue_id, self._now_usec)
        ).fetchall()
        self._leased += [record_of_row(self._connection, row, config.name) for row in rows]
        # They count like others, so what is leased next has fewer places; the number of places was not asked.
        self._connection.execute(COUNT_IN_FLIGHT, (queue_id, self._process_id, len(rows)))
        self._connection.execute(COUNT_STARTED, (queue_id, self._now_usec // 1_000_000, len(rows)))
        self._places = max(self._places - len(rows), 0)

    def _lease_suspect(self, gate: Gate) -> None:
        # Retried alone: nothing else of its queue, and no other suspect, is in flight in this process (RELIABILITY P18).
        if self._suspect_queue is not None or gate.own_in_flight or not self._places:
            self._has_more = True
            return
        if self._lease(gate, LEASE_SUSPECT, 1):
            self._suspect_queue = gate.config.name
        self._look_ahead(gate, gate.suspect_eta)

    def _lease_ready(self, gate: Gate) -> None:
        if gate.ready_eta <= self._now_usec and self._lease(gate, LEASE_READY, self._places):
            (gate.ready_eta,) = self._connection.execute(SELECT_READY_ETA, (gate.queue_id,)).fetchone()
        self._look_ahead(gate, gate.ready_eta)

    def _lease(self, gate: Gate, statement: str, wanted: int) -> int:
        count = gate.room(wanted)
        if not count:
            return 0
        extra_usec = round(gate.config.dispatch_deadline_seconds * 1_000_000)
        rows = self._connection.execute(
            statement, (self._process_id, self._now_usec + _LEASE_EXTRA_USEC, extra_usec, gate.queue_id, self._now_usec, count)
        ).fetchall()
        # RETURNING has no order of its own.
        rows.sort(key=_by_eta)
        self._leased += [record_of_row(self._connection, row, gate.config.name) for row in rows]
        gate.start(len(rows))
        self._places -= len(rows)
        return len(rows)

    def _look_ahead(self, gate: Gate, eta_usec: int | None) -> None:
        """Note what the rest of the queue, which begins at `eta_usec`, waits for: its ETA, a token or a place."""
        if eta_usec is None:
            return
        if eta_usec > self._now_usec:
            self._moments.append(eta_usec)
            return
        token_usec = gate.next_token_usec()
        if token_usec is None or token_usec <= self._now_usec:
            self._has_more = True
        else:
            self._moments.append(token_usec)


def lease_usec(record: TaskRecord, config: QueueConfig) -> int:
    """Return how long a lease lasts: the attempt's deadline, the grace and the slack."""
    seconds = record.dispatch_deadline_seconds or config.dispatch_deadline_seconds
    return round(seconds * 1_000_000) + _LEASE_EXTRA_USEC


def _oldest_eta(gate: Gate) -> int:
    return min((eta for eta in (gate.suspect_eta, gate.ready_eta) if eta is not None), default=0)


def _by_eta(row: Row) -> tuple[int, str]:
    return row[5], row[2]
