"""Task as App Engine has it: arguments, what goes where method by method, properties (SPEC 1; GAE taskqueue.Task)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiotaskqueue import _current, errors
from aiotaskqueue._task import Task, TaskRetryOptions

FORM = "application/x-www-form-urlencoded"
TEXT = "text/plain; charset=utf-8"


# --- SPEC 1.1: arguments -------------------------------------------------------------------------------------------


def test_every_argument_is_optional() -> None:
    """A task without arguments is a POST without a body to the queue's default URL (SPEC 1.1, seed 004)."""
    task = Task()

    assert ("POST", "", None, None, True) == (task.method, task.url, task.payload, task.name, task.on_queue_url)


def test_unknown_keyword_is_a_type_error() -> None:
    """A misspelt keyword is refused (SPEC 1.1)."""
    with pytest.raises(TypeError, match="parmas"):
        Task(url="/x", parmas={})  # type: ignore[call-arg]


def test_only_the_payload_is_positional() -> None:
    """A second positional argument is refused (SPEC 1.1)."""
    with pytest.raises(TypeError):
        Task("payload", "name")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("first", "arguments"),
    [
        (errors.InvalidTaskNameError, {"name": "a b", "url": "x"}),
        (errors.InvalidUrlError, {"url": "x", "method": "stuff"}),
        (errors.InvalidTaskError, {"method": "stuff", "countdown": "inf"}),
        (errors.InvalidTaskError, {"headers": {"Host": "a"}, "target": "b", "countdown": "inf"}),
        (errors.InvalidEtaError, {"countdown": "inf", "payload": "a" * 102_401}),
        (errors.TaskTooLargeError, {"method": "PULL", "payload": "a" * 1_048_577, "tag": "a" * 501}),
        (errors.InvalidTagError, {"method": "PULL", "payload": "a", "tag": "a" * 501, "dispatch_deadline_seconds": 0}),
    ],
)
def test_first_failing_check_wins(first: type[errors.Error], arguments: dict[str, object]) -> None:
    """Of two mistakes the one that App Engine looks for first is reported (SPEC 1.1, order of checks)."""
    with pytest.raises(errors.Error) as caught:
        Task(**arguments)  # type: ignore[arg-type]

    assert first is caught.type


@pytest.mark.parametrize("name", ["a", "A-z_09", "a" * 500])
def test_name_is_kept(name: str) -> None:
    """A name of 1 to 500 letters, digits, hyphens and underscores is kept (SPEC 1.1)."""
    assert name == Task(name=name).name


@pytest.mark.row(23)
@pytest.mark.parametrize("name", ["", None])
def test_empty_name_is_no_name(name: str | None) -> None:
    """An empty name asks for a generated one (SPEC 1.1)."""
    assert Task(name=name).name is None


@pytest.mark.row(32)
@pytest.mark.parametrize("method", ["post", "Get", "HEAD", "put", "delete"])
def test_method_is_upper_cased(method: str) -> None:
    """Methods are taken in any case and kept in upper case (SPEC 1.1)."""
    assert method.upper() == Task(method=method).method


# --- SPEC 1.2: method by method ------------------------------------------------------------------------------------


def test_post_sends_params_as_form() -> None:
    """The params of a POST become its body, with the content type of a form (SPEC 1.2)."""
    task = Task(url="/x", params={"a": "1", "b": "2"})

    assert ("/x", b"a=1&b=2", {"Content-Type": FORM}) == (task.url, task.payload, dict(task.headers))


@pytest.mark.parametrize("payload", ["", b""])
def test_post_takes_empty_payload_with_params(payload: str | bytes) -> None:
    """An empty payload beside params is no contradiction (SPEC 1.2)."""
    task = Task(payload, params={"a": "1"})

    assert (b"a=1", FORM) == (task.payload, task.headers["content-type"])


def test_put_sends_payload_and_params() -> None:
    """A PUT has its payload as body and its params as query (SPEC 1.2)."""
    task = Task("body", method="PUT", url="/x", params={"a": "b c"})

    assert ("/x?a=b+c", b"body", TEXT) == (task.url, task.payload, task.headers["content-type"])


def test_put_without_payload_has_no_body() -> None:
    """The params of a PUT never become its body (SPEC 1.2)."""
    task = Task(method="PUT", url="/x", params={"a": "1"})

    assert ("/x?a=1", None, {}) == (task.url, task.payload, dict(task.headers))


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_params_become_the_query(method: str) -> None:
    """GET, HEAD and DELETE carry their params in the URL (SPEC 1.2)."""
    assert "/x?a=1" == Task(method=method, url="/x", params={"a": 1}).url


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_empty_text_is_no_payload_where_none_may_be(method: str) -> None:
    """GET, HEAD and DELETE ignore an empty payload (SPEC 1.2)."""
    task = Task("", method=method, url="/x")

    assert (None, {}) == (task.payload, dict(task.headers))


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT"])
def test_query_in_the_url_is_kept(method: str) -> None:
    """All push methods but POST may have a query in the URL (SPEC 1.2)."""
    assert "/x?a=1&b" == Task(method=method, url="/x?a=1&b").url


@pytest.mark.parametrize("payload", ["", b"", "text"])
def test_pull_keeps_its_payload(payload: str | bytes) -> None:
    """A PULL task keeps its payload, an empty one too (SPEC 1.2)."""
    expected = payload.encode() if isinstance(payload, str) else payload

    assert expected == Task(payload, method="PULL").payload


def test_pull_has_params_as_form() -> None:
    """The params of a PULL task are its payload (SPEC 1.2)."""
    task = Task(method="PULL", params={"a": ["1", "2"]})

    assert (b"a=1&a=2", "", {}) == (task.payload, task.url, dict(task.headers))


@pytest.mark.row(13, 14, 15, 28, 36)
@pytest.mark.parametrize(
    "arguments",
    [
        {"method": "POST", "url": "/x?a=1"},
        {"method": "POST", "payload": "p", "params": {"a": 1}},
        {"method": "GET", "url": "/x?a=1", "params": {"a": 1}},
        {"method": "PUT", "url": "/x?a=1", "params": {"a": 1}},
        {"method": "GET", "payload": "p"},
        {"method": "HEAD", "payload": "p"},
        {"method": "DELETE", "payload": "p"},
        {"method": "PULL"},
        {"method": "PULL", "payload": "p", "url": "/x"},
        {"method": "PULL", "payload": "p", "headers": {"a": "b"}},
        {"method": "PULL", "payload": "p", "target": "t"},
        {"method": "PULL", "payload": "p", "params": {"a": 1}},
        {"method": "POST", "tag": "t"},
        {"method": "POST", "tag": ""},
        {"target": "t", "headers": {"HOST": "h"}},
        {"countdown": 1, "eta": datetime(2026, 1, 1, tzinfo=UTC)},
    ],
)
def test_arguments_that_exclude_each_other(arguments: dict[str, object]) -> None:
    """Arguments that contradict each other or the method are refused (SPEC 1.2, 1.11)."""
    with pytest.raises(errors.InvalidTaskError) as caught:
        Task(**arguments)  # type: ignore[arg-type]

    assert errors.InvalidTaskError is caught.type


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_bare_question_mark_disappears(method: str) -> None:
    """A trailing question mark without a query counts as none (SPEC 1.2)."""
    assert "/x" == Task(method=method, url="/x?").url


def test_default_url_of_get_is_just_the_query() -> None:
    """A GET task without URL but with params has only the query before it is added (SPEC 1.2)."""
    task = Task(method="GET", params={"a": "b"})

    assert ("?a=b", True) == (task.url, task.on_queue_url)


# --- SPEC 1.3: params ----------------------------------------------------------------------------------------------


@pytest.mark.row(17, 18)
@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"a": "b c&d=é"}, b"a=b+c%26d%3D%C3%A9"),
        ({"a": b"\xff \x00"}, b"a=%FF+%00"),
        ({b"k\xff": "v"}, b"k%FF=v"),
        ({"a": True, "b": 9.0, "c": -1, "d": Decimal("1.50")}, b"a=True&b=9.0&c=-1&d=1.50"),
        ({1: "x", 2.5: "y"}, b"1=x&2.5=y"),
        ({"must be": "esca&ped"}, b"must+be=esca%26ped"),
        ({"a": ["1", 2, b"3"], "b": ("x",)}, b"a=1&a=2&a=3&b=x"),
        ({"a": (str(i) for i in range(2))}, b"a=0&a=1"),
        ({"z": "1", "a": "2", "e": []}, b"z=1&a=2"),
        ({"": "", "_x": "a.b-c~d"}, b"=&_x=a.b-c~d"),
        ({"e": []}, b""),
    ],
)
def test_params_are_form_encoded(params: dict[str, str], expected: bytes) -> None:
    """Params are form-encoded in the order of the dict, one field for each value (SPEC 1.3)."""
    assert expected == Task(params=params).payload


@pytest.mark.parametrize("params", [None, {}])
def test_no_params(params: dict[str, str] | None) -> None:
    """None and an empty dict are no params: the payload stays (SPEC 1.3)."""
    assert b"p" == Task(b"p", params=params).payload


# --- SPEC 1.4: URL -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["asdf", "?a=1", "?", "http://e.com/x", "//e/x", "/x#f", "/x#", "/x?a#f"])
def test_url_is_a_relative_path(url: str) -> None:
    """A URL with scheme, host or fragment, or without a leading slash, is refused (SPEC 1.4)."""
    with pytest.raises(errors.InvalidUrlError):
        Task(url=url, method="GET")


@pytest.mark.row(11)
def test_only_the_path_is_limited() -> None:
    """The path has at most 2083 characters; the query is not counted (SPEC 1.4)."""
    path = "/" + "a" * 2082

    assert f"{path}?{'b' * 3000}" == Task(url=f"{path}?{'b' * 3000}", method="GET").url


@pytest.mark.row(11)
def test_path_of_2084_characters() -> None:
    """A path of 2084 characters is refused (SPEC 1.4)."""
    with pytest.raises(errors.InvalidUrlError, match="2084"):
        Task(url="/" + "a" * 2083)


def test_given_url_is_not_the_queue_url() -> None:
    """A task with a URL of its own is not on the queue's URL (SPEC 1.4)."""
    assert not Task(url="/x").on_queue_url


# --- SPEC 1.5: headers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"payload": "text"}, TEXT),
        ({"payload": b"bytes"}, None),
        ({"params": {"a": 1}}, FORM),
        ({"payload": "text", "headers": {"CONTENT-type": "text/csv"}}, "text/csv"),
        ({"params": {"a": 1}, "headers": {"content-TYPE": "text/csv"}}, "text/csv"),
        ({}, None),
    ],
)
def test_content_type(arguments: dict[str, object], expected: str | None) -> None:
    """Text and params set the content type unless the caller did, in any case (SPEC 1.5)."""
    assert expected == Task(url="/x", **arguments).headers.get("content-type")  # type: ignore[arg-type]


def test_headers_are_a_copy() -> None:
    """Changing what `headers` gives does not change the task (SPEC 1.5)."""
    task = Task(headers={"a": "b"})
    task.headers["a"] = "c"

    assert {"a": "b"} == dict(task.headers)


@pytest.mark.row(33)
def test_last_spelling_of_a_header_wins() -> None:
    """Of header names that differ by case only, the last wins and keeps its spelling (SPEC 1.1)."""
    task = Task(headers={"X-One": "1", "x-two": "2", "x-ONE": "3"})

    assert [("x-ONE", "3"), ("x-two", "2")] == list(task.headers.items())


def test_header_is_repeated_for_each_value() -> None:
    """A header with a list of values is sent once for each (SPEC 1.1)."""
    assert ["1", "2"] == Task(headers={"a": ["1", "2"]}).headers.getall("a")


def test_app_engine_headers_are_dropped() -> None:
    """X-AppEngine-* headers are dropped, but for X-AppEngine-FailFast (SPEC D14)."""
    headers = {"X-AppEngine-QueueName": "q", "x-appengine-whatever": "w", "X-AppEngine-FailFast": "1", "X_AppEngine_FailFast": "2"}

    assert {"X-AppEngine-FailFast": "1"} == dict(Task(headers=headers).headers)


@pytest.mark.row(33)
def test_host_header_is_kept() -> None:
    """A Host header is sent as it is (SPEC D24)."""
    assert {"Host": "example.com"} == dict(Task(headers={"Host": "example.com"}).headers)


def test_no_host_header_of_its_own() -> None:
    """A task with a target gets no Host header (SPEC D24)."""
    task = Task(target="mailer", headers={"a": "b"})

    assert ("mailer", {"a": "b"}) == (task.target, dict(task.headers))


# --- SPEC 1.6: ETA -------------------------------------------------------------------------------------------------


def test_eta_is_converted_to_utc() -> None:
    """An aware ETA is shown in UTC (SPEC 1.6)."""
    eta = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=timezone(timedelta(hours=2)))
    task = Task(eta=eta)

    assert (datetime(2026, 1, 2, 1, 4, 5, 678900, tzinfo=UTC), timedelta(0)) == (task.eta, task.eta.utcoffset())  # type: ignore[union-attr]


def test_eta_posix() -> None:
    """`eta_posix` is the ETA in seconds since 1970 (SPEC 1.6)."""
    assert 1767323045.6789 == Task(eta=datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)).eta_posix


def test_eta_may_be_past() -> None:
    """An ETA in the past is accepted (SPEC 1.1)."""
    assert 0.0 == Task(eta=datetime(1970, 1, 1, tzinfo=UTC)).eta_posix


@pytest.mark.parametrize("countdown", [None, 5])
def test_eta_is_open_until_the_add(countdown: int | None) -> None:
    """Without a given ETA it is fixed by the add, since only the service tells time (differs from SPEC 1.6: the constructor)."""
    task = Task(countdown=countdown)

    assert (None, None) == (task.eta, task.eta_posix)


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999)))
@settings(database=None)
def test_eta_comes_back_exactly(moment: datetime) -> None:
    """An ETA is kept to the microsecond over all the years that it may be in (SPEC 1.6)."""
    eta = moment.replace(tzinfo=UTC)

    assert eta == Task(eta=eta).eta


# --- SPEC 1.7: properties ------------------------------------------------------------------------------------------


def test_properties_of_a_new_task() -> None:
    """A task that was not added has no queue, no retries and no flags (SPEC 1.7)."""
    task = Task(url="/x")

    assert (None, 0, False, False) == (task.queue_name, task.retry_count, task.was_enqueued, task.was_deleted)


def test_properties_show_what_was_given() -> None:
    """Retry options, deadline and tag are shown as given (SPEC 1.7)."""
    options = TaskRetryOptions(task_retry_limit=1)
    task = Task("p", method="PULL", tag="t", retry_options=options, dispatch_deadline_seconds=1.5)

    assert ("t", options, 1.5) == (task.tag, task.retry_options, task.dispatch_deadline_seconds)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Task("p", method="PULL"), "eta method name payload queue_name retry_options size tag was_deleted was_enqueued"),
        (Task(), "eta headers method name payload queue_name retry_options size target url was_deleted was_enqueued"),
    ],
)
def test_repr_names_the_properties_in_order(task: Task, expected: str) -> None:
    """The repr has the properties of the task's kind, sorted (SPEC 1.7)."""
    fields = repr(task).removeprefix("Task<").removesuffix(">").split(", ")

    assert expected.split() == [field.partition("=")[0] for field in fields]


@pytest.mark.promise("P24")
@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Task(b"secret"), "payload=<6 bytes>"),
        (Task(), "payload=None"),
        (Task(params={"a": "secret"}), "payload=<8 bytes>"),
        (Task(headers={"Cookie": "secret", "X-A": ["1", "2"]}), "headers=['Cookie', 'X-A', 'X-A']"),
        (Task(url="/w?a=secret", method="GET"), "url='/w?<8 characters>'"),
        (Task(url="/w"), "url='/w'"),
        (Task("p", method="PULL", tag="secret"), "tag=<6 characters>"),
        (Task(target="mailer"), "target='mailer'"),
    ],
)
def test_repr_shows_no_secret(task: Task, expected: str) -> None:
    """The repr gets into logs: it has the sizes of payload, query and tag, and the names of headers (a difference from SPEC 1.7)."""
    assert (True, False) == (expected in repr(task), "secret" in repr(task))


# --- SPEC 1.8: size ------------------------------------------------------------------------------------------------


def test_size_counts_all_that_is_sent() -> None:
    """The size is that of method, payload, URL and headers (SPEC 1.8)."""
    headers = {"one": "two", "three": "four"}
    task = Task(b"mypayload", method="PUT", url="/foo/bar/baz", params={"seven": "eleven", "must be": "esca&ped"}, headers=headers)
    expected = "mypayload" + "one: two\r\n" + "three: four\r\n" + "/foo/bar/baz?seven=eleven&must+be=esca%26ped" + "PUT"

    assert len(expected) == task.size


def test_size_counts_repeated_headers_each() -> None:
    """A repeated header counts once for each value (SPEC 1.8)."""
    assert len("POST" + "/x" + "a: 1\r\n" + "a: 22\r\n") == Task(url="/x", headers={"a": ["1", "22"]}).size


@pytest.mark.row(20)
@pytest.mark.parametrize(("method", "url", "limit"), [("POST", "/x", 102_400), ("PULL", "", 1_048_576)])
def test_largest_task(method: str, url: str, limit: int) -> None:
    """A task of exactly the largest size is accepted (SPEC 1.8)."""
    payload = b"a" * (limit - len(method) - len(url))

    assert limit == Task(payload, method=method, url=url).size


@pytest.mark.row(20)
@pytest.mark.parametrize(("method", "url", "limit"), [("POST", "/x", 102_400), ("PULL", "", 1_048_576)])
def test_one_byte_too_many(method: str, url: str, limit: int) -> None:
    """A task of one byte more is refused, and the error has both numbers (SPEC 1.8)."""
    payload = b"a" * (limit - len(method) - len(url) + 1)

    with pytest.raises(errors.TaskTooLargeError, match=f"{limit + 1} .*{limit}"):
        Task(payload, method=method, url=url)


# --- SPEC 1.9: extract_params --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "PUT", "DELETE", "PULL"])
def test_params_are_extracted(method: str) -> None:
    """Params come back as text, as a list where a key was repeated, blank values kept (SPEC 1.9, D3)."""
    task = Task(method=method, params={"a": ["1", "é &="], "b": "", "c": 3})

    assert {"a": ["1", "é &="], "b": "", "c": "3"} == task.extract_params()


@pytest.mark.parametrize(
    "task", [Task(), Task(b"", url="/x"), Task("", method="PULL"), Task(method="GET", url="/x"), Task("a=b", method="PUT", url="/x")]
)
def test_nothing_to_extract(task: Task) -> None:
    """Where there are no params, an empty dict is given; the body of a PUT is not read (SPEC 1.9)."""
    assert {} == task.extract_params()


@pytest.mark.parametrize("payload", [b"abc", b"a=1&&b=2", b"a=1&b", b"a=%ff", b"\xff=a"])
@pytest.mark.parametrize("method", ["POST", "PULL"])
def test_payload_that_is_no_form(payload: bytes, method: str) -> None:
    """A payload that is not form-encoded text is a ValueError (SPEC 1.9)."""
    with pytest.raises(ValueError, match=f"The payload of {len(payload)} bytes is not form-encoded text"):
        Task(payload, method=method).extract_params()


def test_query_that_is_no_form() -> None:
    """A query that is not form-encoded text is a ValueError (SPEC 1.9)."""
    with pytest.raises(ValueError, match="The query of 3 bytes is not form-encoded text; it was not made of params"):
        Task(url="/w?abc", method="GET").extract_params()


@given(st.dictionaries(st.text(), st.lists(st.text(), min_size=2, max_size=3) | st.text(), max_size=4))
@settings(database=None, max_examples=50)
def test_params_come_back(params: dict[str, str] | dict[str, list[str]]) -> None:
    """Whatever text goes into params comes out of `extract_params` (SPEC 1.9)."""
    assert params == Task(method="GET", params=params).extract_params()


# --- SPEC 1.10: adding ---------------------------------------------------------------------------------------------


class ServiceThatNotes:
    """The smallest service: notes what is added."""

    description = "notes"

    def __init__(self) -> None:
        self.calls: list[tuple[str, Sequence[Task], bool]] = []

    async def add_tasks(self, queue_name: str, tasks: Sequence[Task], transactional: bool) -> None:
        """Note the call."""
        self.calls.append((queue_name, tasks, transactional))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("arguments", "expected"), [({}, ("default", False)), ({"queue_name": "mail", "transactional": True}, ("mail", True))]
)
async def test_add_goes_to_the_current_service(arguments: dict[str, object], expected: tuple[str, bool]) -> None:
    """`Task.add` hands the task to the current service and returns it (SPEC 1.10)."""
    service, task = ServiceThatNotes(), Task(url="/x")
    with _current.use(service):  # type: ignore[arg-type]  # Task.add needs nothing but add_tasks
        added = await task.add(**arguments)  # type: ignore[arg-type]

    assert (task, [(expected[0], [task], expected[1])]) == (added, service.calls)


@pytest.mark.anyio
async def test_add_without_a_service() -> None:
    """Without a running service an add says so."""
    with pytest.raises(errors.NotStartedError):
        await Task(url="/x").add()
