"""AppDelivery: delivers to an aiohttp application in this process, without a port.

aiohttp applications are called through a server, so there is one: on a UNIX socket in a folder that only this user can
enter. An application that the user runs elsewhere as well is served *once more*, by its handler; one that nobody else
runs is started and stopped here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from aiotaskqueue._liveness import hold, is_abandoned
from aiotaskqueue.delivery._base import Answer, Delivery, FailureReason, NoAnswer
from aiotaskqueue.delivery._base_url import parse_base_url
from aiotaskqueue.delivery.http import HTTPDelivery
from aiotaskqueue.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from aiotaskqueue._clock import Clock
    from aiotaskqueue._record import TaskRecord
    from aiotaskqueue.signing import KeyRing

# By the time we close, nothing is delivered any more; a handler that still runs has outlived its attempt. aiohttp waits so
# long twice: for the handler's end, and for its end by cancellation.
SHUTDOWN_SECONDS = 0.05

# As aiohttp's own.
BACKLOG = 128

# More than any task has in its URL or in one header: a task is no larger altogether (SPEC 1.1).
MAX_HEAD_LINE_BYTES = 128 * 1024

FOLDER_PREFIX = "aiotaskqueue-"

# Locked while its folder is in use; a process that was killed leaves both behind.
ALIVE = "alive"


class AppDelivery(Delivery):
    """Carries tasks to an aiohttp application.

    A handler whose attempt is given up (at its deadline, or since the service closes) is cancelled: its task may soon be
    tried again, and the two must not run side by side.

    Args:
        app: The application.
        is_run_elsewhere: The user runs it (``web.run_app`` and its like): it is delivered to once it has started.
        base_url: Gives the Host header, and the path that goes before every task's URL.
        keys: Sign the requests.

    Raises:
        ConfigError: `base_url` is none, or this system has no UNIX sockets.
    """

    def __init__(
        self, app: web.Application, *, is_run_elsewhere: bool, base_url: str = "http://localhost", keys: KeyRing | None = None
    ) -> None:
        if not hasattr(socket, "AF_UNIX"):  # pragma: no cover -- Windows
            raise ConfigError("This system has no UNIX sockets; give TaskQueueService(target=...) the application's base URL.")
        self._app = app
        self._is_run_elsewhere = is_run_elsewhere
        parse_base_url(base_url)
        self._base_url = base_url
        self._keys = keys
        self._folder: str | None = None
        self._alive: int | None = None
        self._runner: web.BaseRunner | None = None
        self._server: asyncio.Server | None = None
        self._http: HTTPDelivery | None = None

    @property
    def has_answered(self) -> bool:  # type: ignore[override]  # computed here, an attribute elsewhere
        """Whether the application has answered anything."""
        return self._http is not None and self._http.has_answered

    async def open(self, clock: Clock) -> None:
        """Serve the application on a socket of its own.

        Raises:
            ConfigError: No socket can be made in the folder for temporary files.
        """
        _remove_abandoned_folders()
        # mkdtemp makes the folder with mode 0700.
        self._folder = tempfile.mkdtemp(prefix=FOLDER_PREFIX)
        self._alive = _hold_folder(Path(self._folder))
        path = str(Path(self._folder) / "app.sock")
        self._runner = self._make_runner()
        await self._runner.setup()
        await self._listen(self._runner, path)
        self._http = HTTPDelivery(self._base_url, keys=self._keys, unix_socket=path)
        await self._http.open(clock)

    async def deliver(self, record: TaskRecord, *, deadline_seconds: float) -> Answer | NoAnswer:
        """Make one attempt; before the application has started it cannot be reached."""
        if self._http is None or not self._app.frozen:
            return NoAnswer(FailureReason.UNREACHABLE, "The application has not started yet.")
        return await self._http.deliver(record, deadline_seconds=deadline_seconds)

    async def aclose(self) -> None:
        """Stop serving and remove the socket; twice is fine."""
        http, runner, server, folder, alive = self._http, self._runner, self._server, self._folder, self._alive
        self._http = self._runner = self._server = self._folder = self._alive = None
        async with contextlib.AsyncExitStack() as parts:
            # Last in, first out, and each although the wait for another be cancelled.
            if alive is not None:
                parts.callback(os.close, alive)
            if folder is not None:
                parts.callback(shutil.rmtree, folder, ignore_errors=True)
            if runner is not None:
                # May raise: it runs the clean-up of the user's application.
                parts.push_async_callback(runner.cleanup)
            if http is not None:
                parts.push_async_callback(http.aclose)
            if server is not None:
                server.close()

    async def _listen(self, runner: web.BaseRunner, path: str) -> None:
        """Accept connections on a UNIX socket.

        In two steps, the second of which may be cancelled, and not by aiohttp's UnixSite: while it waits for both at once
        nobody has the socket, and nobody could close it.
        """
        assert runner.server is not None
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_unix_server(runner.server, path, backlog=BACKLOG, start_serving=False)
        except OSError as exc:
            # Most likely the path is longer than the 108 bytes that Linux allows (macOS: 104).
            raise ConfigError(f"No socket can be made at {path!r} ({exc}); set TMPDIR to a shorter path, or give a target.") from exc
        await self._server.start_serving()

    def _make_runner(self) -> web.BaseRunner:
        # A body that aiohttp unpacks, for its Content-Encoding, is not the one that was signed.
        arguments: Mapping[str, Any] = {"access_log": None, "handler_cancellation": True, "auto_decompress": False}
        # Nobody else can connect. By its own limits aiohttp would refuse long queries and headers, and log them whole.
        arguments = {**arguments, "max_line_size": MAX_HEAD_LINE_BYTES, "max_field_size": MAX_HEAD_LINE_BYTES}
        if not self._is_run_elsewhere:
            return web.AppRunner(self._app, shutdown_timeout=SHUTDOWN_SECONDS, **arguments)
        # aiohttp has no public way to serve a started application once more: these two names are what its own AppRunner
        # passes to the server. tests/test_delivery_aiohttp_app.py fails when they go away.
        make_request = self._app._make_request
        server = web.Server(self._app._handle, request_factory=make_request, **arguments)  # type: ignore[arg-type]
        return web.ServerRunner(server, shutdown_timeout=SHUTDOWN_SECONDS)


def _hold_folder(folder: Path) -> int:
    """Mark the folder as in use, under its real name only once it is locked: nobody sees an unlocked mark."""
    new = folder / f"{ALIVE}.new"
    descriptor = hold(str(new))
    new.rename(folder / ALIVE)
    return descriptor


def _remove_abandoned_folders() -> None:
    """Remove what processes that were killed have left behind."""
    for alive in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*/{ALIVE}"):
        if is_abandoned(str(alive)):
            shutil.rmtree(alive.parent, ignore_errors=True)
