"""The local service on a real socket, with uvicorn (extra `testing`)."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from .wire import ABORT, LINE

if TYPE_CHECKING:
    import uvicorn

    from .service import LocalService


BACKLOG = 4096
START_TIMEOUT = 30.0


class NotLoopbackError(ValueError):
    """The service was asked to listen where others can reach it, without being told that this is meant."""


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a host name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_socket(host: str, port: int, *, any_host: bool = False) -> socket.socket:
    """Bind a listening socket.

    Raises:
        NotLoopbackError: If the host is not this machine's own and `any_host` is not set.
        OSError: If the port is taken.
    """
    if not any_host and not is_loopback(host):
        raise NotLoopbackError(f"{host} can be reached by others; only loopback addresses are allowed unless asked for")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """Return the base URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class HoldingTransport:
    """A transport that can keep what is written and write it in one piece. All else is the transport's own."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._held: list[bytes] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def hold(self) -> None:
        """Keep what is written from now on."""
        self._held = []

    def release(self) -> None:
        """Write what was kept."""
        held, self._held = self._held, None
        self.write(b"".join(held or ()))

    def write(self, data: bytes) -> None:
        """Write bytes, or keep them; a closed connection takes none."""
        if self._held is not None:
            self._held.append(data)
        elif data and not self._transport.is_closing():
            self._transport.write(data)


def make_server(
    service: LocalService,
    *,
    idle_timeout: float = 60.0,
    certificate: Path | None = None,
    on_ready: Callable[[], None] | None = None,
) -> uvicorn.Server:
    """Make a uvicorn server for the service; it listens once it is given a socket.

    Args:
        service: The service.
        idle_timeout: After how long a connection without requests is closed, in seconds.
        certificate: A PEM file with a private key and its certificate, to listen with TLS.
        on_ready: Called when it has begun to listen.

    Raises:
        ImportError: If uvicorn and httptools are not installed (extra `testing`).
    """
    try:
        import uvicorn
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError as error:
        raise ImportError(f"the local service needs {error.name}: pip install 'ucaptcha_async[testing]'") from error

    class Protocol(HttpToolsProtocol):
        """Lets the service cut its connection, and write to it what nobody asked for."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(HoldingTransport(transport))  # type: ignore[arg-type]

        def on_message_begin(self) -> None:
            super().on_message_begin()
            transport: Any = self.transport
            self.scope["extensions"] = {ABORT: transport.abort, LINE: transport}

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if on_ready is not None and not self.should_exit:
                on_ready()

    config = uvicorn.Config(
        service,
        http=Protocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
        timeout_keep_alive=idle_timeout,  # type: ignore[arg-type]
        timeout_graceful_shutdown=1,
        backlog=BACKLOG,
        ssl_certfile=certificate,
    )
    return Announcing(config)


class Server:
    """Runs a service on a real socket in a thread of its own, so that any event loop (or none) can talk to it.

    Use it as a context manager, plain or `async`. The service object stays at hand: its books can be read and faults
    scripted meanwhile. `restart` takes it down and up again at the same address, with its tasks and books.

    Args:
        service: The service.
        host: The address to listen on.
        port: The port; 0 for a free one.
        idle_timeout: After how long a connection without requests is closed, in seconds.
        any_host: Allow addresses that others can reach.
    """

    def __init__(
        self,
        service: LocalService,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        idle_timeout: float = 60.0,
        any_host: bool = False,
    ) -> None:
        self.service = service
        self._host, self._port, self._any_host = host, port, any_host
        self._idle_timeout = idle_timeout
        self._url: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        """The base URL."""
        if self._url is None:
            raise RuntimeError("the server does not run; enter it with `with`")
        return self._url

    def start(self) -> Server:
        """Begin to listen; return when it does."""
        ready = threading.Event()

        def note() -> None:
            self._loop = asyncio.get_running_loop()
            ready.set()

        self._server = make_server(self.service, idle_timeout=self._idle_timeout, on_ready=note)
        listener = open_socket(self._host, self._port, any_host=self._any_host)
        self._port = listener.getsockname()[1]
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="ucaptcha local service", daemon=True
        )
        self._url = url_of(listener)
        self._thread.start()
        if not ready.wait(START_TIMEOUT):
            raise RuntimeError("the server did not start")
        return self

    def stop(self, *, abrupt: bool = False) -> None:
        """Stop listening and close all connections.

        Args:
            abrupt: Cut all connections at once, as a crash would, instead of answering what was asked.
        """
        if self._url is None:
            return
        if abrupt and self._loop is not None:
            self._server.config.timeout_graceful_shutdown = 0
            self._loop.call_soon_threadsafe(self._abort_all)
        self._server.should_exit = True
        self._thread.join(START_TIMEOUT)
        self._url = None

    def restart(self, *, down_for: float = 0.0) -> None:
        """Crash and come back at the same address: all connections are cut, the tasks are still known.

        Args:
            down_for: How long nothing listens in between, in seconds.
        """
        self.stop(abrupt=True)
        time.sleep(down_for)
        self.start()

    def _abort_all(self) -> None:
        for connection in list(self._server.server_state.connections):
            transport: Any = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Server:
        return await anyio.to_thread.run_sync(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.stop)
