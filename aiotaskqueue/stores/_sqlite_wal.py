"""The write-ahead log: which process empties it, and what is done when it grows.

Theory of operation. SQLite copies the WAL into the database (a checkpoint) at the end of a commit that has made it long
enough, and begins it anew with the next commit that finds it copied. Before 3.51.3 that has a flaw: a checkpoint that
begins when another one has just copied everything may not see that a writer begins the WAL anew meanwhile, and then
skips pages for good (sqlite.org/wal.html#walresetbug). It takes two that checkpoint. So with such a SQLite one process
alone does, whoever holds the lock on a side file; the others commit without. And it never checkpoints where nothing is
left to copy, but at the end of a commit of its own: until that is copied nobody can begin the WAL anew. What the last
connection does when it is closed is safe, since it is the last. Connections of the application are its own affair.

A reader in a long transaction keeps the WAL from being begun anew, so that it grows. When the reader has gone, the WAL
is copied and cut off, also if nobody writes any more (RELIABILITY S9, S15).
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Awaitable, Callable, Mapping

from aiotaskqueue._clock import SystemClock
from aiotaskqueue.stores._sqlite_connection import BUSY_TIMEOUT_SECONDS, POLL_SECONDS
from aiotaskqueue.stores._sqlite_file import DatabaseFile
from aiotaskqueue.stores._sqlite_locks import SideLock
from aiotaskqueue.stores._sqlite_setup import ALLOCATE_ID
from aiotaskqueue.stores._sqlite_trouble import Trouble

FIXED_VERSION = (3, 51, 3)
# Older series that have the repair: the second number, and from which third number on.
REPAIRED_SERIES = {50: 7, 44: 6}

# 100 pages instead of SQLite's 1000: p99 of adds 3.4 times lower at the same rate (measured).
AUTOCHECKPOINT_PAGES = 100

# A WAL that grows beyond what SQLite itself would let it grow to (1000 pages) is begun anew while the writers wait: where
# another process writes without a pause, a checkpoint beside it never copies everything.
RESTART_BYTES = 4 * 1024 * 1024

# SQLite cuts the WAL to this size when it begins it anew; we do where nobody writes.
SIZE_LIMIT_BYTES = 64 * 1024 * 1024
WARNING_BYTES = 256 * 1024 * 1024

# After a try that a reader was in the way of: each keeps writers waiting, for a tenth of a second at most.
PAUSE_SECONDS = 10.0


def has_reset_bug(version: tuple[int, ...]) -> bool:
    """Whether that version of SQLite can damage a file that several connections write and checkpoint."""
    return version < FIXED_VERSION and version[2] < REPAIRED_SERIES.get(version[1], version[2] + 1)


class WalKeeper:
    """Keeps the WAL of one store short.

    Args:
        file: The database.
        trouble: Where to warn.
        call: Calls a function in the thread of the writing connection, between transactions.
    """

    def __init__(
        self, file: DatabaseFile, trouble: Trouble, *, call: Callable[[Callable[[sqlite3.Connection], bool]], Awaitable[bool]]
    ) -> None:
        self.file = file
        self._trouble = trouble
        self._call = call
        self._clock = SystemClock()
        self._lock: SideLock | None = None
        self._has_bug = has_reset_bug(sqlite3.sqlite_version_info)
        self._size_bytes = 0
        self._had_others = False
        self._was_large = False
        self._try_again_at = 0.0

    @property
    def pragmas(self) -> Mapping[str, int]:
        """Pragmas for the writing connection: after how many pages its commits checkpoint (0: never), and how large the WAL may stay."""
        return {"wal_autocheckpoint": AUTOCHECKPOINT_PAGES if self._is_ours else 0, "journal_size_limit": SIZE_LIMIT_BYTES}

    @property
    def _is_ours(self) -> bool:
        return not self._has_bug or (self._lock is not None and self._lock.is_held)

    def claim(self) -> bool:
        """Try to become the one who checkpoints; return whether we became it just now."""
        if self._is_ours:
            return False
        self._lock = SideLock(f"{self.file.real_path}-checkpoint")
        try:
            self._lock.acquire()
        except OSError:
            # Somebody else is; or the folder cannot be written, and then nothing can be.
            return False
        return True

    def release(self) -> None:
        """Leave it to others, after the connections were closed."""
        if self._lock is not None:
            self._lock.release()

    async def bound(self) -> None:
        """Begin the WAL anew, or cut it off, if it has become long; called many times a second."""
        former_bytes, self._size_bytes = self._size_bytes, self.file.wal_bytes()
        now = self._clock.monotonic()
        if now < self._try_again_at or not self._is_ours:
            return
        if self._size_bytes > SIZE_LIMIT_BYTES:
            mode = "TRUNCATE"
        elif self._has_bug and self._size_bytes > max(RESTART_BYTES, former_bytes):
            mode = "RESTART"
        else:
            return
        self._try_again_at = now + PAUSE_SECONDS
        if await self._call(functools.partial(_checkpoint, mode=mode)):
            self._try_again_at = 0.0

    async def look(self, *, has_others: bool) -> None:
        """See once a second whether it is for us to empty the WAL, and whether there is something to warn of."""
        had_others, self._had_others = self._had_others, has_others
        if self._has_bug and had_others and has_others:
            self._warn_of_bug()
        if self.claim():
            await self._call(_resume_autocheckpoints)
        was_large, self._was_large = self._was_large, self._size_bytes > WARNING_BYTES
        if not self._was_large:
            self._trouble.unwarn("wal")
        elif was_large:
            # Not at the first look: one large transaction is cut off before the second.
            self._trouble.warn(
                "wal",
                f"The log of the database {self.file.path!r} has grown to {self._size_bytes // 2**20} MiB, since somebody reads in a "
                "transaction that does not end, or whoever empties it stands still; end that process.",
            )

    def _warn_of_bug(self) -> None:
        self._trouble.warn(
            "sqlite",
            f"SQLite {sqlite3.sqlite_version} may damage a file that several processes write (sqlite.org/wal.html#walresetbug), and "
            "only one of ours empties its log for that reason; install SQLite 3.51.3 or later.",
        )


def _resume_autocheckpoints(connection: sqlite3.Connection) -> bool:
    connection.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT_PAGES}")
    return True


def _checkpoint(connection: sqlite3.Connection, *, mode: str) -> bool:
    """Copy the WAL and have it begun anew; return whether that was possible: a reader may be in the way."""
    # While somebody writes this is a checkpoint like any other, so something must be left to copy: see above.
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA busy_timeout = {round(BUSY_TIMEOUT_SECONDS * 1000)}")
    try:
        connection.execute(ALLOCATE_ID).fetchall()
        [is_busy, *_] = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {round(POLL_SECONDS * 1000)}")
        _resume_autocheckpoints(connection)
    return not is_busy
