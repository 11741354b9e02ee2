"""P12: however many coroutines and processes add one name at the same time, exactly one of them succeeds."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import BE_PATIENT, STRICT
from open_stores import query, raw

from aiotaskqueue import TaskQueueService
from aiotaskqueue.testing import RecordingDelivery

PROCESSES = 4

# Adds the name that it is told 64 times at once, and says how each of them ended; until there is no more to read.
ADDER = """
    import asyncio, collections, sys
    from aiotaskqueue import Task, TaskQueueService

    async def add(service, name):
        adds = [service.add(url="/w", name=name) for _ in range(64)]
        results = await asyncio.gather(*adds, return_exceptions=True)
        print(*(type(result).__name__ for result in results), flush=True)

    async def main():
        async with TaskQueueService(sys.argv[1], dispatch=False) as service:
            print("ready", flush=True)
            while line := await asyncio.to_thread(sys.stdin.readline):
                await add(service, line.strip())

    asyncio.run(main())
"""


@contextlib.contextmanager
def adders(folder: Path, database: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Run the processes that add; give them when all are ready."""
    script = folder / "adder.py"
    script.write_text(BE_PATIENT + textwrap.dedent(ADDER))
    command = [sys.executable, *STRICT, str(script), str(database)]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    try:
        assert ["ready\n"] * PROCESSES == [child.stdout.readline() for child in children if child.stdout is not None]
        yield children
    finally:
        for child in children:
            child.communicate(timeout=10)

        assert [0] * PROCESSES == [child.returncode for child in children]


def add_at_once(children: list[subprocess.Popen[str]], name: str) -> Counter[str]:
    """Let all add the name; return how often an add ended in which way."""
    for child in children:
        assert child.stdin is not None
        child.stdin.write(f"{name}\n")
        child.stdin.flush()
    return Counter(word for child in children if child.stdout is not None for word in child.stdout.readline().split())


async def deliver(database: Path) -> int:
    """Deliver what is due, and return how many tasks that were."""
    delivery = RecordingDelivery()
    async with TaskQueueService(database, delivery=delivery) as service:
        await service.run_until_idle()
    return len(delivery.deliveries)


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.promise("P12")
async def test_one_name_from_many_processes(tmp_path: Path) -> None:
    """Of 256 adds one succeeds and the others get a typed error: at first, after the task is done, and when its name is free again."""
    database = tmp_path / "tasks.db"
    with adders(tmp_path, database) as children:
        first = add_at_once(children, "only")
        delivered = await deliver(database)
        reserved = add_at_once(children, "only")
        with raw(database) as connection:
            connection.execute("UPDATE taskqueue_tombstone SET expires_usec = 0")
        freed = add_at_once(children, "only")

    assert {"Task": 1, "TaskAlreadyExistsError": 255} == first
    assert 1 == delivered
    assert {"TombstonedTaskError": 256} == reserved
    assert {"Task": 1, "TaskAlreadyExistsError": 255} == freed
    assert ["only"] == query(database, "SELECT name FROM taskqueue_task")
