"""Pure checks of what a TaskQueueService is made and closed with, as far as no other room looks at it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiotaskqueue._clock import Clock
from aiotaskqueue._config import LARGEST_COUNT
from aiotaskqueue._task_arguments import MAX_DISPATCH_DEADLINE_SECONDS, shorten
from aiotaskqueue.delivery._base import Delivery
from aiotaskqueue.errors import ConfigError, InvalidArgumentError
from aiotaskqueue.stores._base import Store


def check_arguments(**arguments: object) -> None:
    """Check each by its rule; before anything is opened or read.

    Raises:
        ConfigError: One breaks it.
    """
    for name, value in arguments.items():
        is_fit, allowed = _RULES[name]
        if not is_fit(value):
            raise ConfigError(f"{name} is {shorten(value)}; give {allowed}.")


def check_timeout(timeout_seconds: object) -> float:
    """Return the time for a drain, in seconds; no attempt lasts longer than a day.

    Raises:
        TypeError: It is no number.
        InvalidArgumentError: It is out of range.
    """
    if isinstance(timeout_seconds, bool) or not isinstance(timeout_seconds, int | float):
        raise TypeError(f"timeout_seconds is {shorten(timeout_seconds)}; give a number of seconds.")
    if not 0 <= timeout_seconds <= MAX_DISPATCH_DEADLINE_SECONDS:
        raise InvalidArgumentError(
            f"timeout_seconds is {shorten(timeout_seconds)}; give a number from 0 to {MAX_DISPATCH_DEADLINE_SECONDS:g}."
        )
    return timeout_seconds


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= LARGEST_COUNT


def _is_flag(value: object) -> bool:
    # Not whatever counts as true: "false" does, and is what an environment variable would give.
    return isinstance(value, bool)


def _is_seed(value: object) -> bool:
    return value is None or type(value) is int


def _is_a(kind: type) -> Callable[[object], bool]:
    return lambda value: value is None or isinstance(value, kind)


_RULES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "max_concurrent_deliveries": (_is_count, f"a whole number from 1 to {LARGEST_COUNT}"),
    "dispatch": (_is_flag, "True or False"),
    "eager": (_is_flag, "True or False"),
    "seed": (_is_seed, "a whole number or None"),
    "clock": (_is_a(Clock), "a Clock or None"),
    "delivery": (_is_a(Delivery), "a Delivery or None"),
    "store": (_is_a(Store), "a Store or None"),
}
