"""The deadline of a handler: `DeadlineExceededError` where it waits, a second of grace, then its end.

Theory of operation. A handler runs in the task of its request, driven by a generator of ours that stands between the two
and passes on what each says to the other. When the deadline has passed, the task is cancelled, which ends whatever the
handler waits for; the cancellation arrives at the generator, which takes it back and throws the error into the handler in
its place. When the grace is over, the task is cancelled once more, and that is passed on as it is (RELIABILITY A7).

Code that is written for asyncio keeps its promises for one foreign exception only, that of a cancellation: a TaskGroup
that waits for its tasks cancels them, a Condition takes its lock again, a Semaphore gives back what it had got, and so do
our own critical sections. For any other exception they do not (tests/test_facts_time.py). So the error is a kind of
CancelledError; a plain BaseException would leave tasks running and locks taken.

Cancellations by others (the client has gone, the server shuts down) pass through at any time. One that comes together with
ours, or while ours ends the handler, is what the caller gets: the numbers of ``Task.cancelling`` tell.
"""

from __future__ import annotations

import asyncio
import logging
import types
from collections.abc import Awaitable, Generator
from typing import TYPE_CHECKING, Any, TypeVar

from aiotaskqueue._clock import Cutoff
from aiotaskqueue.signing import GRACE_SECONDS

if TYPE_CHECKING:
    from aiotaskqueue.worker._info import TaskInfo

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long the clean-up of a handler may take after its hard stop before it is called a runaway.
RUNAWAY_SECONDS = 1.0


class DeadlineExceededError(asyncio.CancelledError):
    """Raised inside of a ``@task`` handler, where it waits, when its deadline has passed.

    The handler may catch it; it then has a second to save its work and to return: a 200 in that second is a success.
    After that the handler is cancelled. Where the error is not caught the task is tried again.

    It is a BaseException, so ``except Exception`` does not catch it, and a kind of ``asyncio.CancelledError``, since
    that is what locks, task groups and libraries know how to clean up after. From the body of an ``asyncio.TaskGroup``
    it may come as part of an exception group: ``except*`` catches it in both forms.

    Source: GAE runtime.DeadlineExceededError (SPEC 4.5).
    """


@types.coroutine
def run_with_deadline(info: TaskInfo, work: Awaitable[T]) -> Generator[Any, Any, T]:
    """Wait for a handler's `work` no longer than the task's deadline and a second of grace.

    To be awaited in the task that serves the request, within the block of ``running(info)``.

    Returns:
        What the handler returned, in time.

    Raises:
        DeadlineExceededError: The handler did not catch it, or was stopped after the grace: the attempt has failed.
        asyncio.CancelledError: Somebody else has cancelled the task.
    """
    coroutine = work if isinstance(work, types.CoroutineType) else _wait_for(work)
    try:
        waited_for = coroutine.send(None)
    except StopIteration as stop:
        # The short way of handlers that never wait: no timer.
        return stop.value  # type: ignore[no-any-return]
    watch = _Watch(info)
    while True:
        thrown: BaseException | None = None
        try:
            # asyncio only ever sends None.
            yield waited_for
        except BaseException as exc:
            thrown = exc
        # Out of the except block: the error has no context by which anyio would take it for a cancellation of its own.
        if watch.is_due:
            thrown = watch.take_error()
        try:
            waited_for = coroutine.send(None) if thrown is None else coroutine.throw(thrown)
        except StopIteration as stop:
            watch.timer.cancel()
            if watch.has_passed:
                yield from watch.end(None)
            return stop.value  # type: ignore[no-any-return]
        except BaseException as exc:
            thrown = None  # its traceback has this frame
            watch.timer.cancel()
            if watch.has_passed:
                yield from watch.end(exc)
            raise


async def _wait_for(work: Awaitable[T]) -> T:
    return await work


def _wait_for_scopes() -> Generator[None, None, None]:
    """Let a scope of anyio's that is cancelled do it once more, which it does in each turn: it only ends what has its own message."""
    for _ in range(2):
        yield


class _Watch:
    """The deadline of one handler that has begun to wait."""

    # In the class, since most handlers end in time: they need none of these.
    is_due = False
    """The task is cancelled, and the error is to be thrown when that arrives."""
    has_passed = False
    _was_stopped = False
    _cancels = 0
    """How many of the task's cancellations are ours, and not taken back."""

    def __init__(self, info: TaskInfo) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancels_before = task.cancelling()
        self._info = info
        self.timer = info._call_after_deadline(0.0, self._expire)

    def end(self, exc: BaseException | None) -> Generator[None, None, None]:
        """Raise what is to be raised now that the handler has ended, by `exc` if it raised; else that stands."""
        for _ in range(self._cancels):
            self._task.uncancel()
        if isinstance(exc, KeyboardInterrupt | SystemExit | GeneratorExit):
            return
        if self._task.cancelling() > self._cancels_before:
            logger.warning("Task %s was cancelled after its deadline of %g seconds.", self._info.name, self._info.deadline_seconds)
            yield from _wait_for_scopes()
            if not _is_plain_cancellation(exc):
                raise asyncio.CancelledError from exc
        elif self._was_stopped:
            raise DeadlineExceededError(f"The handler was stopped {GRACE_SECONDS:g} s after {self._what()}.") from exc
        elif _is_plain_cancellation(exc) or (isinstance(exc, BaseExceptionGroup) and exc.subgroup(DeadlineExceededError)):
            # What others have made of our error, as a Condition does and a TaskGroup.
            raise DeadlineExceededError(f"The handler has exceeded {self._what()}.") from exc

    def _what(self) -> str:
        return f"its deadline of {self._info.deadline_seconds:g} s"

    def take_error(self) -> DeadlineExceededError:
        """Take the cancellation back; return what is thrown in its place."""
        self.is_due = False
        self._cancels -= 1
        self._task.uncancel()
        return DeadlineExceededError(f"The handler has exceeded {self._what()}; it has {GRACE_SECONDS:g} s left to end.")

    # --- timers ---

    def _expire(self, turns_left: int = Cutoff.GRACE_TURNS) -> None:
        if turns_left:
            # What the handler waits for may be here as well, if the loop was busy: it ends by that first (P8).
            self.timer = asyncio.get_running_loop().call_soon(self._expire, turns_left - 1)
            return
        self.has_passed = self.is_due = True
        self._cancel()
        self.timer = self._info._call_after_deadline(GRACE_SECONDS, self._stop)

    def _stop(self) -> None:
        # Still due: what the handler waits for takes that long to be cancelled. It is too late for the error.
        self.is_due = False
        self._was_stopped = True
        if self._task.cancelling() <= self._cancels_before + self._cancels:
            self._cancel()
        # Else somebody has cancelled it, as when the dispatcher hangs up: not twice, that would end its clean-up.
        self.timer = self._info._call_after_deadline(GRACE_SECONDS + RUNAWAY_SECONDS, self._report)

    def _report(self) -> None:
        logger.error(
            "Task %s is a runaway: its handler goes on %g s after it was stopped at its deadline; it swallows CancelledError, "
            "or its clean-up hangs.",
            self._info.name,
            RUNAWAY_SECONDS,
        )
        self._cancel()

    def _cancel(self) -> None:
        self._cancels += 1
        self._task.cancel()


def _is_plain_cancellation(exc: BaseException | None) -> bool:
    return isinstance(exc, asyncio.CancelledError) and not isinstance(exc, DeadlineExceededError)
