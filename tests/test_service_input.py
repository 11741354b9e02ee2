"""Bad arguments of the service (RELIABILITY 4.2): each error names the value, what is allowed and the fix, and touches nothing."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aiotaskqueue import QueueConfig, TaskQueueService
from aiotaskqueue.errors import ConfigError, InvalidArgumentError, InvalidQueueError, StoreError, StoreReadOnlyError
from aiotaskqueue.testing import RecordingDelivery, VirtualClock

pytestmark = pytest.mark.anyio

GOOD_SECRET = bytes(range(100, 132))


async def start_error(database: Any) -> str:
    """Make and start a service on a database that cannot be, which shows by then; return what the error says."""
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


@pytest.mark.row(42)
@pytest.mark.parametrize(
    ("database", "message"),
    [
        ("", "The path of the database is ''; give the path of a file, or ':memory:'."),
        ("a\0b", "The path of the database is 'a\\x00b'; give the path of a file, or ':memory:'."),
        ("a\ud800", "The path of the database 'a\\ud800' has a lone surrogate; give the path of a file."),
        ("sqlite:///", "The path of the database is ''; give the path of a file, or ':memory:'."),
        (None, f"The database is of type NoneType; {PATHS}"),
        (b"tasks.db", f"The database is of type bytes; {PATHS}"),
        (5, f"The database is of type int; {PATHS}"),
        pytest.param(10**5000, f"The database is of type int; {PATHS}", id="5001 digits"),
    ],
)
def test_row_42_no_path(database: Any, message: str) -> None:
    """What is no path is an error when the service is made, that shows it or its type and says what is one."""
    with pytest.raises(ConfigError) as caught:
        TaskQueueService(database)

    assert message == str(caught.value)


@pytest.mark.row(42)
@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("file:tasks.db?immutable=1", "file:tasks.db?***"),
        ("file:tasks.db?mode=ro", "file:tasks.db?***"),
        ("file::memory:", "file::memory:"),
    ],
)
async def test_row_42_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, shown: str) -> None:
    """A URI of SQLite's is refused, and no file of that name is made."""
    monkeypatch.chdir(tmp_path)

    assert f"The database {shown!r} is a URI of SQLite's, whose options could make it unsafe; {PATHS}" == await start_error(uri)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.row(42)
async def test_row_42_directory(tmp_path: Path) -> None:
    """A folder is refused."""
    assert f"The path of the database {str(tmp_path)!r} is a folder; give the path of a file in it." == await start_error(tmp_path)


@pytest.mark.row(42)
async def test_row_42_missing_parent(tmp_path: Path) -> None:
    """A file in a folder that does not exist is refused, and the folder is not made."""
    folder = tmp_path / "missing"

    assert f"The folder {str(folder)!r} of the database does not exist; create it first." == await start_error(folder / "tasks.db")
    assert not folder.exists()


@pytest.mark.row(42)
@pytest.mark.parametrize("name", ["n" * 256, "n" * 5000, "d" * 256 + "/tasks.db"])
async def test_row_42_name_too_long(tmp_path: Path, name: str) -> None:
    """A path that no file system takes is an error of ours that shows as much of it as a message bears."""
    with pytest.raises((ConfigError, StoreReadOnlyError)) as caught:
        await TaskQueueService(tmp_path / name, delivery=RecordingDelivery()).start()

    assert len(str(caught.value)) < 400
    assert [] == list(tmp_path.iterdir())


@pytest.mark.row(42)
@pytest.mark.parametrize("database", [":memory:", "sqlite:///:memory:"])
async def test_row_42_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, database: str) -> None:
    """``:memory:`` is allowed, leaves no file, and says that it keeps nothing."""
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    async with TaskQueueService(database, dispatch=False) as service:
        await service.add(url="/w")

    assert ["The database ':memory:' is for tests: its tasks are gone when the service ends; give the path of a file."] == caplog.messages
    assert [] == list(tmp_path.iterdir())


@pytest.mark.row(42)
@pytest.mark.parametrize("form", ["{}", "sqlite:///{}", "relative.db", "sqlite:///relative.db"])
async def test_row_42_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """A path and its URL mean one file: three slashes for a relative one, four for an absolute one."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "relative.db"
    async with TaskQueueService(form.format(path), dispatch=False):
        pass

    assert path.is_file()


# --- rows 43 and 44: URLs of databases -----------------------------------------------------------------------------


@pytest.mark.row(43)
@pytest.mark.parametrize("scheme", ["mysql", "postgresql", "sqlite+aiosqlite", "SQLITE", ""])
async def test_row_43_unknown_scheme(scheme: str) -> None:
    """A URL of an unknown scheme is refused; the scheme is shown and what is allowed."""
    assert f"The database '{scheme}://***' has an unknown scheme; {PATHS}" == await start_error(f"{scheme}://host/db")


@pytest.mark.promise("P24")
@pytest.mark.row(44)
@pytest.mark.parametrize("url", ["postgresql://user:hunter2@host/db", "sqlite://user:hunter2@host/db", "x" * 100 + "://u:hunter2@h"])
async def test_row_44_password(url: str) -> None:
    """The password in a URL is in no error."""
    message = await start_error(url)

    assert (False, True) == ("hunter2" in message, "://***'" in message)


async def test_host_of_sqlite() -> None:
    """A URL with two slashes names a host, which is a slip: refused instead of taken for a path."""
    assert f"The database 'sqlite://***' names a host; {PATHS}" == await start_error("sqlite://tasks.db")


# --- row 45: targets -----------------------------------------------------------------------------------------------


@pytest.mark.row(45)
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("localhost:8080", "Base URL 'localhost:8080' has no scheme http or https; "),
        ("ftp://host", "Base URL 'ftp://host' has no scheme http or https; "),
        ("http://", "Base URL 'http://'"),
        ("", "Base URL '' has no scheme http or https; "),
        ("//host", "Base URL '//host' has no scheme http or https; "),
        ("http:///path", "Base URL 'http:///path' "),
        ("http://user:hunter2@host", "Base URL 'http://***@host' has userinfo"),
        ("http://user:hunter2/hunter2@host", "Base URL 'http://***' cannot be parsed"),
        (
            ["http://user:hunter2@host"],
            "not an object of type list.",
        ),
        ("http://host/?a=1", "Base URL 'http://host/?***' has a query; "),
        ("http://host/#f", "Base URL 'http://host/#***' has a fragment; "),
        (5, "not an object of type int."),
        (object, "A target is a base URL, an aiohttp Application or an ASGI application, not an object of type type."),
    ],
)
@pytest.mark.parametrize("is_named", [False, True])
def test_row_45_bad_target(target: Any, message: str, is_named: bool) -> None:
    """A target that is none is an error when the service is made; passwords are masked."""
    said = config_error(targets={"a": target}) if is_named else config_error(target=target)

    assert message in said
    assert "hunter2" not in said


@pytest.mark.row(45)
def test_row_45_named_target_of_none() -> None:
    """A named target must be one."""
    assert "A target is a base URL, an aiohttp Application or an ASGI application, not an object of type NoneType." == config_error(
        targets={"a": None}
    )


@pytest.mark.row(45)
@pytest.mark.parametrize("targets", [5, "mailer", [("a", "http://a.example")], {"a"}, 0, ""])
def test_row_45_targets_that_are_no_dict(targets: Any) -> None:
    """Named targets are a dict; its values, which may have passwords, are not shown."""
    assert f"targets is of type {type(targets).__name__}; give a dict of names and targets." == config_error(targets=targets)


@pytest.mark.row(45)
@pytest.mark.parametrize("name", [None, "", 5, b"a"])
def test_row_45_target_without_a_name(name: Any) -> None:
    """A named target has a name that tasks can give."""
    assert f"A name in targets is {name!r}; give a text that is not empty." == config_error(targets={name: "http://a.example"})


@pytest.mark.row(45)
def test_row_45_wildcard(caplog: pytest.LogCaptureFixture) -> None:
    """An address to listen on is replaced by the loopback one, with a WARNING."""
    TaskQueueService(":memory:", target="http://0.0.0.0:8080")

    expected = ("WARNING", "Base URL http://0.0.0.0:8080 is an address to listen on; tasks are sent to 127.0.0.1.")
    assert expected in [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.row(45)
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


@pytest.mark.promise("P24")
@pytest.mark.row(46)
@pytest.mark.parametrize(
    "secret",
    [
        "",
        b"",
        "changeme",
        b"changeme",
        "changeme" * 8,
        b"short",
        b"hunter2-hunter2-hunter2-hunter2",
        "not base64url text at all, though long enough to be",
        "\ud800" * 50,
        5,
        None,
        bytearray(range(32)),
    ],
)
def test_row_46_bad_secret(secret: Any) -> None:
    """A secret that is unfit is an error when the service is made, and is not shown."""
    message = config_error(secrets=[GOOD_SECRET, secret])

    assert message.startswith("Secret 2 ")
    assert not secret or str(secret) not in message


@pytest.mark.row(46)
@pytest.mark.parametrize(
    "secrets",
    [[], (), iter([]), GOOD_SECRET, "x" * 64, 5, {GOOD_SECRET}, {GOOD_SECRET: 1}, object()],
    ids=lambda secrets: type(secrets).__name__,
)
def test_row_46_no_list_of_secrets(secrets: Any) -> None:
    """Secrets come in a list that has a newest one, and are not shown."""
    assert "Secrets must be a list with at least one secret, the newest first." == config_error(secrets=secrets)


# --- rows 47 and 48: numbers ---------------------------------------------------------------------------------------


@pytest.mark.row(47)
@pytest.mark.parametrize("seconds", [0, -1, 1e9])
def test_row_47_deadline(seconds: float) -> None:
    """A queue's deadline out of range is an error that states the range."""
    with pytest.raises(InvalidQueueError) as caught:
        QueueConfig(name="default", dispatch_deadline_seconds=seconds)

    assert "86400" in str(caught.value).replace(",", "")


@pytest.mark.row(48)
@pytest.mark.parametrize("number", [0, -1, "5", 1.5, True, None, 100_000_001, [], 10**70])
def test_row_48_deliveries(number: Any) -> None:
    """The number of deliveries is a whole one, 1 or more, that a store can keep."""
    expected = f"max_concurrent_deliveries is {number!r}; give a whole number from 1 to 100000000."

    assert expected == config_error(max_concurrent_deliveries=number)


@pytest.mark.row(48)
@pytest.mark.parametrize("number", [-1, "5"])
def test_row_48_requests(number: Any) -> None:
    """A queue's number of requests is a whole one, 0 or more."""
    with pytest.raises(InvalidQueueError) as caught:
        QueueConfig(name="default", max_concurrent_requests=number)

    assert repr(number) in str(caught.value)


# --- other arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["none", "", None, 5, [], {"full"}])
def test_durability(durability: Any) -> None:
    """A durability that is not known is an error that names those that are."""
    assert f"durability is {durability!r}; allowed are 'full' and 'normal'." == config_error(durability=durability)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("dispatch", "True or False"),
        ("eager", "True or False"),
        ("seed", "a whole number or None"),
        ("clock", "a Clock or None"),
        ("delivery", "a Delivery or None"),
        ("store", "a Store or None"),
    ],
)
@pytest.mark.parametrize("value", ["false", 0.5, [], VirtualClock])
def test_arguments_of_another_type(name: str, allowed: str, value: Any) -> None:
    """What is of another type is an error that says what to give; of texts, "false" would count as true."""
    assert f"{name} is {value!r}; give {allowed}." == config_error(**{name: value})


@pytest.mark.parametrize("queues", ["none.yaml", Path("none.toml")])
def test_missing_queue_file(queues: str | Path) -> None:
    """A file of queues that is not there is an error with its path and what to do, and without Python's own words."""
    assert f"{queues}: The file does not exist; create it, or give the queues themselves." == config_error(queues=queues)


class BytesPath:
    """A path of bytes, as some file systems' tools give it."""

    def __fspath__(self) -> bytes:
        return b"queue.yaml"


@pytest.mark.parametrize("queues", [5, b"queue.yaml", BytesPath(), QueueConfig("default"), object()])
def test_queues_of_another_type(queues: Any) -> None:
    """Queues that are neither a path nor a list are an error."""
    assert config_error(queues=queues).endswith("is neither a path nor a list of QueueConfig.")


TIMES = {"drain": TaskQueueService.drain, "aclose": TaskQueueService.aclose}


@pytest.mark.parametrize("method", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan"), float("inf"), 86_401, 10**400])
async def test_time_out_of_range(method: Any, seconds: float) -> None:
    """A time for the drain that is out of range is an error that says the range, and the service goes on."""
    async with TaskQueueService(":memory:", dispatch=False) as service:
        with pytest.raises(InvalidArgumentError, match=r"^timeout_seconds is .*; give a number from 0 to 86400\.$"):
            await method(service, seconds)

        assert service.health().is_ok


@pytest.mark.parametrize("method", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("seconds", ["5", None, True, [5]])
async def test_time_of_another_type(method: Any, seconds: Any) -> None:
    """A time for the drain that is no number is a TypeError that shows it, and the service goes on."""
    async with TaskQueueService(":memory:", dispatch=False) as service:
        with pytest.raises(TypeError, match=r"^timeout_seconds is .*; give a number of seconds\.$"):
            await method(service, seconds)

        assert service.health().is_ok


def test_unknown_argument() -> None:
    """An argument that does not exist is a TypeError, against slips of the pen."""
    with pytest.raises(TypeError, match="quues"):
        TaskQueueService(":memory:", quues=[])  # type: ignore[call-arg]


def test_store_instead_of_a_database() -> None:
    """With a store of one's own the database is not looked at."""
    store = TaskQueueService(":memory:")._store
    service = TaskQueueService("mysql://user:hunter2@nowhere", store=store)

    assert (store, "TaskQueueService('mysql://***@nowhere')") == (service._store, service.description)


# --- rows 49 to 52 are lives of a service: tests/test_service.py ---------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"target": "nowhere"},
        {"max_concurrent_deliveries": 0},
        {"secrets": ["x"]},
        {"durability": "none"},
        {"targets": {"a": 5}},
        {"queues": "none.yaml"},
        {"dispatch": "no"},
    ],
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
