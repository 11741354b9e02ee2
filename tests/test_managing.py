"""Managing tasks that exist, through a service: while they run, while they wait, from the process next door."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiotaskqueue import QueueConfig, TaskQueueService, TaskRetryOptions
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.testing import RecordingDelivery, VirtualClock

pytestmark = pytest.mark.anyio


class SlowWorker:
    """A worker that says when it was reached, and answers when it is let go."""

    def __init__(self, status: int = 200) -> None:
        self.reached, self.let_go = asyncio.Event(), asyncio.Event()
        self.delivery = RecordingDelivery(self._respond)
        self._status = status

    async def _respond(self, record: TaskRecord) -> int:
        self.reached.set()
        await self.let_go.wait()
        return self._status


@pytest.fixture
async def worker() -> SlowWorker:
    """A worker that is waited for."""
    return SlowWorker()


@pytest.fixture
async def service(worker: SlowWorker) -> AsyncIterator[TaskQueueService]:
    """A service on real time whose worker is waited for."""
    queues = [QueueConfig("default"), QueueConfig("single", max_concurrent_requests=1)]
    async with TaskQueueService(":memory:", queues=queues, delivery=worker.delivery) as service:
        yield service
        worker.let_go.set()


def warnings_of(caplog: Any) -> list[str]:
    """Return what was logged as a warning or worse."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- delete --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 500])
async def test_delete_a_running_task(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """SPEC 3.7, P4: a task that is deleted while it runs is not tried again, whatever its handler answers, and nobody is alarmed."""
    worker = SlowWorker(status)
    async with TaskQueueService(":memory:", delivery=worker.delivery) as service:
        task = await service.add(url="/w", retry_options=TaskRetryOptions(task_retry_limit=0))
        await worker.reached.wait()
        await service.queue().delete_tasks(task)
        before = await service.queue().fetch_statistics()
        worker.let_go.set()
        await service.run_until_idle()
        after = await service.queue().fetch_statistics()

    assert [(0, 0), (0, 0)] == [(found.tasks, found.in_flight) for found in (before, after)]
    assert (1, []) == (len(worker.delivery.deliveries), warnings_of(caplog))


async def test_delete_frees_a_place(service: TaskQueueService, worker: SlowWorker) -> None:
    """The place of a running task that is deleted is free at once, though its handler still runs."""
    running, _ = await service.add(queue_name="single"), await service.add(queue_name="single")
    await worker.reached.wait()
    worker.reached.clear()
    await service.queue("single").delete_tasks(running)
    await asyncio.wait_for(worker.reached.wait(), 5)

    assert 2 == len(worker.delivery.deliveries)


async def test_delete_a_late_result(caplog: pytest.LogCaptureFixture) -> None:
    """A result that comes after the lease has ended and passed on is told, for nobody deleted anything."""
    clock = VirtualClock()
    async with TaskQueueService(":memory:", delivery=RecordingDelivery(), clock=clock) as service:
        assert service._dispatcher is not None
        service._dispatcher._note_stale(
            TaskRecord(uuid=bytes(16), queue_name="default", name="a", eta_usec=0, created_usec=0, lease_expires_usec=clock.time_usec())
        )

    assert ["The result of task 'a' of queue 'default' came too late and was dropped."] == warnings_of(caplog)
