"""RecordingDelivery: a delivery without sockets, that remembers what it was given and answers what it is told."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import attrs

from aiotaskqueue._clock import Clock, SystemClock
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.delivery._base import GRACE_SECONDS, Answer, Delivery, FailureReason, NoAnswer

Response = int | Answer | NoAnswer | Exception | None


@attrs.frozen
class Delivered:
    """One attempt that was delivered."""

    record: TaskRecord
    """The task as it was leased."""
    at: datetime
    """When the attempt began, aware, in UTC."""


class RecordingDelivery(Delivery):
    """Remembers every attempt, in order, in `deliveries`; answers 200 unless told otherwise.

    Args:
        respond: Called with each record; returns a status, an Answer, a NoAnswer, an exception to raise, or None for
            200, as a handler does; may be a coroutine function, and then may sleep on the service's clock:
            ``await delivery.clock.sleep(40)`` runs into the deadline as a slow handler does.

    Example:
        >>> delivery = RecordingDelivery()
        >>> delivery.answer_next(500, 503)
        >>> delivery.deliveries
        []
    """

    has_answered = True

    def __init__(self, respond: Callable[[TaskRecord], Response | Awaitable[Response]] | None = None) -> None:
        self._respond = respond
        self._scripted: deque[Response] = deque()
        self.clock: Clock = SystemClock()
        self.deliveries: list[Delivered] = []

    def answer_next(self, *responses: Response) -> None:
        """Give these answers to the next attempts, one each, before anything else is asked."""
        self._scripted.extend(responses)

    async def open(self, clock: Clock) -> None:
        self.clock = clock

    async def deliver(self, record: TaskRecord, *, deadline_seconds: float) -> Answer | NoAnswer:
        at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self.clock.time_usec())
        self.deliveries.append(Delivered(record, at))
        ends = self.clock.monotonic() + deadline_seconds + GRACE_SECONDS
        async with self.clock.outside(ends):
            with self.clock.cutoff(ends) as cutoff:
                response = await self._next_response(record)
        if cutoff.was_cut:
            return NoAnswer(FailureReason.DEADLINE)
        if isinstance(response, Exception):
            raise response
        if response is None:
            return Answer(200)
        return Answer(response) if isinstance(response, int) else response

    async def _next_response(self, record: TaskRecord) -> Response:
        if self._scripted:
            return self._scripted.popleft()
        if self._respond is None:
            return None
        try:
            response = self._respond(record)
            return await response if isinstance(response, Awaitable) else response
        except Exception as exc:
            # Raised later, unless it comes of being cut at the deadline.
            return exc
