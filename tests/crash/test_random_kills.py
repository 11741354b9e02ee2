"""C1: the whole application is killed at random moments, again and again, with everything going on that users can do.

What is killed is in crash_child.py: adder, operator, dispatcher and worker in one process. What is checked after each kill
is in crash_history.py. ``CRASH_CYCLES`` (200) and ``CRASH_SEED`` are environment variables.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from crash_history import History
from killing import RESCUE_SECONDS, cut, finish, kill, lives, owners, place, say, stop, wait_for_rescue

CYCLES = int(os.environ.get("CRASH_CYCLES", "200"))
SEED = int(os.environ.get("CRASH_SEED", "20120418"))
CYCLES_BESIDE = max(CYCLES // 8, 1)

# RELIABILITY C1, from the moment at which the process opens the database.
EARLIEST_KILL_SECONDS, LATEST_KILL_SECONDS = 0.005, 0.5

PROGRESS = 20

pytestmark = [pytest.mark.crash, pytest.mark.promise("P1", "P2", "P3", "P5")]


def report(history: History, rescues: list[float], *, drained_seconds: float | None = None) -> None:
    """Print how it stands."""
    worst = f"{max(rescues):.2f} s" if rescues else "none yet"
    broken = {promise: sum(line.startswith(promise) for line in history.broken) for promise in ("Lost", "Delivered after it was gone")}
    verbs = ", ".join(f"{count} {verb}" for verb, count in sorted(history.verbs.items()) if verb not in ("added", "start", "began"))
    print(
        f"\n{history.kills} kills, seed {SEED}: {history.acked} accepted, {history.verbs['start']} attempts, {history.in_flight} in flight"
        f" at kills, {history.repeats} repeated, {broken['Lost']} lost, {broken['Delivered after it was gone']} delivered after the end,"
        f" {len(history.broken)} promises broken; worst of {len(rescues)} rescues: {worst} ({verbs})",
        flush=True,
    )
    if drained_seconds is not None:
        print(f"All that was pending was delivered {drained_seconds:.1f} s after the last start.", flush=True)


@pytest.mark.timeout(120 + 2 * CYCLES)
def test_kills_at_random_moments(tmp_path: Path) -> None:
    """SIGKILL after 5 to 500 ms loses nothing, repeats only what was in flight, and the next start takes that back in 5 s."""
    chance, rescues = random.Random(SEED), list[float]()
    with place(tmp_path) as where, lives(where, [["crash"]] * CYCLES + [["drain"]]) as children:
        history, orphaned = History(where.journal), list[int]()
        for cycle in range(CYCLES):
            child = next(children)
            say(child, b"alone\n")
            began = time.monotonic()
            end = began + chance.uniform(EARLIEST_KILL_SECONDS, LATEST_KILL_SECONDS)
            if orphaned and wait_for_rescue(where.database, orphaned, end):
                rescues.append(time.monotonic() - began)
            time.sleep(max(end - time.monotonic(), 0))
            kill(child)
            orphaned = owners(cut(where, history, killed=[child.pid]))
            if not (cycle + 1) % PROGRESS:
                report(history, rescues)
        drained_seconds = finish(where, history, next(children))
    report(history, rescues, drained_seconds=drained_seconds)

    assert [] == history.broken
    assert 0 < history.repeats <= history.in_flight
    assert 0 < max(rescues) < RESCUE_SECONDS


@pytest.mark.timeout(120 + 5 * CYCLES_BESIDE)
def test_kills_beside_a_survivor(tmp_path: Path) -> None:
    """Of two processes that do everything at once one is killed; what it had in flight can be leased within 5 s of that."""
    chance, rescues = random.Random(SEED), list[float]()
    with place(tmp_path) as where, lives(where, [["crash"]] * (CYCLES_BESIDE + 1) + [["drain"]]) as children:
        history, child = History(where.journal), next(children)
        say(child, b"beside\n")
        for cycle in range(CYCLES_BESIDE):
            survivor = next(children)
            say(survivor, b"beside\n")
            time.sleep(chance.uniform(EARLIEST_KILL_SECONDS, LATEST_KILL_SECONDS))
            # Or the journal and the database would not belong together.
            stop(survivor)
            killed_at = time.monotonic()
            kill(child)
            database = cut(where, history, killed=[child.pid], alive=[survivor.pid])
            orphaned = sorted({row.process_id for row in database.tasks.values() if row.pid == child.pid and row.process_id})
            survivor.send_signal(signal.SIGCONT)
            is_rescued = wait_for_rescue(where.database, orphaned, killed_at + 2 * RESCUE_SECONDS)
            rescues += [time.monotonic() - killed_at] if orphaned else []
            child = survivor
            if not (cycle + 1) % PROGRESS:
                report(history, rescues)

            assert is_rescued
        kill(child)
        cut(where, history, killed=[child.pid])
        drained_seconds = finish(where, history, next(children))
    report(history, rescues, drained_seconds=drained_seconds)

    assert [] == history.broken
    assert 0 < history.repeats <= history.in_flight
    assert 0 < max(rescues) < RESCUE_SECONDS
