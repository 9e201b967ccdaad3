"""The ways for requests through httpx, and where each request goes: over lanes of our own or the caller's client.

With `lanes` and `connections` the only module that knows httpx. Its names appear in no public signature but the
injected `http_client`.
"""

from __future__ import annotations

import importlib
import ipaddress
import ssl
import urllib.request
from collections.abc import Callable
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import anyio
import attrs

from ucaptcha_async.errors import ConfigurationError
from ucaptcha_async.secrecy import SecretBytes, SecretStr

from .connections import direct, through_proxy
from .lanes import FRESH, LEAVE, WHOLE, Lanes, LaneTransport, Library, core_module, core_url, read_bounded
from .old_exchange import Departure, Http, Reply, relevant

TransportName = Literal["httpx", "httpx2", "fast"]


class HTTPClient(Protocol):
    """What is asked of an injected client: `httpx.AsyncClient` and `httpx2.AsyncClient` have it."""

    def build_request(self, method: str, url: Any, *, content: Any, headers: Any, extensions: Any) -> Any:
        """Build a request with the client's own headers and timeouts."""
        ...

    async def send(self, request: Any, *, stream: bool, follow_redirects: bool) -> Any:
        """Send it."""
        ...


@attrs.define(eq=False)
class HttpxChannel:
    """One httpx client and how to build a request for it.

    Attributes:
        client: The client.
        build: Builds a request from a URL and a body.
        ours: Whether it sends over our lanes, which are known to report what is sent, and is ours to close.
        prompt: Whether a request is written as soon as it has leave to depart.
    """

    client: Any
    build: Callable[[str, SecretBytes], Any]
    ours: bool
    prompt: bool = False

    async def post(self, url: str, body: SecretBytes, departure: Departure) -> Reply:
        """Send one request; see `Http.post`."""
        request = self.build(url, body)
        if not self.ours:
            await departure.leave()
        extensions = departure.handed_over(prompt=self.prompt, proves_silence=self.ours)
        if self.ours:
            extensions |= {LEAVE: departure.leave, FRESH: departure.sending is not None}
        request.extensions.update(extensions)
        response = await self.client.send(request, stream=True, follow_redirects=False)
        content = await _read(response)
        return Reply(
            status=response.status_code,
            headers=relevant(response.headers.raw),
            content=SecretBytes(content),
            sent_at=departure.at,
            received_at=anyio.current_time(),
        )

    async def aclose(self) -> None:
        """Close the client if it is ours."""
        if self.ours:
            await self.client.aclose()


@attrs.define(eq=False)
class LaneChannel:
    """Straight over the lanes, for submits beside fast polls: without what httpx adds to a request.

    Attributes:
        library: The httpx that belongs to them.
        lanes: The lanes.
        prompt: Whether a request is written as soon as it has leave to depart.
    """

    library: Any
    lanes: Lanes
    prompt: bool
    _urls: dict[str, tuple[Any, bytes]] = attrs.field(init=False, factory=dict)

    async def post(self, url: str, body: SecretBytes, departure: Departure) -> Reply:
        """Send one request; see `Http.post`."""
        if url not in self._urls:
            parsed = self.library.URL(url)
            self._urls[url] = (core_url(self.lanes.core, parsed), parsed.netloc)
        place, netloc = self._urls[url]
        extensions = departure.handed_over(prompt=self.prompt, proves_silence=True)
        request = self.lanes.core.Request(
            "POST", place, headers=_headers(netloc, body), content=body, extensions=extensions
        )
        response, content = await self.lanes.send(request, departure.leave, fresh=departure.sending is not None)
        if any(name.lower() == b"content-encoding" for name, _ in response.headers):
            stream = self.library.ByteStream(content)
            content = await _read(self.library.Response(response.status, headers=response.headers, stream=stream))
        return Reply(
            status=response.status,
            headers=relevant(response.headers),
            content=SecretBytes(content),
            sent_at=departure.at,
            received_at=anyio.current_time(),
        )

    async def aclose(self) -> None:
        """Close the lanes."""
        await self.lanes.aclose()


async def _read(response: Any) -> bytes:
    if WHOLE in response.extensions and "content-encoding" not in response.headers:
        whole: bytes = response.extensions[WHOLE]
        return whole
    try:
        return await read_bounded(response.aiter_bytes(), response.aclose)
    finally:
        with anyio.CancelScope(shield=True):
            await response.aclose()


def injected(client: HTTPClient, base_url: str, request_timeout: float) -> Http:
    """Send through the caller's own httpx or httpx2 client, as it is."""
    headers = {"content-type": "application/json"}

    def build(url: str, body: SecretBytes) -> Any:
        return client.build_request("POST", url, content=body, headers=headers, extensions=None)

    channel = HttpxChannel(client, build, ours=False)
    return Http(base_url, request_timeout, channel, channel, None)


def own(
    base_url: str,
    request_timeout: float,
    *,
    transport: TransportName,
    max_connections: int,
    ssl_context: ssl.SSLContext | None,
    proxy: str | None,
) -> Http:
    """Send through lanes of our own and, with `transport="fast"`, the polls through aiohttp."""
    library: Library = "httpx2" if transport == "httpx2" else "httpx"
    module = _import(library, "httpx2")
    context = ssl_context or module.create_ssl_context()
    proxy = proxy or _environment_proxy(base_url)
    connect = through_proxy(library, context, proxy) if proxy else direct(library, context)
    lanes = Lanes(core_module(library), max_connections, connect, request_timeout)
    # Through a proxy, a lane connects after it has leave to depart.
    prompt = proxy is None
    if transport == "fast":
        from .fast import open_fast

        polls = open_fast(max_connections, context, proxy)
        return Http(base_url, request_timeout, LaneChannel(module, lanes, prompt), polls, lanes)
    channel = _over_lanes(module, lanes, prompt=prompt)
    return Http(base_url, request_timeout, channel, channel, lanes)


def _over_lanes(module: Any, lanes: Lanes, *, prompt: bool) -> HttpxChannel:
    client = _without_cookies(module)(transport=LaneTransport(module, lanes), timeout=None, trust_env=False)
    # Our own scope bounds the whole request, so that httpx need not time every read and write.
    no_timeouts = module.Timeout(None).as_dict()
    urls: dict[str, Any] = {}

    def build(url: str, body: SecretBytes) -> Any:
        if url not in urls:
            urls[url] = module.URL(url)
        parsed = urls[url]
        return module.Request(
            "POST",
            parsed,
            headers=_headers(parsed.netloc, body),
            stream=module.ByteStream(body),
            extensions={"timeout": no_timeouts},
        )

    return HttpxChannel(client, build, ours=True, prompt=prompt)


def _headers(netloc: bytes, body: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b"Host", netloc),
        (b"Content-Type", b"application/json"),
        (b"User-Agent", b"ucaptcha_async"),
        (b"Content-Length", b"%d" % len(body)),
    ]


def _without_cookies(module: Any) -> Any:
    """An `AsyncClient` that ignores cookies: they mean nothing to this API, and looking for them is dear."""

    class NoCookies(module.Cookies):  # type: ignore[misc]
        def extract_cookies(self, response: Any) -> None:
            pass

    class CookielessClient(module.AsyncClient):  # type: ignore[misc]
        cookies = NoCookies()

    return CookielessClient


def _import(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigurationError(
            f"{name} is not installed: pip install 'ucaptcha_async[{extra}]'", field="transport"
        ) from None


def _environment_proxy(base_url: str) -> str | None:
    """The proxy that the environment names for the service, as httpx itself would find it."""
    parts = urlsplit(base_url)
    if is_loopback(parts.hostname or "") or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    proxies = urllib.request.getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    return None if found is None else SecretStr(found)


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
