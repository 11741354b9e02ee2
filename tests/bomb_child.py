"""What bombs are thrown at: a process with a delivery on the fast clock. Run as `bomb_child.py TARGET COUNT DEADLINE BOMB...`.

Prints for each bomb how its attempts ended, how long they took, and by how much they made the resident memory grow.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
import time
from pathlib import Path

from hostile import FastClock
from test_delivery_http import make_record

from aiotaskqueue.delivery._base import Answer
from aiotaskqueue.delivery.http import HTTPDelivery

STATUS = Path("/proc/self/status")


def read_megabytes(name: str) -> float:
    """Return a line of the process's status: VmRSS is the resident memory, VmHWM the most since it was reset."""
    match = re.search(rf"{name}:\s*(\d+) kB", STATUS.read_text())
    assert match is not None
    return int(match[1]) / 1024


async def throw(delivery: HTTPDelivery, bomb: str, count: int, deadline_seconds: float) -> dict[str, object]:
    """Make `count` attempts at once, in turn of all kinds that `bomb` names."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, start = read_megabytes("VmRSS"), time.monotonic()
    records = [make_record(url=f"/{kind}") for kind in bomb.split(",")]
    attempts = (delivery.deliver(records[i % len(records)], deadline_seconds=deadline_seconds) for i in range(count))
    outcomes = await asyncio.gather(*attempts)
    return {
        "name": bomb,
        "reasons": sorted({str(outcome.status) if isinstance(outcome, Answer) else outcome.reason.value for outcome in outcomes}),
        "seconds": time.monotonic() - start,
        "megabytes": read_megabytes("VmHWM") - before,
    }


async def main(target: str, count: str, deadline_seconds: str, *bombs: str) -> None:
    """Throw all of them, one after the other."""
    delivery = HTTPDelivery(target)
    await delivery.open(FastClock())
    # The first attempts load modules and fill the allocator's pools, whatever is answered.
    await throw(delivery, "silence", int(count), 0.1)
    for bomb in bombs:
        print(json.dumps(await throw(delivery, bomb, int(count), float(deadline_seconds))), flush=True)
    await delivery.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
