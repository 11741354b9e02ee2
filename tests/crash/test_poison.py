"""C7: a task that brings the process down again and again is given up, and nothing else is (P18).

What P18 promises to the innocent: of several tasks in flight at a crash none is charged; who is charged was the one that
was being retried alone, at `crash_limit` crashes in a row; and a process that was told to end has not crashed.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from pathlib import Path

import pytest
from killing import Place, kill, look, place, wait_until, working
from worker_child import FRAGILE

from aiotaskqueue import QueueConfig, Task, TaskQueueService, TaskRetryOptions

DEFAULT = QueueConfig("default")
PLACES = DEFAULT.max_concurrent_requests
INNOCENTS = 100
MOST_CRASHES = 4
TOTAL_SECONDS = 60.0
KILLS = 20

pytestmark = [pytest.mark.crash, pytest.mark.promise("P18")]


async def add(database: Path, *tasks: Task, queue: QueueConfig = DEFAULT) -> None:
    """Add tasks from a process that delivers nothing, but takes back what the last one had in flight."""
    async with TaskQueueService(database, queues=[queue], dispatch=False) as service:
        await service.queue(queue.name).add(tasks)


def supervise(where: Place) -> list[int]:
    """Start the worker again whenever it crashes; return the exit codes of its crashes, once it has ended by itself."""
    crashes: list[int] = []
    while True:
        with working(where, "work", PLACES) as child:
            exit_code = child.wait(TOTAL_SECONDS)
        if not exit_code:
            return crashes
        crashes.append(exit_code)

        assert len(crashes) <= 2 * MOST_CRASHES, where.complaints


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("how", "exit_code"), [("exit", 9), ("segfault", -signal.SIGSEGV), ("hoard", -signal.SIGABRT)])
def test_a_poison_task_is_given_up_and_its_neighbours_are_done(tmp_path: Path, how: str, exit_code: int) -> None:
    """After at most four crashes a task that ends the process is dead, with the reason; a hundred others have succeeded."""
    innocents = [Task(url=f"/sleep/{0.02 * i % 0.1}", name=f"innocent-{i}") for i in range(INNOCENTS)]
    poison = Task(url=f"/poison/{how}", name="poison")
    began = time.monotonic()
    with place(tmp_path) as where:
        asyncio.run(add(where.database, *innocents[:50], poison, *innocents[50:]))
        crashes = supervise(where)
        done = {name for name, _ in where.read_journal("ok")}
        left = look(where.database, "SELECT name, state, dead_reason, crashes FROM taskqueue_task")
        log = look(where.database, "SELECT reason FROM taskqueue_attempt")
    took = time.monotonic() - began
    print(f"\nPoison by {how}: {len(crashes)} crashes, {len(done)} of {INNOCENTS} innocents done, {took:.1f} s")

    assert {exit_code} == set(crashes)
    assert 3 <= len(crashes) <= MOST_CRASHES
    assert {task.name for task in innocents} == done
    assert [("poison", 2, "crash", 3)] == left
    assert ["crash"] * len(crashes) == log
    assert took < TOTAL_SECONDS


@pytest.mark.timeout(120)
def test_a_handler_that_gets_no_memory_brings_nothing_down(tmp_path: Path) -> None:
    """A MemoryError that the handler does not catch is a failed attempt like any other."""
    greedy = Task(url="/greedy/1", name="greedy", retry_options=TaskRetryOptions(task_retry_limit=2))
    with place(tmp_path) as where:
        asyncio.run(add(where.database, *(Task(url="/sleep/0.01", name=f"innocent-{i}") for i in range(INNOCENTS)), greedy))
        crashes = supervise(where)
        done = {name for name, _ in where.read_journal("ok")}
        left = look(where.database, "SELECT name, state, dead_reason FROM taskqueue_task")

    assert [] == crashes
    assert INNOCENTS == len(done)
    assert [("greedy", 2, "status")] == left


IN_FLIGHT = "SELECT name FROM taskqueue_task WHERE state = 1 AND NOT is_suspect"


@pytest.mark.timeout(180)
def test_kills_during_a_long_task_that_is_not_alone(tmp_path: Path) -> None:
    """However often a process is killed with a task in flight beside others, none of them is charged, where one would be the end."""
    chance, kills = random.Random(18), 0
    again = TaskRetryOptions(min_backoff_seconds=0.01, max_backoff_seconds=0.01)
    with place(tmp_path) as where:
        asyncio.run(add(where.database, Task(url="/fail/0.2", name="long", retry_options=again), queue=FRAGILE))
        while True:
            asyncio.run(add(where.database, Task(url="/sleep/5"), queue=FRAGILE))
            dead = look(where.database, "SELECT name FROM taskqueue_task WHERE state = 2")
            if dead or kills == KILLS:
                break
            with working(where, "work", PLACES) as child:
                # Those of the last kill are retried alone first, one after the other.
                wait_until(lambda: {"long"} < set(look(where.database, IN_FLIGHT)))
                time.sleep(chance.uniform(0.0, 0.1))
                kill(child)
            kills += {"long"} < set(look(where.database, IN_FLIGHT))

    assert [] == dead


@pytest.mark.timeout(180)
def test_kills_of_a_process_that_was_told_to_end(tmp_path: Path) -> None:
    """A long task, alone in flight whenever a drain takes too long for whoever kills then, is neither suspected nor charged."""
    with place(tmp_path) as where:
        asyncio.run(add(where.database, Task(url="/fail/60", name="long")))
        for number in range(KILLS):
            with working(where, "serve", PLACES) as child:
                wait_until(lambda count=number + 1: len(where.read_journal("start")) == count)
                child.send_signal(signal.SIGTERM)
                wait_until(lambda: [1] == look(where.database, "SELECT is_draining FROM taskqueue_process WHERE pid = ?", child.pid))
                kill(child)
        with working(where, "serve", PLACES) as child:
            wait_until(lambda: len(where.read_journal("start")) == KILLS + 1)
            [found] = look(where.database, "SELECT state, crashes, is_suspect FROM taskqueue_task")
            kill(child)

    assert (1, 0, 0) == found
