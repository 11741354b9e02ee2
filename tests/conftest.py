"""Fixtures of every test: the async backend, and a check that a test leaves neither threads nor asyncio tasks behind."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from open_stores import path, quick_watch, store  # noqa: F401 -- fixtures of every test

# A database thread that was told to stop still needs a moment to do so.
THREAD_JOIN_SECONDS = 2.0

# Closing transports and done callbacks take a few turns of the loop.
CLOSING_TURNS = 10


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio: aiohttp and aiosqlite know no other."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_leaked_threads() -> Iterator[None]:
    """Fail a test that leaves a thread running."""
    before = set(threading.enumerate())
    yield
    started = set(threading.enumerate()) - before
    for thread in started:
        thread.join(THREAD_JOIN_SECONDS)

    assert [] == sorted(thread.name for thread in started if thread.is_alive()), "Threads left running"


@pytest.fixture(autouse=True)
def _no_leaked_tasks(request: pytest.FixtureRequest, _no_leaked_threads: None) -> None:
    """Fail an async test that leaves a task pending; sync tests have no loop to look at."""
    if "anyio_backend" in request.fixturenames:
        request.getfixturevalue("_pending_tasks_watch")


@pytest.fixture
async def _pending_tasks_watch(anyio_backend: str) -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    for _ in range(CLOSING_TURNS):
        await asyncio.sleep(0)
    started = asyncio.all_tasks() - before

    assert [] == sorted(repr(task) for task in started if not _is_of_the_test_runner(task)), "Tasks left pending"


def _is_of_the_test_runner(task: asyncio.Task[object]) -> bool:
    return getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")


def pytest_unconfigure() -> None:
    """End a failed run: the interpreter would wait for a leaked thread for ever."""
    leaked = [thread.name for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    if leaked:
        print(f"\nThreads are still running: {leaked}", flush=True)
        os._exit(1)
