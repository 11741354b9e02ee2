"""The file of the database: its making, its identity, and who may get at it.

Nothing here opens the database file itself while SQLite has it: closing any descriptor of a file drops all POSIX locks
that the process holds on it (RELIABILITY S13). Locks of ours are on files beside it (`_sqlite_locks`).
"""

from __future__ import annotations

import logging
import os
import stat
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from aiotaskqueue._task_arguments import shorten
from aiotaskqueue.errors import ConfigError, OutcomeUnknownError, StoreReadOnlyError, StoreReplacedError
from aiotaskqueue.stores._sqlite_mounts import find_remote_mount, read_mounts

logger = logging.getLogger("aiotaskqueue")

OWNER_ONLY = 0o600

# In an error: a path that is cut off helps nobody, and whatever is longer is no path that somebody has written.
LONGEST_PATH_SHOWN = 255


class ReplacedMeanwhileError(StoreReplacedError, OutcomeUnknownError):
    """The file went away during a transaction: it was written, and is there if the file is put back."""


class DatabaseFile:
    """The path of a database, and whether the file there is still the one that was opened.

    In WAL mode SQLite does not notice that its file was deleted or replaced: commits go on "succeeding" into a file that
    nobody will ever see again (RELIABILITY fact 3), and so it is with the WAL. So identities are compared around each
    transaction: 1.3 us for each file.
    """

    def __init__(self, path: str) -> None:
        self.path = check_text(path)
        # Somebody may change the current folder while the file is open.
        self._absolute_path = self.real_path = os.path.abspath(path)
        self._identity: tuple[int, int] | None = None
        self._wal_identity: tuple[int, int] | None = None
        self._shm_identity: tuple[int, int] | None = None

    def create(self) -> bool:
        """Make an empty file that only its owner can read, unless there is one; return whether it was made."""
        check_place(self.path)
        # SQLite puts its files beside the one to which a symbolic link leads; so do we, or two processes that come by
        # different names would not find each other's locks, and each would take the other for dead.
        self.real_path = os.path.realpath(self.path)
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, OWNER_ONLY)
        except FileExistsError:
            return False
        except OSError as exc:
            raise StoreReadOnlyError(
                f"The database {shorten(self.path, LONGEST_PATH_SHOWN)} cannot be created: {exc.strerror}; "
                "check the folder's owner and mode."
            ) from exc
        os.close(descriptor)
        # The umask may have taken away even the owner's rights.
        os.chmod(self.path, OWNER_ONLY)
        return True

    def find_exposure(self) -> Iterator[tuple[str, str]]:
        """Return why the file is not as safe as it could be: a topic and a sentence each (RELIABILITY T17, S18)."""
        mode = _mode(self._absolute_path)
        if mode & 0o077:
            yield "mode", f"The database {self.path!r} has mode {mode:04o}, so that others can get at its tasks and keys; chmod it to 0600."
        folder = os.path.dirname(self.real_path)
        mode = _mode(folder)
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            yield "folder", f"The folder {folder!r} has mode {mode:04o}, so that anybody can replace the database in it; chmod it to 0700."
        remote = find_remote_mount(self.real_path, read_mounts())
        if remote is not None:
            yield (
                "mount",
                (
                    f"The database {self.path!r} is on {remote[0]!r}, a file system of type {remote[1]}, where locks may not hold "
                    "and the file may be damaged; move it to a local disk."
                ),
            )

    def remember(self) -> None:
        """Take the file that is at the path now for the right one."""
        self._identity = _identity(self._absolute_path)

    def remember_side_files(self) -> None:
        """Take SQLite's own files beside it for the right ones; they stay as long as somebody has the database open."""
        self._wal_identity = _identity(self.real_path + "-wal")
        self._shm_identity = _identity(self.real_path + "-shm")

    def check(self) -> None:
        """Raise StoreReplacedError if another file, or none, is at the path now."""
        if _identity(self._absolute_path) != self._identity:
            raise StoreReplacedError(self._say_gone(self.path))

    def check_all(self) -> None:
        """Raise StoreReplacedError if the file or one of SQLite's own beside it is not the one that was opened."""
        self.check()
        if _identity(self.real_path + "-wal") != self._wal_identity:
            raise StoreReplacedError(self._say_gone(self.real_path + "-wal"))
        if _identity(self.real_path + "-shm") != self._shm_identity:
            raise StoreReplacedError(self._say_gone(self.real_path + "-shm"))

    def check_after_commit(self) -> None:
        """Raise ReplacedMeanwhileError if what was committed went into a file that nobody will see again."""
        if _identity(self._absolute_path) != self._identity:
            raise ReplacedMeanwhileError(self._say_gone(self.path))
        # Until the first commit there may be no WAL.
        if self._wal_identity is not None and _identity(self.real_path + "-wal") != self._wal_identity:
            raise ReplacedMeanwhileError(self._say_gone(self.real_path + "-wal"))

    def set_wal_aside(self) -> None:
        """Move the WAL of a file that was replaced out of the way of the one that is there now; for the end, after the connections.

        SQLite takes any WAL beside a file for that file's own: the next to open it would copy our last commits into somebody
        else's pages, and damage a backup that was put there. It is kept, for whoever still has the former file.
        """
        wal, aside = self.real_path + "-wal", self.real_path + "-wal-of-replaced"
        found = _identity(self._absolute_path)
        if self._wal_identity is None or found in (None, self._identity) or _identity(wal) != self._wal_identity:
            return
        os.replace(wal, aside)
        logger.warning(
            "The file %r of the database was replaced while it was open; the last commits of the former one are in %r.", self.path, aside
        )

    def _say_gone(self, path: str) -> str:
        return (
            f"The file {path!r} of the database was deleted or replaced while it was open; nothing more is written. "
            "Put it back or restart the service."
        )

    def uri(self, *, read_only: bool = False) -> str:
        """Return the file as SQLite's URI."""
        mode = "ro" if read_only else "rw"
        return f"file:{urllib.parse.quote(os.fsencode(self._absolute_path))}?mode={mode}"

    def wal_bytes(self) -> int:
        """Return how large the WAL is."""
        try:
            return os.stat(self.real_path + "-wal").st_size
        except OSError:
            return 0


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _mode(path: str) -> int:
    # Windows has no such rights; what it says would be taken for "everybody".
    return stat.S_IMODE(os.stat(path).st_mode) if os.name == "posix" else 0


def find_unwritable(path: str) -> str | None:
    """Return which of the files that SQLite writes this process may not write, and why; None: it may, or nobody knows."""
    path = os.path.realpath(path)
    for name, what in ((path, "file"), (path + "-wal", "file"), (path + "-shm", "file"), (os.path.dirname(path), "folder")):
        try:
            status = os.stat(name)
            is_read_only = bool(os.statvfs(name).f_flag & os.ST_RDONLY)
        except OSError:
            continue
        if is_read_only:
            return f"{name!r} is on a file system that is mounted read-only"
        if not os.access(name, os.W_OK):
            return f"user {os.geteuid()} may not write the {what} {name!r} (owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o})"
    return None


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
