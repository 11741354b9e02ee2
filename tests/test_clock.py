"""SystemClock, Wakeup and Cutoff; and what every clock does alike, the one for tests included."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable

import anyio
import pytest
from signed_requests import StoppedClock

from aiotaskqueue import _clock
from aiotaskqueue._clock import Clock, Cutoff, SystemClock, Wakeup
from aiotaskqueue.testing import VirtualClock

pytestmark = pytest.mark.anyio

# More turns of the loop than anything here needs that needs no real time.
MANY_TURNS = 20

FAR_USEC = 10**9 * 10**6 * 4


async def turns(count: int = MANY_TURNS) -> None:
    """Let the loop run."""
    for _ in range(count):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def spawned(function: Callable[[], Awaitable[object]]):  # type: ignore[no-untyped-def]
    """Run a function in a task of its own, that has got where it waits; it is cancelled at the end."""

    async def call() -> object:
        return await function()

    task = asyncio.create_task(call())
    await turns()
    yield task
    task.cancel()
    await asyncio.wait({task})


@pytest.fixture(params=[SystemClock, lambda: VirtualClock(auto_advance=True)], ids=["system", "virtual"])
def clock(request: pytest.FixtureRequest) -> Clock:
    """Each clock, of those that run by themselves."""
    made: Clock = request.param()
    return made


# --- Wakeup --------------------------------------------------------------------------------------------------------


def test_take_clears_the_flag() -> None:
    """A flag that was set is taken once."""
    wakeup = Wakeup()
    wakeup.set()

    assert [True, False] == [wakeup.take(), wakeup.take()]


def test_calling_is_told_of_each_set() -> None:
    """Whoever listens is called on every set while the block runs, and not after it."""
    wakeup, calls = Wakeup(), []
    with wakeup.calling(lambda: calls.append(wakeup.is_set)):
        wakeup.set()
        wakeup.set()
    wakeup.set()

    assert [True, True] == calls


# --- every clock ---------------------------------------------------------------------------------------------------


async def test_wait_ends_when_the_wakeup_is_set(clock: Clock) -> None:
    """A sleeper without a moment sleeps until it is woken, and takes the flag."""
    wakeup = Wakeup()
    with clock.activity():
        async with spawned(lambda: clock.wait(wakeup)) as sleeper:
            assert not sleeper.done()

            wakeup.set()
            await sleeper

    assert not wakeup.is_set


async def test_wait_with_the_wakeup_set_before(clock: Clock) -> None:
    """A sleeper that was woken before it fell asleep does not sleep, and takes the flag."""
    wakeup = Wakeup()
    wakeup.set()
    with clock.activity():
        await clock.wait(wakeup, FAR_USEC)

    assert not wakeup.is_set


async def test_wait_ends_at_its_moment(clock: Clock) -> None:
    """A sleeper whom nobody wakes sleeps until its moment."""
    until_usec = clock.time_usec() + 2000
    with clock.activity():
        while clock.time_usec() < until_usec:
            await clock.wait(Wakeup(), until_usec)

    assert until_usec <= clock.time_usec() < until_usec + 10_000_000


async def test_wait_until_the_past(clock: Clock) -> None:
    """A moment that has passed ends the wait at once."""
    with clock.activity():
        async with spawned(lambda: clock.wait(Wakeup(), clock.time_usec() - 1)) as sleeper:
            assert sleeper.done()


async def test_cancelled_wait_leaves_the_flag_to_the_next(clock: Clock) -> None:
    """What was set while a cancelled sleeper left is not lost."""
    wakeup = Wakeup()
    with clock.activity():
        async with spawned(lambda: clock.wait(wakeup)) as sleeper:
            wakeup.set()
            sleeper.cancel()

        assert sleeper.cancelled()

        async with spawned(lambda: clock.wait(wakeup)) as successor:
            assert successor.done()


async def test_wakeup_set_twice_at_once(clock: Clock) -> None:
    """Setting a wakeup again before its sleeper got to run is harmless."""
    wakeup = Wakeup()
    with clock.activity():
        async with spawned(lambda: clock.wait(wakeup)) as sleeper:
            wakeup.set()
            wakeup.set()
            await sleeper

    assert not wakeup.is_set


async def test_sleep_lasts(clock: Clock) -> None:
    """A sleep takes as long as it says."""
    before = clock.monotonic()
    await clock.sleep(0.004)

    assert 0.004 <= round(clock.monotonic() - before, 6)


@pytest.mark.parametrize("after_seconds", [-1.0, 0.0, 0.001])
async def test_timer_fires(clock: Clock, after_seconds: float) -> None:
    """A timer calls back once, not before its moment nor within call_at, however long ago its moment was."""
    fired = asyncio.Event()
    when = clock.monotonic() + after_seconds
    moments = []

    def call_back() -> None:
        moments.append(clock.monotonic())
        fired.set()

    clock.call_at(when, call_back)

    assert [] == moments

    async with asyncio.timeout(5):
        await clock.sleep(0.002)
        await fired.wait()

    assert [True] == [moment >= when - 1e-6 for moment in moments]


async def test_cancelled_timer_does_not_fire(clock: Clock) -> None:
    """A timer that was cancelled never calls back."""
    calls: list[int] = []
    clock.call_at(clock.monotonic(), lambda: calls.append(1)).cancel()
    await clock.sleep(0.002)

    assert [] == calls


async def test_wall_time_in_seconds_and_microseconds(clock: Clock) -> None:
    """The wall time in microseconds is the one in seconds, whole."""
    assert isinstance(clock.time_usec(), int)
    assert abs(clock.time() - clock.time_usec() / 1_000_000) < 1


def test_microseconds_of_a_clock_that_tells_seconds() -> None:
    """A clock that only tells seconds gives the nearest microsecond."""
    assert 1_790_000_000_123_457 == StoppedClock(1_790_000_000.1234567).time_usec()


async def test_states_are_plain_blocks(clock: Clock) -> None:
    """Being live, outside and released are blocks that let exceptions through."""
    for block in (clock.activity(), clock.released()):
        with pytest.raises(ZeroDivisionError), block:
            raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), clock.activity():
        async with clock.outside(clock.monotonic()):
            raise ZeroDivisionError


# --- SystemClock ---------------------------------------------------------------------------------------------------


async def test_system_clock_tells_the_machines_time() -> None:
    """The system's clock is the machine's: the wall for ETAs, the loop's own for deadlines."""
    clock, loop = SystemClock(), asyncio.get_running_loop()

    assert abs(clock.time() - time.time()) < 1
    assert abs(clock.time_usec() - time.time_ns() // 1000) < 1_000_000
    assert abs(clock.monotonic() - loop.time()) < 1


def test_system_clock_is_never_held() -> None:
    """Nothing holds what sleeps by the machine's time."""
    assert not SystemClock().is_held


async def test_long_wait_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """P11: a wait returns after a while at the latest, since the wall clock may have been set meanwhile."""
    monkeypatch.setattr(_clock, "LONGEST_SLEEP_SECONDS", 0.0)
    clock = SystemClock()
    async with asyncio.timeout(5):
        await clock.wait(Wakeup(), FAR_USEC)

    assert clock.time_usec() < FAR_USEC


async def test_long_sleep_does_not_end_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sleep that is longer than the longest wait goes on."""
    monkeypatch.setattr(_clock, "LONGEST_SLEEP_SECONDS", 0.001)
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0.01)

    assert 0.01 <= clock.monotonic() - before


# --- Cutoff --------------------------------------------------------------------------------------------------------


async def test_block_that_is_in_time_is_not_cut() -> None:
    """A block that ends before its moment is left alone, and so is what follows it."""
    clock = SystemClock()
    with clock.cutoff(clock.monotonic() + 0.002) as cutoff:
        await turns(1)
    await asyncio.sleep(0.004)

    assert not cutoff.was_cut


async def test_late_block_is_cut() -> None:
    """A block that hangs is ended at its moment, without an exception, and the task goes on."""
    clock = SystemClock()
    with clock.cutoff(clock.monotonic()) as cutoff:
        await asyncio.Event().wait()
    await turns()

    assert (True, 0) == (cutoff.was_cut, _cancelling())


async def test_block_that_catches_its_cut() -> None:
    """A block that turns the cancellation into something of its own keeps that; `was_cut` tells, and nothing is left behind."""
    clock = SystemClock()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ZeroDivisionError from None

    with pytest.raises(ZeroDivisionError), clock.cutoff(clock.monotonic()) as cutoff:
        await hang()
    await turns()

    assert (True, 0) == (cutoff.was_cut, _cancelling())


async def test_block_that_outlives_its_cut() -> None:
    """A block that swallows the cancellation ends as it likes; `was_cut` tells."""
    clock = SystemClock()
    with clock.cutoff(clock.monotonic()) as cutoff:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
    await turns()

    assert (True, 0) == (cutoff.was_cut, _cancelling())


async def test_exception_of_a_block_in_time() -> None:
    """An exception leaves the block as ever."""
    clock = SystemClock()
    with pytest.raises(ZeroDivisionError), clock.cutoff(clock.monotonic() + 5):
        raise ZeroDivisionError


async def test_answer_that_came_before_the_loop_looked() -> None:
    """P8, fact 4: bytes that arrived in time count, though the loop was busy until after the moment."""
    clock = SystemClock()
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)
    with clock.cutoff(clock.monotonic() + 0.005) as cutoff:
        reading = asyncio.ensure_future(reader.readexactly(2))
        await turns(2)
        there.send(b"ok")
        time.sleep(0.01)
        answer = await reading
    there.close()
    writer.close()
    await writer.wait_closed()

    assert (b"ok", False) == (answer, cutoff.was_cut)


@pytest.mark.parametrize("steps", range(Cutoff.GRACE_TURNS - 1))
async def test_block_that_ends_within_the_grace(steps: int) -> None:
    """P8: what has a few turns of the loop to go when the moment comes is not cut."""
    clock = SystemClock()
    answered = asyncio.Event()

    def answer_in(count: int) -> None:
        if count:
            asyncio.get_running_loop().call_soon(answer_in, count - 1)
        else:
            answered.set()

    when = clock.monotonic()
    with clock.cutoff(when) as cutoff:
        clock.call_at(when, lambda: answer_in(steps))
        await answered.wait()
    await turns()

    assert (False, 0) == (cutoff.was_cut, _cancelling())


async def test_reschedule_to_later() -> None:
    """A block whose end is moved goes on until then."""
    clock = SystemClock()
    with clock.cutoff(clock.monotonic()) as cutoff:
        cutoff.reschedule(clock.monotonic() + 5)
        await turns()

    assert not cutoff.was_cut


async def test_reschedule_to_earlier() -> None:
    """A block whose end is moved to now is cut now."""
    clock = SystemClock()
    with clock.cutoff(clock.monotonic() + 1000) as cutoff:
        cutoff.reschedule(clock.monotonic())
        await asyncio.Event().wait()

    assert cutoff.was_cut


async def test_block_is_cut_once() -> None:
    """A block that swallowed its cut is left alone from then on, though its end is moved."""
    clock = SystemClock()
    with clock.cutoff(clock.monotonic()) as cutoff:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        cutoff.reschedule(clock.monotonic() - 1)
        await turns()

    assert (True, 0) == (cutoff.was_cut, _cancelling())


@pytest.mark.parametrize("after_turns", range(1, Cutoff.GRACE_TURNS + 1))
async def test_reschedule_within_the_grace(after_turns: int) -> None:
    """A block whose end is moved in the turns between the timer and the cut is not cut at the old moment."""
    clock = SystemClock()
    with clock.cutoff(clock.monotonic()) as cutoff:
        await turns(after_turns)
        cutoff.reschedule(clock.monotonic() + 5)
        await turns()

    assert not cutoff.was_cut


async def test_native_cancellation_is_not_a_cut() -> None:
    """A1: whoever cancels the task from outside cancels it, and not only the block."""
    clock = SystemClock()
    seen: list[Cutoff] = []

    async def work() -> None:
        with clock.cutoff(clock.monotonic() + 5) as cutoff:
            seen.append(cutoff)
            await asyncio.Event().wait()

    async with spawned(work) as task:
        task.cancel()
        await asyncio.wait({task})

    assert (True, False) == (task.cancelled(), seen[0].was_cut)


async def test_native_cancellation_at_the_moment_of_the_cut() -> None:
    """A cancellation that comes together with the cut is not taken for it: the task is cancelled."""
    clock = SystemClock()
    seen: list[Cutoff] = []

    async def work() -> None:
        with clock.cutoff(clock.monotonic()) as cutoff:
            seen.append(cutoff)
            try:
                await asyncio.Event().wait()
            finally:
                _current().cancel()

    task = asyncio.create_task(work())
    await asyncio.wait({task})

    assert (True, True) == (task.cancelled(), seen[0].was_cut)


async def test_cut_of_a_task_that_was_cancelled_before() -> None:
    """In cleanup code of a cancelled task a cut ends its block and nothing else; the old cancellation is still counted."""
    clock = SystemClock()
    counts: list[int] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            with clock.cutoff(clock.monotonic()) as cutoff:
                await asyncio.Event().wait()
            counts.extend([cutoff.was_cut, _cancelling()])

    async with spawned(work) as task:
        task.cancel()
        await asyncio.wait({task})

    assert ([True, 1], True) == (counts, task.cancelled())


async def test_cancelled_scope_is_not_a_cut() -> None:
    """The cancellation of an anyio scope around the block goes through to the scope."""
    clock = SystemClock()
    with anyio.CancelScope() as scope:
        with clock.cutoff(clock.monotonic() + 5) as cutoff:
            scope.cancel()
            await anyio.sleep_forever()
    await turns()

    assert (True, False, 0) == (scope.cancelled_caught, cutoff.was_cut, _cancelling())


async def test_scope_that_is_cancelled_at_the_moment_of_the_cut() -> None:
    """Cut and scope at one moment: the cut does not swallow the scope's cancellation, nor leaves any of it behind."""
    clock = SystemClock()
    reached = []
    with anyio.CancelScope() as scope:
        with clock.cutoff(clock.monotonic()) as cutoff:
            try:
                await anyio.sleep_forever()
            finally:
                scope.cancel()
        await anyio.lowlevel.checkpoint()
        reached.append("after the cut")
    await turns()

    assert ([], True, True, 0) == (reached, scope.cancelled_caught, cutoff.was_cut, _cancelling())


async def test_cut_in_a_shielded_scope_of_a_cancelled_one() -> None:
    """Cleanup that is shielded from a cancelled scope can still be cut, and goes on after the cut."""
    clock = SystemClock()
    reached = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        with anyio.CancelScope(shield=True):
            with clock.cutoff(clock.monotonic()) as cutoff:
                await anyio.sleep_forever()
            await turns()
            reached.append("after the cut")
        await anyio.lowlevel.checkpoint()

    assert (["after the cut"], True, True) == (reached, cutoff.was_cut, scope.cancelled_caught)


async def test_cut_leaves_a_scope_inside_uncancelled() -> None:
    """An anyio scope inside of a block that is cut lets the cut through: it is none of the scope's."""
    clock = SystemClock()
    with clock.cutoff(clock.monotonic()) as cutoff, anyio.CancelScope() as scope:
        await anyio.sleep_forever()

    assert (True, False) == (cutoff.was_cut, scope.cancelled_caught)


async def test_inner_cut() -> None:
    """Of two cutoffs the inner one ends only its own block."""
    clock = SystemClock()
    reached = []
    with clock.cutoff(clock.monotonic() + 5) as outer:
        with clock.cutoff(clock.monotonic()) as inner:
            await asyncio.Event().wait()
        await turns()
        reached.append("between")

    assert (["between"], False, True) == (reached, outer.was_cut, inner.was_cut)


async def test_outer_cut() -> None:
    """Of two cutoffs the outer one ends both blocks."""
    clock = SystemClock()
    reached = []
    with clock.cutoff(clock.monotonic()) as outer:
        with clock.cutoff(clock.monotonic() + 5) as inner:
            await asyncio.Event().wait()
        reached.append("between")

    assert ([], True, False) == (reached, outer.was_cut, inner.was_cut)


async def test_two_cuts_at_one_moment() -> None:
    """Two cutoffs at one moment end both blocks and leave nothing behind."""
    clock = SystemClock()
    reached = []
    when = clock.monotonic()
    with clock.cutoff(when) as outer:
        with clock.cutoff(when) as inner:
            await asyncio.Event().wait()
        reached.append("between")
    await turns()

    assert ([], True, True, 0) == (reached, outer.was_cut, inner.was_cut, _cancelling())


def _current() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _cancelling() -> int:
    return _current().cancelling()
