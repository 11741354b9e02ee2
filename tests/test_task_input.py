"""Bad input to Task (RELIABILITY 4.1, T21): what is taken, what is refused, and how it is said."""

from __future__ import annotations

import io
import string
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from enum import StrEnum
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from aiotaskqueue import errors
from aiotaskqueue._record import record_of
from aiotaskqueue._task import Task
from aiotaskqueue._task_arguments import shorten

NOW_USEC = 1_767_323_045_000_000
MAX_ETA_USEC = 253_402_300_799_999_999


def eta_usec_of(task: Task) -> int:
    """Return the ETA that the task would be stored with."""
    return record_of(task, queue_name="default", name="n", uuid=bytes(16), now_usec=NOW_USEC).eta_usec


# --- rows 1 to 12: URL ---------------------------------------------------------------------------------------------


@pytest.mark.row(1)
@pytest.mark.parametrize("url", ["", None])
def test_no_url(url: str | None) -> None:
    """An empty URL, and None, ask for the queue's default one."""
    assert Task(url=url).on_queue_url


@pytest.mark.row(2, 3, 4, 5, 7, 8, 9, 10, 11)
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("worker", r"'worker' does not begin with '/'; a task's URL is a path such as '/worker'\.$"),
        ("//evil.example/x", r"'//evil.example/x' names a host.*target="),
        ("http://other/x", r"'http://other/x' has a scheme.*target="),
        ("file:///etc/passwd", r"has a scheme"),
        ("gopher:x", r"has a scheme"),
        ("javascript:alert(1)", r"has a scheme"),
        ("HTTP:/x", r"has a scheme"),
        ("/w#frag", r"'/w#\*\*\*' has a fragment"),
        ("/w?a#frag", r"URL query <6 characters> has a fragment"),
        ("/w\r\nX: y", r"has '\\r' at position 2"),
        ("/w\x00", r"has '\\x00' at position 2"),
        ("/w\x7f", r"has '\\x7f' at position 2"),
        ("/w\x85", r"has '\\x85' at position 2"),
        ("/w w", r"has ' ' at position 2"),
        ("/\ud800", r"has '\\ud800' at position 1"),
        ("/w?a=b c", r"URL query <5 characters> has ' ' at position 3"),
        ("/w\n", r"has '\\n' at position 2"),
        ("/w%zz", r"'%' without two hexadecimal digits at position 2"),
        ("/%", r"'%' without two hexadecimal digits at position 1"),
        ("/w?a=%1", r"'%' without two hexadecimal digits at position 2"),
        ("/a/../b", r"'/a/../b' is not normalised"),
        ("/./x", r"is not normalised"),
        ("/a//b", r"is not normalised"),
        ("/a/..", r"is not normalised"),
        ("/a/.", r"is not normalised"),
        ("/a/%2e%2E/b", r"is not normalised"),
        ("/a/.%2e", r"is not normalised"),
        ("/é" * 521, r"has 3647 characters; at most 2083"),
        (b"/x", r"The URL is of type bytes"),
        (1, r"The URL is of type int"),
        (URL("http://other/x"), r"has a scheme"),
    ],
)
def test_bad_url(url: str, message: str) -> None:
    """A URL that is no relative, normalised path is refused, and the error shows it and the fix."""
    with pytest.raises(errors.InvalidUrlError, match=message):
        Task(url=url, method="GET")


@pytest.mark.row(6)
@pytest.mark.promise("P24")
@pytest.mark.parametrize(
    "url",
    [
        "http://u:secret@host/",
        "//u:secret@host/",
        "http://u:secr?secret@host/",
        "http://u:/secret/@/secret@host/",
        "http://u:a secret@host/",
        "http:u:secret@host/",
        "u:secret@host/",
        f"http://u:{'secret' * 50}@host/",
        b"http://u:secret@host/",
        URL("http://u:secret@host/"),
        ["http://u:secret@host/"],
    ],
)
def test_userinfo_is_masked(url: str) -> None:
    """A password in a refused URL does not get into the error, however it is written."""
    with pytest.raises(errors.InvalidUrlError, match=r"\*\*\*@host/|'http://\*\*\*'|The URL is of type") as caught:
        Task(url=url)

    assert "secr" not in str(caught.value)


@pytest.mark.row(12)
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/é", "/%C3%A9"),
        ("/é?ü=\u20ac", "/%C3%A9?%C3%BC=%E2%82%AC"),
        ("/%c3%a9?%C3", "/%c3%a9?%C3"),
        ("/a.b/..c/d../...", "/a.b/..c/d../..."),
        ("/a\\b{c}?x[]=<y>", "/a%5Cb%7Bc%7D?x%5B%5D=%3Cy%3E"),
        ("/-._~!$&'()*+,;=:@/", "/-._~!$&'()*+,;=:@/"),
        ("/x?a/../b?//c", "/x?a/../b?//c"),
        ("/x:y", "/x:y"),
        (URL("/é").with_query({"a": "b c"}), "/%C3%A9?a=b+c"),
        ("/x\u00a0\u3000", "/x%C2%A0%E3%80%80"),
    ],
)
def test_url_is_kept_percent_encoded(url: str | URL, expected: str) -> None:
    """What a URL may not contain as it is, is percent-encoded; escapes stay as they are."""
    assert expected == Task(url=url, method="GET").url


def test_str_subclass_as_url() -> None:
    """A URL of a str subclass, as Starlette's URLPath is, becomes a plain str."""

    class URLPath(str):
        __slots__ = ()

    assert str is type(Task(url=URLPath("/x")).url)


@pytest.mark.row(12)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters=" #%/?."), min_size=1, max_size=100))
@settings(database=None)
def test_any_path_comes_back(segment: str) -> None:
    """Decoding the kept path gives what was written, and it is plain ASCII."""
    url = Task(url=f"/{segment}").url

    assert (f"/{segment}", True) == (unquote(url), url.isascii())


# --- rows 13 to 18: params -----------------------------------------------------------------------------------------


@pytest.mark.row(13, 14, 15)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "PUT", "url": "/x?a=1", "params": {"b": 2}}, "a query <3 characters> and there are params; pass one of them"),
        ({"url": "/x?a=1"}, "a query <3 characters>, which a POST task may not have; pass it as params"),
        ({"payload": "p", "params": {"a": 1}}, "Payload and params are both given; pass one of them"),
        ({"payload": "p", "method": "GET"}, "A payload can only go with the methods POST, PUT and PULL"),
    ],
)
def test_contradiction_is_named(arguments: dict[str, object], message: str) -> None:
    """The error for two arguments that exclude each other names both."""
    with pytest.raises(errors.InvalidTaskError, match=message):
        Task(**arguments)  # type: ignore[arg-type]


@pytest.mark.row(16, 17, 18)
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"a": None}, "The value of param 'a' is of type NoneType; it must be str, bytes, int, float, bool or Decimal, or a list of them"),
        ({"a": object}, "The value of param 'a' is of type type"),
        ({"a": {"b": "c"}}, "The value of param 'a' is of type dict"),
        ({"a": {"1"}}, "The value of param 'a' is of type set"),
        ({"a": frozenset("1")}, "param 'a' .* of type frozenset"),
        ({"a": bytearray(b"1")}, "param 'a' .* of type bytearray"),
        ({"a": memoryview(b"1")}, "param 'a' .* of type memoryview"),
        ({"a": ["1", None]}, "The value of param 'a' is of type NoneType"),
        ({"a": [["1"]]}, "The value of param 'a' is of type list"),
        ({"a": "b\ud800"}, "The value of param 'a' has a lone surrogate at position 1; pass bytes"),
        ({"\ud800": "a"}, r"The key of param '\\ud800' has a lone surrogate at position 0"),
        ({"a": 10**5000}, "The value of param 'a' is an int of more digits than Python turns into text"),
        ({10**5000: "a"}, "The key of param <int> is an int of more digits"),
        ({None: "a"}, "The key of param None is of type NoneType; it must be str, bytes, int, float, bool or Decimal"),
        ({("a", "b"): "a"}, r"The key of param \('a', 'b'\)"),
        ([("a", "b")], "Argument params is of type list; it must be a dict"),
        ([], "Argument params is of type list"),
        ("a=b", "Argument params is of type str"),
    ],
)
def test_bad_params(params: dict[str, str], message: str) -> None:
    """Params that are no text, number or list of them are refused, and the error names the key."""
    with pytest.raises(errors.InvalidTaskError, match=message):
        Task(params=params)


def test_enum_of_text_is_its_value() -> None:
    """A member of an enumeration of str stands for its value."""

    class Kind(StrEnum):
        MAIL = "mail"

    assert b"kind=mail" == Task(params={"kind": Kind.MAIL}).payload


@pytest.mark.row(22)
def test_changes_after_construction_have_no_effect() -> None:
    """Headers and params that are changed later do not change the task."""
    headers, params = {"a": ["1"]}, {"b": ["2"]}
    task = Task(headers=headers, params=params)
    headers["a"].append("x")
    params["b"].append("x")

    assert (["1"], b"b=2") == (task.headers.getall("a"), task.payload)


# --- rows 19 to 21: payload ----------------------------------------------------------------------------------------


async def an_async_generator() -> AsyncIterator[str]:
    """Yield a text."""
    yield "a"


@pytest.mark.row(21)
@pytest.mark.parametrize("method", ["POST", "GET", "PULL"])
@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (0, "int"),
        (1, "int"),
        (False, "bool"),
        ([], "list"),
        (["a"], "list"),
        (bytearray(b"a"), "bytearray"),
        (memoryview(b"a"), "memoryview"),
        ((letter for letter in "a"), "generator"),
        (an_async_generator(), "async_generator"),
        (io.BytesIO(b"a"), "BytesIO"),
        (object(), "object"),
    ],
)
def test_bad_payload(payload: str, kind: str, method: str) -> None:
    """A payload that is neither text nor bytes is refused, an empty one too, and the error names its type."""
    with pytest.raises(errors.InvalidTaskError, match=f"is of type {kind}; it must be str, bytes or None"):
        Task(payload, method=method)


@pytest.mark.row(19)
def test_payload_with_surrogate() -> None:
    """Text that is no UTF-8 is refused."""
    with pytest.raises(errors.InvalidTaskError, match="lone surrogate at position 1"):
        Task("a\ud800")


def test_text_payload_is_utf_8() -> None:
    """Text is sent as UTF-8."""
    assert "é".encode() == Task("é").payload


# --- rows 23 to 25: name -------------------------------------------------------------------------------------------


@pytest.mark.row(23, 24)
@pytest.mark.parametrize("name", ["a" * 501, "a b", "a/b", "ba.d", "ba$d.", "é", "..", "a\n", "\n", 1, 0, b"a", False, ["a"]])
def test_bad_name(name: str) -> None:
    """A name that does not match, or is no text, is refused with the pattern."""
    with pytest.raises(errors.InvalidTaskNameError, match=r"does not match \^\[a-zA-Z0-9_-\]\{1,500\}\$\.$"):
        Task(name=name)


@pytest.mark.row(25)
def test_case_of_names_is_kept() -> None:
    """Names that differ by case are different names."""
    assert ("A", "a") == (Task(name="A").name, Task(name="a").name)


def test_long_values_are_shortened_in_errors() -> None:
    """An error shows at most 80 characters of the value."""
    with pytest.raises(errors.InvalidTaskNameError, match=f"Task name '{'a' * 76}... does not"):
        Task(name="a" * 501)


class Shown:
    """Whose repr is what it is told, if it is told anything."""

    def __init__(self, text: str | None = None) -> None:
        self._text = text

    def __repr__(self) -> str:
        if self._text is None:
            raise OverflowError("no repr today")
        return self._text


def nested(depth: int) -> list[Any]:
    """Return a list in a list in a list."""
    innermost: list[Any] = []
    for _ in range(depth):
        innermost = [innermost]
    return innermost


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x" * 79, f"'{'x' * 76}..."),
        ("x" * 78, f"'{'x' * 78}'"),
        (b"x" * 10_000_000, f"b'{'x' * 75}..."),
        ("a\n\x1b[31m\u202e\ud800", r"'a\n\x1b[31m\u202e\ud800'"),
        (Shown(), "<Shown>"),
        (Shown("two\nlines \ud800"), r"two\nlines \ud800"),
        (nested(100_000), "<list>"),
        (10**5000, "<int>"),
        ("//user:a/b@c d@host/", "'//***@host/'"),
        (["http://user:password@host"], "['http://***@host']"),
        (f"//user:{'password' * 20}@host/", "'//***@host/'"),
    ],
    ids=range(11),
)
def test_shorten(value: object, expected: str) -> None:
    """Whatever a value is, a message shows it in at most 80 characters that can be seen and tell no password."""
    assert expected == shorten(value)


# --- rows 26 to 31: ETA and countdown ------------------------------------------------------------------------------


@pytest.fixture
def central_europe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the local time zone to one with summer time."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.row(26)
@pytest.mark.usefixtures("central_europe")
@pytest.mark.parametrize(
    ("eta", "expected"),
    [
        (datetime(2026, 1, 1, 12), datetime(2026, 1, 1, 11, tzinfo=UTC)),
        (datetime(2026, 7, 1, 12), datetime(2026, 7, 1, 10, tzinfo=UTC)),
        (datetime(2026, 3, 29, 2, 30), datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),
        (datetime(2026, 10, 25, 2, 30), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        (datetime(2026, 10, 25, 2, 30, fold=1), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)),
    ],
)
def test_naive_eta_is_local_time(eta: datetime, expected: datetime) -> None:
    """A naive ETA is local time by Python's own rule, in the gap and in the fold too."""
    assert (expected, eta.timestamp()) == (Task(eta=eta).eta, Task(eta=eta).eta_posix)


class Folding(tzinfo):
    """A zone of which every reading is one in a fold, or in the gap of spring: its offset depends on `fold` alone (PEP 495)."""

    def __init__(self, first_hours: int = 2, second_hours: int = 1) -> None:
        self._hours = (first_hours, second_hours)

    def utcoffset(self, when: datetime | None) -> timedelta:
        """Return the offset of the first or of the second of two equal readings."""
        return timedelta(hours=self._hours[when.fold if when is not None else 0])

    def dst(self, when: datetime | None) -> timedelta:
        """Return nothing: datetime asks for it."""
        return timedelta(0)

    def tzname(self, when: datetime | None) -> str:
        """Return a name: datetime asks for it."""
        return "F"


@pytest.mark.row(27)
@pytest.mark.parametrize(
    ("zone", "fold", "hour"), [(Folding(2, 1), 0, 10), (Folding(2, 1), 1, 11), (Folding(1, 2), 0, 11), (Folding(1, 2), 1, 10)]
)
def test_aware_eta_goes_by_its_offset(zone: tzinfo, fold: int, hour: int) -> None:
    """An aware ETA in a fold or in a gap is the instant that its own offset says."""
    assert datetime(2026, 1, 1, hour, tzinfo=UTC) == Task(eta=datetime(2026, 1, 1, 12, tzinfo=zone, fold=fold)).eta


@pytest.mark.row(28)
def test_eta_and_countdown() -> None:
    """The error for ETA and countdown together names both."""
    with pytest.raises(errors.InvalidTaskError, match=r"ETA datetime.* and countdown 0 are both given"):
        Task(eta=datetime(2026, 1, 1, tzinfo=UTC), countdown=0)


@pytest.mark.row(29)
@pytest.mark.parametrize(
    ("countdown", "seconds"),
    [
        (0, 0),
        (5, 5),
        (-1, -1),
        (0.25, 0.25),
        ("5", 5),
        ("30.4", 30.4),
        (Decimal("1.5"), 1.5),
        (timedelta(minutes=1, microseconds=1), 60.000001),
        (None, 0),
    ],
)
def test_countdown(countdown: float | None, seconds: float) -> None:
    """A countdown is a number, text of one or a timedelta, and counts from the add."""
    assert NOW_USEC + round(seconds * 1_000_000) == eta_usec_of(Task(countdown=countdown))


@pytest.mark.row(29)
@pytest.mark.parametrize(
    "countdown",
    [True, "x", "", [5], b"5", object(), 10**400, pytest.param(10**5000, id="5001 digits"), Decimal("sNaN"), date(2026, 1, 1)],
)
def test_countdown_that_is_no_number(countdown: float) -> None:
    """A countdown that is no number, or none that a float can hold, is refused."""
    with pytest.raises(errors.InvalidTaskError) as caught:
        Task(countdown=countdown)

    assert errors.InvalidTaskError is caught.type


@pytest.mark.row(29, 30)
@pytest.mark.parametrize(
    "countdown",
    [
        float("nan"),
        float("inf"),
        float("-inf"),
        1e400,
        "nan",
        "inf",
        "1e400",
        1e12,
        -1e12,
        1e300,
        Decimal("NaN"),
        Decimal("Infinity"),
        timedelta.max,
        timedelta(days=-200_000_000),
    ],
)
def test_countdown_without_end(countdown: float) -> None:
    """A countdown that can lead to no moment is an InvalidEtaError."""
    with pytest.raises(errors.InvalidEtaError, match="between the years 1970 and 9999"):
        Task(countdown=countdown)


@pytest.mark.row(30)
@pytest.mark.parametrize("countdown_usec", [-NOW_USEC, MAX_ETA_USEC - NOW_USEC])
def test_furthest_countdown(countdown_usec: int) -> None:
    """A countdown may lead to the first and to the last moment there is."""
    task = Task(countdown=timedelta(microseconds=countdown_usec))

    assert NOW_USEC + countdown_usec == eta_usec_of(task)


@pytest.mark.row(30)
@pytest.mark.parametrize("countdown_usec", [-NOW_USEC - 1, MAX_ETA_USEC - NOW_USEC + 1])
def test_countdown_too_far(countdown_usec: int) -> None:
    """One microsecond more is found when the task is added."""
    task = Task(countdown=timedelta(microseconds=countdown_usec))

    with pytest.raises(errors.InvalidEtaError):
        eta_usec_of(task)


@pytest.mark.row(30)
@pytest.mark.parametrize("eta", [datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)])
def test_first_and_last_eta(eta: datetime) -> None:
    """An ETA may be the first microsecond of 1970 and the last of the year 9999."""
    assert eta == Task(eta=eta).eta


@pytest.mark.row(30)
@pytest.mark.parametrize(
    "eta",
    [
        datetime(1, 1, 1),
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=Folding()),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC) - timedelta(days=3_000_000),
    ],
)
def test_eta_before_1970(eta: datetime) -> None:
    """An ETA before 1970 is an InvalidEtaError, and never an OverflowError."""
    with pytest.raises(errors.InvalidEtaError, match=r"ETA datetime\.datetime\("):
        Task(eta=eta)


@pytest.mark.row(31)
@pytest.mark.parametrize(
    ("eta", "message"),
    [
        (1767323045, r"1767323045 is of type int, it must be a datetime; use datetime.fromtimestamp\(eta, UTC\)"),
        (date(2026, 1, 1), r"is of type date, it must be a datetime; add a time of day"),
        ("2026-01-01", r"is of type str, it must be a datetime"),
    ],
)
def test_eta_that_is_no_datetime(eta: datetime, message: str) -> None:
    """An ETA that is no datetime is refused with the way to make one."""
    with pytest.raises(errors.InvalidTaskError, match=message):
        Task(eta=eta)


# --- row 32: method ------------------------------------------------------------------------------------------------


@pytest.mark.row(32)
@pytest.mark.parametrize("method", ["stuff", "OPTIONS", "PATCH", "TRACE", "G ET", "POST\n", "", b"POST", None, 1])
def test_bad_method(method: str) -> None:
    """A method that App Engine does not have is refused with the list of those it has."""
    with pytest.raises(errors.InvalidTaskError, match="is not one of POST, GET, HEAD, PUT, DELETE, PULL"):
        Task(method=method)


# --- row 33, T21: headers ------------------------------------------------------------------------------------------


@pytest.mark.row(33)
@pytest.mark.parametrize(
    "name",
    [
        "Content-Length",
        "content-length",
        "Transfer-Encoding",
        "Connection",
        "Upgrade",
        "Expect",
        "TE",
        "Trailer",
        "Signature",
        "Signature-Input",
        "Content-Digest",
        "X-TaskQueue-Continuation",
        "x-taskqueue-",
        "X_TaskQueue_Continuation",
        "Content_Length",
        "Transfer_Encoding",
    ],
)
def test_reserved_header(name: str) -> None:
    """A header that the delivery sets itself is refused, also with underscores (T6, T21)."""
    with pytest.raises(errors.InvalidTaskError, match=f"Header '{name}' is reserved"):
        Task(headers={name: "3"})


@pytest.mark.row(33)
@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "a\n", "a\x00", "é", "a\t", "(a)", "X-AppEngine-\r\nX", 1, None, b"a"])
def test_header_name_that_is_no_token(name: str) -> None:
    """A header name that is no token of RFC 9110 is refused (T21)."""
    with pytest.raises(errors.InvalidTaskError, match="is not a token of RFC 9110"):
        Task(headers={name: "x"})


def test_every_token_character_is_taken() -> None:
    """All characters that RFC 9110 allows in a header name are allowed."""
    name = string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~"

    assert {name: "x"} == dict(Task(headers={name: "x"}).headers)


@pytest.mark.row(33)
@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("a\rb", r"'\\r' at position 1"),
        ("a\nb", r"'\\n' at position 1"),
        ("a\r\nX: y", r"'\\r' at position 1"),
        ("a\x00b", r"'\\x00' at position 1"),
        ("a\x01", r"'\\x01' at position 1"),
        ("a\x7f", r"'\\x7f' at position 1"),
        ("a\u0100", "'\u0100' at position 1"),
        ("\u20ac", "'\u20ac' at position 0"),
        ("\ud800", r"'\\ud800' at position 0"),
        (["ok", "ab\n"], r"'\\n' at position 2"),
    ],
)
def test_bad_header_value(value: str, place: str) -> None:
    """A header value with control characters or beyond latin-1 is refused, and the error names the header (T21)."""
    with pytest.raises(errors.InvalidTaskError, match=f"Header 'X-One' has {place}; it must be latin-1 text without control characters"):
        Task(headers={"X-One": value})


@pytest.mark.row(33)
@pytest.mark.parametrize("value", [1, None, b"a", {"a"}, {"a": "b"}, object(), ["ok", 1], [b"a"], [["a"]], [None]])
def test_header_value_of_another_type(value: str) -> None:
    """A header value that is no text is refused, and the error names the header."""
    with pytest.raises(errors.InvalidTaskError, match=r"Header 'X-One' (is|has a value) of type \w+; it must be a str or a list of str"):
        Task(headers={"X-One": value})


@pytest.mark.parametrize(("value", "expected"), [("", ""), ("a\tb", "a\tb"), ("\xe9\xff\x80", "\xe9\xff\x80"), (" \ta b \t", "a b")])
def test_header_value_is_kept(value: str, expected: str) -> None:
    """Latin-1 text is kept, without the white space around it (RFC 9110 section 5.5)."""
    assert expected == Task(headers={"a": value}).headers["a"]


@pytest.mark.parametrize("headers", [[("a", "b")], "a: b", 5, [], ""])
def test_headers_that_are_no_dict(headers: dict[str, str]) -> None:
    """Headers that are no dict are refused."""
    with pytest.raises(errors.InvalidTaskError, match="it must be a dict"):
        Task(headers=headers)


@pytest.mark.row(33)
def test_64_headers() -> None:
    """A task may have 64 headers."""
    assert 64 == len(Task(headers={f"a{i}": "x" for i in range(64)}).headers)


@pytest.mark.row(33)
@pytest.mark.parametrize("headers", [{f"a{i}": "x" for i in range(65)}, {"a63": "x", "a64": ["x"] * 64}])
def test_65_headers(headers: dict[str, str]) -> None:
    """The 65th header is refused by its name, repeated ones counted each."""
    with pytest.raises(errors.InvalidTaskError, match="Header 'a64' is one too many: there are 65, at most 64"):
        Task(headers=headers)


@pytest.mark.row(33)
def test_largest_headers() -> None:
    """Headers of 16 KiB together are accepted."""
    value = "x" * (16_384 - len("X-One: \r\n"))

    assert value == Task(headers={"X-One": value}).headers["X-One"]


@pytest.mark.row(33)
def test_headers_too_large() -> None:
    """Headers of one byte more are refused, and the error names the longest."""
    value = "x" * (16_384 - len("a: b\r\nX-One: \r\n") + 1)

    with pytest.raises(errors.InvalidTaskError, match="16385 bytes together, the longest is 'X-One'; at most 16384"):
        Task(headers={"a": "b", "X-One": value})


# --- rows 34 to 38 and the rest ------------------------------------------------------------------------------------


@pytest.mark.row(34)
@pytest.mark.parametrize("options", [{"task_retry_limit": 1}, 3, "x"])
def test_retry_options_of_another_type(options: object) -> None:
    """Retry options that are none are refused."""
    with pytest.raises(errors.InvalidTaskError, match="it must be a TaskRetryOptions"):
        Task(retry_options=options)  # type: ignore[arg-type]


@pytest.mark.row(36)
@pytest.mark.parametrize("tag", ["a" * 501, "a\x00", "\ud800", 1, b"a"])
def test_bad_tag(tag: str) -> None:
    """A tag that is too long, or no text that every store can keep, is refused."""
    with pytest.raises(errors.InvalidTagError):
        Task("p", method="PULL", tag=tag)


@pytest.mark.row(36)
@pytest.mark.parametrize("tag", ["", "a" * 500, "é" * 500])
def test_tag(tag: str) -> None:
    """A tag has at most 500 characters, not bytes."""
    assert tag == Task("p", method="PULL", tag=tag).tag


@pytest.mark.parametrize(("target", "expected"), [(None, None), ("", None), ("mailer", "mailer")])
def test_target(target: str | None, expected: str | None) -> None:
    """A target is kept; whether it exists shows at the add."""
    assert expected == Task(target=target).target


@pytest.mark.parametrize("target", [1, b"mailer", URL("http://x")])
def test_target_of_another_type(target: str) -> None:
    """A target that is no name is refused."""
    with pytest.raises(errors.InvalidTaskError, match="a name in the service's targets"):
        Task(target=target)


@pytest.mark.parametrize("seconds", [1, 1.0, 86_400, 30.5])
def test_dispatch_deadline(seconds: float) -> None:
    """A deadline may be from 1 second to 24 hours (SPEC 1.11)."""
    assert seconds == Task(dispatch_deadline_seconds=seconds).dispatch_deadline_seconds


@pytest.mark.parametrize("seconds", [0, 0.5, -1, 86_400.1, 10**400, float("nan"), float("inf")])
def test_dispatch_deadline_out_of_range(seconds: float) -> None:
    """A deadline outside of that is refused (SPEC 1.11)."""
    with pytest.raises(errors.InvalidDispatchDeadlineError, match="is not within 1 to 86400"):
        Task(dispatch_deadline_seconds=seconds)


@pytest.mark.parametrize("seconds", ["a", "30", True, timedelta(seconds=30), [30]])
def test_dispatch_deadline_of_another_type(seconds: float) -> None:
    """A deadline that is no number is a TypeError (SPEC 1.11)."""
    with pytest.raises(TypeError, match="dispatch_deadline_seconds"):
        Task(dispatch_deadline_seconds=seconds)


READ_ONLY = [name for name, member in vars(Task).items() if isinstance(member, property)]


@pytest.mark.row(38)
@pytest.mark.parametrize("name", [*READ_ONLY, "anything"])
def test_properties_are_read_only(name: str) -> None:
    """Neither a property of a task nor a new attribute can be assigned."""
    with pytest.raises(AttributeError):
        setattr(Task(url="/x"), name, None)
