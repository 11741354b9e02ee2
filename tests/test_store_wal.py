"""The write-ahead log stays short, and one process alone empties it where SQLite needs that (RELIABILITY S9, S15)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from open_stores import add, new_record, query, raw, running, wait_until

from aiotaskqueue import TaskQueueService
from aiotaskqueue._liveness import hold
from aiotaskqueue.errors import StoreBusyError
from aiotaskqueue.stores import _sqlite_locks, _sqlite_wal
from aiotaskqueue.stores._sqlite_connection import ThreadConnection
from aiotaskqueue.stores._sqlite_locks import SideLock
from aiotaskqueue.stores._sqlite_wal import has_reset_bug
from aiotaskqueue.stores.sqlite import SQLiteStore

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_watch")]

KIB = 1024


@pytest.fixture
def _buggy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take whatever SQLite this is for one with the bug."""
    monkeypatch.setattr(_sqlite_wal, "FIXED_VERSION", (1000, 0, 0))
    monkeypatch.setattr(_sqlite_wal, "REPAIRED_SERIES", {})


@pytest.fixture
def _fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take whatever SQLite this is for one without the bug."""
    monkeypatch.setattr(_sqlite_wal, "FIXED_VERSION", (3, 0, 0))


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a WAL of a few hundred KiB for a large one, and try often to cut it off."""
    monkeypatch.setattr(_sqlite_wal, "SIZE_LIMIT_BYTES", 150 * KIB)
    monkeypatch.setattr(_sqlite_wal, "WARNING_BYTES", 300 * KIB)
    monkeypatch.setattr(_sqlite_wal, "PAUSE_SECONDS", 0.02)


async def autocheckpoint_pages(store: SQLiteStore) -> int:
    """Return after how many pages the writing connection checkpoints."""
    assert store._writer is not None
    async with store._writer.execute("PRAGMA wal_autocheckpoint") as cursor:
        [pages] = await cursor.fetchone() or [-1]
    return int(pages)


async def wait_for_checkpoints(store: SQLiteStore) -> None:
    """Return when the store has become the one that checkpoints."""
    async with asyncio.timeout(5):
        while not await autocheckpoint_pages(store):
            pass


async def fill(store: SQLiteStore, count: int = 50) -> None:
    """Write a dozen KiB for each of so many tasks, commit by commit."""
    for _ in range(count):
        await add(store, new_record(payload=b"x" * 12 * KIB))


def wal_bytes(path: Path) -> int:
    """Return how large the WAL is."""
    return path.with_name("tasks.db-wal").stat().st_size


# --- who empties it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 0), False),
    ],
)
def test_which_versions_have_the_bug(version: tuple[int, int, int], expected: bool) -> None:
    """The bug is repaired in 3.51.3 and later, and in later versions of two older series."""
    assert expected == has_reset_bug(version)


@pytest.mark.usefixtures("_buggy")
async def test_one_of_several_empties_the_wal_and_another_takes_over(path: Path) -> None:
    """With an SQLite that needs it one of several stores checkpoints, and when it is closed another one does within a look."""
    async with running(path) as first:
        async with running(path) as second:
            before = [await autocheckpoint_pages(store) for store in (first, second)]
            first.stop()
            await first.aclose()
            await wait_for_checkpoints(second)
            after = await autocheckpoint_pages(second)

    assert ([100, 0], 100) == (before, after)
    assert [path] == list(path.parent.iterdir())


@pytest.mark.usefixtures("_buggy")
async def test_who_died_empties_nothing(path: Path) -> None:
    """When the process that emptied the WAL dies, its lock goes with it though its file stays, and another takes over."""
    descriptor = hold(f"{path}-checkpoint")
    async with running(path) as store:
        before = await autocheckpoint_pages(store)
        os.close(descriptor)
        await wait_for_checkpoints(store)

    assert 0 == before


@pytest.mark.usefixtures("_fixed")
async def test_with_a_repaired_sqlite_everybody_empties_it(path: Path) -> None:
    """Where SQLite does not need it nobody is chosen: each process checkpoints, there is no lock and no warning."""
    async with running(path) as one, running(path) as two:
        pages = [await autocheckpoint_pages(store) for store in (one, two)]
        files = {file.name for file in path.parent.iterdir()}

        assert [100, 100] == pages
        assert "tasks.db-checkpoint" not in files
        assert () == one.warnings == two.warnings


@pytest.mark.usefixtures("_buggy")
async def test_what_others_write_is_copied_though_we_write_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever empties the WAL does so also for others while it has nothing to write itself, once it has grown."""
    monkeypatch.setattr(_sqlite_wal, "RESTART_BYTES", 100 * KIB)
    async with running(path) as idle, running(path) as busy:
        await fill(busy)
        await wait_until(lambda: path.stat().st_size > 300 * KIB)

        assert [100, 0] == [await autocheckpoint_pages(store) for store in (idle, busy)]


@pytest.mark.usefixtures("_buggy")
async def test_the_version_is_warned_of_where_several_write(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each process says once that its SQLite has the bug and which one has not, and only if it is not alone."""
    async with running(path) as one:
        await fill(one, 2)
        alone = one.warnings
        async with running(path) as two:
            await wait_until(lambda: one.warnings and two.warnings)
            warnings = [*one.warnings, *two.warnings]
            await fill(two, 2)

    assert () == alone
    assert 2 == len(caplog.records)
    assert [True, True] == [
        f"SQLite {sqlite3.sqlite_version} may damage" in text and "install SQLite 3.51.3 or later" in text for text in warnings
    ]


@pytest.mark.usefixtures("_buggy")
async def test_a_process_that_died_is_not_another_one(path: Path) -> None:
    """A row that a dead process has left is no reason to warn."""
    async with running(path):
        with raw(path) as connection:
            connection.execute("INSERT INTO taskqueue_process (id, host, pid, started_usec) SELECT 99, host, 1, 0 FROM taskqueue_process")
    looks: list[None] = []
    async with running(path, on_orphans=lambda: looks.append(None)) as store:
        await wait_until(lambda: len(looks) > 2)

        assert () == store.warnings


def test_a_lock_whose_file_was_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever gets a lock on a file that its former owner has just removed does not have it: others lock a new file."""
    lock = SideLock(str(tmp_path / "lock"))

    def hold_and_lose(path: str) -> int:
        descriptor = hold(path)
        os.unlink(path)
        return descriptor

    monkeypatch.setattr(_sqlite_locks, "hold", hold_and_lose)
    with pytest.raises(BlockingIOError, match="was removed"):
        lock.acquire()
    lock.abandon()
    (tmp_path / "lock").touch()

    assert not lock.is_held


@pytest.mark.parametrize("mode", ["RESTART", "TRUNCATE"])
def test_a_checkpoint_is_never_begun_where_all_is_copied(path: Path, mode: str) -> None:
    """Beginning the WAL anew starts with a commit, so that there is something to copy: the bug needs that there is nothing (S9)."""
    statements: list[str] = []
    with closing(sqlite3.connect(path, factory=ThreadConnection, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE taskqueue_sequence (last_id INTEGER)")
        connection.execute("INSERT INTO taskqueue_sequence VALUES (1)")
        connection.set_trace_callback(statements.append)
        _sqlite_wal._checkpoint(connection, mode=mode)

    assert [
        "PRAGMA wal_autocheckpoint = 0",
        "PRAGMA busy_timeout = 100",
        _sqlite_wal.ALLOCATE_ID,
        f"PRAGMA wal_checkpoint({mode})",
        "PRAGMA busy_timeout = 1",
        "PRAGMA wal_autocheckpoint = 100",
    ] == statements


# --- how large it gets ---------------------------------------------------------------------------------------------


@pytest.mark.promise("P17")
@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("bug", ["_buggy", "_fixed"])
async def test_a_long_reader_is_reported_and_the_wal_cut_off_when_it_has_gone(path: Path, bug: str, request: pytest.FixtureRequest) -> None:
    """While somebody reads for long the WAL grows, and one warning says so; then it is cut off though nobody writes (S15)."""
    request.getfixturevalue(bug)
    async with TaskQueueService(path, dispatch=False) as service:
        with raw(path) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM taskqueue_task").fetchall()
            for _ in range(50):
                await service.add(payload=b"x" * 12 * KIB, url="/w")
            await wait_until(lambda: service.health().warnings)
            large, health = wal_bytes(path), service.health()
        seconds = await wait_until(lambda: wal_bytes(path) <= 150 * KIB)
        await wait_until(lambda: not service.health().warnings)

    assert large > 500 * KIB
    assert health.is_ok
    assert [True] == ["has grown to" in text and "somebody reads in a transaction that does not end" in text for text in health.warnings]
    assert seconds < 1
    assert ["ok"] == query(path, "PRAGMA integrity_check")


@pytest.mark.usefixtures("_small")
async def test_a_large_wal_that_nobody_reads_is_cut_off_without_a_word(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one large transaction the WAL is cut off by the next look, and nobody is accused of reading."""
    async with running(path) as store:
        await add(store, *(new_record(payload=b"x" * 12 * KIB) for _ in range(50)))
        await wait_until(lambda: wal_bytes(path) <= 150 * KIB)

    assert [] == [record.message for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(("pause_seconds", "expected"), [(10.0, 1), (0.0, 2)])
async def test_after_a_try_that_a_reader_was_in_the_way_of_there_is_a_pause(
    path: Path, monkeypatch: pytest.MonkeyPatch, pause_seconds: float, expected: int
) -> None:
    """Each try to cut the WAL off under a reader keeps writers waiting, so the next one is made after a pause."""
    monkeypatch.setattr(_sqlite_wal, "PAUSE_SECONDS", pause_seconds)
    checkpoint, tries = _sqlite_wal._checkpoint, []

    def note(connection: sqlite3.Connection, *, mode: str) -> bool:
        tries.append(checkpoint(connection, mode=mode))
        return tries[-1]

    monkeypatch.setattr(_sqlite_wal, "_checkpoint", note)
    async with running(path) as store:
        with raw(path) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM taskqueue_task").fetchall()
            await fill(store)
            await wait_until(lambda: store.warnings)
            with contextlib.suppress(AssertionError):
                await wait_until(lambda: len(tries) > 1, seconds=0.15)

    assert [False] * expected == tries[:2]


async def test_a_lock_in_the_way_is_no_trouble(path: Path) -> None:
    """When somebody else holds the lock as the WAL is to be cut off, that is an error like any look's, and no trouble."""
    async with running(path) as store:
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreBusyError):
                await store._call(functools.partial(_sqlite_wal._checkpoint, mode="RESTART"))
            pages = await autocheckpoint_pages(store)
            other.execute("ROLLBACK")

    assert 100 == pages
    assert store.trouble is None
