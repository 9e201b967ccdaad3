"""Virtual time for asyncio: a loop whose clock jumps to the next timer instead of waiting for it.

trio has this built in: `trio.testing.MockClock(autojump_threshold=0)`.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type, name-defined, unused-ignore]
    """Turns the time that the loop would have slept into time that has passed."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        ready = super().select(0)
        if not ready:
            self.skipped += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop with virtual time, for tests that would otherwise wait for minutes.

    Use it as `asyncio.Runner(loop_factory=VirtualLoop)`, or with anyio's pytest plugin as the backend
    `("asyncio", {"loop_factory": VirtualLoop})`. Threads and real sockets do not mix with it: the clock jumps
    past them.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """The loop's clock, in seconds: it moves only by what would have been slept."""
        return self._jumping.skipped
