"""What applications call inside of a task's handler."""

from __future__ import annotations

from aiotaskqueue.worker import DeadlineExceededError, FatalTaskError, TaskAnswer, current_task

__all__ = ["DeadlineExceededError", "FatalTaskError", "TaskAnswer", "current_task", "repeat_task", "terminate_task"]


def terminate_task() -> TaskAnswer:
    """Return the answer that ends the task: 200. The handler has to return it in turn.

    Source: Melange's ``terminateTask`` (SPEC 9.1).
    """
    return TaskAnswer(200)


def repeat_task() -> TaskAnswer:
    """Return the answer after which the task is tried again, on its retry schedule: 500. The handler has to return it in turn.

    It counts as a failed attempt, but nothing is logged.

    Source: Melange's ``repeatTask`` (SPEC 9.1).
    """
    return TaskAnswer(500)
