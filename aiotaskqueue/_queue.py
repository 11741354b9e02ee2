"""Queue and QueueStatistics: what users call. A Queue is a name and a service; it holds nothing else."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, overload

import attrs
from yarl import URL

from aiotaskqueue._config import check_queue_name
from aiotaskqueue._current import RunningService, current_service
from aiotaskqueue._record import StoredTask, TaskState
from aiotaskqueue._task import Task
from aiotaskqueue._task_arguments import shorten
from aiotaskqueue.errors import BadTaskStateError, DuplicateTaskNameError, InvalidArgumentError
from aiotaskqueue.stores._base import TaskFilter

if TYPE_CHECKING:
    from aiotaskqueue.stores._base import StoredStatistics

MAX_TASKS_PER_ADD = 10_000
"""Tasks in one add. App Engine allows 100."""


class Queue:
    """A queue, by its name.

    Making one costs nothing and checks nothing but the name: whether the queue is configured shows when it is used. It
    denotes the queue of that name of the current service, that of ``service.queue(name)`` the one of that service. Two
    objects of one name are equal.

    Args:
        name: 1 to 100 letters, digits and hyphens.

    Raises:
        InvalidQueueNameError: The name is anything else.

    Example:
        >>> Queue("mail")
        Queue<name='mail'>

    Source: GAE ``taskqueue.Queue``.
    """

    __slots__ = ("_name", "_service")

    def __init__(self, name: str = "default") -> None:
        self._name = check_queue_name(name)
        self._service: RunningService | None = None

    @classmethod
    def _of(cls, service: RunningService, name: str) -> Queue:
        queue = cls(name)
        queue._service = service
        return queue

    @property
    def name(self) -> str:
        """The name."""
        return self._name

    @overload
    async def add(self, task: Task, transactional: bool = False) -> Task: ...
    @overload
    async def add(self, task: Iterable[Task] | None, transactional: bool = False) -> list[Task]: ...
    async def add(self, task: Task | Iterable[Task] | None, transactional: bool = False) -> Task | list[Task]:
        """Add one task or several; when this returns they are stored.

        Several are stored in one transaction. If one of them is wrong, none is stored. If the name of one is taken, the
        others are stored all the same and the error is raised afterwards: look at each task's ``was_enqueued``.

        A task that is due may run before this returns. Delivery is at least once. When this is cancelled the tasks were
        stored or were not, all of them; unless ``was_enqueued`` says that they were (an eager add waits longer), the objects
        can be added again, which may store them twice unless they have names.

        Args:
            task: A task, or an iterable of at most 10,000; nothing ([] or None) adds nothing.
            transactional: Make it part of the transaction that is open.

        Returns:
            What was given: the task, or a list of the tasks, now with name, queue name and ETA.

        Raises:
            TypeError: Something is not a Task.
            InvalidTaskError: Push and pull tasks are mixed.
            TooManyTasksError: They are more than 10,000.
            DuplicateTaskNameError: Two of them have one name.
            BadTaskStateError: One was added before, is being added at the moment, or is given twice.
            UnknownQueueError: The queue is not configured.
            InvalidQueueModeError: Pull tasks for a push queue, or the reverse.
            UnknownTargetError: A task's target is not configured.
            TaskAlreadyExistsError: A name is that of a task in the queue; the other tasks were stored.
            TombstonedTaskError: A name was used before; the other tasks were stored.
            StoreError: The store cannot do it; nothing was stored (OutcomeUnknownError: maybe it was).
            NotStartedError, ClosedError: The service is not running.

        Source: GAE ``taskqueue.Queue.add``; SPEC 3.4.
        """
        if isinstance(task, Task):
            await self._the_service().add_tasks(self._name, [task], transactional)
            return task
        # One more than may be: a generator need not come to an end.
        tasks = _as_tasks(task, "added", MAX_TASKS_PER_ADD + 1)
        if tasks:
            await self._the_service().add_tasks(self._name, tasks, transactional)
        return tasks

    @overload
    async def delete_tasks(self, task: Task) -> Task: ...
    @overload
    async def delete_tasks(self, task: Iterable[Task] | None) -> list[Task]: ...
    async def delete_tasks(self, task: Task | Iterable[Task] | None) -> Task | list[Task]:
        """Delete one task or several; only their names matter. Look at each task's ``was_deleted`` afterwards.

        Works for tasks of any state. One that is running is not interrupted: its handler goes on, and whatever it answers
        is dropped. A name that you gave stays reserved, as after a success. A thousand tasks are one transaction; when
        this is cancelled they were deleted or were not, whatever ``was_deleted`` says.

        Args:
            task: A task, or an iterable of tasks; nothing ([] or None) deletes nothing.

        Returns:
            What was given: the task, or a list of the tasks. ``was_deleted`` is True for those that were there, and False
            for those that are unknown or were gone before, which is no error.

        Raises:
            TypeError: Something is not a Task.
            BadTaskStateError: One has no name, or was deleted by an earlier call.
            DuplicateTaskNameError: Two of them have one name.
            UnknownQueueError: The queue is not configured.
            StoreError: The store cannot do it.
            NotStartedError, ClosedError: The service is not running.

        Source: GAE ``taskqueue.Queue.delete_tasks``; SPEC 3.7.
        """
        tasks = [task] if isinstance(task, Task) else _as_tasks(task, "deleted")
        _check_deletable(tasks)
        if tasks:
            await self._the_service().managing.delete(self._name, tasks)
        return task if isinstance(task, Task) else tasks

    @overload
    async def delete_tasks_by_name(self, task_name: str) -> Task: ...  # type: ignore[overload-overlap] # a str is one name
    @overload
    async def delete_tasks_by_name(self, task_name: Iterable[str] | None) -> list[Task]: ...
    async def delete_tasks_by_name(self, task_name: str | Iterable[str] | None) -> Task | list[Task]:
        """Delete one task or several by name; see `delete_tasks`.

        Args:
            task_name: A name, or an iterable of names; nothing ([] or None) deletes nothing.

        Returns:
            A new Task of that name, or a list of such, with ``was_deleted`` set.

        Raises:
            InvalidTaskNameError: No task can be called so.
            Error: Whatever `delete_tasks` raises.

        Source: GAE ``taskqueue.Queue.delete_tasks_by_name``; SPEC 3.7.
        """
        if isinstance(task_name, str):
            return await self.delete_tasks(Task(name=task_name))
        return await self.delete_tasks([Task(name=name) for name in _as_names(task_name)])

    async def purge(self) -> None:
        """Delete all tasks of the queue, dead ones as well, at once and for good.

        It is one transaction: every task that was added before is gone when this returns, and tasks can be added at once.
        Tasks that are running are not interrupted; whatever their handlers answer is dropped. Names that you gave stay
        reserved. A queue of a million tasks takes some seconds, in which others who add wait.

        Raises:
            UnknownQueueError: The queue is not configured.
            StoreError: The store cannot do it; nothing was deleted (OutcomeUnknownError: maybe it was).
            NotStartedError, ClosedError: The service is not running.

        Source: GAE ``taskqueue.Queue.purge``; SPEC 3.8.
        """
        await self._the_service().managing.purge(self._name)

    async def pause(self) -> None:
        """Start no more tasks of the queue, in any process, until `resume`; also over restarts. Twice is fine.

        From the moment this returns nothing is leased from the queue. What is running finishes, retries wait, and tasks can
        be added.

        Raises:
            UnknownQueueError: The queue is not configured.
            StoreError: The store cannot do it.
            NotStartedError, ClosedError: The service is not running.
        """
        await self._the_service().managing.set_paused(self._name, True)

    async def resume(self) -> None:
        """Start the queue's tasks again; of a queue that is not paused it is fine.

        This process goes on at once, others as soon as they notice: within 50 ms for those on the same file.

        Raises:
            UnknownQueueError: The queue is not configured.
            StoreError: The store cannot do it.
            NotStartedError, ClosedError: The service is not running.
        """
        await self._the_service().managing.set_paused(self._name, False)

    async def run_task(self, name: str) -> None:
        """Let a waiting task run now: ETA, pause, rate and limits of concurrency are ignored.

        It is the same task, with its retry count; its ETA becomes 0, as handlers see in ``X-AppEngine-TaskETA``. This returns
        when that is stored; the attempt follows as soon as a process that delivers sees it: this one at once, paused or not,
        another one with its next look. A task that is running already is left alone, and is not run once more. If the attempt
        fails it is retried like any other.

        Args:
            name: Exactly its name.

        Raises:
            UnknownTaskError: There is no such task, or none any more.
            BadTaskStateError: It is dead.
            InvalidQueueModeError: The queue is a pull queue.
            UnknownQueueError: The queue is not configured.
            StoreError: The store cannot do it.
            NotStartedError, ClosedError: The service is not running.

        Source: SPEC 7.2.
        """
        await self._the_service().managing.run(self._name, name)

    async def revive(self, name: str | Iterable[str], *, payload: str | bytes | None = None, url: str | URL | None = None) -> None:
        """Give dead tasks another chance: the same tasks, due now, their counts and their age from zero.

        Name, uuid and the log of attempts stay. It is one transaction: if one of them cannot be revived, none is.

        Args:
            name: Exactly the name of a task, or an iterable of names.
            payload: What they get as payload instead of their own. None: they keep it.
            url: What they get as URL. None: they keep it; empty: the queue's default one.

        Raises:
            UnknownTaskError: There is no such task, or none any more.
            BadTaskStateError: A task is not dead.
            DuplicateTaskNameError: A name is given twice.
            InvalidTaskError: Payload or URL are none for a task of its method, or too large; the subclasses as for Task.
            UnknownQueueError: The queue is not configured.
            StoreError: The store cannot do it; nothing was revived.
            NotStartedError, ClosedError: The service is not running.

        Source: SPEC 2.4.
        """
        names = [name] if isinstance(name, str) else _as_names(name)
        await self._the_service().managing.revive(self._name, names, payload, url)

    async def get_task(self, name: str) -> StoredTask:
        """Return a task of any state, with the log of its last failed attempts.

        Args:
            name: Exactly its name.

        Raises:
            UnknownTaskError: There is no such task, or none any more.
            UnknownQueueError: The queue is not configured.
            StoreError: The store cannot do it.
            NotStartedError, ClosedError: The service is not running.
        """
        return await self._the_service().managing.get(self._name, name)

    def list_tasks(
        self,
        *,
        state: TaskState | None = None,
        url: str | None = None,
        tag: str | None = None,
        name_prefix: str | None = None,
        after: tuple[int, str] | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[StoredTask]:
        """Yield the queue's tasks by ETA and name: ``async for stored in queue.list_tasks(): ...``.

        They are read page by page, so the list may be of any length and tasks may be deleted on the way. Each page shows
        one moment: a task whose ETA changes meanwhile may be missed, or come twice.

        Args:
            state: Only tasks of this state. None: of any, dead ones as well.
            url: Only tasks of exactly this URL, query included. This and `tag` look at each task of the queue.
            tag: Only pull tasks of this tag.
            name_prefix: Only tasks whose names begin so.
            after: Only what follows this place, the `cursor` of a task seen before.
            limit: At most so many.

        Raises:
            TypeError: An argument is of another type.
            InvalidArgumentError: The limit is negative, the cursor is none, or a text cannot be stored.
            UnknownQueueError: The queue is not configured.
            StoreError: The store cannot do it; raised on the way.
            NotStartedError, ClosedError: The service is not running.
        """
        such = TaskFilter(url=_check_text("url", url), tag=_check_text("tag", tag), name_prefix=_check_text("name_prefix", name_prefix))
        if state is not None and not isinstance(state, TaskState):
            raise TypeError(f"state is {shorten(state)}; give a TaskState or None.")
        return self._the_service().managing.list_tasks(self._name, state, such, _check_after(after), _check_limit(limit))

    def dead_tasks(
        self,
        *,
        url: str | None = None,
        tag: str | None = None,
        name_prefix: str | None = None,
        after: tuple[int, str] | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[StoredTask]:
        """Yield the tasks that were given up, by ETA and name; see `list_tasks`."""
        return self.list_tasks(state=TaskState.DEAD, url=url, tag=tag, name_prefix=name_prefix, after=after, limit=limit)

    async def fetch_statistics(self) -> QueueStatistics:
        """Return the queue's figures as they are now.

        Raises:
            NotStartedError, ClosedError: The service is not running.
        """
        (statistics,) = await _fetch([self])
        return statistics

    def _the_service(self) -> RunningService:
        return self._service if self._service is not None else current_service()

    def __eq__(self, other: object) -> bool:
        return self._name == other._name if isinstance(other, Queue) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._name)

    def __repr__(self) -> str:
        return f"Queue<name={self._name!r}>"


@attrs.frozen
class QueueStatistics:
    """Figures of one queue at one moment.

    Source: GAE ``taskqueue.QueueStatistics``.
    """

    queue: Queue
    tasks: int
    """Tasks in the queue: waiting, leased and future ones; not dead ones."""
    oldest_eta_usec: int | None = None
    """ETA of the task that waits longest, microseconds since 1970; None when none is due."""
    executed_last_minute: int | None = None
    """Attempts that were started in the last 60 seconds, by all processes, to the second; None: not known."""
    in_flight: int | None = None
    """Attempts that run now, over all processes."""
    enforced_rate: float | None = None
    """Attempts per second that are allowed, 0.0 while the queue is paused; None: no limit."""
    is_paused: bool = False
    """Whether `Queue.pause` has stopped the queue."""

    @overload
    @classmethod
    async def fetch(cls, queue_or_queues: Queue | str) -> QueueStatistics: ...
    @overload
    @classmethod
    async def fetch(cls, queue_or_queues: Iterable[Queue] | list[str] | tuple[str, ...] | None) -> list[QueueStatistics]: ...
    @classmethod
    async def fetch(cls, queue_or_queues: Queue | str | Iterable[Queue] | Iterable[str] | None) -> QueueStatistics | list[QueueStatistics]:
        """Return the figures of one queue, or of several in the order given; an unknown queue has no tasks.

        Args:
            queue_or_queues: A Queue, a name, or an iterable of one of the two; nothing gives [].

        Raises:
            TypeError: Anything else, or queues and names mixed.
        """
        if isinstance(queue_or_queues, Queue | str):
            queue = Queue(queue_or_queues) if isinstance(queue_or_queues, str) else queue_or_queues
            return await queue.fetch_statistics()
        return await _fetch(_as_queues(queue_or_queues))


def _as_tasks(tasks: Iterable[Task] | None, what: str, most: int | None = None) -> list[Task]:
    if not tasks:
        return []
    if not isinstance(tasks, Iterable):
        raise TypeError(f"A Task or an iterable of Tasks can be {what}, not an object of type {type(tasks).__name__}.")
    return list(itertools.islice(tasks, most))


def _as_names(names: Iterable[str] | None) -> list[str]:
    if not names:
        return []
    if isinstance(names, bytes) or not isinstance(names, Iterable):
        raise TypeError(f"A task is meant by its name, several by an iterable of names, not {shorten(names)}.")
    return list(names)


def _check_deletable(tasks: Sequence[Task]) -> None:
    """Check what can be checked before anything is sent (SPEC 3.7)."""
    seen = set()
    for index, task in enumerate(tasks):
        if not isinstance(task, Task):
            raise TypeError(f"Only Tasks can be deleted; number {index} of the list is of type {type(task).__name__}.")
        if task.name is None:
            raise BadTaskStateError(f"Task number {index} has no name, so it cannot be deleted; it was never added.")
        if task.was_deleted:
            raise BadTaskStateError(f"Task {shorten(task.name)} was deleted before.")
        if task.name in seen:
            raise DuplicateTaskNameError(f"Task name {shorten(task.name)} appears twice in one delete.")
        seen.add(task.name)


# SQLite's integers end there.
_LAST_USEC = 2**63 - 1


def _check_text(what: str, text: str | None) -> str | None:
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{what} is of type {type(text).__name__}; give text or None.")
    if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidArgumentError(f"{what} has a surrogate among its {len(text)} characters; give text that can be stored.")
    return text


def _check_after(after: tuple[int, str] | None) -> tuple[int, str] | None:
    if after is None:
        return None
    if not isinstance(after, tuple) or len(after) != 2 or type(after[0]) is not int or not isinstance(after[1], str):
        raise TypeError(f"after is {shorten(after)}; give the cursor of a StoredTask, a tuple of ETA and name.")
    if not -1 <= after[0] <= _LAST_USEC:
        raise InvalidArgumentError(f"after has the ETA {shorten(after[0])}; give the cursor of a StoredTask.")
    _check_text("after", after[1])
    return after


def _check_limit(limit: int | None) -> int | None:
    if limit is not None and type(limit) is not int:
        raise TypeError(f"limit is {shorten(limit)}; give a whole number or None.")
    if limit is not None and limit < 0:
        raise InvalidArgumentError(f"limit is {shorten(limit)}; give 0 or more, or None.")
    return limit


def _as_queues(queues: object) -> list[Queue]:
    if queues is None:
        return []
    if not isinstance(queues, Iterable):
        raise TypeError(f"Statistics are of a Queue, a name or an iterable of them, not {shorten(queues)}.")
    given = list(queues)
    if all(isinstance(queue, Queue) for queue in given):
        return given
    if all(isinstance(queue, str) for queue in given):
        return [Queue(name) for name in given]
    raise TypeError(f"Statistics are of Queues or of names, not a mixture or other objects: {shorten(given)}.")


async def _fetch(queues: Sequence[Queue]) -> list[QueueStatistics]:
    """Ask each service once, for all of its queues."""
    services = [queue._the_service() for queue in queues]
    fetched = {}
    for service in dict.fromkeys(services):
        names = [queue.name for queue, its_service in zip(queues, services, strict=True) if its_service is service]
        fetched[service] = iter(await service.fetch_stored_statistics(names))
    return [_statistics_of(service, queue, next(fetched[service])) for queue, service in zip(queues, services, strict=True)]


def _statistics_of(service: RunningService, queue: Queue, figures: StoredStatistics) -> QueueStatistics:
    return QueueStatistics(
        queue=queue,
        tasks=figures.tasks,
        oldest_eta_usec=figures.oldest_eta_usec,
        executed_last_minute=figures.executed_last_minute,
        in_flight=figures.in_flight,
        enforced_rate=0.0 if figures.is_paused else service.find_rate(queue.name),
        is_paused=figures.is_paused,
    )
