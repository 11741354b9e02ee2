"""Chores: tasks of dead processes, expired tombstones, dead tasks past their retention."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from aiotaskqueue._clock import Clock, Wakeup
from aiotaskqueue._config import QueueConfig
from aiotaskqueue.stores._base import Store

logger = logging.getLogger("aiotaskqueue")

# Expired names are free at once whether or not they have been swept; so sweeping can take its time.
SWEEP_SECONDS = 3600
SWEEP_SLICE = 1000


class Maintenance:
    """The chores of one service.

    Args:
        store: Where to do them.
        clock: Tells when.
        queues: All configured queues.
        on_rescue: Called when tasks have become ready again.
    """

    def __init__(self, *, store: Store, clock: Clock, queues: Sequence[QueueConfig], on_rescue: Callable[[], None]) -> None:
        self._store = store
        self._clock = clock
        self._queues = queues
        self._on_rescue = on_rescue
        self._orphans = Wakeup()

    def notice_orphans(self) -> None:
        """Rescue soon: a process has died."""
        self._orphans.set()

    async def run_rescues(self) -> None:
        """Take the tasks of dead processes back whenever there are some."""
        with self._clock.activity():
            while True:
                await self._clock.wait(self._orphans, is_chore=True)
                await self.rescue()

    async def run_sweeps(self) -> None:
        """Sweep at the start and every hour."""
        with self._clock.activity():
            while True:
                while await self._store.sweep(now_usec=self._clock.time_usec(), limit=SWEEP_SLICE) >= SWEEP_SLICE:
                    pass
                next_usec = self._clock.time_usec() + SWEEP_SECONDS * 1_000_000
                while self._clock.time_usec() < next_usec:
                    await self._clock.wait(Wakeup(), next_usec, is_chore=True)

    async def rescue(self) -> None:
        """Take the tasks of dead processes back now."""
        rescued = await self._store.rescue(self._queues, now_usec=self._clock.time_usec())
        if rescued:
            logger.warning("%d tasks were in flight in a process that ended; they are tried again.", len(rescued))
            self._on_rescue()
