"""The head of an answer, read more strictly than aiohttp does, and in little memory.

aiohttp's client takes line feeds without carriage return, folded lines and a blank before a colon for good, unless Python
runs in development mode. What is not HTTP/1 to the letter is no answer (RELIABILITY row 74): others on the way may read
it differently. And it keeps whatever comes: a hundred workers that send interim answers without end, or heads of a
megabyte, cost it hundreds of megabytes, and seconds of the event loop (T15). So it gets a head only when that is whole,
without the interim ones, and parses it once more: what it refuses itself is not looked for here.

Source: RFC 9112 sections 2.2, 4, 5.1 and 5.2; RFC 9110 sections 5.5, 5.6.2 and 15.2.
"""

from __future__ import annotations

import re

from aiohttp import ClientPayloadError

# Twice what Apache, nginx or Node accept of others.
MAX_HEAD_BYTES = 64 * 1024

_VERSION = b"HTTP/1."
_FIELDS = rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[^\r\n\0]*+\r\n)*+"
_STATUS_LINE = rb"HTTP/1\.[01] %b[0-9]{2}(?: [^\r\n\0]*+)?+\r\n"
_FINAL = _STATUS_LINE % rb"(?:[2-9]|1(?=01))" + _FIELDS + rb"\r\n"
_INTERIM = _STATUS_LINE % rb"1(?!01)" + _FIELDS + rb"\r\n"

# Half a microsecond for a head of five fields.
_final_head = re.compile(_FINAL).match
_interim_heads = re.compile(rb"(?:%b)*+" % _INTERIM).match
_good_lines = re.compile(rb"(?:%b)?+" % (_STATUS_LINE % b"[1-9]" + _FIELDS)).match


class MalformedError(ClientPayloadError):
    """What came in the place of a head, of a body, or of the rest of one, is not HTTP."""


def split_head(data: bytes) -> tuple[bytes, bytes]:
    """Return the final head with which `data` begins, after interim ones, and what follows it.

    An empty head: it has not come as a whole; what follows is then to be given again, with more.

    Raises:
        MalformedError: It does not begin with a head, or its head is too large.
    """
    match = _final_head(data)
    if match is None:
        interim = _interim_heads(data)
        data = data[interim.end() :] if interim else data
        match = _final_head(data)
    if match is not None:
        return match[0], data[match.end() :]
    _check_begun(data)
    return b"", data


def _check_begun(data: bytes) -> None:
    lines = _good_lines(data)
    end = lines.end() if lines else 0
    line, newline, _ = data[end:].partition(b"\n")
    if newline or (not end and not _VERSION.startswith(line[: len(_VERSION)])):
        raise MalformedError(f"The head has a malformed line: {line + newline!r}")
    if len(data) > MAX_HEAD_BYTES:
        raise MalformedError(f"The head is larger than {MAX_HEAD_BYTES} bytes.")
