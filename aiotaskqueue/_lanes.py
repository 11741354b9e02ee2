"""Lanes: tasks of asyncio's that make one attempt after the other, so that an attempt does not cost the making of a task."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager

import anyio
import anyio.abc
import attrs

from aiotaskqueue._clock import Clock
from aiotaskqueue._record import TaskRecord

# A leased task, and its count as live work, which begins when it is handed over and not when its lane gets to it.
_Job = tuple[TaskRecord, AbstractContextManager[None]]


@attrs.define(eq=False)
class _Lane:
    """One lane: its task, and the future on which it waits for the next job."""

    task: asyncio.Task[None]
    next: asyncio.Future[_Job] | None = None


class Lanes:
    """The lanes of one dispatcher; there are as many as attempts were ever made at once.

    Args:
        attempt: Makes an attempt; it does not raise, but when the lanes are ended.
        clock: Told of the live work.
    """

    def __init__(self, attempt: Callable[[TaskRecord], Awaitable[None]], clock: Clock) -> None:
        self._attempt = attempt
        self._clock = clock
        self._busy: set[_Lane] = set()
        self._idle: list[_Lane] = []
        self._group: anyio.abc.TaskGroup | None = None

    @property
    def is_open(self) -> bool:
        """Whether tasks can be started."""
        return self._group is not None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Let tasks be started while the block runs; then end all lanes, whatever they are doing."""
        async with anyio.create_task_group() as group:
            self._group = group
            try:
                yield
            finally:
                self._group = None
                group.cancel_scope.cancel()

    def start(self, record: TaskRecord) -> None:
        """Give a leased task to a lane, a sleeping one if there is any."""
        job = record, self._clock.activity()
        if self._idle:
            lane = self._idle.pop()
            assert lane.next is not None
            lane.next.set_result(job)
        else:
            assert self._group is not None
            self._group.start_soon(self._run, job)

    def cut(self) -> None:
        """Cancel the attempts that are being made; the lanes go on."""
        for lane in self._busy:
            lane.task.cancel()

    async def _run(self, job: _Job) -> None:
        task = asyncio.current_task()
        assert task is not None
        lane, loop = _Lane(task), asyncio.get_running_loop()
        while True:
            record, activity = job
            self._busy.add(lane)
            try:
                with activity:
                    await self._attempt(record)
            finally:
                self._busy.discard(lane)
            lane.next = loop.create_future()
            self._idle.append(lane)
            job = await lane.next
