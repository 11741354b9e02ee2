"""The dispatcher, through a service on a real file: what starts when, how it ends, and that nothing is ever forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from on_clock import EXACT, Bench, Hold, TouchyStore, serving, spawned, turns, until
from open_stores import add, find_drift, lease, new_record, query, running, settle

from aiotaskqueue import QueueConfig, Task, TaskQueueService, TaskRetryOptions
from aiotaskqueue._clock import Wakeup
from aiotaskqueue._record import TaskRecord, TaskState
from aiotaskqueue.delivery._base import Answer, Delivery, FailureReason, NoAnswer
from aiotaskqueue.errors import ClosedError, OutcomeUnknownError, StoreBusyError, StoreFullError, TaskAlreadyExistsError
from aiotaskqueue.stores._base import Retry
from aiotaskqueue.testing import RecordingDelivery, VirtualClock

pytestmark = pytest.mark.anyio

STALE = NoAnswer(FailureReason.STALE)
UNREACHABLE = NoAnswer(FailureReason.UNREACHABLE)
DAY = 86_400


def due(bench: Bench, name: str, seconds_ago: float = 0.0, **arguments: object) -> Task:
    """Return a task that has been due for some seconds."""
    return Task(url="/w", name=name, eta=bench.clock.now - timedelta(seconds=seconds_ago), **arguments)  # type: ignore[arg-type]


def queues(*names: str, **settings: object) -> list[QueueConfig]:
    """Return queues that differ in nothing but their names."""
    return [QueueConfig(name, jitter=0, **settings) for name in names]  # type: ignore[arg-type]


class Crowd:
    """A handler that takes ten seconds and counts how many of it run at once."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.running = Counter[str]()
        self.most = Counter[str]()

    async def __call__(self, record: TaskRecord) -> int:
        """Take ten seconds."""
        for key in (record.queue_name, "all"):
            self.running[key] += 1
            self.most[key] = max(self.most[key], self.running[key])
        await self.clock.sleep(10)
        for key in (record.queue_name, "all"):
            self.running[key] -= 1
        return 200


# --- order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [1, 2, 64])
async def test_lowest_eta_first(tmp_path: Path, places: int) -> None:
    """Due tasks start by their ETA, not by the order in which they were added (SPEC 4.1)."""
    async with serving(tmp_path, max_concurrent_deliveries=places) as bench:
        await bench.service.queue().add([due(bench, "b", 2), due(bench, "c", 1), due(bench, "a", 3)])
        await bench.service.run_until_idle()

        assert ["a", "b", "c"] == bench.names


async def test_order_of_tasks_of_one_moment(tmp_path: Path) -> None:
    """Tasks of one ETA start in the order of their names (SPEC 4.1); generated names are in the order of time."""
    async with serving(tmp_path) as bench:
        await bench.service.queue().add([due(bench, name) for name in "cab"])
        await bench.service.run_until_idle()

        assert ["a", "b", "c"] == bench.names


async def test_lowest_eta_first_over_all_queues(tmp_path: Path) -> None:
    """The ETA counts over all push queues (SPEC 4.1)."""
    async with serving(tmp_path, *queues("x", "y")) as bench:
        await bench.service.queue("x").add([due(bench, "c", 1), due(bench, "a", 4)])
        await bench.service.queue("y").add([due(bench, "d", 0), due(bench, "b", 3)])
        await bench.service.run_until_idle()

        assert ["a", "b", "c", "d"] == bench.names


async def test_queue_with_the_oldest_task_first(tmp_path: Path) -> None:
    """When places are short, the queue whose turn it is by ETA gets the next one: no queue starves another."""
    async with serving(tmp_path, *queues("x", "y"), max_concurrent_deliveries=1) as bench:
        await bench.service.queue("x").add([due(bench, f"x{i}", 10 - i) for i in range(3)])
        await bench.service.queue("y").add([due(bench, f"y{i}", 9.5 - i) for i in range(3)])
        await bench.service.run_until_idle()

        assert ["x0", "y0", "x1", "y1", "x2", "y2"] == bench.names


@pytest.mark.promise("P11")
async def test_nothing_before_its_eta(tmp_path: Path) -> None:
    """P11: a task with an ETA starts at that very microsecond, also months away (DESIGN 6: no cap of 30 days)."""
    countdowns = [0.000001, 1.5, 3 * DAY, 40 * DAY + 0.000001]
    async with serving(tmp_path) as bench:
        await bench.service.queue().add([Task(url="/w", countdown=countdown) for countdown in reversed(countdowns)])
        await bench.clock.advance(timedelta(days=41))

        assert countdowns == bench.seconds


async def test_earlier_task_wakes_the_dispatcher(tmp_path: Path) -> None:
    """A task that is added while the dispatcher sleeps until a later one is not overslept."""
    async with serving(tmp_path) as bench:
        await bench.service.add(url="/w", countdown=1000)
        await bench.clock.advance(1)
        await bench.service.add(url="/w", countdown=10)
        await bench.service.add(url="/w", countdown=500)
        await bench.clock.advance(1000)

        assert [11.0, 501.0, 1000.0] == bench.seconds


# --- how many at once ----------------------------------------------------------------------------------------------


async def test_places_of_a_queue(tmp_path: Path) -> None:
    """No more attempts of a queue run at once than it allows; the next one starts when one ends (SPEC 4.6)."""
    clock = VirtualClock()
    crowd = Crowd(clock)
    async with serving(tmp_path, *queues("default", max_concurrent_requests=2), respond=crowd, clock=clock) as bench:
        await bench.service.queue().add([Task(url="/w") for _ in range(5)])
        await clock.advance(100)

        assert ([0, 0, 10, 10, 20], 2) == (bench.seconds, crowd.most["default"])


async def test_places_of_the_process(tmp_path: Path) -> None:
    """No more attempts run at once than the process allows, over all queues."""
    clock = VirtualClock()
    crowd = Crowd(clock)
    async with serving(tmp_path, *queues("x", "y"), respond=crowd, clock=clock, max_concurrent_deliveries=3) as bench:
        for name in "xy":
            await bench.service.queue(name).add([Task(url="/w") for _ in range(4)])
        await clock.advance(100)

        assert ([0, 0, 0, 10, 10, 10, 20, 20], 3) == (bench.seconds, crowd.most["all"])


async def test_places_of_a_queue_by_default(tmp_path: Path) -> None:
    """Without a setting 32 attempts of a queue may run at once (DESIGN 6)."""
    clock = VirtualClock()
    crowd = Crowd(clock)
    async with serving(tmp_path, respond=crowd, clock=clock) as bench:
        await bench.service.queue().add([Task(url="/w") for _ in range(70)])
        await clock.advance(100)

        assert ({0: 32, 10: 32, 20: 6}, 32) == (Counter(bench.seconds), crowd.most["default"])


async def test_full_queue_does_not_hold_up_others(tmp_path: Path) -> None:
    """A queue whose places are all taken is no obstacle to another one."""
    hold = Hold()

    async def respond(record: TaskRecord) -> int:
        return await hold() if record.queue_name == "slow" else 200

    configs = [*queues("slow", max_concurrent_requests=1), *queues("fast")]
    async with serving(tmp_path, *configs, respond=respond) as bench:
        with bench.clock.released():
            await bench.service.queue("slow").add([Task(url="/w", name=f"slow{i}") for i in range(3)])
            await hold.reached.wait()
            await bench.service.queue("fast").add([Task(url="/w", name=f"fast{i}") for i in range(3)])
            await until(lambda: len(bench.names) == 4)
            hold.let_go.set()
            await bench.service.run_until_idle()

    assert ["slow0", "fast0", "fast1", "fast2", "slow1", "slow2"] == bench.names


@pytest.mark.promise("P19")
async def test_places_of_a_queue_across_services(tmp_path: Path) -> None:
    """P19: the limit of a queue holds over everybody who has the file open."""
    clock = VirtualClock()
    crowd = Crowd(clock)
    configs = queues("default", max_concurrent_requests=3)
    async with (
        serving(tmp_path, *configs, respond=crowd, clock=clock) as first,
        serving(tmp_path, *configs, respond=crowd, clock=clock) as second,
    ):
        await first.service.queue().add([Task(url="/w") for _ in range(4)])
        await second.service.queue().add([Task(url="/w") for _ in range(4)])
        for _ in range(12):
            # Neither hears of the other's ends but by its watcher, in real time; an add is heard of at once.
            await first.service.add(url="/w", countdown=10_000)
            first.dispatcher.notify()
            second.dispatcher.notify()
            await clock.advance(10)

        assert (3, 8) == (crowd.most["all"], len(first.names) + len(second.names))


async def test_born_leased(tmp_path: Path) -> None:
    """DESIGN 4.2: a task that is due is delivered by the very commit that stores it, without another one to lease it."""
    async with serving(tmp_path) as bench:
        with bench.clock.released():
            await bench.service.run_until_idle()
            bench.store.exchanges.clear()
            await bench.service.add(url="/w")
            await until(lambda: bench.store.exchanges)

        assert ([0.0], [(1, False)]) == (bench.seconds, bench.store.exchanges)


async def test_born_leased_up_to_the_places(tmp_path: Path) -> None:
    """Of a batch as many are born leased as there are places, and the rest waits for them."""
    clock = VirtualClock()
    crowd = Crowd(clock)
    async with serving(tmp_path, respond=crowd, clock=clock, max_concurrent_deliveries=2) as bench:
        with clock.released():
            await bench.service.queue().add([Task(url="/w", name=f"t{i}") for i in range(5)])
            await until(lambda: crowd.running["all"] == 2)

            assert ["t0", "t1"] == bench.names

        await clock.advance(100)

        assert ([0, 0, 10, 10, 20], 2) == (bench.seconds, crowd.most["all"])


async def test_new_tasks_do_not_overtake(tmp_path: Path) -> None:
    """While others wait for a place, a new task waits behind them: order is by ETA and name."""
    hold = Hold()
    async with serving(tmp_path, respond=hold, max_concurrent_deliveries=2) as bench:
        with bench.clock.released():
            await bench.service.queue().add([Task(url="/w", name=f"t{i}") for i in range(4)])
            await until(lambda: len(bench.names) == 2)
            await bench.service.add(url="/w", name="u")
            hold.let_go.set()
            await bench.service.run_until_idle()

        assert ["t0", "t1", "t2", "t3", "u"] == bench.names


@pytest.mark.promise("P19")
async def test_no_busy_loop_while_all_places_are_taken(tmp_path: Path) -> None:
    """With every place taken and tasks waiting, the loop sleeps until an attempt ends; time alone does not wake it."""
    waits = 0

    class CountingClock(VirtualClock):
        async def wait(self, wakeup: Wakeup, until_usec: int | None = None, *, is_chore: bool = False) -> None:
            nonlocal waits
            waits += not is_chore
            await super().wait(wakeup, until_usec, is_chore=is_chore)

    hold = Hold()
    clock = CountingClock()
    async with serving(tmp_path, respond=hold, max_concurrent_deliveries=2, clock=clock) as bench:
        with clock.released():
            await bench.service.queue().add([Task(url="/w") for _ in range(10)])
            await bench.service.queue().add([Task(url="/w", countdown=seconds) for seconds in range(1, 20)])
            await until(lambda: len(bench.names) == 2)
            await turns()
            waits = 0
            bench.store.exchanges.clear()
            await turns(500)

            assert (0, []) == (waits, bench.store.exchanges)

            clock._move(clock.time_usec() + 30_000_000)
            await turns(500)

            assert (1, []) == (waits, bench.store.exchanges)

        hold.let_go.set()


async def test_sleeps_while_there_is_nothing_to_do(tmp_path: Path) -> None:
    """An idle dispatcher makes no transaction, however much time passes."""
    async with serving(tmp_path) as bench:
        await bench.service.add(url="/w", countdown=30 * DAY)
        await bench.clock.advance(1)
        bench.store.exchanges.clear()
        await bench.clock.advance(29 * DAY)

        assert [] == bench.store.exchanges


# --- failures ------------------------------------------------------------------------------------------------------


async def test_retry_counts_in_the_record(tmp_path: Path) -> None:
    """Each attempt knows how many failed before it, how many of them reached the target, and how the last one ended."""
    async with serving(tmp_path) as bench:
        bench.delivery.answer_next(500, NoAnswer(FailureReason.DISCONNECTED), NoAnswer(FailureReason.DEADLINE), 404)
        await bench.service.add(url="/w")
        await bench.clock.advance(10)

        assert [
            (0, 0, None, None),
            (1, 1, 500, "status"),
            (2, 1, None, "disconnected"),
            (3, 2, None, "deadline"),
            (4, 3, 404, "status"),
        ] == [(record.retry_count, record.executions, record.previous_status, record.retry_reason) for record in bench.records]


async def test_retry_after(tmp_path: Path) -> None:
    """A worker that asks for time gets it, up to the longest backoff (SPEC 4.4)."""
    async with serving(tmp_path) as bench:
        bench.delivery.answer_next(Answer(503, "7"), Answer(429, "Thu, 01 Jan 2026 00:01:00 GMT"), Answer(503, "99999"), Answer(500, "9"))
        await bench.service.add(url="/w")
        await bench.clock.advance(4000)

        assert [0.0, 7.0, 60.0, 3660.0, 3660.8] == bench.seconds


@pytest.mark.promise("P7", "P9")
async def test_deadline_of_the_task_or_its_queue(tmp_path: Path) -> None:
    """P7: an attempt is given up at its deadline and a second of grace; the task's own deadline wins over its queue's."""
    clock = VirtualClock()

    async def respond(record: TaskRecord) -> int:
        if record.attempts == 1:
            await clock.sleep(1000)
        return 200

    configs = [*queues("default"), *queues("slow", dispatch_deadline_seconds=100)]
    async with serving(tmp_path, *configs, respond=respond, clock=clock) as bench:
        await bench.service.add(url="/w", name="a")
        await bench.service.add(url="/w", name="b", dispatch_deadline_seconds=7)
        await bench.service.queue("slow").add(Task(url="/w", name="c"))
        await clock.advance(2000)

        assert [(8.1, "b"), (31.1, "a"), (101.1, "c")] == list(zip(bench.seconds, bench.names, strict=True))[3:]


async def test_target_that_is_not_up(tmp_path: Path) -> None:
    """DESIGN 6: until the target has answered once, not to reach it is no attempt; it is tried after pauses up to a second."""

    class Sleepy(RecordingDelivery):
        has_answered = False

    delivery = Sleepy()
    delivery.answer_next(*[UNREACHABLE] * 8)
    async with serving(tmp_path, delivery=delivery) as bench:
        await bench.service.add(url="/w", name="patient", retry_options=TaskRetryOptions(task_retry_limit=0))
        await bench.clock.advance(60)

        assert [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0] == bench.gaps
        assert {(0, 0, None)} == {(record.retry_count, record.executions, record.retry_reason) for record in bench.records}


async def test_many_tasks_for_a_target_that_is_not_up(tmp_path: Path) -> None:
    """The pauses grow with time, not with the number of tasks that wait."""

    class Sleepy(RecordingDelivery):
        has_answered = False

    delivery = Sleepy()
    delivery.answer_next(*[UNREACHABLE] * 20)
    async with serving(tmp_path, delivery=delivery) as bench:
        await bench.service.queue().add([Task(url="/w") for _ in range(10)])
        await bench.clock.advance(60)

        assert [0.0] * 10 + [0.05] * 10 + [0.15] * 10 == [round(seconds, 6) for seconds in bench.seconds]


async def test_target_that_went_away(tmp_path: Path) -> None:
    """Once the target has answered, not to reach it is an attempt, which is no execution (DESIGN 6)."""
    async with serving(tmp_path) as bench:
        bench.delivery.answer_next(UNREACHABLE)
        await bench.service.add(url="/w")
        await bench.clock.advance(1)

        assert ([0.0, 0.1], [(0, 0), (1, 0)]) == (bench.seconds, [(record.retry_count, record.executions) for record in bench.records])


async def test_pauses_begin_anew_when_the_target_was_up(tmp_path: Path) -> None:
    """A target that answered in between is tried soon when it is gone again."""

    class Sleepy(RecordingDelivery):
        has_answered = False

    delivery = Sleepy()
    delivery.answer_next(UNREACHABLE, UNREACHABLE, UNREACHABLE, 500, UNREACHABLE)
    async with serving(tmp_path, delivery=delivery) as bench:
        await bench.service.add(url="/w")
        await bench.clock.advance(60)

        assert [0.05, 0.1, 0.2, 0.1, 0.05] == bench.gaps


async def test_stale_connection(tmp_path: Path) -> None:
    """H1: an attempt on a connection that had died goes again at once, with a fresh token, and counts as none."""
    async with serving(tmp_path) as bench:
        bench.delivery.answer_next(STALE)
        await bench.service.add(url="/w", retry_options=TaskRetryOptions(task_retry_limit=0))
        await bench.service.run_until_idle()

        assert [0.0, 0.0] == bench.seconds
        assert [(0, 1, False), (0, 2, True)] == [(record.retry_count, record.lease_token, record.was_stale) for record in bench.records]


async def test_stale_connections_in_a_row(tmp_path: Path) -> None:
    """H1: only once in a row; the next end of this kind is an attempt with its backoff, and then the count begins anew."""
    async with serving(tmp_path) as bench:
        bench.delivery.answer_next(STALE, STALE, STALE, 500, STALE)
        await bench.service.add(url="/w")
        await bench.clock.advance(10)

        assert [0.0, 0.0, 0.1, 0.1, 0.3, 0.3] == bench.seconds
        assert [0, 0, 1, 1, 2, 2] == [record.retry_count for record in bench.records]


@pytest.mark.promise("P2")
async def test_dead_task_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """DESIGN 6, gave up: a task whose limits are passed is kept as dead, with its reason and its attempts, and a warning."""
    async with serving(tmp_path) as bench:
        bench.delivery.answer_next(Answer(500, detail="first"), NoAnswer(FailureReason.DEADLINE), Answer(301))
        await bench.service.add(url="/w", name="hopeless", retry_options=TaskRetryOptions(task_retry_limit=2))
        await bench.clock.advance(DAY)
        record = await bench.get("hopeless")
        attempts = await bench.attempts("hopeless")

        assert (TaskState.DEAD, "redirect", 3, 3) == (record.state, record.dead_reason, record.attempts, record.executions)
        assert [(1, "status", 500, "first"), (2, "deadline", None, ""), (3, "redirect", 301, "")] == [
            (attempt.attempt, attempt.reason, attempt.status, attempt.detail) for attempt in attempts
        ]
        assert [0.0, 0.1, 0.3] == bench.seconds

    assert ["Task 'hopeless' of queue 'default' was given up after 3 attempts (redirect); it is kept as a dead task."] == [
        record.getMessage() for record in caplog.records
    ]


async def test_only_the_last_attempts_are_kept(tmp_path: Path) -> None:
    """The log of a task has its last ten attempts."""
    async with serving(tmp_path, respond=lambda record: 500) as bench:
        await bench.service.add(url="/w", name="old")
        await bench.clock.advance(DAY)

        assert list(range(bench.records[-1].attempts - 9, bench.records[-1].attempts + 1)) == [
            attempt.attempt for attempt in await bench.attempts("old")
        ]


async def test_statuses_that_look_like_success(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """DESIGN 6: a 2xx that is not 200 is no success, and that is said once for each URL, whatever its query."""
    async with serving(tmp_path, *queues("default"), *queues("lenient", success_statuses={200, 204})) as bench:
        bench.delivery.answer_next(204, 204, 201, 204)
        await bench.service.queue().add([Task(url=url, method="GET") for url in ("/a?x=1", "/a?x=2", "/b")])
        await bench.service.queue("lenient").add(Task(url="/c", countdown=0.05))
        await bench.clock.advance(1)

        assert 7 == len(bench.names)

    assert [f"/{path} only 200 ends a task (or QueueConfig(success_statuses=...))." for path in ("a answered 204:", "b answered 201:")] == [
        record.getMessage() for record in caplog.records
    ]


async def test_urls_that_are_remembered_for_it_are_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """P19: what is said once for each URL is not remembered for any number of them."""
    async with serving(tmp_path) as bench:
        bench.dispatcher._hints._said |= {(f"/{i}", "") for i in range(1000)}
        bench.delivery.answer_next(204)
        await bench.service.add(url="/new")
        await bench.clock.advance(1)

        assert (1000, []) == (len(bench.dispatcher._hints._said), caplog.records)


async def test_statistics(tmp_path: Path) -> None:
    """The dispatcher counts what became of its attempts."""
    async with serving(tmp_path) as bench:
        bench.delivery.answer_next(500, STALE, 404)
        await bench.service.add(url="/w", retry_options=TaskRetryOptions(task_retry_limit=1))
        await bench.clock.advance(1)
        await bench.service.add(url="/w")
        await bench.clock.advance(1)
        statistics = bench.dispatcher.statistics

        assert (4, 1, 2, 1, 0) == (
            statistics.attempts,
            statistics.completed,
            statistics.retried,
            statistics.dead,
            statistics.stale_results,
        )


@pytest.mark.promise("P4")
async def test_late_result_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """P4: the result of an attempt whose task is not ours any more is dropped and counted."""
    caplog.set_level("INFO", "aiotaskqueue")
    hold = Hold()
    async with serving(tmp_path, respond=hold) as bench:
        with bench.clock.released():
            await bench.service.add(url="/w", name="late")
            await hold.reached.wait()
            record = bench.records[0]
            await settle(bench.store, record, Retry(eta_usec=record.eta_usec + 60_000_000))
            hold.let_go.set()
            await bench.service.run_until_idle()

        assert ["late"] == await bench.stored(TaskState.READY)
        assert (1, 0) == (bench.dispatcher.statistics.stale_results, bench.places_taken)

    assert "Task 'late' of queue 'default' was deleted while it ran; its result was dropped." in caplog.text


# --- whatever an attempt ends in -----------------------------------------------------------------------------------


class Naughty(Delivery):
    """A delivery that does the first time what it must not do, and then answers 200."""

    has_answered = True

    def __init__(self, deed: Callable[[], object]) -> None:
        self.deed = deed
        self.calls = 0

    async def deliver(self, record: TaskRecord, *, deadline_seconds: float) -> Answer | NoAnswer:
        """Do it, once."""
        self.calls += 1
        if self.calls > 1:
            return Answer(200)
        result = self.deed()
        await asyncio.sleep(0)
        return result  # type: ignore[return-value]


class Unheard(BaseException):
    """Derived from BaseException, as App Engine's DeadlineExceededError is."""


def fail(exc: BaseException) -> Callable[[], object]:
    """Return a deed: raise."""

    def raise_it() -> object:
        raise exc

    return raise_it


def cancel_myself(times: int = 1) -> Callable[[], object]:
    """Return a deed: cancel the task in which one runs."""

    def cancel() -> object:
        task = asyncio.current_task()
        assert task is not None
        for _ in range(times):
            task.cancel()
        return Answer(200)

    return cancel


DEEDS = {
    "raises": fail(ValueError("oh")),
    "raises a BaseException": fail(Unheard()),
    "raises a group": fail(BaseExceptionGroup("two", [Unheard(), ValueError()])),
    "raises CancelledError": fail(asyncio.CancelledError()),
    "cancels its task": cancel_myself(),
    "cancels its task twice": cancel_myself(2),
    "returns None": lambda: None,
    "returns a number": lambda: 200,
    "is never cut": lambda: NoAnswer(FailureReason.CANCELLED),
}


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
@pytest.mark.filterwarnings("default::RuntimeWarning")
async def test_delivery_that_misbehaves(tmp_path: Path, deed: Callable[[], object]) -> None:
    """Whatever a delivery does, the attempt has an outcome, its place is free again, and the task is tried again."""
    delivery, clock = Naughty(deed), VirtualClock()
    store = TouchyStore(tmp_path / "tasks.db")
    async with TaskQueueService(queues=[EXACT], clock=clock, delivery=delivery, store=store, max_concurrent_deliveries=1) as service:
        await service.add(url="/w")
        async with asyncio.timeout(5):
            await clock.advance(1)

        assert (True, 2, []) == (service.health().is_ok, delivery.calls, await service.get_filtered_tasks())
        assert [] == find_drift(tmp_path / "tasks.db")


async def test_delivery_that_misbehaves_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A delivery that raises is logged with the task and the way to the error, and its attempt has class and place; neither quotes it."""
    async with serving(tmp_path) as bench:
        bench.delivery.answer_next(ValueError("the payload"))
        await bench.service.add(url="/w", name="poor", countdown=1, retry_options=TaskRetryOptions(task_retry_limit=0))
        await bench.clock.advance(1)
        [attempt] = await bench.attempts("poor")

        assert ("error", None, "ValueError at _delivery.py") == (attempt.reason, attempt.status, attempt.detail.rpartition(":")[0])

    message, *frames = caplog.records[0].getMessage().splitlines()

    assert "The delivery of task 'poor' of queue 'default' failed with ValueError" == message
    assert "raise response" == frames[-1].strip()


async def test_service_cancelled_from_outside(tmp_path: Path) -> None:
    """When the host is cancelled, attempts in flight end as cancelled, and the next start delivers their tasks."""
    hold = Hold()
    with contextlib.suppress(asyncio.CancelledError):
        async with serving(tmp_path, respond=hold) as bench:
            with bench.clock.released():
                await bench.service.add(url="/w", name="cut")
                await hold.reached.wait()
            assert bench.service._host is not None
            bench.service._host.cancel()
            await asyncio.wait({bench.service._host})

            assert 0 == bench.dispatcher.statistics.attempts

    async with serving(tmp_path) as bench:
        await bench.service.run_until_idle()

        assert ["cut"] == bench.names


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_passes(tmp_path: Path, kind: type[BaseException]) -> None:
    """A11: Ctrl-C that reaches a delivery is no failed attempt: it ends the program."""

    async def main() -> None:
        store = TouchyStore(tmp_path / "tasks.db")
        async with TaskQueueService(delivery=Naughty(fail(kind())), store=store) as service:
            await service.add(url="/w")
            await asyncio.sleep(5)

    with pytest.raises(kind):
        asyncio.run(main())


# --- crashes -------------------------------------------------------------------------------------------------------


async def crash(path: Path, *records: TaskRecord, queue: QueueConfig = EXACT, is_drained: bool = False) -> list[TaskRecord]:
    """Live as a process that leases what it may of the file and is killed; return what it had in flight then."""
    async with running(path / "tasks.db", queue) as store:
        await store.rescue([queue], now_usec=records[0].eta_usec if records else 2**62)
        if records:
            await add(store, *records, queue=queue)
        exchange = await lease(store, queue, now_usec=2**60)
        if is_drained:
            await store.announce_drain()
        return list(exchange.leased)


@pytest.mark.promise("P18")
async def test_suspects_are_retried_alone(tmp_path: Path) -> None:
    """P18: tasks that were in flight at a crash are retried one at a time, before the rest of their queue."""
    clock = VirtualClock()
    crowd = Crowd(clock)
    await crash(tmp_path, *[new_record(f"s{i}", queue=EXACT) for i in range(3)])
    async with serving(tmp_path, respond=crowd, clock=clock) as bench:
        await bench.service.queue().add([Task(url="/w", name=f"new{i}") for i in range(2)])
        await clock.advance(100)

        assert [0, 10, 20, 30, 30] == bench.seconds
        assert (["s0", "s1", "s2"], ["new0", "new1"]) == (sorted(bench.names[:3]), bench.names[3:])
        assert ([True] * 3 + [False] * 2, [1] * 3 + [0] * 2) == (
            [record.is_suspect for record in bench.records],
            [record.retry_count for record in bench.records],
        )


async def test_suspect_holds_up_its_own_queue_only(tmp_path: Path) -> None:
    """P18: while a suspect is retried alone, other queues go on."""
    clock = VirtualClock()
    crowd = Crowd(clock)
    await crash(tmp_path, new_record("s", queue=EXACT))
    async with serving(tmp_path, EXACT, *queues("other"), respond=crowd, clock=clock) as bench:
        await bench.service.add(url="/w", name="same")
        await bench.service.queue("other").add([Task(url="/w", name=f"o{i}") for i in range(2)])
        await clock.advance(100)

        assert {"s": 0, "o0": 0, "o1": 0, "same": 10} == dict(zip(bench.names, bench.seconds, strict=True))


@pytest.mark.parametrize("config", [EXACT, QueueConfig("default", jitter=0, rate="1/s", bucket_size=1)])
async def test_nothing_is_born_leased_beside_a_suspect(tmp_path: Path, config: QueueConfig) -> None:
    """P18: while a suspect is retried alone, a new task takes the long way, which knows about suspects."""
    hold = Hold()
    await crash(tmp_path, new_record("s", queue=EXACT))
    async with serving(tmp_path, config, *queues("other"), respond=lambda record: hold() if record.name == "s" else 200) as bench:
        with bench.clock.released():
            await hold.reached.wait()
            await until(lambda: bench.dispatcher._may_have_due is False)
            for name in ("default", "other"):
                await bench.service.queue(name).add(Task(url="/w", name=name))
            await until(lambda: len(bench.names) == 2)

            assert ["s", "other"] == bench.names

            hold.let_go.set()
        await bench.clock.advance(10)

        assert ["s", "other", "default"] == bench.names


async def test_suspect_that_was_tried_is_none_any_more(tmp_path: Path) -> None:
    """P18: an attempt that ends, however, acquits a suspect."""
    await crash(tmp_path, new_record("s", queue=EXACT))
    async with serving(tmp_path) as bench:
        bench.delivery.answer_next(500)
        await bench.clock.advance(10)

        assert [True, False] == [record.is_suspect for record in bench.records]


@pytest.mark.parametrize("result", [STALE, UNREACHABLE])
async def test_suspect_that_was_not_tried_stays_one(tmp_path: Path, result: NoAnswer) -> None:
    """P18: an attempt that did not reach the handler does not acquit a suspect."""

    class Sleepy(RecordingDelivery):
        has_answered = False

    delivery = Sleepy()
    delivery.answer_next(result)
    await crash(tmp_path, new_record("s", queue=EXACT))
    async with serving(tmp_path, delivery=delivery) as bench:
        await bench.clock.advance(10)

        assert [True, True] == [record.is_suspect for record in bench.records]


async def test_suspect_that_is_cut_by_a_drain_stays_one(tmp_path: Path) -> None:
    """P18, P20: a suspect whose attempt is cut by our own end is retried alone by the next service."""
    await crash(tmp_path, new_record("s", queue=EXACT))
    hold = Hold()
    async with serving(tmp_path, respond=hold, close_seconds=0) as bench:
        with bench.clock.released():
            bench.dispatcher.notify()
            await hold.reached.wait()
    async with serving(tmp_path) as bench:
        await bench.service.run_until_idle()

        assert [(True, 1)] == [(record.is_suspect, record.retry_count) for record in bench.records]


@pytest.mark.promise("P18")
async def test_poison(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """P18: a task that was the only one in flight at three crashes in a row is dead, and the others are delivered."""
    leased = [await crash(tmp_path, new_record("poison", queue=EXACT)), await crash(tmp_path), await crash(tmp_path)]
    async with serving(tmp_path) as bench:
        await bench.service.add(url="/w", name="good")
        await bench.service.run_until_idle()
        record = await bench.get("poison")

        assert [["poison"]] * 3 == [[record.name for record in records] for records in leased]
        assert (["good"], TaskState.DEAD, "crash", 3) == (bench.names, record.state, record.dead_reason, record.attempts)
        assert ["crash"] * 3 == [attempt.reason for attempt in await bench.attempts("poison")]


@pytest.mark.parametrize("crash_limit", [1, 2, 5])
async def test_crash_limit(tmp_path: Path, crash_limit: int) -> None:
    """P18: how many crashes it takes is the queue's choice."""
    queue = QueueConfig("default", jitter=0, crash_limit=crash_limit)
    await crash(tmp_path, new_record("poison", queue=queue), queue=queue)
    for _ in range(crash_limit - 1):
        assert 1 == len(await crash(tmp_path, queue=queue))

    async with serving(tmp_path, queue) as bench:
        await bench.service.run_until_idle()

        assert ([], ["poison"]) == (bench.names, await bench.stored(TaskState.DEAD))


@pytest.mark.promise("P18")
async def test_one_of_several_in_flight_is_not_charged(tmp_path: Path) -> None:
    """P18: of several tasks in flight at a crash none is charged with it."""
    await crash(tmp_path, new_record("a", queue=EXACT), new_record("b", queue=EXACT))
    async with serving(tmp_path) as bench:
        await bench.service.run_until_idle()

        assert [0, 0] == [record.crashes for record in bench.records]


@pytest.mark.promise("P18")
async def test_drain_before_the_end_is_no_crash(tmp_path: Path) -> None:
    """P18: a process that said that it would end has not been brought down: nobody is charged or suspected."""
    await crash(tmp_path, new_record("innocent", queue=EXACT), is_drained=True)
    for _ in range(4):
        await crash(tmp_path, is_drained=True)
    async with serving(tmp_path) as bench:
        await bench.service.run_until_idle()

        assert [("innocent", False, 0)] == [(record.name, record.is_suspect, record.crashes) for record in bench.records]


async def test_success_ends_a_row_of_crashes(tmp_path: Path) -> None:
    """P18: the crashes count in a row: an attempt that ends begins a new one."""
    await crash(tmp_path, new_record("unlucky", queue=EXACT))
    await crash(tmp_path)
    async with serving(tmp_path) as bench:
        bench.delivery.answer_next(500)
        await bench.service.run_until_idle()

        assert 0 == (await bench.get("unlucky")).crashes


# --- drain ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise("P20")
async def test_drain_lets_attempts_finish(tmp_path: Path) -> None:
    """P20: what is in flight when the service closes ends as ever, and is done."""
    hold = Hold()
    async with serving(tmp_path, respond=hold) as bench:
        with bench.clock.released():
            await bench.service.add(url="/w", name="done")
            await hold.reached.wait()
        async with spawned(bench.service.aclose):
            hold.let_go.set()

    async with serving(tmp_path) as bench:
        assert [] == await bench.stored()


@pytest.mark.promise("P20")
async def test_drain_starts_nothing_more(tmp_path: Path) -> None:
    """P20: once the service drains, nothing starts that is not in flight, due or becoming due."""
    hold = Hold()
    async with serving(tmp_path, respond=hold, max_concurrent_deliveries=1) as bench:
        with bench.clock.released():
            await bench.service.add(url="/w", name="first")
            await hold.reached.wait()
        await bench.service.add(url="/w", name="second")
        async with spawned(bench.service.drain):
            await bench.service.add(url="/w", name="third")
            hold.let_go.set()
        await bench.clock.advance(10)

        assert (["first"], ["second", "third"]) == (bench.names, sorted(await bench.stored(TaskState.READY)))


@pytest.mark.promise("P20")
async def test_cut_attempt_is_delivered_again(tmp_path: Path) -> None:
    """P20: an attempt that is cut at the end of the drain was none: the next service delivers the task as if for the first time."""
    hold = Hold()
    async with serving(tmp_path, respond=hold, close_seconds=0) as bench:
        with bench.clock.released():
            await bench.service.add(url="/w", name="cut", retry_options=TaskRetryOptions(task_retry_limit=0))
            await hold.reached.wait()
    async with serving(tmp_path) as bench:
        await bench.service.run_until_idle()

        assert [("cut", 0, 0, False)] == [
            (record.name, record.retry_count, record.executions, record.is_suspect) for record in bench.records
        ]


async def test_cut_attempts_leave_no_leases(tmp_path: Path) -> None:
    """P20: whatever number of attempts is cut, each is given back before the service has closed."""
    hold = Hold()
    async with serving(tmp_path, respond=hold, close_seconds=0) as bench:
        with bench.clock.released():
            await bench.service.queue().add([Task(url="/w", name=f"t{i}") for i in range(20)])
            await until(lambda: len(bench.names) == 20)

    assert [(0, 20)] == query(tmp_path / "tasks.db", "SELECT state, count(*) FROM taskqueue_task GROUP BY state")
    assert [] == find_drift(tmp_path / "tasks.db")


async def test_lease_that_comes_during_the_drain(tmp_path: Path) -> None:
    """A lease that was on its way when the drain began is delivered, or cut like the others: not forgotten."""
    async with serving(tmp_path, close_seconds=0) as bench:
        await bench.service.run_until_idle()
        bench.store.exchange_hold = hold = Hold()
        await bench.service.queue().add([Task(url="/w", name=f"t{i}") for i in range(3)])
        with bench.clock.released():
            bench.dispatcher.notify()
            await hold.reached.wait()
            bench.store.exchange_hold = None
            async with spawned(lambda: bench.service.drain(timeout_seconds=0)):
                hold.let_go.set()

        assert ([], ["t0", "t1", "t2"]) == (bench.names, sorted(await bench.stored(TaskState.READY)))


async def test_drain_twice(tmp_path: Path) -> None:
    """A second drain of what is idle returns at once, and so does one beside another."""
    async with serving(tmp_path) as bench, asyncio.timeout(5):
        await bench.service.drain()
        async with anyio.create_task_group() as group:
            group.start_soon(bench.service.drain)
            group.start_soon(bench.service.drain)

        assert 0 == bench.places_taken


async def test_second_drain_waits_as_well(tmp_path: Path) -> None:
    """A drain that follows one whose time was up waits for what is still in flight."""
    hold, clock = Hold(), VirtualClock()

    async def respond(record: TaskRecord) -> int:
        with anyio.CancelScope(shield=True):
            while not hold.let_go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await hold()
        return 200

    async with serving(tmp_path, respond=respond, clock=clock) as bench:
        with clock.released():
            await bench.service.add(url="/w")
            await hold.reached.wait()
        bench.dispatcher.statistics.attempts = 0
        drained = asyncio.create_task(bench.dispatcher.drain(-0.5))
        await asyncio.wait({drained}, timeout=5)

        assert 0 == bench.dispatcher.statistics.attempts

        async with spawned(bench.service.drain) as second:
            assert not second.done()

            hold.let_go.set()

        assert 1 == bench.dispatcher.statistics.attempts


async def test_drain_after_the_end(tmp_path: Path) -> None:
    """A dispatcher that has ended is drained, idle, and has no attempt to wait for."""
    async with serving(tmp_path) as bench:
        dispatcher = bench.dispatcher
    async with asyncio.timeout(5):
        await dispatcher.drain(10)
        await dispatcher.wait_until_idle()
        await dispatcher.wait_for_attempt(new_record())

    assert not dispatcher._waiting_for_attempt


async def test_lease_that_comes_after_the_end(tmp_path: Path) -> None:
    """A task that is born leased when the dispatcher has ended is left to the next start, which finds its lease."""
    async with serving(tmp_path) as bench:
        dispatcher = bench.dispatcher
    dispatcher.hand_over(0, [new_record()])

    assert ([], 0) == (bench.names, bench.places_taken)


@pytest.mark.promise("P15")
@pytest.mark.parametrize("number", range(0, 48, 3))
async def test_cancelled_add_is_delivered(tmp_path: Path, number: int) -> None:
    """P15: an add that is cancelled happened or not; a task that was born leased is delivered all the same, exactly once."""
    async with serving(tmp_path) as bench:
        with bench.clock.released():
            await bench.service.run_until_idle()
            adding = asyncio.create_task(bench.service.queue().add([Task(url="/w", name=f"t{i}") for i in range(3)]))
            await turns(number)
            adding.cancel()
            await asyncio.wait({adding})
            # Whatever was on its way is written before this is.
            await bench.store.announce_drain()
        await bench.clock.advance(10)

        assert Counter(bench.names) in ({}, {"t0": 1, "t1": 1, "t2": 1})
        assert (0, [], []) == (bench.places_taken, await bench.stored(), find_drift(tmp_path / "tasks.db"))


# --- idle ----------------------------------------------------------------------------------------------------------


async def test_idle_covers_what_handlers_add(tmp_path: Path) -> None:
    """run_until_idle delivers what is due and what that adds, and leaves what is due later; time does not move."""

    async def respond(record: TaskRecord) -> int:
        if record.name != "c":
            await service.add(url="/w", name=chr(ord(record.name) + 1))
            await service.add(url="/w", countdown=0.000001)
        return 200

    async with serving(tmp_path, respond=respond) as bench:
        service = bench.service
        await service.add(url="/w", name="a")
        await service.run_until_idle()

        assert (["a", "b", "c"], 2, 0.0) == (bench.names, len(await bench.stored()), bench.clock.monotonic())


async def test_idle_covers_retries_that_are_due(tmp_path: Path) -> None:
    """run_until_idle delivers again what failed and may go again at once."""
    async with serving(tmp_path) as bench:
        bench.delivery.answer_next(500, STALE, 500)
        await bench.service.add(url="/w", retry_options=TaskRetryOptions(min_backoff_seconds=0))
        await bench.service.run_until_idle()

        assert ([0.0] * 4, []) == (bench.seconds, await bench.stored())


async def test_idle_covers_what_waits_for_a_place(tmp_path: Path) -> None:
    """run_until_idle goes on until nothing waits for a place."""
    async with serving(tmp_path, *queues("default", max_concurrent_requests=2), max_concurrent_deliveries=3) as bench:
        await bench.service.queue().add([Task(url="/w") for _ in range(20)])
        await bench.service.run_until_idle()

        assert 20 == len(bench.names)


async def test_idle_leaves_what_waits_for_a_token(tmp_path: Path) -> None:
    """run_until_idle leaves what waits for a token: that is a matter of time."""
    async with serving(tmp_path, *queues("default", rate="1/s", bucket_size=2)) as bench:
        await bench.service.queue().add([Task(url="/w") for _ in range(5)])
        await bench.service.run_until_idle()

        assert [0.0, 0.0] == bench.seconds


async def test_idle_waits_for_an_add_that_may_be_born_leased(tmp_path: Path) -> None:
    """run_until_idle waits for an add that is on its way to be delivered at once."""
    async with serving(tmp_path) as bench:
        with bench.clock.released():
            await bench.service.run_until_idle()
            hold = Hold()
            bench.store.add_holds.append(hold)
            async with spawned(lambda: bench.service.add(url="/w")), spawned(bench.service.run_until_idle) as idle:
                await hold.reached.wait()
                await turns()

                assert not idle.done()

                hold.let_go.set()

        assert 1 == len(bench.names)


async def test_idle_while_the_service_closes(tmp_path: Path) -> None:
    """Whoever waits for the service to be idle when it closes does not wait for ever."""
    hold = Hold()
    async with serving(tmp_path, respond=hold) as bench:
        await bench.service.add(url="/w")
        async with asyncio.timeout(5), spawned(bench.service.run_until_idle) as waiting:
            await hold.reached.wait()
            await bench.service.aclose(timeout_seconds=0)

        assert waiting.done()


# --- nobody is overlooked ------------------------------------------------------------------------------------------


async def test_attempt_that_ends_while_the_store_looks(tmp_path: Path) -> None:
    """A task that found its queue full starts when the place is free, though that came about while the store was looking."""
    handler = Hold()
    async with serving(tmp_path, *queues("default", max_concurrent_requests=1)) as bench, asyncio.timeout(5):
        bench.delivery._respond = lambda record: handler() if record.name == "a" else 200
        with bench.clock.released():
            await bench.service.run_until_idle()
            await bench.service.add(url="/w", name="a")
            await handler.reached.wait()
            bench.store.exchange_hold = looking = Hold()
            await bench.service.add(url="/w", name="b")
            await looking.reached.wait()
            bench.store.exchange_hold = None
            handler.let_go.set()
            await until(lambda: bench.dispatcher._settlements)
            looking.let_go.set()
            await until(lambda: len(bench.names) == 2)

        assert ["a", "b"] == bench.names


async def test_eta_that_is_noted_while_the_store_looks(tmp_path: Path) -> None:
    """A task that is added while the store's answer is on its way is not overslept."""
    async with serving(tmp_path) as bench:
        with bench.clock.released():
            await bench.service.run_until_idle()
            bench.store.exchange_hold = looking = Hold()
            bench.dispatcher.notify()
            await looking.reached.wait()
            bench.store.exchange_hold = None
            await bench.service.add(url="/w", countdown=5)
            looking.let_go.set()
        await bench.clock.advance(10)

        assert [5.0] == bench.seconds


async def test_reserved_place_that_is_not_needed(tmp_path: Path) -> None:
    """A place that an add had reserved and does not need goes to a task that has waited for one meanwhile."""
    async with serving(tmp_path, max_concurrent_deliveries=1) as bench, asyncio.timeout(5):
        await bench.service.add(url="/w", name="taken", countdown=1000)
        with bench.clock.released():
            await bench.service.run_until_idle()
            hold = Hold()
            bench.store.add_holds.append(hold)
            async with spawned(lambda: bench.service.add(url="/w", name="taken")) as adding:
                await hold.reached.wait()
                await bench.service.add(url="/w", name="patient")
                await turns()
                hold.let_go.set()
            await until(lambda: bench.names)

        assert isinstance(adding.exception(), TaskAlreadyExistsError)
        assert ["patient"] == bench.names


@pytest.mark.promise("P2")
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
async def test_nothing_is_forgotten(tmp_path: Path, seed: int) -> None:
    """P2, I1: whatever happens to attempts and to the store, every task is delivered until it has succeeded, and no place is lost."""
    dice = random.Random(seed)
    clock = VirtualClock()
    ends: list[Callable[[], object]] = [
        lambda: 200,
        lambda: 200,
        lambda: 200,
        lambda: 500,
        lambda: STALE,
        lambda: UNREACHABLE,
        lambda: NoAnswer(FailureReason.DISCONNECTED),
        lambda: ValueError("oh"),
        fail(Unheard()),
        fail(asyncio.CancelledError()),
        cancel_myself(),
    ]

    async def respond(record: TaskRecord) -> object:
        if dice.random() < 0.5:
            await clock.sleep(dice.choice([0.001, 1, 20, 60]))
        if dice.random() < 0.2:
            await bench.service.add(url="/w", name=f"child-of-{record.name}-{record.lease_token}"[:500])
        result = dice.choice(ends)()
        await asyncio.sleep(0)
        if result == 200:
            succeeded.append(record.name)
        return result

    succeeded: list[str] = []
    configs = [
        QueueConfig("default", max_concurrent_requests=3, retry_options=TaskRetryOptions(max_backoff_seconds=30)),
        QueueConfig("limited", rate="2/s", bucket_size=3, retry_options=TaskRetryOptions(max_backoff_seconds=30)),
    ]
    names = [f"t{i}" for i in range(40)]
    async with serving(tmp_path, *configs, respond=respond, clock=clock, max_concurrent_deliveries=4, seed=seed) as bench:
        for name in names:
            with clock.released() if dice.random() < 0.5 else contextlib.nullcontext():
                await bench.service.queue(dice.choice(["default", "limited"])).add(
                    Task(url="/w", name=name, countdown=dice.choice([0, 0, 3]))
                )
            if dice.random() < 0.3:
                bench.store.errors.append(dice.choice([StoreFullError("Full."), RuntimeError("A bug.")]))
            if dice.random() < 0.3:
                await clock.advance(dice.choice([0, 0.1, 5]))
        async with asyncio.timeout(15):
            await clock.advance(7200)

        assert set(names) <= set(succeeded)
        assert (0, 0, [], []) == (
            bench.places_taken,
            len(bench.dispatcher._in_flight),
            await bench.stored() + await bench.stored(queue_name="limited"),
            find_drift(tmp_path / "tasks.db"),
        )


# --- eager ---------------------------------------------------------------------------------------------------------


async def test_eager_add_waits_for_the_attempt(tmp_path: Path) -> None:
    """An eager add returns when the first attempt of its task has ended and is written."""
    async with serving(tmp_path, eager=True) as bench:
        bench.delivery.answer_next(500)
        await bench.service.add(url="/w", name="a")

        assert (["a"], ["status"]) == (bench.names, [attempt.reason for attempt in await bench.attempts("a")])


@pytest.mark.parametrize("arguments", [{"rate": "0"}, {"rate": "1/d", "bucket_size": 1}])
async def test_eager_add_of_a_task_that_does_not_start(tmp_path: Path, arguments: dict[str, object]) -> None:
    """An eager add returns at once when its task has to wait for a token or its queue is paused."""
    async with serving(tmp_path, *queues("default", **arguments), eager=True) as bench, asyncio.timeout(5):
        await bench.service.add(url="/w")
        await bench.service.add(url="/w")

        assert len(bench.names) <= 1


# --- trouble with the store ----------------------------------------------------------------------------------------


@pytest.mark.promise("P17")
async def test_outcomes_are_kept_while_the_store_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """P17: an outcome that the store does not take is written when it works again; its task is not delivered once more."""
    hold = Hold()
    async with serving(tmp_path, respond=hold) as bench:
        with bench.clock.released():
            await bench.service.add(url="/w")
            await hold.reached.wait()
            bench.store.errors.extend([StoreFullError("No space."), StoreBusyError("Locked."), StoreFullError("No space.")])
            hold.let_go.set()
            await until(lambda: len(bench.store.errors) == 2)

        assert (False, ("No space.",)) == (bench.service.health().is_ok, bench.service.health().reasons)

        await bench.clock.advance(0.399999)

        assert ([1, False], 1) == ([len(bench.store.errors), bench.service.health().is_ok], len(await bench.stored()))

        await bench.clock.advance(1)

        assert ([], True, ["done"]) == (await bench.stored(), bench.service.health().is_ok, ["done"] * len(bench.names))

    assert ["The store failed, nothing is delivered until it works again: No space."] == [record.getMessage() for record in caplog.records]


@pytest.mark.promise("P17")
async def test_nothing_starts_while_the_store_fails(tmp_path: Path) -> None:
    """P17: while the store fails nothing is leased, and not born leased either; then everything is."""
    async with serving(tmp_path) as bench:
        with bench.clock.released():
            bench.store.errors.extend([StoreFullError("No space.")] * 2)
            bench.dispatcher.notify()
            await until(lambda: bench.dispatcher.trouble)
            bench.store.errors.extend([StoreFullError("No space.")] * 2)
            await bench.service.add(url="/w")
            await until(lambda: len(bench.store.errors) <= 2)

            assert [] == bench.names

        await bench.clock.advance(10)

        assert 1 == len(bench.names)


@pytest.mark.parametrize("exc", [StoreFullError("No space."), ClosedError("Closed: no space for you.")])
async def test_waiting_for_idle_while_the_store_fails(tmp_path: Path, exc: Exception) -> None:
    """P17: trouble never looks like success, nor like a hang: whoever waits for the end of the work gets the error."""
    async with serving(tmp_path) as bench, asyncio.timeout(5):
        await bench.service.add(url="/w")
        bench.store.errors.append(exc)
        with pytest.raises(type(exc), match=r"[Nn]o space"):
            await bench.service.run_until_idle()
        await bench.service.run_until_idle()

        assert 1 == len(bench.names)


async def test_eager_add_while_the_store_fails(tmp_path: Path) -> None:
    """An eager add whose task is stored returns, though its attempt cannot be written down for now."""
    async with serving(tmp_path, eager=True) as bench, asyncio.timeout(5):
        bench.store.errors.append(StoreFullError("No space."))
        await bench.service.add(url="/w")
        await bench.clock.advance(1)

        assert 1 == len(bench.names)


async def test_trouble_ends_with_the_service(tmp_path: Path) -> None:
    """A service that is closed has no other trouble than that."""
    async with serving(tmp_path, close_seconds=0) as bench:
        with bench.clock.released():
            bench.store.errors.extend([StoreFullError("No space.")] * 1000)
            bench.dispatcher.notify()
            await until(lambda: bench.dispatcher.trouble)

    assert ("The service is not running.",) == bench.service.health().reasons


@pytest.mark.slow
async def test_drain_while_the_store_fails(tmp_path: Path) -> None:
    """P20: while the service drains, a store that fails is tried again by real time: nobody moves the test's clock any more."""
    hold = Hold()
    async with serving(tmp_path, respond=hold) as bench:
        with bench.clock.released():
            await bench.service.add(url="/w")
            await hold.reached.wait()
            bench.store.errors.extend([StoreFullError("No space.")] * 3)
            hold.let_go.set()
            await until(lambda: len(bench.store.errors) == 2)
        await bench.service.aclose()

    assert [] == query(tmp_path / "tasks.db", "SELECT name FROM taskqueue_task")


@pytest.mark.parametrize("exc", [ValueError("a bug"), Unheard("another")])
async def test_loop_that_dies_is_started_again(tmp_path: Path, exc: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """DESIGN 5: when the loop dies of something unforeseen, it is started again with every outcome that it had."""
    hold = Hold()
    async with serving(tmp_path, respond=hold) as bench:
        with bench.clock.released():
            await bench.service.add(url="/w", name="a")
            await hold.reached.wait()
            bench.store.errors.append(exc)
            hold.let_go.set()
            await until(lambda: not bench.store.errors)
        await bench.service.add(url="/w", name="b")
        await bench.clock.advance(0.1)

        assert (["a", "b"], [], 0) == (bench.names, await bench.stored(), bench.places_taken)

    assert ["The dispatcher failed and is started again in 0.1 s."] == [record.getMessage() for record in caplog.records]


async def test_waiting_for_idle_when_the_loop_dies(tmp_path: Path) -> None:
    """Whoever waits for the end of the work learns that the loop has died, and of what."""
    async with serving(tmp_path) as bench, asyncio.timeout(5):
        await bench.service.add(url="/w")
        bench.store.errors.append(ValueError("a bug"))
        with pytest.raises(ValueError, match="a bug"):
            await bench.service.run_until_idle()
        await bench.clock.advance(1)

        assert 1 == len(bench.names)


# --- commits that nobody heard of ------------------------------------------------------------------------------------


async def test_cancelled_add_is_announced(tmp_path: Path) -> None:
    """A task whose add was cancelled after it had been handed over is delivered at its ETA, with nothing else to wake the loop."""
    async with serving(tmp_path) as bench:
        await bench.service.run_until_idle()
        adding = asyncio.create_task(bench.service.add(url="/w", name="a", countdown=5))
        await turns(3)
        adding.cancel()
        await asyncio.wait({adding})
        await bench.store.announce_drain()
        await bench.clock.advance(5)

        assert (True, ["a"]) == (adding.cancelled(), bench.names)


@pytest.mark.promise("P16")
async def test_unknown_exchange(tmp_path: Path) -> None:
    """What was leased in a transaction whose outcome is unknown is delivered once the store works again."""
    async with serving(tmp_path) as bench:
        await bench.service.run_until_idle()
        bench.store.late_errors.append(OutcomeUnknownError("EIO"))
        await bench.service.add(url="/w", name="a")
        await bench.clock.advance(1)

        assert (["a"], [], 0) == (bench.names, await bench.stored(), bench.places_taken)


async def test_unknown_exchange_and_more_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look for such leases is made again when it fails, and leaves alone what is in flight."""
    hold = Hold()
    async with serving(tmp_path, respond=hold) as bench:
        with bench.clock.released():
            await bench.service.add(url="/w", name="a")
            await hold.reached.wait()
        list_own_leases, errors = bench.store.list_own_leases, [StoreBusyError("locked")]

        async def fail_once() -> Sequence[TaskRecord]:
            if errors:
                raise errors.pop()
            return await list_own_leases()

        monkeypatch.setattr(bench.store, "list_own_leases", fail_once)
        bench.store.errors.append(OutcomeUnknownError("EIO"))
        await bench.service.add(url="/w", name="b")
        await bench.clock.advance(1)
        hold.let_go.set()
        await bench.clock.advance(1)

        assert (["a", "b"], [], 0) == (bench.names, await bench.stored(), bench.places_taken)


@pytest.mark.promise("P16")
async def test_unknown_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that was born leased in a commit of which its add was not told is delivered all the same."""
    async with serving(tmp_path, clock=VirtualClock(auto_advance=True)) as bench:
        await bench.service.run_until_idle()
        stored_add = bench.store.add

        async def add_and_fail(*arguments: Any, on_leased: Callable[[Sequence[TaskRecord]], None], **around: Any) -> None:
            await stored_add(*arguments, **around, on_leased=lambda leased: on_leased(()))
            raise OutcomeUnknownError("EIO")

        monkeypatch.setattr(bench.store, "add", add_and_fail)
        with pytest.raises(OutcomeUnknownError):
            await bench.service.add(url="/w", name="a")
        await bench.service.run_until_idle()

        assert (["a"], [], 0) == (bench.names, await bench.stored(), bench.places_taken)
