"""What every benchmark shares: rounds of a ceiling and of ours in turn, medians of their ratios, and the table.

Machines are noisy and drift, so an absolute figure says little. Each question here is a ratio: ours against a ceiling that
is measured in the same process and the same round. The first round is thrown away; the median of the others counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sqlite3
import statistics
import sys
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import attrs

ROUNDS = 5

Measure = Callable[[], Awaitable[float]]
T = TypeVar("T", int, float)


@attrs.frozen
class Bar:
    """A ratio that we have promised ourselves, and the one that we are after."""

    bar: float
    aim: float
    is_most: bool = False
    """Whether less is better."""

    def judge(self, value: float) -> str:
        """Return one word for a ratio."""
        for word, limit in (("aim", self.aim), ("bar", self.bar)):
            if value <= limit if self.is_most else value >= limit:
                return word
        return "MISSED"

    def __str__(self) -> str:
        return f"{'<=' if self.is_most else '>='} {self.bar:g} / {self.aim:g}"


@attrs.frozen
class Figure:
    """The answer to one question."""

    question: str
    against: str
    value: float
    """What is held against the bar."""
    spread: tuple[float, float]
    """The smallest and the largest of the rounds."""
    bar: Bar | None
    ours: str
    """Our own figure in words; it depends on the machine."""
    ceiling: str


@attrs.define
class Options:
    """How to run."""

    is_quick: bool = False
    figures: list[Figure] = attrs.Factory(list)

    @property
    def rounds(self) -> int:
        """How many rounds count."""
        return 3 if self.is_quick else ROUNDS

    def scale(self, count: T, quick: T) -> T:
        """Return how many of something to use."""
        return quick if self.is_quick else count

    def note(self, figure: Figure) -> None:
        """Take a figure in, and show it."""
        self.figures.append(figure)
        print(line_of(figure), flush=True)


async def compare(
    options: Options,
    question: str,
    against: str,
    bar: Bar | None,
    *,
    ours: Measure,
    ceiling: Measure,
    unit: str = "/s",
    is_time: bool = False,
) -> None:
    """Measure both in turn and note the median ratio, ours to the ceiling.

    Args:
        options: Where to note it.
        question: What is asked.
        against: What the ceiling is.
        bar: What is promised.
        ours: Returns our figure of one round.
        ceiling: Returns the ceiling's.
        unit: Of both.
        is_time: Both are times in seconds, shown in milliseconds.
    """
    pairs = []
    for _ in range(1 + options.rounds):
        at_best = await ceiling()
        pairs.append((await ours(), at_best))
    note_pairs(options, question, against, bar, pairs[1:], unit=unit, is_time=is_time)


def note_pairs(
    options: Options,
    question: str,
    against: str,
    bar: Bar | None,
    pairs: Sequence[tuple[float, float]],
    *,
    unit: str = "",
    is_time: bool = False,
) -> None:
    """Note the median of the ratios of (ours, ceiling)."""
    ratios = sorted(ours / ceiling for ours, ceiling in pairs)
    words = [_words(statistics.median(values), unit, is_time) for values in zip(*pairs, strict=True)]
    options.note(Figure(question, against, statistics.median(ratios), (ratios[0], ratios[-1]), bar, *words))


def note_one(options: Options, question: str, against: str, bar: Bar | None, value: float) -> None:
    """Note a figure that is no ratio, or was measured once."""
    options.note(Figure(question, against, value, (value, value), bar, "", ""))


def _words(value: float, unit: str, is_time: bool) -> str:
    return f"{value * 1000:.3f} ms" if is_time else f"{value:,.0f}{unit}"


def line_of(figure: Figure) -> str:
    """Return one row of the table."""
    low, high = figure.spread
    value = f"{figure.value:8.3f} ({low:.3f} to {high:.3f})"
    verdict = "" if figure.bar is None else f"{figure.bar} {figure.bar.judge(figure.value)}"
    against = f"against {figure.against}" if figure.against else ""
    return f"{figure.question:<62} {value:<28} {verdict:<22} {figure.ours:>12} {figure.ceiling:>12}  {against}".rstrip()


def machine() -> dict[str, str]:
    """Return what the figures were measured on."""
    packages = {name: version(name) for name in ("aiohttp", "aiosqlite", "anyio", "attrs")}
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        **packages,
    }


def main(bench: Callable[[Options], Awaitable[None]]) -> None:
    """Run one benchmark as a program: ``--quick`` for a first look, ``--json FILE`` to add the figures to a file."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the figures to this file, a line of JSON each")
    arguments = parser.parse_args()
    options = Options(arguments.quick)
    asyncio.run(bench(options))
    if arguments.json is not None:
        with arguments.json.open("a", encoding="utf-8") as file:
            for figure in options.figures:
                file.write(json.dumps({**attrs.asdict(figure), "machine": machine()}) + "\n")
