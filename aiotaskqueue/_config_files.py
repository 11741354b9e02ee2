"""The queues of a service: from objects, from App Engine's queue.yaml, or from the same in TOML.

Source: App Engine's queue.yaml (SPEC 5.1 to 5.4). A key of the file sets the field of that name in QueueConfig, which
checks it; here is what belongs to the file alone: its grammar of numbers, and what App Engine has and we have not.
"""

from __future__ import annotations

import codecs
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import attrs

from aiotaskqueue._config import LONGEST_SECONDS, SECONDS_PER_UNIT, QueueConfig
from aiotaskqueue._config_tree import Node, parse_toml
from aiotaskqueue._task import TaskRetryOptions
from aiotaskqueue._task_arguments import shorten
from aiotaskqueue.errors import ConfigError, InvalidQueueError, InvalidTaskRetryOptionsError, MalformedQueueConfiguration

T = TypeVar("T")

_logger = logging.getLogger("aiotaskqueue")

LARGEST_FILE_BYTES = 1024 * 1024

_UTF16_AND_32 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)

# Digits are bounded, so that no number in a file takes long to compute.
_DECIMAL = r"(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})(?:[eE][+-]?[0-9]{1,2})?"
_NUMBER = re.compile(rf"[+-]?{_DECIMAL}")
_AGE_LIMIT = re.compile(rf"(?P<number>{_DECIMAL})(?P<unit>[smhd])")
_STORAGE_LIMIT = re.compile(r"(?P<number>[0-9]{1,18}(?:\.[0-9]{0,18})?)(?P<suffix>[BKMGT]?)")
_STORAGE_SUFFIXES = "BKMGT"

# App Engine's defaults of the two bounds, by which it moves the one that is not given (SPEC 5.4).
_DEFAULT_MIN_BACKOFF_SECONDS = 0.1
_DEFAULT_MAX_BACKOFF_SECONDS = 3600

# What App Engine allows, by its documentation. We only warn: such a file would not work there.
_APP_ENGINE_QUEUES = 100
_APP_ENGINE_LARGEST = {"rate_per_second": 500, "bucket_size": 500, "max_concurrent_requests": 5000}


def load_queues(source: str | os.PathLike[str] | Iterable[QueueConfig] | None) -> tuple[QueueConfig, ...]:
    """Return the queues of a service, in their order; ``default`` comes last unless it is among them.

    Warnings (what App Engine would refuse, and what has no effect here) are logged to ``aiotaskqueue``.

    Args:
        source: Path of a .yaml, .yml or .toml file; or the queues themselves; or None for just ``default``.

    Raises:
        MalformedQueueConfiguration: The file is wrong or cannot be read; names file, line and key.
        ConfigError: `source` is none of these, has a queue twice, or needs PyYAML, which is not installed.
    """
    configs = _load(source)
    _warn(configs)
    if any(config.name == "default" for config in configs):
        return tuple(configs)
    return (*configs, QueueConfig("default"))


def _load(source: str | os.PathLike[str] | Iterable[QueueConfig] | None) -> Sequence[QueueConfig]:
    if source is None:
        return ()
    path = os.fspath(source) if isinstance(source, os.PathLike) else source
    if isinstance(path, str):
        return _load_file(Path(path))
    return _check_objects(path)


def _check_objects(source: Iterable[QueueConfig]) -> Sequence[QueueConfig]:
    """Return the queues in a list, each once."""
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise ConfigError(f"queues={shorten(source)} is neither a path nor a list of QueueConfig.")
    configs: dict[str, QueueConfig] = {}
    for config in source:
        if not isinstance(config, QueueConfig):
            raise ConfigError(f"queues= contains {shorten(config)}, which is not a QueueConfig.")
        if config.name in configs:
            raise ConfigError(f"Queue {config.name!r} is configured twice; a name is allowed once.")
        configs[config.name] = config
    return tuple(configs.values())


def _warn(configs: Sequence[QueueConfig]) -> None:
    """Log what App Engine would not accept and what is ignored."""
    if len(configs) > _APP_ENGINE_QUEUES:
        _logger.warning("There are %d queues; App Engine allows %d. Accepted.", len(configs), _APP_ENGINE_QUEUES)
    for config in configs:
        if config.mode == "pull" and config.rate is not None:
            _logger.warning("Queue %r is a pull queue: its rate %r is ignored.", config.name, config.rate)
        for field, largest in _APP_ENGINE_LARGEST.items():
            value = getattr(config, field)
            if value is not None and value > largest:
                message = "Queue %r has a %s of %g; App Engine allows %g. Accepted."
                _logger.warning(message, config.name, field, value, largest)


# --- files ---------------------------------------------------------------------------------------------------------


def _load_file(path: Path) -> Sequence[QueueConfig]:
    parse = _parser_for(path)
    tree = parse(_read_text(path), str(path))
    if tree is None:
        raise MalformedQueueConfiguration("The file is empty.", source=str(path))
    return _read_file(tree)


def _parser_for(path: Path) -> Callable[[str, str], Node | None]:
    suffix = path.suffix.lower()
    if suffix == ".toml":
        return parse_toml
    if suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"Queue file {shorten(str(path))} does not end in .yaml, .yml or .toml.")
    try:
        from aiotaskqueue._config_yaml import parse_yaml
    except ModuleNotFoundError as exc:
        raise ConfigError(
            f"Queue file {shorten(str(path))} needs PyYAML; pip install 'aiotaskqueue-embedded[yaml]', or write it as .toml."
        ) from exc
    return parse_yaml


def _read_text(path: Path) -> str:
    """Return the text of a file that is one, is not too long, and is UTF-8."""
    content = _read_bytes(path)
    if content.startswith(_UTF16_AND_32):
        raise MalformedQueueConfiguration("The file is UTF-16 or UTF-32; save it as UTF-8.", source=str(path))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise MalformedQueueConfiguration("The file is not UTF-8; save it as that.", source=str(path), line=line) from exc


def _read_bytes(path: Path) -> bytes:
    source = str(path)
    try:
        if path.exists() and not path.is_file():  # opening a FIFO would wait for its writer
            raise MalformedQueueConfiguration("This is not a regular file.", source=source)
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE_BYTES + 1)
    except (OSError, ValueError) as exc:  # ValueError: a NUL or a lone surrogate in the path
        raise MalformedQueueConfiguration(_why_unreadable(exc), source=source) from exc
    if len(content) > LARGEST_FILE_BYTES:
        raise MalformedQueueConfiguration(f"The file is longer than {LARGEST_FILE_BYTES} bytes.", source=source)
    return content


def _why_unreadable(exc: OSError | ValueError) -> str:
    """Return a sentence of ours; Python's has the number of the error, and the path once more."""
    if isinstance(exc, FileNotFoundError):
        return "The file does not exist; create it, or give the queues themselves."
    if isinstance(exc, PermissionError):
        return "The file may not be read by this process; change its owner or mode."
    if isinstance(exc, OSError):
        return f"The file cannot be read ({exc.strerror}); give the path of a file."
    return "The file cannot be read, since no file can be called so; give the path of a file."


def _read_file(tree: Node) -> Sequence[QueueConfig]:
    """Return the queues of a file's tree. SPEC 5.1."""
    entries = tree.entries(("application", "total_storage_limit", "resume_paused_queues", "queue"))
    for name, read in _WITHOUT_EFFECT.items():
        if name in entries:
            _warn_without_effect(entries[name], read(entries[name]))
    queue = entries.get("queue")
    if queue is None or queue.value is None:
        return ()
    return _read_queues(queue.items())


def _read_queues(nodes: Sequence[Node]) -> Sequence[QueueConfig]:
    configs: dict[str, QueueConfig] = {}
    for node in nodes:
        config = _read_queue(node)
        if config.name in configs:
            raise node.error(f"Queue {config.name!r} is configured twice; a name is allowed once.")
        configs[config.name] = config
    return tuple(configs.values())


def _read_queue(node: Node) -> QueueConfig:
    """Return one queue. Its fields are set one after the other, so that an error is that of the key just set."""
    entries = node.entries(("name", *_QUEUE_FIELDS, "retry_parameters", "acl"))
    if "name" not in entries:
        raise node.error("The queue has no name; give it one.")
    config = _build(entries["name"], QueueConfig, name=entries["name"].text())
    for field, read in _QUEUE_FIELDS.items():
        if field in entries:
            config = _build(entries[field], attrs.evolve, config, **{field: read(entries[field])})
    if "retry_parameters" in entries:
        config = attrs.evolve(config, retry_options=_read_retry_parameters(entries["retry_parameters"]))
    if "acl" in entries:
        _warn_without_effect(entries["acl"], _acl(entries["acl"]))
    return config


def _read_retry_parameters(node: Node) -> TaskRetryOptions:
    """Return the retry options. SPEC 5.4."""
    entries = node.entries(_RETRY_FIELDS)
    fields = {name: _RETRY_FIELDS[name](entry) for name, entry in entries.items()}
    for name, entry in entries.items():
        _build(entry, TaskRetryOptions, **{name: fields[name]})  # each alone: an error is that of its key
    return _build(node, TaskRetryOptions, **_with_other_bound(fields))


def _with_other_bound(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields with the backoff bound that is not given moved, where its default would contradict the other."""
    shortest, longest = fields.get("min_backoff_seconds"), fields.get("max_backoff_seconds")
    if longest is None and shortest is not None and shortest > _DEFAULT_MAX_BACKOFF_SECONDS:
        return {**fields, "max_backoff_seconds": shortest}
    if shortest is None and longest is not None and longest < _DEFAULT_MIN_BACKOFF_SECONDS:
        return {**fields, "min_backoff_seconds": longest}
    return fields


def _build(node: Node, function: Callable[..., T], *args: object, **fields: Any) -> T:
    """Call `function`; what it finds wrong is wrong at `node`."""
    try:
        return function(*args, **fields)
    except (InvalidQueueError, InvalidTaskRetryOptionsError) as exc:
        raise node.error(str(exc)) from exc


# --- values --------------------------------------------------------------------------------------------------------


def _number(node: Node) -> float:
    text = node.text()
    if not _NUMBER.fullmatch(text):
        raise node.error(f"{shorten(text)} is not a number such as 30 or 0.5.")
    return float(text)


def _integer(node: Node) -> int:
    """Return an integer; a fraction is cut off, as App Engine does (2.5 is 2), and less than 0 stays so (-0.5 is -1)."""
    return math.floor(_number(node))


def _integers(node: Node) -> list[int]:
    return [_integer(item) for item in node.items()]


def _age_limit(node: Node) -> int:
    """Return whole seconds, cut off: ``12345.5s`` is 12345."""
    text = node.text()
    match = _AGE_LIMIT.fullmatch(text)
    if match is None:
        raise node.error(f"{shorten(text)} is not a number and one of the units s, m, h and d, such as 2d or 1.5h.")
    seconds = int(Fraction(match["number"]) * SECONDS_PER_UNIT[match["unit"]])
    if not 1 <= seconds <= LONGEST_SECONDS:
        raise node.error(f"{shorten(text)} is {seconds} whole seconds and should be 1 to {LONGEST_SECONDS}.")
    return seconds


_QUEUE_FIELDS: Mapping[str, Callable[[Node], object]] = {
    "mode": Node.text,
    "rate": Node.text,
    "bucket_size": _integer,
    "max_concurrent_requests": _integer,
    "target": Node.text,
    "dispatch_deadline_seconds": _number,
    "tombstone_seconds": _number,
    "dead_retention_seconds": _number,
    "success_statuses": _integers,
    "jitter": _number,
    "crash_limit": _integer,
}

_RETRY_FIELDS: Mapping[str, Callable[[Node], float]] = {
    "task_retry_limit": _integer,
    "task_age_limit": _age_limit,
    "min_backoff_seconds": _number,
    "max_backoff_seconds": _number,
    "max_doublings": _integer,
}


# --- what App Engine has and we have not ---------------------------------------------------------------------------


def _warn_without_effect(node: Node, value: object) -> None:
    place = node.source if node.line is None else f"{node.source}, line {node.line}"
    _logger.warning("%s: %s (%s) has no effect here.", place, node.key, shorten(value))


def _storage_limit(node: Node) -> int:
    """Return bytes; ``1.5G`` is 1610612736, and a fraction needs a suffix."""
    text = node.text()
    match = _STORAGE_LIMIT.fullmatch(text)
    if match is None or ("." in match["number"] and not match["suffix"]):
        raise node.error(f"{shorten(text)} is not a number of bytes, or a number and one of B, K, M, G and T, such as 120M.")
    return int(Fraction(match["number"]) * 1024 ** _STORAGE_SUFFIXES.index(match["suffix"] or "B"))


def _boolean(node: Node) -> bool:
    text = node.text()
    if text.lower() not in {"true", "false"}:
        raise node.error(f"{shorten(text)} is not True or False.")
    return text.lower() == "true"


def _acl(node: Node) -> list[str]:
    """Return the addresses in an access control list."""
    return [_address(item) for item in node.items()]


def _address(node: Node) -> str:
    entries = node.entries(("user_email", "writer_email"))
    if len(entries) != 1:
        raise node.error("An entry of an acl is one user_email or one writer_email.")
    return next(iter(entries.values())).text()


_WITHOUT_EFFECT: Mapping[str, Callable[[Node], object]] = {
    "application": Node.text,
    "total_storage_limit": _storage_limit,
    "resume_paused_queues": _boolean,
}
