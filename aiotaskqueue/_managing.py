"""Managing what is stored already: what the methods of Queue do in a service. Each call is one transaction, unless it says more."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

import attrs
from yarl import URL

from aiotaskqueue._adding import find_queue
from aiotaskqueue._clock import Clock
from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import StoredTask, TaskRecord, TaskState, record_of, stored_task_of, task_of
from aiotaskqueue._task import Task
from aiotaskqueue._task_arguments import check_name, shorten
from aiotaskqueue.errors import BadTaskStateError, DuplicateTaskNameError, InvalidQueueModeError, InvalidTaskNameError, UnknownTaskError
from aiotaskqueue.stores._base import Store, TaskFilter

# Tasks deleted in one transaction, so that others who want the store's lock get it in time (RELIABILITY S16).
DELETE_SLICE = 1000

LIVE = (TaskState.READY, TaskState.LEASED, TaskState.SUSPECT)

# Tasks read at once by a list: what is held in memory, and how long others wait for the reading thread.
PAGE = 500


class Managing:
    """What a service does for its queues besides adding.

    A call that is cancelled may have happened all the same, and nobody else knows: so the dispatcher is told in any case. Its
    next look at the store comes after what the call has submitted.

    Args:
        store: Where the tasks are.
        clock: Tells the time.
        queues: All configured queues by name.
        on_change: Called when a dispatcher should look again.
        on_forced: Called when it should do so though it has no place or is paused.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        queues: Mapping[str, QueueConfig],
        on_change: Callable[[], None],
        on_forced: Callable[[], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._queues = queues
        self._on_change = on_change
        self._on_forced = on_forced

    async def delete(self, queue_name: str, tasks: Sequence[Task]) -> None:
        """Delete tasks by their names, a thousand in a transaction, and mark those that were there."""
        config = find_queue(self._queues, queue_name)
        # A place becomes free, or a suspect goes that held others up.
        with self._clock.activity(), _at_the_end(self._on_change):
            for start in range(0, len(tasks), DELETE_SLICE):
                some = tasks[start : start + DELETE_SLICE]
                names = [task.name or "" for task in some]
                for task, was_there in zip(some, await self._store.delete_tasks(config, names, now_usec=self._now_usec()), strict=True):
                    if was_there:
                        task._mark_deleted()

    async def purge(self, queue_name: str) -> None:
        """Delete all tasks of a queue."""
        config = find_queue(self._queues, queue_name)
        with self._clock.activity(), _at_the_end(self._on_change):
            await self._store.purge(config, now_usec=self._now_usec())

    async def set_paused(self, queue_name: str, is_paused: bool) -> None:
        """Pause a queue, or let it go on."""
        config = find_queue(self._queues, queue_name)
        with self._clock.activity(), _at_the_end(self._on_change):
            await self._store.set_paused(config, is_paused)

    async def run(self, queue_name: str, name: str) -> None:
        """Let a task run now."""
        config = find_queue(self._queues, queue_name)
        if config.mode == "pull":
            raise InvalidQueueModeError(f"Queue {queue_name!r} is a pull queue; its tasks are leased by consumers and cannot be run.")
        with self._clock.activity(), _at_the_end(self._on_forced):
            found = await self._store.force(config, name) if _may_exist(name) else None
        if found is None:
            raise _unknown(queue_name, name)
        if found is TaskState.DEAD:
            raise BadTaskStateError(f"Task {shorten(name)} of queue {queue_name!r} is dead; revive it instead.")

    async def revive(self, queue_name: str, names: Sequence[str], payload: str | bytes | None, url: str | URL | None) -> None:
        """Give dead tasks another chance, all or none."""
        config = find_queue(self._queues, queue_name)
        for name in names:
            if not _may_exist(name):
                raise _unknown(queue_name, name)
        if len(set(names)) < len(names):
            raise DuplicateTaskNameError("A task name appears twice in one revive.")
        with self._clock.activity(), _at_the_end(self._on_change):
            edited = [] if payload is None and url is None else [await self._edited(config, name, payload, url) for name in names]
            refused = await self._store.revive(config, names, edited, now_usec=self._now_usec())
        for name in refused:
            if await self._store.get_task(queue_name, name) is None:
                raise _unknown(queue_name, name)
            raise BadTaskStateError(f"Task {shorten(name)} of queue {queue_name!r} is not dead; nothing was revived.")

    async def _edited(self, config: QueueConfig, name: str, payload: str | bytes | None, url: str | URL | None) -> TaskRecord:
        """Return the record with its new content, which has to be that of a valid task."""
        record = await self._store.get_task(config.name, name)
        if record is None:
            raise _unknown(config.name, name)
        old = task_of(record)
        task = Task(
            old.payload if payload is None else payload,
            name=name,
            method=old.method,
            url=old.url if url is None else url,
            headers={header: old.headers.getall(header) for header in old.headers},
            target=old.target,
            tag=old.tag,
        )
        new = record_of(task, queue_name=config.name, name=name, uuid=record.uuid, now_usec=record.created_usec)
        return attrs.evolve(record, url=new.url, headers=new.headers, payload=new.payload)

    async def get(self, queue_name: str, name: str) -> StoredTask:
        """Return one task with its log."""
        find_queue(self._queues, queue_name)
        record = await self._store.get_task(queue_name, name) if _may_exist(name) else None
        if record is None:
            raise _unknown(queue_name, name)
        return stored_task_of(record, await self._store.list_attempts(record))

    def list_tasks(
        self, queue_name: str, state: TaskState | None, such: TaskFilter, after: tuple[int, str] | None, limit: int | None
    ) -> AsyncIterator[StoredTask]:
        """Yield tasks by ETA and name."""
        find_queue(self._queues, queue_name)
        return self._list_tasks(queue_name, tuple(TaskState) if state is None else (state,), such, after, limit)

    async def _list_tasks(
        self, queue_name: str, states: Sequence[TaskState], such: TaskFilter, after: tuple[int, str] | None, limit: int | None
    ) -> AsyncIterator[StoredTask]:
        left = sys.maxsize if limit is None else limit
        while left > 0:
            wanted = min(left, PAGE)
            page = [
                stored_task_of(record)
                for record in await self._store.list_tasks(queue_name, states=states, such=such, after=after, limit=wanted)
            ]
            for stored in page:
                yield stored
            if len(page) < wanted:
                return
            after = page[-1].cursor
            left -= len(page)

    async def list_live(self, queue_name: str) -> list[Task]:
        """Return the tasks that wait or run, by ETA and name."""
        tasks: list[Task] = []
        after: tuple[int, str] | None = None
        while page := await self._store.list_tasks(queue_name, states=LIVE, after=after):
            tasks += map(task_of, page)
            after = page[-1].eta_usec, page[-1].name
        return tasks

    def _now_usec(self) -> int:
        return self._clock.time_usec()


@contextlib.contextmanager
def _at_the_end(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` when the block ends, in whatever way."""
    try:
        yield
    finally:
        tell()


def _unknown(queue_name: str, name: str) -> UnknownTaskError:
    return UnknownTaskError(f"Queue {queue_name!r} has no task named {shorten(name)}.")


def _may_exist(name: object) -> bool:
    """Whether a task can be called so; what cannot be a name is an unknown one (RELIABILITY 127)."""
    try:
        return check_name(name) is not None
    except InvalidTaskNameError:
        return False
