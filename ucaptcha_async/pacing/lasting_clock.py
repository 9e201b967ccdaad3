"""A clock for what outlives its event loop."""

from __future__ import annotations

import math
import time

import attrs

from .event_loop import EventLoop


@attrs.define(eq=False)
class LastingClock:
    """The clock of the first event loop, carried on by those that follow, whose own clocks may start anywhere.

    Attributes:
        loop: The event loop that carries it now; `None` before the first.
        ahead: Seconds by which that loop's clock is ahead of this one.
    """

    loop: EventLoop | None = attrs.field(default=None, init=False)
    ahead: float = attrs.field(default=0.0, init=False)
    # What this clock and the machine's showed when the loop began to carry it.
    _followed_at: tuple[float, float] = attrs.field(default=(0.0, 0.0), init=False)

    def now(self) -> float:
        """What it shows, in seconds."""
        assert self.loop is not None
        return self.loop.time() - self.ahead

    def follow(self, loop: EventLoop, *, latest: float = -math.inf) -> None:
        """Let an event loop carry it from now on. It does not fall back behind `latest`, a time that was noted."""
        if self.loop is not None:
            if self.loop.identity is loop.identity:
                return
            shown, machine = self._followed_at
            self.ahead = loop.time() - max(latest, shown + time.monotonic() - machine)
        self.loop = loop
        self._followed_at = self.now(), time.monotonic()
