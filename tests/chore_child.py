"""A process that does one chore of a store and is killed in the middle: `chore_child.py CHORE DATABASE JOURNAL MOMENT NTH`.

`open`: open the database, and migrate it. `purge`: purge the queue. `sweep`: sweep an hour later. See crash_traps.py for
the moments; in the journal is how often the moment was reached, if the process got to its end.
"""

from __future__ import annotations

import asyncio
import sys

from crash_child import note, wait_for_the_word
from crash_traps import Trap, watch_connections
from open_stores import NOW, QUEUE, SECOND, running

from aiotaskqueue._maintenance import SWEEP_SLICE

HOUR = 3600 * SECOND


async def do(chore: str, database: str, moment: str, nth: str) -> None:
    """Do the chore; the trap is set for what is named, not for what goes before it."""
    trap = Trap("never" if chore != "open" else moment, nth)
    watch_connections(trap)
    async with running(database, durability="full") as store:
        trap.moment = moment
        if chore == "purge":
            await store.purge(QUEUE, now_usec=NOW)
        while chore == "sweep" and await store.sweep(now_usec=NOW + HOUR, limit=SWEEP_SLICE) >= SWEEP_SLICE:
            pass
        trap.moment = "never"
    note("seen", trap.reached)


if __name__ == "__main__":
    what, path, journal, *arguments = sys.argv[1:]
    if wait_for_the_word(journal):
        asyncio.run(do(what, path, *arguments))
