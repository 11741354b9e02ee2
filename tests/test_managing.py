"""Managing tasks that exist, through a service: while they run, while they wait, from the process next door."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aiotaskqueue import Queue, QueueConfig, StoredTask, Task, TaskQueueService, TaskRetryOptions, TaskState
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.errors import (
    BadTaskStateError,
    DuplicateTaskNameError,
    InvalidArgumentError,
    InvalidQueueModeError,
    InvalidTaskError,
    InvalidUrlError,
    NotStartedError,
    TaskTooLargeError,
    TombstonedTaskError,
    UnknownQueueError,
    UnknownTaskError,
)
from aiotaskqueue.testing import RecordingDelivery, VirtualClock

pytestmark = pytest.mark.anyio


def delivery_of(service: TaskQueueService) -> RecordingDelivery:
    """Return what the service delivers with."""
    [delivery] = service._targets.deliveries
    assert isinstance(delivery, RecordingDelivery)
    return delivery


class SlowWorker:
    """A worker that says when it was reached, and answers when it is let go."""

    def __init__(self, status: int = 200) -> None:
        self.reached, self.let_go = asyncio.Event(), asyncio.Event()
        self.delivery = RecordingDelivery(self._respond)
        self._status = status

    async def _respond(self, record: TaskRecord) -> int:
        self.reached.set()
        await self.let_go.wait()
        return self._status


@pytest.fixture
async def worker() -> SlowWorker:
    """A worker that is waited for."""
    return SlowWorker()


@pytest.fixture
async def service(worker: SlowWorker) -> AsyncIterator[TaskQueueService]:
    """A service on real time whose worker is waited for."""
    queues = [QueueConfig("default"), QueueConfig("single", max_concurrent_requests=1)]
    async with TaskQueueService(":memory:", queues=queues, delivery=worker.delivery) as service:
        yield service
        worker.let_go.set()


def warnings_of(caplog: Any) -> list[str]:
    """Return what was logged as a warning or worse."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- delete --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 500])
async def test_delete_a_running_task(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """SPEC 3.7, P4: a task that is deleted while it runs is not tried again, whatever its handler answers, and nobody is alarmed."""
    worker = SlowWorker(status)
    async with TaskQueueService(":memory:", delivery=worker.delivery) as service:
        task = await service.add(url="/w", retry_options=TaskRetryOptions(task_retry_limit=0))
        await worker.reached.wait()
        await service.queue().delete_tasks(task)
        before = await service.queue().fetch_statistics()
        worker.let_go.set()
        await service.run_until_idle()
        after = await service.queue().fetch_statistics()

    assert [(0, 0), (0, 0)] == [(found.tasks, found.in_flight) for found in (before, after)]
    assert (1, []) == (len(worker.delivery.deliveries), warnings_of(caplog))


async def test_delete_frees_a_place(service: TaskQueueService, worker: SlowWorker) -> None:
    """The place of a running task that is deleted is free at once, though its handler still runs."""
    running, _ = await service.add(queue_name="single"), await service.add(queue_name="single")
    await worker.reached.wait()
    worker.reached.clear()
    await service.queue("single").delete_tasks(running)
    await asyncio.wait_for(worker.reached.wait(), 5)

    assert 2 == len(worker.delivery.deliveries)


async def test_delete_a_late_result(caplog: pytest.LogCaptureFixture) -> None:
    """A result that comes after the lease has ended and passed on is told, for nobody deleted anything."""
    clock = VirtualClock()
    async with TaskQueueService(":memory:", delivery=RecordingDelivery(), clock=clock) as service:
        assert service._dispatcher is not None
        service._dispatcher._note_stale(
            TaskRecord(uuid=bytes(16), queue_name="default", name="a", eta_usec=0, created_usec=0, lease_expires_usec=clock.time_usec())
        )

    assert ["The result of task 'a' of queue 'default' came too late and was dropped."] == warnings_of(caplog)


# --- get and list --------------------------------------------------------------------------------------------------


@pytest.fixture
async def quiet() -> AsyncIterator[TaskQueueService]:
    """A service in which nothing runs before a test says so."""
    queues = [QueueConfig("default"), QueueConfig("pull", mode="pull")]
    async with TaskQueueService(":memory:", queues=queues, delivery=RecordingDelivery(), clock=VirtualClock()) as service:
        yield service


async def names_of(tasks: AsyncIterator[StoredTask]) -> list[str]:
    """Return the names of a list of tasks."""
    return [stored.name async for stored in tasks]


async def test_get_a_new_task(quiet: TaskQueueService) -> None:
    """A stored task has what was added, and that nothing has happened to it yet."""
    now_usec = quiet.clock.time_usec()
    await quiet.add(b"x", url="/w", name="a", countdown=1)
    stored = await quiet.queue().get_task("a")

    assert ("a", "/w", b"x", "default") == (stored.task.name, stored.task.url, stored.task.payload, stored.task.queue_name)
    assert (TaskState.READY, now_usec + 1_000_000, now_usec) == (stored.state, stored.eta_usec, stored.created_usec)
    assert (0, 0, None, None, None, None) == (
        stored.retry_count,
        stored.execution_count,
        stored.first_attempt_usec,
        stored.previous_response,
        stored.lease_expires_usec,
        stored.dead_usec,
    )
    assert (32, ()) == (len(stored.uuid), stored.attempts)


async def test_get_a_dead_task() -> None:
    """A dead task shows when and why it was given up, and its attempts."""
    clock, delivery = VirtualClock(), RecordingDelivery()
    delivery.answer_next(500, 404)
    async with TaskQueueService(":memory:", delivery=delivery, clock=clock) as service:
        await service.add(url="/w", name="a", retry_options=TaskRetryOptions(task_retry_limit=1))
        await service.run_until_idle()
        await clock.advance(10)
        await service.run_until_idle()
        stored = await service.queue().get_task("a")

    assert (TaskState.DEAD, "status", "status", 404) == (stored.state, stored.dead_reason, stored.retry_reason, stored.previous_response)
    assert (2, 2) == (stored.retry_count, stored.execution_count)
    assert [(1, 500), (2, 404)] == [(attempt.attempt, attempt.status) for attempt in stored.attempts or ()]
    assert stored.dead_usec is not None


@pytest.mark.parametrize("name", ["unknown", "", "../x", "a b", "x" * 4000, "\ud800", None, 5])
async def test_get_an_unknown_task(quiet: TaskQueueService, name: Any) -> None:
    """RELIABILITY 127: a name that is not there, or that nothing can have, is an unknown task."""
    with pytest.raises(UnknownTaskError, match="Queue 'default' has no task named "):
        await quiet.queue().get_task(name)


@pytest.mark.parametrize("call", [lambda queue: queue.get_task("a"), lambda queue: queue.list_tasks()], ids=["get", "list"])
async def test_look_at_an_unknown_queue(quiet: TaskQueueService, call: Any) -> None:
    """A queue that is not configured is an error, at the call."""
    with pytest.raises(UnknownQueueError):
        await call(Queue("unknown"))


async def test_list_in_order(quiet: TaskQueueService) -> None:
    """Tasks are listed by ETA, then by name."""
    await quiet.queue().add([Task(url="/w", name=name, countdown=countdown) for name, countdown in (("c", 2), ("b", 1), ("a", 2))])

    assert ["b", "a", "c"] == await names_of(quiet.queue().list_tasks())


async def test_list_of_many_pages(quiet: TaskQueueService) -> None:
    """A list of several pages has each task once, though all have one ETA."""
    await quiet.queue().add([Task(url="/w", name=f"n{number:04}") for number in range(1200)])

    assert [f"n{number:04}" for number in range(1200)] == await names_of(quiet.queue().list_tasks())
    assert [f"n{number:04}" for number in range(700)] == await names_of(quiet.queue().list_tasks(limit=700))
    assert [] == await names_of(quiet.queue().list_tasks(limit=0))


async def test_list_after_a_cursor(quiet: TaskQueueService) -> None:
    """A list goes on after the cursor of a task, also when that task is gone."""
    await quiet.queue().add([Task(url="/w", name=name) for name in "abcd"])
    first = [stored async for stored in quiet.queue().list_tasks(limit=2)]
    await quiet.queue().delete_tasks(first[-1].task)

    assert ["c", "d"] == await names_of(quiet.queue().list_tasks(after=first[-1].cursor))


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"url": "/w?x=1"}, ["b"]),
        ({"url": "/w"}, ["a-2"]),
        ({"name_prefix": "a-"}, ["a-1", "a-2"]),
        ({"name_prefix": "a-", "url": "/other"}, ["a-1"]),
        ({"name_prefix": ""}, ["a-1", "a-2", "b"]),
        ({"name_prefix": "%"}, []),
        ({"state": TaskState.READY}, ["a-1", "a-2", "b"]),
        ({"state": TaskState.DEAD}, []),
        ({"tag": "x"}, []),
    ],
)
async def test_filters(quiet: TaskQueueService, filters: Any, expected: list[str]) -> None:
    """Filters narrow a list, and all of them hold."""
    await quiet.queue().add([Task(url="/other", name="a-1"), Task(url="/w", name="a-2"), Task(url="/w?x=1", name="b", method="GET")])

    assert expected == await names_of(quiet.queue().list_tasks(**filters))


async def test_filter_by_tag(quiet: TaskQueueService) -> None:
    """Pull tasks are found by their tag."""
    await quiet.queue("pull").add([Task(b"", method="PULL", name=name, tag=tag) for name, tag in (("a", "x"), ("b", "y"), ("c", None))])

    assert ["b"] == await names_of(quiet.queue("pull").list_tasks(tag="y"))


async def test_list_every_state() -> None:
    """A list without a state has waiting, running and dead tasks, in one order; dead_tasks has the dead ones."""
    worker = SlowWorker()
    worker.delivery.answer_next(500)
    async with TaskQueueService(":memory:", delivery=worker.delivery) as service:
        await service.add(url="/w", name="dead", retry_options=TaskRetryOptions(task_retry_limit=0))
        await service.run_until_idle()
        await service.add(url="/w", name="running")
        await worker.reached.wait()
        await service.add(url="/w", name="waiting", countdown=60)
        listed = [(stored.name, stored.state, stored.attempts) async for stored in service.queue().list_tasks()]
        dead = await names_of(service.queue().dead_tasks())
        worker.let_go.set()

    assert [("dead", TaskState.DEAD, None), ("running", TaskState.LEASED, None), ("waiting", TaskState.READY, None)] == listed
    assert ["dead"] == dead


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"state": 2}, TypeError),
        ({"state": "dead"}, TypeError),
        ({"url": 5}, TypeError),
        ({"tag": b"x"}, TypeError),
        ({"tag": "\ud800"}, InvalidArgumentError),
        ({"after": "a"}, TypeError),
        ({"after": (1,)}, TypeError),
        ({"after": ("1", "a")}, TypeError),
        ({"after": (1, None)}, TypeError),
        ({"after": (2**63, "a")}, InvalidArgumentError),
        ({"after": (1, "\udfff")}, InvalidArgumentError),
        ({"limit": -1}, InvalidArgumentError),
        ({"limit": True}, TypeError),
        ({"limit": 1.0}, TypeError),
    ],
)
async def test_bad_arguments_of_a_list(quiet: TaskQueueService, arguments: Any, error: type[Exception]) -> None:
    """RELIABILITY 126: an argument that makes no sense is refused at the call, by its name."""
    with pytest.raises(error, match=f"^{next(iter(arguments))} "):
        quiet.queue().list_tasks(**arguments)


@pytest.mark.row(49)
async def test_list_without_a_service() -> None:
    """RELIABILITY 49: a list needs a service that runs."""
    with pytest.raises(NotStartedError):
        Queue().list_tasks()


# --- purge ---------------------------------------------------------------------------------------------------------


async def test_purge(quiet: TaskQueueService) -> None:
    """SPEC 3.8: a purge removes every task of its queue, future ones too, and leaves other queues alone."""
    await quiet.queue().add([Task(url="/w"), Task(url="/w", countdown=3600)])
    await quiet.queue("pull").add(Task(b"", method="PULL", name="a"))
    await quiet.queue().purge()

    assert ([], ["a"]) == (await names_of(quiet.queue().list_tasks()), await names_of(quiet.queue("pull").list_tasks()))


async def test_purge_keeps_names(quiet: TaskQueueService) -> None:
    """SPEC 3.5: given names stay reserved after a purge; new ones can be added at once."""
    await quiet.add(url="/w", name="a")
    await quiet.queue().purge()
    with pytest.raises(TombstonedTaskError):
        await quiet.add(url="/w", name="a")
    await quiet.add(url="/w", name="b")

    assert ["b"] == await names_of(quiet.queue().list_tasks())


async def test_purge_a_running_task(service: TaskQueueService, worker: SlowWorker, caplog: pytest.LogCaptureFixture) -> None:
    """SPEC 3.8: a running task finishes, and its result is dropped without alarm."""
    await service.add(url="/w")
    await worker.reached.wait()
    await service.queue().purge()
    figures = await service.queue().fetch_statistics()
    worker.let_go.set()
    await service.run_until_idle()

    assert (0, 0, 1, []) == (figures.tasks, figures.in_flight, len(worker.delivery.deliveries), warnings_of(caplog))


async def test_purge_an_unknown_queue(quiet: TaskQueueService) -> None:
    """SPEC 3.8: a queue that is not configured is an error."""
    with pytest.raises(UnknownQueueError):
        await Queue("unknown").purge()


# --- pause and resume ----------------------------------------------------------------------------------------------


def attempts_of(service: TaskQueueService) -> int:
    """Return how many attempts were made."""
    return len(delivery_of(service).deliveries)


async def test_pause_a_queue(quiet: TaskQueueService) -> None:
    """A paused queue starts nothing, and goes on where it stood when it is resumed."""
    await quiet.queue().pause()
    await quiet.queue().pause()
    await quiet.add(url="/w")
    await quiet.run_until_idle()
    before = attempts_of(quiet)
    await quiet.queue().resume()
    await quiet.queue().resume()
    await quiet.run_until_idle()

    assert (0, 1) == (before, attempts_of(quiet))


async def test_a_paused_queue_shows(quiet: TaskQueueService) -> None:
    """Statistics and health say that a queue is paused, which is no fault."""
    await quiet.queue().pause()
    await quiet.run_until_idle()
    figures, health = await quiet.queue().fetch_statistics(), quiet.health()
    await quiet.queue().resume()
    await quiet.run_until_idle()

    assert (True, 0.0) == (figures.is_paused, figures.enforced_rate)
    assert (True, ("Queue 'default' is paused; resume it with Queue.resume.",)) == (health.is_ok, health.pauses)
    assert () == quiet.health().pauses


async def test_pause_in_another_process(tmp_path: Path) -> None:
    """A pause is stored: another service on the file starts nothing, and goes on by itself after the resume."""
    worker = SlowWorker()
    async with (
        TaskQueueService(tmp_path / "tasks.db", delivery=worker.delivery) as service,
        TaskQueueService(tmp_path / "tasks.db", dispatch=False) as other,
    ):
        await other.queue().pause()
        await service.add(url="/w")
        await service.run_until_idle()
        before = len(worker.delivery.deliveries)
        await other.queue().resume()
        await asyncio.wait_for(worker.reached.wait(), 5)
        worker.let_go.set()

    assert (0, 1) == (before, len(worker.delivery.deliveries))


@pytest.mark.parametrize("method", [Queue.pause, Queue.resume])
async def test_pause_an_unknown_queue(quiet: TaskQueueService, method: Any) -> None:
    """A queue that is not configured is an error."""
    with pytest.raises(UnknownQueueError):
        await method(Queue("unknown"))


async def test_pause_a_service(quiet: TaskQueueService) -> None:
    """A paused service starts nothing, also nothing that becomes due meanwhile, and says so; then it goes on."""
    assert isinstance(quiet.clock, VirtualClock)
    await quiet.add(url="/w", countdown=5)
    await quiet.pause()
    await quiet.add(url="/w")
    await quiet.clock.advance(10)
    await quiet.run_until_idle()
    before, health = attempts_of(quiet), quiet.health()
    await quiet.resume()
    await quiet.run_until_idle()

    assert (0, 2) == (before, attempts_of(quiet))
    assert (True, ("This process is paused; resume it with TaskQueueService.resume.",)) == (health.is_ok, health.pauses)
    assert () == quiet.health().pauses


async def test_pause_a_service_on_real_time() -> None:
    """A paused service stores what is added, and delivers nothing born leased."""
    delivery = RecordingDelivery()
    async with TaskQueueService(":memory:", delivery=delivery) as service:
        await service.pause()
        await service.add(url="/w")
        await service.run_until_idle()
        before = len(delivery.deliveries)
        await service.resume()
        await service.run_until_idle()

    assert (0, 1) == (before, len(delivery.deliveries))


async def test_pause_a_service_that_does_not_dispatch() -> None:
    """It may be paused and resumed like any other."""
    async with TaskQueueService(":memory:", dispatch=False) as service:
        await service.pause()
        paused = service.health().pauses
        await service.resume()

    assert (1, ()) == (len(paused), service.health().pauses)


@pytest.mark.row(49)
async def test_pause_a_service_that_is_not_started() -> None:
    """RELIABILITY 49: only a running service can be paused."""
    with pytest.raises(NotStartedError):
        await TaskQueueService(":memory:").pause()


# --- run now -------------------------------------------------------------------------------------------------------


def delivered(service: TaskQueueService) -> list[tuple[str, int, int]]:
    """Return name, ETA and retry count of every attempt."""
    return [(made.record.name, made.record.eta_usec, made.record.retry_count) for made in delivery_of(service).deliveries]


async def test_run_a_future_task(quiet: TaskQueueService) -> None:
    """SPEC 7.2, D13: exactly the named task runs now, with ETA 0 and the retry count that it had."""
    await quiet.queue().add([Task(url="/w", name=name, countdown=3600) for name in ("a", "b", "c")])
    await quiet.queue().run_task("b")
    await quiet.run_until_idle()

    assert [("b", 0, 0)] == delivered(quiet)


async def test_run_between_retries() -> None:
    """SPEC 7.2: a task that waits for its retry is run as that retry, and fails like one."""
    delivery = RecordingDelivery(lambda record: 500)
    async with TaskQueueService(":memory:", delivery=delivery, clock=VirtualClock()) as service:
        await service.add(url="/w", name="a")
        await service.run_until_idle()
        await service.queue().run_task("a")
        await service.run_until_idle()
        stored = await service.queue().get_task("a")

    assert [0, 1] == [made.record.retry_count for made in delivery.deliveries]
    assert (2, TaskState.READY) == (stored.retry_count, stored.state)
    assert stored.eta_usec > 0


@pytest.mark.parametrize("config", [QueueConfig("default"), QueueConfig("default", rate="0")], ids=["paused", "rate 0"])
async def test_run_in_a_stopped_queue(config: QueueConfig) -> None:
    """SPEC 4.6: a pause and a rate do not hold what is run by hand; the others wait on."""
    async with TaskQueueService(":memory:", queues=[config], delivery=RecordingDelivery(), clock=VirtualClock()) as service:
        await service.queue().pause()
        await service.queue().add([Task(url="/w", name=name) for name in "ab"])
        await service.queue().run_task("b")
        await service.run_until_idle()

        assert [("b", 0, 0)] == delivered(service)


async def test_run_in_a_paused_service(quiet: TaskQueueService) -> None:
    """A paused process runs what is run by hand there, and only that."""
    await quiet.pause()
    await quiet.queue().add([Task(url="/w", name=name) for name in "ab"])
    await quiet.queue().run_task("b")
    await quiet.run_until_idle()

    assert [("b", 0, 0)] == delivered(quiet)


async def test_run_without_a_place() -> None:
    """SPEC 4.6: limits of concurrency do not hold what is run by hand, neither the queue's nor the process's."""
    worker = SlowWorker()
    queues = [QueueConfig("default", max_concurrent_requests=1)]
    async with TaskQueueService(":memory:", queues=queues, delivery=worker.delivery, max_concurrent_deliveries=1) as service:
        await service.queue().add([Task(url="/w", name="a"), Task(url="/w", name="b", countdown=60), Task(url="/w", name="c")])
        await worker.reached.wait()
        worker.reached.clear()
        await service.queue().run_task("b")
        await asyncio.wait_for(worker.reached.wait(), 5)
        await service.add(url="/w", name="d")
        figures = await service.queue().fetch_statistics()
        names = [made.record.name for made in worker.delivery.deliveries]
        worker.let_go.set()
        await service.run_until_idle()

    assert (["a", "b"], 2, 4) == (names, figures.in_flight, len(worker.delivery.deliveries))


async def test_run_a_running_task(service: TaskQueueService, worker: SlowWorker) -> None:
    """RELIABILITY 129: a task that is running is not run twice, also when it is asked for twice."""
    await service.add(url="/w", name="a")
    await worker.reached.wait()
    await service.queue().run_task("a")
    await service.queue().run_task("a")
    worker.let_go.set()
    await service.run_until_idle()

    assert 1 == len(worker.delivery.deliveries)


async def test_run_from_another_process(tmp_path: Path) -> None:
    """A process that does not deliver can have a task run by one that does."""
    worker = SlowWorker()
    async with (
        TaskQueueService(tmp_path / "tasks.db", delivery=worker.delivery),
        TaskQueueService(tmp_path / "tasks.db", dispatch=False) as other,
    ):
        await other.add(url="/w", name="a", countdown=3600)
        await other.queue().run_task("a")
        await asyncio.wait_for(worker.reached.wait(), 5)
        worker.let_go.set()

    assert ["a"] == [made.record.name for made in worker.delivery.deliveries]


async def test_run_a_dead_task(quiet: TaskQueueService) -> None:
    """A dead task is revived, not run."""
    delivery_of(quiet).answer_next(500)
    await quiet.add(url="/w", name="a", retry_options=TaskRetryOptions(task_retry_limit=0))
    await quiet.run_until_idle()

    with pytest.raises(BadTaskStateError, match=r"^Task 'a' of queue 'default' is dead; revive it instead\.$"):
        await quiet.queue().run_task("a")


@pytest.mark.parametrize("name", ["unknown", "", "../x", "\ud800", None])
async def test_run_an_unknown_task(quiet: TaskQueueService, name: Any) -> None:
    """RELIABILITY 127: a name that is not there is an unknown task, and no neighbour is run."""
    await quiet.add(url="/w", name="unknown-not", countdown=60)
    with pytest.raises(UnknownTaskError):
        await quiet.queue().run_task(name)
    await quiet.run_until_idle()

    assert [] == delivered(quiet)


@pytest.mark.row(41)
async def test_run_in_a_pull_queue(quiet: TaskQueueService) -> None:
    """RELIABILITY 41: tasks of a pull queue cannot be run."""
    with pytest.raises(InvalidQueueModeError):
        await quiet.queue("pull").run_task("a")


# --- revive --------------------------------------------------------------------------------------------------------


async def bury(service: TaskQueueService, *tasks: Task) -> None:
    """Add tasks and let them fail for good."""
    delivery_of(service).answer_next(*[500 for _ in tasks])
    await service.queue().add(list(tasks))
    await service.run_until_idle()


def mortal(name: str, **arguments: Any) -> Task:
    """Return a task that has one attempt."""
    return Task(name=name, retry_options=TaskRetryOptions(task_retry_limit=0), **{"url": "/w", **arguments})


async def test_revive(quiet: TaskQueueService) -> None:
    """SPEC 2.4: a revived task is the same one, due now, its counts from zero; its log is kept."""
    await bury(quiet, mortal("a"))
    before = await quiet.queue().get_task("a")
    await quiet.queue().revive("a")
    after = await quiet.queue().get_task("a")

    assert (before.uuid, before.attempts) == (after.uuid, after.attempts)
    assert (TaskState.READY, 0, 0) == (after.state, after.retry_count, after.execution_count)
    assert (None, None, None) == (after.dead_usec, after.first_attempt_usec, after.previous_response)


async def test_a_revived_task_runs_and_may_die_again(quiet: TaskQueueService) -> None:
    """SPEC 2.4: its limits count from zero: it runs as often as the first time."""
    await bury(quiet, mortal("a"))
    delivery_of(quiet).answer_next(404)
    await quiet.queue().revive("a")
    await quiet.run_until_idle()
    stored = await quiet.queue().get_task("a")
    await quiet.queue().revive("a")
    await quiet.run_until_idle()

    assert [("a", 0), ("a", 0), ("a", 0)] == [(name, retries) for name, _, retries in delivered(quiet)]
    assert [(1, 500), (1, 404)] == [(attempt.attempt, attempt.status) for attempt in stored.attempts or ()]
    assert [] == await names_of(quiet.queue().list_tasks())


async def test_revive_many(quiet: TaskQueueService) -> None:
    """Many are revived at once; nothing is fine too."""
    await bury(quiet, *[mortal(name) for name in "abc"])
    await quiet.queue().revive(stored for stored in ("a", "c"))
    await quiet.queue().revive([])

    assert ["b"] == await names_of(quiet.queue().dead_tasks())


@pytest.mark.parametrize("payload", [b"new", b"x" * 5000, "text", b""], ids=["small", "large", "text", "empty"])
@pytest.mark.parametrize("old", [b"old", b"o" * 5000], ids=["was small", "was large"])
async def test_revive_with_another_payload(quiet: TaskQueueService, old: bytes, payload: str | bytes) -> None:
    """The payload can be replaced, of any size by any size; everything else stays."""
    await bury(quiet, mortal("a", payload=old, headers={"X-Two": ["1", "2"]}))
    await quiet.queue().revive("a", payload=payload)
    task = (await quiet.queue().get_task("a")).task

    assert (payload.encode() if isinstance(payload, str) else payload, "/w") == (task.payload, task.url)
    assert ["1", "2"] == task.headers.getall("X-Two")


@pytest.mark.parametrize(("url", "expected"), [("/other", "/other"), ("", "/_ah/queue/default")])
async def test_revive_with_another_url(quiet: TaskQueueService, url: str, expected: str) -> None:
    """The URL can be replaced; an empty one is the queue's."""
    await bury(quiet, mortal("a", payload=b"x"))
    await quiet.queue().revive("a", url=url)
    task = (await quiet.queue().get_task("a")).task

    assert (b"x", expected) == (task.payload, task.url)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"url": "/w?x=1"}, InvalidTaskError), ({"url": "w"}, InvalidUrlError), ({"payload": b"x" * 200_000}, TaskTooLargeError)],
)
async def test_revive_with_bad_content(quiet: TaskQueueService, arguments: Any, error: type[Exception]) -> None:
    """What no task could have is refused, and nothing is revived."""
    await bury(quiet, mortal("a"))
    with pytest.raises(error):
        await quiet.queue().revive("a", **arguments)

    assert ["a"] == await names_of(quiet.queue().dead_tasks())


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (["a", "unknown"], UnknownTaskError),
        (["a", "../x"], UnknownTaskError),
        (["a", "alive"], BadTaskStateError),
        (["a", "a"], DuplicateTaskNameError),
    ],
)
@pytest.mark.parametrize("arguments", [{}, {"payload": b"x"}], ids=["as it was", "edited"])
async def test_revive_all_or_none(quiet: TaskQueueService, names: list[str], error: type[Exception], arguments: Any) -> None:
    """If one cannot be revived, none is; a second revive is refused like that of any task that lives (RELIABILITY 129)."""
    await bury(quiet, mortal("a"))
    await quiet.add(url="/w", name="alive", countdown=60)
    with pytest.raises(error):
        await quiet.queue().revive(names, **arguments)

    assert ["a"] == await names_of(quiet.queue().dead_tasks())
