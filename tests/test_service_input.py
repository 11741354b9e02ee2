"""Bad arguments of the service: RELIABILITY 4.2, each test citing its row. Messages name the value, what is allowed, the fix."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aiotaskqueue import QueueConfig, TaskQueueService
from aiotaskqueue.errors import ConfigError, InvalidQueueError, StoreError
from aiotaskqueue.testing import RecordingDelivery

pytestmark = pytest.mark.anyio


async def start_error(database: Any) -> str:
    """Make and start a service on a database that cannot be; return what the error says."""
    with pytest.raises(ConfigError) as caught:
        await TaskQueueService(database, delivery=RecordingDelivery()).start()
    return str(caught.value)


def config_error(**arguments: Any) -> str:
    """Make a service with arguments that cannot be; return what the error says."""
    with pytest.raises(ConfigError) as caught:
        TaskQueueService(":memory:", **arguments)
    return str(caught.value)


# --- row 42: the path ----------------------------------------------------------------------------------------------

PATHS = "allowed are a path, ':memory:' and 'sqlite:///path'."


@pytest.mark.parametrize(
    ("database", "message"),
    [
        ("", "The path of the database is ''; give the path of a file, or ':memory:'."),
        ("a\0b", "The path of the database is 'a\\x00b'; give the path of a file, or ':memory:'."),
        ("sqlite:///", "The path of the database is ''; give the path of a file, or ':memory:'."),
        (None, f"The database is None; {PATHS}"),
        (b"tasks.db", f"The database is b'tasks.db'; {PATHS}"),
        (5, f"The database is 5; {PATHS}"),
    ],
)
async def test_row_42_no_path(database: Any, message: str) -> None:
    """RELIABILITY 42: what is no path is an error that shows it and says what is one."""
    assert message == await start_error(database)


@pytest.mark.parametrize("uri", ["file:tasks.db?immutable=1", "file:tasks.db?mode=ro", "file::memory:"])
async def test_row_42_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    """RELIABILITY 42: a URI of SQLite's is refused, and no file of that name is made."""
    monkeypatch.chdir(tmp_path)

    assert f"The database {uri!r} is a URI of SQLite's, whose options could make it unsafe; {PATHS}" == await start_error(uri)
    assert [] == list(tmp_path.iterdir())


async def test_row_42_directory(tmp_path: Path) -> None:
    """RELIABILITY 42: a folder is refused."""
    assert f"The path of the database {str(tmp_path)!r} is a folder; give the path of a file in it." == await start_error(tmp_path)


async def test_row_42_missing_parent(tmp_path: Path) -> None:
    """RELIABILITY 42: a file in a folder that does not exist is refused, and the folder is not made."""
    folder = tmp_path / "missing"

    assert f"The folder {str(folder)!r} of the database does not exist; create it first." == await start_error(folder / "tasks.db")
    assert not folder.exists()


@pytest.mark.parametrize("database", [":memory:", "sqlite:///:memory:"])
async def test_row_42_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    """RELIABILITY 42: ``:memory:`` is allowed, and leaves no file."""
    monkeypatch.chdir(tmp_path)
    async with TaskQueueService(database, dispatch=False) as service:
        await service.add(url="/w")

    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["{}", "sqlite:///{}", "relative.db", "sqlite:///relative.db"])
async def test_row_42_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """A path and its URL mean one file: three slashes for a relative one, four for an absolute one."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "relative.db"
    async with TaskQueueService(form.format(path), dispatch=False):
        pass

    assert path.is_file()


# --- rows 43 and 44: URLs of databases -----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["mysql", "postgresql", "sqlite+aiosqlite", "SQLITE", ""])
async def test_row_43_unknown_scheme(scheme: str) -> None:
    """RELIABILITY 43: a URL of an unknown scheme is refused; the scheme is shown and what is allowed."""
    assert f"The database '{scheme}://...' has an unknown scheme; {PATHS}" == await start_error(f"{scheme}://host/db")


@pytest.mark.parametrize("url", ["postgresql://user:hunter2@host/db", "sqlite://user:hunter2@host/db", "x" * 100 + "://u:hunter2@h"])
async def test_row_44_password(url: str) -> None:
    """RELIABILITY 44: the password in a URL is in no error."""
    message = await start_error(url)

    assert "hunter2" not in message
    assert "..." in message


async def test_host_of_sqlite() -> None:
    """A URL with two slashes names a host, which is a slip: refused instead of taken for a path."""
    assert f"The database 'sqlite://...' names a host; {PATHS}" == await start_error("sqlite://tasks.db")


# --- row 45: targets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("localhost:8080", "Base URL 'localhost:8080' has no scheme http or https; "),
        ("ftp://host", "Base URL 'ftp://host' has no scheme http or https; "),
        ("http://", "Base URL 'http://'"),
        ("http://user:hunter2@host", "Base URL 'http://***@host' has userinfo"),
        ("http://host/?a=1", "Base URL 'http://host/?a=1' has a query; "),
        ("http://host/#f", "Base URL 'http://host/#f' has a fragment; "),
        (5, "A target is a base URL or an aiohttp Application, not 5."),
        (object, "A target is a base URL or an aiohttp Application, not <class 'object'>."),
    ],
)
@pytest.mark.parametrize("is_named", [False, True])
def test_row_45_bad_target(target: Any, message: str, is_named: bool) -> None:
    """RELIABILITY 45: a target that is none is an error when the service is made; passwords are masked."""
    said = config_error(targets={"a": target}) if is_named else config_error(target=target)

    assert message in said
    assert "hunter2" not in said


def test_row_45_named_target_of_none() -> None:
    """RELIABILITY 45: a named target must be one."""
    assert "A target is a base URL or an aiohttp Application, not None." == config_error(targets={"a": None})


def test_row_45_wildcard(caplog: pytest.LogCaptureFixture) -> None:
    """RELIABILITY 45: an address to listen on is replaced by the loopback one, with a WARNING."""
    TaskQueueService(":memory:", target="http://0.0.0.0:8080")

    expected = ("WARNING", "Base URL http://0.0.0.0:8080 is an address to listen on; tasks are sent to 127.0.0.1.")
    assert expected in [(record.levelname, record.getMessage()) for record in caplog.records]


def test_row_45_queue_with_an_unknown_target() -> None:
    """A queue whose target is not among the service's is an error that names both."""
    queues = [QueueConfig(name="mail", target="other")]
    expected = "Queue 'mail' has target 'other', which is not in targets=['mailer']."

    assert expected == config_error(queues=queues, targets={"mailer": "http://mailer.example"})


async def test_targets_are_copied() -> None:
    """Targets that are changed after the service was made have no effect."""
    targets: dict[str, str | web.Application] = {"a": "http://a.example"}
    service = TaskQueueService(":memory:", targets=targets, dispatch=False)
    targets.clear()
    async with service:
        task = await service.add(url="/w", target="a")

    assert task.was_enqueued


# --- row 46: secrets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", ["", b"", "changeme", b"short", "not base64url text at all, though long enough to be", 5])
def test_row_46_bad_secret(secret: Any) -> None:
    """RELIABILITY 46: a secret that is unfit is an error when the service is made, and is not shown."""
    message = config_error(secrets=[secret])

    assert "ecret" in message
    assert not secret or str(secret) not in message.replace("32 bytes", "")


def test_row_46_no_secret() -> None:
    """RELIABILITY 46: an empty list of secrets is an error."""
    assert "ecret" in config_error(secrets=[])


# --- rows 47 and 48: numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, -1, 1e9])
def test_row_47_deadline(seconds: float) -> None:
    """RELIABILITY 47: a queue's deadline out of range is an error that states the range."""
    with pytest.raises(InvalidQueueError) as caught:
        QueueConfig(name="default", dispatch_deadline_seconds=seconds)

    assert "86400" in str(caught.value).replace(",", "")


@pytest.mark.parametrize("number", [0, -1, "5", 1.5, True, None])
def test_row_48_deliveries(number: Any) -> None:
    """RELIABILITY 48: the number of deliveries is a whole one, 1 or more."""
    expected = f"max_concurrent_deliveries is {number!r}; give a whole number, 1 or more."

    assert expected == config_error(max_concurrent_deliveries=number)


@pytest.mark.parametrize("number", [-1, "5"])
def test_row_48_requests(number: Any) -> None:
    """RELIABILITY 48: a queue's number of requests is a whole one, 0 or more."""
    with pytest.raises(InvalidQueueError) as caught:
        QueueConfig(name="default", max_concurrent_requests=number)

    assert repr(number) in str(caught.value)


# --- other arguments -----------------------------------------------------------------------------------------------


def test_durability() -> None:
    """A durability that is not known is an error that names those that are."""
    assert "durability is 'none'; allowed are 'full' and 'normal'." == config_error(durability="none")


def test_unknown_argument() -> None:
    """An argument that does not exist is a TypeError, against slips of the pen."""
    with pytest.raises(TypeError, match="quues"):
        TaskQueueService(":memory:", quues=[])  # type: ignore[call-arg]


def test_store_instead_of_a_database() -> None:
    """With a store of one's own the database is not looked at."""
    store = TaskQueueService(":memory:")._store

    assert store is TaskQueueService("mysql://nowhere", store=store)._store


# --- rows 49 to 52 are lives of a service: tests/test_service.py ---------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [{"target": "nowhere"}, {"max_concurrent_deliveries": 0}, {"secrets": ["x"]}, {"durability": "none"}, {"targets": {"a": 5}}],
)
async def test_bad_arguments_touch_nothing(tmp_path: Path, arguments: dict[str, Any]) -> None:
    """A service that cannot be made has made no file, no thread and no task."""
    tasks = asyncio.all_tasks()
    with pytest.raises(ConfigError):
        TaskQueueService(tmp_path / "tasks.db", **arguments)

    assert ([], tasks) == (list(tmp_path.iterdir()), asyncio.all_tasks())


async def test_errors_of_the_start_are_sentences(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A start that fails raises one sentence with the path and a fix, and logs no traceback besides."""
    caplog.set_level(logging.WARNING)
    path = tmp_path / "tasks.db"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(StoreError) as caught:
        await TaskQueueService(path, delivery=RecordingDelivery()).start()

    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("it was left as it is. Restore a backup.")
    assert [] == caplog.records
