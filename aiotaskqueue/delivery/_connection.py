"""What HTTPDelivery must know about its connections, and aiohttp does not say.

Theory of operation. An attempt needs four answers: when the first byte was sent (its deadline counts from there, and
what fails earlier was no execution), whether the connection was used before, whether a byte has been answered since
(a reused connection that dies before that was most likely closed before we wrote: RELIABILITY H1), and how the
connection ended. Three pieces give them, by public means of aiohttp and asyncio only:

* `Attempt` is the client middleware of one request. It gives itself to the request, and it turns the two errors after
  which aiohttp sends an idempotent request once more into one after which it does not.
* `SendingRequest` (the session's `request_class`) tells its attempt when aiohttp has a connection and is about to write.
* `Tap` is a protocol between the transport and aiohttp's own, put there once per connection. It sees every byte that
  comes in. Bytes that come while nobody asked belong to no request: it closes the connection, or the next task on it
  would be answered by them (RELIABILITY row 82, P6). And it passes on a head only when that is whole and good.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import ClientOSError, ClientRequest, ServerDisconnectedError
from aiohttp.http import HttpProcessingError

from aiotaskqueue.delivery._head import MalformedError, split_head

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from aiohttp import ClientHandlerType, ClientResponse, StreamReader
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection

    from aiotaskqueue._clock import Clock, Cutoff


class SentOnceError(Exception):
    """Wraps the error of a connection (its `__cause__`), so that aiohttp does not send the request a second time."""


class Attempt:
    """One request on its way, and the client middleware that follows it.

    Args:
        headers: What the request is to say, besides what aiohttp says for every request.
        clock: Tells when the first byte is sent.
        cutoff: Ends the attempt; set for connecting, moved when the first byte is sent.
        limit_seconds: How long the answer may take from the first byte.
    """

    __slots__ = ("_clock", "_cutoff", "_headers", "_limit_seconds", "_tap", "is_reused", "was_sent")

    def __init__(self, headers: list[tuple[str, str]], clock: Clock, cutoff: Cutoff, limit_seconds: float) -> None:
        self._headers = headers
        self._clock = clock
        self._cutoff = cutoff
        self._limit_seconds = limit_seconds
        self._tap: Tap | None = None
        self.is_reused = False
        self.was_sent = False

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Send `request` once."""
        assert isinstance(request, SendingRequest)
        request.attempt = self
        # Given to session.request, they would be copied twice, header by header (8 us); and this replaces aiohttp's own.
        request.headers.update(self._headers)
        # Whatever the task says: what is not compressed needs no decompression (RELIABILITY H6).
        request.headers["Accept-Encoding"] = "identity"
        try:
            return await handler(request)
        except (ClientOSError, ServerDisconnectedError) as exc:
            raise SentOnceError from exc

    def begin(self, connection: Connection) -> None:
        """Take `connection` over: the next thing that happens to it is the first byte."""
        transport, protocol = connection.transport, connection.protocol
        if transport is None or protocol is None:
            raise ServerDisconnectedError
        tap = transport.get_protocol()
        self.is_reused = isinstance(tap, Tap)
        if protocol.should_close:
            # Something came after the previous answer, in the turn in which that was read.
            raise ServerDisconnectedError
        if not isinstance(tap, Tap):
            tap = Tap(transport, protocol)
        tap.begin(self)
        self._tap = tap
        self.was_sent = True
        self._cutoff.reschedule(self._clock.monotonic() + self._limit_seconds)

    def watch(self, content: StreamReader) -> None:
        """Make sure that whoever reads `content` gets an error when the connection ends first.

        aiohttp leaves the reader waiting for ever when a malformed chunk comes after the head has been handed out.
        """
        assert self._tap is not None
        self._tap.watch(content)

    def end(self) -> None:
        """Leave the connection, which was read to the end, to the next attempt; it may have it already."""
        assert self._tap is not None
        if self._tap.user is self:
            self._tap.user = None

    def abort(self) -> None:
        """End the connection at once, unless it was left: aiohttp's close waits for unsent bytes, which a worker may never read."""
        if self._tap is not None and self._tap.user is self:
            self._tap.transport.abort()

    @property
    def signature(self) -> str:
        """The signature, which must not get into what is kept of the answer; empty if the request is not signed."""
        return next((value for name, value in self._headers if name == "Signature"), "")

    @property
    def is_stale(self) -> bool:
        """Whether an error of the connection means that it had been closed before the request came."""
        return self.is_reused and (self._tap is None or not self._tap.has_received)

    @property
    def fault(self) -> MalformedError | None:
        """What aiohttp refused of the answer, after its head; the reader of the body is only told that it did not end."""
        return None if self._tap is None else self._tap.fault

    @property
    def was_reset(self) -> bool:
        """Whether the connection ended by an error and not by the worker's closing it."""
        assert self._tap is not None
        return self._tap.error is not None


class SendingRequest(ClientRequest):
    """A request that tells its attempt when it is about to be written."""

    attempt: Attempt

    def send(self, conn: Connection) -> Coroutine[Any, Any, ClientResponse]:
        """Write the request to `conn`."""
        self.attempt.begin(conn)
        return super().send(conn)


class Tap(asyncio.Protocol):
    """Stands between a transport and aiohttp's protocol for as long as the connection lives."""

    __slots__ = ("_begun", "_content", "_is_head_over", "_protocol", "error", "fault", "has_received", "is_lost", "transport", "user")

    def __init__(self, transport: asyncio.Transport, protocol: ResponseHandler) -> None:
        self.transport = transport
        self._protocol = protocol
        self._content: StreamReader | None = None
        self._begun = b""
        self._is_head_over = False
        self.user: Attempt | None = None
        self.has_received = False
        self.is_lost = False
        self.error: Exception | None = None
        self.fault: MalformedError | None = None
        transport.set_protocol(self)

    def begin(self, user: Attempt) -> None:
        """Hand the connection to `user`."""
        self.user = user
        self.has_received = self._is_head_over = False
        self._begun = b""
        self._content = None

    def watch(self, content: StreamReader) -> None:
        """End `content` with an error when the connection ends first."""
        self._content = content
        if self.is_lost:
            self._break_content()

    def data_received(self, data: bytes) -> None:
        """Pass `data` on to aiohttp, if somebody waits for it and it may be an answer."""
        if self.user is None:
            self.transport.close()
            return
        self.has_received = True
        if self._is_head_over:
            self._protocol.data_received(data)
            return
        try:
            head, rest = split_head(self._begun + data)
        except MalformedError as exc:
            self._protocol.set_exception(exc)
            self.transport.abort()
            return
        if not head:
            self._begun = rest
            return
        self._is_head_over = True
        # In two: a complete answer counts whatever comes behind it, and aiohttp passes on nothing of a piece with a fault in it.
        self._protocol.data_received(head)
        if rest:
            self._protocol.data_received(rest)

    def eof_received(self) -> None:
        """Pass it on."""
        self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remember how it ended, and pass it on."""
        self.is_lost = True
        self.error = exc
        refusal = self._protocol.exception()
        if isinstance(refusal, HttpProcessingError):
            self.fault = MalformedError(refusal.message)
        self._protocol.connection_lost(exc)
        self._break_content()

    def pause_writing(self) -> None:
        """Pass it on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._protocol.resume_writing()

    def _break_content(self) -> None:
        content = self._content
        if content is not None and not content.is_eof() and content.exception() is None:
            content.set_exception(self.fault or MalformedError("The connection ended within the body."))
