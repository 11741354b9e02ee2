"""Group commit: whatever gathers while one transaction runs is the next transaction.

Theory of operation. Callers submit requests, each for a *verb*: a plain function of the database thread that takes all
requests of its kind in the transaction at once and returns a result for each. One loop owns the write connection. It
takes everything that has gathered, runs it as one transaction, resolves each caller's future after the commit and takes
what has gathered meanwhile. There is no timer: alone, a request is committed at once; in a crowd, one fsync serves all.

Callers only wait, so cancelling one leaves "did" or "did not", never a half (RELIABILITY S1, S2). A transaction that
fails is rolled back and each of its requests is tried alone, so that only the guilty caller gets the error. When somebody
else holds the lock of the file, the loop tries again with jitter until each request's own patience ends (S3, S16).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

from aiotaskqueue._clock import SystemClock, Wakeup
from aiotaskqueue.errors import ClosedError, OutcomeUnknownError, StoreBusyError

logger = logging.getLogger("aiotaskqueue")

# A verb: (connection, requests) -> results, one for each request, in order.
Verb = Callable[[Any, Sequence[Any]], Sequence[Any]]

# The rows of one transaction, so that others who want the lock get it in time (RELIABILITY S16). One request is never cut.
MAX_ROWS = 1000

# Between two tries for a lock that another process holds; SQLite itself waits a tenth of a second in each try.
BUSY_PAUSE_SECONDS = (0.005, 0.05)


@attrs.define(eq=False)
class Work:
    """One request on its way."""

    verb: Verb
    request: Any = attrs.field(repr=False)
    rows: int
    patience_until: float
    future: asyncio.Future[Any] = attrs.field(repr=False)
    on_end: Callable[[Any], None] | None = None

    def succeed(self, result: Any) -> None:
        """Say what came of it, also to a caller who no longer waits."""
        self._end(result)
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: BaseException, cause: BaseException | None = None) -> None:
        """Say why nothing came of it."""
        self._end(None)
        if not self.future.done():
            error.__cause__ = cause or error.__cause__
            self.future.set_exception(error)

    def _end(self, result: Any) -> None:
        if self.on_end is None:
            return
        try:
            self.on_end(result)
        except Exception:
            # It is one caller's, and must not end the writing of all others.
            logger.exception("What follows a write failed.")


class LockedError(Exception):
    """What `transact` raises when somebody else holds the lock: nothing happened, try again."""


class GroupCommit:
    """Owns the writing of one connection.

    Args:
        transact: Runs one transaction: takes (verb, requests) pairs, returns their results in the same shape. Raises
            LockedError if nothing happened because of a lock, else whatever went wrong after rolling back.
    """

    def __init__(self, transact: Callable[[Sequence[tuple[Verb, Sequence[Any]]]], Awaitable[Sequence[Sequence[Any]]]]) -> None:
        self._transact = transact
        # Locks are held by real processes: waiting for them takes real time, whatever clock the service has.
        self._clock = SystemClock()
        self._arrived = Wakeup()
        self._waiting: list[Work] = []
        self.is_closed = False
        self.locked_since: float | None = None
        """Monotonic time since which another process has kept us from writing."""
        self.commits = 0

    def submit(
        self,
        verb: Verb,
        request: Any,
        *,
        rows: int = 1,
        patience_seconds: float = 30.0,
        on_end: Callable[[Any], None] | None = None,
    ) -> asyncio.Future[Any]:
        """Hand over one request; the future has its result once it is committed.

        Args:
            verb: What to do with it.
            request: The verb's own type.
            rows: About how many rows it writes.
            patience_seconds: How long it may wait for a lock that another process holds.
            on_end: Called once with the result, or None if it failed, whether or not somebody still awaits the future.

        Raises:
            ClosedError: The store is closed.
        """
        if self.is_closed:
            if on_end is not None:
                on_end(None)
            raise ClosedError("The store is closed; start a new service.")
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(Work(verb, request, rows, self._clock.monotonic() + patience_seconds, future, on_end))
        self._arrived.set()
        return future

    async def run(self) -> None:
        """Commit what is submitted until `close`, then what is left, and return.

        Cancelled, it leaves nobody waiting: a request in the database thread's hands may still be carried out.
        """
        try:
            while self._waiting or not self.is_closed:
                if self._waiting:
                    await self._commit(self._take())
                else:
                    await self._clock.wait(self._arrived)
        finally:
            self.is_closed = True
            for work in self._waiting:
                work.fail(ClosedError("The store was closed before the request was written."))
            self._waiting.clear()

    def close(self) -> None:
        """Refuse new requests; `run` ends when those submitted have ended."""
        self.is_closed = True
        self._arrived.set()

    def _take(self) -> list[Work]:
        rows = 0
        for taken, work in enumerate(self._waiting):
            rows += work.rows
            if rows > MAX_ROWS and taken:
                batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
                return batch
        batch, self._waiting = self._waiting, []
        return batch

    async def _commit(self, batch: list[Work]) -> None:
        try:
            groups = _grouped(batch)
            results = await self._transact([(verb, [work.request for work in works]) for verb, works in groups])
        except LockedError as exc:
            await self._try_later(batch, exc)
        except Exception as exc:
            await self._try_alone(batch, exc)
        except BaseException:
            for work in batch:
                work.fail(OutcomeUnknownError("The service ended while the request was being written; it may have been."))
            raise
        else:
            self.commits += 1
            self.locked_since = None
            for (_, works), outcomes in zip(groups, results, strict=True):
                for work, outcome in zip(works, outcomes, strict=True):
                    work.succeed(outcome)

    async def _try_alone(self, batch: list[Work], exc: Exception) -> None:
        if len(batch) == 1:
            batch[0].fail(exc)
            return
        rest = deque(batch)
        try:
            while rest:
                await self._commit([rest.popleft()])
        finally:
            # Some are left only when this loop is cancelled: `run` tells them.
            self._waiting[:0] = rest

    async def _try_later(self, batch: list[Work], exc: LockedError) -> None:
        now = self._clock.monotonic()
        if self.locked_since is None:
            self.locked_since = now
        waiting = batch + self._waiting
        self._waiting = [work for work in waiting if work.patience_until > now]
        for work in waiting:
            if work.patience_until <= now:
                held = now - self.locked_since
                work.fail(StoreBusyError(f"Another process has held the lock of the database for {held:.1f} s; end it, or try again."), exc)
        pause = random.uniform(*BUSY_PAUSE_SECONDS)
        await self._clock.wait(Wakeup(), self._clock.time_usec() + round(pause * 1_000_000))


def _grouped(batch: list[Work]) -> list[tuple[Verb, list[Work]]]:
    groups: dict[Verb, list[Work]] = {}
    for work in batch:
        groups.setdefault(work.verb, []).append(work)
    return list(groups.items())
