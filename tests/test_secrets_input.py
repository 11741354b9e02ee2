"""P24: an error about bad input never quotes what may be secret in it: of a value it tells the type, the length or the place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from canaries import Canaries, Ears
from open_stores import raw
from yarl import URL

from aiotaskqueue import QueueConfig, Task, TaskQueueService, TaskRetryOptions
from aiotaskqueue.delivery.http import HTTPDelivery
from aiotaskqueue.errors import Error
from aiotaskqueue.signing import KeyRing
from aiotaskqueue.testing import RecordingDelivery
from aiotaskqueue.web.aiohttp import init_app, init_worker

pytestmark = pytest.mark.promise("P24")

QUEUES = (QueueConfig("default"), QueueConfig("pull", mode="pull"))


@pytest.fixture
def ears() -> Iterator[Ears]:
    """Ears that listen during the test."""
    with Ears(Canaries()) as ears:
        yield ears


# --- arguments of a task -------------------------------------------------------------------------------------------

# From a secret to arguments that are refused.
Arguments = Callable[[str], dict[str, Any]]

BAD_TASKS: dict[str, Arguments] = {
    "payload of another type": lambda s: {"payload": {"key": s}},
    "payload in a list": lambda s: {"payload": [s]},
    "payload in a bytearray": lambda s: {"payload": bytearray(s.encode())},
    "payload with a surrogate": lambda s: {"payload": f"{s}\ud800{s}"},
    "payload with two surrogates": lambda s: {"payload": f"{s}\ud800\ud800"},
    "payload of GET": lambda s: {"payload": s, "method": "GET"},
    "payload and params": lambda s: {"payload": s, "params": {"a": s}},
    "payload too large": lambda s: {"payload": s * 3000},
    "no payload but a URL for PULL": lambda s: {"method": "PULL", "url": f"/w?{s}", "payload": s},
    "params in a list": lambda s: {"params": [("a", s)]},
    "params in a text": lambda s: {"params": f"a={s}"},
    "params with a dict": lambda s: {"params": {"a": {"b": s}}},
    "params with a set": lambda s: {"params": {"a": {s}}},
    "params with a list of lists": lambda s: {"params": {"a": [[s]]}},
    "params with an object": lambda s: {"params": {"a": Careless(s)}},
    "params with a surrogate": lambda s: {"params": {"a": f"{s}\ud800{s}"}},
    "params with an int without end": lambda s: {"params": {"a": s, "b": 10**5000}},
    "params and a query": lambda s: {"url": f"/w?a={s}", "params": {"a": s}, "method": "PUT"},
    "query of POST": lambda s: {"url": f"/w?a={s}"},
    "query with a blank": lambda s: {"url": f"/w?a= {s}", "method": "GET"},
    "query with a bad escape": lambda s: {"url": f"/w?a={s}%zz", "method": "GET"},
    "query with a fragment": lambda s: {"url": f"/w?a={s}#{s}", "method": "GET"},
    "fragment": lambda s: {"url": f"/w#{s}", "method": "GET"},
    "query behind a bad path": lambda s: {"url": f"/a//b?{s}", "method": "GET"},
    "query without a path": lambda s: {"url": f"?{s}", "method": "GET"},
    "query behind a host": lambda s: {"url": f"http://host/w?{s}"},
    "query behind a host without a scheme": lambda s: {"url": f"//host/w?{s}"},
    "query of a yarl URL": lambda s: {"url": URL(f"http://host/w?{s}")},
    "URL of another type": lambda s: {"url": f"/w?{s}".encode()},
    "password": lambda s: {"url": f"http://user:{s}@host/w"},
    "password without a scheme": lambda s: {"url": f"//user:{s}@host/w"},
    "password without slashes": lambda s: {"url": f"http:user:{s}@host/w"},
    "password without anything": lambda s: {"url": f"user:{s}@host/w"},
    "password with a slash": lambda s: {"url": f"http://user:{s}/{s}@host/w"},
    "password with a question mark": lambda s: {"url": f"http://user:{s}?{s}@host/w"},
    "password with a hash": lambda s: {"url": f"http://user:{s}#{s}@host/w"},
    "password with an at-sign": lambda s: {"url": f"http://user:{s}@{s}@host/w"},
    "password of a yarl URL": lambda s: {"url": URL(f"http://user:{s}@host/w")},
    "password in the target": lambda s: {"target": f"http://user:{s}@host/", "headers": {"Host": "a"}},
    "target of another type": lambda s: {"target": URL(f"http://user:{s}@host/")},
    "headers in a list": lambda s: {"headers": [("Cookie", s)]},
    "headers in a text": lambda s: {"headers": f"Cookie: {s}"},
    "header with a line break": lambda s: {"headers": {"Authorization": f"{s}\r\n{s}"}},
    "header beyond latin-1": lambda s: {"headers": {"Cookie": f"{s}\u20ac{s}"}},
    "header of bytes": lambda s: {"headers": {"Cookie": s.encode()}},
    "header of a dict": lambda s: {"headers": {"Cookie": {"session": s}}},
    "header of an object": lambda s: {"headers": {"Cookie": Careless(s)}},
    "header of a list of bytes": lambda s: {"headers": {"Cookie": [s.encode()]}},
    "header of PULL": lambda s: {"headers": {"Cookie": s}, "method": "PULL", "payload": s},
    "reserved header": lambda s: {"headers": {"Signature": s}},
    "headers too long": lambda s: {"headers": {"Cookie": s * 1000}},
    "headers too many": lambda s: {"headers": {f"X-{number}": s for number in range(65)}},
    "header and target": lambda s: {"headers": {"Host": s}, "target": "mailer"},
    "tag of POST": lambda s: {"tag": s},
    "tag too long": lambda s: {"method": "PULL", "payload": s, "tag": s * 20},
    "tag with a NUL": lambda s: {"method": "PULL", "payload": s, "tag": f"{s}\0{s}"},
    "tag with a surrogate": lambda s: {"method": "PULL", "payload": s, "tag": f"{s}\ud800"},
    "tag of another type": lambda s: {"method": "PULL", "payload": s, "tag": s.encode()},
    "bad name beside it": lambda s: {"payload": s, "name": "a b", "headers": {"Cookie": s}},
    "bad ETA beside it": lambda s: {"payload": s, "countdown": "inf", "headers": {"Cookie": s}},
    "bad deadline beside it": lambda s: {"payload": s, "dispatch_deadline_seconds": 0, "headers": {"Cookie": s}},
    "bad options beside it": lambda s: {"payload": s, "retry_options": {"task_retry_limit": 1}},
    "an unknown argument": lambda s: {"payload": s, "parmas": {"a": s}},
}


class Careless:
    """An object of the user's that shows all of itself."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def __repr__(self) -> str:
        return f"Careless({self._secret})"


@pytest.mark.parametrize("arguments", BAD_TASKS.values(), ids=BAD_TASKS)
def test_bad_task(ears: Ears, arguments: Arguments) -> None:
    """Whatever is wrong with a task, its error, those behind that one, and the traceback show nothing secret of it."""
    with pytest.raises((Error, TypeError)) as caught:
        Task(**arguments(ears.canaries["secret"]))
    ears.hear_error(caught.value)

    assert [] == ears.leaks()


@pytest.mark.parametrize(
    "make",
    [
        lambda s: Task(f"{s}", url="/w"),
        lambda s: Task(f"a={s}&{s}", method="PULL"),
        lambda s: Task(f"a={s}%ff", url="/w"),
        lambda s: Task(s.encode() + b"\xff", url="/w"),
        lambda s: Task(url=f"/w?{s}", method="GET"),
    ],
)
def test_params_that_are_none(ears: Ears, make: Callable[[str], Task]) -> None:
    """Asked for the params of a payload that has none, a task does not quote it."""
    with pytest.raises(ValueError, match="is not form-encoded text") as caught:
        make(ears.canaries["secret"]).extract_params()
    ears.hear_error(caught.value)

    assert [] == ears.leaks()


# --- arguments of a service ----------------------------------------------------------------------------------------

BASE_URLS = {
    "password": "http://user:{}@host",
    "password with a slash": "http://user:{}/{}@host",
    "password with a question mark": "http://user:{}?{}@host",
    "password with an at-sign": "http://user:{}@{}@host",
    "password without a scheme": "user:{}@host",
    "password without slashes": "http:user:{}@host",
    "password of another scheme": "ftp://user:{}@host",
    "password and a blank": "http://user:{} {}@host",
    "password in the place of a port": "http://user:{}",
    "query": "http://host/?token={}",
    "query with an at-sign": "http://host/?mail=a@{}",
    "fragment": "http://host/#{}",
}

BAD_SERVICES: dict[str, Callable[[str], object]] = {
    **{f"target: {name}": lambda s, url=url: TaskQueueService(target=url.format(s, s)) for name, url in BASE_URLS.items()},  # type: ignore[misc]
    **{f"named target: {name}": lambda s, url=url: TaskQueueService(targets={"a": url.format(s, s)}) for name, url in BASE_URLS.items()},  # type: ignore[misc]
    **{f"delivery: {name}": lambda s, url=url: HTTPDelivery(url.format(s, s)) for name, url in BASE_URLS.items()},  # type: ignore[misc]
    "target: a yarl URL": lambda s: TaskQueueService(target=URL(f"http://user:{s}@host")),  # type: ignore[arg-type]
    "target: bytes": lambda s: TaskQueueService(target=f"http://user:{s}@host".encode()),  # type: ignore[arg-type]
    "target: a tuple": lambda s: TaskQueueService(target=("http://host", s)),  # type: ignore[arg-type]
    "targets: a list": lambda s: TaskQueueService(targets=[f"http://user:{s}@host"]),  # type: ignore[arg-type]
    "delivery: bytes": lambda s: HTTPDelivery(f"http://user:{s}@host".encode()),  # type: ignore[arg-type]
    "base_url": lambda s: init_app(web.Application(), TaskQueueService(":memory:"), base_url=f"http://user:{s}@host"),
    "database of another scheme": lambda s: TaskQueueService(f"mysql://user:{s}@host/db"),
    "database on a host": lambda s: TaskQueueService(f"sqlite://user:{s}@host/db"),
    "database with one slash": lambda s: TaskQueueService(f"postgresql:/user:{s}@host/db"),
    "database without slashes": lambda s: TaskQueueService(f"postgresql:user:{s}@host/db"),
    "database as a path": lambda s: TaskQueueService(Path(f"postgresql://user:{s}@host/db")),
    "database in bytes": lambda s: TaskQueueService(f"postgresql://user:{s}@host/db".encode()),  # type: ignore[arg-type]
    "database of another type": lambda s: TaskQueueService({"password": s}),  # type: ignore[arg-type]
    "database as a yarl URL": lambda s: TaskQueueService(URL(f"postgresql://user:{s}@host/db")),  # type: ignore[arg-type]
    "database as a URI of SQLite's": lambda s: TaskQueueService(f"file:tasks.db?key={s}"),
    "secrets: one text": lambda s: TaskQueueService(secrets=s),
    "secrets: too short": lambda s: TaskQueueService(secrets=[s[:31].encode()]),
    "secrets: no base64url": lambda s: TaskQueueService(secrets=[f"{s}!"]),
    "secrets: a known default": lambda s: TaskQueueService(secrets=[f"changeme{s}".encode()]),
    "secrets: of another type": lambda s: TaskQueueService(secrets=[bytearray(s.encode())]),  # type: ignore[list-item]
    "secrets: a dict": lambda s: TaskQueueService(secrets={"key": s}),  # type: ignore[arg-type]
    "secrets of a worker": lambda s: init_worker(web.Application(), secrets=[f"{s}!"]),
    "keys": lambda s: KeyRing([s.encode(), f"{s}!"]),
}


@pytest.mark.parametrize("make", BAD_SERVICES.values(), ids=BAD_SERVICES)
def test_bad_service(ears: Ears, make: Callable[[str], object]) -> None:
    """Whatever is wrong with a target, a database or a key, the error shows no password, no query and no key."""
    with pytest.raises((Error, TypeError)) as caught:
        make(ears.canaries["secret"])
    ears.hear_error(caught.value)

    assert [] == ears.leaks()


# --- calls to a service --------------------------------------------------------------------------------------------

Call = Callable[[TaskQueueService, str], Any]


async def add_twice(service: TaskQueueService, secret: str) -> None:
    """Add one task twice."""
    await service.queue().add([Task(secret, name="same", countdown=60), Task(secret, name="same")])


async def add_again(service: TaskQueueService, secret: str) -> None:
    """Add a task whose name is taken."""
    for _ in range(2):
        await service.add(secret, name="taken", countdown=60, headers={"Cookie": secret})


async def add_an_added_one(service: TaskQueueService, secret: str) -> None:
    """Add an object again."""
    await service.queue().add(await service.add(secret, countdown=60))


async def delete_a_deleted_one(service: TaskQueueService, secret: str) -> None:
    """Delete an object again."""
    added = await service.add(secret, countdown=60)
    await service.queue().delete_tasks(added)
    await service.queue().delete_tasks(added)


async def revive_with(service: TaskQueueService, secret: str, **content: Any) -> None:
    """Revive a task with content that is none for it."""
    headers = {"Cookie": secret}
    await service.add(secret, url="/dies", name="dead", headers=headers, retry_options=TaskRetryOptions(task_retry_limit=0))
    await service.run_until_idle()
    await service.queue().revive("dead", **content)


async def lose_the_file(service: TaskQueueService, secret: str) -> None:
    """Add when the store fails."""
    path = Path(service._database)  # type: ignore[arg-type]
    path.rename(path.with_name("moved.db"))
    await service.add(secret, headers={"Cookie": secret})


async def break_the_table(service: TaskQueueService, secret: str) -> None:
    """Add when SQLite refuses the very row."""
    with raw(service._database) as database:  # type: ignore[arg-type]
        # The service may be writing.
        database.execute("PRAGMA busy_timeout = 5000")
        database.execute("CREATE TRIGGER refuse BEFORE INSERT ON taskqueue_task BEGIN SELECT RAISE(ABORT, 'no'); END")
    await service.add(secret, headers={"Cookie": secret})


BAD_CALLS: dict[str, Call] = {
    "a name twice": add_twice,
    "a taken name": add_again,
    "an object twice": add_an_added_one,
    "a deleted object": delete_a_deleted_one,
    "a mixture": lambda service, s: service.queue().add([Task(s), Task(s, method="PULL", tag=s)]),
    "no task": lambda service, s: service.queue().add([Task(s), Careless(s)]),  # type: ignore[list-item]
    "nothing that can be added": lambda service, s: service.queue().add(Careless(s)),  # type: ignore[call-overload]
    "nothing that can be deleted": lambda service, s: service.queue().delete_tasks(Careless(s)),  # type: ignore[call-overload]
    "a task without a name": lambda service, s: service.queue().delete_tasks([Task(s)]),
    "an unknown queue": lambda service, s: service.add(s, queue_name="unknown", headers={"Cookie": s}),
    "a pull task": lambda service, s: service.add(s, method="PULL", tag=s),
    "a push task": lambda service, s: service.add(s, queue_name="pull", headers={"Cookie": s}),
    "an unknown target": lambda service, s: service.add(s, target=f"http://user:{s}@host/?{s}"),
    "a transaction": lambda service, s: service.add(s, transactional=True, headers={"Cookie": s}),
    "too many": lambda service, s: service.queue().add([Task(s)] * 10_001),
    "a bad task": lambda service, s: service.add(s, headers={"Cookie": f"{s}\n"}),
    "a filter of another type": lambda service, s: service.queue().list_tasks(url=f"/w?{s}".encode()),  # type: ignore[arg-type]
    "a filter with a surrogate": lambda service, s: service.queue().list_tasks(url=f"/w?{s}\ud800"),
    "a tag with a surrogate": lambda service, s: service.queue().list_tasks(tag=f"{s}\ud800"),
    "a tag of another type": lambda service, s: service.queue().dead_tasks(tag=s.encode()),  # type: ignore[arg-type]
    "a revival with another type": lambda service, s: revive_with(service, s, payload={"a": s}),
    "a revival with too much": lambda service, s: revive_with(service, s, payload=s * 3000),
    "a revival with a query": lambda service, s: revive_with(service, s, url=f"/w?{s}"),
    "a revival with a password": lambda service, s: revive_with(service, s, url=f"http://user:{s}@host"),
    "a file that is gone": lose_the_file,
    "a row that is refused": break_the_table,
}


async def make(call: Call, service: TaskQueueService, secret: str) -> None:
    """Make a call, of a coroutine function or not."""
    await call(service, secret)


@pytest.mark.anyio
@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS)
async def test_bad_call(path: Path, ears: Ears, call: Call) -> None:
    """Whatever is wrong with a call, or with the store, neither the error nor a log shows anything secret of the tasks."""
    delivery = RecordingDelivery(lambda record: 500 if record.url == "/dies" else 200)
    async with TaskQueueService(path, queues=QUEUES, delivery=delivery) as service:
        with pytest.raises((Error, TypeError)) as caught:
            await make(call, service, ears.canaries["secret"])
        ears.hear_error(caught.value)
        ears.look_around()

    assert [] == ears.leaks()
