"""The access check without a web framework: each genuine attempt is admitted once, and whoever runs it knows its task."""

from __future__ import annotations

import asyncio
import datetime
import logging

import pytest
from signed_requests import BODY, NOW, SECRET, Headers, StoppedClock, make_record, replaced, signed_headers

from aiotaskqueue._headers import task_headers
from aiotaskqueue.errors import NotInTaskError
from aiotaskqueue.signing import KeyRing, Refusal, RefusalReason, sign
from aiotaskqueue.tasks import current_task
from aiotaskqueue.worker import AccessCheck, Admission, TaskInfo, running

GENUINE = signed_headers(make_record())


def make_check(clock: StoppedClock | None = None, max_remembered: int = 1000) -> AccessCheck:
    """Return a check that knows our secret."""
    return AccessCheck(KeyRing([SECRET]), clock or StoppedClock(), max_remembered=max_remembered)


def outcome(check: AccessCheck, headers: Headers = GENUINE, target: str = "/worker") -> str:
    """Return "admitted", or the reason of the refusal."""
    result = check.check("POST", target, headers)
    return result.reason if isinstance(result, Refusal) else "admitted"


def admission(headers: Headers = GENUINE) -> Admission:
    """Return what a check says that sees the headers for the first time."""
    result = make_check().check("POST", "/worker", headers)
    assert isinstance(result, Admission)
    return result


class Body:
    """A body that knows whether it was read."""

    def __init__(self, content: bytes | None = BODY) -> None:
        self.content = content
        self.was_read = False

    async def read(self) -> bytes | None:
        """Return the body, as an adapter would."""
        self.was_read = True
        return self.content


# --- heads ---------------------------------------------------------------------------------------------------------


def test_without_keys_nobody_is_let_in() -> None:
    """A check that has no keys yet, before its service has started, refuses even a genuine head."""
    check = AccessCheck(None, StoppedClock())
    before = outcome(check)
    check.use_keys(KeyRing([SECRET]))

    assert [RefusalReason.UNKNOWN_KEY, "admitted"] == [before, outcome(check)]


def test_genuine_head() -> None:
    """A genuine head says which task may run."""
    info = admission().info

    assert ("mail", "welcome-1", 0, 30.0) == (info.queue_name, info.name, info.retry_count, info.deadline_seconds)


@pytest.mark.parametrize("url", ["/worker", "/worker?", "/worker?a=1&b=%C3%A9", "/worker?a=?", "/%2Fworker/%20", "/w;a=1/x?b=/"])
def test_target_as_received(url: str) -> None:
    """Path and query are compared as they stand in the request line."""
    assert outcome(make_check(), signed_headers(make_record(url=url)), url) == "admitted"


@pytest.mark.parametrize(
    "target", ["//worker", "/x/../worker", "/%77orker", "/worker/", "/Worker", "/worker;a", "/worker?a", "/worker#a", "http://h/worker", ""]
)
def test_target_in_another_spelling(target: str) -> None:
    """No other spelling of the path will do (RELIABILITY T5)."""
    assert outcome(make_check(), target=target) == RefusalReason.BAD_SIGNATURE


def test_replay() -> None:
    """An attempt that was here before is refused while its signature is good, and as expired after that."""
    clock = StoppedClock()
    check = make_check(clock)
    outcomes = [outcome(check)]
    for clock.now in (NOW, NOW + 31, NOW + 31.5):
        outcomes.append(outcome(check))

    assert outcomes == ["admitted", RefusalReason.REPLAYED, RefusalReason.REPLAYED, RefusalReason.EXPIRED]


def test_replay_signed_anew() -> None:
    """An attempt is accepted once, even if it was signed twice."""
    check = make_check()

    assert outcome(check) == "admitted"
    assert outcome(check, signed_headers(make_record(), created=NOW + 1)) == RefusalReason.REPLAYED


def test_next_attempt_is_no_replay() -> None:
    """Another attempt of the task, and the same attempt number of another task, are admitted."""
    check = make_check()
    others = (make_record(), make_record(lease_token=8), make_record(uuid=bytes(16)))

    assert ["admitted"] * 3 == [outcome(check, signed_headers(other)) for other in others]


def test_expired_attempts_are_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    """Room for attempts is given back once their signatures have expired: nothing has to be forgotten too early."""
    clock = StoppedClock()
    check = make_check(clock, max_remembered=1)
    outcomes = [outcome(check)]
    clock.now = NOW + 32
    outcomes.append(outcome(check, signed_headers(make_record(lease_token=8), created=NOW + 32)))

    assert ["admitted", "admitted"] == outcomes
    assert "" == caplog.text


def test_memory_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """With too many attempts at once those that expire first are forgotten, and a warning says so once."""
    check = make_check(max_remembered=2)
    heads = [
        signed_headers(make_record(lease_token=token), deadline_seconds=seconds) for token, seconds in ((1, 90), (2, 60), (3, 70), (4, 80))
    ]
    for head in heads:
        outcome(check, head)

    assert ["admitted", RefusalReason.REPLAYED] == [outcome(check, heads[1]), outcome(check, heads[0])]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_no_more_is_forgotten_than_has_to_be() -> None:
    """Of attempts that expire in the same second the oldest is forgotten for the one that comes; the others are still refused."""
    check = make_check(max_remembered=3)
    heads = [signed_headers(make_record(lease_token=token)) for token in range(1, 5)]
    for head in heads:
        outcome(check, head)
    outcomes = [outcome(check, head) for head in [*heads[1:], heads[0]]]

    assert [*[RefusalReason.REPLAYED] * 3, "admitted"] == outcomes


def test_refused_head_is_not_remembered() -> None:
    """A forged copy that comes first does not keep the genuine request out."""
    check = make_check()

    assert outcome(check, replaced(GENUINE, "X-AppEngine-TaskName", "x")) == RefusalReason.BAD_SIGNATURE
    assert outcome(check) == "admitted"


def test_signed_nonsense() -> None:
    """Headers that are signed by somebody with the key, but that make no sense, are refused."""
    headers = replaced(task_headers(make_record(), deadline_seconds=30), "X-AppEngine-TaskRetryCount", "+5")
    request = {"method": "POST", "path": "/worker", "query": "", "body": BODY}
    signature = sign(KeyRing([SECRET]), headers=headers, created=NOW, deadline_seconds=30, **request)  # type: ignore[arg-type]

    assert outcome(make_check(), headers + signature) == RefusalReason.MALFORMED


def test_rejections_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Requests that are answered with 403 are counted by reason, and logged without anything that a stranger wrote."""
    caplog.set_level(logging.INFO)
    check = make_check()
    for headers in ([], [("X-AppEngine-QueueName", "canary")], replaced(GENUINE, "Signature", "canary")):
        result = check.check("POST", "/canary", headers)
        assert isinstance(result, Refusal)
        check.reject(result)

    assert {RefusalReason.UNSIGNED: 2, RefusalReason.BAD_SIGNATURE: 1} == check.rejections
    assert "unsigned" in caplog.text
    assert "canary" not in caplog.text


# --- bodies --------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_genuine_body() -> None:
    """With the body that was signed, the request may run."""
    head = admission([*GENUINE, ("Content-Length", "9")])

    assert await make_check().admit(head, Body().read) is None


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("content", "reason"), [(b"key=valuf", RefusalReason.BAD_BODY), (b"", RefusalReason.BAD_BODY), (None, RefusalReason.UNREADABLE_BODY)]
)
async def test_other_body(content: bytes | None, reason: RefusalReason) -> None:
    """With another body, or one that cannot be read, it may not."""
    head = admission([*GENUINE, ("Content-Length", "9")])

    assert Refusal(reason) == await make_check().admit(head, Body(content).read)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "length",
    [
        ("Content-Length", "1048577"),
        ("Content-Length", "+9"),
        ("Content-Length", "9, 9"),
        ("Content-Length", "\u0669"),
        ("Content-Length", ""),
        ("Transfer-Encoding", "chunked"),
    ],
)
async def test_body_of_unfair_length(length: tuple[str, str]) -> None:
    """A body that is too large, or whose length is not said, is not even read."""
    body = Body()

    assert Refusal(RefusalReason.BODY_LENGTH) == await make_check().admit(admission([*GENUINE, length]), body.read)
    assert not body.was_read


@pytest.mark.anyio
@pytest.mark.parametrize("length", [[], [("Content-Length", "0")], [("Content-Length", "1048576")]])
async def test_body_of_fair_length(length: Headers) -> None:
    """No body, an empty one, and one of exactly a mebibyte are read."""
    head = admission([*signed_headers(make_record(payload=b"")), *length])

    assert await make_check().admit(head, Body(b"").read) is None


@pytest.mark.anyio
@pytest.mark.parametrize("is_live", [True, False])
async def test_store_is_asked(is_live: bool) -> None:
    """Where a store can tell that an attempt has ended, it is refused before its body is read."""
    asked = []

    async def ask(uuid: str, attempt: str) -> bool:
        asked.append((uuid, attempt))
        return is_live

    body = Body()
    refusal = await AccessCheck(KeyRing([SECRET]), StoppedClock(), is_live=ask).admit(admission(), body.read)

    assert [("000102030405060708090a0b0c0d0e0f", "7")] == asked
    assert (None if is_live else Refusal(RefusalReason.NOT_LIVE)) == refusal
    assert is_live is body.was_read


# --- the current task ----------------------------------------------------------------------------------------------


def test_task_info() -> None:
    """The current task knows what its headers say."""
    record = make_record(attempts=3, executions=1, previous_status=500, retry_reason="status", eta_usec=NOW * 1_000_000 + 250_000)
    info = admission(signed_headers(record)).info

    assert (2, 1, 500, "status") == (info.retry_count, info.execution_count, info.previous_response, info.retry_reason)
    assert datetime.datetime(2026, 1, 2, 3, 4, 5, 250_000, tzinfo=datetime.UTC) == info.eta
    assert info.uuid == "000102030405060708090a0b0c0d0e0f"


@pytest.mark.parametrize(("seconds", "remaining"), [(0, 30.0), (12.5, 17.5), (30, 0.0), (31, 0.0)])
def test_remaining_seconds(seconds: float, remaining: float) -> None:
    """The remaining time runs down to zero from the moment at which the head was checked."""
    clock = StoppedClock()
    result = make_check(clock).check("POST", "/worker", GENUINE)
    assert isinstance(result, Admission)
    clock.now += seconds

    assert remaining == result.info.remaining_seconds()


@pytest.mark.row(61)
def test_current_task() -> None:
    """There is a current task within the block, and none after it."""
    info = admission().info
    with running(info):
        assert info is current_task()

    with pytest.raises(NotInTaskError, match="There is no current task"):
        current_task()


@pytest.mark.anyio
@pytest.mark.row(61)
async def test_no_current_task_after_its_end() -> None:
    """What a handler has started knows the task until the handler has ended."""
    info, ended = admission().info, asyncio.Event()

    async def go_on() -> TaskInfo:
        assert info is current_task()
        await ended.wait()
        return current_task()

    with running(info):
        background = asyncio.create_task(go_on())
        await asyncio.sleep(0)
    ended.set()

    with pytest.raises(NotInTaskError):
        await background


def test_no_current_task_within_another() -> None:
    """A handler that nobody vouches for has no current task, whoever called it."""
    with running(admission().info), running(None), pytest.raises(NotInTaskError):
        current_task()
