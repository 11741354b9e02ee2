"""The file of a store, in every state it may be found in (RELIABILITY 4.4, P16, P17, S4-S8, S12, S17)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from open_stores import NOW, QUEUE, add, add_leased, new_record, query, raw, running

from aiotaskqueue.errors import (
    ClosedError,
    ConfigError,
    SchemaTooNewError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreForeignError,
    StoreReadOnlyError,
)
from aiotaskqueue.stores import _sqlite_schema
from aiotaskqueue.stores._sqlite_locks import ProcessLock
from aiotaskqueue.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio

# The numbers of the scripts that make the schema.
VERSIONS = list(_sqlite_schema._scripts())

CHILD = Path(__file__).with_name("store_child.py")


async def wait_for_threads(count: int) -> None:
    """Return when there are no more than `count` threads."""
    give_up = time.monotonic() + 2
    while threading.active_count() > count:
        assert time.monotonic() < give_up, "Threads left running."
        await asyncio.sleep(0.005)


async def open_and_close(path: Path | str, **options: float) -> None:
    """Open a store, configure it and close it."""
    async with running(path, **options):  # type: ignore[arg-type]
        pass


def run_in_child(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a process that does something with a store, until it ends."""
    return subprocess.run([sys.executable, CHILD, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=15)


# --- a new file ----------------------------------------------------------------------------------------------------


@pytest.mark.row(84)
async def test_a_new_file_is_its_owners_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is not there is created with mode 0600, like all that lies beside it, and that is logged."""
    caplog.set_level("INFO", "aiotaskqueue")
    async with running(path) as store:
        await add(store, new_record())
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    # Only with an SQLite that needs it.
    modes.pop("tasks.db-checkpoint", None)

    assert {"tasks.db": 0o600, "tasks.db-wal": 0o600, "tasks.db-shm": 0o600, "tasks.db-process-1": 0o600} == modes
    assert [f"Created the database {path}."] == [record.message for record in caplog.records]


@pytest.mark.row(85)
async def test_a_file_that_is_there_keeps_its_mode(path: Path) -> None:
    """A file that was there is not made anew: its mode is its owner's business; an empty one is a new database."""
    path.touch(0o640)
    path.chmod(0o640)
    await open_and_close(path)

    assert 0o640 == stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", ["a b", "a#b", "a?b", "a%20b", "ä", "\udcff", "a'b", "file:x"])
async def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    """The file that is opened is the one that was named, whatever characters are in the name."""
    await open_and_close(str(tmp_path / name))

    assert [name] == os.listdir(tmp_path)


async def test_a_relative_path_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path may be relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    await open_and_close("tasks.db")

    assert ["tasks.db"] == os.listdir(tmp_path)


@pytest.mark.parametrize(("name", "message"), [("", "folder"), ("gone/tasks.db", "does not exist"), ("a\0b", "give the path")])
async def test_what_cannot_be_a_path_is_refused(tmp_path: Path, name: str, message: str) -> None:
    """A folder, a file in no folder and a name with a NUL are refused with a reason."""
    with pytest.raises(ConfigError, match=message):
        await open_and_close(f"{tmp_path}/{name}")


async def test_an_empty_path_is_refused() -> None:
    """An empty path is SQLite's word for a temporary file: refused."""
    with pytest.raises(ConfigError, match="':memory:'"):
        await open_and_close("")


async def test_a_path_on_which_nothing_can_be_created_is_named() -> None:
    """Where no file can be made, the error names path and reason."""
    with pytest.raises(StoreReadOnlyError, match=r"'/proc/tasks\.db' cannot be created"):
        await open_and_close("/proc/tasks.db")


@pytest.mark.parametrize("parts", [["n" * 253], ["n" * 200] * 3], ids=["for the files beside it", "for SQLite"])
async def test_a_path_that_is_too_long_is_named(tmp_path: Path, parts: list[str]) -> None:
    """A file that can be made, but not opened with those that SQLite puts beside it, is an error that names it."""
    path = tmp_path.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    threads = threading.active_count()
    with pytest.raises(StoreReadOnlyError, match="nnn' cannot be written"):
        await open_and_close(path)
    # aiosqlite does not wait for the thread of a connection that could not be made, and that needs the loop once more.
    await wait_for_threads(threads)


def test_an_unknown_durability_is_refused() -> None:
    """The durability is one of two words."""
    with pytest.raises(ConfigError, match="'maximal'; allowed are 'full' and 'normal'"):
        SQLiteStore("tasks.db", durability="maximal")  # type: ignore[arg-type]


# --- pragmas -------------------------------------------------------------------------------------------------------


@pytest.mark.promise("P1")
@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("normal", 1)])
async def test_pragmas_are_set_on_the_writing_connection(path: Path, durability: str, synchronous: int) -> None:
    """The connection that writes has the pragmas that durability and latency stand on (P1, S17)."""
    expected = {
        "journal_mode": "wal",
        "synchronous": synchronous,
        "wal_autocheckpoint": 100,
        "journal_size_limit": 64 * 1024 * 1024,
        "mmap_size": 0,
        "fullfsync": 1,
        "checkpoint_fullfsync": 1,
    }
    store = SQLiteStore(str(path), durability=durability)  # type: ignore[arg-type]
    await store.open(now_usec=NOW)
    writer = store._writer
    assert writer is not None
    found = {}
    for name in expected:
        async with writer.execute(f"PRAGMA {name}") as cursor:
            found[name] = (await cursor.fetchone() or (0,))[0]
    await store.aclose()

    assert expected == found


@pytest.mark.row(98)
async def test_a_pragma_that_is_refused_stops_the_opening(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SQLite does not take a setting, as WAL on a network file system, opening fails and says which (S17)."""
    monkeypatch.setattr("aiotaskqueue.stores._sqlite_wal.SIZE_LIMIT_BYTES", -5)
    with pytest.raises(ConfigError, match=r"refuses 'PRAGMA journal_size_limit = -5' \(it says -1\)"):
        await open_and_close(path)


async def test_the_reading_connection_cannot_write(path: Path) -> None:
    """What is only to be looked at goes through a connection that cannot write."""
    async with running(path) as store:
        reader = store._reader
        assert reader is not None
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await reader.execute("DELETE FROM taskqueue_task")


@pytest.mark.row(98)
async def test_a_file_in_another_journal_mode_is_set_back(path: Path) -> None:
    """A file that another tool has taken out of WAL mode is set back to it."""
    await open_and_close(path)
    with raw(path) as connection:
        connection.execute("PRAGMA journal_mode = delete")
    await open_and_close(path)

    assert ["wal"] == query(path, "PRAGMA journal_mode")


# --- what may be in the file ---------------------------------------------------------------------------------------


@pytest.mark.row(87)
async def test_the_applications_own_file_is_shared(path: Path) -> None:
    """In an application's database our tables lie beside its own; its rows, version and id are not touched."""
    with raw(path) as connection:
        connection.executescript("""
            CREATE TABLE customer (name TEXT); INSERT INTO customer VALUES ('Ada');
            PRAGMA user_version = 7; PRAGMA application_id = 99;
        """)
    await open_and_close(path)
    names = query(path, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'taskqueue\\_%' ESCAPE '\\'")

    assert ["customer"] == names
    assert ["Ada"] == query(path, "SELECT name FROM customer")
    assert [7, 99] == query(path, "PRAGMA user_version") + query(path, "PRAGMA application_id")


@pytest.mark.row(86)
async def test_a_file_that_is_no_database_is_left_alone(path: Path) -> None:
    """A file with other content is refused and not changed by a byte."""
    content = b"Dear diary, " * 500
    path.write_bytes(content)
    with pytest.raises(StoreCorruptError, match="not a database"):
        await open_and_close(path)

    assert content == path.read_bytes()
    assert [path] == list(path.parent.iterdir())


@pytest.mark.row(92)
async def test_a_truncated_file_is_left_alone(path: Path) -> None:
    """A database that was cut off is refused."""
    await open_and_close(path)
    os.truncate(path, 6000)
    with pytest.raises(StoreCorruptError, match="Restore a backup"):
        await open_and_close(path)


@pytest.mark.row(87)
@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE taskqueue_customer (name TEXT)",
        "CREATE TABLE taskqueue_schema (name TEXT)",
        "CREATE TABLE taskqueue_schema (version INTEGER, applied_usec INTEGER)",
        "CREATE TABLE taskqueue_schema (version, applied_usec); INSERT INTO taskqueue_schema VALUES ('one', 1)",
    ],
)
async def test_tables_with_our_prefix_that_are_not_ours_are_refused(path: Path, script: str) -> None:
    """A file in which somebody else uses our prefix is refused by the tables' names, and nothing is added to it."""
    with raw(path) as connection:
        connection.executescript(script)
    before = query(path, "SELECT name FROM sqlite_master")
    with pytest.raises(StoreForeignError, match=r"taskqueue_.* names that begin with 'taskqueue_' are reserved"):
        await open_and_close(path)

    assert before == query(path, "SELECT name FROM sqlite_master")


@pytest.mark.row(88)
@pytest.mark.promise("P22")
async def test_a_newer_schema_is_refused(path: Path) -> None:
    """A file that a newer version of the package has written is refused."""
    await open_and_close(path)
    with raw(path) as connection:
        connection.execute("INSERT INTO taskqueue_schema VALUES (1000, 0)")
    with pytest.raises(SchemaTooNewError, match=f"schema 1000 and this version knows {VERSIONS[-1]}; install a newer"):
        await open_and_close(path)


@pytest.mark.row(91)
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("DROP TABLE taskqueue_tombstone", "'taskqueue_tombstone' of the database is missing"),
        ("DROP INDEX taskqueue_task_ready", "'taskqueue_task_ready' of the database is missing"),
        ("ALTER TABLE taskqueue_task ADD COLUMN colour TEXT", "'taskqueue_task' of the database was altered"),
        ("ALTER TABLE taskqueue_secret DROP COLUMN created_usec", "'taskqueue_secret' of the database was altered"),
    ],
)
async def test_a_schema_changed_by_hand_is_refused(path: Path, script: str, message: str) -> None:
    """When a table, column or index of ours was dropped or altered, opening says which."""
    await open_and_close(path)
    with raw(path) as connection:
        connection.executescript(script)
    with pytest.raises(StoreCorruptError, match=message):
        await open_and_close(path)


async def test_further_objects_are_the_applications_business(path: Path) -> None:
    """An index that somebody has added to a table of ours is no reason to refuse the file."""
    await open_and_close(path)
    with raw(path) as connection:
        connection.execute("CREATE INDEX taskqueue_my_tags ON taskqueue_task (tag)")
    await open_and_close(path)

    assert ["taskqueue_my_tags"] == query(path, "SELECT name FROM sqlite_master WHERE name = 'taskqueue_my_tags'")


# --- migrations ----------------------------------------------------------------------------------------------------


async def test_the_schema_is_made_once(path: Path) -> None:
    """Opening again runs no migration again."""
    await open_and_close(path)
    await open_and_close(path)

    assert [(version, NOW) for version in VERSIONS] == query(path, "SELECT version, applied_usec FROM taskqueue_schema")


@pytest.mark.row(89)
async def test_only_what_is_missing_is_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of an older version gets the later scripts, in order, and keeps its tasks."""
    async with running(path) as store:
        await add(store, new_record("old"))
    scripts = dict(_sqlite_schema._scripts())
    next_version, after_next = VERSIONS[-1] + 1, VERSIONS[-1] + 2
    later = {next_version: "CREATE TABLE taskqueue_two (a);\n", after_next: "-- A; comment.\nALTER TABLE taskqueue_two\n ADD COLUMN b;\n"}
    monkeypatch.setattr(_sqlite_schema, "_scripts", lambda: scripts | later)
    await open_and_close(path)

    assert [*VERSIONS, next_version, after_next] == query(path, "SELECT version FROM taskqueue_schema")
    assert ["old"] == query(path, "SELECT name FROM taskqueue_task")
    assert ["a", "b"] == query(path, "SELECT name FROM pragma_table_info('taskqueue_two')")


@pytest.mark.promise("P22")
async def test_a_failing_migration_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All scripts are one transaction: when one fails, the file is as before."""
    scripts = dict(_sqlite_schema._scripts()) | {2: "CREATE TABLE taskqueue_two (a);\nCREATE NONSENSE;\n"}
    monkeypatch.setattr(_sqlite_schema, "_scripts", lambda: scripts)
    with pytest.raises(StoreError, match="syntax error"):
        await open_and_close(path)

    assert [] == query(path, "SELECT name FROM sqlite_master")


@pytest.mark.row(90)
@pytest.mark.promise("P22")
@pytest.mark.slow
@pytest.mark.parametrize("statements", [1, 8, 17])
def test_a_killed_migration_runs_again(path: Path, statements: int) -> None:
    """A process that is killed in the middle of a migration leaves the file as before, and the next start runs it."""
    killed = run_in_child("migrate", path, statements)
    left = query(path, "SELECT name FROM sqlite_master")
    asyncio.run(open_and_close(path))

    assert -signal.SIGKILL == killed.returncode, killed.stderr
    assert [] == left
    assert VERSIONS == query(path, "SELECT version FROM taskqueue_schema")


async def test_many_stores_that_open_a_new_file_at_once_migrate_it_once(path: Path) -> None:
    """Stores that start at the same moment on a new file all open."""
    await asyncio.gather(*(open_and_close(path) for _ in range(8)))

    assert VERSIONS == query(path, "SELECT version FROM taskqueue_schema")


# --- a file that cannot be written ---------------------------------------------------------------------------------


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Return a folder into which others can look, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.row(95)
@pytest.mark.slow
@pytest.mark.parametrize(("is_there", "mode"), [(True, 0o444), (False, 0o555)])
def test_what_cannot_be_written_is_named(public_folder: Path, is_there: bool, mode: int) -> None:
    """A file without write permission, or a new one in such a folder, is a StoreReadOnlyError that names the path."""
    path = public_folder / "tasks.db"
    if is_there:
        asyncio.run(open_and_close(path))
        path.chmod(mode)
    public_folder.chmod(0o555)
    ended = run_in_child("powerless", path)

    assert ended.stdout.startswith(f"StoreReadOnlyError The database {str(path)!r} cannot be"), ended.stderr


# --- locked while it is opened and closed --------------------------------------------------------------------------


async def test_opening_waits_for_a_lock(path: Path) -> None:
    """Opening waits while another connection holds the lock, and succeeds once it is free."""
    with raw(path) as other:
        other.execute("CREATE TABLE application (id)")
        other.execute("BEGIN EXCLUSIVE")
        opening = asyncio.create_task(open_and_close(path))
        await asyncio.sleep(0.15)
        was_done = opening.done()
        other.execute("ROLLBACK")
        await opening

    assert not was_done
    assert ["wal"] == query(path, "PRAGMA journal_mode")


@pytest.mark.slow
@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
async def test_opening_gives_up_in_time(path: Path, journal_mode: str) -> None:
    """When the lock is not free in time, opening fails with StoreBusyError."""
    with raw(path) as other:
        other.execute(f"PRAGMA journal_mode = {journal_mode}")
        other.execute("CREATE TABLE application (id)")
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        with pytest.raises(StoreBusyError, match=r"held the lock of the database for 0\.2 s"):
            await open_and_close(path, patience_seconds=0.2)
        seconds = time.monotonic() - started

    assert 0.2 <= seconds < 0.5


async def test_closing_does_not_wait_for_a_lock(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While another connection holds the lock, closing says that it could not sign off, and ends all the same."""
    async with contextlib.AsyncExitStack() as stack:
        async with running(path):
            other = stack.enter_context(raw(path))
            other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")

    assert ["The process could not be unregistered (database is locked); the next start will find it gone."] == [
        record.message for record in caplog.records if record.levelname == "WARNING"
    ]
    async with running(path) as store:
        await store.rescue([QUEUE], now_usec=NOW)

        assert 1 == len(query(path, "SELECT id FROM taskqueue_process"))


# --- opening and closing -------------------------------------------------------------------------------------------


async def test_closing_twice_and_without_opening_is_fine(path: Path) -> None:
    """Closing a store that is closed, or was never opened, does nothing."""
    store = SQLiteStore(str(path))
    await store.aclose()
    await store.aclose()

    assert not path.exists()


async def test_a_closed_store_cannot_be_looked_at(path: Path) -> None:
    """Looking into a store that is closed, or not open yet, is a ClosedError."""
    with pytest.raises(ClosedError, match="not open"):
        await SQLiteStore(str(path)).get_task("default", "name")
    async with running(path) as store:
        pass
    with pytest.raises(ClosedError, match="closed"):
        await store.get_task("default", "name")


async def test_a_cancelled_close_leaves_nothing_behind(path: Path) -> None:
    """When closing is cancelled, both connections are closed and the lock is released all the same (S4, S7)."""
    threads = threading.active_count()
    async with running(path) as store:
        await add_leased(store)
        store.stop()
        closing = asyncio.create_task(store.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        await wait_for_threads(threads)

        assert closing.cancelled()
        assert [path] == list(path.parent.iterdir())


async def test_a_cancelled_opening_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When opening is cancelled while the database's thread enters the process, closing takes row, lock and side file back (S5)."""
    is_entering, may_enter = threading.Event(), threading.Event()

    def make_lock_late(database_path: str, process_id: int) -> ProcessLock:
        is_entering.set()
        may_enter.wait(5)
        return ProcessLock(database_path, process_id)

    monkeypatch.setattr("aiotaskqueue.stores._sqlite_setup.ProcessLock", make_lock_late)
    store = SQLiteStore(str(path))
    opening = asyncio.create_task(store.open(now_usec=NOW))
    while not is_entering.is_set():
        await asyncio.sleep(0.001)
    opening.cancel()
    await asyncio.wait([opening])
    asyncio.get_running_loop().call_later(0.02, may_enter.set)
    await store.aclose()

    assert opening.cancelled()
    assert [path] == list(path.parent.iterdir())
    assert [] == query(path, "SELECT id FROM taskqueue_process")


async def test_a_failed_opening_leaves_nothing_behind(path: Path) -> None:
    """After an opening that failed, closing ends the threads and leaves no side file; the leak check of all tests looks on."""
    path.write_bytes(b"Dear diary, " * 500)
    store = SQLiteStore(str(path))
    with pytest.raises(StoreCorruptError):
        await store.open(now_usec=NOW)
    await store.aclose()

    assert [path] == list(path.parent.iterdir())
