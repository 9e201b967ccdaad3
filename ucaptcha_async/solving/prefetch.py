"""Tokens that are ready before they are needed: a stock that follows demand, inside one `async with` block."""

from __future__ import annotations

import copy
import math
from bisect import insort
from collections.abc import Awaitable, Callable
from decimal import Decimal
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
import attrs
from anyio.lowlevel import checkpoint_if_cancelled

from ucaptcha_async.checks import DEFAULT, ClientDefault, Seconds, is_number, seconds, time_limit, whole, wrong
from ucaptcha_async.errors import (
    AccountError,
    APIConnectionError,
    BudgetExceededError,
    ClientStateError,
    ConfigurationError,
    InvalidTaskError,
    SolveTimeoutError,
    UCaptchaError,
)
from ucaptcha_async.events import Event, TokenDelayed, TokenExpired, TokenReady, TokenTaken
from ucaptcha_async.json_values import EXACT
from ucaptcha_async.pacing.event_loop import current
from ucaptcha_async.pacing.wait_queue import WaitQueue
from ucaptcha_async.tasks import Solution, Task

from .block import BlockTasks
from .stock import Demand, RecentMean, level

S = TypeVar("S", bound=Solution)

STOPS = (AccountError, BudgetExceededError, InvalidTaskError, ConfigurationError, ClientStateError)
"""Errors that the next solve would meet, too."""

LEAD_TIME = 15.0
"""Seconds that a solve is believed to take before anything is known."""

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Seconds between failed solves: doubled while nothing succeeds, up to the longest."""


@attrs.frozen(kw_only=True)
class PrefetchSettings:
    """What one prefetch was asked to do, checked. All durations in seconds.

    Attributes:
        ready: The most tokens in stock, on average; and how many are begun on entry.
        lifetime: How long a token is accepted.
        min_remaining: How long a token must be good for when it is handed out.
        service_level: The share of `get`s to serve at once.
        max_under_way: The most solves under way; `None` for no bound.
        idle_after: Without a `get` for so long, nothing is renewed.
        timeout: For one solve, and the default for one `get`.
    """

    ready: int
    lifetime: float
    min_remaining: float
    service_level: float
    max_under_way: int | None
    idle_after: float
    timeout: float

    @classmethod
    def check(
        cls,
        task: Task[Solution],
        *,
        ready: int,
        lifetime: Seconds | None,
        min_remaining: Seconds | None,
        service_level: float,
        max_under_way: int | None,
        idle_after: Seconds | None,
        timeout: float,
    ) -> Self:
        """Check what was given, and fill in what was not.

        Raises:
            InvalidTaskError: It is no task, or one that shows a picture, which is not known in advance.
            ConfigurationError: A setting is out of its range, or the lifetime is unknown.
        """
        if not isinstance(task, Task):
            raise wrong("task", task, "a Task, for example RecaptchaV2(…) or Task('AnyType', …)")
        if _shows_a_picture(task):
            raise InvalidTaskError(
                f"task must not show a picture ({task.type}): nobody knows the next one beforehand; use client.solve",
                field="task",
            )
        life = task.lifetime if lifetime is None else seconds("lifetime", lifetime)
        if not life:
            allowed = f"given in seconds, above 0: nobody knows how long a {task.type} solution is accepted"
            raise wrong("lifetime", life, allowed, ConfigurationError)
        least = life / 3 if min_remaining is None else seconds("min_remaining", min_remaining)
        if least >= life:
            raise wrong("min_remaining", least, f"less than the lifetime ({life:g} s)", ConfigurationError)
        return cls(
            ready=whole("ready", ready),
            lifetime=life,
            min_remaining=least,
            service_level=_share("service_level", service_level),
            max_under_way=None if max_under_way is None else whole("max_under_way", max_under_way),
            idle_after=life if idle_after is None else seconds("idle_after", idle_after, allow_inf=True),
            timeout=timeout,
        )


def _shows_a_picture(task: Task[Solution]) -> bool:
    return any(name == "body" or name.startswith("image") for name in task.to_wire())


def _share(field: str, value: float) -> float:
    if not is_number(value) or not 0 < value < 1:
        raise wrong(field, value, "a number between 0 and 1, for example 0.95", ConfigurationError)
    return float(value)


@attrs.frozen(kw_only=True)
class PrefetchStatistics:
    """What a prefetch has done so far.

    Attributes:
        ready: Tokens in stock.
        under_way: Solves under way, those that pause after a failure included.
        waiting: Calls of `get` that wait.
        level: How many tokens are wanted in stock and under way together.
        demand: Calls of `get` per second, as estimated from the recent ones.
        lead_time: Mean seconds from the start of a solve to the token in stock.
        handed_out: Tokens that `get` returned.
        at_once: How many of them without a wait.
        mean_wait: Mean seconds that a returned `get` waited; `None` before the first.
        expired: Tokens that got too old in stock.
        wasted: What those cost, USD, as far as the service said.
    """

    ready: int
    under_way: int
    waiting: int
    level: int
    demand: float
    lead_time: float
    handed_out: int
    at_once: int
    mean_wait: float | None
    expired: int
    wasted: Decimal


def _concerns_all(error: UCaptchaError) -> bool:
    """Whether every further solve would meet the same error."""
    return isinstance(error, STOPS) or (isinstance(error, APIConnectionError) and not error.retryable)


@attrs.frozen(eq=False)
class _Token(Generic[S]):
    """A solution in stock, and the time from which it may not be handed out any more."""

    solution: S
    good_until: float


@attrs.define(eq=False)
class _Failures:
    """Solves that failed since the last success: the more in a row, the longer the pause."""

    in_a_row: int = 0
    last: UCaptchaError | None = None
    over: anyio.Event = attrs.field(factory=anyio.Event)
    _counted_at: float = -math.inf
    _until: float = -math.inf

    def add(self, error: UCaptchaError, began: float, now: float) -> float:
        """A solve failed. Returns the seconds to pause; those that ran side by side count as one failure."""
        if began >= self._counted_at:
            self.in_a_row += 1
            self._counted_at = now
        self.last = error
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.in_a_row - 1, 10))
        pause = max(pause, error.retry_after or 0.0)
        self._until = max(self._until, now + pause)
        return pause

    def pause(self, now: float) -> float:
        """Seconds that a new solve should pause, because nothing succeeds."""
        return max(0.0, self._until - now) if self.in_a_row > 1 else 0.0

    def end(self) -> None:
        """A solve succeeded: whoever pauses goes on."""
        if self.in_a_row:
            self.in_a_row, self.last = 0, None
            self.over.set()
            self.over = anyio.Event()


class Prefetch(Generic[S]):
    """Tokens that are ready before they are needed. Made by `AsyncClient.prefetch`; use it inside `async with`.

    Its tasks live in the block. Leaving it cancels the solves under way: paid tasks among them are in
    `client.abandoned`.

    Example:
        ```python
        import asyncio
        from ucaptcha_async import AsyncClient, Turnstile

        task = Turnstile(website_url="https://example.com/", website_key="0x4AAAAAAADnPIDROrmt1Wwj")

        async def main():
            async with AsyncClient() as client, client.prefetch(task, ready=3) as tokens:
                solution = await tokens.get()
                print(len(solution.token), tokens.statistics().at_once)

        asyncio.run(main())
        ```
    """

    def __init__(
        self,
        task_type: str,
        settings: PrefetchSettings,
        *,
        solve: Callable[[], Awaitable[tuple[S, float]]],
        solve_time: Callable[[], float | None],
        emit: Callable[..., object],
    ) -> None:
        self._task_type = task_type
        self._settings = settings
        self._solve = solve
        self._solve_time = solve_time
        self._emit = emit
        self._stage = "not entered"
        self._stock: list[_Token[S]] = []  # the oldest first
        self._line: WaitQueue[_Token[S] | Exception] = WaitQueue(self._take_back)
        self._under_way = 0
        self._refused = False
        self._failures = _Failures()
        self._handed_out = self._at_once = self._expired = 0
        self._waited, self._wasted = 0.0, Decimal(0)

    def __repr__(self) -> str:
        return f"<Prefetch {self._task_type} ready={len(self._stock)} under_way={self._under_way} {self._stage}>"

    # --- life ---------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._stage != "not entered":
            raise ClientStateError(f"the prefetch is {self._stage}: it can be entered once")
        loop = current()
        self._clock = loop.time
        self._demand = Demand(self._clock())
        self._lead_time = RecentMean(self._solve_time() or LEAD_TIME)
        self._usable = RecentMean(self._settings.lifetime - self._settings.min_remaining)
        self._due, self._sooner = math.inf, anyio.Event()
        self._tasks = BlockTasks(loop, self._close)
        self._stage = "open"
        self._tasks.start(self._watch_ages())
        self._settle()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()
        try:
            await self._tasks.leave(error)
        finally:
            self._under_way = 0
            self._drop_aged(self._clock())

    def _close(self) -> None:
        """Begin nothing more, and let nobody wait any longer."""
        self._stage = "closed"
        while self._line:
            self._line.call(ClientStateError("the prefetch was left while this get waited"))

    # --- what a program calls -----------------------------------------------------------------------------------------

    async def get(self, timeout: Seconds | ClientDefault | None = DEFAULT) -> S:
        """Take a token: at once, if one is ready. Else wait in line; first come, first served.

        It is good for `min_remaining` more seconds at least. Cancelling a `get` loses no token.

        Args:
            timeout: Seconds to wait at the most (`float` or `timedelta`); `None` for no limit; 0 takes a token only if
                one is ready. Default: the timeout of one solve.

        Raises:
            SolveTimeoutError: None came in time. Its `__cause__` is the last error of a solve, if there was one.
            AccountError: The account is refused.
            BudgetExceededError: The budget has no room.
            InvalidTaskError: The service refuses the task.
            APIConnectionError: A setting, of TLS or of a proxy, keeps requests from the service.
            ClientStateError: The block is not entered, or was left.
        """
        allowed = time_limit(timeout, self._settings.timeout)
        self._check_open()
        await checkpoint_if_cancelled()
        began = self._clock()
        self._demand.add(began)
        self._settle(joining=1)
        if self._stock:
            return self._hand_out(self._stock.pop(0), waited=0.0)
        with anyio.move_on_after(allowed):
            handed = await self._line.wait()
            if isinstance(handed, Exception):
                raise handed
            return self._hand_out(handed, waited=self._clock() - began)
        raise SolveTimeoutError(f"no token within {allowed:g} s", phase="queue") from self._failures.last

    def statistics(self) -> PrefetchStatistics:
        """What this prefetch has done so far."""
        entered = self._stage != "not entered"
        now = self._clock() if entered else 0.0
        return PrefetchStatistics(
            ready=len(self._stock),
            under_way=self._under_way,
            waiting=len(self._line),
            level=self._level(now) if entered else 0,
            demand=self._rate(now) if entered else 0.0,
            lead_time=self._lead_time.mean if entered else LEAD_TIME,
            handed_out=self._handed_out,
            at_once=self._at_once,
            mean_wait=self._waited / self._handed_out if self._handed_out else None,
            expired=self._expired,
            wasted=self._wasted,
        )

    @property
    def unused(self) -> tuple[S, ...]:
        """After the end: what was paid for and not used, and was still fresh then. Empty before."""
        return tuple(token.solution for token in self._stock) if self._stage == "closed" else ()

    # --- the stock ----------------------------------------------------------------------------------------------------

    def _take_back(self, handed: _Token[S] | Exception) -> None:
        """A `get` was cancelled before it could take a token: that goes to the next, or back."""
        if not isinstance(handed, Exception):
            self._put(handed)
            self._settle()

    def _hand_out(self, token: _Token[S], waited: float) -> S:
        self._handed_out += 1
        self._at_once += waited == 0
        self._waited += waited
        remaining = token.good_until + self._settings.min_remaining - self._clock()
        self._tell(TokenTaken, token.solution.task_id, waited=waited, remaining=remaining)
        return token.solution

    def _settle(self, joining: int = 0) -> None:
        """Drop what is too old, serve the line, and begin what is missing, for those too who are about to join it."""
        if self._stage != "open":
            return
        now = self._clock()
        self._drop_aged(now)
        while self._line and self._stock:
            self._line.call(self._stock.pop(0))
        missing = self._level(now) - self._position() + joining
        if self._settings.max_under_way is not None:
            missing = min(missing, self._settings.max_under_way - self._under_way)
        for _ in range(missing):
            self._under_way += 1
            self._tasks.start(self._bring())

    def _position(self) -> int:
        """What is in stock and under way, less what is waited for."""
        return len(self._stock) + self._under_way - len(self._line)

    def _level(self, now: float) -> int:
        """What `_position` should be."""
        settings, last = self._settings, self._demand.last
        if self._refused:
            return 0
        if last is None:
            return max(0, settings.ready - self._expired)  # begun on entry, once
        if now - last > settings.idle_after:
            return 0
        lead_time, usable = self._lead_time.mean, self._usable.mean
        wanted = level(self._rate(now), lead_time, usable, settings.service_level, settings.ready)
        return min(wanted, 1) if self._failures.in_a_row > 1 else wanted

    def _rate(self, now: float) -> float:
        return self._demand.rate(now, self._lead_time.mean)

    def _put(self, token: _Token[S]) -> None:
        insort(self._stock, token, key=lambda other: other.good_until)
        if token.good_until < self._due:
            self._sooner.set()

    def _drop_aged(self, now: float) -> None:
        while self._stock and self._stock[0].good_until <= now:
            self._expire(self._stock.pop(0))

    def _expire(self, token: _Token[S]) -> None:
        solution = token.solution
        self._expired += 1
        self._wasted = EXACT.add(self._wasted, solution.cost or Decimal(0))
        self._tell(TokenExpired, solution.task_id, cost=solution.cost)

    async def _watch_ages(self) -> None:
        """Renew what gets too old."""
        while True:
            self._sooner = anyio.Event()
            self._due = self._stock[0].good_until if self._stock else math.inf
            with anyio.move_on_after(max(0.0, self._due - self._clock())):
                await self._sooner.wait()
            self._settle()

    # --- what is under way --------------------------------------------------------------------------------------------

    async def _bring(self) -> None:
        """Bring one token into the stock, unless it is refused or not needed any more."""
        try:
            await self._attempts()
        finally:
            self._under_way -= 1
        self._settle()  # not when cancelled: then all end

    async def _attempts(self) -> None:
        lead_time = 0.0
        await self._pause(self._failures.pause(self._clock()))
        while True:
            began = self._clock()
            error: Exception
            try:
                solution, made_at = await self._solve()
            except Exception as caught:
                error = caught
                lead_time += self._clock() - began
            else:
                lead_time += self._clock() - began
                if self._arrived(solution, made_at, lead_time):
                    return
                error = SolveTimeoutError("the token was too old when it came", task_id=solution.task_id)
            if not isinstance(error, UCaptchaError) or _concerns_all(error):
                self._refuse(error)
                return
            delay = self._failures.add(error, began, self._clock())
            self._tell(TokenDelayed, error.task_id, reason=type(error).__name__, delay=delay)
            await self._pause(delay)
            if self._position() > self._level(self._clock()):
                return

    async def _pause(self, delay: float) -> None:
        """Wait for so long, or until another solve has succeeded."""
        if delay > 0:
            with anyio.move_on_after(delay):
                await self._failures.over.wait()

    def _arrived(self, solution: S, made_at: float, lead_time: float) -> bool:
        """Put a solution that was made at this time, or later, into the stock, unless it is too old already."""
        now = self._clock()
        self._refused = False
        self._lead_time.observe(now, lead_time)
        if solution.lifetime != self._settings.lifetime:
            solution = attrs.evolve(solution, lifetime=self._settings.lifetime)
        token = _Token(solution, made_at + self._settings.lifetime - self._settings.min_remaining)
        self._usable.observe(now, max(0.0, token.good_until - now))
        if token.good_until <= now:
            self._expire(token)
            return False
        self._failures.end()
        self._put(token)
        self._tell(TokenReady, solution.task_id, lead_time=lead_time)
        return True

    def _refuse(self, error: Exception) -> None:
        """The next solve would be refused as well: tell those in line for whom no other is under way."""
        self._refused = True
        while len(self._line) > self._under_way - 1:
            self._line.call(copy.copy(error) if isinstance(error, UCaptchaError) else error, last=True)

    def _check_open(self) -> None:
        if self._stage != "open":
            advice = "use it inside 'async with'" if self._stage == "not entered" else "make a new one"
            raise ClientStateError(f"the prefetch is {self._stage}: {advice}")

    def _tell(self, kind: type[Event], task_id: str | None, **details: Any) -> None:
        self._emit(kind, task_type=self._task_type, task_id=task_id, **details)
