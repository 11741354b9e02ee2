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

import asyncio
import contextlib
import functools
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeVar

import aiosqlite
import anyio

from aiotaskqueue._clock import SystemClock, Wakeup
from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import AttemptRecord, TaskRecord, TaskState
from aiotaskqueue._task_arguments import shorten
from aiotaskqueue.errors import (
    ClosedError,
    ConfigError,
    ForkedProcessError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreReplacedError,
)
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
from aiotaskqueue.stores._group_commit import MAX_ROWS, GroupCommit, LockedError, Verb, locked_for
from aiotaskqueue.stores._sqlite_adding import AddRequest
from aiotaskqueue.stores._sqlite_chores import RescueRequest, SweepRequest, rescue, sweep
from aiotaskqueue.stores._sqlite_connection import FILE_PRAGMAS, Transaction, connect, disconnect, run_in_thread, set_pragmas
from aiotaskqueue.stores._sqlite_errors import is_locked, is_own_fault, translate
from aiotaskqueue.stores._sqlite_file import DatabaseFile
from aiotaskqueue.stores._sqlite_locks import remove_lock
from aiotaskqueue.stores._sqlite_looking import fetch_statistics, get_task, list_attempts, list_tasks, select_orphans
from aiotaskqueue.stores._sqlite_managing import DeleteRequest, PurgeRequest, ReviveRequest, delete, force, purge, revive, set_paused
from aiotaskqueue.stores._sqlite_quarantine import QuarantineRequest, quarantine
from aiotaskqueue.stores._sqlite_rows import UnreadableRowError
from aiotaskqueue.stores._sqlite_schema import check_version, fetch_version, migrate
from aiotaskqueue.stores._sqlite_setup import Neighbours, OwnProcess, announce_drain, fetch_secrets, probe
from aiotaskqueue.stores._sqlite_trouble import Trouble
from aiotaskqueue.stores._sqlite_verbs import ExchangeRequest, Verbs
from aiotaskqueue.stores._sqlite_wal import WalKeeper
from aiotaskqueue.stores._sqlite_watch import Watcher

logger = logging.getLogger("aiotaskqueue")

T = TypeVar("T")

MEMORY = ":memory:"
SYNCHRONOUS = {"full": 2, "normal": 1}

# From when on a lock is worth mentioning; most are held for milliseconds.
LOCKED_SECONDS = 1.0

# For a lock that another process holds; sweeping can wait for another day (RELIABILITY S16).
PATIENCE_SECONDS = 30.0
SWEEP_PATIENCE_SECONDS = 5.0
PROBE_PATIENCE_SECONDS = 1.0


class SQLiteStore(Store):
    """Tasks in one SQLite file.

    Args:
        path: Of the file, which is created with mode 0600 if it is not there, in a folder that is; or ``":memory:"``, which
            is for tests: nothing survives. The file may be the application's own: our tables begin with ``taskqueue_``.
        durability: ``"full"``: what was accepted survives a loss of power; ``"normal"``: the end of the process.
        patience_seconds: How long to wait for a lock that another process holds, before StoreBusyError.
    """

    def __init__(self, path: str, *, durability: Literal["full", "normal"] = "full", patience_seconds: float = PATIENCE_SECONDS) -> None:
        if not isinstance(durability, str) or durability not in SYNCHRONOUS:
            raise ConfigError(f"durability is {shorten(durability)}; allowed are 'full' and 'normal'.")
        self._file = None if path == MEMORY else DatabaseFile(path)
        self._durability = durability
        self._patience_seconds = patience_seconds
        self._clock = SystemClock()
        self._verbs = Verbs()
        self._trouble = Trouble()
        self._pid = 0
        self._schema_version = 0
        self._process = OwnProcess(self._file, self._verbs.ids)
        self._group = GroupCommit(self._transact)
        self._wal = None if self._file is None else self._make_wal_keeper(self._file)
        self._writer: aiosqlite.Connection | None = None
        self._reader: aiosqlite.Connection | None = None
        self._is_closed = False

    # --- life ---

    async def open(self, *, now_usec: int) -> None:
        self._pid = os.getpid()
        try:
            await self._open_writer()
            self._schema_version = await self._patiently(migrate, now_usec)
            await self._patiently(self._process.register, now_usec)
            await self._open_reader()
        except sqlite3.Error as exc:
            raise self._note(exc) from exc
        except StoreError as exc:
            self._trouble.note(exc)
            raise

    async def run(self, *, on_change: Callable[[], None], on_orphans: Callable[[], None]) -> None:
        watcher = None if self._wal is None else self._make_watcher(self._wal, on_change, on_orphans)
        async with anyio.create_task_group() as tg:
            if watcher is not None:
                tg.start_soon(watcher.run)
            await self._group.run()
            if watcher is not None:
                watcher.stop()

    async def aclose(self) -> None:
        # A forked child has no threads to wait for, and nothing of its parent's to close.
        if self._is_closed or self._is_in_fork:
            return
        self._is_closed = True
        async with contextlib.AsyncExitStack() as parts:
            # Last in, first out, and each although the wait for another be cancelled: a thread left running would keep the
            # interpreter from ending, and a lock would prove a dead process alive (RELIABILITY S4, S7). The writer comes
            # after the reader, since the last connection to close empties the WAL, which a reader cannot.
            parts.callback(self._process.release)
            if self._file is not None:
                parts.callback(self._file.set_wal_aside)
            if self._wal is not None:
                parts.callback(self._wal.release)
            for connection in (self._writer, self._reader):
                if connection is not None:
                    parts.push_async_callback(disconnect, connection)
            if self._writer is not None:
                await self._sign_off(self._writer)

    def stop(self) -> None:
        self._group.close()

    @property
    def trouble(self) -> StoreError | None:
        since = self._group.locked_since
        if self._trouble.is_lasting or since is None:
            return self._trouble.current
        held_seconds = self._clock.monotonic() - since
        return locked_for(held_seconds) if held_seconds >= LOCKED_SECONDS else self._trouble.current

    @property
    def warnings(self) -> Sequence[str]:
        return self._trouble.warnings

    async def configure(self, queues: Sequence[QueueConfig], *, now_usec: int) -> Sequence[str]:
        orphans: Sequence[str] = await self._write(self._verbs.configure, [config.name for config in queues])
        return orphans

    async def fetch_secrets(self, new_secret: bytes, *, now_usec: int) -> Sequence[bytes]:
        secrets: Sequence[bytes] = await self._write(fetch_secrets, (new_secret, now_usec))
        return secrets

    async def announce_keys(self, key_ids: Sequence[str]) -> Sequence[Sequence[str]]:
        others: Sequence[Sequence[str]] = await self._write(self._process.announce_keys, key_ids)
        return others

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
        suspicion = QuarantineRequest(self._verbs.ids, () if request is None else request.queues, now_usec)
        exchange: Exchange = await self._write_readable(self._verbs.exchange, arguments, suspicion, rows=len(settlements) + 1)
        return exchange

    async def list_own_leases(self) -> Sequence[TaskRecord]:
        suspicion = QuarantineRequest(self._verbs.ids, (), self._clock.time_usec())
        leases: Sequence[TaskRecord] = await self._write_readable(self._verbs.list_own_leases, None, suspicion)
        return leases

    async def rescue(self, configs: Sequence[QueueConfig], *, now_usec: int) -> Sequence[TaskRecord]:
        if self._file is None:
            return []
        rescued: list[TaskRecord] = []
        by_name = {config.name: config for config in configs}
        # First the deaths, then the leases: what was leased in the last moment counts.
        others = await self._read(self._process.select_others)
        dead = [process_id for process_id, host in others if self._process.has_died(process_id, host)]
        orphans = await self._read(select_orphans, self._verbs.ids.process, dead, now_usec)
        for process_id, task_ids in orphans.items():
            request = RescueRequest(process_id, task_ids, by_name, now_usec, is_dead=process_id in dead)
            suspicion = QuarantineRequest(self._verbs.ids, configs, now_usec, task_ids)
            rescued += await self._write_readable(rescue, request, suspicion, rows=len(task_ids))
            if request.is_dead:
                remove_lock(self._file.real_path, process_id)
        return rescued

    async def announce_drain(self) -> None:
        await self._write(announce_drain, self._verbs.ids.process)

    async def sweep(self, *, now_usec: int, limit: int) -> int:
        removed: int = await self._write(sweep, SweepRequest(now_usec, limit), rows=limit, is_urgent=False)
        return removed

    # --- managing ---

    async def delete_tasks(self, queue: QueueConfig, names: Sequence[str], *, now_usec: int) -> Sequence[bool]:
        request = DeleteRequest(self._verbs.ids.queues[queue.name], names, tombstone_until_usec(queue, now_usec))
        were_there: list[bool] = await self._write(delete, request, rows=len(names))
        return were_there

    async def purge(self, queue: QueueConfig, *, now_usec: int) -> None:
        await self._write(purge, PurgeRequest(self._verbs.ids.queues[queue.name], tombstone_until_usec(queue, now_usec)), rows=MAX_ROWS)

    async def set_paused(self, queue: QueueConfig, is_paused: bool) -> None:
        await self._write(set_paused, (is_paused, self._verbs.ids.queues[queue.name]))

    async def force(self, queue: QueueConfig, name: str) -> TaskState | None:
        found: TaskState | None = await self._write(force, (self._verbs.ids.queues[queue.name], name))
        return found

    async def revive(self, queue: QueueConfig, names: Sequence[str], edited: Sequence[TaskRecord], *, now_usec: int) -> Sequence[str]:
        request = ReviveRequest(self._verbs.ids.queues[queue.name], names, edited, now_usec)
        refused: list[str] = await self._write(revive, request, rows=len(names))
        return refused

    # --- looking ---

    async def get_task(self, queue_name: str, name: str) -> TaskRecord | None:
        return await self._read(get_task, queue_name, name)

    async def list_tasks(
        self,
        queue_name: str,
        *,
        states: Sequence[TaskState],
        such: TaskFilter | None = None,
        after: tuple[int, str] | None = None,
        limit: int = 1000,
    ) -> Sequence[TaskRecord]:
        return await self._read(list_tasks, queue_name, states, such or TaskFilter(), after or (-1, ""), limit)

    async def list_attempts(self, record: TaskRecord) -> Sequence[AttemptRecord]:
        return await self._read(list_attempts, record.id)

    async def fetch_statistics(self, queue_names: Sequence[str], *, now_usec: int) -> Sequence[StoredStatistics]:
        return await self._read(fetch_statistics, queue_names, now_usec)

    # --- inside ---

    async def _open_writer(self) -> None:
        if self._file is None:
            logger.info("The database ':memory:' is for tests: its tasks are gone when the service ends; give the path of a file.")
        else:
            if self._file.create():
                logger.info("Created the database %s.", self._file.path)
            self._file.remember()
        if self._wal is not None:
            self._wal.claim()
        self._writer = await connect(self._file)
        await self._retried(lambda: self._hop(self._set_pragmas))

    async def _open_reader(self) -> None:
        if self._file is not None:
            self._file.remember_side_files()
            self._reader = await connect(self._file, read_only=True)
            # Only its first look opens the WAL; if that had been taken away meanwhile, SQLite would begin a new one.
            await self._read(fetch_version)
            for topic, sentence in self._file.find_exposure():
                self._trouble.warn(topic, sentence)

    @property
    def _is_in_fork(self) -> bool:
        return self._pid != 0 and self._pid != os.getpid()

    @property
    def _open_connection(self) -> aiosqlite.Connection:
        if self._writer is None or self._is_closed:
            raise ClosedError("The store is not open; start the service first.")
        self._check_process()
        return self._writer

    def _check_process(self) -> None:
        if self._is_in_fork:
            raise ForkedProcessError("The store was opened before a fork; start the service in the child, not at import.")

    def _set_pragmas(self, connection: sqlite3.Connection) -> None:
        pragmas: dict[str, str | int] = {"synchronous": SYNCHRONOUS[self._durability]}
        if self._wal is not None:
            pragmas = {"journal_mode": "wal", **pragmas, **FILE_PRAGMAS, **self._wal.pragmas}
        set_pragmas(connection, pragmas)

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
                    raise locked_for(self._patience_seconds) from exc
            await self._clock.wait(Wakeup(), self._clock.time_usec() + 20_000)

    def _write(
        self, verb: Verb, request: Any, *, rows: int = 1, is_urgent: bool = True, on_end: Callable[[Any], None] | None = None
    ) -> asyncio.Future[Any]:
        self._check_process()
        patience_seconds = self._patience_seconds if is_urgent else min(self._patience_seconds, SWEEP_PATIENCE_SECONDS)
        return self._group.submit(verb, request, rows=rows, patience_seconds=patience_seconds, on_end=on_end)

    async def _write_readable(self, verb: Verb, request: Any, suspicion: QuarantineRequest, *, rows: int = 1) -> Any:
        """Write what reads tasks as well: those that cannot be read are set aside, and it is done again without them (row 99)."""
        while True:
            try:
                return await self._write(verb, request, rows=rows)
            except StoreError as exc:
                if not isinstance(exc, UnreadableRowError) and not is_own_fault(exc.__cause__):
                    raise
                set_aside = await self._write(quarantine, suspicion, rows=MAX_ROWS)
                if not set_aside:
                    raise
            for queue_name, name, detail in set_aside:
                logger.error("Task %r of queue %r cannot be read and is kept as a dead task: %s.", name, queue_name, detail)

    async def _read(self, function: Callable[..., T], *arguments: Any) -> T:
        connection = self._open_connection if self._reader is None else self._reader
        if self._is_closed:
            raise ClosedError("The store is closed; start a new service.")
        self._check_process()
        try:
            return await run_in_thread(connection, lambda raw: function(raw, *arguments))
        except sqlite3.Error as exc:
            raise self._translated(exc) from exc

    async def _transact(self, groups: Sequence[tuple[Verb, Sequence[Any]]]) -> Sequence[Sequence[Any]]:
        self._trouble.refuse()
        if self._file is not None and isinstance(self._trouble.current, StoreReplacedError):
            self._file.check_all()
        transaction = Transaction(groups, self._file)
        results = await self._hop(transaction.run, transaction)
        self._trouble.clear()
        return results

    async def _hop(self, function: Callable[[sqlite3.Connection], T], transaction: Transaction | None = None) -> T:
        """Call `function` in the writer's thread."""
        try:
            return await run_in_thread(self._open_connection, function)
        except sqlite3.Error as exc:
            if is_locked(exc):
                raise LockedError(str(exc)) from exc
            raise self._note(exc, is_commit=transaction is not None and transaction.is_committing) from exc
        except UnreadableRowError:
            # That of one task.
            raise
        except StoreError as exc:
            self._trouble.note(exc)
            raise

    def _note(self, exc: sqlite3.Error, *, is_commit: bool = False) -> StoreError:
        """Return the typed error of a write that failed, and remember it if others would fail as well."""
        error = translate(exc, self._path, is_commit=is_commit)
        if not is_own_fault(exc):
            self._trouble.note(error)
        return error

    def _translated(self, exc: sqlite3.Error) -> StoreError:
        """Return the typed error of a look that failed; only damage that it met concerns writes."""
        error = translate(exc, self._path)
        if isinstance(error, StoreCorruptError):
            self._trouble.note(error)
        return error

    @property
    def _path(self) -> str:
        return MEMORY if self._file is None else self._file.path

    async def _glance(self, wal: WalKeeper) -> int:
        """Do what is due many times a second; return the data version of the writing connection, which our commits do not change."""
        version = await run_in_thread(self._open_connection, _data_version)
        if self._trouble.current is None:
            await wal.bound()
        return version

    async def _look_around(self, wal: WalKeeper) -> Neighbours:
        """See once a second whether all is well, also when nobody writes, and how the other processes are."""
        try:
            wal.file.check_all()
            version, neighbours = await self._read(lambda raw: (fetch_version(raw), self._process.look(raw)))
            check_version(version, self._schema_version)
        except StoreError as exc:
            self._trouble.note(exc)
            raise
        if self._group.is_idle and (self._trouble.may_pass or self._group.locked_since is not None):
            await self._group.submit(probe, None, patience_seconds=PROBE_PATIENCE_SECONDS)
        if self._trouble.current is None:
            await wal.look(has_others=neighbours.is_any_alive)
        return neighbours

    async def _call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function in the writer's thread; where somebody else has the lock there will be another time."""
        try:
            return await self._hop(function)
        except LockedError as exc:
            raise StoreBusyError(str(exc)) from exc

    async def _sign_off(self, writer: aiosqlite.Connection) -> None:
        try:
            await run_in_thread(writer, self._process.unregister)
        except sqlite3.Error as exc:
            logger.warning("The process could not be unregistered (%s); the next start will find it gone.", exc)

    def _make_wal_keeper(self, file: DatabaseFile) -> WalKeeper:
        return WalKeeper(file, self._trouble, call=self._call)

    def _make_watcher(self, wal: WalKeeper, on_change: Callable[[], None], on_orphans: Callable[[], None]) -> Watcher:
        return Watcher(
            glance=functools.partial(self._glance, wal),
            look_around=functools.partial(self._look_around, wal),
            on_change=on_change,
            on_orphans=on_orphans,
        )


def _data_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version
