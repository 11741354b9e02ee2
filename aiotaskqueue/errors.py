"""Every exception of the package, in one tree, with App Engine's names where it has one.

::

    Error
    ├── UnknownQueueError               the queue is not configured
    ├── UnknownTaskError                no task of that name is there
    ├── UnknownTargetError              the target is not configured
    ├── ConfigError                     arguments of the service
    │   └── MalformedQueueConfiguration     queue.yaml, queue.toml (with line and key)
    ├── StoreError                      the store cannot do it
    │   ├── StoreBusyError              locked by somebody else for too long
    │   ├── StoreFullError              no space left, quota, size limit
    │   ├── StoreReadOnlyError          file, folder or mount cannot be written
    │   ├── StoreCorruptError           not a database, or a damaged one
    │   ├── StoreReplacedError          the file was deleted or replaced while open
    │   ├── StoreForeignError           tables with our prefix that are not ours
    │   ├── SchemaTooNewError           written by a newer version
    │   └── OutcomeUnknownError         the commit may or may not have happened
    ├── NotStartedError                 the service is used before start
    ├── ClosedError                     ... or after aclose
    ├── WrongLoopError                  ... or from another event loop or thread
    ├── ForkedProcessError              ... or in a forked child
    ├── NotInTaskError                  there is no current task
    ├── TransientError                  try again later
    ├── InternalError                   a bug of ours
    ├── InvalidTaskError                a bad argument of a task
    │   ├── InvalidTaskNameError
    │   ├── TaskTooLargeError
    │   │   └── TransactionalRequestTooLargeError
    │   ├── TaskAlreadyExistsError
    │   ├── TombstonedTaskError
    │   ├── InvalidUrlError
    │   └── InvalidEtaError
    ├── BadTaskStateError               added twice, deleted twice, ...
    ├── InvalidQueueError               a bad queue definition
    │   └── InvalidQueueNameError
    ├── PermissionDeniedError
    ├── DuplicateTaskNameError          one name twice in one call
    ├── TooManyTasksError               more than 10,000 in one add
    ├── DatastoreError                  the caller's transaction failed
    ├── BadTransactionStateError
    ├── InvalidTaskRetryOptionsError
    ├── InvalidLeaseTimeError
    ├── InvalidMaxTasksError
    ├── InvalidDeadlineError
    ├── InvalidQueueModeError           a push operation on a pull queue, or the reverse
    ├── TaskLeaseExpiredError
    ├── QueuePausedError
    ├── InvalidTagError
    ├── InvalidDispatchDeadlineError
    └── InvalidArgumentError            of a call; also a ValueError

Three families: *your input is wrong* (``http_status`` 400, 404, 409 or 413), *the world failed* (503 or 507) and *you
misused the object* (500). ``http_status`` is what a web application may answer when it lets the error through.

Source: App Engine's ``google.appengine.api.taskqueue`` exceptions.
"""

from __future__ import annotations

from typing import ClassVar


class Error(Exception):
    """Base of every exception that this package raises on purpose."""

    http_status: ClassVar[int] = 500


# --- your input is wrong -------------------------------------------------------------------------------------------


class UnknownQueueError(Error):
    """The queue is not configured; the message names the nearest ones."""

    http_status = 404


class UnknownTaskError(Error):
    """No task of that name is in the queue."""

    http_status = 404


class UnknownTargetError(Error):
    """The target is not among the service's ``targets``."""

    http_status = 400


class ConfigError(Error):
    """An argument of the service, of a worker or of an application is wrong."""


class MalformedQueueConfiguration(ConfigError):
    """A queue.yaml or queue.toml is wrong; the message names file, line and key.

    Args:
        message: What is wrong and what is allowed.
        source: The path of the file, or a word for where the text came from.
        line: The line, counted from 1; None where it is not known.
        key: The dotted key, such as ``queue[0].rate``; None where none applies.
    """

    def __init__(self, message: str, *, source: str = "", line: int | None = None, key: str | None = None) -> None:
        # A path is shown as it is, and as Python would write it where a terminal or a log could not show it.
        shown = source if source.isprintable() and len(source) <= 255 else repr(source[:255])
        place = ", ".join(part for part in (shown, f"line {line}" if line else "", key or "") if part)
        super().__init__(f"{place}: {message}" if place else message)
        self.source = source
        self.line = line
        self.key = key


class InvalidTaskError(Error):
    """An argument of a task, or a mixture of arguments, is wrong."""

    http_status = 400


class InvalidTaskNameError(InvalidTaskError):
    """A task's name does not match ``[a-zA-Z0-9_-]{1,500}``."""


class TaskTooLargeError(InvalidTaskError):
    """A task is larger than 102,400 bytes (push) or 1,048,576 bytes (pull)."""

    http_status = 413


class TransactionalRequestTooLargeError(TaskTooLargeError):
    """The tasks added in one transaction are larger than 1,048,576 bytes together."""


class TaskAlreadyExistsError(InvalidTaskError):
    """A task of that name is in the queue and alive."""

    http_status = 409


class TombstonedTaskError(InvalidTaskError):
    """The name was used before and is still reserved, by a tombstone or by a dead task."""

    http_status = 409


class InvalidUrlError(InvalidTaskError):
    """A task's URL is not a relative, normalised path of at most 2083 characters."""


class InvalidEtaError(InvalidTaskError):
    """A task's ETA is not a moment between 1970 and 9999."""


class InvalidTagError(Error):
    """A tag is longer than 500 characters."""

    http_status = 400


class InvalidDispatchDeadlineError(Error):
    """A task's dispatch deadline is outside of 1 s to 24 h."""

    http_status = 400


class InvalidTaskRetryOptionsError(Error):
    """A field of the retry options is outside of its range."""

    http_status = 400


class InvalidQueueError(Error):
    """A queue is defined wrongly."""

    http_status = 400


class InvalidQueueNameError(InvalidQueueError):
    """A queue's name does not match ``[a-zA-Z0-9-]{1,100}``."""


class InvalidQueueModeError(Error):
    """A push operation on a pull queue, or the reverse."""

    http_status = 400


class DuplicateTaskNameError(Error):
    """One name appears twice in one call."""

    http_status = 400


class TooManyTasksError(Error):
    """More than 10,000 tasks in one add."""

    http_status = 413


class InvalidLeaseTimeError(Error):
    """A lease is not between 0 and 604,800 seconds long."""

    http_status = 400


class InvalidMaxTasksError(Error):
    """The number of tasks to lease is not between 1 and 1000."""

    http_status = 400


class InvalidDeadlineError(Error):
    """A deadline is not positive."""

    http_status = 400


class InvalidArgumentError(Error, ValueError):
    """An argument of a call is out of its range, and no closer class says so; one of another type is a TypeError."""

    http_status = 400


class PermissionDeniedError(Error):
    """The caller may not do this to the queue."""

    http_status = 403


# --- the world failed ----------------------------------------------------------------------------------------------


class StoreError(Error):
    """The store cannot do it."""

    http_status = 503


class StoreBusyError(StoreError):
    """Somebody else has held the store's lock for longer than we wait."""


class StoreFullError(StoreError):
    """There is no space left: disk, quota, or the process's file size limit."""

    http_status = 507


class StoreReadOnlyError(StoreError):
    """The file, its folder or its mount cannot be written."""


class StoreCorruptError(StoreError):
    """The file is not a database, or it is damaged. Nothing was changed."""


class StoreReplacedError(StoreError):
    """The file was deleted or replaced while it was open."""


class StoreForeignError(StoreError):
    """The file has tables with our prefix that are not ours."""


class SchemaTooNewError(StoreError):
    """The file was written by a newer version of this package."""


class OutcomeUnknownError(StoreError):
    """The commit failed in a way that leaves open whether it happened."""


class TransientError(Error):
    """It may work when tried again."""

    http_status = 503


class DatastoreError(Error):
    """The caller's transaction failed in the store."""

    http_status = 503


# --- you misused the object ----------------------------------------------------------------------------------------


class NotStartedError(Error):
    """The service is used before ``start``; or no service is running at all."""


class ClosedError(Error):
    """The service is used after ``aclose``."""


class WrongLoopError(Error):
    """The service is used from another event loop or thread than it was started in."""


class ForkedProcessError(Error):
    """The service is used in a child that was forked after its start."""


class NotInTaskError(Error):
    """There is no current task: the code does not run inside of a task's request."""


class InternalError(Error):
    """A bug in this package."""


class BadTaskStateError(Error):
    """The task was added or deleted before, or has no name yet."""


class BadTransactionStateError(Error):
    """The transaction is not in a state in which this can be done."""


class TaskLeaseExpiredError(Error):
    """The task is no longer leased by the caller."""

    http_status = 409


class QueuePausedError(Error):
    """The queue is paused."""

    http_status = 409


BadTransactionState = BadTransactionStateError
"""App Engine's name of BadTransactionStateError."""
