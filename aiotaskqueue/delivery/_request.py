"""The bytes of a delivery's request: line, headers, signature, body. Pure.

They are written here and not by an HTTP library because that is quick: one text for the head, from parts most of which
never change. What may be in it was checked when the task was made (SPEC 1.4, 1.5); the one thing that must never happen,
a line break that somebody smuggled in, is looked for once more in the finished text.
"""

from __future__ import annotations

import functools
import importlib.metadata
from typing import TYPE_CHECKING, NamedTuple

import attrs

from aiotaskqueue._headers import CONTENT_TYPE, DEFAULT_CONTENT_TYPE, SPECIAL_HEADERS, history_headers, special_values
from aiotaskqueue._masking import show_size
from aiotaskqueue.signing import SIGNATURE_HEADERS, sign_values

if TYPE_CHECKING:
    from yarl import URL

    from aiotaskqueue._record import TaskRecord
    from aiotaskqueue.signing import KeyRing

# A request without a body says nothing of it where the method expects none. Source: RFC 9110 section 8.6.
_BODILESS = frozenset({"GET", "HEAD"})


class Request(NamedTuple):
    """One request, ready to be written."""

    data: bytes
    method: str
    signature: str
    """What must not get into what is kept of the answer; empty if the request is not signed."""

    def __repr__(self) -> str:
        return f"Request(data={show_size(self.data)}, method={self.method!r})"


@attrs.frozen
class _Lines:
    """Lines of a head."""

    text: str = attrs.field(repr=show_size)
    breaks: int
    """How many line breaks it should have."""


_SPECIAL_LINES = _Lines("\r\n".join(f"{name}: %s" for name in SPECIAL_HEADERS), len(SPECIAL_HEADERS) - 1)
_SPECIAL_NAMES = tuple(name.lower().encode() for name in SPECIAL_HEADERS)
_SIGNATURE_LINES = _Lines("\r\n".join(f"{name}: %s" for name in SIGNATURE_HEADERS), len(SIGNATURE_HEADERS) - 1)


class RequestWriter:
    """Writes the requests of one target.

    Args:
        base_url: Gives the Host header and the path that goes before every task's URL.
        keys: Sign the requests; None: they are not signed.
    """

    def __init__(self, base_url: URL, keys: KeyRing | None) -> None:
        self._prefix = base_url.raw_path.rstrip("/")
        self._keys = keys
        # Whatever the task says, nothing is to be compressed: so nothing needs decompression (RELIABILITY H6).
        self._own = {
            "host": f"Host: {base_url.host_port_subcomponent}",
            "accept": "Accept: */*",
            "accept-encoding": "Accept-Encoding: identity",
            "user-agent": f"User-Agent: {_user_agent()}",
        }
        # Many tasks carry the same few headers.
        self._first_lines = functools.lru_cache(maxsize=1024)(self._write_first_lines)
        self._first_fields = functools.lru_cache(maxsize=1024)(self._write_first_fields)

    def write(self, record: TaskRecord, *, deadline_seconds: float, now: float) -> Request:
        """Return the request of one attempt.

        Args:
            record: The leased task.
            deadline_seconds: How long its handler may take.
            now: The wall time, in seconds since 1970.

        Raises:
            ValueError: A header or the URL has a line break in it, or something to sign is not ASCII.
        """
        body = record.payload or b""
        target = self._prefix + record.url
        first = self._first_lines(record.headers, bool(body))
        values = special_values(record, deadline_seconds=deadline_seconds)
        lines = [f"{record.method} {target} HTTP/1.1", first.text, _SPECIAL_LINES.text % values]
        lines += [f"{name}: {value}" for name, value in history_headers(record)]
        breaks = first.breaks + _SPECIAL_LINES.breaks
        signature = ""
        if self._keys is not None:
            path, _, query = target.partition("?")
            signed = sign_values(
                self._keys,
                method=record.method,
                path=path,
                query=query,
                values=values,
                body=body,
                created=int(now),
                deadline_seconds=deadline_seconds,
            )
            lines.append(_SIGNATURE_LINES.text % signed)
            breaks += _SIGNATURE_LINES.breaks
            # Without its frame: whoever echoes it may show it in another one.
            signature = signed[-1].partition(":")[2].rstrip(":")
        if body or record.method not in _BODILESS:
            lines.append(f"Content-Length: {len(body)}")
        return Request(_head(lines, breaks) + body, record.method, signature)

    def write_fields(self, record: TaskRecord, *, deadline_seconds: float) -> list[tuple[bytes, bytes]]:
        """Return the headers of that request, unsigned, as ASGI has them: bytes, the names in lower case.

        Raises:
            ValueError: One of the task's own headers has a line break in it.
        """
        body = record.payload or b""
        values = special_values(record, deadline_seconds=deadline_seconds)
        fields = [*self._first_fields(record.headers, bool(body))]
        fields += zip(_SPECIAL_NAMES, map(str.encode, values), strict=True)
        fields += [(name.lower().encode(), value.encode()) for name, value in history_headers(record)]
        if body or record.method not in _BODILESS:
            fields.append((b"content-length", b"%d" % len(body)))
        return fields

    def _write_first_fields(self, given: tuple[tuple[str, str], ...], has_body: bool) -> list[tuple[bytes, bytes]]:
        lines = self._first_lines(given, has_body)
        head = _head([lines.text], lines.breaks).rstrip(b"\r\n")
        pairs = (line.partition(b":") for line in head.split(b"\r\n"))
        return [(name.lower(), value.strip(b" \t")) for name, _, value in pairs]

    def _write_first_lines(self, given: tuple[tuple[str, str], ...], has_body: bool) -> _Lines:
        """Return the lines of our own that the task does not replace, and its own but those that it may not replace."""
        names = {name.lower() for name, _ in given} - {"accept-encoding"}
        lines = [line for name, line in self._own.items() if name not in names]
        lines += [f"{name}: {value}" for name, value in given if name.lower() != "accept-encoding"]
        if has_body and "content-type" not in names:
            lines.append(f"{CONTENT_TYPE}: {DEFAULT_CONTENT_TYPE}")
        return _Lines("\r\n".join(lines), len(lines) - 1)


def _head(lines: list[str], breaks: int) -> bytes:
    """Return the head; `breaks` is how many line breaks the lines should have in them."""
    text = "\r\n".join(lines)
    breaks += len(lines) - 1
    if text.count("\r") != breaks or text.count("\n") != breaks or "\0" in text:
        raise ValueError("A header of the task has a line break or a NUL in it.")
    return text.encode() + b"\r\n\r\n"


def _user_agent() -> str:
    try:
        version = importlib.metadata.version("aiotaskqueue-embedded")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "aiotaskqueue"
    return f"aiotaskqueue/{version}"
