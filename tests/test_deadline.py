"""The deadline inside of a handler: where the error arrives, what the grace is good for, and how it ends, whatever the handler does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

import anyio
import pytest
from on_clock import turns
from signed_requests import make_record

from aiotaskqueue._clock import Clock, SystemClock
from aiotaskqueue._headers import TaskHeaders
from aiotaskqueue.errors import NotInTaskError
from aiotaskqueue.tasks import DeadlineExceededError, TaskAnswer, current_task, repeat_task, terminate_task
from aiotaskqueue.testing import VirtualClock
from aiotaskqueue.worker import TaskInfo, run_with_deadline, running

pytestmark = pytest.mark.anyio

Handler = Callable[["Stage"], Awaitable[object]]


def make_info(clock: Clock, deadline_seconds: float = 30.0) -> TaskInfo:
    """Return a task whose request has arrived now."""
    headers = TaskHeaders(
        uuid=make_record().uuid.hex(),
        queue_name="mail",
        name="welcome-1",
        retry_count=0,
        execution_count=0,
        eta_usec=0,
        deadline_seconds=deadline_seconds,
        previous_response=None,
        retry_reason=None,
    )
    return TaskInfo.from_headers(headers, clock)


class Stage:
    """A handler at work on a clock that is moved by hand, and what came to pass there."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.seen: list[tuple[str, float]] = []
        """What was noted, and when, in seconds since the arrival of the head."""
        self.gate = asyncio.Event()
        """Never opens by itself."""
        self.error: DeadlineExceededError | None = None
        """What an adapter logs."""

    def note(self, word: object) -> None:
        """Remember that something happened."""
        self.seen.append((word if isinstance(word, str) else type(word).__name__, self.clock.monotonic()))

    @contextlib.contextmanager
    def noting(self) -> Any:
        """Note what the block raises, and let it go on."""
        try:
            yield
        except BaseException as exc:
            self.note(exc)
            raise

    async def hang(self) -> None:
        """Wait for ever, and note how that ended."""
        with self.noting():
            await self.gate.wait()

    async def run(self, handler: Handler) -> None:
        """Run the handler as an adapter does, and note how it ended."""
        info = make_info(self.clock)
        try:
            with running(info):
                result = await run_with_deadline(info, handler(self))
        except DeadlineExceededError as exc:
            self.error = exc
            self.note(f"end: {DEADLINE}")
        except BaseException as exc:
            self.note(f"end: {type(exc).__name__}")
            raise
        else:
            self.note(f"end: {result}")


@pytest.fixture
def clock() -> VirtualClock:
    """A clock at 0."""
    return VirtualClock()


@contextlib.asynccontextmanager
async def played(clock: VirtualClock, handler: Handler) -> AsyncIterator[tuple[Stage, asyncio.Task[None]]]:
    """Have a handler at work, which waits; it must end by the end of the block."""
    stage = Stage(clock)
    task = asyncio.create_task(stage.run(handler))
    await turns()
    try:
        yield stage, task
    finally:
        if not task.done():
            stage.gate.set()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()

    assert 0 == task.cancelling() or task.cancelled()


async def move(clock: VirtualClock, to_seconds: float) -> None:
    """Move time on to that moment, and let everybody do what is to be done there."""
    await clock.advance(to_seconds - clock.monotonic())
    await turns()


async def play(clock: VirtualClock, handler: Handler) -> list[tuple[str, float]]:
    """Return what came to pass until long after the deadline."""
    async with played(clock, handler) as (stage, _):
        for quarter in range(30 * 4, 40 * 4):
            await move(clock, quarter / 4)
        return list(stage.seen)


# --- shapes of handlers --------------------------------------------------------------------------------------------


async def wait_plainly(stage: Stage) -> None:
    """Await."""
    await stage.hang()


async def catch_and_return(stage: Stage) -> str:
    """Save the work in the grace."""
    try:
        await stage.hang()
    except DeadlineExceededError:
        await stage.clock.sleep(0.75)
    return "saved"


async def catch_and_go_on(stage: Stage) -> None:
    """Take too long."""
    try:
        await stage.hang()
    except DeadlineExceededError:
        await stage.hang()


async def catch_exceptions(stage: Stage) -> None:
    """Survive every Exception."""
    while True:
        with contextlib.suppress(Exception):
            await stage.hang()


async def swallow_everything(stage: Stage) -> str:
    """Survive everything."""
    while not stage.gate.is_set():
        with contextlib.suppress(BaseException):
            await stage.hang()
    return "at last"


async def group(stage: Stage) -> None:
    """Wait in the body of a task group, which may make a group of the error: that depends on the version of Python."""
    async with asyncio.TaskGroup() as tg:
        tg.create_task(stage.hang())
        await stage.hang()


async def group_is_waited_for(stage: Stage) -> None:
    """Wait for the tasks of a group."""
    with stage.noting():
        async with asyncio.TaskGroup() as tg:
            tg.create_task(stage.hang())


async def anyio_group(stage: Stage) -> None:
    """Wait in the body of a task group of anyio's."""
    with stage.noting():
        async with anyio.create_task_group() as tg:
            tg.start_soon(stage.hang)
            await stage.hang()


async def anyio_group_is_waited_for(stage: Stage) -> None:
    """Wait for the tasks of a group of anyio's."""
    with stage.noting():
        async with anyio.create_task_group() as tg:
            tg.start_soon(stage.hang)


async def shielded_scope(stage: Stage) -> None:
    """Hide behind a shield of anyio's."""
    with anyio.CancelScope(shield=True):
        await stage.hang()


async def shielded_task(stage: Stage) -> str:
    """Go on with a task that is shielded."""
    inner = asyncio.create_task(stage.clock.sleep(30.5))
    try:
        with stage.noting():
            await asyncio.shield(inner)
    except DeadlineExceededError:
        await inner
    return "saved"


async def inner_task(stage: Stage) -> None:
    """Wait for a task."""
    with stage.noting():
        await asyncio.create_task(stage.hang())


async def stubborn_inner_task(stage: Stage) -> None:
    """Wait for a task that survives its cancellation, once."""

    async def work() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await stage.hang()
        return "result"

    with stage.noting():
        await asyncio.create_task(work())


async def slow_inner_task(stage: Stage) -> None:
    """Wait for a task whose clean-up takes longer than the grace."""

    async def work() -> None:
        try:
            await stage.hang()
        finally:
            await stage.hang()

    with stage.noting():
        await asyncio.create_task(work())


async def several_tasks(stage: Stage) -> str:
    """Wait for tasks, which goes on without the wait."""
    tasks = {asyncio.create_task(stage.hang())}
    try:
        with stage.noting():
            await asyncio.wait(tasks)
    except DeadlineExceededError:
        tasks.pop().cancel()
    return "saved"


async def gathered(stage: Stage) -> None:
    """Gather."""
    with stage.noting():
        await asyncio.gather(stage.hang(), stage.hang())


async def inner_timeout(stage: Stage) -> None:
    """Have a timeout of one's own, which has not passed."""
    async with asyncio.timeout(1000):
        await stage.hang()


async def inner_scope(stage: Stage) -> None:
    """Have a timeout of anyio's, which has not passed."""
    with anyio.fail_after(1000):
        await stage.hang()


async def hang_in_cleanup(stage: Stage) -> None:
    """Wait for ever in the clean-up."""
    try:
        await stage.hang()
    finally:
        await stage.hang()


async def condition(stage: Stage) -> None:
    """Wait for a condition whose lock somebody else has: it makes another error of ours."""
    lock = asyncio.Condition()
    async with lock:
        waiter = asyncio.create_task(take(lock, stage))
        await lock.wait()
    await waiter


async def take(lock: asyncio.Condition, stage: Stage) -> None:
    """Wake the waiter, and keep the lock until the deadline has passed."""
    async with lock:
        lock.notify()
        await stage.clock.sleep(30.25)


async def return_at_the_deadline(stage: Stage) -> str:
    """Finish in the very moment."""
    await stage.clock.sleep(30.0)
    return "in time"


async def fail_in_the_grace(stage: Stage) -> None:
    """Fail while saving the work."""
    try:
        await stage.hang()
    except DeadlineExceededError:
        raise ValueError from None


DEADLINE, CANCELLED = "DeadlineExceededError", "CancelledError"
CUT = (f"end: {DEADLINE}", 30.0)
STOPPED = (f"end: {DEADLINE}", 31.0)

SHAPES: list[tuple[Handler, list[tuple[str, float]]]] = [
    (wait_plainly, [(DEADLINE, 30), CUT]),
    (catch_and_return, [(DEADLINE, 30), ("end: saved", 30.75)]),
    (catch_and_go_on, [(DEADLINE, 30), (CANCELLED, 31), STOPPED]),
    (catch_exceptions, [(DEADLINE, 30), CUT]),
    (swallow_everything, [(DEADLINE, 30), (CANCELLED, 31), (CANCELLED, 32)]),
    (group, [(DEADLINE, 30), (CANCELLED, 30), CUT]),
    (group_is_waited_for, [(CANCELLED, 30), (DEADLINE, 30), CUT]),
    (anyio_group, [(DEADLINE, 30), (CANCELLED, 30), (DEADLINE, 30), CUT]),
    (anyio_group_is_waited_for, [(CANCELLED, 30), (DEADLINE, 30), CUT]),
    (shielded_scope, [(DEADLINE, 30), CUT]),
    (shielded_task, [(DEADLINE, 30), ("end: saved", 30.5)]),
    (inner_task, [(CANCELLED, 30), (DEADLINE, 30), CUT]),
    (stubborn_inner_task, [(CANCELLED, 30), (DEADLINE, 30), CUT]),
    (slow_inner_task, [(CANCELLED, 30), (CANCELLED, 31), (CANCELLED, 31), STOPPED]),
    (several_tasks, [(DEADLINE, 30), ("end: saved", 30), (CANCELLED, 30)]),
    (gathered, [(CANCELLED, 30), (CANCELLED, 30), (DEADLINE, 30), CUT]),
    (inner_timeout, [(DEADLINE, 30), CUT]),
    (inner_scope, [(DEADLINE, 30), CUT]),
    (hang_in_cleanup, [(DEADLINE, 30), (CANCELLED, 31), STOPPED]),
    (condition, [(f"end: {DEADLINE}", 30.25)]),
    (return_at_the_deadline, [("end: in time", 30)]),
    (fail_in_the_grace, [(DEADLINE, 30), ("end: ValueError", 30)]),
]


@pytest.mark.promise("P7")
@pytest.mark.parametrize(("handler", "expected"), SHAPES, ids=[handler.__name__ for handler, _ in SHAPES])
async def test_shape(clock: VirtualClock, handler: Handler, expected: list[tuple[str, float]]) -> None:
    """The error comes at the deadline, to where the handler waits; a second later it is over (E19, A7)."""
    assert expected == await play(clock, handler)


# --- what does not catch it ----------------------------------------------------------------------------------------


@pytest.mark.promise("P7")
async def test_group_is_caught_by_its_part(clock: VirtualClock) -> None:
    """``except*`` catches the error of the body of a task group, whose tasks have ended by then; the handler goes on."""

    async def handler(stage: Stage) -> str:
        try:
            await group(stage)
        except* DeadlineExceededError:
            stage.note("caught")
        return "saved"

    assert [(DEADLINE, 30), (CANCELLED, 30), ("caught", 30), ("end: saved", 30)] == await play(clock, handler)


@pytest.mark.promise("P7")
async def test_other_group_stands(clock: VirtualClock) -> None:
    """A group without the error is what the handler raises."""

    async def handler(stage: Stage) -> None:
        try:
            await stage.hang()
        except DeadlineExceededError:
            raise ExceptionGroup("Failed.", [ValueError()]) from None

    assert [(DEADLINE, 30), ("end: ExceptionGroup", 30)] == await play(clock, handler)


@pytest.mark.promise("P7")
def test_kind() -> None:
    """The error is no Exception; it is what locks, groups and libraries clean up after."""
    assert not issubclass(DeadlineExceededError, Exception)
    assert issubclass(DeadlineExceededError, asyncio.CancelledError)


@pytest.mark.promise("P7")
async def test_message(clock: VirtualClock) -> None:
    """What is raised says how long the handler had; what is raised at last has the place where the handler was as its cause."""
    messages = []

    async def handler(stage: Stage) -> None:
        try:
            await stage.hang()
        except DeadlineExceededError as exc:
            messages.append((str(exc), exc.__context__))
            await stage.hang()

    async with played(clock, handler) as (stage, _):
        await move(clock, 30)
        await move(clock, 31)

    assert [("The handler has exceeded its deadline of 30 s; it has 1 s left to end.", None)] == messages
    assert stage.error is not None
    assert "The handler was stopped 1 s after its deadline of 30 s." == str(stage.error)
    assert isinstance(stage.error.__cause__, asyncio.CancelledError)


@pytest.mark.promise("P7")
async def test_late_beginning(clock: VirtualClock) -> None:
    """The time counts from the head: a handler that begins after its deadline gets the error where it first waits."""
    stage, info = Stage(clock), make_info(clock)
    await move(clock, 30.25)

    async def run() -> None:
        with stage.noting():
            await run_with_deadline(info, catch_and_go_on(stage))

    task = asyncio.create_task(run())
    await turns()
    await move(clock, 31)
    await asyncio.wait({task})

    assert [(DEADLINE, 30.25), (CANCELLED, 31), (DEADLINE, 31)] == stage.seen


# --- runaways ------------------------------------------------------------------------------------------------------


@pytest.mark.promise("P7")
async def test_runaway(clock: VirtualClock, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that swallows everything is reported a second after its stop; whenever it returns, its attempt has failed."""
    async with played(clock, swallow_everything) as (stage, task):
        for moment in (30, 31, 31.75):
            await move(clock, moment)
        assert [] == caplog.messages

        for moment in (32, 1000):
            await move(clock, moment)
        assert ["Task welcome-1 is a runaway"] == [message.partition(":")[0] for message in caplog.messages]
        stage.gate.set()
        await asyncio.wait({task})

    assert ("end: DeadlineExceededError", 1000) == stage.seen[-1]


# --- cancellation by others ----------------------------------------------------------------------------------------


async def clean_up(stage: Stage) -> None:
    """Clean up for half a second, however it ends."""
    try:
        await stage.hang()
    finally:
        await stage.clock.sleep(0.5)
        stage.note("clean")


# From the timer to the end of the handler it takes fewer.
TURNS_AROUND = 14

CANCELLED_SHAPES: list[tuple[Handler, float]] = [
    (wait_plainly, 30.0),
    (catch_and_return, 30.0),
    (catch_and_go_on, 30.0),
    (group, 30.0),
    (group_is_waited_for, 30.0),
    (anyio_group, 30.0),
    (shielded_scope, 30.0),
    (inner_task, 30.0),
    (gathered, 30.0),
    (inner_timeout, 30.0),
    (clean_up, 30.0),
    (catch_and_go_on, 31.0),
    (slow_inner_task, 31.0),
    (hang_in_cleanup, 31.0),
]


def call_in_turn(turn: int, callback: Callable[[], object]) -> None:
    """Call something in that turn of the loop, counted from here."""
    if turn:
        asyncio.get_running_loop().call_soon(call_in_turn, turn - 1, callback)
    else:
        callback()


@pytest.mark.promise("P7", "P15")
@pytest.mark.parametrize("turn", range(TURNS_AROUND))
@pytest.mark.parametrize(("handler", "moment"), CANCELLED_SHAPES)
async def test_cancelled_by_asyncio(clock: VirtualClock, handler: Handler, moment: float, turn: int) -> None:
    """A task that is cancelled in any turn around deadline or stop ends as cancelled, unless it has ended before."""
    stage = Stage(clock)
    task = asyncio.create_task(stage.run(handler))
    was_cancelled: list[bool] = []
    clock.call_at(moment, lambda: call_in_turn(turn, lambda: was_cancelled.append(task.cancel())))
    for to in (30.0, 30.75, 31.0, 31.5, 32.0):
        await move(clock, to)
    await asyncio.wait({task})

    if was_cancelled == [True]:
        assert ("end: CancelledError", 1) == (stage.seen[-1][0], task.cancelling())
    else:
        assert ([False], 0) == (was_cancelled, task.cancelling())


@pytest.mark.promise("P7", "P15")
@pytest.mark.parametrize("turn", range(TURNS_AROUND))
@pytest.mark.parametrize(("handler", "moment"), CANCELLED_SHAPES)
async def test_cancelled_by_anyio(clock: VirtualClock, handler: Handler, moment: float, turn: int) -> None:
    """A scope around the handler that is cancelled in any turn around deadline or stop ends it, and ends that there."""
    stage = Stage(clock)
    scope = anyio.CancelScope()

    async def serve() -> str:
        with scope:
            await stage.run(handler)
        return "after"

    was_done: list[bool] = []

    def cancel() -> None:
        was_done.append(task.done())
        scope.cancel()

    task = asyncio.create_task(serve())
    clock.call_at(moment, lambda: call_in_turn(turn, cancel))
    for to in (30.0, 30.75, 31.0, 31.5, 32.0):
        await move(clock, to)
    await asyncio.wait({task})

    assert (False, 0) == (task.cancelled(), task.cancelling())
    assert "after" == task.result()
    if was_done == [False]:
        assert stage.seen[-1][0] in ("end: CancelledError", f"end: {DEADLINE}")


@pytest.mark.parametrize(("moment", "count"), [(29.0, 0), (30.25, 1)])
async def test_cancellation_is_logged(clock: VirtualClock, moment: float, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """Of a handler that is cancelled after its deadline, as when the dispatcher has hung up, the log says so; before it does not."""
    async with played(clock, catch_and_go_on) as (_, task):
        await move(clock, 29.0)
        await move(clock, moment)
        task.cancel()
        await asyncio.wait({task})

    assert ["Task welcome-1 was cancelled after its deadline of 30 seconds."] * count == caplog.messages


async def test_no_second_cancellation(clock: VirtualClock) -> None:
    """Whoever is cancelled just before the stop may clean up in peace for a second more."""

    async def handler(stage: Stage) -> None:
        try:
            await catch_and_go_on(stage)
        finally:
            await clean_up(stage)

    stage = Stage(clock)
    task = asyncio.create_task(stage.run(handler))
    for moment in (30.0, 30.75):
        await move(clock, moment)
    task.cancel()
    for moment in (30.9, 31.0, 32.0, 32.5, 33.0):
        await move(clock, moment)

    assert task.cancelled()
    assert [(DEADLINE, 30), (CANCELLED, 30.75), (CANCELLED, 32), ("clean", 32.5), ("end: CancelledError", 32.5)] == stage.seen


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_end_of_the_process(clock: VirtualClock, error: type[BaseException]) -> None:
    """What ends the process goes on to do so after the deadline, too."""
    info = make_info(clock)

    async def handler() -> None:
        try:
            await asyncio.Event().wait()
        except DeadlineExceededError:
            raise error from None

    async def run() -> BaseException | None:
        # Caught within the task: of a task it would end the test.
        try:
            await run_with_deadline(info, handler())
        except (KeyboardInterrupt, SystemExit) as exc:
            return exc
        return None

    task = asyncio.create_task(run())
    await turns()
    await move(clock, 30)

    assert isinstance(await task, error)


# --- without a deadline that passes --------------------------------------------------------------------------------


class CountingClock(SystemClock):
    """Counts the timers."""

    def __init__(self) -> None:
        self.timers: list[asyncio.TimerHandle] = []

    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        """Set one."""
        timer = asyncio.get_running_loop().call_at(when, callback)
        self.timers.append(timer)
        return timer


async def test_no_timer_for_a_handler_that_does_not_wait() -> None:
    """A handler that never waits has no timer."""
    clock = CountingClock()

    async def handler() -> int:
        return 7

    assert 7 == await run_with_deadline(make_info(clock), handler())
    assert [] == clock.timers


@pytest.mark.parametrize("error", [None, ValueError, asyncio.CancelledError])
async def test_timer_is_cancelled(error: type[BaseException] | None) -> None:
    """However a handler ends before its deadline, its timer goes with it, and its result or error is the caller's."""
    clock = CountingClock()

    async def handler() -> int:
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return 7

    with pytest.raises(error) if error else contextlib.nullcontext():
        assert 7 == await run_with_deadline(make_info(clock), handler())

    assert [True] == [timer.cancelled() for timer in clock.timers]


class Other:
    """An awaitable that is no coroutine."""

    def __await__(self) -> Generator[Any, Any, int]:
        yield from asyncio.sleep(0).__await__()
        return 7


async def test_other_awaitable(clock: VirtualClock) -> None:
    """A handler may return any awaitable."""
    assert 7 == await run_with_deadline(make_info(clock), Other())


async def test_forgotten_handler(clock: VirtualClock) -> None:
    """A handler whose coroutine is closed while it waits ends by that, and so does its timer."""
    info, stage = make_info(clock), Stage(clock)

    async def run() -> None:
        await run_with_deadline(info, stage.hang())

    coroutine = run()
    coroutine.send(None)
    coroutine.close()

    assert [("GeneratorExit", 0)] == stage.seen
    assert clock._next_moment() is None


# --- what a handler knows ------------------------------------------------------------------------------------------


async def test_task_in_a_thread(clock: VirtualClock) -> None:
    """Code in a thread that the handler starts knows its task, and how much time is left; afterwards there is none."""
    info = make_info(clock)

    def work() -> tuple[str, float]:
        return current_task().uuid, current_task().remaining_seconds()

    with running(info):
        known = [await asyncio.to_thread(work), await anyio.to_thread.run_sync(work)]
    with pytest.raises(NotInTaskError):
        await asyncio.to_thread(work)

    assert [(info.uuid, 30.0)] * 2 == known


@pytest.mark.promise("P7")
async def test_no_time_remains_in_the_grace(clock: VirtualClock) -> None:
    """In the grace nothing remains of the deadline."""

    async def handler(stage: Stage) -> float:
        with contextlib.suppress(DeadlineExceededError):
            await stage.hang()
        return current_task().remaining_seconds()

    assert [(DEADLINE, 30), ("end: 0.0", 30)] == await play(clock, handler)


def test_answers() -> None:
    """terminate_task() ends the task by 200, repeat_task() has it tried again by 500 (SPEC 9.1)."""
    assert (TaskAnswer(200), TaskAnswer(500)) == (terminate_task(), repeat_task())
