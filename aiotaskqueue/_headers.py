"""The special headers that tell a handler which task it runs: built, parsed and told apart. Pure.

Names are written as App Engine writes them; parsing wants a mapping that finds lower-case names, such as a
case-insensitive one or a dict of names folded by ``str.lower``.

Source: SPEC 4.3; App Engine, "Push task headers".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from aiotaskqueue._record import TaskRecord

QUEUE_NAME = "X-AppEngine-QueueName"
TASK_NAME = "X-AppEngine-TaskName"
RETRY_COUNT = "X-AppEngine-TaskRetryCount"
EXECUTION_COUNT = "X-AppEngine-TaskExecutionCount"
ETA = "X-AppEngine-TaskETA"
PREVIOUS_RESPONSE = "X-AppEngine-TaskPreviousResponse"
RETRY_REASON = "X-AppEngine-TaskRetryReason"
TASK = "X-TaskQueue-Task"
ATTEMPT = "X-TaskQueue-Attempt"
DEADLINE = "X-TaskQueue-Deadline"

# What every delivery carries, in the order of signing.SIGNED_HEADERS: all of it is signed.
SPECIAL_HEADERS = (QUEUE_NAME, TASK_NAME, RETRY_COUNT, EXECUTION_COUNT, ETA, TASK, ATTEMPT, DEADLINE)

CONTENT_TYPE = "Content-Type"
DEFAULT_CONTENT_TYPE = "application/octet-stream"

RESERVED_PREFIXES = ("x-appengine-", "x-taskqueue-")

# 9999-12-31T23:59:59Z, the last second that datetime knows.
_LAST_SECOND = 253_402_300_799

# [0-9], not \d, and int() only of ASCII digits: it takes Arabic-Indic ones, "1_000", " 12 " and "+5" (RELIABILITY 2).
_LONGEST_INTEGER = 15
_DECIMAL = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,6}))?")
_UUID = re.compile(r"[0-9a-f]{32}")


class TaskHeaders(NamedTuple):
    """What the special headers say. (A tuple, since it is made once for each delivery and only passed on.)"""

    uuid: str
    queue_name: str
    name: str
    retry_count: int
    execution_count: int
    eta_usec: int
    deadline_seconds: float
    previous_response: int | None
    retry_reason: str | None

    @classmethod
    def of(cls, record: TaskRecord, *, deadline_seconds: float) -> Self:
        """Return what the headers of one attempt say, where nobody has to write and read them."""
        return cls(
            record.uuid.hex(),
            record.queue_name,
            record.name,
            record.retry_count,
            record.executions,
            record.eta_usec,
            deadline_seconds,
            record.previous_status,
            record.retry_reason or None,
        )


def task_headers(record: TaskRecord, *, deadline_seconds: float) -> list[tuple[str, str]]:
    """Return the headers of one attempt: the user's own first, then the special ones.

    Args:
        record: The leased task.
        deadline_seconds: How long its handler may take, in seconds.
    """
    headers = list(record.headers)
    if record.payload and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append((CONTENT_TYPE, DEFAULT_CONTENT_TYPE))
    headers += zip(SPECIAL_HEADERS, special_values(record, deadline_seconds=deadline_seconds), strict=True)
    return headers + history_headers(record)


def special_values(record: TaskRecord, *, deadline_seconds: float) -> tuple[str, ...]:
    """Return the values of SPECIAL_HEADERS in one attempt."""
    return (
        record.queue_name,
        record.name,
        str(record.retry_count),
        str(record.executions),
        _render_seconds(record.eta_usec),
        record.uuid.hex(),
        str(record.lease_token),
        _render_deadline(deadline_seconds),
    )


def history_headers(record: TaskRecord) -> list[tuple[str, str]]:
    """Return the headers that tell of the attempt before this one; none on the first."""
    headers = []
    if record.previous_status is not None:
        headers.append((PREVIOUS_RESPONSE, str(record.previous_status)))
    if record.retry_reason:
        headers.append((RETRY_REASON, record.retry_reason))
    return headers


def parse_task_headers(headers: Mapping[str, str]) -> TaskHeaders:
    """Return what the special headers say; `headers` must find lower-case names.

    Raises:
        ValueError: A header is missing, or is not written as `task_headers` writes it.
    """
    previous_response = headers.get("x-appengine-taskpreviousresponse")
    try:
        return TaskHeaders(
            uuid=_parse_uuid(headers["x-taskqueue-task"]),
            queue_name=headers["x-appengine-queuename"],
            name=headers["x-appengine-taskname"],
            retry_count=_parse_integer(headers["x-appengine-taskretrycount"]),
            execution_count=_parse_integer(headers["x-appengine-taskexecutioncount"]),
            eta_usec=_parse_seconds(headers["x-appengine-tasketa"]),
            deadline_seconds=_parse_seconds(headers["x-taskqueue-deadline"]) / 1_000_000,
            previous_response=None if previous_response is None else _parse_integer(previous_response),
            retry_reason=headers.get("x-appengine-taskretryreason"),
        )
    except KeyError as exc:
        raise ValueError(f"Header {exc.args[0]!r} is missing; every delivery carries it.") from None


def is_reserved(name: str) -> bool:
    """Return whether only we may set the header: whatever reads as ``X-AppEngine-*`` or ``X-TaskQueue-*``.

    In any case, and with ``_`` for ``-``, since CGI and WSGI take the two for the same.
    """
    # The first letter alone decides for nearly every header of nearly every request.
    return name[:1] in "xX" and name.lower().replace("_", "-").startswith(RESERVED_PREFIXES)


def _render_seconds(usec: int) -> str:
    seconds, fraction = divmod(usec, 1_000_000)
    return f"{seconds}.{fraction:06d}".rstrip("0") if fraction else str(seconds)


# Nearly all attempts have the same few deadlines.
@functools.lru_cache(maxsize=64)
def _render_deadline(seconds: float) -> str:
    return _render_seconds(round(seconds * 1_000_000))


def _parse_integer(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST_INTEGER):
        raise ValueError(f"Header value {text[:80]!r} is not an integer of 1 to 15 ASCII digits.")
    return int(text)


def _parse_seconds(text: str) -> int:
    match = _DECIMAL.fullmatch(text)
    if match is None or int(match[1]) > _LAST_SECOND:
        raise ValueError(f"Header value {text[:80]!r} is not a number of seconds up to the year 9999.")
    return int(match[1]) * 1_000_000 + int((match[2] or "").ljust(6, "0"))


def _parse_uuid(text: str) -> str:
    if not _UUID.fullmatch(text):
        raise ValueError(f"Header value {text[:80]!r} is not 32 lower-case hexadecimal digits.")
    return text
