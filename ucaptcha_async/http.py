"""One JSON request in, one reply out; and, when there is none, whether the request was sent.

With `lanes` the only module that knows httpx. Its names appear in no public signature but the injected `http_client`.
"""

from __future__ import annotations

import importlib
import ipaddress
import math
import ssl
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import anyio
import attrs

from .connections import direct, through_proxy
from .errors import ConfigurationError, UCaptchaError
from .lanes import (
    FRESH,
    LEAVE,
    MAX_ANSWER,
    WHOLE,
    AnswerTooLargeError,
    LaneStatistics,
    LaneTransport,
    Library,
    read_bounded,
)
from .limits import Limiter
from .secrecy import SecretBytes, SecretStr, without_frames

TransportName = Literal["httpx", "httpx2", "fast"]

LATE = 0.002
"""Seconds after which leave to depart is stale: the limiter allows for a little more."""

_HEADERS = {
    b"date",
    b"retry-after",
    b"x-ratelimit-limit",
    b"x-ratelimit-remaining",
    b"x-ratelimit-reset",
}


class HTTPClient(Protocol):
    """What is asked of an injected client: `httpx.AsyncClient` and `httpx2.AsyncClient` have it."""

    def build_request(self, method: str, url: Any, *, content: Any, headers: Any, extensions: Any) -> Any:
        """Build a request with the client's own headers and timeouts."""
        ...

    async def send(self, request: Any, *, stream: bool, follow_redirects: bool) -> Any:
        """Send it."""
        ...


@attrs.frozen(kw_only=True)
class Reply:
    """An answer of the service, not yet understood.

    Attributes:
        status: The HTTP status.
        headers: The headers that pacing needs, names in lower case.
        content: The body.
        sent_at: When the request left, in seconds of the event loop's clock.
        received_at: When the answer was complete.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes = attrs.field(repr=False)
    sent_at: float
    received_at: float


class UnansweredError(Exception):
    """No reply came. Whether the request was sent, `Sending` knows.

    Attributes:
        reason: What happened, in words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@attrs.define(eq=False)
class Sending:
    """What a transport says of one request while it is under way: the proof of sending.

    Attributes:
        handed_over: Whether the transport has the request at all.
        proves_silence: Whether the transport is known to report, so that no report means that nothing was sent.
        started: Whether the first byte of the request was about to be written.
        heard: Whether anything was reported at all.
        withdrawn: Whether nobody wants it any more: what is not written yet is not to be written.
    """

    handed_over: bool = False
    proves_silence: bool = False
    started: bool = False
    heard: bool = False
    withdrawn: bool = False

    async def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """The `trace` extension of httpcore. Raises `UnansweredError` to stop a request that was withdrawn."""
        self.heard = True
        if _starts(name, info):
            if self.withdrawn:
                raise UnansweredError("withdrawn before it was sent")
            self.started = True

    @property
    def sent(self) -> bool:
        """Whether the request may have reached the service."""
        return self.handed_over and (self.started or not (self.heard or self.proves_silence))


def _starts(name: str, info: Mapping[str, Any]) -> bool:
    """Whether our request is about to be written. A proxy is sent a CONNECT of its own first."""
    return name.endswith(".send_request_headers.started") and info["request"].method == b"POST"


@attrs.define(eq=False)
class Departure:
    """One request's leave to depart, asked for as close to the departure as the way allows.

    Asked for again when the way was not ready when it was given: a pool was full, or had to connect.

    Attributes:
        limiter: Gives it.
        sending: Given for a submit: it learns whether the request was sent.
        told: Called whenever leave is given.
        given: Whether leave was given.
        at: When the request left, as far as the transport tells; else when it had leave to.
        scope: Bounds the request; it runs from the departure.
        timeout: Seconds for the answer.
    """

    limiter: Limiter
    sending: Sending | None = None
    told: Callable[[], None] | None = None
    given: bool = False
    at: float = 0.0
    scope: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    timeout: float = math.inf

    async def leave(self) -> None:
        """Wait for leave to depart."""
        if self.given:  # that turn is lost
            self.given, self.scope.deadline = False, math.inf
            self.limiter.lost()
        await self.limiter.acquire()
        self.given, self.at = True, anyio.current_time()
        self.scope.deadline = self.at + self.timeout
        if self.told is not None:
            self.told()

    async def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """The `trace` extension of httpcore, for ways that are not prompt."""
        if _starts(name, info):
            if anyio.current_time() > self.at + LATE:
                await self.leave()
            self.at = anyio.current_time()
        if self.sending is not None:
            await self.sending.trace(name, info)


class Channel(Protocol):
    """A way for requests."""

    async def post(self, url: str, body: SecretBytes, departure: Departure) -> Reply:
        """Send one request; see `Http.post`."""
        ...

    async def aclose(self) -> None:
        """Close what is ours."""
        ...


@attrs.define(eq=False)
class Http:
    """Sends requests to one service.

    Submits and polls may take different ways: a submit needs a transport that proves whether it was sent.
    """

    base_url: str
    request_timeout: float
    submits: Channel
    polls: Channel
    lanes: LaneTransport | None

    async def post(self, path: str, body: SecretBytes, departure: Departure) -> Reply:
        """Send one POST and read the answer whole.

        Args:
            path: For example `"/createTask"`.
            body: The JSON text. It holds the API key.
            departure: Awaited before the request departs; the time for the answer runs from then.

        Raises:
            UnansweredError: If no answer came, or none that can be read.
        """
        channel = self.polls if departure.sending is None else self.submits
        departure.timeout = self.request_timeout
        with departure.scope:
            return await channel.post(self.base_url + path, body, departure)
        raise UnansweredError(f"no answer within {self.request_timeout:g} s")

    def statistics(self) -> LaneStatistics | None:
        """The lanes, or `None` with an injected client."""
        return None if self.lanes is None else self.lanes.statistics()

    async def aclose(self) -> None:
        """Close what is ours. An injected client is left as it is."""
        for channel in {self.submits, self.polls}:
            await channel.aclose()


@attrs.define(eq=False)
class HttpxChannel:
    """One httpx client and how to build a request for it.

    Attributes:
        client: The client.
        build: Builds a request from a URL, a body and extensions.
        ours: Whether it sends over our lanes, and is ours to close.
        proves_silence: Whether the transport is known to report, so that no report means that nothing was sent.
        prompt: Whether a request is written as soon as it has leave to depart.
    """

    client: Any
    build: Callable[[str, SecretBytes, dict[str, Any]], Any]
    ours: bool
    proves_silence: bool = False
    prompt: bool = False

    async def post(self, url: str, body: SecretBytes, departure: Departure) -> Reply:
        """Send one request; see `Http.post`."""
        extensions: dict[str, Any] = {}
        sending = departure.sending
        if self.ours:
            extensions[LEAVE] = departure.leave
        else:
            await departure.leave()
        if not self.prompt:
            extensions["trace"] = departure.trace
        if sending is not None:
            sending.handed_over, sending.proves_silence = True, self.proves_silence
            extensions |= {"trace": extensions.get("trace", sending.trace), FRESH: True}
        request = self.build(url, body, extensions)
        try:
            response = await self.client.send(request, stream=True, follow_redirects=False)
            content = await _read(response)
        except AnswerTooLargeError:
            raise UnansweredError(f"an answer of more than {MAX_ANSWER} bytes") from None
        except UCaptchaError:
            raise  # of the limiter, which was asked on the way
        except Exception as error:
            # Whatever broke, broke after the request was built: what matters now is only whether it was sent.
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            if sending is not None and _queued(error):
                sending.handed_over = False
            raise UnansweredError(reason) from without_frames(error)
        except BaseException as cancelled:
            without_frames(cancelled)
            raise
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


def relevant(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Those headers that pacing needs, with names in lower case."""
    lower = ((name.lower(), value) for name, value in headers)
    return {name.decode("ascii"): value.decode("latin-1") for name, value in lower if name in _HEADERS}


def _queued(error: BaseException) -> bool:
    """Whether the pool of an injected client gave up before it had a connection, as httpcore itself says."""
    cause = error.__cause__
    return type(cause).__name__ == "PoolTimeout" and type(cause).__module__.startswith("httpcore")


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

    def build(url: str, body: SecretBytes, extensions: dict[str, Any]) -> Any:
        request = client.build_request("POST", url, content=body, headers=headers, extensions=None)
        request.extensions.update(extensions)
        return request

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
    context = ssl_context or _import(library, "httpx2").create_ssl_context()
    proxy = proxy or _environment_proxy(base_url)
    connect = through_proxy(library, context, proxy) if proxy else direct(library, context)
    lanes = LaneTransport(library, max_connections, connect, request_timeout)
    # Through a proxy, a lane connects after it has leave to depart.
    submits = _channel(library, lanes, proves_silence=True, prompt=proxy is None)
    polls: Channel = submits
    if transport == "fast":
        from .fast import open_fast

        polls = open_fast(max_connections, context, proxy)
    return Http(base_url, request_timeout, submits, polls, lanes)


def _channel(library: Library, transport: Any, *, proves_silence: bool, prompt: bool) -> HttpxChannel:
    module = importlib.import_module(library)
    client = _without_cookies(module)(transport=transport, timeout=None, trust_env=False)
    # Our own scope bounds the whole request, so that httpx need not time every read and write.
    no_timeouts = module.Timeout(None).as_dict()
    urls: dict[str, tuple[Any, list[tuple[bytes, bytes]]]] = {}

    def build(url: str, body: SecretBytes, extensions: dict[str, Any]) -> Any:
        if url not in urls:
            parsed = module.URL(url)
            urls[url] = (
                parsed,
                [
                    (b"Host", parsed.netloc),
                    (b"Content-Type", b"application/json"),
                    (b"User-Agent", b"ucaptcha_async"),
                ],
            )
        parsed, headers = urls[url]
        return module.Request(
            "POST",
            parsed,
            headers=[*headers, (b"Content-Length", b"%d" % len(body))],
            stream=module.ByteStream(body),
            extensions={"timeout": no_timeouts, **extensions},
        )

    return HttpxChannel(client, build, ours=True, proves_silence=proves_silence, prompt=prompt)


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
