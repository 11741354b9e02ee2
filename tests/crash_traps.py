"""Traps: a child process that kills itself with SIGKILL at the n-th time that a named moment is reached (RELIABILITY 1.1).

The package knows nothing of them. A moment is seen from outside: by a Store and a Delivery that wrap the real ones, and by
what SQLite itself tells of the statements that a connection runs.

F0: before BEGIN. F1: after BEGIN. F2: after the INSERT of a task, before COMMIT. F3: after COMMIT, before the caller is
told. F4: after the COMMIT of a lease, before the connect. F5: in the handler. F6: after the response, before BEGIN. F7:
after the COMMIT of a completion. F8: in the rescue of orphans. `unlink`: after its COMMIT, before the side file of the dead
goes. F12: while a drain gives back what it has cut. `statement`: before any statement. `tick`: after so many thousand steps
of SQLite's machine. `commit`: so many milliseconds after COMMIT has begun.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from aiotaskqueue import TaskQueueService
from aiotaskqueue._clock import Clock
from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.delivery._base import Answer, Delivery, NoAnswer
from aiotaskqueue.delivery.aiohttp_app import AppDelivery
from aiotaskqueue.signing import KeyRing
from aiotaskqueue.stores._base import AddVerdict, Delete, Exchange, LeaseRequest, Settlement
from aiotaskqueue.stores.sqlite import SQLiteStore

SECRET = b"known to all lives of one database"

# Steps of SQLite's machine between two ticks.
STEPS = 1000


class Trap:
    """Waits for a moment."""

    def __init__(self, moment: str, nth: str) -> None:
        self.moment = moment
        self.reached = 0
        self._nth = int(nth)
        self.is_rescuing = False
        self.is_draining = False

    def reach(self, moment: str) -> None:
        """End here if this is the moment, and it was reached so often."""
        if moment == self.moment:
            self.reached += 1
            if self.reached == self._nth:
                self.spring()

    def spring(self) -> None:
        """End as if somebody had pulled the plug."""
        os.write(sys.stdout.fileno(), f"reached {self.moment}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    async def drain(self, service: TaskQueueService) -> None:
        """Give up at once what is in flight, and be killed on the way, or at its end."""
        self.is_draining = True
        os.write(sys.stdout.fileno(), b"draining\n")
        await service.drain(timeout_seconds=0.0)
        self.spring()

    def watch(self, connection: sqlite3.Connection) -> None:
        """Be told what this connection does."""
        connection.set_trace_callback(self._statement_watcher())
        connection.set_progress_handler(lambda: self.reach("tick"), STEPS)

    def _statement_watcher(self) -> Callable[[str], None]:
        begun = has_task = False

        def see(sql: str) -> None:
            """Take note of a statement that is about to be run."""
            nonlocal begun, has_task
            self.reach("statement")
            if sql.startswith("BEGIN IMMEDIATE"):
                self.reach("F0")
                begun, has_task = True, False
                return
            if begun:
                self.reach("F1")
            begun = False
            if sql.startswith("COMMIT"):
                self._see_commit(has_task)
            has_task |= sql.lstrip().startswith("INSERT INTO taskqueue_task ")
            if self.is_rescuing:
                self.reach("F8")
            if self.is_draining:
                self.reach("F12")

        return see

    def _see_commit(self, has_task: bool) -> None:
        if has_task:
            self.reach("F2")
        if self.moment == "commit":
            threading.Timer(self._nth / 1000, self.spring).start()


NO_TRAP = Trap("never", "0")


class TrappedStore(SQLiteStore):
    """The real store; knows when the verbs of which some moments are made begin and end."""

    def __init__(self, path: str, trap: Trap) -> None:
        super().__init__(path)
        self._trap = trap

    async def add(self, *args: Any, **kwargs: Any) -> Sequence[AddVerdict]:
        verdicts = await super().add(*args, **kwargs)
        self._trap.reach("F3")
        return verdicts

    async def exchange(self, settlements: Sequence[Settlement], request: LeaseRequest | None, *, now_usec: int) -> Exchange:
        exchange = await super().exchange(settlements, request, now_usec=now_usec)
        if any(isinstance(settlement.outcome, Delete) for settlement in settlements):
            self._trap.reach("F7")
        return exchange

    async def rescue(self, configs: Sequence[QueueConfig], *, now_usec: int) -> Sequence[TaskRecord]:
        self._trap.is_rescuing = True
        try:
            return await super().rescue(configs, now_usec=now_usec)
        finally:
            self._trap.is_rescuing = False


class TrappedDelivery(Delivery):
    """Passes on to the real delivery, and knows when it begins and ends."""

    def __init__(self, delivery: Delivery, trap: Trap) -> None:
        self._delivery = delivery
        self._trap = trap

    @property
    def has_answered(self) -> bool:  # type: ignore[override]  # as in AppDelivery
        """Whether the target has answered anything."""
        return self._delivery.has_answered

    async def open(self, clock: Clock) -> None:
        await self._delivery.open(clock)

    async def deliver(self, record: TaskRecord, *, deadline_seconds: float) -> Answer | NoAnswer:
        self._trap.reach("F4")
        result = await self._delivery.deliver(record, deadline_seconds=deadline_seconds)
        self._trap.reach("F6")
        return result

    async def aclose(self) -> None:
        await self._delivery.aclose()


def watch_connections(trap: Trap) -> None:
    """Let the trap see every connection to a database that this process opens from now on."""
    connect = sqlite3.connect

    def watched_connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)
        trap.watch(connection)
        return connection

    sqlite3.connect = watched_connect


def see_unlink(trap: Trap, path: str) -> None:
    """Take note of a file that is about to be removed."""
    if "-process-" in path:
        trap.reach("unlink")


def trapped_service(database: str, trap: Trap, app: web.Application, **arguments: Any) -> TaskQueueService:
    """Return a service that is the usual one for an application, but for the trap in it."""
    watch_connections(trap)
    sys.addaudithook(lambda event, arguments: see_unlink(trap, str(arguments[0])) if event == "os.remove" else None)
    delivery = TrappedDelivery(AppDelivery(app, is_run_elsewhere=True, keys=KeyRing([SECRET])), trap)
    return TaskQueueService(database, store=TrappedStore(database, trap), delivery=delivery, secrets=[SECRET], **arguments)
