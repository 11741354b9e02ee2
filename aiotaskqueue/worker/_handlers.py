"""Handlers of tasks, whatever the web framework: how one is marked, how one is run, and what its end means for the task."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs

from aiotaskqueue._record import default_url
from aiotaskqueue.worker._deadline import DeadlineExceededError, run_with_deadline
from aiotaskqueue.worker._info import TaskInfo

T = TypeVar("T")

MARK = "__aiotaskqueue_verify__"
"""On a handler: its `verify`. An attribute, so that functools.wraps carries it through other decorators."""


class FatalTaskError(Exception):
    """Raised by a handler to end its task for good: it is logged, answered with 200 and not tried again.

    Source: Melange's task decorator (SPEC 9.1).
    """


@attrs.frozen
class TaskAnswer:
    """What a ``@task`` handler may return instead of its web framework's response: an empty one with this status."""

    status: int


def default_url_path(queue_name: str) -> str:
    """Return the path of the queue's default URL, where its tasks without a URL go.

    Source: SPEC 1.4.
    """
    return default_url(queue_name)


def name_of(handler: object) -> str:
    """Return what a handler is called in logs and errors."""
    name: str = getattr(handler, "__qualname__", type(handler).__qualname__)
    return name


def is_marked(handler: object, verify: bool, log: logging.Logger) -> bool:
    """Whether a handler that is being made a task is one already; warns if everybody will be able to call it.

    Raises:
        TypeError: It is a task with another `verify`.
    """
    before = getattr(handler, MARK, None)
    if before is None:
        if not verify:
            log.warning("Task handler %s has verify=False: everybody can call it.", name_of(handler))
        return False
    if before is not verify:
        raise TypeError(f"Handler {name_of(handler)} is a task with verify={not verify} already; apply @task once.")
    return True


async def run_handler(
    info: TaskInfo | None,
    name: str,
    call: Callable[[], Awaitable[T]],
    *,
    is_response: Callable[[T], bool],
    raised_response: type[Exception],
    log: logging.Logger,
) -> T | TaskAnswer:
    """Run a handler, no longer than its task's deadline, and tell what is to be answered.

    Args:
        info: The task; None: it is not known who called.
        name: The handler's, where the task is not known.
        call: Calls it; may raise at once.
        is_response: Whether what it returned is a response of the web framework, or made one by it.
        raised_response: A response that is raised: passed on.
        log: Where it is said why a handler failed.

    Returns:
        A response, as the handler returned it; or what stands for one.
    """
    name = info.name if info else name
    try:
        work = call()
        result = await (run_with_deadline(info, work) if info else work)
        if isinstance(result, TaskAnswer) or is_response(result):
            return result
        if result is None:
            return TaskAnswer(200)
        raise TypeError(f"Handler returned an object of type {type(result).__name__}; return a response, or None for 200.")
    except raised_response:
        raise
    except FatalTaskError:
        log.exception("Task %s ended for good.", name)
        return TaskAnswer(200)
    except DeadlineExceededError:
        log.exception("Task %s exceeded its deadline.", name)
    except Exception:
        log.exception("Task %s failed.", name)
    return TaskAnswer(500)
