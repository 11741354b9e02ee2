"""HTTPDelivery with answers that are none: what is not HTTP, and what is cut off."""

from __future__ import annotations

import asyncio
import itertools
import sys

import aiohttp
import pytest
from hostile import OK, OK_HEAD, Peer, Play, answering, raw_server, resetting
from test_delivery_http import RECORD, deliver_to, opened, reason_of

from aiotaskqueue.delivery._base import FailureReason, NoAnswer
from aiotaskqueue.delivery._head import MAX_HEAD_BYTES, MalformedError, split_head

pytestmark = pytest.mark.anyio

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MALFORMED, TRUNCATED, DISCONNECTED = FailureReason.MALFORMED, FailureReason.TRUNCATED, FailureReason.DISCONNECTED

NOT_HTTP = {
    71: {
        "status 99": b"HTTP/1.1 99 X\r\nContent-Length: 0\r\n\r\n",
        "status 099": b"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n",
        "status 000": b"HTTP/1.1 000 X\r\nContent-Length: 0\r\n\r\n",
        "status 1000": b"HTTP/1.1 1000 X\r\nContent-Length: 0\r\n\r\n",
        "status 2x0": b"HTTP/1.1 2x0 X\r\nContent-Length: 0\r\n\r\n",
    },
    72: {
        "garbage": b"garbage\r\n\r\n",
        "TLS alert": b"\x15\x03\x03\x00\x02\x02\x46",
        "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HTTP/2 settings": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
        "HTTP/2 in words": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/0.9": b"<html>hello</html>",
        "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
        "version": b"HTTP/3.7 200 OK\r\n\r\n",
    },
    74: {
        "header of 20 kB": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        "reason of 20 kB": b"HTTP/1.1 200 " + b"a" * 20_000 + b"\r\n\r\n",
        "1000 headers": b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 1000 + b"\r\n",
        "NUL in a header": b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
        "NUL in a name": b"HTTP/1.1 200 OK\r\nX\x00: a\r\nContent-Length: 0\r\n\r\n",
        "bare CR": b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
        "header without colon": b"HTTP/1.1 200 OK\r\nX\r\nContent-Length: 0\r\n\r\n",
        "same length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "two lengths in one": b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok",
        "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
        "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "chunked and length": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    },
    76: {
        "bad chunk size": CHUNKED + b"2\r\nok\r\nzz\r\n",
        "chunk size lies": CHUNKED + b"1\r\nok\r\n0\r\n\r\n",
        "chunk size overflows": CHUNKED + b"fffffffffffffffff\r\nok",
        "negative chunk size": CHUNKED + b"-1\r\nok\r\n0\r\n\r\n",
        "bad trailer": CHUNKED + b"0\r\nbad trailer\x00\r\n\r\n",
        "too many trailers": CHUNKED + b"0\r\n" + b"X: a\r\n" * 1000 + b"\r\n",
    },
}

# What aiohttp would take for good.
LENIENT = {
    74: {
        "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "bare LF after a header": b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 0\r\n\r\n",
        "bare LF after the head": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n",
        "folded": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        "folded by a tab": b"HTTP/1.1 200 OK\r\nX: a\r\n\tb\r\nContent-Length: 0\r\n\r\n",
        "folded length": b"HTTP/1.1 200 OK\r\nContent-Length:\r\n 0\r\n\r\n",
        "folded at once": b"HTTP/1.1 200 OK\r\n X: a\r\nContent-Length: 0\r\n\r\n",
        "folded in an interim answer": b"HTTP/1.1 103 X\r\nX: a\r\n b\r\n\r\n" + OK,
        "blank before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
        "NUL in the reason": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
        "empty line first": b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    },
}


def cases(*answers: dict[int, dict[str, bytes]]) -> list[object]:
    """Return the answers as parameters of a test, each with its row."""
    return [
        pytest.param(answer, id=name, marks=pytest.mark.row(row))
        for table in answers
        for row, named in table.items()
        for name, answer in named.items()
    ]


# --- what is not HTTP --------------------------------------------------------------------------------------------------------


@pytest.mark.promise("P6")
@pytest.mark.parametrize("answer", cases(NOT_HTTP, LENIENT))
@pytest.mark.parametrize("head_bytes", [0, 10, 48])
async def test_malformed(answer: bytes, head_bytes: int) -> None:
    """What is not HTTP is malformed, be it in one piece or after a pause, and ends the connection (rows 71, 72, 74, 76)."""
    ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def play(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(answer[:head_bytes], 0.01 if head_bytes else 0.0, answer[head_bytes:])
        await peer.wait_for_end()
        ended.set_result(True)

    async with raw_server(play) as server, opened(server.base_url) as delivery:
        outcome = await delivery.deliver(RECORD, deadline_seconds=1.0)

        assert MALFORMED is reason_of(outcome)
        assert outcome.detail
        assert "http://" not in outcome.detail
        assert await asyncio.wait_for(ended, 1.0)


async def test_naive_reader_hangs_on_a_malformed_chunk() -> None:
    """Control of the test before: aiohttp's reader waits for ever if the bad chunk comes after the head."""
    play = answering(CHUNKED + b"2\r\nok\r\n", 0.02, b"zz\r\n")
    async with raw_server(play) as server, aiohttp.ClientSession() as session:
        response = await session.post(server.base_url)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(response.read(), 0.2)


@pytest.mark.parametrize(
    "steps", [(CHUNKED, 0.02, b"0\r\n" + b"X: a\r\n" * 1000), (CHUNKED + b"0\r\n", 0.02, b"X: a\r\n" * 1000), (CHUNKED, 0.02, b"zz\r\n")]
)
@pytest.mark.row(76)
async def test_malformed_end_says_what_is_wrong(steps: tuple[bytes | float, ...]) -> None:
    """A body whose end is malformed is not called cut off, though the connection ends there, and the detail says why."""
    outcome = await deliver_to(answering(*steps))

    assert MALFORMED is reason_of(outcome)
    assert outcome.detail.startswith(("Too many headers", "Invalid character in chunk size"))


@pytest.mark.parametrize("answer", cases(LENIENT))
@pytest.mark.skipif(sys.flags.dev_mode, reason="in Python's development mode aiohttp is strict")
async def test_naive_reader_is_lenient(answer: bytes) -> None:
    """Control of the test before: aiohttp takes heads for good that are not HTTP."""
    async with raw_server(answering(answer)) as server, aiohttp.ClientSession() as session:
        response = await session.post(server.base_url)

        assert 200 == response.status


# --- heads -----------------------------------------------------------------------------------------------------------------

HEADS = [
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.0 404\r\nX:\r\n\r\n",
    b"HTTP/1.1 999 \r\n!#$%&'*+-.^_`|~09azAZ: \xe9 : b \t\r\nContent-Length:0\r\n\r\n",
    b"HTTP/1.1 101 X\r\nUpgrade: h2c\r\n\r\n",
    b"HTTP/1.1 103 X\r\nLink: </x>\r\n\r\nHTTP/1.1 199\r\n\r\nHTTP/1.1 500 X\r\nX: a\r\n\r\n",
]


def read(*pieces: bytes) -> tuple[bytes, bytes]:
    """Return the head that comes in pieces, and what comes behind it."""
    waiting = iter(pieces)
    head = rest = b""
    while not head:
        head, rest = split_head(rest + next(waiting))
    return head, rest + b"".join(waiting)


@pytest.mark.parametrize("head", HEADS)
def test_head_in_pieces(head: bytes) -> None:
    """The final head is found whatever the pieces it comes in, without the interim ones before, and nothing behind it is lost."""
    behind = b"HTTP/1.1 bo\r\n\r\ndy"
    data, final = head + behind, head[head.rindex(b"HTTP/") :]
    splits = {read(data[:i], data[i:j], data[j:]) for i, j in itertools.combinations(range(len(data)), 2)}

    assert {(final, behind)} == splits
    assert (final, behind) == read(*(bytes([byte]) for byte in data))


@pytest.mark.row(68)
def test_interim_heads_are_not_kept() -> None:
    """Interim heads are forgotten as soon as they are whole, however many there are (T15)."""
    interim = b"HTTP/1.1 103 X\r\nLink: </x>\r\n\r\n"

    assert (b"", b"HTTP/1.1 1") == split_head(interim * 10_000 + b"HTTP/1.1 1")


@pytest.mark.row(74)
@pytest.mark.parametrize("answer", cases({74: {**LENIENT[74], "two": b"HTTP/1.1 200 OK\r\nHTTP/1.1 200 OK\r\n\r\n"}}))
def test_malformed_head_in_pieces(answer: bytes) -> None:
    """A malformed line is found whatever the pieces it comes in, and the error shows it."""
    with pytest.raises(MalformedError, match=r"^The head has a malformed line: b'"):
        read(*(bytes([byte]) for byte in answer))
    for i in range(len(answer)):
        with pytest.raises(MalformedError):
            read(answer[:i], answer[i:])


@pytest.mark.row(74)
@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200 ", b"HTTP/1.1 200 OK\r\nX", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 9000]
)
def test_large_head(start: bytes) -> None:
    """A head that has not ended after 64 KiB is malformed: it is held in memory until then."""
    begun = start + b"a" * (MAX_HEAD_BYTES - len(start))

    assert (b"", begun) == split_head(begun)
    with pytest.raises(MalformedError, match=r"^The head is larger than 65536 bytes.$"):
        split_head(begun + b"a")


@pytest.mark.parametrize("start", [b"", *(b"HTTP/1."[:i] for i in range(1, 8)), b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nX : not yet looked at"])
def test_begun_head(start: bytes) -> None:
    """The beginning of a head is waited with, to its last byte."""
    assert (b"", start) == split_head(start)


# --- what is cut off -----------------------------------------------------------------------------------------------------------

BEGUN = {
    "length, closed": answering(OK_HEAD + b"o", then_close=True),
    "length, closed later": answering(OK_HEAD, 0.01, b"o", then_close=True),
    "length, reset": resetting(OK_HEAD, 0.01, b"o"),
    "chunk, closed": answering(CHUNKED + b"2\r\no", then_close=True),
    "no last chunk, closed": answering(CHUNKED + b"2\r\nok\r\n", 0.01, then_close=True),
    "no last chunk, reset": resetting(CHUNKED + b"2\r\nok\r\n", 0.01),
    "no trailer's end, closed": answering(CHUNKED + b"2\r\nok\r\n0\r\n", 0.01, then_close=True),
    "no length, reset": resetting(b"HTTP/1.1 200 OK\r\n\r\nok", 0.01),
    "no chunks, reset": resetting(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok", 0.01),
    "no chunks last, reset": resetting(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\nok", 0.01),
    "500, no length, reset": resetting(b"HTTP/1.1 500 X\r\n\r\nok", 0.01),
    "500, closed": answering(b"HTTP/1.1 500 X\r\nContent-Length: 9\r\n\r\n", then_close=True),
}

NOT_BEGUN = {
    "nothing, closed": answering(then_close=True),
    "nothing, reset": resetting(),
    "half a status line": answering(b"HTTP/1.1 20", then_close=True),
    "half a head": answering(b"HTTP/1.1 200 OK\r\nConte", then_close=True),
    "half a head, reset": resetting(b"HTTP/1.1 200 OK\r\nConte"),
    "1xx only": answering(b"HTTP/1.1 103 X\r\n\r\n", then_close=True),
}


@pytest.mark.row(65)
@pytest.mark.promise("P6")
@pytest.mark.parametrize("play", BEGUN.values(), ids=BEGUN)
async def test_truncated(play: Play) -> None:
    """An answer whose head came and whose end did not is truncated, whatever its status, and was an execution (H7)."""
    outcome = await deliver_to(play)

    assert NoAnswer(TRUNCATED, "The connection ended before the end of the body.") == outcome
    assert outcome.was_executed


@pytest.mark.row(72)
@pytest.mark.promise("P6")
@pytest.mark.parametrize("play", NOT_BEGUN.values(), ids=NOT_BEGUN)
async def test_disconnected(play: Play) -> None:
    """An answer whose head did not come to its end is none: whether the handler ran is unknown, so it is no execution."""
    outcome = await deliver_to(play)

    assert NoAnswer(DISCONNECTED, "The connection ended before the answer.") == outcome
    assert not outcome.was_executed


@pytest.mark.parametrize("coding", [b"", b"Transfer-Encoding: gzip\r\n"])
async def test_naive_reader_takes_a_reset_for_the_end(coding: bytes) -> None:
    """Control of the tests before: aiohttp calls a body complete whose connection was reset, if nothing says where it ends."""
    play = resetting(b"HTTP/1.1 200 OK\r\n" + coding + b"\r\nok", 0.01)
    async with raw_server(play) as server, aiohttp.ClientSession() as session:
        response = await session.post(server.base_url)

        assert b"ok" == await response.read()
