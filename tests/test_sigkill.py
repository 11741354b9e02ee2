"""A process that adds and delivers is killed again and again; nothing accepted is lost, nothing completed is repeated.

The checker knows only what is outside of the killed processes: the names that they printed after their adds (acks), the
log that their handlers wrote before they answered, and the database as each kill left it, read by plain sqlite3.
A task that was accepted or delivered and is not in the database has been completed: its completion was committed.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
import pytest

CHILD = Path(__file__).with_name("crash_child.py")
SEED = 20_120_418
KILLS = 25

# After the first ack of a process.
EARLIEST_KILL_SECONDS, LATEST_KILL_SECONDS = 0.02, 0.4
DRAIN_SECONDS = 60.0

READY, LEASED, SUSPECT = 0, 1, 3


def spawn(mode: str, folder: Path, sockets: str) -> subprocess.Popen[bytes]:
    """Start a child that waits for a line on stdin."""
    with (folder / "stderr").open("ab") as stderr:
        return subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-W", "error", CHILD, mode, folder / "tasks.db", folder / "worker.log"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            bufsize=0,
            env={**os.environ, "TMPDIR": sockets},
        )


@contextmanager
def spawning(modes: Sequence[str], folder: Path) -> Iterator[Iterator[subprocess.Popen[bytes]]]:
    """Give one child after the other; the next one starts up while the one before still works."""
    children: list[subprocess.Popen[bytes]] = []
    # What is killed cannot remove its UNIX socket; and pytest's folders are too deep for the path of one.
    sockets = tempfile.mkdtemp(prefix="crash-")

    def give() -> Iterator[subprocess.Popen[bytes]]:
        for index in range(len(modes)):
            while len(children) < min(index + 2, len(modes)):
                children.append(spawn(modes[len(children)], folder, sockets))
            stdin = children[index].stdin
            assert stdin is not None
            stdin.write(b"go\n")
            yield children[index]

    try:
        yield give()
    finally:
        for child in children:
            child.kill()
            child.communicate()
        shutil.rmtree(sockets)


def kill_at_random(child: subprocess.Popen[bytes], chance: random.Random) -> list[str]:
    """Kill the child some time after its first ack; return all of its acks."""
    assert child.stdout is not None
    first = child.stdout.readline()
    killer = threading.Timer(chance.uniform(EARLIEST_KILL_SECONDS, LATEST_KILL_SECONDS), child.kill)
    killer.start()
    rest = child.stdout.read()
    killer.join()
    child.wait()
    return (first + rest).decode().split()


def read_database(path: Path) -> dict[str, int]:
    """Return the state of each task by name; the file must be sound."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
        return dict(connection.execute("SELECT name, state FROM taskqueue_task").fetchall())


@attrs.define
class History:
    """All that happened, cycle by cycle, and the promises about it."""

    log: Path
    acked: set[str] = attrs.Factory(set)
    delivered: set[str] = attrs.Factory(set)
    completed: set[str] = attrs.Factory(set)
    may_repeat: set[str] = attrs.Factory(set)
    """In flight at a kill and not delivered since."""
    last_token: dict[str, int] = attrs.Factory(dict)
    log_size: int = 0
    in_flight: int = 0
    """At kills, summed up."""
    repeats: int = 0

    def note(self, acks: Sequence[str], tasks: dict[str, int]) -> None:
        """Take in one cycle and check it: what was acked, what was delivered since, what is in the database now."""
        self.acked.update(acks)
        self._note_deliveries()

        assert set() == self.acked - self.delivered - tasks.keys(), "An accepted task was lost"
        assert set() == self.completed & tasks.keys(), "A completed task is back"
        assert set(tasks.values()) <= {READY, LEASED, SUSPECT}, "A task was given up"
        self.completed |= (self.acked | self.delivered) - tasks.keys()
        leased = {name for name, state in tasks.items() if state == LEASED}
        assert self.delivered & tasks.keys() <= leased | self.may_repeat, "An outcome was lost without a crash"
        self.may_repeat |= leased
        self.in_flight += len(leased)

    def _note_deliveries(self) -> None:
        for name, token in self._read_log():
            assert name not in self.completed, "A task was delivered after its completion was committed"
            assert token > self.last_token.get(name, 0), "An attempt was delivered twice"
            if name in self.delivered:
                assert name in self.may_repeat, "A task was delivered again that was not in flight at a kill"
                self.repeats += 1
            self.may_repeat.discard(name)
            self.delivered.add(name)
            self.last_token[name] = token

    def _read_log(self) -> list[tuple[str, int]]:
        new = self.log.read_bytes()[self.log_size :] if self.log.exists() else b""
        self.log_size += len(new)
        return [(name, int(token)) for name, token, _ in (line.split() for line in new.decode().splitlines())]


def leftovers(folder: Path) -> dict[str, int]:
    """Return how many rows each table has that is empty when nothing is left to do, and how many processes left a lock."""
    tables = ["task", "body", "attempt", "in_flight", "process"]
    with closing(sqlite3.connect(f"file:{folder / 'tasks.db'}?mode=ro", uri=True)) as connection:
        rows = {table: connection.execute(f"SELECT count(*) FROM taskqueue_{table}").fetchone()[0] for table in tables}
    return {**rows, "lock": len(list(folder.glob("tasks.db-process-*")))}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_nothing_accepted_is_lost_and_nothing_completed_is_repeated_over_25_kills(tmp_path: Path) -> None:
    """SIGKILL at random moments loses no accepted task and repeats only what was in flight, at most once for each kill."""
    history, chance = History(tmp_path / "worker.log"), random.Random(SEED)
    with spawning(["crash"] * KILLS + ["drain"], tmp_path) as children:
        for _ in range(KILLS):
            acks = kill_at_random(next(children), chance)
            history.note(acks, read_database(tmp_path / "tasks.db"))
        drain = next(children)
        exit_code = drain.wait(DRAIN_SECONDS)
    history.note([], read_database(tmp_path / "tasks.db"))

    assert "Traceback" not in (tmp_path / "stderr").read_text()
    assert 0 == exit_code
    assert history.acked <= history.completed == history.delivered
    assert 0 < history.repeats <= history.in_flight
    assert {"task": 0, "body": 0, "attempt": 0, "in_flight": 0, "process": 0, "lock": 0} == leftovers(tmp_path)
