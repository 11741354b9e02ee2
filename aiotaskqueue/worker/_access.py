"""The access check: is this request a delivery of ours, and one that has not been here before?

Theory of operation. An adapter for a web framework asks twice. `check` looks at the head of every request and never
waits; who is refused there loses the reserved headers, and gets 403 if the endpoint is a task. `admit` reads the body,
for tasks only, before any code of the user runs. Which endpoint is a task is the adapter's knowledge: the endpoint is
marked, not the path, so that no other spelling of a path leads around the check (RELIABILITY T5).

A genuine head is remembered until its signature expires, so that a copy of it is refused (T2), also one that arrives
while the first is still being handled.
"""

from __future__ import annotations

import heapq
import logging
import re
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import attrs

from aiotaskqueue._headers import parse_task_headers
from aiotaskqueue.signing import KeyRing, Refusal, RefusalReason, Verdict, verify_body, verify_head
from aiotaskqueue.worker._info import TaskInfo

if TYPE_CHECKING:
    from aiotaskqueue._clock import Clock

logger = logging.getLogger(__name__)

# Ten times the largest push task: room for a continuation's context and for other producers. Source: SPEC 4.7.
MAX_BODY_BYTES = 1_048_576

# About 14 MB when full; 3,000 deliveries a second at the default deadline of 30 s.
MAX_REMEMBERED_ATTEMPTS = 100_000

_LENGTH = re.compile(r"[0-9]{1,15}")


@attrs.frozen
class Admission:
    """A request whose head is genuine and new. Its body is not yet checked: see `AccessCheck.admit`."""

    verdict: Verdict
    info: TaskInfo


class AccessCheck:
    """Tells genuine deliveries from other requests, for all apps and endpoints of one process.

    Args:
        keys: Whose signatures are accepted; None: nobody's, until `use_keys`.
        clock: Tells the wall time for signatures, and the monotonic one for deadlines.
        is_live: Asked by `admit` with a task's uuid (hexadecimal) and the attempt's token, where a store can tell
            whether that attempt is still going on.
        max_remembered: How many attempts are remembered against replays. When they are more, those that expire first
            are forgotten.
    """

    def __init__(
        self,
        keys: KeyRing | None,
        clock: Clock,
        *,
        is_live: Callable[[str, str], Awaitable[bool]] | None = None,
        max_remembered: int = MAX_REMEMBERED_ATTEMPTS,
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._is_live = is_live
        self._seen = _SeenAttempts(max_remembered)
        self.rejections: Counter[RefusalReason] = Counter()
        """How many requests to tasks were answered with 403, by reason."""

    def use_keys(self, keys: KeyRing) -> None:
        """Accept the signatures of these keys from now on: a service knows its own only after its start."""
        self._keys = keys

    def check(self, method: str, raw_path_qs: str, headers: Iterable[tuple[str, str]]) -> Admission | Refusal:
        """Check the head of a request; never raises, and accepts each attempt once.

        Args:
            method: As received.
            raw_path_qs: The path and the query exactly as received, not decoded.
            headers: Names and values as received, repeated ones repeated.
        """
        if self._keys is None:
            return Refusal(RefusalReason.UNKNOWN_KEY)
        path, _, query = raw_path_qs.partition("?")
        now = self._clock.time()
        verdict = verify_head(self._keys, method=method, path=path, query=query, headers=headers, now=now)
        if isinstance(verdict, Refusal):
            return verdict
        try:
            task = parse_task_headers(verdict.fields)
        except ValueError:
            return Refusal(RefusalReason.MALFORMED)
        if not self._seen.add(verdict, now):
            return Refusal(RefusalReason.REPLAYED)
        return Admission(verdict, TaskInfo.from_headers(task, self._clock))

    async def admit(self, admission: Admission, read_body: Callable[[], Awaitable[bytes | None]]) -> Refusal | None:
        """Check the rest, for a request to a task; None: it may run.

        Args:
            admission: What `check` said about the head.
            read_body: Reads the body, which is at most MAX_BODY_BYTES long; None if the framework cannot or will not.
        """
        verdict = admission.verdict
        if not _has_fair_length(verdict.fields):
            return Refusal(RefusalReason.BODY_LENGTH)
        if self._is_live is not None and not await self._is_live(verdict.uuid, verdict.attempt):
            return Refusal(RefusalReason.NOT_LIVE)
        body = await read_body()
        if body is None:
            return Refusal(RefusalReason.UNREADABLE_BODY)
        return None if verify_body(verdict, body) else Refusal(RefusalReason.BAD_BODY)

    def reject(self, refusal: Refusal) -> None:
        """Count a request that is answered with 403; to be called once for each."""
        self.rejections[refusal.reason] += 1
        # Nothing of the request goes into the log: a stranger wrote it.
        logger.info("Refused a request to a task's handler: %s.", refusal.reason)


class _SeenAttempts:
    """Remembers attempts until their signatures expire.

    They expire by the second, and in a second there are thousands: so only the seconds are kept in order.
    """

    __slots__ = ("_attempts", "_by_expiry", "_has_warned", "_limit", "_seconds")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._attempts: set[str] = set()
        self._by_expiry: dict[int, deque[str]] = {}
        self._seconds: list[int] = []
        """The keys of that, as a heap."""
        self._has_warned = False

    def add(self, verdict: Verdict, now: float) -> bool:
        """Remember the attempt; False if it is remembered already."""
        self._forget_expired(now)
        # The first part always has 32 characters.
        attempt = verdict.uuid + verdict.attempt
        if attempt in self._attempts:
            return False
        if len(self._attempts) >= self._limit:
            self._forget_soonest()
        self._attempts.add(attempt)
        expiring = self._by_expiry.get(verdict.expires)
        if expiring is None:
            expiring = self._by_expiry[verdict.expires] = deque()
            heapq.heappush(self._seconds, verdict.expires)
        expiring.append(attempt)
        return True

    def _forget_expired(self, now: float) -> None:
        # The same comparison as for the signature: what is forgotten is refused as expired from here on.
        while self._seconds and now > self._seconds[0]:
            self._attempts.difference_update(self._by_expiry.pop(heapq.heappop(self._seconds)))

    def _forget_soonest(self) -> None:
        # To refuse new deliveries instead would stop the queue; this leaves the shortest possible time for a replay.
        expiring = self._by_expiry[self._seconds[0]]
        self._attempts.remove(expiring.popleft())
        if not expiring:
            del self._by_expiry[heapq.heappop(self._seconds)]
        if not self._has_warned:
            self._has_warned = True
            logger.warning("More than %d attempts at once: replays of the oldest are no longer refused.", self._limit)


def _has_fair_length(fields: Mapping[str, str]) -> bool:
    """Return whether the length of the body is known and small enough. Neither header: there is no body (RFC 9112 6.3)."""
    if "transfer-encoding" in fields:
        return False
    length = fields.get("content-length", "0")
    return _LENGTH.fullmatch(length) is not None and int(length) <= MAX_BODY_BYTES
