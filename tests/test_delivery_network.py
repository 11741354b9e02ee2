"""A service behind a network that cuts, delays and repeats: in small what `crash/test_network.py` does at every byte (N-1, N-2)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hostile import OK, FastClock, answering, raw_server
from proxy import REQUEST, RESPONSE, Network, Plan
from signed_requests import SECRET

from aiotaskqueue import QueueConfig, Task, TaskQueueService, TaskRetryOptions

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ONCE = TaskRetryOptions(task_retry_limit=0)

# An answer has 173 bytes, the last 20 of which are its body.
RESPONSE_CUTS = (0, 1, 8, 9, 12, 15, 16, 17, 40, 100, 151, 152, 153, 154, 155, 171, 172, 173, 174)
REQUEST_CUTS = (0, 1, 100, 500, 900, 961, 962, 963, 980, 981, 2000)

PLANS = [
    *(Plan(kind, RESPONSE, at) for kind in ("reset", "close", "half") for at in RESPONSE_CUTS),
    *(Plan(kind, REQUEST, at) for kind in ("reset", "half") for at in REQUEST_CUTS),
    *(Plan("blackhole", side, at) for side in (REQUEST, RESPONSE) for at in (0, 10, 160)),
    *(Plan(kind, side) for kind in ("twice", "late", "slowly", "trickle") for side in (REQUEST, RESPONSE)),
]


async def finish(service: TaskQueueService) -> None:
    """Wait until each task is done or dead."""
    while any(statistics.tasks for statistics in await service.statistics()):
        await asyncio.sleep(0.01)


@pytest.mark.promise("P2", "P6")
@pytest.mark.row(65, 66, 72, 82, 83)
async def test_cuts(tmp_path: Path) -> None:
    """Whatever the network does to an exchange, a task is done only if its whole answer came, and then it is."""
    config = QueueConfig("default", retry_options=ONCE, dispatch_deadline_seconds=10.0)
    tasks = {f"t{number}": plan for number, plan in enumerate(PLANS)} | {f"p{i}": Plan("pass") for i in range(30)}
    async with Network().up() as network:
        async with TaskQueueService(
            tmp_path / "tasks.db", queues=[config], target=network.url, secrets=[SECRET], clock=FastClock()
        ) as service:
            await service.queue().add([Task(url=plan.url, name=name) for name, plan in tasks.items()])
            await finish(service)
            dead = {stored.name async for stored in service.queue().dead_tasks()}
    done = tasks.keys() - dead

    assert ({}, {}) == ({name: tasks[name] for name in done - network.sent}, {name: tasks[name] for name in network.passed - done})
    assert set() == done - network.worked.keys()
    assert 30 < len(done) < len(tasks) - 30


@pytest.mark.promise("P7")
@pytest.mark.row(66)
async def test_tricklers(tmp_path: Path) -> None:
    """While fifty workers trickle, a healthy queue does not wait for them; then each of them is given up for its deadline."""
    configs = [QueueConfig(name, target=name, max_concurrent_requests=50, retry_options=ONCE) for name in ("slow", "quick")]
    async with raw_server(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", *([0.05, b"a"] * 8), 60.0)) as trickle:
        async with raw_server(answering(OK)) as healthy:
            targets = {"slow": trickle.base_url, "quick": healthy.base_url}
            async with TaskQueueService(tmp_path / "tasks.db", queues=configs, targets=targets, clock=FastClock()) as service:
                slow, quick = service.queue("slow"), service.queue("quick")
                await slow.add([Task(url="/w", dispatch_deadline_seconds=5.0) for _ in range(50)])
                while len(trickle.requests) < 50:
                    await asyncio.sleep(0.001)
                await quick.add([Task(url="/w") for _ in range(20)])
                while (await quick.fetch_statistics()).tasks:
                    await asyncio.sleep(0.001)
                unfinished = (await slow.fetch_statistics()).tasks
                await finish(service)
                reasons = [stored.dead_reason async for stored in slow.dead_tasks()]

    assert (50, ["deadline"] * 50) == (unfinished, reasons)
