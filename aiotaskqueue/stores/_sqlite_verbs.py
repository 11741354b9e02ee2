"""The verbs of the SQLite store: what happens inside a transaction. Runs in the database thread; no awaits, no clock.

Each verb takes all requests of its kind that gathered for one transaction (`_group_commit`) and returns a result for
each. Statements are named, with the index that serves them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import attrs

from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import AttemptRecord, TaskRecord, TaskState
from aiotaskqueue._token_bucket import Bucket, next_token_usec, take
from aiotaskqueue.stores._base import (
    ATTEMPTS_KEPT,
    LEASE_SLACK_SECONDS,
    Added,
    AddVerdict,
    Dead,
    Delete,
    Exchange,
    LeaseRequest,
    Retry,
    Settlement,
)
from aiotaskqueue.stores._sqlite_rows import (
    COLUMNS,
    DELETE_BODY,
    INSERT_BODY,
    INSERT_TASK,
    Row,
    is_large,
    new_row,
    record_of_row,
)

# After every moment that a row can hold.
FOR_EVER_USEC = 2**62

# How long an attempt may go on after its deadline: the worker's grace of a second, and slack for recording its end.
_LEASE_EXTRA_USEC = round((1.0 + LEASE_SLACK_SECONDS) * 1_000_000)

# Primary key of a table of one row.
ALLOCATE_IDS = "UPDATE taskqueue_sequence SET last_id = last_id + ? RETURNING last_id"

# Two look-ups in partial indexes (ready, suspect) and two short ranges of in_flight's primary key for each queue.
SELECT_GATES = """
    SELECT q.id, q.is_paused, q.bucket_level, q.bucket_usec,
        (SELECT min(eta_usec) FROM taskqueue_task WHERE queue_id = q.id AND state = 0),
        (SELECT min(eta_usec) FROM taskqueue_task WHERE queue_id = q.id AND state = 3),
        (SELECT sum(tasks) FROM taskqueue_in_flight WHERE queue_id = q.id),
        (SELECT tasks FROM taskqueue_in_flight WHERE queue_id = q.id AND process_id = ?)
    FROM taskqueue_queue AS q
"""
SELECT_GATE = SELECT_GATES + " WHERE q.id = ?"

# taskqueue_task_ready.
SELECT_READY_ETA = "SELECT min(eta_usec) FROM taskqueue_task WHERE queue_id = ? AND state = 0"

# taskqueue_queue's and taskqueue_in_flight's primary keys.
SAVE_BUCKET = "UPDATE taskqueue_queue SET bucket_level = ?, bucket_usec = ? WHERE id = ?"
COUNT_IN_FLIGHT = """
    INSERT INTO taskqueue_in_flight (queue_id, process_id, tasks) VALUES (?1, ?2, max(?3, 0))
    ON CONFLICT (queue_id, process_id) DO UPDATE SET tasks = max(tasks + ?3, 0)
"""

# taskqueue_started's primary key; a slot that is a minute old, or of a clock that was set back, begins anew.
COUNT_STARTED = """
    INSERT INTO taskqueue_started (queue_id, slot, second, tasks) VALUES (?1, ?2 % 60, ?2, ?3)
    ON CONFLICT (queue_id, slot) DO UPDATE SET tasks = iif(second = ?2, tasks, 0) + ?3, second = ?2
"""

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

# taskqueue_task_name; taskqueue_tombstone's primary key.
SELECT_NAME = "SELECT state FROM taskqueue_task WHERE queue_id = ? AND name = ?"
SELECT_TOMBSTONE = "SELECT 1 FROM taskqueue_tombstone WHERE queue_id = ? AND name = ? AND expires_usec > ?"
INSERT_TOMBSTONE = "INSERT OR REPLACE INTO taskqueue_tombstone (queue_id, name, expires_usec) VALUES (?, ?, ?)"

# By primary key; the token tells this attempt from a later one (fencing).
DELETE_LEASED = "DELETE FROM taskqueue_task WHERE id = ? AND lease_token = ? AND state = 1"
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
DELETE_ATTEMPTS = "DELETE FROM taskqueue_attempt WHERE task_id = ?"

# By primary key.
SELECT_LEASED = f"""
    SELECT queue_id, (SELECT name FROM taskqueue_queue WHERE id = queue_id), {COLUMNS}
    FROM taskqueue_task WHERE id = ? AND process_id = ? AND state = 1 AND lease_expires_usec < ?
"""
SUSPECT_LEASED = """
    UPDATE taskqueue_task SET
        state = ?, crashes = ?, retry_reason = ?, process_id = NULL, lease_expires_usec = NULL, is_suspect = 0,
        dead_usec = ?, dead_reason = ?, keep_until_usec = ?
    WHERE id = ?
"""
# taskqueue_task_leased, and only after a commit of which we do not know whether it happened.
SELECT_OWN_LEASES = f"""
    SELECT (SELECT name FROM taskqueue_queue WHERE id = queue_id), {COLUMNS} FROM taskqueue_task WHERE state = 1 AND process_id = ?
"""
SELECT_PROCESS = "SELECT is_draining FROM taskqueue_process WHERE id = ?"
DELETE_PROCESS = "DELETE FROM taskqueue_process WHERE id = ?"
# The table is as short as there are processes and queues.
DELETE_IN_FLIGHT = "DELETE FROM taskqueue_in_flight WHERE process_id = ?"

# taskqueue_tombstone_expiry; taskqueue_task_dead.
SELECT_EXPIRED_TOMBSTONES = "SELECT queue_id, name FROM taskqueue_tombstone WHERE expires_usec <= ? LIMIT ?"
DELETE_TOMBSTONE = "DELETE FROM taskqueue_tombstone WHERE queue_id = ? AND name = ?"
SELECT_EXPIRED_DEAD = "SELECT id FROM taskqueue_task WHERE state = 2 AND keep_until_usec <= ? LIMIT ?"
DELETE_TASK = "DELETE FROM taskqueue_task WHERE id = ?"


@attrs.frozen
class AddRequest:
    """Arguments of `add`."""

    records: Sequence[TaskRecord]
    configs: Sequence[QueueConfig]
    places: int
    now_usec: int


@attrs.frozen
class ExchangeRequest:
    """Arguments of `exchange`."""

    settlements: Sequence[Settlement]
    lease: LeaseRequest | None
    now_usec: int


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


class Gate:
    """What one queue may start, inside one transaction: paused or not, places, tokens."""

    def __init__(self, row: Row, config: QueueConfig, now_usec: int) -> None:
        self.queue_id, is_paused, level, bucket_usec, self.ready_eta, self.suspect_eta, in_flight, own_in_flight = row
        self.config = config
        self.own_in_flight: int = own_in_flight or 0
        self.is_paused = bool(is_paused)
        self.is_closed = self.is_paused or config.exact_rate == 0
        self.started = 0
        self._now_usec = now_usec
        self._places = max(config.max_concurrent_requests - (in_flight or 0), 0)
        self._rate = config.exact_rate
        full = Bucket.full(capacity=config.bucket_size, now_usec=now_usec)
        self._bucket = full if level is None else Bucket(level, bucket_usec)

    def room(self, wanted: int) -> int:
        """Return how many of `wanted` may start now."""
        granted = 0 if self.is_closed else min(wanted, self._places)
        return granted if self._rate is None else self._take(granted, self._rate)[0]

    def start(self, count: int) -> None:
        """Count `count` tasks, no more than there is room for, as started."""
        self._places -= count
        self.started += count
        if self._rate is not None:
            self._bucket = self._take(count, self._rate)[1]

    def is_free_for_new(self) -> bool:
        """Whether no other due task waits in the queue, so that a new one may overtake nobody."""
        return (self.ready_eta is None or self.ready_eta > self._now_usec) and self.suspect_eta is None

    def next_token_usec(self) -> int | None:
        """Return when a token allows more, if only that is missing."""
        if self._rate is None or not self._places:
            return None
        return next_token_usec(self._bucket, rate=self._rate)

    def save(self, connection: sqlite3.Connection, process_id: int) -> None:
        """Write what was started."""
        if not self.started:
            return
        connection.execute(COUNT_IN_FLIGHT, (self.queue_id, process_id, self.started))
        connection.execute(COUNT_STARTED, (self.queue_id, self._now_usec // 1_000_000, self.started))
        if self._rate is not None:
            connection.execute(SAVE_BUCKET, (self._bucket.level, self._bucket.usec, self.queue_id))

    def _take(self, wanted: int, rate: Fraction) -> tuple[int, Bucket]:
        return take(self._bucket, wanted, rate=rate, capacity=self.config.bucket_size, now_usec=self._now_usec)


class Verbs:
    """Every writing verb; knows this process's id and the ids of queues."""

    def __init__(self) -> None:
        self.process_id = 0
        self.queue_ids: dict[str, int] = {}

    # --- add ---

    def add(self, connection: sqlite3.Connection, requests: Sequence[AddRequest]) -> list[Added]:
        """Insert the tasks of all requests."""
        (last_id,) = connection.execute(ALLOCATE_IDS, (sum(len(request.records) for request in requests),)).fetchone()
        batch = _Insertion(self, connection, last_id - sum(len(request.records) for request in requests))
        results = [batch.add(request) for request in requests]
        batch.finish()
        return results

    # --- exchange ---

    def exchange(self, connection: sqlite3.Connection, requests: Sequence[ExchangeRequest]) -> list[Exchange]:
        """Settle and lease, request by request."""
        return [self._exchange(connection, request) for request in requests]

    def _exchange(self, connection: sqlite3.Connection, request: ExchangeRequest) -> Exchange:
        stale = self._settle(connection, request.settlements, request.now_usec)
        if request.lease is None:
            return Exchange(stale=stale)
        return attrs.evolve(_Leasing(self, connection, request.lease, request.now_usec).run(), stale=stale)

    def _settle(self, connection: sqlite3.Connection, settlements: Iterable[Settlement], now_usec: int) -> list[TaskRecord]:
        stale = []
        ended: dict[int, int] = {}
        for settlement in settlements:
            queue_id = self.queue_ids[settlement.record.queue_name]
            if _settle_one(connection, settlement, queue_id, now_usec):
                ended[queue_id] = ended.get(queue_id, 0) + 1
            else:
                stale.append(settlement.record)
        for queue_id, count in ended.items():
            connection.execute(COUNT_IN_FLIGHT, (queue_id, self.process_id, -count))
        return stale

    def list_own_leases(self, connection: sqlite3.Connection, requests: Sequence[None]) -> list[list[TaskRecord]]:
        """Return what this process has leased."""
        rows = connection.execute(SELECT_OWN_LEASES, (self.process_id,)).fetchall()
        leases = [record_of_row(connection, row[1:], row[0]) for row in rows]
        return [leases for _ in requests]

    # --- chores ---

    def rescue(self, connection: sqlite3.Connection, requests: Sequence[RescueRequest]) -> list[list[TaskRecord]]:
        """Take the tasks of ended processes back."""
        return [_rescue(connection, request) for request in requests]

    def sweep(self, connection: sqlite3.Connection, requests: Sequence[SweepRequest]) -> list[int]:
        """Remove what has outlived its time."""
        return [_sweep(connection, request) for request in requests]


class _Insertion:
    """All adds of one transaction."""

    def __init__(self, verbs: Verbs, connection: sqlite3.Connection, last_id: int) -> None:
        self._verbs = verbs
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
        self._connection.executemany(INSERT_TASK, self._rows)
        self._connection.executemany(INSERT_BODY, self._bodies)
        for gate in self._gates.values():
            gate.save(self._connection, self._verbs.process_id)

    def _refusal(self, record: TaskRecord, now_usec: int) -> AddVerdict | None:
        queue_id = self._verbs.queue_ids[record.queue_name]
        self._flush()
        row = self._connection.execute(SELECT_NAME, (queue_id, record.name)).fetchone()
        if row is not None:
            return AddVerdict.TOMBSTONED if row[0] == TaskState.DEAD else AddVerdict.EXISTS
        if self._connection.execute(SELECT_TOMBSTONE, (queue_id, record.name, now_usec)).fetchone():
            return AddVerdict.TOMBSTONED
        return None

    def _flush(self) -> None:
        # A name given twice in one transaction must be found the second time.
        self._connection.executemany(INSERT_TASK, self._rows)
        self._rows.clear()

    def _store(self, record: TaskRecord, config: QueueConfig, now_usec: int, *, may_lease: bool) -> TaskRecord | None:
        queue_id = self._verbs.queue_ids[record.queue_name]
        self._last_id += 1
        leased = self._lease(record, config, now_usec) if may_lease else None
        if leased is None and record.eta_usec <= now_usec:
            self._queues_with_due.add(record.queue_name)
        process_id = None if leased is None else self._verbs.process_id
        self._rows.append(new_row(leased or record, self._last_id, queue_id, process_id))
        if is_large(record):
            self._bodies.append((self._last_id, record.payload))
        return leased

    def _lease(self, record: TaskRecord, config: QueueConfig, now_usec: int) -> TaskRecord | None:
        if record.queue_name in self._queues_with_due:
            return None
        gate = self._gates.get(record.queue_name)
        if gate is None:
            queue_id = self._verbs.queue_ids[record.queue_name]
            row = self._connection.execute(SELECT_GATE, (self._verbs.process_id, queue_id)).fetchone()
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


class _Leasing:
    """One dispatcher's lease from all of its queues."""

    def __init__(self, verbs: Verbs, connection: sqlite3.Connection, request: LeaseRequest, now_usec: int) -> None:
        self._process_id = verbs.process_id
        self._connection = connection
        self._request = request
        self._now_usec = now_usec
        self._configs = {verbs.queue_ids[config.name]: config for config in request.queues}
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
        _log_attempt(connection, record, outcome.log)
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


def _log_attempt(connection: sqlite3.Connection, record: TaskRecord, log: AttemptRecord) -> None:
    connection.execute(
        INSERT_ATTEMPT,
        (record.id, record.lease_token, log.attempt, log.started_usec, log.ended_usec, log.reason, log.status, log.detail),
    )
    if record.lease_token > ATTEMPTS_KEPT:
        connection.execute(TRIM_ATTEMPTS, (record.id,))


def _rescue(connection: sqlite3.Connection, request: RescueRequest) -> list[TaskRecord]:
    """Take back what one process had leased.

    A task is suspected of having brought the process down if it was in flight then. With several suspects none is
    charged: each is retried alone, and whoever is then the only one in flight at `crash_limit` crashes in a row is dead.
    A task that ran beside the one that was retried alone is no candidate, or two queues could crash for ever.
    """
    row = connection.execute(SELECT_PROCESS, (request.process_id,)).fetchone()
    if row is None:
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
    _log_attempt(connection, record, log)


def _sweep(connection: sqlite3.Connection, request: SweepRequest) -> int:
    tombstones = connection.execute(SELECT_EXPIRED_TOMBSTONES, (request.now_usec, request.limit)).fetchall()
    connection.executemany(DELETE_TOMBSTONE, tombstones)
    dead = connection.execute(SELECT_EXPIRED_DEAD, (request.now_usec, request.limit)).fetchall()
    for statement in (DELETE_TASK, DELETE_BODY, DELETE_ATTEMPTS):
        connection.executemany(statement, dead)
    return len(tombstones) + len(dead)
