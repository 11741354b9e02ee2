"""Time: the only place that reads clocks, sleeps or sets timers.

Theory of operation. Everything that runs belongs to one of three states, so that a clock made for tests can tell whether
moving time is fair (DESIGN: what idle means):

* *live*: inside ``with clock.activity()`` and not in one of the two below; it works, or waits for the database thread.
* *parked*: in ``clock.wait``; nothing happens there before its wakeup is set or its moment comes.
* *outside*: inside ``async with clock.outside(...)``: waiting for a socket or for somebody's handler, which may hang.

The change from parked to live is made by whoever sets the wakeup, at once, and not when the loop gets round to the
waiter: between the two everything would look idle. The SystemClock needs none of this and pays nothing for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

# A wall clock may be set while we sleep by the monotonic one: look again at least this often.
LONGEST_SLEEP_SECONDS = 60.0


class Timer(Protocol):
    """What ``Clock.call_at`` returns."""

    def cancel(self) -> None:
        """Make sure that the callback is not called any more."""


class Wakeup:
    """A flag on which one loop sleeps, and that anybody in the same event loop may set."""

    __slots__ = ("_on_set", "is_set")

    def __init__(self) -> None:
        self.is_set = False
        self._on_set: Callable[[], None] | None = None

    def set(self) -> None:
        """Wake the sleeper; if nobody sleeps, the next one does not fall asleep."""
        self.is_set = True
        if self._on_set is not None:
            self._on_set()

    def take(self) -> bool:
        """Return whether the flag is set, and clear it."""
        was_set, self.is_set = self.is_set, False
        return was_set

    @contextlib.contextmanager
    def calling(self, on_set: Callable[[], None]) -> Iterator[None]:
        """Call `on_set` whenever the flag is set while the block runs; for clocks, one sleeper at a time."""
        self._on_set = on_set
        try:
            yield
        finally:
            self._on_set = None


class Clock(ABC):
    """Tells the time, sleeps and sets timers.

    Two kinds of time: the *wall* (seconds or microseconds since 1970, UTC) for ETAs, which an administrator may set,
    and the *monotonic* (seconds since some moment) for deadlines, which nobody can.
    """

    @abstractmethod
    def time(self) -> float:
        """Return the wall time in seconds since 1970, UTC."""

    @abstractmethod
    def monotonic(self) -> float:
        """Return seconds since some moment; never goes backwards."""

    @abstractmethod
    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` once the monotonic time is `when`, at the earliest in the next turn of the event loop."""

    @abstractmethod
    async def wait(self, wakeup: Wakeup, until_usec: int | None = None, *, is_chore: bool = False) -> None:
        """Sleep until `wakeup` is set or the wall time is `until_usec`; take the wakeup's flag.

        May return early (the wall clock may have been set): callers look again at what they wait for. A chore is work
        that nobody waits for, like sweeping: a test clock does not jump ahead for its sake alone.
        """

    def time_usec(self) -> int:
        """Return the wall time in whole microseconds since 1970, UTC."""
        return round(self.time() * 1_000_000)

    async def sleep(self, seconds: float) -> None:
        """Sleep, for handlers and tests; our own loops use `wait`."""
        ends, left = self.monotonic() + seconds, seconds
        while True:
            await self.wait(Wakeup(), self.time_usec() + round(left * 1_000_000))
            left = ends - self.monotonic()
            if left <= 0:
                return

    @property
    def is_held(self) -> bool:
        """Whether parked work stays parked for now, as under a test clock that nobody advances."""
        return False

    def activity(self) -> AbstractContextManager[None]:
        """Count live work from this call to the end of the block: until then a test clock does not move time, unless parked or outside."""
        return _NOTHING

    def outside(self, until: float | None = None) -> AbstractAsyncContextManager[None]:
        """Count the block as waiting for the world; `until` is the monotonic time at which our own timer ends it."""
        return _NOTHING

    def released(self) -> AbstractContextManager[None]:
        """Let parked work go on while the block runs; a test clock holds it otherwise."""
        return _NOTHING

    def cutoff(self, when: float) -> Cutoff:
        """Return a context manager that ends its block at the monotonic time `when` (see Cutoff)."""
        return Cutoff(self, when)


class SystemClock(Clock):
    """The machine's own clocks."""

    def time(self) -> float:
        return time.time()

    def time_usec(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        # The clock of asyncio's and uvloop's loops, which threads can read as well.
        return time.monotonic()

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_at(when, callback)

    async def wait(self, wakeup: Wakeup, until_usec: int | None = None, *, is_chore: bool = False) -> None:
        if wakeup.take():
            return
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        wake = _Resolver(woken)
        timer = None
        if until_usec is not None:
            seconds = (until_usec - self.time_usec()) / 1_000_000
            timer = loop.call_later(min(max(seconds, 0.0), LONGEST_SLEEP_SECONDS), wake)
        try:
            with wakeup.calling(wake):
                await woken
        finally:
            if timer is not None:
                timer.cancel()
        wakeup.take()


class Cutoff:
    """Ends its block at a moment, unless the block has what it waited for.

    A timer and the bytes it races with can become due in one turn of a busy event loop. So the timer lets the loop run
    a few turns first: an answer that arrived in time counts, however late the loop looks at it (RELIABILITY fact 4, P8).
    The block is ended by cancelling its task, and that cancellation does not leave the block: ask `was_cut`.

    Source: the shape of ``asyncio.timeout``; the re-check is ours.
    """

    # Turns from bytes in the socket to a finished block: read, parser's future, the task's step; and one to spare.
    GRACE_TURNS = 4

    __slots__ = ("_clock", "_cuts_before", "_task", "_timer", "_timer_when", "_when", "was_cut")

    def __init__(self, clock: Clock, when: float) -> None:
        self._clock = clock
        self._when = self._timer_when = when
        self._timer: Timer = clock.call_at(when, self._expire)
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cuts_before = task.cancelling()
        self.was_cut = False

    def reschedule(self, when: float) -> None:
        """Move the end of the block to the monotonic time `when`; a later one leaves the timer, which looks again."""
        self._when = when
        if when < self._timer_when:
            self._set_timer()

    def _set_timer(self) -> None:
        self._timer.cancel()
        self._timer_when = self._when
        self._timer = self._clock.call_at(self._when, self._expire)

    def _expire(self, turns_left: int = GRACE_TURNS) -> None:
        if self._timer_when < self._when:
            self._set_timer()
        elif turns_left:
            self._timer = asyncio.get_running_loop().call_soon(self._expire, turns_left - 1)
        elif not self.was_cut:
            self.was_cut = True
            self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> bool:
        self._timer.cancel()
        if not self.was_cut:
            return False
        # Somebody else's cancellation at the same time goes on; ours ends here.
        is_ours_alone = self._task.uncancel() <= self._cuts_before
        return is_ours_alone and exc_type is not None and issubclass(exc_type, asyncio.CancelledError)


class _Resolver:
    """Resolves a future once; a plain callable, since `set_result` on a done future raises."""

    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[None]) -> None:
        self._future = future

    def __call__(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class _Nothing:
    """A context manager, plain and async, that does nothing; one object serves every block."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc_info: object) -> None:
        return None

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *exc_info: object) -> None:
        return None


_NOTHING = _Nothing()
