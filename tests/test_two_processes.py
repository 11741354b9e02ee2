"""Two processes deliver the tasks of one file to one worker: each once; and one takes over when the other is killed."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import anyio
import anyio.abc
import attrs
import pytest
from aiohttp import web
from crash_child import CONFIG

from aiotaskqueue import Task, TaskQueueService

pytestmark = pytest.mark.anyio

CHILD = Path(__file__).with_name("crash_child.py")

# RELIABILITY P5: the tasks of a process that died on this host are tried again within this.
RESCUE_SECONDS = 5.0
PATIENCE_SECONDS = 60.0


@attrs.frozen
class Visit:
    """An attempt, as the worker saw it."""

    name: str
    sender: str
    time: float


class Worker:
    """Writes down who delivered what when: each process has a path of its own before the tasks' URL."""

    def __init__(self) -> None:
        self.visits: list[Visit] = []
        self.in_flight = 0
        self.most_in_flight = 0

    async def answer(self, request: web.Request) -> web.Response:
        """Take up to 20 ms for a task."""
        self.visits.append(Visit(request.headers["X-AppEngine-TaskName"], request.match_info["sender"], asyncio.get_running_loop().time()))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(random.uniform(0.0, 0.02))
        self.in_flight -= 1
        return web.Response()

    def senders(self, names: set[str]) -> Counter[str]:
        """Return how many deliveries of these tasks each process made."""
        return Counter(visit.sender for visit in self.visits if visit.name in names)

    def counts(self, names: set[str]) -> Counter[str]:
        """Return how often each of these tasks was delivered."""
        return Counter(visit.name for visit in self.visits if visit.name in names)


@asynccontextmanager
async def serving(worker: Worker) -> AsyncIterator[str]:
    """Serve the worker and give its base URL."""
    app = web.Application()
    app.router.add_post("/{sender}/worker", worker.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def dispatching(database: Path, target: str) -> AsyncIterator[anyio.abc.Process]:
    """Run a process that delivers to the target; give it when it does."""
    command = [sys.executable, "-X", "faulthandler", "-W", "error", str(CHILD), "dispatch", str(database), target]
    async with await anyio.open_process(command, stderr=None) as process:
        assert process.stdout is not None
        assert b"ready\n" == await process.stdout.receive()
        try:
            yield process
        finally:
            assert process.stdin is not None
            await process.stdin.aclose()


async def add(database: Path, count: int) -> set[str]:
    """Add tasks from a process that delivers nothing, and is gone afterwards; return their names."""
    async with TaskQueueService(database, queues=[CONFIG], dispatch=False) as service:
        tasks = await service.queue().add(Task(url="/worker") for _ in range(count))
    return {task.name for task in tasks if task.name is not None}


def read(database: Path, statement: str, *arguments: object) -> list[tuple[object, ...]]:
    """Read from the database behind everybody's back."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(statement, arguments).fetchall()


def is_empty(database: Path) -> bool:
    """Whether no task is left."""
    return [] == read(database, "SELECT 1 FROM taskqueue_task LIMIT 1")


async def wait_until(claim: Callable[[], bool]) -> None:
    """Look every 10 ms, from outside, whether it is so."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while not claim():
            await anyio.sleep(0.01)


async def kill(victim: anyio.abc.Process, survivor: anyio.abc.Process, database: Path) -> set[str]:
    """Kill one process; return the tasks that it had in flight, which the other, stopped meanwhile, cannot have taken yet."""
    survivor.send_signal(signal.SIGSTOP)
    victim.kill()
    await victim.wait()
    statement = "SELECT name FROM taskqueue_task AS t JOIN taskqueue_process AS p ON p.id = process_id WHERE t.state = 1 AND p.pid = ?"
    orphans = {str(name) for (name,) in read(database, statement, victim.pid)}
    survivor.send_signal(signal.SIGCONT)
    return orphans


@pytest.mark.promise("P2", "P3", "P4", "P5")
@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_two_processes_share_the_work_and_one_takes_over_when_the_other_is_killed(tmp_path: Path) -> None:
    """Two processes on one file deliver each task once; a killed one's tasks are delivered by the other within 5 s."""
    worker, database = Worker(), tmp_path / "tasks.db"
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(worker))
        killed, other = [await stack.enter_async_context(dispatching(database, f"{url}/{sender}")) for sender in ("killed", "other")]

        shared = await add(database, 2_000)
        await wait_until(lambda: is_empty(database))

        assert {"killed", "other"} == worker.senders(shared).keys()
        assert dict.fromkeys(shared, 1) == worker.counts(shared)
        assert worker.most_in_flight <= CONFIG.max_concurrent_requests

        halved = await add(database, 1_000)
        await wait_until(lambda: worker.counts(halved).total() > 300)
        orphans = await kill(killed, other, database)
        killed_at = asyncio.get_running_loop().time()
        await wait_until(lambda: is_empty(database))

    counts = worker.counts(halved)
    rescues = {visit.name: visit.time - killed_at for visit in worker.visits if visit.sender == "other" and visit.name in orphans}

    assert 0 == other.returncode
    assert orphans
    assert orphans == rescues.keys()
    assert max(rescues.values()) < RESCUE_SECONDS
    assert halved == counts.keys(), "A task was lost"
    assert {name for name, count in counts.items() if count > 1} <= orphans, "A task was repeated that was not in flight at the kill"
    assert max(counts.values()) <= 2
    assert [(0.0,)] == read(database, "SELECT total(tasks) FROM taskqueue_in_flight")
