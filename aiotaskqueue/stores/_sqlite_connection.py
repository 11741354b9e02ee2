"""Connections: made, set up, and handed whole transactions."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import aiosqlite

from aiotaskqueue._clock import SystemClock
from aiotaskqueue.errors import ConfigError
from aiotaskqueue.stores._group_commit import Verb
from aiotaskqueue.stores._sqlite_errors import is_locked
from aiotaskqueue.stores._sqlite_file import DatabaseFile
from aiotaskqueue.stores._sqlite_fork import guard_connection

T = TypeVar("T")

# How long the thread waits for a lock before the loop takes over (RELIABILITY S3). Short, since nobody's patience can end
# meanwhile.
BUSY_TIMEOUT_SECONDS = 0.1

# How often it looks meanwhile. SQLite alone looks after 1, 2, 5, 10, 15, 20, 25 ms: a busy process is then hardly ever met
# between two of its transactions, which are a millisecond apart (two that add: the worst wait is 3 times longer, measured).
POLL_SECONDS = 0.001


# No mmap: it has made damage worse (RELIABILITY S9). The others matter on macOS alone (S17).
FILE_PRAGMAS = {"mmap_size": 0, "fullfsync": 1, "checkpoint_fullfsync": 1}


class ThreadConnection(sqlite3.Connection):
    """A connection whose `execute` also takes a function of the connection.

    aiosqlite sends each call to its thread and back (25 us). This way a whole transaction is one such hop, through
    public names only.
    """

    def execute(self, sql: Any, parameters: Any = (), /) -> Any:
        """Execute a statement, or call a function in this thread."""
        if callable(sql):
            return sql(self)
        return super().execute(sql, parameters)


async def run_in_thread(connection: aiosqlite.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    """Call `function` in the connection's thread, as one hop; it runs to its end even when the caller is cancelled."""
    returned: list[T] = []
    await connection.execute(lambda raw: returned.append(function(raw)))
    return returned[0]


async def connect(file: DatabaseFile | None, *, read_only: bool = False) -> aiosqlite.Connection:
    """Open a connection in autocommit: transactions are begun and ended by us alone; None: in memory."""
    uri = "file::memory:" if file is None else file.uri(read_only=read_only)
    opening = _Opening()
    connection = aiosqlite.connect(
        uri,
        uri=True,
        isolation_level=None,
        timeout=BUSY_TIMEOUT_SECONDS if read_only else POLL_SECONDS,
        factory=opening,
        cached_statements=256,
        # For `give_up`; aiosqlite itself uses it in its own thread only.
        check_same_thread=False,
    )
    guard_connection(connection)
    try:
        return await connection
    except BaseException:
        opening.give_up()
        raise


class _Opening:
    """Makes a connection in its thread, and closes it when nobody wants it any more.

    aiosqlite ends its thread when an opening is cancelled, and forgets the connection that the thread has made or is just
    making. The file would stay open until the garbage collector comes by, for sqlite3's connections refer to themselves.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: sqlite3.Connection | None = None
        self._is_wanted = True

    def __call__(self, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        made = ThreadConnection(*args, **kwargs)
        with self._lock:
            self._made = made
            if not self._is_wanted:
                made.close()
        return made

    def give_up(self) -> None:
        """Close the connection now, or as soon as it is made."""
        with self._lock:
            self._is_wanted = False
            if self._made is not None:
                self._made.close()


async def disconnect(connection: aiosqlite.Connection) -> None:
    """Close a connection and end its thread; that happens even when the wait for it is cancelled."""
    stopped = connection.stop()
    assert stopped is not None
    await stopped


def set_pragmas(connection: sqlite3.Connection, pragmas: Mapping[str, str | int]) -> None:
    """Set what we rely on, and read it back: builds differ in their defaults (RELIABILITY S17)."""
    for name, value in pragmas.items():
        connection.execute(f"PRAGMA {name} = {value}").fetchall()
        (actual,) = connection.execute(f"PRAGMA {name}").fetchone() or (value,)
        if actual != value:
            raise ConfigError(
                f"The database refuses 'PRAGMA {name} = {value}' (it says {actual!r}); put the file on a local disk that can be written."
            )


def begin(connection: sqlite3.Connection) -> None:
    """Begin to write, and wait up to BUSY_TIMEOUT_SECONDS for the lock."""
    give_up: float | None = None
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as exc:
            if not is_locked(exc):
                raise
            now = SystemClock().monotonic()
            give_up = give_up or now + BUSY_TIMEOUT_SECONDS
            if now > give_up:
                raise
        else:
            return


class Transaction:
    """One transaction, run in the database thread as one call."""

    def __init__(self, groups: Sequence[tuple[Verb, Sequence[Any]]], file: DatabaseFile | None) -> None:
        self._groups = groups
        self._file = file
        self.is_committing = False
        """It has got as far as its COMMIT: if that fails, nobody may know whether it happened."""

    def run(self, connection: sqlite3.Connection) -> list[Sequence[Any]]:
        """Run all verbs; all or nothing."""
        if self._file is not None:
            self._file.check()
        begin(connection)
        try:
            results = [verb(connection, requests) for verb, requests in self._groups]
            self.is_committing = True
            connection.execute("COMMIT")
        except BaseException:
            # After FULL or IOERR SQLite has rolled back by itself, and ROLLBACK would raise (RELIABILITY S11).
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if self._file is not None:
            self._file.check_after_commit()
        return results
