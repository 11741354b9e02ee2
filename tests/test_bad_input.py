"""Bad input as docs/bad-input.md lists it: whatever it is, it is one of our errors, a sentence, and leaves the database as it was.

Which error it is, and what it says, is the matter of the tests beside: test_task_input, test_service_input, gae/test_queue.
"""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from open_stores import query, raw

from aiotaskqueue import QueueConfig, TaskQueueService, errors
from aiotaskqueue.testing import RecordingDelivery, VirtualClock

pytestmark = pytest.mark.anyio

QUEUES = [QueueConfig("default"), QueueConfig("mail"), QueueConfig("pull", mode="pull")]

NAN, INFINITY = float("nan"), float("inf")

# Arguments that make no task, row by row.
BAD_TASKS: dict[int, list[dict[str, Any]]] = {
    2: [{"url": "worker"}],
    3: [{"url": "//evil.example/x"}],
    4: [{"url": "http://other/x"}],
    5: [{"url": "file:///etc/passwd"}, {"url": "gopher:"}, {"url": "javascript:"}, {"url": "HTTP:/x"}],
    6: [{"url": "http://u:p@host/"}],
    7: [{"url": "/w#frag"}],
    8: [{"url": "/w\r\nX: y"}, {"url": "/w\x00"}, {"url": "/w w"}, {"url": "/\ud800"}],
    9: [{"url": "/w%zz"}, {"url": "/%"}],
    10: [{"url": "/a/../b"}, {"url": "/./x"}, {"url": "/a//b"}],
    11: [{"url": "/" + "a" * 2083}],
    13: [{"url": "/w?a=1", "params": {"b": "2"}, "method": "GET"}, {"url": "/w?a=1"}],
    14: [{"payload": "p", "params": {"a": "1"}}],
    15: [{"payload": "p", "method": "GET"}, {"payload": "p", "method": "HEAD"}, {"payload": "p", "method": "DELETE"}],
    16: [{"params": {"a": None}}, {"params": {"a": object()}}, {"params": {"a": {"b": {}}}}],
    17: [{"params": {"a": {"1", "2"}}}],
    18: [{"params": {None: "a"}}, {"params": {("a", "b"): "a"}}, {"params": {object(): "a"}}],
    19: [{"payload": "\ud800"}],
    20: [{"payload": b"x" * (102_401 - len("POST/w")), "url": "/w"}],
    21: [{"payload": payload} for payload in (memoryview(b"a"), bytearray(b"a"), 0, False, [], object())],
    23: [{"name": name} for name in ("n" * 501, "a b", "a/b", "é", "..", "a\n")],
    24: [{"name": 1}, {"name": b"a"}],
    28: [{"eta": datetime(2030, 1, 1, tzinfo=UTC), "countdown": 1}],
    29: [{"countdown": countdown} for countdown in (NAN, INFINITY, True, "x", 1e400, -1e12)],
    30: [{"eta": datetime(1, 1, 1)}, {"countdown": 1e12}],
    31: [{"eta": 1_767_323_045}, {"eta": date(2026, 1, 1)}],
    32: [{"method": method} for method in ("PATCH", "TRACE", "G ET", b"POST", None)],
    33: [
        *(
            {"headers": {name: "x"}}
            for name in ("a b", "", "Content-Length", "Transfer-Encoding", "Connection", "Signature", "X-TaskQueue-A")
        ),
        *({"headers": {"X-A": value}} for value in ("a\r\nb", "a\x00", "\u0100", 1, None)),
        {"headers": {f"a{number}": "x" for number in range(65)}},
        {"headers": {"X-A": "x" * 17 * 1024}},
    ],
    34: [{"retry_options": {"task_retry_limit": 1}}],
    35: [{"target": "other"}],
    36: [{"payload": "p", "method": "PULL", "tag": "t" * 501, "queue_name": "pull"}, {"tag": "t"}],
    41: [{"queue_name": "bad name!"}, {"queue_name": "mial"}, {"queue_name": "pull"}, {"payload": "p", "method": "PULL"}],
}

# One sentence: a capital or the name of an argument, a full stop or "did you mean ...?" at the end.
SENTENCE = re.compile(r"([A-Z]|[a-z_]+ )[^\n]{10,300}[.?]")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the tasks are."""
    return tmp_path / "tasks.db"


@pytest.fixture
async def service(path: Path) -> AsyncIterator[TaskQueueService]:
    """A service of a few queues, in which nothing runs before a test says so."""
    async with TaskQueueService(path, queues=QUEUES, delivery=RecordingDelivery(), clock=VirtualClock()) as service:
        yield service


@contextlib.contextmanager
def unwritten(path: Path) -> Iterator[None]:
    """Fail if anybody writes to the database while the block runs."""
    with raw(path) as connection:
        version = query(connection, "PRAGMA data_version")
        yield

        assert version == query(connection, "PRAGMA data_version")


async def errors_of(service: TaskQueueService) -> list[tuple[int, Exception | None]]:
    """Return what adding each bad task raises, with its row; None if nothing."""
    found: list[tuple[int, Exception | None]] = []
    for row, cases in BAD_TASKS.items():
        for arguments in cases:
            try:
                await service.add(**arguments)
            except Exception as exc:
                found.append((row, exc))
            else:
                found.append((row, None))
    return found


@pytest.mark.row(2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24, 28, 29, 30, 31, 32, 33, 34, 35, 36, 41)
async def test_bad_tasks_leave_no_trace(service: TaskQueueService, path: Path) -> None:
    """Each value that the catalogue lists is an error of ours before anything is written."""
    with unwritten(path):
        found = await errors_of(service)

    assert [] == [(row, error) for row, error in found if not isinstance(error, errors.Error)]
    assert [] == query(path, "SELECT name FROM taskqueue_task UNION ALL SELECT name FROM taskqueue_tombstone")


async def test_bad_tasks_are_said_in_a_sentence(service: TaskQueueService) -> None:
    """Each error is one sentence that can be shown anywhere."""
    messages = [str(error) for _, error in await errors_of(service)]

    assert [] == [message for message in messages if not (SENTENCE.fullmatch(message) and message.isprintable())]


SECRET = "hunter2"


@pytest.mark.promise("P24")
@pytest.mark.parametrize(
    "arguments",
    [
        {"payload": [SECRET]},
        {"payload": f"{SECRET}\ud800"},
        {"payload": SECRET, "method": "GET"},
        {"payload": SECRET, "params": {"a": SECRET}},
        {"params": {"a": SECRET}, "url": "/w?b=1", "method": "GET"},
        {"params": [SECRET]},
        {"params": {"a": {SECRET}}},
        {"params": {"a": [[SECRET]]}},
        {"params": {"a": f"{SECRET}\ud800"}},
        {"headers": [SECRET]},
        {"headers": {"Authorization": f"Bearer {SECRET}\n"}},
        {"headers": {"Authorization": {SECRET}}},
        {"headers": {"Authorization": [SECRET, 5]}},
        {"headers": {"Authorization": SECRET}, "payload": "p", "method": "PULL"},
        {"headers": {"Cookie": SECRET * 3000}},
        {"payload": SECRET * 20_000},
        {"url": f"http://user:{SECRET}@host/"},
        {"target": f"http://user:{SECRET}@host/"},
    ],
)
async def test_what_may_be_secret_is_not_shown(service: TaskQueueService, arguments: dict[str, Any]) -> None:
    """No error, and no error that led to it, shows what a task would have carried."""
    with pytest.raises(errors.Error) as caught:
        await service.add(**arguments)

    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.row(41)
async def test_queue_that_is_configured_no_more(path: Path) -> None:
    """A queue that is gone from the configuration is an unknown one, and keeps the tasks that it has."""
    async with TaskQueueService(path, queues=[QueueConfig("old")], dispatch=False) as service:
        await service.add(queue_name="old", url="/w", name="kept")
    async with TaskQueueService(path, dispatch=False) as service:
        with pytest.raises(errors.UnknownQueueError, match=r"^Queue 'old' is not configured; did you mean 'default'\?$"):
            await service.add(queue_name="old", url="/w")

    assert ["kept"] == query(path, "SELECT name FROM taskqueue_task")
