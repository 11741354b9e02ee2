"""C6: a process is killed while it migrates, purges, sweeps or checkpoints; what is then in the file is whole, or as before.

The moments F9 (checkpoint), F10 (between migration statements) and F11 (sweep) of C2 are here.
"""

from __future__ import annotations

import asyncio
import mmap
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import time
from collections import Counter
from contextlib import closing
from importlib import resources
from pathlib import Path

import pytest
from crash_history import UNSOUND, History
from killing import Place, cut, finish, kill, lives, look, place, say
from open_stores import NOW, QUEUE, SECOND, add, dead, lease, log_of, new_record, running, settle

from aiotaskqueue import QueueConfig
from aiotaskqueue._maintenance import SWEEP_SLICE
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.stores._base import Retry

CHILD = Path(__file__).parent.parent / "chore_child.py"
ROUNDS = 10
PATIENCE_SECONDS = 30.0

WIDE = QueueConfig("default", max_concurrent_requests=10_000)
OTHER = QueueConfig("other", max_concurrent_requests=10_000)
MINUTE = 60 * SECOND

pytestmark = [pytest.mark.crash, pytest.mark.promise("P1", "P2")]


def run(where: Place, chore: str, moment: str, nth: int) -> subprocess.Popen[bytes]:
    """Run a chore to its end, or until it is killed at the moment."""
    child = where.start(CHILD, chore, moment, nth)
    try:
        say(child, b"go\n")
        child.wait(PATIENCE_SECONDS)
    finally:
        child.kill()
        child.communicate()
    return child


def run_killed(where: Place, chore: str, moment: str, nth: int) -> None:
    """Run a chore that is killed at the moment."""
    child = run(where, chore, moment, nth)

    assert -signal.SIGKILL == child.returncode, where.complaints


def count_moments(where: Place, chore: str, moment: str) -> int:
    """Run a chore to its end, undisturbed; return how often the moment is reached."""
    child = run(where, chore, moment, 0)

    assert 0 == child.returncode, where.complaints
    return int(where.journal.read_text().split()[-1])


async def open_and_close(path: Path) -> None:
    """Open a database, as the next start does."""
    async with running(path):
        pass


async def purge(path: Path) -> None:
    """Purge the queue, undisturbed."""
    async with running(path) as store:
        await store.purge(QUEUE, now_usec=NOW)


async def sweep(path: Path) -> None:
    """Sweep an hour later, undisturbed."""
    async with running(path) as store:
        while await store.sweep(now_usec=NOW + 60 * MINUTE, limit=SWEEP_SLICE) >= SWEEP_SLICE:
            pass


def copy(template: Path, where: Place) -> None:
    """Put a database that nobody has open into the place."""
    for file in where.folder.glob("tasks.db*"):
        file.unlink()
    shutil.copy(template, where.database)


def faults(path: Path) -> list[str]:
    """Return what is wrong with the database."""
    return [fault for fault, statement in UNSOUND.items() if look(path, statement)]


# --- migrations ----------------------------------------------------------------------------------------------------


def make_first_schema(path: Path) -> None:
    """Make a database as the first version left it: tasks of every state, bodies, a log, a tombstone, a dead process."""
    script = resources.files("aiotaskqueue.stores.migrations") / "sqlite" / "0001_initial.sql"
    task = """
        INSERT INTO taskqueue_task (id, queue_id, name, uuid, state, eta_usec, created_usec, is_named, method, url, payload, has_body,
            lease_token, attempts, lease_expires_usec, process_id, keep_until_usec, dead_usec, dead_reason)
        VALUES (?1, 1, 'task-' || ?1, randomblob(16), ?2, ?3, ?3, 1, 'POST', '/w', ?4, ?5, 1, 1,
            iif(?2 = 1, ?3, NULL), iif(?2 = 1, 7, NULL),
            iif(?2 = 2, 4000000000000000, NULL), iif(?2 = 2, ?3, NULL), iif(?2 = 2, 'status', NULL))
    """
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.executescript(script.read_text())
        connection.execute("INSERT INTO taskqueue_schema VALUES (1, ?)", (NOW,))
        connection.execute("INSERT INTO taskqueue_queue (id, name) VALUES (1, 'default')")
        connection.execute("INSERT INTO taskqueue_process (id, host, pid, started_usec) VALUES (7, 'gone', 1, ?)", (NOW,))
        for number in range(400):
            has_body = number % 10 == 0
            connection.execute(task, (number, number % 4, NOW + number, None if has_body else b"payload", has_body))
            if has_body:
                connection.execute("INSERT INTO taskqueue_body VALUES (?, ?)", (number, bytes(5000)))
            connection.execute("INSERT INTO taskqueue_attempt VALUES (?, 1, 1, ?, ?, 'status', 500, '')", (number, NOW, NOW))
        connection.execute("INSERT INTO taskqueue_in_flight VALUES (1, 7, 100)")
        connection.execute("INSERT INTO taskqueue_tombstone VALUES (1, 'used', 4000000000000000)")
        connection.commit()


def dump(path: Path) -> list[str]:
    """Return everything in the database, as SQL."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return list(connection.iterdump())


def content(path: Path) -> list[object]:
    """Return the tasks and what belongs to them, by the columns of the first schema."""
    columns = ", ".join(look(path.parent / "first.db", "SELECT name FROM pragma_table_info('taskqueue_task')"))
    others = ("body", "attempt", "tombstone", "secret", "queue")
    return [
        look(path, f"SELECT {columns} FROM taskqueue_task ORDER BY id"),
        *(look(path, f"SELECT * FROM taskqueue_{name}") for name in others),
    ]


@pytest.mark.timeout(180)
@pytest.mark.promise("P22")
def test_kills_at_each_statement_of_a_migration(tmp_path: Path) -> None:
    """F10: whichever statement is the last, the file is as before or migrated, and the next start has all of its tasks."""
    first = tmp_path / "first.db"
    make_first_schema(first)
    with place(tmp_path) as where:
        copy(first, where)
        statements = count_moments(where, "open", "statement")
        expected, newest = content(first), look(where.database, "SELECT version FROM taskqueue_schema")
        found = Counter[str]()
        for nth in range(1, statements + 1):
            copy(first, where)
            run_killed(where, "open", "statement", nth)
            is_old = dump(where.database) == dump(first)
            found["as before" if is_old else "migrated"] += 1

            assert is_old or newest == look(where.database, "SELECT version FROM taskqueue_schema")
            assert expected == content(where.database)
            assert [] == faults(where.database)

            asyncio.run(open_and_close(where.database))

            assert newest == look(where.database, "SELECT version FROM taskqueue_schema")
            assert expected == content(where.database)
            assert [] == faults(where.database)
    print(f"\nMigration from schema 1 to {newest[-1]}, with 400 tasks, killed at each of {statements} statements: {dict(found)}")

    assert found["as before"] >= 10
    assert found["migrated"] > 0


# --- purge ---------------------------------------------------------------------------------------------------------

PURGED = 20_000


async def fill_for_purge(path: Path) -> None:
    """Make a queue of 20,000 tasks, some of them leased, dead, large, or with a log, and one of 100 beside it."""
    records = [new_record(f"task-{i}" if i % 3 else None, payload=bytes(3000 if i % 20 == 0 else 100)) for i in range(PURGED)]
    async with running(path, WIDE, OTHER) as store:
        await add(store, *(new_record(f"other-{i}", queue=OTHER) for i in range(100)), queue=OTHER)
        for start in range(0, PURGED, 1000):
            await add(store, *records[start : start + 1000], queue=WIDE)
        leased = (await lease(store, WIDE, places=300)).leased
        for record in leased[:100]:
            await settle(store, record, dead(record))
        for record in leased[100:200]:
            await settle(store, record, Retry(eta_usec=NOW + SECOND, log=log_of(record)))


def figures(path: Path) -> tuple[int, int, int]:
    """Return the numbers of the queue's tasks, of its tombstones, and of the other queue's tasks."""
    tasks = "SELECT count(*) FROM taskqueue_task WHERE queue_id = (SELECT id FROM taskqueue_queue WHERE name = ?)"
    tombstones = "SELECT count(*) FROM taskqueue_tombstone"
    return look(path, tasks, "default")[0], look(path, tombstones)[0], look(path, tasks, "other")[0]


@pytest.mark.timeout(180)
def test_kills_during_a_purge(tmp_path: Path) -> None:
    """A purge of 20,000 tasks that is killed has purged all of them, with their tombstones, or none; the next one purges all."""
    template = tmp_path / "full.db"
    asyncio.run(fill_for_purge(template))
    before = figures(template)
    found = Counter[str]()
    with place(tmp_path) as where:
        copy(template, where)
        ticks = count_moments(where, "purge", "tick")
        after = figures(where.database)
        moments = [("tick", 1 + ticks * i // ROUNDS) for i in range(ROUNDS)] + [("commit", 1 + i) for i in range(ROUNDS)]
        for moment, nth in moments:
            copy(template, where)
            run_killed(where, "purge", moment, nth)
            is_before = figures(where.database) == before
            found[f"all there, killed in its {'statements' if moment == 'tick' else 'COMMIT'}" if is_before else "all gone"] += 1

            assert figures(where.database) in (before, after)
            assert [] == faults(where.database)

            asyncio.run(purge(where.database))

            assert after == figures(where.database)
            assert [] == faults(where.database)
    print(f"\nPurge of 20,000 tasks, {ticks} thousand steps, killed {len(moments)} times: {dict(found)}")

    assert (PURGED, 0, 100) == before
    assert (0, 2 * PURGED // 3, 100) == after


# --- sweep ---------------------------------------------------------------------------------------------------------

SWEPT = 2500


async def fill_for_sweep(path: Path) -> None:
    """Make tombstones and dead tasks, large ones among them, half of each past their time in an hour, and waiting tasks."""
    brief, long = (QueueConfig("default", max_concurrent_requests=10_000, tombstone_seconds=seconds) for seconds in (60, 86_400))
    async with running(path, WIDE) as store:
        for config in (brief, long):
            names = [f"named-{config.tombstone_seconds}-{i}" for i in range(SWEPT)]
            await add(store, *(new_record(name) for name in names))
            await store.delete_tasks(config, names, now_usec=NOW)
        await add(store, *(new_record(payload=bytes(3000 if i % 10 == 0 else 10)) for i in range(2 * SWEPT)))
        leased = (await lease(store, WIDE, places=2 * SWEPT)).leased
        for start in range(0, 2 * SWEPT, 500):
            await asyncio.gather(*(settle(store, record, bury(record, i)) for i, record in enumerate(leased[start : start + 500])))
        await add(store, *(new_record() for _ in range(100)))


def bury(record: TaskRecord, number: int) -> object:
    """Return the outcome of a task that is given up, and kept for a minute or, every other one, for a day."""
    return dead(record, keep_until_usec=NOW + (MINUTE if number % 2 else 1440 * MINUTE))


def kept(path: Path) -> tuple[int, int, int]:
    """Return the numbers of waiting tasks, of dead tasks and of tombstones whose time is not over in an hour."""
    statements = [
        "SELECT count(*) FROM taskqueue_task WHERE state = 0",
        f"SELECT count(*) FROM taskqueue_task WHERE state = 2 AND keep_until_usec > {NOW + 60 * MINUTE}",
        f"SELECT count(*) FROM taskqueue_tombstone WHERE expires_usec > {NOW + 60 * MINUTE}",
    ]
    waiting, dead_tasks, tombstones = (look(path, statement)[0] for statement in statements)
    return waiting, dead_tasks, tombstones


def expired(path: Path) -> tuple[int, int]:
    """Return the numbers of dead tasks and tombstones whose time is over in an hour."""
    statements = [
        f"SELECT count(*) FROM taskqueue_task WHERE state = 2 AND keep_until_usec <= {NOW + 60 * MINUTE}",
        f"SELECT count(*) FROM taskqueue_tombstone WHERE expires_usec <= {NOW + 60 * MINUTE}",
    ]
    dead_tasks, tombstones = (look(path, statement)[0] for statement in statements)
    return dead_tasks, tombstones


@pytest.mark.timeout(180)
def test_kills_during_a_sweep(tmp_path: Path) -> None:
    """F11: a sweep that is killed has removed whole slices, and nothing whose time has not come; the next one does the rest."""
    template = tmp_path / "full.db"
    asyncio.run(fill_for_sweep(template))
    found = Counter[tuple[int, int]]()
    with place(tmp_path) as where:
        copy(template, where)
        ticks = count_moments(where, "sweep", "tick")
        for nth in (1 + ticks * i // ROUNDS for i in range(ROUNDS)):
            copy(template, where)
            run_killed(where, "sweep", "tick", nth)
            found[expired(where.database)] += 1

            assert (100, SWEPT, SWEPT) == kept(where.database)
            assert [] == faults(where.database)

            asyncio.run(sweep(where.database))

            assert (100, SWEPT, SWEPT) == kept(where.database)
            assert (0, 0) == expired(where.database)
            assert [] == faults(where.database)
    print(f"\nSweep of {SWEPT} dead tasks and as many tombstones, killed {ROUNDS} times; left over then: {dict(found)}")

    assert {(SWEPT - gone, SWEPT - gone) for gone in (0, 1000, 2000)} == found.keys()


# --- checkpoint ----------------------------------------------------------------------------------------------------

# In the file of the WAL's index, by sqlite.org/walformat.html 2.1: how many frames are in the database file for sure, and
# how many a checkpoint has begun to put there. While the second is larger, one is going on.
BACKFILLED, ATTEMPTED = 96, 128


def is_checkpointing(index: mmap.mmap) -> bool:
    """Whether a checkpoint is going on."""
    (backfilled,), (attempted,) = struct.unpack_from("I", index, BACKFILLED), struct.unpack_from("I", index, ATTEMPTED)
    return attempted > backfilled


def kill_in_checkpoint(child: subprocess.Popen[bytes], path: Path, until: float) -> bool:
    """Kill the child when it is in a checkpoint, at the latest at a monotonic time; return whether it was."""
    shm = Path(f"{path}-shm")
    while not shm.exists() or shm.stat().st_size < ATTEMPTED + 4:
        time.sleep(0.001)
    with shm.open("rb") as file, mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ) as index:
        while not is_checkpointing(index) and time.monotonic() < until:
            pass
        kill(child)
        return is_checkpointing(index)


@pytest.mark.timeout(180)
@pytest.mark.promise("P3")
def test_kills_during_a_checkpoint(tmp_path: Path) -> None:
    """F9: SIGKILL while the WAL is being copied into the file loses nothing, and the file is whole."""
    chance, inside = random.Random(9), 0
    with place(tmp_path) as where, lives(where, [["crash"]] * 4 * ROUNDS) as children:
        history = History(where.journal)
        while inside < ROUNDS:
            child = next(children)
            say(child, b"alone\n")
            time.sleep(chance.uniform(0.1, 0.3))
            inside += kill_in_checkpoint(child, where.database, time.monotonic() + 2.0)
            cut(where, history, killed=[child.pid])
        with lives(where, [["drain"]]) as last:
            finish(where, history, next(last))
    print(f"\nCheckpoint: {history.kills} kills, {inside} while it went on; {history.acked} accepted, {history.repeats} repeated")

    assert [] == history.broken
