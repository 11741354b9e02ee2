"""init_app and lifespan of Starlette and FastAPI: under uvicorn, an application that delivers its own tasks to itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sqlite3
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from children import start_script
from fastapi import FastAPI
from signed_requests import SECRET, StoppedClock, make_record, signed_headers
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send
from web_adapters import serve_asgi

from aiotaskqueue import Queue, Task, TaskQueueService, TaskRetryOptions, add
from aiotaskqueue.errors import ConfigError, NotStartedError
from aiotaskqueue.tasks import DeadlineExceededError, current_task
from aiotaskqueue.testing import RecordingDelivery, VirtualClock
from aiotaskqueue.web.starlette import default_url_path, init_app, init_worker, lifespan, task

pytestmark = pytest.mark.anyio

Lifespan = Callable[[Any], contextlib.AbstractAsyncContextManager[Any]]
Make = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the tasks are."""
    return tmp_path / "tasks.db"


def by_init_app(service: TaskQueueService, own: Lifespan | None = None, kind: Any = Starlette, **options: Any) -> Any:
    """Make an application that embeds the service by init_app."""
    app = kind(lifespan=own)
    init_app(app, service, **options)
    return app


def by_lifespan(service: TaskQueueService, own: Lifespan | None = None, kind: Any = Starlette, **options: Any) -> Any:
    """Make an application that embeds the service by its lifespan."""
    return kind(lifespan=lifespan(service, own, **options))


@pytest.fixture(params=[by_init_app, by_lifespan])
def make(request: pytest.FixtureRequest) -> Make:
    """Each of the two ways in turn."""
    chosen: Make = request.param
    return chosen


@contextlib.asynccontextmanager
async def serve(app: Any) -> AsyncIterator[ClientSession]:
    """Serve the application by uvicorn while the block runs."""
    async with serve_asgi(app) as base_url, ClientSession(base_url) as session:
        yield session


async def run(make: Make, *arguments: Any, **options: Any) -> None:
    """Make an application, start and stop it."""
    app = make(*arguments, **options)
    async with app.router.lifespan_context(app):
        pass


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so, 5 seconds at most."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def left(path: Path) -> int:
    """Return how many tasks are in the file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM taskqueue_task").fetchone()
        return int(count)


class Counter:
    """A page to add keys, a worker that counts them."""

    def __init__(self, service: TaskQueueService, make: Make = by_init_app, kind: Any = Starlette) -> None:
        self.service = service
        self.counts: dict[str, int] = {}
        self.app = make(service, kind=kind)
        self.app.add_route("/", self.add, methods=["POST"])
        self.app.add_route("/worker", self.work, methods=["POST", "GET"])

    async def add(self, request: Request) -> Response:
        await Queue().add(Task(url="/worker", payload=request.query_params["key"]))
        return Response(status_code=202)

    @task
    async def work(self, request: Request) -> None:
        key = (await request.body()).decode()
        self.counts[key] = self.counts.get(key, 0) + 1


# --- delivery ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
async def test_application_delivers_its_own_tasks(path: Path, make: Make, kind: Any) -> None:
    """An application under uvicorn delivers its own tasks, without any port; afterwards nothing is left."""
    counter = Counter(TaskQueueService(path), make, kind)
    async with serve(counter.app) as client:
        for key in ("a", "b", "a"):
            assert 202 == (await client.post("/", params={"key": key})).status
        await until(lambda: sum(counter.counts.values()) == 3)

        assert counter.service.health().is_ok
    assert {"a": 2, "b": 1} == counter.counts
    assert 0 == left(path)


async def test_default_url(path: Path, make: Make) -> None:
    """A task without a URL goes to the queue's default URL."""
    names = []

    @task
    async def worker(request: Request) -> None:
        names.append((request.url.path, current_task().name))

    service = TaskQueueService(path, eager=True)
    app = make(service)
    app.add_route(default_url_path("default"), worker, methods=["POST"])
    async with serve(app):
        await service.add("payload", name="a")

    assert [("/_ah/queue/default", "a")] == names


async def test_url_of_a_route(path: Path, make: Make) -> None:
    """What the application's own `url_path_for` gives is a URL of a task."""
    names = []

    async def worker(request: Request) -> None:
        names.append(request.path_params["user"])

    service = TaskQueueService(path, eager=True)
    app = make(service)
    app.add_route("/users/{user}", task(worker), methods=["POST"], name="user")
    async with serve(app):
        await service.add(url=app.url_path_for("user", user="é"))

    assert ["é"] == names


@pytest.mark.promise("P23")
@pytest.mark.parametrize("method", ["post", "get"])
async def test_strangers_are_refused(path: Path, make: Make, method: str) -> None:
    """P23: over the public port an unsigned request to a worker gets 403, whatever headers it brings; the task runs."""
    counter = Counter(TaskQueueService(path), make)
    headers = {"X-AppEngine-QueueName": "default", "X-AppEngine-TaskName": "a", "aiotaskqueue.attempt": "1"}
    async with serve(counter.app) as client:
        answers = [await client.request(method, "/worker", data=b"x", headers=sent) for sent in ({}, headers)]
        await client.post("/", params={"key": "a"})
        await until(lambda: counter.counts)

    assert [403, 403] == [answer.status for answer in answers]
    assert {"a": 1} == counter.counts


async def test_signed_deliveries_to_the_port(path: Path, make: Make) -> None:
    """The application's port takes what a service elsewhere signs with the same secrets."""
    counter = Counter(TaskQueueService(path, secrets=[SECRET]), make)
    async with (
        serve_asgi(counter.app) as base_url,
        TaskQueueService(":memory:", target=base_url, secrets=[SECRET], eager=True) as elsewhere,
    ):
        await elsewhere.add("a", url="/worker")

    assert {"a": 1} == counter.counts


async def test_failing_handler_is_retried(path: Path, make: Make) -> None:
    """A handler that raises is delivered to again."""
    counts: list[int] = []

    @task
    async def worker(request: Request) -> None:
        counts.append(current_task().retry_count)
        if len(counts) < 3:
            raise ZeroDivisionError

    service = TaskQueueService(path)
    app = make(service)
    app.add_route("/worker", worker, methods=["POST"])
    async with serve(app):
        await service.add(url="/worker", retry_options=TaskRetryOptions(min_backoff_seconds=0.01, max_backoff_seconds=0.01))
        await until(lambda: len(counts) == 3)

    assert [0, 1, 2] == counts


@pytest.mark.promise("P7")
@pytest.mark.parametrize("kind", [Starlette, FastAPI])
async def test_deadline(path: Path, make: Make, kind: Any) -> None:
    """At 30 s of the service's clock a handler gets the error and may still succeed; one that does not end is cancelled at 31 s."""
    clock = VirtualClock(auto_advance=True)
    events: list[tuple[str, float]] = []
    start = clock.monotonic()

    @task
    async def worker(request: Request) -> None:
        try:
            await clock.sleep(60)
        except DeadlineExceededError:
            events.append((current_task().name, clock.monotonic() - start))
            if current_task().name == "slow":
                await clock.sleep(60)

    service = TaskQueueService(path, clock=clock)
    app = make(service, kind=kind)
    app.add_route("/worker", worker, methods=["POST"])
    async with serve(app):
        await service.queue().add([Task(url="/worker", name=name, retry_options=ONCE) for name in ("quick", "slow")])
        await until(lambda: left(path) == 1 and service.health().is_ok and len(events) == 2)
        await service.run_until_idle()
        stored = await service.queue().get_task("slow")

    assert [("quick", 30.0), ("slow", 30.0)] == sorted(events)
    assert "dead" == stored.state.name.lower()


ONCE = TaskRetryOptions(task_retry_limit=0)


async def test_base_url(path: Path, make: Make) -> None:
    """The base URL gives Host, scheme and root path, so that the application makes its own URLs as outside."""
    seen: list[tuple[str, str]] = []

    @task
    async def worker(request: Request) -> None:
        seen.append((request.scope["path"], str(request.url_for("worker"))))

    service = TaskQueueService(path, eager=True)
    app = make(service, base_url="https://shop.example/app")
    app.add_route("/worker", worker, methods=["POST"], name="worker")
    async with serve(app):
        await service.add(url="/worker")

    assert [("/app/worker", "https://shop.example/app/worker")] == seen


async def test_state(path: Path, make: Make) -> None:
    """What the application's own lifespan yields is the state of requests and of deliveries alike, a copy for each."""
    seen: list[list[str]] = []

    @contextlib.asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[dict[str, object]]:
        yield {"pool": "pool", "numbers": [1]}

    async def look(request: Request) -> Response:
        seen.append(sorted(request.state._state))
        request.state.mine = request.state.pool
        return JSONResponse({})

    service = TaskQueueService(path, eager=True)
    app = make(service, own)
    app.add_route("/page", look, methods=["GET"])
    app.add_route("/worker", task(look), methods=["POST"])
    async with serve(app) as client:
        await service.add(url="/worker")
        await client.get("/page")
        await service.add(url="/worker")

    assert [["numbers", "pool"]] * 3 == seen


@pytest.mark.parametrize("is_named", [False, True])
async def test_the_app_itself_as_target(path: Path, is_named: bool) -> None:
    """An application that is given as target too, or as a named one, is delivered to with its own state."""
    seen: list[str] = []

    @contextlib.asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[dict[str, object]]:
        yield {"pool": "pool"}

    async def worker(request: Request) -> None:
        seen.append(request.state.pool)

    app = Starlette(lifespan=own)
    app.add_route("/worker", task(worker), methods=["POST"])
    service = TaskQueueService(path, targets={"me": app}, eager=True) if is_named else TaskQueueService(path, target=app, eager=True)
    init_app(app, service)
    async with serve(app):
        await service.add(url="/worker", target="me" if is_named else None)

    assert ["pool"] == seen


async def test_explicit_target_wins(path: Path, make: Make) -> None:
    """With a delivery of its own the service delivers there, and is started and closed with the application all the same."""
    elsewhere = RecordingDelivery()
    counter = Counter(TaskQueueService(path, delivery=elsewhere, eager=True), make)
    async with serve(counter.app) as client:
        await client.post("/", params={"key": "a"})

    assert (1, {}) == (len(elsewhere.deliveries), counter.counts)
    assert not counter.service.health().is_ok


async def test_behind_a_proxy_that_takes_a_prefix_away() -> None:
    """Where the server is told of a prefix that a proxy takes away, the signature is over the path with it."""
    app = Starlette()
    app.add_route("/worker", task(_nothing), methods=["POST"])
    init_worker(app, secrets=[SECRET], clock=StoppedClock())
    statuses = []
    async with serve_asgi(app, root_path="/app") as base_url, ClientSession(base_url) as client:
        for url in ("/app/worker", "/worker"):
            record = make_record(url=url)
            async with client.post("/worker", data=record.payload, headers=signed_headers(record)) as answer:
                statuses.append(answer.status)

    assert [200, 403] == statuses


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
def test_test_client(path: Path, make: Make, kind: Any) -> None:
    """Under the framework's own TestClient an application delivers its tasks; with an eager service before the answer."""
    with warnings.catch_warnings():
        # Of the HTTP library that Starlette would rather have.
        warnings.simplefilter("ignore")
        from starlette.testclient import TestClient
    counter = Counter(TaskQueueService(path, eager=True), make, kind)
    with TestClient(counter.app) as client:
        assert 202 == client.post("/", params={"key": "a"}).status_code
        assert {"a": 1} == counter.counts
        assert 403 == client.post("/worker").status_code

    assert 0 == left(path)


# --- order of start and end ----------------------------------------------------------------------------------------


async def test_order(path: Path, make: Make) -> None:
    """The application's own lifespan starts first; in the end attempts in flight end, the service closes, then comes its own end."""
    events: list[str] = []
    reached = asyncio.Event()

    @contextlib.asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[None]:
        events.append(f"own start, running: {service.health().is_ok}")
        yield
        events.append(f"own end, running: {service.health().is_ok}")

    @task
    async def worker(request: Request) -> None:
        reached.set()
        await asyncio.sleep(0.1)
        events.append("handler ended")

    service = TaskQueueService(path)
    app = make(service, own)
    app.add_route("/worker", worker, methods=["POST"])
    async with serve(app):
        await service.add(url="/worker")
        await reached.wait()

    assert ["own start, running: False", "handler ended", "own end, running: False"] == events
    assert 0 == left(path)


async def test_start_that_fails(path: Path, make: Make) -> None:
    """When the application's own lifespan fails, the service is not started; when the service fails, the own one ends."""
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def fail(app: Starlette) -> AsyncIterator[None]:
        raise ZeroDivisionError
        yield

    @contextlib.asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            events.append("ended")

    service = TaskQueueService(path)
    with pytest.raises(ZeroDivisionError):
        await run(make, service, fail)
    with pytest.raises(ConfigError, match="does not exist; create it first"):
        await run(make, TaskQueueService(path / "missing" / "tasks.db"), own)

    assert (("The service is not running.",), ["ended"]) == (service.health().reasons, events)


async def test_application_that_fails(path: Path) -> None:
    """When the application ends by an exception, the service is closed, and its middlewares are as before."""
    service = TaskQueueService(path)
    app = by_lifespan(service)
    stack = app.build_middleware_stack()
    app.middleware_stack = stack
    seen: list[object] = []

    async def fail() -> None:
        async with app.router.lifespan_context(app):
            seen.append(app.middleware_stack)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()

    assert stack not in seen
    assert app.middleware_stack is stack
    assert not service.health().is_ok


# --- middlewares, mounts, several services -------------------------------------------------------------------------


class Watch:
    """A middleware that remembers what it sees."""

    def __init__(self, app: ASGIApp, seen: list[tuple[str, bool]]) -> None:
        self.app = app
        self.seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.seen.append((scope["path"], b"x-appengine-queuename" in dict(scope["headers"])))
        await self.app(scope, receive, send)


async def test_middlewares_see_stripped_requests(path: Path) -> None:
    """With `lifespan` the application's middlewares see deliveries, and strangers' requests without reserved headers."""
    seen: list[tuple[str, bool]] = []
    service = TaskQueueService(path, eager=True)
    app = Starlette(lifespan=lifespan(service), middleware=[Middleware(Watch, seen=seen)])
    app.add_middleware(Watch, seen=seen)
    app.add_route("/worker", task(_nothing), methods=["POST"])
    async with serve(app) as client:
        assert 403 == (await client.post("/worker", headers={"X-AppEngine-QueueName": "default"})).status
        await service.add(url="/worker")

    assert [("/worker", False)] * 2 + [("/worker", True)] * 2 == seen


async def _nothing(request: Request) -> None:
    """Do nothing."""


@pytest.mark.slow
async def test_several_applications(tmp_path: Path, make: Make) -> None:
    """Of several applications in one process each has its own service; in a request Queue(...) means that of its application."""
    counters = [Counter(TaskQueueService(tmp_path / f"{number}.db"), make) for number in range(2)]
    async with serve(counters[0].app) as first, serve(counters[1].app) as second:
        await first.post("/", params={"key": "first"})
        await second.post("/", params={"key": "second"})
        await until(lambda: all(counter.counts for counter in counters))
        with pytest.raises(NotStartedError, match="Several services are running"):
            await add(url="/worker")

    assert [{"first": 1}, {"second": 1}] == [counter.counts for counter in counters]


async def test_handler_of_a_mounted_application(path: Path, make: Make) -> None:
    """A handler of a mounted application is a worker of the application's service, by its whole path, and closed to strangers."""
    names: list[str] = []

    async def worker(request: Request) -> None:
        names.append(current_task().name)

    inner = Starlette()
    inner.add_route("/worker", task(worker), methods=["POST"])
    service = TaskQueueService(path, eager=True)
    app = make(service)
    app.router.routes.append(Mount("/sub", inner))
    async with serve(app) as client:
        await service.add(url="/sub/worker", name="a")

        assert 403 == (await client.post("/sub/worker")).status
    assert ["a"] == names


async def test_service_of_a_mounted_application(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A service that is embedded in a mounted application does not start; the first request says so, once, and tasks stay closed."""
    counter = Counter(TaskQueueService(path))
    app = Starlette(routes=[Mount("/sub", counter.app)])
    async with serve(app) as client:
        assert [403, 403] == [(await client.post("/sub/worker")).status for _ in range(2)]

    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR and record.name.startswith("aiotask")]
    assert 1 == len(said)
    assert "its lifespan does not run: its service is not started and delivers nothing" in said[0]


# --- misuse --------------------------------------------------------------------------------------------------------


async def test_two_services_in_one_app(path: Path) -> None:
    """A second service, or a worker's secrets, for one application are refused, and the first goes on as before."""
    counter = Counter(TaskQueueService(path, eager=True))
    refusal = "has an access check already; call init_app or init_worker once"
    with pytest.raises(ConfigError, match=refusal):
        init_app(counter.app, TaskQueueService(":memory:"))
    with pytest.raises(ConfigError, match=refusal):
        init_worker(counter.app, secrets=[SECRET])
    with pytest.raises(ConfigError, match=refusal):
        async with lifespan(TaskQueueService(":memory:"))(counter.app):
            pass
    async with serve(counter.app) as client:
        await client.post("/", params={"key": "a"})

    assert {"a": 1} == counter.counts


async def test_one_service_in_two_apps(path: Path, make: Make) -> None:
    """A service that belongs to an application is refused to another one, which would close it too early."""
    counter = Counter(TaskQueueService(path))
    with pytest.raises(ConfigError, match=r"belongs to another application.*make one service for each"):
        await run(make, counter.service)


@pytest.mark.parametrize("is_closed", [False, True])
async def test_service_that_runs(make: Make, is_closed: bool) -> None:
    """A service that was started before is refused: the application would start it too late and close it too early."""
    service = TaskQueueService(":memory:", dispatch=False)
    await service.start()
    if is_closed:
        await service.aclose()
    with pytest.raises(ConfigError, match=r"was started before; call init_app first"):
        await run(make, service)
    await service.aclose()


async def test_app_that_runs() -> None:
    """An application that has started is refused."""
    app = Starlette()
    async with serve(app):
        with pytest.raises(ConfigError, match="has started; call init_app or init_worker before"):
            init_app(app, TaskQueueService(":memory:"))


@pytest.mark.parametrize("base_url", ["nonsense", "https://", "http://user:hunter2@host"])
async def test_bad_base_url(make: Make, base_url: str) -> None:
    """A base URL that is none is refused: at once, or when the application starts."""
    with pytest.raises(ConfigError, match="Base URL"):
        await run(make, TaskQueueService(":memory:"), base_url=base_url)


# --- a process of its own ------------------------------------------------------------------------------------------

UVICORN_APP = """
    import asyncio, sys
    import uvicorn
    from starlette.applications import Starlette
    from aiotaskqueue import TaskQueueService
    from aiotaskqueue.web.starlette import lifespan, task

    @task
    async def worker(request):
        print("reached", flush=True)
        await asyncio.sleep(float(await request.body()))
        print("ended", flush=True)

    async def add(request):
        await service.add(sys.argv[2], url="/worker")

    service = TaskQueueService(sys.argv[1])
    own = lifespan(service)

    def with_a_task(app):
        import contextlib

        @contextlib.asynccontextmanager
        async def run():
            async with own(app) as state:
                await service.add(sys.argv[2], url="/worker")
                yield state

        return run()

    app = Starlette(lifespan=with_a_task)
    app.add_route("/worker", worker, methods=["POST"])
    uvicorn.run(app, port=0, log_config=None)
    print("left", flush=True)
"""


@pytest.mark.promise("P20")
@pytest.mark.slow
async def test_uvicorn(tmp_path: Path, path: Path) -> None:
    """P20: under uvicorn an application delivers its tasks; SIGTERM waits for those in flight, and nothing is left."""
    child = start_script(tmp_path / "app.py", UVICORN_APP, path, 0.3)
    assert child.stdout is not None

    assert "reached\n" == child.stdout.readline()
    child.send_signal(signal.SIGTERM)
    said = child.communicate(timeout=10)[0]

    assert "ended\n" in said
    assert "Traceback" not in said
    assert child.returncode in (0, -signal.SIGTERM)
    assert 0 == left(path)
    assert [] == [file.name for file in tmp_path.iterdir() if "process" in file.name]
