"""The head of an answer, read more strictly than aiohttp does.

aiohttp's client takes line feeds without carriage return, folded lines and a blank before a colon for good, unless Python
runs in development mode. What is not HTTP/1 to the letter is no answer (RELIABILITY row 74): others on the way may read
it differently. aiohttp still parses every head; what it refuses itself is not looked for here.

Source: RFC 9112 sections 2.2, 4, 5.1 and 5.2; RFC 9110 sections 5.5 and 5.6.2.
"""

from __future__ import annotations

import re

from aiohttp import ClientPayloadError

_REST_OF_STATUS_LINE = rb"[0-9]{2}(?: [^\r\n\0]*+)?+\r\n"
_FIELD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++:[^\r\n\0]*+\r\n"

# A head in one piece, which nearly every head is: 0.5 us for five headers.
_WHOLE_HEAD = re.compile(rb"HTTP/1\.[01] [2-9]%b(?:%b)*+\r\n" % (_REST_OF_STATUS_LINE, _FIELD))

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9])%b" % _REST_OF_STATUS_LINE)
_FIELD_LINE = re.compile(_FIELD)


class MalformedError(ClientPayloadError):
    """What came in the place of a head, of a body, or of the rest of one, is not HTTP."""


def find_end(data: bytes) -> int:
    """Return where the head ends with which `data` begins; 0: it is not there as a whole, or an interim one, or none."""
    match = _WHOLE_HEAD.match(data)
    return match.end() if match else 0


class HeadReader:
    """Follows a head that comes in pieces, or after interim ones."""

    __slots__ = ("_has_status", "_is_interim", "_line", "is_over")

    def __init__(self) -> None:
        self._line = b""
        self._has_status = self._is_interim = False
        self.is_over = False
        """Whether the final head has come as a whole."""

    def feed(self, data: bytes) -> int:
        """Read on; return how many bytes of `data` belong to heads.

        Raises:
            MalformedError: A line is not one of a head.
        """
        start = 0
        while not self.is_over and (end := data.find(b"\n", start) + 1):
            self._take(self._line + data[start:end])
            self._line, start = b"", end
        if self.is_over:
            return start
        # aiohttp gets it as well, and bounds its length.
        self._line += data[start:]
        return len(data)

    def _take(self, line: bytes) -> None:
        if not self._has_status:
            match = _STATUS_LINE.fullmatch(line)
            self._has_status, self._is_interim = True, match is not None and match[1] == b"1" and b" 101" not in line[:12]
        elif line == b"\r\n":
            self._has_status, self.is_over = False, not self._is_interim
            return
        else:
            match = _FIELD_LINE.fullmatch(line)
        if match is None:
            raise MalformedError(f"The head has a malformed line: {line!r}")
