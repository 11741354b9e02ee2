"""P4: a process that stands still loses its task when the lease has passed, and what it then says of it changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import anyio.abc
import pytest
from aiohttp import web
from children import BE_PATIENT, STRICT
from open_stores import query

from aiotaskqueue import QueueConfig, TaskQueueService

# One second of deadline, one of grace, ten of slack.
CONFIG = QueueConfig("default", dispatch_deadline_seconds=1)
LEASE_SECONDS = 12.0

# Delivers until stdin ends, and then says how many of its results came too late.
DISPATCHER = """
    import asyncio, os, sys
    from aiotaskqueue import QueueConfig, TaskQueueService

    async def main():
        config = QueueConfig("default", dispatch_deadline_seconds=1)
        async with TaskQueueService(sys.argv[1], queues=[config], target=sys.argv[2]) as service:
            os.write(1, b"ready")
            await asyncio.to_thread(sys.stdin.read)
            statistics = service._dispatcher.statistics
        os.write(1, f"{statistics.completed} completed, {statistics.stale_results} too late".encode())

    asyncio.run(main())
"""


class Worker:
    """Notes who asks for what, and answers when it is told to."""

    def __init__(self) -> None:
        self.senders: list[str] = []
        self.may_answer = {"stopped": asyncio.Event(), "other": asyncio.Event()}

    async def answer(self, request: web.Request) -> web.Response:
        """Answer 200, in its time."""
        sender = request.match_info["sender"]
        self.senders.append(sender)
        await self.may_answer[sender].wait()
        return web.Response()


@contextlib.asynccontextmanager
async def serving(worker: Worker) -> AsyncIterator[str]:
    """Serve the worker and give its base URL."""
    app = web.Application()
    app.router.add_post("/{sender}/w", worker.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def dispatching(database: Path, target: str) -> AsyncIterator[anyio.abc.Process]:
    """Run a process that delivers to the target; give it when it does."""
    script = database.with_name("dispatcher.py")
    script.write_text(BE_PATIENT + textwrap.dedent(DISPATCHER))
    async with await anyio.open_process([sys.executable, *STRICT, str(script), str(database), target], stderr=None) as process:
        assert process.stdout is not None
        assert b"ready" == await process.stdout.receive()
        yield process


async def end(process: anyio.abc.Process) -> bytes:
    """Let a process end, and return what it says then."""
    assert process.stdin is not None
    assert process.stdout is not None
    await process.stdin.aclose()
    said = await process.stdout.receive()
    assert 0 == await process.wait()
    return said


async def until(claim: Callable[[], object]) -> None:
    """Look every 10 ms, from outside, whether it is so."""
    with anyio.fail_after(10):
        while not claim():
            await anyio.sleep(0.01)


@pytest.mark.anyio
@pytest.mark.crash
@pytest.mark.timeout(120)
@pytest.mark.promise("P4")
async def test_result_of_a_process_that_stood_still(tmp_path: Path) -> None:
    """A process is stopped for two leases with a task in flight; meanwhile another one takes it, and the first one's 200 is refused."""
    worker, database = Worker(), tmp_path / "tasks.db"
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(worker))
        stopped = await stack.enter_async_context(dispatching(database, f"{url}/stopped"))
        async with TaskQueueService(database, queues=[CONFIG], dispatch=False) as service:
            await service.add(url="/w", name="only")
        await until(lambda: worker.senders)
        stopped.send_signal(signal.SIGSTOP)
        worker.may_answer["stopped"].set()  # in time: it lies in the socket of the one that stands still
        (before,) = query(database, "SELECT lease_token FROM taskqueue_task")

        await anyio.sleep(LEASE_SECONDS + 0.5)
        other = await stack.enter_async_context(dispatching(database, f"{url}/other"))
        await until(lambda: len(worker.senders) == 2)
        await anyio.sleep(0.2)
        (leased,) = query(database, "SELECT state, attempts, lease_token FROM taskqueue_task")
        stopped.send_signal(signal.SIGCONT)
        said_by_stopped = await end(stopped)
        (after,) = query(database, "SELECT state, attempts, lease_token FROM taskqueue_task")
        worker.may_answer["other"].set()
        await until(lambda: [] == query(database, "SELECT 1 FROM taskqueue_task"))
        said_by_other = await end(other)

    assert ["stopped", "other"] == worker.senders
    assert (1, 2) == leased[:2]
    assert before < leased[2]
    assert leased == after
    assert [b"0 completed, 1 too late", b"1 completed, 0 too late"] == [said_by_stopped, said_by_other]
