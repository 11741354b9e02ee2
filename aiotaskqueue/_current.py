"""The current service: the one piece of process-wide state.

``TaskQueueService.start`` registers a service here and ``aclose`` takes it off. `current_service` returns the one that is
set for this context (by a web adapter for each request, or ``with service.current():``), else the only one running.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

from aiotaskqueue.errors import NotStartedError

if TYPE_CHECKING:
    from aiotaskqueue._managing import Managing
    from aiotaskqueue._task import Task
    from aiotaskqueue.stores._base import StoredStatistics


class RunningService(Protocol):
    """What tasks and queues need of a service."""

    @property
    def description(self) -> str:
        """A few words that tell this service from others in error messages."""

    async def add_tasks(self, queue_name: str, tasks: Sequence[Task], transactional: bool) -> None:
        """Add tasks to the queue of that name and mark them."""

    @property
    def managing(self) -> Managing:
        """What manages the tasks that are stored; raises if the service cannot be used."""

    async def fetch_stored_statistics(self, queue_names: Sequence[str]) -> Sequence[StoredStatistics]:
        """Return the figures of the queues of these names, in order."""

    def find_rate(self, queue_name: str) -> float | None:
        """Return the rate per second that is enforced for a queue; None: no limit, or no such queue."""


_running: list[RunningService] = []
_of_context: ContextVar[RunningService | None] = ContextVar("aiotaskqueue_service", default=None)


def register(service: RunningService) -> None:
    """Make `service` a candidate; twice does it once."""
    if service not in _running:
        _running.append(service)


def unregister(service: RunningService) -> None:
    """Take `service` off; one that is not registered is fine."""
    if service in _running:
        _running.remove(service)


@contextlib.contextmanager
def use(service: RunningService) -> Iterator[None]:
    """Make `service` the current one for the block and for what is started inside of it."""
    token = _of_context.set(service)
    try:
        yield
    finally:
        _of_context.reset(token)


def current_service() -> RunningService:
    """Return the service of this context, else the only one running.

    Raises:
        NotStartedError: None is running, or several are and the context names none of them.
    """
    service = _of_context.get()
    if service is not None:
        return service
    if len(_running) == 1:
        return _running[0]
    if not _running:
        raise NotStartedError(
            "No TaskQueueService is running; start one with 'async with TaskQueueService(...)' or init_app(app, service)."
        )
    names = ", ".join(running.description for running in _running)
    raise NotStartedError(f"Several services are running ({names}); name one with 'with service.current():' or use service.queue(...).")
