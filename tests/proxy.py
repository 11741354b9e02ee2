"""A network between a service and its worker that does to each exchange what the task's URL says, byte by byte.

A `Plan` travels as the last part of the task's URL. The proxy notes whose whole answer it has passed on, the worker whom it
has answered: nobody else's task may be done in the end, and each of theirs has to be.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import attrs
from aiohttp import web
from hostile import Peer, raw_server
from signed_requests import SECRET

from aiotaskqueue.tasks import current_task
from aiotaskqueue.web.aiohttp import init_worker, task

# From the last bytes to the reset, which takes along what the other side has not read yet.
SETTLING_SECONDS = 0.005

LATE_SECONDS, SLOW_SECONDS, TRICKLE_SECONDS = 0.05, 0.001, 1.0
SLOW_BYTES = 7

REQUEST, RESPONSE = "request", "response"

# What leaves nothing of a connection to the next exchange.
ENDING = frozenset({"reset", "blackhole", "half", "close"})


@attrs.frozen
class Plan:
    """What happens to one exchange."""

    kind: str
    """pass, late, slowly, twice; reset, close, half (closed), blackhole, trickle (1 B/s)."""
    side: str = RESPONSE
    """What it happens to."""
    at: int = 0
    """After how many bytes."""

    @property
    def url(self) -> str:
        """The URL that makes it happen."""
        return f"/worker/{self.kind}.{self.side}.{self.at}"

    @classmethod
    def of(cls, request: bytes) -> Plan:
        """Return the plan for a request."""
        kind, side, at = request.split(b" ")[1].decode().rpartition("/")[2].split(".")
        return cls(kind, side, int(at))


PASS = Plan("pass")


def every_cut(kind: str, side: str, length: int) -> Iterator[Plan]:
    """Yield a plan for each byte of a message: cut before it, and cut behind the last."""
    return (Plan(kind, side, at) for at in range(length + 1))


class Network:
    """The proxy and the worker, and what they have seen."""

    def __init__(self) -> None:
        self.url = ""
        self._worker_port = 0
        self.worked: Counter[str] = Counter()
        """How often the worker has answered a task, by the task's name."""
        self.passed: set[str] = set()
        """Tasks whose whole answer was passed on, and came."""
        self.sent: set[str] = set()
        """These, and those whose whole answer was sent on a connection that was reset behind it: it may have come."""
        self.longest_request = 0
        self.longest_response = 0

    @asynccontextmanager
    async def up(self) -> AsyncIterator[Network]:
        """Run both."""
        runner = web.AppRunner(self._make_worker(), shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self._worker_port = runner.addresses[0][1]
            async with raw_server(self._play) as server:
                self.url = server.base_url
                yield self
        finally:
            await runner.cleanup()

    def _make_worker(self) -> web.Application:
        @task
        async def work(request: web.Request) -> web.Response:
            self.worked[current_task().name] += 1
            return web.Response(text="done" * 5)

        app = web.Application()
        app.router.add_post("/worker/{plan}", work)
        init_worker(app, secrets=[SECRET])
        return app

    async def _play(self, peer: Peer) -> None:
        while request := await peer.read_request():
            plan = Plan.of(request)
            self.longest_request = max(self.longest_request, len(request))
            response = await self._ask(peer, plan if plan.side == REQUEST else PASS, request)
            self.longest_response = max(self.longest_response, len(response))
            if plan.side == RESPONSE and plan.kind in ENDING:
                if plan.at >= len(response):
                    self._note(request, is_certain=plan.kind != "reset")
                await _cut(peer, plan, response)
                return
            await _send(peer, plan if plan.side == RESPONSE else PASS, response)
            self._note(request)

    def _note(self, request: bytes, *, is_certain: bool = True) -> None:
        name = request.partition(b"X-AppEngine-TaskName: ")[2].partition(b"\r\n")[0].decode()
        self.sent.add(name)
        if is_certain:
            self.passed.add(name)

    async def _ask(self, peer: Peer, plan: Plan, request: bytes) -> bytes:
        """Pass a request on, as planned, and return the answer.

        Raises:
            ConnectionError: There is none: that ends the play.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self._worker_port)
        worker = Peer(peer.server, reader, writer)
        try:
            await (_cut if plan.kind in ENDING else _send)(worker, plan, request)
            response = await worker.read_message()
            if response:
                return response
            if plan.kind == "reset":
                peer.reset()
            raise ConnectionError
        finally:
            writer.transport.abort()


async def _send(peer: Peer, plan: Plan, data: bytes) -> None:
    """Send all of `data`, in the way of the plan."""
    match plan.kind:
        case "pass":
            await peer.send(data)
        case "twice":
            await peer.send(data + data)
        case "late":
            await peer.send(LATE_SECONDS, data)
        case "slowly":
            for start in range(0, len(data), SLOW_BYTES):
                await peer.send(data[start : start + SLOW_BYTES], SLOW_SECONDS)
        case "trickle":
            for byte in data:
                await peer.send(bytes([byte]), TRICKLE_SECONDS)


async def _cut(peer: Peer, plan: Plan, data: bytes) -> None:
    """Send the start of `data`, and end the connection in the way of the plan."""
    await peer.send(data[: plan.at])
    match plan.kind:
        case "reset":
            await asyncio.sleep(SETTLING_SECONDS)
            peer.reset()
        case "close":
            peer.close()
        case "half":
            peer.writer.write_eof()
    if plan.side == RESPONSE:
        await peer.wait_for_end()
