"""P19: a million tasks that are due at once cost neither memory nor the application's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from open_stores import raw

from aiotaskqueue import TaskQueueService
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.delivery._base import Answer, Delivery
from aiotaskqueue.stores._base import Exchange
from aiotaskqueue.stores.sqlite import SQLiteStore

TASKS = 1_000_000
SECONDS = 15.0

# RELIABILITY P19, L-3.
MOST_RSS_BYTES = 50 * 1024 * 1024
MOST_LAG_SECONDS = 0.05

INSERT = """
    INSERT INTO taskqueue_task (queue_id, name, uuid, eta_usec, created_usec, is_named, method, url)
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
    SELECT (SELECT id FROM taskqueue_queue), printf('n%07d', i), randomblob(16), 1000000 + i, 1000000, 0, 'POST', '/w' FROM n
"""


class Instant(Delivery):
    """Answers 200 at once, and counts."""

    has_answered = True

    def __init__(self) -> None:
        self.deliveries = 0

    async def deliver(self, record: TaskRecord, *, deadline_seconds: float) -> Answer:
        self.deliveries += 1
        await asyncio.sleep(0)
        return Answer(200)


class TimedStore(SQLiteStore):
    """Notes how long each exchange takes that leases something."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.seconds: list[float] = []

    async def exchange(self, *arguments: Any, **rest: Any) -> Exchange:
        begun = time.perf_counter()
        exchange = await super().exchange(*arguments, **rest)
        if exchange.leased:
            self.seconds.append(time.perf_counter() - begun)
        return exchange


@contextlib.asynccontextmanager
async def lags() -> AsyncIterator[list[float]]:
    """Note while the block runs by how much a short sleep is late."""
    found: list[float] = []

    async def look() -> None:
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(0.005)
            found.append(time.perf_counter() - begun - 0.005)

    looking = asyncio.create_task(look())
    yield found
    looking.cancel()
    await asyncio.wait({looking})


def rss_bytes() -> int:
    """Return how much memory this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of them do not exceed."""
    return sorted(values)[int(len(values) * share)]


async def fill(path: Path) -> None:
    """Make a database with so many due tasks."""
    async with TaskQueueService(path, dispatch=False):
        pass
    with raw(path) as connection:
        connection.execute("BEGIN")
        connection.execute(INSERT, (TASKS,))
        connection.execute("UPDATE taskqueue_sequence SET last_id = ?", (TASKS,))
        connection.execute("COMMIT")


@pytest.mark.row(100)
@pytest.mark.anyio
@pytest.mark.crash
@pytest.mark.timeout(180)
@pytest.mark.promise("P19")
async def test_a_million_due_tasks(tmp_path: Path) -> None:
    """Working on a million due tasks takes less than 50 MB more, and delays the loop by less than 50 ms in 99 of 100 turns."""
    path = tmp_path / "tasks.db"
    await fill(path)
    store, delivery, rss = TimedStore(path), Instant(), [rss_bytes()]
    async with TaskQueueService(store=store, delivery=delivery), lags() as lag:
        for _ in range(10):
            await asyncio.sleep(SECONDS / 10)
            rss.append(rss_bytes())

    grown, late, lease = max(rss) - rss[0], percentile(lag, 0.99), percentile(store.seconds, 0.99)
    print(
        f"\n{delivery.deliveries / SECONDS:,.0f} tasks/s of {TASKS:,}; RSS +{grown / 2**20:.1f} MB;"
        f" lag p99 {late * 1000:.1f} ms; exchanges p50 {percentile(store.seconds, 0.5) * 1000:.1f} ms, p99 {lease * 1000:.1f} ms"
    )

    assert delivery.deliveries > 1000
    assert grown < MOST_RSS_BYTES
    assert late < MOST_LAG_SECONDS
