"""Raw servers for tests of the delivery: they say what no HTTP library would let them say, when they like."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aiotaskqueue._clock import SystemClock, Timer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
OK_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
TEAPOT = b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 0\r\n\r\n"

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)


class FastClock(SystemClock):
    """A real clock on which ten seconds pass in one, so that deadlines of seconds are tested in tenths of them."""

    SPEED = 10.0

    def monotonic(self) -> float:
        """Return the fast time."""
        return super().monotonic() * self.SPEED

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` at the fast time `when`."""
        return super().call_at(when / self.SPEED, callback)


class Peer:
    """One connection, seen from the server."""

    def __init__(self, server: RawServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.server = server
        self.number = server.connections
        """1 for the first connection of the server."""

    @property
    def requests(self) -> list[bytes]:
        """What the server has received so far."""
        return self.server.requests

    async def read_request(self) -> bytes:
        """Read a request, body included, and keep it in the server's `requests`; empty at the end of the connection."""
        request = await self.read_message()
        if request:
            self.server.requests.append(request)
        return request

    async def read_message(self) -> bytes:
        """Read a head, and as much of a body as it says; empty if the connection ends before."""
        try:
            message = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        length = _CONTENT_LENGTH.search(message)
        if length:
            message += await self.reader.readexactly(int(length[1]))
        return message

    async def send(self, *steps: bytes | float) -> None:
        """Send bytes, and pause for numbers of seconds."""
        for step in steps:
            if isinstance(step, bytes):
                self.writer.write(step)
                await self.writer.drain()
            else:
                await asyncio.sleep(step)

    def close(self) -> None:
        """End the connection in good order."""
        self.writer.close()

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def wait_for_end(self) -> int:
        """Read what comes until the connection ends; return how many bytes that were."""
        count = 0
        with contextlib.suppress(ConnectionError):
            while data := await self.reader.read(65536):
                count += len(data)
        return count


class RawServer:
    """What a server has seen."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.connections = 0
        self.requests: list[bytes] = []
        self.stop: Callable[[], None] = lambda: None
        """Listen no longer, and end all connections."""

    @property
    def request_lines(self) -> list[str]:
        """The first lines of the requests."""
        return [request.split(b"\r\n")[0].decode() for request in self.requests]


Play = Callable[[Peer], Awaitable[None]]


@contextlib.asynccontextmanager
async def raw_server(play: Play, *, tls: ssl.SSLContext | None = None, unix_socket: str | None = None) -> AsyncIterator[RawServer]:
    """Serve every connection with `play`; at the end those that still play are cancelled."""
    seen = RawServer("http://localhost")
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await play(Peer(seen, reader, writer))
        except (asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            tasks.discard(task)
            writer.transport.abort()

    if unix_socket is None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls, limit=2**20)
        scheme = "http" if tls is None else "https"
        seen.base_url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    else:
        server = await asyncio.start_unix_server(serve, unix_socket)

    def stop() -> None:
        server.close()
        for task in tasks:
            task.cancel()

    seen.stop = stop
    try:
        yield seen
    finally:
        stop()
        await asyncio.gather(*tasks)
        await server.wait_closed()


def answering(*steps: bytes | float, then_close: bool = False) -> Play:
    """Play: answer every request on a connection with the same bytes and pauses."""

    async def play(peer: Peer) -> None:
        while await peer.read_request():
            await peer.send(*steps)
            if then_close:
                return

    return play


def resetting(*steps: bytes | float) -> Play:
    """Play: answer one request and reset the connection."""

    async def play(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(*steps)
        peer.reset()

    return play


async def play_silence(peer: Peer) -> None:
    """Read the request, and say nothing."""
    await peer.read_request()
    await peer.wait_for_end()


def self_signed(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the TLS context of a server on 127.0.0.1, and that of a client who trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2100, 1, 1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))
