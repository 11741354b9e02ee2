"""Count every word of a long text, one task a word: the Counter of counter.py as a FastAPI application.

    python examples/counter_fastapi.py            count, check, print a table, and end
    python examples/counter_fastapi.py --serve    an empty Counter with a page, to play with

The worker is an ordinary FastAPI handler: its body is a model, its database a dependency, and the application's own
lifespan opens that. No port is needed: the queue calls the application. The text, the table and the check are counter.py's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import html
import logging
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, TypedDict

import aiosqlite
from counter import ADDERS, FAILURE_RATE, PAGE, PATIENCE_SECONDS, SCHEMA, WORDS, Figures, check, print_table, show_progress
from fastapi import Body, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from aiotaskqueue import Queue, Task, TaskQueueService
from aiotaskqueue.tasks import current_task
from aiotaskqueue.web.starlette import lifespan, task

JSON = {"Content-Type": "application/json"}


class Word(BaseModel):
    """What a task carries."""

    key: str
    added: float


class State(TypedDict):
    """What the application has as long as it runs."""

    database: aiosqlite.Connection
    figures: Figures


def get_database(request: Request) -> aiosqlite.Connection:
    """Depend on the application's own database."""
    database: aiosqlite.Connection = request.state.database
    return database


def get_figures(request: Request) -> Figures:
    """Depend on what this process saw."""
    figures: Figures = request.state.figures
    return figures


Database = Annotated[aiosqlite.Connection, Depends(get_database)]


def make_task(key: str, name: str | None = None) -> Task:
    """Return a task that counts the key once."""
    return Task(Word(key=key, added=time.time()).model_dump_json(), name=name, url="/worker", headers=JSON)


async def show(database: Database) -> HTMLResponse:
    """Show all counters."""
    counters = await database.execute_fetchall("SELECT key, count FROM counter ORDER BY count DESC LIMIT 100")
    rows = "".join(f"<tr><td>{html.escape(key)}<td>{count}" for key, count in counters)
    page = PAGE.replace('method="post"', 'action="/add"')
    return HTMLResponse(page.format(rows=rows))


async def add(key: str) -> HTMLResponse:
    """Add a task to the default queue, and lead back to the page."""
    await Queue().add(make_task(key))
    return HTMLResponse('<meta http-equiv="refresh" content="0; url=/">')


@task
async def worker(word: Annotated[Word, Body()], database: Database, figures: Annotated[Figures, Depends(get_figures)]) -> None:
    """Count one key, unless it fails."""
    figures.attempts += 1
    if current_task().retry_count == 0:
        figures.seconds_to_start.append(time.time() - word.added)
    if random.random() < FAILURE_RATE:
        figures.failures += 1
        raise RuntimeError("This worker fails at random.")
    await database.execute("INSERT INTO run VALUES (?, ?)", (current_task().uuid, word.key))


def make_app(folder: Path, figures: Figures) -> tuple[FastAPI, TaskQueueService]:
    """Return the application and the queue that is embedded in it."""

    @contextlib.asynccontextmanager
    async def own_lifespan(app: FastAPI) -> AsyncIterator[State]:
        async with aiosqlite.connect(folder / "counter.db", isolation_level=None) as database:
            await database.executescript(SCHEMA)
            yield {"database": database, "figures": figures}

    service = TaskQueueService(folder / "tasks.db")
    app = FastAPI(lifespan=lifespan(service, own_lifespan))
    app.get("/")(show)
    app.get("/add")(add)
    app.post("/worker")(worker)
    return app, service


async def add_words(queue: Queue, words: Iterator[str]) -> None:
    """Add a task for each word."""
    for word in words:
        await queue.add(make_task(word))


async def count_words(folder: Path) -> None:
    """Run the application without any port, add every word, wait until all are counted, print the table."""
    logging.getLogger("aiotaskqueue.web.starlette").setLevel(logging.CRITICAL)  # its failures are wanted here
    figures = Figures()
    app, service = make_app(folder, figures)
    async with app.router.lifespan_context(app), asyncio.TaskGroup() as group:
        began = time.perf_counter()
        watching = group.create_task(show_progress(folder))
        words = iter(WORDS)
        async with asyncio.TaskGroup() as adders:
            for _ in range(ADDERS):
                adders.create_task(add_words(service.queue(), words))
        added = time.perf_counter() - began
        while (await service.queue().fetch_statistics()).tasks:
            await asyncio.sleep(0.05)
        ended = time.perf_counter() - began
        watching.cancel()
    print_table(figures, added, ended)


def serve(folder: Path, port: int) -> None:
    """Serve the Counter's page until interrupted."""
    import uvicorn

    app, _ = make_app(folder, Figures())
    uvicorn.run(app, port=port)


def main() -> int:
    """Run what the command line asks for; 0 if every word was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="serve the page until interrupted")
    parser.add_argument("--port", type=int, default=8080, help="for --serve")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.serve:
            serve(Path(folder), arguments.port)
            return 0
        asyncio.run(asyncio.wait_for(count_words(Path(folder)), PATIENCE_SECONDS))
        return 0 if check(Path(folder), may_repeat=False) else 1


if __name__ == "__main__":
    sys.exit(main())
