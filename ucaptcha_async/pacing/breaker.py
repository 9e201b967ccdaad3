"""Stops submits when the account as a whole is refused, and holds them while the service does not speak."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import attrs

from ucaptcha_async.errors import AccountError, UCaptchaError

from .event_loop import EventLoop
from .wait_queue import WaitQueue

SCOUT_WAIT = 2.0
"""Seconds that other submits wait for the first one, which shows whether the account is good."""

FOREIGN = 3
"""Submits in a row whose answer was not the protocol's, after which only one at a time goes out."""

LONGEST_HOLD = 30.0
"""Seconds between two submits, at the most, while the service does not speak its protocol."""


@attrs.define(eq=False)
class Breaker:
    """Knows whether the account is good, and whether it is the service that answers.

    Until the service has accepted a task, submits wait a moment for the first of them: a wrong key is then refused
    once, and not as many times as there are solves. Once the account is refused, every submit fails at once with
    the same error, until `reset` is called or, with `reset_after`, one probe succeeds.

    An answer that is not the protocol's (a login page, a gateway) leaves a submit's fate unknown. So until the service
    has answered in its own protocol, and again after three such answers in a row, one submit at a time goes out, with
    growing pauses, and the others wait.

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
    _scout: anyio.Event | None = None
    _scout_until: float = 0.0
    _head: bool = False
    _line: WaitQueue[None] = attrs.field(init=False)
    _probing: bool = False

    def __attrs_post_init__(self) -> None:
        self._line = WaitQueue(lambda _: self._next())

    async def check(self, probe: Callable[[], Awaitable[object]]) -> None:
        """Let a submit pass, or raise the account's error.

        Args:
            probe: A call that costs nothing and fails while the account is refused.

        Raises:
            AccountError: The account was refused before. No request was made.
        """
        if self._known_good:
            return
        if self.error is None:
            await self._follow()
        if self.error is not None:
            await self._probe(probe)
            if self.error is not None:
                raise self._again(self.error)

    def accepted(self) -> None:
        """The service has accepted a task."""
        self._spoke()
        self._guess = None
        if self.error is None:
            self._known_good = True
        self.stand_down()

    def refused(self, error: UCaptchaError, *, certain: bool) -> None:
        """The service refused a submit, in its own protocol.

        Args:
            error: What it said.
            certain: Whether the code is a known one. A guessed account error counts once it repeats.
        """
        self._spoke()
        if isinstance(error, AccountError) and (certain or self._guess is not None):
            self.error, self._known_good = error, False
            self._opened_at = self.loop.time()
        elif isinstance(error, AccountError):
            self._guess = error
        self.stand_down()

    def foreign(self) -> None:
        """A submit was answered, and not in the service's protocol."""
        self._foreign += 1
        if not self._speaks or self._foreign >= FOREIGN:
            self._known_good = False
            if not self._holds:
                self._holds = True
                self.held(True)
        self._scout_until = self.loop.time() + min(LONGEST_HOLD, 2.0 ** min(self._foreign - 1, 10))
        self.stand_down()

    def stand_down(self) -> None:
        """Let those go who wait for the first submit: it ended, or was never made."""
        if self._scout is not None:
            self._scout.set()
            self._scout = None

    def reset(self) -> None:
        """Let submits pass again."""
        self.error = self._guess = None
        self._known_good = False
        self.stand_down()

    def _spoke(self) -> None:
        self._speaks, self._foreign = True, 0
        if self._holds:
            self._holds = False
            self.held(False)

    async def _follow(self) -> None:
        """Be the first, or wait for it. Those who waited go on one after the other: a stampede would stall the loop."""
        if self._head:
            await self._line.wait()
        self._head = True
        try:
            await self._wait_for_scout()
            if not self._known_good and self.error is None:
                self._scout = anyio.Event()
                self._scout_until = self.loop.time() + SCOUT_WAIT
        finally:
            self._next()

    async def _wait_for_scout(self) -> None:
        while not self._known_good and self.error is None:
            if self._scout is None:
                if not self._holds or (pause := self._scout_until - self.loop.time()) <= 0:
                    return
                await self.loop.sleep(pause)
            elif self._holds:
                await self._scout.wait()
            else:
                with anyio.move_on_after(max(0.0, self._scout_until - self.loop.time())):
                    await self._scout.wait()
                    continue
                if not self._holds:
                    return

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
