"""What the crash tests run under uvicorn: `uvicorn asgi_child:app`, with DATABASE, JOURNAL and PLACES in the environment.

A FastAPI application that delivers its own tasks to itself. `/sleep/SECONDS`: take so long at the first attempt, and no
time at the others. It appends to the journal when a handler begins and before it answers: `start NAME ATTEMPT RETRIES
EXECUTIONS` and `ok NAME ATTEMPT`; and `process PID` when a process starts to serve. A tenth of the usual time is left to a
drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, Header

from aiotaskqueue import QueueConfig, TaskQueueService
from aiotaskqueue.web.starlette import lifespan, task

DRAIN_SECONDS = 1.0

_journal = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(*words: object) -> None:
    """Write a line, in one write; from then on it is known."""
    os.write(_journal, f"{' '.join(map(str, words))}\n".encode())


class HastyService(TaskQueueService):
    """The usual service, which gives less time to what is in flight when it is closed."""

    async def aclose(self, timeout_seconds: float = DRAIN_SECONDS) -> None:
        await super().aclose(timeout_seconds)


@contextlib.asynccontextmanager
async def announce(app: FastAPI) -> AsyncIterator[dict[str, int]]:
    """Say which process this is, here and to every handler."""
    note("process", os.getpid())
    yield {"pid": os.getpid()}


async def begin(
    x_appengine_taskname: Annotated[str, Header()],
    x_taskqueue_attempt: Annotated[str, Header()],
    x_appengine_taskretrycount: Annotated[str, Header()],
    x_appengine_taskexecutioncount: Annotated[str, Header()],
) -> tuple[str, str]:
    """Write down that an attempt begins; return its task's name and its token."""
    note("start", x_appengine_taskname, x_taskqueue_attempt, x_appengine_taskretrycount, x_appengine_taskexecutioncount)
    return x_appengine_taskname, x_taskqueue_attempt


places = int(os.environ["PLACES"])
service = HastyService(
    os.environ["DATABASE"], queues=[QueueConfig("default", max_concurrent_requests=places)], max_concurrent_deliveries=places
)
app = FastAPI(lifespan=lifespan(service, announce))


@app.post("/sleep/{seconds}")
@task
async def sleep(seconds: float, begun: Annotated[tuple[str, str], Depends(begin)]) -> None:
    """Take so long at the first attempt."""
    name, attempt = begun
    await asyncio.sleep(seconds if attempt == "1" else 0.0)
    note("ok", name, attempt)
