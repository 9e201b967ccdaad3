"""A journal in memory: for simulations and tests, and to name pieces of work within one process."""

from __future__ import annotations

import copy
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from decimal import Decimal

import anyio.lowlevel
import attrs

from ucaptcha_async.errors import ClientStateError

from .base import Reporting
from .ledger import HOLDS_KEY, JSON, OPEN, Begin, Change, Entry, Row, State, TakeUp, Total, is_free


@attrs.define(eq=False)
class _Rows:
    """What several journals in memory share, as processes share a file."""

    by_id: dict[str, Row] = attrs.field(factory=dict)
    by_key: dict[tuple[str, str], Row] = attrs.field(factory=dict)
    living: set[str] = attrs.field(factory=set)


class MemoryJournal(Reporting):
    """A [`Journal`][ucaptcha_async.journal.Journal] that lives and dies with the process.

    It never leaves the event loop's thread, so that it works under virtual time.

    Args:
        store_solutions: Keep solutions, so that `solution_for` and finished keys can give them again.
        clock: Wall time in Unix seconds, for reproducible rows.

    Example:
        >>> journal = MemoryJournal(store_solutions=True)
    """

    def __init__(self, *, store_solutions: bool = False, clock: Callable[[], float] = time.time) -> None:
        super().__init__(store_solutions=store_solutions)
        self._clock = clock
        self._rows = _Rows()
        self._opened = 0
        self.owner = ""

    def __repr__(self) -> str:
        return f"<MemoryJournal rows={len(self._rows.by_id)}>"

    def another(self) -> MemoryJournal:
        """A second journal on the same rows, as a second process would have on the same file."""
        twin = copy.copy(self)
        twin._opened, twin.owner = 0, ""
        return twin

    def crash(self) -> None:
        """Die as a killed process does: nothing is written any more, and the rows are left without an owner."""
        self._rows.living.discard(self.owner)
        self._opened = 0

    async def open(self) -> None:
        """Get ready."""
        await anyio.lowlevel.checkpoint()
        if not self._opened:
            self.owner = uuid.uuid4().hex
            self._rows.living.add(self.owner)
        self._opened += 1

    async def aclose(self) -> None:
        """Let go of the rows with the last call."""
        self._opened = max(0, self._opened - 1)
        if not self._opened:
            self._rows.living.discard(self.owner)
        await anyio.lowlevel.checkpoint()

    async def _write(self, change: Change) -> object:
        # Cancellation comes before the change or not at all, so that no claim is lost on its way to the caller.
        if isinstance(change, Begin | TakeUp):
            await anyio.lowlevel.checkpoint()
        if not self._opened:
            raise ClientStateError("the journal is not open")
        return change.apply(self, self._clock())

    def row(self, submit_id: str) -> Row | None:
        """The row with this id."""
        return self._rows.by_id.get(submit_id)

    def holder(self, account: str, key: str) -> Row | None:
        """The row that holds the key."""
        return self._rows.by_key.get((account, key))

    def put(self, row: Row) -> None:
        """Keep the row."""
        self._rows.by_id[row.submit_id] = row
        if row.key is None:
            return
        name = (row.account, row.key)
        if row.state in HOLDS_KEY:
            self._rows.by_key[name] = row
        elif self._rows.by_key.get(name) is row:
            del self._rows.by_key[name]

    def drop(self, row: Row) -> None:
        """Remove the row."""
        del self._rows.by_id[row.submit_id]
        if row.key is not None and self._rows.by_key.get((row.account, row.key)) is row:
            del self._rows.by_key[row.account, row.key]

    def alive(self, owner: str) -> bool:
        """Whether the journal with this token is open."""
        return owner in self._rows.living

    async def open_entries(self, account: str) -> list[Entry]:
        """What is open and worked on by nobody alive, oldest first."""
        await anyio.lowlevel.checkpoint()
        rows = [r for r in self._rows.by_id.values() if r.account == account and r.state in OPEN and is_free(self, r)]
        return [r.entry(State.UNCERTAIN if r.state is State.INTENT else None) for r in rows]

    async def solution_for(self, account: str, key: str) -> Mapping[str, JSON] | None:
        """The stored solution of a finished piece of work."""
        await anyio.lowlevel.checkpoint()
        holder = self.holder(account, key)
        return None if holder is None else holder.solution

    async def entries(
        self, *, account: str | None = None, states: Collection[State] | None = None
    ) -> AsyncIterator[Entry]:
        """All rows, oldest first."""
        for row in list(self._rows.by_id.values()):
            if account in (None, row.account) and (states is None or row.state in states):
                await anyio.lowlevel.checkpoint()
                yield attrs.evolve(row.entry(), solution=None)

    async def totals(self, account: str | None = None) -> list[Total]:
        """Counts and costs by type and state."""
        found: dict[tuple[str, State], tuple[int, Decimal]] = {}
        async for entry in self.entries(account=account):
            count, cost = found.get((entry.type, entry.state), (0, Decimal(0)))
            found[entry.type, entry.state] = (count + 1, cost + (entry.cost or 0))
        return [Total(type=t, state=s, count=n, cost=c) for (t, s), (n, c) in sorted(found.items())]

    async def prune(self, before: float) -> int:
        """Remove what ended before this wall time."""
        await anyio.lowlevel.checkpoint()
        old = [r for r in self._rows.by_id.values() if r.state not in OPEN and r.updated_at < before]
        for row in old:
            self.drop(row)
        return len(old)
