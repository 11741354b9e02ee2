"""Does it matter how many tasks wait?

One task's add, lease and completion with a million future tasks in the file, and with five, against a thousand; the memory of the
process with them; and what a service costs that has nothing to do, with a hundred queues and a million tasks in them.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import tempfile
import time
from pathlib import Path

from drain import make_task
from harness import Bar, Options, main, note_one, note_pairs

from aiotaskqueue import QueueConfig, Task, TaskQueueService
from aiotaskqueue.testing import RecordingDelivery

FEW, MOST = 1000, 5_000_000
QUEUES = [QueueConfig("default"), *(QueueConfig(f"queue-{number}") for number in range(1, 100))]
IDLE_SECONDS = 10.0


async def fill(path: Path, count: int) -> None:
    """Add so many tasks that are due tomorrow, to all queues in turn."""
    at_once = min(count // len(QUEUES), 10_000)
    async with TaskQueueService(path, queues=QUEUES, dispatch=False, durability="normal") as service:
        for number in range(count // at_once):
            tasks = [Task(b"x" * 200, url="/work", countdown=86_400) for _ in range(at_once)]
            await service.queue(QUEUES[number % len(QUEUES)].name).add(tasks)


async def time_lives(path: Path, count: int) -> float:
    """Return the seconds that one task's add, lease and completion take."""
    async with TaskQueueService(path, queues=QUEUES, delivery=_Forgetting()) as service:
        queue = service.queue()
        begun = time.perf_counter()
        for _ in range(count):
            await queue.add(make_task())
            await service.run_until_idle()
        return (time.perf_counter() - begun) / count


class _Forgetting(RecordingDelivery):
    """Answers 200 and remembers nothing."""

    async def deliver(self, *arguments: object, **around: object):  # type: ignore[no-untyped-def]
        answer = await super().deliver(*arguments, **around)  # type: ignore[arg-type]
        self.deliveries.clear()
        return answer


def rss_bytes() -> int:
    """Return the memory of this process that is in use."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def serve_for_a_while(path: Path, seconds: float) -> tuple[float, int]:
    """Return the share of a core that an idle service takes, and the memory of the process."""
    async with TaskQueueService(path, queues=QUEUES, delivery=RecordingDelivery()):
        await asyncio.sleep(1.0)
        begun, used = time.perf_counter(), time.process_time()
        await asyncio.sleep(seconds)
        return (time.process_time() - used) / (time.perf_counter() - begun), rss_bytes()


async def bench(options: Options) -> None:
    """Answer the questions."""
    many = options.scale(1_000_000, 100_000)
    with tempfile.TemporaryDirectory() as folder:
        few_path, many_path = Path(folder, "few.db"), Path(folder, "many.db")
        await fill(few_path, FEW)
        await fill(many_path, many)
        _, few_bytes = await serve_for_a_while(few_path, 0.1)
        share, many_bytes = await serve_for_a_while(many_path, options.scale(IDLE_SECONDS, 3.0))
        growth = (many_bytes - few_bytes) / 1e6
        note_one(options, f"megabytes of memory more with {many:,} tasks waiting", f"{FEW:,} waiting", Bar(50, 8, is_most=True), growth)
        note_one(options, f"percent of a core, idle, 100 queues, {many:,} waiting", "", Bar(0.3, 0.1, is_most=True), share * 100)
        await compare_lives(options, few_path, many_path, many, Bar(1.25, 1.1, is_most=True))
        if not options.is_quick:
            # Reported, and not promised.
            await fill(many_path, MOST - many)
            await compare_lives(options, few_path, many_path, MOST, None)


async def compare_lives(options: Options, few_path: Path, many_path: Path, many: int, bar: Bar | None) -> None:
    """Note what a task's life costs with so many waiting, against few."""
    lives = options.scale(1000, 200)
    pairs = []
    for _ in range(options.rounds + 1):
        at_best = await time_lives(few_path, lives)
        pairs.append((await time_lives(many_path, lives), at_best))
    question = f"add, lease and complete one task, {many:,} waiting"
    note_pairs(options, question, f"{FEW:,} waiting", bar, pairs[1:], is_time=True)


if __name__ == "__main__":
    main(bench)
