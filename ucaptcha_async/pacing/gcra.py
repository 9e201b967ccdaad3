"""The arithmetic of our own pace: pure state on a monotonic clock that is passed in (seconds), no event loop.

What runs for every request compares by hand: `max` costs several times as much.
"""

from __future__ import annotations

import bisect
import math
from array import array

import attrs

SERVICE_WINDOW = 10.0
"""The length of the service's own windows as it documents them, in seconds. Source: docs/api/overview."""

CLOCK_EPSILON = 1e-7
"""Seconds by which event loops may wake early and sums be rounded. Waiting for so little might spin for ever."""


def not_before(now: float, due: float) -> float:
    """`due`, or `now` if that is later, or so little earlier that it makes no difference."""
    return due if due > now + CLOCK_EPSILON else now


@attrs.define(eq=False)
class Departures:
    """When the latest requests left.

    Args:
        keep: How many to remember, at least.
    """

    keep: int
    total: int = attrs.field(default=0, init=False)
    _times: array[float] = attrs.field(factory=lambda: array("d"), init=False)

    def add(self, now: float) -> None:
        """Note a departure."""
        if len(self._times) >= 2 * self.keep:
            del self._times[: -self.keep]
        self._times.append(now)
        self.total += 1

    def kept_ago(self) -> float:
        """When the departure left that was the `keep`-th before the next one."""
        return self._times[-self.keep] if len(self._times) >= self.keep else -math.inf

    def until(self, time: float) -> float:
        """How many had left at `time`. Of those that left at that very moment, half."""
        left, right = bisect.bisect_left(self._times, time), bisect.bisect_right(self._times, time)
        return self.total - len(self._times) + (left + right) / 2

    def forget(self) -> None:
        """Forget when they left, not how many."""
        del self._times[:]


@attrs.define(eq=False)
class GCRA:
    """At most `limit` departures in every half-open window of `window` seconds, wherever it starts, and those spread.

    The promise is kept by the log: a departure waits until the `limit`-th before it is a window ago. Alone that would
    send a whole window's worth at once; so a reservation clock spaces departures by `interval` on average, and lets
    `burst` go at once after a rest, or when a busy event loop was late: a hundredth of the limit. Its speed is a
    hundredth below the limit (for limits of 100 or more), so that a service which counts arrivals in windows of its
    own sees no more than the limit when the network delivers some of them late.

    Args:
        limit: Departures per window.
        window: The length of the window, in seconds.
    """

    limit: int
    window: float
    departures: Departures = attrs.field(init=False)
    #: Nothing that is known about the future reaches farther than this, in seconds.
    horizon: float = attrs.field(init=False)
    interval: float = attrs.field(init=False)
    burst: int = attrs.field(init=False)
    #: How late a departure may be at little loss, in seconds: what the burst makes good.
    patience: float = attrs.field(init=False)
    _span: float = attrs.field(init=False)
    _credit: float = attrs.field(init=False)
    _next: float = attrs.field(default=-math.inf, init=False)

    def __attrs_post_init__(self) -> None:
        self.departures = Departures(self.limit)
        self.horizon = max(self.window, SERVICE_WINDOW)
        # A thousandth more than the window: a request is written a moment after its slot was taken, clocks are rounded.
        self._span = self.window * 1.001
        self.interval = self._span / (self.limit - self.limit // 100)
        self.burst = max(2, self.limit // 100)
        self._credit = (self.burst - 1) * self.interval
        self.patience = min(self._credit / 10, self.window / 1000)

    def ready_at(self, now: float) -> float:
        """When the next departure may happen: `now`, or a later time."""
        due, counted = self._next - self._credit, self.departures.kept_ago() + self._span
        if counted > due:
            due = counted
        if due <= now:
            return now
        if due - now > 2 * self.horizon:  # another event loop with another clock: what is known says nothing
            self._next = due = -math.inf
            self.departures.forget()
        return not_before(now, due)

    def depart(self, now: float) -> None:
        """Count one departure. The caller has asked `ready_at` at the same `now`."""
        if self._next < now:
            self._next = now
        self._next += self.interval
        self.departures.add(now)

    def pause(self, until: float) -> None:
        """Nothing departs before `until`; then one does, and the rest follow at their pace, without a burst."""
        self._next = max(self._next, until + self._credit)
