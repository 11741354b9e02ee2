"""The Store seam: a small set of verbs that remember tasks.

Every verb is one transaction. Verbs that write may be cancelled by their caller at any time: they then did happen or
did not, never by half. Stores do not tell the time: `now_usec` is an argument, microseconds since 1970, UTC.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from aiotaskqueue._masking import show_path, show_size

if TYPE_CHECKING:
    from aiotaskqueue._config import QueueConfig
    from aiotaskqueue._record import AttemptRecord, TaskRecord, TaskState

# How many failed attempts are kept for each task (the last ones).
ATTEMPTS_KEPT = 10

# A lease outlives its attempt's deadline and grace by this, so that the attempt's outcome always comes first.
LEASE_SLACK_SECONDS = 10.0


class AddVerdict(enum.Enum):
    """What became of one task in an add."""

    STORED = enum.auto()
    LEASED = enum.auto()
    """Stored, and leased in the same commit: the caller has to deliver it."""
    EXISTS = enum.auto()
    """Not stored: the name is that of a live task."""
    TOMBSTONED = enum.auto()
    """Not stored: the name was used before, or a dead task holds it."""


@attrs.frozen
class Added:
    """The result of an add: a verdict for each task, in order, and the tasks that were born leased."""

    verdicts: Sequence[AddVerdict]
    leased: Sequence[TaskRecord] = ()


@attrs.frozen
class LeaseRequest:
    """How much a dispatcher wants to lease."""

    places: int
    """At most this many tasks, over all queues."""
    queues: Sequence[QueueConfig]
    """Push queues to lease from; their rate, bucket and concurrency are granted in the same transaction."""
    suspect_queue: str | None = None
    """The queue of the task that is being retried alone in this process: nothing is leased from it, nor another suspect."""


# --- outcomes of an attempt ----------------------------------------------------------------------------------------


@attrs.frozen
class Delete:
    """Success: the task is done; if it was named, its name stays reserved until `tombstone_until_usec`."""

    tombstone_until_usec: int | None = None


@attrs.frozen(kw_only=True)
class Retry:
    """Failed, and tried again at `eta_usec`."""

    eta_usec: int
    is_attempt: bool = True
    """False: it is taken back as if it had not been tried (target not up yet)."""
    is_execution: bool = False
    is_stale: bool = False
    is_conclusive: bool = True
    """False: it was not tried to its end (target not up, drain); a suspect stays one."""
    log: AttemptRecord | None = None


@attrs.frozen(kw_only=True)
class Dead:
    """Failed, and given up."""

    reason: str
    keep_until_usec: int
    is_execution: bool = False
    log: AttemptRecord


Outcome = Delete | Retry | Dead


@attrs.frozen
class Settlement:
    """How the attempt in flight of a leased task ended."""

    record: TaskRecord
    outcome: Outcome


@attrs.frozen
class Exchange:
    """What one turn of a dispatcher brought."""

    leased: Sequence[TaskRecord] = ()
    stale: Sequence[TaskRecord] = ()
    """Settlements refused, since somebody else has leased, finished or deleted the task."""
    next_eta_usec: int | None = None
    """When leasing may bring more: the next ETA, or the next token of a queue in which tasks are due. None: not by time alone."""
    has_more: bool = False
    """Due tasks were left for want of a place, the process's or their queue's: lease again when an attempt has ended."""
    paused: Sequence[str] = ()
    """The queues of the request that are paused."""


@attrs.frozen
class StoredStatistics:
    """Figures of one queue."""

    tasks: int
    oldest_eta_usec: int | None
    in_flight: int
    is_paused: bool = False
    executed_last_minute: int = 0


@attrs.frozen(kw_only=True)
class TaskFilter:
    """Which tasks to list; None: any."""

    url: str | None = attrs.field(default=None, repr=show_path)
    """Exactly this URL, with its query."""
    tag: str | None = attrs.field(default=None, repr=show_size)
    name_prefix: str | None = None


def tombstone_until_usec(queue: QueueConfig, now_usec: int) -> int | None:
    """Return until when a given name that is freed now stays reserved; None: it does not."""
    return now_usec + round(queue.tombstone_seconds * 1_000_000) if queue.tombstone_seconds else None


class Store(ABC):
    """Remembers tasks. One store object belongs to one service."""

    # --- life ---

    @abstractmethod
    async def open(self, *, now_usec: int) -> None:
        """Connect, bring the schema up to date and register this process."""

    @abstractmethod
    async def run(self, *, on_change: Callable[[], None], on_orphans: Callable[[], None]) -> None:
        """Do the work that goes on in the background, all writing included, until `stop`.

        Args:
            on_change: Called when another process (or connection) has written.
            on_orphans: Called when `rescue` may have work: a process has died, or may hang.
        """

    @abstractmethod
    def stop(self) -> None:
        """Take no more writes; `run` ends once those that were submitted are done."""

    @abstractmethod
    async def aclose(self) -> None:
        """Unregister this process and free everything, after `run` has ended; twice is fine."""

    @abstractmethod
    async def configure(self, queues: Sequence[QueueConfig], *, now_usec: int) -> Sequence[str]:
        """Make sure that each queue has its row; return the names of queues that have tasks but no configuration."""

    @abstractmethod
    async def fetch_secrets(self, new_secret: bytes, *, now_usec: int) -> Sequence[bytes]:
        """Return the signing keys, newest first; store `new_secret` as the first one if there is none."""

    @abstractmethod
    async def announce_keys(self, key_ids: Sequence[str]) -> Sequence[Sequence[str]]:
        """Note the names of the signing keys that this process uses, the newest first.

        Returns:
            The same of each other process that uses keys and certainly lives.
        """

    # --- the way of a task ---

    @abstractmethod
    async def add(
        self,
        records: Sequence[TaskRecord],
        configs: Sequence[QueueConfig],
        *,
        now_usec: int,
        places: int = 0,
        on_leased: Callable[[Sequence[TaskRecord]], None] | None = None,
    ) -> Sequence[AddVerdict]:
        """Store new tasks, `configs[i]` being the queue of `records[i]`; lease up to `places` of them in the same commit.

        A task is born leased if it is a push task due now, its queue is not paused, no other due task waits in it and
        place and token are granted. `on_leased` is called exactly once, at the end, with those that were, none if the
        add failed: also when the caller was cancelled, for the tasks then are leased all the same.

        Returns:
            A verdict for each task, in order.
        """

    @abstractmethod
    async def exchange(self, settlements: Sequence[Settlement], request: LeaseRequest | None, *, now_usec: int) -> Exchange:
        """Apply outcomes, each only if its task still carries its token, and lease what may start now, in one transaction."""

    @abstractmethod
    async def list_own_leases(self) -> Sequence[TaskRecord]:
        """Return the tasks that this process has leased, after all writes that were submitted before.

        For a dispatcher that does not know whether a commit with leases in it has happened.
        """

    @abstractmethod
    async def rescue(self, configs: Sequence[QueueConfig], *, now_usec: int) -> Sequence[TaskRecord]:
        """Make the tasks of dead processes ready again, as suspects, or dead by the queue's crash limit; return them."""

    @abstractmethod
    async def announce_drain(self) -> None:
        """Note that this process is about to end: a crash from here on is nobody's fault."""

    @abstractmethod
    async def sweep(self, *, now_usec: int, limit: int) -> int:
        """Remove up to `limit` expired tombstones and dead tasks past their retention each; return how many went."""

    # --- managing ---

    @abstractmethod
    async def delete_tasks(self, queue: QueueConfig, names: Sequence[str], *, now_usec: int) -> Sequence[bool]:
        """Delete tasks of any state, also leased ones; given names stay reserved for the queue's tombstone time.

        Returns:
            For each name, in order, whether there was such a task.
        """

    @abstractmethod
    async def purge(self, queue: QueueConfig, *, now_usec: int) -> None:
        """Delete all tasks of a queue at once; given names stay reserved as after `delete_tasks`."""

    @abstractmethod
    async def set_paused(self, queue: QueueConfig, is_paused: bool) -> None:
        """Pause a queue or let it go on, for all processes."""

    @abstractmethod
    async def force(self, queue: QueueConfig, name: str) -> TaskState | None:
        """Let a waiting task be leased next, past ETA, pause, rate and places, its ETA being 0; a leased one is left alone.

        Returns:
            The state in which it was found; None: there is no such task. A dead one is left alone too.
        """

    @abstractmethod
    async def revive(self, queue: QueueConfig, names: Sequence[str], edited: Sequence[TaskRecord], *, now_usec: int) -> Sequence[str]:
        """Make dead tasks ready, their counts and their age from zero, or none of them if one is not dead.

        Args:
            queue: The queue.
            names: Which.
            edited: Dead tasks as they were read, with the URL, headers and payload that they get; may be empty.
            now_usec: The time, and their ETA.

        Returns:
            Names of tasks that are not dead, or not there; if there are any, nothing was changed.
        """

    # --- looking ---

    @abstractmethod
    async def get_task(self, queue_name: str, name: str) -> TaskRecord | None:
        """Return one task of any state, or None."""

    @abstractmethod
    async def list_tasks(
        self,
        queue_name: str,
        *,
        states: Sequence[TaskState],
        such: TaskFilter | None = None,
        after: tuple[int, str] | None = None,
        limit: int = 1000,
    ) -> Sequence[TaskRecord]:
        """Return up to `limit` tasks by ETA and name, those after the pair `after` of them; `such` says which."""

    @abstractmethod
    async def list_attempts(self, record: TaskRecord) -> Sequence[AttemptRecord]:
        """Return the last failed attempts of a task, oldest first."""

    @abstractmethod
    async def fetch_statistics(self, queue_names: Sequence[str], *, now_usec: int) -> Sequence[StoredStatistics]:
        """Return the figures of each queue, in order; an unknown one has no tasks."""
