"""QueueStatistics: figures of one queue or of several (SPEC 3.11)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiotaskqueue import Queue, QueueConfig, QueueStatistics, Task, TaskQueueService, TaskRetryOptions
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.errors import InvalidQueueNameError, NotStartedError
from aiotaskqueue.testing import RecordingDelivery, VirtualClock

pytestmark = pytest.mark.anyio

QUEUES = [QueueConfig(name="default"), QueueConfig(name="mail", rate="5/s"), QueueConfig(name="pull", mode="pull")]


@pytest.fixture
async def service() -> AsyncIterator[TaskQueueService]:
    """A service in which nothing runs before a test says so."""
    async with TaskQueueService(":memory:", queues=QUEUES, delivery=RecordingDelivery(), clock=VirtualClock()) as service:
        yield service


async def test_empty_queue(service: TaskQueueService) -> None:
    """SPEC 3.11: an empty queue has no tasks and no oldest ETA."""
    assert QueueStatistics(queue=Queue(), tasks=0, executed_last_minute=0, in_flight=0) == await Queue().fetch_statistics()


async def test_tasks_and_oldest_eta(service: TaskQueueService) -> None:
    """SPEC 3.11: waiting and future tasks count; the oldest ETA is that of the task that waits longest, a whole number."""
    now_usec = service.clock.time_usec()
    await Queue().add([Task(url="/w", countdown=seconds) for seconds in (3600, -5, -7.5)])
    statistics = await Queue().fetch_statistics()

    assert (3, now_usec - 7_500_000) == (statistics.tasks, statistics.oldest_eta_usec)


async def test_only_future_tasks(service: TaskQueueService) -> None:
    """D10: with nothing due there is no oldest ETA."""
    await Queue().add(Task(url="/w", countdown=1))
    statistics = await Queue().fetch_statistics()

    assert (1, None) == (statistics.tasks, statistics.oldest_eta_usec)


async def test_in_flight() -> None:
    """SPEC 3.11: attempts that run now are in flight, and their tasks count."""
    reached, let_go = asyncio.Event(), asyncio.Event()

    async def respond(record: TaskRecord) -> int:
        reached.set()
        await let_go.wait()
        return 200

    async with TaskQueueService(":memory:", delivery=RecordingDelivery(respond)) as service:
        await service.add(url="/w")
        await reached.wait()
        statistics = await service.queue().fetch_statistics()
        let_go.set()
        await service.run_until_idle()
        afterwards = await service.queue().fetch_statistics()

    assert [(1, 1), (0, 0)] == [(found.tasks, found.in_flight) for found in (statistics, afterwards)]


async def test_dead_tasks_do_not_count() -> None:
    """SPEC 3.11: a task that was given up does not count."""
    delivery = RecordingDelivery()
    delivery.answer_next(500)
    async with TaskQueueService(":memory:", delivery=delivery) as service:
        await service.add(url="/w", retry_options=TaskRetryOptions(task_retry_limit=0))
        await service.run_until_idle()
        statistics = await service.queue().fetch_statistics()

    assert (1, 0) == (len(delivery.deliveries), statistics.tasks)


async def test_enforced_rate(service: TaskQueueService) -> None:
    """SPEC 3.11: the enforced rate is the queue's, per second; None where there is no limit."""
    assert [None, 5.0] == [found.enforced_rate for found in await QueueStatistics.fetch(["default", "mail"])]


async def test_unknown_queue(service: TaskQueueService) -> None:
    """SPEC 3.11: a queue that is not configured has no tasks, and is no error."""
    statistics = await QueueStatistics.fetch("unknown")

    assert (0, None, None) == (statistics.tasks, statistics.oldest_eta_usec, statistics.enforced_rate)


@pytest.mark.parametrize("one", ["mail", Queue("mail")])
async def test_fetch_one(service: TaskQueueService, one: Queue | str) -> None:
    """SPEC 3.11: one queue, or its name, gives one object."""
    await Queue("mail").add(Task(url="/w"))
    statistics = await QueueStatistics.fetch(one)

    assert (Queue("mail"), 1) == (statistics.queue, statistics.tasks)


@pytest.mark.parametrize("several", [["mail", "default"], ("mail", "default"), [Queue("mail"), Queue("default")]])
async def test_fetch_several(service: TaskQueueService, several: Any) -> None:
    """SPEC 3.11: several queues, or their names, give a list in that order."""
    await Queue("mail").add(Task(url="/w"))

    assert [(Queue("mail"), 1), (Queue("default"), 0)] == [(found.queue, found.tasks) for found in await QueueStatistics.fetch(several)]
    assert 2 == len(await QueueStatistics.fetch(iter(several)))


async def test_fetch_one_queue_twice(service: TaskQueueService) -> None:
    """A queue that is asked for twice is given twice."""
    assert [Queue("mail"), Queue("mail")] == [found.queue for found in await QueueStatistics.fetch(["mail", "mail"])]


@pytest.mark.parametrize("nothing", [[], (), None])
async def test_fetch_none(nothing: Any) -> None:
    """SPEC 3.11, D15: no queues give [], and need not even a service."""
    assert [] == await QueueStatistics.fetch(nothing)


@pytest.mark.parametrize("wrong", [5, object(), Task(url="/w")])
async def test_fetch_something_else(service: TaskQueueService, wrong: Any) -> None:
    """SPEC 3.11: anything else is a TypeError that shows it."""
    with pytest.raises(TypeError, match="Statistics are of a Queue, a name or an iterable of them, not "):
        await QueueStatistics.fetch(wrong)


@pytest.mark.parametrize("wrong", [[Queue("mail"), "mail"], ["mail", 5], [None]])
async def test_fetch_a_mixture(service: TaskQueueService, wrong: Any) -> None:
    """SPEC 3.11: queues and names mixed, or other objects among them, are a TypeError."""
    with pytest.raises(TypeError, match="not a mixture or other objects"):
        await QueueStatistics.fetch(wrong)


@pytest.mark.parametrize("name", ["bad name!", ""])
async def test_fetch_an_impossible_name(service: TaskQueueService, name: str) -> None:
    """RELIABILITY 41: a name that no queue can have is an error."""
    with pytest.raises(InvalidQueueNameError):
        await QueueStatistics.fetch(name)


@pytest.mark.row(49)
async def test_fetch_without_a_service() -> None:
    """RELIABILITY 49: figures need a service that runs."""
    with pytest.raises(NotStartedError):
        await QueueStatistics.fetch("mail")


async def test_of_all_queues(service: TaskQueueService) -> None:
    """A service gives the figures of all of its queues, by name."""
    assert ["default", "mail", "pull"] == [found.queue.name for found in await service.statistics()]


async def test_queues_of_two_services(service: TaskQueueService) -> None:
    """Queues of different services in one call: each has the figures of its own service, in order."""
    async with TaskQueueService(":memory:", queues=[QueueConfig(name="mail", rate="1/s")], dispatch=False) as other:
        await other.queue("mail").add([Task(url="/w"), Task(url="/w")])
        await service.queue("mail").add(Task(url="/w"))
        queues = [other.queue("mail"), service.queue("mail"), other.queue("default")]
        fetched = await QueueStatistics.fetch(queues)

    assert [(2, 1.0), (1, 5.0), (0, None)] == [(found.tasks, found.enforced_rate) for found in fetched]


async def test_repr_and_equality(service: TaskQueueService) -> None:
    """SPEC 3.11: the repr lists all six figures, and two with the same ones are equal."""
    statistics = await QueueStatistics.fetch("mail")

    expected = (
        "QueueStatistics(queue=Queue<name='mail'>, tasks=0, oldest_eta_usec=None, "
        "executed_last_minute=0, in_flight=0, enforced_rate=5.0, is_paused=False)"
    )
    assert expected == repr(statistics)
    assert statistics == await QueueStatistics.fetch("mail")
    assert statistics != await QueueStatistics.fetch("default")


async def test_executed_last_minute(service: TaskQueueService) -> None:
    """SPEC 3.11: attempts of the last 60 seconds count, also those run by hand; older ones do not."""
    assert isinstance(service.clock, VirtualClock)
    found = []
    for seconds in (0, 30, 29, 1, 30):
        await service.clock.advance(seconds)
        if seconds in (0, 30):
            await Queue().add([Task(url="/w"), Task(url="/w", name=f"n{len(found)}", countdown=36000)])
            await Queue().run_task(f"n{len(found)}")
            await service.run_until_idle()
        found.append((await Queue().fetch_statistics()).executed_last_minute)

    assert [2, 4, 4, 2, 2] == found
