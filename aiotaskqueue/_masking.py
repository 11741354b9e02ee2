"""What is shown in the place of a secret: of a payload its size, of headers their names, of a URL its path, of an error its class.

Payloads, values of headers, queries and tags belong to the application, and answers to its workers. They are there for
whoever asks for them by name, and get into no repr, no log and no message of an error (RELIABILITY P24).
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable
from pathlib import PurePath

_START_OF_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?(?://)?")
_QUERY_OR_FRAGMENT = re.compile(r"([?#]).+", re.DOTALL)


def show_size(value: bytes | str | None) -> str:
    """Return how long the value is."""
    if value is None:
        return "None"
    return f"<{len(value)} {'bytes' if isinstance(value, bytes) else 'characters'}>"


def show_names(headers: Iterable[tuple[str, str]]) -> str:
    """Return the names of the headers, in order."""
    return repr([name for name, _ in headers])


def show_path(url: str | None) -> str:
    """Return the URL, but of its query only how long that is."""
    if url is None:
        return "None"
    path, separator, query = url.partition("?")
    return repr(path + separator + (show_size(query) if separator else ""))


def mask_url(url: str) -> str:
    """Return what somebody takes for a URL, ``***`` in the place of who logs in, of the query and of the fragment."""
    # Up to the last at-sign: a password may have slashes and at-signs of its own.
    before, at_sign, after = url.rpartition("@")
    if at_sign:
        start = _START_OF_URL.match(before)
        assert start is not None
        # Where that is part of a query, what follows is as well.
        url = f"{start[0]}***" + ("" if _QUERY_OR_FRAGMENT.search(before) else f"@{after}")
    return _QUERY_OR_FRAGMENT.sub(r"\1***", url)


def show_place(exc: BaseException) -> str:
    """Return the class of an error, and the file and line in which it was raised; what it says may quote anything."""
    frames = traceback.extract_tb(exc.__traceback__)
    place = f" at {PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return type(exc).__name__ + place


def show_frames(exc: BaseException) -> str:
    """Return the class of an error, and the way to where it was raised, as a traceback has it."""
    return "".join([f"{type(exc).__name__}\n", *traceback.format_tb(exc.__traceback__)]).rstrip()
