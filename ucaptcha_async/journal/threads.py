"""Work in a thread that is always waited for."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")


class Job(Generic[T]):
    """One piece of work in a worker thread.

    A shield of anyio does not stop asyncio's own `Task.cancel()`, which `asyncio.wait_for` and `asyncio.TaskGroup`
    use: the caller would go on while the thread still works. So an interrupted caller comes back to wait for the end.

    Args:
        work: What to do.
        lock: Held while it is done, so that one piece of work is done at a time.
    """

    def __init__(self, work: Callable[[], T], lock: Lock) -> None:
        self._work = work
        self._lock = lock
        self._result: list[T] = []
        self._error: BaseException | None = None

    def result(self) -> T:
        """What the work returned or raised, once it has ended."""
        if self._error is not None:
            raise self._error
        return self._result[0]

    async def through(self, limiter: anyio.CapacityLimiter) -> BaseException | None:
        """Do the work and wait for its end.

        Returns:
            The cancellation that came meanwhile and has yet to be raised.
        """
        interruption = None
        while not self._ended:
            try:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._run, limiter=limiter)
            except anyio.get_cancelled_exc_class() as cancelled:
                interruption = cancelled
        return interruption

    @property
    def _ended(self) -> bool:
        return bool(self._result) or self._error is not None

    def _run(self) -> None:
        with self._lock:
            if self._ended:
                return
            try:
                self._result.append(self._work())
            except BaseException as error:
                self._error = error
