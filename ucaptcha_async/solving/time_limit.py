"""The time that a call may take, and its end from outside.

A cancel scope around the whole call would be the shortest way to write it. A call waits most of its time for its next
poll, thousands of them do, and a scope with its timer is a third of what the garbage collector has to look at for each.
So a scope is open only around a step that may take any time; the wait between two steps is an alarm.
"""

from __future__ import annotations

import math
from types import TracebackType

import anyio
import attrs

from ucaptcha_async.pacing.event_loop import Alarm, EventLoop


class TimeIsUp(Exception):  # noqa: N818 - callers see what it stands for
    """The deadline is over, or the call was stopped. Never shown to callers."""


@attrs.define(eq=False)
class TimeLimited:
    """A call that ends at a deadline, or when it is stopped: `TimeIsUp` is raised in it.

    Attributes:
        deadline: On the event loop's clock.
        stopped: Whether somebody has ended it.
        alarm: What it waits for between two steps.
    """

    deadline: float = attrs.field(default=math.inf, init=False)
    stopped: bool = attrs.field(default=False, init=False)
    alarm: Alarm | None = attrs.field(default=None, init=False)
    step: anyio.CancelScope | None = attrs.field(default=None, init=False)

    def stop(self) -> None:
        """End it, because the client closes or drains."""
        self.stopped = True
        if self.step is not None:
            self.step.cancel()
        if self.alarm is not None:
            self.alarm.ring()

    def check_time(self, now: float) -> None:
        """Raise `TimeIsUp` if it is over by then, or stopped."""
        if self.stopped or now >= self.deadline:
            raise TimeIsUp

    def set_alarm(self, loop: EventLoop, when: float) -> Alarm:
        """What to await until some time or the call's end, with `clear_alarm` after it and `check_time` after that."""
        alarm = self.alarm = loop.alarm(min(when, self.deadline))
        if self.stopped:
            alarm.ring()
        return alarm

    def clear_alarm(self) -> None:
        """The wait for the alarm is over, however it ended."""
        if self.alarm is not None:
            self.alarm.off()
            self.alarm = None

    def in_time(self) -> InTime:
        """Do one step in this block."""
        return InTime(self)


class InTime:
    """One step of a call: its end is that of the call."""

    __slots__ = ("_call", "_scope")

    def __init__(self, call: TimeLimited) -> None:
        self._call = call
        self._scope = anyio.CancelScope(deadline=call.deadline)

    def __enter__(self) -> None:
        if self._call.stopped:
            raise TimeIsUp
        self._scope.__enter__()
        self._call.step = self._scope

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._call.step = None
        if self._scope.__exit__(kind, error, traceback) and error is not None:  # trio's says so of a good end, too
            raise TimeIsUp
