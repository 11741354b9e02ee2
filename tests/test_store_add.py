"""Adding to the store: what is stored, names, and when a task is born leased (DESIGN 4, SPEC 3.4 and 3.5, P12, P14, P15)."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
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
    new_record,
    query,
    raw,
    running,
    settle,
)

from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import TaskRecord, TaskState
from aiotaskqueue._task import TaskRetryOptions
from aiotaskqueue.errors import ClosedError, StoreBusyError, StoreError
from aiotaskqueue.stores._base import AddVerdict, Delete, LeaseRequest, Retry
from aiotaskqueue.stores._sqlite_rows import INLINE_BYTES
from aiotaskqueue.stores._sqlite_verbs import Verbs
from aiotaskqueue.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio

STORED, LEASED, EXISTS, TOMBSTONED = AddVerdict.STORED, AddVerdict.LEASED, AddVerdict.EXISTS, AddVerdict.TOMBSTONED


async def stored(store: SQLiteStore, record: TaskRecord) -> TaskRecord:
    """Return a task as it is stored, its id left out."""
    found = await store.get_task(record.queue_name, record.name)
    assert found is not None
    return attrs.evolve(found, id=0)


# --- what is stored ------------------------------------------------------------------------------------------------


async def test_a_task_comes_back_as_it_was_added(store: SQLiteStore) -> None:
    """Every field of a new task is stored and read back."""
    record = new_record(
        "name",
        eta_usec=NOW + SECOND,
        method="PUT",
        headers=(("Content-Type", "text/plain"), ("X-A", "ä"), ("X-A", "2")),
        payload=b"\0\xff",
        tag="tag",
        target="worker",
        retry_options=TaskRetryOptions(task_retry_limit=3, min_backoff_seconds=0.25),
        dispatch_deadline_seconds=12.5,
    )
    await add(store, record)

    assert record == await stored(store, record)


async def test_nothing_of_a_task_need_be_set(store: SQLiteStore) -> None:
    """A task with only what must be is stored and read back; an empty payload is not the same as none."""
    records = [new_record(), new_record(payload=b"")]
    await add(store, *records)

    assert records == [await stored(store, record) for record in records]


@pytest.mark.parametrize("size", [INLINE_BYTES, INLINE_BYTES + 1, 1_000_000])
async def test_a_body_of_any_size_comes_back(store: SQLiteStore, path: Path, size: int) -> None:
    """A body over the bound lives in the side table; a lease brings it back whole, and success deletes it."""
    payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    await add(store, new_record(payload=payload))
    sizes = query(path, "SELECT length(payload) FROM taskqueue_body")
    [leased] = (await lease(store)).leased
    await settle(store, leased, Delete())

    assert ([size] if size > INLINE_BYTES else []) == sizes
    assert payload == leased.payload
    assert [0] == query(path, "SELECT count(*) FROM taskqueue_body")


@pytest.mark.promise("P14")
async def test_an_add_is_all_or_nothing(store: SQLiteStore, path: Path) -> None:
    """When one task cannot be stored, none of its call is, and the error is typed."""
    twin = new_record()
    with pytest.raises(StoreError, match="refused"):
        await add(store, new_record(), twin, twin)

    assert [0] == query(path, "SELECT count(*) FROM taskqueue_task")


async def test_a_failing_add_does_not_fail_its_neighbour(store: SQLiteStore) -> None:
    """Of two adds that share a transaction only the one at fault fails."""
    twin, good = new_record(), new_record()
    results = await asyncio.gather(add(store, twin, twin), add(store, good), return_exceptions=True)

    assert isinstance(results[0], StoreError)
    assert ([STORED], []) == results[1]
    assert good == await stored(store, good)


async def test_concurrent_adds_share_commits(store: SQLiteStore, path: Path) -> None:
    """Adds that come together are written with far fewer commits than there are adds, and all are stored."""
    before = store._group.commits
    await asyncio.gather(*(add(store, new_record()) for _ in range(200)))

    assert store._group.commits - before <= 3
    assert [200] == query(path, "SELECT count(*) FROM taskqueue_task")


async def test_an_add_of_nothing_stores_nothing(store: SQLiteStore) -> None:
    """An add without tasks has no verdicts."""
    verdicts, leased = await add(store)

    assert ([], []) == (list(verdicts), list(leased))


# --- names ---------------------------------------------------------------------------------------------------------


async def test_a_live_name_is_refused_and_the_others_are_stored(store: SQLiteStore, path: Path) -> None:
    """A name that is in the queue is not stored again; the other tasks of the call are (SPEC 3.4)."""
    await add(store, new_record("taken"))
    verdicts, _ = await add(store, new_record("a"), new_record("taken"), new_record("b"))

    assert [STORED, EXISTS, STORED] == verdicts
    assert ["a", "b", "taken"] == query(path, "SELECT name FROM taskqueue_task ORDER BY name")


async def test_a_leased_name_is_refused(store: SQLiteStore) -> None:
    """A task that is being delivered holds its name."""
    await add_leased(store, new_record("taken"))

    assert [EXISTS] == (await add(store, new_record("taken")))[0]


async def test_a_dead_task_holds_its_name(store: SQLiteStore) -> None:
    """The name of a task that was given up counts as used before."""
    leased = await add_leased(store, new_record("taken"))
    await settle(store, leased, dead(leased))

    assert [TOMBSTONED] == (await add(store, new_record("taken")))[0]


async def test_names_are_unique_per_queue(path: Path) -> None:
    """The same name may be in two queues."""
    other = QueueConfig("other")
    async with running(path, QUEUE, other) as store:
        verdicts = [(await add(store, new_record("name", queue=queue), queue=queue))[0] for queue in (QUEUE, other)]

    assert [[STORED], [STORED]] == verdicts


async def test_a_name_given_twice_in_one_commit_is_refused_the_second_time(store: SQLiteStore) -> None:
    """Of many concurrent adds of one name exactly one succeeds."""
    results = await asyncio.gather(*(add(store, new_record("name")) for _ in range(64)))
    verdicts = [verdict for [verdict], _ in results]

    assert (1, 63) == (verdicts.count(STORED), verdicts.count(EXISTS))


@pytest.mark.promise("P12")
async def test_one_of_many_processes_gets_the_name(path: Path) -> None:
    """Two stores on one file that add one name at the same time store it once."""
    async with running(path) as one, running(path) as two:
        results = await asyncio.gather(*(add(store, new_record("name")) for _ in range(20) for store in (one, two)))
    verdicts = [verdict for [verdict], _ in results]

    assert (1, 39) == (verdicts.count(STORED), verdicts.count(EXISTS))


@pytest.mark.promise("P12")
@pytest.mark.parametrize(("after_usec", "expected"), [(-1, TOMBSTONED), (0, STORED), (1, STORED)])
async def test_a_tombstone_expires_exactly(store: SQLiteStore, after_usec: int, expected: AddVerdict) -> None:
    """A finished name is reserved up to its tombstone's last microsecond and free from then on, swept or not."""
    leased = await add_leased(store, new_record("name"))
    until = NOW + 9 * 86_400 * SECOND
    await settle(store, leased, Delete(until))

    assert [expected] == (await add(store, new_record("name"), now_usec=until + after_usec))[0]


async def test_without_a_tombstone_a_finished_name_is_free(store: SQLiteStore) -> None:
    """A finished task that leaves no tombstone frees its name at once."""
    leased = await add_leased(store, new_record("name"))
    await settle(store, leased, Delete())

    assert [STORED] == (await add(store, new_record("name")))[0]


async def test_a_name_can_be_reserved_again(store: SQLiteStore) -> None:
    """A name that was used, freed and used again is reserved until its second tombstone ends."""
    for until in (NOW + SECOND, NOW + 3 * SECOND):
        _, [leased] = await add(store, new_record("name"), now_usec=until - SECOND, places=1)
        await settle(store, leased, Delete(until))

    assert [TOMBSTONED] == (await add(store, new_record("name"), now_usec=NOW + 2 * SECOND))[0]


# --- born leased: each condition -----------------------------------------------------------------------------------


async def test_a_due_task_is_born_leased(store: SQLiteStore, path: Path) -> None:
    """A task due now, in a queue with nothing before it, is stored with its lease and its first attempt counted."""
    record = new_record()
    verdicts, [leased] = await add(store, record, places=1)

    assert [LEASED] == verdicts
    assert leased == await store.get_task("default", record.name)
    assert (TaskState.LEASED, 1, 1, LEASE_END, NOW) == (
        leased.state,
        leased.attempts,
        leased.lease_token,
        leased.lease_expires_usec,
        leased.first_attempt_usec,
    )
    assert [] == find_drift(path)


async def test_a_born_lease_lasts_as_long_as_the_tasks_own_deadline(store: SQLiteStore) -> None:
    """The lease ends after the deadline, the grace and the slack, the task's deadline before the queue's."""
    leased = await add_leased(store, new_record(dispatch_deadline_seconds=100.0))

    assert NOW + 111 * SECOND == leased.lease_expires_usec


async def test_without_a_place_it_is_stored(store: SQLiteStore) -> None:
    """Of three due tasks with one reserved place the first is leased, and the others are only stored."""
    records = [new_record() for _ in range(3)]
    verdicts, leased = await add(store, *records, places=1)

    assert [LEASED, STORED, STORED] == verdicts
    assert [records[0].name] == [record.name for record in leased]


async def test_a_task_that_is_not_due_is_stored(store: SQLiteStore) -> None:
    """A task with an ETA a microsecond ahead is not born leased."""
    assert ([STORED], []) == await add(store, new_record(eta_usec=NOW + 1), places=1)


async def test_a_pull_task_is_stored(path: Path) -> None:
    """A task of a pull queue is never born leased: it waits for a consumer."""
    pull = QueueConfig("pull", mode="pull")
    async with running(path, pull) as store:
        assert ([STORED], []) == await add(store, new_record(queue=pull, method="PULL"), queue=pull, places=1)


async def test_in_a_queue_of_rate_zero_it_is_stored(path: Path) -> None:
    """A queue whose rate is 0 is paused."""
    paused = QueueConfig("paused", rate="0")
    async with running(path, paused) as store:
        assert ([STORED], []) == await add(store, new_record(queue=paused), queue=paused, places=1)


async def test_in_a_paused_queue_it_is_stored(store: SQLiteStore, path: Path) -> None:
    """A queue that was paused by hand, in its row, starts nothing."""
    with raw(path) as connection:
        connection.execute("UPDATE taskqueue_queue SET is_paused = 1")

    assert ([STORED], []) == await add(store, new_record(), places=1)


async def test_behind_a_due_task_it_is_stored(store: SQLiteStore) -> None:
    """A new task overtakes no due one."""
    await add(store, new_record())

    assert ([STORED], []) == await add(store, new_record(), places=1)


async def test_a_task_that_is_not_due_does_not_stand_in_the_way(store: SQLiteStore) -> None:
    """A task with a later ETA does not keep a due one from being born leased."""
    await add(store, new_record(eta_usec=NOW + 1))

    assert [LEASED] == (await add(store, new_record(), places=1))[0]


async def test_behind_a_suspect_it_is_stored(path: Path) -> None:
    """While a suspect of a crash waits in the queue nothing is born leased beside it, due or not."""
    async with running(path) as crashed:
        await add_leased(crashed)
    async with running(path) as store:
        await store.rescue([QUEUE], now_usec=NOW)

        assert ([STORED], []) == await add(store, new_record(), places=1)


@pytest.mark.parametrize("first_places", [0, 1])
async def test_nothing_is_overtaken_inside_of_one_commit(store: SQLiteStore, first_places: int) -> None:
    """A due task that is stored without a lease keeps those after it from being born leased in the same transaction."""
    first = add(store, new_record(), new_record(), places=first_places)
    [first_verdicts, first_leased], [second_verdicts, second_leased] = await asyncio.gather(first, add(store, new_record(), places=1))

    assert [LEASED] * first_places + [STORED] * (2 - first_places) == first_verdicts
    assert first_places == len(first_leased)
    assert ([STORED], []) == (second_verdicts, second_leased)


async def test_concurrency_bounds_what_is_born_leased(path: Path) -> None:
    """No more are born leased than max_concurrent_requests allows, over all processes."""
    queue = QueueConfig("small", max_concurrent_requests=3)
    async with running(path, queue) as one, running(path, queue) as two:
        first, _ = await add(one, *(new_record(queue=queue) for _ in range(2)), queue=queue, places=10)
        second, _ = await add(two, *(new_record(queue=queue) for _ in range(2)), queue=queue, places=10)

        assert [LEASED, LEASED] == first
        assert [LEASED, STORED] == second
        assert [] == find_drift(path)


async def test_tokens_bound_what_is_born_leased(path: Path) -> None:
    """No more are born leased than the queue's bucket has tokens, over all processes and calls."""
    queue = QueueConfig("slow", rate="1/s", bucket_size=3)
    async with running(path, queue) as one, running(path, queue) as two:
        first, _ = await add(one, *(new_record(queue=queue) for _ in range(2)), queue=queue, places=10)
        second, _ = await add(two, *(new_record(queue=queue) for _ in range(2)), queue=queue, places=10)

    assert [LEASED, LEASED] == first
    assert [LEASED, STORED] == second


async def test_each_queue_has_its_own_gate(path: Path) -> None:
    """One call may add to several queues; what keeps one back does not keep back the other."""
    paused, other = QueueConfig("paused", rate="0"), QueueConfig("other")
    records = [new_record(queue=paused), new_record(queue=other)]
    async with running(path, paused, other) as store:
        verdicts = await store.add(records, [paused, other], now_usec=NOW, places=2)

    assert [STORED, LEASED] == verdicts


async def test_a_named_task_may_be_born_leased(store: SQLiteStore) -> None:
    """Names of one call are checked one after the other, and do not keep the tasks from being leased."""
    verdicts, leased = await add(store, new_record("a"), new_record("a"), new_record("b"), places=5)

    assert [LEASED, EXISTS, LEASED] == verdicts
    assert ["a", "b"] == [record.name for record in leased]


# --- on_leased -----------------------------------------------------------------------------------------------------


async def test_a_cancelled_add_hands_over_its_leases_once(store: SQLiteStore, path: Path) -> None:
    """The caller is cancelled while its add is on the way: the task is leased all the same, and handed over exactly once."""
    handed: list[Sequence[TaskRecord]] = []
    record = new_record()
    adding = asyncio.create_task(store.add([record], [QUEUE], now_usec=NOW, places=1, on_leased=handed.append))
    await asyncio.sleep(0)
    adding.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await adding
    await add(store, new_record(eta_usec=NOW + 1))

    assert [[record.name]] == [[leased.name for leased in call] for call in handed]
    assert [1] == query(path, "SELECT state FROM taskqueue_task WHERE name = ?", record.name)


@pytest.mark.promise("P15")
@pytest.mark.parametrize("turns", range(6))
async def test_an_add_cancelled_at_any_turn_happened_or_not(store: SQLiteStore, path: Path, turns: int) -> None:
    """Whenever it is cancelled, an add is there as a whole or not at all, tells its end once, and the store goes on (P15)."""
    handed: list[Sequence[TaskRecord]] = []
    records = [new_record(), new_record()]
    adding = asyncio.create_task(store.add(records, [QUEUE, QUEUE], now_usec=NOW, places=1, on_leased=handed.append))
    for _ in range(turns):
        await asyncio.sleep(0)
    adding.cancel()
    await asyncio.wait([adding])
    await add(store, new_record(eta_usec=NOW + 1))
    names = [name for name in query(path, "SELECT name FROM taskqueue_task") if name in {record.name for record in records}]

    assert len(names) in (0, 2)
    # Cancelled before its first step, a coroutine has not run at all.
    assert (1 if turns else 0) == len(handed)
    assert [] == find_drift(path)


async def test_a_failing_add_hands_over_nothing(store: SQLiteStore) -> None:
    """When the add fails, on_leased is called once, without tasks."""
    handed: list[Sequence[TaskRecord]] = []
    twin = new_record()
    with pytest.raises(StoreError):
        await store.add([twin, twin], [QUEUE, QUEUE], now_usec=NOW, places=1, on_leased=handed.append)

    assert [()] == handed


async def test_a_refused_add_hands_over_nothing(store: SQLiteStore) -> None:
    """When its only task is refused, on_leased is called once, without tasks."""
    await add(store, new_record("taken"))
    verdicts, leased = await add(store, new_record("taken"), places=1)

    assert ([EXISTS], []) == (verdicts, leased)


async def test_after_closing_nothing_can_be_added(path: Path) -> None:
    """A closed store refuses."""
    async with running(path) as store:
        pass

    with pytest.raises(ClosedError, match="closed"):
        await store.add([new_record()], [QUEUE], now_usec=NOW)


# --- locks ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_locked_for_too_long_is_an_error_in_time(path: Path) -> None:
    """While another connection holds the lock, an add fails when its patience ends, within 0.2 s, and the loop stays awake."""
    patience = 0.4
    async with running(path, patience_seconds=patience) as store:
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            handed: list[Sequence[TaskRecord]] = []
            started = time.monotonic()
            adding = asyncio.create_task(store.add([new_record()], [QUEUE], now_usec=NOW, places=1, on_leased=handed.append))
            longest_turn = await longest_turn_until(adding)
            waited = time.monotonic() - started

    assert isinstance(adding.exception(), StoreBusyError)
    assert patience - 0.001 <= waited <= patience + 0.2
    assert longest_turn < 0.1
    assert [()] == handed


async def longest_turn_until(task: asyncio.Task[object]) -> float:
    """Return the longest time that a short sleep was late while the task ran."""
    longest = 0.0
    while not task.done():
        before = time.monotonic()
        await asyncio.sleep(0.005)
        longest = max(longest, time.monotonic() - before - 0.005)
    return longest


async def test_a_transaction_has_the_lock_before_it_looks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decided before the lock is held: what was seen before could be over by then (S10)."""
    adds: list[object] = []
    monkeypatch.setattr(Verbs, "add", lambda verbs, connection, requests: adds.append(requests))
    async with running(path, patience_seconds=0.0) as store:
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreBusyError):
                await store.add([new_record()], [QUEUE], now_usec=NOW)

    assert [] == adds


async def test_a_short_lock_is_waited_for(path: Path) -> None:
    """An add waits while another connection holds the lock, and is stored once it is free."""
    async with running(path) as store:
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            adding = asyncio.create_task(store.add([new_record()], [QUEUE], now_usec=NOW))
            await asyncio.sleep(0.15)
            was_done = adding.done()
            other.execute("ROLLBACK")
            verdicts = await adding

    assert not was_done
    assert [STORED] == verdicts


async def test_reading_goes_on_while_the_writer_waits(path: Path) -> None:
    """Looks are answered at once while another connection holds the lock and an add waits for it."""
    async with running(path) as store:
        await add(store, new_record("there"))
        with raw(path) as other:
            other.execute("BEGIN IMMEDIATE")
            adding = asyncio.create_task(store.add([new_record()], [QUEUE], now_usec=NOW))
            await asyncio.sleep(0.02)
            started = time.monotonic()
            found = await store.get_task("default", "there")
            seconds = time.monotonic() - started
            was_done = adding.done()
            other.execute("ROLLBACK")
            await adding

    assert found is not None
    assert seconds < 0.05
    assert not was_done


# --- without a file ------------------------------------------------------------------------------------------------


async def test_a_store_in_memory_does_all_that_one_in_a_file_does() -> None:
    """Tasks in memory are added, leased, settled and looked at like others; there is nobody to rescue."""
    async with running(":memory:") as store:
        _, [leased] = await add(store, new_record("a"), places=1)
        await add(store, new_record("b"))
        await settle(store, leased, Retry(eta_usec=NOW + SECOND))
        exchange = await store.exchange([], LeaseRequest(5, [QUEUE]), now_usec=NOW + SECOND)

        assert ["b", "a"] == [record.name for record in exchange.leased]
        assert [] == await store.rescue([QUEUE], now_usec=NOW)


@pytest.mark.promise("P1")
async def test_a_file_keeps_what_was_added(path: Path) -> None:
    """What was added is there when the file is opened again."""
    async with running(path) as store:
        record = new_record()
        await add(store, record)
    async with running(path) as store:
        found = await stored(store, record)

    assert record == found
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
