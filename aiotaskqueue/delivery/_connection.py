"""One connection of HTTPDelivery: writes a request, reads the answer to its end, and does so again.

Theory of operation. A connection is a protocol of asyncio's that carries one exchange at a time. Bytes that come in go
through the head's reader (`_head`) and aiohttp's parser at once, in the callback that brings them; the body is read only
to find its end, counted and thrown away. However an exchange ends, its future gets an Answer or a NoAnswer, never an
error. So nothing is awaited but that one future, and what a session does for each request besides (redirects, cookies,
proxies, a second try) is not there.

Bytes that come while nobody asked belong to no request: they end the connection, or the next task on it would be answered
by them (RELIABILITY row 82, P6). A reused connection that ends before the first byte of an answer was most likely closed
before we wrote (H1): that is told apart as *stale*.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from aiohttp import EMPTY_PAYLOAD
from aiohttp.http import HttpProcessingError, HttpResponseParser

from aiotaskqueue._clock import Cutoff, SystemClock
from aiotaskqueue.delivery._base import DETAIL_BYTES, SIGNATURE_REFUSED, Answer, FailureReason, NoAnswer
from aiotaskqueue.delivery._detail import describe, safe_text
from aiotaskqueue.delivery._head import MalformedError, split_head

if TYPE_CHECKING:
    from aiohttp import StreamReader
    from aiohttp.base_protocol import BaseProtocol
    from aiohttp.http import RawResponseMessage

    from aiotaskqueue.delivery._request import Request

# Read in one turn of the loop, so that a body of the tiniest chunks keeps nobody else waiting.
READ_BYTES = 16 * 1024

# How long past its end an exchange may go on reading what is in the socket; P7 allows 0.1 s.
LOOKING_SECONDS = 0.05

# aiohttp's own limits of a head (RELIABILITY T15).
MAX_LINE_BYTES = MAX_FIELD_BYTES = 8190
MAX_HEADERS = 128

_SENTENCES = {
    FailureReason.STALE: "The kept connection was closed before the request came.",
    FailureReason.DISCONNECTED: "The connection ended before the answer.",
    FailureReason.TRUNCATED: "The connection ended before the end of the body.",
}

Result = Answer | NoAnswer


class Connection(asyncio.BufferedProtocol):
    """A connection to a target.

    Args:
        transport: Connected; its protocol is this one from now on.
        max_body_bytes: A larger body ends an exchange.
    """

    # What aiohttp's reader of a body asks of a protocol, to hold it up; here it never has to.
    _reading_paused = False

    def __init__(self, transport: asyncio.Transport, max_body_bytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._max_body_bytes = max_body_bytes
        self._buffer = bytearray(READ_BYTES)
        self._is_lost = False
        self.lost: asyncio.Future[None] = self._loop.create_future()
        """Done when the connection has ended."""
        self.idle_since = 0.0
        """For the pool."""
        self._uses = 0
        self._request: Request | None = None
        self._result: asyncio.Future[Result] | None = None
        self._begun = b""
        self._has_received = False
        self._has_progress = False
        """Whether anything has come since that was last asked."""
        self._message: RawResponseMessage | None = None
        self._body: StreamReader = EMPTY_PAYLOAD
        self._start = b""
        transport.set_protocol(self)

    @property
    def is_usable(self) -> bool:
        """Whether a request can be written."""
        return not self._is_lost and not self._transport.is_closing()

    @property
    def has_head(self) -> bool:
        """Whether the head of the last request's answer has come."""
        return self._message is not None

    def send(self, request: Request) -> asyncio.Future[Result]:
        """Write `request`; the future tells how it ended, and has no exception. One at a time."""
        self._uses += 1
        self._request = request
        self._result = self._loop.create_future()
        self._begun, self._has_received = b"", False
        self._message, self._body, self._start = None, EMPTY_PAYLOAD, b""
        self._transport.write(request.data)
        return self._result

    def expire(self, result: asyncio.Future[Result], limit_seconds: float) -> None:
        """End the exchange of that future, whose time is over, unless its answer is here already.

        An answer and the timer can become due in one turn of a busy event loop: so what is in the socket is read first, but
        not for long, since more may come in all the time (P7, P8).
        """
        # What is in a socket was sent in real time, whatever clock the service has.
        late = NoAnswer(FailureReason.DEADLINE, f"No complete answer within {limit_seconds:g} seconds.")
        self._look_again(result, late, Cutoff.GRACE_TURNS, SystemClock().monotonic() + LOOKING_SECONDS)

    def _look_again(self, result: asyncio.Future[Result], late: NoAnswer, turns_left: int, until: float) -> None:
        if result.done():
            return
        has_progress, self._has_progress = self._has_progress, False
        if turns_left > 0 or (has_progress and SystemClock().monotonic() < until):
            self._loop.call_soon(self._look_again, result, late, turns_left - 1, until)
        else:
            self.abort(late)

    def abort(self, result: Result | None = None) -> None:
        """End the connection at once, and an exchange with `result`; what is not sent yet, which a worker may never read, is dropped."""
        if result is not None:
            self._end(result)
        self._result = None
        self._transport.abort()

    # --- the protocol ---

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return where to read into: not much at once, however much there is, for others want a turn as well."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Read on."""
        if self._result is None:
            self.abort()
            return
        data = bytes(memoryview(self._buffer)[:nbytes])
        self._has_received = self._has_progress = True
        try:
            if self._message is None:
                data = self._read_head(self._begun + data)
            is_spoilt = bool(data) and self._feed(data)
        except MalformedError as exc:
            self._fail(FailureReason.MALFORMED, str(exc))
        except HttpProcessingError as exc:
            self._fail(FailureReason.MALFORMED, exc.message)
        else:
            if self._message is not None:
                self._read_body(self._message, is_spoilt=is_spoilt)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange by what has come so far."""
        self._is_lost = True
        self.lost.set_result(None)
        if self._result is None:
            return
        if self._message is not None:
            self._end_body(self._message, exc)
        elif self._uses > 1 and not self._has_received:
            self._fail(FailureReason.STALE)
        else:
            self._fail(FailureReason.DISCONNECTED)

    def pause_reading(self) -> None:
        """Do nothing: what comes is read at once and thrown away."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Do nothing."""

    # --- inside ---

    def _read_head(self, data: bytes) -> bytes:
        """Read the head, once it has come as a whole; return what follows it."""
        head, rest = split_head(data)
        if not head:
            self._begun = rest
            return b""
        assert self._request is not None
        self._parser = HttpResponseParser(
            cast("BaseProtocol", self),
            self._loop,
            READ_BYTES,
            max_line_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            max_field_size=MAX_FIELD_BYTES,
            response_with_body=self._request.method != "HEAD",
            read_until_eof=True,
            auto_decompress=False,
        )
        # Apart from what follows: the parser passes on nothing of a piece with a fault in it.
        [(self._message, self._body)], _, _ = self._parser.feed_data(head)
        return rest

    def _feed(self, data: bytes) -> bool:
        """Read what follows a head; return whether there is more than the answer."""
        if self._body.is_eof():
            return True
        try:
            messages, is_upgraded, _ = self._parser.feed_data(data)
        except HttpProcessingError:
            # A complete answer counts, whatever comes behind it.
            if not self._body.is_eof():
                raise
            return True
        return bool(messages) or is_upgraded

    def _read_body(self, message: RawResponseMessage, *, is_spoilt: bool) -> None:
        body = self._body
        if body is not EMPTY_PAYLOAD:
            if body.total_bytes > self._max_body_bytes:
                self._fail(FailureReason.TOO_LARGE, f"The body is larger than {self._max_body_bytes} bytes.")
                return
            piece = body.read_nowait()
            if message.code != 200:
                self._keep(piece)
            if not body.is_eof():
                return
        self._end(self._describe(message))
        # What is unsent now was not read, and what comes now was not asked for.
        if is_spoilt or message.should_close or message.code == 101 or self._transport.get_write_buffer_size():
            self.abort()

    def _keep(self, piece: bytes) -> None:
        """Keep the start of the body, as long as it may be shown and the signature that is taken out of it."""
        assert self._request is not None
        room = DETAIL_BYTES + len(self._request.signature) - len(self._start)
        self._start += piece[:room]

    def _end_body(self, message: RawResponseMessage, exc: Exception | None) -> None:
        """End a body with the connection: that is its proper end if it named no length and the connection was not reset."""
        try:
            if exc is not None:
                raise exc
            self._parser.feed_eof()
        except Exception:
            self._fail(FailureReason.TRUNCATED)
        else:
            self._read_body(message, is_spoilt=True)

    def _describe(self, message: RawResponseMessage) -> Answer:
        assert self._request is not None
        signature = self._request.signature
        if message.code == 403 and signature and not self._start:
            return Answer(403, message.headers.get("Retry-After"), SIGNATURE_REFUSED)
        return describe(message.code, message.headers.get("Retry-After"), message.headers.get("Location"), self._start, signature)

    def _fail(self, reason: FailureReason, detail: str = "") -> None:
        assert self._request is not None
        self.abort(NoAnswer(reason, safe_text(detail or _SENTENCES[reason], self._request.signature)))

    def _end(self, result: Result) -> None:
        if self._result is not None and not self._result.done():
            self._result.set_result(result)
        self._result = None
