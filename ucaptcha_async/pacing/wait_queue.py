"""A line of waiting tasks: first come, first served."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from .event_loop import Signal, signal

T = TypeVar("T")


class WaitQueue(Generic[T]):
    """Tasks that wait to be called, in the order of their arrival; whoever calls hands something over.

    A task that is cancelled leaves the line. If it was called just before, what it was handed must not be lost:
    `returned` gets it back.

    Args:
        returned: Called with what was handed to a task that was cancelled before it could take it.
    """

    __slots__ = ("_handed", "_line", "_returned")

    def __init__(self, returned: Callable[[T], object]) -> None:
        self._returned = returned
        # By the place in the line, which is nothing but itself: what its task waits for, and what it was called with.
        self._line: OrderedDict[object, Signal] = OrderedDict()
        self._handed: dict[object, T] = {}

    def __len__(self) -> int:
        return len(self._line)

    async def wait(self) -> T:
        """Join the end of the line, and return what is handed over."""
        place = object()
        self._line[place] = signal()
        try:
            while (called := self._line.get(place)) is not None:
                await called.wait()
        except BaseException:
            if place in self._handed:
                self._returned(self._handed.pop(place))
            else:
                self._line.pop(place, None)
            raise
        return self._handed.pop(place)

    def call(self, handed: T, *, last: bool = False) -> bool:
        """Call the first of the line, or the last. `False` if nobody waits: then nothing was handed over."""
        if not self._line:
            return False
        place, called = self._line.popitem(last=last)
        self._handed[place] = handed
        called.set()
        return True

    def call_all(self, handed: T) -> None:
        """Call everybody who waits now."""
        for _ in range(len(self._line)):
            self.call(handed)

    def recall(self) -> list[T]:
        """Send those who were called and did not go on yet back to their places; return what they were handed."""
        recalled = list(self._handed.items())
        self._handed.clear()
        for place, _ in reversed(recalled):
            self._line[place] = signal()
            self._line.move_to_end(place, last=False)
        return [handed for _, handed in recalled]

    def clear(self) -> None:
        """Forget those who wait: their event loop has ended."""
        self._line.clear()
        self._handed.clear()
