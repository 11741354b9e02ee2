"""Count every word of a long text, one task a word: App Engine's Counter app of 2009, on aiotaskqueue.

    python examples/counter.py            count, check, print a table, and end
    python examples/counter.py --crash    the same, but the process is killed half-way and started again
    python examples/counter.py --serve    an empty Counter with a page, to play with

The application is an ordinary aiohttp one: its page adds a task for each key, its worker counts it. The worker fails at
random, three times in a hundred; each of these tasks is tried again. The text is the topics of Python's own ``help()``.
"""

from __future__ import annotations

import argparse
import asyncio
import html
import logging
import random
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics

import aiosqlite
from aiohttp import web

from aiotaskqueue import Queue, Task, TaskQueueService
from aiotaskqueue.errors import TaskAlreadyExistsError, TombstonedTaskError
from aiotaskqueue.tasks import current_task
from aiotaskqueue.web.aiohttp import init_app, task

WORDS = re.findall(r"[a-z']+", " ".join(topics.values()).lower())[:50_000]
FAILURE_RATE = 0.03
ADDERS = 64
PATIENCE_SECONDS = 110.0

# One INSERT is one transaction: the trigger counts in it. `run` tells which task did it, so that repetitions show.
SCHEMA = """
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    CREATE TABLE IF NOT EXISTS counter (key TEXT PRIMARY KEY, count INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS run (task TEXT NOT NULL, key TEXT NOT NULL);
    CREATE TRIGGER IF NOT EXISTS count_run AFTER INSERT ON run BEGIN
        INSERT INTO counter VALUES (new.key, 1) ON CONFLICT (key) DO UPDATE SET count = count + 1;
    END;
"""

PAGE = """<!doctype html><title>Counter</title>
<form method="post"><input name="key" autofocus><button>Count</button></form><table>{rows}</table>"""


@dataclass
class Figures:
    """What one process saw."""

    attempts: int = 0
    failures: int = 0
    seconds_to_start: list[float] = field(default_factory=list)


DATABASE = web.AppKey("database", aiosqlite.Connection)
FIGURES = web.AppKey("figures", Figures)

routes = web.RouteTableDef()


@routes.get("/")
async def show(request: web.Request) -> web.Response:
    """Show all counters."""
    counters = await request.app[DATABASE].execute_fetchall("SELECT key, count FROM counter ORDER BY count DESC LIMIT 100")
    rows = "".join(f"<tr><td>{html.escape(key)}<td>{count}" for key, count in counters)
    return web.Response(text=PAGE.format(rows=rows), content_type="text/html")


@routes.post("/")
async def add(request: web.Request) -> web.Response:
    """Add a task to the default queue, and go back to the page."""
    key = str((await request.post()).get("key", ""))
    await Queue().add(Task(url="/worker", params={"key": key, "added": repr(time.time())}))
    raise web.HTTPSeeOther("/")


@routes.post("/worker")
@task
async def worker(request: web.Request) -> None:
    """Count one key, unless it fails."""
    form = await request.post()
    figures = request.app[FIGURES]
    figures.attempts += 1
    if current_task().retry_count == 0:
        figures.seconds_to_start.append(time.time() - float(str(form["added"])))
    if random.random() < FAILURE_RATE:
        figures.failures += 1
        raise RuntimeError("This worker fails at random.")
    await request.app[DATABASE].execute("INSERT INTO run VALUES (?, ?)", (current_task().uuid, form["key"]))


def make_app(folder: Path) -> tuple[web.Application, TaskQueueService]:
    """Return the application and the queue that is embedded in it."""
    app = web.Application()
    app[FIGURES] = Figures()
    app.cleanup_ctx.append(lambda app: open_database(app, folder / "counter.db"))
    app.add_routes(routes)
    service = TaskQueueService(folder / "tasks.db")
    init_app(app, service)
    return app, service


async def open_database(app: web.Application, path: Path):  # type: ignore[no-untyped-def]  # an async generator of None
    """Keep the application's own database open while it runs."""
    async with aiosqlite.connect(path, isolation_level=None) as app[DATABASE]:
        await app[DATABASE].executescript(SCHEMA)
        yield


# --- the count -----------------------------------------------------------------------------------------------------


async def add_words(queue: Queue, words: Iterator[tuple[int, str]]) -> None:
    """Add a task for each word. Its name makes a repetition harmless, after a crash or in a second run."""
    for number, word in words:
        try:
            await queue.add(Task(name=f"word-{number}", url="/worker", params={"key": word, "added": repr(time.time())}))
        except (TaskAlreadyExistsError, TombstonedTaskError):
            continue


async def count_words(folder: Path) -> None:
    """Run the application without any port, add every word, wait until all are counted, print the table."""
    logging.getLogger("aiotaskqueue.web.aiohttp").setLevel(logging.CRITICAL)  # its failures are wanted here
    app, service = make_app(folder)
    runner = web.AppRunner(app)
    await runner.setup()
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(show_progress(folder))
        words = iter(enumerate(WORDS))
        async with asyncio.TaskGroup() as adders:
            for _ in range(ADDERS):
                adders.create_task(add_words(service.queue(), words))
        added = time.perf_counter() - began
        while (await service.queue().fetch_statistics()).tasks:
            await asyncio.sleep(0.05)
        ended = time.perf_counter() - began
        watching.cancel()
    await runner.cleanup()
    print_table(app[FIGURES], added, ended)


async def show_progress(folder: Path) -> None:
    """Print how far the count has got, a few times a second."""
    while True:
        await asyncio.sleep(0.2)
        print_progress(count_runs(folder))


def print_progress(done: int) -> None:
    """Print one line over the last one; on a file, a line now and then."""
    text = f"{done:,} of {len(WORDS):,} words counted"
    if sys.stdout.isatty():
        print(f"\r{text}", end="", flush=True)
    elif int(time.time() * 5) % 10 == 0:
        print(text, flush=True)


def count_runs(folder: Path) -> int:
    """Return how many times the worker has counted."""
    with read(folder) as database:
        return int(database.execute("SELECT count(*) FROM run").fetchone()[0])


def read(folder: Path) -> sqlite3.Connection:
    """Return a connection that only reads; close it by dropping it."""
    return sqlite3.connect(f"file:{folder / 'counter.db'}?mode=ro", uri=True)


def print_table(figures: Figures, added: float, ended: float) -> None:
    """Print what it took."""
    cuts = statistics.quantiles(figures.seconds_to_start or [0.0, 0.0], n=100)
    rows = {
        "words added per second": f"{len(WORDS) / added:,.0f}",
        "tasks delivered per second": f"{len(figures.seconds_to_start) / ended:,.0f}",
        "attempts": f"{figures.attempts:,}",
        "retries after a failure": f"{figures.failures:,}",
        "add to start of handler, p50": f"{cuts[49] * 1000:,.1f} ms",
        "add to start of handler, p99": f"{cuts[98] * 1000:,.1f} ms",
        "seconds": f"{ended:.1f}",
    }
    print("\r" + " " * 60 + "\r", end="")
    for name, value in rows.items():
        print(f"{name:32}{value:>14}")


def check(folder: Path, *, may_repeat: bool) -> bool:
    """Compare what was counted with collections.Counter; say what differs."""
    expected = Counter(WORDS)
    with read(folder) as database:
        counted = Counter(dict(database.execute("SELECT key, count FROM counter")))
        once = Counter(dict(database.execute("SELECT key, count(DISTINCT task) FROM run GROUP BY key")))
    repeated = counted.total() - once.total()
    print(f"{'words in the text':32}{len(WORDS):>14,}")
    print(f"{'lost':32}{(expected - once).total():>14,}")
    print(f"{'counted twice':32}{repeated:>14,}")
    is_right = once == expected and (may_repeat or counted == expected)
    print("The counts are those of collections.Counter." if is_right else "THE COUNTS ARE WRONG.")
    return is_right


# --- the three ways to run it --------------------------------------------------------------------------------------


def run_once(folder: Path) -> bool:
    """Count in this process."""
    asyncio.run(asyncio.wait_for(count_words(folder), PATIENCE_SECONDS))
    return check(folder, may_repeat=False)


def run_with_crash(folder: Path) -> bool:
    """Count in a child process, kill it half-way, and let a second one finish."""
    command = [sys.executable, __file__, "--folder", str(folder)]
    child = subprocess.Popen(command)
    while child.poll() is None and (not (folder / "counter.db").exists() or count_runs_patiently(folder) < len(WORDS) // 2):
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    print(f"\nKilled (SIGKILL) after {count_runs(folder):,} words; starting again on the same file.")
    subprocess.run(command, check=True, timeout=PATIENCE_SECONDS)
    return check(folder, may_repeat=True)


def count_runs_patiently(folder: Path) -> int:
    """As count_runs, while the child is still making the tables."""
    try:
        return count_runs(folder)
    except sqlite3.OperationalError:
        return 0


def serve(folder: Path, port: int) -> bool:
    """Serve the Counter's page until interrupted."""
    app, _ = make_app(folder)
    web.run_app(app, host="127.0.0.1", port=port)
    return True


def main() -> int:
    """Run what the command line asks for; 0 if every word was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crash", action="store_true", help="kill the process half-way and start it again")
    parser.add_argument("--serve", action="store_true", help="serve the page until interrupted")
    parser.add_argument("--port", type=int, default=8080, help="for --serve")
    parser.add_argument("--folder", type=Path, help="where to keep the two databases and go on from them; none: a temporary folder")
    arguments = parser.parse_args()
    if arguments.folder is not None and not (arguments.serve or arguments.crash):
        asyncio.run(asyncio.wait_for(count_words(arguments.folder), PATIENCE_SECONDS))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if arguments.serve:
            return 0 if serve(folder, arguments.port) else 1
        is_right = run_with_crash(folder) if arguments.crash else run_once(folder)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
