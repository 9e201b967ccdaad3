"""How fast and how many: the rate limiter, and the bound on tasks in flight."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

import anyio
import attrs

from ucaptcha_async.checks import Seconds, seconds, suggests, whole

from .gcra import HAIR, Pace
from .quota import Quota, Reading

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
    return whole("limit", value)


def _limit_or_none(value: int | None) -> int | None:
    return None if value is None else _limit(value)


def _window(value: Seconds) -> float:
    return seconds("window", value, minimum=0.01)


@attrs.define(eq=False)
class _Waiter:
    called: anyio.Event = attrs.field(factory=anyio.Event)


@suggests
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
    _pace: Pace = attrs.field(init=False, repr=False)
    _quota: Quota = attrs.field(init=False, repr=False)
    _line: OrderedDict[_Waiter, None] = attrs.field(factory=OrderedDict, init=False, repr=False)
    _departed: int = attrs.field(default=0, init=False, repr=False)
    _in_transit: int = attrs.field(default=0, init=False, repr=False)
    _throttled: int = attrs.field(default=0, init=False, repr=False)
    _paused_until: float = attrs.field(default=-math.inf, init=False, repr=False)
    _refusals: int = attrs.field(default=0, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._pace = Pace(self.limit, self.window)
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
        """
        if self._line or self._depart(now := anyio.current_time()) > now:
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
        reading = Reading.of(headers)
        self._quota.hear(reading, sent_at, received_at)
        # What was sent before the end of a pause says nothing about the time after it. (No pause ends beyond the
        # horizon, unless its clock was another event loop's.)
        known = sent_at + 2 * HAIR < self._paused_until <= received_at + self._pace.horizon
        if status == 429:
            self._throttled += 1
            if not known:
                self._pause(self._quota.resumes_at(reading, received_at), received_at)
        elif not known:
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
            waiting=len(self._line),
            in_transit=self._in_transit,
            throttled=self._throttled,
            others=self._quota.others,
            paused_until=None if self._paused_until == -math.inf else self._paused_until,
        )

    def _pause(self, until: float | None, now: float) -> None:
        if until is None:
            until = now + min(2.0 ** min(self._refusals, 60), self._pace.horizon)
        self._refusals += 1
        self._paused_until = until
        self._pace.pause(until)

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

    def _free(self, now: float) -> int:
        return int(min(self._pace.free(now), self._quota.free(now)))

    async def _wait(self) -> None:
        me = _Waiter()
        self._line[me] = None
        try:
            await self._turn(me)
        finally:
            was_first = self._first() is me
            del self._line[me]
            if was_first and self._line:
                self._first().called.set()

    async def _turn(self, me: _Waiter) -> None:
        """Wait behind others, sleep at the head of the line; return after the departure."""
        while self._first() is not me:
            await me.called.wait()
            if self._first() is me:
                break
            if self._depart(now := anyio.current_time()) <= now:
                return
            me.called = anyio.Event()
        now = anyio.current_time()
        while (due := self._depart(now)) > now:
            await self._sleep(now, due)
            now = anyio.current_time()
        self._call_those_who_may_go(now)

    async def _sleep(self, now: float, due: float) -> None:
        if len(self._line) > 1:  # under load, a timer for each departure costs more than the request's own share
            due = max(due, now + self._pace.patience)
        # Not for long at a time: what the service says meanwhile may let us go earlier.
        await anyio.sleep_until(min(due, now + self._pace.horizon / 20))

    def _first(self) -> _Waiter:
        return next(iter(self._line))

    def _call_those_who_may_go(self, now: float) -> None:
        """After a sleep several may go at once: wake them in one batch, or a busy loop would let one go per turn."""
        following = next(itertools.islice(self._line, 1, 2), None)
        if following is None or following.called.is_set():
            return
        for waiter in itertools.islice(self._line, 1, 1 + min(self._free(now), BATCH)):
            waiter.called.set()


@attrs.frozen(kw_only=True)
class InFlightStatistics:
    """How many places of a bound are taken.

    Attributes:
        limit: The most that may be taken at once; `None` for no bound.
        in_flight: How many are taken now.
        waiting: How many wait for a place.
    """

    limit: int | None
    in_flight: int
    waiting: int


@attrs.define(eq=False, on_setattr=attrs.setters.NO_OP)
class InFlight:
    """A bound on what is in flight: a freed place goes straight to the one who waited longest.

    Args:
        limit: The most places taken at once; `None` for no bound.

    Raises:
        ConfigurationError: `limit` is neither `None` nor a positive whole number.
    """

    _limit: int | None = attrs.field(default=None, converter=_limit_or_none, alias="limit")
    _in_flight: int = attrs.field(default=0, init=False, repr=False)
    _line: OrderedDict[anyio.Event, None] = attrs.field(factory=OrderedDict, init=False, repr=False)

    @property
    def limit(self) -> int | None:
        """The most places taken at once."""
        return self._limit

    async def acquire(self) -> None:
        """Wait for a place. A checkpoint only if there is none free."""
        if self._limit is None or self._in_flight < self._limit:
            self._in_flight += 1
            return
        given = anyio.Event()
        self._line[given] = None
        try:
            await given.wait()
        except BaseException:
            if given.is_set():
                self.release()
            else:
                del self._line[given]
            raise

    def release(self) -> None:
        """Give a place back, or straight to the first who waits."""
        if self._in_flight == 0:
            raise RuntimeError("released more often than acquired")
        if self._line:
            given, _ = self._line.popitem(last=False)
            given.set()
        else:
            self._in_flight -= 1

    def statistics(self) -> InFlightStatistics:
        """Say how many places are taken."""
        return InFlightStatistics(limit=self.limit, in_flight=self._in_flight, waiting=len(self._line))
