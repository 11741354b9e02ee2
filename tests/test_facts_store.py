"""Facts about aiosqlite and SQLite on which the store's shape stands: the naive way fails, ours holds (RELIABILITY 0)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import aiosqlite
import pytest
from open_stores import NOW, QUEUE, add, new_record, query, raw, running

from aiotaskqueue.errors import StoreError, StoreReplacedError

pytestmark = pytest.mark.anyio


@pytest.fixture
async def naive(path: Path) -> AsyncIterator[aiosqlite.Connection]:
    """Return a connection that is used directly, as in most tutorials, on a file in WAL mode with one table."""
    async with aiosqlite.connect(path, isolation_level=None) as connection:
        await connection.execute("PRAGMA journal_mode = wal")
        await connection.execute("CREATE TABLE item (name)")
        yield connection


async def cancel_in_flight(task: asyncio.Task[object]) -> None:
    """Cancel a task once what it awaits has been handed to the database's thread."""
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def is_locked(path: Path) -> bool:
    """Whether another connection could not write now."""
    with raw(path) as other:
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        return False


# --- fact 1: a cancelled call still runs ---------------------------------------------------------------------------


async def test_naive_a_cancelled_begin_locks_everybody_out(naive: aiosqlite.Connection, path: Path) -> None:
    """Control: a cancelled BEGIN runs all the same, and the lock stays although its caller is gone."""

    async def begin() -> None:
        await naive.execute("BEGIN IMMEDIATE")

    await cancel_in_flight(asyncio.create_task(begin()))
    async with naive.execute("SELECT 1"):
        pass

    assert is_locked(path)


async def test_naive_a_cancelled_commit_commits(naive: aiosqlite.Connection, path: Path) -> None:
    """Control: a cancelled commit commits, while its caller believes that it did not."""
    await naive.execute("BEGIN IMMEDIATE")
    await naive.execute("INSERT INTO item VALUES ('a')")
    await cancel_in_flight(asyncio.create_task(naive.commit()))
    async with naive.execute("SELECT 1"):
        pass

    assert ["a"] == query(path, "SELECT name FROM item")


@pytest.mark.parametrize("turns", range(8))
async def test_ours_a_cancelled_add_leaves_no_lock(path: Path, turns: int) -> None:
    """Whenever an add is cancelled, nobody is locked out afterwards and the next add succeeds."""
    async with running(path) as store:
        adding = asyncio.create_task(store.add([new_record("cancelled")], [QUEUE], now_usec=NOW))
        for _ in range(turns):
            await asyncio.sleep(0)
        adding.cancel()
        await asyncio.wait([adding])
        await add(store, new_record("next"))
        locked = is_locked(path)
        names = query(path, "SELECT name FROM taskqueue_task ORDER BY name")

    assert not locked
    assert names in (["next"], ["cancelled", "next"])


# --- fact 2: two coroutines on one connection share a transaction --------------------------------------------------


async def test_naive_a_rollback_erases_anothers_rows(naive: aiosqlite.Connection, path: Path) -> None:
    """Control: a coroutine's row, which it was told is inserted, goes with the ROLLBACK of another one."""
    has_begun, has_inserted = asyncio.Event(), asyncio.Event()

    async def fail() -> None:
        await naive.execute("BEGIN")
        has_begun.set()
        await has_inserted.wait()
        await naive.rollback()

    async def succeed() -> None:
        await has_begun.wait()
        await naive.execute("INSERT INTO item VALUES ('mine')")
        has_inserted.set()

    await asyncio.gather(fail(), succeed())

    assert [] == query(path, "SELECT name FROM item")


async def test_ours_a_failing_add_erases_only_its_own_rows(path: Path) -> None:
    """Of many adds at the same time those that fail take no row of the others with them."""
    twin = new_record("twin")
    bad = [[new_record(), bare, bare] for bare in (new_record() for _ in range(10))]
    async with running(path) as store:
        results = await asyncio.gather(
            *(add(store, *records) for good in range(10) for records in ([new_record(f"good-{good}")], bad[good])),
            add(store, twin),
            return_exceptions=True,
        )

    assert [None, StoreError] * 10 + [None] == [type(result) if isinstance(result, Exception) else None for result in results]
    assert [*(f"good-{i}" for i in range(10)), "twin"] == query(path, "SELECT name FROM taskqueue_task ORDER BY name")


# --- fact 3: in WAL mode SQLite does not notice that its file is gone ----------------------------------------------


async def test_naive_rows_go_into_a_file_that_nobody_will_see(naive: aiosqlite.Connection, path: Path) -> None:
    """Control: after the file was deleted inserts and commits go on to succeed, into nothing."""
    await naive.execute("INSERT INTO item VALUES ('before')")
    for file in path.parent.glob("tasks.db*"):
        os.unlink(file)
    await naive.execute("INSERT INTO item VALUES ('after')")
    async with naive.execute("SELECT name FROM item") as cursor:
        seen = [name for (name,) in await cursor.fetchall()]

    assert ["before", "after"] == seen
    assert not path.exists()


async def test_ours_an_add_after_the_file_is_gone_fails(path: Path) -> None:
    """After the file was deleted an add is a StoreReplacedError, and a new file is not begun either."""
    async with running(path) as store:
        await add(store, new_record())
        for file in path.parent.glob("tasks.db*"):
            os.unlink(file)
        with pytest.raises(StoreReplacedError):
            await add(store, new_record())

    assert not path.exists()
