"""The same worker in aiohttp, Starlette and FastAPI, each under a real server: for tests that hold in all of them."""

from __future__ import annotations

import contextlib
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import attrs
import fastapi
import starlette.applications
import starlette.exceptions
import starlette.requests
import starlette.responses
import starlette.routing
import uvicorn
from aiohttp import web
from signed_requests import SECRET, StoppedClock

from aiotaskqueue.tasks import TaskAnswer
from aiotaskqueue.web import aiohttp as on_aiohttp
from aiotaskqueue.web import starlette as on_starlette
from aiotaskqueue.worker import AccessCheck


@attrs.frozen
class Seen:
    """What a handler sees of its request."""

    method: str
    target: str
    """Path and query as they came."""
    headers: list[tuple[str, str]]
    body: bytes


Work = Callable[[Seen], Awaitable[int | TaskAnswer | None]]
"""What a handler does; it returns the status of a response, or what a task may return in every framework."""


class Adapter(ABC):
    """A web framework."""

    name: str
    logger_name: str

    @abstractmethod
    def make_app(self, work: Work, *, path: str = "/worker", kind: str = "task", check: AccessCheck | None = None) -> Any:
        """Return an application with one handler for every method, and a worker's access check.

        Args:
            work: What it does.
            path: Of the handler; `{tail}` in it stands for everything.
            kind: "task", "open" (a task with ``verify=False``) or "page" (no task).
            check: The access check; None: that of `init_worker`.
        """

    @abstractmethod
    def make_unguarded_app(self, work: Work, *, verify: bool = True) -> Any:
        """Return an application with a task and no access check."""

    @abstractmethod
    def serve(self, app: Any) -> contextlib.AbstractAsyncContextManager[str]:
        """Serve the application on a port while the block runs; gives the base URL."""

    @abstractmethod
    def refuse(self, status: int) -> Exception:
        """Return what the framework's handlers raise for a response."""


def _mark(task: Any, kind: str, handler: Any) -> Any:
    return {"task": task, "open": task(verify=False), "page": lambda handler: handler}[kind](handler)


class Aiohttp(Adapter):
    """Aiohttp, under its own server."""

    name = "aiohttp"
    logger_name = "aiotaskqueue.web.aiohttp"

    def make_app(self, work: Work, *, path: str = "/worker", kind: str = "task", check: AccessCheck | None = None) -> Any:
        app = self._app(work, path, kind)
        if check is None:
            on_aiohttp.init_worker(app, secrets=[SECRET], clock=StoppedClock())
        else:
            on_aiohttp.install(app, check)
        return app

    def make_unguarded_app(self, work: Work, *, verify: bool = True) -> Any:
        return self._app(work, "/worker", "task" if verify else "open")

    def _app(self, work: Work, path: str, kind: str) -> web.Application:
        async def handler(request: web.Request) -> web.Response | TaskAnswer | None:
            seen = Seen(request.method, request.raw_path, list(request.headers.items()), await request.read())
            status = await work(seen)
            if kind != "page" and not isinstance(status, int):
                return status
            return web.Response(status=status if isinstance(status, int) else 200)

        app = web.Application(client_max_size=2**22)
        app.router.add_route("*", path.replace("{tail}", "{tail:.*}"), _mark(on_aiohttp.task, kind, handler))
        return app

    @contextlib.asynccontextmanager
    async def serve(self, app: Any) -> AsyncIterator[str]:
        runner = web.AppRunner(app, shutdown_timeout=0.1, lingering_time=0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    def refuse(self, status: int) -> Exception:
        assert status == 409
        return web.HTTPConflict(text="")


class Starlette(Adapter):
    """Starlette, under uvicorn."""

    name = "starlette"
    logger_name = "aiotaskqueue.web.starlette"

    def make_app(self, work: Work, *, path: str = "/worker", kind: str = "task", check: AccessCheck | None = None) -> Any:
        app = self._app(work, path, kind)
        if check is None:
            on_starlette.init_worker(app, secrets=[SECRET], clock=StoppedClock())
        else:
            on_starlette.install(app, check)
        return app

    def make_unguarded_app(self, work: Work, *, verify: bool = True) -> Any:
        return self._app(work, "/worker", "task" if verify else "open")

    def _app(self, work: Work, path: str, kind: str) -> starlette.applications.Starlette:
        handler = _mark(on_starlette.task, kind, _starlette_handler(work, kind))
        route = starlette.routing.Route(path.replace("{tail}", "{tail:path}"), handler, methods=METHODS)
        return starlette.applications.Starlette(routes=[route])

    @contextlib.asynccontextmanager
    async def serve(self, app: Any) -> AsyncIterator[str]:
        async with serve_asgi(app) as base_url:
            yield base_url

    def refuse(self, status: int) -> Exception:
        return starlette.exceptions.HTTPException(status, "")


METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def _starlette_handler(work: Work, kind: str) -> Callable[[starlette.requests.Request], Awaitable[Any]]:
    async def handler(request: starlette.requests.Request) -> starlette.responses.Response | TaskAnswer | None:
        status = await work(await see(request))
        if kind != "page" and not isinstance(status, int):
            return status
        return starlette.responses.Response(status_code=status if isinstance(status, int) else 200)

    return handler


async def see(request: starlette.requests.Request) -> Seen:
    """Return what a handler of Starlette or FastAPI sees."""
    query = request.scope["query_string"]
    target = (request.scope["raw_path"] + (b"?" + query if query else b"")).decode()
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
    return Seen(request.method, target, headers, await request.body())


class FastAPI(Starlette):
    """FastAPI, under uvicorn: a handler with a dependency, which reads the body for it."""

    name = "fastapi"

    def _app(self, work: Work, path: str, kind: str) -> fastapi.FastAPI:
        async def handler(seen: Annotated[Seen, fastapi.Depends(see)]) -> Any:
            status = await work(seen)
            return starlette.responses.Response(status_code=status) if isinstance(status, int) else status

        app = fastapi.FastAPI()
        marked = _mark(on_starlette.task, kind, handler)
        app.api_route(path.replace("{tail}", "{tail:path}"), methods=METHODS, operation_id="work")(marked)
        return app


ADAPTERS = (Aiohttp(), Starlette(), FastAPI())


@contextlib.asynccontextmanager
async def serve_asgi(app: Any, **options: Any) -> AsyncIterator[str]:
    """Serve an ASGI application by uvicorn in this event loop; gives the base URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=1, **options)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listener])
        assert not server.should_exit
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            await server.shutdown(sockets=[listener])
