"""C2: the application is killed at each moment that matters, ten times, whatever else is going on (RELIABILITY 1.1).

How a moment is reached is in crash_traps.py: from outside, through the seams. The moments that are not here: F9, a
checkpoint, F10, a migration, and F11, a sweep, are in test_chores.py; F13 to F15 belong to transactions and PostgreSQL.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from crash_history import History
from killing import cut, finish, kill, lives, place, say

ROUNDS = 10
PATIENCE_SECONDS = 15.0

# How often each moment is reached before the kill, at most: the one between two statements of an add comes a hundred times a
# second, the rescue of a life's orphans once. The names say what has happened when the process ends.
MOMENTS = {
    "F0": ("before BEGIN", 60),
    "F1": ("after BEGIN", 60),
    "F2": ("after INSERT, before COMMIT", 30),
    "F3": ("after COMMIT, before add returned", 30),
    "F4": ("after the lease, before the connect", 30),
    "F5": ("in the handler", 30),
    "F6": ("after the response, before BEGIN", 30),
    "F7": ("after the completion's COMMIT", 30),
    "F8": ("in the rescue of orphans", 6),
    "unlink": ("after the rescue, before the side file of the dead is removed", 1),
    "F12": ("while a drain gives back what it has cut", 12),
}

pytestmark = [pytest.mark.crash, pytest.mark.promise("P1", "P2", "P3")]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("moment", MOMENTS)
def test_kills_at_a_moment(tmp_path: Path, moment: str) -> None:
    """SIGKILL at exactly this moment loses nothing and repeats only what was in flight."""
    chance = random.Random(moment)
    what, often = MOMENTS[moment]
    # The life before leaves orphans, and a backlog.
    plan = [life for _ in range(ROUNDS) for life in (["crash"], ["crash", moment, chance.randint(1, often)])]
    with place(tmp_path) as where, lives(where, [*plan, ["drain"]]) as children:
        history = History(where.journal)
        for _ in range(ROUNDS):
            before = next(children)
            say(before, b"alone\n")
            time.sleep(chance.uniform(0.15, 0.3))
            kill(before)
            cut(where, history, killed=[before.pid])
            trapped = next(children)
            say(trapped, b"alone\n")
            exit_code = trapped.wait(PATIENCE_SECONDS)
            cut(where, history, killed=[trapped.pid])

            assert -signal.SIGKILL == exit_code, where.complaints
        seconds = finish(where, history, next(children))
    print(
        f"\n{moment}, {what}: {history.verbs['reached']} times; {history.acked} accepted, {history.in_flight} in flight at"
        f" {history.kills} kills, {history.repeats} repeated, {len(history.broken)} promises broken; drained in {seconds:.1f} s"
    )

    assert [] == history.broken
    assert ROUNDS == history.verbs["reached"]
    assert history.repeats <= history.in_flight
