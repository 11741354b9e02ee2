"""What a forked child inherits of open stores, and must neither use nor close (RELIABILITY S14).

A connection that the child closes, and be it at the end of the interpreter, may wait for a lock that the parent's database
thread held at the fork, which nobody in the child will ever release; and it writes to a file of which the parent knows
more. A lock on a side file belongs to whoever has its descriptor open, so a child that keeps it would prove its parent
alive after the parent's death.
"""

from __future__ import annotations

import ctypes
import functools
import os
import weakref
from typing import Protocol

import aiosqlite


class Inherited(Protocol):
    """A lock that a forked child has to let go."""

    def abandon(self) -> None:
        """Close the descriptor; whoever else has it open goes on to hold the lock."""


_connections: weakref.WeakSet[aiosqlite.Connection] = weakref.WeakSet()
_locks: weakref.WeakSet[Inherited] = weakref.WeakSet()


def guard_connection(connection: aiosqlite.Connection) -> None:
    """See to it that a child forked from now on leaves the connection alone."""
    _watch_forks()
    _connections.add(connection)


def guard_lock(lock: Inherited) -> None:
    """See to it that a child forked from now on lets the lock go."""
    _watch_forks()
    _locks.add(lock)


# Once for each process: what is registered cannot be taken back.
@functools.cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):  # pragma: no branch -- Windows
        os.register_at_fork(after_in_child=_abandon)


def _abandon() -> None:  # pragma: no cover -- runs in forked children alone
    for connection in _connections:
        # One reference too many: it is never freed, and so never closed, also not by the end of the interpreter.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
    for lock in _locks:
        lock.abandon()
