"""Storage trouble: a typed error for whoever writes, a reason for who asks, and recovery where it can be (P16, P17, RELIABILITY 3.1)."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from children import run_script
from open_stores import NOW, QUEUE, add, add_leased, dead, fetch, log_of, new_record, query, raw, running, settle, wait_until

from aiotaskqueue import TaskQueueService
from aiotaskqueue._record import TaskState
from aiotaskqueue.errors import (
    ForkedProcessError,
    OutcomeUnknownError,
    SchemaTooNewError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreReplacedError,
)
from aiotaskqueue.stores import _sqlite_file, _sqlite_looking, sqlite
from aiotaskqueue.stores._sqlite_connection import POLL_SECONDS, ThreadConnection, begin
from aiotaskqueue.stores._sqlite_errors import is_locked, is_own_fault, translate
from aiotaskqueue.stores._sqlite_trouble import Trouble
from aiotaskqueue.stores._sqlite_verbs import Verbs
from aiotaskqueue.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio

FSYNC = sqlite3.SQLITE_IOERR_FSYNC


async def set_pragma(store: SQLiteStore, name: str, value: int) -> None:
    """Set a pragma of the writing connection."""
    assert store._writer is not None
    await store._writer.execute(f"PRAGMA {name} = {value}")


def error_of(code: int, words: str = "the reason") -> sqlite3.OperationalError:
    """Return an error as SQLite raises it."""
    exc = sqlite3.OperationalError(words)
    exc.sqlite_errorcode = code
    return exc


@pytest.fixture
def fail_commit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], None]:
    """Return what makes the next COMMIT fail with a code, after it has happened or instead."""

    def arm(code: int, has_happened: bool) -> None:
        execute = ThreadConnection.execute

        def failing(self: ThreadConnection, sql: Any, parameters: Any = (), /) -> Any:
            if sql != "COMMIT":
                return execute(self, sql, parameters)
            monkeypatch.setattr(ThreadConnection, "execute", execute)
            if has_happened:
                execute(self, sql)
            raise error_of(code, "disk I/O error")

        monkeypatch.setattr(ThreadConnection, "execute", failing)

    return arm


# --- words ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise("P16", "P17")
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_FULL, StoreFullError),
        (sqlite3.SQLITE_IOERR_WRITE, StoreFullError),
        (sqlite3.SQLITE_IOERR_SHMSIZE, StoreFullError),
        (sqlite3.SQLITE_CORRUPT, StoreCorruptError),
        (sqlite3.SQLITE_CORRUPT_INDEX, StoreCorruptError),
        (sqlite3.SQLITE_IOERR_CORRUPTFS, StoreCorruptError),
        (sqlite3.SQLITE_NOTADB, StoreCorruptError),
        (sqlite3.SQLITE_READONLY, StoreReadOnlyError),
        (sqlite3.SQLITE_READONLY_DIRECTORY, StoreReadOnlyError),
        (sqlite3.SQLITE_READONLY_DBMOVED, StoreReplacedError),
        (sqlite3.SQLITE_CANTOPEN, StoreReadOnlyError),
        (sqlite3.SQLITE_PERM, StoreReadOnlyError),
        (sqlite3.SQLITE_BUSY, StoreBusyError),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StoreBusyError),
        (sqlite3.SQLITE_LOCKED, StoreBusyError),
        (sqlite3.SQLITE_IOERR_READ, StoreError),
        (FSYNC, OutcomeUnknownError),
        (sqlite3.SQLITE_IOERR_DIR_FSYNC, OutcomeUnknownError),
        (sqlite3.SQLITE_CONSTRAINT_CHECK, StoreError),
        (None, StoreError),
    ],
)
def test_sqlites_codes_become_typed_errors(code: int | None, expected: type[StoreError]) -> None:
    """Each code of SQLite's has its error, which names path and reason; an unknown one is a plain StoreError."""
    exc = sqlite3.OperationalError("the reason") if code is None else error_of(code)
    error = translate(exc, "/data/tasks.db")

    assert expected in (type(error), type(error).__base__)
    assert "'/data/tasks.db'" in str(error)
    assert "the reason" in str(error)
    assert (expected is StoreBusyError) == is_locked(exc)


@pytest.mark.promise("P16")
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_IOERR, OutcomeUnknownError),
        (sqlite3.SQLITE_IOERR_READ, OutcomeUnknownError),
        (FSYNC, OutcomeUnknownError),
        (sqlite3.SQLITE_IOERR_WRITE, StoreFullError),
        (sqlite3.SQLITE_FULL, StoreFullError),
    ],
)
def test_an_io_error_at_a_commit_leaves_its_outcome_open(code: int, expected: type[StoreError]) -> None:
    """Of the errors at a COMMIT only a page that the disk did not take says that nothing happened."""
    assert isinstance(translate(error_of(code), "/data/tasks.db", is_commit=True), expected)


@pytest.mark.parametrize("words", ["no such table: x", "no such column: x", "table x has no column named y", "no such index: x"])
def test_tables_that_are_not_there_any_more_are_damage(words: str) -> None:
    """Our statements never change, so a name that SQLite does not know means that somebody altered the tables."""
    exc = error_of(sqlite3.SQLITE_ERROR, words)

    assert StoreCorruptError is type(translate(exc, "/data/tasks.db"))
    assert not is_own_fault(exc)


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (sqlite3.IntegrityError("x"), True),
        (sqlite3.DataError("x"), True),
        (sqlite3.OperationalError("Could not decode to UTF-8 column"), True),
        (error_of(sqlite3.SQLITE_ERROR, "integer overflow"), True),
        (error_of(sqlite3.SQLITE_FULL), False),
        (ValueError("x"), False),
        (None, False),
    ],
)
def test_whose_fault_it_is(exc: BaseException | None, expected: bool) -> None:
    """What one request brought about is told from what every request would meet."""
    assert expected == is_own_fault(exc)


@pytest.mark.row(95)
@pytest.mark.parametrize("name", ["tasks.db", "tasks.db-wal", "tasks.db-shm", ""])
def test_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A read-only error says which of the files it is, whose it is, and as whom we tried."""
    for file in ("tasks.db", "tasks.db-wal", "tasks.db-shm"):
        (tmp_path / file).touch(0o600)
    closed = str(tmp_path / name) if name else str(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != closed)
    error = translate(error_of(sqlite3.SQLITE_READONLY), str(tmp_path / "tasks.db"))

    assert StoreReadOnlyError is type(error)
    assert f"user {os.geteuid()} may not write the {'file' if name else 'folder'} {closed!r} (owner {os.geteuid()}, mode 0" in str(error)
    assert StoreReadOnlyError is type(translate(error_of(sqlite3.SQLITE_IOERR_WRITE), str(tmp_path / "tasks.db")))


@pytest.mark.row(95)
def test_a_read_only_mount_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that a file system refuses since it was mounted read-only is no lack of space."""
    path.touch()
    monkeypatch.setattr(os, "statvfs", lambda name: SimpleNamespace(f_flag=os.ST_RDONLY))
    error = translate(error_of(sqlite3.SQLITE_IOERR_WRITE), str(path))

    assert StoreReadOnlyError is type(error)
    assert f"{str(path)!r} is on a file system that is mounted read-only" in str(error)


# --- the disk failed at a commit ------------------------------------------------------------------------------------


@pytest.mark.promise("P16")
@pytest.mark.parametrize("has_happened", [True, False])
@pytest.mark.parametrize("code", [FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC, sqlite3.SQLITE_IOERR])
async def test_after_a_failed_commit_nothing_more_is_written(
    path: Path, fail_commit: Callable[[int, bool], None], code: int, has_happened: bool
) -> None:
    """Everybody in that commit gets OutcomeUnknownError, nobody is tried again, and later writes are refused until a new start (S19)."""
    async with running(path) as store:
        await add(store, new_record("before"))
        fail_commit(code, has_happened)
        results = await asyncio.gather(*(add(store, new_record(name)) for name in "ab"), return_exceptions=True)
        with pytest.raises(StoreError, match="Nothing more is written until the service is started again") as later:
            await add(store, new_record("later"))
        trouble = store.trouble
    names = query(path, "SELECT name FROM taskqueue_task ORDER BY name")
    async with running(path) as store:
        await add(store, new_record("next"))

    assert [True, True] == [isinstance(result, OutcomeUnknownError) for result in results]
    assert results[0] is not results[1]
    assert StoreError is type(later.value) is type(trouble)
    assert (["a", "b", "before"] if has_happened else ["before"]) == names


@pytest.mark.promise("P16", "P17")
async def test_a_failed_disk_is_no_reason_to_wait_for_at_the_end(path: Path, fail_commit: Callable[[int, bool], None]) -> None:
    """A service whose disk failed says so, delivers nothing, and closes without waiting."""
    async with TaskQueueService(path, target="http://127.0.0.1:9", queues=[QUEUE]) as service:
        await service.add(url="/w", countdown=60)
        fail_commit(FSYNC, False)
        with pytest.raises(OutcomeUnknownError):
            await service.add(url="/w", name="lost")
        reasons = service.health().reasons
        with pytest.raises(StoreError, match="failed at a commit"):
            await service.add(url="/w")

    assert [True] == ["failed at a commit" in reason for reason in reasons]
    assert [1] == query(path, "SELECT count(*) FROM taskqueue_task")


# --- full ----------------------------------------------------------------------------------------------------------


@pytest.mark.row(96)
@pytest.mark.promise("P17")
async def test_a_database_that_became_full_takes_tasks_again_when_there_is_room(path: Path) -> None:
    """When the database cannot grow an add is a StoreFullError and stores nothing; with room the next one succeeds (S11)."""
    async with running(path) as store:
        await set_pragma(store, "max_page_count", 1)
        with pytest.raises(StoreFullError, match="make room"):
            await add(store, new_record(payload=b"x" * 100_000))
        full = store.trouble
        await set_pragma(store, "max_page_count", 1_000_000)
        await add(store, new_record("later", payload=b"x" * 100_000))
        later = store.trouble

    assert ["later"] == query(path, "SELECT name FROM taskqueue_task")
    assert (StoreFullError, None) == (type(full), later)


@pytest.mark.row(96)
@pytest.mark.promise("P17")
async def test_the_outcome_of_what_ran_when_the_disk_became_full_is_not_lost(path: Path) -> None:
    """A task whose completion found no room is still leased, and its completion can be written when there is some."""
    async with running(path) as store:
        leased = await add_leased(store, new_record("name"))
        given_up = attrs.evolve(dead(leased), log=log_of(leased, detail="x" * 100_000))
        await set_pragma(store, "max_page_count", 1)
        with pytest.raises(StoreFullError):
            await settle(store, leased, given_up)
        state = (await fetch(store, "name")).state
        await set_pragma(store, "max_page_count", 1_000_000)

        assert await settle(store, leased, given_up)
        assert (TaskState.LEASED, TaskState.DEAD) == (state, (await fetch(store, "name")).state)


@pytest.mark.usefixtures("quick_watch")
@pytest.mark.promise("P17")
async def test_trouble_that_has_passed_is_noticed_though_nobody_writes(path: Path) -> None:
    """While there is trouble and nobody writes, the store tries by itself, so that a process that only adds is well again."""
    async with running(path) as store:
        await set_pragma(store, "max_page_count", 1)
        with pytest.raises(StoreFullError):
            await add(store, new_record(payload=b"x" * 100_000))
        was_full = type(store.trouble)
        await set_pragma(store, "max_page_count", 1_000_000)
        await wait_until(lambda: store.trouble is None)

    assert StoreFullError is was_full


async def test_a_look_that_fails_is_no_trouble_for_writers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that the disk refuses raises for whoever looks, and concerns nobody else."""
    async with running(path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(_sqlite_looking, "SELECT_TASK", "SELECT fail()")
            assert store._reader is not None
            await store._reader.create_function("fail", 0, fail_to_read)
            with pytest.raises(StoreError, match="refused"):
                await store.get_task("default", "x")

        assert await store.get_task("default", "x") is None
        assert store.trouble is None


def fail_to_read() -> None:
    """Fail, as a function of SQLite's."""
    raise OSError("no disk")


def test_lasting_trouble_outlives_a_write_that_was_on_its_way() -> None:
    """What a look has found meanwhile is not forgotten when an earlier write succeeds, nor covered by what comes later."""
    trouble = Trouble()
    damage = StoreCorruptError("Damaged.")
    trouble.note(damage)
    trouble.clear()
    trouble.note(StoreFullError("Full."))

    assert damage is trouble.current
    assert not trouble.may_pass


async def test_a_bad_request_is_no_trouble(store: SQLiteStore) -> None:
    """A task that cannot be stored concerns whoever adds it, and not the store's health."""
    twin = new_record()
    with pytest.raises(StoreError, match="refused"):
        await add(store, twin, twin)

    assert store.trouble is None


# --- locked --------------------------------------------------------------------------------------------------------


@pytest.mark.row(97)
@pytest.mark.promise("P17")
@pytest.mark.usefixtures("quick_watch")
async def test_for_how_long_the_lock_is_held_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process holds the lock, who asks is told for how long, and once it is free that all is well."""
    monkeypatch.setattr(sqlite, "LOCKED_SECONDS", 0.0)
    async with running(path, patience_seconds=0.05) as store:
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            before = store.trouble
            with pytest.raises(StoreBusyError, match=r"has held the lock of the database for 0\.\d s"):
                await add(store, new_record())
            locked = store.trouble
            other.execute("ROLLBACK")
        seconds = await wait_until(lambda: store.trouble is None)

    assert before is None
    assert "Another process has held the lock of the database for 0." in str(locked)
    assert seconds < 2


@pytest.mark.row(97)
async def test_a_lock_held_for_a_moment_is_not_worth_mentioning(path: Path) -> None:
    """A lock is trouble from a second on: what writes for milliseconds is the ordinary course of things."""
    async with running(path, patience_seconds=0.0) as store:
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreBusyError):
                await add(store, new_record())

            assert store._group.locked_since is not None
            assert store.trouble is None


def test_a_lock_is_looked_at_every_millisecond(path: Path) -> None:
    """While it waits for a lock the thread looks often, so that it meets the moment between two transactions of a busy process."""
    tries: list[str] = []
    with raw(path) as other, closing(sqlite3.connect(path, timeout=POLL_SECONDS, isolation_level=None)) as connection:
        other.execute("PRAGMA journal_mode = wal")
        other.execute("BEGIN IMMEDIATE")
        connection.set_trace_callback(tries.append)
        started = time.monotonic()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            begin(connection)
        seconds = time.monotonic() - started
        other.execute("ROLLBACK")
        begin(connection)
        in_transaction = connection.in_transaction

    assert seconds > 0.09
    assert len(tries) > 10
    assert in_transaction


def test_what_is_no_lock_is_not_waited_for(path: Path) -> None:
    """Beginning twice is a mistake that raises at once."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        begin(connection)
        with pytest.raises(sqlite3.OperationalError, match="within a transaction"):
            begin(connection)


# --- deleted or replaced -------------------------------------------------------------------------------------------


@pytest.mark.row(94)
@pytest.mark.promise("P17")
@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_file_that_went_away_takes_no_more_tasks(path: Path, is_replaced: bool) -> None:
    """When the file is deleted or replaced while it is open, the next add fails instead of vanishing (S12)."""
    async with running(path) as store:
        await add(store, new_record())
        path.rename(path.with_name("moved.db"))
        if is_replaced:
            path.touch()
        with pytest.raises(StoreReplacedError, match="deleted or replaced"):
            await add(store, new_record())
        path.with_name("moved.db").replace(path)


@pytest.mark.row(94)
@pytest.mark.promise("P17")
async def test_a_file_that_came_back_takes_tasks_again(path: Path) -> None:
    """When the very file is put back, adds succeed again."""
    async with running(path) as store:
        path.rename(path.with_name("moved.db"))
        with pytest.raises(StoreReplacedError):
            await add(store, new_record())
        path.with_name("moved.db").rename(path)
        await add(store, new_record("later"))

    assert ["later"] == query(path, "SELECT name FROM taskqueue_task")


@pytest.mark.row(93, 94)
@pytest.mark.promise("P16", "P17")
@pytest.mark.parametrize("suffix", ["", "-wal"])
async def test_a_file_replaced_during_the_transaction_is_noticed_before_the_answer(
    path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """An add whose file is taken away between begin and commit is not believed: it is there if the file comes back (S12)."""
    insert, file = Verbs.add, path.with_name(path.name + suffix)

    def insert_and_move(*arguments: Any) -> Any:
        file.rename(path.with_name("moved"))
        return insert(*arguments)

    monkeypatch.setattr(Verbs, "add", insert_and_move)
    async with running(path) as store:
        with pytest.raises(StoreReplacedError) as caught:
            await add(store, new_record("open"))
        path.with_name("moved").rename(file)

    assert isinstance(caught.value, OutcomeUnknownError)
    assert ["open"] == query(path, "SELECT name FROM taskqueue_task")


@pytest.mark.row(93, 94)
@pytest.mark.promise("P17")
@pytest.mark.usefixtures("quick_watch")
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
async def test_a_missing_file_is_noticed_and_missed_no_more_when_it_is_back(path: Path, suffix: str) -> None:
    """Also while nobody writes it is noticed that the file, its WAL or its shared memory is gone, and that it came back."""
    file = path.with_name(path.name + suffix)
    async with running(path) as store:
        file.rename(path.with_name("moved"))
        await wait_until(lambda: store.trouble is not None)
        trouble = store.trouble
        with pytest.raises(StoreReplacedError):
            await add(store, new_record("refused"))
        path.with_name("moved").rename(file)
        await wait_until(lambda: store.trouble is None)
        await add(store, new_record("later"))

    assert f"The file {str(file)!r} of the database was deleted or replaced while it was open" in str(trouble)
    assert ["later"] == query(path, "SELECT name FROM taskqueue_task")


@pytest.mark.row(94)
@pytest.mark.promise("P17")
@pytest.mark.parametrize("is_link", [False, True])
async def test_a_backup_that_took_the_files_place_is_not_damaged(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_link: bool
) -> None:
    """The log of a file that was replaced is moved away at the end, or the next start would copy it into the backup that is there."""
    name = tmp_path / "link.db" if is_link else path
    path.touch(0o600)
    if is_link:
        name.symlink_to(path)
    async with running(name) as store:
        await add(store, *(new_record(f"old-{i}", payload=bytes(500)) for i in range(100)))
        with raw(path) as connection:
            connection.execute("VACUUM INTO ?", (f"{path}-backup",))
        os.chmod(f"{path}-backup", 0o600)
        await add(store, *(new_record(f"new-{i}", payload=bytes(500)) for i in range(100)))
        path.rename(tmp_path / "former.db")
        os.rename(f"{path}-backup", path)
        with pytest.raises(StoreReplacedError):
            await add(store, new_record())
    os.rename(f"{path}-wal-of-replaced", tmp_path / "former.db-wal")
    async with running(name) as store:
        await add(store, new_record("next"))

    assert ["ok"] == query(path, "PRAGMA integrity_check")
    assert [101] == query(path, "SELECT count(*) FROM taskqueue_task")
    assert [200] == query(tmp_path / "former.db", "SELECT count(*) FROM taskqueue_task")
    assert [
        f"The file {str(name)!r} of the database was replaced while it was open; the last commits of the former one are in"
        f" {f'{path}-wal-of-replaced'!r}."
    ] == [record.message for record in caplog.records if record.levelname == "WARNING"]


# --- damaged, altered, newer ---------------------------------------------------------------------------------------


async def damage(path: Path) -> None:
    """Make a database whose tasks cannot be read."""
    async with running(path) as store:
        await add(store, *(new_record(payload=b"x" * 1000) for _ in range(50)))
    [page] = query(path, "SELECT rootpage FROM sqlite_master WHERE name = 'taskqueue_task'")
    [page_bytes] = query(path, "PRAGMA page_size")
    with path.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)


@pytest.mark.row(92)
@pytest.mark.promise("P17")
async def test_damage_stops_all_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage that a look meets stops writes as well, with what to do, and nothing is deleted."""
    await damage(path)
    # Configuring would meet the damage.
    monkeypatch.setattr(Verbs, "configure", lambda self, connection, requests: [[] for _ in requests])
    before = path.stat().st_size
    async with running(path) as store:
        store._verbs.ids.queues = {"default": 1}
        with pytest.raises(StoreCorruptError):
            await store.list_tasks("default", states=[TaskState.READY])
        with pytest.raises(StoreCorruptError, match="Restore a backup"):
            await store.announce_drain()
        trouble = store.trouble

    assert StoreCorruptError is type(trouble)
    assert before == path.stat().st_size


@pytest.mark.row(86)
@pytest.mark.promise("P17")
async def test_a_service_on_a_file_that_is_no_database_does_not_start(path: Path) -> None:
    """Where the store cannot be opened the start fails with the reason, which health repeats."""
    path.write_bytes(b"Dear diary, " * 500)
    service = TaskQueueService(path, queues=[QUEUE])
    with pytest.raises(StoreCorruptError) as caught:
        await service.start()

    assert ("The service is not running.", str(caught.value)) == service.health().reasons


@pytest.mark.row(91)
@pytest.mark.promise("P17")
async def test_a_table_that_was_altered_while_it_was_open_stops_all_work(path: Path) -> None:
    """When somebody alters our tables while we have them open, the next write says so, and the one after it too."""
    async with running(path) as store:
        with raw(path) as connection:
            connection.execute("ALTER TABLE taskqueue_task RENAME COLUMN tag TO label")
        for _ in range(2):
            with pytest.raises(StoreCorruptError, match="were altered while it was open"):
                await add(store, new_record())
        with raw(path) as connection:
            connection.execute("ALTER TABLE taskqueue_task RENAME COLUMN label TO tag")
        with pytest.raises(StoreCorruptError):
            await add(store, new_record())


@pytest.mark.row(88)
@pytest.mark.promise("P17", "P22")
@pytest.mark.usefixtures("quick_watch")
async def test_a_newer_version_that_came_by_stops_an_older_one(path: Path) -> None:
    """When a newer version of the package migrates the file, an older process that has it open writes no more and says why."""
    async with running(path) as store:
        with raw(path) as connection:
            connection.execute("INSERT INTO taskqueue_schema VALUES (1000, 0)")
        await wait_until(lambda: store.trouble is not None)
        with pytest.raises(SchemaTooNewError, match="schema 1000 and this version knows"):
            await add(store, new_record())

        assert SchemaTooNewError is type(store.trouble)


# --- read-only -----------------------------------------------------------------------------------------------------


@pytest.fixture
def immutable(path: Path) -> Iterator[Callable[[bool], None]]:
    """Return what makes the WAL of an open database immutable, as a disk does that went read-only, and the reverse."""
    wal = f"{path}-wal"

    def set_immutable(is_immutable: bool) -> None:
        subprocess.run(["chattr", "+i" if is_immutable else "-i", wal], check=True, capture_output=True)

    probe = path.with_name("probe")
    probe.touch()
    try:
        subprocess.run(["chattr", "+i", probe], check=True, capture_output=True)
        subprocess.run(["chattr", "-i", probe], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("Files cannot be made immutable here: that needs root and a file system such as ext4.")
    yield set_immutable
    if os.path.exists(wal):
        set_immutable(False)


@pytest.mark.row(95)
@pytest.mark.promise("P17")
async def test_a_file_that_became_read_only_takes_tasks_again_once_it_is_not(path: Path, immutable: Callable[[bool], None]) -> None:
    """A file that cannot be written any more is told from a full disk, and used again when it can."""
    async with running(path) as store:
        immutable(True)
        with pytest.raises(StoreReadOnlyError, match=r"may not write the file '.*-wal'"):
            await add(store, new_record("refused"))
        trouble = store.trouble
        immutable(False)
        await add(store, new_record("later"))

        assert (StoreReadOnlyError, None) == (type(trouble), store.trouble)
    assert ["later"] == query(path, "SELECT name FROM taskqueue_task")


# --- who can get at it (T17) ---------------------------------------------------------------------------------------


@pytest.mark.row(84)
@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
async def test_all_files_are_their_owners_alone_whatever_the_umask(path: Path, umask: int) -> None:
    """The database, SQLite's files and ours beside it have mode 0600 under every umask (T17)."""
    former = os.umask(umask)
    try:
        async with running(path) as store:
            await add(store, new_record())
            modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.glob("tasks.db*")}
            warnings = store.warnings
    finally:
        os.umask(former)

    assert {0o600} == modes
    assert () == warnings


@pytest.mark.parametrize(
    ("file_mode", "folder_mode", "expected"),
    [
        (0o600, 0o700, []),
        (0o644, 0o700, ["The database '{path}' has mode 0644, so that others can get at its tasks and keys; chmod it to 0600."]),
        (0o620, 0o755, ["The database '{path}' has mode 0620, so that others can get at its tasks and keys; chmod it to 0600."]),
        (0o600, 0o777, ["The folder '{folder}' has mode 0777, so that anybody can replace the database in it; chmod it to 0700."]),
        (0o600, 0o1777, []),
    ],
)
async def test_who_else_can_get_at_the_file_is_warned_of(
    path: Path, caplog: pytest.LogCaptureFixture, file_mode: int, folder_mode: int, expected: list[str]
) -> None:
    """A file that others can read or write, or replace, is used all the same, with one warning that health repeats (T17)."""
    path.touch()
    path.chmod(file_mode)
    path.parent.chmod(folder_mode)
    async with TaskQueueService(path, dispatch=False) as service:
        health = service.health()
    path.parent.chmod(0o700)

    assert [sentence.format(path=path, folder=path.parent) for sentence in expected] == list(health.warnings)
    assert list(health.warnings) == [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert health.is_ok


@pytest.mark.promise("P17")
async def test_a_network_file_system_is_warned_of(path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A database on a file system of the network is opened with one warning that names the mount (S18)."""
    monkeypatch.setattr(_sqlite_file, "read_mounts", lambda: f"server:/x {path.parent} nfs4 rw 0 0\n")
    async with running(path) as store:
        [warning] = store.warnings

    assert f"is on {str(path.parent)!r}, a file system of type nfs4, where locks may not hold" in warning
    assert [warning] == [record.message for record in caplog.records if record.levelname == "WARNING"]


async def test_two_names_of_one_file_are_one_database(path: Path, tmp_path: Path) -> None:
    """A process that comes by a symbolic link finds the locks of one that does not: neither takes the other for dead (P4)."""
    link = tmp_path / "elsewhere" / "link.db"
    link.parent.mkdir()
    async with running(path) as one:
        link.symlink_to(path)
        async with running(link) as two:
            leased = await add_leased(two)

            assert [] == await one.rescue([QUEUE], now_usec=NOW)
            assert leased == await one.get_task("default", leased.name)
    assert [link] == list(link.parent.iterdir())


# --- fork (S14) ----------------------------------------------------------------------------------------------------

# Forked outside of the loop, as a server does that starts its workers late; of the loop's own parts, which a child of
# asyncio's had better leave alone, we keep it from them. The database thread is busy at the time.
FORKED = """
    import asyncio, ctypes, os, signal, sqlite3, sys, time, warnings
    from aiotaskqueue import TaskQueueService, errors

    warnings.simplefilter("ignore", DeprecationWarning)  # of any fork beside threads

    async def use(service):
        for use in (service.add(url="/w"), service._store.list_own_leases(), service._store.get_task("default", "x")):
            try:
                await use
            except errors.ForkedProcessError:
                print("refused", flush=True)
        print(service.health().reasons, flush=True)
        await service._store.aclose()

    async def add_for_ever(service):
        while True:
            await asyncio.gather(*(service.add(url="/w") for _ in range(64)))

    def wait_for_child(pid):
        deadline = time.monotonic() + 8
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        if ended == (0, 0):
            os.kill(pid, signal.SIGKILL)
            ended = os.waitpid(pid, 0)
        print("child", ended[1], flush=True)

    async def start():
        await service.start()
        adding = asyncio.create_task(add_for_ever(service))
        await asyncio.sleep(0.05)
        return adding

    service = TaskQueueService(sys.argv[1], dispatch=False)
    loop = asyncio.new_event_loop()
    adding = loop.run_until_complete(start())
    pid = os.fork()
    if not pid:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(loop))
        with asyncio.Runner() as runner:
            runner.run(use(service))
        {ending}
        sys.exit(0)
    wait_for_child(pid)
    adding.cancel()
    loop.run_until_complete(service.add(url="/w", name="after"))
    print(service.health().is_ok, flush=True)
    loop.run_until_complete(service.aclose())
    loop.close()
    connection = sqlite3.connect(sys.argv[1])
    print(connection.execute("PRAGMA integrity_check").fetchall())
    connection.close()
"""


@pytest.mark.slow
@pytest.mark.promise("P17")
@pytest.mark.parametrize("ending", ["os._exit(0)", "sys.exit(0)", "service._store._writer = service._store._reader = None"])
async def test_a_forked_child_is_refused_ends_and_does_no_harm(path: Path, ending: str) -> None:
    """A child forked with a busy store open is refused, ends by itself however it does, and the parent goes on (S14)."""
    child = run_script(FORKED.format(ending=ending), path)
    lines = child.stdout.splitlines()

    assert ["refused"] * 3 + ["('The service was started before a fork; start it in the child, not at import.',)"] == lines[:4]
    assert ["child 0", "True", "[('ok',)]"] == lines[4:], child.stderr
    assert "" == child.stderr


@pytest.mark.promise("P17")
async def test_what_a_forked_child_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process is not the one that opened it, every write and look is refused and health says why; closing does nothing."""
    async with TaskQueueService(path, dispatch=False) as service:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            for use in (service._store.announce_drain(), service._store.get_task("default", "x")):
                with pytest.raises(ForkedProcessError, match="opened before a fork"):
                    await use
            await service._store.aclose()
            reasons = service.health().reasons
        await service.add(url="/w")

    assert ("The service was started before a fork; start it in the child, not at import.",) == reasons


ORPHANED = """
    import asyncio, os, sys, time, warnings
    from aiotaskqueue import TaskQueueService

    warnings.simplefilter("ignore", DeprecationWarning)

    async def main():
        async with TaskQueueService(sys.argv[1], dispatch=False) as service:
            if not os.fork():
                os.write(1, str(os.getpid()).encode())
                os.close(1)
                os.close(2)
                time.sleep(60)
            os._exit(0)

    asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.promise("P5")
async def test_a_forked_child_does_not_prove_its_dead_parent_alive(path: Path) -> None:
    """The lock that proves a process alive ends with it, also when a child that it forked lives on."""
    child = run_script(ORPHANED, path)
    try:
        async with running(path) as store:
            await store.rescue([QUEUE], now_usec=NOW)

            assert 1 == len(query(path, "SELECT id FROM taskqueue_process"))
    finally:
        os.kill(int(child.stdout), signal.SIGKILL)
