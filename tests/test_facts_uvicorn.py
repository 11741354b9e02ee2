"""What uvicorn does at SIGTERM, in which order, and that deliveries in the process do not suffer from it (RELIABILITY fact 8)."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path

import pytest
from aiohttp import ClientSession, UnixConnector
from children import start_script

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

APP = """
    import asyncio, contextlib, sys
    import uvicorn
    from fastapi import FastAPI
    from aiotaskqueue import TaskQueueService
    from aiotaskqueue.tasks import current_task
    from aiotaskqueue.web.starlette import lifespan, task

    path, address = sys.argv[1:]

    def say(words):
        print(words, flush=True)

    @contextlib.asynccontextmanager
    async def own_lifespan(app):
        say("started")
        yield
        say("ended")

    service = TaskQueueService(path)
    app = FastAPI(lifespan=lifespan(service, own_lifespan))

    @app.get("/slow")
    async def slow() -> None:
        say("asked")
        while True:
            try:
                _, writer = await asyncio.open_unix_connection(address)
            except OSError:
                break
            writer.close()
            await writer.wait_closed()
            await asyncio.sleep(0.01)
        say("closed to others")
        for _ in range(3):
            await service.add(url="/worker")
        while (await service.queue().fetch_statistics()).tasks:
            await asyncio.sleep(0.01)
        say("answered")

    @app.post("/worker")
    @task
    async def worker() -> None:
        say(f"delivered, retry {current_task().retry_count}")

    uvicorn.run(app, uds=address, log_config=None)
"""


async def ask(session: ClientSession) -> int:
    """Ask for the slow page."""
    async with session.get("/slow") as answer:
        return answer.status


async def test_deliveries_go_on_while_the_port_is_closed(tmp_path: Path) -> None:
    """After SIGTERM the port is closed while requests are still answered: tasks are delivered meanwhile, at the first attempt."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"{folder}/s"
        child = start_script(tmp_path / "app.py", APP, tmp_path / "tasks.db", address)
        assert child.stdout is not None
        assert "started\n" == child.stdout.readline()
        while not Path(address).exists():
            await asyncio.sleep(0.005)
        async with ClientSession("http://localhost", connector=UnixConnector(address)) as session, asyncio.TaskGroup() as group:
            asking = group.create_task(ask(session))
            assert "asked\n" == await asyncio.to_thread(child.stdout.readline)
            child.send_signal(signal.SIGTERM)
        said, _ = child.communicate(timeout=10)

    assert 200 == asking.result()
    assert ["closed to others", *["delivered, retry 0"] * 3, "answered", "ended"] == said.splitlines()
