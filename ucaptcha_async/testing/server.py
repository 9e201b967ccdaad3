"""The local service on a real socket, with uvicorn (extra `testing`)."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .wire import ABORT

if TYPE_CHECKING:
    import uvicorn

    from .service import LocalService


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
        listener.listen(4096)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the base URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(
    service: LocalService, *, idle_timeout: float = 60.0, on_ready: Callable[[], None] | None = None
) -> uvicorn.Server:
    """Make a uvicorn server for the service; it listens once it is given a socket.

    Args:
        service: The service.
        idle_timeout: After how long a connection without requests is closed, in seconds.
        on_ready: Called when it has begun to listen.
    """
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Protocol(HttpToolsProtocol):
        """Lets the service cut its connection."""

        def on_message_begin(self) -> None:
            super().on_message_begin()
            transport: Any = self.transport
            self.scope["extensions"] = {ABORT: transport.abort}

    class Server(uvicorn.Server):
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
        backlog=4096,
    )
    return Server(config)


class Server:
    """Runs a service on a real socket in a thread of its own, so that any event loop (or none) can talk to it.

    Use it as a context manager. The service object stays at hand: its books can be read and faults scripted meanwhile.

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
        self._address = host, port, any_host
        self._idle_timeout = idle_timeout
        self._ready = threading.Event()
        self._url: str | None = None

    @property
    def url(self) -> str:
        """The base URL."""
        if self._url is None:
            raise RuntimeError("the server does not run; enter it with `with`")
        return self._url

    def __enter__(self) -> Server:
        host, port, any_host = self._address
        self._listener = open_socket(host, port, any_host=any_host)
        self._server = make_server(self.service, idle_timeout=self._idle_timeout, on_ready=self._ready.set)
        self._thread = threading.Thread(target=self._run, name="ucaptcha local service", daemon=True)
        self._thread.start()
        if not self._ready.wait(30):
            raise RuntimeError("the server did not start")
        self._url = url_of(self._listener)
        return self

    def _run(self) -> None:
        self._server.run(sockets=[self._listener])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._listener.close()
        self._url = None
        self._ready.clear()
