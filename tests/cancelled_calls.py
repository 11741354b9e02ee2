"""The calls that `test_cancellation` cancels: what each does to the world, and the stage on which that is looked at."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
from cancelling import HANGS_SECONDS
from on_clock import turns, until
from open_stores import find_drift, query

import aiotaskqueue
from aiotaskqueue import QueueConfig, QueueStatistics, Task, TaskQueueService, TaskRetryOptions, TaskState
from aiotaskqueue._clock import Wakeup
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.stores.sqlite import SQLiteStore
from aiotaskqueue.testing import RecordingDelivery, VirtualClock

LATER_SECONDS = 3600

QUEUES = (QueueConfig("default"), QueueConfig("other"), QueueConfig("pull", mode="pull"))


# --- the stage: a service that is looked at from outside -----------------------------------------------------------


FATE = """
    SELECT
        (SELECT state FROM taskqueue_task WHERE name = ?1),
        (SELECT is_forced FROM taskqueue_task WHERE name = ?1),
        (SELECT count(*) FROM taskqueue_tombstone WHERE name = ?1)
"""


@attrs.define
class Stage:
    """A running service, and a connection to its database that knows nothing of it."""

    service: TaskQueueService
    store: SQLiteStore
    delivery: RecordingDelivery
    database: sqlite3.Connection
    number: int = 0
    """Of the moment."""

    @property
    def name(self) -> str:
        """The name of the task that the call of this moment is about."""
        return f"n{self.number}"

    def fate(self, name: str | None = None) -> str:
        """Return in one word what has become of a task, of that of the moment unless another is named."""
        name = name or self.name
        [(state, is_forced, tombstones)] = query(self.database, FATE, name)
        deliveries = sum(delivered.record.name == name for delivered in self.delivery.deliveries)
        if is_forced:
            return "forced"
        known = {
            (None, 0, 0): "never",
            (None, 1, 1): "done",
            (None, 1, 2): "done again",
            (None, 1, 0): "deleted",
            (TaskState.READY, 0, 0): "waits",
            (TaskState.DEAD, 0, 1): "dead",
        }
        return known.get((state, tombstones, deliveries), f"state {state}, {tombstones} tombstones, {deliveries} deliveries")

    def fates(self) -> tuple[str, ...]:
        """Return what has become of three tasks, named after that of the moment."""
        return tuple(self.fate(f"{self.name}-{number}") for number in range(3))

    def fate_and_pause(self) -> tuple[str, bool]:
        """Return what has become of the task, and whether its queue is paused."""
        return self.fate(), self.is_paused()

    def is_paused(self) -> bool:
        """Whether the other queue is stored as paused."""
        [is_paused] = query(self.database, "SELECT is_paused FROM taskqueue_queue WHERE name = 'other'")
        return bool(is_paused)

    async def settle(self) -> None:
        """Wait until everything that is due is done."""
        async with asyncio.timeout(HANGS_SECONDS):
            await self.service.run_until_idle()

    async def find_faults(self) -> list[str]:
        """Return what is wrong with the service now that everything has settled: it should be as good as new."""
        await self.service.add(url="/w", name=f"fresh-{self.number}")
        expected = "waits" if self.service._is_paused else "done"
        faults = [] if await comes_true(lambda: self.fate(f"fresh-{self.number}") == expected) else ["a fresh task is not delivered"]
        dispatcher = self.service._dispatcher
        assert dispatcher is not None
        if not await comes_true(lambda: dispatcher._free_places == dispatcher._places):
            faults.append(f"{dispatcher._places - dispatcher._free_places} places are lost")
        if not await comes_true(lambda: not query(self.database, "SELECT name FROM taskqueue_task WHERE state = 1")):
            faults.append("a lease is left")
        if find_drift(self.database):
            faults.append(f"drift {find_drift(self.database)}")
        if not self.service.health().is_ok:
            faults.append(f"health {self.service.health().reasons}")
        self.database.execute("BEGIN IMMEDIATE")
        self.database.execute("ROLLBACK")
        return faults


async def comes_true(condition: Callable[[], bool]) -> bool:
    """Wait until the condition holds, without doing anything for it; return whether it does."""
    with contextlib.suppress(TimeoutError):
        await until(condition)
    return condition()


@contextlib.asynccontextmanager
async def staged(path: Path, **arguments: Any) -> AsyncIterator[Stage]:
    """Run a service on a new database."""
    store = SQLiteStore(str(path), durability="normal")

    async def respond(record: TaskRecord) -> int:
        if record.url == "/slow":
            await turns(10)
        is_first = sum(delivered.record.name == record.name for delivered in delivery.deliveries) == 1
        return 500 if record.url == "/fails-once" and is_first else 200

    delivery = RecordingDelivery(respond)
    async with TaskQueueService(store=store, **{"delivery": delivery, "queues": QUEUES, **arguments}) as service:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=5)) as database:
            yield Stage(service, store, delivery, database)


# --- the calls -----------------------------------------------------------------------------------------------------


async def nothing(stage: Stage) -> None:
    """Prepare nothing."""


@attrs.frozen
class Case:
    """A call that is cancelled: what comes before it, and how the world may look afterwards."""

    call: Callable[[Stage], Awaitable[object]]
    before: object
    """What `look` finds when it did not happen."""
    after: object
    """What `look` finds when it did."""
    prepare: Callable[[Stage], Awaitable[object]] = nothing
    look: Callable[[Stage], object] = Stage.fate
    arguments: dict[str, Any] = attrs.Factory(dict)
    """Of the service."""
    is_busy: bool = False
    """What was prepared is still going on when it is called."""

    def is_legal(self, stage: Stage) -> bool:
        """Whether the world looks as before the call or as after it."""
        return self.look(stage) in (self.before, self.after)


def new_task(stage: Stage, **arguments: Any) -> Task:
    """Return the task that the moment is about."""
    return Task(**{"url": "/w", "name": stage.name, **arguments})


def new_tasks(stage: Stage) -> list[Task]:
    """Return three tasks that the moment is about; the last one is not due."""
    countdowns = (0, 0, LATER_SECONDS)
    return [Task(url="/w", name=f"{stage.name}-{number}", countdown=countdown) for number, countdown in enumerate(countdowns)]


async def add_for_later(stage: Stage) -> None:
    """Add a task that is not due."""
    await stage.service.queue("other").add(new_task(stage, countdown=LATER_SECONDS))


async def add_to_other(stage: Stage) -> None:
    """Let three tasks be in the other queue, which are not due."""
    await stage.service.queue("other").purge()
    for number in range(3):
        await stage.service.queue("other").add(Task(url="/w", name=f"{stage.name}-{number}", countdown=LATER_SECONDS))


async def add_and_die(stage: Stage) -> None:
    """Let a task be given up."""
    options = TaskRetryOptions(task_retry_limit=0)
    await stage.service.queue("other").add(new_task(stage, payload="old", url="/fails-once", retry_options=options))


async def add_and_pause(stage: Stage) -> None:
    """Let a task that is due wait in a queue that is paused."""
    await stage.service.queue("other").pause()
    await stage.service.queue("other").add(new_task(stage))


async def resume_all(stage: Stage) -> None:
    """Pause nothing."""
    await stage.service.queue("other").resume()
    await stage.service.resume()


async def add_slow(stage: Stage) -> None:
    """Let a task be delivered that takes its time."""
    await stage.service.add(url="/slow", name=stage.name)


def in_context(call: Callable[[Stage], Awaitable[object]]) -> Callable[[Stage], Awaitable[object]]:
    """Return the call as it is made where its service is the current one."""

    async def call_in_context(stage: Stage) -> None:
        with stage.service.current():
            await call(stage)

    return call_in_context


async def collect(stored: Any) -> list[Any]:
    """Return all that an async iterator gives."""
    return [item async for item in stored]


def pauses(stage: Stage) -> bool:
    """Whether this process is paused."""
    return bool(stage.service._is_paused)


def revived(stage: Stage) -> tuple[str, bytes | None]:
    """Return what has become of the task, and with which payload it was last delivered."""
    payloads = [delivered.record.payload for delivered in stage.delivery.deliveries if delivered.record.name == stage.name]
    return stage.fate(), payloads[-1]


ALL_NEVER, ALL_LATER, ALL_DELETED = (("never",) * 3, ("waits",) * 3, ("deleted",) * 3)
ALL_ADDED = ("done", "done", "waits")


def looks(call: Callable[[Stage], Awaitable[object]]) -> Case:
    """Return the case of a call that changes nothing."""
    return Case(call, ALL_LATER, ALL_LATER, prepare=add_to_other, look=Stage.fates)


CASES = {
    "add": Case(in_context(lambda stage: aiotaskqueue.add(url="/w", name=stage.name)), "never", "done"),
    "Task.add": Case(in_context(lambda stage: new_task(stage).add()), "never", "done"),
    "TaskQueueService.add": Case(lambda stage: stage.service.add(url="/w", name=stage.name), "never", "done"),
    "TaskQueueService.add_tasks": Case(
        lambda stage: stage.service.add_tasks("default", new_tasks(stage)), ALL_NEVER, ALL_ADDED, look=Stage.fates
    ),
    "Queue.add": Case(lambda stage: stage.service.queue().add(new_tasks(stage)), ALL_NEVER, ALL_ADDED, look=Stage.fates),
    "Queue.delete_tasks": Case(
        lambda stage: stage.service.queue("other").delete_tasks(new_tasks(stage)),
        ALL_LATER,
        ALL_DELETED,
        prepare=add_to_other,
        look=Stage.fates,
    ),
    "Queue.delete_tasks_by_name": Case(
        lambda stage: stage.service.queue("other").delete_tasks_by_name(stage.name), "waits", "deleted", prepare=add_for_later
    ),
    "Queue.purge": Case(lambda stage: stage.service.queue("other").purge(), ALL_LATER, ALL_DELETED, prepare=add_to_other, look=Stage.fates),
    "Queue.pause": Case(lambda stage: stage.service.queue("other").pause(), False, True, prepare=resume_all, look=Stage.is_paused),
    "Queue.resume": Case(
        lambda stage: stage.service.queue("other").resume(),
        ("waits", True),
        ("done", False),
        prepare=add_and_pause,
        look=Stage.fate_and_pause,
    ),
    "Queue.run_task": Case(lambda stage: stage.service.queue("other").run_task(stage.name), "waits", "done", prepare=add_for_later),
    "Queue.revive": Case(lambda stage: stage.service.queue("other").revive(stage.name), "dead", "done again", prepare=add_and_die),
    "Queue.get_task": looks(lambda stage: stage.service.queue("other").get_task(f"{stage.name}-0")),
    "Queue.list_tasks": looks(lambda stage: collect(stage.service.queue("other").list_tasks())),
    "Queue.dead_tasks": looks(lambda stage: collect(stage.service.queue("other").dead_tasks())),
    "Queue.fetch_statistics": looks(lambda stage: stage.service.queue("other").fetch_statistics()),
    "QueueStatistics.fetch": looks(in_context(lambda stage: QueueStatistics.fetch(["default", "other"]))),
    "TaskQueueService.statistics": looks(lambda stage: stage.service.statistics()),
    "TaskQueueService.fetch_stored_statistics": looks(lambda stage: stage.service.fetch_stored_statistics(["default"])),
    "TaskQueueService.get_filtered_tasks": looks(lambda stage: stage.service.get_filtered_tasks()),
    "TaskQueueService.pause": Case(lambda stage: stage.service.pause(), False, True, prepare=resume_all, look=pauses),
    "TaskQueueService.resume": Case(
        lambda stage: stage.service.resume(), True, False, prepare=lambda stage: stage.service.pause(), look=pauses
    ),
    "TaskQueueService.run_until_idle": Case(lambda stage: stage.service.run_until_idle(), "done", "done", prepare=add_slow, is_busy=True),
}

# Calls whose arguments lead them another way.
FURTHER_CASES = {
    "an eager add": attrs.evolve(CASES["TaskQueueService.add"], arguments={"eager": True}),
    "an eager add of several": attrs.evolve(CASES["Queue.add"], arguments={"eager": True}),
    "an add without a place": attrs.evolve(CASES["Queue.add"], arguments={"max_concurrent_deliveries": 1}),
    "an add of a large task": Case(lambda stage: stage.service.add(b"x" * 100_000, url="/w", name=stage.name), "never", "done"),
    "an add to a pull queue": Case(
        lambda stage: stage.service.add("x", queue_name="pull", method="PULL", name=stage.name), "never", "waits"
    ),
    "a delete of one that is running": Case(
        lambda stage: stage.service.queue().delete_tasks_by_name(stage.name), "done", "done", prepare=add_slow, is_busy=True
    ),
    "a revival with another payload": Case(
        lambda stage: stage.service.queue("other").revive(stage.name, payload="new"),
        ("dead", b"old"),
        ("done again", b"new"),
        prepare=add_and_die,
        look=revived,
    ),
}


# --- the life of a service -----------------------------------------------------------------------------------------


@attrs.frozen
class LifeCase:
    """A call that begins or ends the life of a service, which is made for it."""

    call: Callable[[TaskQueueService], Awaitable[object]]
    starts: bool = False
    """It is called before the start."""
    closes: bool = False
    """Once it has begun, it leaves a closed service, cancelled or not."""
    has_app: bool = False
    """Tasks are delivered to an application, through a socket."""


async def use(service: TaskQueueService) -> None:
    """Be a program that adds a task."""
    async with service:
        await service.add(url="/w", name="used")
        await turns(5)


def start_beside_another(service: TaskQueueService) -> Awaitable[object]:
    """Start it where another task does so at the same time, which is told that it runs or that it is closed."""
    other = asyncio.create_task(service.start())
    other.add_done_callback(lambda other: other.cancelled() or other.exception())
    return service.start()


LIFE_CASES = {
    "TaskQueueService.start": LifeCase(lambda service: service.start(), starts=True),
    "TaskQueueService.__aenter__": LifeCase(lambda service: service.__aenter__(), starts=True),
    "TaskQueueService.drain": LifeCase(lambda service: service.drain(), closes=False),
    "TaskQueueService.aclose": LifeCase(lambda service: service.aclose(), closes=True),
    "TaskQueueService.__aexit__": LifeCase(lambda service: service.__aexit__(None, None, None), closes=True),
}
FURTHER_LIFE_CASES = {
    "a start with an application": LifeCase(lambda service: service.start(), starts=True, has_app=True),
    "one of two starts": LifeCase(start_beside_another, starts=True),
    "a drain that gives up": LifeCase(lambda service: service.drain(timeout_seconds=0.0)),
    "a close that gives up": LifeCase(lambda service: service.aclose(timeout_seconds=0.0), closes=True),
    "a close with an application": LifeCase(lambda service: service.aclose(), closes=True, has_app=True),
    "a whole program": LifeCase(use, starts=True, closes=True),
}


# --- the clock for tests -------------------------------------------------------------------------------------------


async def is_well(clock: VirtualClock) -> bool:
    """Whether time stands still while somebody is busy, and goes on afterwards."""
    before = clock.now
    sleeping = asyncio.create_task(clock.sleep(1))
    with clock.activity():
        await turns()
        stands_still = clock.now == before
    await asyncio.wait({sleeping}, timeout=HANGS_SECONDS)
    return stands_still and sleeping.done() and clock.now - before == timedelta(seconds=1)


async def stay_outside(clock: VirtualClock) -> None:
    """Be outside for a while."""
    async with clock.outside():
        await turns(5)


# What is called on a clock that runs ahead by itself when nobody is busy.
CLOCK_CASES: dict[str, Callable[[VirtualClock], Awaitable[object]]] = {
    "VirtualClock.advance": lambda clock: clock.advance(5),
    "VirtualClock.travel_to": lambda clock: clock.travel_to(clock.now + timedelta(seconds=5)),
    "VirtualClock.sleep": lambda clock: clock.sleep(5),
    "VirtualClock.wait": lambda clock: clock.wait(Wakeup(), clock.time_usec() + 5_000_000),
    "VirtualClock.outside": stay_outside,
}
