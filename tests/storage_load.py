"""A process under load to which storage trouble happens, and what is to be said of it then (S-1 to S-7 of the storage chaos).

The process is storage_child.py. It and the tests have one clock, the monotonic one of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

CHILD = Path(__file__).with_name("storage_child.py")
PATIENCE_SECONDS = 20.0

ORDER = {
    "adders": 4,
    "pause_seconds": 0.01,
    "payload_bytes": 200,
    "patience_seconds": 30.0,
    "durability": "full",
    "uid": 0,
    "gives_up": False,
}


@attrs.frozen
class Refusal:
    """An add that raised."""

    classes: Sequence[str]
    message: str
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it took until it raised."""
        return self.ended - self.began


@attrs.define
class Load:
    """The process, and what it has told so far."""

    child: subprocess.Popen[str]
    acks: dict[str, tuple[float, float]] = attrs.Factory(dict)
    refusals: list[Refusal] = attrs.Factory(list)
    starts: list[tuple[str, float]] = attrs.Factory(list)
    done: dict[str, float] = attrs.Factory(dict)
    repeats_after_success: list[str] = attrs.Factory(list)
    lags: list[tuple[float, float]] = attrs.Factory(list)
    health: list[tuple[float, Sequence[str]]] = attrs.Factory(list)
    logs: list[str] = attrs.Factory(list)
    refused: tuple[Sequence[str], str] | None = None
    is_ready: bool = False
    drained_at: float = 0.0

    def hear(self) -> None:
        """Take in what it says, until its end; for a thread."""
        assert self.child.stdout is not None
        for line in self.child.stdout:
            kind, *words = json.loads(line)
            getattr(self, f"_hear_{kind}")(*words)

    def _hear_ready(self, at: float) -> None:
        self.is_ready = True

    def _hear_ack(self, name: str, began: float, ended: float) -> None:
        self.acks[name] = began, ended

    def _hear_error(self, *words: Any) -> None:
        self.refusals.append(Refusal(*words))

    def _hear_start(self, name: str, at: float) -> None:
        self.starts.append((name, at))
        if name in self.done:
            self.repeats_after_success.append(name)

    def _hear_ok(self, name: str, at: float) -> None:
        self.done[name] = at

    def _hear_lag(self, at: float, seconds: float) -> None:
        self.lags.append((at, seconds))

    def _hear_health(self, at: float, reasons: Sequence[str]) -> None:
        self.health.append((at, reasons))

    def _hear_log(self, at: float, message: str) -> None:
        self.logs.append(message)

    def _hear_refused(self, classes: Sequence[str], message: str) -> None:
        self.refused = classes, message

    def _hear_drained(self, at: float) -> None:
        self.drained_at = at

    # --- what the test does to it ---

    def say(self, *words: object) -> float:
        """Give a command; return when."""
        assert self.child.stdin is not None
        self.child.stdin.write(" ".join(map(str, words)) + "\n")
        self.child.stdin.flush()
        return time.monotonic()

    def wait_for(self, claim: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> float:
        """Return when it is so."""
        until = time.monotonic() + seconds
        while not claim():
            assert time.monotonic() < until, "It did not come to that"
            assert self.child.poll() is None or claim(), "It has ended"
            time.sleep(0.005)
        return time.monotonic()

    # --- what there is to say ---

    def acks_between(self, begin: float, end: float) -> list[str]:
        """Return the names of the tasks whose adds returned then."""
        return [name for name, (_, ended) in self.acks.items() if begin <= ended < end]

    def first_ack_begun_after(self, moment: float) -> float:
        """Return how long after a moment the first add returned that had begun later."""
        return min(ended for began, ended in self.acks.values() if began >= moment) - moment

    def first_ack_after(self, moment: float) -> float:
        """Return how long after a moment the first add returned."""
        return min(ended for _, ended in self.acks.values() if ended >= moment) - moment

    def well_after(self, moment: float) -> float:
        """Return how long after a moment health had no more reasons for good."""
        last_at, reasons = self.health[-1]
        assert not reasons, reasons
        return max(last_at - moment, 0.0)

    def kinds(self) -> Counter[str]:
        """Return how many adds raised what."""
        return Counter(refusal.classes[0] for refusal in self.refusals)

    def lag(self, begin: float, end: float, share: float = 0.99) -> float:
        """Return what so many of the turns of the loop were late at most."""
        found = sorted(seconds for at, seconds in self.lags if begin <= at < end)
        return found[int(len(found) * share)]

    def lost(self, *databases: Path) -> set[str]:
        """Return the accepted tasks that were not done and are in none of the databases."""
        return self.acks.keys() - self.done.keys() - {name for path in databases for name in names_in(path)}


def names_in(path: Path) -> set[str]:
    """Return the names of the tasks in a database that nobody has open."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
        return {name for (name,) in connection.execute("SELECT name FROM taskqueue_task")}


@contextlib.contextmanager
def loaded(path: Path, **order: object) -> Iterator[Load]:
    """Give a process that works, and has worked for a moment; it does not outlive the block."""
    command = [sys.executable, "-X", "faulthandler", "-W", "error", str(CHILD), str(path), json.dumps(ORDER | order)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ) as child:
        load = Load(child)
        hearing = threading.Thread(target=load.hear)
        hearing.start()
        try:
            load.wait_for(lambda: load.is_ready or load.refused)
            yield load
        finally:
            child.kill()
            hearing.join()


def end(load: Load, seconds: float = 60.0) -> float:
    """Let it deliver what is due, and end; return how long that took."""
    began = load.say("stop")
    assert 0 == load.child.wait(seconds)
    while not load.drained_at:
        time.sleep(0.01)
        assert time.monotonic() < began + seconds
    return load.drained_at - began


@contextlib.contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Path]:
    """Give a folder on a file system of that size in memory."""
    folder.mkdir()
    mounted = mount("-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder))
    if mounted:
        pytest.skip(f"A file system can be mounted by root alone, and not in every container: {mounted}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def mount(*arguments: str) -> str:
    """Mount something; return what was wrong."""
    try:
        return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False).stderr
    except OSError as exc:
        return str(exc)


def machine() -> str:
    """Return how busy the machine is, to be said beside figures."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
