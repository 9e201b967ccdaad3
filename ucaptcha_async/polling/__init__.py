"""When to ask next: settings, one task's clock, what is learned. Pure: no clock, no I/O, no event loop."""

from __future__ import annotations

from .clock import PollClock, Polling
from .history import SolveTimes

__all__ = [
    "PollClock",
    "Polling",
    "SolveTimes",
]
