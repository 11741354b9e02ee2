"""What the crash tests kill: a process with a service. Run by them, as `crash_child.py MODE DATABASE ...`.

`crash DATABASE JOURNAL LIFE`: an aiohttp application with the service embedded, which adds, manages and handles tasks for
as long as it lives. `drain DATABASE JOURNAL LIFE`: the same application, which ends when nothing is left to do. Both say
"ready" and wait for a line on stdin before they touch anything, so that the next process can be ready while one still
lives. `crash` may be followed by the name of a moment and a number: then it kills itself there (see crash_traps.py).

The *journal* is a file that outlives them, to which each appends a line for each thing that has happened, in the order in
which it did. A handler writes `start NAME ATTEMPT`, and `ok` or `fail` before it answers. Whoever adds or manages writes
down what was done *after* the call has returned (an ack), and what may be done in part before it.

`dispatch DATABASE TARGET`: nothing but a service that delivers to a target, until stdin ends.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import zlib
from collections.abc import Awaitable, Callable

from aiohttp import web
from crash_traps import NO_TRAP, Trap, trapped_service

from aiotaskqueue import Queue, QueueConfig, Task, TaskQueueService, TaskRetryOptions
from aiotaskqueue.errors import BadTaskStateError, TaskAlreadyExistsError, TombstonedTaskError, UnknownTaskError
from aiotaskqueue.web.aiohttp import init_app, task

ADDERS = 4
DAY_SECONDS = 86_400

# Names that two lives try to give again and again; each is accepted once.
POOL = 60

# As users get them. `held` is paused and resumed, `scratch` is purged.
QUEUES = [QueueConfig("default"), QueueConfig("held"), QueueConfig("scratch")]

# For `dispatch`, where the crashes are nobody's fault: no task may be given up for them.
CONFIG = QueueConfig("default", crash_limit=10_000)

# Half of what the queue allows: two processes have room side by side.
PLACES = 16


def note(*words: object) -> None:
    """Write a line, in one write; from then on it is known."""
    os.write(sys.stdout.fileno(), f"{' '.join(map(str, words))}\n".encode())


# --- the worker ----------------------------------------------------------------------------------------------------


def make_app(trap: Trap, chance: random.Random, longest_seconds: float) -> web.Application:
    """Return a worker that writes down every attempt before it answers, takes its time, and fails as its URL says."""

    @task
    async def work(request: web.Request) -> web.Response:
        name, attempt = request.headers["X-AppEngine-TaskName"], request.headers["X-TaskQueue-Attempt"]
        note("start", name, attempt)
        trap.reach("F5")
        await asyncio.sleep(chance.uniform(0.0, longest_seconds))
        if zlib.crc32(await request.read()) != int(request.match_info["crc"]):
            note("garbled", name, attempt)
        if int(request.headers["X-AppEngine-TaskRetryCount"]) < int(request.match_info["fails"]):
            note("fail", name, attempt)
            return web.Response(status=500)
        note("ok", name, attempt)
        return web.Response()

    app = web.Application()
    app.router.add_post("/worker/{crc}/{fails}", work)
    return app


# --- its users -----------------------------------------------------------------------------------------------------


class User:
    """Does one thing after the other to the queues, as users and operators do, and writes down what is done."""

    def __init__(self, service: TaskQueueService, life: int, chance: random.Random) -> None:
        self._default = service.queue("default")
        self._held = service.queue("held")
        self._scratch = service.queue("scratch")
        self._life = life
        self._chance = chance
        self._numbers = iter(range(sys.maxsize))
        self._known: list[str] = []
        self._parked: list[str] = []

    async def act_for_ever(self, *, is_operator: bool) -> None:
        """Add and manage at random; only one at a time may purge, pause and resume, or nobody knows what was last."""
        weights: dict[Callable[[], Awaitable[None]], int] = {
            self._add_some: 24,
            self._add_named: 6,
            self._add_parked: 2,
            self._add_doomed: 2,
            self._add_to_held: 3,
            self._add_to_scratch: 3,
            self._delete: 5,
            self._run: 2,
            self._revive: 1,
        }
        if is_operator:
            weights |= {self._purge: 2, self._pause: 2, self._resume: 3}
        while True:
            [act] = self._chance.choices([*weights], [*weights.values()])
            await act()
            await asyncio.sleep(self._chance.uniform(0.0, 0.03))

    def _task(self, name: str | None = None, *, fails: int = 0, countdown: float | None = None, limit: int | None = None) -> Task:
        payload = self._chance.randbytes(self._chance.choice([0, 50, 50, 3000, 20_000]))
        options = None if limit is None else TaskRetryOptions(task_retry_limit=limit)
        url = f"/worker/{zlib.crc32(payload)}/{fails}"
        return Task(payload, url=url, name=name, countdown=countdown, retry_options=options)

    def _new_name(self, kind: str) -> str:
        return f"{kind}-{self._life}-{next(self._numbers)}"

    async def _add_some(self) -> None:
        tasks = [self._task(fails=self._chance.choice([0, 0, 0, 0, 1, 2])) for _ in range(self._chance.choice([1, 1, 3]))]
        await self._default.add(tasks)
        names = [task.name for task in tasks if task.name]
        note("added", "default", *names)
        self._known += names

    async def _add_named(self) -> None:
        name = f"pool-{self._life - self._chance.choice([0, 1])}-{self._chance.randrange(POOL)}"
        try:
            await self._default.add(self._task(name))
        except (TaskAlreadyExistsError, TombstonedTaskError):
            return
        note("added", "default", name)
        self._known.append(name)

    async def _add_parked(self) -> None:
        name = self._new_name("parked")
        await self._default.add(self._task(name, countdown=DAY_SECONDS))
        note("added", "default", name)
        self._known.append(name)
        self._parked.append(name)

    async def _add_doomed(self) -> None:
        name = self._new_name("doomed")
        await self._default.add(self._task(name, fails=sys.maxsize, limit=1))
        note("added", "default", name)
        self._known.append(name)

    async def _add_to_held(self) -> None:
        name = self._new_name("held")
        await self._held.add(self._task(name))
        note("added", "held", name)

    async def _add_to_scratch(self) -> None:
        name = self._new_name("scratch")
        note("adding", name)
        await self._scratch.add(self._task(name, countdown=self._chance.choice([None, DAY_SECONDS])))
        note("added", "scratch", name)

    async def _delete(self) -> None:
        if self._known:
            name = self._known.pop(self._chance.randrange(len(self._known)))
            note("deleting", name)
            await self._default.delete_tasks_by_name([name])
            note("deleted", name)

    async def _run(self) -> None:
        if self._parked:
            await self.run(self._parked.pop())

    async def run(self, name: str) -> None:
        """Run a parked task now, unless it is gone."""
        note("running", name)
        try:
            await self._default.run_task(name)
        except UnknownTaskError:
            return
        note("ran", name)

    async def _revive(self) -> None:
        async for stored in self._default.dead_tasks(limit=1):
            await self.revive(self._default, stored.task)

    async def revive(self, queue: Queue, dead: Task) -> None:
        """Give a task that was given up another chance, at which it will not fail, unless somebody else has."""
        note("reviving", dead.name)
        try:
            await queue.revive(dead.name or "", url=f"/worker/{zlib.crc32(dead.payload or b'')}/0")
        except (UnknownTaskError, BadTaskStateError):
            return
        note("revived", dead.name)

    async def _purge(self) -> None:
        note("purging")
        await self._scratch.purge()
        note("purged")

    async def _pause(self) -> None:
        note("pausing")
        await self._held.pause()
        note("paused")

    async def _resume(self) -> None:
        note("resuming")
        await self._held.resume()
        note("resumed")

    async def finish(self, service: TaskQueueService) -> None:
        """See to it that nothing is left to do, and return then."""
        await self._resume()
        await self._purge()
        for name in [stored.name async for stored in self._default.list_tasks(name_prefix="parked-")]:
            await self.run(name)
        while True:
            for queue in (self._default, self._held):
                for dead in [stored.task async for stored in queue.dead_tasks()]:
                    await self.revive(queue, dead)
            if not sum(statistics.tasks for statistics in await service.statistics()):
                return
            await asyncio.sleep(0.02)


# --- the process ---------------------------------------------------------------------------------------------------


async def live(mode: str, database: str, life: int, trap: Trap, operators: int) -> None:
    """Run the application until nothing is left to do, or until killed."""
    chance = random.Random(life)
    app = make_app(trap, chance, 0.5 if trap.moment == "F12" else 0.03)
    if trap is NO_TRAP:
        service = TaskQueueService(database, queues=QUEUES, max_concurrent_deliveries=PLACES)
    else:
        service = trapped_service(database, trap, app, queues=QUEUES, max_concurrent_deliveries=PLACES)
    init_app(app, service)
    runner = web.AppRunner(app)
    await runner.setup()
    note("began", os.getpid())
    user = User(service, life, chance)
    if mode == "crash":
        async with asyncio.TaskGroup() as users:
            for number in range(ADDERS):
                users.create_task(user.act_for_ever(is_operator=number < operators))
            if trap.moment == "F12":
                await asyncio.sleep(chance.uniform(0.1, 0.4))
                await trap.drain(service)
    await user.finish(service)
    await runner.cleanup()


async def dispatch(database: str, target: str) -> None:
    """Deliver until stdin ends; print a line when that begins."""
    async with TaskQueueService(database, queues=[CONFIG], target=target, max_concurrent_deliveries=PLACES):
        note("ready")
        await asyncio.to_thread(sys.stdin.read)


def wait_for_the_word(journal: str) -> str:
    """Say that all is loaded, return the line that is the answer; from then on stdout is the journal."""
    note("ready")
    line = sys.stdin.readline()
    os.dup2(os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), sys.stdout.fileno())
    return line


def main(mode: str, database: str, *arguments: str) -> None:
    """Do what the mode says."""
    if mode == "dispatch":
        asyncio.run(dispatch(database, arguments[0]))
        return
    journal, life, *moment = arguments
    if line := wait_for_the_word(journal):
        # Beside another process nobody pauses and purges: two who do so at once cannot know what was last.
        asyncio.run(live(mode, database, int(life), Trap(*moment) if moment else NO_TRAP, operators=int("alone" in line)))


if __name__ == "__main__":
    main(*sys.argv[1:])
