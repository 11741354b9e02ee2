"""Facts of asyncio and anyio on which waiting and cancelling stand (RELIABILITY 0, facts 4 and 9; pitfalls A1, A2, A5, A7, A9).

Each fact has its control: the naive pattern, shown to fail. If a control begins to pass, the pattern is needed no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any

import anyio
import pytest

from aiotaskqueue._clock import SystemClock
from aiotaskqueue._service import _outlast
from aiotaskqueue.tasks import DeadlineExceededError

pytestmark = pytest.mark.anyio

# How a caller is cancelled: by asyncio, by a scope of anyio's around it, by both at once, again and again.
KINDS = ["native", "scope", "both", "native thrice"]


class Work:
    """Something that must be done to its end; others wait for it."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.is_done = False

    async def __call__(self) -> None:
        """Do it."""
        await self.let_go.wait()
        self.is_done = True


async def turns(count: int = 20) -> None:
    """Let the loop run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def cancel_while_waiting(kind: str, wait: Callable[[], Awaitable[None]], work: Work) -> tuple[bool, bool]:
    """Cancel a caller in some way while it waits, then let the work end.

    Returns:
        Whether the work was done when the caller stopped waiting, and whether the caller ended as cancelled.
    """
    scope = anyio.CancelScope()
    seen: list[bool] = []

    async def call() -> None:
        with scope:
            try:
                await wait()
                await anyio.lowlevel.checkpoint()
            finally:
                seen.append(work.is_done)

    caller = asyncio.create_task(call())
    await turns()
    if kind in ("scope", "both"):
        scope.cancel()
    for _ in range({"scope": 0, "native thrice": 3}.get(kind, 1)):
        caller.cancel()
        await turns()
    work.let_go.set()
    await asyncio.wait({caller})
    return seen[0], caller.cancelled() or scope.cancelled_caught


# --- fact 9: a shield of one kind is no shield against the other ---------------------------------------------------


async def test_naive_an_anyio_shield_does_not_stop_a_native_cancellation() -> None:
    """Control: a caller that waits inside of a shielded scope is cancelled by asyncio all the same."""
    work = Work()

    async def wait() -> None:
        with anyio.CancelScope(shield=True):
            await work()

    assert (False, True) == await cancel_while_waiting("native", wait, work)


async def test_naive_an_asyncio_shield_does_not_make_the_caller_wait() -> None:
    """Control: asyncio.shield saves the work, but the caller goes on before it is done."""
    work = Work()
    inner = asyncio.create_task(work())

    assert (False, True) == await cancel_while_waiting("native", lambda: asyncio.shield(inner), work)


async def test_naive_cleanup_in_a_cancelled_scope_is_cancelled_every_time() -> None:
    """Control, A2: each await in a cancelled scope raises anew, so cleanup that awaits never gets anywhere."""
    raised = 0
    with anyio.CancelScope() as scope:
        scope.cancel()
        for _ in range(5):
            try:
                await anyio.sleep_forever()
            except asyncio.CancelledError:
                raised += 1

    assert 5 == raised


@pytest.mark.parametrize("kind", KINDS)
async def test_ours_the_service_outlasts_its_callers(kind: str) -> None:
    """A1: whoever waits for the service to close waits to the end, however it is cancelled, and is then cancelled."""
    work = Work()
    host = asyncio.create_task(work())

    assert (True, True) == await cancel_while_waiting(kind, lambda: _outlast(host), work)


async def test_ours_outlasting_does_not_cancel_the_work() -> None:
    """A1: the work itself never hears of its callers' cancellations."""
    work = Work()
    host = asyncio.create_task(work())
    await cancel_while_waiting("both", lambda: _outlast(host), work)

    assert (False, True) == (host.cancelled(), host.done())


async def test_ours_outlasting_does_not_spin() -> None:
    """A2, A3: a caller in a cancelled scope waits; it does not raise and try again in each turn of the loop."""
    work, waits = Work(), 0
    host = asyncio.create_task(work())
    original = asyncio.wait

    async def counted(*args: object, **kwargs: object) -> object:
        nonlocal waits
        waits += 1
        return await original(*args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "wait", counted)
        with anyio.CancelScope() as scope:
            caller = asyncio.create_task(_outlast(host))
            scope.cancel()
            with anyio.CancelScope(shield=True):
                caller.cancel()
                await turns(200)
        work.let_go.set()
        await original({caller})

    assert waits <= 2


async def test_ours_outlasting_what_is_done() -> None:
    """Waiting for what has ended returns at once."""
    work = Work()
    work.let_go.set()
    host = asyncio.create_task(work())
    await asyncio.wait({host})
    await _outlast(host)

    assert work.is_done


# --- fact 9, A5: whose cancellation is it --------------------------------------------------------------------------


async def test_naive_a_timer_that_cancels_takes_the_wrong_one_for_its_own() -> None:
    """Control: who cancels a task by a timer and swallows CancelledError swallows a cancellation from outside as well."""

    async def work() -> str:
        task = asyncio.current_task()
        assert task is not None
        timer = asyncio.get_running_loop().call_later(1000, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        timer.cancel()
        return "went on"

    task = asyncio.create_task(work())
    await turns()
    task.cancel()

    assert "went on" == await task


@pytest.mark.parametrize("kind", KINDS)
async def test_ours_a_cutoff_passes_on_what_is_not_its_own(kind: str) -> None:
    """A cutoff ends its own block, and lets every other cancellation through, of either kind, also at one moment with its own."""
    clock, work = SystemClock(), Work()

    async def wait() -> None:
        with clock.cutoff(clock.monotonic() + 1000):
            await work()

    assert (False, True) == await cancel_while_waiting(kind, wait, work)


@pytest.mark.parametrize("kind", KINDS)
async def test_ours_a_cutoff_at_the_same_moment(kind: str) -> None:
    """A cancellation that comes while a cutoff has just cut is not mistaken for the cut."""
    clock, reached = SystemClock(), []
    scope = anyio.CancelScope()
    task: asyncio.Task[None] | None = None

    async def call() -> None:
        with scope:
            with clock.cutoff(clock.monotonic()):
                try:
                    await asyncio.Event().wait()
                finally:
                    assert task is not None
                    if kind in ("scope", "both"):
                        scope.cancel()
                    for _ in range({"scope": 0, "native thrice": 3}.get(kind, 1)):
                        task.cancel()
            await anyio.lowlevel.checkpoint()
            reached.append("after the cut")

    task = asyncio.create_task(call())
    await asyncio.wait({task})

    assert ([], True) == (reached, task.cancelled() or scope.cancelled_caught)


# --- fact 4: an answer that came in time ---------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def answer_in_the_socket_after(block_seconds: float) -> AsyncIterator[asyncio.StreamReader]:
    """Give a reader whose bytes come while the loop is blocked for some time."""
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)

    def block() -> None:
        there.send(b"ok")
        time.sleep(block_seconds)

    asyncio.get_running_loop().call_soon(block)
    try:
        yield reader
    finally:
        there.close()
        writer.close()
        await writer.wait_closed()


async def test_naive_a_timeout_loses_an_answer_that_came_in_time() -> None:
    """Control: bytes and timer become due in one turn of a loop that was blocked, and asyncio.timeout lets the timer win."""
    with pytest.raises(TimeoutError):
        async with answer_in_the_socket_after(0.02) as reader, asyncio.timeout(0.01):
            await reader.readexactly(2)


@pytest.mark.promise("P8")
async def test_ours_a_cutoff_keeps_an_answer_that_came_in_time() -> None:
    """P8: bytes that were there before the deadline count, however late the loop gets to look at them."""
    clock, answer = SystemClock(), b""
    async with answer_in_the_socket_after(0.02) as reader:
        with clock.cutoff(clock.monotonic() + 0.01) as cutoff:
            answer = await reader.readexactly(2)

    assert (b"ok", False) == (answer, cutoff.was_cut)


# --- A7: errors thrown into a wait ---------------------------------------------------------------------------------


class ForeignError(BaseException):
    """An error of which asyncio knows nothing."""


@types.coroutine
def throwing(work: Coroutine[Any, Any, None], error: type[BaseException]) -> Generator[Any, Any, None]:
    """Wait for `work`; throw an error into it in place of a cancellation."""
    thrown: BaseException | None = None
    while True:
        try:
            waited_for = work.send(None) if thrown is None else work.throw(thrown)
        except StopIteration:
            return
        thrown = None
        try:
            yield waited_for
        except asyncio.CancelledError:
            thrown = error()


async def throw_into_a_group(error: type[BaseException]) -> tuple[bool, bool]:
    """Throw the error where a task group waits for its task; return whether the group has ended, and whether its task has."""
    inner: list[asyncio.Task[bool]] = []

    async def wait() -> None:
        async with asyncio.TaskGroup() as tg:
            inner.append(tg.create_task(asyncio.Event().wait()))

    async def run() -> None:
        with contextlib.suppress(error):
            await throwing(wait(), error)

    task = asyncio.create_task(run())
    await turns()
    task.cancel()
    await turns()
    ended = task.done(), inner[0].done()
    inner[0].cancel()
    await asyncio.wait({task, *inner})
    return ended


async def throw_into_a_condition(error: type[BaseException]) -> bool:
    """Throw the error where a condition waits for its lock, which we have; return whether we have it still."""
    condition = asyncio.Condition()

    async def run() -> None:
        with contextlib.suppress(error, asyncio.CancelledError):
            await throwing(wait(), error)

    async def wait() -> None:
        async with condition:
            await condition.wait()

    task = asyncio.create_task(run())
    await turns()
    async with condition:
        condition.notify()
        await turns()
        task.cancel()
        await turns()
        is_ours = condition.locked()
        if not is_ours:
            await condition.acquire()
    await asyncio.wait({task})
    return is_ours


async def test_naive_a_group_forgets_its_tasks_for_a_foreign_error() -> None:
    """Control, A7: a task group into which a BaseException is thrown while it waits for its tasks ends, and they go on."""
    assert (True, False) == await throw_into_a_group(ForeignError)


@pytest.mark.promise("P7")
async def test_ours_a_group_ends_its_tasks_at_the_deadline() -> None:
    """A7: our error, a CancelledError, ends the tasks as well."""
    assert (True, True) == await throw_into_a_group(DeadlineExceededError)


async def test_naive_a_condition_loses_its_lock_for_a_foreign_error() -> None:
    """Control, A7: a condition into which a BaseException is thrown while it waits for its lock releases somebody else's."""
    assert not await throw_into_a_condition(ForeignError)


@pytest.mark.promise("P7")
async def test_ours_a_condition_keeps_its_lock_at_the_deadline() -> None:
    """A7: for our error, a CancelledError, it waits on until it has the lock."""
    assert await throw_into_a_condition(DeadlineExceededError)


# --- A9: small steps of large floats -------------------------------------------------------------------------------


def test_naive_microseconds_do_not_fit_into_seconds_since_1970() -> None:
    """Control, A9: near the present the next float after a wall time in seconds is a fifth of a microsecond away: sums drift."""
    now, steps = 1_790_000_000.0, 0.0
    for _ in range(1000):
        now += 1e-7
        steps += 1e-7

    assert abs(now - 1_790_000_000.0 - steps) > 1e-5


async def test_ours_moments_are_whole_microseconds() -> None:
    """A9: the wall time is told in whole microseconds, as ints, which any sum keeps exact."""
    assert int is type(SystemClock().time_usec())
