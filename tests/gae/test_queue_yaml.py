"""App Engine's queue.yaml, rule by rule. Source: SPEC 5.1 to 5.5 (GAE queueinfo)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from aiotaskqueue._config import QueueConfig
from aiotaskqueue._config_files import load_queues
from aiotaskqueue._task import TaskRetryOptions
from aiotaskqueue.errors import MalformedQueueConfiguration

EXAMPLE_YAML = """\
total_storage_limit: 120M
queue:
- name: default
  rate: 10/s
- name: mail
  rate: 2000/d
  bucket_size: 10
  max_concurrent_requests: 4
  target: v2.mailer
  retry_parameters: {task_retry_limit: 7, task_age_limit: 2d, min_backoff_seconds: 10, max_backoff_seconds: 300, max_doublings: 3}
- name: crunch
  mode: pull
  retry_parameters: {task_retry_limit: 3}
  acl:
  - user_email: a@example.com
  - writer_email: b@example.com
"""

EXAMPLE_TOML = """\
total_storage_limit = "120M"

[[queue]]
name = "default"
rate = "10/s"

[[queue]]
name = "mail"
rate = "2000/d"
bucket_size = 10
max_concurrent_requests = 4
target = "v2.mailer"

[queue.retry_parameters]
task_retry_limit = 7
task_age_limit = "2d"
min_backoff_seconds = 10
max_backoff_seconds = 300
max_doublings = 3

[[queue]]
name = "crunch"
mode = "pull"
retry_parameters = {task_retry_limit = 3}
acl = [{user_email = "a@example.com"}, {writer_email = "b@example.com"}]
"""

EXAMPLE = (
    QueueConfig("default", rate="10/s"),
    QueueConfig(
        "mail",
        rate="2000/d",
        bucket_size=10,
        max_concurrent_requests=4,
        target="v2.mailer",
        retry_options=TaskRetryOptions(
            task_retry_limit=7, task_age_limit=172_800, min_backoff_seconds=10, max_backoff_seconds=300, max_doublings=3
        ),
    ),
    QueueConfig("crunch", mode="pull", retry_options=TaskRetryOptions(task_retry_limit=3)),
)

Load = Callable[[str], tuple[QueueConfig, ...]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Return a function that loads the text of a queue.yaml."""

    def load(text: str) -> tuple[QueueConfig, ...]:
        path = tmp_path / "queue.yaml"
        path.write_text(text, encoding="utf-8")
        return load_queues(path)

    return load


def mail(*lines: str) -> str:
    """Return a queue.yaml with one queue that has these lines."""
    return "\n".join(["queue:", "- name: mail", *(f"  {line}" for line in lines)])


def retry(*entries: str) -> str:
    """Return a queue.yaml with one queue that has these retry parameters."""
    return mail(f"retry_parameters: {{{', '.join(entries)}}}")


def refusal(load: Load, text: str) -> MalformedQueueConfiguration:
    """Return the error that loading this text ends with."""
    with pytest.raises(MalformedQueueConfiguration) as caught:
        load(text)
    return caught.value


# --- the example, SPEC 5.5 -----------------------------------------------------------------------------------------


def test_example(load: Load) -> None:
    """The documentation's example means what it says."""
    assert load(EXAMPLE_YAML) == EXAMPLE


def test_example_in_toml(tmp_path: Path) -> None:
    """The same in TOML gives the same queues."""
    path = tmp_path / "queue.toml"
    path.write_text(EXAMPLE_TOML, encoding="utf-8")

    assert load_queues(path) == EXAMPLE


def test_example_warns_of_what_has_no_effect(load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What App Engine does for a queue and we do not is named in a warning, with its place."""
    load(EXAMPLE_YAML)
    path = tmp_path / "queue.yaml"

    assert [
        ("aiotaskqueue", logging.WARNING, f"{path}, line 1: total_storage_limit (125829120) has no effect here."),
        ("aiotaskqueue", logging.WARNING, f"{path}, line 14: queue[2].acl (['a@example.com', 'b@example.com']) has no effect here."),
    ] == caplog.record_tuples


def test_warning_without_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In TOML, where lines are not known, the warning names file and key."""
    path = tmp_path / "queue.toml"
    path.write_text("application = 'students'\n", encoding="utf-8")
    load_queues(path)

    assert [f"{path}: application ('students') has no effect here."] == caplog.messages


# --- top level, SPEC 5.1 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["application: students", "queue: []", "queue:", "{}"])
def test_queues_may_be_absent(load: Load, text: str) -> None:
    """A file without queues leaves the default queue."""
    assert load(text) == (QueueConfig("default"),)


@pytest.mark.parametrize(
    ("limit", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1.5B", 1),
        ("1K", 1024),
        ("1.M", 1_048_576),
        ("120M", 125_829_120),
        ("1.5G", 1_610_612_736),
        ("1T", 1024**4),
    ],
)
def test_total_storage_limit(load: Load, limit: str, size: int, caplog: pytest.LogCaptureFixture) -> None:
    """A storage limit is bytes, or a number and a suffix that stands for a power of 1024."""
    load(f"total_storage_limit: {limit}")

    assert f"total_storage_limit ({size}) has no effect here." in caplog.text


@pytest.mark.parametrize("limit", ["1.5", "5.", "120m", "1.5g", "M", "-1", "1 M", "1e3", "120MB", "''", "", "~"])
def test_bad_total_storage_limit(load: Load, limit: str) -> None:
    """A fraction of bytes, a lower-case suffix and no value at all are refused, although the limit has no effect."""
    error = refusal(load, f"total_storage_limit: {limit}")

    assert (1, "total_storage_limit") == (error.line, error.key)


@pytest.mark.parametrize(("text", "value"), [("True", True), ("False", False), ("true", True)])
def test_resume_paused_queues(load: Load, text: str, value: bool, caplog: pytest.LogCaptureFixture) -> None:
    """resume_paused_queues is True or False, and has no effect."""
    load(f"resume_paused_queues: {text}")

    assert f"resume_paused_queues ({value}) has no effect here." in caplog.text


@pytest.mark.parametrize("text", ["1", "yes", "maybe", "[True]"])
def test_bad_resume_paused_queues(load: Load, text: str) -> None:
    """Anything else is refused."""
    assert "resume_paused_queues" == refusal(load, f"resume_paused_queues: {text}").key


# --- queues, SPEC 5.2 ----------------------------------------------------------------------------------------------


def test_queue_without_a_name(load: Load) -> None:
    """A queue has to have a name."""
    error = refusal(load, "queue:\n- name: mail\n- rate: 5/s\n")

    assert (3, "queue[1]", True) == (error.line, error.key, "The queue has no name" in str(error))


@pytest.mark.parametrize("name", ["123", "007", "no", "2020-01-01"])
def test_names_are_text(load: Load, name: str) -> None:
    """A name is what is written, also where YAML would see a number, a boolean or a date."""
    assert name == load(f"queue: [{{name: {name}}}]")[0].name


def test_quoted_null_is_text(load: Load) -> None:
    """A null in quotes is a word like any other."""
    assert load("queue: [{name: 'null'}]")[0].name == "null"


@pytest.mark.parametrize("name", ["a_b", "a.b", "''", "x" * 101, "ma il", "mail/x"])
def test_bad_names(load: Load, name: str) -> None:
    """A name that Queue would refuse is refused here, and so is an empty one (D16)."""
    error = refusal(load, f"queue:\n- rate: 5/s\n  name: {name}\n")

    assert (3, "queue[0].name") == (error.line, error.key)


def test_duplicate_names(load: Load) -> None:
    """A name may be there once."""
    error = refusal(load, "queue:\n- name: mail\n- name: other\n- name: mail\n")

    assert (4, "queue[2]", True) == (error.line, error.key, "Queue 'mail' is configured twice" in str(error))


@pytest.mark.parametrize("mode", ["push", "pull"])
def test_modes(load: Load, mode: str) -> None:
    """A queue is a push or a pull queue."""
    assert mode == load(mail(f"mode: {mode}"))[0].mode


@pytest.mark.parametrize("mode", ["PuLl", "Push", "''", "pullpush", "lease"])
def test_bad_modes(load: Load, mode: str) -> None:
    """Modes are lower-case words."""
    assert "queue[0].mode" == refusal(load, mail(f"mode: {mode}")).key


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 5), ("0.9", 5), ("1", 1), ("1.5", 1), ("2.5", 2), ("'7'", 7), ("1e2", 100), ("501", 501)]
)
def test_bucket_size(load: Load, text: str, expected: int) -> None:
    """A bucket size is cut to an integer, and 0 is the default (RELIABILITY 116)."""
    assert expected == load(mail(f"bucket_size: {text}"))[0].bucket_size


@pytest.mark.parametrize(("text", "expected"), [("0", 32), ("4", 4), ("4.9", 4), ("5001", 5001)])
def test_max_concurrent_requests(load: Load, text: str, expected: int) -> None:
    """The number of concurrent requests likewise."""
    assert expected == load(mail(f"max_concurrent_requests: {text}"))[0].max_concurrent_requests


@pytest.mark.parametrize("text", ["-1", "-0.5", "five", "0x10", "1_000", "nan", ".inf", "1e99", "[5]", "true", ""])
@pytest.mark.parametrize("field", ["bucket_size", "max_concurrent_requests"])
def test_bad_counts(load: Load, field: str, text: str) -> None:
    """What is no number, or less than 0, is refused."""
    error = refusal(load, mail(f"{field}: {text}"))

    assert (3, f"queue[0].{field}") == (error.line, error.key)


@pytest.mark.parametrize("target", ["mailer", "v2.mailer", "1", "1.2", "a-", "a" * 63, "v" * 100 + "." + "m" * 63])
def test_targets(load: Load, target: str) -> None:
    """A target is a module, or a version and a module; numbers are fine."""
    assert target == load(mail(f"target: {target}"))[0].target


@pytest.mark.parametrize("target", ["a.b.c", "'a:b'", "Mailer", "-a", "v.-a", "a_b", "a" * 64, "v" * 101 + ".m", ".m", "v.", "''"])
def test_bad_targets(load: Load, target: str) -> None:
    """Three parts, a colon, upper case and parts that are too long are refused."""
    assert "queue[0].target" == refusal(load, mail(f"target: {target}")).key


BAD_ACLS = [
    ("a@example.com", "queue[0].acl"),
    ("[a@example.com]", "queue[0].acl[0]"),
    ("[{}]", "queue[0].acl[0]"),
    ("[{user_email: a@example.com, writer_email: b@example.com}]", "queue[0].acl[0]"),
    ("[{owner_email: a@example.com}]", "queue[0].acl[0].owner_email"),
    ("[{user_email: [a@example.com]}]", "queue[0].acl[0].user_email"),
]


@pytest.mark.parametrize(("acl", "key"), BAD_ACLS)
def test_bad_acls(load: Load, acl: str, key: str) -> None:
    """An access control list is checked although it has no effect."""
    error = refusal(load, mail(f"acl: {acl}"))

    assert (3, key) == (error.line, error.key)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("success_statuses: 200", "queue[0].success_statuses"),
        ("success_statuses: [200, ok]", "queue[0].success_statuses[1]"),
        ("success_statuses: [404]", "queue[0].success_statuses"),
        ("dispatch_deadline_seconds: 0", "queue[0].dispatch_deadline_seconds"),
        ("tombstone_seconds: -1", "queue[0].tombstone_seconds"),
        ("dead_retention_seconds: x", "queue[0].dead_retention_seconds"),
        ("jitter: 2", "queue[0].jitter"),
        ("crash_limit: 0", "queue[0].crash_limit"),
    ],
)
def test_bad_values_of_our_own_keys(load: Load, line: str, key: str) -> None:
    """Keys that App Engine does not have are checked like its own."""
    error = refusal(load, mail(line))

    assert (3, key) == (error.line, error.key)


# --- rates, SPEC 5.3 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        ("0", 0.0),
        ("0/s", 0.0),
        ("5/s", 5.0),
        ("1.5/s", 1.5),
        ("1.5/m", 0.025),
        ("7200/h", 2.0),
        ("7200./h", 2.0),
        ("2000/d", 2000 / 86_400),
        ("'5/s'", 5.0),
    ],
)
def test_rates(load: Load, rate: str, expected: float) -> None:
    """A rate is 0, or a number per second, minute, hour or day."""
    assert expected == load(mail(f"rate: {rate}"))[0].rate_per_second


BAD_RATES = [
    *("5", "0.0", "00", "5/x", "200/f", "200/d/h", "x/s", "5/min", "5/sm", "5/S", "1e2/s", "1e9/s", "-1/s", "+1/s", ".5/s"),
    *("5 / s", "5/", "/s", "'5/s '", "∞/s", "\N{ARABIC-INDIC DIGIT FIVE}/s", "1.2.3/s", "''", "", "[5/s]"),
    *("1234567890/s", "0.1234567/s"),
]


@pytest.mark.parametrize("rate", BAD_RATES)
def test_bad_rates(load: Load, rate: str) -> None:
    """Everything else is refused, as App Engine's schema does (RELIABILITY 115)."""
    error = refusal(load, mail(f"rate: {rate}"))

    assert (3, True) == (error.line, (error.key or "").startswith("queue[0].rate"))


def test_no_rate_is_no_limit(load: Load) -> None:
    """A queue without a rate has no rate limit (D22)."""
    assert load(mail())[0].rate_per_second is None


def test_rate_of_a_pull_queue(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    """The rate of a pull queue is ignored with a warning (RELIABILITY 118)."""
    config = load(mail("mode: pull", "rate: 5/s"))[0]

    assert config.rate_per_second is None
    assert ["Queue 'mail' is a pull queue: its rate '5/s' is ignored."] == caplog.messages


# --- retry parameters, SPEC 5.4 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2d", 172_800),
        ("1.5d", 129_600),
        ("0.3d", 25_920),
        ("12345.5s", 12_345),
        ("123.45e2s", 12_345),
        ("1e-2d", 864),
        ("5.m", 300),
        (".5h", 1800),
        ("1E+1s", 10),
        ("1s", 1),
    ],
)
def test_task_age_limit(load: Load, text: str, seconds: int) -> None:
    """An age limit is a number and a unit, cut to whole seconds."""
    assert load(retry(f"task_age_limit: {text}"))[0].retry_options == TaskRetryOptions(task_age_limit=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "0s",
        "0.9s",
        "12345",
        "2",
        "2w",
        "-1d",
        "1d2h",
        "'123,45s'",
        "12345mm",
        "12345a",
        "''",
        "s",
        "1e99d",
        "1e999999999d",
        "nans",
        "2 d",
        "2D",
        "",
    ],
)
def test_bad_task_age_limit(load: Load, text: str) -> None:
    """No unit, another unit, nothing, or less than a second is refused (RELIABILITY 117)."""
    error = refusal(load, retry(f"task_age_limit: {text}"))

    assert (3, "queue[0].retry_parameters.task_age_limit") == (error.line, error.key)


def test_age_limit_says_its_grammar(load: Load) -> None:
    """The error shows how an age limit is written."""
    message = str(refusal(load, retry("task_age_limit: 2w")))

    assert message.endswith("'2w' is not a number and one of the units s, m, h and d, such as 2d or 1.5h.")


@pytest.mark.parametrize(
    ("field", "text", "expected"), [("max_doublings", "1.5", 1), ("task_retry_limit", "0", 0), ("task_retry_limit", "7", 7)]
)
def test_retry_counts(load: Load, field: str, text: str, expected: int) -> None:
    """Counts are cut to integers."""
    assert load(retry(f"{field}: {text}"))[0].retry_options == TaskRetryOptions(**{field: expected})


@pytest.mark.parametrize("field", ["task_retry_limit", "max_doublings", "min_backoff_seconds", "max_backoff_seconds"])
@pytest.mark.parametrize("text", ["-1", "x", "nan", "", "[1]"])
def test_bad_retry_numbers(load: Load, field: str, text: str) -> None:
    """What is no number, or less than 0, is refused."""
    error = refusal(load, retry(f"{field}: {text}"))

    assert (3, f"queue[0].retry_parameters.{field}") == (error.line, error.key)


@pytest.mark.parametrize(
    ("entries", "shortest", "longest"),
    [
        (["min_backoff_seconds: 10"], 10, None),
        (["min_backoff_seconds: 3600"], 3600, None),
        (["min_backoff_seconds: 5000"], 5000, 5000),
        (["max_backoff_seconds: 300"], None, 300),
        (["max_backoff_seconds: 0.1"], None, 0.1),
        (["max_backoff_seconds: 0.05"], 0.05, 0.05),
        (["min_backoff_seconds: 7", "max_backoff_seconds: 7"], 7, 7),
    ],
)
def test_backoff_bounds(load: Load, entries: list[str], shortest: float | None, longest: float | None) -> None:
    """One bound that contradicts the other's default moves that one."""
    expected = TaskRetryOptions(min_backoff_seconds=shortest, max_backoff_seconds=longest)

    assert load(retry(*entries))[0].retry_options == expected


def test_contradicting_backoff_bounds(load: Load) -> None:
    """Two bounds that contradict each other are refused."""
    error = refusal(load, retry("min_backoff_seconds: 20", "max_backoff_seconds: 10"))

    assert (3, "queue[0].retry_parameters") == (error.line, error.key)


def test_empty_retry_parameters_are_none_set(load: Load) -> None:
    """A mapping without entries sets nothing."""
    assert load(retry())[0].retry_options == TaskRetryOptions()
