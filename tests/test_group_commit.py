"""Group commit: what gathers while one transaction runs is the next one (RELIABILITY S1-S3, S16, P15)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
import pytest

from aiotaskqueue.errors import ClosedError, OutcomeUnknownError, StoreBusyError
from aiotaskqueue.stores._group_commit import MAX_ROWS, GroupCommit, LockedError, Verb

pytestmark = pytest.mark.anyio

Groups = Sequence[tuple[Verb, Sequence[Any]]]


def double(connection: Any, requests: Sequence[int]) -> list[int]:
    """A verb."""
    return [2 * request for request in requests]


def negate(connection: Any, requests: Sequence[int]) -> list[int]:
    """Another verb, which 13 makes fail."""
    if 13 in requests:
        raise ValueError("13 is refused")
    return [-request for request in requests]


class Database:
    """Carries out transactions and remembers them; a real one is in the other files."""

    def __init__(self) -> None:
        self.transactions: list[list[list[int]]] = []
        self.locked_tries = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def transact(self, groups: Groups) -> Sequence[Sequence[Any]]:
        """Run the verbs, all or nothing."""
        await self.gate.wait()
        if self.locked_tries:
            self.locked_tries -= 1
            raise LockedError("database is locked")
        self.transactions.append([list(requests) for _, requests in groups])
        return [verb(None, requests) for verb, requests in groups]

    def count_ended(self) -> int:
        """Return how many transactions there were."""
        return len(self.transactions)


@contextlib.asynccontextmanager
async def committing(database: Database) -> AsyncIterator[GroupCommit]:
    """Run a group commit while the block runs."""
    group = GroupCommit(database.transact)
    async with anyio.create_task_group() as tg:
        tg.start_soon(group.run)
        yield group
        group.close()


async def test_a_request_gets_its_verbs_result() -> None:
    """A single request is committed at once and its future has the result."""
    database = Database()
    async with committing(database) as group:
        result = await group.submit(double, 21)

    assert 42 == result
    assert 1 == group.commits


async def test_what_gathers_is_one_transaction() -> None:
    """Requests that arrive while one transaction runs share the next one, grouped by verb, each with its own result."""
    database = Database()
    async with committing(database) as group:
        database.gate.clear()
        first = group.submit(double, 1)
        await asyncio.sleep(0)
        rest = [group.submit(verb, number) for number in (2, 3) for verb in (double, negate)]
        database.gate.set()
        results = await asyncio.gather(first, *rest)

    assert [[[1]], [[2, 3], [2, 3]]] == database.transactions
    assert [2, 4, -2, 6, -3] == results


async def test_a_transaction_has_a_bounded_number_of_rows() -> None:
    """A transaction takes requests up to the bound on rows, so that other processes get the lock in time."""
    database = Database()
    group = GroupCommit(database.transact)
    futures = [group.submit(double, number, rows=rows) for number, rows in enumerate((MAX_ROWS - 1, 1, 1, MAX_ROWS))]
    group.close()
    await group.run()

    assert [[[0, 1]], [[2]], [[3]]] == database.transactions
    assert [0, 2, 4, 6] == [await future for future in futures]


async def test_one_large_request_is_never_cut() -> None:
    """A request of more rows than the bound is a transaction of its own."""
    database = Database()
    async with committing(database) as group:
        await group.submit(double, 1, rows=10 * MAX_ROWS)

    assert [[[1]]] == database.transactions


async def test_only_the_guilty_request_fails() -> None:
    """When a transaction fails, each of its requests is tried alone, and only the one at fault gets the error."""
    database = Database()
    group = GroupCommit(database.transact)
    futures = [group.submit(negate, number) for number in (1, 13, 2)]
    group.close()
    await group.run()
    results = await asyncio.gather(*futures, return_exceptions=True)

    assert [-1, "13 is refused", -2] == [str(result) if isinstance(result, ValueError) else result for result in results]


async def test_the_loop_goes_on_after_a_failure() -> None:
    """A failed request does not end the loop."""
    async with committing(Database()) as group:
        with pytest.raises(ValueError, match="13"):
            await group.submit(negate, 13)
        result = await group.submit(negate, 1)

    assert -1 == result


async def test_a_cancelled_caller_still_gets_its_write() -> None:
    """Cancelling a caller leaves its request alone: it is carried out, and its end is told."""
    database = Database()
    ended: list[int | None] = []
    async with committing(database) as group:
        database.gate.clear()
        future = group.submit(double, 21, on_end=ended.append)
        await asyncio.sleep(0)
        future.cancel()
        database.gate.set()
        await group.submit(double, 1)

    assert [42] == ended
    assert [[[21]], [[1]]] == database.transactions


async def test_a_cancelled_caller_whose_write_fails_is_told_once() -> None:
    """A request that fails after its caller was cancelled is ended with None, and nobody is left to raise at."""
    ended: list[int | None] = []
    async with committing(Database()) as group:
        group.submit(negate, 13, on_end=ended.append).cancel()
        await group.submit(double, 1)

    assert [None] == ended


async def test_a_failing_end_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """An exception in what a caller does at the end is logged; its result and those of its neighbours arrive."""

    def fail(result: int) -> None:
        raise RuntimeError("no lane")

    group = GroupCommit(Database().transact)
    futures = [group.submit(double, 1, on_end=fail), group.submit(double, 2)]
    group.close()
    await group.run()

    assert [2, 4] == [await future for future in futures]
    assert ["What follows a write failed."] == [record.message for record in caplog.records]


async def test_close_ends_the_loop_after_what_was_submitted() -> None:
    """Closing carries out what was submitted before, and then the loop returns."""
    database = Database()
    group = GroupCommit(database.transact)
    future = group.submit(double, 1)
    group.close()
    await group.run()

    assert 2 == await future


async def test_a_closed_one_refuses() -> None:
    """After closing, submitting raises ClosedError, and says to whoever waits for the end that nothing came of it."""
    group = GroupCommit(Database().transact)
    group.close()
    ends: list[object] = []

    with pytest.raises(ClosedError, match="closed"):
        group.submit(double, 1)
    with pytest.raises(ClosedError, match="closed"):
        group.submit(double, 1, on_end=ends.append)
    assert [None] == ends


async def test_cancelling_the_loop_leaves_nobody_waiting() -> None:
    """When the loop is cancelled, the request being written ends as unknown and those that wait as closed."""
    database = Database()
    database.gate.clear()
    group = GroupCommit(database.transact)
    writer = asyncio.create_task(group.run())
    being_written = group.submit(double, 1)
    await asyncio.sleep(0)
    waiting = group.submit(double, 2)
    writer.cancel()
    await asyncio.wait([writer])
    results = await asyncio.gather(being_written, waiting, return_exceptions=True)

    assert [OutcomeUnknownError, ClosedError] == [type(result) for result in results]


async def test_cancelling_the_loop_while_it_tries_alone_leaves_nobody_waiting() -> None:
    """Those of a failed transaction whose turn to be tried alone has not come end as closed when the loop is cancelled."""
    tries = 0

    async def transact(groups: Groups) -> Sequence[Sequence[Any]]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ValueError("all together")
        return await asyncio.get_running_loop().create_future()

    group = GroupCommit(transact)
    futures = [group.submit(double, number) for number in (1, 2, 3)]
    writer = asyncio.create_task(group.run())
    while tries < 2:
        await asyncio.sleep(0)
    writer.cancel()
    await asyncio.wait([writer])
    done, _ = await asyncio.wait(futures, timeout=1)

    assert set(futures) == done
    assert [OutcomeUnknownError, ClosedError, ClosedError] == [type(future.exception()) for future in futures]


async def test_a_locked_transaction_is_tried_again() -> None:
    """When another process holds the lock, the requests are tried again until it is free."""
    database = Database()
    database.locked_tries = 2
    async with committing(database) as group:
        result = await group.submit(double, 1)
        locked_since = group.locked_since

    assert 2 == result
    assert locked_since is None


async def test_it_says_since_when_it_is_locked() -> None:
    """While another process holds the lock, the moment since which it does is known."""
    database = Database()
    database.locked_tries = 1_000_000
    async with committing(database) as group:
        before = time.monotonic()
        with pytest.raises(StoreBusyError):
            await group.submit(double, 1, patience_seconds=0.0)

        assert group.locked_since is not None
        assert before <= group.locked_since <= time.monotonic()


async def test_each_request_has_its_own_patience() -> None:
    """Of two requests in one locked transaction the impatient one fails, and the other goes on waiting and is written."""
    database = Database()
    database.locked_tries = 1
    group = GroupCommit(database.transact)
    impatient = group.submit(double, 1, patience_seconds=0.0)
    patient = group.submit(double, 2)
    group.close()
    await group.run()
    results = await asyncio.gather(impatient, patient, return_exceptions=True)

    assert isinstance(results[0], StoreBusyError)
    assert isinstance(results[0].__cause__, LockedError)
    assert 4 == results[1]
    assert [[[2]]] == database.transactions


async def test_patience_also_ends_behind_a_full_transaction() -> None:
    """A request that has not even got into the locked transaction fails as well when its patience has ended."""
    database = Database()
    database.locked_tries = 1
    group = GroupCommit(database.transact)
    patient = group.submit(double, 1, rows=MAX_ROWS)
    impatient = group.submit(double, 2, patience_seconds=0.0)
    group.close()
    await group.run()

    assert isinstance(impatient.exception(), StoreBusyError)
    assert 2 == await patient


async def test_a_lock_met_while_trying_alone_is_waited_for() -> None:
    """A request that meets a lock when it is tried alone waits for its turn, and is written."""

    class LockedOnce(Database):
        async def transact(self, groups: Groups) -> Sequence[Sequence[Any]]:
            if self.count_ended() == 1:
                self.transactions.append([])
                raise LockedError("database is locked")
            return await super().transact(groups)

    database = LockedOnce()
    group = GroupCommit(database.transact)
    futures = [group.submit(negate, number) for number in (1, 13)]
    group.close()
    await group.run()
    results = await asyncio.gather(*futures, return_exceptions=True)

    assert [-1, "13 is refused"] == [result if isinstance(result, int) else str(result) for result in results]
