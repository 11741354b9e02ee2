"""A process that adds, manages and delivers is killed again and again; nothing accepted is lost, nothing completed repeated.

The short form of `tests/crash/`, which every run of the tests has. What is checked, and how, is in crash_history.py.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from crash_history import History
from killing import cut, finish, kill, lives, place, say

SEED = 20_120_418
KILLS = 25

# From the moment at which the process opens the database.
EARLIEST_KILL_SECONDS, LATEST_KILL_SECONDS = 0.05, 0.4


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.promise("P1", "P2", "P3")
def test_nothing_accepted_is_lost_and_nothing_completed_is_repeated_over_25_kills(tmp_path: Path) -> None:
    """SIGKILL at random moments loses no accepted task and repeats only what was in flight, at most once for each kill."""
    chance = random.Random(SEED)
    with place(tmp_path) as where, lives(where, [["crash"]] * KILLS + [["drain"]]) as children:
        history = History(where.journal)
        for _ in range(KILLS):
            child = next(children)
            say(child, b"alone\n")
            time.sleep(chance.uniform(EARLIEST_KILL_SECONDS, LATEST_KILL_SECONDS))
            kill(child)
            cut(where, history, killed=[child.pid])
        finish(where, history, next(children))

    assert [] == history.broken
    assert 0 < history.repeats <= history.in_flight
