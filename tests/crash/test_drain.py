"""C8: SIGTERM with fifty tasks in flight, under ``web.run_app`` (P20). All times are a tenth of what they are by default."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from pathlib import Path

import attrs
import pytest
from killing import look, place, wait_until, working
from worker_child import DRAIN_SECONDS

from aiotaskqueue import Task, TaskQueueService

PLACES = 50
WAITING = 25
LONGEST_SECONDS = 4.0
ROUNDS = 5

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120), pytest.mark.promise("P20")]


@attrs.frozen
class Attempt:
    """An attempt, as the worker saw it."""

    name: str
    attempt: str
    retries: str
    executions: str


async def add(database: Path, chance: random.Random) -> None:
    """Add tasks that take up to 4 s, more than may be in flight, from a process that delivers nothing."""
    async with TaskQueueService(database, dispatch=False) as service:
        await service.queue().add([Task(url=f"/sleep/{chance.uniform(0.0, LONGEST_SECONDS)}") for _ in range(PLACES)])
        await service.queue().add([Task(url="/sleep/0.3") for _ in range(WAITING)])


@pytest.mark.parametrize("mode", ["serve", "serve-port"])
@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_process_that_is_told_to_end_loses_no_attempt(tmp_path: Path, mode: str, number: int) -> None:
    """It ends in the time of the drain and a second; what was cut is delivered once more, as if it had not been tried."""
    chance = random.Random(number)
    with place(tmp_path) as where:
        asyncio.run(add(where.database, chance))
        with working(where, mode, PLACES) as child:
            wait_until(lambda: len(where.read_journal("start")) >= PLACES)
            time.sleep(chance.uniform(0.0, 0.3))
            told_at = time.monotonic()
            child.send_signal(signal.SIGTERM)
            exit_code = child.wait(20)
            took = time.monotonic() - told_at
        done = {name for name, _ in where.read_journal("ok")}
        first = [Attempt(*words) for words in where.read_journal("start")]
        left = look(where.database, "SELECT name FROM taskqueue_task")
        states = look(where.database, "SELECT DISTINCT state, attempts, executions, is_suspect, crashes FROM taskqueue_task")
        registered = look(where.database, "SELECT count(*) FROM taskqueue_process")
        with working(where, "work", PLACES) as following:
            following_code = following.wait(20)
        second = [Attempt(*words) for words in where.read_journal("start")][len(first) :]
    cut = {attempt.name for attempt in first} - done
    print(f"\n{mode}, round {number}: ended after {took:.2f} s, {len(done)} done, {len(cut)} cut, {len(left)} delivered by the next start")

    assert (0, 0) == (exit_code, following_code), where.complaints
    assert took < DRAIN_SECONDS + 1.0
    assert cut
    assert (PLACES + WAITING, set()) == (len(done) + len(left), done & set(left))
    assert [(0, 0, 0, 0, 0)] == states
    assert [0] == registered
    assert sorted(left) == sorted(attempt.name for attempt in second)
    assert {("0", "0")} == {(attempt.retries, attempt.executions) for attempt in (*first, *second)}
