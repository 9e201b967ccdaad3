"""The client's own connections: handed out last in, first out, with a queue in front."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections import deque
from collections.abc import Callable

import anyio

from ucaptcha_async.errors import ClientStateError
from ucaptcha_async.pacing import InFlight
from ucaptcha_async.secrecy import SecretBytes

from .connection import LATE, Connection, best_parser
from .exchange import Clock, ConnectionStatistics, Exchange, Reply, UnansweredError
from .network import Connect, Origin, connect_failure
from .parser import Parser
from .proxies import ServiceProxy
from .wires import Waiting

logger = logging.getLogger("ucaptcha_async")

SUBMIT_IDLE = 0.5
"""Seconds after which a kept connection is too old for a submit: the service may be closing it at this moment."""

POLL_IDLE = 30.0
"""Seconds after which a kept connection is not used again at all."""

DISTRUST = 60.0
"""Seconds for which each connection carries one request, after the service sent bytes that nobody asked for."""


AHEAD = 64
"""The most new connections that are opened, or wait for the limiter, at a time: an idle one may come meanwhile."""


class Heads:
    """The heads of requests, the same for each request to a path.

    Attributes:
        forwarding: Whether a proxy forwards the requests, instead of opening a tunnel.
    """

    def __init__(self, origin: Origin, proxy: ServiceProxy | None = None) -> None:
        self._origin = origin
        self.forwarding = proxy is not None and proxy.forwards(origin.scheme)
        self._prefix = f"{origin.scheme}://{origin.netloc}{origin.path}" if self.forwarding else origin.path
        self._login = proxy.authorization if proxy is not None and self.forwarding else None
        self._heads: dict[str, SecretBytes] = {}

    def request(self, path: str, body: bytes) -> SecretBytes:
        """A whole request."""
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = self._head(path)
        return SecretBytes(b"%b%d\r\n\r\n%b" % (head, len(body), body))

    def _head(self, path: str) -> SecretBytes:
        lines = [
            f"POST {self._prefix}{path} HTTP/1.1",
            f"Host: {self._origin.netloc}",
            "Content-Type: application/json",
            "User-Agent: ucaptcha_async",
        ]
        login = b"" if self._login is None else b"Proxy-Authorization: %b\r\n" % self._login
        return SecretBytes("\r\n".join([*lines, ""]).encode() + login + b"Content-Length: ")


class Pool:
    """Connections to one service. Each answer is read whole, so that its connection is free when it is returned.

    Args:
        connect: Opens a connection. A simulated network may take its place.
        heads: Makes the requests' heads.
        max_connections: The most connections at once.
        clock: The event loop's clock.
        connect_timeout: Seconds that opening a connection may take.
        on_extra_bytes: Called when the service is found to send bytes that nobody asked for.
        parser: Makes what reads the answers. Default: the best that is installed.
    """

    def __init__(
        self,
        connect: Connect,
        heads: Heads,
        *,
        max_connections: int,
        clock: Clock,
        connect_timeout: float = 30.0,
        on_extra_bytes: Callable[[], None] | None = None,
        parser: Callable[[], Parser] | None = None,
    ) -> None:
        self.connect = connect
        self._heads = heads
        self._limit = max_connections
        self._clock = clock
        self._connect_timeout = connect_timeout
        self._on_extra_bytes = on_extra_bytes
        self._parser = parser or best_parser()
        self._gate = InFlight(max_connections)
        self._ahead = InFlight(AHEAD)
        self._open: set[Connection] = set()
        self._idle: deque[Connection] = deque()
        self._condemned: list[Connection] = []
        self._connecting = self._promised = self._opened = 0
        self._distrusted_until = -math.inf
        self._closed = False

    def statistics(self) -> ConnectionStatistics:
        """What the connections do now."""
        gate = self._gate.statistics()
        return ConnectionStatistics(
            limit=self._limit,
            busy=gate.in_flight,
            idle=len(self._idle),
            waiting=gate.waiting,
            opened=self._opened,
        )

    async def send(self, exchange: Exchange, result: Callable[[Reply], object] = lambda reply: reply) -> object:
        """Send one request and read its answer; see `Sender`.

        Args:
            exchange: The request.
            result: What to return for an answer, for a library whose transport this is.
        """
        self._check_open()
        await self._gate.acquire()
        try:
            connection = await self._departed(exchange)
            try:
                request = self._heads.request(exchange.path, exchange.body)
                failure = await connection.ask(request, exchange.deadline)
                reply = exchange.reply = self._reply(connection, exchange, failure)
            except BaseException:
                await self._close(connection)
                raise
            await self._keep(connection, reply.received_at)
        finally:
            self._gate.release()
        return result(reply)

    async def aclose(self) -> None:
        """Close all connections, those that carry a request too, and open none any more."""
        self._closed = True
        self._idle.clear()
        with anyio.CancelScope(shield=True):
            for connection in list(self._open):
                await self._close(connection)

    # --- before the request is written ---

    async def _departed(self, exchange: Exchange) -> Connection:
        """The connection to write to, in the very moment in which the request counts as sent."""
        max_idle = SUBMIT_IDLE if exchange.submit else POLL_IDLE
        while True:
            connection = await self._kept(exchange, max_idle)
            if connection is not None and await self._departs(connection, exchange):
                return connection
            if connection is not None:
                continue
            exchange.check()  # before it waits for a connection, and before one is opened for nothing
            await self._ahead.acquire()
            try:
                exchange.check()
                connection = await self._kept(exchange, max_idle) or await self._new()
                if await self._departs(connection, exchange):
                    return connection
            finally:
                self._ahead.release()

    async def _kept(self, exchange: Exchange, max_idle: float) -> Connection | None:
        """The connection that was used last, if that was lately enough.

        The permit comes first, so that a long wait for it does not make a connection too old.
        """
        if len(self._idle) <= self._promised or not self._fit(max_idle):
            return None
        self._promised += 1
        try:
            await exchange.permit()
        finally:
            self._promised -= 1
        return self._idle.pop() if self._fit(max_idle) else None

    def _fit(self, max_idle: float) -> bool:
        return bool(self._idle) and self._clock() - self._idle[-1].used_at <= max_idle

    async def _new(self) -> Connection:
        self._check_open()
        await self._close_condemned()
        while self._idle and len(self._open) + self._connecting >= self._limit:
            await self._close(self._idle.popleft())
        wire = None
        failure = UnansweredError(f"no connection within {self._connect_timeout:g} s")
        self._connecting += 1
        try:
            with anyio.move_on_after(self._connect_timeout):
                wire = await self.connect()
        except OSError as error:
            failure = connect_failure(error)
        finally:
            self._connecting -= 1
        if wire is None:
            try:
                raise failure
            finally:
                del failure  # the frame must not keep its own exception alive
        self._opened += 1
        connection = Connection(wire, self._clock(), self._parser)
        self._open.add(connection)
        return connection

    async def _departs(self, connection: Connection, exchange: Exchange) -> bool:
        """Look again at all that may have changed, right before the first byte is written.

        Returns:
            Whether the request counts as sent. If not, the connection was closed.
        """
        try:
            while True:
                await exchange.permit()
                self._check_open()
                waiting = connection.wire.waiting()
                if waiting is not Waiting.NOTHING:
                    await self._refuse(connection, waiting)
                    return False
                if exchange.depart():
                    return True
        except BaseException:
            await self._close(connection)
            raise

    async def _refuse(self, connection: Connection, waiting: Waiting) -> None:
        """Close a connection on which nothing should be waiting.

        What the service says before it is asked on a new connection is no second answer, and fails the request unsent:
        the next connection would meet the same.
        """
        if connection.requests and waiting is Waiting.BYTES and not await _announces_timeout(connection):
            self._distrust()
        await self._close(connection)
        if not connection.requests:
            what = "closed the connection at once" if waiting is Waiting.CLOSED else "spoke before it was asked"
            raise UnansweredError(f"the service {what}")

    # --- after it ---

    def _reply(self, connection: Connection, exchange: Exchange, failure: str | None) -> Reply:
        answer, sent_at = connection.answer, exchange.sent_at
        assert sent_at is not None
        if answer.extra:
            self._distrust()
        if failure is not None:
            self._check_open()
            exchange.partial = answer.partial
            late = f"no answer within {exchange.timeout:g} s"
            raise UnansweredError(late if failure is LATE else exchange.clean(failure))
        if connection.doomed:
            raise UnansweredError("the connection gave another request's answer")
        if answer.status == 407 and self._heads.forwarding:
            exchange.sent = False
            raise UnansweredError("the proxy refuses the login (HTTP 407)", permanent=True)
        return Reply(
            status=answer.status,
            headers=answer.headers,
            content=answer.content,
            sent_at=sent_at,
            received_at=self._clock(),
            first=connection.requests == 1,
            repeated=connection.repeated,
            discard=functools.partial(self._discard, connection),
        )

    async def _keep(self, connection: Connection, now: float) -> None:
        """Keep a connection for the next request, if it is fit for one; close what is not needed any more."""
        answer = connection.answer
        good = answer.reusable and connection.written and not (answer.extra or connection.doomed)
        if good and now >= self._distrusted_until and not self._closed:
            connection.used_at = now
            self._idle.append(connection)
        else:
            await self._close(connection)
        # The oldest is at the left. There is no background task to close it.
        while self._idle and now - self._idle[0].used_at > POLL_IDLE:
            await self._close(self._idle.popleft())
        if self._condemned:
            await self._close_condemned()

    async def _close_condemned(self) -> None:
        while self._condemned:
            await self._close(self._condemned.pop())

    async def _close(self, connection: Connection) -> None:
        self._open.discard(connection)
        with contextlib.suppress(OSError):
            await connection.wire.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise ClientStateError("the client is closed")

    # --- whose answer is it? ---

    def _discard(self, connection: Connection) -> None:
        connection.doomed = True
        self._distrust()

    def _distrust(self) -> None:
        """The service sent bytes that nobody asked for. No connection carries a second request for a while."""
        now = self._clock()
        begins, self._distrusted_until = now >= self._distrusted_until, now + DISTRUST
        self._condemned += self._idle
        self._idle.clear()
        if begins:
            logger.warning(
                "the service sent bytes that nobody asked for: each connection carries one request for %g s", DISTRUST
            )
            if self._on_extra_bytes is not None:
                self._on_extra_bytes()


async def _announces_timeout(connection: Connection) -> bool:
    """Whether the bytes on an idle connection are the usual `408 Request Timeout` of a service that closes it.

    It is no second answer, and ends the connection, so that no later request can meet it.
    """
    with contextlib.suppress(OSError):
        said = await connection.wire.receive()
        closes = connection.wire.waiting() is Waiting.CLOSED or b"connection: close" in said.lower()
        return said.startswith(b"HTTP/1.") and said[8:12] == b" 408" and closes
    return False
