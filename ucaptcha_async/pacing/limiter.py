"""How fast: the rate limiter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum, auto
from typing import Protocol

import attrs

from ucaptcha_async.checks import Seconds, seconds, whole, wrong
from ucaptcha_async.errors import ClientStateError, ConfigurationError

from .event_loop import current
from .gcra import CLOCK_EPSILON, GCRA
from .lasting_clock import LastingClock
from .quota import Quota, Reading
from .wait_queue import WaitQueue

MOST = 1_000_000_000
"""The largest limit; what is more is no limit, and cannot be reckoned with."""

BATCH = 16
"""The most requests that are let go in one turn of the event loop: many at once would stall it."""


@attrs.frozen(kw_only=True)
class RateLimiterStatistics:
    """What a rate limiter has done so far.

    Attributes:
        limit: Departures allowed in any window.
        window: The length of the window, in seconds.
        departed: Requests let go so far.
        waiting: Requests that wait for their turn now.
        in_transit: Requests let go that were neither answered nor given up.
        throttled: Answers with HTTP 429.
        others: Requests per second that others who share the address are seen to send.
        paused_until: When the latest pause after a 429 ends or ended, on the event loop's clock; `None` if none was.
    """

    limit: int
    window: float
    departed: int
    waiting: int
    in_transit: int
    throttled: int
    others: float
    paused_until: float | None


class Limiter(Protocol):
    """What a client needs of a rate limiter: `acquire`, then exactly one of `observe` and `lost` for each request."""

    async def acquire(self) -> None:
        """Wait until one request may leave."""
        ...

    def observe(self, status: int, headers: Mapping[str, str], *, sent_at: float, received_at: float) -> None:
        """Hear an answer of the service: its HTTP status, and its headers with lower-case names."""
        ...

    def lost(self) -> None:
        """Hear that no answer came."""
        ...

    def statistics(self) -> RateLimiterStatistics:
        """Say what happened so far."""
        ...


def _limit(value: int) -> int:
    if whole("limit", value) > MOST:
        raise wrong("limit", value, f"a whole number from 1 to {MOST}", ConfigurationError)
    return value


def _window(value: Seconds) -> float:
    return seconds("window", value, minimum=0.01)


class _Turn(Enum):
    """What a waiter is called for."""

    DEPART = auto()
    """Its departure has been counted."""
    HEAD = auto()
    """It is the first of the line now."""


@attrs.define(eq=False, repr=False, on_setattr=attrs.setters.NO_OP)
class RateLimiter:
    """At most `limit` requests in every window of `window` seconds, wherever the window starts.

    One limiter may be shared by several clients of one event loop, and may be made before the loop runs. Waiters go in
    the order of their arrival, under load in small batches (which trio resumes in any order); a cancelled one gives its
    place to the next. No background task: the first of the line sleeps, the others wait for it.

    Args:
        limit: Requests per window. The service documents 10,000.
        window: Seconds (or a `timedelta`). The service documents 10 s.

    Raises:
        ConfigurationError: `limit` is not a positive whole number, or `window` is shorter than 10 ms.

    Source: docs/api/overview.
    """

    _limit: int = attrs.field(default=10_000, converter=_limit, alias="limit")
    _window: float = attrs.field(default=10.0, converter=_window, alias="window")
    _pace: GCRA = attrs.field(init=False, repr=False)
    _quota: Quota = attrs.field(init=False, repr=False)
    _line: WaitQueue[_Turn] = attrs.field(init=False, repr=False)
    _has_head: bool = attrs.field(default=False, init=False, repr=False)
    # Everything here is noted by it.
    _clock: LastingClock = attrs.field(factory=LastingClock, init=False, repr=False)
    _departed: int = attrs.field(default=0, init=False, repr=False)
    _in_transit: int = attrs.field(default=0, init=False, repr=False)
    _throttled: int = attrs.field(default=0, init=False, repr=False)
    _paused_until: float = attrs.field(default=-math.inf, init=False, repr=False)
    _refusals: int = attrs.field(default=0, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._pace = GCRA(self.limit, self.window)
        self._line = WaitQueue(self._returned)
        self._quota = Quota(self._pace)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(limit={self._limit}, window={self._window:g})"

    @property
    def limit(self) -> int:
        """Requests per window."""
        return self._limit

    @property
    def window(self) -> float:
        """The window's length in seconds."""
        return self._window

    async def acquire(self) -> None:
        """Wait until one request may leave.

        This is a checkpoint only if it has to wait: the request that follows is one in any case.

        Raises:
            ClientStateError: Another event loop that still runs uses this limiter.
        """
        loop = self._clock.loop
        if loop is None or not loop.runs_here():
            self._bind()
        if self._has_head or self._depart(now := self._clock.now()) > now:
            await self._wait()

    def observe(self, status: int, headers: Mapping[str, str], *, sent_at: float, received_at: float) -> None:
        """Hear an answer of the service.

        Args:
            status: The HTTP status.
            headers: The answer's headers, with lower-case names.
            sent_at: When the request was sent, in seconds on the event loop's clock.
            received_at: When the answer came, on the same clock.
        """
        self._in_transit -= 1
        sent_at, received_at = sent_at - self._clock.ahead, received_at - self._clock.ahead
        reading = Reading.of(headers)
        self._quota.hear(reading, sent_at, received_at)
        if status == 429:
            self._throttled += 1
            if not self._is_outdated(sent_at, received_at):
                self._pause(self._quota.resumes_at(reading, received_at), received_at)
        elif self._refusals and not self._is_outdated(sent_at, received_at):
            self._refusals = 0

    def lost(self) -> None:
        """Hear that no answer came to a request that was let go."""
        self._in_transit -= 1

    def statistics(self) -> RateLimiterStatistics:
        """Say what happened so far."""
        return RateLimiterStatistics(
            limit=self.limit,
            window=self.window,
            departed=self._departed,
            waiting=len(self._line) + self._has_head,
            in_transit=self._in_transit,
            throttled=self._throttled,
            others=self._quota.others,
            paused_until=None if self._paused_until == -math.inf else self._paused_until + self._clock.ahead,
        )

    def _is_outdated(self, sent_at: float, received_at: float) -> bool:
        """Whether the request was sent before the end of a pause: the answer says nothing about the time after it."""
        # No pause ends beyond the horizon, unless its clock was another event loop's.
        return sent_at + 2 * CLOCK_EPSILON < self._paused_until <= received_at + self._pace.horizon

    def _pause(self, until: float | None, now: float) -> None:
        if until is None:
            until = now + min(2.0 ** min(self._refusals, 60), self._pace.horizon)
        self._refusals += 1
        self._paused_until = until
        self._pace.pause(until)
        recalled = self._line.recall()
        for turn in recalled:
            if turn is _Turn.DEPART:
                self._undo()
        if _Turn.HEAD in recalled:
            self._line.call(_Turn.HEAD)

    def _depart(self, now: float) -> float:
        """When the next departure may happen; if that is `now`, it has happened."""
        due = self._due(now)
        if due <= now:
            self._pace.depart(now)
            self._quota.depart(now)
            self._departed += 1
            self._in_transit += 1
        return due

    def _due(self, now: float) -> float:
        return max(self._pace.ready_at(now), self._quota.ready_at(now))

    def _bind(self) -> None:
        """Belong to the running event loop; what departed before still counts, though another loop's clock told it."""
        before = self._clock.loop
        if before is not None and before.may_still_run():
            raise ClientStateError("another event loop, which still runs, uses this rate limiter: give each its own")
        if before is not None:
            self._line.clear()
            self._has_head, self._in_transit = False, 0
        self._clock.follow(current())

    async def _wait(self) -> None:
        """Wait behind others, or at the head of the line, where one sleeps for all."""
        if self._has_head and await self._line.wait() is _Turn.DEPART:
            return
        self._has_head = True
        try:
            now = self._clock.now()
            while (due := self._depart(now)) > now:
                await self._sleep(now, due)
                now = self._clock.now()
            self._let_others_go(now)
        finally:
            self._has_head = self._line.call(_Turn.HEAD)

    async def _sleep(self, now: float, due: float) -> None:
        if self._line:  # under load, a timer for each departure costs more than the request's own share
            due = max(due, now + self._pace.patience)
        # Not for long at a time: what the service says meanwhile may let us go earlier.
        assert self._clock.loop is not None
        await self._clock.loop.sleep(max(0.0, min(due, now + self._pace.horizon / 20) - now))

    def _let_others_go(self, now: float) -> None:
        """After a sleep several may go at once: one per turn of a busy event loop would be too slow."""
        for _ in range(min(BATCH, len(self._line))):
            if self._depart(now) > now:
                break
            self._line.call(_Turn.DEPART)

    def _undo(self) -> None:
        """A departure that was counted did not happen. Its slot is lost, its number is not."""
        self._departed -= 1
        self._in_transit -= 1

    def _returned(self, turn: _Turn) -> None:
        """A waiter was called, and cancelled before it could go on."""
        if turn is _Turn.DEPART:
            self._undo()
        else:
            self._has_head = self._line.call(_Turn.HEAD)
