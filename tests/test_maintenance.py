"""Maintenance: chores that run beside everything else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from on_clock import EXACT, TouchyStore, serving, until
from open_stores import add, lease, new_record, query, running

from aiotaskqueue import QueueConfig, TaskRetryOptions, _clock
from aiotaskqueue._clock import SystemClock
from aiotaskqueue._maintenance import SWEEP_SLICE, Maintenance
from aiotaskqueue.errors import StoreBusyError, TombstonedTaskError
from aiotaskqueue.testing import RecordingDelivery

pytestmark = pytest.mark.anyio


class SweptStore(TouchyStore):
    """A store that counts its sweeps, and says how many rows each of them removed."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.sweeps = 0
        self.removed: Iterator[int | Exception] = iter(())

    async def sweep(self, *, now_usec: int, limit: int) -> int:
        """Remove what was told."""
        self.sweeps += 1
        removed = next(self.removed, 0)
        if isinstance(removed, Exception):
            raise removed
        return removed


@contextlib.asynccontextmanager
async def cancelled_afterwards(function: Callable[[], Awaitable[None]]):  # type: ignore[no-untyped-def]
    """Run a loop beside the block."""

    async def call() -> None:
        await function()

    task = asyncio.create_task(call())
    yield
    task.cancel()
    await asyncio.wait({task})


# --- sweeps --------------------------------------------------------------------------------------------------------


async def test_sweeps_every_hour(tmp_path: Path) -> None:
    """Expired rows are swept at the start and then every hour."""
    async with serving(tmp_path) as bench:
        counts = []
        original = bench.store.sweep

        async def sweep(*, now_usec: int, limit: int) -> int:
            counts.append((now_usec - bench.clock._start_usec) / 1_000_000)
            return await original(now_usec=now_usec, limit=limit)

        bench.store.sweep = sweep  # type: ignore[method-assign]
        await bench.clock.advance(timedelta(hours=3, seconds=1))

    assert [3600.0, 7200.0, 10_800.0] == counts


async def test_looking_at_the_clock_is_no_reason_to_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's clock wakes its sleepers every minute; sweeping waits for its hour all the same."""
    monkeypatch.setattr(_clock, "LONGEST_SLEEP_SECONDS", 0.0)
    store, looks = SweptStore(), 0

    class Looking(SystemClock):
        async def wait(self, *args: object, **kwargs: object) -> None:
            nonlocal looks
            looks += 1
            await super().wait(*args, **kwargs)  # type: ignore[arg-type]

    maintenance = Maintenance(store=store, clock=Looking(), queues=[], on_rescue=lambda: None)
    async with cancelled_afterwards(maintenance.run_sweeps):
        await until(lambda: looks > 10)

    assert 1 == store.sweeps


async def test_sweeps_in_slices() -> None:
    """As long as a sweep finds a whole slice, the next one follows at once."""
    store = SweptStore()
    store.removed = iter([SWEEP_SLICE, SWEEP_SLICE + 1, SWEEP_SLICE - 1])
    maintenance = Maintenance(store=store, clock=SystemClock(), queues=[], on_rescue=lambda: None)
    async with cancelled_afterwards(maintenance.run_sweeps):
        await until(lambda: store.sweeps >= 3)
        await asyncio.sleep(0)

    assert 3 == store.sweeps


async def test_sweep_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sweep that the store refuses is tried again soon, and nothing else suffers."""
    async with serving(tmp_path) as bench:
        original, failures = bench.store.sweep, iter([StoreBusyError("Locked.")])

        async def sweep(*, now_usec: int, limit: int) -> int:
            for error in failures:
                raise error
            return await original(now_usec=now_usec, limit=limit)

        bench.store.sweep = sweep  # type: ignore[method-assign]
        await bench.service.add(url="/w")
        await bench.clock.advance(3601)

        assert [] == await bench.stored()

    assert ["The sweep failed and is started again in 0.1 s."] == [record.getMessage() for record in caplog.records]


@pytest.mark.promise("P12")
@pytest.mark.slow
async def test_tombstone_lasts_nine_days(tmp_path: Path) -> None:
    """P12: the name of a task that succeeded is reserved for nine days from its end, and then free (SPEC 3.5)."""
    async with serving(tmp_path) as bench:
        await bench.service.add(url="/w", name="once")
        await bench.clock.advance(5)
        await bench.clock.advance(timedelta(days=9) - timedelta(seconds=5, microseconds=1))
        with pytest.raises(TombstonedTaskError, match="'once'"):
            await bench.service.add(url="/w", name="once")
        await bench.clock.advance(0.000001)
        await bench.service.add(url="/w", name="once")
        await bench.clock.advance(1)

        assert ["once", "once"] == bench.names


@pytest.mark.slow
async def test_expired_tombstones_are_swept(tmp_path: Path) -> None:
    """Tombstones that have expired go with the next sweep, and no others do."""
    async with serving(tmp_path, QueueConfig("default", tombstone_seconds=7200)) as bench:
        await bench.service.add(url="/w", name="first")
        await bench.clock.advance(3700)
        await bench.service.add(url="/w", name="second")
        await bench.clock.advance(3500)

        assert ["second"] == query(tmp_path / "tasks.db", "SELECT name FROM taskqueue_tombstone")


@pytest.mark.slow
async def test_dead_tasks_are_kept_for_thirty_days(tmp_path: Path) -> None:
    """A dead task is kept, with its name, for thirty days, and is gone with its log within the hour after them (DESIGN 6)."""
    async with serving(tmp_path, delivery=RecordingDelivery(lambda record: 500)) as bench:
        await bench.service.add(url="/w", name="hopeless", retry_options=TaskRetryOptions(task_retry_limit=1))
        await bench.clock.advance(1)
        await bench.clock.advance(timedelta(days=30) - timedelta(seconds=1))
        with pytest.raises(TombstonedTaskError, match="'hopeless'"):
            await bench.service.add(url="/w", name="hopeless")

        assert 2 == len(await bench.attempts("hopeless"))

        await bench.clock.advance(3600)

        assert ([], []) == (await bench.stored(), query(tmp_path / "tasks.db", "SELECT 1 FROM taskqueue_attempt"))

        await bench.service.add(url="/w", name="hopeless")


# --- rescues -------------------------------------------------------------------------------------------------------


async def crash(path: Path, *names: str, count: int | None = None) -> None:
    """Leave a file behind as a process does that is killed with tasks in flight; it has no others."""
    async with running(path / "tasks.db", EXACT) as store:
        await add(store, *[new_record(name, queue=EXACT) for name in names], queue=EXACT)
        await lease(store, EXACT, places=len(names) if count is None else count)


async def test_rescue_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """P5: what a killed process had in flight is delivered by the next one that starts."""
    await crash(tmp_path, "a", "b")
    async with serving(tmp_path) as bench:
        await bench.service.run_until_idle()

    assert ["a", "b"] == sorted(bench.names)
    assert ["2 tasks were in flight in a process that ended; they are tried again."] == [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    ]


async def test_rescue_while_running(tmp_path: Path) -> None:
    """P5: what another process had in flight when it died is delivered by one that runs, once it is told of the death."""
    async with serving(tmp_path) as bench:
        await crash(tmp_path, "a")
        assert bench.service._maintenance is not None
        bench.service._maintenance.notice_orphans()
        with bench.clock.released():
            await until(lambda: bench.names)

    assert ["a"] == bench.names


async def test_nothing_to_rescue(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Being told of orphans that are none does nothing and says nothing."""
    async with serving(tmp_path) as bench:
        assert bench.service._maintenance is not None
        bench.service._maintenance.notice_orphans()
        await bench.clock.advance(1)

    assert ([], []) == (bench.names, caplog.records)


async def test_rescue_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A rescue that the store refuses is logged, and made when the next orphans are noticed."""
    async with serving(tmp_path) as bench:
        maintenance, original = bench.service._maintenance, bench.store.rescue
        assert maintenance is not None
        errors = iter([StoreBusyError("Locked.")])

        async def rescue(*args: object, **kwargs: object) -> object:
            for error in errors:
                raise error
            return await original(*args, **kwargs)  # type: ignore[arg-type]

        bench.store.rescue = rescue  # type: ignore[method-assign,assignment]
        await crash(tmp_path, "a")
        maintenance.notice_orphans()
        await bench.clock.advance(1)
        # The store's watcher, by real time, does so as well.
        maintenance.notice_orphans()
        await bench.clock.advance(1)

    assert ["a"] == bench.names
    assert "The rescue of orphans failed and is started again in 0.1 s." in [record.getMessage() for record in caplog.records]
