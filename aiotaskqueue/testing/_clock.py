"""VirtualClock: time that stands still until it is moved.

Theory of operation. The clock counts its users in the three states of `_clock`: *live* (activities that are neither
parked nor outside), *parked* (sleepers) and *outside*. Time is moved only while nothing is live; what waits outside gets a
moment of real time first, since it may be a socket about to answer, or a handler that hangs for good. A handler that
sleeps on this clock is told apart from one that hangs: it is *dozing*, and the attempt that waits for it is no reason to
hold the time. It is known by its context: it runs inside of the `outside` block of a delivery, or in a ``@task`` handler.

Parked work is *held* unless the clock is being moved, runs ahead by itself (`auto_advance`) or is `released`: so nothing
runs before a test says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta

import attrs

from aiotaskqueue._clock import Clock, Cutoff, Wakeup
from aiotaskqueue._task_arguments import MAX_ETA_USEC, shorten
from aiotaskqueue.errors import InvalidArgumentError, NotInTaskError
from aiotaskqueue.worker import current_task

DEFAULT_START = datetime(2026, 1, 1, tzinfo=UTC)

# Real time that work outside gets before time is moved on without it.
OUTSIDE_PATIENCE_SECONDS = 0.2

# What was just woken, or whose time has just run out, has callbacks to run before it counts itself as anything.
SETTLING_TURNS = Cutoff.GRACE_TURNS + 3

# The `outside` block in which this context is.
_block: ContextVar[object] = ContextVar("aiotaskqueue_outside", default=None)


@attrs.define(eq=False)
class _Sleeper:
    """Somebody in `wait` or `sleep`."""

    wakeup: Wakeup
    until_usec: int | None
    is_chore: bool
    is_parked: bool
    """In `wait`, as our own loops are."""
    handler: object
    """What tells the handler that is dozing from other ones; None if it is no handler, as in the test itself."""
    woken: asyncio.Future[None]


class _Timer:
    """One call_at."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class VirtualClock(Clock):
    """A clock for tests: starts at a fixed moment and moves only when told.

    Args:
        start: The wall time at first, aware; 2026-01-01 UTC unless given.
        auto_advance: Jump to the next due moment by itself whenever nothing is live or outside. Without it nothing that
            is parked goes on before `advance` or a service's ``run_until_idle``.

    Example:
        >>> clock = VirtualClock()
        >>> clock.now.isoformat()
        '2026-01-01T00:00:00+00:00'
    """

    def __init__(self, start: datetime = DEFAULT_START, *, auto_advance: bool = False) -> None:
        self._start_usec = self._now_usec = _usec_of(start)
        self._auto_advance = auto_advance
        self._activities = 0
        self._parked = 0
        self._outside = 0
        self._releases = 0
        self._sleepers: list[_Sleeper] = []
        self._timers: list[tuple[float, int, _Timer]] = []
        self._order = itertools.count()
        self._changed: asyncio.Future[None] | None = None
        self._jumping: asyncio.Handle | None = None

    # --- telling ---

    @property
    def now(self) -> datetime:
        """The wall time, aware, in UTC."""
        return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self._now_usec)

    def time(self) -> float:
        return self._now_usec / 1_000_000

    def time_usec(self) -> int:
        return self._now_usec

    def monotonic(self) -> float:
        return (self._now_usec - self._start_usec) / 1_000_000

    # --- moving ---

    async def advance(self, by: float | timedelta) -> None:
        """Move time on, stopping at every moment at which something is due, until all of that has settled.

        Args:
            by: Seconds, or a timedelta; not negative.

        Raises:
            TypeError: `by` is neither.
            InvalidArgumentError: `by` is negative, no number, or leads beyond the year 9999.
        """
        target_usec = self._now_usec + _usec_of_step(by, MAX_ETA_USEC - self._now_usec)
        with self.released():
            await self._settle()
            while (moment := self._next_moment()) is not None and moment <= target_usec:
                self._move(moment)
                await self._settle()
            self._move(target_usec)
            await self._settle()

    async def travel_to(self, moment: datetime) -> None:
        """Move time on to `moment`, which is aware and not in the past.

        Raises:
            InvalidArgumentError: It is naive, or in the past.
        """
        await self.advance(timedelta(microseconds=_usec_of(moment) - self._now_usec))

    # --- the three states ---

    @property
    def is_held(self) -> bool:
        return not self._auto_advance and not self._releases

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        self._releases += 1
        self._wake_due()
        try:
            yield
        finally:
            self._releases -= 1

    def activity(self) -> AbstractContextManager[None]:
        self._activities += 1
        return _Activity(self)

    def outside(self, until: float | None = None) -> AbstractAsyncContextManager[None]:
        return self._be_outside()

    @contextlib.asynccontextmanager
    async def _be_outside(self) -> AsyncIterator[None]:
        self._outside += 1
        self._note_change()
        token = _block.set(object())
        try:
            yield
        finally:
            _block.reset(token)
            self._outside -= 1
            self._note_change()

    async def wait(self, wakeup: Wakeup, until_usec: int | None = None, *, is_chore: bool = False) -> None:
        await self._sleep(_Sleeper(wakeup, until_usec, is_chore, True, None, _new_future()))

    async def sleep(self, seconds: float) -> None:
        """Sleep in virtual time; for handlers and tests."""
        until_usec = self._now_usec + round(seconds * 1_000_000)
        await self._sleep(_Sleeper(Wakeup(), until_usec, False, False, _find_handler(), _new_future()))

    async def _sleep(self, sleeper: _Sleeper) -> None:
        self._parked += sleeper.is_parked
        self._sleepers.append(sleeper)
        self._note_change()
        try:
            with sleeper.wakeup.calling(self._wake_due):
                self._wake_due()
                await sleeper.woken
        finally:
            self._rouse(sleeper)
        sleeper.wakeup.take()

    def call_at(self, when: float, callback: Callable[[], object]) -> _Timer:
        timer = _Timer(callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        if self._usec_of_timer(when) <= self._now_usec:
            asyncio.get_running_loop().call_soon(self._move, self._now_usec)
        self._note_change()
        return timer

    # --- inside ---

    def _end_activity(self) -> None:
        self._activities -= 1
        self._note_change()

    @property
    def _live(self) -> int:
        return self._activities - self._parked - self._outside

    @property
    def _away(self) -> int:
        """Work outside that is not merely waiting for a handler that is dozing."""
        dozing = {sleeper.handler for sleeper in self._sleepers if sleeper.handler is not None}
        return max(self._outside - len(dozing), 0)

    @property
    def _is_idle(self) -> bool:
        return self._live <= 0 and not self._away

    def _wake_due(self) -> None:
        if self.is_held:
            return
        for sleeper in list(self._sleepers):
            is_due = sleeper.until_usec is not None and sleeper.until_usec <= self._now_usec
            if sleeper.wakeup.is_set or is_due:
                self._rouse(sleeper)

    def _rouse(self, sleeper: _Sleeper) -> None:
        """Count the sleeper as live from now on, and let it go; twice is fine."""
        if sleeper not in self._sleepers:
            return
        self._sleepers.remove(sleeper)
        self._parked -= sleeper.is_parked
        if not sleeper.woken.done():
            sleeper.woken.set_result(None)
        self._note_change()

    def _move(self, moment_usec: int) -> None:
        """Set the time, fire what is due."""
        self._now_usec = max(self._now_usec, moment_usec)
        while self._timers and self._usec_of_timer(self._timers[0][0]) <= self._now_usec:
            _, _, timer = heapq.heappop(self._timers)
            if not timer.is_cancelled:
                timer.callback()
        self._wake_due()

    def _usec_of_timer(self, when: float) -> int:
        return self._start_usec + round(when * 1_000_000)

    def _next_moment(self, *, with_chores: bool = True) -> int | None:
        while self._timers and self._timers[0][2].is_cancelled:
            heapq.heappop(self._timers)
        moments = [self._usec_of_timer(self._timers[0][0])] if self._timers else []
        moments += [
            sleeper.until_usec for sleeper in self._sleepers if sleeper.until_usec is not None and (with_chores or not sleeper.is_chore)
        ]
        return min(moments, default=None)

    async def _settle(self) -> None:
        """Wait until nothing is live, and nothing outside either or it had its chance."""
        while True:
            for _ in range(SETTLING_TURNS):
                await asyncio.sleep(0)  # noqa: TID251 -- a turn of the loop, not time
            if self._is_idle:
                return
            if self._changed is None or self._changed.done():
                self._changed = _new_future()
            patience = OUTSIDE_PATIENCE_SECONDS if self._live <= 0 else None
            done, _ = await asyncio.wait({self._changed}, timeout=patience)
            if not done:
                return

    def _note_change(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
        if self._auto_advance and self._is_idle:
            self._jump_after(SETTLING_TURNS)

    def _jump_after(self, turns: int) -> None:
        if self._jumping is not None:
            self._jumping.cancel()
        self._jumping = asyncio.get_running_loop().call_soon(self._jump, turns)

    def _jump(self, turns_left: int) -> None:
        if not self._is_idle:
            return
        if turns_left:
            self._jump_after(turns_left - 1)
            return
        moment = self._next_moment(with_chores=False)
        if moment is not None:
            self._move(moment)
            self._note_change()


class _Activity:
    """Ends its count at the end of the block."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc_info: object) -> None:
        self._clock._end_activity()


def _find_handler() -> object:
    """Return what tells the handler in which we are from other ones, or None."""
    try:
        return current_task().uuid
    except NotInTaskError:
        return _block.get()


def _new_future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def _usec_of_step(by: float | timedelta, most_usec: int) -> int:
    if isinstance(by, bool) or not isinstance(by, int | float | timedelta):
        raise TypeError(f"The time cannot be moved by {shorten(by)}; give seconds or a timedelta.")
    seconds = by.total_seconds() if isinstance(by, timedelta) else by
    if not 0 <= seconds <= most_usec / 1_000_000:
        raise InvalidArgumentError(f"The time cannot be moved by {shorten(by)}; it goes forwards only, and ends with the year 9999.")
    return by // timedelta(microseconds=1) if isinstance(by, timedelta) else round(by * 1_000_000)


def _usec_of(moment: datetime) -> int:
    if moment.tzinfo is None:
        raise InvalidArgumentError(f"The moment {shorten(moment)} has no time zone; use datetime(..., tzinfo=UTC).")
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)
