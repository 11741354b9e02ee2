"""What storage trouble happens to: a process with a service under load. Run by storage_load.py, as `storage_child.py DATABASE ORDER`.

The order is JSON: `adders`, `pause_seconds` between the adds of one, `payload_bytes`, `patience_seconds`, `uid`. Lines on
stdin are commands: `park` (tasks of the far future are added from now on), `calm` (no more of these), `limit BYTES` (of
every file that this process writes), `pages COUNT` (of the database), `stop` (add nothing more, deliver what is due, end).

Lines on stdout are what happened, as JSON, each with monotonic times: `ack NAME BEGAN ENDED` when an add has returned,
`error CLASSES MESSAGE BEGAN ENDED` when it has raised, `start NAME AT` and `ok NAME AT` of each attempt, `lag AT SECONDS`
of the event loop, `health AT REASONS` when that has changed, `log AT MESSAGE` of what is logged as a warning or worse, `refused CLASSES
MESSAGE` when the service does not start, `drained AT`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import sys
import time
from typing import Any

import anyio

from aiotaskqueue import TaskQueueService
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.delivery._base import Answer, Delivery
from aiotaskqueue.errors import StoreError
from aiotaskqueue.stores import _sqlite_schema
from aiotaskqueue.stores.sqlite import SQLiteStore

SAMPLE_SECONDS = 0.005
FAR_SECONDS = 86_400.0


class Journal:
    """What happened, in order; written out many times a second."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def note(self, *words: object) -> None:
        """Add a line."""
        self._lines.append(json.dumps(words) + "\n")

    def flush(self) -> None:
        """Write the lines out."""
        lines, self._lines = "".join(self._lines), []
        sys.stdout.write(lines)
        sys.stdout.flush()


class Log(logging.Handler):
    """Puts what is logged into the journal."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        """Note a record."""
        self._journal.note("log", time.monotonic(), record.getMessage())


class Worker(Delivery):
    """Takes a few milliseconds for each task, and notes its begin and its end."""

    has_answered = True

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def deliver(self, record: TaskRecord, *, deadline_seconds: float) -> Answer:
        self._journal.note("start", record.name, time.monotonic())
        await asyncio.sleep(0.005)
        self._journal.note("ok", record.name, time.monotonic())
        return Answer(200)


class Load:
    """Adders, and what commands do to them."""

    def __init__(self, store: SQLiteStore, service: TaskQueueService, journal: Journal, order: dict[str, Any]) -> None:
        self._store = store
        self._service = service
        self._journal = journal
        self._order = order
        self._is_parking = False
        self._is_over = asyncio.Event()

    async def run(self) -> None:
        """Add until told to stop, deliver what is due, and end."""
        watching = [asyncio.create_task(self._sample()), asyncio.create_task(self._obey())]
        await asyncio.gather(*(self._add_for_ever(number) for number in range(self._order["adders"])))
        await self._wait_until_idle()
        self._journal.note("drained", time.monotonic())
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)
        # A turn for the transport of stdin, which closes itself.
        await asyncio.sleep(0)

    async def _wait_until_idle(self) -> None:
        is_idle = False
        while not is_idle and not self._order["gives_up"]:
            try:
                await self._service.run_until_idle()
                is_idle = True
            except StoreError:
                await asyncio.sleep(0.1)

    async def _add_for_ever(self, number: int) -> None:
        payload, is_parker = bytes(self._order["payload_bytes"]), number % 2
        while not self._is_over.is_set():
            countdown = FAR_SECONDS if is_parker and self._is_parking else 0.0
            began = time.monotonic()
            try:
                task = await self._service.add(payload, url="/w", countdown=countdown)
            except StoreError as exc:
                classes = [cls.__name__ for cls in type(exc).__mro__]
                self._journal.note("error", classes, str(exc), began, time.monotonic())
                await asyncio.sleep(0.02)
            else:
                self._journal.note("ack", task.name, began, time.monotonic())
            await asyncio.sleep(self._order["pause_seconds"])

    async def _sample(self) -> None:
        reasons: tuple[str, ...] = ()
        while True:
            began = time.monotonic()
            await asyncio.sleep(SAMPLE_SECONDS)
            self._journal.note("lag", began, time.monotonic() - began - SAMPLE_SECONDS)
            if (now := self._service.health().reasons) != reasons:
                reasons = now
                self._journal.note("health", time.monotonic(), reasons)
            self._journal.flush()

    async def _obey(self) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        with contextlib.closing(transport):
            while line := await reader.readline():
                await self._do(*line.decode().split())
            self._is_over.set()

    async def _do(self, verb: str, number: str = "0") -> None:
        if verb == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), resource.RLIM_INFINITY))
        elif verb == "pages":
            assert self._store._writer is not None
            await self._store._writer.execute(f"PRAGMA max_page_count = {int(number)}")
        elif verb == "stop":
            self._is_over.set()
        else:
            self._is_parking = verb == "park"


async def main(path: str, order: dict[str, Any]) -> None:
    """Work under load."""
    journal = Journal()
    logging.getLogger("aiotaskqueue").addHandler(Log(journal))
    if order["uid"]:
        # What is imported and read late must be there before: that user may not read it.
        anyio.get_cancelled_exc_class()
        scripts = _sqlite_schema._scripts()
        _sqlite_schema._scripts = lambda: scripts
        os.setuid(order["uid"])
    store = SQLiteStore(path, durability=order["durability"], patience_seconds=order["patience_seconds"])
    try:
        async with TaskQueueService(store=store, delivery=Worker(journal)) as service:
            journal.note("ready", time.monotonic())
            journal.flush()
            await Load(store, service, journal, order).run()
    except StoreError as exc:
        journal.note("refused", [cls.__name__ for cls in type(exc).__mro__], str(exc))
    finally:
        journal.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
