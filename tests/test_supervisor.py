"""supervise: a loop that dies is started again, and says so."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque

import pytest
from on_clock import turns

from aiotaskqueue._supervisor import supervise
from aiotaskqueue.testing import VirtualClock

pytestmark = pytest.mark.anyio


class Dying:
    """A loop that runs for some seconds and then dies, as often as it is told, and then returns."""

    def __init__(self, clock: VirtualClock, *deaths: tuple[float, BaseException]) -> None:
        self.clock = clock
        self.deaths = deque(deaths)
        self.starts: list[float] = []

    async def __call__(self) -> None:
        self.starts.append(self.clock.monotonic())
        if self.deaths:
            seconds, exc = self.deaths.popleft()
            await self.clock.sleep(seconds)
            raise exc


async def run(loop: Dying) -> list[float]:
    """Supervise the loop to its end; return the times at which it was started."""
    async with asyncio.timeout(5):
        await supervise("test loop", loop, loop.clock)
    return loop.starts


async def test_loop_that_ends() -> None:
    """A loop that returns is not started again."""
    assert [0.0] == await run(Dying(VirtualClock(auto_advance=True)))


async def test_pauses_double() -> None:
    """A4: a loop that dies again and again is started again after 0.1 s, 0.2 s and so on, 30 s at most."""
    starts = await run(Dying(VirtualClock(auto_advance=True), *[(0.0, ValueError("oh"))] * 12))

    assert [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0] == [
        round(after - before, 6) for before, after in itertools.pairwise(starts)
    ]


@pytest.mark.parametrize(("ran_seconds", "pause"), [(30.0, 0.4), (30.000001, 0.1)])
async def test_pauses_begin_anew(ran_seconds: float, pause: float) -> None:
    """A loop that has run well for longer than the longest pause is started again soon."""
    deaths = [(0.0, ValueError()), (0.0, ValueError()), (ran_seconds, ValueError())]
    starts = await run(Dying(VirtualClock(auto_advance=True), *deaths))

    assert pause == round(starts[-1] - starts[-2] - ran_seconds, 6)


@pytest.mark.parametrize("exc", [ValueError("oh"), BaseException("oh"), BaseExceptionGroup("two", [ValueError(), KeyError()])])
async def test_death_is_logged(exc: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """A4: whatever a loop dies of is logged with its name, the pause and the traceback."""
    await run(Dying(VirtualClock(auto_advance=True), (0.0, exc)))

    [record] = caplog.records
    assert (logging.ERROR, "The test loop failed and is started again in 0.1 s.") == (record.levelno, record.getMessage())
    assert record.exc_info is not None
    assert exc is record.exc_info[1]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_passes(kind: type[BaseException]) -> None:
    """Ctrl-C and exit are not outlived."""

    async def main() -> None:
        await supervise("test loop", Dying(VirtualClock(auto_advance=True), (0.0, kind())), VirtualClock())

    with pytest.raises(kind):
        asyncio.run(main())


@pytest.mark.parametrize("seconds", [5.0, 0.0])
async def test_cancellation_passes(seconds: float) -> None:
    """A supervisor that is cancelled ends, while its loop runs or in a pause, and leaves nothing on the clock."""
    clock = VirtualClock()
    loop = Dying(clock, (seconds, ValueError()))
    task = asyncio.create_task(supervise("test loop", loop, clock))
    await turns()
    await clock.advance(0)
    task.cancel()
    await asyncio.wait({task})

    assert (True, [0.0], 0, []) == (task.cancelled(), loop.starts, clock._activities, clock._sleepers)
