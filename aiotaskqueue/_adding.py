"""Adding: from the user's tasks to stored rows, in App Engine's order of checks (SPEC 3.4)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence

from aiotaskqueue._clock import Clock
from aiotaskqueue._config import QueueConfig, check_queue_name
from aiotaskqueue._dispatcher import Dispatcher
from aiotaskqueue._masking import mask_url
from aiotaskqueue._queue import MAX_TASKS_PER_ADD
from aiotaskqueue._record import NameGenerator, TaskRecord, record_of
from aiotaskqueue._task import Task
from aiotaskqueue._task_arguments import shorten
from aiotaskqueue.errors import (
    BadTaskStateError,
    BadTransactionStateError,
    DuplicateTaskNameError,
    InvalidQueueModeError,
    InvalidTaskError,
    OutcomeUnknownError,
    TaskAlreadyExistsError,
    TombstonedTaskError,
    TooManyTasksError,
    UnknownQueueError,
    UnknownTargetError,
)
from aiotaskqueue.stores._base import AddVerdict, Store


class Adding:
    """What a service does to add tasks.

    Args:
        store: Where they go.
        clock: Tells the time.
        queues: All configured queues by name.
        target_names: What tasks may name as their target.
        names: Makes names and uuids.
        is_eager: Whether an add returns only after the first attempt of what is due.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        queues: Mapping[str, QueueConfig],
        target_names: Collection[str],
        names: NameGenerator,
        is_eager: bool,
    ) -> None:
        self._store = store
        self._clock = clock
        self._queues = queues
        self._target_names = target_names
        self._names = names
        self._is_eager = is_eager
        self.dispatcher: Dispatcher | None = None
        """What delivers in this process; None: nothing does."""

    async def add(self, queue_name: str, tasks: Sequence[Task], transactional: bool) -> None:
        """Add tasks to the queue of that name; see `Queue.add`."""
        check_tasks(tasks)
        _claim(tasks, queue_name)
        try:
            config = find_queue(self._queues, queue_name)
            if transactional:
                raise BadTransactionStateError("There is no transaction; add with transactional=False.")
            with self._clock.activity():
                records = make_records(tasks, config, targets=self._target_names, names=self._names, now_usec=self._clock.time_usec())
                verdicts = await self._store_new(records, config)
        except BaseException:
            _release(tasks)
            raise
        mark(tasks, records, verdicts)
        if self._is_eager and config.mode == "push":
            await self._await_attempts([record for record, verdict in zip(records, verdicts, strict=True) if was_stored(verdict)])

    async def _store_new(self, records: Sequence[TaskRecord], config: QueueConfig) -> Sequence[AddVerdict]:
        dispatcher, now_usec = self.dispatcher, self._clock.time_usec()
        configs = [config] * len(records)
        if dispatcher is None or config.mode == "pull":
            return await self._store.add(records, configs, now_usec=now_usec)
        due = sum(record.eta_usec <= now_usec for record in records)
        reserved = dispatcher.reserve(due) if due else 0
        try:
            verdicts = await self._store.add(
                records, configs, now_usec=now_usec, places=reserved, on_leased=_handing_over(dispatcher, reserved)
            )
        except BaseException as exc:
            # Cancelled, or the outcome is unknown: they may be stored all the same, and nobody else says so.
            dispatcher.notify_eta(min(record.eta_usec for record in records))
            if isinstance(exc, OutcomeUnknownError):
                dispatcher.doubt_leases()
            raise
        waiting = [record.eta_usec for record, verdict in zip(records, verdicts, strict=True) if verdict is AddVerdict.STORED]
        if waiting:
            dispatcher.notify_eta(min(waiting))
        return verdicts

    async def _await_attempts(self, records: Sequence[TaskRecord]) -> None:
        if self.dispatcher is None:
            return
        with self._clock.released():
            for record in records:
                if record.eta_usec <= self._clock.time_usec():
                    await self.dispatcher.wait_for_attempt(record)


def _handing_over(dispatcher: Dispatcher, reserved: int) -> Callable[[Sequence[TaskRecord]], None]:
    return lambda leased: dispatcher.hand_over(reserved, leased)


def check_tasks(tasks: Sequence[Task]) -> None:
    """Check what can be checked without knowing the queue; nothing is stored when this raises."""
    for index, task in enumerate(tasks):
        if not isinstance(task, Task):
            raise TypeError(f"Only Tasks can be added; number {index} of the list is of type {type(task).__name__}.")
    if len(tasks) == 1:
        return
    if len({task.method == "PULL" for task in tasks}) > 1:
        raise InvalidTaskError("Push and pull tasks are mixed in one add; add them to their queues separately.")
    if len(tasks) > MAX_TASKS_PER_ADD:
        raise TooManyTasksError(f"More than {MAX_TASKS_PER_ADD} tasks are too many for one add; divide them.")
    _check_names(tasks)


def _claim(tasks: Sequence[Task], queue_name: str) -> None:
    """Count the tasks as added, so that nobody else can add them; until they are stored, `_release` takes that back.

    Raises:
        BadTaskStateError: One was added before, is just being added, or is given twice; then none is claimed.
    """
    for index, task in enumerate(tasks):
        if task.was_enqueued:
            message = f"Task {shorten(task.name)} was added before, to queue {task.queue_name!r:.102}; make a new Task."
            _release(tasks[:index])
            raise BadTaskStateError(message)
        task._queue_name = queue_name


def find_queue(queues: Mapping[str, QueueConfig], name: str) -> QueueConfig:
    """Return the configuration of a queue.

    Raises:
        InvalidQueueNameError: No queue can be called so.
        UnknownQueueError: There is none; the message names the nearest ones.
    """
    config = queues.get(name) if isinstance(name, str) else None
    if config is not None:
        return config
    check_queue_name(name)
    near = difflib.get_close_matches(name, queues, n=3) or sorted(queues)[:10]
    raise UnknownQueueError(f"Queue {name!r} is not configured; did you mean {' or '.join(map(repr, near))}?")


def make_records(
    tasks: Sequence[Task], config: QueueConfig, *, targets: Collection[str], names: NameGenerator, now_usec: int
) -> list[TaskRecord]:
    """Return the rows of checked tasks.

    Raises:
        InvalidQueueModeError: They are of the other mode than the queue.
        UnknownTargetError: A target is not in `targets`.
        InvalidEtaError: A countdown leads out of the calendar.
    """
    is_pull = tasks[0].method == "PULL"
    if is_pull != (config.mode == "pull"):
        kind, other = ("pull", "push") if is_pull else ("push", "pull")
        raise InvalidQueueModeError(f"Queue {config.name!r} is a {other} queue; a {kind} task cannot be added to it.")
    for index, task in enumerate(tasks):
        if task.target is not None and task.target not in targets:
            known = f"known are {', '.join(sorted(map(repr, targets))) or 'none'} (TaskQueueService(targets=...))"
            raise UnknownTargetError(f"Target {shorten(mask_url(task.target))} of task number {index} is not configured; {known}.")
    return [
        record_of(task, queue_name=config.name, name=task.name or names.name(now_usec), uuid=names.uuid(), now_usec=now_usec)
        for task in tasks
    ]


def mark(tasks: Sequence[Task], records: Sequence[TaskRecord], verdicts: Sequence[AddVerdict]) -> None:
    """Mark what was stored, release the rest, then raise for the names that were taken.

    Raises:
        TaskAlreadyExistsError: Names of tasks in the queue.
        TombstonedTaskError: Names that were used before.
    """
    refused: dict[AddVerdict, list[Task]] = {}
    for task, record, verdict in zip(tasks, records, verdicts, strict=True):
        if was_stored(verdict):
            task._mark_enqueued(record)
        else:
            refused.setdefault(verdict, []).append(task)
    if refused:
        for some in refused.values():
            _release(some)
        raise _conflict(refused, records[0].queue_name, len(tasks))


def was_stored(verdict: AddVerdict) -> bool:
    """Return whether the task is in the store."""
    return verdict in (AddVerdict.STORED, AddVerdict.LEASED)


def _conflict(refused: Mapping[AddVerdict, Sequence[Task]], queue_name: str, count: int) -> InvalidTaskError:
    """Return the error: the first conflict decides its class, the message names the tasks of both kinds."""
    exist, reserved = refused.get(AddVerdict.EXISTS, ()), refused.get(AddVerdict.TOMBSTONED, ())
    reasons = []
    if exist:
        reasons.append(f"has a task named {_names(exist)} already")
    if reserved:
        reasons.append(f"used the name {_names(reserved)} before and keeps it reserved")
    rest = "" if len(exist) + len(reserved) == count else " the other tasks were stored;"
    message = f"Queue {queue_name!r} {' and '.join(reasons)};{rest} choose another name."
    first = next(iter(refused))
    return TaskAlreadyExistsError(message) if first is AddVerdict.EXISTS else TombstonedTaskError(message)


def _names(tasks: Sequence[Task]) -> str:
    shown = ", ".join(shorten(task.name) for task in tasks[:10])
    return shown if len(tasks) <= 10 else f"{shown} (and {len(tasks) - 10} more)"


def _release(tasks: Sequence[Task]) -> None:
    for task in tasks:
        task._queue_name = None


def _check_names(tasks: Sequence[Task]) -> None:
    seen: dict[str, Task] = {}
    for task in tasks:
        # One object given twice is another mistake (see `claimed`).
        if task.name is not None and seen.setdefault(task.name, task) is not task:
            raise DuplicateTaskNameError(f"Task name {shorten(task.name)} appears twice in one add; names are unique in a queue.")
