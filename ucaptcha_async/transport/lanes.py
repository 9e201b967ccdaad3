"""Many one-connection lanes under one `httpx.AsyncClient`, handed out last-in first-out.

The pool of httpx scans every connection for every request, so its cost grows with its size, and version 0.28 loses
connections under cancellation. A lane is one connection with no pool around it: taking one costs the same with ten as
with a thousand, and a lane whose request was cancelled or failed is thrown away.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any, Literal

import anyio
import anyio.lowlevel
import attrs

from ucaptcha_async.pacing import InFlight

Library = Literal["httpx", "httpx2"]

Leave = Callable[[], Awaitable[None]]

Connect = Callable[[Any], Awaitable[Any]]
"""Opens one connection to an origin."""

SUBMIT_IDLE = 0.5
"""Seconds after which a kept connection is too old to carry a submit: the service may be closing it this moment."""

POLL_IDLE = 30.0
"""Seconds after which a kept connection is not used again at all."""

MAX_ANSWER = 1024 * 1024
"""Bytes of the largest answer that is read. A solution takes kilobytes."""

FRESH = "ucaptcha_fresh"
"""The request extension that says whether the connection must be fit for a submit."""

LEAVE = "ucaptcha_leave"
"""The request extension that is awaited right before the request is written, maybe twice: it paces departures."""

WHOLE = "ucaptcha_whole"
"""The response extension that holds the body, for callers who need not stream it."""

_HEADERS = frozenset(
    {
        b"content-encoding",
        b"content-type",
        b"date",
        b"location",
        b"retry-after",
        b"x-ratelimit-limit",
        b"x-ratelimit-remaining",
        b"x-ratelimit-reset",
    }
)
"""The response headers that are passed on: each costs httpx time, and no other means anything here."""


class AnswerTooLargeError(Exception):
    """The answer is larger than any answer of the protocol."""


@attrs.frozen(kw_only=True)
class LaneStatistics:
    """What the lanes do now.

    Attributes:
        limit: The most connections at once.
        busy: Connections that carry a request.
        idle: Connections kept for the next request.
        waiting: Requests that wait for a lane.
        opened: Connections opened since the start.
    """

    limit: int
    busy: int
    idle: int
    waiting: int
    opened: int


@attrs.define(eq=False)
class _Lane:
    connection: Any
    used_at: float


@attrs.define(eq=False)
class Lanes:
    """Connections to one origin. Each answer is read whole, so that its lane is free again when it is returned.

    Attributes:
        core: The package that speaks HTTP; see `core_module`.
        max_connections: The most connections at once.
        connect: Opens one connection to an origin; tests put a simulated network here.
        connect_timeout: Seconds that opening a connection may take.
    """

    core: Any
    max_connections: int
    connect: Connect
    connect_timeout: float = 30.0
    _gate: InFlight = attrs.field(init=False)
    _idle: deque[_Lane] = attrs.field(init=False, factory=deque)
    _promised: int = attrs.field(init=False, default=0)
    _open: int = attrs.field(init=False, default=0)
    _opened: int = attrs.field(init=False, default=0)
    _closed: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._gate = InFlight(self.max_connections)

    def statistics(self) -> LaneStatistics:
        """What the lanes do now."""
        gate = self._gate.statistics()
        return LaneStatistics(
            limit=self.max_connections,
            busy=gate.in_flight,
            idle=len(self._idle),
            waiting=gate.waiting,
            opened=self._opened,
        )

    async def send(self, request: Any, leave: Leave, *, fresh: bool) -> tuple[Any, bytes]:
        """Send one request over one lane.

        Args:
            request: The request, as `core` has it.
            leave: Awaited right before the request is written, maybe twice.
            fresh: Whether the connection must be fit for a submit.

        Returns:
            The response, as `core` has it, and its body.
        """
        await self._gate.acquire()
        try:
            lane = await self._departing(request.url, SUBMIT_IDLE if fresh else POLL_IDLE, leave)
            try:
                answer = await lane.connection.handle_async_request(request)
                content = await read_bounded(answer.stream, answer.stream.aclose)
                await answer.stream.aclose()
            except BaseException:
                await self._close(lane)
                raise
            await self._keep(lane)
        finally:
            self._gate.release()
        return answer, content

    async def _departing(self, url: Any, max_idle: float, leave: Leave) -> _Lane:
        """A lane to write to in the very moment in which the request has leave to depart.

        A queue for lanes, or a slow connect, after the leave was given would let requests pile up and depart at once.
        """
        if len(self._idle) > self._promised and self._fit(max_idle):
            self._promised += 1
            try:
                await self._leave(leave)
            finally:
                self._promised -= 1
            lane = await self._kept(max_idle)
            if lane is not None:
                return lane
        lane = await self._new(url)
        try:
            await self._leave(leave)
        except BaseException:
            await self._close(lane)
            raise
        return lane

    async def _leave(self, leave: Leave) -> None:
        await leave()
        if self._closed:  # what has waited all the while must not be sent, and maybe charged, behind the user's back
            raise RuntimeError("the client is closed")

    def _fit(self, max_idle: float) -> bool:
        """Whether the lane that was used last was used lately enough."""
        return bool(self._idle) and anyio.current_time() - self._idle[-1].used_at <= max_idle

    async def _kept(self, max_idle: float) -> _Lane | None:
        while self._fit(max_idle):
            lane = self._idle.pop()
            if not lane.connection.has_expired():
                return lane
            await self._close(lane)
        return None

    async def _new(self, url: Any) -> _Lane:
        while self._idle and self._open >= self.max_connections:
            await self._close(self._idle.popleft())
        self._open += 1
        self._opened += 1
        connection = None
        try:
            with anyio.move_on_after(self.connect_timeout):
                connection = await self.connect(url.origin)
        finally:
            if connection is None:
                self._open -= 1
        if connection is None:
            raise self.core.ConnectTimeout(f"no connection within {self.connect_timeout:g} s")
        return _Lane(connection, anyio.current_time())

    async def _keep(self, lane: _Lane) -> None:
        if self._closed or not lane.connection.is_available():  # the service closes it after this answer
            await self._close(lane)
            return
        lane.used_at = anyio.current_time()
        self._idle.append(lane)
        # The oldest is at the left. It is closed here, when times are quieter: there is no background task to do it.
        if lane.used_at - self._idle[0].used_at > POLL_IDLE:
            await self._close(self._idle.popleft())

    async def _close(self, lane: _Lane) -> None:
        self._open -= 1
        # It must happen even when the caller is being cancelled, but a peer that does not answer must not hold it up.
        with anyio.move_on_after(1, shield=True), contextlib.suppress(Exception):
            await lane.connection.aclose()

    async def aclose(self) -> None:
        """Close every kept connection, and open none any more."""
        self._closed = True
        while self._idle:
            await self._close(self._idle.pop())


@attrs.define(eq=False)
class LaneTransport:
    """The lanes as a transport of httpx.

    Attributes:
        library: Which of the two twins it serves: the module `httpx` or `httpx2`.
        lanes: The lanes.
    """

    library: Any
    lanes: Lanes
    _urls: dict[bytes, Any] = attrs.field(init=False, factory=dict)

    async def handle_async_request(self, request: Any) -> Any:
        """Send one request."""
        extensions = request.extensions
        leave: Leave = extensions.get(LEAVE, anyio.lowlevel.checkpoint)
        answer, content = await self.lanes.send(self._to_core(request), leave, fresh=extensions.get(FRESH, False))
        return self.library.Response(
            answer.status,
            headers=[(name, value) for name, value in answer.headers if name.lower() in _HEADERS],
            stream=self.library.ByteStream(content),
            extensions={**answer.extensions, WHOLE: content},
        )

    def _to_core(self, request: Any) -> Any:
        return self.lanes.core.Request(
            request.method.encode(),
            self._url(request.url),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )

    def _url(self, url: Any) -> Any:
        target = url.raw_path
        if target not in self._urls:
            self._urls[target] = core_url(self.lanes.core, url)
        return self._urls[target]

    async def aclose(self) -> None:
        """Close the lanes."""
        await self.lanes.aclose()

    async def __aenter__(self) -> LaneTransport:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


async def read_bounded(chunks: AsyncIterable[bytes], close: Callable[[], Awaitable[None]]) -> bytes:
    """Read a body whole, or close it and raise `AnswerTooLargeError`."""
    kept: list[bytes] = []
    size, closed = 0, False
    # Too large: the stream is closed and then read to its end, for an async generator that is left half-way is
    # finished by the garbage collector, which trio rightly complains of.
    with contextlib.ExitStack() as ignored:
        async for chunk in chunks:
            size += len(chunk)
            if size <= MAX_ANSWER:
                kept.append(chunk)
            elif not closed:
                closed = True
                ignored.enter_context(contextlib.suppress(Exception))
                await close()
    if closed:
        raise AnswerTooLargeError
    return kept[0] if len(kept) == 1 else b"".join(kept)


def core_url(core: Any, url: Any) -> Any:
    """A URL of httpx, normalised as it is, for the package below it."""
    return core.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def core_module(library: Library) -> Any:
    """The package below httpx that owns connections and says what was sent."""
    return importlib.import_module({"httpx": "httpcore", "httpx2": "httpcore2"}[library])
