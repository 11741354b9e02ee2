"""TaskQueueService: owns everything that runs. Opens, starts, hands out queues, drains, closes.

Theory of operation. `start` spawns one asyncio task, the *host*; every loop of the service lives in a task group inside
of it. So `start` and `aclose` may be called from different tasks, which an anyio group would not survive, and a cancelled
caller leaves the host alone. The host opens the store, then everything that stands on it, waits to be told to stop, and
takes all down again in reverse order, whatever happens. That task is the only one that this package makes outside of a
group.

The stop has a time table, which is real time whatever clock the service has: attempts in flight get the drain's time,
then what is unwritten gets CLOSE_SECONDS, then everything is closed. The service counts as closed once the drain is over,
not before: a handler that is drained may still add tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import random
import secrets as secret_numbers
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

import anyio
import attrs
from aiohttp import web

from aiotaskqueue import _current
from aiotaskqueue._adding import Adding, find_queue
from aiotaskqueue._clock import Clock, SystemClock
from aiotaskqueue._config import QueueConfig
from aiotaskqueue._config_files import load_queues
from aiotaskqueue._databases import Durability, make_store
from aiotaskqueue._dispatcher import Dispatcher
from aiotaskqueue._maintenance import Maintenance
from aiotaskqueue._managing import Managing
from aiotaskqueue._queue import Queue, QueueStatistics
from aiotaskqueue._record import NameGenerator
from aiotaskqueue._service_arguments import check_arguments, check_timeout
from aiotaskqueue._supervisor import supervise
from aiotaskqueue._targets import Embedding, Target, Targets
from aiotaskqueue._task import Task
from aiotaskqueue._task_arguments import shorten
from aiotaskqueue.delivery._base import Delivery
from aiotaskqueue.delivery.asgi import ASGIApp
from aiotaskqueue.errors import ClosedError, ConfigError, ForkedProcessError, NotStartedError, StoreError, WrongLoopError
from aiotaskqueue.signing import KeyRing
from aiotaskqueue.stores._base import Store, StoredStatistics
from aiotaskqueue.worker import AccessCheck

logger = logging.getLogger("aiotaskqueue")

SECRET_BYTES = 32
DRAIN_SECONDS = 10.0

# Beyond the drain, for writing the last outcomes. With what closing files and sockets may take, the second of `aclose`.
CLOSE_SECONDS = 0.6

_CLOSED = "The service is closed; make and start a new TaskQueueService."
_FORKED = "The service was started before a fork; start it in the child, not at import."
_NO_TARGET = "There is no target: tasks are kept and not delivered; give TaskQueueService(target=...) or call init_app."

# The service whose host has started what runs in this context: a loop, a lane, an application that is delivered to.
_inside_of: ContextVar[TaskQueueService | None] = ContextVar("aiotaskqueue_inside_of", default=None)


@attrs.frozen
class Health:
    """Whether a service does all of its work."""

    is_ok: bool
    reasons: tuple[str, ...] = ()
    """Why not, a sentence each."""
    pauses: tuple[str, ...] = ()
    """What somebody has paused, a sentence each; that is no fault."""
    warnings: tuple[str, ...] = ()
    """What may become a fault, a sentence each."""


class TaskQueueService:
    """A durable task queue inside of your application.

    Args:
        database: Path of the SQLite file (also ``sqlite:///relative.db``, ``sqlite:////absolute.db``); ``":memory:"`` is for tests.
        queues: Path of a queue.yaml or queue.toml, an iterable of QueueConfig, or None: just the queue ``default``.
        target: Where tasks go: a base URL; an aiohttp Application, which is run for this purpose; an ASGI application,
            which is called and whose lifespan somebody else runs; None: the application that embeds the service
            (``init_app``, ``lifespan``).
        targets: Named targets, for ``Task(target=...)`` and ``QueueConfig(target=...)``.
        secrets: Signing keys, newest first: bytes (32 at least) or base64url text; None: one is made and kept in the store.
        dispatch: False: this process adds and inspects, and delivers nothing.
        eager: True: `add` returns after the first attempt of a task that is due has ended; for development and tests.
        durability: ``"full"`` survives a loss of power, ``"normal"`` the end of the process.
        max_concurrent_deliveries: How many tasks are delivered at once by this process, over all queues.
        clock: For tests (`aiotaskqueue.testing.VirtualClock`).
        delivery: Replaces every target, for tests (`aiotaskqueue.testing.RecordingDelivery`).
        store: Replaces the database.
        seed: Fixes jitter and generated names.

    Raises:
        ConfigError: An argument is wrong.
        MalformedQueueConfiguration: The file of queues is wrong.

    Example:
        ``async with TaskQueueService("tasks.db", target="http://127.0.0.1:8080") as service: ...``
    """

    def __init__(
        self,
        database: str | os.PathLike[str] = "tasks.db",
        *,
        queues: str | os.PathLike[str] | Iterable[QueueConfig] | None = None,
        target: Target | None = None,
        targets: Mapping[str, Target] | None = None,
        secrets: Sequence[bytes | str] | None = None,
        dispatch: bool = True,
        eager: bool = False,
        durability: Durability = "full",
        max_concurrent_deliveries: int = 64,
        clock: Clock | None = None,
        delivery: Delivery | None = None,
        store: Store | None = None,
        seed: int | None = None,
    ) -> None:
        check_arguments(max_concurrent_deliveries=max_concurrent_deliveries, dispatch=dispatch, eager=eager, seed=seed)
        check_arguments(clock=clock, delivery=delivery, store=store)
        self._database = database
        self._store = make_store(database, durability) if store is None else store
        self._queues = {config.name: config for config in load_queues(queues)}
        self._keys = None if secrets is None else KeyRing(secrets)
        self._clock = SystemClock() if clock is None else clock
        self._dispatches = dispatch
        self._targets = Targets(target, {} if targets is None else targets, replacement=delivery, queues=self._queues)
        self._rng = random.Random(seed)
        self._places = max_concurrent_deliveries
        self.access = AccessCheck(self._keys, self._clock)
        """What the web adapters ask about every request."""
        self._managing = Managing(
            store=self._store, clock=self._clock, queues=self._queues, on_change=self._notice_change, on_forced=self._notice_forced
        )
        self._adding = Adding(
            store=self._store,
            clock=self._clock,
            queues=self._queues,
            target_names=self._targets.names,
            names=NameGenerator(seed),
            is_eager=eager,
        )
        self._dispatcher: Dispatcher | None = None
        self._maintenance: Maintenance | None = None
        self._orphan_queues: Sequence[str] = ()
        self._host: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._started: asyncio.Future[None] | None = None
        self._stopping: asyncio.Event | None = None
        self._drain_seconds = DRAIN_SECONDS
        self._write_until = 0.0
        self._is_paused = False
        self._is_closed = False

    # --- life ---

    async def start(self) -> None:
        """Open the store and start delivering; returns when it runs.

        Twice, or from several tasks at once, does it once, and every call returns when it runs. A start that is cancelled
        closes the service and leaves nothing behind; so does one that fails.

        Raises:
            ConfigError, StoreError: It cannot start.
            ClosedError: It was closed, before or meanwhile; make a new service.
            WrongLoopError, ForkedProcessError: It was started in another event loop or before a fork.
        """
        if self._is_closed or (self._stopping is not None and self._stopping.is_set()):
            raise ClosedError(_CLOSED)
        if self._host is None:
            self._loop = asyncio.get_running_loop()
            self._pid = os.getpid()
            self._started = self._loop.create_future()
            self._stopping = asyncio.Event()
            # An empty context: what the caller has in its own (a request, a trace) is none of the loops' business.
            self._host = asyncio.create_task(self._run(), name="aiotaskqueue", context=contextvars.Context())
        self._check_place()
        if _inside_of.get() is self:
            raise ConfigError("The target starts the service, which starts its target; call init_app(app, service) without a target.")
        assert self._started is not None
        try:
            await asyncio.shield(self._started)
        except BaseException:
            await self.aclose(timeout_seconds=0.0)
            raise

    async def drain(self, timeout_seconds: float = DRAIN_SECONDS) -> None:
        """Start no more attempts; wait for those in flight, and give up the rest after `timeout_seconds`.

        Tasks can still be added; they are delivered after the next start. Twice is fine, and so is a service that is not
        started or is closed.

        Args:
            timeout_seconds: How long attempts in flight may go on, in seconds. What is given up is delivered again after
                the next start and was no attempt. 0 to 86,400.

        Raises:
            TypeError, InvalidArgumentError: The time is no number, or out of range.
            WrongLoopError, ForkedProcessError: The service runs in another event loop or process.
        """
        check_timeout(timeout_seconds)
        if self._is_running:
            self._check_place()
            await self._drain(timeout_seconds)

    async def aclose(self, timeout_seconds: float = DRAIN_SECONDS) -> None:
        """Drain, then close everything; takes at most `timeout_seconds` and a second.

        No thread, task, socket or lock is left when this returns. What was not finished is delivered after the next
        start. Twice is fine, also at once: every call waits for the end, and the first one's time counts. While the
        service starts, this ends the start, which raises ClosedError. A cancelled caller waits for the end all the same,
        and is then cancelled. A service that was never started is closed at once, and can no longer be started.

        Called by a handler that runs inside of this service (no port between: ``init_app``, an application as target), it
        asks for the end and returns at once: the service closes when the handler has ended.

        Args:
            timeout_seconds: As for `drain`.

        Raises:
            TypeError, InvalidArgumentError: The time is no number, or out of range; nothing is closed.
            WrongLoopError, ForkedProcessError: The service runs in another event loop or process.
        """
        check_timeout(timeout_seconds)
        if self._host is None or self._host.done():
            self._is_closed = True
            return
        self._check_place()
        self._stop(timeout_seconds)
        if _inside_of.get() is not self:
            await _outlast(self._host)

    def _stop(self, timeout_seconds: float) -> None:
        assert self._host is not None
        assert self._started is not None
        assert self._stopping is not None
        if self._stopping.is_set():
            return
        self._drain_seconds = timeout_seconds
        self._write_until = SystemClock().monotonic() + timeout_seconds + CLOSE_SECONDS
        self._stopping.set()
        if not self._started.done():
            # Nothing to drain yet; and the start may be waiting for a lock that somebody else holds for long.
            self._host.cancel()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        await self.aclose()

    # --- queues ---

    def queue(self, name: str = "default") -> Queue:
        """Return the queue of that name, of this service.

        Raises:
            UnknownQueueError: It is not configured; the message names the nearest ones.
        """
        find_queue(self._queues, name)
        return Queue._of(self, name)

    async def add(
        self, payload: str | bytes | None = None, *, queue_name: str = "default", transactional: bool = False, **task_arguments: Any
    ) -> Task:
        """Make a Task of the arguments and add it; see `Task` and `Queue.add`."""
        task = Task(payload, **task_arguments)
        await self.add_tasks(queue_name, [task], transactional)
        return task

    async def add_tasks(self, queue_name: str, tasks: Sequence[Task], transactional: bool = False) -> None:
        """Add tasks to the queue of that name; see `Queue.add`."""
        self._check_usable()
        await self._adding.add(queue_name, tasks, transactional)

    @property
    def managing(self) -> Managing:
        """What manages the tasks that are stored, for `Queue`; raises if the service cannot be used."""
        self._check_usable()
        return self._managing

    async def statistics(self) -> list[QueueStatistics]:
        """Return the figures of all configured queues, by name."""
        return await QueueStatistics.fetch([self.queue(name) for name in sorted(self._queues)])

    async def fetch_stored_statistics(self, queue_names: Sequence[str]) -> Sequence[StoredStatistics]:
        """Return the figures of the queues of these names, in order."""
        self._check_usable()
        return await self._store.fetch_statistics(queue_names, now_usec=self._clock.time_usec())

    def find_rate(self, queue_name: str) -> float | None:
        """Return the rate per second that is enforced for a queue; None: no limit, or no such queue."""
        config = self._queues.get(queue_name)
        return None if config is None else config.rate_per_second

    async def get_filtered_tasks(
        self, url: str | None = None, name: str | None = None, queue_names: str | Iterable[str] | None = None
    ) -> list[Task]:
        """Return the tasks that wait or run, for tests: by queue name, then by ETA and name.

        Args:
            url: Only tasks of exactly this URL, query included.
            name: Only the task of exactly this name.
            queue_names: Only tasks of these queues; unknown ones are ignored. None: of all queues.

        Raises:
            TypeError: `queue_names` is no name and no iterable.
            NotStartedError, ClosedError: The service is not running.

        Source: GAE ``testbed``'s ``get_filtered_tasks``; SPEC 7.1.
        """
        wanted = [queue_names] if isinstance(queue_names, str) else self._queues if queue_names is None else list(queue_names)
        names = sorted(queue_name for queue_name in self._queues if queue_name in wanted)
        tasks = [task for queue_name in names for task in await self.managing.list_live(queue_name)]
        return [task for task in tasks if (url is None or task.url == url) and (name is None or task.name == name)]

    # --- state ---

    async def run_until_idle(self) -> None:
        """Deliver what is due, and what that adds, and return; the time of a test clock does not move.

        Tasks with a later ETA, retries included, and those that wait for a token are left.
        """
        self._check_usable()
        if self._dispatcher is not None:
            with self._clock.released():
                await self._dispatcher.wait_until_idle()

    def health(self) -> Health:
        """Return whether everything works, and if not, why."""
        reasons = []
        if not self._is_running:
            reasons.append("The service is not running.")
        elif os.getpid() != self._pid:
            reasons.append(_FORKED)
        elif self._dispatches and self._dispatcher is None:
            reasons.append(_NO_TARGET)
        trouble = self._store.trouble or (None if self._dispatcher is None else self._dispatcher.trouble)
        if trouble is not None:
            reasons.append(str(trouble))
        reasons += [f"Queue {name!r} has tasks but is not configured; they are kept and not delivered." for name in self._orphan_queues]
        return Health(not reasons, tuple(reasons), self._pauses(), tuple(self._store.warnings))

    def _pauses(self) -> tuple[str, ...]:
        queues = () if self._dispatcher is None else self._dispatcher.paused_queues
        pauses = [f"Queue {name!r} is paused; resume it with Queue.resume." for name in queues]
        return (*(["This process is paused; resume it with TaskQueueService.resume."] if self._is_paused else []), *pauses)

    async def pause(self) -> None:
        """Start no more attempts in this process, until `resume`; other processes go on. Twice is fine.

        What is running finishes, and tasks can be added. See `Queue.pause` for a queue in all processes.

        Raises:
            NotStartedError, ClosedError: The service is not running.
        """
        self._set_paused(True)

    async def resume(self) -> None:
        """Start attempts in this process again; where it is not paused it is fine.

        Raises:
            NotStartedError, ClosedError: The service is not running.
        """
        self._set_paused(False)

    def _set_paused(self, is_paused: bool) -> None:
        self._check_usable()
        self._is_paused = is_paused
        if self._dispatcher is not None:
            self._dispatcher.pause(is_paused)

    def current(self) -> AbstractContextManager[None]:
        """Make this the current service for a ``with`` block: where several run, `Queue("name")` needs to know which."""
        return _current.use(self)

    @property
    def description(self) -> str:
        """A few words that tell this service from others in error messages."""
        database = os.fspath(self._database) if isinstance(self._database, os.PathLike) else self._database
        return f"TaskQueueService({shorten(database)})"

    @property
    def clock(self) -> Clock:
        """What tells this service the time."""
        return self._clock

    def serve_app(self, app: web.Application | ASGIApp, base_url: str, state: Mapping[str, Any] | None = None) -> None:
        """Note that this application is run elsewhere and embeds the service; for the web adapters, before the start.

        Without a target it is what tasks are delivered to.

        Args:
            app: The application.
            base_url: Gives the Host header, and a path that goes before every task's URL.
            state: For an ASGI application: what its lifespan yields; each delivery gets a copy of what is in it by then.

        Raises:
            ConfigError: The service is started or closed, or another application embeds it.
        """
        if self._host is not None or self._is_closed:
            raise ConfigError("The service was started before; call init_app first, which starts it with the application.")
        if self._targets.is_embedded:
            raise ConfigError("The service belongs to another application, which starts and closes it; make one service for each.")
        self._targets.serve(Embedding(app, base_url, {} if state is None else state))

    # --- inside: the host ---

    async def _run(self) -> None:
        assert self._started is not None
        assert self._stopping is not None
        _inside_of.set(self)
        try:
            await self._store.open(now_usec=self._clock.time_usec())
            async with anyio.create_task_group() as writing:
                writing.start_soon(self._run_store)
                await self._prepare()
                await self._run_loops()
                self._is_closed = True
                self._store.stop()
                give_up = SystemClock().call_at(self._write_until, writing.cancel_scope.cancel)
            give_up.cancel()
        except BaseException as exc:
            if not self._started.done():
                self._started.set_exception(ClosedError(_CLOSED) if self._stopping.is_set() else _first_of(exc))
                # Whoever waited for it may have been cancelled; then nobody asks, and asyncio would complain.
                self._started.exception()
            elif not isinstance(exc, asyncio.CancelledError):
                logger.exception("The service failed and is closed.")
        finally:
            self._is_closed = True
            _current.unregister(self)
            await self._close_parts()

    async def _run_store(self) -> None:
        await self._store.run(on_change=self._notice_change, on_orphans=self._notice_orphans)

    async def _run_loops(self) -> None:
        """Start what stands on the store, wait for the stop, drain."""
        assert self._started is not None
        assert self._stopping is not None
        assert self._maintenance is not None
        async with anyio.create_task_group() as loops:
            loops.start_soon(supervise, "rescue of orphans", self._maintenance.run_rescues, self._clock)
            loops.start_soon(supervise, "sweep", self._maintenance.run_sweeps, self._clock)
            if self._dispatcher is not None:
                loops.start_soon(self._dispatcher.run)
            _current.register(self)
            self._started.set_result(None)
            await self._stopping.wait()
            await self._drain(self._drain_seconds)
            loops.cancel_scope.cancel()

    async def _drain(self, timeout_seconds: float) -> None:
        if self._dispatcher is None:
            return
        async with anyio.create_task_group() as announcing:
            # Beside the drain and not before it: somebody else may hold the store's lock.
            announcing.start_soon(self._announce_drain)
            await self._dispatcher.drain(timeout_seconds)
            announcing.cancel_scope.cancel()

    async def _announce_drain(self) -> None:
        with contextlib.suppress(StoreError, ClosedError):
            await self._store.announce_drain()

    async def _prepare(self) -> None:
        now_usec = self._clock.time_usec()
        configs = tuple(self._queues.values())
        self._orphan_queues = await self._store.configure(configs, now_usec=now_usec)
        for name in self._orphan_queues:
            logger.warning("Queue %r has tasks but is not configured; they are kept and not delivered.", name)
        if self._keys is None:
            self._keys = KeyRing(await self._store.fetch_secrets(secret_numbers.token_bytes(SECRET_BYTES), now_usec=now_usec))
            self.access.use_keys(self._keys)
        if self._dispatches or self._targets.is_embedded:
            await self._check_keys(self._keys)
        await self._targets.open(self._keys, self._clock)
        if self._dispatches and self._targets.deliveries:
            self._dispatcher = self._adding.dispatcher = Dispatcher(
                store=self._store,
                clock=self._clock,
                queues={config.name: config for config in configs if config.mode == "push"},
                route=self._targets.route,
                places=self._places,
                rng=self._rng,
            )
        elif self._dispatches:
            logger.warning(_NO_TARGET)
        self._maintenance = Maintenance(store=self._store, clock=self._clock, queues=configs, on_rescue=self._notice_change)
        await self._maintenance.rescue()

    async def _check_keys(self, keys: KeyRing) -> None:
        """Check that what one process signs the others can verify; overlapping lists are how keys are changed (RELIABILITY 46)."""
        for others in await self._store.announce_keys(keys.keyids):
            if not set(others) & set(keys.keyids):
                raise ConfigError(
                    f"This process signs with key {keys.keyid!r}, another one on the same database with key {others[0]!r}, and neither "
                    "knows the other's; give both secrets to both, the newest first, while you change them."
                )

    async def _close_parts(self) -> None:
        for close in (*[delivery.aclose for delivery in self._targets.deliveries], self._store.aclose):
            try:
                await close()
            except asyncio.CancelledError:
                # The event loop is being shut down. It says so once, and the other parts are to be closed all the same.
                continue
            except Exception:
                logger.exception("A part of the service could not be closed.")

    def _notice_change(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.notify()

    def _notice_forced(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.notify_forced()

    def _notice_orphans(self) -> None:
        if self._maintenance is not None:
            self._maintenance.notice_orphans()

    @property
    def _is_running(self) -> bool:
        return self._started is not None and self._started.done() and not self._is_closed

    def _check_usable(self) -> None:
        if self._is_closed:
            raise ClosedError(_CLOSED)
        if not self._is_running:
            raise NotStartedError("The service is not started; use 'async with service', 'await service.start()' or init_app.")
        self._check_place()

    def _check_place(self) -> None:
        """Check that the caller is where the service was started: the same process, the same event loop."""
        if os.getpid() != self._pid:
            raise ForkedProcessError(_FORKED)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is not self._loop:
            raise WrongLoopError("The service runs in another event loop; call it from the loop and thread in which it was started.")


def _first_of(exc: BaseException) -> BaseException:
    """Return the error that a task group wrapped."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


async def _outlast(task: asyncio.Task[None]) -> None:
    """Wait for `task` to the end, cancelled or not; then be cancelled if one came.

    An anyio shield does not stop a native cancellation, and a native one does not stop anyio's: both are needed
    (RELIABILITY A1, fact 9).
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            with anyio.CancelScope(shield=True):
                await asyncio.wait({task})
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled


async def add(
    payload: str | bytes | None = None, *, queue_name: str = "default", transactional: bool = False, **task_arguments: Any
) -> Task:
    """Make a Task of the arguments and add it to a queue of the current service.

    Args:
        payload: As for Task.
        queue_name: The queue.
        transactional: As for `Queue.add`.
        **task_arguments: Arguments of Task: url, params, name, countdown, ...

    Returns:
        The task, stored.

    Raises:
        NotStartedError: No service is running, or several are and none of them is the current one.
        Error: Whatever Task and `Queue.add` raise.

    Source: GAE ``taskqueue.add``.
    """
    task = Task(payload, **task_arguments)
    return await task.add(queue_name, transactional)
