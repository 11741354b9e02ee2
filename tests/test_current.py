"""The current service: which one Queue("name"), Task.add and add mean."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import pytest

from aiotaskqueue import _current
from aiotaskqueue._current import current_service, register, unregister, use
from aiotaskqueue._task import Task
from aiotaskqueue.errors import NotStartedError
from aiotaskqueue.stores._base import StoredStatistics


class Service:
    """A service as `_current` sees one."""

    def __init__(self, description: str) -> None:
        self.description = description

    async def add_tasks(self, queue_name: str, tasks: Sequence[Task], transactional: bool) -> None:
        """Add nothing."""

    async def fetch_stored_statistics(self, queue_names: Sequence[str]) -> Sequence[StoredStatistics]:
        """Return no figures."""
        return []

    def find_rate(self, queue_name: str) -> float | None:
        """Return no rate."""
        return None


ONE, OTHER = Service("one"), Service("other")


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start and end without any service."""
    monkeypatch.setattr(_current, "_running", [])


def test_none() -> None:
    """With no service running there is an error that says how to start one."""
    expected = "No TaskQueueService is running; start one with 'async with TaskQueueService(...)' or init_app(app, service)."
    with pytest.raises(NotStartedError) as caught:
        current_service()

    assert expected == str(caught.value)


def test_only_one() -> None:
    """The only service that runs is the current one everywhere."""
    register(ONE)

    assert ONE is current_service()


def test_several() -> None:
    """With several running there is an error that names them and says how to choose."""
    register(ONE)
    register(OTHER)
    with pytest.raises(NotStartedError) as caught:
        current_service()

    assert "Several services are running (one, other); name one with 'with service.current():' or use service.queue(...)." == str(
        caught.value
    )


def test_register_twice() -> None:
    """A service that is registered twice is one, and is taken off at once."""
    register(ONE)
    register(ONE)

    assert ONE is current_service()

    unregister(ONE)
    with pytest.raises(NotStartedError, match="No TaskQueueService"):
        current_service()


def test_unregister_a_stranger() -> None:
    """Taking off a service that is not registered does nothing."""
    register(ONE)
    unregister(OTHER)

    assert ONE is current_service()


def test_use() -> None:
    """Inside of `use` that service is the current one, blocks nest, and an exception ends them like anything else."""
    register(ONE)
    with use(OTHER):
        assert OTHER is current_service()
        with contextlib.suppress(ZeroDivisionError), use(ONE):
            assert ONE is current_service()
            raise ZeroDivisionError

        assert OTHER is current_service()

    assert ONE is current_service()


@pytest.mark.anyio
async def test_use_reaches_what_is_started_inside() -> None:
    """A task that is started inside of `use` keeps the service; its neighbours do not see it."""
    register(ONE)

    async def look() -> object:
        await asyncio.sleep(0)
        return current_service()

    with use(OTHER):
        inside = asyncio.create_task(look())
    outside = asyncio.create_task(look())

    assert [OTHER, ONE] == [await inside, await outside]
