"""The bound on what is in flight."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import attrs

from ucaptcha_async.checks import whole

from .wait_queue import WaitQueue


@attrs.frozen(kw_only=True)
class InFlightStatistics:
    """How many places of a bound are taken.

    Attributes:
        limit: The most that may be taken at once; `None` for no bound.
        in_flight: How many are taken now.
        waiting: How many wait for a place.
    """

    limit: int | None
    in_flight: int
    waiting: int


@runtime_checkable
class InFlightBound(Protocol):
    """What a client needs of a bound on its tasks at the service: `acquire`, then exactly one `release`."""

    @property
    def limit(self) -> int | None:
        """The most places taken at once; `None` for no bound."""
        ...

    async def acquire(self) -> None:
        """Wait for a place."""
        ...

    def release(self) -> None:
        """Give a place back. Never fails, and never waits."""
        ...

    def statistics(self) -> InFlightStatistics:
        """Say how many places are taken."""
        ...


def _limit(value: int | None) -> int | None:
    return None if value is None else whole("limit", value)


@attrs.define(eq=False, on_setattr=attrs.setters.NO_OP)
class InFlight:
    """A bound on what is in flight: a freed place goes straight to the one who waited longest.

    Args:
        limit: The most places taken at once; `None` for no bound.

    Raises:
        ConfigurationError: `limit` is neither `None` nor a positive whole number.
    """

    _limit: int | None = attrs.field(default=None, converter=_limit, alias="limit")
    _in_flight: int = attrs.field(default=0, init=False, repr=False)
    _line: WaitQueue[None] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._line = WaitQueue(lambda _: self.release())

    @property
    def limit(self) -> int | None:
        """The most places taken at once."""
        return self._limit

    async def acquire(self) -> None:
        """Wait for a place. A checkpoint only if there is none free."""
        if self._limit is None or self._in_flight < self._limit:
            self._in_flight += 1
        else:
            await self._line.wait()

    def release(self) -> None:
        """Give a place back, or straight to the first who waits."""
        if self._in_flight == 0:
            raise RuntimeError("released more often than acquired")
        if not self._line.call(None):
            self._in_flight -= 1

    def statistics(self) -> InFlightStatistics:
        """Say how many places are taken."""
        return InFlightStatistics(limit=self.limit, in_flight=self._in_flight, waiting=len(self._line))
