"""The checker of the crash tests: what happened, and whether it keeps the promises.

It knows only what outlives the killed processes: the journal (see crash_child.py), and the database as each kill left it,
read by plain sqlite3. At each *cut*, when what was to be killed is dead and what still lives is stopped, the two belong
together. A task that is not in the database at a cut is *gone*; the journal has to say why, and it has to stay so.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path

import attrs

READY, LEASED, DEAD = 0, 1, 2
HOUR_USEC = 3600 * 1_000_000

# Names that were given begin so; all others were generated, and leave no tombstone.
KINDS = {"pool", "parked", "doomed", "held", "scratch"}

# RELIABILITY P18, as queues have it by default.
CRASH_LIMIT = 3

# What of a sound database has no row. What holds for each of its tables is in its schema, which SQLite checks.
UNSOUND = {
    "file": "SELECT * FROM pragma_integrity_check WHERE integrity_check <> 'ok'",
    "foreign keys": "SELECT * FROM pragma_foreign_key_check",
    "bodies without a task": "SELECT task_id FROM taskqueue_body WHERE task_id NOT IN (SELECT id FROM taskqueue_task WHERE has_body)",
    "tasks without their body": "SELECT id FROM taskqueue_task WHERE has_body AND id NOT IN (SELECT task_id FROM taskqueue_body)",
    "attempts without a task": "SELECT task_id FROM taskqueue_attempt WHERE task_id NOT IN (SELECT id FROM taskqueue_task)",
    "names that are taken twice": "SELECT name FROM taskqueue_task JOIN taskqueue_tombstone USING (queue_id, name)",
    "wrong counts of what is in flight": """
        SELECT process_id, queue_id FROM (
            SELECT process_id, queue_id, tasks FROM taskqueue_in_flight
            UNION ALL SELECT process_id, queue_id, -1 FROM taskqueue_task WHERE state = 1
        ) GROUP BY process_id, queue_id HAVING sum(tasks) <> 0
    """,
}
TASKS = """
    SELECT name, state, is_suspect, eta_usec, dead_reason, process_id,
        (SELECT pid FROM taskqueue_process AS p WHERE p.id = process_id) FROM taskqueue_task
"""


@attrs.frozen
class Row:
    """A task in the database."""

    name: str
    state: int
    is_suspect: int
    eta_usec: int
    dead_reason: str | None
    process_id: int | None
    pid: int | None


@attrs.frozen
class Database:
    """What is in a database."""

    tasks: Mapping[str, Row]
    tombstones: frozenset[str]
    held_is_paused: bool
    faults: Collection[str]

    @classmethod
    def read(cls, path: Path) -> Database:
        """Return what is there now: nothing if the first process was killed before it had made the tables."""
        if not path.exists():
            return cls({}, frozenset(), False, [])
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'taskqueue_task'").fetchall():
                return cls({}, frozenset(), False, [])
            rows = [Row(*values) for values in connection.execute(TASKS)]
            tombstones = frozenset(name for (name,) in connection.execute("SELECT name FROM taskqueue_tombstone"))
            paused = connection.execute("SELECT 1 FROM taskqueue_queue WHERE name = 'held' AND is_paused").fetchall()
            faults = [fault for fault, statement in UNSOUND.items() if connection.execute(statement).fetchall()]
            return cls({row.name: row for row in rows}, tombstones, bool(paused), faults)


@attrs.define
class Tale:
    """What is known of one task that is not gone."""

    is_acked: bool = False
    attempt: int = 0
    is_open: bool = False
    """Started, and not known to have failed: only a crash may repeat it."""
    may_repeat: bool = False
    """In flight at a kill, and not started since."""
    has_succeeded: bool = False
    has_failed: bool = False
    may_be_gone: bool = False
    """Somebody began to delete or purge it."""
    must_be_gone: bool = False
    """And was told that it was done."""
    late_starts: int = 0
    """Since then: of the attempt that was in flight."""
    may_run: bool = False
    must_run: bool = False
    is_revived: bool = False
    crashes: int = 0
    """In a row, at which it was the only one to be suspected."""


@attrs.define
class History:
    """All that happened, cut by cut."""

    journal: Path
    broken: list[str] = attrs.Factory(list)
    """Promises that were not kept, each with its task."""
    verbs: Counter[str] = attrs.Factory(Counter)
    kills: int = 0
    acked: int = 0
    in_flight: int = 0
    """At kills, and cut by a drain before one, summed up."""
    repeats: int = 0
    """Attempts of tasks whose last one was in flight at a kill."""
    gone: set[str] = attrs.Factory(set)
    _tales: defaultdict[str, Tale] = attrs.Factory(lambda: defaultdict(Tale))
    _size: int = 0
    _purging: list[Tale] = attrs.Factory(list)
    _is_purging: bool = False
    _is_draining: bool = False
    """What is in flight in a process may be cut, and given back to be delivered again."""
    _is_paused: bool | None = None
    """What whoever paused or resumed last was told."""
    _stays_paused: bool = False

    @property
    def pending(self) -> set[str]:
        """Accepted tasks that are not gone."""
        return {name for name, tale in self._tales.items() if tale.is_acked}

    def cut(self, database: Database, *, killed: Collection[int] = (), alive: Collection[int] = ()) -> None:
        """Take in what happened since the last cut, and what is in the database now; processes are given by their pids."""
        begun = set()
        for line in self._read_journal():
            self._note(line)
            begun |= {int(line[1])} if line[0] == "began" else set()
        self._is_purging = False
        self.kills += len(killed)
        self.broken += [f"Unsound: {fault}" for fault in database.faults]
        self.broken += [f"Back: {name}" for name in sorted(self.gone & database.tasks.keys())]
        for name, tale in list(self._tales.items()):
            self._check(name, tale, database)
        for pid in killed:
            self._charge([row for row in database.tasks.values() if row.state == LEASED and row.pid == pid])
        for row in database.tasks.values():
            if row.state == LEASED and row.pid not in alive:
                self._tales[row.name].may_repeat = True
                self._require(row.pid in killed or not begun & set(killed), "Forgotten by the rescue", row.name)
            elif self._is_draining and self._tales[row.name].is_open:
                self._tales[row.name].may_repeat = True
                self.in_flight += 1
        self._require(self._is_paused in (None, database.held_is_paused), "Paused or not", "held")
        self._stays_paused = self._is_paused is True
        self._is_draining = False

    def _require(self, claim: bool, promise: str, name: str) -> None:
        if not claim:
            self.broken.append(f"{promise}: {name}")

    def _read_journal(self) -> list[list[str]]:
        text = self.journal.read_bytes()[self._size :]
        self._size += len(text)
        # A kill may tear the last line.
        return [line.split() for line in text[: text.rfind(b"\n") + 1].decode().splitlines() if line]

    def _note(self, line: list[str]) -> None:
        self.verbs[line[0]] += 1
        match line:
            case ["added", _, *names]:
                for name in names:
                    self._require(name not in self.gone and not self._tales[name].is_acked, "Accepted twice", name)
                    self._tales[name].is_acked = True
                self.acked += len(names)
            case ["start", name, attempt]:
                self._note_start(name, self._tales[name], int(attempt))
            case ["ok", name, _]:
                self._tales[name].has_succeeded = True
            case ["fail", name, _]:
                self._tales[name].is_open, self._tales[name].has_failed = False, True
            case ["garbled", name, _]:
                self.broken.append(f"Garbled: {name}")
            case ["deleting", name]:
                self._tales[name].may_be_gone = True
            case ["deleted", name]:
                self._tales[name].must_be_gone = True
            case ["running", name]:
                self._tales[name].may_run = True
            case ["ran", name]:
                self._tales[name].must_run = True
            case ["revived", name]:
                self._tales[name].is_revived = True
            case ["adding", name]:
                self._tales[name].may_be_gone = self._is_purging
            case ["purging"]:
                self._note_purging()
            case ["purged"]:
                self._is_purging = False
                for tale in self._purging:
                    tale.must_be_gone = True
            case ["pausing"]:
                self._is_paused = None
            case ["resuming"]:
                self._is_paused, self._stays_paused = None, False
            case ["draining"]:
                self._is_draining = True
            case ["paused" | "resumed" as how]:
                self._is_paused = how == "paused"

    def _note_start(self, name: str, tale: Tale, attempt: int) -> None:
        self._require(name not in self.gone, "Delivered after it was gone", name)
        self._require(attempt > tale.attempt, "Delivered twice in one attempt", name)
        self._require(tale.may_repeat or not tale.is_open, "Repeated without a crash", name)
        self._require(tale.may_run or not name.startswith("parked-"), "Delivered before its ETA", name)
        self._require(not (self._stays_paused and name.startswith("held-")), "Delivered though paused", name)
        tale.late_starts += tale.must_be_gone
        self._require(tale.late_starts <= 1, "Delivered though deleted", name)
        self.repeats += tale.is_open
        tale.attempt, tale.is_open, tale.may_repeat = attempt, True, False

    def _note_purging(self) -> None:
        scratch = [tale for name, tale in self._tales.items() if name.startswith("scratch-")]
        for tale in scratch:
            tale.may_be_gone = True
        self._is_purging, self._purging = True, [tale for tale in scratch if tale.is_acked]

    def _check(self, name: str, tale: Tale, database: Database) -> None:
        row = database.tasks.get(name)
        if row is not None:
            self._check_stored(name, tale, row)
        elif name in self.gone:
            del self._tales[name]
        elif tale.is_acked or tale.attempt:
            self._require(tale.has_succeeded or tale.may_be_gone, "Lost", name)
            self._require(name in database.tombstones or name.partition("-")[0] not in KINDS, "Without a tombstone", name)
            self.gone.add(name)
            del self._tales[name]

    def _check_stored(self, name: str, tale: Tale, row: Row) -> None:
        self._require(not tale.must_be_gone, "Deleted and still there", name)
        self._require(not tale.must_run or row.eta_usec < time.time() * 1_000_000 + HOUR_USEC, "Run and still waiting", name)
        if row.state == DEAD:
            may_fail = name.startswith("doomed-") and tale.has_failed and not tale.is_revived
            self._require(tale.crashes >= CRASH_LIMIT if row.dead_reason == "crash" else may_fail, "Given up", name)
        elif row.state == READY:
            tale.crashes = 0

    def _charge(self, leased: list[Row]) -> None:
        """Of several tasks in flight at a crash none is charged, and a suspect is retried alone (P18)."""
        self.in_flight += len(leased)
        candidates = [row for row in leased if row.is_suspect] or leased
        if len(candidates) == 1:
            self._tales[candidates[0].name].crashes += 1
