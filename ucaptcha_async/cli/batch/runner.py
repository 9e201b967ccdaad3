"""The run of a batch: from the input through the client to the output, until all is done or somebody says stop."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs
from anyio.abc import TaskGroup

from ucaptcha_async.budget import Budget, Reservation
from ucaptcha_async.cli.exits import CommandError, Exit, exit_code
from ucaptcha_async.cli.output import duration, note, one_line
from ucaptcha_async.cli.progress import Meter
from ucaptcha_async.client import AsyncClient
from ucaptcha_async.errors import (
    AccountError,
    BudgetExceededError,
    ClientStateError,
    JournalError,
    UCaptchaError,
    UnsolvableError,
)
from ucaptcha_async.events import Event, Failed, Solved, Submitted
from ucaptcha_async.journal import SQLiteJournal, State
from ucaptcha_async.results import Outcome
from ucaptcha_async.tasks import Solution, Task

from .index import KeyIndex, Met
from .records import Times, record, status_of
from .results import Rejects, Results
from .source import Item, Reject, Source

SLICE = 0.005
"""Seconds for which reading and checking the input may keep the event loop, at the most."""

HANDOVER = 5
"""Turns of the event loop from the start of a solve to its reservation."""

ROOM_DELAY = 0.02
"""Seconds until the budget is looked at again."""

OPEN = frozenset({State.INTENT, State.ACCEPTED, State.UNCERTAIN})


class Gate(Budget):
    """A budget that can be closed, so that nothing more is submitted."""

    closed = False

    def count_earlier(self, cost: Decimal) -> None:
        """Count what earlier runs have spent, USD: a sum, of which no price can be learned."""
        self._spent += cost

    def may_get_room(self, task_type: str) -> bool:
        """Whether there is no room for a task now, and may be when a running one ends."""
        wanted = self.spent + self.reserved + self.estimate(task_type)
        return self.max_spend is not None and not self.closed and self.reserved > 0 and wanted > self.max_spend

    def reserve(self, task_type: str, now: float) -> Reservation:
        """Make room for one submit, unless the gate is closed."""
        if self.closed:
            raise BudgetExceededError("the batch is stopping: nothing more is submitted")
        return super().reserve(task_type, now)


@attrs.define(eq=False)
class Counts:
    """What became of the input.

    Attributes:
        here: Jobs by status, in this run.
        before: The same, found in the output at the start.
        causes: Failures of this run by their class and code.
        rejected: Lines that were no tasks.
    """

    here: Counter[str] = attrs.field(factory=Counter)
    before: Counter[str] = attrs.field(factory=Counter)
    causes: Counter[str] = attrs.field(factory=Counter)
    rejected: int = 0

    def all(self, status: str) -> int:
        """Jobs with this status, in this run and before."""
        return self.here[status] + self.before[status]


@attrs.frozen(kw_only=True)
class Files:
    """What a run writes.

    Attributes:
        index: Which keys have been met.
        results: The output.
        rejects: Where bad lines go.
    """

    index: KeyIndex
    results: Results
    rejects: Rejects


@attrs.define(eq=False, kw_only=True)
class Batch:
    """One run.

    Attributes:
        source: The input.
        journal: What is paid for; `None` for none.
        gate: What may be spent.
        drain: Seconds to wait for what is in flight after a first signal.
        again: What an earlier run has left in the output and is to be done again.
        quiet: Tell nothing but errors.
        meter: What the display shows.
        counts: What became of the input.
        ended_by: Why it ended early, if it did.
        reason: The same in words.
    """

    source: Source
    journal: SQLiteJournal | None
    gate: Gate
    drain: float
    again: frozenset[Met] = frozenset()
    quiet: bool = False
    meter: Meter = attrs.field(factory=Meter)
    counts: Counts = attrs.field(factory=Counts)
    ended_by: Exit | None = None
    reason: str | None = None
    _pending: dict[int, Item] = attrs.field(factory=dict)
    _latest: Item | None = None
    _read: int = 0
    _submitted: dict[str, float] = attrs.field(factory=dict)
    _held: dict[str, Reservation | None] = attrs.field(factory=dict)
    _broken: Exception | None = None
    _files: Files = attrs.field(init=False)
    _scope: anyio.CancelScope = attrs.field(init=False)
    _clock: float = attrs.field(init=False, default=0.0)

    async def run(self, client: AsyncClient, files: Files) -> None:
        """Solve all there is, until the end, an error that concerns all, or a signal."""
        self._files, self._scope = files, anyio.CancelScope()
        self._clock = time.time() - anyio.current_time()
        self.meter.begin()
        await self._look_back()
        files.rejects.begin()
        self.meter.total = await anyio.to_thread.run_sync(self.source.count)
        async with anyio.create_task_group() as group:
            group.start_soon(self._listen, client, group)
            with self._scope:
                await self._solve(client)
            group.cancel_scope.cancel()
        self.counts.rejected = self._files.rejects.count
        if self._broken is not None:
            raise self._broken

    # --- what happens to each job

    async def _solve(self, client: AsyncClient) -> None:
        try:
            async with client.solve_many(self._items(), key=self._key) as outcomes:
                async for outcome in outcomes:
                    self._take(self._pending.pop(outcome.index), outcome)
        except (AccountError, BudgetExceededError, ClientStateError) as error:
            if self.ended_by is None:
                self._end(exit_code(error), error.message)

    def _key(self, task: Task[Solution]) -> str:
        assert self._latest is not None  # it is asked for right after `_items` gave a task
        return self._latest.key

    async def _items(self) -> AsyncIterator[Task[Solution]]:
        """The tasks that are left to do."""
        since = time.perf_counter()
        async for found in self.source.items():
            if time.perf_counter() - since > SLICE:
                await anyio.lowlevel.checkpoint()
                since = time.perf_counter()
            if isinstance(found, Reject):
                self._files.rejects.write(found.as_json())
            elif self._is_left(found):
                await self._room(found)
                self._pending[self._read], self._latest = found, found
                self._read += 1
                yield found.task
                since = time.perf_counter()
            self._ended()

    async def _room(self, item: Item) -> None:
        """Wait for room in the budget here, instead of letting thousands wait for it together."""
        if self.gate.max_spend is None:
            return
        for _ in range(HANDOVER):  # lets the one before come to its reservation
            await anyio.lowlevel.checkpoint()
        while self.gate.may_get_room(item.task.kind):  # noqa: ASYNC110 - a budget has no way to wake anybody
            await anyio.sleep(ROOM_DELAY)

    def _ended(self) -> None:
        self.meter.ended = self.source.blank + self._files.rejects.count + self.counts.before.total()

    def _is_left(self, item: Item) -> bool:
        met = self._files.index.meet(item.key)
        if met is Met.NEW or met in self.again:
            return True
        if met is Met.REPEATED:
            self._files.rejects.write({**item.place, "reason": f"the key {item.key!r} stands before in the input"})
        else:
            self.counts.before[met.name.lower()] += 1
        return False

    def _take(self, item: Item, outcome: Outcome[Solution]) -> None:
        status = status_of(outcome)
        self.counts.here[status] += 1
        if outcome.error is not None:
            self._concerns_all(outcome.error)
            self.counts.causes[_cause(outcome.error)] += status != "unsent"
        submitted = self._submitted.pop(item.key, None)
        if status in ("solved", "failed", "uncertain"):
            times = Times(submitted=submitted, known=self._clock + anyio.current_time())
            self._write(record(item, outcome, status, times))
            self.meter.count(item.task.kind, ok=status == "solved")

    def _write(self, line: dict[str, object]) -> None:
        try:
            self._files.results.write(line)
        except (CommandError, BrokenPipeError) as error:
            # What is paid stays in the journal, where there is one.
            self._broken = error
            self._scope.cancel()

    def _concerns_all(self, error: UCaptchaError) -> None:
        """Stop reading where every further job would meet the same error."""
        if isinstance(error, JournalError):
            self._end(Exit.FILE, error.message)
        elif isinstance(error, AccountError | BudgetExceededError) and self.ended_by is None:
            self._end(exit_code(error), error.message)

    # --- the journal, and what an earlier run left in it

    async def _look_back(self) -> None:
        """Count what earlier runs have spent, and set money aside for what they left open."""
        if self.journal is None:
            return
        now = anyio.current_time()
        for total in await self.journal.totals():
            if total.state is State.SOLVED:
                self.gate.count_earlier(total.cost)
        async for entry in self.journal.entries(states=OPEN):
            if entry.state is not State.ACCEPTED or entry.key is None:
                self.gate.spend(entry.type, self.gate.estimate(entry.type), now)
                continue
            self._submitted[entry.key] = entry.created_at.timestamp()
            try:
                self._held[entry.key] = self.gate.reserve(entry.type, now)
            except BudgetExceededError:
                self._held[entry.key] = None

    def hear(self, event: Event) -> None:
        """Take in an event of the client."""
        self.meter.outage.hear(event)
        if event.key is None:
            return
        if isinstance(event, Submitted):
            self._submitted[event.key] = self._clock + event.at
        elif isinstance(event, Solved | Failed) and event.key in self._held:
            self._settle(self._held.pop(event.key), event)

    def _settle(self, reservation: Reservation | None, event: Solved | Failed) -> None:
        """The client itself reserves nothing for a task that it takes up."""
        now = anyio.current_time()
        if isinstance(event, Solved):
            if reservation is None:
                self.gate.spend(event.task_type, event.cost or self.gate.estimate(event.task_type), now)
            else:
                self.gate.settle(reservation, event.cost, now)
        elif reservation is not None:
            refunded = isinstance(event.error, UnsolvableError)
            self.gate.release(reservation) if refunded else self.gate.keep(reservation, now)

    # --- the end

    def _end(self, code: Exit, reason: str | None = None) -> None:
        """Read and submit no more; what is in flight goes on."""
        if self.ended_by is None:
            self.ended_by, self.reason = code, reason
        self.gate.closed = True
        self.source.stop()

    async def _listen(self, client: AsyncClient, group: TaskGroup) -> None:
        signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
        with anyio.open_signal_receiver(*signals) as received:
            async for number in received:
                if self.ended_by in (Exit.INTERRUPTED, Exit.TERMINATED):
                    self.meter.remarks = ("stopping now: keeping what is paid for",)
                    self._scope.cancel()
                else:
                    self._stop(number)
                    # The outcomes come through the stream, so that each is written as soon as it is known.
                    group.start_soon(client.drain, self.drain)

    def _stop(self, number: signal.Signals) -> None:
        # Whatever ended it before, the wish of whoever sends signals comes first.
        self.ended_by = None
        self._end(Exit.INTERRUPTED if number is signal.SIGINT else Exit.TERMINATED)
        self.meter.stops_at = anyio.current_time() + self.drain
        again = "Ctrl-C again" if number is signal.SIGINT else "a second signal"
        remark = f"stopping: waiting up to {duration(self.drain)} for what is in flight ({again}: stop now)"
        self.meter.remarks = (remark,)
        if not self.quiet:
            note(remark)

    # --- what to tell

    @property
    def code(self) -> Exit:
        """The exit code of the run."""
        if self.ended_by is not None:
            return self.ended_by
        if self.counts.all("uncertain"):
            return Exit.UNCERTAIN
        if self.counts.all("failed") or self.counts.here["open"] or self.counts.here["unsent"]:
            return Exit.UNSOLVED
        return Exit.REJECTS if self.counts.rejected else Exit.DONE


def _cause(error: UCaptchaError) -> str:
    name = type(error).__name__.removesuffix("Error")
    return one_line(f"{name} {error.error_code}" if error.error_code else name)


async def left_open(journal: SQLiteJournal) -> tuple[int, Decimal]:
    """How many tasks the journal holds that are paid for and have not ended, and what the ended ones cost (USD)."""
    count, cost = 0, Decimal(0)
    for total in await journal.totals():
        count += total.count if total.state is State.ACCEPTED else 0
        cost += total.cost if total.state is State.SOLVED else 0
    return count, cost
