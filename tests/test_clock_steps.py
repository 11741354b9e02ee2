"""Somebody sets the wall clock while the service runs: nothing is early by more than the step, late by more, or lost."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from on_clock import serving

from aiotaskqueue import Task, TaskRetryOptions
from aiotaskqueue._clock import LONGEST_SLEEP_SECONDS, Wakeup
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.testing import VirtualClock

pytestmark = pytest.mark.anyio

HOUR = 3600.0
TEN_YEARS = 10 * 365.25 * 24 * HOUR

# Who sleeps by the monotonic clock looks at the wall clock at least this often.
LOOK = LONGEST_SLEEP_SECONDS


class SettableClock(VirtualClock):
    """A test clock whose wall can be set, while its monotonic time goes on as ever; it sleeps as the system's clock does."""

    def __init__(self) -> None:
        super().__init__()
        self._ahead_usec = 0

    def set_by(self, seconds: float) -> None:
        """Set the wall clock forward, or back."""
        self._ahead_usec += round(seconds * 1_000_000)

    def time_usec(self) -> int:
        return super().time_usec() + self._ahead_usec

    def time(self) -> float:
        return self.time_usec() / 1_000_000

    async def wait(self, wakeup: Wakeup, until_usec: int | None = None, *, is_chore: bool = False) -> None:
        if until_usec is not None:
            now_usec = super().time_usec()
            until_usec = min(until_usec - self._ahead_usec, now_usec + round(LONGEST_SLEEP_SECONDS * 1_000_000))
        await super().wait(wakeup, until_usec, is_chore=is_chore)


class Worker:
    """A handler that writes down when it is called, by both clocks, and answers what it is told, at first 200."""

    def __init__(self, clock: SettableClock, *, answer: int = 200, takes_seconds: float = 0.0) -> None:
        self._clock = clock
        self._answer = answer
        self._takes_seconds = takes_seconds
        self.names: list[str] = []
        self.wall: list[float] = []
        self.elapsed: list[float] = []

    async def __call__(self, record: TaskRecord) -> int:
        """Note the attempt, and take its time."""
        self.names.append(record.name)
        self.wall.append(self._clock.time())
        self.elapsed.append(self._clock.monotonic())
        if self._takes_seconds:
            await self._clock.sleep(self._takes_seconds)
        return self._answer

    @property
    def gaps(self) -> list[float]:
        """How many seconds went by between the attempts."""
        return [round(after - before, 6) for before, after in itertools.pairwise(self.elapsed)]


@pytest.mark.promise("P11")
@pytest.mark.parametrize("step", [-HOUR, HOUR, TEN_YEARS])
async def test_attempts_around_a_step(tmp_path: Path, step: float) -> None:
    """After a step each task starts at its ETA by the new wall time, or at once if that is past; none twice, none never."""
    clock = SettableClock()
    worker, start = Worker(clock), clock.time()
    countdowns = [10, 600, 7200, 36_000]
    async with serving(tmp_path, respond=worker, clock=clock) as bench:
        await bench.service.queue().add([Task(url="/w", name=f"n{countdown}", countdown=countdown) for countdown in countdowns])
        await clock.advance(LOOK)
        clock.set_by(step)
        after_step = clock.time()
        await clock.advance(12 * HOUR)

    etas = [start + countdown for countdown in countdowns]
    late = [wall - max(eta, after_step if eta > start + LOOK else eta) for wall, eta in zip(worker.wall, etas, strict=True)]

    assert [f"n{countdown}" for countdown in countdowns] == worker.names
    assert all(wall >= eta for wall, eta in zip(worker.wall, etas, strict=True))
    assert all(0 <= seconds <= LOOK for seconds in late)


@pytest.mark.promise("P10")
@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (-HOUR, [100, 200 + HOUR, 400, 800]),
        (60, [100, 200 - 60, 400, 800]),
        (HOUR, [100, LOOK, 400, 800]),
        (TEN_YEARS, [100, LOOK, 400, 800]),
    ],
)
async def test_retries_around_a_step(tmp_path: Path, step: float, expected: list[float]) -> None:
    """A step moves the one retry that waits, by no more than the step; the later ones keep their distances."""
    clock = SettableClock()
    worker = Worker(clock, answer=500)
    options = TaskRetryOptions(min_backoff_seconds=100, task_retry_limit=4)
    async with serving(tmp_path, respond=worker, clock=clock) as bench:
        await bench.service.add(url="/w", retry_options=options)
        await clock.advance(100)
        clock.set_by(step)
        await clock.advance(3 * HOUR)

    assert expected == worker.gaps


@pytest.mark.promise("P7", "P11")
@pytest.mark.parametrize("step", [-HOUR, HOUR, TEN_YEARS])
async def test_deadline_across_a_step(tmp_path: Path, step: float) -> None:
    """An attempt in flight keeps its time to the deadline, whatever the wall clock says, and is not made a second time before."""
    clock = SettableClock()
    worker = Worker(clock, takes_seconds=1000.0)
    options = TaskRetryOptions(min_backoff_seconds=0, task_retry_limit=1)
    async with serving(tmp_path, respond=worker, clock=clock) as bench:
        await bench.service.add(url="/w", name="slow", retry_options=options)
        await clock.advance(10)
        clock.set_by(step)
        await clock.advance(2 * HOUR)
        reasons = [(attempt.reason, attempt.attempt) for attempt in await bench.attempts("slow")]

    assert [("deadline", 1), ("deadline", 2)] == reasons
    assert 31.0 <= worker.gaps[0] <= 31.0 + max(-step, 0.0)
