"""Two pages make claims about the tests: which row of bad input, and which promise, is proven by which test. Both are checked."""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# `tests/test_x.py::test_y` and `tests/test_x.py::TestZ`.
TEST_NAME = re.compile(r"`(tests/[\w/]+\.py::[Tt]est\w+)`")

# Number, what is promised, how it is tested, by which tests.
PROMISE_ROW = re.compile(r'^\| <a id="(P\d+)"></a>\1 \| [^|]+ \| ([^|]+) \| ([^|]+) \|$', re.MULTILINE)


# --- what the tests say --------------------------------------------------------------------------------------------


def marks_in(node: ast.AST, kind: str) -> Iterator[str]:
    """Yield the arguments of every `pytest.mark.<kind>(...)` in an expression, also inside of pytest.param; not computed ones."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == f"pytest.mark.{kind}":
            yield from (str(argument.value) for argument in call.args if isinstance(argument, ast.Constant))


def marks_of_module(module: ast.Module, kind: str) -> set[str]:
    """Return what `pytestmark` says."""
    return {
        mark
        for statement in module.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "pytestmark"
        for mark in marks_in(statement.value, kind)
    }


def parts_that_test(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Yield the test functions and test classes of a module."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name.lower().startswith("test"):
            yield node


@functools.cache
def marked_tests(kind: str) -> Mapping[str, set[str]]:
    """Return the tests that carry a marker, by its arguments: `tests/test_x.py::test_y`."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        module = ast.parse(path.read_text())
        everywhere = marks_of_module(module, kind)
        for node in parts_that_test(module):
            own = {mark for decorator in node.decorator_list for mark in marks_in(decorator, kind)}
            for mark in own | everywhere:
                found[mark].add(f"{path.relative_to(ROOT)}::{node.name}")
    return found


# --- bad input -----------------------------------------------------------------------------------------------------


def documented_rows() -> list[int]:
    """Return the numbers in the first columns of docs/bad-input.md, in the order of the page."""
    text = (ROOT / "docs" / "bad-input.md").read_text()
    return [int(number) for number in re.findall(r"^\| (\d+) \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE)]


def test_every_row_of_bad_input_has_a_test() -> None:
    """Each number of the page is cited by a test, in the order in which they are told, and none is told twice."""
    rows, tested = documented_rows(), {int(row) for row in marked_tests("row")}

    assert sorted(set(rows)) == rows
    assert {*range(1, 53)} <= set(rows)
    assert [] == [row for row in rows if row not in tested]


def test_no_test_cites_a_row_that_is_not_there() -> None:
    """Each number that a test cites stands in the page."""
    assert set() == {int(row) for row in marked_tests("row")} - set(documented_rows())


# --- promises ------------------------------------------------------------------------------------------------------


def documented_promises() -> list[tuple[str, str, str]]:
    """Return the rows of the table of promises in docs/reliability.md: number, how it is tested, by what."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    return PROMISE_ROW.findall(text)


def test_every_promise_has_a_row() -> None:
    """The table has each promise once, in order."""
    assert [f"P{number}" for number in range(1, 26)] == [number for number, _, _ in documented_promises()]


PROMISES = [pytest.param(*row, id=row[0]) for row in documented_promises()]


@pytest.mark.parametrize(("number", "how", "where"), PROMISES)
def test_tests_of_a_promise_exist(number: str, how: str, where: str) -> None:
    """Each test that a promise's row names is there and carries its number."""
    assert set() == set(TEST_NAME.findall(where)) - marked_tests("promise").get(number, set())


@pytest.mark.parametrize(("number", "how", "where"), PROMISES)
def test_no_test_of_a_promise_is_kept_quiet(number: str, how: str, where: str) -> None:
    """Each test that carries a promise's number is named in its row, or the row says that there are more."""
    named = set(TEST_NAME.findall(where))

    assert where.endswith("and more") or marked_tests("promise").get(number, set()) <= named


@pytest.mark.parametrize(("number", "how", "where"), PROMISES)
def test_no_promise_is_proven_by_nothing(number: str, how: str, where: str) -> None:
    """A row either names tests, or says what there is not yet."""
    assert TEST_NAME.search(where) or "Not yet:" in how


def test_no_test_cites_a_promise_that_is_not_there() -> None:
    """Each number that a test cites stands in the table."""
    assert set() == set(marked_tests("promise")) - {number for number, _, _ in documented_promises()}
