"""Rows that no version of ours would write: each is kept as a dead task that says why, and all others go on (row 99, P24)."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from open_stores import (
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
)

from aiotaskqueue import QueueConfig, Task, TaskQueueService
from aiotaskqueue._record import TaskRecord, TaskState
from aiotaskqueue.errors import BadTaskStateError, StoreError
from aiotaskqueue.stores._base import Retry
from aiotaskqueue.stores._sqlite_errors import translate
from aiotaskqueue.stores._sqlite_verbs import Verbs
from aiotaskqueue.stores.sqlite import SQLiteStore
from aiotaskqueue.testing import RecordingDelivery, VirtualClock

pytestmark = [pytest.mark.anyio, pytest.mark.row(99)]

OTHER = QueueConfig("other")
CANARY = "canary-7f3a"

# What is written into a row that waits for its turn, and what is said of it then.
FAULTS = {
    "headers that are no JSON": (f"headers = '[[\"{CANARY}'", "its headers are no JSON list of pairs of text"),
    "headers that are no list": (f"headers = '{{\"{CANARY}\": 1}}'", "its headers are no JSON list of pairs of text"),
    "headers that are no text": (f"headers = '[[\"{CANARY}\", 1]]'", "its headers are no JSON list of pairs of text"),
    "headers too deep": (f"headers = '{'[' * 100_000}'", "its headers are no JSON list of pairs of text"),
    "options of a newer version": (f"retry_options = '{{\"{CANARY}\": 1}}'", "its retry options are not valid"),
    "options out of range": ("retry_options = '{\"task_retry_limit\": -7}'", "its retry options are not valid"),
    "options that are no dict": (f"retry_options = '[\"{CANARY}\"]'", "its retry options are not valid"),
    "a method of a newer version": (f"method = '{CANARY}'", "its method is unknown"),
    "no body": ("has_body = 1", "its payload is missing"),
    "attempts of -1": ("attempts = -1", "its number of attempts is too small"),
    "attempts of -9": ("attempts = -9", "a number is out of range"),
    "attempts without end": ("attempts = 9223372036854775807", "a number is out of range"),
    "a token of -9": ("lease_token = -9", "a number is out of range"),
    "a deadline without end": ("dispatch_deadline_usec = 9223372036854775807", "a number is out of range"),
    "a text that is no UTF-8": (f"url = CAST(x'2f{CANARY.encode().hex()}ff' AS TEXT)", "a text is not UTF-8"),
}
EVERY_FAULT = pytest.mark.parametrize(("change", "detail"), FAULTS.values(), ids=FAULTS)


def spoil(path: Path, name: str, change: str) -> None:
    """Write into a task's row what no version of ours would."""
    with raw(path) as connection:
        connection.execute("PRAGMA ignore_check_constraints = 1")
        connection.execute(f"UPDATE taskqueue_task SET {change} WHERE name = ?", (name,))


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as an error."""
    return [record.message for record in caplog.records if record.levelname == "ERROR"]


async def dead_tasks(store: SQLiteStore) -> list[TaskRecord]:
    """Return the dead tasks."""
    return list(await store.list_tasks("default", states=[TaskState.DEAD]))


# --- leasing -------------------------------------------------------------------------------------------------------


@EVERY_FAULT
async def test_the_others_are_leased(path: Path, caplog: pytest.LogCaptureFixture, change: str, detail: str) -> None:
    """A row that cannot be read is not leased and becomes a dead task, which says why and shows nothing of it; the others go on."""
    async with running(path) as store:
        await add(store, *(new_record(name) for name in ("a", "bad", "c")))
        spoil(path, "bad", change)
        leased = (await lease(store)).leased
        [kept] = await dead_tasks(store)
        log = await store.list_attempts(kept)
        trouble = store.trouble

    assert ["a", "c"] == sorted(record.name for record in leased)
    assert ("bad", "unreadable", NOW) == (kept.name, kept.dead_reason, kept.dead_usec)
    assert [("unreadable", f"The stored task cannot be read: {detail}.")] == [(attempt.reason, attempt.detail) for attempt in log]
    assert [f"Task 'bad' of queue 'default' cannot be read and is kept as a dead task: {detail}."] == errors_in(caplog)
    assert CANARY not in caplog.text
    assert trouble is None
    assert [] == find_drift(path)


async def test_a_crowd_of_them_is_no_obstacle(path: Path) -> None:
    """More of them than there are places, and than are looked at in one transaction, hold nobody up."""
    async with running(path) as store:
        await add(store, *(new_record(f"bad-{i}") for i in range(1500)), new_record("good", eta_usec=NOW + 1))
        with raw(path) as connection:
            connection.execute("UPDATE taskqueue_task SET method = 'BREW' WHERE name <> 'good'")
        leased = (await lease(store, now_usec=NOW + 1)).leased

    assert ["good"] == [record.name for record in leased]
    assert [1500] == query(path, "SELECT count(*) FROM taskqueue_task WHERE dead_reason = 'unreadable'")


@pytest.mark.parametrize("what", ["state = 3", "is_forced = 1, eta_usec = 9000000000000000"])
async def test_suspects_and_forced_tasks_are_no_exception(path: Path, what: str) -> None:
    """A row that cannot be read is met as well where it is to be retried alone, or where somebody wants it to run now."""
    async with running(path, QUEUE, OTHER) as store:
        await add(store, new_record("bad"), new_record("good"))
        await add(store, new_record("neighbour", queue=OTHER), queue=OTHER)
        spoil(path, "bad", f"{what}, headers = '1'")
        leased = (await lease(store, QUEUE, OTHER)).leased

        assert [("bad", "unreadable")] == [(record.name, record.dead_reason) for record in await dead_tasks(store)]
    assert ["good", "neighbour"] == sorted(record.name for record in leased)


async def test_what_ended_beside_it_is_recorded(path: Path) -> None:
    """Outcomes that are offered together with a lease that meets such a row are recorded all the same."""
    async with running(path) as store:
        leased = await add_leased(store, new_record("done"))
        await add(store, new_record("bad"))
        spoil(path, "bad", "headers = '1'")

        assert await settle(store, leased, Retry(eta_usec=NOW + SECOND, log=log_of(leased)))
        assert [] == (await lease(store)).leased
        assert TaskState.READY is (await fetch(store, "done")).state


async def test_what_is_not_its_fault_is_raised(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no row is to blame the error is the caller's, as ever."""

    def fail(self: Verbs, connection: sqlite3.Connection, requests: object) -> None:
        raise sqlite3.IntegrityError("CHECK constraint failed")

    monkeypatch.setattr(Verbs, "exchange", fail)
    async with running(path) as store:
        await add(store, new_record("good"))
        with pytest.raises(StoreError, match="CHECK constraint failed"):
            await lease(store)

        assert TaskState.READY is (await fetch(store, "good")).state


async def test_trouble_of_the_file_is_not_blamed_on_a_row(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While tasks are tried alone, an error of the disk is one of the disk."""
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL

    def fail(*arguments: object) -> None:
        raise full

    async with running(path) as store:
        await add(store, new_record("bad"))
        spoil(path, "bad", "headers = '1'")
        monkeypatch.setattr("aiotaskqueue.stores._sqlite_quarantine.record_of_row", fail)
        with pytest.raises(StoreError, match="no space left"):
            await lease(store)

    assert [0] == query(path, "SELECT state FROM taskqueue_task")


async def test_an_error_of_sqlites_is_not_blamed_on_the_row(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When SQLite fails at a task's body, that is what is raised."""
    async with running(path) as store:
        await add(store, new_record("large", payload=bytes(5000)))
        monkeypatch.setattr("aiotaskqueue.stores._sqlite_rows.SELECT_BODY", "SELECT nonsense(?)")
        with pytest.raises(StoreError, match="no such function"):
            await store.get_task("default", "large")


# --- of a process that has ended, or of our own --------------------------------------------------------------------


@pytest.mark.parametrize("change", ["headers = '1'", "crashes = -9"])
async def test_it_is_no_obstacle_to_a_rescue(path: Path, change: str) -> None:
    """Where a process has died the tasks that it had leased are taken back, but for the one that cannot be read: it is dead."""
    async with running(path) as gone:
        for name in ("a", "bad"):
            await add_leased(gone, new_record(name))
    spoil(path, "bad", change)
    async with running(path) as store:
        rescued = await store.rescue([QUEUE], now_usec=NOW)
        [kept] = await dead_tasks(store)

    assert ["a"] == [record.name for record in rescued]
    assert ("bad", "unreadable", 1) == (kept.name, kept.dead_reason, kept.attempts)
    assert [] == find_drift(path)
    assert [] == query(path, "SELECT id FROM taskqueue_process")


async def test_it_is_no_obstacle_to_our_own_leases(path: Path) -> None:
    """Where we ask what we have leased, after a commit of which we were not told, the one that cannot be read is dead."""
    async with running(path) as store:
        for name in ("a", "bad"):
            await add_leased(store, new_record(name))
        spoil(path, "bad", "retry_options = '{'")

        assert ["a"] == [record.name for record in await store.list_own_leases()]
        assert ["bad"] == [record.name for record in await dead_tasks(store)]
        assert [] == find_drift(path)


# --- looking, and managing -----------------------------------------------------------------------------------------


@EVERY_FAULT
@pytest.mark.parametrize("is_leased", [False, True])
async def test_it_can_be_looked_at_before_anybody_has_tried_to_run_it(path: Path, change: str, detail: str, is_leased: bool) -> None:
    """Lists and look-ups show what can be read of such a row, whatever its state."""
    async with running(path) as store:
        if is_leased:
            await add_leased(store, new_record("bad"))
        else:
            await add(store, new_record("bad"))
        spoil(path, "bad", change)
        shown = await fetch(store, "bad")
        listed = await store.list_tasks("default", states=list(TaskState))

    assert [shown] == listed
    assert (TaskState.LEASED if is_leased else TaskState.READY) is shown.state
    assert shown.attempts >= is_leased


async def test_a_state_that_no_version_knows_is_shown_as_dead_and_can_be_revived(path: Path) -> None:
    """A task of a state that we do not know is never leased; it is shown as dead, and revive makes it a task again."""
    async with running(path) as store:
        await add(store, new_record("bad"), new_record("good"))
        spoil(path, "bad", "state = 7")
        leased = (await lease(store)).leased
        shown = await fetch(store, "bad")

        assert TaskState.DEAD is await store.force(QUEUE, "bad")
        assert [] == await store.revive(QUEUE, ["bad"], [], now_usec=NOW)
        assert TaskState.READY is (await fetch(store, "bad")).state
    assert ["good"] == [record.name for record in leased]
    assert TaskState.DEAD is shown.state


@pytest.mark.parametrize("suffix", ["headers = '1'", "has_body = 1", "name = CAST(x'62616420ff' AS TEXT)"])
async def test_it_can_be_deleted_and_purged(path: Path, suffix: str) -> None:
    """Deleting by name and purging need not read a row."""
    async with running(path) as store:
        await add(store, new_record("one"), new_record("two"))
        spoil(path, "one", suffix)
        spoil(path, "two", "headers = '1'")
        await lease(store)

        assert [True] == await store.delete_tasks(QUEUE, ["two"], now_usec=NOW)
        await store.purge(QUEUE, now_usec=NOW)
        assert [] == await store.list_tasks("default", states=list(TaskState))


async def test_the_log_of_a_task_is_shown_as_well_as_it_can_be(path: Path) -> None:
    """A detail in the log of attempts that is not UTF-8 is shown with marks for what cannot be read."""
    async with running(path) as store:
        leased = await add_leased(store, new_record("name"))
        await settle(store, leased, dead(leased))
        with raw(path) as connection:
            connection.execute("UPDATE taskqueue_attempt SET detail = CAST(x'61ff' AS TEXT)")
        [attempt] = await store.list_attempts(await fetch(store, "name"))

    assert "a\ufffd" == attempt.detail


def test_a_text_that_is_no_utf_8_is_not_quoted() -> None:
    """SQLite's driver quotes what it cannot decode; we do not (P24)."""
    exc = sqlite3.OperationalError(f"Could not decode to UTF-8 column 'url' with text '{CANARY}'")

    assert "A text in the database '/data/tasks.db' is not UTF-8." == str(translate(exc, "/data/tasks.db"))


# --- by a service --------------------------------------------------------------------------------------------------


async def test_a_service_goes_on_and_an_operator_repairs_the_task(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A service delivers the others and stays well; the dead one is found among the dead, and revived with a new payload."""
    clock, delivery = VirtualClock(), RecordingDelivery()
    async with TaskQueueService(path, delivery=delivery, clock=clock) as service:
        queue = service.queue()
        for name in ("bad", "good"):
            await queue.add(Task(b"x", url="/w", name=name, countdown=10))
        spoil(path, "bad", "has_body = 1")
        await clock.advance(11)
        await service.run_until_idle()
        health = service.health()
        [kept] = [stored async for stored in queue.dead_tasks()]
        with pytest.raises(BadTaskStateError, match="is dead; revive it instead"):
            await queue.run_task("bad")
        await queue.revive("bad", payload=b"y")
        await service.run_until_idle()

    assert health.is_ok
    assert ("bad", "unreadable") == (kept.name, kept.dead_reason)
    assert [("good", b"x"), ("bad", b"y")] == [(delivered.record.name, delivered.record.payload) for delivered in delivery.deliveries]
    assert ["Task 'bad' of queue 'default' cannot be read and is kept as a dead task: its payload is missing."] == errors_in(caplog)
