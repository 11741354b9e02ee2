"""What is settled at the start: this process among those that have the file open, the rows of queues, the signing keys."""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Sequence

import attrs

from aiotaskqueue.stores._sqlite_connection import begin
from aiotaskqueue.stores._sqlite_file import DatabaseFile
from aiotaskqueue.stores._sqlite_locks import ProcessLock, is_dead, remove_leftover_locks
from aiotaskqueue.stores._sqlite_rows import Ids

# Primary keys and the UNIQUE of the names; short tables.
INSERT_QUEUE = "INSERT OR IGNORE INTO taskqueue_queue (name) VALUES (?)"
SELECT_QUEUES = "SELECT id, name FROM taskqueue_queue"
SELECT_HAS_TASKS = "SELECT 1 FROM taskqueue_task WHERE queue_id = ? LIMIT 1"
INSERT_PROCESS = "INSERT INTO taskqueue_process (id, host, pid, started_usec) VALUES (?, ?, ?, ?)"
ALLOCATE_ID = "UPDATE taskqueue_sequence SET last_id = last_id + 1 RETURNING last_id"
SELECT_PROCESSES = "SELECT id FROM taskqueue_process"
SELECT_OTHERS = "SELECT id, host FROM taskqueue_process WHERE id <> ?"
SELECT_HAVE_LEASES = "SELECT 1 FROM taskqueue_in_flight WHERE process_id <> ? AND tasks > 0 LIMIT 1"
ANNOUNCE_DRAIN = "UPDATE taskqueue_process SET is_draining = 1 WHERE id = ?"
UPDATE_KEY_IDS = "UPDATE taskqueue_process SET key_ids = ? WHERE id = ?"
SELECT_KEY_IDS = "SELECT id, host, key_ids FROM taskqueue_process WHERE id <> ? AND key_ids <> ''"
DELETE_PROCESS_WITHOUT_LEASES = """
    DELETE FROM taskqueue_process WHERE id = ?1
        AND NOT EXISTS (SELECT 1 FROM taskqueue_in_flight WHERE process_id = ?1 AND tasks > 0)
"""
DELETE_EMPTY_IN_FLIGHT = "DELETE FROM taskqueue_in_flight WHERE process_id = ? AND tasks = 0"
SELECT_SECRETS = "SELECT secret FROM taskqueue_secret ORDER BY created_usec DESC, id DESC"
INSERT_SECRET = "INSERT INTO taskqueue_secret (secret, created_usec) VALUES (?, ?)"


@attrs.frozen
class Neighbours:
    """The other processes that have the file open."""

    is_any: bool = False
    is_any_alive: bool = False
    is_any_dead: bool = False
    """One has died whose tasks nobody has taken back."""
    has_leases: bool = False
    """Some of them have leased tasks; a process that hangs, or runs on another machine, is only known by their expiry."""


class OwnProcess:
    """This process in the eyes of the others: a row, and a lock that proves it alive."""

    def __init__(self, file: DatabaseFile | None, ids: Ids) -> None:
        self._file = file
        self._ids = ids
        self._lock: ProcessLock | None = None

    def register(self, connection: sqlite3.Connection, requests: Sequence[int]) -> list[None]:
        """Enter this process (a verb; the request is the time); its lock is held before anybody can see the row."""
        (process_id,) = connection.execute(ALLOCATE_ID).fetchone()
        if self._file is not None:
            remove_leftover_locks(self._file.real_path, {known for (known,) in connection.execute(SELECT_PROCESSES)})
            self._lock = ProcessLock(self._file.real_path, process_id)
            self._lock.acquire()
        connection.execute(INSERT_PROCESS, (process_id, _host(), os.getpid(), requests[0]))
        self._ids.process = process_id
        return [None]

    def unregister(self, connection: sqlite3.Connection) -> None:
        """Remove the row; a process that still has leases is left for `rescue`, which finds its lock gone."""
        if self._lock is not None:
            begin(connection)
            connection.execute(DELETE_PROCESS_WITHOUT_LEASES, (self._ids.process,))
            connection.execute(DELETE_EMPTY_IN_FLIGHT, (self._ids.process,))
            connection.execute("COMMIT")

    def release(self) -> None:
        """Give the lock up; twice is fine."""
        # A cancelled opening may have taken the lock only while the writer was told to stop: so look now, and not earlier.
        if self._lock is not None:
            self._lock.release()

    def select_others(self, connection: sqlite3.Connection) -> list[tuple[int, str]]:
        """Return the other processes that have the file open, or had when they died: id and host."""
        return connection.execute(SELECT_OTHERS, (self._ids.process,)).fetchall()

    def announce_keys(self, connection: sqlite3.Connection, requests: Sequence[Sequence[str]]) -> list[list[list[str]]]:
        """Note which keys this process uses (a verb); return those of the others of which a lock proves that they live."""
        connection.executemany(UPDATE_KEY_IDS, [(" ".join(key_ids), self._ids.process) for key_ids in requests])
        rows = connection.execute(SELECT_KEY_IDS, (self._ids.process,)).fetchall()
        # What a dead process has left, or one on a machine of which we know nothing, is no reason not to start.
        living = [key_ids.split() for process_id, host, key_ids in rows if host == _host() and not self.has_died(process_id, host)]
        return [living for _ in requests]

    def look(self, connection: sqlite3.Connection) -> Neighbours:
        """Return how the other processes are."""
        dead = [self.has_died(process_id, host) for process_id, host in self.select_others(connection)]
        has_leases = connection.execute(SELECT_HAVE_LEASES, (self._ids.process,)).fetchone() is not None
        return Neighbours(bool(dead), not all(dead), any(dead), has_leases)

    def has_died(self, process_id: int, host: str) -> bool:
        """Whether another process has certainly ended, which can only be said of one on this machine."""
        return self._file is not None and host == _host() and is_dead(self._file.real_path, process_id)


def probe(connection: sqlite3.Connection, requests: Sequence[None]) -> list[None]:
    """Write something, to see whether that is possible: an id that nobody gets."""
    connection.execute(ALLOCATE_ID)
    return [None for _ in requests]


def announce_drain(connection: sqlite3.Connection, requests: Sequence[int]) -> list[None]:
    """Note that processes are about to end."""
    connection.executemany(ANNOUNCE_DRAIN, [(process_id,) for process_id in requests])
    return [None for _ in requests]


def configure(ids: Ids, connection: sqlite3.Connection, requests: Sequence[Sequence[str]]) -> list[list[str]]:
    """Make the rows of queues; return the names of those that have tasks and are not among the request's."""
    connection.executemany(INSERT_QUEUE, [(name,) for names in requests for name in names])
    queues = connection.execute(SELECT_QUEUES).fetchall()
    ids.queues = {name: queue_id for queue_id, name in queues}
    has_tasks = [name for queue_id, name in queues if connection.execute(SELECT_HAS_TASKS, (queue_id,)).fetchone()]
    return [[name for name in has_tasks if name not in names] for names in requests]


def fetch_secrets(connection: sqlite3.Connection, requests: Sequence[tuple[bytes, int]]) -> list[list[bytes]]:
    """Return the keys, newest first; the first request's is stored if there is none."""
    if connection.execute(SELECT_SECRETS).fetchone() is None:
        connection.execute(INSERT_SECRET, requests[0])
    secrets = [secret for (secret,) in connection.execute(SELECT_SECRETS)]
    return [secrets for _ in requests]


def _host() -> str:
    return socket.gethostname()
