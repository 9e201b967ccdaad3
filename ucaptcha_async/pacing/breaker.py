"""Stops submits when the account as a whole is refused, instead of failing thousands one by one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable

import anyio
import attrs

from ucaptcha_async.errors import AccountError, UCaptchaError

SCOUT_WAIT = 2.0
"""Seconds that other submits wait for the first one, which shows whether the account is good."""


@attrs.define(eq=False)
class Breaker:
    """Knows whether the account is good.

    Until the service has accepted a task, submits wait a moment for the first of them: a wrong key is then refused
    once, and not as many times as there are solves. Once the account is refused, every submit fails at once with
    the same error, until `reset` is called or, with `reset_after`, one probe succeeds.

    Attributes:
        reset_after: Seconds after which one probe may close the breaker again; `None`: only by hand.
        error: The refusal that opened the breaker, or `None`.
    """

    reset_after: float | None = None
    error: AccountError | None = None
    _opened_at: float = 0.0
    _known_good: bool = False
    _scout: anyio.Event | None = None
    _scout_until: float = 0.0
    _line: OrderedDict[anyio.Event, None] = attrs.field(factory=OrderedDict)
    _probing: bool = False

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

    def heard(self, error: BaseException | None) -> None:
        """Learn from the end of a submit: accepted (`None`), or refused, or broken off."""
        if isinstance(error, AccountError):
            self.error, self._known_good = error, False
            self._opened_at = anyio.current_time()
        elif error is None and self.error is None:
            self._known_good = True
        self.stand_down()

    def stand_down(self) -> None:
        """Let those go who wait for the first submit: it ended, or was never made."""
        if self._scout is not None:
            self._scout.set()
            self._scout = None

    def reset(self) -> None:
        """Let submits pass again."""
        self.error, self._known_good = None, False
        self.stand_down()

    async def _follow(self) -> None:
        """Be the first, or wait for it. Those who waited go on one after the other: a stampede would stall the loop."""
        if self._scout is None and not self._line:
            self._scout, self._scout_until = anyio.Event(), anyio.current_time() + SCOUT_WAIT
            return
        first = anyio.Event()
        self._line[first] = None
        try:
            if len(self._line) > 1:
                await first.wait()
            if self._scout is not None:
                with anyio.move_on_after(max(0, self._scout_until - anyio.current_time())):
                    await self._scout.wait()
        finally:
            was_first = next(iter(self._line)) is first
            del self._line[first]
            if was_first and self._line:
                next(iter(self._line)).set()

    async def _probe(self, probe: Callable[[], Awaitable[object]]) -> None:
        due = self.reset_after is not None and anyio.current_time() >= self._opened_at + self.reset_after
        if not due or self._probing:
            return
        self._probing = True
        try:
            await probe()
        except UCaptchaError:
            self._opened_at = anyio.current_time()
        else:
            self.reset()
        finally:
            self._probing = False

    @staticmethod
    def _again(error: AccountError) -> AccountError:
        message = f"{error.message}; no further task is submitted until the breaker is reset"
        return type(error)(message, error_code=error.error_code)
