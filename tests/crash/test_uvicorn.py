"""Under uvicorn: SIGTERM with fifty tasks in flight, and workers that are exchanged under load (P20)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from killing import look, wait_until

from aiotaskqueue import QueueConfig, Task, TaskQueueService

PLACES = 50
WAITING = 25
LONGEST_SECONDS = 4.0
MANY = 10_000

# As in asgi_child.py, which cannot be imported here: it opens what it is given.
DRAIN_SECONDS = 1.0
TESTS = Path(__file__).parent.parent

# What uvicorn itself needs beyond the drain: it looks at its flags and its workers every now and then.
UVICORN_SECONDS = 3.0

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300), pytest.mark.promise("P20")]


def read_journal(folder: Path, verb: str) -> list[list[str]]:
    """Return the words of each line of that kind, without the first one."""
    journal = folder / "journal"
    lines = [line.split() for line in journal.read_text().splitlines()] if journal.exists() else []
    return [words for found, *words in lines if found == verb]


@contextlib.contextmanager
def uvicorn(folder: Path, workers: int, places: int) -> Iterator[subprocess.Popen[str]]:
    """Run the application of asgi_child.py, until the block ends."""
    with tempfile.TemporaryDirectory() as sockets:
        options = ["-m", "uvicorn", "asgi_child:app", "--uds", f"{sockets}/s", "--workers", str(workers), "--app-dir", str(TESTS)]
        before = len(read_journal(folder, "process"))
        where = {"DATABASE": str(folder / "tasks.db"), "JOURNAL": str(folder / "journal"), "PLACES": str(places)}
        # In a session of its own: its workers would outlive it, and go on saying what nobody reads.
        child = subprocess.Popen(
            [sys.executable, *options],
            cwd=folder,
            env={**os.environ, **where},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            wait_until(lambda: len(read_journal(folder, "process")) >= before + workers)
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()


async def add(folder: Path, places: int, *tasks: Task) -> None:
    """Add tasks from a process that delivers nothing."""
    queues = [QueueConfig("default", max_concurrent_requests=places)]
    async with TaskQueueService(folder / "tasks.db", queues=queues, dispatch=False) as service:
        for first in range(0, len(tasks), 1000):
            await service.queue().add(tasks[first : first + 1000])


def end(child: subprocess.Popen[str]) -> tuple[float, str]:
    """Stop it by SIGTERM; return how long that took, and what it said."""
    told_at = time.monotonic()
    child.send_signal(signal.SIGTERM)
    said, _ = child.communicate(timeout=30)
    return time.monotonic() - told_at, said


@pytest.mark.parametrize("workers", [1, 4])
def test_uvicorn_that_is_told_to_end_loses_no_attempt(tmp_path: Path, workers: int) -> None:
    """It ends in the time of the drain; what was cut is delivered once more, as if it had not been tried."""
    chance = random.Random(workers)
    longs = [Task(url=f"/sleep/{chance.uniform(0.0, LONGEST_SECONDS)}") for _ in range(PLACES)]
    shorts = [Task(url="/sleep/0.3") for _ in range(WAITING)]
    with uvicorn(tmp_path, workers, PLACES) as child:
        asyncio.run(add(tmp_path, PLACES, *longs, *shorts))
        wait_until(lambda: len(read_journal(tmp_path, "start")) >= PLACES)
        took, said = end(child)
    done = {name for name, _ in read_journal(tmp_path, "ok")}
    first = read_journal(tmp_path, "start")
    left = look(tmp_path / "tasks.db", "SELECT name FROM taskqueue_task")
    states = look(tmp_path / "tasks.db", "SELECT DISTINCT state, attempts, executions, is_suspect, crashes FROM taskqueue_task")
    registered = look(tmp_path / "tasks.db", "SELECT count(*) FROM taskqueue_process")
    with uvicorn(tmp_path, 1, PLACES) as following:
        wait_until(lambda: not look(tmp_path / "tasks.db", "SELECT name FROM taskqueue_task"))
        end(following)
    second = read_journal(tmp_path, "start")[len(first) :]
    cut = {name for name, *_ in first} - done
    print(f"\n{workers} workers: ended after {took:.2f} s, {len(done)} done, {len(cut)} cut, {len(left)} delivered by the next start")

    assert took < DRAIN_SECONDS + UVICORN_SECONDS, said
    assert "Traceback" not in said, said
    assert cut
    assert (PLACES + WAITING, set()) == (len(done) + len(left), done & set(left))
    assert [(0, 0, 0, 0, 0)] == states
    assert [0] == registered
    assert sorted(left) == sorted(name for name, *_ in second)
    assert {("0", "0")} == {(retries, executions) for _, _, retries, executions in (*first, *second)}


@pytest.mark.skipif(sys.platform == "win32", reason="uvicorn exchanges its workers at SIGHUP")
def test_workers_that_are_exchanged_under_load(tmp_path: Path) -> None:
    """Four workers share a file and are exchanged one after the other: of 10,000 tasks each is done once, and none is lost."""
    with uvicorn(tmp_path, 4, 16) as child:
        asyncio.run(add(tmp_path, 16, *(Task(name=f"task-{number}", url="/sleep/0.002") for number in range(MANY))))
        wait_until(lambda: len(read_journal(tmp_path, "ok")) >= MANY // 10)
        before = len(read_journal(tmp_path, "ok"))
        child.send_signal(signal.SIGHUP)
        wait_until(lambda: len(read_journal(tmp_path, "process")) >= 8, 120)
        meanwhile = len(read_journal(tmp_path, "ok"))
        wait_until(lambda: not look(tmp_path / "tasks.db", "SELECT name FROM taskqueue_task LIMIT 1"), 200)
        _, said = end(child)
    times = Counter(name for name, _ in read_journal(tmp_path, "ok"))
    print(f"\nThe workers were exchanged while {meanwhile - before} of {MANY} tasks were done.")

    assert "Traceback" not in said, said
    assert before < meanwhile
    assert {f"task-{number}": 1 for number in range(MANY)} == times
