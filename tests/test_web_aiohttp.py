"""Tasks as handlers of an aiohttp application, over real sockets: who may run them, and what they answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import ClientError, ClientSession, web
from aiohttp.test_utils import TestClient, TestServer
from signed_requests import BODY, NOW, SECRET, Headers, StoppedClock, make_record, replaced, signed_headers, without
from yarl import URL

from aiotaskqueue._record import TaskRecord
from aiotaskqueue.errors import ConfigError, NotInTaskError
from aiotaskqueue.signing import KeyRing, RefusalReason
from aiotaskqueue.tasks import FatalTaskError, TaskAnswer, current_task, repeat_task, terminate_task
from aiotaskqueue.web.aiohttp import _CHECK, default_url_path, init_worker, install, task
from aiotaskqueue.worker import AccessCheck, TaskInfo

pytestmark = pytest.mark.anyio

Client = TestClient[web.Request, web.Application]
Endpoint = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Calls:
    """A handler that remembers its calls."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.tasks: list[TaskInfo] = []

    async def __call__(self, request: web.Request) -> None:
        self.bodies.append(await request.read())
        self.tasks.append(current_task())


def make_app(handler: Endpoint | type[web.View], *, path: str = "/worker") -> web.Application:
    """Return an application with one handler and a worker's access check."""
    app = web.Application()
    app.router.add_route("*", path, handler)
    init_worker(app, secrets=[SECRET], clock=StoppedClock())
    return app


@contextlib.asynccontextmanager
async def serve(app: web.Application) -> AsyncIterator[Client]:
    """Serve the application on a socket while the block runs."""
    async with TestClient(TestServer(app)) as client:
        yield client


@contextlib.asynccontextmanager
async def run(app: web.Application, **arguments: bool) -> AsyncIterator[int]:
    """Run the application as its user does, on the port that is given, while the block runs."""
    runner = web.AppRunner(app, shutdown_timeout=0.1, **arguments)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def deliver(client: Client, record: TaskRecord | None = None, headers: Headers | None = None, body: bytes | None = None) -> int:
    """Deliver the record, with other headers or another body if given; return the status of an answer that must be empty."""
    record = record or make_record()
    headers = signed_headers(record) if headers is None else headers
    # Encoded: the path goes out as it is, as deliveries send it (RELIABILITY H10).
    url = URL(str(client.make_url("/")).rstrip("/") + record.url, encoded=True)
    body = record.payload if body is None else body
    # From a file: of more than a mebibyte of bytes the client warns.
    data = io.BytesIO(body) if body else None
    async with client.session.request(record.method, url, headers=headers, data=data) as response:
        assert b"" == await response.read()
        return response.status


async def status_of(handler: Endpoint | type[web.View], record: TaskRecord | None = None, headers: Headers | None = None) -> int:
    """Return the status with which the handler answers a delivery."""
    async with serve(make_app(handler)) as client:
        return await deliver(client, record, headers)


# --- genuine deliveries --------------------------------------------------------------------------------------------


async def test_delivery_runs_the_handler() -> None:
    """A genuine delivery runs the handler, which can read the body and knows its task."""
    calls = Calls()

    assert 200 == await status_of(task(calls), make_record(attempts=2, previous_status=500))
    assert [BODY] == calls.bodies
    assert [("welcome-1", 1, 500)] == [(info.name, info.retry_count, info.previous_response) for info in calls.tasks]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT", "POST"])
async def test_delivery_without_a_body(method: str) -> None:
    """A delivery of any method and without a body runs the handler."""
    calls = Calls()

    assert 200 == await status_of(task(calls), make_record(method=method, payload=None))
    assert [b""] == calls.bodies


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_method_of_a_view(method: str) -> None:
    """A method of a View can be a task, beside others that are none."""

    class Worker(web.View):
        @task
        async def post(self) -> None:
            assert current_task().name == "welcome-1"

        async def get(self) -> web.Response:
            return web.Response(status=202)

    app = make_app(Worker)
    async with serve(app) as client:
        assert {"GET": 202, "POST": 200}[method] == await deliver(client, make_record(method=method))
        assert {"GET": 202, "POST": 403}[method] == await deliver(client, make_record(method=method), headers=[])
        assert 405 == (await client.put("/worker")).status


async def test_method_of_an_object() -> None:
    """A method of any object can be a task."""

    class Worker:
        @task
        async def work(self, request: web.Request) -> web.Response:
            return web.Response(status=202)

    assert 202 == await status_of(Worker().work)


TARGETS = [
    "/worker",
    "/worker?a=1&b=2",
    "/worker?",
    "/worker?a=%2F%20+&b=",
    "/worker/%7Euser/%2F",
    "/worker/%e4%f6",
    "/worker/%C3%A4?q=%C3%A4",
    "/worker/a;b=c,d:e@f!$&'()*+",
    "/worker/.a/..b",
    "/worker?a=?&b=/&c=[]",
]


@pytest.mark.parametrize("url", TARGETS)
async def test_signed_target_is_what_the_server_sees(url: str) -> None:
    """Path and query arrive as they were signed, byte by byte (RELIABILITY H10)."""
    seen = []

    @task
    async def handler(request: web.Request) -> None:
        seen.append(request.raw_path)

    async with serve(make_app(handler, path="/{tail:.*}")) as client:
        assert 200 == await deliver(client, make_record(url=url))

    # A lone question mark does not arrive; the signature does not know it either.
    assert [url.removesuffix("?")] == seen


async def test_task_in_a_sub_application() -> None:
    """A task in a sub-application is served by the check of the main one, and by its own besides."""
    calls = Calls()
    app = web.Application()
    app.add_subapp("/sub", make_app(task(calls)))
    init_worker(app, secrets=[SECRET], clock=StoppedClock())
    async with serve(app) as client:
        assert 200 == await deliver(client, make_record(url="/sub/worker"))
        assert 403 == await deliver(client, make_record(url="/sub/worker", lease_token=8), headers=[])

    assert len(calls.bodies) == 1


async def test_machine_clock() -> None:
    """Without a clock of its own a worker has the machine's, by which an old delivery has expired."""
    app = web.Application()
    app.router.add_post("/worker", task(Calls()))
    init_worker(app, secrets=[SECRET])
    async with serve(app) as client:
        assert 403 == await deliver(client)


# --- how a handler ends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 204, 400, 503])
async def test_response_is_passed_on(status: int) -> None:
    """A response that the handler returns is the answer."""

    @task
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status)

    assert status == await status_of(handler)


@pytest.mark.parametrize(("answer", "status"), [(terminate_task, 200), (repeat_task, 500)])
async def test_answer_without_a_response(answer: Callable[[], TaskAnswer], status: int, caplog: pytest.LogCaptureFixture) -> None:
    """What terminate_task() and repeat_task() give becomes a response; nothing is logged (SPEC 9.1)."""

    @task
    async def handler(request: web.Request) -> TaskAnswer:
        return answer()

    assert status == await status_of(handler)
    assert [] == [record.message for record in caplog.records if record.name.startswith("aiotaskqueue")]


async def test_raised_response_is_passed_on() -> None:
    """An HTTPException is a response."""

    @task
    async def handler(request: web.Request) -> None:
        raise web.HTTPConflict(text="")

    assert 409 == await status_of(handler)


async def test_fatal_error(caplog: pytest.LogCaptureFixture) -> None:
    """FatalTaskError ends the task: it is logged with the task's name and answered with 200 (SPEC 9.1)."""

    @task
    async def handler(request: web.Request) -> None:
        raise FatalTaskError("No such user.")

    assert 200 == await status_of(handler)
    assert "Task welcome-1 ended for good." in caplog.text
    assert "No such user." in caplog.text


@pytest.mark.parametrize("error", [ValueError("Canary."), NotInTaskError("Canary."), ExceptionGroup("Canary.", [ValueError()])])
async def test_other_error(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """Any other exception is logged with the task's name and answered with an empty 500, so that the task is retried."""

    @task
    async def handler(request: web.Request) -> None:
        raise error

    assert 500 == await status_of(handler)
    assert "Task welcome-1 failed." in caplog.text
    assert "Canary." in caplog.text


@pytest.mark.parametrize("value", ["done", 200, object()])
async def test_other_result(value: object, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that returns something else than a response or None has failed."""

    async def handler(request: web.Request) -> object:
        return value

    assert 500 == await status_of(task(handler))  # type: ignore[arg-type]
    assert "return a response, or None for 200." in caplog.text


@pytest.mark.parametrize("error", [None, ValueError(), FatalTaskError()])
async def test_begun_answer_is_not_completed(error: Exception | None) -> None:
    """A handler that began to send a 200 and did not end it does not succeed: the connection is closed."""

    @task
    async def handler(request: web.Request) -> None:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"begun")
        if error is not None:
            raise error

    async with serve(make_app(handler)) as client:
        with pytest.raises(ClientError):
            await deliver(client)


async def test_current_task_ends_with_the_handler() -> None:
    """The next request on the same connection is not in the task."""
    app = make_app(task(Calls()))

    async def page(request: web.Request) -> web.Response:
        with pytest.raises(NotInTaskError):
            current_task()
        return web.Response(status=204)

    app.router.add_get("/page", page)
    async with serve(app) as client:
        assert 200 == await deliver(client)
        assert 204 == (await client.get("/page")).status


# --- refusals ------------------------------------------------------------------------------------------------------

GENUINE = signed_headers(make_record())


def without_signature(headers: Headers) -> Headers:
    """Return the headers as somebody sends them who has no key."""
    return [header for header in headers if not header[0].startswith("Signature")]


@pytest.mark.promise("P23")
@pytest.mark.parametrize(
    ("headers", "reason"),
    [
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
    ],
)
async def test_refusal(headers: Headers, reason: RefusalReason) -> None:
    """What is no genuine delivery gets an empty 403 and is counted, and the handler does not run."""
    calls = Calls()
    check = AccessCheck(KeyRing([SECRET]), StoppedClock())
    app = web.Application()
    app.router.add_post("/worker", task(calls))
    install(app, check)
    async with serve(app) as client:
        assert 403 == await deliver(client, headers=headers)

    assert {reason: 1} == check.rejections
    assert [] == calls.bodies


async def test_replay() -> None:
    """A copy of a delivery is refused, after the first and while it runs."""
    running, may_end = asyncio.Event(), asyncio.Event()

    @task
    async def handler(request: web.Request) -> None:
        running.set()
        await may_end.wait()

    async with serve(make_app(handler)) as client, asyncio.TaskGroup() as group:
        first = group.create_task(deliver(client))
        await running.wait()
        meanwhile = await deliver(client)
        may_end.set()
        statuses = (await first, meanwhile, await deliver(client))

    assert (200, 403, 403) == statuses


async def test_chunked_body() -> None:
    """A body whose length is not said before is refused."""

    async def chunks() -> AsyncIterator[bytes]:
        yield BODY

    async with serve(make_app(task(Calls()))) as client:
        response = await client.post("/worker", data=chunks(), headers=GENUINE)

        assert (403, b"") == (response.status, await response.read())


@pytest.mark.parametrize(("size", "status"), [(1_048_576, 200), (1_048_577, 403)])
async def test_large_body(size: int, status: int) -> None:
    """A body of a mebibyte is read, a larger one is not."""
    assert status == await status_of(task(Calls()), make_record(payload=bytes(size)))


async def test_body_larger_than_the_applications_limit() -> None:
    """A body that the application itself finds too large is refused like any other."""
    app = web.Application(client_max_size=100)
    app.router.add_post("/worker", task(Calls()))
    init_worker(app, secrets=[SECRET], clock=StoppedClock())
    async with serve(app) as client:
        assert 403 == await deliver(client, make_record(payload=bytes(101)))


@pytest.mark.parametrize("body", [gzip.compress(BODY), b"no gzip"])
async def test_compressed_body(caplog: pytest.LogCaptureFixture, body: bytes) -> None:
    """A compressed body, which the server unpacks before anybody can check it, is refused, and the log says what helps."""
    record = make_record(payload=body, headers=(("Content-Encoding", "gzip"),))

    assert 403 == await status_of(task(Calls()), record)
    assert ["The body of task welcome-1 was unpacked before it could be checked; run the server with auto_decompress=False."] == [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]


@pytest.mark.parametrize("body", [gzip.compress(BODY), b"no gzip"])
async def test_compressed_body_that_stays_so(body: bytes) -> None:
    """A server that does not unpack bodies gives the handler what was added, byte for byte."""
    calls = Calls()
    record = make_record(payload=body, headers=(("Content-Encoding", "gzip"),))
    async with run(make_app(task(calls)), auto_decompress=False) as port, ClientSession() as session:
        async with session.post(f"http://127.0.0.1:{port}/worker", data=body, headers=signed_headers(record)) as response:
            assert 200 == response.status

    assert [body] == calls.bodies


async def test_other_body_is_not_called_unpacked(caplog: pytest.LogCaptureFixture) -> None:
    """Whose body is another for another reason, or whose head is refused, is not told of compression."""
    async with serve(make_app(task(Calls()))) as client:
        assert 403 == await deliver(client, make_record(), body=b"other")
        assert 403 == await deliver(client, make_record(), [("Content-Encoding", "gzip")], body=gzip.compress(BODY))

    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]


async def send_head(client: Client, headers: Headers) -> bytes:
    """Send the head of a request, and nothing of its body; return the head of the answer."""
    reader, writer = await asyncio.open_connection(client.host, client.port)
    lines = ["POST /worker HTTP/1.1", "Host: localhost", "Content-Length: 10000000", *(f"{name}: {value}" for name, value in headers)]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return answer


async def test_body_that_does_not_come(caplog: pytest.LogCaptureFixture) -> None:
    """A delivery whose connection ends within the body is refused to nobody, and that is not an error of the application."""
    app = make_app(task(Calls()))
    # Unlike aiohttp's TestServer, a server usually lets its handlers run on.
    async with run(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        lines = ["POST /worker HTTP/1.1", "Host: localhost", "Content-Length: 9", *(f"{name}: {value}" for name, value in GENUINE)]
        writer.write("\r\n".join([*lines, "", "ke"]).encode())
        await asyncio.sleep(0.02)
        writer.transport.abort()
        await asyncio.sleep(0.02)

    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert {RefusalReason.UNREADABLE_BODY: 1} == app[_CHECK].rejections


@pytest.mark.parametrize("headers", [[], without_signature(GENUINE), replaced(GENUINE, "X-AppEngine-TaskName", "x"), GENUINE])
async def test_body_is_not_read(headers: Headers) -> None:
    """Who is refused for the head, or for the length, is refused before anything of the body has come (RELIABILITY T22)."""
    async with serve(make_app(task(Calls()))) as client:
        answer = await send_head(client, headers)

    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"Content-Length: 0\r\n" in answer


async def test_bytes_that_are_not_utf8() -> None:
    """Bytes that are not UTF-8, in any header, do not turn a 403 into a 500."""
    async with serve(make_app(task(Calls()))) as client:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(
            b"GET /worker HTTP/1.1\r\nHost: localhost\r\nX-AppEngine-A: \xff\r\nSignature: \xff\r\nSignature-Input: \xff\r\nB: \xff\r\n\r\n"
        )
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    assert answer.startswith(b"HTTP/1.1 403 ")


@pytest.mark.promise("P23")
@pytest.mark.parametrize(
    "path",
    ["/worker", "//worker", "/x/../worker", "/./worker", "/%77orker", "/worker/", "/WORKER", "/worker;a", "/worker%2F", "/worker?a=b"],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "OPTIONS", "PATCH"])
async def test_no_way_around(path: str, method: str) -> None:
    """No spelling of the path and no method runs a task without a signature (RELIABILITY T5)."""
    calls = Calls()
    async with serve(make_app(task(calls))) as client:
        url = URL(str(client.make_url("/")).rstrip("/") + path, encoded=True)
        async with client.session.request(method, url, headers={"X-HTTP-Method-Override": "POST"}) as response:
            assert response.status in (403, 404)

    assert [] == calls.bodies


async def test_refused_before_other_middlewares() -> None:
    """Middlewares of the application see a request to a task only after it was found genuine, whenever they were added."""
    seen = []

    @web.middleware
    async def watch(request: web.Request, handler: Endpoint) -> web.StreamResponse:
        seen.append(request.headers["X-AppEngine-TaskName"])
        return await handler(request)

    app = web.Application(middlewares=[watch])
    app.router.add_post("/worker", task(Calls()))
    init_worker(app, secrets=[SECRET], clock=StoppedClock())
    app.middlewares.append(watch)
    async with serve(app) as client:
        assert 403 == await deliver(client, headers=without_signature(GENUINE))
        assert [] == seen
        assert 200 == await deliver(client)

    assert ["welcome-1"] * 2 == seen


async def test_disguised_handler() -> None:
    """A task that the middleware cannot recognise refuses strangers itself, and runs genuine deliveries."""
    calls = Calls()
    app = make_app(functools.partial(task(calls)))
    async with serve(app) as client:
        assert 403 == await deliver(client, headers=[])
        assert 200 == await deliver(client)

    assert [BODY] == calls.bodies


@pytest.mark.row(62)
async def test_no_access_check(caplog: pytest.LogCaptureFixture) -> None:
    """Without an access check a task refuses everything and says why."""
    app = web.Application()
    app.router.add_post("/worker", task(Calls()))
    async with serve(app) as client:
        assert 403 == await deliver(client)

    assert [logging.ERROR] == [record.levelno for record in caplog.records if record.name.startswith("aiotaskqueue")]
    assert "call init_app or init_worker" in caplog.text


# --- ordinary requests ---------------------------------------------------------------------------------------------

FORGED = [
    ("X-AppEngine-QueueName", "mail"),
    ("x-appengine-taskname", "a"),
    ("X_AppEngine_TaskName", "b"),
    ("X-APPENGINE-ANYTHING", "c"),
    ("x_taskqueue-task", "d"),
]
HONEST = [("X-Request-ID", "1"), ("Accept-Language", "de"), ("Accept-Language", "en"), ("X-App", "é")]


@pytest.mark.promise("P23")
@pytest.mark.parametrize("signature", [[], [header for header in GENUINE if header[0].startswith("Signature")]])
async def test_reserved_headers_are_stripped(signature: Headers) -> None:
    """An ordinary request loses every header that only we may set, and nothing else (RELIABILITY 138)."""
    seen: Headers = []

    async def page(request: web.Request) -> web.Response:
        seen.extend(request.headers.items())
        seen.extend((name.decode(), value.decode()) for name, value in request.raw_headers)
        return web.Response(text=await request.text())

    async with serve(make_app(page)) as client:
        response = await client.post("/worker", headers=[*FORGED, *HONEST, *signature], data=b"body")

        assert await response.text() == "body"
    assert not {name.lower().replace("_", "-") for name, _ in FORGED} & {name.lower().replace("_", "-") for name, _ in seen}
    assert [header for header in HONEST for _ in range(2)] == sorted((h for h in seen if h in HONEST), key=HONEST.index)


async def test_ordinary_request_is_left_alone() -> None:
    """An ordinary request without reserved headers is not copied, and may be of any size and form."""
    requests: list[web.Request] = []

    @web.middleware
    async def watch(request: web.Request, handler: Endpoint) -> web.StreamResponse:
        requests.append(request)
        return await handler(request)

    async def page(request: web.Request) -> web.Response:
        assert request is requests[0]
        return web.Response(text=str(len(await request.content.read())))

    async def chunks() -> AsyncIterator[bytes]:
        yield bytes(2_000_000)

    app = make_app(page)
    app.middlewares.insert(0, watch)
    async with serve(app) as client:
        response = await client.post("/worker", data=chunks())

        assert await response.text() == "2000000"


async def test_genuine_delivery_to_an_ordinary_handler() -> None:
    """A genuine delivery keeps its headers, also on its way to a handler that is not marked."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(status=204 if request.headers["X-AppEngine-TaskName"] == "welcome-1" else 500)

    assert 204 == await status_of(page)


# --- verify=False --------------------------------------------------------------------------------------------------


async def who(request: web.Request) -> web.Response:
    """Answer 204 within a task and 202 outside of one."""
    with contextlib.suppress(NotInTaskError):
        current_task()
        return web.Response(status=204)
    assert "X-AppEngine-TaskName" not in request.headers or request.app.middlewares == []
    return web.Response(status=202)


async def test_open_handler() -> None:
    """With verify=False everybody may call the handler, but only a genuine delivery is a task."""
    async with serve(make_app(task(verify=False)(who))) as client:
        assert 202 == await deliver(client, headers=without_signature(GENUINE))
        assert 204 == await deliver(client)
        assert 202 == await deliver(client)


async def test_open_handler_with_another_body() -> None:
    """With verify=False a delivery whose body was changed is refused none the less."""
    async with serve(make_app(task(verify=False)(who))) as client:
        assert 403 == await deliver(client, body=b"other")


async def test_open_handler_without_an_access_check() -> None:
    """With verify=False a handler needs no access check, and knows no task."""
    app = web.Application()
    app.router.add_post("/worker", task(verify=False)(who))
    async with serve(app) as client:
        assert 202 == await deliver(client)


async def test_error_in_an_open_handler(caplog: pytest.LogCaptureFixture) -> None:
    """Where the task is not known, an error is logged with the handler's name."""

    @task(verify=False)
    async def handler(request: web.Request) -> None:
        raise ValueError

    assert 500 == await status_of(handler, headers=[])
    assert "handler failed." in caplog.text


def test_open_handler_warns(caplog: pytest.LogCaptureFixture) -> None:
    """With verify=False a warning names the handler, once."""
    task(verify=False)(who)

    assert ["Task handler who has verify=False: everybody can call it."] == [record.message for record in caplog.records]


# --- marking and installing ----------------------------------------------------------------------------------------


def test_task_keeps_name_and_docstring() -> None:
    """A task looks like the function that it was made from."""
    marked = task(who)

    assert (who.__name__, who.__doc__, who) == (marked.__name__, marked.__doc__, marked.__wrapped__)  # type: ignore[attr-defined]


@pytest.mark.row(62)
@pytest.mark.parametrize("marked", [task(who), task(verify=True)(who), functools.wraps(task(who))(lambda request: task(who)(request))])
def test_task_twice(marked: Endpoint) -> None:
    """What is a task is not made one again, also when another decorator came between."""
    assert marked is task(marked)


@pytest.mark.row(62)
def test_task_twice_differently() -> None:
    """A task cannot be both verified and open."""
    with pytest.raises(TypeError, match="Handler who is a task with verify=True already"):
        task(verify=False)(task(who))


@pytest.mark.row(62)
@pytest.mark.parametrize("value", [None, "handler", 5, web.View, Calls])
def test_task_of_something_else(value: object) -> None:
    """Only functions can be tasks."""
    with pytest.raises(TypeError, match="decorates a coroutine function or a method"):
        task()(value)  # type: ignore[arg-type]


async def test_task_called_by_hand() -> None:
    """Calling a task like a function is an error that says how to add one."""
    with pytest.raises(TypeError, match=r"tasks are added with add\(\)"):
        await task(who)("no request")  # type: ignore[arg-type]


def test_install_twice() -> None:
    """An application has one access check."""
    app = make_app(who)

    with pytest.raises(ConfigError, match="has an access check already"):
        init_worker(app, secrets=[SECRET])


def test_install_after_start() -> None:
    """An application that has started cannot get an access check."""
    app = web.Application()
    app.freeze()

    with pytest.raises(ConfigError, match="has started"):
        init_worker(app, secrets=[SECRET])


def test_unfit_secret() -> None:
    """A worker does not start with an unfit secret."""
    with pytest.raises(ConfigError, match="fewer than 32"):
        init_worker(web.Application(), secrets=["c2hvcnQ"])


def test_default_url_path() -> None:
    """The default URL of a queue is App Engine's (SPEC 1.4)."""
    assert default_url_path("mail") == "/_ah/queue/mail"
