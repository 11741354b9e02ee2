"""VirtualClock: time that moves only when told, never past work that is under way, and never for want of work that hangs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from aiotaskqueue import QueueConfig, Task, TaskQueueService
from aiotaskqueue._clock import Wakeup
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.errors import InvalidArgumentError
from aiotaskqueue.testing import RecordingDelivery, VirtualClock
from aiotaskqueue.testing import _clock as virtual
from aiotaskqueue.web.aiohttp import init_app, task

pytestmark = pytest.mark.anyio

MANY_TURNS = 40
EXACT = QueueConfig("default", jitter=0)


async def turns(count: int = MANY_TURNS) -> None:
    """Let the loop run."""
    for _ in range(count):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def running(*functions: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Run functions in tasks of their own, which have got where they wait, and are cancelled at the end."""

    async def call(function: Callable[[], Awaitable[object]]) -> None:
        await function()

    async with anyio.create_task_group() as group:
        for function in functions:
            group.start_soon(call, function)
        await turns()
        yield
        group.cancel_scope.cancel()


class Notes:
    """What happened when, in seconds since the clock's start."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.made: list[tuple[float, str]] = []

    def __call__(self, text: str = "") -> None:
        self.made.append((self.clock.monotonic(), text))


@pytest.fixture
def clock() -> VirtualClock:
    """A clock that stands still."""
    return VirtualClock()


@pytest.fixture
def note(clock: VirtualClock) -> Notes:
    """Where tests write down what happened."""
    return Notes(clock)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work outside gets next to no real time."""
    monkeypatch.setattr(virtual, "OUTSIDE_PATIENCE_SECONDS", 0.001)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work outside gets all the time in the world: a test that waits for it in vain times out."""
    monkeypatch.setattr(virtual, "OUTSIDE_PATIENCE_SECONDS", 1000.0)


# --- telling -------------------------------------------------------------------------------------------------------


def test_start() -> None:
    """The clock starts at the same moment in every run."""
    clock = VirtualClock()

    assert (datetime(2026, 1, 1, tzinfo=UTC), 1_767_225_600_000_000) == (clock.now, clock.time_usec())
    assert (1_767_225_600.0, 0.0) == (clock.time(), clock.monotonic())


def test_start_of_ones_own() -> None:
    """The clock starts where it is told, in any time zone."""
    clock = VirtualClock(datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=timezone(timedelta(hours=1))))

    assert datetime(1999, 12, 31, 22, 59, 59, 999_999, tzinfo=UTC) == clock.now


def test_start_without_a_time_zone() -> None:
    """A start without a time zone could be anywhere and is refused."""
    with pytest.raises(ValueError, match=r"The moment datetime.datetime\(2026, 1, 1, 0, 0\) has no time zone"):
        VirtualClock(datetime(2026, 1, 1))


# --- moving --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [90.000001, timedelta(seconds=90, microseconds=1)])
async def test_advance(clock: VirtualClock, by: float | timedelta) -> None:
    """Advancing moves both kinds of time, to the microsecond."""
    await clock.advance(by)

    assert datetime(2026, 1, 1, 0, 1, 30, 1, tzinfo=UTC) == clock.now
    assert 90.000001 == clock.monotonic()


@pytest.mark.parametrize("by", [-0.001, timedelta(seconds=-1), float("nan"), float("inf"), 1e12, 10**400, timedelta.max])
async def test_advance_where_no_clock_goes(clock: VirtualClock, by: float | timedelta) -> None:
    """Time goes neither backwards nor beyond the last moment that a datetime can show."""
    with pytest.raises(InvalidArgumentError, match="it goes forwards only, and ends with the year 9999") as caught:
        await clock.advance(by)

    assert isinstance(caught.value, ValueError)
    assert 0.0 == clock.monotonic()


@pytest.mark.parametrize("by", ["1", None, True, [1]])
async def test_advance_by_something_else(clock: VirtualClock, by: Any) -> None:
    """A step that is neither a number nor a timedelta is a TypeError that shows it."""
    with pytest.raises(TypeError, match="give seconds or a timedelta"):
        await clock.advance(by)


async def test_travel_to_the_end_of_time(clock: VirtualClock) -> None:
    """The last moment there is can be reached, to the microsecond."""
    moment = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    await clock.travel_to(moment)

    assert moment == clock.now


async def test_travel_to(clock: VirtualClock) -> None:
    """Travelling ends at the moment that was given, years later as well."""
    moment = datetime(2036, 2, 29, 12, 0, 0, 123_457, tzinfo=UTC) - timedelta(days=1)
    await clock.travel_to(moment)

    assert moment == clock.now


async def test_travel_to_the_past(clock: VirtualClock) -> None:
    """The past cannot be reached."""
    with pytest.raises(InvalidArgumentError, match="it goes forwards only"):
        await clock.travel_to(datetime(2025, 12, 31, tzinfo=UTC))


async def test_advance_stops_at_each_moment(clock: VirtualClock, note: Notes) -> None:
    """Whatever is due on the way runs at its own moment, in order, sleepers and timers alike."""

    async def doze(seconds: float) -> None:
        await clock.sleep(seconds)
        note("sleeper")

    clock.call_at(2, lambda: note("timer"))
    async with running(lambda: doze(3.000001), lambda: doze(1), lambda: doze(9.5), lambda: doze(11)):
        await clock.advance(10)

        assert [(1, "sleeper"), (2, "timer"), (3.000001, "sleeper"), (9.5, "sleeper")] == note.made
        assert 10 == clock.monotonic()


async def test_advance_stops_at_moments_that_come_up_on_the_way(clock: VirtualClock, note: Notes) -> None:
    """What is due on the way may ask for later moments, which are stopped at as well."""

    async def tick() -> None:
        with clock.activity():
            while True:
                await clock.wait(Wakeup(), clock.time_usec() + 2_000_000)
                note()

    async with running(tick):
        await clock.advance(7)

    assert [(2, ""), (4, ""), (6, "")] == note.made


async def test_timers_of_one_moment(clock: VirtualClock, note: Notes) -> None:
    """Timers of one moment call back in the order in which they were set."""
    for text in "bac":
        clock.call_at(1, functools.partial(note, text))
    await clock.advance(1)

    assert [(1, "b"), (1, "a"), (1, "c")] == note.made


async def test_cancelled_timer(clock: VirtualClock, note: Notes) -> None:
    """A cancelled timer does not call back, also when another one of its moment cancels it, nor is it stopped at."""
    clock.call_at(1, lambda: second.cancel())
    second = clock.call_at(1, note)
    clock.call_at(0.5, note).cancel()
    await clock.advance(2)

    assert [] == note.made


async def test_chores_run_on_the_way(clock: VirtualClock, note: Notes) -> None:
    """Advancing stops at the moments of chores as well."""

    async def sweep() -> None:
        with clock.activity():
            await clock.wait(Wakeup(), clock.time_usec() + 1_000_000, is_chore=True)
            note()

    async with running(sweep):
        await clock.advance(5)

    assert [(1, "")] == note.made


async def test_two_advances_at_once(clock: VirtualClock) -> None:
    """Two tasks may advance the clock at the same time: both return, and the further one counts."""
    loop = asyncio.get_running_loop()
    done = threading.Event()

    async def work() -> None:
        with clock.activity():
            await loop.run_in_executor(None, done.wait)

    async with asyncio.timeout(5), running(work), anyio.create_task_group() as group:
        group.start_soon(clock.advance, 1)
        group.start_soon(clock.advance, 2)
        await turns()
        done.set()

    assert 2 == clock.monotonic()


# --- held ----------------------------------------------------------------------------------------------------------


async def test_held_until_advanced(clock: VirtualClock, note: Notes) -> None:
    """Nothing that is parked goes on before the clock is moved, though it be woken or due."""

    async def park(wakeup: Wakeup, until_usec: int | None) -> None:
        with clock.activity():
            await clock.wait(wakeup, until_usec)
            note()

    wakeup = Wakeup()
    async with running(lambda: park(wakeup, None), lambda: park(Wakeup(), clock.time_usec())):
        wakeup.set()
        await turns()

        assert (True, []) == (clock.is_held, note.made)

        await clock.advance(0)

        assert [(0, ""), (0, "")] == note.made


async def test_released(clock: VirtualClock, note: Notes) -> None:
    """While the clock is released, what is woken or due goes on, and time does not move."""

    async def park(wakeup: Wakeup, until_usec: int | None) -> None:
        with clock.activity():
            await clock.wait(wakeup, until_usec)
            note()

    before, after = Wakeup(), Wakeup()
    async with running(
        lambda: park(before, None), lambda: park(after, None), lambda: park(Wakeup(), clock.time_usec()), lambda: park(Wakeup(), None)
    ):
        before.set()
        with clock.released(), clock.released():
            after.set()
            await turns()

            assert (False, [(0, "")] * 3) == (clock.is_held, note.made)

        assert clock.is_held


async def test_one_of_two_releases_ends(clock: VirtualClock) -> None:
    """The clock is held again when the last release has ended."""
    with clock.released():
        with clock.released():
            pass

        assert not clock.is_held


# --- live ----------------------------------------------------------------------------------------------------------


async def test_time_does_not_move_while_a_thread_works(clock: VirtualClock, note: Notes) -> None:
    """What idle means: live work that waits for a database thread holds the time, however long it takes."""
    started, done = threading.Event(), threading.Event()

    def work_in_thread() -> None:
        started.set()
        done.wait()

    async def work() -> None:
        with clock.activity():
            await asyncio.to_thread(work_in_thread)
            note("worked")

    async with running(work), anyio.create_task_group() as group:
        group.start_soon(clock.advance, 10)
        await asyncio.to_thread(started.wait)
        await turns()

        assert 0 == clock.monotonic()

        done.set()

    assert ([(0, "worked")], 10) == (note.made, clock.monotonic())


async def test_what_was_woken_is_live_at_once(clock: VirtualClock, note: Notes) -> None:
    """Whoever wakes a sleeper makes it live before the loop gets round to it: time does not slip by in between."""
    wakeup = Wakeup()

    async def park() -> None:
        with clock.activity():
            await clock.wait(wakeup, clock.time_usec() + 100_000_000)
            await turns()
            note()

    clock.call_at(5, wakeup.set)
    async with running(park):
        await clock.advance(50)

    assert [(5, "")] == note.made


async def test_work_that_one_passes_on_to_another(clock: VirtualClock, note: Notes) -> None:
    """An activity counts from its making, not from the moment at which another task enters its block."""
    handed_over = clock.activity()

    async def work() -> None:
        with handed_over:
            await turns()
            note("worked")

    async with anyio.create_task_group() as group:
        group.start_soon(clock.advance, 10)
        await turns()
        group.start_soon(work)

    assert [(0, "worked")] == note.made


async def test_cancelled_sleepers_are_forgotten(clock: VirtualClock) -> None:
    """A sleeper that was cancelled counts neither as parked nor as dozing, and its moment is not stopped at."""

    async def park() -> None:
        with clock.activity():
            await clock.wait(Wakeup(), clock.time_usec() + 1_000_000)

    async with running(park, lambda: clock.sleep(1)):
        pass
    async with asyncio.timeout(5):
        await clock.advance(2)

    assert (0, 0, []) == (clock._live, clock._parked, clock._sleepers)


# --- outside -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
async def test_time_waits_for_what_is_outside(clock: VirtualClock, note: Notes) -> None:
    """A socket that is about to answer gets a moment of real time before time is moved on."""
    answer = asyncio.Event()

    async def ask() -> None:
        with clock.activity():
            async with clock.outside():
                await answer.wait()
            note("answered")

    async with running(ask), anyio.create_task_group() as group:
        group.start_soon(clock.advance, 10)
        await turns()

        assert 0 == clock.monotonic()

        answer.set()

    assert [(0, "answered")] == note.made


@pytest.mark.usefixtures("impatient")
async def test_time_moves_on_without_what_hangs(clock: VirtualClock, note: Notes) -> None:
    """What hangs outside is cut by its own deadline at the very moment: time passes without it."""

    async def ask() -> None:
        with clock.activity():
            async with clock.outside(31):
                with clock.cutoff(31) as cutoff:
                    await asyncio.Event().wait()
            note(f"cut: {cutoff.was_cut}")

    async with running(ask):
        await clock.advance(60)

    assert [(31, "cut: True")] == note.made


@pytest.mark.slow
async def test_patience_is_a_fifth_of_a_second(clock: VirtualClock) -> None:
    """Work outside gets 0.2 seconds of real time before each step."""

    async def hang() -> None:
        async with clock.outside():
            await asyncio.Event().wait()

    async with running(hang):
        before = time.monotonic()
        await clock.advance(1)

    assert 0.4 <= time.monotonic() - before < 2


@pytest.mark.usefixtures("patient")
async def test_time_does_not_wait_for_one_who_dozes(clock: VirtualClock, note: Notes) -> None:
    """A handler that sleeps on this clock is told apart from one that hangs: time moves on at once."""

    async def ask() -> None:
        with clock.activity():
            async with clock.outside():
                await clock.sleep(40)
            note("awake")

    async with running(ask):
        await clock.advance(60)

    assert [(40, "awake")] == note.made


@pytest.mark.usefixtures("patient")
async def test_dozing_handler_is_cut_at_its_deadline(clock: VirtualClock, note: Notes) -> None:
    """A handler that sleeps longer than its deadline is cut at the deadline, before anything later happens."""

    async def ask() -> None:
        with clock.activity():
            async with clock.outside():
                with clock.cutoff(31):
                    await clock.sleep(40)
            note("cut")

    clock.call_at(31.000001, lambda: note("later"))
    async with running(ask):
        await clock.advance(60)

    assert [(31, "cut"), (31.000001, "later")] == note.made


@pytest.mark.parametrize("tenths", range(60))
async def test_cutoff_between_two_microseconds(clock: VirtualClock, note: Notes, tenths: int) -> None:
    """A deadline that is no whole number of microseconds, as sums of floats are, ends its block at the nearest one."""

    async def work() -> None:
        with clock.activity():
            async with clock.outside():
                with clock.cutoff(clock.monotonic() + 0.1) as cutoff:
                    cutoff.reschedule(clock.monotonic() + 0.2)
                    await clock.sleep(5)
            note(f"cut: {cutoff.was_cut}")

    await clock.advance(tenths / 10)
    async with running(work):
        await clock.advance(1)

    assert [((tenths + 2) / 10, "cut: True")] == note.made


async def test_time_waits_for_a_socket_though_a_test_sleeps(clock: VirtualClock, note: Notes, patient: None) -> None:
    """A test that sleeps on the clock is no dozing handler: what is outside still gets its moment."""
    answer = asyncio.Event()

    async def ask() -> None:
        with clock.activity():
            async with clock.outside():
                await answer.wait()
            note("answered")

    async with running(ask, lambda: clock.sleep(60)), anyio.create_task_group() as group:
        group.start_soon(clock.advance, 10)
        await turns()

        assert 0 == clock.monotonic()

        answer.set()

    assert [(0, "answered")] == note.made


async def test_time_waits_for_a_socket_though_a_handler_dozes(clock: VirtualClock, note: Notes, patient: None) -> None:
    """A handler that sleeps on the clock, in as many tasks as it likes, excuses itself and nobody else."""
    answer = asyncio.Event()

    async def ask() -> None:
        async with clock.outside():
            await answer.wait()
        note("answered")

    async def doze() -> None:
        async with clock.outside(), anyio.create_task_group() as group:
            group.start_soon(clock.sleep, 5)
            group.start_soon(clock.sleep, 6)
        note("awake")

    async with running(ask, doze), anyio.create_task_group() as group:
        group.start_soon(clock.advance, 10)
        await turns()

        assert 0 == clock.monotonic()

        answer.set()

    assert [(0, "answered"), (6, "awake")] == note.made


# --- auto_advance --------------------------------------------------------------------------------------------------


async def test_time_jumps_by_itself() -> None:
    """With auto_advance whatever sleeps is woken at its moment as soon as nothing else goes on."""
    clock = VirtualClock(auto_advance=True)
    note = Notes(clock)

    async def doze(seconds: float) -> None:
        await clock.sleep(seconds)
        note()

    async with asyncio.timeout(5), anyio.create_task_group() as group:
        for seconds in (86_400, 0.5, 3600):
            group.start_soon(doze, seconds)

    assert [(0.5, ""), (3600, ""), (86_400, "")] == note.made


async def test_time_jumps_over_a_timer_that_changes_nothing() -> None:
    """A timer whose callback nobody notices does not stop the time."""
    clock = VirtualClock(auto_advance=True)
    calls: list[float] = []
    clock.call_at(1, lambda: calls.append(clock.monotonic()))
    async with asyncio.timeout(5):
        await clock.sleep(2)

    assert ([1], 2) == (calls, clock.monotonic())


async def test_time_jumps_to_a_timer_alone() -> None:
    """A timer is something to jump to, though nobody sleeps."""
    clock = VirtualClock(auto_advance=True)
    fired = asyncio.Event()
    clock.call_at(5, fired.set)
    async with asyncio.timeout(5):
        await fired.wait()

    assert 5 == clock.monotonic()


async def test_time_does_not_jump_over_a_cut() -> None:
    """A deadline takes some turns to cut its block: nothing later happens meanwhile."""
    clock = VirtualClock(auto_advance=True)
    note = Notes(clock)

    async def ask() -> None:
        with clock.activity():
            async with clock.outside():
                with clock.cutoff(31):
                    await clock.sleep(40)
            note("cut")

    async def tick() -> None:
        for seconds in (31, 0.000001):
            await clock.sleep(seconds)
        note("later")

    async with asyncio.timeout(5), anyio.create_task_group() as group:
        group.start_soon(ask)
        group.start_soon(tick)

    assert [(31, "cut"), (31.000001, "later")] == note.made


@pytest.mark.parametrize("state", ["live", "outside"])
async def test_time_does_not_jump_while_something_goes_on(state: str) -> None:
    """With auto_advance as well, time stands while anything is live or outside, and jumps when that has ended."""
    clock = VirtualClock(auto_advance=True)
    done = asyncio.Event()

    async def work() -> None:
        with clock.activity():
            async with clock.outside() if state == "outside" else contextlib.nullcontext():
                await done.wait()

    async with asyncio.timeout(5), running(work), anyio.create_task_group() as group:
        group.start_soon(clock.sleep, 1)
        await turns()

        assert 0 == clock.monotonic()

        done.set()

    assert 1 == clock.monotonic()


@pytest.mark.parametrize("after_turns", range(1, virtual.SETTLING_TURNS + 1))
async def test_time_does_not_jump_if_work_begins_first(after_turns: int) -> None:
    """Work that begins in the turns before a jump holds the time, and lets go of it at its end."""
    clock = VirtualClock(auto_advance=True)
    async with asyncio.timeout(5), anyio.create_task_group() as group:
        group.start_soon(clock.sleep, 1)
        await turns(after_turns)
        with clock.activity():
            await turns()

            assert 0 == clock.monotonic()

    assert 1 == clock.monotonic()


async def test_time_does_not_jump_for_chores() -> None:
    """Sweeping every hour is no reason for time to run away; it is done when time is there anyway."""
    clock = VirtualClock(auto_advance=True)
    note = Notes(clock)

    async def sweep() -> None:
        with clock.activity():
            while True:
                await clock.wait(Wakeup(), clock.time_usec() + 3_600_000_000, is_chore=True)
                note("swept")

    async with running(sweep):
        assert (0, []) == (clock.monotonic(), note.made)

        await clock.sleep(4000)
        await turns()

        assert [(4000, "swept")] == note.made


# --- with services -------------------------------------------------------------------------------------------------


async def test_nothing_runs_before_it_is_told(tmp_path: Path) -> None:
    """A task that is due waits until the service is told to run or time is moved."""
    clock, delivery = VirtualClock(), RecordingDelivery()
    async with TaskQueueService(tmp_path / "tasks.db", clock=clock, delivery=delivery) as service:
        await service.add(url="/w")
        await turns()

        assert [] == delivery.deliveries

        await service.run_until_idle()

        assert [clock.now] == [delivered.at for delivered in delivery.deliveries]


async def test_two_services_on_one_clock(tmp_path: Path) -> None:
    """Services that share a clock see the same time, and each thing happens at its own moment in both."""
    clock = VirtualClock()
    deliveries = [RecordingDelivery(), RecordingDelivery()]
    start = clock.now
    deliveries[0].answer_next(500, 500)
    async with (
        TaskQueueService(tmp_path / "a.db", queues=[EXACT], clock=clock, delivery=deliveries[0]) as first,
        TaskQueueService(tmp_path / "b.db", queues=[EXACT], clock=clock, delivery=deliveries[1]) as second,
    ):
        await first.add(url="/a")
        await second.queue().add([Task(url="/b", countdown=0.2), Task(url="/b", countdown=7200)])
        await clock.advance(timedelta(hours=3))

    assert [0, 0.1, 0.3] == [(delivered.at - start).total_seconds() for delivered in deliveries[0].deliveries]
    assert [0.2, 7200] == [(delivered.at - start).total_seconds() for delivered in deliveries[1].deliveries]


async def test_a_service_that_closes_leaves_the_clock_to_the_other(tmp_path: Path) -> None:
    """A service that is closed, with an attempt in flight, counts for nothing any more on the clock that it shared."""

    async def hang(record: TaskRecord) -> int:
        await asyncio.Event().wait()
        raise AssertionError

    clock, hanging, delivery = VirtualClock(), RecordingDelivery(hang), RecordingDelivery()
    async with TaskQueueService(tmp_path / "b.db", clock=clock, delivery=delivery) as service:
        other = TaskQueueService(tmp_path / "a.db", clock=clock, delivery=hanging, eager=True)
        await other.start()
        async with running(lambda: other.add(url="/hang")):
            while not hanging.deliveries:
                await asyncio.sleep(0)
            await other.aclose(timeout_seconds=0)
        await service.add(url="/w", countdown=60)
        async with asyncio.timeout(5):
            await clock.advance(60)

    assert 1 == len(delivery.deliveries)
    assert (0, 0, 0) == (clock._activities, clock._parked, clock._outside)


async def test_a_service_whose_time_runs_by_itself(tmp_path: Path) -> None:
    """With auto_advance days of retries pass while a test merely waits for their end."""
    clock = VirtualClock(auto_advance=True)
    start = clock.now
    ended = asyncio.Event()

    async def respond(record: TaskRecord) -> int:
        if record.attempts <= 40:
            return 500
        ended.set()
        return 200

    delivery = RecordingDelivery(respond)
    async with TaskQueueService(tmp_path / "tasks.db", queues=[EXACT], clock=clock, delivery=delivery) as service:
        await service.add(url="/w")
        async with asyncio.timeout(10):
            await ended.wait()

    assert 41 == len(delivery.deliveries)
    assert timedelta(seconds=6553.5 + 24 * 3600) == delivery.deliveries[-1].at - start


@pytest.mark.usefixtures("patient")
async def test_dozing_task_handler(clock: VirtualClock, note: Notes, tmp_path: Path) -> None:
    """A handler of an application, which runs behind a socket, is known as dozing as well."""

    @task
    async def doze(request: web.Request) -> None:
        await clock.sleep(20)
        note("awake")

    app = web.Application()
    app.router.add_post("/doze", doze)
    service = TaskQueueService(tmp_path / "tasks.db", clock=clock)
    init_app(app, service)
    runner = web.AppRunner(app)
    await runner.setup()
    await service.add(url="/doze")
    async with asyncio.timeout(5):
        await clock.advance(25)
    await runner.cleanup()

    assert [(20, "awake")] == note.made


@pytest.mark.usefixtures("impatient")
async def test_task_handler_that_hangs(clock: VirtualClock, tmp_path: Path) -> None:
    """A handler behind a socket that hangs is given up at its deadline or in the grace, in virtual time."""
    calls: list[float] = []

    @task
    async def hang(request: web.Request) -> None:
        calls.append(clock.monotonic())
        if len(calls) == 1:
            await asyncio.Event().wait()

    app = web.Application()
    app.router.add_post("/hang", hang)
    service = TaskQueueService(tmp_path / "tasks.db", queues=[EXACT], clock=clock)
    init_app(app, service)
    runner = web.AppRunner(app)
    await runner.setup()
    await service.add(url="/hang")
    while not calls:
        await clock.advance(0)
    await clock.advance(40)
    await runner.cleanup()

    assert 2 == len(calls)
    assert 30 <= calls[1] <= 31.1 + 1e-6
