"""Which way requests go, from the client's settings."""

from __future__ import annotations

import importlib
import ssl
from collections.abc import Callable
from typing import Any, Literal

from ucaptcha_async.errors import ConfigurationError

from .exchange import Clock, Sender
from .network import (
    Origin,
    certificates_named,
    check_certificates,
    connector,
    create_ssl_context,
    trusted_roots,
)
from .pool import Heads, Pool
from .proxies import ServiceProxy, service_proxy
from .through_httpx import ThroughHttpx

TransportName = Literal["httpx", "httpx2", "fast"]


def check_settings(base_url: str, proxy: str | None) -> None:
    """Check what `open_sender` will use of the settings and of the environment.

    Raises:
        ConfigurationError: If one is wrong. It names the setting or the variable, and shows no secret.
    """
    origin = Origin.of(base_url)
    service_proxy(origin.scheme, origin.host, proxy)
    check_certificates()


def open_sender(
    base_url: str,
    *,
    transport: TransportName,
    max_connections: int,
    ssl_context: ssl.SSLContext | None,
    proxy: str | None,
    clock: Clock,
    connect_timeout: float = 30.0,
    on_extra_bytes: Callable[[], None] | None = None,
) -> Sender:
    """Send over connections of the client's own.

    Args:
        base_url: Where the service is.
        transport: `"httpx"` and `"httpx2"` send through a client of that library, `"fast"` does not.
        max_connections: The most connections at once.
        ssl_context: For TLS. Default: as the library makes it, from the environment.
        proxy: The proxy on the way. Default: as the environment says.
        clock: The event loop's clock.
        connect_timeout: Seconds that opening a connection may take.
        on_extra_bytes: Called when the service is found to send bytes that nobody asked for.

    Raises:
        ConfigurationError: See `check_settings`; or the library is not installed.
    """
    library = None if transport == "fast" else _library(transport)
    origin = Origin.of(base_url)
    way = service_proxy(origin.scheme, origin.host, proxy)
    context = ssl_context
    if context is None and _reads_certificates(origin, way):
        context = create_ssl_context(trusted_roots if library is None else library.create_ssl_context)
    pool = Pool(
        connector(origin, context, way),
        Heads(origin, way),
        max_connections=max_connections,
        clock=clock,
        connect_timeout=connect_timeout,
        on_extra_bytes=on_extra_bytes,
    )
    return pool if library is None else ThroughHttpx(library, base_url, pool)


def _reads_certificates(origin: Origin, way: ServiceProxy | None) -> bool:
    """Whether a peer speaks TLS, or the environment names certificates, which then must be some.

    To read them takes longer than all else that opening does.
    """
    return "https" in (origin.scheme, way and way.scheme) or certificates_named() is not None


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        pass
    raise ConfigurationError(f"{name} is not installed: pip install 'ucaptcha_async[{name}]'", field="transport")
