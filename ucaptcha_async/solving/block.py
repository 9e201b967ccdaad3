"""The tasks of one `async with` block, without a task group: a group's scope would stay open in whoever reads."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from ucaptcha_async.pacing.event_loop import EventLoop, Running, Stopped, raised, signal, wait_through


class BlockTasks:
    """Tasks that end with a block. A generator may yield inside it and be left there: its reader stays uncancelled.

    Args:
        loop: The running event loop.
        ended: Called when the last task has ended.

    Attributes:
        over: Set when the last task has ended.
        broken: What came out of a task, a defect of ours or of the caller's own code; the others are cancelled then.
    """

    def __init__(self, loop: EventLoop, ended: Callable[[], object]) -> None:
        self.over = signal()
        self.broken: BaseException | None = None
        self._loop = loop
        self._ended = ended
        self._running: dict[Running, Running] = {}
        self._leaving = False
        self._spawn = loop.spawner(self._end)

    def start(self, way: Coroutine[Any, Any, None], handle: Running | None = None) -> None:
        """Start a task.

        Args:
            way: What it does.
            handle: What cancels it. Default: the task as a whole is cancelled.
        """
        running = self._spawn(way)
        self._running[running] = handle or running
        if self._leaving:  # whoever starts it was cancelled, and has not heard of it yet
            self._loop.once_begun(self._running[running].cancel)

    def _end(self, running: Running, error: BaseException | None) -> None:
        del self._running[running]
        if error is not None and not (self._leaving and isinstance(error, Stopped)) and self.broken is None:
            self.broken = raised(error)
            self._cancel()
        if not self._running:
            self.over.set()
            self._ended()

    def _cancel(self) -> None:
        if not self._leaving:
            self._leaving = True
            for running in self._running.values():
                self._loop.once_begun(running.cancel)

    async def leave(self, error: BaseException | None) -> None:
        """Cancel the tasks, and wait for their end.

        asyncio's own `Task.cancel()`, which comes only once, is raised when they have ended.

        Args:
            error: What the block's body raised: it goes before all that is found here.
        """
        self._cancel()
        try:
            await wait_through(self.over)
        finally:
            del self._spawn  # it leads back here
        if error is None and self.broken is not None:
            raise self.broken
