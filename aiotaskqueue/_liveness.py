"""Proof that a process is alive: a lock on a file of its own, which the kernel drops with the process."""

from __future__ import annotations

import os

try:
    import fcntl
except ImportError:  # pragma: no cover -- Windows: nobody is known to be dead there
    fcntl = None  # type: ignore[assignment]


def hold(path: str) -> int:
    """Create the file if need be, and lock it until the descriptor that is returned is closed, or the process ends.

    Raises:
        BlockingIOError: Somebody else holds it.
        OSError: The file cannot be made.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        _lock(descriptor)
        # The umask may have taken away even the owner's rights, and then nobody could look whether it is held.
        os.chmod(path, 0o600)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def is_abandoned(path: str) -> bool:
    """Whether whoever held the file has certainly ended, or removed it."""
    if fcntl is None:  # pragma: no cover -- Windows
        return False
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        _lock(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _lock(descriptor: int) -> None:
    if fcntl is not None:  # pragma: no branch -- Windows
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
