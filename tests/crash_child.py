"""What the crash tests kill: a process with a service. Run by them, as `crash_child.py MODE DATABASE LOG-OR-TARGET`.

`crash` and `drain`: an aiohttp application with the service embedded. Its handler writes `name attempt start` to the log
before it answers; `crash` also adds tasks for as long as it lives and prints each name *after* its add has returned,
`drain` ends when the queue is empty. Both wait for a line on stdin before they touch anything, so that the next process
can be ready while one still lives. `dispatch`: nothing but a service that delivers to a target, until stdin ends.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys

from aiohttp import web

from aiotaskqueue import QueueConfig, Task, TaskQueueService
from aiotaskqueue.web.aiohttp import init_app, task

ADDERS = 4

# The crashes here are nobody's fault: no task may be given up for them.
CONFIG = QueueConfig("default", crash_limit=10_000)

# Half of what the queue allows: two processes have room side by side.
PLACES = 16


def make_app(service: TaskQueueService, log_path: str) -> web.Application:
    """Return a worker that writes down every attempt, in one write to a file that outlives it, and then takes its time."""
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    @task
    async def work(request: web.Request) -> None:
        name, attempt = request.headers["X-AppEngine-TaskName"], request.headers["X-TaskQueue-Attempt"]
        os.write(log, f"{name} {attempt} start\n".encode())
        await asyncio.sleep(random.uniform(0.0, 0.01))

    app = web.Application()
    app.router.add_post("/worker", work)
    init_app(app, service)
    return app


async def add_for_ever(service: TaskQueueService) -> None:
    """Add one task or a few, then print their names: from then on they may not be lost."""
    while True:
        tasks = [Task(url="/worker", payload=os.urandom(random.choice([0, 50, 5000]))) for _ in range(random.choice([1, 1, 3]))]
        await service.queue().add(tasks)
        os.write(sys.stdout.fileno(), "".join(f"{task.name}\n" for task in tasks).encode())
        await asyncio.sleep(random.uniform(0.0, 0.02))


async def run_app(mode: str, database: str, log_path: str) -> None:
    """Run the application until the queue is empty, or until killed."""
    service = TaskQueueService(database, queues=[CONFIG], max_concurrent_deliveries=PLACES)
    runner = web.AppRunner(make_app(service, log_path))
    await runner.setup()
    if mode == "crash":
        await asyncio.gather(*(add_for_ever(service) for _ in range(ADDERS)))
    while (await service.queue().fetch_statistics()).tasks:
        await asyncio.sleep(0.02)
    await runner.cleanup()


async def dispatch(database: str, target: str) -> None:
    """Deliver until stdin ends; print a line when that begins."""
    async with TaskQueueService(database, queues=[CONFIG], target=target, max_concurrent_deliveries=PLACES):
        os.write(sys.stdout.fileno(), b"ready\n")
        await asyncio.to_thread(sys.stdin.read)


def main(mode: str, database: str, log_or_target: str) -> None:
    """Do what the mode says."""
    if mode == "dispatch":
        asyncio.run(dispatch(database, log_or_target))
    elif sys.stdin.readline():
        asyncio.run(run_app(mode, database, log_or_target))


if __name__ == "__main__":
    main(*sys.argv[1:])
