"""What the tests of the transport share: wires in memory, servers that are written byte by byte, and certificates."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import attrs
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from benchmarks import ways
from tests.helpers import KEY
from ucaptcha_async.pacing import Limiter, RateLimiter
from ucaptcha_async.pacing.event_loop import current
from ucaptcha_async.secrecy import SecretBytes
from ucaptcha_async.transport.exchange import Exchange, Reply, Sender, UnansweredError
from ucaptcha_async.transport.wires import AsyncioWire, Waiting

OK = b"HTTP/1.1 200 OK\r\n"


def response(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole answer with a length."""
    lines = [b"HTTP/1.1 " + status, b"Content-Type: application/json", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


def exchange(limiter: Limiter | None = None, *, timeout: float = 10.0, body: bytes = b"", **options: Any) -> Exchange:
    """A request that holds the key."""
    content = SecretBytes(body or b'{"clientKey":"%b"}' % KEY.encode())
    options.setdefault("secrets", (KEY,))
    return Exchange("/getBalance", content, limiter or RateLimiter(10**6), current().time, timeout, **options)


async def unanswered(sender: Sender, request: Exchange) -> UnansweredError:
    """Send what gets no answer; settle its permit as the client does."""
    try:
        await sender.send(request)
    except UnansweredError as error:
        return error
    finally:
        if request.permitted:
            request.limiter.lost()
    raise AssertionError("answered")


async def answered(sender: Sender, request: Exchange) -> Reply:
    """Send what gets an answer; settle its permit as the client does."""
    try:
        await sender.send(request)
    except BaseException:
        if request.permitted:
            request.limiter.lost()
        raise
    reply = request.reply
    assert reply is not None
    times = {"sent_at": reply.sent_at, "received_at": reply.received_at}
    request.limiter.observe(reply.status, reply.headers, **times)
    return reply


# --- in memory --------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class MemoryWire:
    """A wire whose peer is the test.

    Attributes:
        answers: What comes for each request, in pieces; an exception is raised. Nothing left: it waits for ever.
        sent: What was written.
        left: What waits before the next request.
        closed: Whether it was closed.
        sending: Awaited before something is written.
    """

    answers: list[list[bytes | Exception]] = attrs.field(factory=list)
    sent: list[bytes] = attrs.field(factory=list)
    left: Waiting = Waiting.NOTHING
    closed: bool = False
    sending: Callable[[], Awaitable[None]] | None = None
    _pieces: list[bytes | Exception] = attrs.field(factory=list)

    async def send(self, data: bytes) -> None:
        if self.sending is not None:
            await self.sending()
        self.sent.append(bytes(data))
        self._pieces = list(self.answers.pop(0)) if self.answers else []

    async def receive(self) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self._pieces:
            await anyio.sleep_forever()
        piece = self._pieces.pop(0)
        if isinstance(piece, Exception):
            raise piece
        return piece

    def says(self, data: bytes) -> None:
        """The peer sends something that nobody asked for."""
        self.left, self._pieces = Waiting.BYTES, [data]

    def waiting(self) -> Waiting:
        return self.left

    async def aclose(self) -> None:
        self.closed = True
        await anyio.lowlevel.checkpoint()


# --- real sockets -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def server(handle: Callable[[ByteStream], Awaitable[None]], *, tls: bool = False) -> AsyncIterator[int]:
    """A server on loopback that treats each connection with `handle(stream)`. Gives its port."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0, backlog=1000)
    broken = (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError, OSError)

    async def serve(stream: ByteStream) -> None:
        async with stream:
            with suppress(*broken):
                if tls:
                    stream = await TLSStream.wrap(
                        stream, server_side=True, ssl_context=certificate().server, standard_compatible=False
                    )
                await handle(stream)

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


async def request(stream: ByteStream) -> bytes:
    """Read one request whole."""
    data = b""
    while b"\r\n\r\n" not in data or not data.endswith(b"}"):
        data += await stream.receive()
    return data


@attrs.frozen
class Certificate:
    """One for this machine, that nobody else knows."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    path: Path


@functools.cache
def certificate() -> Certificate:
    """A self-signed certificate, and the TLS settings of both sides."""
    path = ways.certificate(Path(tempfile.mkdtemp()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return Certificate(context, ssl.create_default_context(cafile=str(path)), path)


async def socket_wire() -> tuple[AsyncioWire, socket.socket]:
    """A wire of asyncio's, and the socket of its peer, which is the test."""
    here, there = socket.socketpair()
    for end in (here, there):
        end.setblocking(False)
    loop = asyncio.get_running_loop()
    wire = AsyncioWire(loop)
    await loop.create_connection(lambda: wire, sock=here)
    return wire, there


def always(*bodies: bytes) -> Callable[[ByteStream], Awaitable[None]]:
    """A service that gives these answers, and the last of them for ever."""
    left = list(bodies)

    async def handle(stream: ByteStream) -> None:
        while True:
            await request(stream)
            await stream.send(response(left.pop(0) if len(left) > 1 else left[0]))

    return handle
