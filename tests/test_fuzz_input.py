"""Any arguments whatever: what is refused is refused as documented, and what is accepted can be stored and comes back equal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import attrs
import pytest
from bad_values import Odd, accepted, anything, odd_values, refused, searching, some_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from open_stores import NOW, SECOND, add, lease, new_record, running, settle

from aiotaskqueue import Queue, QueueConfig, QueueStatistics, Task, TaskQueueService, TaskRetryOptions, errors
from aiotaskqueue._config_files import load_queues
from aiotaskqueue._outcome import Attempt, decide
from aiotaskqueue._record import TaskState
from aiotaskqueue.delivery._base import Answer
from aiotaskqueue.testing import RecordingDelivery

QUEUES = [QueueConfig("default"), QueueConfig("pull", mode="pull")]

# What a queue allows or not is not the matter here.
TARGETS = {"mailer": "http://mailer.example"}


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """An event loop that lasts over all examples of a test, which Hypothesis runs without one."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def service(runner: asyncio.Runner, tmp_path: Path) -> Iterator[TaskQueueService]:
    """A running service on a file, that delivers nothing."""
    service = TaskQueueService(tmp_path / "tasks.db", queues=QUEUES, targets=TARGETS, dispatch=False, durability="normal")
    runner.run(service.start())
    yield service
    runner.run(service.aclose())


# --- tasks and options ---------------------------------------------------------------------------------------------

TASK: dict[str, SearchStrategy[Any]] = {
    "payload": anything,
    "name": anything,
    "method": anything | st.sampled_from(["GET", "PULL", "put"]),
    "url": anything | st.text(max_size=8).map("/".__add__),
    "headers": anything | st.dictionaries(st.text(max_size=5), anything, max_size=3),
    "params": anything | st.dictionaries(st.text(max_size=5), anything, max_size=3),
    "countdown": anything,
    "eta": anything,
    "retry_options": anything,
    "target": anything,
    "tag": anything,
    "dispatch_deadline_seconds": anything,
}


@searching
def test_any_task(budget: settings) -> None:
    """Whatever a task is made of, it is a task that can be shown, or it is refused as documented."""

    @budget
    @given(some_of(TASK))
    def check(arguments: dict[str, Any]) -> None:
        task = accepted(Task, **arguments)

        assert task is None or repr(task).startswith("Task<")

    check()


@pytest.mark.parametrize("value", odd_values, ids=lambda value: value.name)
@pytest.mark.parametrize("name", [*TASK])
def test_odd_arguments_of_a_task(name: str, value: Odd) -> None:
    """A value that can neither be shown nor compared is refused like any other."""
    assert accepted(Task, **{name: value}) is None


OPTIONS = {name: anything | st.floats(0) for name in attrs.fields_dict(TaskRetryOptions)}


@searching
def test_any_retry_options(budget: settings) -> None:
    """Whatever retry options are made of, they are some, or they are refused as documented."""

    @budget
    @given(some_of(OPTIONS))
    def check(arguments: dict[str, Any]) -> None:
        options = accepted(TaskRetryOptions, **arguments)

        assert options is None or options == attrs.evolve(options)

    check()


_BACKOFFS = st.lists(st.floats(0, 1e300) | st.integers(0, 10**300), min_size=2, max_size=2).map(sorted)
GOOD_OPTIONS = st.builds(
    lambda backoffs, **rest: TaskRetryOptions(min_backoff_seconds=backoffs[0], max_backoff_seconds=backoffs[1], **rest),
    _BACKOFFS,
    max_doublings=st.integers(0, 10**308),
    task_retry_limit=st.integers(0, 2**70) | st.none(),
    task_age_limit=st.floats(0, 1e300) | st.none(),
)
_ASCII = st.text("abZ09_-", min_size=1, max_size=6)

# Mostly accepted; the bounds themselves are the matter of test_task_input.
GOOD_TASK: dict[str, SearchStrategy[Any]] = {
    "payload": st.text(max_size=30) | st.binary(max_size=30) | st.binary(min_size=2040, max_size=2060),
    "name": _ASCII,
    "method": st.sampled_from(["GET", "HEAD", "PULL", "PUT", "DELETE"]),
    "url": st.text(st.characters(exclude_categories=["Cc", "Cs", "Zs"], exclude_characters="#%?"), max_size=15).map("/".__add__),
    "headers": st.dictionaries(_ASCII, st.text("aZ \t\x80\xff", max_size=5) | st.lists(_ASCII, max_size=3), max_size=3),
    "params": st.dictionaries(st.text(max_size=4), st.integers() | st.floats() | st.lists(st.text(max_size=3), max_size=3), max_size=3),
    "countdown": st.floats(-1e9, 2e11) | st.timedeltas(),
    "eta": st.datetimes(timezones=st.just(UTC)),
    "retry_options": GOOD_OPTIONS,
    "target": st.sampled_from(["mailer", ""]),
    "tag": st.text(max_size=5),
    "dispatch_deadline_seconds": st.floats(1, 86_400),
}
SHOWN = ["name", "method", "url", "payload", "headers", "eta", "retry_options", "target", "dispatch_deadline_seconds", "queue_name", "size"]


async def store_and_look(service: TaskQueueService, task: Task) -> list[tuple[str, object, object]]:
    """Add a task, read it back, remove it; return what is different: property, before, after."""
    queue = service.queue("pull" if task.method == "PULL" else "default")
    await queue.add(task)
    stored = (await queue.get_task(task.name or "")).task
    await queue.delete_tasks(stored)
    pairs = [(name, getattr(task, name), getattr(stored, name)) for name in SHOWN]
    return [pair for pair in [*pairs, ("tag", task.tag or None, stored.tag)] if pair[1] != pair[2]]


@searching
def test_any_task_comes_back_as_it_was_added(budget: settings, runner: asyncio.Runner, service: TaskQueueService) -> None:
    """What a task was accepted with is what is read from the store."""

    @budget
    @given(some_of(GOOD_TASK))
    def check(arguments: dict[str, Any]) -> None:
        task = accepted(Task, **arguments)
        if task is None:
            return
        # A name may have been used before, and a countdown may lead out of the calendar only now.
        with contextlib.suppress(errors.TombstonedTaskError, errors.InvalidEtaError):
            assert [] == runner.run(store_and_look(service, task))

    check()


# --- queues --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", odd_values, ids=lambda value: value.name)
@pytest.mark.parametrize("name", [*attrs.fields_dict(QueueConfig)])
def test_odd_fields_of_a_queue(name: str, value: Odd) -> None:
    """A value that can neither be shown nor compared is refused like any other."""
    assert accepted(QueueConfig, **{"name": "mail", name: value}) is None


FIELDS = dict.fromkeys(attrs.fields_dict(QueueConfig), anything)


@searching
def test_any_queue_config(budget: settings) -> None:
    """Whatever a queue is made of, it is one whose rate is known, or it is refused as documented."""

    @budget
    @given(some_of(FIELDS))
    def check(arguments: dict[str, Any]) -> None:
        config = accepted(QueueConfig, **{"name": "mail", **arguments})

        assert config is None or config.rate_per_second is None or config.rate_per_second >= 0

    check()


@searching
def test_any_queue_name(budget: settings) -> None:
    """Whatever is given as a queue's name or as the queues of a service, it is taken or refused as documented."""

    @budget
    @given(anything)
    def check(value: Any) -> None:
        accepted(Queue, value)
        accepted(load_queues, value)

    check()


RATES = st.tuples(st.sampled_from(["0", "1", "0.000001", "999999999.999999", "33.3"]), st.sampled_from("smhd")).map("/".join)
GOOD_FIELDS: dict[str, SearchStrategy[Any]] = {
    "rate": RATES | st.none(),
    "bucket_size": st.integers(0, 100_000_000),
    "max_concurrent_requests": st.integers(0, 100_000_000),
    "retry_options": GOOD_OPTIONS,
    "dispatch_deadline_seconds": st.floats(1, 86_400),
    "tombstone_seconds": st.floats(0, 1e10),
    "dead_retention_seconds": st.floats(0, 1e10),
    "jitter": st.floats(0, 1),
    "crash_limit": st.integers(1, 100_000_000),
}
_TIMES = st.sampled_from([None, "0", "9" * 15, "Fri, 31 Dec 9999 23:59:59 GMT"])
ANSWERS = st.builds(Answer, st.sampled_from([200, 429, 500, 503]), retry_after=_TIMES)


async def go_through(config: QueueConfig, answer: Answer, random_value: float) -> int:
    """Add a named task to a queue, lease it, settle it, lease once more, and sweep; return how many tasks are left."""
    async with running(":memory:", config) as store:
        await add(store, new_record("task", queue=config), queue=config)
        for record in (await lease(store, config)).leased:
            attempt = Attempt(
                record=record, config=config, result=answer, started_usec=NOW, ended_usec=NOW + SECOND, random_value=random_value
            )
            assert await settle(store, record, decide(attempt), now_usec=NOW + SECOND)
        await lease(store, config, now_usec=NOW + 2 * SECOND)
        await store.sweep(now_usec=NOW + 3 * SECOND, limit=10)
        return len(await store.list_tasks(config.name, states=[*TaskState]))


@searching
def test_any_queue_can_be_worked_with(budget: settings, runner: asyncio.Runner) -> None:
    """Whatever a queue was accepted with, tasks go through it, and no number that comes of it is too large to be stored."""

    @budget
    @given(some_of(GOOD_FIELDS), ANSWERS, st.floats(0, 1))
    def check(fields: dict[str, Any], answer: Answer, random_value: float) -> None:
        left = runner.run(go_through(QueueConfig("mail", **fields), answer, random_value))

        assert left in (0, 1)

    check()


# --- files of queues -----------------------------------------------------------------------------------------------

_WORDS = [
    "queue",
    ": ",
    "\n- ",
    "name: ",
    "rate: ",
    "a = ",
    "[[queue]]\n",
    "&a ",
    "*a ",
    "!!str ",
    "5/s",
    "1e99",
    "---\n",
    "{",
    "}",
    "[",
    "]",
    '"',
]
_CONTENTS = st.lists(st.sampled_from([*_WORDS, *"\0\a\t\n :-?,#|>'\\~<09.sn\xe9\x85\ufeff\ud800"]), max_size=25).map("".join)
_PLAIN = ["5/s", "2d", "pull", "mailer", "true", "0", "-1", "1e99", "nan", ".5", "1_000", "\u0663", "9" * 400, "[200]"]
_VALUES = st.sampled_from(_PLAIN) | st.text(max_size=6)
_KEYS = st.sampled_from([*attrs.fields_dict(QueueConfig), "acl", "retry_parameters", *attrs.fields_dict(TaskRetryOptions)])


def as_file(fields: dict[str, str], suffix: str) -> str:
    """Return a file with one queue that has these fields."""
    if suffix == "yaml":
        return "queue:\n- name: mail\n" + "".join(f"  {key}: {value}\n" for key, value in fields.items())
    return '[[queue]]\nname = "mail"\n' + "".join(f"{key} = {value}\n" for key, value in fields.items())


@searching
@pytest.mark.parametrize("suffix", ["yaml", "toml"])
def test_any_file_of_queues(budget: settings, tmp_path: Path, suffix: str) -> None:
    """Whatever a file contains, it describes queues or is refused as documented."""
    path = tmp_path / f"queue.{suffix}"

    @budget
    @given(_CONTENTS | st.dictionaries(_KEYS, _VALUES, max_size=3).map(lambda fields: as_file(fields, suffix)) | st.binary(max_size=30))
    def check(content: str | bytes) -> None:
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        queues = accepted(load_queues, path)

        assert queues is None or "default" in [config.name for config in queues]

    check()


# --- the service and its queues ------------------------------------------------------------------------------------

SERVICE: dict[str, SearchStrategy[Any]] = {
    "queues": anything,
    "target": anything | st.text(max_size=10).map("http://".__add__),
    "targets": anything | st.dictionaries(st.text(max_size=3), anything, max_size=2),
    "secrets": anything | st.lists(st.binary(min_size=30, max_size=40) | st.text(min_size=40, max_size=50), max_size=2),
    "dispatch": anything,
    "eager": anything,
    "durability": anything,
    "max_concurrent_deliveries": anything,
    "clock": anything,
    "delivery": anything,
    "store": anything,
    "seed": anything,
}


@pytest.mark.parametrize("value", [value for value in odd_values if value.name != "5001 digits"], ids=lambda value: value.name)
@pytest.mark.parametrize("name", [*SERVICE])
def test_odd_arguments_of_a_service(name: str, value: Odd) -> None:
    """A value that can neither be shown nor compared is refused like any other."""
    assert accepted(TaskQueueService, ":memory:", **{name: value}) is None


@searching
def test_any_arguments_of_a_service(budget: settings) -> None:
    """Whatever a service is made of, it is one that says so, or it is refused as documented."""

    @budget
    @given(st.just(":memory:") | anything, some_of(SERVICE))
    def check(database: Any, arguments: dict[str, Any]) -> None:
        service = accepted(TaskQueueService, database, **arguments)

        assert service is None or not service.health().is_ok

    check()


async def start_and_close(database: Any) -> None:
    """Start a service and close it again."""
    async with TaskQueueService(database, dispatch=False, durability="normal"):
        pass


_PATHS = st.text(max_size=300) | st.text("a/.\xe9\ud800", min_size=200, max_size=5000) | _CONTENTS.map("sqlite:///".__add__)


@searching
def test_any_database(budget: settings, runner: asyncio.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is given as the path of a database, it can be opened or is refused as documented."""
    monkeypatch.chdir(tmp_path)

    @budget
    # No path that leads out of the folder.
    @given(_PATHS.map(lambda path: path.lstrip("/").replace("..", ".").replace("////", "///")))
    def check(database: str) -> None:
        try:
            runner.run(start_and_close(database))
        except errors.Error as exc:
            refused(exc)

    check()


LIST: dict[str, SearchStrategy[Any]] = {
    "state": anything,
    "url": anything,
    "tag": anything,
    "name_prefix": anything,
    "after": anything | st.tuples(st.integers() | anything, anything),
    "limit": anything,
}


async def listed(queue: Queue, arguments: dict[str, Any]) -> int:
    """Return how many tasks there are."""
    return len([stored async for stored in queue.list_tasks(**arguments)])


async def awaited(awaitable: Awaitable[object]) -> object:
    """Return what it gives; a runner wants a coroutine."""
    return await awaitable


CALLS: dict[str, Callable[[TaskQueueService, Any, Any], Awaitable[object]]] = {
    "add": lambda service, value, other: service.queue().add(value, other),
    "delete_tasks": lambda service, value, other: service.queue().delete_tasks(value),
    "delete_tasks_by_name": lambda service, value, other: service.queue().delete_tasks_by_name(value),
    "run_task": lambda service, value, other: service.queue().run_task(value),
    "revive": lambda service, value, other: service.queue().revive(value, payload=other),
    "revive with a URL": lambda service, value, other: service.queue().revive("unknown", url=other),
    "get_task": lambda service, value, other: service.queue().get_task(value),
    "statistics": lambda service, value, other: QueueStatistics.fetch(value),
    "add to a queue": lambda service, value, other: service.add(other, queue_name=value),
    "Task.add": lambda service, value, other: Task(url="/w").add(value, other),
    "aclose": lambda service, value, other: TaskQueueService(":memory:", delivery=RecordingDelivery()).aclose(value),
    "drain": lambda service, value, other: TaskQueueService(":memory:", delivery=RecordingDelivery()).drain(value),
}


@searching
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_any_arguments_of_a_call(
    budget: settings, runner: asyncio.Runner, service: TaskQueueService, call: Callable[[TaskQueueService, Any, Any], Awaitable[object]]
) -> None:
    """Whatever a queue is asked for, it does so or refuses as documented."""

    @budget
    @given(anything, anything)
    def check(value: Any, other: Any) -> None:
        accepted(lambda value, other: runner.run(awaited(call(service, value, other))), value, other)

    check()


@searching
def test_any_list(budget: settings, runner: asyncio.Runner, service: TaskQueueService) -> None:
    """Whatever a list is narrowed by, it is a list or is refused as documented."""
    runner.run(service.add(url="/w"))

    @budget
    @given(some_of(LIST))
    def check(arguments: dict[str, Any]) -> None:
        found = accepted(lambda **given: runner.run(listed(service.queue(), given)), **arguments)

        assert found in (None, 0, 1)

    check()
