"""Checked by mypy, never run: adding one task gives a task, adding several gives a list."""

from __future__ import annotations

from typing import assert_type

from aiotaskqueue import Queue, QueueStatistics, Task, TaskQueueService, add


async def add_them(service: TaskQueueService, queue: Queue) -> None:
    """Add in each of the ways there are."""
    assert_type(service.queue("default"), Queue)
    assert_type(await add(url="/worker", params={"key": "apples", "times": 2, "tags": ["red", "green"]}), Task)
    assert_type(await service.add("payload", queue_name="default"), Task)
    assert_type(await Task(url="/worker").add("default"), Task)
    assert_type(await queue.add(Task(url="/worker")), Task)
    assert_type(await queue.add([Task(url="/worker")]), list[Task])
    assert_type(await queue.add(Task(url=url) for url in ("/a", "/b")), list[Task])


async def look_at_them(queue: Queue) -> None:
    """Ask for figures."""
    assert_type(await queue.fetch_statistics(), QueueStatistics)
    assert_type(await QueueStatistics.fetch("default"), QueueStatistics)
    assert_type(await QueueStatistics.fetch(["default", "mail"]), list[QueueStatistics])


def misuse_them(queue: Queue) -> None:
    """Be told by the type checker before the test does."""
    Task(url=1)  # type: ignore[arg-type]  # a URL is text
    Task(parmas={})  # type: ignore[call-arg]  # no such argument
    queue.add("not a task")  # type: ignore[arg-type, unused-coroutine]  # neither a task nor several
