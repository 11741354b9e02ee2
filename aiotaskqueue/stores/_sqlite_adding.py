"""Adding to the SQLite store. In the database thread, inside a transaction."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Sequence
from itertools import chain

import attrs

from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import TaskRecord, TaskState
from aiotaskqueue.stores._base import Added, AddVerdict
from aiotaskqueue.stores._sqlite_gate import SELECT_GATE, Gate
from aiotaskqueue.stores._sqlite_leasing import lease_usec
from aiotaskqueue.stores._sqlite_rows import INSERT_BODY, INSERT_TASK, ROW_OF_TASK, SELECT_NAME, Ids, Row, is_large, new_row

# Primary key of a table of one row.
ALLOCATE_IDS = "UPDATE taskqueue_sequence SET last_id = last_id + ? RETURNING last_id"

# SQLite takes 32,766 values in a statement by default, of which a row has 22.
MAX_ROWS_PER_INSERT = 256

# taskqueue_tombstone's primary key.
SELECT_TOMBSTONE = "SELECT 1 FROM taskqueue_tombstone WHERE queue_id = ? AND name = ? AND expires_usec > ?"


@attrs.frozen
class AddRequest:
    """Arguments of `add`."""

    records: Sequence[TaskRecord]
    configs: Sequence[QueueConfig]
    places: int
    now_usec: int


def add(ids: Ids, connection: sqlite3.Connection, requests: Sequence[AddRequest]) -> list[Added]:
    """Insert the tasks of all requests."""
    count = sum(len(request.records) for request in requests)
    (last_id,) = connection.execute(ALLOCATE_IDS, (count,)).fetchone()
    batch = Insertion(ids, connection, last_id - count)
    results = [batch.add(request) for request in requests]
    batch.finish()
    return results


def insert(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Insert rows, many with each call: in a call for each, a third of the time goes to handing the interpreter's lock to and fro."""
    done = 0
    while done < len(rows):
        # Powers of two, so that there are few statements to prepare.
        count = min(1 << (len(rows) - done).bit_length() - 1, MAX_ROWS_PER_INSERT)
        connection.execute(_insert_statement(count), [*chain.from_iterable(rows[done : done + count])])
        done += count


@functools.cache
def _insert_statement(count: int) -> str:
    return INSERT_TASK + f", {ROW_OF_TASK}" * (count - 1)


class Insertion:
    """All adds of one transaction."""

    def __init__(self, ids: Ids, connection: sqlite3.Connection, last_id: int) -> None:
        self._ids = ids
        self._connection = connection
        self._last_id = last_id
        self._gates: dict[str, Gate] = {}
        self._queues_with_due: set[str] = set()
        self._rows: list[Row] = []
        self._bodies: list[tuple[int, bytes | None]] = []

    def add(self, request: AddRequest) -> Added:
        """Take in one request's tasks, in order."""
        verdicts = []
        leased: list[TaskRecord] = []
        for record, config in zip(request.records, request.configs, strict=True):
            verdict = self._refusal(record, request.now_usec) if record.is_named else None
            if verdict is None:
                may_lease = len(leased) < request.places and record.eta_usec <= request.now_usec and config.mode == "push"
                stored = self._store(record, config, request.now_usec, may_lease=may_lease)
                verdict = AddVerdict.STORED
                if stored is not None:
                    leased.append(stored)
                    verdict = AddVerdict.LEASED
            verdicts.append(verdict)
        return Added(verdicts, leased)

    def finish(self) -> None:
        """Write what was taken in."""
        self._flush()
        self._connection.executemany(INSERT_BODY, self._bodies)
        for gate in self._gates.values():
            gate.save(self._connection, self._ids.process)

    def _refusal(self, record: TaskRecord, now_usec: int) -> AddVerdict | None:
        queue_id = self._ids.queues[record.queue_name]
        self._flush()
        row = self._connection.execute(SELECT_NAME, (queue_id, record.name)).fetchone()
        if row is not None:
            return AddVerdict.TOMBSTONED if row[0] == TaskState.DEAD else AddVerdict.EXISTS
        if self._connection.execute(SELECT_TOMBSTONE, (queue_id, record.name, now_usec)).fetchone():
            return AddVerdict.TOMBSTONED
        return None

    def _flush(self) -> None:
        # A name given twice in one transaction must be found the second time.
        insert(self._connection, self._rows)
        self._rows.clear()

    def _store(self, record: TaskRecord, config: QueueConfig, now_usec: int, *, may_lease: bool) -> TaskRecord | None:
        queue_id = self._ids.queues[record.queue_name]
        self._last_id += 1
        leased = self._lease(record, config, now_usec) if may_lease else None
        if leased is None and record.eta_usec <= now_usec:
            self._queues_with_due.add(record.queue_name)
        process_id = None if leased is None else self._ids.process
        self._rows.append(new_row(leased or record, self._last_id, queue_id, process_id))
        if is_large(record):
            self._bodies.append((self._last_id, record.payload))
        return leased

    def _lease(self, record: TaskRecord, config: QueueConfig, now_usec: int) -> TaskRecord | None:
        if record.queue_name in self._queues_with_due:
            return None
        gate = self._gates.get(record.queue_name)
        if gate is None:
            queue_id = self._ids.queues[record.queue_name]
            row = self._connection.execute(SELECT_GATE, (self._ids.process, queue_id)).fetchone()
            gate = self._gates[record.queue_name] = Gate(row, config, now_usec)
        if not gate.is_free_for_new() or not gate.room(1):
            return None
        gate.start(1)
        return attrs.evolve(
            record,
            id=self._last_id,
            state=TaskState.LEASED,
            attempts=1,
            lease_token=1,
            lease_expires_usec=now_usec + lease_usec(record, config),
            first_attempt_usec=now_usec,
        )
