"""What a task of asyncio awaits where it is to go on in the very turn of the event loop in which it is called."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any


class Waiter(asyncio.Future[None]):
    """A future for one task, which `call` lets go on at once.

    Other futures wake their task in the next turn of the loop. A request waits three times: for its time, for the rate
    limiter, for its answer. Where few requests are under way at a time, that would be three turns in which nothing else
    is done.
    """

    __slots__ = ("_context", "_go_on")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._go_on: Callable[[Waiter], object] | None = None

    def add_done_callback(self, function: Callable[[Any], object], /, *, context: Context | None = None) -> None:
        """Called by the task that awaits it."""
        if self._go_on is None and context is not None and not self.done():
            self._go_on, self._context = function, context
        else:
            super().add_done_callback(function, context=context)

    def cancel(self, msg: Any = None) -> bool:
        """Called where the task is cancelled."""
        cancelled = super().cancel(msg)
        if cancelled and self._go_on is not None:
            go_on, self._go_on = self._go_on, None
            self.get_loop().call_soon(go_on, self, context=self._context)
        return cancelled

    def call(self) -> None:
        """Let the task go on: now, or in the next turn if another one is running."""
        if self.done():
            return
        self.set_result(None)
        if self._go_on is None:
            return
        go_on, self._go_on = self._go_on, None
        if asyncio.current_task() is not None:
            self.get_loop().call_soon(go_on, self, context=self._context)
            return
        try:
            self._context.run(go_on, self)
        except (SystemExit, KeyboardInterrupt) as end:
            # They must reach the event loop: uvloop would take them for an error of a socket's protocol.
            self.get_loop().call_soon(_leave, end)


def _leave(end: BaseException) -> None:
    raise end


def wake(waiter: Waiter | None) -> None:
    """Call a waiter, if there is one."""
    if waiter is not None:
        waiter.call()
