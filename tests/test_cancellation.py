"""P15: cancelling any public coroutine at any await leaves "did happen" or "did not happen", and nothing else.

Every public coroutine is cancelled in four ways at every turn of the event loop that it takes, and at every place on the
way of its requests through the database's thread (`cancelling` says how). After each of these moments the same is asked:
has the call ended, as cancelled; does the database, read by plain sqlite3, look as before the call or as after it; is
every task that is due delivered without another nudge; are places, counts of tasks in flight and health as they should
be; and is a new task accepted and delivered. After the last one the service is closed, and nothing may be left of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import itertools
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from cancelled_calls import (
    CASES,
    CLOCK_CASES,
    FURTHER_CASES,
    FURTHER_LIFE_CASES,
    LATER_SECONDS,
    LIFE_CASES,
    Case,
    LifeCase,
    Stage,
    add_to_other,
    comes_true,
    is_well,
    new_task,
    staged,
)
from cancelling import HANGS_SECONDS, KINDS, Before, Cancelled, cancelled_after, cancelled_at_gate, gated, lockstep
from on_clock import Hold, turns
from open_stores import find_drift, query
from signed_requests import BODY, SECRET, StoppedClock, make_record, signed_headers

import aiotaskqueue
from aiotaskqueue import Queue, QueueConfig, QueueStatistics, Task, TaskQueueService, _managing
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.errors import ClosedError, NotStartedError, OutcomeUnknownError, TaskAlreadyExistsError, TombstonedTaskError
from aiotaskqueue.stores import _sqlite_connection
from aiotaskqueue.stores._sqlite_connection import ThreadConnection
from aiotaskqueue.stores.sqlite import SQLiteStore
from aiotaskqueue.tasks import current_task
from aiotaskqueue.testing import RecordingDelivery, VirtualClock
from aiotaskqueue.web import aiohttp as web_adapter

pytestmark = [pytest.mark.anyio, pytest.mark.promise("P15")]

# More than any call takes.
LAST_MOMENT = 400

ALL_CASES = {**CASES, **FURTHER_CASES}
ALL_LIFE_CASES = {**LIFE_CASES, **FURTHER_LIFE_CASES}
# The others take seconds, and run in the crash session.
QUICK_LIFE_CASES = {**LIFE_CASES, **{name: ALL_LIFE_CASES[name] for name in ("a start with an application", "one of two starts")}}


# --- the sweep -----------------------------------------------------------------------------------------------------

Cancel = Callable[[int, str, Callable[[], Awaitable[object]]], Awaitable[Cancelled]]


async def sweep(stage: Stage, case: Case, kind: str, cancel: Cancel) -> tuple[list[str], set[object]]:
    """Cancel the call at one moment after the other, until it ends before its moment comes.

    Returns:
        What is wrong at the first moment at which something is; and how the world looked after each.
    """
    seen = set()
    for moment in range(LAST_MOMENT):
        stage.number += 1
        await stage.settle()
        await case.prepare(stage)
        if not case.is_busy:
            await stage.settle()
        cancelled = await cancel(moment, kind, lambda: case.call(stage))
        faults = [*cancelled.faults, *await find_faults_after(stage, case, has_ended=not cancelled.place)]
        seen.add(case.look(stage))
        if faults or not cancelled.place:
            return [f"{kind} at {cancelled.place or 'no moment'}: {fault}" for fault in faults], seen
    return [f"{kind}: does not end within {LAST_MOMENT} moments"], seen


async def find_faults_after(stage: Stage, case: Case, *, has_ended: bool) -> list[str]:
    """Return what is wrong after a call, which has ended by itself or was cancelled."""
    # Written after whatever the call has submitted; and it wakes nobody.
    await stage.store.list_own_leases()
    if not await comes_true(lambda: case.is_legal(stage)):
        return [f"leaves {case.look(stage)}"]
    found = case.look(stage)
    faults = [f"ends, and leaves {found}"] if has_ended and found != case.after else []
    faults += await stage.find_faults()
    return faults if case.look(stage) == found else [*faults, f"leaves {found}, and later {case.look(stage)}"]


async def sweep_all_kinds(stage: Stage, case: Case, cancel: Cancel) -> tuple[list[str], set[object]]:
    """Sweep with each kind of cancellation."""
    faults: list[str] = []
    seen: set[object] = set()
    for kind in KINDS:
        faults, looks = await sweep(stage, case, kind, cancel)
        seen |= looks
        if faults:
            break
    return faults, seen


@pytest.fixture(autouse=True)
def _short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let lists take several calls to the store."""
    monkeypatch.setattr(_managing, "PAGE", 2)


def public_coroutines() -> set[str]:
    """Return the names of what users await, iterate over or enter asynchronously."""
    classes = (TaskQueueService, Queue, Task, QueueStatistics, VirtualClock)
    members = {f"{cls.__name__}.{name}": value for cls in classes for name, value in inspect.getmembers(cls)}
    functions = {name: getattr(aiotaskqueue, name) for name in aiotaskqueue.__all__}
    functions |= {f"web.aiohttp.{name}": getattr(web_adapter, name) for name in web_adapter.__all__}
    public = {name for name in {**members, **functions} if "._" not in name or name.endswith(("__aenter__", "__aexit__"))}
    # What the decorator makes of a handler is awaited by aiohttp.
    return {name for name in public if is_awaited({**members, **functions}[name])} | {"web.aiohttp.task"}


def is_awaited(function: Any) -> bool:
    """Whether the function is asynchronous, or says that it returns something that is."""
    returned = getattr(inspect.unwrap(function), "__annotations__", {}).get("return") or ""
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function) or "Async" in returned or "Awaitable" in returned


def test_every_public_coroutine_is_cancelled() -> None:
    """A public coroutine without a case below, and a case without a coroutine, is missed here by its name."""
    assert public_coroutines() == {*CASES, *LIFE_CASES, *CLOCK_CASES, "web.aiohttp.task"}


@pytest.mark.parametrize("case", ALL_CASES.values(), ids=ALL_CASES)
async def test_a_call_cancelled_at_every_turn(path: Path, case: Case) -> None:
    """Whenever a call is cancelled, it did happen or did not, and the service is as good as before."""
    before = Before.now(path)
    with lockstep():
        async with staged(path, **case.arguments) as stage:
            faults, seen = await sweep_all_kinds(stage, case, cancelled_after)

    assert [] == faults
    assert {case.before, case.after} == seen
    assert [] == before.find_left()


@pytest.mark.parametrize("case", ALL_CASES.values(), ids=ALL_CASES)
async def test_a_call_cancelled_at_every_gate(path: Path, case: Case) -> None:
    """Wherever a request is in the database's thread when its call is cancelled, it is carried out whole or not at all."""
    before = Before.now(path)
    with gated() as gates:
        async with staged(path, **case.arguments) as stage:
            faults, seen = await sweep_all_kinds(stage, case, functools.partial(cancelled_at_gate, gates=gates))

    assert [] == faults
    assert case.after in seen
    assert [] == before.find_left()


async def test_the_sweep_is_systematic(path: Path) -> None:
    """A call takes the same turns on every run, and passes every gate that there is."""
    with lockstep():
        async with staged(path.with_name("a.db")) as stage:
            runs = [await count_moments(stage, CASES["Queue.revive"], cancelled_after) for _ in range(10)]
    with gated() as gates:
        async with staged(path) as stage:
            for name in ("Queue.revive", "Queue.list_tasks"):
                await sweep_all_kinds(stage, CASES[name], functools.partial(cancelled_at_gate, gates=gates))

    assert [runs[0]] * 10 == runs
    assert gates.places == {
        *(f"{moment} {statement}" for moment in ("before", "after") for statement in ("BEGIN IMMEDIATE", "BEGIN", "COMMIT")),
        *("answered", "answered, and not yet heard"),
    }


async def count_moments(stage: Stage, case: Case, cancel: Cancel) -> int:
    """Return how many moments a call has."""
    before = stage.number
    await sweep(stage, case, "native", cancel)
    return stage.number - before


# --- the life of a service -----------------------------------------------------------------------------------------


async def live(path: Path, case: LifeCase, moment: int, kind: str) -> tuple[list[str], bool]:
    """Make a service, cancel the call at the moment; return what is wrong then, and whether the call had ended before."""
    before = Before.now(path)
    in_flight = asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        await respond(None)
        return web.Response()

    async def respond(record: TaskRecord | None) -> int:
        in_flight.set()
        await turns(5)
        return 200

    app = web.Application()
    app.router.add_post("/w", handle)
    delivery = None if case.has_app else RecordingDelivery(respond)
    store = SQLiteStore(str(path), durability="normal")
    service = TaskQueueService(store=store, delivery=delivery, target=app if case.has_app else None)
    if not case.starts:
        await service.start()
        await service.add(url="/w", name="in-flight")
        await in_flight.wait()
    neighbours = [asyncio.create_task(service.add(url="/w")) for _ in range(0 if case.starts else 3)]
    cancelled = await cancelled_after(moment, kind, lambda: case.call(service))
    faults = [*cancelled.faults, *await find_faults_of_life(service, case, cancelled, before)]
    await service.aclose()
    results = await asyncio.wait_for(asyncio.gather(*neighbours, return_exceptions=True), HANGS_SECONDS)
    faults += [f"a neighbour gets {result!r}" for result in results if not isinstance(result, Task | ClosedError | OutcomeUnknownError)]
    return [*faults, *before.find_left(), *find_faults_in_file(path)], not cancelled.place


async def find_faults_of_life(service: TaskQueueService, case: LifeCase, cancelled: Cancelled, before: Before) -> list[str]:
    """Return what is wrong: the service runs and is well, or it is closed and nothing is left of it."""
    call = cancelled.call
    must_be_closed = call.has_begun and (case.closes or (case.starts and call.was_cancelled))
    if must_be_closed and before.find_left():
        return [f"leaves {before.find_left()}"]
    try:
        await service.add(url="/w", name="fresh")
    except (ClosedError, NotStartedError):
        return [] if must_be_closed or (case.starts and not call.has_begun) else ["a service that should run is closed"]
    faults = ["a service that should be closed runs"] if must_be_closed else []
    return faults if service.health().is_ok else [*faults, f"health {service.health().reasons}"]


def find_faults_in_file(path: Path) -> list[str]:
    """Return what is wrong in the database of a closed service: whatever was added is done or waits."""
    if not path.exists() or not query(path, "SELECT name FROM sqlite_master"):
        return []
    states = query(path, "SELECT name, state FROM taskqueue_task WHERE state <> 0")
    return [f"{name} is left in state {state}" for name, state in states] + [f"drift {drift}" for drift in find_drift(path)]


async def sweep_life(folder: Path, case: LifeCase, kinds: Iterator[str]) -> list[str]:
    """Cancel the call at one moment after the other, each time with the next kind and a service of its own."""
    for moment, kind in zip(range(LAST_MOMENT), kinds, strict=False):
        path = folder / f"{moment}-{kind}" / "tasks.db"
        path.parent.mkdir()
        faults, has_ended = await live(path, case, moment, kind)
        if faults or has_ended:
            return [f"{kind} at turn {moment}: {fault}" for fault in faults]
    return [f"does not end within {LAST_MOMENT} moments"]


@pytest.mark.slow
@pytest.mark.parametrize("case", QUICK_LIFE_CASES.values(), ids=QUICK_LIFE_CASES)
async def test_life_cancelled_at_every_turn(tmp_path: Path, case: LifeCase) -> None:
    """Whenever a start, drain or close is cancelled, in one way after the other, the service runs, or is closed without a trace."""
    with lockstep():
        assert [] == await sweep_life(tmp_path, case, itertools.cycle(KINDS))


@pytest.mark.crash
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ALL_LIFE_CASES.values(), ids=ALL_LIFE_CASES)
async def test_life_cancelled_at_every_turn_in_every_way(tmp_path: Path, case: LifeCase, kind: str) -> None:
    """Whenever, and in whatever way, a start, drain or close is cancelled, the service runs, or is closed without a trace."""
    with lockstep():
        assert [] == await sweep_life(tmp_path, case, itertools.repeat(kind))


async def test_an_opening_cancelled_before_there_is_a_connection(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is made after the opening of a store was cancelled is closed by the thread that makes it."""
    before = Before.now(path)
    may_connect = threading.Event()

    class Slow(ThreadConnection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            may_connect.wait(HANGS_SECONDS)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(_sqlite_connection, "ThreadConnection", Slow)
    store = SQLiteStore(str(path))
    cancelled = await cancelled_after(5, "native", lambda: store.open(now_usec=0))
    may_connect.set()
    await store.aclose()

    assert (True, [], []) == (cancelled.call.was_cancelled, cancelled.faults, before.find_left())


# --- the clock for tests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", CLOCK_CASES.values(), ids=CLOCK_CASES)
async def test_the_clock_cancelled_at_every_turn(call: Callable[[VirtualClock], Awaitable[object]], kind: str) -> None:
    """Whenever a call to the test clock is cancelled, time goes on afterwards as if it had never been made."""
    clock = VirtualClock(auto_advance=True)
    for moment in range(LAST_MOMENT):
        cancelled = await cancelled_after(moment, kind, lambda: call(clock))

        assert ([], True) == (cancelled.faults, await is_well(clock))
        if not cancelled.place:
            break


@pytest.mark.parametrize("kind", KINDS)
async def test_an_advance_cancelled_at_every_turn(path: Path, kind: str) -> None:
    """Whenever an advance is cancelled, the next one delivers what the first one left, each task once."""
    clock, faults = VirtualClock(), []
    with lockstep():
        async with staged(path, clock=clock) as stage:
            for stage.number in range(LAST_MOMENT):
                for number in range(3):
                    await stage.service.add(url="/w", name=f"{stage.name}-{number}", countdown=number + 1)
                cancelled = await cancelled_after(stage.number, kind, lambda: clock.advance(10))
                faults += [] if clock.is_held else ["time runs by itself"]
                await clock.advance(10)
                faults += [*cancelled.faults, *(fate for fate in stage.fates() if fate != "done")]
                if faults or not cancelled.place:
                    break

    assert [] == faults


# --- handlers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_task_handler_cancelled_at_every_turn(kind: str) -> None:
    """Whenever a handler is cancelled, the check before it included, the next attempt of its task is accepted, and done once."""
    done: list[int] = []
    faults: list[str] = []
    moments = itertools.count()

    @web_adapter.task
    async def handle(request: web.Request) -> None:
        await turns(3)
        done.append(current_task().retry_count)

    @web.middleware
    async def cancel(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        cancelled = await cancelled_after(next(moments), kind, lambda: handler(request))
        faults.extend(cancelled.faults)
        response = cancelled.call.result
        return response if isinstance(response, web.StreamResponse) else web.Response(status=503)

    app = web.Application()
    app.router.add_post("/worker", handle)
    web_adapter.init_worker(app, secrets=[SECRET], clock=StoppedClock())
    app.middlewares.insert(0, cancel)
    statuses = []
    async with TestClient(TestServer(app)) as client:
        while 200 not in statuses and len(statuses) < LAST_MOMENT:
            record = make_record(attempts=len(statuses) + 1, lease_token=len(statuses) + 1)
            statuses.append((await client.post("/worker", data=BODY, headers=signed_headers(record))).status)

    assert ([], [*[503] * (len(statuses) - 1), 200], [len(statuses) - 1]) == (faults, statuses, done)


# --- adds that are made again --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_eager", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_add_made_again(path: Path, kind: str, is_eager: bool) -> None:
    """Whenever an add of a named task is cancelled, adding it again, the same object too, makes sure that it is there once."""
    faults = []
    with lockstep():
        async with staged(path, eager=is_eager) as stage:
            for stage.number in range(LAST_MOMENT):
                task = new_task(stage)
                cancelled = await cancelled_after(stage.number, kind, lambda task=task: stage.service.queue().add(task))  # type: ignore[misc]
                # An eager add that waits for the attempt knows already that the task is stored.
                was_enqueued = task.was_enqueued
                for again in [new_task(stage)] if was_enqueued else [task, new_task(stage)]:
                    with contextlib.suppress(TaskAlreadyExistsError, TombstonedTaskError):
                        await stage.service.queue().add(again)
                await comes_true(lambda: stage.fate() == "done")
                faults += [*cancelled.faults, *([] if stage.fate() == "done" else [stage.fate()])]
                faults += ["cannot be added again"] if was_enqueued and cancelled.call.was_cancelled and not is_eager else []
                if faults or not cancelled.place:
                    break

    assert [] == faults


# --- deletes -------------------------------------------------------------------------------------------------------


async def delete_cancelled(path: Path, moment: int, kind: str) -> tuple[list[str], bool]:
    """Delete a running task that another one waits for; return what is wrong, and whether the call had ended before its moment."""
    hold = Hold()
    queue = QueueConfig("default", max_concurrent_requests=1)
    async with staged(path, queues=[queue], delivery=RecordingDelivery(hold)) as stage:
        await stage.service.add(url="/w", name="running")
        await hold.reached.wait()
        await stage.service.add(url="/w", name="waiting")
        cancelled = await cancelled_after(moment, kind, lambda: stage.service.queue().delete_tasks_by_name("running"))
        await stage.store.list_own_leases()
        is_free = await comes_true(lambda: len(query(stage.database, "SELECT 1 FROM taskqueue_task WHERE state = 1")) == 1)
        hold.let_go.set()
    return [*cancelled.faults, *([] if is_free else [f"{cancelled.place}: nothing is started"])], not cancelled.place


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_delete_frees_its_place(path: Path, kind: str) -> None:
    """Whenever a delete of a running task is cancelled, if it happened, the task that waited for the place is started."""
    has_ended, faults = False, []
    with lockstep():
        for moment in range(LAST_MOMENT):
            faults, has_ended = await delete_cancelled(path.with_name(f"{moment}.db"), moment, kind)
            if faults or has_ended:
                break

    assert ([], True) == (faults, has_ended)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_delete_of_many_cancelled(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delete that takes several transactions and is cancelled has deleted the first ones, in order, and nothing by half."""
    monkeypatch.setattr(_managing, "DELETE_SLICE", 2)
    counts = set()
    with lockstep():
        async with staged(path) as stage:
            for stage.number in range(LAST_MOMENT):
                names = [f"{stage.name}-{number}" for number in range(5)]
                await stage.service.queue().add([Task(url="/w", name=name, countdown=LATER_SECONDS) for name in names])
                cancelled = await cancelled_after(
                    stage.number,
                    kind,
                    lambda names=names: stage.service.queue().delete_tasks_by_name(names),  # type: ignore[misc]
                )
                await stage.store.list_own_leases()
                deleted = [stage.fate(name) == "deleted" for name in names]
                counts.add(sum(deleted))

                assert ([], sorted(deleted, reverse=True)) == (cancelled.faults, deleted)
                if not cancelled.place:
                    break

    assert counts == {2, 4, 5} | ({0} if kind != "anyio" else set())


# --- lists ---------------------------------------------------------------------------------------------------------


async def test_a_list_left_in_the_middle(path: Path) -> None:
    """A list that is left by ``break``, or whose reader is cancelled, in the middle of a page holds nothing: the WAL can be emptied."""
    seen = []

    async def read_until_cancelled() -> None:
        async for stored in stage.service.queue("other").list_tasks():
            seen.append(stored.name)
            await asyncio.Event().wait()

    with lockstep():
        async with staged(path) as stage:
            await add_to_other(stage)
            async for stored in stage.service.queue("other").list_tasks():
                seen.append(stored.name)
                break
            cancelled = await cancelled_after(20, "native", read_until_cancelled)
            [(is_busy, _, _)] = query(stage.database, "PRAGMA wal_checkpoint(TRUNCATE)")

            assert (["n0-0", "n0-0"], True, 0) == (seen, cancelled.call.was_cancelled, is_busy)
            assert [] == await stage.find_faults()


# --- the storm -----------------------------------------------------------------------------------------------------


async def storm(stage: Stage, adds: int, rng: random.Random) -> tuple[set[str], set[str]]:
    """Cancel half of many adds that are made at once, at random; return the names that were accepted, and those that are there."""
    adding = [asyncio.create_task(stage.service.add(url="/w", name=f"storm-{number}")) for number in range(adds)]
    for task in rng.sample(adding, adds // 2):
        if rng.random() < 0.05:
            await turns(rng.randrange(3))
        task.cancel()
    results = await asyncio.gather(*adding, return_exceptions=True)
    accepted = {result.name for result in results if isinstance(result, Task) and result.name is not None}

    assert [] == [result for result in results if not isinstance(result, Task | asyncio.CancelledError)]

    await stage.store.list_own_leases()
    await stage.service.run_until_idle()
    return accepted, set(query(stage.database, "SELECT name FROM taskqueue_tombstone WHERE name LIKE 'storm%'"))


@pytest.mark.slow
async def test_cancellation_storm(path: Path) -> None:
    """Of 5,000 adds half of which are cancelled, what was accepted is there, each task is delivered once, and the writer goes on."""
    before = Before.now(path)
    async with staged(path) as stage:
        accepted, there = await storm(stage, 5_000, random.Random(1))
        deliveries = Counter(delivered.record.name for delivered in stage.delivery.deliveries)

        assert 2_500 <= len(accepted) < 5_000
        assert (set(), dict.fromkeys(there, 1)) == (accepted - there, deliveries)
        assert [] == await stage.find_faults()

    assert [] == before.find_left()


@pytest.mark.crash
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(10))
async def test_cancellation_storms(path: Path, seed: int) -> None:
    """The same ten times, with 10,000 adds each, some of them natively and some by the time limit around all of them."""
    before = Before.now(path)
    async with staged(path) as stage:
        with anyio.move_on_after(0.02 * (seed % 4)):
            async with anyio.create_task_group() as tg:
                for number in range(1_000):
                    tg.start_soon(functools.partial(stage.service.add, url="/w", name=f"limited-{number}"))
        accepted, there = await storm(stage, 10_000, random.Random(seed))
        deliveries = Counter(delivered.record.name for delivered in stage.delivery.deliveries)

        assert (set(), 1) == (accepted - there, max(deliveries.values()))
        assert [] == await stage.find_faults()

    assert [] == before.find_left()
