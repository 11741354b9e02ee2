"""The sequences of App Engine's retries as times of delivery, to the microsecond, on a clock of hours and days (SPEC 2.3, 2.4).

Source: GAE taskqueue.TaskRetryOptions; the figures are those that SPEC lists as verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from on_clock import EXACT, Bench, serving, utc

from aiotaskqueue import QueueConfig, Task, TaskRetryOptions
from aiotaskqueue._record import TaskRecord, TaskState
from aiotaskqueue.delivery._base import Answer
from aiotaskqueue.testing import RecordingDelivery, VirtualClock

pytestmark = pytest.mark.anyio

DEFAULTS = [0.1 * 2**i for i in range(16)] + [3600] * 8

# Options, and the delays before the first retries (SPEC 2.3).
SEQUENCES: dict[str, tuple[TaskRetryOptions, list[float]]] = {
    "defaults": (TaskRetryOptions(), DEFAULTS),
    "linear": (
        TaskRetryOptions(min_backoff_seconds=10, max_backoff_seconds=200, max_doublings=0),
        [*range(10, 200, 10), 200, 200, 200],
    ),
    "public docs": (
        TaskRetryOptions(min_backoff_seconds=10, max_backoff_seconds=300, max_doublings=3),
        [10, 20, 40, 80, 160, 240, 300, 300, 300],
    ),
    "three doublings": (
        TaskRetryOptions(min_backoff_seconds=10, max_backoff_seconds=200, max_doublings=3),
        [10, 20, 40, 80, 160, 200, 200, 200],
    ),
    "five doublings": (
        TaskRetryOptions(min_backoff_seconds=1, max_doublings=5),
        [1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224],
    ),
    "no backoff": (TaskRetryOptions(min_backoff_seconds=0, task_retry_limit=9), [0] * 9),
    "no maximum": (TaskRetryOptions(max_backoff_seconds=0, task_retry_limit=9), [0] * 9),
    "minimum above the maximum": (TaskRetryOptions(min_backoff_seconds=5000), [3600] * 5),
    "only a limit is set": (TaskRetryOptions(task_retry_limit=20), DEFAULTS[:20]),
    "fractions of a microsecond are cut off": (
        TaskRetryOptions(min_backoff_seconds=0.0000019, max_doublings=2, task_retry_limit=4),
        [0.000001, 0.000003, 0.000007, 0.000015],
    ),
}

# Options, and when the attempts begin until the task is given up (SPEC 2.4).
LIMITS: dict[str, tuple[TaskRetryOptions, list[float]]] = {
    "two retries": (TaskRetryOptions(task_retry_limit=2), [0, 0.1, 0.3]),
    "no retry": (TaskRetryOptions(task_retry_limit=0), [0]),
    "an age of 10 s": (TaskRetryOptions(task_age_limit=10, min_backoff_seconds=4, max_doublings=0), [0, 4, 12]),
    "an age of 0 s": (TaskRetryOptions(task_age_limit=0), [0, 0.1]),
    "both, the age is longer": (
        TaskRetryOptions(task_retry_limit=2, task_age_limit=10, min_backoff_seconds=2, max_doublings=0),
        [0, 2, 6, 12],
    ),
    "both, the retries are more": (
        TaskRetryOptions(task_retry_limit=2, task_age_limit=3, min_backoff_seconds=2, max_doublings=0),
        [0, 2, 6],
    ),
    "an age that a retry hits exactly": (TaskRetryOptions(task_age_limit=4, min_backoff_seconds=4, max_doublings=0), [0, 4, 12]),
}


def fail(record: TaskRecord) -> int:
    """Handle no task."""
    return 500


def sums(delays: Sequence[float]) -> list[float]:
    """Return when attempts begin that are these delays apart, to the microsecond."""
    moments = [0]
    for delay in delays:
        moments.append(moments[-1] + int(round(delay * 1_000_000, 3)))
    return [moment / 1_000_000 for moment in moments]


async def add_and_wait(bench: Bench, options: TaskRetryOptions | None, *, days: int = 2) -> None:
    """Add a task and wait long enough."""
    await bench.service.add(url="/w", name="t", retry_options=options)
    await bench.clock.advance(timedelta(days=days))


@pytest.mark.parametrize("is_queues", [False, True], ids=["of the task", "of its queue"])
@pytest.mark.parametrize(("options", "delays"), SEQUENCES.values(), ids=SEQUENCES)
async def test_delays(tmp_path: Path, options: TaskRetryOptions, delays: list[float], is_queues: bool) -> None:
    """Doubling, then linear, then constant: every sequence of SPEC 2.3, whether the options are the task's or its queue's."""
    queue = QueueConfig("default", jitter=0, retry_options=options if is_queues else None)
    async with serving(tmp_path, queue, respond=fail) as bench:
        await bench.service.add(url="/w", retry_options=None if is_queues else options)
        await bench.clock.advance(sum(delays))

        assert sums(delays) == bench.seconds


@pytest.mark.parametrize(("options", "moments"), LIMITS.values(), ids=LIMITS)
async def test_limits(tmp_path: Path, options: TaskRetryOptions, moments: list[float]) -> None:
    """A task is retried until every limit that it has is passed, and then never again (SPEC 2.4)."""
    async with serving(tmp_path, respond=fail) as bench:
        await add_and_wait(bench, options)

        assert (moments, TaskState.DEAD) == (bench.seconds, (await bench.get("t")).state)


async def test_no_limit(tmp_path: Path) -> None:
    """Without a limit a task is retried for ever: after thirty days it still is (SPEC 2.4, SEED 003)."""
    async with serving(tmp_path, respond=fail) as bench:
        await add_and_wait(bench, None, days=30)

        # Seventeen attempts in the first 6553.5 seconds, and then one each hour.
        assert 17 + int((30 * 86_400 - 6553.5) // 3600) == len(bench.seconds)
        assert TaskState.READY == (await bench.get("t")).state


async def test_task_options_are_not_mixed_with_those_of_the_queue(tmp_path: Path) -> None:
    """A task that sets only a limit uses the built-in backoff, not its queue's (SPEC 2.2)."""
    queue = QueueConfig("default", jitter=0, retry_options=TaskRetryOptions(min_backoff_seconds=100, task_retry_limit=50))
    async with serving(tmp_path, queue, respond=fail) as bench:
        await add_and_wait(bench, TaskRetryOptions(task_retry_limit=3))

        assert [0, 0.1, 0.3, 0.7] == bench.seconds


async def test_delay_counts_from_the_end_of_the_attempt(tmp_path: Path) -> None:
    """The next ETA is the time at which the attempt ended, plus the delay (SPEC 2.4)."""
    clock = VirtualClock()

    async def respond(record: TaskRecord) -> int:
        await clock.sleep(7)
        return 500

    async with serving(tmp_path, respond=respond, clock=clock) as bench:
        await add_and_wait(bench, TaskRetryOptions(task_retry_limit=3))

        assert [0, 7.1, 14.3, 21.7] == bench.seconds


async def test_age_counts_from_the_first_attempt(tmp_path: Path) -> None:
    """The age limit counts from the beginning of the first attempt, not from the add, and the attempts' own time is in it."""
    clock = VirtualClock()

    async def respond(record: TaskRecord) -> int:
        await clock.sleep(3)
        return 500

    options = TaskRetryOptions(task_age_limit=10, min_backoff_seconds=1, max_doublings=0)
    async with serving(tmp_path, respond=respond, clock=clock) as bench:
        await bench.service.add(url="/w", name="t", retry_options=options, countdown=1000)
        await clock.advance(timedelta(days=1))

        # They end at the ages 3, 7 and 12.
        assert [1000, 1004, 1009] == bench.seconds


async def test_eta_of_each_attempt(tmp_path: Path) -> None:
    """The ETA that an attempt is told is its own: that of the retry (SPEC 4.3)."""
    async with serving(tmp_path, respond=fail) as bench:
        await add_and_wait(bench, TaskRetryOptions(task_retry_limit=3))
        start_usec = round(bench.start.timestamp() * 1_000_000)

        assert [0, 100_000, 300_000, 700_000] == [record.eta_usec - start_usec for record in bench.records]


@pytest.mark.parametrize(
    ("answer", "moment"),
    [
        (Answer(503, "7"), 7),
        (Answer(429, "7200"), 3600),
        (Answer(503, "Thu, 01 Jan 2026 00:10:00 GMT"), 600),
        (Answer(500, "7"), 0.1),
    ],
)
async def test_retry_after(tmp_path: Path, answer: Answer, moment: float) -> None:
    """With 429 and 503 a worker may ask for a later retry, up to the longest backoff; with others it may not (SPEC 4.4)."""
    async with serving(tmp_path, clock=VirtualClock(utc(2026, 1, 1))) as bench:
        bench.delivery.answer_next(answer)
        await add_and_wait(bench, None)

        assert [0, moment] == bench.seconds


@pytest.mark.parametrize("seed", range(5))
async def test_jitter(tmp_path: Path, seed: int) -> None:
    """P10: with jitter every delay is App Engine's figure up to a tenth more, never less, and not always the same."""
    async with serving(tmp_path, QueueConfig("default"), respond=fail, seed=seed) as bench:
        await add_and_wait(bench, TaskRetryOptions(task_retry_limit=24))
        shares = [gap / figure - 1 for gap, figure in zip(bench.gaps, DEFAULTS, strict=True)]

        assert [] == [share for share in shares if not -1e-9 <= share <= 0.1 + 1e-9]
        assert len(set(shares)) > 20


async def test_jitter_keeps_apart_what_failed_together(tmp_path: Path) -> None:
    """P10: tasks that fail at one moment do not all return at one moment."""
    async with serving(tmp_path, QueueConfig("default", jitter=0.5), respond=fail, seed=1) as bench:
        options = TaskRetryOptions(min_backoff_seconds=100, task_retry_limit=1)
        await bench.service.queue().add([Task(url="/w", retry_options=options) for _ in range(20)])
        await bench.clock.advance(timedelta(days=1))
        retries = bench.seconds[20:]

        assert (20, True) == (len(set(retries)), all(100 <= moment <= 150 for moment in retries))


async def test_seed_fixes_the_jitter(tmp_path: Path) -> None:
    """Two runs with one seed retry at the same moments."""
    seen = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        async with serving(tmp_path / folder, QueueConfig("default"), respond=fail, seed=7) as bench:
            await add_and_wait(bench, TaskRetryOptions(task_retry_limit=10))
            seen.append(bench.seconds)

    assert seen[0] == seen[1]


async def test_success_after_failures(tmp_path: Path) -> None:
    """The first 200 ends the retries."""
    delivery = RecordingDelivery()
    delivery.answer_next(*[500] * 10)
    async with serving(tmp_path, EXACT, delivery=delivery) as bench:
        await add_and_wait(bench, None)

        assert (sums(DEFAULTS[:10]), []) == (bench.seconds, await bench.stored())
