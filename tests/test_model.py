"""A real service on a real file, beside a model of it: users, workers and crashes in any order, compared after each step."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections import deque
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import attrs
import pytest
from crash_history import UNSOUND
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from model import BACKOFF, DEEDS, SECOND, Deed, Model, ModelTask
from mortal import MortalStore, kill

from aiotaskqueue import QueueConfig, Task, TaskQueueService, TaskRetryOptions, errors
from aiotaskqueue._record import NameGenerator, TaskRecord
from aiotaskqueue.delivery._base import NoAnswer
from aiotaskqueue.testing import RecordingDelivery, VirtualClock

QUEUES = [
    QueueConfig("wide", jitter=0, tombstone_seconds=60, dead_retention_seconds=5000),
    QueueConfig("narrow", jitter=0, tombstone_seconds=0, max_concurrent_requests=2, crash_limit=2),
]
ROWS = """
    SELECT q.name, t.name, uuid, payload, state, is_suspect, eta_usec, attempts, executions, lease_token, first_attempt_usec,
        previous_status, retry_reason, was_stale, crashes, is_forced, dead_reason, keep_until_usec
    FROM taskqueue_task AS t JOIN taskqueue_queue AS q ON q.id = queue_id
"""
TOMBSTONES = (
    "SELECT q.name, t.name, expires_usec FROM taskqueue_tombstone AS t JOIN taskqueue_queue AS q ON q.id = queue_id WHERE expires_usec > ?"
)
LOGS = """
    SELECT q.name, t.name, a.lease_token, a.attempt, a.reason, a.status FROM taskqueue_attempt AS a
    JOIN taskqueue_task AS t ON t.id = task_id JOIN taskqueue_queue AS q ON q.id = queue_id ORDER BY a.lease_token
"""
# A name may be taken again before the tombstone that has expired is swept.
FAULTS = [statement for fault, statement in UNSOUND.items() if fault != "names that are taken twice"]

queues = st.sampled_from(["wide", "narrow"])
picks = st.integers(0, 9)
limits = st.fixed_dictionaries({"retry_limit": st.sampled_from([None, 0, 1, 2, 3]), "age_limit": st.sampled_from([None, None, 0, 5])})
seconds = st.sampled_from([0, 0, 1, 2, 10])
names = st.sampled_from([None, None, "a", "b", "c"])
deeds = st.sampled_from(sorted(DEEDS))
new_tasks = st.lists(st.tuples(names, seconds, limits), min_size=1, max_size=3)


class QueueMachine(RuleBasedStateMachine):
    """Does what users, workers, operators and fate do."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "tasks.db"
        self.runner = asyncio.Runner()
        self.clock = VirtualClock()
        self.model = Model(QUEUES, self.clock.time_usec())
        self.deeds: deque[Deed] = deque()
        self.broken: list[AssertionError] = []
        self.names = {config.name: ["a"] for config in QUEUES}
        self.numbers = self.starts = 0
        self.runner.run(self.open())
        self.database = sqlite3.connect(self.path, isolation_level=None)

    async def open(self) -> None:
        """Start a service, and let it do what is due."""
        self.starts += 1
        self.ids = NameGenerator(self.starts)
        delivery, store = RecordingDelivery(self.handle), MortalStore(self.path)
        self.service = TaskQueueService(
            queues=QUEUES, clock=self.clock, delivery=delivery, store=store, seed=self.starts, max_concurrent_deliveries=1000
        )
        self.model.open()
        await self.service.start()
        await self.advance(0)

    async def handle(self, record: TaskRecord) -> int | NoAnswer:
        """Be the worker."""
        deed = self.deeds.popleft() if self.deeds else DEEDS["succeed"]
        self.model.now = self.clock.time_usec()
        try:
            self.model.start(record, deed)
        except AssertionError as exc:
            self.broken.append(exc)
        if deed.seconds:
            await self.clock.sleep(deed.seconds)
        return deed.response

    async def advance(self, seconds: int) -> None:
        """Go from one moment at which something is to happen to the next, and look whether it did."""
        target = self.clock.time_usec() + seconds * SECOND
        while True:
            await self.clock.advance(0)
            self.model.travel(self.clock.time_usec())
            assert [] == self.broken
            assert [] == self.model.find_late()
            if self.model.now == target:
                return
            moment = min(self.model.next_moment(), target)
            await self.clock.advance((moment - self.model.now) // SECOND)

    def do(self, expected: object, call: Awaitable[object]) -> None:
        """Call the service, which is to answer as the model did."""
        assert expected == self.runner.run(outcome_of(call))

    def name(self, queue: str, pick: int) -> str:
        """Return the name of a task that is or was in the queue, the newest ones first."""
        known = self.names[queue]
        return known[-1 - pick % len(known)]

    # --- users ---

    @rule(queue=queues, new=new_tasks)
    def add(self, queue: str, new: list[tuple[str | None, int, dict[str, int | None]]]) -> None:
        """Add tasks; names may be taken, or given twice."""
        tasks, expected = [], []
        for name, countdown, limits in new:
            self.numbers += 1
            options = TaskRetryOptions(**BACKOFF, task_retry_limit=limits["retry_limit"], task_age_limit=limits["age_limit"])
            task = Task(b"%d" % self.numbers, url="/w", name=name, countdown=countdown, retry_options=options)
            eta = self.model.now + countdown * SECOND
            tasks.append(task)
            expected.append(ModelTask(queue, name or "", name is not None, task.payload, eta, **limits))
        error = self.model.add(queue, expected, self.ids)
        self.names[queue] += [task.name for task in expected if task.name not in ("", *self.names[queue])]
        self.do(error, self.add_tasks(queue, tasks))

    async def add_tasks(self, queue: str, tasks: list[Task]) -> None:
        """Add, and return nothing."""
        await self.service.queue(queue).add(tasks)

    @rule(queue=queues, picked=st.lists(picks, min_size=1, max_size=3, unique=True))
    def delete(self, queue: str, picked: list[int]) -> None:
        """Delete tasks, whatever state they are in, if they are there at all."""
        names = list(dict.fromkeys(self.name(queue, pick) for pick in picked))
        tasks = [Task(name=name) for name in names]

        async def delete() -> list[bool]:
            await self.service.queue(queue).delete_tasks(tasks)
            return [task.was_deleted for task in tasks]

        self.do(self.model.delete(queue, names), delete())

    @rule(queue=queues)
    def purge(self, queue: str) -> None:
        """Delete all tasks of a queue."""
        self.do(self.model.purge(queue), self.service.queue(queue).purge())

    @rule(queue=queues)
    def pause_or_resume(self, queue: str) -> None:
        """Stop a queue, or let it go on."""
        is_paused = self.model.queues[queue].is_paused = not self.model.queues[queue].is_paused
        self.do(None, self.service.queue(queue).pause() if is_paused else self.service.queue(queue).resume())

    @rule(queue=queues, pick=picks)
    def run_task(self, queue: str, pick: int) -> None:
        """Let a task run now."""
        name = self.name(queue, pick)
        self.do(self.model.run_task(queue, name), self.service.queue(queue).run_task(name))

    @precondition(lambda self: any(self.model.dead(queue) for queue in self.model.queues))
    @rule(queue=queues, is_edited=st.booleans())
    def revive_all(self, queue: str, is_edited: bool) -> None:
        """Revive all dead tasks of a queue, as they are or with another payload."""
        self.revive(queue, sorted(name for name, _ in self.model.dead(queue)), is_edited)

    @rule(queue=queues, picked=st.lists(picks, min_size=1, max_size=2, unique=True), is_edited=st.booleans())
    def revive_some(self, queue: str, picked: list[int], is_edited: bool) -> None:
        """Try to revive tasks that may not be dead."""
        self.revive(queue, list(dict.fromkeys(self.name(queue, pick) for pick in picked)), is_edited)

    def revive(self, queue: str, names: list[str], is_edited: bool) -> None:
        """Revive tasks."""
        payload = b"edited" if is_edited else None
        self.do(self.model.revive(queue, names, payload), self.service.queue(queue).revive(names, payload=payload))

    # --- workers and time ---

    @rule(next_deeds=st.lists(deeds, min_size=1, max_size=4))
    def prepare(self, next_deeds: list[str]) -> None:
        """Decide what the worker does to the next attempts; it succeeds otherwise."""
        self.deeds.extend(DEEDS[deed] for deed in next_deeds)

    @rule(seconds=st.sampled_from([0, 0, 1, 2, 5, 20, 31, 61, 4000]))
    def wait(self, seconds: int) -> None:
        """Let time go by."""
        self.runner.run(self.advance(seconds))

    # --- fate ---

    @rule()
    def crash(self) -> None:
        """Let the process die at rest, and start another one."""
        self.runner.run(kill(self.service))
        self.model.crash()
        self.runner.run(self.open())

    @rule()
    def restart(self) -> None:
        """Close the service without waiting for anything, and start another one."""
        self.runner.run(self.service.aclose(timeout_seconds=0))
        self.model.close()
        self.runner.run(self.open())

    # --- what is compared ---

    @invariant()
    def tasks_agree(self) -> None:
        """The database has exactly the tasks, tombstones and logs of the model, and is sound."""
        rows = {row[:2]: row[2:] for row in self.query(ROWS)}
        logs: dict[tuple[str, str], list[Any]] = {}
        for queue, name, *line in self.query(LOGS):
            logs.setdefault((queue, name), []).append(tuple(line))

        assert self.model.rows() == rows
        assert self.model.tombstones() == set(self.query(TOMBSTONES, self.model.now))
        assert self.model.logs() == logs
        assert [] == [row for statement in FAULTS for row in self.query(statement)]

    @invariant()
    def figures_agree(self) -> None:
        """Statistics, the list of the dead and the counters of the dispatcher say the same."""
        self.runner.run(self.compare_figures())

    async def compare_figures(self) -> None:
        """Compare what the service says."""
        assert self.service._dispatcher is not None
        ended = attrs.asdict(self.service._dispatcher.statistics)

        assert self.model.ended == {what: count for what, count in ended.items() if count}
        for config in QUEUES:
            figures = await self.service.queue(config.name).fetch_statistics()
            expected = self.model.statistics(config.name)
            assert expected == {what: getattr(figures, what) for what in expected}
            assert self.model.dead(config.name) == {
                (dead.name, dead.dead_reason) async for dead in self.service.queue(config.name).dead_tasks()
            }

    def query(self, statement: str, *parameters: object) -> list[Any]:
        """Read behind the service's back."""
        return self.database.execute(statement, parameters).fetchall()

    def teardown(self) -> None:
        """Close everything, and see that nothing is left."""
        self.runner.run(self.service.aclose(timeout_seconds=0))
        left = self.query("SELECT * FROM taskqueue_process")
        self.database.close()
        self.runner.close()
        self.folder.cleanup()

        assert [] == left


async def outcome_of(call: Awaitable[object]) -> object:
    """Return what a call returns, or the class of our error that it raises."""
    try:
        return await call
    except errors.Error as exc:
        return type(exc)


COMMON: dict[str, Any] = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.promise("P2", "P3", "P4", "P10", "P11", "P12", "P18", "P25")
def test_a_service_does_what_its_model_does() -> None:
    """Whatever users, workers, time and crashes do in whatever order, the service and a small model of it agree after each step."""
    run_state_machine_as_test(QueueMachine, settings=settings(max_examples=100, stateful_step_count=25, derandomize=True, **COMMON))
