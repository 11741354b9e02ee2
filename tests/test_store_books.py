"""The books never drift: a model test over two stores on one file (RELIABILITY 1.2, I1-I5, I8, I11)."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from open_stores import NOW, QUEUE, SECOND, add, dead, find_drift, log_of, new_record, query, settle

from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import TaskRecord
from aiotaskqueue.stores._base import ATTEMPTS_KEPT, AddVerdict, Dead, Delete, LeaseRequest, Retry, Settlement
from aiotaskqueue.stores.sqlite import SQLiteStore

T = TypeVar("T")

SMALL = QueueConfig("small", max_concurrent_requests=3)
RATED = QueueConfig("rated", rate="2/s", bucket_size=4)
QUEUES = (QUEUE, SMALL, RATED)

which = st.integers(0, 1)
counts = st.integers(1, 4)
tombstones = st.none() | st.integers(1, 60).map(lambda seconds: seconds * SECOND)


# Rows that must never be there.
NOTHING_FOUND_BY = (
    "SELECT task_id FROM taskqueue_body WHERE task_id NOT IN (SELECT id FROM taskqueue_task WHERE has_body)",
    "SELECT id FROM taskqueue_task WHERE has_body AND id NOT IN (SELECT task_id FROM taskqueue_body)",
    "SELECT task_id FROM taskqueue_attempt WHERE task_id NOT IN (SELECT id FROM taskqueue_task)",
    f"SELECT task_id FROM taskqueue_attempt GROUP BY task_id HAVING count(*) > {ATTEMPTS_KEPT}",
    "SELECT id FROM taskqueue_task WHERE executions > attempts",
    "SELECT id FROM taskqueue_task WHERE lease_token < attempts",
    """SELECT queue_id FROM taskqueue_task JOIN taskqueue_queue AS q ON q.id = queue_id
        WHERE q.name = 'small' AND state = 1 GROUP BY queue_id HAVING count(*) > 3""",
)

SELECT_TAKEN = """
    SELECT 1 FROM taskqueue_queue AS q WHERE q.name = ?1 AND (
        EXISTS (SELECT 1 FROM taskqueue_task WHERE queue_id = q.id AND name = ?2)
        OR EXISTS (SELECT 1 FROM taskqueue_tombstone WHERE queue_id = q.id AND name = ?2 AND expires_usec > ?3)
    )
"""


@attrs.frozen
class RunningStore:
    """A store and the task in which it runs, from one operation of the test to the next."""

    store: SQLiteStore
    running: asyncio.Task[None]

    @classmethod
    async def open(cls, path: Path) -> RunningStore:
        """Open a store on the file."""
        store = SQLiteStore(str(path), durability="normal")
        await store.open(now_usec=NOW)
        running = asyncio.create_task(store.run(on_change=lambda: None, on_orphans=lambda: None))
        await store.configure(QUEUES, now_usec=NOW)
        return cls(store, running)

    async def close(self) -> None:
        """Close it; leases that are left look like a crash to the other one."""
        self.store.stop()
        await self.running
        await self.store.aclose()


class Books(RuleBasedStateMachine):
    """Two stores on one file in any order of operations, beside a small model of who holds which lease."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "tasks.db"
        # One more connection, for a look from outside.
        self.database = sqlite3.connect(self.path, isolation_level=None)
        self.stores: list[RunningStore] = []
        self.now = NOW
        self.held: list[dict[int, TaskRecord]] = [{}, {}]
        self.orphans: dict[int, TaskRecord] = {}
        self.lost: list[TaskRecord] = []
        self.tokens: dict[int, int] = {}
        self.accepted: set[bytes] = set()
        self.finished: set[bytes] = set()
        self.number = 0

    @initialize()
    def open(self) -> None:
        self.stores = [self.run(RunningStore.open(self.path)) for _ in range(2)]

    @rule(
        i=which,
        queue=st.sampled_from(QUEUES),
        count=counts,
        places=st.integers(0, 3),
        delay=st.sampled_from([0, 0, 5]),
        size=st.sampled_from([0, 3000]),
    )
    def add(self, i: int, queue: QueueConfig, count: int, places: int, delay: int, size: int) -> None:
        records = [new_record(queue=queue, eta_usec=self.now + delay * SECOND, payload=b"x" * size) for _ in range(count)]
        _, leased = self.run(add(self.stores[i].store, *records, queue=queue, now_usec=self.now, places=self.allowed(i, places)))
        self.accepted |= {record.uuid for record in records}
        self.take(i, list(leased))

    @rule(i=which, queue=st.sampled_from(QUEUES), name=st.sampled_from("abc"), places=st.integers(0, 1))
    def add_named(self, i: int, queue: QueueConfig, name: str, places: int) -> None:
        record = new_record(name, queue=queue, eta_usec=self.now)
        was_taken = bool(query(self.database, SELECT_TAKEN, queue.name, name, self.now))
        added = add(self.stores[i].store, record, queue=queue, now_usec=self.now, places=self.allowed(i, places))
        [verdict], leased = self.run(added)

        assert was_taken == (verdict in (AddVerdict.EXISTS, AddVerdict.TOMBSTONED))
        if not was_taken:
            self.accepted.add(record.uuid)
        self.take(i, list(leased))

    @rule(i=which, places=st.integers(0, 6), data=st.data(), tombstone=tombstones)
    def exchange(self, i: int, places: int, data: st.DataObject, tombstone: int | None) -> None:
        mine = list(self.held[i].values())
        ended = data.draw(st.lists(st.sampled_from(mine), unique_by=lambda record: record.id)) if mine else []
        kinds = data.draw(st.lists(st.sampled_from("okrsid"), min_size=len(ended), max_size=len(ended)))
        settlements = [Settlement(record, self.outcome(kind, record, tombstone)) for record, kind in zip(ended, kinds, strict=True)]
        remaining = [record for record in mine if record not in ended]
        suspect = next((record.queue_name for record in remaining if record.is_suspect), None)
        request = LeaseRequest(places, QUEUES, suspect)
        exchange = self.run(self.stores[i].store.exchange(settlements, request, now_usec=self.now))
        self.finish(i, settlements)

        assert [] == list(exchange.stale)
        assert len(exchange.leased) <= places
        self.take(i, list(exchange.leased))
        self.check_alone(i)

    @precondition(lambda self: self.lost)
    @rule(i=which, data=st.data(), kind=st.sampled_from("okrsid"))
    def settle_stale(self, i: int, data: st.DataObject, kind: str) -> None:
        record = data.draw(st.sampled_from(self.lost))
        accepted = self.run(settle(self.stores[i].store, record, self.outcome(kind, record, None), now_usec=self.now))

        assert not accepted

    @rule(i=which, is_draining=st.booleans())
    def crash(self, i: int, is_draining: bool) -> None:
        if is_draining:
            self.run(self.stores[i].store.announce_drain())
        self.run(self.stores[i].close())
        self.stores[i] = self.run(RunningStore.open(self.path))
        self.orphans |= self.held[i]
        self.held[i] = {}

    @rule(i=which)
    def rescue(self, i: int) -> None:
        rescued = self.run(self.stores[i].store.rescue(QUEUES, now_usec=self.now))
        other = self.held[1 - i]
        expired = {record.id: record for record in other.values() if (record.lease_expires_usec or 0) < self.now}
        taken = self.orphans | expired
        self.lost += taken.values()
        self.orphans = {}
        for task_id in expired:
            del other[task_id]

        assert sorted(taken) == sorted(record.id for record in rescued)

    @rule(i=which, limit=st.integers(1, 5))
    def sweep(self, i: int, limit: int) -> None:
        before = set(query(self.database, "SELECT uuid FROM taskqueue_task"))
        gone = self.run(self.stores[i].store.sweep(now_usec=self.now, limit=limit))
        after = set(query(self.database, "SELECT uuid FROM taskqueue_task"))
        self.finished |= before - after

        assert len(before - after) <= gone <= 2 * limit

    @rule(seconds=st.sampled_from([1, 5, 50]))
    def wait(self, seconds: int) -> None:
        self.now += seconds * SECOND

    @invariant()
    def check(self) -> None:
        if not self.stores:
            return
        leased = query(self.database, "SELECT id, lease_token FROM taskqueue_task WHERE state = 1")
        ours = [record for records in (*self.held, self.orphans) for record in records.values()]
        there = set(query(self.database, "SELECT uuid FROM taskqueue_task"))

        assert [] == find_drift(self.database)
        assert sorted(leased) == sorted((record.id, record.lease_token) for record in ours)
        assert self.accepted - self.finished == there
        for statement in NOTHING_FOUND_BY:
            assert [] == query(self.database, statement), statement

    def teardown(self) -> None:
        for running in self.stores:
            self.run(running.close())
        found = query(self.database, "PRAGMA integrity_check") if self.stores else ["ok"]
        self.database.close()
        self.runner.close()
        self.folder.cleanup()

        assert ["ok"] == found

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run one operation."""
        return self.runner.run(coroutine)

    def allowed(self, i: int, places: int) -> int:
        """Return how many places an add may use: none beside a suspect, as the dispatcher sees to."""
        return 0 if any(record.is_suspect for record in self.held[i].values()) else places

    def take(self, i: int, leased: list[TaskRecord]) -> None:
        """Note leases; each has a higher token than all before it."""
        for record in leased:
            assert record.lease_token > self.tokens.get(record.id, 0)
            assert record.eta_usec <= self.now
            self.tokens[record.id] = record.lease_token
            self.held[i][record.id] = record

    def finish(self, i: int, settlements: list[Settlement]) -> None:
        """Note what has ended."""
        for settlement in settlements:
            del self.held[i][settlement.record.id]
            self.lost.append(settlement.record)
            if isinstance(settlement.outcome, Delete):
                self.finished.add(settlement.record.uuid)

    def check_alone(self, i: int) -> None:
        """Check that a suspect has no other task of its queue, and no other suspect, beside it."""
        suspects = [record for record in self.held[i].values() if record.is_suspect]
        assert len(suspects) <= 1
        for suspect in suspects:
            assert [suspect] == [record for record in self.held[i].values() if record.queue_name == suspect.queue_name]

    def outcome(self, kind: str, record: TaskRecord, tombstone: int | None) -> Delete | Retry | Dead:
        """Return one of the ways in which an attempt may end."""
        if kind == "o":
            return Delete(self.now + tombstone if tombstone and record.is_named else None)
        if kind == "d":
            return dead(record, keep_until_usec=self.now + 20 * SECOND)
        return {
            "k": Retry(eta_usec=self.now + SECOND, is_execution=True, log=log_of(record)),
            "r": Retry(eta_usec=self.now, log=log_of(record)),
            "s": Retry(eta_usec=self.now, is_attempt=False, is_stale=True, log=log_of(record, reason="stale", status=None)),
            "i": Retry(eta_usec=self.now, is_attempt=False, is_conclusive=False),
        }[kind]


Books.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


@pytest.mark.slow
class TestBooks(Books.TestCase):  # type: ignore[misc]
    """In-flight counts, leases, tokens, names and side tables agree after any sequence of operations."""
