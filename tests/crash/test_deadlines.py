"""P7 in real time: two hundred handlers that do not end by themselves, and when they learn of it."""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from aiohttp import web

from aiotaskqueue import QueueConfig, Task, TaskQueueService, TaskRetryOptions
from aiotaskqueue.tasks import DeadlineExceededError, current_task
from aiotaskqueue.web.aiohttp import init_app, task

TASKS, AT_ONCE = 200, 50

# The shortest deadline that is allowed, and the grace.
DEADLINE_SECONDS, GRACE_SECONDS = 1.0, 1.0

LATE_SECONDS = 0.1

pytestmark = [pytest.mark.crash, pytest.mark.anyio, pytest.mark.timeout(120), pytest.mark.promise("P7")]


class Worker:
    """Handlers that wait for ever, and then once more."""

    def __init__(self) -> None:
        self.errors: list[float] = []
        """How late the error was raised in each, in seconds."""
        self.ends: list[float] = []
        """How late each was cancelled, in seconds."""

    @task
    async def work(self, request: web.Request) -> None:
        """Note when the error comes, and when the end does."""
        now = asyncio.get_running_loop().time
        deadline = now() + current_task().remaining_seconds()
        try:
            await asyncio.Event().wait()
        except DeadlineExceededError:
            self.errors.append(now() - deadline)
            try:
                await asyncio.Event().wait()
            finally:
                self.ends.append(now() - deadline - GRACE_SECONDS)


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    hundredths = statistics.quantiles(seconds, n=100)
    return hundredths[49], hundredths[98]


async def test_two_hundred_deadlines(tmp_path: Path) -> None:
    """Of 200 handlers 99 % get the error within 0.1 s of the deadline; so late at most they, and their attempts, end after the grace."""
    worker, app = Worker(), web.Application()
    app.router.add_post("/worker", worker.work)
    config = QueueConfig(
        "default",
        max_concurrent_requests=AT_ONCE,
        dispatch_deadline_seconds=DEADLINE_SECONDS,
        retry_options=TaskRetryOptions(task_retry_limit=0),
    )
    service = TaskQueueService(tmp_path / "tasks.db", queues=[config], max_concurrent_deliveries=AT_ONCE)
    init_app(app, service)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await service.queue().add([Task(name=f"task-{number}", url="/worker") for number in range(TASKS)])
        await service.run_until_idle()
        dead = [await service.queue().get_task(f"task-{number}") for number in range(TASKS)]
    finally:
        await runner.cleanup()
    lines = [line for stored in dead for line in stored.attempts or ()]
    attempts = [(line.ended_usec - line.started_usec) / 1_000_000 - DEADLINE_SECONDS - GRACE_SECONDS for line in lines]
    figures = {"error": worker.errors, "end": worker.ends, "attempt": attempts}
    for name, seconds in figures.items():
        print(f"\n{name}: median %.1f ms, 99 %% %.1f ms late" % tuple(1000 * value for value in percentiles(seconds)), end="")
    print(f"\nreasons: {dict(Counter(line.reason for line in lines))}")

    assert [TASKS] * 3 == [len(seconds) for seconds in figures.values()]
    assert {"deadline", "status"} >= {line.reason for line in lines}
    assert [] == [name for name, seconds in figures.items() if percentiles(seconds)[1] > LATE_SECONDS]
    assert min(worker.errors) >= 0
