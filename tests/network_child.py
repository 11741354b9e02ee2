"""A process with a service, for tests of the network around it. Run as `network_child.py DATABASE`.

The JSON on its stdin names `targets`, and `tasks` as lists of queue, name, URL and the seconds from the start to the add. It delivers
each task once, and prints what became of them: which are done, why the others are dead, and how much memory it took.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from bomb_child import read_megabytes
from signed_requests import SECRET

from aiotaskqueue import QueueConfig, Task, TaskQueueService, TaskRetryOptions


async def add(service: TaskQueueService, tasks: Sequence[tuple[str, str, str, float]]) -> None:
    """Add the tasks when it is time for them."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for queue_name, name, url, seconds in tasks:
        await asyncio.sleep(max(start + seconds - loop.time(), 0))
        await service.queue(queue_name).add(Task(url=url, name=name, payload=b"x" * 20))


async def outcomes(service: TaskQueueService, queue_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return why dead tasks are so, and how long their last attempt took."""
    found = {}
    for name in queue_names:
        queue = service.queue(name)
        async for stored in queue.dead_tasks():
            attempts = (await queue.get_task(stored.name)).attempts or ()
            found[stored.name] = {
                "reason": stored.dead_reason,
                "seconds": (attempts[-1].ended_usec - attempts[-1].started_usec) / 1_000_000,
            }
    return found


async def main(database: str) -> None:
    """Deliver them all."""
    # Hundreds of tasks are given up as planned.
    logging.getLogger("aiotaskqueue").setLevel(logging.ERROR)
    order = json.load(sys.stdin)
    once = TaskRetryOptions(task_retry_limit=0)
    configs = [
        QueueConfig(
            name, target=name, retry_options=once, dispatch_deadline_seconds=order["deadline_seconds"], max_concurrent_requests=1000
        )
        for name in order["targets"]
    ]
    async with TaskQueueService(
        database, queues=configs, targets=order["targets"], secrets=[SECRET], max_concurrent_deliveries=order["places"]
    ) as service:
        before = read_megabytes("VmRSS")
        await add(service, order["tasks"])
        while any(statistics.tasks for statistics in await service.statistics()):
            await asyncio.sleep(0.05)
        dead = await outcomes(service, list(order["targets"]))
    print(json.dumps({"dead": dead, "megabytes": read_megabytes("VmHWM"), "megabytes_before": before}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
