"""Processes on one database know by which keys the others sign: who shares none is not let in beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web
from open_stores import query, raw, running

from aiotaskqueue import TaskQueueService
from aiotaskqueue.errors import ConfigError
from aiotaskqueue.signing import KeyRing
from aiotaskqueue.testing import RecordingDelivery

pytestmark = pytest.mark.anyio

OLD, NEW, OTHER = bytes(range(32)), bytes(range(100, 132)), bytes(range(200, 232))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the tasks are."""
    return tmp_path / "tasks.db"


def make(path: Path, *secrets: bytes, dispatch: bool = True) -> TaskQueueService:
    """Return a service with these secrets, that of the store if there are none."""
    return TaskQueueService(path, secrets=secrets or None, delivery=RecordingDelivery(), dispatch=dispatch)


# --- the store -----------------------------------------------------------------------------------------------------


async def test_keys_of_the_others_are_told(path: Path) -> None:
    """Whoever announces its keys learns those of the others that live, in their order, and not its own."""
    async with running(path) as first, running(path) as second, running(path):
        told = [await first.announce_keys(["new", "old"]), await second.announce_keys(["a"]), await first.announce_keys(["newest"])]

    assert [[], [["new", "old"]], [["a"]]] == told


async def test_keys_of_who_has_gone_are_not_told(path: Path) -> None:
    """Nothing is told of a process that was closed."""
    async with running(path) as first:
        await first.announce_keys(["a"])
    async with running(path) as second:
        assert [] == await second.announce_keys(["b"])


@pytest.mark.parametrize("host", ["elsewhere", None], ids=["of another machine", "dead"])
async def test_keys_of_whose_life_nothing_is_known_are_not_told(path: Path, host: str | None) -> None:
    """What a dead process has left behind keeps nobody out, nor does a machine of which nothing is known."""
    async with running(path) as store:
        with raw(path) as connection:
            mine = query(connection, "SELECT host FROM taskqueue_process")[0]
            connection.execute(
                "INSERT INTO taskqueue_process (id, host, pid, started_usec, key_ids) VALUES (1000, ?, 1, 0, 'a')", (host or mine,)
            )

        assert [] == await store.announce_keys(["b"])


# --- the service ---------------------------------------------------------------------------------------------------


@pytest.mark.row(46)
@pytest.mark.parametrize(("running_secrets", "secrets"), [((OLD,), (NEW,)), ((), (NEW,)), ((NEW, OLD), ())])
async def test_no_key_in_common(path: Path, running_secrets: tuple[bytes, ...], secrets: tuple[bytes, ...]) -> None:
    """The second of two processes that share no key does not start; the error names both keys, and the first goes on."""
    async with make(path, *running_secrets) as first:
        with pytest.raises(ConfigError, match=r"neither knows the other's; give both secrets to both, the newest first") as caught:
            await make(path, *secrets).start()

        stored = query(path, "SELECT secret FROM taskqueue_secret")
        ids = [KeyRing(some or stored).keyid for some in (running_secrets, secrets)]

        assert [True, True] == [repr(keyid) in str(caught.value) for keyid in ids]
        assert first.health().is_ok
        assert [1] == query(path, "SELECT count(*) FROM taskqueue_process")


@pytest.mark.row(46)
async def test_keys_are_changed_by_overlapping_lists(path: Path) -> None:
    """A key is changed while processes run: each list shares a key with that of every process beside it."""
    async with make(path, OLD):
        async with make(path, OLD, NEW) as second:
            assert second.health().is_ok

            async with make(path, NEW, OLD) as third:
                assert third.health().is_ok
    async with make(path, NEW, OLD), make(path, NEW) as last:
        assert last.health().is_ok


async def test_another_key_after_the_end(path: Path) -> None:
    """Once nobody uses the old key any more, another one may be used."""
    async with make(path, OLD):
        pass
    async with make(path, NEW) as service:
        assert service.health().is_ok


async def test_who_neither_delivers_nor_is_delivered_to(path: Path) -> None:
    """A process that only adds and looks signs nothing: its keys do not matter, neither to it nor to others."""
    async with make(path, OLD), make(path, NEW, dispatch=False) as looking, make(path, OTHER, OLD):
        assert looking.health().is_ok


async def test_who_is_delivered_to(path: Path) -> None:
    """A process that delivers nothing and whose application takes deliveries has to know the keys of the others."""
    service = make(path, NEW, dispatch=False)
    service.serve_app(web.Application(), "http://localhost")
    async with make(path, OLD):
        with pytest.raises(ConfigError, match="neither knows the other"):
            await service.start()
