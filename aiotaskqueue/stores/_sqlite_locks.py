"""Locks on files beside the database: they prove a process alive, and say who empties the WAL."""

from __future__ import annotations

import glob
import os
from collections.abc import Container
from pathlib import Path

from aiotaskqueue._liveness import hold, is_abandoned
from aiotaskqueue.errors import StoreReadOnlyError, StoreReplacedError
from aiotaskqueue.stores._sqlite_fork import guard_lock

# Between a database's path and the number of a process, in the name of that process's side file.
_LOCK_INFIX = "-process-"


class SideLock:
    """A lock on a file beside the database, which the kernel drops with the process."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether we have it."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Create the file and lock it.

        Raises:
            BlockingIOError: Somebody else has it, or removed it just now.
            OSError: The file cannot be made.
        """
        self._descriptor = hold(self.path)
        if not _is_at(self._descriptor, self.path):
            self.abandon()
            raise BlockingIOError(f"{self.path!r} was removed while it was locked.")
        guard_lock(self)

    def release(self, *, remove: bool = True) -> None:
        """Unlock, and remove the file; twice is fine."""
        if self._descriptor is None:
            return
        if remove:
            Path(self.path).unlink(missing_ok=True)
        self.abandon()

    def abandon(self) -> None:
        """Close the descriptor, and leave the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class ProcessLock(SideLock):
    """Proves to other processes that this one is alive."""

    def __init__(self, database_path: str, process_id: int) -> None:
        super().__init__(lock_path(database_path, process_id))

    def acquire(self) -> None:
        """Create and lock the side file; before the process's row can be seen by others.

        Raises:
            StoreReadOnlyError: The folder cannot be written.
            StoreReplacedError: A process with this id lives: it has another database open that was here before.
        """
        try:
            super().acquire()
        except BlockingIOError as exc:
            raise StoreReplacedError(
                f"The file {self.path!r} is locked by a process whose database was deleted or replaced; end that process."
            ) from exc
        except OSError as exc:
            raise StoreReadOnlyError(
                f"The file {self.path!r} cannot be created: {exc.strerror}; check the folder's owner and mode."
            ) from exc


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def lock_path(database_path: str, process_id: int) -> str:
    """Return the path of a process's side file."""
    return f"{database_path}{_LOCK_INFIX}{process_id}"


def remove_lock(database_path: str, process_id: int) -> None:
    """Remove the side file of a process that has ended."""
    Path(lock_path(database_path, process_id)).unlink(missing_ok=True)


def remove_leftover_locks(database_path: str, known: Container[int]) -> None:
    """Remove the side files of processes that are none of the `known` and have ended.

    A process that is killed after it has made the file and before its row is there, or after the row is gone, leaves one that
    no rescue ever looks for. Only for whoever holds the database's write lock, without which nobody makes such a file.
    """
    prefix = f"{database_path}{_LOCK_INFIX}"
    for path in glob.glob(f"{glob.escape(prefix)}*"):
        number = path.removeprefix(prefix)
        if number.isdecimal() and int(number) not in known and is_abandoned(path):
            Path(path).unlink(missing_ok=True)


def is_dead(database_path: str, process_id: int) -> bool:
    """Whether the process with that side file has certainly ended."""
    return is_abandoned(lock_path(database_path, process_id))
