"""The ways through httpx: the pool under an `httpx.AsyncClient` (the default), and the caller's own client.

The only module that knows httpx. Its names appear in no public signature but the injected `http_client`.
"""

from __future__ import annotations

import logging
import socket
import ssl
import sys
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Mapping
from typing import Any, Protocol

import anyio

from ucaptcha_async.errors import ClientStateError
from ucaptcha_async.secrecy import SecretBytes

from .exchange import MAX_BODY, PERMIT_LIFETIME, ConnectionStatistics, Exchange, Reply, UnansweredError, relevant
from .parser import TOO_LARGE, decompressed, decompressed_part
from .pool import Pool

logger = logging.getLogger("ucaptcha_async")

EXCHANGE = "ucaptcha_exchange"
"""The request extension that holds the exchange."""


class HTTPClient(Protocol):
    """What is asked of an injected client: `httpx.AsyncClient` and `httpx2.AsyncClient` have it."""

    def build_request(self, method: str, url: Any, *, content: Any, headers: Any, extensions: Any) -> Any:
        """Build a request with the client's own headers and timeouts."""
        ...

    async def send(self, request: Any, *, stream: bool, follow_redirects: bool) -> Any:
        """Send it."""
        ...


class ThroughHttpx:
    """Sends through an `AsyncClient` of httpx or httpx2 that has the pool as its transport.

    Args:
        library: The module `httpx` or `httpx2`.
        base_url: Where the service is.
        pool: The connections.
    """

    def __init__(self, library: Any, base_url: str, pool: Pool) -> None:
        self.pool = pool
        self._library = library
        self._base_url = base_url
        self._client = _bare_client(library, pool)
        self._urls: dict[str, Any] = {}
        self._headers = library.Headers({"Host": library.URL(base_url).netloc, "Content-Type": "application/json"})
        self._timeout = library.Timeout(None).as_dict()

    def send(self, exchange: Exchange) -> Awaitable[object]:
        """Send one request and read its answer; see `Sender`."""
        url = self._urls.get(exchange.path)
        if url is None:
            url = self._urls[exchange.path] = self._library.URL(self._base_url + exchange.path)
        request = self._library.Request(
            "POST",
            url,
            headers=self._headers,
            stream=self._library.ByteStream(exchange.body),
            extensions={"timeout": self._timeout, EXCHANGE: exchange},
        )
        sent: Awaitable[object] = self._client.send(request, stream=True)
        return sent

    def statistics(self) -> ConnectionStatistics:
        """What the connections do now."""
        return self.pool.statistics()

    async def aclose(self) -> None:
        """Close the connections."""
        await self.pool.aclose()


def _bare_client(library: Any, pool: Pool) -> Any:
    """An `AsyncClient` over the pool, without what costs time and means nothing here: cookies, hooks, redirects."""
    nothing = library.ByteStream(b"")

    class Answered(library.Response):  # type: ignore[misc]
        """The exchange has the answer. httpx would set a stream that refers to its response: a circle."""

        stream = property(lambda self: nothing, lambda self, stream: None)

    def response(reply: Reply) -> Any:
        return Answered(reply.status, stream=nothing)

    class PoolTransport(library.AsyncBaseTransport):  # type: ignore[misc]
        def handle_async_request(self, request: Any) -> Coroutine[Any, Any, Any]:
            return pool.send(request.extensions[EXCHANGE], response)

    class NoCookies(library.Cookies):  # type: ignore[misc]
        def extract_cookies(self, response: Any) -> None:
            pass

    class NoAuth(library.Auth):  # type: ignore[misc]
        async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
            yield request

    class BareClient(library.AsyncClient):  # type: ignore[misc]
        cookies = NoCookies()

    return BareClient(transport=PoolTransport(), auth=NoAuth(), timeout=None, trust_env=False)


class Injected:
    """Sends through the caller's own client, used as it is and left open.

    Args:
        client: An `AsyncClient` of httpx or httpx2.
        base_url: Where the service is.
    """

    def __init__(self, client: HTTPClient, base_url: str) -> None:
        self._client = client
        self._base_url = base_url
        self._closed = False

    async def send(self, exchange: Exchange) -> None:
        """Send one request and read its answer; see `Sender`."""
        self._check_open()
        await exchange.permit()
        self._check_open()
        dispatch = _Dispatch(exchange)
        failure = UnansweredError(f"no answer within {exchange.timeout:g} s")
        try:
            with dispatch.scope:
                await self._ask(exchange, dispatch)
        except UnansweredError as error:
            failure = error
        except faults() as error:
            dispatch.failed(error)
            failure = _failure(error, exchange)
        except BaseException as error:
            if isinstance(error, anyio.get_cancelled_exc_class()):
                # The frames of the client's own transport may hold the request as it was written.
                error.__traceback__ = None
            raise
        if exchange.reply is not None:
            return  # in time, whatever its closing was
        try:
            raise failure
        finally:
            del failure  # the frame must not keep its own exception alive

    async def _ask(self, exchange: Exchange, dispatch: _Dispatch) -> None:
        # What `decompressed` can undo, whatever the client could.
        headers = {"content-type": "application/json", "accept-encoding": "gzip, deflate"}
        request = self._client.build_request(
            "POST", self._base_url + exchange.path, content=exchange.body, headers=headers, extensions=None
        )
        request.extensions["trace"] = dispatch.trace
        dispatch.hand_over()
        response = await self._client.send(request, stream=True, follow_redirects=False)
        try:
            content = await _content(response, exchange)
            assert exchange.sent_at is not None
            exchange.reply = Reply(
                status=response.status_code,
                headers=relevant(response.headers.raw),
                content=content,
                sent_at=exchange.sent_at,
                received_at=exchange.clock(),
                first=None,
                repeated=False,  # nobody knows
                discard=_keep_on,
            )
        finally:
            await _close(response)

    def statistics(self) -> None:
        """The connections are the caller's."""

    async def aclose(self) -> None:
        """Send nothing any more. The client stays open."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ClientStateError("the client is closed")


def _keep_on() -> None:
    """The connections are the caller's: none of them can be closed from outside."""


class _Dispatch:
    """What the caller's transport says of one request, in httpcore's `trace` extension: the proof of sending.

    A transport that says nothing may have sent anything.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._heard = self._started = False
        self.scope = anyio.CancelScope(deadline=exchange.permitted_at + exchange.timeout)

    def hand_over(self) -> None:
        """The client has the request: until it says otherwise, it may have left."""
        self._exchange.sent, self._exchange.sent_at = True, self._exchange.clock()

    async def trace(self, name: str, info: Mapping[str, Any]) -> None:
        """The `trace` extension. Stops a request that was withdrawn."""
        exchange = self._exchange
        if not self._heard:
            self._heard = True
            exchange.sent, exchange.sent_at = False, None
        if self._started or not name.endswith(".send_request_headers.started") or info["request"].method != b"POST":
            return  # a proxy is sent a CONNECT of its own first
        if exchange.clock() > exchange.permitted_at + PERMIT_LIFETIME:
            self.scope.deadline = float("inf")
        while True:
            await exchange.permit()
            if exchange.depart():
                break
        self._started = True
        self.scope.deadline = exchange.permitted_at + exchange.timeout

    def failed(self, error: BaseException) -> None:
        """The client raised something: its pool may have given up before it had a connection."""
        cause = error.__cause__
        queued = type(cause).__name__ == "PoolTimeout" and type(cause).__module__.startswith("httpcore")
        if not self._started and (self._heard or queued):
            self._exchange.sent, self._exchange.sent_at = False, None


async def _content(response: Any, exchange: Exchange) -> SecretBytes:
    """The body, bounded before and after decompression."""
    if response.is_stream_consumed:  # a transport of the caller's own gave it whole
        return SecretBytes(response.content)
    pieces: list[bytes] = []
    size = 0
    encoding = response.headers.get("content-encoding", "")
    try:
        async for piece in response.aiter_raw():
            size += len(piece)
            if size <= MAX_BODY:
                pieces.append(SecretBytes(piece))
            else:  # closed, and then read to its end: a generator that is left half-way is a defect to trio
                await response.aclose()
    except BaseException:
        if size <= MAX_BODY:
            exchange.partial = decompressed_part(b"".join(pieces), encoding)
            raise
    content = TOO_LARGE if size > MAX_BODY else decompressed(b"".join(pieces), encoding)
    if isinstance(content, str):
        exchange.partial = decompressed_part(b"".join(pieces), encoding)
        raise UnansweredError(content)
    return content


async def _close(response: Any) -> None:
    """Close a response, whatever happens. If that fails, what was read of it counts all the same."""
    with anyio.CancelScope(shield=True):
        try:
            await response.aclose()
        except Exception as error:
            logger.warning("a response could not be closed: %s", type(error).__name__)


def faults() -> tuple[type[BaseException], ...]:
    """What a client of httpx raises when the network fails. All else is a defect, of the caller's hooks perhaps."""
    loaded = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    own = tuple(module.TransportError for module in loaded if module is not None)
    return (*own, ConnectionError, TimeoutError, ssl.SSLError, socket.gaierror)


def _failure(error: BaseException, exchange: Exchange) -> UnansweredError:
    """Why there is no answer. What a peer may have made up is not repeated: it may hold the request."""
    name = type(error).__name__
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 10:
        chain.append(inner)
    unverified = next((each for each in chain if isinstance(each, ssl.SSLCertVerificationError)), None)
    if unverified is not None:
        return UnansweredError(f"the certificate does not verify: {unverified.verify_message}", permanent=True)
    text = str(error)
    if name == "ProxyError":
        text = f"HTTP {text[:3]}" if text[:3].isdecimal() else ""
    elif name.endswith("ProtocolError") and not name.startswith("Unsupported"):
        text = ""
    permanent = name == "UnsupportedProtocol" or text == "HTTP 407"
    return UnansweredError(exchange.clean(f"{name}: {text}" if text else name), permanent=permanent)
