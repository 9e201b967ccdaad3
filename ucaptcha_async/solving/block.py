"""The tasks of one `async with` block, without a task group: a group's scope would stay open in whoever reads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from ucaptcha_async.pacing.event_loop import Running, Spawn, Stopped, signal, wait_through


class BlockTasks:
    """Tasks that end with a block. A generator may yield inside it and be left there: its reader stays uncancelled.

    Args:
        spawn: Starts a task: that of the running `EventLoop`.
        ended: Called when the last task has ended.

    Attributes:
        over: Set when the last task has ended.
        broken: What came out of a task, a defect of ours or of the caller's own code; the others are cancelled then.
    """

    def __init__(self, spawn: Spawn, ended: Callable[[], object]) -> None:
        self.over = signal()
        self.broken: BaseException | None = None
        self._spawn = spawn
        self._ended = ended
        self._numbers = itertools.count()
        self._running: dict[int, Running] = {}
        self._leaving = False
        self._report = self._end  # one for all: each waiting task would hold one of its own

    def start(self, way: Coroutine[Any, Any, None]) -> None:
        """Start a task."""
        number = next(self._numbers)
        self._running[number] = running = self._spawn(way, self._report, number)
        if self._leaving:  # whoever starts it was cancelled, and has not heard of it yet
            running.cancel()

    def _end(self, number: int, error: BaseException | None) -> None:
        del self._running[number]
        if error is not None and not isinstance(error, Stopped) and self.broken is None:
            self.broken = error
            self._cancel()
        if not self._running:
            self.over.set()
            self._ended()

    def _cancel(self) -> None:
        self._leaving = True
        for running in list(self._running.values()):
            running.cancel()

    async def leave(self, error: BaseException | None) -> None:
        """Cancel the tasks, and wait for their end.

        Args:
            error: What the block's body raised: it goes before all that is found here.
        """
        self._cancel()
        try:
            await wait_through(self.over)
        except anyio.get_cancelled_exc_class():
            if error is None:
                raise  # else the error goes first; who cancelled will do it again at the next checkpoint
        finally:
            del self._report  # it leads back here
        if error is None and self.broken is not None:
            raise self.broken
