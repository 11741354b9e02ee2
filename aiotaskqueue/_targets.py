"""Targets: where the tasks of a service go, by name, and the deliveries that carry them there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import attrs
from aiohttp import web

from aiotaskqueue._clock import Clock
from aiotaskqueue._config import QueueConfig
from aiotaskqueue._record import TaskRecord
from aiotaskqueue._task_arguments import shorten
from aiotaskqueue.delivery._base import Answer, Delivery, FailureReason, NoAnswer
from aiotaskqueue.delivery.aiohttp_app import AppDelivery
from aiotaskqueue.delivery.asgi import ASGIApp, ASGIDelivery
from aiotaskqueue.delivery.http import HTTPDelivery
from aiotaskqueue.errors import ConfigError
from aiotaskqueue.signing import KeyRing

Target: TypeAlias = str | web.Application | ASGIApp


@attrs.frozen(eq=False)
class Embedding:
    """An application that embeds the service, and how it is delivered to."""

    app: web.Application | ASGIApp
    base_url: str = attrs.field(repr=False)
    state: Mapping[str, Any] = attrs.field(repr=False)
    """For an ASGI application: what its lifespan has yielded by then."""


class Targets:
    """Where the tasks of one service go.

    Args:
        default: Where tasks go that name no target: a base URL, an aiohttp Application, which is run for this purpose, or
            an ASGI application, which is called; None: to the application that embeds the service (`serve`).
        named: Further ones by name.
        replacement: Takes the place of all of them.
        queues: All configured queues by name.

    Raises:
        ConfigError: One is no target or has no name, or a queue's target is not among the named ones.
    """

    def __init__(
        self, default: Target | None, named: Mapping[str, Target], *, replacement: Delivery | None, queues: Mapping[str, QueueConfig]
    ) -> None:
        self._default = default
        self._named = _check_names(named)
        self._replacement = replacement
        self._queues = queues
        self._served: Embedding | None = None
        self._deliveries: dict[str | None, Delivery] = {}
        self._check()

    @property
    def names(self) -> Collection[str]:
        """What tasks and queues may name."""
        return self._named.keys()

    @property
    def is_embedded(self) -> bool:
        """Whether an application embeds the service."""
        return self._served is not None

    @property
    def deliveries(self) -> Collection[Delivery]:
        """Those that `open` has made; none: nothing can be delivered."""
        return self._deliveries.values()

    def serve(self, embedding: Embedding) -> None:
        """Note which application embeds the service; without another target it is the default one.

        Raises:
            ConfigError: Its base URL is none, or it is an aiohttp Application and this system has no UNIX sockets.
        """
        self._served = embedding
        if self._default is None and self._replacement is None:
            self._make(embedding.app, None)

    async def open(self, keys: KeyRing, clock: Clock) -> None:
        """Make and open the deliveries; `keys` sign what they carry."""
        if self._replacement is not None:
            self._deliveries[None] = self._replacement
        else:
            self._make_all(keys)
        for delivery in self._deliveries.values():
            await delivery.open(clock)

    def route(self, record: TaskRecord) -> Delivery:
        """Return the delivery for a task; a queue's target wins over the task's (SPEC 4.2)."""
        if self._replacement is not None:
            return self._replacement
        name = self._queues[record.queue_name].target or record.target
        return self._deliveries.get(name) or self._deliveries[None]

    def _check(self) -> None:
        """Make every delivery once, so that a bad target is an error here and not at the start."""
        for target in (*self._named.values(), *([] if self._default is None else [self._default])):
            self._make(target, None)
        for config in self._queues.values():
            if config.target is not None and config.target not in self._named:
                raise ConfigError(f"Queue {config.name!r} has target {config.target!r}, which is not in targets={sorted(self._named)}.")

    def _make_all(self, keys: KeyRing) -> None:
        self._deliveries.update({name: self._make(target, keys) for name, target in self._named.items()})
        default = self._served.app if self._default is None and self._served is not None else self._default
        if default is not None:
            self._deliveries[None] = self._make(default, keys)
        elif self._deliveries:
            self._deliveries[None] = _NoTarget()

    def _make(self, target: Target, keys: KeyRing | None) -> Delivery:
        served = self._served if self._served is not None and target is self._served.app else None
        if isinstance(target, str):
            return HTTPDelivery(target, keys=keys)
        if isinstance(target, web.Application):
            base_url = "http://localhost" if served is None else served.base_url
            return AppDelivery(target, is_run_elsewhere=served is not None, base_url=base_url, keys=keys)
        if not callable(target) or isinstance(target, type):
            kind = type(target).__name__
            raise ConfigError(f"A target is a base URL, an aiohttp Application or an ASGI application, not an object of type {kind}.")
        return ASGIDelivery(target) if served is None else ASGIDelivery(target, served.base_url, state=served.state)


def _check_names(named: Mapping[str, Target]) -> dict[str, Target]:
    if not isinstance(named, Mapping):
        raise ConfigError(f"targets is of type {type(named).__name__}; give a dict of names and targets.")
    for name in named:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"A name in targets is {shorten(name)}; give a text that is not empty.")
    return dict(named)


class _NoTarget(Delivery):
    """Where there are named targets but no default one, and a task names none."""

    async def deliver(self, record: TaskRecord, *, deadline_seconds: float) -> Answer | NoAnswer:
        """Reach nobody."""
        return NoAnswer(FailureReason.UNREACHABLE, "The task names no target and the service has no default one.")
