"""What all solves of a client share, and what each of them holds until it is settled."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import anyio
import attrs

from ucaptcha_async.budget import Budget, Reservation
from ucaptcha_async.errors import JournalError, SubmitUncertainError, UCaptchaError
from ucaptcha_async.events import Event, Hook, JournalFailed, Uncertain
from ucaptcha_async.journal import Claim, ClaimKind, Intent, Journal, State
from ucaptcha_async.pacing import InFlight
from ucaptcha_async.pacing.breaker import Breaker
from ucaptcha_async.polling import Polling, SolveTimes
from ucaptcha_async.results import Attempt, Outcome
from ucaptcha_async.transport.api import Answer, Api

if TYPE_CHECKING:
    from ucaptcha_async.callbacks import CallbackReceiver

logger = logging.getLogger("ucaptcha_async")

T = TypeVar("T")

OnUncertain = Literal["raise", "resubmit"]

LAST_WRITE = 10.0
"""Seconds that a cancelled solve still takes, at the most, to write its last line into the journal."""


@attrs.define(eq=False)
class Walk:
    """Where one solve stands: what its errors and events tell of it.

    Attributes:
        waits: Whether the caller goes on to wait, so that an immediate answer is settled at once.
    """

    task_type: str
    key: str | None = None
    phase: str = "queue"
    task_id: str | None = None
    sent: bool = False
    from_journal: bool = False
    waits: bool = False
    trouble: UCaptchaError | None = None
    attempts: list[Attempt] = attrs.field(factory=list)


@attrs.define(eq=False)
class Watch:
    """One who asks for a task, while others in this client wait for the same task."""

    answer: Answer | None = None
    _ended: anyio.Event | None = None

    async def outcome(self) -> Answer | None:
        """Wait for the end of it; `None` if it ended without an answer."""
        self._ended = self._ended or anyio.Event()
        await self._ended.wait()
        return self.answer

    def end(self) -> None:
        """Tell the others."""
        if self._ended is not None:
            self._ended.set()


@attrs.define(eq=False)
class Tally:
    """What has happened so far."""

    submitted: int = 0
    solved: int = 0
    failed: int = 0
    cancelled: int = 0
    polls: int = 0
    waiting: int = 0
    spent: dict[str, Decimal] = attrs.field(factory=dict)


@attrs.define(eq=False)
class Engine:
    """The shared part of a client and of all its views."""

    api: Api
    account: str
    host: str
    polling: Polling
    times: SolveTimes
    in_flight: InFlight
    breaker: Breaker
    journal: Journal | None
    budget: Budget | None
    callbacks: CallbackReceiver | None
    on_uncertain: OnUncertain
    cancel_grace: float
    on_event: Hook | None
    rng: Random = attrs.field(factory=Random)
    tally: Tally = attrs.field(factory=Tally)
    abandoned: deque[str] = attrs.field(factory=lambda: deque(maxlen=100_000))
    _unknown_words: set[str] = attrs.field(factory=set)
    _keys: dict[str, list[Any]] = attrs.field(factory=dict)
    _watches: dict[str, Watch] = attrs.field(factory=dict)
    _left: OrderedDict[str, float] = attrs.field(factory=OrderedDict)

    def emit(self, kind: type[Event], walk: Walk, **details: Any) -> None:
        """Tell the hook, if there is one."""
        if self.on_event is None:
            return
        event = kind(at=anyio.current_time(), task_type=walk.task_type, task_id=walk.task_id, key=walk.key, **details)
        try:
            self.on_event(event)
        except Exception:
            logger.exception("on_event raised; the solve goes on")

    def unread(self, outcome: Outcome[Any]) -> None:
        """Keep the id of a paid task whose outcome nobody has read."""
        paid = outcome.error is None or outcome.error.charged is not False
        if paid and outcome.task_id is not None:
            self.abandoned.append(outcome.task_id)

    def report_unknown(self, status: str) -> None:
        """Log a status word that nobody has seen yet, once."""
        if status not in self._unknown_words and len(self._unknown_words) < 100:
            self._unknown_words.add(status)
            logger.warning("unknown task status %r counts as pending", status[:40])

    async def watched(self, task_id: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Ask for a task, or wait for whoever in this client asks for it already: it is not polled twice as often."""
        while (other := self._watches.get(task_id)) is not None:
            answer = await other.outcome()
            if answer is not None:
                return answer
        mine = self._watches[task_id] = Watch()
        try:
            mine.answer = await ask()
            return mine.answer
        finally:
            del self._watches[task_id]
            mine.end()

    def leave(self, task_id: str, next_poll: float) -> None:
        """Remember when a task that nobody waits for any more may be asked for again."""
        now = anyio.current_time()
        while self._left and next(iter(self._left.values())) <= now:
            self._left.popitem(last=False)
        self._left[task_id] = min(next_poll, now + self.polling.interval)
        self._left.move_to_end(task_id)

    def may_poll_at(self, task_id: str) -> float:
        """When a task may be asked for, after an earlier wait for it was given up."""
        return self._left.pop(task_id, -math.inf)

    @asynccontextmanager
    async def alone_with(self, key: str) -> AsyncIterator[None]:
        """One solve of a key at a time, so that the second finds what the first has done."""
        entry = self._keys.setdefault(key, [anyio.Lock(), 0])
        entry[1] += 1
        try:
            async with entry[0]:
                yield
        finally:
            entry[1] -= 1
            if not entry[1]:
                del self._keys[key]

    async def written(self, walk: Walk, write: Awaitable[T]) -> T | None:
        """Await a report to the journal. It happens even while the caller is being cancelled, and breaks no solve."""
        with anyio.move_on_after(LAST_WRITE, shield=True):
            try:
                return await write
            except JournalError as error:
                logger.warning("%s", error)
                self.emit(JournalFailed, walk, error=error)
        return None


@attrs.define(eq=False)
class Ticket:
    """What one task at the service holds: a place in flight, a reservation, a row of the journal. Settled together."""

    engine: Engine
    walk: Walk
    place: bool = False
    reservation: Reservation | None = None
    row: str | None = None
    follows: bool = False

    async def take_place(self) -> None:
        """Wait for a place in flight."""
        await self.engine.in_flight.acquire()
        self.place = True

    def reserve(self) -> None:
        """Set money aside. Raises `BudgetExceededError`."""
        if self.engine.budget is not None:
            self.reservation = self.engine.budget.reserve(self.walk.task_type, anyio.current_time())

    async def begin(self) -> Claim | None:
        """Write the intent, or learn what the journal knows of the key. Raises `JournalError`: nothing may be sent
        then.
        """
        engine = self.engine
        if engine.journal is None:
            return None
        intent = Intent(account=engine.account, host=engine.host, type=self.walk.task_type, key=self.walk.key)
        claim = await engine.journal.begin(intent, resubmit=engine.on_uncertain == "resubmit")
        if claim.mine or claim.kind is ClaimKind.HELD:
            self.row, self.follows = claim.submit_id, not claim.mine
        return claim

    async def accepted(self, task_id: str) -> None:
        """The service has the task."""
        await self._write(lambda journal, row: journal.accepted(row, task_id))

    async def solved(self, task_id: str | None, cost: Decimal | None, solve_time: float | None, solution: Any) -> None:
        """The end, with a solution."""
        if self.engine.budget is not None and self.reservation is not None:
            self.engine.budget.settle(self.reservation, cost, anyio.current_time())
        kept = solution if isinstance(solution, dict) else None
        first = await self._end(
            lambda journal, row: journal.finished(
                row, State.SOLVED, task_id=task_id, cost=cost, solve_time=solve_time, solution=kept
            )
        )
        spent = self.engine.tally.spent
        # Two who wait for the same task of the journal have paid for it once.
        if cost is not None and first is not False:
            spent[self.walk.task_type] = spent.get(self.walk.task_type, Decimal(0)) + cost

    async def failed(self, task_id: str | None, error_code: str | None) -> None:
        """The end, refunded."""
        self.give_back()
        await self._end(
            lambda journal, row: journal.finished(row, State.FAILED, task_id=task_id, error_code=error_code)
        )

    async def refused(self, error_code: str | None) -> None:
        """The service did not take the task."""
        self.give_back()
        await self._end(lambda journal, row: journal.refused(row, error_code))

    async def unsent(self) -> None:
        """The request never left."""
        self.give_back()
        await self._end(lambda journal, row: journal.released(row))

    async def uncertain(self) -> None:
        """Sent, and no answer: the money counts as spent."""
        if self.walk.sent:
            self.engine.emit(Uncertain, self.walk)
        self.keep()
        await self._end(lambda journal, row: journal.uncertain(row))

    async def parked(self) -> None:
        """Nobody waits any more; the task may still finish, and may be waited for again."""
        self.keep()
        self.release_place()
        if not self.follows:
            await self._write(lambda journal, row: journal.abandoned(row))

    def release_place(self) -> None:
        """Give the place in flight to the next."""
        if self.place:
            self.place = False
            self.engine.in_flight.release()

    def give_back(self) -> None:
        """Give the reserved money back."""
        if self.engine.budget is not None and self.reservation is not None:
            self.engine.budget.release(self.reservation)
            self.reservation = None

    def keep(self) -> None:
        """Count the reserved money as spent."""
        if self.engine.budget is not None and self.reservation is not None:
            self.engine.budget.keep(self.reservation, anyio.current_time())

    async def _end(self, write: Callable[[Journal, str], Awaitable[object]]) -> object:
        self.release_place()
        answer = await self._write(write)
        self.row = None
        return answer

    async def _write(self, write: Callable[[Journal, str], Awaitable[object]]) -> object:
        if self.engine.journal is None or self.row is None:
            return None
        return await self.engine.written(self.walk, write(self.engine.journal, self.row))


def attempted(walk: Walk, error: UCaptchaError | None, cost: Decimal | None, mode: str | None) -> None:
    """Note one createTask of a solve, and how it went."""
    uncertain = isinstance(error, SubmitUncertainError)
    task_id = walk.task_id if error is None else error.task_id or walk.task_id
    walk.attempts.append(Attempt(task_id=task_id, error=error, cost=cost, selection_mode=mode, uncertain=uncertain))
