"""HTTPDelivery: carries tasks to one base URL, over TCP, TLS or a UNIX socket, with aiohttp's client.

Theory of operation. Whatever a worker does, an attempt ends: two moments on our own clock bound it, one for connecting
and one, from the first byte sent, for the whole answer; aiohttp's timeouts round up and lose answers (RELIABILITY H2,
H3). Whatever a worker answers, little is kept: bodies are read to their end and thrown away, up to a cap, and never
decompressed. Nothing is sent twice and nothing is sent elsewhere: no redirects, no cookies, no proxies of the
environment, no second try. An attempt succeeds by what was read to the end; a connection that was not read to the end
is aborted, not reused.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from aiotaskqueue import signing
from aiotaskqueue._headers import task_headers
from aiotaskqueue.delivery._answer import explain_failure, read_answer
from aiotaskqueue.delivery._base import GRACE_SECONDS, Answer, Delivery, FailureReason, NoAnswer
from aiotaskqueue.delivery._base_url import parse_base_url
from aiotaskqueue.delivery._connection import Attempt, SendingRequest
from aiotaskqueue.errors import ConfigError, NotStartedError

if TYPE_CHECKING:
    from ssl import SSLContext

    from aiotaskqueue._clock import Clock
    from aiotaskqueue._record import TaskRecord
    from aiotaskqueue.signing import KeyRing

# For DNS, TCP and TLS together. With deadline and grace it stays within the lease, which has 10 s to spare (DESIGN 4.7).
CONNECT_SECONDS = 5.0

# Below the 5 s after which many servers close an idle connection (uvicorn, Node); aiohttp's and nginx's wait 75 s.
KEEP_ALIVE_SECONDS = 4.0

# Source: App Engine's limit of a response.
MAX_ANSWER_BYTES = 32 * 1024 * 1024

# aiohttp stops reading from the socket at twice this; 64 deliveries that are all bombed then hold 8 MiB.
READ_BUFFER_BYTES = 64 * 1024

# A URL object keeps what it was asked once, and aiohttp asks it a lot: one that was used before saves 15 us of 160.
KEPT_URLS = 512
KEPT_URL_LENGTH = 512

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
        self._prefix = str(url)
        self._kept_url = functools.lru_cache(KEPT_URLS)(self._make_url)
        self._keys = keys
        self._unix_socket = unix_socket
        self._ssl = True if ssl is None else ssl
        self._max_answer_bytes = max_answer_bytes
        self._session: aiohttp.ClientSession | None = None
        self._clock: Clock | None = None
        self._attempts: set[Attempt] = set()

    async def open(self, clock: Clock) -> None:
        """Make the session, in the running event loop; nothing is connected yet."""
        await self.aclose()
        self._clock = clock
        self._session = aiohttp.ClientSession(
            connector=self._make_connector(),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": _user_agent()},
            timeout=_NO_TIMEOUT,
            auto_decompress=False,
            trust_env=False,
            read_bufsize=READ_BUFFER_BYTES,
            request_class=SendingRequest,
        )

    async def aclose(self) -> None:
        """Close all connections; attempts in flight end as cancelled."""
        session, self._session = self._session, None
        for attempt in self._attempts:
            attempt.abort()
        if session is not None:
            await session.close()

    async def deliver(self, record: TaskRecord, *, deadline_seconds: float) -> Answer | NoAnswer:
        """Make one attempt and say how it ended (see Delivery.deliver)."""
        attempt = None
        try:
            clock, session = self._opened()
            url = self._url_of(record.url)
            headers = self._make_headers(record, url, deadline_seconds, clock)
            now = clock.monotonic()
            limit_seconds = deadline_seconds + GRACE_SECONDS
            async with clock.outside(until=now + limit_seconds):
                with clock.cutoff(now + min(CONNECT_SECONDS, limit_seconds)) as cutoff:
                    attempt = Attempt(headers, clock, cutoff, limit_seconds)
                    return await self._exchange(session, attempt, record, url)
        except Exception as exc:
            if attempt is not None and self._session is None:
                return NoAnswer(FailureReason.CANCELLED, "The delivery was closed.")
            return explain_failure(exc, attempt)
        return _cut(attempt, limit_seconds)

    async def _exchange(self, session: aiohttp.ClientSession, attempt: Attempt, record: TaskRecord, url: URL) -> Answer:
        self._attempts.add(attempt)
        try:
            response = await session.request(
                record.method,
                url,
                # An empty body as None: aiohttp starts a task of its own for every body but that.
                data=record.payload or None,
                allow_redirects=False,
                middlewares=(attempt,),
            )
            self.has_answered = True
            return await read_answer(response, attempt, self._max_answer_bytes)
        except BaseException:
            attempt.abort()
            raise
        finally:
            self._attempts.discard(attempt)

    def _make_connector(self) -> aiohttp.BaseConnector:
        # No limit: the dispatcher has one.
        if self._unix_socket is not None:
            return aiohttp.UnixConnector(self._unix_socket, keepalive_timeout=KEEP_ALIVE_SECONDS, limit=0)
        # What DNS says is not kept, which would pin a target that has moved (RELIABILITY H14); but those who ask at the same
        # time ask once: each question takes a thread of the event loop's pool, which the application needs as well (row 73).
        return aiohttp.TCPConnector(ssl=self._ssl, keepalive_timeout=KEEP_ALIVE_SECONDS, limit=0, use_dns_cache=True, ttl_dns_cache=0)

    def _opened(self) -> tuple[Clock, aiohttp.ClientSession]:
        if self._clock is None or self._session is None:
            raise NotStartedError("The delivery is not open; call open before deliver, and aclose after the last.")
        return self._clock, self._session

    def _url_of(self, task_url: str) -> URL:
        return self._kept_url(task_url) if len(task_url) <= KEPT_URL_LENGTH else self._make_url(task_url)

    def _make_url(self, task_url: str) -> URL:
        return URL(self._prefix + task_url, encoded=True)

    def _make_headers(self, record: TaskRecord, url: URL, deadline_seconds: float, clock: Clock) -> list[tuple[str, str]]:
        headers = task_headers(record, deadline_seconds=deadline_seconds)
        if self._keys is None:
            return headers
        return headers + signing.sign(
            self._keys,
            method=record.method,
            # What is sent is what yarl makes of the stored URL, so that is what is signed (RELIABILITY H10).
            path=url.raw_path,
            query=url.raw_query_string,
            headers=headers,
            body=record.payload or b"",
            created=int(clock.time()),
            deadline_seconds=deadline_seconds,
        )


def _cut(attempt: Attempt | None, limit_seconds: float) -> NoAnswer:
    if attempt is not None and attempt.was_sent:
        return NoAnswer(FailureReason.DEADLINE, f"No complete answer within {limit_seconds:g} seconds.")
    return NoAnswer(FailureReason.UNREACHABLE, f"No connection within {min(CONNECT_SECONDS, limit_seconds):g} seconds.")


def _user_agent() -> str:
    try:
        version = importlib.metadata.version("aiotaskqueue-embedded")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "aiotaskqueue"
    return f"aiotaskqueue/{version}"
