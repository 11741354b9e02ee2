"""AppDelivery: an aiohttp application as target, on a socket that nobody else can reach."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest
from aiohttp import web
from signed_requests import SECRET, make_record

from aiotaskqueue import TaskQueueService
from aiotaskqueue._clock import SystemClock
from aiotaskqueue.delivery._base import Answer, FailureReason, NoAnswer
from aiotaskqueue.delivery.aiohttp_app import AppDelivery
from aiotaskqueue.errors import ConfigError
from aiotaskqueue.signing import KeyRing
from aiotaskqueue.tasks import current_task
from aiotaskqueue.web.aiohttp import init_worker, task

pytestmark = pytest.mark.anyio

# From aiohttp's server task to the handler that it waits for, and through its ``finally``.
TURNS_OF_A_CANCELLATION = 5


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sockets are made: a folder of this test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def make_app(seen: list[web.Request] | None = None) -> web.Application:
    """Return an application that remembers its requests."""

    async def handle(request: web.Request) -> web.Response:
        if seen is not None:
            seen.append(request)
        return web.Response(text="done")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    return app


@asynccontextmanager
async def opened(delivery: AppDelivery) -> AsyncIterator[AppDelivery]:
    """Have the delivery open while the block runs."""
    try:
        await delivery.open(SystemClock())
        yield delivery
    finally:
        await delivery.aclose()


@asynccontextmanager
async def running(app: web.Application) -> AsyncIterator[web.AppRunner]:
    """Run the application as its user does, here without any port."""
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        yield runner
    finally:
        await runner.cleanup()


async def deliver(delivery: AppDelivery) -> Answer | NoAnswer:
    """Make one attempt."""
    return await delivery.deliver(make_record(), deadline_seconds=5.0)


async def test_delivers() -> None:
    """A task is a request to the application: method, path, body and host."""
    seen: list[web.Request] = []
    async with opened(AppDelivery(make_app(seen), is_run_elsewhere=False)) as delivery:
        assert Answer(200) == await deliver(delivery)
        assert delivery.has_answered

    assert [("POST", "/worker", "localhost")] == [(request.method, request.path, request.host) for request in seen]


async def test_base_url() -> None:
    """The base URL gives the Host header and a path that goes before every URL."""
    seen: list[web.Request] = []
    async with opened(AppDelivery(make_app(seen), is_run_elsewhere=False, base_url="http://shop.example/app/")) as delivery:
        await deliver(delivery)

    assert [("/app/worker", "shop.example")] == [(request.path, request.host) for request in seen]


@pytest.mark.parametrize("base_url", ["nonsense", "http://", ""])
def test_bad_base_url(base_url: str) -> None:
    """A base URL that is none is an error when the delivery is made."""
    with pytest.raises(ConfigError, match="Base URL"):
        AppDelivery(make_app(), is_run_elsewhere=True, base_url=base_url)


async def test_signed_deliveries_are_accepted() -> None:
    """With keys the deliveries are signed, and a task handler takes them."""
    names = []

    @task
    async def worker(request: web.Request) -> None:
        names.append(current_task().name)

    app = web.Application()
    app.router.add_post("/worker", worker)
    init_worker(app, secrets=[SECRET])
    async with opened(AppDelivery(app, is_run_elsewhere=False, keys=KeyRing([SECRET]))) as delivery:
        assert Answer(200) == await deliver(delivery)
    async with running(app), opened(AppDelivery(app, is_run_elsewhere=True)) as delivery:
        assert isinstance(unsigned := await deliver(delivery), Answer)

    assert (["welcome-1"], 403) == (names, unsigned.status)


@pytest.mark.parametrize("is_run_elsewhere", [False, True])
async def test_compressed_body(is_run_elsewhere: bool) -> None:
    """A compressed body comes as it was added and signed, whoever runs the application: aiohttp is not to unpack it."""
    bodies = []

    @task
    async def worker(request: web.Request) -> None:
        bodies.append(await request.read())

    app = web.Application()
    app.router.add_post("/worker", worker)
    init_worker(app, secrets=[SECRET])
    record = make_record(payload=gzip.compress(b"a=1"), headers=(("Content-Encoding", "gzip"),))
    async with running(app) if is_run_elsewhere else nullcontext():
        async with opened(AppDelivery(app, is_run_elsewhere=is_run_elsewhere, keys=KeyRing([SECRET]))) as delivery:
            assert Answer(200) == await delivery.deliver(record, deadline_seconds=5.0)

    assert [record.payload] == bodies


async def test_app_of_ours_is_started_and_stopped() -> None:
    """An application that nobody else runs is started by the open and cleaned up by the close."""
    events: list[str] = []

    async def context(app: web.Application) -> AsyncIterator[None]:
        events.append("up")
        yield
        events.append("down")

    app = make_app()
    app.cleanup_ctx.append(context)
    async with opened(AppDelivery(app, is_run_elsewhere=False)):
        assert ["up"] == events

    assert ["up", "down"] == events


async def test_app_that_runs_elsewhere() -> None:
    """An application that its user runs is not started again, and is delivered to once it has started."""
    starts: list[object] = []

    async def start(app: web.Application) -> None:
        starts.append(app)

    app = make_app()
    app.on_startup.append(start)
    async with opened(AppDelivery(app, is_run_elsewhere=True)) as delivery:
        expected = NoAnswer(FailureReason.UNREACHABLE, "The application has not started yet.")

        assert (expected, False) == (await deliver(delivery), delivery.has_answered)

        async with running(app):
            assert Answer(200) == await deliver(delivery)

    assert [app] == starts


@pytest.mark.parametrize("is_closed", [False, True])
async def test_not_open(is_closed: bool) -> None:
    """A delivery that is not open, or is closed, reaches nobody and raises nothing."""
    delivery = AppDelivery(make_app(), is_run_elsewhere=False)
    if is_closed:
        await delivery.open(SystemClock())
        await delivery.aclose()
    result = await deliver(delivery)

    assert isinstance(result, NoAnswer)
    assert (FailureReason.UNREACHABLE, False) == (result.reason, delivery.has_answered)


async def test_socket_is_for_this_user_only(folder: Path) -> None:
    """The socket is in a folder that only its owner can enter, and both are gone after the close; closing twice is fine."""
    delivery = AppDelivery(make_app(), is_run_elsewhere=False)
    await delivery.open(SystemClock())
    (made,) = folder.iterdir()

    assert 0o700 == os.stat(made).st_mode & 0o777
    assert ["alive", "app.sock"] == sorted(file.name for file in made.iterdir())

    await delivery.aclose()
    await delivery.aclose()

    assert [] == list(folder.iterdir())


async def test_path_that_is_too_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the socket's path would be too long, the error shows it and says what to do, and nothing is left."""
    deep = folder / ("x" * 120)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    delivery = AppDelivery(make_app(), is_run_elsewhere=False)
    with pytest.raises(ConfigError, match=r"^No socket can be made at '.*app\.sock' \(.*\); set TMPDIR to a shorter path, or give a "):
        await delivery.open(SystemClock())
    await delivery.aclose()

    assert [] == list(deep.iterdir())


async def test_app_that_cannot_start(folder: Path) -> None:
    """When the application's own start fails, that error is raised, and nothing is left."""

    async def fail(app: web.Application) -> None:
        raise ZeroDivisionError

    app = make_app()
    app.on_startup.append(fail)
    service = TaskQueueService(":memory:", target=app)
    with pytest.raises(ZeroDivisionError):
        await service.start()

    assert [] == list(folder.iterdir())


async def test_app_that_cannot_stop(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When the application's own clean-up fails, that is logged, and all else is closed and removed."""

    async def fail(app: web.Application) -> None:
        raise ZeroDivisionError

    app = make_app()
    app.on_cleanup.append(fail)
    async with TaskQueueService(":memory:", target=app):
        pass

    assert ["A part of the service could not be closed."] == [record.getMessage() for record in caplog.records]
    assert [] == list(folder.iterdir())


async def test_handler_that_outlives_its_attempt(folder: Path) -> None:
    """A handler that still runs when the delivery closes is cancelled, and the close does not wait long for it."""
    ends: list[str] = []
    reached = asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        reached.set()
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")
        return web.Response()

    app = web.Application()
    app.router.add_post("/worker", hang)
    service = TaskQueueService(":memory:", target=app)
    await service.start()
    await service.add(url="/worker")
    await reached.wait()
    async with asyncio.timeout(5):
        await service.aclose(timeout_seconds=0.0)
    for _ in range(TURNS_OF_A_CANCELLATION):
        await asyncio.sleep(0)

    assert ["cancelled"] == ends


@pytest.mark.row(51)
async def test_handler_that_closes_the_service() -> None:
    """RELIABILITY 51: a handler of the target may close the service; it is answered, and its task is done."""

    async def close(request: web.Request) -> web.Response:
        await service.aclose()
        return web.Response()

    app = web.Application()
    app.router.add_post("/close", close)
    service = TaskQueueService(":memory:", target=app)
    await service.start()
    await service.add(url="/close")
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        await service.aclose()

    assert not service.health().is_ok


@pytest.mark.parametrize(("name", "parameters"), [("_handle", ["self", "request"]), ("_make_request", ["self", "message", "payload"])])
def test_private_names_of_aiohttp(name: str, parameters: list[str]) -> None:
    """aiohttp still has the two private names of Application that serving an application once more needs."""
    assert parameters == list(inspect.signature(getattr(web.Application, name)).parameters)[: len(parameters)]


def test_unix_sockets_exist() -> None:
    """The systems that these tests run on have UNIX sockets; on others an AppDelivery is a ConfigError."""
    assert hasattr(socket, "AF_UNIX")


async def test_folders_of_killed_processes_are_removed(folder: Path) -> None:
    """Opening removes the folder that a killed process left behind, and none that is in use or just being made."""
    for name in ("killed", "new"):
        (folder / f"aiotaskqueue-{name}").mkdir()
    (folder / "aiotaskqueue-killed" / "alive").touch()
    first, second = (AppDelivery(web.Application(), is_run_elsewhere=False) for _ in range(2))
    async with opened(first), opened(second):
        names = {path.name for path in folder.iterdir()}

    assert (3, False) == (len(names), "aiotaskqueue-killed" in names)
    assert ["aiotaskqueue-new"] == [path.name for path in folder.iterdir()]
