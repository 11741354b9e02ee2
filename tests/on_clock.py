"""Services on a clock that stands still, with a recording delivery and a store that can be held up or fail."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from aiotaskqueue import QueueConfig, TaskQueueService
from aiotaskqueue._dispatcher import Dispatcher
from aiotaskqueue._record import AttemptRecord, TaskRecord, TaskState
from aiotaskqueue.stores._base import AddVerdict, Exchange, LeaseRequest, Settlement
from aiotaskqueue.stores.sqlite import SQLiteStore
from aiotaskqueue.testing import RecordingDelivery, VirtualClock

# Jitter has its own tests; here every moment is exact.
EXACT = QueueConfig("default", jitter=0)

MANY_TURNS = 60


class Hold:
    """Stops whoever comes by, until it is let go."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.let_go = asyncio.Event()

    async def __call__(self, record: TaskRecord | None = None) -> int:
        """Wait; as a handler, then answer 200."""
        self.reached.set()
        await self.let_go.wait()
        return 200


class TouchyStore(SQLiteStore):
    """A store whose exchanges and adds can fail before they are made, or be held up on their way back."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(str(path), durability="normal")
        self.errors: deque[BaseException] = deque()
        self.late_errors: deque[BaseException] = deque()
        """Raised by exchanges that were made."""
        self.exchange_hold: Hold | None = None
        self.add_holds: deque[Hold] = deque()
        self.exchanges: list[tuple[int, bool]] = []
        """Of each exchange: how many outcomes it brought, and whether it asked for a lease."""

    async def exchange(self, settlements: Sequence[Settlement], request: LeaseRequest | None, *, now_usec: int) -> Exchange:
        """Fail, exchange, wait: as told."""
        self.exchanges.append((len(settlements), request is not None))
        if self.errors:
            raise self.errors.popleft()
        exchange = await super().exchange(settlements, request, now_usec=now_usec)
        if self.late_errors:
            raise self.late_errors.popleft()
        if self.exchange_hold is not None:
            await self.exchange_hold()
        return exchange

    async def add(self, records: Sequence[TaskRecord], configs: Sequence[QueueConfig], **around: Any) -> Sequence[AddVerdict]:
        """Wait, then add."""
        if self.add_holds:
            await self.add_holds.popleft()()
        return await super().add(records, configs, **around)


@attrs.frozen(eq=False)
class Bench:
    """A running service and what it stands on."""

    service: TaskQueueService
    clock: VirtualClock
    delivery: RecordingDelivery
    store: TouchyStore
    start: datetime

    @property
    def dispatcher(self) -> Dispatcher:
        """The service's dispatcher."""
        assert self.service._dispatcher is not None
        return self.service._dispatcher

    @property
    def seconds(self) -> list[float]:
        """When the attempts began, in seconds since the start."""
        return [(delivered.at - self.start).total_seconds() for delivered in self.delivery.deliveries]

    @property
    def gaps(self) -> list[float]:
        """How many seconds lie between the attempts."""
        return [round(after - before, 6) for before, after in itertools.pairwise(self.seconds)]

    @property
    def names(self) -> list[str]:
        """The tasks of the attempts, in order."""
        return [delivered.record.name for delivered in self.delivery.deliveries]

    @property
    def records(self) -> list[TaskRecord]:
        """The records of the attempts, in order."""
        return [delivered.record for delivered in self.delivery.deliveries]

    @property
    def places_taken(self) -> int:
        """How many places are not free."""
        return self.dispatcher._places - self.dispatcher._free_places

    async def get(self, name: str, queue_name: str = "default") -> TaskRecord:
        """Return a task as it is stored."""
        record = await self.store.get_task(queue_name, name)
        assert record is not None
        return record

    async def attempts(self, name: str) -> Sequence[AttemptRecord]:
        """Return a task's log."""
        return await self.store.list_attempts(await self.get(name))

    async def stored(self, *states: TaskState, queue_name: str = "default") -> list[str]:
        """Return the names of the tasks in these states, of all if none is given."""
        return [record.name for record in await self.store.list_tasks(queue_name, states=states or tuple(TaskState))]


@contextlib.asynccontextmanager
async def serving(
    path: Path,
    *queues: QueueConfig,
    respond: Callable[[TaskRecord], Any] | None = None,
    delivery: RecordingDelivery | None = None,
    clock: VirtualClock | None = None,
    close_seconds: float = 10.0,
    **arguments: Any,
) -> AsyncIterator[Bench]:
    """Run a service on a database in that folder."""
    clock = clock or VirtualClock()
    delivery = delivery or RecordingDelivery(respond)
    store = TouchyStore(path / "tasks.db")
    service = TaskQueueService(queues=queues or [EXACT], clock=clock, delivery=delivery, store=store, **arguments)
    await service.start()
    try:
        yield Bench(service, clock, delivery, store, clock.now)
    finally:
        await service.aclose(timeout_seconds=close_seconds)


@contextlib.asynccontextmanager
async def spawned(function: Callable[[], Awaitable[object]]) -> AsyncIterator[asyncio.Task[object]]:
    """Run a function in a task of its own, which has got where it waits; after the block wait for its end."""

    async def call() -> object:
        return await function()

    task = asyncio.create_task(call())
    await turns()
    try:
        yield task
    finally:
        await asyncio.wait({task})


async def turns(count: int = MANY_TURNS) -> None:
    """Let the loop run, without any time passing."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds, which takes as long as a database thread does."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.0005)


def utc(*numbers: int) -> datetime:
    """Return a moment in UTC."""
    return datetime(*numbers, tzinfo=UTC)  # type: ignore[arg-type,misc]
