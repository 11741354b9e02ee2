"""The watcher: notices what other processes write, and processes that die.

It keeps real time whatever clock the service has, for so do the others.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable

from aiotaskqueue._clock import SystemClock, Wakeup
from aiotaskqueue.errors import ClosedError, StoreError
from aiotaskqueue.stores._sqlite_setup import Neighbours

logger = logging.getLogger("aiotaskqueue")

WATCH_SECONDS = 0.05
WATCH_ALONE_SECONDS = 1.0


class Watcher:
    """Looks around while the store runs.

    Args:
        glance: Called each time; returns a number that is another one when another connection has written.
        look_around: Called once a second; returns how the other processes are.
        on_change: Called when another process has written.
        on_orphans: Called when a process has died, and as long as others have leases, which may expire.
    """

    def __init__(
        self,
        *,
        glance: Callable[[], Awaitable[int]],
        look_around: Callable[[], Awaitable[Neighbours]],
        on_change: Callable[[], None],
        on_orphans: Callable[[], None],
    ) -> None:
        self._glance = glance
        self._look_around = look_around
        self._on_change = on_change
        self._on_orphans = on_orphans
        self._clock = SystemClock()
        self._stopping = Wakeup()
        self._is_stopped = False
        self._version = -1
        self._neighbours = Neighbours()
        self._looked_at = 0.0

    def stop(self) -> None:
        """Let `run` end."""
        self._is_stopped = True
        self._stopping.set()

    async def run(self) -> None:
        """Look 20 times a second while others have the file open, once a second otherwise."""
        while not self._is_stopped:
            try:
                await self._look()
            except (sqlite3.Error, StoreError, ClosedError) as exc:
                # Whoever writes meets the same trouble; here it only means that there is no news.
                logger.debug("The database could not be watched: %s", exc)
            pause = WATCH_SECONDS if self._neighbours.is_any else WATCH_ALONE_SECONDS
            await self._clock.wait(self._stopping, self._clock.time_usec() + round(pause * 1_000_000))

    async def _look(self) -> None:
        version = await self._glance()
        if version != self._version:
            self._version = version
            self._on_change()
        now = self._clock.monotonic()
        if self._neighbours.is_any and now - self._looked_at < WATCH_ALONE_SECONDS:
            return
        # What we rescued ourselves changes no version, so look again and again.
        self._looked_at = now
        self._neighbours = await self._look_around()
        # Whether a lease has expired only the service's clock can tell.
        if self._neighbours.is_any_dead or self._neighbours.has_leases:
            self._on_orphans()
