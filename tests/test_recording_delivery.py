"""RecordingDelivery: remembers every attempt and answers what it is told."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from aiotaskqueue._record import TaskRecord
from aiotaskqueue.delivery._base import Answer, FailureReason, NoAnswer
from aiotaskqueue.testing import Delivered, RecordingDelivery, VirtualClock
from aiotaskqueue.testing._delivery import Response

pytestmark = pytest.mark.anyio

RECORD = TaskRecord(uuid=bytes(16), queue_name="default", name="a", url="/w", eta_usec=0, created_usec=0)
STALE = NoAnswer(FailureReason.STALE)
ASKING_FOR_TIME = Answer(503, retry_after="7")


async def deliver(delivery: RecordingDelivery, record: TaskRecord = RECORD) -> Answer | NoAnswer:
    """Make one attempt."""
    return await delivery.deliver(record, deadline_seconds=30.0)


async def test_answers_200() -> None:
    """A delivery that was told nothing answers 200."""
    assert Answer(200) == await deliver(RecordingDelivery())


async def test_has_answered() -> None:
    """Its target is up from the start: a failure that it is told to have is a failure."""
    assert RecordingDelivery().has_answered


async def test_remembers_attempts_in_order() -> None:
    """Each attempt is remembered with its record and the time at which it began, also one that fails."""
    clock, delivery = VirtualClock(), RecordingDelivery()
    await delivery.open(clock)
    second = TaskRecord(uuid=bytes(16), queue_name="default", name="b", url="/w", eta_usec=0, created_usec=0)
    delivery.answer_next(500)
    await deliver(delivery)
    await clock.advance(0.000001)
    await deliver(delivery, second)
    start = datetime(2026, 1, 1, tzinfo=UTC)

    assert [Delivered(RECORD, start), Delivered(second, start + timedelta(microseconds=1))] == delivery.deliveries


@pytest.mark.parametrize(
    ("response", "expected"), [(204, Answer(204)), (ASKING_FOR_TIME, ASKING_FOR_TIME), (STALE, STALE), (None, Answer(200))]
)
async def test_answers_what_it_is_told(response: Response, expected: Answer | NoAnswer) -> None:
    """A status, an Answer, a NoAnswer and None are answers, scripted or from a function, plain or not."""

    async def respond_later(record: TaskRecord) -> Response:
        return response

    scripted = RecordingDelivery()
    scripted.answer_next(response)
    deliveries = [scripted, RecordingDelivery(lambda record: response), RecordingDelivery(respond_later)]

    assert [expected] * 3 == [await deliver(delivery) for delivery in deliveries]


async def test_script_comes_first() -> None:
    """Scripted answers are used up, one an attempt, before anything else is asked."""
    asked: list[TaskRecord] = []
    delivery = RecordingDelivery(asked.append)
    delivery.answer_next(500, 404)
    delivery.answer_next(503)

    assert [500, 404, 503, 200] == [getattr(await deliver(delivery), "status", None) for _ in range(4)]
    assert [RECORD] == asked


async def test_raises_what_it_is_told() -> None:
    """An exception is raised, as by a delivery that is broken."""
    delivery = RecordingDelivery()
    delivery.answer_next(OSError("broken"))
    with pytest.raises(OSError, match="broken"):
        await deliver(delivery)


async def test_raises_what_the_function_raises() -> None:
    """What the function raises goes through."""

    def respond(record: TaskRecord) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await deliver(RecordingDelivery(respond))


@pytest.mark.parametrize(("seconds", "expected"), [(30.999999, Answer(200)), (31.000001, NoAnswer(FailureReason.DEADLINE))])
async def test_deadline(seconds: float, expected: Answer | NoAnswer) -> None:
    """P9: a function that sleeps beyond deadline and grace runs into them, as a slow handler does."""
    clock = VirtualClock(auto_advance=True)

    async def respond(record: TaskRecord) -> None:
        await delivery.clock.sleep(seconds)

    delivery = RecordingDelivery(respond)
    await delivery.open(clock)
    with clock.activity():
        result = await deliver(delivery)

    assert (expected, min(seconds, 31)) == (result, clock.monotonic())


async def test_answer_after_the_deadline() -> None:
    """P9: an answer from a function that catches its end is too late."""
    clock = VirtualClock(auto_advance=True)

    async def respond(record: TaskRecord) -> int:
        try:
            await delivery.clock.sleep(60)
        except asyncio.CancelledError:
            return 200
        return 500

    delivery = RecordingDelivery(respond)
    await delivery.open(clock)
    with clock.activity():
        assert NoAnswer(FailureReason.DEADLINE) == await deliver(delivery)


async def test_error_at_the_deadline() -> None:
    """A function that ends in an error when its time is up ran into the deadline all the same."""
    clock = VirtualClock(auto_advance=True)

    async def respond(record: TaskRecord) -> None:
        try:
            await delivery.clock.sleep(60)
        finally:
            raise OSError("while cleaning up")

    delivery = RecordingDelivery(respond)
    await delivery.open(clock)
    with clock.activity():
        assert NoAnswer(FailureReason.DEADLINE) == await deliver(delivery)


async def test_cancelled() -> None:
    """A delivery that is cancelled is cancelled: that is no deadline."""

    async def respond(record: TaskRecord) -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(deliver(RecordingDelivery(respond)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
