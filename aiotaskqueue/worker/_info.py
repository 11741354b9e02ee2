"""The task that is running: what a handler may know about it."""

from __future__ import annotations

import datetime
from contextvars import ContextVar
from typing import TYPE_CHECKING, Self

import attrs

from aiotaskqueue.errors import NotInTaskError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiotaskqueue._clock import Clock, Timer
    from aiotaskqueue._headers import TaskHeaders

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_current: ContextVar[running | None] = ContextVar("aiotaskqueue_current_task", default=None)


@attrs.frozen
class TaskInfo:
    """The task whose request this is, and its attempt.

    All but `previous_response` and `retry_reason` are under the delivery's signature; do not decide about access by
    those two.
    """

    uuid: str
    """32 hexadecimal digits, the same on every attempt: an idempotency key for other systems."""
    queue_name: str
    name: str
    retry_count: int
    """Failed attempts so far, also those that never reached a handler; 0 on the first."""
    execution_count: int
    """Attempts so far that reached the target and failed there."""
    eta_usec: int
    """When this attempt was due, in microseconds since 1970, UTC."""
    deadline_seconds: float
    """How long this attempt may take, counted from the arrival of its head."""
    previous_response: int | None
    """HTTP status of the previous attempt, if it got an answer."""
    retry_reason: str | None
    """One word for why the previous attempt failed."""
    _clock: Clock = attrs.field(repr=False, eq=False)
    _ends_at: float = attrs.field(repr=False, eq=False)

    @classmethod
    def from_headers(cls, headers: TaskHeaders, clock: Clock) -> Self:
        """Return the task of the request whose head has arrived now: its deadline runs from here."""
        return cls(*headers, clock, clock.monotonic() + headers.deadline_seconds)

    @property
    def eta(self) -> datetime.datetime:
        """When this attempt was due, as an aware UTC datetime."""
        return _EPOCH + datetime.timedelta(microseconds=self.eta_usec)

    def remaining_seconds(self) -> float:
        """Return the time until the deadline, in seconds; 0.0 once it has passed."""
        return max(0.0, self._ends_at - self._clock.monotonic())

    def _call_after_deadline(self, seconds: float, callback: Callable[[], object]) -> Timer:
        return self._clock.call_at(self._ends_at + seconds, callback)


def current_task() -> TaskInfo:
    """Return the task whose request is being handled; also in what the handler has started, until it has ended.

    Raises:
        NotInTaskError: The code does not run inside of a genuine delivery to a ``@task`` handler, or the handler has ended.
    """
    block = _current.get()
    info = block.info if block is not None else None
    if info is None:
        raise NotInTaskError("There is no current task; call current_task() inside of a @task handler that a queue has called.")
    return info


class running:  # a block's word, as those of contextlib
    """Makes `info` the current task while the block runs; None: there is no current task in it."""

    __slots__ = ("_token", "info")

    def __init__(self, info: TaskInfo | None) -> None:
        self.info = info

    def __enter__(self) -> None:
        self._token = _current.set(self)

    def __exit__(self, *exc_info: object) -> None:
        # Tasks and threads that were started within the block have a copy of its context.
        self.info = None
        # A server may handle the next request of a connection in the same context.
        _current.reset(self._token)
