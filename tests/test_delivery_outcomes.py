"""The whole way of a bad answer: from a worker's socket through the service to what its operator sees."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hostile import OK, OK_HEAD, FastClock, Peer, Play, answering, play_silence, raw_server, resetting
from signed_requests import SECRET
from test_delivery_http import headers_of

from aiotaskqueue import QueueConfig, Task, TaskQueueService, TaskRetryOptions
from aiotaskqueue._clock import SystemClock
from aiotaskqueue._record import StoredTask, TaskState
from aiotaskqueue.delivery._base import DETAIL_BYTES, FailureReason
from aiotaskqueue.errors import UnknownTaskError
from aiotaskqueue.web.aiohttp import init_worker, task

pytestmark = pytest.mark.anyio

ONCE = TaskRetryOptions(task_retry_limit=0)

# No second is lost for the tests: a task's log can be read at leisure before it is retried.
RARELY = TaskRetryOptions(min_backoff_seconds=1000.0, max_backoff_seconds=3000.0)


@asynccontextmanager
async def serving(
    folder: Path, target: str, retry_options: TaskRetryOptions | None = None, **arguments: Any
) -> AsyncIterator[TaskQueueService]:
    """Run a service on the fast clock whose adds return after the first attempt; handlers have one second and the grace."""
    config = QueueConfig("default", retry_options=retry_options, dispatch_deadline_seconds=1.0, jitter=0)
    service = TaskQueueService(folder / "tasks.db", target=target, queues=[config], clock=FastClock(), eager=True, **arguments)
    async with service:
        yield service


async def attempt(folder: Path, play: Play) -> StoredTask | None:
    """Make one attempt, the only one that the task may have, and return what is then stored; None: nothing any more."""
    async with raw_server(play) as server, serving(folder, server.base_url, ONCE) as service:
        await service.add(b"x" * 90_000, name="one", url="/worker")
        try:
            return await service.queue().get_task("one")
        except UnknownTaskError:
            return None


def status(number: int, *headers: bytes, body: bytes = b"") -> Play:
    """Play: answer with this status."""
    lines = b"".join(header + b"\r\n" for header in headers)
    return answering(b"HTTP/1.1 %d X\r\n%bContent-Length: %d\r\n\r\n%b" % (number, lines, len(body), body))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the log says at WARNING or above, but for the tasks that were given up."""
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [message for message in messages if "was given up" not in message]


# --- what the log of attempts says -------------------------------------------------------------------------------------------


async def play_early_start(peer: Peer) -> None:
    """Begin an answer before the request's body is read, and reset the connection."""
    await peer.reader.readuntil(b"\r\n\r\n")
    await peer.send(OK_HEAD, 0.02)
    peer.reset()


def case(row: int, name: str, play: Play, reason: str, detail: str, *, status: int | None = None, executions: int = 1) -> Any:
    """Return a parameter: what is played, and what is then known of the attempt."""
    return pytest.param(play, (reason, status, detail), executions, id=f"{row} {name}", marks=pytest.mark.row(row))


CASES = [
    case(65, "cut off", answering(OK_HEAD, then_close=True), "truncated", "The connection ended before the end of the body."),
    case(66, "trickle", answering(OK_HEAD, b"o", 60.0), "deadline", "No complete answer within 2 seconds."),
    *(case(67, f"{code}", status(code), "status", "", status=code) for code in (201, 202, 204, 205, 206, 226)),
    case(68, "interim", answering(b"HTTP/1.1 103 X\r\n\r\n"), "deadline", "No complete answer within 2 seconds."),
    *(
        case(
            69,
            f"{code}",
            status(code, b"Location: /\x80\x1b[1m"),
            "redirect",
            "The redirect to /\\udc80\\x1b[1m is not followed. ",
            status=code,
        )
        for code in (301, 302, 303, 307, 308)
    ),
    case(70, "304", status(304), "status", "", status=304),
    *(
        case(70, f"{code}", status(code, body=b"No."), "status", "No.", status=code)
        for code in (400, 401, 403, 404, 405, 409, 410, 411, 413, 415, 418, 429, 451)
    ),
    *(case(71, f"{code}", status(code, body=b"Oops"), "status", "Oops", status=code) for code in (500, 502, 503, 504, 599, 999)),
    case(71, "000", answering(b"HTTP/1.1 000 X\r\n\r\n"), "malformed", "The head has a malformed line: b'HTTP/1.1 000 X\\r\\n'"),
    case(72, "reset", resetting(), "disconnected", "The connection ended before the answer.", executions=0),
    case(72, "garbage", answering(b"SSH-2.0\r\n"), "malformed", "The head has a malformed line: b'SSH-2.0\\r\\n'"),
    case(74, "folded", answering(OK[:-2] + b" x\r\n\r\n"), "malformed", "The head has a malformed line: b' x\\r\\n'"),
    case(78, "early start", play_early_start, "truncated", "The connection ended before the end of the body."),
    case(79, "upgrade", answering(b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"), "status", "", status=101),
    case(81, "ANSI", status(500, body=b"\x1b[2J<b>\xff"), "status", "\\x1b[2J<b>\ufffd", status=500),
    case(83, "silence", play_silence, "deadline", "No complete answer within 2 seconds."),
]


@pytest.mark.promise("P2", "P6")
@pytest.mark.parametrize(("play", "logged", "executions"), CASES)
async def test_failure(tmp_path: Path, play: Play, logged: tuple[str, int | None, str], executions: int) -> None:
    """What is no success stays in the store, with why and what the worker said; by the limit of this task it is dead."""
    stored = await attempt(tmp_path, play)

    assert stored is not None
    assert stored.attempts is not None
    assert [(1, *logged)] == [(line.attempt, line.reason, line.status, line.detail) for line in stored.attempts]
    assert (TaskState.DEAD, logged[0], executions) == (stored.state, stored.dead_reason, stored.execution_count)


SUCCESSES = {
    64: answering(OK),
    75: status(200, b"Content-Encoding: gzip", body=b"no gzip"),
    77: status(200, b"Content-Type: text/html", body=b"<h1>Error 500</h1>"),
    80: status(200, b"Set-Cookie: a=b", b"WWW-Authenticate: Basic realm=x"),
    82: answering(OK_HEAD + b"okjunk"),
}


@pytest.mark.promise("P6")
@pytest.mark.parametrize("play", [pytest.param(play, marks=pytest.mark.row(row), id=f"{row}") for row, play in SUCCESSES.items()])
async def test_success(tmp_path: Path, caplog: pytest.LogCaptureFixture, play: Play) -> None:
    """A complete 200 ends its task, and nobody is warned of anything."""
    assert await attempt(tmp_path, play) is None
    assert [] == warnings(caplog)


@pytest.mark.row(76)
@pytest.mark.slow
async def test_too_large(tmp_path: Path) -> None:
    """A body of more than 32 MiB is a failure of its own name, though the status was 200."""

    async def play(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (33 * 2**20), *[bytes(2**20)] * 33)

    async with raw_server(play) as server, serving(tmp_path, server.base_url, ONCE) as service:
        await service.add(name="one", url="/worker", dispatch_deadline_seconds=100.0)
        stored = await service.queue().get_task("one")

    assert stored.attempts is not None
    assert [("too-large", "The body is larger than 33554432 bytes.")] == [(line.reason, line.detail) for line in stored.attempts]


@pytest.mark.row(81)
async def test_large_error(tmp_path: Path) -> None:
    """Of ten megabytes of error page two kilobytes are stored, as text that can be shown."""
    stored = await attempt(tmp_path, status(500, body=b"<script>\x1b]0;\xff" + b"x" * 10_000_000))

    assert stored is not None
    assert stored.attempts is not None
    (line,) = stored.attempts
    assert line.detail.startswith("<script>\\x1b]0;\ufffdxxx")
    assert DETAIL_BYTES == len(line.detail.encode())


@pytest.mark.row(72, 73)
@pytest.mark.parametrize("is_answering", [False, True])
async def test_unreachable(tmp_path: Path, is_answering: bool) -> None:
    """A target that is gone costs an attempt, but is no execution; before its first answer it does not cost even that."""
    async with raw_server(status(500)) as server:
        async with serving(tmp_path, server.base_url, RARELY) as service:
            if is_answering:
                await service.add(name="first", url="/worker")
            server.stop()
            await service.add(name="one", url="/worker")
            stored = await service.queue().get_task("one")

    assert stored.attempts is not None
    assert ["unreachable"] * is_answering == [line.reason for line in stored.attempts]
    assert (int(is_answering), 0) == (stored.retry_count, stored.execution_count)


@pytest.mark.row(72)
@pytest.mark.promise("P2")
async def test_stale_connection(tmp_path: Path) -> None:
    """A kept connection that is lost at once is tried again at once, uncounted, and the log says so."""

    async def play(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK if peer.number == 1 else OK.replace(b"200", b"500"))
        await peer.read_request()

    async with raw_server(play) as server, serving(tmp_path, server.base_url, RARELY) as service:
        await service.add(url="/first")
        await service.add(name="one", url="/worker")
        await service.run_until_idle()
        stored = await service.queue().get_task("one")

    assert stored.attempts is not None
    assert [(1, "stale"), (1, "status")] == [(line.attempt, line.reason) for line in stored.attempts]
    assert (1, 1) == (stored.retry_count, stored.execution_count)
    assert ["0", "0"] == [dict(headers_of(request))["X-AppEngine-TaskRetryCount"] for request in server.requests[1:]]


# --- when it is tried again --------------------------------------------------------------------------------------------------


@pytest.mark.row(70, 71)
@pytest.mark.parametrize(
    ("code", "asked", "seconds"),
    [
        (429, b"7", 7),
        (503, b"7", 7),
        (503, b"0", 2),
        (503, b"9999999", 60),
        (429, b"Fri, 01 Jan 2100 00:00:00 GMT", 60),
        (429, b"Thu, 01 Jan 1970 00:00:00 GMT", 2),
        (503, b"soon", 2),
        (500, b"7", 2),
        (404, b"7", 2),
    ],
)
async def test_retry_after(tmp_path: Path, code: int, asked: bytes, seconds: int) -> None:
    """429 and 503 may ask for a pause, within the task's backoff and its maximum; others may not (SPEC 4.4)."""
    options = TaskRetryOptions(min_backoff_seconds=2, max_backoff_seconds=60)
    async with raw_server(status(code, b"Retry-After: " + asked)) as server, serving(tmp_path, server.base_url, options) as service:
        await service.add(name="one", url="/worker")
        stored = await service.queue().get_task("one")

    assert stored.attempts is not None
    assert seconds * 1_000_000 == stored.eta_usec - stored.attempts[0].ended_usec


@pytest.mark.slow
@pytest.mark.row(66, 83)
@pytest.mark.promise("P9")
async def test_answer_after_the_grace(tmp_path: Path) -> None:
    """A 200 at deadline + grace + 0.5 s is none: the attempt is in the log as over its deadline, and there is one retry."""

    async def play(peer: Peer) -> None:
        while await peer.read_request():
            await peer.send(*([0.25] if len(peer.requests) == 1 else []), OK)

    async with raw_server(play) as server, serving(tmp_path, server.base_url, RARELY) as service:
        await service.add(name="one", url="/worker")
        stored = await service.queue().get_task("one")
        await asyncio.sleep(0.1)
        await service.queue().run_task("one")
        await service.run_until_idle()
        (statistics,) = await service.statistics()

    assert stored.attempts is not None
    assert [("deadline", None)] == [(line.reason, line.status) for line in stored.attempts]
    assert ["0", "1"] == [dict(headers_of(request))["X-AppEngine-TaskRetryCount"] for request in server.requests]
    assert 0 == statistics.tasks


@pytest.mark.slow
@pytest.mark.promise("P8")
async def test_answer_in_time_to_a_busy_loop(tmp_path: Path) -> None:
    """A 200 that was in the socket in time ends its task though the loop was blocked past the deadline: no retry."""

    async def play(peer: Peer) -> None:
        await peer.read_request()
        peer.writer.write(OK)
        time.sleep(0.3)
        await peer.wait_for_end()

    async with raw_server(play) as server, serving(tmp_path, server.base_url) as service:
        await service.add(name="one", url="/worker")
        with pytest.raises(UnknownTaskError):
            await service.queue().get_task("one")

    assert 1 == len(server.requests)


# --- what the operator is told -----------------------------------------------------------------------------------------------


@pytest.mark.row(67)
async def test_statuses_that_look_like_success(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A 2xx that is not 200 is explained once for each URL, whatever its query and its status."""

    async def play(peer: Peer) -> None:
        while request := await peer.read_request():
            await peer.send(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % (204 if b"204" in request[:20] else 201))

    async with raw_server(play) as server, serving(tmp_path, server.base_url, RARELY) as service:
        for url in ("/a?204", "/a?201", "/a", "/b"):
            await service.add(url=url, method="GET")

    assert [f"/{name} only 200 ends a task (or QueueConfig(success_statuses=...))." for name in ("a answered 204:", "b answered 201:")] == (
        warnings(caplog)
    )


@pytest.mark.row(70)
async def test_no_route_for_the_default_url(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A 404 on a queue's default URL is explained once, with the fix; on another URL it says enough by itself."""
    async with TestServer(web.Application()) as server, serving(tmp_path, str(server.make_url("")), ONCE) as service:
        for task_ in (Task(name="one"), Task(params={"a": "1"}, method="GET"), Task(url="/elsewhere")):
            await service.queue().add(task_)
        stored = await service.queue().get_task("one")

    assert ["/_ah/queue/default answered 404"] == [message.partition(": ")[0] for message in warnings(caplog)]
    assert "queue 'default' needs a route at its default URL (default_url_path gives it), or its tasks a url=." in warnings(caplog)[0]
    assert ("status", 404) == (stored.dead_reason, stored.previous_response)


class WrongClock(SystemClock):
    """A clock that is an hour ahead."""

    def time(self) -> float:
        """Return the wrong time."""
        return super().time() + 3600


@pytest.mark.row(70)
@pytest.mark.promise("P23")
@pytest.mark.parametrize(("secret", "clock"), [(SECRET[::-1], SystemClock()), (SECRET, WrongClock())], ids=["key", "clock"])
async def test_signature_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture, secret: bytes, clock: SystemClock) -> None:
    """A worker with another key, or another time, refuses every task: the log of attempts and, once, the log say why."""
    runs: list[web.Request] = []

    @task
    async def work(request: web.Request) -> None:
        runs.append(request)

    app = web.Application()
    app.router.add_post("/worker", work)
    init_worker(app, secrets=[secret], clock=clock)
    async with TestServer(app) as server, serving(tmp_path, str(server.make_url("")), ONCE, secrets=[SECRET]) as service:
        await service.queue().add([Task(name="one", url="/worker"), Task(url="/worker")])
        stored = await service.queue().get_task("one")

    assert [] == runs
    assert stored.attempts is not None
    assert [(403, "Signature refused: keys or clock differ?")] == [(line.status, line.detail) for line in stored.attempts]
    assert ["/worker answered 403: Signature refused: keys or clock differ?"] == warnings(caplog)


def test_documented() -> None:
    """The guide's table of answers names each reason that an attempt can have."""
    guide = (Path(__file__).parent.parent / "docs" / "guides" / "delivery.md").read_text()
    table = guide.partition("| the worker | the task | reason |")[2].partition("\n\n")[0]

    assert {"status", "redirect", *FailureReason} == set(re.findall(r"`([a-z-]+)` \|$", table, re.MULTILINE))
