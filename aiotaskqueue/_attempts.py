"""Attempts: from a leased task to what becomes of it. Delivers, and asks `_outcome`; whatever happens, there is an outcome."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Mapping

import anyio

from aiotaskqueue._clock import Clock
from aiotaskqueue._config import QueueConfig
from aiotaskqueue._masking import show_frames, show_place
from aiotaskqueue._outcome import Attempt, decide, succeed
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.delivery._base import Answer, Delivery, FailureReason, NoAnswer
from aiotaskqueue.stores._base import Outcome

logger = logging.getLogger("aiotaskqueue")

# How long a target that is not up yet is left alone: from the first to the longest pause.
FIRST_TARGET_PAUSE_USEC = 50_000
LONGEST_TARGET_PAUSE_USEC = 1_000_000

Result = Answer | NoAnswer


class Attempts:
    """Makes the attempts of one dispatcher.

    Args:
        clock: Tells the time.
        queues: Push queues by name.
        route: Returns the delivery for a task.
        rng: For the jitter of retries.
    """

    def __init__(
        self, *, clock: Clock, queues: Mapping[str, QueueConfig], route: Callable[[TaskRecord], Delivery], rng: random.Random
    ) -> None:
        self._clock = clock
        self._queues = queues
        self._route = route
        self._rng = rng
        self._target_pauses: dict[Delivery, tuple[int, int]] = {}
        self.is_draining = False
        """Not to reach a target is no attempt any more: it may be ourselves, who no longer listen."""
        self.is_cut = False
        """Attempts are given up, and none is begun."""

    async def make(self, record: TaskRecord) -> tuple[Outcome, Result]:
        """Make one attempt; return what becomes of the task, and how the attempt ended.

        Raises nothing but a cancellation of the task group that it runs in, KeyboardInterrupt and SystemExit.
        """
        config = self._queues[record.queue_name]
        started_usec = self._clock.time_usec()
        delivery = self._route(record)
        result = await self._deliver(delivery, record, config)
        pause_usec = self._target_pause_usec(delivery, result)
        # What nearly all attempts end with takes the short way.
        success = succeed(record, config, result, self._clock.time_usec())
        if success is not None:
            return success, result
        outcome = decide(
            Attempt(
                record=record,
                config=config,
                result=result,
                started_usec=started_usec,
                ended_usec=self._clock.time_usec(),
                random_value=self._rng.random(),
                is_target_up=delivery.has_answered and not self.is_draining,
                wait_usec=pause_usec,
            )
        )
        return outcome, result

    async def _deliver(self, delivery: Delivery, record: TaskRecord, config: QueueConfig) -> Result:
        deadline_seconds = record.dispatch_deadline_seconds or config.dispatch_deadline_seconds
        try:
            if self.is_cut:
                return NoAnswer(FailureReason.CANCELLED)
            result = await delivery.deliver(record, deadline_seconds=deadline_seconds)
            if not isinstance(result, Answer | NoAnswer):
                raise TypeError(f"A delivery returns an Answer or a NoAnswer, not {type(result).__name__}.")
            return result
        except asyncio.CancelledError:
            if anyio.current_effective_deadline() == -math.inf:
                # The lanes are ended.
                raise
            _forget_cancellation()
            if self.is_cut:
                return NoAnswer(FailureReason.CANCELLED, "The service was closed before the attempt ended.")
            # Not logged as an error: so ends an event loop that is shut down with the service open.
            return NoAnswer(FailureReason.ERROR, "The delivery was cancelled by somebody else.")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:
            # Not what it says, which may quote the task (RELIABILITY P24).
            logger.error("The delivery of task %r of queue %r failed with %s", record.name, record.queue_name, show_frames(exc))
            return NoAnswer(FailureReason.ERROR, show_place(exc))

    def _target_pause_usec(self, delivery: Delivery, result: Result) -> int:
        """Return how long to leave a target alone; the pause doubles once it has passed, not with each task that waits."""
        if not isinstance(result, NoAnswer) or result.reason is not FailureReason.UNREACHABLE:
            self._target_pauses.pop(delivery, None)
            return 0
        now_usec = self._clock.time_usec()
        since_usec, pause_usec = self._target_pauses.get(delivery, (now_usec, FIRST_TARGET_PAUSE_USEC))
        if now_usec - since_usec >= pause_usec:
            since_usec, pause_usec = now_usec, min(pause_usec * 2, LONGEST_TARGET_PAUSE_USEC)
        self._target_pauses[delivery] = since_usec, pause_usec
        return pause_usec


def _forget_cancellation() -> None:
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
