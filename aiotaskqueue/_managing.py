"""Managing what is stored already: what the methods of Queue do in a service. Each call is one transaction, unless it says more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from aiotaskqueue._adding import find_queue
from aiotaskqueue._clock import Clock
from aiotaskqueue._config import QueueConfig
from aiotaskqueue._task import Task
from aiotaskqueue.stores._base import Store

# Tasks deleted in one transaction, so that others who want the store's lock get it in time (RELIABILITY S16).
DELETE_SLICE = 1000


class Managing:
    """What a service does for its queues besides adding.

    Args:
        store: Where the tasks are.
        clock: Tells the time.
        queues: All configured queues by name.
        on_change: Called when a dispatcher should look again.
    """

    def __init__(self, *, store: Store, clock: Clock, queues: Mapping[str, QueueConfig], on_change: Callable[[], None]) -> None:
        self._store = store
        self._clock = clock
        self._queues = queues
        self._on_change = on_change

    async def delete(self, queue_name: str, tasks: Sequence[Task]) -> None:
        """Delete tasks by their names, a thousand in a transaction, and mark those that were there."""
        config = find_queue(self._queues, queue_name)
        with self._clock.activity():
            for start in range(0, len(tasks), DELETE_SLICE):
                some = tasks[start : start + DELETE_SLICE]
                names = [task.name or "" for task in some]
                for task, was_there in zip(some, await self._store.delete_tasks(config, names, now_usec=self._now_usec()), strict=True):
                    if was_there:
                        task._mark_deleted()
        # A place has become free, or a suspect that held others up is gone.
        self._on_change()

    def _now_usec(self) -> int:
        return self._clock.time_usec()
