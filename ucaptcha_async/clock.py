"""The arithmetic of pacing: pure state on a clock that is passed in, no I/O and no event loop."""

from __future__ import annotations

import math

import attrs


@attrs.define(eq=False)
class Pace:
    """A reservation clock that keeps `limit` departures per `window` seconds, wherever the window starts.

    Departures are spaced by `interval` on average, and up to `burst` may go at once after a rest. With
    `interval = window / (limit - burst + 1)` no half-open window holds more than
    `burst + ceil(window / interval) - 1 = limit` departures. A burst of a hundredth of the limit lets a busy event loop
    be late by a hundredth of the window without losing anything, and costs a hundredth of the limit.

    All times are seconds on one monotonic clock.
    """

    limit: int
    window: float
    burst: int = attrs.field(init=False)
    interval: float = attrs.field(init=False)
    _next: float = attrs.field(default=-math.inf, init=False)

    def __attrs_post_init__(self) -> None:
        self.burst = max(1, self.limit // 100)
        # A thousandth more than the window: a request is written a moment after its slot was taken, clocks are rounded.
        self.interval = self.window * 1.001 / (self.limit - self.burst + 1)

    @property
    def _credit(self) -> float:
        return (self.burst - 1) * self.interval

    @property
    def _early(self) -> float:
        """Event loops wake a little early; waiting for the rest might spin on a rounded clock."""
        return min(1e-6, self.window * 1e-5)

    def ready_at(self, now: float) -> float:
        """When the next departure may happen: `now`, or a later time."""
        due = self._next - self._credit
        if due - now > 3 * self.window:
            self._next = due = -math.inf  # another event loop with another clock: what is known says nothing
        return now if due <= now + self._early else due

    def free(self, now: float) -> int:
        """How many may depart at `now`, all at once."""
        if self.ready_at(now) > now:
            return 0
        return 1 + int((now + self._early - max(self._next, now) + self._credit) / self.interval)

    def depart(self, now: float) -> None:
        """Count one departure. The caller has asked `ready_at` at the same `now`."""
        self._next = max(self._next, now) + self.interval

    def pause(self, until: float) -> None:
        """Nothing departs before `until`; then one does, and the rest follow at their pace, without a burst."""
        self._next = max(self._next, until + self._credit)
