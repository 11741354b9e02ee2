"""Task, what users add and lease, and TaskRetryOptions.

A Task checks all of its arguments when it is made, so that a wrong one is reported where it was written. What the service
finds out later (name, queue, ETA, counts) it fills in; users only read.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

import attrs
from multidict import CIMultiDict
from yarl import URL

from aiotaskqueue._current import current_service
from aiotaskqueue._masking import mask_url, show_names, show_path, show_size
from aiotaskqueue._task_arguments import (
    EPOCH,
    MAX_PULL_TASK_BYTES,
    MAX_PUSH_TASK_BYTES,
    HeaderPairs,
    Headers,
    Params,
    check_dispatch_deadline,
    check_headers,
    check_method,
    check_name,
    check_tag,
    check_target,
    convert_countdown,
    convert_eta,
    count_headers_bytes,
    encode_params,
    encode_payload,
    shorten,
    split_url,
)
from aiotaskqueue.errors import InvalidTaskError, InvalidTaskRetryOptionsError, TaskTooLargeError

if TYPE_CHECKING:
    from aiotaskqueue._record import TaskRecord

_TEXT_HEADERS: Final = (("Content-Type", "text/plain; charset=utf-8"),)
_FORM_HEADERS: Final = (("Content-Type", "application/x-www-form-urlencoded"),)

_COMMON_SHOWN: Final = (
    "eta",
    "method",
    "name",
    "payload",
    "queue_name",
    "retry_options",
    "size",
    "was_deleted",
    "was_enqueued",
)
_PUSH_SHOWN: Final = tuple(sorted((*_COMMON_SHOWN, "headers", "target", "url")))
_PULL_SHOWN: Final = tuple(sorted((*_COMMON_SHOWN, "tag")))
# A repr gets into logs (RELIABILITY P24). A target is a name, unless somebody gave a URL for it.
_SHOWN_AS: Final[dict[str, Callable[[Any], str]]] = {
    "headers": show_names,
    "payload": show_size,
    "tag": show_size,
    "target": lambda target: repr(target and mask_url(target)),
    "url": show_path,
}


# --- TaskRetryOptions ----------------------------------------------------------------------------------------------


# Converters come before validators: what they return may still be of any type.
def _to_whole(value: float | None) -> Any:
    # YAML and JSON may well give 3.0 for 3.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _round_up(value: float | None) -> Any:
    # Not -0.5, which would become a valid 0.
    return math.ceil(value) if isinstance(value, float) and 0 <= value < math.inf else value


def _check_number(options: TaskRetryOptions, field: attrs.Attribute[Any], value: float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{field.name} {shorten(value)} is of type {type(value).__name__}; it must be a number or None.")
    # Also of an int: beyond that it has more digits than can be turned into text and stored.
    if not 0 <= value <= sys.float_info.max:
        raise InvalidTaskRetryOptionsError(f"{field.name} {shorten(value)} is not a number from 0 to what a float can hold.")


def _check_whole(options: TaskRetryOptions, field: attrs.Attribute[Any], value: int | None) -> None:
    _check_number(options, field, value)
    if isinstance(value, float):
        raise InvalidTaskRetryOptionsError(f"{field.name} {shorten(value)} is not a whole number.")


def _check_maximum(options: TaskRetryOptions, field: attrs.Attribute[Any], value: float | None) -> None:
    _check_number(options, field, value)
    least = options.min_backoff_seconds
    if value is not None and least is not None and value < least:
        raise InvalidTaskRetryOptionsError(
            f"max_backoff_seconds {shorten(value)} is less than min_backoff_seconds {shorten(least)}; it must be at least that."
        )


@attrs.frozen(kw_only=True)
class TaskRetryOptions:
    """How often, and how far apart, a failed task is tried again.

    A field that is None has its default; a task's options replace its queue's as a whole, not field by field. With
    neither limit a task is tried for ever; with both it is given up once *both* are exceeded.

    Args:
        min_backoff_seconds: Delay before the first retry, in seconds, >= 0. None: 0.1.
        max_backoff_seconds: Longest delay, in seconds, >= 0 and >= `min_backoff_seconds`. None: 3600.
        max_doublings: How often the delay doubles, >= 0; after that it grows by the same amount each time. None: 16.
        task_retry_limit: Retries after the first attempt, >= 0. None: no limit.
        task_age_limit: Seconds since the first attempt in which it is retried, >= 0, rounded up. None: no limit.

    Raises:
        InvalidTaskRetryOptionsError: A number is out of its range, NaN or infinite.
        TypeError: A value is not a number.

    Source: GAE taskqueue.TaskRetryOptions.
    """

    min_backoff_seconds: float | None = attrs.field(default=None, validator=_check_number)
    max_backoff_seconds: float | None = attrs.field(default=None, validator=_check_maximum)
    max_doublings: int | None = attrs.field(default=None, converter=_to_whole, validator=_check_whole)
    task_retry_limit: int | None = attrs.field(default=None, converter=_to_whole, validator=_check_whole)
    task_age_limit: int | None = attrs.field(default=None, converter=_round_up, validator=_check_number)


def _check_retry_options(options: object) -> TaskRetryOptions | None:
    if options is None or isinstance(options, TaskRetryOptions):
        return options
    raise InvalidTaskError(f"retry_options {shorten(options)} is of type {type(options).__name__}; it must be a TaskRetryOptions.")


# --- what goes where, method by method (SPEC 1.2) ------------------------------------------------------------------

# URL with query, and payload, as they are stored.
_Content = tuple[str, bytes | None]


def _compose_post(path: str, query: str, body: bytes | None, form: str | None) -> _Content:
    if query:
        raise InvalidTaskError(f"The URL has a query {show_size(query)}, which a POST task may not have; pass it as params.")
    if form is None:
        return path, body
    return path, _form_body(body, form)


def _compose_pull(path: str, query: str, body: bytes | None, form: str | None) -> _Content:
    if path:
        raise InvalidTaskError(f"The URL {shorten(path)} cannot go with method PULL; a pull task is leased, not sent.")
    if form is not None:
        return "", _form_body(body, form)
    if body is None:
        raise InvalidTaskError("A PULL task has neither payload nor params; pass one of them (payload='' is one).")
    return "", body


def _compose_put(path: str, query: str, body: bytes | None, form: str | None) -> _Content:
    return _join(path, form or query), body


def _compose_bodiless(path: str, query: str, body: bytes | None, form: str | None) -> _Content:
    if body:
        raise InvalidTaskError("A payload can only go with the methods POST, PUT and PULL; use params.")
    return _join(path, form or query), None


def _form_body(body: bytes | None, form: str) -> bytes:
    if body:
        raise InvalidTaskError("Payload and params are both given; pass one of them.")
    return form.encode("ascii")


def _join(path: str, query: str) -> str:
    return f"{path}?{query}" if query else path


_COMPOSE: Final[dict[str, Callable[[str, str, bytes | None, str | None], _Content]]] = {
    "POST": _compose_post,
    "PUT": _compose_put,
    "GET": _compose_bodiless,
    "HEAD": _compose_bodiless,
    "DELETE": _compose_bodiless,
    "PULL": _compose_pull,
}


def _add_content_type(headers: HeaderPairs, default: HeaderPairs) -> HeaderPairs:
    return headers if _has_header(headers, "content-type") else headers + default


def _has_header(headers: HeaderPairs, key: str) -> bool:
    return any(name.lower() == key for name, _ in headers)


# --- Task ----------------------------------------------------------------------------------------------------------


class Task:
    """A unit of work: a request to be sent to a handler (push), or a payload to be leased by a consumer (pull).

    Args:
        payload: The body; text is sent as UTF-8. For POST, PUT and PULL.
        name: At most one task of this name is added to a queue: ``[a-zA-Z0-9_-]{1,500}``. None: generated at add.
        method: ``POST``, ``GET``, ``HEAD``, ``PUT``, ``DELETE``, or ``PULL`` for a task to be leased.
        url: Relative, beginning with ``/``; the path has at most 2083 characters. Empty: ``/_ah/queue/<queue name>``.
        headers: Sent along. At most 64, 16 KiB together. A list of values repeats the header. ``X-AppEngine-*`` are
            dropped, but for ``X-AppEngine-FailFast``.
        params: Sent form-encoded, as body of POST and PULL and as query otherwise. A list of values repeats the key.
        countdown: Not before so many seconds after the add (a number, text of one, or a timedelta; may be negative).
        eta: Not before this moment; a naive datetime is local time. Not together with `countdown`.
        retry_options: Replaces the queue's.
        target: A name in the service's ``targets``. Not together with a Host header.
        tag: Groups pull tasks; at most 500 characters.
        dispatch_deadline_seconds: How long the handler may take, in seconds, 1 to 86,400. None: as the queue says.

    Raises:
        InvalidTaskError: An argument, or a mixture of them, is wrong; with the subclasses InvalidTaskNameError,
            InvalidUrlError, InvalidEtaError and TaskTooLargeError (over 102,400 bytes, for pull 1,048,576).
        InvalidTagError: The tag is too long, or no text that can be stored.
        InvalidDispatchDeadlineError: The deadline is out of range.
        TypeError: An argument is unknown, or the deadline is not a number.

    A task may be added once. It is delivered at least once: handlers must bear being called again.

    Example:
        >>> task = Task(url="/mail", params={"to": "ann", "copy": ["bob", "eve"]})
        >>> task.payload
        b'to=ann&copy=bob&copy=eve'

    Source: GAE taskqueue.Task.
    """

    __slots__ = (
        "_countdown_usec",
        "_dispatch_deadline_seconds",
        "_eta_usec",
        "_headers",
        "_method",
        "_name",
        "_on_queue_url",
        "_payload",
        "_queue_name",
        "_retry_count",
        "_retry_options",
        "_tag",
        "_target",
        "_url",
        "_was_deleted",
    )

    def __init__(
        self,
        payload: str | bytes | None = None,
        *,
        name: str | None = None,
        method: str = "POST",
        url: str | URL | None = "",
        headers: Headers | None = None,
        params: Params | None = None,
        countdown: float | str | Decimal | timedelta | None = None,
        eta: datetime | None = None,
        retry_options: TaskRetryOptions | None = None,
        target: str | None = None,
        tag: str | None = None,
        dispatch_deadline_seconds: float | None = None,
    ) -> None:
        # The order of the checks is App Engine's: the first failure is the one reported (SPEC 1.1).
        self._name = check_name(name)
        path, query = split_url(url)
        self._on_queue_url = not path
        self._method = check_method(method)
        self._set_content(payload, path, query, params, headers, tag)
        self._set_target(target)
        self._set_moment(countdown, eta)
        self._check_size()
        self._tag = check_tag(tag)
        self._dispatch_deadline_seconds = check_dispatch_deadline(dispatch_deadline_seconds)
        self._retry_options = _check_retry_options(retry_options)
        self._queue_name: str | None = None
        self._retry_count = 0
        self._was_deleted = False

    def _set_content(
        self, payload: str | bytes | None, path: str, query: str, params: Params | None, headers: Headers | None, tag: str | None
    ) -> None:
        form = encode_params(params)
        if query and form is not None:
            raise InvalidTaskError(f"The URL has a query {show_size(query)} and there are params; pass one of them.")
        if tag is not None and self._method != "PULL":
            raise InvalidTaskError(f"A tag cannot go with method {self._method}; only PULL tasks have a tag.")
        if headers and self._method == "PULL":
            raise InvalidTaskError("Headers cannot go with method PULL; a pull task is leased, not sent.")
        self._url, self._payload = _COMPOSE[self._method](path, query, encode_payload(payload), form)
        self._headers = check_headers(headers)
        if form is not None and self._method == "POST":
            self._headers = _add_content_type(self._headers, _FORM_HEADERS)
        elif isinstance(payload, str) and self._payload is not None:
            self._headers = _add_content_type(self._headers, _TEXT_HEADERS)

    def _set_target(self, target: str | None) -> None:
        self._target = check_target(target)
        if self._target is None:
            return
        if self._method == "PULL":
            raise InvalidTaskError(f"Target {shorten(mask_url(self._target))} cannot go with method PULL; a pull task is leased, not sent.")
        if _has_header(self._headers, "host"):
            raise InvalidTaskError(f"Target {shorten(mask_url(self._target))} and a Host header are both given; pass one of them.")

    def _set_moment(self, countdown: float | str | Decimal | timedelta | None, eta: datetime | None) -> None:
        if eta is not None and countdown is not None:
            raise InvalidTaskError(f"ETA {shorten(eta)} and countdown {shorten(countdown)} are both given; pass one of them.")
        # Only the service's clock tells time, so a countdown is turned into an ETA by the add.
        self._countdown_usec = 0 if countdown is None else convert_countdown(countdown)
        self._eta_usec = None if eta is None else convert_eta(eta)

    def _check_size(self) -> None:
        limit = MAX_PULL_TASK_BYTES if self._method == "PULL" else MAX_PUSH_TASK_BYTES
        if self.size > limit:
            raise TaskTooLargeError(f"The task is {self.size} bytes large; at most {limit} are allowed for method {self._method}.")

    async def add(self, queue_name: str = "default", transactional: bool = False) -> Task:
        """Add the task to a queue of the current service; when this returns it is stored.

        Args:
            queue_name: The queue.
            transactional: Make it part of the transaction that is open (``service.transaction``).

        Returns:
            The task itself, now with name, queue name and ETA.

        Raises:
            BadTaskStateError: It was added before.
            TaskAlreadyExistsError: A task of this name is in the queue.
            TombstonedTaskError: The name was used before.
            UnknownQueueError: No such queue is configured.
            NotStartedError: No service is running, or several are and none of them is the current one.
        """
        await current_service().add_tasks(queue_name, [self], transactional)
        return self

    def extract_params(self) -> dict[str, str | list[str]]:
        """Return the params that the task carries: POST and PULL in the payload, others in the query of the URL.

        Returns:
            The value of each key in UTF-8 text; a list, in order, for a key that appears more than once.

        Raises:
            ValueError: The payload is not form-encoded text.
        """
        is_in_payload = self._method in ("POST", "PULL")
        source = (self._payload or b"") if is_in_payload else self._url.partition("?")[2].encode()
        params = _parse_form(source)
        if params is None:
            where = "payload" if is_in_payload else "query"
            raise ValueError(f"The {where} of {len(source)} bytes is not form-encoded text; it was not made of params.")
        return params

    # --- read-only properties ---

    @property
    def name(self) -> str | None:
        """The name; None before the add, if it is to be generated."""
        return self._name

    @property
    def method(self) -> str:
        """The method, in upper case."""
        return self._method

    @property
    def url(self) -> str:
        """The relative URL with its query, percent-encoded.

        Before the add the path is empty if none was given, afterwards it is the queue's default one; always for PULL.
        """
        return self._url

    @property
    def on_queue_url(self) -> bool:
        """Whether the queue's default URL is used; for PULL, which has no URL, True."""
        return self._on_queue_url

    @property
    def payload(self) -> bytes | None:
        """The body."""
        return self._payload

    @property
    def headers(self) -> CIMultiDict[str]:
        """A copy of the headers; keys are found in any case."""
        return CIMultiDict(self._headers)

    @property
    def eta(self) -> datetime | None:
        """The moment before which it is not run, in UTC; None before the add, unless one was given.

        Of a leased pull task: when the lease ends.
        """
        return None if self._eta_usec is None else EPOCH + timedelta(microseconds=self._eta_usec)

    @property
    def eta_posix(self) -> float | None:
        """The ETA in seconds since 1970, UTC; None before the add, unless one was given."""
        return None if self._eta_usec is None else self._eta_usec / 1_000_000

    @property
    def tag(self) -> str | None:
        """The tag of a pull task."""
        return self._tag

    @property
    def target(self) -> str | None:
        """The name of the target, as it was given."""
        return self._target

    @property
    def retry_options(self) -> TaskRetryOptions | None:
        """The task's own retry options."""
        return self._retry_options

    @property
    def dispatch_deadline_seconds(self) -> float | None:
        """The task's own deadline, in seconds."""
        return self._dispatch_deadline_seconds

    @property
    def retry_count(self) -> int:
        """Failed attempts so far; for a pull task, how often it was leased."""
        return self._retry_count

    @property
    def queue_name(self) -> str | None:
        """The queue, once the task was added or leased."""
        return self._queue_name

    @property
    def was_enqueued(self) -> bool:
        """Whether the task was added or leased; it need not exist any more."""
        return self._queue_name is not None

    @property
    def was_deleted(self) -> bool:
        """Whether a delete call has removed the task."""
        return self._was_deleted

    @property
    def size(self) -> int:
        """Bytes of method, payload, URL and headers, each header with a colon, a blank and a line end."""
        return len(self._method) + len(self._payload or b"") + len(self._url) + count_headers_bytes(self._headers)

    def __repr__(self) -> str:
        names = _PULL_SHOWN if self._method == "PULL" else _PUSH_SHOWN
        return f"Task<{', '.join([f'{name}={self._show(name)}' for name in names])}>"

    def _show(self, name: str) -> str:
        value = self._headers if name == "headers" else getattr(self, name)
        return _SHOWN_AS.get(name, repr)(value)

    # --- for the service ---

    def _mark_enqueued(self, record: TaskRecord) -> None:
        """Take over what the add has decided."""
        self._name = record.name
        self._queue_name = record.queue_name
        self._url = record.url
        self._eta_usec = record.eta_usec

    def _mark_deleted(self) -> None:
        """Note that a delete call has removed the task."""
        self._was_deleted = True

    def _mark_leased_until(self, eta_usec: int) -> None:
        """Note that the lease of this pull task now ends at `eta_usec`."""
        self._eta_usec = eta_usec


def _parse_form(source: bytes) -> dict[str, str | list[str]] | None:
    """Return the params, None if they are none. The error of the standard library would quote them."""
    if not source:
        return {}
    by_key: dict[str, list[str]] = {}
    try:
        # Strict: App Engine raises ValueError for a field without `=`.
        for key, value in parse_qsl(source.decode(), keep_blank_values=True, strict_parsing=True, errors="strict"):
            by_key.setdefault(key, []).append(value)
    except ValueError:
        return None
    return {key: values[0] if len(values) == 1 else values for key, values in by_key.items()}
