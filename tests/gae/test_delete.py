"""Deleting tasks, as App Engine has it (SPEC 3.7, GAE taskqueue.Queue.delete_tasks)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiotaskqueue import Queue, QueueConfig, Task, TaskQueueService
from aiotaskqueue.errors import (
    BadTaskStateError,
    DuplicateTaskNameError,
    InvalidTaskNameError,
    NotStartedError,
    TombstonedTaskError,
    UnknownQueueError,
)
from aiotaskqueue.testing import RecordingDelivery, VirtualClock

pytestmark = pytest.mark.anyio

QUEUES = [QueueConfig(name="default"), QueueConfig(name="short", tombstone_seconds=0), QueueConfig(name="pull", mode="pull")]


@pytest.fixture
async def service() -> AsyncIterator[TaskQueueService]:
    """A service of a few queues, in which nothing runs before a test says so."""
    async with TaskQueueService(":memory:", queues=QUEUES, delivery=RecordingDelivery(), clock=VirtualClock()) as service:
        yield service


async def names(service: TaskQueueService, queue_name: str = "default") -> list[str | None]:
    """Return the names of the queue's tasks."""
    return [task.name for task in await service.get_filtered_tasks(queue_names=queue_name)]


async def test_delete_one(service: TaskQueueService) -> None:
    """SPEC 3.7: a task that was there is gone, and the very object is returned, marked."""
    task, other = await Queue().add([Task(url="/w"), Task(url="/w")])

    assert task is await Queue().delete_tasks(task)
    assert (True, False) == (task.was_deleted, other.was_deleted)
    assert [other.name] == await names(service)


async def test_delete_several(service: TaskQueueService) -> None:
    """SPEC 3.7: several are given back as a list, also those that came as a generator; over a thousand are fine."""
    tasks = await Queue().add([Task(url="/w") for _ in range(1500)])
    deleted = await Queue().delete_tasks(task for task in tasks)

    assert tasks == deleted
    assert all(task.was_deleted for task in deleted)
    assert [] == await names(service)


async def test_only_the_name_matters(service: TaskQueueService) -> None:
    """SPEC 3.2: another object of that name deletes the task."""
    await Queue().add(Task(url="/w", name="a"))
    task = await Queue().delete_tasks(Task(url="/other", name="a"))

    assert (True, []) == (task.was_deleted, await names(service))


async def test_unknown_and_tombstoned(service: TaskQueueService) -> None:
    """SPEC 3.7: an unknown name and a reserved one are no errors; nothing was deleted."""
    await Queue().add(Task(url="/w", name="gone"))
    await Queue().delete_tasks_by_name("gone")
    deleted = await Queue().delete_tasks_by_name(["gone", "unknown"])

    assert [False, False] == [task.was_deleted for task in deleted]


async def test_name_of_another_queue(service: TaskQueueService) -> None:
    """Names are of one queue: a task of that name in another one is left."""
    await Queue("short").add(Task(url="/w", name="a"))
    task = await Queue().delete_tasks_by_name("a")

    assert (False, ["a"]) == (task.was_deleted, await names(service, "short"))


async def test_by_name(service: TaskQueueService) -> None:
    """SPEC 3.2: a name gives a new Task, names give a list of them."""
    await Queue().add([Task(url="/w", name=name) for name in "abc"])
    one = await Queue().delete_tasks_by_name("a")
    several = await Queue().delete_tasks_by_name(("b", "c"))

    assert [("a", True), ("b", True), ("c", True)] == [(task.name, task.was_deleted) for task in (one, *several)]


@pytest.mark.parametrize("nothing", [[], (), None])
async def test_delete_nothing(nothing: Any) -> None:
    """SPEC 3.2: nothing gives [], and needs not even a service."""
    assert [] == await Queue().delete_tasks(nothing)
    assert [] == await Queue().delete_tasks_by_name(nothing)


async def test_pull_task(service: TaskQueueService) -> None:
    """SPEC 3.7: it works for pull queues as well."""
    task = await Queue("pull").add(Task(b"x", method="PULL"))
    await Queue("pull").delete_tasks(task)

    assert [] == await names(service, "pull")


async def test_tombstone(service: TaskQueueService) -> None:
    """SPEC 3.5: a given name stays reserved after a delete, for the queue's tombstone time."""
    await Queue().delete_tasks(await Queue().add(Task(url="/w", name="a")))

    with pytest.raises(TombstonedTaskError):
        await Queue().add(Task(url="/w", name="a"))


async def test_no_tombstone(service: TaskQueueService) -> None:
    """D18: where tombstones last no time, the name is free at once."""
    queue = Queue("short")
    await queue.delete_tasks(await queue.add(Task(url="/w", name="a")))
    await queue.add(Task(url="/w", name="a"))

    assert ["a"] == await names(service, "short")


# --- what is refused, before anything is sent ----------------------------------------------------------------------


async def test_unnamed(service: TaskQueueService) -> None:
    """SPEC 3.7: a task without a name was never added; nothing else is deleted either."""
    task = await Queue().add(Task(url="/w"))
    with pytest.raises(BadTaskStateError, match=r"^Task number 1 has no name, so it cannot be deleted; it was never added\.$"):
        await Queue().delete_tasks([task, Task(url="/w")])

    assert [task.name] == await names(service)


async def test_deleted_twice(service: TaskQueueService) -> None:
    """SPEC 3.7: an object that a delete has marked is refused."""
    task = await Queue().add(Task(url="/w", name="a"))
    await Queue().delete_tasks(task)

    with pytest.raises(BadTaskStateError, match=r"^Task 'a' was deleted before\.$"):
        await Queue().delete_tasks(task)


async def test_name_twice(service: TaskQueueService) -> None:
    """SPEC 3.7: one name twice is refused, be it one object or two."""
    task = await Queue().add(Task(url="/w", name="a"))
    for tasks in ([task, task], [task, Task(name="a")]):
        with pytest.raises(DuplicateTaskNameError, match=r"^Task name 'a' appears twice in one delete\.$"):
            await Queue().delete_tasks(tasks)

    assert ["a"] == await names(service)


@pytest.mark.parametrize("name", ["a b", "../x", "x" * 501, "a\n", "\ud800"])
async def test_invalid_name(service: TaskQueueService, name: str) -> None:
    """SPEC 3.7: a name that no task can have is an error, alone and in a list."""
    for given in (name, [name]):
        with pytest.raises(InvalidTaskNameError):
            await Queue().delete_tasks_by_name(given)


@pytest.mark.parametrize("thing", [5, b"a", object()])
async def test_no_names(service: TaskQueueService, thing: Any) -> None:
    """What is no name and no iterable of names is a TypeError that shows it."""
    with pytest.raises(TypeError, match="several by an iterable of names, not"):
        await Queue().delete_tasks_by_name(thing)


@pytest.mark.parametrize("things", [5, "abc", [Task(name="a"), "b"]])
async def test_no_tasks(service: TaskQueueService, things: Any) -> None:
    """What is no task is a TypeError that shows it."""
    with pytest.raises(TypeError, match=r"can be deleted[,;]"):
        await Queue().delete_tasks(things)


async def test_unknown_queue(service: TaskQueueService) -> None:
    """SPEC 3.7: a queue that is not configured is an error that names near ones."""
    with pytest.raises(UnknownQueueError, match="did you mean 'default'"):
        await Queue("defualt").delete_tasks_by_name("a")


@pytest.mark.row(49)
async def test_without_a_service() -> None:
    """RELIABILITY 49: deleting needs a service that runs."""
    with pytest.raises(NotStartedError):
        await Queue().delete_tasks_by_name("a")
