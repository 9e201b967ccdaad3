"""Stops submits when the account as a whole is refused, and holds them while the service does not speak."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import anyio
import attrs

from ucaptcha_async.errors import AccountError, UCaptchaError

from .event_loop import EventLoop
from .wait_queue import WaitQueue

SCOUT_WAIT = 2.0
"""Seconds that other submits wait for the first one, which shows whether the account is good, if it is known that it is
the service that answers.
"""

FOREIGN = 3
"""Submits in a row whose answer was not the protocol's, after which only one at a time goes out."""

LONGEST_HOLD = 30.0
"""Seconds between two submits, at the most, while the service does not speak its protocol."""


@attrs.define(eq=False)
class Breaker:
    """Knows whether the account is good, and whether it is the service that answers.

    Until the service has accepted a task, submits wait for the first of them: a wrong key is then refused once, and not
    as many times as there are solves. Once the account is refused, every submit fails at once with the same error,
    until `reset` is called or, with `reset_after`, one probe succeeds.

    An answer that is not the protocol's (a login page, a gateway) leaves a submit's fate unknown. So until the service
    has answered in its own protocol, and again after three such answers in a row, one submit at a time goes out, after
    such answers with growing pauses, and the others wait: those, too, that passed before and have not left yet.

    Each submit is known by an object of its own, `who`.

    Attributes:
        reset_after: Seconds after which one probe may close the breaker again; `None`: only by hand.
        held: Called when submits begin to be held, and when they are let go again.
        loop: The event loop, once the client is entered.
        error: The refusal that opened the breaker, or `None`.
    """

    reset_after: float | None = None
    held: Callable[[bool], object] = lambda held: None
    loop: EventLoop = attrs.field(init=False)
    error: AccountError | None = None
    _opened_at: float = 0.0
    _known_good: bool = False
    _speaks: bool = False
    _foreign: int = 0
    _guess: AccountError | None = None
    _holds: bool = False
    _scouts: set[object] = attrs.field(factory=set)
    _scouted_at: float = 0.0
    _pause_until: float = -math.inf
    _news: anyio.Event | None = None
    _head: bool = False
    _line: WaitQueue[None] = attrs.field(init=False)
    _probing: bool = False

    def __attrs_post_init__(self) -> None:
        self._line = WaitQueue(lambda _: self._next())

    def admits(self, who: object) -> bool:
        """Whether a submit may leave now. To be asked again right before it does."""
        return self._known_good or who in self._scouts

    async def check(self, who: object, probe: Callable[[], Awaitable[object]]) -> None:
        """Wait until a submit may leave, or raise the account's error. `stand_down` must follow at its end.

        Args:
            who: The submit.
            probe: A call that costs nothing and fails while the account is refused.

        Raises:
            AccountError: The account was refused before. No request was made.
        """
        while not self.admits(who):
            if self.error is None:
                await self._follow(who)
                continue
            await self._probe(probe)
            if self.error is not None:
                raise self._again(self.error)

    def accepted(self) -> None:
        """The service has accepted a task."""
        self._spoke()
        self._guess = None
        if self.error is None:
            self._known_good = True
        self._tell()

    def answered(self, refusal: AccountError | None, *, certain: bool) -> None:
        """The service answered a submit, in its own protocol, and took no task.

        Args:
            refusal: What it said of the account, if it refused that.
            certain: Whether the code is a known one. A guessed account error counts once it repeats.
        """
        self._spoke()
        if refusal is not None and (certain or self._guess is not None):
            self.error, self._known_good = refusal, False
            self._opened_at = self.loop.time()
            self._scouts.clear()
        elif refusal is not None:
            self._guess = refusal
        self._tell()

    def foreign(self) -> None:
        """A submit was answered, and not in the service's protocol."""
        self._foreign += 1
        if not self._speaks or self._foreign >= FOREIGN:
            self._known_good = False
            if not self._holds:
                self._holds = True
                self.held(True)
        self._pause_until = self.loop.time() + min(LONGEST_HOLD, 2.0 ** min(self._foreign - 1, 10))

    def stand_down(self, who: object) -> None:
        """A submit has been answered, or has come to another end."""
        self._scouts.discard(who)
        self._tell()

    def reset(self) -> None:
        """Let submits pass again."""
        self.error = self._guess = None
        self._known_good = False
        self._tell()

    def _spoke(self) -> None:
        self._speaks, self._foreign = True, 0
        if self._holds:
            self._holds = False
            self.held(False)

    def _tell(self) -> None:
        """Let the first of the line look again."""
        if self._news is not None:
            self._news.set()

    async def _follow(self, who: object) -> None:
        """Be the first, or wait for it. Those who waited go on one after the other: a stampede would stall the loop."""
        if self._head:
            await self._line.wait()
        self._head = True
        try:
            await self._wait_for_scout()
            if not self._known_good and self.error is None:
                self._scouts.add(who)
                self._scouted_at = self.loop.time()
        finally:
            self._next()

    async def _wait_for_scout(self) -> None:
        while not self._known_good and self.error is None:
            wait = self._wait()
            if wait <= 0:
                return
            self._news = news = anyio.Event()
            with anyio.move_on_after(wait):
                await news.wait()

    def _wait(self) -> float:
        """Seconds until the next submit may go, unless there is news."""
        if not self._scouts:
            return self._pause_until - self.loop.time() if self._holds else 0.0
        one_at_a_time = self._holds or not self._speaks
        return math.inf if one_at_a_time else self._scouted_at + SCOUT_WAIT - self.loop.time()

    def _next(self) -> None:
        self._head = self._line.call(None)

    async def _probe(self, probe: Callable[[], Awaitable[object]]) -> None:
        due = self.reset_after is not None and self.loop.time() >= self._opened_at + self.reset_after
        if not due or self._probing:
            return
        self._probing = True
        try:
            await probe()
        except UCaptchaError:
            self._opened_at = self.loop.time()
        else:
            self.reset()
        finally:
            self._probing = False

    @staticmethod
    def _again(error: AccountError) -> AccountError:
        message = f"{error.message}; no further task is submitted until the breaker is reset"
        return type(error)(message, error_code=error.error_code)
