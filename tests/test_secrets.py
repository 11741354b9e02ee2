"""P24, T24: what may be secret gets into no log, no error, no repr and no warning, however a task's life goes.

A canary is in every place that may hold a secret: payload, params, headers, query, tag, signing keys, passwords of targets
and databases, what workers answer. Everything that can be heard is listened to at DEBUG level, the event loop in its debug
mode included (`canaries`); what an object says of itself is asked of every object of ours that there is.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from canaries import Canaries, Ears
from hostile import Peer, raw_server
from test_project import modules

from aiotaskqueue import QueueConfig, Task, TaskQueueService, TaskRetryOptions
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.delivery._base import Delivery, NoAnswer
from aiotaskqueue.delivery._request import Request
from aiotaskqueue.tasks import FatalTaskError
from aiotaskqueue.web.aiohttp import init_app, task

pytestmark = pytest.mark.promise("P24")

AT_ONCE = TaskRetryOptions(min_backoff_seconds=0, task_retry_limit=1)
QUEUES = (QueueConfig("default"), QueueConfig("pull", mode="pull"))


@pytest.fixture
def canaries() -> Canaries:
    """Texts to hide."""
    return Canaries()


@pytest.fixture
def ears(canaries: Canaries) -> Iterator[Ears]:
    """Ears that listen during the test."""
    with Ears(canaries) as ears:
        yield ears


# --- the ears ------------------------------------------------------------------------------------------------------


def raise_unseen(secret: str) -> None:
    """Fail where nobody can see it."""

    class Failing:
        def __del__(self) -> None:
            raise ValueError(secret)

    Failing()


def chained(secret: str) -> Exception:
    """Return an error that came of another one, which tells the secret and which a traceback does not show."""
    error = KeyError("harmless")
    error.__context__, error.__suppress_context__ = ValueError(secret), True
    return error


@attrs.frozen
class Careless:
    """A value that shows all of itself."""

    secret: str


async def be_seen(secret: str, ears: Ears) -> None:
    """Have the secret as the result of a future."""
    future = asyncio.get_running_loop().create_future()
    future.set_result([secret])
    ears.look_around()


async def be_slow(secret: str, ears: Ears) -> None:
    """Have the secret as the argument of a callback."""
    asyncio.get_running_loop().call_soon(print, secret)
    await asyncio.sleep(0)


PLANTS: dict[str, Callable[[str, Ears], Any]] = {
    **{
        f"the log {name}": lambda secret, ears, name=name: logging.getLogger(name).debug("x %s", secret)
        for name in ("aiosqlite", "aiohttp.server", "asyncio", "aiotaskqueue.stores")
    },  # type: ignore[misc]
    "an argument of a log record": lambda secret, ears: logging.getLogger("aiotaskqueue").debug("%.3s", secret),
    "a part of it": lambda secret, ears: logging.getLogger("aiotaskqueue").debug("%.9s...", secret),
    "its base64": lambda secret, ears: logging.getLogger("aiotaskqueue").debug("%s", base64.b64encode(secret.encode())),
    "its hex digits": lambda secret, ears: logging.getLogger("aiotaskqueue").debug("%s", secret.encode().hex()),
    "a warning": lambda secret, ears: warnings.warn(secret, ResourceWarning, stacklevel=1),
    "an error that nobody could raise": lambda secret, ears: raise_unseen(secret),
    "a message": lambda secret, ears: ears.hear_error(ValueError(secret)),
    "an error behind another one": lambda secret, ears: ears.hear_error(chained(secret)),
    "a member of a group": lambda secret, ears: ears.hear_error(ExceptionGroup("all", [ValueError(secret)])),
    "a repr": lambda secret, ears: ears.hear(Careless(secret)),
    "a future": be_seen,
    "a callback": be_slow,
}


@pytest.mark.anyio
@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
async def test_the_ears_hear(canaries: Canaries, plant: Callable[[str, Ears], Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever way a secret gets out, it is heard, and its place named."""
    with Ears(canaries) as ears:
        ears.debug_loop()
        planted = plant(canaries["planted"], ears)
        if asyncio.iscoroutine(planted):
            await planted

    assert ["planted"] == sorted({leak.split(" in ")[0] for leak in ears.leaks()})


# --- a whole life --------------------------------------------------------------------------------------------------


class Worker:
    """An application whose handlers fail in every way, and show whoever asks all that they were sent."""

    def __init__(self, canaries: Canaries, service: TaskQueueService) -> None:
        self._canaries = canaries
        self.paths: set[str] = set()
        self.app = web.Application()
        self.app.router.add_route("*", "/{how}", task(self._handle))
        init_app(self.app, service)

    async def _handle(self, request: web.Request) -> web.StreamResponse | None:
        self.paths.add(request.path)
        signature = request.headers["Signature"].split(":")[1]
        self._canaries.know("signature", signature)
        echo = f"{self._canaries['answer']} {signature} {await request.text()} {dict(request.headers)} {request.path_qs}"
        how: Callable[[web.Request, str], Any] = getattr(self, f"_{request.match_info['how']}")
        return await how(request, echo)  # type: ignore[no-any-return]

    async def _succeeds(self, request: web.Request, echo: str) -> None:
        """End the task."""

    async def _fails(self, request: web.Request, echo: str) -> web.Response:
        return web.Response(
            status=500, text=echo, headers={"Retry-After": self._canaries["answer"], "Set-Cookie": self._canaries["answer"]}
        )

    async def _rests(self, request: web.Request, echo: str) -> web.Response:
        return web.Response(status=503, text=echo, headers={"Retry-After": self._canaries["answer"]})

    async def _redirects(self, request: web.Request, echo: str) -> web.Response:
        return web.Response(status=307, headers={"Location": f"http://elsewhere/?{request.headers['Signature']}"}, text=echo)

    async def _refuses(self, request: web.Request, echo: str) -> web.Response:
        raise web.HTTPForbidden(text=echo)

    async def _raises(self, request: web.Request, echo: str) -> None:
        raise RuntimeError(self._canaries["exception"])

    async def _despairs(self, request: web.Request, echo: str) -> None:
        raise FatalTaskError(self._canaries["exception"])

    async def _returns(self, request: web.Request, echo: str) -> str:
        return echo

    async def _breaks(self, request: web.Request, echo: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000000"})
        await response.prepare(request)
        await response.write(echo.encode())
        assert request.transport is not None
        request.transport.close()
        return response


WAYS = ("succeeds", "fails", "rests", "redirects", "refuses", "raises", "despairs", "returns", "breaks")


def secret_headers(canaries: Canaries) -> dict[str, str]:
    """Return headers of which no value may be seen, one of them longer than most servers take."""
    return {
        "Authorization": f"Bearer {canaries['authorization']}",
        "Cookie": f"session={canaries['cookie']}; more={canaries['cookie'] * 200}",
        "X-Api-Key": canaries["api key"],
    }


async def add_all(service: TaskQueueService, canaries: Canaries) -> None:
    """Add tasks with secrets in all their parts, one for each way to end and each place for a secret."""
    headers, options = secret_headers(canaries), AT_ONCE
    for way in WAYS:
        await service.add(canaries["payload"], name=f"{way}-payload", url=f"/{way}", headers=headers, retry_options=options)
        await service.add(name=f"{way}-params", url=f"/{way}", params={"key": canaries["param"]}, headers=headers, retry_options=options)
        query = f"/{way}?token={canaries['query']}&more={canaries['query'] * 200}"
        await service.add(name=f"{way}-query", method="GET", url=query, headers=headers, retry_options=options)
    await service.add(canaries["payload"] * 100, url="/fails", countdown=3600, headers=headers)
    await service.add(canaries["payload"], queue_name="pull", method="PULL", tag=canaries["tag"])


async def manage_all(service: TaskQueueService, ears: Ears) -> str:
    """Look at all tasks in every way, and do everything to them; what is shown is heard. Return what is kept of the answers."""
    kept = ""
    for name in ("default", "pull"):
        queue = service.queue(name)
        stored = [item async for item in queue.list_tasks()]
        whole = [await queue.get_task(item.name) for item in stored]
        kept += "".join([attempt.detail for item in whole for attempt in item.attempts or ()])
        for thing in (
            queue,
            *stored,
            *whole,
            *(attempt for item in whole for attempt in item.attempts or ()),
            await queue.fetch_statistics(),
        ):
            ears.hear(thing)
    for thing in (service, service.health(), service.description, *await service.statistics(), *await service.get_filtered_tasks()):
        ears.hear(thing)
    dead = [item.name async for item in service.queue().dead_tasks()]
    await service.queue().revive(dead[0], payload=ears.canaries["payload"] + "new")
    await service.queue().run_task(dead[0])
    await service.queue().delete_tasks_by_name(dead[1])
    ears.look_around()
    return kept


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_whole_life(path: Path, canaries: Canaries, ears: Ears) -> None:
    """From add to death and back nothing secret is shown; what a handler raises is only logged, where it was raised.

    Of answers the start is kept, which may quote the task, but neither the signature nor what the handler raised.
    """
    ears.debug_loop()
    key = canaries["key"].encode()
    service = TaskQueueService(path, queues=QUEUES, secrets=[key])
    worker = Worker(canaries, service)
    async with TestServer(worker.app):
        await add_all(service, canaries)
        ears.look_around()
        await service.run_until_idle()
        kept = await manage_all(service, ears)
        await service.run_until_idle()
        await service.queue().purge()
    ears.look_around()

    assert {f"/{way}" for way in WAYS} == worker.paths
    assert ["exception in the log of a handler's own exception"] == ears.leaks()
    assert {"answer", "authorization", "payload", "param"} <= canaries.find(kept)
    assert set() == canaries.find(kept) & {"signature", "exception", "key"}


Play = Callable[[Peer, bytes], Any]

# Answers that are none, with all of the request in them.
NONSENSE: dict[str, Play] = {
    "no status line": lambda peer, request: peer.send(request),
    "a folded line": lambda peer, request: peer.send(b"HTTP/1.1 500 Oh\r\nX: a\r\n " + request),
    "a header without a colon": lambda peer, request: peer.send(b"HTTP/1.1 500 Oh\r\n" + request.replace(b":", b"=") + b"\r\n\r\n"),
    "a value with a NUL": lambda peer, request: peer.send(b"HTTP/1.1 500 Oh\r\nX: " + request.replace(b"\r\n", b"") + b"\0\r\n\r\n"),
    "a status of words": lambda peer, request: peer.send(b"HTTP/1.1 abc " + request.replace(b"\r\n", b" ") + b"\r\n\r\n"),
    "a reason": lambda peer, request: peer.send(b"HTTP/1.1 500 " + request.replace(b"\r\n", b" ") + b"\r\nContent-Length: 0\r\n\r\n"),
    "a bad chunk": lambda peer, request: peer.send(b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n" + request),
    "a bad length": lambda peer, request: peer.send(b"HTTP/1.1 500 Oh\r\nContent-Length: " + request),
    "half a body": lambda peer, request: peer.send(b"HTTP/1.1 500 Oh\r\nContent-Length: 99999\r\n\r\n" + request),
    "a body that ends with the connection": lambda peer, request: peer.send(b"HTTP/1.1 500 Oh\r\n\r\n" + request),
}


@pytest.mark.anyio
@pytest.mark.parametrize("play", NONSENSE.values(), ids=NONSENSE)
async def test_a_worker_that_talks_nonsense(path: Path, canaries: Canaries, ears: Ears, play: Play) -> None:
    """T24: whatever is wrong with an answer that quotes the whole request, none of it is shown, and the signature is not even kept."""
    ears.debug_loop()

    async def serve(peer: Peer) -> None:
        request = await peer.read_request()
        for signature in re.findall(rb"Signature: taskqueue=:(.+):", request):
            canaries.know("signature", signature.decode())
        await play(peer, request)

    async with raw_server(serve) as server:
        async with TaskQueueService(path, target=server.base_url, secrets=[canaries["key"].encode()]) as service:
            headers = {"Authorization": canaries["authorization"]}
            await service.add(canaries["payload"], url="/w", name="poor", headers=headers, retry_options=AT_ONCE)
            await service.run_until_idle()
            ears.hear(stored := await service.queue().get_task("poor"))
            ears.look_around()

    assert [] == ears.leaks()
    assert (2, "signature" in canaries.others) == (len(stored.attempts or ()), True)
    assert "signature" not in canaries.find("".join(attempt.detail for attempt in stored.attempts or ()))


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["ValueError", "ExceptionGroup"])
async def test_a_delivery_that_raises(path: Path, canaries: Canaries, ears: Ears, kind: str) -> None:
    """A delivery's own error, which may quote the task, is logged as its class and its way, and kept as its class and its place."""

    class Failing(Delivery):
        async def deliver(self, record: TaskRecord, *, deadline_seconds: float) -> NoAnswer:
            message = f"Header {record.headers} and {record.payload!r} are too much"
            raise ValueError(message) if kind == "ValueError" else ExceptionGroup(message, [ValueError(message)])

    async with TaskQueueService(path, delivery=Failing()) as service:
        await service.add(canaries["payload"], url="/w", name="poor", headers={"Cookie": canaries["cookie"]}, retry_options=AT_ONCE)
        await service.run_until_idle()
        stored = await service.queue().get_task("poor")

    assert [] == ears.leaks()
    assert [f"{kind} at test_secrets.py"] * 2 == [attempt.detail.rpartition(":")[0] for attempt in stored.attempts or ()]


# --- what values show of themselves --------------------------------------------------------------------------------

# Not those of the files that describe queues, in which nothing is secret.
VALUES = {
    cls.__name__: cls
    for module in modules()
    for cls in vars(module).values()
    if isinstance(cls, type) and attrs.has(cls) and cls.__module__ == module.__name__ != "aiotaskqueue._config_tree"
}

# Text that is no secret: names, and words and sentences of ours.
SHOWN = {
    *("name", "names", "name_prefix", "queue_name", "queues", "suspect_queue", "target", "uuid", "attempt"),
    *("method", "mode", "rate", "reason", "reasons", "retry_reason", "dead_reason", "paused", "pauses", "handler"),
}


def test_a_request_shows_no_secret(canaries: Canaries, ears: Ears) -> None:
    """A request that is ready to be written is shown by its method and its size."""
    ears.hear(Request(canaries["data"].encode(), "POST", canaries["signature"]))

    assert [] == ears.leaks()


def sample(cls: type, canaries: Canaries) -> Any:
    """Return a value of the class with a canary in every place that may have a secret."""
    value = cls.__new__(cls)
    for field in attrs.fields(cls):
        object.__setattr__(value, field.name, sample_of_field(field, canaries))
    return value


def sample_of_field(field: attrs.Attribute[Any], canaries: Canaries) -> Any:
    """Return what such a field may hold: one of our values, a harmless one, or a canary."""
    kind = str(field.type)
    ours = [name for name in VALUES if re.search(rf"\b{name}\b", kind.replace("Outcome", "Retry | Dead"))]
    if field.name == "task":
        return Task(canaries["payload"], method="PULL", tag=canaries["tag"])
    if ours:
        values = tuple(sample(VALUES[name], canaries) for name in ours)
        return values if re.search("Sequence|tuple|Mapping", kind) else values[0]
    if field.name == "headers":
        return (("Cookie", canaries["headers"]),)
    if field.name in SHOWN or kind.startswith("Callable") or not re.search(r"\b(str|bytes|Any|object)\b", kind):
        return 0
    text = f"/w?{canaries[field.name]}" if field.name == "url" else canaries[field.name]
    return text.encode() if "bytes" in kind else text


@pytest.mark.parametrize("name", VALUES)
def test_no_value_shows_a_secret(name: str, canaries: Canaries, ears: Ears) -> None:
    """A field that may hold a secret is shown by its size, or not at all; a new one is, or is named above as harmless."""
    ears.hear(sample(VALUES[name], canaries))

    assert [] == ears.leaks()
