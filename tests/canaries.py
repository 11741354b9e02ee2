"""Canaries stand for secrets, one for each place that may hold one; ears hear whether one of them gets out.

A canary is text in four letters, so that any eight of it in a row are found in whatever surrounds them, also when a repr
cut it off or a log line quoted only its middle. Encoded it is found as well.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import logging
import random
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from aiotaskqueue import Task

_LETTERS = "QXZ7"
_RUN = re.compile(f"[{_LETTERS}]{{8,}}")

_LENGTH = 48

LOGGERS = ("", "aiotaskqueue", "aiohttp", "aiosqlite", "asyncio", "concurrent")


class Canaries(dict[str, str]):
    """Canaries by the name of the place that holds them; made when asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._rng = random.Random(1)
        self.others: dict[str, set[str]] = {}

    def __missing__(self, name: str) -> str:
        self[name] = "".join(self._rng.choices(_LETTERS, k=_LENGTH))
        raw = self[name].encode()
        self.others[name] = {raw.hex(), *(base64.b64encode(raw[start:]).decode()[:40] for start in range(3))}
        return self[name]

    def know(self, name: str, secret: str) -> None:
        """Listen to a secret that somebody else made."""
        self.others.setdefault(name, set()).add(secret)

    def find(self, text: str) -> set[str]:
        """Return the names of the canaries that are in the text, whole or in part, plain or encoded."""
        found = {self._name_of(run) for run in _RUN.findall(text)}
        pieces = ((name, other[start : start + 12]) for name, others in self.others.items() for other in others for start in (0, 12, 24))
        return found | {name for name, piece in pieces if len(piece) == 12 and piece in text}

    def _name_of(self, run: str) -> str:
        names = (name for name, canary in self.items() if any(run[start : start + 8] in canary for start in range(len(run) - 7)))
        return next(names, f"unknown {run}")


class Ears(logging.Handler):
    """Hears what is logged, warned of, raised where nobody sees it, and what it is given; for the length of a block."""

    def __init__(self, canaries: Canaries) -> None:
        super().__init__(logging.DEBUG)
        self.canaries = canaries
        self.heard: list[tuple[str, str]] = []
        """Where, and what."""
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
        self._warnings = warnings.catch_warnings(record=True)
        self._levels: dict[str, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        for name in LOGGERS:
            logger = logging.getLogger(name)
            self._levels[name] = logger.level
            logger.setLevel(logging.DEBUG)
        logging.getLogger().addHandler(self)
        warned = self._warnings.__enter__()
        assert warned is not None
        self._warned = warned
        warnings.simplefilter("always")
        self._hook, sys.unraisablehook = sys.unraisablehook, self._hear_unraisable
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        sys.unraisablehook = self._hook
        if self._loop is not None:
            self._loop.set_debug(False)
        self.heard += [(f"a {warning.category.__name__}", str(warning.message)) for warning in self._warned]
        self._warnings.__exit__(exc_type, exc, tb)
        logging.getLogger().removeHandler(self)
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Hear a log record, its arguments and its traceback."""
        self.heard.append((where_of(record), f"{self.format(record)} {record.args!r}"))
        record.exc_text = None

    def debug_loop(self) -> None:
        """Let the event loop say what it does, step by step."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_debug(True)
        self._loop.slow_callback_duration = -1.0

    def hear(self, thing: object) -> None:
        """Hear what an object says of itself."""
        name = type(thing).__name__
        self.heard += [(f"str of {name}", str(thing)), (f"repr of {name}", repr(thing))]

    def hear_error(self, error: BaseException) -> None:
        """Hear an error, all those behind it, and the traceback of all."""
        self.heard.append(("a traceback", "".join(traceback.format_exception(error))))
        for exc in chain_of(error):
            self.hear(exc)
            self.heard.append((f"arguments of {type(exc).__name__}", repr((exc.args, vars(exc)))))

    def look_around(self) -> None:
        """Hear every object of ours that there is, and every future, task and callback of the event loop."""
        # What has no owner any more warns when it goes.
        gc.collect()
        for thing in gc.get_objects():
            kind = type(thing)
            # Not isinstance, which asks proxies of other tests what they stand for. Errors are heard where they are raised.
            if issubclass(kind, BaseException):
                continue
            if (str(kind.__module__).startswith("aiotaskqueue") and is_whole(thing)) or issubclass(kind, (asyncio.Future, asyncio.Handle)):
                self.hear(thing)

    def leaks(self) -> list[str]:
        """Return which canaries were heard, and where."""
        return sorted({f"{name} in {where}" for where, text in self.heard for name in self.canaries.find(text)})

    def _hear_unraisable(self, unraisable: Any) -> None:
        self.heard.append(("an error that nobody could raise", f"{unraisable.err_msg} {unraisable.object!r}"))
        self.hear_error(unraisable.exc_value)


def is_whole(thing: object) -> bool:
    """Whether the object can say what it is: a task that was refused half-way cannot, and nobody has it."""
    return type(thing) is not Task or hasattr(thing, "_was_deleted")


def where_of(record: logging.LogRecord) -> str:
    """Return a few words for where a record was logged; what a handler raises is told apart."""
    if record.name == "aiotaskqueue.web.aiohttp" and record.exc_info and record.getMessage().startswith("Task "):
        return "the log of a handler's own exception"
    return f"the log {record.name} {record.levelname}"


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all that it came of, also where a traceback does not show it."""
    if error is None:
        return
    yield error
    for other in (error.__cause__, error.__context__):
        yield from chain_of(other)
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from chain_of(member)
