"""A queue service in a few lines: what may happen to tasks, and what must have happened, without a database or a loop.

The model is told the time, what users do and which attempts start. From that alone it decides what states, counts and ETAs
follow, and at each attempt whether it may start and is told the truth. In what order attempts start that may start at one
moment is the service's business; that they do start is not (see `find_late`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import attrs

from aiotaskqueue import QueueConfig, errors
from aiotaskqueue._headers import task_headers
from aiotaskqueue._record import NameGenerator, TaskRecord
from aiotaskqueue.delivery._base import FailureReason, NoAnswer

SECOND = 1_000_000
READY, LEASED, DEAD, SUSPECT = range(4)

# The retry options of every task: the delay before the first retry, the second, ..., and all later ones.
BACKOFF = {"min_backoff_seconds": 1, "max_doublings": 2, "max_backoff_seconds": 10}
DELAYS_SECONDS = (1, 2, 4, 8, 10)

# The deadline of a queue that does not say, and a second of grace.
LONGEST_SECONDS = 31

SWEEP_SECONDS = 3600
LOG_LINES = 10


# --- workers -------------------------------------------------------------------------------------------------------


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
        return self.response if isinstance(self.response, int) and self.seconds < LONGEST_SECONDS else None


DEEDS = {
    "succeed": Deed(200),
    "succeed slowly": Deed(200, seconds=20),
    "succeed too late": Deed(200, "deadline", is_execution=True, seconds=LONGEST_SECONDS + 1),
    "fail": Deed(500, "status", is_execution=True),
    "fail slowly": Deed(503, "status", is_execution=True, seconds=5),
    "redirect": Deed(302, "redirect", is_execution=True),
    "hang up": Deed(NoAnswer(FailureReason.DISCONNECTED), "disconnected"),
    "have hung up": Deed(NoAnswer(FailureReason.STALE), "stale"),
    "be away": Deed(NoAnswer(FailureReason.UNREACHABLE), "unreachable"),
}


# --- tasks ---------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class ModelTask:
    """A task; times are microseconds."""

    queue_name: str
    name: str
    """Empty: it gets one when it is added."""
    is_named: bool
    payload: bytes
    eta: int
    retry_limit: int | None = None
    age_limit: int | None = None
    deeds: list[Deed] = attrs.Factory(list)
    """What the worker does to its next attempts; those after them succeed."""
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
    """It waits for being retried alone, or is."""
    crashes: int = 0
    is_forced: bool = False
    dead_reason: str | None = None
    keep_until: int | None = None
    log: list[tuple[int, int, str, int | None]] = attrs.Factory(list)
    """Of the last failed attempts: token, number, reason, status."""

    @property
    def row(self) -> tuple[object, ...]:
        """What the database is to say about it."""
        return (
            *(self.queue_name, self.name, self.payload, self.eta),
            SUSPECT if self.state == READY and self.is_suspect else self.state,
            self.state == LEASED and self.is_suspect,
            *(self.attempts, self.executions, self.token, self.first_attempt, self.previous_status, self.retry_reason),
            *(self.was_stale, self.crashes, self.is_forced, self.dead_reason, self.keep_until),
        )

    @property
    def headers(self) -> dict[str, str]:
        """What the attempt in flight is to be told."""
        known = {
            "X-AppEngine-QueueName": self.queue_name,
            "X-AppEngine-TaskName": self.name,
            "X-AppEngine-TaskRetryCount": self.attempts - 1,
            "X-AppEngine-TaskExecutionCount": self.executions,
            "X-AppEngine-TaskETA": self.eta // SECOND,
            "X-AppEngine-TaskPreviousResponse": self.previous_status,
            "X-AppEngine-TaskRetryReason": self.retry_reason,
            "X-TaskQueue-Task": self.uuid.hex(),
            "X-TaskQueue-Attempt": self.token,
            "X-TaskQueue-Deadline": LONGEST_SECONDS - 1,
            "Content-Type": "application/octet-stream",
        }
        return {name: str(value) for name, value in known.items() if value is not None}

    def has_exceeded(self, now: int) -> bool:
        """Whether, after an attempt that failed, all the limits that it has are exceeded."""
        exceeded = []
        if self.retry_limit is not None:
            exceeded.append(self.attempts > self.retry_limit)
        if self.age_limit is not None and self.first_attempt is not None:
            exceeded.append(now - self.first_attempt > self.age_limit * SECOND)
        return exceeded != [] and all(exceeded)

    def note(self, reason: str, status: int | None = None) -> None:
        """Log the attempt that has ended."""
        self.log = [*self.log, (self.token, self.attempts, reason, status)][-LOG_LINES:]

    def lease(self, now: int) -> None:
        """Begin an attempt."""
        self.state = LEASED
        self.is_suspect, self.is_forced = self.is_suspect and not self.is_forced, False
        self.attempts += 1
        self.token += 1
        self.first_attempt = now if self.first_attempt is None else self.first_attempt

    def fail(self, deed: Deed, now: int) -> None:
        """Let an attempt fail; after it there is a retry."""
        assert deed.reason is not None
        self.note(deed.reason, deed.status)
        self.executions += deed.is_execution
        self.state, self.previous_status, self.retry_reason = READY, deed.status, deed.reason
        self.is_suspect, self.crashes = False, 0
        if not self.has_exceeded(now):
            self.was_stale = False
            self.eta = now + DELAYS_SECONDS[min(self.attempts, len(DELAYS_SECONDS)) - 1] * SECOND

    def take_back(self, reason: str) -> None:
        """Let an attempt be none; a suspect stays one."""
        self.note(reason)
        self.state, self.was_stale = READY, reason == "stale"
        self.attempts -= 1
        self.first_attempt = self.first_attempt if self.attempts else None
        self.crashes = self.crashes if self.is_suspect else 0

    def interrupt(self, reason: str) -> None:
        """Take it away from its process: the attempt counts, and nobody knows how it ended."""
        self.note(reason)
        self.state, self.previous_status, self.retry_reason, self.was_stale = READY, None, reason, False

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
    """An attempt in flight."""

    task: ModelTask
    deed: Deed
    ends: int
    token: int
    is_suspect: bool


@attrs.define(eq=False)
class ModelQueue:
    """A queue."""

    config: QueueConfig
    is_paused: bool = False
    tasks: dict[str, ModelTask] = attrs.Factory(dict)
    """By name; dead ones too."""
    tombstones: dict[str, int] = attrs.Factory(dict)
    started: list[int] = attrs.Factory(list)
    """In which seconds attempts were started."""

    @property
    def in_flight(self) -> int:
        """How many tasks are leased."""
        return sum(task.state == LEASED for task in self.tasks.values())

    @property
    def has_suspect(self) -> bool:
        """Whether others have to wait for a suspect."""
        return any(task.is_suspect for task in self.tasks.values())

    def remove(self, task: ModelTask, now: int) -> None:
        """Remove a task; a name that was given stays reserved."""
        del self.tasks[task.name]
        if task.is_named and self.config.tombstone_seconds:
            self.tombstones[task.name] = now + round(self.config.tombstone_seconds * SECOND)

    def bury(self, task: ModelTask, reason: str, now: int) -> None:
        """Give a task up, and keep it for as long as is configured."""
        task.bury(reason, now + round(self.config.dead_retention_seconds * SECOND))


# --- the service ---------------------------------------------------------------------------------------------------

Refusal = type[errors.Error] | None
"""What a call is to raise."""


class Model:
    """All queues of a service, and the attempts in flight."""

    def __init__(self, configs: Sequence[QueueConfig], now: int) -> None:
        self.now = self.next_sweep = now
        self.queues = {config.name: ModelQueue(config) for config in configs}
        self.attempts: list[ModelAttempt] = []
        self.ended: Counter[str] = Counter()
        """Attempts since the start, by what became of them."""

    @property
    def tasks(self) -> Iterator[ModelTask]:
        """All tasks, dead ones too."""
        return (task for queue in self.queues.values() for task in queue.tasks.values())

    # --- what users do: each returns what they are to be told ---

    def add(self, queue_name: str, tasks: Sequence[ModelTask], ids: NameGenerator) -> Refusal:
        """Accept those whose names are free; the first that is not decides what is raised."""
        given = [task.name for task in tasks if task.is_named]
        if len(set(given)) < len(given):
            return errors.DuplicateTaskNameError
        queue, refusal = self.queues[queue_name], None
        for task in tasks:
            task.name, task.uuid = task.name or ids.name(self.now), ids.uuid()
            there = queue.tasks.get(task.name)
            if there is None and queue.tombstones.get(task.name, 0) <= self.now:
                queue.tasks[task.name] = task
            else:
                is_live = there is not None and there.state != DEAD
                refusal = refusal or (errors.TaskAlreadyExistsError if is_live else errors.TombstonedTaskError)
        return refusal

    def delete(self, queue_name: str, names: Sequence[str]) -> list[bool]:
        """Delete tasks of any state."""
        queue = self.queues[queue_name]
        found = [queue.tasks.get(name) for name in names]
        for task in found:
            if task is not None:
                queue.remove(task, self.now)
        return [task is not None for task in found]

    def purge(self, queue_name: str) -> None:
        """Delete all tasks of a queue."""
        self.delete(queue_name, list(self.queues[queue_name].tasks))

    def set_paused(self, queue_name: str, is_paused: bool) -> None:
        """Stop a queue, or let it go on."""
        self.queues[queue_name].is_paused = is_paused

    def run_task(self, queue_name: str, name: str) -> Refusal:
        """Let a waiting task run now."""
        task = self.queues[queue_name].tasks.get(name)
        if task is None or task.state == DEAD:
            return errors.UnknownTaskError if task is None else errors.BadTaskStateError
        if task.state == READY:
            task.is_forced, task.eta = True, 0
        return None

    def revive(self, queue_name: str, names: Sequence[str], payload: bytes | None) -> Refusal:
        """Revive all of them or none."""
        queue = self.queues[queue_name]
        # Whoever edits them looks at all of them first.
        if payload is not None and not set(names) <= queue.tasks.keys():
            return errors.UnknownTaskError
        for name in names:
            if name not in queue.tasks or queue.tasks[name].state != DEAD:
                return errors.BadTaskStateError if name in queue.tasks else errors.UnknownTaskError
        for name in names:
            queue.tasks[name].revive(self.now)
            queue.tasks[name].payload = queue.tasks[name].payload if payload is None else payload
        return None

    # --- what services do ---

    def start(self, record: TaskRecord) -> Deed:
        """Begin an attempt, if it may begin and is told the truth; return what the worker does to it."""
        for attempt in self._ended():
            if attempt.task.uuid == record.uuid:
                self._end(attempt)
        task = self.queues[record.queue_name].tasks.get(record.name)
        assert task is not None, f"Delivered though gone: {record.name}"
        assert task.uuid == record.uuid, f"Delivered though gone, and its name is another's: {record.name}"
        self._lease(task)
        assert (task.payload, task.headers) == (record.payload, dict(task_headers(record, deadline_seconds=LONGEST_SECONDS - 1)))
        deed = task.deeds.pop(0) if task.deeds else DEEDS["succeed"]
        ends = self.now + min(deed.seconds, LONGEST_SECONDS) * SECOND
        self.attempts.append(ModelAttempt(task, deed, ends, task.token, task.is_suspect))
        return deed

    def _lease(self, task: ModelTask) -> None:
        queue = self.queues[task.queue_name]
        assert task.state == READY, f"Delivered though leased or dead: {task.name}"
        assert task.eta <= self.now, f"Delivered before its ETA: {task.name}"
        if not task.is_forced:
            self._check_room(queue, task)
        task.lease(self.now)
        queue.started.append(self.now // SECOND)

    def _check_room(self, queue: ModelQueue, task: ModelTask) -> None:
        # What ends just now may have ended already.
        running = [attempt for attempt in self.attempts if attempt.ends > self.now and self._is_live(attempt)]
        beside = [attempt for attempt in running if attempt.task.queue_name == task.queue_name]
        assert not queue.is_paused, f"Delivered though paused: {task.name}"
        assert len(beside) < queue.config.max_concurrent_requests, f"Delivered though the queue is full: {task.name}"
        if task.is_suspect:
            assert not beside, f"A suspect beside another task: {task.name}"
            assert not any(attempt.is_suspect for attempt in running), f"A suspect beside another suspect: {task.name}"
        else:
            assert not any(attempt.is_suspect for attempt in beside), f"Delivered beside a suspect: {task.name}"
            waiting = [other for other in queue.tasks.values() if other.state == READY]
            assert not any(other.is_suspect for other in waiting), f"Delivered though a suspect waits: {task.name}"

    def _is_live(self, attempt: ModelAttempt) -> bool:
        """Whether its outcome counts: its task is there, and nobody has taken it away."""
        task = attempt.task
        is_there = self.queues[task.queue_name].tasks.get(task.name) is task
        return is_there and task.state == LEASED and task.token == attempt.token

    def _ended(self) -> list[ModelAttempt]:
        return [attempt for attempt in self.attempts if attempt.ends <= self.now]

    def _end(self, attempt: ModelAttempt) -> None:
        """Let an attempt end as its deed says."""
        task, deed, queue = attempt.task, attempt.deed, self.queues[attempt.task.queue_name]
        self.attempts.remove(attempt)
        self.ended["attempts"] += 1
        if not self._is_live(attempt):
            self.ended["stale_results"] += 1
        elif deed.reason is None:
            queue.remove(task, attempt.ends)
            self.ended["completed"] += 1
        elif deed.reason == "stale" and not task.was_stale:
            task.take_back("stale")
            self.ended["retried"] += 1
        else:
            task.fail(deed, attempt.ends)
            if task.has_exceeded(attempt.ends):
                queue.bury(task, deed.reason, attempt.ends)
            self.ended["dead" if task.state == DEAD else "retried"] += 1

    def open(self) -> None:
        """Start a service, which sweeps first."""
        self.ended = Counter()
        self.next_sweep = self.now

    def close(self) -> None:
        """End the service in an orderly way: what was in flight was not tried."""
        for attempt in self.attempts:
            if self._is_live(attempt):
                attempt.task.take_back("cancelled")
        self.attempts = []

    def crash(self) -> None:
        """Let the process die, and another one rescue: what was in flight is suspected, and who was alone is charged."""
        leased = [task for task in self.tasks if task.state == LEASED]
        candidates = [task for task in leased if task.is_suspect] or leased
        for task in leased:
            task.interrupt("crash")
            task.is_suspect = True
        if len(candidates) == 1:
            [culprit] = candidates
            queue = self.queues[culprit.queue_name]
            culprit.crashes += 1
            if culprit.crashes >= queue.config.crash_limit:
                queue.bury(culprit, "crash", self.now)
        self.attempts = []

    def lose_leases(self) -> None:
        """Let another process take what is in flight for lost: nobody is suspected, and outcomes that come later are refused."""
        for task in self.tasks:
            if task.state == LEASED:
                task.interrupt("interrupted")

    def learn(self, leased: Mapping[bytes, int]) -> None:
        """Take in what a process did not hear of before it died: which tasks are leased in the database, by uuid, and their tokens."""
        for attempt in self._ended():
            if leased.get(attempt.task.uuid) != attempt.token:
                self._end(attempt)
        for task in self.tasks:
            if task.state == READY and leased.get(task.uuid) == task.token + 1:
                self._lease(task)

    # --- time ---

    def next_moment(self) -> int:
        """Return when something happens next."""
        etas = [task.eta for task in self.tasks if task.state == READY]
        ends = [attempt.ends for attempt in self.attempts]
        return min(moment for moment in (*etas, *ends, self.next_sweep) if moment > self.now)

    def travel(self, now: int) -> None:
        """Let time pass, to the next moment or less, and let happen what happens there."""
        self.now = now
        for attempt in self._ended():
            self._end(attempt)
        if now >= self.next_sweep:
            self.next_sweep = now + SWEEP_SECONDS * SECOND
            for queue in self.queues.values():
                queue.tasks = {name: task for name, task in queue.tasks.items() if self._is_kept(task)}

    def _is_kept(self, task: ModelTask) -> bool:
        return task.keep_until is None or task.keep_until > self.now

    def find_late(self) -> list[str]:
        """Return the names of tasks that wait although nothing keeps them from being delivered."""
        return [task.name for task in self.tasks if task.state == READY and task.eta <= self.now and not self._may_wait(task)]

    def _may_wait(self, task: ModelTask) -> bool:
        queue = self.queues[task.queue_name]
        if task.is_forced:
            return False
        if queue.is_paused or queue.in_flight >= queue.config.max_concurrent_requests:
            return True
        # Also for the attempt of a suspect whose task is gone.
        if any(attempt.is_suspect and (task.is_suspect or attempt.task.queue_name == task.queue_name) for attempt in self.attempts):
            return True
        return queue.in_flight > 0 if task.is_suspect else queue.has_suspect

    # --- what is to be seen ---

    def stored(self) -> tuple[object, ...]:
        """Return what the database is to say: tasks with their logs, reserved names, paused queues; not what may be swept."""
        tasks = {task.uuid: (task.row, task.log) for task in self.tasks if self._is_kept(task)}
        reserved = {(queue, name): until for queue in self.queues for name, until in self.queues[queue].tombstones.items()}
        paused = {name for name, queue in self.queues.items() if queue.is_paused}
        return tasks, {key: until for key, until in reserved.items() if until > self.now}, paused

    def statistics(self, queue_name: str) -> Mapping[str, object]:
        """Return the figures of a queue."""
        queue, second = self.queues[queue_name], self.now // SECOND
        due = [task.eta for task in queue.tasks.values() if task.state == READY and task.eta <= self.now]
        return {
            "tasks": sum(task.state != DEAD for task in queue.tasks.values()),
            "oldest_eta_usec": min(due, default=None),
            "in_flight": queue.in_flight,
            "executed_last_minute": sum(second - 60 < started <= second for started in queue.started),
            "is_paused": queue.is_paused,
        }

    def dead(self, queue_name: str) -> dict[str, str | None]:
        """Return why each dead task is dead."""
        return {name: task.dead_reason for name, task in self.queues[queue_name].tasks.items() if task.state == DEAD}
