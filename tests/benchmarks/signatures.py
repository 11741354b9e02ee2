"""Which part of a delivery is the signature, made here and checked there?

Ours and the ceiling are both our own delivery over HTTP to the same worker, in one process and event loop; once with
keys, and once without, to a handler that everybody may call.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from aiohttp import web
from drain import AT_ONCE, SECRET, make_task, serve
from harness import Bar, Figure, Options, main

from aiotaskqueue._clock import SystemClock
from aiotaskqueue._headers import task_headers
from aiotaskqueue._record import NameGenerator, TaskRecord, record_of
from aiotaskqueue.delivery._base import Answer
from aiotaskqueue.delivery.http import HTTPDelivery
from aiotaskqueue.signing import KeyRing, Verdict, sign, verify_body, verify_head
from aiotaskqueue.web.aiohttp import init_worker, task

KEYS = KeyRing([SECRET])


def make_records(count: int) -> list[TaskRecord]:
    """Return tasks as they are leased."""
    names, now_usec = NameGenerator(), time.time_ns() // 1000
    return [
        record_of(make_task(), queue_name="default", name=names.name(now_usec), uuid=names.uuid(), now_usec=now_usec) for _ in range(count)
    ]


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """Serve a task's handler; give its URL."""

    @task
    async def work(request: web.Request) -> None:
        """Do nothing."""

    app = web.Application()
    app.router.add_post("/work", work)
    init_worker(app, secrets=[SECRET])
    async with serve(app) as url:
        yield url


async def time_delivery(url: str, records: list[TaskRecord]) -> float:
    """Return the seconds that one signed delivery takes, with so many at once as a process makes."""
    delivery = HTTPDelivery(url, keys=KEYS)
    await delivery.open(SystemClock())
    waiting = iter(records)

    async def deliver() -> None:
        for record in waiting:
            assert Answer(200) == await delivery.deliver(record, deadline_seconds=30.0)

    begun = time.perf_counter()
    await asyncio.gather(*(deliver() for _ in range(AT_ONCE)))
    seconds = time.perf_counter() - begun
    await delivery.aclose()
    return seconds / len(records)


def time_signing(records: list[TaskRecord]) -> float:
    """Return the seconds that it takes to sign one request and to verify it."""
    prepared = [(record, task_headers(record, deadline_seconds=30.0)) for record in records]
    now = time.time()
    begun = time.perf_counter()
    for record, headers in prepared:
        body = record.payload or b""
        around = [("Host", "localhost:8080"), ("Accept", "*/*"), ("Accept-Encoding", "identity"), ("User-Agent", "aiotaskqueue")]
        signed = sign(KEYS, method="POST", path="/work", query="", headers=headers, body=body, created=int(now), deadline_seconds=30.0)
        verdict = verify_head(KEYS, method="POST", path="/work", query="", headers=[*around, *headers, *signed], now=now)
        assert isinstance(verdict, Verdict)
        assert verify_body(verdict, body)
    return (time.perf_counter() - begun) / len(records)


async def bench(options: Options) -> None:
    """Answer the question."""
    count = options.scale(10_000, 2_000)
    shares, pairs = [], []
    async with serving() as url:
        for _ in range(options.rounds + 1):
            seconds = await time_delivery(url, make_records(count))
            signing = time_signing(make_records(count))
            shares.append(signing / seconds)
            pairs.append((signing, seconds))
    shares, pairs = sorted(shares[1:]), sorted(pairs[1:])
    signing, seconds = pairs[len(pairs) // 2]
    options.note(
        Figure(
            "signing and verifying, share of a delivery",
            "one delivery of ours over HTTP",
            shares[len(shares) // 2],
            (shares[0], shares[-1]),
            Bar(0.15, 0.08, is_most=True),
            f"{signing * 1e6:.1f} us",
            f"{seconds * 1e6:.1f} us",
        )
    )


if __name__ == "__main__":
    main(bench)
