"""The verbs of the SQLite store that need to know who and where we are. Run in the database thread; no awaits, no clock.

Each verb takes all requests of its kind that gathered for one transaction (`_group_commit`) and returns a result for
each. What they do is in rooms of its own: adding, settling, leasing; verbs that need no ids are in chores and managing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import attrs

from aiotaskqueue._record import TaskRecord
from aiotaskqueue.stores._base import Added, Exchange, LeaseRequest, Settlement
from aiotaskqueue.stores._sqlite_adding import AddRequest, add
from aiotaskqueue.stores._sqlite_leasing import Leasing
from aiotaskqueue.stores._sqlite_rows import COLUMNS, Ids, record_of_row
from aiotaskqueue.stores._sqlite_settling import settle
from aiotaskqueue.stores._sqlite_setup import configure

# taskqueue_task_leased, and only after a commit of which we do not know whether it happened.
SELECT_OWN_LEASES = f"""
    SELECT (SELECT name FROM taskqueue_queue WHERE id = queue_id), {COLUMNS} FROM taskqueue_task WHERE state = 1 AND process_id = ?
"""


@attrs.frozen
class ExchangeRequest:
    """Arguments of `exchange`."""

    settlements: Sequence[Settlement]
    lease: LeaseRequest | None
    now_usec: int


class Verbs:
    """Verbs that know this process's id and the ids of queues."""

    def __init__(self) -> None:
        self.ids = Ids()

    def configure(self, connection: sqlite3.Connection, requests: Sequence[Sequence[str]]) -> list[list[str]]:
        """Make the rows of queues, and learn their ids."""
        return configure(self.ids, connection, requests)

    def add(self, connection: sqlite3.Connection, requests: Sequence[AddRequest]) -> list[Added]:
        """Insert the tasks of all requests."""
        return add(self.ids, connection, requests)

    def exchange(self, connection: sqlite3.Connection, requests: Sequence[ExchangeRequest]) -> list[Exchange]:
        """Settle and lease, request by request."""
        return [self._exchange(connection, request) for request in requests]

    def _exchange(self, connection: sqlite3.Connection, request: ExchangeRequest) -> Exchange:
        stale = settle(self.ids, connection, request.settlements, request.now_usec)
        if request.lease is None:
            return Exchange(stale=stale)
        return attrs.evolve(Leasing(self.ids, connection, request.lease, request.now_usec).run(), stale=stale)

    def list_own_leases(self, connection: sqlite3.Connection, requests: Sequence[None]) -> list[list[TaskRecord]]:
        """Return what this process has leased."""
        rows = connection.execute(SELECT_OWN_LEASES, (self.ids.process,)).fetchall()
        leases = [record_of_row(connection, row[1:], row[0]) for row in rows]
        return [leases for _ in requests]
