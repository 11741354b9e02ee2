"""What applications call inside of a task's handler."""

from __future__ import annotations

from aiotaskqueue.worker import current_task

__all__ = ["FatalTaskError", "current_task"]


class FatalTaskError(Exception):
    """Raised by a handler to end its task for good: it is logged, answered with 200 and not tried again.

    Source: Melange's task decorator (SPEC 9.1).
    """
