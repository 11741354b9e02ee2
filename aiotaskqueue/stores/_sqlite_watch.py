"""The watcher: notices what other processes write, and processes that die.

It keeps real time whatever clock the service has, for so do the others.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence

from aiotaskqueue._clock import SystemClock, Wakeup
from aiotaskqueue.errors import ClosedError, StoreError

logger = logging.getLogger("aiotaskqueue")

WATCH_SECONDS = 0.05
WATCH_ALONE_SECONDS = 1.0

# A process that hangs, or runs on another machine, is only known by its leases' expiry.
WATCH_EXPIRY_SECONDS = 60.0


class Watcher:
    """Looks around while the store runs.

    Args:
        fetch_version: Returns ``PRAGMA data_version`` of the writing connection, where our own commits do not change it.
        look_around: Called once a second; returns the other processes, id and host.
        has_died: Whether one of them has certainly ended.
        on_change: Called when another process has written.
        on_orphans: Called when a process has died, or may hang.
    """

    def __init__(
        self,
        *,
        fetch_version: Callable[[], Awaitable[int]],
        look_around: Callable[[], Awaitable[Sequence[tuple[int, str]]]],
        has_died: Callable[[int, str], bool],
        on_change: Callable[[], None],
        on_orphans: Callable[[], None],
    ) -> None:
        self._fetch_version = fetch_version
        self._look_around = look_around
        self._has_died = has_died
        self._on_change = on_change
        self._on_orphans = on_orphans
        self._clock = SystemClock()
        self._stopping = Wakeup()
        self._is_stopped = False
        self._version = -1
        self._others: Sequence[tuple[int, str]] = ()
        self._looked_at = 0.0
        self._rescued_at = self._clock.monotonic()

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
            pause = WATCH_SECONDS if self._others else WATCH_ALONE_SECONDS
            await self._clock.wait(self._stopping, self._clock.time_usec() + round(pause * 1_000_000))

    async def _look(self) -> None:
        version = await self._fetch_version()
        if version != self._version:
            self._version = version
            self._on_change()
        now = self._clock.monotonic()
        if self._others and now - self._looked_at < WATCH_ALONE_SECONDS:
            return
        # What we rescued ourselves changes no version, so look again and again.
        self._looked_at = now
        self._others = await self._look_around()
        has_waited = now - self._rescued_at >= WATCH_EXPIRY_SECONDS
        if any(has_waited or self._has_died(process_id, host) for process_id, host in self._others):
            self._rescued_at = now
            self._on_orphans()
