"""When to ask next: settings, and the state of one solve. Pure: no clock, no I/O, no event loop."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from random import Random

import attrs

from ucaptcha_async.checks import Seconds, is_number, seconds, whole, wrong
from ucaptcha_async.errors import ConfigurationError

from .history import History, SolveTimes
from .plans import ENOUGH, Plan

MAX_POLL_PRICE = 3600.0  # s; the price of a poll must stay within the reach of sums


def _positive(name: str, value: Seconds) -> float:
    number = seconds(name, value)
    if number == 0:
        raise wrong(name, value, "a number of seconds (float or timedelta) above 0", ConfigurationError)
    return number


def _ages(value: Sequence[Seconds]) -> tuple[float, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise wrong("schedule", value, "a sequence of seconds (float or timedelta)", ConfigurationError)
    return tuple(seconds("schedule", age) for age in value)


@attrs.frozen(kw_only=True, init=False)
class Polling:
    """When a task is asked for: by default learned per task type, at the least cost of polls and delay.

    Source: docs/api/ucaptcha/get-task-result (every 5 seconds).

    Args:
        interval: Seconds from the start of one poll of a task to the start of the next, at the least.
        first: Seconds from acceptance to the first poll, in place of what is learned.
        schedule: Seconds from acceptance to each poll, in place of what is learned; after the last, every `interval`.
        jitter: How far a poll that is not due at the earliest moment may move, as a share of `interval`.
        poll_price: Seconds of delay that one poll is worth: more of it polls less and learns of solutions later.
        max_spacing: Seconds to which repeated faults, or a `Retry-After`, may stretch the spacing. Default: four
            intervals.
        callback_net: Seconds between polls where results are pushed, as a net for those that get lost.
        memory: Solves remembered per task type.

    Raises:
        ConfigurationError: A setting is out of its range.
    """

    interval: float
    first: float | None
    schedule: tuple[float, ...] | None
    jitter: float
    poll_price: float
    max_spacing: float | None
    callback_net: float
    memory: int

    def __init__(
        self,
        *,
        interval: Seconds = 5.0,
        first: Seconds | None = None,
        schedule: Sequence[Seconds] | None = None,
        jitter: float = 0.1,
        poll_price: Seconds = 0.65,
        max_spacing: Seconds | None = None,
        callback_net: Seconds = 30.0,
        memory: int = 100,
    ) -> None:
        self.__attrs_init__(  # pyright: ignore[reportAttributeAccessIssue]  # attrs makes it
            interval=_positive("interval", interval),
            first=None if first is None else seconds("first", first),
            schedule=None if schedule is None else _ages(schedule),
            jitter=jitter,
            poll_price=seconds("poll_price", poll_price),
            max_spacing=None if max_spacing is None else _positive("max_spacing", max_spacing),
            callback_net=_positive("callback_net", callback_net),
            memory=whole("memory", memory, minimum=ENOUGH),
        )
        if not is_number(jitter) or not 0 <= jitter <= 1:
            raise wrong("jitter", jitter, "a number from 0 to 1", ConfigurationError)
        if self.poll_price > MAX_POLL_PRICE:
            allowed = f"a number of seconds of at most {MAX_POLL_PRICE:g}"
            raise wrong("poll_price", poll_price, allowed, ConfigurationError)
        if self.schedule is None:
            return
        if self.first is not None:
            raise ConfigurationError("first and schedule exclude each other", field="first")
        gaps = (late - early for early, late in zip(self.schedule, self.schedule[1:], strict=False))
        # A hair of tolerance: 0.3 - 0.2 is a little less than 0.1.
        if any(gap < self.interval * (1 - 1e-9) for gap in gaps):
            raise ConfigurationError(
                f"schedule must rise by at least the interval ({self.interval:g} s) each time", field="schedule"
            )


@attrs.define(eq=False)
class PollClock:
    """When one task is polled next: told what happens, it answers with `next_poll`.

    All times are those of one monotonic clock, in seconds. The driver waits until `next_poll`, calls `polled` as it
    sends, then one of `pending`, `faulted` and `ready`. Two polls never start closer than `interval`.

    Args:
        polling: The settings.
        times: The memory of solve times that it learns from and teaches.
        task_type: The task's type.
        accepted_at: When the service accepted the task; in the past for a task that is taken up again.
        rng: The source of jitter.
        net: Results are pushed; poll only as a net, every `callback_net` seconds, until `hinted`.
        resumed: Nobody knows when the task was accepted: poll at once, then every `interval`, and learn nothing.

    Attributes:
        next_poll: When the next poll may start.
        polls: Polls started.
        faults: Polls without a usable answer.
    """

    polling: Polling = attrs.field(repr=False)
    _times: SolveTimes = attrs.field(repr=False)
    _task_type: str
    accepted_at: float
    _rng: Random = attrs.field(repr=False)
    net: bool = attrs.field(default=False, kw_only=True)
    _resumed: bool = attrs.field(default=False, alias="resumed", kw_only=True)
    next_poll: float = attrs.field(init=False)
    polls: int = attrs.field(default=0, init=False)
    faults: int = attrs.field(default=0, init=False)
    _streak: int = attrs.field(default=0, init=False)
    _last: float = attrs.field(default=-math.inf, init=False)
    _others: float = attrs.field(default=-math.inf, init=False)
    _pending: float = attrs.field(default=0.0, init=False)
    _history: History = attrs.field(init=False, repr=False)
    _watched: bool = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._history = self._times.history(self._task_type)
        if self._resumed:
            self.polling = attrs.evolve(self.polling, first=None, schedule=())
        self._watched = not self._resumed and self._history.watch(self)
        first = 0.0 if self._resumed else self._first()
        self.next_poll = self.accepted_at + first + self._shift(first)

    def polled(self, now: float) -> None:
        """A poll starts."""
        self.polls += 1
        self._last = now
        self.next_poll = now + self.polling.interval

    def pending(self, received_at: float) -> None:
        """The poll was answered: not ready yet."""
        self._streak = 0
        self._pending = self._seen(received_at)
        if self._watched:
            self._history.pending(self, self._pending)
        soonest = self._last + self.polling.interval
        planned = self.accepted_at + self._after(self._last - self.accepted_at)
        # Polls at the earliest moment need no shift: they keep the one that the first got.
        self.next_poll = max(soonest, planned + self._shift(planned - soonest))

    def faulted(self, now: float, retry_after: float | None = None) -> None:
        """The poll failed, and is only late: by longer if that repeats, and by `retry_after` seconds at least."""
        self.faults += 1
        polling = self.polling
        longest = max(polling.interval, 4 * polling.interval if polling.max_spacing is None else polling.max_spacing)
        # The exponent is bounded, as 2.0 ** 1024 overflows.
        spacing = min(longest, polling.interval * 2.0 ** min(self._streak, 60))
        self._streak += 1
        wait = min(retry_after, longest) if retry_after is not None and retry_after >= 0 else 0.0
        due = max(self._last + spacing, now + wait)
        self.next_poll = max(due, min(due + self._rng.random() * polling.jitter * spacing, self._last + longest))

    @property
    def earliest(self) -> float:
        """When the next poll may start at the earliest."""
        return max(self.accepted_at, self._last + self.polling.interval, self._others)

    @property
    def stretched(self) -> bool:
        """Whether faults put the next poll off by more than the interval."""
        return self._streak > 1

    def brought_back(self, now: float) -> None:
        """The service answers again: poll as soon as the interval allows."""
        self._streak = 0
        self.next_poll = max(now, self.earliest)

    def not_before(self, time: float) -> None:
        """Somebody else polled the task: the next poll waits until then."""
        self._others = max(self._others, time)
        self.next_poll = max(self.next_poll, time)

    def interrupted(self, sent_at: float) -> None:
        """The wait was given up during a poll. The next one keeps the distance, by a little more each time, or short
        waits in a row might all end just before the answer.
        """
        self.polled(sent_at)
        self.next_poll += self._rng.random() * self.polling.interval / 5

    def ready(self, received_at: float, solve_time: float | None = None) -> None:
        """The poll was answered: ready, after `solve_time` seconds if the service says so."""
        if not self._watched:
            return
        self._watched = False
        slack = self.polling.interval / 5
        # What contradicts the polls is another clock or another unit, and no time to poll at.
        if solve_time is not None and self._pending - slack <= solve_time <= received_at - self.accepted_at + slack:
            self._history.ready(self, solve_time, solve_time)
        else:
            self._history.ready(self, self._pending, self._seen(received_at))

    def ended(self) -> None:
        """The solve ended without a solution: nothing is learned from it."""
        self._watched = False
        self._history.leave(self)

    def hinted(self, now: float) -> None:
        """Somebody says that the task is ready: poll as soon as the interval allows, and go on without a net."""
        self.net = False
        self.next_poll = max(now, self.earliest)

    def _plan(self) -> Plan:
        return self._history.plan(self.polling.interval, self.polling.poll_price)

    def _first(self) -> float:
        polling = self.polling
        if self.net:
            return max(polling.callback_net, self._plan().late or 0.0)
        if polling.first is not None:
            return polling.first
        if polling.schedule is not None:
            return polling.schedule[0] if polling.schedule else polling.interval
        return self._plan().first

    def _after(self, age: float) -> float:
        polling = self.polling
        if self.net:
            return age + max(polling.interval, polling.callback_net)
        if polling.schedule is None:
            return self._plan().after(age)
        # A jittered poll must not take the next of the schedule for the one after it.
        index = bisect_left(polling.schedule, age + polling.interval * (1 - polling.jitter))
        return polling.schedule[index] if index < len(polling.schedule) else age + polling.interval

    def _shift(self, room: float) -> float:
        return self._rng.uniform(-1, 1) * max(0.0, min(room, self.polling.jitter * self.polling.interval))

    def _seen(self, received_at: float) -> float:
        """The age of the task when the service looked: half-way between question and answer."""
        return (max(self._last, self.accepted_at) + received_at) / 2 - self.accepted_at
