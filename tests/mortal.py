"""A service that can die as its process would: what it was doing is cut, its database is left as it is, and its lock is free."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiosqlite

from aiotaskqueue import TaskQueueService
from aiotaskqueue.stores.sqlite import SQLiteStore


class MortalStore(SQLiteStore):
    """A store whose process can die, also in the middle of a write.

    What a dead process leaves is what SQLite has committed, its row among the processes, and a side file that nobody locks.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), durability="normal")
        self.fate: str | None = None
        """What happens at the next write: "unwritten": the process dies before it; "unheard": after it, before anybody hears of it."""
        self.has_died = asyncio.Event()

    async def _transact(self, groups: Sequence[Any]) -> Sequence[Sequence[Any]]:
        if self.fate == "unwritten":
            await self._die()
        results = await super()._transact(groups)
        if self.fate == "unheard":
            await self._die()
        return results

    async def _die(self) -> None:
        self.has_died.set()
        await asyncio.Future()

    async def _sign_off(self, writer: aiosqlite.Connection) -> None:
        if not self.has_died.is_set():
            await super()._sign_off(writer)

    def abandon(self) -> None:
        """Let go of the lock as the kernel does when a process ends: the side file stays."""
        self.has_died.set()
        assert self._process._lock is not None
        self._process._lock.abandon()


async def kill(service: TaskQueueService) -> None:
    """End a service that has a mortal store without a drain, and without a word to the database."""
    store, host = service._store, service._host
    assert isinstance(store, MortalStore)
    assert host is not None
    store.abandon()
    host.cancel()
    await asyncio.wait({host})
