"""A process whose handlers do what their URLs say, also the worst: `worker_child.py MODE DATABASE JOURNAL PLACES`.

It says "ready", waits for a line on stdin and then appends to the journal, as crash_child.py does; `start` also says the
retry count and the execution count. `work`: end when nothing is left to do. `serve`: an application under `web.run_app`,
until a signal comes. `serve-port`: the same, which delivers to its own port. A tenth of the usual time is left to a drain.

`/sleep/SECONDS`: take so long at the first attempt, and no time at the others. `/fail/SECONDS`: take so long, then fail.
`/poison/HOW`: bring the process down. `/greedy`: ask for more memory than there is.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from aiohttp import web
from crash_child import note, wait_for_the_word

from aiotaskqueue import QueueConfig, TaskQueueService
from aiotaskqueue.web.aiohttp import init_app, task

DRAIN_SECONDS = 1.0

# A queue that gives a task up at the first crash for which it is to blame.
FRAGILE = QueueConfig("fragile", crash_limit=1)

MEMORY_BYTES = 256 * 1024 * 1024


def segfault() -> None:
    """Write to where nothing is."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.memset(0, 0, 1)


def hoard() -> None:
    """Take all the memory that there is, then end as native code does that gets none."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        take_all_memory()
    except MemoryError:
        os.abort()


def take_all_memory() -> None:
    """Take more and more memory, until there is no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, resource.RLIM_INFINITY))
    taken = []
    while True:
        taken.append(bytearray(16 * 1024 * 1024))


POISONS: dict[str, Callable[[], None]] = {"exit": lambda: os._exit(9), "segfault": segfault, "hoard": hoard}


@task
async def work(request: web.Request) -> web.Response:
    """Do what the URL says, and write down when it begins and how it ends."""
    headers, how = request.headers, request.match_info["how"]
    name, attempt = headers["X-AppEngine-TaskName"], headers["X-TaskQueue-Attempt"]
    note("start", name, attempt, headers["X-AppEngine-TaskRetryCount"], headers["X-AppEngine-TaskExecutionCount"])
    match request.match_info["what"]:
        case "sleep":
            await asyncio.sleep(float(how) if attempt == "1" else 0.0)
        case "fail":
            await asyncio.sleep(float(how))
            note("fail", name, attempt)
            return web.Response(status=500)
        case "poison":
            POISONS[how]()
        case "greedy":
            take_all_memory()
    note("ok", name, attempt)
    return web.Response()


class HastyService(TaskQueueService):
    """The usual service, which gives less time to what is in flight when it is closed."""

    async def drain(self, timeout_seconds: float = DRAIN_SECONDS) -> None:
        await super().drain(timeout_seconds)

    async def aclose(self, timeout_seconds: float = DRAIN_SECONDS) -> None:
        await super().aclose(timeout_seconds)


def make_service(database: str, places: int, target: str | None = None) -> TaskQueueService:
    """Return a service with so many places."""
    queues = [QueueConfig("default", max_concurrent_requests=places), FRAGILE]
    return HastyService(database, queues=queues, target=target, max_concurrent_deliveries=2 * places)


async def run_until_done(app: web.Application, service: TaskQueueService) -> None:
    """Run the application until only dead tasks are left."""
    runner = web.AppRunner(app)
    await runner.setup()
    while sum(statistics.tasks for statistics in await service.statistics()):
        await asyncio.sleep(0.01)
    await runner.cleanup()


def main(mode: str, database: str, places: str) -> None:
    """Do what the mode says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        service = make_service(database, int(places), f"http://127.0.0.1:{port}" if mode == "serve-port" else None)
        app = web.Application()
        app.router.add_post("/{what}/{how}", work)
        init_app(app, service)
        if mode == "work":
            asyncio.run(run_until_done(app, service))
        else:
            web.run_app(app, sock=listener, print=None, handler_cancellation=True)
    note("ended", os.getpid())


if __name__ == "__main__":
    what, path, journal, *rest = sys.argv[1:]
    if wait_for_the_word(journal):
        main(what, path, *rest)
