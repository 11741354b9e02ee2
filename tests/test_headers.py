"""The special headers: what is sent with a task, what is read from it, and which names only we may use."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from signed_requests import make_record

from aiotaskqueue import signing
from aiotaskqueue._headers import TaskHeaders, is_reserved, parse_task_headers, task_headers

COMPLETE = {
    "x-taskqueue-task": "000102030405060708090a0b0c0d0e0f",
    "x-taskqueue-attempt": "7",
    "x-taskqueue-deadline": "30",
    "x-appengine-queuename": "mail",
    "x-appengine-taskname": "welcome-1",
    "x-appengine-taskretrycount": "0",
    "x-appengine-taskexecutioncount": "0",
    "x-appengine-tasketa": "1767323045.6789",
}


def sent(deadline_seconds: float = 30.0, **changes: object) -> dict[str, str]:
    """Return the headers of the task so changed, by lower-case name."""
    return {name.lower(): value for name, value in task_headers(make_record(**changes), deadline_seconds=deadline_seconds)}


def test_first_attempt() -> None:
    """The first attempt carries the headers that are always there, after the default content type."""
    headers = task_headers(make_record(eta_usec=1767323045678900), deadline_seconds=30.0)

    assert headers == [
        ("Content-Type", "application/octet-stream"),
        ("X-AppEngine-QueueName", "mail"),
        ("X-AppEngine-TaskName", "welcome-1"),
        ("X-AppEngine-TaskRetryCount", "0"),
        ("X-AppEngine-TaskExecutionCount", "0"),
        ("X-AppEngine-TaskETA", "1767323045.6789"),
        ("X-TaskQueue-Task", "000102030405060708090a0b0c0d0e0f"),
        ("X-TaskQueue-Attempt", "7"),
        ("X-TaskQueue-Deadline", "30"),
    ]


def test_retry() -> None:
    """A retry carries the counts, the previous status and the reason."""
    headers = sent(attempts=4, executions=2, previous_status=503, retry_reason="status")

    assert ("3", "2") == (headers["x-appengine-taskretrycount"], headers["x-appengine-taskexecutioncount"])
    assert ("503", "status") == (headers["x-appengine-taskpreviousresponse"], headers["x-appengine-taskretryreason"])


def test_user_headers_come_first() -> None:
    """The user's headers come before the special ones, in their order."""
    own = (("X-AppEngine-FailFast", "1"), ("Accept-Language", "de"))

    assert list(own) == task_headers(make_record(headers=own), deadline_seconds=1)[:2]


@pytest.mark.parametrize("name", ["Content-Type", "content-type", "CONTENT-TYPE"])
def test_content_type_of_the_user(name: str) -> None:
    """A content type that the user set is the only one, however it is spelled."""
    headers = task_headers(make_record(headers=((name, "text/plain"),)), deadline_seconds=1)

    assert ["text/plain"] == [value for key, value in headers if key.lower() == "content-type"]


@pytest.mark.parametrize("payload", [None, b""])
def test_no_body_no_content_type(payload: bytes | None) -> None:
    """A task without a body gets no content type."""
    assert "content-type" not in sent(payload=payload)


@pytest.mark.parametrize(
    ("usec", "text"),
    [(0, "0"), (1, "0.000001"), (10, "0.00001"), (1_000_000, "1"), (10_500_000, "10.5"), (1767323045678900, "1767323045.6789")],
)
def test_eta_text(usec: int, text: str) -> None:
    """The ETA is decimal seconds, without zeros at the end of a fraction and with those of an integer."""
    assert text == sent(eta_usec=usec)["x-appengine-tasketa"]


@pytest.mark.parametrize(("seconds", "text"), [(1, "1"), (30.0, "30"), (0.25, "0.25"), (86400, "86400")])
def test_deadline_text(seconds: float, text: str) -> None:
    """The deadline is decimal seconds."""
    assert text == sent(seconds)["x-taskqueue-deadline"]


@given(
    eta_usec=st.integers(0, 253_402_300_799_999_999),
    deadline_usec=st.integers(0, 86_400_000_000),
    attempts=st.integers(1, 10**9),
    previous_status=st.none() | st.integers(100, 999),
)
def test_round_trip(eta_usec: int, deadline_usec: int, attempts: int, previous_status: int | None) -> None:
    """What is sent is what is read."""
    changes = {"eta_usec": eta_usec, "attempts": attempts, "executions": 1, "previous_status": previous_status}

    expected = TaskHeaders(
        uuid="000102030405060708090a0b0c0d0e0f",
        queue_name="mail",
        name="welcome-1",
        retry_count=attempts - 1,
        execution_count=1,
        eta_usec=eta_usec,
        deadline_seconds=deadline_usec / 1_000_000,
        previous_response=previous_status,
        retry_reason=None,
    )
    assert expected == parse_task_headers(sent(deadline_usec / 1_000_000, **changes))


@pytest.mark.parametrize("name", sorted(set(COMPLETE) - {"x-taskqueue-attempt"}))
def test_missing_header(name: str) -> None:
    """A header that every delivery carries and this one does not is named in the error."""
    headers = {key: value for key, value in COMPLETE.items() if key != name}

    with pytest.raises(ValueError, match=f"'{name}' is missing"):
        parse_task_headers(headers)


@pytest.mark.parametrize("name", ["x-appengine-taskretrycount", "x-appengine-taskexecutioncount", "x-appengine-taskpreviousresponse"])
@pytest.mark.parametrize("text", ["", "+5", "-1", " 1", "1 ", "1_000", "1e9", "1.0", "\u0663", "\uff11", "1" * 16, "0x1", "1\n"])
def test_integers_are_ascii_digits(name: str, text: str) -> None:
    """Whatever else Python takes for an integer is refused (RELIABILITY 2, E26)."""
    with pytest.raises(ValueError, match=f"^Header value {re.escape(repr(text))} is not"):
        parse_task_headers({**COMPLETE, name: text})


@pytest.mark.parametrize("name", ["x-appengine-tasketa", "x-taskqueue-deadline"])
@pytest.mark.parametrize("text", ["", "1.", ".5", "1.1234567", "nan", "inf", "-1", "1e3", "1,5", "\u0663.\u0663", "253402300800", "1" * 16])
def test_seconds_are_plain_decimals(name: str, text: str) -> None:
    """Whatever else Python takes for a number, and what lies after the year 9999, is refused."""
    with pytest.raises(ValueError, match=f"^Header value {re.escape(repr(text))} is not"):
        parse_task_headers({**COMPLETE, name: text})


@pytest.mark.parametrize("text", ["", "00", "g" * 32, "A" * 32, "0" * 31, "0" * 33])
def test_uuid_is_32_hexadecimal_digits(text: str) -> None:
    """A task's uuid is 32 lower-case hexadecimal digits and nothing else."""
    with pytest.raises(ValueError, match="32 lower-case hexadecimal digits"):
        parse_task_headers({**COMPLETE, "x-taskqueue-task": text})


def test_long_value_is_shortened_in_the_error() -> None:
    """An error shows at most 80 characters of what it refuses."""
    with pytest.raises(ValueError, match=r"^Header value '1{80}' is not"):
        parse_task_headers({**COMPLETE, "x-appengine-taskretrycount": "1" * 5000})


@pytest.mark.parametrize(
    "name",
    [
        "X-AppEngine-QueueName",
        "x-appengine-anything",
        "X_APPENGINE_QUEUENAME",
        "x_appengine-queuename",
        "X-TaskQueue-Task",
        "x_taskqueue_attempt",
    ],
)
def test_reserved_names(name: str) -> None:
    """Reserved names are found in any case and with underscores."""
    assert is_reserved(name)


@pytest.mark.parametrize(
    "name", ["", "X", "X-AppEngine", "X-App-Engine-QueueName", "AppEngine-Foo", "X-TaskQueues", "Signature", "X-Forwarded-For"]
)
def test_other_names(name: str) -> None:
    """Other names are not reserved."""
    assert not is_reserved(name)


def test_every_signed_header_is_sent() -> None:
    """Each header that the signature covers is one that every delivery carries."""
    assert set(signing.SIGNED_HEADERS) <= sent().keys()
