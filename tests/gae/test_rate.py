"""Rate and bucket as times of delivery: a token bucket for each push queue, retries included (SPEC 4.6).

Source: GAE queue.yaml, ``rate`` and ``bucket_size``.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from on_clock import serving

from aiotaskqueue import QueueConfig, Task, TaskRetryOptions
from aiotaskqueue._record import TaskRecord, TaskState
from aiotaskqueue.testing import VirtualClock

pytestmark = pytest.mark.anyio

DAY = 86_400


def limited(rate: str, **settings: int) -> QueueConfig:
    """Return a queue with a rate."""
    return QueueConfig("default", rate=rate, jitter=0, **settings)  # type: ignore[arg-type]


def tasks(count: int) -> list[Task]:
    """Return tasks that are due."""
    return [Task(url="/w", name=f"t{i}") for i in range(count)]


@pytest.mark.parametrize(
    ("rate", "bucket_size", "expected"),
    [
        ("1/s", 1, [0, 1, 2, 3, 4, 5]),
        ("1/s", 3, [0, 0, 0, 1, 2, 3]),
        ("5/s", 5, [0, 0, 0, 0, 0, 0.2]),
        ("2/m", 2, [0, 0, 30, 60, 90, 120]),
        ("10/h", 1, [0, 360, 720, 1080, 1440, 1800]),
        ("1/d", 2, [0, 0, DAY, 2 * DAY, 3 * DAY, 4 * DAY]),
        ("0.5/s", 1, [0, 2, 4, 6, 8, 10]),
        ("3/s", 2, [0, 0, 0.333334, 0.666667, 1, 1.333334]),
    ],
)
async def test_rate_and_bucket(tmp_path: Path, rate: str, bucket_size: int, expected: list[float]) -> None:
    """A full bucket starts at once, the rest as its tokens come, in order and none before its moment."""
    async with serving(tmp_path, limited(rate, bucket_size=bucket_size)) as bench:
        await bench.service.queue().add(tasks(6))
        await bench.clock.advance(5 * DAY)

        assert expected == bench.seconds
        assert [f"t{i}" for i in range(6)] == bench.names


async def test_bucket_of_five(tmp_path: Path) -> None:
    """Without a bucket_size the bucket holds five (SPEC 4.6)."""
    async with serving(tmp_path, limited("1/h")) as bench:
        await bench.service.queue().add(tasks(7))
        await bench.clock.advance(DAY)

        assert [0] * 5 + [3600, 7200] == bench.seconds


async def test_bucket_fills_up_to_its_size(tmp_path: Path) -> None:
    """Idle time fills the bucket, and no more than that (SPEC 4.6)."""
    async with serving(tmp_path, limited("1/s", bucket_size=3)) as bench:
        await bench.service.queue().add(tasks(3))
        await bench.clock.advance(1000)
        await bench.service.queue().add([Task(url="/w") for _ in range(5)])
        await bench.clock.advance(1000)

        assert [0, 0, 0, 1000, 1000, 1000, 1001, 1002] == bench.seconds


async def test_fractions_of_tokens_are_kept(tmp_path: Path) -> None:
    """What has flowed in for a token that is not whole yet is not lost when somebody looks (SPEC 4.6)."""
    async with serving(tmp_path, limited("1/m", bucket_size=1)) as bench:
        await bench.service.queue().add(tasks(2))
        for _ in range(59):
            await bench.clock.advance(1)
            await bench.service.add(url="/w", countdown=0)

        assert [0] == bench.seconds

        await bench.clock.advance(1)

        assert [0, 60] == bench.seconds


@pytest.mark.slow
async def test_two_thousand_a_day(tmp_path: Path) -> None:
    """A rate of 2000 a day brings 2000 a day over days, evenly, without a drift of a single task or microsecond."""
    async with serving(tmp_path, limited("2000/d", bucket_size=1)) as bench:
        await bench.service.queue().add(tasks(3001))
        await bench.clock.advance(timedelta(days=1.5))

        assert [i * 432 / 10 for i in range(3001)] == bench.seconds


@pytest.mark.slow
async def test_days_of_a_burst(tmp_path: Path) -> None:
    """With a bucket for a whole day's tasks a day's worth starts at once, and then as many each day."""
    async with serving(tmp_path, limited("100/d", bucket_size=100)) as bench:
        await bench.service.queue().add(tasks(350))
        await bench.clock.advance(timedelta(days=3))
        days = Counter(-(-round(seconds * 1_000_000) // (DAY * 1_000_000)) for seconds in bench.seconds)

        assert {0: 100, 1: 100, 2: 100, 3: 50} == days


@pytest.mark.parametrize("rate", ["0", "0/s"])
async def test_rate_of_nothing(tmp_path: Path, rate: str) -> None:
    """A rate of 0 pauses the queue: its tasks are kept, however much time passes (SPEC 4.6)."""
    async with serving(tmp_path, limited(rate)) as bench:
        await bench.service.queue().add(tasks(3))
        await bench.service.run_until_idle()
        await bench.clock.advance(10 * DAY)

        assert ([], ["t0", "t1", "t2"]) == (bench.names, await bench.stored(TaskState.READY))


async def test_rate_of_nothing_is_no_obstacle_to_others(tmp_path: Path) -> None:
    """A queue that is paused by its rate, or waits for a token, does not hold up another one."""
    configs = [QueueConfig("none", rate="0"), QueueConfig("slow", rate="1/d", bucket_size=1), QueueConfig("free")]
    async with serving(tmp_path, *configs, max_concurrent_deliveries=1) as bench:
        for config in configs:
            await bench.service.queue(config.name).add([Task(url="/w", name=f"{config.name}{i}") for i in range(2)])
        await bench.service.run_until_idle()

        assert ["free0", "free1", "slow0"] == sorted(bench.names)


async def test_no_rate(tmp_path: Path) -> None:
    """Without a rate there is no limit but the places (SPEC 4.6)."""
    async with serving(tmp_path) as bench:
        await bench.service.queue().add(tasks(100))
        await bench.service.run_until_idle()

        assert [0.0] * 100 == bench.seconds


async def test_retries_take_tokens(tmp_path: Path) -> None:
    """A retry takes a token like any attempt, and waits for it beyond its ETA (SPEC 4.6)."""
    async with serving(tmp_path, limited("1/s", bucket_size=1), respond=lambda record: 500) as bench:
        await bench.service.add(url="/w", retry_options=TaskRetryOptions(task_retry_limit=3, max_doublings=0))
        await bench.clock.advance(DAY)

        assert [0, 1, 2, 3] == bench.seconds


async def test_rate_and_places(tmp_path: Path) -> None:
    """Tokens gather while the places are taken, up to the bucket's size; whichever is scarcer decides (SPEC 4.6)."""
    clock = VirtualClock()

    async def respond(record: TaskRecord) -> int:
        await clock.sleep(10)
        return 200

    queue = limited("1/s", bucket_size=2, max_concurrent_requests=3)
    async with serving(tmp_path, queue, respond=respond, clock=clock) as bench:
        await bench.service.queue().add(tasks(7))
        await clock.advance(100)

        assert [0, 0, 1, 10, 10, 11, 20] == bench.seconds


async def test_bucket_outlives_the_service(tmp_path: Path) -> None:
    """The level of the bucket is stored: a restart brings no fresh tokens."""
    clock = VirtualClock()
    async with serving(tmp_path, limited("1/m", bucket_size=2), clock=clock) as bench:
        await bench.service.queue().add(tasks(5))
        await clock.advance(30)

        assert [0, 0] == bench.seconds

    async with serving(tmp_path, limited("1/m", bucket_size=2), clock=clock) as bench:
        await clock.advance(100)

        assert [30, 90] == bench.seconds


@pytest.mark.promise("P19")
async def test_rate_across_services(tmp_path: Path) -> None:
    """P19: the rate of a queue holds over everybody who has the file open."""
    clock = VirtualClock()
    queue = limited("1/m", bucket_size=2)
    async with serving(tmp_path, queue, clock=clock) as first, serving(tmp_path, queue, clock=clock) as second:
        await first.service.queue().add(tasks(3))
        await second.service.queue().add([Task(url="/w") for _ in range(3)])
        await clock.advance(300)

        assert [0, 0, 60, 120, 180, 240] == sorted(first.seconds + second.seconds)


async def test_forty_days(tmp_path: Path) -> None:
    """A rate of one a day is exact for weeks."""
    async with serving(tmp_path, limited("1/d", bucket_size=1)) as bench:
        await bench.service.queue().add(tasks(40))
        await bench.clock.advance(timedelta(days=40))

        assert [float(i * DAY) for i in range(40)] == bench.seconds


async def test_born_leased_takes_a_token(tmp_path: Path) -> None:
    """A task that is delivered by the commit that stores it takes a token too (DESIGN 4.2)."""
    seen: list[TaskRecord] = []
    async with serving(tmp_path, limited("1/h", bucket_size=1), respond=seen.append) as bench:
        with bench.clock.released():
            await bench.service.run_until_idle()
            for i in range(3):
                await bench.service.add(url="/w", name=f"t{i}")
            await bench.service.run_until_idle()

        assert ["t0"] == [record.name for record in seen]
