"""init_app: the README's lines, under a test server, ``web.run_app`` and gunicorn; order of start and end; access."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import tempfile
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import ClientConnectionError, ClientSession, UnixConnector, web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.typedefs import Handler
from children import start, start_script
from signed_requests import SECRET

from aiotaskqueue import Queue, QueueConfig, Task, TaskQueueService, TaskRetryOptions, add
from aiotaskqueue.errors import ConfigError, NotStartedError
from aiotaskqueue.tasks import current_task
from aiotaskqueue.testing import RecordingDelivery
from aiotaskqueue.web.aiohttp import default_url_path, init_app, init_worker, task

pytestmark = pytest.mark.anyio

Client = TestClient[web.Request, web.Application]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sockets are made: a folder of this test's own."""
    made = tmp_path / "t"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the tasks are."""
    return tmp_path / "tasks.db"


class Counter:
    """The README's application: a page to add keys, a worker that counts them."""

    def __init__(self, service: TaskQueueService) -> None:
        self.service = service
        self.counts: dict[str, int] = {}
        self.app = web.Application()
        self.app.add_routes([web.post("/", self.add), web.post("/worker", self.work), web.get("/", self.show)])
        init_app(self.app, service)

    async def show(self, request: web.Request) -> web.Response:
        return web.json_response(self.counts)

    async def add(self, request: web.Request) -> web.Response:
        key = (await request.post())["key"]
        await Queue().add(Task(url="/worker", params={"key": str(key)}))
        return web.Response(status=202)

    @task
    async def work(self, request: web.Request) -> None:
        key = str((await request.post())["key"])
        self.counts[key] = self.counts.get(key, 0) + 1


@contextlib.asynccontextmanager
async def serve(app: web.Application) -> AsyncIterator[Client]:
    """Serve the application on a port while the block runs."""
    async with TestClient(TestServer(app)) as client:
        yield client


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so, 5 seconds at most."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def done(path: Path) -> bool:
    """Whether no task is left in the file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (count,) = connection.execute("SELECT count(*) FROM taskqueue_task").fetchone()
        return bool(count == 0)


# --- the README's lines --------------------------------------------------------------------------------------------


async def test_test_server(path: Path, folder: Path) -> None:
    """An application under aiohttp's TestServer delivers its own tasks; afterwards nothing is left."""
    counter = Counter(TaskQueueService(path))
    async with serve(counter.app) as client:
        for key in ("a", "b", "a"):
            assert 202 == (await client.post("/", data={"key": key})).status
        await until(lambda: sum(counter.counts.values()) == 3)

        assert {"a": 2, "b": 1} == await (await client.get("/")).json()
        assert counter.service.health().is_ok

    assert done(path)
    assert [] == list(folder.iterdir())


USER_TEST = """
    import asyncio

    from aiohttp import web

    from aiotaskqueue import Queue, Task, TaskQueueService
    from aiotaskqueue.web.aiohttp import init_app, task

    counted = asyncio.Event()

    async def add(request):
        await Queue().add(Task(url="/worker"))
        return web.Response(status=202)

    @task
    async def work(request):
        counted.set()

    async def test_the_app_delivers_its_own_tasks(aiohttp_client, tmp_path):
        app = web.Application()
        app.add_routes([web.post("/", add), web.post("/worker", work)])
        init_app(app, TaskQueueService(tmp_path / "tasks.db"))
        client = await aiohttp_client(app)
        response = await client.post("/")
        assert 202 == response.status
        await asyncio.wait_for(counted.wait(), 5)
"""


@pytest.mark.slow
def test_pytest_aiohttp(tmp_path: Path, folder: Path) -> None:
    """Under pytest-aiohttp, whose fixtures start and end an application in other tasks, a user's test passes without a warning."""
    (tmp_path / "test_user.py").write_text(textwrap.dedent(USER_TEST))
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    options = ["-W", "error", "-p", "pytest_asyncio.plugin", "-p", "pytest_aiohttp.plugin", "-q"]
    run = start(["-m", "pytest", *options, "test_user.py"], cwd=tmp_path, PYTEST_DISABLE_PLUGIN_AUTOLOAD=1, TMPDIR=folder)
    output, _ = run.communicate(timeout=15)

    assert 0 == run.returncode, output
    assert "1 passed" in output
    assert [] == list(folder.glob("aiotaskqueue-*"))


async def test_eager(path: Path) -> None:
    """With an eager service a request that adds is answered after the handler has run."""
    counter = Counter(TaskQueueService(path, eager=True))
    async with serve(counter.app) as client:
        await client.post("/", data={"key": "a"})

        assert {"a": 1} == counter.counts


async def test_default_url(path: Path) -> None:
    """A task without a URL goes to the queue's default URL."""
    names = []

    @task
    async def worker(request: web.Request) -> None:
        names.append((request.path, current_task().name))

    app = web.Application()
    app.router.add_post(default_url_path("default"), worker)
    service = TaskQueueService(path, eager=True)
    init_app(app, service)
    async with serve(app):
        await service.add("payload", name="a")

    assert [("/_ah/queue/default", "a")] == names


RUN_APP = """
    import asyncio, sys
    from aiohttp import web
    from aiotaskqueue import Task, TaskQueueService
    from aiotaskqueue.web.aiohttp import init_app, task

    @task
    async def worker(request):
        print("reached", flush=True)
        await asyncio.sleep(float((await request.post())["seconds"]))
        print("ended", flush=True)

    async def add_first(app):
        await Task(url="/worker", params={"seconds": sys.argv[2]}).add()

    app = web.Application()
    app.router.add_post("/worker", worker)
    init_app(app, TaskQueueService(sys.argv[1]))
    app.on_startup.append(add_first)
    web.run_app(app, host="127.0.0.1", port=0, print=None)
    print("left", flush=True)
"""


def end(child: subprocess.Popen[str]) -> str:
    """Stop a child by SIGTERM; return all that it says until it has ended, which is soon."""
    child.send_signal(signal.SIGTERM)
    return child.communicate(timeout=10)[0]


@pytest.mark.promise("P20")
@pytest.mark.slow
async def test_run_app(tmp_path: Path, path: Path, folder: Path) -> None:
    """P20: under ``web.run_app`` an application delivers its tasks; SIGTERM waits for those in flight; exit code 0, nothing is left."""
    child = start_script(tmp_path / "app.py", RUN_APP, path, 0.3, TMPDIR=folder)
    assert child.stdout is not None

    assert "reached\n" == child.stdout.readline()
    assert "ended\nleft\n" == end(child)
    assert 0 == child.returncode
    assert done(path)
    assert [] == list(folder.iterdir())
    assert [] == [file.name for file in tmp_path.iterdir() if "process" in file.name]


GUNICORN_APP = """
    import os
    from aiohttp import web
    from aiotaskqueue import Task, TaskQueueService
    from aiotaskqueue.web.aiohttp import init_app, task

    done = []

    @task
    async def worker(request):
        done.append((await request.post())["key"])

    async def show(request):
        return web.json_response({"pid": os.getpid(), "done": done})

    async def add(request):
        await Task(url="/worker", params={"key": request.query["key"]}).add()
        return web.Response(status=202)

    async def make():
        app = web.Application()
        app.add_routes([web.get("/", show), web.post("/", add), web.post("/worker", worker)])
        init_app(app, TaskQueueService(os.environ["DATABASE"]))
        return app
"""


@contextlib.asynccontextmanager
async def gunicorn(tmp_path: Path, path: Path, folder: Path) -> AsyncIterator[tuple[subprocess.Popen[str], ClientSession]]:
    """Run the application under gunicorn with two workers; give the process and a session that reaches one of them."""
    (tmp_path / "shop.py").write_text(textwrap.dedent(GUNICORN_APP))
    address = tmp_path / "g.sock"
    options = ["-k", "aiohttp.GunicornWebWorker", "-w", "2", "-b", f"unix:{address}", "shop:make"]
    child = start(["-m", "gunicorn", *options], cwd=tmp_path, DATABASE=path, TMPDIR=folder, HOME=tmp_path)
    try:
        await until(address.exists)
        # A connection for each request, so that both workers are met.
        async with ClientSession("http://localhost", connector=UnixConnector(str(address), force_close=True)) as session:
            yield child, session
    finally:
        child.kill()
        child.communicate()


async def meet_both(session: ClientSession) -> dict[int, list[str]]:
    """Ask until both workers have answered; return what each has done, by process id."""
    met: dict[int, list[str]] = {}
    async with asyncio.timeout(10):
        while len(met) < 2:
            # At first nobody listens yet.
            with contextlib.suppress(ClientConnectionError):
                for answer in await asyncio.gather(*(session.get("/") for _ in range(8))):
                    shown = await answer.json()
                    met[shown["pid"]] = shown["done"]
    return met


@pytest.mark.slow
async def test_gunicorn(tmp_path: Path, path: Path, folder: Path) -> None:
    """Two gunicorn workers on one file deliver each task once; SIGTERM ends both with exit code 0, and nothing is left."""
    pytest.importorskip("gunicorn")
    keys = [str(number) for number in range(20)]
    async with gunicorn(tmp_path, path, folder) as (child, session):
        await meet_both(session)
        for answer in await asyncio.gather(*(session.post("/", params={"key": key}) for key in keys)):
            assert 202 == answer.status
        await until(lambda: done(path))
        met = await meet_both(session)
        said = end(child)

    assert sorted(keys) == sorted(key for done_there in met.values() for key in done_there)
    assert 0 == child.returncode, said
    assert "Traceback" not in said, said
    assert [] == list(folder.iterdir())
    assert [] == [file.name for file in tmp_path.iterdir() if "process" in file.name]


# --- order of start and end ----------------------------------------------------------------------------------------


async def test_start_before_the_first_delivery(path: Path) -> None:
    """The service starts first, so that other startup functions can add; the first delivery comes after all of them."""
    events: list[str] = []

    @task
    async def worker(request: web.Request) -> None:
        events.append("delivered")

    async def context(app: web.Application) -> AsyncIterator[None]:
        await Task(url="/worker").add()
        await asyncio.sleep(0.06)
        events.append("context")
        yield

    async def late(app: web.Application) -> None:
        await asyncio.sleep(0.06)
        events.append("late")

    app = web.Application()
    app.cleanup_ctx.append(context)
    app.on_startup.append(late)
    app.router.add_post("/worker", worker)
    init_app(app, TaskQueueService(path))
    async with serve(app):
        await until(lambda: "delivered" in events)

    assert ["context", "late", "delivered"] == events


async def test_order_of_the_end(path: Path) -> None:
    """First the attempts in flight end, then come shutdown functions, contexts, which may still add, the service, and clean-ups."""
    events: list[str] = []
    reached = asyncio.Event()

    @task
    async def worker(request: web.Request) -> None:
        reached.set()
        await asyncio.sleep(0.1)
        events.append("handler ended")

    async def shut_down(app: web.Application) -> None:
        events.append("shutdown")

    async def context(app: web.Application) -> AsyncIterator[None]:
        yield
        await Task(url="/worker", name="for-the-next-start").add()
        events.append("context")

    async def clean_up(app: web.Application) -> None:
        events.append(f"closed: {not service.health().is_ok}")

    app = web.Application()
    app.on_shutdown.append(shut_down)
    app.on_cleanup.append(clean_up)
    app.cleanup_ctx.append(context)
    app.router.add_post("/worker", worker)
    service = TaskQueueService(path)
    init_app(app, service)
    async with serve(app):
        await service.add(url="/worker")
        await reached.wait()

    assert ["handler ended", "shutdown", "context", "closed: True"] == events
    async with TaskQueueService(path, dispatch=False) as service:
        assert ["for-the-next-start"] == [task.name for task in await service.get_filtered_tasks()]


async def test_startup_that_fails(path: Path, folder: Path) -> None:
    """When another startup function fails, the service is closed with the application, and nothing is left."""

    async def fail(app: web.Application) -> None:
        raise ZeroDivisionError

    app = web.Application()
    service = TaskQueueService(path)
    init_app(app, service)
    app.on_startup.append(fail)
    runner = web.AppRunner(app)
    with pytest.raises(ZeroDivisionError):
        await runner.setup()
    await runner.cleanup()

    assert ("The service is not running.",) == service.health().reasons
    assert [] == list(folder.iterdir())


async def test_cleanup_that_fails(path: Path, folder: Path) -> None:
    """When a context or a clean-up of the application fails, the service is closed all the same."""

    async def context(app: web.Application) -> AsyncIterator[None]:
        yield
        raise ZeroDivisionError

    async def fail(app: web.Application) -> None:
        raise ZeroDivisionError

    app = web.Application()
    app.cleanup_ctx.append(context)
    app.on_cleanup.append(fail)
    service = TaskQueueService(path)
    init_app(app, service)
    runner = web.AppRunner(app)
    await runner.setup()
    with pytest.raises(ZeroDivisionError):
        await runner.cleanup()

    assert ("The service is not running.",) == service.health().reasons
    assert [] == list(folder.iterdir())


async def test_service_that_cannot_start(tmp_path: Path) -> None:
    """When the service cannot start, the application does not either, and says why."""
    app = web.Application()
    init_app(app, TaskQueueService(tmp_path / "missing" / "tasks.db"))
    runner = web.AppRunner(app)
    with pytest.raises(ConfigError, match="does not exist; create it first"):
        await runner.setup()
    await runner.cleanup()


# --- access --------------------------------------------------------------------------------------------------------


@pytest.mark.promise("P23")
@pytest.mark.parametrize("method", ["post", "get"])
async def test_strangers_are_refused(path: Path, method: str) -> None:
    """P23: over the public port an unsigned request to a worker gets 403, whatever headers it brings; the task runs."""
    counter = Counter(TaskQueueService(path))
    counter.app.router.add_get("/worker", counter.work)
    headers = {"X-AppEngine-QueueName": "default", "X-AppEngine-TaskName": "a", "X-AppEngine-TaskRetryCount": "0"}
    async with serve(counter.app) as client:
        answers = [await client.request(method, "/worker", data={"key": "x"}, headers=sent) for sent in ({}, headers)]
        await client.post("/", data={"key": "a"})
        await until(lambda: counter.counts)

    assert [403, 403] == [answer.status for answer in answers]
    assert {"a": 1} == counter.counts


async def test_middlewares_see_verified_deliveries(path: Path) -> None:
    """The application's own middlewares see a delivery, after it was checked; of a stranger's request to a worker they see nothing."""
    seen: list[tuple[str, str | None]] = []

    @web.middleware
    async def look(request: web.Request, handler: Handler) -> web.StreamResponse:
        seen.append((request.path, request.headers.get("X-AppEngine-QueueName")))
        return await handler(request)

    @task
    async def worker(request: web.Request) -> None:
        pass

    app = web.Application(middlewares=[look])
    app.router.add_post("/worker", worker)
    service = TaskQueueService(path, eager=True)
    init_app(app, service)
    async with serve(app) as client:
        assert 403 == (await client.post("/worker", headers={"X-AppEngine-QueueName": "default"})).status
        assert 404 == (await client.post("/nowhere", headers={"X-AppEngine-QueueName": "default"})).status
        await service.add(url="/worker")

    assert [("/nowhere", None), ("/worker", "default")] == seen


async def test_secrets(path: Path) -> None:
    """With secrets of one's own the deliveries are signed with them, and none is put into the file."""
    names: list[str] = []

    @task
    async def worker(request: web.Request) -> None:
        names.append(current_task().name)

    app = web.Application()
    app.router.add_post("/worker", worker)
    service = TaskQueueService(path, secrets=[SECRET], eager=True)
    init_app(app, service)
    async with serve(app):
        await service.add(url="/worker", name="a")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            kept = connection.execute("SELECT count(*) FROM taskqueue_secret").fetchone()

    assert (["a"], (0,)) == (names, kept)


async def test_failing_handler_is_retried(path: Path) -> None:
    """A handler that raises is delivered to again."""
    counts: list[int] = []

    @task
    async def worker(request: web.Request) -> None:
        counts.append(current_task().retry_count)
        if len(counts) < 3:
            raise ZeroDivisionError

    app = web.Application()
    app.router.add_post("/worker", worker)
    service = TaskQueueService(path)
    init_app(app, service)
    async with serve(app):
        options = TaskRetryOptions(min_backoff_seconds=0.01, max_backoff_seconds=0.01)
        await service.add(url="/worker", retry_options=options)
        await until(lambda: len(counts) == 3)

    assert [0, 1, 2] == counts


async def test_base_url(path: Path) -> None:
    """The base URL gives the Host of deliveries, and a path that goes before their URLs."""
    hosts: list[tuple[str, str]] = []

    @task
    async def worker(request: web.Request) -> None:
        hosts.append((request.host, request.path))

    app = web.Application()
    app.router.add_post("/app/worker", worker)
    service = TaskQueueService(path, eager=True)
    init_app(app, service, base_url="http://shop.example/app")
    async with serve(app):
        await service.add(url="/worker")

    assert [("shop.example", "/app/worker")] == hosts


async def test_explicit_target_wins(path: Path) -> None:
    """With a target of its own the service delivers there, and is started and closed with the application all the same."""
    counter = Counter(TaskQueueService(path, target="http://127.0.0.1:9", dispatch=False))
    elsewhere = RecordingDelivery()
    app = web.Application()
    service = TaskQueueService(":memory:", delivery=elsewhere, eager=True)
    init_app(app, service)
    async with serve(counter.app), serve(app):
        await service.add(url="/worker")
        await counter.service.add(url="/worker")

    assert (1, {}) == (len(elsewhere.deliveries), counter.counts)


@pytest.mark.parametrize("is_named", [False, True])
async def test_the_app_itself_as_target(path: Path, is_named: bool) -> None:
    """An application that is given as target too, or as a named one, is served, not started a second time."""
    app = web.Application()
    starts: list[object] = []
    names: list[str] = []

    @task
    async def worker(request: web.Request) -> None:
        names.append(current_task().name)

    async def start(app: web.Application) -> None:
        starts.append(app)

    app.on_startup.append(start)
    app.router.add_post("/worker", worker)
    service = TaskQueueService(path, targets={"me": app}, eager=True) if is_named else TaskQueueService(path, target=app, eager=True)
    init_app(app, service)
    async with asyncio.timeout(5), serve(app):
        await service.add(url="/worker", name="a", target="me" if is_named else None)

    assert ([app], ["a"]) == (starts, names)


# --- which service a request means ---------------------------------------------------------------------------------


async def test_several_applications(tmp_path: Path) -> None:
    """Of several applications in one process each has its own service; in a request Queue(...) means that of its application."""
    counters = [Counter(TaskQueueService(tmp_path / f"{number}.db")) for number in range(2)]
    async with serve(counters[0].app) as first, serve(counters[1].app) as second:
        await first.post("/", data={"key": "first"})
        await second.post("/", data={"key": "second"})
        await until(lambda: all(counter.counts for counter in counters))
        with pytest.raises(NotStartedError, match="Several services are running"):
            await add(url="/worker")

    assert [{"first": 1}, {"second": 1}] == [counter.counts for counter in counters]


async def test_handler_adds(path: Path) -> None:
    """A handler's own Queue(...) means the service that delivered to it, also beside others."""
    events: list[str] = []

    @task
    async def worker(request: web.Request) -> None:
        events.append(current_task().name)
        if len(events) == 1:
            await Queue().add(Task(url="/worker", name="second"))

    app = web.Application()
    app.router.add_post("/worker", worker)
    service = TaskQueueService(path)
    init_app(app, service)
    async with TaskQueueService(":memory:", dispatch=False), serve(app):
        await service.add(url="/worker", name="first")
        await until(lambda: len(events) == 2)

    assert ["first", "second"] == events


# --- sub-applications ----------------------------------------------------------------------------------------------


async def test_handler_of_a_sub_application(path: Path) -> None:
    """A handler of a sub-application is a worker of the application's service, by its whole path, and closed to strangers."""
    names: list[str] = []

    @task
    async def worker(request: web.Request) -> None:
        names.append(current_task().name)

    sub = web.Application()
    sub.router.add_post("/worker", worker)
    app = web.Application()
    service = TaskQueueService(path, eager=True)
    init_app(app, service)
    app.add_subapp("/sub", sub)
    async with serve(app) as client:
        await service.add(url="/sub/worker", name="a")

        assert 403 == (await client.post("/sub/worker")).status

    assert ["a"] == names


async def test_service_of_a_sub_application(tmp_path: Path) -> None:
    """A sub-application may have a service of its own, beside that of the application."""
    outer = Counter(TaskQueueService(tmp_path / "outer.db"))
    inner = Counter(TaskQueueService(tmp_path / "inner.db"))
    seen: list[str] = []

    @task
    async def worker(request: web.Request) -> None:
        seen.append(current_task().name)

    inner.app.router.add_post("/mine", worker)
    outer.app.add_subapp("/inner", inner.app)
    async with serve(outer.app) as client:
        await inner.service.add(url="/inner/mine", name="a")
        await client.post("/", data={"key": "o"})
        await until(lambda: seen and outer.counts)

        assert 403 == (await client.post("/inner/mine")).status

    assert (["a"], {"o": 1}) == (seen, outer.counts)
    assert not inner.service.health().is_ok


# --- misuse --------------------------------------------------------------------------------------------------------


async def test_two_services_in_one_app(path: Path) -> None:
    """A second service, or a worker's secrets, for one application are refused, and the first goes on as before."""
    counter = Counter(TaskQueueService(path, eager=True))
    second = TaskQueueService(":memory:")
    refusal = "has an access check already; call init_app or init_worker once"
    with pytest.raises(ConfigError, match=refusal):
        init_app(counter.app, second)
    with pytest.raises(ConfigError, match=refusal):
        init_worker(counter.app, secrets=[SECRET])
    async with serve(counter.app) as client:
        await client.post("/", data={"key": "a"})

    assert {"a": 1} == counter.counts
    assert ("The service is not running.",) == second.health().reasons


async def test_one_service_in_two_apps(path: Path) -> None:
    """A service that belongs to an application is refused to another one, which would close it too early."""
    counter = Counter(TaskQueueService(path))
    with pytest.raises(ConfigError, match=r"belongs to another application.*make one service for each"):
        init_app(web.Application(), counter.service)


@pytest.mark.parametrize("is_closed", [False, True])
async def test_service_that_runs(is_closed: bool) -> None:
    """A service that was started before is refused: the application would start it too late and close it too early."""
    service = TaskQueueService(":memory:", queues=[QueueConfig(name="default")], dispatch=False)
    await service.start()
    if is_closed:
        await service.aclose()
    with pytest.raises(ConfigError, match=r"was started before; call init_app first"):
        init_app(web.Application(), service)
    await service.aclose()


async def test_app_that_starts(path: Path) -> None:
    """An application that is starting is refused."""
    errors: list[str] = []

    async def start(app: web.Application) -> None:
        with pytest.raises(ConfigError) as caught:
            init_app(app, TaskQueueService(path))
        errors.append(str(caught.value))

    app = web.Application()
    app.on_startup.append(start)
    async with serve(app):
        pass

    assert [f"{app!r} has started; call init_app before."] == errors


def test_app_that_was_added_to_another() -> None:
    """A sub-application that was added already is refused: aiohttp would not let it have another middleware."""
    sub = web.Application()
    web.Application().add_subapp("/sub", sub)
    with pytest.raises(ConfigError, match="was added to another application"):
        init_worker(sub, secrets=[SECRET])


@pytest.mark.parametrize("base_url", ["nonsense", "https://", "http://user:hunter2@host"])
def test_bad_base_url(base_url: str) -> None:
    """A base URL that is none is refused at once."""
    with pytest.raises(ConfigError, match="Base URL"):
        init_app(web.Application(), TaskQueueService(":memory:"), base_url=base_url)
