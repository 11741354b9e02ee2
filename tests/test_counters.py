"""P25: whatever happens to tasks, each one that was accepted is completed, dead, deleted or pending: the counters agree."""

from __future__ import annotations

import random
from pathlib import Path

import attrs
import pytest
from on_clock import Bench, serving

from aiotaskqueue import Queue, QueueConfig, Task, TaskRetryOptions
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.errors import InvalidTaskError

pytestmark = pytest.mark.anyio

QUEUES = [QueueConfig("default", jitter=0), QueueConfig("other", jitter=0, max_concurrent_requests=1, tombstone_seconds=0)]


@attrs.define
class Books:
    """What was done to the tasks of a database, over any number of services one after the other."""

    rng: random.Random
    accepted: int = 0
    completed: int = 0
    deleted: int = 0

    async def do_something(self, bench: Bench) -> None:
        """Do one of the things that users and operators do."""
        queue = bench.service.queue(self.rng.choice(QUEUES).name)
        await self.rng.choice([self.add, self.add, self.work, self.work, self.delete, self.purge, self.revive, self.pause])(bench, queue)

    async def add(self, bench: Bench, queue: Queue) -> None:
        """Add some tasks, the names of which may be taken."""
        tasks = [
            Task(
                url="/w",
                name=self.rng.choice([None, "a", "b", "c", "d"]),
                countdown=self.rng.choice([0, 5]),
                retry_options=TaskRetryOptions(task_retry_limit=self.rng.randrange(3)),
            )
            for _ in range(self.rng.randrange(1, 4))
        ]
        for task in tasks:
            try:
                await queue.add(task)
            except InvalidTaskError:
                continue
            self.accepted += 1

    async def work(self, bench: Bench, queue: Queue) -> None:
        """Let some time go by, with everything that becomes due."""
        await bench.clock.advance(self.rng.choice([0, 1, 10]))

    async def delete(self, bench: Bench, queue: Queue) -> None:
        """Delete some tasks by names, whatever state they are in."""
        names = [stored.name async for stored in queue.list_tasks() if self.rng.random() < 0.3]
        self.deleted += sum(task.was_deleted for task in await queue.delete_tasks_by_name([*names, "unknown"]))

    async def purge(self, bench: Bench, queue: Queue) -> None:
        """Purge the queue, now and then."""
        if self.rng.random() < 0.1:
            self.deleted += len([stored async for stored in queue.list_tasks()])
            await queue.purge()

    async def revive(self, bench: Bench, queue: Queue) -> None:
        """Revive all that is dead."""
        await queue.revive([stored.name async for stored in queue.dead_tasks()])

    async def pause(self, bench: Bench, queue: Queue) -> None:
        """Pause the queue, or let it go on."""
        await (queue.pause() if self.rng.random() < 0.5 else queue.resume())

    async def handle(self, bench: Bench, record: TaskRecord) -> int:
        """Answer something; now and then after somebody has deleted the task that is running."""
        if self.rng.random() < 0.4:
            [task] = await bench.service.queue(record.queue_name).delete_tasks_by_name([record.name])
            self.deleted += task.was_deleted
        return self.rng.choice([200, 500])

    async def check(self, bench: Bench) -> None:
        """Compare with what the queues and the service say, at a moment at which nothing is in flight."""
        pending = sum(figures.tasks for figures in await bench.service.statistics())
        dead = [stored.name for config in QUEUES async for stored in bench.service.queue(config.name).dead_tasks()]
        counted = bench.dispatcher.statistics

        assert self.accepted == self.completed + counted.completed + len(dead) + self.deleted + pending
        assert counted.attempts == counted.completed + counted.retried + counted.dead + counted.stale_results


@pytest.mark.slow
@pytest.mark.promise("P25")
@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.crash) for seed in range(6, 300))])
async def test_counters_agree(tmp_path: Path, seed: int) -> None:
    """At every moment of rest accepted = completed + dead + deleted + pending, over deletes of running tasks and restarts too."""
    books = Books(random.Random(seed))
    too_late = 0
    for _ in range(3):
        benches: list[Bench] = []
        async with serving(tmp_path, *QUEUES, respond=lambda record, benches=benches: books.handle(benches[0], record)) as bench:
            benches.append(bench)
            for _ in range(60):
                await books.do_something(bench)
                await bench.service.run_until_idle()
                await books.check(bench)
            books.completed += bench.dispatcher.statistics.completed
            too_late += bench.dispatcher.statistics.stale_results

    assert books.completed > 0
    assert too_late > 0
