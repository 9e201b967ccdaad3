"""Opening connections: TCP, TLS, and through proxies."""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlsplit

import anyio
import attrs

from ucaptcha_async.errors import ConfigurationError
from ucaptcha_async.pacing.event_loop import current

from .exchange import UnansweredError
from .proxies import ServiceProxy, is_address, through_http, through_socks
from .wires import AsyncioWire, SocketWire, StreamWire, TLSWire, Wire

Connect = Callable[[], Awaitable[Wire]]
"""Opens one connection to the service. Raises `OSError`, or `UnansweredError` where it is known better."""

STAGGER = 0.25
"""Seconds after which the next address of a host is tried beside the one that does not answer (RFC 8305)."""


@attrs.frozen(kw_only=True)
class Origin:
    """Where the service is.

    Attributes:
        scheme: `http` or `https`.
        host: Name or address, without brackets, in ASCII.
        port: The port.
        path: What stands before the path of each endpoint; mostly empty.
    """

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, base_url: str) -> Origin:
        """From an absolute URL that was checked."""
        parts = urlsplit(base_url)
        host = parts.hostname or ""
        if not host.isascii():
            host = host.encode("idna").decode()
        port = parts.port or (443 if parts.scheme == "https" else 80)
        path = posixpath.normpath(quote(parts.path or "/", safe="/%:@!$&'()*+,;=~"))
        return cls(scheme=parts.scheme, host=host, port=port, path=path.rstrip("/"))

    @property
    def authority(self) -> str:
        """Host and port, for a CONNECT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def netloc(self) -> str:
        """The `Host` header: the port only if it is not the scheme's own."""
        usual = {"http": ":80", "https": ":443"}[self.scheme]
        return self.authority.removesuffix(usual)


def connector(origin: Origin, context: ssl.SSLContext | None, proxy: ServiceProxy | None) -> Connect:
    """What opens connections to the service.

    Args:
        origin: Where the service is.
        context: For TLS, with the service and with an `https` proxy; `None` if there is none of them.
        proxy: The proxy on the way, if there is one.
    """

    async def connect() -> Wire:
        wire = await open_tcp(*(origin.host, origin.port) if proxy is None else (proxy.host, proxy.port))
        try:
            if proxy is not None:
                wire = await _through(proxy, wire, origin, context)
            return await _tls(wire, context, origin.host) if origin.scheme == "https" else wire
        except BaseException:
            await wire.aclose()
            raise

    return connect


async def _through(proxy: ServiceProxy, wire: SocketWire, origin: Origin, context: ssl.SSLContext | None) -> SocketWire:
    if proxy.scheme == "https":
        wire = await _tls(wire, context, proxy.host)
    if proxy.scheme == "socks5":
        await through_socks(proxy, wire, origin.host, origin.port)
    elif not proxy.forwards(origin.scheme):
        await through_http(proxy, wire, origin.authority)
    return wire


async def _tls(wire: SocketWire, context: ssl.SSLContext | None, host: str) -> SocketWire:
    assert context is not None  # what speaks TLS was given one
    secured = TLSWire(wire, context, host)
    await secured.handshake()
    return secured


async def open_tcp(host: str, port: int) -> SocketWire:
    """Open a TCP connection."""
    if current().is_trio:
        return StreamWire(await anyio.connect_tcp(host, port))
    loop = asyncio.get_running_loop()
    handle = await _connected(loop, host, port)
    wire = AsyncioWire(loop)
    try:
        await loop.create_connection(lambda: wire, sock=handle)
    except BaseException:
        handle.close()
        raise
    return wire


async def _connected(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """A connected socket: to the first address that answers, trying the next ones beside it."""
    numeric = socket.AI_NUMERICHOST if is_address(host) else 0
    lookup: Any = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=numeric) if numeric else None
    addresses: list[Any] = lookup or await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if len(addresses) == 1:
        return await _attempt(loop, addresses[0])
    return await _race(loop, _alternating(addresses))


async def _attempt(loop: asyncio.AbstractEventLoop, address: Any) -> socket.socket:
    family, kind, protocol, _, target = address
    handle = socket.socket(family, kind, protocol)
    try:
        handle.setblocking(False)
        await loop.sock_connect(handle, target)
    except BaseException:
        handle.close()
        raise
    return handle


async def _race(loop: asyncio.AbstractEventLoop, addresses: list[Any]) -> socket.socket:
    winner: socket.socket | None = None
    failures: list[OSError] = []

    async def run(address: Any, failed: anyio.Event) -> None:
        nonlocal winner
        try:
            handle = await _attempt(loop, address)
        except OSError as error:
            failures.append(error)
            failed.set()
            return
        if winner is None:
            winner = handle
            tasks.cancel_scope.cancel()
        else:
            handle.close()

    try:
        async with anyio.create_task_group() as tasks:
            for address in addresses:
                failed = anyio.Event()
                tasks.start_soon(run, address, failed)
                with anyio.move_on_after(STAGGER):
                    await failed.wait()
    except BaseException:
        if winner is not None:
            winner.close()
        raise
    if winner is None:
        raise failures[0]
    return winner


def _alternating(addresses: list[Any]) -> list[Any]:
    """The families in turn, beginning with the system's first choice."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    other = [address for address in addresses if address[0] != addresses[0][0]]
    paired = [address for pair in zip(first, other, strict=False) for address in pair]
    return paired + first[len(other) :] + other[len(first) :]


def connect_failure(error: OSError) -> UnansweredError:
    """Why a connection could not be opened, in plain words."""
    cause: BaseException = error
    while (inner := cause.__cause__) is not None or isinstance(cause, BaseExceptionGroup):
        cause = inner if inner is not None else cause.exceptions[0]  # type: ignore[attr-defined]
    if isinstance(cause, ssl.SSLCertVerificationError):
        reason = f"the certificate does not verify: {cause.verify_message}"
        return UnansweredError(reason, permanent=True)
    if isinstance(cause, ssl.SSLError):
        return UnansweredError(f"TLS failed: {cause.reason or 'the connection was closed'}")
    if isinstance(cause, socket.gaierror):
        return UnansweredError(f"the name cannot be resolved: {cause.strerror}")
    if cause.errno == errno.ECONNREFUSED:  # type: ignore[attr-defined]
        return UnansweredError("connection refused")
    text = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else str(cause)
    return UnansweredError(f"no connection: {text or type(cause).__name__}")


def create_ssl_context(create: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """The TLS settings of an HTTP library, which hears `SSL_CERT_FILE` and `SSL_CERT_DIR`.

    Raises:
        ConfigurationError: If one of these names something that is not there, or holds no certificate.
    """
    check_certificates()
    try:
        return create()
    except (OSError, ValueError):
        field = certificates_named() or "ssl_context"
    raise ConfigurationError(f"{field}: the certificates cannot be read", field=field)


def certificates_named() -> str | None:
    """The variable that names certificates, if one does."""
    return next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), None)


def trusted_roots() -> ssl.SSLContext:
    """What httpx trusts, without httpx: what `SSL_CERT_FILE` or else `SSL_CERT_DIR` names, or else `certifi`, or
    the system.
    """
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file:
        return ssl.create_default_context(cafile=file)
    if folder:
        return ssl.create_default_context(capath=folder)
    try:
        import certifi  # httpx brings it along, today
    except ImportError:
        return ssl.create_default_context()
    return ssl.create_default_context(cafile=certifi.where())


def check_certificates() -> None:
    """Check what the environment says of certificates. Raises `ConfigurationError`."""
    for name, kind, exists in (
        ("SSL_CERT_FILE", "a file of certificates", os.path.isfile),
        ("SSL_CERT_DIR", "a folder of certificates", os.path.isdir),
    ):
        value = os.environ.get(name)
        if value and not exists(value):
            raise ConfigurationError(f"{name} must name {kind}; there is none at that path", field=name)
