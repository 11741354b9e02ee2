"""QueueConfig, and the queues of a service from objects and from files that are wrong in every way."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiotaskqueue._config import QueueConfig, check_queue_name
from aiotaskqueue._config_files import LARGEST_FILE_BYTES, load_queues
from aiotaskqueue._config_tree import Node, parse_toml
from aiotaskqueue._config_yaml import parse_yaml
from aiotaskqueue._task import TaskRetryOptions
from aiotaskqueue.errors import ConfigError, InvalidQueueError, InvalidQueueNameError, MalformedQueueConfiguration

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a queue file and returns its path."""

    def write(content: str | bytes, name: str = "queue.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def malformed(path: Path) -> MalformedQueueConfiguration:
    """Return the error that loading this file ends with."""
    with pytest.raises(MalformedQueueConfiguration) as caught:
        load_queues(path)
    return caught.value


# --- QueueConfig ---------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    """A queue with nothing but a name has the documented defaults."""
    expected: dict[str, Any] = {
        "name": "mail",
        "mode": "push",
        "rate": None,
        "bucket_size": 5,
        "max_concurrent_requests": 32,
        "retry_options": None,
        "target": None,
        "dispatch_deadline_seconds": 30.0,
        "tombstone_seconds": 777_600,
        "dead_retention_seconds": 2_592_000,
        "success_statuses": frozenset({200}),
        "jitter": 0.1,
        "crash_limit": 3,
    }

    assert expected == attrs.asdict(QueueConfig("mail"))


def test_is_a_value() -> None:
    """Two equal configurations are one key of a dict, also after one was asked for its rate."""
    first, second = QueueConfig("mail", rate="5/s"), QueueConfig("mail", rate="5/s")
    assert 5.0 == first.rate_per_second

    assert {first: "same"} == {second: "same"}


def test_cannot_be_changed() -> None:
    """A configuration stays as it was checked."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        QueueConfig("mail").bucket_size = 0  # type: ignore[misc]  # that is what we test


@pytest.mark.parametrize("name", ["a", "A-9", "-", "123", "x" * 100])
def test_good_names(name: str) -> None:
    """Letters, digits and hyphens make a name, 1 to 100 of them."""
    assert name == check_queue_name(name)


@pytest.mark.parametrize("name", ["", "a_b", "a.b", "a b", "mail\n", "ä", "x" * 101, None, 5, b"mail"])
def test_bad_names(name: Any) -> None:
    """Anything else does not, a trailing newline included."""
    with pytest.raises(InvalidQueueNameError, match=r"does not match \^\[a-zA-Z0-9-\]\{1,100\}\$\."):
        QueueConfig(name)


GOOD = [
    ("mode", "pull"),
    ("rate", None),
    ("bucket_size", 1),
    ("bucket_size", 100_000_000),
    ("max_concurrent_requests", 1),
    ("retry_options", TaskRetryOptions(task_retry_limit=1)),
    ("target", "mailer"),
    ("dispatch_deadline_seconds", 1),
    ("dispatch_deadline_seconds", 86_400),
    ("tombstone_seconds", 0),
    ("dead_retention_seconds", 0.5),
    ("success_statuses", frozenset({204})),
    ("success_statuses", frozenset({200, 410, 599})),
    ("jitter", 0),
    ("jitter", 1),
    ("crash_limit", 1),
]


@pytest.mark.parametrize(("field", "value"), GOOD)
def test_good_values(field: str, value: Any) -> None:
    """Values within their ranges, the bounds included, are taken as they are."""
    config = attrs.evolve(QueueConfig("mail"), **{field: value})

    assert value == getattr(config, field)


BAD = [
    ("mode", "PuLl", "'push' or 'pull'"),
    ("mode", None, "'push' or 'pull'"),
    ("rate", 5, "'0' or a number/unit"),
    ("bucket_size", -1, "an integer from 0 to 100000000"),
    ("bucket_size", 1.5, "an integer"),
    ("bucket_size", False, "an integer"),
    ("bucket_size", 100_000_001, "an integer from 0 to 100000000"),
    ("max_concurrent_requests", -1, "an integer from 0 to 100000000"),
    ("max_concurrent_requests", "5", "an integer"),
    ("retry_options", {"task_retry_limit": 1}, "a TaskRetryOptions or None"),
    ("target", "", "[version.]module"),
    ("target", 5, "[version.]module"),
    ("dispatch_deadline_seconds", 0, "a number from 1.0 to 86400.0"),
    ("dispatch_deadline_seconds", -1, "a number from 1.0 to 86400.0"),
    ("dispatch_deadline_seconds", 1e9, "a number from 1.0 to 86400.0"),
    ("dispatch_deadline_seconds", float("nan"), "a number"),
    ("dispatch_deadline_seconds", True, "a number"),
    ("dispatch_deadline_seconds", "30", "a number"),
    ("tombstone_seconds", -1, "a number from 0 to 10000000000"),
    ("tombstone_seconds", float("inf"), "a number"),
    ("dead_retention_seconds", None, "a number"),
    ("success_statuses", (), "at least one status from 200 to 299"),
    ("success_statuses", {300}, "at least one status from 200 to 299"),
    ("success_statuses", 200, "a set of integers from 200 to 599"),
    ("success_statuses", {100, 200}, "a set of integers from 200 to 599"),
    ("success_statuses", {200, 600}, "a set of integers from 200 to 599"),
    ("success_statuses", {"200"}, "a set of integers"),
    ("success_statuses", {200.0}, "a set of integers"),
    ("success_statuses", [[200]], "a set of integers"),
    ("jitter", -0.1, "a number from 0 to 1"),
    ("jitter", 1.1, "a number from 0 to 1"),
    ("crash_limit", 0, "an integer from 1 to 100000000"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), BAD)
def test_bad_values(field: str, value: Any, allowed: str) -> None:
    """A value out of its range is refused with queue, field and what is allowed."""
    with pytest.raises(InvalidQueueError) as caught:
        attrs.evolve(QueueConfig("mail"), **{field: value})

    assert str(caught.value).startswith(f"Queue 'mail' has {field} ")
    assert allowed in str(caught.value)


def test_number_too_long_to_print_is_refused() -> None:
    """A number of more digits than Python prints is an error of ours like any other."""
    with pytest.raises(InvalidQueueError):
        QueueConfig("mail", bucket_size=10**5000)


def test_long_values_are_cut_in_messages() -> None:
    """A message quotes at most 80 characters of what is wrong."""
    with pytest.raises(InvalidQueueError) as caught:
        QueueConfig("mail", target="x" * 10_000)

    assert len(str(caught.value)) < 300


def test_success_statuses_become_a_frozenset() -> None:
    """Any iterable of statuses will do."""
    statuses: Any = [200, 204, 200]

    assert frozenset({200, 204}) == QueueConfig("mail", success_statuses=statuses).success_statuses


@pytest.mark.parametrize(("rate", "expected"), [(None, None), ("0", 0), ("0/s", 0), ("5/s", 5), ("2000/d", Fraction(5, 216))])
def test_exact_rate(rate: str | None, expected: Fraction | None) -> None:
    """The rate is a fraction of tokens and seconds, not rounded."""
    assert expected == QueueConfig("mail", rate=rate).exact_rate


def test_pull_queue_has_no_rate() -> None:
    """The rate of a pull queue is ignored."""
    config = QueueConfig("mail", mode="pull", rate="5/s")

    assert (None, None) == (config.rate_per_second, config.exact_rate)


# --- load_queues: objects ------------------------------------------------------------------------------------------


def test_nothing_means_just_default() -> None:
    """Without configuration there is one queue, called default, without a rate (SPEC D22)."""
    assert (QueueConfig("default"),) == load_queues(None)


def test_default_is_added() -> None:
    """The queues that are given come first, in their order."""
    mail, crunch = QueueConfig("mail"), QueueConfig("crunch", mode="pull")

    assert (mail, crunch, QueueConfig("default")) == load_queues(iter([mail, crunch]))


def test_default_may_be_configured() -> None:
    """A queue called default that is given is the default queue."""
    default = QueueConfig("default", rate="1/s")

    assert (default,) == load_queues([default])


BAD_SOURCES = [
    ([QueueConfig("mail"), QueueConfig("mail", rate="1/s")], "Queue 'mail' is configured twice"),
    (["mail"], "'mail', which is not a QueueConfig"),
    (QueueConfig("mail"), "neither a path nor a list"),
    (5, "neither a path nor a list"),
    ("queue.json", "'queue.json' does not end in .yaml, .yml or .toml."),
    ("", "does not end in"),
]


@pytest.mark.parametrize(("source", "message"), BAD_SOURCES)
def test_bad_sources(source: Any, message: str) -> None:
    """What is neither a file of ours nor a list of queues, each once, is refused."""
    with pytest.raises(ConfigError) as caught:
        load_queues(source)

    assert message in str(caught.value)


OVER_LIMITS = [
    (QueueConfig("mail", rate="501/s"), "Queue 'mail' has a rate_per_second of 501; App Engine allows 500. Accepted."),
    (QueueConfig("mail", bucket_size=501), "Queue 'mail' has a bucket_size of 501; App Engine allows 500. Accepted."),
    (
        QueueConfig("mail", max_concurrent_requests=5001),
        "Queue 'mail' has a max_concurrent_requests of 5001; App Engine allows 5000. Accepted.",
    ),
    (QueueConfig("mail", mode="pull", rate="5/s"), "Queue 'mail' is a pull queue: its rate '5/s' is ignored."),
]


@pytest.mark.parametrize(("config", "warning"), OVER_LIMITS)
def test_what_app_engine_refuses_is_warned_about(config: QueueConfig, warning: str, caplog: pytest.LogCaptureFixture) -> None:
    """What App Engine would refuse or ignore is accepted with a warning (RELIABILITY 116, 118)."""
    assert config in load_queues([config])
    assert [("aiotaskqueue", logging.WARNING, warning)] == caplog.record_tuples


def test_what_app_engine_allows_is_not_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """The largest values that App Engine allows pass in silence."""
    load_queues([QueueConfig("mail", rate="500/s", bucket_size=500, max_concurrent_requests=5000)])

    assert [] == caplog.record_tuples


def test_more_queues_than_app_engine_allows(caplog: pytest.LogCaptureFixture) -> None:
    """More than a hundred queues are accepted with a warning."""
    load_queues([QueueConfig(f"mail-{i}") for i in range(101)])

    assert ["There are 101 queues; App Engine allows 100. Accepted."] == caplog.messages


# --- load_queues: files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["queue.yaml", "queue.yml", "QUEUE.YAML"])
def test_yaml_by_suffix(write: Write, name: str) -> None:
    """A file is YAML by its name, given as text or as a path."""
    path = write("queue:\n- name: mail\n", name)

    assert (QueueConfig("mail"), QueueConfig("default")) == load_queues(path) == load_queues(str(path))


def test_own_keys_in_yaml(write: Write) -> None:
    """The fields that App Engine does not know are keys of the file, too."""
    text = """
queue:
- name: mail
  dispatch_deadline_seconds: 600
  success_statuses: [200, 204]
  tombstone_seconds: 0
  dead_retention_seconds: 86400.5
  jitter: 0
  crash_limit: 5
"""
    expected = QueueConfig(
        "mail",
        dispatch_deadline_seconds=600,
        success_statuses=frozenset({200, 204}),
        tombstone_seconds=0,
        dead_retention_seconds=86_400.5,
        jitter=0,
        crash_limit=5,
    )

    assert expected == load_queues(write(text))[0]


def test_toml_with_bare_numbers(write: Write) -> None:
    """TOML's own numbers and booleans mean what their text means in YAML."""
    text = """
resume_paused_queues = true
[[queue]]
name = "mail"
rate = 0
bucket_size = 2.5
retry_parameters = {task_retry_limit = 7, min_backoff_seconds = 10}
"""
    options = TaskRetryOptions(task_retry_limit=7, min_backoff_seconds=10)

    assert QueueConfig("mail", rate="0", bucket_size=2, retry_options=options) == load_queues(write(text, "queue.toml"))[0]


def test_byte_order_mark_is_skipped(write: Write) -> None:
    """A UTF-8 file may start with a byte order mark, as some editors write it."""
    yaml, toml = write(b"\xef\xbb\xbfqueue: []\n"), write(b"\xef\xbb\xbfqueue = []\n", "queue.toml")

    assert load_queues(None) == load_queues(yaml) == load_queues(toml)


def test_missing_pyyaml_says_what_to_install(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyYAML the error says what to install."""
    monkeypatch.delitem(sys.modules, "aiotaskqueue._config_yaml")
    monkeypatch.setitem(sys.modules, "yaml", None)

    with pytest.raises(ConfigError, match=r"pip install 'aiotaskqueue-embedded\[yaml\]'"):
        load_queues(write("queue: []\n"))


@pytest.mark.parametrize("content", ["", "\n", "# nothing\n", "---\n", "~\n"])
def test_empty_yaml(write: Write, content: str) -> None:
    """A file that says nothing is an error: it was meant to say something."""
    assert "The file is empty." in str(malformed(write(content)))


def test_empty_toml(write: Write) -> None:
    """The same for TOML."""
    assert "The file is empty." in str(malformed(write("# nothing\n", "queue.toml")))


MALFORMED_YAML = [
    ("queue", None, 1, "This is a single value and should be a mapping of keys."),
    ("- name: mail", None, 1, "This is a list and should be a mapping of keys."),
    ("queue: mail", "queue", 1, "This is a single value and should be a list."),
    ("queue: {name: mail}", "queue", 1, "This is a mapping of keys and should be a list."),
    ("queue:\n- mail", "queue[0]", 2, "This is a single value and should be a mapping of keys."),
    ("queue:\n- name: [mail]", "queue[0].name", 2, "This is a list and should be a single value."),
    ("queue:\n- name:\n", "queue[0].name", 2, "Key has no value; give one or remove the key."),
    ("queue:\n- name: mail\n  rate: ~\n", "queue[0].rate", 3, "Key has no value"),
    ("queue:\n-", "queue[0]", 2, "Key has no value"),
    ("queue:\n- name: mail\n\tmode: push\n", None, 3, "The file is not YAML: found character '\\t'"),
    ("queue: [", None, 1, "The file is not YAML: expected the node content"),
    ("queue: %", None, 1, "The file is not YAML: found character '%'"),
    ("queue:\n- name: a\0b", None, 2, "special characters are not allowed (#x0000)"),
    ("queue: []\nqueue: []\n", None, 2, "Key 'queue' is there twice, first in line 1."),
    ("queue:\n- name: mail\n  rate: 1/s\n  rate: 2/s\n", "queue[0]", 4, "Key 'rate' is there twice, first in line 3."),
    ("queues: []", "queues", 1, "Key 'queues' is unknown; known are application, total_storage_limit"),
    ("queue:\n- name: mail\n  rte: 1/s\n", "queue[0].rte", 3, "Key 'rte' is unknown"),
    ("queue:\n- name: mail\n  a b: 1\n", "queue[0].'a b'", 3, "Key 'a b' is unknown"),
    ("queue:\n- name: mail\n  retry_parameters: {limit: 1}\n", "queue[0].retry_parameters.limit", 3, "Key 'limit' is unknown"),
    ("? [a]\n: b\n", None, 1, "A key has to be plain text."),
    ("queue: !!python/object/apply:os.system [ls]", "queue", 1, "Tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
    ("queue:\n- name: !mine mail", "queue[0].name", 2, "Tag '!mine' is not allowed; write plain values."),
    ("queue:\n- name: !!binary bWFpbA==", "queue[0].name", 2, "Tag 'tag:yaml.org,2002:binary' is not allowed"),
    ("queue: &all []", "queue", 1, "Anchors and aliases ('all') are not allowed; write the value out."),
    ("queue: *all", "queue", 1, "Anchors and aliases ('all') are not allowed; write the value out."),
    ("&a queue: []", None, 1, "Anchors and aliases ('a') are not allowed"),
    ("a: &a [x]\nb: [*a, *a]\nc: [*a, *a]", "a", 1, "Anchors and aliases"),
    ("queue: []\n---\nqueue: []\n", None, 2, "The file has more than one document; only one is allowed."),
    ("queue: " + "[" * 20, "queue[0][0][0][0][0][0][0][0]", 1, "Values are nested more than 8 deep."),
]


@pytest.mark.parametrize(("text", "key", "line", "message"), MALFORMED_YAML)
def test_malformed_yaml(write: Write, text: str, key: str | None, line: int, message: str) -> None:
    """Every fault in a YAML file is named with its line, and with its key where there is one (RELIABILITY 114)."""
    path = write(text)
    error = malformed(path)

    assert (str(path), line, key) == (error.source, error.line, error.key)
    assert message in str(error)


def test_standard_scalar_tags_are_allowed(write: Write) -> None:
    """A tag that says no more than that a value is plain does no harm."""
    path = write("!!str queue:\n- name: !!str 123\n  bucket_size: !!int 7\n  rate: ! 5/s\n")

    assert QueueConfig("123", bucket_size=7, rate="5/s") == load_queues(path)[0]


MALFORMED_TOML = [
    ("queue = 5", "queue", None, "This is a single value and should be a list."),
    ("queue = [", None, None, "The file is not TOML: Invalid value"),
    ("\n[[queue]]\nname = mail\n", None, 3, "The file is not TOML: Invalid value"),
    ("[[queue]]\nname = 'a'\nname = 'b'\n", None, 3, "Cannot overwrite a value"),
    ("[[queue]]\nname = 'a'\nrate = '5'\n", "queue[0].rate", None, "'0' or a number/unit"),
    ("[[queue]]\nname = 'a'\n[queue.retry_parameters]\ntask_age_limit = 5\n", "queue[0].retry_parameters.task_age_limit", None, "'5'"),
    ("[[queue]]\nname = 'a'\nbucket_size = nan\n", "queue[0].bucket_size", None, "'nan' is not a number"),
    ("[[queue]]\nname = 'a'\nbucket_size = 2020-01-01\n", "queue[0].bucket_size", None, "'2020-01-01' is not a number"),
    ("[[queue]]\nname = 'a'\nbucket_size = 0x" + "f" * 5000, "queue[0].bucket_size", None, "The number is too long."),
    ("[[queue]]\nname = 'a'\nbucket_size = " + "9" * 5000, None, None, "The file is not TOML"),
    ("queue = [[[[[[[[[]]]]]]]]]", "queue[0][0][0][0][0][0][0][0]", None, "Values are nested more than 8 deep."),
    ("\n" + "a." * 65 + "a = 1", None, 2, "The line has more than 64 dots."),
    ("queue = " + "[" * 100_000, None, None, "The file is not TOML"),
]


@pytest.mark.parametrize(("text", "key", "line", "message"), MALFORMED_TOML)
def test_malformed_toml(write: Write, text: str, key: str | None, line: int | None, message: str) -> None:
    """Every fault in a TOML file is named with its key, or with its line if it is one of syntax and the parser tells."""
    path = write(text, "queue.toml")
    error = malformed(path)

    assert (str(path), line, key) == (error.source, error.line, error.key)
    assert message in str(error)


def test_comment_of_dots(write: Write) -> None:
    """A line of dots that is a comment is no long key."""
    assert load_queues(None) == load_queues(write(f"  # {'.' * 100}\nqueue = []\n", "queue.toml"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be"])
def test_other_unicode_is_refused(write: Write, encoding: str) -> None:
    """A file in UTF-16 or UTF-32 is refused, with a byte order mark by name."""
    error = malformed(write("queue: []\n".encode(encoding)))

    assert ("save it as UTF-8" in str(error)) == (encoding != "utf-16-be")


def test_other_encodings_are_refused(write: Write) -> None:
    """A file that is not UTF-8 is refused with the line of the first byte that is not."""
    error = malformed(write("queue: []\n# ä\n".encode("latin-1")))

    assert (2, True) == (error.line, "The file is not UTF-8" in str(error))


def test_longest_file(write: Write) -> None:
    """A file of a mebibyte is read, and one of a byte more is refused before it is looked at."""
    text = "queue = []\n#"
    longest = text + "x" * (LARGEST_FILE_BYTES - len(text))
    assert load_queues(None) == load_queues(write(longest, "queue.toml"))

    assert "The file is longer than 1048576 bytes." in str(malformed(write(longest + "x", "queue.toml")))


def test_directory_is_refused(tmp_path: Path) -> None:
    """A directory is no configuration."""
    (tmp_path / "queue.yaml").mkdir()

    assert "This is not a regular file." in str(malformed(tmp_path / "queue.yaml"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="This system has no FIFOs.")
def test_fifo_is_refused(tmp_path: Path) -> None:
    """A FIFO is refused without waiting for somebody to write to it."""
    os.mkfifo(tmp_path / "queue.toml")

    assert "This is not a regular file." in str(malformed(tmp_path / "queue.toml"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.yaml", "The file does not exist; create it, or give the queues themselves."),
        ("missing.toml", "The file does not exist; create it, or give the queues themselves."),
        ("no/folder.toml", "The file does not exist; create it, or give the queues themselves."),
        ("a/b.toml", "The file cannot be read (Not a directory); give the path of a file."),
        ("n" * 300 + ".toml", "The file cannot be read (File name too long); give the path of a file."),
        ("nul\0.toml", "The file cannot be read, since no file can be called so; give the path of a file."),
        ("\ud800.yaml", "The file cannot be read, since no file can be called so; give the path of a file."),
    ],
)
def test_file_that_cannot_be_read(tmp_path: Path, name: str, reason: str) -> None:
    """A file that is not there, or whose name cannot be one, is named in a sentence of ours."""
    (tmp_path / "a").touch()
    error = malformed(tmp_path / name)

    assert (str(tmp_path / name), True) == (error.source, str(error).endswith(f": {reason}"))
    assert str(error).isprintable()


def test_file_that_may_not_be_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without permission to read is named, with what to do."""
    path = write("queue: []\n")

    def refuse(path: Path, mode: str) -> None:
        # What chmod does to everybody but root, who may run the tests.
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)

    assert str(malformed(path)).endswith("The file may not be read by this process; change its owner or mode.")


# --- properties ----------------------------------------------------------------------------------------------------

# Named characters, and not all of Unicode: what matters to a parser, and no tables to build.
CHARACTERS = "\0\a\t\n\r :-?,[]{}#&*!|>'\"%@`=.\\~<05ainsé\x85\u2028\ufeff\U0001f600"
WORDS = ["queue", ": ", "\n- ", "name: ", "rate = ", "[[queue]]\n", "&a ", "*a ", "!!str ", "5/s", "1e99", "---\n"]

texts = st.lists(st.sampled_from([*WORDS, *CHARACTERS]), max_size=30).map("".join)


@pytest.mark.parametrize("parse", [parse_yaml, parse_toml])
@given(text=texts)
def test_any_text_is_read_or_refused(parse: Callable[[str, str], Node | None], text: str) -> None:
    """Whatever a file contains, it is a tree or a MalformedQueueConfiguration, and either knows the file."""
    found: Node | MalformedQueueConfiguration | None
    try:
        found = parse(text, "queue.any")
    except MalformedQueueConfiguration as exc:
        found = exc

    assert found is None or found.source == "queue.any"


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "5/s", "pull", "2d", "mailer"])


@given(fields=st.dictionaries(st.sampled_from([*attrs.fields_dict(QueueConfig)][1:]), scalars | st.lists(scalars), max_size=2))
def test_a_config_is_right_or_refused(fields: dict[str, Any]) -> None:
    """Whatever a QueueConfig is made of, it exists with limits that let something start, or it is an error of ours."""
    config = QueueConfig("mail")
    with contextlib.suppress(InvalidQueueError):
        config = QueueConfig("mail", **fields)

    assert min(config.bucket_size, config.max_concurrent_requests, config.crash_limit) >= 1
