"""Opening one connection for a lane: TCP, TLS and proxies, with HTTP/1.1 spoken by httpcore."""

from __future__ import annotations

import contextlib
import select
import ssl
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
import attrs
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSStream

from .lanes import Connect, Library, core_module


def direct(library: Library, context: ssl.SSLContext, network_backend: Any = None) -> Connect:
    """Connections straight to the service.

    Args:
        library: The twin whose httpcore speaks HTTP.
        context: For `https`.
        network_backend: In place of the real network: a network backend of httpcore.
    """
    core = core_module(library)
    backend = network_backend or _Network(core)

    async def connect(origin: Any) -> Any:
        stream = await backend.connect_tcp(origin.host.decode("ascii"), origin.port)
        if origin.scheme == b"https":
            stream = await stream.start_tls(context, origin.host.decode("ascii"))
        connection = core.AsyncHTTP11Connection(origin, _Whole(stream))
        # A lane carries one request at a time: this lock guards nothing, and taking it costs a turn of the event loop.
        connection._state_lock = contextlib.AsyncExitStack()
        return connection

    return connect


def through_proxy(library: Library, context: ssl.SSLContext, proxy: str) -> Connect:
    """Connections through an HTTP or SOCKS5 proxy, each a pool of one."""
    core = core_module(library)
    parts = urlsplit(proxy)
    auth = None
    if parts.username is not None:
        auth = (unquote(parts.username).encode(), unquote(parts.password or "").encode())
    maker = core.AsyncSOCKSProxy if parts.scheme.startswith("socks5") else core.AsyncHTTPProxy
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    async def connect(origin: Any) -> Any:
        return _PoolOfOne(maker(address, proxy_auth=auth, ssl_context=context, max_connections=1))

    return connect


@attrs.define(eq=False)
class _PoolOfOne:
    pool: Any

    async def handle_async_request(self, request: Any) -> Any:
        return await self.pool.handle_async_request(request)

    def is_available(self) -> bool:
        return True  # the pool opens another

    def has_expired(self) -> bool:
        return any(connection.has_expired() for connection in self.pool.connections)

    async def aclose(self) -> None:
        await self.pool.aclose()


@attrs.define(eq=False)
class _Whole:
    """A stream that sends a request in one piece: head and body are held until the answer is read.

    The proof of sending is not touched: httpcore reports the start of a request before it writes anything.
    """

    stream: Any
    _held: list[bytes] = attrs.field(factory=list, repr=False)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._held.append(buffer)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._held:
            request = b"".join(self._held)
            self._held.clear()
            await self.stream.write(request, timeout)
            del request
        data: bytes = await self.stream.read(max_bytes, timeout)
        return data

    async def aclose(self) -> None:
        await self.stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


@attrs.define(eq=False)
class _Network:
    """A network backend for httpcore on anyio that leaves deadlines to the caller: a scope for each read is dear."""

    core: Any

    async def connect_tcp(self, host: str, port: int) -> _Stream:
        try:
            return _Stream(await anyio.connect_tcp(host, port), self.core)
        except (OSError, anyio.BrokenResourceError) as error:
            raise self.core.ConnectError(str(error)) from error


@attrs.define(eq=False)
class _Stream:
    stream: ByteStream
    core: Any
    _socket: Any = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._socket = self.stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's

    async def start_tls(self, ssl_context: ssl.SSLContext, server_hostname: str) -> _Stream:
        try:
            wrapped = await TLSStream.wrap(
                self.stream,
                hostname=server_hostname,
                ssl_context=ssl_context,
                standard_compatible=False,
                server_side=False,
            )
        except BaseException as error:
            await anyio.aclose_forcefully(self.stream)
            if isinstance(error, OSError | anyio.BrokenResourceError | anyio.EndOfStream):
                raise self.core.ConnectError(str(error)) from error
            raise
        return _Stream(wrapped, self.core)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # A service that closes early may still have answered: whether it has, the read will tell.
        with contextlib.suppress(anyio.BrokenResourceError):
            await self.stream.send(buffer)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return await self.stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            raise self.core.ReadError(str(error)) from error

    async def aclose(self) -> None:
        await self.stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return _readable(self._socket) if info == "is_readable" else None


def _readable(socket: Any) -> bool:
    """Whether an idle socket has something to say, which can only be that the other side closed it."""
    descriptor = socket.fileno()
    if descriptor < 0:
        return True
    if not hasattr(select, "poll"):
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
