"""Chores of the store: rescue, liveness, watching others, sweeping, and looking (RELIABILITY P4, P5, P18, S13, S22)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from on_clock import serving
from open_stores import (
    LEASE_END,
    NOW,
    QUEUE,
    SECOND,
    add,
    add_leased,
    dead,
    fetch,
    find_drift,
    lease,
    log_of,
    new_record,
    query,
    raw,
    running,
    settle,
    wait_until,
)

from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import TaskState
from aiotaskqueue.errors import StoreReadOnlyError, StoreReplacedError
from aiotaskqueue.stores import _sqlite_setup
from aiotaskqueue.stores._base import Delete, Retry, StoredStatistics
from aiotaskqueue.stores._sqlite_chores import RescueRequest, rescue
from aiotaskqueue.stores._sqlite_locks import ProcessLock, is_dead, lock_path
from aiotaskqueue.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio

CHILD = Path(__file__).with_name("store_child.py")


async def crash(path: Path, *names: str, queue: QueueConfig = QUEUE, is_draining: bool = False) -> None:
    """Leave tasks leased as a process that has died does: its row is there and its lock is not."""
    async with running(path, queue) as store:
        await add(store, *(new_record(name, queue=queue) for name in names), queue=queue, places=len(names))
        if is_draining:
            await store.announce_drain()


# --- rescue --------------------------------------------------------------------------------------------------------


async def test_process_that_somebody_else_has_rescued(store: SQLiteStore) -> None:
    """Of two processes that find the same dead one, the second has nothing to do."""
    request = RescueRequest(999, [1, 2], {}, NOW)

    assert [] == await store._write(rescue, request)


async def test_the_tasks_of_a_dead_process_are_taken_back(path: Path) -> None:
    """What a dead process had leased becomes ready as suspects, with the crash in the log; nothing of the process is left."""
    await crash(path, "a", "b")
    async with running(path) as store:
        rescued = await store.rescue([QUEUE], now_usec=NOW + SECOND)
        tasks = [await fetch(store, name) for name in "ab"]
        logs = [await store.list_attempts(task) for task in tasks]

    assert ["a", "b"] == sorted(record.name for record in rescued)
    assert [(TaskState.SUSPECT, 1, 1, "crash", None)] * 2 == [
        (task.state, task.attempts, task.lease_token, task.retry_reason, task.lease_expires_usec) for task in tasks
    ]
    assert [[(1, NOW, NOW + SECOND, "crash")]] * 2 == [
        [(log.attempt, log.started_usec, log.ended_usec, log.reason) for log in attempts] for attempts in logs
    ]
    assert [] == query(path, "SELECT * FROM taskqueue_in_flight") == query(path, "SELECT * FROM taskqueue_process")
    assert [path] == list(path.parent.iterdir())


@pytest.mark.parametrize("is_draining", [False, True])
async def test_what_is_known_of_an_earlier_attempt_is_forgotten_at_a_crash(path: Path, is_draining: bool) -> None:
    """The last attempt of a task that is taken back had no status and was not stale, whatever was true of the one before."""
    async with running(path) as store:
        await settle(store, await add_leased(store, new_record("a")), Retry(eta_usec=NOW, log=(failed := log_of(new_record()))))
        [second] = (await lease(store)).leased
        await settle(store, second, Retry(eta_usec=NOW, is_attempt=False, is_stale=True))
        [third] = (await lease(store)).leased
        if is_draining:
            await store.announce_drain()
    async with running(path) as store:
        await store.rescue([QUEUE], now_usec=NOW)
        found = await fetch(store, "a")

    assert (failed.status, True) == (third.previous_status, third.was_stale)
    assert (None, False) == (found.previous_status, found.was_stale)


async def test_a_rescue_is_done_once(path: Path) -> None:
    """Of two stores that rescue at the same time one gets the tasks."""
    await crash(path, "a", "b")
    async with running(path) as one, running(path) as two:
        rescued = await asyncio.gather(*(store.rescue([QUEUE], now_usec=NOW) for store in (one, two)))

        assert 2 == sum(len(records) for records in rescued)
        assert [] == find_drift(path)


async def test_two_living_stores_leave_each_other_alone(path: Path) -> None:
    """Two stores on one file in one process know each other as alive."""
    async with running(path) as one, running(path) as two:
        leased = await add_leased(two)

        assert [] == await one.rescue([QUEUE], now_usec=NOW)
        assert leased == await fetch(one, leased.name)


@pytest.mark.parametrize(("after_usec", "is_rescued"), [(0, False), (1, True)])
async def test_an_expired_lease_of_a_living_process_is_taken_back(path: Path, after_usec: int, is_rescued: bool) -> None:
    """A process that hangs keeps its leases to their end and no longer; it is no crash, so the task is no suspect."""
    async with running(path) as one, running(path) as hung:
        leased = await add_leased(hung)
        await add(hung, new_record("later"), now_usec=NOW + SECOND, places=1)
        rescued = await one.rescue([QUEUE], now_usec=LEASE_END + after_usec)
        found = await fetch(one, leased.name)

        assert [leased.name] * is_rescued == [record.name for record in rescued]
        assert (TaskState.READY if is_rescued else TaskState.LEASED, 0) == (found.state, found.crashes)
        assert TaskState.LEASED == (await fetch(one, "later")).state
        assert [] == find_drift(path)


async def test_a_lease_that_was_renewed_meanwhile_is_left_alone(path: Path) -> None:
    """A task that a living process has leased anew since its expired lease was seen stays with that process (P4)."""
    async with running(path) as living:
        expired = await add_leased(living)
        await settle(living, expired, Retry(eta_usec=NOW))
        later = LEASE_END + SECOND
        [renewed] = (await lease(living, now_usec=later)).leased
        [process_id] = query(path, "SELECT id FROM taskqueue_process")
        with raw(path) as connection:
            seen = RescueRequest(process_id, [expired.id], {}, later, is_dead=False)

            assert [[]] == rescue(connection, [seen])
        assert renewed == await fetch(living, expired.name)


async def test_a_lease_of_the_last_moment_is_rescued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process leases just before it is seen dead is taken back with the rest, or it would be lost for good (P2)."""
    async with running(path) as store:
        await add(store, new_record("task"))
        with raw(path) as connection:
            connection.execute("INSERT INTO taskqueue_process (id, host, pid, started_usec) VALUES (99, ?, 1, 0)", (socket.gethostname(),))

        def lease_and_die(database_path: str, process_id: int) -> bool:
            with raw(path) as connection:
                statement = "UPDATE taskqueue_task SET state = 1, attempts = 1, process_id = ?, lease_expires_usec = ?"
                connection.execute(statement, (process_id, LEASE_END))
                connection.execute("INSERT OR IGNORE INTO taskqueue_in_flight VALUES (1, ?, 1)", (process_id,))
            return True

        monkeypatch.setattr(_sqlite_setup, "is_dead", lease_and_die)
        rescued = await store.rescue([QUEUE], now_usec=NOW)

        assert ["task"] == [record.name for record in rescued]
        assert [] == find_drift(path)


async def test_a_process_on_another_machine_is_not_judged_by_its_lock(store: SQLiteStore, path: Path) -> None:
    """Of a process on another host only expired leases are taken back, whether or not its side file can be seen."""
    leased = await add_leased(store)
    with raw(path) as connection:
        connection.execute("INSERT INTO taskqueue_process (id, host, pid, started_usec) VALUES (99, 'elsewhere', 1, 0)")
        connection.execute("UPDATE taskqueue_task SET process_id = 99")
        connection.execute("UPDATE taskqueue_in_flight SET process_id = 99")
    early = await store.rescue([QUEUE], now_usec=LEASE_END)
    late = await store.rescue([QUEUE], now_usec=LEASE_END + 1)

    assert ([], [leased.name]) == (early, [record.name for record in late])
    assert 99 in query(path, "SELECT id FROM taskqueue_process")


async def test_a_crash_after_the_drain_began_is_nobodys_fault(path: Path) -> None:
    """Tasks of a process that had announced its end are ready again and no suspects."""
    await crash(path, "a", is_draining=True)
    async with running(path) as store:
        await store.rescue([QUEUE], now_usec=NOW)
        found = await fetch(store, "a")

    assert (TaskState.READY, 0, "interrupted") == (found.state, found.crashes, found.retry_reason)


async def lease_and_crash(path: Path, *queues: QueueConfig, now_usec: int) -> list[str]:
    """Rescue, lease what may start, and crash with it; return the names of what was in flight."""
    async with running(path, *queues) as store:
        await store.rescue(queues, now_usec=now_usec)
        return sorted(record.name for record in (await lease(store, *queues, now_usec=now_usec)).leased)


@pytest.mark.promise("P18")
async def test_the_only_one_in_flight_at_three_crashes_is_dead(path: Path) -> None:
    """A task that was alone in flight at crash_limit crashes in a row is given up, and is kept as long as the queue says."""
    queue = QueueConfig("default", crash_limit=3, dead_retention_seconds=100)
    await crash(path, "poison", queue=queue)
    for _ in range(2):
        assert ["poison"] == await lease_and_crash(path, queue, now_usec=NOW)
    async with running(path, queue) as store:
        await store.rescue([queue], now_usec=NOW + SECOND)
        found = await fetch(store, "poison")

    assert (TaskState.DEAD, "crash", NOW + SECOND, 3) == (found.state, found.dead_reason, found.dead_usec, found.crashes)
    assert [NOW + 101 * SECOND] == query(path, "SELECT keep_until_usec FROM taskqueue_task")


async def test_of_several_in_flight_none_is_charged(path: Path) -> None:
    """When several were in flight, each is suspected and none is charged."""
    queue = QueueConfig("default", crash_limit=1)
    await crash(path, "a", "b", queue=queue)
    async with running(path, queue) as store:
        await store.rescue([queue], now_usec=NOW)

        assert [(TaskState.SUSPECT, 0)] * 2 == [(task.state, task.crashes) for task in [await fetch(store, name) for name in "ab"]]


async def test_the_suspect_is_charged_and_not_its_neighbours(path: Path) -> None:
    """At a crash during the retry of a suspect, tasks of other queues beside it are suspected but not charged."""
    calm = QueueConfig("calm")
    async with running(path, QUEUE, calm) as store:
        await add(store, new_record("innocent", queue=calm, eta_usec=NOW + 1), queue=calm)
    await crash(path, "poison")
    in_flight = await lease_and_crash(path, QUEUE, calm, now_usec=NOW + 1)
    async with running(path, QUEUE, calm) as store:
        await store.rescue([QUEUE, calm], now_usec=NOW + 1)
        poison, innocent = await fetch(store, "poison"), await fetch(store, "innocent", calm)

    assert ["innocent", "poison"] == in_flight
    assert (TaskState.SUSPECT, 2) == (poison.state, poison.crashes)
    assert (TaskState.SUSPECT, 0) == (innocent.state, innocent.crashes)


async def test_a_suspect_interrupted_by_a_drain_stays_one(path: Path) -> None:
    """When a process ends orderly while it retries a suspect, the task stays a suspect and is not charged."""
    await crash(path, "poison")
    async with running(path) as store:
        await store.rescue([QUEUE], now_usec=NOW)
        await lease(store)
        await store.announce_drain()
    async with running(path) as store:
        await store.rescue([QUEUE], now_usec=NOW)
        found = await fetch(store, "poison")

    assert (TaskState.SUSPECT, 1) == (found.state, found.crashes)


async def test_tasks_of_a_queue_that_is_not_configured_any_more_are_rescued(path: Path) -> None:
    """Orphans of a queue without configuration are taken back and never given up: nobody said after how many crashes."""
    gone = QueueConfig("gone", crash_limit=1)
    await crash(path, "a", queue=gone)
    async with running(path) as store:
        [rescued] = await store.rescue([QUEUE], now_usec=NOW)
        found = await fetch(store, "a", gone)

    assert "gone" == rescued.queue_name
    assert (TaskState.SUSPECT, 1) == (found.state, found.crashes)


async def test_a_store_closed_in_peace_leaves_nothing_to_rescue(path: Path) -> None:
    """A store that is closed without leases takes its row and its side file with it."""
    async with running(path) as store:
        leased = await add_leased(store)
        await settle(store, leased, Delete())

    assert [] == query(path, "SELECT * FROM taskqueue_process") == query(path, "SELECT * FROM taskqueue_in_flight")
    assert [path] == list(path.parent.iterdir())


# --- liveness ------------------------------------------------------------------------------------------------------


def test_a_held_lock_proves_a_process_alive(path: Path) -> None:
    """A process is alive while its lock is held, and dead when it is free or the file is gone."""
    lock = ProcessLock(str(path), 7)
    lock.acquire()
    held = is_dead(str(path), 7)
    lock.release(remove=False)
    free = is_dead(str(path), 7)
    os.unlink(lock_path(str(path), 7))

    assert [False, True, True] == [held, free, is_dead(str(path), 7)]


def test_a_lock_that_cannot_be_looked_at_proves_nothing(path: Path) -> None:
    """When the side file cannot be opened the process is not taken for dead."""
    os.mkdir(lock_path(str(path), 7))

    assert not is_dead(str(path), 7)


def test_a_side_file_is_its_owners_alone(path: Path) -> None:
    """The side file has mode 0600, and is removed when it is released; twice is fine."""
    lock = ProcessLock(str(path), 7)
    lock.acquire()
    mode = os.stat(lock_path(str(path), 7)).st_mode & 0o777
    lock.release()
    lock.release()

    assert 0o600 == mode
    assert [] == list(path.parent.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """When the side file cannot be made the error says so."""
    with pytest.raises(StoreReadOnlyError, match="cannot be created"):
        ProcessLock(str(tmp_path / "gone" / "tasks.db"), 7).acquire()


async def test_a_process_that_has_the_former_database_open_is_noticed(path: Path) -> None:
    """A database that was deleted while a process has it open cannot be begun anew beside that process."""
    async with running(path):
        for file in path.parent.glob("tasks.db*"):
            if "process" not in file.name:
                file.unlink()
        with pytest.raises(StoreReplacedError, match="locked by a process"):
            async with running(path):
                pass


async def test_a_side_file_that_nobody_tells_of_is_removed(path: Path) -> None:
    """What a process left that was killed between its row and its side file goes with the next start; the others' stay."""
    held = ProcessLock(str(path), 77)
    async with running(path):
        held.acquire()
        dead_process = "INSERT INTO taskqueue_process (id, host, pid, started_usec) VALUES (66, 'other', 1, 0)"
        query(path, dead_process)
        foreign = [f"{path}-process-{name}" for name in ("", "x", "77-wal", "my-55")]
        for file in (*foreign, lock_path(str(path), 66), lock_path(str(path), 55)):
            Path(file).touch()
        before = set(path.parent.glob("*-process-*"))
        async with running(path):
            pass
        after = set(path.parent.glob("*-process-*"))
    held.release()

    assert {Path(lock_path(str(path), 55))} == before - after
    assert after < before


@pytest.fixture
def child(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Return a process that has leased three tasks and hangs."""
    with subprocess.Popen([sys.executable, CHILD, "lease", path, "3"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert "ready\n" == process.stdout.readline()
            yield process
        finally:
            process.kill()


@pytest.mark.promise("P5")
@pytest.mark.slow
async def test_the_tasks_of_a_killed_process_are_noticed_in_time(child: subprocess.Popen[str], path: Path) -> None:
    """When another process is killed, this one is told within the bound of five seconds and takes its tasks back (P5)."""
    orphans: list[float] = []
    async with running(path, on_orphans=lambda: orphans.append(time.monotonic())) as store:
        alive = await store.rescue([QUEUE], now_usec=NOW)
        child.kill()
        child.wait()
        seconds = await wait_until(lambda: orphans)
        rescued = await store.rescue([QUEUE], now_usec=NOW)

    assert [] == alive
    assert seconds < 5
    assert ["task-0", "task-1", "task-2"] == sorted(record.name for record in rescued)
    assert [] == find_drift(path)


@pytest.mark.promise("P4", "P5")
@pytest.mark.slow
async def test_a_stopped_process_loses_its_tasks_by_their_expiry_alone(child: subprocess.Popen[str], path: Path) -> None:
    """A process that stands still is alive: its leases hold to their end, and then its tasks are another's."""
    async with running(path) as store:
        child.send_signal(signal.SIGSTOP)
        early = await store.rescue([QUEUE], now_usec=LEASE_END)
        late = await store.rescue([QUEUE], now_usec=LEASE_END + 1)
        exchange = await lease(store, now_usec=LEASE_END + 1)

    assert (0, 3) == (len(early), len(late))
    assert [2, 2, 2] == [record.lease_token for record in exchange.leased]


# --- watching others -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_watch")
async def test_what_others_write_is_noticed_and_what_we_write_is_not(path: Path) -> None:
    """When another connection writes, on_change is called; after a write of our own it is not."""
    changes: list[None] = []
    async with running(path, on_change=lambda: changes.append(None)) as store:
        await wait_until(lambda: changes)
        first = len(changes)
        await add(store, new_record())
        await asyncio.sleep(0.05)
        after_ours = len(changes)
        with raw(path) as connection:
            connection.execute("CREATE TABLE application (id)")
        await wait_until(lambda: len(changes) > after_ours)

    assert (1, 1) == (first, after_ours)


async def test_a_write_of_another_process_is_noticed_within_a_tenth_of_a_second(path: Path) -> None:
    """While others have the file open it is looked at 20 times a second."""
    changes: list[None] = []
    async with running(path) as other, running(path, on_change=lambda: changes.append(None)):
        await wait_until(lambda: changes)
        await asyncio.sleep(0.1)
        before = len(changes)
        await add(other, new_record())
        seconds = await wait_until(lambda: len(changes) > before)

    assert seconds < 0.2


@pytest.mark.usefixtures("quick_watch")
async def test_who_was_rescued_is_not_reported_again(path: Path) -> None:
    """Once the tasks of a dead process have been taken back, nobody is woken for it any more."""
    await crash(path, "a")
    orphans: list[None] = []
    async with running(path, on_orphans=lambda: orphans.append(None)) as store:
        await wait_until(lambda: orphans)
        await store.rescue([QUEUE], now_usec=NOW)
        await asyncio.sleep(0.03)
        before = len(orphans)
        await asyncio.sleep(0.1)

        assert before == len(orphans)


@pytest.mark.promise("P5")
@pytest.mark.usefixtures("quick_watch")
async def test_leases_of_living_processes_are_looked_at_all_the_time(path: Path) -> None:
    """As long as another process has leases, on_orphans is called with every look: it may hang, and they may expire (P5)."""
    orphans: list[None] = []
    async with running(path) as other, running(path, on_orphans=lambda: orphans.append(None)):
        await asyncio.sleep(0.05)
        before = len(orphans)
        leased = await add_leased(other)
        await wait_until(lambda: len(orphans) > 2)
        await settle(other, leased, Delete())
        await asyncio.sleep(0.05)
        after = len(orphans)
        await asyncio.sleep(0.05)

        assert (0, after) == (before, len(orphans))


@pytest.mark.promise("P5")
@pytest.mark.usefixtures("quick_watch")
async def test_a_task_whose_lease_expires_in_a_process_that_hangs_is_delivered_by_another(tmp_path: Path) -> None:
    """When the lease of a process that stands still ends, another process delivers the task with its next look."""
    async with serving(tmp_path) as bench, running(tmp_path / "tasks.db") as hung:
        now = bench.clock.time_usec()
        await add(hung, new_record("task", eta_usec=now), now_usec=now, places=1)
        await bench.clock.advance(40.9)
        early = list(bench.names)
        await bench.clock.advance(0.2)
        async with asyncio.timeout(5):
            while not bench.names:
                await asyncio.sleep(0.01)
                await bench.service.run_until_idle()

    assert ([], ["task"]) == (early, bench.names)


@pytest.mark.row(101)
async def test_a_lease_far_in_the_future_is_taken_back_from_the_dead_alone(path: Path) -> None:
    """Where a clock has jumped, a lease of the year 2100 is left to a living process, and taken back from a dead one."""
    far = NOW + 80 * 365 * 86_400 * SECOND
    async with running(path) as store:
        async with running(path) as other:
            leased = await add_leased(other)
            with raw(path) as connection:
                connection.execute("UPDATE taskqueue_task SET lease_expires_usec = ?", (far,))
            from_the_living = await store.rescue([QUEUE], now_usec=NOW + 100 * SECOND)
        from_the_dead = await store.rescue([QUEUE], now_usec=NOW + 100 * SECOND)

    assert ([], [leased.name]) == (from_the_living, [record.name for record in from_the_dead])


async def test_a_lease_of_a_process_that_nobody_knows_is_taken_back_when_it_ends(path: Path) -> None:
    """A task that is leased by a process without a row, as by a hand in the file, is ready again when its lease ends."""
    async with running(path) as store:
        leased = await add_leased(store)
        with raw(path) as connection:
            connection.execute("UPDATE taskqueue_task SET process_id = 99")
        early = await store.rescue([QUEUE], now_usec=LEASE_END)
        late = await store.rescue([QUEUE], now_usec=LEASE_END + 1)

        assert ([], [leased.name]) == (early, [record.name for record in late])
        assert (TaskState.READY, 0) == ((found := await fetch(store, leased.name)).state, found.crashes)


@pytest.mark.usefixtures("quick_watch")
async def test_watching_survives_trouble(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A look around that fails is no news, and the next ones go on."""
    caplog.set_level(logging.DEBUG, "aiotaskqueue")
    changes: list[None] = []
    async with running(path, on_change=lambda: changes.append(None)):
        with raw(path) as connection:
            connection.execute("ALTER TABLE taskqueue_process RENAME TO elsewhere")
            await wait_until(lambda: "could not be watched" in caplog.text)
            connection.execute("ALTER TABLE elsewhere RENAME TO taskqueue_process")
            before = len(changes)
            connection.execute("CREATE TABLE application (id)")
        await wait_until(lambda: len(changes) > before)

    assert "no such table" in caplog.text


# --- sweeping ------------------------------------------------------------------------------------------------------


async def test_what_has_expired_is_swept(store: SQLiteStore, path: Path) -> None:
    """Tombstones and dead tasks go in the microsecond in which their time is over, with all their parts, and not before."""
    done = await add_leased(store, new_record("done"))
    await settle(store, done, Delete(NOW + SECOND))
    given_up = await add_leased(store, new_record("given-up", payload=b"x" * 5000))
    await settle(store, given_up, dead(given_up, keep_until_usec=NOW + SECOND))
    early = await store.sweep(now_usec=NOW + SECOND - 1, limit=10)
    kept = [query(path, f"SELECT count(*) FROM taskqueue_{table}") for table in ("tombstone", "task", "body", "attempt")]
    late = await store.sweep(now_usec=NOW + SECOND, limit=10)
    left = [query(path, f"SELECT count(*) FROM taskqueue_{table}") for table in ("tombstone", "task", "body", "attempt")]

    assert (0, 2) == (early, late)
    assert ([[1]] * 4, [[0]] * 4) == (kept, left)


@pytest.mark.row(100)
async def test_sweeping_is_done_in_slices(store: SQLiteStore, path: Path) -> None:
    """A sweep removes no more of a kind than its limit; repeated, all that has expired goes, and nothing else."""
    with raw(path) as connection:
        connection.executemany("INSERT INTO taskqueue_tombstone VALUES (1, ?, ?)", [(f"n{i}", NOW - i) for i in range(25)])
        connection.execute("INSERT INTO taskqueue_tombstone VALUES (1, 'later', ?)", (NOW + 1,))
    swept = [await store.sweep(now_usec=NOW, limit=10) for _ in range(4)]

    assert [10, 10, 5, 0] == swept
    assert ["later"] == query(path, "SELECT name FROM taskqueue_tombstone")


async def test_the_name_of_a_swept_dead_task_is_free(store: SQLiteStore) -> None:
    """A dead task holds its name until it is swept."""
    leased = await add_leased(store, new_record("name"))
    await settle(store, leased, dead(leased, keep_until_usec=NOW))
    await store.sweep(now_usec=NOW, limit=1)
    await add(store, new_record("name"))

    assert TaskState.READY == (await fetch(store, "name")).state


async def test_living_tasks_are_not_swept(store: SQLiteStore) -> None:
    """Ready, leased and suspect tasks stay, however old they are."""
    await add_leased(store, new_record("leased"))
    await add(store, new_record("ready"))

    assert 0 == await store.sweep(now_usec=NOW + 10**15, limit=10)


# --- configuration, secrets, looking -------------------------------------------------------------------------------


async def test_queues_with_tasks_but_no_configuration_are_named(path: Path) -> None:
    """Configuring returns the queues that have tasks of any state and are not configured, and keeps their tasks."""
    gone = QueueConfig("gone")
    async with running(path, QUEUE, gone, QueueConfig("empty")) as store:
        await add(store, new_record(queue=gone), queue=gone)
        orphans = await store.configure([QUEUE], now_usec=NOW)

    assert ["gone"] == orphans


async def test_all_processes_share_the_first_secret(path: Path) -> None:
    """The first secret is stored and given to everybody after; secrets come newest first."""
    async with running(path) as one, running(path) as two:
        first = await one.fetch_secrets(b"1" * 32, now_usec=NOW)
        second = await two.fetch_secrets(b"2" * 32, now_usec=NOW)
        with raw(path) as connection:
            connection.execute("INSERT INTO taskqueue_secret (secret, created_usec) VALUES (?, ?)", (b"3" * 32, NOW + 1))
        third = await one.fetch_secrets(b"4" * 32, now_usec=NOW + 2)

    assert [[b"1" * 32], [b"1" * 32], [b"3" * 32, b"1" * 32]] == [first, second, third]


async def test_a_task_that_is_not_there_is_none(store: SQLiteStore) -> None:
    """Looking for a name or a queue that is not there gives None."""
    assert (None, None) == (await store.get_task("default", "x"), await store.get_task("nowhere", "x"))


async def test_tasks_are_listed_page_by_page(store: SQLiteStore) -> None:
    """Tasks come by ETA and name, of the states asked for, those after a given one, and no more than the limit."""
    await add_leased(store, new_record("leased"))
    await add(store, *(new_record(name, eta_usec=NOW + eta) for name, eta in [("b", 1), ("a", 1), ("c", 0)]))
    pages = [
        await store.list_tasks("default", states=[TaskState.READY, TaskState.LEASED], limit=2),
        await store.list_tasks("default", states=[TaskState.READY], after=(NOW + 1, "a")),
        await store.list_tasks("default", states=[TaskState.DEAD]),
        await store.list_tasks("nowhere", states=[TaskState.READY]),
    ]

    assert [["c", "leased"], ["b"], [], []] == [[record.name for record in page] for page in pages]


async def test_statistics_count_what_lives(store: SQLiteStore) -> None:
    """Figures: tasks that are not dead, the oldest ETA of those that are due and waiting, those in flight; zeros for no queue."""
    given_up = await add_leased(store)
    await settle(store, given_up, dead(given_up))
    await add_leased(store)
    await add(store, new_record(eta_usec=NOW - 5), new_record(eta_usec=NOW + 5))

    assert [StoredStatistics(3, NOW - 5, 1, executed_last_minute=2), StoredStatistics(0, None, 0)] == await store.fetch_statistics(
        ["default", "nowhere"], now_usec=NOW
    )


async def test_suspects_wait_like_others(path: Path) -> None:
    """The oldest ETA is also that of a task that waits for being retried alone, if it is due."""
    async with running(path) as store:
        await add(store, new_record("suspect", eta_usec=NOW - 5), places=1)
    async with running(path) as store:
        await store.rescue([QUEUE], now_usec=NOW)
        await add(store, new_record("later", eta_usec=NOW - 3))
        early, late = [(await store.fetch_statistics(["default"], now_usec=now))[0].oldest_eta_usec for now in (NOW - 6, NOW)]

    assert (None, NOW - 5) == (early, late)


async def test_a_task_without_failed_attempts_has_no_log(store: SQLiteStore) -> None:
    """A log is empty until an attempt has failed."""
    leased = await add_leased(store)
    empty = await store.list_attempts(leased)
    await settle(store, leased, Retry(eta_usec=NOW, log=log_of(leased, detail="why")))

    assert ([], [log_of(leased, detail="why")]) == (empty, await store.list_attempts(leased))
