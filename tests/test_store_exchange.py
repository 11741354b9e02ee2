"""Leasing and settling: what may start, fencing, the attempt log, and books that never drift (RELIABILITY P2-P4, P12, P19)."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
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
    log_of,
    new_record,
    query,
    raw,
    running,
    settle,
)

from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import AttemptRecord, TaskRecord, TaskState
from aiotaskqueue._token_bucket import DROPS_PER_TOKEN
from aiotaskqueue.stores import (
    _sqlite_adding,
    _sqlite_chores,
    _sqlite_gate,
    _sqlite_leasing,
    _sqlite_looking,
    _sqlite_managing,
    _sqlite_quarantine,
    _sqlite_rows,
    _sqlite_settling,
    _sqlite_setup,
)
from aiotaskqueue.stores._base import ATTEMPTS_KEPT, Dead, Delete, Exchange, LeaseRequest, Retry, Settlement
from aiotaskqueue.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio


def names_of(records: Exchange | list[TaskRecord]) -> list[str]:
    """Return the names of what was leased."""
    leased = records.leased if isinstance(records, Exchange) else records
    return [record.name for record in leased]


async def fetch(store: SQLiteStore, record: TaskRecord) -> TaskRecord:
    """Return a task as it is stored now."""
    found = await store.get_task(record.queue_name, record.name)
    assert found is not None
    return found


# --- leasing -------------------------------------------------------------------------------------------------------


async def test_a_lease_counts_the_attempt_before_anything_is_sent(store: SQLiteStore, path: Path) -> None:
    """What is leased comes with its attempt counted, its token, the end of its lease and the moment of its first attempt."""
    record = new_record()
    await add(store, record)
    [leased] = (await lease(store)).leased

    assert attrs.evolve(
        record, id=leased.id, state=TaskState.LEASED, attempts=1, lease_token=1, lease_expires_usec=LEASE_END, first_attempt_usec=NOW
    ) == leased  # fmt: skip
    assert leased == await fetch(store, record)
    assert [] == find_drift(path)


async def test_a_lease_lasts_as_long_as_the_tasks_own_deadline(store: SQLiteStore) -> None:
    """The task's own deadline decides about the lease, and not the queue's."""
    await add(store, new_record(dispatch_deadline_seconds=100.0))
    [leased] = (await lease(store)).leased

    assert NOW + 111 * SECOND == leased.lease_expires_usec


async def test_tasks_are_leased_by_eta(store: SQLiteStore) -> None:
    """Due tasks are leased oldest ETA first, those of one ETA in the order of their adding, and no more than asked for."""
    await add(store, *(new_record(name, eta_usec=NOW - age) for name, age in [("c", 0), ("a", 2), ("b1", 1), ("b2", 1), ("d", 0)]))

    assert ["a", "b1", "b2", "c"] == names_of(await lease(store, places=4))


async def test_the_queue_with_the_oldest_task_comes_first(path: Path) -> None:
    """When places are short, the queue whose task waits the longest is served first."""
    one, two = QueueConfig("one"), QueueConfig("two")
    async with running(path, one, two) as store:
        await add(store, new_record("young", queue=one), queue=one)
        await add(store, new_record("old", queue=two, eta_usec=NOW - 1), queue=two)

        assert ["old"] == names_of(await lease(store, one, two, places=1))


async def test_a_task_is_leased_once(store: SQLiteStore) -> None:
    """A leased task is not leased again while its lease lasts."""
    await add(store, new_record())
    first, second = await asyncio.gather(lease(store), lease(store))

    assert [1, 0] == [len(first.leased), len(second.leased)]


@pytest.mark.promise("P4")
async def test_two_stores_lease_different_tasks(path: Path) -> None:
    """Two stores on one file that lease at the same time never get the same task."""
    async with running(path) as one, running(path) as two:
        await add(one, *(new_record() for _ in range(30)))
        exchanges = await asyncio.gather(*(lease(store, places=4) for _ in range(4) for store in (one, two)))
        names = [name for exchange in exchanges for name in names_of(exchange)]

        assert 30 == len(names) == len(set(names))
        assert [] == find_drift(path)


async def test_only_the_queues_asked_for_are_leased_from(path: Path) -> None:
    """A queue that is not in the request is left alone, also one that has tasks but no configuration any more."""
    other = QueueConfig("other")
    async with running(path, QUEUE, other) as store:
        await add(store, new_record(queue=other), queue=other)

        assert Exchange([], []) == await lease(store, QUEUE)


@pytest.mark.promise("P11")
@pytest.mark.parametrize("after_usec", [-1, 0])
async def test_no_task_is_leased_before_its_eta(store: SQLiteStore, after_usec: int) -> None:
    """A task is leased from the microsecond of its ETA on; before that the exchange says when to look again."""
    eta = NOW + SECOND
    await add(store, new_record(eta_usec=eta))
    exchange = await lease(store, now_usec=eta + after_usec)

    assert (0, eta, False) if after_usec else (1, None, False) == (len(exchange.leased), exchange.next_eta_usec, exchange.has_more)


async def test_the_earliest_moment_of_all_queues_is_told(path: Path) -> None:
    """The next moment is the earliest ETA over all queues."""
    one, two = QueueConfig("one"), QueueConfig("two")
    async with running(path, one, two) as store:
        await add(store, new_record(queue=one, eta_usec=NOW + 2), queue=one)
        await add(store, new_record(queue=two, eta_usec=NOW + 1), queue=two)

        assert Exchange([], [], next_eta_usec=NOW + 1) == await lease(store, one, two)


async def test_too_few_places_are_told(store: SQLiteStore) -> None:
    """Due tasks that are left for want of a place make the exchange say that there is more."""
    await add(store, new_record(), new_record())
    exchanges = [await lease(store, places=places) for places in (0, 1, 1)]

    assert [(0, True), (1, True), (1, False)] == [(len(exchange.leased), exchange.has_more) for exchange in exchanges]


async def test_a_closed_queue_is_not_leased_from(path: Path) -> None:
    """A queue of rate 0 and one paused by hand start nothing, and nothing is to be waited for."""
    by_rate, by_hand = QueueConfig("by-rate", rate="0"), QueueConfig("by-hand")
    async with running(path, by_rate, by_hand) as store:
        for queue in (by_rate, by_hand):
            await add(store, new_record(queue=queue), queue=queue)
        with raw(path) as connection:
            connection.execute("UPDATE taskqueue_queue SET is_paused = 1 WHERE name = 'by-hand'")

        assert Exchange([], [], paused=("by-hand",)) == await lease(store, by_rate, by_hand)


async def test_concurrency_holds_over_all_processes(path: Path) -> None:
    """Two stores together have no more tasks of a queue in flight than it allows, until one ends."""
    queue = QueueConfig("small", max_concurrent_requests=3)
    async with running(path, queue) as one, running(path, queue) as two:
        await add(one, *(new_record(queue=queue) for _ in range(5)), queue=queue)
        first = await lease(one, queue, places=2)
        second = await lease(two, queue)
        full = await lease(one, queue)
        await settle(one, first.leased[0], Delete())
        after = await lease(two, queue)

    assert [(2, True), (1, True), (0, True), (1, True)] == [
        (len(exchange.leased), exchange.has_more) for exchange in (first, second, full, after)
    ]


async def test_tokens_hold_over_all_processes(path: Path) -> None:
    """Two stores together start no more than the queue's bucket grants; who finds it empty is told when the next token comes."""
    queue = QueueConfig("slow", rate="2/s", bucket_size=3)
    async with running(path, queue) as one, running(path, queue) as two:
        await add(one, *(new_record(queue=queue) for _ in range(10)), queue=queue)
        first = await lease(one, queue, places=2)
        second = await lease(two, queue)
        early = await lease(one, queue, now_usec=NOW + SECOND // 2 - 1)
        later = await lease(two, queue, now_usec=NOW + SECOND // 2)

    assert [2, 1, 0, 1] == [len(exchange.leased) for exchange in (first, second, early, later)]
    assert [(NOW + SECOND // 2, False)] * 2 == [(exchange.next_eta_usec, exchange.has_more) for exchange in (second, early)]


async def test_the_bucket_is_stored_exactly(path: Path) -> None:
    """What was started is taken out of the stored bucket, to the drop."""
    queue = QueueConfig("slow", rate="1/s", bucket_size=5)
    async with running(path, queue) as store:
        await add(store, *(new_record(queue=queue) for _ in range(2)), queue=queue)
        await lease(store, queue)

    assert [(3 * DROPS_PER_TOKEN, NOW)] == query(path, "SELECT bucket_level, bucket_usec FROM taskqueue_queue")


async def test_settling_frees_a_place_for_the_lease_of_the_same_exchange(path: Path) -> None:
    """An exchange settles first: what has ended makes room for what it leases."""
    queue = QueueConfig("one-by-one", max_concurrent_requests=1)
    async with running(path, queue) as store:
        await add(store, *(new_record(name, queue=queue) for name in "ab"), queue=queue)
        [first] = (await lease(store, queue)).leased
        exchange = await store.exchange([Settlement(first, Delete())], LeaseRequest(1, [queue]), now_usec=NOW)

    assert ["b"] == names_of(exchange)


# --- suspects: retried alone ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def after_crash(path: Path, *queues: QueueConfig, tasks: int = 2) -> AsyncIterator[SQLiteStore]:
    """Return a store that has rescued `tasks` tasks of each queue from a crash, named by queue and number."""
    async with running(path, *queues) as crashed:
        for queue in queues:
            await add(crashed, *(new_record(f"{queue.name}-{i}", queue=queue) for i in range(tasks)), queue=queue, places=tasks)
    async with running(path, *queues) as store:
        await store.rescue(queues, now_usec=NOW)
        yield store


async def test_a_suspect_is_leased_alone(path: Path) -> None:
    """Of a queue with suspects one is leased and nothing else, however many places there are."""
    async with after_crash(path, QUEUE) as store:
        await add(store, new_record("new"))
        exchange = await lease(store)
        again = await lease(store, suspect_queue="default")

    assert [("default-0", True)] == [(record.name, record.is_suspect) for record in exchange.leased]
    assert exchange.has_more
    assert Exchange([], [], has_more=True) == again


async def test_only_one_suspect_is_leased_in_a_process(path: Path) -> None:
    """Of two queues with suspects one suspect is leased; queues without any go on."""
    one, two, calm = QueueConfig("one"), QueueConfig("two"), QueueConfig("calm")
    async with running(path, one, two, calm) as store:
        await add(store, new_record("calm-0", queue=calm, eta_usec=NOW + 1), queue=calm)
    async with after_crash(path, one, two) as store:
        await store.configure([one, two, calm], now_usec=NOW)
        exchange = await lease(store, one, two, calm, now_usec=NOW + 1)

    assert ["calm-0", "one-0"] == sorted(names_of(exchange))


async def test_a_suspect_waits_for_what_is_in_flight_in_its_queue(path: Path) -> None:
    """A suspect is not leased beside a task of its queue that this process has in flight; it is when that has ended."""
    async with running(path) as one:
        async with running(path) as two:
            await add_leased(one, new_record("mine"))
            await add_leased(two, new_record("crashed"))
        await one.rescue([QUEUE], now_usec=NOW)
        busy = await lease(one)
        mine = await one.get_task("default", "mine")
        assert mine is not None
        await settle(one, mine, Delete())
        free = await lease(one)

    assert Exchange([], [], has_more=True) == busy
    assert ["crashed"] == names_of(free)


async def test_a_suspect_that_ended_is_none(path: Path) -> None:
    """A suspect whose attempt came to its end is an ordinary task again, whatever the end, and its crashes are forgotten."""
    async with after_crash(path, QUEUE, tasks=1) as store:
        [suspect] = (await lease(store)).leased
        await settle(store, suspect, Retry(eta_usec=NOW, log=log_of(suspect)))
        found = await fetch(store, suspect)

    assert (1, True) == (suspect.crashes, suspect.is_suspect)
    assert (TaskState.READY, 0, False) == (found.state, found.crashes, found.is_suspect)


async def test_a_suspect_that_was_not_tried_to_its_end_stays_one(path: Path) -> None:
    """An attempt that says nothing about the task, as in a drain, leaves it a suspect with its crashes."""
    async with after_crash(path, QUEUE, tasks=1) as store:
        [suspect] = (await lease(store)).leased
        await settle(store, suspect, Retry(eta_usec=NOW, is_conclusive=False))
        found = await fetch(store, suspect)

    assert (TaskState.SUSPECT, 1) == (found.state, found.crashes)


async def test_a_suspect_needs_a_place_a_token_and_its_eta(path: Path) -> None:
    """A suspect starts under the same conditions as others: a place, a token, and not before its ETA."""
    queue = QueueConfig("slow", rate="1/s", bucket_size=1)
    async with after_crash(path, queue, tasks=1) as store:
        no_place = await lease(store, queue, places=0)
        no_token = await lease(store, queue, now_usec=NOW)
        [suspect] = (await lease(store, queue, now_usec=NOW + SECOND)).leased
        await settle(store, suspect, Retry(eta_usec=NOW + 9 * SECOND, is_conclusive=False))
        not_due = await lease(store, queue, now_usec=NOW + 8 * SECOND)

    assert Exchange([], [], has_more=True) == no_place
    assert Exchange([], [], next_eta_usec=NOW + SECOND) == no_token
    assert Exchange([], [], next_eta_usec=NOW + 9 * SECOND) == not_due


# --- settling ------------------------------------------------------------------------------------------------------


@pytest.mark.promise("P3")
async def test_success_removes_every_trace(store: SQLiteStore, path: Path) -> None:
    """A task that succeeded leaves no task, body, attempts or count behind."""
    record = new_record(payload=b"x" * 5000)
    leased = await add_leased(store, record)
    await settle(store, leased, Retry(eta_usec=NOW, log=log_of(leased)))
    [again] = (await lease(store)).leased
    accepted = await settle(store, again, Delete())
    rows = [query(path, f"SELECT count(*) FROM taskqueue_{table}") for table in ("task", "body", "attempt", "tombstone")]

    assert accepted
    assert [[0]] * 4 == rows
    assert [0] == query(path, "SELECT total(tasks) FROM taskqueue_in_flight")


async def test_a_retry_stores_what_was_learnt(store: SQLiteStore, path: Path) -> None:
    """A failed attempt leaves the next ETA, the counts, the status and reason, and its log."""
    leased = await add_leased(store)
    log = log_of(leased, status=503, detail="down")
    await settle(store, leased, Retry(eta_usec=NOW + SECOND, is_execution=True, log=log))
    found = await fetch(store, leased)

    assert attrs.evolve(
        leased, state=TaskState.READY, eta_usec=NOW + SECOND, executions=1, previous_status=503, retry_reason="status",
        lease_expires_usec=None,
    ) == found  # fmt: skip
    assert [log] == await store.list_attempts(found)
    assert [] == find_drift(path)


async def test_an_attempt_that_is_none_is_taken_back(store: SQLiteStore) -> None:
    """An attempt that does not count leaves the task as if it had not been tried, but for the token."""
    leased = await add_leased(store)
    await settle(store, leased, Retry(eta_usec=NOW, is_attempt=False, is_conclusive=False))
    found = await fetch(store, leased)

    assert attrs.evolve(
        leased, state=TaskState.READY, attempts=0, first_attempt_usec=None, lease_expires_usec=None, lease_token=1
    ) == found  # fmt: skip


async def test_the_first_attempts_moment_stays(store: SQLiteStore) -> None:
    """The moment of the first attempt does not move with later ones: the age limit counts from it."""
    leased = await add_leased(store)
    await settle(store, leased, Retry(eta_usec=NOW + SECOND, log=log_of(leased)))
    [again] = (await lease(store, now_usec=NOW + SECOND)).leased

    assert (NOW, 2, 2) == (again.first_attempt_usec, again.attempts, again.lease_token)


async def test_a_stale_connection_is_remembered_without_changing_the_reason(store: SQLiteStore) -> None:
    """An attempt that died on a reused connection is marked and logged; the reason of the last real attempt stays."""
    leased = await add_leased(store)
    await settle(store, leased, Retry(eta_usec=NOW, log=log_of(leased)))
    [again] = (await lease(store)).leased
    await settle(store, again, Retry(eta_usec=NOW, is_attempt=False, is_stale=True, log=log_of(again, reason="stale", status=None)))
    found = await fetch(store, leased)

    assert (True, 1, "status", 500) == (found.was_stale, found.attempts, found.retry_reason, found.previous_status)
    assert ["status", "stale"] == [log.reason for log in await store.list_attempts(found)]


async def test_a_dead_task_is_kept_with_its_reason(store: SQLiteStore, path: Path) -> None:
    """A task that was given up is kept with the reason, the moment and its log, and is not leased any more."""
    leased = await add_leased(store)
    outcome = dead(leased)
    await settle(store, leased, attrs.evolve(outcome, is_execution=True), now_usec=NOW + SECOND)
    found = await fetch(store, leased)

    assert attrs.evolve(
        leased, state=TaskState.DEAD, executions=1, previous_status=500, retry_reason="status", dead_usec=NOW + SECOND,
        dead_reason="status", lease_expires_usec=None,
    ) == found  # fmt: skip
    assert [outcome.log] == await store.list_attempts(found)
    assert Exchange([], []) == await lease(store, now_usec=NOW + 100 * SECOND)
    assert [] == find_drift(path)


async def test_the_log_keeps_the_last_attempts(store: SQLiteStore) -> None:
    """The log holds the last ten failed attempts, oldest first; those of other tasks are left alone."""
    neighbour = await add_leased(store)
    await settle(store, neighbour, Retry(eta_usec=NOW + 10**9, log=log_of(neighbour)))
    leased = await add_leased(store)
    for _ in range(ATTEMPTS_KEPT + 3):
        await settle(store, leased, Retry(eta_usec=NOW, log=log_of(leased)))
        [leased] = (await lease(store)).leased
        kept = [log.attempt for log in await store.list_attempts(leased)]

        assert list(range(1, leased.attempts))[-ATTEMPTS_KEPT:] == kept

    assert [1] == [log.attempt for log in await store.list_attempts(neighbour)]


OUTCOMES = [
    Delete(),
    Delete(NOW + SECOND),
    Retry(eta_usec=NOW),
    Dead(
        reason="status",
        keep_until_usec=NOW,
        log=AttemptRecord(attempt=1, started_usec=NOW, ended_usec=NOW, reason="status"),
    ),
]


@pytest.mark.promise("P4")
@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
async def test_an_outcome_with_an_old_token_is_refused(path: Path, outcome: Delete | Retry | Dead) -> None:
    """When a lease has expired and another process has leased the task, the old outcome is stale and changes nothing (P4)."""
    async with running(path) as slow, running(path) as other:
        old = await add_leased(slow, new_record("name"))
        await other.rescue([QUEUE], now_usec=LEASE_END + 1)
        [new] = (await lease(other, now_usec=LEASE_END + 1)).leased
        accepted = await settle(slow, old, outcome)

        assert not accepted
        assert new == await fetch(other, new)
        assert (1, 2) == (old.lease_token, new.lease_token)
        assert [] == find_drift(path)
        assert [] == query(path, "SELECT name FROM taskqueue_tombstone")


@pytest.mark.promise("P3", "P4")
@pytest.mark.parametrize("first", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
@pytest.mark.parametrize("second", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
async def test_the_second_of_two_outcomes_is_refused(
    store: SQLiteStore, path: Path, first: Delete | Retry | Dead, second: Delete | Retry | Dead
) -> None:
    """An attempt ends once: a second outcome with the same token is stale, also in the same exchange, and is not counted."""
    leased, _neighbour = await add_leased(store), await add_leased(store)
    exchange = await store.exchange([Settlement(leased, first), Settlement(leased, second)], None, now_usec=NOW)

    assert [leased] == exchange.stale
    assert [] == find_drift(path)


async def test_a_stale_outcome_does_not_keep_its_neighbours_from_being_settled(store: SQLiteStore, path: Path) -> None:
    """Of several outcomes in one exchange only the stale one is refused."""
    gone, here = await add_leased(store), await add_leased(store)
    await settle(store, gone, Delete())
    exchange = await store.exchange([Settlement(gone, Delete()), Settlement(here, Delete())], None, now_usec=NOW)

    assert [gone] == exchange.stale
    assert [0] == query(path, "SELECT count(*) FROM taskqueue_task")


# --- the statements use the indexes they claim ---------------------------------------------------------------------

PLANS = [
    (_sqlite_gate.SELECT_GATES, "taskqueue_task_ready"),
    (_sqlite_gate.SELECT_GATES, "taskqueue_task_suspect"),
    (_sqlite_gate.SELECT_GATE, "taskqueue_task_ready"),
    (_sqlite_leasing.SELECT_READY_ETA, "taskqueue_task_ready"),
    (_sqlite_leasing.LEASE_READY, "taskqueue_task_ready"),
    (_sqlite_leasing.LEASE_SUSPECT, "taskqueue_task_suspect"),
    (_sqlite_rows.SELECT_NAME, "taskqueue_task_name"),
    (_sqlite_adding.SELECT_TOMBSTONE, "PRIMARY KEY"),
    (_sqlite_settling.DELETE_LEASED, "INTEGER PRIMARY KEY"),
    (_sqlite_settling.RETRY_LEASED, "INTEGER PRIMARY KEY"),
    (_sqlite_settling.BURY_LEASED, "INTEGER PRIMARY KEY"),
    (_sqlite_settling.TRIM_ATTEMPTS, "PRIMARY KEY"),
    (_sqlite_rows.DELETE_ATTEMPTS, "PRIMARY KEY"),
    (_sqlite_chores.SELECT_LEASED, "INTEGER PRIMARY KEY"),
    (_sqlite_chores.SUSPECT_LEASED, "INTEGER PRIMARY KEY"),
    (_sqlite_chores.SELECT_EXPIRED_TOMBSTONES, "taskqueue_tombstone_expiry"),
    (_sqlite_chores.SELECT_EXPIRED_DEAD, "taskqueue_task_dead"),
    (_sqlite_rows.DELETE_TASK, "INTEGER PRIMARY KEY"),
    (_sqlite_rows.SELECT_BODY, "INTEGER PRIMARY KEY"),
    (_sqlite_rows.DELETE_BODY, "INTEGER PRIMARY KEY"),
    (_sqlite_looking.SELECT_TASK, "taskqueue_task_name"),
    (_sqlite_looking.SELECT_LEASES, "taskqueue_task_leased"),
    (_sqlite_looking.SELECT_TASKS.format(state=0), "taskqueue_task_ready"),
    (_sqlite_looking.SELECT_TASKS.format(state=1), "taskqueue_task_leased"),
    (_sqlite_looking.SELECT_TASKS.format(state=2), "taskqueue_task_given_up"),
    (_sqlite_looking.SELECT_TASKS.format(state=3), "taskqueue_task_suspect"),
    (_sqlite_leasing.SELECT_FORCED, "taskqueue_task_forced"),
    (_sqlite_looking.SELECT_STATISTICS, "PRIMARY KEY (queue_id=?)"),
    (_sqlite_leasing.LEASE_FORCED, "taskqueue_task_forced"),
    (_sqlite_managing.FORCE, "taskqueue_task_name"),
    (_sqlite_managing.REVIVE, "taskqueue_task_name"),
    (_sqlite_managing.EDIT, "INTEGER PRIMARY KEY"),
    (_sqlite_managing.SELECT_FOR_DELETE, "taskqueue_task_name"),
    (_sqlite_managing.PURGE_NAMES, "taskqueue_task_name"),
    (_sqlite_managing.PURGE_BODIES, "INTEGER PRIMARY KEY"),
    (_sqlite_managing.PURGE_ATTEMPTS, "PRIMARY KEY"),
    (_sqlite_managing.PURGE_TASKS, "taskqueue_task_name"),
    (_sqlite_setup.SELECT_HAS_TASKS, "taskqueue_task_name"),
    (_sqlite_looking.SELECT_STATISTICS, "taskqueue_task_name"),
    (_sqlite_looking.SELECT_STATISTICS, "taskqueue_task_ready"),
    (_sqlite_looking.SELECT_STATISTICS, "taskqueue_task_suspect"),
    (_sqlite_looking.SELECT_ATTEMPTS, "PRIMARY KEY"),
    (_sqlite_quarantine.SELECT_OWN, "taskqueue_task_leased"),
    (_sqlite_quarantine.SELECT_FORCED, "taskqueue_task_forced"),
    (_sqlite_quarantine.SELECT_DUE.format(state=0), "taskqueue_task_ready"),
    (_sqlite_quarantine.SELECT_DUE.format(state=3), "taskqueue_task_suspect"),
    (_sqlite_quarantine.SELECT, "INTEGER PRIMARY KEY"),
    (_sqlite_quarantine.TRY, "INTEGER PRIMARY KEY"),
    (_sqlite_quarantine.BURY, "INTEGER PRIMARY KEY"),
]

# Tables that grow with the backlog; the others have a row for each queue or process.
LARGE_TABLES = ("taskqueue_task", "taskqueue_body", "taskqueue_tombstone", "taskqueue_attempt")


@pytest.fixture
async def database(path: Path) -> Path:
    """Return the path of a new database."""
    async with running(path):
        return path


def plan_of(path: Path, statement: str) -> list[str]:
    """Return the steps of SQLite's plan for a statement."""
    with raw(path) as connection:
        unbound = [None] * statement.count("?")
        with contextlib.suppress(sqlite3.ProgrammingError):
            return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", unbound)]
        numbered = [None] * max(int(part[0]) for part in statement.split("?")[1:])
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", numbered)]


@pytest.mark.row(100)
@pytest.mark.parametrize(("statement", "index"), PLANS, ids=lambda value: " ".join(value.split()[:4]))
async def test_a_statement_uses_the_index_it_claims(database: Path, statement: str, index: str) -> None:
    """A statement of the hot path finds its rows by the index that its comment names, and scans no table that grows."""
    plan = plan_of(database, statement)

    assert any(index in step for step in plan), plan
    assert [] == [step for step in plan for table in LARGE_TABLES if step.split() in (["SCAN", table], ["SCAN", table, "AS"])]


@pytest.mark.parametrize("state", list(TaskState))
async def test_a_list_is_not_sorted(database: Path, state: TaskState) -> None:
    """A page of a list is read in the order of its index: nothing is sorted, however many tasks have one ETA."""
    assert [] == [step for step in plan_of(database, _sqlite_looking.SELECT_TASKS.format(state=int(state))) if "B-TREE" in step]
