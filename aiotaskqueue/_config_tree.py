"""What a configuration file says, before anybody asks what it means: a tree of text that knows where it stands.

YAML and TOML end in the same tree, with every scalar as text, so that there is one set of rules for both. App Engine
reads queue.yaml in that way, too: ``name: 123`` is a name and ``rate: 0`` a rate.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from typing import Any

import attrs

from aiotaskqueue._task_arguments import shorten
from aiotaskqueue.errors import MalformedQueueConfiguration

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
# A queue.yaml nests five deep (an acl's address); the readers call themselves once per level.
DEEPEST = 8

# No line of a queue.toml needs as many; a list of addresses may be written in several.
_MOST_DOTS = 64

_TOML_LINE = re.compile(r"at line ([0-9]+)")


@attrs.frozen
class Node:
    """A value in a file. Ask for it by the kind it should have; another kind is an error that names line and key."""

    value: str | list[Node] | dict[str, Node] | None
    """Text of a scalar, items, entries; None for a null."""
    source: str
    key: str = ""
    line: int | None = None
    """That of the key, where there is one; counted from 1. None: not known (TOML)."""

    def text(self) -> str:
        """Return the text of a scalar."""
        if isinstance(self.value, str):
            return self.value
        raise self._wrong_kind("a single value")

    def items(self) -> list[Node]:
        """Return the items of a list."""
        if isinstance(self.value, list):
            return self.value
        raise self._wrong_kind("a list")

    def entries(self, known: Collection[str]) -> dict[str, Node]:
        """Return the entries of a mapping, all of which must be `known`."""
        if not isinstance(self.value, dict):
            raise self._wrong_kind("a mapping of keys")
        for name, entry in self.value.items():
            if name not in known:
                raise entry.error(f"Key {shorten(name)} is unknown; known are {', '.join(known)}.")
        return self.value

    def error(self, message: str) -> MalformedQueueConfiguration:
        """Return an error that names this place."""
        return MalformedQueueConfiguration(message, source=self.source, line=self.line, key=self.key or None)

    def _wrong_kind(self, wanted: str) -> MalformedQueueConfiguration:
        if self.value is None:
            return self.error("Key has no value; give one or remove the key.")
        kinds = {str: "a single value", list: "a list", dict: "a mapping of keys"}
        return self.error(f"This is {kinds[type(self.value)]} and should be {wanted}.")


def entry_key(parent: str, name: str) -> str:
    """Return the dotted key of an entry: ``queue[0].rate``."""
    part = name if _PLAIN_KEY.fullmatch(name) else shorten(name)
    return f"{parent}.{part}" if parent else part


def item_key(parent: str, index: int) -> str:
    """Return the dotted key of an item: ``queue[0]``."""
    return f"{parent}[{index}]"


def parse_toml(text: str, source: str) -> Node | None:
    """Return the tree of a TOML document; None if it says nothing.

    Raises:
        MalformedQueueConfiguration: It is not TOML. The line is known for most errors of syntax and for no others.
    """
    _refuse_long_keys(text, source)
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # ValueError: syntax, or an int too long to convert
        line = _TOML_LINE.search(str(exc))
        message = f"The file is not TOML: {exc}."
        raise MalformedQueueConfiguration(message, source=source, line=int(line[1]) if line else None) from exc
    return _from_toml(table, source) if table else None


def _refuse_long_keys(text: str, source: str) -> None:
    """Refuse dotted keys that no queue file has: tomllib takes memory by the square of their length."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > _MOST_DOTS and not line.lstrip().startswith("#"):
            raise MalformedQueueConfiguration(f"The line has more than {_MOST_DOTS} dots.", source=source, line=number)


def _from_toml(value: Any, source: str, key: str = "", depth: int = 0) -> Node:
    """Return the node of a value that tomllib made."""
    if depth > DEEPEST:
        raise MalformedQueueConfiguration(f"Values are nested more than {DEEPEST} deep.", source=source, key=key)
    if isinstance(value, dict):
        entries = ((name, entry_key(key, name), entry) for name, entry in value.items())
        return Node({name: _from_toml(entry, source, path, depth + 1) for name, path, entry in entries}, source, key)
    if isinstance(value, list):
        return Node([_from_toml(item, source, item_key(key, i), depth + 1) for i, item in enumerate(value)], source, key)
    return Node(_text(value, source, key), source, key)


def _text(value: object, source: str, key: str) -> str:
    """Return a scalar as YAML would have it."""
    try:
        return str(value)
    except ValueError as exc:  # hexadecimal digits have no limit, those of the text have
        raise MalformedQueueConfiguration("The number is too long.", source=source, key=key) from exc
