"""Byte streams that know, without waiting, whether the peer has sent or closed something.

A request may only be written to a connection on which nothing waits: bytes that nobody asked for would be taken for its
answer. Streams of libraries hide such bytes in queues of their own, so these read the socket themselves.
"""

from __future__ import annotations

import asyncio
import enum
import math
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any, Protocol

import anyio
from anyio.abc import SocketAttribute, SocketStream

from ucaptcha_async.pacing.waiter import Waiter, wake

CHUNK = 65_536
"""Bytes of one read."""

BUFFER = 16_384
"""Bytes of one read on asyncio: more than nearly all answers."""

MAX_UNREAD = 4 * CHUNK
"""Bytes that are kept of what nobody reads, before reading is paused."""

CLOSE_TIMEOUT = 1.0
"""Seconds that closing may take."""


class Waiting(enum.Enum):
    """What waits on a stream that nobody reads."""

    NOTHING = "nothing"
    CLOSED = "closed"
    BYTES = "bytes"


class Wire(Protocol):
    """A byte stream to the service. Whatever breaks is an `OSError`."""

    async def send(self, data: bytes) -> None:
        """Write all of it."""
        ...

    async def receive(self) -> bytes:
        """What has come, as soon as something has; empty at the end."""
        ...

    def waiting(self) -> Waiting:
        """Whether the peer sent something that was not received, or closed the stream."""
        ...

    async def aclose(self) -> None:
        """Close it, at once and although the caller is cancelled."""
        ...


class SocketWire(Wire, Protocol):
    """A wire that can be read without waiting."""

    def take(self) -> bytes | None:
        """What has come; empty at the end, `None` if nothing has."""
        ...

    def is_stuck(self) -> bool:
        """Whether it carries nothing more, although the peer has not closed it."""
        ...


class AsyncioWire(asyncio.BufferedProtocol):
    """A socket on asyncio. It is always read, so that bytes that nobody asked for are known without a question.

    It is read into a buffer of its own: for other protocols asyncio asks the system for 256 KiB at each read.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buffer = memoryview(bytearray(BUFFER))
        self._chunks: list[bytes] = []
        self._unread = 0
        self._ended = False
        self._error: str | None = None
        self._reader: Waiter | None = None
        self._writer: Waiter | None = None
        self._closed: asyncio.Future[None] = loop.create_future()
        self._deadline = self._timer_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._expired = False
        self._paused_reading = self._paused_writing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport: Any = transport
        self._descriptor: int = transport.get_extra_info("socket").fileno()
        self._readable = _readable(self._descriptor)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to put what has come."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Keep what has come for the reader."""
        self._chunks.append(self._buffer[:nbytes].tobytes())
        self._unread += nbytes
        if self._unread > MAX_UNREAD and not self._paused_reading:
            self._paused_reading = True
            self._transport.pause_reading()
        wake(self._reader)

    def eof_received(self) -> None:
        """The peer sends nothing more: the transport closes by itself."""
        self._ended = True
        wake(self._reader)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end. What came before a failed write, the event loop has not read: it may be an answer."""
        if exc is not None:
            self._look()
            self._error = self._error or _text(exc)
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._closed.set_result(None)
        wake(self._reader)
        wake(self._writer)

    def pause_writing(self) -> None:
        """The peer reads too slowly."""
        self._paused_writing = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._paused_writing = False
        # Not at once: asyncio looks whether it was closed behind this call, and the writer may close it.
        self._loop.call_soon(wake, self._writer)

    async def send(self, data: bytes) -> None:
        """Write all of it."""
        if self._transport.is_closing():
            raise ConnectionResetError(self._error or "closed by the service")
        self._transport.write(data)
        while self._paused_writing and not (self._ended or self._expired):
            self._writer = Waiter(self._loop)
            try:
                await self._writer
            finally:
                self._writer = None

    async def receive(self) -> bytes:
        """What has come."""
        if not (self._chunks or self._ended or self._expired):
            self._reader = Waiter(self._loop)
            try:
                await self._reader
            finally:
                self._reader = None
        data = self._taken()
        if data is None and self._expired:
            raise TimeoutError
        if data is None and self._error is not None:
            raise ConnectionResetError(self._error)
        return data or b""

    def take(self) -> bytes | None:
        """What has come, without waiting."""
        if not self._chunks and not self._ended and self._readable():
            self._look()
        return b"" if self._ended and not self._chunks else self._taken()

    def waiting(self) -> Waiting:
        """Whether something came that was not received."""
        if not self._chunks and not self._ended and self._readable():
            self._look()
        if self._chunks:
            return Waiting.BYTES
        done = self._ended or self._transport.is_closing() or self.is_stuck()
        return Waiting.CLOSED if done else Waiting.NOTHING

    def is_stuck(self) -> bool:
        """Whether it carries nothing more: its time was over, or the peer does not read."""
        return self._expired or bool(self._transport.get_write_buffer_size())

    def expire_at(self, deadline: float) -> None:
        """End what waits at that time with a `TimeoutError`; see `expirer`."""
        self._deadline = deadline
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer()

    def _set_timer(self) -> None:
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._expire)

    def _expire(self) -> None:
        """The time of an earlier request has come: mostly it was answered, and another one waits, or none."""
        self._timer, self._timer_at = None, math.inf
        if self._reader is None and self._writer is None:
            return
        if self._loop.time() < self._deadline:
            self._set_timer()
            return
        self._expired = True
        wake(self._reader)
        wake(self._writer)

    async def aclose(self) -> None:
        """Close it."""
        self._transport.abort()
        if not self._closed.done():
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await asyncio.shield(self._closed)

    def _taken(self) -> bytes | None:
        if not self._chunks:
            return None
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._unread = 0
        if self._paused_reading:
            self._paused_reading = False
            self._transport.resume_reading()
        return data

    def _look(self) -> None:
        """Read what the event loop has not read yet, by a second handle of the same descriptor."""
        handle = socket.socket(fileno=self._descriptor)
        try:
            handle.setblocking(False)
            data = handle.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._ended, self._error = True, _text(error)
        else:
            if data:
                self._chunks.append(data)
                self._unread += len(data)
            else:
                self._ended = True
        finally:
            handle.detach()


class _Looking:
    """A wire that reads to see what waits, and keeps that until it is received."""

    _kept: bytes | None = None

    def _again(self) -> bytes:
        """What was kept; empty at the end."""
        data, self._kept = self._kept or b"", None
        return data

    def take(self) -> bytes | None:
        """What has come, without waiting."""
        raise NotImplementedError

    def waiting(self) -> Waiting:
        """Whether something came that was not received."""
        data = self._kept = self.take()
        if data is None:
            return Waiting.NOTHING
        return Waiting.BYTES if data else Waiting.CLOSED


class StreamWire(_Looking):
    """A socket stream of anyio, for trio: it reads the socket itself and keeps nothing back."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._socket: Any = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def send(self, data: bytes) -> None:
        """Write all of it."""
        try:
            return await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        raise ConnectionResetError("closed by the service")

    async def receive(self) -> bytes:
        """What has come."""
        if self._kept is not None:
            return self._again()
        try:
            return await self._stream.receive(CHUNK)
        except anyio.EndOfStream:
            return b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        raise ConnectionResetError("connection reset")

    def take(self) -> bytes | None:
        """What has come, without waiting."""
        if self._kept is not None:
            return self._again()
        try:
            found: bytes = self._socket.recv(CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            return b""  # it is broken, which is an end, too
        return found

    def is_stuck(self) -> bool:
        """It is not: what is sent has left."""
        return False

    async def aclose(self) -> None:
        """Close it."""
        with anyio.CancelScope(shield=True):
            await self._stream.aclose()


class TLSWire(_Looking):
    """TLS on a wire. Records that are not decrypted yet are looked into: session tickets are not bytes of an answer."""

    def __init__(self, wire: SocketWire, context: ssl.SSLContext, host: str) -> None:
        self.wire = wire
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    async def handshake(self) -> None:
        """Agree on keys, and check the certificate."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError:
                await self._flush()  # the alert says why
                raise
            else:
                return await self._flush()

    async def send(self, data: bytes) -> None:
        """Write all of it."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        await self._flush()

    async def receive(self) -> bytes:
        """What has come."""
        while (data := self._decrypted()) is None:
            await self._fill()
        return data

    def take(self) -> bytes | None:
        """What has come, without waiting."""
        try:
            while (data := self._decrypted()) is None:
                found = self.wire.take()
                if found is None:
                    return None
                self._feed(found)
        except ssl.SSLError:
            return b""  # an alert, or what is not TLS: it is broken, which is an end, too
        return data

    def waiting(self) -> Waiting:
        """Whether something came that was not received."""
        return Waiting.CLOSED if self.is_stuck() else super().waiting()

    def is_stuck(self) -> bool:
        """Whether it carries nothing more."""
        return self.wire.is_stuck()

    async def aclose(self) -> None:
        """Close it, without a farewell: each answer says itself where it ends."""
        await self.wire.aclose()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self.wire.send(self._outgoing.read())

    async def _fill(self) -> None:
        self._feed(await self.wire.receive())

    def _feed(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _decrypted(self) -> bytes | None:
        """What is decrypted; empty at the end, `None` if more must come first."""
        if self._kept is not None:
            return self._again()
        if not self._incoming.pending and not self._incoming.eof and not self._tls.pending():
            return None
        try:
            return self._tls.read(CHUNK)
        except ssl.SSLWantReadError:
            return None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""


def expirer(wire: Wire) -> Callable[[float], None] | None:
    """What lets a wire end its waiting at a deadline, where that costs less than a scope for each request.

    One timer serves a connection for as long as it lives: it is set anew only when it fires too early.
    """
    while isinstance(wire, TLSWire):
        wire = wire.wire
    return wire.expire_at if isinstance(wire, AsyncioWire) else None


def _text(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _readable(descriptor: int) -> Callable[[], Any]:
    """Whether the system holds something for a socket that the event loop has not read."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        ask = poll.poll
        return lambda: ask(0)
    if isinstance(asyncio.get_running_loop(), getattr(asyncio, "ProactorEventLoop", ())):
        return lambda: False  # it has asked the system for the bytes already
    return lambda: select.select([descriptor], [], [], 0)[0]
