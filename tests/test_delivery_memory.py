"""HTTPDelivery with answers that are to fill the memory: what a process of its own needs to get through them (T15)."""

from __future__ import annotations

import asyncio
import sys

import pytest
from bombs import BOMBS, CHUNKED, throwing
from hostile import answering, raw_server
from test_delivery_http import RECORD, opened

from aiotaskqueue.delivery._base import Answer

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

# T15's bar for one attempt.
MAX_MEGABYTES = 5.0

# A second of the fast clock, and the grace.
LIMIT_SECONDS = 0.2

# A busy machine may take its time to hand over the processor.
PATIENCE_SECONDS = 1.0


@pytest.mark.row(66, 68, 74, 75, 76, 82, 83)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads and resets the peak in Linux's /proc")
async def test_bombs() -> None:
    """Whatever a worker sends, an attempt ends by its deadline, as what it is, and takes less than 5 MB of memory."""
    async with throwing(*BOMBS, count=1, deadline_seconds=1.0) as damages:
        done = [damage async for damage in damages]

    assert list(BOMBS) == [damage.name for damage in done]
    assert [] == [damage for damage in done if not damage.reasons <= BOMBS[damage.name].reasons]
    assert [] == [damage for damage in done if damage.megabytes > MAX_MEGABYTES]
    assert [] == [damage for damage in done if damage.seconds > LIMIT_SECONDS + PATIENCE_SECONDS]


async def test_tiny_chunks_leave_others_their_turn() -> None:
    """While many small chunks are read, which takes long, others get their turn: at least once in 4,096 chunks."""
    chunks, turns = 300_000, 0
    async with raw_server(answering(CHUNKED + b"1\r\na\r\n" * chunks + b"0\r\n\r\n")) as server, opened(server.base_url) as delivery:
        attempt = asyncio.ensure_future(delivery.deliver(RECORD, deadline_seconds=100.0))
        while not attempt.done():
            await asyncio.sleep(0)
            turns += 1

        assert Answer(200) == await attempt
        assert turns > chunks / 4096
