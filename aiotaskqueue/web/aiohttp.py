"""Tasks as handlers of an aiohttp application.

Theory of operation. One middleware, the outermost of the application, looks at the head of every request. Strangers
lose the reserved headers there; a request to a marked handler goes on only after its body is read and checked, so
neither other middlewares nor the handler see one that is not genuine. `@task` marks the handler and asks the same gate
again: that costs nothing the second time, and closes handlers that the middleware cannot recognise (a
``functools.partial``, say) or whose application has no middleware at all.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import ParamSpec, TypeAlias, cast, overload

from aiohttp import web
from aiohttp.typedefs import Handler as Endpoint
from aiohttp.typedefs import Middleware
from multidict import CIMultiDict

from aiotaskqueue._clock import Clock, SystemClock
from aiotaskqueue._headers import is_reserved
from aiotaskqueue._service import TaskQueueService
from aiotaskqueue.errors import ConfigError
from aiotaskqueue.signing import KeyRing, Refusal, RefusalReason
from aiotaskqueue.worker import (
    MARK,
    AccessCheck,
    Admission,
    TaskAnswer,
    TaskInfo,
    default_url_path,
    is_marked,
    name_of,
    run_handler,
    running,
)

__all__ = ["default_url_path", "init_app", "init_worker", "install", "task"]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
Result: TypeAlias = web.StreamResponse | TaskAnswer | None
Handler: TypeAlias = Callable[P, Awaitable[Result]]
TaskHandler: TypeAlias = Callable[P, Awaitable[web.StreamResponse]]


# --- applications --------------------------------------------------------------------------------------------------


def init_worker(app: web.Application, *, secrets: Sequence[bytes | str], clock: Clock | None = None) -> None:
    """Let `app` run tasks that a service elsewhere delivers: only the access check, no store.

    Call it once, before the application starts.

    Args:
        app: Its ``@task`` handlers become reachable for genuine deliveries; others get 403.
        secrets: The service's ``secrets``, newest first.
        clock: For tests; None: the machine's.

    Raises:
        ConfigError: A secret is unfit, or `app` has started or has an access check already.
    """
    install(app, AccessCheck(KeyRing(secrets), clock or SystemClock()))


def init_app(app: web.Application, service: TaskQueueService, base_url: str = "http://localhost") -> None:
    """Embed `service` in `app`: it starts, drains and closes with the application and delivers to it.

    Call it once, before the application starts and before it is added to another one. The service is the outermost of the
    application's ``cleanup_ctx``: it starts before the others and before ``on_startup``, so that all of them can add
    tasks; tasks are delivered once the application has started. On shutdown the attempts in flight are waited for before
    all else. The service closes after the other contexts, which may still add, and before ``on_cleanup``; also when the
    start of the application fails.

    A sub-application may have a service of its own. Its tasks have the whole path, prefix included, as their URL, and
    they pass its own middlewares only. Several applications in one process need a service each.

    Args:
        app: Its ``@task`` handlers become reachable for the service's deliveries; others get 403. In its requests
            ``Queue("name")`` means this service. Its middlewares see deliveries as they see any request, once they are
            verified.
        service: Not started. Without a ``target`` it delivers to `app` itself, on a UNIX socket of its own: no port is
            needed or known.
        base_url: Gives the Host header of such deliveries, and a path that goes before every task's URL.

    Raises:
        ConfigError: `app` has started, or has an access check already; `service` has started, or belongs to another
            application; `base_url` is none; or this system has no UNIX sockets and the service has no ``target``.
    """
    if app.on_startup.frozen:
        raise ConfigError(f"{app!r} has started; call init_app before.")
    install(app, service.access)
    app.middlewares.insert(1, _current_service_middleware(service))
    service.serve_app(app, base_url)

    async def run(app: web.Application) -> AsyncIterator[None]:
        async with service:
            yield

    async def drain(app: web.Application) -> None:
        await service.drain()

    # Not on_cleanup: aiohttp skips that when the start fails, and what comes after a function that raises.
    app.cleanup_ctx.insert(0, run)
    app.on_shutdown.insert(0, drain)


def _current_service_middleware(service: TaskQueueService) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Endpoint) -> web.StreamResponse:
        with service.current():
            return await handler(request)

    return middleware


def install(app: web.Application, check: AccessCheck) -> None:
    """Make `check` the outermost middleware of `app`.

    Raises:
        ConfigError: `app` has started, or has an access check already.
    """
    if app.pre_frozen:
        raise ConfigError(f"{app!r} has started, or was added to another application; install the access check before.")
    if _CHECK in app:
        raise ConfigError(f"{app!r} has an access check already; call init_app or init_worker once.")
    app[_CHECK] = check
    app.middlewares.insert(0, _access_middleware(check))


# --- handlers ------------------------------------------------------------------------------------------------------


@overload
def task(handler: Handler[P], /) -> TaskHandler[P]: ...
@overload
def task(*, verify: bool = True) -> Callable[[Handler[P]], TaskHandler[P]]: ...
def task(handler: Handler[P] | None = None, /, *, verify: bool = True) -> TaskHandler[P] | Callable[[Handler[P]], TaskHandler[P]]:
    """Mark a handler, or a method of a ``web.View``, as one that a queue calls.

    What the handler does becomes an answer: returning None ends the task (200), a response is passed on, raising
    FatalTaskError ends the task (it is logged, 200), any other exception is logged and the task is retried (500).
    ``web.HTTPException`` is a response, and so is what ``terminate_task()`` and ``repeat_task()`` return. A request that
    is no genuine delivery gets 403 with an empty body before the handler runs. Applied twice it is applied once.

    When the task's deadline has passed, DeadlineExceededError is raised in the handler where it waits; a second later it
    is cancelled. If it does not catch the error, or takes longer, that is logged and the task is retried (500).

    Args:
        handler: The coroutine function. It keeps its signature.
        verify: False lets everybody call the handler, and logs a warning.

    Raises:
        TypeError: What is decorated is not a function, or is a task already with another `verify`.
    """
    if handler is not None:
        return _as_task(handler, verify)
    return functools.partial(_as_task, verify=verify)


def _as_task(handler: Handler[P], verify: bool) -> TaskHandler[P]:
    _check_is_function(handler)
    name = name_of(handler)
    if is_marked(handler, verify, logger):
        return handler  # type: ignore[return-value]  # the mark says that it is ours, or wraps ours

    @functools.wraps(handler)
    async def run(*args: P.args, **kwargs: P.kwargs) -> web.StreamResponse:
        request = _request_of(args)
        info = await _enter(request, name, verify)
        if isinstance(info, Refusal):
            return web.Response(status=403)
        with running(info):
            call = functools.partial(handler, *args, **kwargs)
            result = await run_handler(info, name, call, is_response=_is_response, raised_response=web.HTTPException, log=logger)
        return _empty_response(request, result.status) if isinstance(result, TaskAnswer) else cast(web.StreamResponse, result)

    setattr(run, MARK, verify)
    return run


def _check_is_function(handler: object) -> None:
    if isinstance(handler, type) or not callable(handler):
        raise TypeError(f"@task decorates a coroutine function or a method of a web.View, not {handler!r:.80}.")


def _request_of(args: Sequence[object]) -> web.Request:
    """Return the request among a handler's arguments: itself, or that of the View whose method it is."""
    for arg in args:
        if isinstance(arg, web.Request):
            return arg
        if isinstance(arg, web.View):
            return arg.request
    raise TypeError("A @task handler was called without a request; aiohttp calls it, tasks are added with add().")


def _is_response(result: Result) -> bool:
    return isinstance(result, web.StreamResponse)


def _empty_response(request: web.Request, status: int) -> web.Response:
    if request.writer.output_size > 0:
        # A second head would be taken for the rest of the first one's body, and could make a 200 complete that is none.
        raise RuntimeError("The handler began an answer and did not return it; the connection is closed.")
    return web.Response(status=status)


# --- the access check ----------------------------------------------------------------------------------------------


# So it looks when aiohttp has unpacked a body, which was signed as it was sent.
_BODY_IS_OTHER = frozenset({RefusalReason.BAD_BODY, RefusalReason.UNREADABLE_BODY})


class _Gate:
    """What the access check says about one request."""

    __slots__ = ("_check", "_head", "answer")

    def __init__(self, check: AccessCheck, head: Admission | Refusal) -> None:
        self._check = check
        self._head = head
        self.answer: TaskInfo | Refusal | None = None
        """The task that the request may run, or why it may not; None: nobody has asked yet."""

    @property
    def is_stranger(self) -> bool:
        """Whether the head is not a genuine one."""
        return isinstance(self._head, Refusal)

    async def ask(self, request: web.Request) -> TaskInfo | Refusal:
        """Find the answer; reads the body. For the first time only."""
        head = self._head
        if isinstance(head, Refusal):
            self.answer = self._refuse(head)
        else:
            refusal = await self._check.admit(head, functools.partial(_read_body, request))
            self.answer = head.info if refusal is None else self._refuse(refusal)
            if refusal is not None and refusal.reason in _BODY_IS_OTHER and "Content-Encoding" in request.headers:
                logger.warning(
                    "The body of task %s was unpacked before it could be checked; run the server with auto_decompress=False.",
                    head.info.name,
                )
        return self.answer

    def _refuse(self, refusal: Refusal) -> Refusal:
        self._check.reject(refusal)
        return refusal


_CHECK = web.AppKey("aiotaskqueue_access_check", AccessCheck)
_GATE = web.RequestKey("aiotaskqueue_gate", _Gate)


def _access_middleware(check: AccessCheck) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Endpoint) -> web.StreamResponse:
        if len(request.match_info.apps) > 1 and _GATE in request:
            # Both an application and a sub-application of it have a check: the outer one has decided.
            return await handler(request)
        gate = _Gate(check, check.check(request.method, request.raw_path, request.headers.items()))
        if gate.is_stranger:
            request = _without_reserved_headers(request)
        request[_GATE] = gate
        if _is_closed_to_strangers(request) and isinstance(await gate.ask(request), Refusal):
            return web.Response(status=403)
        return await handler(request)

    return middleware


async def _enter(request: web.Request, name: str, verify: bool) -> TaskInfo | Refusal | None:
    """Return the task that may run, or why it may not; None: anybody may run the handler, and it is not known who does."""
    gate: _Gate | None = request.get(_GATE)
    if gate is None:
        if not verify:
            return None
        logger.error("Task handler %s refuses everything: its application has no access check; call init_app or init_worker.", name)
        return Refusal(RefusalReason.UNSIGNED)
    if not verify and gate.is_stranger:
        return None
    return gate.answer or await gate.ask(request)


def _is_closed_to_strangers(request: web.Request) -> bool:
    handler: object = request.match_info.handler
    if isinstance(handler, type):
        # A web.View: the method is what is marked.
        handler = getattr(handler, request.method.lower(), None)
    return getattr(handler, MARK, False) is True


def _without_reserved_headers(request: web.Request) -> web.Request:
    if not any(map(is_reserved, request.headers)):
        return request
    kept = ((name, _as_text(value)) for name, value in request.headers.items() if not is_reserved(name))
    return request.clone(headers=CIMultiDict(kept))


def _as_text(value: str) -> str:
    """Return the value without the surrogates that stand for bytes that are not UTF-8: `clone` cannot encode them."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


async def _read_body(request: web.Request) -> bytes | None:
    try:
        return await request.read()
    except (web.HTTPRequestEntityTooLarge, web.RequestPayloadError, ConnectionError):
        return None
