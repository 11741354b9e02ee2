"""A real service on a real file, beside a model of it: users, workers, time and fate in any order, compared after each step."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from crash_history import UNSOUND
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from model import BACKOFF, DEEDS, SECOND, Model, ModelTask
from mortal import MortalStore, kill
from open_stores import running

from aiotaskqueue import Queue, QueueConfig, Task, TaskQueueService, TaskRetryOptions, errors
from aiotaskqueue._record import NameGenerator, TaskRecord
from aiotaskqueue.delivery._base import NoAnswer
from aiotaskqueue.testing import RecordingDelivery, VirtualClock

QUEUES = [
    QueueConfig("default", jitter=0, tombstone_seconds=60, dead_retention_seconds=5000),
    QueueConfig("narrow", jitter=0, tombstone_seconds=0, max_concurrent_requests=2, crash_limit=2),
]

# A lease lasts until 11 s after the deadline.
LEASE_USEC = 41 * SECOND

TASKS = """
    SELECT t.id, uuid, q.name, t.name, payload, eta_usec, state, is_suspect, attempts, executions, lease_token, first_attempt_usec,
        previous_status, retry_reason, was_stale, crashes, is_forced, dead_reason, keep_until_usec
    FROM taskqueue_task AS t JOIN taskqueue_queue AS q ON q.id = queue_id WHERE keep_until_usec IS NULL OR keep_until_usec > ?
"""
LOG = "SELECT lease_token, attempt, reason, status FROM taskqueue_attempt WHERE task_id = ? ORDER BY lease_token"
LEASES = "SELECT uuid, lease_token FROM taskqueue_task WHERE state = 1"
RESERVED = """
    SELECT q.name, t.name, expires_usec FROM taskqueue_tombstone AS t JOIN taskqueue_queue AS q ON q.id = queue_id WHERE expires_usec > ?
"""
PAUSED = "SELECT name FROM taskqueue_queue WHERE is_paused"
# A name may be taken again before its tombstone, which has expired, is swept.
FAULTS = [statement for fault, statement in UNSOUND.items() if fault != "names that are taken twice"]

queues = st.sampled_from([config.name for config in QUEUES])
picks = st.integers(0, 9)
limits = st.fixed_dictionaries(
    {"retry_limit": st.sampled_from([None, 0, 1, 1, 2, 3]), "age_limit": st.sampled_from([None, None, None, 0, 5])}
)
# Slow ones more often, so that more is in flight when something happens.
deeds = st.sampled_from([*DEEDS, *3 * [name for name, deed in DEEDS.items() if deed.seconds]])
plans = st.fixed_dictionaries(
    {
        "name": st.sampled_from([None, None, "a", "b", "c"]),
        "countdown": st.sampled_from([0, 0, 1, 2, 10]),
        "limits": limits,
        "deeds": st.lists(deeds, min_size=1, max_size=4) | deeds.map(lambda deed: [deed] * 5),
    }
)

has_tasks = precondition(lambda self: any(self.model.tasks))
is_busy = precondition(lambda self: any(queue.in_flight for queue in self.model.queues.values()))
has_dead = precondition(lambda self: any(self.model.dead(queue) for queue in self.model.queues))


class ServiceMachine(RuleBasedStateMachine):
    """Does what users, time and fate do, to a service and to its model."""

    steps = 0
    """Of all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "tasks.db"
        self.runner = asyncio.Runner()
        self.clock = VirtualClock()
        self.model = Model(QUEUES, self.clock.time_usec())
        self.broken: list[AssertionError] = []
        self.names = {config.name: ["unknown"] for config in QUEUES}
        self.added = self.starts = 0
        self.runner.run(self.open())
        self.database = sqlite3.connect(self.path, isolation_level=None)

    # --- the service ---

    async def open(self) -> None:
        """Start a service, and let it do what is due."""
        self.starts += 1
        # The service makes the same names.
        self.ids = NameGenerator(self.starts)
        self.store = MortalStore(self.path)
        delivery = RecordingDelivery(self.handle)
        self.service = TaskQueueService(
            queues=QUEUES, clock=self.clock, delivery=delivery, store=self.store, seed=self.starts, max_concurrent_deliveries=1000
        )
        self.model.open()
        await self.service.start()
        await self.advance(0)

    async def close(self) -> None:
        """Close the service without waiting for anything."""
        self.store.fate = None
        await self.service.aclose(timeout_seconds=0)

    async def handle(self, record: TaskRecord) -> int | NoAnswer:
        """Be the worker."""
        self.model.now = self.clock.time_usec()
        try:
            deed = self.model.start(record)
        except AssertionError as exc:
            self.broken.append(exc)
            return 200
        if deed.seconds:
            await self.clock.sleep(deed.seconds)
        return deed.response

    async def advance(self, seconds: int) -> None:
        """Go from one moment at which something is to happen to the next, and look whether it did."""
        target = self.clock.time_usec() + seconds * SECOND
        while True:
            await self.clock.advance(0)
            self.model.travel(self.clock.time_usec())
            assert not self.broken, self.broken
            assert [] == self.model.find_late()
            if self.model.now == target:
                return
            moment = min(self.model.next_moment(), target)
            await self.clock.advance((moment - self.model.now) // SECOND)

    def do(self, effect: Callable[[Model], object], call: Callable[[Queue], Awaitable[object]], queue: str = "default") -> None:
        """Call the service, which is to answer as the model does; if it dies of it, the call did happen or did not."""
        before = copy.deepcopy(self.model) if self.store.fate else self.model
        expected = effect(self.model)
        actual = self.runner.run(self.outlive(call(self.service.queue(queue))))
        if self.store.has_died.is_set():
            self.recover(self.model, before)
        else:
            assert expected == actual

    async def outlive(self, call: Awaitable[object]) -> object:
        """Return what a call returns, or the class of our error that it raises; nothing if the process dies meanwhile."""
        calling, dying = asyncio.ensure_future(outcome_of(call)), asyncio.ensure_future(self.store.has_died.wait())
        await asyncio.wait({calling, dying}, return_when=asyncio.FIRST_COMPLETED)
        if not self.store.has_died.is_set():
            dying.cancel()
            return await calling
        calling.cancel()
        await kill(self.service)
        await asyncio.wait({calling})
        return None

    def recover(self, *models: Model) -> None:
        """Find out which of the models is true of what the dead process has left, and start the next one."""
        leased = dict(self.query(LEASES))
        for model in models:
            model.now = self.clock.time_usec()
            model.learn(leased)
        stored = self.read()
        self.model = next((model for model in models if model.stored() == stored), self.model)
        assert self.model.stored() == stored
        self.model.crash()
        self.runner.run(self.open())

    # --- users ---

    @rule(queue=queues, planned=st.lists(plans, min_size=1, max_size=3), is_released=st.booleans())
    def add(self, queue: str, planned: list[dict[str, Any]], is_released: bool) -> None:
        """Add tasks, of which some may start at once; names may be taken, or given twice."""
        tasks, expected = [], []
        for plan in planned:
            self.added += 1
            payload, (retry_limit, age_limit) = b"%d" % self.added, plan["limits"].values()
            options = TaskRetryOptions(**BACKOFF, task_retry_limit=retry_limit, task_age_limit=age_limit)
            tasks.append(Task(payload, url="/w", name=plan["name"], countdown=plan["countdown"], retry_options=options))
            eta, deeds = self.model.now + plan["countdown"] * SECOND, [DEEDS[deed] for deed in plan["deeds"]]
            expected.append(ModelTask(queue, plan["name"] or "", plan["name"] is not None, payload, eta, retry_limit, age_limit, deeds))

        async def add(queue: Queue) -> None:
            with self.clock.released() if is_released else contextlib.nullcontext():
                await queue.add(tasks)

        self.do(lambda model: model.add(queue, expected, self.ids), add, queue)
        self.names[queue] += [task.name for task in expected if task.name not in ("", *self.names[queue])]
        if is_released:
            self.wait(0)

    @has_tasks
    @rule(queue=queues, picked=st.lists(picks, min_size=1, max_size=3))
    def delete(self, queue: str, picked: list[int]) -> None:
        """Delete tasks, whatever state they are in, if they are there at all."""
        names = self.pick(queue, picked)

        async def delete(queue: Queue) -> list[bool]:
            return [task.was_deleted for task in await queue.delete_tasks_by_name(names)]

        self.do(lambda model: model.delete(queue, names), delete, queue)

    @has_tasks
    @rule(queue=queues)
    def purge(self, queue: str) -> None:
        """Delete all tasks of a queue."""
        self.do(lambda model: model.purge(queue), Queue.purge, queue)

    @has_tasks
    @rule(queue=queues)
    def pause_or_resume(self, queue: str) -> None:
        """Stop a queue, or let it go on."""
        is_paused = not self.model.queues[queue].is_paused
        self.do(lambda model: model.set_paused(queue, is_paused), Queue.pause if is_paused else Queue.resume, queue)

    @has_tasks
    @rule(queue=queues, pick=picks)
    def run_task(self, queue: str, pick: int) -> None:
        """Let a task run now."""
        [name] = self.pick(queue, [pick])
        self.do(lambda model: model.run_task(queue, name), lambda queue: queue.run_task(name), queue)

    @has_dead
    @rule(queue=queues, is_edited=st.booleans())
    def revive_all(self, queue: str, is_edited: bool) -> None:
        """Revive all dead tasks of a queue, as they are or with another payload."""
        self.revive(queue, sorted(self.model.dead(queue)), is_edited)

    @has_tasks
    @rule(queue=queues, picked=st.lists(picks, min_size=1, max_size=2), is_edited=st.booleans())
    def revive_some(self, queue: str, picked: list[int], is_edited: bool) -> None:
        """Try to revive tasks that may not be dead, or not there."""
        self.revive(queue, self.pick(queue, picked), is_edited)

    def revive(self, queue: str, names: list[str], is_edited: bool) -> None:
        """Revive all of these or none."""
        payload = b"edited" if is_edited else None
        self.do(lambda model: model.revive(queue, names, payload), lambda queue: queue.revive(names, payload=payload), queue)

    def pick(self, queue: str, picked: list[int]) -> list[str]:
        """Return names of tasks that are or were in the queue, the newest ones first."""
        known = self.names[queue]
        return list(dict.fromkeys(known[-1 - pick % len(known)] for pick in picked))

    # --- time and fate ---

    @rule(seconds=st.sampled_from([0, 0, 1, 2, 5, 20, 31, 61, 4000]))
    def wait(self, seconds: int) -> None:
        """Let time go by."""
        self.do(lambda model: None, lambda queue: self.advance(seconds))

    @has_tasks
    @rule(count=st.integers(1, 6))
    def work(self, count: int) -> None:
        """Let time go by until something happens, so many times."""
        for _ in range(count):
            self.wait(min(self.model.next_moment() - self.model.now, 61 * SECOND) // SECOND)

    @has_tasks
    @rule(seconds=st.sampled_from([1, 5, 61]))
    def work_longer(self, seconds: int) -> None:
        """Let time go by: a second rule for it, since there are so many others."""
        self.wait(seconds)

    @is_busy
    @rule()
    def crash(self) -> None:
        """Let the process die between two writes."""
        self.runner.run(kill(self.service))
        self.recover(self.model)

    @has_tasks
    @rule(fate=st.sampled_from(["unwritten", "unheard"]))
    def doom(self, fate: str) -> None:
        """Let the process die at its next write."""
        self.store.fate = fate

    @has_tasks
    @rule()
    def restart(self) -> None:
        """Close the service, and start another one."""
        self.runner.run(self.close())
        self.model.close()
        self.runner.run(self.open())

    @is_busy
    @rule()
    def lose_leases(self) -> None:
        """Let another process, whose clock is fast, take what is in flight for lost."""
        self.model.lose_leases()
        self.runner.run(self.rescue(self.clock.time_usec() + LEASE_USEC + 1))

    async def rescue(self, now_usec: int) -> None:
        """Take back from another process the leases that end before that time, and tell this one of it."""
        async with running(self.path, *QUEUES) as other:
            await other.rescue(QUEUES, now_usec=now_usec)
        self.service._notice_change()

    # --- what is compared ---

    @invariant()
    def database_agrees(self) -> None:
        """The database has what the model has, and is sound."""
        ServiceMachine.steps += 1
        assert self.model.stored() == self.read()
        assert [] == [row for statement in FAULTS for row in self.query(statement)]

    @invariant()
    def service_agrees(self) -> None:
        """Statistics, the list of the dead and the counters say what the model says."""
        self.runner.run(self.compare())

    async def compare(self) -> None:
        """Ask the service."""
        assert self.service._dispatcher is not None
        counted = attrs.asdict(self.service._dispatcher.statistics)
        assert self.model.ended == {what: count for what, count in counted.items() if count}
        for figures in await self.service.statistics():
            expected = self.model.statistics(figures.queue.name)
            assert expected == {what: getattr(figures, what) for what in expected}
            dead = {stored.name: stored.dead_reason async for stored in figures.queue.dead_tasks()}
            assert self.model.dead(figures.queue.name) == dead

    def read(self) -> tuple[object, ...]:
        """Return what `Model.stored` returns, from the database."""
        now = self.clock.time_usec()
        tasks = {uuid: (tuple(row), self.query(LOG, task_id)) for task_id, uuid, *row in self.query(TASKS, now)}
        reserved = {(queue, name): until for queue, name, until in self.query(RESERVED, now)}
        return tasks, reserved, {name for (name,) in self.query(PAUSED)}

    def query(self, statement: str, *parameters: object) -> list[Any]:
        """Read behind the service's back."""
        return self.database.execute(statement, parameters).fetchall()

    def teardown(self) -> None:
        """Close everything; nothing but the database is left."""
        self.runner.run(self.close())
        self.database.close()
        self.runner.close()
        left = {file.name for file in self.path.parent.iterdir()}
        self.folder.cleanup()

        assert {"tasks.db"} == left


async def outcome_of(call: Awaitable[object]) -> object:
    """Return what a call returns, or the class of our error that it raises."""
    try:
        return await call
    except errors.Error as exc:
        return type(exc)


# What fails is made small, for which Hypothesis takes up to five minutes.
TIMEOUT = pytest.mark.timeout(600)
COMMON: dict[str, Any] = {
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.generate, Phase.shrink],
}


@pytest.mark.promise("P2", "P3", "P4", "P10", "P11", "P12", "P18", "P20", "P25")
@pytest.mark.slow
@TIMEOUT
def test_a_service_does_what_its_model_does() -> None:
    """Whatever users, workers, time and fate do in whatever order, a service and its model agree after each step."""
    run_state_machine_as_test(ServiceMachine, settings=settings(max_examples=100, stateful_step_count=15, derandomize=True, **COMMON))


@pytest.mark.crash
@TIMEOUT
@pytest.mark.parametrize("number", range(20))
def test_a_service_does_what_its_model_does_for_long(number: int) -> None:
    """So they do over 2,000 longer lives."""
    before = ServiceMachine.steps
    machine = seed(number)(lambda: ServiceMachine())
    run_state_machine_as_test(machine, settings=settings(max_examples=100, stateful_step_count=50, **COMMON))
    print(f"seed {number}: 100 examples, {ServiceMachine.steps - before} steps", flush=True)
