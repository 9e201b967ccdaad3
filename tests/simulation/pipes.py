"""One direction of a connection: bytes under way, and how they are lost."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import anyio
import anyio.lowlevel
import attrs

TICK = 1e-9
"""Seconds that event loops may wake early."""


@attrs.define(eq=False)
class Pipe:
    """One direction of a connection: bytes under way, in order, each with the time of its arrival."""

    latency: Callable[[], float]
    sent: int = 0
    read: int = 0
    _under_way: deque[tuple[float, bytes]] = attrs.field(factory=deque)
    _last: float = 0.0
    _ended: bool = False
    _broken_at: float = math.inf
    _room: float = math.inf
    _cut: Callable[[], None] | None = None
    _news: anyio.Event = attrs.field(factory=anyio.Event)

    def send(self, data: bytes, delay: float = 0.0, *, at_once: bool = False) -> None:
        """Put bytes on their way; `at_once` lets them arrive right behind what is under way."""
        passing = data if self._room >= len(data) else data[: int(self._room)]
        self._room -= len(passing)
        if passing:
            self._add(passing, delay, at_once=at_once)
        if len(passing) < len(data) and self._cut is not None:
            cut, self._cut = self._cut, None
            cut()

    def end(self) -> None:
        """Nothing more will be sent."""
        self._add(b"", 0.0)
        self._ended = True

    def lose_after(self, room: int, then: Callable[[], None]) -> None:
        """Let only `room` more bytes through, then do something."""
        self._room, self._cut = room, then

    def lose_nothing(self) -> bool:
        """Let bytes through again. Returns whether some were to be lost and were not."""
        armed = self._cut is not None
        if armed:
            self._room, self._cut = math.inf, None
        return armed

    def break_off(self) -> None:
        """Reset: the other end hears of it after what is under way."""
        self._broken_at = min(self._broken_at, max(self._last, anyio.current_time() + self.latency()))
        self._ended = True
        self._tell()

    def broken(self) -> bool:
        """Whether the reader knows that the connection was reset."""
        return self._broken_at <= anyio.current_time() + TICK

    def readable(self) -> bool:
        """Whether a read would return at once."""
        return self.broken() or self._arrived()

    def waiting(self) -> str:
        """What a read would find: `NOTHING`, the `BYTES` that have arrived, or the end (`CLOSED`)."""
        if self._arrived():
            return "BYTES" if self._under_way[0][1] else "CLOSED"
        return "CLOSED" if self.broken() else "NOTHING"

    async def receive(self, most: int) -> bytes:
        """What has arrived; empty at the end. Raises `ConnectionResetError`."""
        while True:
            await anyio.lowlevel.checkpoint()
            if self._arrived():
                return self._take(most)
            if self.broken():
                raise ConnectionResetError
            first = self._under_way[0][0] if self._under_way else math.inf
            with anyio.CancelScope(deadline=min(first, self._broken_at)):
                await self._news.wait()

    def _arrived(self) -> bool:
        return bool(self._under_way) and self._under_way[0][0] <= anyio.current_time() + TICK

    def _take(self, most: int) -> bytes:
        at, data = self._under_way.popleft()
        if len(data) > most:
            self._under_way.appendleft((at, data[most:]))
        elif not data:
            self._under_way.append((at, data))  # the end stays the end
        self.read += len(data[:most])
        return data[:most]

    def _add(self, data: bytes, delay: float, *, at_once: bool = False) -> None:
        if self._ended:
            return
        takes = 0.0 if at_once else self.latency() + delay
        self._last = max(self._last, anyio.current_time() + takes)
        self._under_way.append((self._last, data))
        self.sent += len(data)
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()
