"""ASGIDelivery: an application of this process is called, and whatever it does, the attempt ends as over HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import anyio
import pytest
from hostile import FastClock
from signed_requests import BODY, make_record

from aiotaskqueue import TaskQueueService
from aiotaskqueue._clock import SystemClock
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.delivery._base import DETAIL_BYTES, Answer, FailureReason, NoAnswer
from aiotaskqueue.delivery.asgi import ATTEMPT, ASGIApp, ASGIDelivery, Attempt, Message, Receive, Scope, Send
from aiotaskqueue.errors import ConfigError
from aiotaskqueue.testing import VirtualClock

pytestmark = pytest.mark.anyio

Play = Callable[[Receive, Send], Awaitable[object]]

OK: list[Message] = [{"type": "http.response.start", "status": 200, "headers": []}, {"type": "http.response.body", "body": b"done"}]


def playing(play: Play) -> ASGIApp:
    """Return an application that does so, whatever is asked."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await play(receive, send)

    return app


def sending(*messages: Any) -> ASGIApp:
    """Return an application that sends this."""

    async def play(receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return playing(play)


def start(status: object = 200, *headers: tuple[bytes, bytes]) -> Message:
    """Return the start of an answer."""
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(part: object = b"", *, more: bool = False) -> Message:
    """Return a part of a body."""
    return {"type": "http.response.body", "body": part, "more_body": more}


@asynccontextmanager
async def opened(app: ASGIApp, *arguments: Any, clock: Any = None, **options: Any) -> AsyncIterator[ASGIDelivery]:
    """Have a delivery to the application open while the block runs."""
    delivery = ASGIDelivery(app, *arguments, **options)
    try:
        await delivery.open(clock or SystemClock())
        yield delivery
    finally:
        await delivery.aclose()


async def attempt(app: ASGIApp, record: TaskRecord | None = None, **options: Any) -> Answer | NoAnswer:
    """Make one attempt; on the fast clock it has one second and the grace."""
    async with opened(app, clock=FastClock(), **options) as delivery:
        return await delivery.deliver(record or make_record(), deadline_seconds=1.0)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the log says at WARNING or above."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- the request -----------------------------------------------------------------------------------------------------------


async def scope_of(record: TaskRecord, *arguments: Any, **options: Any) -> Scope:
    """Return the scope with which the record is delivered."""
    scopes = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await sending(*OK)(scope, receive, send)

    async with opened(app, *arguments, **options) as delivery:
        assert Answer(200) == await delivery.deliver(record, deadline_seconds=30.0)
    return scopes[0]


async def test_scope() -> None:
    """A task is a request as a server would show it, with an object that says who made it."""
    scope = await scope_of(make_record(url="/a%20b/%C3%A4?q=%20&r"))
    said = scope.pop(ATTEMPT)
    headers = scope.pop("headers")

    assert {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/a b/ä",
        "raw_path": b"/a%20b/%C3%A4",
        "query_string": b"q=%20&r",
        "root_path": "",
        "client": ("127.0.0.1", 0),
        "server": ("localhost", 80),
        "state": {},
    } == scope
    assert isinstance(said, Attempt)
    assert ("mail", "welcome-1", 30.0) == (said.headers.queue_name, said.headers.name, said.headers.deadline_seconds)
    assert all(name == name.lower() for name, _ in headers)


async def test_headers() -> None:
    """The headers are those of a delivery over HTTP, but for the signature."""
    record = make_record(headers=(("X-Mine", "1"), ("Accept-Encoding", "gzip"), ("User-Agent", "me")), previous_status=500, attempts=2)
    headers = (await scope_of(record))["headers"]

    assert [
        (b"host", b"localhost"),
        (b"accept", b"*/*"),
        (b"accept-encoding", b"identity"),
        (b"x-mine", b"1"),
        (b"user-agent", b"me"),
        (b"content-type", b"application/octet-stream"),
        (b"x-appengine-queuename", b"mail"),
        (b"x-appengine-taskname", b"welcome-1"),
        (b"x-appengine-taskretrycount", b"1"),
        (b"x-appengine-taskexecutioncount", b"0"),
        (b"x-appengine-tasketa", b"1767323045"),
        (b"x-taskqueue-task", b"000102030405060708090a0b0c0d0e0f"),
        (b"x-taskqueue-attempt", b"7"),
        (b"x-taskqueue-deadline", b"30"),
        (b"x-appengine-taskpreviousresponse", b"500"),
        (b"content-length", b"9"),
    ] == headers


@pytest.mark.parametrize(("method", "lengths"), [("GET", []), ("HEAD", []), ("DELETE", [b"0"]), ("PUT", [b"0"]), ("POST", [b"0"])])
async def test_no_body(method: str, lengths: list[bytes]) -> None:
    """A request without a body says so where the method expects one, and nothing of it elsewhere, as over HTTP."""
    scope = await scope_of(make_record(method=method, payload=None))

    assert method == scope["method"]
    assert lengths == [value for name, value in scope["headers"] if name == b"content-length"]


@pytest.mark.parametrize(
    ("base_url", "seen"),
    [
        ("http://localhost", (b"localhost", "http", "", "/worker", ("localhost", 80))),
        ("https://shop.example/app/", (b"shop.example", "https", "/app", "/app/worker", ("shop.example", 443))),
        ("http://shop.example:8080/%C3%A4", (b"shop.example:8080", "http", "/ä", "/ä/worker", ("shop.example", 8080))),
    ],
)
async def test_base_url(base_url: str, seen: tuple[object, ...]) -> None:
    """The base URL gives Host, scheme, server and root path, which goes before every URL."""
    scope = await scope_of(make_record(), base_url)

    assert seen == (dict(scope["headers"])[b"host"], scope["scheme"], scope["root_path"], scope["path"], scope["server"])


@pytest.mark.parametrize("base_url", ["nonsense", "http://", ""])
def test_bad_base_url(base_url: str) -> None:
    """A base URL that is none is an error when the delivery is made."""
    with pytest.raises(ConfigError, match="Base URL"):
        ASGIDelivery(sending(*OK), base_url)


async def test_state() -> None:
    """Each call gets a copy of the lifespan's state: what it has by then, and nothing that another call put into its own."""
    state: dict[str, object] = {}
    seen: list[dict[str, object]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(dict(scope["state"]))
        scope["state"]["mine"] = 1
        await sending(*OK)(scope, receive, send)

    async with opened(app, state=state) as delivery:
        state["pool"] = delivery
        for _ in range(2):
            await delivery.deliver(make_record(), deadline_seconds=1.0)

    assert [{"pool": delivery}] * 2 == seen


@pytest.mark.parametrize("payload", [BODY, None])
async def test_body(payload: bytes | None) -> None:
    """The body comes once and whole; after the answer the application is told that nobody listens."""
    messages = []

    async def play(receive: Receive, send: Send) -> None:
        messages.append(await receive())
        for message in OK:
            await send(message)
        messages.extend([await receive(), await receive()])

    async with opened(playing(play)) as delivery:
        assert Answer(200) == await delivery.deliver(make_record(payload=payload), deadline_seconds=1.0)
        await asyncio.sleep(0.01)

    assert [{"type": "http.request", "body": payload or b"", "more_body": False}, *[{"type": "http.disconnect"}] * 2] == messages


async def test_bad_header() -> None:
    """A line break that somebody smuggled into a header is not delivered."""
    result = await attempt(sending(*OK), make_record(headers=(("X-A", "b\r\nX-C: d"),)))

    assert isinstance(result, NoAnswer)
    assert FailureReason.ERROR is result.reason


async def test_not_open() -> None:
    """A delivery that is not open reaches nobody, before and after."""
    delivery = ASGIDelivery(sending(*OK))
    before = await delivery.deliver(make_record(), deadline_seconds=1.0)
    await delivery.open(SystemClock())
    await delivery.aclose()
    await delivery.aclose()

    for result in (before, await delivery.deliver(make_record(), deadline_seconds=1.0)):
        assert NoAnswer(FailureReason.ERROR, "The delivery is not open; call open before deliver, and aclose after the last.") == result


# --- answers ---------------------------------------------------------------------------------------------------------------

WITHOUT_END = "The application returned without an answer."


def not_http(detail: str) -> NoAnswer:
    """Return the result of an answer that is none."""
    return NoAnswer(FailureReason.MALFORMED, f"The application sent what is no answer: {detail}.")


@pytest.mark.promise("P2", "P6")
@pytest.mark.row(140)
@pytest.mark.parametrize(
    ("messages", "result"),
    [
        (OK, Answer(200)),
        ([start(), body(b"a", more=True), body()], Answer(200)),
        ([start(HTTPStatus.OK), body(bytearray(b"a"))], Answer(200)),
        ([{"type": "http.response.start", "status": 200}, {"type": "http.response.body"}], Answer(200)),
        ([*OK, *OK, {"type": "nonsense"}], Answer(200)),
        ([start(500), body(b"Oops\x1b")], Answer(500, None, "Oops\\x1b")),
        ([start(204), body()], Answer(204)),
        ([start(403), body()], Answer(403)),
        ([start(503, (b"Retry-After", b"7")), body(b"a", more=True), body(memoryview(b"b"))], Answer(503, "7", "ab")),
        ([start(307, (b"location", b"/\x80")), body(b".")], Answer(307, None, "The redirect to /\\udc80 is not followed. .")),
        ([], Answer(500, None, WITHOUT_END)),
        ([start()], NoAnswer(FailureReason.TRUNCATED, WITHOUT_END)),
        ([start(), body(b"a", more=True)], NoAnswer(FailureReason.TRUNCATED, WITHOUT_END)),
        ([body()], not_http("'http.response.body' out of order")),
        ([start(), start(), body()], not_http("'http.response.start' out of order")),
        ([{"type": "http.response.push"}], not_http("'http.response.push' out of order")),
        ([start(101), body()], not_http("the status 101")),
        ([start("200"), body()], not_http("the status '200'")),
        ([start(1000), body()], not_http("the status 1000")),
        ([{}], not_http("'type'")),
        ([None], not_http("'NoneType' object is not subscriptable")),
        ([start(), body("text")], not_http("memoryview: a bytes-like object is required, not 'str'")),
        ([start(200, (1, b"")), body()], not_http("memoryview: a bytes-like object is required, not 'int'")),
    ],
)
async def test_answer(messages: list[Message], result: Answer | NoAnswer) -> None:
    """A start and a whole body are an answer, whatever comes behind; everything else is a failure of its own name."""
    assert result == await attempt(sending(*messages))


async def test_long_answer() -> None:
    """Of a page of errors two kilobytes are kept."""
    result = await attempt(sending(start(500), *[body(b"x" * 1000, more=True)] * 50, body()))

    assert Answer(500, None, "x" * DETAIL_BYTES) == result


@pytest.mark.parametrize("status", [200, 500])
async def test_endless_answer(status: int) -> None:
    """A body that never ends is too large at the cap; the application is stopped."""
    ends = []

    async def play(receive: Receive, send: Send) -> None:
        await send(start(status))
        try:
            while True:
                await send(body(bytes(1000), more=True))
        except OSError as exc:
            ends.append(str(exc))
            raise

    expected = NoAnswer(FailureReason.TOO_LARGE, "The body is larger than 10000 bytes.")

    assert expected == await attempt(playing(play), max_answer_bytes=10_000)
    assert ["The attempt was given up; nobody waits for its answer."] == ends


# --- applications that raise -----------------------------------------------------------------------------------------------


@pytest.mark.row(140)
@pytest.mark.parametrize("error", [ValueError("hunter2"), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()])
async def test_error(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever an application raises is a failed attempt, logged with its task, and stops nothing; what it says is not stored."""

    async def play(receive: Receive, send: Send) -> None:
        raise error

    result = await attempt(playing(play))

    assert isinstance(result, Answer)
    assert (500, True) == (
        result.status,
        result.detail.startswith(f"The application raised {type(error).__name__} at test_delivery_asgi.py:"),
    )
    assert "hunter2" not in result.detail
    assert ["The application raised an exception in task welcome-1."] == errors(caplog)


async def test_error_within_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    """An application that raises within its answer has not given one."""

    async def play(receive: Receive, send: Send) -> None:
        await send(start())
        raise ValueError

    result = await attempt(playing(play))

    assert isinstance(result, NoAnswer)
    assert FailureReason.TRUNCATED is result.reason
    assert 1 == len(errors(caplog))


@pytest.mark.parametrize(("error", "count"), [(ValueError(), 1), (OSError(), 1), (asyncio.CancelledError(), 0)])
async def test_error_after_the_answer(error: BaseException, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """A complete answer counts, also when the application then fails, which is logged."""

    async def play(receive: Receive, send: Send) -> None:
        for message in OK:
            await send(message)
        raise error

    assert Answer(200) == await attempt(playing(play))
    await asyncio.sleep(0)
    assert count == len(errors(caplog))


async def test_work_after_the_answer() -> None:
    """What an application does after its answer (background tasks) goes on, and nobody waits for it."""
    done = asyncio.Event()
    may_end = asyncio.Event()

    async def play(receive: Receive, send: Send) -> None:
        for message in OK:
            await send(message)
        await may_end.wait()
        done.set()

    async with opened(playing(play)) as delivery:
        assert Answer(200) == await delivery.deliver(make_record(), deadline_seconds=1.0)
        assert not done.is_set()
        may_end.set()
        await asyncio.wait_for(done.wait(), 1)


# --- time ------------------------------------------------------------------------------------------------------------------

LATE = NoAnswer(FailureReason.DEADLINE, "No complete answer within 2 seconds.")


async def wait_for_ever(receive: Receive, send: Send) -> None:
    """Play: never return."""
    await asyncio.Event().wait()


async def wait_in_the_middle(receive: Receive, send: Send) -> None:
    """Play: begin an answer, and never end it."""
    await send(start())
    await send(body(b"a", more=True))
    await asyncio.Event().wait()


async def listen(receive: Receive, send: Send) -> None:
    """Play: ask for more and more."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def ignore_the_end(receive: Receive, send: Send) -> None:
    """Play: do not care that nobody listens; end by the cancellation only."""
    while True:
        await receive()


async def trickle(receive: Receive, send: Send) -> None:
    """Play: send byte by byte, in a loop that waits for nothing."""
    await send(start())
    while True:
        await send(body(b"a", more=True))


@pytest.mark.promise("P7")
@pytest.mark.row(66, 83, 140)
@pytest.mark.parametrize("play", [wait_for_ever, wait_in_the_middle, listen, ignore_the_end, trickle])
async def test_deadline(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever an application does, the attempt ends at deadline + grace, and the application is stopped."""
    assert LATE == await attempt(playing(play))
    assert [] == errors(caplog)


@pytest.mark.promise("P7")
@pytest.mark.parametrize(
    ("seconds", "result"), [(30.9, Answer(200)), (31.1, NoAnswer(FailureReason.DEADLINE, "No complete answer within 31 seconds."))]
)
async def test_deadline_on_a_clock(seconds: float, result: Answer | NoAnswer) -> None:
    """The deadline is by the service's clock: an answer in the grace counts, one after it does not."""
    clock = VirtualClock(auto_advance=True)

    async def play(receive: Receive, send: Send) -> None:
        await clock.sleep(seconds)
        for message in OK:
            await send(message)

    async with opened(playing(play), clock=clock) as delivery:
        assert result == await delivery.deliver(make_record(), deadline_seconds=30.0)


class LateClock(SystemClock):
    """A clock that jumps when it is told, while its timers do not fire."""

    ahead = 0.0

    def monotonic(self) -> float:
        """Return the time."""
        return super().monotonic() + self.ahead


@pytest.mark.promise("P9")
async def test_answer_after_the_loop_was_blocked() -> None:
    """An answer that is sent after deadline + grace does not count, though the timer had no turn: the application blocked the loop."""
    clock = LateClock()

    async def play(receive: Receive, send: Send) -> None:
        clock.ahead = 40.0
        for message in OK:
            await send(message)

    async with opened(playing(play), clock=clock) as delivery:
        assert LATE == await delivery.deliver(make_record(), deadline_seconds=1.0)


@pytest.mark.slow
async def test_application_that_cannot_be_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """An application that swallows its cancellation holds up neither the attempt nor the end; the log names its task."""
    may_end = asyncio.Event()
    late: list[object] = []

    async def play(receive: Receive, send: Send) -> None:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                late.append(await receive())
        with pytest.raises(OSError, match="given up"):
            await send(start())

    assert LATE == await attempt(playing(play))
    may_end.set()
    await asyncio.sleep(0.01)

    assert ["The handler of task welcome-1 runs on: it does not let itself be cancelled."] == errors(caplog)
    assert [{"type": "http.disconnect"}] * len(late) == late


@pytest.mark.promise("P15")
@pytest.mark.parametrize("is_native", [True, False])
async def test_cancelled_attempt(is_native: bool) -> None:
    """A cancelled attempt cancels the application's call."""
    reached, ended = asyncio.Event(), asyncio.Event()

    async def play(receive: Receive, send: Send) -> None:
        reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with opened(playing(play)) as delivery:
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                call = asyncio.create_task(delivery.deliver(make_record(), deadline_seconds=30.0))

                async def cancel() -> None:
                    await reached.wait()
                    call.cancel() if is_native else scope.cancel()

                group.start_soon(cancel)
                try:
                    await call
                except asyncio.CancelledError:
                    assert call.cancelled() or not is_native
                    if not is_native:
                        raise
        await asyncio.wait_for(ended.wait(), 1)


@pytest.mark.promise("P15")
@pytest.mark.parametrize("number", range(12))
async def test_cancelled_at_every_turn(number: int) -> None:
    """Whenever an attempt is cancelled, nothing of it is left, and the next one is made as if it had not been."""

    async def play(receive: Receive, send: Send) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        await receive()
        for message in (start(), body(b"a", more=True), body()):
            await send(message)

    async with opened(playing(play)) as delivery:
        call = asyncio.create_task(delivery.deliver(make_record(), deadline_seconds=30.0))
        for _ in range(number):
            await asyncio.sleep(0)
        was_made = call.done()
        call.cancel()
        await asyncio.wait({call})
        for _ in range(5):
            await asyncio.sleep(0)

        assert was_made is not call.cancelled()
        assert {} == delivery._exchanges
        assert Answer(200) == await delivery.deliver(make_record(), deadline_seconds=30.0)


async def test_close() -> None:
    """Closing ends what is in flight as cancelled, and waits until the application has ended."""
    reached = asyncio.Event()
    ended = []

    async def play(receive: Receive, send: Send) -> None:
        reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)
            ended.append(True)

    async with opened(playing(play)) as delivery:
        call = asyncio.create_task(delivery.deliver(make_record(), deadline_seconds=30.0))
        await reached.wait()
        await delivery.aclose()

        assert [True] == ended
        assert NoAnswer(FailureReason.CANCELLED, "The delivery was closed.") == await call


@pytest.mark.parametrize(("seconds", "events"), [(0.02, ["finished"]), (60.0, ["cancelled"])])
async def test_close_after_the_answer(seconds: float, events: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """Closing gives an application that has answered a moment to end, and then cancels it."""
    seen: list[str] = []

    async def play(receive: Receive, send: Send) -> None:
        for message in OK:
            await send(message)
        try:
            await asyncio.sleep(seconds)
            seen.append("finished")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    assert Answer(200) == await attempt(playing(play))
    assert (events, []) == (seen, errors(caplog))


async def test_cancelled_close() -> None:
    """A close that is cancelled leaves no call behind."""
    seen: list[str] = []

    async def play(receive: Receive, send: Send) -> None:
        for message in OK:
            await send(message)
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("ended")

    async with opened(playing(play)) as delivery:
        await delivery.deliver(make_record(), deadline_seconds=30.0)
        closing = asyncio.create_task(delivery.aclose())
        await asyncio.sleep(0.01)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await asyncio.sleep(0.01)

        assert ["ended"] == seen


# --- a service -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_named", [False, True])
async def test_target_of_a_service(is_named: bool) -> None:
    """An ASGI application can be a target, by default or by name."""
    paths = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        paths.append(scope["path"])
        await sending(*OK)(scope, receive, send)

    service = TaskQueueService(":memory:", targets={"a": app}) if is_named else TaskQueueService(":memory:", target=app)
    async with service:
        await service.add(url="/worker", target="a" if is_named else None)
        await service.run_until_idle()

    assert ["/worker"] == paths


async def test_handler_closes_the_service() -> None:
    """An application that closes the service that delivers to it waits for nobody: the service closes when the call has ended."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await service.aclose()
        await sending(*OK)(scope, receive, send)

    service = TaskQueueService(":memory:", target=app)
    async with asyncio.timeout(5), service:
        await service.add(url="/worker")
        while service.health().is_ok:
            await asyncio.sleep(0.01)
