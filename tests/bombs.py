"""Answers that are meant to fill the memory of whoever reads them (T15 of RELIABILITY), and a process that measures what they do.

The worker plays the bomb that a request's path names. The deliveries run in a process of their own, `bomb_child.py`.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
from hostile import Peer, raw_server

CHILD = Path(__file__).with_name("bomb_child.py")

OK_LINE = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK_LINE + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = OK_LINE + b"Content-Length: 999999999999\r\n\r\n"
KB64 = bytes(0x10000)
CHUNK = b"10000\r\n%b\r\n" % KB64


@attrs.frozen
class Bomb:
    """What a worker sends, and what it comes to."""

    reasons: frozenset[str]
    """How the attempt may end: "200", or the reason why there is no answer."""
    head: bytes
    """Sent once."""
    piece: bytes = b""
    """Sent again and again for as long as somebody reads; empty: then there is silence."""
    pause_seconds: float = 0.0


def bomb(reasons: str, head: bytes, piece: bytes = b"", pause_seconds: float = 0.0) -> Bomb:
    """Return a bomb; `reasons` has blanks between them."""
    return Bomb(frozenset(reasons.split()), head, piece, pause_seconds)


_ZIPPED = gzip.compress(bytes(300_000_000))

# An endless answer ends at the cap or at the deadline, whatever comes first on the machine.
BOMBS = {
    "gzip": bomb("200", OK_LINE + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(_ZIPPED), _ZIPPED)),
    "chunks": bomb("too-large deadline", CHUNKED, CHUNK),
    "tiny-chunks": bomb("too-large deadline", CHUNKED, b"1\r\na\r\n" * 10_000),
    "chunk-extension": bomb("deadline malformed", CHUNKED + b"1;", KB64.replace(b"\0", b"a")),
    "trailers": bomb("malformed", CHUNKED + b"0\r\n", b"X: a\r\n" * 10_000),
    "length": bomb("too-large deadline", LENGTH, KB64),
    "no-length": bomb("too-large deadline", OK_LINE + b"\r\n", KB64),
    "error": bomb("too-large deadline", CHUNKED.replace(b"200", b"500"), CHUNK),
    "interim": bomb("deadline", b"", b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n" * 1000),
    "line": bomb("malformed", OK_LINE + b"X: ", KB64.replace(b"\0", b"a")),
    "name": bomb("malformed", OK_LINE, KB64.replace(b"\0", b"a")),
    "reason": bomb("malformed", b"HTTP/1.1 200 ", KB64.replace(b"\0", b"a")),
    "headers": bomb("malformed", OK_LINE, b"X: a\r\n" * 10_000),
    "large-headers": bomb("malformed", OK_LINE, b"X: %b\r\n" % (b"a" * 8000)),
    "zeros": bomb("malformed", b"", KB64),
    "http-0.9": bomb("malformed", b"<html>", b"<p>hello</p>\n" * 5000),
    "head-trickle": bomb("deadline", OK_LINE + b"X: ", b"a", 0.01),
    "body-trickle": bomb("deadline", LENGTH, b"a", 0.01),
    "silence": bomb("deadline", b""),
    "junk-behind": bomb("200", OK_LINE + b"Content-Length: 2\r\n\r\nok", KB64),
}


async def play(peer: Peer) -> None:
    """Answer each request with the bomb that its path names."""
    while request := await peer.read_request():
        chosen = BOMBS[request.split(b" ")[1].decode().strip("/")]
        await peer.send(chosen.head)
        while chosen.piece and not peer.writer.transport.is_closing():
            await peer.send(chosen.piece, chosen.pause_seconds)


@attrs.frozen
class Damage:
    """What a bomb did to the process that it was thrown at."""

    name: str
    reasons: frozenset[str]
    seconds: float
    """From the first attempt's start to the last one's end."""
    megabytes: float
    """By how much the resident memory grew at most."""


@asynccontextmanager
async def throwing(*bombs: str, count: int, deadline_seconds: float) -> AsyncIterator[AsyncIterator[Damage]]:
    """Throw each bomb at `count` deliveries at once, in a process of their own, and give what it did.

    Ten seconds of their clock are one: their deadline is over after a tenth of `deadline_seconds` and the grace.
    """
    async with raw_server(play) as server:
        arguments = [str(CHILD), server.base_url, str(count), str(deadline_seconds), *bombs]
        command = [sys.executable, "-X", "faulthandler", "-W", "error", *arguments]
        child = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        try:
            yield (Damage(**_read(line)) async for line in child.stdout)
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()


def _read(line: bytes) -> dict[str, object]:
    damage = json.loads(line)
    return {**damage, "reasons": frozenset(damage["reasons"])}
