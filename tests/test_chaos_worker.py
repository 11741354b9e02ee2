"""A worker that misbehaves in every way a socket allows, and ten thousand tasks that get through all the same.

The worker is a raw asyncio protocol in the test's process. What it does to an attempt follows from the seed, the task's
name and the attempt's token alone, so a failure can be repeated. It writes down what it did; in the end that, the
database and the limits of the tasks must tell one story.
"""

from __future__ import annotations

import asyncio
import random
import socket
import sqlite3
import struct
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from aiotaskqueue import QueueConfig, Task, TaskQueueService, TaskRetryOptions
from aiotaskqueue._record import TaskState
from aiotaskqueue.stores._base import ATTEMPTS_KEPT

pytestmark = pytest.mark.anyio

SEED = 20_120_418
TASKS = 10_000

# Every 10th task may be retried once, every 50th never succeeds and has up to 12 retries: more than its log has lines.
ONCE_EVERY, DOOMED_EVERY, DOOMED_LIMITS = 10, 50, 13

# The shortest deadline that is allowed, and the grace.
DEADLINE_SECONDS, GRACE_SECONDS = 1.0, 1.0

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"
LINGER_NO_TIME = struct.pack("ii", 1, 0)


@attrs.frozen
class Deed:
    """Something a worker does to an attempt, and what the attempt log is to say about it."""

    name: str
    weight: float
    answer: bytes = b""
    delay_seconds: float = 0.0
    end: str = ""
    """How the connection ends: "close", "reset", "close later" without a word; empty: it is kept."""
    reason: str | None = None
    """None: it is a success. "lost": no byte was answered, so it depends on whether the connection was a reused one."""
    status: int | None = None

    @property
    def is_execution(self) -> bool:
        """Whether the task's next attempt is told of an execution."""
        return self.reason in ("status", "redirect", "truncated", "malformed", "deadline")


DEEDS = [
    Deed("answer 200", 70, OK),
    Deed("answer 200 and close", 2, OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), end="close"),
    Deed("answer 200, close without having said so", 1, OK, end="close later"),
    Deed("answer 200 slowly", 0.5, OK, delay_seconds=0.3),
    Deed("answer 500", 5, b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops", reason="status", status=500),
    Deed("answer 204", 3, b"HTTP/1.1 204 No Content\r\n\r\n", reason="status", status=204),
    Deed("redirect", 3, b"HTTP/1.1 302 Found\r\nLocation: /trap\r\nContent-Length: 0\r\n\r\n", reason="redirect", status=302),
    Deed("redirect the body", 1, b"HTTP/1.1 307 Moved\r\nLocation: /trap\r\nContent-Length: 0\r\n\r\n", reason="redirect", status=307),
    Deed("close without an answer", 2, end="close", reason="lost"),
    Deed("reset without an answer", 2, end="reset", reason="lost"),
    Deed("close within the head", 1, b"HTTP/1.1 200 OK\r\nContent-Le", end="close", reason="disconnected"),
    Deed("reset within the head", 1, b"HTTP/1.1 200 OK\r\nContent-Le", end="reset", reason="disconnected"),
    Deed("close within the body", 2, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", end="close", reason="truncated"),
    Deed("close within the chunks", 2, CHUNKED, end="close", reason="truncated"),
    Deed("reset within the body", 2, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", end="reset", reason="truncated"),
    Deed("speak something else", 2, b"220 mail.example.com ESMTP\r\n\r\n", end="close", reason="malformed"),
    Deed("answer 200 too late", 0.2, OK, delay_seconds=DEADLINE_SECONDS + GRACE_SECONDS + 2.0, reason="deadline"),
]
FAILURES = [deed for deed in DEEDS if deed.reason not in (None, "deadline")]


@attrs.frozen
class Visit:
    """One attempt as the worker saw it."""

    deed: Deed
    is_reused: bool
    retry_count: int
    execution_count: int

    @property
    def reason(self) -> str | None:
        """What the attempt log is to say."""
        if self.deed.reason == "lost":
            return "stale" if self.is_reused else "disconnected"
        return self.deed.reason


class Worker:
    """What all connections share: the record of what was done."""

    def __init__(self) -> None:
        self.visits: dict[str, dict[int, Visit]] = {}
        self.repeated: list[tuple[str, int]] = []
        self.strange: list[str] = []
        self.connections: set[asyncio.Transport] = set()

    def visit(self, target: str, headers: Mapping[str, str], *, is_reused: bool) -> Deed:
        """Choose what to do to an attempt and write it down."""
        name, token = headers["x-appengine-taskname"], int(headers["x-taskqueue-attempt"])
        if target not in ("/worker", "/doomed"):
            self.strange.append(target)
        choices = FAILURES if target == "/doomed" else DEEDS
        (deed,) = random.Random(f"{SEED} {name} {token}").choices(choices, [deed.weight for deed in choices])
        visits = self.visits.setdefault(name, {})
        if token in visits:
            self.repeated.append((name, token))
        counts = int(headers["x-appengine-taskretrycount"]), int(headers["x-appengine-taskexecutioncount"])
        visits[token] = Visit(deed, is_reused, *counts)
        return deed


class Connection(asyncio.Protocol):
    """One connection to the worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._received = b""
        self._requests = 0
        self._is_leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._worker.connections.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._worker.connections.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        # A request that comes while the connection is being closed is not even read.
        if not separator or self._is_leaving:
            return
        request_line, *lines = head.decode("ascii").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if len(body) < int(headers.get("content-length", "0")):
            return
        self._received = b""
        self._requests += 1
        deed = self._worker.visit(request_line.split(" ")[1], headers, is_reused=self._requests > 1)
        if deed.delay_seconds:
            asyncio.get_running_loop().call_later(deed.delay_seconds, self._do, deed)
        else:
            self._do(deed)

    def _do(self, deed: Deed) -> None:
        self._transport.write(deed.answer)
        if deed.end == "close later":
            self._is_leaving = True
            asyncio.get_running_loop().call_later(0.002, self._transport.close)
        elif deed.end == "close":
            self._transport.close()
        elif deed.end == "reset":
            # The answer is given time to arrive: a reset takes along what the client has not read yet.
            asyncio.get_running_loop().call_later(0.01 if deed.answer else 0.0, self._reset)

    def _reset(self) -> None:
        if not self._transport.is_closing():
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NO_TIME)
            self._transport.abort()


@asynccontextmanager
async def serving(worker: Worker) -> AsyncIterator[str]:
    """Serve the worker and give its base URL."""
    server = await asyncio.get_running_loop().create_server(lambda: Connection(worker), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for transport in list(worker.connections):
            transport.abort()
        await server.wait_closed()


def limit_of(number: int) -> int | None:
    """Return the retry limit of a task."""
    if number % DOOMED_EVERY == 0:
        return number // DOOMED_EVERY % DOOMED_LIMITS
    return 1 if number % ONCE_EVERY == 0 else None


def make_task(number: int) -> Task:
    """Return one of the tasks; some have a body, some a limit, some no chance."""
    options = TaskRetryOptions(min_backoff_seconds=0.01, max_backoff_seconds=0.05, task_retry_limit=limit_of(number))
    url = "/doomed" if number % DOOMED_EVERY == 0 else "/worker"
    return Task(url=url, payload=b"x" * (number % 7 * 500), name=f"task-{number}", retry_options=options)


async def run_all(service: TaskQueueService) -> None:
    """Add the tasks in ten adds at once and wait until the queue is empty."""
    queue = service.queue()
    tasks = [make_task(number) for number in range(TASKS)]
    await asyncio.gather(*(queue.add(tasks[part::10]) for part in range(10)))
    while (await queue.fetch_statistics()).tasks:
        await asyncio.sleep(0.05)


@attrs.frozen
class Line:
    """What is known of one attempt of a task, or what the attempt log says of it."""

    token: int
    attempt: int
    reason: str | None
    status: int | None


def tell(visits: Mapping[int, Visit], last_token: int) -> Iterator[tuple[Line, bool]]:
    """Tell a task's story from what the worker saw: what happened to each attempt, and whether that counted as one.

    An attempt that never arrived can only have gone to a connection that the worker was closing. A connection that dies
    under a reused request does not count, but only once in a row.
    """
    attempts, was_stale = 0, False
    for token in range(1, last_token + 1):
        visit = visits.get(token)
        reason = "stale" if visit is None else visit.reason
        was_stale = reason == "stale" and not was_stale
        yield Line(token, attempts + 1, reason, visit.deed.status if visit else None), not was_stale
        attempts += not was_stale


def count_executions(visits: Mapping[int, Visit], before: int) -> int:
    """Return how many attempts before a token were answered or ran into the deadline."""
    return sum(visit.deed.is_execution for token, visit in visits.items() if token < before)


@attrs.frozen
class Row:
    """A task that is still in the database."""

    name: str
    lease_token: int
    attempts: int
    executions: int
    state: int
    dead_reason: str | None


def read(database: Path, statement: str) -> list[tuple[Any, ...]]:
    """Read from the database behind the service's back."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def read_logs(database: Path) -> dict[str, list[Line]]:
    """Return the attempt logs by the task's name."""
    logs: dict[str, list[Line]] = {}
    for name, *line in read(
        database,
        "SELECT name, a.lease_token, attempt, reason, status FROM taskqueue_attempt AS a JOIN taskqueue_task ON id = task_id"
        " ORDER BY name, a.lease_token",
    ):
        logs.setdefault(name, []).append(Line(*line))
    return logs


def check_endings(worker: Worker, dead: set[str]) -> None:
    """Each task got one 200, its last answer, or is dead; nothing was sent twice or elsewhere."""
    reasons = {name: [visits[token].reason for token in sorted(visits)] for name, visits in worker.visits.items()}
    done = {name for name in reasons if None in reasons[name]}
    all_names = {f"task-{number}" for number in range(TASKS)}

    assert [] == worker.strange, "A redirect was followed"
    assert [] == worker.repeated, "An attempt was sent twice"
    assert all_names - done == dead, "A task was lost, or is dead after a 200"
    assert [] == [name for name in done if None in reasons[name][:-1]], "A task was delivered after its 200"


def check_limits(worker: Worker, rows: Sequence[Row]) -> None:
    """A dead task had one attempt more than its limit of retries; both sides count alike."""
    limits = {f"task-{number}": limit_of(number) for number in range(TASKS)}
    for row in rows:
        visits = worker.visits.get(row.name, {})
        counted = [line for line, is_counted in tell(visits, row.lease_token) if is_counted]

        assert (row.state, limits[row.name], len(counted)) == (TaskState.DEAD, row.attempts - 1, row.attempts), row
        assert (count_executions(visits, row.lease_token + 1), counted[-1].reason) == (row.executions, row.dead_reason), row


def check_logs(worker: Worker, rows: Sequence[Row], logs: Mapping[str, list[Line]]) -> None:
    """The attempt logs of dead tasks say what was done to each of the last ten attempts."""
    told = {row.name: [line for line, _ in tell(worker.visits.get(row.name, {}), row.lease_token)] for row in rows}

    assert {name: lines[-ATTEMPTS_KEPT:] for name, lines in told.items()} == logs
    assert ATTEMPTS_KEPT < max(map(len, told.values())), "No log was full"


def check_headers(worker: Worker) -> None:
    """Each attempt was told how many attempts and executions there had been."""
    for visits in worker.visits.values():
        for line, _ in tell(visits, max(visits)):
            visit = visits.get(line.token)

            assert visit is None or (line.attempt - 1, count_executions(visits, line.token)) == (visit.retry_count, visit.execution_count)


@pytest.mark.promise("P2", "P3", "P6")
@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_every_task_ends_by_one_200_or_dies_by_its_limit_and_its_log_says_why(tmp_path: Path) -> None:
    """Whatever a worker does, each task ends once by a 200 or is dead by its limit, with a true log of its attempts."""
    worker, database = Worker(), tmp_path / "tasks.db"
    config = QueueConfig("default", max_concurrent_requests=64, dispatch_deadline_seconds=DEADLINE_SECONDS)
    async with serving(worker) as url, TaskQueueService(database, queues=[config], target=url, seed=SEED) as service:
        await run_all(service)
        (statistics,) = await service.statistics()
        health = service.health()
    rows = [Row(*row) for row in read(database, "SELECT name, lease_token, attempts, executions, state, dead_reason FROM taskqueue_task")]

    assert (0, None, 0) == (statistics.tasks, statistics.oldest_eta_usec, statistics.in_flight)
    assert health.is_ok, health.reasons
    assert [(0.0,)] == read(database, "SELECT total(tasks) FROM taskqueue_in_flight")
    assert [(0,)] == read(database, "SELECT count(*) FROM taskqueue_attempt WHERE task_id NOT IN (SELECT id FROM taskqueue_task)")
    check_endings(worker, {row.name for row in rows})
    check_limits(worker, rows)
    check_logs(worker, rows, read_logs(database))
    check_headers(worker)
