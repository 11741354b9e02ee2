"""Keeps a loop running: one that dies is started again after a pause, and says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiotaskqueue._clock import Clock, Wakeup

logger = logging.getLogger("aiotaskqueue")

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 30.0


async def supervise(name: str, loop: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Run `loop` until it returns; when it raises, log it and run it again, the pauses doubling from 0.1 s to 30 s.

    After a run of more than 30 s the pauses begin anew.
    """
    pause = FIRST_PAUSE_SECONDS
    while True:
        started = clock.monotonic()
        try:
            await loop()
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            if clock.monotonic() - started > LONGEST_PAUSE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            logger.exception("The %s failed and is started again in %.1f s.", name, pause)
            with clock.activity():
                await clock.wait(Wakeup(), clock.time_usec() + round(pause * 1_000_000))
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        else:
            return
