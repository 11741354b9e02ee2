"""Pure checks of a task's arguments: each returns the value in the form in which it is kept, or raises.

Nothing here knows how the arguments go together; that is `_task`. Errors show what is wrong, but for what may be secret:
of payloads, params and headers they tell name, type, size or place, and never the value (RELIABILITY P24).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Final
from urllib.parse import quote, quote_plus

from yarl import URL

from aiotaskqueue._masking import mask_url, show_size
from aiotaskqueue.errors import (
    InvalidDispatchDeadlineError,
    InvalidEtaError,
    InvalidTagError,
    InvalidTaskError,
    InvalidTaskNameError,
    InvalidUrlError,
)

# App Engine's limits, with its names where they fit (SPEC 1.1). Units are in the names.
MAX_TASK_NAME_LENGTH: Final = 500
MAX_URL_LENGTH: Final = 2083
MAX_TAG_LENGTH: Final = 500
MAX_PUSH_TASK_BYTES: Final = 102_400
MAX_PULL_TASK_BYTES: Final = 1_048_576

# Ours: App Engine has 15 s as the least, and no limit on headers but the size of the task.
MIN_DISPATCH_DEADLINE_SECONDS: Final = 1.0
MAX_DISPATCH_DEADLINE_SECONDS: Final = 86_400.0
MAX_HEADERS: Final = 64
MAX_HEADERS_BYTES: Final = 16_384

METHODS: Final = ("POST", "GET", "HEAD", "PUT", "DELETE", "PULL")

# The last microsecond that a datetime can show: 9999-12-31 23:59:59.999999 UTC.
MAX_ETA_USEC: Final = 253_402_300_799_999_999

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

ParamScalar = str | bytes | int | float | Decimal
ParamValue = ParamScalar | Iterable[ParamScalar]
# Keys may be any scalar (SPEC 1.3). A union of mappings would say so, but then mypy refuses a plain {"a": "1", "b": ["2"]}.
Params = Mapping[str, ParamValue]
Headers = Mapping[str, str | Iterable[str]]
HeaderPairs = tuple[tuple[str, str], ...]


# Greedy, and over everything: a password may contain slashes, at-signs, spaces.
_USERINFO: Final = re.compile(r"//.*@", re.DOTALL)


def shorten(value: object, most: int = 80) -> str:
    """Return the repr of `value` for an error message: `most` printable characters, the userinfo of a URL masked; never raises."""
    try:
        text = repr(_cut(value, most))
    except Exception:
        # An int of more digits than Python turns into text (4300), lists nested too deep, or what a stranger's __repr__ does.
        return f"<{type(value).__name__}>"
    if not isinstance(value, str):
        text = _USERINFO.sub("//***@", text if text.isprintable() else repr(text)[1:-1])
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _cut(value: object, most: int) -> object:
    """Return the beginning of text or bytes: the repr of a payload of megabytes would take four times as many."""
    # Masked before it is cut: a password that reaches over the cut would be shown.
    return _USERINFO.sub("//***@", value)[:most] if isinstance(value, str) else value[:most] if isinstance(value, bytes) else value


def _kind(value: object) -> str:
    return type(value).__name__


# --- name, method --------------------------------------------------------------------------------------------------

_NAME: Final = re.compile(rf"[a-zA-Z0-9_-]{{1,{MAX_TASK_NAME_LENGTH}}}")


def check_name(name: object) -> str | None:
    """Return the name; None, for a generated one, if it is None or empty."""
    if name is None:
        return None
    # fullmatch, since `$` would let a trailing newline pass (SPEC D5).
    if not isinstance(name, str) or (name and not _NAME.fullmatch(name)):
        raise InvalidTaskNameError(f"Task name {shorten(name)} does not match ^[a-zA-Z0-9_-]{{1,{MAX_TASK_NAME_LENGTH}}}$.")
    return name or None


def check_method(method: object) -> str:
    """Return the method in upper case."""
    upper = method.upper() if isinstance(method, str) else None
    if upper not in METHODS:
        raise InvalidTaskError(f"Method {shorten(method)} is not one of {', '.join(METHODS)}.")
    return upper


# --- URL (SPEC 1.4) ------------------------------------------------------------------------------------------------

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_FORBIDDEN_CHARACTER: Final = re.compile(r"[\x00-\x20\x7f-\x9f\ud800-\udfff]")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
# %2e is a dot to many a server: a path must mean the same to everybody who reads it (RELIABILITY T5).
_UNNORMALISED: Final = re.compile(r"//|/(?:\.|%2[eE]){1,2}(?:/|\Z)")

# What RFC 3986 allows as it is in a path and in a query; `%` since escapes are checked before.
_SAFE_IN_PATH: Final = "/%!$&'()*+,;=:@"
_SAFE_IN_QUERY: Final = _SAFE_IN_PATH + "?"


def split_url(url: str | URL | None) -> tuple[str, str]:
    """Return path and query, percent-encoded; two empty texts for the default URL."""
    text = url if type(url) is str else _text_of_url(url)
    if not text:
        return "", ""
    if text[0] != "/" or text[:2] == "//":
        raise _not_relative(text)
    path, _, query = text.partition("?")
    return _encode_path(path), _encode_query(query) if query else ""


def _text_of_url(url: object) -> str:
    if url is None:
        return ""
    if isinstance(url, str | URL):
        return str(url)
    raise InvalidUrlError(f"The URL is of type {_kind(url)}; it must be a str or a yarl.URL.")


# Applications have few paths. Queries have no end and are not cached.
@lru_cache(maxsize=512)
def _encode_path(path: str) -> str:
    before, sign, _ = path.partition("#")
    _check_characters(f"URL path {shorten(f'{before}#***' if sign else path)}", path)
    if _UNNORMALISED.search(path):
        raise InvalidUrlError(f"URL path {shorten(path)} is not normalised; write it without '//', '/./' and '/../'.")
    encoded = quote(path, safe=_SAFE_IN_PATH)
    if len(encoded) > MAX_URL_LENGTH:
        raise InvalidUrlError(f"URL path {shorten(path)} has {len(encoded)} characters; at most {MAX_URL_LENGTH} are allowed.")
    return encoded


def _not_relative(url: str) -> InvalidUrlError:
    shown = shorten(mask_url(url))
    if _SCHEME.match(url):
        return InvalidUrlError(f"URL {shown} has a scheme; a task's URL is relative, the host is chosen by target=.")
    if url.startswith("//"):
        return InvalidUrlError(f"URL {shown} names a host; a task's URL is relative, the host is chosen by target=.")
    return InvalidUrlError(f"URL {shown} does not begin with '/'; a task's URL is a path such as '/worker'.")


def _check_characters(what: str, text: str) -> None:
    if "#" in text:
        raise InvalidUrlError(f"{what} has a fragment; fragments are never sent, leave it out.")
    if found := _FORBIDDEN_CHARACTER.search(text):
        place = f"{found.group()!r} at position {found.start()}"
        raise InvalidUrlError(f"{what} has {place}; spaces, control characters and surrogates are not allowed.")
    if found := _BAD_ESCAPE.search(text):
        raise InvalidUrlError(f"{what} has a '%' without two hexadecimal digits at position {found.start()}; write '%25'.")


def _encode_query(query: str) -> str:
    _check_characters(f"URL query {show_size(query)}", query)
    return quote(query, safe=_SAFE_IN_QUERY)


# --- params (SPEC 1.3) ---------------------------------------------------------------------------------------------

# Tuples, since isinstance is several times slower with a union; this is on the way of every add.
_SCALARS: Final = (str, bytes, int, float, Decimal)
_NO_VALUES: Final = (bytearray, memoryview, set, frozenset, Mapping)


def encode_params(params: Params | None) -> str | None:
    """Return the params form-encoded, in their order; None if there are none."""
    if params is None:
        return None
    if not isinstance(params, Mapping):
        raise InvalidTaskError(f"Argument params is of type {_kind(params)}; it must be a dict.")
    if not params:
        return None
    fields: list[str] = []
    for key, value in params.items():
        _encode_field(key, value, fields)
    return "&".join(fields)


def _encode_field(key: object, value: object, fields: list[str]) -> None:
    start = _encode_scalar(key, key, "key") + "="
    if isinstance(value, _SCALARS):
        fields.append(start + _encode_scalar(value, key, "value"))
        return
    if isinstance(value, _NO_VALUES) or not isinstance(value, Iterable):
        raise _bad_param(value, key, "value")
    fields.extend([start + _encode_scalar(item, key, "value") for item in value])


def _encode_scalar(value: object, key: object, part: str) -> str:
    if isinstance(value, bytes):
        return quote_plus(value)
    if not isinstance(value, _SCALARS):
        raise _bad_param(value, key, part)
    try:
        text = value if isinstance(value, str) else str(value)
        # Most keys and values are like this; it saves the walk through urllib.
        if text.isascii() and (text.isalnum() or text.isidentifier()):
            return text
        return quote_plus(text)
    except UnicodeEncodeError as exc:
        fault = f"has a lone surrogate at position {exc.start}; pass bytes"
    except ValueError:
        fault = "is an int of more digits than Python turns into text"
    # Not in the handlers: those errors hold the whole value, and this one would lead to them.
    raise InvalidTaskError(f"The {part} of param {shorten(key)} {fault}.")


def _bad_param(value: object, key: object, part: str) -> InvalidTaskError:
    allowed = "str, bytes, int, float, bool or Decimal" + (", or a list of them" if part == "value" else "")
    return InvalidTaskError(f"The {part} of param {shorten(key)} is of type {_kind(value)}; it must be {allowed}.")


# --- payload -------------------------------------------------------------------------------------------------------


def encode_payload(payload: object) -> bytes | None:
    """Return the payload as bytes; text becomes UTF-8."""
    if payload is None or isinstance(payload, bytes):
        return payload
    if not isinstance(payload, str):
        raise InvalidTaskError(f"The payload is of type {_kind(payload)}; it must be str, bytes or None.")
    try:
        return payload.encode()
    except UnicodeEncodeError as exc:
        position = exc.start
    # Not in the handler: that error holds the whole payload, and this one would lead to it.
    raise InvalidTaskError(f"The payload has a lone surrogate at position {position}; pass bytes.")


# --- headers (SPEC 1.5) --------------------------------------------------------------------------------------------

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_NO_FIELD_VALUE: Final = re.compile(r"[^\t\x20-\x7e\x80-\xff]")  # RFC 9110 section 5.5, obs-text is allowed

# What the delivery computes and signs, and what concerns one connection only (SPEC 1.5, RELIABILITY T21).
_RESERVED: Final = frozenset(
    {
        "connection",
        "content-digest",
        "content-length",
        "expect",
        "signature",
        "signature-input",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def check_headers(headers: Headers | None) -> HeaderPairs:
    """Return name and value of each header; of names that differ by case only the last wins."""
    if headers is None:
        return ()
    if not isinstance(headers, Mapping):
        raise InvalidTaskError(f"Argument headers is of type {_kind(headers)}; it must be a dict.")
    by_key: dict[str, list[tuple[str, str]]] = {}
    for name, value in headers.items():
        key = _check_header_name(name)
        if key is not None:
            by_key[key] = [(name, _check_header_value(name, text)) for text in _values_of_header(name, value)]
    pairs = tuple([pair for same in by_key.values() for pair in same])
    _check_headers_size(pairs)
    return pairs


@lru_cache(maxsize=256)
def _check_header_name(name: str) -> str | None:
    """Return the name in lower case, None if the header is to be dropped."""
    if not isinstance(name, str) or not _TOKEN.fullmatch(name):
        raise InvalidTaskError(f"Header name {shorten(name)} is not a token of RFC 9110: letters, digits and !#$%&'*+-.^_`|~ only.")
    key = name.lower()
    # Some servers take `_` for `-` (RELIABILITY T6).
    folded = key.replace("_", "-")
    if folded in _RESERVED or folded.startswith("x-taskqueue-"):
        raise InvalidTaskError(f"Header {shorten(name)} is reserved: the delivery sets it.")
    is_dropped = folded.startswith("x-appengine-") and key != "x-appengine-failfast"
    return None if is_dropped else key


def _values_of_header(name: str, value: object) -> Iterable[object]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (bytes, *_NO_VALUES)) or not isinstance(value, Iterable):
        raise InvalidTaskError(f"Header {shorten(name)} is of type {_kind(value)}; it must be a str or a list of str.")
    return value


def _check_header_value(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidTaskError(f"Header {shorten(name)} has a value of type {_kind(value)}; it must be a str or a list of str.")
    if found := _NO_FIELD_VALUE.search(value):
        place = f"{found.group()!r} at position {found.start()}"
        raise InvalidTaskError(f"Header {shorten(name)} has {place}; it must be latin-1 text without control characters.")
    # White space around it is not part of the value (RFC 9110 section 5.5).
    return value.strip(" \t")


def count_headers_bytes(pairs: HeaderPairs) -> int:
    """Return how long the headers are when sent: ``name: value`` and a line end each."""
    return sum([len(name) + len(value) + 4 for name, value in pairs])


def _check_headers_size(pairs: HeaderPairs) -> None:
    if len(pairs) > MAX_HEADERS:
        first_over = shorten(pairs[MAX_HEADERS][0])
        raise InvalidTaskError(f"Header {first_over} is one too many: there are {len(pairs)}, at most {MAX_HEADERS} are allowed.")
    size = count_headers_bytes(pairs)
    if size > MAX_HEADERS_BYTES:
        longest = max(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))[0]
        raise InvalidTaskError(
            f"The headers are {size} bytes together, the longest is {shorten(longest)}; at most {MAX_HEADERS_BYTES} are allowed."
        )


# --- ETA (SPEC 1.6) ------------------------------------------------------------------------------------------------


def convert_countdown(countdown: object) -> int:
    """Return the countdown in microseconds."""
    usec = countdown // _MICROSECOND if isinstance(countdown, timedelta) else _usec_of_number(countdown)
    if abs(usec) > MAX_ETA_USEC:
        raise _bad_countdown(countdown)
    return usec


def _usec_of_number(countdown: object) -> int:
    if isinstance(countdown, bool) or not isinstance(countdown, int | float | str | Decimal):
        raise InvalidTaskError(f"Countdown {shorten(countdown)} is of type {_kind(countdown)}; it must be a number or a timedelta.")
    try:
        seconds = float(countdown)
    except (ValueError, OverflowError) as exc:
        raise InvalidTaskError(f"Countdown {shorten(countdown)} is not a number of seconds that a float can hold.") from exc
    if not abs(seconds) <= MAX_ETA_USEC / 1_000_000:  # `not`, for NaN
        raise _bad_countdown(countdown)
    return round(seconds * 1_000_000)


def _bad_countdown(countdown: object) -> InvalidEtaError:
    return InvalidEtaError(f"Countdown {shorten(countdown)} does not lead to an ETA between the years 1970 and 9999.")


def convert_eta(eta: object) -> int:
    """Return the ETA in microseconds since 1970, UTC; a naive one is local time."""
    if not isinstance(eta, datetime):
        hint = "; add a time of day" if isinstance(eta, date) else "; use datetime.fromtimestamp(eta, UTC) or countdown="
        raise InvalidTaskError(f"ETA {shorten(eta)} is of type {_kind(eta)}, it must be a datetime{hint}.")
    try:
        eta_usec = _usec_of_local(eta) if eta.utcoffset() is None else (eta - EPOCH) // _MICROSECOND
    except (OverflowError, ValueError, OSError) as exc:
        # What the system's own calendar says to a local time of the year 1.
        raise _bad_eta(eta) from exc
    if not 0 <= eta_usec <= MAX_ETA_USEC:
        raise _bad_eta(eta)
    return eta_usec


def _usec_of_local(eta: datetime) -> int:
    # timestamp(), since astimezone() is an hour off in the gap before summer time; of whole seconds only, since a float
    # would lose microseconds in far years.
    return int(eta.replace(microsecond=0).timestamp()) * 1_000_000 + eta.microsecond


def add_countdown(now_usec: int, countdown_usec: int) -> int:
    """Return the ETA that a countdown leads to."""
    eta_usec = now_usec + countdown_usec
    if not 0 <= eta_usec <= MAX_ETA_USEC:
        raise _bad_countdown(countdown_usec / 1_000_000)
    return eta_usec


def _bad_eta(eta: datetime) -> InvalidEtaError:
    return InvalidEtaError(f"ETA {shorten(eta)} is not between the years 1970 and 9999.")


# --- the rest ------------------------------------------------------------------------------------------------------


def check_tag(tag: object) -> str | None:
    """Return the tag, if it is short enough and every store can keep it."""
    if tag is None:
        return None
    if not isinstance(tag, str):
        raise InvalidTagError(f"The tag is of type {_kind(tag)}; it must be a str.")
    if len(tag) > MAX_TAG_LENGTH:
        raise InvalidTagError(f"The tag has {len(tag)} characters; at most {MAX_TAG_LENGTH} are allowed.")
    # Neither NUL (PostgreSQL) nor a lone surrogate (UTF-8) can be stored as text.
    if found := re.search(r"[\x00\ud800-\udfff]", tag):
        raise InvalidTagError(f"The tag has {found.group()!r} at position {found.start()}; NUL and surrogates are not allowed.")
    return tag


def check_target(target: object) -> str | None:
    """Return the name of the target, None for the service's default one. Whether it exists shows at add."""
    if target is None:
        return None
    if not isinstance(target, str):
        raise InvalidTaskError(f"The target is of type {_kind(target)}; it must be a name in the service's targets.")
    return target or None


def check_dispatch_deadline(seconds: object) -> float | None:
    """Return the deadline in seconds."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"dispatch_deadline_seconds {shorten(seconds)} is of type {_kind(seconds)}; it must be a number.")
    if not MIN_DISPATCH_DEADLINE_SECONDS <= seconds <= MAX_DISPATCH_DEADLINE_SECONDS:
        limits = f"{MIN_DISPATCH_DEADLINE_SECONDS:g} to {MAX_DISPATCH_DEADLINE_SECONDS:g}"
        raise InvalidDispatchDeadlineError(f"dispatch_deadline_seconds {shorten(seconds)} is not within {limits}.")
    # As it will be stored, so that a task reads the same before and after.
    return round(seconds * 1_000_000) / 1_000_000
