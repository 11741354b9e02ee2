"""What came of a request: reads an answer to its end, or says why there is none.

A body is read because only its end makes an answer complete (RELIABILITY H7), and it is thrown away.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

import aiohttp
import anyio.lowlevel

from aiotaskqueue.delivery._base import DETAIL_BYTES, SIGNATURE_REFUSED, Answer, FailureReason, NoAnswer
from aiotaskqueue.delivery._connection import SentOnceError
from aiotaskqueue.delivery._detail import safe_text
from aiotaskqueue.delivery._head import MalformedError
from aiotaskqueue.errors import Error

if TYPE_CHECKING:
    from aiotaskqueue.delivery._connection import Attempt

_SUCCESS = Answer(200)

_SENTENCES = {
    FailureReason.STALE: "The kept connection was closed before the request came.",
    FailureReason.DISCONNECTED: "The connection ended before the answer.",
    FailureReason.TRUNCATED: "The connection ended before the end of the body.",
}


class BadAnswerError(Exception):
    """An answer that is none."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


async def read_answer(response: aiohttp.ClientResponse, attempt: Attempt, max_body_bytes: int) -> Answer:
    """Read `response` to its end; a connection that then has something left is closed, not reused."""
    try:
        start = await _read_body(response, attempt, max_body_bytes)
    finally:
        _leave_connection(response, attempt)
    if response.status == 200:
        return _SUCCESS
    return Answer(response.status, response.headers.get("Retry-After"), _describe(response, start, attempt.signature))


def explain_failure(exc: Exception, attempt: Attempt | None) -> NoAnswer:
    """Say why there is no answer.

    Args:
        exc: What was raised.
        attempt: None if it was raised before there was one.
    """
    if isinstance(exc, SentOnceError) and isinstance(exc.__cause__, Exception):
        exc = exc.__cause__
    if attempt is not None and isinstance(exc, aiohttp.ClientPayloadError):
        exc = attempt.fault or exc
    reason = FailureReason.ERROR if attempt is None else _classify(exc, attempt)
    detail = _SENTENCES.get(reason) or _message(exc, reason)
    return NoAnswer(reason, safe_text(detail, attempt.signature if attempt else ""))


async def _read_body(response: aiohttp.ClientResponse, attempt: Attempt, max_body_bytes: int) -> bytes:
    """Read the body to its end; return its start, but for a success."""
    content, start = response.content, b""
    if not content.is_eof():
        attempt.watch(content)
    if response.status != 200:
        start = await _read_start(content, DETAIL_BYTES + len(attempt.signature))
    # A body that is there as a whole is not even looked at.
    while not content.is_eof() and content.total_bytes <= max_body_bytes:
        await content.readany()
        if not content.is_eof():
            # aiohttp has more at hand, perhaps for long: four bytes of chunks make one of body. Others want a turn as well.
            await anyio.lowlevel.checkpoint()
    if content.total_bytes > max_body_bytes:
        raise BadAnswerError(FailureReason.TOO_LARGE, f"The body is larger than {max_body_bytes} bytes.")
    if attempt.was_reset and _ends_with_connection(response):
        raise BadAnswerError(FailureReason.TRUNCATED, _SENTENCES[FailureReason.TRUNCATED])
    return start


async def _read_start(content: aiohttp.StreamReader, size: int) -> bytes:
    start = b""
    while len(start) < size and not content.at_eof():
        start += await content.read(size - len(start))
    return start


def _ends_with_connection(response: aiohttp.ClientResponse) -> bool:
    """Whether only the end of the connection ends the body: aiohttp then takes a reset for a proper end."""
    headers = response.headers
    # Of all codings only chunks have an end of their own (RFC 9112 section 6.3).
    last_coding = ",".join(headers.getall("Transfer-Encoding", ())).rpartition(",")[2].strip()
    return not (response.content is aiohttp.EMPTY_PAYLOAD or "Content-Length" in headers or last_coding.lower() == "chunked")


def _leave_connection(response: aiohttp.ClientResponse, attempt: Attempt) -> None:
    if response.connection is None:
        attempt.end()
        return
    response.close()
    attempt.abort()


def _describe(response: aiohttp.ClientResponse, start: bytes, secret: str) -> str:
    if response.status == 403 and secret and not start:
        return SIGNATURE_REFUSED
    text = start.decode(errors="replace")
    location = response.headers.get("Location")
    if location is not None and 300 <= response.status < 400:
        text = f"The redirect to {location} is not followed. {text}"
    return safe_text(text, secret)


def _classify(exc: Exception, attempt: Attempt) -> FailureReason:
    if isinstance(exc, BadAnswerError):
        return exc.reason
    if isinstance(exc, aiohttp.ClientPayloadError):
        return FailureReason.MALFORMED if isinstance(exc, MalformedError) else FailureReason.TRUNCATED
    if isinstance(exc, aiohttp.ClientResponseError):
        return FailureReason.MALFORMED
    if not isinstance(exc, (aiohttp.ClientConnectionError, OSError, UnicodeError)):
        return FailureReason.ERROR
    if attempt.is_stale:
        return FailureReason.STALE
    return FailureReason.DISCONNECTED if attempt.was_sent else FailureReason.UNREACHABLE


def _message(exc: Exception, reason: FailureReason) -> str:
    if isinstance(exc, aiohttp.ClientResponseError):
        return exc.message
    if reason is not FailureReason.ERROR or isinstance(exc, Error):
        return str(exc)
    # What an unexpected error says may show a header or the payload (RELIABILITY P24): only what and where.
    return f"{type(exc).__name__} at {_place(exc)}"


def _place(exc: Exception) -> str:
    """Return the file and line in which `exc` was raised."""
    traceback = exc.__traceback__
    assert traceback is not None
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return f"{PurePath(traceback.tb_frame.f_code.co_filename).name}:{traceback.tb_lineno}"
