"""What SQLite says, as errors of ours: whose fault it is, whether anything was stored, and whether it can mend by itself."""

from __future__ import annotations

import sqlite3

from aiotaskqueue.errors import (
    OutcomeUnknownError,
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
    StoreReplacedError,
)
from aiotaskqueue.stores._sqlite_file import find_unwritable

_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_READ_ONLY = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}
# A page that the disk did not take: no space (where SQLite cannot tell), quota, RLIMIT_FSIZE, a mount that became read-only.
# Without its last page a transaction does not count, so nothing was stored (RELIABILITY E16, S11).
_REFUSED_WRITES = {sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}

# After one of these the cache of the operating system may hold pages that are not on the disk and never will be.
_SYNCS = {sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC}

# One request's own doing: the next one may well succeed.
_OWN_FAULTS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError)

# Statements are constants, so the tables have changed since they were checked.
_ALTERED = ("no such table", "no such column", "has no column named", "no such index")


class DiskFailedError(OutcomeUnknownError):
    """The disk failed at a commit: what it says from now on, also that all is well, is not to be believed (RELIABILITY S19)."""


def is_locked(exc: BaseException) -> bool:
    """Whether somebody else's lock is the reason."""
    return isinstance(exc, sqlite3.Error) and _primary_code(exc) in _LOCKED


def is_own_fault(exc: BaseException | None) -> bool:
    """Whether it is one request's own fault, or that of the rows it met, and not the store's."""
    if not isinstance(exc, sqlite3.Error) or _is_altered(exc):
        return False
    return isinstance(exc, _OWN_FAULTS) or _primary_code(exc) in (0, sqlite3.SQLITE_ERROR)


def is_undecodable(exc: sqlite3.Error) -> bool:
    """Whether a text in the file is not UTF-8; what is said of it quotes the text."""
    return str(exc).startswith("Could not decode")


def translate(exc: sqlite3.Error, path: str, *, is_commit: bool = False) -> StoreError:
    """Return the typed error for what SQLite said; an I/O error at a COMMIT leaves open whether it happened (P16)."""
    code, extended = _primary_code(exc), getattr(exc, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_FULL or extended in _REFUSED_WRITES:
        return _refused_write(exc, path)
    if code in _CORRUPT or extended == sqlite3.SQLITE_IOERR_CORRUPTFS:
        return StoreCorruptError(f"The file {path!r} is not a database or is damaged ({exc}); it was left as it is. Restore a backup.")
    if _is_altered(exc):
        return StoreCorruptError(f"The tables of the database {path!r} were altered while it was open ({exc}); restore a backup.")
    if extended == sqlite3.SQLITE_READONLY_DBMOVED:
        return StoreReplacedError(f"The database {path!r} was deleted or replaced while it was open ({exc}); put the file back or restart.")
    if code in _READ_ONLY:
        return _read_only(exc, path)
    if code in _LOCKED:
        return StoreBusyError(f"The database {path!r} is locked by another process ({exc}); end it, or try again.")
    if extended in _SYNCS or (code == sqlite3.SQLITE_IOERR and is_commit):
        return DiskFailedError(f"The disk of the database {path!r} failed at a commit ({exc}); whether the change was stored is unknown.")
    if code == sqlite3.SQLITE_IOERR:
        return StoreError(f"The disk of the database {path!r} failed ({exc}); nothing was stored.")
    if is_undecodable(exc):
        return StoreError(f"A text in the database {path!r} is not UTF-8.")
    return StoreError(f"The database {path!r} refused: {exc}.")


def _refused_write(exc: sqlite3.Error, path: str) -> StoreError:
    if find_unwritable(path) is not None:
        return _read_only(exc, path)
    return StoreFullError(
        f"There is no space left for the database {path!r} ({exc}): disk, quota or the process's limit on file sizes; "
        "make room, nothing was stored."
    )


def _read_only(exc: sqlite3.Error, path: str) -> StoreReadOnlyError:
    what = find_unwritable(path) or "check owner and mode of the file and its folder"
    return StoreReadOnlyError(f"The database {path!r} cannot be written ({exc}): {what}.")


def _is_altered(exc: sqlite3.Error) -> bool:
    return any(words in str(exc) for words in _ALTERED)


def _primary_code(exc: sqlite3.Error) -> int:
    # Extended result codes carry the primary one in their low byte. Source: sqlite.org/rescode.html.
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF
