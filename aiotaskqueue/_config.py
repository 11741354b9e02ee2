"""QueueConfig: how one queue behaves.

Every field checks itself, so that a wrong configuration cannot exist; loading files is the business of _config_files.

Source: App Engine's queue.yaml (SPEC 5.2), whose names and defaults these are, and DESIGN 3 for the rest.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

import attrs

from aiotaskqueue._task import TaskRetryOptions
from aiotaskqueue._task_arguments import MAX_DISPATCH_DEADLINE_SECONDS, MIN_DISPATCH_DEADLINE_SECONDS, shorten
from aiotaskqueue.errors import InvalidQueueError, InvalidQueueNameError

DEFAULT_BUCKET_SIZE = 5
DEFAULT_MAX_CONCURRENT_REQUESTS = 32

# App Engine has no such limit, but the level of a bucket has to fit in 64 bits (see _token_bucket).
LARGEST_COUNT = 100_000_000

# 317 years: in microseconds and added to the present it fits in 64 bits.
LONGEST_SECONDS = 10_000_000_000

_NAME = re.compile(r"[a-zA-Z0-9-]{1,100}")

# "0" or number/unit. Digits are bounded, so that the next token of the slowest queue is still a moment in 64 bits.
_RATE = re.compile(r"0|(?P<number>[0-9]{1,9}(?:\.[0-9]{0,6})?)/(?P<unit>[smhd])")

# [version.]module; both lower-case letters, digits and hyphens, not starting with a hyphen.
_TARGET = re.compile(r"(?:(?!-)[a-z0-9-]{1,100}\.)?(?!-)[a-z0-9-]{1,63}")

SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

_Check = Callable[["QueueConfig", "attrs.Attribute[Any]", Any], None]


def check_queue_name(name: object) -> str:
    """Return `name` if a queue may be called so.

    Args:
        name: 1 to 100 of the letters a-z and A-Z, digits and hyphen.

    Raises:
        InvalidQueueNameError: It may not.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise InvalidQueueNameError(f"Queue name {shorten(name)} does not match ^{_NAME.pattern}$.")


def _check_name(config: QueueConfig, attribute: attrs.Attribute[str], value: str) -> None:
    check_queue_name(value)


def _refuse(config: QueueConfig, attribute: attrs.Attribute[Any], value: object, allowed: str) -> InvalidQueueError:
    return InvalidQueueError(f"Queue {config.name!r} has {attribute.name} {shorten(value)}, which is not {allowed}.")


def _choice(*allowed: str) -> _Check:
    """Return a check: one of these words."""

    def check(config: QueueConfig, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, str) or value not in allowed:
            raise _refuse(config, attribute, value, " or ".join(repr(word) for word in allowed))

    return check


def _text(pattern: re.Pattern[str], description: str) -> _Check:
    """Return a check: None, or text that matches."""

    def check(config: QueueConfig, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None or (isinstance(value, str) and pattern.fullmatch(value)):
            return
        raise _refuse(config, attribute, value, description)

    return check


def _integer(low: int, high: int) -> _Check:
    """Return a check: an int from `low` to `high`."""

    def check(config: QueueConfig, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _refuse(config, attribute, value, f"an integer from {low} to {high}")

    return check


def _number(low: float, high: float) -> _Check:
    """Return a check: an int or float from `low` to `high`."""

    def check(config: QueueConfig, attribute: attrs.Attribute[Any], value: object) -> None:
        # nan compares as false, infinity is above
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise _refuse(config, attribute, value, f"a number from {low} to {high}")

    return check


def _check_retry_options(config: QueueConfig, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, TaskRetryOptions):
        raise _refuse(config, attribute, value, "a TaskRetryOptions or None")


def _check_success_statuses(config: QueueConfig, attribute: attrs.Attribute[Any], value: object) -> None:
    # 1xx never ends an exchange (RFC 9110 section 15.2); without any 2xx no handler could ever succeed by intent.
    if not isinstance(value, frozenset) or not all(isinstance(status, int) and 200 <= status <= 599 for status in value):
        raise _refuse(config, attribute, value, "a set of integers from 200 to 599")
    if not any(status < 300 for status in value):
        raise _refuse(config, attribute, value, "a set with at least one status from 200 to 299")


def _to_bucket_size(value: int) -> int:
    """Return the default for 0, as on App Engine."""
    return DEFAULT_BUCKET_SIZE if _is_zero(value) else value


def _to_max_concurrent_requests(value: int) -> int:
    """Return the default for 0, as on App Engine."""
    return DEFAULT_MAX_CONCURRENT_REQUESTS if _is_zero(value) else value


def _is_zero(value: object) -> bool:
    return type(value) is int and value == 0  # not False, nor 0.0: the check refuses them


def _frozen(value: Any) -> Any:
    """Return a frozenset of `value`, or what cannot be one as it is: the check says what is wrong with it."""
    try:
        return frozenset(value)
    except TypeError:
        return value


@attrs.frozen
class QueueConfig:
    """How one queue behaves. Everything but the name has a default.

    Raises:
        InvalidQueueNameError: The name is not allowed.
        InvalidQueueError: Another field is not.

    Example:
        >>> QueueConfig("mail", rate="90/m", bucket_size=10).rate_per_second
        1.5

    Source: App Engine's queue.yaml.
    """

    name: str = attrs.field(validator=_check_name)
    """1 to 100 letters, digits and hyphens."""

    mode: Literal["push", "pull"] = attrs.field(kw_only=True, default="push", validator=_choice("push", "pull"))
    """Whether we post the tasks to their URLs, or consumers lease them."""

    rate: str | None = attrs.field(
        kw_only=True,
        default=None,
        validator=_text(_RATE, "'0' or a number/unit such as '5/s' or '2000/d' (s, m, h, d; at most 9 digits and 6 decimals)"),
    )
    """How many tasks start in the long run: number/unit, the unit being s, m, h or d; ``"0"`` pauses, None sets no limit.

    Of a pull queue it is ignored.
    """

    bucket_size: int = attrs.field(
        kw_only=True, default=DEFAULT_BUCKET_SIZE, converter=_to_bucket_size, validator=_integer(0, LARGEST_COUNT)
    )
    """How many tasks may start at once after a rest, with a rate only. 0 is the default."""

    max_concurrent_requests: int = attrs.field(
        kw_only=True,
        default=DEFAULT_MAX_CONCURRENT_REQUESTS,
        converter=_to_max_concurrent_requests,
        validator=_integer(0, LARGEST_COUNT),
    )
    """How many tasks of a push queue run at the same time, over all processes. 0 is the default."""

    retry_options: TaskRetryOptions | None = attrs.field(kw_only=True, default=None, validator=_check_retry_options)
    """For tasks that bring none of their own; `retry_parameters` in a file."""

    target: str | None = attrs.field(
        kw_only=True,
        default=None,
        validator=_text(_TARGET, "[version.]module in lower-case letters, digits and hyphens (at most 100 and 63 characters)"),
    )
    """A name in the service's ``targets``, before the task's own; None: the task's, or the service's default target."""

    dispatch_deadline_seconds: float = attrs.field(
        kw_only=True, default=30.0, validator=_number(MIN_DISPATCH_DEADLINE_SECONDS, MAX_DISPATCH_DEADLINE_SECONDS)
    )
    """How long one attempt may take, 1 s to 24 h, for tasks that do not say."""

    tombstone_seconds: float = attrs.field(kw_only=True, default=777_600, validator=_number(0, LONGEST_SECONDS))
    """How long the name of a finished task stays reserved (9 days); 0 frees it at once."""

    dead_retention_seconds: float = attrs.field(kw_only=True, default=2_592_000, validator=_number(0, LONGEST_SECONDS))
    """How long a task that was given up is kept (30 days)."""

    success_statuses: frozenset[int] = attrs.field(
        kw_only=True, default=frozenset({200}), converter=_frozen, validator=_check_success_statuses
    )
    """HTTP statuses, 200 to 599, that end a task successfully; at least one of 200 to 299."""

    jitter: float = attrs.field(kw_only=True, default=0.1, validator=_number(0, 1))
    """Retry delays are multiplied by a random number between 1 and 1 + this; 0 <= x <= 1."""

    crash_limit: int = attrs.field(kw_only=True, default=3, validator=_integer(1, LARGEST_COUNT))
    """A task that was the only one in flight at this many crashes in a row is dead."""

    @functools.cached_property
    def exact_rate(self) -> Fraction | None:
        """The rate in tokens per second, not rounded; 0 pauses the queue, None sets no limit (as for any pull queue)."""
        if self.rate is None or self.mode == "pull":
            return None
        return _parse_rate(self.rate)

    @functools.cached_property
    def rate_per_second(self) -> float | None:
        """The rate in tokens per second; 0.0 pauses the queue, None sets no limit (as for any pull queue)."""
        return None if self.exact_rate is None else float(self.exact_rate)


def _parse_rate(text: str) -> Fraction:
    """Return a rate per second; exact, since a bucket must not drift. SPEC 5.3."""
    match = _RATE.fullmatch(text)
    assert match is not None, "checked on construction"
    if match["unit"] is None:
        return Fraction(0)
    return Fraction(match["number"].rstrip(".")) / SECONDS_PER_UNIT[match["unit"]]
