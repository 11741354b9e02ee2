"""Tasks as handlers of a Starlette or FastAPI application.

Theory of operation. One middleware looks at the head of every request. Strangers lose the reserved headers there. It does
not know yet which endpoint a request is for, so it leaves a *gate* in the scope, and gives the application a `receive` and
a `send` that go through that gate: who asks for the body of a request to a marked endpoint that is not genuine gets none,
and the answer is an empty 403, whatever the application then says. FastAPI reads the body before it runs dependencies and
validates anything; for endpoints without a body `@task` puts a dependency of its own before all others of the handler,
which asks the same gate. And `@task` itself asks once more: that costs nothing the second time, and closes handlers that
the middleware cannot recognise or whose application has no middleware at all.

A delivery of this process (`delivery.asgi`) is not signed: it is known by an object in the scope, where no request from
the network can place one.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, NoReturn, ParamSpec, Protocol, TypeAlias, TypeVar, cast, overload

import attrs

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as exc:
    raise ImportError("Starlette is not installed; pip install 'aiotaskqueue-embedded[starlette]'.") from exc

from aiotaskqueue._clock import Clock, SystemClock
from aiotaskqueue._headers import is_reserved
from aiotaskqueue._service import TaskQueueService
from aiotaskqueue.delivery.asgi import ATTEMPT, Attempt
from aiotaskqueue.errors import ConfigError
from aiotaskqueue.signing import KeyRing, Refusal, RefusalReason
from aiotaskqueue.worker import (
    MARK,
    MAX_BODY_BYTES,
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

__all__ = ["default_url_path", "init_app", "init_worker", "install", "lifespan", "task"]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
App = TypeVar("App", bound=Starlette)
Lifespan: TypeAlias = Callable[[App], AbstractAsyncContextManager[Any]]
Work: TypeAlias = Coroutine[Any, Any, R]

# In a scope: its gate.
_GATE = "aiotaskqueue.gate"

# The name of the argument by which FastAPI gives a handler what its own dependency has found.
_ENTRY = "aiotaskqueue_entry"


# --- applications --------------------------------------------------------------------------------------------------


def init_worker(app: Starlette, *, secrets: Sequence[bytes | str], clock: Clock | None = None) -> None:
    """Let `app` run tasks that a service elsewhere delivers: only the access check, no store.

    Call it once, before the application starts, and after its other middlewares were added: those that are added later
    see requests before they are checked.

    Args:
        app: Its ``@task`` handlers become reachable for genuine deliveries; others get 403.
        secrets: The service's ``secrets``, newest first.
        clock: For tests; None: the machine's.

    Raises:
        ConfigError: A secret is unfit, or `app` has started or has an access check already.
    """
    install(app, AccessCheck(KeyRing(secrets), clock or SystemClock()))


def init_app(app: Starlette, service: TaskQueueService, base_url: str = "http://localhost") -> None:
    """Embed `service` in `app`: it starts, drains and closes with the application and delivers to it.

    Call it once, before the application starts, and after its other middlewares were added: those that are added later see
    requests before they are checked. The application's own lifespan starts before the service and ends after it.

    The server has to run lifespans, as uvicorn does. That of an application that is mounted in another one is not run:
    embed the service in the outer one. Several applications in one process need a service each.

    Args:
        app: Its ``@task`` handlers become reachable for the service's deliveries; others get 403. In its requests
            ``Queue("name")`` means this service. Its middlewares see deliveries as they see any request.
        service: Not started. Without a ``target`` it delivers to `app` itself, by calling it: no port is needed or known.
        base_url: Gives the Host header and the scheme of such deliveries, and the root path, which goes before every
            task's URL.

    Raises:
        ConfigError: `app` has started, or has an access check already; `service` has started, or belongs to another
            application; or `base_url` is none.
    """
    _check_is_new(app)
    state: dict[str, Any] = {}
    embedded = _Embedded(service)
    service.serve_app(app, base_url, state)
    app.add_middleware(_AccessMiddleware, service.access, embedded)
    own_lifespan = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def run(app: Starlette) -> AsyncIterator[Any]:
        async with own_lifespan(app) as yielded:
            state.update(yielded or {})
            embedded.has_begun = True
            async with service:
                yield yielded

    app.router.lifespan_context = run


def lifespan(
    service: TaskQueueService, own_lifespan: Lifespan[App] | None = None, base_url: str = "http://localhost"
) -> Callable[[App], AbstractAsyncContextManager[Any]]:
    """Return a lifespan that embeds `service` in the application that it is given to, as `init_app` does.

    The access check comes before all middlewares of the application, whenever they were added.

    Args:
        service: As for `init_app`.
        own_lifespan: The application's own: it starts before the service and ends after it; what it yields is the state
            of requests, deliveries included.
        base_url: As for `init_app`.

    Example:
        ``app = FastAPI(lifespan=lifespan(service))``
    """

    @contextlib.asynccontextmanager
    async def run(app: App) -> AsyncIterator[Any]:
        async with _nothing() if own_lifespan is None else own_lifespan(app) as yielded:
            _check_is_new(app, is_starting=True)
            service.serve_app(app, base_url, yielded)
            # A middleware cannot be added any more: the stack was built for the lifespan's own message.
            stack = app.middleware_stack or app.build_middleware_stack()
            app.middleware_stack = _AccessMiddleware(stack, service.access, _Embedded(service, has_begun=True))
            try:
                async with service:
                    yield yielded
            finally:
                app.middleware_stack = stack

    return run


@contextlib.asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


def install(app: Starlette, check: AccessCheck) -> None:
    """Make `check` the outermost middleware that `app` has so far.

    Raises:
        ConfigError: `app` has started, or has an access check already.
    """
    _check_is_new(app)
    app.add_middleware(_AccessMiddleware, check)


def _check_is_new(app: Starlette, *, is_starting: bool = False) -> None:
    if app.middleware_stack is not None and not is_starting:
        raise ConfigError(f"{app!r} has started; call init_app or init_worker before.")
    if any(cast(object, middleware.cls) is _AccessMiddleware for middleware in app.user_middleware):
        raise ConfigError(f"{app!r} has an access check already; call init_app or init_worker once, and without lifespan.")


# --- handlers ------------------------------------------------------------------------------------------------------


class _Decorator(Protocol):
    """What ``task(verify=...)`` returns."""

    @overload
    def __call__(self, handler: Callable[P, Awaitable[Response | TaskAnswer | None]], /) -> Callable[P, Work[Response]]: ...
    @overload
    def __call__(self, handler: Callable[P, Awaitable[R]], /) -> Callable[P, Work[R]]: ...
    @overload
    def __call__(self, handler: Callable[P, Response | TaskAnswer | None], /) -> Callable[P, Work[Response]]: ...
    @overload
    def __call__(self, handler: Callable[P, R], /) -> Callable[P, Work[R]]: ...


@overload
def task(handler: Callable[P, Awaitable[Response | TaskAnswer | None]], /) -> Callable[P, Work[Response]]: ...
@overload
def task(handler: Callable[P, Awaitable[R]], /) -> Callable[P, Work[R]]: ...
@overload
def task(handler: Callable[P, Response | TaskAnswer | None], /) -> Callable[P, Work[Response]]: ...
@overload
def task(handler: Callable[P, R], /) -> Callable[P, Work[R]]: ...
@overload
def task(*, verify: bool = True) -> _Decorator: ...
def task(handler: Callable[..., Any] | None = None, /, *, verify: bool = True) -> Any:
    """Mark a handler, or a method of an ``HTTPEndpoint``, as one that a queue calls.

    What the handler does becomes an answer: returning None ends the task (200), a response is passed on, raising
    FatalTaskError ends the task (it is logged, 200), any other exception is logged and the task is retried (500). An
    ``HTTPException`` is a response, and so is what ``terminate_task()`` and ``repeat_task()`` return. Any other value is
    made a response by FastAPI; in Starlette it is an error (500). A request that is no genuine delivery gets 403 with an
    empty body before the handler runs, before FastAPI reads the request's body and before the handler's dependencies run;
    those of a router or of the application run earlier where there is no body.

    When the task's deadline has passed, DeadlineExceededError is raised in the handler where it waits; a second later it
    is cancelled. If it does not catch the error, or takes longer, that is logged and the task is retried (500).

    Applied twice it is applied once.

    Args:
        handler: The function. It keeps its signature, dependencies, path parameters and models included. One that is no
            coroutine function runs in a thread, which nobody can interrupt: at the deadline its attempt fails, and it
            runs on.
        verify: False lets everybody call the handler, and logs a warning.

    Raises:
        TypeError: What is decorated is not a function, or is a task already with another `verify`.
    """
    if handler is not None:
        return _as_task(handler, verify)
    return functools.partial(_as_task, verify=verify)


def _as_task(handler: Callable[..., Any], verify: bool) -> Callable[..., Any]:
    _check_is_function(handler)
    name = name_of(handler)
    if is_marked(handler, verify, logger):
        return handler

    @functools.wraps(handler)
    async def run(*args: Any, **kwargs: Any) -> object:
        entry: _Entry | None = kwargs.pop(_ENTRY, None)
        try:
            info = entry.info if entry is not None else await _enter(_request_of([*args, *kwargs.values()]), name, verify)
        except _RefusedError:
            return Response(status_code=403)
        with running(info):
            call = functools.partial(_call, functools.partial(handler, *args, **kwargs))
            is_response = _is_response if entry is None else _is_response_of_fastapi
            result = await run_handler(info, name, call, is_response=is_response, raised_response=HTTPException, log=logger)
        return Response(status_code=result.status) if isinstance(result, TaskAnswer) else result

    setattr(run, MARK, verify)
    _add_dependency(run, _signature_of(handler), name, verify)
    return run


def _check_is_function(handler: object) -> None:
    is_generator = inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler)
    if isinstance(handler, type) or not callable(handler) or is_generator:
        raise TypeError(f"@task decorates a function or a method of an HTTPEndpoint, not {handler!r:.80}.")


def _signature_of(handler: Callable[..., Any]) -> inspect.Signature:
    """Return the signature, its annotations evaluated where the handler was written: FastAPI may look in our module."""
    try:
        return inspect.signature(handler, eval_str=True)
    except NameError:
        # Of what is defined later, or imported for type checkers only.
        return inspect.signature(handler)


def _add_dependency(run: Callable[..., Any], signature: inspect.Signature, name: str, verify: bool) -> None:
    """Show FastAPI one more parameter of the handler, before the others: so it is asked for first."""
    depends = _find_depends()
    if depends is None:
        return

    async def enter(request: Request) -> _Entry:
        return _Entry(await _enter(request, name, verify))

    parameters = list(signature.parameters.values())
    # Behind the one that a method loses when it is looked up, and behind those that FastAPI cannot give.
    first = sum(parameter.name == "self" or parameter.kind is parameter.POSITIONAL_ONLY for parameter in parameters)
    ours = inspect.Parameter(_ENTRY, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Annotated[_Entry, depends(enter)])
    try:
        extended = signature.replace(parameters=[*parameters[:first], ours, *parameters[first:]])
    except ValueError:
        # Positional ones with defaults come before: no handler of FastAPI's.
        return
    run.__signature__ = extended  # type: ignore[attr-defined]  # what inspect looks at first


def _find_depends() -> Callable[..., Any] | None:
    try:
        from fastapi import Depends
    except ImportError:
        return None
    return Depends


def _request_of(arguments: Iterable[object]) -> Request:
    """Return the request among a handler's arguments."""
    for argument in arguments:
        if isinstance(argument, Request):
            return argument
    raise TypeError("A @task handler was called without a request; the framework calls it, tasks are added with add().")


def _is_response(result: object) -> bool:
    return isinstance(result, Response)


def _is_response_of_fastapi(result: object) -> bool:
    """Whether FastAPI makes a response of it: of all but nothing, which is always 200."""
    return result is not None


def _call(handler: functools.partial[Any]) -> Awaitable[object]:
    work: Awaitable[object] = handler() if _is_coroutine_function(handler) else _run_in_thread(handler)
    return work


async def _run_in_thread(handler: functools.partial[Any]) -> object:
    """Run a handler that is no coroutine function; at the deadline it is no longer waited for, since a thread cannot be stopped."""
    result = await run_in_threadpool(handler)
    # Of a plain function around a coroutine function, as other decorators make them.
    return await result if inspect.isawaitable(result) else result


def _is_coroutine_function(handler: Any) -> bool:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


# --- the access check ----------------------------------------------------------------------------------------------


@attrs.frozen
class _Entry:
    """What our dependency has found: which task may run; None: anybody may run the handler, and it is not known who does."""

    info: TaskInfo | None


class _RefusedError(HTTPException):
    """Unwinds what runs for a request that is refused; the gate has answered already, unless there is none."""

    def __init__(self) -> None:
        super().__init__(403, "")


@attrs.define(eq=False)
class _Embedded:
    """A service and whether its application's lifespan runs."""

    service: TaskQueueService
    has_begun: bool = False
    has_warned: bool = False


class _AccessMiddleware:
    """Puts a gate into every request's scope; with a service, makes it the current one."""

    def __init__(self, app: ASGIApp, check: AccessCheck, embedded: _Embedded | None = None) -> None:
        self._app = app
        self._check = check
        self._embedded = embedded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif self._embedded is None:
            await self._guard(scope, receive, send)
        else:
            self._check_has_begun(scope, self._embedded)
            with self._embedded.service.current():
                await self._guard(scope, receive, send)

    def _check_has_begun(self, scope: Scope, embedded: _Embedded) -> None:
        if embedded.has_begun or embedded.has_warned:
            return
        embedded.has_warned = True
        logger.error(
            "%r serves requests, but its lifespan does not run: its service is not started and delivers nothing. "
            "Embed the service in the application that the server runs, and let that run lifespans.",
            scope.get("app"),
        )

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _GATE in scope:
            # Both an application and one that is mounted in it have a check: the outer one has decided.
            await self._app(scope, receive, send)
            return
        head = self._look_at(scope)
        if isinstance(head, Refusal):
            scope["headers"] = [(name, value) for name, value in scope["headers"] if not _is_reserved(name)]
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        gate = scope[_GATE] = _Gate(self._check, head, scope, receive, send)
        try:
            await self._app(scope, gate.receive, gate.send)
        except Exception:
            if not gate.is_refused:
                raise

    def _look_at(self, scope: Scope) -> TaskInfo | Admission | Refusal:
        attempt = _attempt_of(scope)
        if attempt is not None:
            return attempt
        if scope["type"] == "websocket":
            return Refusal(RefusalReason.UNSIGNED)
        raw_path: bytes | None = scope.get("raw_path")
        if raw_path is None:
            # The server does not say what it got, and the signature is over just that.
            return Refusal(RefusalReason.MALFORMED)
        query: bytes = scope["query_string"]
        target = raw_path + b"?" + query if query else raw_path
        headers = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
        return self._check.check(scope["method"], target.decode("latin-1"), headers)


def _is_reserved(name: bytes) -> bool:
    # The first letter alone decides for nearly every header of nearly every request.
    return name[:1] in (b"x", b"X") and is_reserved(name.decode("latin-1"))


def _attempt_of(scope: Scope) -> TaskInfo | None:
    """Return the task of a delivery of this process."""
    attempt = scope.get(ATTEMPT)
    return TaskInfo.from_headers(attempt.headers, attempt.clock) if isinstance(attempt, Attempt) else None


class _Gate:
    """What the access check says about one request, and what the application gets of it."""

    __slots__ = ("_answer", "_check", "_has_begun", "_head", "_read", "_receive", "_scope", "_send", "_size", "is_refused")

    def __init__(self, check: AccessCheck, head: TaskInfo | Admission | Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        self._check = check
        self._head = head
        self._scope = scope
        self._receive = receive
        self._send = send
        self._answer: TaskInfo | Refusal | None = None if isinstance(head, Admission) else head
        self._read: deque[Message] = deque()
        """What was read of the body before the application asked for it."""
        self._size = 0
        self._has_begun = False
        self.is_refused = False

    @property
    def is_stranger(self) -> bool:
        """Whether the head is not a genuine one."""
        return isinstance(self._head, Refusal)

    async def ask(self) -> TaskInfo | Refusal:
        """Find the task that the request may run, or why it may not; reads the body. For the first time only."""
        if self._answer is None:
            assert isinstance(self._head, Admission)
            refusal = await self._check.admit(self._head, self._read_body)
            self._answer = self._head.info if refusal is None else refusal
        return self._answer

    async def receive(self) -> Message:
        """Give the application a part of the body, unless its endpoint is closed to whoever asks."""
        answer = self._answer or await self.ask()
        if isinstance(answer, Refusal) and _is_closed_to_strangers(self._scope):
            await self.refuse(answer)
        return self._read.popleft() if self._read else await self._receive()

    async def refuse(self, refusal: Refusal) -> NoReturn:
        """Answer 403 and raise."""
        if not self.is_refused:
            self.is_refused = True
            self._check.reject(refusal)
            if not self._has_begun:
                await self._send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
                await self._send({"type": "http.response.body", "body": b""})
        raise _RefusedError

    async def send(self, message: Message) -> None:
        """Pass on what the application answers, unless there is an answer already."""
        if not self.is_refused:
            self._has_begun = True
            await self._send(message)

    async def _read_body(self) -> bytes | None:
        """Read the body, and keep it for the application; None: it does not come, or is too long."""
        # Whoever was cancelled here may come again: what has come is kept.
        # Servers that do not say how long a body is (HTTP/2) are held to the access check's own limit.
        while self._size <= MAX_BODY_BYTES:
            message = await self._receive()
            self._read.append(message)
            if message["type"] != "http.request":
                return None
            self._size += len(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(part.get("body", b"") for part in self._read)
        return None


async def _enter(request: Request, name: str, verify: bool) -> TaskInfo | None:
    """Return the task that may run; None: anybody may run the handler, and it is not known who does.

    Raises:
        _RefusedError: It may not run.
    """
    gate: _Gate | None = request.scope.get(_GATE)
    if gate is None:
        info = _attempt_of(request.scope)
        if info is None and verify:
            logger.error(
                "Task handler %s refuses everything: its application has no access check; call init_app, init_worker or lifespan.", name
            )
            raise _RefusedError
        return info
    if not verify and gate.is_stranger:
        return None
    answer = await gate.ask()
    if isinstance(answer, Refusal):
        await gate.refuse(answer)
    return answer


def _is_closed_to_strangers(scope: Scope) -> bool:
    """Return whether the request goes to a task; unknown, that is False, until it was routed."""
    endpoint: object = scope.get("endpoint")
    if isinstance(endpoint, type):
        # An HTTPEndpoint: the method is what is marked.
        method = scope["method"].lower()
        endpoint = getattr(endpoint, "get" if method == "head" and not hasattr(endpoint, "head") else method, None)
    while isinstance(endpoint, functools.partial):
        endpoint = endpoint.func
    return getattr(endpoint, MARK, False) is True
