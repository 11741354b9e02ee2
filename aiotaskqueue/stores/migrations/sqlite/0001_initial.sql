-- The first schema. The file may be the application's own: every table begins with taskqueue_, and user_version and
-- application_id are not touched. Times are microseconds since 1970, UTC.

CREATE TABLE taskqueue_schema (
    version INTEGER PRIMARY KEY,
    applied_usec INTEGER NOT NULL
) STRICT;

-- One row. Ids are never used twice: an id and a lease token tell one attempt from every other.
CREATE TABLE taskqueue_sequence (
    last_id INTEGER NOT NULL
) STRICT;

INSERT INTO taskqueue_sequence (last_id) VALUES (0);

-- bucket_level and bucket_usec: the token bucket (see _token_bucket.py for the unit); shared by all processes.
CREATE TABLE taskqueue_queue (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    is_paused INTEGER NOT NULL DEFAULT 0 CHECK (is_paused IN (0, 1)),
    bucket_level INTEGER,
    bucket_usec INTEGER
) STRICT;

-- The processes that have the file open; each holds a lock on a side file of its own while it lives.
CREATE TABLE taskqueue_process (
    id INTEGER PRIMARY KEY,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started_usec INTEGER NOT NULL,
    is_draining INTEGER NOT NULL DEFAULT 0 CHECK (is_draining IN (0, 1))
) STRICT;

-- How many tasks each process has leased from each queue: what max_concurrent_requests is held against.
CREATE TABLE taskqueue_in_flight (
    queue_id INTEGER NOT NULL,
    process_id INTEGER NOT NULL,
    tasks INTEGER NOT NULL CHECK (tasks >= 0),
    PRIMARY KEY (queue_id, process_id)
) STRICT, WITHOUT ROWID;

-- state: 0 ready, 1 leased, 2 dead, 3 suspect (ready, but was in flight at a crash: retried alone).
CREATE TABLE taskqueue_task (
    id INTEGER PRIMARY KEY,
    queue_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    uuid BLOB NOT NULL CHECK (length(uuid) = 16),
    state INTEGER NOT NULL DEFAULT 0 CHECK (state IN (0, 1, 2, 3)),
    eta_usec INTEGER NOT NULL CHECK (eta_usec >= 0),
    created_usec INTEGER NOT NULL,
    is_named INTEGER NOT NULL CHECK (is_named IN (0, 1)),
    method TEXT NOT NULL,
    url TEXT NOT NULL,
    headers TEXT,
    payload BLOB,
    has_body INTEGER NOT NULL DEFAULT 0 CHECK (has_body IN (0, 1)),
    tag TEXT,
    target TEXT,
    retry_options TEXT,
    dispatch_deadline_usec INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    executions INTEGER NOT NULL DEFAULT 0 CHECK (executions >= 0),
    lease_token INTEGER NOT NULL DEFAULT 0 CHECK (lease_token >= 0),
    lease_expires_usec INTEGER,
    process_id INTEGER,
    first_attempt_usec INTEGER,
    previous_status INTEGER,
    retry_reason TEXT,
    was_stale INTEGER NOT NULL DEFAULT 0 CHECK (was_stale IN (0, 1)),
    is_suspect INTEGER NOT NULL DEFAULT 0 CHECK (is_suspect IN (0, 1)),
    crashes INTEGER NOT NULL DEFAULT 0 CHECK (crashes >= 0),
    dead_usec INTEGER,
    dead_reason TEXT,
    keep_until_usec INTEGER,
    CHECK ((state = 1) = (process_id IS NOT NULL)),
    CHECK ((state = 2) = (keep_until_usec IS NOT NULL))
) STRICT;

-- Names are unique among the tasks that are there; tombstones are looked up in the same transaction.
CREATE UNIQUE INDEX taskqueue_task_name ON taskqueue_task (queue_id, name);

-- What may be leased next. Leased rows are in no index of their own.
CREATE INDEX taskqueue_task_ready ON taskqueue_task (queue_id, eta_usec) WHERE state = 0;
CREATE INDEX taskqueue_task_suspect ON taskqueue_task (queue_id, eta_usec) WHERE state = 3;
CREATE INDEX taskqueue_task_dead ON taskqueue_task (keep_until_usec) WHERE state = 2;

-- Bodies over 2 KiB, so that a lease does not rewrite them.
CREATE TABLE taskqueue_body (
    task_id INTEGER PRIMARY KEY,
    payload BLOB NOT NULL
) STRICT;

CREATE TABLE taskqueue_tombstone (
    queue_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    expires_usec INTEGER NOT NULL,
    PRIMARY KEY (queue_id, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX taskqueue_tombstone_expiry ON taskqueue_tombstone (expires_usec);

-- The last failed attempts of each task.
CREATE TABLE taskqueue_attempt (
    task_id INTEGER NOT NULL,
    lease_token INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    started_usec INTEGER NOT NULL,
    ended_usec INTEGER NOT NULL,
    reason TEXT NOT NULL,
    status INTEGER,
    detail TEXT NOT NULL,
    PRIMARY KEY (task_id, lease_token)
) STRICT, WITHOUT ROWID;

-- Signing keys, newest first by created_usec.
CREATE TABLE taskqueue_secret (
    id INTEGER PRIMARY KEY,
    secret BLOB NOT NULL CHECK (length(secret) >= 32),
    created_usec INTEGER NOT NULL
) STRICT;
