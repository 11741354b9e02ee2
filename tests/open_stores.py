"""Stores for tests: opened on real files and running, records and settlements with few words, and a look at the raw rows."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import AttemptRecord, NameGenerator, TaskRecord
from aiotaskqueue.stores import _sqlite_watch
from aiotaskqueue.stores._base import AddVerdict, Dead, Delete, Exchange, LeaseRequest, Retry, Settlement
from aiotaskqueue.stores.sqlite import SQLiteStore

NOW = 1_700_000_000_000_000
SECOND = 1_000_000
QUEUE = QueueConfig("default")

# The last moment of a lease that is made now in a queue with the usual deadline: 30 s, a second of grace and 10 of slack.
LEASE_END = NOW + 41 * SECOND

_names = NameGenerator(seed=1)


@contextlib.asynccontextmanager
async def running(
    path: Path | str,
    *configs: QueueConfig,
    durability: Literal["full", "normal"] = "normal",
    patience_seconds: float = 30.0,
    on_change: Callable[[], None] = lambda: None,
    on_orphans: Callable[[], None] = lambda: None,
) -> AsyncIterator[SQLiteStore]:
    """Open a store, run it while the block runs, and close it; leases that are left look like a crash to others."""
    store = SQLiteStore(str(path), durability=durability, patience_seconds=patience_seconds)
    try:
        await store.open(now_usec=NOW)
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: store.run(on_change=on_change, on_orphans=on_orphans))
            await store.configure(configs or (QUEUE,), now_usec=NOW)
            yield store
            store.stop()
    finally:
        await store.aclose()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a database that is not there yet; `conftest` hands it to every test."""
    return tmp_path / "tasks.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    """Return a running store on that path; `conftest` hands it to every test."""
    async with running(path) as store:
        yield store


@pytest.fixture
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look around 100 times a second; `conftest` hands it to every test."""
    monkeypatch.setattr(_sqlite_watch, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(_sqlite_watch, "WATCH_ALONE_SECONDS", 0.01)


def new_record(name: str | None = None, *, queue: QueueConfig = QUEUE, eta_usec: int = NOW, **fields: Any) -> TaskRecord:
    """Return a task to be added; one without a name gets a generated one."""
    return TaskRecord(
        uuid=_names.uuid(),
        queue_name=queue.name,
        name=name or _names.name(NOW),
        is_named=name is not None,
        url="/work",
        eta_usec=eta_usec,
        created_usec=NOW,
        **fields,
    )


async def add(
    store: SQLiteStore, *records: TaskRecord, queue: QueueConfig = QUEUE, now_usec: int = NOW, places: int = 0
) -> tuple[Sequence[AddVerdict], Sequence[TaskRecord]]:
    """Add tasks; return the verdicts and those that were born leased."""
    leased: list[Sequence[TaskRecord]] = []
    verdicts = await store.add(records, [queue] * len(records), now_usec=now_usec, places=places, on_leased=leased.append)
    [born] = leased
    return verdicts, born


async def fetch(store: SQLiteStore, name: str, queue: QueueConfig = QUEUE) -> TaskRecord:
    """Return a task as it is stored now."""
    found = await store.get_task(queue.name, name)
    assert found is not None
    return found


async def lease(
    store: SQLiteStore, *queues: QueueConfig, places: int = 10, now_usec: int = NOW, suspect_queue: str | None = None
) -> Exchange:
    """Lease what may start now."""
    return await store.exchange([], LeaseRequest(places, queues or (QUEUE,), suspect_queue), now_usec=now_usec)


async def settle(store: SQLiteStore, record: TaskRecord, outcome: Delete | Retry | Dead, *, now_usec: int = NOW) -> bool:
    """Apply one outcome; return whether it was accepted."""
    exchange = await store.exchange([Settlement(record, outcome)], None, now_usec=now_usec)
    assert exchange.stale in ([], [record])
    return not exchange.stale


async def add_leased(store: SQLiteStore, record: TaskRecord | None = None, *, queue: QueueConfig = QUEUE) -> TaskRecord:
    """Add one task that is born leased, and return it as it was leased."""
    _, [leased] = await add(store, record or new_record(queue=queue), queue=queue, places=1)
    return leased


async def wait_until(is_true: Callable[[], object], seconds: float = 5.0) -> float:
    """Return how many seconds it took until the condition held."""
    started = time.monotonic()
    while not is_true():
        assert time.monotonic() - started < seconds, "It never became true."
        await asyncio.sleep(0.005)
    return time.monotonic() - started


def log_of(record: TaskRecord, *, reason: str = "status", status: int | None = 500, detail: str = "") -> AttemptRecord:
    """Return the log of a failed attempt."""
    return AttemptRecord(attempt=record.attempts, started_usec=NOW, ended_usec=NOW + SECOND, reason=reason, status=status, detail=detail)


def dead(record: TaskRecord, *, keep_until_usec: int = NOW + 60 * SECOND) -> Dead:
    """Return the outcome of a task that is given up."""
    return Dead(reason="status", keep_until_usec=keep_until_usec, log=log_of(record))


@contextlib.contextmanager
def raw(path: Path | str) -> Iterator[sqlite3.Connection]:
    """Open the file like any other program, in autocommit, waiting for no lock."""
    with contextlib.closing(sqlite3.connect(str(path), isolation_level=None, timeout=0)) as connection:
        yield connection


def query(database: Path | str | sqlite3.Connection, sql: str, *parameters: object) -> list[Any]:
    """Return the rows of a query, those of one column as plain values."""
    if not isinstance(database, sqlite3.Connection):
        with raw(database) as connection:
            return query(connection, sql, *parameters)
    rows = database.execute(sql, parameters).fetchall()
    return [row[0] if len(row) == 1 else row for row in rows]


def find_drift(database: Path | str | sqlite3.Connection) -> list[Any]:
    """Return (process, queue, counted, leased) where the rows of in_flight differ from the number of leased tasks."""
    return query(
        database,
        """
        SELECT process_id, queue_id, sum(counted), sum(leased) FROM (
            SELECT process_id, queue_id, tasks AS counted, 0 AS leased FROM taskqueue_in_flight
            UNION ALL
            SELECT process_id, queue_id, 0, count(*) FROM taskqueue_task WHERE state = 1 GROUP BY process_id, queue_id
        ) GROUP BY process_id, queue_id HAVING sum(counted) <> sum(leased)
        """,
    )
