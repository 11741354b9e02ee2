"""Values of every kind for arguments that want another one, what a refusal has to look like, and budgets for searching."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC
from typing import Any, TypeVar

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from aiotaskqueue import errors

T = TypeVar("T")

# One sentence: a capital or the name of an argument, a full stop or "did you mean ...?" at the end.
SENTENCE = re.compile(r"([A-Z'/]|[a-z_.=]+[ :=])[^\n]{10,400}[.?]")

_COMMON = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
# The same examples on every run: what fails does so for whoever changed something.
_QUICK = settings(max_examples=80, derandomize=True, **_COMMON)  # type: ignore[arg-type]
_LONG = settings(max_examples=3_000, **_COMMON)  # type: ignore[arg-type]

searching = pytest.mark.parametrize(
    "budget",
    [
        pytest.param(_QUICK, id="quick", marks=pytest.mark.slow),
        pytest.param(_LONG, id="long", marks=[pytest.mark.crash, pytest.mark.timeout(3600)]),
    ],
)
"""Runs a test with a `budget` of few examples, always the same, and in the crash session with one of many."""


@attrs.frozen
class Odd:
    """Stands for a value that cannot be shown, so that a failing example can be."""

    name: str


class Opaque:
    """Has no repr, and is equal to nothing."""

    __hash__ = None  # type: ignore[assignment]  # neither has it a hash

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError

    def __repr__(self) -> str:
        raise OverflowError


def _nested(depth: int) -> list[Any]:
    innermost: list[Any] = []
    for _ in range(depth):
        innermost = [innermost]
    return innermost


_ODD: Mapping[str, Callable[[], Any]] = {
    "opaque": Opaque,
    "nested 100,000 deep": lambda: _nested(100_000),
    "5001 digits": lambda: 10**5000,
}


odd_values = [Odd(name) for name in sorted(_ODD)]
"""Values to which nothing can be done: no repr, no comparing, no hash, no end of nesting or of digits."""


def plain(value: Any) -> Any:
    """Return what an odd value stands for, in a mapping of arguments for each of them."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return _ODD[value.name]() if isinstance(value, Odd) else value


_NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**63) - 1, 2**64, 10**400, 1e12, -0.0, 1e300, float("inf"), float("nan")])
_AWKWARD = st.text(st.sampled_from("/?#%:@a2.-\ud800\udfff\0\n \u202e\xe9"), max_size=12)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    _NUMBERS,
    st.floats(),
    st.text(max_size=20),
    _AWKWARD,
    st.binary(max_size=10),
    st.decimals(allow_nan=False),
    st.fractions(),
    st.complex_numbers(),
    st.dates(),
    st.datetimes(),
    st.datetimes(timezones=st.just(UTC)),
    st.timedeltas(),
    st.uuids(),
    st.builds(object),
    st.just(int),
    st.just(range(3)),
    st.builds(bytearray, st.binary(max_size=3)),
    st.builds(memoryview, st.binary(max_size=3)),
    st.sampled_from(odd_values),
)
_KEYS = st.one_of(st.text(max_size=5), st.integers(), st.none(), st.binary(max_size=3))

anything: SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.lists(inner, max_size=2).map(iter),
        st.dictionaries(_KEYS, inner, max_size=3),
        st.sets(st.integers(), max_size=2),
    ),
    max_leaves=5,
)
"""A value of any kind, alone or in a collection of any kind."""


def some_of(strategies: Mapping[str, SearchStrategy[Any]]) -> SearchStrategy[dict[str, Any]]:
    """Return arguments by name: often a single one, for the first that is wrong hides the others."""
    alone = st.sampled_from(sorted(strategies)).flatmap(lambda name: st.fixed_dictionaries({name: strategies[name]}))
    return alone | st.fixed_dictionaries({}, optional=dict(strategies))


def refused(exc: Exception) -> None:
    """Check that a refusal is documented: one of our errors or a TypeError, in a sentence of ours."""
    assert isinstance(exc, errors.Error | TypeError)
    assert SENTENCE.fullmatch(str(exc)), str(exc)
    assert str(exc).isprintable()


def accepted(call: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
    """Call; return what it gives, None if it refuses as documented. Anything else that it raises fails the test."""
    try:
        return call(*map(plain, args), **plain(kwargs))
    except (errors.Error, TypeError) as exc:
        refused(exc)
        return None
