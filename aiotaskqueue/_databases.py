"""From what a user calls a database to the store that keeps it: the table of schemes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Literal

from aiotaskqueue._masking import mask_url
from aiotaskqueue._task_arguments import shorten
from aiotaskqueue.errors import ConfigError
from aiotaskqueue.stores._base import Store
from aiotaskqueue.stores.sqlite import SQLiteStore

Durability = Literal["full", "normal"]

# A password that is not to become part of a path: pathlib makes one slash of two. On Windows one letter is a drive.
_BROKEN_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:.*@", re.DOTALL)

_ALLOWED = "allowed are a path, ':memory:' and 'sqlite:///path'"


def make_store(database: str | os.PathLike[str], durability: Durability) -> Store:
    """Return the store of `database`, not open yet.

    Raises:
        ConfigError: It is no path and no URL that we know; what may be a password is not shown.
    """
    name = os.fspath(database) if isinstance(database, os.PathLike) else database
    if not isinstance(name, str):
        raise ConfigError(f"The database is of type {type(name).__name__}; {_ALLOWED}.")
    if name.startswith("file:"):
        raise ConfigError(f"The database {shorten(mask_url(name))} is a URI of SQLite's, whose options could make it unsafe; {_ALLOWED}.")
    scheme, separator, rest = name.partition("://")
    if not separator and _BROKEN_URL.match(name):
        raise ConfigError(f"The database {name.partition(':')[0] + ':***'!r} is neither a path nor a whole URL; {_ALLOWED}.")
    if not separator:
        return SQLiteStore(name, durability=durability)
    if scheme not in _SCHEMES:
        raise ConfigError(f"The database {scheme[:60] + '://***'!r} has an unknown scheme; {_ALLOWED}.")
    return _SCHEMES[scheme](rest, durability)


def _make_sqlite(rest: str, durability: Durability) -> Store:
    if not rest.startswith("/"):
        raise ConfigError(f"The database 'sqlite://***' names a host; {_ALLOWED}.")
    return SQLiteStore(rest.removeprefix("/"), durability=durability)


_SCHEMES: Mapping[str, Callable[[str, Durability], Store]] = {"sqlite": _make_sqlite}
