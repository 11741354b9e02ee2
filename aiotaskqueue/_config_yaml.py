"""YAML to a tree of nodes. Imported only when a YAML file is read: needs PyYAML, the extra ``[yaml]``.

Built from the parser's events and not from what a loader would construct: nothing is ever executed or expanded, and
every value has its line. What a queue.yaml has no use for is refused: anchors and aliases (the billion laughs), tags,
several documents, duplicate keys, deep nesting.
"""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from aiotaskqueue._config_tree import DEEPEST, Node, entry_key, item_key
from aiotaskqueue._task_arguments import shorten
from aiotaskqueue.errors import MalformedQueueConfiguration

_PLAIN_TAGS = frozenset({None, "!", *(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null"))})
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


def parse_yaml(text: str, source: str) -> Node | None:
    """Return the tree of a YAML document; None if it says nothing.

    Raises:
        MalformedQueueConfiguration: It is not YAML, or has what is refused here.
    """
    try:
        return _Reader(yaml.parse(text, Loader=yaml.SafeLoader), source).read()
    except yaml.YAMLError as exc:
        message, line = _explain(exc, text)
        raise MalformedQueueConfiguration(f"The file is not YAML: {message}.", source=source, line=line) from exc


def _explain(exc: yaml.YAMLError, text: str) -> tuple[str, int | None]:
    """Return what PyYAML found wrong, and in which line."""
    if isinstance(exc, yaml.MarkedYAMLError):
        mark = exc.problem_mark or exc.context_mark
        return exc.problem or exc.context or "syntax error", mark.line + 1 if mark else None
    assert isinstance(exc, yaml.reader.ReaderError)
    return f"{exc.reason} (#x{exc.character:04x})", text.count("\n", 0, exc.position) + 1


class _Reader:
    """Turns events into nodes."""

    def __init__(self, events: Iterator[yaml.Event], source: str) -> None:
        self._events = events
        self._source = source

    def read(self) -> Node | None:
        document = None
        for event in self._events:
            if not isinstance(event, yaml.DocumentStartEvent):
                continue
            if document is not None:
                raise self._error(event, "The file has more than one document; only one is allowed.")
            document = self._node(next(self._events), key="")
        return None if document is None or document.value is None else document

    def _node(self, event: yaml.Event, key: str, line: int | None = None, depth: int = 0) -> Node:
        self._check(event, key, depth)
        value: str | list[Node] | dict[str, Node] | None
        if isinstance(event, yaml.ScalarEvent):
            is_null = event.implicit[0] and event.value in _NULLS
            value = None if is_null else event.value
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._items(key, depth + 1)
        else:
            value = self._entries(key, depth + 1)
        return Node(value, self._source, key, line or _line(event))

    def _items(self, key: str, depth: int) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, item_key(key, len(items)), depth=depth))
        return items

    def _entries(self, key: str, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            name = self._name(event, key, entries)
            entries[name] = self._node(next(self._events), entry_key(key, name), _line(event), depth)
        return entries

    def _name(self, event: yaml.Event, key: str, entries: dict[str, Node]) -> str:
        self._check(event, key)
        if not isinstance(event, yaml.ScalarEvent):
            raise self._error(event, "A key has to be plain text.", key)
        name: str = event.value
        if name in entries:
            raise self._error(event, f"Key {shorten(name)} is there twice, first in line {entries[name].line}.", key)
        return name

    def _check(self, event: yaml.Event, key: str, depth: int = 0) -> None:
        """Refuse what a queue.yaml has no use for."""
        assert isinstance(event, yaml.NodeEvent)
        if event.anchor is not None:
            raise self._error(event, f"Anchors and aliases ({shorten(event.anchor)}) are not allowed; write the value out.", key)
        assert isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent))  # an alias has an anchor
        if event.tag not in _PLAIN_TAGS:
            raise self._error(event, f"Tag {shorten(event.tag)} is not allowed; write plain values.", key)
        if depth > DEEPEST:
            raise self._error(event, f"Values are nested more than {DEEPEST} deep.", key)

    def _error(self, event: yaml.Event, message: str, key: str = "") -> MalformedQueueConfiguration:
        return MalformedQueueConfiguration(message, source=self._source, line=_line(event), key=key or None)


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None
    return event.start_mark.line + 1
