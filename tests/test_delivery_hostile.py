"""HTTPDelivery with workers that are broken, compromised or hostile: rows 64 to 83, T14 and T15 of RELIABILITY."""

from __future__ import annotations

import asyncio
import gzip
import time
import tracemalloc
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hostile import OK, OK_HEAD, FastClock, Peer, Play, RawServer, answering, play_silence, raw_server, resetting
from test_delivery_http import KEYS, RECORD, deliver_to, headers_of, make_record, opened, reason_of

from aiotaskqueue._clock import SystemClock
from aiotaskqueue.delivery._base import DETAIL_BYTES, Answer, FailureReason, NoAnswer
from aiotaskqueue.delivery._detail import safe_text

pytestmark = pytest.mark.anyio

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
# aiohttp warns of bodies above 1 MiB given as bytes; here they are to be larger than all socket buffers.
large_payload = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
MALFORMED, TRUNCATED = FailureReason.MALFORMED, FailureReason.TRUNCATED
DEADLINE, DISCONNECTED = FailureReason.DEADLINE, FailureReason.DISCONNECTED


# --- connections that end -------------------------------------------------------------------------------------------------


@pytest.mark.row(64)
async def test_reset_after_a_complete_answer() -> None:
    """What happens to the connection after a complete answer does not matter."""
    assert Answer(200) == await deliver_to(resetting(OK))
    assert Answer(204) == await deliver_to(resetting(b"HTTP/1.1 204 X\r\n\r\n"))


@pytest.mark.row(72)
async def test_accepted_and_closed_at_once() -> None:
    """A connection that is closed before the request is sent, or while it is, is no execution (row 72)."""

    async def play(peer: Peer) -> None:
        peer.reset()

    outcome = await deliver_to(play)

    assert reason_of(outcome) in (FailureReason.UNREACHABLE, DISCONNECTED)
    assert isinstance(outcome, NoAnswer)
    assert not outcome.was_executed


@pytest.mark.row(78)
@large_payload
async def test_answer_before_the_request_was_read() -> None:
    """An answer that starts before the body was read, and a reset: nobody knows (row 78)."""

    async def play(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", 0.02)
        peer.reset()

    assert TRUNCATED is reason_of(await deliver_to(play, make_record(payload=bytes(2_000_000))))


@pytest.mark.row(78)
@large_payload
async def test_early_answer() -> None:
    """A complete answer counts although the request was not read; its connection is not used again (row 78)."""

    async def play(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(OK)
        await peer.wait_for_end()

    async with raw_server(play) as server, opened(server.base_url) as delivery:
        outcomes = [await delivery.deliver(make_record(payload=bytes(10_000_000)), deadline_seconds=1.0) for _ in range(2)]

        assert [Answer(200)] * 2 == outcomes
        assert 2 == server.connections


# --- answers without an end ----------------------------------------------------------------------------------------------


async def trickle(peer: Peer, head: bytes, drop: bytes) -> None:
    """Send `head`, and then `drop` again and again."""
    await peer.read_request()
    await peer.send(head)
    while True:
        await peer.send(drop, 0.005)


async def play_head_trickle(peer: Peer) -> None:
    """Send a head that never ends."""
    await trickle(peer, b"HTTP/1.1 200 OK\r\nX: ", b"a")


async def play_body_trickle(peer: Peer) -> None:
    """Send a body that ends in an hour."""
    await trickle(peer, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"a")


async def play_error_trickle(peer: Peer) -> None:
    """Send the body of an error that ends in an hour."""
    await trickle(peer, b"HTTP/1.1 500 X\r\nContent-Length: 1000000\r\n\r\n", b"a")


async def play_interim_flood(peer: Peer) -> None:
    """Send nothing but interim answers, as fast as they are read."""
    await peer.read_request()
    while True:
        await peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100, 0.0)


async def play_deafness(peer: Peer) -> None:
    """Do not even read."""
    await asyncio.sleep(60)


@pytest.mark.row(66, 68, 83)
@pytest.mark.promise("P7")
@large_payload
@pytest.mark.parametrize(
    "play",
    [play_head_trickle, play_body_trickle, play_error_trickle, play_interim_flood, play_silence, play_deafness],
)
async def test_endless(play: Play) -> None:
    """Whatever a worker does to keep us waiting, we wait until deadline and grace (H4, rows 66, 68, 83, T15)."""
    clock = FastClock()
    async with raw_server(play) as server, opened(server.base_url) as delivery:
        start = clock.monotonic()
        outcome = await delivery.deliver(make_record(payload=bytes(10_000_000)), deadline_seconds=1.0)

        assert DEADLINE is reason_of(outcome)
        # Three of these seconds are 0.3 s, for a machine that is busy with other things.
        assert 2.0 <= clock.monotonic() - start < 5.0


@pytest.mark.slow
async def test_many_tricklers() -> None:
    """Tricklers are given up, and until then a healthy delivery does not wait for them (N-2)."""
    async with raw_server(play_body_trickle) as bad, opened(bad.base_url) as slow:
        async with raw_server(answering(OK)) as good, opened(good.base_url) as healthy:
            tricklers = [asyncio.ensure_future(slow.deliver(RECORD, deadline_seconds=5.0)) for _ in range(50)]
            outcome = await healthy.deliver(RECORD, deadline_seconds=5.0)
            unfinished = sum(not trickler.done() for trickler in tricklers)
            outcomes = await asyncio.gather(*tricklers)

    assert (Answer(200), 50) == (outcome, unfinished)
    assert {DEADLINE} == {reason_of(outcome) for outcome in outcomes}


@pytest.mark.row(83)
@large_payload
async def test_unsent_bytes_are_dropped() -> None:
    """A worker that does not read cannot keep the connection alive: what is not yet sent is dropped (row 83)."""
    is_over = asyncio.Event()
    received: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def play(peer: Peer) -> None:
        await is_over.wait()
        received.set_result(await peer.wait_for_end())

    async with raw_server(play) as server, opened(server.base_url) as delivery:
        await delivery.deliver(make_record(payload=bytes(30_000_000)), deadline_seconds=1.0)
        is_over.set()

        assert await received < 30_000_000


@large_payload
async def test_close_does_not_wait_for_unsent_bytes() -> None:
    """A worker that does not read cannot keep us from closing."""
    async with raw_server(play_deafness) as server, opened(server.base_url) as delivery:
        attempt = asyncio.ensure_future(delivery.deliver(make_record(payload=bytes(30_000_000)), deadline_seconds=1000.0))
        await asyncio.sleep(0.05)
        await asyncio.wait_for(delivery.aclose(), 0.5)

        assert FailureReason.CANCELLED is reason_of(await attempt)


@large_payload
async def test_slow_reader() -> None:
    """A worker that is slow to read, but reads, is served."""

    async def play(peer: Peer) -> None:
        await asyncio.sleep(0.05)
        await peer.read_request()
        await peer.send(OK)

    assert Answer(200) == await deliver_to(play, make_record(payload=bytes(10_000_000)))


@pytest.mark.row(72)
async def test_endless_tls_handshake() -> None:
    """A TLS handshake that does not end is unreachable after the time for connecting (T15)."""
    async with raw_server(play_deafness) as server:
        async with opened(server.base_url.replace("http:", "https:")) as delivery:
            outcome = await delivery.deliver(RECORD, deadline_seconds=1.0)

    assert FailureReason.UNREACHABLE is reason_of(outcome)


@pytest.mark.row(72)
async def test_plain_answer_to_tls() -> None:
    """A server that does not speak TLS is unreachable by https (row 72)."""

    async def play(peer: Peer) -> None:
        await peer.reader.read(100)
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with raw_server(play) as server, opened(server.base_url.replace("http:", "https:")) as delivery:
        outcome = await delivery.deliver(RECORD, deadline_seconds=1.0)

    assert FailureReason.UNREACHABLE is reason_of(outcome)


# --- bombs -----------------------------------------------------------------------------------------------------------------

BOMB = gzip.compress(bytes(20_000_000))
BOMB_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(BOMB), BOMB)


async def test_naive_reader_of_a_gzip_bomb() -> None:
    """Control of the next test: 20 kB become 20 MB (fact 5)."""
    async with raw_server(answering(BOMB_ANSWER)) as server, aiohttp.ClientSession() as session:
        response = await session.post(server.base_url)

        assert 20_000_000 == len(await response.read())
    assert len(BOMB) < 21_000


@pytest.mark.row(75)
async def test_gzip_bomb() -> None:
    """A compressed body stays compressed: it is read to its end and counts as complete (fact 5, H6, row 75)."""
    async with raw_server(answering(BOMB_ANSWER)) as server, opened(server.base_url) as delivery:
        await delivery.deliver(RECORD, deadline_seconds=1.0)
        tracemalloc.start()
        outcome = await delivery.deliver(RECORD, deadline_seconds=1.0)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert Answer(200) == outcome
    assert peak_bytes < 1_000_000


@pytest.mark.row(75)
@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br", b"zstd", b"rot13"])
async def test_bad_compression(encoding: bytes) -> None:
    """A body that is not what its Content-Encoding says is complete all the same (row 75)."""
    assert Answer(200) == await deliver_to(answering(b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: 2\r\n\r\nok" % encoding))


async def flood(peer: Peer, head: bytes, piece: bytes, sent: list[int]) -> None:
    """Send `head`, and then `piece` for as long as somebody reads; count what was sent."""
    await peer.read_request()
    await peer.send(head)
    while not peer.writer.transport.is_closing():
        await peer.send(piece, 0.0)
        sent.append(len(piece))


@pytest.mark.row(76)
@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (CHUNKED, b"10000\r\n%b\r\n" % bytes(0x10000)),
        pytest.param(CHUNKED, b"1\r\na\r\n" * 10_000, marks=pytest.mark.slow),
        (CHUNKED.replace(b"200", b"500"), b"10000\r\n%b\r\n" % bytes(0x10000)),
        (b"HTTP/1.1 200 OK\r\n\r\n", bytes(0x10000)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", bytes(0x10000)),
    ],
)
async def test_endless_body(head: bytes, piece: bytes) -> None:
    """A body is read up to the cap, thrown away while it is read, and then the connection ends (fact 5, row 76)."""
    sent: list[int] = []
    clock = SystemClock()
    async with raw_server(lambda peer: flood(peer, head, piece, sent)) as server:
        async with opened(server.base_url, max_answer_bytes=100_000) as delivery:
            await delivery.open(clock)
            tracemalloc.start()
            outcome = await delivery.deliver(RECORD, deadline_seconds=10.0)
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()

    assert NoAnswer(FailureReason.TOO_LARGE, "The body is larger than 100000 bytes.") == outcome
    assert sum(sent) < 20_000_000
    assert peak_bytes < 10_000_000


async def test_naive_reader_of_an_endless_body() -> None:
    """Control of the test before: aiohttp's reader keeps all that comes (fact 5)."""
    sent: list[int] = []
    async with raw_server(lambda peer: flood(peer, CHUNKED, b"10000\r\n%b\r\n" % bytes(0x10000), sent)) as server:
        async with aiohttp.ClientSession() as session:
            response = await session.post(server.base_url)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(response.read(), 0.1)

    assert sum(sent) > 5_000_000


@pytest.mark.row(76)
@pytest.mark.parametrize(
    ("size", "outcome"), [(1000, Answer(200)), (1001, NoAnswer(FailureReason.TOO_LARGE, "The body is larger than 1000 bytes."))]
)
async def test_cap(size: int, outcome: Answer | NoAnswer) -> None:
    """The cap is the largest body that is taken."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, bytes(size))

    assert outcome == await deliver_to(answering(answer), max_answer_bytes=1000)


@pytest.mark.row(76)
async def test_endless_trailers() -> None:
    """Trailers without an end do not fill the memory (row 76)."""
    sent: list[int] = []
    async with raw_server(lambda peer: flood(peer, CHUNKED + b"0\r\n", b"X: a\r\n" * 1000, sent)) as server:
        async with opened(server.base_url) as delivery:
            tracemalloc.start()
            outcome = await delivery.deliver(RECORD, deadline_seconds=1.0)
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()

    assert reason_of(outcome) in (MALFORMED, DEADLINE)
    assert peak_bytes < 10_000_000


# --- answers that nobody asked for -------------------------------------------------------------------------------------------

SPOILING = [
    pytest.param((OK + OK,), id="at once"),
    pytest.param((OK + b"junk",), id="junk at once"),
    pytest.param((OK_HEAD + b"okjunk",), id="junk at once with the body"),
    pytest.param((OK_HEAD, 0.01, b"okjunk"), id="junk at once after the head"),
    pytest.param((OK_HEAD + b"o", 0.01, b"kjunk"), id="junk at once with the end of the body"),
    pytest.param((OK_HEAD + b"ok" + b"HTTP/1.1 500 X\r\n\r\n",), id="another answer at once"),
    pytest.param((CHUNKED + b"2\r\nok\r\n0\r\n\r\njunk",), id="junk at once after chunks"),
    pytest.param((OK, 0.02, OK), id="while idle"),
    pytest.param((OK, 0.02, b"HTTP/1.1 200 OK\r\nContent-"), id="a part while idle"),
    pytest.param((OK, 0.02, b"x"), id="junk while idle"),
]


def spoiling(steps: tuple[bytes | float, ...]) -> Play:
    """Play: answer the first request by more than it asked for, and every other by 500."""

    async def play(peer: Peer) -> None:
        is_first = peer.number == 1
        while await peer.read_request():
            await peer.send(*(steps if is_first else (b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n",)))
            is_first = False

    return play


@pytest.mark.parametrize("steps", [(OK, 0.02, OK), (OK_HEAD + b"o", 0.02, b"k" + OK)])
async def test_naive_session_takes_an_answer_nobody_asked_for(steps: tuple[bytes | float, ...]) -> None:
    """Control of the next test: on a kept connection aiohttp takes a left-over 200 for the next request's answer."""
    async with raw_server(spoiling(steps)) as server, aiohttp.ClientSession() as session:
        for _ in range(2):
            response = await session.post(server.base_url)
            await response.read()
            await asyncio.sleep(0.05)

        assert 200 == response.status


@pytest.mark.row(82)
@pytest.mark.promise("P6")
@pytest.mark.parametrize("steps", SPOILING)
async def test_answers_nobody_asked_for(steps: tuple[bytes | float, ...]) -> None:
    """What comes after an answer spoils the connection, and is never the answer to the next task (P6, row 82)."""
    async with raw_server(spoiling(steps)) as server, opened(server.base_url) as delivery:
        first = await delivery.deliver(RECORD, deadline_seconds=1.0)
        await asyncio.sleep(0.05)
        second = await delivery.deliver(RECORD, deadline_seconds=1.0)

        assert (Answer(200), Answer(500)) == (first, second)
        assert 2 == server.connections


@pytest.mark.row(82)
@pytest.mark.parametrize("rest", [b"k" + OK, b"k" + OK + OK])
async def test_answers_with_the_rest_of_a_body(rest: bytes) -> None:
    """What comes in one piece with the end of a body spoils the connection as well."""
    async with raw_server(spoiling((OK_HEAD + b"o", 0.02, rest))) as server, opened(server.base_url) as delivery:
        outcomes = [await delivery.deliver(RECORD, deadline_seconds=1.0) for _ in range(2)]

    assert [Answer(200), Answer(500)] == outcomes
    assert 2 == server.connections


@pytest.mark.row(79)
async def test_upgrade() -> None:
    """A switch of protocols is a failure, and its connection is not used again (row 79)."""
    answer = b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\njunk"
    async with raw_server(answering(answer)) as server, opened(server.base_url) as delivery:
        outcomes = [await delivery.deliver(RECORD, deadline_seconds=1.0) for _ in range(2)]

    assert [Answer(101)] * 2 == outcomes
    assert 2 == server.connections


@pytest.mark.row(79)
async def test_offered_upgrade() -> None:
    """A 200 that offers an upgrade is a 200 (row 79)."""
    answer = b"HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n"

    assert Answer(200) == await deliver_to(answering(answer))


# --- leaks -----------------------------------------------------------------------------------------------------------------


async def redirected(status: int, client: Any) -> tuple[RawServer, Any]:
    """Run `client` against a server that redirects to another; return what the other has seen."""
    async with raw_server(answering(OK)) as thief:
        answer = b"HTTP/1.1 %d X\r\nLocation: %b/steal\r\nContent-Length: 0\r\n\r\n" % (status, thief.base_url.encode())
        async with raw_server(answering(answer)) as server:
            return thief, await client(server.base_url)


async def test_naive_session_follows_redirects() -> None:
    """Control of the next test: aiohttp sends body and signature on to another host (fact 7)."""

    async def post(base_url: str) -> None:
        async with aiohttp.ClientSession() as session:
            await session.post(base_url, data=b"secret", headers={"Signature": "canary"})

    thief, _ = await redirected(307, post)

    assert thief.requests[0].endswith(b"secret")
    assert ("Signature", "canary") in headers_of(thief.requests[0])


@pytest.mark.row(69)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects(status: int) -> None:
    """A redirect is a failure that says where to, and nothing is sent there (fact 7, H5, row 69, T14)."""

    async def deliver(base_url: str) -> Answer | NoAnswer:
        async with opened(base_url, keys=KEYS) as delivery:
            return await delivery.deliver(RECORD, deadline_seconds=1.0)

    thief, outcome = await redirected(status, deliver)

    assert Answer(status, detail=f"The redirect to {thief.base_url}/steal is not followed. ") == outcome
    assert 0 == thief.connections


@pytest.mark.row(80)
async def test_cookies_and_other_state() -> None:
    """Nothing that an answer asks us to remember is remembered (H5, row 80)."""
    answer = (
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/\r\nWWW-Authenticate: Basic realm=x\r\n"
        b'Alt-Svc: h2="evil:443"\r\nStrict-Transport-Security: max-age=9\r\nContent-Length: 0\r\n\r\n'
    )
    async with raw_server(answering(answer)) as server, opened(server.base_url) as delivery:
        outcomes = [await delivery.deliver(RECORD, deadline_seconds=1.0) for _ in range(2)]

    assert [Answer(200)] * 2 == outcomes
    assert server.requests[0] == server.requests[1]


async def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Proxies and passwords that the environment offers are not used (H5, T14)."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login canary password canary\n")
    async with raw_server(answering(OK)) as proxy, raw_server(answering(OK)) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.base_url)
        monkeypatch.setenv("NETRC", str(netrc))
        async with opened(server.base_url) as delivery:
            await delivery.deliver(RECORD, deadline_seconds=1.0)

    assert (0, 1) == (proxy.connections, server.connections)
    assert b"authorization" not in server.requests[0].lower()


# --- what is kept of an answer -------------------------------------------------------------------------------------------------


@pytest.mark.row(81)
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert('x')</script>", "<script>alert('x')</script>"),
        ("Größe: 5 €", "Größe: 5 €"),
        ("a\r\nb\tc\x00", "a\\r\\nb\\tc\\x00"),
        ("\x1b]0;owned\x07\x1b[2J", "\\x1b]0;owned\\x07\\x1b[2J"),
        ("\x7f\x80\x9b31m", "\\x7f\\x80\\x9b31m"),
        ("\u202egpj.exe\u2066\u200f\u061c", "\\u202egpj.exe\\u2066\\u200f\\u061c"),
        ("\ud800\udfff", "\\ud800\\udfff"),
        ("a\u2028b\u2029", "a\\u2028b\\u2029"),
    ],
)
def test_safe_text(text: str, shown: str) -> None:
    """Controls of all kinds and lone surrogates are escaped, the rest is left as it is (T11, row 81)."""
    assert shown == safe_text(text)


@pytest.mark.row(81)
@pytest.mark.parametrize("text", ["a" * 5000, "€" * 5000, "\x00" * 5000, "\U0001f600" * 5000, "a" + "€" * 5000])
def test_safe_text_is_short(text: str) -> None:
    """What is kept is at most DETAIL_BYTES long, as text in UTF-8 that is not cut within a character."""
    shown = safe_text(text)

    assert DETAIL_BYTES - 4 <= len(shown.encode()) <= DETAIL_BYTES
    assert "\ufffd" not in shown


@pytest.mark.row(81)
async def test_large_error() -> None:
    """Of a large error page the start is kept, and the rest is read, so that the connection can be used again (row 81)."""
    body = b"\xff\xfe<script>\x1b[31m" + b"x" * 1_000_000
    answer = b"HTTP/1.1 500 X\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with raw_server(answering(answer)) as server, opened(server.base_url) as delivery:
        outcomes = [await delivery.deliver(RECORD, deadline_seconds=5.0) for _ in range(2)]

    assert outcomes[0] == outcomes[1]
    assert isinstance(outcomes[0], Answer)
    assert outcomes[0].detail.startswith("\ufffd\ufffd<script>\\x1b[31mxxx")
    assert DETAIL_BYTES - 4 <= len(outcomes[0].detail.encode()) <= DETAIL_BYTES
    assert 1 == server.connections


@pytest.mark.promise("P24")
@pytest.mark.parametrize("padding", [0, DETAIL_BYTES - 40])
@pytest.mark.parametrize("status", [b"500 X", b"302 X\r\nLocation: /"])
async def test_signature_is_not_kept(status: bytes, padding: int) -> None:
    """A worker that echoes our signature does not bring it into the attempt log (P24)."""
    signatures: list[str] = []

    async def play(peer: Peer) -> None:
        signatures.append(dict(headers_of(await peer.read_request()))["Signature"])
        body = b"x" * padding + signatures[0].encode() + b"y" * 500
        await peer.send(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    outcome = await deliver_to(play, keys=KEYS)

    assert isinstance(outcome, Answer)
    assert signatures[0][:40] not in outcome.detail


@pytest.mark.promise("P24")
async def test_signature_in_garbage_is_not_kept() -> None:
    """Nor does a worker whose answer is not even HTTP."""
    signatures: list[str] = []

    async def play(peer: Peer) -> None:
        signatures.append(dict(headers_of(await peer.read_request()))["Signature"])
        await peer.send(signatures[0].encode() + b"\r\n\r\n")

    outcome = await deliver_to(play, keys=KEYS)

    assert MALFORMED is reason_of(outcome)
    assert signatures[0][:20] not in outcome.detail


@pytest.mark.promise("P8")
@pytest.mark.slow
async def test_stall_while_a_body_comes() -> None:
    """A body that was there in time counts, too, when the loop was blocked past the deadline (P8)."""

    async def play(peer: Peer) -> None:
        await peer.read_request()
        peer.writer.write(OK_HEAD + b"ok")
        time.sleep(0.3)

    assert Answer(200) == await deliver_to(play)
