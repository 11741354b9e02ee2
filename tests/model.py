"""A queue service in a few lines: what may happen to tasks, and what must have happened, without a database or a loop.

The model knows the time only by being told. It decides by itself what ETAs, counts and states follow from what users and
workers do, and checks each attempt when it starts. When an attempt starts within the moment is the service's business; that
it does so at the moment at which it may is not: see `find_late`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import attrs

from aiotaskqueue import QueueConfig, errors
from aiotaskqueue._headers import task_headers
from aiotaskqueue._record import NameGenerator, TaskRecord
from aiotaskqueue.delivery._base import FailureReason, NoAnswer

SECOND = 1_000_000
READY, LEASED, DEAD, SUSPECT = range(4)

# Of every task: before the first retry, the second, ..., and all later ones.
BACKOFF = {"min_backoff_seconds": 1, "max_doublings": 2, "max_backoff_seconds": 10}
DELAYS_USEC = [seconds * SECOND for seconds in (1, 2, 4, 8, 10)]

# The deadline, and the second of grace.
LONGEST_ATTEMPT_SECONDS = 31

SWEEP_USEC = 3600 * SECOND
LOG_LINES = 10


@attrs.frozen
class Deed:
    """What a worker does to an attempt, and what the log is to say about it."""

    response: int | NoAnswer
    reason: str | None = None
    """None: it is a success."""
    is_execution: bool = False
    seconds: int = 0

    @property
    def status(self) -> int | None:
        """The status that the next attempt is told of."""
        return self.response if isinstance(self.response, int) and self.reason != "deadline" else None


DEEDS = {
    "succeed": Deed(200),
    "succeed slowly": Deed(200, seconds=20),
    "succeed too late": Deed(200, "deadline", is_execution=True, seconds=LONGEST_ATTEMPT_SECONDS + 1),
    "fail": Deed(500, "status", is_execution=True),
    "fail slowly": Deed(503, "status", is_execution=True, seconds=5),
    "redirect": Deed(302, "redirect", is_execution=True),
    "hang up": Deed(NoAnswer(FailureReason.DISCONNECTED), "disconnected"),
    "have hung up": Deed(NoAnswer(FailureReason.STALE), "stale"),
    "be away": Deed(NoAnswer(FailureReason.UNREACHABLE), "unreachable"),
}


@attrs.define(eq=False)
class ModelTask:
    """A task that was accepted."""

    queue_name: str
    name: str
    """Empty: it is given one when it is added."""
    is_named: bool
    payload: bytes
    eta: int
    retry_limit: int | None = None
    age_limit: int | None = None
    uuid: bytes = b""
    state: int = READY
    attempts: int = 0
    executions: int = 0
    token: int = 0
    first_attempt: int | None = None
    previous_status: int | None = None
    retry_reason: str | None = None
    was_stale: bool = False
    is_suspect: bool = False
    """In the states READY and LEASED."""
    crashes: int = 0
    is_forced: bool = False
    dead_reason: str | None = None
    keep_until: int | None = None
    log: list[tuple[int, int, str, int | None]] = attrs.Factory(list)
    """Of the last failed attempts: token, number, reason, status."""

    @property
    def row(self) -> tuple[object, ...]:
        """What the database is to say about it (see ROWS)."""
        return (
            self.uuid,
            self.payload,
            SUSPECT if self.state == READY and self.is_suspect else self.state,
            self.state == LEASED and self.is_suspect,
            *(self.eta, self.attempts, self.executions, self.token, self.first_attempt),
            *(self.previous_status, self.retry_reason, self.was_stale, self.crashes, self.is_forced, self.dead_reason, self.keep_until),
        )

    @property
    def headers(self) -> dict[str, str]:
        """What the attempt in flight is told."""
        known = {
            "X-AppEngine-QueueName": self.queue_name,
            "X-AppEngine-TaskName": self.name,
            "X-AppEngine-TaskRetryCount": self.attempts - 1,
            "X-AppEngine-TaskExecutionCount": self.executions,
            "X-AppEngine-TaskETA": self.eta // SECOND,
            "X-AppEngine-TaskPreviousResponse": self.previous_status,
            "X-AppEngine-TaskRetryReason": self.retry_reason,
            "X-TaskQueue-Attempt": self.token,
        }
        return {name: str(value) for name, value in known.items() if value is not None}

    def has_exceeded(self, now: int) -> bool:
        """Whether, after an attempt that failed, all the limits that it has are exceeded."""
        assert self.first_attempt is not None
        retries = self.retry_limit is not None and self.attempts > self.retry_limit
        age = self.age_limit is not None and now - self.first_attempt > self.age_limit * SECOND
        if self.retry_limit is None or self.age_limit is None:
            return retries or age
        return retries and age

    def note(self, reason: str, status: int | None = None) -> None:
        """Log the attempt that has ended."""
        self.log = [*self.log, (self.token, self.attempts, reason, status)][-LOG_LINES:]

    def take_back(self, reason: str, *, was_stale: bool = False) -> None:
        """Undo the attempt: it is none. A suspect stays one."""
        self.note(reason)
        self.state, self.was_stale = READY, was_stale
        self.attempts -= 1
        self.first_attempt = self.first_attempt if self.attempts else None
        self.crashes = self.crashes if self.is_suspect else 0

    def bury(self, reason: str, keep_until: int) -> None:
        """Give it up."""
        self.state, self.is_suspect, self.dead_reason, self.keep_until = DEAD, False, reason, keep_until

    def revive(self, now: int) -> None:
        """Begin anew; token and log go on."""
        self.state, self.eta, self.dead_reason, self.keep_until = READY, now, None, None
        self.attempts = self.executions = self.crashes = 0
        self.first_attempt = self.previous_status = self.retry_reason = None
        self.was_stale = False


@attrs.define(eq=False)
class ModelAttempt:
    """An attempt in flight; its task may have been deleted."""

    task: ModelTask
    deed: Deed
    ends: int
    is_suspect: bool


@attrs.define(eq=False)
class ModelQueue:
    """A queue."""

    config: QueueConfig
    is_paused: bool = False
    tasks: dict[str, ModelTask] = attrs.Factory(dict)
    tombstones: dict[str, int] = attrs.Factory(dict)
    started: list[int] = attrs.Factory(list)
    """In which seconds attempts were started."""

    @property
    def in_flight(self) -> int:
        """How many of its tasks are being delivered."""
        return sum(task.state == LEASED for task in self.tasks.values())

    def free(self, task: ModelTask, now: int) -> None:
        """Remove a task; a name that was given stays reserved."""
        del self.tasks[task.name]
        if task.is_named and self.config.tombstone_seconds:
            self.tombstones[task.name] = now + int(self.config.tombstone_seconds) * SECOND

    def keep_until(self, now: int) -> int:
        """Return when a task that dies now may be forgotten."""
        return now + int(self.config.dead_retention_seconds) * SECOND


class Model:
    """All queues, and the attempts in flight."""

    def __init__(self, configs: Sequence[QueueConfig], now: int) -> None:
        self.now = now
        self.queues = {config.name: ModelQueue(config) for config in configs}
        self.attempts: list[ModelAttempt] = []
        self.ended: Counter[str] = Counter()
        """Attempts of this service, by what became of them."""
        self.next_sweep = now

    @property
    def tasks(self) -> Iterator[ModelTask]:
        """All tasks, dead ones too."""
        return (task for queue in self.queues.values() for task in queue.tasks.values())

    # --- what users do: each returns what they are to be told ---

    def add(self, queue_name: str, tasks: Sequence[ModelTask], ids: NameGenerator) -> type[errors.Error] | None:
        """Accept those whose names are free; the first that is not decides what is raised."""
        named = [task.name for task in tasks if task.is_named]
        if len(set(named)) < len(named):
            return errors.DuplicateTaskNameError
        queue, error = self.queues[queue_name], None
        for task in tasks:
            task.name = task.name or ids.name(self.now)
            task.uuid = ids.uuid()
            there = queue.tasks.get(task.name)
            if there is None and queue.tombstones.get(task.name, 0) <= self.now:
                queue.tasks[task.name] = task
            else:
                is_live = there is not None and there.state != DEAD
                error = error or (errors.TaskAlreadyExistsError if is_live else errors.TombstonedTaskError)
        return error

    def delete(self, queue_name: str, names: Sequence[str]) -> list[bool]:
        """Delete tasks of any state."""
        queue = self.queues[queue_name]
        found = [queue.tasks.get(name) for name in names]
        for task in found:
            if task is not None:
                queue.free(task, self.now)
        return [task is not None for task in found]

    def purge(self, queue_name: str) -> None:
        """Delete all tasks of a queue."""
        self.delete(queue_name, list(self.queues[queue_name].tasks))

    def run_task(self, queue_name: str, name: str) -> type[errors.Error] | None:
        """Let a waiting task run now."""
        task = self.queues[queue_name].tasks.get(name)
        if task is None or task.state == DEAD:
            return errors.UnknownTaskError if task is None else errors.BadTaskStateError
        if task.state == READY:
            task.is_forced, task.eta = True, 0
        return None

    def revive(self, queue_name: str, names: Sequence[str], payload: bytes | None) -> type[errors.Error] | None:
        """Revive all of them or none."""
        found = [self.queues[queue_name].tasks.get(name) for name in names]
        if None in found and payload is not None:
            return errors.UnknownTaskError
        for task in found:
            if task is None or task.state != DEAD:
                return errors.UnknownTaskError if task is None else errors.BadTaskStateError
        for task in found:
            assert task is not None
            task.payload = task.payload if payload is None else payload
            task.revive(self.now)
        return None

    # --- what services do ---

    def open(self) -> None:
        """Start a service, which sweeps at its start."""
        self.ended = Counter()
        self.next_sweep = self.now
        self.travel(self.now)

    def start(self, record: TaskRecord, deed: Deed) -> None:
        """Begin an attempt, after checking that it may begin and is told the truth."""
        queue = self.queues[record.queue_name]
        for attempt in [attempt for attempt in self.attempts if attempt.task.uuid == record.uuid and attempt.ends <= self.now]:
            self._end(attempt)
        task = queue.tasks.get(record.name)
        assert task is not None and task.uuid == record.uuid, f"Delivered though gone: {record.name}"
        assert task.state == READY, f"Delivered though leased or dead: {record.name}"
        assert task.eta <= self.now, f"Delivered before its ETA: {record.name}"
        if not task.is_forced:
            running = [attempt for attempt in self.attempts if attempt.ends > self.now]
            own = [attempt for attempt in running if queue.tasks.get(attempt.task.name) is attempt.task]
            assert not queue.is_paused, f"Delivered though paused: {record.name}"
            assert len(own) < queue.config.max_concurrent_requests, f"Delivered though its queue is full: {record.name}"
            others = [attempt.is_suspect for attempt in running] + [other.is_suspect for other in queue.tasks.values()]
            assert (
                not (own or any(attempt.is_suspect for attempt in running))
                if task.is_suspect
                else not any(other.is_suspect for other in queue.tasks.values())
            ), f"Delivered beside a suspect: {record.name} {others}"
        self._lease(queue, task)
        assert (task.payload, task.headers) == (record.payload, _told(record, task.headers))
        ends = self.now + min(deed.seconds, LONGEST_ATTEMPT_SECONDS) * SECOND
        self.attempts.append(ModelAttempt(task, deed, ends, task.is_suspect))

    def _lease(self, queue: ModelQueue, task: ModelTask) -> None:
        task.state = LEASED
        task.is_suspect, task.is_forced = task.is_suspect and not task.is_forced, False
        task.attempts += 1
        task.token += 1
        task.first_attempt = self.now if task.first_attempt is None else task.first_attempt
        queue.started.append(self.now // SECOND)

    def _end(self, attempt: ModelAttempt) -> None:
        """Let an attempt end as its deed says."""
        task, deed = attempt.task, attempt.deed
        queue = self.queues[task.queue_name]
        self.attempts.remove(attempt)
        self.ended["attempts"] += 1
        if queue.tasks.get(task.name) is not task:
            self.ended["stale_results"] += 1
        elif deed.reason is None:
            self.ended["completed"] += 1
            queue.free(task, attempt.ends)
        elif deed.reason == "stale" and not task.was_stale:
            self.ended["retried"] += 1
            task.take_back("stale", was_stale=True)
        else:
            self._fail(queue, task, deed, attempt.ends)

    def _fail(self, queue: ModelQueue, task: ModelTask, deed: Deed, now: int) -> None:
        assert deed.reason is not None
        task.note(deed.reason, deed.status)
        task.executions += deed.is_execution
        task.previous_status, task.retry_reason = deed.status, deed.reason
        task.is_suspect, task.crashes = False, 0
        if task.has_exceeded(now):
            self.ended["dead"] += 1
            task.bury("status" if deed.reason == "status" else deed.reason, queue.keep_until(now))
        else:
            self.ended["retried"] += 1
            task.state, task.was_stale = READY, False
            task.eta = now + DELAYS_USEC[min(task.attempts, len(DELAYS_USEC)) - 1]

    def close(self) -> None:
        """End the service in an orderly way: what was in flight was not tried."""
        for attempt in self.attempts:
            if self.queues[attempt.task.queue_name].tasks.get(attempt.task.name) is attempt.task:
                attempt.task.take_back("cancelled")
        self.attempts = []

    def crash(self) -> None:
        """Let the process die, and the next one rescue: what was in flight is suspected, and who was alone is charged."""
        leased = [task for task in self.tasks if task.state == LEASED]
        candidates = [task for task in leased if task.is_suspect] or leased
        for task in leased:
            queue = self.queues[task.queue_name]
            task.note("crash")
            task.crashes += candidates == [task]
            task.previous_status, task.retry_reason, task.was_stale = None, "crash", False
            task.state, task.is_suspect = READY, True
            if candidates == [task] and task.crashes >= queue.config.crash_limit:
                task.bury("crash", queue.keep_until(self.now))
        self.attempts = []

    # --- time ---

    def next_moment(self) -> int:
        """Return the next moment at which something happens."""
        etas = [task.eta for task in self.tasks if task.state == READY]
        ends = [attempt.ends for attempt in self.attempts]
        return min(moment for moment in (*etas, *ends, self.next_sweep) if moment > self.now)

    def travel(self, now: int) -> None:
        """Let time pass, to no later than the next moment, and what ends there end."""
        self.now = now
        for attempt in [attempt for attempt in self.attempts if attempt.ends <= now]:
            self._end(attempt)
        if now >= self.next_sweep:
            self.next_sweep = now + SWEEP_USEC
            for queue in self.queues.values():
                queue.tasks = {name: task for name, task in queue.tasks.items() if task.keep_until is None or task.keep_until > now}

    def find_late(self) -> list[str]:
        """Return the names of tasks that wait although nothing keeps them from being delivered."""
        return [task.name for task in self.tasks if task.state == READY and task.eta <= self.now and not self._may_wait(task)]

    def _may_wait(self, task: ModelTask) -> bool:
        queue = self.queues[task.queue_name]
        if task.is_forced:
            return False
        if queue.is_paused or queue.in_flight >= queue.config.max_concurrent_requests:
            return True
        # A suspect is retried alone: without others of its queue, and without another suspect.
        if any(attempt.is_suspect and (task.is_suspect or attempt.task.queue_name == task.queue_name) for attempt in self.attempts):
            return True
        return queue.in_flight > 0 if task.is_suspect else any(other.is_suspect for other in queue.tasks.values())

    # --- what is to be seen ---

    def rows(self) -> dict[tuple[str, str], tuple[object, ...]]:
        """Return what the database is to say about each task."""
        return {(task.queue_name, task.name): task.row for task in self.tasks}

    def tombstones(self) -> set[tuple[str, str, int]]:
        """Return the names that are reserved, and until when."""
        return {(queue, name, until) for queue in self.queues for name, until in self.queues[queue].tombstones.items() if until > self.now}

    def logs(self) -> dict[tuple[str, str], list[tuple[int, int, str, int | None]]]:
        """Return the logs that are not empty."""
        return {(task.queue_name, task.name): task.log for task in self.tasks if task.log}

    def statistics(self, queue_name: str) -> Mapping[str, object]:
        """Return the figures of a queue."""
        queue, second = self.queues[queue_name], self.now // SECOND
        return {
            "tasks": sum(task.state != DEAD for task in queue.tasks.values()),
            "oldest_eta_usec": min(
                (task.eta for task in queue.tasks.values() if task.state == READY and task.eta <= self.now), default=None
            ),
            "in_flight": queue.in_flight,
            "executed_last_minute": sum(second - 60 < started <= second for started in queue.started),
            "is_paused": queue.is_paused,
        }

    def dead(self, queue_name: str) -> set[tuple[str, str | None]]:
        """Return the dead tasks and why they are."""
        return {(task.name, task.dead_reason) for task in self.queues[queue_name].tasks.values() if task.state == DEAD}


def _told(record: TaskRecord, expected: Collection[str]) -> dict[str, str]:
    """Return the special headers of an attempt, but for those that are no business of the model."""
    ours = {"X-AppEngine-TaskPreviousResponse", "X-AppEngine-TaskRetryReason", *expected}
    return {name: value for name, value in task_headers(record, deadline_seconds=30) if name in ours}
