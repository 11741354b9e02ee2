"""What only Starlette and FastAPI have: dependencies, models, sync handlers, endpoints that are classes, middlewares."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import logging
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import fastapi
import httpx
import pydantic
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from hostile import FastClock
from signed_requests import SECRET, Headers, StoppedClock, make_record, signed_headers
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aiotaskqueue._clock import SystemClock
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.delivery._base import Answer, NoAnswer
from aiotaskqueue.delivery.asgi import ASGIDelivery
from aiotaskqueue.errors import NotInTaskError
from aiotaskqueue.signing import KeyRing
from aiotaskqueue.tasks import FatalTaskError, current_task
from aiotaskqueue.web import starlette as module
from aiotaskqueue.web.starlette import init_worker, install, task
from aiotaskqueue.worker import AccessCheck

pytestmark = pytest.mark.anyio

JSON = (("Content-Type", "application/json"),)


def guarded(app: Any) -> Any:
    """Return the application with a worker's access check."""
    init_worker(app, secrets=[SECRET], clock=StoppedClock())
    return app


def routing(handler: Any, *, path: str = "/worker", methods: tuple[str, ...] = ("POST",)) -> Starlette:
    """Return a Starlette application with this handler and an access check."""
    is_class = isinstance(handler, type)
    app: Starlette = guarded(Starlette(routes=[Route(path, handler, methods=None if is_class else list(methods))]))
    return app


def on_fastapi(handler: Any, *, path: str = "/worker", method: str = "POST", **options: Any) -> FastAPI:
    """Return a FastAPI application with this handler and an access check."""
    app = FastAPI(**options)
    app.api_route(path, methods=[method])(handler)
    guarded(app)
    return app


async def ask(app: ASGIApp, record: TaskRecord | None = None, headers: Headers | None = None, body: bytes | None = None) -> httpx.Response:
    """Deliver the record, without a socket; with other headers or another body if given."""
    record = record or make_record()
    headers = signed_headers(record) if headers is None else headers
    content = (record.payload or b"") if body is None else body
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.request(record.method, record.url, headers=headers, content=content)


async def deliver(app: ASGIApp, record: TaskRecord | None = None) -> Answer | NoAnswer:
    """Deliver the record as a service in this process does."""
    delivery = ASGIDelivery(app)
    await delivery.open(SystemClock())
    try:
        return await delivery.deliver(record or make_record(), deadline_seconds=5.0)
    finally:
        await delivery.aclose()


# --- sync handlers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [routing, on_fastapi])
async def test_sync_handler(make: Callable[[Any], ASGIApp]) -> None:
    """A handler that is no coroutine function runs in a thread, and knows its task."""
    seen: list[tuple[str, bool]] = []

    @task
    def handler(request: Request) -> None:
        seen.append((current_task().name, threading.current_thread() is threading.main_thread()))

    assert 200 == (await ask(make(handler))).status_code
    assert [("welcome-1", False)] == seen


@pytest.mark.parametrize(("error", "status"), [(FatalTaskError(), 200), (ValueError(), 500), (fastapi.HTTPException(409), 409)])
async def test_error_of_a_sync_handler(error: Exception, status: int) -> None:
    """How a sync handler ends becomes an answer as of any other."""

    @task
    def handler(request: Request) -> Response:
        raise error

    assert status == (await ask(routing(handler))).status_code


@pytest.mark.promise("P7")
async def test_deadline_of_a_sync_handler(caplog: pytest.LogCaptureFixture) -> None:
    """A thread cannot be interrupted: at the deadline its attempt fails, and it runs on, outside of the task."""
    clock, may_end, ended = FastClock(), threading.Event(), threading.Event()
    seen: list[float] = []

    @task
    def handler(request: Request) -> None:
        may_end.wait(5)
        with pytest.raises(NotInTaskError):
            seen.append(current_task().remaining_seconds())
        ended.set()

    app = Starlette(routes=[Route("/worker", handler, methods=["POST"])])
    install(app, AccessCheck(KeyRing([SECRET]), clock))
    headers = signed_headers(make_record(), created=int(clock.time()), deadline_seconds=1.0)

    assert 500 == (await ask(app, headers=headers)).status_code
    may_end.set()
    assert ended.wait(5)
    assert ([], True) == (seen, "Task welcome-1 exceeded its deadline." in caplog.text)


async def test_plain_function_around_a_coroutine_function() -> None:
    """What other decorators make of a handler is awaited to its end."""

    async def handler(request: Request) -> Response:
        return Response(status_code=202)

    assert 202 == (await ask(routing(task(lambda request: handler(request))))).status_code
    assert 202 == (await ask(routing(task(functools.partial(handler))))).status_code


# --- kinds of endpoints --------------------------------------------------------------------------------------------


async def test_method_of_an_endpoint() -> None:
    """A method of an HTTPEndpoint can be a task, beside others that are none."""

    class Worker(HTTPEndpoint):
        @task
        async def get(self, request: Request) -> None:
            assert "welcome-1" == current_task().name

        async def put(self, request: Request) -> Response:
            return Response(status_code=202)

    app = routing(Worker)
    for method, genuine, stranger in [("GET", 200, 403), ("HEAD", 200, 403), ("PUT", 202, 202), ("POST", 405, 405)]:
        record = make_record(method=method, payload=None)
        assert (genuine, stranger) == ((await ask(app, record)).status_code, (await ask(app, record, [])).status_code)
        app = routing(Worker)


@pytest.mark.parametrize("make", [routing, on_fastapi])
async def test_method_of_an_object(make: Callable[[Any], ASGIApp]) -> None:
    """A method of any object can be a task."""

    class Worker:
        @task
        async def work(self, request: Request) -> Response:
            return Response(status_code=202)

    assert 202 == (await ask(make(Worker().work))).status_code


async def test_callable_object() -> None:
    """An object that can be called can be a task, too."""

    class Worker:
        async def __call__(self, request: Request) -> Response:
            return Response(status_code=202)

    assert 202 == (await ask(routing(task(Worker())))).status_code


async def test_disguised_handler() -> None:
    """A task in a partial function is closed to strangers, and runs genuine deliveries."""

    @task
    async def handler(request: Request) -> None:
        assert b"key=value" == await request.body()

    app = routing(functools.partial(handler))

    assert [403, 200] == [(await ask(app, headers=headers)).status_code for headers in ([], None)]


@pytest.mark.parametrize("value", ["done", 200, object()])
async def test_other_result_in_starlette(value: object, caplog: pytest.LogCaptureFixture) -> None:
    """In Starlette a handler that returns something else than a response or None has failed."""

    @task
    async def handler(request: Request) -> object:
        return value

    assert 500 == (await ask(routing(handler))).status_code
    assert "return a response, or None for 200." in caplog.text


# --- FastAPI -------------------------------------------------------------------------------------------------------


class Order(pydantic.BaseModel):
    """A body model."""

    number: int
    price: float = 1.0


async def find_user(user: int) -> str:
    """Depend on a path parameter."""
    return f"user {user}"


class Shop:
    """A FastAPI application with one task that uses everything."""

    def __init__(self) -> None:
        self.events: list[object] = []

        async def open_session() -> AsyncIterator[str]:
            self.events.append("opened")
            yield "session"
            self.events.append("closed")

        def fail(x_token: Annotated[str, fastapi.Header()]) -> None:
            raise fastapi.HTTPException(401)

        @task
        async def work(
            user: int,
            order: Order,
            found: Annotated[str, Depends(find_user)],
            background: BackgroundTasks,
            session: str = Depends(open_session),
            limit: int = 10,
        ) -> dict[str, object]:
            background.add_task(self.events.append, "background")
            self.events.append((user, order.number, found, session, limit, current_task().name))
            return {"number": order.number}

        @task
        async def read(user: int, token: None = Depends(fail)) -> None:
            self.events.append("read")

        router = fastapi.APIRouter(prefix="/users")
        router.post("/{user}/orders")(work)
        router.get("/{user}")(read)
        self.app = FastAPI()
        self.app.include_router(router, prefix="/shop")
        guarded(self.app)


def order(payload: bytes = b'{"number": 7}', url: str = "/shop/users/5/orders?limit=3", **changes: Any) -> TaskRecord:
    """Return a task with a JSON body."""
    return make_record(url=url, payload=payload, headers=JSON, **changes)


@pytest.mark.parametrize("is_inside", [False, True])
async def test_fastapi(is_inside: bool) -> None:
    """Dependencies, path and query parameters, body models and background tasks of a task work as of any handler."""
    shop = Shop()
    if is_inside:
        assert Answer(200) == await deliver(shop.app, order())
    else:
        answer = await ask(shop.app, order())
        assert (200, {"number": 7}) == (answer.status_code, answer.json())

    assert ["opened", (5, 7, "user 5", "session", 3, "welcome-1")] == shop.events[:2]
    assert {"closed", "background"} == set(shop.events[2:])


STRANGERS = [
    ("POST", "/shop/users/5/orders", b'{"number": 7}'),
    ("POST", "/shop/users/5/orders", b"{"),
    ("POST", "/shop/users/5/orders", b""),
    ("POST", "/shop/users/5/orders", b'{"number": "x"}'),
    ("POST", "/shop/users/x/orders", b'{"number": 7}'),
    ("POST", "/shop/users/5/orders?limit=x", b'{"number": 7}'),
    ("GET", "/shop/users/5", b""),
    ("GET", "/shop/users/x", b""),
]


@pytest.mark.promise("P23")
@pytest.mark.row(135)
@pytest.mark.parametrize(("method", "url", "body"), STRANGERS)
async def test_fastapi_refuses_first(method: str, url: str, body: bytes) -> None:
    """Strangers get an empty 403 before their body is parsed, anything is validated and any dependency runs."""
    shop = Shop()
    answer = await ask(shop.app, make_record(method=method, url=url, payload=body), list(JSON))

    assert (403, b"", []) == (answer.status_code, answer.content, shop.events)


@pytest.mark.parametrize(
    ("record", "status"),
    [
        (order(b"{"), 422),
        (order(b'{"number": "x"}'), 422),
        (order(url="/shop/users/x/orders"), 422),
        (make_record(method="GET", url="/shop/users/5", payload=None), 422),
        (make_record(method="GET", url="/shop/users/5", payload=None, headers=(("X-Token", "a"),)), 401),
    ],
)
async def test_fastapi_validates_genuine_deliveries(record: TaskRecord, status: int) -> None:
    """Of genuine deliveries FastAPI says what is wrong, as of any request."""
    assert status == (await ask(Shop().app, record)).status_code


def test_openapi() -> None:
    """The API's description shows the handler's own parameters and models, and nothing of ours."""
    schema = Shop().app.openapi()
    operation = schema["paths"]["/shop/users/{user}/orders"]["post"]

    assert {"user", "limit"} == {parameter["name"] for parameter in operation["parameters"]}
    assert {"$ref": "#/components/schemas/Order"} == operation["requestBody"]["content"]["application/json"]["schema"]
    assert "aiotaskqueue" not in json.dumps(schema)


VALUES = [({"a": 1}, b'{"a":1}'), ("done", b'"done"'), (Order(number=1), b'{"number":1,"price":1.0}')]


@pytest.mark.parametrize(("value", "content"), VALUES)
async def test_value_of_a_fastapi_handler(value: object, content: bytes) -> None:
    """What a FastAPI handler returns is made a response by FastAPI, and is success."""

    @task
    async def handler() -> object:
        return value

    answer = await ask(on_fastapi(handler))

    assert (200, content) == (answer.status_code, answer.content)


@pytest.mark.parametrize("status", [202, 204])
async def test_nothing_of_a_fastapi_handler(status: int) -> None:
    """None is 200, whatever status the route has."""
    app = FastAPI()

    @app.post("/worker", status_code=status)
    @task
    async def handler() -> None:
        pass

    assert 200 == (await ask(guarded(app))).status_code


async def test_dependencies_of_the_application_run_earlier() -> None:
    """The application's own dependencies run before the check where there is no body, and never see one; the guide says so."""
    events: list[str] = []

    async def early(request: Request) -> None:
        events.append(request.method)

    @task
    async def read() -> None:
        events.append("read")

    @task
    async def work(order: Order) -> None:
        events.append("work")

    app = FastAPI(dependencies=[Depends(early)])
    app.get("/worker")(read)
    app.post("/worker")(work)
    guarded(app)

    assert 403 == (await ask(app, make_record(method="GET", payload=None), [])).status_code
    assert 403 == (await ask(app, make_record(), [])).status_code
    assert ["GET"] == events


async def test_fastapi_without_an_access_check(caplog: pytest.LogCaptureFixture) -> None:
    """Without an access check a FastAPI task refuses everything and says why."""
    app = FastAPI()
    app.post("/worker")(task(_nothing))

    assert 403 == (await ask(app)).status_code
    assert "call init_app, init_worker or lifespan" in caplog.text


@pytest.mark.parametrize("verify", [True, False])
async def test_inside_without_an_access_check(verify: bool) -> None:
    """A delivery of this process needs no access check: nobody else can make one."""
    names: list[str] = []

    @task(verify=verify)
    async def handler(request: Request) -> None:
        names.append(current_task().name)

    assert Answer(200) == await deliver(Starlette(routes=[Route("/worker", handler, methods=["POST"])]))
    assert ["welcome-1"] == names


async def _nothing() -> None:
    """Do nothing."""


# --- the application's own middlewares -----------------------------------------------------------------------------


async def read_early(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Read the body before anybody knows where the request goes."""
    await request.body()
    return await call_next(request)


@pytest.mark.parametrize("body", [None, b"other", b"x" * 2_000_000])
@pytest.mark.parametrize("make", [routing, on_fastapi])
async def test_middleware_that_reads_the_body(make: Callable[[Any], Any], body: bytes | None) -> None:
    """Where a middleware reads bodies, genuine deliveries run, and altered or forged ones are refused none the less."""
    bodies: list[bytes] = []

    @task
    async def handler(request: Request) -> None:
        bodies.append(await request.body())

    def reading() -> ASGIApp:
        app = make(handler)
        # Inside of the access check.
        app.user_middleware.append(fastapi.applications.Middleware(BaseHTTPMiddleware, dispatch=read_early))
        return app  # type: ignore[no-any-return]

    answer = await ask(reading(), body=body)
    forged = await ask(reading(), headers=[], body=body)

    assert (200 if body is None else 403, 403) == (answer.status_code, forged.status_code)
    assert [b"key=value"] * (body is None) == bodies


class CopyingMiddleware:
    """Passes on a copy of the scope, so that nobody outside sees where the request goes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(dict(scope), receive, send)


@pytest.mark.parametrize("make", [routing, on_fastapi])
async def test_middleware_that_copies_the_scope(make: Callable[[Any], Any]) -> None:
    """A task that the middleware cannot recognise refuses strangers itself, and runs genuine deliveries."""
    app = make(task(_take))
    app.user_middleware.append(fastapi.applications.Middleware(CopyingMiddleware))

    assert [403, 200] == [(await ask(app, headers=headers)).status_code for headers in ([], None)]


@task
async def _take(request: Request) -> None:
    """Read the body."""
    assert b"key=value" == await request.body()


class HastyMiddleware:
    """Begins an answer before the application does."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.app(scope, receive, send)


async def test_middleware_that_has_answered() -> None:
    """Where an answer was begun, a stranger gets no second one, and the handler does not run."""
    sent: list[Message] = []
    app = routing(_take)
    app.user_middleware.append(fastapi.applications.Middleware(HastyMiddleware))

    async def send(message: Message) -> None:
        sent.append(message)

    await app(http_scope(), _no_body, send)

    assert ["http.response.start"] == [message["type"] for message in sent]


def http_scope(**changes: Any) -> Scope:
    """Return the scope of a stranger's request."""
    scope = {"type": "http", "method": "POST", "path": "/worker", "raw_path": b"/worker", "query_string": b"", "headers": [], **changes}
    return {"asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": "", "server": ("localhost", 80), **scope}


async def _no_body() -> Message:
    raise AssertionError("The body of a stranger's request is not read.")


async def _forget(message: Message) -> None:
    """Take what is sent."""


class AngryMiddleware:
    """Calls the application twice, and fails all the same."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
        await self.app(scope, receive, send)
        raise ZeroDivisionError


async def test_middleware_that_fails_for_a_stranger() -> None:
    """A stranger gets one 403, whatever the application's middlewares then do; it is no error of the server's."""
    app = routing(_take)
    app.user_middleware.append(fastapi.applications.Middleware(AngryMiddleware))
    answer = await ask(app, headers=[])

    assert (403, b"") == (answer.status_code, answer.content)


@pytest.mark.parametrize("is_class", [True, False])
async def test_middleware_of_a_route(is_class: bool) -> None:
    """A middleware of the route, which reads the body, gets none of a stranger's; whatever kind of endpoint the route has."""

    class Worker(HTTPEndpoint):
        post = _take_in_a_class

    handler: Any = Worker if is_class else functools.partial(_take)
    seen: list[int] = []

    async def read(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        seen.append(len(await request.body()))
        return await call_next(request)

    middleware = [fastapi.applications.Middleware(BaseHTTPMiddleware, dispatch=read)]
    app = guarded(Starlette(routes=[Route("/worker", handler, methods=None if is_class else ["POST"], middleware=middleware)]))

    assert [403, 200] == [(await ask(app, headers=headers)).status_code for headers in ([], None)]
    assert [9] == seen


@task
async def _take_in_a_class(self: HTTPEndpoint, request: Request) -> None:
    """Read the body."""
    assert b"key=value" == await request.body()


@pytest.mark.parametrize(("method", "status"), [("HEAD", 403), ("GET", 403), ("PUT", 405)])
async def test_middleware_of_a_class(method: str, status: int) -> None:
    """A HEAD goes to the method for GET, and is refused as that is; a method that is not there is none of a task's."""

    class Worker(HTTPEndpoint):
        get = _take_in_a_class

    middleware = [fastapi.applications.Middleware(BaseHTTPMiddleware, dispatch=read_early)]
    app = guarded(Starlette(routes=[Route("/worker", Worker, middleware=middleware)]))

    assert status == (await ask(app, make_record(method=method), [])).status_code


async def test_error_of_the_application() -> None:
    """What an ordinary handler raises passes through to the server."""

    async def page(request: Request) -> Response:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await routing(page)(http_scope(), _no_body, _forget)


async def test_server_without_raw_paths() -> None:
    """Where the server does not say what path it got, nothing can be verified, and nothing runs."""
    scope = http_scope(headers=[(name.lower().encode(), value.encode()) for name, value in signed_headers(make_record())])
    del scope["raw_path"]
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await routing(_take)(scope, _no_body, send)

    assert 403 == sent[0]["status"]


async def test_body_whose_length_is_not_said() -> None:
    """A body that goes on and on, though its length was not said (HTTP/2), is not read for ever; the application does not get it."""
    headers = [(name.lower().encode(), value.encode()) for name, value in signed_headers(make_record())]
    parts: list[int] = []
    sent: list[Message] = []

    async def receive() -> Message:
        parts.append(1)
        return {"type": "http.request", "body": bytes(100_000), "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    await routing(_take)(http_scope(headers=headers), receive, send)

    assert (403, 11) == (sent[0]["status"], len(parts))


async def test_body_in_pieces() -> None:
    """Whoever asks whether the client is still there, before the body has come, loses nothing of it."""
    came: list[Message] = [{"type": "http.request", "body": b"key=", "more_body": True}, {"type": "http.request", "body": b"value"}]
    headers = [(name.lower().encode(), value.encode()) for name, value in signed_headers(make_record())]
    sent: list[Message] = []
    asked: list[bool] = []

    async def receive() -> Message:
        if len(asked) == 0 and len(came) == 1:
            await anyio.lowlevel.checkpoint()
        return came.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    async def ask_early(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        asked.append(await request.is_disconnected())
        return await call_next(request)

    app = routing(_take)
    app.user_middleware.append(fastapi.applications.Middleware(BaseHTTPMiddleware, dispatch=ask_early))
    await app(http_scope(headers=headers), receive, send)

    assert ([False], 200) == (asked, sent[0]["status"])


async def test_websocket() -> None:
    """A WebSocket's request loses the reserved headers, too."""
    seen: list[Scope] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    app = guarded(Starlette(routes=[Mount("/", inner)]))
    await app(http_scope(type="websocket", path="/a", headers=[(b"x-appengine-taskname", b"a"), (b"x-mine", b"b")]), _no_body, _forget)

    assert [[(b"x-mine", b"b")]] == [scope["headers"] for scope in seen]


async def test_mounted_application_with_a_check_of_its_own() -> None:
    """Where both an application and one that is mounted in it have a check, the outer one decides."""
    inner = routing(_take)
    app = guarded(Starlette(routes=[Mount("/sub", inner)]))

    assert [403, 200] == [(await ask(app, make_record(url="/sub/worker"), headers)).status_code for headers in ([], None)]


# --- marking and installing ----------------------------------------------------------------------------------------


async def who(request: Request) -> Response:
    """Be a handler."""
    return JSONResponse({})


def test_task_keeps_name_and_docstring() -> None:
    """A task looks like the function that it was made from."""
    marked: Any = task(who)

    assert (who.__name__, who.__doc__, who) == (marked.__name__, marked.__doc__, marked.__wrapped__)


@pytest.mark.row(62)
@pytest.mark.parametrize("marked", [task(who), task(verify=True)(who), functools.wraps(task(who))(lambda request: task(who)(request))])
def test_task_twice(marked: Any) -> None:
    """What is a task is not made one again, also when another decorator came between."""
    assert marked is task(marked)


def test_task_twice_differently() -> None:
    """A task cannot be both verified and open."""
    with pytest.raises(TypeError, match="Handler who is a task with verify=True already"):
        task(verify=False)(task(who))


async def _stream(request: Request) -> AsyncIterator[bytes]:
    yield b""


@pytest.mark.row(62)
@pytest.mark.parametrize("value", [None, "handler", 5, HTTPEndpoint, _stream])
def test_task_of_something_else(value: Any) -> None:
    """Only functions can be tasks, and no generators."""
    with pytest.raises(TypeError, match="decorates a function or a method"):
        task()(value)


async def test_task_called_by_hand() -> None:
    """Calling a task like a function is an error that says how to add one."""
    with pytest.raises(TypeError, match=r"tasks are added with add\(\)"):
        await task(_nothing)()


def test_signature_that_fastapi_cannot_use() -> None:
    """A handler that is none of FastAPI's keeps the signature that it has."""

    async def handler(request: Request | None = None, /) -> None:
        pass

    assert not hasattr(task(handler), "__signature__")


async def test_annotation_that_is_not_defined_yet() -> None:
    """A handler may be annotated by what is not there when it is decorated."""

    async def handler(request: Request) -> Later:  # noqa: F821
        return Response(status_code=202)

    assert 202 == (await ask(routing(task(handler)))).status_code


async def test_without_fastapi(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI need not be installed."""
    monkeypatch.setitem(sys.modules, "fastapi", None)
    handler = task(who)

    assert not hasattr(handler, "__signature__")
    assert 200 == (await ask(routing(handler))).status_code


def test_missing_starlette_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Starlette the module says what to install."""
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    spec = importlib.util.spec_from_file_location("again", str(module.__file__))
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"pip install 'aiotaskqueue-embedded\[starlette\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


async def test_machine_clock() -> None:
    """Without a clock of its own a worker has the machine's, by which an old delivery has expired."""
    app = Starlette(routes=[Route("/worker", task(who), methods=["POST"])])
    init_worker(app, secrets=[SECRET])

    assert 403 == (await ask(app)).status_code


async def test_log_of_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    """A refusal is in the log once, at INFO, with its reason and nothing of the request."""
    caplog.set_level(logging.INFO, "aiotaskqueue")
    with contextlib.suppress(ZeroDivisionError):
        await ask(on_fastapi(task(who)), headers=[("X-AppEngine-TaskName", "canary")])

    said = [record.getMessage() for record in caplog.records if record.name.startswith("aiotaskqueue")]

    assert ["Refused a request to a task's handler: unsigned."] == said
