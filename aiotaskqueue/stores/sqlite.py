"""SQLiteStore: tasks in one SQLite file, through aiosqlite.

Theory of operation. Two connections, each with a thread of aiosqlite's. The *writer* belongs to one loop (`GroupCommit`)
that carries out whole transactions, each as one hop to the thread; public coroutines hand their request over and wait.
The *reader* serves looks, each one hop as well, and never waits for a commit. Several processes may have the file open:
what must hold across them (leases, places, tokens) is decided inside of ``BEGIN IMMEDIATE`` transactions.

A watcher looks at ``PRAGMA data_version`` for what others wrote: 20 times a second while others have the file open, once
a second otherwise. It keeps real time whatever clock the service has, for so do the others.

Traps and why this shape avoids them: RELIABILITY 3.1.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Literal, TypeVar

import aiosqlite
import anyio
import attrs

from aiotaskqueue._clock import SystemClock, Wakeup
from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import AttemptRecord, TaskRecord, TaskState
from aiotaskqueue.errors import ClosedError, ConfigError, StoreBusyError, StoreError
from aiotaskqueue.stores._base import (
    Added,
    AddVerdict,
    Exchange,
    LeaseRequest,
    Settlement,
    Store,
    StoredStatistics,
    TaskFilter,
    tombstone_until_usec,
)
from aiotaskqueue.stores._group_commit import MAX_ROWS, GroupCommit, LockedError, Verb
from aiotaskqueue.stores._sqlite_file import (
    DatabaseFile,
    ProcessLock,
    connect,
    is_dead,
    is_locked,
    remove_lock,
    run_in_thread,
    translate,
)
from aiotaskqueue.stores._sqlite_managing import DeleteRequest, PurgeRequest, ReviveRequest, delete, force, purge, revive, set_paused
from aiotaskqueue.stores._sqlite_rows import COLUMNS, attempt_of_row, record_of_row
from aiotaskqueue.stores._sqlite_schema import migrate
from aiotaskqueue.stores._sqlite_verbs import FOR_EVER_USEC, AddRequest, ExchangeRequest, RescueRequest, SweepRequest, Verbs

logger = logging.getLogger("aiotaskqueue")

T = TypeVar("T")

MEMORY = ":memory:"

# Autocheckpoints at 100 pages instead of 1000: p99 of adds 3.4 times lower at the same rate (measured).
WAL_AUTOCHECKPOINT_PAGES = 100
WAL_SIZE_LIMIT_BYTES = 64 * 1024 * 1024

WATCH_SECONDS = 0.05
WATCH_ALONE_SECONDS = 1.0

# A process that hangs, or runs on another machine, is only known by its leases' expiry.
WATCH_EXPIRY_SECONDS = 60.0

# For a lock that another process holds; sweeping can wait for another day (RELIABILITY S16).
PATIENCE_SECONDS = 30.0
SWEEP_PATIENCE_SECONDS = 5.0

_SYNCHRONOUS = {"full": 2, "normal": 1}

# Primary keys and the UNIQUE of the names; short tables.
INSERT_QUEUE = "INSERT OR IGNORE INTO taskqueue_queue (name) VALUES (?)"
SELECT_QUEUES = "SELECT id, name FROM taskqueue_queue"
SELECT_HAS_TASKS = "SELECT 1 FROM taskqueue_task WHERE queue_id = ? LIMIT 1"
INSERT_PROCESS = "INSERT INTO taskqueue_process (id, host, pid, started_usec) VALUES (?, ?, ?, ?)"
ALLOCATE_ID = "UPDATE taskqueue_sequence SET last_id = last_id + 1 RETURNING last_id"
SELECT_OTHERS = "SELECT id, host FROM taskqueue_process WHERE id <> ?"
ANNOUNCE_DRAIN = "UPDATE taskqueue_process SET is_draining = 1 WHERE id = ?"
SELECT_SECRETS = "SELECT secret FROM taskqueue_secret ORDER BY created_usec DESC, id DESC"
INSERT_SECRET = "INSERT INTO taskqueue_secret (secret, created_usec) VALUES (?, ?)"

# taskqueue_in_flight is as short as there are processes and queues.
SELECT_HAS_LEASES = "SELECT 1 FROM taskqueue_in_flight WHERE process_id = ? AND tasks > 0"
# All of taskqueue_task_leased, which is as long as tasks are in flight.
SELECT_LEASED_IDS = """
    SELECT id FROM taskqueue_task INDEXED BY taskqueue_task_leased WHERE state = 1 AND process_id = ? AND lease_expires_usec < ?
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
# A range of taskqueue_task_name; taskqueue_task_ready; the primary keys of taskqueue_in_flight and taskqueue_started.
SELECT_STATISTICS = """
    SELECT
        (SELECT count(*) FROM taskqueue_task WHERE queue_id = q.id AND state <> 2),
        (SELECT min(eta_usec) FROM taskqueue_task WHERE queue_id = q.id AND state = 0 AND eta_usec <= ?1),
        (SELECT total(tasks) FROM taskqueue_in_flight WHERE queue_id = q.id),
        is_paused,
        (SELECT total(tasks) FROM taskqueue_started WHERE queue_id = q.id AND second > ?1 / 1000000 - 60 AND second <= ?1 / 1000000)
    FROM taskqueue_queue AS q WHERE name = ?2
"""


class SQLiteStore(Store):
    """Tasks in one SQLite file.

    Args:
        path: Of the file, which is created with mode 0600 if it is not there, in a folder that is; or ``":memory:"``, which
            is for tests: nothing survives. The file may be the application's own: our tables begin with ``taskqueue_``.
        durability: ``"full"``: what was accepted survives a loss of power; ``"normal"``: the end of the process.
        patience_seconds: How long to wait for a lock that another process holds, before StoreBusyError.
    """

    def __init__(self, path: str, *, durability: Literal["full", "normal"] = "full", patience_seconds: float = PATIENCE_SECONDS) -> None:
        if durability not in _SYNCHRONOUS:
            raise ConfigError(f"durability is {durability!r}; allowed are 'full' and 'normal'.")
        self._file = None if path == MEMORY else DatabaseFile(path)
        self._durability = durability
        self._patience_seconds = patience_seconds
        self._clock = SystemClock()
        self._verbs = Verbs()
        self._group = GroupCommit(self._transact)
        self._lock: ProcessLock | None = None
        self._writer: aiosqlite.Connection | None = None
        self._reader: aiosqlite.Connection | None = None
        self._closing = Wakeup()
        self._is_closed = False

    # --- life ---

    async def open(self, *, now_usec: int) -> None:
        try:
            await self._open_writer()
            await self._patiently(migrate, now_usec)
            await self._patiently(self._register, now_usec)
            await self._open_reader()
        except sqlite3.Error as exc:
            raise self._translated(exc) from exc

    async def run(self, *, on_change: Callable[[], None], on_orphans: Callable[[], None]) -> None:
        async with anyio.create_task_group() as tg:
            if self._file is not None:
                tg.start_soon(self._watch, on_change, on_orphans)
            await self._group.run()

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        async with contextlib.AsyncExitStack() as parts:
            # Last in, first out, and each although the wait for another be cancelled: a thread left running would keep the
            # interpreter from ending, and a lock would prove a dead process alive (RELIABILITY S4, S7). The writer comes
            # after the reader, since the last connection to close empties the WAL, which a reader cannot.
            parts.callback(self._release)
            for connection in (self._writer, self._reader):
                if connection is not None:
                    parts.push_async_callback(_stop, connection)
            if self._writer is not None:
                await self._sign_off(self._writer)

    def stop(self) -> None:
        self._group.close()
        self._closing.set()

    async def configure(self, queues: Sequence[QueueConfig], *, now_usec: int) -> Sequence[str]:
        orphans: Sequence[str] = await self._write(self._configure, [config.name for config in queues])
        return orphans

    async def fetch_secrets(self, new_secret: bytes, *, now_usec: int) -> Sequence[bytes]:
        secrets: Sequence[bytes] = await self._write(_fetch_secrets, (new_secret, now_usec))
        return secrets

    # --- the way of a task ---

    async def add(
        self,
        records: Sequence[TaskRecord],
        configs: Sequence[QueueConfig],
        *,
        now_usec: int,
        places: int = 0,
        on_leased: Callable[[Sequence[TaskRecord]], None] | None = None,
    ) -> Sequence[AddVerdict]:
        def end(added: Added | None) -> None:
            if on_leased is not None:
                on_leased(() if added is None else added.leased)

        request = AddRequest(records, configs, places, now_usec)
        added: Added = await self._write(self._verbs.add, request, rows=len(records), on_end=end)
        return added.verdicts

    async def exchange(self, settlements: Sequence[Settlement], request: LeaseRequest | None, *, now_usec: int) -> Exchange:
        arguments = ExchangeRequest(settlements, request, now_usec)
        exchange: Exchange = await self._write(self._verbs.exchange, arguments, rows=len(settlements) + 1)
        return exchange

    async def list_own_leases(self) -> Sequence[TaskRecord]:
        leases: Sequence[TaskRecord] = await self._write(self._verbs.list_own_leases, None)
        return leases

    async def rescue(self, configs: Sequence[QueueConfig], *, now_usec: int) -> Sequence[TaskRecord]:
        if self._file is None:
            return []
        rescued: list[TaskRecord] = []
        by_name = {config.name: config for config in configs}
        for process_id, host in await self._read(self._select_others):
            # First the death, then the leases: what was leased in its last moment counts.
            is_gone = self._has_died(process_id, host)
            task_ids = await self._read(_select_leased_ids, process_id, FOR_EVER_USEC if is_gone else now_usec)
            if is_gone or task_ids:
                request = RescueRequest(process_id, task_ids, by_name, now_usec, is_dead=is_gone)
                rescued += await self._write(self._verbs.rescue, request, rows=len(task_ids))
            if is_gone:
                remove_lock(self._file.path, process_id)
        return rescued

    async def announce_drain(self) -> None:
        await self._write(_announce_drain, self._verbs.process_id)

    async def sweep(self, *, now_usec: int, limit: int) -> int:
        removed: int = await self._write(self._verbs.sweep, SweepRequest(now_usec, limit), rows=limit, is_urgent=False)
        return removed

    # --- managing ---

    async def delete_tasks(self, queue: QueueConfig, names: Sequence[str], *, now_usec: int) -> Sequence[bool]:
        request = DeleteRequest(self._verbs.queue_ids[queue.name], names, tombstone_until_usec(queue, now_usec))
        were_there: list[bool] = await self._write(delete, request, rows=len(names))
        return were_there

    async def purge(self, queue: QueueConfig, *, now_usec: int) -> None:
        await self._write(purge, PurgeRequest(self._verbs.queue_ids[queue.name], tombstone_until_usec(queue, now_usec)), rows=MAX_ROWS)

    async def set_paused(self, queue: QueueConfig, is_paused: bool) -> None:
        await self._write(set_paused, (is_paused, self._verbs.queue_ids[queue.name]))

    async def force(self, queue: QueueConfig, name: str) -> TaskState | None:
        found: TaskState | None = await self._write(force, (self._verbs.queue_ids[queue.name], name))
        return found

    async def revive(self, queue: QueueConfig, names: Sequence[str], edited: Sequence[TaskRecord], *, now_usec: int) -> Sequence[str]:
        request = ReviveRequest(self._verbs.queue_ids[queue.name], names, edited, now_usec)
        refused: list[str] = await self._write(revive, request, rows=len(names))
        return refused

    # --- looking ---

    async def get_task(self, queue_name: str, name: str) -> TaskRecord | None:
        return await self._read(_get_task, queue_name, name)

    async def list_tasks(
        self,
        queue_name: str,
        *,
        states: Sequence[TaskState],
        such: TaskFilter | None = None,
        after: tuple[int, str] | None = None,
        limit: int = 1000,
    ) -> Sequence[TaskRecord]:
        return await self._read(_list_tasks, queue_name, states, such or TaskFilter(), after or (-1, ""), limit)

    async def list_attempts(self, record: TaskRecord) -> Sequence[AttemptRecord]:
        return await self._read(_list_attempts, record.id)

    async def fetch_statistics(self, queue_names: Sequence[str], *, now_usec: int) -> Sequence[StoredStatistics]:
        return await self._read(_fetch_statistics, queue_names, now_usec)

    # --- inside ---

    async def _open_writer(self) -> None:
        if self._file is None:
            self._writer = await connect("file::memory:")
        else:
            if self._file.create():
                logger.info("Created the database %s.", self._file.path)
            self._file.remember()
            self._writer = await self._file.connect()
        await self._retried(lambda: self._hop(self._set_pragmas))

    async def _open_reader(self) -> None:
        if self._file is not None:
            self._reader = await self._file.connect(read_only=True)

    @property
    def _open_connection(self) -> aiosqlite.Connection:
        if self._writer is None or self._is_closed:
            raise ClosedError("The store is not open; start the service first.")
        return self._writer

    def _set_pragmas(self, connection: sqlite3.Connection) -> None:
        """Set what we rely on, and read it back: builds differ in their defaults (RELIABILITY S17)."""
        synchronous = _SYNCHRONOUS[self._durability]
        expected: list[tuple[str, Any]] = [("synchronous", synchronous), ("wal_autocheckpoint", WAL_AUTOCHECKPOINT_PAGES)]
        if self._file is not None:
            expected = [("journal_mode", "wal"), *expected, ("journal_size_limit", WAL_SIZE_LIMIT_BYTES), ("mmap_size", 0)]
            expected += [("fullfsync", 1), ("checkpoint_fullfsync", 1)]
        for name, value in expected:
            connection.execute(f"PRAGMA {name} = {value}").fetchall()
            (actual,) = connection.execute(f"PRAGMA {name}").fetchone() or (value,)
            if actual != value:
                raise ConfigError(
                    f"The database refuses 'PRAGMA {name} = {value}' (it says {actual!r}); "
                    "put the file on a local disk that can be written."
                )

    async def _patiently(self, verb: Verb, request: Any) -> Any:
        """Run one verb as a transaction while the loop that usually does is not running yet."""
        [[result]] = await self._retried(lambda: self._transact([(verb, [request])]))
        return result

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        give_up = self._clock.monotonic() + self._patience_seconds
        while True:
            try:
                return await attempt()
            except LockedError as exc:
                if self._clock.monotonic() > give_up:
                    raise StoreBusyError(
                        f"Another process has held the lock of the database for {self._patience_seconds:.1f} s; end it, or try again."
                    ) from exc
            await self._clock.wait(Wakeup(), self._clock.time_usec() + 20_000)

    async def _write(
        self, verb: Verb, request: Any, *, rows: int = 1, is_urgent: bool = True, on_end: Callable[[Any], None] | None = None
    ) -> Any:
        patience_seconds = self._patience_seconds if is_urgent else min(self._patience_seconds, SWEEP_PATIENCE_SECONDS)
        return await self._group.submit(verb, request, rows=rows, patience_seconds=patience_seconds, on_end=on_end)

    async def _read(self, function: Callable[..., T], *arguments: Any) -> T:
        connection = self._reader if self._reader is not None else self._open_connection
        if self._is_closed:
            raise ClosedError("The store is closed; start a new service.")
        try:
            return await run_in_thread(connection, lambda raw: function(raw, *arguments))
        except sqlite3.Error as exc:
            raise self._translated(exc) from exc

    async def _transact(self, groups: Sequence[tuple[Verb, Sequence[Any]]]) -> Sequence[Sequence[Any]]:
        return await self._hop(_Transaction(groups, self._file).run)

    async def _hop(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Call `function` in the writer's thread."""
        try:
            return await run_in_thread(self._open_connection, function)
        except sqlite3.Error as exc:
            if is_locked(exc):
                raise LockedError(str(exc)) from exc
            raise self._translated(exc) from exc

    def _translated(self, exc: sqlite3.Error) -> StoreError:
        return translate(exc, MEMORY if self._file is None else self._file.path)

    def _register(self, connection: sqlite3.Connection, requests: Sequence[int]) -> list[None]:
        """Enter this process; its lock is held before anybody can see the row."""
        (process_id,) = connection.execute(ALLOCATE_ID).fetchone()
        if self._file is not None:
            self._lock = ProcessLock(self._file.path, process_id)
            self._lock.acquire()
        connection.execute(INSERT_PROCESS, (process_id, _host(), os.getpid(), requests[0]))
        self._verbs.process_id = process_id
        return [None]

    async def _sign_off(self, writer: aiosqlite.Connection) -> None:
        try:
            await run_in_thread(writer, self._unregister)
        except sqlite3.Error as exc:
            logger.warning("The process could not be unregistered (%s); the next start will find it gone.", exc)

    def _release(self) -> None:
        # A cancelled opening may have taken the lock only while the writer was told to stop: so look now, and not earlier.
        if self._lock is not None:
            self._lock.release()

    def _unregister(self, connection: sqlite3.Connection) -> None:
        if self._lock is None:
            return
        # A process that still has leases is left for `rescue`, which finds its lock gone.
        connection.execute(
            """DELETE FROM taskqueue_process WHERE id = ?1
                AND NOT EXISTS (SELECT 1 FROM taskqueue_in_flight WHERE process_id = ?1 AND tasks > 0)""",
            (self._verbs.process_id,),
        )
        connection.execute("DELETE FROM taskqueue_in_flight WHERE process_id = ? AND tasks = 0", (self._verbs.process_id,))

    def _configure(self, connection: sqlite3.Connection, requests: Sequence[Sequence[str]]) -> list[list[str]]:
        connection.executemany(INSERT_QUEUE, [(name,) for names in requests for name in names])
        queues = connection.execute(SELECT_QUEUES).fetchall()
        self._verbs.queue_ids = {name: queue_id for queue_id, name in queues}
        has_tasks = [name for queue_id, name in queues if connection.execute(SELECT_HAS_TASKS, (queue_id,)).fetchone()]
        return [[name for name in has_tasks if name not in names] for names in requests]

    def _select_others(self, connection: sqlite3.Connection) -> list[tuple[int, str]]:
        return connection.execute(SELECT_OTHERS, (self._verbs.process_id,)).fetchall()

    async def _watch(self, on_change: Callable[[], None], on_orphans: Callable[[], None]) -> None:
        """Notice what other connections write, and processes that die."""
        watch = _Watch(rescued_at=self._clock.monotonic())
        while not self._group.is_closed:
            try:
                await self._look_around(watch, on_change, on_orphans)
            except (sqlite3.Error, StoreError) as exc:
                # The writer meets the same trouble and reports it; here it only means that there is no news.
                logger.debug("The database could not be watched: %s", exc)
            pause = WATCH_SECONDS if watch.others else WATCH_ALONE_SECONDS
            await self._clock.wait(self._closing, self._clock.time_usec() + round(pause * 1_000_000))

    async def _look_around(self, watch: _Watch, on_change: Callable[[], None], on_orphans: Callable[[], None]) -> None:
        # On the writer's connection, where our own commits do not change it.
        version = await run_in_thread(self._open_connection, _data_version)
        if version != watch.version:
            watch.version = version
            on_change()
        now = self._clock.monotonic()
        if watch.others and now - watch.looked_at < WATCH_ALONE_SECONDS:
            return
        # What we rescued ourselves changes no version, so look again and again.
        watch.looked_at = now
        watch.others = await self._read(self._select_others)
        has_waited = now - watch.rescued_at >= WATCH_EXPIRY_SECONDS
        if any(has_waited or self._has_died(process_id, host) for process_id, host in watch.others):
            watch.rescued_at = now
            on_orphans()

    def _has_died(self, process_id: int, host: str) -> bool:
        return self._file is not None and host == _host() and is_dead(self._file.path, process_id)


@attrs.define
class _Watch:
    """What the watcher saw last."""

    rescued_at: float
    version: int = -1
    others: Sequence[tuple[int, str]] = ()
    looked_at: float = 0.0


class _Transaction:
    """One transaction, run in the database thread as one call."""

    def __init__(self, groups: Sequence[tuple[Verb, Sequence[Any]]], file: DatabaseFile | None) -> None:
        self._groups = groups
        self._file = file

    def run(self, connection: sqlite3.Connection) -> list[Sequence[Any]]:
        if self._file is not None:
            self._file.check()
        connection.execute("BEGIN IMMEDIATE")
        try:
            results = [verb(connection, requests) for verb, requests in self._groups]
            connection.execute("COMMIT")
        except BaseException:
            # After FULL or IOERR SQLite has rolled back by itself, and ROLLBACK would raise (RELIABILITY S11).
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if self._file is not None:
            self._file.check()
        return results


async def _stop(connection: aiosqlite.Connection) -> None:
    """Close a connection and end its thread; that happens even when the wait for it is cancelled."""
    stopped = connection.stop()
    assert stopped is not None
    await stopped


def _fetch_secrets(connection: sqlite3.Connection, requests: Sequence[tuple[bytes, int]]) -> list[list[bytes]]:
    if connection.execute(SELECT_SECRETS).fetchone() is None:
        connection.execute(INSERT_SECRET, requests[0])
    secrets = [secret for (secret,) in connection.execute(SELECT_SECRETS)]
    return [secrets for _ in requests]


def _announce_drain(connection: sqlite3.Connection, requests: Sequence[int]) -> list[None]:
    connection.executemany(ANNOUNCE_DRAIN, [(process_id,) for process_id in requests])
    return [None for _ in requests]


def _select_leased_ids(connection: sqlite3.Connection, process_id: int, expired_before_usec: int) -> list[int]:
    if connection.execute(SELECT_HAS_LEASES, (process_id,)).fetchone() is None:
        return []
    return [task_id for (task_id,) in connection.execute(SELECT_LEASED_IDS, (process_id, expired_before_usec))]


def _get_task(connection: sqlite3.Connection, queue_name: str, name: str) -> TaskRecord | None:
    row = connection.execute(SELECT_TASK, (queue_name, name)).fetchone()
    return None if row is None else record_of_row(connection, row, queue_name)


def _list_tasks(
    connection: sqlite3.Connection,
    queue_name: str,
    states: Sequence[TaskState],
    such: TaskFilter,
    after: tuple[int, str],
    limit: int,
) -> list[TaskRecord]:
    arguments = (queue_name, *after, such.name_prefix, such.url, such.tag, limit)
    # One moment for all states, or a task that is leased meanwhile would be listed twice.
    with _snapshot(connection):
        rows = [row for state in states for row in connection.execute(SELECT_TASKS.format(state=int(state)), arguments)]
        rows.sort(key=itemgetter(5, 2))
        return [record_of_row(connection, row, queue_name) for row in rows[:limit]]


@contextlib.contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Let all statements of the block see the same moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


def _list_attempts(connection: sqlite3.Connection, task_id: int) -> list[AttemptRecord]:
    return [attempt_of_row(row) for row in connection.execute(SELECT_ATTEMPTS, (task_id,))]


def _fetch_statistics(connection: sqlite3.Connection, queue_names: Sequence[str], now_usec: int) -> list[StoredStatistics]:
    statistics = []
    for name in queue_names:
        row = connection.execute(SELECT_STATISTICS, (now_usec, name)).fetchone() or (0, None, 0, 0, 0)
        tasks, oldest_eta_usec, in_flight, is_paused, started = row
        statistics.append(StoredStatistics(tasks, oldest_eta_usec, int(in_flight), bool(is_paused), int(started)))
    return statistics


def _data_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version


def _host() -> str:
    return socket.gethostname()
