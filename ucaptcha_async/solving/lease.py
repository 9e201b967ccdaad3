"""What one task at the service holds: a place in flight, money set aside, a row of the journal. Settled together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from enum import Enum, auto
from typing import Any

import attrs

from ucaptcha_async.budget import Reservation
from ucaptcha_async.journal import Claim, ClaimKind, Intent, Journal, State
from ucaptcha_async.journal.records import new_id
from ucaptcha_async.json_values import EXACT

from .session import Session


class Fate(Enum):
    """How a task's time with us ends."""

    UNSENT = auto()
    """The request never left."""
    REFUSED = auto()
    """The service did not take the task."""
    UNCERTAIN = auto()
    """Sent, and no readable answer."""
    PARKED = auto()
    """Nobody waits any more; the task may still finish, and may be waited for again."""
    SOLVED = auto()
    """A solution came."""
    FAILED = auto()
    """The service gave up, and refunds the charge."""
    FAILED_BY_CODE = auto()
    """A code says that this solve failed; whether it was charged, nobody knows."""
    LOST = auto()
    """The service does not know the id any more."""


class Money(Enum):
    """What becomes of the money that was set aside."""

    RELEASE = auto()
    KEEP = auto()
    """The estimate counts as spent."""
    SETTLE = auto()
    """The real cost counts."""


@attrs.frozen(kw_only=True)
class End:
    """What is known of a task at its end."""

    task_id: str | None = None
    cost: Decimal | None = None
    solve_time: float | None = None
    error_code: str | None = None
    solution: Mapping[str, Any] | None = attrs.field(default=None, repr=False)


Report = Callable[[Journal, str, End], Awaitable[object]]


def _solved(journal: Journal, row: str, end: End) -> Awaitable[bool]:
    return journal.finished(
        row,
        State.SOLVED,
        task_id=end.task_id,
        cost=end.cost,
        solve_time=end.solve_time,
        solution=end.solution,
    )


def _failed(journal: Journal, row: str, end: End) -> Awaitable[bool]:
    return journal.finished(row, State.FAILED, task_id=end.task_id, error_code=end.error_code)


_TABLE: dict[Fate, tuple[Money, Report]] = {
    Fate.UNSENT: (Money.RELEASE, lambda journal, row, end: journal.released(row)),
    Fate.REFUSED: (Money.RELEASE, lambda journal, row, end: journal.refused(row, end.error_code)),
    Fate.UNCERTAIN: (Money.KEEP, lambda journal, row, end: journal.uncertain(row)),
    Fate.PARKED: (Money.KEEP, lambda journal, row, end: journal.abandoned(row)),
    Fate.SOLVED: (Money.SETTLE, _solved),
    Fate.FAILED: (Money.RELEASE, _failed),
    Fate.FAILED_BY_CODE: (Money.KEEP, _failed),
    Fate.LOST: (Money.KEEP, lambda journal, row, end: journal.lost(row)),
}
"""How each fate settles a task. Every one frees the place in flight."""


@attrs.define(eq=False)
class Lease:
    """A place, a reservation and a row, each held until `close`.

    Attributes:
        session: What they are leased from.
        kind: What kind of task it is for.
        place: Whether a place in flight is held.
        reservation: Money set aside.
        row: The row of the journal.
        follows: Whether somebody else alive is answerable for the row.
        submit_id: Names what is reserved and written here, once something is.
    """

    session: Session
    kind: str
    place: bool = False
    reservation: Reservation | None = None
    row: str | None = None
    follows: bool = False
    submit_id: str = ""

    async def take_place(self) -> None:
        """Wait for a place in flight."""
        await self.session.in_flight.acquire()
        self.place = True

    def free_place(self) -> None:
        """Give the place in flight to the next."""
        if self.place:
            self.place = False
            self.session.in_flight.release()

    async def reserve(self) -> None:
        """Set money aside. Raises `BudgetExceededError`."""
        if self.session.budget is not None:
            self.reservation = await self.session.budget.reserve(self.kind, submit_id=self._named())

    async def begin(self, key: str | None, context: str | None = None) -> Claim | None:
        """Write the intent, or learn what the journal knows of the key.

        Raises:
            JournalError: Nothing was written, so nothing may be sent.
        """
        session = self.session
        if session.journal is None:
            return None
        intent = Intent(
            account=session.account,
            host=session.host,
            type=self.kind,
            key=key,
            submit_id=self._named(),
            context=context,
        )
        claim = await session.journal.begin(intent, resubmit=session.on_uncertain == "resubmit")
        if claim.mine or claim.kind is ClaimKind.HELD:
            self.row, self.follows = claim.submit_id, not claim.mine
        return claim

    def _named(self) -> str:
        self.submit_id = self.submit_id or new_id()
        return self.submit_id

    async def accepted(self, task_id: str) -> None:
        """The service has the task."""
        if self.row is not None:
            await self.session.write(lambda journal, row: journal.accepted(row, task_id), self.row)

    async def park(self) -> None:
        """Nobody waits for the task any more."""
        await self.close(Fate.PARKED)

    async def close(self, fate: Fate, end: End = End()) -> None:
        """Settle all of it, as the table says. Money first: a cancellation while the journal writes loses no cent.

        A parked task keeps its reservation and its row, so that its end can still settle them.
        """
        money, report = _TABLE[fate]
        taken_up = self.reservation is None and not self.follows
        self.free_place()
        row, follows = self.row, self.follows
        if fate is not Fate.PARKED:
            self.row = None
        counted = fate is Fate.SOLVED and self.session.count_cost(self.kind, end.task_id, end.cost)
        if self.session.budget is not None and self.reservation is not None:
            await self._settle(money, end)
        if row is None or (fate is Fate.PARKED and follows):
            return
        first = await self.session.write(lambda journal, row: report(journal, row, end), row)
        if counted and first is False and end.cost is not None:
            # Another process that waits for the same task of the journal has counted it.
            spent = self.session.tally.spent
            spent[self.kind] = EXACT.subtract(spent[self.kind], end.cost)
        if taken_up and first and self.session.budget is not None and money is not Money.KEEP:
            cost = end.cost if money is Money.SETTLE else Decimal(0)
            if cost is not None:
                await self.session.budget.spend(self.kind, cost, submit_id=row)

    async def _settle(self, money: Money, end: End) -> None:
        budget, reservation = self.session.budget, self.reservation
        assert budget is not None
        assert reservation is not None
        if money is Money.SETTLE:
            await budget.settle(reservation, end.cost)
            self.reservation = None
        elif money is Money.KEEP:
            await budget.keep(reservation)
        else:
            await budget.release(reservation)
            self.reservation = None
