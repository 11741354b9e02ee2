"""The Delivery seam: carries one attempt to its handler and says how it ended."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import attrs

from aiotaskqueue._masking import show_size
from aiotaskqueue.signing import GRACE_SECONDS

if TYPE_CHECKING:
    from aiotaskqueue._clock import Clock
    from aiotaskqueue._record import TaskRecord

# How much of an answer that is no success is kept for the attempt log (RELIABILITY T15).
DETAIL_BYTES = 2048

# Source: App Engine's limit of a response.
MAX_ANSWER_BYTES = 32 * 1024 * 1024

SIGNATURE_REFUSED = "Signature refused: keys or clock differ?"
"""The detail of a 403 without a word to a signed request: so answer our own middlewares."""


__all__ = ["DETAIL_BYTES", "GRACE_SECONDS", "MAX_ANSWER_BYTES", "SIGNATURE_REFUSED", "Answer", "Delivery", "FailureReason", "NoAnswer"]


class FailureReason(enum.StrEnum):
    """Why an attempt got no complete answer."""

    DEADLINE = "deadline"
    """No complete answer before deadline + grace."""
    TRUNCATED = "truncated"
    """The head came, the body did not come to its end."""
    MALFORMED = "malformed"
    """What came is not HTTP."""
    TOO_LARGE = "too-large"
    """The body is larger than the cap."""
    DISCONNECTED = "disconnected"
    """The connection ended after the request was sent; whether the handler ran is unknown."""
    UNREACHABLE = "unreachable"
    """No connection: refused, DNS, TLS. The request was not sent."""
    STALE = "stale"
    """A reused connection ended before the first byte of an answer: it was most likely closed before we wrote."""
    CANCELLED = "cancelled"
    """We gave it up ourselves, since the service closes."""
    ERROR = "error"
    """The delivery itself failed; see the detail."""


@attrs.frozen
class Answer:
    """A complete answer: status line, head and body, in time."""

    status: int
    retry_after: str | None = attrs.field(default=None, repr=show_size)
    """The header Retry-After as sent."""
    detail: str = attrs.field(default="", repr=show_size)
    """The start of the body, at most 2 KiB, without terminal codes; empty for a success."""


@attrs.frozen
class NoAnswer:
    """Anything else."""

    reason: FailureReason
    detail: str = attrs.field(default="", repr=show_size)

    @property
    def was_executed(self) -> bool:
        """Whether the attempt counts as an execution: the request was sent and ran into the deadline or was answered.

        A truncated, malformed or too large answer is an answer.
        """
        return self.reason in _EXECUTED


_EXECUTED = frozenset({FailureReason.DEADLINE, FailureReason.TRUNCATED, FailureReason.MALFORMED, FailureReason.TOO_LARGE})


class Delivery(ABC):
    """Carries tasks to one target. Opened and closed by the service; used by many attempts at once."""

    has_answered: bool = False
    """Whether the target has answered anything since the start. Until then, a refused connection is no attempt."""

    async def open(self, clock: Clock) -> None:
        """Get ready to deliver, with deadlines and timestamps from `clock`."""

    @abstractmethod
    async def deliver(self, record: TaskRecord, *, deadline_seconds: float) -> Answer | NoAnswer:
        """Make one attempt and say how it ended; takes at most `deadline_seconds` + grace from the first byte sent.

        Never raises, but for cancellation.
        """

    async def aclose(self) -> None:
        """Free everything; twice is fine."""
