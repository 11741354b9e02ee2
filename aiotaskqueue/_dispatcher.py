"""The dispatcher: one loop for all push queues of a process.

Theory of operation. A *turn* is one transaction: it settles the attempts that have ended since the last one and leases
what may start now. Between turns the loop sleeps in the clock until somebody wakes it: an add, an attempt that ended, the
next ETA or token, another process. Each leased task goes to a *lane*, a task that makes one attempt after the other and
sleeps when there is none, so that an attempt does not cost the making of a task.

A place (of `max_concurrent_deliveries`) is taken when a task is leased, or reserved by an add whose tasks may be born
leased, and is free again when the attempt has ended. While there is a backlog no place is reserved: the backlog is older.
The dispatcher is idle when every place is free, every outcome is written and nothing is due.

A task that this process has leased must not be forgotten, for nobody else delivers it while we live. So whatever happens
in an attempt, its lane makes an outcome of it, and an outcome is kept until the store has taken it. To offer it twice does
no harm: the lease's token tells.

Nothing here decides what an outcome is (`_outcome`), what may start (the store, in its transaction) or tells the time.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence

import attrs

from aiotaskqueue._attempts import Attempts
from aiotaskqueue._clock import Clock, SystemClock, Wakeup
from aiotaskqueue._config import QueueConfig
from aiotaskqueue._hint import Hints
from aiotaskqueue._lanes import Lanes
from aiotaskqueue._record import TaskRecord
from aiotaskqueue._supervisor import supervise
from aiotaskqueue.delivery._base import Answer, Delivery, NoAnswer
from aiotaskqueue.errors import ClosedError, OutcomeUnknownError, StoreError
from aiotaskqueue.stores._base import Dead, Delete, Exchange, LeaseRequest, Outcome, Retry, Settlement, Store

logger = logging.getLogger("aiotaskqueue")

# After the store has failed, before the next turn.
STORE_PAUSE_USEC = 200_000

# After the attempts in flight have been given up, for writing that down.
RECORDING_SECONDS = 0.5


@attrs.define
class DispatcherStatistics:
    """What a dispatcher has done since its start.

    Whenever nothing is in flight and everything is written, `attempts` is the sum of the other four (RELIABILITY P25).
    """

    attempts: int = 0
    completed: int = 0
    retried: int = 0
    dead: int = 0
    stale_results: int = 0
    """Outcomes refused, since the task was not ours any more; they are none of the others."""


class Dispatcher:
    """Delivers the due tasks of all push queues.

    Args:
        store: Where the tasks are.
        clock: Tells the time.
        queues: Push queues by name.
        route: Returns the delivery for a task.
        places: How many attempts may be in flight at once.
        rng: For the jitter of retries.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        queues: Mapping[str, QueueConfig],
        route: Callable[[TaskRecord], Delivery],
        places: int,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._clock = clock
        self._queues = queues
        self._attempts = Attempts(clock=clock, queues=queues, route=route, rng=rng)
        self._lanes = Lanes(self._attempt, clock)
        self._places = self._free_places = places
        self._wakeup = Wakeup()
        self._settlements: list[Settlement] = []
        self._in_flight: set[bytes] = set()
        self._suspect: TaskRecord | None = None
        self._may_have_due = True
        self._has_more = False
        self._next_eta_usec: int | None = None
        self._has_unknown_leases = False
        self._has_forced = False
        self._is_paused = False
        self._is_draining = False
        self._is_over = False
        self._waiting_for_idle: list[asyncio.Future[None]] = []
        self._waiting_for_drain: list[asyncio.Future[None]] = []
        self._waiting_for_attempt: dict[bytes, list[asyncio.Future[None]]] = {}
        self._hints = Hints()
        self.trouble: StoreError | ClosedError | None = None
        """Why nothing is leased at the moment."""
        self.paused_queues: Sequence[str] = ()
        """Queues that were paused when we last looked."""
        self.statistics = DispatcherStatistics()

    # --- what others call ---

    def pause(self, is_paused: bool) -> None:
        """Start nothing more, or go on."""
        self._is_paused = is_paused
        self.notify()

    def notify(self) -> None:
        """Look again: there may be due tasks."""
        self._may_have_due = True
        self._wakeup.set()

    def notify_forced(self) -> None:
        """Look again, also without a place or paused: somebody wants a task to run now."""
        self._has_forced = True
        self.notify()

    def notify_eta(self, eta_usec: int) -> None:
        """Look again at `eta_usec`: a task may be due then."""
        if eta_usec <= self._clock.time_usec():
            self.notify()
        elif self._next_eta_usec is None or eta_usec < self._next_eta_usec:
            self._next_eta_usec = eta_usec
            self._wakeup.set()

    def doubt_leases(self) -> None:
        """Look for tasks that are leased by us without our knowing: an add's outcome is unknown."""
        self._has_unknown_leases = True
        self._wakeup.set()

    def reserve(self, wanted: int) -> int:
        """Reserve places for tasks that are about to be added; `hand_over` gives them back.

        Returns:
            How many, 0 to `wanted`; 0 while there is a backlog.
        """
        if not self._lanes.is_open or self._is_draining or self._has_more or self._may_have_due or self._clock.is_held:
            return 0
        if self._suspect_queue() is not None or self._is_paused:
            return 0
        reserved = min(wanted, max(self._free_places, 0))
        self._free_places -= reserved
        return reserved

    def hand_over(self, reserved: int, leased: Sequence[TaskRecord]) -> None:
        """Deliver tasks that were born leased on `reserved` places; after the end, leave them to the next start's rescue."""
        self._free(reserved)
        if self._is_over:
            return
        for record in leased:
            self._start(record)

    async def wait_until_idle(self) -> None:
        """Return when no task is due, none is in flight and no outcome is unwritten, or when the service is closed.

        Raises:
            StoreError, ClosedError: The store fails, so that none of this will be for now.
        """
        if self._is_over:
            return
        idle = _new_future()
        self._waiting_for_idle.append(idle)
        self.notify()
        await idle

    async def wait_for_attempt(self, record: TaskRecord) -> None:
        """Return when the attempt in flight of the task has ended and is written, or when there is none to wait for."""
        if self._is_over:
            return
        ended = _new_future()
        self._waiting_for_attempt.setdefault(record.uuid, []).append(ended)
        self.notify()
        await ended

    # --- the loop ---

    async def run(self) -> None:
        """Dispatch until drained."""
        async with self._lanes.open():
            try:
                await supervise("dispatcher", self._run_turns, self._clock)
            finally:
                self._is_over, self.trouble = True, None
                self._let_everybody_go()

    def _let_everybody_go(self, exc: BaseException | None = None) -> None:
        """Nothing more will be settled here, or not soon: nobody is to wait for it."""
        for idle in self._waiting_for_idle:
            _resolve(idle, exc)
        for ended in [ended for waiting in self._waiting_for_attempt.values() for ended in waiting]:
            _resolve(ended)
        self._waiting_for_idle.clear()
        self._waiting_for_attempt.clear()

    async def drain(self, timeout_seconds: float) -> None:
        """Start nothing more, wait up to `timeout_seconds` for what is in flight, give up the rest; twice is fine.

        The time is real whatever clock the service has: whoever closes it wants it closed.
        """
        self._is_draining = self._attempts.is_draining = True
        if self._is_over:
            return
        drained = _new_future()
        self._waiting_for_drain.append(drained)
        self.notify()
        clock = SystemClock()
        give_up = clock.monotonic() + timeout_seconds
        timers = [clock.call_at(give_up, self._cut), clock.call_at(give_up + RECORDING_SECONDS, lambda: _resolve(drained))]
        try:
            with self._clock.released():
                await drained
        finally:
            for timer in timers:
                timer.cancel()

    async def _run_turns(self) -> None:
        try:
            with self._clock.activity():
                while True:
                    await self._step()
        except Exception as exc:
            self._let_everybody_go(exc)
            raise

    async def _step(self) -> None:
        """Take a turn if there is something to do, else sleep until there may be."""
        self._look_at_time()
        if self._has_unknown_leases and not self._is_draining:
            await self._take_up_leases()
            return
        if self._settlements or self._wants_lease():
            await self._turn()
            return
        self._say_idle()
        # With all places taken, what is due waits for an attempt to end.
        is_waiting_for_time = not self._may_have_due and not self._is_draining
        await self._clock.wait(self._wakeup, self._next_eta_usec if is_waiting_for_time else None)

    def _look_at_time(self) -> None:
        if self._next_eta_usec is not None and self._clock.time_usec() >= self._next_eta_usec:
            self._may_have_due = True

    def _wants_lease(self) -> bool:
        has_place = self._free_places > 0 and not self._is_paused
        return (self._has_forced or (self._may_have_due and has_place)) and not self._is_draining

    async def _turn(self) -> None:
        settlements, self._settlements = self._settlements, []
        request = self._take_places() if self._wants_lease() else None
        places = 0 if request is None else request.places
        try:
            exchange = await self._store.exchange(settlements, request, now_usec=self._clock.time_usec())
        except BaseException as exc:
            # Whatever it was: what is not known to be written is offered again.
            self._settlements[:0] = settlements
            self._may_have_due = self._has_forced = True
            self._has_unknown_leases |= isinstance(exc, OutcomeUnknownError)
            if not isinstance(exc, StoreError | ClosedError):
                raise
            await self._survive(exc)
            return
        finally:
            self._free_places += places
        self.trouble = None
        self._note_settled(settlements, exchange)
        if request is not None:
            self._note_ahead(exchange, places)
        for record in sorted(exchange.leased, key=_eta_of):
            self._start(record)

    async def _take_up_leases(self) -> None:
        """Start what was leased in a commit that we were not told of."""
        try:
            leases = await self._store.list_own_leases()
        except (StoreError, ClosedError) as exc:
            await self._survive(exc)
            return
        self._has_unknown_leases = False
        for record in leases:
            if record.uuid not in self._in_flight:
                self._start(record)

    def _take_places(self) -> LeaseRequest:
        """Return a request for all free places, which are taken until it is answered."""
        # The answer covers all three; what is noted while it is on its way comes on top of it.
        self._may_have_due, self._next_eta_usec = False, None
        self._has_forced = False
        # What was forced takes places that there are not: then the others wait until these are made up for.
        places = 0 if self._is_paused else max(self._free_places, 0)
        self._free_places -= places
        return LeaseRequest(places, tuple(self._queues.values()), self._suspect_queue())

    async def _survive(self, exc: StoreError | ClosedError) -> None:
        """Start nothing, try again soon."""
        if self.trouble is None:
            logger.error("The store failed, nothing is delivered until it works again: %s", exc)
        self.trouble = exc
        self._let_everybody_go(exc)
        # Whoever waits for the drain waits by the real time.
        clock = SystemClock() if self._is_draining else self._clock
        await clock.wait(self._wakeup, clock.time_usec() + STORE_PAUSE_USEC)

    def _note_ahead(self, exchange: Exchange, places: int) -> None:
        """Note what is left to lease, and when."""
        if exchange.next_eta_usec is not None:
            self._note_eta(exchange.next_eta_usec)
        self._has_more = exchange.has_more
        self.paused_queues = exchange.paused
        # An attempt that ended while the store looked still was in the way there.
        was_freed = bool(self._settlements) or self._free_places > places
        if self._has_more and was_freed:
            self._may_have_due = True

    def _note_settled(self, settlements: Sequence[Settlement], exchange: Exchange) -> None:
        self.statistics.stale_results += len(exchange.stale)
        for settlement in settlements:
            record, outcome = settlement.record, settlement.outcome
            self._in_flight.discard(record.uuid)
            if isinstance(outcome, Retry):
                self._note_eta(outcome.eta_usec)
            if record not in exchange.stale:
                self._note_recorded(record, outcome)
            for ended in self._waiting_for_attempt.pop(record.uuid, ()):
                _resolve(ended)
        for record in exchange.stale:
            self._note_stale(record)

    def _note_recorded(self, record: TaskRecord, outcome: Outcome) -> None:
        if isinstance(outcome, Delete):
            self.statistics.completed += 1
        elif isinstance(outcome, Retry):
            self.statistics.retried += 1
        else:
            self._note_dead(record, outcome)

    def _note_dead(self, record: TaskRecord, outcome: Dead) -> None:
        self.statistics.dead += 1
        logger.warning(
            "Task %r of queue %r was given up after %d attempts (%s); it is kept as a dead task.",
            record.name,
            record.queue_name,
            record.attempts,
            outcome.reason,
        )

    def _note_stale(self, record: TaskRecord) -> None:
        # While a lease lasts nobody else takes its task, so it was deleted on purpose.
        if self._clock.time_usec() < (record.lease_expires_usec or 0):
            logger.info("Task %r of queue %r was deleted while it ran; its result was dropped.", record.name, record.queue_name)
        else:
            logger.warning("The result of task %r of queue %r came too late and was dropped.", record.name, record.queue_name)

    def _note_eta(self, eta_usec: int) -> None:
        if self._next_eta_usec is None or eta_usec < self._next_eta_usec:
            self._next_eta_usec = eta_usec

    def _say_idle(self) -> None:
        for uuid in [uuid for uuid in self._waiting_for_attempt if uuid not in self._in_flight]:
            for ended in self._waiting_for_attempt.pop(uuid):
                _resolve(ended)
        if self._free_places < self._places:
            return
        for idle in (*self._waiting_for_idle, *self._waiting_for_drain):
            _resolve(idle)
        self._waiting_for_idle.clear()
        self._waiting_for_drain.clear()

    def _suspect_queue(self) -> str | None:
        """Return the queue of the task that is being retried alone; one whose attempt has ended is settled before the lease."""
        return None if self._suspect is None else self._suspect.queue_name

    # --- attempts ---

    def _start(self, record: TaskRecord) -> None:
        """Give a leased task to a lane, a sleeping one if there is any."""
        self._free_places -= 1
        self._in_flight.add(record.uuid)
        if record.is_suspect:
            self._suspect = record
        self._lanes.start(record)

    async def _attempt(self, record: TaskRecord) -> None:
        outcome, result = await self._attempts.make(record)
        self._end(Settlement(record, outcome), result)

    def _end(self, settlement: Settlement, result: Answer | NoAnswer) -> None:
        if self._suspect is settlement.record:
            self._suspect = None
        self._settlements.append(settlement)
        self._free(1)
        self._count(settlement, result)

    def _free(self, places: int) -> None:
        """Give places back; what was left for want of one may start."""
        self._free_places += places
        if self._has_more:
            self._may_have_due = True
        self._wakeup.set()

    def _count(self, settlement: Settlement, result: Answer | NoAnswer) -> None:
        record, outcome = settlement.record, settlement.outcome
        self.statistics.attempts += 1
        if isinstance(outcome, Retry):
            logger.debug("Attempt %d of task %r of queue %r failed: %s.", record.attempts, record.name, record.queue_name, result)
        if not isinstance(outcome, Delete):
            self._hints.give(record, result)

    def _cut(self) -> None:
        """Give up what is in flight."""
        self._attempts.is_cut = True
        self._lanes.cut()


def _new_future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def _resolve(future: asyncio.Future[None], exc: BaseException | None = None) -> None:
    if future.done():
        return
    if exc is None:
        future.set_result(None)
    else:
        future.set_exception(exc)


def _eta_of(record: TaskRecord) -> int:
    return record.eta_usec
