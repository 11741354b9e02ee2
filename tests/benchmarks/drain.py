"""How fast is a backlog delivered over HTTP, against the bare aiohttp client that posts the same to the same handler?

Ours is the whole way: lease, sign, post, verify in the worker, complete; durable, until the last row is gone. The
ceiling is a plain handler and a loop of `session.post` with the same body and as many headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from harness import Bar, Options, compare, main, note_one

from aiotaskqueue import QueueConfig, Task, TaskQueueService
from aiotaskqueue.web.aiohttp import init_worker, task

SECRET = os.urandom(32)
AT_ONCE = 32
BODY = b"key=value&number=12345&text=some+words+that+are+the+payload+of+a+usual+task&more=of+the+same+kind"

# Headers of the ceiling: as many and as long as a delivery has.
HEADERS = {
    "Content-Type": "application/x-www-form-urlencoded",
    "X-AppEngine-QueueName": "default",
    "X-AppEngine-TaskName": "x" * 22,
    "X-AppEngine-TaskRetryCount": "0",
    "X-AppEngine-TaskExecutionCount": "0",
    "X-AppEngine-TaskETA": "1767323045.6789",
    "X-TaskQueue-Task": "0" * 32,
    "X-TaskQueue-Attempt": "1" * 8,
    "X-TaskQueue-Deadline": "30",
    "Content-Digest": "sha-256=:" + "x" * 44 + ":",
    "Signature-Input": "taskqueue=(" + "x" * 300 + ")",
    "Signature": "taskqueue=:" + "x" * 44 + ":",
}


class Worker:
    """Two handlers that do nothing: one that anybody may call, one that is a task."""

    def __init__(self) -> None:
        self.done = 0
        self.url = ""

    async def plain(self, request: web.Request) -> web.Response:
        await request.read()
        return web.Response()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve both."""

        @task
        async def work(request: web.Request) -> None:
            self.done += 1

        closed, open_to_all = web.Application(), web.Application()
        closed.router.add_post("/work", work)
        init_worker(closed, secrets=[SECRET])
        open_to_all.router.add_post("/work", self.plain)
        async with contextlib.AsyncExitStack() as stack:
            self.url = await stack.enter_async_context(serve(closed))
            self.plain_url = await stack.enter_async_context(serve(open_to_all))
            yield


@contextlib.asynccontextmanager
async def serve(app: web.Application) -> AsyncIterator[str]:
    """Serve `app` on a free port of this machine; give its base URL."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def post_bare(url: str, count: int) -> float:
    """Post `count` times, AT_ONCE at once; return how many a second."""
    left = count

    async def post(session: aiohttp.ClientSession) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            async with session.post(url, data=BODY, headers=HEADERS) as response:
                await response.read()
                assert response.status == 200

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        begun = time.perf_counter()
        await asyncio.gather(*(post(session) for _ in range(AT_ONCE)))
        return count / (time.perf_counter() - begun)


def make_task() -> Task:
    """Return the task that is delivered."""
    return Task(BODY, url="/work", headers={"Content-Type": "application/x-www-form-urlencoded"})


async def drain(worker: Worker, count: int, *, adders: int = 0) -> tuple[float, float]:
    """Deliver a backlog, or what so many coroutines add meanwhile; return tasks a second, and commits for each."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/tasks.db"
        service = TaskQueueService(
            path, target=worker.url, secrets=[SECRET], max_concurrent_deliveries=AT_ONCE, queues=[QueueConfig("default")]
        )
        async with service:
            await service.pause()
            if not adders:
                for _ in range(0, count, 1000):
                    await service.queue().add([make_task() for _ in range(1000)])
            worker.done, commits = 0, service._store._group.commits
            begun = time.perf_counter()
            await service.resume()
            if adders:
                await asyncio.gather(*(_add(service, count // adders) for _ in range(adders)))
            await service.run_until_idle()
            seconds = time.perf_counter() - begun
            assert worker.done == count // max(adders, 1) * max(adders, 1), worker.done
            return count / seconds, (service._store._group.commits - commits) / count


async def _add(service: TaskQueueService, count: int) -> None:
    queue = service.queue()
    for _ in range(count):
        await queue.add(make_task())


async def bench(options: Options) -> None:
    """Answer the questions."""
    count = options.scale(20_000, 4_000)
    worker = Worker()
    commits: list[float] = []

    async def ours(adders: int) -> float:
        rate, commits_each = await drain(worker, count, adders=adders)
        if not adders:
            commits.append(commits_each)
        return rate

    async with worker.serving():
        for name, adders, bar in (("from a backlog", 0, Bar(0.80, 0.95)), ("while 64 coroutines add", 64, Bar(0.65, 0.85))):
            await compare(
                options,
                f"drain over HTTP, 32 at once, {name}",
                "bare aiohttp client",
                bar,
                ours=lambda adders=adders: ours(adders),
                ceiling=lambda: post_bare(f"{worker.plain_url}/work", count),
            )
    median = sorted(commits[1:])[len(commits[1:]) // 2]
    note_one(options, "commits for each task of that backlog", "", Bar(1 / 16, 1 / 60, is_most=True), median)


if __name__ == "__main__":
    main(bench)
