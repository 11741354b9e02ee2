"""What one queue may start: paused or not, places, tokens. In the database thread, inside a transaction."""

from __future__ import annotations

import sqlite3
from fractions import Fraction

from aiotaskqueue._config import QueueConfig
from aiotaskqueue._token_bucket import Bucket, next_token_usec, take
from aiotaskqueue.stores._sqlite_rows import Row

# Two look-ups in partial indexes (ready, suspect) and two short ranges of in_flight's primary key for each queue.
SELECT_GATES = """
    SELECT q.id, q.is_paused, q.bucket_level, q.bucket_usec,
        (SELECT min(eta_usec) FROM taskqueue_task WHERE queue_id = q.id AND state = 0),
        (SELECT min(eta_usec) FROM taskqueue_task WHERE queue_id = q.id AND state = 3),
        (SELECT sum(tasks) FROM taskqueue_in_flight WHERE queue_id = q.id),
        (SELECT tasks FROM taskqueue_in_flight WHERE queue_id = q.id AND process_id = ?)
    FROM taskqueue_queue AS q
"""
SELECT_GATE = SELECT_GATES + " WHERE q.id = ?"

# taskqueue_queue's and taskqueue_in_flight's primary keys.
SAVE_BUCKET = "UPDATE taskqueue_queue SET bucket_level = ?, bucket_usec = ? WHERE id = ?"
COUNT_IN_FLIGHT = """
    INSERT INTO taskqueue_in_flight (queue_id, process_id, tasks) VALUES (?1, ?2, max(?3, 0))
    ON CONFLICT (queue_id, process_id) DO UPDATE SET tasks = max(tasks + ?3, 0)
"""

# taskqueue_started's primary key; a slot that is a minute old, or of a clock that was set back, begins anew.
COUNT_STARTED = """
    INSERT INTO taskqueue_started (queue_id, slot, second, tasks) VALUES (?1, ?2 % 60, ?2, ?3)
    ON CONFLICT (queue_id, slot) DO UPDATE SET tasks = iif(second = ?2, tasks, 0) + ?3, second = ?2
"""


class Gate:
    """What one queue may start, inside one transaction: paused or not, places, tokens."""

    def __init__(self, row: Row, config: QueueConfig, now_usec: int) -> None:
        self.queue_id, is_paused, level, bucket_usec, self.ready_eta, self.suspect_eta, in_flight, own_in_flight = row
        self.config = config
        self.own_in_flight: int = own_in_flight or 0
        self.is_paused = bool(is_paused)
        self.is_closed = self.is_paused or config.exact_rate == 0
        self.started = 0
        self._now_usec = now_usec
        self._places = max(config.max_concurrent_requests - (in_flight or 0), 0)
        self._rate = config.exact_rate
        full = Bucket.full(capacity=config.bucket_size, now_usec=now_usec)
        self._bucket = full if level is None else Bucket(level, bucket_usec)

    def room(self, wanted: int) -> int:
        """Return how many of `wanted` may start now."""
        granted = 0 if self.is_closed else min(wanted, self._places)
        return granted if self._rate is None else self._take(granted, self._rate)[0]

    def start(self, count: int) -> None:
        """Count `count` tasks, no more than there is room for, as started."""
        self._places -= count
        self.started += count
        if self._rate is not None:
            self._bucket = self._take(count, self._rate)[1]

    def is_free_for_new(self) -> bool:
        """Whether no other due task waits in the queue, so that a new one may overtake nobody."""
        return (self.ready_eta is None or self.ready_eta > self._now_usec) and self.suspect_eta is None

    def next_token_usec(self) -> int | None:
        """Return when a token allows more, if only that is missing."""
        if self._rate is None or not self._places:
            return None
        return next_token_usec(self._bucket, rate=self._rate)

    def save(self, connection: sqlite3.Connection, process_id: int) -> None:
        """Write what was started."""
        if not self.started:
            return
        connection.execute(COUNT_IN_FLIGHT, (self.queue_id, process_id, self.started))
        connection.execute(COUNT_STARTED, (self.queue_id, self._now_usec // 1_000_000, self.started))
        if self._rate is not None:
            connection.execute(SAVE_BUCKET, (self._bucket.level, self._bucket.usec, self.queue_id))

    def _take(self, wanted: int, rate: Fraction) -> tuple[int, Bucket]:
        return take(self._bucket, wanted, rate=rate, capacity=self.config.bucket_size, now_usec=self._now_usec)
