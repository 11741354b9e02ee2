"""How fast are tasks added, durably, against what aiosqlite does with the same rows?

The ceiling is `executemany` of 1000 such rows in one transaction, into the same tables with the same indexes; and the
naive way, one transaction for each row. Tasks and rows are made before the time is taken.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import time
from pathlib import Path

import aiosqlite
from harness import Bar, Options, compare, main, note_pairs

from aiotaskqueue import Task, TaskQueueService
from aiotaskqueue._record import NameGenerator, record_of
from aiotaskqueue.stores._sqlite_rows import INSERT_TASK, Row, new_row

BODY = os.urandom(200)
ROWS = 1000


def make_tasks(count: int) -> list[Task]:
    """Return tasks that are due in an hour: nothing is delivered meanwhile."""
    return [Task(BODY, url="/work", countdown=3600) for _ in range(count)]


class Store:
    """A service that delivers nothing, and a naked connection to a file of the same schema."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._numbers = itertools.count()

    def service(self) -> TaskQueueService:
        """Return a service on a new file."""
        return TaskQueueService(self._folder / f"ours-{next(self._numbers)}.db", dispatch=False)

    async def add_concurrently(self, count: int, adders: int, times: list[float] | None = None) -> float:
        """Add one by one from so many coroutines; return tasks a second."""
        async with self.service() as service:
            queue = service.queue()
            tasks = iter(make_tasks(count))

            async def add() -> None:
                for task in tasks:
                    before = time.perf_counter()
                    await queue.add(task)
                    if times is not None:
                        times.append(time.perf_counter() - before)

            begun = time.perf_counter()
            await asyncio.gather(*(add() for _ in range(adders)))
            return count / (time.perf_counter() - begun)

    async def add_lists(self, count: int) -> float:
        """Add a thousand at a time; return tasks a second."""
        async with self.service() as service:
            lists = [make_tasks(ROWS) for _ in range(count // ROWS)]
            begun = time.perf_counter()
            for tasks in lists:
                await service.queue().add(tasks)
            return count / (time.perf_counter() - begun)

    async def execute_naked(self, count: int, rows: int) -> float:
        """Insert such rows through aiosqlite, so many in a transaction; return rows a second."""
        path = self._folder / f"naked-{next(self._numbers)}.db"
        async with TaskQueueService(path, dispatch=False):
            pass
        names = NameGenerator()
        now_usec = time.time_ns() // 1000
        made = [_row(task, names, number, now_usec) for number, task in enumerate(make_tasks(count), 1)]
        async with aiosqlite.connect(path, isolation_level=None) as connection:
            await connection.execute("PRAGMA synchronous = FULL")
            await connection.execute("PRAGMA wal_autocheckpoint = 100")
            begun = time.perf_counter()
            for start in range(0, count, rows):
                if rows == 1:
                    await connection.execute(INSERT_TASK, made[start])
                    continue
                await connection.execute("BEGIN IMMEDIATE")
                await connection.executemany(INSERT_TASK, made[start : start + rows])
                await connection.execute("COMMIT")
            return count / (time.perf_counter() - begun)


def _row(task: Task, names: NameGenerator, number: int, now_usec: int) -> Row:
    record = record_of(task, queue_name="default", name=names.name(now_usec), uuid=names.uuid(), now_usec=now_usec)
    return new_row(record, number, 1, None)


async def bench(options: Options) -> None:
    """Answer the questions."""
    count = options.scale(40_000, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        many = "aiosqlite executemany of 1000"
        for adders, bar in ((512, Bar(0.45, 0.65)), (64, Bar(0.30, 0.45))):
            await compare(
                options,
                f"add, {adders} coroutines",
                many,
                bar,
                ours=lambda adders=adders: store.add_concurrently(count, adders),
                ceiling=lambda: store.execute_naked(count, ROWS),
            )
        await compare(
            options,
            "add, 64 coroutines",
            "one transaction for each",
            Bar(10, 15),
            ours=lambda: store.add_concurrently(count, 64),
            ceiling=lambda: store.execute_naked(count // 20, 1),
        )
        await compare(
            options,
            "add of a list of 1000",
            many,
            Bar(0.60, 0.85),
            ours=lambda: store.add_lists(count),
            ceiling=lambda: store.execute_naked(count, ROWS),
        )
        await bench_spread(options, store)


async def bench_spread(options: Options, store: Store) -> None:
    """How much longer than usual does an add take at worst?"""
    spreads = []
    for _ in range(1 if options.is_quick else 3):
        times: list[float] = []
        await store.add_concurrently(options.scale(100_000, 20_000), 64, times)
        times.sort()
        spreads.append((times[len(times) * 99 // 100], times[len(times) // 2]))
    note_pairs(options, "p99 of an add among 64 coroutines", "its p50", Bar(5, 3, is_most=True), spreads, unit="", is_time=True)


if __name__ == "__main__":
    main(bench)
