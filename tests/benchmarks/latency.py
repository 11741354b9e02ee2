"""How long does it take from the call of `add` to the first line of the handler, when nothing else goes on?

The ceiling is what cannot be had for less: a bare POST to a handler of the same server, and a durable add. Each is taken
alone, one after the other, with a pause between two tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from drain import BODY, HEADERS, SECRET, make_task, serve
from harness import Bar, Options, main, note_pairs

from aiotaskqueue import TaskQueueService
from aiotaskqueue.web.aiohttp import init_worker, task

PAUSE_SECONDS = 0.002


class Arrivals:
    """A worker that notes when its handler begins."""

    def __init__(self) -> None:
        self.plain_url = self.url = ""
        self._arrived: asyncio.Future[float] | None = None

    def expect(self) -> asyncio.Future[float]:
        """Return a future of the moment at which the next request reaches its handler."""
        self._arrived = asyncio.get_running_loop().create_future()
        return self._arrived

    def _note(self) -> None:
        assert self._arrived is not None
        self._arrived.set_result(time.perf_counter())

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve a plain handler and a task's."""

        async def plain(request: web.Request) -> web.Response:
            self._note()
            return web.Response()

        @task
        async def work(request: web.Request) -> None:
            self._note()

        closed, open_to_all = web.Application(), web.Application()
        closed.router.add_post("/work", work)
        init_worker(closed, secrets=[SECRET])
        open_to_all.router.add_post("/work", plain)
        async with serve(closed) as self.url, serve(open_to_all) as self.plain_url:
            yield


async def time_posts(worker: Arrivals, count: int) -> float:
    """Return the median time from a bare POST to its handler, in seconds."""
    times = []
    async with aiohttp.ClientSession() as session:
        for _ in range(count):
            arrived, begun = worker.expect(), time.perf_counter()
            async with session.post(f"{worker.plain_url}/work", data=BODY, headers=HEADERS) as response:
                await response.read()
            times.append(await arrived - begun)
            await asyncio.sleep(PAUSE_SECONDS)
    return statistics.median(times)


async def time_adds(count: int) -> float:
    """Return the median time of an add alone, in seconds."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        async with TaskQueueService(f"{folder}/tasks.db", dispatch=False) as service:
            for _ in range(count):
                one, begun = make_task(), time.perf_counter()
                await service.queue().add(one)
                times.append(time.perf_counter() - begun)
                await asyncio.sleep(PAUSE_SECONDS)
    return statistics.median(times)


async def time_tasks(worker: Arrivals, count: int) -> tuple[float, float]:
    """Return the median time from `add` to the handler and its 99th percentile, in seconds."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        async with TaskQueueService(f"{folder}/tasks.db", target=worker.url, secrets=[SECRET]) as service:
            for _ in range(count):
                one, arrived, begun = make_task(), worker.expect(), time.perf_counter()
                await service.queue().add(one)
                times.append(await arrived - begun)
                await service.run_until_idle()
                await asyncio.sleep(PAUSE_SECONDS)
    times.sort()
    return times[len(times) // 2], times[len(times) * 99 // 100]


async def bench(options: Options) -> None:
    """Answer the question."""
    count = options.scale(500, 100)
    worker = Arrivals()
    pairs, worst = [], []
    async with worker.serving():
        for _ in range(options.rounds + 1):
            ceiling = await time_posts(worker, count) + await time_adds(count)
            p50, p99 = await time_tasks(worker, count)
            pairs.append((p50, ceiling))
            worst.append((p99, p50))
    note_pairs(options, "add to the handler, idle, p50", "POST and add alone", Bar(1.5, 1.05, is_most=True), pairs[1:], is_time=True)
    note_pairs(options, "the same, p99", "its p50", None, worst[1:], is_time=True)


if __name__ == "__main__":
    main(bench)
