"""How fast is a backlog delivered to an ASGI application in the same process, without a socket?

Ours is the whole way: lease, call, complete; durable, until the last row is gone. The ceiling calls the same kind of
application directly, with the same body and as many headers. And the same backlog over HTTP, to an aiohttp worker.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

from drain import AT_ONCE, BODY, HEADERS, Worker, drain, make_task
from harness import Bar, Options, compare, main
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aiotaskqueue import QueueConfig, TaskQueueService
from aiotaskqueue.web.starlette import init_app, task


async def call_directly(count: int) -> float:
    """Call an application whose handler only reads the body; return calls a second."""

    async def work(request: Request) -> Response:
        await request.body()
        return Response()

    app = Starlette(routes=[Route("/work", work, methods=["POST"])])
    headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
    statuses = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    begun = time.perf_counter()
    for _ in range(count):
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/work",
            "raw_path": b"/work",
            "query_string": b"",
            "root_path": "",
            "headers": list(headers),
            "client": ("127.0.0.1", 0),
            "server": ("localhost", 80),
            "state": {},
        }
        await app(scope, receive, send)
    seconds = time.perf_counter() - begun
    assert statuses == [200] * count
    return count / seconds


async def drain_in_process(count: int) -> float:
    """Deliver a backlog to the application that embeds the service; return tasks a second."""
    done = 0

    async def work(request: Request) -> None:
        nonlocal done
        done += 1

    app = Starlette(routes=[Route("/work", task(work), methods=["POST"])])
    with tempfile.TemporaryDirectory() as folder:
        service = TaskQueueService(f"{folder}/tasks.db", max_concurrent_deliveries=AT_ONCE, queues=[QueueConfig("default")])
        init_app(app, service)
        async with app.router.lifespan_context(app):
            await service.pause()
            for _ in range(0, count, 1000):
                await service.queue().add([make_task() for _ in range(1000)])
            begun = time.perf_counter()
            await service.resume()
            await service.run_until_idle()
            seconds = time.perf_counter() - begun
            assert done == count, done
            return count / seconds


async def bench(options: Options) -> None:
    """Answer the questions."""
    count = options.scale(50_000, 10_000)
    await compare(
        options,
        "drain in process, 32 at once, from a backlog",
        "calling the application",
        Bar(0.25, 0.50),
        ours=lambda: drain_in_process(count),
        ceiling=lambda: call_directly(count),
    )
    worker = Worker()

    async def drain_over_http() -> float:
        rate, _ = await drain(worker, count // 5)
        return rate

    async with worker.serving():
        await compare(
            options,
            "the same",
            "our drain over HTTP",
            Bar(2.0, 4.0),
            ours=lambda: drain_in_process(count // 5),
            ceiling=drain_over_http,
        )


if __name__ == "__main__":
    main(bench)
