"""HTTPDelivery: carries tasks to one base URL, over TCP, TLS or a UNIX socket.

Theory of operation. Whatever a worker does, an attempt ends: two moments on our own clock bound it, one for connecting
and one, from the first byte sent, for the whole answer (RELIABILITY H2, H3). Whatever a worker answers, little is kept:
bodies are read to their end and thrown away, up to a cap, and never decompressed. Nothing is sent twice and nothing is
sent elsewhere: no redirects, no cookies, no proxies of the environment, no second try. An attempt succeeds by what was
read to the end; a connection that was not read to the end is aborted, not reused.

aiohttp's connector connects and its parser reads answers; what stands between (`_request`, `_connection`) is ours, since
the session of an HTTP client does for each request what a delivery must not do, and takes half of a delivery's time.
"""

from __future__ import annotations

import asyncio
import functools
import math
from typing import TYPE_CHECKING

import aiohttp

from aiotaskqueue._clock import Clock, SystemClock, Timer
from aiotaskqueue._masking import show_place
from aiotaskqueue.delivery._base import GRACE_SECONDS, MAX_ANSWER_BYTES, Answer, Delivery, FailureReason, NoAnswer
from aiotaskqueue.delivery._base_url import parse_base_url
from aiotaskqueue.delivery._connection import Connection
from aiotaskqueue.delivery._detail import safe_text
from aiotaskqueue.delivery._request import Request, RequestWriter
from aiotaskqueue.errors import ConfigError, Error, NotStartedError

if TYPE_CHECKING:
    from ssl import SSLContext

    from aiotaskqueue._record import TaskRecord
    from aiotaskqueue.signing import KeyRing

# For DNS, TCP and TLS together. With deadline and grace it stays within the lease, which has 10 s to spare (DESIGN 4.7).
CONNECT_SECONDS = 5.0

# Below the 5 s after which many servers close an idle connection (uvicorn, Node); aiohttp's and nginx's wait 75 s.
KEEP_ALIVE_SECONDS = 4.0

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None, ceil_threshold=math.inf)


class HTTPDelivery(Delivery):
    """Carries tasks to one target over HTTP/1.1.

    Args:
        base_url: ``http://`` or ``https://``, a host, and perhaps a port and a path, which goes before every task's URL.
        keys: Sign the requests; None: they are not signed.
        unix_socket: The path of a UNIX socket to connect to; `base_url` then only gives the Host header and the path.
        ssl: How to verify an ``https`` target: a context, a fingerprint, or False for not at all. None: by the
            machine's certificate authorities.
        max_answer_bytes: A larger body is a failure, in bytes.

    Raises:
        ConfigError: `base_url` is none, or https over a UNIX socket.
    """

    def __init__(
        self,
        base_url: str,
        *,
        keys: KeyRing | None = None,
        unix_socket: str | None = None,
        ssl: SSLContext | aiohttp.Fingerprint | bool | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        url = parse_base_url(base_url)
        if unix_socket is not None and url.scheme != "http":
            raise ConfigError(f"Base URL {base_url[:80]!r} is https over a UNIX socket; use http, the file's rights protect it.")
        self._url = url
        self._keys = keys
        self._unix_socket = unix_socket
        self._ssl = True if ssl is None else ssl
        self._max_answer_bytes = max_answer_bytes
        self._clock: Clock | None = None
        self._writer: RequestWriter | None = None
        self._connector: aiohttp.BaseConnector | None = None
        self._connections: set[Connection] = set()
        self._pool = _Pool()

    async def open(self, clock: Clock) -> None:
        """Get ready, in the running event loop; nothing is connected yet."""
        await self.aclose()
        self._clock = clock
        self._writer = RequestWriter(self._url, self._keys)
        self._connector = self._make_connector()

    async def aclose(self) -> None:
        """Close all connections; attempts in flight end as cancelled."""
        self._clock = None
        self._pool.clear()
        connections = list(self._connections)
        for connection in connections:
            connection.abort(_closed())
        if connections:
            await asyncio.wait([connection.lost for connection in connections])
        connector, self._connector = self._connector, None
        if connector is not None:
            await connector.close()

    async def deliver(self, record: TaskRecord, *, deadline_seconds: float) -> Answer | NoAnswer:
        """Make one attempt and say how it ended (see Delivery.deliver)."""
        signature = ""
        try:
            clock, writer = self._opened()
            request = writer.write(record, deadline_seconds=deadline_seconds, now=clock.time())
            signature = request.signature
            limit_seconds = deadline_seconds + GRACE_SECONDS
            async with clock.outside(until=clock.monotonic() + limit_seconds):
                connection = self._pool.take() or await self._connect(clock, limit_seconds)
                if isinstance(connection, NoAnswer):
                    return connection
                return await self._exchange(connection, request, clock, limit_seconds)
        except Exception as exc:
            return NoAnswer(FailureReason.ERROR, safe_text(_explain(exc), signature))

    async def _exchange(self, connection: Connection, request: Request, clock: Clock, limit_seconds: float) -> Answer | NoAnswer:
        result = connection.send(request)
        timer = clock.call_at(clock.monotonic() + limit_seconds, functools.partial(connection.expire, result, limit_seconds))
        try:
            return await result
        except BaseException:
            connection.abort()
            raise
        finally:
            timer.cancel()
            self.has_answered = self.has_answered or connection.has_head
            if connection.is_usable:
                self._pool.put(connection)

    async def _connect(self, clock: Clock, limit_seconds: float) -> Connection | NoAnswer:
        seconds = min(CONNECT_SECONDS, limit_seconds)
        connection, reason = None, f"No connection within {seconds:g} seconds."
        try:
            with clock.cutoff(clock.monotonic() + seconds):
                connection = await self._open_connection()
        except (aiohttp.ClientConnectionError, OSError, UnicodeError) as exc:
            reason = safe_text(str(exc))
        if connection is None:
            return _closed() if self._clock is None else NoAnswer(FailureReason.UNREACHABLE, reason)
        self._connections.add(connection)
        connection.lost.add_done_callback(lambda _: self._connections.discard(connection))
        return connection

    async def _open_connection(self) -> Connection:
        assert self._connector is not None
        request = aiohttp.ClientRequest("POST", self._url, loop=asyncio.get_running_loop(), ssl=self._ssl)
        opened = await self._connector.connect(request, traces=[], timeout=_NO_TIMEOUT)
        transport, protocol = opened.transport, opened.protocol
        try:
            if transport is None or protocol is None or transport.is_closing() or protocol.should_close:
                raise aiohttp.ServerDisconnectedError("The connection was closed before the request was sent.")
            connection = Connection(transport, self._max_answer_bytes)
            # Lost to aiohttp, so that it does not close what is ours now.
            protocol.connection_lost(None)
            return connection
        finally:
            opened.close()

    def _make_connector(self) -> aiohttp.BaseConnector:
        # No limit: the dispatcher has one. Nothing is ever given back to the connector, so it keeps nothing alive.
        if self._unix_socket is not None:
            return aiohttp.UnixConnector(self._unix_socket, limit=0, force_close=True)
        # What DNS says is not kept, which would pin a target that has moved (RELIABILITY H14); but those who ask at the same
        # time ask once: each question takes a thread of the event loop's pool, which the application needs as well (row 73).
        return aiohttp.TCPConnector(ssl=self._ssl, limit=0, force_close=True, use_dns_cache=True, ttl_dns_cache=0)

    def _opened(self) -> tuple[Clock, RequestWriter]:
        if self._clock is None or self._writer is None:
            raise NotStartedError("The delivery is not open; call open before deliver, and aclose after the last.")
        return self._clock, self._writer


class _Pool:
    """Connections between two requests; the one used last is used next, so that those not needed fall idle and close."""

    def __init__(self) -> None:
        # Sockets keep real time, whatever clock the service has.
        self._clock = SystemClock()
        self._idle: list[Connection] = []
        self._timer: Timer | None = None

    def take(self) -> Connection | None:
        """Return one that can be used, or None."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable and not self._is_old(connection):
                return connection
            connection.abort()
        return None

    def put(self, connection: Connection) -> None:
        """Keep a connection for the next request, for a while."""
        connection.idle_since = self._clock.monotonic()
        self._idle.append(connection)
        if self._timer is None:
            self._watch(connection)

    def clear(self) -> None:
        """Forget all of them."""
        self._idle.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self, oldest: Connection) -> None:
        self._timer = self._clock.call_at(oldest.idle_since + KEEP_ALIVE_SECONDS, self._close_old)

    def _close_old(self) -> None:
        self._timer = None
        while self._idle and (self._is_old(self._idle[0]) or not self._idle[0].is_usable):
            self._idle.pop(0).abort()
        if self._idle:
            self._watch(self._idle[0])

    def _is_old(self, connection: Connection) -> bool:
        return self._clock.monotonic() - connection.idle_since >= KEEP_ALIVE_SECONDS


def _closed() -> NoAnswer:
    return NoAnswer(FailureReason.CANCELLED, "The delivery was closed.")


def _explain(exc: Exception) -> str:
    if isinstance(exc, Error):
        return str(exc)
    # What an unexpected error says may show a header or the payload (RELIABILITY P24).
    return show_place(exc)
