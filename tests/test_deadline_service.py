"""The deadline of a handler in an aiohttp application, through a whole service: the answer, the log of attempts, the retry."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from on_clock import EXACT

from aiotaskqueue import TaskQueueService, TaskRetryOptions
from aiotaskqueue.errors import UnknownTaskError
from aiotaskqueue.tasks import DeadlineExceededError, TaskAnswer, current_task, repeat_task, terminate_task
from aiotaskqueue.testing import VirtualClock
from aiotaskqueue.web.aiohttp import init_app, task

pytestmark = pytest.mark.anyio

Work = Callable[[web.Request, VirtualClock], Awaitable[web.StreamResponse | TaskAnswer | None]]

# Long enough for tests that look at a first attempt only.
RARELY = TaskRetryOptions(min_backoff_seconds=100.0)


async def hang() -> None:
    """Wait for ever."""
    await asyncio.Event().wait()


# --- handlers ------------------------------------------------------------------------------------------------------


async def wait_plainly(request: web.Request, clock: VirtualClock) -> None:
    """Let the error through."""
    await hang()


async def save_and_answer(request: web.Request, clock: VirtualClock) -> web.Response:
    """Answer at the end of the grace."""
    with contextlib.suppress(DeadlineExceededError):
        await hang()
    await clock.sleep(0.9)
    return web.Response(text="saved")


async def save_and_repeat(request: web.Request, clock: VirtualClock) -> TaskAnswer:
    """Catch the error, and ask for another attempt."""
    with contextlib.suppress(DeadlineExceededError):
        await hang()
    return repeat_task()


async def save_for_too_long(request: web.Request, clock: VirtualClock) -> None:
    """Catch the error, and go on."""
    with contextlib.suppress(DeadlineExceededError):
        await hang()
    await hang()


async def survive(request: web.Request, clock: VirtualClock) -> web.Response:
    """Swallow everything, and answer long after the end."""
    for _ in range(3):
        with contextlib.suppress(BaseException):
            await hang()
    return web.Response()


async def begin_an_answer(request: web.Request, clock: VirtualClock) -> web.StreamResponse:
    """Have sent the head of a 200 when the deadline comes."""
    response = web.StreamResponse()
    await response.prepare(request)
    await hang()
    return response


async def terminate(request: web.Request, clock: VirtualClock) -> TaskAnswer:
    """End the task."""
    return terminate_task()


async def repeat(request: web.Request, clock: VirtualClock) -> TaskAnswer:
    """Ask for another attempt."""
    return repeat_task()


# --- a service -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(path: Path, clock: VirtualClock, work: Work) -> AsyncIterator[TaskQueueService]:
    """Run a service in an application whose worker does that on a first attempt, and nothing on a second."""

    @task
    async def worker(request: web.Request) -> web.StreamResponse | TaskAnswer | None:
        if current_task().retry_count == 0:
            return await work(request, clock)
        return None

    service = TaskQueueService(path / "tasks.db", queues=[EXACT], clock=clock)
    app = web.Application()
    app.router.add_post("/worker", worker)
    init_app(app, service)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        yield service
    finally:
        await runner.cleanup()


async def attempts(service: TaskQueueService) -> list[tuple[str, int | None, float]] | None:
    """Return the failed attempts of the task: reason, status, how long each took in seconds; None: there is no task."""
    try:
        stored = await service.queue().get_task("one")
    except UnknownTaskError:
        return None
    assert stored.attempts is not None
    return [(line.reason, line.status, (line.ended_usec - line.started_usec) / 1_000_000) for line in stored.attempts]


ENDINGS: list[tuple[Work, list[tuple[str, int | None, float]] | None, list[str]]] = [
    (wait_plainly, [("status", 500, 30.0)], ["Task one exceeded its deadline."]),
    (save_and_answer, None, []),
    (save_and_repeat, [("status", 500, 30.0)], []),
    # Dispatcher and worker have the same clock here, and what is answered in the moment of its end still counts as an answer.
    (save_for_too_long, [("status", 500, 31.0)], ["Task one exceeded its deadline."]),
    (survive, [("deadline", None, 31.0)], ["Task one was cancelled after its deadline of 30 seconds."]),
    (begin_an_answer, [("truncated", None, 30.0)], ["Task one exceeded its deadline."]),
    (terminate, None, []),
    (repeat, [("status", 500, 0.0)], []),
]


@pytest.mark.slow
@pytest.mark.promise("P7", "P9")
@pytest.mark.parametrize(("work", "failures", "log"), ENDINGS, ids=[work.__name__ for work, _, _ in ENDINGS])
async def test_attempt(
    tmp_path: Path, work: Work, failures: list[tuple[str, int | None, float]] | None, log: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """An answer in the grace is a success; otherwise the attempt has failed, and is made once more."""
    clock = VirtualClock()
    async with serving(tmp_path, clock, work) as service:
        await service.add(b"canary", name="one", url="/worker", headers={"X-Canary": "canary"}, retry_options=RARELY)
        await clock.advance(40)

        assert failures == await attempts(service)
        await clock.advance(200)
        assert await attempts(service) is None

    worker = [record.getMessage() for record in caplog.records if record.name.startswith(("aiotaskqueue.worker", "aiotaskqueue.web"))]
    assert log == worker
    assert "canary" not in caplog.text
