"""TaskRecord: a task as a store keeps it. Frozen; what users hold is Task. Here is also the way from one to the other."""

from __future__ import annotations

import enum
import os
import random
from binascii import b2a_base64
from collections.abc import Sequence
from typing import Final

import attrs

from aiotaskqueue._masking import show_names, show_path, show_size
from aiotaskqueue._task import Task, TaskRetryOptions
from aiotaskqueue._task_arguments import add_countdown


class TaskState(enum.IntEnum):
    """Where a stored task stands. The numbers are in the database: never change one."""

    READY = 0
    """Waits for its ETA, a place and a token."""
    LEASED = 1
    """In the hands of a dispatcher; see `lease_token`."""
    DEAD = 2
    """Given up; kept for a while, holds its name, can be revived."""
    SUSPECT = 3
    """Ready, but was in flight when a process crashed: retried alone."""


@attrs.frozen(kw_only=True)
class TaskRecord:
    """One row: what the task is, and how far it has got.

    Times are microseconds since 1970, UTC. A store fills the fields below the line; new tasks have their defaults.
    """

    uuid: bytes
    """16 bytes, the same over all attempts and after revive."""
    queue_name: str
    name: str
    is_named: bool = False
    """The user gave the name: it leaves a tombstone."""
    method: str = "POST"
    url: str = attrs.field(default="", repr=show_path)
    """Relative, percent-encoded, with its query; empty for PULL."""
    headers: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=show_names)
    payload: bytes | None = attrs.field(default=None, repr=show_size)
    tag: str | None = attrs.field(default=None, repr=show_size)
    target: str | None = None
    retry_options: TaskRetryOptions | None = None
    dispatch_deadline_seconds: float | None = None
    eta_usec: int
    created_usec: int

    # --------------------------------------------------------------------------------------------------------------
    id: int = 0
    """The store's own key, meaningless outside of it."""
    state: TaskState = TaskState.READY
    attempts: int = 0
    """Counted when leased, before anything is sent; the attempt in flight is included."""
    executions: int = 0
    """Ended attempts whose request was sent and that got an answer or the deadline, without success."""
    lease_token: int = 0
    """Fencing: grows with every lease; outcomes that carry an older one are refused."""
    lease_expires_usec: int | None = None
    first_attempt_usec: int | None = None
    previous_status: int | None = None
    """Status of the previous attempt, if it got an answer."""
    retry_reason: str | None = None
    """One word for why the previous attempt failed."""
    was_stale: bool = False
    """The previous attempt died on a reused connection before the first byte of an answer (at most once in a row)."""
    is_suspect: bool = False
    """Leased to be retried alone, since it was in flight when a process crashed."""
    crashes: int = 0
    """Crashes in a row in which this task was the only suspect in flight."""
    dead_usec: int | None = None
    dead_reason: str | None = None

    @property
    def retry_count(self) -> int:
        """Failed attempts so far: the one in flight is not counted."""
        return self.attempts - 1 if self.state is TaskState.LEASED else self.attempts


@attrs.frozen(kw_only=True)
class AttemptRecord:
    """One failed attempt of a task, from its log of the last ten."""

    attempt: int
    """1 for the first."""
    started_usec: int
    ended_usec: int
    reason: str
    """One word: ``status``, ``deadline``, ``truncated``, ``crash``, ... (`FailureReason`)."""
    status: int | None = None
    detail: str = attrs.field(default="", repr=show_size)
    """At most 2 KiB of text from the worker or from the error, without terminal codes; it may quote the payload."""


@attrs.frozen(kw_only=True, eq=False)
class StoredTask:
    """A task in the store, and how far it has got: what `Queue.get_task` and `Queue.list_tasks` give.

    It shows one moment and does not change. Times are microseconds since 1970, UTC.
    """

    task: Task
    """What was added: name, URL, payload, ... It can be given to `Queue.delete_tasks`."""
    uuid: str
    """32 hex digits, the same over all attempts and after `Queue.revive`."""
    state: TaskState
    eta_usec: int
    created_usec: int
    retry_count: int
    """Failed attempts so far; the one in flight is not counted."""
    execution_count: int
    """Attempts that were answered, or ran into the deadline, without success."""
    first_attempt_usec: int | None
    previous_response: int | None
    """Status of the previous attempt, if it got an answer."""
    retry_reason: str | None
    """One word for why the previous attempt failed."""
    lease_expires_usec: int | None
    """When its attempt in flight is given up for lost; None: none is in flight."""
    dead_usec: int | None
    """When it was given up; None: it was not."""
    dead_reason: str | None
    """One word for why it was given up."""
    attempts: tuple[AttemptRecord, ...] | None = None
    """The last ten failed attempts, oldest first; None in a list, where only `Queue.get_task` knows."""

    @property
    def name(self) -> str:
        """The name."""
        return self.cursor[1]

    @property
    def cursor(self) -> tuple[int, str]:
        """Its place in a list: ``after=`` this comes what follows it."""
        assert self.task.name is not None
        return self.eta_usec, self.task.name


# --- from Task to TaskRecord and back ------------------------------------------------------------------------------


def default_url(queue_name: str) -> str:
    """Return the URL of tasks of this queue that have none of their own."""
    return f"/_ah/queue/{queue_name}"


def record_of(task: Task, *, queue_name: str, name: str, uuid: bytes, now_usec: int) -> TaskRecord:
    """Return the record to be stored for a task that was not added before.

    Args:
        task: The task.
        queue_name: The queue; it also makes the default URL.
        name: The task's own name, or a generated one if it has none.
        uuid: 16 bytes, from NameGenerator.
        now_usec: The time of the add: the ETA, or what a countdown is added to.

    Raises:
        InvalidEtaError: The countdown leads to before 1970 or after the year 9999.
    """
    is_on_default_url = task._on_queue_url and task._method != "PULL"
    return TaskRecord(
        uuid=uuid,
        queue_name=queue_name,
        name=name,
        is_named=task._name is not None,
        method=task._method,
        url=default_url(queue_name) + task._url if is_on_default_url else task._url,
        headers=task._headers,
        payload=task._payload,
        tag=task._tag or None,
        target=task._target,
        retry_options=task._retry_options,
        dispatch_deadline_seconds=task._dispatch_deadline_seconds,
        eta_usec=add_countdown(now_usec, task._countdown_usec) if task._eta_usec is None else task._eta_usec,
        created_usec=now_usec,
    )


def task_of(record: TaskRecord) -> Task:
    """Return the Task that shows a stored task to its user; nothing is checked again.

    A leased pull task has the end of its lease as ETA, and the number of its leases as retry count (SPEC 3.9).
    """
    is_pull = record.method == "PULL"
    is_leased_pull = is_pull and record.lease_expires_usec is not None
    task = Task.__new__(Task)
    task._name = record.name
    task._queue_name = record.queue_name
    task._method = record.method
    task._url = record.url
    task._on_queue_url = is_pull or record.url.partition("?")[0] == default_url(record.queue_name)
    task._headers = record.headers
    task._payload = record.payload
    task._tag = record.tag
    task._target = record.target
    task._retry_options = record.retry_options
    task._dispatch_deadline_seconds = record.dispatch_deadline_seconds
    task._countdown_usec = 0
    task._eta_usec = record.lease_expires_usec if is_leased_pull else record.eta_usec
    task._retry_count = record.attempts if is_pull else record.retry_count
    task._was_deleted = False
    return task


def stored_task_of(record: TaskRecord, attempts: Sequence[AttemptRecord] | None = None) -> StoredTask:
    """Return what shows a stored task to whoever manages it."""
    return StoredTask(
        task=task_of(record),
        uuid=record.uuid.hex(),
        state=record.state,
        eta_usec=record.eta_usec,
        created_usec=record.created_usec,
        retry_count=record.retry_count,
        execution_count=record.executions,
        first_attempt_usec=record.first_attempt_usec,
        previous_response=record.previous_status,
        retry_reason=record.retry_reason,
        lease_expires_usec=record.lease_expires_usec,
        dead_usec=record.dead_usec,
        dead_reason=record.dead_reason,
        attempts=None if attempts is None else tuple(attempts),
    )


# --- names and uuids -----------------------------------------------------------------------------------------------

# Standard base64 has its letters in another order than ASCII, and two that a name may not have.
_STANDARD_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_IN_ASCII_ORDER: Final = bytes.maketrans(_STANDARD_ALPHABET, bytes(sorted(b"-_" + _STANDARD_ALPHABET[:62])))

# 9 letters of 6 bits: microseconds until the year 2540; then names begin anew, and are still unique by their random part.
_TIME_MASK: Final = (1 << 54) - 1

# Version 4 and variant of RFC 9562.
_UUID_FIXED_BITS: Final = 0xF << 76 | 0b11 << 62
_UUID_VERSION: Final = 0x4 << 76 | 0b10 << 62


# The cost of cutting it grows with its size, that of filling it falls.
_POOL_BYTES: Final = 1024


class NameGenerator:
    """Makes names and uuids for new tasks.

    Names are 22 characters: 9 of time and 13 random. They sort in the order in which they were made, so that inserts stay
    at the right edge of the index and tasks of one ETA start in the order of their adds: a second name of one microsecond
    says the next. 78 random bits keep apart the names of different processes.

    Args:
        seed: For tests: the same names on each run. None: from the system's random source, which also survives a fork.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._make_bytes = os.urandom if seed is None else random.Random(seed).randbytes
        # Taken from the system by the page: a call for each name and each uuid would take as long as all the rest of it. The
        # pool is filled at the first add, and whoever has added cannot be used in a forked child.
        self._pool = b""
        self._last_usec = -1

    def name(self, now_usec: int) -> str:
        """Return a new name."""
        now_usec = self._last_usec = max(now_usec, self._last_usec + 1)
        # 54 bits of time, 78 random ones, and 12 more that are cut off, to make whole bytes: 24 letters of 6 bits.
        number = (now_usec & _TIME_MASK) << 90 | int.from_bytes(self._take(11), "big") << 2
        letters = b2a_base64(number.to_bytes(18, "big"), newline=False)[:22]
        return letters.translate(_IN_ASCII_ORDER).decode("ascii")

    def uuid(self) -> bytes:
        """Return a new random uuid (RFC 9562 version 4) as 16 bytes."""
        number = int.from_bytes(self._take(16), "big") & ~_UUID_FIXED_BITS | _UUID_VERSION
        return number.to_bytes(16, "big")

    def _take(self, count: int) -> bytes:
        if len(self._pool) < count:
            self._pool = self._make_bytes(_POOL_BYTES)
        taken, self._pool = self._pool[:count], self._pool[count:]
        return taken
