"""The network and the worker at their worst: cut at every byte, hundreds of tricklers, a hundred bombs at once (N-1 to N-3)."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bombs import BOMBS, throwing
from hostile import OK, Peer, raw_server
from proxy import REQUEST, RESPONSE, Network, Plan, every_cut

CHILD = Path(__file__).parent.with_name("network_child.py")

pytestmark = [pytest.mark.crash, pytest.mark.anyio]

DEADLINE_SECONDS, GRACE_SECONDS = 2.0, 1.0


async def run_service(folder: Path, targets: dict[str, str], tasks: Sequence[tuple[str, str, str, float]], places: int) -> dict[str, Any]:
    """Run a service in a process of its own until each task has had its one attempt; return what became of them."""
    order = {"targets": targets, "tasks": tasks, "places": places, "deadline_seconds": DEADLINE_SECONDS}
    command = [sys.executable, "-X", "faulthandler", "-W", "error", str(CHILD), str(folder / "tasks.db")]
    child = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        said, _ = await child.communicate(json.dumps(order).encode())
        assert 0 == child.returncode
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    result: dict[str, Any] = json.loads(said)
    return result


# --- N-1 -----------------------------------------------------------------------------------------------------------------------


def make_plans(longest_request: int, longest_response: int) -> list[Plan]:
    """Return the plans of all deliveries: every cut there is, and what else a network does."""
    plans = [plan for kind in ("reset", "close", "half") for plan in every_cut(kind, RESPONSE, longest_response)]
    plans += every_cut("reset", REQUEST, longest_request)
    plans += [Plan("half", REQUEST, at) for at in range(0, longest_request + 1, 20)]
    plans += [Plan("blackhole", REQUEST, at) for at in range(0, longest_request + 1, 100)]
    plans += [Plan("blackhole", RESPONSE, at) for at in range(0, longest_response + 1, 10)]
    plans += [Plan(kind, side) for kind in ("trickle", "twice", "late", "slowly") for side in (REQUEST, RESPONSE) for _ in range(10)]
    return plans


@pytest.mark.timeout(300)
@pytest.mark.promise("P2", "P6")
@pytest.mark.row(65, 66, 72, 82, 83)
async def test_every_cut(tmp_path: Path) -> None:
    """N-1: whatever the network does to an exchange, a task is done only if its whole answer came, and then it is."""
    async with Network().up() as network:
        # How long they are depends on the lengths of the names; the cuts are to go past the end.
        plans = make_plans(1300, 220)
        # Good exchanges in between leave connections that the bad ones use.
        plans = [plan for bad in plans for plan in (bad, *([Plan("pass")] if bad.at % 5 == 0 else []))]
        tasks = [("default", f"t{number:04}", plan.url, 0.0) for number, plan in enumerate(plans)]
        result = await run_service(tmp_path, {"default": network.url}, tasks, places=64)
    done = {name for _, name, _, _ in tasks} - result["dead"].keys()
    reasons = Counter(outcome["reason"] for outcome in result["dead"].values())
    kinds = Counter(f"{plan.kind} {plan.side}" for plan in plans)
    print(f"\nN-1: {len(plans)} deliveries ({', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}).")
    print(f"Cut at every byte of requests of {network.longest_request} bytes, and of answers of {network.longest_response}.")
    print(f"{len(done)} done; dead: {', '.join(f'{count} {reason}' for reason, count in reasons.most_common())}.")
    print(f"{len(done - network.sent)} false successes, {len(network.passed - done)} false failures,", end=" ")
    print(f"{len(done - network.worked.keys())} successes without a line in the worker's log;", end=" ")
    print(f"{sum(network.worked.values())} runs of {len(network.worked)} tasks; {result['megabytes']:.0f} MB of memory.")

    assert len(plans) >= 2000
    assert (network.longest_request < 1300, network.longest_response < 220) == (True, True)
    assert (set(), set()) == (done - network.sent, network.passed - done)
    assert set() == done - network.worked.keys()
    assert result["megabytes"] < 150


# --- N-2 -----------------------------------------------------------------------------------------------------------------------

TRICKLERS = 500
HEALTHY, HEALTHY_PER_SECOND = 200, 50.0


class Trickle:
    """A worker that sends its answers byte by byte, for ever; notes how long it took until it was left."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, peer: Peer) -> None:
        """Play."""
        await peer.read_request()
        start, ended = time.monotonic(), asyncio.ensure_future(peer.wait_for_end())
        peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not ended.done():
            peer.writer.write(b"a")
            await asyncio.wait({ended}, timeout=0.1)
        self.seconds.append(time.monotonic() - start)


class Healthy:
    """A worker that answers at once, and notes how long after their time its tasks came."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    async def __call__(self, peer: Peer) -> None:
        """Play."""
        while request := await peer.read_request():
            eta = request.partition(b"X-AppEngine-TaskETA: ")[2].partition(b"\r\n")[0]
            self.delays.append(time.time() - float(eta))
            await peer.send(OK)


@pytest.mark.timeout(120)
@pytest.mark.promise("P7")
@pytest.mark.row(66)
async def test_tricklers(tmp_path: Path) -> None:
    """N-2: of 500 workers that trickle each is left at deadline and grace, and a healthy queue does not notice."""
    trickle, healthy = Trickle(), Healthy()
    async with raw_server(trickle) as slow, raw_server(healthy) as quick:
        tasks = [("slow", f"s{number}", "/worker", 0.0) for number in range(TRICKLERS)]
        tasks += [("quick", f"q{number}", "/worker", number / HEALTHY_PER_SECOND) for number in range(HEALTHY)]
        targets = {"slow": slow.base_url, "quick": quick.base_url}
        result = await run_service(tmp_path, targets, sorted(tasks, key=lambda task: task[3]), places=TRICKLERS + 100)
    limit = DEADLINE_SECONDS + GRACE_SECONDS
    late = max(trickle.seconds) - limit
    p50, p99 = (sorted(healthy.delays)[len(healthy.delays) * percent // 100] for percent in (50, 99))
    print(f"\nN-2: {len(trickle.seconds)} tricklers left after {min(trickle.seconds):.3f} to {max(trickle.seconds):.3f} s", end=" ")
    print(f"(limit {limit:g} s, so at most {late * 1000:.0f} ms late);", end=" ")
    print(
        f"healthy tasks started p50 {p50 * 1000:.1f}, p99 {p99 * 1000:.1f}, at most {max(healthy.delays) * 1000:.1f} ms after their time;"
    )
    print(f"{result['megabytes']:.0f} MB of memory, {result['megabytes'] - result['megabytes_before']:.0f} MB more than at the start.")

    assert {"deadline": TRICKLERS} == Counter(outcome["reason"] for outcome in result["dead"].values())
    assert (TRICKLERS, HEALTHY) == (len(trickle.seconds), len(healthy.delays))
    assert max(trickle.seconds) < limit + 0.1
    assert p99 < 0.25


# --- N-3 -----------------------------------------------------------------------------------------------------------------------

AT_ONCE = 100


@pytest.mark.timeout(180)
@pytest.mark.row(66, 68, 74, 75, 76, 82, 83)
async def test_bombs() -> None:
    """N-3: a hundred bombs at once, of each kind and of all kinds, take less than 50 MB and end in time, as what they are."""
    all_kinds = ",".join(BOMBS)
    allowed = {
        **{name: bomb.reasons for name, bomb in BOMBS.items()},
        all_kinds: frozenset().union(*(bomb.reasons for bomb in BOMBS.values())),
    }
    print(f"\nN-3: {AT_ONCE} at once, limit 2.0 s.")
    broken = []
    # Ten seconds of the child's clock are one.
    async with throwing(*allowed, count=AT_ONCE, deadline_seconds=19.0) as damages:
        async for damage in damages:
            name = "all kinds" if damage.name == all_kinds else damage.name
            print(f"{name:16} {damage.megabytes:+6.1f} MB {damage.seconds:6.2f} s  {', '.join(sorted(damage.reasons))}", flush=True)
            if not (damage.reasons <= allowed.pop(damage.name) and damage.megabytes < 50 and damage.seconds < 2.0 + 2.0):
                broken.append(damage)

    assert ({}, []) == (allowed, broken)
