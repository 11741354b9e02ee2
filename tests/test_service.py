"""TaskQueueService: its life, who may use it from where, eager mode, health, and what an end of any kind leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from children import run_script
from open_stores import NOW, QUEUE, add_leased, new_record, raw, running

from aiotaskqueue import Queue, QueueConfig, Task, TaskQueueService, add
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.delivery._base import Delivery, FailureReason, NoAnswer
from aiotaskqueue.errors import (
    ClosedError,
    ConfigError,
    ForkedProcessError,
    NotStartedError,
    OutcomeUnknownError,
    StoreBusyError,
    StoreCorruptError,
    WrongLoopError,
)
from aiotaskqueue.stores.sqlite import SQLiteStore
from aiotaskqueue.testing import RecordingDelivery, VirtualClock

pytestmark = pytest.mark.anyio

# A turn of the loop more than starting or closing ever takes: for tests that look at something "meanwhile".
SOON_SECONDS = 0.05


class Waiting:
    """A handler that answers once it is let go, and tells when it was reached."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.let_go = asyncio.Event()

    async def __call__(self, record: TaskRecord) -> int:
        self.reached.set()
        await self.let_go.wait()
        return 200


class Broken(Delivery):
    """A delivery that cannot be opened, or not be closed."""

    def __init__(self, *, opens: bool = False) -> None:
        self._opens = opens

    async def open(self, clock: object) -> None:
        if not self._opens:
            raise OSError("no socket for you")

    async def deliver(self, record: TaskRecord, *, deadline_seconds: float) -> NoAnswer:
        return NoAnswer(FailureReason.UNREACHABLE)

    async def aclose(self) -> None:
        if self._opens:
            raise OSError("the socket is stuck")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the tasks are."""
    return tmp_path / "tasks.db"


@pytest.fixture
def locked(path: Path) -> Iterator[Callable[[], sqlite3.Connection]]:
    """A function that takes the lock of the database, as another process does, and keeps it until the end of the test."""
    connections: list[sqlite3.Connection] = []

    def lock() -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None)
        connections.append(connection)
        connection.execute("BEGIN IMMEDIATE")
        return connection

    yield lock
    for connection in connections:
        connection.close()


def make(path: Path | str = ":memory:", delivery: Delivery | None = None, **arguments: object) -> TaskQueueService:
    """Return a service that is not started, which delivers to a recording delivery unless another is given."""
    return TaskQueueService(path, delivery=delivery or RecordingDelivery(), **arguments)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def spawned(function: Callable[[], Awaitable[object]]) -> AsyncIterator[asyncio.Task[object]]:
    """Run a function in a task of its own, that is given the time to get where it waits."""

    async def call() -> object:
        return await function()

    task = asyncio.create_task(call())
    await asyncio.sleep(SOON_SECONDS)
    yield task
    await asyncio.gather(task, return_exceptions=True)


def left_behind(path: Path, threads: set[threading.Thread]) -> list[str]:
    """Return what a service has left: threads, tasks, side files."""
    started = set(threading.enumerate()) - threads
    for thread in started:
        # A database thread that has said that it is done has an instruction or two to go.
        thread.join(1.0)
    names = [thread.name for thread in started if thread.is_alive()]
    names += [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "aiotaskqueue"]
    return names + [file.name for file in path.parent.iterdir() if file != path]


async def stored_names(path: Path) -> list[str | None]:
    """Return the names of the tasks in the file."""
    async with TaskQueueService(path, dispatch=False) as service:
        return [task.name for task in await service.get_filtered_tasks()]


# --- start ---------------------------------------------------------------------------------------------------------


@pytest.mark.row(50)
async def test_start_twice() -> None:
    """Starting a service that runs does nothing."""
    service = make()
    await service.start()
    await service.start()

    assert service.health().is_ok

    await service.aclose()


@pytest.mark.row(50)
async def test_start_concurrently() -> None:
    """Starts at the same time start once, and each returns when the service runs."""
    service = make()
    oks = []

    async def start() -> None:
        await service.start()
        oks.append(service.health().is_ok)

    async with anyio.create_task_group() as tg:
        for _ in range(5):
            tg.start_soon(start)

    assert [True] * 5 == oks

    await service.aclose()


async def test_start_and_close_in_different_tasks() -> None:
    """One task may start a service and another close it."""
    service = make()
    await asyncio.create_task(service.start())
    await asyncio.create_task(service.aclose())

    assert not service.health().is_ok


async def test_start_after_close() -> None:
    """A closed service cannot be started again."""
    service = make()
    async with service:
        pass

    with pytest.raises(ClosedError, match="make and start a new TaskQueueService"):
        await service.start()


async def test_start_while_closing() -> None:
    """A service that is being closed cannot be started."""
    handler = Waiting()
    service = make(delivery=RecordingDelivery(handler))
    await service.start()
    await service.add(url="/w")
    await handler.reached.wait()

    async with spawned(service.aclose):
        with pytest.raises(ClosedError):
            await service.start()
        handler.let_go.set()


@pytest.mark.row(52)
async def test_failed_start_leaves_nothing(path: Path) -> None:
    """A start that fails raises the reason, leaves nothing open, and the service is closed."""
    threads = set(threading.enumerate())
    path.write_bytes(b"no database, but long enough to be taken for one" * 100)
    content = path.read_bytes()
    service = make(path)
    with pytest.raises(StoreCorruptError):
        await service.start()

    assert [] == left_behind(path, threads)
    assert content == path.read_bytes()
    with pytest.raises(ClosedError):
        await service.add(url="/w")


async def test_failed_start_of_a_delivery(path: Path) -> None:
    """A start that fails after the store is open closes the store again."""
    threads = set(threading.enumerate())
    service = make(path, Broken())
    with pytest.raises(OSError, match="no socket for you"):
        await service.start()

    assert [] == left_behind(path, threads)


async def test_every_starter_hears_of_the_failure(path: Path) -> None:
    """Everybody who waits for a start that fails gets the reason."""
    service = make(path, Broken())
    results = await asyncio.gather(service.start(), service.start(), return_exceptions=True)

    assert ["no socket for you"] * 2 == [str(result) for result in results]


@pytest.mark.row(51)
async def test_close_during_start(path: Path, locked: Callable[[], sqlite3.Connection]) -> None:
    """Closing a service that is starting ends the start at once, with ClosedError, though the database is locked."""
    threads = set(threading.enumerate())
    lock = locked()
    service = make(path)
    async with spawned(service.start) as start:
        await service.aclose()

        assert start.done() or not service.health().is_ok

    assert isinstance(start.exception(), ClosedError)

    lock.close()

    assert [] == left_behind(path, threads)


CANCELS = ["native", "anyio", "both"]


async def cancelled(kind: str, function: Callable[[], Awaitable[object]]) -> bool:
    """Run a function and cancel it in one of three ways once it waits; return whether it ended as cancelled."""
    outcome = []
    scope = anyio.CancelScope()

    async def call() -> None:
        with scope:
            try:
                await function()
            except asyncio.CancelledError:
                outcome.append(True)
                raise

    task = asyncio.create_task(call())
    await asyncio.sleep(0.005)
    if kind != "native":
        scope.cancel()
    if kind != "anyio":
        task.cancel()
    await asyncio.wait({task})
    return bool(outcome)


@pytest.mark.row(52)
@pytest.mark.parametrize("kind", CANCELS)
async def test_cancelled_start(path: Path, locked: Callable[[], sqlite3.Connection], kind: str) -> None:
    """RELIABILITY 52, P15: a cancelled start leaves nothing behind, and the service is closed."""
    threads = set(threading.enumerate())
    lock = locked()
    service = make(path)

    assert await cancelled(kind, service.start)

    lock.close()

    assert [] == left_behind(path, threads)
    with pytest.raises(ClosedError):
        await service.start()


@pytest.mark.promise("P15")
@pytest.mark.row(52)
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["native", "anyio"])
async def test_start_cancelled_at_every_step(tmp_path: Path, kind: str) -> None:
    """P15: whenever a start is cancelled, it leaves nothing behind and the file as good as before."""
    threads = set(threading.enumerate())
    path = tmp_path / "tasks.db"
    started = 0
    for turns in range(0, 90, 3):
        service = make(path)
        scope = anyio.CancelScope()
        async with anyio.create_task_group() as tg:

            async def start(service: TaskQueueService = service, scope: anyio.CancelScope = scope) -> None:
                with scope, contextlib.suppress(asyncio.CancelledError):
                    await service.start()

            task = asyncio.create_task(start()) if kind == "native" else None
            if task is None:
                tg.start_soon(start)
            for _ in range(turns):
                await asyncio.sleep(0.0002)
            if task is None:
                scope.cancel()
            else:
                task.cancel()
        if task is not None:
            await asyncio.wait({task})
        started += service.health().is_ok
        await service.aclose()

        assert [] == left_behind(path, threads)

    assert [] == await stored_names(path)


@pytest.mark.row(52)
async def test_cancelled_enter_keeps_the_cancellation(path: Path, locked: Callable[[], sqlite3.Connection]) -> None:
    """RELIABILITY 52: a time limit around a start that cannot succeed is what is raised."""
    lock = locked()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SOON_SECONDS), make(path):
            pytest.fail("It must not start.")

    lock.close()


# --- aclose --------------------------------------------------------------------------------------------------------


@pytest.mark.row(51)
async def test_close_twice(path: Path) -> None:
    """RELIABILITY 51: closing a closed service does nothing."""
    threads = set(threading.enumerate())
    service = make(path)
    await service.start()
    await service.aclose()
    await service.aclose()

    assert [] == left_behind(path, threads)


@pytest.mark.row(51)
async def test_close_concurrently(path: Path) -> None:
    """RELIABILITY 51: closes at the same time close once, and each returns when all is closed."""
    threads = set(threading.enumerate())
    service = make(path)
    await service.start()
    left = []

    async def close() -> None:
        await service.aclose()
        left.append(left_behind(path, threads))

    async with anyio.create_task_group() as tg:
        for _ in range(5):
            tg.start_soon(close)

    assert [[]] * 5 == left


async def test_close_before_start() -> None:
    """A service that was never started may be closed, and then is closed."""
    service = make()
    await service.aclose()
    await service.aclose()

    with pytest.raises(ClosedError):
        await service.start()


@pytest.mark.row(52)
async def test_body_that_raises(path: Path) -> None:
    """RELIABILITY 52: an exception in the body of ``async with`` is kept, and all is closed."""
    threads = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        async with make(path):
            raise ZeroDivisionError

    assert [] == left_behind(path, threads)


@pytest.mark.promise("P15")
@pytest.mark.parametrize("kind", CANCELS)
async def test_cancelled_close(path: Path, kind: str) -> None:
    """P15: a cancelled close closes all the same, before the caller is cancelled."""
    threads = set(threading.enumerate())
    handler = Waiting()
    service = make(path, RecordingDelivery(handler))
    await service.start()
    await service.add(url="/w", name="slow")
    await handler.reached.wait()

    await cancelled(kind, lambda: service.aclose(timeout_seconds=SOON_SECONDS))

    assert [] == left_behind(path, threads)
    assert ["slow"] == await stored_names(path)


async def test_natively_cancelled_close_is_cancelled() -> None:
    """A caller who was cancelled while it waited for the end is cancelled after it."""
    handler = Waiting()
    service = make(delivery=RecordingDelivery(handler))
    await service.start()
    await service.add(url="/w")
    await handler.reached.wait()

    assert await cancelled("native", lambda: service.aclose(timeout_seconds=SOON_SECONDS))


@pytest.mark.row(51)
async def test_close_inside_a_handler(path: Path) -> None:
    """RELIABILITY 51: a handler may close the service: it is answered at once, and all is closed when it has ended."""
    threads = set(threading.enumerate())
    returned: list[str] = []

    async def respond(record: TaskRecord) -> int:
        await service.aclose()
        returned.append(record.name)
        return 200

    service = make(path, RecordingDelivery(respond))
    await service.start()
    await service.add(url="/w", name="last")
    async with asyncio.timeout(5):
        await service.aclose()

    assert ["last"] == returned
    assert [] == left_behind(path, threads)
    assert [] == await stored_names(path)


async def test_close_inside_a_handler_that_hangs(path: Path) -> None:
    """A handler that closes the service and does not end is given up like any other."""
    handler = Waiting()

    async def respond(record: TaskRecord) -> int:
        await service.aclose(timeout_seconds=SOON_SECONDS)
        return await handler(record)

    service = make(path, RecordingDelivery(respond))
    await service.start()
    await service.add(url="/w", name="hangs")
    await handler.reached.wait()
    await service.aclose()

    assert ["hangs"] == await stored_names(path)


async def test_close_waits_for_attempts_in_flight(path: Path) -> None:
    """P20: an attempt in flight may end while the service closes, and counts."""
    handler = Waiting()
    service = make(path, RecordingDelivery(handler))
    await service.start()
    await service.add(url="/w")
    await handler.reached.wait()
    async with spawned(service.aclose) as close:
        assert not close.done()

        handler.let_go.set()

    assert [] == await stored_names(path)


async def test_drained_handler_may_add(path: Path) -> None:
    """A handler that runs while the service closes can add tasks; they are kept for the next start."""
    handler = Waiting()

    async def respond(record: TaskRecord) -> int:
        status = await handler(record)
        await service.add(url="/next", name="next")
        return status

    delivery = RecordingDelivery(respond)
    service = make(path, delivery)
    await service.start()
    await service.add(url="/w")
    await handler.reached.wait()
    async with spawned(service.aclose):
        handler.let_go.set()

    assert ["/w"] == [delivered.record.url for delivered in delivery.deliveries]
    assert ["next"] == await stored_names(path)


@pytest.mark.promise("P20")
@pytest.mark.slow
async def test_close_while_the_database_is_locked(path: Path, locked: Callable[[], sqlite3.Connection]) -> None:
    """P20: closing takes its time and a second at most, though another process holds the lock and an outcome is unwritten."""
    threads = set(threading.enumerate())
    handler = Waiting()
    service = make(path, RecordingDelivery(handler))
    await service.start()
    await service.add(url="/w", name="done")
    await handler.reached.wait()
    lock = locked()
    handler.let_go.set()
    before = time.monotonic()
    await service.aclose(timeout_seconds=0.1)
    took = time.monotonic() - before
    lock.close()

    assert took <= 1.1
    assert [] == [name for name in left_behind(path, threads) if not name.endswith(("-wal", "-shm"))]
    assert ["done"] == await stored_names(path)


@pytest.mark.slow
async def test_add_while_locked_and_closed(path: Path, locked: Callable[[], sqlite3.Connection]) -> None:
    """Whoever waits for the lock when the service closes gets an error, and nothing was stored."""
    service = make(path)
    await service.start()
    lock = locked()
    async with spawned(lambda: service.add(url="/w")) as adding:
        await service.aclose(timeout_seconds=0.0)

    assert isinstance(adding.exception(), ClosedError | OutcomeUnknownError)

    lock.close()

    assert [] == await stored_names(path)


async def test_second_close_does_not_change_the_time(path: Path) -> None:
    """The drain of the first close counts: a second one, with another time, only waits."""
    handler = Waiting()
    service = make(path, RecordingDelivery(handler))
    await service.start()
    await service.add(url="/w")
    await handler.reached.wait()
    async with spawned(service.aclose), spawned(lambda: service.aclose(timeout_seconds=0.0)) as second:
        assert not second.done()

        handler.let_go.set()

    assert [] == await stored_names(path)


async def test_part_that_cannot_be_closed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A delivery that fails to close is logged, and everything else is closed all the same."""
    threads = set(threading.enumerate())
    async with make(path, Broken(opens=True)):
        pass

    assert [] == left_behind(path, threads)
    assert ["A part of the service could not be closed."] == [record.getMessage() for record in caplog.records]


async def test_host_that_is_cancelled_twice(path: Path) -> None:
    """A loop that is shut down while the service closes cancels the host: every part is closed all the same."""
    threads = set(threading.enumerate())

    class Slow(RecordingDelivery):
        async def aclose(self) -> None:
            await asyncio.Event().wait()

    service = make(path, Slow())
    await service.start()
    host = next(task for task in asyncio.all_tasks() if task.get_name() == "aiotaskqueue")
    async with spawned(service.aclose):
        host.cancel()

    assert [] == left_behind(path, threads)


async def test_adds_race_with_the_close(path: Path) -> None:
    """Each of many adds that race with the close is stored or refused, and none of the accepted ones is lost."""
    delivery = RecordingDelivery()
    service = make(path, delivery)
    await service.start()
    accepted: set[str | None] = set()

    async def keep_adding() -> None:
        with contextlib.suppress(ClosedError):
            while True:
                accepted.add((await service.add(url="/w")).name)

    async with anyio.create_task_group() as tg:
        for _ in range(10):
            tg.start_soon(keep_adding)
        await asyncio.sleep(SOON_SECONDS)
        await service.aclose()

    delivered = {delivered.record.name for delivered in delivery.deliveries}

    assert accepted
    assert set() == accepted - delivered - set(await stored_names(path))


async def test_store_that_fails_closes_the_service(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When the store's own loop ends by a bug, the service says so, is closed, and leaves nothing behind."""

    class Faulty(SQLiteStore):
        async def run(self, *, on_change: Callable[[], None], on_orphans: Callable[[], None]) -> None:
            raise ZeroDivisionError

    threads = set(threading.enumerate())
    service = make(store=Faulty(str(path)))
    with contextlib.suppress(ZeroDivisionError, ClosedError):
        await service.start()
        await asyncio.sleep(SOON_SECONDS)
    await service.aclose()

    assert not service.health().is_ok
    assert [] == left_behind(path, threads)


async def test_store_that_fails_later(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A service that fails while it runs logs the error and is closed."""
    fail = asyncio.Event()

    class Faulty(SQLiteStore):
        async def run(self, *, on_change: Callable[[], None], on_orphans: Callable[[], None]) -> None:
            async with anyio.create_task_group() as tg:
                tg.start_soon(lambda: super(Faulty, self).run(on_change=on_change, on_orphans=on_orphans))
                await fail.wait()
                raise ZeroDivisionError

    service = make(store=Faulty(str(path)))
    await service.start()
    fail.set()
    await asyncio.sleep(SOON_SECONDS)

    assert ("The service is not running.",) == service.health().reasons
    assert "The service failed and is closed." == caplog.records[-1].getMessage()
    with pytest.raises(ClosedError):
        await service.add(url="/w")

    await service.aclose()


# --- the end of the event loop -------------------------------------------------------------------------------------


LEFT_OPEN = """
    import asyncio, sys, threading
    from aiotaskqueue import TaskQueueService
    from aiotaskqueue.testing import RecordingDelivery

    async def hang(record):
        reached.set()
        await asyncio.Event().wait()

    async def main():
        global service, reached
        reached = asyncio.Event()
        service = TaskQueueService(sys.argv[1], delivery=RecordingDelivery(hang))
        await service.start()
        await service.add(url="/w", name="kept")
        await reached.wait()
        {ending}

    try:
        asyncio.run(main())
    except ZeroDivisionError:
        pass
    for thread in threading.enumerate()[1:]:
        thread.join(5)
    print(service.health().reasons, threading.active_count())
    asyncio.run(service.aclose())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "ending",
    [
        "pass",
        "raise ZeroDivisionError",
        "closing = asyncio.create_task(service.aclose()); await asyncio.sleep(0.01)",
        "starting = asyncio.create_task(TaskQueueService(sys.argv[1] + '2').start()); await asyncio.sleep(0)",
    ],
    ids=["returns", "raises", "closing", "starting"],
)
async def test_event_loop_ends_with_the_service_open(path: Path, ending: str) -> None:
    """A loop that ends with the service open closes it: no thread, no warning, no side file, and the task is kept."""
    child = run_script(LEFT_OPEN.format(ending=ending), path)

    assert ("", "('The service is not running.',) 1\n", 0) == (child.stderr, child.stdout, child.returncode)
    assert [] == [file.name for file in path.parent.iterdir() if not file.name.startswith("tasks.db") or "process" in file.name]
    assert ["kept"] == await stored_names(path)


# --- who may use it, and from where --------------------------------------------------------------------------------


USES: dict[str, Callable[[TaskQueueService], Awaitable[object]]] = {
    "add": lambda service: service.add(url="/w"),
    "queue.add": lambda service: service.queue().add(Task(url="/w")),
    "statistics": lambda service: service.statistics(),
    "queue.fetch_statistics": lambda service: service.queue().fetch_statistics(),
    "get_filtered_tasks": lambda service: service.get_filtered_tasks(),
    "run_until_idle": lambda service: service.run_until_idle(),
}
LIFE: dict[str, Callable[[TaskQueueService], Awaitable[object]]] = {
    "start": lambda service: service.start(),
    "drain": lambda service: service.drain(),
    "aclose": lambda service: service.aclose(),
}


@pytest.mark.row(49)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_use_before_start(use: Callable[[TaskQueueService], Awaitable[object]]) -> None:
    """RELIABILITY 49: a service that is not started refuses, and says how to start it."""
    with pytest.raises(NotStartedError, match=r"use 'async with service', 'await service.start\(\)' or init_app"):
        await use(make())


@pytest.mark.row(49)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_use_after_close(use: Callable[[TaskQueueService], Awaitable[object]]) -> None:
    """RELIABILITY 49: a closed service refuses, and says to make a new one."""
    async with make() as service:
        pass

    with pytest.raises(ClosedError, match="make and start a new TaskQueueService"):
        await use(service)


async def test_use_while_starting(path: Path, locked: Callable[[], sqlite3.Connection]) -> None:
    """A service that is still starting refuses, and its health says that it does not run."""
    lock = locked()
    service = make(path)
    async with spawned(service.start):
        with pytest.raises(NotStartedError):
            await service.add(url="/w")

        assert ("The service is not running.",) == service.health().reasons

        lock.close()
    await service.aclose()


@pytest.mark.row(49)
@pytest.mark.parametrize("use", [*USES.values(), *LIFE.values()], ids=[*USES, *LIFE])
async def test_use_from_another_thread(use: Callable[[TaskQueueService], Awaitable[object]]) -> None:
    """RELIABILITY 49: another thread, which has another event loop, is refused and told where to call from."""

    async def call() -> None:
        with pytest.raises(WrongLoopError, match="call it from the loop and thread in which it was started"):
            await use(service)

    async with make() as service:
        await asyncio.to_thread(asyncio.run, call())

        assert service.health().is_ok


@pytest.mark.row(49)
async def test_use_without_a_loop() -> None:
    """RELIABILITY 49: a coroutine that is driven without any event loop is refused like one of another loop."""

    def call() -> None:
        with pytest.raises(WrongLoopError):
            service.add(url="/w").send(None)

    async with make() as service:
        await asyncio.to_thread(call)


@pytest.mark.row(49)
def test_use_from_another_loop() -> None:
    """RELIABILITY 49: once its loop is gone the service is closed, and closing it again in another one is fine."""

    async def start() -> None:
        await service.start()

    service = make()
    asyncio.run(start())

    with pytest.raises(ClosedError):
        asyncio.run(start())
    asyncio.run(service.aclose())


FORKED = """
    import asyncio, os, sys, warnings
    from aiotaskqueue import TaskQueueService, errors
    from aiotaskqueue.testing import RecordingDelivery

    def use(service):
        calls = [service.add, service.statistics, service.start, service.drain, service.aclose]
        for call in calls:
            try:
                asyncio.run(call())
            except errors.ForkedProcessError as exc:
                print(exc, flush=True)

    async def main():
        async with TaskQueueService(sys.argv[1], delivery=RecordingDelivery()) as service:
            # Python 3.12 and later warn of any fork beside threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
            if not pid:
                asyncio.events._set_running_loop(None)
                use(service)
                os._exit(0)
            os.waitpid(pid, 0)
            await service.add(url="/w")
            print(service.health().is_ok)

    asyncio.run(main())
"""


@pytest.mark.row(49)
@pytest.mark.slow
async def test_use_in_a_forked_child(path: Path) -> None:
    """RELIABILITY 49: a forked child is refused and told what to do, and the parent goes on."""
    child = run_script(FORKED, path)

    expected = "The service was started before a fork; start it in the child, not at import.\n" * 5 + "True\n"
    assert ("", expected) == (child.stderr, child.stdout)


@pytest.mark.row(49)
@pytest.mark.parametrize("use", [*USES.values(), *LIFE.values()], ids=[*USES, *LIFE])
async def test_use_in_another_process(monkeypatch: pytest.MonkeyPatch, use: Callable[[TaskQueueService], Awaitable[object]]) -> None:
    """RELIABILITY 49: every way to use a service is refused where the process is not the one that started it."""
    async with make() as service:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            with pytest.raises(ForkedProcessError):
                await use(service)

        assert service.health().is_ok


# --- drain ---------------------------------------------------------------------------------------------------------


async def test_drain_then_close(path: Path) -> None:
    """After a drain nothing is delivered, adds are kept, and the close is quick; a second drain does nothing."""
    delivery = RecordingDelivery()
    async with make(path, delivery) as service:
        await service.drain()
        await service.add(url="/w", name="later")
        await service.drain()
        await service.run_until_idle()

    assert [] == delivery.deliveries
    assert ["later"] == await stored_names(path)


@pytest.mark.parametrize("is_closed", [False, True])
async def test_drain_of_a_service_that_does_not_run(is_closed: bool) -> None:
    """Draining a service that was not started, or is closed, does nothing."""
    service = make()
    if is_closed:
        await service.aclose()
    await service.drain()

    assert ("The service is not running.",) == service.health().reasons


async def test_drain_without_deliveries(path: Path) -> None:
    """Draining a service that delivers nothing returns at once."""
    async with TaskQueueService(path, dispatch=False) as service:
        await service.drain()
        await service.add(url="/w")

        assert 1 == (await service.queue().fetch_statistics()).tasks


async def test_drain_gives_up(path: Path) -> None:
    """P20: what is in flight after the time of the drain is given up, kept, and was no execution."""
    handler = Waiting()
    async with make(path, RecordingDelivery(handler)) as service:
        await service.add(url="/w", name="slow")
        await handler.reached.wait()
        await service.drain(timeout_seconds=0.0)
    delivery = RecordingDelivery()
    async with make(path, delivery) as service:
        await service.run_until_idle()

    assert [("slow", 0)] == [(delivered.record.name, delivered.record.executions) for delivered in delivery.deliveries]


# --- health and descriptions ---------------------------------------------------------------------------------------


async def test_health_of_a_running_service() -> None:
    """A service that does all of its work is healthy."""
    async with make() as service:
        assert (True, ()) == (service.health().is_ok, service.health().reasons)


@pytest.mark.row(45)
async def test_no_target(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """RELIABILITY 45: without target and application tasks are kept, and a WARNING and health say so, and the fix."""
    expected = "There is no target: tasks are kept and not delivered; give TaskQueueService(target=...) or call init_app."
    async with TaskQueueService(path) as service:
        await service.add(url="/w", name="kept")
        await service.run_until_idle()

        assert (expected,) == service.health().reasons
        assert ["kept"] == [task.name for task in await service.get_filtered_tasks()]

    assert [("WARNING", expected)] == [(record.levelname, record.getMessage()) for record in caplog.records]


async def test_dispatch_false(path: Path) -> None:
    """T23: with ``dispatch=False`` a process adds and inspects, delivers nothing, and is healthy."""
    delivery = RecordingDelivery()
    async with make(path, delivery, dispatch=False, eager=True) as service:
        await service.add(url="/w", name="kept")
        await service.run_until_idle()

        assert service.health().is_ok
        assert ["kept"] == [task.name for task in await service.get_filtered_tasks()]

    assert [] == delivery.deliveries


@pytest.mark.row(103)
async def test_copy_of_a_production_file(tmp_path: Path) -> None:
    """T23: the copy of a file with due and leased tasks opens; with ``dispatch=False`` it shows them, and none of them runs."""
    path, delivery = tmp_path / "copy.db", RecordingDelivery()
    async with running(tmp_path / "production.db") as store:
        await add_leased(store, new_record("leased"))
        await store.add([new_record("due")], [QUEUE], now_usec=NOW)
        with raw(tmp_path / "production.db") as connection:
            connection.execute("VACUUM INTO ?", (str(path),))
        async with make(path, delivery, dispatch=False) as service:
            await asyncio.sleep(0.1)
            await service.run_until_idle()
            names = sorted(task.name or "" for task in await service.get_filtered_tasks())

    assert ["due", "leased"] == names
    assert [] == delivery.deliveries


async def test_only_named_targets(path: Path) -> None:
    """Where there are named targets and no default one, a task that names none is kept and tried again for ever."""
    async with TaskQueueService(path, targets={"mailer": "http://127.0.0.1:9"}) as service:
        await service.add(url="/w", name="homeless")
        await service.run_until_idle()
        (task,) = await service.get_filtered_tasks()

        assert ("homeless", 0) == (task.name, task.retry_count)


async def test_tasks_of_an_unknown_queue(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A queue that has tasks and is no longer configured is named by a WARNING and by health."""
    async with make(path, queues=[QueueConfig(name="old")], dispatch=False) as service:
        await service.add(queue_name="old", url="/w")
    async with make(path) as service:
        expected = "Queue 'old' has tasks but is not configured; they are kept and not delivered."

        assert (expected,) == service.health().reasons

    assert [("WARNING", expected)] == [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.slow
async def test_health_while_the_store_fails(path: Path, locked: Callable[[], sqlite3.Connection]) -> None:
    """Trouble of the store shows in health for as long as it lasts."""
    async with make(path) as service:
        moved = path.with_name("moved.db")
        path.rename(moved)
        with contextlib.suppress(Exception):
            await service.add(url="/w")
        service._notice_change()
        await asyncio.sleep(SOON_SECONDS)
        (reason,) = service.health().reasons
        moved.rename(path)

        assert "was deleted or replaced while it was open" in reason


async def test_description() -> None:
    """A service describes itself by its database."""
    assert "TaskQueueService(':memory:')" == make().description


# --- several services ----------------------------------------------------------------------------------------------


@pytest.mark.row(50)
async def test_two_services_on_one_file(path: Path) -> None:
    """RELIABILITY 50: two services may share a file; a task is delivered by one of them, once."""
    first, second = RecordingDelivery(), RecordingDelivery()
    async with make(path, first) as one, make(path, second) as other:
        for service in (one, other, one, other):
            await service.add(url="/w")
        await one.run_until_idle()
        await other.run_until_idle()

    assert 4 == len(first.deliveries) + len(second.deliveries)


async def test_closing_one_of_two(path: Path) -> None:
    """Of two services on one file one may be closed, and the other goes on."""
    delivery = RecordingDelivery()
    async with make(path, delivery) as service:
        async with make(path, dispatch=False) as other:
            await other.add(url="/w", name="handed-over")
        await service.run_until_idle()

        assert ["handed-over"] == [delivered.record.name for delivered in delivery.deliveries]


async def test_two_services_at_once(tmp_path: Path) -> None:
    """Several services with files of their own may run in one process; each has its own queues and tasks."""
    async with make(tmp_path / "a.db", queues=[QueueConfig(name="a")]) as one, make(tmp_path / "b.db") as other:
        await one.queue("a").add(Task(url="/w", name="x", countdown=60))
        await other.queue("default").add(Task(url="/w", name="x", countdown=60))

        assert [1, 1] == [len(await service.get_filtered_tasks()) for service in (one, other)]


async def test_module_add_uses_the_only_service() -> None:
    """The module's `add` goes to the only service that runs, with all arguments of Task."""
    async with make() as service:
        task = await add("payload", queue_name="default", url="/w", name="by-add", countdown=60)

        assert [("by-add", b"payload", "default")] == [
            (stored.name, stored.payload, task.queue_name) for stored in await service.get_filtered_tasks()
        ]


async def test_module_add_uses_the_current_service() -> None:
    """Inside of ``with service.current()`` the module's `add`, Task.add and Queue(...) mean that service."""
    async with make() as one, make() as other:
        with other.current():
            await add(url="/w", countdown=60)
            await Task(url="/w", countdown=60).add()
            await Queue().add(Task(url="/w", countdown=60))

        assert [0, 3] == [len(await service.get_filtered_tasks()) for service in (one, other)]


# --- eager ---------------------------------------------------------------------------------------------------------


async def test_eager_add_returns_after_the_attempt(path: Path) -> None:
    """SPEC 7.1: an eager add returns when the first attempt has ended and is recorded."""
    delivery = RecordingDelivery()
    async with make(path, delivery, eager=True) as service:
        await service.add(url="/w")

        assert 1 == len(delivery.deliveries)
        assert [] == await service.get_filtered_tasks()


async def test_eager_under_a_clock_that_stands_still() -> None:
    """An eager add runs its tasks also under a test clock that nobody advances."""
    delivery = RecordingDelivery()
    async with make(delivery=delivery, eager=True, clock=VirtualClock()) as service:
        await service.queue().add([Task(url="/1"), Task(url="/2")])

    assert ["/1", "/2"] == sorted(delivered.record.url for delivered in delivery.deliveries)


async def test_eager_failure_is_retried_later() -> None:
    """An eager task that fails is kept and retried on schedule, and the add raises nothing."""
    clock = VirtualClock()
    delivery = RecordingDelivery()
    delivery.answer_next(500)
    async with make(delivery=delivery, eager=True, clock=clock) as service:
        await service.add(url="/w")
        (task,) = await service.get_filtered_tasks()

        assert 1 == task.retry_count

        await clock.advance(1)

        assert [0, 1] == [delivered.record.retry_count for delivered in delivery.deliveries]
        assert [] == await service.get_filtered_tasks()


@pytest.mark.parametrize("queue", [QueueConfig(name="default"), QueueConfig(name="default", max_concurrent_requests=1)])
@pytest.mark.parametrize("places", [1, 64])
async def test_nested_eager_adds(queue: QueueConfig, places: int) -> None:
    """An eager add inside of a handler that holds the only place returns at once, and its task runs afterwards."""

    async def respond(record: TaskRecord) -> int:
        if record.url == "/outer":
            await service.add(url="/inner")
        return 200

    delivery = RecordingDelivery(respond)
    async with make(delivery=delivery, eager=True, queues=[queue], max_concurrent_deliveries=places) as service:
        async with asyncio.timeout(5):
            await service.add(url="/outer")
            await service.run_until_idle()

    assert ["/outer", "/inner"] == [delivered.record.url for delivered in delivery.deliveries]


async def test_eager_future_task() -> None:
    """An eager add of a task with a later ETA returns at once."""
    delivery = RecordingDelivery()
    async with make(delivery=delivery, eager=True) as service, asyncio.timeout(5):
        await service.add(url="/w", countdown=3600)

    assert [] == delivery.deliveries


async def test_eager_paused_rate() -> None:
    """An eager add to a queue whose rate is 0 returns at once, and the task is kept."""
    delivery = RecordingDelivery()
    queues = [QueueConfig(name="default", rate="0/s")]
    async with make(delivery=delivery, eager=True, queues=queues) as service, asyncio.timeout(5):
        await service.add(url="/w", name="kept")

        assert ["kept"] == [task.name for task in await service.get_filtered_tasks()]

    assert [] == delivery.deliveries


async def test_eager_pull_task() -> None:
    """An eager add of a pull task returns at once: nobody delivers it."""
    async with make(eager=True, queues=[QueueConfig(name="pull", mode="pull")]) as service, asyncio.timeout(5):
        task = await service.add("payload", queue_name="pull", method="PULL")

        assert [task.name] == [stored.name for stored in await service.get_filtered_tasks()]


# --- looking -------------------------------------------------------------------------------------------------------


async def test_run_until_idle_delivers_what_that_adds() -> None:
    """`run_until_idle` delivers what is due and what that adds, and leaves later tasks; the time does not move."""
    clock = VirtualClock()

    async def respond(record: TaskRecord) -> int:
        if len(delivery.deliveries) < 3:
            await service.add(url="/more")
        return 200

    delivery = RecordingDelivery(respond)
    async with make(delivery=delivery, clock=clock) as service:
        before = clock.now
        await service.add(url="/first")
        await service.add(url="/later", countdown=1)

        assert [] == delivery.deliveries

        await service.run_until_idle()

        assert ["/first", "/more", "/more"] == [delivered.record.url for delivered in delivery.deliveries]
        assert before == clock.now


async def test_get_filtered_tasks() -> None:
    """SPEC 7.1: tasks are found by exact URL, name and queues, and come by queue name, ETA and name."""
    queues = [QueueConfig(name="mail"), QueueConfig(name="pull", mode="pull"), QueueConfig(name="default")]
    async with make(queues=queues, dispatch=False) as service:
        await service.add(queue_name="mail", method="GET", url="/w?a=1", name="m2", countdown=20)
        await service.add(queue_name="mail", url="/w", name="m1", countdown=10)
        await service.add(url="/w", name="m1")
        await service.add("x", queue_name="pull", method="PULL", tag="t", name="p")

        async def names(**filters: object) -> list[str | None]:
            tasks = await service.get_filtered_tasks(**filters)  # type: ignore[arg-type]
            return [task.name for task in tasks]

        assert ["m1", "m1", "m2", "p"] == await names()
        assert ["m2"] == await names(url="/w?a=1")
        assert ["m1", "m1"] == await names(url="/w")
        assert ["m1", "m1"] == await names(name="m1")
        assert ["m1", "m2"] == await names(queue_names="mail")
        assert ["m1", "p"] == await names(queue_names=["pull", "default", "unknown"])
        assert [] == await names(queue_names=[])
        assert [("PULL", "t")] == [(task.method, task.tag) for task in await service.get_filtered_tasks(queue_names="pull")]


@pytest.mark.slow
async def test_get_filtered_tasks_of_many() -> None:
    """All tasks of a queue are found, however many there are."""
    async with make(dispatch=False) as service:
        tasks = [Task(url="/w", name=f"n{number:04}") for number in range(2500)]
        await service.queue().add(tasks)

        assert [task.name for task in tasks] == [task.name for task in await service.get_filtered_tasks()]


# --- targets -------------------------------------------------------------------------------------------------------


async def test_target_of_the_queue_wins() -> None:
    """SPEC 4.2: a task goes to the target of its queue, else to its own, else to the default one."""
    reached: list[tuple[str, str]] = []

    def make_app(name: str) -> web.Application:
        async def handle(request: web.Request) -> web.Response:
            reached.append((name, request.path))
            return web.Response()

        app = web.Application()
        app.router.add_post("/{path}", handle)
        return app

    queues = [QueueConfig(name="default"), QueueConfig(name="mail", target="a")]
    targets = {"a": make_app("a"), "b": make_app("b")}
    async with TaskQueueService(":memory:", queues=queues, target=make_app("default"), targets=targets) as service:
        await service.add(url="/1")
        await service.add(url="/2", target="b")
        await service.add(url="/3", target="b", queue_name="mail")
        await service.run_until_idle()

    assert [("default", "/1"), ("b", "/2"), ("a", "/3")] == sorted(reached, key=lambda pair: pair[1])


async def test_target_that_starts_the_service() -> None:
    """An application that is the target and starts the service would wait for itself: an error says what to do instead."""
    app = web.Application()
    service = TaskQueueService(":memory:", target=app)

    async def start(app: web.Application) -> None:
        await service.start()

    app.on_startup.append(start)
    with pytest.raises(ConfigError, match=r"call init_app\(app, service\) without a target"):
        async with asyncio.timeout(5):
            await service.start()


async def test_locked_store_is_an_error_of_the_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that fails because of somebody else's lock raises the store's error and leaves nothing."""
    threads = set(threading.enumerate())

    class Locked(SQLiteStore):
        async def open(self, *, now_usec: int) -> None:
            await super().open(now_usec=now_usec)
            raise StoreBusyError("Locked.")

    service = make(store=Locked(str(path)))
    with pytest.raises(StoreBusyError):
        await service.start()

    assert [] == left_behind(path, threads)


# --- what it says --------------------------------------------------------------------------------------------------


async def test_start_and_close_log_no_warnings(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A service that starts and closes as it should has nothing to warn of."""
    caplog.set_level(logging.DEBUG, "aiotaskqueue")
    async with make(path):
        await asyncio.sleep(0)

    assert [] == [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_clock_and_file_mode(path: Path) -> None:
    """A service shows its clock, and makes its database readable by its owner only."""
    clock = VirtualClock()
    async with make(path, clock=clock) as service:
        assert clock is service.clock

    assert 0o600 == os.stat(path).st_mode & 0o777
