"""Genuine deliveries made by hand, and a clock that stands still: for tests of the worker's side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiotaskqueue._clock import Clock, Timer, Wakeup
from aiotaskqueue._headers import task_headers
from aiotaskqueue._record import TaskRecord, TaskState
from aiotaskqueue.signing import KeyRing, sign

NOW = 1_767_323_045
SECRET = bytes(range(32))
UUID = bytes(range(16))
BODY = b"key=value"

Headers = list[tuple[str, str]]


class NoTimer:
    """A timer that never fires."""

    def cancel(self) -> None:
        """Do nothing."""


class StoppedClock(Clock):
    """Shows `now` until a test changes it."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def time(self) -> float:
        """Return what the test set."""
        return self.now

    def monotonic(self) -> float:
        """Return another number, which moves along with the time."""
        return self.now - 1_000_000

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Set no timer: no time passes here."""
        return NoTimer()

    async def wait(self, wakeup: Wakeup, until_usec: int | None = None, *, is_chore: bool = False) -> None:
        """Fail: nothing sleeps here."""
        raise NotImplementedError


def make_record(**changes: Any) -> TaskRecord:
    """Return a task that is on its first attempt."""
    fields: dict[str, Any] = {
        "uuid": UUID,
        "queue_name": "mail",
        "name": "welcome-1",
        "url": "/worker",
        "payload": BODY,
        "eta_usec": NOW * 1_000_000,
        "created_usec": NOW * 1_000_000,
        "state": TaskState.LEASED,
        "attempts": 1,
        "lease_token": 7,
    }
    return TaskRecord(**{**fields, **changes})


def signed_headers(record: TaskRecord, *, keys: KeyRing | None = None, created: int = NOW, deadline_seconds: float = 30.0) -> Headers:
    """Return all headers of the record's delivery, signed."""
    path, _, query = record.url.partition("?")
    headers = task_headers(record, deadline_seconds=deadline_seconds)
    return headers + sign(
        keys or KeyRing([SECRET]),
        method=record.method,
        path=path,
        query=query,
        headers=headers,
        body=record.payload or b"",
        created=created,
        deadline_seconds=deadline_seconds,
    )


def replaced(headers: Headers, name: str, value: str) -> Headers:
    """Return the headers with another value of the one called `name`."""
    return [(key, value if key == name else old) for key, old in headers]


def without(headers: Headers, name: str) -> Headers:
    """Return the headers but the one called `name`."""
    return [(key, value) for key, value in headers if key != name]
