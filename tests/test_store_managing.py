"""The store's verbs that manage what exists, on real files."""

from __future__ import annotations

from pathlib import Path

import pytest
from open_stores import (
    LEASE_END,
    NOW,
    QUEUE,
    SECOND,
    add,
    add_leased,
    dead,
    find_drift,
    lease,
    log_of,
    new_record,
    query,
    running,
    settle,
)

from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import TaskState
from aiotaskqueue.stores._base import Delete, Retry
from aiotaskqueue.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio


async def count_rows(path: Path) -> dict[str, int]:
    """Return how many rows the tables of tasks have, those that have any."""
    tables = ("task", "body", "attempt", "tombstone")
    counts = {table: query(path, f"SELECT count(*) FROM taskqueue_{table}")[0] for table in tables}
    return {table: count for table, count in counts.items() if count}


# --- delete --------------------------------------------------------------------------------------------------------


async def test_delete_verdicts(store: SQLiteStore) -> None:
    """Each name gets its answer, in order: there or not."""
    await add(store, new_record("a"), new_record("b"))

    assert [True, False, True] == await store.delete_tasks(QUEUE, ["b", "x", "a"], now_usec=NOW)
    assert [False] == await store.delete_tasks(QUEUE, ["a"], now_usec=NOW)


async def test_delete_all_parts(store: SQLiteStore, path: Path) -> None:
    """With a task go its large body and its log; a generated name leaves no tombstone."""
    leased = await add_leased(store, new_record(payload=b"x" * 5000))
    await settle(store, leased, Retry(eta_usec=NOW, log=log_of(leased)))
    await store.delete_tasks(QUEUE, [leased.name], now_usec=NOW)

    assert {} == await count_rows(path)


@pytest.mark.parametrize(("seconds", "expected"), [(60, [NOW + 60 * SECOND]), (0, [])])
async def test_delete_tombstone(path: Path, seconds: int, expected: list[int]) -> None:
    """A given name leaves a tombstone that lasts as long as the queue says."""
    queue = QueueConfig("default", tombstone_seconds=seconds)
    async with running(path, queue) as store:
        await add(store, new_record("a"), queue=queue)
        await store.delete_tasks(queue, ["a"], now_usec=NOW)

        assert expected == query(path, "SELECT expires_usec FROM taskqueue_tombstone")


async def test_delete_a_dead_task(store: SQLiteStore, path: Path) -> None:
    """A dead task can be deleted; its name then is held by a tombstone."""
    leased = await add_leased(store, new_record("a"))
    await settle(store, leased, dead(leased))

    assert [True] == await store.delete_tasks(QUEUE, ["a"], now_usec=NOW)
    assert {"tombstone": 1} == await count_rows(path)


async def test_delete_a_leased_task(store: SQLiteStore, path: Path) -> None:
    """A leased task counts no longer as in flight once it is deleted, and its outcome is refused without counting again."""
    first, second = await add_leased(store), await add_leased(store)
    await store.delete_tasks(QUEUE, [first.name], now_usec=NOW)

    assert ([], [1]) == (find_drift(path), query(path, "SELECT tasks FROM taskqueue_in_flight"))
    assert not await settle(store, first, Retry(eta_usec=NOW, log=log_of(first)))
    assert await settle(store, second, Retry(eta_usec=NOW, log=log_of(second)))
    assert ([], [0]) == (find_drift(path), query(path, "SELECT tasks FROM taskqueue_in_flight"))


async def test_delete_what_another_process_has_leased(store: SQLiteStore, path: Path) -> None:
    """The count that changes is that of the process which has the task."""
    leased, own = new_record(), new_record()
    async with running(path) as other:
        await add(other, leased, places=1)
        await add(store, own, places=1)
        await store.delete_tasks(QUEUE, [leased.name], now_usec=NOW)

        assert ([], [1, 0]) == (find_drift(path), query(path, "SELECT tasks FROM taskqueue_in_flight ORDER BY process_id"))
    assert [own.name] == [record.name for record in await store.list_tasks("default", states=[TaskState.LEASED])]


async def test_delete_and_add_again(path: Path) -> None:
    """A new task of a deleted one's name is another task: the old attempt's outcome does not touch it."""
    queue = QueueConfig("default", tombstone_seconds=0)
    async with running(path, queue) as store:
        old = await add_leased(store, new_record("a"), queue=queue)
        await store.delete_tasks(queue, ["a"], now_usec=NOW)
        await add(store, new_record("a"), queue=queue)
        [new] = (await lease(store, queue)).leased

        assert not await settle(store, old, dead(old))
        assert await settle(store, new, dead(new))


# --- purge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "expected"), [(60, {"tombstone": 3}), (0, {})])
async def test_purge_all_parts(path: Path, seconds: int, expected: dict[str, int]) -> None:
    """A purge removes waiting, leased and dead tasks with their bodies and logs; given names leave tombstones if the queue has any."""
    queue = QueueConfig("default", tombstone_seconds=seconds)
    async with running(path, queue) as store:
        given_up = await add_leased(store, new_record("dead", payload=b"x" * 5000), queue=queue)
        await settle(store, given_up, dead(given_up))
        running_one = await add_leased(store, new_record("leased"), queue=queue)
        await add(store, new_record("waiting"), new_record(), queue=queue)
        await store.purge(queue, now_usec=NOW)

        assert expected == await count_rows(path)
        assert ([], [0]) == (find_drift(path), query(path, "SELECT tasks FROM taskqueue_in_flight"))
        assert not await settle(store, running_one, Delete())


async def test_purge_leaves_other_queues(path: Path) -> None:
    """A purge touches no other queue: neither tasks nor counts."""
    other = QueueConfig("other")
    async with running(path, QUEUE, other) as store:
        leased = await add_leased(store, new_record("a", queue=other, payload=b"x" * 5000), queue=other)
        await store.purge(QUEUE, now_usec=NOW)

        assert {"task": 1, "body": 1} == await count_rows(path)
        assert await settle(store, leased, Delete())


# --- run now -------------------------------------------------------------------------------------------------------


async def test_a_forced_task_is_counted(store: SQLiteStore, path: Path) -> None:
    """What is run by hand counts as in flight and as an attempt, once."""
    await add(store, new_record("a", eta_usec=NOW + SECOND))
    states = [await store.force(QUEUE, "a"), await store.force(QUEUE, "x")]
    [record] = (await lease(store, places=0)).leased

    assert [TaskState.READY, None] == states
    assert (1, 1, 0, LEASE_END) == (record.attempts, record.lease_token, record.eta_usec, record.lease_expires_usec)
    assert ([], TaskState.LEASED, []) == (find_drift(path), await store.force(QUEUE, "a"), (await lease(store)).leased)


async def test_a_forced_task_of_another_queue_is_left(path: Path) -> None:
    """A dispatcher takes up only what belongs to its queues."""
    other = QueueConfig("other")
    async with running(path, QUEUE, other) as store:
        await add(store, new_record("a", queue=other, eta_usec=NOW + SECOND), queue=other)
        await store.force(other, "a")

        assert [] == (await lease(store)).leased
        assert ["a"] == [record.name for record in (await lease(store, other)).leased]


# --- started in the last minute ------------------------------------------------------------------------------------


async def started(store: SQLiteStore, now_usec: int) -> int:
    """Return what was started in the minute before."""
    [statistics] = await store.fetch_statistics(["default"], now_usec=now_usec)
    return statistics.executed_last_minute


async def test_started_by_all_processes(store: SQLiteStore, path: Path) -> None:
    """What any process has started counts, born leased or leased later."""
    async with running(path) as other:
        await add(store, new_record("a"), places=1)
        await add(store, new_record("b"), new_record("c"))
        await lease(other, now_usec=NOW + SECOND)

        assert [3, 3, 2, 0] == [await started(store, NOW + seconds * SECOND) for seconds in (1, 59, 60, 61)]


async def test_started_when_the_clock_was_set_back(store: SQLiteStore) -> None:
    """What lies in the future does not count, and its slot begins anew when it comes round."""
    await add(store, new_record(), now_usec=NOW + 3600 * SECOND, places=1)
    before = await started(store, NOW)
    await add(store, new_record(), places=1)

    assert (0, 1) == (before, await started(store, NOW))
