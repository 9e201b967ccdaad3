"""Proxies on the way to the service: which one the settings name, and how to get through it."""

from __future__ import annotations

import base64
import ipaddress
import os
import sys
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

import attrs

from ucaptcha_async.checks import wrong
from ucaptcha_async.errors import ConfigurationError
from ucaptcha_async.secrecy import SecretBytes, SecretStr

from .exchange import UnansweredError
from .wires import Wire

if TYPE_CHECKING:
    import h11

ALLOWED = "a proxy URL (http://…, https://… or socks5://…, with host and port only behind user:password@)"

_SCHEMES: dict[str, tuple[Literal["http", "https", "socks5"], int]] = {
    "http": ("http", 80),
    "https": ("https", 443),
    "socks": ("socks5", 1080),
    "socks5": ("socks5", 1080),
    "socks5h": ("socks5", 1080),
}

_SOCKS_FAILURES = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "time to live expired",
    7: "command not supported",
    8: "address type not supported",
}


@attrs.frozen(kw_only=True)
class ServiceProxy:
    """A proxy between this client and the service.

    Attributes:
        scheme: How to speak to it.
        host: Its name or address.
        port: Its port.
        username: For the login; may be empty.
        password: For the login; may be empty.
    """

    scheme: Literal["http", "https", "socks5"]
    host: str
    port: int
    username: SecretStr | None = attrs.field(repr=False)
    password: SecretStr | None = attrs.field(repr=False)

    @classmethod
    def of(cls, field: str, url: SecretStr) -> ServiceProxy:
        """Read a URL; without a scheme, it is an HTTP proxy's.

        Args:
            field: The setting or the environment variable that it comes from, for the error.
            url: The URL. No error shows a part of it.

        Raises:
            ConfigurationError: If it is malformed.
        """
        proxy = cls._read(url)
        if proxy is None:
            raise wrong(field, url, ALLOWED, ConfigurationError)
        return proxy

    @classmethod
    def _read(cls, url: str) -> ServiceProxy | None:
        """The proxy, or `None`: an error raised from here would show what it read."""
        try:
            parts = urlsplit(url if "://" in url else "http://" + url)
            port, host = parts.port, parts.hostname
            url.encode()  # what a variable holds need not be Unicode text
            (host or "").encode("idna")
        except ValueError:
            return None
        odd = parts.path not in ("", "/") or parts.query or parts.fragment or any(c.isspace() or c == "\0" for c in url)
        if parts.scheme not in _SCHEMES or not host or port == 0 or odd:
            return None
        scheme, usual = _SCHEMES[parts.scheme]
        username, password = (
            None if text is None else SecretStr(unquote(text)) for text in (parts.username, parts.password)
        )
        if scheme == "socks5" and max(len((text or "").encode()) for text in (username, password)) > 255:
            return None
        return cls(scheme=scheme, host=host, port=port or usual, username=username, password=password)

    def forwards(self, scheme: str) -> bool:
        """Whether requests go to the proxy itself, as they do to a plain `http` service: there is no tunnel."""
        return self.scheme != "socks5" and scheme == "http"

    @property
    def authorization(self) -> SecretBytes | None:
        """The value of `Proxy-Authorization`."""
        if self.username is None:
            return None
        login = f"{self.username}:{self.password or ''}".encode()
        return SecretBytes(b"Basic " + base64.b64encode(login))

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no error text may show."""
        basic = self.authorization
        found = (self.password, None if basic is None else SecretStr(bytes(basic)[6:].decode()))
        return tuple(secret for secret in found if secret)


def service_proxy(scheme: str, host: str, given: str | None) -> ServiceProxy | None:
    """The proxy for the service: the one that was given, else the one that the environment names.

    Args:
        scheme: The service's scheme.
        host: The service's host.
        given: The client's own setting. For a service on this machine the environment is not asked.

    Raises:
        ConfigurationError: If it is malformed. The error names the setting or the variable.
    """
    if given is not None:
        return ServiceProxy.of("proxy", SecretStr(given))
    name, url = _from_environment(scheme, host) if _asks_environment(host) else (None, None)
    return None if name is None or url is None else ServiceProxy.of(name, url)


def _asks_environment(host: str) -> bool:
    """Whether the environment may name a proxy. Where the system has settings of its own, it always may."""
    if is_loopback(host):
        return False
    return sys.platform in ("darwin", "win32") or any(name.lower().endswith("_proxy") for name in os.environ)


def _from_environment(scheme: str, host: str) -> tuple[str | None, SecretStr | None]:
    """The variable that names a proxy, and its value. Lower case wins, as everywhere."""
    import urllib.request  # it brings half of the standard library along, and most programs have no proxy

    if urllib.request.proxy_bypass(host):
        return None, None
    proxies = urllib.request.getproxies()
    for kind in (scheme, "all"):
        if proxies.get(kind):
            name = f"{kind}_proxy"
            return name if os.environ.get(name) else name.upper(), SecretStr(proxies[kind])
    return None, None


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    return ipaddress.ip_address(host).is_loopback if is_address(host) else host == "localhost"


def is_address(host: str) -> bool:
    """Whether a host is an address, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def through_http(proxy: ServiceProxy, wire: Wire, target: str) -> None:
    """Ask an HTTP proxy for a tunnel.

    Raises:
        UnansweredError: If it refuses. What it says is not shown: it may repeat the password.
    """
    import h11

    headers = [(b"Host", target.encode()), (b"User-Agent", b"ucaptcha_async")]
    if proxy.authorization is not None:
        headers.append((b"Proxy-Authorization", proxy.authorization))
    dialogue = h11.Connection(h11.CLIENT)
    await wire.send(SecretBytes(dialogue.send(h11.Request(method="CONNECT", target=target, headers=headers)) or b""))
    status = await _answer(dialogue, wire)
    if status == 407:
        raise UnansweredError("the proxy refuses the login (HTTP 407)", permanent=True)
    if not 200 <= status < 300:
        reason = f"refuses the tunnel (HTTP {status})" if status else "does not speak HTTP"
        raise UnansweredError(f"the proxy {reason}")
    if dialogue.trailing_data[0]:
        raise UnansweredError("the proxy sent more than it was asked for")


async def _answer(dialogue: h11.Connection, wire: Wire) -> int:
    """The status of the proxy's answer; 0 if there is none."""
    import h11

    while True:
        try:
            event = dialogue.next_event()
        except h11.ProtocolError:
            return 0
        if event is h11.NEED_DATA:
            data = await wire.receive()
            if not data:
                raise UnansweredError("the proxy closed the connection")
            dialogue.receive_data(data)
        elif isinstance(event, h11.Response):
            return event.status_code
        elif not isinstance(event, h11.InformationalResponse):
            return 0


async def through_socks(proxy: ServiceProxy, wire: Wire, host: str, port: int) -> None:
    """Ask a SOCKS5 proxy for a connection (RFC 1928, 1929). It resolves the name.

    Raises:
        UnansweredError: If it refuses.
    """
    reader = _Reader(wire)
    await wire.send(b"\x05\x01\x00" if proxy.username is None else b"\x05\x02\x00\x02")
    version, method = await reader.read(2)
    if version != 5:
        raise UnansweredError("the proxy does not speak SOCKS5")
    if method == 2 and proxy.username is not None:
        await wire.send(_socks_login(proxy))
        if (await reader.read(2))[1] != 0:
            raise UnansweredError("the proxy refuses the login", permanent=True)
    elif method != 0:
        raise UnansweredError("the proxy accepts no login that is known here", permanent=True)
    await wire.send(b"\x05\x01\x00" + _socks_address(host) + port.to_bytes(2, "big"))
    _, code, _, kind = await reader.read(4)
    if code != 0:
        raise UnansweredError(f"the proxy cannot connect: {_SOCKS_FAILURES.get(code, f'error {code}')}")
    length = {1: 4, 4: 16}.get(kind) or (await reader.read(1))[0]
    await reader.read(length + 2)
    if reader.left:
        raise UnansweredError("the proxy sent more than it was asked for")


def _socks_login(proxy: ServiceProxy) -> SecretBytes:
    user, password = ((text or "").encode() for text in (proxy.username, proxy.password))
    return SecretBytes(b"\x01%c%b%c%b" % (len(user), user, len(password), password))


def _socks_address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return b"\x03%c%b" % (len(host), host.encode())
    return (b"\x01" if address.version == 4 else b"\x04") + address.packed


@attrs.define
class _Reader:
    """Reads a fixed number of bytes."""

    wire: Wire
    left: bytes = b""

    async def read(self, size: int) -> bytes:
        while len(self.left) < size:
            data = await self.wire.receive()
            if not data:
                raise UnansweredError("the proxy closed the connection")
            self.left += data
        found, self.left = self.left[:size], self.left[size:]
        return found
