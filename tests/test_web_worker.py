"""Tasks as handlers, over real sockets and in every web framework: who may run them, and what they answer."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import ClientSession
from hostile import FastClock
from signed_requests import BODY, NOW, SECRET, Headers, StoppedClock, make_record, replaced, signed_headers, without
from web_adapters import ADAPTERS, Adapter, Seen, Work
from yarl import URL

from aiotaskqueue._record import TaskRecord
from aiotaskqueue.errors import ConfigError, NotInTaskError
from aiotaskqueue.signing import KeyRing, RefusalReason
from aiotaskqueue.tasks import DeadlineExceededError, FatalTaskError, TaskAnswer, current_task, repeat_task, terminate_task
from aiotaskqueue.worker import AccessCheck, TaskInfo

pytestmark = pytest.mark.anyio


@pytest.fixture(params=ADAPTERS, ids=lambda adapter: adapter.name)
def adapter(request: pytest.FixtureRequest) -> Adapter:
    """Each web framework in turn."""
    chosen: Adapter = request.param
    return chosen


class Calls:
    """A handler that remembers its calls."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.tasks: list[TaskInfo] = []

    async def __call__(self, seen: Seen) -> None:
        self.seen.append(seen)
        self.tasks.append(current_task())


class Client:
    """Makes deliveries by hand."""

    def __init__(self, session: ClientSession, base_url: str) -> None:
        self.session = session
        self.base_url = base_url

    async def deliver(self, record: TaskRecord | None = None, headers: Headers | None = None, body: bytes | None = None) -> int:
        """Deliver the record, with other headers or another body if given; return the status of an answer that must be empty."""
        status, answer = await self.ask(record, headers, body)
        assert answer in (b"", b"null")
        return status

    async def ask(self, record: TaskRecord | None = None, headers: Headers | None = None, body: bytes | None = None) -> tuple[int, bytes]:
        """Deliver the record; return status and body of the answer."""
        record = record or make_record()
        headers = signed_headers(record) if headers is None else headers
        # Encoded: the path goes out as it is, as deliveries send it (RELIABILITY H10).
        url = URL(self.base_url + record.url, encoded=True)
        body = record.payload if body is None else body
        # From a file: of more than a mebibyte of bytes the client warns.
        data = io.BytesIO(body) if body else None
        async with self.session.request(record.method, url, headers=headers, data=data, allow_redirects=False) as response:
            return response.status, await response.read()

    async def send_head(self, headers: Headers, length: int = 10_000_000) -> bytes:
        """Send the head of a request, and nothing of its body; return the head of the answer."""
        url = URL(self.base_url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        lines = ["POST /worker HTTP/1.1", "Host: localhost", f"Content-Length: {length}"]
        writer.write("\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers), "", ""]).encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        return answer.lower()


@contextlib.asynccontextmanager
async def serve(adapter: Adapter, app: object) -> AsyncIterator[Client]:
    """Serve the application while the block runs."""
    async with adapter.serve(app) as base_url, ClientSession() as session:
        yield Client(session, base_url)


async def status_of(adapter: Adapter, work: Work, record: TaskRecord | None = None, headers: Headers | None = None) -> int:
    """Return the status with which a task answers a delivery."""
    async with serve(adapter, adapter.make_app(work)) as client:
        return await client.deliver(record, headers)


def of_the_adapter(adapter: Adapter, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return what the adapter has logged at WARNING or above."""
    return [record for record in caplog.records if record.name == adapter.logger_name and record.levelno >= logging.WARNING]


# --- genuine deliveries --------------------------------------------------------------------------------------------


async def test_delivery_runs_the_handler(adapter: Adapter) -> None:
    """A genuine delivery runs the handler, which can read the body and knows its task."""
    calls = Calls()

    assert 200 == await status_of(adapter, calls, make_record(attempts=2, previous_status=500))
    assert [BODY] == [seen.body for seen in calls.seen]
    assert [("welcome-1", 1, 500)] == [(info.name, info.retry_count, info.previous_response) for info in calls.tasks]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT", "POST"])
async def test_delivery_without_a_body(adapter: Adapter, method: str) -> None:
    """A delivery of any method and without a body runs the handler."""
    calls = Calls()

    assert 200 == await status_of(adapter, calls, make_record(method=method, payload=None))
    assert [(method, b"")] == [(seen.method, seen.body) for seen in calls.seen]


TARGETS = [
    "/worker",
    "/worker?a=1&b=2",
    "/worker?a=%2F%20+&b=",
    "/worker/%7Euser/%2F",
    "/worker/%e4%f6",
    "/worker/%C3%A4?q=%C3%A4",
    "/worker/a;b=c,d:e@f!$&'()*+",
    "/worker/.a/..b",
    "/worker?a=?&b=/&c=[]",
]


async def test_signed_target_is_what_the_server_sees(adapter: Adapter) -> None:
    """Path and query arrive as they were signed, byte by byte (RELIABILITY H10)."""
    calls = Calls()
    async with serve(adapter, adapter.make_app(calls, path="/{tail}")) as client:
        statuses = [await client.deliver(make_record(url=url, lease_token=number)) for number, url in enumerate(TARGETS)]

    assert [200] * len(TARGETS) == statuses
    assert TARGETS == [seen.target for seen in calls.seen]


# --- how a handler ends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 204, 400, 503])
async def test_response_is_passed_on(adapter: Adapter, status: int) -> None:
    """A response that the handler returns is the answer."""

    async def work(seen: Seen) -> int:
        return status

    assert status == await status_of(adapter, work)


async def test_raised_response_is_passed_on(adapter: Adapter) -> None:
    """The framework's own HTTP exception is a response."""

    async def work(seen: Seen) -> None:
        raise adapter.refuse(409)

    async with serve(adapter, adapter.make_app(work)) as client:
        status, _ = await client.ask()

    assert 409 == status


async def test_fatal_error(adapter: Adapter, caplog: pytest.LogCaptureFixture) -> None:
    """FatalTaskError ends the task: it is logged with the task's name and answered with 200 (SPEC 9.1)."""

    async def work(seen: Seen) -> None:
        raise FatalTaskError("No such user.")

    assert 200 == await status_of(adapter, work)
    assert "Task welcome-1 ended for good." in caplog.text
    assert "No such user." in caplog.text


@pytest.mark.parametrize("error", [ValueError("Canary."), NotInTaskError("Canary."), ExceptionGroup("Canary.", [ValueError()])])
async def test_other_error(adapter: Adapter, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """Any other exception is logged with the task's name and answered with an empty 500, so that the task is retried."""

    async def work(seen: Seen) -> None:
        raise error

    assert 500 == await status_of(adapter, work)
    assert "Task welcome-1 failed." in caplog.text
    assert "Canary." in caplog.text


@pytest.mark.parametrize(("answer", "status"), [(terminate_task, 200), (repeat_task, 500)])
async def test_answer_of_a_task(adapter: Adapter, answer: Callable[[], TaskAnswer], status: int, caplog: pytest.LogCaptureFixture) -> None:
    """What terminate_task() and repeat_task() give becomes a response; nothing is logged (SPEC 9.1)."""

    async def work(seen: Seen) -> TaskAnswer:
        return answer()

    assert status == await status_of(adapter, work)
    assert [] == of_the_adapter(adapter, caplog)


@pytest.mark.promise("P7")
@pytest.mark.parametrize("is_caught", [True, False])
async def test_deadline(adapter: Adapter, is_caught: bool, caplog: pytest.LogCaptureFixture) -> None:
    """At its deadline a handler that waits gets an error; it may catch it and succeed, else that is logged and answered with 500."""
    clock = FastClock()

    async def work(seen: Seen) -> None:
        try:
            await asyncio.Event().wait()
        except DeadlineExceededError:
            assert 0 == current_task().remaining_seconds()
            if not is_caught:
                raise

    app = adapter.make_app(work, check=AccessCheck(KeyRing([SECRET]), clock))
    headers = signed_headers(make_record(), created=int(clock.time()), deadline_seconds=1.0)
    async with serve(adapter, app) as client:
        assert (200 if is_caught else 500) == await client.deliver(headers=headers)

    assert is_caught is not ("Task welcome-1 exceeded its deadline." in caplog.text)


@pytest.mark.row(61)
async def test_current_task_ends_with_the_handler(adapter: Adapter) -> None:
    """Outside of a task, also on the same connection, there is no current task."""
    calls = Calls()

    async def work(seen: Seen) -> None:
        if seen.method == "POST":
            await calls(seen)
            return
        with pytest.raises(NotInTaskError):
            current_task()

    async with serve(adapter, adapter.make_app(work, kind="open")) as client:
        assert 200 == await client.deliver()
        assert 200 == await client.deliver(make_record(method="GET", payload=None), headers=[])
    assert 1 == len(calls.tasks)


# --- refusals ------------------------------------------------------------------------------------------------------

GENUINE = signed_headers(make_record())


def without_signature(headers: Headers) -> Headers:
    """Return the headers as somebody sends them who has no key."""
    return [header for header in headers if not header[0].startswith("Signature")]


REFUSED = [
    ([], RefusalReason.UNSIGNED),
    (without_signature(GENUINE), RefusalReason.UNSIGNED),
    (replaced(GENUINE, "Signature", "é"), RefusalReason.BAD_SIGNATURE),
    (replaced(GENUINE, "Signature", ""), RefusalReason.BAD_SIGNATURE),
    (replaced(GENUINE, "Signature-Input", "é"), RefusalReason.MALFORMED),
    (replaced(GENUINE, "Signature-Input", ""), RefusalReason.MALFORMED),
    (replaced(GENUINE, "X-AppEngine-TaskName", "é"), RefusalReason.MALFORMED),
    (replaced(GENUINE, "X-AppEngine-TaskRetryCount", "1"), RefusalReason.BAD_SIGNATURE),
    (without(GENUINE, "X-TaskQueue-Attempt"), RefusalReason.MISSING_HEADER),
    ([*GENUINE, ("X-AppEngine-QueueName", "mail")], RefusalReason.DUPLICATE_HEADER),
    ([*GENUINE, ("X_AppEngine_QueueName", "other")], RefusalReason.DUPLICATE_HEADER),
    (replaced(GENUINE, "X-AppEngine-QueueName", "mail, mail"), RefusalReason.BAD_SIGNATURE),
    ([*GENUINE, ("Signature", "sig1=:AAAA:")], RefusalReason.DUPLICATE_HEADER),
    (signed_headers(make_record(), keys=KeyRing([bytes(range(50, 90))])), RefusalReason.UNKNOWN_KEY),
    (signed_headers(make_record(), created=NOW + 3600), RefusalReason.EARLY),
    (signed_headers(make_record(), created=NOW - 3600), RefusalReason.EXPIRED),
    (signed_headers(make_record(url="/other")), RefusalReason.BAD_SIGNATURE),
    (signed_headers(make_record(method="PUT")), RefusalReason.BAD_SIGNATURE),
    (signed_headers(make_record(payload=b"other")), RefusalReason.BAD_BODY),
]


@pytest.mark.promise("P23")
@pytest.mark.row(135)
async def test_refusals(adapter: Adapter) -> None:
    """What is no genuine delivery gets an empty 403 and is counted once, and the handler does not run."""
    calls, seen = Calls(), []
    check = AccessCheck(KeyRing([SECRET]), StoppedClock())
    async with serve(adapter, adapter.make_app(calls, check=check)) as client:
        for headers, _ in REFUSED:
            check.rejections.clear()
            assert (403, b"") == await client.ask(headers=headers)
            seen.append(dict(check.rejections))

    assert [{reason: 1} for _, reason in REFUSED] == seen
    assert [] == calls.seen


@pytest.mark.promise("P23")
@pytest.mark.row(136)
async def test_replay(adapter: Adapter) -> None:
    """A copy of a delivery is refused, after the first and while it runs."""
    running, may_end = asyncio.Event(), asyncio.Event()

    async def work(seen: Seen) -> None:
        running.set()
        await may_end.wait()

    async with serve(adapter, adapter.make_app(work)) as client, asyncio.TaskGroup() as group:
        first = group.create_task(client.deliver())
        await running.wait()
        meanwhile = await client.deliver()
        may_end.set()
        statuses = (await first, meanwhile, await client.deliver())

    assert (200, 403, 403) == statuses


async def test_chunked_body(adapter: Adapter) -> None:
    """A body whose length is not said before is refused."""

    async def chunks() -> AsyncIterator[bytes]:
        yield BODY

    async with serve(adapter, adapter.make_app(Calls())) as client:
        response = await client.session.post(f"{client.base_url}/worker", data=chunks(), headers=GENUINE)

        assert (403, b"") == (response.status, await response.read())


@pytest.mark.parametrize(("size", "status"), [(1_048_576, 200), (1_048_577, 403)])
async def test_large_body(adapter: Adapter, size: int, status: int) -> None:
    """A body of a mebibyte is read, a larger one is not."""
    record = make_record(payload=bytes(size))
    if status == 200:
        assert 200 == await status_of(adapter, Calls(), record)
        return
    async with serve(adapter, adapter.make_app(Calls())) as client:
        assert (await client.send_head(signed_headers(record), size)).startswith(b"http/1.1 403 ")


async def test_body_that_does_not_come(adapter: Adapter, caplog: pytest.LogCaptureFixture) -> None:
    """A delivery whose connection ends within the body is refused to nobody, and that is not an error of the application."""
    calls, check = Calls(), AccessCheck(KeyRing([SECRET]), StoppedClock())
    async with serve(adapter, adapter.make_app(calls, check=check)) as client:
        url = URL(client.base_url)
        _, writer = await asyncio.open_connection(url.host, url.port)
        lines = ["POST /worker HTTP/1.1", "Host: localhost", "Content-Length: 9", *(f"{name}: {value}" for name, value in GENUINE)]
        writer.write("\r\n".join([*lines, "", "ke"]).encode())
        await asyncio.sleep(0.02)
        writer.transport.abort()
        await asyncio.sleep(0.02)

    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert {RefusalReason.UNREADABLE_BODY: 1} == check.rejections
    assert [] == calls.seen


@pytest.mark.promise("P23")
@pytest.mark.row(135)
@pytest.mark.parametrize("headers", [[], without_signature(GENUINE), replaced(GENUINE, "X-AppEngine-TaskName", "x"), GENUINE])
async def test_body_is_not_read(adapter: Adapter, headers: Headers) -> None:
    """Who is refused for the head, or for the length, is refused before anything of the body has come (RELIABILITY T22)."""
    async with serve(adapter, adapter.make_app(Calls())) as client:
        answer = await client.send_head(headers)

    assert answer.startswith(b"http/1.1 403 ")
    assert b"content-length: 0\r\n" in answer


async def test_bytes_that_are_not_utf8(adapter: Adapter) -> None:
    """Bytes that are not UTF-8, in any header, do not turn a 403 into a 500."""
    async with serve(adapter, adapter.make_app(Calls())) as client:
        url = URL(client.base_url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            b"GET /worker HTTP/1.1\r\nHost: localhost\r\nX-AppEngine-A: \xff\r\nSignature: \xff\r\nSignature-Input: \xff\r\nB: \xff\r\n\r\n"
        )
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    assert answer.startswith(b"HTTP/1.1 403 ")


SPELLINGS = [
    "/worker",
    "//worker",
    "/x/../worker",
    "/./worker",
    "/%77orker",
    "/worker/",
    "/WORKER",
    "/worker;a",
    "/worker%2F",
    "/worker?a=b",
    "/worker%00",
    "/worker%20",
    "/worker/.",
    "/%2e/worker",
    "/worker%3Fa",
    "/worker//",
    "//worker//",
    "/worker/..",
    "/worker/../worker",
    "/worker/./",
    "/worker/%2e%2e/worker",
    "/x/%2e%2e/worker",
    "/x/..%2fworker",
    "/%2fworker",
    "/%2Fworker",
    "/worker%5c",
    "/%5cworker",
    "/Worker",
    "/wOrKeR",
    "/worker%0a",
    "/worker%0d%0a",
    "/worker%09",
    "/worker%c0%af",
    "/worker;jsessionid=1",
    "/worker;",
    "/;/worker",
    "/worker?",
    "/worker?/worker",
    "/worker??",
    "/worker&a=b",
    "/worker%23",
    "/worker*",
    "/worker~",
    "/worker.",
    "/worker.json",
    "/worker%ef%bc%8f",
    "/%25%37%37orker",
    "/%2577orker",
    "/wor%6ber",
    "/%77%6f%72%6b%65%72",
]


@pytest.mark.promise("P23")
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "OPTIONS", "PATCH"])
async def test_no_way_around(adapter: Adapter, method: str) -> None:
    """No spelling of the path and no method runs a task without a signature (RELIABILITY T5)."""
    calls, statuses = Calls(), set()
    async with serve(adapter, adapter.make_app(calls)) as client:
        for path in SPELLINGS:
            url = URL(client.base_url + path, encoded=True)
            headers = {"X-HTTP-Method-Override": "POST", "X-Forwarded-For": "127.0.0.1"}
            async with client.session.request(method, url, headers=headers, allow_redirects=False) as response:
                statuses.add(response.status)

    # Starlette tells who writes a slash too many where the page is.
    assert {403} <= statuses <= {403, 404, 307}
    assert [] == calls.seen


@pytest.mark.row(62)
async def test_no_access_check(adapter: Adapter, caplog: pytest.LogCaptureFixture) -> None:
    """Without an access check a task refuses everything and says why."""
    calls = Calls()
    async with serve(adapter, adapter.make_unguarded_app(calls)) as client:
        status, _ = await client.ask()

    assert (403, []) == (status, calls.seen)
    assert [logging.ERROR] == [record.levelno for record in of_the_adapter(adapter, caplog)]
    assert "call init_app" in caplog.text


# --- ordinary requests ---------------------------------------------------------------------------------------------

FORGED = [
    ("X-AppEngine-QueueName", "mail"),
    ("x-appengine-taskname", "a"),
    ("X_AppEngine_TaskName", "b"),
    ("X-APPENGINE-ANYTHING", "c"),
    ("x_taskqueue-task", "d"),
]
HONEST = [("x-request-id", "1"), ("accept-language", "de"), ("accept-language", "en"), ("x-app", "y")]


@pytest.mark.promise("P23")
@pytest.mark.row(138)
@pytest.mark.parametrize("signature", [[], [header for header in GENUINE if header[0].startswith("Signature")]])
async def test_reserved_headers_are_stripped(adapter: Adapter, signature: Headers) -> None:
    """An ordinary request loses every header that only we may set, and nothing else."""
    seen: list[Seen] = []

    async def work(request: Seen) -> None:
        seen.append(request)

    async with serve(adapter, adapter.make_app(work, kind="page")) as client:
        assert 200 == await client.deliver(headers=[*FORGED, *HONEST, *signature], body=b"body")

    names = {name.lower().replace("_", "-") for name, _ in seen[0].headers}
    assert set() == {name.lower().replace("_", "-") for name, _ in FORGED} & names
    assert sorted(HONEST) == sorted((name.lower(), value) for name, value in seen[0].headers if (name.lower(), value) in HONEST)
    assert b"body" == seen[0].body


async def test_ordinary_request_of_any_form(adapter: Adapter) -> None:
    """An ordinary request may be of any size and form."""
    seen: list[Seen] = []

    async def work(request: Seen) -> None:
        seen.append(request)

    async def chunks() -> AsyncIterator[bytes]:
        yield bytes(2_000_000)

    async with serve(adapter, adapter.make_app(work, kind="page")) as client:
        response = await client.session.post(f"{client.base_url}/worker", data=chunks())

        assert 200 == response.status
    assert [2_000_000] == [len(request.body) for request in seen]


@pytest.mark.parametrize("body", [BODY, b"other", bytes(2_000_000)])
async def test_genuine_delivery_to_an_ordinary_handler(adapter: Adapter, body: bytes) -> None:
    """A genuine delivery keeps its headers on its way to a handler that is not marked, which gets what came."""
    seen: list[Seen] = []

    async def work(request: Seen) -> None:
        seen.append(request)

    async with serve(adapter, adapter.make_app(work, kind="page")) as client:
        assert 200 == await client.deliver(body=body)

    assert [body] == [request.body for request in seen]
    assert "welcome-1" in [value for name, value in seen[0].headers if name.lower() == "x-appengine-taskname"]


# --- verify=False --------------------------------------------------------------------------------------------------


async def who(seen: Seen) -> int:
    """Answer 204 within a task and 202 outside of one."""
    with contextlib.suppress(NotInTaskError):
        current_task()
        return 204
    return 202


async def test_open_handler(adapter: Adapter, caplog: pytest.LogCaptureFixture) -> None:
    """With verify=False everybody may call the handler, but only a genuine delivery is a task; a warning says so."""
    async with serve(adapter, adapter.make_app(who, kind="open")) as client:
        assert 202 == await client.deliver(headers=without_signature(GENUINE))
        assert 204 == await client.deliver()
        assert 202 == await client.deliver()

    assert 1 == len(of_the_adapter(adapter, caplog))
    assert "has verify=False: everybody can call it." in caplog.text


async def test_open_handler_with_another_body(adapter: Adapter) -> None:
    """With verify=False a delivery whose body was changed is refused none the less."""
    async with serve(adapter, adapter.make_app(who, kind="open")) as client:
        assert 403 == await client.deliver(body=b"other")


async def test_open_handler_without_an_access_check(adapter: Adapter) -> None:
    """With verify=False a handler needs no access check, and knows no task."""
    async with serve(adapter, adapter.make_unguarded_app(who, verify=False)) as client:
        assert 202 == await client.deliver()


async def test_error_in_an_open_handler(adapter: Adapter, caplog: pytest.LogCaptureFixture) -> None:
    """Where the task is not known, an error is logged with the handler's name."""

    async def work(seen: Seen) -> None:
        raise ValueError

    async with serve(adapter, adapter.make_app(work, kind="open")) as client:
        assert 500 == await client.deliver(headers=[])
    assert "handler failed." in caplog.text


# --- installing ----------------------------------------------------------------------------------------------------


async def test_install_twice(adapter: Adapter) -> None:
    """An application has one access check."""
    from aiotaskqueue.web import aiohttp, starlette

    module = aiohttp if adapter.name == "aiohttp" else starlette
    app = adapter.make_app(who)
    with pytest.raises(ConfigError, match="has an access check already"):
        module.init_worker(app, secrets=[SECRET])
    with pytest.raises(ConfigError, match="fewer than 32"):
        module.init_worker(app, secrets=["c2hvcnQ"])
    async with serve(adapter, app):
        with pytest.raises(ConfigError, match="has started"):
            module.init_worker(app, secrets=[SECRET])
    assert "/_ah/queue/mail" == module.default_url_path("mail")
