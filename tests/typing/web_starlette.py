"""Checked by mypy, never run: ``@task`` keeps the signature of a handler of Starlette or FastAPI, and takes nothing else.

An expected error is an ignored one; mypy reports ignores that are not needed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import assert_type

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aiotaskqueue import TaskQueueService
from aiotaskqueue.tasks import TaskAnswer, terminate_task
from aiotaskqueue.web.starlette import init_app, lifespan, task

app = FastAPI()


@task
async def answer_nothing(request: Request) -> None:
    """Have the answer made by the decorator."""


@task
async def answer_something(request: Request) -> JSONResponse:
    """Make the answer."""
    return JSONResponse({})


@task
def block(request: Request) -> None:
    """Run in a thread."""


@task(verify=False)
async def let_everybody_in(request: Request, *, times: int = 1) -> None:
    """Have a decorator with an argument, and an argument with a default."""


@app.post("/users/{user}")
@task
async def answer_a_value(user: int) -> dict[str, int]:
    """Have the answer made by FastAPI."""
    return {"user": user}


@task(verify=False)
def block_with_a_value(user: int) -> dict[str, int]:
    """Have the answer made by FastAPI, in a thread."""
    return {"user": user}


@task
async def answer_in_every_way(request: Request) -> Response | TaskAnswer | None:
    """Have the answer made by somebody."""
    return terminate_task()


class Worker(HTTPEndpoint):
    """A method is a handler, too."""

    @task
    async def post(self, request: Request) -> None:
        """Work."""


ROUTES = [Route("/nothing", answer_nothing), Route("/block", block), Route("/worker", Worker)]


async def call_them(request: Request, worker: Worker) -> None:
    """Call the handlers as they were declared, and otherwise."""
    assert_type(await answer_nothing(request), Response)
    assert_type(await answer_something(request), Response)
    assert_type(await block(request), Response)
    assert_type(await let_everybody_in(request, times=2), Response)
    assert_type(await answer_a_value(5), dict[str, int])
    assert_type(await block_with_a_value(user=5), dict[str, int])
    assert_type(await worker.post(request), Response)
    assert_type(await answer_in_every_way(request), Response)
    await answer_nothing()  # type: ignore[call-arg]  # the request is missing
    await let_everybody_in(request, times="2")  # type: ignore[arg-type]  # times is an int
    task("/nothing")  # type: ignore[call-overload]  # a path is no handler


@asynccontextmanager
async def own_lifespan(app: FastAPI) -> AsyncIterator[dict[str, int]]:
    """Yield a state."""
    yield {"answer": 42}


def embed(service: TaskQueueService) -> None:
    """Embed a service in both frameworks, in both ways."""
    init_app(FastAPI(), service, base_url="https://shop.example")
    init_app(Starlette(), service)
    FastAPI(lifespan=lifespan(service, own_lifespan))
    Starlette(lifespan=lifespan(service, base_url="https://shop.example"))
    Starlette().add_route("/nothing", answer_nothing)
    TaskQueueService(target=FastAPI(), targets={"a": Starlette(), "b": "http://b.example"})
