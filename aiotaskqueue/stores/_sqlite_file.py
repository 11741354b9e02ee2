"""The file around the database: its making and identity, and the locks that prove a process alive.

Nothing here opens the database file itself while SQLite has it: closing any descriptor of a file drops all POSIX locks
that the process holds on it (RELIABILITY S13). Liveness has side files of its own.
"""

from __future__ import annotations

import os
import urllib.parse
from pathlib import Path

from aiotaskqueue._liveness import hold, is_abandoned
from aiotaskqueue._task_arguments import shorten
from aiotaskqueue.errors import ConfigError, StoreReadOnlyError, StoreReplacedError

# In an error: a path that is cut off helps nobody, and whatever is longer is no path that somebody has written.
LONGEST_PATH_SHOWN = 255


class DatabaseFile:
    """The path of a database, and whether the file there is still the one that was opened.

    In WAL mode SQLite does not notice that its file was deleted or replaced: commits go on "succeeding" into a file that
    nobody will ever see again (RELIABILITY fact 3). So the identity is compared around each transaction: 1.5 us.
    """

    def __init__(self, path: str) -> None:
        self.path = check_text(path)
        self._identity: tuple[int, int] | None = None

    def create(self) -> bool:
        """Make an empty file that only its owner can read, unless there is one; return whether it was made."""
        check_place(self.path)
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            return False
        except OSError as exc:
            raise StoreReadOnlyError(
                f"The database {shorten(self.path, LONGEST_PATH_SHOWN)} cannot be created: {exc.strerror}; "
                "check the folder's owner and mode."
            ) from exc
        os.close(descriptor)
        return True

    def remember(self) -> None:
        """Take the file that is at the path now for the right one."""
        self._identity = self._look()

    def check(self) -> None:
        """Raise StoreReplacedError if another file, or none, is at the path now."""
        if self._look() != self._identity:
            raise StoreReplacedError(
                f"The database {self.path!r} was deleted or replaced while it was open; nothing more is written to it. "
                "Put the file back or restart the service."
            )

    def _look(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def uri(self, *, read_only: bool = False) -> str:
        """Return the file as SQLite's URI."""
        mode = "ro" if read_only else "rw"
        return f"file:{urllib.parse.quote(os.fsencode(os.path.abspath(self.path)))}?mode={mode}"


def check_text(path: str) -> str:
    """Return `path`; raise ConfigError if no file can be called so."""
    try:
        if not path or b"\0" in os.fsencode(path):
            raise ConfigError(f"The path of the database is {path!r}; give the path of a file, or ':memory:'.")
    except UnicodeEncodeError as exc:
        raise ConfigError(f"The path of the database {shorten(path)} has a lone surrogate; give the path of a file.") from exc
    return path


def check_place(path: str) -> None:
    """Raise ConfigError for where no database can be."""
    if os.path.isdir(path):
        raise ConfigError(f"The path of the database {shorten(path, LONGEST_PATH_SHOWN)} is a folder; give the path of a file in it.")
    folder = Path(path).absolute().parent
    if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        raise ConfigError(f"The folder {shorten(str(folder), LONGEST_PATH_SHOWN)} of the database does not exist; create it first.")


class ProcessLock:
    """Proves to other processes that this one is alive: a lock on a side file, which the kernel drops with the process."""

    def __init__(self, database_path: str, process_id: int) -> None:
        self.path = lock_path(database_path, process_id)
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Create and lock the side file; before the process's row can be seen by others.

        Raises:
            StoreReadOnlyError: The folder cannot be written.
            StoreReplacedError: A process with this id lives: it has another database open that was here before.
        """
        try:
            self._descriptor = hold(self.path)
        except BlockingIOError as exc:
            raise StoreReplacedError(
                f"The file {self.path!r} is locked by a process whose database was deleted or replaced; end that process."
            ) from exc
        except OSError as exc:
            raise StoreReadOnlyError(
                f"The file {self.path!r} cannot be created: {exc.strerror}; check the folder's owner and mode."
            ) from exc

    def release(self, *, remove: bool = True) -> None:
        """Unlock, and remove the file; twice is fine."""
        if self._descriptor is None:
            return
        if remove:
            Path(self.path).unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None


def lock_path(database_path: str, process_id: int) -> str:
    """Return the path of a process's side file."""
    return f"{database_path}-process-{process_id}"


def remove_lock(database_path: str, process_id: int) -> None:
    """Remove the side file of a process that has ended."""
    Path(lock_path(database_path, process_id)).unlink(missing_ok=True)


def is_dead(database_path: str, process_id: int) -> bool:
    """Whether the process with that side file has certainly ended."""
    return is_abandoned(lock_path(database_path, process_id))
