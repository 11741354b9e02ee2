"""Processes that are started to be killed: the children of crash_child.py, one after the other, and the time of rescues."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
from crash_history import Database, History

CHILD = Path(__file__).with_name("crash_child.py")
WORKER = Path(__file__).with_name("worker_child.py")
PREPARED = 2

# RELIABILITY P5: the tasks of a process that died on this host can be leased again within this.
RESCUE_SECONDS = 5.0
DRAIN_SECONDS = 60.0
PATIENCE_SECONDS = 20.0
POLL_SECONDS = 0.002

ORPHANS = "SELECT 1 FROM taskqueue_task WHERE state = 1 AND process_id IN (SELECT value FROM json_each(?)) LIMIT 1"


@attrs.frozen
class Place:
    """Where the children of one test work: a database and a journal, which outlive them, and sockets, which are too long a path there."""

    folder: Path
    sockets: str

    @property
    def database(self) -> Path:
        """The database."""
        return self.folder / "tasks.db"

    @property
    def journal(self) -> Path:
        """What has happened (see crash_child.py)."""
        return self.folder / "journal"

    @property
    def complaints(self) -> str:
        """What the children wrote to stderr."""
        path = self.folder / "stderr"
        return path.read_text() if path.exists() else ""

    def read_journal(self, verb: str) -> list[list[str]]:
        """Return the words of each line of that kind, without the first one."""
        lines = [line.split() for line in self.journal.read_text().splitlines()]
        return [words for found, *words in lines if found == verb]

    def start(self, script: Path, mode: object, *arguments: object) -> subprocess.Popen[bytes]:
        """Start a script, which is told the database and the journal."""
        command = [sys.executable, "-X", "faulthandler", "-W", "error", script, mode, self.database, self.journal, *map(str, arguments)]
        with (self.folder / "stderr").open("ab") as stderr:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
                env={**os.environ, "TMPDIR": self.sockets},
            )


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    """Give a place for children; at the end what was killed, and could not clean up, is cleaned up."""
    sockets = tempfile.mkdtemp(prefix="crash-")
    where = Place(folder, sockets)
    where.journal.touch()
    try:
        yield where
    finally:
        shutil.rmtree(sockets)


@contextmanager
def lives(where: Place, plan: Sequence[Sequence[object]]) -> Iterator[Iterator[subprocess.Popen[bytes]]]:
    """Give one child of crash_child.py after the other, which waits for a line; the next ones start up while one lives.

    Args:
        where: Their database and journal.
        plan: For each, its mode and what else it is told, after the database and the number of its life.
    """
    children: list[subprocess.Popen[bytes]] = []

    def give() -> Iterator[subprocess.Popen[bytes]]:
        for number in range(len(plan)):
            while len(children) < min(number + PREPARED, len(plan)):
                mode, *rest = plan[len(children)]
                children.append(where.start(CHILD, mode, len(children), *rest))
            yield children[number]

    try:
        yield give()
    finally:
        for child in children:
            child.kill()
            child.communicate()


@contextmanager
def working(where: Place, mode: str, places: int) -> Iterator[subprocess.Popen[bytes]]:
    """Let a child of worker_child.py work; it does not outlive the block."""
    child = where.start(WORKER, mode, places)
    try:
        say(child, b"go\n")
        yield child
    finally:
        child.kill()
        child.communicate()


def say(child: subprocess.Popen[bytes], line: bytes) -> None:
    """Let a child begin, once it is ready."""
    assert child.stdin is not None
    assert child.stdout is not None
    assert b"ready\n" == child.stdout.readline()
    child.stdin.write(line)


def kill(child: subprocess.Popen[bytes]) -> None:
    """Kill a child, which has to live until then; return when nothing of it is left."""
    child.kill()

    assert -signal.SIGKILL == child.wait(), "The child ended before it was killed"


def stop(child: subprocess.Popen[bytes]) -> None:
    """Stop a child; return when it stands still."""
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)


def wait_until(claim: Callable[[], object], patience_seconds: float = PATIENCE_SECONDS) -> float:
    """Look every 2 ms, from outside, whether it is so; return the monotonic time at which it was."""
    until = time.monotonic() + patience_seconds
    while not claim():
        assert time.monotonic() < until, "It did not come to that"
        time.sleep(POLL_SECONDS)
    return time.monotonic()


def look(path: Path, statement: str, *parameters: object) -> list[Any]:
    """Return the rows of a query, those of one column as plain values, also while somebody opens the database."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        rows = connection.execute(statement, parameters).fetchall()
    return [row[0] if len(row) == 1 else row for row in rows]


def owners(database: Database) -> list[int]:
    """Return the processes, by their numbers in the database, that have tasks in flight."""
    return sorted({row.process_id for row in database.tasks.values() if row.process_id is not None})


def wait_for_rescue(path: Path, dead: Sequence[int], until: float) -> bool:
    """Return whether all that the dead had in flight could be leased again, or was, before a monotonic time."""
    if not dead:
        return True
    while time.monotonic() < until:
        if not look(path, ORPHANS, str(list(dead))):
            return True
        time.sleep(POLL_SECONDS)
    return False


def cut(where: Place, history: History, *, killed: Sequence[int] = (), alive: Sequence[int] = ()) -> Database:
    """Let the history take in what the journal and the database say now, and check it; return the latter."""
    database = Database.read(where.database)
    history.cut(database, killed=killed, alive=alive)

    assert [] == history.broken, f"After {history.kills} kills"
    return database


def finish(where: Place, history: History, child: subprocess.Popen[bytes]) -> float:
    """Let the last child see to it that nothing is left to do; return how long that took."""
    began = time.monotonic()
    say(child, b"alone\n")
    exit_code = child.wait(DRAIN_SECONDS)
    took = time.monotonic() - began
    cut(where, history)

    assert 0 == exit_code, where.complaints
    assert "Traceback" not in where.complaints
    assert set() == history.pending
    assert dict.fromkeys(LEFTOVERS, 0) == leftovers(where.database)
    return took


LEFTOVERS = ("task", "body", "attempt", "in_flight", "process", "lock")


def leftovers(path: Path) -> dict[str, int]:
    """Return how many rows each table has that is empty when nothing is left to do, and how many processes left a lock."""
    rows = {table: look(path, f"SELECT count(*) FROM taskqueue_{table}")[0] for table in LEFTOVERS[:-1]}
    return {**rows, "lock": len(list(path.parent.glob(f"{path.name}-process-*")))}
