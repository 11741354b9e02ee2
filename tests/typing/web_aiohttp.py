"""Checked by mypy, never run: ``@task`` keeps the signature of a handler, and takes nothing else.

An expected error is an ignored one; mypy reports ignores that are not needed.
"""

from __future__ import annotations

from typing import assert_type

from aiohttp import web

from aiotaskqueue.tasks import TaskAnswer, repeat_task, terminate_task
from aiotaskqueue.web.aiohttp import task


@task
async def answer_nothing(request: web.Request) -> None:
    """Have the answer made by the decorator."""


@task
async def answer_something(request: web.Request) -> web.Response:
    """Make the answer."""
    return web.Response()


@task
async def answer_without_aiohttp(request: web.Request) -> TaskAnswer:
    """Say what becomes of the task."""
    return terminate_task()


@task
async def answer_in_every_way(request: web.Request) -> web.Response | TaskAnswer | None:
    """Answer as it happens."""
    if request.can_read_body:
        return repeat_task()
    return web.Response() if request.query else None


@task(verify=False)
async def let_everybody_in(request: web.Request, *, times: int = 1) -> None:
    """Have a decorator with an argument, and an argument with a default."""


class View(web.View):
    """A method is a handler, too."""

    @task
    async def post(self) -> None:
        """Work."""


ROUTES = [web.post("/nothing", answer_nothing), web.post("/something", answer_something), web.view("/view", View)]


async def call_them(request: web.Request) -> None:
    """Call the handlers as they were declared, and otherwise."""
    assert_type(await answer_nothing(request), web.StreamResponse)
    assert_type(await answer_something(request), web.StreamResponse)
    assert_type(await answer_without_aiohttp(request), web.StreamResponse)
    assert_type(await answer_in_every_way(request), web.StreamResponse)
    assert_type(await let_everybody_in(request, times=2), web.StreamResponse)
    assert_type(await View(request).post(), web.StreamResponse)
    await answer_nothing()  # type: ignore[call-arg]  # the request is missing
    await let_everybody_in(request, times="2")  # type: ignore[arg-type]  # times is an int
    task("/nothing")  # type: ignore[call-overload]  # a path is no handler


@task  # type: ignore[arg-type]  # not a coroutine function
def block(request: web.Request) -> None:
    """Do not await."""
