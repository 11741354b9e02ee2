"""Queue: construction, add, names and limits as App Engine has them (SPEC 3.1 to 3.4, GAE taskqueue.Queue)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest

from aiotaskqueue import Queue, QueueConfig, Task, TaskQueueService
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.errors import (
    BadTaskStateError,
    BadTransactionStateError,
    DuplicateTaskNameError,
    InvalidEtaError,
    InvalidQueueModeError,
    InvalidQueueNameError,
    InvalidTaskError,
    NotStartedError,
    TaskAlreadyExistsError,
    TombstonedTaskError,
    TooManyTasksError,
    UnknownQueueError,
    UnknownTargetError,
)
from aiotaskqueue.testing import RecordingDelivery, VirtualClock

pytestmark = pytest.mark.anyio

QUEUES = [QueueConfig(name="default"), QueueConfig(name="mail"), QueueConfig(name="mail-urgent"), QueueConfig(name="pull", mode="pull")]


@pytest.fixture
async def service() -> AsyncIterator[TaskQueueService]:
    """A service of a few queues, in which nothing runs before a test says so."""
    async with TaskQueueService(":memory:", queues=QUEUES, delivery=RecordingDelivery(), clock=VirtualClock()) as service:
        yield service


async def names(service: TaskQueueService, queue_name: str = "default") -> list[str | None]:
    """Return the names of the queue's tasks."""
    return [task.name for task in await service.get_filtered_tasks(queue_names=queue_name)]


# --- construction (SPEC 3.1) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "a", "A-1", "0", "-", "x" * 100])
def test_name(name: str) -> None:
    """SPEC 3.1: 1 to 100 letters, digits and hyphens are a name."""
    assert name == Queue(name).name


def test_default_name() -> None:
    """SPEC 3.1: without a name it is the queue default."""
    assert "default" == Queue().name


@pytest.mark.row(41)
@pytest.mark.parametrize("name", ["", "bad name!", "a_b", "a.b", "x" * 101, "ü", "a\n", None, 5, b"a"])
def test_invalid_name(name: Any) -> None:
    """SPEC 3.1, RELIABILITY 41: any other name is an error that shows it and the rule."""
    with pytest.raises(InvalidQueueNameError) as caught:
        Queue(name)

    assert "does not match ^[a-zA-Z0-9-]{1,100}$." in str(caught.value)
    assert repr(name)[:70] in str(caught.value)


def test_equality() -> None:
    """SPEC 3.1: queues of one name are equal, and equal to nothing else."""
    assert Queue("a") == Queue("a")
    assert Queue("a") != Queue("b")
    assert Queue("a") != "a"
    assert NotImplemented is Queue("a").__eq__("a")
    assert {Queue("a")} == {Queue("a"), Queue("a")}


def test_repr() -> None:
    """SPEC 3.1: the repr shows the name."""
    assert "Queue<name='mail'>" == repr(Queue("mail"))


async def test_queue_of_a_service(service: TaskQueueService) -> None:
    """A queue that a service hands out is of that service, whatever else runs."""
    async with TaskQueueService(":memory:", dispatch=False):
        await service.queue("mail").add(Task(url="/w", name="a"))

    assert ["a"] == await names(service, "mail")


# --- what add takes and gives (SPEC 3.2) ---------------------------------------------------------------------------


@pytest.mark.row(1)
async def test_add_one(service: TaskQueueService) -> None:
    """SPEC 3.2: adding a task returns that very task, now with name, queue, ETA and URL."""
    task = Task(params={"a": 1})

    assert task is await Queue("mail").add(task)
    assert (True, "mail", "/_ah/queue/mail") == (task.was_enqueued, task.queue_name, task.url)
    assert 22 == len(task.name or "")
    assert service.clock.time() == task.eta_posix


@pytest.mark.row(39)
@pytest.mark.parametrize("kind", [list, tuple, iter, lambda tasks: (task for task in tasks)], ids=["list", "tuple", "iter", "generator"])
async def test_add_several(service: TaskQueueService, kind: Callable[[list[Task]], Iterable[Task]]) -> None:
    """SPEC 3.2: adding an iterable returns a list of those very tasks, in order."""
    tasks = [Task(url="/1"), Task(url="/2"), Task(url="/3")]
    added = await Queue().add(kind(tasks))

    assert [id(task) for task in tasks] == [id(task) for task in added]
    assert all(task.was_enqueued for task in tasks)
    assert 3 == len(set(await names(service)))


@pytest.mark.row(39)
@pytest.mark.parametrize("nothing", [[], (), None])
async def test_add_nothing(nothing: Any) -> None:
    """SPEC 3.2: adding nothing returns [], and needs not even a service."""
    assert [] == await Queue().add(nothing)
    assert [] == await Queue().add(iter(()))


@pytest.mark.row(39)
@pytest.mark.parametrize("thing", [5, object()])
async def test_add_something_else(service: TaskQueueService, thing: Any) -> None:
    """RELIABILITY 39: what is neither a task nor an iterable is a TypeError that names its type."""
    with pytest.raises(TypeError, match=r"A Task or an iterable of Tasks can be added, not an object of type (int|object)\."):
        await Queue().add(thing)


@pytest.mark.row(39)
@pytest.mark.parametrize("tasks", [[Task(url="/w"), "x"], "ax", [Task(url="/w"), Task]])
async def test_add_list_with_something_else(service: TaskQueueService, tasks: Any) -> None:
    """RELIABILITY 39: a list with anything but tasks is a TypeError that names place and type, and nothing is stored."""
    with pytest.raises(TypeError, match=r"Only Tasks can be added; number [01] of the list is of type (str|type)\."):
        await Queue().add(tasks)

    assert [] == await names(service)


async def test_generated_names(service: TaskQueueService) -> None:
    """D12: every task of an add gets a name, and no two the same."""
    tasks = await Queue().add([Task(url="/w") for _ in range(500)])

    assert 500 == len({task.name for task in tasks if task.name})


@pytest.mark.row(25)
async def test_name_is_unique_per_queue(service: TaskQueueService) -> None:
    """SPEC 3.4: one name may be in several queues, and names that differ by case are two."""
    await Queue("mail").add(Task(url="/w", name="a"))
    await Queue().add(Task(url="/w", name="a"))
    await Queue().add(Task(url="/w", name="A"))

    assert [["a"], ["A", "a"]] == [await names(service, "mail"), await names(service)]


async def test_add_from_task(service: TaskQueueService) -> None:
    """SPEC 1.10: Task.add adds to the queue of that name, and returns the task."""
    task = Task(url="/w", name="a")

    assert task is await task.add("mail")
    assert ["a"] == await names(service, "mail")


async def test_task_may_run_before_the_add_returns() -> None:
    """SPEC 3.4: an add wakes the dispatcher; a task that is due runs at once."""
    ran = asyncio.Event()

    def respond(record: TaskRecord) -> int:
        ran.set()
        return 200

    async with TaskQueueService(":memory:", delivery=RecordingDelivery(respond)), asyncio.timeout(5):
        await Task(url="/w").add()
        await ran.wait()

    assert ran.is_set()


# --- limits (SPEC 3.3) ---------------------------------------------------------------------------------------------


@pytest.mark.row(39)
@pytest.mark.slow
async def test_most_tasks(service: TaskQueueService) -> None:
    """SPEC 3.3, D20: 10,000 tasks can be added at once."""
    await Queue().add(Task(url="/w") for _ in range(10_000))

    assert 10_000 == (await Queue().fetch_statistics()).tasks


@pytest.mark.row(39)
async def test_too_many_tasks(service: TaskQueueService) -> None:
    """SPEC 3.3: of more than 10,000 tasks none is stored, though they have no end."""
    with pytest.raises(TooManyTasksError, match=r"^More than 10000 tasks are too many for one add; divide them\.$"):
        await Queue().add(Task(url="/w") for _ in itertools.count())

    assert 0 == (await Queue().fetch_statistics()).tasks


# --- what is refused, and in which order (SPEC 3.4) ----------------------------------------------------------------


def pull(**arguments: Any) -> Task:
    """Return a pull task."""
    return Task("payload", method="PULL", **arguments)


def added_before() -> Task:
    """Return a task that looks as if it had been added to another queue."""
    task = Task(url="/w", name="before")
    task._queue_name = "elsewhere"
    return task


REFUSED: dict[str, tuple[type[Exception], str, Callable[[], list[Task]], str]] = {
    "mixed": (InvalidTaskError, "default", lambda: [Task(url="/w"), pull()], "Push and pull tasks are mixed in one add; add them to"),
    "mixed before duplicate": (InvalidTaskError, "default", lambda: [Task(name="a"), pull(name="a")], "Push and pull tasks are mixed"),
    "duplicate": (
        DuplicateTaskNameError,
        "default",
        lambda: [Task(name="a"), Task(name="b"), Task(name="a")],
        "Task name 'a' appears twice in one add; names are unique in a queue.",
    ),
    "duplicate before state": (DuplicateTaskNameError, "default", lambda: [added_before(), Task(name="before")], "'before' appears twice"),
    "state": (
        BadTaskStateError,
        "default",
        lambda: [Task(url="/w"), added_before()],
        "Task 'before' was added before, to queue 'elsewhere'; make a new Task.",
    ),
    "state before queue": (BadTaskStateError, "unknown", lambda: [added_before()], "was added before"),
    "queue": (
        UnknownQueueError,
        "mial",
        lambda: [Task(url="/w")],
        "Queue 'mial' is not configured; did you mean 'mail'",
    ),
    "queue, nothing near": (
        UnknownQueueError,
        "zzz",
        lambda: [Task(url="/w")],
        "Queue 'zzz' is not configured; did you mean 'default' or 'mail' or 'mail-urgent' or 'pull'?",
    ),
    "pull to push": (
        InvalidQueueModeError,
        "mail",
        lambda: [pull()],
        "Queue 'mail' is a push queue; a pull task cannot be added to it.",
    ),
    "push to pull": (
        InvalidQueueModeError,
        "pull",
        lambda: [Task(url="/w")],
        "Queue 'pull' is a pull queue; a push task cannot be added to it.",
    ),
    "target": (
        UnknownTargetError,
        "default",
        lambda: [Task(url="/w"), Task(url="/w", target="other")],
        "Target 'other' of task number 1 is not configured; known are none (TaskQueueService(targets=...)).",
    ),
    "eta": (InvalidEtaError, "default", lambda: [Task(url="/w"), Task(url="/w", countdown=-1e10)], "1970"),
}


@pytest.mark.promise("P14")
@pytest.mark.row(35, 39, 40, 41)
@pytest.mark.parametrize(("error", "queue_name", "make", "message"), REFUSED.values(), ids=REFUSED)
async def test_refused(
    service: TaskQueueService, error: type[Exception], queue_name: str, make: Callable[[], list[Task]], message: str
) -> None:
    """SPEC 3.4, P14, RELIABILITY 35, 39 to 41: one bad task stores none, and none is marked; the first check that fails decides."""
    tasks = make()
    before = [task.was_enqueued for task in tasks]
    with pytest.raises(error) as caught:
        await Queue(queue_name).add(tasks)

    assert error is type(caught.value)
    assert message in str(caught.value)
    assert before == [task.was_enqueued for task in tasks]
    assert [] == await service.get_filtered_tasks()


async def test_refused_tasks_can_be_added_elsewhere(service: TaskQueueService) -> None:
    """SPEC 3.4: a task that was refused is as good as new."""
    task = Task(url="/w")
    with pytest.raises(UnknownQueueError):
        await task.add("unknown")

    assert task is await task.add("mail")


@pytest.mark.promise("P14")
async def test_one_of_a_hundred(service: TaskQueueService) -> None:
    """P14: of a hundred tasks with the 57th invalid none is stored, and the error names its number."""
    tasks = [Task(url="/w", target="nowhere" if number == 57 else None) for number in range(100)]
    with pytest.raises(UnknownTargetError, match="task number 57 "):
        await Queue().add(tasks)

    assert 0 == (await Queue().fetch_statistics()).tasks


@pytest.mark.row(35)
async def test_known_targets_are_named() -> None:
    """RELIABILITY 35: the error of an unknown target names those that are known."""
    async with TaskQueueService(":memory:", targets={"b": "http://b.example", "a": "http://a.example"}, dispatch=False):
        with pytest.raises(UnknownTargetError, match="known are 'a', 'b' "):
            await Task(url="/w", target="c").add()


@pytest.mark.row(41)
@pytest.mark.parametrize("name", ["bad name!", "", None, ["x"]])
async def test_task_add_to_an_impossible_queue(service: TaskQueueService, name: Any) -> None:
    """RELIABILITY 41: adding to a queue that cannot exist is an error of its name."""
    task = Task(url="/w")
    with pytest.raises(InvalidQueueNameError):
        await task.add(name)

    assert not task.was_enqueued


@pytest.mark.row(41)
async def test_handing_out_an_unknown_queue(service: TaskQueueService) -> None:
    """RELIABILITY 41: a service hands out only queues that are configured, and names near ones."""
    with pytest.raises(UnknownQueueError, match="did you mean 'mail'"):
        service.queue("male")
    with pytest.raises(InvalidQueueNameError):
        service.queue("bad name!")


async def test_transactional_outside_of_a_transaction(service: TaskQueueService) -> None:
    """SPEC 3.6: a transactional add outside of a transaction is an error, and nothing is stored."""
    task = Task(url="/w")
    with pytest.raises(BadTransactionStateError, match=r"add with transactional=False\.$"):
        await task.add(transactional=True)

    assert not task.was_enqueued
    assert [] == await names(service)


@pytest.mark.row(49)
async def test_add_without_a_service() -> None:
    """RELIABILITY 49: adding while no service runs says how to start one."""
    with pytest.raises(NotStartedError, match=r"start one with 'async with TaskQueueService\(...\)' or init_app"):
        await Queue().add(Task(url="/w"))


# --- one object, once (SPEC 1.10, RELIABILITY 37) ------------------------------------------------------------------


@pytest.mark.row(37)
async def test_task_added_twice(service: TaskQueueService) -> None:
    """SPEC 1.10: a task that was added cannot be added again, to no queue."""
    task = await Task(url="/w").add()
    for queue_name in ("default", "mail"):
        with pytest.raises(BadTaskStateError, match="was added before, to queue 'default'; make a new Task"):
            await task.add(queue_name)

    assert [task.name] == [stored.name for stored in await service.get_filtered_tasks()]


@pytest.mark.row(37)
@pytest.mark.parametrize("name", [None, "a"])
async def test_task_given_twice_in_one_add(service: TaskQueueService, name: str | None) -> None:
    """RELIABILITY 37: one object twice in one add is BadTaskStateError, named or not; nothing is stored or marked."""
    task, other = Task(url="/w", name=name), Task(url="/w")
    with pytest.raises(BadTaskStateError):
        await Queue().add([other, task, task])

    assert [False, False] == [task.was_enqueued, other.was_enqueued]
    assert [] == await names(service)
    assert [task, other] == await Queue().add([task, other])


@pytest.mark.row(37)
async def test_task_added_twice_at_once(service: TaskQueueService) -> None:
    """RELIABILITY 37: of adds of one object at the same time one stores it, and the others are BadTaskStateError."""
    task = Task(url="/w")
    results = await asyncio.gather(task.add(), task.add("mail"), Queue().add([Task(url="/w"), task]), return_exceptions=True)

    assert [task, BadTaskStateError, BadTaskStateError] == [results[0], *map(type, results[1:])]
    assert [task.name] == [stored.name for stored in await service.get_filtered_tasks()]


@pytest.mark.row(37)
async def test_task_added_to_two_services_at_once(service: TaskQueueService) -> None:
    """RELIABILITY 37: that holds over services as well."""
    task = Task(url="/w")
    async with TaskQueueService(":memory:", dispatch=False) as other:
        results = await asyncio.gather(service.queue().add(task), other.queue().add(task), return_exceptions=True)

        assert [] == await other.get_filtered_tasks()

    assert [task, BadTaskStateError] == [results[0], type(results[1])]


@pytest.mark.promise("P15")
async def test_cancelled_add(service: TaskQueueService) -> None:
    """P15: a cancelled add has stored all tasks or none; the objects can be added again, and names tell which it was."""
    tasks = [Task(url="/w", name="a"), Task(url="/w", name="b")]
    adding = asyncio.create_task(service.queue().add(tasks))
    await asyncio.sleep(0)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding

    assert [False, False] == [task.was_enqueued for task in tasks]
    with contextlib.suppress(TaskAlreadyExistsError):
        await Queue().add(tasks)

    assert ["a", "b"] == await names(service)


# --- names that are taken (SPEC 3.4, 3.5) --------------------------------------------------------------------------


async def test_name_in_the_queue(service: TaskQueueService) -> None:
    """SPEC 3.4: a name that is that of a task in the queue is refused, and the task not marked."""
    await Task(url="/1", name="a").add()
    second = Task(url="/2", name="a")
    with pytest.raises(TaskAlreadyExistsError, match=r"^Queue 'default' has a task named 'a' already; choose another name\.$"):
        await second.add()

    assert (False, None) == (second.was_enqueued, second.queue_name)
    assert ["/1"] == [task.url for task in await service.get_filtered_tasks()]


async def test_name_that_was_used(service: TaskQueueService) -> None:
    """SPEC 3.5: the name of a task that is done stays reserved."""
    await Task(url="/w", name="a").add()
    await service.run_until_idle()
    expected = r"^Queue 'default' used the name 'a' before and keeps it reserved; choose another name\.$"
    with pytest.raises(TombstonedTaskError, match=expected):
        await Task(url="/w", name="a").add()

    assert [] == await names(service)


@pytest.mark.promise("P14")
async def test_others_are_stored(service: TaskQueueService) -> None:
    """SPEC 3.4, P14: of several tasks those whose names are taken are refused and named, and the others are stored."""
    await Task(url="/w", name="used").add()
    await service.run_until_idle()
    await Task(url="/w", name="there").add()
    tasks = [Task(url="/w", name=name) for name in ("x", "there", "used", "y")]
    with pytest.raises(TaskAlreadyExistsError) as caught:
        await Queue().add(tasks)

    expected = (
        "Queue 'default' has a task named 'there' already and used the name 'used' before and keeps it reserved; "
        "the other tasks were stored; choose another name."
    )
    assert expected == str(caught.value)
    assert [True, False, False, True] == [task.was_enqueued for task in tasks]
    assert ["there", "x", "y"] == await names(service)


async def test_first_conflict_decides(service: TaskQueueService) -> None:
    """SPEC 3.4: the first conflict decides the class of the error."""
    await Task(url="/w", name="used").add()
    await service.run_until_idle()
    await Task(url="/w", name="there").add()
    with pytest.raises(TombstonedTaskError):
        await Queue().add([Task(url="/w", name="used"), Task(url="/w", name="there")])


async def test_refused_name_leaves_the_object_usable(service: TaskQueueService) -> None:
    """SPEC 3.4: a task that was refused for its name can be added to another queue."""
    await Task(url="/w", name="a").add()
    second = Task(url="/w", name="a")
    with pytest.raises(TaskAlreadyExistsError):
        await second.add()
    await second.add("mail")

    assert ["a"] == await names(service, "mail")


async def test_many_conflicts(service: TaskQueueService) -> None:
    """The message stays readable: ten names, each shortened, and how many more there are."""
    long_names = [f"{number:02}" + "x" * 490 for number in range(12)]
    await Queue().add([Task(url="/w", name=name) for name in long_names])
    with pytest.raises(TaskAlreadyExistsError, match=r" \(and 2 more\) already; choose another name\.$") as caught:
        await Queue().add([Task(url="/w", name=name) for name in long_names])

    assert len(str(caught.value)) < 1000


@pytest.mark.promise("P12")
async def test_one_name_from_many_tasks(service: TaskQueueService) -> None:
    """P12: of many adds of one name at the same time exactly one succeeds, and every other gets a typed error."""
    adds = [Task(url="/w", name="only").add() for _ in range(64)]
    results = await asyncio.gather(*adds, return_exceptions=True)

    assert 1 == sum(isinstance(result, Task) for result in results)
    assert 63 == sum(isinstance(result, TaskAlreadyExistsError) for result in results)
    assert ["only"] == await names(service)
