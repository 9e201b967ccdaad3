"""What it has cost, and what it may cost. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

import attrs

from .checks import describe, wrong
from .errors import BudgetExceededError, ConfigurationError
from .json_values import EXACT
from .pacing.event_loop import EventLoop
from .pacing.lasting_clock import LastingClock
from .pacing.wait_queue import WaitQueue
from .tasks.names import kind_of

Money = Decimal | int | str
"""An amount of USD. Never a float: `0.1` is not a tenth."""

DEFAULT_ESTIMATE = Decimal("0.01")
"""USD reserved for a task of which nothing is known: about three times the price of the usual kinds.

Without it, the first thousands of submits of a fresh client would all fit a budget that a few of them use up.
"""

HOUR = 3600.0
_BUCKET = 1.0  # seconds: bounds the memory of the sliding hour; money ages out that much late
_ZERO = Decimal(0)
_MOST = Decimal("1E+20")
_PLACES = 30  # with at most 20 digits before the point, all sums are exact


@attrs.define(eq=False)
class _Bucket:
    """What was spent within one second of the sliding hour."""

    end: float
    cost: Decimal = _ZERO


@attrs.define(eq=False)
class Reservation:
    """Room in a budget for one submit; ended by `settle`, `release` or `keep`.

    Attributes:
        type: The task's type.
        estimate: What is reserved, USD.
        fate: `kept` can still be corrected; `ended` is final.
        cost: What it counts for since it ended, USD.
        bucket: Where that counts in the sliding hour.
    """

    type: str
    estimate: Decimal
    fate: Literal["open", "kept", "ended"] = attrs.field(default="open", repr=False)
    cost: Decimal = attrs.field(default=_ZERO, repr=False)
    bucket: _Bucket | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class BudgetStatistics:
    """A snapshot of a budget, all amounts in USD.

    Attributes:
        spent: Settled costs, and the estimates of submits of unknown fate.
        reserved: The estimates of submits whose cost is not known yet.
        spent_last_hour: The part of `spent` that counts against `max_spend_per_hour`.
        reservations: How many are open.
        refusals: How often `BudgetExceededError` was raised.
        spent_by_type: `spent`, divided by task type.
        highest_by_type: The highest cost seen of each kind; of a type of no known kind, its own.
    """

    spent: Decimal
    reserved: Decimal
    spent_last_hour: Decimal
    reservations: int
    refusals: int
    spent_by_type: Mapping[str, Decimal]
    highest_by_type: Mapping[str, Decimal]


class Budget:
    """A bound on what a client, or several that share it, may spend.

    A submit reserves before the request, so that everything in flight together can never exceed the limit. It
    reserves the highest cost seen for its type, or your estimate if that is higher; for a type of which nothing is
    known, the highest cost seen at all, and at least USD 0.01 (`DEFAULT_ESTIMATE`) unless you give an estimate. The
    real cost replaces the reservation when the task is solved; a failed or refused task gives it back. A cost above
    its estimate is counted as it is, and can exceed the limit by the difference: give an `estimate` that is an upper
    bound if that must not happen.

    Args:
        max_spend: USD for the lifetime of this object. `None`: no limit.
        max_spend_per_hour: USD within any 60 minutes. `None`: no limit.
        estimate: USD to reserve for a task; one amount for all, or amounts by kind (`"RecaptchaV2"`) or type. Any type
            that a service of the family has for a kind stands for the kind; of several, the highest amount counts.
        spent: What was spent before, for example by the run that this one continues.

    Raises:
        ConfigurationError: An amount is a float, negative, not finite or not a number.

    Example:
        ```python
        from decimal import Decimal
        from ucaptcha_async import AsyncClient, Budget

        budget = Budget(max_spend="5.00", estimate={"RecaptchaV2": "0.003"})
        client = AsyncClient(budget=budget)
        assert budget.estimate("RecaptchaV2TaskProxyless") == Decimal("0.003")
        ```
    """

    def __init__(
        self,
        max_spend: Money | None = None,
        max_spend_per_hour: Money | None = None,
        *,
        estimate: Money | Mapping[str, Money] | None = None,
        spent: Money = 0,
    ) -> None:
        self.max_spend = None if max_spend is None else amount("max_spend", max_spend)
        self.max_spend_per_hour = (
            None if max_spend_per_hour is None else amount("max_spend_per_hour", max_spend_per_hour)
        )
        self._estimates, self._estimate = estimates(estimate, amount)
        self._spent = amount("spent", spent)
        self._reserved = _ZERO
        self._reservations = 0
        self._refusals = 0
        self._by_type: dict[str, Decimal] = {}
        self._highest: dict[str, Decimal] = {}
        self._hour: deque[_Bucket] = deque()
        self._in_hour = _ZERO
        self._now = float("-inf")
        self._clock = LastingClock()
        self._line: WaitQueue[None] = WaitQueue(lambda _: self._call_next())

    def __repr__(self) -> str:
        limits = f"max_spend={self.max_spend}, max_spend_per_hour={self.max_spend_per_hour}"
        return f"<Budget {limits}, spent={self._spent}, reserved={self._reserved}>"

    @property
    def spent(self) -> Decimal:
        """USD: settled costs, and the estimates of submits of unknown fate."""
        return self._spent

    @property
    def reserved(self) -> Decimal:
        """USD: the estimates of submits whose cost is not known yet."""
        return self._reserved

    @property
    def spent_by_type(self) -> Mapping[str, Decimal]:
        """`spent` by task type, without what was spent before this object was made."""
        return MappingProxyType(dict(self._by_type))

    def statistics(self, now: float | None = None) -> BudgetStatistics:
        """A snapshot; with `now` (event-loop time), the sliding hour ends there instead of at the last call."""
        if now is not None:
            self._advance(now)
        return BudgetStatistics(
            spent=self._spent,
            reserved=self._reserved,
            spent_last_hour=self._in_hour,
            reservations=self._reservations,
            refusals=self._refusals,
            spent_by_type=self.spent_by_type,
            highest_by_type=MappingProxyType(dict(self._highest)),
        )

    def estimate(self, task_type: str) -> Decimal:
        """USD that a submit of this type, or kind, reserves now."""
        kind = priced_as(task_type)
        given = self._estimates.get(kind, self._estimate)
        seen = self._highest.get(kind)
        if seen is None and given is None:
            return max(DEFAULT_ESTIMATE, *self._highest.values(), _ZERO)
        return max(_ZERO if given is None else given, _ZERO if seen is None else seen)

    def reserve(self, task_type: str, now: float) -> Reservation:
        """Make room for one submit.

        Args:
            task_type: The task's type.
            now: The event loop's time, seconds.

        Raises:
            BudgetExceededError: There is no room. `retryable` tells whether there would be if the submits in flight
                turned out free; `limit`, `spent`, `reserved` and `estimate` are attributes.
        """
        self._advance(now)
        estimate = self.estimate(task_type)
        self._check("max_spend", self.max_spend, self._spent, estimate)
        self._check("max_spend_per_hour", self.max_spend_per_hour, self._in_hour, estimate)
        self._reserved = EXACT.add(self._reserved, estimate)
        self._reservations += 1
        self._call_next()
        return Reservation(task_type, estimate)

    async def room(self) -> bool:
        """Wait until there may be room: others were solved, or failed and gave theirs back.

        Returns:
            `False` at once if nothing is reserved, so that no room will come of itself.
        """
        if not self._reservations:
            return False
        await self._line.wait()
        return True

    def _call_next(self) -> None:
        """Let the first of the line try, as long as there is hope for the others; else all.

        Waking all each time would cost the square of their number.
        """
        if self._reservations:
            self._line.call(None)
        else:
            self._line.call_all(None)

    def _check(self, name: str, limit: Decimal | None, spent: Decimal, estimate: Decimal) -> None:
        if limit is None or _sum(spent, self._reserved, estimate) <= limit:
            return
        self._refusals += 1
        raise BudgetExceededError(
            f"{name} of USD {limit} has no room: spent {spent}, reserved {self._reserved}, this task {estimate}",
            retryable=name == "max_spend_per_hour" or _sum(spent, estimate) <= limit,
            limit=limit,
            spent=spent,
            reserved=self._reserved,
            estimate=estimate,
        )

    def settle(self, reservation: Reservation, cost: Decimal | None, now: float) -> bool:
        """Replace the reservation with the real cost.

        Also right after `keep`, when the fate becomes known later.

        Args:
            reservation: What `reserve` gave.
            cost: USD; `None`, or not an amount of this world: the service did not say, and the estimate counts.
            now: The event loop's time, seconds.

        Returns:
            `False` if the reservation had ended before; then nothing changes.
        """
        if not self._end(reservation):
            return False
        known = None if cost is None or not _is_sane(cost) else cost
        self._spend(reservation, reservation.estimate if known is None else known, now)
        if known is not None:
            kind = priced_as(reservation.type)
            self._highest[kind] = max(known, self._highest.get(kind, _ZERO))
        return True

    def release(self, reservation: Reservation) -> bool:
        """Give the room back: refused, never sent, or failed and refunded.

        Returns:
            `False` if the reservation had ended before; then nothing changes.
        """
        return self._end(reservation)

    def keep(self, reservation: Reservation, now: float) -> bool:
        """Count the estimate as spent: the submit's fate is unknown.

        Returns:
            `False` if the reservation had ended before; then nothing changes.
        """
        if not self._end(reservation, keep=True):
            return False
        self._spend(reservation, reservation.estimate, now)
        return True

    def spend(self, task_type: str, cost: Decimal, now: float) -> None:
        """Count a cost that was not reserved here: a task that an earlier process paid for."""
        reservation = Reservation(task_type, _ZERO)
        self._reservations += 1
        self.settle(reservation, cost, now)

    def _end(self, reservation: Reservation, *, keep: bool = False) -> bool:
        """End an open reservation, or correct a kept one."""
        if reservation.fate == "open":
            self._reserved = EXACT.subtract(self._reserved, reservation.estimate)
            self._reservations -= 1
        elif reservation.fate == "kept" and not keep:
            if reservation.bucket is not None:
                self._count(reservation.type, EXACT.minus(reservation.cost), reservation.bucket)
        else:
            return False
        reservation.fate = "kept" if keep else "ended"
        self._call_next()
        return True

    def _spend(self, reservation: Reservation, cost: Decimal, now: float) -> None:
        self._advance(now)
        # Charged somewhere between the reservation and now: the latest possible time keeps every window safe.
        if not self._hour or self._hour[-1].end <= self._now:
            self._hour.append(_Bucket(self._now + _BUCKET))
        reservation.cost, reservation.bucket = cost, self._hour[-1]
        self._count(reservation.type, cost, self._hour[-1])

    def _count(self, task_type: str, cost: Decimal, bucket: _Bucket) -> None:
        self._spent = EXACT.add(self._spent, cost)
        self._by_type[task_type] = EXACT.add(self._by_type.get(task_type, _ZERO), cost)
        bucket.cost = EXACT.add(bucket.cost, cost)
        if bucket.end > self._now - HOUR:
            self._in_hour = EXACT.add(self._in_hour, cost)

    def bind(self, loop: EventLoop) -> None:
        """Hear the time by the clock of this event loop. In a later loop, whose clock may start anywhere, the sliding
        hour goes on.
        """
        self._clock.follow(loop, latest=self._now)

    def _advance(self, now: float) -> None:
        self._now = max(self._now, now - self._clock.ahead)
        while self._hour and self._hour[0].end <= self._now - HOUR:
            self._in_hour = EXACT.subtract(self._in_hour, self._hour.popleft().cost)


@runtime_checkable
class SharedBudget(Protocol):
    """What a client needs of a budget that lives elsewhere: `reserve`, then one of the other three."""

    async def reserve(self, task_type: str, *, submit_id: str | None = None) -> Any:
        """Make room for one submit, or raise `BudgetExceededError`; `submit_id` names it for all processes."""
        ...

    async def spend(self, task_type: str, cost: Decimal, *, submit_id: str | None = None) -> object:
        """Count the cost of a task that another process submitted, in place of what that had reserved."""
        ...

    async def settle(self, reservation: Any, cost: Decimal | None) -> object:
        """Replace the reservation with the real cost; also after `keep`."""
        ...

    async def keep(self, reservation: Any) -> object:
        """Count the estimate as spent: the fate is unknown."""
        ...

    async def release(self, reservation: Any) -> object:
        """Give the room back."""
        ...

    async def room(self) -> bool:
        """Wait until there may be room; `False` at once if none will come of itself."""
        ...


@attrs.frozen(eq=False)
class LocalBudget:
    """A `Budget` of this process as clients use it.

    Attributes:
        budget: The budget.
        loop: The event loop.
    """

    budget: Budget
    loop: EventLoop

    def __attrs_post_init__(self) -> None:
        self.budget.bind(self.loop)

    async def reserve(self, task_type: str, *, submit_id: str | None = None) -> Reservation:
        """Make room for one submit, or raise `BudgetExceededError`."""
        return self.budget.reserve(task_type, self.loop.time())

    async def spend(self, task_type: str, cost: Decimal, *, submit_id: str | None = None) -> None:
        """Nothing: what another process paid for is not this one's."""

    async def settle(self, reservation: Reservation, cost: Decimal | None) -> bool:
        """Replace the reservation with the real cost."""
        return self.budget.settle(reservation, cost, self.loop.time())

    async def keep(self, reservation: Reservation) -> bool:
        """Count the estimate as spent."""
        return self.budget.keep(reservation, self.loop.time())

    async def release(self, reservation: Reservation) -> bool:
        """Give the room back."""
        return self.budget.release(reservation)

    async def room(self) -> bool:
        """Wait until there may be room."""
        return await self.budget.room()


def _sum(*amounts: Decimal) -> Decimal:
    total = _ZERO
    for each in amounts:
        total = EXACT.add(total, each)
    return total


def _is_sane(number: Decimal) -> bool:
    """Whether it is an amount, of a size that can be counted exactly."""
    exponent = number.as_tuple().exponent
    return isinstance(exponent, int) and exponent >= -_PLACES and 0 <= number < _MOST


def amount(field: str, value: Money) -> Decimal:
    """Read an amount of USD, or raise `ConfigurationError`."""
    allowed = f"an amount of USD as Decimal, int or str, from 0 to {_MOST}, with at most {_PLACES} decimal places"
    if isinstance(value, float):
        raise ConfigurationError(f"{field} must be {allowed}; got {describe(value)}: a float is not exact", field=field)
    if isinstance(value, bool) or not isinstance(value, Decimal | int | str):
        raise wrong(field, value, allowed, ConfigurationError)
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise wrong(field, value, allowed, ConfigurationError) from None
    if not _is_sane(number):
        raise wrong(field, value, allowed, ConfigurationError)
    return number


def priced_as(type_name: str) -> str:
    """What prices go by: the kind, whatever name is sent for it."""
    return kind_of(type_name) or type_name


def estimates(
    estimate: Money | Mapping[str, Money] | None, read: Callable[[str, Money], Decimal]
) -> tuple[Mapping[str, Decimal], Decimal | None]:
    """Amounts by kind, and the one for all others, each checked by `read`."""
    if not isinstance(estimate, Mapping):
        return {}, None if estimate is None else read("estimate", estimate)
    amounts: dict[str, Decimal] = {}
    for name, value in estimate.items():
        kind = priced_as(name)
        amounts[kind] = max(read(f"estimate[{name!r}]", value), amounts.get(kind, _ZERO))
    return amounts, None
