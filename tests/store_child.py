"""A process of its own with a store, to be killed by tests: ``python store_child.py <what> <path> [<number>]``.

``lease``: lease that many tasks, say "ready" and hang. ``migrate``: be killed at that many statements of the first opening.
``powerless``: try to open as a user who may not write, and print the error.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from open_stores import NOW, add, new_record, running

from aiotaskqueue.errors import StoreError
from aiotaskqueue.stores._sqlite_connection import ThreadConnection
from aiotaskqueue.stores.sqlite import SQLiteStore

NOBODY = 65534


async def lease(path: str, count: int) -> None:
    """Lease tasks and hang."""
    async with running(path) as store:
        await add(store, *(new_record(f"task-{i}") for i in range(count)), places=count)
        print("ready", flush=True)
        await asyncio.Event().wait()


async def migrate(path: str, statements: int) -> None:
    """Open a new database and be killed in the middle."""
    execute = ThreadConnection.execute
    left = statements

    def counting(self: ThreadConnection, sql: Any, parameters: Any = (), /) -> Any:
        nonlocal left
        if isinstance(sql, str) and self.in_transaction:
            left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return execute(self, sql, parameters)

    ThreadConnection.execute = counting  # type: ignore[method-assign]
    await SQLiteStore(path).open(now_usec=NOW)


async def powerless(path: str) -> None:
    """Open as somebody who may not write; root may write everything and has to become somebody else first."""
    if os.geteuid() == 0:
        os.setuid(NOBODY)
    store = SQLiteStore(path)
    try:
        await store.open(now_usec=NOW)
    except StoreError as exc:
        print(type(exc).__name__, exc)
    finally:
        await store.aclose()


if __name__ == "__main__":
    what, path, *number = sys.argv[1:]
    if what == "lease":
        asyncio.run(lease(path, int(number[0])))
    elif what == "migrate":
        asyncio.run(migrate(path, int(number[0])))
    else:
        asyncio.run(powerless(path))
