"""Adds tasks and prints each name after its add: `fsync_child.py DATABASE DURABILITY TASKS`. Then what SQLite is set to."""

from __future__ import annotations

import asyncio
import os
import sys

from aiotaskqueue import Task, TaskQueueService
from aiotaskqueue.stores.sqlite import SQLiteStore


async def main(database: str, durability: str, tasks: str) -> None:
    """Add one task after the other, in a process that delivers nothing."""
    store = SQLiteStore(database, durability=durability)  # type: ignore[arg-type]
    async with TaskQueueService(store=store, dispatch=False) as service:
        os.write(sys.stdout.fileno(), b"ready\n")
        for _ in range(int(tasks)):
            task = await service.queue().add(Task(url="/worker"))
            os.write(sys.stdout.fileno(), f"ack {task.name}\n".encode())
        assert store._writer is not None
        async with store._writer.execute("PRAGMA synchronous") as cursor:
            print("synchronous", *(await cursor.fetchone() or ()), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
