"""P5: what a killed process had in flight, a hundred tasks at once, can be leased again within five seconds, and is done."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from killing import RESCUE_SECONDS, Place, kill, look, place, wait_until, working

from aiotaskqueue import Task, TaskQueueService

PLACES = 100
ROUNDS = 3

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120), pytest.mark.promise("P5")]


async def add(database: Path) -> None:
    """Add a hundred tasks that take long, from a process that delivers nothing."""
    async with TaskQueueService(database, dispatch=False) as service:
        await service.queue().add([Task(url="/sleep/60") for _ in range(PLACES)])


def count_in_flight_of(where: Place, pid: int) -> int:
    """Return how many tasks a process has in flight."""
    of_process = "(SELECT id FROM taskqueue_process WHERE pid = ?)"
    return look(where.database, f"SELECT count(*) FROM taskqueue_task WHERE state = 1 AND process_id IN {of_process}", pid)[0]


def test_the_next_start_takes_back_a_hundred_orphans(tmp_path: Path) -> None:
    """With nobody else there, the orphans can be leased again as soon as the next process has started."""
    rescues = []
    with place(tmp_path) as where:
        for number in range(ROUNDS):
            asyncio.run(add(where.database))
            with working(where, "work", PLACES) as child:
                wait_until(lambda count=2 * number + 1: len(where.read_journal("start")) == count * PLACES)
                kill(child)
            orphans = count_in_flight_of(where, child.pid)
            began = time.monotonic()
            with working(where, "work", PLACES) as following:
                rescues.append(wait_until(lambda pid=child.pid: not count_in_flight_of(where, pid)) - began)
                exit_code = following.wait(60)

            assert (PLACES, 0) == (orphans, exit_code)
            assert 2 * (number + 1) * PLACES == len(where.read_journal("start"))
    print(f"\nRescued by the next start after {', '.join(f'{seconds:.2f}' for seconds in rescues)} s, the start of Python included")

    assert max(rescues) < RESCUE_SECONDS


def test_a_survivor_takes_over_a_hundred_orphans(tmp_path: Path) -> None:
    """A process that lives beside the one that is killed takes its orphans over, and does them."""
    rescues = []
    with place(tmp_path) as where:
        for number in range(ROUNDS):
            asyncio.run(add(where.database))
            with working(where, "work", PLACES) as child:
                wait_until(lambda count=2 * number + 1: len(where.read_journal("start")) == count * PLACES)
                with working(where, "work", PLACES) as survivor:
                    wait_until(lambda: look(where.database, "SELECT count(*) FROM taskqueue_process") == [2])
                    killed_at = time.monotonic()
                    kill(child)
                    rescues.append(wait_until(lambda pid=child.pid: not count_in_flight_of(where, pid)) - killed_at)
                    exit_code = survivor.wait(60)

            assert 0 == exit_code
            assert 2 * (number + 1) * PLACES == len(where.read_journal("start"))
    print(f"\nRescued by a survivor {', '.join(f'{seconds:.2f}' for seconds in rescues)} s after the kill")

    assert max(rescues) < RESCUE_SECONDS
