"""ASGIDelivery: delivers to an ASGI application in this process, without a socket.

Theory of operation. The request is the one that HTTPDelivery would write, as a scope; it is not signed. Instead an object
in the scope says who called: no request from the network can place one there. Each call runs in a task of its own, whatever
the application raises ends there and nowhere else (RELIABILITY A11). `deliver` waits for one future, the result of the
exchange: `send` sets it once the answer is complete, the timer sets it when the time is over. So an application that
never returns, or that swallows its cancellation, holds up nobody. What it still does then is told that nobody listens:
`receive` gives ``http.disconnect`` and `send` raises OSError.

`send` and `receive` let the event loop run when they are called again and again: an application that calls them in a loop
would keep everybody waiting, and the deadline too.

Source: the ASGI specification, HTTP, version 2.4.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote

import attrs
from anyio.lowlevel import checkpoint

from aiotaskqueue._headers import TaskHeaders
from aiotaskqueue._masking import show_place
from aiotaskqueue.delivery._base import DETAIL_BYTES, GRACE_SECONDS, MAX_ANSWER_BYTES, Answer, Delivery, FailureReason, NoAnswer
from aiotaskqueue.delivery._base_url import parse_base_url
from aiotaskqueue.delivery._detail import describe, safe_text
from aiotaskqueue.delivery._request import RequestWriter
from aiotaskqueue.errors import Error, NotStartedError

if TYPE_CHECKING:
    from aiotaskqueue._clock import Clock
    from aiotaskqueue._record import TaskRecord

logger = logging.getLogger(__name__)

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

# Where in a scope an Attempt stands.
ATTEMPT = "aiotaskqueue.attempt"

# An answer mostly has two parts; after so many the event loop gets a turn.
SENDS_IN_A_TURN = 16

# By the time we close, nothing is delivered any more. Who has answered may still be closing what it used (FastAPI ends its
# dependencies after the answer); who has not has outlived its attempt. Both are part of the second that `aclose` may take.
FINISH_SECONDS = 0.2
SHUTDOWN_SECONDS = 0.1


@attrs.frozen
class Attempt:
    """Says that a delivery in this process made the request, and for which task."""

    headers: TaskHeaders = attrs.field(repr=False)
    clock: Clock


class ASGIDelivery(Delivery):
    """Carries tasks to an ASGI application.

    The application is only called, its lifespan is not run: who embeds the service in it, or serves it elsewhere, does that.
    A call whose attempt is given up (at its deadline, or since the service closes) is cancelled: its task may soon be tried
    again, and the two must not run side by side.

    Args:
        app: The application.
        base_url: Gives the Host header, the scheme, and the root path, which goes before every task's URL.
        state: What the application's lifespan has yielded; each call gets a copy.
        max_answer_bytes: A larger body is a failure, in bytes.

    Raises:
        ConfigError: `base_url` is none.
    """

    # Nobody has to listen first.
    has_answered = True

    def __init__(
        self,
        app: ASGIApp,
        base_url: str = "http://localhost",
        *,
        state: Mapping[str, Any] | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self._app = app
        self._url = parse_base_url(base_url)
        self._prefix = self._url.raw_path.rstrip("/")
        self._state = {} if state is None else state
        self._max_answer_bytes = max_answer_bytes
        self._writer = RequestWriter(self._url, None)
        self._clock: Clock | None = None
        self._exchanges: dict[asyncio.Task[None], _Exchange] = {}

    async def open(self, clock: Clock) -> None:
        """Get ready, in the running event loop."""
        self._clock = clock

    async def aclose(self) -> None:
        """End what runs: attempts in flight as cancelled; twice is fine."""
        self._clock = None
        for call, exchange in self._exchanges.items():
            if not exchange.is_complete:
                exchange.give_up(NoAnswer(FailureReason.CANCELLED, "The delivery was closed."))
                call.cancel()
        try:
            await self._wait_for_calls(FINISH_SECONDS)
        finally:
            for call in self._exchanges:
                call.cancel()
        await self._wait_for_calls(SHUTDOWN_SECONDS)
        for exchange in self._exchanges.values():
            logger.warning("The handler of task %s runs on: it does not let itself be cancelled.", exchange.name)

    async def deliver(self, record: TaskRecord, *, deadline_seconds: float) -> Answer | NoAnswer:
        """Make one attempt and say how it ended (see Delivery.deliver)."""
        try:
            clock = self._opened()
            scope, body = self._write(record, deadline_seconds, clock)
            limit_seconds = deadline_seconds + GRACE_SECONDS
            until = clock.monotonic() + limit_seconds
            exchange = _Exchange(record.name, body, clock, until, limit_seconds, self._max_answer_bytes)
            async with clock.outside(until=until):
                return await self._exchange(exchange, scope, clock)
        except Exception as exc:
            # What an unexpected error says may show a header or the payload (RELIABILITY P24).
            return NoAnswer(FailureReason.ERROR, safe_text(str(exc) if isinstance(exc, Error) else show_place(exc)))

    async def _exchange(self, exchange: _Exchange, scope: Scope, clock: Clock) -> Answer | NoAnswer:
        # Outside of any group: a group would wait for an application that never ends (see above).
        call = asyncio.create_task(exchange.run(self._app, scope), name="aiotaskqueue delivery")
        self._exchanges[call] = exchange
        call.add_done_callback(self._exchanges.pop)
        timer = clock.call_at(exchange.until, exchange.expire)
        try:
            return await exchange.result
        finally:
            timer.cancel()
            if not exchange.is_complete:
                exchange.give_up(NoAnswer(FailureReason.CANCELLED))
                call.cancel()

    async def _wait_for_calls(self, seconds: float) -> None:
        if self._exchanges:
            # Real time, whatever clock the service has.
            await asyncio.wait(self._exchanges, timeout=seconds)

    def _opened(self) -> Clock:
        if self._clock is None:
            raise NotStartedError("The delivery is not open; call open before deliver, and aclose after the last.")
        return self._clock

    def _write(self, record: TaskRecord, deadline_seconds: float, clock: Clock) -> tuple[Scope, bytes]:
        """Return the scope and the body of the request: what a server would make of the one that HTTPDelivery writes."""
        path, _, query = (self._prefix + record.url).partition("?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": record.method,
            "scheme": self._url.scheme,
            "path": unquote(path),
            "raw_path": path.encode("ascii"),
            "query_string": query.encode("ascii"),
            "root_path": unquote(self._prefix),
            "headers": self._writer.write_fields(record, deadline_seconds=deadline_seconds),
            "client": ("127.0.0.1", 0),
            "server": (self._url.host, self._url.port),
            "state": dict(self._state),
            ATTEMPT: Attempt(TaskHeaders.of(record, deadline_seconds=deadline_seconds), clock),
        }, record.payload or b""


class _Exchange:
    """One request and its answer."""

    def __init__(self, name: str, body: bytes, clock: Clock, until: float, limit_seconds: float, max_answer_bytes: int) -> None:
        self.name = name
        self.until = until
        self.result: asyncio.Future[Answer | NoAnswer] = asyncio.get_running_loop().create_future()
        """How it ended; never an exception."""
        self.is_complete = False
        """Whether the answer came to its end."""
        self._body: bytes | None = body
        self._clock = clock
        self._limit_seconds = limit_seconds
        self._max_answer_bytes = max_answer_bytes
        self._is_over = asyncio.Event()
        self._status: int | None = None
        self._retry_after: str | None = None
        self._location: str | None = None
        self._sends = 0
        self._size = 0
        self._start = b""

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Call the application; never raises, or it would stop the event loop (KeyboardInterrupt, SystemExit)."""
        try:
            await app(scope, self.receive, self.send)
        except BaseException as exc:
            is_consequence = self._is_over.is_set() and (not self.is_complete or isinstance(exc, asyncio.CancelledError))
            self._end_without(f"The application raised {show_place(exc)}.")
            if not is_consequence:
                logger.error("The application raised an exception in task %s.", self.name, exc_info=exc)
        else:
            self._end_without("The application returned without an answer.")
        self._is_over.set()

    def expire(self) -> None:
        """End the exchange, whose time is over."""
        self.give_up(NoAnswer(FailureReason.DEADLINE, f"No complete answer within {self._limit_seconds:g} seconds."))

    def give_up(self, result: Answer | NoAnswer) -> None:
        """End the exchange with `result` if it has not ended; the application is told."""
        if not self.result.done():
            self.result.set_result(result)
        self._is_over.set()

    async def receive(self) -> Message:
        """Give the application the request, then, when nobody listens any more, the end of the connection."""
        if self._body is not None and not self._is_over.is_set():
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await checkpoint()
        await self._is_over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take a part of the answer.

        Raises:
            OSError: Nobody listens any more.
        """
        if self.is_complete:
            # A complete answer counts, whatever comes behind it.
            return
        if self._is_over.is_set():
            raise OSError("The attempt was given up; nobody waits for its answer.")
        try:
            self._take(message)
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            self._fail(FailureReason.MALFORMED, f"The application sent what is no answer: {exc}.")
        self._sends += 1
        if not self._is_over.is_set() and not self._sends % SENDS_IN_A_TURN:
            await checkpoint()

    def _take(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start" and self._status is None:
            self._status = _check_status(message["status"])
            headers = {memoryview(name).tobytes().lower(): memoryview(value).tobytes() for name, value in message.get("headers", ())}
            self._retry_after, self._location = (_as_text(headers.get(name)) for name in (b"retry-after", b"location"))
        elif kind == "http.response.body" and self._status is not None:
            self._take_body(self._status, message.get("body", b""), bool(message.get("more_body", False)))
        else:
            raise ValueError(f"{kind!r:.80} out of order")

    def _take_body(self, status: int, body: bytes, is_to_follow: bool) -> None:
        self._size += memoryview(body).nbytes
        if self._size > self._max_answer_bytes:
            self._fail(FailureReason.TOO_LARGE, f"The body is larger than {self._max_answer_bytes} bytes.")
            return
        if status != 200:
            self._start += bytes(body[: DETAIL_BYTES - len(self._start)])
        if is_to_follow:
            return
        if self._clock.monotonic() > self.until:
            # The event loop was blocked: the timer is as late as the answer (RELIABILITY P9).
            self.expire()
            return
        self.is_complete = True
        self.give_up(describe(status, self._retry_after, self._location, self._start))

    def _end_without(self, reason: str) -> None:
        """End the exchange, unless it has ended, as a server does whose application has: with a 500, or in the middle."""
        if self._status is None:
            self.give_up(Answer(500, detail=safe_text(reason)))
        else:
            self.give_up(NoAnswer(FailureReason.TRUNCATED, safe_text(reason)))

    def _fail(self, reason: FailureReason, detail: str) -> None:
        self.give_up(NoAnswer(reason, safe_text(detail)))


def _check_status(status: object) -> int:
    """Return the status of a final answer. Source: RFC 9110 section 15."""
    if not isinstance(status, int) or not 200 <= status <= 999:
        raise ValueError(f"the status {status!r:.80}")
    return int(status)


def _as_text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="surrogateescape")
