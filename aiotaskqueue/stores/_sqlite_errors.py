"""What SQLite says, as errors of ours."""

from __future__ import annotations

import sqlite3

from aiotaskqueue.errors import OutcomeUnknownError, StoreBusyError, StoreCorruptError, StoreError, StoreFullError, StoreReadOnlyError

_FULL = {sqlite3.SQLITE_FULL}
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_READ_ONLY = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def is_locked(exc: BaseException) -> bool:
    """Whether somebody else's lock is the reason."""
    return isinstance(exc, sqlite3.Error) and _primary_code(exc) in _LOCKED


def translate(exc: sqlite3.Error, path: str) -> StoreError:
    """Return the typed error for what SQLite said."""
    code = _primary_code(exc)
    if code in _FULL or getattr(exc, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_WRITE:
        return StoreFullError(f"There is no space left for the database {path!r} ({exc}); make room, nothing was stored.")
    if code in _CORRUPT:
        return StoreCorruptError(f"The file {path!r} is not a database or is damaged ({exc}); it was left as it is. Restore a backup.")
    if code in _READ_ONLY:
        return StoreReadOnlyError(f"The database {path!r} cannot be written ({exc}); check owner and mode of the file and its folder.")
    if code in _LOCKED:
        return StoreBusyError(f"The database {path!r} is locked by another process ({exc}); end it, or try again.")
    if code == sqlite3.SQLITE_IOERR:
        return OutcomeUnknownError(f"The disk of the database {path!r} failed ({exc}); whether the change was stored is unknown.")
    return StoreError(f"The database {path!r} refused: {exc}.")


def _primary_code(exc: sqlite3.Error) -> int:
    # Extended result codes carry the primary one in their low byte. Source: sqlite.org/rescode.html.
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF
