"""Ways to cancel a call at every moment there is, and a look at what it left.

A moment is reached in two ways. `lockstep` takes the threads out of the game: each call to the database is answered in
the next turn of the event loop, so "after k turns" is the same moment on every run, and k may count up until the call
ends by itself. `gated` leaves the threads as they are and stops a request at a numbered place of its way: before BEGIN,
inside of the transaction, after the COMMIT, before its caller hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
import attrs
import pytest
from on_clock import turns

from aiotaskqueue.stores import _sqlite_connection
from aiotaskqueue.stores._sqlite_connection import ThreadConnection

KINDS = ("native", "anyio", "both", "twice")

# Nobody who was cancelled takes so long, however busy the machine is.
HANGS_SECONDS = 5.0

# Turns in which a cancelled call that waits for nobody has ended.
ENDING_TURNS = 20


class Call:
    """A call that runs in a task of its own, inside of a cancel scope, so that it can be cancelled in each of four ways."""

    def __init__(self, function: Callable[[], Awaitable[object]]) -> None:
        self._function = function
        self._scope = anyio.CancelScope()
        self.has_begun = False
        self.was_cancelled = False
        """It ended as a cancelled call does."""
        self.result: object = None
        self.error: Exception | None = None
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        with self._scope:
            self.has_begun = True
            try:
                self.result = await self._function()
            except asyncio.CancelledError:
                self.was_cancelled = True
                raise
            except Exception as exc:
                self.error = exc

    def cancel(self, kind: str) -> None:
        """Cancel it: natively, by its scope, both at once, or natively and once more a turn later."""
        if kind in ("anyio", "both"):
            self._scope.cancel()
        if kind != "anyio":
            self.task.cancel()
        if kind == "twice":
            asyncio.get_running_loop().call_soon(self.task.cancel)

    async def wait(self, kind: str) -> list[str]:
        """Wait for its end; return what is wrong with it."""
        await asyncio.wait({self.task}, timeout=HANGS_SECONDS)
        if not self.task.done():
            self.task.cancel()
            return ["is left hanging"]
        # Before its first step only the task is there to be cancelled.
        self.was_cancelled |= self.task.cancelled()
        if self.error is not None:
            return [f"raises {self.error!r}"]
        # A scope leaves alone what has its answer already; a native cancellation is always heard.
        return [] if self.was_cancelled or kind == "anyio" else ["swallows the cancellation"]


@attrs.frozen
class Cancelled:
    """A call that was cancelled, or that had ended before its moment came."""

    call: Call
    place: str
    """Where that was; empty: the call had ended before."""
    faults: Sequence[str]
    """What is wrong with its end."""


async def cancelled_after(count: int, kind: str, function: Callable[[], Awaitable[object]]) -> Cancelled:
    """Cancel a call after so many turns of the loop."""
    call = Call(function)
    await turns(count)
    place = "" if call.task.done() else f"turn {count}"
    if place:
        call.cancel(kind)
    return Cancelled(call, place, await call.wait(kind if place else "anyio"))


# --- lockstep ------------------------------------------------------------------------------------------------------


class _LockstepQueue:
    """The way into a database thread; whoever hands something over stands still, and the loop with it, until it is done."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._queue = connection._tx
        self._thread = connection._thread

    def put_nowait(self, item: Any) -> None:
        """Hand over a call, and return when its answer is on its way to the loop."""
        done = threading.Event()
        self._queue.put_nowait(item)
        # The thread takes one after the other. The call that ends it is its last.
        self._queue.put_nowait((None, done.set))
        while not done.wait(0.0005) and self._thread.is_alive():
            pass


@contextlib.contextmanager
def lockstep() -> Iterator[None]:
    """Let databases that are opened in the block answer in the next turn of the loop."""
    with _changed_queues(_LockstepQueue):
        yield


@contextlib.contextmanager
def _changed_queues(change: Callable[[aiosqlite.Connection], Any]) -> Iterator[None]:
    """Let the threads of connections that are made in the block be reached by what `change` returns for each."""
    connect = aiosqlite.connect

    def connect_changed(*args: Any, **kwargs: Any) -> aiosqlite.Connection:
        connection = connect(*args, **kwargs)
        connection._tx = change(connection)
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aiosqlite, "connect", connect_changed)
        yield


# --- gates ---------------------------------------------------------------------------------------------------------


class Gates:
    """Places on the way of requests, in the order in which they are passed; one of them may be closed for a while."""

    def __init__(self) -> None:
        self._closed_one: int | None = None
        self._passed = itertools.count()
        self._on_reached: Callable[[], None] | None = None
        self._is_open = threading.Event()
        self._loop = asyncio.get_running_loop()
        self.reached = asyncio.Event()
        self.place = ""
        """What the closed one is called."""
        self.places: set[str] = set()
        """Where somebody was stopped."""

    def close(self, number: int, on_reached: Callable[[], None]) -> None:
        """Close the gate that is passed as the one of that number from now on, and call `on_reached` when somebody is there."""
        self._closed_one, self._passed, self._on_reached = number, itertools.count(), on_reached
        self._is_open.clear()
        self.reached.clear()

    def open(self) -> None:
        """Let everybody through."""
        self._closed_one = None
        self._is_open.set()

    def come(self, place: str) -> None:
        """Pass a gate in a database thread."""
        if self._is_closed(place):
            self._loop.call_soon_threadsafe(self._note)
            self._is_open.wait(HANGS_SECONDS)

    def pass_by(self, place: str) -> None:
        """Pass a gate in the loop, where nobody can be stopped: whoever waits for it gets in before what comes next."""
        if self._is_closed(place):
            self._note()

    def _is_closed(self, place: str) -> bool:
        if next(self._passed) != self._closed_one:
            return False
        self.place = place
        self.places.add(place)
        return True

    def _note(self) -> None:
        assert self._on_reached is not None
        self._on_reached()
        self.reached.set()


class _GatedConnection(ThreadConnection):
    """A connection with gates around BEGIN, COMMIT and the looks of the reader."""

    gates: Gates

    def execute(self, sql: Any, parameters: Any = (), /) -> Any:
        """Execute it, and pass the gates before and after it."""
        name = sql if isinstance(sql, str) else ""
        if name not in ("BEGIN IMMEDIATE", "BEGIN", "COMMIT"):
            return super().execute(sql, parameters)
        self.gates.come(f"before {name}")
        result = super().execute(sql, parameters)
        self.gates.come(f"after {name}")
        return result


class _GatedQueue:
    """The way into a database thread, with gates on the way back."""

    def __init__(self, gates: Gates, connection: aiosqlite.Connection) -> None:
        self._queue = connection._tx
        self._gates = gates

    def put_nowait(self, item: Any) -> None:
        """Hand over a call, whose answer passes the gates."""
        future: asyncio.Future[Any] | None = item[0]
        if future is not None:
            # Called before whoever awaits the future; and what is called soon then, before whoever awaits that one.
            future.add_done_callback(self._come_back)
        self._queue.put_nowait(item)

    def _come_back(self, future: asyncio.Future[Any]) -> None:
        self._gates.pass_by("answered")
        future.get_loop().call_soon(self._gates.pass_by, "answered, and not yet heard")


@contextlib.contextmanager
def gated() -> Iterator[Gates]:
    """Put gates on the way of the requests to databases that are opened in the block."""
    gates = Gates()

    class Connection(_GatedConnection):
        pass

    Connection.gates = gates
    with pytest.MonkeyPatch.context() as patch, _changed_queues(functools.partial(_GatedQueue, gates)):
        patch.setattr(_sqlite_connection, "ThreadConnection", Connection)
        yield gates


async def cancelled_at_gate(
    number: int, kind: str, function: Callable[[], Awaitable[object]], gates: Gates, *, waits: bool = False
) -> Cancelled:
    """Cancel a call when it, or what it has set going, is at the gate of that number.

    Args:
        number: 0 is the first gate that is passed after the call.
        kind: How.
        function: The call.
        gates: Those of the store.
        waits: It may wait for the store although it is cancelled.
    """
    call, place = Call(function), ""

    def cancel() -> None:
        nonlocal place
        if not call.task.done():
            place = f"gate {number}, {gates.place}"
            call.cancel(kind)

    gates.close(number, cancel)
    reached = asyncio.create_task(gates.reached.wait())
    await asyncio.wait({call.task, reached}, timeout=HANGS_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    await turns(ENDING_TURNS)
    faults = ["waits for the store"] if place and not waits and not call.task.done() else []
    gates.open()
    reached.cancel()
    return Cancelled(call, place, [*faults, *await call.wait(kind if place else "anyio")])


# --- what is left --------------------------------------------------------------------------------------------------


@attrs.frozen
class Before:
    """What there was before a service was made: threads, open files and sockets, files in its folder."""

    path: Path
    threads: frozenset[threading.Thread]
    descriptors: tuple[str, ...]

    @classmethod
    def now(cls, path: Path) -> Before:
        """Look; `path` is that of the database."""
        return cls(path, frozenset(threading.enumerate()), _descriptors())

    def find_left(self) -> list[str]:
        """Return what there is now and was not before, but for the database."""
        started = set(threading.enumerate()) - self.threads
        for thread in started:
            # One that was told to end has an instruction or two to go.
            thread.join(1.0)
        left = [thread.name for thread in started if thread.is_alive()]
        left += [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "aiotaskqueue"]
        left += [file.name for file in self.path.parent.iterdir() if file != self.path]
        return left + list((Counter(_descriptors()) - Counter(self.descriptors)).elements())


def _descriptors() -> tuple[str, ...]:
    """Return what the process has open, where the system shows it."""
    folder = Path("/proc/self/fd")
    found = []
    for link in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            found.append(_without_inode(os.readlink(link)))
    return tuple(found)


def _without_inode(name: str) -> str:
    return name.partition(":[")[0]
