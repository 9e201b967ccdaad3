"""The time that a call may take, and its end from outside.

A cancel scope of anyio around the whole call would be the shortest way to write it. Thousands of calls wait most of
their time for the next poll, and such a scope with its timer is a third of what the garbage collector has to look at
for each; opened anew for each request, it is a tenth of the CPU. So a call has one `TimeLimit`: it limits its steps,
each in a block, and is what the call waits for between them. One timer serves the steps of all calls: nearly all end
in time.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Awaitable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from .waiter import Waiter, wake

if TYPE_CHECKING:
    import trio


class TimeIsUp(Exception):  # noqa: N818 - callers see what it stands for
    """The deadline is over, or the call was ended. Never shown to callers."""


class TimeLimit(Protocol):
    """Ends a call at its deadline, or when somebody says so: `TimeIsUp` is raised in it.

    As a context manager it limits one step; steps are not nested, and all belong to one task.

    Attributes:
        deadline: On the event loop's clock.
        ended: Whether somebody has ended the call.
    """

    deadline: float
    ended: bool

    def end(self) -> None:
        """End the call: the step or the wait that is under way, and all that come later."""
        ...

    def check(self, now: float) -> None:
        """Raise `TimeIsUp` if the time is over by then, or the call was ended."""
        ...

    def alarm(self, when: float) -> Awaitable[None]:
        """What to await until some time or the call's end: a checkpoint in any case.

        `alarm_off` comes after it, and `check` after that.
        """
        ...

    def alarm_off(self) -> None:
        """The wait for the alarm is over, however it ended."""
        ...

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Watch:
    """The deadlines of all steps that are under way on an event loop of asyncio, behind one timer."""

    __slots__ = ("_steps", "_timer", "_timer_at", "context", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, context: contextvars.Context) -> None:
        self.loop = loop
        self.context = context
        self._steps: set[AsyncioTimeLimit] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def begin(self, step: AsyncioTimeLimit) -> None:
        """A step begins."""
        self._steps.add(step)
        if step.deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer(step.deadline)

    def done(self, step: AsyncioTimeLimit) -> None:
        """A step has ended. The timer is left alone: most steps are no reason to set it anew."""
        self._steps.discard(step)

    def _set_timer(self, when: float) -> None:
        self._timer_at = when
        self._timer = self.loop.call_at(when, self._look, context=self.context)

    def _look(self) -> None:
        now = max(self._timer_at, self.loop.time())  # a timer may come a little early
        self._timer, self._timer_at = None, math.inf
        late = [step for step in self._steps if step.deadline <= now]
        for step in late:
            self._steps.discard(step)
            step.end()
        if self._steps:
            self._set_timer(min(step.deadline for step in self._steps))


class AsyncioTimeLimit:
    """A `TimeLimit` on asyncio."""

    __slots__ = ("_cancelled", "_cancelling", "_task", "_timer", "_waiter", "_watch", "deadline", "ended")

    def __init__(self, watch: Watch, deadline: float) -> None:
        self.deadline = deadline
        self.ended = self._cancelled = False
        self._watch = watch
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._waiter: Waiter | None = None
        self._timer: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """End the call."""
        self.ended, task = True, self._task
        # Not from the step's own task: it would hit what comes after the step. Nor at the side of another's: a task
        # keeps one message for the two, and a scope of anyio must find its own.
        if task is not None and (task is asyncio.current_task() or task.cancelling() > self._cancelling):
            self._watch.loop.call_soon(self._cancel)
        else:
            self._cancel()
        wake(self._waiter)

    def check(self, now: float) -> None:
        """Raise `TimeIsUp` if it is over by then."""
        if self.ended or now >= self.deadline:
            raise TimeIsUp

    def alarm(self, when: float) -> Awaitable[None]:
        """What to await."""
        loop = self._watch.loop
        self._waiter = waiter = Waiter(loop)
        if self.ended:
            waiter.set_result(None)
        else:
            self._timer = loop.call_at(min(when, self.deadline), self, context=self._watch.context)
        return waiter

    def alarm_off(self) -> None:
        """It is over."""
        if self._timer is not None:
            self._timer.cancel()
        self._waiter = self._timer = None

    def __call__(self) -> None:
        """The alarm rings. A method of another name would be one more object for each call that waits."""
        self._timer = None
        wake(self._waiter)

    def __enter__(self) -> None:
        if self.ended:
            raise TimeIsUp
        self._task = task = asyncio.current_task()
        assert task is not None
        self._cancelling = task.cancelling()
        if self.deadline < math.inf:
            self._watch.begin(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        self._watch.done(self)
        if not self._cancelled:
            return
        self._cancelled = False
        assert task is not None
        # As `asyncio.timeout` does it: a cancellation by somebody else goes first.
        if task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise TimeIsUp

    def _cancel(self) -> None:
        """Cancel the step that is under way."""
        if self._task is not None and not self._cancelled:
            self._cancelled = True
            self._task.cancel()


class TrioTimeLimit:
    """A `TimeLimit` on trio."""

    __slots__ = ("_scope", "deadline", "ended")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.ended = False
        self._scope: trio.CancelScope | None = None

    def end(self) -> None:
        """End the call."""
        self.ended = True
        if self._scope is not None:
            self._scope.cancel()

    def check(self, now: float) -> None:
        """Raise `TimeIsUp` if it is over by then."""
        if self.ended or now >= self.deadline:
            raise TimeIsUp

    async def alarm(self, when: float) -> None:
        """Wait."""
        import trio

        self._scope = trio.CancelScope(deadline=min(when, self.deadline))
        if self.ended:
            self._scope.cancel()
        with self._scope:
            await trio.sleep_forever()

    def alarm_off(self) -> None:
        """It is over."""
        self._scope = None

    def __enter__(self) -> None:
        import trio

        if self.ended:
            raise TimeIsUp
        self._scope = trio.CancelScope(deadline=self.deadline)
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        scope, self._scope = self._scope, None
        assert scope is not None
        if scope.__exit__(kind, error, traceback) and error is not None:  # trio's says so of a good end, too
            raise TimeIsUp
