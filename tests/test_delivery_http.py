"""HTTPDelivery with workers that behave: what is sent, what counts as what, and how connections are used."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hostile import OK, OK_HEAD, TEAPOT, FastClock, Peer, answering, raw_server, self_signed
from hypothesis import given, settings
from hypothesis import strategies as st

from aiotaskqueue import signing
from aiotaskqueue._clock import SystemClock, Timer
from aiotaskqueue._record import TaskRecord, TaskState
from aiotaskqueue.delivery._base import SIGNATURE_REFUSED, Answer, FailureReason, NoAnswer
from aiotaskqueue.delivery.http import HTTPDelivery
from aiotaskqueue.errors import ConfigError

pytestmark = pytest.mark.anyio

KEYS = signing.KeyRing([bytes(range(32))])


def make_record(**changes: Any) -> TaskRecord:
    """Return a leased task."""
    fields: dict[str, Any] = {
        "uuid": bytes(16),
        "queue_name": "mail",
        "name": "task1",
        "url": "/worker",
        "payload": b"a=1",
        "eta_usec": 1,
        "created_usec": 1,
        "attempts": 1,
        "state": TaskState.LEASED,
    }
    return TaskRecord(**(fields | changes))


RECORD = make_record()


@contextlib.asynccontextmanager
async def opened(base_url: str, **arguments: Any) -> AsyncIterator[HTTPDelivery]:
    """Open a delivery on the fast clock, and close it."""
    delivery = HTTPDelivery(base_url, **arguments)
    await delivery.open(FastClock())
    try:
        yield delivery
    finally:
        await delivery.aclose()


async def deliver_to(play: Any, record: TaskRecord = RECORD, **arguments: Any) -> Answer | NoAnswer:
    """Deliver once to a raw server, in 1 + 1 seconds of the fast clock."""
    async with raw_server(play) as server, opened(server.base_url, **arguments) as delivery:
        return await delivery.deliver(record, deadline_seconds=1.0)


def reason_of(outcome: Answer | NoAnswer) -> FailureReason:
    """Return why there was no answer."""
    assert isinstance(outcome, NoAnswer), outcome
    return outcome.reason


# --- the base URL ----------------------------------------------------------------------------------------------------


@pytest.mark.row(45)
@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "localhost:8080",
        "//localhost",
        "http://",
        "http:///path",
        "ftp://localhost",
        "unix:///tmp/socket",
        "http://user@localhost",
        "http://user:hunter2@localhost",
        "http://@localhost",
        "http://localhost?a=1",
        "http://localhost/?",
        "http://localhost#top",
        "http://localhost:port",
        "http://localhost:99999",
        "http://local host",
        "http://localhost/a\nb",
        "http://127.1",
        "http://2130706433",
        "http://0x7f000001",
        "http://[::1",
        None,
        8080,
    ],
)
def test_bad_base_url(base_url: Any) -> None:
    """A base URL that is not scheme, host, port and path is refused, and the message says what one is (row 45)."""
    with pytest.raises(ConfigError, match=r"^(The b|B)ase URL .*; a base URL is http:// or https://, a host, and perhaps"):
        HTTPDelivery(base_url)


@pytest.mark.promise("P24")
@pytest.mark.row(45)
@pytest.mark.parametrize("base_url", ["http://user:hunter2@localhost", "http://user:hunter2@[::1", "ftp://user:hunter2@x"])
def test_base_url_error_hides_the_password(base_url: str) -> None:
    """The error about a base URL does not show the password that it contains (P24)."""
    with pytest.raises(ConfigError) as caught:
        HTTPDelivery(base_url)

    assert "hunter2" not in str(caught.value)


def test_https_over_unix_socket() -> None:
    """TLS over a UNIX socket is refused, since aiohttp would not do it."""
    with pytest.raises(ConfigError, match="https over a UNIX socket; use http"):
        HTTPDelivery("https://localhost", unix_socket="/tmp/socket")


async def test_wildcard_base_url(caplog: pytest.LogCaptureFixture) -> None:
    """A target of 0.0.0.0, an address to listen on, is taken for 127.0.0.1 with a warning (row 45)."""
    async with raw_server(answering(OK)) as server:
        async with opened(server.base_url.replace("127.0.0.1", "0.0.0.0")) as delivery:
            outcome = await delivery.deliver(RECORD, deadline_seconds=1.0)

    assert Answer(200) == outcome
    assert [logging.WARNING] == [record.levelno for record in caplog.records]
    assert f"Host: {server.base_url[7:]}\r\n".encode() in server.requests[0]


@pytest.mark.parametrize(("path", "line"), [("", "/worker"), ("/", "/worker"), ("/a/b%2F", "/a/b%2F/worker"), ("/a/", "/a/worker")])
async def test_path_of_base_url(path: str, line: str) -> None:
    """The path of the base URL goes before the task's URL."""
    async with raw_server(answering(OK)) as server, opened(server.base_url + path) as delivery:
        await delivery.deliver(RECORD, deadline_seconds=1.0)

    assert [f"POST {line} HTTP/1.1"] == server.request_lines


# --- what is sent ----------------------------------------------------------------------------------------------------


def headers_of(request: bytes) -> list[tuple[str, str]]:
    """Return the headers of a raw request."""
    head = request.split(b"\r\n\r\n")[0].decode("latin-1")
    return [(name, value) for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])]


async def send(record: TaskRecord, **arguments: Any) -> bytes:
    """Return what a worker receives."""
    async with raw_server(answering(OK)) as server, opened(server.base_url, **arguments) as delivery:
        assert await delivery.deliver(record, deadline_seconds=1.0) == Answer(200)
    return server.requests[0]


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_body(method: str) -> None:
    """The payload is the body, byte for byte."""
    request = await send(make_record(method=method, payload=bytes(range(256))))

    assert request.startswith(f"{method} /worker HTTP/1.1\r\n".encode())
    assert request.endswith(b"\r\n\r\n" + bytes(range(256)))


@pytest.mark.parametrize("method", ["POST", "PUT", "GET", "HEAD", "DELETE"])
@pytest.mark.parametrize("payload", [None, b""])
async def test_no_body(method: str, payload: bytes | None) -> None:
    """A task without a payload is sent without a body."""
    request = await send(make_record(method=method, payload=payload))

    assert request.startswith(f"{method} /worker HTTP/1.1\r\n".encode())
    assert dict(headers_of(request)).get("Content-Length", "0") == "0"


@pytest.mark.parametrize("own", [(), (("Accept-Encoding", "gzip"),), (("accept-encoding", "br"),)])
async def test_own_headers(own: tuple[tuple[str, str], ...]) -> None:
    """We ask for no compression, say who we are, and expect nothing (H5, H6, H8)."""
    headers = headers_of(await send(make_record(headers=own)))

    assert ["identity"] == [value for name, value in headers if name.lower() == "accept-encoding"]
    assert "aiotaskqueue" == dict(headers)["User-Agent"].partition("/")[0]
    assert {"Expect", "Cookie", "Transfer-Encoding"}.isdisjoint(name for name, _ in headers)
    assert len(headers) == len({name.lower() for name, _ in headers})


async def test_version_in_user_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user agent has the version of the installed package."""
    monkeypatch.setattr(importlib.metadata, "version", {"aiotaskqueue-embedded": "1.2.3"}.__getitem__)

    assert ("User-Agent", "aiotaskqueue/1.2.3") in headers_of(await send(RECORD))


async def test_user_agent_of_a_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user agent goes without a version where the package is not installed."""

    def not_found(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_found)

    assert ("User-Agent", "aiotaskqueue") in headers_of(await send(RECORD))


@pytest.mark.parametrize("name", ["Host", "host", "hOST"])
async def test_host_of_the_user(name: str) -> None:
    """A Host header that the user sets is sent instead of the target's, however it is spelt (D24)."""
    headers = headers_of(await send(make_record(headers=((name, "elsewhere.example"),))))

    assert ["elsewhere.example"] == [value for name, value in headers if name.lower() == "host"]


async def test_task_headers() -> None:
    """The user's and App Engine's headers are sent."""
    headers = dict(headers_of(await send(make_record(headers=(("X-Own", "\xe9"), ("Content-Type", "text/x"))))))

    assert ("mail", "task1", "text/x") == (
        headers["X-AppEngine-QueueName"],
        headers["X-AppEngine-TaskName"],
        headers["Content-Type"],
    )
    assert "é".encode().decode("latin-1") == headers["X-Own"]
    assert "Signature" not in headers


@pytest.mark.parametrize(("method", "payload"), [("POST", b"a=1"), ("POST", None), ("GET", None)])
async def test_signature(method: str, payload: bytes | None) -> None:
    """What the worker receives carries a good signature of itself (SPEC 4.7)."""
    request = await send(make_record(method=method, payload=payload, url="/a%2Fb?x=%7e&y"), keys=KEYS)
    verdict = signing.verify_head(KEYS, method=method, path="/a%2Fb", query="x=%7e&y", headers=headers_of(request), now=time.time())

    assert isinstance(verdict, signing.Verdict)
    assert signing.verify_body(verdict, payload or b"")


# What Task lets through (SPEC 1.4): normalised, percent-encoded, no fragment.
_ESCAPE = st.integers(0, 255).flatmap(lambda byte: st.sampled_from([f"%{byte:02X}", f"%{byte:02x}"]))
_PATH_ATOM = st.sampled_from("ab09-._~!$&'()*+,;=:@") | _ESCAPE.filter(lambda text: text.lower() != "%2e")
_QUERY_ATOM = _PATH_ATOM | st.sampled_from("/?") | _ESCAPE
_SEGMENT = st.lists(_PATH_ATOM, min_size=1, max_size=6).map("".join).filter(lambda text: text not in (".", ".."))
_PATH = st.lists(_SEGMENT, max_size=4).map(lambda segments: "/" + "/".join(segments))
_QUERY = st.lists(_QUERY_ATOM, max_size=12).map("".join).map(lambda text: f"?{text}" if text else "")
_URL = st.builds(str.__add__, _PATH, _QUERY)


@pytest.mark.slow
@pytest.mark.row(12)
@settings(max_examples=15, deadline=None)
@given(st.lists(_URL, min_size=10, max_size=20))
def test_path_is_sent_as_stored(urls: list[str]) -> None:
    """What is stored, what is signed and what the worker sees is the same text (H10)."""
    asyncio.run(check_paths(urls))


async def check_paths(urls: list[str]) -> None:
    """Deliver to all `urls`, and compare."""
    async with raw_server(answering(OK)) as server, opened(server.base_url, keys=KEYS) as delivery:
        for url in urls:
            await delivery.deliver(make_record(url=url), deadline_seconds=1.0)

    assert [f"POST {url} HTTP/1.1" for url in urls] == server.request_lines
    for url, request in zip(urls, server.requests, strict=True):
        path, _, query = url.partition("?")
        verdict = signing.verify_head(KEYS, method="POST", path=path, query=query, headers=headers_of(request), now=time.time())

        assert isinstance(verdict, signing.Verdict)


async def test_long_url() -> None:
    """A URL that is too long to be kept is sent like any other."""
    url = "/worker?" + "x" * 2000

    assert (await send(make_record(url=url))).startswith(f"POST {url} HTTP/1.1\r\n".encode())


# --- what counts as what -----------------------------------------------------------------------------------------------


@pytest.mark.row(64, 77)
@pytest.mark.promise("P6")
@pytest.mark.parametrize(
    "answer",
    [
        OK,
        OK_HEAD + b"ok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 Whatever\r\nContent-Type: text/html\r\nContent-Length: 14\r\n\r\n<p>Error 500</",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK,
    ],
)
async def test_success(answer: bytes) -> None:
    """Status 200 and a complete body is a success, whatever the body says (P6, rows 64 and 77)."""
    assert Answer(200) == await deliver_to(answering(answer))


@pytest.mark.row(64)
async def test_success_in_pieces() -> None:
    """An answer may come in pieces."""
    steps = (OK_HEAD[:9], 0.01, OK_HEAD[9:30], 0.01, OK_HEAD[30:], 0.01, b"o", 0.01, b"k")

    assert Answer(200) == await deliver_to(answering(*steps))


async def test_success_that_ends_with_the_connection() -> None:
    """A body without a length is complete when the worker closes the connection (RFC 9112 section 6.3)."""
    assert Answer(200) == await deliver_to(answering(b"HTTP/1.1 200 OK\r\n\r\nok", 0.01, b"ok", then_close=True))


async def test_answer_to_head() -> None:
    """The answer to HEAD has no body, whatever length it names."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"

    assert Answer(200) == await deliver_to(answering(answer), make_record(method="HEAD", payload=None))


@pytest.mark.row(67, 69, 70, 71, 79)
@pytest.mark.promise("P6")
async def test_every_status() -> None:
    """Each status but 200 is an answer with that status; 1xx, but for 101, is none yet (P6, rows 67 to 71, 79)."""
    statuses = [101, *range(200, 1000)]

    async def play(peer: Peer) -> None:
        while request := await peer.read_request():
            await peer.send(b"HTTP/1.1 %s X\r\nContent-Length: 0\r\n\r\n" % request[6:9])

    async with raw_server(play) as server, opened(server.base_url) as delivery:
        outcomes = [await delivery.deliver(make_record(url=f"/{status}"), deadline_seconds=1.0) for status in statuses]

    assert [Answer(status) for status in statuses] == outcomes


@pytest.mark.row(68)
@pytest.mark.promise("P6")
async def test_interim_statuses() -> None:
    """An interim answer of any status and then nothing is no answer: it ends at the deadline (P6, row 68)."""
    statuses = [100, *range(102, 200)]

    async def play(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 %b X\r\n\r\n" % (await peer.read_request())[6:9])
        await peer.wait_for_end()

    async with raw_server(play) as server, opened(server.base_url) as delivery:
        records = [make_record(url=f"/{status}") for status in statuses]
        outcomes = await asyncio.gather(*(delivery.deliver(record, deadline_seconds=1.0) for record in records))

    assert [NoAnswer(FailureReason.DEADLINE, "No complete answer within 2 seconds.")] * 99 == outcomes


@pytest.mark.row(70, 71)
async def test_retry_after() -> None:
    """Retry-After is passed on as it was sent."""
    answer = b"HTTP/1.1 503 X\r\nRetry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\nContent-Length: 0\r\n\r\n"

    assert Answer(503, retry_after="Wed, 21 Oct 2026 07:28:00 GMT") == await deliver_to(answering(answer))


async def test_detail_is_the_start_of_the_body() -> None:
    """An answer that is no success keeps what the worker said."""
    answer = b"HTTP/1.1 500 X\r\nContent-Length: 12\r\n\r\n"

    assert Answer(500, detail="No such user") == await deliver_to(answering(answer, b"No su", 0.01, b"ch user"))


@pytest.mark.row(70)
@pytest.mark.parametrize(
    ("keys", "body", "detail"),
    [(KEYS, b"", SIGNATURE_REFUSED), (KEYS, b"Go away", "Go away"), (None, b"", "")],
    ids=["signed", "with a word", "unsigned"],
)
async def test_forbidden(keys: signing.KeyRing | None, body: bytes, detail: str) -> None:
    """A 403 without a word to a signed request is most likely our own middleware's, and says so in the log of attempts."""
    answer = b"HTTP/1.1 403 X\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    assert Answer(403, detail=detail) == await deliver_to(answering(answer), keys=keys)


async def test_has_answered() -> None:
    """The target has answered once any complete head came, be it no success."""
    async with raw_server(answering(TEAPOT)) as server, opened(server.base_url) as delivery:
        before = delivery.has_answered
        await delivery.deliver(RECORD, deadline_seconds=1.0)

        assert (False, True) == (before, delivery.has_answered)


@pytest.mark.row(72)
async def test_refused_connection() -> None:
    """A refused connection is unreachable: nothing was sent, and the target has not answered (row 72)."""
    async with raw_server(answering(OK)) as server:
        pass
    async with opened(server.base_url) as delivery:
        outcome = await delivery.deliver(RECORD, deadline_seconds=1.0)

        assert FailureReason.UNREACHABLE is reason_of(outcome)
        assert not delivery.has_answered


def answer_dns(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Awaitable[Any]]) -> list[str]:
    """Let `answer` take the place of the system's resolver; return the hosts that are asked for."""
    asked: list[str] = []

    async def getaddrinfo(self: object, host: str, *args: object, **kwargs: object) -> Any:
        asked.append(host)
        return await answer()

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return asked


async def never() -> None:
    """Know no answer, and do not say so."""
    await asyncio.sleep(60)


@pytest.mark.row(73)
@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        socket.gaierror(socket.EAI_NODATA, "No address associated with hostname"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure in name resolution"),
        UnicodeError("label too long"),
    ],
)
async def test_unknown_host(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A host that DNS does not know, or not now, is unreachable, which is no execution, and the detail says why (NXDOMAIN, SERVFAIL)."""

    async def fail() -> None:
        raise error

    answer_dns(monkeypatch, fail)
    async with opened("http://worker.invalid") as delivery:
        outcome = await delivery.deliver(RECORD, deadline_seconds=1.0)

    assert FailureReason.UNREACHABLE is reason_of(outcome)
    assert isinstance(outcome, NoAnswer)
    assert not outcome.was_executed
    assert str(error.args[-1]) in outcome.detail


@pytest.mark.row(73)
@pytest.mark.slow
@pytest.mark.parametrize(("deadline_seconds", "limit_seconds"), [(1.0, 2.0), (1000.0, 5.0)])
async def test_slow_dns(monkeypatch: pytest.MonkeyPatch, deadline_seconds: float, limit_seconds: float) -> None:
    """Connecting is given up after 5 seconds, DNS included, or after deadline and grace if that is less (row 73)."""
    answer_dns(monkeypatch, never)
    clock = FastClock()
    async with opened("http://worker.invalid") as delivery:
        start = clock.monotonic()
        outcome = await delivery.deliver(RECORD, deadline_seconds=deadline_seconds)

        assert NoAnswer(FailureReason.UNREACHABLE, f"No connection within {limit_seconds:g} seconds.") == outcome
        assert limit_seconds <= clock.monotonic() - start < limit_seconds + 3.0


@pytest.mark.row(73)
@pytest.mark.slow
async def test_slow_dns_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many wait for DNS, one question is under way: each takes one of the few threads that the application needs, too."""
    asked = answer_dns(monkeypatch, never)
    async with opened("http://worker.invalid") as delivery:
        for _ in range(2):
            outcomes = await asyncio.gather(*(delivery.deliver(RECORD, deadline_seconds=1.0) for _ in range(50)))

            assert {FailureReason.UNREACHABLE} == {reason_of(outcome) for outcome in outcomes}
    assert ["worker.invalid"] == asked


@pytest.mark.row(73)
async def test_dns_is_asked_for_every_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """What DNS says is not kept: a target that has moved is found at once (H14)."""
    async with raw_server(answering(OK, then_close=True)) as server:
        host, port = "127.0.0.1", int(server.base_url.rpartition(":")[2])

        async def answer() -> Any:
            await asyncio.sleep(0.001)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

        asked = answer_dns(monkeypatch, answer)
        async with opened("http://worker.invalid") as delivery:
            outcomes = [await delivery.deliver(RECORD, deadline_seconds=1.0)]
            await asyncio.sleep(0.01)
            host = "127.0.0.2"
            outcomes.append(await delivery.deliver(RECORD, deadline_seconds=1.0))

    assert Answer(200) == outcomes[0]
    assert FailureReason.UNREACHABLE is reason_of(outcomes[1])
    assert ["worker.invalid"] * 2 == asked


# --- the deadline ------------------------------------------------------------------------------------------------------


@pytest.mark.row(83)
@pytest.mark.promise("P7")
async def test_deadline() -> None:
    """A worker that never answers is given up at deadline and grace, and its connection ends then (P7, row 83)."""
    ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    clock = FastClock()

    async def play(peer: Peer) -> None:
        await peer.read_request()
        await peer.wait_for_end()
        ended.set_result(clock.monotonic())

    async with raw_server(play) as server, opened(server.base_url) as delivery:
        start = clock.monotonic()
        outcome = await delivery.deliver(RECORD, deadline_seconds=1.0)

        assert NoAnswer(FailureReason.DEADLINE, "No complete answer within 2 seconds.") == outcome
        assert 2.0 <= await ended - start < 5.0


@pytest.mark.promise("P7")
async def test_answer_in_the_grace() -> None:
    """A 200 after the deadline, but within the grace, is a success (P7)."""
    assert Answer(200) == await deliver_to(answering(0.15, OK))


@pytest.mark.promise("P7")
@pytest.mark.slow
async def test_deadline_counts_from_the_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time it takes to connect is not taken from the handler's (P7)."""
    original = asyncio.base_events.BaseEventLoop.create_connection

    async def create_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0.15)
        return await original(self, *args, **kwargs)

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "create_connection", create_connection)

    assert Answer(200) == await deliver_to(answering(0.15, OK))


async def play_stall(peer: Peer) -> None:
    """Answer in time, and then block the event loop until long after the deadline."""
    await peer.read_request()
    peer.writer.write(OK)
    time.sleep(0.3)


@pytest.mark.slow
async def test_naive_timeout_loses_an_answer_that_came_in_time() -> None:
    """Control of the next test: aiohttp's own timeout fails although the answer was there (fact 4)."""
    async with raw_server(play_stall) as server:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.2)) as session:
            with pytest.raises(asyncio.TimeoutError):
                await session.post(server.base_url)


@pytest.mark.promise("P8")
@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 10_000, 100_000])
async def test_answer_that_came_in_time_counts_however_late_it_is_seen(size: int) -> None:
    """An answer that arrived in time counts, to its last byte, although the loop was blocked past the deadline (P8, fact 4, H3)."""
    unsent = []

    async def play(peer: Peer) -> None:
        await peer.read_request()
        peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, bytes(size)))
        unsent.append(peer.writer.transport.get_write_buffer_size())
        time.sleep(0.3)
        await peer.wait_for_end()

    assert Answer(200) == await deliver_to(play)
    assert [0] == unsent


def test_naive_timeout_rounds_up() -> None:
    """Control of the next test: above 5 seconds aiohttp's timeouts end at a whole second of the loop (fact 4, H2)."""
    assert 131.0 == aiohttp.helpers.calculate_timeout_when(100.25, 30.0, 5)


@pytest.mark.promise("P7")
async def test_deadline_does_not_round_up() -> None:
    """The deadline is set to the microsecond, also above 5 seconds (H2)."""
    moments: list[float] = []

    class NotingClock(SystemClock):
        def monotonic(self) -> float:
            return 100.25

        def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
            moments.append(when)
            return super().call_at(super().monotonic() + 60.0, callback)

    async with raw_server(answering(OK)) as server, opened(server.base_url) as delivery:
        await delivery.open(NotingClock())
        await delivery.deliver(RECORD, deadline_seconds=30.0)

    assert [105.25, 131.25] == moments


class PoolClock(SystemClock):
    """A clock that stands still, whose timers are fired by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Callable[[], object]] = []

    def monotonic(self) -> float:
        """Return the time that was set."""
        return self.now

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Keep the callback."""
        self.timers.append(callback)
        return super().call_at(super().monotonic() + 60.0, callback)

    def fire(self) -> None:
        """Call the last timer's callback."""
        self.timers[-1]()


# --- connections ---------------------------------------------------------------------------------------------------------


async def test_connections_are_kept() -> None:
    """Deliveries one after the other share a connection; those at the same time do not."""
    async with raw_server(answering(0.01, OK)) as server, opened(server.base_url) as delivery:
        for _ in range(5):
            await delivery.deliver(RECORD, deadline_seconds=1.0)
        one = server.connections
        await asyncio.gather(*(delivery.deliver(RECORD, deadline_seconds=1.0) for _ in range(3)))

        assert (1, 3) == (one, server.connections)


@pytest.mark.parametrize(("idle_seconds", "connections"), [(3.9, 1), (4.1, 2)])
async def test_idle_connections_are_not_used(monkeypatch: pytest.MonkeyPatch, idle_seconds: float, connections: int) -> None:
    """A connection that was idle for more than 4 seconds is not used again: many servers close theirs after 5 (H1)."""
    clock = PoolClock()
    async with raw_server(answering(OK)) as server, opened(server.base_url) as delivery:
        monkeypatch.setattr(delivery._pool, "_clock", clock)
        await delivery.deliver(RECORD, deadline_seconds=1.0)
        clock.now = idle_seconds
        await delivery.deliver(RECORD, deadline_seconds=1.0)

    assert connections == server.connections


@pytest.mark.parametrize(("idle_seconds", "kept"), [([0.0, 3.9], [True, True]), ([4.0, 1.0], [False, True]), ([5.0, 4.0], [False, False])])
async def test_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch, idle_seconds: list[float], kept: list[bool]) -> None:
    """Connections that nobody needs are closed after 4 seconds, and those younger later."""
    clock = PoolClock()
    async with raw_server(answering(0.01, OK)) as server, opened(server.base_url) as delivery:
        monkeypatch.setattr(delivery._pool, "_clock", clock)
        await asyncio.gather(*(delivery.deliver(RECORD, deadline_seconds=1.0) for _ in idle_seconds))
        connections = list(delivery._pool._idle)
        for connection, seconds in zip(connections, idle_seconds, strict=True):
            connection.idle_since = 10.0 - seconds
        clock.now = 10.0
        clock.fire()

        assert kept == [connection.is_usable for connection in connections]
        assert any(kept) == (len(clock.timers) == 2)


async def play_once(peer: Peer) -> None:
    """Answer the first request of a connection, read the second, and close."""
    await peer.read_request()
    await peer.send(OK)
    await peer.read_request()


@pytest.mark.parametrize(("method", "requests"), [("PUT", 3), ("POST", 2)])
async def test_naive_session_on_a_kept_connection(method: str, requests: int) -> None:
    """Control of the next test: aiohttp silently sends PUT twice, and fails for POST (fact 6)."""
    async with raw_server(play_once) as server, aiohttp.ClientSession() as session:
        await session.request(method, server.base_url)
        with contextlib.suppress(aiohttp.ServerDisconnectedError):
            await session.request(method, server.base_url)

    assert requests == len(server.requests)


@pytest.mark.parametrize("method", ["POST", "PUT", "GET", "HEAD", "DELETE"])
async def test_stale_connection(method: str) -> None:
    """A kept connection that ends before a byte of an answer is stale, and nothing is sent again (fact 6, H1)."""
    record = make_record(method=method, payload=None)
    async with raw_server(play_once) as server, opened(server.base_url) as delivery:
        first = await delivery.deliver(record, deadline_seconds=1.0)
        second = await delivery.deliver(record, deadline_seconds=1.0)

    assert (Answer(200), FailureReason.STALE) == (first, reason_of(second))
    assert 2 == len(server.requests)


async def test_stale_connection_that_is_reset() -> None:
    """A kept connection that is reset is stale as well."""

    async def play(peer: Peer) -> None:
        await play_once(peer)
        peer.reset()

    async with raw_server(play) as server, opened(server.base_url) as delivery:
        await delivery.deliver(RECORD, deadline_seconds=1.0)

        assert FailureReason.STALE is reason_of(await delivery.deliver(RECORD, deadline_seconds=1.0))


@pytest.mark.parametrize("start", [b"H", b"HTTP/1.1 200 OK\r\nConte", b"HTTP/1.1 103 X\r\n\r\n"])
async def test_kept_connection_that_ends_within_the_answer(start: bytes) -> None:
    """A kept connection that ends after the first byte of an answer is not stale: the request had come."""

    async def play(peer: Peer) -> None:
        await play_once(peer)
        await peer.send(start)

    async with raw_server(play) as server, opened(server.base_url) as delivery:
        await delivery.deliver(RECORD, deadline_seconds=1.0)

        assert FailureReason.DISCONNECTED is reason_of(await delivery.deliver(RECORD, deadline_seconds=1.0))


@pytest.mark.row(72)
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_new_connection_that_ends(method: str) -> None:
    """A new connection that ends after the request was sent leaves open whether the handler ran (row 72)."""
    async with raw_server(answering(then_close=True)) as server, opened(server.base_url) as delivery:
        outcome = await delivery.deliver(make_record(method=method), deadline_seconds=1.0)

    assert FailureReason.DISCONNECTED is reason_of(outcome)
    assert 1 == len(server.requests)


async def test_new_connection_after_a_stale_one() -> None:
    """After a stale connection the next attempt has a new one."""
    async with raw_server(play_once) as server, opened(server.base_url) as delivery:
        outcomes = [await delivery.deliver(RECORD, deadline_seconds=1.0) for _ in range(3)]

    assert Answer(200) == outcomes[2]
    assert 2 == server.connections


async def test_connection_that_is_taken_at_once() -> None:
    """A connection that the next attempt takes before the last one has gone on belongs to the next."""
    steps = (OK_HEAD + b"o", 0.01, b"k")
    async with raw_server(answering(*steps)) as server, opened(server.base_url) as delivery:
        attempts = []
        for _ in range(100):
            # One in each turn of the loop: one of them comes between the end of an answer and the task that awaits it.
            attempts.append(asyncio.ensure_future(delivery.deliver(RECORD, deadline_seconds=1.0)))
            await asyncio.sleep(0.0005 if len(attempts) % 10 == 0 else 0)
        outcomes = await asyncio.gather(*attempts)

    assert {Answer(200)} == set(outcomes)
    assert server.connections < 100


async def test_connection_that_is_lost_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new connection that is lost before the first byte is unreachable: nothing was sent."""
    original = asyncio.base_events.BaseEventLoop.create_connection

    async def create_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
        transport, protocol = await original(self, *args, **kwargs)
        transport.abort()
        await asyncio.sleep(0.01)
        return transport, protocol

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "create_connection", create_connection)

    assert FailureReason.UNREACHABLE is reason_of(await deliver_to(answering(OK)))


async def test_unix_socket(tmp_path: Path) -> None:
    """A target may listen on a UNIX socket."""
    path = str(tmp_path / "socket")
    async with raw_server(answering(OK), unix_socket=path) as server:
        async with opened("http://worker.example/prefix", unix_socket=path) as delivery:
            outcomes = [await delivery.deliver(RECORD, deadline_seconds=1.0) for _ in range(2)]

    assert [Answer(200)] * 2 == outcomes
    assert 1 == server.connections
    assert server.requests[0].startswith(b"POST /prefix/worker HTTP/1.1\r\nHost: worker.example\r\n")


async def test_no_unix_socket(tmp_path: Path) -> None:
    """A UNIX socket that nobody listens on is unreachable."""
    async with opened("http://localhost", unix_socket=str(tmp_path / "socket")) as delivery:
        assert FailureReason.UNREACHABLE is reason_of(await delivery.deliver(RECORD, deadline_seconds=1.0))


async def test_tls(tmp_path: Path) -> None:
    """A certificate of one's own is trusted by a context of one's own (H16)."""
    server_context, client_context = self_signed(tmp_path)
    async with raw_server(answering(OK), tls=server_context) as server:
        async with opened(server.base_url, ssl=client_context) as delivery:
            outcomes = [await delivery.deliver(RECORD, deadline_seconds=1.0) for _ in range(2)]

    assert [Answer(200)] * 2 == outcomes
    assert 1 == server.connections


@pytest.mark.row(72)
async def test_tls_is_verified(tmp_path: Path) -> None:
    """A certificate that nobody vouches for is unreachable, and the request is not sent (H16)."""
    server_context, _ = self_signed(tmp_path)
    async with raw_server(answering(OK), tls=server_context) as server, opened(server.base_url) as delivery:
        outcome = await delivery.deliver(RECORD, deadline_seconds=1.0)

    assert FailureReason.UNREACHABLE is reason_of(outcome)
    assert [] == server.requests


async def test_tls_stale_connection(tmp_path: Path) -> None:
    """A kept TLS connection that ends is stale, too."""
    server_context, client_context = self_signed(tmp_path)
    async with raw_server(play_once, tls=server_context) as server:
        async with opened(server.base_url, ssl=client_context) as delivery:
            await delivery.deliver(RECORD, deadline_seconds=1.0)

            assert FailureReason.STALE is reason_of(await delivery.deliver(RECORD, deadline_seconds=1.0))


# --- opening, closing, cancelling ------------------------------------------------------------------------------------------


async def test_close_twice() -> None:
    """Closing twice, or before opening, is fine; a closed delivery delivers nothing."""
    delivery = HTTPDelivery("http://localhost")
    await delivery.aclose()
    await delivery.open(SystemClock())
    await delivery.aclose()
    await delivery.aclose()

    assert FailureReason.ERROR is reason_of(await delivery.deliver(RECORD, deadline_seconds=1.0))


async def test_open_again() -> None:
    """A delivery that is opened again leaves nothing of the first time behind, and works."""
    async with raw_server(answering(OK)) as server, opened(server.base_url) as delivery:
        await delivery.deliver(RECORD, deadline_seconds=1.0)
        await delivery.open(FastClock())

        assert Answer(200) == await delivery.deliver(RECORD, deadline_seconds=1.0)


async def test_not_open() -> None:
    """A delivery that is not open says so; it does not raise."""
    outcome = await HTTPDelivery("http://localhost").deliver(RECORD, deadline_seconds=1.0)

    assert FailureReason.ERROR is reason_of(outcome)
    assert outcome.detail.startswith("The delivery is not open; call open")


async def test_close_during_a_delivery() -> None:
    """Closing ends what is in flight as cancelled: we gave it up, the worker did nothing wrong."""
    async with raw_server(answering(60.0)) as server, opened(server.base_url) as delivery:
        attempts = [asyncio.ensure_future(delivery.deliver(RECORD, deadline_seconds=9.0)) for _ in range(2)]
        while len(server.requests) < 2:
            await asyncio.sleep(0)
        await delivery.aclose()

        assert [NoAnswer(FailureReason.CANCELLED, "The delivery was closed.")] * 2 == await asyncio.gather(*attempts)


async def test_close_while_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that gets its connection after the close ends as cancelled, and the connection ends as well."""
    original = asyncio.base_events.BaseEventLoop.create_connection
    connecting = asyncio.Event()
    transports: list[asyncio.Transport] = []

    async def create_connection(self: Any, *args: Any, **kwargs: Any) -> Any:
        transport, protocol = await original(self, *args, **kwargs)
        transports.append(transport)
        connecting.set()
        await asyncio.sleep(0.01)
        return transport, protocol

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "create_connection", create_connection)
    async with raw_server(answering(OK)) as server, opened(server.base_url) as delivery:
        attempt = asyncio.ensure_future(delivery.deliver(RECORD, deadline_seconds=9.0))
        await connecting.wait()
        await delivery.aclose()

        assert NoAnswer(FailureReason.CANCELLED, "The delivery was closed.") == await attempt
        assert [True] == [transport.is_closing() for transport in transports]


@pytest.mark.parametrize("steps", [(60.0,), (OK_HEAD, 60.0)])
async def test_cancellation(steps: tuple[bytes | float, ...]) -> None:
    """A cancelled delivery raises CancelledError and ends its connection, before the answer and within it."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def play(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(*(step for step in steps if isinstance(step, bytes)))
        await peer.wait_for_end()
        ended.set_result(None)

    async with raw_server(play) as server, opened(server.base_url) as delivery:
        attempt = asyncio.ensure_future(delivery.deliver(RECORD, deadline_seconds=9.0))
        while not server.requests:
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        await ended


async def test_cancellation_while_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery that is cancelled before it has a connection raises CancelledError."""

    answer_dns(monkeypatch, never)
    async with opened("http://worker.invalid") as delivery:
        attempt = asyncio.ensure_future(delivery.deliver(RECORD, deadline_seconds=9.0))
        await asyncio.sleep(0.01)
        attempt.cancel()

        with pytest.raises(asyncio.CancelledError):
            await attempt


async def test_unexpected_error() -> None:
    """What must not happen, such as a header with a line break, is an error that shows neither header nor payload."""
    record = make_record(headers=(("X-Own", "canary\r\nX-Evil: 1"),), payload=b"canary")
    async with raw_server(answering(OK)) as server, opened(server.base_url, keys=KEYS) as delivery:
        outcome = await delivery.deliver(record, deadline_seconds=1.0)

        assert FailureReason.ERROR is reason_of(outcome)
        assert "canary" not in outcome.detail
        assert Answer(200) == await delivery.deliver(RECORD, deadline_seconds=1.0)
    assert 1 == len(server.requests)


async def test_error_before_the_attempt() -> None:
    """An error in making the request is an error, not an exception."""
    outcome = await deliver_to(answering(OK), make_record(name="näme"), keys=KEYS)

    assert FailureReason.ERROR is reason_of(outcome)
    assert "näme" not in outcome.detail


@pytest.mark.skipif(sys.platform == "win32", reason="there is no uvloop for Windows")
def test_uvloop() -> None:
    """Deliveries work on uvloop's loop as on asyncio's."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcomes = [runner.run(deliver_to(play)) for play in (answering(OK), answering(TEAPOT), answering(then_close=True))]

    assert [Answer(200), Answer(418)] == outcomes[:2]
    assert FailureReason.DISCONNECTED is reason_of(outcomes[2])


async def test_real_worker() -> None:
    """A worker that is an aiohttp application is served over few connections, 200 tasks by 20 at once."""
    seen: list[bytes] = []

    async def worker(request: web.Request) -> web.Response:
        seen.append(await request.read())
        return web.Response(text="done")

    app = web.Application()
    app.router.add_post("/worker", worker)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with opened(f"http://127.0.0.1:{port}", keys=KEYS) as delivery:
        records = iter([make_record(payload=b"%d" % i) for i in range(200)])

        async def loop() -> set[Answer | NoAnswer]:
            return {await delivery.deliver(record, deadline_seconds=30.0) for record in records}

        outcomes = await asyncio.gather(*(loop() for _ in range(20)))
    await runner.cleanup()

    assert {Answer(200)} == set().union(*outcomes)
    assert {b"%d" % i for i in range(200)} == set(seen)
